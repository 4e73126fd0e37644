"""What a key may do to itself over the API: rotate, where it was generated so, and end (contract, section 3)."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from portal.services.actor import Means
from portal.store.database import Database
from portal.store.models import Access, ApiKey, AuditEvent, IdempotentRequest, Member, Solution, Workspace
from tests.cast import KEY_TEXT, Cast, MadeKey
from tests.services.office import at_once
from tests.web.looking import data, error, everything, kept

DAY = 86_400


@pytest.fixture
def key(cast: Cast) -> MadeKey:
    """A key of lea that may rotate itself."""
    return cast.lea.generate(["tasks:read", "tasks:write"], self_rotate="yes", expires="30d", note="On the server")


def rotate(cast: Cast, key: MadeKey, **options: Any) -> MadeKey:
    made = data(cast.call("POST", "/me/rotate", key, **options), 201)
    return MadeKey(made["id"], made["key"])


def row(database: Database, key: MadeKey) -> ApiKey:
    with database.reading() as session:
        return session.scalars(select(ApiKey).where(ApiKey.public_id == key.id)).one()


def told(database: Database, key_id: str, action: str) -> AuditEvent:
    with database.reading() as session:
        here = (AuditEvent.target_id == key_id, AuditEvent.action == action)
        return session.scalars(select(AuditEvent).where(*here)).one()


def set_key(database: Database, key: MadeKey, **values: Any) -> None:
    with database.transaction() as session:
        session.execute(update(ApiKey).where(ApiKey.public_id == key.id).values(values))


# --- Rotating itself ------------------------------------------------------------------------------------------------


def test_a_key_that_may_gets_a_new_one_once(cast: Cast, key: MadeKey, database: Database) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    reply = cast.call("POST", "/me/rotate", key, json={"overlap": 3600})
    made = data(reply, 201)
    assert KEY_TEXT.fullmatch(made["key"])
    assert reply.headers.getlist("X-Key-Expires-At") == [made["previousKeyEndsAt"]]
    assert len(reply.headers.getlist("Sunset")) == 1
    assert made == {
        "id": made["id"],
        "name": "Nightly export",
        "key": made["key"],
        "hint": f"sk_live_…{made['key'][47:51]}",
        "environment": "live",
        "scopes": ["tasks:read", "tasks:write"],
        "expiresAt": made["expiresAt"],
        "replaces": key.id,
        "previousKeyEndsAt": made["previousKeyEndsAt"],
    }
    life = datetime.fromisoformat(made["expiresAt"]) - before
    assert timedelta(0) <= life - timedelta(days=30) < timedelta(minutes=1)
    ends = datetime.fromisoformat(made["previousKeyEndsAt"])
    assert timedelta(0) <= ends - before - timedelta(hours=1) < timedelta(minutes=1)
    new = MadeKey(made["id"], made["key"])
    assert data(cast.call("GET", "/me", new))["key"]["id"] == new.id
    again = cast.call("GET", "/me", key).headers
    assert again["X-Key-Expires-At"][:19] == made["previousKeyEndsAt"][:19]
    assert again["Sunset"] == reply.headers["Sunset"]
    kept_row = row(database, new)
    assert (kept_row.self_rotate, kept_row.note) == (True, "On the server")
    assert new.text not in json.dumps(everything(database), default=repr)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({}, DAY), ({"json": {}}, DAY), ({"json": {"overlap": 0}}, 0), ({"json": {"overlap": 7 * DAY}}, 7 * DAY)],
)
def test_the_overlap_is_the_callers_choice(
    cast: Cast, key: MadeKey, database: Database, options: dict[str, Any], seconds: int
) -> None:
    new = rotate(cast, key, **options)
    old = row(database, key)
    assert old.retires_at and old.rotated_at
    assert old.retires_at - old.rotated_at == timedelta(seconds=seconds)
    assert cast.call("GET", "/me", key).status_code == (200 if seconds else 401)
    assert cast.call("GET", "/me", new).status_code == 200


def test_the_old_key_never_outlives_itself(cast: Cast, key: MadeKey, database: Database) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    set_key(database, key, expires_at=soon)
    rotate(cast, key)
    assert row(database, key).retires_at == soon


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"json": {"overlap": -1}}, 422),
        ({"json": {"overlap": 7 * DAY + 1}}, 422),
        ({"json": {"overlap": 1.5}}, 422),
        ({"json": {"overlap": True}}, 422),
        ({"json": {"overlap": "1"}}, 422),
        ({"json": {"overlap": None}}, 422),
        ({"json": {"overlap": 1, "scopes": ["leads:read"]}}, 400),
        ({"json": []}, 400),
        ({"data": b"{", "content_type": "application/json"}, 400),
        ({"data": b'{"overlap": 1e999}', "content_type": "application/json"}, 400),
        ({"data": b"overlap=1", "content_type": "application/x-www-form-urlencoded"}, 415),
        ({"headers": {"Idempotency-Key": ""}}, 400),
        ({"query_string": "a=1&a=2"}, 400),
    ],
)
def test_a_body_that_is_not_an_overlap_changes_nothing(
    cast: Cast, key: MadeKey, database: Database, options: dict[str, Any], status: int
) -> None:
    before = kept(database)
    error(cast.call("POST", "/me/rotate", key, **options), status)
    assert kept(database) == before


@pytest.mark.both
def test_a_key_that_was_not_generated_so_may_not(cast: Cast, database: Database) -> None:
    key = cast.lea.generate()
    before = kept(database)
    reply = cast.call("POST", "/me/rotate", key)
    found = error(reply, 403)
    assert (found["type"], found["code"]) == ("authorization_error", "rotation_not_allowed")
    assert 'error="insufficient_scope"' in reply.headers["WWW-Authenticate"]
    assert kept(database) == before
    event = told(database, key.id, "key_rotated")
    assert (event.outcome, event.means, event.actor_id) == ("refused", Means.KEY, key.id)
    explained = cast.lea.get(f"/w/acme/explain?request_id={reply.headers['X-Request-Id']}").text
    assert "Refused over the API" in explained
    assert "generate another one there with “The key may rotate itself over the API”" in explained


def test_a_second_rotation_is_a_conflict_and_nothing_brings_the_text_back(
    cast: Cast, key: MadeKey, database: Database
) -> None:
    headers = {"Idempotency-Key": "one"}
    new = rotate(cast, key, headers=headers)
    before = kept(database)
    again = cast.call("POST", "/me/rotate", key, headers=headers)
    early = cast.call("POST", "/me/rotate", new)
    assert [error(each, 409)["code"] for each in (again, early)] == ["already_replaced", "predecessor_works"]
    assert error(early, 409)["type"] == "conflict_error"
    assert kept(database) == before
    with database.reading() as session:
        assert session.scalars(select(IdempotentRequest)).all() == []


@pytest.mark.both
def test_many_at_once_make_one_key(cast: Cast, key: MadeKey, database: Database) -> None:
    replies = at_once({str(n): lambda: cast.call("POST", "/me/rotate", key) for n in range(4)})
    assert sorted(str(getattr(each, "status_code", each)) for each in replies.values()) == ["201", "409", "409", "409"]


def test_the_successor_may_rotate_itself_when_the_old_key_is_gone(cast: Cast, key: MadeKey) -> None:
    third = rotate(cast, rotate(cast, key, json={"overlap": 0}), json={"overlap": 0})
    assert cast.call("GET", "/me", third).status_code == 200


@pytest.mark.both
def test_a_scope_that_its_member_lost_stops_the_rotation(cast: Cast, key: MadeKey, database: Database) -> None:
    with database.transaction() as session:
        lea = session.scalars(select(Member.id).where(Member.name == "Lea Okoro")).one()
        operations = session.scalars(select(Solution.id).where(Solution.slug == "operations")).one()
        here = (Access.member_id == lea, Access.solution_id == operations)
        session.execute(update(Access).where(*here).values(level="read"))
    before = kept(database)
    reply = cast.call("POST", "/me/rotate", key)
    found = error(reply, 403)
    assert (found["code"], found["requiredScope"], found["heldScopes"]) == (
        "access_withdrawn",
        "tasks:write",
        ["tasks:read"],
    )
    assert 'scope="tasks:write"' in reply.headers["WWW-Authenticate"]
    assert kept(database) == before
    with database.transaction() as session:
        session.execute(delete(Access).where(*here))
    assert error(cast.call("POST", "/me/rotate", key), 403)["code"] == "access_withdrawn"


def test_the_policy_caps_the_new_life(cast: Cast, database: Database) -> None:
    key = cast.lea.generate(self_rotate="yes", expires="never")
    with database.transaction() as session:
        session.execute(update(Workspace).where(Workspace.slug == "acme").values(max_key_days=30))
    new = row(database, rotate(cast, key))
    assert new.expires_at and new.expires_at - new.created_at == timedelta(days=30)


@pytest.mark.both
def test_an_administrators_live_key_stays_under_the_policy(cast: Cast, database: Database) -> None:
    key = cast.ana.generate(self_rotate="yes")
    with database.transaction() as session:
        session.execute(update(Workspace).where(Workspace.slug == "acme").values(admins_own_live=False))
    before = kept(database)
    assert "own no live keys" in error(cast.call("POST", "/me/rotate", key), 409)["message"]
    assert kept(database) == before


def test_an_api_members_key_rotates_itself_and_keeps_its_rates(cast: Cast, database: Database) -> None:
    owner = re.search(r'value="(mem_\w+)"(?:(?!</label>).)*Nightly sync', cast.lea.get("keys/new").text, re.DOTALL)
    assert owner
    key = cast.lea.generate(name="For the sync", owner=owner[1], self_rotate="yes")
    set_key(database, key, rate_per_minute=5000, rate_per_second=100)
    new = rotate(cast, key)
    assert data(cast.call("GET", "/me", new))["member"]["name"] == "Nightly sync"
    assert (row(database, new).rate_per_minute, row(database, new).rate_per_second) == (5000, 100)
    assert "For the sync" in cast.lea.get(f"keys/{new.id}").text


def test_it_is_told_by_means_of_the_key(cast: Cast, key: MadeKey, database: Database) -> None:
    new = rotate(cast, key)
    for key_id, action in ((key.id, "key_rotated"), (new.id, "key_generated")):
        event = told(database, key_id, action)
        assert (event.outcome, event.means, event.actor_id) == ("done", Means.KEY, key.id)
        assert event.actor_name.startswith("Lea Okoro, key “Nightly export”")
    assert told(database, new.id, "key_generated").details["self_rotate"] is True


# --- The checkbox ---------------------------------------------------------------------------------------------------


def test_the_form_offers_it_unticked_and_the_check_page_carries_it(cast: Cast, database: Database) -> None:
    box = re.compile(r'<input[^>]*name="self_rotate"[^>]*>')
    offered = box.search(cast.rio.get("keys/new").text)
    assert offered and "checked" not in offered[0]
    checked = cast.rio.post("keys/new/review", cast.rio.form(self_rotate="yes"))
    assert 'name="self_rotate" value="yes"' in checked.text
    assert "may rotate itself" in checked.text
    shown_again = cast.rio.post("keys", cast.rio.form(self_rotate="yes", name=""))
    ticked = box.search(shown_again.text)
    assert ticked and "checked" in ticked[0]
    for nothing_ticked in ({}, {"self_rotate": "no"}, {"self_rotate": "0"}):
        assert not row(database, cast.rio.generate(name=f"Key {nothing_ticked}", **nothing_ticked)).self_rotate


def test_rotating_and_replacing_by_hand_keep_it(cast: Cast, key: MadeKey, database: Database) -> None:
    assert row(database, cast.lea.rotate(key)).self_rotate
    lost = cast.lea.generate(name="Lost", self_rotate="yes")
    form_id = re.search(r'name="form_id"\s+value="([^"]+)"', cast.lea.get(f"keys/{lost.id}/replace").text)
    assert form_id
    page = cast.lea.post(f"keys/{lost.id}/replace", {"form_id": form_id[1]}).text
    found = re.search(r'data-key="(key_\w+)"', page)
    assert found
    assert row(database, MadeKey(found[1], "")).self_rotate
    assert "May rotate itself" in cast.lea.get(f"keys/{found[1]}").text
    assert "By hand, in the portal" in cast.rio.get(f"keys/{cast.rio.generate().id}").text


# --- Ending itself --------------------------------------------------------------------------------------------------


def test_any_key_ends_itself_for_ever(cast: Cast, database: Database) -> None:
    key = cast.rio.generate(environment="test")
    reply = cast.call("DELETE", "/me", key)
    assert (reply.status_code, reply.data, "Content-Type" in reply.headers) == (204, b"", False)
    assert error(cast.call("GET", "/me", key), 401)["code"] == "invalid_key"
    assert error(cast.call("DELETE", "/me", key), 401)["code"] == "invalid_key"
    event = told(database, key.id, "key_deleted")
    assert (event.outcome, event.means, event.details["reason"]) == ("done", Means.KEY, "the key ended itself")
    ended = row(database, key)
    assert ended.revoked_by_id == ended.member_id
    assert "the key ended itself" in cast.rio.get("/w/acme/audit").text


def test_an_old_key_may_end_its_overlap(cast: Cast, key: MadeKey) -> None:
    new = rotate(cast, key)
    assert cast.call("DELETE", "/me", key).status_code == 204
    assert cast.call("GET", "/me", new).status_code == 200
    assert cast.call("POST", "/me/rotate", new).status_code == 201
