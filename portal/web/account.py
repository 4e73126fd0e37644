"""A person's own pages, whatever the workspace: account, sessions, password, preferences, what the keyboard does."""

from collections.abc import Mapping

from flask import Blueprint, Response, flash, make_response, redirect, render_template, request, url_for
from flask import session as browser_session
from flask_login import current_user, logout_user

from portal.rules.errors import Invalid, NotFound, TooManyAttempts
from portal.rules.text import clean_email
from portal.services import accounts, members, passwords, people, sessions
from portal.services.accounts import Preferences
from portal.services.actor import Actor
from portal.services.passwords import NewPassword
from portal.web.guards import actor, anybody, places_of, signed_in, start_browser_session, visitor
from portal.web.http import (
    afterwards,
    answer,
    in_words,
    page_or_fragment,
    reading,
    send_mails,
    ticked,
    too_many,
    transaction,
    without_keys,
)
from portal.web.parts import Portal

pages = Blueprint("account", __name__)


@pages.get("/account")
@signed_in
def index() -> Response:
    """Show who one is, in which workspaces, and what can be changed about that."""
    account = current_user.account
    with reading() as session:
        mine = members.roles_of(session, account.id)
        keys = passwords.active_keys(session, account.id, actor())
    told = {"account": account, "places": places_of(mine), "key_count": keys}
    return make_response(render_template("account/index.html", **told))


@pages.route("/account/name", methods=["GET", "POST"])
@signed_in
def name() -> Response:
    """Choose another name for oneself."""
    account = current_user.account
    if request.method != "POST":  # HEAD is a GET
        return _name_page(account.name)
    wanted = answer("name")
    try:
        with transaction() as session:
            kept = people.rename_self(session, actor(), account.email, wanted)
    except Invalid as error:
        return _name_page(without_keys(wanted), error.problems)
    flash(f"Your name is {kept} now.")
    return make_response(redirect(url_for("account.index"), 303))


def _name_page(written: str, errors: Mapping[str, str] | None = None) -> Response:
    context = {"name": written, "errors": errors or {}}
    return make_response(render_template("account/name.html", **context), 422 if errors else 200)


# --- Sessions -------------------------------------------------------------------------------------------------------


@pages.route("/account/sessions", methods=["GET", "POST"])
@signed_in
def own_sessions() -> Response:
    """List where one is signed in; end one other session (`session`), or without it all others."""
    this = current_user.user_session
    if request.method != "POST":  # HEAD is a GET
        with reading() as session:
            found = sessions.list_for(session, this, actor().at)
        return make_response(render_template("account/sessions.html", sessions=found))
    chosen = answer("session")
    with transaction() as session:
        count = sessions.end(session, actor(), this, chosen or None)
    flash("Signed out there." if chosen else f"Signed out of {count} other session{'' if count == 1 else 's'}.")
    return make_response(redirect(url_for("account.own_sessions"), 303))


@pages.post("/account/stay")
@signed_in
def stay() -> Response:
    """Stay signed in: being asked is being seen."""
    user_session = current_user.user_session
    with transaction() as session:
        accounts.mark_seen(session, user_session, actor().at, None)
    flash("You stay signed in.")
    return make_response(redirect(url_for("sign_in.start"), 303))


# --- Passwords ------------------------------------------------------------------------------------------------------


@pages.route("/account/password", methods=["GET", "POST"])
@signed_in
def password() -> Response:
    """Change the password; everybody else who is signed in with the old one is signed out."""
    if request.method != "POST":  # HEAD is a GET
        return _password_page()
    try:
        stopped = _change_password()
    except Invalid as error:
        return _password_page(error.problems)
    keys = "" if not stopped else f" {stopped} {'key is' if stopped == 1 else 'keys are'} deactivated."
    flash(f"Your password is changed. All other sessions have ended.{keys}")
    return make_response(redirect(url_for("account.index"), 303))


def _change_password() -> int:
    user_session, old = current_user.user_session, answer("current_password")
    if not old:
        raise Invalid({"current_password": accounts.NOTHING_ENTERED})
    with transaction() as session:
        attempt = accounts.begin_attempt(session, actor(), user_session.account.email)
    if not attempt.verify(old):
        with transaction() as session:
            accounts.fail(session, actor(), attempt)
        raise Invalid({"current_password": f"That password is not right. {_tries(attempt.tries_left)} left."})
    try:
        new = _chosen(old=old)
    except Invalid:
        with transaction() as session:
            accounts.take_back(session, attempt, actor().at)
        raise
    with transaction() as session:
        token, stopped = passwords.change(session, actor(), attempt, new, user_session)
    browser_session.clear()  # a new CSRF token too
    start_browser_session(user_session, token)
    return stopped


