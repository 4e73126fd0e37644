"""Mails that wait: written in the transaction whose change they tell of, and sent only once that is committed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Delete, Update, delete, or_, select, update

from portal.mail import Letter, Mailer, NeverTaken
from portal.rules.credentials import new_id
from portal.store.database import Database, Session
from portal.store.models import OutgoingMail

_CLAIM = timedelta(minutes=10)  # how long a sender that went silent keeps others from trying
_SOONEST = timedelta(minutes=1)  # from a try that failed to the next; then always as long again as the mail is old
_LATEST = timedelta(hours=6)
_GIVEN_UP = timedelta(days=3)  # the age from which a mail that is not taken is dropped


def put(session: Session, at: datetime, recipient: str, subject: str, body: str) -> None:
    """Write a mail that is sent if, and only after, this transaction commits."""
    session.add(
        OutgoingMail(public_id=new_id("mail"), recipient=recipient, subject=subject[:200], body=body, created_at=at)
    )


def _now() -> datetime:
    return datetime.now(UTC)


def send_waiting(database: Database, mailer: Mailer, clock: Callable[[], datetime] = _now) -> tuple[int, list[str]]:
    """Hand over what is due now, each mail once; give how many were sent, and what went wrong with the others."""
    sent = 0
    failed: list[str] = []
    due = clock()
    while (wrong := send_one(database, mailer, clock, due)) is not None:
        if wrong:
            failed.append(wrong)
        else:
            sent += 1
    return sent, failed


def send_one(
    database: Database, mailer: Mailer, clock: Callable[[], datetime] = _now, due: datetime | None = None
) -> str | None:
    """Hand over a mail that is due (by now, or by a given moment); say what went wrong, or '' if nothing did.

    None where no mail is due. One that was not taken is tried again after pauses that grow with its age, and dropped
    where the server refuses it for good or it is some days old.
    """
    claimed = clock()
    letter = _claim(database, claimed, due or claimed)
    if letter is None:
        return None
    this = OutgoingMail.public_id == letter.id
    then: Delete | Update = delete(OutgoingMail).where(this)
    wrong = ""
    try:
        mailer.send(letter)
    except NeverTaken as error:
        wrong = f"{letter.recipient}: {error} (dropped)"
    except Exception as error:  # whatever is wrong with one mail, the others go on
        now = clock()
        age = now - letter.created_at
        is_over = age >= _GIVEN_UP
        wrong = f"{letter.recipient}: {error} ({'dropped' if is_over else 'tried again later'})"
        here = (this, OutgoingMail.claimed_at == claimed)
        again = now + min(max(age, _SOONEST), _LATEST)
        then = delete(OutgoingMail) if is_over else update(OutgoingMail).values(claimed_at=again - _CLAIM)
        then = then.where(*here)
    with database.transaction() as session:
        session.execute(then)
    return wrong


def _claim(database: Database, now: datetime, due: datetime) -> Letter | None:
    """Take a mail that nobody else is sending: before those that failed already the new ones, the newest first."""
    free = or_(OutgoingMail.claimed_at.is_(None), OutgoingMail.claimed_at < due - _CLAIM)
    with database.transaction() as session:
        best_first = (OutgoingMail.claimed_at.is_not(None), OutgoingMail.id.desc())
        waiting = select(OutgoingMail).where(free).order_by(*best_first).limit(1)
        row = session.scalar(waiting.with_for_update(skip_locked=True))
        if row is None:
            return None
        row.claimed_at = now
        return Letter(row.public_id, row.recipient, row.subject, row.body, row.created_at)
