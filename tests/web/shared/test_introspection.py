"""Verifiers, and what products ask with them: token introspection (RFC 7662), and who may make a verifier."""

import base64
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from authlib.integrations.requests_client import OAuth2Session
from flask import Flask
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from app import create_app
from portal.rules.access import Environment
from portal.rules.credentials import KEY_SHAPED, KeyFormat, checksum
from portal.rules.errors import Forbidden
from portal.services import members, verifiers
from portal.store.database import Database
from portal.store.models import Access, ApiKey, AuditEvent, RefusedRequest, Usage, UserSession, Verifier
from portal.web import front
from tests.cast import KEY_TEXT, Cast, MadeKey, Person
from tests.servers import Server
from tests.services.office import RING, Office
from tests.web.looking import everything, kept

VERIFIER_TEXT = re.compile(r"vf_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}")
INACTIVE = {"active": False}
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Made:
    """A verifier as its maker got it."""

    id: str
    text: str

    @property
    def basic(self) -> dict[str, str]:
        return basic(self.id, self.text)

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}"}


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def make(person: Person, name: str = "Billing", **answers: str) -> Made:
    reply = person.post(f"/w/{person.workspace}/workspace/verifiers/new", {"name": name, **answers})
    text, found = VERIFIER_TEXT.search(reply.text), re.search(r"ver_[0-9A-Za-z]{16}", reply.text)
    assert reply.status_code == 200, reply.text
    assert text and found
    return Made(found[0], text[0])


def ask(cast: Cast, headers: dict[str, str], token: Any = "x", **options: Any) -> TestResponse:
    form = {} if "data" in options else {"data": {"token": token, "token_type_hint": "access_token"}}
    client = cast.app.test_client(use_cookies=False)
    return client.post("/oauth/introspect", headers=headers, **{**form, **options})


def oauth_error(reply: TestResponse, status: int) -> str:
    """Check that a refusal is one of RFC 6749, section 5.2, as a client of OAuth reads it; give its code."""
    assert (reply.status_code, reply.content_type) == (status, "application/json")
    assert reply.headers["Cache-Control"] == "no-store"
    body = reply.get_json()
    assert body.keys() == {"error", "error_description"}
    assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", body["error_description"])
    code: str = body["error"]
    return code


def told(cast: Cast, verifier: Made, token: str) -> dict[str, Any]:
    reply = ask(cast, verifier.basic, token)
    assert reply.status_code == 200, reply.text
    assert reply.content_type == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in reply.headers
    found: dict[str, Any] = reply.get_json()
    return found


@pytest.fixture(scope="module")
def verifier(cast: Cast) -> Made:
    return make(cast.ana)


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    return cast.lea.generate(["tasks:read", "tasks:write"], name="Live")


# --- What a verifier is told ----------------------------------------------------------------------------------------


