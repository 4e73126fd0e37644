"""The reference of the REST API for people: made from the declared calls, and about one's own keys where known."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, g, make_response, redirect, render_template, request, url_for

from portal.rules.access import AccessLevel, Action, Scope
from portal.rules.credentials import BASE62, CHECKSUM_LENGTH, KeyFormat
from portal.rules.errors import KeyRefused, Refusal
from portal.services import key_lists, members
from portal.services.key_lists import Filters
from portal.services.key_views import KeyView
from portal.services.members import Seat, Shelf
from portal.services.rate_limit import PER_MINUTE, PER_SECOND
from portal.services.rotation import NOT_ITSELF
from portal.store.models import App
from portal.web import answers
from portal.web.declared import ACCOUNT_ID, IDEMPOTENCY_KEY, LIMIT, Declared, declared_calls, usual_refusals
from portal.web.display import level_text
from portal.web.fields import fields_of
from portal.web.guards import Audience, anybody, anybody_known
from portal.web.http import error_types, portal, reading
from portal.web.openapi import BASE, CODES, EXAMPLE_ID, ROTATES_ITSELF, WORDS, example_of, prefixed
from portal.web.samples import LANGUAGES, Request, example_fields, sample
from portal.web.shapes import FIELDS

pages = Blueprint("reference", __name__, url_prefix="/docs/api")

_COOKIE = "sample-language"
_YEAR = 365 * 24 * 60 * 60  # seconds
_NAMED = 5  # keys that are named before the rest are a number


_WHO = {
    Audience.KEY: "Any key can call this.",
    Audience.VERIFIER: "For verifiers, which administrators make in Workspace: its id and secret as HTTP Basic, or the "
    "secret as a Bearer token. Not for keys.",
}
_CREDENTIALS = {Audience.KEY: "API_KEY", Audience.VERIFIER: "VERIFIER_SECRET"}  # environment variables in samples


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads the reference, as far as that changes what it says."""

    seat: Seat
    shelves: list[Shelf]  # with something for them in it
    keys: list[KeyView]  # their own that work


@pages.get("")
@anybody_known
def index() -> Response:
    """Show how to call the API; `?lang=` chooses the samples' language for good, `?app=` the app they speak of."""
    reader = _reader()
    apps = [(shelf, app) for shelf in reader.shelves for app in shelf.apps] if reader else []
    wanted = request.args.get("app", "")
    chosen = next((pair for pair in apps if pair[1].slug == wanted), None) or (_usual(apps, reader) if reader else None)
    language = _language()
    calls: dict[str, list[Declared]] = {}
    for each in declared_calls(current_app):
        calls.setdefault(each.call.title, []).append(each)
    described = [_described(same, language, reader, chosen) for same in calls.values()]
    key_format = portal().settings.keyring.format
    return _page(
        "docs/index.html",
        language=language,
        languages=LANGUAGES,
        groups=[
            (group, [each for each in described if each["group"] == group])
            for group in dict.fromkeys(each["group"] for each in described)
        ],
        shelves=reader.shelves if reader else [],
        chosen=chosen[1] if chosen else None,
        is_elsewhere=chosen is not None and chosen[0].solution.is_external,
        scopes=_scopes(reader) if reader else [],
        base_url=portal().settings.base_url + BASE,
        pattern=key_format.pattern.pattern,
        prefix=key_format.prefix,
        scanner=scanner(key_format),
        errors=[(status, sorted(types), WORDS[status], CODES[status]) for status, types in _api_errors()],
        per_minute=PER_MINUTE,
        per_second=PER_SECOND,
        limit=LIMIT.schema,
        account_id=ACCOUNT_ID,
        rotation_sample=_ROTATION.format(base_url=portal().settings.base_url + BASE),
    )


@pages.get("/errors")
@anybody_known
def errors() -> Response:
    """Show every cause of a 401 and a 403, with what to do about it."""
    causes = [*(_cause(refusal) for refusal in _CAUSES), _rotation_not_allowed()]
    return _page(
        "docs/errors.html",
        refused=[(status, [each for each in causes if each["status"] == status]) for status in (401, 403)],
    )


@pages.get("/scopes")
@anybody
def to_scopes() -> Response:
    """Lead to where the one page speaks of scopes."""
    return make_response(redirect(url_for("reference.index", _anchor="scopes"), 302))


