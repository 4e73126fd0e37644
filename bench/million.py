"""What a million checks of keys cost: `.venv/bin/python bench/million.py` prints CPU time, the database's included.

With 100,000 stored keys, 5,000 of them in use over eight kept connections to one worker, everything as shipped: limits,
usage and numbers on. For `GET /api/v1/me` and `/verify`, both answered before Flask, and for a view with a key. SQLite
and PostgreSQL (from the test environment); needs Linux, for /proc.
"""

import signal
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import click
import psycopg
from sqlalchemy.engine import make_url

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import CONNECTIONS, circumstances, cpu_of, loaded, stat_of  # noqa: E402
from bench.me import IN_USE, kinds, store  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from tests.databases import KINDS, migrated_template  # noqa: E402

STORED = 100_000
_MILLION_MS = 1_000_000 / 1000 / 60  # minutes of a million milliseconds


def servers_of(url: str) -> list[Path]:
    """List the processes of the PostgreSQL server behind an address; none for SQLite, which has none."""
    if url.startswith("sqlite"):
        return []
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        parent = stat_of(Path(f"/proc/{connection.info.backend_pid}/stat"))[1]
    return [path.parent for path in Path("/proc").glob("[0-9]*/stat") if parent in (path.parent.name, _parent(path))]


def _parent(path: Path) -> str:
    try:
        return stat_of(path)[1]
    except OSError:  # it ended meanwhile
        return ""


@click.command()
@click.option("--database", "names", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--seconds", default=10.0, help="Of each measurement.")
def main(names: Sequence[str], seconds: float) -> None:
    """Print the minutes of CPU time that a million checks take."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    click.echo("a million of           database    CPU minutes: portal  database")
    for name in names:
        with migrated_template(name) as template, tempfile.TemporaryDirectory() as folder:
            keyring = Settings.from_environ({"PORTAL_DATABASE_URL": template.url}, Path(folder)).keyring
            database = Database(template.url)
            keys = store(database, keyring, STORED, [])
            database.close()
            with loaded(template.url, Path(folder)) as server:
                asked = kinds(server, keys[:: max(1, len(keys) // IN_USE)][:IN_USE])
                for kind in list(asked)[1:]:
                    requests = cycle(asked[kind].requests)
                    server.load(requests, seconds / 4, CONNECTIONS)
                    processes = servers_of(template.url)
                    before = cpu_of(processes)
                    cost = server.load(requests, seconds, CONNECTIONS)
                    beside = 1000 * (cpu_of(processes) - before) / (cost.rate * seconds)
                    click.echo(f"{kind:<22} {name:<11} {cost.cpu * _MILLION_MS:>19.0f}  {beside * _MILLION_MS:>8.0f}")
    click.echo(circumstances())


if __name__ == "__main__":
    main()
