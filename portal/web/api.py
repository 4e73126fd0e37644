"""The REST API for integrations (contract, section 3): JSON in and out, one key a request."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from flask import Blueprint, Response, current_app, g, request, url_for

from portal.rules.access import Action, Scope
from portal.rules.credentials import KEY_SHAPED
from portal.rules.errors import BreaksRule, Conflict, Forbidden, Invalid, NotFound, Unreadable, UnsupportedType
from portal.rules.payload import read_object
from portal.services import idempotency, keys, records, rotation, workspaces
from portal.services.actor import Actor, Means
from portal.services.idempotency import Asked, Stored
from portal.services.key_check import Caller
from portal.services.records import Place
from portal.store.database import Session
from portal.store.models import Record
from portal.web import answers
from portal.web.declared import (
    IDEMPOTENCY_KEY,
    IF_MATCH,
    IF_NONE_MATCH,
    LIMIT,
    OFFSET,
    PATHS,
    Answer,
    Body,
    Parameter,
    declares,
)
from portal.web.door import PASSAGE
from portal.web.guards import anybody, with_key
from portal.web.http import api_reply, portal, reading, transaction
from portal.web.openapi import document_of
from portal.web.shapes import FIELDS, ME, OVERLAP, RECORD, ROTATED, SOLUTION

api = Blueprint("api", __name__, url_prefix="/api/v1")

_REPEATED = ("Content-Type", "Location", "ETag")  # headers that a stored answer is given again with
_FIRST_ID = "X-Request-Id"  # and the id that its body names


@api.get("/me")
@declares("Ask who the key is", "The key", Answer(200, "Who the key is and what it can do now.", ME))
@with_key()
def me(caller: Caller) -> Response:
    """Say who the key is."""
    read_query()  # without one, the door has answered already
    return api_reply(answers.me(caller, portal().settings.keyring.format))


@api.post("/me/rotate")
@declares(
    "Rotate the key",
    "The key",
    Answer(201, "The new key. Its text is in this answer and nowhere else.", ROTATED),
    body=OVERLAP,
    refuses=(Forbidden, Conflict),
    note="Send it once: a repeat is 409 `already_replaced`, and no `Idempotency-Key` brings the "
    "answer back. If the answer was lost, go on with the old key until the overlap ends; meanwhile its owner, or a "
    "manager of its API member, opens the new key in API Settings and chooses “Replace it”, which makes another "
    "one in its place (for 24 hours, while nothing has used it). After an overlap of 0 there is no key to go on with. "
    "The new key can be rotated once the old one has ended, by itself or by `DELETE /api/v1/me`; before, that is 409 "
    "`predecessor_works`.",
    rotates_itself=True,
)
@with_key()
def rotate_me(caller: Caller) -> Response:
    """Replace the key by a new one with the same scopes and lifetime, as far as the workspace’s policy allows.

    The body is `{"overlap": seconds}`, 0 to 604,800 for which the old key goes on, one day without it; it may be left
    out. The answer is the one place where the new key's text stands. It is not kept, so that an `Idempotency-Key`
    cannot bring it back; one is read all the same, so that one that is none is refused here as elsewhere.
    """
    read_query()
    read_idempotency_key()
    overlap = read_overlap()
    keyring = portal().settings.keyring
    g.actor = _actor(caller)  # a refused try is told of too
    with transaction() as session:
        key, plain, old_ends_at = rotation.rotate_itself(session, g.actor, keyring, caller.key_pk, overlap)
    request.environ[PASSAGE].caller = caller._replace(ends_at=old_ends_at)  # as the headers say
    return api_reply(
        {
            "id": key.id,
            "name": key.name,
            "key": plain.reveal(),
            "hint": key.hint,
            "environment": key.environment,
            "scopes": sorted(scope.text for scope in key.scopes),
            "expiresAt": answers.moment(key.expires_at) if key.expires_at else None,
            "replaces": caller.key_id,
            "previousKeyEndsAt": answers.moment(old_ends_at),
        },
        201,
    )


@api.delete("/me")
@declares("End the key", "The key", Answer(204, "It is ended, from the next request on."))
@with_key()
def end_me(caller: Caller) -> Response:
    """End the key for ever, from the next request on."""
    read_query()
    with transaction() as session:
        keys.end_itself(session, _actor(caller), caller.key_pk)
    return Response(status=204)


@api.get("/solutions")
@declares(
    "List what the key reaches",
    "The key",
    Answer(200, "Solutions, each with the apps that the key can reach.", SOLUTION, is_list=True),
    takes=(LIMIT, OFFSET),
)
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
@declares(
    "List records",
    "Records",
    Answer(200, "Records, newest first.", RECORD, is_list=True),
    takes=(LIMIT, OFFSET),
    refuses=(NotFound,),
)
@with_key(Action.READ)
def list_records(caller: Caller, app: str) -> Response:
    """List an app's records, newest first."""
    limit, offset = read_page()
    with reading() as session:
        found, total = records.list_for(session, _place(caller, app), limit=limit, offset=offset)
    return api_reply([_record(each) for each in found], meta=_paging(total, limit, offset))


@api.post("/apps/<app:app>/records")
@declares(
    "Create a record",
    "Records",
    Answer(
        201,
        "The record as it is stored.",
        RECORD,
        headers=("ETag", "Location"),
        may_have=("Idempotency-Replayed",),
    ),
    takes=(IDEMPOTENCY_KEY,),
    body=FIELDS,
    refuses=(NotFound, Conflict, BreaksRule),
)
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
@declares(
    "Read a record",
    "Records",
    Answer(200, "The record.", RECORD, headers=("ETag",)),
    refuses=(NotFound,),
)
@with_key(Action.READ)
def get_record(caller: Caller, app: str, record_id: str) -> Response:
    """Read a record."""
    read_query()
    with reading() as session:
        record = records.get(session, _place(caller, app), read_id(record_id))
    return _with_etag(api_reply(_record(record)), record)