@pages.get("/<slug:app>")
@anybody
def of_app(app: str) -> Response:
    """Lead to the page as it speaks of an app."""
    return make_response(redirect(url_for("reference.index", app=app), 302))


_ROTATION = """\
import os
from pathlib import Path

import requests

STORE = Path("api-key.txt")  # or your secret manager
old = STORE.read_text().strip()

reply = requests.post(
    "{base_url}/me/rotate",
    headers={{"Authorization": f"Bearer {{old}}"}},
    json={{"overlap": 3600}},
    timeout=10,
)
if not reply.ok:
    raise SystemExit(f"{{reply.status_code}} {{reply.text}}")

spare = STORE.with_suffix(".new")
spare.touch(mode=0o600)
spare.write_text(reply.json()["data"]["key"])
os.replace(spare, STORE)  # all of it or nothing"""


def _usual(apps: list[tuple[Shelf, App]], reader: Reader) -> tuple[Shelf, App] | None:
    """Choose the app to speak of: the first whose records are kept here, that one's keys can write, or at least read.

    Without such a key it is the first that one could generate a key for, to write or at least to read.
    """
    able = {scope.text for key in reader.keys for scope in key.scopes if scope.effective}

    def rank(pair: tuple[Shelf, App]) -> tuple[bool, ...]:
        shelf, app = pair
        scopes = [str(Scope(app.slug, action)) for action in (Action.WRITE, Action.READ)]
        actions = shelf.level.actions
        return (shelf.solution.is_external, *(scope not in able for scope in scopes), Action.WRITE not in actions)

    return min(apps, key=rank, default=None)


def _page(template: str, **context: Any) -> Response:
    response = make_response(render_template(template, **context))
    if request.args.get("lang") in LANGUAGES:
        is_https = portal().settings.is_https
        response.set_cookie(
            _COOKIE, request.args["lang"], max_age=_YEAR, path="/docs", secure=is_https, httponly=True, samesite="Lax"
        )
    return response


def _language() -> str:
    asked = (request.args.get("lang"), request.cookies.get(_COOKIE))
    return next((each for each in asked if each in LANGUAGES), "curl")


def _reader() -> Reader | None:
    seat: Seat | None = g.get("seat")
    if seat is None:
        return None
    with reading() as session:
        shelves = [each for each in members.shelves_for(session, seat) if each.level is not AccessLevel.NONE]
        mine = Filters(owner="me", state="active", sort="name")
        found = key_lists.list_for(session, g.actor, seat, portal().settings.keyring, mine, 1, size=100)
    return Reader(seat, shelves, found.rows)


def _described(
    same: list[Declared], language: str, reader: Reader | None, chosen: tuple[Shelf, App] | None
) -> dict[str, Any]:
    """Lay out what the page says of one call; `same` has it once for each method that does it."""
    declared = same[0]
    call = declared.call
    fields = example_fields(chosen[1].schema) if chosen else None
    slug = chosen[1].slug if chosen else None
    scope = declared.scope.format(app=slug) if declared.scope and slug else declared.scope
    found = []
    for answer in call.answers:
        example = example_of(answer)
        if example and fields and answer.data and answer.data.name == "Record":
            record = {**answer.data.example, "fields": fields}
            example["data"] = [record] if answer.is_list else record
        written = prefixed(_written(example), portal().settings.keyring.format) if example else None
        found.append((answer, written))
    return {
        "id": declared.endpoint.replace("_", "-"),
        "group": call.group,
        "title": call.title,
        "method": " or ".join(each.method for each in same),
        "path": declared.path,
        "words": declared.words,
        "note": call.note,
        "needs": ROTATES_ITSELF if call.rotates_itself else _WHO.get(declared.audience, "No key is needed."),
        "scope": scope,
        "takes": (*declared.in_path, *call.takes),
        "body": call.body,
        "fields": fields_of(chosen[1].schema) if chosen and call.body is FIELDS else None,
        "answers": found,
        "refusals": usual_refusals(declared),
        "sample": sample(language, request_of(declared, portal().settings.base_url, slug, fields)),
        "mine": _mine(declared, reader, chosen) if reader and declared.needs_key else None,
    }


