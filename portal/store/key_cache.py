"""Records of keys kept in a process, each as new as the database's last commit; for SQLite, on one host.

Before each use the cache asks SQLite on its own connection, in autocommit, whether anybody committed since
(`PRAGMA data_version`, a few times cheaper than reading a key). If so it reads the log of changes, which triggers write
in the transaction of the change itself, whoever makes it, and drops what changed.

Why no record is ever older than the last commit that ended before `find` was called:

1. All statements of a cache run one after the other on one connection that never writes, each read to its end, so each
   sees every commit of every process that ended before it began.
2. `data_version` differs between two readings if another connection committed in between. It is read before the log:
   a commit between the two is met again with the next reading.
3. A record is read from the database after the log was, so what it does not show yet was committed after it, and
   therefore moves `data_version` and stands in the log behind what was read of it.
4. The log names the changed key or member, or nobody, which means all. Its numbers have no gaps; a cache that does not
   find the line it read last (the log keeps the newest few thousand) drops all records.
5. The triggers are compared word for word when the cache begins and whenever the database's schema changes; without
   them, or without a write-ahead log, nothing is kept.

What time alone changes (expiry, the end of an overlap) must be judged by whoever uses a record.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from portal.store.models import Access, Account, ApiKey, App, KeyScope, Member, Workspace

_log = logging.getLogger(__name__)

TABLE = "key_change"
_LINES = 10_000  # of the log that are left
_MOST = 1_000  # lines that are followed one by one; beyond, all records are dropped
_KEPT = 10_000  # records, of about 1.3 kB each
# Written with every use of a key, or of no meaning to it. Only the first use of a key changes what is told of it.
_USES = {"last_used_at", "last_used_address", "last_used_client"}
_OF_AN_ACCOUNT = ["id", "deactivated_at"]
_ALL = "NULL, NULL"
_CREATE = "CREATE TABLE IF NOT EXISTS key_change (seq INTEGER PRIMARY KEY, key_id INTEGER, member_id INTEGER)"
_INSTALLED = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'key_change_*'"
_FOLLOW = "SELECT seq, key_id, member_id FROM key_change WHERE seq >= ? ORDER BY seq LIMIT ?"


class Record(Protocol):
    """What is kept of a key."""

    @property
    def key_pk(self) -> int:
        """Whose record this is."""

    @property
    def member_pk(self) -> int:
        """Whose key it is."""


R = TypeVar("R", bound=Record)


class KeyCache(Generic[R]):
    """The records that one connection keeps; one thread at a time."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._records: dict[bytes, R] = {}  # by digest
        self._digests: dict[int, bytes] = {}  # by key
        self._version = -1
        self._schema = -1
        self._seen = -1  # the last line of the log that was read
        self._is_fit = False

    def find(self, digests: Iterable[bytes]) -> R | None:
        """Give the record under one of the digests if it is kept and nothing changed."""
        version = self._ask("PRAGMA data_version")
        if version != self._version:
            self._catch_up()
            self._version = version
        return next((record for digest in digests if (record := self._records.get(digest))), None)

    def keep(self, digest: bytes, record: R) -> None:
        """Keep what was read after `find` had not found it."""
        if not self._is_fit:
            return
        if len(self._records) >= _KEPT:
            self._drop(next(iter(self._digests)))
        self._records[digest] = record
        self._digests[record.key_pk] = digest

    def _catch_up(self) -> None:
        schema = self._ask("PRAGMA schema_version")
        if schema != self._schema:
            self._is_fit = self._ask("PRAGMA journal_mode") == "wal" and is_installed(self._connection)
            if not self._is_fit:
                _log.warning("each request reads its key: no write-ahead log, or the tables need `flask migrate`")
            self._schema = schema
            self._start_anew()
        if not self._is_fit:
            return
        lines = self._connection.execute(_FOLLOW, (self._seen, _MOST + 2)).fetchall()
        if not lines or lines[0][0] != self._seen or len(lines) > _MOST + 1:
            self._start_anew()
            return
        self._seen = lines[-1][0]
        members = set()
        for _, key, member in lines[1:]:
            if key is not None:
                self._drop(key)
            elif member is not None:
                members.add(member)
            else:
                self._start_anew()
                return
        if members:
            for record in [each for each in self._records.values() if each.member_pk in members]:
                self._drop(record.key_pk)

    def _start_anew(self) -> None:
        self._records.clear()
        self._digests.clear()
        self._seen = self._ask("SELECT max(seq) FROM key_change") if self._is_fit else -1

    def _drop(self, key: int) -> None:
        if (digest := self._digests.pop(key, None)) is not None:
            del self._records[digest]

    def _ask(self, sql: str) -> Any:
        return self._connection.execute(sql).fetchall()[0][0]


