"""The pages of one key: what it is, what it did, what was done with it; its name; its first request."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

from flask import Response, flash, make_response, redirect, render_template, request, url_for

from portal.rules.access import AccessLevel, AppAccess, Scope
from portal.rules.errors import Conflict, Forbidden, Invalid, Refusal
from portal.services import activity, audit_reading, drafts, key_views, keys, rotation
from portal.services.activity import Denial
from portal.services.audit import Event
from portal.services.key_views import KeyView
from portal.services.members import Shelf
from portal.services.rate_limit import PER_MINUTE, PER_SECOND
from portal.store.database import Session
from portal.store.models import ApiKey, AuditEvent, FirstRequest, RefusedRequest
from portal.web import refusals
from portal.web.display import absolute, thousands
from portal.web.generate import first_call
from portal.web.guards import View, actor, in_workspace, recently_proved, seat
from portal.web.http import (
    answer,
    page_or_fragment,
    portal,
    reading,
    reading_much,
    sparing_use,
    transaction,
    without_keys,
)
from portal.web.keys import keyring, look, pages, row_changed, with_impact

_RANGES = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}
_UNUSED_SCOPES = timedelta(days=60)
_SENTENCES: dict[str, tuple[str, str]] = {  # what was done, and how trying it is called
    Event.KEY_GENERATED: ("generated this key", "generate this key"),
    Event.KEY_ROTATED: ("rotated this key", "rotate this key"),
    Event.KEY_RETIRED: ("retired this key", "retire this key"),
    Event.KEY_OVERLAP_EXTENDED: ("let this key work longer", "let this key work longer"),
    Event.KEY_DEACTIVATED: ("deactivated this key", "deactivate this key"),
    Event.KEY_REACTIVATED: ("reactivated this key", "reactivate this key"),
    Event.KEY_DELETED: ("deleted this key", "delete this key"),
    Event.KEY_EDITED: ("changed its name or note", "change its name or note"),
    Event.KEY_RATE_CHANGED: ("changed how many requests it may send", "change how many requests it may send"),
    Event.KEY_IDENTIFIED: ("looked up which key this is", "look up which key this is"),
    Event.KEY_REVIEWED: ("reviewed this key: looks fine", "mark this key as fine"),
}


@pages.get("/keys/<public_id:key_id>")
@in_workspace
def detail(key_id: str) -> Response:
    """Show what a key is: facts, scopes with their last use, and the other key of a rotation."""
    now = actor().at
    with reading() as session:
        key, row = key_views.get_both(session, actor(), seat(), keyring(), key_id)
        by_program = audit_reading.done_with_key(session, key_id)
        by = "itself" if Event.KEY_DELETED in by_program else key_views.stopped_by(session, row)
    pair, first = _NO_PAIR, _first(key, None, None)
    exercised: Mapping[str, datetime] | None = None  # where it cannot be read, the page says so
    with sparing_use(), reading() as session:
        key = key_views.with_refusals(session, key, row)
        first = _first(key, activity.first_request(session, row), activity.last_refusal(session, row))
        pair = _pair(session, key, row)
        exercised = activity.last_exercised(session, row)
    used = exercised or {}
    stale = [scope for scope in key.scopes if now - (used.get(scope.text) or key.created_at) > _UNUSED_SCOPES]
    return page_or_fragment(
        "keys/detail.html",
        "keys/detail.html",
        key=key,
        scopes_table=[(scope, used.get(scope.text)) for scope in key.scopes],
        use_is_unread=exercised is None,
        unused_scopes=0 if exercised is None else len(stale),
        base_url=portal().settings.base_url,
        call=first_call(key),
        first=first,
        poll=None,
        by=by,
        rotated_itself=Event.KEY_GENERATED in by_program,
        usual=(PER_MINUTE, PER_SECOND),
        **pair,
    )


_NO_PAIR: dict[str, Any] = {"old": None, "new": None, "verdict": None, "aftermath": None}


def _pair(session: Session, key: KeyView, row: ApiKey) -> dict[str, Any]:
    """Tell of a rotation that goes on, or whose old key is still called: both keys, who uses the old one, what to do.

    A key in the middle of a chain is told of with its successor: the key before it has ended.
    """
    for other_id, is_old in ((key.successor_id, True), (key.predecessor_id, False)):
        if not other_id:
            continue
        other, other_row = key_views.get_both(session, actor(), seat(), keyring(), other_id)
        old, new, old_row = (key, other, row) if is_old else (other, key, other_row)
        verdict = aftermath = None
        if old.is_retiring and (successor := rotation.successor_of(session, old_row)):
            verdict = rotation.verdict_on(session, old_row, successor, actor().at)
        else:
            aftermath = rotation.aftermath_of(session, old_row, actor().at)
        if verdict or aftermath:
            return {"old": old, "new": new, "verdict": verdict, "aftermath": aftermath}
    return _NO_PAIR


@pages.get("/keys/<public_id:key_id>/requests")
@in_workspace
def requests(key_id: str) -> Response:
    """Show what a key did: accepted and refused requests over time, denials with their reason, and callers."""
    span = request.args.get("range", "7d")
    span = span if span in _RANGES else "7d"
    now = actor().at
    with reading() as session:
        key, row = key_views.get_both(session, actor(), seat(), keyring(), key_id)
        planned = drafts.plan(session, actor(), drafts.Draft(owner=key.owner.id))
        access, _ = drafts.access_of(session, [row.member_id])[row.member_id]
    mine = {app.slug: shelf for shelf in planned.shelves if shelf.level is not AccessLevel.NONE for app in shelf.apps}

    def told(denial: Denial) -> dict[str, Any]:
        scope = Scope.parse(denial.scope) if denial.reason == Refusal.MISSING_SCOPE else None
        may = scope in planned.grantable
        return _denial(denial, may, _ask(key, scope, mine.get(scope.app), access) if scope and not may else None)

    used: dict[str, Any] = {  # where it cannot be read, the page says so, and that the key still works
        "buckets": None,
        "total": 0,
        "refused": 0,
        "denials": None,
        "callers": [],
        "first": {"state": "waiting"},
    }
    with sparing_use(), reading_much() as session:
        key = key_views.with_refusals(session, key, row)
        bars = activity.buckets(session, row, now, _RANGES[span])
        used = {
            "buckets": [(_label(bar.start, span), bar.start, bar.accepted, bar.refused) for bar in bars],
            "total": sum(bar.accepted for bar in bars),
            "refused": sum(bar.refused for bar in bars),
            "denials": [told(denial) for denial in activity.denials(session, row, now)],
            "callers": activity.callers_of(session, row, now),
            "first": _first(key, activity.first_request(session, row), activity.last_refusal(session, row)),
        }
    return page_or_fragment(
        "keys/requests.html",
        "keys/_requests.html",
        key=key,
        range=span,
        base_url=portal().settings.base_url,
        call=first_call(key),
        poll=None,
        **used,
    )


def _label(start: datetime, span: str) -> str:
    day, _, time = absolute(start).partition(", ")
    return time if span == "24h" else day.rpartition(" ")[0]


def _ask(key: KeyView, scope: Scope, shelf: Shelf | None, access: AppAccess) -> str:
    """Say who can do something about a scope that a key lacks and that one cannot give it."""
    if shelf is None:
        return f"Check the name of the app in the path{'' if seat().is_admin else ', or ask an administrator for it'}."
    owner, where = key.owner, f"{scope.action} in {shelf.solution.name}"
    if not owner.is_active:
        return f"{owner.name} is not active here. Generate a key for another member."
    if owner.kind == "human" and scope.action in access.get(scope.app, AccessLevel.NONE).actions:
        return f"{owner.name} can generate a key with {scope}."
    if seat().is_admin or (owner.kind == "api" and shelf.level is AccessLevel.MANAGE):
        return f"Give {owner.name} {where} first."
    return f"Ask an administrator for {where}."


def _denial(denial: Denial, may_generate: bool, ask: str | None) -> dict[str, Any]:
    return {
        "at": denial.at,
        "method": denial.method,
        "path": denial.path,
        "status": denial.status,
        "reason": denial.reason,
        "words": refusals.words_of(denial.reason, denial.scope, denial.path),
        "address": denial.address,
        "client": denial.client,
        "count": denial.count,
        "scope": denial.scope,
        "request_id": denial.request_id,
        "may_generate": may_generate,
        "ask": ask,
    }


@pages.get("/keys/<public_id:key_id>/history")
@in_workspace
def history(key_id: str) -> Response:
    """Show what was done with a key, newest first."""
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
        events = audit_reading.history_of(session, seat().workspace.id, key_id)
    return page_or_fragment("keys/history.html", "keys/history.html", key=key, events=[_event(each) for each in events])


def _event(event: AuditEvent) -> dict[str, Any]:
    who = event.actor_name
    what, attempt = _SENTENCES.get(event.action, (event.action.replace("_", " "),) * 2)
    if event.action == Event.KEY_REFUSED:
        who, what = "", f"Requests with this key were refused: {_why_refused(event.details)}"
    elif event.outcome == "refused":
        what = f"tried to {attempt}. Refused: {event.details.get('reason') or 'the answer does not match'}"
    return {"at": event.at, "who": who, "what": what, "address": event.address}


def _why_refused(details: Mapping[str, Any]) -> str:
    """Say why requests were refused that the log tells of together: as often at once, or so many more in an hour."""
    if "more" in details:
        return f"{refusals.told_of(details)}, {thousands(int(details['more']))} more in that hour"
    return refusals.told_of(details)


@pages.get("/keys/<public_id:key_id>/impact")
@in_workspace
def impact(key_id: str) -> Response:
    """Show what ending a key would stop."""
    return page_or_fragment("keys/impact.html", "keys/_impact.html", **with_impact(key_id))


@pages.get("/keys/<public_id:key_id>/first-request")
@in_workspace
def first_request(key_id: str) -> Response:
    """Tell of the first request with a new key; the fragment asks again by itself, ever slower, for 15 minutes.

    These are over by our clock, or by that of the page, which says how many seconds it has `waited`.
    """
    with reading() as session:
        key, row = key_views.get_both(session, actor(), seat(), keyring(), key_id)
        first = _first(key, activity.first_request(session, row), activity.last_refusal(session, row))
    age = max((actor().at - key.created_at).total_seconds(), request.args.get("waited", 0, int))
    poll = None
    if first["state"] != "accepted":
        if age > 15 * 60:
            first = first if first["state"] == "refused" else {"state": "stopped"}
        else:
            poll = 3 if age < 60 else 10 if age < 5 * 60 else 30
    return page_or_fragment("keys/first.html", "keys/_first.html", key=key, first=first, poll=poll)


def _first(key: KeyView, first: FirstRequest | None, refused: RefusedRequest | None) -> dict[str, Any]:
    if first:
        return {
            "state": "accepted",
            "environment": key.environment,
            "method": first.method,
            "path": first.path,
            "status": first.status,
            "at": first.at,
            "address": first.address,
        }
    if refused:
        return {
            "state": "refused",
            "environment": key.environment,
            "method": refused.method,
            "path": refused.path,
            "at": refused.at,
            "address": refused.address,
            "reason_words": refusals.words_of(refused.reason, refused.required, refused.path),
            "scope": refused.required,
        }
    return {"state": "waiting"}


@pages.route("/keys/<public_id:key_id>/edit", methods=["GET", "POST"])
@in_workspace
def edit(key_id: str) -> Response:
    """Change a key's name and note."""
    key = look(key_id)
    if request.method != "POST":
        if not key.may_edit:
            raise Forbidden(keys.ONLY_ITS_OWNER_RENAMES)
        return _edit_form(key, key.name, key.note)
    name, note = answer("name"), answer("note")
    was = (answer("was_name", key.name), answer("was_note", key.note))
    try:
        with transaction() as session:
            key = keys.edit(session, actor(), keyring(), key_id, name=name, note=note, was=was)
    except Invalid as error:
        return _edit_form(key, name, note, error.problems)
    except Conflict as error:
        if error.code != keys.KEY_EDITED:
            raise
        key = look(key_id)
        return _edit_form(key, name, note, {"name" if key.name != was[0] else "note": error.message}, 409)
    return row_changed(key, f"“{key.name}” is saved.", focus=f"key-{key.id}-edit")


