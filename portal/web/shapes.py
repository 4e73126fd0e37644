"""What bodies of the REST API hold, as JSON Schema.

Answers are open, so that a client made from it takes what a later version adds; the fuzzer closes them
(`bench.fuzz.closed`) and notices what is not told.
"""

from portal.rules.payload import MAX_DEPTH, MAX_ITEMS, MAX_MEMBERS
from portal.web.declared import (
    ENVIRONMENT,
    MOMENT,
    SCOPE,
    Body,
    Schema,
    Shape,
    a_list,
    an_object,
    or_null,
    public_id_of,
)
from portal.web.http import JSON_LIMIT

_SCOPES = a_list(SCOPE)
_NAME: Schema = {"type": "string", "minLength": 1}
ME = Shape(
    "Me",
    an_object(
        workspace=an_object(id=public_id_of("ws"), slug=_NAME, name=_NAME),
        member=an_object(id=public_id_of("mem"), name=_NAME, type={"enum": ["human", "api"]}),
        key=an_object(
            id=public_id_of("key"),
            name=_NAME,
            hint=_NAME,
            environment=ENVIRONMENT,
            scopes=_SCOPES,
            effectiveScopes=_SCOPES,
            expiresAt=or_null(MOMENT),
        ),
    ),
    {
        "workspace": {"id": "ws_4Yp0cT2mXb7LwQ9d", "slug": "acme", "name": "Acme"},
        "member": {"id": "mem_9sD3fG5hJ7kL1zX4", "name": "Max Brandt", "type": "human"},
        "key": {
            "id": "key_2bN8vC6xZ1aS5dF3",
            "name": "CRM sync",
            "hint": "sk_live_…abcd",
            "environment": "live",
            "scopes": ["leads:read", "tasks:write"],
            "effectiveScopes": ["leads:read"],
            "expiresAt": "2026-02-10T13:05:00.000Z",
        },
    },
)
SOLUTION = Shape(
    "Solution",
    an_object(
        id=public_id_of("sol"),
        slug=_NAME,
        name=_NAME,
        external={"type": "boolean", "description": "Whether a product of your own keeps its data."},
        apps=a_list(an_object(id=public_id_of("app"), slug=_NAME, name=_NAME, scopes=_SCOPES)),
    ),
    {
        "id": "sol_6gH4jK2lP8oI0uY7",
        "slug": "sales",
        "name": "Sales",
        "external": False,
        "apps": [{"id": "app_3eR5tY7uI9oP1aS2", "slug": "leads", "name": "Leads", "scopes": ["leads:read"]}],
    },
)
_FIELDS: Schema = {
    "type": "object",
    "description": "As the app’s JSON Schema says.",
    "additionalProperties": True,  # the default; makers of clients take an object without it for an empty one
    "maxProperties": MAX_MEMBERS,
}
RECORD = Shape(
    "Record",
    an_object(id=public_id_of("rec"), fields=_FIELDS, createdAt=MOMENT, updatedAt=MOMENT),
    {
        "id": "rec_5tG7hJ9kL1qW3eR4",
        "fields": {"title": "Count the chairs"},
        "createdAt": "2025-11-12T13:05:00.000Z",
        "updatedAt": "2025-11-12T13:05:00.000Z",
    },
)
FIELDS = Body(
    {**an_object(fields=_FIELDS), "additionalProperties": False},
    f"At most {JSON_LIMIT:,} bytes of JSON, {MAX_DEPTH} levels deep, {MAX_ITEMS} items in a list, {MAX_MEMBERS:,} "
    "members in an object. Whole numbers lie within ±(2⁵³−1); texts hold no U+0000 and no lone surrogates; no member "
    "is named twice.",
    {"fields": {"title": "Count the chairs"}},
)
OVERLAP = Body(
    {
        "type": "object",
        "properties": {
            "overlap": {
                "type": "integer",
                "minimum": 0,
                "maximum": 7 * 86_400,
                "default": 86_400,
                "description": "For how many seconds the old key goes on, at most until its own expiry.",
            }
        },
        "required": [],
        "additionalProperties": False,
    },
    "The body may be left out.",
    {"overlap": 3600},
    is_required=False,
)
ROTATED = Shape(
    "RotatedKey",
    an_object(
        id=public_id_of("key"),
        name=_NAME,
        key={**_NAME, "description": "The text of the new key."},
        hint=_NAME,
        environment=ENVIRONMENT,
        scopes=_SCOPES,
        expiresAt=or_null(MOMENT),
        replaces=public_id_of("key"),
        previousKeyEndsAt=MOMENT,
    ),
    {
        "id": "key_7mK5jH3gF1dS9aP8",
        "name": "CRM sync",
        "key": "sk_live_EXAMPLE…",
        "hint": "sk_live_…wxyz",
        "environment": "live",
        "scopes": ["leads:read", "tasks:write"],
        "expiresAt": "2026-02-10T13:05:00.000Z",
        "replaces": "key_2bN8vC6xZ1aS5dF3",
        "previousKeyEndsAt": "2025-11-12T14:05:00.000Z",
    },
)
TOKEN = Body(
    {
        "type": "object",
        "properties": {
            "token": {"type": "string", "minLength": 1, "description": "The key that came with a request."},
            "token_type_hint": {"type": "string", "description": "Let be."},
        },
        "required": ["token"],
    },
    "A form.",
    {"token": "sk_live_EXAMPLE…"},
    kind="application/x-www-form-urlencoded",
)
_ACTIVE = an_object(
    active={"const": True},
    scope={"type": "string", "description": "The scopes that work now, with spaces between them."},
    client_id=public_id_of("key"),
    sub=public_id_of("mem"),
    username=_NAME,
    token_type={"const": "Bearer"},
    iat={"type": "integer"},
    iss=_NAME,
    aud=_NAME,
    environment=ENVIRONMENT,
    workspace=public_id_of("ws"),
)
_EXP: Schema = {"type": "integer", "description": "When the key stops, where it expires or is being rotated out."}
INTROSPECTION: Schema = {
    "oneOf": [
        an_object(active={"const": False}),
        {**_ACTIVE, "properties": {**_ACTIVE["properties"], "exp": _EXP}},
    ]
}
OAUTH_ERROR: Schema = an_object(error=_NAME, error_description=_NAME)
