"""Generating a key: its form with owners, scopes and presets, the check page, and the one reveal of its text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flask import Response, flash, make_response, redirect, render_template, request, url_for

from portal.rules.access import AccessLevel, Action, Environment, Scope
from portal.rules.credentials import PlainKey
from portal.rules.errors import AlreadyShown, Conflict, Invalid, NotFound
from portal.rules.lifetimes import Lifetime, Overlap
from portal.services import drafts, key_lists, key_views, keys, members, policy, rotation
from portal.services.drafts import Draft, Plan
from portal.services.key_views import KeyView
from portal.store.database import Session
from portal.store.models import KeyState
from portal.web.display import absolute, clock, level_text, role_text
from portal.web.guards import actor, in_workspace, only, recently_proved, seat
from portal.web.http import (
    answer,
    is_fragment,
    page_or_fragment,
    portal,
    public_id,
    reading,
    ticked,
    transaction,
    without_keys,
)
from portal.web.keys import keyring, pages

_LIFETIMES = {
    Lifetime.DAYS_30: "30 days",
    Lifetime.DAYS_90: "90 days",
    Lifetime.YEAR: "1 year",
    Lifetime.NEVER: "Never",
}
_OVERLAPS = {
    Overlap.NONE: "Not at all: stop it now",
    Overlap.HOUR: "1 hour",
    Overlap.DAY: "24 hours",
    Overlap.WEEK: "7 days",
    Overlap.UNTIL: "Until I retire it (30 days at most)",
}
_NO_ACCESS = "You cannot generate keys here because you have no access to any solution in this workspace."
_PRESETS = ("self", "read-all", "read-one", "write-one", "copy")

# What of this form the form of an API member carries along that is opened from it, each behind `CARRIED_AS`.
CARRIED, CARRIED_AS = ("name", "note", "environment", "scopes", "expires", "from"), "key-"

# The generate form: `name`, `note`, `owner` (member id), `environment`, `scopes` (repeated), `expires`, `self_rotate`
# (ticked or not sent), `form_id`;
# `from` (the key that it was opened from), `replaces` (the same, ticked) and `overlap`; `preset` with what it names.


def _draft() -> Draft:
    return Draft(
        name=answer("name"),
        note=answer("note"),
        owner=public_id(answer("owner", seat().member.public_id)),
        environment=answer("environment"),
        scopes=request.form.getlist("scopes"),
        expires=answer("expires"),
        form_id=drafts.check_form_id(answer("form_id")),
        similar_to=public_id(answer("from")),
        replaces=public_id(answer("replaces")),
        overlap=answer("overlap", Overlap.DAY),
        self_rotate=ticked("self_rotate"),
    )


@pages.route("/keys/new", methods=["GET", "POST"])
@in_workspace
@only(lambda seat: seat.has_access, _NO_ACCESS)
@recently_proved("to generate an API key")
def new() -> Response:
    """Show the form; `?from=<key>&add=<scope>` fills it from a key that lacked a scope, and offers to replace it.

    With POST, generate the key, as POST /keys does; or go on with the answers that were given before its API member
    (`?owner=`) was made.
    """
    if request.method == "POST":
        is_carried = f"{CARRIED_AS}environment" in request.form
        return _resume(public_id(request.args.get("owner", ""))) if is_carried else _generate()
    similar_to, add = public_id(request.args.get("from", "")), request.args.get("add", "")
    owner = public_id(request.args.get("owner", ""))
    with reading() as session:
        draft = drafts.first(session, actor(), seat(), owner=owner, similar_to=similar_to, add=add)
        planned = drafts.plan(session, actor(), draft)
        if add and add not in map(str, planned.scopes):  # then the new key would be no replacement
            planned = drafts.plan(session, actor(), replace(draft, replaces=""))
    return _form(planned, add=add)


@pages.get("/keys/<public_id:key_id>/move")
@in_workspace
def move(key_id: str) -> Response:
    """Go on to where an API member takes a key over: the first that may do all that the key may, else a new one."""
    here: dict[str, Any] = {"ws": seat().workspace.slug, "from": key_id}
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
        owners = drafts.plan(session, actor(), drafts.first(session, actor(), seat(), similar_to=key_id)).owners
    wanted = [scope for view in key.scopes if (scope := Scope.parse(view.text))]
    for owner in owners:
        if owner.kind == "api" and all(
            scope.action in owner.access.get(scope.app, AccessLevel.NONE).actions for scope in wanted
        ):
            return make_response(redirect(url_for("keys.new", owner=owner.member.public_id, **here), 303))
    return make_response(redirect(url_for("members.new_api_member", **here), 303))


def _resume(owner: str) -> Response:
    def first(name: str) -> str:
        return request.form.get(f"{CARRIED_AS}{name}", "")

    with reading() as session:
        similar_to = public_id(first("from"))
        draft = drafts.first(session, actor(), seat(), owner=owner, similar_to=similar_to)
        draft = replace(
            draft,
            name=first("name"),
            note=first("note"),
            environment=first("environment"),
            scopes=request.form.getlist(f"{CARRIED_AS}scopes"),
            expires=first("expires") or draft.expires,
        )
        planned = drafts.plan(session, actor(), draft)
    return _form(planned)


@pages.post("/keys/new/scopes")
@in_workspace
def new_scopes() -> Response:
    """Show the form again for another owner or preset, with the ticks that this owner may have."""
    with reading() as session:
        planned = _with_preset(session, drafts.plan(session, actor(), _draft()))
    return _form(planned, fragment="keys/_scopes.html")


@pages.post("/keys/new/review")
@in_workspace
def review() -> Response:
    """Say in a sentence what the key will be able to do; without scripts, as a page to check the answers on."""
    with reading() as session:
        planned = drafts.plan(session, actor(), _draft())
        if not planned.draft.scopes:  # a preset that was chosen and not yet applied
            planned = _with_preset(session, planned)
    if is_fragment():
        return make_response(render_template("keys/_review.html", **_choices(planned)))
    if planned.problems:
        return _form(planned, errors=planned.problems)
    return make_response(render_template("keys/check.html", **_choices(planned)))


@pages.post("/keys")
@in_workspace
@recently_proved("to generate an API key")
def generate() -> Response:
    """Generate the key of the form at /keys/new."""
    return _generate()


def _generate() -> Response:
    """Generate the key and show its text, once."""
    draft = _draft()
    try:
        with transaction() as session:
            make = rotation.generate if draft.replaces else keys.create
            key, plain = make(session, actor(), keyring(), draft)
            old = replaced_by(session, key) if draft.replaces else None
    except Invalid as error:
        return _form_again(draft, error.problems)
    except AlreadyShown as error:
        return already_shown(error.made_id)
    except Conflict as error:
        if error.code != keys.KEY_LIMIT:
            raise
        return _form_again(draft, {"limit": error.message}, 409)
    return reveal(key, plain, told_of_rotation(key, old) if old else f"“{key.name}” was generated.", old)


def _form_again(draft: Draft, errors: Mapping[str, str], status: int = 422) -> Response:
    with reading() as session:
        planned = drafts.plan(session, actor(), draft)
    return _form(planned, errors=errors, status=status)


def already_shown(key_id: str) -> Response:
    """Say that a form was answered before: its key is there, and its text is not shown again."""
    with reading() as session:
        made = key_views.get(session, actor(), seat(), keyring(), key_id)
    return page_or_fragment("keys/shown.html", "keys/_shown.html", 410, key=made)


def reveal(key: KeyView, plain: PlainKey, told: str, old: KeyView | None = None) -> Response:
    """Show a new key's text: in this one answer, and nowhere else; `told` is what the list says afterwards."""
    shown = page_or_fragment(
        "keys/reveal.html",
        "keys/_reveal.html",
        key=key,
        told=told,
        plain=plain.reveal(),
        base_url=portal().settings.base_url,
        call=first_call(key),
        first={"state": "waiting"},
        poll=3,
        old=old,
        clock=clock(actor().at),
    )
    if not is_fragment():
        flash(told)  # after this page is written: the next one says it
    return shown


