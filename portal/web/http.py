"""What every page and every API answer shares: the transaction, fragments, headers, and the one error table."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Request, Response, current_app, flash, g, make_response, redirect, render_template, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException

from portal.mail import mailer
from portal.rules.credentials import KEY_SHAPED
from portal.rules.errors import (
    AlreadyShown,
    BreaksRule,
    Conflict,
    DoesNotFit,
    Forbidden,
    Invalid,
    KeyRefused,
    NeedsProof,
    NotFound,
    PortalError,
    PreconditionFailed,
    Refusal,
    TooLarge,
    TooManyAttempts,
    Unavailable,
    Unreadable,
    UnsupportedType,
)
from portal.services import audit, members, outbox
from portal.services.actor import Actor
from portal.services.members import Seat
from portal.store.database import MISTAKES, TROUBLE, Session
from portal.web import answers, display
from portal.web.door import PASSAGE, Passage, note_refusal
from portal.web.front import ENDPOINT
from portal.web.parts import Portal

_log = logging.getLogger(__name__)

PUBLIC_ID = "[a-z]{2,8}_[0-9A-Za-z]{1,31}"
FORM_LIMIT = 16 * 1024  # bytes of a form
SIGN_IN_LIMIT = 4 * 1024
JSON_LIMIT = 1024 * 1024
_PUBLIC_ID = re.compile(PUBLIC_ID)
_MAX_CARRIED = 150  # answers of a form that are sent back to be sent again
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def portal() -> Portal:
    """Give the portal of the current application."""
    found: Portal = current_app.extensions["portal"]
    return found


@contextmanager
def transaction(who: Actor | None = None) -> Iterator[Session]:
    """Open the request's writing transaction; a refused change is told in the audit log after the rollback.

    Of `who`, where nobody is signed in.

    Where the form was cancelled, nothing changes: it is shown again as any that cannot be accepted, without problems.
    """
    if is_cancelled():
        raise Invalid({})
    here = portal()
    with audit.transaction(here.database, who or g.get("actor")) as session:
        yield session
    here.unwritable.end()


def afterwards(what: Callable[..., None], *given: Any) -> None:
    """Do something beside the answer, which does not wait for it. What goes wrong is logged: what it follows stands."""
    here = portal()

    def careful() -> None:
        try:
            what(here, *given)
        except Exception:
            _log.exception("what was left to be done could not be done")

    try:
        here.errands.submit(careful)
    except RuntimeError:  # no thread to be had, or shutting down
        _log.exception("what was left to be done could not be begun")


def send_mails(here: Portal) -> None:
    """Let the mails that wait be handed over, one after the other and beside all else; a stop leaves the rest."""
    if here.post_is_asked.is_set():
        return
    here.post_is_asked.set()
    try:
        here.post.submit(_send_one, here)
    except RuntimeError:  # no thread to be had, or shutting down
        here.post_is_asked.clear()
        raise


def _send_one(here: Portal) -> None:
    here.post_is_asked.clear()  # first: who asks from now on is heard
    try:
        wrong = outbox.send_one(here.database, mailer(here.settings))
    except Exception:
        _log.exception("mails could not be sent")
        return
    if wrong:
        _log.error("a mail was not taken: %s", wrong)
    if wrong is not None:
        with suppress(RuntimeError):  # shutting down: the others wait for the next run
            send_mails(here)


@contextmanager
def reading() -> Iterator[Session]:
    """Open a session that only reads."""
    here = portal()
    with here.database.reading() as session:
        yield session
    here.unreadable.end()


def reading_much() -> AbstractContextManager[Session]:
    """Open a session that only reads, for a page that reads much: on a replica, where there is one that is as far."""
    return (portal().replica or portal().database).reading()


@contextmanager
def sparing_use() -> Iterator[None]:
    """Let a page go on where what keys did cannot be read, for whatever reason: a key must be stoppable all the same.

    Mistakes of ours are spared too. The log tells of each trouble once.
    """
    outage = portal().use_unreadable
    try:
        yield
    except TROUBLE as error:
        outage.begin(error, request_id=g.request_id)
    else:
        outage.end()


# --- Requests -------------------------------------------------------------------------------------------------------


class PortalSessions(SecureCookieSessionInterface):
    """Flask's signed cookie for pages; nothing at all for integrations, where only a key says who asks."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Read the cookie of a page's request."""
        return self.make_null_session(app) if is_api(request) else super().open_session(app, request)


def body_limit(path: str) -> int:
    """Say how many bytes a request to this path may send."""
    if path.startswith("/api/"):
        return JSON_LIMIT
    return SIGN_IN_LIMIT if path == "/login" else FORM_LIMIT


def is_api(a_request: Request) -> bool:
    """Say whether a request is an integration's: those get JSON, keys and no cookies."""
    return a_request.path.startswith(("/api/", answers.OAUTH))


