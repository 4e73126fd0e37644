"""The hot path: who passes, why not, and that one statement without a write decides (T-13 to T-19, T-23, T-26)."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text, update

from portal.rules.access import AccessLevel, Action, Environment, Role, Scope
from portal.rules.credentials import Keyring, Pepper, PlainKey
from portal.rules.errors import KeyRefused, Refusal
from portal.services import keys
from portal.services.key_check import KeyCheck
from portal.services.key_views import KeyView
from portal.store.database import Database
from portal.store.models import Account
from tests.services.office import API_MEMBER, NOON, RING, Office, at_once

READ_TASKS = Scope("tasks", Action.READ)
WRITE_TASKS = Scope("tasks", Action.WRITE)


def refusal(office: Office, plain: PlainKey | str, **more: Any) -> Refusal | None:
    """Say why a key is refused; None when it passes."""
    try:
        office.check(plain, **more)
    except KeyRefused as refused:
        return refused.refusal
    return None


class Watched:
    """A connection of the driver that writes down what it is asked, and cannot write to the database."""

    def __init__(self, connection: Any, statements: list[str]) -> None:
        self._connection, self._statements = connection, statements

    def execute(self, statement: str, *parameters: Any) -> Any:
        self._statements.append(statement)
        return self._connection.execute(statement, *parameters)

    def ask(self, statement: str, parameters: Any) -> Any:
        self._statements.append(statement)
        return self._connection.ask(statement, parameters)

    def ask_ahead(self, statement: str, parameters: Any) -> None:
        self._statements.append(statement)
        self._connection.ask_ahead(statement, parameters)

    def answer(self) -> Any:
        return self._connection.answer()

    def close(self) -> None:
        self._connection.close()


class WatchedDatabase(Database):
    """A database whose bare connections are watched and read-only."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.statements: list[str] = []

    def driver_connection(self) -> Any:
        connection = super().driver_connection()
        connection.execute("PRAGMA query_only=ON" if self.is_sqlite else "SET default_transaction_read_only=on")
        return Watched(connection, self.statements)


@contextmanager
def checking(database: Database, keyring: Keyring = RING) -> Iterator[KeyCheck]:
    with closing(KeyCheck(database, keyring)) as check:
        yield check


@pytest.fixture(scope="module")
def good(office_of_module: Office) -> str:
    """The text of a key that works."""
    return office_of_module.generate("rio", name="For every header")[1].reveal()


@pytest.fixture
def watched(database_url: str) -> Iterator[WatchedDatabase]:
    database = WatchedDatabase(database_url)
    yield database
    database.close()


# --- One statement, no write ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("peppers", [1, 3])
def test_one_statement_decides_and_nothing_is_written(office: Office, watched: WatchedDatabase, peppers: int) -> None:
    _, plain = office.generate("rio")
    stopped, stopped_plain = office.generate("rio", name="Stopped")
    office.act("rio", keys.deactivate, stopped.id)
    ring = Keyring(RING.format, (*(Pepper(f"p{n}", bytes([n]) * 32) for n in range(peppers - 1)), *RING.peppers))
    # Whether anything changed (`store.key_log`), unless that is known for a moment.
    news = "PRAGMA data_version" if watched.is_sqlite else "SELECT held, seq, key_id, member_id FROM key_change_since_"
    with checking(watched, ring) as check:
        with suppress(KeyRefused):
            check.check(f"Bearer {RING.format.mint(Environment.LIVE).reveal()}", now=NOON)
        watched.statements.clear()
        for text_of_key in (RING.format.mint(Environment.LIVE).reveal(), plain.reveal(), stopped_plain.reveal()):
            with suppress(KeyRefused):
                check.check(f"Bearer {text_of_key}", now=NOON)
            *before, decides = watched.statements
            assert len(before) <= 1
            assert all(statement.startswith(news) for statement in before)
            assert decides.startswith("SELECT api_key.digest")
            watched.statements.clear()


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer =", "Bearer a=b, c=d", "Bearer sk_live_x", "Token TEXT", "Basic TEXT",
        "BearerTEXT", "Bearer\tTEXT", "Bearer  TEXT x", "Bearer TEXT,Bearer TEXT", "Bearer TEXT, Bearer TEXT",
        'Bearer "TEXT"', "TEXT", "ApiKey TEXT", "Bearer TEXT\x00", "Bearer \x00TEXT", "Bearer TEXT\r\n",
        "Bearer TEXT\t",
        "Bearer TEXTx", "Bearer xTEXT", "Bearer MISTYPED", "Bearer RELABELLED", "Bearer UPPER", "\u00a0Bearer TEXT",
        " Bearer TEXT", "Bearer\u2003TEXT", "Beareſ TEXT", "Bearer \xff\xfe", "Bearer " + "x" * 1_048_576,
    ],
)  # fmt: skip
def test_what_is_no_key_never_reaches_the_database(watched: WatchedDatabase, good: str, header: str | None) -> None:
    forms = {
        "RELABELLED": good.replace("live", "test"),
        "MISTYPED": good[:20] + ("0" if good[20] != "0" else "1") + good[21:],
        "UPPER": good.upper(),
        "TEXT": good,
    }
    for word, form in forms.items():
        header = header.replace(word, form) if header else header
    with checking(watched) as check, pytest.raises(KeyRefused) as refused:
        check.check(header, now=NOON)
    assert refused.value.refusal in (Refusal.MISSING, Refusal.MALFORMED)
    assert watched.statements == []


