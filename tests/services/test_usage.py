"""How keys are used: written soon, in batches, never twice, never lost, and seldom to a key's row (T-64, T-65)."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from portal.rules.credentials import Keyring, Pepper, new_id
from portal.rules.errors import KeyRefused, Refusal
from portal.services import keys
from portal.services.usage import ACCEPTED, Request, Usage
from portal.store.database import Database
from portal.store.models import FirstRequest, RefusedRequest
from portal.store.models import Usage as Row
from tests.services.office import NOON, RING, Office, at_once

SECOND = timedelta(seconds=1)
CURL = "curl/8.5"


@pytest.fixture
def usage(office: Office) -> Iterator[Usage]:
    usage = Usage(office.database)
    yield usage
    usage.close()


class Used:
    """A key, requests with it, and what its row says of them."""

    def __init__(self, office: Office, name: str = "Nightly export") -> None:
        self.office = office
        view, self.plain = office.generate("rio", name=name)
        self.id = view.id
        self.pk = office.row(view.id).id

    def request(self, at: datetime, **more: Any) -> Request:
        usual = {"method": "GET", "path": "/api/v1/me", "status": 200, "scope": "", "address": "203.0.113.9"}
        return Request(self.pk, at, new_id("req"), **{**usual, "client": CURL, **more})

    def accept(self, usage: Usage, at: datetime, **more: Any) -> None:
        usage.accepted(self.request(at, **more), is_first=self.at is None, new_digest=None)

    def refuse(self, usage: Usage, at: datetime, reason: str = Refusal.MISSING_SCOPE, **more: Any) -> None:
        usage.refused(self.request(at, **{"status": 403, "scope": "tasks:write"} | more), reason)

    @property
    def at(self) -> datetime | None:
        return self.office.row(self.id).last_used_at


@pytest.fixture
def key(office: Office) -> Used:
    return Used(office)


def counted(office: Office, **wanted: Any) -> int:
    """Add up what was counted of all keys, or of what has these values."""
    with office.database.reading() as session:
        return sum(session.scalars(select(Row.count).filter_by(**wanted)))


def refusals(office: Office) -> list[RefusedRequest]:
    with office.database.reading() as session:
        return list(session.scalars(select(RefusedRequest).order_by(RefusedRequest.id)))


@contextmanager
def commits_that(what: Callable[[Any], None], database: Database) -> Iterator[None]:
    """Do something in place of each commit, and fail."""

    def fail(connection: Any) -> None:
        what(connection.connection.dbapi_connection)
        raise ConnectionError("the network is gone")

    event.listen(database.engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(database.engine, "commit", fail)


def lose(connection: Any) -> None:
    connection.rollback()


def lose_the_answer(connection: Any) -> None:
    connection.commit()


@contextmanager
def writes_to_keys(database: Database) -> Iterator[list[int]]:
    """Note how many keys' rows each statement wrote."""
    written: list[int] = []

    def note(connection: object, cursor: Any, statement: str, *rest: object) -> None:
        if statement.lstrip().startswith("UPDATE api_key"):
            written.append(cursor.rowcount)

    event.listen(database.engine, "after_cursor_execute", note)
    yield written
    event.remove(database.engine, "after_cursor_execute", note)


# --- Counting -------------------------------------------------------------------------------------------------------


def test_use_is_written_within_seconds_by_itself(usage: Usage, key: Used) -> None:
    now = datetime.now(UTC)
    key.accept(usage, now)
    give_up = time.monotonic() + 10
    while key.at is None and time.monotonic() < give_up:
        time.sleep(0.05)
    row = key.office.row(key.id)
    assert (row.last_used_at, row.last_used_address, row.last_used_client) == (now, "203.0.113.9", CURL)
    assert counted(key.office) == 1


