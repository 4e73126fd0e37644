"""Who may call a view, said in one line above it. A view without such a line is out of reach (deny by default)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import Any

from flask import Flask, Response, current_app, g, make_response, redirect, request, url_for
from flask import session as browser_session
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from portal.rules.access import Action, Scope
from portal.rules.errors import Attempt, Forbidden, KeyRefused, NotFound, Refusal, TooManyAttempts
from portal.services import accounts, audit, members, verifiers
from portal.services.accounts import LiveSession, Viewer
from portal.services.actor import Actor, Means
from portal.services.audit import Event
from portal.services.members import Seat
from portal.store.database import TROUBLE
from portal.store.models import Account, Member
from portal.web.answers import PRODUCT, oauth_error
from portal.web.display import role_text
from portal.web.door import PASSAGE, Passage
from portal.web.http import (
    answer,
    carried_answers,
    form_expired,
    go_to,
    in_words,
    is_api,
    is_cancelled,
    is_fragment,
    is_from_dialog,
    is_from_elsewhere,
    own_address,
    page_of_fragment,
    page_or_fragment,
    portal,
    reading,
    too_many,
    transaction,
)
from portal.web.templates import address

View = Callable[..., Any]
login_manager = LoginManager()


class Audience(StrEnum):
    """Who a view is for. Each declares one of these, by the decorators below."""

    ANYBODY = "anybody"
    SIGNED_IN = "signed in"
    MEMBER = "member"
    KEY = "key"
    VERIFIER = "verifier"


class SignedIn(UserMixin):
    """Flask-Login's user: one session of one account, known to the browser by the session's token only."""

    def __init__(self, user_session: LiveSession, token: str) -> None:
        self.user_session = user_session
        self._token = token

    @property
    def account(self) -> Viewer:
        """Whose session this is."""
        return self.user_session.account

    def get_id(self) -> str:
        """Give what the cookie keeps."""
        return self._token


def start_browser_session(user_session: LiveSession, token: str) -> None:
    """Make the browser hold this session's token from now on."""
    login_user(SignedIn(user_session, token))


@login_manager.user_loader
def _load(token: str) -> SignedIn | None:
    with reading() as session:
        found = accounts.find_session(session, token, g.now)
        if found and request.view_args and "ws" in request.view_args:  # for `in_workspace`, which comes next
            g.places = members.places_of(session, found.account_id, request.view_args["ws"])
    return SignedIn(found, token) if found else None


def visitor() -> Actor:
    """Make the actor of a request before anybody is known."""
    return Actor(g.now, Means.SESSION, "visitor", address=request.remote_addr, request_id=g.request_id)


def seat() -> Seat:
    """Give the seat that `in_workspace` found for this request."""
    found: Seat = g.seat
    return found


def actor() -> Actor:
    """Give the actor of this request."""
    found: Actor = g.actor
    return found


def anybody(view: View) -> View:
    """Open a view to everyone."""
    return _declare(view, Audience.ANYBODY)


def anybody_known(view: View) -> View:
    """Open a view to everyone; whoever is signed in gets it with the seat that they sat on last, if they have it."""

    @wraps(view)
    def guarded(**values: Any) -> Any:
        if current_user.is_authenticated:
            _sit_where_last(current_user.user_session)
        return view(**values)

    return _declare(guarded, Audience.ANYBODY)


def place_among(mine: Sequence[Member], user_session: LiveSession) -> Member | None:
    """Find the membership that a session was in last, if it still stands, else the only one."""
    last = next((each for each in mine if each.workspace_id == user_session.workspace_id), None)
    return last or (mine[0] if len(mine) == 1 else None)


def places_of(mine: Iterable[tuple[Member, bool]]) -> list[dict[str, str]]:
    """List one's workspaces, each with the role there, for a page; from `members.roles_of`."""
    return [
        {"slug": each.workspace.slug, "name": each.workspace.name, "role_text": role_text(each.role, is_lead=is_lead)}
        for each, is_lead in mine
    ]


def signed_in(view: View) -> View:
    """Open a view to whoever is signed in, in no particular workspace; the bar is that of the one they were in last."""

    @wraps(view)
    def guarded(**values: Any) -> Any:
        if not current_user.is_authenticated:
            return _ask_to_sign_in()
        _sit_where_last(current_user.user_session)
        g.actor = _acting(current_user.account)  # what is done here is done in no workspace
        return view(**values)

    return _declare(guarded, Audience.SIGNED_IN)


def in_workspace(view: View) -> View:
    """Open a view below /w/<ws> to the members of that workspace; to all others it does not exist."""

    @wraps(view)
    def guarded(ws: str, **values: Any) -> Any:
        if not current_user.is_authenticated:
            return _ask_to_sign_in()
        user_session = current_user.user_session
        found, g.workspaces = g.places
        if found is None:
            _sit_where_last(user_session)
            raise NotFound()
        _sit_down(user_session, found)
        _mark_seen(user_session, found.workspace.id)
        try:
            return view(**values)
        except NotFound as error:
            if error.attempt is None:  # else it is told of
                _tell_of_look(values)
            raise

    return _declare(guarded, Audience.MEMBER)


