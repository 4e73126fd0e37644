"""The log of changes on SQLite, for the processes of one host.

Why nobody who asks for news is told less than the last commit that ended before he asked:

1. All statements run one after the other on one connection that never writes, each read to its end, so each sees every
   commit of every process that ended before it began.
2. The header of the WAL index (`wal_index`) differs between two readings if anybody committed in between, and so does
   `PRAGMA data_version` if another connection did. Both are read before the log, the header first of all: a commit
   that comes between is met again with the next news.
3. The log's numbers have no gaps, and it keeps the newest few thousand lines: whoever does not find the line that he
   read last takes all for changed.
4. The triggers are compared word for word when following begins and whenever the database's schema changes; without
   them, or without a write-ahead log, the log is not fit.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from portal.store.key_log import wal_index
from portal.store.key_log.watched import FIRST_USE, KEYS, LINES, MOST, TABLE, WATCHED, Change, Watched

_log = logging.getLogger("portal.store.key_log")

_CREATE = "CREATE TABLE IF NOT EXISTS key_change (seq INTEGER PRIMARY KEY, key_id INTEGER, member_id INTEGER)"
_INSTALLED = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'key_change_*'"
_FOLLOW = "SELECT seq, key_id, member_id FROM key_change WHERE seq >= ? ORDER BY seq LIMIT ?"


class SqliteLog:
    """See `KeyLog`."""

    is_fit = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._header = b""
        self._read_header: Callable[[], bytes] = bytes  # that reads nothing, before the log is known to be fit
        self._version = -1
        self._schema = -1
        self._seen = -1  # the last line that was read

    def covers(self, _key: int | None) -> bool:
        return self.is_fit

    def news(self) -> Sequence[Change] | None:
        header = self._read_header()
        if header and header == self._header:
            return ()
        version = self._ask("PRAGMA data_version")
        news = () if version == self._version else self._read()
        self._header, self._version = header, version
        return news

    def _read(self) -> Sequence[Change] | None:
        schema = self._ask("PRAGMA schema_version")
        if schema != self._schema:
            self.is_fit = self._ask("PRAGMA journal_mode") == "wal" and self.is_installed()
            if not self.is_fit:
                _log.warning("each request reads its key: no write-ahead log, or the tables need `flask migrate`")
            self._read_header = wal_index.reader_of(self._connection) if self.is_fit else bytes
            self._schema = schema
            self._start_anew()
            return None
        if not self.is_fit:
            return None
        lines = self._connection.execute(_FOLLOW, (self._seen, MOST + 2)).fetchall()
        if not lines or lines[0][0] != self._seen or len(lines) > MOST + 1:
            self._start_anew()
            return None
        self._seen = lines[-1][0]
        return [Change(key, member) for _, key, member in lines[1:]]

    def _start_anew(self) -> None:
        self._seen = self._ask("SELECT max(seq) FROM key_change") if self.is_fit else -1

    def is_installed(self) -> bool:
        return sorted(self._installed()) == sorted(_triggers())

    def install(self) -> None:
        if self.is_installed():
            return
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            execute(_CREATE)
            for name, _ in self._installed():
                execute(f"DROP TRIGGER {name}")
            for _, sql in _triggers():
                execute(sql)
            # What changed while a trigger was missing stands in no line. The log is never empty from now on.
            execute("INSERT INTO key_change DEFAULT VALUES")
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise

    def remove(self) -> None:
        for name, _ in self._installed():
            self._connection.execute(f"DROP TRIGGER {name}")
        self._connection.execute(f"DROP TABLE IF EXISTS {TABLE}")

    def _installed(self) -> Sequence[tuple[str, str]]:
        found: Sequence[tuple[str, str]] = self._connection.execute(_INSTALLED).fetchall()
        return found

    def _ask(self, sql: str) -> Any:
        return self._connection.execute(sql).fetchall()[0][0]


def _triggers() -> Iterator[tuple[str, str]]:
    """Give the name and text of a trigger for each way to change what the check of a key reads."""
    for watched in WATCHED:
        table = watched.table
        of_columns = f" OF {', '.join(watched.columns)}" if watched.columns else ""
        old, new = _line(watched, "OLD"), _line(watched, "NEW")
        yield _trigger(f"{table}_made", f"AFTER INSERT ON {table}", [new])
        yield _trigger(f"{table}_changed", f"AFTER UPDATE{of_columns} ON {table}", [old, new])
        yield _trigger(f"{table}_gone", f"AFTER DELETE ON {table}", [old])
    first = f"AFTER UPDATE OF last_used_at ON {KEYS.table} WHEN {FIRST_USE}"
    yield _trigger(f"{KEYS.table}_used", first, [_line(KEYS, "NEW")])


def _line(watched: Watched, row: str) -> str:
    return ", ".join(f"{row}.{watched.column}" if watched.whose == each else "NULL" for each in ("key_id", "member_id"))


def _trigger(name: str, event: str, lines: Sequence[str]) -> tuple[str, str]:
    """Write a trigger that adds lines, equal ones once, and takes the oldest out."""
    name = f"{TABLE}_{name}"
    added = " UNION ".join(f"SELECT {line}" for line in dict.fromkeys(lines))
    write = f"INSERT INTO key_change (key_id, member_id) {added}"
    prune = f"DELETE FROM key_change WHERE seq <= (SELECT max(seq) FROM key_change) - {LINES}"  # noqa: S608
    return name, f"CREATE TRIGGER {name} {event} BEGIN {write}; {prune}; END"
