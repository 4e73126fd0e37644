"""The one error family. Services raise it, `web.http` maps each class to a status; codes are stable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import ceil
from typing import Any


@dataclass(frozen=True, slots=True)
class Attempt:
    """A change that was refused, told so that the audit log can keep it after the rollback."""

    action: str
    target_id: str = ""
    target_label: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class PortalError(Exception):
    """Something the portal will not do; `message` tells a person what to do next."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None, attempt: Attempt | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.attempt = attempt
        if code:
            self.code = code


class NotFound(PortalError):
    """There is no such thing, or the asker may not know of it: the two look the same."""

    code = "not_found"
    words = "We cannot find that."

    def __init__(self, message: str = words, *, attempt: Attempt | None = None) -> None:
        super().__init__(message, attempt=attempt)


class Forbidden(PortalError):
    """The asker's role or access lacks this."""

    code = "forbidden"


class NeedsProof(PortalError):
    """This hands out access, and the last proof of who asks is too old: their password is asked for again."""

    code = "needs_proof"

    def __init__(self) -> None:
        super().__init__("Enter your password again first.")


class Conflict(PortalError):
    """The state of things does not allow this change now."""

    code = "conflict"


class PreconditionFailed(Conflict):
    """`If-Match` named a version that is no longer the current one (RFC 9110, section 13.1.1)."""

    code = "precondition_failed"


class AlreadyShown(PortalError):
    """This form was answered before: what it made exists, and its text is not shown again."""

    code = "already_shown"

    def __init__(self, made_id: str) -> None:
        super().__init__("This form was answered already, and what it made has been shown.")
        self.made_id = made_id


class Unreadable(PortalError):
    """The request could not be read as what it should be (400)."""

    code = "bad_request"


class TooLarge(PortalError):
    """The request is larger than this route takes (413)."""

    code = "too_large"


class UnsupportedType(PortalError):
    """The body is not of the one type this route takes (415)."""

    code = "unsupported_media_type"


class Invalid(PortalError):
    """Answers that cannot be accepted (422); `problems` maps a field to what to do about it, first wrong first."""

    code = "invalid"

    def __init__(self, problems: Mapping[str, str], *, attempt: Attempt | None = None) -> None:
        super().__init__(" ".join(problems.values()), attempt=attempt)
        self.problems = dict(problems)


class BreaksRule(PortalError):
    """A request that is fine by itself and cannot be met beside an earlier one (422)."""

    code = "rule_broken"


class DoesNotFit(PortalError):
    """A record that its app's JSON Schema refuses (422); `details` is a list of path and message."""

    code = "schema_mismatch"

    def __init__(self, details: Sequence[Mapping[str, str]]) -> None:
        super().__init__("The record does not fit the app's schema.")
        self.details = list(details)


class TooManyAttempts(PortalError):
    """A limit on tries was met; the next one counts from `retry_at`."""

    code = "too_many_attempts"

    def __init__(
        self, retry_at: datetime, message: str = "Too many attempts.", *, attempt: Attempt | None = None
    ) -> None:
        super().__init__(message, attempt=attempt)
        self.retry_at = retry_at

    def retry_after(self, now: datetime) -> int:
        """Say in how many whole seconds the next try counts, never too few (RFC 9110, section 10.2.3)."""
        return max(1, ceil((self.retry_at - now).total_seconds()))


class Unavailable(PortalError):
    """Trouble of ours that passes (503); never a 401."""

    code = "unavailable"


class Refusal(StrEnum):
    """Why a request with a key was refused. Exact inside, bland outside: see `KeyRefused`."""

    MISSING = "missing_key"
    MALFORMED = "malformed_key"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    DEACTIVATED = "deactivated"
    RETIRED = "retired"
    OWNER_INACTIVE = "owner_inactive"
    OTHER_WORKSPACE = "other_workspace"
    MISSING_SCOPE = "missing_scope"
    ACCESS_WITHDRAWN = "access_withdrawn"
    RATE_LIMITED = "rate_limit_exceeded"

    @property
    def status(self) -> int:
        """The HTTP status that tells of it."""
        if self is Refusal.RATE_LIMITED:
            return 429
        return 403 if self in (Refusal.MISSING_SCOPE, Refusal.ACCESS_WITHDRAWN) else 401


class KeyRefused(PortalError):
    """A key that may not do this: 401 for the key itself, 403 (`required` is set) for what it may do.

    The seven causes of a well-formed key's 401 share the one code `invalid_key`, so that a caller learns nothing of a
    key it does not hold; `refusal` and `key_id` are for the log and for those who may ask.
    """

    def __init__(
        self,
        refusal: Refusal,
        *,
        key_id: str | None = None,
        key_pk: int | None = None,
        required: str | None = None,
        held: Sequence[str] = (),
        had: tuple[str, str] = ("", ""),
        workspace: str | None = None,
    ) -> None:
        super().__init__(str(refusal), code=_OUTSIDE.get(refusal, "invalid_key"))
        self.refusal = refusal
        self.key_id = key_id
        self.key_pk = key_pk
        self.required = required
        self.held = list(held)
        self.had = had  # of a 401: its scopes with their levels and its member's role, as they were read
        self.workspace = workspace


_OUTSIDE = {
    refusal: str(refusal)
    for refusal in (Refusal.MISSING, Refusal.MALFORMED, Refusal.MISSING_SCOPE, Refusal.ACCESS_WITHDRAWN)
}
