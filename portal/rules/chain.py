"""The hash chain of the audit log: each row's hash covers its content and the hash of the row before it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

BEGINNING = bytes(32)  # stands before the first row


def link(previous: bytes, content: Mapping[str, Any]) -> bytes:
    """Compute a row's hash: SHA-256 over the previous hash and the content as JSON with sorted names.

    Moments are written in UTC to the microsecond, so that both databases give back what was hashed.
    """
    return hashlib.sha256(previous + _written(content).encode()).digest()


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    raise TypeError(f"{type(value).__name__} cannot stand in the audit log")


_written = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_moment).encode
