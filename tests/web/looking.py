"""What the tests of pages and API look at: the REST API's two kinds of answer, and all that a database holds."""

import re
from typing import Any

from werkzeug.test import TestResponse

from portal.store.database import Base, Database
from portal.web.openapi import CODES

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
REQUEST_ID = re.compile(r"req_[0-9A-Za-z]+")


def data(reply: TestResponse, status: int = 200) -> Any:
    """Give what a call got, after a look at all that surrounds it (contract, section 3)."""
    return _body(reply, status, {"data", "meta"})["data"]


def error(reply: TestResponse, status: int) -> dict[str, Any]:
    """Give the error that a call got, after a look at all that surrounds it (contract, section 3)."""
    found: dict[str, Any] = _body(reply, status, {"error", "meta"})["error"]
    assert list(found)[:3] == ["type", "code", "message"]
    assert found["code"] in CODES[status], "the reference lists every code"
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


def token_on(page: TestResponse) -> str:
    """Read the token that the forms of a page carry."""
    found = re.search(r'name="csrf_token"\s+value="([^"]+)"', page.text)
    assert found
    return found[1]


def everything(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Read every column of every row of every table, as the driver gives them."""
    found = {}
    with database.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            order = ", ".join(column.name for column in table.primary_key)
            rows = connection.exec_driver_sql(f"SELECT * FROM {table.name} ORDER BY {order}")
            names = tuple(rows.keys())
            found[table.name] = [dict(zip(names, row, strict=True)) for row in rows]
    return found


_TRACES = {
    "audit_event", "audit_head", "refusal_count", "sign_in_failure", "user_session",
    "usage", "usage_batch", "key_caller", "refused_request", "first_request",
}  # fmt: skip


def kept(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Read everything that a refused request must leave as it was: all but its traces and when keys were last used."""
    return {
        name: [{column: row[column] for column in row if not column.startswith("last_used_")} for row in rows]
        for name, rows in everything(database).items()
        if name not in _TRACES
    }
