"""Signing in: how often one may guess, and how long a session lives (T-37 to T-41)."""

from collections import Counter
from datetime import datetime, timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, inspect, select, update

from portal.demo import PASSWORD
from portal.rules import credentials
from portal.rules.errors import Conflict, TooManyAttempts
from portal.services import accounts, members
from portal.services.accounts import LiveSession, PasswordAttempt
from portal.services.actor import Actor, Means
from portal.store.database import Database
from portal.store.models import Account, Member, UserSession, Workspace
from tests.services.office import NOON, Office, at_once

HOME = "198.51.100.7"
ELSEWHERE = "198.51.100.8"
RIO = "rio@acme.test"
MINUTE = timedelta(minutes=1)


def visitor(at: datetime = NOON, address: str = HOME) -> Actor:
    return Actor(at, Means.SESSION, "visitor", address=address, request_id="req_1")


def begin(database: Database, email: str = RIO, at: datetime = NOON, address: str = HOME) -> PasswordAttempt:
    """Count a try; left alone it is a failure, so that the limits' tests need not hash."""
    with database.transaction() as session:
        return accounts.begin_attempt(session, visitor(at, address), email)


def sign_in(
    database: Database, email: str = RIO, password: str = PASSWORD, at: datetime = NOON, address: str = HOME
) -> tuple[LiveSession, str] | None:
    """Sign in as the page does: three steps, two transactions; None when the password does not match."""
    attempt = begin(database, email, at, address)
    is_right = attempt.verify(password)
    with database.transaction() as session:
        if not is_right:
            accounts.fail(session, visitor(at, address), attempt)
            return None
        return accounts.sign_in(session, visitor(at, address), attempt, "Firefox/145")


def find(database: Database, token: str, at: datetime = NOON) -> LiveSession | None:
    with database.reading() as session:
        return accounts.find_session(session, token, at)


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("email", [RIO, "nobody@acme.test", "no address at all", "x" * 5_000, "\x00", "\ud800", ""])
def test_an_account_that_exists_or_not_has_five_tries_in_fifteen_minutes_from_one_address(
    database: Database, email: str
) -> None:
    left = [begin(database, email, NOON + n * MINUTE).tries_left for n in range(5)]
    assert left == [4, 3, 2, 1, 0]
    for at in (NOON + 4 * MINUTE, NOON + 15 * MINUTE - timedelta(microseconds=1)):
        with pytest.raises(TooManyAttempts) as refused:
            begin(database, email, at)
        assert refused.value.retry_at == NOON + 15 * MINUTE
    begin(database, email, NOON + 15 * MINUTE)  # the first of the five no longer counts
    with pytest.raises(TooManyAttempts):
        begin(database, email, NOON + 15 * MINUTE)


def test_the_right_password_does_not_help_while_a_limit_holds(database: Database) -> None:
    for _ in range(5):
        begin(database)
    with pytest.raises(TooManyAttempts):
        sign_in(database)
    assert sign_in(database, address=ELSEWHERE)
    assert sign_in(database, "max@acme.test")
    assert sign_in(database, at=NOON + 15 * MINUTE)


def test_a_blocked_try_does_not_lengthen_the_block(database: Database) -> None:
    for _ in range(5):
        begin(database)
    for n in range(14):
        with pytest.raises(TooManyAttempts):
            begin(database, at=NOON + n * MINUTE)
    assert begin(database, at=NOON + 15 * MINUTE).tries_left == 4


@pytest.mark.parametrize("typed", ["RIO@acme.test", "  rio@ACME.test ", "rio@acme.test\n"])
def test_the_same_address_written_otherwise_is_the_same_account(database: Database, typed: str) -> None:
    for _ in range(5):
        begin(database)
    with pytest.raises(TooManyAttempts):
        begin(database, typed)


def test_success_resets_the_short_limit_of_its_account_and_address_only(database: Database) -> None:
    for address in (HOME, ELSEWHERE):
        for _ in range(4):
            begin(database, address=address)
    for _ in range(4):
        begin(database, "max@acme.test")
    assert sign_in(database, address=HOME)
    assert [begin(database, address=HOME).tries_left for _ in range(5)] == [4, 3, 2, 1, 0]
    assert begin(database, address=ELSEWHERE).tries_left == 0
    assert begin(database, "max@acme.test").tries_left == 0
    for email, address in ((RIO, HOME), (RIO, ELSEWHERE), ("max@acme.test", HOME)):
        with pytest.raises(TooManyAttempts):
            begin(database, email, address=address)


