"""What keys did: impact before an ending, charts, denials, callers, first requests. Reads what `usage` wrote."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, bindparam, case, func, select

from portal.rules.errors import Refusal
from portal.services import members
from portal.services.usage import ACCEPTED, KEEP_REFUSALS
from portal.store.database import Session, read
from portal.store.models import ApiKey, FirstRequest, KeyCaller, RefusedRequest, Usage, hour_of

RECENT_DAYS = 14
_HOUR = timedelta(hours=1)
BUSY = timedelta(hours=24)  # a key that was accepted this recently is in use: ending it asks for its name
_CALLERS = 5
_MOST_CALLERS = 50
_DENIALS = 20  # kinds of refused requests that are listed


@dataclass(frozen=True, slots=True)
class CallerSeen:
    """A place and program that used a key."""

    address: str
    client: str
    count: int
    first_at: datetime
    last_at: datetime
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Impact:
    """What ending a key would stop, in numbers."""

    total: int  # accepted requests in the last 24 hours
    last_at: datetime | None
    writes: list[tuple[str, int]]  # by app name
    callers: list[CallerSeen]
    environment: str
    quiet_30d: bool
    refused: int = 0  # requests of a key that was never accepted

    @property
    def never_used(self) -> bool:
        """Whether no request was ever accepted."""
        return self.last_at is None

    @property
    def is_busy(self) -> bool:
        """Whether the key is in use now: ending it asks for its name."""
        return self.total > 0


@dataclass(frozen=True, slots=True)
class DayBars:
    """A key's requests in the last 14 days, day by day in UTC."""

    bars: list[tuple[date, int, int]]  # day, accepted, refused
    total: int = field(init=False)  # all accepted ones
    refused: int = field(init=False)

    def __post_init__(self) -> None:
        """Add them up once."""
        object.__setattr__(self, "total", sum(accepted for _, accepted, _ in self.bars))
        object.__setattr__(self, "refused", sum(refused for _, _, refused in self.bars))

    @property
    def today(self) -> int:
        """Those of today."""
        return self.bars[-1][1]

    @property
    def busiest(self) -> tuple[date, int]:
        """The day with most accepted ones."""
        day, count, _ = max(self.bars, key=lambda bar: bar[1])
        return day, count


