"""The REST API for those it refuses: 401 that tells nothing, 403 that tells what to do, 503 that is nobody's fault."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.engine import make_url
from werkzeug.test import TestResponse

from app import create_app
from portal.rules.access import Environment
from portal.rules.credentials import KeyFormat
from portal.store.database import Database
from portal.store.models import Access, Account, ApiKey, KeyScope, Member, Solution
from tests.cast import HTMX, Cast, MadeKey
from tests.databases import Template
from tests.servers import free_port
from tests.web.looking import SECURITY_HEADERS, data, error

REALM = 'Bearer realm="Latchkey"'


def of_unknown_text(cast: Cast, database: Database, key: MadeKey) -> MadeKey:
    return MadeKey("key_none", KeyFormat().mint(Environment.LIVE).reveal())


def deleted(cast: Cast, database: Database, key: MadeKey) -> None:
    assert cast.max.post(f"keys/{key.id}/delete").status_code == 303


def deactivated(cast: Cast, database: Database, key: MadeKey) -> None:
    assert cast.max.post(f"keys/{key.id}/deactivate").status_code == 303


def expired(cast: Cast, database: Database, key: MadeKey) -> None:
    with database.transaction() as session:
        found = session.query(ApiKey).filter_by(public_id=key.id).one()
        found.expires_at = found.created_at


def its_member_deactivated(cast: Cast, database: Database, key: MadeKey) -> None:
    with database.transaction() as session:
        member = session.query(Member).filter_by(name="Max Brandt").one()
        member.deactivated_at = member.created_at


def its_member_removed(cast: Cast, database: Database, key: MadeKey) -> None:
    with database.transaction() as session:
        member = session.query(Member).filter_by(name="Max Brandt").one()
        member.removed_at = member.created_at


def its_account_deactivated(cast: Cast, database: Database, key: MadeKey) -> None:
    with database.transaction() as session:
        account = session.query(Account).filter_by(email="max@acme.test").one()
        account.deactivated_at = account.created_at


def relabelled_in_the_database(cast: Cast, database: Database, key: MadeKey) -> None:
    with database.transaction() as session:
        session.query(ApiKey).filter_by(public_id=key.id).one().environment = "test"


def nothing_but_bytes(reply: TestResponse) -> tuple[str, dict[str, str], str]:
    """Give all that the other side can tell two answers apart by, but for the request's id."""
    request_id = reply.headers["X-Request-Id"]
    headers = {name: value.replace(request_id, "") for name, value in reply.headers}
    return reply.status, headers, reply.text.replace(request_id, "")


@pytest.mark.both
@pytest.mark.parametrize(
    "fate",
    [
        *(deleted, deactivated, expired, its_member_deactivated, its_member_removed, its_account_deactivated),
        *(relabelled_in_the_database, of_unknown_text),
    ],
)
def test_a_key_that_is_refused_is_refused_in_the_same_bytes_whatever_the_cause(
    cast: Cast, database: Database, fate: Callable[[Cast, Database, MadeKey], MadeKey | None]
) -> None:
    key = cast.max.generate(["leads:read"])
    assert data(cast.call("GET", "/me", key))
    mine = data(cast.call("GET", "/me", key))["workspace"]["id"]
    elsewhere = cast.call("GET", "/me", key, headers={"Account-Id": "ws_1"})
    key = fate(cast, database, key) or key
    for path in ("/me", "/apps/leads/records", "/apps/accounts/records", "/me?limit=1&limit=2"):
        for headers in ({}, {"Account-Id": mine}, {"Account-Id": "ws_1"}):
            reply = cast.call("GET", path, key, headers=headers)
            assert error(reply, 401)["type"] == "authentication_error"
            assert reply.headers["WWW-Authenticate"] == f'{REALM}, error="invalid_token"'
            assert nothing_but_bytes(reply) == nothing_but_bytes(elsewhere)
    assert error(elsewhere, 401)["code"] == "invalid_key"
    assert not [name for name, _ in elsewhere.headers if name.startswith(("X-RateLimit", "X-Environment", "X-Key"))]


def test_a_text_that_is_no_key_and_no_credential_at_all_have_codes_of_their_own(cast: Cast) -> None:
    missing = cast.call("GET", "/me")
    assert error(missing, 401)["type"] == "authentication_error"
    assert error(missing, 401)["code"] == "missing_key"
    assert missing.headers["WWW-Authenticate"] == REALM
    malformed = cast.call("GET", "/me", headers={"Authorization": "Bearer nonsense"})
    assert error(malformed, 401)["type"] == "authentication_error"
    assert error(malformed, 401)["code"] == "malformed_key"
    assert malformed.headers["WWW-Authenticate"] == f'{REALM}, error="invalid_token"'