def request_of(declared: Declared, base_url: str, app: str | None = None, fields: Any = None) -> Request:
    """Make the request of a call's sample, about an app of one's own or the demo's."""
    values = {each.name: each.example or f"{{{each.name.upper()}}}" for each in declared.in_path}
    if app and "app" in values:
        values["app"] = app
    asked = [(each.name, each.example) for each in declared.call.takes if each.place == "query" and each.example]
    query = f"?{urlencode(asked)}" if asked else ""
    body = declared.call.body
    is_form = body is not None and body.kind != "application/json"
    sent = body.example if body and not is_form else None
    if fields is not None and isinstance(sent, dict) and "fields" in sent:
        sent = {"fields": fields}
    return Request(
        declared.method,
        base_url + declared.path.format(**values) + query,
        sent,
        credential=_CREDENTIALS.get(declared.audience),
        has_token=is_form,
        is_answered=declared.call.answers[0].has_body,
        is_repeatable=IDEMPOTENCY_KEY in declared.call.takes,
    )


def _mine(declared: Declared, reader: Reader, chosen: tuple[Shelf, App] | None) -> dict[str, Any]:
    """Say which of the reader's keys can make a call; where none can, how to get one, or why that cannot be."""
    slug = reader.seat.workspace.slug
    if declared.action is None:
        itself = declared.call.rotates_itself
        able = [key for key in reader.keys if key.self_rotate and key.may_rotate] if itself else reader.keys
        url = url_for("keys.new", ws=slug)
        return {"keys": able[:_NAMED], "more": len(able) - _NAMED, "url": url, "itself": itself}
    if chosen is None:
        return {"keys": [], "why": "You have no access to any app yet."}
    shelf, app = chosen
    scope = str(Scope(app.slug, declared.action))
    able = [key for key in reader.keys if any(each.text == scope and each.effective for each in key.scopes)]
    found: dict[str, Any] = {"keys": able[:_NAMED], "more": len(able) - _NAMED, "scope": scope}
    if declared.action in shelf.level.actions:
        found["url"] = url_for("keys.new", ws=slug, add=scope)
    else:
        found["why"] = f"You have {level_text(shelf.level)} access in {shelf.solution.name}."
    return found


def _scopes(reader: Reader) -> list[dict[str, Any]]:
    """List the scopes of a workspace that there are for the reader, and how many of their keys have each."""
    held = Counter(each.text for key in reader.keys for each in key.scopes if each.effective)
    return [
        {
            "text": str(scope),
            "action": scope.action,
            "app": app,
            "solution": shelf.solution.name,
            "may": scope.action in shelf.level.actions,
            "keys": held[str(scope)],
        }
        for shelf in reader.shelves
        for app in shelf.apps
        for scope in (Scope(app.slug, Action.READ), Scope(app.slug, Action.WRITE))
    ]


def scanner(key_format: KeyFormat) -> str:
    """Write the Python with which a scanner tells real keys from look-alikes."""
    return f'''import re
import zlib

KEY = re.compile(r"{key_format.pattern.pattern}")
DIGITS = "{BASE62}"

def is_key(text):
    body, _, checksum = text.rpartition("_")
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range({CHECKSUM_LENGTH}):
        number, digit = divmod(number, {len(BASE62)})
        digits = DIGITS[digit] + digits
    return KEY.fullmatch(text) is not None and digits == checksum'''


def _api_errors() -> list[tuple[int, set[str]]]:
    return [(status, types) for status, types in sorted(error_types().items()) if status in WORDS]


# --- Causes of 401 and 403 ------------------------------------------------------------------------------------------