def only(may: Callable[[Seat], bool], message: str, tried: Event | None = None) -> Callable[[View], View]:
    """Keep a view to those whose seat `may` use it; the others are told `message`.

    Stands below `in_workspace`, and above `recently_proved`: who may never do a thing is not asked for a password.
    With `tried`, a form that was sent all the same, about the member `mid`, is told in the audit log.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(**values: Any) -> Any:
            if not may(seat()):
                if tried is None or request.method != "POST":
                    raise Forbidden(message)
                with transaction():  # which tells of it
                    raise Forbidden(message, attempt=Attempt(tried, values["mid"]))
            return view(**values)

        return guarded

    return decorate


def _sit_down(user_session: LiveSession, found: Seat | None) -> None:
    """Note who asks: an account, and the member that it is in one workspace, if any."""
    g.account, g.user_session = user_session.account, user_session
    if found is None:
        return
    g.seat, g.actor = found, _acting(user_session.account, found)


def _acting(account: Viewer, found: Seat | None = None) -> Actor:
    """Make the actor of a request: a member, or where there is no seat an account."""
    where = {"address": request.remote_addr, "request_id": g.request_id}
    if found is None:
        return Actor(g.now, Means.SESSION, account.name, account.public_id, **where)
    member, workspace = found.member, found.workspace
    return Actor(g.now, Means.SESSION, member.name, member.public_id, workspace.id, member.id, **where)


def _sit_where_last(user_session: LiveSession) -> None:
    """Note who asks at an address of no workspace, with the seat that they sat on last, if they have it."""
    with reading() as session:
        mine = members.workspaces_of(session, user_session.account_id)
        place = place_among(mine, user_session)
        found = members.find_seat(session, user_session.account_id, place.workspace.slug) if place else None
    _sit_down(user_session, found)
    g.workspaces = [each.workspace for each in mine]
    _mark_seen(user_session)


def _mark_seen(user_session: LiveSession, workspace_id: int | None = None) -> None:
    """Note, once a minute, that a session is in use: it ends after two hours without."""
    if not accounts.is_due_to_be_seen(user_session, g.now, workspace_id):
        return
    # A page must not wait for those who write, nor fail because they do; the next page tries again.
    with suppress(*TROUBLE):
        with portal().database.transaction(patience=50) as session:
            accounts.mark_seen(session, user_session, g.now, workspace_id)
        g.user_session = user_session._replace(last_seen_at=g.now)


def with_key(action: Action | None = None) -> Callable[[View], View]:
    """Open a view to requests with a good key; with an action, one that has that scope in the path's app."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(**values: Any) -> Any:
            passage: Passage = request.environ[PASSAGE]  # every route for keys lies behind the door
            caller = passage.caller
            if caller is None:
                raise KeyRefused(Refusal.MISSING)
            if action is not None:
                scope = Scope(values["app"], action)
                passage.scope = str(scope)
                caller.require(scope)
            return view(caller, **values)

        guarded.action = action  # type: ignore[attr-defined]
        return _declare(guarded, Audience.KEY)

    return decorate


def with_verifier(view: View) -> View:
    """Open a view to products that prove themselves with a verifier (RFC 7662, section 2.1); others get 401."""

    @wraps(view)
    def guarded(**values: Any) -> Any:
        header, keyring = request.environ.get("HTTP_AUTHORIZATION"), portal().settings.keyring
        with reading() as session:
            found = verifiers.find(session, keyring, header)
        if found is None:
            wait = portal().bad_verifiers.wait_of(request.remote_addr) if header else 0
            return _refuse_client(header or "", wait)
        if found.is_old:
            # An answer must not wait for those who write, nor fail because they do; the next request tries again.
            with suppress(*TROUBLE), portal().database.transaction(patience=50) as session:
                verifiers.renew(session, keyring, header)
        return view(found, **values)

    return _declare(guarded, Audience.VERIFIER)


_PROVE = "Send a verifier that is not revoked: its id and secret as HTTP Basic, or the secret as a Bearer token."


