"""Whether usage is counted exactly: `.venv/bin/python bench/usage.py` prints what was answered and what was written.

Starts the shipped server with four workers and sends 200 requests a second with one key over connections to each of
them, one in twenty to what the key may not read; somebody opens the key's list and detail pages meanwhile. SIGTERM
follows the last answer at once. Then the answers that were received, the counts in `usage` and the figures on the
key's page must agree, and the key's own row must have been written at most once in ten seconds (a trigger in the
trial's database notes each write). SQLite and PostgreSQL (from the test environment); needs Linux, for /proc.
"""

import os
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from threading import Event

import click
from sqlalchemy import case, func, select, text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import create_app  # noqa: E402
from bench.stage import WORKERS, Browser, Line, Stage, lines_to_all, stage, wait_until  # noqa: E402
from portal.store.database import Database  # noqa: E402
from portal.store.models import KeyCaller, Usage  # noqa: E402
from tests.cast import Cast  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.servers import serving  # noqa: E402

CONNECTIONS = 2  # to each worker
REFUSED_EACH = 20
LEAST = 10  # seconds between two writes to the key's row
READABLE, FORBIDDEN = "/api/v1/apps/leads/records?limit=1", "/api/v1/apps/accounts/records"
_NOTE_WRITES = {
    True: """CREATE TRIGGER bench_write AFTER UPDATE ON api_key BEGIN
INSERT INTO bench_written VALUES (new.id, (julianday('now') - 2440587.5) * 86400.0); END""",
    False: """CREATE FUNCTION bench_write() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO bench_written VALUES (new.id, extract(epoch FROM clock_timestamp())); RETURN new; END $$;
CREATE TRIGGER bench_write AFTER UPDATE ON api_key FOR EACH ROW EXECUTE FUNCTION bench_write()""",
}


def note_writes(database: Database) -> None:
    """Let the database note the moment of each write to a key's row."""
    with database.transaction() as session:
        session.execute(text("CREATE TABLE bench_written (key_id integer, at double precision)"))
        session.connection().exec_driver_sql(_NOTE_WRITES[database.is_sqlite])


def writes_to(database: Database, key_id: int) -> list[float]:
    """List the moments, in seconds, at which a key's row was written."""
    with database.reading() as session:
        return list(
            session.scalars(text("SELECT at FROM bench_written WHERE key_id = :id ORDER BY at"), {"id": key_id})
        )


def drive(lines: Sequence[Line], key: str, rate: float, seconds: float) -> None:
    """Send requests at a rate, a line after the other."""
    start = time.monotonic() + 0.1

    def send(n: int) -> None:
        for number in range(n, int(rate * seconds), len(lines)):
            wait_until(start + number / rate)
            lines[n].call(key, FORBIDDEN if number % REFUSED_EACH == 0 else READABLE)

    with ThreadPoolExecutor(len(lines)) as pool:
        list(pool.map(send, range(len(lines))))


def look(browser: Browser, paths: Sequence[str], is_over: Event) -> list[float]:
    """Open pages in turn, two a second, until it is over; give the milliseconds that each took."""
    times = []
    while not is_over.is_set():
        for path in paths:
            start = time.monotonic()
            browser.get(path)
            times.append(1000 * (time.monotonic() - start))
            is_over.wait(0.5)
    return times


def on_screen(here: Stage, key_id: str) -> tuple[int, int]:
    """Read the accepted and the refused requests of 24 hours off the key's page."""
    app = create_app({"PORTAL_DATABASE_URL": here.url, "PORTAL_INSTANCE": str(here.instance)})
    page = Cast(app).max.get(f"keys/{key_id}/requests?range=24h").text
    app.extensions["portal"].close()
    accepted = re.search(r"([\d,\u202f\u00a0]+) accepted", page)
    refused = re.search(r"([\d,\u202f\u00a0]+) refused", page)
    if not accepted or not refused:
        raise RuntimeError("The page tells no figures.")
    return int(re.sub(r"\D", "", accepted[1])), int(re.sub(r"\D", "", refused[1]))


def trial(kind: str, rate: float, seconds: float) -> bool:
    """Run one trial; print its figures and say whether all is as it must be."""
    with stage(kind) as here:
        key, plain = here.office.generate("max", at=datetime.now(UTC), name="Under load", scopes=["leads:read"])
        here.office.lift_limits(key.id)
        note_writes(here.database)
        row = here.office.row(key.id)
        with serving(here.url, here.instance, PORTAL_WORKERS=str(WORKERS)) as server:
            lines = lines_to_all(server, plain.reveal(), CONNECTIONS)
            browser, is_over = Browser(server, "max@acme.test"), Event()
            paths = ("/w/acme/api/keys", f"/w/acme/api/keys/{key.id}", f"/w/acme/api/keys/{key.id}/requests?range=24h")
            with ThreadPoolExecutor(1) as pool:
                looking = pool.submit(look, browser, paths, is_over)
                start = time.monotonic()
                drive(lines, plain.reveal(), rate, seconds)
                took = time.monotonic() - start
                is_over.set()
                times = sorted(looking.result())
                lines[0].call(plain.reveal())  # so that something is sure to be in memory yet
            stopping = time.monotonic()
        stopping = time.monotonic() - stopping
        answers = sum((line.answers for line in lines), Counter())
        counted = counts_of(here.database, row.id)
        shown = on_screen(here, key.id)
        moments = writes_to(here.database, row.id)
        with here.database.reading() as session:
            by_caller = session.scalar(select(func.sum(KeyCaller.count)).where(KeyCaller.key_id == row.id))
    least = min((after - before for before, after in pairwise(moments)), default=float("inf"))
    agree = (answers[200], answers[403]) == counted == shown and answers.total() == sum(counted)
    agree = agree and counted[0] == by_caller
    rare = least >= LEAST
    others = answers.total() - answers[200] - answers[403]
    table = (
        ("answered", answers[200], answers[403], f"{others} others"),
        ("counted in usage", *counted, f"SIGTERM took {stopping:.1f} s"),
        ("shown on a page", *shown, "all agree" if agree else "THEY DIFFER"),
    )
    click.echo(
        f"{kind}: {answers.total():,} answers in {took:.0f} s over {len(lines)} connections to {WORKERS} workers,"
        f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
        f"                    accepted   refused"
    )
    for what, accepted, refused, note in table:
        click.echo(f"  {what:<17} {accepted:>8,}  {refused:>8,}   {note}")
    click.echo(
        f"  the key's row was written {len(moments)} times, {least:.2f} s apart or more"
        f"{'' if rare else ': TOO OFTEN'}\n"
        f"  {len(times)} pages opened meanwhile: median {statistics.median(times):.0f} ms, slowest {times[-1]:.0f} ms"
    )
    return agree and rare


def counts_of(database: Database, key_id: int) -> tuple[int, int]:
    """Sum what was counted of a key: accepted and refused."""
    accepted = case((Usage.outcome == "accepted", Usage.count), else_=0)
    with database.reading() as session:
        row = session.execute(select(func.sum(accepted), func.sum(Usage.count)).where(Usage.key_id == key_id)).one()
    return int(row[0] or 0), int(row[1] or 0) - int(row[0] or 0)


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--rate", default=200.0, help="Requests a second.")
@click.option("--seconds", default=30.0, help="Of each trial.")
def main(kinds: Sequence[str], rate: float, seconds: float) -> None:
    """Print what was answered, counted and written."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = [trial(kind, rate, seconds) for kind in kinds]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
