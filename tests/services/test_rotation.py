"""Rotation: a successor with the same or fewer scopes, an overlap that ends, and at most two keys that work (T-33)."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portal.rules.access import AccessLevel
from portal.rules.credentials import PlainKey, new_id
from portal.rules.errors import (
    AlreadyShown,
    Conflict,
    Forbidden,
    Invalid,
    KeyRefused,
    NotFound,
    PortalError,
    Refusal,
)
from portal.rules.lifetimes import Overlap
from portal.services import audit, keys, rotation
from portal.services.actor import Actor, Means
from portal.services.drafts import Draft
from portal.services.key_views import KeyView
from portal.store.models import ApiKey, KeyState
from tests.services.office import API_MEMBER, NOON, Office, at_once
from tests.web.looking import kept

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BOTH = ["tasks:read", "tasks:write"]
Made = tuple[KeyView, PlainKey]


def rotate(office: Office, who: str, key_id: str, at: datetime = NOON, **answers: Any) -> Made:
    """Answer the form that rotates a key as it stands, but for the answers named."""
    actor = office.actor(who, at)
    with audit.transaction(office.database, actor) as session:
        draft = rotation.draft_rotation(session, actor, office.seat(who), key_id)
        return rotation.rotate(session, actor, office.keyring, replace(draft, **answers))


def send(office: Office, who: str, key_id: str, at: datetime = NOON, **answers: Any) -> Made:
    """Send the form without having opened it."""
    actor = office.actor(who, at)
    usual = {"scopes": ["tasks:read"], "expires": "90d", "form_id": new_id("form"), "overlap": "24h"}
    with audit.transaction(office.database, actor) as session:
        return rotation.rotate(session, actor, office.keyring, Draft(replaces=key_id, **usual | answers))


def replaced(office: Office, who: str, key_id: str, at: datetime = NOON, form_id: str = "") -> Made:
    """Make an unused key anew."""
    actor = office.actor(who, at)
    with audit.transaction(office.database, actor) as session:
        return rotation.replace_unused(session, actor, office.keyring, key_id, form_id)


def answers(office: Office, plain: PlainKey, at: datetime) -> Refusal | None:
    """Call with a key; None when it passes."""
    try:
        office.check(plain, at=at)
    except KeyRefused as refused:
        return refused.refusal
    return None


def refused(office: Office, what: Callable[[], object], error: type[PortalError]) -> PortalError:
    """Try what is refused and must change nothing."""
    before = kept(office.database)
    with pytest.raises(error) as caught:
        what()
    assert kept(office.database) == before
    return caught.value


# --- The successor --------------------------------------------------------------------------------------------------


def test_a_rotation_makes_a_second_key_like_the_first(office: Office) -> None:
    old, old_plain = office.generate("max", scopes=["leads:read", "leads:write"], note="cron on web-3", expires="1y")
    later = NOON + 40 * DAY
    new, new_plain = rotate(office, "max", old.id, later)
    assert (new.name, new.note, new.environment) == (old.name, old.note, old.environment)
    assert new.owner.id == old.owner.id
    assert [scope.text for scope in new.scopes] == ["leads:read", "leads:write"]
    assert (new.created_at, new.expires_at) == (later, later + 365 * DAY)  # as long again, from now
    assert new_plain.reveal() != old_plain.reveal()
    assert new.id != old.id
    assert (new.predecessor_id, office.view("max", old.id, later).successor_id) == (old.id, new.id)


def test_scopes_can_be_left_out_and_expiry_be_chosen(office: Office) -> None:
    old, _ = office.generate("lea", scopes=BOTH, expires="never")
    new, plain = rotate(office, "lea", old.id, scopes=["tasks:read"], expires="30d")
    assert [scope.text for scope in new.scopes] == ["tasks:read"]
    assert new.expires_at == NOON + 30 * DAY
    assert office.check(plain).reach.effective_texts == ("tasks:read",)
    assert [scope.text for scope in office.view("lea", old.id).scopes] == BOTH


@pytest.mark.parametrize("scopes", [BOTH, ["tasks:write"], ["tasks:read", "leads:read"], ["tasks:read", "*"]])
def test_a_rotation_never_adds_a_scope_though_its_owner_may_hold_it(office: Office, scopes: list[str]) -> None:
    old, plain = office.generate("ana", scopes=["tasks:read"])
    error = refused(office, lambda: send(office, "ana", old.id, scopes=scopes), Invalid)
    assert isinstance(error, Invalid)
    assert list(error.problems) == ["scopes"]
    (told,) = office.told(outcome="refused")
    assert (told.action, told.target_id) == ("key_rotated", old.id)
    assert answers(office, plain, NOON + 25 * HOUR) is None


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        *(({"overlap": odd}, "overlap") for odd in ("", "2h", "31d", "-1", "UNTIL", "x" * 1000)),
        *(({"expires": odd}, "expires") for odd in ("", "10y", "forever")),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["tasks:read", "tasks:read"]}, "scopes"),
    ],
)
def test_a_forged_answer_changes_neither_key(office: Office, sent: dict[str, Any], field: str) -> None:
    old, plain = office.generate("rio")
    error = refused(office, lambda: send(office, "rio", old.id, **sent), Invalid)
    assert isinstance(error, Invalid)
    assert list(error.problems) == [field]
    assert office.row(old.id).retires_at is None
    assert answers(office, plain, NOON + 60 * DAY) is None


def test_what_its_owner_may_no_longer_hold_is_not_offered_and_not_given(office: Office) -> None:
    old, _ = office.generate("max", scopes=["leads:read", "leads:write"])
    office.grant("max", "sales", AccessLevel.READ)
    refused(office, lambda: send(office, "max", old.id, scopes=["leads:read", "leads:write"]), Invalid)
    new, _ = rotate(office, "max", old.id)
    assert [scope.text for scope in new.scopes] == ["leads:read"]


def test_nothing_else_that_is_sent_changes_what_the_successor_is(office: Office) -> None:
    old, _ = office.generate("lea", scopes=["tasks:read"], environment="test")
    forged: dict[str, Any] = {
        "environment": "live",
        "owner": office.member(API_MEMBER).public_id,
        "name": "Other",
        "note": "x",
    }
    new, _ = send(office, "lea", old.id, **forged)
    assert (new.environment, new.name, new.note, new.owner.kind) == ("test", old.name, "", "me")


def test_the_rotation_is_told_of_both_keys(office: Office) -> None:
    old, _ = office.generate("rio")
    new, _ = rotate(office, "rio", old.id, NOON + DAY)
    told = {(event.action, event.target_id): event for event in office.told() if event.at == NOON + DAY}
    assert set(told) == {("key_generated", new.id), ("key_rotated", old.id)}
    assert {event.actor_id for event in told.values()} == {office.member("rio").public_id}
    assert "sk_" not in repr([event.details for event in told.values()])


# --- The overlap ----------------------------------------------------------------------------------------------------

LENGTHS = {"0": 0 * HOUR, "1h": HOUR, "24h": 24 * HOUR, "7d": 7 * DAY, "until": 30 * DAY}


def test_the_choices_of_overlap_are_those_of_the_contract() -> None:
    assert {str(each) for each in Overlap} == set(LENGTHS)


@pytest.mark.parametrize("overlap", LENGTHS)
def test_both_keys_work_until_the_overlap_ends_and_then_only_the_new_one(office: Office, overlap: str) -> None:
    old, old_plain = office.generate("rio")
    _, new_plain = rotate(office, "rio", old.id, overlap=overlap)
    end = NOON + LENGTHS[overlap]
    if overlap != "0":
        assert answers(office, old_plain, end - timedelta(microseconds=1)) is None
        assert office.check(old_plain).ends_at == end
    assert answers(office, old_plain, end) is Refusal.RETIRED
    assert [answers(office, new_plain, at) for at in (NOON, end, end + DAY)] == [None] * 3
    assert office.row(old.id).state_at(end) is KeyState.REVOKED


def test_an_overlap_never_outlives_the_old_keys_own_expiry(office: Office) -> None:
    old, plain = office.generate("rio", expires="30d")
    at = NOON + 29 * DAY
    rotate(office, "rio", old.id, at, overlap="until")
    assert office.row(old.id).retires_at == NOON + 30 * DAY
    assert answers(office, plain, NOON + 30 * DAY - MINUTE) is None
    assert answers(office, plain, NOON + 30 * DAY) is not None


def test_an_expired_key_is_rotated_but_does_not_come_back(office: Office) -> None:
    old, old_plain = office.generate("rio", expires="30d")
    at = NOON + 31 * DAY
    _, new_plain = rotate(office, "rio", old.id, at, overlap="7d")
    assert answers(office, old_plain, at) is not None
    assert answers(office, new_plain, at) is None


def test_use_of_a_retired_key_is_recorded_and_does_its_successor_no_harm(office: Office) -> None:
    old, old_plain = office.generate("rio")
    new, new_plain = rotate(office, "rio", old.id, overlap="0")
    with pytest.raises(KeyRefused) as caught:
        office.check(old_plain)
    assert (caught.value.refusal, caught.value.key_id) == (Refusal.RETIRED, old.id)
    assert caught.value.code == "invalid_key"  # outside it looks like any other
    assert answers(office, new_plain, NOON) is None
    assert office.row(new.id).state_at(NOON) is KeyState.ACTIVE


# --- Once, and one at a time ----------------------------------------------------------------------------------------


def test_a_key_that_is_being_replaced_is_not_replaced_again(office: Office) -> None:
    old, _ = office.generate("rio")
    new, _ = rotate(office, "rio", old.id, overlap="until")
    for key_id in (old.id, new.id):  # nor its successor, while the old one still works
        for attempt in (rotate, send):
            refused(office, partial(attempt, office, "rio", key_id, NOON + DAY), Conflict)
    office.act("rio", rotation.retire, old.id, NOON + DAY)
    refused(office, partial(send, office, "rio", old.id, NOON + DAY), Conflict)
    third, _ = rotate(office, "rio", new.id, NOON + DAY)
    assert third.predecessor_id == new.id


def test_a_deactivated_old_key_still_holds_its_place(office: Office) -> None:
    """It could be reactivated, and then there would be three."""
    old, old_plain = office.generate("rio")
    new, _ = rotate(office, "rio", old.id, overlap="7d")
    office.act("rio", keys.deactivate, old.id, NOON)
    assert answers(office, old_plain, NOON) is Refusal.DEACTIVATED
    refused(office, lambda: rotate(office, "rio", new.id), Conflict)
    office.act("rio", keys.reactivate, old.id, NOON + HOUR)
    assert answers(office, old_plain, NOON + HOUR) is None
    assert answers(office, old_plain, NOON + 7 * DAY) is Refusal.RETIRED


def test_a_deactivated_or_deleted_key_is_not_rotated(office: Office) -> None:
    key, _ = office.generate("rio")
    office.act("rio", keys.deactivate, key.id)
    refused(office, lambda: send(office, "rio", key.id), Conflict)
    office.act("rio", keys.delete, key.id, typed="")
    for attempt in (rotate, send):
        refused(office, partial(attempt, office, "rio", key.id), Conflict)


def test_a_key_that_was_stopped_after_its_check_neither_rotates_nor_ends_itself(office: Office) -> None:
    key, plain = office.generate("rio", self_rotate=True)
    caller = office.check(plain)
    actor = Actor(NOON, Means.KEY, "The key", key.id, caller.workspace_pk)

    def rotates() -> None:
        with audit.transaction(office.database, actor) as session:
            rotation.rotate_itself(session, actor, office.keyring, caller.key_pk, HOUR)

    def ends() -> None:
        with audit.transaction(office.database, actor) as session:
            keys.end_itself(session, actor, caller.key_pk)

    for column in ("deactivated_at", "expires_at", "retires_at", "revoked_at", None):
        if column:
            office.set_key(key.id, **{column: NOON})
        else:
            office.change("rio", deactivated_at=NOON)
        for attempt in (rotates, ends):
            error = refused(office, attempt, KeyRefused)
            assert isinstance(error, KeyRefused)
            assert error.refusal is (answers(office, plain, NOON) if column else Refusal.OWNER_INACTIVE), column
        if column:
            office.set_key(key.id, **{column: None})


def test_the_same_form_makes_one_key(office: Office) -> None:
    old, _ = office.generate("rio")
    form = new_id("form")
    new, _ = send(office, "rio", old.id, form_id=form)
    error = refused(office, lambda: send(office, "rio", old.id, form_id=form), AlreadyShown)
    assert isinstance(error, AlreadyShown)
    assert error.made_id == new.id


@pytest.mark.parametrize("same_form", [True, False])
@pytest.mark.parametrize("people", [("lea", "lea"), ("lea", "ana")])
def test_of_two_rotations_at_once_one_wins(office: Office, people: tuple[str, str], same_form: bool) -> None:
    old, _ = office.generate("lea", owner=API_MEMBER)
    forms = ["form-12345678"] * 2 if same_form else ["form-12345678", "form-87654321"]
    calls = {
        f"{n}": partial(send, office, who, old.id, form_id=form)
        for n, (who, form) in enumerate(zip(people, forms, strict=True))
    }
    for who in people:
        office.actor(who)
    done = at_once(calls)
    losers = [each for each in done.values() if isinstance(each, Exception)]
    assert len(losers) == 1
    assert isinstance(losers[0], AlreadyShown if same_form and people[0] == people[1] else Conflict)
    with office.database.reading() as session:
        assert session.query(ApiKey).filter_by(member_id=office.member(API_MEMBER).id, retires_at=None).count() == 1
        assert session.query(ApiKey).filter_by(member_id=office.member(API_MEMBER).id).count() == 2


@pytest.mark.parametrize("other", ["delete", "deactivate", "replace"])
def test_what_is_done_during_a_rotation_waits_its_turn_and_leaves_no_half_done_thing(
    office: Office, other: str
) -> None:
    others: dict[str, Callable[[str], object]] = {
        "delete": lambda key_id: office.act("rio", keys.delete, key_id, typed=""),
        "deactivate": lambda key_id: office.act("rio", keys.deactivate, key_id),
        "replace": lambda key_id: replaced(office, "rio", key_id),
    }
    for n in range(6):
        old, old_plain = office.generate("rio", name=f"Raced {n}")
        calls: dict[str, Callable[[], Any]] = {
            "rotate": partial(send, office, "rio", old.id),
            other: partial(others[other], old.id),
        }
        done = at_once(calls)
        failed = {name: each for name, each in done.items() if isinstance(each, Exception)}
        assert all(isinstance(each, NotFound | Conflict) for each in failed.values()), failed
        if other == "replace":
            assert len(failed) == 1
        else:
            assert other not in failed  # a stop always comes through
            assert answers(office, old_plain, NOON) in (Refusal.REVOKED, Refusal.DEACTIVATED)
        if isinstance(done["rotate"], tuple):
            assert answers(office, done["rotate"][1], NOON) is None


def test_a_rotation_that_fails_anywhere_leaves_nothing_changed(office: Office) -> None:
    """Behind the portal's back a rule is added that the last row of a rotation breaks."""
    old, plain = office.generate("rio")
    actor = office.actor("rio")
    with pytest.raises(RuntimeError), audit.transaction(office.database, actor) as session:
        draft = rotation.draft_rotation(session, actor, office.seat("rio"), old.id)
        rotation.rotate(session, actor, office.keyring, draft)
        raise RuntimeError("the server stops before the commit")
    assert office.row(old.id).retires_at is None
    assert answers(office, plain, NOON + 2 * DAY) is None
    assert [event.action for event in office.told()] == ["key_generated"]
    assert rotate(office, "rio", old.id)


