"""Measure how many times more requests a second GET /api/v1/me answers than Python peers do.

`.venv/bin/python bench/peers.py`. The apps in bench/peers/ answer the same JSON to a good token among as many, on
SQLite, each under the server that we ship with, one worker and as many threads as ours; `--threads 1` gives them what
is best for their figures, where one client that stalls holds up all others. They have a constant for an answer, no
limits, no usage to count, no request ids. Ours does all that, as shipped. They take turns in one run, because machines
drift, after each of our keys was used twice: we keep what we read of a key until it changes, they keep nothing.

Their packages come by the pins below into an environment that is removed afterwards. better-auth is left out: it is not
Python. Django's quickstarts leave DEBUG on; here it is off.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import CONNECTIONS, Cost, Kind, Loaded, circumstances, loaded  # noqa: E402
from bench.me import IN_USE  # noqa: E402
from bench.seed import add_keys  # noqa: E402
from portal.cli import THREADS  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from tests.databases import memory, migrated_template  # noqa: E402
from tests.servers import Server, free_port, stop, wait_until_healthy  # noqa: E402

APPS = ROOT / "bench" / "peers"
STORED = 10_000
OURS = "Latchkey"
PATH = "/api/v1/me"
PINS = """
    asgiref==3.13.0 blinker==1.9.0 click==8.5.1 Django==5.2.19 django-rest-knox==5.1.0 djangorestframework==3.18.3
    djangorestframework-api-key==3.1.0 Flask==3.1.3 Flask-HTTPAuth==4.8.1 granian==2.8.7 itsdangerous==2.2.0
    Jinja2==3.1.6 MarkupSafe==3.0.4 packaging==26.3 safe-api-keys==0.4.0 SQLAlchemy==2.1.9 sqlparse==0.6.1
    typing_extensions==4.16.0 Werkzeug==3.1.9
"""


class Peer(NamedTuple):
    """An app, and how many times more requests a second we must answer."""

    must: int
    module: str
    variant: str = ""
    refusal: int = 401  # the status for a wrong token


PEERS = {
    "Flask-HTTPAuth, SQLAlchemy ORM": Peer(3, "flask_orm"),
    "safe-api-keys": Peer(3, "flask_safe_api_keys"),
    "safe-api-keys, tuned": Peer(0, "flask_safe_api_keys", "tuned"),
    "DRF TokenAuthentication, tuned": Peer(3, "django_rest", "tuned"),
    "DRF TokenAuthentication": Peer(8, "django_rest", "token"),
    "django-rest-knox": Peer(8, "django_rest", "knox"),
    "djangorestframework-api-key": Peer(8, "django_rest", "api_key", 403),
}


def install(folder: Path) -> Path:
    """Make the environment of the peers, and what Django's quickstart begins with; give its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    options = ("--quiet", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([python, "-m", "pip", "install", *options, *PINS.split()], check=True)
    (folder / "project").mkdir()
    subprocess.run([python, "-m", "django", "startproject", "quickstart", folder / "project"], check=True)
    return python


@contextmanager
def served(peer: Peer, threads: int, python: Path, folder: Path, answer: str) -> Iterator[tuple[Loaded, list[str]]]:
    """Store tokens and serve the app; give the server and the values of Authorization that it accepts."""
    port = free_port()
    name = f"{peer.module}-{peer.variant}"
    log_path = folder / f"{name}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(python.parent.parent.parent / "project"),
        "PEER_VARIANT": peer.variant,
        "PEER_DATABASE": str(folder / f"{name}.sqlite3"),
        "PEER_ANSWER": answer,
    }
    seed = (python, APPS / f"{peer.module}.py", str(STORED))
    tokens = subprocess.run(seed, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    serve = "--interface wsgi --http 1 --no-ws --workers 1 --log-level error --host 127.0.0.1"
    serve += f" --blocking-threads {threads}"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "granian", *serve.split(), "--port", str(port), f"{peer.module}:app"],
            cwd=APPS,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", "", folder, log_path, process.pid)
    try:
        wait_until_healthy(server, process)
        yield Loaded(server), tokens
    finally:
        stop(process)


