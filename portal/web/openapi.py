"""The REST API's description in OpenAPI 3.1, made from the declared calls, the error table and the key's format."""

import json
from collections.abc import Iterable
from typing import Any

from flask import Flask

from portal.rules.credentials import CHECKSUM_LENGTH, SECRET_LENGTH, KeyFormat
from portal.web.answers import KEY_WORDS, PRODUCT
from portal.web.declared import (
    APP_NAME,
    MOMENT,
    SCOPE,
    TEXT,
    Answer,
    Declared,
    Parameter,
    Schema,
    a_list,
    an_object,
    declared_calls,
    public_id_of,
    usual_refusals,
)
from portal.web.guards import Audience
from portal.web.http import error_types
from portal.web.parts import Portal

BASE = "/api/v1"  # where paths begin, but for those that products of one's own ask
_SCHEME = "key"
_SECONDS: Schema = {"type": "string", "pattern": "^[1-9][0-9]*$"}
_NUMBER: Schema = {"type": "string", "pattern": "^[0-9]+$"}

# Every header that answers may carry: what it looks like, and what it says.
HEADERS: dict[str, tuple[Schema, str]] = {
    "X-Request-Id": (
        {"type": "string", "pattern": "^req_[0-9A-Za-z]+$"},
        "The request’s id, as in `meta.requestId`. Tell it when you ask why a request was refused.",
    ),
    "X-Environment": ({"enum": ["live", "test"]}, "Which data the key works on; `test` is the sandbox."),
    "X-Key-Expires-At": (MOMENT, "When the key stops, where it expires or is being rotated out."),
    "Sunset": (TEXT, "The same moment as an HTTP date (RFC 8594)."),
    "X-RateLimit-Limit": (_NUMBER, "How many requests any 60 s may hold."),
    "X-RateLimit-Remaining": (_NUMBER, "How many are left of them."),
    "X-RateLimit-Reset": (_NUMBER, "When `X-RateLimit-Remaining` next grows, in Unix seconds."),
    "Retry-After": (_SECONDS, "How many seconds to wait before the next try."),
    "WWW-Authenticate": ({"type": "string", "pattern": "^(?:Bearer|Basic) "}, "The challenge of RFC 6750, section 3."),
    "Idempotency-Replayed": ({"const": "true"}, "This is the answer of the first request with this `Idempotency-Key`."),
    "Allow": (TEXT, "The methods that this address takes."),
    "ETag": ({"type": "string", "pattern": '^"[^"]+"$'}, "The version, for `If-Match` or `If-None-Match`."),
    "Location": (TEXT, "The address of what was made."),
    "Cache-Control": (TEXT, "How long the answer may be kept."),
    "X-Error-Code": (TEXT, "The `code` of the body."),
    "X-Fix-Url": ({**TEXT, "format": "uri"}, "Of a missing scope: the `fixUrl` of the body."),
    "X-Auth-Workspace": (public_id_of("ws"), "The workspace’s id."),
    "X-Auth-Member": (public_id_of("mem"), "The id of the member that the key acts as."),
    "X-Auth-Key": (public_id_of("key"), "The key’s id."),
    "X-Auth-Scopes": (TEXT, "The scopes that work now, with spaces between them."),
    "X-Auth-Environment": ({"enum": ["live", "test"]}, "Which data the key works on."),
}
_OF_KEY = ("X-Environment", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_OF_SOME_KEYS = ("X-Key-Expires-At", "Sunset")
# Every code of an answer, and what to do. Those of 401 and of a scope's 403 have a page of their own.
CODES: dict[int, dict[str, str]] = {
    400: {
        "invalid_json": "Write the body with a JSON library; `NaN` and `Infinity` are not JSON.",
        "invalid_utf8": "Send the body in UTF-8.",
        "invalid_text": "Leave out U+0000 and lone surrogates.",
        "not_an_object": "Send an object, `{…}`.",
        "duplicate_member": "Name each member of an object once.",
        "unknown_member": "Leave out the member that `message` names; a record’s own stand within `fields`.",
        "number_out_of_range": "Send numbers within ±(2⁵³−1), or as text.",
        "invalid_query": "Percent-encode the query as UTF-8, with 20 parameters at most.",
        "repeated_parameter": "Give each parameter once.",
        "invalid_parameter": "Keep to the bounds of the parameter; `/verify` takes only `scope`.",
        "invalid_if_match": "Send an `ETag` as you got it, with its quotes, or `*`.",
        "invalid_idempotency_key": "Send it once: 1 to 255 visible ASCII characters, no comma and no API key.",
        "unknown_host": "Call the base URL: this installation answers to no other host.",
        "cut_off": "Send it again: it did not arrive whole, and nothing was changed.",
        "bad_request": "Look at how the request is made: it cannot be read as HTTP should be.",
    },
    401: {
        "missing_key": "Send `Authorization: Bearer <key>`.",
        "malformed_key": "Send one whole key, with nothing before or after it.",
        "invalid_key": "Ask on the page Explain why, with the `requestId`.",
    },
    403: {
        "missing_scope": "Generate a replacement with the scope, at `fixUrl`.",
        "access_withdrawn": "Ask an administrator to give the key’s member the access back.",
        "rotation_not_allowed": "Rotate the key by hand in API Settings, or generate one that may rotate itself.",
    },
    404: {
        "not_found": "Check the path, and the key’s environment: a live key finds no sandbox record. The records of an "
        "external solution are kept by another product.",
    },
    405: {"method_not_allowed": "Use one of the methods in `Allow`."},
    409: {
        "already_replaced": "Go on with the new key: somebody or another process rotated this one. Its text was in the "
        "answer to that rotation alone.",
        "predecessor_works": "End the key before this one: with it `DELETE /api/v1/me`, or by Retire in API Settings; "
        "or let its overlap pass.",
        "conflict": "`message` says what stands against it. Do not repeat it as it is.",
        "idempotency_in_flight": "Send it again in a moment: the first request with this `Idempotency-Key` is still "
        "at work.",
    },
    412: {"precondition_failed": "Read the record again, and repeat the change with its new `ETag`."},
    413: {"too_large": "Send less: `message` names the limit."},
    415: {"unsupported_media_type": "Send JSON in UTF-8, with `Content-Type: application/json`."},
    422: {
        "invalid": "Mend the members that `details` names.",
        "schema_mismatch": "Mend the fields that `details` names: the app’s JSON Schema does not take them so.",
        "idempotency_key_reused": "Choose a new `Idempotency-Key`: in the last 24 hours this one came with another "
        "request.",
    },
    429: {
        "rate_limit_exceeded": "Wait for as many seconds as `Retry-After` says, and spread the requests. An "
        "administrator can change a key’s limits.",
    },
    500: {"internal_error": "Send it again later; if it goes on, tell whoever runs this the `requestId`."},
    503: {"unavailable": "Send it again after `Retry-After`, a POST with the same `Idempotency-Key`."},
}
ROTATES_ITSELF = "Only for keys that may rotate themselves, which is chosen when a key is generated; others get 403."
_MAY_COME_BEFORE_THE_KEY = frozenset({400, 429, 500, 503})  # then headers that speak of the key may lack
WORDS = {
    400: "The request cannot be read: its address, a header, or a body that is not strict JSON.",
    401: "The key is missing, malformed or cannot be used.",
    403: "The key is good and lacks the scope, or its member no longer has the access.",
    404: "There is no such thing where the key looks.",
    405: "This address does not take that method.",
    409: "The state of things does not allow this now.",
    412: "`If-Match` names a version that is no longer the current one.",
    413: "The body, or the record that would come of it, is too large.",
    415: "The body is not `application/json` in UTF-8.",
    422: "The body can be read and cannot be accepted; `details` says where and why.",
    429: "Too many requests with this key (`message` names the limit), or too many bad keys from your network.",
    500: "Something broke on our side. Nothing of the request was kept.",
    503: "We cannot answer right now; the key is unchanged. Wait for `Retry-After`.",
}


def document_of(app: Flask) -> bytes:
    """Give the document of an application as JSON; it is made once."""
    found: bytes | None = app.extensions.get("openapi")
    if found is None:
        written = json.dumps(build(app), ensure_ascii=False, separators=(",", ":"))
        portal: Portal = app.extensions["portal"]
        found = app.extensions["openapi"] = prefixed(written, portal.settings.keyring.format).encode()
    return found


def prefixed(examples: str, key_format: KeyFormat) -> str:
    """Let the keys in examples, written as JSON, begin as the instance's own do."""
    return examples.replace('"sk_live_', f'"{key_format.prefix}_live_')


def build(app: Flask) -> dict[str, Any]:
    """Make the document of an application."""
    portal: Portal = app.extensions["portal"]
    base_url, key_format = portal.settings.base_url, portal.settings.keyring.format
    calls = declared_calls(app)
    paths: dict[str, Any] = {}
    for each in calls:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    refusals = {(status, each.needs_key) for each in calls for status in usual_refusals(each)} | {(405, False)}
    shapes = {answer.data.name: answer.data for each in calls for answer in each.call.answers if answer.data}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{PRODUCT} API",
            "version": "1",
            "description": "Send the key as `Authorization: Bearer <key>`; its prefix decides between live and "
            f"sandbox data. For people: {base_url}/docs/api",
        },
        "servers": [{"url": base_url}],
        "tags": [{"name": group} for group in dict.fromkeys(each.call.group for each in calls)],
        "paths": paths,
        "components": {
            "securitySchemes": {
                _SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": f"^{key_format.pattern.pattern}$",
                    "description": f"The last {CHECKSUM_LENGTH} characters are a checksum: the CRC-32 of everything "
                    f"before the last `_`, in base 62. The {SECRET_LENGTH} before it are random. In examples, "
                    f"`{key_format.prefix}_live_EXAMPLE…` stands for a key.",
                },
                "verifier": {"type": "http", "scheme": "basic", "description": "A verifier’s id and secret."},
                "verifierToken": {"type": "http", "scheme": "bearer", "description": "A verifier’s secret."},
            },
            "schemas": {
                **{name: {**shapes[name].schema, "examples": [shapes[name].example]} for name in sorted(shapes)},
                "Meta": an_object(requestId=HEADERS["X-Request-Id"][0]),
                "ListMeta": an_object(
                    requestId=HEADERS["X-Request-Id"][0],
                    pagination=an_object(
                        total={"type": "integer", "minimum": 0},
                        limit={"type": "integer", "minimum": 1},
                        offset={"type": "integer", "minimum": 0},
                    ),
                ),
                **{f"Error{status}": error_schema(status) for status in sorted(dict(refusals))},
            },
            "headers": {name: {"schema": schema, "description": words} for name, (schema, words) in HEADERS.items()},
            "responses": {
                _refusal_name(status, needs_key=needs_key): _refusal(status, needs_key=needs_key)
                for status, needs_key in sorted(refusals)
            },
        },
    }