@pytest.mark.parametrize("header", [None, "", "Basic TEXT", "Token TEXT", "TEXT", "ApiKey TEXT", "BearerTEXT"])
def test_another_scheme_is_a_missing_key(shared_office: Office, good: str, header: str | None) -> None:
    header = header.replace("TEXT", good) if header else header
    with pytest.raises(KeyRefused) as refused:
        shared_office.key_check.check(header, now=NOON)
    assert (refused.value.refusal, refused.value.code) == (Refusal.MISSING, "missing_key")


@pytest.mark.parametrize("written", ["bearer TEXT", "BEARER TEXT", "BeArEr   TEXT", "Bearer TEXT  "])
def test_the_schemes_case_and_spaces_do_not_matter(shared_office: Office, good: str, written: str) -> None:
    assert shared_office.key_check.check(written.replace("TEXT", good), now=NOON).key_name == "For every header"


@pytest.mark.parametrize(
    "query", ["key=TEXT", "TEXT", "a=b&token=TEXT", "key=OTHER", "key=%73k_live_REST", "x=sk%5Flive%5FREST"]
)
def test_a_good_header_beside_a_key_in_the_query_is_refused(
    office: Office, watched: WatchedDatabase, query: str
) -> None:
    _, plain = office.generate("rio")
    _, other = office.generate("rio", name="Another")
    good = plain.reveal()
    query = query.replace("TEXT", good).replace("OTHER", other.reveal()).replace("REST", good[8:])
    with checking(watched) as check, pytest.raises(KeyRefused) as refused:
        check.check(f"Bearer {good}", query=query, now=NOON)
    assert refused.value.refusal is Refusal.MALFORMED
    assert watched.statements == []


# --- Each cause, and which goes first -------------------------------------------------------------------------------

Cause = Callable[[Office, str], None]


def end_account(office: Office, _: str) -> None:
    with office.database.transaction() as session:
        session.execute(update(Account).where(Account.email == "rio@acme.test").values(deactivated_at=NOON))


# From the one that counts most; each makes the key of rio unusable on its own.
CAUSES: list[tuple[Refusal, Cause]] = [
    (Refusal.REVOKED, lambda office, key_id: office.set_key(key_id, revoked_at=NOON)),
    (Refusal.EXPIRED, lambda office, key_id: office.set_key(key_id, expires_at=NOON)),
    (Refusal.DEACTIVATED, lambda office, key_id: office.set_key(key_id, deactivated_at=NOON)),
    (Refusal.OWNER_INACTIVE, lambda office, _: office.change("rio", deactivated_at=NOON)),
    (Refusal.OWNER_INACTIVE, lambda office, _: office.change("rio", removed_at=NOON)),
    (Refusal.OWNER_INACTIVE, end_account),
]


@pytest.mark.parametrize("number", range(len(CAUSES)))
def test_each_cause_refuses_a_key_on_the_next_request(office: Office, number: int) -> None:
    key, plain = office.generate("rio")
    assert refusal(office, plain) is None
    expected, make = CAUSES[number]
    make(office, key.id)
    with pytest.raises(KeyRefused) as refused:
        office.check(plain)
    assert (refused.value.refusal, refused.value.key_id) == (expected, key.id)
    assert refused.value.code == "invalid_key"


def test_of_several_causes_the_most_final_is_told(office: Office) -> None:
    key, plain = office.generate("rio")
    for expected, make in reversed(CAUSES):
        make(office, key.id)
        assert refusal(office, plain, account_id="ws_another") is expected


def test_a_key_that_nobody_made_is_unknown(office: Office) -> None:
    with pytest.raises(KeyRefused) as refused:
        office.check(RING.format.mint(Environment.LIVE))
    assert (refused.value.refusal, refused.value.code, refused.value.key_id) == (Refusal.UNKNOWN, "invalid_key", None)


def test_all_refusals_of_well_formed_keys_look_the_same_from_outside(office: Office) -> None:
    well_formed = set(Refusal) - {
        Refusal.MISSING, Refusal.MALFORMED, Refusal.MISSING_SCOPE, Refusal.ACCESS_WITHDRAWN,
    }  # fmt: skip
    assert {KeyRefused(each).code for each in well_formed} == {"invalid_key"}


