"""API members: accounts for programs. Leads make them and give access where they manage; nobody can sign in as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, aliased

from portal.rules import credentials, paging, text
from portal.rules.access import AccessLevel, Levels, Role, may_grant
from portal.rules.credentials import Keyring
from portal.rules.errors import Attempt, Conflict, Forbidden, Invalid, NeedsProof, NotFound
from portal.services import members, offboarding
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.key_lists import UNUSED
from portal.services.members import Seat
from portal.store.models import ApiKey, Member, Workspace

LIMIT = 200  # in a workspace
FILTERS = ("", "no-keys", "unused", "deactivated", "unmanaged")
LEADS_ONLY = "Only team leads and administrators manage API members."
STALE = "Somebody changed “{}” a moment ago. Nothing was saved. Look at it again."


# --- Looking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """An API member in the list."""

    member: Member
    manager: Member | None
    manager_can: bool  # there is a manager who is still here and still a lead
    active_keys: int
    last_used_at: datetime | None
    access: Levels


@dataclass(frozen=True, slots=True)
class Page(paging.Page[Listed]):
    """One page of API members."""

    unmanaged: int  # how many nobody but an administrator can manage; 0 for everybody else


def list_for(session: Session, actor: Actor, seat: Seat, *, state: str, number: int, size: int) -> Page:
    """List the API members that a seat manages, by name; `state` is one of FILTERS."""
    if not seat.is_lead:
        raise Forbidden(LEADS_ONLY)
    manager = aliased(Member)
    working = func.count().filter(*ApiKey.active_at(actor.at))
    facts = (
        select(ApiKey.member_id, working.label("active"), func.max(ApiKey.last_used_at).label("used_at"))
        .where(ApiKey.workspace_id == seat.workspace.id)
        .group_by(ApiKey.member_id)
        .subquery()
    )
    active = func.coalesce(facts.c.active, 0)
    statement = (
        select(Member, manager, members.is_lead_now(manager), active, facts.c.used_at)
        .outerjoin(manager, manager.id == Member.manager_id)
        .outerjoin(facts, facts.c.member_id == Member.id)
        .where(*members.managed_by(seat))
    )
    orphaned = ~func.coalesce(members.is_lead_now(manager), False)
    narrowed: dict[str, ColumnElement[bool]] = {
        "no-keys": active == 0,
        "unused": func.coalesce(facts.c.used_at, Member.created_at) < actor.at - UNUSED,
        "deactivated": Member.deactivated_at.is_not(None),
        "unmanaged": orphaned,
    }
    unmanaged = _count(session, statement.where(orphaned)) if seat.is_admin else 0
    if state in narrowed:
        statement = statement.where(narrowed[state])
    total = _count(session, statement)
    number = min(number, paging.pages_of(total, size))
    found = session.execute(
        statement.order_by(func.lower(Member.name), Member.id).limit(size).offset((number - 1) * size)
    ).all()
    access = offboarding.access_of(session, [row[0] for row in found])
    rows = [Listed(member, boss, bool(can), keys, at, access[member.id]) for member, boss, can, keys, at in found]
    return Page(rows, number, total, size, unmanaged)


def _count(session: Session, statement: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(statement.with_only_columns(Member.id).subquery())) or 0


def get(session: Session, seat: Seat, public_id: str) -> Member:
    """Find an API member that a seat manages; NotFound for any other."""
    if not seat.is_lead:
        raise Forbidden(LEADS_ONLY)
    found = session.scalar(select(Member).where(*members.managed_by(seat), Member.public_id == public_id))
    if found is None:
        raise NotFound()
    return found


def manager_of(session: Session, member: Member) -> tuple[Member | None, bool]:
    """Give the manager of an API member, and whether they can still manage it."""
    row = session.execute(select(Member, members.is_lead_now()).where(Member.id == member.manager_id)).one_or_none()
    return (row[0], bool(row[1])) if row else (None, False)


def possible_managers(session: Session, seat: Seat) -> list[Member]:
    """List who can be made a manager: the workspace's leads and administrators."""
    here = (Member.workspace_id == seat.workspace.id, Member.account_id.is_not(None), members.is_lead_now())
    return list(session.scalars(select(Member).where(*here).order_by(func.lower(Member.name), Member.id)))


def version_of(levels: Levels) -> str:
    """Write down what a form showed, so that its answer can be told from a stale one."""
    return " ".join(f"{slug}={level.value}" for slug, level in sorted(levels.items()))


# --- Making and changing --------------------------------------------------------------------------------------------


