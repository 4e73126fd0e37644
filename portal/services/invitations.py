"""Invitations into a workspace: one-time links that administrators send and withdraw, and what accepting one does."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased, joinedload

from portal.rules import credentials, text
from portal.rules.access import AccessLevel, Levels, Role
from portal.rules.errors import AlreadyShown, Attempt, Conflict, Forbidden, Invalid, NotFound, TooManyAttempts
from portal.services import audit, members, outbox
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat, SeatWorkspace
from portal.services.passwords import NewPassword
from portal.store.database import IntegrityError
from portal.store.models import Account, Invitation, Member, Workspace

INVITATION_LIFE = timedelta(days=7)
MAX_OPEN = 100  # of a workspace: all of them stand on one page, each with its end
MAX_AN_HOUR = 60  # by one administrator: each mails somebody who may never have heard of us
_MEANWHILE = "The account of this address changed a moment ago. Open the link again."


# --- Sending and withdrawing ----------------------------------------------------------------------------------------


def invite(
    session: Session, actor: Actor, *, email: str, role: str, levels: Levels, base_url: str, form_id: str = ""
) -> str:
    """Invite a person with a role and access, and mail them; give the one-time link, which is kept nowhere.

    An earlier invitation of the same address ends with it. Raises Invalid for an answer, AlreadyShown when this form
    made one before, Conflict at the limit of open ones and TooManyAttempts at that of an hour.
    """
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        raise Forbidden("Only administrators invite people.", attempt=Attempt(Event.MEMBER_INVITED))
    answers = (email, role, *(f"{slug}={level}" for slug, level in sorted(levels.items())))
    public_id = credentials.id_by_form("inv", seat.member.public_id, form_id, *answers)
    if session.scalar(select(Invitation.id).where(Invitation.public_id == public_id)):
        raise AlreadyShown(public_id)
    solutions = {solution.slug for solution in members.solutions_of(session, seat.workspace.id)}
    if unknown := [slug for slug in levels if slug not in solutions]:
        attempt = Attempt(Event.MEMBER_INVITED, details={"access": unknown[:20]})
        raise Forbidden(f"You cannot hand out access in {unknown[0]}. Nothing was saved.", attempt=attempt)
    problems = {}
    address = text.clean_email(email)
    if not address:
        problems["email"] = "Enter an email address like ana@example.org."
    elif known := _active_member(session, seat.workspace.id, address):
        problems["email"] = f"{known.name} is a member already."
    if role not in list(Role):
        problems["role"] = "Choose Member or Administrator."
    if problems:
        raise Invalid(problems)
    open_ones = select(Invitation).where(*_open_in(seat, actor.at), Invitation.email == address)
    for earlier in session.scalars(open_ones.with_for_update()):
        _withdraw(session, actor, earlier)
    _check_limits(session, actor, seat)
    token = issue(session, actor, seat.workspace, email, Role(role), levels, public_id=public_id)
    link = f"{base_url}/invite/{token}"
    ends = (actor.at + INVITATION_LIFE).astimezone(UTC)
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
    if (session.scalar(select(func.count()).select_from(Invitation).where(*_open_in(seat, actor.at))) or 0) >= MAX_OPEN:
        message = f"{seat.workspace.name} has {MAX_OPEN} open invitations, as many as it can have. Withdraw one first."
        raise Conflict(message, code="invitation_limit", attempt=attempt)
    hour = timedelta(hours=1)
    sent = select(Invitation.created_at).where(
        Invitation.invited_by_id == seat.member.id, Invitation.created_at > actor.at - hour
    )
    newest = session.scalars(sent.order_by(Invitation.created_at.desc()).limit(MAX_AN_HOUR)).all()
    if len(newest) >= MAX_AN_HOUR:
        message = f"You have invited {MAX_AN_HOUR} people within an hour, as many as you can."
        raise TooManyAttempts(newest[-1] + hour, message, attempt=attempt)


def issue(
    session: Session,
    actor: Actor,
    workspace: Workspace | SeatWorkspace,
    email: str,
    role: Role,
    access: Levels | None = None,
    public_id: str = "",
) -> str:
    """Make a one-time link's token for a person; Invalid for what is no e-mail address. The token is kept nowhere.

    `access` is what they are to have, by solution slug; the caller has asked whether the actor may give it.
    """
    address = text.clean_email(email)
    if not address:
        raise Invalid({"email": "Enter an email address like ana@example.org."})
    token = credentials.new_token()
    given = {slug: level.value for slug, level in (access or {}).items() if level is not AccessLevel.NONE}
    invitation = Invitation(
        public_id=public_id or credentials.new_id("inv"),
        token_hash=credentials.token_digest(token),
        workspace_id=workspace.id,
        email=address,
        role=role,
        access=given,
        invited_by_id=actor.member_id,
        created_at=actor.at,
        expires_at=actor.at + INVITATION_LIFE,
    )
    session.add(invitation)
    audit.record(
        session,
        actor,
        Event.MEMBER_INVITED,
        workspace_id=workspace.id,
        target_id=invitation.public_id,
        target_name=address,
        details={"role": role, "access": given},
    )
    return token


def list_open(session: Session, actor: Actor, seat: Seat) -> list[tuple[Invitation, str]]:
    """List the invitations that can still be accepted, newest first, each with the name of whoever sent it."""
    members.check_admin(seat)
    by = aliased(Member)
    statement = (
        select(Invitation, by.name)
        .outerjoin(by, by.id == Invitation.invited_by_id)
        .where(*_open_in(seat, actor.at))
        .order_by(Invitation.id.desc())
    )
    return [(invitation, name or "") for invitation, name in session.execute(statement)]


def get(session: Session, actor: Actor, seat: Seat, public_id: str) -> Invitation:
    """Find an open invitation; NotFound for any other."""
    members.check_admin(seat)
    found = session.scalar(select(Invitation).where(*_open_in(seat, actor.at), Invitation.public_id == public_id))
    if found is None:
        raise NotFound()
    return found


def sent_before(session: Session, seat: Seat, public_id: str) -> Invitation:
    """Find an invitation of the workspace, whatever became of it."""
    members.check_admin(seat)
    here = (Invitation.workspace_id == seat.workspace.id, Invitation.public_id == public_id)
    return session.scalars(select(Invitation).where(*here)).one()


def withdraw(session: Session, actor: Actor, public_id: str) -> Invitation:
    """End an open invitation."""
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        attempt = Attempt(Event.INVITATION_WITHDRAWN, public_id)
        raise Forbidden("Only administrators withdraw invitations.", attempt=attempt)
    this = (*_open_in(seat, actor.at), Invitation.public_id == public_id)
    found = session.scalar(select(Invitation).where(*this).with_for_update())
    if found is None:
        raise NotFound("This invitation was accepted, withdrawn, or has expired.")
    _withdraw(session, actor, found)
    return found


def withdraw_those_of(session: Session, actor: Actor, member: Member) -> int:
    """End what an administrator has sent: it would hand out what they may hand out no more."""
    return _withdraw_all(session, actor, Invitation.invited_by_id == member.id)


def withdraw_those_to(session: Session, actor: Actor, member: Member) -> None:
    """End what was sent to somebody who leaves or comes back: it would let them in again whenever they like."""
    email = select(Account.email).where(Account.id == member.account_id).scalar_subquery()
    _withdraw_all(session, actor, (Invitation.workspace_id == member.workspace_id) & (Invitation.email == email))


def invite_admin(session: Session, actor: Actor, workspace: Workspace, email: str) -> str:
    """Make an operator's one-time link for an administrator; those that the address got before end by it.

    Gives the token. Raises Conflict for somebody who is in already; Invalid for what is no e-mail address.
    """
    address = text.clean_email(email) or ""
    if known := _active_member(session, workspace.id, address):
        reset = f"For a new password: .venv/bin/flask reset-password {address}"
        advice = reset if known.role == Role.ADMIN else "Administrators change roles."
        raise Conflict(f"{address} is in {workspace.slug} already, as {known.role}. {advice}")
    _withdraw_all(session, actor, (Invitation.workspace_id == workspace.id) & (Invitation.email == address))
    return issue(session, actor, workspace, email, Role.ADMIN)


def _withdraw_all(session: Session, actor: Actor, which: ColumnElement[bool]) -> int:
    open_ones = select(Invitation).where(which, *Invitation.open_at(actor.at)).order_by(Invitation.id)
    found = list(session.scalars(open_ones.with_for_update()))
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
    )


def _open_in(seat: Seat, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return Invitation.workspace_id == seat.workspace.id, *Invitation.open_at(now)


def _active_member(session: Session, workspace_id: int, email: str) -> Member | None:
    here = (Member.workspace_id == workspace_id, Account.email == email, *members.ACTIVE)
    return session.scalar(select(Member).join(Member.account).where(*here))


# --- Accepting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """An invitation that can still be accepted, and the account that its address has already, if any."""

    invitation: Invitation
    account: Account | None


def get_by_token(session: Session, token: str, actor: Actor, *, lock: bool = False) -> OpenInvitation:
    """Find an invitation by its token; NotFound once it is used, withdrawn, expired or unknown.

    It ends too when its sender is out, or no administrator any more; an operator's has no sender.
    """
    is_operators = Invitation.invited_by_id.is_(None)
    statement = (
        select(Invitation)
        .options(joinedload(Invitation.workspace, innerjoin=True))
        .where(
            Invitation.token_hash == credentials.token_digest(token),
            *Invitation.open_at(actor.at),
            is_operators | Invitation.invited_by_id.in_(select(Member.id).where(members.is_admin_now())),
        )
        .execution_options(populate_existing=True)
    )
    invitation = session.scalar(statement.with_for_update(of=Invitation) if lock else statement)
    if invitation is None:
        raise NotFound("This invitation was used or has expired. Ask for a new one.")
    return OpenInvitation(invitation, session.scalar(select(Account).where(Account.email == invitation.email)))


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What a person without an account answered, checked; the password is hashed before anybody waits for a writer."""

    name: str
    password_hash: str

    @classmethod
    def choose(cls, name: str, password: str, again: str) -> "NewAccount":
        """Take a name and a password, typed twice; raise Invalid with all that is to mend."""
        problems: dict[str, str] = {}
        clean = read_name(problems, name)
        if problems := problems | NewPassword.problems_of(password, again):
            raise Invalid(problems)
        return cls(clean, NewPassword.choose(password, again, stop_keys=False).password_hash)


