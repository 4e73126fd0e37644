"""The log of changes on PostgreSQL, for the processes of any number of hosts: leases, and writers that wait them out.

Whoever asked for news may use what he kept for `LEASE` seconds without asking again; while requests come, he asks for
the next lease before this one ends, and goes on meanwhile. The triggers let every change to a key wait longer than a
lease before it can be committed, while nobody gets another one. (Gray and Cheriton, Leases: an efficient fault-tolerant
mechanism for distributed file cache consistency, SOSP 1989.)

Keys are in `PARTS` parts by their numbers, so that one key's change ends the leases of one part alone. Each part has an
empty table, to be locked. A change to one key is of that key's part; any other change (of a member, say) is of all.

Why nobody who uses a lease on a part is told less of it than the last commit that ended before he looked:

1. A lease on a part is given by a function that holds the part locked in a mode that no change shares (SHARE against
   ROW EXCLUSIVE), and only if it gets that lock at once. So no change of the part is half-way then: it ended before,
   and its line is read, or it has not come to its line yet.
2. A change locks its part against leases until it ends, then writes its line, and then waits for `WAIT`. Leases given
   before the lock end meanwhile, for each is counted from before it was asked for, on its host's own clock, however
   late its lines are looked at. None is given until the change has ended, and PostgreSQL lets go of its locks after
   others can see it. A transaction that comes to a second part locks all the others with it, and waits once more.
3. Lines get rising numbers. A line of a part gets its number while the part is locked, so under a lease's lock all of
   the part's lines can be seen or have numbers to come, above any that can be seen: behind the last line that a lease
   has read, of whatever part, comes whatever is committed of this one after it. That is kept for each part, for parts
   without a lease stay behind. The log keeps the newest few thousand lines; whoever does not find the line that he read
   last takes all for changed.
4. The functions' names hold a digest of all that `install` makes, and each lease counts the triggers that are on.
   Without them there are no leases, and each request reads its key.

The clocks of hosts need not agree, only go on at about the same pace: `LEASE` is five sixths of `WAIT`. (A hypervisor
that stops a machine with its clock breaks that for the rest of a lease; so does a database server whose clock is put
forward in the middle of a wait.)

A key that the portal makes is new: nobody is told its text before it is committed, so nobody has asked for it in vain,
and it is in nobody's records. Making one, with its scopes, waits for nothing and stands in no line. The portal's
sessions say so of themselves (`MAKES_KEYS`; what it restores comes with a line for everything). A row that anybody else
puts in may be one that comes back: that is a change.

What no line tells of: tables that are rewritten by ALTER TABLE, rows that are changed while triggers are off. To
restore a dump in place, stop the portal.
"""

import hashlib
import logging
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from portal.store.database import MAKES_KEYS
from portal.store.key_log.watched import FIRST_USE, KEYS, LINES, MOST, TABLE, WATCHED, Change

_log = logging.getLogger("portal.store.key_log")

LEASE = 0.006  # seconds
WAIT = 0.0072  # seconds
_AHEAD = 0.0045  # seconds of a lease after which the next request asks for another, and does not wait for it
PARTS = 16  # a power of two
PRUNED = 1_000  # lines that are taken out of the log at once, at most
_PATIENCE = 100  # milliseconds that the log's maker waits for a lock, and then lets others pass
_TRIES = 50
_RETRY = 0.002  # seconds until a lease is asked for again while changes of all parts are half-way
_LEFT_ALONE = 1.0  # seconds between two looks for functions that were not there

