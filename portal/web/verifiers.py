"""Verifiers as administrators see them: the list, making one, revoking one."""

from operator import attrgetter

from flask import Response, flash, make_response, redirect, render_template, request, url_for

from portal.rules.errors import AlreadyShown, Invalid
from portal.services import drafts, verifiers
from portal.web.display import clock
from portal.web.guards import actor, in_workspace, only, recently_proved, seat
from portal.web.http import answer, portal, reading, transaction, without_keys
from portal.web.workspace import pages

_for_admins = only(attrgetter("is_admin"), verifiers.ADMINS_ONLY)


@pages.get("/verifiers")
@in_workspace
def to_verifiers() -> Response:
    """Lead the short address to the list."""
    return make_response(redirect(url_for("workspace.list_verifiers", ws=seat().workspace.slug), 302))


@pages.get("/workspace/verifiers")
@in_workspace
def list_verifiers() -> Response:
    """List the verifiers of the workspace, revoked ones last."""
    with reading() as session:
        found = verifiers.list_for(session, seat())
    context = {"verifiers": found, "base_url": portal().settings.base_url, "most": verifiers.LIMIT}
    return make_response(render_template("verifiers/index.html", **context))


@pages.route("/workspace/verifiers/new", methods=["GET", "POST"])
@in_workspace
@_for_admins
@recently_proved("to make a verifier")
def new_verifier() -> Response:
    """Make a verifier and show its text, once."""
    form_id = drafts.check_form_id(answer("form_id")) or drafts.new_form_id()
    if request.method != "POST":  # HEAD is a GET
        return _form("", form_id, {})
    try:
        with transaction() as session:
            made, plain = verifiers.create(session, actor(), portal().settings.keyring, answer("name"), form_id)
    except Invalid as error:
        return _form(answer("name"), form_id, error.problems)
    except AlreadyShown as error:
        with reading() as session:
            found = verifiers.get(session, seat(), error.made_id)
        return make_response(render_template("verifiers/shown.html", verifier=found), 410)
    with reading() as session:
        found = verifiers.get(session, seat(), made)
    context = {"verifier": found, "base_url": portal().settings.base_url, "clock": clock(actor().at)}
    return make_response(render_template("verifiers/reveal.html", plain=plain.reveal(), **context))


def _form(name: str, form_id: str, errors: dict[str, str]) -> Response:
    context = {"name": without_keys(name)[:200], "form_id": form_id, "errors": errors}
    return make_response(render_template("verifiers/new.html", **context), 422 if errors else 200)


@pages.route("/workspace/verifiers/<public_id:vid>/revoke", methods=["GET", "POST"])
@in_workspace
@_for_admins
def revoke_verifier(vid: str) -> Response:
    """Stop a verifier for ever. Stopping one never asks for the password."""
    if request.method != "POST":  # HEAD is a GET
        with reading() as session:
            found = verifiers.get(session, seat(), vid)
        return make_response(render_template("verifiers/revoke.html", verifier=found))
    with transaction() as session:
        name = verifiers.revoke(session, actor(), vid)
    flash(f"“{name}” is revoked. It gets no more answers.")
    return make_response(redirect(url_for("workspace.list_verifiers", ws=seat().workspace.slug), 303))
