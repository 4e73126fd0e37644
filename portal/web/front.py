"""What stands before Flask: security headers on every answer, only our own Host names, the client's true address,
and a last answer when all else fails.

Forwarded headers count only from a configured proxy (PORTAL_TRUSTED_PROXIES), else from nobody. Such a proxy must drop
client headers whose names have underscores (nginx does by default): WSGI cannot tell `X_Forwarded_For` from
`X-Forwarded-For`.
"""

import io
import ipaddress
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from time import monotonic, perf_counter, sleep
from typing import Any, NamedTuple

from portal import metrics
from portal.settings import Settings
from portal.web import answers

_log = logging.getLogger(__name__)
SECURITY_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
]
_HTTPS_HEADERS = [("Strict-Transport-Security", "max-age=31536000")]
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+))(?::[0-9]{1,5})?")
_HOP = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")
# What is asked about the process itself, by machines that know it by its address: answered beside the others, so that a
# database which hangs does not make the process look dead.
ASIDE = frozenset({"/healthz", "/readyz", "/metrics"})
PEER, ENDPOINT, _STATUS = "portal.peer", "portal.endpoint", "portal.status"  # in the environment of a request
EVEN = "portal.even"  # in the same: set where the time until the answer would tell whether something exists
EVEN_AFTER = 0.003  # seconds until such an answer goes out; finding and noting a key seldom takes as long
BODIES_AT_ONCE = 48  # that one process waits for; fewer than the server has threads
_TOLD_AGAIN = 60.0  # seconds between two log lines about a refused Host, in one process
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_INTEGRATIONS = ("/api/", "/verify", answers.OAUTH)  # these are answered in JSON
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT")

Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class FrontAnswer(NamedTuple):
    """What the front itself answers."""

    status: str
    type: str
    code: str
    message: str


_OTHER_HOST = FrontAnswer("400 Bad Request", "validation_error", "unknown_host", "This address is not served here.")
_NO_SUCH_PAGE = FrontAnswer("404 Not Found", "not_found_error", "not_found", "There is no such page.")
_NO_LENGTH = FrontAnswer("411 Length Required", "validation_error", "length_required", "Send the form with its length.")
_TOO_MANY = FrontAnswer(
    "503 Service Unavailable", "api_error", "unavailable", "Too many requests are still on their way. Try again."
)
_CUT_OFF = FrontAnswer(
    "400 Bad Request", "validation_error", "cut_off", "The request was cut off before its end. Nothing was changed."
)
_BROKEN = FrontAnswer("500 Internal Server Error", "api_error", "internal_error", "Something broke on our side.")


