"""What a refusal costs: `.venv/bin/python bench/refusals.py` prints GET /api/v1/me with bad keys beside the floor.

Floor (a route without a check, with a good key's header), good key and each sort of bad key take turns, with 100,000
stored keys: no key at all by its form, a mistyped one whose checksum is off, and whole ones that nobody was given (each
time another, and a few that come again and again, as from integrations that have a key of another instance). From
this machine's own address: such keys are not limited as those of a network are. And the floor, after the wait by which
all answers about unknown keys take as long (`front.EVEN_AFTER`). Twice:
- in process: what the portal's own code costs, called in a bare loop by a thread that does nothing else. Without
  that wait, which is no work but leaves a processor cold;
- served: by one worker with all that belongs to it, over eight kept connections, and over 48, as a flood comes. (Over
  eight connections that wait leaves the server idle in between, and to begin again costs time.)
SQLite and PostgreSQL (from the test environment).
"""

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path

import click
from flask import Flask
from werkzeug.test import create_environ

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.floor import LATE, create_floor  # noqa: E402
from bench.load import CONNECTIONS, FLOOR, Kind, Loaded, circumstances, loaded, table  # noqa: E402
from bench.seed import add_keys, multiply  # noqa: E402
from portal.rules.access import Environment  # noqa: E402
from portal.rules.credentials import KeyFormat  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from portal.web import front  # noqa: E402
from tests.databases import KINDS, migrated_template  # noqa: E402

IN_USE = 5_000
CALLS = 500  # of each sort, a round in process
FLOOD = 48  # connections
MANY = 60_000  # unknown keys: more than are sent
FEW = 50
NEW = "unknown, each new"
LATE_FLOOR = "floor, late"


def credentials(keys: Sequence[str]) -> dict[str, list[str]]:
    """Give the text of good keys and of what is made of them, by sort."""
    other = {"a": "b"}
    return {
        FLOOR: list(keys),
        LATE_FLOOR: list(keys),
        "good": list(keys),
        "malformed": [key[:20] for key in keys],
        "mistyped": [key[:12] + other.get(key[12], "a") + key[13:] for key in keys],
        NEW: unknown(MANY),
        "unknown, the same again": unknown(FEW),
    }


def unknown(count: int) -> list[str]:
    """Make texts of keys that nobody ever had."""
    return [KeyFormat().mint(Environment.LIVE).reveal() for _ in range(count)]


def path_of(sort: str) -> str:
    """Name the route that a sort of key is sent to."""
    return {FLOOR: "/api/v1/floor", LATE_FLOOR: LATE}.get(sort, "/api/v1/me")


def status_of(sort: str) -> int:
    """Give the status that answers a sort of key."""
    return 200 if sort in (FLOOR, LATE_FLOOR, "good") else 401


def kinds(server: Loaded, texts: Mapping[str, Sequence[str]]) -> dict[str, Kind]:
    """Write the requests."""
    return {
        sort: Kind([server.get(path_of(sort), f"Authorization: Bearer {text}") for text in of_sort], status_of(sort))
        for sort, of_sort in texts.items()
    }


def called(app: Flask, sort: str, texts: Iterable[str]) -> float:
    """Call the portal with the next texts; give the milliseconds of CPU time a call. Raises for another status."""
    environs = [
        create_environ(path_of(sort), headers={"Authorization": f"Bearer {text}"}) for text in islice(texts, CALLS)
    ]
    for environ in environs:
        environ["REMOTE_ADDR"] = "127.0.0.1"
    statuses: set[str] = set()

    def start_response(status: str, *_: object) -> None:
        statuses.add(status[:3])

    start = time.thread_time()
    for environ in environs:
        for _ in app.wsgi_app(environ, start_response):  # type: ignore[arg-type]
            pass
    took = time.thread_time() - start
    if statuses != {str(status_of(sort))}:
        raise RuntimeError(f"{sort} keys were answered {statuses}")
    return 1000 * took / CALLS


def in_process(app: Flask, texts: Mapping[str, Sequence[str]], rounds: int) -> str:
    """Call the portal with each sort in turns; lay out medians of what each round gave."""
    endless = {sort: cycle(of_sort if sort == NEW else of_sort[:CALLS]) for sort, of_sort in texts.items()}
    found: dict[str, list[float]] = {sort: [] for sort in texts}
    for n in range(-1, rounds):  # the first round only warms up
        for sort in list(texts)[:: 1 if n % 2 else -1]:
            took = called(app, sort, endless[sort])
            if n >= 0:
                found[sort].append(took)
    lines = [f"{'in process':<34}CPU ms  x floor [lowest..highest]"]
    for sort, costs in found.items():
        shares = sorted(cost / floor for cost, floor in zip(costs, found[FLOOR], strict=True))
        share = f"{statistics.median(shares):.2f} [{shares[0]:.2f}..{shares[-1]:.2f}]"
        lines.append(f"  {sort:<31}{statistics.median(costs):>7.3f}" + (f"  {share}" if sort != FLOOR else ""))
    return "\n".join(lines)


@click.command()
@click.option("--database", "names", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--rounds", default=9, help="Of all sorts.")
@click.option("--seconds", default=1.0, help="Of each measurement.")
def main(names: Sequence[str], rounds: int, seconds: float) -> None:
    """Print what refusals cost beside the floor."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in names:
        with migrated_template(name) as template, tempfile.TemporaryDirectory() as folder:
            environ = {"PORTAL_DATABASE_URL": template.url, "PORTAL_INSTANCE": folder}
            keyring = Settings.from_environ(environ, Path(folder)).keyring
            database = Database(template.url)
            texts = credentials([plain.reveal() for plain in add_keys(database, keyring, IN_USE)])
            multiply(database, 20)
            database.close()
            click.echo(f"{name}, {circumstances()}")
            app = create_floor(environ)
            front.EVEN_AFTER = 0.0
            with closing(app.extensions["portal"]):
                click.echo(in_process(app, texts, rounds))
            with loaded(template.url, Path(folder)) as server:
                for connections in (CONNECTIONS, FLOOD):
                    texts[NEW] = unknown(MANY)
                    asked = kinds(server, texts)
                    costs = server.compare(asked, rounds, seconds, connections)
                    click.echo(table(f"{connections} connections", costs))


if __name__ == "__main__":
    main()
