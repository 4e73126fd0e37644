"""Generating keys: who for, with what, how many; and who sees which (T-21, T-22, T-27 to T-29, T-60)."""

from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select

from portal.rules.access import AccessLevel, Environment, Scope
from portal.rules.errors import AlreadyShown, Conflict, Forbidden, Invalid, NotFound, PortalError
from portal.services import drafts, keys
from portal.services.keys import KEYS_PER_MEMBER
from portal.store.models import ApiKey, KeyScope, KeyState
from tests.services.office import API_MEMBER, NOON, Office, at_once

EVERYTHING = [
    f"{app}:{action}" for app in ("leads", "accounts", "tasks", "reservations") for action in ("read", "write")
]


def count(office: Office) -> int:
    with office.database.reading() as session:
        return session.scalar(select(func.count()).select_from(ApiKey)) or 0


def problems(office: Office, creator: str, **answers: Any) -> dict[str, str]:
    """Send a form that must be refused; give what is to be mended. Nothing may have been stored."""
    before = count(office)
    with pytest.raises(Invalid) as refused:
        office.generate(creator, **answers)
    assert count(office) == before
    return refused.value.problems


# --- What a key is made of ------------------------------------------------------------------------------------------


def test_a_generated_key_is_what_was_asked_for_and_works_at_once(office: Office) -> None:
    key, plain = office.generate(
        "max", name="  CRM sync ", note="GitHub Actions", scopes=["leads:write", "leads:read"], expires="30d"
    )
    assert (key.name, key.note, key.environment, key.state) == ("CRM sync", "GitHub Actions", "live", KeyState.ACTIVE)
    assert key.expires_at == NOON + timedelta(days=30)
    assert key.hint == f"sk_live_…{plain.last_four}"
    assert (key.owner.name, key.owner.kind, key.created_by) == ("Max Brandt", "me", "Max Brandt")
    caller = office.check(plain)
    assert caller.key_id == key.id
    assert caller.reach.texts == caller.reach.effective_texts == ("leads:read", "leads:write")


def test_nothing_that_is_stored_holds_the_text_of_a_key_or_the_pepper(office: Office) -> None:
    key, plain = office.generate("rio")
    row = office.row(key.id)
    assert row.digest == office.keyring.peppers[0].digest(plain)
    stored = repr([{name: getattr(row, name) for name in row.__mapper__.columns.keys()} for row in (row,)])  # noqa: SIM118
    stored += repr([vars(event) for event in office.told()])
    assert plain.reveal()[8:51] not in stored
    assert office.keyring.peppers[0].secret.decode() not in stored


def test_a_generated_key_is_told_of_with_its_facts_but_no_secret(office: Office) -> None:
    key, _ = office.generate("lea", owner=API_MEMBER)
    (told,) = office.told(action="key_generated")
    assert (told.outcome, told.target_id, told.actor_name, told.means) == ("done", key.id, "Lea Okoro", "session")
    assert (told.address, told.request_id, told.at) == ("203.0.113.7", "req_1", NOON)
    assert told.workspace_id == office.member("lea").workspace_id
    assert told.details == {
        "owner": office.member(API_MEMBER).public_id,
        "owner_name": API_MEMBER,
        "environment": "live",
        "scopes": ["tasks:read"],
        "expires_at": (NOON + timedelta(days=90)).isoformat(),
        "name": "Nightly export",
        "note": "",
        "replaces": None,
        "self_rotate": False,
        "rate_per_minute": None,
        "rate_per_second": None,
    }