def replaced_by(session: Session, key: KeyView) -> KeyView:
    """Find the key that a new one replaces."""
    return key_views.get(session, actor(), seat(), keyring(), key.predecessor_id or "")


def told_of_rotation(key: KeyView, old: KeyView) -> str:
    """Say which key a new one replaces, and when that one stops."""
    end = f"stops on {absolute(old.retires_at)}" if old.is_retiring and old.retires_at else "has stopped"
    return f"“{key.name}” was replaced. The old key (…{old.last_four}) {end}."


def first_call(key: KeyView) -> str:
    """Name a call that this key is allowed to make."""
    kept_here = [scope for scope in key.scopes if scope.effective and not scope.is_external]
    readable = next((scope for scope in kept_here if scope.action == Action.READ), None)
    return url_for("api.list_records", app=readable.app_slug) if readable else url_for("api.me")


# --- The form's choices ---------------------------------------------------------------------------------------------


def _form(
    planned: Plan,
    *,
    fragment: str = "keys/_new.html",
    errors: Mapping[str, str] | None = None,
    status: int = 422,
    add: str = "",
) -> Response:
    context = _choices(planned, add) | {"errors": errors or {}}
    return page_or_fragment("keys/new.html", fragment, status if errors else 200, **context)


def _choices(planned: Plan, add: str = "") -> dict[str, Any]:
    """Lay out what the form and the check page need: the answers, and the choices; `add` is to be pointed out."""
    draft, owner = planned.draft, planned.owner
    if not add and Scope.parse(answer("add")):
        add = answer("add")
    kept = {str(scope) for scope in planned.scopes}
    filled = [shelf for shelf in planned.shelves if shelf.apps]
    listed = [shelf for shelf in filled if any(_offered(planned, app.slug) for app in shelf.apps)]
    with reading() as session:
        admins = members.admin_names(session, planned.seat.workspace.id)
        cannot_add = _cannot_add(session, planned, add) if add in planned.beyond else None
        replaced = _replaced(session, planned)
        rotating = _rotating(session, planned) if add and not replaced else None
        anothers = _anothers(session, planned) if add and (request.args.get("from") or answer("linked")) else None
        copyable = key_lists.copyable(session, actor(), seat())
        standing = keys.standing_count(session, owner.member.id, actor().at) if owner else 0
        app_names = members.app_names(session, planned.seat.workspace.id)
    told = kept | ({cannot_add["scope"]} if cannot_add else set())
    lost = [scope for scope in planned.beyond if scope not in told]
    return {
        "answers": replace(
            draft,
            name=without_keys(draft.name),
            note=without_keys(draft.note),
            scopes=sorted(kept),
            owner=owner.member.public_id if owner else "",
        ),
        "owners": [_owner(each, planned) for each in planned.owners],
        "matrix": [_matrix_row(planned, shelf) for shelf in listed],
        "has_apps": bool(filled),
        "hidden_solutions": len(filled) - len(listed),
        "admins": admins,
        "key_prefix": keyring().format.prefix,
        "expiries": expiries(),
        "max_days": seat().workspace.max_key_days,
        "added": {add} & kept,
        "lost": _lost(planned, sorted(lost)),
        "cannot_add": cannot_add,
        "no_app": asked.app if (asked := Scope.parse(add)) and add not in told and add not in lost else "",
        "replaces": replaced,
        "rotating": rotating,
        "anothers": anothers,
        "asked_for": add,
        "fix": {"name": replaced["name"], "scope": add} if replaced and add in kept else None,
        "presets": _presets(planned, listed, copyable),
        "at_limit": _at_limit(standing, planned, replaced),
        "review": _review(planned, replaced, app_names),
        "forbidden": planned.problems.get("environment"),
    }


