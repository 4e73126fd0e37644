"""API Settings: the list of keys, finding one, and stopping, starting or deleting one in its row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlencode

from flask import Blueprint, Response, flash, make_response, redirect, render_template, request, url_for
from flask_login import current_user
from itsdangerous import BadSignature, Signer

from portal.rules.access import Action, Environment, Scope
from portal.rules.credentials import KEY_SHAPED, Keyring, is_like_an_end, last_four_in_part, last_four_of
from portal.rules.errors import Conflict, Forbidden, Invalid, NotFound, TooManyAttempts
from portal.rules.text import clean_line
from portal.services import activity, identify, key_lists, key_views, keys, members, policy
from portal.services.activity import DayBars
from portal.services.key_lists import Filters
from portal.services.key_views import KeyView
from portal.store.database import Session
from portal.store.models import ApiKey, KeyState
from portal.web import refusals
from portal.web.guards import actor, in_workspace, recently_proved, seat
from portal.web.http import (
    answer,
    fragment_or_redirect,
    in_words,
    is_fragment,
    is_from_dialog,
    on_portal_error,
    page_number,
    page_of_fragment,
    page_or_fragment,
    portal,
    public_id,
    reading,
    reading_much,
    sparing_use,
    too_many,
    transaction,
    without_keys,
)
from portal.web.templates import address

pages = Blueprint("keys", __name__, url_prefix="/w/<slug:ws>/api")


def keyring() -> Keyring:
    """Give the keyring of this portal."""
    return portal().settings.keyring


def list_url(**narrowed: str | int | None) -> str:
    """Give the address of the workspace's list, with its filters as far as they are not empty."""
    return _list_address(seat().workspace.slug, tuple(narrowed.items()))


@lru_cache(1024)  # a page has a dozen, and most pages the same
def _list_address(ws: str, narrowed: tuple[tuple[str, str | int | None], ...]) -> str:
    at, query = address("keys.index", ws=ws), urlencode([(name, value) for name, value in narrowed if value])
    return f"{at}?{query}" if query else at


# --- The list -------------------------------------------------------------------------------------------------------


@pages.get("")
@in_workspace
def settings() -> Response:
    """Lead the short address to the list."""
    return make_response(redirect(list_url(), 302))


@pages.get("/keys")
@in_workspace
def index() -> Response:
    """List keys: one's own, those of API members, or everybody's, as far as the member may see them."""
    if KEY_SHAPED.search(request.args.get("q", "")):
        return _search_for(request.args["q"], request.args)
    here = seat()
    filters = _filters()
    rows = current_user.account.page_rows
    with reading_much() as session:
        counts = key_lists.count_for(session, actor(), here, filters.owner)
        apps = members.apps_of(session, here)
        is_new = here.is_admin and not apps
        admins = [] if here.has_access else members.admin_names(session, here.workspace.id)
        owners = key_lists.owners_for(session, here, filters.owner) if here.is_lead else []
        page = key_lists.list_for(session, actor(), here, keyring(), filters, page_number(), rows, _days_of)
        elsewhere = 0
        if filters.env and not page.rows:
            elsewhere = key_lists.total_of(session, actor(), here, replace(filters, env=""))
    return page_or_fragment(
        "keys/index.html",
        "keys/_panel.html",
        rows=page.rows,
        use_is_unread=any(key.recent is None for key in page.rows),
        tab=filters.owner,
        tabs=_tabs(),
        owner_options=_owner_options(owners) if here.is_lead else (),
        filters=filters,
        reduced="reduced" in request.args,
        is_like_an_end="reduced" not in request.args and is_like_an_end(filters.q),
        cards=_cards(counts, filters.owner),
        scope_options=(("", "Any"), *((f"{app.slug}:{action}",) * 2 for app in apps for action in Action)),
        page=page.number,
        pages=page.count,
        total=page.total,
        first=page.first,
        last=page.last,
        list_url=list_url,
        old_rows=max(0, len(page.rows) - (page.last - page.first + 1)),
        may_generate=here.has_access and not is_new,
        is_new=is_new,
        admins=admins,
        elsewhere=elsewhere,
        is_lead=here.is_lead,
    )