# --- Limit and name -------------------------------------------------------------------------------------------------


def test_a_rotating_pair_counts_once(office: Office) -> None:
    made = [office.generate("rio", name=f"Key {n}")[0] for n in range(20)]
    new, _ = rotate(office, "rio", made[0].id, overlap="until")
    for at in (NOON, NOON + 29 * DAY):
        with pytest.raises(Conflict, match="20 of 20"):
            office.generate("rio", name="One more", at=at)
    office.act("rio", keys.delete, made[1].id, typed="")
    office.generate("rio", name="One more")
    with pytest.raises(Conflict):
        office.generate("rio", name="And another")
    assert office.row(new.id).state_at(NOON) is KeyState.ACTIVE


def test_an_old_key_whose_successor_was_deleted_counts_by_itself(office: Office) -> None:
    """Else rotating and deleting in turn would make any number of keys that work for thirty days."""
    made = [office.generate("rio", name=f"Key {n}")[0] for n in range(20)]
    new, _ = rotate(office, "rio", made[0].id, overlap="until")
    with office.database.reading() as session:
        assert rotation.successor_of(session, office.row(made[0].id))
    office.act("rio", keys.delete, new.id, typed="")
    with office.database.reading() as session:
        assert rotation.successor_of(session, office.row(made[0].id)) is None
    with pytest.raises(Conflict):
        office.generate("rio", name="One more")
    office.act("rio", rotation.retire, made[0].id)
    office.generate("rio", name="One more")


