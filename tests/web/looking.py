"""What the tests of pages and API look at: the REST API's two kinds of answer, and all that a database holds."""

import re
from collections.abc import Collection
from typing import Any

from sqlalchemy import MetaData, select
from werkzeug.test import TestResponse

from portal.store.database import Database

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
REQUEST_ID = re.compile(r"req_[0-9A-Za-z]+")
# What any request may leave behind, also one that was refused.
TRACES = ("audit_event", "sign_in_failure", "user_session")


def data(reply: TestResponse, status: int = 200) -> Any:
    """Give what a call got, after a look at all that surrounds it (contract, section 3)."""
    return _body(reply, status, {"data", "meta"})["data"]


def error(reply: TestResponse, status: int) -> dict[str, Any]:
    """Give the error that a call got, after a look at all that surrounds it (contract, section 3)."""
    found: dict[str, Any] = _body(reply, status, {"error", "meta"})["error"]
    assert list(found)[:3] == ["type", "code", "message"]
    return found


def _body(reply: TestResponse, status: int, members: set[str]) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.content_type == "application/json"
    body: dict[str, Any] = reply.get_json()
    assert set(body) == members
    assert REQUEST_ID.fullmatch(body["meta"]["requestId"])
    assert reply.headers["X-Request-Id"] == body["meta"]["requestId"]
    assert reply.headers["Cache-Control"] == "no-store"
    assert SECURITY_HEADERS.items() <= dict(reply.headers).items()
    assert "Set-Cookie" not in reply.headers
    return body


def everything(database: Database, without: Collection[str] = ()) -> dict[str, list[tuple[Any, ...]]]:
    """Read every row of every table but those named, as the database itself describes them."""
    found = MetaData()
    with database.engine.connect() as connection:
        found.reflect(connection)
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in found.sorted_tables
            if table.name not in without
        }


def kept(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Read everything that a refused request must leave as it was."""
    return everything(database, TRACES)
