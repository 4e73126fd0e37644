"""What integrations are answered, as bytes: made here for the views and for the door before them alike."""

import json
from datetime import UTC, datetime
from functools import lru_cache
from random import getrandbits
from typing import Any, NamedTuple
from urllib.parse import urlencode

from portal.rules.credentials import KeyFormat
from portal.rules.errors import KeyRefused, Refusal
from portal.services.key_check import Caller

PRODUCT = "Latchkey"

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

AWAY = (
    "We cannot reach our records right now. Try again in a few seconds. "
    "Requests with keys get 503 meanwhile; your keys are unchanged."
)
KEY_WORDS = {
    "missing_key": "Send your key as: Authorization: Bearer <key>.",
    "malformed_key": "Send one whole key of our format, in the Authorization header and nowhere else.",
    "invalid_key": (
        "This key cannot be used. Its owner and administrators can ask why on the page Explain of the portal, with the "
        "requestId."
    ),
    "missing_scope": "The key lacks the scope that this needs. Scopes cannot be added: generate a replacement.",
    "access_withdrawn": (
        "The key was given the scope, but its member no longer has that access: it is not among heldScopes, "
        "which lists what works now. Ask an administrator."
    ),
}


class Answer(NamedTuple):
    """A whole answer but for the headers that every answer has."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def new_request_id() -> str:
    """Make the id under which a request can be asked about; it is no secret, so the system need not be asked for it."""
    return f"req_{getrandbits(96):024x}"


def moment(at: datetime) -> str:
    """Write a moment as the API does: RFC 3339, in UTC, with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def data(found: Any, request_id: str, **meta: Any) -> bytes:
    """Write `{"data": …, "meta": {"requestId": …}}`."""
    return to_json({"data": found, "meta": {"requestId": request_id, **meta}}).encode()


def me(caller: Caller, key_format: KeyFormat) -> dict[str, Any]:
    """Say who a key is."""
    return {
        "workspace": {"id": caller.workspace_id, "slug": caller.workspace_slug, "name": caller.workspace_name},
        "member": {
            "id": caller.member_id,
            "name": caller.member_name,
            "type": "api" if caller.is_api_member else "human",
        },
        "key": {
            "id": caller.key_id,
            "name": caller.key_name,
            "hint": key_format.hint(caller.environment, caller.last_four),
            "environment": caller.environment,
            "scopes": caller.reach.texts,
            "effectiveScopes": caller.reach.effective_texts,
            "expiresAt": moment(caller.ends_at) if caller.ends_at else None,
        },
    }


def error(
    request_id: str, status: int, kind: str, code: str, message: str, /, *headers: tuple[str, str], **extra: Any
) -> Answer:
    """Make `{"error": {"type", "code", "message", …}, "meta": {"requestId": …}}`."""
    before, after = _around(kind, code, message) if not extra else _around_id(kind, code, message, extra)
    return Answer(status, list(headers), f"{before}{request_id}{after}".encode())


def _around_id(kind: str, code: str, message: str, extra: dict[str, Any]) -> tuple[str, str]:
    """Write an error's body up to its request id, and what follows."""
    error = to_json({"type": kind, "code": code, "message": message, **extra})
    return f'{{"error":{error},"meta":{{"requestId":"', '"}}'


@lru_cache(maxsize=256)  # bad keys come in floods, and get the same answer but for the id
def _around(kind: str, code: str, message: str) -> tuple[str, str]:
    return _around_id(kind, code, message, {})


OAUTH = "/oauth/"  # where errors look as OAuth's do
_OAUTH_CODES = {429: "temporarily_unavailable", 500: "server_error", 503: "temporarily_unavailable"}


def oauth_error(status: int, message: str, code: str = "") -> dict[str, str]:
    """Make an error's body as RFC 6749, section 5.2, has it; `message` in ASCII without quotes and backslashes."""
    return {"error": code or _OAUTH_CODES.get(status, "invalid_request"), "error_description": message}


def unavailable(request_id: str) -> Answer:
    """Say that the trouble is ours (503): never a 401."""
    return error(request_id, 503, "api_error", "unavailable", AWAY, ("Retry-After", "5"))


def too_many(request_id: str, retry_after: int, message: str) -> Answer:
    """Refuse for now (429); `retry_after` in seconds."""
    wait = ("Retry-After", str(retry_after))
    return error(request_id, 429, "rate_limit_error", "rate_limit_exceeded", message, wait)


def forbid(request_id: str, code: str, message: str) -> Answer:
    """Answer 403 where it is not a scope that lacks."""
    challenge = ("WWW-Authenticate", f'Bearer realm="{PRODUCT}", error="insufficient_scope"')
    return error(request_id, 403, "authorization_error", code, message, challenge)


def refuse(refused: KeyRefused, request_id: str, base_url: str) -> Answer:
    """Answer 401 or 403 with the challenge of RFC 6750, section 3. All that `invalid_key` stands for look alike."""
    challenge = f'Bearer realm="{PRODUCT}"'
    words = KEY_WORDS[refused.code]
    if refused.required is None:
        if refused.refusal is not Refusal.MISSING:
            challenge += ', error="invalid_token"'
        return error(request_id, 401, "authentication_error", refused.code, words, ("WWW-Authenticate", challenge))
    challenge += f', error="insufficient_scope", scope="{refused.required}"'
    extra: dict[str, Any] = {"requiredScope": refused.required, "heldScopes": refused.held}
    if found := fix_url(refused, base_url):
        extra["fixUrl"] = found
    return error(request_id, 403, "authorization_error", refused.code, words, ("WWW-Authenticate", challenge), **extra)


def fix_url(refused: KeyRefused, base_url: str) -> str | None:
    """Give the address of the form that generates a replacement key with the scope that a key lacks."""
    if refused.refusal is not Refusal.MISSING_SCOPE:
        return None
    query = urlencode({"from": refused.key_id, "add": refused.required}, safe=":")
    return f"{base_url}/w/{refused.workspace}/api/keys/new?{query}"
