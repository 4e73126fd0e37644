"""What the pages cost when there is much to show: `.venv/bin/python bench/pages.py` prints milliseconds and statements.

One workspace with 500 members of 20 keys each (`--each 4`: 2,000 keys) and a million rows of usage, a tenth of them of
one busy key with 15 callers and 90 days; pages asked for in process, whole, from the WSGI call to the last byte, by an
administrator who sees every key and by a member. For each page and database: lowest, median and 95th percentile of the
time, the median of this process's own CPU time (on SQLite that is all the work; PostgreSQL works beside it), and how
many SQL statements it took. The check of the whole audit log is listed too, but no page that anybody waits for on the
way: it reads every event. SQLite and PostgreSQL (from the test environment).
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import psycopg
from flask import Flask
from sqlalchemy import Connection, event, func, insert, select, text, update

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import create_app  # noqa: E402
from portal.rules.access import Action, Environment  # noqa: E402
from portal.rules.credentials import Keyring, new_id  # noqa: E402
from portal.services import audit  # noqa: E402
from portal.services.actor import Actor, Means  # noqa: E402
from portal.services.audit import Event  # noqa: E402
from portal.store.database import Database  # noqa: E402
from portal.store.models import Access, ApiKey, App, KeyScope, Member, Solution, Workspace, hour_of  # noqa: E402
from tests.cast import Cast, Person  # noqa: E402
from tests.databases import KINDS, migrated_template  # noqa: E402

MEMBERS = 500
LIMIT = 150  # milliseconds for a page; judged by its lowest time, to which a busy machine adds least
HEADING = "page                              ms lowest  median  95th percentile  CPU ms  statements"
CHECKED = "audit log, checked"
BUSY_DAYS = 90
BUSY_CALLERS = 15
EVENTS = 6_000  # in the audit log
REFUSALS = 5_000  # of the busy key; a tenth as many again of all others together
_JOBS = ("Nightly export", "CRM sync", "Reporting", "Warehouse scanner", "Zapier", "Backup", "Invoice import")


@dataclass(frozen=True)
class Scene:
    """What the pages are asked about."""

    busy: ApiKey
    usual: ApiKey  # another of the same member
    owner: str  # the public id of that member
    program: str  # of an API member
    rows: int
    seconds: float  # that it took to make


def fill(url: str, keyring: Keyring, rows: int, each: int = 20) -> Scene:
    """Add members, keys and usage to the demo's first workspace, in bulk."""
    start = time.perf_counter()
    database = Database(url)
    now = datetime.now(UTC)
    with database.transaction() as session:
        connection = session.connection()
        database.take_time(connection)
        workspace_id = session.scalars(select(Workspace.id).where(Workspace.slug == "acme")).one()
        max_id = session.scalars(select(Member.id).where(Member.name == "Max Brandt")).one()
        members = [max_id, *_add_members(connection, workspace_id, now)]
        _add_keys(connection, workspace_id, members * each, keyring, now)
        keys = select(ApiKey).where(ApiKey.workspace_id == workspace_id).order_by(ApiKey.id)
        owner = session.scalars(select(Member.public_id).where(Member.id == max_id)).one()
        program = session.scalars(select(Member.public_id).where(Member.id == members[-1])).one()
        usual = session.scalars(keys.where(ApiKey.member_id == max_id).limit(1)).one()
        busy = session.scalars(keys.where(ApiKey.member_id == max_id).limit(1).offset(1)).one()
        busy.expires_at = busy.deactivated_at = None
        session.flush()
        _add_usage(connection, busy.id, MEMBERS * each, rows, now, is_sqlite=database.is_sqlite)
        for n in range(EVENTS):
            who = Actor(now - timedelta(hours=EVENTS - n), Means.SESSION, "Max Brandt", f"mem_{n % 500}", workspace_id)
            key = busy if n % 20 == 0 else usual
            details = {"before": ["Old", ""], "after": [key.name, ""], "environment": key.environment}
            audit.record(session, who, Event.KEY_EDITED, target_id=key.public_id, target_name=key.name, details=details)
    if not database.is_sqlite:  # as its autovacuum would, some time after so many rows
        plain_url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain_url, autocommit=True) as patient:
            patient.execute("VACUUM ANALYZE")
    database.close()
    return Scene(busy, usual, owner, program, rows, time.perf_counter() - start)


