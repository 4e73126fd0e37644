"""The REST API for those whose key is good: every route, header and refusal of contract section 3."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from portal.rules.schemas import Schema
from portal.services import workspaces
from portal.services.actor import operator
from portal.store.database import Database
from tests.cast import Cast, MadeKey
from tests.web.looking import data, error, kept

LEADS = "/apps/leads/records"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
RECORD_ID = re.compile(r"rec_[0-9A-Za-z]+")
BOTH = ("leads:read", "leads:write")


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    """A live key of max that reads and writes leads."""
    return cast.max.generate(BOTH, name="CRM sync")


@pytest.fixture(scope="module")
def open_key(cast: Cast, database: Database) -> MadeKey:
    """A live key of lea for an app `notes`, whose records may be any object."""
    add_app(database, "acme", "operations", "notes")
    return cast.lea.generate(["notes:read", "notes:write"])


def add_app(database: Database, workspace: str, solution: str, slug: str, schema: dict[str, Any] | None = None) -> None:
    """Give a solution an app whose records may be any object, or fit a schema."""
    with database.transaction() as session:
        found = workspaces.get_solution(session, workspaces.get(session, workspace), solution)
        workspaces.add_app(
            session, operator(), found, slug, slug.capitalize(), Schema.read(schema or {"type": "object"})
        )


def send(cast: Cast, method: str, path: str, key: MadeKey, fields: Any, **options: Any) -> TestResponse:
    """Send fields in the order they have; Flask's own test client would sort them."""
    body = json.dumps({"fields": fields})
    return cast.call(method, path, key, data=body, content_type="application/json", **options)


def make(cast: Cast, key: MadeKey, fields: dict[str, Any], app: str = "leads") -> dict[str, Any]:
    made: dict[str, Any] = data(send(cast, "POST", f"/apps/{app}/records", key, fields), 201)
    return made


# --- Who am I, what can I reach -------------------------------------------------------------------------------------


def test_me_tells_workspace_member_and_key_and_no_more(cast: Cast, key: MadeKey) -> None:
    me = data(cast.call("GET", "/me", key))
    assert me["workspace"] == {"id": me["workspace"]["id"], "slug": "acme", "name": "Acme"}
    assert me["member"] == {"id": me["member"]["id"], "name": "Max Brandt", "type": "human"}
    assert re.fullmatch(r"ws_[0-9A-Za-z]+", me["workspace"]["id"])
    assert re.fullmatch(r"mem_[0-9A-Za-z]+", me["member"]["id"])
    expires_at = datetime.fromisoformat(me["key"].pop("expiresAt"))
    assert me["key"] == {
        "id": key.id,
        "name": "CRM sync",
        "hint": f"sk_live_…{key.text[47:51]}",
        "environment": "live",
        "scopes": list(BOTH),
        "effectiveScopes": list(BOTH),
    }
    assert timedelta(days=89) < expires_at - datetime.now(UTC) < timedelta(days=90)


