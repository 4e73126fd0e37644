"""What happens when something breaks: `.venv/bin/python bench/trouble.py` breaks it and counts.

`database`: PostgreSQL is hung (SIGSTOP), killed and started again, SQLite is locked by another process, its disk is
full, while a served portal with two workers is asked with a good key four times a second over new connections. What
is asked during the trouble must get 503 (or a right 200 where reads go on), never a 401; two seconds later all is well.

`kill`: the server's whole process group is killed at a random moment while connections write records, generate and
stop keys; then the database must be intact, each answer that arrived must be true, and nothing half-made: each key
there has its scopes and its audit entry. Default 200 kills, half of them on each database.
"""

import http.client
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import click
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import Browser, Stage, stage  # noqa: E402
from bench.stop import start  # noqa: E402
from portal.services import audit_reading  # noqa: E402
from portal.services.audit import Event  # noqa: E402
from portal.store.models import ApiKey, AuditEvent, KeyScope, Record, Workspace  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.servers import Server, serving  # noqa: E402

HEALTHY_AGAIN = 2.0  # seconds
Trouble = Callable[["Stage"], AbstractContextManager[None]]
_KEY_TEXT = re.compile(r"sk_live_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}")


# --- The database in trouble ----------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Asks all the time what a key gets, and by when."""

    server: Server
    key: str
    answers: list[tuple[float, float, str, int]] = field(default_factory=list)  # asked, answered, path, status
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self, path: str, method: str = "GET") -> None:
        """Ask every quarter of a second, over a new connection."""
        while not self.is_over.is_set():
            asked_at = time.monotonic()
            status = ask(self.server, path, self.key, method)
            self.answers.append((asked_at, time.monotonic(), path, status))
            self.is_over.wait(0.25)

    def between(self, since: float, until: float, path: str) -> Counter[int]:
        """Count by status what was asked and answered in a time."""
        return Counter(
            status for asked, told, what, status in self.answers if what == path and since <= asked and told < until
        )


def ask(server: Server, path: str, key: str, method: str = "GET") -> int:
    """Send one request; give its status, 0 when there was no answer."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = '{"fields": {"title": "trouble"}}' if method == "POST" else None
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@contextmanager
def hung(here: Stage) -> Iterator[None]:
    """Stop every process of the PostgreSQL server."""
    pids = _server_pids(here)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def gone(here: Stage) -> Iterator[None]:
    """Kill the PostgreSQL server as a power cut does, and start it again at the end."""
    pids = _server_pids(here)
    command = Path(f"/proc/{pids[0]}/cmdline").read_bytes().split(b"\0")[:-1]
    owner = Path(f"/proc/{pids[0]}").stat()
    folder, is_root = _folder(here), os.getuid() == 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    try:
        yield
    finally:
        (folder / "postmaster.pid").unlink(missing_ok=True)
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=owner.st_uid if is_root else None,
            group=owner.st_gid if is_root else None,
        )
        for _ in range(100):  # it comes up in its own time; from then on the portal has two seconds
            with suppress(Exception):
                here.database.driver_connection().close()
                break
            time.sleep(0.1)


def _folder(here: Stage) -> Path:
    connection = here.database.driver_connection()
    with closing(connection):
        return Path(connection.execute("SHOW data_directory").fetchone()[0])


def _server_pids(here: Stage) -> list[int]:
    """List the server's processes, the first one first: those that work in its folder."""
    first = int((_folder(here) / "postmaster.pid").read_text().split()[0])
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == first:
                children.append(int(path.parts[2]))
    return [first, *children]