def _add_members(connection: Connection, workspace_id: int, now: datetime) -> list[int]:
    rows = [
        {
            "public_id": new_id("mem"),
            "workspace_id": workspace_id,
            "name": f"{random.choice(_JOBS)} {n}",
            "role": "member",
            "created_at": now,
        }
        for n in range(MEMBERS - 1)
    ]
    last = connection.scalar(select(func.max(Member.id)))
    connection.execute(insert(Member), rows)
    members = list(connection.scalars(select(Member.id).where(Member.id > last).order_by(Member.id)))
    solutions = list(connection.scalars(select(Solution.id).where(Solution.workspace_id == workspace_id)))
    granted = [
        {"member_id": member, "solution_id": solution, "level": random.choice(("read", "full"))}
        for member in members
        for solution in solutions
    ]
    connection.execute(insert(Access), granted)
    return members


def _add_keys(
    connection: Connection, workspace_id: int, owners: Sequence[int], keyring: Keyring, now: datetime
) -> None:
    """Add a key for each owner: every tenth deactivated, some expired or about to, every fiftieth being replaced."""
    rows = []
    for n, owner in enumerate(owners):
        environment = random.choice(list(Environment))
        plain, digest, pepper_id = keyring.mint(environment)
        created = now - timedelta(days=200 - n % 190)
        name = f"{_JOBS[n % len(_JOBS)]} {n:05}"
        rows.append(
            {
                "public_id": new_id("key"),
                "workspace_id": workspace_id,
                "member_id": owner,
                "created_by_id": owners[0] if n % 3 else owner,
                "environment": environment,
                "name": name,
                "name_folded": name.lower(),
                "note": f"Runs on host-{n % 40}" if n % 2 else "",
                "digest": digest,
                "pepper_id": pepper_id,
                "last_four": plain.last_four,
                "created_at": created,
                "expires_at": (None, now + timedelta(days=n % 300 - 3))[n % 2],
                "deactivated_at": now - timedelta(days=2) if n % 10 == 7 else None,
                "last_used_at": now - timedelta(hours=n % 1500) if n % 8 else None,
            }
        )
    last = connection.scalar(select(func.coalesce(func.max(ApiKey.id), 0)))
    connection.execute(insert(ApiKey), rows)
    keys = connection.execute(select(ApiKey.id, ApiKey.member_id).where(ApiKey.id > last).order_by(ApiKey.id)).all()
    apps = list(connection.scalars(select(App.id).where(App.workspace_id == workspace_id)))
    choices = [(app, action) for app in apps for action in Action]
    scopes = [
        {"key_id": key, "app_id": app, "action": str(action)}
        for key, _ in keys
        for app, action in random.sample(choices, random.randint(1, 4))
    ]
    connection.execute(insert(KeyScope), scopes)
    for (old, owner), (new, _) in zip(keys[3::50], keys[MEMBERS + 3 :: 50], strict=False):  # of one and the same member
        ends = {"retires_at": now + timedelta(days=3), "expires_at": None, "deactivated_at": None}
        connection.execute(update(ApiKey).where(ApiKey.id == old, ApiKey.member_id == owner).values(ends))
        connection.execute(update(ApiKey).where(ApiKey.id == new, ApiKey.member_id == owner).values(replaces_id=old))


