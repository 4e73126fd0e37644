"""Accepting an invitation: it works once, and brings nothing back that had ended (T-30). Sending: `test_people`."""

from datetime import datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import select, text

from portal.demo import PASSWORD
from portal.rules.access import Role
from portal.rules.credentials import token_digest, verify_password
from portal.rules.errors import Conflict, Invalid, KeyRefused, NotFound
from portal.services import invitations, members
from portal.services.actor import Actor, Means
from portal.services.invitations import INVITATION_LIFE, NewAccount, OpenInvitation
from portal.store.models import Account, Invitation, Member, Workspace
from tests.services.office import NOON, Office, at_once

IDA = "ida@acme.test"
LONG_ENOUGH = "twelve chars"


def visitor(at: datetime = NOON) -> Actor:
    return Actor(at, Means.SESSION, "visitor", request_id="req_1")


def invite(office: Office, email: str = IDA, role: Role = Role.MEMBER, workspace: str = "acme") -> str:
    with office.database.transaction() as session:
        found = session.scalars(select(Workspace).where(Workspace.slug == workspace)).one()
        return invitations.issue(session, Actor(NOON, Means.COMMAND, "operator"), found, email, role)


def look(office: Office, token: str, at: datetime = NOON) -> OpenInvitation:
    with office.database.reading() as session:
        return invitations.get_by_token(session, token, visitor(at))


def accept(
    office: Office, token: str, name: str = "Ida Berg", password: str = LONG_ENOUGH, at: datetime = NOON
) -> Member:
    with office.database.transaction() as session:
        known = invitations.get_by_token(session, token, visitor(at)).account
        who = known or NewAccount.choose(name, password, password)
        return invitations.accept(session, visitor(at), token, who)


@pytest.mark.parametrize("role", Role)
def test_an_invited_person_joins_once_with_an_account_of_their_own(office: Office, role: Role) -> None:
    token = invite(office, " IDA@Acme.test ", role)
    found = look(office, token)
    assert (found.invitation.email, found.account, found.invitation.workspace.slug) == (IDA, None, "acme")
    joined = accept(office, token, " Ida Berg ")
    assert (joined.name, joined.role) == ("Ida Berg", role)
    assert office.seat("ida").is_admin is (role is Role.ADMIN)
    with office.database.reading() as session:
        account = session.scalars(select(Account).where(Account.email == IDA)).one()
    assert verify_password(account.password_hash, LONG_ENOUGH)
    for again in (lambda: look(office, token), lambda: accept(office, token)):
        with pytest.raises(NotFound):
            again()


def test_an_invitation_is_kept_as_a_hash_only_and_told_of_without_its_token(office: Office) -> None:
    token = invite(office)
    with office.database.reading() as session:
        kept = session.scalars(select(Invitation)).one()
        everything = repr(session.execute(text("SELECT * FROM invitation")).all())
    assert kept.token_hash == token_digest(token)
    accept(office, token)
    told = office.told(action="member_invited") + office.told(action="member_joined")
    assert [event.target_name for event in told] == [IDA, "Ida Berg"]
    assert token not in everything + repr([vars(event) for event in told])


def test_an_invitation_ends_after_seven_days_at_the_very_instant(office: Office) -> None:
    token = invite(office)
    assert timedelta(days=7) == INVITATION_LIFE
    end = NOON + INVITATION_LIFE
    look(office, token, end - timedelta(microseconds=1))
    for again in (lambda: look(office, token, end), lambda: accept(office, token, at=end)):
        with pytest.raises(NotFound):
            again()


def test_an_invitation_that_is_accepted_many_times_at_once_counts_once(office: Office) -> None:
    token = invite(office)
    ends = at_once({str(n): lambda: accept(office, token) for n in range(6)})
    joined = [end for end in ends.values() if isinstance(end, Member)]
    assert len(joined) == 1
    assert {type(end) for end in ends.values()} - {Member} == {NotFound}


@pytest.mark.parametrize("token", ["", "x", "x" * 43, "x" * 100_000, "\x00", "' OR 1=1 --"])
def test_an_unknown_token_opens_nothing(shared_office: Office, token: str) -> None:
    invite(shared_office)
    with pytest.raises(NotFound):
        look(shared_office, token)


@pytest.mark.parametrize("email", ["", "ida", "ida@", "a b@acme.test", "ida@acme.test\x00", "x" * 300 + "@acme.test"])
def test_only_an_address_is_invited(shared_office: Office, email: str) -> None:
    with pytest.raises(Invalid) as refused:
        invite(shared_office, email)
    assert list(refused.value.problems) == ["email"]
    assert shared_office.told(action="member_invited") == []