@pytest.mark.parametrize("expires", ["30d", "90d", "1y"])
def test_a_key_ends_at_the_very_instant_and_not_before(shared_office: Office, expires: str) -> None:
    key, plain = shared_office.generate("rio", name=f"For {expires}", expires=expires)
    assert key.expires_at is not None
    assert refusal(shared_office, plain, at=key.expires_at - timedelta(microseconds=1)) is None
    assert refusal(shared_office, plain, at=key.expires_at) is Refusal.EXPIRED
    assert refusal(shared_office, plain, at=key.expires_at + timedelta(days=9_999)) is Refusal.EXPIRED


def test_a_key_that_never_expires_does_not(office: Office) -> None:
    _, plain = office.generate("rio", expires="never")
    assert office.check(plain, at=NOON + timedelta(days=36_500)).ends_at is None


# --- Workspaces and environments ------------------------------------------------------------------------------------


def test_a_key_is_good_in_its_own_workspace_only(office: Office) -> None:
    _, plain = office.generate("rio")
    acme, globex = office.seat("rio").workspace, office.seat("zoe").workspace
    assert refusal(office, plain, account_id=acme.public_id) is None
    for other in (globex.public_id, acme.public_id.upper(), acme.slug, "", "ws_", "x" * 10_000, "\x00"):
        assert refusal(office, plain, account_id=other) is Refusal.OTHER_WORKSPACE


def test_a_row_whose_environment_was_changed_behind_the_portals_back_is_refused(office: Office) -> None:
    key, plain = office.generate("rio", environment="test")
    office.set_key(key.id, environment="live")
    assert refusal(office, plain) is Refusal.UNKNOWN


def test_a_row_that_was_moved_to_another_workspace_or_member_reaches_nothing_there(office: Office) -> None:
    key, plain = office.generate("ana", scopes=["leads:read"])
    globex = office.seat("zoe").workspace
    office.set_key(key.id, workspace_id=globex.id)
    assert refusal(office, plain) is Refusal.UNKNOWN
    office.set_key(key.id, member_id=office.member("zoe").id)
    assert office.check(plain).reach.scopes == frozenset()


def test_who_can_edit_the_database_still_cannot_make_a_key(office: Office) -> None:
    """Neither the text, nor a plain hash of it, nor an HMAC under a pepper of one's own opens the door."""
    key, _ = office.generate("ana")
    mine = RING.format.mint(Environment.LIVE)
    guesses = [mine.reveal().encode()[:32], Pepper("mine", b"").digest(mine), Pepper("mine", b"x" * 32).digest(mine)]
    for digest in guesses:
        office.set_key(key.id, digest=digest, pepper_id="mine")
        assert refusal(office, mine) is Refusal.UNKNOWN


# --- Access now -----------------------------------------------------------------------------------------------------


def effective(office: Office, plain: PlainKey) -> list[str]:
    return list(office.check(plain).reach.effective_texts)


def test_a_demoted_owners_key_shrinks_and_a_promoted_owners_never_grows_past_its_scopes(office: Office) -> None:
    _, plain = office.generate("max", scopes=["leads:read", "leads:write"])
    for level, left in (
        (AccessLevel.READ, ["leads:read"]),
        (AccessLevel.NONE, []),
        (AccessLevel.MANAGE, ["leads:read", "leads:write"]),
    ):
        office.grant("max", "sales", level)
        assert effective(office, plain) == left
    office.change("max", role=Role.ADMIN)
    assert effective(office, plain) == ["leads:read", "leads:write"]


def test_a_read_key_of_an_admin_stays_a_read_key(office: Office) -> None:
    _, plain = office.generate("ana", scopes=["tasks:read"])
    caller = office.check(plain)
    assert effective(office, plain) == ["tasks:read"]
    caller.require(READ_TASKS)
    with pytest.raises(KeyRefused):
        caller.require(WRITE_TASKS)
    office.change("ana", role=Role.MEMBER)
    assert effective(office, plain) == []


def test_what_a_key_lacks_and_what_its_owner_lost_are_told_apart(office: Office) -> None:
    key, plain = office.generate("lea", scopes=["tasks:read", "tasks:write"])
    office.grant("lea", "operations", AccessLevel.READ)
    caller = office.check(plain)
    with pytest.raises(KeyRefused) as withdrawn:
        caller.require(WRITE_TASKS)
    with pytest.raises(KeyRefused) as missing:
        caller.require(Scope("leads", Action.READ))
    assert (withdrawn.value.refusal, missing.value.refusal) == (Refusal.ACCESS_WITHDRAWN, Refusal.MISSING_SCOPE)
    for refused in (withdrawn.value, missing.value):
        assert (refused.key_id, list(refused.held), refused.workspace) == (key.id, ["tasks:read"], "acme")
    assert (withdrawn.value.required, missing.value.required) == ("tasks:write", "leads:read")