def _operation(declared: Declared) -> dict[str, Any]:
    call = declared.call
    needs = f" Needs the scope `{declared.scope}`." if declared.scope else ""
    needs += f" {ROTATES_ITSELF}" if call.rotates_itself else ""
    operation: dict[str, Any] = {
        "operationId": declared.endpoint,
        "summary": call.title,
        "description": declared.words + needs + (f" {call.note}" if call.note else ""),
        "tags": [call.group],
        "security": _security(declared),
        "parameters": [_parameter(each) for each in declared.takes],
        "responses": {
            **{
                str(status): {"$ref": f"#/components/responses/{_refusal_name(status, needs_key=declared.needs_key)}"}
                for status in usual_refusals(declared)
            },
            **{str(answer.status): _answer(answer, needs_key=declared.needs_key) for answer in call.answers},
        },
    }
    if call.body:
        operation["requestBody"] = {
            "required": call.body.is_required,
            "description": call.body.words,
            "content": {call.body.kind: {"schema": call.body.schema, "example": call.body.example}},
        }
    return operation


def _security(declared: Declared) -> list[dict[str, list[str]]]:
    if declared.audience is Audience.VERIFIER:
        return [{"verifier": []}, {"verifierToken": []}]
    return [{_SCHEME: [declared.scope] if declared.scope else []}] if declared.needs_key else []