def test_from_one_address_thirty_failures_block_every_account(database: Database) -> None:
    for n in range(30):
        begin(database, f"person{n}@acme.test", NOON + n * timedelta(seconds=1))
    for email in (RIO, "nobody@acme.test", "person1@acme.test"):
        with pytest.raises(TooManyAttempts) as refused:
            begin(database, email, NOON + MINUTE)
        assert refused.value.retry_at == NOON + 15 * MINUTE
    assert sign_in(database, at=NOON + MINUTE, address=ELSEWHERE)
    assert sign_in(database, at=NOON + 15 * MINUTE)


def test_of_several_limits_the_one_that_ends_last_is_told(database: Database) -> None:
    for n in range(30):
        begin(database, f"person{n}@acme.test")
    for n in range(50):
        begin(database, RIO, NOON + 5 * MINUTE, address=f"192.0.2.{n + 1}")
    with pytest.raises(TooManyAttempts) as refused:
        begin(database, RIO, NOON + 10 * MINUTE)
    assert refused.value.retry_at == NOON + 65 * MINUTE


@pytest.mark.parametrize(("limit", "is_from_home"), [(30, True), (50, False)])
def test_signing_in_between_resets_the_limit_of_neither_an_address_nor_an_account(
    database: Database, limit: int, is_from_home: bool
) -> None:
    for n in range(limit):
        email, address = (f"person{n // 4}@acme.test", HOME) if is_from_home else (RIO, f"192.0.2.{n // 4}")
        begin(database, email, address=address)
        if n % 4 == 3:  # the fifth try is right, and forgives the four
            right = begin(database, email, address=address)
            with database.transaction() as session:
                accounts.take_back(session, right, NOON)
    with pytest.raises(TooManyAttempts):
        begin(database, "max@acme.test" if is_from_home else RIO, address=HOME)


@pytest.mark.parametrize("email", [RIO, "nobody@acme.test"])
def test_an_account_has_fifty_tries_an_hour_from_anywhere(database: Database, email: str) -> None:
    for n in range(50):
        begin(database, email, NOON + n * timedelta(seconds=1), f"192.0.2.{n}")
    for at in (NOON + MINUTE, NOON + timedelta(minutes=59, seconds=59)):
        with pytest.raises(TooManyAttempts) as refused:
            begin(database, email, at)
        assert refused.value.retry_at == NOON + timedelta(hours=1)
    begin(database, "max@acme.test", NOON + MINUTE)
    begin(database, email, NOON + timedelta(hours=1))


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("198.51.100.7", "198.51.100.7", True),
        ("198.51.100.7", "198.51.100.8", False),
        ("198.51.100.7", "::ffff:198.51.100.7", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:0DB8:1:2:0:0:0:1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_an_ipv6_network_of_64_bits_counts_as_one_address(
    database: Database, one: str, other: str, are_one: bool
) -> None:
    for _ in range(5):
        begin(database, address=one)
    if are_one:
        with pytest.raises(TooManyAttempts):
            begin(database, address=other)
    else:
        assert begin(database, address=other).tries_left == 4


@pytest.mark.parametrize("address", [None, "", "not an address", "unix:", "x" * 500])
def test_visitors_without_an_address_share_one_limit(database: Database, address: str | None) -> None:
    with database.transaction() as session:
        for _ in range(5):
            accounts.begin_attempt(session, Actor(NOON, Means.SESSION, "visitor", address=address), RIO)
    with pytest.raises(TooManyAttempts):
        begin(database, address="another oddity")


def test_the_count_survives_a_restart(database: Database, database_url: str) -> None:
    for _ in range(5):
        begin(database)
    database.close()
    restarted = Database(database_url)
    with pytest.raises(TooManyAttempts):
        begin(restarted)
    restarted.close()


def test_parallel_guesses_cannot_outrun_the_limit(database: Database) -> None:
    ends = at_once({str(n): lambda: sign_in(database, password="a wrong guess") for n in range(16)})
    assert Counter(type(end) for end in ends.values()) == {type(None): 5, TooManyAttempts: 11}


def test_people_who_sign_in_at_the_same_moment_all_get_in_and_leave_no_failure(database: Database) -> None:
    ends = at_once({str(n): lambda: sign_in(database) for n in range(4)})
    assert {type(end) for end in ends.values()} == {tuple}
    assert begin(database).tries_left == 4


def test_failures_are_forgotten_after_an_hour_and_addresses_are_not_kept_in_clear(database: Database) -> None:
    begin(database, "someone.who.typed@wrong.test")
    with database.reading() as session:
        stored = session.connection().exec_driver_sql("SELECT * FROM sign_in_failure").all()
    assert len(stored) == 1
    assert "someone" not in repr(stored)
    begin(database, at=NOON + timedelta(hours=1, seconds=1))
    with database.reading() as session:
        assert len(session.connection().exec_driver_sql("SELECT * FROM sign_in_failure").all()) == 1


# --- Passwords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("email", "password"),
    [
        (RIO, "wrong"),
        (RIO, ""),
        (RIO, PASSWORD + " "),
        (RIO, PASSWORD.upper()),
        (RIO, "x" * 1_000_000),
        (RIO, "\x00"),
        (RIO, "\ud800"),
        ("max@acme.test ", "wrong"),
        ("nobody@acme.test", PASSWORD),
        ("Nightly sync", PASSWORD),
        ("' OR 1=1 --", PASSWORD),
        ("%@acme.test", PASSWORD),
    ],
)
def test_nobody_gets_in_with_anything_but_their_own_password(database: Database, email: str, password: str) -> None:
    assert sign_in(database, email, password) is None
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(UserSession)) == 0