DaysOf = Callable[[Session, Sequence[int], datetime], Mapping[int, DayBars]]  # `recent_days`, or what stands for it


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bar of the requests chart."""

    start: datetime
    accepted: int
    refused: int


@dataclass(frozen=True, slots=True)
class Denial:
    """Refused requests that are alike, told by the latest."""

    at: datetime
    method: str
    path: str
    status: int
    reason: str
    scope: str
    address: str
    client: str
    count: int
    request_id: str


def impact_of(session: Session, key: ApiKey, now: datetime) -> Impact:
    """Count what a key did in the last 24 hours, and find its last use."""
    since = now - BUSY
    rows = session.execute(
        select(
            Usage.scope,
            Usage.address,
            Usage.client,
            func.sum(Usage.count).label("times"),
            func.min(Usage.first_at).label("first_at"),
            func.max(Usage.last_at).label("last_at"),
        )
        .where(Usage.key_id == key.id, *accepted_since(since))
        .group_by(Usage.scope, Usage.address, Usage.client)
    ).all()
    writes: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        app, _, action = row.scope.partition(":")
        if action == "write":
            writes[app] += int(row.times)
    names = members.app_names(session, key.workspace_id) if writes else {}
    last_at = last_use_of(session, key)
    return Impact(
        total=sum(int(row.times) for row in rows),
        last_at=last_at,
        writes=[(names.get(app, app), count) for app, count in writes.items()],
        callers=_by_caller(((row.address, row.client, row.times, row.first_at, row.last_at) for row in rows), now),
        environment=key.environment,
        quiet_30d=last_at is None or now - last_at > timedelta(days=30),
        refused=0 if last_at else refusals_of(session, key),
    )


def last_use_of(session: Session, key: ApiKey) -> datetime | None:
    """Find when a key was last accepted."""
    latest = select(func.max(KeyCaller.last_at)).where(KeyCaller.key_id == key.id)
    return session.scalar(latest) or key.last_used_at


def is_busy(session: Session, key: ApiKey, now: datetime) -> bool:
    """Say what its impact would of a key: whether it was accepted in the last 24 hours; cheaper than to count all."""
    recent = select(Usage.key_id).where(Usage.key_id == key.id, *accepted_since(now - BUSY))
    return session.scalar(recent.limit(1)) is not None


def accepted_since(since: datetime) -> tuple[ColumnElement[bool], ...]:
    """Give the conditions of the counts that hold requests accepted after a moment; their hours lead to them."""
    return Usage.outcome == ACCEPTED, Usage.hour >= hour_of(since), Usage.last_at > since


def callers_of(
    session: Session, key: ApiKey, now: datetime, since: datetime | None = None, limit: int = _CALLERS
) -> list[CallerSeen]:
    """List the last places that a key was used from, with what they are: ever, or since a moment.

    Counts are kept by the hour: that of a caller whose `first_at` is before the moment holds requests before it too.
    """
    seen: type[KeyCaller | Usage] = KeyCaller
    conditions = [KeyCaller.key_id == key.id]
    if since is not None:
        seen = Usage
        conditions = [Usage.key_id == key.id, *accepted_since(since)]
    rows = session.execute(
        select(seen.address, seen.client, func.sum(seen.count), func.min(seen.first_at), func.max(seen.last_at))
        .where(*conditions)
        .group_by(seen.address, seen.client)
        .order_by(func.max(seen.last_at).desc())
        .limit(limit)
    )
    return _by_caller((tuple(row) for row in rows), now, limit)


def _by_caller(rows: Iterable[Sequence[object]], now: datetime, limit: int = _CALLERS) -> list[CallerSeen]:
    seen: dict[tuple[str, str], CallerSeen] = {}
    for address, client, count, first_at, last_at in rows:
        place = (str(address), str(client))
        known = seen.get(place)
        assert isinstance(first_at, datetime) and isinstance(last_at, datetime)  # noqa: S101
        first = min(first_at, known.first_at) if known else first_at
        last = max(last_at, known.last_at) if known else last_at
        total = int(str(count)) + (known.count if known else 0)
        seen[place] = CallerSeen(*place, total, first, last, now - first < timedelta(hours=24))
    return sorted(seen.values(), key=lambda caller: caller.last_at, reverse=True)[:limit]


def recent_days(session: Session, key_ids: Sequence[int], now: datetime) -> dict[int, DayBars]:
    """Count the last 14 days of several keys at once, by day in UTC."""
    today = hour_of(now) // 24
    first = today - RECENT_DAYS + 1
    counted: defaultdict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    for key_id, number, accepted, refused in read(session, _RECENT, {"keys": list(key_ids), "first": first * 24}):
        counted[key_id][number] = (int(accepted), int(refused))
    days = [(number, _day(number)) for number in range(first, today + 1)]
    unused = DayBars([(day, 0, 0) for _, day in days])

    def bars(found: Mapping[int, tuple[int, int]]) -> DayBars:
        return DayBars([(day, *found.get(number, (0, 0))) for number, day in days])

    return {key_id: bars(counted[key_id]) if key_id in counted else unused for key_id in key_ids}


def buckets(session: Session, key: ApiKey, now: datetime, span: timedelta) -> list[Bucket]:
    """Count a key's requests for its chart: by the hour over a day, else by the day in UTC."""
    size = 1 if span <= timedelta(hours=24) else 24
    last = hour_of(now) // size
    first = last - int(span / _HOUR) // size + 1
    hourly = _by_hour(Usage.key_id == key.id, first * size)
    number = hourly.c.hour // size
    rows = session.execute(select(number, func.sum(hourly.c.accepted), func.sum(hourly.c.refused)).group_by(number))
    counted = {at: (int(accepted), int(refused)) for at, accepted, refused in rows}
    return [
        Bucket(datetime.fromtimestamp(at * size * 3600, UTC), *counted.get(at, (0, 0))) for at in range(first, last + 1)
    ]


def denials(session: Session, key: ApiKey, now: datetime) -> list[Denial]:
    """List a key's refused requests of the last 30 days, like ones as one, latest first."""
    mine = (RefusedRequest.key_id == key.id, RefusedRequest.at > now - KEEP_REFUSALS)
    rows = session.scalars(select(RefusedRequest).where(*mine).order_by(RefusedRequest.id.desc()).limit(1000))
    grouped: dict[tuple[str, ...], list[RefusedRequest]] = {}
    for row in rows:
        grouped.setdefault((row.method, row.path, row.reason, row.required, row.address, row.client), []).append(row)
    return [
        Denial(
            at=found[0].at,
            method=found[0].method,
            path=found[0].path,
            status=Refusal(found[0].reason).status,
            reason=found[0].reason,
            scope=found[0].required,
            address=found[0].address,
            client=found[0].client,
            count=len(found),
            request_id=found[0].request_id,
        )
        for found in list(grouped.values())[:_DENIALS]
    ]


