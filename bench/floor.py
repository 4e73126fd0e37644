"""The portal with GET /api/v1/floor, the answer of /api/v1/me without a check. For benchmarks only.

`/late` below it is the same answer after the wait by which answers about unknown keys are all alike in time.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from flask import Flask, Response, request

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import create_app  # noqa: E402
from portal import metrics  # noqa: E402
from portal.cli import run_server  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.web.front import EVEN  # noqa: E402
from portal.web.guards import anybody  # noqa: E402
from portal.web.http import api_reply  # noqa: E402

LATE = "/api/v1/floor/late"
_ANSWER = {
    "workspace": {"id": "ws_0123456789abcdef", "slug": "bench-0123456789ab", "name": "Bench 0123456789ab"},
    "member": {"id": "mem_0123456789abcdef", "name": "Integration 12", "type": "api"},
    "key": {
        "id": "key_0123456789abcdef",
        "name": "Key 12",
        "hint": "sk_live_…abcd",
        "environment": "live",
        "scopes": ["accounts:read", "leads:write"],
        "effectiveScopes": ["accounts:read"],
        "expiresAt": "2026-02-10T13:05:00.000Z",
    },
}


def create_floor(environ: Mapping[str, str] | None = None) -> Flask:
    """Put the portal together from an environment (default: the process's own), with the floor route."""
    app = create_app(environ)

    @anybody
    def floor() -> Response:
        return api_reply(_ANSWER)

    @anybody
    def late() -> Response:
        request.environ[EVEN] = True
        return api_reply(_ANSWER)

    app.add_url_rule("/api/v1/floor", "floor", floor)
    app.add_url_rule(LATE, "late", late)
    return app


if __name__ == "__main__":
    environ = os.environ
    with metrics.shared():
        run_server(Settings.from_environ(environ, Path(environ["PORTAL_INSTANCE"])), "bench.floor:create_floor")
