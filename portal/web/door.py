"""The door before Flask: who asks, and how often, decided once for every request with a key.

For the routes that need a key it checks it, counts it against its limits and notes its use; a request that may pass
goes on to the view with its `Passage`, any other is answered here, at a fraction of the cost. So are `/verify` and
`GET /api/v1/me`, which ask for no more than is known by then. A request without any credential goes on: its view says
what is missing, or that there is no such route.

Requests take turns. The server has threads to spare so that clients that stall while they send, and a Redis that is far
away, hold up nobody; but a process works on one request at a time, for more would only pass the interpreter lock to and
fro. Where a turn takes long, as a page's does that waits for somebody else's write, keys are judged beside it, and only
what goes on to a view waits for its end.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from portal import metrics
from portal.rules.access import Scope
from portal.rules.credentials import KEY_SHAPED
from portal.rules.errors import KeyRefused, Refusal
from portal.services import rate_limit, usage
from portal.services.key_check import Caller
from portal.services.outage import Outage
from portal.services.rate_limit import Admission, BadKeys
from portal.services.usage import Usage
from portal.store.database import MISTAKES, TROUBLE
from portal.web import answers
from portal.web.answers import Answer, new_request_id
from portal.web.front import ASIDE, ENDPOINT, EVEN, Headers, StartResponse, Wsgi
from portal.web.parts import Portal
from portal.web.turn import Turn

PASSAGE = "portal.passage"  # in the WSGI environment
VERIFY = "/verify"
ME = "/api/v1/me"
_VERIFY_METHODS = ("GET", "HEAD", "POST")
MAX_SCOPES = 20  # that one /verify asks about
_LONG = 0.05  # seconds that a key waits for its turn until it is judged without, or again
_STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in HTTPStatus}


class Passage:
    """One request on its way through the door."""

    __slots__ = ("admission", "caller", "in_turn", "now", "refused", "request_id", "scope")

    def __init__(self) -> None:
        self.in_turn = False
        self.request_id = new_request_id()
        self.now: datetime  # when it is judged
        self.caller: Caller | None = None
        self.admission: Admission | None = None
        self.scope = ""  # that the view needs
        self.refused = False  # and noted so


class Door:
    """WSGI middleware between the front and Flask."""

    def __init__(self, app: Wsgi, keyed: set[str], parts: Callable[[], Portal]) -> None:
        """Stand before `app`; `keyed` are the paths that need a key, those that end in `/` with all that begins so."""
        self._app = app
        self._paths = {path for path in keyed if not path.endswith("/")} | {VERIFY}
        self._folders = tuple(path for path in keyed if path.endswith("/"))
        self._parts = parts
        self._bad_keys = BadKeys()
        self._turn = Turn()
        self._outage = Outage("keys cannot be checked: the database cannot be asked")

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Let a request pass, or answer it."""
        path = environ["PATH_INFO"]
        if path in ASIDE:
            return self._app(environ, start_response)
        if path not in self._paths and not path.startswith(self._folders):
            with self._turn:
                return self._app(environ, start_response)
        passage = environ[PASSAGE] = Passage()
        try:
            passage.in_turn = self._turn.acquire(timeout=_LONG)
            passage.now = datetime.now(UTC)
            return self._receive(environ, passage, start_response)
        finally:
            if passage.in_turn:
                self._turn.release()

    def _receive(self, environ: dict[str, Any], passage: Passage, start_response: StartResponse) -> Iterable[bytes]:
        is_verify = environ["PATH_INFO"] == VERIFY
        environ[ENDPOINT] = "verify" if is_verify else "door"  # until the view is known
        refusal = self._judge(environ, passage, is_verify=is_verify)
        answer = None
        if passage.caller is not None:
            answer = self._verify if is_verify else self._me if _asks_who(environ) else None
        if refusal is None and answer is None:  # to the view, which everybody waits for
            is_late = self._wait_for_turn(passage)
            if is_late and passage.caller:
                passage.now = datetime.now(UTC)
                refusal = self._judge(environ, passage)
        caller = passage.caller
        if caller is None:
            if refusal is None:  # no credential at all: the view tells what is missing
                return self._app(environ, _adding(_common(passage), start_response))
            return _send(refusal, _common(passage), start_response)
        limits = _limits(passage)
        if refusal is not None:
            return _send(refusal, _common(passage) + _of_key(caller) + limits, start_response)
        if answer is not None:
            return _send(answer(environ, passage, caller), _common(passage) + _of_key(caller) + limits, start_response)

        def start(status: str, own: Headers, exc_info: Any = None) -> Any:
            if not passage.refused:
                self._note(environ, passage, caller, int(status[:3]))
            # As the view left them: a repeat has the id of the first, and a key that was rotated ends sooner.
            told = _common(passage) + _of_key(passage.caller or caller) + limits
            return start_response(status, own + told, exc_info)

        return self._app(environ, start)

    def _wait_for_turn(self, passage: Passage) -> bool:
        """Wait until the process works on nothing else; say whether that took long."""
        if passage.in_turn:
            return False
        is_late = not self._turn.acquire(timeout=_LONG)
        if is_late:
            self._turn.acquire()
        passage.in_turn = True
        return is_late

    def _judge(self, environ: dict[str, Any], passage: Passage, *, is_verify: bool = False) -> Answer | None:
        """Check the key and, the first time, its limits; None for a request that may go on."""
        limit = self._parts().rate_limit
        passage.caller = None
        try:
            caller = self._check(environ, passage.now)
            admission = passage.admission
            if admission is None:
                waits = limit.shared_state == "up"  # for Redis: others have their turn, and the key may end meanwhile
                if waits and passage.in_turn:
                    passage.in_turn = False
                    self._turn.release()
                admission = limit.admit(caller.key_pk, caller.key_id, caller.rate_per_minute, caller.rate_per_second)
                if waits:
                    caller = self._check(environ, datetime.now(UTC))
        except KeyRefused as refused:
            if refused.refusal is Refusal.MISSING and not is_verify:
                return None
            return self._refuse(environ, passage, refused)
        except MISTAKES:
            raise
        except TROUBLE as trouble:
            self._outage.begin(trouble, request_id=passage.request_id)
            return answers.unavailable(passage.request_id)
        self._outage.end()
        passage.caller, passage.admission = caller, admission
        if not admission.wait:
            return None
        metrics.refused(str(Refusal.RATE_LIMITED))
        noted = _use(environ, passage, caller.key_pk, "", 429)
        self._parts().usage.refused(noted, str(Refusal.RATE_LIMITED), " ".join(caller.reach.effective_texts))
        return answers.too_many(passage.request_id, admission.retry_after, _met(caller, admission))

    def _check(self, environ: dict[str, Any], now: datetime) -> Caller:
        return self._parts().key_check.check(
            environ.get("HTTP_AUTHORIZATION"),
            account_id=environ.get("HTTP_ACCOUNT_ID"),
            query=environ.get("QUERY_STRING", ""),
            now=now,
        )

    def _refuse(self, environ: dict[str, Any], passage: Passage, refused: KeyRefused) -> Answer:
        note_refusal(self._parts().usage, environ, passage, refused)
        if refused.code == "invalid_key":
            environ[EVEN] = True  # else the time would tell a key that there is, or was, from one that never was (T-18)
        is_bad_key = refused.required is None and refused.refusal is not Refusal.MISSING
        if is_bad_key and (wait := self._bad_keys.wait_of(environ["REMOTE_ADDR"])):
            return answers.too_many(passage.request_id, wait, "Too many bad keys came from your network.")
        answer = answers.refuse(refused, passage.request_id, self._parts().settings.base_url)
        if environ["PATH_INFO"] == VERIFY:  # nginx passes no body on: by these headers its own can say the same
            answer.headers.append(("X-Error-Code", refused.code))
            if fix_url := answers.fix_url(refused, self._parts().settings.base_url):
                answer.headers.append(("X-Fix-Url", fix_url))
        return answer

    def _verify(self, environ: dict[str, Any], passage: Passage, caller: Caller) -> Answer:
        """Answer a reverse proxy: whose key this is, or why it may not."""
        if environ["REQUEST_METHOD"] not in _VERIFY_METHODS:
            message, allow = "This address does not take that kind of request.", ("Allow", ", ".join(_VERIFY_METHODS))
            return answers.error(passage.request_id, 405, "validation_error", "method_not_allowed", message, allow)
        wanted = _wanted(environ.get("QUERY_STRING", ""))
        if wanted is None:
            message = f"Ask with scope=<app>:read or scope=<app>:write, at most {MAX_SCOPES} of them, and nothing else."
            return answers.error(passage.request_id, 400, "validation_error", "invalid_parameter", message)
        for scope in wanted:
            passage.scope = str(scope)
            try:
                caller.require(scope)
            except KeyRefused as refused:
                return self._refuse(environ, passage, refused)
        self._note(environ, passage, caller, 200)
        told = [
            ("X-Auth-Workspace", caller.workspace_id),
            ("X-Auth-Member", caller.member_id),
            ("X-Auth-Key", caller.key_id),
            ("X-Auth-Scopes", " ".join(caller.reach.effective_texts)),
            ("X-Auth-Environment", caller.environment),
        ]
        return Answer(200, told, b"")

    def _me(self, environ: dict[str, Any], passage: Passage, caller: Caller) -> Answer:
        """Say who a key is, as the view does."""
        environ[ENDPOINT] = "api.me"
        self._note(environ, passage, caller, 200)
        found = answers.me(caller, self._parts().settings.keyring.format)
        return Answer(200, [], answers.data(found, passage.request_id))

    def _note(self, environ: dict[str, Any], passage: Passage, caller: Caller, status: int) -> None:
        noted = _use(environ, passage, caller.key_pk, passage.scope, status)
        self._parts().usage.accepted(noted, is_first=caller.is_unused, new_digest=caller.new_digest)