def test_who_has_no_membership_left_or_is_deactivated_is_refused_like_anybody(database: Database) -> None:
    ended = {"rio": Member.deactivated_at, "max": Member.removed_at, "lea": Account.deactivated_at}
    with database.transaction() as session:
        for name, column in ended.items():
            account = select(Account.id).where(Account.email == f"{name}@acme.test").scalar_subquery()
            is_theirs = Account.id == account if column.class_ is Account else Member.account_id == account
            session.execute(update(column.class_).where(is_theirs).values({column: NOON}))
    for name in ended:
        assert sign_in(database, f"{name}@acme.test") is None
    assert sign_in(database, "ana@acme.test")
    with database.reading() as session:  # nor do they join another workspace with that password
        assert not accounts.verify_account(session.query(Account).filter_by(email="lea@acme.test").one(), PASSWORD)


def test_an_old_hash_is_made_anew_by_signing_in_and_not_by_failing_to(database: Database) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    with database.transaction() as session:
        session.execute(update(Account).where(Account.email == RIO).values(password_hash=weak))

    def stored() -> str:
        with database.reading() as session:
            return session.scalars(select(Account.password_hash).where(Account.email == RIO)).one()

    sign_in(database, password="wrong")
    assert stored() == weak
    sign_in(database)
    fresh = stored()
    assert not credentials.needs_rehash(fresh)
    sign_in(database)
    assert stored() == fresh


# --- Sessions -------------------------------------------------------------------------------------------------------


def started(database: Database, at: datetime = NOON, email: str = RIO) -> tuple[LiveSession, str]:
    signed_in = sign_in(database, email, at=at)
    assert signed_in
    return signed_in


def test_a_session_is_found_by_its_token_and_stored_as_a_hash(database: Database) -> None:
    user_session, token = started(database)
    found = find(database, token)
    assert found is not None
    assert found == user_session
    assert found.account.email == RIO
    with database.reading() as session:
        row = session.get_one(UserSession, found.id)
        assert (row.address, row.client) == (HOME, "Firefox/145")
        tables = inspect(database.engine).get_table_names()
        everything = [session.connection().exec_driver_sql(f"SELECT * FROM {name}").all() for name in tables]
    assert token not in repr(everything)
    assert repr(user_session.token_hash) in repr(everything)


@pytest.mark.parametrize("token", ["", "x", "x" * 100_000, "\x00", "é", "' OR 1=1 --"])
def test_a_token_that_nobody_was_given_finds_nothing(database: Database, token: str) -> None:
    started(database)
    assert find(database, token) is None


def test_every_sign_in_has_a_token_of_its_own(database: Database) -> None:
    tokens = {started(database)[1] for _ in range(3)}
    assert len(tokens) == 3
    assert all(find(database, token) for token in tokens)


def test_a_session_ends_after_two_idle_hours(database: Database) -> None:
    _, token = started(database)
    assert find(database, token, NOON + timedelta(hours=2) - timedelta(microseconds=1))
    assert find(database, token, NOON + timedelta(hours=2)) is None


