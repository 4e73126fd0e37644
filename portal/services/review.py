"""The review of a workspace's keys: what could hurt, what to do about each, and what somebody found to be fine.

All findings of all keys that a seat sees are decided from a handful of statements, however many keys there are.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, func, or_, select
from sqlalchemy.orm import aliased

from portal.rules import text
from portal.rules.access import AccessLevel, Action, Role, level_of
from portal.rules.credentials import KEY_SHAPED, Keyring
from portal.rules.errors import Invalid
from portal.services import audit, key_views, keys
from portal.services.activity import hour_of
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat
from portal.services.usage import ACCEPTED
from portal.store.database import Session
from portal.store.models import (
    Access,
    Account,
    ApiKey,
    App,
    KeyCaller,
    KeyReview,
    KeyScope,
    Member,
    Usage,
)

PAGE_SIZE = 25
QUIET = timedelta(days=90)  # how long "looks fine" holds
STALE, VERY_STALE = timedelta(days=30), timedelta(days=90)
NEVER_USED_AFTER = timedelta(days=7)
UNUSED_SCOPES = timedelta(days=60)
MANY_REFUSALS = 20  # in 24 hours


class Finding(StrEnum):
    """Why a key is in the review; the riskiest first."""

    OWNER_LOST = "owner_lost"
    ABOVE_GRANTER = "above_granter"
    EXPIRING = "expiring"
    REFUSED_OFTEN = "refused_often"
    ADMIN_OWNED = "admin_owned"
    STALE = "stale"
    NEVER_USED = "never_used"
    TOO_LONG = "too_long"
    NEVER_EXPIRES = "never_expires"
    UNUSED_SCOPES = "unused_scopes"


class Advice(StrEnum):
    """The one action that is recommended first."""

    DEACTIVATE = "deactivate"
    ROTATE_NARROWER = "rotate_narrower"
    ROTATE = "rotate"
    MOVE = "move"
    LOOK = "look"


_ADVICE = {
    Finding.OWNER_LOST: Advice.DEACTIVATE,
    Finding.ABOVE_GRANTER: Advice.DEACTIVATE,
    Finding.EXPIRING: Advice.ROTATE,
    Finding.REFUSED_OFTEN: Advice.LOOK,
    Finding.ADMIN_OWNED: Advice.MOVE,
    Finding.STALE: Advice.DEACTIVATE,
    Finding.NEVER_USED: Advice.DEACTIVATE,
    Finding.TOO_LONG: Advice.ROTATE,
    Finding.NEVER_EXPIRES: Advice.ROTATE,
    Finding.UNUSED_SCOPES: Advice.ROTATE_NARROWER,
}
_RISK = {finding: rank for rank, finding in enumerate(Finding)}


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A key with what was found about it."""

    id: str
    name: str
    hint: str
    last_four: str
    environment: str
    owner_name: str
    owner_kind: str
    findings: tuple[Finding, ...]
    advice: Advice
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    scope_count: int
    unused_scopes: int
    paused_scopes: int
    refusals: int
    owner_is_active: bool