def expiries() -> list[tuple[str, str, datetime | None]]:
    """List the lifetimes that the workspace's policy allows, with the moment at which a key of today would end."""
    allowed = policy.lifetimes(seat().workspace)
    return [(str(each), label, each.ends_at(actor().at)) for each, label in _LIFETIMES.items() if each in allowed]


def overlaps(old: KeyView) -> list[tuple[str, str, datetime | None]]:
    """List how long a key that is being replaced may go on, with the moment at which it would stop if not at once."""
    return [
        (str(each), label, each.ends_at(actor().at, old.expires_at) if each is not Overlap.NONE else None)
        for each, label in _OVERLAPS.items()
    ]


def _replaced(session: Session, planned: Plan) -> dict[str, Any] | None:
    """Describe the key that the new one can take over from, where it can be rotated."""
    draft = planned.draft
    try:
        old = key_views.get(session, actor(), seat(), keyring(), draft.replaces or draft.similar_to)
    except NotFound:
        return None
    owner = planned.owner
    is_moved = owner is not None and owner.kind == "api" and owner.member.public_id != old.owner.id
    if not (old.may_move if is_moved else old.may_rotate):
        return None
    return {
        "id": old.id,
        "name": old.name,
        "last_four": old.last_four,
        "checked": bool(draft.replaces),
        "counts": old.state is not KeyState.EXPIRED and owner is not None and owner.member.public_id == old.owner.id,
        "overlap": draft.overlap,
        "overlaps": overlaps(old),
    }


