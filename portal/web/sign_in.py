"""Signing in and out, choosing a workspace, proving that it is still you, accepting an invitation."""

from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, flash, make_response, redirect, render_template, request, url_for
from flask import session as browser_session
from flask_login import current_user, logout_user

from portal.rules.errors import Invalid, NotFound, PortalError, TooManyAttempts
from portal.rules.text import local_path
from portal.services import accounts, invitations, members, sessions
from portal.services.invitations import NewAccount, OpenInvitation
from portal.store.database import TROUBLE
from portal.store.models import Account
from portal.web.door import client_label
from portal.web.guards import (
    anybody,
    endpoint_at,
    place_among,
    places_of,
    prompt,
    prove_again,
    question_before,
    signed_in,
    start_browser_session,
    visitor,
)
from portal.web.http import answer, in_words, page_or_fragment, reading, too_many, transaction, without_keys

pages = Blueprint("sign_in", __name__)

_NO_MATCH = "That email and password do not match."


@pages.get("/")
@anybody
def start() -> Response:
    """Go where this browser was last, or to the sign-in page."""
    if not current_user.is_authenticated:
        return make_response(redirect(url_for("sign_in.login"), 303))
    return make_response(redirect(_home(), 303))


@pages.route("/login", methods=["GET", "POST"])
@anybody
def login() -> Response:
    """Sign in with email and password."""
    target = local_path(request.args.get("next") if request.method != "POST" else answer("next"))
    if current_user.is_authenticated:
        return make_response(redirect(target or _home(), 303))
    if request.method != "POST":  # HEAD is a GET
        return _login_page(target)
    email, password = answer("email"), answer("password")
    if not password:
        return _login_page(target, email, accounts.NOTHING_ENTERED, 422)
    try:
        found = _sign_in(email, password)
    except TooManyAttempts as error:
        return too_many(_login_page(target, email, in_words(error)), error)
    if not found:
        return _login_page(target, email, _NO_MATCH, 422)
    if target:
        flash("Signed in. Back to API keys." if endpoint_at(target) == "keys.index" else "Signed in.")
    return make_response(redirect(target or url_for("sign_in.start"), 303))


def _sign_in(email: str, password: str) -> bool:
    actor = visitor()
    with transaction(actor) as session:
        attempt = accounts.begin_attempt(session, actor, email)
    if not attempt.verify(password):
        with transaction() as session:
            accounts.fail(session, actor, attempt)
        return False
    before = current_user.user_session if current_user.is_authenticated else None
    with transaction() as session:
        user_session, token = accounts.sign_in(session, actor, attempt, _device(), before)
    browser_session.clear()  # nothing of the time before, its CSRF token included, goes on
    start_browser_session(user_session, token)
    return True


def _device() -> str:
    return sessions.label(request.headers.get("User-Agent", "")) or client_label(request.environ)


def _login_page(target: str | None, email: str = "", error: str | None = None, status: int = 200) -> Response:
    context = {
        "next": target or "",
        "email": without_keys(email)[:254],
        "error": error,
        "is_wrong": error is _NO_MATCH,
        "has_ended": "_user_id" in browser_session,  # Flask-Login's: somebody was signed in here, and did not sign out
        "is_unsent": browser_session.pop("unsent", False),
    }
    return make_response(render_template("sign_in/login.html", **context), status)


@pages.post("/logout")
@anybody
def logout() -> Response:
    """End the session on the server and in the browser; works when it was over already."""
    if current_user.is_authenticated:
        with transaction() as session:
            accounts.sign_out(session, visitor(), current_user.user_session)
    logout_user()
    browser_session.clear()
    response = make_response(redirect(url_for("sign_in.login"), 303))
    response.headers["Clear-Site-Data"] = '"cache", "storage"'
    return response


@pages.route("/reauth", methods=["GET", "POST"])
@signed_in
def reauth() -> Response:
    """Ask for the password again, then go on to `next`."""
    sent = request.args.get("next") if request.method != "POST" else answer("next")
    target = local_path(sent) or url_for("sign_in.start")
    question = question_before(target)
    if request.method == "POST":
        return prove_again(question) or make_response(redirect(target, 303))
    return prompt(question, status=200)


@pages.get("/w")
@signed_in
def choose() -> Response:
    """Choose a workspace; whoever has only one is taken there."""
    with reading() as session:
        mine = members.roles_of(session, current_user.account.id)
    if len(mine) == 1:
        return make_response(redirect(url_for("home.index", ws=mine[0][0].workspace.slug), 303))
    return make_response(render_template("sign_in/choose.html", workspaces=places_of(mine), workspace=None))


def _home() -> str:
    """Name the page of the workspace that this session was last in, if it may still go there."""
    user_session = current_user.user_session
    with reading() as session:
        mine = members.workspaces_of(session, user_session.account_id)
    place = place_among(mine, user_session)
    return url_for("home.index", ws=place.workspace.slug) if place else url_for("sign_in.choose")


@pages.route("/invite/<token:token>", methods=["GET", "POST"])
@anybody
def invitation(token: str) -> Response:
    """Join a workspace over a one-time link: with a new account, or with the password of the one there is."""
    actor = visitor()
    try:
        with reading() as session:
            found = invitations.get_by_token(session, token, actor)
    except NotFound:
        return make_response(render_template("sign_in/invitation_gone.html"), 404)
    if request.method != "POST":  # HEAD is a GET
        return _invitation_page(found, token)
    name, password = answer("name"), answer("password")
    try:
        _join(found, token, name, password)
    except Invalid as error:
        return _invitation_page(found, token, name, error.problems, 422)
    slug = found.invitation.workspace.slug
    flash(f"Welcome to {found.invitation.workspace.name}.")
    return make_response(redirect(url_for("home.index", ws=slug), 303))


def _join(found: OpenInvitation, token: str, name: str, password: str) -> None:
    actor = visitor()
    email = found.invitation.email
    who: Account | NewAccount
    if found.account:
        if not password:
            raise Invalid({"password": accounts.NOTHING_ENTERED})
        with transaction(actor) as session:
            attempt = accounts.begin_attempt(session, actor, email)
        # An account whose memberships all ended cannot sign in, but may be invited again.
        if not accounts.verify_account(found.account, password):
            with transaction() as session:
                accounts.fail(session, actor, attempt)
            raise Invalid({"password": "That password is not right. Use the one you sign in with."})
        with transaction() as session:
            accounts.take_back(session, attempt, actor.at)
        who = found.account
    else:
        who = NewAccount.choose(name, password, answer("password_again"))
    with transaction() as session:
        invitations.accept(session, actor, token, who)
    with suppress(PortalError, *TROUBLE):  # joined is joined; else the next page asks to sign in
        _sign_in(email, password)


def _invitation_page(
    found: OpenInvitation, token: str, name: str = "", errors: dict[str, str] | None = None, status: int = 200
) -> Response:
    role = "an administrator" if found.invitation.role == "admin" else "a member"
    context: dict[str, Any] = {
        "token": token,
        "workspace_name": found.invitation.workspace.name,
        "email": found.invitation.email,
        "role_text": role,
        "has_account": found.account is not None,
        "name": without_keys(name)[:60],
        "errors": errors or {},
    }
    return page_or_fragment("sign_in/invitation.html", "sign_in/invitation.html", status, **context)