def _parameter(parameter: Parameter) -> dict[str, Any]:
    written = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "schema": parameter.schema,
        "description": parameter.words,
    }
    return written | ({"example": parameter.example} if parameter.place == "path" and parameter.example else {})


def _answer(answer: Answer, *, needs_key: bool) -> dict[str, Any]:
    written: dict[str, Any] = {
        "description": answer.words,
        "headers": _headers(("X-Request-Id", *answer.headers), answer.status, answer.may_have, needs_key=needs_key),
    }
    schema, example = answer.whole, None
    if answer.data:
        of: Schema = {"$ref": f"#/components/schemas/{answer.data.name}"}
        schema = an_object(
            data=a_list(of) if answer.is_list else of, meta=_meta("ListMeta" if answer.is_list else "Meta")
        )
        example = example_of(answer)
    if schema:
        content = {"schema": schema} | ({"example": example} if example else {})
        written["content"] = {"application/json": content}
    return written


def example_of(answer: Answer) -> dict[str, Any] | None:
    """Write what an answer looks like; None for one without data."""
    if answer.data is None:
        return None
    meta: dict[str, Any] = {"requestId": EXAMPLE_ID}
    if answer.is_list:
        meta["pagination"] = {"total": 1, "limit": 20, "offset": 0}
    return {"data": [answer.data.example] if answer.is_list else answer.data.example, "meta": meta}


