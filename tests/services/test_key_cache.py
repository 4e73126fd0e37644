"""Records of keys that a process keeps are never older than the last commit, whoever made it and however (T-19)."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.errors import LockNotAvailable
from psycopg.types.json import JsonDumper
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.exc import DataError, IntegrityError, InternalError, ProgrammingError

from portal.rules.access import AccessLevel, Environment
from portal.rules.credentials import KeyFormat, PlainKey
from portal.rules.errors import KeyRefused, Refusal
from portal.services import keys
from portal.services.key_check import Caller, KeyCheck
from portal.store import key_cache
from portal.store.database import TROUBLE, Database
from portal.store.key_cache import KeyCache
from portal.store.key_log import log_of, on_postgresql, on_sqlite, wal_index, watched
from portal.store.models import Access, Account, ApiKey, App, KeyScope, Member, Workspace
from tests.services.office import NOON, RING, Office

TABLES = (ApiKey, KeyScope, Member, Access, Account, Workspace, App)
LONG_AGO = "2026-01-01 00:00:00.000000"
REVOKE = text(f"UPDATE api_key SET revoked_at = '{LONG_AGO}'")


class Counting(Database):
    """A database whose bare connections count the reads of a key."""

    reads = 0

    def driver_connection(self) -> Any:
        connection = super().driver_connection()
        if self.is_sqlite:
            connection.set_trace_callback(self._count)
        else:
            ask = connection.ask

            def counted(sql: str, parameters: Any) -> Any:
                self._count(sql)
                return ask(sql, parameters)

            connection.ask = counted
        return connection

    def _count(self, sql: str) -> None:
        self.reads += sql.startswith("SELECT api_key")


@pytest.fixture
def counting(database_url: str) -> Iterator[Counting]:
    database = Counting(database_url)
    yield database
    database.close()


@pytest.fixture
def warm(counting: Counting) -> Iterator[KeyCheck]:
    """A check that has been at work for a while."""
    with closing(KeyCheck(counting, RING)) as check:
        yield check


@pytest.fixture
def by_hand(counting: Counting) -> Iterator[Connection]:
    """Somebody at the database's own shell, who knows nothing of the portal, nor cares for rules."""
    engine = create_engine(counting.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for words in (
            ("PRAGMA foreign_keys=OFF", "PRAGMA ignore_check_constraints=ON")
            if counting.is_sqlite
            else ("SET session_replication_role = replica",)
        ):
            connection.exec_driver_sql(words)
        if not counting.is_sqlite:
            connection.connection.driver_connection.adapters.register_dumper(dict, JsonDumper)  # type: ignore[union-attr]
        yield connection
    engine.dispose()


def told(check: KeyCheck, plain: PlainKey, **more: Any) -> Caller | Refusal:
    """Give all that a check says of a key."""
    try:
        return check.check(f"Bearer {plain.reveal()}", **({"now": NOON} | more))
    except KeyRefused as refused:
        return refused.refusal


def afresh(office: Office, plain: PlainKey) -> Caller | Refusal:
    """Give what a process says that has just begun."""
    with closing(KeyCheck(office.database, RING)) as check:
        return told(check, plain)


def others(value: Any) -> list[Any]:
    """Give other values that a column may take."""
    if value is None:
        return [LONG_AGO, datetime.fromisoformat(LONG_AGO).replace(tzinfo=UTC), 1, "x"]
    if isinstance(value, bytes | bool):
        return [value[::-1] if isinstance(value, bytes) else not value]
    if isinstance(value, dict):
        return [{**value, "title": "x"}]
    if isinstance(value, str):
        return [f"{value}x"]
    return [value + (1000 if isinstance(value, int) else timedelta(days=1))]


def test_a_key_is_read_once_until_something_changes(office: Office, counting: Counting, warm: KeyCheck) -> None:
    key, plain = office.generate("rio")
    others, other_plain = office.generate("lea")
    for _ in range(3):
        assert told(warm, plain) == afresh(office, plain)
        assert told(warm, other_plain) == afresh(office, other_plain)
    assert counting.reads == 2
    office.act("rio", keys.deactivate, key.id)
    assert told(warm, plain) is Refusal.DEACTIVATED
    assert told(warm, other_plain).key_id == others.id  # type: ignore[union-attr]
    assert counting.reads == 3  # only the one that changed


def test_a_text_that_is_no_key_s_is_looked_up_once_until_something_changes(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection
) -> None:
    unknown = [KeyFormat().mint(Environment.LIVE) for _ in range(3)]
    for plain in unknown * 3:
        assert told(warm, plain) is Refusal.UNKNOWN
    assert counting.reads == 3
    key, _ = office.generate("rio")
    office.act("rio", keys.deactivate, key.id)
    for plain in unknown * 2:
        assert told(warm, plain) is Refusal.UNKNOWN
    assert counting.reads == 6


def test_no_more_texts_without_a_key_are_remembered_than_fit(
    office: Office, counting: Counting, warm: KeyCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "_KEPT", 3)
    for _ in range(10):
        told(warm, KeyFormat().mint(Environment.LIVE))
    assert len(warm._cache._absent) == 1  # type: ignore[union-attr]
    assert counting.reads == 10


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__tablename__)
def test_every_edit_by_hand_counts_at_once(office: Office, warm: KeyCheck, by_hand: Connection, table: Any) -> None:
    """Of any column of any table that the check reads, in its rows one after the other, and back again."""
    _, plain = office.generate("max", scopes=["leads:read", "leads:write"])
    name, seen = table.__tablename__, set()
    primary = [each.name for each in table.__table__.primary_key]
    which = " AND ".join(f'"{each}" = :at_{each}' for each in primary)

    def edit(row: Any, column: str, value: Any) -> bool:
        """Write a value and see that the check says what a new process says; False where the database refuses it."""
        _safely(lambda: told(warm, plain))
        at = {f"at_{each}": row[each] for each in primary}
        try:
            by_hand.execute(text(f'UPDATE {name} SET "{column}" = :value WHERE {which}'), {"value": value, **at})
        except (IntegrityError, DataError, ProgrammingError, InternalError):
            return False
        says = _safely(lambda: told(warm, plain))
        assert says == _safely(lambda: afresh(office, plain)), (column, row, value)
        seen.add(str(says))
        return True

    for row in by_hand.execute(text(f"SELECT * FROM {name}")).mappings().all():
        for column in row:
            written = next((new for new in others(row[column]) if edit(row, column, new)), None)
            if written is not None:
                assert edit({**row, column: written}, column, row[column])
    assert len(seen) > 1


