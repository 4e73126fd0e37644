"""The review of a workspace's keys: what could hurt, what to do about each, and what somebody found to be fine.

All keys that a seat sees are judged where they lie, in SQL; only those that a page shows are read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Subquery,
    and_,
    case,
    distinct,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Mapped, aliased

from portal.rules import text
from portal.rules.access import AccessLevel, Action, Environment, Role, level_of, may_grant
from portal.rules.credentials import Keyring
from portal.rules.errors import Conflict, Invalid
from portal.rules.paging import pages_of
from portal.services import audit, key_views, keys, members, policy
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat
from portal.services.usage import ACCEPTED
from portal.store.database import Session
from portal.store.models import Access, Account, ApiKey, App, KeyCaller, KeyReview, KeyScope, Member, Usage, hour_of

PAGE_SIZE = 25
QUIET = timedelta(days=90)  # how long "looks fine" holds
STALE = timedelta(days=30)
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
_IDLE = {Finding.STALE, Finding.NEVER_USED}
# A key's findings as bits of one number, the riskiest highest: the greater it is, the riskier is the key.
_BIT = {finding: 1 << (len(Finding) - rank) for rank, finding in enumerate(Finding, 1)}
_ANY = sum(_BIT.values())
# What `rules.access` allows, as words to look for: role and level of a member, and what that one may hold or grant.
_NONE = AccessLevel.NONE.value
_HAVES = [(f"{role}:{level.value}", level_of(role, level)) for role in Role for level in AccessLevel]
_HOLDABLE = [f"{have}:{action}" for have, level in _HAVES for action in Action if action in level.actions]
_GRANTABLE = [f"{have}:{given.value}" for have, level in _HAVES for given in AccessLevel if may_grant(level, given)]


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
        return pages_of(self.total, PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class LastLook:
    """When somebody last marked a finding, and who."""

    at: datetime
    by: str


def look(
    session: Session, actor: Actor, seat: Seat, keyring: Keyring, finding: Finding | None = None, number: int = 1
) -> Review:
    """Review the active keys that a seat sees: live before sandbox, then the riskiest."""
    visible = key_views.visible_to(seat)
    judged = _judged(visible, seat, actor.at)
    risks = session.execute(judged.with_only_columns(judged.selected_columns.id, judged.selected_columns.risk)).all()
    counts = Counter[Finding]()
    for risk, count in Counter(risk for _, risk in risks).items():
        counts.update(dict.fromkeys(_findings(risk), count))
    bits = _BIT[finding] if finding else _ANY
    wanted = [key_id for key_id, risk in risks if risk & bits]
    number = min(number, pages_of(len(wanted), PAGE_SIZE))
    first = (number - 1) * PAGE_SIZE
    page = visible.where(ApiKey.id.in_(wanted[first : first + PAGE_SIZE]))
    return Review(_read(session, actor, seat, keyring, page), counts, number, len(wanted))


def chosen(session: Session, actor: Actor, seat: Seat, keyring: Keyring, key_ids: Sequence[str]) -> list[Reviewed]:
    """Look at some keys, such as those that were ticked: of those that a seat sees, the active ones."""
    ticked = key_views.visible_to(seat).where(ApiKey.public_id.in_(key_ids))
    return _read(session, actor, seat, keyring, ticked)


def _read(session: Session, actor: Actor, seat: Seat, keyring: Keyring, some: Select[ApiKey]) -> list[Reviewed]:
    return [_show(row, seat, keyring) for row in session.execute(_judged(some, seat, actor.at))]


def _findings(risk: int) -> tuple[Finding, ...]:
    return tuple(finding for finding, bit in _BIT.items() if risk & bit)


def _judged(visible: Select[ApiKey], seat: Seat, now: datetime) -> Select[*tuple[Any, ...]]:
    """Select the active ones of some keys, each with its figures and with `risk`: what is found of it, as bits.

    Nothing is left out by `risk`, because a database would compute it once more for that.
    """
    active = visible.where(*key_views.going_on(now))
    held, refused, quiet = _held(active, now), _refused(active, now), _quiet(active, seat, now)
    limit = seat.workspace.max_key_days
    holds: dict[Finding, ColumnElement[bool]] = {
        Finding.OWNER_LOST: or_(held.c.paused > 0, ~_owner_is_active),
        Finding.ABOVE_GRANTER: held.c.above > 0,
        Finding.EXPIRING: ApiKey.expires_at <= now + key_views.EXPIRING,
        Finding.REFUSED_OFTEN: refused.c.count > MANY_REFUSALS,
        Finding.ADMIN_OWNED: and_(Member.role == Role.ADMIN, ApiKey.environment == Environment.LIVE),
        Finding.STALE: ApiKey.last_used_at < now - STALE,
        Finding.NEVER_USED: and_(ApiKey.last_used_at.is_(None), ApiKey.created_at < now - NEVER_USED_AFTER),
        Finding.TOO_LONG: policy.lives_longer(limit) if limit else false(),
        Finding.NEVER_EXPIRES: ApiKey.expires_at.is_(None),
        Finding.UNUSED_SCOPES: held.c.unused > 0,
    }
    found = sum((case((holds[finding], bit), else_=0) for finding, bit in _BIT.items()), start=literal(0))
    risk = found.bitwise_and(func.coalesce(quiet.c.bits, 0).bitwise_not()).label("risk")
    return (
        active.outerjoin(Account, Account.id == Member.account_id)
        .outerjoin(held, held.c.id == ApiKey.id)
        .outerjoin(refused, refused.c.id == ApiKey.id)
        .outerjoin(quiet, quiet.c.id == ApiKey.id)
        .with_only_columns(
            ApiKey.id, ApiKey.public_id, ApiKey.name, ApiKey.last_four, ApiKey.environment, ApiKey.created_at,
            ApiKey.expires_at, ApiKey.last_used_at, ApiKey.member_id, Member.name.label("owner_name"),
            Member.account_id, _owner_is_active.label("owner_is_active"), held.c.scopes, held.c.paused, held.c.unused,
            refused.c.count.label("refusals"), risk,
        )
        .order_by(ApiKey.environment, risk.desc(), ApiKey.name_folded, ApiKey.id)  # "live" comes before "test"
    )  # fmt: skip


def _words(role: Mapped[str], level: Mapped[str], what: Mapped[str]) -> ColumnElement[str]:
    return role + ":" + func.coalesce(level, _NONE) + ":" + what


_MarkedBy = aliased(Member, name="marked_by")
_Granter, _Granters = aliased(Member, name="granter"), aliased(Access, name="granters")
_works = _words(Member.role, Access.level, KeyScope.action).in_(_HOLDABLE)
_granter_may = _words(_Granter.role, _Granters.level, Access.level).in_(_GRANTABLE)
_granter_is_active = _Granter.deactivated_at.is_(None) & _Granter.removed_at.is_(None)
_above = and_(_Granter.id.is_not(None), ~and_(_granter_is_active, _granter_may))
_owner_is_active = and_(*members.ACTIVE, Account.deactivated_at.is_(None))


def _held(active: Select[ApiKey], now: datetime) -> Subquery:
    """Count each key's scopes: all, those that its owner may not hold now, was given too much for, and never used.

    Scopes are unused that a key of more than 60 days, which was used in the last 60, was not used with in these.
    """
    since = now - UNUSED_SCOPES
    is_called = KeyCaller.scope == App.slug + ":" + KeyScope.action
    used = exists().where(KeyCaller.key_id == ApiKey.id, KeyCaller.last_at > since, is_called)
    unused = and_(ApiKey.last_used_at >= since, ApiKey.created_at < since, ~used)
    return (
        active.join(KeyScope, KeyScope.key_id == ApiKey.id)
        .join(App, App.id == KeyScope.app_id)
        .outerjoin(Access, (Access.solution_id == App.solution_id) & (Access.member_id == ApiKey.member_id))
        .outerjoin(_Granter, (_Granter.id == Access.granted_by_id) & Member.account_id.is_(None))
        .outerjoin(_Granters, (_Granters.solution_id == App.solution_id) & (_Granters.member_id == _Granter.id))
        .with_only_columns(
            ApiKey.id,
            func.count().label("scopes"),
            func.count(case((~_works, 1))).label("paused"),
            func.count(case((_above, 1))).label("above"),
            func.count(case((unused, 1))).label("unused"),
        )
        .group_by(ApiKey.id)
        .subquery("held")
    )


def _refused(active: Select[ApiKey], now: datetime) -> Subquery:
    """Count each key's refused requests of the last 24 hours."""
    since = now - timedelta(hours=24)
    return (
        active.join(Usage, Usage.key_id == ApiKey.id)
        .where(Usage.hour >= hour_of(since), Usage.outcome != ACCEPTED, Usage.last_at > since)
        .with_only_columns(ApiKey.id, func.sum(Usage.count).label("count"))
        .group_by(ApiKey.id)
        .subquery("refused")
    )


