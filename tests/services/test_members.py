"""People and API members: what a seat tells, and nobody hands out access beyond their own (T-29)."""

import pytest
from sqlalchemy import select

from portal.rules.access import AccessLevel, Role
from portal.rules.credentials import new_id
from portal.rules.errors import Forbidden, Invalid, PortalError
from portal.services import api_members, drafts, keys, members
from portal.services.actor import Actor, Means, operator
from portal.store.models import Access, Member
from tests.services.office import API_MEMBER, NOON, Office

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
    assert office.told(action="access_granted") == []  # it is told already


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


def test_the_apps_that_a_seat_is_told_of_are_those_that_it_reaches(office: Office) -> None:
    def told(name: str) -> list[str]:
        with office.database.reading() as session:
            return [app.slug for app in members.apps_of(session, office.seat(name))]

    assert told("ana") == ["accounts", "leads", "reservations", "tasks"]
    assert told("rio") == ["reservations", "tasks"]
    office.grant("rio", "operations", AccessLevel.NONE)
    assert told("rio") == []


def test_humans_are_sent_to_administrators_and_those_who_want_it_for_an_api_member_to_leads_first(
    office: Office,
) -> None:
    office.grant("ana", "sales", AccessLevel.MANAGE)  # written down before she became an administrator
    rio, (ana, lea) = office.seat("rio"), (office.member(name).name for name in ("ana", "lea"))
    with office.database.reading() as session:
        where = {each.slug: each.id for each in members.solutions_of(session, rio.workspace.id)}
        asked = members.granters(session, rio, where.values(), for_api_member=True)
        assert asked == {where["operations"]: [lea, ana], where["sales"]: [ana]}
        asked = members.granters(session, rio, where.values(), for_api_member=False)
        assert asked == {where["operations"]: [ana], where["sales"]: [ana]}


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
    zoe, rio = office.member("zoe"), office.member("rio")
    (operations,) = office.seat("rio").granted
    with office.database.transaction() as session:
        facts = {"name": zoe.name, "role": Role.MEMBER, "created_at": NOON}
        found = Member(public_id=new_id("mem"), workspace_id=rio.workspace_id, account_id=zoe.account_id, **facts)
        session.add(found)
        session.flush()
        session.add(Access(member_id=found.id, solution_id=operations, level="read"))
    actor = Actor(NOON, Means.SESSION, found.name, found.public_id, found.workspace_id, found.id)
    with office.database.transaction() as session:
        draft = drafts.Draft("In acme", "", found.public_id, "live", ["tasks:read"], "90d")
        _, plain = keys.create(session, actor, office.keyring, draft)
    caller = office.check(plain)
    assert (caller.workspace_slug, caller.reach.effective_texts) == ("acme", ("tasks:read",))
