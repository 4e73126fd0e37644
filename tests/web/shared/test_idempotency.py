"""Idempotency-Key on POST: a request does its work once, and each repeat gets the same bytes (contract, section 3)."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event, Thread, Timer
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from werkzeug.test import TestResponse

from app import create_app
from portal.rules.errors import BreaksRule, Conflict
from portal.services import idempotency
from portal.services.idempotency import Asked, Stored
from portal.services.usage import Request, Usage
from portal.store.database import Database, Session
from portal.store.models import ApiKey, AuditEvent, IdempotentRequest, Record
from tests.cast import Cast, MadeKey
from tests.services.office import at_once
from tests.web.looking import data, error, kept

pytestmark = pytest.mark.both

LEADS = "/apps/leads/records"
FIELDS = {"name": "Ada", "stage": "new"}
SCOPES = ("leads:read", "leads:write")


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    return cast.max.generate(SCOPES, name="CRM sync")


@pytest.fixture(autouse=True)
def nothing_stored(database: Database) -> None:
    """Let every test begin without an answer that is kept."""
    with database.transaction() as session:
        session.execute(delete(IdempotentRequest))


def send(cast: Cast, key: MadeKey, named: str | None = "one", *, path: str = LEADS, **options: Any) -> TestResponse:
    headers = {} if named is None else {"Idempotency-Key": named}
    body = options.pop("fields", FIELDS)
    return cast.call("POST", path, key, headers=headers | options.pop("headers", {}), json={"fields": body}, **options)


def pk_of(session: Session, key: MadeKey) -> int:
    return session.scalars(select(ApiKey.id).where(ApiKey.public_id == key.id)).one()


def count(database: Database, table: Any = Record) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_repeat_gets_the_same_bytes_and_makes_nothing(cast: Cast, key: MadeKey, database: Database) -> None:
    first = send(cast, key)
    before = kept(database), count(database, AuditEvent)
    again = send(cast, key)
    assert data(first, 201) == data(again, 201)
    assert again.data == first.data
    for name in ("Content-Type", "Location", "ETag", "X-Request-Id", "X-Environment", "X-Key-Expires-At"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert (kept(database), count(database, AuditEvent)) == before


def test_without_the_header_and_under_another_one_a_request_makes_another_record(cast: Cast, key: MadeKey) -> None:
    made = {data(send(cast, key, named), 201)["id"] for named in (None, None, "one", "two", "One")}
    assert len(made) == 5


@pytest.mark.parametrize("named", ["", " ", "\t", "a b", "é", "a,b", "x" * 256, "a\x7f", "sk_live_" + "x" * 43])
def test_a_header_that_cannot_be_read_is_refused(cast: Cast, key: MadeKey, database: Database, named: str) -> None:
    before = kept(database)
    environ = {"HTTP_IDEMPOTENCY_KEY": named}
    reply = cast.call("POST", LEADS, key, json={"fields": FIELDS}, environ_overrides=environ)
    assert error(reply, 400)["code"] == "invalid_idempotency_key"
    assert kept(database) == before


def test_the_longest_header_and_odd_characters_are_fine(cast: Cast, key: MadeKey) -> None:
    for named in ("x" * 255, "".join(map(chr, range(0x21, 0x7F))).replace(",", "")):
        first, again = send(cast, key, named), send(cast, key, named)
        assert first.data == again.data


def test_another_body_or_path_under_the_same_header_is_refused(cast: Cast, key: MadeKey, database: Database) -> None:
    wide = cast.lea.generate(["tasks:write", "reservations:write"])
    data(send(cast, wide, path="/apps/tasks/records", fields={"title": "A task"}), 201)
    before = kept(database)
    for path, fields in (("tasks", {"title": "Another"}), ("reservations", {"title": "A task"})):
        found = error(send(cast, wide, path=f"/apps/{path}/records", fields=fields), 422)
        assert (found["type"], found["code"]) == ("business_rule_error", "idempotency_key_reused")
    assert kept(database) == before
    assert send(cast, key).status_code == 201  # max has Idempotency-Keys of his own


def test_the_successor_of_a_key_may_repeat_and_the_other_environment_may_not(cast: Cast, key: MadeKey) -> None:
    old = cast.max.generate(SCOPES, name="Rotated")
    first = send(cast, old)
    assert send(cast, cast.max.rotate(old)).data == first.data
    sandbox = send(cast, cast.max.generate(SCOPES, name="Sandbox", environment="test"))
    assert data(sandbox, 201)["id"] != data(first, 201)["id"]


def test_a_refused_request_is_not_stored(cast: Cast, key: MadeKey, database: Database) -> None:
    for _ in range(2):
        assert error(send(cast, key, fields={"name": 1}), 422)["code"] == "schema_mismatch"
    assert count(database, IdempotentRequest) == 0
    assert send(cast, key).status_code == 201


def test_the_key_is_checked_before_an_answer_is_given_again(cast: Cast, key: MadeKey, database: Database) -> None:
    other = cast.max.generate(SCOPES, name="Deactivated")
    first = send(cast, other)
    reads = cast.max.generate(["leads:read"], name="Reads")
    assert error(send(cast, reads), 403)["code"] == "missing_scope"
    cast.max.post(f"keys/{other.id}/deactivate")
    assert error(send(cast, other), 401)["code"] == "invalid_key"
    assert send(cast, key).data == first.data


def test_after_24_hours_the_request_is_a_new_one_and_the_answer_is_forgotten(
    cast: Cast, key: MadeKey, database: Database
) -> None:
    first = data(send(cast, key), 201)["id"]
    for age, expected in ((timedelta(hours=23, minutes=59), True), (timedelta(hours=24), False)):
        with database.transaction() as session:
            at = session.scalars(select(IdempotentRequest.at)).one()
            session.execute(update(IdempotentRequest).values(at=at - age))
        again = send(cast, key)
        assert ("Idempotency-Replayed" in again.headers) is expected
        assert (data(again, 201)["id"] == first) is expected
        with database.transaction() as session:
            session.execute(update(IdempotentRequest).values(at=at))
    assert count(database, IdempotentRequest) == 1
    with database.transaction() as session:
        asked = Asked(pk_of(session, key), "live", "one", at + idempotency.KEEP - timedelta(microseconds=1), b"another")
        with pytest.raises(BreaksRule):
            idempotency.find(session, asked)
        assert idempotency.find(session, replace(asked, at=at + idempotency.KEEP)) is None


def test_the_flush_of_usage_forgets_old_answers(cast: Cast, key: MadeKey, database: Database) -> None:
    send(cast, key, "old")
    send(cast, key, "young")
    with database.transaction() as session:
        old = update(IdempotentRequest).where(IdempotentRequest.idempotency_key == "old")
        at = session.scalars(select(IdempotentRequest.at)).first()
        assert at
        session.execute(update(IdempotentRequest).values(at=at - idempotency.KEEP + timedelta(minutes=1)))
        session.execute(old.values(at=at - idempotency.KEEP))
        key_pk = pk_of(session, key)
    noted = Usage(database)
    noted.accepted(
        Request(key_pk, at, "req_1", "GET", "/api/v1/me", 200, "", "203.0.113.9", ""), is_first=False, new_digest=None
    )
    noted.close()
    with database.reading() as session:
        assert list(session.scalars(select(IdempotentRequest.idempotency_key))) == ["young"]


def test_a_request_that_dies_before_its_commit_leaves_neither_record_nor_answer(
    cast: Cast, key: MadeKey, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed")

    before = kept(database)
    with monkeypatch.context() as broken:
        broken.setattr(idempotency, "keep", die)
        assert send(cast, key).status_code == 500
    assert kept(database) == before
    again = send(cast, key)
    assert again.status_code == 201
    assert "Idempotency-Replayed" not in again.headers


def test_parallel_retries_make_one_record(cast: Cast, key: MadeKey, database: Database) -> None:
    """Three portals, as three processes: one makes the record, the others repeat its answer or are told to wait."""
    environ = {
        "PORTAL_DATABASE_URL": database.url.render_as_string(hide_password=False),
        "PORTAL_INSTANCE": cast.app.instance_path,
    }
    portals = [cast, *(Cast(create_app(environ)) for _ in range(2))]
    before = count(database)
    for named in ("a", "b", "c", "d", "e"):
        replies = at_once({str(n): partial(send, each, key, named) for n, each in enumerate(portals)})
        answers = [reply for reply in replies.values() if isinstance(reply, TestResponse)]
        assert len(answers) == 3, replies
        assert {reply.status_code for reply in answers} <= {201, 409}
        assert len({reply.data for reply in answers if reply.status_code == 201}) == 1
        for reply in answers:
            if reply.status_code == 409:
                assert error(reply, 409)["type"] == "conflict_error"
        assert send(cast, key, named).headers["Idempotency-Replayed"] == "true"
    assert count(database) == before + 5
    for each in portals[1:]:
        each.app.extensions["portal"].close()


def test_while_the_first_is_under_way_a_repeat_is_told_so_or_waits_for_it(
    cast: Cast, key: MadeKey, database: Database
) -> None:
    with database.reading() as session:
        key_pk = pk_of(session, key)
    # Now: the portal of this module forgets in the background what is older than a day.
    asked = Asked.of(key_pk, "live", "one", datetime.now(UTC), method="POST", path="/p", body=b"{}")
    begun, may_end = Event(), Event()

    def first() -> None:
        with database.transaction() as session:
            assert idempotency.find(session, asked) is None
            begun.set()
            may_end.wait(10)
            idempotency.keep(session, asked, Stored(201, b"answer"))

    def repeat() -> Stored | None:
        with database.transaction() as session:
            return idempotency.find(session, asked)

    thread = Thread(target=first)
    thread.start()
    assert begun.wait(10)
    if database.is_sqlite:
        Timer(0.3, may_end.set).start()
    else:
        with pytest.raises(Conflict, match="under way"):
            repeat()
        may_end.set()
        thread.join()
    assert repeat() == Stored(201, b"answer", {})
    thread.join()


def test_what_is_stored_is_the_answer_alone(cast: Cast, key: MadeKey, database: Database) -> None:
    first = send(cast, key)
    with database.reading() as session:
        row = session.scalars(select(IdempotentRequest)).one()
    assert (row.status, row.body) == (201, first.data)
    assert key.text not in json.dumps(row.headers)
    assert set(row.headers) == {"Content-Type", "Location", "ETag", "X-Request-Id"}
