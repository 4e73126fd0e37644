"""People of a workspace: who is there, roles and access, leaving and coming back. Administrators decide.

Accounts as a whole, in all their workspaces, are switched off and on by an operator.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import Session, contains_eager, joinedload

from portal.rules.access import AccessLevel, Levels, Role
from portal.rules.credentials import Keyring
from portal.rules.errors import Attempt, Conflict, Forbidden, Invalid, NeedsProof, NotFound
from portal.rules.paging import Page, pages_of
from portal.rules.text import clean_email
from portal.services import audit, invitations, members, offboarding, passwords
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat
from portal.services.offboarding import KeyAtRisk, Loss
from portal.store.models import Access, Account, ApiKey, Member, Solution, UserSession

LEADS_ONLY = "Only team leads and administrators see the people of a workspace."
LAST_ADMIN = "{} is the last administrator of {}. Make somebody else an administrator first."
STATES = ("active", "deactivated", "removed")
ROLES = ("admin", "lead", "member")


# --- Looking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list of people is narrowed to; without a state, to those who have not been removed."""

    q: str = ""
    role: str = ""
    solution: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """A person in the list."""

    member: Member
    is_lead: bool
    keys: int
    last_used_at: datetime | None
    access: Levels


def list_for(session: Session, seat: Seat, filters: Filters, *, number: int, size: int, now: datetime) -> Page[Listed]:
    """List the people of a workspace by name."""
    if not seat.is_lead:
        raise Forbidden(LEADS_ONLY)
    conditions = _narrowed(seat, filters)
    standing = (ApiKey.revoked_at.is_(None), or_(ApiKey.retires_at.is_(None), ApiKey.retires_at > now))
    count = func.count().filter(*standing).label("count")
    facts = (
        select(ApiKey.member_id, count, func.max(ApiKey.last_used_at).label("at"))
        .where(ApiKey.workspace_id == seat.workspace.id)
        .group_by(ApiKey.member_id)
        .subquery()
    )  # fmt: skip
    statement = (
        select(Member, _IS_LEAD, func.coalesce(facts.c.count, 0), facts.c.at)
        .join(Member.account)
        .outerjoin(facts, facts.c.member_id == Member.id)
        .options(contains_eager(Member.account))
        .where(*conditions)
    )
    total = session.scalar(select(func.count()).select_from(Member).join(Member.account).where(*conditions)) or 0
    number = min(number, pages_of(total, size))
    ordered = statement.order_by(func.lower(Member.name), Member.id).limit(size).offset((number - 1) * size)
    found = session.execute(ordered).all()
    access = offboarding.access_of(session, [row[0] for row in found])
    rows = [Listed(member, bool(lead), keys, at, access[member.id]) for member, lead, keys, at in found]
    return Page(rows, number, total, size)


def _narrowed(seat: Seat, filters: Filters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Member.workspace_id == seat.workspace.id, Member.account_id.is_not(None)]
    if filters.q:
        conditions.append(
            or_(*(column.icontains(filters.q, autoescape=True) for column in (Member.name, Account.email)))
        )
    roles = {"admin": _IS_ADMIN, "lead": _IS_LEAD, "member": and_(~_IS_ADMIN, ~_MANAGES)}
    if filters.role in roles:
        conditions.append(roles[filters.role])
    if filters.solution:
        there = select(Access.member_id).join(Solution).where(
            Solution.workspace_id == seat.workspace.id, Solution.slug == filters.solution
        )  # fmt: skip
        conditions.append(or_(_IS_ADMIN, Member.id.in_(there)))
    states = {
        "active": and_(*members.ACTIVE, Account.deactivated_at.is_(None)),
        "deactivated": and_(
            or_(Member.deactivated_at.is_not(None), Account.deactivated_at.is_not(None)), Member.removed_at.is_(None)
        ),
        "removed": Member.removed_at.is_not(None),
    }
    return [*conditions, states.get(filters.state, Member.removed_at.is_(None))]


