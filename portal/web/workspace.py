"""What administrators set up in a workspace: solutions, apps and policy."""

import json
from operator import attrgetter
from typing import Any

from flask import Blueprint, Response, flash, make_response, redirect, render_template, request, url_for

from portal.rules.errors import Conflict, Invalid
from portal.rules.schemas import Schema
from portal.services import members, policy, records, workspaces
from portal.services.audit import Event
from portal.services.policy import Policy
from portal.store.models import App, Solution
from portal.web.guards import actor, in_workspace, only, recently_proved, seat
from portal.web.http import answer, page_or_fragment, reading, ticked, transaction, was_shown, without_keys

pages = Blueprint("workspace", __name__, url_prefix="/w/<slug:ws>")
_for_admins = only(attrgetter("is_admin"), "Only administrators set up the workspace.")

_LIMITS = {"": "No limit", "30": "30 days", "90": "90 days", "365": "1 year"}
_EMPTY_SCHEMA = (
    '{\n  "type": "object",\n  "properties": {\n    "name": {"type": "string"}\n  },\n  "required": ["name"]\n}'
)


def _done(message: str) -> Response:
    flash(message)
    return make_response(redirect(url_for("workspace.index", ws=seat().workspace.slug), 303))


# --- Solutions and apps ---------------------------------------------------------------------------------------------


@pages.get("/workspace")
@in_workspace
@_for_admins
def index() -> Response:
    """Show the workspace's solutions with their apps, and its policy."""
    with reading() as session:
        shelves = members.shelves_for(session, seat())
        counts = records.counts(session, seat().workspace.id)
    context = {"shelves": shelves, "counts": counts, "policy": policy.of(seat().workspace), "limits": _LIMITS}
    return make_response(render_template("workspace/index.html", **context))


@pages.route("/solutions/new", methods=["GET", "POST"])
@in_workspace
@_for_admins
def new_solution() -> Response:
    """Add a solution."""
    if request.method != "POST":  # HEAD is a GET
        return _solution_form(None, {})
    try:
        with transaction() as session:
            here = workspaces.admin_seat(session, actor(), Event.SOLUTION_ADDED).workspace
            made = workspaces.add_solution(
                *(session, actor(), here, answer("slug"), answer("name"), answer("description")),
                is_external=ticked("is_external"),
            )
    except Invalid as error:
        return _solution_form(None, error.problems)
    return _done(f"Solution “{made.name}” was added. Add its first app.")


@pages.route("/solutions/<slug:solution>/edit", methods=["GET", "POST"])
@in_workspace
@_for_admins
def edit_solution(solution: str) -> Response:
    """Rename and describe a solution."""
    with reading() as session:
        found = workspaces.get_solution(session, seat().workspace, solution)
    if request.method != "POST":  # HEAD is a GET
        return _solution_form(found, {})
    was = was_shown()
    try:
        with transaction() as session:
            workspaces.edit_solution(
                *(session, actor(), solution, answer("name"), answer("description")),
                is_external=ticked("is_external"),
                was=was,
            )
    except Invalid as error:
        return _solution_form(found, error.problems, was)
    except Conflict as error:
        return _solution_form(found, {}, conflict=error.message)
    return _done(f"Solution {answer('name').strip()} is saved.")


def _solution_form(
    found: Solution | None, errors: dict[str, str], was: str | None = None, conflict: str = ""
) -> Response:
    kept = {}
    if found:
        kept = {"slug": found.slug, "name": found.name, "description": found.description}
        kept["is_external"] = "yes" if found.is_external else ""
        was = was or workspaces.version_of(found)
    names = ("slug", "name", "description", "is_external")
    return _form("workspace/solution.html", names, kept, errors, conflict, solution=found, was=was)


@pages.route("/solutions/<slug:solution>/apps/new", methods=["GET", "POST"])
@in_workspace
@_for_admins
def new_app(solution: str) -> Response:
    """Add an app with the JSON Schema of its records."""
    with reading() as session:
        found = workspaces.get_solution(session, seat().workspace, solution)
    if request.method != "POST":  # HEAD is a GET
        return _app_form(found, None, {})
    try:
        schema = _schema()  # before the transaction: others can write while it is read
        with transaction() as session:
            here = workspaces.admin_seat(session, actor(), Event.APP_ADDED).workspace
            place = workspaces.get_solution(session, here, solution)
            made = workspaces.add_app(
                session, actor(), place, answer("slug"), answer("name"), schema, answer("description")
            )
    except Invalid as error:
        return _app_form(found, None, error.problems)
    return _done(f"App “{made.name}” was added. Keys can hold {made.slug}:read and {made.slug}:write.")