def kind(server: Loaded, tokens: Sequence[str], refusal: int) -> Kind:
    """Write the requests, each with another token, once a wrong one was refused."""
    server.load([server.get(PATH, f"Authorization: {tokens[0][:-4]}0000")], float("inf"), 1, refusal)
    some = tokens[:: len(tokens) // IN_USE][:IN_USE]
    return Kind([server.get(PATH, f"Authorization: {token}") for token in some])


def in_turns(servers: Mapping[str, tuple[Loaded, Kind]], rounds: int, seconds: float) -> dict[str, list[Cost]]:
    """Load one after the other, round by round, each time in the opposite order."""
    endless = {name: cycle(asked.requests) for name, (_, asked) in servers.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in servers}
    for n in range(-1, rounds):  # the first round only warms up
        for name in list(servers)[:: 1 if n % 2 else -1]:
            cost = servers[name][0].load(endless[name], seconds, CONNECTIONS)
            if n >= 0:
                costs[name].append(cost)
    return costs


def table(costs: Mapping[str, Sequence[Cost]]) -> str:
    """Lay out what each answered, and how many times more ours did in the same round."""
    lines = [f"{'':34}requests/s  ours/theirs [lowest..highest]  must    CPU ms  theirs/ours"]
    for name, found in costs.items():
        line = f"{name:<34}{statistics.median(cost.rate for cost in found):>10,.0f}  "
        cpu = f"{statistics.median(cost.cpu for cost in found):>8.3f}"
        if name == OURS:
            line += f"{'':37}{cpu}"
        else:
            pairs = list(zip(costs[OURS], found, strict=True))
            times = sorted(ours.rate / theirs.rate for ours, theirs in pairs)
            shown = f"{statistics.median(times):.1f} [{times[0]:.1f}..{times[-1]:.1f}]"
            line += f"{shown:<29}  {PEERS[name].must or '–':>4}  {cpu}"
            line += f"  {statistics.median(theirs.cpu / ours.cpu for ours, theirs in pairs):>11.1f}"
        lines.append(line)
    return "\n".join(lines)


@click.command()
@click.option("--rounds", default=9, help="Of each.")
@click.option("--seconds", default=1.0, help="Of each measurement.")
@click.option("--threads", default=THREADS, help="Of each peer's server; ours has its own.")
def main(rounds: int, seconds: float, threads: int) -> None:
    """Print how many times more requests a second GET /api/v1/me answers than peers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        python = install(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory())))
        url = stack.enter_context(migrated_template("sqlite")).url
        database = Database(url)
        keyring = Settings.from_environ({"PORTAL_DATABASE_URL": url}, folder).keyring
        keys = [f"Bearer {plain.reveal()}" for plain in add_keys(database, keyring, STORED)]
        database.close()
        ours = stack.enter_context(loaded(url, folder))
        asked = urllib.request.Request(ours.server.url + PATH, headers={"Authorization": keys[0]})
        with urllib.request.urlopen(asked) as reply:
            answer = reply.read().decode()
        asking = kind(ours, keys, 401)
        servers = {OURS: (ours, asking)}
        ours.load([*asking.requests] * 2, float("inf"), CONNECTIONS)  # a first use changes what is kept of a key
        for name, peer in PEERS.items():
            server, tokens = stack.enter_context(served(peer, threads, python, folder, answer))
            servers[name] = (server, kind(server, tokens, peer.refusal))
        costs = in_turns(servers, rounds, seconds)
        click.echo(f"{STORED:,} stored tokens, {IN_USE:,} in use, {CONNECTIONS} connections, {circumstances()}")
        click.echo(f"ours with {THREADS} threads, theirs with {threads}")
        click.echo(table(costs))


if __name__ == "__main__":
    main()