# --- Scopes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "named"),
    [
        ([], "at least one"),
        (["payroll:read"], "payroll:read"),
        (["tickets:read"], "tickets:read"),  # an app of globex
        (["*"], "*"),
        (["*:read"], "*:read"),
        (["tasks:*"], "tasks:*"),
        (["Tasks:read"], "Tasks:read"),
        (["tasks:READ"], "tasks:READ"),
        ([" tasks:read"], "tasks:read"),
        (["tasks:read "], "tasks:read"),
        (["tasks:read\x00"], "…"),
        (["tasks:admin"], "tasks:admin"),
        (["tasks:read", ""], "“…”"),
        (["tasks:read", "tasks:read"], "tasks:read"),
        (["tasks:read", "oops", "*"], "oops"),
        (["tasks:read"] * 101, "at most 100"),
        ([f"app{n}:read" for n in range(101)], "at most 100"),
        (["x" * 100_000], "x" * 60),
    ],
)
def test_odd_scopes_are_refused_and_the_first_is_named(shared_office: Office, scopes: list[str], named: str) -> None:
    found = problems(shared_office, "ana", scopes=scopes)
    assert list(found) == ["scopes"]
    assert named in found["scopes"]
    assert len(found["scopes"]) < 200


@pytest.mark.parametrize(
    ("creator", "scopes", "beyond"),
    [
        ("rio", ["tasks:write"], "tasks:write"),
        ("rio", ["leads:read"], "leads:read"),
        ("rio", ["tasks:read", "leads:read"], "leads:read"),
        ("max", ["leads:write", "reservations:write"], "reservations:write"),
        ("lea", ["tasks:write", "accounts:write"], "accounts:write"),
        ("rio", EVERYTHING, "accounts:read"),
    ],
)
def test_one_scope_beyond_what_one_may_hold_refuses_the_whole_key_and_is_told_of(
    shared_office: Office, creator: str, scopes: list[str], beyond: str
) -> None:
    found = problems(shared_office, creator, scopes=scopes, name="Too much")
    assert list(found) == ["scopes"]
    assert beyond in found["scopes"] or len(scopes) > 2
    (told,) = shared_office.told(action="key_generated")
    assert (told.outcome, told.target_name, told.actor_id) == (
        "refused",
        "Too much",
        shared_office.member(creator).public_id,
    )
    assert beyond in told.details["scopes"]


@pytest.mark.parametrize("creator", ["ana", "lea", "max", "rio"])
def test_each_may_put_on_a_key_all_that_they_may_hold(office: Office, creator: str) -> None:
    actor = office.actor(creator)
    with office.database.reading() as session:
        grantable = drafts.plan(session, actor, office.draft(creator)).grantable
    held = {"ana": EVERYTHING, "lea": EVERYTHING[4:] + ["leads:read", "accounts:read"]}  # noqa: RUF005
    held |= {"max": [*EVERYTHING[:4], "tasks:read", "reservations:read"], "rio": ["tasks:read", "reservations:read"]}
    assert {str(scope) for scope in grantable} == set(held[creator])
    _, plain = office.generate(creator, scopes=sorted(map(str, grantable)))
    assert office.check(plain).reach.effective == grantable


def test_a_slip_of_the_pen_is_no_event(shared_office: Office) -> None:
    problems(shared_office, "rio", name="x", scopes=[], expires="tomorrow", environment="prod")
    assert shared_office.told(action="key_generated") == []


def test_access_that_was_lowered_since_the_form_was_opened_counts(office: Office) -> None:
    """The form was rendered before; what counts is what holds inside the creating transaction."""
    office.grant("max", "sales", AccessLevel.READ)
    assert "leads:write" in problems(office, "max", scopes=["leads:read", "leads:write"])["scopes"]
    office.change("max", removed_at=NOON)
    with pytest.raises(Forbidden):
        office.generate("max")


