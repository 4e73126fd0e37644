"""Mails that wait: written in the transaction whose change they tell of, and sent only once that is committed."""

from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update

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


def send_waiting(database: Database, mailer: Mailer, now: datetime) -> tuple[int, list[str]]:
    """Hand over what waits, oldest first; give how many were sent, and what went wrong with the others.

    A mail that was not taken waits for the next run.
    """
    sent, failed, kept = 0, [], []
    while letter := _claim(database, now):
        try:
            mailer.send(letter)
        except Exception as error:  # whatever is wrong with one mail, the others go on
            failed.append(f"{letter.recipient}: {error}")
            kept.append(letter.id)  # it stays claimed, so this run does not meet it again
            continue
        with database.transaction() as session:
            session.execute(delete(OutgoingMail).where(OutgoingMail.public_id == letter.id))
        sent += 1
    if kept:
        with database.transaction() as session:
            session.execute(update(OutgoingMail).where(OutgoingMail.public_id.in_(kept)).values(claimed_at=None))
    return sent, failed


def _claim(database: Database, now: datetime) -> Letter | None:
    """Take the oldest mail that nobody else is sending."""
    free = or_(OutgoingMail.claimed_at.is_(None), OutgoingMail.claimed_at < now - _CLAIM)
    with database.transaction() as session:
        waiting = select(OutgoingMail).where(free).order_by(OutgoingMail.id).limit(1)
        row = session.scalar(waiting.with_for_update(skip_locked=True))
        if row is None:
            return None
        row.claimed_at = now
        return Letter(row.public_id, row.recipient, row.subject, row.body, row.created_at)
