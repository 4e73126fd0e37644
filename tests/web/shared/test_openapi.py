"""The API's document: whole, true to the routes, guards and error table, and what the served portal really answers."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from openapi_spec_validator import validate

from bench.fuzz import Asked, Document, Wallet, prepare, run
from bench.stage import Stage
from portal.rules.access import Environment
from portal.rules.credentials import KeyFormat
from portal.settings import Settings
from portal.store.database import Database
from portal.web.declared import declared_calls, refusals_of
from portal.web.guards import anybody
from portal.web.http import error_types
from portal.web.openapi import BASE, WORDS
from tests.cast import Cast, MadeKey
from tests.servers import Server
from tests.services.office import Office
from tests.web.looking import data, error

# What the contract says of each call: the scope that it needs, `key` where any will do, None where none is needed.
SCOPES = {
    ("GET", "/api/v1/openapi.json"): None,
    ("GET", "/api/v1/me"): "key",
    ("POST", "/api/v1/me/rotate"): "key",
    ("DELETE", "/api/v1/me"): "key",
    ("GET", "/api/v1/solutions"): "key",
    ("GET", "/api/v1/apps/{app}/records"): "{app}:read",
    ("POST", "/api/v1/apps/{app}/records"): "{app}:write",
    ("GET", "/api/v1/apps/{app}/records/{record_id}"): "{app}:read",
    ("PATCH", "/api/v1/apps/{app}/records/{record_id}"): "{app}:write",
    ("DELETE", "/api/v1/apps/{app}/records/{record_id}"): "{app}:write",
    ("GET", "/verify"): "key",
    ("POST", "/verify"): "key",
    ("POST", "/oauth/introspect"): "verifier",
}


@pytest.fixture(scope="module")
def document(cast: Cast) -> dict[str, Any]:
    found: dict[str, Any] = cast.call("GET", "/openapi.json").get_json()
    return found


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    return cast.lea.generate(["tasks:read", "tasks:write"])


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def test_the_document_is_openapi_and_needs_no_key(cast: Cast, document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"] == "3.1.0"
    first = cast.call("GET", "/openapi.json")
    assert (first.status_code, first.content_type) == (200, "application/json")
    assert first.headers["Cache-Control"] == "public, max-age=300"
    assert "Set-Cookie" not in first.headers
    again = cast.call("GET", "/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert cast.call("GET", "/openapi.json", headers={"If-None-Match": '"other"'}).status_code == 200


def undeclared(app: Flask) -> set[tuple[str, str]]:
    """List the API's routes that the document does not have."""
    declared = {(each.method, each.path) for each in declared_calls(app)}
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/api/")
    }
    return routes - declared


def test_every_route_of_the_api_is_declared_with_the_scope_that_its_guard_asks_for(
    cast: Cast, document: dict[str, Any]
) -> None:
    assert undeclared(cast.app) == set()
    told = {}
    for method, path, operation in operations(document):
        security = operation["security"]
        ((scheme, scopes),) = security[0].items() if security else ((None, []),)
        told[method, path] = scopes[0] if scopes else scheme
    assert told == SCOPES


def test_a_route_without_a_declaration_is_missed(launch: Callable[[], Flask]) -> None:
    careless = launch()
    careless.add_url_rule("/api/v1/secrets", "api.secrets", anybody(lambda: Response("secrets")))
    assert undeclared(careless) == {("GET", "/api/v1/secrets")}


def test_the_document_asks_for_a_key_exactly_where_the_portal_does(cast: Cast, document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        where = path.format(app="tasks", record_id="rec_1")
        reply = cast.app.test_client(use_cookies=False).open(where, method=method, json={"fields": {}})
        assert (reply.status_code == 401) == bool(operation["security"]), path


def test_every_refusal_that_is_told_is_one_of_the_error_table(cast: Cast, document: dict[str, Any]) -> None:
    told = {status for each in declared_calls(cast.app) for status in refusals_of(each)}
    assert told <= set(error_types())
    assert told <= set(WORDS) <= set(error_types())
    for status in told:
        members = document["components"]["schemas"][f"Error{status}"]["properties"]["error"]["properties"]
        assert set(members["type"]["enum"]) == error_types()[status]


def test_parameters_in_paths_are_those_of_the_routes_with_their_patterns(cast: Cast, document: dict[str, Any]) -> None:
    for rule in cast.app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        if not rule.rule.startswith(BASE):
            continue
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            parameters = document["paths"][path][method.lower()]["parameters"]
            assert {each["name"] for each in parameters if each["in"] == "path"} == rule.arguments
            patterns = {each["name"]: each["schema"].get("pattern") for each in parameters}
            if "app" in patterns:
                assert patterns["app"] == f"^{cast.app.url_map.converters['app'].regex}$"


def test_numbers_are_read_up_to_the_limits_that_the_document_tells(
    cast: Cast, document: dict[str, Any], key: MadeKey
) -> None:
    seen = 0
    for method, path, operation in operations(document):
        for each in operation["parameters"]:
            schema = each["schema"]
            if schema.get("type") != "integer":
                continue
            low, high, seen = schema["minimum"], schema["maximum"], seen + 1
            for number, status in ((low - 1, 400), (low, 200), (high, 200), (high + 1, 400)):
                where = f"{path.removeprefix(BASE).format(app='tasks')}?{each['name']}={number}"
                assert cast.call(method, where, key).status_code == status, where
            plain = cast.call(method, path.removeprefix(BASE).format(app="tasks"), key).get_json()
            assert plain["meta"]["pagination"][each["name"]] == schema["default"]
    assert seen == 4


@pytest.mark.both
@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("*", True),
        ('"1"', True),
        ('W/"1"', True),
        ('"1" , "2"', True),
        ("1", False),
        ('"1",', False),
        ('*, "1"', False),
    ],
)
def test_if_match_is_read_by_the_pattern_that_the_document_tells(
    cast: Cast, document: dict[str, Any], key: MadeKey, tag: str, fits: bool
) -> None:
    parameters = document["paths"][f"{BASE}/apps/{{app}}/records/{{record_id}}"]["patch"]["parameters"]
    (pattern,) = (each["schema"]["pattern"] for each in parameters if each["name"] == "If-Match")
    assert bool(re.search(pattern, tag)) == fits
    made = data(cast.call("POST", "/apps/tasks/records", key, json={"fields": {"title": "A task"}}), 201)
    where = f"/apps/tasks/records/{made['id']}"
    reply = cast.call("PATCH", where, key, json={"fields": {}}, headers={"If-Match": tag})
    assert (reply.status_code != 400) == fits


