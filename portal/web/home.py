"""A workspace's first page: its solutions, apps and records, and the sandbox of an app."""

from functools import partial
from typing import Any, NamedTuple

from flask import Blueprint, Response, make_response, render_template, request, url_for

from portal.rules.access import AccessLevel, Environment
from portal.rules.errors import NotFound
from portal.rules.paging import pages_of
from portal.services import key_lists, members, records
from portal.services.key_views import KeyView
from portal.services.members import Shelf
from portal.store.models import App, Record
from portal.web.display import level_text
from portal.web.guards import actor, in_workspace, seat
from portal.web.http import fragment_or_redirect, page_number, page_or_fragment, portal, reading, transaction

pages = Blueprint("home", __name__, url_prefix="/w/<slug:ws>")

PAGE_SIZE = 20


@pages.get("")
@in_workspace
def index() -> Response:
    """Show what the member can see: solutions, apps, and the records of the chosen app in one environment."""
    here = seat()
    env = request.args.get("env", "")
    env = env if env in list(Environment) else str(Environment.LIVE)
    number = page_number()
    with reading() as session:
        shelves = [shelf for shelf in members.shelves_for(session, here) if shelf.level is not AccessLevel.NONE]
        chosen = _chosen(shelves, request.args.get("app"))
        may_manage = chosen is not None and chosen.shelf.level is AccessLevel.MANAGE
        may_fill = False
        found: list[Record] = []
        total = 0
        admins = [] if shelves else members.admin_names(session, here.workspace.id)
        own, of_api, first = key_lists.expiring_soon(session, actor(), here, portal().settings.keyring)
        if chosen and not chosen.shelf.solution.is_external:
            place = records.Place(here.workspace.id, chosen.app.slug, env)
            found, total = records.list_for(session, place, limit=PAGE_SIZE, offset=(number - 1) * PAGE_SIZE)
            if not found and number > 1:  # beyond the last page: that one is shown
                number = pages_of(total, PAGE_SIZE)
                found, total = records.list_for(session, place, limit=PAGE_SIZE, offset=(number - 1) * PAGE_SIZE)
            if not total and may_manage and env == Environment.TEST:
                may_fill = records.sandbox_of(session, actor(), chosen.app.slug).live > 0
    return page_or_fragment(
        "home/index.html",
        "home/_records.html",
        solutions=[_solution(each) for each in shelves],
        admins=admins,
        expiring=_expiring(own, of_api, first),
        app=_app(chosen) if chosen else None,
        may_manage=may_manage,
        may_fill=may_fill,
        env=env,
        columns=list(chosen.app.schema.get("properties", {})) if chosen else [],
        records=[
            {"id": each.public_id, "fields": each.fields, "created_at": each.created_at, "updated_at": each.updated_at}
            for each in found
        ],
        total=total,
        page=number,
        pages=pages_of(total, PAGE_SIZE),
    )


def _expiring(own: int, of_api: int, first: list[KeyView]) -> dict[str, Any] | None:
    if not first:
        return None
    url = partial(url_for, "keys.index", ws=seat().workspace.slug, state="expiring", sort="expires")
    lists = [("My keys", own, url(owner="me")), ("API members’ keys", of_api, url(owner="api"))]
    return {"first": first, "lists": [each for each in lists if each[1]]}


def _app(chosen: "_Chosen") -> dict[str, Any]:
    solution = chosen.shelf.solution
    return {
        "slug": chosen.app.slug,
        "name": chosen.app.name,
        "kept_by": solution.name if solution.is_external else None,
    }


class _Chosen(NamedTuple):
    shelf: Shelf
    app: App


def _chosen(shelves: list[Shelf], slug: str | None) -> _Chosen | None:
    """Find the app that the address names, else the first; NotFound for one that the member cannot see."""
    apps = [_Chosen(shelf, app) for shelf in shelves for app in shelf.apps]
    if slug is None:
        return apps[0] if apps else None
    found = next((each for each in apps if each.app.slug == slug), None)
    if found is None:
        raise NotFound()
    return found


def _solution(shelf: Shelf) -> dict[str, object]:
    return {
        "name": shelf.solution.name,
        "slug": shelf.solution.slug,
        "level_text": level_text(shelf.level),
        "is_external": shelf.solution.is_external,
        "apps": shelf.apps,
    }


@pages.route("/apps/<slug:app>/sandbox", methods=["GET", "POST"])
@in_workspace
def sandbox(app: str) -> Response:
    """Fill or reset an app's sandbox from its live records."""
    if request.method != "POST":  # HEAD is a GET
        with reading() as session:
            found = records.sandbox_of(session, actor(), app)
        context = {"app": found.app, "live_count": found.live, "sandbox_count": found.test}
        return make_response(render_template("home/sandbox.html", **context))
    with transaction() as session:
        filled = records.fill_sandbox(session, actor(), app)
    plural = "" if filled.test == 1 else "s"
    return fragment_or_redirect(
        None,
        url_for("home.index", ws=seat().workspace.slug, app=app, env=Environment.TEST),
        message=f"The sandbox of {filled.app.name} holds {filled.test} record{plural}, copied from live.",
    )