_CREATE = """
    CREATE TABLE key_change
    (seq bigint GENERATED ALWAYS AS IDENTITY (START WITH %d) PRIMARY KEY, key_id bigint, member_id bigint)
"""
_PART = f"{TABLE}_part_%s"
_EACH = [_PART % part for part in range(PARTS)]
_EVERY = (1 << PARTS) - 1  # parts, a bit for each
# Its arguments: the log's column, and the table's. Two settings that end with the transaction remember which keys it
# put in and which part it has locked; rolling back to a savepoint sets them back too, and lets go of the locks.
_NOTE = f"""
DECLARE
    was bigint := to_jsonb(OLD) ->> TG_ARGV[1];
    becomes bigint := to_jsonb(NEW) ->> TG_ARGV[1];
    made text := coalesce(current_setting('portal.made', true), '');
    locked text := coalesce(current_setting('portal.locked', true), '');
    part bigint;
    is_first boolean := locked = '';
    is_new boolean;
BEGIN
    IF TG_OP = 'INSERT' AND TG_TABLE_NAME = '{KEYS.table}' THEN
        IF length(made) < 1000 THEN  -- a restore makes so many that looking through them would take longer than a wait
            PERFORM set_config('portal.made', made || becomes || ' ', true);
        END IF;
        IF current_setting('{MAKES_KEYS}', true) = 'on' THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP = 'INSERT' AND TG_ARGV[0] = 'key_id' AND position(' ' || becomes || ' ' IN ' ' || made) > 0 THEN
        RETURN NULL;
    END IF;
    IF TG_ARGV[0] = 'key_id' AND coalesce(was, becomes) & {PARTS - 1} = coalesce(becomes, was) & {PARTS - 1} THEN
        part := coalesce(was, becomes) & {PARTS - 1};
    END IF;
    is_new := locked <> 'all' AND locked IS DISTINCT FROM part::text;
    IF is_new AND is_first AND part IS NOT NULL THEN
        EXECUTE format('LOCK TABLE {_PART} IN ROW EXCLUSIVE MODE', part);
        locked := part;
    ELSIF is_new THEN
        LOCK TABLE {", ".join(_EACH)} IN ROW EXCLUSIVE MODE;
        locked := 'all';
    END IF;
    INSERT INTO key_change (key_id, member_id)
        SELECT DISTINCT CASE WHEN TG_ARGV[0] = 'key_id' THEN id END, CASE WHEN TG_ARGV[0] = 'member_id' THEN id END
        FROM unnest(ARRAY[was, becomes]) AS id WHERE id IS NOT NULL OR TG_ARGV[0] = '';
    IF is_first THEN
        -- One transaction at a time, or the oldest lines could outlive newer ones; and none that sees an older moment,
        -- for which the lines that another one took out would be a conflict.
        IF current_setting('transaction_isolation') = 'read committed'
            AND pg_try_advisory_xact_lock('key_change'::regclass::bigint)
        THEN
            DELETE FROM key_change WHERE seq IN (
                SELECT seq FROM key_change WHERE seq <= (SELECT max(seq) FROM key_change) - {LINES}
                ORDER BY seq LIMIT {PRUNED}
            );
        END IF;
    END IF;
    IF is_new THEN
        PERFORM pg_sleep({WAIT});
        PERFORM set_config('portal.locked', locked, true);
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 - constants
_SINCE = """
BEGIN
    held := 0;
    -- To hold a lease's lock is to hold up every change: that is for those who could do so without it.
    IF NOT has_table_privilege(session_user, '%(keys)s', 'UPDATE') THEN
        RETURN;
    END IF;
    -- Whoever has the log to himself (VACUUM FULL, say) is not waited for: that would hold up changes, with the parts.
    BEGIN
        LOCK TABLE key_change IN ACCESS SHARE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
        RETURN NEXT;
        RETURN;
    END;
    BEGIN
        LOCK TABLE %(each)s IN SHARE MODE NOWAIT;
        held := %(every)d;
    EXCEPTION WHEN lock_not_available THEN
        FOR part IN 0..%(last)d LOOP
            BEGIN
                EXECUTE format('LOCK TABLE %(part)s IN SHARE MODE NOWAIT', part);
                held := held | (1 << part);
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
        END LOOP;
    END;
    IF (SELECT count(*) FROM pg_trigger WHERE %(on)s) <> %(triggers)d THEN
        RETURN;
    END IF;
    IF held = 0 THEN
        RETURN NEXT;
    ELSIF seen < 0 THEN
        RETURN QUERY SELECT held, l.seq, l.key_id, l.member_id FROM key_change l ORDER BY l.seq DESC LIMIT 1;
    ELSE
        RETURN QUERY
            SELECT held, l.seq, l.key_id, l.member_id FROM key_change l
            WHERE l.seq >= seen ORDER BY l.seq LIMIT %(lines)d;
    END IF;