def test_a_key_works_again_once_it_is_reactivated_and_stops_for_good_when_deleted(cast: Cast) -> None:
    key = cast.rio.generate()
    answers = []
    for action in ("deactivate", "reactivate", "delete"):
        assert cast.rio.post(f"keys/{key.id}/{action}", {"name": "Nightly export"}).status_code == 303
        answers.append(cast.call("GET", "/me", key).status_code)
    assert answers == [401, 200, 401]
    assert cast.rio.post(f"keys/{key.id}/reactivate").status_code == 409


# --- 403 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow_key(shared_cast: Cast) -> MadeKey:
    return shared_cast.max.generate(["accounts:read", "tasks:read"])


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/apps/leads/records", "leads:read"),
        ("POST", "/apps/tasks/records", "tasks:write"),
        ("PATCH", "/apps/tasks/records/rec_1", "tasks:write"),
        ("DELETE", "/apps/tasks/records/rec_1", "tasks:write"),
        ("GET", "/apps/tickets/records", "tickets:read"),  # an app of another workspace
        ("GET", "/apps/nothing/records/rec_1", "nothing:read"),  # no app at all
    ],
)
def test_a_scope_that_the_key_lacks_is_named_with_the_way_to_a_key_that_has_it(
    shared_cast: Cast, narrow_key: MadeKey, method: str, path: str, needed: str
) -> None:
    cast, key = shared_cast, narrow_key
    reply = cast.call(method, path, key, json={"fields": {}})
    refused = error(reply, 403)
    assert reply.headers["WWW-Authenticate"] == f'{REALM}, error="insufficient_scope", scope="{needed}"'
    assert (refused["type"], refused["code"]) == ("authorization_error", "missing_scope")
    assert (refused["requiredScope"], refused["heldScopes"]) == (needed, ["accounts:read", "tasks:read"])
    assert set(refused) == {"type", "code", "message", "requiredScope", "heldScopes", "fixUrl"}
    form = urlsplit(refused["fixUrl"])
    assert f"{form.scheme}://{form.netloc}" == cast.app.extensions["portal"].settings.base_url
    page = cast.max.get(f"{form.path}?{form.query}")
    assert page.status_code == 200
    assert key.text not in refused["fixUrl"]
    if needed == "leads:read":
        assert set(ticked(page.text)) == {"accounts:read", "tasks:read", needed}


def ticked(page: str) -> list[str]:
    boxes = [tag for tag in re.findall(r"<input[^>]*>", page) if 'name="scopes"' in tag and "checked" in tag]
    return [found[1] for box in boxes if (found := re.search(r'value="([^"]+)"', box))]


@pytest.mark.both
def test_what_the_member_lost_is_refused_at_once_and_never_grows_past_the_key(cast: Cast, database: Database) -> None:
    key = cast.max.generate(["leads:read", "leads:write"])
    path, fields = "/apps/leads/records", {"fields": {"name": "x"}}

    def max_has(level: str) -> None:
        with database.transaction() as session:
            sales = (
                session.query(Access)
                .join(Solution)
                .join(Member, Member.id == Access.member_id)
                .filter(Member.name == "Max Brandt")
            )
            sales.filter(Solution.slug == "sales").one().level = level

    max_has("read")
    assert data(cast.call("GET", path, key))
    reply = cast.call("POST", path, key, json=fields)
    refused = error(reply, 403)
    assert (refused["type"], refused["code"]) == ("authorization_error", "access_withdrawn")
    assert (refused["requiredScope"], refused["heldScopes"]) == ("leads:write", ["leads:read"])
    assert "not among heldScopes" in refused["message"]
    assert "fixUrl" not in refused
    assert reply.headers["WWW-Authenticate"].endswith('error="insufficient_scope", scope="leads:write"')
    me = data(cast.call("GET", "/me", key))["key"]
    assert (me["scopes"], me["effectiveScopes"]) == (["leads:read", "leads:write"], ["leads:read"])
    (sales,) = data(cast.call("GET", "/solutions", key))
    assert sales["apps"][0]["scopes"] == ["leads:read"]

    max_has("manage")
    assert data(cast.call("POST", path, key, json=fields), 201)
    assert error(cast.call("GET", "/apps/accounts/records", key), 403)["code"] == "missing_scope"


def test_an_owners_role_widens_no_key(cast: Cast) -> None:
    key = cast.ana.generate(["leads:read"])
    assert error(cast.call("POST", "/apps/leads/records", key, json={"fields": {"name": "x"}}), 403)
    assert data(cast.call("GET", "/me", key))["key"]["effectiveScopes"] == ["leads:read"]


@pytest.mark.both
def test_a_key_without_scopes_reaches_nothing(cast: Cast, database: Database) -> None:
    key = cast.max.generate(["leads:read"])
    with database.transaction() as session:
        session.query(KeyScope).delete()
    assert data(cast.call("GET", "/solutions", key)) == []
    assert error(cast.call("GET", "/apps/leads/records", key), 403)["heldScopes"] == []