@dataclass(frozen=True, slots=True)
class Review:
    """One page of the review, and how many keys each finding has in all."""

    keys: list[Reviewed]
    counts: Mapping[Finding, int]
    number: int
    total: int  # keys with the finding that was asked for, or with any

    @property
    def pages(self) -> int:
        """How many pages there are; at least one."""
        return max(1, -(-self.total // PAGE_SIZE))


@dataclass(frozen=True, slots=True)
class LastLook:
    """When somebody last marked a finding, and who."""

    at: datetime
    by: str


def look(
    session: Session, actor: Actor, seat: Seat, keyring: Keyring, finding: Finding | None = None, number: int = 1
) -> Review:
    """Review the active keys that a seat sees: live before sandbox, then the riskiest."""
    found = _all(session, actor, seat)
    counts = Counter(each for key in found for each in key.findings)
    wanted = [key for key in found if finding in key.findings] if finding else found
    number = min(number, max(1, -(-len(wanted) // PAGE_SIZE)))
    first = (number - 1) * PAGE_SIZE
    shown = [_show(key, seat, keyring) for key in wanted[first : first + PAGE_SIZE]]
    return Review(shown, counts, number, len(wanted))


def chosen(session: Session, actor: Actor, seat: Seat, keyring: Keyring, key_ids: Sequence[str]) -> list[Reviewed]:
    """Look at some keys, such as those that were ticked: of those that a seat sees, the active ones."""
    return [_show(key, seat, keyring) for key in _all(session, actor, seat, only=key_ids)]


class _Found(NamedTuple):
    """A key's row, what it may do and does, and what is found of that: of thousands, a page shows few."""

    row: Row[Any]
    scope_count: int
    unused: int
    paused: int
    refusals: int
    findings: tuple[Finding, ...]


def _all(session: Session, actor: Actor, seat: Seat, only: Sequence[str] | None = None) -> list[_Found]:
    now = actor.at
    rows = session.execute(_active(seat, now, only)).all()
    ids = select(_active(seat, now, only).subquery().c.id)
    scopes = _scopes(session, ids)
    exercised = _exercised(session, ids, now)
    refusals = _refusals(session, ids, now)
    quiet = _quiet(session, ids, now)
    above = _above_granters(session, seat)
    found = []
    for row in rows:
        held = scopes.get(row.id, ())
        used = exercised.get(row.id, ())
        key = _Found(
            row,
            scope_count=len(held),
            unused=sum(scope not in used for scope, _, _ in held),
            paused=sum(not works for _, _, works in held),
            refusals=refusals.get(row.id, 0),
            findings=(),
        )
        is_above = bool(above) and any((row.member_id, solution_id) in above for _, solution_id, _ in held)
        findings = _judge(key, seat, now, is_above=is_above)
        left = tuple(each for each in findings if each not in quiet.get(row.id, ()))
        if left or only is not None:
            found.append(key._replace(findings=left))
    return sorted(found, key=_risk)


def _risk(key: _Found) -> tuple[bool, list[int], str]:
    return key.row.environment != "live", [_RISK[each] for each in key.findings], key.row.name


def _active(seat: Seat, now: datetime, only: Sequence[str] | None) -> Select[*tuple[Any, ...]]:
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    statement: Select[*tuple[Any, ...]] = (
        key_views.visible_to(seat)
        .outerjoin(Account, Account.id == Member.account_id)
        .with_only_columns(
            ApiKey.id, ApiKey.public_id, ApiKey.name, ApiKey.last_four, ApiKey.environment, ApiKey.created_at,
            ApiKey.expires_at, ApiKey.last_used_at, ApiKey.member_id,
            Member.name.label("owner_name"), Member.role, Member.account_id,
            Member.deactivated_at.label("owner_off"), Member.removed_at.label("owner_gone"),
            Account.deactivated_at.label("account_off"),
        )
        .where(
            ApiKey.revoked_at.is_(None), ApiKey.retires_at.is_(None), ApiKey.deactivated_at.is_(None), unexpired
        )
    )  # fmt: skip
    return statement if only is None else statement.where(ApiKey.public_id.in_(only))


def _scopes(session: Session, ids: Select[*tuple[Any, ...]]) -> dict[int, list[tuple[str, int, bool]]]:
    """Read each key's scopes, with the solution that each lies in and whether its owner may hold it now."""
    rows = session.execute(
        select(KeyScope.key_id, App.slug, KeyScope.action, App.solution_id, Member.role, Access.level)
        .join(App, App.id == KeyScope.app_id)
        .join(ApiKey, ApiKey.id == KeyScope.key_id)
        .join(Member, Member.id == ApiKey.member_id)
        .outerjoin(Access, (Access.solution_id == App.solution_id) & (Access.member_id == ApiKey.member_id))
        .where(KeyScope.key_id.in_(ids))
    )
    found: defaultdict[int, list[tuple[str, int, bool]]] = defaultdict(list)
    for key_id, slug, action, solution_id, role, level in rows:
        found[key_id].append((f"{slug}:{action}", solution_id, _works(action, role, level)))
    return found


@cache  # a handful of combinations for thousands of rows
def _works(action: str, role: str, level: str | None) -> bool:
    return Action(action) in level_of(Role(role), AccessLevel(level) if level else None).actions


def _exercised(session: Session, ids: Select[*tuple[Any, ...]], now: datetime) -> dict[int, set[str]]:
    rows = session.execute(
        select(KeyCaller.key_id, KeyCaller.scope)
        .where(KeyCaller.key_id.in_(ids), KeyCaller.last_at > now - UNUSED_SCOPES, KeyCaller.scope != "")
        .distinct()
    )
    found: defaultdict[int, set[str]] = defaultdict(set)
    for key_id, scope in rows:
        found[key_id].add(scope)
    return found


def _refusals(session: Session, ids: Select[*tuple[Any, ...]], now: datetime) -> dict[int, int]:
    since = now - timedelta(hours=24)
    rows = session.execute(
        select(Usage.key_id, func.sum(Usage.count))
        .where(Usage.key_id.in_(ids), Usage.hour >= hour_of(since), Usage.outcome != ACCEPTED, Usage.last_at > since)
        .group_by(Usage.key_id)
    )
    return {key_id: int(count) for key_id, count in rows}


def _quiet(session: Session, ids: Select[*tuple[Any, ...]], now: datetime) -> dict[int, set[str]]:
    rows = session.execute(
        select(KeyReview.key_id, KeyReview.finding).where(KeyReview.key_id.in_(ids), KeyReview.until > now)
    )
    found: defaultdict[int, set[str]] = defaultdict(set)
    for key_id, finding in rows:
        found[key_id].add(finding)
    return found


def _above_granters(session: Session, seat: Seat) -> set[tuple[int, int]]:
    """List where an API member holds what its granter could not hand out any more: member and solution."""
    granter, granters_access = aliased(Member), aliased(Access)
    rows = session.execute(
        select(Access.member_id, Access.solution_id)
        .join(Member, Member.id == Access.member_id)
        .join(granter, granter.id == Access.granted_by_id)
        .outerjoin(
            granters_access,
            (granters_access.member_id == granter.id) & (granters_access.solution_id == Access.solution_id),
        )
        .where(
            Member.workspace_id == seat.workspace.id,
            Member.account_id.is_(None),
            or_(
                granter.removed_at.is_not(None),
                granter.deactivated_at.is_not(None),
                (granter.role != Role.ADMIN)
                & (func.coalesce(granters_access.level, "none") != AccessLevel.MANAGE.value),
            ),
        )
    )
    return {(member_id, solution_id) for member_id, solution_id in rows}


def _judge(key: _Found, seat: Seat, now: datetime, *, is_above: bool) -> list[Finding]:
    """Say what there is to find about a key, the riskiest first: in the order of `Finding`."""
    row = key.row
    limit = seat.workspace.max_key_days
    age = now - row.created_at
    since_use = now - row.last_used_at if row.last_used_at else None
    left = row.expires_at - now if row.expires_at else None
    lives = row.expires_at - row.created_at if row.expires_at else None
    holds = (
        (Finding.OWNER_LOST, key.paused > 0 or not _owner_is_active(row)),
        (Finding.ABOVE_GRANTER, is_above),
        (Finding.EXPIRING, left is not None and left <= key_views.EXPIRING),
        (Finding.REFUSED_OFTEN, key.refusals > MANY_REFUSALS),
        (Finding.ADMIN_OWNED, row.role == "admin" and row.environment == "live"),
        (Finding.STALE, since_use is not None and since_use > STALE),
        (Finding.NEVER_USED, since_use is None and age > NEVER_USED_AFTER),
        (Finding.TOO_LONG, limit is not None and lives is not None and lives > timedelta(days=limit)),
        (Finding.NEVER_EXPIRES, left is None),
        (Finding.UNUSED_SCOPES, key.unused > 0 and since_use is not None and since_use <= UNUSED_SCOPES < age),
    )
    return [finding for finding, is_so in holds if is_so]


def _owner_is_active(row: Row[Any]) -> bool:
    return row.owner_off is None and row.owner_gone is None and row.account_off is None


def _show(key: _Found, seat: Seat, keyring: Keyring) -> Reviewed:
    row = key.row
    kind = "me" if row.member_id == seat.member.id else "api" if row.account_id is None else "human"
    return Reviewed(
        id=row.public_id,
        name=row.name,
        hint=keyring.format.hint(row.environment, row.last_four),
        last_four=row.last_four,
        environment=row.environment,
        owner_name=row.owner_name,
        owner_kind=kind,
        findings=key.findings,
        advice=_advice(key, may_rotate=kind != "human"),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        scope_count=key.scope_count,
        unused_scopes=key.unused,
        paused_scopes=key.paused,
        refusals=key.refusals,
        owner_is_active=_owner_is_active(row),
    )


def _advice(key: _Found, *, may_rotate: bool) -> Advice:
    """Recommend one thing for the riskiest finding: of another human's key, only what an administrator can do."""
    if not key.findings:
        return Advice.LOOK
    advice = _ADVICE[key.findings[0]]
    if advice in (Advice.ROTATE, Advice.ROTATE_NARROWER, Advice.MOVE) and not may_rotate:
        return Advice.DEACTIVATE
    keeps_some = key.paused < key.scope_count
    if key.findings[0] is Finding.OWNER_LOST and may_rotate and keeps_some and _owner_is_active(key.row):
        return Advice.ROTATE_NARROWER
    return advice


def mark_fine(session: Session, actor: Actor, key_id: str, finding: Finding, note: str) -> str:
    """Note that a finding is as it should be, with why; it is not shown again for 90 days. Give the key's name."""
    seat, key = keys.hold(session, actor, key_id, Event.KEY_REVIEWED)
    clean = text.clean_line(note)
    if not clean:
        raise Invalid({"note": "Say in a few words why this is fine."})
    if len(clean) > 140 or KEY_SHAPED.search(clean):
        raise Invalid({"note": "Say it in at most 140 characters, without any key."})
    session.add(
        KeyReview(key_id=key.id, finding=finding, note=clean, by_id=seat.member.id, at=actor.at, until=actor.at + QUIET)
    )
    audit.record(
        session,
        actor,
        Event.KEY_REVIEWED,
        target_id=key.public_id,
        target_name=f"{key.name} (…{key.last_four})",
        details={"finding": str(finding), "note": clean, "until": (actor.at + QUIET).isoformat()},
    )
    return key.name


def last_look(session: Session, seat: Seat) -> LastLook | None:
    """Say when a finding of this workspace was last marked, and by whom."""
    row = session.execute(
        select(KeyReview.at, Member.name)
        .join(Member, Member.id == KeyReview.by_id)
        .where(Member.workspace_id == seat.workspace.id)
        .order_by(KeyReview.at.desc())
        .limit(1)
    ).one_or_none()
    return LastLook(row.at, row.name) if row else None