def test_requests_count_by_hour_outcome_scope_and_caller(office: Office, usage: Usage, key: Used) -> None:
    late = NOON + timedelta(minutes=59, seconds=59)
    for at in (NOON, late, late + SECOND):
        key.accept(usage, at, scope="tasks:read")
    key.accept(usage, NOON)
    key.accept(usage, NOON, scope="tasks:read", address="2001:db8::1")
    key.accept(usage, NOON, scope="tasks:read", client="")
    key.refuse(usage, NOON)
    key.refuse(usage, NOON, Refusal.ACCESS_WITHDRAWN)
    usage.flush()
    with office.database.reading() as session:
        rows = session.scalars(select(Row)).all()
    assert sorted((row.hour, row.outcome, row.scope, row.address, row.client, row.count) for row in rows) == sorted(
        [
            (hour(NOON), ACCEPTED, "tasks:read", "203.0.113.9", CURL, 2),
            (hour(NOON) + 1, ACCEPTED, "tasks:read", "203.0.113.9", CURL, 1),
            (hour(NOON), ACCEPTED, "", "203.0.113.9", CURL, 1),
            (hour(NOON), ACCEPTED, "tasks:read", "2001:db8::1", CURL, 1),
            (hour(NOON), ACCEPTED, "tasks:read", "203.0.113.9", "", 1),
            (hour(NOON), "missing_scope", "tasks:write", "203.0.113.9", CURL, 1),
            (hour(NOON), "access_withdrawn", "tasks:write", "203.0.113.9", CURL, 1),
        ]
    )
    (row,) = [row for row in rows if row.count == 2]
    assert (row.first_at, row.last_at) == (NOON, late)


def hour(moment: datetime) -> int:
    return int(moment.timestamp()) // 3600


def test_batches_and_processes_add_up_whatever_their_order(office: Office, usage: Usage, key: Used) -> None:
    other = Usage(office.database)
    key.accept(usage, NOON + 5 * SECOND)
    usage.flush()
    key.accept(other, NOON)
    key.accept(other, NOON + 9 * SECOND)
    other.close()
    key.accept(usage, NOON + 6 * SECOND)
    usage.flush()
    with office.database.reading() as session:
        (row,) = session.scalars(select(Row)).all()
    assert (row.count, row.first_at, row.last_at) == (4, NOON, NOON + 9 * SECOND)


def test_many_keys_used_at_once_are_all_counted(office: Office, usage: Usage) -> None:
    used = [Used(office, f"Key {n}") for n in range(8)]

    def work(each: Used) -> None:
        for second in range(50):
            usage.accepted(each.request(NOON + second * SECOND), is_first=False, new_digest=None)

    assert set(at_once({each.id: partial(work, each) for each in used}).values()) == {None}
    usage.flush()
    assert {counted(office, key_id=each.pk) for each in used} == {50}
    assert {each.at for each in used} == {NOON + 49 * SECOND}


def test_keys_that_were_not_used_are_left_alone(office: Office, usage: Usage, key: Used) -> None:
    unused = Used(office, "Unused")
    key.accept(usage, NOON)
    key.refuse(usage, NOON)
    unused.refuse(usage, NOON)  # a refused request is no use
    usage.flush()
    assert (key.at, unused.at) == (NOON, None)


def test_what_is_counted_apart_between_two_flushes_has_an_end_and_still_adds_up(
    office: Office, usage: Usage, key: Used
) -> None:
    """A program that changes its address or asks for ever new apps must not fill memory and table."""
    with commits_that(lose, office.database):  # the first batch waits, so the next one grows
        key.accept(usage, NOON)
        usage.flush()
        for n in range(12_000):
            usage.accepted(key.request(NOON, client=f"x/{n}"), is_first=False, new_digest=None)
            usage.refused(key.request(NOON, scope=f"app{n}:read"), Refusal.MISSING_SCOPE)
    usage.flush()
    usage.flush()
    assert counted(office) == 24_001
    assert (counted(office, outcome=ACCEPTED), counted(office, outcome="missing_scope")) == (12_001, 12_000)
    with office.database.reading() as session:
        assert (session.scalar(select(func.count()).select_from(Row)) or 0) <= 20_010


