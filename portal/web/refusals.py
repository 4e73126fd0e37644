"""Why a request with a key was refused, in words: for those who may know."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from portal.rules.errors import Refusal
from portal.store.models import RefusedRequest
from portal.web.display import thousands

INTROSPECTION = "/oauth/introspect"  # where services ask about keys: their question succeeds, only the key is refused
_WORDS = {
    Refusal.MISSING_SCOPE: "403: lacks {scope}",
    Refusal.ACCESS_WITHDRAWN: "403: its owner no longer has the access that {scope} needs",
    Refusal.DEACTIVATED: "401: key deactivated",
    Refusal.EXPIRED: "401: key expired",
    Refusal.REVOKED: "401: key deleted",
    Refusal.RETIRED: "401: key retired after its rotation",
    Refusal.OWNER_INACTIVE: "401: its owner is deactivated",
    Refusal.OTHER_WORKSPACE: "401: used for another workspace",
    Refusal.RATE_LIMITED: "429: used more often than its limits allow",
    Refusal.UNKNOWN: "401: the key’s text and its record disagree",
}


@dataclass(frozen=True, slots=True)
class RefusedView:
    """One refused request as a page tells of it."""

    at: datetime
    method: str
    path: str
    status: int
    address: str
    client: str
    scope: str
    words: str
    request_id: str

    @property
    def is_question(self) -> bool:
        """Whether somebody's own service asked about the key: the address and client are that service's."""
        return self.path == INTROSPECTION


def view_of(row: RefusedRequest) -> RefusedView:
    """Put a refused request into words."""
    return RefusedView(
        at=row.at,
        method=row.method,
        path=row.path,
        status=Refusal(row.reason).status,
        address=row.address,
        client=row.client,
        scope=row.required,
        words=words_of(row.reason, row.required, row.path),
        request_id=row.request_id,
    )


def words_of(reason: str, scope: str, path: str = "") -> str:
    """Say a reason as stored, such as `missing_scope`, in words; `path` tells a product that asked from a request."""
    words = _WORDS[Refusal(reason)].format(scope=scope)
    if path == INTROSPECTION:
        return f"a service asked about the key and was told that it does not work: {words.partition(': ')[2]}"
    return words


def told_of(details: Mapping[str, Any]) -> str:
    """Say why requests were refused that the audit log tells of in one event, and how many came at once."""
    reason, times = str(details.get("reason", "")), int(details.get("times", 1))
    is_known = reason in list(Refusal)
    words = words_of(reason, str(details.get("scope") or "a scope")) if is_known else "no reason told"
    if times == 1:
        return words
    # Others of them may have lacked other scopes: they are told together, once an hour.
    return f"{words}, {'the first of ' if details.get('scope') else ''}{thousands(times)} at once"