def test_how_long_a_no_takes_does_not_tell_whether_there_is_such_a_key(
    cast: Cast, verifier: Made, key: MadeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[float]()
    monkeypatch.setattr(front, "sleep", waits.append)
    monkeypatch.setattr(front, "EVEN_AFTER", 60.0)  # whatever else this machine does meanwhile
    stopped = cast.lea.generate(["tasks:read"], name="Stopped")
    cast.lea.post(f"keys/{stopped.id}/deactivate")
    unknown = KeyFormat().mint(Environment.LIVE).reveal()
    assert told(cast, verifier, stopped.text) == told(cast, verifier, unknown) == INACTIVE
    assert len(waits) == 2
    assert told(cast, verifier, key.text)["active"]
    assert len(waits) == 2


def test_a_key_that_works_is_told_of(cast: Cast, verifier: Made, key: MadeKey, database: Database) -> None:
    me = cast.call("GET", "/me", key).get_json()["data"]
    with database.reading() as session:
        row = session.scalars(select(ApiKey).where(ApiKey.public_id == key.id)).one()
    assert row.expires_at
    base_url = cast.app.extensions["portal"].settings.base_url
    expected = {
        "active": True,
        "scope": "tasks:read tasks:write",
        "client_id": key.id,
        "sub": me["member"]["id"],
        "username": "Lea Okoro",
        "token_type": "Bearer",
        "exp": int(row.expires_at.timestamp()),
        "iat": int(row.created_at.timestamp()),
        "iss": base_url,
        "aud": base_url,
        "environment": "live",
        "workspace": me["workspace"]["id"],
    }
    assert told(cast, verifier, key.text) == expected
    assert ask(cast, verifier.bearer, key.text).get_json() == expected


def test_a_sandbox_key_that_never_ends_says_so(cast: Cast, verifier: Made) -> None:
    found = told(cast, verifier, cast.rio.generate(environment="test", expires="never").text)
    assert (found["environment"], "exp" in found) == ("test", False)


@pytest.mark.both
def test_only_what_works_now_is_in_scope(cast: Cast, verifier: Made, database: Database) -> None:
    key = cast.max.generate(["leads:write", "tasks:read"], name="Narrowed")
    with database.transaction() as session:
        session.execute(update(Access).where(Access.level == "full").values(level="read"))
    assert told(cast, verifier, key.text)["scope"] == "tasks:read"
    with database.transaction() as session:
        session.execute(update(Access).where(Access.level == "read").values(level="full"))


def test_of_everything_else_only_that_it_is_not_active(cast: Cast, verifier: Made, key: MadeKey) -> None:
    dead = {}
    for end in ("deactivate", "delete"):
        dead[end] = cast.rio.generate(name=f"To {end}")
        assert told(cast, verifier, dead[end].text)["active"]
        cast.rio.post(f"keys/{dead[end].id}/{end}", {"name": f"To {end}"})
    rotated = cast.rio.generate(name="Rotated")
    cast.rio.rotate(rotated, overlap="0")
    unknown = f"sk_live_{'x' * 43}"
    tokens = {
        **{end: each.text for end, each in dead.items()},
        "rotated": rotated.text,
        "other workspace": cast.zoe.generate(["tickets:read"], name="Zoe's").text,
        "verifier": verifier.text,
        "unknown": f"{unknown}_{checksum(unknown)}",
        "mistyped": key.text[:-1] + ("0" if key.text[-1] != "0" else "1"),
        "spaces": f" {key.text}",
        "trailing": f"{key.text} ",
        "other environment": key.text.replace("live", "test"),
        "two": f"{key.text},{key.text}",
        "NUL": "a\0b",
        "text": "é" * 1000,
    }
    found = {name: told(cast, verifier, token) for name, token in tokens.items()}
    assert found == dict.fromkeys(tokens, INACTIVE)


def test_the_very_next_answer_knows_of_a_change(cast: Cast, verifier: Made) -> None:
    key = cast.rio.generate(name="On and off")
    for action, active in (("deactivate", False), ("reactivate", True), ("deactivate", False)):
        assert cast.rio.post(f"keys/{key.id}/{action}").status_code == 303
        assert told(cast, verifier, key.text)["active"] is active


@pytest.mark.both
def test_asking_counts_as_use_of_the_key_and_not_against_its_rates(
    cast: Cast, verifier: Made, database: Database
) -> None:
    key = cast.rio.generate(name="Asked about")
    with database.transaction() as session:
        session.execute(update(ApiKey).where(ApiKey.public_id == key.id).values(rate_per_minute=1, rate_per_second=1))
    for _ in range(3):
        assert told(cast, verifier, key.text)["active"]
    cast.rio.post(f"keys/{key.id}/deactivate")
    assert told(cast, verifier, key.text) == INACTIVE
    cast.app.extensions["portal"].usage.flush()
    with database.reading() as session:
        pk = session.scalars(select(ApiKey.id).where(ApiKey.public_id == key.id)).one()
        uses = session.execute(
            select(Usage.outcome, Usage.scope, func.sum(Usage.count))
            .where(Usage.key_id == pk)
            .group_by(Usage.outcome, Usage.scope)
        ).all()
        refused = session.scalars(select(RefusedRequest).where(RefusedRequest.key_id == pk)).one()
    assert sorted((outcome, scope, int(count)) for outcome, scope, count in uses) == [
        ("accepted", "", 3),
        ("deactivated", "", 1),
    ]
    assert (refused.method, refused.path) == ("POST", "/oauth/introspect")
    for page in ("receipt", "requests"):  # the service got its answer: nothing of it was a 401
        shown = cast.rio.get(f"keys/{key.id}/{page}").text
        assert "a service asked about the key and was told that it does not work: key deactivated" in shown
        assert "401: key deactivated" not in shown
    assert "First asked about:" in cast.rio.get(f"keys/{key.id}/receipt").text


# --- Who may ask ----------------------------------------------------------------------------------------------------


def test_another_credential_gets_401_with_its_challenge(cast: Cast, verifier: Made, key: MadeKey) -> None:
    other = make(cast.ana, "Other")
    bad = [
        ({}, "Basic"),
        (basic(verifier.id, ""), "Basic"),
        (basic(other.id, verifier.text), "Basic"),
        (basic("", verifier.text), "Basic"),
        (basic(verifier.id, key.text), "Basic"),
        (basic(key.id, key.text), "Basic"),
        ({"Authorization": "Basic !!!!"}, "Basic"),
        ({"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()}, "Basic"),
        ({"Authorization": verifier.basic["Authorization"] + ", " + verifier.basic["Authorization"]}, "Basic"),
        (key.bearer, "Bearer"),
        ({"Authorization": f"Bearer {verifier.text}, Bearer {verifier.text}"}, "Bearer"),
        ({"Authorization": f"Bearer {verifier.text[:-1]}"}, "Bearer"),
    ]
    for headers, scheme in bad:
        reply = ask(cast, headers, key.text)
        assert (reply.status_code, reply.get_json()["error"]) == (401, "invalid_client"), headers
        assert "as HTTP Basic" in reply.get_json()["error_description"]
        assert reply.headers["WWW-Authenticate"].startswith(f'{scheme} realm="Latchkey"')
        assert ('error="invalid_token"' in reply.headers["WWW-Authenticate"]) is (scheme == "Bearer")
    encoded = basic(verifier.id.replace("_", "%5F"), verifier.text.replace("_", "%5f"))  # RFC 6749, section 2.3.1
    bearer = {"Authorization": verifier.bearer["Authorization"].replace("Bearer", "bEARER ")}
    for headers in (verifier.basic, encoded, bearer):
        assert ask(cast, headers, key.text).get_json()["active"]


def test_a_verifier_is_no_key(cast: Cast, verifier: Made) -> None:
    reply = cast.call("GET", "/me", MadeKey(verifier.id, verifier.text))
    assert (reply.status_code, reply.get_json()["error"]["code"]) == (401, "malformed_key")
    assert cast.call("GET", "/me", headers=verifier.basic).status_code == 401


@pytest.mark.parametrize(
    "options",
    [
        {"data": {}},
        {"data": {"token": ""}},
        {"data": {"token": ["a", "b"]}},
        {"data": {}, "query_string": {"token": "x"}},
        {"data": b'{"token": "x"}', "content_type": "application/json"},
        {"data": {"token": "x"}, "content_type": "multipart/form-data"},
    ],
)
def test_a_form_without_one_token_is_an_invalid_request(cast: Cast, verifier: Made, options: dict[str, Any]) -> None:
    reply = ask(cast, verifier.basic, **options)
    assert (reply.status_code, reply.get_json()["error"]) == (400, "invalid_request")
    assert ask(cast, {}, **options).status_code == 401  # who asks comes first


def test_too_long_a_body_and_other_methods_are_refused_in_json(cast: Cast, verifier: Made) -> None:
    long = ask(cast, verifier.basic, "x" * 20_000)
    assert oauth_error(long, 413) == "invalid_request"
    for method in ("GET", "PUT", "DELETE"):
        reply = cast.app.test_client().open("/oauth/introspect", method=method, headers=verifier.basic)
        assert oauth_error(reply, 405) == "invalid_request"
        assert reply.headers["Allow"] == "POST"
    assert oauth_error(cast.app.test_client().post("/oauth/token"), 404) == "invalid_request"
    longer = {"CONTENT_LENGTH": "500"}
    cut_off = ask(cast, verifier.basic, data=b"token=x", content_type=FORM, environ_overrides=longer)
    assert oauth_error(cut_off, 400) == "invalid_request"


def test_trouble_of_ours_has_the_shape_of_oauth(
    cast: Cast, verifier: Made, key: MadeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError

    monkeypatch.setattr(type(cast.app.extensions["portal"].key_check), "check", fail)
    assert oauth_error(ask(cast, verifier.basic, key.text), 500) == "server_error"


def test_a_session_opens_nothing_and_none_is_begun(cast: Cast, key: MadeKey) -> None:
    reply = cast.ana.browser.post("/oauth/introspect", data={"token": key.text})
    assert reply.status_code == 401
    assert "Set-Cookie" not in reply.headers
    assert cast.ana.browser.get("/oauth/other").status_code == 404


@pytest.mark.both
def test_when_the_database_is_away_nothing_is_called_inactive(
    cast: Cast, verifier: Made, key: MadeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    portal = cast.app.extensions["portal"]

    def away(*_: object, **__: object) -> None:
        raise psycopg.OperationalError

    with monkeypatch.context() as broken:
        broken.setattr(type(portal.key_check), "check", away)
        reply = ask(cast, verifier.basic, key.text)
    assert oauth_error(reply, 503) == "temporarily_unavailable"
    assert "Retry-After" in reply.headers
    with monkeypatch.context() as broken:
        broken.setattr(portal.database, "_sessions", away)
        assert oauth_error(ask(cast, verifier.basic, key.text), 503) == "temporarily_unavailable"
    assert told(cast, verifier, key.text)["active"]


@pytest.mark.both
def test_a_verifier_moves_to_the_newest_pepper_and_no_answer_waits_for_that(tmp_path: Path, database_url: str) -> None:
    def start(peppers: str) -> Cast:
        environ = {"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path)}
        return Cast(create_app(environ | {"PORTAL_KEY_PEPPERS": peppers}))

    old, new = f"old:{secrets.token_hex(32)}", f"new:{secrets.token_hex(32)}"
    first = start(old)
    made, key = make(first.ana), first.rio.generate()
    both = start(f"{new},{old}")
    somebody = Database(database_url)
    with somebody.transaction() as session:  # who writes, and holds the verifier too
        session.execute(select(Verifier.id).with_for_update()).one()
        assert told(both, made, key.text)["active"]
    somebody.close()
    for _ in range(2):
        assert told(both, made, key.text)["active"]
    both.app.extensions["portal"].usage.flush()
    last = start(new)
    assert told(last, made, key.text)["active"]
    for each in (first, both, last):
        each.app.extensions["portal"].close()


# --- Making and revoking --------------------------------------------------------------------------------------------


@pytest.mark.both
def test_its_text_is_shown_once_and_kept_nowhere(cast: Cast, database: Database) -> None:
    form = re.search(r'name="form_id"\s+value="([^"]+)"', cast.ana.get("/w/acme/workspace/verifiers/new").text)
    assert form
    made = make(cast.ana, "Shown once", form_id=form[1])
    body, _, check = made.text.rpartition("_")
    assert checksum(body) == check
    assert not KEY_TEXT.search(made.text)
    assert KEY_SHAPED.fullmatch(made.text)
    assert made.text not in repr(everything(database))
    again = cast.ana.post("/w/acme/workspace/verifiers/new", {"name": "Shown once", "form_id": form[1]})
    assert again.status_code == 410
    assert made.text not in again.text
    page = cast.ana.get("/w/acme/workspace/verifiers").text
    assert page.count("Shown once") == 2  # the name, and the link that revokes it
    assert f"vf_…{made.text[42:46]}" in page
    assert made.text not in page
    with database.reading() as session:
        event = session.scalars(select(AuditEvent).where(AuditEvent.target_id == made.id)).one()
    assert (event.action, event.actor_name) == ("verifier_made", "Ana Ruiz")
    assert "made the verifier" in cast.ana.get("/w/acme/audit").text


@pytest.mark.both
def test_a_revoked_one_is_told_nothing_any_more(cast: Cast, key: MadeKey, database: Database) -> None:
    made = make(cast.ana, "To revoke")
    assert told(cast, made, key.text)["active"]
    path = f"/w/acme/workspace/verifiers/{made.id}/revoke"
    assert "To revoke" in cast.ana.get(path).text
    assert cast.ana.post(path).status_code == 303
    assert ask(cast, made.basic, key.text).status_code == 401
    assert cast.ana.post(path).status_code == 404
    assert "Revoked" in cast.ana.get("/w/acme/workspace/verifiers").text
    with database.reading() as session:
        events = session.scalars(select(AuditEvent.action).where(AuditEvent.target_id == made.id)).all()
    assert set(events) == {"verifier_made", "verifier_revoked", "look_refused"}


def test_another_workspaces_administrator_sees_and_stops_none_of_them(
    cast: Cast, verifier: Made, key: MadeKey, database: Database
) -> None:
    theirs = make(cast.zoe, "Theirs")
    assert told(cast, theirs, key.text) == INACTIVE
    assert "Billing" not in cast.zoe.get("/w/globex/workspace/verifiers").text
    before = kept(database)
    for path in ("/w/globex/workspace/verifiers", "/w/acme/workspace/verifiers"):
        assert cast.zoe.post(f"{path}/{verifier.id}/revoke").status_code == 404
    assert kept(database) == before


def test_others_may_not(cast: Cast, verifier: Made, database: Database) -> None:
    before = kept(database)
    for person in (cast.lea, cast.rio):
        for path in ("", "/new", f"/{verifier.id}/revoke"):
            assert person.get(f"/w/acme/workspace/verifiers{path}").status_code == 403
        assert person.post("/w/acme/workspace/verifiers/new", {"name": "Mine"}).status_code == 403
        assert person.post(f"/w/acme/workspace/verifiers/{verifier.id}/revoke").status_code == 403
    lea = Office(database).actor("lea")  # nor where no page stands before it
    with pytest.raises(Forbidden), database.transaction() as session:
        verifiers.create(session, lea, RING, "Mine", "")
    with pytest.raises(Forbidden), database.transaction() as session:
        verifiers.revoke(session, lea, verifier.id)
    with pytest.raises(Forbidden), database.reading() as session:
        verifiers.get(session, members.seat_of(session, lea), verifier.id)
    assert kept(database) == before


@pytest.mark.parametrize("name", ["", "ab", "x" * 61, "a\u202eb c", "vf_" + "x" * 43, "sk_live_" + "x" * 43])
def test_a_name_that_tells_nothing_is_refused(cast: Cast, database: Database, name: str) -> None:
    before = kept(database)
    reply = cast.ana.post("/w/acme/workspace/verifiers/new", {"name": name})
    assert reply.status_code == 422
    assert "x" * 43 not in reply.text or len(name) == 61
    assert kept(database) == before


@pytest.mark.both
def test_a_workspace_has_twenty_at_most(cast: Cast, database: Database) -> None:
    answers = [cast.zoe.post("/w/globex/workspace/verifiers/new", {"name": f"No {n}"}).status_code for n in range(21)]
    assert 409 in answers
    with database.reading() as session:
        count = select(func.count()).select_from(Verifier)
        globex = next(row.workspace_id for row in session.scalars(select(Verifier)) if row.name == "No 0")
        assert session.scalar(count.where(Verifier.workspace_id == globex, Verifier.revoked_at.is_(None))) == 20
        any_of_them = session.scalars(select(Verifier.public_id).where(Verifier.workspace_id == globex)).first()
    assert cast.zoe.post(f"/w/globex/workspace/verifiers/{any_of_them}/revoke").status_code == 303
    assert cast.zoe.post("/w/globex/workspace/verifiers/new", {"name": "In its place"}).status_code == 200


def test_making_one_asks_for_the_password_and_revoking_does_not(cast: Cast, database: Database) -> None:
    made = make(cast.ana, "Old proof")
    with database.transaction() as session:
        session.execute(update(UserSession).values(proved_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert cast.ana.post("/w/acme/workspace/verifiers/new", {"name": "Another"}).status_code == 403
    assert cast.ana.post(f"/w/acme/workspace/verifiers/{made.id}/revoke").status_code == 303
    with database.transaction() as session:
        session.execute(update(UserSession).values(proved_at=datetime.now(UTC)))


def test_bad_verifiers_of_one_network_are_told_to_wait_and_a_good_one_is_not(launch: Callable[..., Flask]) -> None:
    app = launch(PORTAL_TRUSTED_PROXIES="127.0.0.1")
    made = make(Cast(app).ana)

    def ask_from(network: str, headers: dict[str, str]) -> TestResponse:
        client = app.test_client(use_cookies=False)
        headers = {**headers, "X-Forwarded-For": network}
        return client.post("/oauth/introspect", headers=headers, data={"token": "x"})

    replies = [ask_from("203.0.113.7", basic(made.id, "wrong")) for _ in range(610)]  # of two minutes at most
    assert [reply.status_code for reply in replies[:300]] == [401] * 300
    told_to_wait = [reply for reply in replies if reply.status_code == 429]
    assert 1 <= int(told_to_wait[0].headers["Retry-After"]) <= 60
    assert told_to_wait[0].get_json()["error"] == "temporarily_unavailable"
    assert ask_from("203.0.113.7", made.basic).status_code == 200
    assert ask_from("203.0.113.8", basic(made.id, "wrong")).status_code == 401
    assert ask_from("203.0.113.7", {}).status_code == 401  # none at all is no bad one


# --- With somebody else's client ------------------------------------------------------------------------------------


@pytest.fixture
def beside(live_server: Server) -> Iterator[Flask]:
    """A portal in this process on the server's database, for the people."""
    app = create_app({"PORTAL_DATABASE_URL": live_server.database_url, "PORTAL_INSTANCE": str(live_server.instance)})
    yield app
    app.extensions["portal"].close()


def test_authlibs_client_understands_the_shipped_server(live_server: Server, beside: Flask) -> None:
    cast = Cast(beside)
    made, key = make(cast.ana), cast.lea.generate(["tasks:read"])
    url = f"{live_server.url}/oauth/introspect"
    with OAuth2Session(made.id, made.text, token_endpoint_auth_method="client_secret_basic") as client:
        found = client.introspect_token(url, token=key.text, token_type_hint="access_token").json()
        assert (found["active"], found["scope"], found["client_id"]) == (True, "tasks:read", key.id)
        cast.lea.post(f"keys/{key.id}/deactivate")
        assert client.introspect_token(url, token=key.text).json() == INACTIVE
    with OAuth2Session(made.id, "wrong", token_endpoint_auth_method="client_secret_basic") as stranger:
        assert stranger.introspect_token(url, token=key.text).status_code == 401