def read_name(problems: dict[str, str], written: str) -> str:
    """Clean a person's own name; where it cannot be taken, `problems` gets what to do about it."""
    return text.read_line(problems, "name", written, 2, 60, "by which others know you")


def accept(session: Session, actor: Actor, token: str, who: Account | NewAccount) -> Member:
    """Let a person join: with a new account, or with the one whose password the caller has checked.

    Raises Conflict when the address got its account, or lost it, only just now.
    """
    _hold_for(session, get_by_token(session, token, actor))
    found = get_by_token(session, token, actor, lock=True)
    invitation, account = found.invitation, found.account
    if account is None and isinstance(who, NewAccount):
        account = _make_account(session, actor, invitation.email, who)
    elif account is None or isinstance(who, NewAccount) or account.id != who.id:
        raise Conflict(_MEANWHILE)
    known = session.scalar(
        select(Member).where(Member.account_id == account.id, Member.workspace_id == invitation.workspace_id)
    )
    member = known or _make_member(session, actor, account, invitation)
    actor = replace(  # a visitor until now
        actor,
        name=member.name,
        public_id=member.public_id,
        workspace_id=member.workspace_id,
        member_id=member.id,
    )
    if known is None:
        _give_invited(session, actor, member, invitation)
    elif not known.is_active:  # somebody who had left is asked back
        _take_back(session, actor, member, invitation, account.name)
    invitation.accepted_at = actor.at
    members.tell(session, actor, Event.MEMBER_JOINED, member, {"role": member.role, "invitation": invitation.public_id})
    return member