# --- 503 ------------------------------------------------------------------------------------------------------------

HARMS = {
    "sqlite": ("an empty file", "a file of rubbish", "a folder in its place"),
    "postgresql": ("dropped", "dropped under a running portal", "no server"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ruin" in metafunc.fixturenames:
        metafunc.parametrize("ruin", HARMS[metafunc.config.getoption("--database")], indirect=True, scope="module")


@dataclass
class Ruin:
    """A portal whose database is gone, and what was good before: a key, and a browser with a session."""

    app: Flask
    key: MadeKey
    browser: FlaskClient


@pytest.fixture(scope="module")
def ruin(
    request: pytest.FixtureRequest, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ruin]:
    harm: str = request.param
    environ = {"PORTAL_INSTANCE": str(tmp_path_factory.mktemp("instance"))}
    with template.copy() as url:
        app = create_app(environ | {"PORTAL_DATABASE_URL": url})
        cast = Cast(app)
        key = cast.rio.generate()
        cookie = cast.rio.browser.get_cookie("portal")
        assert cookie
    file = Path(make_url(url).database or "")
    if harm == "a file of rubbish":
        file.write_bytes(b"rubbish " * 10_000)
    elif harm == "a folder in its place":
        file.mkdir()
    elif harm == "no server":
        url = f"postgresql://somebody@127.0.0.1:{free_port()}/portal"
    if harm != "dropped under a running portal":
        app.extensions["portal"].close()
        app = create_app(environ | {"PORTAL_DATABASE_URL": url})
    browser = app.test_client()
    browser.set_cookie("portal", cookie.value)
    yield Ruin(app, key, browser)
    app.extensions["portal"].close()
    for leftover in file.parent.glob(f"{file.name}*"):
        leftover.rmdir() if leftover.is_dir() else leftover.unlink()


@pytest.mark.both
def test_an_integration_is_told_to_come_back_and_never_that_its_key_is_bad(ruin: Ruin) -> None:
    cast = Cast(ruin.app)
    for method, path in (("GET", "/me"), ("GET", "/apps/tasks/records"), ("POST", "/apps/tasks/records")):
        reply = cast.call(method, path, ruin.key, json={"fields": {"title": "x"}})
        refused = error(reply, 503)
        assert (refused["type"], refused["code"]) == ("api_error", "unavailable")
        assert 1 <= int(reply.headers["Retry-After"]) <= 30
        assert "WWW-Authenticate" not in reply.headers
        assert tells_nothing_of_the_inside(reply)


def test_text_that_is_no_key_is_refused_without_asking_the_database(ruin: Ruin) -> None:
    cast = Cast(ruin.app)
    swapped = ruin.key.text.replace("sk_live_", "sk_test_")
    mistyped = ruin.key.text[:-1] + ("a" if ruin.key.text[-1] != "a" else "b")
    for text in ("x", "x" * 100_000, ruin.key.text[:-1], swapped, mistyped):
        reply = cast.call("GET", "/me", headers={"Authorization": f"Bearer {text}"})
        assert error(reply, 401)["code"] == "malformed_key"
    assert error(cast.call("GET", "/me"), 401)["code"] == "missing_key"


def test_people_get_a_page_that_says_so_and_are_not_signed_out(ruin: Ruin) -> None:
    for path in ("/w/acme", "/w/acme/api/keys", "/w/acme/api/keys/new", "/w", "/"):
        page, fragment = ruin.browser.get(path), ruin.browser.get(path, headers=HTMX)
        assert (page.status_code, fragment.status_code) == (503, 503)
        assert page.mimetype == "text/html"
        assert "<h1>" in page.text
        assert "<html" not in fragment.text
        for reply in (page, fragment):
            assert 1 <= int(reply.headers["Retry-After"]) <= 30
            assert reply.headers["Cache-Control"] == "no-store"
            assert SECURITY_HEADERS.items() <= dict(reply.headers).items()
            assert not {"Location", "HX-Redirect"} & set(reply.headers.keys())
            assert tells_nothing_of_the_inside(reply)


def test_what_needs_no_database_goes_on(ruin: Ruin) -> None:
    assert ruin.browser.get("/healthz").status_code == 200
    stranger = Cast(ruin.app).stranger("rio")
    assert stranger.get("/login").status_code == 200
    assert stranger.sign_in().status_code == 503
    assert ruin.browser.get("/static/app.js", buffered=True).status_code == 200
    assert ruin.browser.get("/nothing").status_code in {404, 503}


def tells_nothing_of_the_inside(reply: TestResponse) -> bool:
    return not re.search(r"sqlite|psycopg|postgres|Traceback|\.py\b|SELECT|/dev/shm|connection", reply.text)
