"""Members and what they may reach: seats, access by solution. Who changes it: `people`, `api_members`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased, contains_eager

from portal.rules.access import AccessLevel, Role, level_of
from portal.rules.errors import Forbidden
from portal.services import audit
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.store.database import read
from portal.store.models import Access, Account, ApiKey, App, Member, Solution, Workspace

ADMINS_ONLY = "Only administrators change people’s roles and access."
ACTIVE = (Member.deactivated_at.is_(None), Member.removed_at.is_(None))
_ACCOUNTS_OFF = select(Account.id).where(Account.deactivated_at.is_not(None))
_ADMINS_NAMED, _GRANTERS_NAMED = 2, 3  # in "ask …"


class SeatMember(NamedTuple):
    """Who sits on a seat: of `Member`, read as columns."""

    id: int
    public_id: str
    account_id: int | None
    name: str
    role: str


class SeatWorkspace(NamedTuple):
    """Where a seat is: of `Workspace`, read as columns."""

    id: int
    public_id: str
    slug: str
    name: str
    max_key_days: int | None
    admins_own_live: bool


@dataclass(frozen=True, slots=True)
class Seat:
    """A member in their workspace with what they were given: enough to decide what they see and do."""

    member: SeatMember
    workspace: SeatWorkspace
    granted: Mapping[int, AccessLevel]  # by solution id; an admin needs none

    @property
    def role(self) -> Role:
        """The member's role in this workspace."""
        return Role(self.member.role)

    @property
    def is_admin(self) -> bool:
        """Whether this is an administrator, who manages every solution."""
        return self.role is Role.ADMIN

    @property
    def is_lead(self) -> bool:
        """Whether this member may make API members: a team lead somewhere, or an administrator."""
        return self.is_admin or AccessLevel.MANAGE in self.granted.values()

    @property
    def has_access(self) -> bool:
        """Whether there is any solution that this member may do something in, and so anything to give to a key."""
        return self.is_admin or bool(self.granted)

    def level_in(self, solution_id: int) -> AccessLevel:
        """Say what this member may do in a solution."""
        return level_of(self.role, self.granted.get(solution_id))


@dataclass(frozen=True, slots=True)
class Shelf:
    """A solution with its apps, as one member sees it."""

    solution: Solution
    apps: list[App]
    level: AccessLevel


def find_seat(session: Session, account_id: int, slug: str) -> Seat | None:
    """Find the seat that an account has in a workspace; None when there is none, or none any more."""
    return places_of(session, account_id, slug)[0]


def places_of(session: Session, account_id: int, slug: str) -> tuple[Seat | None, list[SeatWorkspace]]:
    """Find an account's seat in one workspace, if it has one, and all workspaces that it is in, by their names."""
    rows = read(session, _PLACES, {"account": account_id, "slug": slug})
    workspaces = list(dict.fromkeys(_who_and_where(row)[1] for row in rows))
    here = [row for row in rows if row.slug == slug]
    if not here:
        return None, workspaces
    granted = {row.solution_id: AccessLevel(row.level) for row in here if row.level}
    return Seat(*_who_and_where(here[0]), granted), workspaces


def _who_and_where(row: Sequence[Any]) -> tuple[SeatMember, SeatWorkspace]:
    """Make of a row what `_SEAT_COLUMNS` read, which stand first in it."""
    width = len(SeatMember._fields)
    return SeatMember(*row[:width]), SeatWorkspace(*row[width : width + len(SeatWorkspace._fields)])


_SEAT_COLUMNS = [
    *(getattr(Member, name) for name in SeatMember._fields),
    *(getattr(Workspace, name) for name in SeatWorkspace._fields),
]
_PLACES = (
    select(*_SEAT_COLUMNS, Access.solution_id, Access.level)
    .join(Workspace, Workspace.id == Member.workspace_id)
    .outerjoin(Access, (Access.member_id == Member.id) & (Workspace.slug == bindparam("slug")))
    .where(Member.account_id == bindparam("account"), *ACTIVE)
    .order_by(Workspace.name, Workspace.id)
)


