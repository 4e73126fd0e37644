"""How long a key lives, and how long the old one of a rotation goes on: the choices of contract, section 2."""

from datetime import datetime, timedelta
from enum import StrEnum


class Lifetime(StrEnum):
    """The choices of the generate form; a day has exactly 86,400 seconds."""

    DAYS_30 = "30d"
    DAYS_90 = "90d"
    YEAR = "1y"
    NEVER = "never"

    def ends_at(self, start: datetime) -> datetime | None:
        """Give the moment at which a key generated at `start` stops; None for never."""
        return start + timedelta(seconds=self.days * 86_400) if self.days else None

    @property
    def days(self) -> int | None:
        """How many days it has; None for never."""
        return _DAYS[self]

    @classmethod
    def like(cls, start: datetime, end: datetime | None) -> "Lifetime":
        """Find the choice of the same length as a key's life so far planned; 90 days when there is none."""
        return next((each for each in cls if each.ends_at(start) == end), cls.DAYS_90)


_DAYS = {Lifetime.DAYS_30: 30, Lifetime.DAYS_90: 90, Lifetime.YEAR: 365, Lifetime.NEVER: None}


class Overlap(StrEnum):
    """How long a key that is being replaced keeps working."""

    NONE = "0"
    HOUR = "1h"
    DAY = "24h"
    WEEK = "7d"
    UNTIL = "until"  # it is retired by hand, 30 days at most

    def ends_at(self, now: datetime, expires_at: datetime | None) -> datetime:
        """Give the moment at which the old key stops: never past its own expiry."""
        return overlap_end(now, timedelta(hours=_HOURS[self]), expires_at)


def overlap_end(now: datetime, length: timedelta, expires_at: datetime | None) -> datetime:
    """Give the moment at which the old key of a rotation stops: never past its own expiry."""
    return min(now + length, expires_at) if expires_at else now + length


_HOURS = {Overlap.NONE: 0, Overlap.HOUR: 1, Overlap.DAY: 24, Overlap.WEEK: 168, Overlap.UNTIL: 720}
LONGEST_OVERLAP = timedelta(hours=720)


def extended(ends_at: datetime, rotated_at: datetime | None, expires_at: datetime | None) -> datetime | None:
    """Give the end of an overlap that is lengthened by a day: never past the key's own expiry, or 30 days in all.

    None where it cannot be lengthened.
    """
    latest = min(moment for moment in ((rotated_at or ends_at) + LONGEST_OVERLAP, expires_at) if moment)
    return min(ends_at + timedelta(days=1), latest) if ends_at < latest else None
