"""Mails that wait: written in the transaction whose change they tell of, and sent only once that is committed."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Delete, Update, delete, or_, select, update

from portal.mail import Letter, Mailer
from portal.rules.credentials import new_id
from portal.store.database import Database, Session
from portal.store.models import OutgoingMail

_CLAIM = timedelta(minutes=10)  # how long a sender that went silent keeps others from trying


def put(session: Session, at: datetime, recipient: str, subject: str, body: str) -> None:
    """Write a mail that is sent if, and only after, this transaction commits."""
    session.add(
        OutgoingMail(public_id=new_id("mail"), recipient=recipient, subject=subject[:200], body=body, created_at=at)
    )


def _now() -> datetime:
    return datetime.now(UTC)


def send_waiting(database: Database, mailer: Mailer, clock: Callable[[], datetime] = _now) -> tuple[int, list[str]]:
    """Hand over what waits, oldest first; give how many were sent, and what went wrong with the others.

    A mail that was not taken waits for the next run. The clock is asked at every mail: a run may take longer than a
    claim holds.
    """
    sent = 0
    failed: list[str] = []
    met: list[str] = []
    while letter := _claim(database, claimed := clock(), met):
        this = OutgoingMail.public_id == letter.id
        then: Delete | Update = delete(OutgoingMail).where(this)
        try:
            mailer.send(letter)
            sent += 1
        except Exception as error:  # whatever is wrong with one mail, the others go on
            failed.append(f"{letter.recipient}: {error}")
            met.append(letter.id)
            then = update(OutgoingMail).where(this, OutgoingMail.claimed_at == claimed).values(claimed_at=None)
        with database.transaction() as session:
            session.execute(then)
    return sent, failed


def _claim(database: Database, now: datetime, met: Sequence[str]) -> Letter | None:
    """Take the oldest mail that nobody else is sending, but for those that this run has met."""
    free = or_(OutgoingMail.claimed_at.is_(None), OutgoingMail.claimed_at < now - _CLAIM)
    with database.transaction() as session:
        here = (free, OutgoingMail.public_id.not_in(met))
        waiting = select(OutgoingMail).where(*here).order_by(OutgoingMail.id).limit(1)
        row = session.scalar(waiting.with_for_update(skip_locked=True))
        if row is None:
            return None
        row.claimed_at = now
        return Letter(row.public_id, row.recipient, row.subject, row.body, row.created_at)
