"""Refusals are told, and a flood of them fills nothing: the first in full, the others as a number (T-76)."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select

from portal.rules.errors import Attempt, NotFound, Refusal
from portal.services import accounts, audit, audit_reading, usage
from portal.services.actor import Actor, Means
from portal.services.audit import Event
from portal.services.usage import Request, Usage
from portal.store.models import AuditEvent, RefusalCount, RefusedRequest
from tests.services.office import NOON, Office

HOUR = timedelta(hours=1)
ADDRESSES = [f"198.51.100.{n}" for n in range(200)]
REASONS = (Refusal.EXPIRED, Refusal.DEACTIVATED, Refusal.REVOKED, Refusal.MISSING_SCOPE)


def flood(office: Office, noted: Usage, keys: list[int], times: int) -> list[str]:
    """Refuse requests of some keys for several reasons; give their ids."""
    ids = [f"req_{n:08}" for n in range(times)]
    for n, request_id in enumerate(ids):
        scope = "tasks:write" if n % 4 == 3 else ""
        caller = (ADDRESSES[n % 200], "curl/8.5")
        request = Request(keys[n % len(keys)], NOON, request_id, "GET", f"/api/v1/{n}", 401, scope, *caller)
        noted.refused(request, str(REASONS[n % 4]), "tasks:read")
        if n % 2_400 == 2_399:
            noted.flush()
    return ids


def test_ten_thousand_refusals_leave_few_rows_and_each_stays_explained(office: Office) -> None:
    ids = [office.generate("rio", name=f"Key {n}")[0].id for n in range(15)]
    keys = [office.row(key_id).id for key_id in ids]
    office.begin()
    noted = Usage(office.database)
    requests = flood(office, noted, keys, 9_600)
    nobodys = accounts.PasswordAttempt(0, b"", "", None, 0)
    with office.database.transaction() as session:
        for n, address in enumerate(ADDRESSES):
            accounts.fail(session, Actor(NOON, Means.SESSION, "visitor", address=address), nobodys)
            audit.refuse(session, office.actor("max"), Event.KEY_DELETED, target_id=f"key_{n}")
    noted.close()
    with office.database.transaction() as session:
        audit.sum_up(session, NOON + HOUR)
    told = office.told()
    assert 50 < len(told) <= 200
    with office.database.reading() as session:
        kept = session.scalars(select(RefusedRequest.request_id)).all()
        assert session.scalar(select(func.count()).select_from(RefusalCount)) == 0
        assert audit_reading.verify(session, office.member("rio").workspace_id).holds
    assert sorted(kept) == requests
    # Nothing is lost: what rows tell adds up to all that was refused.
    counted = [each for each in told if each.action == Event.KEY_REFUSED]
    assert sum(each.details.get("more", each.details.get("times", 1)) for each in counted) == 9_600


def test_of_very_many_the_first_are_counted_by_name_and_stay_so(office: Office) -> None:
    nobodys = accounts.PasswordAttempt(0, b"", "", None, 0)
    with office.database.transaction() as session:
        for address in [*ADDRESSES[:40], ADDRESSES[0]]:
            accounts.fail(session, Actor(NOON, Means.SESSION, "visitor", address=address), nobodys)
        counts = {counted.who: counted.count for counted in session.scalars(select(RefusalCount))}
    assert counts == {**dict.fromkeys(ADDRESSES[:30], 1), ADDRESSES[0]: 2, "others": 10}


def test_a_refused_key_is_told_once_a_reason_and_hour_with_its_name_and_first_request(office: Office) -> None:
    key, _ = office.generate("rio")
    office.use(key.id, NOON, refused="expired", times=3)
    office.use(key.id, NOON + timedelta(minutes=30), refused="expired", times=2)
    office.use(key.id, NOON + timedelta(minutes=31), refused="missing_scope", scope="tasks:write")
    told = office.told(action="key_refused")
    assert [(each.details["reason"], each.details.get("times", 1)) for each in told] == [
        ("expired", 3),
        ("missing_scope", 1),
    ]
    first = office_request(office, told[0])
    assert (told[0].target_id, told[0].target_name, told[0].outcome) == (
        key.id,
        f"Nightly export (…{key.last_four})",
        "refused",
    )
    assert (first.reason, first.at) == ("expired", NOON)
    office.use(key.id, NOON + HOUR, refused="expired")
    later = office.told(action="key_refused")[2:]
    assert {each.details.get("more") for each in later} == {2, None}  # those of the hour before, and a new first


def office_request(office: Office, told: AuditEvent) -> RefusedRequest:
    with office.database.reading() as session:
        return session.scalars(select(RefusedRequest).where(RefusedRequest.request_id == told.request_id)).one()


def test_the_oldest_refusals_of_one_key_make_room(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "FLUSH_EVERY", 3600.0)  # the thread would take notes between two of the flushes below
    key = office.row(office.generate("rio")[0].id)
    noted = Usage(office.database)
    for n in range(usage.KEPT_OF_ONE + 5_000):
        caller = ("198.51.100.7", "curl/8.5")
        noted.refused(Request(key.id, NOON, f"req_{n:08}", "GET", "/api/v1/me", 401, "", *caller), "expired")
        if n % 5_000 == 4_999:
            noted.flush()
    noted.close()
    with office.database.reading() as session:
        count, oldest = session.execute(select(func.count(), func.min(RefusedRequest.request_id))).one()
    assert (count, oldest) == (usage.KEPT_OF_ONE, "req_00005000")


def test_probes_of_foreign_ids_are_counted_after_the_first_ten(office: Office) -> None:
    for n in range(30):
        try:
            with audit.transaction(office.database, office.actor("rio")):
                raise NotFound(attempt=Attempt(Event.KEY_DELETED, f"key_{n}"))
        except NotFound:
            pass
    assert len(office.told(outcome="refused")) == 10
    with office.database.transaction() as session:
        audit.sum_up(session, NOON + HOUR)
    last = office.told()[-1]
    assert (last.details["more"], last.actor_id, last.outcome) == (20, office.actor("rio").public_id, "refused")