@pytest.mark.parametrize(
    ("name", "password", "problems"),
    [
        ("", LONG_ENOUGH, ["name"]),
        ("I", LONG_ENOUGH, ["name"]),
        ("x" * 61, LONG_ENOUGH, ["name"]),
        ("Ida\x00Berg", LONG_ENOUGH, ["name"]),
        ("sk_live_" + "a" * 43, LONG_ENOUGH, ["name"]),
        ("Ida Berg", "", ["password"]),
        ("Ida Berg", "eleven char", ["password"]),
        ("Ida Berg", "x" * 257, ["password"]),
        ("", "", ["name", "password"]),
    ],
)
def test_answers_to_mend_leave_the_invitation_open(
    office: Office, name: str, password: str, problems: list[str]
) -> None:
    token = invite(office)
    with pytest.raises(Invalid) as refused:
        accept(office, token, name, password)
    assert list(refused.value.problems) == problems
    assert accept(office, token).name == "Ida Berg"


def test_somebody_with_an_account_joins_with_it_and_keeps_name_and_password(office: Office) -> None:
    token = invite(office, "zoe@globex.test")
    found = look(office, token)
    assert found.account is not None
    joined = accept(office, token, name="Somebody Else", password="another password")
    assert (joined.name, joined.account_id, joined.role) == ("Zoe Lindqvist", found.account.id, "member")
    with office.database.reading() as session:
        mine = members.workspaces_of(session, found.account.id)
        account = session.scalars(select(Account).where(Account.email == "zoe@globex.test")).one()
        seat = members.find_seat(session, found.account.id, "acme")
    assert [member.workspace.slug for member in mine] == ["acme", "globex"]
    assert verify_password(account.password_hash, PASSWORD)
    assert seat
    assert not seat.is_admin
    assert seat.granted == {}  # what she is in globex means nothing here


def test_nobody_joins_with_an_account_that_is_not_of_the_invited_address(office: Office) -> None:
    token = invite(office, "zoe@globex.test")
    with pytest.raises(Conflict), office.database.transaction() as session:
        rio = session.scalars(select(Account).where(Account.email == "rio@acme.test")).one()
        invitations.accept(session, visitor(), token, rio)


def test_an_operators_invitation_ends_those_to_the_same_address_and_workspace(office: Office) -> None:
    here, there, other = invite(office), invite(office, workspace="globex"), invite(office, "eva@acme.test")
    with office.database.transaction() as session:
        acme = session.scalars(select(Workspace).where(Workspace.slug == "acme")).one()
        invitations.invite_admin(session, Actor(NOON, Means.COMMAND, "operator"), acme, IDA)
    with pytest.raises(NotFound):
        look(office, here)
    assert look(office, there) and look(office, other)


def test_of_two_invitations_to_a_new_address_the_second_needs_the_account_that_the_first_made(office: Office) -> None:
    first, second = invite(office), invite(office, workspace="globex")
    assert look(office, second).account is None  # when the second page was opened
    accept(office, first)
    eve = NewAccount.choose("Eve", LONG_ENOUGH, LONG_ENOUGH)
    with pytest.raises(Conflict), office.database.transaction() as session:
        invitations.accept(session, visitor(), second, eve)
    assert accept(office, second).name == "Ida Berg"


def test_two_invitations_to_a_new_address_accepted_at_once_do_not_share_an_account(office: Office) -> None:
    tokens = [invite(office), invite(office, workspace="globex")]
    who = NewAccount.choose("Ida", LONG_ENOUGH, LONG_ENOUGH)

    def join(token: str) -> Member:
        with office.database.transaction() as session:
            return invitations.accept(session, visitor(), token, who)

    ends = at_once({token: partial(join, token) for token in tokens})
    assert {type(end) for end in ends.values()} == {Member, Conflict}


def test_inviting_somebody_who_is_a_member_changes_nothing_about_them(office: Office) -> None:
    before = office.member("rio")
    joined = accept(office, invite(office, "rio@acme.test", Role.ADMIN))
    after = office.member("rio")
    assert (joined.id, after.role, after.public_id) == (before.id, "member", before.public_id)


@pytest.mark.parametrize("left", ["deactivated_at", "removed_at"])
def test_somebody_who_had_left_comes_back_without_their_old_keys(office: Office, left: str) -> None:
    _, plain = office.generate("rio")
    office.change("rio", **{left: NOON})
    with pytest.raises(KeyRefused):
        office.check(plain)
    accept(office, invite(office, "rio@acme.test"))
    assert office.member("rio").is_active
    with pytest.raises(KeyRefused):  # T-30: reactivating the member does not reactivate keys
        office.check(plain)


def test_somebody_who_had_left_comes_back_as_what_they_are_invited_to_be(office: Office) -> None:
    office.change("ana", removed_at=NOON)
    accept(office, invite(office, "ana@acme.test", Role.MEMBER))
    assert not office.seat("ana").is_admin
    office.change("lea", removed_at=NOON)
    accept(office, invite(office, "lea@acme.test"))
    assert office.seat("lea").granted == {}  # not what she had once, in other times
