"""People and API members: invitations work once, and nobody hands out access beyond their own (T-29, T-30)."""

from datetime import datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import select, text

from portal.demo import PASSWORD
from portal.rules.access import AccessLevel, Role
from portal.rules.credentials import token_digest, verify_password
from portal.rules.errors import Conflict, Forbidden, Invalid, KeyRefused, NotFound, PortalError
from portal.services import api_members, keys, members
from portal.services.actor import Actor, Means, operator
from portal.services.members import INVITATION_LIFE, NewAccount, OpenInvitation
from portal.store.models import Access, Account, Invitation, Member, Workspace
from tests.services.office import API_MEMBER, NOON, Office, at_once

IDA = "ida@acme.test"
LONG_ENOUGH = "twelve chars"


def visitor(at: datetime = NOON) -> Actor:
    return Actor(at, Means.SESSION, "visitor", request_id="req_1")


def invite(office: Office, email: str = IDA, role: Role = Role.MEMBER, workspace: str = "acme") -> str:
    with office.database.transaction() as session:
        found = session.scalars(select(Workspace).where(Workspace.slug == workspace)).one()
        return members.invite(session, Actor(NOON, Means.COMMAND, "operator"), found, email, role)


def look(office: Office, token: str, at: datetime = NOON) -> OpenInvitation:
    with office.database.reading() as session:
        return members.open_invitation(session, token, visitor(at))


def accept(
    office: Office, token: str, name: str = "Ida Berg", password: str = LONG_ENOUGH, at: datetime = NOON
) -> Member:
    with office.database.transaction() as session:
        known = members.open_invitation(session, token, visitor(at)).account
        who = known or NewAccount.choose(name, password, password)
        return members.accept_invitation(session, visitor(at), token, who)


# --- Invitations ----------------------------------------------------------------------------------------------------


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


def test_of_two_invitations_to_a_new_address_the_second_needs_the_account_that_the_first_made(office: Office) -> None:
    first, second = invite(office), invite(office, workspace="globex")
    assert look(office, second).account is None  # when the second page was opened
    accept(office, first)
    eve = NewAccount.choose("Eve", LONG_ENOUGH, LONG_ENOUGH)
    with pytest.raises(Conflict), office.database.transaction() as session:
        members.accept_invitation(session, visitor(), second, eve)
    assert accept(office, second).name == "Ida Berg"


def test_two_invitations_to_a_new_address_accepted_at_once_do_not_share_an_account(office: Office) -> None:
    tokens = [invite(office), invite(office, workspace="globex")]
    who = NewAccount.choose("Ida", LONG_ENOUGH, LONG_ENOUGH)

    def join(token: str) -> Member:
        with office.database.transaction() as session:
            return members.accept_invitation(session, visitor(), token, who)

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


# --- API members ----------------------------------------------------------------------------------------------------


def make(office: Office, who: str, name: str = "CRM bot", purpose: str = "Copies leads", **access: str) -> Member:
    actor = office.actor(who)
    levels = {slug: AccessLevel(level) for slug, level in access.items()}
    with office.database.transaction() as session:
        return api_members.create(session, actor, name=name, purpose=purpose, access=levels)


@pytest.mark.parametrize(
    ("who", "access", "refusal"),
    [
        ("lea", {"operations": "read"}, None),
        ("lea", {"operations": "full"}, None),
        ("lea", {"operations": "none"}, None),
        ("lea", {}, None),
        ("lea", {"operations": "manage"}, Forbidden),
        ("lea", {"sales": "read"}, Forbidden),  # she reads Sales herself, but does not manage it
        ("lea", {"operations": "read", "sales": "read"}, Forbidden),
        ("lea", {"support": "read"}, Forbidden),  # a solution of globex
        ("lea", {"payroll": "read"}, Forbidden),
        ("ana", {"operations": "full", "sales": "full"}, None),
        ("ana", {"operations": "manage"}, Forbidden),
        ("ana", {"support": "read"}, Forbidden),
        ("max", {"sales": "read"}, Forbidden),  # full, but no lead
        ("max", {}, Forbidden),
        ("rio", {}, Forbidden),
    ],
)
def test_leads_make_api_members_with_access_up_to_full_where_they_manage(
    office: Office, who: str, access: dict[str, str], refusal: type[PortalError] | None
) -> None:
    if refusal:
        with pytest.raises(refusal):
            make(office, who, **access)
        with office.database.reading() as session:
            assert session.scalars(select(Member.name).where(Member.account_id.is_(None))).all() == [API_MEMBER]
        return
    made = make(office, who, **access)
    maker = office.member(who)
    assert (made.is_api, made.role, made.manager_id, made.created_by_id) == (True, "member", maker.id, maker.id)
    seat = office.seat("CRM bot")
    with office.database.reading() as session:
        held = {shelf.solution.slug: shelf.level.value for shelf in members.shelves_for(session, seat)}
    assert held == {"operations": "none", "sales": "none"} | access
    (told,) = office.told(action="api_member_created", target_id=made.public_id)
    assert (told.actor_name, told.details) == (
        maker.name,
        {"access": access, "purpose": "Copies leads", "manager": maker.public_id},
    )