def create(session: Session, actor: Actor, *, name: str, purpose: str, access: Levels, form_id: str = "") -> Member:
    """Make an API member with access by solution slug, or find the one that this form made with the same answers.

    Forbidden where the actor does not manage the solution, Conflict where that one was deleted since.
    """
    seat = members.seat_of(session, actor, lock=True)
    clean_name, clean_purpose = _checked(name, purpose)
    if not seat.is_lead:
        attempt = Attempt(Event.API_MEMBER_CREATED, target_label=clean_name)
        raise Forbidden("Only team leads and administrators make API members.", attempt=attempt)
    answers = (clean_name, clean_purpose, *(f"{slug}={level}" for slug, level in sorted(access.items())))
    public_id = credentials.id_by_form("mem", seat.member.public_id, form_id, *answers)
    if made_before := session.scalar(select(Member).where(Member.public_id == public_id)):
        if made_before.removed_at:
            raise Conflict(f"“{made_before.name}” was made with this form and deleted since. Open the form again.")
        return made_before
    _check_cap(session, seat, access, Attempt(Event.API_MEMBER_CREATED, "", clean_name, {"access": _words(access)}))
    standing = _hold_standing(session, seat)
    if len(standing) >= LIMIT:
        message = f"{seat.workspace.name} has {LIMIT} API members, as many as it can have. Delete one first."
        raise Conflict(message, attempt=Attempt(Event.API_MEMBER_CREATED, target_label=clean_name))
    _check_free(clean_name, standing)
    member = Member(
        public_id=public_id,
        workspace_id=seat.workspace.id,
        name=clean_name,
        role=Role.MEMBER,
        purpose=clean_purpose,
        manager_id=seat.member.id,
        created_by_id=seat.member.id,
        created_at=actor.at,
    )
    session.add(member)
    session.flush()
    details = {"access": _words(access), "purpose": clean_purpose, "manager": seat.member.public_id}
    members.tell(session, actor, Event.API_MEMBER_CREATED, member, details)
    given = {slug: level for slug, level in access.items() if level is not AccessLevel.NONE}
    members.set_levels(session, actor, member, given, by_id=seat.member.id, is_told=True)
    return member