def test_an_expired_key_is_not_rotated_past_the_limit(office: Office) -> None:
    expired, _ = office.generate("rio", name="Expired", expires="30d")
    at = NOON + 31 * DAY
    for n in range(20):
        office.generate("rio", name=f"Key {n}", at=at)
    refused(office, lambda: send(office, "rio", expired.id, at), Conflict)


def test_the_name_goes_on_to_the_successor_and_nobody_else_gets_it(office: Office) -> None:
    old, _ = office.generate("rio", name="CRM sync")
    new, _ = rotate(office, "rio", old.id, overlap="1h")
    for at in (NOON, NOON + DAY):
        with pytest.raises(Invalid) as taken:
            office.generate("rio", name="CRM sync", at=at)
        assert list(taken.value.problems) == ["name"]
    office.act("rio", keys.delete, new.id, NOON + DAY, typed="")
    office.generate("rio", name="CRM sync", at=NOON + DAY)


# --- Retiring and extending -----------------------------------------------------------------------------------------


def test_an_overlap_can_be_ended_at_once(office: Office) -> None:
    old, old_plain = office.generate("rio")
    new, new_plain = rotate(office, "rio", old.id, overlap="7d")
    view = office.act("rio", rotation.retire, old.id, NOON + HOUR)
    assert (view.state, view.successor_id) == (KeyState.REVOKED, new.id)
    assert answers(office, old_plain, NOON + HOUR) is Refusal.RETIRED
    assert answers(office, new_plain, NOON + HOUR) is None
    assert [event.target_id for event in office.told(action="key_retired")] == [old.id]
    delete = partial(keys.delete, typed="Nightly export")
    edit = partial(keys.edit, name="Another", note="", was=("Nightly export", ""))
    for what in (rotation.retire, keys.deactivate, delete, edit):
        ended = refused(office, partial(office.act, "rio", what, old.id, NOON + HOUR), Conflict)
        assert "is already retired. Nothing was changed." in ended.message


