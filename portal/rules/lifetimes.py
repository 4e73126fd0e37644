"""How long a key lives: the four choices (contract, section 2), counted in days of exactly 86,400 seconds."""

from datetime import datetime, timedelta
from enum import StrEnum


class Lifetime(StrEnum):
    """The choices of the generate form."""

    DAYS_30 = "30d"
    DAYS_90 = "90d"
    YEAR = "1y"
    NEVER = "never"

    def ends_at(self, start: datetime) -> datetime | None:
        """Give the moment at which a key generated at `start` stops; None for never."""
        days = _DAYS[self]
        return start + timedelta(seconds=days * 86_400) if days else None


_DAYS = {Lifetime.DAYS_30: 30, Lifetime.DAYS_90: 90, Lifetime.YEAR: 365, Lifetime.NEVER: 0}