def seat_of(session: Session, actor: Actor, *, lock: bool = False) -> Seat:
    """Read the acting member's seat again, inside the transaction that relies on it; Forbidden when it is gone."""
    workspace_id, member_id = actor.seat
    this = {"workspace": workspace_id, "member": member_id}
    if lock and session.get_bind().dialect.name == "postgresql":
        read(session, _HELD, this)  # by itself: a statement that waits sees other tables as they were before
    rows = read(session, _SEAT, this)
    if not rows:
        raise Forbidden("You are no longer a member of this workspace.")
    member, workspace = _who_and_where(rows[0])
    return Seat(member, workspace, granted_to(session, member))


_SEAT = (
    select(*_SEAT_COLUMNS)
    .join(Workspace, Workspace.id == Member.workspace_id)
    .outerjoin(Account, Account.id == Member.account_id)
    .where(Member.id == bindparam("member"), Member.workspace_id == bindparam("workspace"), *ACTIVE)
    .where(Account.deactivated_at.is_(None))
)
# `key_share`: who only writes this member's id elsewhere, as a stop of a key does, does not wait, nor deadlock.
_HELD = (
    select(Member.id)
    .where(Member.id == bindparam("member"), Member.workspace_id == bindparam("workspace"))
    .with_for_update(key_share=True)
)


def granted_to(session: Session, member: Member | SeatMember) -> dict[int, AccessLevel]:
    """Read what a member was given, by solution id."""
    return {solution_id: AccessLevel(level) for solution_id, level in read(session, _GRANTED, {"member": member.id})}


_GRANTED = select(Access.solution_id, Access.level).where(Access.member_id == bindparam("member"))


def workspaces_of(session: Session, account_id: int) -> list[Member]:
    """List an account's memberships, each with its workspace, by the workspace's name."""
    return list(session.scalars(_memberships(account_id)))


def roles_of(session: Session, account_id: int) -> list[tuple[Member, bool]]:
    """List an account's memberships in the same order, each with whether it leads there (`Seat.is_lead`)."""
    rows = session.execute(_memberships(account_id).add_columns(is_lead_now()))
    return [(member, is_lead) for member, is_lead in rows]


def _memberships(account_id: int) -> Select[Member]:
    return (
        select(Member)
        .join(Member.workspace)
        .options(contains_eager(Member.workspace))
        .where(Member.account_id == account_id, *ACTIVE)
        .order_by(Workspace.name, Workspace.id)
    )


def shelves_for(session: Session, seat: Seat) -> list[Shelf]:
    """List the solutions and apps of a workspace with this seat's level in each, hidden ones included."""
    here = {"workspace": seat.workspace.id}
    solutions = session.scalars(_SOLUTIONS_BY_NAME, here).all()
    apps = session.scalars(_APPS_BY_NAME, here).all()
    return [
        Shelf(solution, [app for app in apps if app.solution_id == solution.id], seat.level_in(solution.id))
        for solution in solutions
    ]


_HERE: BindParameter[int] = bindparam("workspace")
_SOLUTIONS_BY_NAME = select(Solution).where(Solution.workspace_id == _HERE).order_by(Solution.name, Solution.id)
_APPS_BY_NAME = select(App).where(App.workspace_id == _HERE).order_by(App.name, App.id)


def app_called(workspace_id: Any) -> ColumnElement[str]:
    """Give the name of an app, with that of its solution where the workspace has two of one name: "Orders (Fleet)"."""
    other = aliased(App)
    names = select(other.name).where(other.workspace_id == workspace_id)
    twice = App.name.in_(names.group_by(other.name).having(func.count() > 1))
    return case((twice, App.name + " (" + Solution.name + ")"), else_=App.name)


def app_names(session: Session, workspace_id: int) -> dict[str, str]:
    """Say by slug what each app of a workspace is called."""
    apps = select(App.slug, app_called(workspace_id)).join(Solution, Solution.id == App.solution_id)
    return {slug: name for slug, name in session.execute(apps.where(App.workspace_id == workspace_id))}  # noqa: C416


def apps_of(session: Session, seat: Seat) -> Sequence[Row[tuple[int, str, int]]]:
    """List the apps that a seat can reach, by slug: each one's id and slug."""
    if not seat.has_access:
        return []
    apps = read(session, _APPS, {"workspace": seat.workspace.id})
    return [app for app in apps if seat.level_in(app.solution_id) is not AccessLevel.NONE]


_APPS = select(App.id, App.slug, App.solution_id).where(App.workspace_id == _HERE).order_by(App.slug)


