"""Records of keys that a process keeps are never older than the last commit, whoever made it and however (T-19)."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import pytest

from portal.rules.access import AccessLevel
from portal.rules.credentials import PlainKey
from portal.rules.errors import KeyRefused, Refusal
from portal.services import keys
from portal.services.key_check import Caller, KeyCheck
from portal.store import key_cache
from portal.store.database import Database
from portal.store.models import Access, Account, ApiKey, App, KeyScope, Member, Workspace
from tests.services.office import NOON, RING, Office

TABLES = (ApiKey, KeyScope, Member, Access, Account, Workspace, App)


pytestmark = pytest.mark.once  # PostgreSQL is asked each time: there is no cache that could be wrong


class Counting(Database):
    """A database whose bare connections count the reads of a key."""

    reads = 0

    def driver_connection(self) -> Any:
        connection = super().driver_connection()
        connection.set_trace_callback(self._count)
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
def by_hand(database_url: str) -> Iterator[sqlite3.Connection]:
    """Somebody at the database's own shell, who knows nothing of the portal."""
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        yield connection


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


def other(value: Any) -> Any:
    """Give another value that a column may take."""
    if value is None:
        return "2026-01-01 00:00:00.000000"
    if isinstance(value, bytes):
        return value[::-1]
    return value + 1000 if isinstance(value, int) else f"{value}x"


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


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__tablename__)
def test_every_edit_by_hand_counts_at_once(
    office: Office, warm: KeyCheck, by_hand: sqlite3.Connection, table: Any
) -> None:
    """Of any column of any table that the check reads, in its rows one after the other, and back again."""
    _, plain = office.generate("max", scopes=["leads:read", "leads:write"])
    by_hand.execute("PRAGMA foreign_keys=OFF")
    by_hand.execute("PRAGMA ignore_check_constraints=ON")
    name, seen = table.__tablename__, set()
    for column in (each.name for each in table.__table__.columns):
        for rowid, value in by_hand.execute(f'SELECT rowid, "{column}" FROM {name} ORDER BY rowid').fetchall():
            for new, at in ((other(value), rowid), (value, other(rowid) if column == "id" else rowid)):
                _safely(lambda: told(warm, plain))
                with suppress(sqlite3.IntegrityError):
                    by_hand.execute(f'UPDATE {name} SET "{column}" = ? WHERE rowid = ?', (new, at))
                says = _safely(lambda: told(warm, plain))
                assert says == _safely(lambda: afresh(office, plain)), (column, rowid, new)
                seen.add(str(says))
    assert len(seen) > 1


def _safely(what: Callable[[], Any]) -> Any:
    """Give what comes of it, be it that the row cannot be read."""
    try:
        return what()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__tablename__)
def test_every_row_that_goes_and_comes_back_counts_at_once(
    office: Office, warm: KeyCheck, by_hand: sqlite3.Connection, table: Any
) -> None:
    _, plain = office.generate("max", scopes=["leads:read", "leads:write"])
    name = table.__tablename__
    by_hand.execute("PRAGMA foreign_keys=OFF")
    differed = False
    before = told(warm, plain)
    for row in by_hand.execute(f"SELECT rowid, * FROM {name} ORDER BY rowid DESC").fetchall():
        by_hand.execute(f"DELETE FROM {name} WHERE rowid = ?", row[:1])
        assert told(warm, plain) == afresh(office, plain)
        differed = differed or told(warm, plain) != before
        marks = ", ".join("?" * (len(row) - 1))
        by_hand.execute(f"INSERT OR REPLACE INTO {name} VALUES ({marks})", row[1:])
        assert told(warm, plain) == afresh(office, plain) == before
    assert differed


def test_a_row_that_is_replaced_by_hand_counts_at_once(
    office: Office, warm: KeyCheck, by_hand: sqlite3.Connection
) -> None:
    """INSERT OR REPLACE takes the old row out without a word to the triggers for that."""
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.execute("PRAGMA foreign_keys=OFF")
    by_hand.execute("CREATE TEMP TABLE kept AS SELECT * FROM api_key")
    by_hand.execute("UPDATE kept SET revoked_at = '2026-01-01 00:00:00.000000'")
    by_hand.execute("INSERT OR REPLACE INTO api_key SELECT * FROM kept")
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
    office: Office, warm: KeyCheck, by_hand: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More lines than are followed one by one; and more than the log keeps, so that the last one read is gone."""
    key, plain = office.generate("rio")
    monkeypatch.setattr(key_cache, "_MOST", 50)
    for count in (51, 20_001):
        told(warm, plain)
        office.act("rio", keys.deactivate, key.id)
        by_hand.execute("BEGIN")
        for _ in range(count):
            by_hand.execute("UPDATE access SET level = level WHERE rowid = 1")
        by_hand.execute("COMMIT")
        assert told(warm, plain) is Refusal.DEACTIVATED
        office.act("rio", keys.reactivate, key.id)
        assert told(warm, plain).key_id == key.id  # type: ignore[union-attr]
    assert by_hand.execute("SELECT count(*) FROM key_change").fetchone()[0] <= key_cache._LINES


@pytest.mark.parametrize("how", ["DELETE FROM key_change", "DELETE FROM key_change WHERE seq > 2"])
def test_a_log_that_was_emptied_by_hand_hides_nothing(
    office: Office, warm: KeyCheck, by_hand: sqlite3.Connection, how: str
) -> None:
    _, plain = office.generate("rio")
    told(warm, plain)
    by_hand.execute(how)
    by_hand.execute("UPDATE api_key SET revoked_at = '2026-01-01 00:00:00.000000'")
    assert told(warm, plain) is Refusal.REVOKED


def test_without_its_triggers_nothing_is_kept(
    office: Office, counting: Counting, warm: KeyCheck, by_hand: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A table that somebody remade has lost them; the next start of the portal makes them again."""
    key, plain = office.generate("rio")
    told(warm, plain)
    by_hand.execute("DROP TRIGGER key_change_access_gone")
    by_hand.execute("DELETE FROM access")
    assert told(warm, plain).reach.effective == frozenset()  # type: ignore[union-attr]
    before = counting.reads
    told(warm, plain)
    told(warm, plain)
    assert counting.reads == before + 2
    assert "flask migrate" in caplog.text
    key_cache.install(by_hand)
    told(warm, plain)
    told(warm, plain)
    assert counting.reads == before + 3
    office.act("rio", keys.deactivate, key.id)
    assert told(warm, plain) is Refusal.DEACTIVATED


def test_without_a_write_ahead_log_nothing_is_kept(
    office: Office, database_url: str, by_hand: sqlite3.Connection
) -> None:
    """A file on a network's disk has none; there `data_version` may be read while somebody writes."""
    _, plain = office.generate("rio")
    office.close()
    office.database.close()
    assert by_hand.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)

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
