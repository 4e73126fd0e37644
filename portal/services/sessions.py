"""A person's own sessions: where they are signed in, and ending that."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select

from portal.rules.errors import NotFound
from portal.services import audit
from portal.services.accounts import SESSION_IDLE, SESSION_LIFE, LiveSession
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.store.database import Session
from portal.store.models import UserSession


@dataclass(frozen=True, slots=True)
class SessionView:
    """One sign-in as its owner sees it. `id` is the beginning of its token's hash, which opens nothing."""

    id: str
    client: str
    address: str
    signed_in_at: datetime
    seen_at: datetime
    is_this: bool


def list_for(session: Session, this: LiveSession, now: datetime) -> list[SessionView]:
    """List the live sessions of whoever owns this one, the latest first, this one before all."""
    rows = session.scalars(
        select(UserSession).where(
            UserSession.account_id == this.account_id,
            UserSession.last_seen_at > now - SESSION_IDLE,
            UserSession.created_at > now - SESSION_LIFE,
        )
    )
    views = [
        SessionView(
            _public_id(row),
            row.client or "An unknown program",
            row.address or "",
            row.created_at,
            now if row.id == this.id else row.last_seen_at,
            row.id == this.id,
        )
        for row in rows
    ]
    return sorted(views, key=lambda view: (view.is_this, view.seen_at), reverse=True)


def end(session: Session, actor: Actor, this: LiveSession, session_id: str | None) -> int:
    """End one other session of whoever owns this one, or with None all others; give how many."""
    account = this.account
    others = session.scalars(select(UserSession).where(UserSession.account_id == account.id, UserSession.id != this.id))
    chosen = [row.id for row in others if session_id in (None, _public_id(row))]
    ended = delete(UserSession).where(UserSession.id.in_(chosen)).returning(UserSession.id)
    count = len(session.scalars(ended).all())
    if session_id is not None and not count:
        raise NotFound("That session has ended already.")
    if count:
        audit.record(
            session,
            actor,
            Event.SESSIONS_ENDED,
            target_id=account.public_id,
            target_name=account.email,
            details={"count": count},
        )
    return count


def _public_id(row: UserSession) -> str:
    return row.token_hash[:8].hex()


_BROWSERS = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
_SYSTEMS = (
    ("iPhone", "an iPhone"),
    ("iPad", "an iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS", "a Mac"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


def label(user_agent: str) -> str:
    """Name a browser and its system as far as plain words in its User-Agent tell, such as "Firefox on Linux"."""
    browser = next((name for mark, name in _BROWSERS if mark in user_agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), "")
    return " on ".join(filter(None, (browser, system)))
