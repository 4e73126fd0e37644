"""New passwords: who may choose one, what ends with the old one, and what a one-time link is good for."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select

from portal.rules.credentials import verify_password
from portal.rules.errors import Conflict, Invalid, KeyRefused, NotFound
from portal.services import accounts, invitations, keys, passwords, people, sessions
from portal.services.accounts import LiveSession
from portal.services.invitations import INVITATION_LIFE
from portal.services.passwords import MAILS_AN_HOUR, RESET_LIFE, NewPassword
from portal.store.models import Account, ApiKey, OutgoingMail, UserSession
from tests.services.office import NOON, Office, at_once

OLD = "correct horse battery staple"
NEW = "seven green bottles on a wall"
URL = "https://keys.example.org"


def account(office: Office, name: str = "max") -> Account:
    with office.database.reading() as session:
        return session.scalars(select(Account).where(Account.email == f"{name}@acme.test")).one()


def sign_in(
    office: Office, name: str = "max", at: datetime = NOON, before: LiveSession | None = None
) -> tuple[LiveSession, str]:
    """Start a session of somebody's, in place of one `before`."""
    actor = office.actor(name, at)
    with office.database.transaction() as session:
        attempt = accounts.begin_attempt(session, actor, f"{name}@acme.test")
    with office.database.transaction() as session:
        return accounts.sign_in(session, actor, attempt, "Firefox on Linux", before)


def is_live(office: Office, token: str, at: datetime = NOON) -> bool:
    with office.database.reading() as session:
        return accounts.find_session(session, token, at) is not None


def new(**answers: Any) -> NewPassword:
    usual: dict[str, Any] = {"password": NEW, "again": NEW, "stop_keys": False}
    return NewPassword.choose(**usual | answers)


def change(office: Office, this: LiveSession, wanted: NewPassword) -> str:
    actor = office.actor("max")
    with office.database.transaction() as session:
        attempt = accounts.begin_attempt(session, actor, "max@acme.test")
    with office.database.transaction() as session:
        return passwords.change(session, actor, attempt, wanted, this)[0]


def link(office: Office, email: str = "max@acme.test", at: datetime = NOON) -> str | None:
    """Ask for a link; give the token of the mail that was written, if one was."""
    with office.database.transaction() as session:
        before = session.scalar(select(func.count()).select_from(OutgoingMail))
        passwords.send_link(session, office.actor("max", at), email, URL)
        session.flush()
        mails = session.scalars(select(OutgoingMail).order_by(OutgoingMail.id)).all()[before:]
        return mails[0].body.partition("/reset/")[2].partition("\n")[0] if mails else None


def reset(office: Office, token: str, wanted: NewPassword | None = None, at: datetime = NOON) -> int:
    with office.database.transaction() as session:
        return passwords.reset(session, office.actor("max", at), token, wanted or new())