def _with_key_to_limit(view: View) -> View:
    """Hand the view its key; Forbidden for those who do not set rates, before they are asked for the password."""

    @wraps(view)
    def guarded(key_id: str) -> Any:
        key = look(key_id)
        if not key.may_set_rate:
            raise Forbidden(keys.ADMINS_SET_RATES)
        return view(key=key)

    return guarded


@pages.route("/keys/<public_id:key_id>/rate", methods=["GET", "POST"])
@in_workspace
@_with_key_to_limit
@recently_proved("to change how many requests a key may send")
def rate(key: KeyView) -> Response:
    """Set how many requests a key may send, or let it have the usual rates again; administrators only."""
    stands = tuple("" if each is None else str(each) for each in (key.rate_per_minute, key.rate_per_second))
    if request.method != "POST":  # HEAD is a GET
        return _rate_form(key, stands, stands)
    wanted = answer("rate_per_minute"), answer("rate_per_second")
    was = answer("was_minute", stands[0]), answer("was_second", stands[1])
    try:
        with transaction() as session:
            key = keys.set_rate(session, actor(), keyring(), key.id, *wanted, was=was)
    except Invalid as error:
        return _rate_form(key, wanted, was, error.problems)
    flash(f"“{key.name}” may send as many requests as you set, from the next one on.")
    return make_response(redirect(url_for("keys.detail", ws=seat().workspace.slug, key_id=key.id), 303))


def _rate_form(key: KeyView, wanted: Sequence[str], was: Sequence[str], errors: Any = None) -> Response:
    context = {
        "key": key,
        "wanted": [without_keys(each)[:20] for each in wanted],
        "was": [without_keys(each)[:20] for each in was],
        "usual": (PER_MINUTE, PER_SECOND),
        "most": (keys.MOST_PER_MINUTE, keys.MOST_PER_SECOND),
        "errors": errors or {},
    }
    return make_response(render_template("keys/rate.html", **context), 422 if errors else 200)


def _edit_form(key: KeyView, name: str, note: str, errors: Any = None, status: int = 422) -> Response:
    context = {"key": key, "name": without_keys(name)[:200], "note": without_keys(note)[:400], "errors": errors or {}}
    return page_or_fragment("keys/edit.html", "keys/_edit.html", status if errors else 200, **context)
