"""The audit log with its exports and its check, and the explanation of refused requests."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from flask import Blueprint, Response, g, make_response, redirect, request, stream_template, url_for

from portal.rules.credentials import KEY_SHAPED, is_like_an_end, last_four_of
from portal.rules.errors import Refusal, Unreadable
from portal.services import audit_views, explanations
from portal.services.audit_reading import UNREADABLE, ChainVerdict
from portal.services.audit_views import GROUPS, Filters, Page
from portal.services.explanations import Explanation
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.services.rate_limit import PER_MINUTE, PER_SECOND
from portal.store.models import ApiKey, AuditEvent, KeyState
from portal.web import refusals, sentences
from portal.web.display import zone_of
from portal.web.door import VERIFY
from portal.web.guards import actor, in_workspace, only, recently_proved, seat
from portal.web.http import answer, page_or_fragment, portal, public_id, reading, reading_much, transaction
from portal.web.keys import keyring

_log = logging.getLogger(__name__)

pages = Blueprint("oversight", __name__, url_prefix="/w/<slug:ws>")
_for_admins = only(attrgetter("is_admin"), "Only administrators export and check the audit log.")

_REQUEST_ID = re.compile(r"req_[0-9A-Za-z]{1,36}")
_CALLED = re.compile(r"key_[0-9A-Za-z]{1,31}|(?:[a-z][a-z0-9]{1,9}_(?:live|test)_)?(?:…|\.\.\.)?[0-9A-Za-z]{4}")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_NUMBER = re.compile(r"[1-9]\d{0,9}", re.ASCII)
_LAST_NUMBER = 2**31 - 1  # that both databases can compare an event's with
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
COLUMNS = (
    "number", "id", "at", "action", "outcome", "actor", "actor_id", "means", "address", "request_id",
    "target", "target_id", "details", "hash",
)  # fmt: skip


# --- The log --------------------------------------------------------------------------------------------------------


@pages.get("/audit")
@in_workspace
def audit() -> Response:
    """Show what was done, as far as one may see it: newest first, a page at a time."""
    if KEY_SHAPED.search(pasted := request.args.get("key", "")):  # its text goes no further, not into an address
        kept: dict[str, Any] = {name: request.args[name] for name in _NAMES if request.args.get(name)}
        kept["key"] = last_four_of(pasted)
        return make_response(redirect(url_for("oversight.audit", ws=seat().workspace.slug, **kept), 303))
    filters, odd = _filters()
    size = g.account.page_rows
    with reading_much() as session:
        page = audit_views.list_for(
            session, seat(), filters, size=size, before=_number("before"), after=_number("after")
        )
        names = audit_views.names_for(session, seat().workspace.id, page.events)
        people = audit_views.people_of(session, seat(), filters.person)
    return page_or_fragment(
        "audit/index.html",
        "audit/index.html",
        events=[sentences.tell(event, names) for event in page.events],
        people=[(member.public_id, member.name, member.is_api) for member in people],
        has_more_people=len(people) == audit_views.PEOPLE_OFFERED,
        groups=[(name, label) for name, (label, _) in GROUPS.items()],
        chosen={name: request.args.get(name, "")[:60] for name in _NAMES},
        odd=odd,
        is_narrowed=filters.is_narrowed,
        is_sign_ins=filters.is_sign_ins,
        whose=_whose(seat()),
        zone=g.account.time_zone,
        may_export=seat().is_admin,
        **_links(page),
    )


_NAMES = ("person", "what", "key", "env", "outcome", "from", "to", "of")


def _filters() -> tuple[Filters, str]:
    """Read the filters from the address; also what in them cannot be understood, which is then left out."""
    asked, odd = request.args, ""
    days = {}
    for name in ("from", "to"):
        text = asked.get(name, "")
        days[name] = _midnight(text, later=name == "to")
        if text and days[name] is None:
            odd = f"“{text[:20]}” is not a day. Write days as 2026-01-31."
    key = asked.get("key", "").strip()
    if key and not _CALLED.fullmatch(key):
        odd = "Enter a key’s id, or the last four characters of its hint."
        key = ""
    env, outcome = asked.get("env", ""), asked.get("outcome", "")
    filters = Filters(
        person=public_id(asked.get("person", "")),
        group=asked.get("what", "") if asked.get("what") in GROUPS else "",
        key=key,
        env=env if env in ("live", "test") else "",
        outcome=outcome if outcome in ("done", "refused") else "",
        since=days["from"],
        until=days["to"],
        is_sign_ins=asked.get("of") == "sign-ins",
    )
    return filters, odd


def _midnight(text: str, *, later: bool) -> datetime | None:
    """Read a day of the person's own zone: its beginning, or with `later` its end."""
    if not _DAY.fullmatch(text):
        return None
    try:
        day = datetime.fromisoformat(text).replace(tzinfo=zone_of(g.account.time_zone))
        return (day + timedelta(days=1) if later else day).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _number(name: str) -> int | None:
    text = request.args.get(name, "")
    return min(int(text), _LAST_NUMBER) if _NUMBER.fullmatch(text) else None


