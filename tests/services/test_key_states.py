"""A key's life: deactivated, reactivated, expired, deleted; each change told of, each at once (T-32, T-34)."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portal.rules.access import AccessLevel
from portal.rules.errors import Conflict, Forbidden, Invalid, KeyRefused, NotFound, PortalError, Refusal
from portal.services import audit, key_views, keys
from portal.services.key_views import KeyView
from portal.store.models import KeyState
from tests.services.office import API_MEMBER, NOON, Office

DONE = {"deactivate": "key_deactivated", "reactivate": "key_reactivated", "delete": "key_deleted"}
CHANGES: dict[str, Callable[..., KeyView]] = {
    "deactivate": keys.deactivate,
    "reactivate": keys.reactivate,
    "delete": partial(keys.delete, typed="Nightly export"),
}
# What each change makes of each state; an error changes nothing.
TABLE: dict[tuple[KeyState, str], KeyState | type[PortalError]] = {
    (KeyState.ACTIVE, "deactivate"): KeyState.DEACTIVATED,
    (KeyState.ACTIVE, "reactivate"): Conflict,
    (KeyState.ACTIVE, "delete"): KeyState.REVOKED,
    (KeyState.DEACTIVATED, "deactivate"): Conflict,
    (KeyState.DEACTIVATED, "reactivate"): KeyState.ACTIVE,
    (KeyState.DEACTIVATED, "delete"): KeyState.REVOKED,
    (KeyState.EXPIRED, "deactivate"): Conflict,
    (KeyState.EXPIRED, "reactivate"): Conflict,
    (KeyState.EXPIRED, "delete"): KeyState.REVOKED,
    (KeyState.REVOKED, "deactivate"): Conflict,
    (KeyState.REVOKED, "reactivate"): Conflict,
    (KeyState.REVOKED, "delete"): Conflict,
}
REFUSALS = {
    KeyState.DEACTIVATED: Refusal.DEACTIVATED,
    KeyState.EXPIRED: Refusal.EXPIRED,
    KeyState.REVOKED: Refusal.REVOKED,
}


def answers(office: Office, text: str, now: datetime) -> Refusal | None:
    """Call with a key; None when it passes."""
    try:
        office.check(text, at=now)
    except KeyRefused as refused:
        return refused.refusal
    return None


@given(st.lists(st.sampled_from([*CHANGES, "wait", "wait long"]), max_size=9))
@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=40)
def test_whatever_is_done_to_a_key_it_is_what_the_table_says(office: Office, steps: list[str]) -> None:
    now = NOON
    key, plain = office.generate("rio", at=now, expires="30d")
    state, told = KeyState.ACTIVE, ["key_generated"]
    for step in steps:
        if step.startswith("wait"):
            now += timedelta(days=31 if step == "wait long" else 1)
            is_over = key.expires_at is not None and now >= key.expires_at
            state = KeyState.EXPIRED if is_over and state is not KeyState.REVOKED else state
        else:
            expected = TABLE[state, step]
            if isinstance(expected, KeyState):
                state = expected
                told.append(DONE[step])
                assert office.act("rio", CHANGES[step], key.id, at=now).state is state
            else:
                with pytest.raises(expected):
                    office.act("rio", CHANGES[step], key.id, at=now)
        assert office.row(key.id).state_at(now) is state
        assert answers(office, plain.reveal(), now) == REFUSALS.get(state)
    done = [event for event in office.told(target_id=key.id) if event.outcome == "done"]
    assert [event.action for event in done] == told
    assert {event.actor_id for event in done} == {office.member("rio").public_id}
    if state is not KeyState.REVOKED:  # rio's names and number of keys are limited
        office.act("rio", keys.delete, key.id, at=now, typed="")


def test_several_keys_are_stopped_at_once_and_each_told_of_and_those_of_others_stop_none(office: Office) -> None:
    (one, _), (two, _) = office.generate("rio", name="One"), office.generate("rio", name="Two")
    of_max, _ = office.generate("max")
    rio = office.actor("rio")
    office.act("rio", keys.deactivate, two.id)
    with pytest.raises(NotFound), audit.transaction(office.database, rio) as session:
        keys.deactivate_those_active(session, rio, [one.id, of_max.id])
    assert office.row(one.id).deactivated_at is None
    with audit.transaction(office.database, rio) as session:
        assert keys.deactivate_those_active(session, rio, [one.id, two.id, one.id]) == (["One"], ["Two"])
    assert [event.target_id for event in office.told(action="key_deactivated", outcome="done")] == [two.id, one.id]


def test_a_deleted_key_leaves_its_facts_and_its_digest_behind(office: Office) -> None:
    key, plain = office.generate("rio")
    before = office.row(key.id)
    office.act("rio", keys.delete, key.id, typed="")
    after = office.row(key.id)
    kept = ("digest", "name", "note", "member_id", "environment", "last_four", "created_at", "created_by_id")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert (after.revoked_at, after.revoked_by_id) == (NOON, office.member("rio").id)
    assert office.keyring.peppers[0].digest(plain) == after.digest


def test_a_key_says_who_deactivated_it_until_it_is_reactivated(office: Office) -> None:
    key, _ = office.generate("rio")
    office.act("ana", keys.deactivate, key.id)
    with pytest.raises(Conflict, match="Ana Ruiz"):
        office.act("rio", keys.deactivate, key.id)
    office.act("rio", keys.reactivate, key.id)
    row = office.row(key.id)
    assert (row.deactivated_at, row.deactivated_by_id) == (None, None)


@pytest.mark.parametrize(
    ("stop", "by"),
    [(keys.deactivate, "Ana Ruiz"), (lambda *args: keys.delete(*args, typed=""), "Ana Ruiz"), (None, "")],
)
def test_a_stopped_key_says_who_stopped_it(office: Office, stop: Callable[..., object] | None, by: str) -> None:
    key, _ = office.generate("max")
    if stop:
        with audit.transaction(office.database, office.actor("ana")) as session:
            stop(session, office.actor("ana"), office.keyring, key.id)
    with office.database.reading() as session:
        assert key_views.stopped_by(session, key_views.row_of(session, office.seat("max"), key.id)) == by


# --- Who may do it --------------------------------------------------------------------------------------------------

YES, NO, UNSEEN = None, Forbidden, NotFound


@pytest.mark.parametrize(
    ("creator", "owner", "who", "stop", "reactivate"),
    [
        ("rio", "rio", "rio", YES, YES),
        ("rio", "rio", "max", UNSEEN, UNSEEN),
        ("rio", "rio", "lea", UNSEEN, UNSEEN),
        ("rio", "rio", "ana", YES, NO),
        ("rio", "rio", "zoe", UNSEEN, UNSEEN),
        ("lea", "lea", "ana", YES, NO),
        ("ana", "ana", "lea", UNSEEN, UNSEEN),
        ("lea", API_MEMBER, "lea", YES, YES),
        ("lea", API_MEMBER, "ana", YES, YES),
        ("ana", API_MEMBER, "lea", YES, YES),
        ("lea", API_MEMBER, "rio", UNSEEN, UNSEEN),
        ("lea", API_MEMBER, "zoe", UNSEEN, UNSEEN),
    ],
)
def test_who_may_stop_and_restart_whose_keys(
    office: Office, creator: str, owner: str, who: str, stop: type[PortalError] | None, reactivate: Any
) -> None:
    key, plain = office.generate(creator, owner=owner)

    def attempt(what: str, refusal: type[PortalError] | None) -> None:
        if refusal is None:
            office.act(who, CHANGES[what], key.id)
            return
        with pytest.raises(refusal):
            office.act(who, CHANGES[what], key.id)
        refused = office.told(outcome="refused")[-1]
        assert (refused.action, refused.target_id) == (DONE[what], key.id)
        assert refused.actor_id == office.member(who).public_id

    attempt("deactivate", stop)
    assert answers(office, plain.reveal(), NOON) == (Refusal.DEACTIVATED if stop is None else None)
    if stop is not None:
        office.act(creator, keys.deactivate, key.id)
    attempt("reactivate", reactivate)
    assert answers(office, plain.reveal(), NOON) == (None if reactivate is None else Refusal.DEACTIVATED)
    attempt("delete", stop)
    assert answers(office, plain.reveal(), NOON) == (Refusal.REVOKED if stop is None else Refusal.DEACTIVATED)


def test_nobody_restarts_a_key_that_can_do_more_than_they_could_hand_out(office: Office) -> None:
    """lea manages the API member, but only reads Sales: what ana stopped there is not for lea to start."""
    office.grant(API_MEMBER, "sales", AccessLevel.FULL)
    key, plain = office.generate("ana", owner=API_MEMBER, scopes=["leads:write"])
    office.act("ana", keys.deactivate, key.id)
    with pytest.raises(Forbidden):
        office.act("lea", keys.reactivate, key.id)
    (refused,) = office.told(outcome="refused")
    assert (refused.action, refused.target_id) == ("key_reactivated", key.id)
    assert answers(office, plain.reveal(), NOON) is Refusal.DEACTIVATED
    office.act("ana", keys.reactivate, key.id)
    assert answers(office, plain.reveal(), NOON) is None


def test_an_owner_restarts_a_key_though_some_of_its_scopes_are_paused(office: Office) -> None:
    key, plain = office.generate("max", scopes=["leads:read", "leads:write"])
    office.act("max", keys.deactivate, key.id)
    office.grant("max", "sales", AccessLevel.READ)
    office.act("max", keys.reactivate, key.id)
    assert office.check(plain).reach.effective_texts == ("leads:read",)


def test_the_buttons_that_a_list_offers_are_those_that_work(office: Office) -> None:
    key, _ = office.generate("rio")

    def offered(who: str) -> tuple[bool, bool, bool]:
        view = office.view(who, key.id)
        return view.may_deactivate, view.may_reactivate, view.may_delete

    assert {who: offered(who) for who in ("rio", "ana")} == dict.fromkeys(("rio", "ana"), (True, False, True))
    office.act("rio", keys.deactivate, key.id)
    assert offered("rio") == (False, True, True)
    assert offered("ana") == (False, False, True)


def test_a_member_who_left_changes_nothing_any_more(office: Office) -> None:
    key, _ = office.generate("rio")
    actor = office.actor("rio")
    office.change("rio", deactivated_at=NOON)
    for what in CHANGES.values():
        with pytest.raises(Forbidden), office.database.transaction() as session:
            what(session, actor, office.keyring, key.id)
    assert office.row(key.id).state_at(NOON) is KeyState.ACTIVE


# --- Deleting what is in use ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["", "nightly", "Nightly exports", "\x00", "x" * 10_000])
def test_a_key_in_use_is_only_deleted_when_its_name_is_typed(office: Office, typed: str) -> None:
    key, plain = office.generate("rio")
    office.use(key.id, NOON - timedelta(hours=23, minutes=59))
    with pytest.raises(Invalid) as refused:
        office.act("rio", keys.delete, key.id, typed=typed)
    assert list(refused.value.problems) == ["name"]
    assert answers(office, plain.reveal(), NOON) is None
    office.act("rio", keys.delete, key.id, typed=" Nightly export ")
    assert answers(office, plain.reveal(), NOON) is Refusal.REVOKED


@pytest.mark.parametrize("last_used_at", [None, NOON - timedelta(hours=24)])
def test_a_key_that_rests_is_deleted_at_once(office: Office, last_used_at: datetime | None) -> None:
    key, _ = office.generate("rio")
    office.set_key(key.id, last_used_at=last_used_at)
    office.act("rio", keys.delete, key.id, typed="")
    assert office.row(key.id).state_at(NOON) is KeyState.REVOKED


# --- Absurd ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_id", ["", "0", "-1", "key_", "key_" + "x" * 36, "abcdefgh_" + "x" * 40, "key_%", "%"])
@pytest.mark.parametrize("what", CHANGES)
def test_an_absurd_id_is_an_unknown_key(shared_office: Office, what: str, key_id: str) -> None:
    with pytest.raises(NotFound):
        shared_office.act("ana", CHANGES[what], key_id)
    (told,) = shared_office.told(action=DONE[what])
    assert told.outcome == "refused"
