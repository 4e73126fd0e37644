"""A person's own pages, whatever the workspace: preferences, and what the keyboard does."""

from flask import Blueprint, Response, flash, make_response, redirect, render_template, request, url_for
from flask_login import current_user

from portal.rules.errors import Invalid
from portal.services import accounts
from portal.services.accounts import Preferences
from portal.web.guards import signed_in
from portal.web.http import answer, transaction

pages = Blueprint("account", __name__)


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
        shortcuts=answer("shortcuts") == "on",
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