# --- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "ab"}, "name"),
        ({"name": " ab "}, "name"),
        ({"name": "x" * 61}, "name"),
        ({"name": "x" * 100_000}, "name"),
        ({"name": "a\x00bc"}, "name"),
        ({"name": "abc\u202edef"}, "name"),
        ({"name": "\u200b\u200b\u200b"}, "name"),
        ({"name": "ab\ud800c"}, "name"),
        ({"name": "e\u0301" * 2}, "name"),  # two characters once composed
        ({"note": "x" * 141}, "note"),
        ({"note": "line\nline"}, "note"),
        ({"environment": ""}, "environment"),
        ({"environment": "LIVE"}, "environment"),
        ({"environment": "prod\x00"}, "environment"),
        ({"expires": ""}, "expires"),
        ({"expires": "31d"}, "expires"),
        ({"expires": "-1"}, "expires"),
        ({"expires": "9" * 5_000}, "expires"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_on_its_field(
    shared_office: Office, answers: dict[str, str], field: str
) -> None:
    assert list(problems(shared_office, "rio", **answers)) == [field]


@pytest.mark.parametrize("field", ["name", "note"])
@pytest.mark.parametrize("length", [30, 58])
def test_a_key_that_is_pasted_where_it_does_not_belong_is_neither_kept_nor_repeated(
    shared_office: Office, field: str, length: int
) -> None:
    pasted = shared_office.keyring.format.mint(Environment.LIVE).reveal()[:length]
    found = problems(shared_office, "rio", **{field: f"x {pasted}", "scopes": ["leads:read", pasted]})
    assert list(found) == [field, "scopes"]
    (told,) = shared_office.told(action="key_generated")
    assert pasted[8:20] not in repr(found) + repr(vars(told))


def test_all_answers_to_mend_are_told_at_once_in_the_forms_order(shared_office: Office) -> None:
    found = problems(shared_office, "rio", name="", note="x" * 200, environment="", scopes=[], expires="")
    assert list(found) == ["name", "note", "environment", "scopes", "expires"]


@pytest.mark.parametrize("name", ["abc", "x" * 60, "ﬃ" * 60, "ΐ" * 60, "🔑🔑🔑", "<b>bold</b>", "'; DROP TABLE x; --"])
def test_any_name_that_people_would_give_is_kept_as_it_is(office: Office, name: str) -> None:
    key, _ = office.generate("rio", name=name, note=name)
    assert (key.name, key.note) == (name, name)


@pytest.mark.parametrize("other", ["nightly EXPORT", "  Nightly export  ", "NIGHTLY EXPORT"])
def test_a_name_is_given_once_among_an_owners_keys(office: Office, other: str) -> None:
    office.generate("rio")
    assert list(problems(office, "rio", name=other)) == ["name"]


def test_names_that_differ_in_composition_only_are_one(office: Office) -> None:
    office.generate("rio", name="Café tasks")
    assert list(problems(office, "rio", name="Cafe\u0301 TASKS")) == ["name"]


def test_a_taken_name_is_free_for_others_and_after_deletion_but_not_after_expiry(office: Office) -> None:
    key, _ = office.generate("rio", expires="30d")
    office.generate("max")
    office.generate("lea", owner=API_MEMBER)
    office.act("rio", keys.deactivate, key.id)
    later = NOON + timedelta(days=31)
    with pytest.raises(Invalid):
        office.generate("rio", at=later)
    office.act("rio", keys.delete, key.id, typed="", at=later)
    office.generate("rio", at=later)


def test_of_two_equal_names_at_the_same_moment_one_is_refused_on_its_field(office: Office) -> None:
    calls = {str(n): lambda: office.generate("rio", name="Nightly export") for n in range(6)}
    ends = at_once(calls)
    refused = [end for end in ends.values() if isinstance(end, Exception)]
    assert len(refused) == 5
    assert [type(end) for end in refused] == [Invalid] * 5
    assert count(office) == 1


# --- One form, one key ----------------------------------------------------------------------------------------------


def test_a_form_that_is_sent_again_makes_no_second_key(office: Office) -> None:
    key, _ = office.generate("rio", form_id="form_once")
    for answers in ({}, {"name": "Another name"}, {"scopes": ["reservations:read"]}):
        with pytest.raises(AlreadyShown) as refused:
            office.generate("rio", form_id="form_once", **answers)
        assert refused.value.made_id == key.id
    assert count(office) == 1


def test_a_forms_id_is_its_makers_own(office: Office) -> None:
    office.generate("rio", form_id="form_once")
    office.generate("max", form_id="form_once")
    assert count(office) == 2


def test_a_form_that_was_refused_can_be_sent_again_mended(office: Office) -> None:
    problems(office, "rio", form_id="form_once", name="")
    office.generate("rio", form_id="form_once")


@pytest.mark.parametrize("standing", [0, KEYS_PER_MEMBER - 1])
def test_a_form_that_is_sent_many_times_at_once_makes_one_key(office: Office, standing: int) -> None:
    for n in range(standing):
        office.generate("rio", name=f"Key {n}")
    calls = {str(n): lambda: office.generate("rio", form_id="form_once") for n in range(8)}
    ends = at_once(calls)
    made = [end for end in ends.values() if not isinstance(end, Exception)]
    assert len(made) == 1
    refused = [end for end in ends.values() if isinstance(end, Exception)]
    assert {type(end) for end in refused} == {AlreadyShown}
    assert count(office) == standing + 1


# --- How many -------------------------------------------------------------------------------------------------------


def test_a_member_has_at_most_twenty_keys_that_are_neither_revoked_nor_expired(office: Office) -> None:
    made = [office.generate("rio", name=f"Key {n}", expires="30d")[0] for n in range(KEYS_PER_MEMBER)]
    assert KEYS_PER_MEMBER == 20
    with pytest.raises(Conflict) as refused:
        office.generate("rio", name="One more")
    assert refused.value.code == "key_limit"
    (told,) = office.told(action="key_generated", outcome="refused")
    assert told.actor_id == office.member("rio").public_id
    office.act("rio", keys.deactivate, made[0].id)
    with pytest.raises(Conflict):  # one that can be reactivated counts
        office.generate("rio", name="One more")
    office.generate("max", name="One more")
    office.act("rio", keys.delete, made[0].id, typed="")
    office.generate("rio", name="One more")
    office.generate("rio", name="After the others expired", at=NOON + timedelta(days=30))


@pytest.mark.parametrize("owner", ["rio", API_MEMBER])
def test_the_limit_holds_however_many_ask_at_once(office: Office, owner: str) -> None:
    creators = ["rio"] if owner == "rio" else ["lea", "ana"]
    for n in range(KEYS_PER_MEMBER - 1):
        office.generate(creators[0], owner=owner, name=f"Key {n}")

    def one_more(n: int) -> None:
        office.generate(creators[n % len(creators)], owner=owner, name=f"One more {n}")

    ends = at_once({str(n): partial(one_more, n) for n in range(16)})
    assert Counter(type(end) for end in ends.values()) == {type(None): 1, Conflict: 15}
    assert count(office) == KEYS_PER_MEMBER


# --- Whom a key acts as ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("creator", "owner"),
    [
        ("rio", "max"), ("rio", "ana"), ("lea", "rio"), ("ana", "rio"), ("ana", "lea"),  # another human: never
        ("rio", API_MEMBER), ("max", API_MEMBER),  # an API member of somebody else's
        ("ana", "zoe"), ("zoe", "ana"), ("zoe", API_MEMBER),  # another workspace
    ],
)  # fmt: skip
def test_nobody_makes_a_key_that_acts_as_somebody_they_may_not_act_for(
    shared_office: Office, creator: str, owner: str
) -> None:
    assert "owner" in problems(shared_office, creator, owner=owner)
    (told,) = shared_office.told(action="key_generated")
    assert (told.outcome, told.details["owner"]) == ("refused", shared_office.member(owner).public_id)


