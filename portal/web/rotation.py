"""Rotating a key: the form, the reveal, and what ends or lengthens the overlap; replacing a key whose text was lost."""

import dataclasses
from collections.abc import Mapping

from flask import Response, request

from portal.rules.errors import AlreadyShown, Conflict, Forbidden, Invalid
from portal.rules.lifetimes import Lifetime
from portal.services import activity, drafts, key_views, policy, rotation
from portal.services.drafts import Draft
from portal.services.key_views import KeyView
from portal.web.display import absolute
from portal.web.generate import already_shown, expiries, overlaps, replaced_by, reveal, told_of_rotation
from portal.web.guards import actor, in_workspace, recently_proved, seat
from portal.web.http import answer, page_or_fragment, portal, reading, sparing_use, transaction
from portal.web.keys import keyring, look, pages, row_changed, stopped, with_impact


@pages.route("/keys/<public_id:key_id>/rotate", methods=["GET", "POST"])
@in_workspace
@recently_proved("to rotate an API key")
def rotate(key_id: str) -> Response:
    """Replace a key by one with the same or fewer scopes, while the old one goes on for a while."""
    if request.method != "POST":
        with reading() as session:
            draft = rotation.draft_rotation(session, actor(), seat(), key_id)
        asked = request.args.get("expires", "")  # as the review advises
        if asked in list(Lifetime):
            draft = dataclasses.replace(draft, expires=policy.nearest(seat().workspace, Lifetime(asked)))
        return _rotate_form(key_id, draft)
    draft = Draft(
        scopes=request.form.getlist("scopes"),
        expires=answer("expires"),
        form_id=drafts.check_form_id(answer("form_id")),
        replaces=key_id,
        overlap=answer("overlap"),
    )
    try:
        with transaction() as session:
            key, plain = rotation.rotate(session, actor(), keyring(), draft)
            old = replaced_by(session, key)
    except Invalid as error:
        return _rotate_form(key_id, draft, error.problems)
    except AlreadyShown as error:
        return already_shown(error.made_id)
    return reveal(key, plain, told_of_rotation(key, old), old)


def _rotate_form(key_id: str, draft: Draft, errors: Mapping[str, str] | None = None) -> Response:
    context = with_impact(key_id)
    key = context["key"]
    with reading() as session:
        row = key_views.row_of(session, seat(), key_id)
        exercised = activity.last_exercised(session, row)
    return page_or_fragment(
        "keys/rotate.html",
        "keys/_rotate.html",
        422 if errors else 200,
        **context,
        answers=draft,
        errors=errors or {},
        leaked="leaked" in request.args,
        overlaps=overlaps(key),
        scopes=[
            {"scope": scope, "last_exercised_at": exercised.get(scope.text), "chosen": scope.text in draft.scopes}
            for scope in key.scopes
            if scope.effective
        ],
        expiries=expiries(),
        max_days=seat().workspace.max_key_days,
    )


@pages.route("/keys/<public_id:key_id>/replace", methods=["GET", "POST"])
@in_workspace
@recently_proved("to replace an API key")
def replace(key_id: str) -> Response:
    """Make a key anew whose text was lost before its first use."""
    if request.method != "POST":
        form_id = drafts.new_form_id()
        return page_or_fragment("keys/replace.html", "keys/_replace.html", key=_look_at_mine(key_id), form_id=form_id)
    portal().usage.flush()  # what this process saw of the key counts already
    try:
        with transaction() as session:
            form_id = drafts.check_form_id(answer("form_id"))
            key, plain = rotation.replace_unused(session, actor(), keyring(), key_id, form_id)
    except AlreadyShown as error:
        return already_shown(error.made_id)
    return reveal(key, plain, f"“{key.name}” was replaced. The unused key was deleted.")


@pages.route("/keys/<public_id:key_id>/retire", methods=["GET", "POST"])
@in_workspace
def retire(key_id: str) -> Response:
    """End an overlap now. Stopping a key never asks for the password."""
    if request.method != "POST":
        _check_retiring(look(key_id))
        context = with_impact(key_id)
        return page_or_fragment("keys/retire.html", "keys/_retire.html", **context, verdict=_verdict(key_id))
    with transaction() as session:
        key = rotation.retire(session, actor(), keyring(), key_id)
    told = f"The old “{key.name}” (…{key.last_four}) is retired. Requests are refused from now."
    return stopped(key, told, focus=f"key-{key.successor_id}-link")


@pages.route("/keys/<public_id:key_id>/extend", methods=["GET", "POST"])
@in_workspace
@recently_proved("to let the old key work longer")
def extend(key_id: str) -> Response:
    """Let the old key of a rotation work a day longer."""
    if request.method != "POST":
        key = _check_retiring(_look_at_mine(key_id))
        return page_or_fragment("keys/extend.html", "keys/_extend.html", key=key)
    with transaction() as session:
        key = rotation.extend(session, actor(), keyring(), key_id)
    end = absolute(key.retires_at) if key.retires_at else ""
    told = f"The old “{key.name}” (…{key.last_four}) works longer: until {end}."
    return row_changed(key, told, focus=f"key-{key.id}-retire")


def _look_at_mine(key_id: str) -> KeyView:
    """Give a key of one's own or of an API member; Forbidden for another human's."""
    key = look(key_id)
    if key.owner.kind == "human":
        raise Forbidden(rotation.ONLY_ITS_OWNER)
    return key


def _check_retiring(key: KeyView) -> KeyView:
    if not key.is_retiring:
        raise Conflict(f"“{key.name}” (…{key.last_four}) is not being replaced, or has stopped already.")
    return key


def _verdict(key_id: str) -> rotation.Verdict | None:
    """Say how a rotation stands; None when usage cannot be read, which the impact tells."""
    verdict = None
    with sparing_use(), reading() as session:
        old = key_views.row_of(session, seat(), key_id)
        verdict = rotation.verdict_on(session, old, rotation.successor_of(session, old), actor().at)
    return verdict
