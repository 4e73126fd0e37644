"""Verifiers: credentials with which a product of one's own asks about keys (RFC 7662). Administrators make them."""

import base64
import re
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus

from sqlalchemy import func, select, update
from sqlalchemy.orm import aliased

from portal.rules import text
from portal.rules.credentials import BEARER, VERIFIER_WORD, Keyring, PlainVerifier, new_id
from portal.rules.errors import AlreadyShown, Attempt, Conflict, Forbidden, Invalid, NotFound, Unavailable
from portal.services import audit, members
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat
from portal.store.database import IntegrityError, Session
from portal.store.models import ApiKey, Member, Verifier, Workspace

LIMIT = 20  # of a workspace that are not revoked
ADMINS_ONLY = "Only administrators make and revoke verifiers."
_LISTED = 100
_BASIC = re.compile(r"basic +([0-9A-Za-z+/]{4,400}={0,2}) *", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class VerifierView:
    """What an administrator sees of a verifier. There is no secret in it."""

    id: str
    name: str
    hint: str
    created_at: datetime
    created_by: str
    revoked_at: datetime | None
    revoked_by: str | None


@dataclass(frozen=True, slots=True)
class Known:
    """A verifier that proved itself, and the workspace about whose keys it may ask."""

    id: str
    workspace_id: str
    is_old: bool  # its digest was made with an older pepper than the newest


# --- For administrators ---------------------------------------------------------------------------------------------


def list_for(session: Session, seat: Seat) -> list[VerifierView]:
    """List a workspace's verifiers: those that work first, the newest of them first."""
    _check_admin(seat)
    return _views(session, seat)


def get(session: Session, seat: Seat, public_id: str) -> VerifierView:
    """Find a verifier of the workspace; NotFound."""
    _check_admin(seat)
    found = _views(session, seat, public_id)
    if not found:
        raise NotFound()
    return found[0]


def _views(session: Session, seat: Seat, public_id: str | None = None) -> list[VerifierView]:
    maker, revoker = aliased(Member), aliased(Member)
    statement = (
        select(Verifier, maker.name, revoker.name)
        .join(maker, maker.id == Verifier.created_by_id)
        .outerjoin(revoker, revoker.id == Verifier.revoked_by_id)
        .where(Verifier.workspace_id == seat.workspace.id)
        .order_by(Verifier.revoked_at.is_not(None), Verifier.id.desc())
        .limit(_LISTED)
    )
    if public_id is not None:
        statement = statement.where(Verifier.public_id == public_id)
    return [
        VerifierView(row.public_id, row.name, _hint(row), row.created_at, made_by, row.revoked_at, revoked_by)
        for row, made_by, revoked_by in session.execute(statement)
    ]


def create(session: Session, actor: Actor, keyring: Keyring, name: str, form_id: str) -> tuple[str, PlainVerifier]:
    """Make a verifier; give its id and its text, which is nowhere else.

    Raises Invalid for its name, AlreadyShown when this form made one before, Conflict at the limit.
    """
    seat = members.seat_of(session, actor, lock=True)
    problems: dict[str, str] = {}
    clean = text.read_line(problems, "name", name, 3, 60, "that tells which product will ask")
    label = clean[:60]
    if not seat.is_admin:
        raise Forbidden(ADMINS_ONLY, attempt=Attempt(Event.VERIFIER_MADE, target_label=label))
    if made_before := _made_by_form(session, seat, form_id):
        raise AlreadyShown(made_before)
    if problems:
        raise Invalid(problems)
    # One at a time: nobody else counts meanwhile.
    session.execute(select(Workspace.id).where(Workspace.id == seat.workspace.id).with_for_update(key_share=True))
    here = (Verifier.workspace_id == seat.workspace.id, Verifier.revoked_at.is_(None))
    if (session.scalar(select(func.count()).where(*here)) or 0) >= LIMIT:
        message = f"{seat.workspace.name} has {LIMIT} verifiers, as many as it can have. Revoke one first."
        raise Conflict(message, code="verifier_limit", attempt=Attempt(Event.VERIFIER_MADE, target_label=label))
    plain = PlainVerifier.mint()
    row = Verifier(
        public_id=new_id("ver"),
        workspace_id=seat.workspace.id,
        name=clean,
        digest=keyring.peppers[0].digest(plain),
        pepper_id=keyring.peppers[0].id,
        last_four=plain.last_four,
        form_id=form_id or None,
        created_at=actor.at,
        created_by_id=seat.member.id,
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        if made_before := _made_by_form(session, seat, form_id):
            raise AlreadyShown(made_before) from None
        raise Unavailable("The verifier could not be made. Open the form again.") from error
    _tell(session, actor, Event.VERIFIER_MADE, row)
    return row.public_id, plain


def revoke(session: Session, actor: Actor, public_id: str) -> str:
    """Stop a verifier for ever; give its name. NotFound for one that is revoked already or of another workspace."""
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        raise Forbidden(ADMINS_ONLY, attempt=Attempt(Event.VERIFIER_REVOKED, public_id))
    here = (Verifier.workspace_id == seat.workspace.id, Verifier.revoked_at.is_(None))
    row = session.scalar(select(Verifier).where(Verifier.public_id == public_id, *here).with_for_update())
    if row is None:
        raise NotFound("There is no such verifier, or it is revoked already.")
    row.revoked_at, row.revoked_by_id = actor.at, seat.member.id
    _tell(session, actor, Event.VERIFIER_REVOKED, row)
    return row.name


def _check_admin(seat: Seat) -> None:
    if not seat.is_admin:
        raise Forbidden(ADMINS_ONLY)


def _made_by_form(session: Session, seat: Seat, form_id: str) -> str | None:
    """Name the verifier that a form of this workspace made before, if it did."""
    if not form_id:
        return None
    here = (Verifier.workspace_id == seat.workspace.id, Verifier.form_id == form_id)
    return session.scalar(select(Verifier.public_id).where(*here))


def _hint(row: Verifier) -> str:
    return f"{VERIFIER_WORD}_…{row.last_four}"


def _tell(session: Session, actor: Actor, event: Event, row: Verifier) -> None:
    label = f"{row.name} (…{row.last_four})"
    audit.record(session, actor, event, target_id=row.public_id, target_name=label, details={"name": row.name})


# --- For the products that ask --------------------------------------------------------------------------------------


def find(session: Session, keyring: Keyring, authorization: str | None) -> Known | None:
    """Find the verifier that an Authorization header proves: HTTP Basic `id:secret`, or the secret as a Bearer token.

    None for everything else. What is no verifier's text never reaches the database.
    """
    claimed, secret = _credential(authorization or "")
    plain = PlainVerifier.parse(secret)
    if plain is None:
        return None
    row = session.execute(
        select(Verifier.public_id, Verifier.pepper_id, Workspace.public_id.label("workspace_id"))
        .join(Workspace, Workspace.id == Verifier.workspace_id)
        .where(Verifier.digest.in_(keyring.digests(plain)), Verifier.revoked_at.is_(None))
    ).one_or_none()
    if row is None or claimed not in (None, row.public_id):
        return None
    return Known(row.public_id, row.workspace_id, row.pepper_id != keyring.peppers[0].id)


def renew(session: Session, keyring: Keyring, authorization: str | None) -> None:
    """Store a verifier's digest under the newest pepper, so that the one before can be retired."""
    plain = PlainVerifier.parse(_credential(authorization or "")[1])
    if plain is not None:
        newest = keyring.peppers[0]
        stored = update(Verifier).where(Verifier.digest.in_(keyring.digests(plain)))
        session.execute(stored.values(digest=newest.digest(plain), pepper_id=newest.id))


def _credential(authorization: str) -> tuple[str | None, str]:
    """Take the one credential out of a header: the id that it claims (None: it claims none), and the secret."""
    if match := BEARER.fullmatch(authorization):
        return None, match[1]
    if match := _BASIC.fullmatch(authorization):
        try:
            pair = base64.b64decode(match[1], validate=True).decode("ascii")
        except ValueError:
            return "", ""
        # OAuth's clients encode both as in a form (RFC 6749, section 2.3.1), many others do not; ours hold no + or %.
        claimed, _, secret = (unquote_plus(part) for part in pair.partition(":"))
        return claimed, secret
    return "", ""


def issued_at(session: Session, key_pk: int) -> datetime:
    """Say when a key was generated."""
    return session.execute(select(ApiKey.created_at).where(ApiKey.id == key_pk)).scalar_one()
