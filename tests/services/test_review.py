"""What the review finds about which keys, for whom, and what takes a finding away."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from portal.rules.access import AccessLevel, Role
from portal.rules.errors import Conflict, Invalid, NotFound
from portal.rules.lifetimes import Lifetime
from portal.services import audit, keys, review
from portal.services.review import PAGE_SIZE, QUIET, Advice, Finding, Reviewed
from portal.store.models import Access, Workspace
from tests.services.office import API_MEMBER, NOON, Office

DAYS = timedelta(days=1)


def look(office: Office, name: str = "ana", at: datetime = NOON, finding: Finding | None = None) -> list[Reviewed]:
    with office.database.reading() as session:
        return review.look(session, office.actor(name, at), office.seat(name), office.keyring, finding).keys


def found(office: Office, name: str = "ana", at: datetime = NOON) -> set[Finding]:
    """Give what is found of the only key that there is."""
    listed = look(office, name, at)
    return set(listed[0].findings) if listed else set()


def lose_sales(office: Office) -> None:
    office.grant("max", "sales", AccessLevel.NONE)


def leave(office: Office) -> None:
    office.change("max", removed_at=NOON)


CASES: dict[str, tuple[dict[str, Any], timedelta, Callable[[Office], None] | None, set[Finding]]] = {
    "fresh and in order": ({}, 6 * DAYS, None, set()),
    "not used for a week": ({}, 8 * DAYS, None, {Finding.NEVER_USED}),
    "without an end": ({"expires": Lifetime.NEVER}, 0 * DAYS, None, {Finding.NEVER_EXPIRES}),
    "ending soon": ({}, 77 * DAYS, None, {Finding.NEVER_USED, Finding.EXPIRING}),
    "of somebody who lost access": ({}, 0 * DAYS, lose_sales, {Finding.OWNER_LOST}),
    "of somebody who left": ({}, 0 * DAYS, leave, {Finding.OWNER_LOST}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_key_has_the_findings_of_its_case(case: str, office: Office) -> None:
    answers, age, change, expected = CASES[case]
    office.generate("max", scopes=["leads:read"], **answers)
    if change:
        change(office)
    assert found(office, at=NOON + age) == expected


def test_a_key_that_has_gone_quiet_is_stale(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"])
    office.use(key.id, NOON)
    assert found(office, at=NOON + 29 * DAYS) == set()
    assert found(office, at=NOON + 31 * DAYS) == {Finding.STALE}


def test_scopes_that_a_used_key_never_needed_are_found_after_sixty_days(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read", "leads:write"], expires=Lifetime.YEAR)
    office.use(key.id, NOON + 55 * DAYS, scope="leads:read")
    assert found(office, at=NOON + 59 * DAYS) == set()
    [seen] = look(office, at=NOON + 61 * DAYS)
    assert seen.findings == (Finding.UNUSED_SCOPES,)
    assert (seen.scope_count, seen.unused_scopes, seen.advice) == (2, 1, Advice.LOOK)
    assert look(office, "max", NOON + 61 * DAYS)[0].advice is Advice.ROTATE_NARROWER


def test_a_key_that_is_refused_all_day_is_found(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"])
    office.use(key.id, NOON, refused="missing_scope", times=20)
    assert found(office, at=NOON + timedelta(hours=1)) == set()
    office.use(key.id, NOON, refused="missing_scope")
    assert found(office, at=NOON + timedelta(hours=1)) == {Finding.REFUSED_OFTEN}
    assert found(office, at=NOON + timedelta(hours=26)) == set()


def test_a_key_that_can_do_nothing_any_more_is_to_be_stopped_for_nothing_narrower_is_left(office: Office) -> None:
    office.generate("max", name="All lost", scopes=["leads:read"])
    office.generate("max", name="Half lost", scopes=["leads:read", "tasks:read"])
    lose_sales(office)
    advice = {each.name: each.advice for each in look(office, "max", NOON)}
    assert advice == {"All lost": Advice.DEACTIVATE, "Half lost": Advice.ROTATE_NARROWER}


def test_a_live_key_of_an_administrator_should_move_to_an_api_member(office: Office) -> None:
    office.generate("ana", scopes=["leads:read"], environment="test")
    assert look(office) == []
    office.generate("ana", name="Live", scopes=["leads:read"])
    [seen] = look(office)
    assert (seen.findings, seen.advice) == ((Finding.ADMIN_OWNED,), Advice.MOVE)


def test_another_persons_key_is_to_be_stopped_only_where_nothing_uses_it(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"])
    soon = NOON + 77 * DAYS
    assert look(office, at=soon)[0].advice is Advice.DEACTIVATE
    office.use(key.id, soon)
    [seen] = look(office, at=soon)
    assert (seen.findings[0], seen.advice) == (Finding.EXPIRING, Advice.LOOK)
    assert look(office, "max", soon)[0].advice is Advice.ROTATE


def test_a_key_that_nothing_uses_is_to_be_stopped_though_it_ends_soon_unless_it_is_called_in_vain(
    office: Office,
) -> None:
    key, _ = office.generate("max", scopes=["leads:read"])
    [seen] = look(office, "max", NOON + 77 * DAYS)
    assert (seen.findings, seen.advice) == ((Finding.EXPIRING, Finding.NEVER_USED), Advice.DEACTIVATE)
    office.use(key.id, NOON + 77 * DAYS, refused="missing_scope", times=21)
    [seen] = look(office, "max", NOON + 77 * DAYS)
    assert seen.advice is Advice.ROTATE


def test_what_a_lead_handed_out_is_found_when_the_lead_could_not_any_more(office: Office) -> None:
    office.generate("lea", owner=API_MEMBER)
    with office.database.transaction() as session:
        given = Access.member_id == office.member(API_MEMBER).id
        session.execute(update(Access).where(given).values(granted_by_id=office.member("lea").id))
    assert look(office) == []
    office.grant("lea", "operations", AccessLevel.READ)
    assert found(office) == {Finding.ABOVE_GRANTER}
    office.change("lea", role=Role.ADMIN)
    assert look(office) == []


def test_a_key_made_before_a_stricter_policy_is_found_and_goes_on(office: Office) -> None:
    _, plain = office.generate("max", scopes=["leads:read"])
    with office.database.transaction() as session:
        session.execute(update(Workspace).where(Workspace.slug == "acme").values(max_key_days=30))
    assert found(office) == {Finding.TOO_LONG}
    office.check(plain)


def test_a_key_that_lives_just_as_long_as_the_policy_allows_is_in_order(office: Office) -> None:
    office.generate("max", scopes=["leads:read"], expires=Lifetime.DAYS_90)
    with office.database.transaction() as session:
        session.execute(update(Workspace).where(Workspace.slug == "acme").values(max_key_days=90))
    assert found(office) == set()


@pytest.mark.parametrize(("name", "sees"), [("max", {"max"}), ("lea", {"api"}), ("ana", {"max", "api"})])
def test_everybody_reviews_what_they_answer_for(name: str, sees: set[str], office: Office) -> None:
    office.generate("max", name="max", scopes=["leads:read"], expires=Lifetime.NEVER)
    office.generate("lea", name="api", owner=API_MEMBER, expires=Lifetime.NEVER)
    assert {key.name for key in look(office, name)} == sees


@pytest.mark.parametrize("what", [keys.deactivate, keys.delete])
def test_a_stopped_key_needs_no_look(what: Any, office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    more: dict[str, Any] = {"typed": ""} if what is keys.delete else {}
    office.act("max", what, key.id, **more)
    assert look(office) == []


def test_live_comes_before_sandbox_and_the_riskiest_first(office: Office) -> None:
    office.generate("max", name="sandbox, never ends", scopes=["leads:read"], environment="test", expires="never")
    office.generate("max", name="live, never ends", scopes=["leads:read"], expires="never")
    office.generate("max", name="live, ending", scopes=["leads:read"], at=NOON - 80 * DAYS)
    assert [key.name for key in look(office)] == ["live, ending", "live, never ends", "sandbox, never ends"]


def test_one_finding_is_asked_for_and_all_are_counted(office: Office) -> None:
    office.generate("max", name="ending", scopes=["leads:read"], at=NOON - 80 * DAYS)
    office.generate("max", name="never ends", scopes=["leads:read"], expires="never")
    with office.database.reading() as session:
        actor, seat = office.actor("ana"), office.seat("ana")
        seen = review.look(session, actor, seat, office.keyring, Finding.NEVER_USED)
    assert [key.name for key in seen.keys] == ["ending"]
    assert seen.total == 1
    assert seen.counts == {Finding.EXPIRING: 1, Finding.NEVER_USED: 1, Finding.NEVER_EXPIRES: 1}


def test_pages_and_counts_cover_every_key(office: Office) -> None:
    for name in ("max", "rio"):
        for number in range(20):
            office.generate(name, name=f"Key {number}", scopes=["tasks:read"], expires="never")
    with office.database.reading() as session:
        actor, seat = office.actor("ana"), office.seat("ana")
        pages = [review.look(session, actor, seat, office.keyring, None, number) for number in (1, 2, 3)]
    assert [len(page.keys) for page in pages] == [PAGE_SIZE, 15, 15]
    assert pages[0].counts == {Finding.NEVER_EXPIRES: 40}
    assert not {key.id for key in pages[0].keys} & {key.id for key in pages[1].keys}


# --- Looks fine -----------------------------------------------------------------------------------------------------


def mark(
    office: Office,
    key_id: str,
    note: str = "runs every January",
    name: str = "max",
    finding: Finding = Finding.NEVER_EXPIRES,
) -> None:
    actor = office.actor(name)
    with audit.transaction(office.database, actor) as session:
        review.mark_fine(session, actor, key_id, finding, note)


def test_what_looks_fine_is_hidden_for_ninety_days_and_told(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    mark(office, key.id, name="ana")
    assert Finding.NEVER_EXPIRES not in found(office, at=NOON + QUIET - DAYS)
    assert found(office, "max", NOON) == set()
    assert Finding.NEVER_EXPIRES in found(office, at=NOON + QUIET)
    [told] = office.told(action="key_reviewed")
    assert (told.details["finding"], told.details["note"]) == ("never_expires", "runs every January")


def test_what_looks_fine_twice_hides_no_more_than_that(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    later = NOON + 8 * DAYS
    for name in ("max", "ana"):
        mark(office, key.id, name=name)
    assert found(office, at=later) == {Finding.NEVER_USED}


@pytest.mark.parametrize("note", ["", "   ", "n" * 141, "a\u202eb"])
def test_looking_fine_needs_a_reason_that_can_be_read(note: str, office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    with pytest.raises(Invalid):
        mark(office, key.id, note)
    assert found(office) == {Finding.NEVER_EXPIRES}


def test_what_somebody_finds_fine_is_hidden_from_them_and_not_from_administrators(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    mark(office, key.id)
    assert found(office, "max") == set()
    assert found(office) == {Finding.NEVER_EXPIRES}


def test_nobody_marks_what_is_not_found_or_is_marked_already(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    for finding in set(Finding) - {Finding.NEVER_EXPIRES}:
        with pytest.raises(Conflict):
            mark(office, key.id, finding=finding)
    mark(office, key.id)
    with pytest.raises(Conflict):
        mark(office, key.id)


def test_nobody_marks_a_key_that_they_cannot_see(office: Office) -> None:
    key, _ = office.generate("max", scopes=["leads:read"], expires=Lifetime.NEVER)
    for name in ("rio", "lea", "zoe"):
        with pytest.raises(NotFound):
            mark(office, key.id, name=name)
