"""For those who run the portal: is the process alive, is it ready, what has it done. The door lets these requests
pass beside the others, so that they are answered also while a request waits for a database that hangs.
"""

import hmac
import ipaddress

from flask import Blueprint, Response, request

from portal import metrics
from portal.rules.errors import NotFound
from portal.web import guards
from portal.web.front import PEER
from portal.web.http import portal

pages = Blueprint("operation", __name__)


@pages.get("/healthz", endpoint="healthz")
@guards.anybody
def healthz() -> Response:
    """Say that the process serves; asks nothing of the database."""
    return _plain("ok")


@pages.get("/readyz", endpoint="readyz")
@guards.anybody
def readyz() -> Response:
    """Say whether the process can do its work: 200, or 503 with the reason, within a second."""
    trouble = portal().readiness.trouble()
    redis = {None: "not used", "up": "answers", "away": "away; this host limits rates by itself"}
    limits = portal().rate_limit
    lines = f"{trouble or 'ready'}\nRedis: {redis[limits.shared_state if trouble else limits.look()]}"
    response = _plain(lines, 503 if trouble else 200)
    if trouble:
        response.headers["Retry-After"] = "5"
    return response


@pages.get("/metrics", endpoint="metrics")
@guards.anybody
def show_metrics() -> Response:
    """Give the numbers to whoever has the token; where none is set, to this machine, and in production to nobody."""
    settings = portal().settings
    if settings.metrics_token:
        sent = request.headers.get("Authorization", "")
        if not hmac.compare_digest(sent.encode(), f"Bearer {settings.metrics_token}".encode()):
            response = _plain("Send the metrics token: Authorization: Bearer …", 401)
            response.headers["WWW-Authenticate"] = 'Bearer realm="metrics"'
            return response
    elif not settings.is_local or not _is_loopback(request.environ.get(PEER, "")):
        raise NotFound()
    return Response(metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


def _plain(text: str, status: int = 200) -> Response:
    return Response(f"{text}\n", status, mimetype="text/plain")
