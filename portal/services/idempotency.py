"""Idempotency: a POST that its client sends again makes nothing new, it is answered as it was the first time.

The answer is stored by the very transaction that did the work, so that there is never the one without the other,
wherever a process dies. Only what was done is stored: a refused request changed nothing and may be sent again. Whoever
calls this has checked the key and its scope as they are now.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from portal.rules.errors import BreaksRule, Conflict
from portal.store.models import ApiKey, IdempotentRequest

KEEP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request with an Idempotency-Key; keys of one member and environment share theirs, so that a retry may come
    with a successor."""

    key_pk: int
    environment: str
    idempotency_key: str
    at: datetime
    request_hash: bytes

    @classmethod
    def of(
        cls, key_pk: int, environment: str, idempotency_key: str, at: datetime, *, method: str, path: str, body: bytes
    ) -> "Asked":
        """Describe a request by what must be the same in its repeat: method, path and the bytes of its body."""
        digest = hashlib.sha256(f"{method} {path}\n".encode() + body).digest()
        return cls(key_pk, environment, idempotency_key, at, digest)


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as it was given first: body byte for byte, and the headers that tell of it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def find(session: Session, asked: Asked) -> Stored | None:
    """Give the answer that this request got before; None when it is new, and then no other may be under way with it.

    Raises Conflict while the first is still under way, BreaksRule when the first was another request. On SQLite a
    repeat waits for the first instead, as all writers wait for each other.
    """
    member_id = _member_of(session, asked)
    if session.get_bind().dialect.name == "postgresql":
        name = f"{member_id} {asked.environment} {asked.idempotency_key}".encode()
        number = int.from_bytes(hashlib.sha256(name).digest()[:8], signed=True)
        if not session.scalar(select(func.pg_try_advisory_xact_lock(number))):  # it is freed by the commit
            message = "A request with this Idempotency-Key is still under way. Send it again in a moment."
            raise Conflict(message, code="idempotency_in_flight")
    row = session.get(IdempotentRequest, (member_id, asked.environment, asked.idempotency_key))
    if row is None:
        return None
    if row.at <= asked.at - KEEP:
        session.delete(row)
        session.flush()
        return None
    if row.request_hash != asked.request_hash:
        message = "This Idempotency-Key was sent with another request in the last 24 hours. Choose a new one."
        raise BreaksRule(message, code="idempotency_key_reused")
    return Stored(row.status, row.body, row.headers)


def keep(session: Session, asked: Asked, answer: Stored) -> None:
    """Store an answer beside the work that it tells of; it is little longer than a record may be."""
    session.add(
        IdempotentRequest(
            member_id=_member_of(session, asked),
            environment=asked.environment,
            idempotency_key=asked.idempotency_key,
            at=asked.at,
            request_hash=asked.request_hash,
            status=answer.status,
            headers=dict(answer.headers),
            body=answer.body,
        )
    )
    session.flush()


def prune(session: Session, now: datetime) -> None:
    """Forget answers that are no longer given again."""
    session.execute(delete(IdempotentRequest).where(IdempotentRequest.at <= now - KEEP))


def _member_of(session: Session, asked: Asked) -> int:
    return session.execute(select(ApiKey.member_id).where(ApiKey.id == asked.key_pk)).scalar_one()