END
"""
# Whoever may edit a table may have it written down; and his temporary tables, which are found first unless named, must
# not stand in for ours.
_AS_OWNER = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = %s, pg_temp"


class PostgresqlLog:
    """See `KeyLog`."""

    is_fit = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._held = 0  # the parts that there is a lease on, a bit for each
        self._until = 0.0  # when the lease ends
        self._next_at = 0.0  # when the next one is asked for
        self._asked_ahead: float | None = None  # when it was
        self._not_before = 0.0  # when one is asked for again, after none was given
        self._is_there = False
        self._seen = [-1] * PARTS  # the last line that was read when there was a lease on the part

    def covers(self, key: int | None) -> bool:
        if key is None:
            return self._held == _EVERY
        return bool(self._held >> (key & (PARTS - 1)) & 1)

    def news(self) -> Sequence[Change] | None:
        now = _clock()
        if now < self._until:
            if now >= self._next_at and self._asked_ahead is None:
                self._asked_ahead = now  # before it is: an answer that nobody knows of would be taken for the next one
                self._connection.ask_ahead(_FOLLOW, self._seen_bytes())
            return ()
        self._held = 0
        if now < self._not_before:
            return ()
        lines: Sequence[tuple[Any, ...]] = ()
        asked, self._asked_ahead = self._asked_ahead, None
        if asked is not None:
            lines = self._told(self._connection.answer)
        if asked is None or not lines or not lines[0][0] or now >= asked + LEASE:
            lines, asked = self._ask(), now
        if not lines:
            if self.is_fit or not self._not_before:
                _log.warning("each request reads its key: the tables need `flask migrate`")
            self._not_before = now + _LEFT_ALONE
            self._start_anew()
            return None
        held, first, last, behind = lines[0][0], lines[0][1], lines[-1][1], self._behind()
        if not held:
            self._not_before = now + _RETRY
            return ()
        if behind >= 0 and (first != behind or len(lines) > MOST + 1):
            self._start_anew()
            return None
        parts = [part for part in range(PARTS) if held >> part & 1]
        seen = min(self._seen[part] for part in parts)
        for part in parts:
            self._seen[part] = last
        self._held, self._until, self._next_at = held, asked + LEASE, asked + _AHEAD
        self.is_fit = True
        # With the first lease on a part, since following began or began anew, all of it may have changed.
        return None if seen < 0 else [Change(key, member) for _, seq, key, member in lines if seq > seen]

    def _behind(self) -> int:
        """Give the line from which on news are to come: the oldest that was the last one read of any part."""
        return min((seen for seen in self._seen if seen >= 0), default=-1)

    def _start_anew(self) -> None:
        self._seen, self.is_fit = [-1] * PARTS, False

    def _ask(self) -> Sequence[tuple[Any, ...]]:
        """Ask for a lease and the lines behind the last one read, if the function for it is there."""
        if not self._is_there:
            found = self._connection.execute("SELECT to_regproc(%s) IS NOT NULL", (_SINCE_NAME,)).fetchone()
            self._is_there = bool(found and found[0])
        if not self._is_there:
            return ()
        return self._told(self._connection.ask, _FOLLOW, self._seen_bytes())

    def _told(self, answer: Callable[..., Sequence[tuple[Any, ...]]], *question: Any) -> Sequence[tuple[Any, ...]]:
        try:
            return answer(*question)
        except (psycopg.ProgrammingError, psycopg.InternalError):  # somebody took it out just now
            self._is_there = False
            return ()

    def _seen_bytes(self) -> Sequence[bytes]:
        return [struct.pack(">q", self._behind())]

    def is_installed(self) -> bool:
        execute = self._connection.execute
        there = "SELECT to_regproc(%s) IS NOT NULL AND to_regclass(%s) IS NOT NULL"
        if execute(there, (_SINCE_NAME, TABLE)).fetchone() == (False,) or sorted(self._parts()) != sorted(_EACH):
            return False
        if execute(f"SELECT count(*) FROM pg_trigger WHERE {_ON}").fetchone() != (len(_TRIGGERS),):  # noqa: S608
            return False
        return bool(execute(f"SELECT FROM {TABLE} LIMIT 1").fetchall())

    def install(self) -> None:
        if not self.is_installed():
            self._alone(self._install)

    def remove(self) -> None:
        if self._is_table(TABLE):
            self._alone(self._remove)

    def _alone(self, change: Callable[[], None]) -> None:
        """Change the log in a transaction, one process at a time.

        It locks tables that every request reads, so while it waits for one that somebody writes, all wait for it. It
        gives up before PostgreSQL looks for a deadlock and ends a request's transaction, and tries again. Raises
        psycopg.errors.LockNotAvailable after some seconds.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._connection.transaction():
                    self._connection.execute(f"SET LOCAL lock_timeout = {_PATIENCE}")
                    self._connection.execute("LOCK TABLE alembic_version IN SHARE ROW EXCLUSIVE MODE")
                    change()
                return
            except psycopg.errors.LockNotAvailable:
                if not tries_left:
                    raise
                time.sleep(_PATIENCE / 1000)

    def _install(self) -> None:
        if self.is_installed():
            return  # another was quicker
        self._remove()
        execute = self._connection.execute
        execute(_CREATE % (time.time_ns() // 1000))  # or it might seem to go on where one before it ended
        execute("INSERT INTO key_change DEFAULT VALUES")  # the log is never empty from now on
        for part in self._parts():  # left behind by a version of ours that knows of none
            execute(f"DROP TABLE {part}")
        for part in _EACH:
            execute(f"CREATE TABLE {part} ()")
        (schema,) = execute("SELECT quote_ident(current_schema())").fetchone()
        how = _AS_OWNER % schema
        execute(f"CREATE FUNCTION {_NOTE_NAME}() RETURNS trigger {how} AS $do${_NOTE}$do$")
        for table, name, sql in _TRIGGERS:
            execute(sql)
            execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")  # also for whoever plays a replica
        answer = "TABLE (held bigint, seq bigint, key_id bigint, member_id bigint)"
        execute(f"CREATE FUNCTION {_SINCE_NAME}(seen bigint) RETURNS {answer} {how} AS $do${_SINCE}$do$")

    def _remove(self) -> None:
        if not self._is_table(TABLE):
            return
        execute = self._connection.execute
        # All at once: when who holds the log has ended, nobody may come between. The tables may be those of other code.
        triggers = f"FROM pg_trigger WHERE tgname ^@ '{TABLE}_' AND NOT tgisinternal"
        found = execute(f"SELECT DISTINCT tgrelid::regclass::text {triggers}").fetchall()
        parts = self._parts()
        execute(f"LOCK TABLE {', '.join([*parts, TABLE, *(name for (name,) in found)])} IN ACCESS EXCLUSIVE MODE")
        execute(f"SELECT pg_sleep({WAIT})")  # this is a change too
        functions = "SELECT oid::regprocedure::text FROM pg_proc"
        ours = "proname ^@ 'key_change_' AND pronamespace = current_schema()::regnamespace"
        for (function,) in execute(f"{functions} WHERE {ours}").fetchall():
            execute(f"DROP FUNCTION {function} CASCADE")
        execute(f"DROP TABLE {', '.join([TABLE, *parts])}")

    def _parts(self) -> Sequence[str]:
        tables = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid) AND relname ^@ %s"
        return [name for (name,) in self._connection.execute(tables, (_PART % "",)).fetchall()]

    def _is_table(self, name: str) -> bool:
        return bool(self._connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone() == (True,))


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the first goes on while a machine is suspended


def _clock() -> float:
    return time.clock_gettime(_CLOCK)


def _triggers(note: str) -> Iterator[tuple[str, str, str]]:
    """Give table, name and text of a trigger for each way to change what the check of a key reads."""

    def trigger(table: str, name: str, event: str, each: str, arguments: Sequence[str]) -> tuple[str, str, str]:
        name, told = f"{TABLE}_{table}_{name}", ", ".join(f"'{argument}'" for argument in arguments)
        return table, name, f"CREATE TRIGGER {name} AFTER {event} ON {table} {each} EXECUTE FUNCTION {note}({told})"

    for watched in WATCHED:
        table, whose, column, columns = watched
        of_columns = f"UPDATE OF {', '.join(columns)}" if columns else "UPDATE"
        yield trigger(table, "changed", f"INSERT OR {of_columns} OR DELETE", "FOR EACH ROW", (whose, column))
        yield trigger(table, "emptied", "TRUNCATE", "FOR EACH STATEMENT", ("", ""))
    first = f"FOR EACH ROW WHEN ({FIRST_USE})"
    yield trigger(KEYS.table, "used", "UPDATE OF last_used_at", first, (KEYS.whose, KEYS.column))


# Which triggers are those of this code, and on for everybody.
# The tables are looked up each time: another may have taken the name of one.
_TABLES = "SELECT to_regclass(name) FROM unnest('{%(tables)s}'::text[]) AS name"
_ON = f"tgrelid IN ({_TABLES}) AND tgfoid = to_regproc('%(note)s') AND tgenabled = 'A'"
_MADE = (_CREATE, _EACH, _NOTE, _SINCE, _ON, _AS_OWNER, *_triggers(""))
_VERSION = hashlib.sha256(repr(_MADE).encode()).hexdigest()[:12]
_NOTE_NAME, _SINCE_NAME = f"key_change_note_{_VERSION}", f"key_change_since_{_VERSION}"
_TRIGGERS = tuple(_triggers(_NOTE_NAME))
_ON %= {"tables": ",".join(watched.table for watched in WATCHED), "note": _NOTE_NAME}
_SINCE %= {
    "keys": KEYS.table,
    "each": ", ".join(_EACH),
    "every": _EVERY,
    "last": PARTS - 1,
    "part": _PART,
    "on": _ON,
    "triggers": len(_TRIGGERS),
    "lines": MOST + 2,
}
_FOLLOW = f"SELECT held, seq, key_id, member_id FROM {_SINCE_NAME}($1)"  # noqa: S608 - a name of ours