# --- Never lost, never doubled --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [lose, lose_the_answer])
def test_a_flush_that_was_interrupted_is_tried_again_and_counts_once(
    office: Office, usage: Usage, key: Used, caplog: pytest.LogCaptureFixture, fate: Callable[[Any], None]
) -> None:
    with caplog.at_level(logging.ERROR), commits_that(fate, office.database):
        key.accept(usage, NOON, scope="tasks:read")
        key.refuse(usage, NOON)
        usage.flush()
        key.accept(usage, NOON + SECOND, scope="tasks:read")  # meanwhile
        usage.flush()
    assert "usage could not be written" in caplog.text
    usage.flush()
    usage.flush()
    assert counted(office, outcome=ACCEPTED) == 2
    assert counted(office, outcome="missing_scope") == len(refusals(office)) == 1
    assert key.at == NOON
    assert first_of(office, key)


def test_who_has_no_patience_leaves_it_to_the_next_try_quietly(
    office: Office, usage: Usage, key: Used, caplog: pytest.LogCaptureFixture
) -> None:
    key.accept(usage, NOON, scope="tasks:read")
    with caplog.at_level(logging.ERROR):
        with office.database.transaction():
            start = time.monotonic()
            usage.flush(patience=20)
            assert time.monotonic() - start < 2  # else five seconds
        with usage._lock:
            usage.flush(patience=20)
    assert caplog.text == ""
    usage.flush()
    assert counted(office, outcome=ACCEPTED) == 1


def test_what_could_not_be_written_is_kept_for_the_next_try_and_raises_nothing(
    office: Office, usage: Usage, key: Used, caplog: pytest.LogCaptureFixture
) -> None:
    def rename(old: str, new: str) -> None:
        with office.database.transaction() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    asked = key.request(NOON)
    rename("usage", "elsewhere")
    with caplog.at_level(logging.ERROR):
        usage.accepted(asked, is_first=True, new_digest=None)
        for _ in range(3):
            usage.flush()
    assert caplog.text.count("usage could not be written") == 1  # not once a second
    rename("elsewhere", "usage")
    usage.flush()
    assert "over: usage" in caplog.text
    assert (key.at, counted(office)) == (NOON, 1)


def test_everything_is_counted_when_a_process_ends(office: Office, usage: Usage, key: Used) -> None:
    key.accept(usage, NOON)
    with commits_that(lose, office.database):
        usage.flush()
    key.accept(usage, NOON + SECOND)
    usage.close()
    assert counted(office) == 2


# --- A key's row ----------------------------------------------------------------------------------------------------


def test_a_row_is_written_at_most_once_in_ten_seconds_whatever_the_traffic(
    office: Office, usage: Usage, key: Used
) -> None:
    with writes_to_keys(office.database) as written:
        for tenth in range(250):
            usage.accepted(key.request(NOON + tenth * SECOND / 10), is_first=False, new_digest=None)
            if tenth % 5 == 4:
                usage.flush()
    assert (len(written), sum(written)) == (3, 3)
    assert key.at is not None
    assert key.at >= NOON + 20 * SECOND
    assert counted(office) == 250


def test_several_processes_together_write_a_row_at_most_once_in_ten_seconds(
    office: Office, usage: Usage, key: Used
) -> None:
    other = Usage(office.database)
    with writes_to_keys(office.database) as written:
        for second, process in ((0, usage), (1, other), (11, other), (13, other), (17, usage)):
            usage_at = NOON + second * SECOND
            process.accepted(key.request(usage_at, client=f"at/{second}"), is_first=False, new_digest=None)
            process.flush()
        other.close()
    assert sum(written) == 2
    assert (key.at, office.row(key.id).last_used_client) == (NOON + 13 * SECOND, "at/13")