def test_keys_are_described_by_their_format_and_no_example_is_one(cast: Cast, document: dict[str, Any]) -> None:
    written = document["components"]["securitySchemes"]["key"]["bearerFormat"]
    minted = KeyFormat().mint(Environment.LIVE).reveal()
    assert re.search(written, minted)
    assert not re.search(written, minted + "x")
    text = json.dumps(document)
    assert "sk_live_EXAMPLE" in text
    assert not [word for word in re.findall(r"sk_(?:live|test)_\w+", text) if KeyFormat().parse(word)]


def test_clients_made_from_it_send_any_record_and_bear_with_what_is_new(document: dict[str, Any]) -> None:
    """Makers of clients take an object that says nothing of its members for an empty one, a closed one as final."""
    assert [server["url"] for server in document["servers"]] == ["http://127.0.0.1:5000"]
    create = document["paths"][f"{BASE}/apps/{{app}}/records"]["post"]
    sent = create["requestBody"]["content"]["application/json"]["schema"]
    assert sent["properties"]["fields"]["additionalProperties"] is True
    assert sent["additionalProperties"] is False
    assert '"additionalProperties": false' not in json.dumps(document["components"])
    for path, item in document["paths"].items():
        for operation in item.values():
            assert '"additionalProperties": false' not in json.dumps(operation["responses"]), path


def test_the_prefix_of_an_instance_is_in_its_document(launch: Callable[..., Flask]) -> None:
    reply = Cast(launch(PORTAL_KEY_PREFIX="acme")).call("GET", "/openapi.json")
    written = reply.get_json()["components"]["securitySchemes"]["key"]["bearerFormat"]
    assert written.startswith("^acme_(live|test)_")
    assert "acme_live_EXAMPLE" in reply.text
    assert "sk_" not in reply.text


# --- The fuzzer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def wallet(live_server: Server) -> Iterator[Wallet]:
    settings = Settings.from_environ({"PORTAL_DATABASE_URL": live_server.database_url}, Path(live_server.instance))
    database = Database(live_server.database_url)
    office = Office(database, settings.keyring)
    yield prepare(Stage(live_server.database_url, live_server.instance, database, office))
    office.close()
    database.close()


@pytest.mark.both
def test_the_served_portal_answers_what_the_document_says(live_server: Server, wallet: Wallet) -> None:
    report = run(live_server.url, wallet, 400, seed=7)
    assert report.faults == []
    assert report.asked == 400
    seen = {status for _, status in report.statuses}
    assert seen >= {200, 201, 204, 400, 401, 403, 404, 405, 415, 422}


def test_an_answer_that_the_document_does_not_tell_is_noticed(
    cast: Cast, document: dict[str, Any], key: MadeKey
) -> None:
    found = Document(document)
    asked = Asked("GET", "/api/v1/me", "/api/v1/me", {}, None, "good")
    reply = cast.call("GET", "/me", key)
    headers = {name.lower(): value for name, value in reply.headers}
    body = reply.get_json()

    def fault(status: int = 200, sent: Any = body, **changed: str | None) -> str | None:
        others = headers | {name.replace("_", "-"): value for name, value in changed.items()}
        return found.fault(
            asked, status, {name: value for name, value in others.items() if value}, json.dumps(sent).encode()
        )

    assert fault() is None
    assert fault(500) == "status 500"
    assert fault(418) == "status 418 is not told"
    assert fault(x_request_id=None) == "header X-Request-Id lacks"
    assert "X-Environment" in (fault(x_environment="sandbox") or "")
    assert "secret" in (fault(sent=body | {"data": body["data"] | {"secret": "x"}}) or "")
    assert fault(content_type="text/html") == "content type text/html"
    assert error(cast.call("GET", "/me"), 401)["code"] == "missing_key"
