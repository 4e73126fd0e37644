"""The REST API for integrations (contract, section 3): JSON in and out, one key a request."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from flask import Blueprint, Response, g, request, url_for

from portal.rules.access import Action
from portal.rules.credentials import KEY_SHAPED
from portal.rules.errors import Invalid, Unreadable, UnsupportedType
from portal.rules.payload import read_object
from portal.services import idempotency, keys, records, rotation, workspaces
from portal.services.actor import Actor, Means
from portal.services.idempotency import Asked, Stored
from portal.services.key_check import Caller
from portal.services.records import Place
from portal.store.database import Session
from portal.store.models import Record
from portal.web.door import PASSAGE
from portal.web.guards import with_key
from portal.web.http import api_reply, portal, reading, transaction

api = Blueprint("api", __name__, url_prefix="/api/v1")

_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)
_MAX_OFFSET = 2**31 - 1
_USUAL_OVERLAP, _MAX_OVERLAP = 86_400, 7 * 86_400  # seconds
_ETAG = re.compile(r'(?:W/)?"[^",]*"')
_IDEMPOTENCY_KEY = re.compile(r"[!-+\--~]{1,255}")  # visible ASCII but the comma, by which repeated headers are joined
_REPEATED = ("Content-Type", "Location", "ETag")  # headers that a stored answer is given again with
_FIRST_ID = "X-Request-Id"  # and the id that its body names


@api.get("/me")
@with_key()
def me(caller: Caller) -> Response:
    """Say who the key is."""
    read_query()
    return api_reply(
        {
            "workspace": {
                "id": caller.workspace_id,
                "slug": caller.workspace_slug,
                "name": caller.workspace_name,
            },
            "member": {
                "id": caller.member_id,
                "name": caller.member_name,
                "type": "api" if caller.is_api_member else "human",
            },
            "key": {
                "id": caller.key_id,
                "name": caller.key_name,
                "hint": portal().settings.keyring.format.hint(caller.environment, caller.last_four),
                "environment": caller.environment,
                "scopes": caller.reach.texts,
                "effectiveScopes": caller.reach.effective_texts,
                "expiresAt": _moment(caller.ends_at) if caller.ends_at else None,
            },
        }
    )


@api.post("/me/rotate")
@with_key()
def rotate_me(caller: Caller) -> Response:
    """Replace the key by a new one; only a key that was generated as one that may rotate itself.

    The body is `{"overlap": seconds}`, 0 to 604,800 for which the old key goes on, one day without it; it may be left
    out. The answer is the one place where the new key's text stands. It is not kept, so that an `Idempotency-Key`
    cannot bring it back: the repeat of a rotation is a Conflict, for the key is being replaced already.
    """
    read_query()
    read_idempotency_key()
    overlap = read_overlap()
    keyring = portal().settings.keyring
    g.actor = _actor(caller)  # a refused try is told of too
    with transaction() as session:
        key, plain, old_ends_at = rotation.rotate_itself(session, g.actor, keyring, caller.key_pk, overlap)
    return api_reply(
        {
            "id": key.id,
            "name": key.name,
            "key": plain.reveal(),
            "hint": key.hint,
            "environment": key.environment,
            "scopes": sorted(scope.text for scope in key.scopes),
            "expiresAt": _moment(key.expires_at) if key.expires_at else None,
            "replaces": caller.key_id,
            "previousKeyEndsAt": _moment(old_ends_at),
        },
        201,
    )


@api.delete("/me")
@with_key()
def end_me(caller: Caller) -> Response:
    """End the key for ever, from the next request on."""
    read_query()
    with transaction() as session:
        keys.end_itself(session, _actor(caller), caller.key_pk)
    return Response(status=204)


@api.get("/solutions")
@with_key()
def solutions(caller: Caller) -> Response:
    """List the solutions and apps that the key can reach, with the scopes it holds there.

    The records of an external solution are kept by another product; this API has none of them.
    """
    limit, offset = read_page()
    held: dict[str, list[str]] = {}
    for scope in sorted(caller.reach.effective):
        held.setdefault(scope.app, []).append(str(scope))
    with reading() as session:
        found = workspaces.reachable(session, caller.workspace_pk, held)
    listed = [
        {
            "id": solution.public_id,
            "slug": solution.slug,
            "name": solution.name,
            "external": solution.is_external,
            "apps": [
                {"id": app.public_id, "slug": app.slug, "name": app.name, "scopes": held[app.slug]} for app in apps
            ],
        }
        for solution, apps in found
    ]
    return api_reply(listed[offset : offset + limit], meta=_paging(len(listed), limit, offset))


@api.get("/apps/<app:app>/records")
@with_key(Action.READ)
def list_records(caller: Caller, app: str) -> Response:
    """List an app's records, newest first."""
    limit, offset = read_page()
    with reading() as session:
        found, total = records.list_for(session, _place(caller, app), limit=limit, offset=offset)
    return api_reply([_record(each) for each in found], meta=_paging(total, limit, offset))


