"""With a replica: pages show every change at once, some are read there, and keys never are."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event

from tests.cast import Cast

pytestmark = pytest.mark.both


@pytest.fixture
def asked(launch: Callable[..., Flask], replica_url: str) -> Iterator[tuple[Cast, list[str]]]:
    """Everybody at a portal with a replica, and what that replica was asked of tables."""
    app = launch(PORTAL_REPLICA_URL=replica_url)
    statements: list[str] = []

    @event.listens_for(app.extensions["portal"].replica._database.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *more: object) -> None:
        if "FROM" in statement:
            statements.append(statement)

    yield Cast(app), statements


def test_a_change_is_on_the_next_page_and_keys_are_checked_where_it_was_made(asked: tuple[Cast, list[str]]) -> None:
    cast, statements = asked
    for _ in range(100):  # until the replica has come up to the test's beginning
        cast.ana.get("/w/acme/audit")
        if statements:
            break
        time.sleep(0.1)
    statements.clear()
    for n in range(10):
        key = cast.rio.generate(name=f"Key {n}")
        assert f"Key {n}" in cast.rio.get("keys").text
        before = len(statements)
        assert cast.call("GET", "/me", key).status_code == 200
        cast.rio.post(f"keys/{key.id}/deactivate")
        assert cast.call("GET", "/me", key).status_code == 401
        assert len(statements) == before
        assert f"Key {n}" in cast.ana.get("/w/acme/audit").text
    for table, person, path in (("audit_event", cast.ana, "/w/acme/audit"), ("api_key", cast.rio, "keys")):
        for _ in range(100):  # on a busy machine the replica is seldom in time for a change of just now
            if any(table in statement for statement in statements):
                break
            time.sleep(0.1)
            person.get(path)
        else:
            pytest.fail(f"{table} is never read from the replica")