def _chosen(*, old: str | None = None) -> NewPassword:
    stop_keys = answer("stop_keys") == "yes"
    return NewPassword.choose(answer("password"), answer("password_again"), stop_keys=stop_keys, old=old)


def _tries(left: int) -> str:
    return f"{left} {'try' if left == 1 else 'tries'}"


def _password_page(errors: Mapping[str, str] | None = None) -> Response:
    account = current_user.account
    with reading() as session:
        keys = passwords.active_keys(session, account.id, actor())
    context = {
        "errors": errors or {},
        "key_count": keys,
        "stop_keys": answer("stop_keys", "no"),
        "email": account.email,
    }
    return make_response(render_template("account/password.html", **context), 422 if errors else 200)


@pages.route("/reset", methods=["GET", "POST"])
@anybody
def ask_reset() -> Response:
    """Ask for a one-time link. The answer is the same for every address; what there is to do is done after it."""
    if request.method != "POST":  # HEAD is a GET
        return make_response(render_template("account/reset_ask.html", email="", error=None))
    who, written = visitor(), answer("email")
    email = clean_email(written)
    if not email:
        shown = {"email": without_keys(written)[:254], "error": "Enter an email address like ana@example.org."}
        return make_response(render_template("account/reset_ask.html", **shown), 422)
    try:
        with transaction(who) as session:
            accounts.count_request(session, who, email)
    except TooManyAttempts as limit:
        page = make_response(render_template("account/reset_ask.html", email=email, error=in_words(limit)))
        return too_many(page, limit)
    afterwards(_send_link, who, email)
    return make_response(render_template("account/reset_sent.html", email=email))


def _send_link(here: Portal, who: Actor, email: str) -> None:
    with here.database.transaction() as session:
        passwords.send_link(session, who, email, here.settings.base_url)
    send_mails(here)


@pages.route("/reset/<token:token>", methods=["GET", "POST"])
@anybody
def reset(token: str) -> Response:
    """Choose a new password over a one-time link, then sign in with it."""
    who = visitor()
    try:
        with reading() as session:
            _, account = passwords.open_reset(session, who, token)
            keys = passwords.active_keys(session, account.id, who)
    except NotFound:
        return make_response(render_template("account/reset_gone.html"), 404)
    context = {"token": token, "email": account.email, "key_count": keys, "errors": {}, "stop_keys": "yes"}
    if request.method != "POST":  # HEAD is a GET
        return page_or_fragment("account/reset.html", "account/reset.html", **context)
    try:
        new = _chosen()
    except Invalid as error:
        context |= {"errors": error.problems, "stop_keys": answer("stop_keys", "no")}
        return page_or_fragment("account/reset.html", "account/reset.html", 422, **context)
    with transaction() as session:
        passwords.reset(session, who, token, new)
    logout_user()
    browser_session.clear()
    flash("Your password is changed and every session has ended. Sign in with it.")
    return make_response(redirect(url_for("sign_in.login"), 303))


# --- Preferences ----------------------------------------------------------------------------------------------------


@pages.route("/preferences", methods=["GET", "POST"])
@signed_in
def preferences() -> Response:
    """Choose time zone, clock, theme, rows a page and single-key shortcuts."""
    account = current_user.account
    if request.method != "POST":  # HEAD is a GET
        kept = (account.time_zone, account.clock, account.theme, str(account.page_rows), account.has_shortcuts)
        return _preferences_page(Preferences(*kept))
    wanted = Preferences(
        time_zone=answer("time_zone"),
        clock=answer("clock"),
        theme=answer("theme"),
        page_rows=answer("page_rows"),
        shortcuts=ticked("shortcuts"),
    )
    try:
        with transaction() as session:
            accounts.prefer(session, account.id, wanted)
    except Invalid as error:
        return _preferences_page(wanted, error.problems)
    flash("Preferences saved.")
    return make_response(redirect(url_for("account.preferences"), 303))


def _preferences_page(answers: Preferences, errors: dict[str, str] | None = None) -> Response:
    context = {"answers": answers, "zones": accounts.time_zones(), "errors": errors or {}}
    return make_response(render_template("account/preferences.html", **context), 422 if errors else 200)


@pages.get("/help/keyboard")
@signed_in
def keyboard() -> Response:
    """Tell what the keyboard does."""
    return make_response(render_template("account/keyboard.html"))