@api.patch("/apps/<app:app>/records/<record_id>")
@declares(
    "Change a record",
    "Records",
    Answer(
        200,
        "The record as it is now; of its fields, a key without read is told those that it sent.",
        RECORD,
        headers=("ETag",),
    ),
    takes=(IF_MATCH,),
    body=FIELDS,
    refuses=(NotFound,),
)
@with_key(Action.WRITE)
def change_record(caller: Caller, app: str, record_id: str) -> Response:
    """Merge top-level fields into a record; null is stored as null."""
    read_query()
    fields = read_fields()
    may_read = Scope(app, Action.READ) in caller.reach.effective
    with transaction() as session:
        record = records.change(
            session,
            _actor(caller),
            _place(caller, app),
            read_id(record_id),
            fields,
            if_match=read_if_match(),
            may_read=may_read,
        )
    told = _record(record)
    if not may_read:
        told["fields"] = {name: value for name, value in record.fields.items() if name in fields}
    return _with_etag(api_reply(told), record)


@api.delete("/apps/<app:app>/records/<record_id>")
@declares(
    "Delete a record",
    "Records",
    Answer(204, "It is gone."),
    takes=(IF_MATCH,),
    refuses=(NotFound,),
)
@with_key(Action.WRITE)
def delete_record(caller: Caller, app: str, record_id: str) -> Response:
    """Delete a record for good."""
    read_query()
    with transaction() as session:
        records.remove(session, _actor(caller), _place(caller, app), read_id(record_id), if_match=read_if_match())
    return Response(status=204)


@api.get("/openapi.json")
@declares(
    "Read this document",
    "The document",
    Answer(200, "This document.", whole={"type": "object"}, headers=("ETag", "Cache-Control")),
    Answer(304, "It has not changed.", headers=("ETag", "Cache-Control")),
    takes=(IF_NONE_MATCH,),
)
@anybody
def openapi() -> Response:
    """Give the description of this API in OpenAPI 3.1, made from the code that answers."""
    read_query()
    response = Response(document_of(current_app), mimetype="application/json")
    response.add_etag()
    response.headers["Cache-Control"] = "public, max-age=300"
    response.make_conditional(request)
    return response


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
    """Read `limit` and `offset`."""
    query = read_query()
    return _number(query, LIMIT), _number(query, OFFSET)


def _number(query: dict[str, str], parameter: Parameter) -> int:
    text, schema = query.get(parameter.name), parameter.schema
    if text is None:
        return int(schema["default"])
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not schema["minimum"] <= int(text) <= schema["maximum"]:
        message = f"{parameter.name} must be a whole number from {schema['minimum']} to {schema['maximum']}."
        raise Unreadable(message, code="invalid_parameter")
    return int(text)


def read_fields() -> dict[str, Any]:
    """Read the body `{"fields": {…}}`."""
    fields = _read_body(FIELDS, "{…}").get("fields")
    if not isinstance(fields, dict):
        raise Invalid({"fields": 'Send an object: {"fields": {…}}.'})
    return fields


def read_overlap() -> timedelta:
    """Read the body `{"overlap": seconds}`, which may be left out, as may its one member."""
    schema = OVERLAP.schema["properties"]["overlap"]
    given = _read_body(OVERLAP, "86400").get("overlap", schema["default"]) if request.get_data() else schema["default"]
    is_number = isinstance(given, int) and not isinstance(given, bool)
    if not is_number or not schema["minimum"] <= given <= schema["maximum"]:
        message = f"Send a whole number of seconds from {schema['minimum']} to {schema['maximum']}."
        raise Invalid({"overlap": message})
    return timedelta(seconds=given)


def _read_body(expected: Body, example: str) -> dict[str, Any]:
    """Read a JSON object that has the one member of a declared body at most."""
    (member,) = expected.schema["properties"]
    if request.mimetype != "application/json" or request.mimetype_params.get("charset", "utf-8").lower() != "utf-8":
        raise UnsupportedType("Send JSON in UTF-8, with the header Content-Type: application/json.")
    body = read_object(request.get_data())
    if unknown := sorted(set(body) - {member}):
        message = f'The body has an unknown member {unknown[0][:40]!a}; send {{"{member}": {example}}}.'
        raise Unreadable(message, code="unknown_member")
    return body


def read_id(record_id: str) -> str:
    """Take a record's id from the path; what cannot be one is looked up as one that does not exist."""
    return record_id if PATHS["record_id"].fits(record_id) else "-"


def read_if_match() -> set[str] | None:
    """Read `If-Match` (RFC 9110, section 13.1.1); None when it is absent. A weak tag never matches."""
    header = request.headers.get("If-Match")
    if header is None:
        return None
    if not IF_MATCH.fits(header.strip()):
        raise Unreadable("If-Match must be * or a list of entity tags in double quotes.", code="invalid_if_match")
    return {tag.strip() for tag in header.split(",")}


def read_idempotency_key() -> str | None:
    """Read the header `Idempotency-Key`: 1 to 255 visible ASCII characters, no comma; None where there is none."""
    header: str | None = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        return None
    if not IDEMPOTENCY_KEY.fits(header) or KEY_SHAPED.search(header):  # no secret may be written down
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
        "createdAt": answers.moment(record.created_at),
        "updatedAt": answers.moment(record.updated_at),
    }


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