def test_a_session_in_use_lives_on_for_twelve_hours_and_no_longer(database: Database) -> None:
    user_session, token = started(database)
    for hour in range(1, 12):
        now = NOON + timedelta(hours=hour)
        found = find(database, token, now)
        assert found
        with database.transaction() as session:
            accounts.mark_seen(session, user_session, now, None)
    assert find(database, token, NOON + timedelta(hours=12) - timedelta(microseconds=1))
    assert find(database, token, NOON + timedelta(hours=12)) is None


def test_use_is_written_down_once_a_minute_or_when_the_workspace_changes(database: Database) -> None:
    user_session, token = started(database)
    with database.transaction() as session:
        here, there = session.scalars(select(Workspace.id).order_by(Workspace.id)).all()
        accounts.mark_seen(session, user_session, NOON, here)
    found = find(database, token)
    assert found
    assert not accounts.is_due_to_be_seen(found, NOON + MINUTE, here)
    assert accounts.is_due_to_be_seen(found, NOON + MINUTE + timedelta(seconds=1), here)
    assert accounts.is_due_to_be_seen(found, NOON, there)
    assert not accounts.is_due_to_be_seen(found, NOON, None)


def test_a_session_is_gone_at_once_on_sign_out_and_no_other_with_it(database: Database) -> None:
    _, token = started(database)
    _, other = started(database)
    found = find(database, token)
    assert found
    with database.transaction() as session:
        accounts.sign_out(session, visitor(), found)
    assert find(database, token) is None
    assert find(database, other)


def test_a_session_is_gone_when_its_account_is_deactivated(database: Database) -> None:
    _, token = started(database)
    with database.transaction() as session:
        session.execute(update(Account).where(Account.email == RIO).values(deactivated_at=NOON))
    assert find(database, token) is None


def test_no_session_begins_by_a_password_that_was_verified_before_its_account_was_deactivated(
    database: Database,
) -> None:
    attempt = begin(database)
    assert attempt.verify(PASSWORD)
    with database.transaction() as session:
        session.execute(update(Account).where(Account.email == RIO).values(deactivated_at=NOON))
    with pytest.raises(Conflict, match="The account changed"), database.transaction() as session:
        accounts.sign_in(session, visitor(), attempt, "Firefox/145")


def test_a_session_opens_no_workspace_in_which_the_membership_ended(office: Office) -> None:
    def has_seat() -> bool:
        account_id = office.member("rio").account_id
        assert account_id
        with office.database.reading() as session:
            return members.find_seat(session, account_id, "acme") is not None

    assert has_seat()
    for column in ("deactivated_at", "removed_at"):
        office.change("rio", **{column: NOON})
        assert not has_seat()
        office.change("rio", **{column: None})


def test_proving_who_one_is_gives_the_session_a_new_token_and_ten_minutes(database: Database) -> None:
    user_session, token = started(database)
    assert accounts.is_proved(user_session, NOON + 10 * MINUTE)
    assert not accounts.is_proved(user_session, NOON + 10 * MINUTE + timedelta(microseconds=1))
    later = NOON + timedelta(hours=1)
    attempt = begin(database, at=later)
    with database.transaction() as session:
        new = accounts.prove(session, visitor(later), attempt, user_session)
    assert find(database, token, later) is None
    found = find(database, new, later)
    assert found
    assert accounts.is_proved(found, later + 10 * MINUTE)
    assert found.created_at == NOON  # the twelve hours do not begin again


def test_signing_in_clears_sessions_away_that_are_over(database: Database) -> None:
    started(database)
    started(database, NOON + timedelta(hours=12, seconds=1))
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(UserSession)) == 1


# --- What is told ---------------------------------------------------------------------------------------------------


def test_each_sign_in_failure_proof_and_sign_out_is_told_once_and_as_what_it_was(office: Office) -> None:
    sign_in(office.database, password="wrong")
    sign_in(office.database, "nobody@acme.test")
    _, token = started(office.database)
    found = find(office.database, token)
    assert found
    attempt = begin(office.database)
    with office.database.transaction() as session:
        accounts.prove(session, visitor(), attempt, found)
    with office.database.transaction() as session:
        accounts.sign_out(session, visitor(), found)
    told = [(event.action, event.target_name) for event in office.told(request_id="req_1")]
    assert [action for action, _ in told] == [
        "sign_in_failed",
        "sign_in_failed",
        "signed_in",
        "reauthenticated",
        "signed_out",
    ]
    assert [name for _, name in told if "@" in name] == [RIO, RIO, RIO, RIO]
    assert "nobody" not in repr(told)  # what was typed may be a password in the wrong field
    assert {event.address for event in office.told(request_id="req_1")} == {HOME}