def _links(page: Page) -> dict[str, Any]:
    """Make the addresses of the pages beside this one, with the filters as they are."""
    kept: dict[str, Any] = {name: request.args[name][:60] for name in _NAMES if request.args.get(name)}
    ws, events = seat().workspace.slug, page.events
    newer = url_for("oversight.audit", ws=ws, **kept, after=events[0].seq) if events and page.has_newer else ""
    older = url_for("oversight.audit", ws=ws, **kept, before=events[-1].seq) if events and page.has_older else ""
    kept.pop("of", None)
    exports = [(form, url_for(f"oversight.export_{form}", ws=ws, **kept)) for form in ("csv", "jsonl")]
    return {"newer": newer, "older": older, "exports": exports}


def _whose(found: Seat) -> str:
    if found.is_admin:
        return "everything in this workspace"
    if found.is_lead:
        return "what you did, and what happened to you, to the API members you manage and to your and their keys"
    return "what you did, and what happened to you and your keys"


@pages.get("/audit/<public_id:eid>")
@in_workspace
def event(eid: str) -> Response:
    """Show one event with all that was written down."""
    with reading() as session:
        found = audit_views.get(session, seat(), eid)
        names = audit_views.names_for(session, seat().workspace.id, [found])
    told = sentences.tell(found, names)
    written = KEY_SHAPED.sub("…", json.dumps(found.details, indent=2, ensure_ascii=False, sort_keys=True))
    return page_or_fragment(
        "audit/event.html", "audit/event.html", event=told, row=found, written=written, seal=found.hash.hex()
    )


@pages.get("/audit/verify")
@in_workspace
@_for_admins
def verify() -> Response:
    """Check the chain of the workspace's log from its beginning, while the page goes out: others need not wait."""

    def check() -> ChainVerdict:
        with reading_much() as session:
            return audit_views.check(session, who)

    who = seat()
    return Response(stream_template("audit/verify.html", check=check), mimetype="text/html")


# --- Exports --------------------------------------------------------------------------------------------------------


@pages.get("/audit.csv")
@in_workspace
@_for_admins
@recently_proved("to export the audit log", "oversight.audit")
def export_csv() -> Response:
    """Send the log as a table, oldest first; no cell begins as a formula does."""
    return _export("csv", "text/csv", ",".join(COLUMNS) + "\r\n", _as_csv, _end_of_csv)


@pages.get("/audit.jsonl")
@in_workspace
@_for_admins
@recently_proved("to export the audit log", "oversight.audit")
def export_jsonl() -> Response:
    """Send the log as JSON Lines, oldest first."""
    return _export("jsonl", "application/jsonl", "", _as_jsonl, _end_of_jsonl)


def _export(
    form: str, mimetype: str, head: str, write: Callable[[list[AuditEvent]], str], end: Callable[[str], str]
) -> Response:
    filters, odd = _filters()
    if odd:
        raise Unreadable(odd)
    with transaction() as session:
        last = audit_views.begin_export(session, actor(), seat(), filters, form)
    slug, parts = seat().workspace.slug, audit_views.export(portal().database, seat(), filters, last)
    response = Response(_written(parts, head, write, end), mimetype=mimetype)
    day = actor().at.strftime("%Y-%m-%d")
    response.headers["Content-Disposition"] = f'attachment; filename="audit-{slug}-{day}.{form}"'
    return response