def edit(
    session: Session, actor: Actor, public_id: str, *, name: str, purpose: str, was: tuple[str, str] | None
) -> Member:
    """Change name and purpose; `was` is what the form showed, Conflict if that is old."""
    seat, member = _hold(session, actor, public_id, Event.MEMBER_EDITED)
    if was is not None and (member.name, member.purpose) != was:
        raise Conflict(STALE.format(member.name))
    clean_name, clean_purpose = _checked(name, purpose)
    if text.look(clean_name) != text.look(member.name):
        _check_free(clean_name, _hold_standing(session, seat))
    before = {"name": member.name, "purpose": member.purpose}
    member.name, member.purpose = clean_name, clean_purpose
    after = {"name": clean_name, "purpose": clean_purpose}
    members.tell(session, actor, Event.MEMBER_EDITED, member, {"before": before, "after": after})
    return member


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved matrix: what changed, and what the keys that work lost by it."""

    member: Member
    changed: Mapping[str, tuple[AccessLevel, AccessLevel]]
    losses: list[offboarding.Loss]


def set_access(
    session: Session,
    actor: Actor,
    keyring: Keyring,
    public_id: str,
    wanted: Levels,
    *,
    was: str | None,
    is_proved: bool,
) -> Saved:
    """Give an API member these levels, each where the actor manages the solution; what is not named stays.

    `was` is what the form showed (`version_of`), Conflict if that is old. NeedsProof when it hands out more than
    before and the actor's proof is too old; taking away never asks.
    """
    seat, member = _hold(session, actor, public_id, Event.ACCESS_GRANTED)
    attempt = Attempt(Event.ACCESS_GRANTED, member.public_id, member.name, {"access": _words(wanted)})
    _check_cap(session, seat, wanted, attempt)
    before = members.levels_of(session, member)
    if was is not None and was != version_of(before):
        raise Conflict(STALE.format(member.name))
    if not is_proved and any(before[slug] < level for slug, level in wanted.items()):
        raise NeedsProof()
    at_risk = offboarding.keys_at_risk(session, actor, seat, keyring, member)
    changed = members.set_levels(session, actor, member, wanted, by_id=seat.member.id)
    return Saved(member, changed, offboarding.losses(at_risk, before | dict(wanted)))


def set_manager(session: Session, actor: Actor, public_id: str, manager_id: str, *, was: str | None = None) -> Member:
    """Make somebody else the manager of an API member; administrators only.

    `was` is the id of the manager whom the form showed, '' for nobody; Conflict if that is old.
    """
    seat, people = members.hold_people(session, actor, manager_id)
    member = _lock(session, seat, public_id, Event.MANAGER_CHANGED)
    if not seat.is_admin:
        attempt = Attempt(Event.MANAGER_CHANGED, member.public_id, member.name)
        raise Forbidden("Only administrators change who manages an API member.", attempt=attempt)
    before = session.get(Member, member.manager_id) if member.manager_id else None
    if was is not None and was != (before.public_id if before else ""):
        raise Conflict(STALE.format(member.name))
    manager = people.get(manager_id)
    if manager is None or manager not in possible_managers(session, seat):
        raise Invalid({"manager": "Choose a team lead or an administrator."})
    member.manager_id = manager.id
    details = {
        "before": before.public_id if before else None,
        "before_name": before.name if before else "",
        "after": manager.public_id,
        "after_name": manager.name,
    }
    members.tell(session, actor, Event.MANAGER_CHANGED, member, details)
    return member


# --- Stopping and starting ------------------------------------------------------------------------------------------


def deactivate(session: Session, actor: Actor, public_id: str) -> Member:
    """Stop an API member, and with it all its keys, from the next request on."""
    _, member = _hold(session, actor, public_id, Event.MEMBER_DEACTIVATED)
    if member.deactivated_at is not None:
        raise Conflict(f"“{member.name}” is already deactivated. Nothing was changed.")
    member.deactivated_at = actor.at
    members.tell(session, actor, Event.MEMBER_DEACTIVATED, member, {"kind": "api"})
    return member


def reactivate(session: Session, actor: Actor, public_id: str) -> tuple[Member, int]:
    """Let an API member act again, and give how many of its keys stay deactivated: each is started by itself (T-30)."""
    _, member = _hold(session, actor, public_id, Event.MEMBER_REACTIVATED)
    if member.deactivated_at is None:
        raise Conflict(f"“{member.name}” is already active. Nothing was changed.")
    member.deactivated_at = None
    members.tell(session, actor, Event.MEMBER_REACTIVATED, member, {"kind": "api"})
    return member, len(members.stop_keys(session, actor, member, "its API member was deactivated and came back"))


def delete(session: Session, actor: Actor, public_id: str, *, typed: str) -> Member:
    """Remove an API member for good and revoke its keys; one with active keys asks for its name."""
    seat, member = _hold(session, actor, public_id, Event.MEMBER_REMOVED)
    standing = select(ApiKey).where(ApiKey.member_id == member.id, ApiKey.revoked_at.is_(None)).order_by(ApiKey.id)
    keys = list(session.scalars(standing.with_for_update()))
    active = session.scalar(select(func.count()).where(ApiKey.member_id == member.id, *ApiKey.active_at(actor.at)))
    if active and member.is_active and text.fold(text.clean_line(typed) or "") != text.fold(member.name):
        raise Invalid({"name": f"Type {member.name} exactly to delete it."})
    for key in keys:
        key.revoked_at, key.revoked_by_id = actor.at, seat.member.id
        members.tell_of_key(session, actor, Event.KEY_DELETED, key, member, {"reason": "its API member was deleted"})
    member.removed_at = actor.at
    members.tell(session, actor, Event.MEMBER_REMOVED, member, {"kind": "api", "keys": len(keys)})
    return member


def _hold(session: Session, actor: Actor, public_id: str, event: Event) -> tuple[Seat, Member]:
    """Lock the actor, then an API member that they manage; NotFound for any other."""
    seat = members.seat_of(session, actor, lock=True)
    return seat, _lock(session, seat, public_id, event)


def _lock(session: Session, seat: Seat, public_id: str, event: Event) -> Member:
    if not seat.is_lead:
        raise Forbidden(LEADS_ONLY, attempt=Attempt(event, public_id))
    statement = (
        select(Member).where(*members.managed_by(seat), Member.public_id == public_id).with_for_update(key_share=True)
    )
    found = session.scalar(statement.execution_options(populate_existing=True))
    if found is None:
        raise NotFound(attempt=Attempt(event, public_id))
    return found


def _check_cap(session: Session, seat: Seat, wanted: Levels, attempt: Attempt) -> None:
    shelves = {solution.slug: solution for solution in members.solutions_of(session, seat.workspace.id)}
    for slug, level in wanted.items():
        solution = shelves.get(slug)
        if solution is None or not may_grant(seat.level_in(solution.id), level):
            where = solution.name if solution else slug
            raise Forbidden(f"You cannot hand out access in {where}. Nothing was saved.", attempt=attempt)


def _checked(name: str, purpose: str) -> tuple[str, str]:
    problems: dict[str, str] = {}
    clean_name = text.read_line(problems, "name", name, 3, 60, "that tells what it is for")
    clean_purpose = text.read_line(problems, "purpose", purpose, 0, 140, "that tells what the program does")
    if problems:
        raise Invalid(problems)
    return clean_name, clean_purpose


def _hold_standing(session: Session, seat: Seat) -> Sequence[str]:
    """Read the names of the API members that are not deleted.

    One at a time: nobody else counts or takes a name meanwhile. Keys that are made for this workspace need not wait.
    """
    this = select(Workspace.id).where(Workspace.id == seat.workspace.id)
    session.execute(this.with_for_update(key_share=True))
    here = (Member.workspace_id == seat.workspace.id, Member.account_id.is_(None), Member.removed_at.is_(None))
    return session.scalars(select(Member.name).where(*here)).all()


def _check_free(name: str, standing: Sequence[str]) -> None:
    """Refuse a name that stands: lists, filters and the audit log would not tell the two apart.

    The other may be one that the actor does not see, so nothing more is told of it.
    """
    if text.look(name) in map(text.look, standing):
        raise Invalid({"name": f"There already is an API member called “{name}”. Choose a different name."})


def _words(access: Levels) -> dict[str, str]:
    return {slug: level.value for slug, level in access.items()}