@api.post("/apps/<app:app>/records")
@with_key(Action.WRITE)
def create_record(caller: Caller, app: str) -> Response:
    """Create a record; once only for an `Idempotency-Key`, however often the request is repeated in 24 hours."""
    read_query()
    fields = read_fields()

    def create(session: Session) -> Response:
        record = records.create(session, _actor(caller), _place(caller, app), fields)
        response = _with_etag(api_reply(_record(record), 201), record)
        response.headers["Location"] = url_for("api.get_record", app=app, record_id=record.public_id)
        return response

    return _once(caller, create)


@api.get("/apps/<app:app>/records/<record_id>")
@with_key(Action.READ)
def get_record(caller: Caller, app: str, record_id: str) -> Response:
    """Read a record."""
    read_query()
    with reading() as session:
        record = records.get(session, _place(caller, app), read_id(record_id))
    return _with_etag(api_reply(_record(record)), record)


@api.patch("/apps/<app:app>/records/<record_id>")
@with_key(Action.WRITE)
def change_record(caller: Caller, app: str, record_id: str) -> Response:
    """Merge top-level fields into a record; null is stored as null."""
    read_query()
    fields = read_fields()
    with transaction() as session:
        record = records.change(
            session, _actor(caller), _place(caller, app), read_id(record_id), fields, if_match=read_if_match()
        )
    return _with_etag(api_reply(_record(record)), record)


@api.delete("/apps/<app:app>/records/<record_id>")
@with_key(Action.WRITE)
def delete_record(caller: Caller, app: str, record_id: str) -> Response:
    """Delete a record for good."""
    read_query()
    with transaction() as session:
        records.remove(session, _actor(caller), _place(caller, app), read_id(record_id), if_match=read_if_match())
    return Response(status=204)


# --- Reading requests -----------------------------------------------------------------------------------------------


def read_query() -> dict[str, str]:
    """Read the query string; Unreadable for a parameter that is repeated or not UTF-8. Unknown ones are let be."""
    raw = request.environ.get("QUERY_STRING", "")
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise Unreadable("The query string cannot be read.", code="invalid_query") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("A query parameter is given twice.", code="repeated_parameter")
    return found


def read_page() -> tuple[int, int]:
    """Read `limit` (1 to 100, default 20) and `offset` (0 to 2³¹−1)."""
    query = read_query()
    return _number(query, "limit", 20, 1, 100), _number(query, "offset", 0, 0, _MAX_OFFSET)


