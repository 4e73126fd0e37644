"""How long keys live: days of exactly 86,400 seconds, whatever the clocks on walls do (T-34)."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.rules.lifetimes import Lifetime

DAYS = {Lifetime.DAYS_30: 30, Lifetime.DAYS_90: 90, Lifetime.YEAR: 365}
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")

moments = st.datetimes(
    datetime(2000, 1, 1),  # noqa: DTZ001 - Hypothesis adds the zone
    datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from(ZONES).map(ZoneInfo),
)


@given(moments, st.sampled_from(sorted(DAYS)))
def test_a_key_lives_whole_days_of_86_400_seconds(start: datetime, lifetime: Lifetime) -> None:
    start = start.astimezone(UTC)
    end = lifetime.ends_at(start)
    assert end is not None
    assert (end - start).total_seconds() == DAYS[lifetime] * 86_400
    assert end.utcoffset() == timedelta()


@pytest.mark.parametrize("start", ["2025-03-01T12:00", "2025-10-01T12:00"])
def test_a_change_of_the_clocks_in_between_does_not_move_the_end(start: str) -> None:
    berlin = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    end = Lifetime.DAYS_30.ends_at(berlin.astimezone(UTC))
    assert end is not None
    assert end.timestamp() - berlin.timestamp() == 30 * 86_400
    assert end.astimezone(ZoneInfo("Europe/Berlin")).hour != 12  # the wall's clock has moved, the key's end has not


@given(moments)
def test_never_has_no_end(start: datetime) -> None:
    assert Lifetime.NEVER.ends_at(start) is None


def test_the_choices_are_those_of_the_contract() -> None:
    assert [str(each) for each in Lifetime] == ["30d", "90d", "1y", "never"]