def _add_usage(connection: Connection, busy: int, keys: int, rows: int, now: datetime, *, is_sqlite: bool) -> None:
    """Add usage with one statement for the busy key and one for all others, then refused requests."""
    scopes = "CASE n.i % 4 WHEN 0 THEN '' WHEN 1 THEN 'leads:read' WHEN 2 THEN 'leads:write' ELSE 'tasks:read' END"
    others = keys - 1
    each = (rows - rows // 10) // others
    hourly = rows // 10 // (BUSY_DAYS * 24)
    moment = "datetime(({0}) * 3600 + 5, 'unixepoch') || '.000000'" if is_sqlite else "to_timestamp(({0}) * 3600.0 + 5)"
    into = "INSERT INTO usage (key_id, hour, outcome, scope, address, client, count, first_at, last_at)"
    into += " WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)"
    if not is_sqlite:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # every key is there, no need to look
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    hour = ":hour - n.i * 16"
    connection.execute(
        text(
            f"""{into}
SELECT k.id, {hour}, CASE WHEN n.i % 10 = 9 THEN 'missing_scope' ELSE 'accepted' END, {scopes},
       '198.51.100.' || (k.id % 200), 'python-requests/2.32', 1 + k.id % 97, {moment.format(hour)},
       {moment.format(hour)}
FROM api_key AS k CROSS JOIN n WHERE k.id <> :busy ORDER BY k.id, n.i"""
        ),
        {"count": each, "hour": hour_of(now), "busy": busy},
    )
    hour = f":hour - n.i / {hourly}"
    connection.execute(
        text(
            f"""{into}
SELECT :busy, {hour}, CASE WHEN n.i % 50 = 49 THEN 'missing_scope' ELSE 'accepted' END, {scopes},
       '203.0.113.' || (n.i % {BUSY_CALLERS}), 'client/' || (n.i % {BUSY_CALLERS} % 4), 1 + n.i % 97,
       {moment.format(hour)}, {moment.format(hour)}
FROM n"""
        ),
        {"count": rows // 10, "hour": hour_of(now), "busy": busy},
    )
    connection.execute(
        text(
            """INSERT INTO key_caller (key_id, address, client, scope, count, first_at, last_at)
SELECT key_id, address, client, scope, sum(count), min(first_at), max(last_at) FROM usage
WHERE outcome = 'accepted' GROUP BY 1, 2, 3, 4"""
        )
    )
    at = "datetime(:now - n.i * 300, 'unixepoch') || '.000000'" if is_sqlite else "to_timestamp(:now - n.i * 300)"
    connection.execute(
        text(
            f"""INSERT INTO refused_request
    (request_id, key_id, at, reason, required, held, method, path, address, client)
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
SELECT 'req_' || n.i, CASE WHEN n.i % 11 = 0 THEN (SELECT min(id) FROM api_key) + n.i % :keys ELSE :busy END, {at},
       'missing_scope', 'accounts:write', 'tasks:read', 'POST', '/api/v1/apps/accounts/records',
       '203.0.113.' || (n.i % 40), 'client/1' FROM n ORDER BY n.i DESC"""
        ),
        {"count": REFUSALS * 11 // 10, "keys": keys, "now": int(now.timestamp()), "busy": busy},
    )


def pages(scene: Scene) -> list[tuple[str, str, str]]:
    """List what is asked for: name, who asks, path below the workspace's API Settings."""
    busy, usual = scene.busy, scene.usual
    return [
        ("list, all keys, page 1", "ana", "keys?owner=all"),
        ("list, all keys, page 200", "ana", "keys?owner=all&page=200"),
        ("list, API members’ keys", "ana", "keys?owner=api"),
        ("list, my keys", "max", "keys"),
        ("search by name", "ana", "keys?owner=all&q=scanner"),
        ("search by last four", "ana", f"keys?owner=all&q={usual.last_four}"),
        ("search that finds nothing", "ana", "keys?owner=all&q=no+such+key"),
        ("filter by state: stopped", "ana", "keys?owner=all&state=stopped"),
        ("filter by state: unused", "ana", "keys?owner=all&state=unused"),
        ("filter by scope", "ana", "keys?owner=all&scope=tasks:write"),
        ("sort by name", "ana", "keys?owner=all&sort=name"),
        ("sort by last use", "ana", "keys?owner=all&sort=used"),
        ("sort by expiry, page 200", "ana", "keys?owner=all&sort=expires&page=200"),
        ("detail, usual key", "max", f"keys/{usual.public_id}"),
        ("detail, busy key", "max", f"keys/{busy.public_id}"),
        ("requests of 24 hours, busy key", "max", f"keys/{busy.public_id}/requests?range=24h"),
        ("requests of 30 days, busy key", "max", f"keys/{busy.public_id}/requests?range=30d"),
        ("requests of 30 days, usual key", "max", f"keys/{usual.public_id}/requests?range=30d"),
        ("history, busy key", "max", f"keys/{busy.public_id}/history"),
        ("impact, busy key", "max", f"keys/{busy.public_id}/impact"),
        ("people", "ana", "/w/acme/members"),
        ("a person who leaves: what stops", "ana", f"/w/acme/members/{scene.owner}/leave"),
        ("API members", "ana", "/w/acme/api-members"),
        ("access of an API member", "ana", f"/w/acme/api-members/{scene.program}/access"),
        ("audit log, newest", "ana", "/w/acme/audit"),
        ("audit log, in the middle", "ana", f"/w/acme/audit?before={EVENTS // 2}"),
        ("audit log, filters that find nothing", "ana", "/w/acme/audit?what=people&env=live&outcome=refused"),
        ("audit log, of one key", "ana", f"/w/acme/audit?key={busy.public_id}"),
        ("audit log, a member’s own", "max", "/w/acme/audit"),
        (CHECKED, "ana", "/w/acme/audit/verify"),
        ("review", "ana", "/w/acme/review"),
        ("review, of one finding", "ana", "/w/acme/review?finding=unused_scopes"),
        ("review, a member’s own", "max", "/w/acme/review"),
        ("policy, previewed", "ana", "/w/acme/policy?max_key_days=30&admins_own_live=no"),
        ("explain, by request id", "max", "/w/acme/explain?request_id=req_7"),
        ("explain, by hint", "max", f"/w/acme/explain?request_id={busy.last_four}"),
        ("rotate, the form, busy key", "max", f"keys/{busy.public_id}/rotate"),
    ]


class Counter:
    """Counts the statements that an application sends, but for those that begin and end transactions."""

    def __init__(self, app: Flask) -> None:
        self.count = 0
        event.listen(app.extensions["portal"].database.engine, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.count += not statement.startswith(("BEGIN", "PRAGMA"))


def measure(person: Person, counter: Counter, path: str, rounds: int) -> tuple[list[float], float, int]:
    """Ask for a page again and again; give the milliseconds, the median of the CPU's, and the usual statements."""
    times, cpu, counts = [], [], []
    for n in range(rounds + 2):
        counter.count = 0
        start, busy = time.perf_counter(), time.process_time()
        answer = person.get(path)
        took = 1000 * (time.perf_counter() - start)
        if answer.status_code != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {answer.text[:300]}")
        if n >= 2:  # the first compile the template and the statements
            times.append(took)
            cpu.append(1000 * (time.process_time() - busy))
            counts.append(counter.count)
    return sorted(times), statistics.median(cpu), statistics.mode(counts)


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--rows", default=1_000_000, help="Of usage.")
@click.option("--rounds", default=20, help="Of each page.")
@click.option("--each", default=20, help="Keys of each of the 500 members.")
def main(kinds: Sequence[str], rows: int, rounds: int, each: int) -> None:
    """Print what each page takes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    slowest = 0.0
    for kind in kinds:
        with migrated_template(kind) as template, tempfile.TemporaryDirectory() as folder:
            app = create_app({"PORTAL_DATABASE_URL": template.url, "PORTAL_INSTANCE": folder})
            portal = app.extensions["portal"]
            scene = fill(template.url, portal.settings.keyring, rows, each)
            click.echo(f"{kind}: {MEMBERS * each:,} keys, {scene.rows:,} rows of usage, made in {scene.seconds:.0f} s")
            click.echo(HEADING)
            cast, counter = Cast(app), Counter(app)
            for name, who, path in pages(scene):
                times, cpu, statements = measure(getattr(cast, who), counter, path, rounds)
                late = times[int(0.95 * (len(times) - 1))]
                usual = statistics.median(times)
                if name != CHECKED:
                    slowest = max(slowest, times[0])
                click.echo(f"{name:<32}  {times[0]:>9.1f}  {usual:>6.1f}  {late:>15.1f}  {cpu:>6.1f}  {statements:>10}")
            portal.close()
    load, cores = os.getloadavg()[0], os.cpu_count()
    click.echo(f"At its best the slowest page takes {slowest:.0f} ms of {LIMIT}. Load {load:.1f} on {cores} cores.")
    sys.exit(slowest >= LIMIT)


if __name__ == "__main__":
    main()
