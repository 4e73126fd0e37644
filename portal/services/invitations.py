"""Inviting people into a workspace: one-time links that administrators send and withdraw. Accepting one: `members`."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased

from portal.rules import text
from portal.rules.access import AccessLevel, Role
from portal.rules.errors import Attempt, Conflict, Forbidden, Invalid, NotFound, TooManyAttempts
from portal.services import audit, members, outbox
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat
from portal.store.models import Account, Invitation, Member, Workspace

MAX_OPEN = 100  # of a workspace: all of them stand on one page, each with its end
MAX_AN_HOUR = 60  # by one administrator: each mails somebody who may never have heard of us

Levels = Mapping[str, AccessLevel]  # by solution slug


def invite(session: Session, actor: Actor, *, email: str, role: str, levels: Levels, base_url: str) -> str:
    """Invite a person with a role and access, and mail them; give the one-time link, which is kept nowhere.

    An earlier invitation of the same address ends with it. Raises Invalid for an answer, Conflict at the limit of open
    ones and TooManyAttempts at that of an hour.
    """
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        raise Forbidden("Only administrators invite people.", attempt=Attempt(Event.MEMBER_INVITED))
    solutions = {solution.slug for solution in members.solutions_of(session, seat.workspace.id)}
    if unknown := [slug for slug in levels if slug not in solutions]:
        attempt = Attempt(Event.MEMBER_INVITED, details={"access": unknown[:20]})
        raise Forbidden(f"You cannot hand out access in {unknown[0]}. Nothing was saved.", attempt=attempt)
    problems = {}
    address = text.clean_email(email)
    if not address:
        problems["email"] = "Enter an email address like ana@example.org."
    elif known := _active_member(session, seat, address):
        problems["email"] = f"{known} is a member already."
    if role not in list(Role):
        problems["role"] = "Choose Member or Administrator."
    if problems:
        raise Invalid(problems)
    open_ones = select(Invitation).where(*_open(seat, actor.at), Invitation.email == address)
    for earlier in session.scalars(open_ones.with_for_update()):
        _withdraw(session, actor, earlier)
    _check_limits(session, actor, seat)
    token = members.invite(session, actor, seat.workspace, email, Role(role), levels)
    link = f"{base_url}/invite/{token}"
    ends = (actor.at + members.INVITATION_LIFE).astimezone(UTC)
    body = (
        f"Hello,\n\n{seat.member.name} invites you to {seat.workspace.name} in Latchkey.\n\n"
        f"Join over this link. It works once, until {ends:%Y-%m-%dT%H:%M:%SZ}:\n{link}\n\n"
        "If you did not expect this, do nothing: without you the link opens nothing.\n"
    )  # fmt: skip
    outbox.put(session, actor.at, address or "", f"Join {seat.workspace.name}", body)
    return link


def _check_limits(session: Session, actor: Actor, seat: Seat) -> None:
    """Bound what one administrator can send, and what a workspace has waiting; two at once may be one too many."""
    session.flush()
    attempt = Attempt(Event.MEMBER_INVITED)
    if (session.scalar(select(func.count()).select_from(Invitation).where(*_open(seat, actor.at))) or 0) >= MAX_OPEN:
        message = f"{seat.workspace.name} has {MAX_OPEN} open invitations, as many as it can have. Withdraw one first."
        raise Conflict(message, code="invitation_limit", attempt=attempt)
    hour = timedelta(hours=1)
    sent = select(Invitation.created_at).where(
        Invitation.invited_by_id == seat.member.id, Invitation.created_at > actor.at - hour
    )
    newest = session.scalars(sent.order_by(Invitation.created_at.desc()).limit(MAX_AN_HOUR)).all()
    if len(newest) >= MAX_AN_HOUR:
        message = f"You have invited {MAX_AN_HOUR} people within an hour, as many as you can."
        raise TooManyAttempts(newest[-1] + hour, message)


def open_invitations(session: Session, actor: Actor, seat: Seat) -> list[tuple[Invitation, str]]:
    """List the invitations that can still be accepted, newest first, each with the name of whoever sent it."""
    members.check_admin(seat)
    by = aliased(Member)
    statement = (
        select(Invitation, by.name)
        .outerjoin(by, by.id == Invitation.invited_by_id)
        .where(*_open(seat, actor.at))
        .order_by(Invitation.id.desc())
        .limit(200)
    )
    return [(invitation, name or "") for invitation, name in session.execute(statement)]


def get_invitation(session: Session, actor: Actor, seat: Seat, public_id: str) -> Invitation:
    """Find an open invitation; NotFound for any other."""
    members.check_admin(seat)
    found = session.scalar(select(Invitation).where(*_open(seat, actor.at), Invitation.public_id == public_id))
    if found is None:
        raise NotFound()
    return found


def withdraw(session: Session, actor: Actor, public_id: str) -> Invitation:
    """End an open invitation."""
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        attempt = Attempt(Event.INVITATION_WITHDRAWN, public_id)
        raise Forbidden("Only administrators withdraw invitations.", attempt=attempt)
    this = (*_open(seat, actor.at), Invitation.public_id == public_id)
    found = session.scalar(select(Invitation).where(*this).with_for_update())
    if found is None:
        raise NotFound("This invitation was accepted, withdrawn, or has expired.")
    _withdraw(session, actor, found)
    return found


def withdraw_those_of(session: Session, actor: Actor, member: Member) -> int:
    """End what an administrator has sent: it would hand out what they may hand out no more."""
    return _withdraw_all(session, actor, Invitation.invited_by_id == member.id)


def withdraw_those_to(session: Session, actor: Actor, member: Member) -> int:
    """End what was sent to somebody who leaves or comes back: it would let them in again whenever they like."""
    email = select(Account.email).where(Account.id == member.account_id).scalar_subquery()
    return _withdraw_all(session, actor, (Invitation.workspace_id == member.workspace_id) & (Invitation.email == email))


def invite_admin(session: Session, actor: Actor, workspace: Workspace, email: str) -> str:
    """Make an operator's one-time link for an administrator; those that the address got before end by it.

    Gives the token. Raises Conflict for somebody who is in already; Invalid for what is no e-mail address.
    """
    address = text.clean_email(email) or ""
    if role := _active_role(session, workspace, address):
        advice = "For a new password: flask reset-password." if role == Role.ADMIN else "Administrators change roles."
        raise Conflict(f"{address} is in {workspace.slug} already, as {role}. {advice}")
    _withdraw_all(session, actor, (Invitation.workspace_id == workspace.id) & (Invitation.email == address))
    return members.invite(session, actor, workspace, email, Role.ADMIN)


def _withdraw_all(session: Session, actor: Actor, which: ColumnElement[bool]) -> int:
    open_ones = (which, Invitation.accepted_at.is_(None), Invitation.withdrawn_at.is_(None))
    found = list(session.scalars(select(Invitation).where(*open_ones).order_by(Invitation.id).with_for_update()))
    for invitation in found:
        _withdraw(session, actor, invitation)
    return len(found)


def _withdraw(session: Session, actor: Actor, invitation: Invitation) -> None:
    invitation.withdrawn_at = actor.at
    audit.record(
        session,
        actor,
        Event.INVITATION_WITHDRAWN,
        workspace_id=invitation.workspace_id,
        target_id=invitation.public_id,
        target_name=invitation.email,
        details={},
    )


def _open(seat: Seat, now: datetime) -> tuple[Any, ...]:
    return (
        Invitation.workspace_id == seat.workspace.id,
        Invitation.accepted_at.is_(None),
        Invitation.withdrawn_at.is_(None),
        Invitation.expires_at > now,
    )


def _active_member(session: Session, seat: Seat, email: str) -> str | None:
    here = (Member.workspace_id == seat.workspace.id, Account.email == email, *members.ACTIVE)
    return session.scalar(select(Member.name).join(Member.account).where(*here))


def _active_role(session: Session, workspace: Workspace, email: str) -> str | None:
    here = (Member.workspace_id == workspace.id, Account.email == email, *members.ACTIVE)
    return session.scalar(select(Member.role).join(Member.account).where(*here))
