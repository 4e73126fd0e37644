"""Whether a stop cuts anybody off: `.venv/bin/python bench/stop.py` stops a loaded server and counts.

Connections that are kept send one request after the other to the shipped server with four workers, reads and writes
mixed; SIGTERM comes in the middle, again and again. Of every request must be true: sent before SIGTERM, it is answered
in full; sent later, it is answered in full or gets no byte at all (the connection was closed or refused). Afterwards
every answer is checked against the database: each record that was answered 201 is there, none is there that nobody
sent, and `usage` counts exactly what was answered or taken. The server must be gone within ten seconds.
"""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click
from sqlalchemy import func, select

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import WORKERS, Stage, stage  # noqa: E402
from portal.store.models import Record, Usage  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.servers import Server, free_port, wait_until_healthy  # noqa: E402

CONNECTIONS = 16
LOAD_SECONDS = 1.5
STOP_SECONDS = 10
_HEADERS = {"Content-Type": "application/json", "User-Agent": "bench/1"}


@dataclass
class Tally:
    """What one trial saw."""

    stopped_at: float = 0.0  # of the monotonic clock; 0 until then
    answers: Counter[int] = field(default_factory=Counter)
    after: int = 0  # answered in full although sent after SIGTERM
    unanswered: int = 0  # sent after SIGTERM, no byte came
    lost: int = 0  # sent before SIGTERM, no byte came
    cut: int = 0  # an answer that broke off
    made: set[str] = field(default_factory=set)
    maybe: set[str] = field(default_factory=set)  # sent, but not answered
    lock: threading.Lock = field(default_factory=threading.Lock)


def start(url: str, instance: Path, workers: int = WORKERS) -> tuple[Server, "subprocess.Popen[bytes]"]:
    """Start the shipped server; the caller ends it."""
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", url, instance, instance / "server.log")
    ours = {"PORT": str(port), "PORTAL_DATABASE_URL": url, "PORTAL_INSTANCE": str(instance)}
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "serve"],
            cwd=ROOT,
            env=os.environ | ours | {"PORTAL_WORKERS": str(workers)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_until_healthy(server, process)
    return server, process


def call_on(server: Server, key: str, tally: Tally) -> None:
    """Send requests over one connection until it is closed after the stop."""
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = _HEADERS | {"Authorization": f"Bearer {key}"}
    for n in range(100_000):
        name = uuid4().hex
        body = f'{{"fields": {{"title": "{name}"}}}}' if n % 3 == 0 else None
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return  # nobody listens any more
        sent_at = time.monotonic()
        try:
            connection.request("POST" if body else "GET", "/api/v1/apps/tasks/records", body, headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            with tally.lock:
                if tally.stopped_at and sent_at >= tally.stopped_at - 0.001:
                    tally.unanswered += 1
                else:
                    tally.lost += 1
                if body:
                    tally.maybe.add(name)
            if tally.stopped_at:
                return
            continue
        try:
            answer.read()
        except (OSError, http.client.HTTPException):
            with tally.lock:
                tally.cut += 1
                if body:
                    tally.maybe.add(name)
            return
        with tally.lock:
            tally.answers[answer.status] += 1
            tally.after += bool(tally.stopped_at and sent_at >= tally.stopped_at)
            if answer.status == 201:
                tally.made.add(name)


def trial(here: Stage, key: str, key_pk: int, before: int) -> tuple[Tally, float, bool, int]:
    """Load, stop, look; give what was seen, the seconds of the stop, whether all records are right, and the usage."""
    server, process = start(here.url, here.instance)
    tally = Tally()
    threads = [threading.Thread(target=call_on, args=(server, key, tally)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    time.sleep(LOAD_SECONDS)
    with tally.lock:
        tally.stopped_at = time.monotonic()
    process.terminate()
    try:
        process.wait(STOP_SECONDS + 5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    took = time.monotonic() - tally.stopped_at
    for thread in threads:
        thread.join()
    with here.database.reading() as session:
        there = {str(fields.get("title")) for fields in session.scalars(select(Record.fields))}
        counted = int(session.scalar(select(func.sum(Usage.count)).where(Usage.key_id == key_pk)) or 0) - before
    mine = {title for title in there if len(title) == 32}
    right = tally.made <= there and not (tally.maybe & tally.made) and mine >= tally.made
    return tally, took, right, counted


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--trials", default=10, help="Stops of each.")
def main(kinds: Sequence[str], trials: int) -> None:
    """Print what became of the requests around each stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = True
    for kind in kinds:
        with stage(kind) as here:
            key, plain = here.office.generate("lea", at=datetime.now(UTC), scopes=["tasks:read", "tasks:write"])
            here.office.set_key(key.id, rate_per_minute=100_000, rate_per_second=5_000)
            row = here.office.row(key.id)
            total, slowest, counted, right = Tally(), 0.0, 0, True
            for _ in range(trials):
                tally, took, is_right, more = trial(here, plain.reveal(), row.id, counted)
                counted += more
                total.answers += tally.answers
                for name in ("after", "unanswered", "lost", "cut"):
                    setattr(total, name, getattr(total, name) + getattr(tally, name))
                slowest, right = max(slowest, took), right and is_right
            answered = total.answers.total()
            exact = answered <= counted <= answered + total.unanswered + total.lost + total.cut
            click.echo(
                f"{kind}: {trials} stops of {WORKERS} workers under {CONNECTIONS} kept connections,"
                f" load {os.getloadavg()[0]:.1f}\n"
                f"  {answered:,} answered in full ({dict(sorted(total.answers.items()))}), {total.after} of them sent"
                f" after SIGTERM\n"
                f"  {total.cut} cut off, {total.lost} sent before SIGTERM without an answer,"
                f" {total.unanswered} sent after it without one\n"
                f"  usage counts {counted:,}: {'fits' if exact else 'DOES NOT FIT'};"
                f" records: {'as answered' if right else 'NOT AS ANSWERED'}; slowest stop {slowest:.1f} s"
            )
            good = good and exact and right and not total.cut and not total.lost and slowest < STOP_SECONDS
    sys.exit(not good)


if __name__ == "__main__":
    main()
