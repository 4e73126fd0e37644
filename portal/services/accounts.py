"""Signing in: passwords with limits on guessing, server-side sessions, and proof that it is still you.

A sign-in is three steps, because the password's hash takes longer than a writer may hold the database:
`begin_attempt` counts it as a failure beforehand (so that parallel guesses cannot outrun the limit), the caller
verifies the password (`PasswordAttempt.verify`), then `sign_in` or `prove` takes the failure back, or `fail` tells
of it.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import available_timezones

from sqlalchemy import bindparam, case, delete, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from portal.rules import credentials, errors
from portal.rules.errors import Conflict, Invalid, TooManyAttempts
from portal.rules.text import clean_email, network_of
from portal.services import audit
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.store.database import read
from portal.store.models import Account, Invitation, Member, SignInFailure, UserSession

SESSION_IDLE = timedelta(hours=2)
SESSION_LIFE = timedelta(hours=12)
PROOF_LIFE = timedelta(minutes=10)
_SEEN_EVERY = timedelta(minutes=1)  # how stale `last_seen_at` may be: one write a minute, not one a page

_WINDOW = timedelta(minutes=15)
_LONG_WINDOW = timedelta(hours=1)
PAIR_LIMIT = 5  # failures in 15 minutes for an account from one address prefix
PREFIX_LIMIT = 30  # failures in 15 minutes from one address prefix
ACCOUNT_LIMIT = 50  # failures in an hour for an account from anywhere
NOTHING_ENTERED = "Enter your password."  # asked of an empty field, before it costs a try


class Viewer(NamedTuple):
    """Who looks at a page: of `Account`, read as columns."""

    id: int
    public_id: str
    email: str
    name: str
    time_zone: str
    clock: str
    theme: str
    page_rows: int
    has_shortcuts: bool


class LiveSession(NamedTuple):
    """A session that goes on: of `UserSession`, read as columns, for every page asks for it."""

    account: Viewer
    id: int
    account_id: int
    workspace_id: int | None
    created_at: datetime
    last_seen_at: datetime
    proved_at: datetime
    token_hash: bytes  # its beginning is in the log


@dataclass(slots=True)
class PasswordAttempt:
    """A counted try at a password: whose it may be, and the hash to verify against (None: nobody's)."""

    failure_id: int
    email_hash: bytes
    prefix: str
    account: Account | None
    tries_left: int
    new_hash: str | None = None  # of a password that was right, where the stored hash is of an older kind

    def verify(self, password: str) -> bool:
        """Say whether the password is right; takes the same work for nobody's account. Not for within a transaction."""
        stored = self.account.password_hash if self.account else None
        is_right = credentials.verify_password(stored, password)
        if is_right and stored and credentials.needs_rehash(stored):
            self.new_hash = credentials.hash_password(password)
        return is_right


def begin_attempt(session: Session, actor: Actor, email: str) -> PasswordAttempt:
    """Count a try at an account's password; TooManyAttempts while a limit holds, whether or not the account exists."""
    address = clean_email(email)
    email_hash = hashlib.sha256((address or email[:254]).encode("utf-8", "surrogatepass")).digest()
    prefix = network_of(actor.address)
    _take_turns(session)
    session.execute(delete(SignInFailure).where(SignInFailure.at <= actor.at - _LONG_WINDOW))
    account = find_usable(session, address) if address else None
    tried = errors.Attempt(Event.SIGN_IN_FAILED, *_named(account))
    tries_left = _check_limits(session, email_hash, prefix, actor.at, tried)
    failure = SignInFailure(email_hash=email_hash, prefix=prefix, at=actor.at)
    session.add(failure)
    session.flush()
    return PasswordAttempt(failure.id, email_hash, prefix, account, tries_left)


def count_request(session: Session, actor: Actor, email: str) -> None:
    """Count somebody asking for a reset of an address, by the limits of sign-in; TooManyAttempts while one holds."""
    email_hash = hashlib.sha256(b"reset:" + email[:254].encode("utf-8", "surrogatepass")).digest()
    prefix = network_of(actor.address)
    _take_turns(session)
    tried = errors.Attempt(Event.PASSWORD_RESET_ASKED, target_label="an account")
    _check_limits(session, email_hash, prefix, actor.at, tried)
    session.add(SignInFailure(email_hash=email_hash, prefix=prefix, at=actor.at))


def _take_turns(session: Session) -> None:
    """Let nobody else count or take back tries until this ends. SQLite's writer is alone anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE sign_in_failure IN SHARE ROW EXCLUSIVE MODE"))


def fail(session: Session, actor: Actor, attempt: PasswordAttempt) -> None:
    """Tell of a password that did not match; of nobody's account too, for the two must take the same work."""
    target_id, name = _named(attempt.account)
    audit.refuse(session, actor, Event.SIGN_IN_FAILED, target_id=target_id, target_name=name)


def _named(account: Account | None) -> tuple[str, str]:
    return (account.public_id, account.email) if account else ("", "unknown account")


def find_usable(session: Session, email: str, *, invited_at: datetime | None = None) -> Account | None:
    """Find the account of an address that can sign in; `email` as `text.clean_email` gives it.

    With `invited_at` also one that can do so again once it accepts an invitation that is open at that moment.
    """
    ways = [
        exists().where(Member.account_id == Account.id, Member.deactivated_at.is_(None), Member.removed_at.is_(None))
    ]
    if invited_at:
        ways.append(exists().where(Invitation.email == Account.email, *Invitation.open_at(invited_at)))
    return session.scalar(select(Account).where(Account.email == email, Account.deactivated_at.is_(None), or_(*ways)))


def _check_limits(session: Session, email_hash: bytes, prefix: str, now: datetime, tried: errors.Attempt) -> int:
    """Raise TooManyAttempts while this would be one try too many by any limit; else say how many are left after it."""
    recent = SignInFailure.at > now - _WINDOW
    same_account = SignInFailure.email_hash == email_hash
    same_prefix = SignInFailure.prefix == prefix
    pair = case((recent & same_account & same_prefix & SignInFailure.forgiven_at.is_(None), 1))
    from_prefix = case((recent & same_prefix, 1))
    for_account = case((same_account, 1))
    counts = session.execute(
        select(func.count(pair), func.count(from_prefix), func.count(for_account)).where(same_account | same_prefix)
    ).one()
    limits = ((PAIR_LIMIT, _WINDOW), (PREFIX_LIMIT, _WINDOW), (ACCOUNT_LIMIT, _LONG_WINDOW))
    ends = []
    for count, (limit, window), kind in zip(counts, limits, (pair, from_prefix, for_account), strict=True):
        if count >= limit:
            nth = select(SignInFailure.at).where(kind == 1).order_by(SignInFailure.at.desc()).offset(limit - 1).limit(1)
            ends.append(session.scalars(nth).one() + window)
    if ends:
        raise TooManyAttempts(max(ends), attempt=tried)
    return PAIR_LIMIT - 1 - int(counts[0])


def take_back(session: Session, attempt: PasswordAttempt, now: datetime) -> None:
    """Take back the try that was right, and the earlier ones of the same account and prefix for the short limit."""
    _take_turns(session)
    session.execute(delete(SignInFailure).where(SignInFailure.id == attempt.failure_id))
    session.execute(
        update(SignInFailure)
        .where(SignInFailure.email_hash == attempt.email_hash, SignInFailure.prefix == attempt.prefix)
        .values(forgiven_at=now)
    )


def verify_account(account: Account, password: str) -> bool:
    """Say whether this is the account's password, never of a deactivated one; the caller has counted the try."""
    return credentials.verify_password(None if account.deactivated_at else account.password_hash, password)


def sign_in(
    session: Session, actor: Actor, attempt: PasswordAttempt, client: str, before: LiveSession | None = None
) -> tuple[LiveSession, str]:
    """Start a session after a verified attempt; give it with its token, which is kept nowhere.

    The session `before`, of whoever sat there, ends by it.
    """
    account = confirm(session, attempt, actor.at)
    _rehash(session, account, attempt)
    token = credentials.new_token()
    started = UserSession(
        token_hash=credentials.token_digest(token),
        account_id=account.id,
        created_at=actor.at,
        last_seen_at=actor.at,
        proved_at=actor.at,
        address=actor.address,
        client=client,
    )
    session.add(started)
    session.flush()
    session.execute(delete(UserSession).where(UserSession.created_at < actor.at - SESSION_LIFE))
    if before:  # now that the account is held: who ends all of its sessions holds it first, too
        sign_out(session, actor, before)
    audit.record(session, actor, Event.SIGNED_IN, target_id=account.public_id, target_name=account.email)
    viewer = Viewer(*(getattr(account, name) for name in Viewer._fields))
    return LiveSession(viewer, *(getattr(started, name) for name in LiveSession._fields[1:])), token


def confirm(session: Session, attempt: PasswordAttempt, now: datetime) -> Account:
    """Take a verified attempt back and give its account, held; Conflict when it is deactivated or has a new password.

    Else whoever knew the old password could begin a session just after all others had ended. The two are told alike.
    """
    account = attempt.account
    if account is None:
        raise ValueError("an attempt at nobody's account cannot succeed")
    standing = select(Account.password_hash).where(Account.id == account.id, Account.deactivated_at.is_(None))
    if session.scalar(standing.with_for_update(key_share=True)) != account.password_hash:
        raise Conflict("The account changed a moment ago. Try again.")
    take_back(session, attempt, now)
    return account


def _rehash(session: Session, account: Account, attempt: PasswordAttempt) -> None:
    if attempt.new_hash:
        session.execute(update(Account).where(Account.id == account.id).values(password_hash=attempt.new_hash))


def prove(session: Session, actor: Actor, attempt: PasswordAttempt, user_session: LiveSession) -> str:
    """Note that the person behind a session gave the password again; give the session's new token."""
    account = confirm(session, attempt, actor.at)
    _rehash(session, account, attempt)
    token = credentials.new_token()
    session.execute(
        update(UserSession)
        .where(UserSession.id == user_session.id)
        .values(proved_at=actor.at, token_hash=credentials.token_digest(token))
    )
    audit.record(session, actor, Event.PROVED, target_id=account.public_id, target_name=account.email)
    return token


def is_proved(user_session: LiveSession, now: datetime) -> bool:
    """Say whether the last proof of who sits there is recent enough to hand out access."""
    return now - user_session.proved_at <= PROOF_LIFE


def find_session(session: Session, token: str, now: datetime) -> LiveSession | None:
    """Find a live session with its account; None once it is idle, too old, ended, or its account deactivated."""
    digest = credentials.token_digest(token)
    limits = {"idle_since": now - SESSION_IDLE, "begun": now - SESSION_LIFE}
    rows = read(session, _LIVE_SESSION, {"digest": digest, **limits})
    width = len(Viewer._fields)
    return LiveSession(Viewer(*rows[0][:width]), *rows[0][width:]) if rows else None


_LIVE_SESSION = (
    select(
        *(getattr(Account, name) for name in Viewer._fields),
        *(getattr(UserSession, name) for name in LiveSession._fields if name != "account"),
    )
    .join(Account, Account.id == UserSession.account_id)
    .where(
        UserSession.token_hash == bindparam("digest"),
        UserSession.last_seen_at > bindparam("idle_since"),
        UserSession.created_at > bindparam("begun"),
        Account.deactivated_at.is_(None),
    )
)


def is_due_to_be_seen(user_session: LiveSession, now: datetime, workspace_id: int | None) -> bool:
    """Say whether `mark_seen` has something to write."""
    moved = workspace_id is not None and workspace_id != user_session.workspace_id
    return moved or now - user_session.last_seen_at > _SEEN_EVERY


def mark_seen(session: Session, user_session: LiveSession, now: datetime, workspace_id: int | None) -> None:
    """Note that a session is in use, and in which workspace it was last."""
    values: dict[str, object] = {"last_seen_at": now}
    if workspace_id is not None:
        values["workspace_id"] = workspace_id
    session.execute(update(UserSession).where(UserSession.id == user_session.id).values(values))


def sign_out(session: Session, actor: Actor, user_session: LiveSession) -> None:
    """End a session at once."""
    session.execute(delete(UserSession).where(UserSession.id == user_session.id))
    account = user_session.account
    audit.record(session, actor, Event.SIGNED_OUT, target_id=account.public_id, target_name=account.email)


@dataclass(frozen=True, slots=True)
class Preferences:
    """How pages look to a person."""

    time_zone: str = "UTC"
    clock: str = "24"
    theme: str = "system"
    page_rows: str = "25"
    shortcuts: bool = False


CLOCKS = ("24", "12")
THEMES = ("system", "light", "dark", "contrast")
PAGE_ROWS = ("25", "50", "100")


@cache
def time_zones() -> list[str]:
    """List the zones that a person can choose, UTC first."""
    return ["UTC", *sorted(name for name in available_timezones() if "/" in name and not name.startswith("Etc/"))]


def prefer(session: Session, account_id: int, wanted: Preferences) -> None:
    """Keep a person's preferences; Invalid for what cannot be chosen."""
    problems = {}
    if wanted.time_zone not in time_zones():
        problems["time_zone"] = "Choose a time zone from the list, such as Europe/Berlin."
    if wanted.clock not in CLOCKS:
        problems["clock"] = "Choose the 24-hour or the 12-hour clock."
    if wanted.theme not in THEMES:
        problems["theme"] = "Choose a theme from the list."
    if wanted.page_rows not in PAGE_ROWS:
        problems["page_rows"] = "Choose 25, 50 or 100 rows."
    if problems:
        raise Invalid(problems)
    session.execute(
        update(Account)
        .where(Account.id == account_id)
        .values(
            time_zone=wanted.time_zone,
            clock=wanted.clock,
            theme=wanted.theme,
            page_rows=int(wanted.page_rows),
            has_shortcuts=wanted.shortcuts,
        )
    )