def _written(
    parts: Iterator[list[AuditEvent]], head: str, write: Callable[[list[AuditEvent]], str], end: Callable[[str], str]
) -> Iterator[bytes]:
    """Write what is read; a file that is not whole says so in its last line, for it began as an answer of 200."""
    last = unreadable = 0
    if head:
        yield head.encode()
    try:
        for events in parts:
            yield KEY_SHAPED.sub("…", write(events)).encode()  # here, where what cannot be written is told of
            last = events[-1].seq
            unreadable += sum(event.action == UNREADABLE for event in events)
    except Exception:
        _log.exception("an export of the audit log broke off after number %s", last)
        yield end(f"This export broke off after number {last}.").encode()
    else:
        if unreadable:
            _log.error("an export of the audit log holds events that cannot be read: %s", unreadable)
            yield end(
                f"Events that cannot be read and of which only the number and id stand here: {unreadable}."
            ).encode()


def exported(event: AuditEvent) -> dict[str, Any]:
    """Give an event as exports tell it; ids and names only, no number of the database."""
    is_known = event.action != UNREADABLE
    at = event.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z") if is_known else None
    values = (
        event.seq, event.public_id, at, event.action, event.outcome, event.actor_name, event.actor_id, event.means,
        event.address, event.request_id, event.target_name, event.target_id, event.details, event.hash.hex(),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _as_jsonl(events: list[AuditEvent]) -> str:
    return "".join(f"{json.dumps(exported(each), ensure_ascii=False, separators=(',', ':'))}\n" for each in events)


def _end_of_jsonl(why: str) -> str:
    return json.dumps({"incomplete": why}) + "\n"


def _as_csv(events: list[AuditEvent]) -> str:
    rows = io.StringIO()
    table = csv.writer(rows)
    for event in events:
        told = exported(event)
        told["details"] = json.dumps(told["details"], ensure_ascii=False, sort_keys=True)
        table.writerow([_cell(told[name]) for name in COLUMNS])
    return rows.getvalue()


def _end_of_csv(why: str) -> str:
    return f"INCOMPLETE: {why}{',' * (len(COLUMNS) - 1)}\r\n"


def _cell(value: Any) -> str:
    """Write a cell so that no spreadsheet takes it for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


# --- Explain --------------------------------------------------------------------------------------------------------


@pages.route("/explain", methods=["GET", "POST"])
@in_workspace
def explain() -> Response:
    """Explain a refused request by its id; list those of a key by its hint. What was pasted is not kept."""
    asked = answer("request_id") if request.method == "POST" else request.args.get("request_id", "")
    asked = asked.strip()[:200]
    if KEY_SHAPED.search(asked):  # it is known by its last four, and not shown again
        return _explained(last_four_of(asked), note="key")
    if not asked:
        missing = {"request_id": "Paste a request id, such as req_12ab, or the end of a key’s hint."}
        return _form(errors=missing if request.method == "POST" else None)
    return _explained(asked)


def _form(**context: Any) -> Response:
    status = 422 if context.get("errors") else 200
    usual: dict[str, Any] = {"asked": "", "found": None, "keys": [], "event": None, "note": "", "errors": None}
    return page_or_fragment("explain/index.html", "explain/index.html", status, **usual | context)


def _explained(asked: str, note: str = "") -> Response:
    found = _looked_up(asked, note)
    if found is None and _REQUEST_ID.search(asked):  # it may have been refused just now, and not be written down yet
        portal().usage.flush(patience=50)
        found = _looked_up(asked, note)
    if found is None:
        is_end = not note and is_like_an_end(asked)
        return _form(asked="" if note else asked, note="unknown", is_like_an_end=is_end)
    return found


def _looked_up(asked: str, note: str) -> Response | None:
    found = _REQUEST_ID.search(asked)
    with reading() as session:
        if found:
            explained = explanations.explain(session, actor(), seat(), keyring(), found[0])
            if explained:
                return _form(asked=found[0], found=_explanation(explained), note=note)
            event = audit_views.refused_in(session, seat(), found[0])
            if event:
                names = audit_views.names_for(session, seat().workspace.id, [event])
                return _form(asked=found[0], event=sentences.tell(event, names))
        elif _CALLED.fullmatch(asked):
            listed = explanations.recent(session, actor(), seat(), keyring(), asked)
            keys = [
                (key, [(each, refusals.words_of(each.reason, each.scope, each.path)) for each in alike])
                for key, alike in listed
            ]
            if keys:
                return _form(asked=asked, keys=keys, note=note)
    return None


def _explanation(found: Explanation) -> dict[str, Any]:
    """Put an explanation into words and links for whoever asks."""
    asked, key = found.request, found.key
    return {
        "request": refusals.view_of(asked),
        "request_id": asked.request_id,
        "reason": str(found.reason),
        "why": _why(found),
        "asked_by": "" if _is_elsewhere(found) else _ASKED_BY.get(asked.path, ""),
        "key": key,
        "held": found.held,
        "missing": [scope for scope in (view.text for view in key.scopes) if scope not in found.held],
        "is_mended": found.is_mended,
        "mends": [] if found.is_mended else list(_mends(found)),
    }


# Where it was not the program with the key that called us, by the path that was called.
_ASKED_BY = {
    VERIFY: "A reverse proxy asked about the key at /verify before it let the program’s request through. Which address "
    "the program called stands in the proxy’s own log.",
    refusals.INTROSPECTION: "A product of yours asked about the key at /oauth/introspect, and was told that it is not "
    "active. What it then answered the program stands in its own log.",
}


def _is_elsewhere(found: Explanation) -> bool:
    """Say whether the product of another workspace asked about the key, as one does that was sent it."""
    return found.reason is Refusal.OTHER_WORKSPACE and found.request.path == refusals.INTROSPECTION


def _why(found: Explanation) -> str:
    """Say exactly why, in one or two sentences."""
    if _is_elsewhere(found):
        return (
            "A product of another workspace asked about the key at /oauth/introspect, and was told that it is not "
            "active. So somebody sent it the key, by mistake or because it leaked."
        )
    scope, owner = found.request.required, found.owner.name
    words = {
        Refusal.MISSING_SCOPE: f"The key was good, but it does not have the scope {scope}. Scopes are chosen when a "
        "key is generated and never added.",
        Refusal.ACCESS_WITHDRAWN: f"The key has the scope {scope}, but {owner} did not have the access that it needs.",
        Refusal.DEACTIVATED: "The key was deactivated.",
        Refusal.EXPIRED: "The key had expired.",
        Refusal.REVOKED: "The key had been deleted.",
        Refusal.RETIRED: "The key had been replaced, and its overlap was over.",
        Refusal.OWNER_INACTIVE: f"{owner}, whom the key acts as, was deactivated or removed: keys stop with it.",
        Refusal.OTHER_WORKSPACE: "The header Account-Id named another workspace than the key’s own.",
        Refusal.RATE_LIMITED: "The key was good, but it was used more often than its limits allow. "
        f"{_limits(found.key)} A request that is refused so does not count.",
        Refusal.UNKNOWN: "The key’s text says another environment than what is stored of it.",
    }
    if found.reason is Refusal.MISSING_SCOPE and found.app is None:
        return f"The key does not have the scope {scope}, and no app of that name is in your or the key’s reach."
    return words[found.reason]


def _limits(key: KeyView) -> str:
    """Say how often a key may be used now, and which of the two limits an administrator set."""
    by = " (set for it by an administrator)"
    minute, second = key.rate_per_minute, key.rate_per_second
    return (
        f"It may now send {minute or PER_MINUTE:,} requests in any 60 seconds{by if minute else ''} and "
        f"{second or PER_SECOND:,} in any second{by if second else ''}."
    )


def _use(heir: ApiKey) -> dict[str, str]:
    url = url_for("keys.detail", ws=seat().workspace.slug, key_id=heir.public_id)
    return {"text": f"Let the program use the key that replaced it: {heir.name} (…{heir.last_four})", "url": url}


def _mends(found: Explanation) -> Iterator[dict[str, str]]:
    """Say what would mend it: a link where one can do it oneself, else whom to ask."""
    ws, key, scope = seat().workspace.slug, found.key, found.request.required
    here: dict[str, Any] = {"ws": ws, "key_id": key.id}
    new: dict[str, Any] = {"ws": ws, "from": key.id}
    similar = {"text": "Generate a similar key", "url": url_for("keys.new", **new)}
    may_hand_out = key.owner.kind != "human"
    if found.cause is Refusal.MISSING_SCOPE:
        if found.may_generate:
            yield {"text": f"Generate a key with {scope}", "url": url_for("keys.new", add=scope, **new)}
        elif found.app is None:
            ask = "" if seat().is_admin else " If it is not, ask an administrator for access."
            yield {"text": f"Look at the path that the program calls: the name of the app in it may be wrong.{ask}"}
        elif not may_hand_out and found.owner_may:
            yield {"text": f"{key.owner.name} can generate a key with {scope}."}
        elif found.may_help:
            yield _give_access(found)
            if may_hand_out:
                yield {"text": f"Then generate a key with {scope}", "url": url_for("keys.new", add=scope, **new)}
            else:
                yield {"text": f"Then {key.owner.name} can generate a key with {scope}."}
        else:
            yield {"text": f"{_ask(found)} for the access that {scope} needs, then generate a key with it."}
    elif found.cause is Refusal.ACCESS_WITHDRAWN and found.may_help:
        yield _give_access(found)
    elif found.cause is Refusal.ACCESS_WITHDRAWN:
        yield {"text": f"{_ask(found)} to give {key.owner.name} the access that {scope} needs."}
    elif found.cause is Refusal.DEACTIVATED:
        if found.heir:
            yield _use(found.heir)
        if key.may_reactivate:
            yield {"text": "Reactivate the key", "url": url_for("keys.reactivate", **here)}
        else:
            yield {"text": f"{key.owner.name} can reactivate it."}
    elif found.cause is Refusal.EXPIRED:
        if key.may_rotate:
            yield {"text": "Rotate the key", "url": url_for("keys.rotate", **here)}
        yield similar if may_hand_out else {"text": f"{key.owner.name} can rotate it."}
    elif found.cause is Refusal.REVOKED and found.heir:
        yield _use(found.heir)
    elif found.cause is Refusal.REVOKED:
        yield similar if may_hand_out else {"text": f"{key.owner.name} can generate another one."}
    elif found.cause is Refusal.OWNER_INACTIVE and found.owner.is_active and not key.owner.is_active:
        yield {"text": f"Whoever runs Latchkey can reactivate the account of {key.owner.name}."}
    elif found.cause is Refusal.OWNER_INACTIVE and found.may_help:
        page = "members.reactivate_api_member" if found.owner.is_api else "members.reactivate_person"
        yield {"text": f"Reactivate {found.owner.name}", "url": url_for(page, ws=ws, mid=found.owner.public_id)}
    elif found.cause is Refusal.OWNER_INACTIVE:
        yield {"text": f"{_ask(found)} to reactivate {key.owner.name}, or generate a key for another member."}
    elif found.cause is Refusal.OTHER_WORKSPACE and _is_elsewhere(found):
        leaked = url_for("keys.rotate", leaked=1, **here)
        if key.may_rotate:
            yield {"text": "Rotate the key, and let the old one stop at once", "url": leaked}
        yield {"text": "Find out which of your programs sends it there."}
    elif found.cause is Refusal.OTHER_WORKSPACE:
        yield {"text": f"Let the program send Account-Id: {seat().workspace.public_id}, or leave the header out."}
    elif found.cause is Refusal.RATE_LIMITED:
        yield {"text": "Let the program wait for as long as Retry-After says, and spread its requests."}
        if key.may_set_rate:
            yield {"text": "Change how many requests the key may send", "url": url_for("keys.rate", **here)}
        elif key.state is not KeyState.REVOKED:
            yield {"text": "An administrator can change how many requests the key may send."}
    else:
        yield {
            "text": "Delete this key, generate another one, and tell whoever runs Latchkey: its row was tampered with."
        }


def _give_access(found: Explanation) -> dict[str, str]:
    page = "members.api_member_access" if found.owner.is_api else "members.person_access"
    return {
        "text": f"Give {found.owner.name} the access that {found.request.required} needs",
        "url": url_for(page, ws=seat().workspace.slug, mid=found.owner.public_id),
    }


def _ask(found: Explanation) -> str:
    names: Sequence[str] = found.ask
    return f"Ask {' or '.join(names)}" if names else "Ask an administrator"