def is_fragment() -> bool:
    """Say whether HTMX asks for a part of a page. A hint for the layout only: it decides nothing else."""
    headers = request.headers
    return headers.get("HX-Request") == "true" and "HX-History-Restore-Request" not in headers


def is_from_dialog() -> bool:
    """Say whether the answer of this HTMX request goes into the dialog."""
    return request.headers.get("HX-Target", "").endswith("#dlg-body")


def is_cancelled() -> bool:
    """Say whether the question for the password was answered with Cancel: its form then carries the answers back."""
    return request.method == "POST" and not is_api(request) and "cancel" in request.form


def page_of_fragment() -> str | None:
    """Name the page that a fragment was asked for on: its path with its query, on this site."""
    current = request.headers.get("HX-Current-URL", "")
    own = _own_origin()
    return current.removeprefix(own) if current.startswith(f"{own}/") else None


def answer(name: str, default: str = "") -> str:
    """Read a form field that is due once; Unreadable when it is sent twice, for neither is the one meant."""
    values = request.form.getlist(name)
    if len(values) > 1:
        raise Unreadable(f"The form sent {name} more than once.")
    return values[0] if values else default


def ticked(name: str) -> bool:
    """Say whether a box is ticked. A form leaves out the others; a program may write out that one is not."""
    return answer(name).lower() not in ("", "no", "off", "false", "0")


def was_shown() -> str | None:
    """Read what a form says that it showed (its field `was`), by which a stale answer is known; None when it does not.

    Where the same answers are shown again it goes with them, or the next Save would overwrite what came in between.
    """
    return without_keys(answer("was")) if "was" in request.form else None


def without_keys(text: str) -> str:
    """Give what somebody sent for showing it again: a key that was pasted where none belongs is not shown."""
    return KEY_SHAPED.sub("…", text)


def public_id(text: str) -> str:
    """Give a public id back when it can be one; '' for anything else, which is nobody's."""
    return text if _PUBLIC_ID.fullmatch(text) else ""


def page_number() -> int:
    """Read `?page=`; anything that is no page is the first one."""
    text = request.args.get("page", "")
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 7 and int(text) else 1


def _own_origin() -> str:
    """Give the origin that browsers know this site by, whatever a proxy makes of it."""
    settings = portal().settings
    return f"http://{request.host}" if settings.is_local else settings.base_url


# --- Answers --------------------------------------------------------------------------------------------------------


def page_or_fragment(page: str, fragment: str, status: int = 200, /, **context: Any) -> Response:
    """Render a whole page, or for HTMX only the fragment that the page includes."""
    return make_response(render_template(fragment if is_fragment() else page, **context), status)


def fragment_or_redirect(
    fragment: str | None,
    url: str,
    *,
    message: str,
    focus: Sequence[str] = (),
    close: bool = False,
    reload: bool = False,
    refused: bool = False,
    **context: Any,
) -> Response:
    """Answer a change: for HTMX with a fragment (None: nothing to swap) and what the script does next; else 303.

    One that was `refused`, because somebody else changed the same thing, is told so with what is there now.
    """
    if not is_fragment():
        flash(message)
        return make_response(redirect(url, 303))
    response = make_response(render_template(fragment, **context) if fragment else "")
    if not fragment:
        response.headers["HX-Reswap"] = "none"
    done = {"message": message, "focus": list(focus), "close": close, "reload": reload, "refused": refused}
    if refused:
        response.status_code = status_of(Conflict)
    response.headers["HX-Trigger"] = json.dumps({"portal:done": done})
    return response


def in_words(limit: TooManyAttempts) -> str:
    """Tell of a limit on tries, and when the next one counts."""
    return f"{limit.message} Try again at {display.absolute(limit.retry_at)} ({display.relative(limit.retry_at)})."


def too_many(response: Response, limit: TooManyAttempts) -> Response:
    """Make an answer one that tells of a limit on tries."""
    response.status_code = _TABLE[TooManyAttempts].status
    response.headers["Retry-After"] = str(limit.retry_after(g.now))
    return response


def go_to(url: str) -> Response:
    """Send the browser to another page of ours, whether HTMX asked or the browser itself."""
    if not is_fragment():
        return make_response(redirect(url, 303))
    response = make_response("", 204)
    response.headers["HX-Redirect"] = url
    return response