@contextmanager
def locked(here: Stage) -> Iterator[None]:
    """Hold SQLite's lock for writing, as another process that writes for very long does."""
    with closing(sqlite3.connect(str(make_url(here.url).database), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def full(here: Stage) -> Iterator[None]:
    """Fill the small file system that the database lies on."""
    path = Path(str(make_url(here.url).database)).with_name("filler")
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a file system of a few megabytes."""
    with TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def endure(kind: str, name: str, here: Stage, url: str, trouble: Trouble, seconds: float, reads_go_on: bool) -> bool:
    """Let a served portal live through a trouble; print what was answered and say whether it was right."""
    _, plain = here.office.generate("lea", at=datetime.now(UTC), name=name[:60], scopes=["tasks:read", "tasks:write"])
    with serving(url, here.instance, PORTAL_WORKERS="2") as server:
        watch = Watch(server, plain.reveal())
        verify, me, records, ready, alive = "/verify", "/api/v1/me", "/api/v1/apps/tasks/records", "/readyz", "/healthz"
        asked = [(verify, "GET"), (me, "GET"), (records, "POST"), (ready, "GET"), (alive, "GET")]
        threads = [threading.Thread(target=watch.run, args=each) for each in asked]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        with trouble(here):
            since = time.monotonic()
            time.sleep(seconds)
            until = time.monotonic()
        over = time.monotonic()
        time.sleep(HEALTHY_AGAIN + 3)
        end = time.monotonic() + 60
        watch.is_over.set()
        for thread in threads:
            thread.join()
    during = {path: watch.between(since + 0.05, until, path) for path, _ in asked}
    after = {path: watch.between(over + HEALTHY_AGAIN, end, path) for path, _ in asked}
    every = Counter(status for *_, status in watch.answers)
    reads = {200} if reads_go_on else {503}
    allowed = {verify: reads, me: reads, records: {503}, ready: reads}
    good = not every[401] and not every[500] and not every[0] and set(during[alive]) == {200}
    good = good and all(set(during[path]) <= statuses for path, statuses in allowed.items())
    good = good and bool(during[verify] and during[me] and during[ready])
    good = good and all(set(counts) <= {200, 201} and counts for counts in after.values())
    click.echo(
        f"{kind}, {name} for {seconds:.0f} s: verify {_told(during[verify])}; me {_told(during[me])};"
        f" write {_told(during[records])};"
        f" ready {_told(during[ready])}; alive {_told(during[alive])}; in all {every[401]} times 401;"
        f" {HEALTHY_AGAIN:.0f} s after: {_told(sum(after.values(), Counter()))}{'' if good else '  NOT AS IT MUST BE'}"
    )
    return good


def _told(counts: Counter[int]) -> str:
    return " ".join(f"{count}×{status}" for status, count in sorted(counts.items())) or "no answer"


def all_troubles(kinds: Sequence[str], seconds: float) -> bool:
    """Try every trouble."""
    good = True
    if "postgresql" in kinds:
        for name, trouble in (("PostgreSQL hung", hung), ("PostgreSQL gone, then started again", gone)):
            with stage("postgresql") as here:
                good &= endure("postgresql", name, here, here.url, trouble, seconds, reads_go_on=False)
    if "sqlite" in kinds:
        with stage("sqlite") as here:
            good &= endure("sqlite", "locked by another process", here, here.url, locked, seconds, reads_go_on=True)
        if os.getuid() == 0:
            with small_disk() as disk, stage("sqlite", disk) as here:
                good &= endure("sqlite", "disk full", here, here.url, full, seconds, reads_go_on=True)
        else:
            click.echo("sqlite, disk full: not tried, only root may mount a small disk")
    return good


# --- Killed ---------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What clients were told until the server was killed."""

    made: set[str] = field(default_factory=set)  # records that were answered 201
    keys: dict[str, str] = field(default_factory=dict)  # keys whose text was shown: their names
    stopped: set[str] = field(default_factory=set)  # names of keys whose end was answered
    answers: Counter[int] = field(default_factory=Counter)
    is_over: bool = False


def write_records(server: Server, key: str, told: Told) -> None:
    """Write records until nobody answers."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with suppress(OSError, http.client.HTTPException):
        while not told.is_over:
            name = uuid4().hex
            connection.request("POST", "/api/v1/apps/tasks/records", f'{{"fields": {{"title": "{name}"}}}}', headers)
            answer = connection.getresponse()
            answer.read()
            told.answers[answer.status] += 1
            if answer.status == 201:
                told.made.add(name)
    connection.close()


def make_keys(browser: Browser, told: Told) -> None:
    """Generate keys and delete every other one until nobody answers."""
    with suppress(OSError, http.client.HTTPException, RuntimeError):
        while not told.is_over:
            name = f"Key {uuid4().hex[:12]}"
            page = browser.get("/w/acme/api/keys/new")
            owner = re.search(r'name="owner"[^>]*value="([^"]+)"', page)
            form_id = re.search(r'name="form_id"[^>]*value="([^"]+)"', page)
            answers = [("name", name), ("environment", "live"), ("scopes", "tasks:read"), ("expires", "90d")]
            answers += [("owner", owner[1])] if owner else []
            answers += [("form_id", form_id[1])] if form_id else []
            shown = browser.form("/w/acme/api/keys", answers)
            text, key_id = _KEY_TEXT.search(shown), re.search(r"key_[0-9A-Za-z]+", shown)
            if not text or not key_id:
                continue
            told.keys[text[0]] = name
            told.answers[200] += 1
            status = browser.post(f"/w/acme/api/keys/{key_id[0]}/delete", {"name": name})
            told.answers[status] += 1
            if status == 303:
                told.stopped.add(name)


def whole(here: Stage, told: Told) -> list[str]:
    """List what is not as it must be after a kill."""
    wrong = []
    with here.database.reading() as session:
        titles = {str(fields.get("title")) for fields in session.scalars(select(Record.fields))}
        wrong += [f"record {name} was answered 201 and is not there" for name in told.made - titles]
        rows = {row.name: row for row in session.scalars(select(ApiKey))}
        scoped = set(session.scalars(select(KeyScope.key_id)))
        audited = set(session.scalars(select(AuditEvent.target_id).where(AuditEvent.action == Event.KEY_GENERATED)))
        ended = set(session.scalars(select(AuditEvent.target_id).where(AuditEvent.action == Event.KEY_DELETED)))
        for name, row in rows.items():
            if name.startswith("Key ") and (row.id not in scoped or row.public_id not in audited):
                wrong.append(f"{name} is half made")
            if name.startswith("Key ") and (row.revoked_at is not None) != (row.public_id in ended):
                wrong.append(f"{name} is half deleted")
        wrong += [f"{name} was shown and is not there" for name in told.keys.values() if name not in rows]
        wrong += [f"{name} was deleted and is not" for name in told.stopped if rows[name].revoked_at is None]
        for text, name in told.keys.items():
            plain = here.office.keyring.format.parse(text)
            if plain is None or (name in rows and rows[name].digest not in here.office.keyring.digests(plain)):
                wrong.append(f"{name} has another digest than its text")
        for chain in (0, *session.scalars(select(Workspace.id))):
            verdict = audit_reading.verify(session, chain)
            wrong += [] if verdict.holds else [f"the audit log is broken: {verdict.reason}"]
        count = session.scalar(select(func.count()).select_from(ApiKey))
    if here.database.is_sqlite:
        with closing(sqlite3.connect(str(make_url(here.url).database))) as connection:
            says = connection.execute("PRAGMA integrity_check").fetchall()
            wrong += [] if says == [("ok",)] else [f"SQLite says {says}"]
            wrong += [f"{row} points nowhere" for row in connection.execute("PRAGMA foreign_key_check")]
    return wrong if count else [*wrong, "no key is there"]


def kills(kind: str, count: int) -> bool:
    """Kill a server so many times; print what was told until then and whether it is true."""
    total, wrong = Told(), []
    slowest = 0.0
    with stage(kind) as here:
        key, plain = here.office.generate("lea", at=datetime.now(UTC), scopes=["tasks:read", "tasks:write"])
        here.office.set_key(key.id, rate_per_minute=100_000, rate_per_second=5_000)
        for n in range(count):
            started = time.monotonic()
            server, process = start(here.url, here.instance, workers=2)
            slowest = max(slowest, time.monotonic() - started) if n else 0.0
            told = Told()
            browser = Browser(server, ("ana", "max", "rio")[n % 3] + "@acme.test") if n % 2 == 0 else None
            threads = [threading.Thread(target=write_records, args=(server, plain.reveal(), told)) for _ in range(3)]
            if browser:
                threads.append(threading.Thread(target=make_keys, args=(browser, told)))
            for thread in threads:
                thread.start()
            time.sleep(random.uniform(0.05, 2.5))
            os.killpg(process.pid, signal.SIGKILL)
            told.is_over = True
            process.wait()
            for thread in threads:
                thread.join()
            total.answers += told.answers
            total.made |= told.made
            total.keys |= told.keys
            total.stopped |= told.stopped
            wrong += whole(here, told)
        wrong += whole(here, total)
    others = total.answers.total() - total.answers[201] - total.answers[200] - total.answers[303]
    click.echo(
        f"{kind}: killed {count} times during writes; {len(total.made)} records, {len(total.keys)} keys and"
        f" {len(total.stopped)} deletions were answered, {others} other answers; served again after {slowest:.1f} s at"
        f" most; {len(wrong)} things are not as they must be"
    )
    for line in wrong[:10]:
        click.echo(f"  {line}")
    return not wrong and not others


@click.command()
@click.argument("what", type=click.Choice(["all", "database", "kill"]), default="all")
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--seconds", default=6.0, help="Of each trouble.")
@click.option("--kills", "count", default=200, help="In all.")
def main(what: str, kinds: Sequence[str], seconds: float, count: int) -> None:
    """Break things and print what became of the requests."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = True
    if what in ("all", "database"):
        good &= all_troubles(kinds, seconds)
    if what in ("all", "kill"):
        for kind in kinds:
            good &= kills(kind, count // len(kinds))
    sys.exit(not good)


if __name__ == "__main__":
    main()