def test_an_overlap_is_extended_by_days_up_to_thirty_from_its_start(office: Office) -> None:
    old, plain = office.generate("rio", expires="1y")
    begun = NOON + DAY
    rotate(office, "rio", old.id, begun, overlap="24h")
    ends = []
    with suppress(Conflict):
        for _ in range(40):
            office.act("rio", rotation.extend, old.id, begun + HOUR)
            ends.append(office.row(old.id).retires_at)
    assert ends == [begun + days * DAY for days in range(2, 31)]
    refused(office, lambda: office.act("rio", rotation.extend, old.id, begun + HOUR), Conflict)
    assert answers(office, plain, begun + 30 * DAY - MINUTE) is None
    assert answers(office, plain, begun + 30 * DAY) is Refusal.RETIRED
    assert len(office.told(action="key_overlap_extended", outcome="done")) == 29


def test_an_overlap_is_not_extended_past_the_keys_own_expiry(office: Office) -> None:
    old, _ = office.generate("rio", expires="30d")
    at = NOON + 28 * DAY + 12 * HOUR
    rotate(office, "rio", old.id, at, overlap="24h")
    office.act("rio", rotation.extend, old.id, at)
    assert office.row(old.id).retires_at == NOON + 30 * DAY
    refused(office, lambda: office.act("rio", rotation.extend, old.id, at), Conflict)


