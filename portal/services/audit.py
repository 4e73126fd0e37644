"""The audit log: each change writes its row in the same transaction; a refused one in a transaction of its own.

Rows are only ever added. Those of a workspace form a chain of hashes in the order of their commits, so that one that
was edited, taken out, cut off at the end or put beside the chain is found by `verify`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Integer, Select, String, bindparam, case, cast, func, insert, or_, select, text, update
from sqlalchemy.exc import DataError, OperationalError
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


# --- The chain ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking a chain came to: how many rows hold, and what is wrong first, if anything is."""

    count: int
    broken: str = ""  # the public id of the first row of it that does not hold, or of the last one before a gap
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether every row is as it was written, and none is missing."""
        return not self.reason


def verify(session: Session, chain: int) -> Verdict:
    """Walk a workspace's chain (0: what belongs to no workspace) from its beginning and name the first broken row.

    Others may write meanwhile: the chain must reach at least the end that it had before, and at most the one after.
    """
    end = select(AuditHead.seq, AuditHead.hash).where(AuditHead.chain == chain)
    before = session.execute(end).one_or_none()
    table = AuditEvent.__table__.c  # bare columns: through the class, each row is dearer
    names = [column.key for column in table if column.key not in ("id", "hash")]
    rows = select(*(table[name] for name in names), table.hash).where(table.chain == chain).order_by(table.seq)
    previous, seq, last = BEGINNING, 0, ""
    for read in _rows(session, rows):
        if read is None:
            return Verdict(seq, _id_after(session, chain, seq), "the next row holds what nobody wrote there")
        *values, written = read
        content = dict(zip(names, values, strict=True))
        number, public_id = content["seq"], content["public_id"]
        if number != seq + 1:
            missing = f"the rows after number {seq} and before {number} are missing"
            return Verdict(seq, last or public_id, missing)
        if not _follows(previous, content, written):
            return Verdict(seq, public_id, f"row {number} is not as it was written")
        previous, seq, last = written, number, public_id
        if before and seq == before.seq and previous != before.hash:
            return Verdict(seq, last, "the end of the log is not as it was written")
    after = session.execute(end).one_or_none()
    if seq < (before.seq if before else 0):
        return Verdict(seq, last, f"the rows after number {seq} are missing")
    if seq > (after.seq if after else 0):
        return Verdict(seq, last, f"the log goes on after its end, number {after.seq if after else 0}")
    if seq == 0 and chain:  # that the workspace was made is told first of all
        return Verdict(seq, last, "every row is missing")
    beside = _beside(session, chain)
    return Verdict(seq, reason=f"the row {beside} stands outside the chain" if beside else "")


def _is_of_a_row(error: Exception) -> bool:
    """Say whether it is a row that cannot be read, and not the database.

    SQLite keeps any text as a moment and any bytes as text, PostgreSQL moments that Python has no number for.
    """
    is_bytes = isinstance(error, OperationalError) and "Could not decode to UTF-8" in str(error.orig)
    return is_bytes or isinstance(error, (ValueError, TypeError, RecursionError, DataError))


def _rows(session: Session, rows: Select[Any]) -> Iterator[Any]:
    """Read rows some hundred at a time; None for the first that cannot be read: SQLite keeps any text as a moment."""
    after = 0
    while True:
        part = rows.where(AuditEvent.seq > after)
        try:
            found = session.execute(part.limit(_CHUNK)).all()
        except Exception as error:
            if not _is_of_a_row(error):
                raise
            yield from _one_by_one(session, part)
            return
        yield from found
        if len(found) < _CHUNK:
            return
        after = found[-1].seq


def _follows(previous: bytes, content: dict[str, Any], written: object) -> bool:
    try:
        return link(previous, content) == written
    except (ValueError, TypeError, RecursionError):  # bytes where a text belongs, say: SQLite keeps them
        return False


def _one_by_one(session: Session, rows: Select[Any]) -> Iterator[Any]:
    for number in range(_CHUNK):
        try:
            yield session.execute(rows.limit(1).offset(number)).one()
        except Exception as error:
            if not _is_of_a_row(error):
                raise
            break
    yield None


def _id_after(session: Session, chain: int, seq: int) -> str:
    """Name the row after a number, reading nothing else of it."""
    this = select(AuditEvent.public_id).where(AuditEvent.chain == chain, AuditEvent.seq > seq)
    return str(session.scalar(this.order_by(AuditEvent.seq).limit(1)))


def _beside(session: Session, chain: int) -> str | None:
    """Name a row that passes for a chain's own, but stands before its first number or in another chain."""
    too_early = (AuditEvent.chain == chain) & (AuditEvent.seq < 1)
    elsewhere = (AuditEvent.workspace_id == (chain or None)) & (AuditEvent.chain != chain)
    return session.scalar(select(AuditEvent.public_id).where(or_(too_early, elsewhere)).limit(1))


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
_CHUNK = 500  # rows that the check reads at once
_HISTORY = 100  # events of one thing that are listed
_BEGIN = text("INSERT INTO audit_head (chain, seq, hash) VALUES (:chain, 0, :hash) ON CONFLICT DO NOTHING")