def _days_of(session: Session, keys: Sequence[int], now: datetime) -> Mapping[int, DayBars]:
    """Read the last 14 days of keys; nothing where that cannot be read, as the keys must be stoppable all the same."""
    found: Mapping[int, DayBars] = {}
    with sparing_use():
        found = activity.recent_days(session, keys, now)
    return found


def _tabs() -> list[tuple[str, str]]:
    tabs = [("me", "My keys")]
    if seat().is_lead:
        tabs.append(("api", "API members’ keys"))
    if seat().is_admin:
        tabs.append(("all", "All keys"))
    return tabs


def _owner_options(owners: list[tuple[str, str, bool]]) -> tuple[tuple[str, str], ...]:
    return *_tabs(), *((owner, f"{name}, API member" if is_api else name) for owner, name, is_api in owners)


def _filters() -> Filters:
    """Read the list's filters from the address; what is none is no filter."""
    given = request.args
    env, state = given.get("env", ""), given.get("state", "")
    scope, sort = given.get("scope", ""), given.get("sort", "")
    return Filters(
        owner=_whose(given.get("owner", "me")),
        q=clean_line(given.get("q", "")[:100]) or "",
        env=env if env in list(Environment) else "",
        state=state if state in key_lists.STATES else "",
        scope=scope if Scope.parse(scope) else "",
        sort=sort if sort in key_lists.SORTS else "attention",
    )


def _whose(owner: str) -> str:
    return owner if owner in dict(_tabs()) or (seat().is_lead and public_id(owner)) else "me"


def _cards(counts: key_lists.Counts, owner: str) -> list[tuple[str, int, str]]:
    cards = (
        (f"Active, {counts.old:,} being rotated out" if counts.old else "Active", counts.active, "active"),
        ("Expiring within 14 days", counts.expiring, "expiring"),
        ("Unused for 30 days", counts.unused, "unused"),
        ("Deactivated or expired", counts.stopped, "stopped"),
    )
    return [(label, count, list_url(owner=owner, state=state)) for label, count, state in cards]


_KEPT = ("owner", "env", "state", "scope", "sort")  # what a search leaves as it was


@pages.post("/keys/search")
@in_workspace
def search() -> Response:
    """Turn a search into an address; a pasted key is cut to its last four characters first."""
    return _search_for(answer("q"), request.form)


def _search_for(q: str, kept: Mapping[str, str]) -> Response:
    values: dict[str, Any] = {
        name: kept[name] for name in _KEPT if kept.get(name) and not KEY_SHAPED.search(kept[name])
    }
    if KEY_SHAPED.search(q):
        values |= {"q": last_four_of(q), "reduced": "1"}
    else:
        values["q"] = clean_line(q[:100]) or ""
    return make_response(redirect(list_url(**values), 303))


@pages.route("/keys/identify", methods=["GET", "POST"], endpoint="identify")
@in_workspace
def find_out() -> Response:
    """Say which key a text is that somebody found in a log: to those who may see that key, and to nobody else."""
    context: dict[str, Any] = {"result": None, "key": None, "errors": {}}
    if request.method != "POST":  # HEAD is a GET
        return page_or_fragment("keys/identify.html", "keys/_identify.html", **context)
    try:
        with transaction() as session:
            key = identify.identify(session, actor(), seat(), keyring(), answer("text"))
        context |= {"result": "found" if key else "unknown", "key": key}
    except Invalid:
        text = answer("text").strip()
        last_four = last_four_in_part(text) or (text if len(text) == 4 and is_like_an_end(text) else "")
        context |= {"result": "part" if last_four else "malformed", "last_four": last_four}
        context |= {"is_like_an_end": is_like_an_end(text)}
    except TooManyAttempts as limit:
        context["errors"] = {"text": in_words(limit)}
        return too_many(page_or_fragment("keys/identify.html", "keys/_identify.html", **context), limit)
    return page_or_fragment("keys/identify.html", "keys/_identify.html", **context)


# --- Stopping and starting ------------------------------------------------------------------------------------------


def look(key_id: str) -> KeyView:
    """Give a key that the member may see; NotFound for any other, Conflict for one that has stopped for ever."""
    return _look_at_both(key_id)[0]