def test_me_says_the_same_before_flask_and_in_its_view(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door answers what has no query; `?`, a HEAD and all else go on to the view."""
    by_view = list[str]()
    monkeypatch.setitem(
        cast.app.view_functions, "api.me", by_view_of(cast.app.view_functions["api.me"], by_view.append)
    )
    own = dict.fromkeys(("X-Request-Id", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Content-Length"), "")
    ends = cast.rio.generate(name="It ends", expires="30d")
    overreaching = cast.max.generate(BOTH, environment="test", expires="never", name="Übergroß “x” </script>")
    for known in (ends, overreaching):
        door = cast.call("GET", "/me", known)
        assert not by_view
        view = cast.call("GET", "/me?by=view", known)
        assert by_view.pop() == "view"
        assert {**door.headers, **own} == {**view.headers, **own}
        (said, id_), (said_too, other_id) = (told_and_id(reply) for reply in (door, view))
        assert said == said_too
        assert (id_, other_id) == (door.headers["X-Request-Id"], view.headers["X-Request-Id"])
        assert door.headers["Content-Length"] == str(len(door.data))
        head = cast.call("HEAD", "/me", known)
        assert (by_view.pop(), head.status_code, head.data) == ("view", 200, b"")
    for headers in ({}, {"Authorization": "Bearer x"}, {**ends.bearer, "Account-Id": "ws_other"}):
        door, view = (cast.call("GET", path, headers=headers) for path in ("/me", "/me?by=view"))
        assert told_and_id(door)[0] == told_and_id(view)[0]
        assert {**door.headers, **own} == {**view.headers, **own}


def by_view_of(view: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    """Tell when a view is asked."""

    @wraps(view)
    def told(**values: Any) -> Any:
        tell("view")
        return view(**values)

    return told


def told_and_id(reply: TestResponse) -> tuple[str, str]:
    """Give a body's text without its request id, and the id."""
    request_id = str(reply.get_json()["meta"]["requestId"])
    return reply.text.replace(request_id, ""), request_id


def test_a_key_of_an_api_member_says_so(cast: Cast) -> None:
    owner = re.search(r'value="(mem_\w+)"(?:(?!</label>).)*Nightly sync', cast.lea.get("keys/new").text, re.DOTALL)
    assert owner
    key = cast.lea.generate(name="For the sync", owner=owner[1])
    assert data(cast.call("GET", "/me", key))["member"] == {"id": owner[1], "name": "Nightly sync", "type": "api"}


def test_solutions_lists_only_what_the_key_reaches(cast: Cast, key: MadeKey) -> None:
    (sales,) = data(cast.call("GET", "/solutions", key))
    assert (sales["slug"], sales["name"]) == ("sales", "Sales")
    (leads,) = sales["apps"]
    assert (leads["slug"], leads["name"], leads["scopes"]) == ("leads", "Leads", list(BOTH))
    wide = cast.max.generate(["accounts:read", "leads:write", "tasks:read"], name="Wide")
    found = data(cast.call("GET", "/solutions", wide))
    reached = {app["slug"]: app["scopes"] for solution in found for app in solution["apps"]}
    assert reached == {"accounts": ["accounts:read"], "leads": ["leads:write"], "tasks": ["tasks:read"]}
    second = cast.call("GET", "/solutions?limit=1&offset=1", wide)
    assert data(second) == found[1:]
    assert second.get_json()["meta"]["pagination"] == {"total": 2, "limit": 1, "offset": 1}


@pytest.mark.parametrize("environment", ["live", "test"])
def test_answers_say_which_world_they_are_from_and_when_the_key_ends(cast: Cast, environment: str) -> None:
    ending = cast.rio.generate(name=f"Ending {environment}", environment=environment, expires="30d")
    for path, status in (
        ("/me", 200),
        ("/apps/tasks/records", 200),
        ("/apps/leads/records", 403),
        ("/me?x=1&x=2", 400),
    ):
        reply = cast.call("GET", path, ending)
        assert reply.status_code == status
        assert reply.headers["X-Environment"] == environment
        expires_at = datetime.fromisoformat(reply.headers["X-Key-Expires-At"])
        assert parsedate_to_datetime(reply.headers["Sunset"]) == expires_at.replace(microsecond=0)
        assert reply.headers["Sunset"].endswith(" GMT")  # as RFC 9110 has it, section 5.6.7
        if reply.status_code == 200 and path == "/me":
            assert data(reply)["key"]["expiresAt"] == reply.headers["X-Key-Expires-At"]
        assert timedelta(days=29) < expires_at - datetime.now(UTC) <= timedelta(days=30)
    endless = cast.call(
        "GET", "/me", cast.rio.generate(name=f"Endless {environment}", environment=environment, expires="never")
    )
    assert data(endless)["key"]["expiresAt"] is None
    assert not {"X-Key-Expires-At", "Sunset"} & set(endless.headers.keys())


# --- Lists ----------------------------------------------------------------------------------------------------------


def test_a_list_gives_the_newest_first_a_page_at_a_time(cast: Cast, key: MadeKey) -> None:
    first = cast.call("GET", LEADS, key)
    total = first.get_json()["meta"]["pagination"]["total"]
    assert first.get_json()["meta"]["pagination"] == {"total": total, "limit": 20, "offset": 0}
    assert len(data(first)) == 20 < total
    made = make(cast, key, {"name": "Newest"})
    everybody = data(cast.call("GET", f"{LEADS}?limit=100", key))
    assert everybody[0] == made
    assert len(everybody) == total + 1
    assert data(cast.call("GET", f"{LEADS}?limit=7&offset=7", key)) == everybody[7:14]
    assert [each["createdAt"] for each in everybody] == sorted((each["createdAt"] for each in everybody), reverse=True)


@pytest.mark.parametrize(
    "query", ["limit=1", "limit=100", "offset=2147483647", "offset=0", "limit=007", "page=2&Limit=5"]
)
def test_pages_may_be_as_large_and_as_far_as_the_contract_says(cast: Cast, key: MadeKey, query: str) -> None:
    reply = cast.call("GET", f"{LEADS}?{query}", key)
    assert len(data(reply)) == (1 if query == "limit=1" else 0 if "2147483647" in query else len(data(reply)))


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=-1", "limit=", "limit=1.0", "limit=1e1", "limit=ten", "limit=+5", "limit=5 "),
        *("limit=NaN", "limit=true", "limit=0x10", "limit=%D9%A1", "limit=%00", "limit=1%00", f"limit={10**30}"),
        *("offset=-1", "offset=2147483648", f"offset={2**63}", "offset=1e309", "offset=null"),
        *("limit=5&limit=5", "limit=5&offset=1&offset=2", "x=1&x=2", "limit=5;offset=1"),
        *("limit=%FF", "%FF=1", "limit=%ED%A0%80", "&".join(f"a{n}=1" for n in range(2000))),
    ],
)
def test_a_parameter_that_is_odd_is_refused(cast: Cast, key: MadeKey, query: str) -> None:
    refused = error(cast.call("GET", f"{LEADS}?{query}", key), 400)
    assert refused["type"] == "validation_error"