def _quiet(active: Select[ApiKey], seat: Seat, now: datetime) -> Subquery:
    """Gather what looks fine for now of each key, as bits; an administrator relies on administrators' words only."""
    relied_on = _MarkedBy.role == Role.ADMIN if seat.is_admin else true()
    return (
        active.join(KeyReview, KeyReview.key_id == ApiKey.id)
        .join(_MarkedBy, _MarkedBy.id == KeyReview.by_id)
        .where(KeyReview.until > now, relied_on)
        .with_only_columns(ApiKey.id, func.sum(distinct(case(_BIT, value=KeyReview.finding, else_=0))).label("bits"))
        .group_by(ApiKey.id)
        .subquery("quiet")
    )


def _show(row: Row[Any], seat: Seat, keyring: Keyring) -> Reviewed:
    kind = "me" if row.member_id == seat.member.id else "api" if row.account_id is None else "human"
    findings = _findings(row.risk)
    keeps_some = row.owner_is_active and (row.paused or 0) < (row.scopes or 0)
    return Reviewed(
        id=row.public_id,
        name=row.name,
        hint=keyring.format.hint(row.environment, row.last_four),
        last_four=row.last_four,
        environment=row.environment,
        owner_name=row.owner_name,
        owner_kind=kind,
        findings=findings,
        advice=_advice(findings, may_rotate=kind != "human", keeps_some=keeps_some),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        scope_count=row.scopes or 0,
        unused_scopes=row.unused or 0,
        paused_scopes=row.paused or 0,
        refusals=int(row.refusals or 0),
        owner_is_active=row.owner_is_active,
    )


