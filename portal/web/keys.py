"""API Settings: the list of keys, generating one, and stopping, starting or deleting one in its row."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for

from portal.rules.access import AccessLevel, Action, Environment, Scope
from portal.rules.credentials import KEY_SHAPED, Keyring, PlainKey
from portal.rules.errors import AlreadyShown, Forbidden, Invalid, NotFound
from portal.rules.lifetimes import Lifetime, Overlap
from portal.rules.text import clean_line
from portal.services import activity, key_views, keys, members, rotation
from portal.services.key_views import Filters, KeyView
from portal.services.keys import Draft, Plan
from portal.store.database import TROUBLE
from portal.store.models import KeyState
from portal.web.guards import actor, in_workspace, recently_proved, seat
from portal.web.home import LEVELS
from portal.web.http import (
    answer,
    fragment_or_redirect,
    is_fragment,
    is_from_dialog,
    page_number,
    page_or_fragment,
    portal,
    public_id,
    reading,
    transaction,
)

pages = Blueprint("keys", __name__, url_prefix="/w/<slug:ws>/api")

LIFETIMES = {
    Lifetime.DAYS_30: "30 days",
    Lifetime.DAYS_90: "90 days",
    Lifetime.YEAR: "1 year",
    Lifetime.NEVER: "Never",
}


def keyring() -> Keyring:
    """Give the keyring of this portal."""
    return portal().settings.keyring


def list_url() -> str:
    """Give the address of the workspace's list."""
    return url_for("keys.index", ws=seat().workspace.slug)


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
    here = seat()
    filters = _filters()
    may_generate = here.is_admin or bool(here.granted)
    with reading() as session:
        page = key_views.list_for(session, actor(), here, keyring(), filters, page_number())
        counts = key_views.count_for(session, actor(), here, filters.owner)
        apps = members.apps_of(session, here)
        admins = [] if may_generate else members.admin_names(session, here.workspace.id)
    first = (page.number - 1) * key_views.PAGE_SIZE + 1
    return page_or_fragment(
        "keys/index.html",
        "keys/_panel.html",
        rows=page.keys,
        tab=filters.owner,
        tabs=_tabs(),
        filters=filters,
        reduced="reduced" in request.args,
        cards=_cards(counts, filters.owner),
        scope_options=[f"{app.slug}:{action}" for app in apps for action in Action],
        page=page.number,
        pages=page.count,
        total=page.total,
        first=first if page.keys else 0,
        last=min(first + key_views.PAGE_SIZE - 1, page.total),
        may_generate=may_generate,
        admins=admins,
        is_lead=here.is_lead,
    )


def _tabs() -> list[tuple[str, str]]:
    tabs = [("me", "My keys")]
    if seat().is_lead:
        tabs.append(("api", "API members’ keys"))
    if seat().is_admin:
        tabs.append(("all", "All keys"))
    return tabs


def _filters() -> Filters:
    """Read the list's filters from the address; what is none is no filter."""
    given = request.args
    owner, env, state = given.get("owner", "me"), given.get("env", ""), given.get("state", "")
    scope, sort = given.get("scope", ""), given.get("sort", "")
    return Filters(
        owner=owner if owner in dict(_tabs()) or (seat().is_lead and public_id(owner)) else "me",
        q=clean_line(given.get("q", "")[:100]) or "",
        env=env if env in list(Environment) else "",
        state=state if state in key_views.STATES else "",
        scope=scope if Scope.parse(scope) else "",
        sort=sort if sort in key_views.SORTS else "attention",
    )


def _cards(counts: key_views.Counts, owner: str) -> list[tuple[str, int, str]]:
    def url(state: str) -> str:
        return url_for("keys.index", ws=seat().workspace.slug, owner=owner, state=state)

    return [
        ("Active", counts.active, url("active")),
        ("Expiring within 14 days", counts.expiring, url("expiring")),
        ("Unused for 30 days", counts.unused, url("unused")),
        ("Deactivated or expired", counts.stopped, url("stopped")),
    ]