# --- Records --------------------------------------------------------------------------------------------------------


def test_a_record_is_made_read_changed_and_deleted(cast: Cast, key: MadeKey) -> None:
    made = cast.call("POST", LEADS, key, json={"fields": {"company": "Fabrikam", "name": "Ines"}})
    record = data(made, 201)
    assert RECORD_ID.fullmatch(record["id"])
    assert list(record) == ["id", "fields", "createdAt", "updatedAt"]
    assert MOMENT.fullmatch(record["createdAt"])
    assert record["createdAt"] == record["updatedAt"]
    assert made.headers["Location"].endswith(f"/api/v1{LEADS}/{record['id']}")

    path = f"{LEADS}/{record['id']}"
    read = cast.call("GET", path, key)
    assert data(read) == record
    assert read.headers["ETag"] == made.headers["ETag"]

    changed = cast.call("PATCH", path, key, json={"fields": {"company": "Contoso", "stage": "new"}})
    assert data(changed)["fields"] == {"name": "Ines", "company": "Contoso", "stage": "new"}
    assert data(changed)["createdAt"] == record["createdAt"] <= data(changed)["updatedAt"]
    assert changed.headers["ETag"] != made.headers["ETag"]
    assert data(cast.call("GET", path, key)) == data(changed)

    gone = cast.call("DELETE", path, key)
    assert (gone.status_code, gone.data, "Content-Type" in gone.headers) == (204, b"", False)
    for method in ("GET", "PATCH", "DELETE"):
        assert error(cast.call(method, path, key, json={"fields": {}}), 404)["code"] == "not_found"


