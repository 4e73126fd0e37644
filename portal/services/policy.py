"""What an administrator decides for all keys of a workspace: how long they may live, and whose may be live."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import compress

from sqlalchemy import ColumnElement, and_, bindparam, extract, false, func, or_, select

from portal.rules.access import Environment, Role
from portal.rules.errors import Attempt, Conflict, Forbidden, Invalid
from portal.rules.lifetimes import Lifetime
from portal.services import audit, key_views, members
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat, SeatWorkspace
from portal.store.database import Session
from portal.store.models import ApiKey, Member, Workspace

LIMITS = ("", "30", "90", "365")  # days; '' is no limit
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Policy:
    """A workspace's policy."""

    max_key_days: int | None
    admins_own_live: bool


@dataclass(frozen=True, slots=True)
class Breaking:
    """A standing key that a policy would not allow to be made today. It is not stopped."""

    id: str
    name: str
    last_four: str
    owner: str
    expires_at: datetime | None
    why: str


def of(workspace: Workspace | SeatWorkspace) -> Policy:
    """Give a workspace's policy."""
    return Policy(workspace.max_key_days, workspace.admins_own_live)


def hold(session: Session, workspace: SeatWorkspace) -> SeatWorkspace:
    """Read a workspace's policy once more and let nobody change it until the transaction ends.

    To be asked last, when members and keys are held: the policy may have changed while this waited for them.
    """
    limit, admins_own_live = session.execute(_HELD, {"workspace": workspace.id}).one()
    return workspace._replace(max_key_days=limit, admins_own_live=admins_own_live)


# `key_share`: as the insert of a key holds its workspace. Nobody waits for that but `change`, nor it for others.
_HELD = (
    select(Workspace.max_key_days, Workspace.admins_own_live)
    .where(Workspace.id == bindparam("workspace"))
    .with_for_update(read=True, key_share=True)
)


def read(max_days: str, admins_own_live: bool) -> Policy:
    """Take the form's answers; Invalid for a limit that is not offered."""
    if max_days not in LIMITS:
        raise Invalid({"max_key_days": "Choose a limit from the list."})
    return Policy(int(max_days) if max_days else None, admins_own_live)


def lifetimes(workspace: SeatWorkspace) -> list[Lifetime]:
    """List the lifetimes that the policy allows."""
    return [each for each in Lifetime if _allows(workspace, each)]


def nearest(workspace: SeatWorkspace, lifetime: Lifetime) -> Lifetime:
    """Give this lifetime, or the longest that the policy allows where it is too long."""
    allowed = lifetimes(workspace)
    return lifetime if lifetime in allowed else max(allowed, key=lambda each: each.days or 0)


def check(workspace: SeatWorkspace, lifetime: Lifetime, role: Role, environment: str) -> dict[str, str]:
    """Say what a key about to be made would break, by the field that has to change."""
    problems = {}
    if not _allows(workspace, lifetime):
        problems["expires"] = f"Keys in {workspace.name} live for {workspace.max_key_days} days at most. Choose less."
    if role is Role.ADMIN and environment == Environment.LIVE and not workspace.admins_own_live:
        problems["environment"] = (
            f"Administrators of {workspace.name} own no live keys. Make an API member for it, or choose Sandbox."
        )
    return problems


def against(workspace: SeatWorkspace, key: ApiKey) -> str:
    """Say why a policy does not let a key that stands be reactivated, and what to do; '' where it does."""
    limit, life = workspace.max_key_days, key.expires_at - key.created_at if key.expires_at else None
    if limit and (life is None or life > timedelta(days=limit)):
        its = f"was made for {life.days} days" if life else "never expires"
        return f"Keys in {workspace.name} live for {limit} days at most, and this one {its}. Generate a similar key."
    if key.environment == Environment.LIVE and key.member.role == Role.ADMIN and not workspace.admins_own_live:
        return f"Administrators of {workspace.name} own no live keys. Make an API member for it."
    return ""


def _allows(workspace: SeatWorkspace, lifetime: Lifetime) -> bool:
    limit = workspace.max_key_days
    return limit is None or (lifetime.days is not None and lifetime.days <= limit)


def lives_longer(days: int) -> ColumnElement[bool]:
    """Give the condition that a key was made for more than so many days; NULL for a key that never expires."""
    lives = extract("epoch", ApiKey.expires_at) - extract("epoch", ApiKey.created_at)
    return lives > days * 86_400


def preview(session: Session, seat: Seat, wanted: Policy, now: datetime) -> tuple[int, list[Breaking]]:
    """Count the standing keys that a policy would not allow to be made, and give the first of them."""
    broken = _broken_by(wanted)
    breaking = (
        select(ApiKey.public_id, ApiKey.name, ApiKey.last_four, Member.name, ApiKey.expires_at, *broken.values())
        .join(Member, Member.id == ApiKey.member_id)
        .where(ApiKey.workspace_id == seat.workspace.id, *key_views.going_on(now), or_(false(), *broken.values()))
    )
    rows = session.execute(breaking.order_by(ApiKey.name_folded, ApiKey.id).limit(_LISTED)).all()
    count = session.scalar(breaking.with_only_columns(func.count())) or 0 if len(rows) == _LISTED else len(rows)
    return count, [Breaking(*row[:5], " and ".join(compress(broken, row[5:]))) for row in rows]


def _broken_by(wanted: Policy) -> dict[str, ColumnElement[bool]]:
    """List how a key may break a policy: in words, and whether it does."""
    ways: dict[str, ColumnElement[bool]] = {}
    if limit := wanted.max_key_days:
        ways["never expires"] = ApiKey.expires_at.is_(None)
        ways[f"lives longer than {limit} days"] = lives_longer(limit)
    if not wanted.admins_own_live:
        is_so = and_(Member.role == Role.ADMIN, ApiKey.environment == Environment.LIVE)
        ways["is a live key of an administrator"] = is_so
    return ways


def change(session: Session, actor: Actor, wanted: Policy, was: Policy) -> None:
    """Set a workspace's policy; Conflict when somebody else changed it since the form was shown."""
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        raise Forbidden("Only administrators set the policy.", attempt=Attempt(Event.POLICY_CHANGED))
    # FOR UPDATE, which alone conflicts with `hold`: this waits for who is making a key by the policy of before.
    workspace = session.get_one(Workspace, seat.workspace.id, with_for_update=True, populate_existing=True)
    if of(workspace) != was:
        raise Conflict("Somebody changed the policy a moment ago. Look at it again.")
    workspace.max_key_days, workspace.admins_own_live = wanted.max_key_days, wanted.admins_own_live
    details = {"before": _written(was), "after": _written(wanted)}
    audit.record(
        session,
        actor,
        Event.POLICY_CHANGED,
        target_id=workspace.public_id,
        target_name=workspace.name,
        details=details,
    )


def _written(policy: Policy) -> dict[str, object]:
    return {"max_key_days": policy.max_key_days, "admins_own_live": policy.admins_own_live}
