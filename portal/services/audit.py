"""The audit log: each change writes its row in the same transaction; a refused one in a transaction of its own.

Rows are only ever added. Those of a workspace form a chain of hashes in the order of their commits, so that one that
was edited, taken out, cut off at the end or put beside the chain is found (`audit_reading`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, case, func, insert, select, text, update
from sqlalchemy.orm import Session

from portal.rules.chain import BEGINNING, link
from portal.rules.credentials import KEY_SHAPED, new_id
from portal.rules.errors import PortalError
from portal.rules.text import without_refused
from portal.services.actor import Actor, Means
from portal.store.database import Database
from portal.store.models import AuditEvent, AuditHead, RefusalCount, hour_of


class Event(StrEnum):
    """What can be told of. Stable: exports and filters use these words."""

    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGNED_OUT = "signed_out"
    PROVED = "reauthenticated"
    SESSIONS_ENDED = "sessions_ended"
    FORM_REFUSED = "form_refused"
    LOOK_REFUSED = "look_refused"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    PASSWORD_RESET_ASKED = "password_reset_asked"  # noqa: S105
    PASSWORD_RESET = "password_reset"  # noqa: S105
    WORKSPACE_CREATED = "workspace_created"
    SOLUTION_ADDED = "solution_added"
    APP_ADDED = "app_added"
    SOLUTION_CHANGED = "solution_changed"
    APP_CHANGED = "app_changed"
    POLICY_CHANGED = "policy_changed"
    MEMBER_INVITED = "member_invited"
    INVITATION_WITHDRAWN = "invitation_withdrawn"
    MEMBER_JOINED = "member_joined"
    MEMBER_EDITED = "member_edited"
    MEMBER_DEACTIVATED = "member_deactivated"
    MEMBER_REACTIVATED = "member_reactivated"
    MEMBER_REMOVED = "member_removed"
    ACCOUNT_DEACTIVATED = "account_deactivated"
    ACCOUNT_REACTIVATED = "account_reactivated"
    ROLE_CHANGED = "role_changed"
    MANAGER_CHANGED = "manager_changed"
    API_MEMBER_CREATED = "api_member_created"
    ACCESS_GRANTED = "access_granted"
    KEY_GENERATED = "key_generated"
    KEY_DEACTIVATED = "key_deactivated"
    KEY_REACTIVATED = "key_reactivated"
    KEY_ROTATED = "key_rotated"
    KEY_RETIRED = "key_retired"
    KEY_OVERLAP_EXTENDED = "key_overlap_extended"
    KEY_EDITED = "key_edited"
    KEY_RATE_CHANGED = "key_rate_changed"
    KEY_DELETED = "key_deleted"
    KEY_IDENTIFIED = "key_identified"
    KEY_REFUSED = "key_refused"
    KEY_REVIEWED = "key_reviewed"
    AUDIT_EXPORTED = "audit_exported"
    VERIFIER_MADE = "verifier_made"
    VERIFIER_REVOKED = "verifier_revoked"
    RECORD_CREATED = "record_created"
    RECORD_CHANGED = "record_changed"
    RECORD_DELETED = "record_deleted"
    SANDBOX_FILLED = "sandbox_filled"
    BACKUP_RESTORED = "backup_restored"


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
                refuse(
                    session,
                    actor,
                    tried.action,
                    target_id=tried.target_id,
                    target_name=tried.target_label,
                    details=details,
                )
        raise


# --- Refusals -------------------------------------------------------------------------------------------------------

TOLD_AN_HOUR = 10  # refusals of one thing to one actor that get a row of their own
_TOLD_TO_ALL = 40  # of one thing in one workspace, whoever tried
_COUNTED_APART = 30  # actors of one hour that are counted by name
_OTHERS = "others"


def refuse(
    session: Session,
    actor: Actor,
    action: str,
    *,
    target_id: str | None = None,
    target_name: str = "",
    details: dict[str, Any] | None = None,
    times: int = 1,
    told_an_hour: int = TOLD_AN_HOUR,
    apart: str = "",
) -> None:
    """Write what an actor was refused: the first of an hour in full, the others as a number that `sum_up` tells.

    So a flood of refusals, from one or from many, cannot fill the disk, nor push what matters out of sight. `apart`
    tells attempts of one actor apart that are counted by themselves.
    """
    chain, hour = actor.workspace_id or 0, hour_of(actor.at)
    who = (actor.public_id or actor.address or "?")[: 24 if apart else 45] + (f"|{apart}"[:20] if apart else "")
    this_hour = (RefusalCount.chain == chain, RefusalCount.action == action, RefusalCount.hour == hour)
    told_to_all, known, is_known = session.execute(
        select(
            func.coalesce(func.sum(RefusalCount.told), 0),
            func.count(),
            func.count(case((RefusalCount.who == who, 1))),
        ).where(*this_hour)
    ).one()
    if known >= _COUNTED_APART and not is_known:
        who = _OTHERS
    counted = session.execute(_COUNT, {"chain": chain, "who": who, "action": action, "hour": hour, "n": times}).one()
    if counted.told < told_an_hour and told_to_all < _TOLD_TO_ALL and who != _OTHERS:
        told = update(RefusalCount).where(*this_hour, RefusalCount.who == who)
        session.execute(told.values(told=RefusalCount.told + 1, count=RefusalCount.count - (times - 1)))
        details = {**(details or {}), **({"times": times} if times > 1 else {})}
        _write(session, actor, action, "refused", None, target_id, target_name, details)


def sum_up(session: Session, now: datetime) -> None:
    """Write one row for each past hour, actor and action whose refusals were only counted, and drop the counter."""
    past = select(RefusalCount).where(RefusalCount.hour < hour_of(now))
    in_order = past.order_by(RefusalCount.chain, RefusalCount.who, RefusalCount.action, RefusalCount.hour)
    for counted in session.scalars(in_order.with_for_update()).all():
        if counted.count > counted.told:
            more = counted.count - counted.told
            began = datetime.fromtimestamp(counted.hour * 3600, UTC)
            who, _, reason = counted.who.partition("|")
            is_known = "_" in who  # the id of a member or key; else an address
            actor = Actor(now, Means.SYSTEM, "Latchkey", who[:40] if is_known else None, counted.chain or None)
            details = {"more": more, "hour": began.isoformat(), "who": who, **({"reason": reason} if reason else {})}
            target = who if who.startswith("key_") else None
            _write(session, actor, counted.action, "refused", None, target, f"{more:,} more attempts", details)
        session.delete(counted)


_COUNT = text("""
INSERT INTO refusal_count (chain, who, action, hour, count, told) VALUES (:chain, :who, :action, :hour, :n, 0)
ON CONFLICT (chain, who, action, hour) DO UPDATE SET count = refusal_count.count + excluded.count
RETURNING count, told
""")


# --- Rows, and their chain ------------------------------------------------------------------------------------------

_LONGEST, _MOST = 500, 200  # characters of a text, items of a list


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
    workspace_id = workspace_id or actor.workspace_id
    event: dict[str, Any] = {  # as `AuditEvent` has it, but for its place in the chain
        "public_id": new_id("evt"),
        "workspace_id": workspace_id,
        "chain": workspace_id or 0,
        "at": actor.at,
        "action": action,
        "outcome": outcome,
        "actor_id": actor.public_id,
        "actor_name": actor.name,
        "means": actor.means,
        "address": actor.address,
        "request_id": actor.request_id,
        "target_id": _written(target_id or "", 40) or None,
        "target_name": _written(target_name, 254),
        "details": _safe(details),
    }
    told = session.info.get("told")
    if told is None:
        told = session.info["told"] = []
        session.info.setdefault("before_commit", []).append(_seal)
    told.append(event)


def _written(name: str, longest: int) -> str:
    """Make a name that somebody sent storable: a refused attempt may hold anything."""
    return KEY_SHAPED.sub("…", without_refused(name[:longest]))


def _safe(value: Any) -> Any:
    """Make details storable: nothing key-shaped in them, and no more of what somebody sent than tells what it was."""
    if isinstance(value, str):
        return KEY_SHAPED.sub("…", value[:_LONGEST])
    if isinstance(value, dict):
        return {str(name)[:80]: _safe(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(each) for each in list(value)[:_MOST]]
    return value


def _seal(session: Session) -> None:
    """Put what a transaction told at the end of its chains: last of all, so that a head is held but for a moment."""
    told: list[dict[str, Any]] = session.info.pop("told", [])
    session.flush()
    connection = session.connection()
    for chain in sorted({event["chain"] for event in told}):
        head = connection.execute(_HEAD, {"chain": chain}).one_or_none()
        if head is None:
            connection.execute(_BEGIN, {"chain": chain, "hash": BEGINNING})
            head = connection.execute(_HEAD, {"chain": chain}).one()
        seq, end = head
        sealed = []
        for event in told:
            if event["chain"] == chain:
                seq += 1
                event["seq"] = seq
                end = link(end, event)
                sealed.append({**event, "hash": end})
        connection.execute(_ADD, sealed)
        connection.execute(_MOVE_HEAD, {"of": chain, "seq": seq, "hash": end})


# Past the session, for every change ends here: what makes entities of rows takes several times as long.
_HEAD = select(AuditHead.seq, AuditHead.hash).where(AuditHead.chain == bindparam("chain")).with_for_update()
_ADD = insert(AuditEvent)
_MOVE_HEAD = update(AuditHead).where(AuditHead.chain == bindparam("of"))
_BEGIN = text("INSERT INTO audit_head (chain, seq, hash) VALUES (:chain, 0, :hash) ON CONFLICT DO NOTHING")