def install(connection: Any) -> None:
    """Make the log and the triggers that write it, as this code wants them; does nothing where they are so already."""
    if is_installed(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_CREATE)
        for name, _ in _installed(connection):
            connection.execute(f"DROP TRIGGER {name}")
        for _, sql in _triggers():
            connection.execute(sql)
        # What changed while a trigger was missing stands in no line. The log is never empty from now on.
        connection.execute("INSERT INTO key_change DEFAULT VALUES")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def remove(connection: Any) -> None:
    """Take log and triggers out of a database whose tables are not those of this code."""
    for name, _ in _installed(connection):
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(f"DROP TABLE IF EXISTS {TABLE}")


def is_installed(connection: Any) -> bool:
    """Say whether every change is written down as this code wants it."""
    return sorted(_installed(connection)) == sorted(_triggers())


def _installed(connection: Any) -> Sequence[tuple[str, str]]:
    found: Sequence[tuple[str, str]] = connection.execute(_INSTALLED).fetchall()
    return found


def _triggers() -> Iterator[tuple[str, str]]:
    """Give the name and text of a trigger for each way to change a table that the check of a key reads."""
    of_key = [each.name for each in ApiKey.__table__.columns if each.name not in _USES]
    yield from _triggers_of(ApiKey, "{row}.id, NULL", of_key)
    first = "AFTER UPDATE OF last_used_at ON api_key WHEN (OLD.last_used_at IS NULL) <> (NEW.last_used_at IS NULL)"
    yield _trigger("api_key_used", first, ["NEW.id, NULL"])
    yield from _triggers_of(KeyScope, "{row}.key_id, NULL")
    yield from _triggers_of(Member, "NULL, {row}.id")
    yield from _triggers_of(Access, "NULL, {row}.member_id")
    yield from _triggers_of(Account, _ALL, _OF_AN_ACCOUNT)
    yield from _triggers_of(Workspace, _ALL)
    yield from _triggers_of(App, _ALL)


def _triggers_of(model: Any, line: str, columns: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    table = model.__table__.name
    of_columns = f" OF {', '.join(columns)}" if columns else ""
    old, new = line.format(row="OLD"), line.format(row="NEW")
    yield _trigger(f"{table}_made", f"AFTER INSERT ON {table}", [new])
    yield _trigger(f"{table}_changed", f"AFTER UPDATE{of_columns} ON {table}", [old, new])
    yield _trigger(f"{table}_gone", f"AFTER DELETE ON {table}", [old])


def _trigger(name: str, event: str, lines: Sequence[str]) -> tuple[str, str]:
    """Write a trigger that adds lines, equal ones once, and takes the oldest out."""
    name = f"{TABLE}_{name}"
    added = " UNION ".join(f"SELECT {line}" for line in dict.fromkeys(lines))
    write = f"INSERT INTO key_change (key_id, member_id) {added}"
    prune = f"DELETE FROM key_change WHERE seq <= (SELECT max(seq) FROM key_change) - {_LINES}"  # noqa: S608
    return name, f"CREATE TRIGGER {name} {event} BEGIN {write}; {prune}; END"