def note_refusal(notes: Usage, environ: dict[str, Any], passage: Passage, refused: KeyRefused) -> None:
    """Keep a known key's exact reason under the request id.

    Nothing is logged here: it would fill the disk, and the time it takes would tell a known key from an unknown one.
    """
    passage.refused = True
    metrics.refused(str(refused.refusal))
    if refused.key_pk is not None:
        noted = _use(environ, passage, refused.key_pk, refused.required or "", refused.refusal.status)
        notes.refused(noted, str(refused.refusal), " ".join(refused.held) if refused.required else refused.had)


def _asks_who(environ: dict[str, Any]) -> bool:
    """Say whether a request asks who its key is, and nothing that would have to be read."""
    is_me = environ["PATH_INFO"] == ME and environ["REQUEST_METHOD"] == "GET"
    return is_me and not environ.get("QUERY_STRING")


def _met(caller: Caller, admission: Admission) -> str:
    """Name the limit that a request met, who set it, and when to try again."""
    is_minute = not admission.remaining  # else there is room in the 60 seconds, and it is the second that is full
    own = caller.rate_per_minute if is_minute else caller.rate_per_second
    limit = admission.limit if is_minute else own or rate_limit.PER_SECOND
    window = "60 seconds" if is_minute else "second"
    by = ", set for it by an administrator" if own else ""
    many = f"{limit:,} request{'' if limit == 1 else 's'}"
    return f"This key’s limit is {many} in any {window}{by}. Try again in {admission.retry_after} s."