_MANAGES, _IS_ADMIN = members.manages_any(), Member.role == Role.ADMIN
_IS_LEAD = and_(~_IS_ADMIN, _MANAGES)


def get(session: Session, seat: Seat, public_id: str) -> Member:
    """Find a person of the workspace with their account; NotFound for anybody else."""
    if not seat.is_lead:
        raise Forbidden(LEADS_ONLY)
    statement = (
        select(Member)
        .join(Member.account)
        .options(contains_eager(Member.account))
        .where(Member.workspace_id == seat.workspace.id, Member.public_id == public_id)
    )
    found = session.scalar(statement)
    if found is None:
        raise NotFound()
    return found


def is_last_admin(session: Session, member: Member) -> bool:
    """Say whether nobody else could let people in."""
    others = select(Member.id).where(
        Member.workspace_id == member.workspace_id, Member.id != member.id, members.is_admin_now()
    )
    return member.role == Role.ADMIN and member.is_active and session.scalar(others.limit(1)) is None


def version_of(role: str, levels: Levels) -> str:
    """Write down what a form showed, so that its answer can be told from a stale one."""
    return " ".join([str(role), *(f"{slug}={level.value}" for slug, level in sorted(levels.items()))])


# --- Roles and access -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved change: what keys lost by it, and how many open invitations went with an administrator's rights."""

    member: Member
    is_changed: bool
    losses: list[Loss] = field(default_factory=list)
    withdrawn: int = 0


def set_access(
    session: Session,
    actor: Actor,
    keyring: Keyring,
    public_id: str,
    *,
    role: str,
    levels: Levels,
    was: str | None,
    is_proved: bool,
) -> Saved:
    """Give a person a role and levels by solution slug; what is not named stays.

    `was` is what the form showed (`version_of`), Conflict if that is old, or for the last administrator. Forbidden
    for more access for oneself. NeedsProof when it hands out more than before and the actor's proof is too old.
    """
    seat, member = _hold(session, actor, public_id, Event.ACCESS_GRANTED)
    before, before_role = members.levels_of(session, member), Role(member.role)
    if role not in list(Role):
        raise Invalid({"role": "Choose Member or Administrator."})
    if unknown := [slug for slug in levels if slug not in before]:
        attempt = Attempt(Event.ACCESS_GRANTED, member.public_id, member.name, {"access": unknown[:20]})
        raise Forbidden(f"You cannot hand out access in {unknown[0]}. Nothing was saved.", attempt=attempt)
    if was is not None and was != version_of(before_role, before):
        raise Conflict(f"Somebody changed “{member.name}” a moment ago. Nothing was saved. Look at it again.")
    if member.removed_at is not None:
        raise Conflict(f"“{member.name}” was removed. Invite them again first.")
    if role == Role.MEMBER:
        _check_not_last(session, seat, member, Event.ROLE_CHANGED)
    raises = (before_role is Role.MEMBER and role == Role.ADMIN) or any(
        before[slug] < level for slug, level in levels.items()
    )
    if raises and member.id == seat.member.id:
        attempt = Attempt(Event.ACCESS_GRANTED, member.public_id, member.name)
        raise Forbidden("Nobody gives more access to themselves. Ask another administrator.", attempt=attempt)
    if raises and not is_proved:
        raise NeedsProof()
    at_risk = offboarding.keys_at_risk(session, actor, seat, keyring, member)
    withdrawn = _set_role(session, actor, member, Role(role))
    changed = members.set_levels(session, actor, member, levels, by_id=seat.member.id)
    lost = [] if role == Role.ADMIN else offboarding.losses(at_risk, before | dict(levels))
    return Saved(member, bool(changed) or role != before_role, lost, withdrawn)


def _set_role(session: Session, actor: Actor, member: Member, role: Role) -> int:
    """Change a role, not the last administrator's, and tell of it; gives how many open invitations went with it."""
    if member.role == role:
        return 0
    withdrawn = 0
    if role is Role.MEMBER:
        withdrawn = invitations.withdraw_those_of(session, actor, member)
    members.tell(session, actor, Event.ROLE_CHANGED, member, {"before": str(member.role), "after": str(role)})
    member.role = role
    session.flush()
    return withdrawn