@pytest.mark.parametrize("what", [rotation.retire, rotation.extend])
def test_what_is_not_being_replaced_or_has_stopped_is_neither_retired_nor_extended(
    office: Office, what: Callable[..., KeyView]
) -> None:
    old, _ = office.generate("rio")
    refused(office, lambda: office.act("rio", what, old.id), Conflict)
    new, _ = rotate(office, "rio", old.id, overlap="1h")
    refused(office, lambda: office.act("rio", what, new.id), Conflict)
    refused(office, lambda: office.act("rio", what, old.id, NOON + HOUR), Conflict)
    office.act("rio", keys.delete, old.id, typed="")
    refused(office, lambda: office.act("rio", what, old.id), Conflict)


# --- A text that was lost -------------------------------------------------------------------------------------------


def test_a_key_whose_text_was_lost_is_made_anew_in_place_of_the_unused_one(office: Office) -> None:
    lost, lost_plain = office.generate("lea", scopes=BOTH, note="cron", expires="30d", environment="test")
    new, plain = replaced(office, "lea", lost.id, NOON + 23 * HOUR)
    assert (new.name, new.note, new.environment) == (lost.name, lost.note, "test")
    assert [scope.text for scope in new.scopes] == BOTH
    assert new.expires_at == NOON + 23 * HOUR + 30 * DAY
    assert answers(office, lost_plain, NOON + 23 * HOUR) is Refusal.REVOKED
    assert answers(office, plain, NOON + 23 * HOUR) is None
    assert [event.target_id for event in office.told(action="key_deleted")] == [lost.id]