def _refuse_client(header: str, wait: int) -> Response:
    """Answer as RFC 6749, section 5.2, and to a Bearer token as RFC 6750, section 3, say; with 429 for `wait` s."""
    if wait:
        return make_response(oauth_error(429, "Too many bad verifiers: wait a while."), 429, {"Retry-After": str(wait)})
    is_bearer = header[:6].lower() == "bearer"
    challenge = f'Bearer realm="{PRODUCT}", error="invalid_token"' if is_bearer else f'Basic realm="{PRODUCT}"'
    body = oauth_error(401, _PROVE, "invalid_client")
    return make_response(body, 401, {"WWW-Authenticate": challenge})


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked before somebody goes on: the password, with what it is for and where Cancel leads."""

    why: str
    back: str
    action: str  # the form goes there, with everything it carries
    carried: list[tuple[str, str]]

    @property
    def has_answers(self) -> bool:
        """Whether a form was filled in before: Cancel shows it again."""
        return any(name not in ("form_id", "next") for name, _ in self.carried)


def recently_proved(why: str, back: str | None = None) -> Callable[[View], View]:
    """Ask for the password again when the last proof is older than ten minutes; a form keeps all its answers.

    Stands below `in_workspace`. `why` completes "Enter your password …". From the question Cancel leads to the form
    as it was sent, else to the page of the endpoint `back`, else to the page that the address stands under.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(**values: Any) -> Any:
            if accounts.is_proved(current_user.user_session, g.now) or is_cancelled():
                return view(**values)
            if request.method != "POST":
                return _prove_first()
            question = Question(why, _way_back(request.path, back), own_address(), carried_answers())
            if "password" not in request.form:
                return prompt(question)
            return prove_again(question) or view(**values)

        guarded.asks = why, back  # type: ignore[attr-defined]
        return guarded

    return decorate


def endpoint_at(path: str) -> str | None:
    """Name the endpoint of a page of ours."""
    try:
        endpoint, _ = current_app.url_map.bind("").match(path.partition("?")[0], "GET")
    except HTTPException:
        return None
    return str(endpoint)


def question_before(target: str) -> Question:
    """Make the question that leads to a page of ours; that page knows what it is asked for."""
    asks = getattr(current_app.view_functions.get(endpoint_at(target) or ""), "asks", None)
    why, back = (asks[0], _way_back(target, asks[1])) if asks else ("to go on", address("sign_in.start"))
    return Question(why, back, address("sign_in.reauth"), [("next", target)])


def _way_back(target: str, back: str | None) -> str:
    path = target.partition("?")[0]
    return url_for(back, ws=path.split("/")[2]) if back else path.rpartition("/")[0]


def prove_again(question: Question) -> Response | None:
    """Check the password that `prompt` asked for; give None when it is right, else the question again."""
    user_session, password = current_user.user_session, answer("password")
    who = g.actor
    if not password:
        return prompt(question, accounts.NOTHING_ENTERED)
    try:
        with transaction() as session:
            attempt = accounts.begin_attempt(session, who, user_session.account.email)
    except TooManyAttempts as limit:
        return too_many(prompt(question, in_words(limit)), limit)
    if not attempt.verify(password):
        with transaction() as session:
            accounts.fail(session, who, attempt)
        tries = f"{attempt.tries_left} {'try' if attempt.tries_left == 1 else 'tries'} left"
        return prompt(question, f"That password is not right. {tries}.")
    with transaction() as session:
        token = accounts.prove(session, who, attempt, user_session)
    start_browser_session(user_session, token)
    return None


def prompt(question: Question, error: str | None = None, status: int = 403) -> Response:
    """Ask for the password, where the form stood that led here: on a page, in the dialog, or in a strip."""
    context = {"question": question, "error": error, "in_strip": is_fragment() and not is_from_dialog()}
    return page_or_fragment("sign_in/reauth.html", "sign_in/_reauth.html", status, **context)


def _prove_first() -> Response:
    target = own_address()
    if is_fragment():
        return prompt(question_before(target), status=200)
    return make_response(redirect(url_for("sign_in.reauth", next=target), 303))


def _ask_to_sign_in() -> Response:
    """Send a page to /login and back; tell HTMX with 401 where to go, never with a page inside a fragment."""
    if request.method == "POST":
        browser_session["unsent"] = True  # the sign-in page tells that what was pressed changed nothing
    if not is_fragment():
        target = own_address() if endpoint_at(request.path) else request.path.rpartition("/")[0]
        return make_response(redirect(url_for("sign_in.login", next=target), 303))
    response = go_to(url_for("sign_in.login", next=page_of_fragment()))
    response.status_code = 401
    return response


def _declare(view: View, audience: Audience) -> View:
    view.audience = audience  # type: ignore[attr-defined]
    return view


def audience_of(app: Flask, endpoint: str) -> Audience | None:
    """Say whom an endpoint is for; None when nobody said."""
    return getattr(app.view_functions[endpoint], "audience", None)


def keyed_paths(app: Flask) -> set[str]:
    """List the paths that are for keys; of those that name something, how they begin."""
    rules = app.url_map.iter_rules()
    return {rule.rule.partition("<")[0] for rule in rules if audience_of(app, rule.endpoint) is Audience.KEY}