@pytest.mark.parametrize("owner", ["", "mem_unknown", "0", "x" * 5_000, "mem_%"])
def test_an_owner_who_cannot_be_is_refused_on_the_field(shared_office: Office, owner: str) -> None:
    actor = shared_office.actor("rio")
    draft = drafts.Draft("Nightly export", "", owner, "live", ["tasks:read"], "90d")
    with pytest.raises(PortalError), shared_office.database.transaction() as session:
        keys.create(session, actor, shared_office.keyring, draft)
    assert count(shared_office) == 0


@pytest.mark.parametrize(
    ("creator", "scopes", "is_fine"),
    [
        ("lea", ["tasks:read", "reservations:read"], True),
        ("lea", ["tasks:write"], False),  # lea has it, the API member does not
        ("lea", ["leads:read"], False),
        ("ana", ["tasks:read"], True),
        ("ana", ["tasks:write"], False),
    ],
)
def test_a_key_of_an_api_member_carries_what_both_may_hold(
    office: Office, creator: str, scopes: list[str], is_fine: bool
) -> None:
    if is_fine:
        key, plain = office.generate(creator, owner=API_MEMBER, scopes=scopes)
        assert key.owner.name == API_MEMBER
        assert office.check(plain).is_api_member
    else:
        found = problems(office, creator, owner=API_MEMBER, scopes=scopes)
        assert list(found) == ["scopes"]
        assert found["scopes"].startswith(f"{API_MEMBER} does not have the access")