_KEPT = ("owner", "env", "state", "scope", "sort")  # what a search leaves as it was


@pages.post("/keys/search")
@in_workspace
def search() -> Response:
    """Turn a search into an address; a pasted key is cut to its last four characters first."""
    q = answer("q").strip()
    values: dict[str, Any] = {name: answer(name) for name in _KEPT if answer(name)}
    if shaped := KEY_SHAPED.search(q):
        plain = keyring().format.parse(shaped[0])
        values |= {"q": plain.last_four if plain else "", "reduced": "1"}
    else:
        values["q"] = clean_line(q[:100]) or ""
    return make_response(redirect(url_for("keys.index", ws=seat().workspace.slug, **values), 303))


# --- Generating -----------------------------------------------------------------------------------------------------

# The generate form: `name`, `note`, `owner` (member id), `environment`, `scopes` (repeated), `expires`, `form_id`.


def _draft() -> Draft:
    return Draft(
        name=answer("name"),
        note=answer("note"),
        owner=public_id(answer("owner", seat().member.public_id)),
        environment=answer("environment"),
        scopes=request.form.getlist("scopes"),
        expires=answer("expires"),
        form_id=keys.check_form_id(answer("form_id")),
        replaces=public_id(answer("replaces")),
        overlap=answer("overlap", Overlap.DAY),
    )


@pages.get("/keys/new")
@in_workspace
@recently_proved("to generate an API key")
def new() -> Response:
    """Show the form; `?from=<key>&add=<scope>` fills it from a key that lacked a scope."""
    similar_to, add = public_id(request.args.get("from", "")), request.args.get("add", "")
    with reading() as session:
        draft = keys.first_draft(session, actor(), seat(), similar_to=similar_to, add=add)
        planned = keys.plan(session, actor(), draft)
    added = {add} & set(draft.scopes)
    return _form(planned, added=added)


@pages.post("/keys/new/scopes")
@in_workspace
def new_scopes() -> Response:
    """Show the form again for another owner, with the ticks that this owner may have."""
    with reading() as session:
        planned = keys.plan(session, actor(), _draft())
    return _form(planned, fragment="keys/_scopes.html")


@pages.post("/keys/new/review")
@in_workspace
def review() -> Response:
    """Say in a sentence what the key will be able to do; without scripts, as a page to check the answers on."""
    with reading() as session:
        planned = keys.plan(session, actor(), _draft())
    if is_fragment():
        return make_response(render_template("keys/_review.html", **_choices(planned)))
    if planned.problems:
        return _form(planned, errors=planned.problems)
    return make_response(render_template("keys/check.html", **_choices(planned)))


@pages.post("/keys")
@in_workspace
@recently_proved("to generate an API key")
def generate() -> Response:
    """Generate the key and show its text, once."""
    draft = _draft()
    try:
        with transaction() as session:
            make = rotation.generate if draft.replaces else keys.create
            key, plain = make(session, actor(), keyring(), draft)
    except Invalid as error:
        with reading() as session:
            planned = keys.plan(session, actor(), draft)
        return _form(planned, errors=error.problems)
    except AlreadyShown as error:
        return already_shown(error.key_id)
    return reveal(key, plain)


def already_shown(key_id: str) -> Response:
    """Say that a form was answered before: its key is there, and its text is not shown again."""
    with reading() as session:
        made = key_views.get(session, actor(), seat(), keyring(), key_id)
    return page_or_fragment("keys/shown.html", "keys/_shown.html", 410, key=made)


def reveal(key: KeyView, plain: PlainKey) -> Response:
    """Show a new key's text: in this one answer, and nowhere else."""
    return page_or_fragment(
        "keys/reveal.html",
        "keys/_reveal.html",
        key=key,
        plain=plain.reveal(),
        base_url=portal().settings.base_url,
        call=first_call(key),
        first={"state": "waiting"},
        poll=3,
    )