def has_account_off(member: Any = Member) -> ColumnElement[bool]:
    """Give the condition that a member's account is deactivated; false of an API member, which has none."""
    return and_(member.account_id.is_not(None), member.account_id.in_(_ACCOUNTS_OFF))


def is_in(member: Any = Member) -> ColumnElement[bool]:
    """Give the condition that a member may act: neither they nor their account are out."""
    return and_(member.deactivated_at.is_(None), member.removed_at.is_(None), ~has_account_off(member))


def is_admin_now() -> ColumnElement[bool]:
    """Give the condition that a member acts as an administrator."""
    return and_(Member.role == Role.ADMIN, is_in())


def admin_names(session: Session, workspace_id: int) -> list[str]:
    """Name a few administrators, for "ask …"."""
    admins = (Member.workspace_id == workspace_id, is_admin_now())
    return list(session.scalars(select(Member.name).where(*admins).order_by(Member.id).limit(_ADMINS_NAMED)))


def granters(
    session: Session, seat: Seat, solution_ids: Collection[int], *, for_api_member: bool
) -> dict[int, list[str]]:
    """Name a few people who can hand out access, by solution: to humans administrators, to API members leads too."""
    manages = (
        (Access.member_id == Member.id)
        & Access.solution_id.in_(solution_ids if for_api_member else ())
        & (Access.level == AccessLevel.MANAGE.value)
        & (Member.role != Role.ADMIN)
    )
    may = (Member.role == Role.ADMIN) | Access.solution_id.is_not(None)
    statement = (
        select(Member.name, Access.solution_id)
        .outerjoin(Access, manages)
        .where(Member.workspace_id == seat.workspace.id, may, is_in())
        .order_by(Member.role.desc(), Member.id)  # leads before administrators, who are asked by everybody
    )
    found = session.execute(statement).all()
    return {each: [name for name, where in found if where in (each, None)][:_GRANTERS_NAMED] for each in solution_ids}


def manages_any(member: Any = Member) -> ColumnElement[bool]:
    """Give the condition that a member was given a solution to manage."""
    return exists().where(Access.member_id == member.id, Access.level == AccessLevel.MANAGE.value).correlate(member)


def is_lead_now(member: Any = Member) -> ColumnElement[bool]:
    """Give the condition under which a member may make API members: see `Seat.is_lead`."""
    return and_(is_in(member), or_(member.role == Role.ADMIN, manages_any(member)))


def managed_by(seat: Seat) -> list[ColumnElement[bool]]:
    """Give the conditions under which an API member is one that this seat manages."""
    return managed(seat.workspace.id, seat.member.id, is_admin=seat.is_admin, is_lead=seat.is_lead)


def managed(workspace_id: Any, member_id: Any, *, is_admin: bool, is_lead: bool) -> list[ColumnElement[bool]]:
    """Give the conditions of `managed_by` for such a seat; the ids may be parameters of a statement."""
    conditions: list[ColumnElement[bool]] = [
        Member.workspace_id == workspace_id,
        Member.account_id.is_(None),
        Member.removed_at.is_(None),
    ]
    if not is_admin:
        mine = (Member.manager_id == member_id) | (Member.created_by_id == member_id)
        conditions.append(mine if is_lead else Member.id.is_(None))
    return conditions


# --- What members were given ---------------------------------------------------------------------------------------


def hold_people(session: Session, actor: Actor, *wanted: str) -> tuple[Seat, dict[str, Member]]:
    """Lock the actor, the workspace's administrators and the people of these ids, in one order for everybody.

    So of two administrators who end each other's rights one comes first, and no two can both leave as the last.
    """
    workspace_id, member_id = actor.seat
    whom = or_(Member.id == member_id, Member.role == Role.ADMIN, Member.public_id.in_(wanted))
    statement = select(Member).where(Member.workspace_id == workspace_id, Member.account_id.is_not(None), whom)
    found = session.scalars(
        statement.order_by(Member.id).with_for_update(key_share=True).execution_options(populate_existing=True)
    ).all()
    return seat_of(session, actor), {member.public_id: member for member in found if member.public_id in wanted}


def check_admin(seat: Seat) -> None:
    """Forbid what only administrators do."""
    if not seat.is_admin:
        raise Forbidden(ADMINS_ONLY)


def solutions_of(session: Session, workspace_id: int) -> list[Solution]:
    """List the solutions of a workspace by name."""
    statement = select(Solution).where(Solution.workspace_id == workspace_id)
    return list(session.scalars(statement.order_by(Solution.name, Solution.id)))