@pytest.mark.parametrize("name", ["", "ab", "x" * 61, "a\x00bc", "\u202eabc", "x" * 100_000])
def test_an_api_member_has_a_name_like_a_key(shared_office: Office, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        make(shared_office, "lea", name=name)
    assert list(refused.value.problems) == ["name"]


@pytest.mark.parametrize("purpose", ["x" * 141, "a\x00b"])
def test_a_purpose_that_cannot_be_kept_is_refused(shared_office: Office, purpose: str) -> None:
    with pytest.raises(Invalid) as refused:
        make(shared_office, "lea", purpose=purpose)
    assert list(refused.value.problems) == ["purpose"]


def test_an_api_member_has_no_login_and_can_be_no_admin(office: Office) -> None:
    with pytest.raises(Exception, match="api_member_is_no_admin"):
        office.change(API_MEMBER, role=Role.ADMIN)
    assert office.member(API_MEMBER).account_id is None


# --- Seats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "is_lead", "levels"),
    [
        ("ana", "admin", True, {"operations": "manage", "sales": "manage"}),
        ("lea", "member", True, {"operations": "manage", "sales": "read"}),
        ("max", "member", False, {"operations": "read", "sales": "full"}),
        ("rio", "member", False, {"operations": "read", "sales": "none"}),
        ("zoe", "admin", True, {"support": "manage"}),
        (API_MEMBER, "member", False, {"operations": "read", "sales": "none"}),
    ],
)
def test_a_seat_tells_what_somebody_may_do_in_each_solution(
    shared_office: Office, name: str, role: str, is_lead: bool, levels: dict[str, str]
) -> None:
    seat = shared_office.seat(name)
    with shared_office.database.reading() as session:
        shelves = members.shelves_for(session, seat)
    assert (seat.role, seat.is_lead) == (role, is_lead)
    assert {shelf.solution.slug: shelf.level.value for shelf in shelves} == levels


def test_a_seat_is_read_again_in_the_transaction_that_relies_on_it(office: Office) -> None:
    actor = office.actor("rio")
    office.change("rio", role=Role.ADMIN)
    with office.database.reading() as session:
        assert members.seat_of(session, actor).is_admin
    office.change("rio", removed_at=NOON)
    with pytest.raises(Forbidden), office.database.reading() as session:
        members.seat_of(session, actor)


def test_nobody_sits_in_a_workspace_that_is_not_theirs(office: Office) -> None:
    rio = office.member("rio")
    assert rio.account_id
    with office.database.reading() as session:
        assert members.find_seat(session, rio.account_id, "globex") is None
        assert members.find_seat(session, rio.account_id, "nowhere") is None
    globex = office.member("zoe").workspace_id
    crossed = Actor(NOON, Means.SESSION, "Rio", rio.public_id, globex, rio.id)
    with pytest.raises(Forbidden), office.database.reading() as session:
        members.seat_of(session, crossed)
    with pytest.raises(TypeError), office.database.reading() as session:
        members.seat_of(session, operator())


def test_a_member_with_access_in_two_workspaces_uses_each_in_its_own(office: Office) -> None:
    """zoe, admin of globex, is a plain member of acme: her acme key reaches nothing of globex."""
    joined = accept(office, invite(office, "zoe@globex.test"))
    (operations,) = office.seat("rio").granted
    with office.database.transaction() as session:
        found = session.scalars(select(Member).where(Member.id == joined.id)).one()
        session.add(Access(member_id=found.id, solution_id=operations, level="read"))
    actor = Actor(NOON, Means.SESSION, found.name, found.public_id, found.workspace_id, found.id)
    with office.database.transaction() as session:
        draft = keys.Draft("In acme", "", found.public_id, "live", ["tasks:read"], "90d")
        _, plain = keys.create(session, actor, office.keyring, draft)
    caller = office.check(plain)
    assert (caller.workspace_slug, caller.reach.effective_texts) == ("acme", ("tasks:read",))