# --- Choosing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ({"password": "short", "again": "short"}, "password"),
        ({"password": "x" * 257, "again": "x" * 257}, "password"),
        ({"again": "something else"}, "password_again"),
        ({"old": NEW}, "password"),
    ],
)
def test_a_password_must_be_long_enough_typed_twice_and_new(answers: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        new(**answers)
    assert field in refused.value.problems


# --- Changing -------------------------------------------------------------------------------------------------------


def test_a_changed_password_ends_all_other_sessions_and_gives_this_one_a_new_token(office: Office) -> None:
    this, old_token = sign_in(office)
    _, other = sign_in(office)
    _, of_rio = sign_in(office, "rio")
    token = change(office, this, new())
    assert [is_live(office, each) for each in (token, old_token, other, of_rio)] == [True, False, False, True]
    assert verify_password(account(office).password_hash, NEW)


def test_whoever_changes_the_password_has_proved_who_they_are(office: Office) -> None:
    this, _ = sign_in(office, at=NOON - timedelta(hours=1))
    assert not accounts.is_proved(this, NOON)
    token = change(office, this, new())
    with office.database.reading() as session:
        found = accounts.find_session(session, token, NOON)
    assert found and accounts.is_proved(found, NOON)


@pytest.mark.parametrize("stop_keys", [True, False])
def test_keys_stop_with_the_change_only_if_that_was_chosen(stop_keys: bool, office: Office) -> None:
    _, plain = office.generate("max")
    _, of_rio = office.generate("rio")
    this, _ = sign_in(office)
    change(office, this, new(stop_keys=stop_keys))
    if stop_keys:
        with pytest.raises(KeyRefused):
            office.check(plain)
    else:
        office.check(plain)
    office.check(of_rio)
    assert len(office.told(action="key_deactivated")) == stop_keys


def test_keys_that_stopped_with_a_membership_are_not_counted(office: Office) -> None:
    office.generate("max")
    me = office.member("max").account_id or 0
    counts = []
    for left_at in (None, NOON):
        office.change("max", removed_at=left_at)
        with office.database.reading() as session:
            counts.append(passwords.active_keys(session, me, office.actor("max")))
    assert counts == [1, 0]


# --- One-time links -------------------------------------------------------------------------------------------------


def test_a_link_is_good_for_one_new_password_and_ends_every_session(office: Office) -> None:
    _, signed_in = sign_in(office)
    token = link(office)
    assert token
    reset(office, token)
    assert verify_password(account(office).password_hash, NEW)
    assert not is_live(office, signed_in)
    with pytest.raises(NotFound):
        reset(office, token, new(password=OLD, again=OLD))
    assert verify_password(account(office).password_hash, NEW)


def test_using_one_link_ends_the_others(office: Office) -> None:
    first, second, of_rio = link(office), link(office), link(office, "rio@acme.test")
    assert first and second and of_rio
    reset(office, second)
    with pytest.raises(NotFound):
        reset(office, first)
    reset(office, of_rio)  # other people's stay as they are


def test_a_link_that_is_used_many_times_at_once_counts_once(office: Office) -> None:
    token = link(office)
    assert token
    ends = at_once({str(n): partial(reset, office, token) for n in range(4)})
    assert (
        sorted(str(end) for end in ends.values())
        == ["0"] + ["This link was used or has expired. Ask for a new one."] * 3
    )


@pytest.mark.server
def test_a_link_that_is_used_while_its_account_is_switched_off_opens_nothing(office: Office) -> None:
    """Two that lock account and link in two orders would wait for each other."""
    token = link(office)
    assert token

    def switch_off() -> object:
        with office.database.transaction() as session:
            return people.deactivate_account(session, office.actor("max"), "max@acme.test")

    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            session.get_one(Account, account(office).id, with_for_update=True)
            waiting = [pool.submit(switch_off)]
            wait(waiting, 0.3)
            waiting.append(pool.submit(reset, office, token))
            assert wait(waiting, 0.3).done == set()
        assert waiting[0].result()
        with pytest.raises(NotFound):
            waiting[1].result()
    assert verify_password(account(office).password_hash, OLD)


@pytest.mark.server
def test_who_signs_in_anew_while_their_account_is_switched_off_does_not_stand_in_the_way(office: Office) -> None:
    """Two that lock account and session in two orders would wait for each other."""
    before, _ = sign_in(office)

    def switch_off() -> object:
        with office.database.transaction() as session:
            return people.deactivate_account(session, office.actor("max"), "max@acme.test")

    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            session.get_one(UserSession, before.id, with_for_update=True)
            waiting: list[Future[Any]] = [pool.submit(sign_in, office, before=before)]
            wait(waiting, 0.3)
            waiting.append(pool.submit(switch_off))
            assert wait(waiting, 0.3).done == set()
        for each in waiting:
            each.result()
    with office.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(UserSession)) == 0


@pytest.mark.server
def test_keys_that_are_stopped_together_are_no_trap_for_who_stops_them_with_a_new_password(office: Office) -> None:
    """Two that lock keys in two orders would wait for each other."""
    made = [office.generate("max", name=f"Key {n}")[0].id for n in range(2)]
    for key_id, called in zip(made, ("key_zz", "key_aa"), strict=True):
        office.set_key(key_id, public_id=called)
    token = link(office)
    assert token

    def stop() -> list[str]:
        actor = office.actor("ana")
        with office.database.transaction() as session:
            return keys.deactivate_those_active(session, actor, ["key_aa", "key_zz"])[0]

    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            session.get_one(ApiKey, office.row("key_aa").id, with_for_update=True)
            waiting: list[Future[Any]] = [pool.submit(stop)]
            wait(waiting, 0.3)
            waiting.append(pool.submit(reset, office, token, new(stop_keys=True)))
            assert wait(waiting, 0.3).done == set()
        assert len(waiting[0].result()) + waiting[1].result() == len(made)


def test_a_changed_password_ends_the_links_that_were_sent(office: Office) -> None:
    sent = link(office)
    assert sent
    change(office, sign_in(office)[0], new())
    with pytest.raises(NotFound):
        reset(office, sent, new(password="an attacker's choice", again="an attacker's choice"))


