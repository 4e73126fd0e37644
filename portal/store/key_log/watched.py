"""What the check of a key reads: the tables and columns whose changes a log of changes must name."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from portal.store.models import Access, Account, ApiKey, App, KeyScope, Member, Workspace

TABLE = "key_change"
LINES = 10_000  # of the log that are left
MOST = 1_000  # lines that are followed one by one; whoever is further behind takes all for changed

# Written with every use of a key, or of no meaning to it. Only the first use of a key changes what is told of it.
_USES = {"last_used_at", "last_used_address", "last_used_client"}
FIRST_USE = "(OLD.last_used_at IS NULL) <> (NEW.last_used_at IS NULL)"


class Watched(NamedTuple):
    """A table, and whose records a row of it is in."""

    table: str
    whose: str  # the log's column: `key_id`, `member_id`, or '' for everybody
    column: str  # of the table, that names the key or member
    columns: Sequence[str] = ()  # whose updates count, where not all do


class Change(NamedTuple):
    """A line of the log: a key, or a member with all of its keys; with neither, everything."""

    key: int | None
    member: int | None


def _watched(model: Any, whose: str = "", column: str = "", columns: Sequence[str] = ()) -> Watched:
    return Watched(model.__table__.name, whose, column, columns)


KEYS = _watched(ApiKey, "key_id", "id", [each.name for each in ApiKey.__table__.columns if each.name not in _USES])
WATCHED = (
    KEYS,
    _watched(KeyScope, "key_id", "key_id"),
    _watched(Member, "member_id", "id"),
    _watched(Access, "member_id", "member_id"),
    _watched(Account, columns=["id", "deactivated_at"]),
    _watched(Workspace),
    _watched(App),
)