def _look_at_both(key_id: str) -> tuple[KeyView, ApiKey]:
    with reading() as session:
        key, row = key_views.get_both(session, actor(), seat(), keyring(), key_id)
    if key.state is KeyState.REVOKED:
        raise keys.gone(key)
    return key, row


def with_impact(key_id: str) -> dict[str, Any]:
    """Give a key, what ending it would stop, and what is `against` reactivating it then.

    None for the impact when usage cannot be read: treat it as in use.
    """
    key, row = _look_at_both(key_id)
    impact = None
    with sparing_use(), reading() as session:
        impact = activity.impact_of(session, row, actor().at)
    return {"key": key, "impact": impact, "against": policy.against(seat().workspace, row)}


@pages.route("/keys/<public_id:key_id>/deactivate", methods=["GET", "POST"])
@in_workspace
def deactivate(key_id: str) -> Response:
    """Stop a key at once. Never asks for the password: an emergency stop must be quick."""
    if request.method != "POST":  # HEAD is a GET
        return page_or_fragment("keys/deactivate.html", "keys/_deactivate.html", **with_impact(key_id))
    with transaction() as session:
        key = keys.deactivate(session, actor(), keyring(), key_id)
    told = f"“{key.name}” is deactivated. Requests are refused from now."
    return stopped(key, told, focus=f"key-{key.id}-reactivate")


@pages.route("/keys/<public_id:key_id>/reactivate", methods=["GET", "POST"])
@in_workspace
@recently_proved("to reactivate an API key")
def reactivate(key_id: str) -> Response:
    """Let a deactivated key work again."""
    if request.method != "POST":  # HEAD is a GET
        key, row = _look_at_both(key_id)
        if key.owner.kind == "human":
            raise Forbidden(keys.ONLY_ITS_OWNER)
        against = policy.against(seat().workspace, row)
        return page_or_fragment("keys/reactivate.html", "keys/_reactivate.html", key=key, against=against)
    with transaction() as session:
        key = keys.reactivate(session, actor(), keyring(), key_id)
    return row_changed(
        key, f"“{key.name}” is active again. Requests are accepted from now.", focus=f"key-{key.id}-deactivate"
    )


@pages.errorhandler(Conflict)
def _changed_meanwhile(conflict: Conflict) -> Response:
    """Tell what stands against a change; in the list with the row of its key as it is now."""
    key_id = (request.view_args or {}).get("key_id")
    if key_id is None or not is_fragment():
        return on_portal_error(conflict)
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
    action = "reactivate" if key.state is KeyState.DEACTIVATED else "deactivate"
    return row_changed(key, conflict.message, focus=f"key-{key.id}-{action}", refused=True)


def row_changed(
    key: KeyView, message: str, *, focus: str, receipt: dict[str, Any] | None = None, refused: bool = False
) -> Response:
    """Swap the key's row, with its `receipt` below it; or reload the list where the answer would land in the dialog.

    A browser without a list to do that in goes on to the key's page, where its forms stand.
    """
    in_dialog = is_from_dialog()
    cards = None
    if not in_dialog and is_fragment():
        shown = parse_qs((page_of_fragment() or "").partition("?")[2])
        owner = _whose(shown.get("owner", ["me"])[-1])
        with reading() as session:
            cards = _cards(key_lists.count_for(session, actor(), seat(), owner), owner)
            row = key_views.row_of(session, seat(), key.id)
            key = key_views.of(session, seat(), keyring(), [row], actor().at, days_of=_days_of)[0]
    return fragment_or_redirect(
        None if in_dialog else "keys/_rows.html",
        address("keys.detail", ws=seat().workspace.slug, key_id=key.id),
        message=message,
        focus=[focus, f"key-{key.id}-link", "keys-h"],
        close=in_dialog,
        reload=in_dialog,
        refused=refused,
        rows=[key],
        receipt=receipt,
        new_cards=cards,
    )