def test_a_key_that_only_writes_is_told_of_a_record_what_it_sent(cast: Cast, key: MadeKey) -> None:
    made = make(cast, key, {"name": "Vogel", "email": "vogel@example.org"})
    writer = cast.max.generate(["leads:write"], name="Drop box")
    path = f"{LEADS}/{made['id']}"
    assert data(send(cast, "PATCH", path, writer, {}))["fields"] == {}
    changed = send(cast, "PATCH", path, writer, {"name": "Adler"})
    assert data(changed)["fields"] == {"name": "Adler"}
    read = cast.call("GET", path, key)
    assert data(read)["fields"] == {"name": "Adler", "email": "vogel@example.org"}
    assert changed.headers["ETag"] == read.headers["ETag"]
    assert data(send(cast, "PATCH", path, key, {}))["fields"] == data(read)["fields"]
    assert cast.call("DELETE", path, key).status_code == 204


def test_a_key_that_only_writes_learns_nothing_from_what_does_not_fit(cast: Cast, database: Database) -> None:
    schema = {
        "type": "object",
        "properties": {"iban": {"type": "string"}, "n": {"type": "integer"}},
        "maxProperties": 2,
    }
    add_app(database, "acme", "sales", "vault", schema)
    reader, writer = (cast.ana.generate([f"vault:{what}"], name=what, environment="test") for what in ("read", "write"))
    made = data(send(cast, "POST", "/apps/vault/records", writer, {"iban": "DE99 SECRET", "n": 1}), 201)
    path = f"/apps/vault/records/{made['id']}"
    refused = send(cast, "PATCH", path, writer, {"x": 1})
    assert "SECRET" not in refused.text
    assert error(refused, 422)["details"] == [
        {"path": "$", "message": "With what is stored already, the record does not fit the app’s schema."}
    ]
    own = send(cast, "PATCH", path, writer, {"n": "one", "x": 1})
    assert error(own, 422)["details"] == [{"path": "$.n", "message": "'one' is not of type 'integer'"}]
    assert data(cast.call("GET", path, reader))["fields"] == {"iban": "DE99 SECRET", "n": 1}


def test_patch_stores_null_as_null_and_puts_new_fields_last(cast: Cast, open_key: MadeKey) -> None:
    record = make(cast, open_key, {"z": 1, "a": {"deep": 1}, "m": [1]}, "notes")
    path = f"/apps/notes/records/{record['id']}"
    change = {"b": 2, "a": None, "z": {"new": None}}
    changed = data(send(cast, "PATCH", path, open_key, change))
    assert list(changed["fields"].items()) == [("z", {"new": None}), ("a", None), ("m", [1]), ("b", 2)]
    assert data(cast.call("GET", path, open_key)) == changed


WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
FLOAT = st.floats(-(2.0**53) + 1, 2.0**53 - 1, allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | WHOLE | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.both
def test_what_is_stored_is_what_was_sent_in_value_and_order(cast: Cast, open_key: MadeKey) -> None:

    @given(fields=st.dictionaries(TEXT, VALUE, max_size=5))
    @settings(max_examples=25, deadline=None)
    def round_trip(fields: dict[str, Any]) -> None:
        record = make(cast, open_key, fields, "notes")
        read = data(cast.call("GET", f"/apps/notes/records/{record['id']}", open_key))
        assert json.dumps(read["fields"]) == json.dumps(record["fields"]) == json.dumps(fields)

    round_trip()


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        ('"1"', 200),
        ("*", 200),
        ('"0", "1"', 200),
        ('"2"', 412),
        ('W/"1"', 412),  # If-Match compares strongly (RFC 9110, section 13.1.1)
        ('"0", W/"1"', 412),
        ('""', 412),
        ('"*"', 412),
        ("", 400),
        ("1", 400),
        ('w/"1"', 400),
        ('abc"1"', 400),
        ("bogus*", 400),
        ('"1', 400),
        ('*, "1"', 400),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_if_match_lets_only_the_version_that_was_read_be_changed(
    cast: Cast, key: MadeKey, database: Database, method: str, if_match: str, status: int
) -> None:
    record = make(cast, key, {"name": "Ines"})
    before = kept(database)
    headers = {"If-Match": if_match}
    reply = cast.call(method, f"{LEADS}/{record['id']}", key, headers=headers, json={"fields": {"stage": "new"}})
    if status == 200:
        assert reply.status_code == (200 if method == "PATCH" else 204)
    else:
        refused = error(reply, status)
        assert refused["type"] == {400: "validation_error", 412: "conflict_error"}[status]
        assert kept(database) == before


def test_the_tag_of_a_read_is_good_until_somebody_changes_the_record(cast: Cast, key: MadeKey) -> None:
    path = f"{LEADS}/{make(cast, key, {'name': 'Ines'})['id']}"
    tag = cast.call("GET", path, key).headers["ETag"]
    first = cast.call("PATCH", path, key, json={"fields": {"stage": "new"}}, headers={"If-Match": tag})
    assert data(first)["fields"]["stage"] == "new"
    late = cast.call("PATCH", path, key, json={"fields": {"stage": "lost"}}, headers={"If-Match": tag})
    assert error(late, 412)["type"] == "conflict_error"
    assert data(cast.call("GET", path, key))["fields"]["stage"] == "new"
    assert cast.call("DELETE", path, key, headers={"If-Match": first.headers["ETag"]}).status_code == 204


# --- Worlds apart ---------------------------------------------------------------------------------------------------


def test_live_and_sandbox_records_never_meet(cast: Cast, key: MadeKey, database: Database) -> None:
    sandbox = cast.max.generate(BOTH, name="Practice", environment="test")
    live_record, test_record = make(cast, key, {"name": "Real"}), make(cast, sandbox, {"name": "Practice"})
    before = kept(database)
    for other, record in ((sandbox, live_record), (key, test_record)):
        path = f"{LEADS}/{record['id']}"
        assert record not in data(cast.call("GET", f"{LEADS}?limit=100", other))
        for method in ("GET", "PATCH", "DELETE"):
            assert error(cast.call(method, path, other, json={"fields": {"name": "Mine"}}), 404)
    assert kept(database) == before


def test_an_app_of_the_same_name_in_another_workspace_is_another_app(
    cast: Cast, key: MadeKey, database: Database
) -> None:
    add_app(database, "globex", "support", "leads")
    zoe = cast.zoe.generate(BOTH)
    hers = make(cast, zoe, {"name": "Of globex"})
    assert data(cast.call("GET", LEADS, zoe)) == [hers]
    mine = data(cast.call("GET", f"{LEADS}?limit=100", key))
    assert hers not in mine
    for caller, record in ((key, hers), (zoe, mine[0])):
        for method in ("GET", "PATCH", "DELETE"):
            assert error(cast.call(method, f"{LEADS}/{record['id']}", caller, json={"fields": {}}), 404)
    assert data(cast.call("GET", LEADS, zoe)) == [hers]


def test_no_header_but_account_id_speaks_of_workspaces_and_that_one_only_asserts(cast: Cast, key: MadeKey) -> None:
    acme = data(cast.call("GET", "/me", key))["workspace"]["id"]
    globex = data(cast.call("GET", "/me", cast.zoe.generate(["tickets:read"], name="Tickets")))["workspace"]["id"]
    assert data(cast.call("GET", "/me", key, headers={"Account-Id": acme}))["workspace"]["slug"] == "acme"
    assert error(cast.call("GET", "/me", key, headers={"Account-Id": globex}), 401)["code"] == "invalid_key"
    others = dict.fromkeys(("X-Workspace-Id", "X-Organization-Id", "X-Account-Id", "X-Tenant"), globex)
    assert data(cast.call("GET", "/me", key, headers=others))["workspace"]["slug"] == "acme"


@pytest.mark.parametrize(
    "record_id",
    [
        *("rec_1", "1", "0", "-1", "rec_", "null", "mem_1", "REC_1", "..", "*", "%20", "%2e%2e"),
        *("rec_%00", "rec_a%00b", "%FF", "%ED%A0%80", "%F0%9F%98%80", "rec_" + "a" * 5000, "rec_'or'1'='1", "rec_1;x"),
    ],
)
def test_a_record_that_is_not_there_is_not_found_however_odd_its_id(
    cast: Cast, key: MadeKey, database: Database, record_id: str
) -> None:
    before = kept(database)
    for method in ("GET", "PATCH", "DELETE"):
        reply = cast.call(method, f"{LEADS}/{record_id}", key, json={"fields": {"name": "x"}})
        assert error(reply, 404)["type"] == "not_found_error"
    assert kept(database) == before


# --- Bodies ---------------------------------------------------------------------------------------------------------

FINE = '{"fields": {"name": "x"}}'


def deep(levels: int) -> str:
    return '{"fields": {"name": ' + "[" * levels + "]" * levels + "}}"


def named(value: str) -> str:
    return f'{{"fields": {{"name": {value}}}}}'


BROKEN = ("", " ", "{", "nonsense", '{"fields": {"name": "x"}', "{'fields': {}}", "{fields: {}}", "\ufeff" + FINE)
NO_OBJECT = ("[]", "null", "1", '"x"', "true", f"[{FINE}]", *(FINE + rest for rest in (FINE, ",", "x", "\0", "]")))
AMBIGUOUS = (
    '{"fields": {"name": "x"}, "fields": {"name": "y"}}',
    '{"fields": {"name": "x", "name": "y"}}',
    r'{"fields": {"name": "x", "\u006eame": "y"}}',
)
UNKNOWN = tuple(f'{{"fields": {{"name": "x"}}, "{more}": "x"}}' for more in ("id", "environment", "Fields", ""))
NO_NUMBER = tuple(map(named, ("NaN", "Infinity", "-Infinity", "1e309", "-1e309", "9" * 5000, "01", "0x1", "+1", "1.")))
TOO_GREAT = tuple(map(named, ("9007199254740992", "-9007199254740992", "1e16", str(2**63))))
NO_TEXT = (
    *map(named, (r'"\u0000"', r'"a\u0000b"', r'"\ud800"', r'"\udc00\ud800"', '"\x01"', '"\n"')),
    *(f'{{"fields": {{"name": "x", "{name}": 1}}}}' for name in (r"\ud800", r"a\u0000")),
    r'{"fields": {"name": "x"}, "\ud800": 1}',
)
NO_FIELDS = ("{}", *(f'{{"fields": {value}}}' for value in ("null", "[]", '"x"', "1", "true")))
TOO_MUCH = (
    *(deep(20), deep(10_000), '{"fields": ' * 10_000 + "1" + "}" * 10_000),
    *(named("[" + "1," * 100 + "1]"), named('"' + "x" * 1_000_000 + '"')),
)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((body, 400) for body in BROKEN + NO_OBJECT + AMBIGUOUS + UNKNOWN + NO_NUMBER + TOO_GREAT + NO_TEXT),
        *((body, 422) for body in NO_FIELDS + TOO_MUCH),
        (named(r'"\u202e"') + " " * 2**20, 413),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_body_that_is_not_one_good_object_is_refused(
    cast: Cast, key: MadeKey, database: Database, method: str, body: str, status: int
) -> None:
    listed = data(cast.call("GET", LEADS, key))
    before = kept(database)
    path = LEADS if method == "POST" else f"{LEADS}/{listed[0]['id']}"
    reply = cast.call(method, path, key, data=body.encode(), content_type="application/json")
    assert error(reply, status)["type"] == "validation_error"
    assert kept(database) == before


@pytest.mark.parametrize("body", [b'{"fields": {"name": "\xff"}}', b"\xff\xfe{\0}\0", FINE.encode("utf-16")])
def test_a_body_that_is_not_utf_8_is_refused(cast: Cast, key: MadeKey, body: bytes) -> None:
    assert error(cast.call("POST", LEADS, key, data=body, content_type="application/json"), 400)


def test_any_bytes_for_a_body_get_a_clear_answer(cast: Cast, key: MadeKey, database: Database) -> None:
    before = kept(database)

    @given(body=st.binary(max_size=200) | st.text(alphabet='{}[]":,fields1.e-\\ ', max_size=40).map(str.encode))
    @settings(max_examples=150, deadline=None)
    def refuse(body: bytes) -> None:
        reply = cast.call("POST", LEADS, key, data=body, content_type="application/json")
        assert error(reply, reply.status_code)["type"] == "validation_error"
        assert reply.status_code in {400, 422}

    refuse()
    assert kept(database) == before


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "text/plain", "text/json", "json", "application", "application/jsonp"),
        *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("application/json; charset=latin-1", "application/json; charset=utf-16"),
    ],
)
def test_a_body_of_another_type_is_refused(
    cast: Cast, key: MadeKey, database: Database, content_type: str | None
) -> None:
    before = kept(database)
    reply = cast.call("POST", LEADS, key, data=FINE, content_type=content_type)
    assert error(reply, 415)["type"] == "validation_error"
    assert kept(database) == before


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON", "application/json; charset=UTF-8"])
def test_json_is_accepted_however_its_type_is_written(cast: Cast, key: MadeKey, content_type: str) -> None:
    assert data(cast.call("POST", LEADS, key, data=FINE, content_type=content_type), 201)["fields"] == {"name": "x"}


