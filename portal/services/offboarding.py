"""What stops or shrinks when a member's access does: the keys, the scopes that go, and how much they were used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select

from portal.rules.access import AccessLevel, Role, Scope, level_of
from portal.rules.credentials import Keyring
from portal.services import activity, key_views, members
from portal.services.actor import Actor
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.services.usage import ACCEPTED
from portal.store.database import Session
from portal.store.models import Access, ApiKey, App, Member, Solution, Usage, hour_of

_MOST = 100  # keys that are shown: a member has twenty, and those that are being replaced
_COUNTED = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class UsedScope:
    """A scope that works now, where it belongs, and how often it was used in 30 days."""

    text: str
    action: str
    app_name: str
    solution: str  # its slug
    count: int


@dataclass(frozen=True, slots=True)
class KeyAtRisk:
    """An active key with its scopes that work now, and its accepted requests of the last 24 hours."""

    key: KeyView
    scopes: tuple[UsedScope, ...]
    today: int

    def lost_at(self, levels: Mapping[str, AccessLevel]) -> list[UsedScope]:
        """List the scopes that would do nothing any more at these levels by solution slug."""
        return [
            scope
            for scope in self.scopes
            if (parsed := Scope.parse(scope.text))
            and parsed.action not in levels.get(scope.solution, AccessLevel.NONE).actions
        ]


@dataclass(frozen=True, slots=True)
class Loss:
    """What one key loses."""

    key: KeyView
    scopes: list[UsedScope]


def keys_at_risk(session: Session, actor: Actor, seat: Seat, keyring: Keyring, member: Member) -> list[KeyAtRisk]:
    """List a member's active keys, those in use first, with what each is used for."""
    rows = session.scalars(
        key_views.visible_to(seat)
        .where(ApiKey.member_id == member.id, *ApiKey.active_at(actor.at))
        .order_by(ApiKey.last_used_at.desc().nulls_last(), ApiKey.id)
        .limit(_MOST)
    ).all()
    views = {view.id: view for view in key_views.of(session, seat, keyring, rows, actor.at)}
    ids = [row.id for row in rows]
    today, counted = _used_today(session, ids, actor.at), _used(session, ids, actor.at)
    solutions = _solutions_of_apps(session, seat.workspace.id)
    return [
        KeyAtRisk(
            views[row.public_id],
            tuple(
                UsedScope(
                    scope.text,
                    scope.action,
                    scope.app_name,
                    solutions[scope.app_slug],
                    counted.get((row.id, scope.text), 0),
                )
                for scope in views[row.public_id].scopes
                if scope.effective
            ),
            today.get(row.id, 0),
        )
        for row in rows
    ]  # fmt: skip


def losses(at_risk: Sequence[KeyAtRisk], levels: Mapping[str, AccessLevel]) -> list[Loss]:
    """Say which keys lose what at these levels by solution slug."""
    return [Loss(each.key, lost) for each in at_risk if (lost := each.lost_at(levels))]


def access_of(session: Session, found: Sequence[Member]) -> dict[int, dict[str, AccessLevel]]:
    """Read what several members may do, by solution name; solutions without access are left out."""
    access: dict[int, dict[str, AccessLevel]] = {member.id: {} for member in found}
    rows = session.execute(
        select(Member.id, Member.role, Solution.name, Access.level)
        .join(Solution, Solution.workspace_id == Member.workspace_id)
        .outerjoin(Access, (Access.solution_id == Solution.id) & (Access.member_id == Member.id))
        .where(Member.id.in_(access), or_(Access.level.is_not(None), Member.role == Role.ADMIN))
        .order_by(Solution.name, Solution.id)
    )
    for member_id, role, name, level in rows:
        access[member_id][name] = level_of(Role(role), AccessLevel(level) if level else None)
    return access


def api_members_led_by(session: Session, member: Member) -> list[Member]:
    """List the API members that somebody manages: they go on without them."""
    here = (Member.manager_id == member.id, Member.account_id.is_(None), Member.removed_at.is_(None))
    return list(session.scalars(select(Member).where(*here).order_by(func.lower(Member.name), Member.id)))


def heirs(session: Session, seat: Seat) -> list[tuple[Member, dict[str, AccessLevel]]]:
    """List the active API members that a key can be moved to, each with its access by solution slug."""
    active = (*members.managed_by(seat), Member.deactivated_at.is_(None))
    found = list(session.scalars(select(Member).where(*active).order_by(func.lower(Member.name), Member.id)))
    levels: dict[int, dict[str, AccessLevel]] = {member.id: {} for member in found}
    rows = session.execute(
        select(Access.member_id, Solution.slug, Access.level)
        .join(Solution, Solution.id == Access.solution_id)
        .where(Access.member_id.in_(levels))
    )
    for member_id, slug, level in rows:
        levels[member_id][slug] = AccessLevel(level)
    return [(member, levels[member.id]) for member in found]


def _used_today(session: Session, key_ids: Sequence[int], now: datetime) -> dict[int, int]:
    rows = session.execute(
        select(Usage.key_id, func.sum(Usage.count))
        .where(Usage.key_id.in_(key_ids), *activity.accepted_since(now - activity.BUSY))
        .group_by(Usage.key_id)
    )
    return {key_id: int(count) for key_id, count in rows}


def _used(session: Session, key_ids: Sequence[int], now: datetime) -> dict[tuple[int, str], int]:
    rows = session.execute(
        select(Usage.key_id, Usage.scope, func.sum(Usage.count))
        .where(
            Usage.key_id.in_(key_ids),
            Usage.outcome == ACCEPTED,
            Usage.scope != "",
            Usage.hour >= hour_of(now - _COUNTED),
        )
        .group_by(Usage.key_id, Usage.scope)
    )
    return {(key_id, scope): int(count) for key_id, scope, count in rows}


def _solutions_of_apps(session: Session, workspace_id: int) -> dict[str, str]:
    rows = session.execute(
        select(App.slug, Solution.slug)
        .join(Solution, Solution.id == App.solution_id)
        .where(App.workspace_id == workspace_id)
    )
    return {app: solution for app, solution in rows}  # noqa: C416 - rows are no pairs to mypy
