"""What a call of the REST API takes and answers, declared above the view that does it.

The readers of requests and the document (`openapi`) use these same objects, so that neither can say what the other
does not. Who may call, and with which scope, is read off the view's guard; what every call may be answered besides
follows from what it takes (`refusals_of`).
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from portal.rules.access import SLUG, Action
from portal.rules.errors import (
    Invalid,
    PortalError,
    PreconditionFailed,
    TooLarge,
    Unavailable,
    Unreadable,
    UnsupportedType,
)
from portal.web.door import MAX_SCOPES, VERIFY
from portal.web.guards import Audience, View, audience_of
from portal.web.http import PUBLIC_ID, status_of

Schema = dict[str, Any]  # JSON Schema 2020-12

APP_NAME = "[0-9A-Za-z._~-]{1,64}"  # what an integration takes for an app's name: any that is safe to repeat
_ETAG = r'(?:W/)?"[^",]*"'
_PLACE = re.compile(r"<(?:\w+:)?(\w+)>")


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a call takes beside its body; `place` is query, header or path. Readers obey the schema's limits."""

    name: str
    place: str
    schema: Schema
    words: str
    example: str | None = None  # for samples

    def fits(self, text: str) -> bool:
        """Say whether a text is what the schema's pattern asks for."""
        return re.fullmatch(self.schema["pattern"], text) is not None


@dataclass(frozen=True, slots=True)
class Shape:
    """Something that answers hold; it has a name in the document."""

    name: str
    schema: Schema
    example: Any


@dataclass(frozen=True, slots=True)
class Body:
    """What a call sends: a JSON object, or a form."""

    schema: Schema
    words: str
    example: Any
    is_required: bool = True
    kind: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call that succeeds is answered. `data` stands in the usual envelope; `whole` is all of the body."""

    status: int
    words: str
    data: Shape | None = None
    is_list: bool = False
    whole: Schema | None = None
    headers: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()  # headers that only some answers carry

    @property
    def has_body(self) -> bool:
        """Whether there is anything but headers."""
        return self.data is not None or self.whole is not None


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as its view declares it; `refuses` is what it may raise beyond what follows from what it takes.

    `rotates_itself` says that only keys that may rotate themselves can make it, `note` what else callers should know.
    """

    title: str
    group: str
    answers: tuple[Answer, ...]
    takes: tuple[Parameter, ...] = ()
    body: Body | None = None
    refuses: tuple[type[PortalError], ...] = ()
    note: str = ""
    rotates_itself: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """A call with what its route and guard say of it."""

    call: Call
    endpoint: str  # its name in the document and in links
    method: str
    path: str  # as {app}
    words: str  # the first paragraph of the view's docstring
    audience: Audience
    action: Action | None
    in_path: tuple[Parameter, ...] = field(default=())

    @property
    def scope(self) -> str | None:
        """The scope that the call needs, such as `{app}:read`; None where any key will do, or none is needed."""
        return f"{{app}}:{self.action}" if self.action else None

    @property
    def needs_key(self) -> bool:
        """Whether the call is for those with a key."""
        return self.audience is Audience.KEY

    @property
    def takes(self) -> tuple[Parameter, ...]:
        """Everything that the call takes beside its body."""
        usual = (ACCOUNT_ID,) if self.needs_key else ()
        return (*self.in_path, *self.call.takes, *usual)


def declares(
    title: str,
    group: str,
    *answers: Answer,
    takes: tuple[Parameter, ...] = (),
    body: Body | None = None,
    refuses: tuple[type[PortalError], ...] = (),
    note: str = "",
    rotates_itself: bool = False,
) -> Callable[[View], View]:
    """Declare what a view of the REST API takes and answers. Stands above its guard."""

    def decorate(view: View) -> View:
        view.call = Call(title, group, answers, takes, body, refuses, note, rotates_itself)  # type: ignore[attr-defined]
        return view

    return decorate


def declared_calls(app: Flask) -> list[Declared]:
    """List the declared calls of an application, in the order in which their routes were made."""
    found = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        call: Call | None = getattr(view, "call", None)
        if call is None:
            continue
        words = " ".join((inspect.getdoc(view) or "").partition("\n\n")[0].split())
        audience = audience_of(app, rule.endpoint)
        if audience is None:
            raise TypeError(f"{rule.endpoint} declares a call and has no guard")
        in_path = tuple(PATHS[name] for name in _PLACE.findall(rule.rule))
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            name = rule.endpoint.rpartition(".")[2]
            action: Action | None = getattr(view, "action", None)
            path = _PLACE.sub(r"{\1}", rule.rule)
            found.append(Declared(call, name, method, path, words, audience, action, in_path))
    for name, method in (("verify", "GET"), ("verify_by_post", "POST")):
        found.append(Declared(VERIFICATION, name, method, VERIFY, _VERIFY_WORDS, Audience.KEY, None))
    return found