def last_exercised(session: Session, key: ApiKey) -> dict[str, datetime]:
    """Say when each scope of a key was last used with success."""
    rows = session.execute(
        select(KeyCaller.scope, func.max(KeyCaller.last_at))
        .where(KeyCaller.key_id == key.id, KeyCaller.scope != "")
        .group_by(KeyCaller.scope)
    )
    return {scope: at for scope, at in rows}  # noqa: C416 - rows are no pairs to mypy


def first_request(session: Session, key: ApiKey) -> FirstRequest | None:
    """Find the first request that a key was accepted with."""
    return session.get(FirstRequest, key.id)


def last_refusal(session: Session, key: ApiKey) -> RefusedRequest | None:
    """Find the latest refused request of a key."""
    return session.scalars(
        select(RefusedRequest).where(RefusedRequest.key_id == key.id).order_by(RefusedRequest.id.desc()).limit(1)
    ).first()


def first_refusal_after(session: Session, key: ApiKey, since: datetime) -> RefusedRequest | None:
    """Find the first request of a key that was refused after a moment."""
    after = select(RefusedRequest).where(RefusedRequest.key_id == key.id, RefusedRequest.at > since)
    return session.scalar(after.order_by(RefusedRequest.at, RefusedRequest.id).limit(1))


def accepted_after(session: Session, key: ApiKey, since: datetime) -> tuple[int, bool]:
    """Count the requests that a key was accepted with after a moment, and say whether that is only the least.

    Counts are kept by the hour, each with its first and last moment: of one that began before and ended after, only
    the last request is known to lie after. So 0 is exact.
    """
    rows = session.execute(
        select(Usage.count.label("times"), Usage.first_at).where(Usage.key_id == key.id, *accepted_since(since))
    ).all()
    astride = sum(row.first_at <= since for row in rows)
    return sum(row.times for row in rows if row.first_at > since) + astride, astride > 0


def refusals_of(session: Session, key: ApiKey) -> int:
    """Count all refused requests of a key, as far back as counts are kept."""
    refused = (Usage.key_id == key.id, Usage.outcome != ACCEPTED)
    return int(session.scalar(select(func.sum(Usage.count)).where(*refused)) or 0)


def refused_since_its_end(session: Session, key: ApiKey) -> list[CallerSeen]:
    """List who still calls with a key that has ended for ever; `first_at` and `last_at` are moments after its end."""
    rows = session.execute(
        select(Usage.address, Usage.client, func.sum(Usage.count), func.min(Usage.first_at), func.max(Usage.last_at))
        .where(Usage.key_id == key.id, Usage.outcome.in_([str(Refusal.RETIRED), str(Refusal.REVOKED)]))
        .group_by(Usage.address, Usage.client)
        .order_by(func.max(Usage.last_at).desc())
        .limit(_MOST_CALLERS)
    )
    return [CallerSeen(*row) for row in rows]


def _by_hour(whose: ColumnElement[bool], first: Any) -> Subquery:
    """Sum by the hour, in the order of the table's key: nothing has to be sorted, however much there is."""
    accepted = func.sum(case((Usage.outcome == ACCEPTED, Usage.count), else_=0)).label("accepted")
    refused = func.sum(case((Usage.outcome != ACCEPTED, Usage.count), else_=0)).label("refused")
    return (
        select(Usage.key_id, Usage.hour, accepted, refused)
        .where(whose, Usage.hour >= first)
        .group_by(Usage.key_id, Usage.hour)
        .subquery()
    )


def _by_day() -> Select[*tuple[Any, ...]]:
    hourly = _by_hour(Usage.key_id.in_(bindparam("keys", expanding=True)), bindparam("first"))
    day = hourly.c.hour // 24
    sums = func.sum(hourly.c.accepted), func.sum(hourly.c.refused)
    return select(hourly.c.key_id, day, *sums).group_by(hourly.c.key_id, day)


_RECENT = _by_day()


def _day(number: int) -> date:
    return datetime.fromtimestamp(number * 86_400, UTC).date()
