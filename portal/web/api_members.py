"""API members: their list, the matrix of their access, stopping and deleting them, and who manages them."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from flask import Response, flash, make_response, redirect, request, url_for

from portal.rules.access import AccessLevel, Action, Scope
from portal.rules.errors import Conflict, Invalid
from portal.services import api_members, drafts, key_views, members, offboarding
from portal.services.api_members import Listed
from portal.services.audit import Event
from portal.store.database import Session
from portal.store.models import Member, Solution
from portal.web.generate import CARRIED, CARRIED_AS
from portal.web.guards import actor, in_workspace, only, recently_proved, seat
from portal.web.http import (
    answer,
    page_number,
    page_or_fragment,
    public_id,
    reading,
    transaction,
    was_shown,
    without_keys,
)
from portal.web.keys import keyring
from portal.web.members import (
    TO_API_MEMBERS,
    access_words,
    here,
    keys_of,
    levels_in_form,
    losing_in_words,
    lost_in_words,
    matrix,
    page,
    page_size,
    pages,
    proved_if_more,
    reach,
    solutions,
)

_for_admins = only(attrgetter("is_admin"), members.ADMINS_ONLY)
_for_leads = only(attrgetter("is_lead"), api_members.LEADS_ONLY)


@pages.get("/api-members", endpoint="api_members")
@in_workspace
def index() -> Response:
    """List the API members that the viewer manages."""
    state = request.args.get("state", "")
    state = state if state in api_members.FILTERS else ""
    with reading() as session:
        found = api_members.list_for(session, actor(), seat(), state=state, number=page_number(), size=page_size())
    filters = [("", "All"), ("no-keys", "No keys"), ("unused", "Unused 30 days"), ("deactivated", "Deactivated")]
    if found.unmanaged or state == "unmanaged":
        filters.append(("unmanaged", "Without a manager"))
    return page(
        "api_members/index.html",
        rows=[_listed(row) for row in found.rows],
        filters=[(value, label, here("api_members", state=value or None)) for value, label in filters],
        state=state,
        unmanaged=found.unmanaged,
        page=found.number,
        pages=found.count,
        total=found.total,
        first=found.first,
        last=found.last,
        url=here("api_members", state=state or None),
    )


def _listed(row: Listed) -> dict[str, Any]:
    return {
        "id": row.member.public_id,
        "name": row.member.name,
        "purpose": row.member.purpose,
        "state": _state(row.member),
        "manager": row.manager.name if row.manager else "",
        "manager_can": row.manager_can,
        "access": access_words(row.access),
        "active_keys": row.active_keys,
        "last_used_at": row.last_used_at,
    }


def _state(member: Member) -> str:
    return "active" if member.is_active else "deactivated"


@pages.get("/api-members/<public_id:mid>", endpoint="api_member")
@in_workspace
def detail(mid: str) -> Response:
    """Show one API member: what it may do, its keys, and who answers for it."""
    with reading() as session:
        found = api_members.get(session, seat(), mid)
        keys, count = keys_of(session, found)
        every = solutions(session)
        levels = members.levels_of(session, found, every)
        context = {
            **_about(session, found, every, levels),
            "matrix": matrix(session, every, TO_API_MEMBERS, levels, {}, givers=members.givers_of(session, found)),
            "created_by": members.name_of(session, found.created_by_id),
        }
    return page("api_members/detail.html", keys=keys, key_count=count, **context)


def _about(
    session: Session, member: Member, every: Sequence[Solution], levels: Mapping[str, AccessLevel]
) -> dict[str, Any]:
    manager, can = api_members.manager_of(session, member)
    names = {solution.slug: solution.name for solution in every}
    return {
        "one": member,
        "state": _state(member),
        "manager": manager,
        "manager_can": can,
        "reads": [names[slug] for slug, level in levels.items() if level is AccessLevel.READ],
        "changes": [names[slug] for slug, level in levels.items() if level is AccessLevel.FULL],
    }


# --- Making and changing --------------------------------------------------------------------------------------------


@pages.route("/api-members/new", methods=["GET", "POST"], endpoint="new_api_member")
@in_workspace
@_for_leads
@recently_proved("to make an API member")
def new() -> Response:
    """Make an API member with access where the viewer manages a solution."""
    if request.method != "POST":  # HEAD is a GET
        return _first_form()
    chosen: dict[str, AccessLevel] = {}
    try:
        chosen = levels_in_form(TO_API_MEMBERS)
        with transaction() as session:
            made = api_members.create(
                session, actor(), name=answer("name"), purpose=answer("purpose"), access=chosen, form_id=_form_id()
            )
    except Invalid as error:
        return _new_form(chosen, error.problems)
    flash(f"“{made.name}” is made.")
    return _go_on(made.public_id)


def _form_id() -> str:
    return drafts.check_form_id(answer("form_id")) or drafts.new_form_id()


def _first_form() -> Response:
    """Show the form as it is opened: for a key that is to move (`from`), or for somebody who leaves (`leaving`)."""
    key_id, leaving = public_id(request.args.get("from", "")), public_id(request.args.get("leaving", ""))
    if not key_id:
        return _new_form({}, {}, [("leaving", leaving)] if leaving else [])
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
        needed = _needed(session, [scope.text for scope in key.scopes])
    return _new_form(needed, {}, [(f"{CARRIED_AS}from", key_id)], name=key.name)


@pages.post("/api-members/new/for-key", endpoint="new_api_member_for_key")
@in_workspace
@_for_leads
def new_for_key() -> Response:
    """Show the form in between: it carries the answers of a key’s form along, and offers the access that these need."""
    carried = [(f"{CARRIED_AS}{name}", value) for name in CARRIED for value in request.form.getlist(name)]
    with reading() as session:
        needed = _needed(session, request.form.getlist("scopes"))
    return _new_form(needed, {}, carried, name="")


@pages.post("/api-members/new/review", endpoint="review_new_api_member")
@in_workspace
@_for_leads
def review_new() -> Response:
    """Say what an API member with these answers will be able to do; without scripts, in its form."""
    return _new_form(levels_in_form(TO_API_MEMBERS), {})


def _go_on(made: str) -> Response:
    """Go back to where the API member was needed, else to its page."""
    if f"{CARRIED_AS}environment" in request.form:
        # Sent on as it came, by POST: names do not belong into addresses.
        return make_response(redirect(url_for("keys.new", ws=seat().workspace.slug, owner=made), 307))
    if key_id := public_id(answer(f"{CARRIED_AS}from")):
        for_key: dict[str, Any] = {"ws": seat().workspace.slug, "owner": made, "from": key_id}
        url = url_for("keys.new", **for_key)
    elif leaving := public_id(answer("leaving")):
        url = here("leave", mid=leaving, to=made)
    else:
        url = here("api_member", mid=made)
    return make_response(redirect(url, 303))


def _needed(session: Session, scopes: Sequence[str]) -> dict[str, AccessLevel]:
    """Give the least access by solution that some scopes need."""
    wanted = [scope for each in scopes if (scope := Scope.parse(each))]
    needed = {}
    for shelf in members.shelves_for(session, seat()):
        apps = {app.slug for app in shelf.apps}
        actions = {scope.action for scope in wanted if scope.app in apps}
        if actions:
            needed[shelf.solution.slug] = AccessLevel.FULL if Action.WRITE in actions else AccessLevel.READ
    return needed


def _new_form(
    chosen: Mapping[str, AccessLevel],
    errors: Mapping[str, str],
    carried: Sequence[tuple[str, str]] | None = None,
    *,
    name: str | None = None,
) -> Response:
    """Show the form; it carries along what it was opened with."""
    with reading() as session:
        rows = matrix(session, solutions(session), TO_API_MEMBERS, {}, chosen)
    if carried is None:
        given = request.form.items(multi=True)
        carried = [each for each in given if each[0] == "leaving" or each[0].startswith(CARRIED_AS)]
    typed = without_keys(answer("name") if name is None else name)
    context = {
        "matrix": rows,
        "will": {"name": typed.strip()[:60], "losses": "", **reach(rows)},
        "review_url": here("review_new_api_member"),
        "answers": {"name": typed, "purpose": without_keys(answer("purpose"))},
        "form_id": _form_id() if name is None else drafts.new_form_id(),  # what it was opened from has one of its own
        "carried": [(field, without_keys(value)) for field, value in carried],
        "for_key": any(field.startswith(CARRIED_AS) for field, _ in carried),
        "errors": errors,
    }
    return page_or_fragment("api_members/new.html", "members/_will.html", 422 if errors else 200, **context)


@pages.route("/api-members/<public_id:mid>/access", methods=["GET", "POST"], endpoint="api_member_access")
@in_workspace
def access(mid: str) -> Response:
    """Change what an API member may do. More of it asks for the password, less never does."""
    if request.method != "POST":
        return _access_form(mid)
    return proved_if_more(_save_access, mid)


@pages.post("/api-members/<public_id:mid>/access/review", endpoint="review_api_member_access")
@in_workspace
def review_access(mid: str) -> Response:
    """Say what an API member will be able to do, and what its keys would lose; without scripts, in its form."""
    return _access_form(mid, levels_in_form(TO_API_MEMBERS), was_shown())


def _save_access(mid: str, is_proved: bool) -> Response:
    was = was_shown()
    chosen: dict[str, AccessLevel] = {}
    try:
        chosen = levels_in_form(TO_API_MEMBERS)
        with transaction() as session:
            saved = api_members.set_access(session, actor(), keyring(), mid, chosen, was=was, is_proved=is_proved)
    except Invalid as error:
        return _access_form(mid, chosen, was, errors=error.problems)
    except Conflict as error:
        return _access_form(mid, conflict=error.message)
    name = saved.member.name
    told = f"Access of “{name}” is saved." if saved.changed else f"Access of “{name}” is as it was."
    flash(told + lost_in_words(saved.losses))
    return make_response(redirect(here("api_member", mid=mid), 303))


def _access_form(
    mid: str,
    chosen: Mapping[str, AccessLevel] | None = None,
    was: str | None = None,
    *,
    errors: Mapping[str, str] | None = None,
    conflict: str = "",
) -> Response:
    """Show the form as things are; or with answers, and what they were given to (`was`)."""
    with reading() as session:
        found = api_members.get(session, seat(), mid)
        every = solutions(session)
        levels = members.levels_of(session, found, every)
        at_risk = offboarding.keys_at_risk(session, actor(), seat(), keyring(), found)
        givers = members.givers_of(session, found)
        rows = matrix(session, every, TO_API_MEMBERS, levels, chosen or {}, givers=givers, at_risk=at_risk)
        about = _about(session, found, every, levels)
    status = 422 if errors else 409 if conflict else 200
    losses = offboarding.losses(at_risk, levels | dict(chosen or {}))
    return page_or_fragment(
        "api_members/access.html",
        "members/_will.html",
        status,
        matrix=rows,
        will={"name": found.name, "losses": losing_in_words(losses), **reach(rows)},
        review_url=here("review_api_member_access", mid=mid),
        was=api_members.version_of(levels) if was is None else was,
        errors=errors or {},
        conflict=conflict,
        **about,
    )


@pages.route("/api-members/<public_id:mid>/edit", methods=["GET", "POST"], endpoint="edit_api_member")
@in_workspace
def edit(mid: str) -> Response:
    """Change name and purpose."""
    with reading() as session:
        found = api_members.get(session, seat(), mid)
    if request.method != "POST":
        return _edit_form(found, found.name, found.purpose)
    name, purpose = answer("name"), answer("purpose")
    was = (answer("was_name"), answer("was_purpose")) if "was_name" in request.form else None
    try:
        with transaction() as session:
            saved = api_members.edit(session, actor(), mid, name=name, purpose=purpose, was=was)
    except Invalid as error:
        return _edit_form(found, name, purpose, error.problems)
    flash(f"“{saved.name}” is saved.")
    return make_response(redirect(here("api_member", mid=mid), 303))


def _edit_form(found: Member, name: str, purpose: str, errors: Mapping[str, str] | None = None) -> Response:
    answers = {"name": without_keys(name), "purpose": without_keys(purpose)}
    status = 422 if errors else 200
    return page("api_members/edit.html", status, one=found, answers=answers, errors=errors or {})


@pages.route("/api-members/<public_id:mid>/manager", methods=["GET", "POST"], endpoint="api_member_manager")
@in_workspace
@_for_admins
@recently_proved("to change who manages an API member")
def manager(mid: str) -> Response:
    """Make somebody else answer for an API member; administrators only."""
    if request.method != "POST":
        return _manager_form(mid)
    chosen, was = public_id(answer("manager")), was_shown()
    try:
        with transaction() as session:
            found = api_members.set_manager(session, actor(), mid, chosen, was=was)
    except Invalid as error:
        return _manager_form(mid, chosen, was, errors=error.problems)
    except Conflict as error:
        return _manager_form(mid, conflict=error.message)
    flash(f"“{found.name}” has another manager.")
    return make_response(redirect(here("api_member", mid=mid), 303))


def _manager_form(
    mid: str,
    chosen: str = "",
    was: str | None = None,
    *,
    errors: Mapping[str, str] | None = None,
    conflict: str = "",
) -> Response:
    with reading() as session:
        found = api_members.get(session, seat(), mid)
        people = api_members.possible_managers(session, seat())
        now, can = api_members.manager_of(session, found)
    its = now.public_id if now else ""
    return page(
        "api_members/manager.html",
        422 if errors else 409 if conflict else 200,
        one=found,
        manager=now,
        manager_can=can,
        people=people,
        chosen=chosen or its,
        was=its if was is None else was,
        errors=errors or {},
        conflict=conflict,
    )


# --- Stopping and starting ------------------------------------------------------------------------------------------


@pages.route("/api-members/<public_id:mid>/deactivate", methods=["GET", "POST"], endpoint="deactivate_api_member")
@in_workspace
def deactivate(mid: str) -> Response:
    """Stop an API member and all its keys. Never asks for the password."""
    if request.method != "POST":
        return _stop_page("api_members/deactivate.html", mid)
    with transaction() as session:
        found = api_members.deactivate(session, actor(), mid)
    flash(f"“{found.name}” is deactivated. Requests with its keys are refused from now.")
    return make_response(redirect(here("api_member", mid=mid), 303))


@pages.route("/api-members/<public_id:mid>/reactivate", methods=["GET", "POST"], endpoint="reactivate_api_member")
@in_workspace
@only(attrgetter("is_lead"), api_members.LEADS_ONLY, Event.MEMBER_REACTIVATED)
@recently_proved("to reactivate an API member")
def reactivate(mid: str) -> Response:
    """Let an API member act again; its keys are started one by one."""
    if request.method != "POST":
        return _stop_page("api_members/reactivate.html", mid)
    with transaction() as session:
        found, count = api_members.reactivate(session, actor(), mid)
    keys = f" {count} {'key stays' if count == 1 else 'keys stay'} deactivated: reactivate what is still needed."
    flash(f"“{found.name}” is active again.{keys if count else ''}")
    return make_response(redirect(here("api_member", mid=mid), 303))


@pages.route("/api-members/<public_id:mid>/delete", methods=["GET", "POST"], endpoint="delete_api_member")
@in_workspace
def delete(mid: str) -> Response:
    """Remove an API member for good; the form's `name` is asked for when it has active keys."""
    if request.method != "POST":
        return _stop_page("api_members/delete.html", mid)
    typed = answer("name")
    try:
        with transaction() as session:
            found = api_members.delete(session, actor(), mid, typed=typed)
    except Invalid as error:
        return _stop_page("api_members/delete.html", mid, typed=typed, errors=error.problems)
    flash(f"“{found.name}” was deleted. Its keys are revoked.")
    return make_response(redirect(here("api_members"), 303))


def _stop_page(template: str, mid: str, typed: str = "", errors: Mapping[str, str] | None = None) -> Response:
    with reading() as session:
        found = api_members.get(session, seat(), mid)
        keys = offboarding.keys_at_risk(session, actor(), seat(), keyring(), found)
    shown = without_keys(typed)[:60]
    context = {"one": found, "state": _state(found), "keys": keys, "typed": shown, "errors": errors or {}}
    return page(template, 422 if errors else 200, **context)