EXAMPLE_ID = "req_1f2e3d4c5b6a79880716253f"


def _meta(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _refusal_name(status: int, *, needs_key: bool) -> str:
    return f"Refused{status}" + ("" if needs_key else "WithoutKey")


def _refusal(status: int, *, needs_key: bool) -> dict[str, Any]:
    own = {401: ("WWW-Authenticate",), 403: ("WWW-Authenticate",), 405: ("Allow",)}
    waits = ("Retry-After",) if status in (429, 503) else ()
    names = ("X-Request-Id", *own.get(status, ()), *waits)
    return {
        "description": WORDS[status],
        "headers": _headers(names, status, needs_key=needs_key),
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/Error{status}"}}},
    }


def _headers(names: Iterable[str], status: int, may_have: Iterable[str] = (), *, needs_key: bool) -> dict[str, Any]:
    must, may = list(names), list(may_have)
    if needs_key and status != 401:
        (may if status in _MAY_COME_BEFORE_THE_KEY else must).extend(_OF_KEY)
        may.extend(_OF_SOME_KEYS)
    # `required` stands beside a copy: a reference in OpenAPI 3.1 may not have it.
    written = [(name, True) for name in must] + [(name, False) for name in may]
    return {
        name: {"required": True, "schema": HEADERS[name][0], "description": HEADERS[name][1]}
        if is_required
        else {"$ref": f"#/components/headers/{name}"}
        for name, is_required in written
    }


_PATH = "Where: a member of the body, such as `overlap`; or of a record's `fields`, which are `$` then: `$.title`."


def error_schema(status: int) -> Schema:
    """Describe the body of a refusal, by the table that writes it."""
    members: dict[str, Schema] = {
        "type": {"enum": sorted(error_types()[status])},
        # No enumeration: there may be further ones some day, and clients go by the status then.
        "code": {**TEXT, "pattern": "^[a-z][a-z0-9_]*$", "examples": list(CODES[status])},
        "message": {**TEXT, "description": "What to do, for a person."},
    }
    required = list(members)
    if status == 403:
        members["requiredScope"] = {"type": "string", "pattern": f"^{APP_NAME}:(?:read|write)$"}
        members["heldScopes"] = {
            **a_list(SCOPE),
            "description": "What works now: given to the key, and its member has the access.",
        }
        members["fixUrl"] = {
            **TEXT,
            "format": "uri",
            "description": "Of a missing scope: the form that generates a replacement key with it.",
        }
    if status == 422:
        members["details"] = a_list(an_object(path={**TEXT, "description": _PATH}, message=TEXT))
    error: Schema = {"type": "object", "properties": members, "required": required}
    if status == 403:
        about_scopes = {"properties": {"code": {"enum": [code for code in KEY_WORDS if not code.endswith("_key")]}}}
        error |= {"if": about_scopes, "then": {"required": ["requiredScope", "heldScopes"]}}
    return an_object(error=error, meta=_meta("Meta"))