def _advice(findings: Sequence[Finding], *, may_rotate: bool, keeps_some: bool) -> Advice:
    """Recommend one thing for the riskiest finding: of another human's key, only what an administrator can do.

    What nothing calls needs no successor; what is called is not to be stopped only because its owner has to renew it.
    """
    if not findings:
        return Advice.LOOK
    advice = _ADVICE[findings[0]]
    if findings[0] is Finding.OWNER_LOST and keeps_some:
        advice = Advice.ROTATE_NARROWER
    is_idle = not _IDLE.isdisjoint(findings) and Finding.REFUSED_OFTEN not in findings
    if advice in (Advice.ROTATE, Advice.ROTATE_NARROWER, Advice.MOVE):
        return Advice.DEACTIVATE if is_idle else advice if may_rotate else Advice.LOOK
    return advice


def mark_fine(session: Session, actor: Actor, key_id: str, finding: Finding, note: str) -> str:
    """Note that a finding is as it should be, with why; it is not shown again for 90 days. Give the key's name.

    Conflict where nothing of the kind is found now: nobody silences beforehand what is yet to come.
    """
    seat, key = keys.hold(session, actor, key_id, Event.KEY_REVIEWED)
    problems: dict[str, str] = {}
    clean = text.read_line(problems, "note", note, 1, 140, "that tells why this is fine")
    if problems:
        raise Invalid(problems)
    judged = _judged(key_views.visible_to(seat).where(ApiKey.id == key.id), seat, actor.at)
    if not any(finding in _findings(row.risk) for row in session.execute(judged)):
        raise Conflict(f"That is not found of “{key.name}” now, or was marked already. Nothing was changed.")
    session.add(
        KeyReview(key_id=key.id, finding=finding, note=clean, by_id=seat.member.id, at=actor.at, until=actor.at + QUIET)
    )
    audit.record(
        session,
        actor,
        Event.KEY_REVIEWED,
        target_id=key.public_id,
        target_name=key.label,
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