def _make_account(session: Session, actor: Actor, email: str, chosen: NewAccount) -> Account:
    made = Account(
        public_id=credentials.new_id("acc"),
        email=email,
        name=chosen.name,
        password_hash=chosen.password_hash,
        created_at=actor.at,
    )
    try:
        with session.begin_nested():
            session.add(made)
    except IntegrityError:
        raise Conflict(_MEANWHILE) from None
    return made


def _make_member(session: Session, actor: Actor, account: Account, invitation: Invitation) -> Member:
    made = Member(
        public_id=credentials.new_id("mem"),
        workspace_id=invitation.workspace_id,
        account_id=account.id,
        name=account.name,
        role=invitation.role,
        created_at=actor.at,
    )
    session.add(made)
    session.flush()
    return made


def _hold_for(session: Session, found: OpenInvitation) -> None:
    """Lock whoever invited and whoever comes back, before the invitation: in the order in which every change locks."""
    invitation, account = found.invitation, found.account
    whom = Member.id == invitation.invited_by_id
    if account:
        whom |= (Member.workspace_id == invitation.workspace_id) & (Member.account_id == account.id)
    statement = select(Member).where(whom).order_by(Member.id).with_for_update(key_share=True)
    session.scalars(statement.execution_options(populate_existing=True)).all()


def _give_invited(session: Session, actor: Actor, member: Member, invitation: Invitation) -> None:
    invited = {slug: AccessLevel(level) for slug, level in invitation.access.items()}
    wanted = dict.fromkeys(members.levels_of(session, member), AccessLevel.NONE) | invited
    members.set_levels(session, actor, member, wanted, by_id=invitation.invited_by_id)


def _take_back(session: Session, actor: Actor, member: Member, invitation: Invitation, name: str) -> None:
    """Make a member active again with what the invitation says: old access and old keys do not come back by it."""
    member.deactivated_at = member.removed_at = None
    member.name, member.role = name, Role(invitation.role)
    _give_invited(session, actor, member, invitation)
    members.stop_keys(session, actor, member, "its owner had left and came back")