def test_an_api_member_with_more_access_than_its_lead_gets_no_more_than_the_lead_has(office: Office) -> None:
    office.grant(API_MEMBER, "sales", AccessLevel.FULL)  # by ana, say; lea only reads Sales
    found = problems(office, "lea", owner=API_MEMBER, scopes=["leads:write"])
    assert found == {"scopes": "You do not have the access that leads:write needs. Remove it or ask an administrator."}
    office.generate("lea", owner=API_MEMBER, scopes=["leads:read"])
    office.generate("ana", owner=API_MEMBER, scopes=["leads:write"], name="By ana")


def test_a_lead_who_was_demoted_can_no_longer_make_keys_for_their_api_member(office: Office) -> None:
    office.grant("lea", "operations", AccessLevel.FULL)
    assert "owner" in problems(office, "lea", owner=API_MEMBER)
    office.generate("lea", scopes=["tasks:write"])  # for herself she still can
    office.generate("ana", owner=API_MEMBER)


def test_who_was_made_manager_of_an_api_member_can_make_its_keys(office: Office) -> None:
    office.grant("max", "operations", AccessLevel.MANAGE)
    assert "owner" in problems(office, "max", owner=API_MEMBER)
    office.change(API_MEMBER, manager_id=office.member("max").id)
    office.generate("max", owner=API_MEMBER)
    office.generate("lea", owner=API_MEMBER, name="By her who made it")


@pytest.mark.parametrize("state", ["deactivated_at", "removed_at"])
def test_nobody_makes_a_key_for_an_api_member_that_is_gone(office: Office, state: str) -> None:
    office.change(API_MEMBER, **{state: NOON})
    assert "owner" in problems(office, "lea", owner=API_MEMBER)


# --- Who sees which -------------------------------------------------------------------------------------------------


def listed(office: Office, name: str, tab: str) -> list[str]:
    return [f"{key.owner.name}: {key.name}" for key in office.page(name, owner=tab).rows]


def test_each_sees_their_own_keys_those_of_their_api_members_and_an_admin_all(office: Office) -> None:
    for name in ("ana", "lea", "max", "rio"):
        office.generate(name, name=f"Of {name}")
    office.generate("lea", owner=API_MEMBER, name="Sync")
    office.generate("zoe", name="Of zoe", scopes=["tickets:read"])
    own = {name: [f"{office.member(name).name}: Of {name}"] for name in ("ana", "lea", "max", "rio", "zoe")}
    sync = [f"{API_MEMBER}: Sync"]

    assert {name: listed(office, name, "me") for name in own} == own
    assert {name: listed(office, name, "api") for name in own} == {
        "ana": sync, "lea": sync, "max": [], "rio": [], "zoe": [],
    }  # fmt: skip
    assert {name: listed(office, name, "all") for name in own} == {
        "ana": [*sync, *own["rio"], *own["max"], *own["lea"], *own["ana"]],
        "lea": [*sync, *own["lea"]],
        "max": own["max"],
        "rio": own["rio"],
        "zoe": own["zoe"],
    }