def test_a_key_that_was_used_or_is_a_day_old_is_not_made_anew(office: Office) -> None:
    used, _ = office.generate("rio", name="Used")
    office.use(used.id, NOON)
    old, _ = office.generate("rio", name="Old")
    off, _ = office.generate("rio", name="Off")
    office.act("rio", keys.deactivate, off.id)
    retiring, _ = office.generate("rio", name="Retiring")
    rotate(office, "rio", retiring.id)
    for key_id, at in ((used.id, NOON + MINUTE), (old.id, NOON + DAY), (off.id, NOON), (retiring.id, NOON)):
        refused(office, partial(replaced, office, "rio", key_id, at), Conflict)


def test_the_same_form_makes_a_key_anew_once(office: Office) -> None:
    lost, _ = office.generate("rio")
    form = new_id("form")
    new, _ = replaced(office, "rio", lost.id, form_id=form)
    error = refused(office, lambda: replaced(office, "rio", lost.id, form_id=form), AlreadyShown)
    assert isinstance(error, AlreadyShown)
    assert error.made_id == new.id


def test_of_two_replacements_at_once_one_wins(office: Office) -> None:
    lost, _ = office.generate("rio")
    done = at_once({f"{n}": partial(replaced, office, "rio", lost.id) for n in range(2)})
    assert sorted(type(each).__name__ for each in done.values()) == ["Conflict", "tuple"]


def test_a_key_made_anew_takes_the_unused_ones_place_in_its_chain(office: Office) -> None:
    """Else the lost successor would leave the chain, and the next rotation make a third key that works."""
    old, _ = office.generate("rio")
    lost, _ = rotate(office, "rio", old.id, overlap="7d")
    new, _ = replaced(office, "rio", lost.id)
    assert office.view("rio", old.id).successor_id == new.id
    refused(office, lambda: rotate(office, "rio", new.id), Conflict)
    rotate(office, "rio", new.id, NOON + 7 * DAY)


# --- Whose keys -----------------------------------------------------------------------------------------------------

TRIES: dict[str, Callable[[Office, str, str], object]] = {
    "key_rotated": send,
    "key_generated": replaced,
    "key_overlap_extended": lambda office, who, key_id: office.act(who, rotation.extend, key_id),
}


@pytest.mark.parametrize("event", TRIES)
def test_nobody_hands_out_another_humans_key(office: Office, event: str) -> None:
    key, plain = office.generate("rio")
    if event == "key_overlap_extended":
        rotate(office, "rio", key.id)
    for who, error in (("ana", Forbidden), ("lea", NotFound), ("max", NotFound), ("zoe", NotFound)):
        refused(office, partial(TRIES[event], office, who, key.id), error)
        told = office.told(outcome="refused")[-1]
        assert (told.action, told.target_id) == (event, key.id)
        assert told.actor_id == office.member(who).public_id
    assert answers(office, plain, NOON) is None


def test_an_admin_ends_anothers_overlap_and_others_cannot(office: Office) -> None:
    old, plain = office.generate("rio")
    rotate(office, "rio", old.id, overlap="7d")
    for who in ("lea", "max", "zoe"):
        refused(office, partial(office.act, who, rotation.retire, old.id), NotFound)
    office.act("ana", rotation.retire, old.id)
    assert answers(office, plain, NOON) is Refusal.RETIRED


