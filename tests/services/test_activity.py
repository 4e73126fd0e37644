"""What is told of a key's use: impact before an ending, charts, denials, callers; nothing of other keys."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from sqlalchemy import event, update

from portal.rules.errors import Refusal
from portal.services import activity
from portal.store.models import ApiKey, App
from tests.services.office import NOON, Office

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
Told = TypeVar("Told")


def ask(office: Office, what: Callable[..., Told], key_id: str, *more: Any, **options: Any) -> Told:
    """Ask about one key, now."""
    with office.database.reading() as session:
        key = session.query(ApiKey).filter_by(public_id=key_id).one()
        return what(session, key, *more, **options)


@pytest.fixture
def key(office: Office) -> str:
    """A key of max, and another of his in full use that must not show anywhere."""
    scopes = ["leads:read", "leads:write", "accounts:write", "tasks:read"]
    other, _ = office.generate("max", name="Another", scopes=scopes)
    office.use(other.id, NOON, scope="leads:write", address="198.51.100.99", times=3)
    office.use(other.id, NOON, refused=Refusal.MISSING_SCOPE, scope="tasks:write")
    view, _ = office.generate("max", scopes=scopes)
    return view.id


# --- Impact ---------------------------------------------------------------------------------------------------------


def test_the_impact_of_an_ending_is_what_the_key_did_in_the_last_24_hours(office: Office, key: str) -> None:
    office.use(key, NOON - 30 * HOUR, scope="leads:write", address="192.0.2.9")
    office.use(key, NOON - 23 * HOUR, scope="leads:write", times=2)
    office.use(key, NOON - HOUR, scope="accounts:write", client="cron/1")
    office.use(key, NOON - 2 * HOUR, scope="leads:read", address="2001:db8::1", times=4)
    office.use(key, NOON - MINUTE, refused=Refusal.MISSING_SCOPE, scope="tasks:write", status=403)
    told = ask(office, activity.impact_of, key, NOON)
    assert (told.total, told.last_at, told.environment) == (7, NOON - HOUR, "live")
    assert sorted(told.writes) == [("Accounts", 1), ("Leads", 2)]
    with office.database.transaction() as session:
        session.execute(update(App).where(App.slug == "tasks").values(name="Leads"))
    assert ("Leads (Sales)", 2) in ask(office, activity.impact_of, key, NOON).writes
    assert [(seen.address, seen.client, seen.count) for seen in told.callers] == [
        ("203.0.113.9", "cron/1", 1),
        ("2001:db8::1", "curl/8.5", 4),
        ("203.0.113.9", "curl/8.5", 2),
    ]
    assert (told.is_busy, told.never_used, told.quiet_30d) == (True, False, False)


def test_a_key_that_was_never_accepted_is_told_so(office: Office, key: str) -> None:
    office.use(key, NOON, refused=Refusal.MISSING_SCOPE, scope="tasks:write")
    told = ask(office, activity.impact_of, key, NOON)
    assert (told.total, told.last_at, told.writes, told.callers) == (0, None, [], [])
    assert (told.is_busy, told.never_used, told.quiet_30d) == (False, True, True)


@pytest.mark.parametrize(
    ("ago", "busy", "quiet"),
    [
        (timedelta(), True, False),
        (DAY - timedelta(seconds=1), True, False),
        (DAY, False, False),
        (30 * DAY, False, False),
        (30 * DAY + MINUTE, False, True),
    ],
)
def test_a_key_is_busy_for_a_day_after_its_last_use_and_quiet_after_thirty(
    office: Office, key: str, ago: timedelta, busy: bool, quiet: bool
) -> None:
    office.use(key, NOON - ago)
    told = ask(office, activity.impact_of, key, NOON)
    assert (told.is_busy, told.quiet_30d, told.last_at) == (busy, quiet, NOON - ago)
    assert ask(office, activity.is_busy, key, NOON) is busy


def test_only_refused_requests_make_no_key_busy(office: Office, key: str) -> None:
    office.use(key, NOON, refused=Refusal.DEACTIVATED)
    assert ask(office, activity.is_busy, key, NOON) is False


# --- Charts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("span", "step", "bars"), [(DAY, HOUR, 24), (7 * DAY, DAY, 7), (30 * DAY, DAY, 30)])
def test_a_chart_has_a_bar_for_each_hour_or_day_and_the_last_is_now(
    office: Office, key: str, span: timedelta, step: timedelta, bars: int
) -> None:
    now = NOON + 34 * MINUTE
    office.use(key, now, times=3)
    office.use(key, now, refused=Refusal.MISSING_SCOPE, times=2)
    office.use(key, now - (bars - 1) * step)
    office.use(key, now - bars * step, times=50)  # before the chart
    told = ask(office, activity.buckets, key, now, span)
    assert len(told) == bars
    assert {later.start - earlier.start for earlier, later in pairwise(told)} == {step}
    assert told[-1].start <= now < told[-1].start + step
    assert (told[-1].accepted, told[-1].refused) == (3, 2)
    assert (told[0].accepted, told[0].refused) == (1, 0)
    assert (sum(bar.accepted for bar in told), sum(bar.refused for bar in told)) == (4, 2)


def test_the_last_fourteen_days_of_many_keys_are_read_at_once(office: Office, key: str) -> None:
    resting, _ = office.generate("rio", name="Resting")
    office.use(key, NOON, times=2)
    office.use(key, NOON, refused=Refusal.EXPIRED)
    office.use(key, NOON - 13 * DAY - 11 * HOUR, times=7)  # the first moments of the first day
    office.use(key, NOON - 14 * DAY, times=9)
    ids = {key_id: office.row(key_id).id for key_id in (key, resting.id)}
    asked: list[str] = []
    event.listen(office.database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    with office.database.reading() as session:
        days = activity.recent_days(session, list(ids.values()), NOON)
    assert len([each for each in asked if each.startswith("SELECT")]) == 1
    told = days[ids[key]]
    assert [day for day, _, _ in told.bars] == [(NOON - n * DAY).date() for n in range(13, -1, -1)]
    assert (told.total, told.refused, told.today) == (9, 1, 2)
    assert told.busiest == ((NOON - 13 * DAY).date(), 7)
    nothing = days[ids[resting.id]]
    assert (len(nothing.bars), nothing.total, nothing.refused, nothing.today) == (14, 0, 0, 0)


def test_days_are_those_of_utc(office: Office, key: str) -> None:
    midnight = datetime(2026, 1, 12, tzinfo=UTC)
    office.use(key, midnight - timedelta(microseconds=1))
    office.use(key, midnight)
    told = ask(office, activity.buckets, key, NOON, 7 * DAY)
    assert [(bar.start, bar.accepted) for bar in told[-2:]] == [(midnight - DAY, 1), (midnight, 1)]


# --- Denials and callers --------------------------------------------------------------------------------------------


def test_denials_that_are_alike_are_told_as_one_latest_first(office: Office, key: str) -> None:
    wanted: dict[str, Any] = {
        "method": "POST",
        "path": "/api/v1/apps/tasks/records",
        "scope": "tasks:write",
        "status": 403,
    }
    office.use(key, NOON - HOUR, refused=Refusal.MISSING_SCOPE, times=3, **wanted)
    office.use(key, NOON - MINUTE, refused=Refusal.DEACTIVATED, status=401)
    office.use(key, NOON, refused=Refusal.MISSING_SCOPE, **wanted)
    office.use(key, NOON, refused=Refusal.MISSING_SCOPE, **wanted | {"address": "2001:db8::1"})
    told = ask(office, activity.denials, key, NOON)
    assert [(each.reason, each.status, each.count, each.at, each.address) for each in told] == [
        ("missing_scope", 403, 1, NOON, "2001:db8::1"),
        ("missing_scope", 403, 4, NOON, "203.0.113.9"),
        ("deactivated", 401, 1, NOON - MINUTE, "203.0.113.9"),
    ]
    assert (told[1].method, told[1].path, told[1].scope) == ("POST", "/api/v1/apps/tasks/records", "tasks:write")
    later = ask(office, activity.denials, key, NOON + 30 * DAY - MINUTE / 2)
    assert [(each.reason, each.count) for each in later] == [
        ("missing_scope", 1),
        ("missing_scope", 1),
    ]  # not the older


def test_of_many_different_denials_the_latest_twenty_are_told(office: Office, key: str) -> None:
    for n in range(25):
        office.use(key, NOON + n * MINUTE, refused=Refusal.EXPIRED, path=f"/api/v1/{n}")
    assert [each.path for each in ask(office, activity.denials, key, NOON)] == [
        f"/api/v1/{n}" for n in range(24, 4, -1)
    ]


@pytest.mark.parametrize("reason", list(Refusal))
def test_every_reason_a_key_is_refused_for_can_be_told(office: Office, key: str, reason: Refusal) -> None:
    office.use(key, NOON, refused=reason)
    (told,) = ask(office, activity.denials, key, NOON)
    other = {Refusal.MISSING_SCOPE: 403, Refusal.ACCESS_WITHDRAWN: 403, Refusal.RATE_LIMITED: 429}
    assert (told.reason, told.status) == (str(reason), other.get(reason, 401))


def test_the_last_five_callers_are_told_and_which_are_new(office: Office, key: str) -> None:
    for n in range(6):
        office.use(key, NOON - 3 * DAY + n * HOUR, address=f"192.0.2.{n}")
    office.use(key, NOON - HOUR, address="192.0.2.0", times=2)  # known since three days
    office.use(key, NOON, address="192.0.2.77")
    told = ask(office, activity.callers_of, key, NOON)
    assert [seen.address for seen in told] == [f"192.0.2.{n}" for n in (77, 0, 5, 4, 3)]
    assert [seen.is_new for seen in told] == [True, False, False, False, False]
    assert (told[1].count, told[1].first_at, told[1].last_at) == (3, NOON - 3 * DAY, NOON - HOUR)
    since = ask(office, activity.callers_of, key, NOON, since=NOON - 2 * HOUR)
    assert [(seen.address, seen.count) for seen in since] == [("192.0.2.77", 1), ("192.0.2.0", 2)]


def test_each_scope_says_when_it_was_last_used_with_success(office: Office, key: str) -> None:
    office.use(key, NOON - DAY, scope="leads:read")
    office.use(key, NOON - HOUR, scope="leads:read", address="192.0.2.1")
    office.use(key, NOON, scope="leads:write", refused=Refusal.ACCESS_WITHDRAWN)
    office.use(key, NOON)  # needs none
    assert ask(office, activity.last_exercised, key) == {"leads:read": NOON - HOUR}


# --- The first request, and what came after a moment -----------------------------------------------------------------


def test_the_first_request_and_the_last_refusal_are_found(office: Office, key: str) -> None:
    assert ask(office, activity.first_request, key) is None
    assert ask(office, activity.last_refusal, key) is None
    office.use(key, NOON, refused=Refusal.MISSING_SCOPE, path="/one")
    office.use(key, NOON + MINUTE, refused=Refusal.MISSING_SCOPE, path="/two")
    office.use(key, NOON + 2 * MINUTE, path="/three")
    office.use(key, NOON + 3 * MINUTE, path="/four")
    first, refused = ask(office, activity.first_request, key), ask(office, activity.last_refusal, key)
    assert first
    assert refused
    assert (first.path, refused.path) == ("/three", "/two")


def test_what_was_accepted_after_a_moment_is_counted(office: Office, key: str) -> None:
    office.use(key, NOON - HOUR, times=5)
    office.use(key, NOON + MINUTE, times=2)
    office.use(key, NOON + 2 * HOUR, address="192.0.2.1")
    assert ask(office, activity.accepted_after, key, NOON) == (3, False)
    assert ask(office, activity.accepted_after, key, NOON + 3 * HOUR) == (0, False)


def test_a_receipt_counts_what_was_accepted_after_it_and_says_when_that_is_the_least(office: Office, key: str) -> None:
    stopped = NOON + 30 * MINUTE
    office.use(key, stopped - MINUTE, times=5)
    office.use(key, stopped)
    assert ask(office, activity.accepted_after, key, stopped) == (0, False)
    office.use(key, stopped + MINUTE, times=2)  # of the same hour and caller: one row with those before
    assert ask(office, activity.accepted_after, key, stopped) == (1, True)
    office.use(key, stopped + MINUTE, address="192.0.2.1", times=2)
    assert ask(office, activity.accepted_after, key, stopped) == (3, True)


def test_a_receipt_names_the_first_refused_request_after_it(office: Office, key: str) -> None:
    office.use(key, NOON - MINUTE, refused=Refusal.MISSING_SCOPE, path="/before")
    office.use(key, NOON, refused=Refusal.MISSING_SCOPE, path="/at")
    assert ask(office, activity.first_refusal_after, key, NOON) is None
    office.use(key, NOON + 2 * MINUTE, refused=Refusal.DEACTIVATED, path="/second")
    office.use(key, NOON + MINUTE, refused=Refusal.DEACTIVATED, path="/first")  # of a process that wrote later
    told = ask(office, activity.first_refusal_after, key, NOON)
    assert told
    assert told.path == "/first"
