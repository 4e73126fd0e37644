"""API members: changing, stopping, deleting them; who manages them; what their keys lose (ux 6.8, T-29, T-30, T-60)."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select

from portal.rules.access import AccessLevel
from portal.rules.errors import Conflict, Forbidden, Invalid, KeyRefused, NeedsProof, NotFound, PortalError
from portal.services import api_members, audit, keys, members, offboarding, people, rotation
from portal.services.api_members import Page
from portal.services.drafts import Draft
from portal.store.models import Access, ApiKey, Member
from tests.services.office import API_MEMBER, NOON, Office

NONE, READ, FULL, MANAGE = AccessLevel


def do(office: Office, who: str, what: Any, *given: Any, **named: Any) -> Any:
    actor = office.actor(who)
    with audit.transaction(office.database, actor) as session:
        return what(session, actor, *given, **named)


def bot(office: Office) -> str:
    return office.member(API_MEMBER).public_id


def give(office: Office, who: str, *, was: Any = None, is_proved: Any = True, **levels: AccessLevel) -> Any:
    what = api_members.set_access
    return do(office, who, what, office.keyring, bot(office), levels, was=was, is_proved=is_proved)


def level(office: Office, solution: str) -> AccessLevel:
    with office.database.reading() as session:
        return members.levels_of(session, office.member(API_MEMBER))[solution]


def listed(office: Office, who: str, state: str = "", number: int = 1, size: int = 25) -> Page:
    with office.database.reading() as session:
        actor, seat = office.actor(who), office.seat(who)
        return api_members.list_for(session, actor, seat, state=state, number=number, size=size)


# --- Access ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "levels", "refusal"),
    [
        ("lea", {"operations": FULL}, None),
        ("lea", {"operations": NONE}, None),
        ("lea", {"operations": MANAGE}, Forbidden),
        ("lea", {"sales": READ}, Forbidden),
        ("lea", {"sales": NONE}, Forbidden),  # a field that no form of hers has
        ("lea", {"operations": FULL, "sales": READ}, Forbidden),
        ("lea", {"support": READ}, Forbidden),
        ("ana", {"operations": NONE, "sales": FULL}, None),
        ("ana", {"sales": MANAGE}, Forbidden),
        ("max", {"operations": READ}, Forbidden),
        ("zoe", {"operations": READ}, NotFound),
    ],
)
def test_access_is_handed_out_up_to_full_where_one_manages(
    office: Office, who: str, levels: dict[str, AccessLevel], refusal: type[PortalError] | None
) -> None:
    before = {solution: level(office, solution) for solution in ("operations", "sales")}
    if refusal:
        with pytest.raises(refusal):
            give(office, who, **levels)
        assert {solution: level(office, solution) for solution in before} == before
        (told,) = office.told(action="access_granted", outcome="refused")
        assert told.target_id == bot(office)
        return
    give(office, who, **levels)
    assert {solution: level(office, solution) for solution in before} == before | levels
    (told,) = office.told(action="access_granted", outcome="done")
    changed = {solution for solution in levels if before[solution] is not levels[solution]}
    assert told.details["before"] == {solution: before[solution].value for solution in changed}
    assert told.details["after"] == {solution: levels[solution].value for solution in changed}


def test_the_refusal_names_the_solution(office: Office) -> None:
    with pytest.raises(Forbidden, match=r"^You cannot hand out access in Sales\. Nothing was saved\.$"):
        give(office, "lea", sales=READ)


def test_whoever_gave_access_is_noted_with_it(office: Office) -> None:
    give(office, "ana", sales=READ)
    with office.database.reading() as session:
        assert members.givers_of(session, office.member(API_MEMBER))["sales"] == "Ana Ruiz"
        row = session.scalars(select(Access).where(Access.granted_by_id == office.member("ana").id)).one()
    assert row.granted_at == NOON


def test_more_access_needs_a_fresh_proof_and_less_does_not(office: Office) -> None:
    with pytest.raises(NeedsProof):
        give(office, "lea", is_proved=False, operations=FULL)
    assert level(office, "operations") is READ
    give(office, "lea", is_proved=False, operations=NONE)
    assert level(office, "operations") is NONE
    with pytest.raises(NeedsProof):
        give(office, "lea", is_proved=False, operations=READ)


def test_a_stale_matrix_saves_nothing(office: Office) -> None:
    shown = {"operations": READ, "sales": NONE}
    give(office, "ana", was=api_members.version_of(shown), sales=READ)
    with pytest.raises(Conflict):
        give(office, "lea", was=api_members.version_of(shown), operations=FULL)
    assert level(office, "operations") is READ


def test_lowering_tells_which_keys_lose_what_and_how_much_it_was_used(office: Office) -> None:
    give(office, "lea", operations=FULL)
    busy, plain = office.generate("lea", owner=API_MEMBER, scopes=["tasks:read", "tasks:write"], name="Busy")
    idle, _ = office.generate("lea", owner=API_MEMBER, scopes=["reservations:write"], name="Idle")
    office.generate("lea", owner=API_MEMBER, scopes=["tasks:read"], name="Reader")
    off, _ = office.generate("lea", owner=API_MEMBER, scopes=["tasks:write"], name="Off")
    office.act("lea", keys.deactivate, off.id)
    office.use(busy.id, NOON, scope="tasks:write", times=7)
    saved = give(office, "lea", operations=READ)
    found = {loss.key.id: [(scope.text, scope.count) for scope in loss.scopes] for loss in saved.losses}
    assert found == {busy.id: [("tasks:write", 7)], idle.id: [("reservations:write", 0)]}
    assert office.check(plain).reach.effective_texts == ("tasks:read",)
    assert give(office, "lea", operations=FULL).losses == []  # a promotion gives back at most what was there
    assert office.check(plain).reach.effective_texts == ("tasks:read", "tasks:write")


# --- Name and purpose -----------------------------------------------------------------------------------------------


def test_name_and_purpose_change_and_a_stale_form_does_not(office: Office) -> None:
    was = (API_MEMBER, "Copies tasks to the issue tracker every night")
    do(office, "lea", api_members.edit, bot(office), name=" Tracker ", purpose="", was=was)
    (told,) = office.told(action="member_edited")
    assert told.details["after"] == {"name": "Tracker", "purpose": ""}
    one = office.member("Tracker").public_id
    with pytest.raises(Conflict):
        do(office, "ana", api_members.edit, one, name="Other", purpose="", was=was)
    assert office.member("Tracker").purpose == ""


@pytest.mark.parametrize("text", ["sk_live_" + "x" * 43 + "_abcdef"])
def test_a_key_is_no_name_and_no_purpose(office: Office, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        do(office, "lea", api_members.create, name=text, purpose=text, access={})
    assert list(refused.value.problems) == ["name", "purpose"]


def test_a_name_is_that_of_one_api_member_until_it_is_deleted(office: Office) -> None:
    def make(who: str, name: str) -> Member:
        made: Member = do(office, who, api_members.create, name=name, purpose="", access={})
        return made

    twin, other = make("lea", "Straße"), make("ana", "Other")
    do(office, "lea", api_members.deactivate, twin.public_id)
    rename = {"purpose": "", "was": None}
    with pytest.raises(Invalid) as refused:
        make("ana", " STRASSE ")
    assert "called “STRASSE”. Choose a different name" in refused.value.problems["name"]  # not how that one writes it
    for alike in ("strasse", "Stra\u200bße", "ＳＴＲＡＳＳＥ", "Stra\u3164sse", "S\ufe0ftrasse"):
        with pytest.raises(Invalid):
            do(office, "ana", api_members.edit, other.public_id, name=alike, **rename)
    do(office, "lea", api_members.edit, twin.public_id, name="STRASSE", **rename)  # its own
    do(office, "lea", api_members.delete, twin.public_id, typed="")
    do(office, "ana", api_members.edit, other.public_id, name="Straße", **rename)
    make("zoe", "Straße")  # of another workspace


def test_a_workspace_has_two_hundred_api_members_at_most(office: Office) -> None:
    lea = office.member("lea")
    here = {"workspace_id": lea.workspace_id, "role": "member", "purpose": "", "created_at": NOON}
    rows = [{"public_id": f"mem_x{n}", "name": f"Bot {n}", **here} for n in range(199)]
    with office.database.transaction() as session:
        session.execute(insert(Member), rows)
    with pytest.raises(Conflict):
        do(office, "lea", api_members.create, name="One more", purpose="", access={})
    do(office, "lea", api_members.delete, bot(office), typed="")
    do(office, "lea", api_members.create, name="One more", purpose="", access={})


# --- Stopping and starting ------------------------------------------------------------------------------------------


def test_a_deactivated_api_member_stops_with_its_keys_which_come_back_one_by_one(office: Office) -> None:
    key, plain = office.generate("lea", owner=API_MEMBER)
    do(office, "lea", api_members.deactivate, bot(office))
    with pytest.raises(KeyRefused):
        office.check(plain)
    with pytest.raises(Conflict):
        do(office, "lea", api_members.deactivate, bot(office))
    with pytest.raises(Invalid):
        office.generate("lea", owner=API_MEMBER, name="Another")
    _, count = do(office, "lea", api_members.reactivate, bot(office))
    assert count == 1
    with pytest.raises(KeyRefused):  # T-30
        office.check(plain)
    office.act("lea", keys.reactivate, key.id)
    office.check(plain)
    with pytest.raises(Conflict):
        do(office, "lea", api_members.reactivate, bot(office))
    told = [event.action for event in office.told(outcome="done")]
    assert told[1:] == ["member_deactivated", "member_reactivated", "key_deactivated", "key_reactivated"]


def test_deleting_asks_for_the_name_while_there_are_active_keys_and_revokes_them(office: Office) -> None:
    key, plain = office.generate("lea", owner=API_MEMBER)
    before, _ = office.generate("lea", owner=API_MEMBER, name="Deleted before")
    office.act("lea", keys.delete, before.id, at=NOON - timedelta(hours=1), typed="")
    for typed in ("", "Nightly"):
        with pytest.raises(Invalid):
            do(office, "lea", api_members.delete, bot(office), typed=typed)
    office.check(plain)
    do(office, "lea", api_members.delete, bot(office), typed=" NIGHTLY sync ")
    with pytest.raises(KeyRefused):
        office.check(plain)
    row = office.row(key.id)
    assert (row.revoked_at, row.revoked_by_id) == (NOON, office.member("lea").id)
    assert office.row(before.id).revoked_at == NOON - timedelta(hours=1)
    _, told = office.told(action="key_deleted")
    assert (told.target_id, told.details["reason"]) == (key.id, "its API member was deleted")
    for gone in (api_members.deactivate, api_members.reactivate):
        with pytest.raises(NotFound):
            do(office, "ana", gone, bot(office))
    assert [row.member.name for row in listed(office, "ana").rows] == []


def test_one_without_active_keys_is_deleted_without_its_name(office: Office) -> None:
    key, _ = office.generate("lea", owner=API_MEMBER)
    office.act("lea", keys.deactivate, key.id)
    do(office, "lea", api_members.delete, bot(office), typed="")
    assert office.row(key.id).revoked_at == NOON


def test_one_that_is_deactivated_is_deleted_without_its_name(office: Office) -> None:
    key, _ = office.generate("lea", owner=API_MEMBER)
    do(office, "lea", api_members.deactivate, bot(office))
    do(office, "lea", api_members.delete, bot(office), typed="")
    assert office.row(key.id).revoked_at == NOON


@pytest.mark.parametrize("who", ["max", "rio", "zoe"])
@pytest.mark.parametrize("what", [api_members.deactivate, api_members.reactivate])
def test_others_change_no_api_member(shared_office: Office, who: str, what: Any) -> None:
    with pytest.raises(Forbidden if who != "zoe" else NotFound):
        do(shared_office, who, what, bot(shared_office))


def test_a_person_is_no_api_member(shared_office: Office) -> None:
    with pytest.raises(NotFound):
        do(shared_office, "ana", api_members.deactivate, shared_office.member("rio").public_id)


# --- Managers -------------------------------------------------------------------------------------------------------


def test_another_lead_neither_sees_nor_changes_what_they_do_not_manage(office: Office) -> None:
    office.grant("max", "operations", MANAGE)
    assert listed(office, "max").total == 0
    with pytest.raises(NotFound):
        give(office, "max", operations=NONE)
    do(office, "ana", api_members.set_manager, bot(office), office.member("max").public_id)
    assert listed(office, "max").total == 1
    give(office, "max", operations=NONE)
    (told,) = office.told(action="manager_changed")
    assert (told.details["before_name"], told.details["after_name"]) == ("Lea Okoro", "Max Brandt")


@pytest.mark.parametrize(("who", "to", "refusal"), [("lea", "ana", Forbidden), ("ana", "rio", Invalid)])
def test_only_admins_choose_a_manager_and_only_a_lead(
    shared_office: Office, who: str, to: str, refusal: type[PortalError]
) -> None:
    with pytest.raises(refusal):
        do(shared_office, who, api_members.set_manager, bot(shared_office), shared_office.member(to).public_id)


@pytest.mark.parametrize("then", ["deactivate", "remove"])
def test_when_a_lead_goes_their_api_members_go_on_and_are_shown_to_the_admins(office: Office, then: str) -> None:
    _, plain = office.generate("lea", owner=API_MEMBER)
    assert listed(office, "ana").unmanaged == 0
    do(office, "ana", people.leave, office.member("lea").public_id, then)
    office.check(plain)
    assert listed(office, "ana").unmanaged == 1
    (row,) = listed(office, "ana", "unmanaged").rows
    assert (row.member.name, row.manager_can) == (API_MEMBER, False)
    do(office, "ana", api_members.set_manager, bot(office), office.member("ana").public_id)
    assert listed(office, "ana").unmanaged == 0


def test_a_lead_who_lost_manage_manages_no_more(office: Office) -> None:
    office.grant("lea", "operations", FULL)
    with pytest.raises(Forbidden):
        give(office, "lea", operations=NONE)
    assert listed(office, "ana").unmanaged == 1


# --- The list -------------------------------------------------------------------------------------------------------


def test_the_list_counts_active_keys_and_filters(office: Office) -> None:
    make = api_members.create
    for name in ("Never a key", "Long quiet", "Stopped"):
        do(office, "lea", make, name=name, purpose="", access={"operations": READ})
    key, _ = office.generate("lea", owner=API_MEMBER)
    office.use(key.id, NOON)
    quiet, _ = office.generate("lea", owner="Long quiet")
    office.set_key(quiet.id, last_used_at=NOON.replace(year=2025))
    off, _ = office.generate("lea", owner="Stopped")
    office.act("lea", keys.deactivate, off.id)
    do(office, "lea", api_members.deactivate, office.member("Stopped").public_id)
    rows = {row.member.name: (row.active_keys, row.last_used_at is not None) for row in listed(office, "lea").rows}
    assert rows == {
        "Long quiet": (1, True),
        "Never a key": (0, False),
        API_MEMBER: (1, True),
        "Stopped": (0, False),
    }

    def names(state: str) -> list[str]:
        return [row.member.name for row in listed(office, "lea", state).rows]

    assert names("no-keys") == ["Never a key", "Stopped"]
    assert names("unused") == ["Long quiet"]
    assert names("deactivated") == ["Stopped"]
    assert [row.member.name for row in listed(office, "lea", number=2, size=3).rows] == ["Stopped"]
    assert listed(office, "lea", number=9, size=3).number == 2


# --- Moving a key to an API member ----------------------------------------------------------------------------------


def move(office: Office, who: str, key_id: str, to: str, *scopes: str) -> Any:
    draft = Draft("Moved key", "", to, "live", list(scopes) or ["tasks:read"], "90d", replaces=key_id, overlap="24h")
    return do(office, who, rotation.generate, office.keyring, draft)


def test_an_api_member_takes_over_from_a_persons_key_with_an_overlap(office: Office) -> None:
    old, old_plain = office.generate("rio")
    new, plain = move(office, "ana", old.id, bot(office))
    assert (new.owner.name, new.predecessor_id) == (API_MEMBER, old.id)
    for working in (old_plain, plain):
        assert office.check(working).reach.effective_texts == ("tasks:read",)
    with pytest.raises(KeyRefused):
        office.check(old_plain, NOON.replace(day=13))
    mine = office.page("rio")  # its owner sees the old key, and nothing of the new one
    assert [(key.id, key.successor_id, key.is_retiring) for key in mine.rows] == [(old.id, None, True)]
    assert [key.id for key in office.page("lea", owner="api").rows] == [new.id]
    assert office.view("lea", new.id).predecessor_id is None
    with pytest.raises(Conflict):
        move(office, "ana", old.id, bot(office))


def test_a_lead_moves_their_own_key_and_nobody_elses(office: Office) -> None:
    own, _ = office.generate("lea")
    new, _ = move(office, "lea", own.id, bot(office))
    assert office.view("lea", own.id).successor_id == new.id
    others, _ = office.generate("rio", name="Of rio")
    with pytest.raises(NotFound):
        move(office, "lea", others.id, bot(office))


@pytest.mark.parametrize(
    ("who", "to", "scope", "refusal"),
    [
        ("ana", "ana", "tasks:read", Forbidden),  # to herself: that would be another human's key rotated
        ("ana", "max", "tasks:read", Forbidden),
        ("ana", API_MEMBER, "tasks:write", Invalid),  # more than it may hold
        ("max", API_MEMBER, "tasks:read", NotFound),
        ("rio", API_MEMBER, "tasks:read", Invalid),  # his own key, but not his API member
    ],
)
def test_a_key_is_moved_only_to_an_api_member_that_one_manages_and_within_its_access(
    office: Office, who: str, to: str, scope: str, refusal: type[PortalError]
) -> None:
    old, plain = office.generate("rio")
    with pytest.raises(refusal):
        move(office, who, old.id, office.member(to).public_id, scope)
    assert office.row(old.id).retires_at is None
    assert office.check(plain).reach.effective_texts == ("tasks:read",)


def test_moving_does_not_pass_the_limit_of_the_new_owner(office: Office) -> None:
    for n in range(keys.KEYS_PER_MEMBER):
        office.generate("lea", owner=API_MEMBER, name=f"Key {n}")
    old, _ = office.generate("rio")
    with pytest.raises(Conflict):
        move(office, "ana", old.id, bot(office))
    with office.database.reading() as session:
        assert session.scalars(select(ApiKey).where(ApiKey.replaces_id.is_not(None))).all() == []


def test_what_is_at_risk_is_told_key_by_key(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:write", "tasks:read"])
    office.use(key.id, NOON, scope="leads:write", times=3)
    office.use(key.id, NOON, scope="leads:write", refused="access_withdrawn")  # which nobody would miss
    office.use(key.id, NOON - timedelta(days=31), scope="leads:write")  # nor what was long ago
    with office.database.reading() as session:
        seat, actor, member = office.seat("ana"), office.actor("ana"), office.member("max")
        (risk,) = offboarding.keys_at_risk(session, actor, seat, office.keyring, member)
    assert (risk.key.id, risk.today) == (key.id, 3)
    assert [(scope.text, scope.solution, scope.count) for scope in risk.scopes] == [
        ("tasks:read", "operations", 0),
        ("leads:write", "sales", 3),
    ]
    assert [scope.text for scope in risk.lost_at({"sales": READ, "operations": READ})] == ["leads:write"]
    office.grant("max", "sales", READ)
    with office.database.reading() as session:
        (risk,) = offboarding.keys_at_risk(session, actor, seat, office.keyring, member)
    assert [scope.text for scope in risk.scopes] == ["tasks:read"]  # what is lost already is at no risk