def levels_of(session: Session, member: Member, solutions: Sequence[Solution] | None = None) -> dict[str, AccessLevel]:
    """Say what a member was given in each solution of the workspace, by its slug; an admin's role is not looked at."""
    granted = granted_to(session, member)
    solutions = solutions_of(session, member.workspace_id) if solutions is None else solutions
    return {solution.slug: granted.get(solution.id, AccessLevel.NONE) for solution in solutions}


def givers_of(session: Session, member: Member) -> dict[str, str]:
    """Name who gave a member what they have, by solution slug, as far as it was noted."""
    giver = aliased(Member)
    rows = session.execute(
        select(Solution.slug, giver.name)
        .join(Access, Access.solution_id == Solution.id)
        .join(giver, giver.id == Access.granted_by_id)
        .where(Access.member_id == member.id)
    )
    return {slug: name for slug, name in rows}  # noqa: C416 - rows are no pairs to mypy


def name_of(session: Session, member_id: int | None) -> str:
    """Name a member; '' for nobody."""
    return (session.scalar(select(Member.name).where(Member.id == member_id)) or "") if member_id else ""


def set_levels(
    session: Session,
    actor: Actor,
    member: Member,
    wanted: Mapping[str, AccessLevel],
    *,
    by_id: int | None,
    is_told: bool = False,
) -> dict[str, tuple[AccessLevel, AccessLevel]]:
    """Give a member these levels by solution slug, and tell of it unless that is done; what is not named stays.

    The caller has locked the member and decided that it may be. Gives what changed: before and after.
    """
    ids = {solution.slug: solution.id for solution in solutions_of(session, member.workspace_id)}
    granted = granted_to(session, member)
    changed = {
        slug: (granted.get(ids[slug], AccessLevel.NONE), level)
        for slug, level in wanted.items()
        if slug in ids and granted.get(ids[slug], AccessLevel.NONE) is not level
    }
    for slug, (before, after) in changed.items():
        this = (Access.member_id == member.id, Access.solution_id == ids[slug])
        given = {"level": after.value, "granted_by_id": by_id, "granted_at": actor.at}
        if after is AccessLevel.NONE:
            session.execute(delete(Access).where(*this))
        elif before is AccessLevel.NONE:
            session.execute(insert(Access).values(member_id=member.id, solution_id=ids[slug], **given))
        else:
            session.execute(update(Access).where(*this).values(**given))
    if changed and not is_told:
        details: dict[str, Any] = {
            "before": {slug: before.value for slug, (before, _) in changed.items()},
            "after": {slug: after.value for slug, (_, after) in changed.items()},
        }
        if by_id != actor.member_id:  # by an invitation, which the member has accepted
            details["invited_by"] = name_of(session, by_id)
        tell(session, actor, Event.ACCESS_GRANTED, member, details)
    return changed


def stop_keys(session: Session, actor: Actor, member: Member, reason: str) -> list[ApiKey]:
    """Deactivate all keys of a member who comes back: what stopped with them does not start again by itself."""
    standing = (ApiKey.member_id == member.id, ApiKey.revoked_at.is_(None), ApiKey.deactivated_at.is_(None))
    found = list(session.scalars(select(ApiKey).where(*standing).order_by(ApiKey.id).with_for_update()))
    by_id = actor.member_id or member.id
    for key in found:
        key.deactivated_at = actor.at
        key.deactivated_by_id = by_id
        tell_of_key(session, actor, Event.KEY_DEACTIVATED, key, member, {"reason": reason})
    return found


def tell_of_key(
    session: Session, actor: Actor, event: Event, key: ApiKey, owner: Member, details: dict[str, Any]
) -> None:
    """Write what happened to a member's key into the audit log."""
    audit.record(
        session,
        actor,
        event,
        workspace_id=key.workspace_id,
        target_id=key.public_id,
        target_name=key.label,
        details={"environment": key.environment, "owner": owner.public_id, **details},
    )


def tell(session: Session, actor: Actor, event: Event, member: Member, details: dict[str, Any]) -> None:
    """Write what happened to a member into the audit log."""
    audit.record(
        session,
        actor,
        event,
        workspace_id=member.workspace_id,
        target_id=member.public_id,
        target_name=member.name,
        details=details,
    )
