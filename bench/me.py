"""What checking a key costs: `.venv/bin/python bench/me.py` prints GET /api/v1/me and /verify beside the floor.

The floor is a route without a check that answers the same JSON from the same app, server and request headers. Both
others are answered before Flask; with a query, /me goes through its view, as every other route of the API does: that
row tells what the check adds to a view. All take turns in one run, because machines drift; only how they compare means
anything. For each database and number of
stored keys, with 5,000 different ones in use and one worker:
- over eight kept connections, answers a second and the server's CPU time;
- over one, how long an answer takes;
- over eight, while another process stores 50 keys and revokes 50 a second, each in a transaction of its own;
- what a worker holds in memory after 50,000 keys were used, where so many are stored.
`--keys 1000 --keys 1000000` compares these. SQLite and PostgreSQL (from the test environment).
"""

import multiprocessing
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import CONNECTIONS, FLOOR, Cost, Kind, Loaded, circumstances, loaded, table  # noqa: E402
from bench.seed import add_keys, churn, multiply, replaceable, stored_keys  # noqa: E402
from portal.rules.credentials import Keyring  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from tests.databases import KINDS, migrated_template  # noqa: E402

IN_USE = 5_000
MANY = 50_000  # in use, when memory is measured
_spawning = multiprocessing.get_context("spawn")


def store(database: Database, keyring: Keyring, count: int, known: list[str]) -> list[str]:
    """Bring the database to about `count` stored keys; `known` are the texts of those that were made before."""
    lacking = min(count, MANY) - len(known)
    adding = add_keys(database, keyring, max(0, lacking))
    with click.progressbar(adding, length=lacking, label="making keys", file=sys.stderr) as progress:
        known = known + [plain.reveal() for plain in progress]
    if count > MANY:
        multiply(database, round(count / stored_keys(database)))
    return known


def kinds(server: Loaded, keys: Sequence[str]) -> dict[str, Kind]:
    """Write the requests, each with another key; /verify asks for the first scope that works for the key."""
    credentials = [f"Authorization: Bearer {key}" for key in keys]
    verified = []
    for credential in credentials:
        asked = urllib.request.Request(f"{server.server.url}/verify", headers=dict([credential.split(": ")]))
        with urllib.request.urlopen(asked) as answer:
            scopes = answer.headers["X-Auth-Scopes"].split()
        if scopes:  # some keys have only scopes beyond what their members may do
            verified.append(server.get(f"/verify?scope={scopes[0]}", credential))
    return {
        FLOOR: Kind([server.floor(credential) for credential in credentials]),
        "GET /api/v1/me": Kind([server.get("/api/v1/me", credential) for credential in credentials]),
        "the same, by its view": Kind([server.get("/api/v1/me?by=view", credential) for credential in credentials]),
        "GET /verify?scope=…": Kind(verified),
    }


def keep_changing(database_url: str, keyring: Keyring, rate: float, done: "Synchronized[int]") -> None:
    """Store and revoke so many keys a second until ended; count them in `done`."""
    database = Database(database_url)
    who = replaceable(database)
    start = time.monotonic()
    while True:
        churn(database, keyring, who, done.value)
        done.value += 1
        time.sleep(max(0.0, start + done.value / rate - time.monotonic()))


@contextmanager
def churning(database_url: str, keyring: Keyring, rate: float) -> Iterator["Synchronized[int]"]:
    """Change keys in another process meanwhile; give the count of those that were stored and revoked."""
    done = _spawning.Value("i", 0)
    process = _spawning.Process(target=keep_changing, args=(database_url, keyring, rate, done), daemon=True)
    process.start()
    try:
        while process.is_alive() and not done.value:
            time.sleep(0.05)
        yield done
        if not process.is_alive():
            raise RuntimeError("the process that changes keys ended")
    finally:
        process.kill()
        process.join()


def with_churn(
    server: Loaded, url: str, keyring: Keyring, asked: dict[str, Kind], rounds: int, seconds: float, rate: float
) -> tuple[dict[str, list[Cost]], float]:
    """Compare while keys change; give the costs and how many keys a second were stored and revoked."""
    with churning(url, keyring, rate) as done:
        start, before = time.monotonic(), done.value
        costs = server.compare(asked, rounds, seconds)
        return costs, (done.value - before) / (time.monotonic() - start)


def warm_up(server: Loaded, keys: Sequence[str]) -> None:
    """Use all keys twice: a first use changes what is kept of a key."""
    used = [server.get("/api/v1/me", f"Authorization: Bearer {key}") for key in keys]
    server.load(used * 2, float("inf"), CONNECTIONS)


def memory(server: Loaded, keys: Sequence[str], fresh: float) -> str:
    """Say what the worker holds once all keys were used."""
    warm_up(server, keys)
    resident, own = server.worker_memory()
    told = f"a worker begins with {fresh:.0f} MB; after {len(keys):,} keys it has {resident:.0f}"
    return f"{told}, {own:.0f} of them for itself"


@click.command()
@click.option("--database", "names", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--keys", "counts", multiple=True, type=int, default=(1_000, 100_000), help="Stored keys, about.")
@click.option("--rounds", default=9, help="Of all kinds.")
@click.option("--seconds", default=1.0, help="Of each measurement.")
@click.option("--churn", "rate", default=50.0, help="Keys stored and revoked a second; 0 leaves that part out.")
def main(names: Sequence[str], counts: Sequence[int], rounds: int, seconds: float, rate: float) -> None:
    """Print what GET /api/v1/me and /verify cost beside the floor."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in names:
        with migrated_template(name) as template, tempfile.TemporaryDirectory() as folder:
            keyring = Settings.from_environ({"PORTAL_DATABASE_URL": template.url}, Path(folder)).keyring
            keys: list[str] = []
            for count in sorted(counts):
                database = Database(template.url)
                keys = store(database, keyring, count, keys)
                stored = stored_keys(database)
                database.close()
                with loaded(template.url, Path(folder)) as server:
                    server.load([server.floor()], float("inf"), 1)
                    fresh, _ = server.worker_memory()
                    in_use = keys[:: max(1, len(keys) // IN_USE)][:IN_USE]
                    warm_up(server, in_use)
                    asked = kinds(server, in_use)
                    click.echo(f"{name}, {stored:,} stored keys, {circumstances()}")
                    click.echo(table(f"{CONNECTIONS} connections", server.compare(asked, rounds, seconds)))
                    click.echo(table("1 connection", server.compare(asked, rounds, seconds, 1)))
                    if rate:
                        costs, reached = with_churn(server, template.url, keyring, asked, rounds, seconds, rate)
                        click.echo(table(f"{CONNECTIONS}, and {reached:.0f} changes a second", costs))
                    if len(keys) >= MANY:
                        click.echo(memory(server, keys, fresh))


if __name__ == "__main__":
    main()