def _anothers(session: Session, planned: Plan) -> str | None:
    """Name the person whose key a link was made for; '' where it cannot be seen, None where it can be replaced here."""
    if not planned.draft.similar_to:
        return ""
    key = key_views.get(session, actor(), seat(), keyring(), planned.draft.similar_to)
    return key.owner.name if key.owner.kind == "human" and key.owner.is_active and key.may_move else None


def _rotating(session: Session, planned: Plan) -> KeyView | None:
    """Find the old key of the rotation that goes on with the key that the form was opened from."""
    try:
        key = key_views.get(session, actor(), seat(), keyring(), planned.draft.similar_to)
        old = key if key.is_retiring else key_views.get(session, actor(), seat(), keyring(), key.predecessor_id or "")
    except NotFound:
        return None
    return old if old.is_retiring else None


def _cannot_add(session: Session, planned: Plan, add: str) -> dict[str, Any] | None:
    """Tell why a scope cannot be given here, and who could give the access that it needs."""
    scope, owner = Scope.parse(add), planned.owner
    shelf = _shelf_of(planned, scope) if scope else None
    if scope is None or shelf is None or owner is None:
        return None
    for_api, place = _lacks_itself(owner, scope, shelf), shelf.solution.id
    level = level_text(owner.access.get(scope.app, AccessLevel.NONE) if for_api or owner.is_me else shelf.level)
    who = f"{owner.member.name} has" if for_api else "You have"
    return {
        "scope": str(scope),
        "words": f"{who} {level}{'' if level == 'no access' else ' access'} in {shelf.solution.name}.",
        "who": members.granters(session, seat(), [place], for_api_member=for_api)[place],
    }


def _shelf_of(planned: Plan, scope: Scope) -> members.Shelf | None:
    return next((shelf for shelf in planned.shelves if scope.app in {app.slug for app in shelf.apps}), None)


def _lacks_itself(owner: drafts.Owner, scope: Scope, shelf: members.Shelf) -> bool:
    """Say whether it is the API member that may not hold a scope; else whoever sits there may not hand it out."""
    return not owner.is_me and scope.action in shelf.level.actions


def _presets(planned: Plan, listed: list[members.Shelf], copyable: list[tuple[str, str]]) -> dict[str, Any]:
    may_write = {scope.app for scope in planned.grantable if scope.action is Action.WRITE}
    may_read = {scope.app for scope in planned.grantable if scope.action is Action.READ}

    def where(apps: set[str]) -> list[tuple[str, str]]:
        return [(each.solution.slug, each.solution.name) for each in listed if apps & {app.slug for app in each.apps}]

    chosen = request.form.get("preset", "self")
    return {
        "chosen": chosen if chosen in _PRESETS else "self",
        "read_in": request.form.get("preset_read", ""),
        "write_in": request.form.get("preset_write", ""),
        "key": request.form.get("preset_key", ""),
        "solutions": where(may_read),
        "writable": where(may_write),
        "keys": copyable,
    }