def _number(query: dict[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _DIGITS.fullmatch(text) or not lowest <= int(text) <= highest:
        message = f"{name} must be a whole number from {lowest} to {highest}."
        raise Unreadable(message, code="invalid_parameter")
    return int(text)


def read_fields() -> dict[str, Any]:
    """Read the body `{"fields": {…}}`."""
    fields = _read_body("fields", "{…}").get("fields")
    if not isinstance(fields, dict):
        raise Invalid({"fields": 'Send an object: {"fields": {…}}.'})
    return fields


def read_overlap() -> timedelta:
    """Read the body `{"overlap": seconds}`, 0 to seven days; a day when it is absent or `{}`."""
    given = _read_body("overlap", "86400").get("overlap", _USUAL_OVERLAP) if request.get_data() else _USUAL_OVERLAP
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= _MAX_OVERLAP:
        raise Invalid({"overlap": f"Send a whole number of seconds from 0 to {_MAX_OVERLAP}."})
    return timedelta(seconds=given)


def _read_body(member: str, example: str) -> dict[str, Any]:
    """Read a JSON object that has this member at most."""
    if request.mimetype != "application/json" or request.mimetype_params.get("charset", "utf-8").lower() != "utf-8":
        raise UnsupportedType("Send JSON, with the header Content-Type: application/json.")
    body = read_object(request.get_data())
    if unknown := sorted(set(body) - {member}):
        message = f'The body has an unknown member {unknown[0][:40]!a}; send {{"{member}": {example}}}.'
        raise Unreadable(message, code="unknown_member")
    return body


def read_id(record_id: str) -> str:
    """Take a record's id from the path; what cannot be one is looked up as one that does not exist."""
    return record_id if record_id.isascii() and record_id.replace("_", "").isalnum() else "-"


def read_if_match() -> set[str] | None:
    """Read `If-Match` (RFC 9110, section 13.1.1); None when it is absent. A weak tag never matches."""
    header = request.headers.get("If-Match")
    if header is None:
        return None
    tags = {tag.strip() for tag in header.split(",")}
    if tags != {"*"} and not all(_ETAG.fullmatch(tag) for tag in tags):
        raise Unreadable("If-Match must be * or a list of entity tags in double quotes.", code="invalid_if_match")
    return tags


def read_idempotency_key() -> str | None:
    """Read the header `Idempotency-Key`: 1 to 255 visible ASCII characters, no comma; None where there is none."""
    header: str | None = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(header) or KEY_SHAPED.search(header):  # no secret may be written down
        message = "Idempotency-Key must be given once: 1 to 255 visible ASCII characters, no comma, and no API key."
        raise Unreadable(message, code="invalid_idempotency_key")
    return header


# --- Writing answers ------------------------------------------------------------------------------------------------


def _once(caller: Caller, do: Callable[[Session], Response]) -> Response:
    """Do what a POST asks for in one transaction; a repeat with its `Idempotency-Key` gets the first one's answer."""
    key = read_idempotency_key()
    with transaction() as session:
        if key is None:
            return do(session)
        asked = Asked.of(
            *(caller.key_pk, caller.environment, key, g.now),
            method=request.method,
            path=request.path,
            body=request.get_data(),
        )
        if before := idempotency.find(session, asked):
            headers = {**before.headers, "Idempotency-Replayed": "true"}
            request.environ[PASSAGE].request_id = headers.pop(_FIRST_ID)  # as the body says
            return Response(before.body, before.status, headers)
        response = do(session)
        repeated = {name: response.headers[name] for name in _REPEATED if name in response.headers}
        repeated[_FIRST_ID] = g.request_id
        idempotency.keep(session, asked, Stored(response.status_code, response.get_data(), repeated))
        return response


def _record(record: Record) -> dict[str, Any]:
    return {
        "id": record.public_id,
        "fields": record.fields,
        "createdAt": _moment(record.created_at),
        "updatedAt": _moment(record.updated_at),
    }


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _paging(total: int, limit: int, offset: int) -> dict[str, Any]:
    return {"pagination": {"total": total, "limit": limit, "offset": offset}}


def _with_etag(response: Response, record: Record) -> Response:
    response.headers["ETag"] = records.etag(record)
    return response


def _place(caller: Caller, app: str) -> Place:
    return Place(caller.workspace_pk, app, caller.environment)


def _actor(caller: Caller) -> Actor:
    name = f"{caller.member_name}, key “{caller.key_name}” (…{caller.last_four})"
    return Actor(
        g.now,
        Means.KEY,
        name,
        caller.key_id,
        caller.workspace_pk,
        address=request.remote_addr,
        request_id=g.request_id,
    )
