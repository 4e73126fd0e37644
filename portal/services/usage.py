"""How keys are used: noted in memory by each request, written in batches beside them.

A request never writes. A key's row is written at most once in ten seconds whatever its traffic; the exact counts are
rows of their own, by hour, outcome, scope and caller. A process that is killed loses what it noted since its last
flush, a second ago; a batch whose answer was lost is recognised by its id and not counted twice.
"""

import atexit
import json
import logging
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import util as multiprocessing_util
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, select, text, update

from portal import metrics
from portal.rules.credentials import KEY_SHAPED, KeyDigest, new_id
from portal.services import audit, idempotency
from portal.services.actor import Actor, Means
from portal.services.audit import Event
from portal.services.key_check import reach
from portal.services.outage import Outage
from portal.store.database import MISTAKES, PATIENCE, Database, Session
from portal.store.models import ApiKey, KeyCaller, RefusedRequest, UsageBatch, hour_of
from portal.store.models import Usage as Counted

_log = logging.getLogger(__name__)

ACCEPTED = "accepted"
FLUSH_EVERY = 1.0  # seconds
# Between the uses that a key's row tells of. A process writes within two seconds of a use, each at its own time, so two
# writes are at least ten seconds apart, whichever processes they come from.
WRITE_EVERY = timedelta(seconds=12)
KEEP_REFUSALS = timedelta(days=30)
KEEP_HOURS = 62 * 24  # of counts: the pages tell of 30 days, the review of 60
KEEP_CALLERS = timedelta(days=400)
_MAX_TRIES = 5  # of a batch that the database refuses
_KEEP_BATCHES = timedelta(hours=1)
_PRUNE_EVERY = timedelta(hours=1)
_MAX_REFUSALS = 10_000  # kept in full of one key between two flushes; the others only count
_MAX_KEPT = 20_000  # kept in full of all keys between two flushes, while the database is away too
KEPT_OF_ONE = 20_000  # refusals of one key on disk: the newest
_PRUNE_AFTER = 1_000  # of one key
_MAX_ROWS = 20_000  # counted apart between two flushes; beyond, it is as beyond _MAX_WAYS
_LONGEST_SCOPE = 50  # shorter than any key
_LONGEST_METHOD = 10
_MAX_WAYS = 60  # combinations of outcome, scope and caller of one key and day that a process counts apart
_REMEMBERED = 100_000  # keys whose last write a process remembers


class Use(NamedTuple):
    """What counts together: requests of one key in one hour with one outcome and scope, from one caller."""

    key: int
    hour: int
    outcome: str
    scope: str
    address: str
    client: str


class Request(NamedTuple):
    """One request with a known key, as the notes need it."""

    key: int
    at: datetime
    request_id: str
    method: str
    path: str
    status: int
    scope: str
    address: str
    client: str


# What a refused key could do: its scopes, or what `key_check.reach` makes them of; done later, off the hot path.
Held = str | tuple[str, str]


@dataclass(slots=True)
class _Batch:
    """Notes between two flushes; once it was tried, it is written as it is or not at all."""

    id: str = field(default_factory=lambda: new_id("use"))
    counts: dict[Use, list[Any]] = field(default_factory=dict)  # count, first and last moment
    firsts: dict[int, Request] = field(default_factory=dict)
    refused: list[tuple[Request, str, Held]] = field(default_factory=list)
    refused_of: dict[int, int] = field(default_factory=dict)
    digests: dict[int, tuple[KeyDigest, str]] = field(default_factory=dict)
    tries: int = 0