def test_a_record_that_does_not_fit_is_told_what_is_wrong_and_where(cast: Cast, key: MadeKey) -> None:
    fields = {"stage": "won", "email": "nobody", "extra": 1}
    refused = error(cast.call("POST", LEADS, key, json={"fields": fields}), 422)
    assert refused["type"] == "validation_error"
    details = refused["details"]
    assert all(set(each) == {"path", "message"} for each in details)
    told = {word for each in details for word in ("stage", "email", "extra", "name") if word in json.dumps(each)}
    assert told == {"stage", "email", "extra", "name"}
    record = make(cast, key, {"name": "Ines"})
    patched = cast.call("PATCH", f"{LEADS}/{record['id']}", key, json={"fields": {"name": None}})
    assert "name" in error(patched, 422)["details"][0]["path"]
    assert data(cast.call("GET", f"{LEADS}/{record['id']}", key)) == record


def test_a_body_of_a_mebibyte_is_taken_and_one_byte_more_is_not(cast: Cast, open_key: MadeKey) -> None:
    filled = named('"' + "x" * (2**20 - len(named('""'))) + '"')
    assert len(filled) == 2**20
    for body, status in ((filled, 201), (filled + " ", 413)):
        reply = cast.call("POST", "/apps/notes/records", open_key, data=body, content_type="application/json")
        assert reply.status_code == status
    assert error(reply, 413)["type"] == "validation_error"