_CAUSES: dict[Refusal, tuple[str, str, str]] = {
    Refusal.MISSING: (
        "No key was sent",
        "The request has no Authorization header of the scheme Bearer. Keys in the address, in a cookie or sent as "
        "Basic or Token do not count, and a header that holds anything but ASCII, such as the … of a hint or a curly "
        "quotation mark, arrives empty.",
        "Send the header `Authorization: Bearer <key>`. Some programs drop it when they follow a redirect.",
    ),
    Refusal.MALFORMED: (
        "What was sent is no key of ours",
        "Its length, its characters or its checksum are off: it is cut, has a space or a quote too many, or is a key "
        "for something else. Two Authorization headers, and a key in the address beside one, are refused the same way.",
        "Copy the whole key again: one word that passes the checksum. Often the environment variable is empty, or "
        "holds its quotes.",
    ),
    Refusal.UNKNOWN: (
        "Nobody knows the key",
        "It has our format and is not one of ours: it comes from another installation, or was made up.",
        "Check that the base URL and the key belong together, or generate a key here.",
    ),
    Refusal.DEACTIVATED: (
        "The key is deactivated",
        "Its owner, a team lead or an administrator stopped it. That can be undone.",
        "Ask who did it, on the key’s History page. Then reactivate it in API Settings.",
    ),
    Refusal.EXPIRED: (
        "The key has expired",
        "Its time is over. Answers told it before, in `X-Key-Expires-At` and `Sunset`.",
        "Rotate it, or generate another one. An expired key does not come back.",
    ),
    Refusal.REVOKED: (
        "The key was deleted",
        "Somebody deleted it for good.",
        "Generate another one, with the least scopes that the program needs.",
    ),
    Refusal.RETIRED: (
        "The key was replaced",
        "It was rotated, and the time for which both keys worked is over.",
        "Put the new key in wherever the old one still is. The old key’s page names the addresses that use it.",
    ),
    Refusal.OWNER_INACTIVE: (
        "The key’s member is deactivated",
        "The person or API member that the key acts as is no longer active in the workspace.",
        "A program that must go on needs a key of an API member. A team lead can make one.",
    ),
    Refusal.OTHER_WORKSPACE: (
        "The key belongs to another workspace",
        "The header Account-Id names a workspace that is not the key’s.",
        "Send the id that `GET /api/v1/me` tells, or leave the header out.",
    ),
    Refusal.MISSING_SCOPE: (
        "The key lacks the scope",
        "The key is good and was not given the scope that this call needs. `write` does not include `read`. An app "
        "that does not exist, or is another workspace’s, looks the same.",
        "Open `fixUrl`: it generates a replacement with the scopes of the old key and the missing one. Scopes cannot "
        "be added to a key.",
    ),
    Refusal.ACCESS_WITHDRAWN: (
        "The key’s member lost the access",
        "The key was given the scope, and its member may no longer use it: their role or access was changed. "
        "`heldScopes` lists what works now, so the scope is not there.",
        "Ask an administrator, or a lead of that solution, to give the access back. The key works again at once.",
    ),
}


def _cause(refusal: Refusal) -> dict[str, Any]:
    """Lay out what the page says of one cause."""
    title, cause, fix = _CAUSES[refusal]
    required = "tasks:write" if refusal.status == 403 else None
    refused = KeyRefused(
        refusal, key_id="key_2bN8vC6xZ1aS5dF3", required=required, held=["tasks:read"], workspace="acme"
    )
    made = answers.refuse(refused, EXAMPLE_ID, portal().settings.base_url)
    return _entry(str(refusal), refused.code, (title, cause, fix), made)


def _rotation_not_allowed() -> dict[str, Any]:
    words = (
        "The key may not rotate itself",
        "Only `POST /api/v1/me/rotate` is answered so: the key was not generated as one that may rotate itself, which "
        "cannot be changed later.",
        "Rotate it by hand in API Settings. For a program that stores its new keys by itself, generate a key with "
        "“The key may rotate itself over the API”.",
    )
    code = "rotation_not_allowed"
    return _entry(code, code, words, answers.forbid(EXAMPLE_ID, code, NOT_ITSELF))


def _entry(cause: str, code: str, words: tuple[str, str, str], made: answers.Answer) -> dict[str, Any]:
    title, why, fix = words
    return {
        "id": cause.replace("_", "-"),
        "status": made.status,
        "code": code,
        "title": title,
        "cause": why,
        "fix": fix,
        "headers": made.headers,
        "sample": _written(json.loads(made.body)),
    }


def _written(value: Any, room: int = 56) -> str:
    """Write JSON for reading: what fits in a line of so many characters stands in one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= room or not isinstance(value, dict | list):
        return line
    parts = [_written(each, room - 2) for each in (value.values() if isinstance(value, dict) else value)]
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {part}" for name, part in zip(value, parts, strict=True)]
    inner = ",\n".join(parts).replace("\n", "\n  ")
    return f"{{\n  {inner}\n}}" if isinstance(value, dict) else f"[\n  {inner}\n]"