def _finish(response: Response) -> Response:
    if response.status_code == 204:
        del response.headers["Content-Type"]  # of nothing
    if PASSAGE in request.environ:
        return response  # the door adds what its answers have
    headers = response.headers
    headers["X-Request-Id"] = g.get("request_id", "")
    if is_api(request):
        headers.setdefault("Cache-Control", "no-store")
    elif request.endpoint != "static" or response.status_code not in (200, 304):
        headers["Cache-Control"] = "no-store"
        response.vary.update(("Cookie", "HX-Request"))
    return response


def _begin() -> None:
    request.environ[ENDPOINT] = request.endpoint or "none"
    passage: Passage | None = request.environ.get(PASSAGE)
    g.now = passage.now if passage else datetime.now(UTC)
    g.request_id = passage.request_id if passage else answers.new_request_id()
    if request.method in UNSAFE:
        request.max_content_length = body_limit(request.path)


def is_from_elsewhere() -> bool:
    """Say whether another site sent a form (Fetch metadata, RFC 6454); without both headers the token decides."""
    if request.method not in UNSAFE or is_api(request):
        return False
    origin = request.headers.get("Origin")
    foreign = origin is not None and origin.lower() != _own_origin().lower()
    return foreign or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")


# --- Errors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """How one class of error looks from outside."""

    status: int
    type: str
    heading: str


_TABLE: dict[type[PortalError], _Row] = {
    Unreadable: _Row(400, "validation_error", "We could not read that"),
    Forbidden: _Row(403, "authorization_error", "You cannot do that here"),
    NeedsProof: _Row(403, "authorization_error", "Confirm that it is you"),
    NotFound: _Row(404, "not_found_error", "We cannot find that page"),
    Conflict: _Row(409, "conflict_error", "Something changed in the meantime"),
    AlreadyShown: _Row(410, "conflict_error", "That has already been shown"),
    PreconditionFailed: _Row(412, "conflict_error", "Something changed in the meantime"),
    TooLarge: _Row(413, "validation_error", "That is too long"),
    UnsupportedType: _Row(415, "validation_error", "We could not read that"),
    Invalid: _Row(422, "validation_error", "Check these answers"),
    BreaksRule: _Row(422, "business_rule_error", "Check these answers"),
    DoesNotFit: _Row(422, "validation_error", "Check these answers"),
    TooManyAttempts: _Row(429, "rate_limit_error", "Too many tries"),
    Unavailable: _Row(503, "api_error", "Back soon"),
}
_BROKEN = _Row(500, "api_error", "Something broke on our side")
_HTTP = {row.status: kind for kind, row in _TABLE.items() if kind not in (BreaksRule, DoesNotFit, NeedsProof)}
_WORDS = {
    404: "It may have been deleted, or you may not be allowed to see it.",
    405: "This address does not take that kind of request.",
}


def status_of(kind: type[PortalError]) -> int:
    """Say which status a class of error is answered with."""
    return _TABLE[kind].status


def error_types() -> dict[int, set[str]]:
    """List each status that an error may have, with the types that stand in its answer."""
    found: dict[int, set[str]] = {_BROKEN.status: {_BROKEN.type}, 405: {_TABLE[Unreadable].type}}
    for row in _TABLE.values():
        found.setdefault(row.status, set()).add(row.type)
    for refusal, scope in ((Refusal.MISSING, None), (Refusal.ACCESS_WITHDRAWN, "")):
        made = answers.refuse(KeyRefused(refusal, required=scope), "", "")
        found.setdefault(made.status, set()).add(json.loads(made.body)["error"]["type"])
    return found


def on_portal_error(error: PortalError) -> Response:
    """Answer an error of the one family: JSON to integrations, a fragment to HTMX, a page to browsers."""
    if isinstance(error, KeyRefused):
        return _refuse_key(error)
    if isinstance(error, Forbidden) and request.path.startswith("/api/"):
        return _respond(answers.forbid(g.request_id, error.code, error.message))
    row = _TABLE[type(error)]
    extra: dict[str, Any] = {}
    if isinstance(error, DoesNotFit):
        extra["details"] = error.details
    elif isinstance(error, Invalid):
        extra["details"] = [{"path": path, "message": message} for path, message in error.problems.items()]
    message = in_words(error) if isinstance(error, TooManyAttempts) else error.message
    if message == NotFound.words and not is_api(request) and not is_fragment():
        message = _WORDS[404]  # a page's heading says the other words
    if isinstance(error, Forbidden) and (here := g.get("seat")) and not here.is_admin:
        message += _whom_to_ask(here)
    response = _error(row, error.code, message, **extra)
    if isinstance(error, TooManyAttempts):
        return too_many(response, error)
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = "5"
    return response


def _whom_to_ask(here: Seat) -> str:
    names: list[str] = []
    with suppress(*TROUBLE), reading() as session:
        names = members.admin_names(session, here.workspace.id)
    return f" Ask {' or '.join(names)}." if names else ""