UNREADABLE = "unreadable_event"  # what stands for the action of a row that cannot be read


def readable(session: Session, events: Select[AuditEvent]) -> list[AuditEvent]:
    """Read events; of a row that holds what nobody wrote there no more than its number and its id."""
    try:
        found = session.scalars(events).all()
    except Exception as error:
        if not _is_of_a_row(error):
            raise
        ids = session.scalars(events.with_only_columns(AuditEvent.id, maintain_column_froms=True)).all()
        return [_one(session, each) for each in ids]
    return [event if _is_sound(event) else _one(session, event.id) for event in found]


def _one(session: Session, id: int) -> AuditEvent:
    try:
        event = session.scalars(select(AuditEvent).where(AuditEvent.id == id)).one()
        if _is_sound(event):
            return event
    except Exception as error:
        if not _is_of_a_row(error):
            raise
    seq = session.scalars(select(cast(AuditEvent.seq, Integer)).where(AuditEvent.id == id)).one()
    try:
        public_id = session.scalars(select(cast(AuditEvent.public_id, String)).where(AuditEvent.id == id)).one()
    except Exception as error:
        if not _is_of_a_row(error):
            raise
        public_id = "evt_unreadable"
    return unreadable(seq, public_id)


def unreadable(seq: int, public_id: str) -> AuditEvent:
    """Make what stands for an event that cannot be read."""
    why = "its row holds what nobody wrote there"
    told = {"action": UNREADABLE, "outcome": "done", "actor_name": "", "means": "unknown", "target_name": why}
    return AuditEvent(seq=seq, public_id=public_id, hash=b"", details={}, **told)


def _is_sound(event: AuditEvent) -> bool:
    try:
        json.dumps(event.details, ensure_ascii=False).encode()  # JSON knows half characters, which nobody can send
    except ValueError:
        return False
    return all(isinstance(getattr(event, name), kinds) for name, kinds in _KINDS)


_ODD = {"at": datetime, "details": dict}  # whose columns do not tell what they give
_KINDS = [
    (column.key, (_ODD.get(column.key, column.type.python_type), *((type(None),) if column.nullable else ())))
    for column in AuditEvent.__table__.c
]


def history_of(session: Session, workspace_id: int, target_id: str) -> list[AuditEvent]:
    """List what was done or refused with one thing, newest first."""
    here = (AuditEvent.chain == workspace_id, AuditEvent.target_id == target_id)
    in_chain = AuditEvent.seq + 0 > 0  # not bare, or SQLite goes by this number through the whole chain
    events = select(AuditEvent).where(*here, in_chain)
    return readable(session, events.order_by(AuditEvent.id.desc()).limit(_HISTORY))


def last_done(session: Session, target_id: str, event: Event) -> AuditEvent | None:
    """Find the last time that this was done to one thing."""
    this = (AuditEvent.target_id == target_id, AuditEvent.action == str(event), AuditEvent.outcome == "done")
    return session.scalar(select(AuditEvent).where(*this).order_by(AuditEvent.id.desc()).limit(1))


def done_with_key(session: Session, target_id: str) -> set[str]:
    """Name what was done with one thing by a program with a key, such as by the key itself."""
    here = (AuditEvent.target_id == target_id, AuditEvent.means == str(Means.KEY), AuditEvent.outcome == "done")
    return set(session.scalars(select(AuditEvent.action).where(*here)))


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


_LONGEST, _MOST = 500, 200  # characters of a text, items of a list
