"""The audit log: each change writes its row in the same transaction; a refused one in a transaction of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.rules.credentials import KEY_SHAPED, new_id
from portal.rules.errors import PortalError
from portal.services.actor import Actor
from portal.store.database import Database
from portal.store.models import AuditEvent


class Event(StrEnum):
    """What can be told of. Stable: exports and filters use these words."""

    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGNED_OUT = "signed_out"
    PROVED = "reauthenticated"
    WORKSPACE_CREATED = "workspace_created"
    SOLUTION_ADDED = "solution_added"
    APP_ADDED = "app_added"
    MEMBER_INVITED = "member_invited"
    MEMBER_JOINED = "member_joined"
    API_MEMBER_CREATED = "api_member_created"
    ACCESS_GRANTED = "access_granted"
    KEY_GENERATED = "key_generated"
    KEY_DEACTIVATED = "key_deactivated"
    KEY_REACTIVATED = "key_reactivated"
    KEY_ROTATED = "key_rotated"
    KEY_RETIRED = "key_retired"
    KEY_OVERLAP_EXTENDED = "key_overlap_extended"
    KEY_EDITED = "key_edited"
    KEY_DELETED = "key_deleted"
    KEY_IDENTIFIED = "key_identified"
    RECORD_CREATED = "record_created"
    RECORD_CHANGED = "record_changed"
    RECORD_DELETED = "record_deleted"
    SANDBOX_FILLED = "sandbox_filled"


def record(
    session: Session,
    actor: Actor,
    event: Event,
    *,
    target_id: str | None = None,
    target_name: str = "",
    details: dict[str, Any] | None = None,
    workspace_id: int | None = None,
) -> None:
    """Write what an actor did, in the transaction that did it."""
    _write(session, actor, str(event), "done", workspace_id, target_id, target_name, details or {})


@contextmanager
def transaction(database: Database, actor: Actor | None) -> Iterator[Session]:
    """Open a writing transaction; when it is refused with an `attempt`, that is written after the rollback."""
    try:
        with database.transaction() as session:
            yield session
    except PortalError as error:
        if error.attempt and actor:
            tried = error.attempt
            details = {**tried.details, "reason": error.message[:500]}
            with database.transaction() as session:
                _write(session, actor, tried.action, "refused", None, tried.target_id, tried.target_label, details)
        raise


def history_of(session: Session, workspace_id: int, target_id: str, limit: int = 100) -> list[AuditEvent]:
    """List what was done or refused with one thing, newest first."""
    here = (AuditEvent.workspace_id == workspace_id, AuditEvent.target_id == target_id)
    return list(session.scalars(select(AuditEvent).where(*here).order_by(AuditEvent.id.desc()).limit(limit)))


def _write(
    session: Session,
    actor: Actor,
    action: str,
    outcome: str,
    workspace_id: int | None,
    target_id: str | None,
    target_name: str,
    details: dict[str, Any],
) -> None:
    session.add(
        AuditEvent(
            public_id=new_id("evt"),
            workspace_id=workspace_id or actor.workspace_id,
            at=actor.at,
            action=action,
            outcome=outcome,
            actor_id=actor.public_id,
            actor_name=actor.name,
            means=actor.means,
            address=actor.address,
            request_id=actor.request_id,
            target_id=_written(target_id or "", 40) or None,
            target_name=_written(target_name, 254),
            details=details,
        )
    )


def _written(name: str, longest: int) -> str:
    """Make a name that somebody sent storable: a refused attempt may hold anything."""
    clean = "".join(character if character.isprintable() else "\ufffd" for character in name[:longest])
    return KEY_SHAPED.sub("…", clean)