# --- Leaving and coming back ----------------------------------------------------------------------------------------

THEN = ("demote", "deactivate", "remove")


@dataclass(frozen=True, slots=True)
class Preview:
    """What happens when somebody is demoted or leaves: their keys, and the API members that go on without them."""

    member: Member
    keys: list[KeyAtRisk]
    solutions: list[Solution]
    levels: Levels  # what they would have as a plain member, in each of them
    led: list[Member]
    heirs: list[tuple[Member, dict[str, AccessLevel]]]
    is_last_admin: bool


def preview(session: Session, actor: Actor, seat: Seat, keyring: Keyring, public_id: str) -> Preview:
    """Lay out what stops or shrinks before somebody is demoted, deactivated or removed."""
    members.check_admin(seat)
    member = get(session, seat, public_id)
    solutions = members.solutions_of(session, seat.workspace.id)
    return Preview(
        member,
        offboarding.keys_at_risk(session, actor, seat, keyring, member),
        solutions,
        members.levels_of(session, member, solutions),
        offboarding.api_members_led_by(session, member),
        offboarding.heirs(session, seat),
        is_last_admin(session, member),
    )


def leave(session: Session, actor: Actor, public_id: str, then: str) -> Member:
    """Demote, deactivate or remove somebody (`then` is one of THEN); Conflict for the last administrator.

    Their keys stop, or shrink, with the next request; API members that they manage go on.
    """
    event = {"deactivate": Event.MEMBER_DEACTIVATED, "remove": Event.MEMBER_REMOVED}.get(then, Event.ROLE_CHANGED)
    seat, member = _hold(session, actor, public_id, event)
    if then not in THEN:
        raise Invalid({"then": "Choose what happens."})
    if then == "demote":
        if member.role != Role.ADMIN:
            raise Conflict(f"“{member.name}” is no administrator. Nothing was changed.")
        _check_not_last(session, seat, member, event)
        _set_role(session, actor, member, Role.MEMBER)
        return member
    if member.removed_at is not None or (then == "deactivate" and member.deactivated_at is not None):
        state = "removed" if member.removed_at else "deactivated"
        raise Conflict(f"“{member.name}” is already {state}. Nothing was changed.")
    _check_not_last(session, seat, member, event)
    if member.role == Role.ADMIN:
        invitations.withdraw_those_of(session, actor, member)
    invitations.withdraw_those_to(session, actor, member)
    if then == "deactivate":
        member.deactivated_at = actor.at
    else:
        member.removed_at = actor.at
    members.tell(session, actor, event, member, {"kind": "human"})
    return member


def reactivate(session: Session, actor: Actor, public_id: str) -> tuple[Member, int]:
    """Let somebody back in, and give how many of their keys stay deactivated: none starts again by itself (T-30).

    Who had been removed comes back as a plain member without access.
    """
    seat, member = _hold(session, actor, public_id, Event.MEMBER_REACTIVATED)
    if member.is_active:
        raise Conflict(f"“{member.name}” is already active. Nothing was changed.")
    was_removed = member.removed_at is not None
    invitations.withdraw_those_to(session, actor, member)
    member.deactivated_at = member.removed_at = None
    members.tell(session, actor, Event.MEMBER_REACTIVATED, member, {"kind": "human"})
    if was_removed:
        _set_role(session, actor, member, Role.MEMBER)
        nothing = dict.fromkeys(members.levels_of(session, member), AccessLevel.NONE)
        members.set_levels(session, actor, member, nothing, by_id=seat.member.id)
    return member, len(members.stop_keys(session, actor, member, "its owner had left and came back"))