def test_a_late_note_does_not_turn_the_time_back(office: Office, usage: Usage, key: Used) -> None:
    late = Usage(office.database)
    key.accept(late, NOON)
    key.accept(usage, NOON + 30 * SECOND, client="python-requests/2.32")
    usage.flush()
    late.close()
    assert key.at == NOON + 30 * SECOND
    assert office.row(key.id).last_used_client == "python-requests/2.32"


def test_a_key_that_was_deleted_meanwhile_stays_deleted(office: Office, usage: Usage, key: Used) -> None:
    key.accept(usage, NOON)
    office.act("rio", keys.delete, key.id, typed="Nightly export")
    usage.flush()
    assert office.row(key.id).revoked_at == NOON
    with pytest.raises(KeyRefused):
        office.check(key.plain)


def test_a_key_never_used_says_so(office: Office) -> None:
    view, _ = office.generate("rio")
    assert (view.last_used_at, view.last_used_address, view.last_used_client) == (None, None, None)
    assert view.is_unused


def test_a_key_in_use_moves_to_the_newest_pepper_with_the_flush_and_the_old_one_can_be_retired(office: Office) -> None:
    newest, old = Pepper("newest", b"n" * 32), RING.peppers[0]
    used, resting = Used(office), Used(office, "Not in use")
    moving = Office(office.database, Keyring(RING.format, (newest, old)))
    usage = Usage(office.database)
    caller = moving.check(used.plain)
    assert stored(office, used.id) == (old.digest(used.plain), old.id)  # the check itself writes nothing
    usage.accepted(used.request(NOON), is_first=caller.is_unused, new_digest=caller.new_digest)
    usage.close()
    assert stored(office, used.id) == (newest.digest(used.plain), "newest")
    assert moving.check(used.plain).new_digest is None

    retired = Office(office.database, Keyring(RING.format, (newest,)))
    assert retired.check(used.plain).key_id == used.id
    for refusing, plain in ((office, used.plain), (retired, resting.plain)):
        with pytest.raises(KeyRefused):
            refusing.check(plain)
    for each in (moving, retired):
        each.close()


def stored(office: Office, key_id: str) -> tuple[bytes, str]:
    row = office.row(key_id)
    return row.digest, row.pepper_id


# --- Refusals and the first request ---------------------------------------------------------------------------------


def test_a_refused_request_is_told_with_all_that_explains_it(office: Office, usage: Usage, key: Used) -> None:
    asked = key.request(NOON, method="POST", path="/api/v1/apps/tasks/records", status=403, scope="tasks:write")
    usage.refused(asked, Refusal.MISSING_SCOPE)
    usage.flush()
    (told,) = refusals(office)
    assert (told.request_id, told.key_id, told.at, told.reason) == (asked.request_id, key.pk, NOON, "missing_scope")
    assert (told.method, told.path, told.required) == ("POST", "/api/v1/apps/tasks/records", "tasks:write")
    assert (told.address, told.client) == ("203.0.113.9", CURL)


def test_of_a_storm_of_refusals_ten_thousand_are_kept_and_all_counted(office: Office, usage: Usage, key: Used) -> None:
    other = Used(office, "Calmer")
    with commits_that(lose, office.database):
        key.accept(usage, NOON)
        usage.flush()
        for _ in range(10_300):
            usage.refused(key.request(NOON), Refusal.DEACTIVATED)
        usage.refused(other.request(NOON), Refusal.DEACTIVATED)
    usage.flush()
    usage.flush()
    told = [each.key_id for each in refusals(office)]
    assert (told.count(key.pk), told.count(other.pk)) == (10_000, 1)
    assert counted(office, key_id=key.pk, outcome="deactivated") == 10_300