@pytest.mark.parametrize("who", ["lea", "ana"])
def test_who_manages_an_api_member_rotates_its_keys(office: Office, who: str) -> None:
    old, _ = office.generate("lea", owner=API_MEMBER)
    new, plain = rotate(office, who, old.id, overlap="24h")
    assert (new.owner.name, new.created_by) == (API_MEMBER, office.member(who).name)
    office.act(who, rotation.extend, old.id)
    office.act(who, rotation.retire, old.id)
    replaced(office, who, new.id)
    assert answers(office, plain, NOON) is Refusal.REVOKED


def test_a_key_of_an_api_member_is_not_rotated_beyond_what_the_one_who_rotates_may_hand_out(office: Office) -> None:
    office.grant(API_MEMBER, "sales", AccessLevel.FULL)
    old, _ = office.generate("ana", owner=API_MEMBER, scopes=["leads:read", "leads:write"])
    refused(office, lambda: send(office, "lea", old.id, scopes=["leads:read", "leads:write"]), Invalid)
    new, _ = send(office, "lea", old.id, scopes=["leads:read"])
    assert [scope.text for scope in new.scopes] == ["leads:read"]


def test_a_member_who_left_rotates_nothing(office: Office) -> None:
    key, _ = office.generate("rio")
    actor = office.actor("rio")
    office.change("rio", deactivated_at=NOON)
    before = kept(office.database)
    with pytest.raises(Forbidden), office.database.transaction() as session:
        rotation.rotate(session, actor, office.keyring, Draft(replaces=key.id, scopes=["tasks:read"]))
    assert kept(office.database) == before


def test_the_buttons_that_are_offered_are_those_that_work(office: Office) -> None:
    def offered(who: str, key_id: str, at: datetime = NOON) -> set[str]:
        view = office.view(who, key_id, at)
        names = ("rotate", "retire", "extend", "replace", "edit")
        return {name for name in names if getattr(view, f"may_{name}")}

    old, _ = office.generate("rio")
    assert offered("rio", old.id) == {"rotate", "replace", "edit"}
    assert offered("ana", old.id) == set()
    assert offered("rio", old.id, NOON + DAY) == {"rotate", "edit"}
    new, _ = rotate(office, "rio", old.id, NOON + DAY, overlap="1h")
    assert offered("rio", old.id, NOON + DAY) == {"retire", "extend", "edit"}
    assert offered("ana", old.id, NOON + DAY) == {"retire"}
    assert offered("rio", new.id, NOON + DAY) == {"replace", "edit"}
    assert offered("rio", new.id, NOON + DAY + HOUR) == {"rotate", "replace", "edit"}
    assert offered("rio", old.id, NOON + DAY + HOUR) == set()


# --- The fix-it form: a replacement with another scope --------------------------------------------------------------


def test_the_fix_it_form_adds_the_missing_scope_and_keeps_the_old_key_for_an_overlap(office: Office) -> None:
    old, old_plain = office.generate("lea", scopes=["tasks:read"])
    actor = office.actor("lea")
    draft = replace(office.draft("lea", scopes=BOTH), replaces=old.id, overlap="24h", form_id=new_id("form"))
    with audit.transaction(office.database, actor) as session:
        new, plain = rotation.generate(session, actor, office.keyring, draft)
    assert office.check(plain).reach.effective_texts == ("tasks:read", "tasks:write")
    assert (new.predecessor_id, office.row(old.id).retires_at) == (old.id, NOON + DAY)
    assert answers(office, old_plain, NOON + DAY - MINUTE) is None
    assert office.view("lea", old.id, NOON + DAY).is_old


def test_a_key_whose_successor_has_another_name_is_not_the_old_one_of_that_name(office: Office) -> None:
    old, _ = office.generate("lea")
    actor = office.actor("lea")
    draft = replace(office.draft("lea", name="Another"), replaces=old.id, form_id=new_id("form"))
    with audit.transaction(office.database, actor) as session:
        rotation.generate(session, actor, office.keyring, draft)
    assert [office.view("lea", old.id, at).is_old for at in (NOON, NOON + DAY)] == [True, False]