def first_call(key: KeyView) -> str:
    """Name a call that this key is allowed to make."""
    readable = next((scope for scope in key.scopes if scope.action == Action.READ and scope.effective), None)
    return url_for("api.list_records", app=readable.app_slug) if readable else url_for("api.me")


def _form(
    planned: Plan,
    *,
    fragment: str = "keys/_new.html",
    errors: Mapping[str, str] | None = None,
    added: set[str] | None = None,
) -> Response:
    context = _choices(planned) | {"errors": errors or {}, "added": added or set()}
    return page_or_fragment("keys/new.html", fragment, 422 if errors else 200, **context)


def _choices(planned: Plan) -> dict[str, Any]:
    """Lay out what the form and the check page need: the answers, and what may be chosen."""
    draft, owner = planned.draft, planned.owner
    kept = {str(scope) for scope in planned.scopes}
    lost = [scope for scope in planned.beyond if scope not in kept]
    listed = [shelf for shelf in planned.shelves if any(_offered(planned, app.slug) for app in shelf.apps)]
    with reading() as session:
        admins = members.admin_names(session, planned.seat.workspace.id)
    return {
        "answers": replace(draft, scopes=sorted(kept), owner=owner.member.public_id if owner else ""),
        "owners": [_owner(each, planned) for each in planned.owners],
        "matrix": [_matrix_row(planned, shelf) for shelf in listed],
        "hidden_solutions": len(planned.shelves) - len(listed),
        "admins": admins,
        "expiries": [(str(each), label, each.ends_at(actor().at)) for each, label in LIFETIMES.items()],
        "lost": [_lost(planned, scope) for scope in lost],
        "other_scopes": _other_scopes(planned),
        "review": _review(planned),
    }


def _owner(owner: keys.Owner, planned: Plan) -> dict[str, str]:
    role = "Administrator" if planned.seat.is_admin else "Team lead" if planned.seat.is_lead else "Member"
    return {
        "id": owner.member.public_id,
        "name": owner.member.name,
        "kind": owner.kind,
        "role_text": role if owner.is_me else "API member",
        "access_text": owner.access_text,
    }


def _offered(planned: Plan, app: str) -> bool:
    return any(Scope(app, action) in planned.grantable for action in Action)


def _matrix_row(planned: Plan, shelf: members.Shelf) -> dict[str, Any]:
    owner = planned.owner
    levels = [owner.access.get(app.slug, AccessLevel.NONE) for app in shelf.apps] if owner else []
    level = min([shelf.level, *levels])
    return {
        "slug": shelf.solution.slug,
        "name": shelf.solution.name,
        "level_text": LEVELS[level],
        "apps": [
            {
                "slug": app.slug,
                "name": app.name,
                "may_read": Scope(app.slug, Action.READ) in planned.grantable,
                "may_write": Scope(app.slug, Action.WRITE) in planned.grantable,
                "why_no_write": _why_no_write(planned, shelf),
            }
            for app in shelf.apps
        ],
    }


def _why_no_write(planned: Plan, shelf: members.Shelf) -> str:
    owner = planned.owner
    if owner is None or owner.is_me or shelf.level is AccessLevel.READ:
        return "Read-only for you"
    return f"Read-only for {owner.member.name}"


def _lost(planned: Plan, scope: str) -> str:
    name = planned.owner.member.name if planned.owner and not planned.owner.is_me else "you"
    return f"{scope} was removed: it is beyond what {name} may hold."


def _other_scopes(planned: Plan) -> int:
    return 2 * sum(len(shelf.apps) for shelf in planned.shelves) - len(planned.scopes)


