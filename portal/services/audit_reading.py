"""The audit log as it is read, whatever somebody may have written into its rows past us.

A row that cannot be read stands in its place without its content, and `verify` names the first row that is not as
`audit` wrote it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Integer, Select, String, cast, or_, select
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from portal.rules.chain import BEGINNING, link
from portal.services.actor import Means
from portal.services.audit import Event
from portal.store.models import AuditEvent, AuditHead

_CHUNK = 500  # rows that the check reads at once
_HISTORY = 100  # events of one thing that are listed
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


def _is_of_a_row(error: Exception) -> bool:
    """Say whether it is a row that cannot be read, and not the database.

    SQLite keeps any text as a moment and any bytes as text, PostgreSQL moments that Python has no number for.
    """
    is_bytes = isinstance(error, OperationalError) and "Could not decode to UTF-8" in str(error.orig)
    return is_bytes or isinstance(error, (ValueError, TypeError, RecursionError, DataError))


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


# --- The check ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """What checking a chain came to: how many rows hold, and what is wrong first, if anything is."""

    count: int
    broken: str = ""  # the public id of the first row of it that does not hold, or of the last one before a gap
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether every row is as it was written, and none is missing."""
        return not self.reason


def verify(session: Session, chain: int) -> ChainVerdict:
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
            return ChainVerdict(seq, _id_after(session, chain, seq), "the next row holds what nobody wrote there")
        *values, written = read
        content = dict(zip(names, values, strict=True))
        number, public_id = content["seq"], content["public_id"]
        if number != seq + 1:
            missing = f"the rows after number {seq} and before {number} are missing"
            return ChainVerdict(seq, last or public_id, missing)
        if not _follows(previous, content, written):
            return ChainVerdict(seq, public_id, f"row {number} is not as it was written")
        previous, seq, last = written, number, public_id
        if before and seq == before.seq and previous != before.hash:
            return ChainVerdict(seq, last, "the end of the log is not as it was written")
    after = session.execute(end).one_or_none()
    if seq < (before.seq if before else 0):
        return ChainVerdict(seq, last, f"the rows after number {seq} are missing")
    if seq > (after.seq if after else 0):
        return ChainVerdict(seq, last, f"the log goes on after its end, number {after.seq if after else 0}")
    if seq == 0 and chain:  # that the workspace was made is told first of all
        return ChainVerdict(seq, last, "every row is missing")
    beside = _beside(session, chain)
    return ChainVerdict(seq, reason=f"the row {beside} stands outside the chain" if beside else "")


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