def refusals_of(declared: Declared) -> list[int]:
    """List the statuses with which a call may be refused."""
    call = declared.call
    kinds: set[type[PortalError]] = {Unreadable, Unavailable, *call.refuses}
    if call.body:
        kinds |= {TooLarge, UnsupportedType, Invalid} if call.body.kind == "application/json" else {TooLarge}
    if IF_MATCH in call.takes:
        kinds.add(PreconditionFailed)
    statuses = {status_of(kind) for kind in kinds} | {500}
    if declared.needs_key:
        statuses |= {401, 429}
    if declared.action:
        statuses.add(403)
    return sorted(statuses)


def usual_refusals(declared: Declared) -> list[int]:
    """List the statuses with which a call is refused as all others are; not those that it declares itself."""
    own = {answer.status for answer in declared.call.answers}
    return [status for status in refusals_of(declared) if status not in own]


# --- What schemas are made of ---------------------------------------------------------------------------------------

MOMENT: Schema = {"type": "string", "format": "date-time"}
TEXT: Schema = {"type": "string"}
ENVIRONMENT: Schema = {"enum": ["live", "test"], "description": "`test` is the sandbox."}
SCOPE: Schema = {"type": "string", "pattern": rf"^{SLUG.pattern}:(?:read|write)$"}


def public_id_of(kind: str) -> Schema:
    """Describe the ids of one kind of thing, such as `rec`."""
    return {"type": "string", "pattern": f"^{kind}_[0-9A-Za-z]{{1,31}}$"}


def an_object(**members: Schema) -> Schema:
    """Describe an object that has these members; a later version may add others."""
    return {"type": "object", "properties": members, "required": list(members)}


def a_list(of: Schema) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": of}


def or_null(schema: Schema) -> Schema:
    """Describe what may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def error_of(status: int) -> Schema:
    """Point at the description of the body with which a status refuses."""
    return {"$ref": f"#/components/schemas/Error{status}"}


# --- What several calls take ----------------------------------------------------------------------------------------

LIMIT = Parameter(
    "limit", "query", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "How many to give.", "5"
)
OFFSET = Parameter(
    "offset",
    "query",
    {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0},
    "How many to skip first. Past the end there is nothing: an empty list.",
)
IF_MATCH = Parameter(
    "If-Match",
    "header",
    {"type": "string", "pattern": rf"^(?:\*|{_ETAG}(?:[ \t]*,[ \t]*{_ETAG})*)$"},
    "Act only on the version with this `ETag`, or one of several; `*` is any. Without it the last one to write wins.",
)
IF_NONE_MATCH = Parameter("If-None-Match", "header", TEXT, "Answer 304 where the document still has this `ETag`.")
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    # Visible ASCII but the comma, by which repeated headers are joined.
    {"type": "string", "pattern": r"^[!-+\--~]{1,255}$"},
    "A name of your own for this request, such as a UUID: when you send the request again, send the same one.",
)
ACCOUNT_ID = Parameter(
    "Account-Id",
    "header",
    TEXT,
    "The id of the workspace that you mean (`ws_…`). A key of another workspace is then refused with 401.",
)
PATHS = {
    "app": Parameter(
        "app",
        "path",
        {"type": "string", "pattern": f"^{APP_NAME}$"},
        "An app’s name in addresses and scopes, such as `tasks`.",
        "tasks",
    ),
    "record_id": Parameter(
        "record_id",
        "path",
        {"type": "string", "pattern": f"^{PUBLIC_ID}$"},
        "A record’s id, such as `rec_8fK2…`. What cannot be one is 404.",
    ),
}

# --- What is answered before there is a view ------------------------------------------------------------------------

_VERIFY_WORDS = (
    "Ask whose key came with a request, before a product of your own answers it. A reverse proxy asks with the "
    "request’s Authorization header (nginx auth_request, Caddy and Traefik forward_auth); the answer’s headers say who "
    "it is, and `X-Auth-Environment` must decide between live and sandbox data. A 401 or 403 says its code and its "
    "`fixUrl` in `X-Error-Code` and `X-Fix-Url` too, for proxies that pass no body on. It counts as a request of the "
    "key."
)
VERIFICATION = Call(
    "Verify a key",
    "For services of your own",
    (
        Answer(
            200,
            "The key is good, and has every scope asked for.",
            headers=("X-Auth-Workspace", "X-Auth-Member", "X-Auth-Key", "X-Auth-Scopes", "X-Auth-Environment"),
        ),
        Answer(
            401,
            "As everywhere, with the code in a header too.",
            whole=error_of(401),
            headers=("WWW-Authenticate", "X-Error-Code"),
        ),
        Answer(
            403,
            "As everywhere, with the code and the `fixUrl` in headers too.",
            whole=error_of(403),
            headers=("WWW-Authenticate", "X-Error-Code"),
            may_have=("X-Fix-Url",),
        ),
    ),
    takes=(
        Parameter(
            "scope",
            "query",
            a_list(SCOPE) | {"maxItems": MAX_SCOPES},
            "A scope that the key must have; can be given several times.",
            "tasks:read",
        ),
    ),
)