def _safely(what: Callable[[], Any]) -> Any:
    """Give what comes of it, be it that the row cannot be read."""
    try:
        return what()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__tablename__)
def test_every_row_that_goes_and_comes_back_counts_at_once(
    office: Office, warm: KeyCheck, by_hand: Connection, table: Any
) -> None:
    _, plain = office.generate("max", scopes=["leads:read", "leads:write"])
    name = table.__tablename__
    differed = False
    before = told(warm, plain)
    columns = [each.name for each in table.__table__.columns]
    names, marks = (", ".join(f"{mark}{each}" for each in columns) for mark in ("", ":"))
    which = " AND ".join(f"{each.name} = :{each.name}" for each in table.__table__.primary_key)
    for row in by_hand.execute(text(f"SELECT {names} FROM {name}")).mappings().all():
        by_hand.execute(text(f"DELETE FROM {name} WHERE {which}"), dict(row))
        assert told(warm, plain) == afresh(office, plain)
        differed = differed or told(warm, plain) != before
        by_hand.execute(text(f"INSERT INTO {name} ({names}) VALUES ({marks})"), dict(row))
        assert told(warm, plain) == afresh(office, plain) == before
    assert differed


@pytest.mark.once
def test_a_row_that_is_replaced_by_hand_counts_at_once(office: Office, warm: KeyCheck, by_hand: Connection) -> None:
    """INSERT OR REPLACE, which SQLite alone has, takes the old row out without a word to the triggers for that."""
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.exec_driver_sql("CREATE TEMP TABLE kept AS SELECT * FROM api_key")
    by_hand.exec_driver_sql(f"UPDATE kept SET revoked_at = '{LONG_AGO}'")
    by_hand.exec_driver_sql("INSERT OR REPLACE INTO api_key SELECT * FROM kept")
    assert told(warm, plain) is Refusal.REVOKED


def test_uses_leave_the_record_but_for_the_first(office: Office, counting: Counting, warm: KeyCheck) -> None:
    key, plain = office.generate("rio")
    assert told(warm, plain).is_unused  # type: ignore[union-attr]
    office.use(key.id, NOON)
    assert not told(warm, plain).is_unused  # type: ignore[union-attr]
    assert counting.reads == 2
    for minutes in (1, 2, 3):
        office.use(key.id, NOON + timedelta(minutes=minutes), client=f"curl/{minutes}")
        told(warm, plain)
    assert counting.reads == 2


def test_what_time_changes_is_judged_each_time(office: Office, counting: Counting, warm: KeyCheck) -> None:
    key, plain = office.generate("rio")
    office.set_key(key.id, expires_at=NOON + timedelta(minutes=2), retires_at=NOON + timedelta(minutes=3))
    says = [told(warm, plain, now=NOON + timedelta(minutes=minute)) for minute in range(4)]
    assert [getattr(each, "key_id", each) for each in says] == [key.id, key.id, Refusal.EXPIRED, Refusal.RETIRED]
    assert told(warm, plain, account_id="ws_other") is Refusal.OTHER_WORKSPACE
    assert counting.reads == 1


