"""Which key is this? Asked by somebody who found one in a log or a repository."""

from datetime import timedelta

from sqlalchemy import func, select

from portal.rules.credentials import Keyring
from portal.rules.errors import Attempt, Invalid, TooManyAttempts
from portal.services import audit, key_views, members
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.store.database import Session
from portal.store.models import ApiKey, AuditEvent

LIMIT = 20  # questions of one person in a window
WINDOW = timedelta(minutes=15)


def identify(session: Session, actor: Actor, seat: Seat, keyring: Keyring, pasted: str) -> KeyView | None:
    """Find the first key whose text stands in what was pasted; None where the seat may see no such key.

    The text is hashed and forgotten; the question itself is told in the audit log. Raises Invalid for what holds no
    key of our format and checksum, TooManyAttempts after LIMIT questions in WINDOW.
    """
    members.seat_of(session, actor, lock=True)  # so that questions asked side by side are counted one by one
    _check_limit(session, actor)
    candidates = (keyring.format.parse(found[0]) for found in keyring.format.pattern.finditer(pasted))
    plain = next(filter(None, candidates), None)  # the first whose checksum is right
    if plain is None:
        raise Invalid({"text": "This does not look like one of our keys."})
    digests = [bytes(digest) for digest in keyring.digests(plain)]
    key = session.scalar(key_views.visible_to(seat).where(ApiKey.digest.in_(digests)))
    label = key.label if key else ""
    audit.record(session, actor, Event.KEY_IDENTIFIED, target_id=key.public_id if key else None, target_name=label)
    return key_views.of(session, seat, keyring, [key], actor.at)[0] if key else None


def _check_limit(session: Session, actor: Actor) -> None:
    asked = (
        AuditEvent.actor_id == actor.public_id,
        AuditEvent.action == Event.KEY_IDENTIFIED,
        AuditEvent.outcome == "done",
        AuditEvent.at > actor.at - WINDOW,
    )
    count, first = session.execute(select(func.count(), func.min(AuditEvent.at)).where(*asked)).one()
    if count >= LIMIT:
        raise TooManyAttempts(first + WINDOW, "Too many look-ups.", attempt=Attempt(Event.KEY_IDENTIFIED))