@pages.route("/keys/<public_id:key_id>/delete", methods=["GET", "POST"])
@in_workspace
def delete(key_id: str) -> Response:
    """Stop a key for ever. The form's `name` is asked for when the key is in use."""
    if request.method != "POST":  # HEAD is a GET
        context = with_impact(key_id) | {"error": None, "typed": "", "shown_at": _signed(actor().at, _idle(key_id))}
        return page_or_fragment("keys/delete.html", "keys/_delete.html", **context)
    typed, seen_idle_at = answer("name"), _moment(answer("idle"), _idle(key_id))
    try:
        with transaction() as session:
            key = keys.delete(session, actor(), keyring(), key_id, typed=typed, seen_idle_at=seen_idle_at)
    except Invalid as error:
        context = with_impact(key_id) | {"error": error.problems["name"], "typed": without_keys(typed)[:60]}
        return page_or_fragment("keys/delete.html", "keys/_delete.html", 422, **context)
    return stopped(key, f"“{key.name}” (…{key.last_four}) was deleted.")


# --- The receipt of a stop ------------------------------------------------------------------------------------------

_RECEIPT_LIFE = timedelta(minutes=1)
_RECEIPT_POLL = 2  # seconds


def stopped(key: KeyView, told: str, *, focus: str = "") -> Response:
    """Answer a stop with its receipt, which counts from here: the commit is behind us."""
    at = datetime.now(UTC)
    if not is_fragment():
        flash(told)
        url = url_for("keys.receipt", ws=seat().workspace.slug, key_id=key.id, at=_signed(at, f"receipt {key.id}"))
        return make_response(redirect(url, 303))
    # Whatever cannot be read now: the key is stopped, and that is what must be told.
    reply = fragment_or_redirect(None, list_url(owner=key.owner.listed_under), message=told, close=True)
    with sparing_use():
        receipt = _receipt_of(key, at) | {"told": told}
        if is_from_dialog():
            reply = make_response(render_template("keys/_receipt.html", **receipt, in_dialog=True))
        else:
            reply = row_changed(key, told, focus=focus, receipt=receipt)
    return reply


@pages.get("/keys/<public_id:key_id>/receipt")
@in_workspace
def receipt(key_id: str) -> Response:
    """Say since when a key is stopped, what it was accepted with since, and what was refused first."""
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
    if key.state not in (KeyState.DEACTIVATED, KeyState.REVOKED):
        raise NotFound()
    context = _receipt_of(key, _moment(request.args.get("at", ""), f"receipt {key_id}"))
    return page_or_fragment("keys/receipt.html", "keys/_receipt.html", **context, in_dialog="dialog" in request.args)


def _receipt_of(key: KeyView, at: datetime | None) -> dict[str, Any]:
    """Count from the moment at which the change was committed; the key's own moment is that of the request for it."""
    moments = (key.revoked_at, key.retires_at, key.deactivated_at)
    begun = next((moment for moment in moments if moment and moment <= actor().at), actor().at)
    since = at if at and begun <= at <= begun + _RECEIPT_LIFE else begun
    with reading() as session:
        row = key_views.row_of(session, seat(), key.id)
    accepted, is_least, refused = None, False, None  # where use cannot be read, the key is stopped all the same
    with sparing_use(), reading() as session:
        refused = activity.first_refusal_after(session, row, since)
        accepted, is_least = activity.accepted_after(session, row, since)
    verb = "deactivated" if key.state is KeyState.DEACTIVATED else "deleted" if key.revoked_at else "retired"
    is_fresh = datetime.now(UTC) - since < _RECEIPT_LIFE
    return {
        "key": key,
        "verb": verb,
        "stopped_at": since,
        "accepted": accepted,
        "accepted_is_least": is_least,
        "refused": refused and refusals.view_of(refused),
        "poll": _RECEIPT_POLL if is_fresh else None,
        "at": _signed(since, f"receipt {key.id}"),
        "told": "",
        "against": policy.against(seat().workspace, row),
    }


def _idle(key_id: str) -> str:
    return f"idle {key_id} {seat().member.public_id}"


def _signer(of: str) -> Signer:
    return Signer(portal().settings.secret_key, salt=of)


def _signed(moment: datetime, of: str) -> str:
    return _signer(of).sign(moment.isoformat()).decode()


def _moment(written: str, of: str) -> datetime | None:
    """Read a moment that we wrote of the same thing; None for any other, for a later one would hide requests."""
    try:
        return datetime.fromisoformat(_signer(of).unsign(written).decode())
    except (BadSignature, ValueError):
        return None