class Front:
    """WSGI middleware, the outermost."""

    def __init__(self, app: Wsgi, settings: Settings, body_limit: Callable[[str], int]) -> None:
        self._app = app
        self._hosts = frozenset(settings.hosts)
        self._trusted = settings.trusted_proxies
        self._headers = SECURITY_HEADERS + (_HTTPS_HEADERS if settings.is_https else [])
        self._body_limit = body_limit
        self._waiting = threading.Semaphore(BODIES_AT_ONCE)
        self._not_before = 0.0  # on the monotonic clock: when another refused Host is told again

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Pass a request on."""

        def start_safely(status: str, headers: Headers, exc_info: Any = None) -> Any:
            environ[_STATUS] = status
            return start_response(status, headers + self._headers, exc_info)

        refusal = self._find_refusal(environ)
        start = perf_counter()
        answer = _refuse(environ, start_safely, refusal) if refusal else self._pass_on(environ, start_safely)
        took = perf_counter() - start
        endpoint = environ.get(ENDPOINT, "front")
        metrics.request(endpoint, environ["REQUEST_METHOD"], int(environ[_STATUS][:3]), took)
        if EVEN in environ and took < EVEN_AFTER:
            sleep(EVEN_AFTER - took)
        return answer

    def _find_refusal(self, environ: dict[str, Any]) -> "FrontAnswer | None":
        """Say why a request goes no further, if so; else know its client, and have all of it."""
        path = environ["PATH_INFO"]
        host = _host_name(environ.get("HTTP_HOST", ""))
        if host not in self._hosts and not (path in ASIDE and _address(host)):
            self._tell_of(environ.get("HTTP_HOST", ""))
            return _OTHER_HOST
        if path.startswith("//"):  # the router would take it for another path than we do here
            return _NO_SUCH_PAGE
        self._find_client(environ)
        if environ["REQUEST_METHOD"] not in _BODILESS:
            return self._take_body(environ)
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(), ""  # a body that came is of no use here
        return None

    def _tell_of(self, host: str) -> None:
        """Log a refused Host, once a minute at most: behind a proxy it is a mistake in the proxy's settings."""
        if (now := monotonic()) < self._not_before:
            return
        self._not_before = now + _TOLD_AGAIN
        served = ", ".join(sorted(self._hosts))
        _log.warning("a request for the host %.100r was refused; PORTAL_BASE_URL serves %s", host, served)

    def _pass_on(self, environ: dict[str, Any], start_safely: StartResponse) -> Iterable[bytes]:
        try:
            return self._app(environ, start_safely)
        except Exception:
            request_id = answers.new_request_id()
            _log.exception("a request failed, and so did telling of it", extra={"request_id": request_id})
            return _refuse(environ, start_safely, _BROKEN, request_id)

    def _take_body(self, environ: dict[str, Any]) -> "FrontAnswer | None":
        """Wait for the whole body, up to one byte over its limit, which then answers 413 however it was sent.

        Gives a refusal for a body that was cut off (what came of it must not be carried out) and while too many
        clients take their time: reads, checks of keys and /healthz go on meanwhile.
        """
        path = environ["PATH_INFO"]
        limit = self._body_limit(path)
        length = environ.get("CONTENT_LENGTH") or ""
        declared = int(length) if re.fullmatch("[0-9]{1,15}", length, re.ASCII) else None
        if declared is not None and declared > limit:
            environ["wsgi.input"] = io.BytesIO()  # refused by its length; nobody waits for it
            return None
        if declared is None and "HTTP_TRANSFER_ENCODING" in environ and not path.startswith(_INTEGRATIONS):
            return _NO_LENGTH
        if not self._waiting.acquire(blocking=False):
            return _TOO_MANY
        try:
            body = environ["wsgi.input"].read(limit + 1)
        finally:
            self._waiting.release()
        if declared is not None and len(body) < declared:
            return _CUT_OFF
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        return None

    def _find_client(self, environ: dict[str, Any]) -> None:
        peer = environ[PEER] = environ.get("REMOTE_ADDR", "")
        if self._trusted and self._is_trusted(peer):
            hops = [hop.strip() for hop in environ.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
            # From the nearest hop outwards: the first that is no proxy of ours is the client.
            for hop in map(_without_port, reversed(hops)):
                if _address(hop) is None:
                    break
                peer = hop
                if not self._is_trusted(hop):
                    break
            if environ.get("HTTP_X_FORWARDED_PROTO") in ("http", "https"):
                environ["wsgi.url_scheme"] = environ["HTTP_X_FORWARDED_PROTO"]
        environ["REMOTE_ADDR"] = _plain(peer)
        for name in _FORWARDED:
            environ.pop(name, None)

    def _is_trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._trusted)


def _without_port(hop: str) -> str:
    """Give the address of a hop in X-Forwarded-For, to which some gateways add the port."""
    match = _HOP.fullmatch(hop)
    return match[1] or match[2] if match else hop


def _host_name(host: str) -> str:
    """Give the name in a Host header, without its port and the brackets of IPv6; '' for what is none."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""


@lru_cache(maxsize=4096)  # the same few ask again and again, and reading one costs as much as looking up a key
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text if "%" not in text else "")  # scope ids may be of any length
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=4096)
def _plain(text: str) -> str | None:
    """Write an address in its one usual form; None for what is none."""
    address = _address(text)
    return str(address) if address else None


def _refuse(
    environ: dict[str, Any], start_response: StartResponse, refusal: FrontAnswer, request_id: str = ""
) -> list[bytes]:
    """Answer without the portal's help: JSON to integrations, a plain line to people."""
    request_id = request_id or answers.new_request_id()
    if environ["PATH_INFO"].startswith(answers.OAUTH):
        body = json.dumps(answers.oauth_error(int(refusal.status[:3]), refusal.message)).encode()
        kind = "application/json"
    elif environ["PATH_INFO"].startswith(_INTEGRATIONS):
        error = {"type": refusal.type, "code": refusal.code, "message": refusal.message}
        body = json.dumps({"error": error, "meta": {"requestId": request_id}}).encode()
        kind = "application/json"
    else:
        body, kind = f"{refusal.message}\n".encode(), "text/plain; charset=utf-8"
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Request-Id", request_id),
    ]
    if refusal.status.startswith("503"):
        headers.append(("Retry-After", "5"))
    start_response(refusal.status, headers)
    return [body]
