"""New passwords: changed by whoever knows the old one, or chosen over a one-time link. Both end sessions."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import contains_eager

from portal.rules import credentials
from portal.rules.errors import Invalid, NotFound
from portal.services import accounts, audit, members, outbox
from portal.services.accounts import LiveSession, PasswordAttempt
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.store.database import Session
from portal.store.models import Account, ApiKey, Member, PasswordReset, UserSession

RESET_LIFE = timedelta(minutes=30)
MAILS_AN_HOUR = 3  # to one account


@dataclass(frozen=True, slots=True)
class NewPassword:
    """What a person chose, checked and hashed: that takes longer than a writer may hold the database."""

    password_hash: str
    stop_keys: bool

    @classmethod
    def choose(cls, password: str, again: str, *, stop_keys: bool, old: str | None = None) -> "NewPassword":
        """Take a new password, typed twice; raise Invalid with what to mend. `old` is one that it must not be."""
        if problems := cls.problems_of(password, again, old):
            raise Invalid(problems)
        return cls(credentials.hash_password(password), stop_keys)

    @staticmethod
    def problems_of(password: str, again: str, old: str | None = None) -> dict[str, str]:
        """List what to mend, without the work of hashing."""
        problems = {}
        if len(password) < credentials.PASSWORD_MIN:
            problems["password"] = f"Choose a password of at least {credentials.PASSWORD_MIN} characters."
        elif len(password) > credentials.PASSWORD_MAX:
            problems["password"] = f"Choose a password of at most {credentials.PASSWORD_MAX} characters."
        elif password == old:
            problems["password"] = "Choose a password that you do not use now."  # noqa: S105
        if password != again:
            problems["password_again"] = "Type the same password twice."  # noqa: S105
        return problems


def change(
    session: Session, actor: Actor, attempt: PasswordAttempt, new: NewPassword, user_session: LiveSession
) -> tuple[str, int]:
    """Change the password of whoever sits there, after a verified attempt; end all other sessions.

    Give this session's new token, and how many keys were stopped.
    """
    account = accounts.confirm(session, attempt, actor.at)
    stopped = _set(session, actor, account, new, keep=user_session)
    token = credentials.new_token()
    session.execute(
        update(UserSession)
        .where(UserSession.id == user_session.id)
        .values(proved_at=actor.at, token_hash=credentials.token_digest(token))
    )
    details = {"keys_stopped": stopped}
    audit.record(
        session, actor, Event.PASSWORD_CHANGED, target_id=account.public_id, target_name=account.email, details=details
    )
    return token, stopped


def send_link(session: Session, actor: Actor, email: str, base_url: str) -> None:
    """Put a mail with a one-time link into the outbox, where an account can use one; else do nothing.

    To be called where no answer waits for it: how long it takes must not tell whether the address is known.
    """
    account = accounts.find_usable(session, email, invited_at=actor.at)
    if account is None:
        return
    recent = (PasswordReset.account_id == account.id, PasswordReset.created_at > actor.at - timedelta(hours=1))
    if (session.scalar(select(func.count()).where(*recent)) or 0) >= MAILS_AN_HOUR:
        return
    token = begin_reset(session, actor, account)
    minutes = RESET_LIFE // timedelta(minutes=1)
    body = (
        f"Hello {account.name},\n\n"
        f"somebody, you we hope, asked for a new password. This link works once, for {minutes} minutes:\n\n"
        f"{base_url}/reset/{token}\n\n"
        "If it was not you, do nothing: your password stays as it is.\n"
    )
    outbox.put(session, actor.at, account.email, "Choose a new password", body)


def begin_reset(session: Session, actor: Actor, account: Account) -> str:
    """Make a one-time link's token for an account. The token is kept nowhere."""
    token = credentials.new_token()
    session.add(
        PasswordReset(
            token_hash=credentials.token_digest(token),
            account_id=account.id,
            created_at=actor.at,
            expires_at=actor.at + RESET_LIFE,
        )
    )
    session.execute(delete(PasswordReset).where(PasswordReset.expires_at < actor.at - timedelta(days=1)))
    audit.record(session, actor, Event.PASSWORD_RESET_ASKED, target_id=account.public_id, target_name=account.email)
    return token


def take_away(session: Session, actor: Actor, account: Account) -> str:
    """Make a held account's password and open links good for nothing; give the token of a new link."""
    account.password_hash = credentials.NO_PASSWORD
    _end_links(session, actor, account)
    return begin_reset(session, actor, account)


def open_reset(session: Session, actor: Actor, token: str) -> tuple[PasswordReset, Account]:
    """Find a reset by its link's token; NotFound once it is used, expired or unknown, or its account deactivated."""
    statement = (
        select(PasswordReset, Account)
        .join(Account, Account.id == PasswordReset.account_id)
        .where(
            PasswordReset.token_hash == credentials.token_digest(token),
            PasswordReset.used_at.is_(None),
            PasswordReset.expires_at > actor.at,
            Account.deactivated_at.is_(None),
        )
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        raise NotFound("This link was used or has expired. Ask for a new one.")
    return row[0], row[1]


def reset(session: Session, actor: Actor, token: str, new: NewPassword) -> int:
    """Choose a new password over a one-time link; end every session. Give how many keys were stopped."""
    _, account = open_reset(session, actor, token)
    # The account is locked before its links, as by everybody, and only then is the link looked at for good.
    session.execute(select(Account.id).where(Account.id == account.id).with_for_update(key_share=True))
    open_reset(session, actor, token)
    stopped = _set(session, actor, account, new, keep=None)
    details = {"keys_stopped": stopped}
    audit.record(
        session, actor, Event.PASSWORD_RESET, target_id=account.public_id, target_name=account.email, details=details
    )
    return stopped


def active_keys(session: Session, account_id: int, actor: Actor) -> int:
    """Count the keys that an account's memberships can use now, in all workspaces."""
    return len(_active_keys(session, account_id, actor, lock=False))


def _set(session: Session, actor: Actor, account: Account, new: NewPassword, *, keep: LiveSession | None) -> int:
    session.execute(update(Account).where(Account.id == account.id).values(password_hash=new.password_hash))
    _end_links(session, actor, account)
    ended = delete(UserSession).where(UserSession.account_id == account.id)
    session.execute(ended.where(UserSession.id != keep.id) if keep else ended)
    return _stop_keys(session, actor, account) if new.stop_keys else 0


def _end_links(session: Session, actor: Actor, account: Account) -> None:
    """Make links that were sent before good for nothing, to whoever reads the mail."""
    links = (PasswordReset.account_id == account.id, PasswordReset.used_at.is_(None))
    session.execute(update(PasswordReset).where(*links).values(used_at=actor.at))


def _stop_keys(session: Session, actor: Actor, account: Account) -> int:
    keys = _active_keys(session, account.id, actor, lock=True)
    for key in keys:
        key.deactivated_at = actor.at
        key.deactivated_by_id = key.member_id
        members.tell_of_key(session, actor, Event.KEY_DEACTIVATED, key, key.member, {"reason": "new password"})
    return len(keys)


def _active_keys(session: Session, account_id: int, actor: Actor, *, lock: bool) -> list[ApiKey]:
    """Read the keys of memberships that stand: those of one that ended stop should it come back."""
    statement = (
        select(ApiKey)
        .join(Member, Member.id == ApiKey.member_id)
        .options(contains_eager(ApiKey.member))
        .where(Member.account_id == account_id, *members.ACTIVE, *ApiKey.active_at(actor.at))
        .order_by(ApiKey.id)
    )
    return list(session.scalars(statement.with_for_update(of=ApiKey) if lock else statement))