def register(app: Flask) -> None:
    """Close every view that does not say who may call it, and sign people in by their session's token."""
    login_manager.init_app(app, add_context_processor=False)  # it would ask the database for error pages too
    login_manager.session_protection = None  # addresses change; the token is what counts

    @app.before_request
    def deny_by_default() -> None:
        if request.endpoint and audience_of(app, request.endpoint) is None:
            raise NotFound()

    @app.before_request
    def refuse_other_sites() -> None:
        if is_from_elsewhere():
            _tell_of_form("It came from another site.")
            raise Forbidden("This form was sent from another site. Open the page here and try again.")

    @app.before_request
    def know_who_is_lost() -> None:
        """Give the page that says that there is no such page the bar that leads on from it."""
        if request.endpoint is None and not is_api(request):
            with suppress(*TROUBLE):
                if current_user.is_authenticated:
                    _sit_where_last(current_user.user_session)

    @app.errorhandler(CSRFError)
    def expired(error: CSRFError) -> Response:
        is_signed_out = False
        with suppress(*TROUBLE):  # the answers are kept all the same
            if current_user.is_authenticated:
                found, g.workspaces = g.get("places", (None, []))
                _sit_down(current_user.user_session, found)
            else:  # as after signing out in another tab
                is_signed_out = audience_of(app, request.endpoint or "") in (Audience.SIGNED_IN, Audience.MEMBER)
        _tell_of_form("It was not from a page of this session.")
        return form_expired(is_signed_out=is_signed_out)

    @app.context_processor
    def who() -> dict[str, Any]:
        found: Seat | None = g.get("seat")
        if is_api(request):
            return {}
        account: Account | Viewer | None = g.get("account")
        return {
            "viewer": account,
            "session_ends": _session_ends(g.user_session) if account else None,
            "prefs": {"theme": account.theme, "shortcuts": account.has_shortcuts} if account else {"theme": "system"},
            "member": _member(found) if found else None,
            "workspace": found.workspace if found else None,
            "workspaces": g.get("workspaces", []),
            "section": (request.endpoint or "").partition(".")[0],
            "sections": _sections(found) if found else [],
            "now": g.get("now"),
        }


def _tell_of_form(reason: str) -> None:
    """Write down that a form was refused that came with somebody's session.

    A stranger's could have done nothing, and must not make us write: nothing limits how many they send.
    """
    with suppress(*TROUBLE):
        if not current_user.is_authenticated:
            return
        who = _acting(current_user.account, g.get("places", (None, []))[0])
        rule = request.url_rule.rule if request.url_rule else "an unknown address"
        form = _IN_RULE.sub("…", rule)  # not the path: that may hold a one-time link
        with portal().database.transaction(patience=50) as session:
            audit.refuse(session, who, Event.FORM_REFUSED, target_name=form, details={"reason": reason})


_IN_RULE = re.compile("<[^>]*>")
_BY_ID = ("key_id", "mid", "iid", "vid", "eid")  # what paths call keys, members, invitations, verifiers, events


def _tell_of_look(asked: Mapping[str, Any]) -> None:
    """Write down that a member asked for something by an id that is not theirs to see, or nobody's."""
    if target := next((value for name, value in asked.items() if name in _BY_ID), ""):
        with suppress(*TROUBLE), portal().database.transaction(patience=50) as session:
            details = {"reason": NotFound.words}
            audit.refuse(session, g.actor, Event.LOOK_REFUSED, target_id=target, target_name=target, details=details)


def _session_ends(user_session: LiveSession) -> list[int]:
    """Say in how many seconds a session ends when nothing is done, when in any case, and how long one may be idle."""
    left = accounts.SESSION_LIFE - (g.now - user_session.created_at)
    idle = min(accounts.SESSION_IDLE - (g.now - user_session.last_seen_at), left)
    return [int(each.total_seconds()) for each in (idle, left, accounts.SESSION_IDLE)]


def _member(found: Seat) -> dict[str, str]:
    role = found.role
    return {"name": found.member.name, "role": role, "role_text": role_text(role, is_lead=found.is_lead)}


def _sections(found: Seat) -> list[tuple[str, str, str]]:
    """List the parts of a workspace that a seat has: name, address, and the blueprint that marks where one is."""
    every = [
        ("Home", "home.index", True),
        ("Keys", "keys.index", True),
        ("People", "members.people", found.is_lead),
        ("API members", "members.api_members", found.is_lead),
        ("Review", "review.index", True),
        ("Audit", "oversight.audit", True),
        ("Explain", "oversight.explain", True),
        ("Workspace", "workspace.index", found.is_admin),
    ]
    there, slug = current_app.view_functions, found.workspace.slug
    return [
        (label, address(endpoint, ws=slug), endpoint.partition(".")[0])
        for label, endpoint, may in every
        if may and endpoint in there
    ]