def test_an_app_that_is_not_there_and_one_of_another_workspace_are_both_a_missing_scope(office: Office) -> None:
    _, plain = office.generate("ana", scopes=["tasks:read"])
    for app in ("tickets", "payroll"):
        with pytest.raises(KeyRefused) as refused:
            office.check(plain).require(Scope(app, Action.READ))
        assert refused.value.refusal is Refusal.MISSING_SCOPE


def test_an_api_members_key_says_whose_it_is(office: Office) -> None:
    _, plain = office.generate("lea", owner=API_MEMBER)
    caller = office.check(plain)
    assert (caller.member_name, caller.is_api_member, caller.workspace_slug) == (API_MEMBER, True, "acme")
    office.change("lea", removed_at=NOON)  # a lead's departure leaves API members working
    assert refusal(office, plain) is None
    office.change(API_MEMBER, deactivated_at=NOON)
    assert refusal(office, plain) is Refusal.OWNER_INACTIVE


# --- Peppers --------------------------------------------------------------------------------------------------------


def test_older_peppers_stay_accepted_until_they_are_retired(office: Office, database: Database) -> None:
    old, newer, newest = RING.peppers[0], Pepper("n1", b"1" * 32), Pepper("n2", b"2" * 32)
    key, plain = office.generate("rio")
    header = f"Bearer {plain.reveal()}"
    with checking(database, Keyring(RING.format, (newest, newer, old))) as check:
        caller = check.check(header, now=NOON)
    assert caller.key_id == key.id
    assert caller.new_digest == (newest.digest(plain), "n2")
    with checking(database, Keyring(RING.format, (newest, newer))) as check, pytest.raises(KeyRefused):
        check.check(header, now=NOON)
    assert office.check(plain).new_digest is None  # nothing to move while there is one pepper


# --- Connections ----------------------------------------------------------------------------------------------------


def test_a_connection_that_broke_is_replaced_without_the_caller_noticing(office: Office) -> None:
    key, plain = office.generate("rio")
    broken: list[Any] = []

    class Keeping(Database):
        def driver_connection(self) -> Any:
            broken.append(super().driver_connection())
            return broken[-1]

    database = Keeping(office.database.url.render_as_string(hide_password=False))
    with checking(database) as check:
        check.check(f"Bearer {plain.reveal()}", now=NOON)
        if not database.is_sqlite:  # the server ends it, as a restart would
            with office.database.transaction() as session:
                session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": broken[0].info.backend_pid})
        assert check.check(f"Bearer {plain.reveal()}", now=NOON).key_id == key.id
    assert len(broken) == (1 if database.is_sqlite else 2)
    database.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("does_close", [True, False])
def test_no_connection_crosses_a_fork(office: Office, does_close: bool) -> None:
    _, plain = office.generate("rio")
    header, opened = f"Bearer {plain.reveal()}", []

    class Counting(Database):
        def driver_connection(self) -> Any:
            opened.append(self)
            return super().driver_connection()

    database = Counting(office.database.url.render_as_string(hide_password=False))
    with checking(database) as check:
        check.check(header, now=NOON)
        child = os.fork()
        if not child:
            status = 1
            try:
                if does_close:
                    check.close()
                check.check(header, now=NOON)
                status = 0 if len(opened) == 2 else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        check.check(header, now=NOON)
    assert len(opened) == 1  # nor did the child end the parent's
    database.close()


def test_a_database_that_cannot_be_asked_is_never_a_refused_key(office: Office) -> None:
    _, plain = office.generate("rio")
    with office.database.transaction() as session:
        session.execute(text("ALTER TABLE key_scope RENAME TO elsewhere"))
    with pytest.raises(Exception) as trouble:
        office.check(plain)
    assert not isinstance(trouble.value, KeyRefused)


def test_checks_at_the_same_moment_all_answer_rightly(office: Office) -> None:
    made = [office.generate(name) for name in ("ana", "lea", "max", "rio")]

    def check(key: KeyView, plain: PlainKey) -> bool:
        return all(office.check(plain).key_id == key.id for _ in range(40))

    assert set(at_once({key.id: partial(check, key, plain) for key, plain in made}).values()) == {True}


def test_changes_of_another_process_count_at_once(office: Office, database_url: str) -> None:
    """The check keeps its connection; a commit elsewhere between two requests is seen by the second."""
    key, plain = office.generate("rio")
    for _ in range(25):
        elsewhere = Office(Database(database_url))
        assert refusal(office, plain) is None
        elsewhere.act("rio", keys.deactivate, key.id)
        assert refusal(office, plain) is Refusal.DEACTIVATED
        elsewhere.act("rio", keys.reactivate, key.id)
        elsewhere.database.close()