class Usage:
    """The notes of one process and the thread that writes them down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = "sqlite" if database.is_sqlite else "postgresql"
        self._count, self._caller, self._touch, self._first, self._refused = (
            text(statements[dialect]) for statements in (_COUNT, _CALLER, _TOUCH, _FIRST, _REFUSED)
        )
        self._batch = _Batch()
        self._pending: _Batch | None = None
        self._touched: dict[int, datetime] = {}
        self._told_day = 0
        self._told_apart: set[int] = set()  # hashes of the day's ways of using a key that count apart
        self._ways_of: dict[int, int] = {}  # how many those are, by key
        self._kept_of: dict[int, int] = {}  # refusals of a key since its older ones were last pruned
        self._pruned_at: datetime | None = None
        self._outage = Outage("usage could not be written; it is kept for the next try")
        self._noting = threading.Lock()  # held for a moment by each request
        self._lock = threading.Lock()  # held by the one that writes
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._at_exit: multiprocessing_util.Finalize | None = None

    def accepted(self, request: Request, *, is_first: bool, new_digest: tuple[KeyDigest, str] | None) -> None:
        """Note a request that its key was good for; `is_first` when the key's row tells of none before."""
        with self._noting:
            batch = self._batch
            self._count_one(batch, request, ACCEPTED)
            if is_first:
                batch.firsts.setdefault(request.key, request)
            if new_digest:
                batch.digests[request.key] = new_digest
        if self._thread is None:
            self._start()

    def refused(self, request: Request, reason: str, held: Held = "") -> None:
        """Note a refused request of a known key."""
        with self._noting:
            batch = self._batch
            self._count_one(batch, request, reason)
            told = batch.refused_of.get(request.key, 0)
            if told < _MAX_REFUSALS and len(batch.refused) < _MAX_KEPT:
                batch.refused_of[request.key] = told + 1
                batch.refused.append((request, reason, held))
        if self._thread is None:
            self._start()

    def _count_one(self, batch: _Batch, request: Request, outcome: str) -> None:
        at = request.at
        hour, scope = hour_of(at), _scope(request.scope)
        use = Use(request.key, hour, outcome, scope, request.address, request.client)
        count = batch.counts.get(use)
        if count is None and not self._may_tell_apart(use, batch):
            use = use._replace(scope=scope if outcome == ACCEPTED else "", address="", client="")
            count = batch.counts.get(use)
        if count is None:
            batch.counts[use] = [1, at, at]
        else:  # requests that run side by side need not end in the order in which they began
            count[0] += 1
            count[1], count[2] = min(count[1], at), max(count[2], at)

    def _may_tell_apart(self, use: Use, batch: _Batch) -> bool:
        """Say whether this combination of key, outcome, scope and caller gets a row of its own.

        At most _MAX_WAYS of a key and day do. The others are added up without their callers, and what was refused
        without its scope too, so that nobody can fill the table.
        """
        day = use.hour // 24
        if day != self._told_day or len(self._ways_of) > _REMEMBERED:
            self._told_day = day
            self._told_apart.clear()
            self._ways_of.clear()
        way = hash((use.key, use[2:]))
        if way in self._told_apart:
            return True
        ways = self._ways_of.get(use.key, 0)
        if ways >= _MAX_WAYS or len(batch.counts) >= _MAX_ROWS:
            return False
        self._told_apart.add(way)
        self._ways_of[use.key] = ways + 1
        return True

    def flush(self, *, patience: int | None = None) -> None:
        """Write what was noted. Never raises: a batch that cannot be written is kept for the next try.

        Whoever has little `patience`, in milliseconds, with others that write leaves it to that try, and says nothing.
        """
        if self._lock.acquire(timeout=-1 if patience is None else patience / 1000):
            try:
                self._write_batch(PATIENCE if patience is None else patience, is_quiet=patience is not None)
            finally:
                self._lock.release()

    def _write_batch(self, patience: int, *, is_quiet: bool) -> None:
        batch = self._pending
        if batch is None:
            with self._noting:
                batch, self._batch = self._batch, _Batch()
        if not batch.counts:
            return
        try:
            with self._database.transaction(patience=patience) as session:
                touched = self._write(session, batch)
            self._touched.update(touched)  # once it is committed: what failed is still to be written
            self._pending = None
            metrics.usage_flushed("written", 0)
            self._outage.end()
        except MISTAKES as error:
            # The database will not have it however often it is asked, and what comes after must not wait for it.
            batch.tries += 1
            self._pending = batch if batch.tries < _MAX_TRIES else None
            self._tell_failure(batch)
            self._outage.begin(error)
            if self._pending is None:
                _log.error("usage was given up", extra={"batch": batch.id})
        except Exception as error:
            self._pending = batch
            if not is_quiet:
                self._outage.begin(error)
                self._tell_failure(batch)

    def _tell_failure(self, batch: _Batch) -> None:
        lag = (datetime.now(UTC) - min(count[1] for count in batch.counts.values())).total_seconds()
        metrics.usage_flushed("failed" if self._pending else "lost", lag if self._pending else 0)

    def _write(self, session: Session, batch: _Batch) -> dict[int, datetime]:
        """Write a batch; give when the keys whose rows it wrote were used."""
        last = max(count[2] for count in batch.counts.values())
        if not session.scalar(_NEW_BATCH, {"id": batch.id, "at": _stored(last, self._database)}):
            return {}  # the try before had succeeded, only its answer was lost
        rows = [(*use, count, _text(first), _text(last)) for use, (count, first, last) in batch.counts.items()]
        written = json.dumps(rows)
        session.execute(self._count, {"rows": written})
        session.execute(self._caller, {"rows": written})
        touched = self._due(batch)
        if touched:
            due = [
                (key, _text(at), _text(at - WRITE_EVERY), use.address, use.client) for key, (at, use) in touched.items()
            ]
            session.execute(self._touch, {"rows": json.dumps(due)})
        if batch.firsts:
            firsts = [
                (first.key, _text(first.at), _method(first), _path(first), first.status, first.address)
                for first in batch.firsts.values()
            ]
            session.execute(self._first, {"rows": json.dumps(firsts)})
        if batch.refused:
            self._write_refused(session, batch)
        if batch.digests:
            move = (
                update(ApiKey)
                .where(ApiKey.id == bindparam("pk"))
                .values(digest=bindparam("d"), pepper_id=bindparam("p"))
            )
            rows_of = [{"pk": key, "d": digest, "p": pepper} for key, (digest, pepper) in batch.digests.items()]
            session.connection().execute(move, rows_of)
        self._prune(session, last)
        return {key: at for key, (at, _) in touched.items()}

    def _write_refused(self, session: Session, batch: _Batch) -> None:
        """Keep refused requests for those who ask why, and tell the audit log of them: once a key, reason and hour."""
        kept = [
            (
                *(request.request_id, request.key, _text(request.at), reason, _scope(request.scope), _held(held)),
                *(_method(request), _path(request), request.address, request.client),
            )
            for request, reason, held in batch.refused
        ]
        session.execute(self._refused, {"rows": json.dumps(kept)})
        for key, count in batch.refused_of.items():
            self._kept_of[key] = self._kept_of.get(key, 0) + count
            if self._kept_of[key] >= _PRUNE_AFTER:
                self._kept_of[key] = 0
                session.execute(_PRUNE_ONE, {"key": key, "newest": KEPT_OF_ONE})
        self._tell(session, batch)

    def _tell(self, session: Session, batch: _Batch) -> None:
        firsts = {(request.key, reason): request for request, reason, _ in reversed(batch.refused)}
        times: dict[tuple[int, str], int] = defaultdict(int)
        for use, (count, _, _) in batch.counts.items():
            times[use.key, use.outcome] += count
        columns = (ApiKey.id, ApiKey.public_id, ApiKey.workspace_id, ApiKey.name, ApiKey.last_four, ApiKey.environment)
        keys = {
            row.id: row for row in session.execute(select(*columns).where(ApiKey.id.in_({key for key, _ in firsts})))
        }
        for (pk, reason), first in sorted(firsts.items()):
            key = keys[pk]
            label = f"{key.name} (…{key.last_four})"
            actor = Actor(
                *(first.at, Means.KEY, label, key.public_id, key.workspace_id),
                address=first.address,
                request_id=first.request_id,
            )
            audit.refuse(
                session,
                actor,
                Event.KEY_REFUSED,
                target_id=key.public_id,
                target_name=label,
                details={"reason": reason, "environment": key.environment, "scope": _scope(first.scope)},
                times=times[pk, reason],
                told_an_hour=1,
                apart=reason,
            )

    def _due(self, batch: _Batch) -> dict[int, tuple[datetime, Use]]:
        """List the keys whose row is to say when they were last used: none that this process told of just now."""
        latest: dict[int, tuple[datetime, Use]] = {}
        for use, (_, _, last) in batch.counts.items():
            if use.outcome == ACCEPTED and (use.key not in latest or latest[use.key][0] < last):
                latest[use.key] = (last, use)
        if len(self._touched) > _REMEMBERED:
            self._touched.clear()
        return {
            key: (last, use)
            for key, (last, use) in latest.items()
            if (before := self._touched.get(key)) is None or last - before >= WRITE_EVERY
        }

    def _prune(self, session: Session, now: datetime) -> None:
        if self._pruned_at is None or now - self._pruned_at >= _PRUNE_EVERY:
            self._pruned_at = now
            session.execute(delete(RefusedRequest).where(RefusedRequest.at < now - KEEP_REFUSALS))
            session.execute(delete(UsageBatch).where(UsageBatch.at < now - _KEEP_BATCHES))
            session.execute(delete(Counted).where(Counted.hour < hour_of(now) - KEEP_HOURS))
            session.execute(delete(KeyCaller).where(KeyCaller.last_at < now - KEEP_CALLERS))
            idempotency.prune(session, now)
            audit.sum_up(session, now)

    def _start(self) -> None:
        """Start writing with the first note, so that no thread exists before the server has forked or spawned."""
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="usage", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the request that noted this was answered well; the next one tries again
                _log.exception("the thread that writes usage down could not be started")
                return
            self._thread = thread
            # Both, because servers differ: granian's workers run Finalize and no atexit, others the reverse.
            atexit.register(self._finish)
            self._at_exit = multiprocessing_util.Finalize(None, self._finish, exitpriority=100)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_EVERY):
            self.flush()

    def _finish(self) -> None:
        self.flush()
        if self._pending is None:
            self.flush()  # what was noted while an older batch waited

    def close(self) -> None:
        """Write everything down and stop the thread."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            atexit.unregister(self._finish)
        if self._at_exit is not None:
            self._at_exit.cancel()
        self._finish()


def _text(moment: datetime) -> str:
    """Write a UTC moment as SQLite keeps it, so that statements can compare the two as text."""
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def _method(request: Request) -> str:
    """Cut a method, which may be any word however long, to what is kept of it."""
    return request.method[:_LONGEST_METHOD]


def _path(request: Request) -> str:
    """Make a path that somebody sent storable: it may hold anything, a key as well."""
    path = KEY_SHAPED.sub("…", request.path)[:200]
    return "".join(each if each.isprintable() else "\ufffd" for each in path)


def _held(held: Held) -> str:
    return held if isinstance(held, str) else " ".join(reach(*held).effective_texts)


def _scope(scope: str) -> str:
    """Make a scope storable: the app in it is what somebody wrote into the path."""
    return scope if len(scope) <= _LONGEST_SCOPE else KEY_SHAPED.sub("…", scope)[:_LONGEST_SCOPE]


def _stored(moment: datetime, database: Database) -> Any:
    return _text(moment) if database.is_sqlite else moment


# One statement for all rows of a kind: sent row by row, a batch would trade the interpreter lock with requests.
_NEW_BATCH = text("INSERT INTO usage_batch (id, at) VALUES (:id, :at) ON CONFLICT DO NOTHING RETURNING id")
_COUNT = {
    "sqlite": """