def _with_preset(session: Session, planned: Plan) -> Plan:
    """Plan again with the ticks of the preset that was chosen; each as far as it can be granted."""
    preset = answer("preset", "self")
    wanted: set[Scope]
    if preset == "read-all":
        wanted = {scope for scope in planned.grantable if scope.action is Action.READ}
    elif preset in ("read-one", "write-one"):
        solution = answer("preset_read" if preset == "read-one" else "preset_write")
        shelf = next((shelf for shelf in planned.shelves if shelf.solution.slug == solution), None)
        apps = {app.slug for app in shelf.apps} if shelf else set()
        actions = {Action.READ} if preset == "read-one" else set(Action)
        wanted = {scope for scope in planned.grantable if scope.app in apps and scope.action in actions}
    elif preset == "copy":
        try:
            copied = key_views.get(session, actor(), seat(), keyring(), public_id(answer("preset_key")))
        except NotFound:
            return planned
        has = {view.text for view in copied.scopes}
        wanted = {scope for scope in planned.grantable if str(scope) in has}
    else:
        return planned
    return drafts.plan(session, actor(), replace(planned.draft, scopes=sorted(map(str, wanted))))


def _at_limit(standing: int, planned: Plan, replaced: dict[str, Any] | None) -> dict[str, Any] | None:
    takes_a_place = replaced and replaced["checked"] and replaced["counts"]
    if standing < keys.KEYS_PER_MEMBER or planned.owner is None or takes_a_place:
        return None
    owner = "me" if planned.owner.is_me else planned.owner.member.public_id
    return {
        "count": standing,
        "most": keys.KEYS_PER_MEMBER,
        "url": url_for("keys.index", ws=seat().workspace.slug, owner=owner, sort="used", state="unused"),
    }


def _owner(owner: drafts.Owner, planned: Plan) -> dict[str, str]:
    return {
        "id": owner.member.public_id,
        "name": owner.member.name,
        "kind": owner.kind,
        "role_text": role_text(planned.seat.role, is_lead=planned.seat.is_lead) if owner.is_me else "API member",
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
        "level_text": level_text(level),
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


def _lost(planned: Plan, scopes: Sequence[str]) -> dict[str, Any] | None:
    """Say how many ticks went and for want of what: "2 scopes removed: CRM Bot cannot write Projects."."""
    lacking: dict[str, list[str]] = {}
    for scope in filter(None, map(Scope.parse, scopes)):
        if (shelf := _shelf_of(planned, scope)) and (owner := planned.owner):
            cannot = lacking.setdefault(owner.member.name if _lacks_itself(owner, scope, shelf) else "you", [])
            if (what := f"{scope.action} {shelf.solution.name}") not in cannot:
                cannot.append(what)
    if not lacking:
        return None
    why = ", ".join(f"{who} cannot {' or '.join(cannot)}" for who, cannot in lacking.items())
    count = f"{len(scopes)} {'scope' if len(scopes) == 1 else 'scopes'} removed"
    return {"words": f"{count}: {why}.", "scopes": scopes}


def _review(planned: Plan, replaced: dict[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    if not planned.scopes or planned.owner is None or planned.draft.environment not in list(Environment):
        return None
    old = None
    if replaced and replaced["checked"]:
        overlap = replaced["overlap"]
        ends_at = next((when for value, _, when in replaced["overlaps"] if value == overlap), None)
        old = {"last_four": replaced["last_four"], "ends_at": ends_at, "is_until": overlap == Overlap.UNTIL}
    return {
        "name": without_keys(planned.draft.name).strip()[:60],
        "reads": [names[scope.app] for scope in planned.scopes if scope.action is Action.READ],
        "writes": [names[scope.app] for scope in planned.scopes if scope.action is Action.WRITE],
        "environment": planned.draft.environment,
        "owner_name": planned.owner.member.name,
        "owner_is_me": planned.owner.is_me,
        "expires_at": planned.expires_at,
        "others": len(planned.grantable) - len(planned.scopes),
        "old": old,
    }