def rename_self(session: Session, actor: Actor, email: str, name: str) -> str:
    """Give the person with this address another name, in all workspaces that they are in; give it as it is kept.

    What the audit log says of them keeps the name that they had. Raises Invalid with what is to mend.
    """
    problems: dict[str, str] = {}
    clean = invitations.read_name(problems, name)
    if problems:
        raise Invalid(problems)
    account = _hold_account(session, email)
    account.name = clean
    mine = select(Member).where(Member.account_id == account.id, Member.removed_at.is_(None), Member.name != clean)
    for member in session.scalars(mine.order_by(Member.workspace_id)).all():
        was, member.name = member.name, clean
        who = replace(actor, public_id=member.public_id, workspace_id=member.workspace_id, member_id=member.id)
        details = {"before": {"name": was}, "after": {"name": clean}}
        members.tell(session, who, Event.MEMBER_EDITED, member, details)
    return clean


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended with an account: sessions and active keys; and the workspaces that nobody administers any more."""

    sessions: int
    keys: int
    orphans: list[str]  # by slug


def deactivate_account(session: Session, actor: Actor, email: str) -> Ended | None:
    """Stop an account in all its workspaces at once; None where it is deactivated already, NotFound for an unknown one.

    The last administrator too: one that was taken over has to be stopped, whatever else then waits for an operator.
    """
    account = _hold_account(session, email)
    if account.deactivated_at is not None:
        return None
    account.deactivated_at = actor.at
    keys = passwords.active_keys(session, account.id, actor)
    ended = delete(UserSession).where(UserSession.account_id == account.id).returning(UserSession.id)
    sessions = len(session.scalars(ended).all())
    orphans = []
    for member in _tell_of_account(session, actor, Event.ACCOUNT_DEACTIVATED, account):
        invitations.withdraw_those_of(session, actor, member)
        if is_last_admin(session, member):
            orphans.append(member.workspace.slug)
    return Ended(sessions, keys, orphans)


def reactivate_account(session: Session, actor: Actor, email: str) -> str | None:
    """Give an account its memberships and keys back, but not its password, which may be known to whoever took it over.

    Gives the token of a one-time link for a new one; None where it is active, NotFound for an unknown one.
    """
    account = _hold_account(session, email)
    if account.deactivated_at is None:
        return None
    account.deactivated_at = None
    _tell_of_account(session, actor, Event.ACCOUNT_REACTIVATED, account)
    return passwords.take_away(session, actor, account)


def _hold_account(session: Session, email: str) -> Account:
    """Lock an account after its members: what they are doing just now is done first, and what comes later sees it."""
    this = Account.email == (clean_email(email) or "")
    mine = select(Member.id).join(Member.account).where(this).order_by(Member.id)
    session.execute(mine.with_for_update(of=Member, key_share=True))
    account = session.scalar(select(Account).where(this).with_for_update(key_share=True))
    if account is None:
        raise NotFound(f"Nobody has an account with the address {email}.")
    return account


def _tell_of_account(session: Session, actor: Actor, event: Event, account: Account) -> list[Member]:
    """Write what happened to an account into the log of signing in and of each workspace; give its members there.

    The chains of several workspaces are held in the order of their numbers, by whoever writes to more than one.
    """
    audit.record(session, actor, event, target_id=account.public_id, target_name=account.email)
    mine = select(Member).where(Member.account_id == account.id, Member.removed_at.is_(None))
    found = list(session.scalars(mine.order_by(Member.workspace_id).options(joinedload(Member.workspace))))
    for member in found:
        members.tell(session, actor, event, member, {})
    return found


def _hold(session: Session, actor: Actor, public_id: str, event: Event) -> tuple[Seat, Member]:
    """Lock the actor, a person and all administrators; Forbidden unless the actor is one of them."""
    seat, found = members.hold_people(session, actor, public_id)
    if not seat.is_admin:
        raise Forbidden(members.ADMINS_ONLY, attempt=Attempt(event, public_id))
    if public_id not in found:
        raise NotFound(attempt=Attempt(event, public_id))
    return seat, found[public_id]


def _check_not_last(session: Session, seat: Seat, member: Member, event: Event) -> None:
    if is_last_admin(session, member):
        attempt = Attempt(event, member.public_id, member.name)
        raise Conflict(LAST_ADMIN.format(member.name, seat.workspace.name), code="last_admin", attempt=attempt)