def test_what_one_may_not_see_is_not_found_whatever_one_asks(office: Office) -> None:
    key, plain = office.generate("max")
    unknown = key.id[:-1] + ("0" if key.id[-1] != "0" else "1")
    for name in ("rio", "lea", "zoe"):
        for key_id in (key.id, unknown):
            with pytest.raises(NotFound) as not_found:
                office.view(name, key_id)
            assert not_found.value.message == "We cannot find that."
            for what in (keys.deactivate, keys.reactivate, partial(keys.delete, typed="x")):
                with pytest.raises(NotFound) as not_found:
                    office.act(name, what, key_id)
                assert not_found.value.message == "We cannot find that."
    assert office.check(plain).key_id == key.id
    assert len(office.told(outcome="refused")) == 18


def test_a_demoted_lead_no_longer_sees_the_keys_of_api_members(office: Office) -> None:
    key, _ = office.generate("lea", owner=API_MEMBER)
    office.grant("lea", "operations", AccessLevel.READ)
    assert listed(office, "lea", "api") == []
    with pytest.raises(NotFound):
        office.act("lea", keys.deactivate, key.id)


def test_deleted_keys_are_not_listed_and_pages_hold_25(office: Office) -> None:
    names = [("ana", n) for n in range(20)] + [("lea", n) for n in range(7)]
    made = [office.generate(name, name=f"Key {n}")[0] for name, n in names]
    office.act("ana", keys.delete, made[0].id, typed="")
    pages = [office.page("ana", number, owner="all") for number in (1, 2, 3, 999_999)]
    assert [(len(page.rows), page.number, page.total, page.count) for page in pages] == [
        (25, 1, 26, 2), (1, 2, 26, 2), (1, 2, 26, 2), (1, 2, 26, 2),
    ]  # fmt: skip
    assert made[0].id not in {key.id for page in pages for key in page.rows}
    assert pages[0].rows[0].id == made[-1].id  # newest first


def test_a_scope_that_its_owner_lost_is_shown_as_paused_and_comes_back(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read", "leads:write"])

    def working() -> dict[str, bool]:
        return {scope.text: scope.effective for scope in office.view("ana", key.id).scopes}

    office.grant("max", "sales", AccessLevel.READ)
    assert working() == {"leads:read": True, "leads:write": False}
    office.grant("max", "sales", AccessLevel.MANAGE)
    assert working() == {"leads:read": True, "leads:write": True}
    office.change("max", deactivated_at=NOON)
    assert working() == {"leads:read": False, "leads:write": False}


def test_a_form_filled_from_another_key_asks_for_no_more_than_that_key_had_and_what_it_lacked(office: Office) -> None:
    key, _ = office.generate("rio", note="cron")
    other, _ = office.generate("max")
    with office.database.reading() as session:
        actor, seat = office.actor("rio"), office.seat("rio")
        draft = drafts.first(session, actor, seat, similar_to=key.id, add="tasks:write")
        planned = drafts.plan(session, actor, draft)
        foreign = drafts.first(session, actor, seat, similar_to=other.id, add="leads:read")
        odd = drafts.first(session, actor, seat, add="tasks:delete")
        of_rio = drafts.first(session, office.actor("ana"), office.seat("ana"), similar_to=key.id, add="tasks:write")
    assert (draft.name, draft.note, list(draft.scopes)) == ("Nightly export", "cron", ["tasks:read", "tasks:write"])
    assert planned.scopes == (Scope.parse("tasks:read"),)
    assert (planned.beyond, list(planned.problems)) == (("tasks:write",), ["scopes"])
    assert draft.replaces == key.id
    assert (foreign.name, foreign.replaces, list(foreign.scopes)) == ("", "", ["leads:read"])
    assert (of_rio.name, of_rio.replaces) == ("Nightly export", "")  # nobody replaces another human's
    assert odd.scopes == []


def test_a_key_without_any_scope_authorises_nothing(office: Office) -> None:
    key, plain = office.generate("ana")
    with office.database.transaction() as session:
        for scope in session.scalars(select(KeyScope)).all():
            session.delete(scope)
    assert office.check(plain).reach.effective == frozenset()
    assert office.row(key.id).revoked_at is None