@pytest.mark.parametrize("what", ["sign in", "prove", "change"])
def test_the_old_password_is_good_for_nothing_once_there_is_a_new_one(office: Office, what: str) -> None:
    """Also where it was verified just before: no session begins after all have ended."""
    this, _ = sign_in(office)
    actor, sent = office.actor("max"), link(office)
    with office.database.transaction() as session:
        attempt = accounts.begin_attempt(session, actor, "max@acme.test")
    assert attempt.verify(OLD)
    assert sent
    reset(office, sent)
    with pytest.raises(Conflict), office.database.transaction() as session:
        if what == "sign in":
            accounts.sign_in(session, actor, attempt, "Firefox on Linux")
        elif what == "prove":
            accounts.prove(session, actor, attempt, this)
        else:
            passwords.change(session, actor, attempt, new(password=OLD, again=OLD), this)
    assert verify_password(account(office).password_hash, NEW)
    with office.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(UserSession)) == 0


def test_a_link_ends_after_its_half_hour(office: Office) -> None:
    token = link(office)
    assert token
    with pytest.raises(NotFound):
        reset(office, token, at=NOON + RESET_LIFE)


@pytest.mark.parametrize("email", ["nobody@acme.test", "nightly sync"])
def test_nobody_gets_no_mail(email: str, office: Office) -> None:
    assert link(office, email) is None


def test_somebody_who_was_deactivated_gets_no_mail_and_cannot_use_an_old_one(office: Office) -> None:
    token = link(office)
    assert token
    with office.database.transaction() as session:
        session.get_one(Account, account(office).id).deactivated_at = NOON
    assert link(office) is None
    with pytest.raises(NotFound):
        reset(office, token)


def test_somebody_who_left_gets_a_mail_only_while_they_are_invited_again(office: Office) -> None:
    """Without it, who forgot the password of an old account could never accept."""
    office.change("max", removed_at=NOON)
    assert link(office) is None
    with office.database.transaction() as session:
        invitations.invite(session, office.actor("ana"), email="max@acme.test", role="member", levels={}, base_url=URL)
    token = link(office)
    assert token
    reset(office, token)
    assert verify_password(account(office).password_hash, NEW)
    assert link(office, at=NOON + INVITATION_LIFE) is None


def test_an_account_gets_few_mails_an_hour(office: Office) -> None:
    sent = [link(office) is not None for _ in range(MAILS_AN_HOUR + 1)]
    assert sent == [True] * MAILS_AN_HOUR + [False]
    assert link(office, "rio@acme.test") is not None
    assert link(office, at=NOON + timedelta(minutes=61)) is not None


def test_the_audit_log_names_no_token(office: Office) -> None:
    token = link(office)
    assert token
    reset(office, token)
    told = office.told(target_id=account(office).public_id)
    assert [event.action for event in told] == ["password_reset_asked", "password_reset"]
    assert token not in repr([vars(event) for event in told])


# --- Sessions -------------------------------------------------------------------------------------------------------


def test_a_person_sees_their_own_live_sessions_this_one_first(office: Office) -> None:
    this, _ = sign_in(office)
    sign_in(office, at=NOON - timedelta(minutes=30))
    sign_in(office, at=NOON - timedelta(hours=3))
    sign_in(office, "rio")
    old, _ = sign_in(office, at=NOON - accounts.SESSION_LIFE)
    with office.database.transaction() as session:
        accounts.mark_seen(session, old, NOON, None)
    with office.database.reading() as session:
        found = sessions.list_for(session, this, NOON)
    assert [(one.is_this, one.client) for one in found] == [(True, "Firefox on Linux"), (False, "Firefox on Linux")]


def test_others_are_signed_out_and_strangers_are_not(office: Office) -> None:
    this, mine = sign_in(office)
    _, other = sign_in(office)
    rios, of_rio = sign_in(office, "rio")
    with office.database.transaction() as session:
        assert sessions.end(session, office.actor("max"), this, None) == 1
    assert [is_live(office, each) for each in (mine, other, of_rio)] == [True, False, True]
    with pytest.raises(NotFound), office.database.transaction() as session:
        sessions.end(session, office.actor("max"), this, rios.token_hash[:8].hex())
    assert is_live(office, of_rio)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/156.0.0.0 Safari/537.36", "Chrome on Windows"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/156.0 Safari/537.36 Edg/156.0", "Edge on Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Safari/604.1", "Safari on an iPhone"),
        ("curl/8.5.0", ""),
    ],
)
def test_a_device_is_named_as_far_as_plain_words_tell(header: str, words: str) -> None:
    assert sessions.label(header) == words