# --- What is not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/me/", "/ME", "/keys", "/members", "/me/keys", "/apps", "/apps/leads", "/sessions", "/audit", "/%00"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_not_found_in_json(cast: Cast, key: MadeKey, path: str, method: str) -> None:
    for caller in (key, None):
        assert error(cast.call(method, path, caller), 404) == {
            "type": "not_found_error",
            "code": "not_found",
            "message": error(cast.call("GET", "/nothing", key), 404)["message"],
        }


def test_an_unknown_path_leads_to_the_reference(cast: Cast, key: MadeKey) -> None:
    link = error(cast.call("GET", "/me/", key), 404)["message"].split()[-1]
    assert cast.stranger().get(urlsplit(link).path).status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/solutions", "GET, HEAD"), (LEADS, "GET, HEAD, POST"), (f"{LEADS}/rec_1", "DELETE, GET, HEAD, PATCH")],
)
def test_a_method_that_a_path_does_not_take_is_told_which_it_takes(
    cast: Cast, key: MadeKey, path: str, allowed: str
) -> None:
    for method in ("PUT", "OPTIONS", "TRACE"):
        reply = cast.call(method, path, key)
        assert error(reply, 405)["type"] == "validation_error"
        assert ", ".join(sorted(reply.headers["Allow"].split(", "))) == allowed


def test_head_tells_the_headers_of_get_without_its_body(cast: Cast, key: MadeKey) -> None:
    read, head = (cast.call(method, LEADS, key) for method in ("GET", "HEAD"))
    assert (head.status_code, head.data) == (200, b"")
    own = dict.fromkeys(("X-Request-Id", "X-RateLimit-Remaining", "X-RateLimit-Reset"), "")
    assert {**head.headers, **own} == {**read.headers, **own}