def _on_http_exception(error: HTTPException) -> Response:
    """Give werkzeug's own errors (no route, method, size, Host) the same shape."""
    status = error.code or 500
    if status >= 500:
        return _on_bug(getattr(error, "original_exception", None) or error)
    if status < 400:
        return error.get_response()  # type: ignore[return-value]
    code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(status, "bad_request")
    message = _WORDS.get(status, error.description or "")
    if status == 404 and is_api(request):
        message = f"Nothing has this address. What there is: {portal().settings.base_url}/docs/api"
    if status == 413:
        message = f"Send at most {display.thousands(request.max_content_length or 0)} bytes."
    row = _TABLE[_HTTP.get(status, Unreadable)]
    response = _error(_Row(status, row.type, row.heading), code, message)
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _on_trouble(error: Exception) -> Response:
    outage = portal().unwritable if request.method in UNSAFE else portal().unreadable
    outage.begin(error)
    return on_portal_error(Unavailable(answers.AWAY))


def _on_bug(error: Exception) -> Response:
    _log.error("a request failed", exc_info=error, extra={"path": request.path, "method": request.method})
    return _error(_BROKEN, "internal_error", "Nothing of this request was kept. Keys keep working.")


def _error(row: _Row, code: str, message: str, **extra: Any) -> Response:
    if request.path.startswith(answers.OAUTH):
        return make_response(answers.oauth_error(row.status, message), row.status)
    if is_api(request):
        return api_error(row.status, row.type, code, message, **extra)
    context = {
        "code": row.status,
        "heading": row.heading,
        "body": message,
        "request_id": g.get("request_id", ""),
    }
    if not is_fragment():
        return make_response(render_template("errors/error.html", **context), row.status)
    response = make_response(render_template("errors/_error.html", **context), row.status)
    response.headers["HX-Retarget"] = "#dlg-alert" if is_from_dialog() else "#alert"
    response.headers["HX-Reswap"] = "innerHTML"
    return response


def form_expired(*, is_signed_out: bool = False) -> Response:
    """Keep what was typed when a form outlived its session's token: it is shown again, to be sent with a new one.

    Who `is_signed_out` is told to sign in first. htmx is told so, and sends the form as a page.
    """
    if is_fragment() or len(request.form) > _MAX_CARRIED:
        told = _error(_Row(400, "validation_error", ""), "csrf", "This form was open too long. Reload the page.")
        told.headers["X-Form-Expired"] = "yes"
        return told
    context = {
        "action": own_address(),
        "carried": carried_answers(),
        "asks_password": "password" in request.form,
        "is_signed_out": is_signed_out,
        "request_id": g.request_id,
    }
    return make_response(render_template("errors/expired.html", **context), 400)


def own_address() -> str:
    """Give the address that was asked for, with its query but without any key in it."""
    return KEY_SHAPED.sub("…", request.full_path.rstrip("?"))


def carried_answers() -> list[tuple[str, str]]:
    """Give what a form sent, to be sent again by another one: all but secrets and what that form adds itself."""
    own = ("csrf_token", "password", "password_again", "current_password", "account")
    return [(name, KEY_SHAPED.sub("…", value)) for name, value in request.form.items(multi=True) if name not in own]


def api_reply(data: Any, status: int = 200, meta: dict[str, Any] | None = None) -> Response:
    """Answer an integration: `{"data": …, "meta": {"requestId": …}}`."""
    return Response(answers.data(data, g.request_id, **(meta or {})), status, mimetype="application/json")


def api_error(status: int, kind: str, code: str, message: str, **extra: Any) -> Response:
    """Refuse an integration: `{"error": {"type", "code", "message", …}, "meta": {"requestId": …}}`."""
    return _respond(answers.error(g.request_id, status, kind, code, message, **extra))


def _refuse_key(error: KeyRefused) -> Response:
    passage: Passage | None = request.environ.get(PASSAGE)
    if passage:
        note_refusal(portal().usage, request.environ, passage, error)
    return _respond(answers.refuse(error, g.request_id, portal().settings.base_url))


def _respond(made: answers.Answer) -> Response:
    return Response(made.body, made.status, made.headers, mimetype="application/json")


def register(app: Flask) -> None:
    """Put the shared parts on an application; before anything else that looks at requests."""
    app.session_interface = PortalSessions()
    app.before_request(_begin)
    app.after_request(_finish)
    app.register_error_handler(PortalError, on_portal_error)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_bug)
    for trouble in TROUBLE:
        app.register_error_handler(trouble, _on_trouble)
    for mistake in MISTAKES:
        app.register_error_handler(mistake, _on_bug)