@pages.route("/apps/<slug:app>/edit", methods=["GET", "POST"])
@in_workspace
@_for_admins
def edit_app(app: str) -> Response:
    """Rename and describe an app, and change the schema of its records where those that stand fit it."""
    with reading() as session:
        found = records.get_app(session, seat().workspace.id, app)
        place = workspaces.solution_of(session, found)
    if request.method != "POST":  # HEAD is a GET
        return _app_form(place, found, {})
    was = was_shown()
    try:
        schema = _schema()
        with transaction() as session:
            workspaces.edit_app(session, actor(), app, answer("name"), answer("description"), schema, was=was)
    except Invalid as error:
        return _app_form(place, found, error.problems, was)
    except Conflict as error:
        return _app_form(place, found, {}, conflict=error.message)
    return _done(f"App {answer('name').strip()} is saved.")


def _schema() -> Schema | None:
    """Read the schema; None where none was asked for, which only an external solution's app may lack."""
    if not answer("schema").strip():
        return None
    try:
        value = json.loads(answer("schema"))
    except (ValueError, RecursionError) as error:
        raise Invalid({"schema": f"This is not JSON: {str(error)[:120]}"}) from None
    return Schema.read(value)


def _app_form(
    solution: Solution, found: App | None, errors: dict[str, str], was: str | None = None, conflict: str = ""
) -> Response:
    kept = {"schema": _EMPTY_SCHEMA}
    if found:
        schema = json.dumps(found.schema, indent=2, ensure_ascii=False)
        kept = {"slug": found.slug, "name": found.name, "description": found.description, "schema": schema}
        was = was or workspaces.version_of(found)
    names = ("slug", "name", "description") if solution.is_external else ("slug", "name", "description", "schema")
    return _form("workspace/app.html", names, kept, errors, conflict, solution=solution, app=found, was=was)


def _form(
    template: str, names: tuple[str, ...], kept: dict[str, str], errors: dict[str, str], conflict: str, **more: Any
) -> Response:
    """Show a form with what was sent, or with what stands; after a conflict with both where they differ."""
    answers = dict.fromkeys(names, "") | kept
    if request.method == "POST":
        answers |= {name: answer(name) if name == "schema" else without_keys(answer(name)) for name in names}
    if kept.get("slug"):
        answers["slug"] = kept["slug"]  # it stands in scopes and addresses, so it stays
    stands = {}
    if conflict:  # browsers end the lines of a schema in their own way
        stands = {name: kept[name] for name in names if kept[name] != answers[name].replace("\r\n", "\n")}
    more |= {"answers": answers, "errors": errors, "conflict": conflict, "stands": stands}
    return make_response(render_template(template, **more), 422 if errors else 409 if conflict else 200)


# --- Policy ---------------------------------------------------------------------------------------------------------


@pages.route("/policy", methods=["GET", "POST"])
@in_workspace
@_for_admins
@recently_proved("to change the policy", "workspace.index")
def set_policy() -> Response:
    """Set how long keys may live and whether administrators own live ones; tell which standing keys would break it."""
    was = wanted = policy.of(seat().workspace)
    if request.method != "POST":  # HEAD is a GET
        return _policy_page(was, was)
    try:
        was = _policy_shown()
        wanted = policy.read(answer("max_key_days"), answer("admins_own_live") == "yes")
        with transaction() as session:
            policy.change(session, actor(), wanted, was)
    except Invalid as error:
        return _policy_page(was, wanted, errors=error.problems)
    return _done("The policy is saved. It holds for every key made, rotated or reactivated from now on.")


@pages.post("/policy/preview")
@in_workspace
@_for_admins
def preview_policy() -> Response:
    """Tell which standing keys a policy would break, and change nothing."""
    was = wanted = policy.of(seat().workspace)
    try:
        was = _policy_shown()
        wanted = policy.read(answer("max_key_days"), answer("admins_own_live") == "yes")
    except Invalid as error:
        return _policy_page(was, wanted, errors=error.problems)
    return _policy_page(was, wanted, previewed=True)


def _policy_shown() -> Policy:
    """Read which policy the form says that it showed; the one that stands, when it says nothing."""
    if "was_days" not in request.form:
        return policy.of(seat().workspace)
    return policy.read(answer("was_days"), answer("was_live", "yes") == "yes")


def _policy_page(
    was: Policy, wanted: Policy, *, previewed: bool = False, errors: dict[str, str] | None = None
) -> Response:
    with reading() as session:
        count, first = policy.preview(session, seat(), wanted, actor().at)
    context = {
        "was": was,
        "wanted": wanted,
        "limits": _LIMITS,
        "breaking": first,
        "count": count,
        "previewed": previewed,
        "errors": errors or {},
    }
    return page_or_fragment("workspace/policy.html", "workspace/_breaking.html", 422 if errors else 200, **context)