def test_the_old_key_of_a_rotation_has_ended_when_it_was_deleted_and_not_with_its_overlap(office: Office) -> None:
    old, _ = office.generate("rio")
    rotate(office, "rio", old.id)
    office.act("rio", keys.delete, old.id, NOON + HOUR, typed="")
    with office.database.reading() as session:
        found = rotation.aftermath_of(session, office.row(old.id), NOON + 2 * HOUR)
    assert found and found.ended_at == NOON + HOUR


@pytest.mark.parametrize("forged", [{"environment": "test"}, {"owner": "max"}])
def test_a_replacement_stays_with_its_member_and_environment(office: Office, forged: dict[str, str]) -> None:
    old, _ = office.generate("lea")
    if "owner" in forged:
        forged = {"owner": office.member("max").public_id}
    draft = replace(office.draft("lea"), **{"replaces": old.id, **forged})  # type: ignore[arg-type]
    actor = office.actor("lea")

    def attempt() -> None:
        with audit.transaction(office.database, actor) as session:
            rotation.generate(session, actor, office.keyring, draft)

    refused(office, attempt, Invalid)


# --- Whatever is done -----------------------------------------------------------------------------------------------

STEPS = ("rotate", "extend", "retire", "deactivate", "reactivate", "delete", "replace", "hour", "day", "weeks")


@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7), st.sampled_from(list(LENGTHS))), max_size=14),
    st.sampled_from(["30d", "90d", "never"]),
)
@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=30)
def test_whatever_is_done_a_chain_has_two_usable_keys_at_most_and_none_past_its_expiry(
    office: Office, steps: list[tuple[str, int, str]], expires: str
) -> None:
    now = NOON
    first, plain = office.generate("rio", expires=expires, name=new_id("chain"))
    chain = [(first.id, plain)]
    try:
        for step, which, overlap in steps:
            key_id = chain[which % len(chain)][0]
            with suppress(PortalError):
                match step:
                    case "rotate":
                        new, plain = rotate(office, "rio", key_id, now, overlap=overlap, expires=expires)
                        chain.append((new.id, plain))
                    case "replace":
                        new, plain = replaced(office, "rio", key_id, now)
                        chain.append((new.id, plain))
                    case "extend" | "retire":
                        office.act("rio", getattr(rotation, step), key_id, now)
                    case "deactivate" | "reactivate":
                        office.act("rio", getattr(keys, step), key_id, now)
                    case "delete":
                        office.act("rio", keys.delete, key_id, now, typed="")
                    case _:
                        now += {"hour": HOUR, "day": DAY, "weeks": 20 * DAY}[step]
            usable = [key_id for key_id, plain in chain if answers(office, plain, now) is None]
            assert len(usable) <= 2, steps
            for key_id in usable:
                row = office.row(key_id)
                assert row.expires_at is None or now < row.expires_at
    finally:
        for key_id, _ in chain:
            with suppress(PortalError):
                office.act("rio", keys.delete, key_id, now, typed="")


# --- What somebody in a bad mood tries -------------------------------------------------------------------------------


def test_a_key_that_is_sent_as_a_scope_is_kept_nowhere(office: Office) -> None:
    old, _ = office.generate("rio")
    _, other = office.generate("rio", name="Another")
    refused(office, lambda: send(office, "rio", old.id, scopes=[other.reveal()]), Invalid)
    refused(office, lambda: send(office, "rio", old.id, scopes=["x" * 15_000]), Invalid)
    told = office.told(action="key_rotated", outcome="refused")
    assert told
    written = repr([vars(event) for event in told])
    assert other.reveal() not in written
    assert len(written) < 5_000


def test_nobody_prolongs_what_they_could_not_hand_out(office: Office) -> None:
    office.grant(API_MEMBER, "sales", AccessLevel.FULL)
    old, _ = office.generate("ana", owner=API_MEMBER, scopes=["leads:write"])
    rotate(office, "ana", old.id, overlap="1h")
    refused(office, lambda: office.act("lea", rotation.extend, old.id), Forbidden)
    assert office.row(old.id).retires_at == NOON + timedelta(hours=1)
    office.act("ana", rotation.extend, old.id)


def test_a_key_whose_use_was_noted_is_not_replaced_as_unused(office: Office) -> None:
    key, plain = office.generate("rio")
    office.use(key.id, NOON)
    office.set_key(key.id, last_used_at=None)  # its row is written more rarely
    refused(office, lambda: replaced(office, "rio", key.id), Conflict)
    office.check(plain)