def client_label(environ: dict[str, Any]) -> str:
    """Give the product that a client says it is, such as `python-requests/2.32`: the first word, if it is plain."""
    word = environ.get("HTTP_USER_AGENT", "")[:61].partition(" ")[0]
    is_plain = word.isascii() and word.isprintable() and len(word) <= 60
    return word if is_plain and not ("_" in word and KEY_SHAPED.search(word)) else ""


def _use(environ: dict[str, Any], passage: Passage, key: int, scope: str, status: int) -> usage.Request:
    return usage.Request(
        key,
        passage.now,
        passage.request_id,
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"],
        status,
        scope,
        environ["REMOTE_ADDR"] or "",
        client_label(environ),
    )


def _wanted(query: str) -> list[Scope] | None:
    """Read the scopes that `/verify` is asked about; None for what is none.

    A parameter of another name is none either: one that is misspelled must not ask for nothing.
    """
    if not query:
        return []
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_SCOPES)
    except ValueError:
        return None
    found = [Scope.parse(value) if name == "scope" else None for name, value in pairs]
    scopes = [scope for scope in found if scope is not None]
    return scopes if len(scopes) == len(found) else None


def _common(passage: Passage) -> Headers:
    return [("X-Request-Id", passage.request_id), ("Cache-Control", "no-store")]


def _of_key(caller: Caller) -> Headers:
    """Tell a key's environment and when it ends."""
    return [("X-Environment", caller.environment), *(_expiry(caller.ends_at) if caller.ends_at else ())]


def _limits(passage: Passage) -> Headers:
    """Tell what is left of a key's limits."""
    admission = passage.admission
    assert admission is not None  # noqa: S101 - whoever is known was counted
    return [
        ("X-RateLimit-Limit", str(admission.limit)),
        ("X-RateLimit-Remaining", str(admission.remaining)),
        ("X-RateLimit-Reset", str(admission.reset_at(time.time()))),
    ]


@lru_cache(maxsize=4096)
def _expiry(moment: datetime) -> Sequence[tuple[str, str]]:
    """Write when a key stops, for `X-Key-Expires-At` and for `Sunset` (RFC 8594)."""
    return [("X-Key-Expires-At", answers.moment(moment)), ("Sunset", format_datetime(moment, usegmt=True))]


def _adding(headers: Headers, start_response: StartResponse) -> StartResponse:
    def start(status: str, own: Headers, exc_info: Any = None) -> Any:
        return start_response(status, own + headers, exc_info)

    return start


def _send(answer: Answer, headers: Headers, start_response: StartResponse) -> list[bytes]:
    kind = [("Content-Type", "application/json")] if answer.body else []
    length = [("Content-Length", str(len(answer.body)))]
    start_response(_STATUS_LINES[answer.status], [*kind, *length, *answer.headers, *headers])
    return [answer.body]