def test_refusals_are_kept_for_thirty_days_and_counts_for_longer(office: Office, usage: Usage, key: Used) -> None:
    for days in (0, 1, 31):
        each = Usage(office.database)  # each day's process; a process looks once an hour
        key.refuse(each, NOON + timedelta(days=days))
        each.close()
    assert [told.at for told in refusals(office)] == [NOON + timedelta(days=days) for days in (1, 31)]
    assert counted(office) == 3


@pytest.mark.parametrize("path", ["/api/v1/\x00", "/\ud800", "/\u202e", "/" + "x" * 5000])
def test_an_absurd_path_harms_no_batch(office: Office, usage: Usage, key: Used, path: str) -> None:
    key.refuse(usage, NOON, path=path)
    key.accept(usage, NOON, path=path)
    usage.flush()
    assert counted(office) == 2
    (told,) = refusals(office)
    assert len(told.path) <= 200


@pytest.mark.parametrize("method", ["X" * 11, "PROPPATCH-" * 400, "sk_live_" + "x" * 43, ""])
def test_an_invented_method_harms_no_batch(office: Office, usage: Usage, key: Used, method: str) -> None:
    key.accept(usage, NOON, method=method)
    key.refuse(usage, NOON, method=method)
    usage.flush()
    with office.database.reading() as session:
        found = [session.scalars(select(table.method)).one() for table in (FirstRequest, RefusedRequest)]
    assert len(found[0]) <= 10
    assert found[0] == found[1]
    assert method.startswith(found[0])


def test_the_longest_name_of_an_app_harms_no_batch(office: Office, usage: Usage, key: Used) -> None:
    """A path may name an app of 64 characters, none of which exists."""
    key.refuse(usage, NOON, scope="x" * 64 + ":write")
    usage.flush()
    assert counted(office) == len(refusals(office)) == 1


def test_a_key_in_a_path_or_in_the_name_of_an_app_is_not_written_down(office: Office, usage: Usage, key: Used) -> None:
    secret = key.plain.reveal()
    key.refuse(usage, NOON, path=f"/api/v1/apps/{secret}/records", scope=f"{secret}:read")
    key.accept(usage, NOON, path=f"/api/v1/apps/tasks/records/{secret}")
    usage.flush()
    assert counted(office) == 2
    with office.database.reading() as session:
        for table in (Row, RefusedRequest, FirstRequest):
            for row in session.execute(select(*table.__table__.columns)):
                assert secret[10:40] not in repr(row)


def first_of(office: Office, key: Used) -> FirstRequest | None:
    with office.database.reading() as session:
        return session.get(FirstRequest, key.pk)


def test_the_first_accepted_request_is_remembered_and_no_later_one(office: Office, usage: Usage, key: Used) -> None:
    key.refuse(usage, NOON)
    usage.flush()
    assert first_of(office, key) is None
    for second in (1, 2):
        key.accept(usage, NOON + second * SECOND, method="POST", path=f"/api/v1/{second}", status=201)
    usage.flush()
    usage.accepted(key.request(NOON + 3 * SECOND), is_first=True, new_digest=None)  # of a process that knew less
    usage.flush()
    first = first_of(office, key)
    assert first
    assert (first.at, first.method, first.path, first.status) == (NOON + SECOND, "POST", "/api/v1/1", 201)
    assert first.address == "203.0.113.9"


def test_whoever_calls_under_ever_new_names_fills_no_table(office: Office, usage: Usage, key: Used) -> None:
    for number in range(500):
        request = key.request(NOON + timedelta(seconds=number))
        usage.accepted(request._replace(client=f"client/{number}"), is_first=False, new_digest=None)
        usage.refused(request._replace(scope=f"app{number}:read"), Refusal.MISSING_SCOPE)
        if number % 50 == 0:
            usage.flush()
    usage.flush()
    with office.database.reading() as session:
        rows = session.scalar(select(func.count()).select_from(Row).where(Row.key_id == key.pk)) or 0
    assert rows <= 70
    assert counted(office, key_id=key.pk) == 1_000