def _review(planned: Plan) -> dict[str, Any] | None:
    if not planned.scopes or planned.owner is None or planned.draft.environment not in ("live", "test"):
        return None
    names = {app.slug: app.name for shelf in planned.shelves for app in shelf.apps}
    return {
        "name": planned.draft.name.strip()[:60],
        "reads": [names[scope.app] for scope in planned.scopes if scope.action is Action.READ],
        "writes": [names[scope.app] for scope in planned.scopes if scope.action is Action.WRITE],
        "environment": planned.draft.environment,
        "owner_name": planned.owner.member.name,
        "owner_is_me": planned.owner.is_me,
        "expires_at": planned.expires_at,
        "others": _other_scopes(planned),
    }


# --- Stopping and starting ------------------------------------------------------------------------------------------


def look(key_id: str) -> KeyView:
    """Give a key that the member may see and that is not deleted; NotFound else."""
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
    if key.state is KeyState.REVOKED:
        raise NotFound()
    return key


def with_impact(key_id: str) -> dict[str, Any]:
    """Give a key and what ending it would stop; None for the impact when usage cannot be read: treat it as in use."""
    key = look(key_id)
    try:
        with reading() as session:
            impact = activity.impact_of(session, key_views.row_of(session, seat(), key_id), actor().at)
    except TROUBLE:
        impact = None
    return {"key": key, "impact": impact, "must_type": impact is None or impact.is_busy}


@pages.route("/keys/<public_id:key_id>/deactivate", methods=["GET", "POST"])
@in_workspace
def deactivate(key_id: str) -> Response:
    """Stop a key at once. Never asks for the password: an emergency stop must be quick."""
    if request.method != "POST":  # HEAD is a GET
        return page_or_fragment("keys/deactivate.html", "keys/_deactivate.html", **with_impact(key_id))
    with transaction() as session:
        key = keys.deactivate(session, actor(), keyring(), key_id)
    return row_changed(
        key, f"“{key.name}” is deactivated. Requests are refused from now.", focus=f"key-{key.id}-reactivate"
    )


@pages.route("/keys/<public_id:key_id>/reactivate", methods=["GET", "POST"])
@in_workspace
@recently_proved("to reactivate an API key")
def reactivate(key_id: str) -> Response:
    """Let a deactivated key work again."""
    if request.method != "POST":  # HEAD is a GET
        key = look(key_id)
        if key.owner.kind == "human":
            raise Forbidden(keys.ONLY_ITS_OWNER)
        return page_or_fragment("keys/reactivate.html", "keys/_reactivate.html", key=key)
    with transaction() as session:
        key = keys.reactivate(session, actor(), keyring(), key_id)
    return row_changed(
        key, f"“{key.name}” is active again. Requests are accepted from now.", focus=f"key-{key.id}-deactivate"
    )


def row_changed(key: KeyView, message: str, *, focus: str) -> Response:
    """Swap the key's row, or reload the list where the answer would land in the dialog."""
    in_dialog = is_from_dialog()
    return fragment_or_redirect(
        None if in_dialog else "keys/_row.html",
        list_url(),
        message=message,
        focus=[focus, "keys-h"],
        close=in_dialog,
        reload=in_dialog,
        key=key,
    )


@pages.route("/keys/<public_id:key_id>/delete", methods=["GET", "POST"])
@in_workspace
def delete(key_id: str) -> Response:
    """Stop a key for ever. The form's `name` is asked for when the key is in use."""
    if request.method != "POST":  # HEAD is a GET
        return page_or_fragment("keys/delete.html", "keys/_delete.html", **with_impact(key_id), error=None, typed="")
    typed = answer("name")
    try:
        with transaction() as session:
            key = keys.delete(session, actor(), keyring(), key_id, typed=typed)
    except Invalid as error:
        context = with_impact(key_id) | {"error": error.problems["name"], "typed": typed[:60]}
        return page_or_fragment("keys/delete.html", "keys/_delete.html", 422, **context)
    message = f"“{key.name}” (…{key.last_four}) was deleted."
    return fragment_or_redirect(None, list_url(), message=message, focus=["keys-h"], close=True, reload=True)