INSERT INTO usage (key_id, hour, outcome, scope, address, client, count, first_at, last_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
       value ->> 8
FROM json_each(:rows) WHERE true
ON CONFLICT (key_id, hour, outcome, scope, address, client) DO UPDATE SET
    count = usage.count + excluded.count,
    first_at = min(usage.first_at, excluded.first_at),
    last_at = max(usage.last_at, excluded.last_at)
""",
    "postgresql": """
INSERT INTO usage (key_id, hour, outcome, scope, address, client, count, first_at, last_at)
SELECT (row ->> 0)::integer, (row ->> 1)::integer, row ->> 2, row ->> 3, row ->> 4, row ->> 5, (row ->> 6)::bigint,
       (row ->> 7)::timestamp AT TIME ZONE 'UTC', (row ->> 8)::timestamp AT TIME ZONE 'UTC'
FROM json_array_elements(CAST(:rows AS json)) AS row
ORDER BY 1, 2, 3, 4, 5, 6
ON CONFLICT (key_id, hour, outcome, scope, address, client) DO UPDATE SET
    count = usage.count + excluded.count,
    first_at = least(usage.first_at, excluded.first_at),
    last_at = greatest(usage.last_at, excluded.last_at)
""",
}
_CALLER = {
    "sqlite": """
INSERT INTO key_caller (key_id, address, client, scope, count, first_at, last_at)
SELECT value ->> 0, value ->> 4, value ->> 5, value ->> 3, sum(value ->> 6), min(value ->> 7), max(value ->> 8)
FROM json_each(:rows) WHERE value ->> 2 = 'accepted' GROUP BY 1, 2, 3, 4
ON CONFLICT (key_id, address, client, scope) DO UPDATE SET
    count = key_caller.count + excluded.count,
    first_at = min(key_caller.first_at, excluded.first_at),
    last_at = max(key_caller.last_at, excluded.last_at)
""",
    "postgresql": """
INSERT INTO key_caller (key_id, address, client, scope, count, first_at, last_at)
SELECT (row ->> 0)::integer, row ->> 4, row ->> 5, row ->> 3, sum((row ->> 6)::bigint),
       min((row ->> 7)::timestamp AT TIME ZONE 'UTC'), max((row ->> 8)::timestamp AT TIME ZONE 'UTC')
FROM json_array_elements(CAST(:rows AS json)) AS row WHERE row ->> 2 = 'accepted'
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
ON CONFLICT (key_id, address, client, scope) DO UPDATE SET
    count = key_caller.count + excluded.count,
    first_at = least(key_caller.first_at, excluded.first_at),
    last_at = greatest(key_caller.last_at, excluded.last_at)
""",
}
_TOUCH = {
    "sqlite": """
UPDATE api_key SET last_used_at = used.at, last_used_address = used.address, last_used_client = used.client
FROM (SELECT value ->> 0 AS id, value ->> 1 AS at, value ->> 2 AS since, value ->> 3 AS address, value ->> 4 AS client
      FROM json_each(:rows)) AS used
WHERE api_key.id = used.id AND (api_key.last_used_at IS NULL OR api_key.last_used_at <= used.since)
""",
    "postgresql": """
UPDATE api_key SET last_used_at = used.at, last_used_address = used.address, last_used_client = used.client
FROM (SELECT (row ->> 0)::bigint AS id, (row ->> 1)::timestamp AT TIME ZONE 'UTC' AS at,
             (row ->> 2)::timestamp AT TIME ZONE 'UTC' AS since, row ->> 3 AS address, row ->> 4 AS client
      FROM json_array_elements(CAST(:rows AS json)) AS row ORDER BY 1) AS used
WHERE api_key.id = used.id AND (api_key.last_used_at IS NULL OR api_key.last_used_at <= used.since)
""",
}
_PRUNE_ONE = text("""
DELETE FROM refused_request WHERE key_id = :key AND id <= (
    SELECT id FROM refused_request WHERE key_id = :key ORDER BY id DESC LIMIT 1 OFFSET :newest)
""")
_REFUSED = {
    "sqlite": """
INSERT INTO refused_request
    (request_id, key_id, at, reason, required, held, method, path, address, client)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
       value ->> 8, value ->> 9
FROM json_each(:rows) WHERE true
""",
    "postgresql": """
INSERT INTO refused_request
    (request_id, key_id, at, reason, required, held, method, path, address, client)
SELECT row ->> 0, (row ->> 1)::integer, (row ->> 2)::timestamp AT TIME ZONE 'UTC', row ->> 3, row ->> 4, row ->> 5,
       row ->> 6, row ->> 7, row ->> 8, row ->> 9
FROM json_array_elements(CAST(:rows AS json)) AS row
""",
}
_FIRST = {
    "sqlite": """
INSERT INTO first_request (key_id, at, method, path, status, address)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each(:rows) WHERE true
ON CONFLICT DO NOTHING
""",
    "postgresql": """
INSERT INTO first_request (key_id, at, method, path, status, address)
SELECT (row ->> 0)::integer, (row ->> 1)::timestamp AT TIME ZONE 'UTC', row ->> 2, row ->> 3, (row ->> 4)::integer,
       row ->> 5
FROM json_array_elements(CAST(:rows AS json)) AS row
ON CONFLICT DO NOTHING
""",
}