def test_a_process_that_fell_far_behind_reads_everything_again(
    office: Office, warm: KeyCheck, by_hand: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More lines than are followed one by one; and more than the log keeps, so that the last one read is gone."""
    key, plain = office.generate("rio")
    for module in (on_sqlite, on_postgresql):
        monkeypatch.setattr(module, "MOST", 50)
    for count in (51, watched.LINES + 1):
        told(warm, plain)
        office.act("rio", keys.deactivate, key.id)
        numbers = f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) SELECT"
        by_hand.exec_driver_sql(f"INSERT INTO key_change (member_id) {numbers} -1 FROM n")
        for _ in range(2):  # so that it is pruned
            by_hand.exec_driver_sql("UPDATE workspace SET name = name")
        assert told(warm, plain) is Refusal.DEACTIVATED
        office.act("rio", keys.reactivate, key.id)
        assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]


def test_the_log_does_not_grow_without_an_end(by_hand: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {watched.LINES}) SELECT"
    by_hand.exec_driver_sql(f"INSERT INTO key_change (member_id) {numbers} -1 FROM n")
    for _ in range(3):
        by_hand.exec_driver_sql("UPDATE workspace SET name = name")
    left = by_hand.execute(text("SELECT count(*) FROM key_change")).scalar_one()
    assert 0 <= left - watched.LINES < 10  # a transaction takes old ones out with its first change


@pytest.mark.parametrize("how", ["DELETE FROM key_change", "DELETE FROM key_change WHERE seq > 2"])
def test_a_log_that_was_emptied_by_hand_hides_nothing(
    office: Office, warm: KeyCheck, by_hand: Connection, how: str
) -> None:
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.exec_driver_sql(how)
    by_hand.execute(REVOKE)
    assert told(warm, plain) is Refusal.REVOKED


def test_without_its_triggers_nothing_is_kept(
    office: Office, counting: Counting, by_hand: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A table that somebody remade has lost them; the next start of the portal makes them again."""
    key, plain = office.generate("rio")
    by_hand.exec_driver_sql("DROP TRIGGER key_change_access_changed" + " ON access" * (not counting.is_sqlite))
    with closing(KeyCheck(counting, RING)) as check:
        told(check, plain)
        by_hand.exec_driver_sql("DELETE FROM access")
        assert told(check, plain).reach.effective == frozenset()  # type: ignore[union-attr]
        told(check, plain)
        assert counting.reads == 3
    assert caplog.text.count("flask migrate") == 1
    with closing(counting.driver_connection()) as connection:
        log_of(connection, is_sqlite=counting.is_sqlite).install()
    with closing(KeyCheck(counting, RING)) as check:
        for _ in range(3):
            told(check, plain)
        assert counting.reads == 4
        office.act("rio", keys.deactivate, key.id)
        assert told(check, plain) is Refusal.DEACTIVATED


def test_a_process_at_work_notices_that_the_triggers_are_gone(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the tables are migrated under it, say."""
    monkeypatch.setattr(on_postgresql, "_LEFT_ALONE", 0.0)
    key, plain = office.generate("rio")
    told(warm, plain)
    with closing(counting.driver_connection()) as connection:
        log = log_of(connection, is_sqlite=counting.is_sqlite)
        log.remove()
        by_hand.exec_driver_sql("DELETE FROM access")
        assert told(warm, plain).reach.effective == frozenset()  # type: ignore[union-attr]
        before = counting.reads
        told(warm, plain)
        told(warm, plain)
        assert counting.reads == before + 2
        log.install()
    told(warm, plain)
    told(warm, plain)
    assert counting.reads == before + 3
    office.act("rio", keys.deactivate, key.id)
    assert told(warm, plain) is Refusal.DEACTIVATED


@pytest.mark.once
@pytest.mark.parametrize("is_readable", [True, False], ids=["index read", "index not to be read"])
def test_sqlite_is_asked_for_news_when_somebody_committed_or_nobody_can_tell(
    office: Office, warm: KeyCheck, is_readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_readable:
        monkeypatch.setattr(wal_index, "reader_of", lambda connection: bytes)
    key, plain = office.generate("rio")
    told(warm, plain)
    told(warm, plain)
    asked: list[str] = []
    warm._connection.set_trace_callback(asked.append)
    for _ in range(3):
        assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
    assert asked == ([] if is_readable else ["PRAGMA data_version"] * 3)
    office.act("rio", keys.deactivate, key.id)
    assert told(warm, plain) is Refusal.DEACTIVATED
    assert "PRAGMA data_version" in asked


@pytest.mark.once
def test_without_a_write_ahead_log_nothing_is_kept(office: Office, database_url: str, by_hand: Connection) -> None:
    """A file on a network's disk has none; there `data_version` may be read while somebody writes."""
    _, plain = office.generate("rio")
    office.close()
    office.database.close()
    assert by_hand.exec_driver_sql("PRAGMA journal_mode=DELETE").scalar() == "delete"

    class Unlogged(Counting):
        def driver_connection(self) -> Any:
            made = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
            made.set_trace_callback(self._count)
            return made

    database = Unlogged(database_url)
    with closing(KeyCheck(database, RING)) as check:
        for _ in range(3):
            told(check, plain)
    assert database.reads == 3
    database.close()


def test_no_more_records_are_kept_than_fit(
    office: Office, counting: Counting, warm: KeyCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "_KEPT", 3)
    made = [office.generate("rio", name=f"Key {n}")[1] for n in range(5)]
    for plain in made:
        told(warm, plain)
    assert counting.reads == 5
    for plain in made[2:]:
        told(warm, plain)
    assert counting.reads == 5  # the newest three
    told(warm, made[0])
    assert counting.reads == 6


def test_access_that_changes_counts_for_all_keys_of_the_member(office: Office, warm: KeyCheck) -> None:
    made = [office.generate("max", name=f"Key {n}", scopes=["leads:read", "leads:write"])[1] for n in range(3)]
    for level, left in ((AccessLevel.READ, 1), (AccessLevel.NONE, 0), (AccessLevel.FULL, 2)):
        office.grant("max", "sales", level)
        assert [len(told(warm, plain).reach.effective) for plain in made] == [left] * 3  # type: ignore[union-attr]


def test_a_key_that_moves_to_another_pepper_is_kept_once(office: Office, warm: KeyCheck, by_hand: Connection) -> None:
    """Under the digest of its new one only: a record under the old one would outlive what is said of the key."""
    _, plain = office.generate("rio")
    told(warm, plain)
    record = next(iter(warm._cache._records.values()))  # type: ignore[union-attr]
    warm._cache.keep(b"another digest", record)  # type: ignore[union-attr]
    by_hand.execute(REVOKE)
    assert told(warm, plain) is Refusal.REVOKED
    assert [each.is_revoked for each in warm._cache._records.values()] == [True]  # type: ignore[union-attr]


def test_nobody_is_accepted_after_the_answer_to_a_change(
    office: Office, counting: Counting, by_hand: Connection
) -> None:
    """By four that ask without a pause, as processes do, each over a connection and with records of its own."""
    _, plain = office.generate("rio")
    answers: list[tuple[float, float, bool]] = []  # when each began and ended, and whether it was accepted
    over = threading.Event()

    def ask() -> None:
        with closing(KeyCheck(counting, RING)) as check:
            while not over.is_set():
                began = time.monotonic()
                says = told(check, plain)
                answers.append((began, time.monotonic(), says is not Refusal.REVOKED))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    stopped = []
    for _ in range(20):
        while not any(ok for *_, ok in answers[-1:]):  # a busy machine takes longer to begin
            time.sleep(0.001)
        time.sleep(0.02)
        by_hand.execute(REVOKE)
        since = time.monotonic()
        time.sleep(0.02)
        while not any(began > since for began, *_ in answers[-50:]):  # a busy machine takes longer for one
            time.sleep(0.001)
        stopped.append((since, time.monotonic()))
        by_hand.execute(text("UPDATE api_key SET revoked_at = NULL"))
    over.set()
    for asker in askers:
        asker.join()
    during = [ok for since, until in stopped for began, ended, ok in answers if since < began and ended < until]
    assert any(ok for *_, ok in answers)
    assert during
    assert not any(during)


# --- Leases (store.key_log.on_postgresql) ---------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("is_kept", [True, False], ids=["committed", "rolled back"])
def test_while_a_change_is_half_way_each_request_reads_its_key(
    office: Office, counting: Counting, warm: KeyCheck, is_kept: bool
) -> None:
    key, plain = office.generate("rio")
    told(warm, plain)
    with counting.engine.connect() as other:
        other.execute(REVOKE)
        before = counting.reads
        for _ in range(3):
            assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
        assert counting.reads == before + 3
        (other.commit if is_kept else other.rollback)()
    assert (told(warm, plain) is Refusal.REVOKED) == is_kept


@pytest.mark.server
@pytest.mark.parametrize("is_kept", [True, False], ids=["committed", "rolled back"])
def test_while_a_key_comes_back_its_text_is_looked_up_by_each_request(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection, is_kept: bool
) -> None:
    """It was known to be no key's; what is put in under a number of its own may be one that was there."""
    _, plain = office.generate("rio")
    by_hand.exec_driver_sql("CREATE TEMP TABLE gone AS SELECT * FROM api_key")
    by_hand.exec_driver_sql("DELETE FROM api_key")
    for _ in range(2):
        assert told(warm, plain) is Refusal.UNKNOWN
    before = counting.reads
    by_hand.exec_driver_sql("BEGIN")
    by_hand.exec_driver_sql("INSERT INTO api_key SELECT * FROM gone")
    for _ in range(3):
        assert told(warm, plain) is Refusal.UNKNOWN
    assert counting.reads == before + 3
    by_hand.exec_driver_sql("COMMIT" if is_kept else "ROLLBACK")
    assert isinstance(told(warm, plain), Caller) == is_kept


@pytest.mark.server
def test_a_row_that_somebody_puts_in_by_hand_under_a_new_number_counts_at_once(
    office: Office, warm: KeyCheck, by_hand: Connection
) -> None:
    _, plain = office.generate("rio")
    by_hand.exec_driver_sql("CREATE TEMP TABLE gone AS SELECT * FROM api_key")
    by_hand.exec_driver_sql("DELETE FROM api_key")
    assert told(warm, plain) is Refusal.UNKNOWN
    columns = ", ".join(each.name for each in ApiKey.__table__.columns if each.name != "id")
    by_hand.exec_driver_sql(f"INSERT INTO api_key ({columns}) SELECT {columns} FROM gone")
    assert isinstance(told(warm, plain), Caller)


@pytest.mark.server
def test_a_question_that_is_not_answered_is_not_asked_again_over_another_connection(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection
) -> None:
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.execute(text("UPDATE api_key SET note = 'x'"))
    by_hand.exec_driver_sql("BEGIN")
    by_hand.exec_driver_sql("LOCK TABLE api_key IN ACCESS EXCLUSIVE MODE")
    before = counting.reads
    with pytest.raises(TROUBLE):
        told(warm, plain)
    assert counting.reads == before + 1
    by_hand.exec_driver_sql("ROLLBACK")
    time.sleep(1.1)  # for so long a server that said nothing is left alone
    assert isinstance(told(warm, plain), Caller)


@pytest.fixture
def many(office: Office) -> dict[int, list[tuple[int, PlainKey]]]:
    """A few keys by the parts that they are in: two in the first part, one each in others."""
    made = [office.generate("rio", name=f"Key {n}") for n in range(on_postgresql.PARTS + 1)]
    parts: dict[int, list[tuple[int, PlainKey]]] = {}
    with office.database.reading() as session:
        for key, plain in made:
            pk = session.scalars(select(ApiKey.id).where(ApiKey.public_id == key.id)).one()
            parts.setdefault(pk % on_postgresql.PARTS, []).append((pk, plain))
    return dict(sorted(parts.items(), key=lambda each: -len(each[1])))


def set_revoked(connection: Connection, key: int, at: str | None = LONG_AGO) -> None:
    connection.execute(text("UPDATE api_key SET revoked_at = :at WHERE id = :key"), {"at": at, "key": key})


def wait_for_leases(check: KeyCheck, plain: PlainKey) -> None:
    """Use a key until there is a lease on every part."""
    told(check, plain)
    assert check._cache
    log: Any = check._cache._log
    while not all(log.covers(part) for part in range(on_postgresql.PARTS)):
        told(check, plain)


@pytest.mark.server
def test_a_key_s_change_ends_the_leases_of_its_part_alone(
    counting: Counting, warm: KeyCheck, many: dict[int, list[tuple[int, PlainKey]]]
) -> None:
    (changed, plain), (_, beside) = next(iter(many.values()))
    elsewhere = [each[0][1] for each in list(many.values())[1:]]
    for each in (plain, beside, *elsewhere):
        told(warm, each)
    with counting.engine.connect() as other:
        set_revoked(other, changed)
        held = other.exec_driver_sql(f"SELECT held FROM {on_postgresql._SINCE_NAME}(-1)").scalar_one()
        with closing(counting.driver_connection()) as connection:
            for_another = connection.execute(f"SELECT held FROM {on_postgresql._SINCE_NAME}(-1)").fetchone()[0]
        assert held == on_postgresql._EVERY  # nobody is in his own way
        assert for_another == on_postgresql._EVERY - (1 << changed % on_postgresql.PARTS)
        for each in (plain, beside):
            before = counting.reads
            assert isinstance(told(warm, each), Caller)
            assert counting.reads == before + 1
        before = counting.reads
        for each in elsewhere * 3:
            assert isinstance(told(warm, each), Caller)
        assert counting.reads == before
        other.commit()
    assert told(warm, plain) is Refusal.REVOKED
    assert isinstance(told(warm, beside), Caller)


@pytest.mark.server
def test_a_part_that_is_held_for_long_spoils_the_others_for_nobody_who_starts_meanwhile(
    counting: Counting, many: dict[int, list[tuple[int, PlainKey]]]
) -> None:
    changed, plain = next(iter(many.values()))[0]
    keys_elsewhere, elsewhere = zip(*(each[0] for each in list(many.values())[1:]), strict=True)
    with counting.engine.connect() as other, closing(KeyCheck(counting, RING)) as check:
        set_revoked(other, changed)
        for each in (*elsewhere, plain):
            told(check, each)
        before = counting.reads
        for _ in range(3):
            time.sleep(2 * on_postgresql.LEASE)
            for each in elsewhere:
                assert isinstance(told(check, each), Caller)
        assert counting.reads == before
        with counting.engine.begin() as another:
            for each in keys_elsewhere[:3]:
                set_revoked(another, each)
        for each in elsewhere[:3]:
            assert told(check, each) is Refusal.REVOKED
        assert isinstance(told(check, plain), Caller)
        other.commit()
        wait_for_leases(check, elsewhere[-1])
        assert told(check, plain) is Refusal.REVOKED


@pytest.mark.server
def test_whoever_has_the_log_to_himself_holds_up_neither_checks_nor_changes(
    office: Office, counting: Counting, warm: KeyCheck
) -> None:
    """As VACUUM FULL has it: a lease that waited for him would hold its parts meanwhile."""
    key, plain = office.generate("rio")
    told(warm, plain)
    with counting.engine.connect() as other:
        other.exec_driver_sql("SET LOCAL lock_timeout = 500")
        other.exec_driver_sql("LOCK TABLE key_change IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            began = time.monotonic()
            assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
            assert time.monotonic() - began < 4  # one that waited would do so for eight
            time.sleep(on_postgresql.LEASE)
        other.exec_driver_sql("UPDATE member SET name = name")


@pytest.mark.server
def test_another_table_under_the_name_of_one_ends_the_keeping(
    office: Office, warm: KeyCheck, by_hand: Connection
) -> None:
    """It has no triggers."""
    _, plain = office.generate("rio")
    wait_for_leases(warm, plain)
    by_hand.exec_driver_sql("ALTER TABLE key_scope RENAME TO key_scope_before")
    by_hand.exec_driver_sql("CREATE TABLE key_scope AS SELECT * FROM key_scope_before")
    time.sleep(2 * on_postgresql.LEASE)
    assert told(warm, plain).reach.effective  # type: ignore[union-attr]
    by_hand.exec_driver_sql("DELETE FROM key_scope")
    assert not told(warm, plain).reach.effective  # type: ignore[union-attr]


@pytest.mark.server
def test_a_line_that_is_committed_after_a_later_one_is_read(
    counting: Counting, warm: KeyCheck, by_hand: Connection, many: dict[int, list[tuple[int, PlainKey]]]
) -> None:
    """They are of two parts, and the first one's part had no lease when the second line was read."""
    (slow, plain), (quick, other_plain) = (each[0] for each in list(many.values())[:2])
    told(warm, plain)
    with counting.engine.connect() as other:
        set_revoked(other, slow)
        set_revoked(by_hand, quick)
        assert told(warm, other_plain) is Refusal.REVOKED
        assert isinstance(told(warm, plain), Caller)  # read, and kept
        other.commit()
    wait_for_leases(warm, other_plain)
    assert told(warm, plain) is Refusal.REVOKED


@pytest.mark.server
@pytest.mark.parametrize("second", ["another key", "its member"])
def test_a_transaction_that_comes_to_a_second_part_waits_out_its_leases_too(
    counting: Counting, warm: KeyCheck, many: dict[int, list[tuple[int, PlainKey]]], second: str
) -> None:
    (first, plain), (later, other_plain) = (each[0] for each in list(many.values())[:2])
    for _ in range(5):
        with counting.engine.connect() as other:
            set_revoked(other, first)
            told(warm, other_plain)  # of a part on which there is a lease
            if second == "another key":
                set_revoked(other, later)
            else:
                other.exec_driver_sql("UPDATE member SET deactivated_at = now()")
            other.commit()
        assert isinstance(told(warm, other_plain), Refusal)
        assert isinstance(told(warm, plain), Refusal)
        with counting.engine.begin() as other:
            for key in (first, later):
                set_revoked(other, key, None)
            other.exec_driver_sql("UPDATE member SET deactivated_at = NULL")
        assert isinstance(told(warm, other_plain), Caller)


@pytest.mark.server
def test_a_change_after_one_that_was_taken_back_waits_again(
    counting: Counting, warm: KeyCheck, many: dict[int, list[tuple[int, PlainKey]]]
) -> None:
    """Rolling back to a savepoint lets go of the part, and there are leases on it again."""
    key, plain = next(iter(many.values()))[0]
    for _ in range(5):
        with counting.engine.connect() as other:
            other.exec_driver_sql("UPDATE account SET name = name")  # a transaction that changes nothing watched
            with other.begin_nested() as savepoint:
                set_revoked(other, key)
                savepoint.rollback()
            wait_for_leases(warm, plain)
            told(warm, plain)
            set_revoked(other, key)
            other.commit()
        assert told(warm, plain) is Refusal.REVOKED
        with counting.engine.begin() as other:
            set_revoked(other, key, None)
        assert isinstance(told(warm, plain), Caller)


@pytest.mark.server
def test_whatever_transactions_do_beside_each_other_counts_when_they_end(
    counting: Counting, many: dict[int, list[tuple[int, PlainKey]]]
) -> None:
    """Three that change keys of their own, one or many at once, and now and then take something back."""
    everything = [each for part in many.values() for each in part]
    over = threading.Event()

    def change(mine: list[tuple[int, PlainKey]], checks: list[KeyCheck], seed: int) -> int:
        chance, is_off, count = random.Random(seed), dict.fromkeys((key for key, _ in mine), False), 0
        for _ in range(40):
            with counting.engine.connect() as other:
                for key, _ in chance.sample(mine, chance.choice((1, 1, 1, 2, 4))):
                    savepoint = other.begin_nested()
                    set_revoked(other, key, None if is_off[key] else LONG_AGO)
                    if chance.random() < 0.2:
                        savepoint.rollback()
                    else:
                        is_off[key] = not is_off[key]
                        savepoint.commit()
                other.commit()
            for check in checks:
                for key, plain in chance.sample(mine, len(mine)):
                    assert (told(check, plain) is Refusal.REVOKED) == is_off[key]
                    count += 1
        return count

    def ask(check: KeyCheck) -> None:
        while not over.is_set():
            for _, plain in everything:
                told(check, plain)

    with ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        checks = [stack.enter_context(closing(KeyCheck(counting, RING))) for _ in range(2)]
        askers = [pool.submit(ask, check) for check in checks]
        writers = [pool.submit(change, everything[n::3], checks, n) for n in range(3)]
        try:
            assert all(writer.result() for writer in writers)
        finally:
            over.set()
        for asker in askers:
            asker.result()


class Clock:
    """The clock of leases, which goes on when it is told to."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def go_on(self, leases: float) -> None:
        self._now += leases * on_postgresql.LEASE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(on_postgresql, "_clock", clock)
    return clock


def ask_ahead(check: KeyCheck, plain: PlainKey) -> None:
    """Use a key until the next lease is asked for."""
    assert check._cache
    log: Any = check._cache._log
    while log._asked_ahead is None:
        told(check, plain)


@pytest.mark.server
def test_the_next_lease_is_asked_for_while_one_lasts_and_who_asks_does_not_wait(
    office: Office, warm: KeyCheck, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, plain = office.generate("rio")
    told(warm, plain)
    ask, waited_for = warm._connection.ask, []

    def counted(*question: Any) -> Any:
        waited_for.append(question)
        return ask(*question)

    monkeypatch.setattr(warm._connection, "ask", counted)
    for _ in range(30):
        clock.go_on(0.1)
        assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
    assert waited_for == []

    # However late an answer is looked at, its lease counts from when it was asked for.
    clock.go_on(1)
    told(warm, plain)
    assert len(waited_for) == 1
    clock.go_on(0.8)
    told(warm, plain)  # asks ahead
    clock.go_on(0.3)
    told(warm, plain)  # looks at the answer
    assert len(waited_for) == 1
    clock.go_on(0.75)
    told(warm, plain)
    assert len(waited_for) == 2


@pytest.mark.server
@pytest.mark.parametrize("between", ["at once", "another key", "a pause"])
def test_a_change_counts_at_once_whatever_was_asked_before_it(
    office: Office, warm: KeyCheck, by_hand: Connection, between: str
) -> None:
    key, plain = office.generate("rio")
    other_key, other = office.generate("max")
    told(warm, plain)
    for revoked in (LONG_AGO, None) * 3:
        ask_ahead(warm, plain)
        by_hand.execute(
            text("UPDATE api_key SET revoked_at = :at WHERE public_id = :key"), {"at": revoked, "key": key.id}
        )
        if between == "another key":
            assert told(warm, other).key_id == other_key.id  # type: ignore[union-attr]
        elif between == "a pause":
            time.sleep(2 * on_postgresql.LEASE)
        assert (told(warm, plain) is Refusal.REVOKED) == bool(revoked)


@pytest.mark.server
def test_a_key_is_read_behind_a_question_whose_answer_has_not_been_looked_at(
    office: Office, warm: KeyCheck, clock: Clock
) -> None:
    key, plain = office.generate("rio")
    other_key, other = office.generate("max")
    told(warm, plain)
    connection = warm._connection
    clock.go_on(0.8)
    told(warm, plain)  # asks ahead
    assert told(warm, other).key_id == other_key.id  # type: ignore[union-attr]
    clock.go_on(0.3)
    assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
    assert warm._connection is connection, "no mistake to get over"


@pytest.mark.server
def test_no_answer_is_taken_for_that_to_another_question(
    office: Office, warm: KeyCheck, by_hand: Connection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever cut the asking short once the question was on its way."""
    _, plain = office.generate("rio")
    told(warm, plain)
    ask_ahead = warm._connection.ask_ahead

    def cut_short(*question: Any) -> None:
        ask_ahead(*question)
        raise MemoryError

    clock.go_on(0.8)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(warm._connection, "ask_ahead", cut_short)
        told(warm, plain)
    clock.go_on(0.3)
    told(warm, plain)
    by_hand.execute(REVOKE)
    clock.go_on(0.8)
    told(warm, plain)  # on this clock its lease may last
    clock.go_on(0.3)
    assert told(warm, plain) is Refusal.REVOKED


@pytest.mark.server
def test_a_connection_that_ends_before_it_answers_is_replaced(
    office: Office, warm: KeyCheck, by_hand: Connection
) -> None:
    key, plain = office.generate("rio")
    told(warm, plain)
    ask_ahead(warm, plain)
    by_hand.exec_driver_sql(f"SELECT pg_terminate_backend({warm._connection.info.backend_pid}, 5000)")
    assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]


def test_news_that_could_not_be_followed_leave_nothing_that_is_older(
    office: Office, warm: KeyCheck, by_hand: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told once; the process may go on after it ran out of memory."""

    def fail(*_: object) -> None:
        raise MemoryError

    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.execute(REVOKE)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(KeyCache, "_follow", fail)
        told(warm, plain)
    assert told(warm, plain) is Refusal.REVOKED


def test_a_record_that_could_not_be_kept_whole_is_not_kept(office: Office, warm: KeyCheck, by_hand: Connection) -> None:
    class Full(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            raise MemoryError

    _, plain = office.generate("rio")
    told(warm, office.generate("max")[1])
    assert warm._cache
    for place in ("_digests", "_records"):
        was = getattr(warm._cache, place)
        setattr(warm._cache, place, Full(was))
        with pytest.raises(MemoryError):
            told(warm, plain)
        setattr(warm._cache, place, was)
    by_hand.execute(REVOKE)
    assert told(warm, plain) is Refusal.REVOKED


@pytest.mark.server
def test_only_what_somebody_may_have_kept_is_written_down(office: Office, by_hand: Connection) -> None:
    """Nobody waits for a key to be made, with its scopes."""
    lines = text("SELECT count(*) FROM key_change")
    before = by_hand.execute(lines).scalar_one()
    office.generate("max", scopes=["leads:read"])
    assert by_hand.execute(lines).scalar_one() == before
    by_hand.execute(
        text("INSERT INTO key_scope (key_id, app_id, action) SELECT key_id, app_id, 'write' FROM key_scope")
    )
    assert by_hand.execute(lines).scalar_one() == before + 1


@pytest.mark.server
def test_a_table_that_is_emptied_counts_at_once(office: Office, warm: KeyCheck, by_hand: Connection) -> None:
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.exec_driver_sql("TRUNCATE access")
    assert told(warm, plain).reach.effective == frozenset()  # type: ignore[union-attr]


@pytest.mark.server
def test_a_trigger_that_is_switched_off_ends_the_keeping(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection
) -> None:
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.exec_driver_sql("ALTER TABLE api_key DISABLE TRIGGER ALL")
    time.sleep(on_postgresql.LEASE)
    by_hand.execute(REVOKE)
    assert told(warm, plain) is Refusal.REVOKED


@pytest.mark.server
def test_a_table_of_the_same_name_does_not_stand_in_for_the_log(
    office: Office, warm: KeyCheck, by_hand: Connection
) -> None:
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.exec_driver_sql("CREATE TEMP TABLE key_change (seq bigserial, key_id bigint, member_id bigint)")
    by_hand.execute(REVOKE)
    assert told(warm, plain) is Refusal.REVOKED


@pytest.mark.server
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_whoever_sees_an_older_moment_is_not_refused_for_the_log_s_sake(
    counting: Counting, by_hand: Connection, level: str
) -> None:
    """Another one took old lines of the log out meanwhile."""
    numbers = f"SELECT -1 FROM generate_series(1, {watched.LINES + 50})"
    by_hand.exec_driver_sql(f"INSERT INTO key_change (member_id) {numbers}")
    with counting.engine.connect().execution_options(isolation_level=level) as other:
        other.exec_driver_sql("SELECT 1 FROM member")
        by_hand.exec_driver_sql("UPDATE workspace SET name = name")
        other.exec_driver_sql("UPDATE member SET name = name")
        other.commit()


@pytest.mark.server
def test_leases_see_what_was_committed_while_they_were_asked_for_whatever_is_usual(
    office: Office, by_hand: Connection
) -> None:
    """One moment for a whole transaction would be that before the lock."""
    name = office.database.url.database
    by_hand.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with closing(Database(office.database.url.render_as_string(hide_password=False))) as database:
        with closing(database.driver_connection()) as connection:
            assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        with database.transaction() as session:
            assert session.scalar(text("SHOW transaction_isolation")) == "read committed"


@pytest.mark.server
def test_who_may_not_change_keys_cannot_hold_up_who_does(counting: Counting, by_hand: Connection) -> None:
    """A lease that is asked for in a transaction locks the log until that ends."""
    by_hand.exec_driver_sql("SET lock_timeout = 500")
    with counting.engine.connect() as reader:
        reader.exec_driver_sql("SET SESSION AUTHORIZATION pg_monitor")
        assert reader.exec_driver_sql(f"SELECT * FROM {on_postgresql._SINCE_NAME}(-1)").all() == []
        by_hand.execute(REVOKE)
        reader.rollback()
        reader.exec_driver_sql("RESET SESSION AUTHORIZATION")


@pytest.mark.server
def test_a_transaction_takes_old_lines_out_once(counting: Counting, by_hand: Connection) -> None:
    """Done with each row it changes, that takes longer the more it has changed: a restore would take minutes."""
    lines = watched.LINES + 2 * on_postgresql.PRUNED
    by_hand.exec_driver_sql(f"INSERT INTO key_change (member_id) SELECT -1 FROM generate_series(1, {lines})")
    before = by_hand.exec_driver_sql("SELECT count(*) FROM key_change").scalar_one()
    with counting.engine.begin() as other:
        for _ in range(30):
            other.exec_driver_sql("UPDATE workspace SET name = name WHERE id = 1")
    assert by_hand.exec_driver_sql("SELECT count(*) FROM key_change").scalar_one() == before + 30 - on_postgresql.PRUNED


@pytest.mark.server
def test_the_log_is_made_by_one_of_those_that_start_together(counting: Counting, by_hand: Connection) -> None:
    together = threading.Barrier(3)

    def start() -> None:
        with closing(counting.driver_connection()) as connection:
            log = log_of(connection, is_sqlite=False)
            together.wait()
            log.install()

    for _ in range(3):
        by_hand.exec_driver_sql("DROP TRIGGER key_change_access_changed ON access")
        with ThreadPoolExecutor(3) as pool:
            for each in [pool.submit(start) for _ in range(3)]:
                each.result()
        with closing(counting.driver_connection()) as connection:
            assert log_of(connection, is_sqlite=False).is_installed()


@pytest.mark.server
def test_the_log_is_made_beside_somebody_who_changes_much(counting: Counting, by_hand: Connection) -> None:
    """Neither waits for the other until PostgreSQL ends one of them."""
    over = threading.Event()

    def write() -> int:
        count = 0
        while not over.is_set():
            with counting.engine.begin() as other:
                for table in ("workspace", "member", "api_key"):
                    other.exec_driver_sql(f"UPDATE {table} SET id = id")
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool, closing(counting.driver_connection()) as connection:
        writer = pool.submit(write)
        log = log_of(connection, is_sqlite=False)
        try:
            for _ in range(3):
                by_hand.exec_driver_sql("DROP TRIGGER key_change_access_changed ON access")
                log.install()
                assert log.is_installed()
        finally:
            over.set()
        assert writer.result()


@pytest.mark.server
def test_making_the_log_gives_up_while_a_change_is_half_way(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and no key's check waits for it."""
    monkeypatch.setattr(on_postgresql, "_TRIES", 2)
    key, plain = office.generate("rio")
    by_hand.exec_driver_sql("DROP TRIGGER key_change_access_changed ON access")
    with counting.engine.connect() as other, closing(counting.driver_connection()) as connection:
        other.exec_driver_sql("UPDATE workspace SET name = name")
        log = log_of(connection, is_sqlite=False)
        assert not log.is_installed()
        with ThreadPoolExecutor(1) as pool:
            making = pool.submit(log.install)
            while not making.done():
                began = time.monotonic()
                assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
                assert time.monotonic() - began < 4  # one that waited would do so for eight
            with pytest.raises(LockNotAvailable):
                making.result()
        other.rollback()
        log.install()
        assert log.is_installed()


@pytest.mark.server
def test_a_column_of_another_type_is_read_by_a_process_at_work(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: Connection
) -> None:
    """Its question was prepared before; PostgreSQL would refuse it for ever."""
    key, plain = office.generate("rio")
    told(warm, plain)
    with closing(counting.driver_connection()) as connection:
        log_of(connection, is_sqlite=False).remove()  # as a migration does
    by_hand.exec_driver_sql("ALTER TABLE api_key ALTER COLUMN name TYPE varchar(333)")
    assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
