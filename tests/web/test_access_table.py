"""Who gets what: one table, route × visitor → status. A route that is missing from it fails."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from secrets import token_hex
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
from flask import Flask
from flask.testing import FlaskClient

from portal.store.database import Database
from portal.store.models import Member
from tests.cast import HTMX, Cast, MadeKey, Person
from tests.web.looking import kept, token_on

# seatless: signed in, but no longer a member of any workspace. Keys are lea's, in the Authorization header and nowhere
# else, with tasks:read and tasks:write; the paths name acme, its app tasks, a key of rio's and a live record.
VISITORS = ("nobody", "seatless", "rio", "lea", "ana", "zoe", "live-key", "test-key")
PEOPLE = ("rio", "lea", "ana")  # of acme
# Who is let in is decided by our code, whatever the database; these three get every page and every answer of the API
# between them, so that each statement behind one is asked of the other database too.
ON_BOTH_DATABASES = ("rio", "ana", "live-key")
TABLE = """
GET    /healthz                                           200 200 200 200 200 200 200 200
GET    /readyz                                            200 200 200 200 200 200 200 200
GET    /metrics                                           200 200 200 200 200 200 200 200
GET    /static/<path:filename>                            200 200 200 200 200 200 200 200
GET    /                                                  303 303 303 303 303 303 303 303
GET    /login                                             200 303 303 303 303 303 200 200
POST   /login                                             422 303 303 303 303 303 400 400
POST   /logout                                            303 303 303 303 303 303 400 400
GET    /reauth                                            303 200 200 200 200 200 303 303
POST   /reauth                                            303 403 403 403 403 403 400 400
GET    /w                                                 303 200 303 303 303 303 303 303
GET    /account                                           303 200 200 200 200 200 303 303
GET    /account/name                                      303 200 200 200 200 200 303 303
POST   /account/name                                      303 422 422 422 422 422 400 400
GET    /account/sessions                                  303 200 200 200 200 200 303 303
POST   /account/sessions                                  303 303 303 303 303 303 400 400
POST   /account/stay                                      303 303 303 303 303 303 400 400
GET    /account/password                                  303 200 200 200 200 200 303 303
POST   /account/password                                  303 422 422 422 422 422 400 400
GET    /reset                                             200 200 200 200 200 200 200 200
POST   /reset                                             422 422 422 422 422 422 400 400
GET    /reset/<token:token>                               404 404 404 404 404 404 404 404
POST   /reset/<token:token>                               404 404 404 404 404 404 400 400
GET    /preferences                                       303 200 200 200 200 200 303 303
POST   /preferences                                       303 422 422 422 422 422 400 400
GET    /help/keyboard                                     303 200 200 200 200 200 303 303
GET    /invite/<token:token>                              404 404 404 404 404 404 404 404
POST   /invite/<token:token>                              404 404 404 404 404 404 400 400
GET    /w/<slug:ws>                                       303 404 200 200 200 404 303 303
GET    /w/<slug:ws>/apps/<slug:app>/sandbox               303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/apps/<slug:app>/sandbox               303 404 403 303 303 404 400 400
GET    /w/<slug:ws>/api                                   303 404 302 302 302 404 303 303
GET    /w/<slug:ws>/api/keys                              303 404 200 200 200 404 303 303
POST   /w/<slug:ws>/api/keys                              303 404 422 422 422 404 400 400
GET    /w/<slug:ws>/api/keys/new                          303 404 200 200 200 404 303 303
POST   /w/<slug:ws>/api/keys/new                          303 404 422 422 422 404 400 400
POST   /w/<slug:ws>/api/keys/new/scopes                   303 404 200 200 200 404 400 400
POST   /w/<slug:ws>/api/keys/new/review                   303 404 422 422 422 404 400 400
GET    …/<public_id:key_id>/deactivate                    303 404 200 404 200 404 303 303
POST   …/<public_id:key_id>/deactivate                    303 404 303 404 303 404 400 400
GET    …/<public_id:key_id>/move                          303 404 303 404 303 404 303 303
GET    …/<public_id:key_id>/reactivate                    303 404 200 404 403 404 303 303
POST   …/<public_id:key_id>/reactivate                    303 404 303 404 403 404 400 400
GET    …/<public_id:key_id>/delete                        303 404 200 404 200 404 303 303
POST   …/<public_id:key_id>/delete                        303 404 303 404 303 404 400 400
GET    …/<public_id:key_id>                               303 404 200 404 200 404 303 303
GET    …/<public_id:key_id>/requests                      303 404 200 404 200 404 303 303
GET    …/<public_id:key_id>/history                       303 404 200 404 200 404 303 303
GET    …/<public_id:key_id>/impact                        303 404 200 404 200 404 303 303
GET    …/<public_id:key_id>/first-request                 303 404 200 404 200 404 303 303
GET    …/<public_id:key_id>/edit                          303 404 200 404 403 404 303 303
POST   …/<public_id:key_id>/edit                          303 404 422 404 403 404 400 400
GET    …/<public_id:key_id>/rate                          303 404 403 404 200 404 303 303
POST   …/<public_id:key_id>/rate                          303 404 403 404 303 404 400 400
GET    …/<public_id:key_id>/rotate                        303 404 200 404 403 404 303 303
POST   …/<public_id:key_id>/rotate                        303 404 422 404 403 404 400 400
GET    …/<public_id:key_id>/replace                       303 404 200 404 403 404 303 303
POST   …/<public_id:key_id>/replace                       303 404 200 404 403 404 400 400
GET    …/<public_id:key_id>/extend                        303 404 200 404 403 404 303 303
POST   …/<public_id:key_id>/extend                        303 404 303 404 403 404 400 400
GET    …/<public_id:key_id>/retire                        303 404 200 404 200 404 303 303
POST   …/<public_id:key_id>/retire                        303 404 303 404 303 404 400 400
POST   …/search                                           303 404 303 303 303 404 400 400
GET    …/identify                                         303 404 200 200 200 404 303 303
POST   …/identify                                         303 404 200 200 200 404 400 400
GET    …/<public_id:key_id>/receipt                       303 404 200 404 200 404 303 303
GET    /w/<slug:ws>/audit                                 303 404 200 200 200 404 303 303
GET    /w/<slug:ws>/audit.csv                             303 404 403 403 200 404 303 303
GET    /w/<slug:ws>/audit.jsonl                           303 404 403 403 200 404 303 303
GET    /w/<slug:ws>/audit/verify                          303 404 403 403 200 404 303 303
GET    /w/<slug:ws>/audit/<public_id:eid>                 303 404 200 404 200 404 303 303
GET    /w/<slug:ws>/explain                               303 404 200 200 200 404 303 303
POST   /w/<slug:ws>/explain                               303 404 422 422 422 404 400 400
GET    /w/<slug:ws>/review                                303 404 200 200 200 404 303 303
GET    /w/<slug:ws>/review/<public_id:key_id>/reviewed    303 404 404 404 404 404 303 303
POST   /w/<slug:ws>/review/<public_id:key_id>/reviewed    303 404 404 404 404 404 400 400
GET    /w/<slug:ws>/review/deactivate                     303 404 200 200 200 404 303 303
POST   /w/<slug:ws>/review/deactivate                     303 404 303 303 303 404 400 400
GET    /w/<slug:ws>/workspace                             303 404 403 403 200 404 303 303
GET    /w/<slug:ws>/verifiers                             303 404 302 302 302 404 303 303
GET    /w/<slug:ws>/workspace/verifiers                   303 404 403 403 200 404 303 303
GET    /w/<slug:ws>/workspace/verifiers/new               303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/workspace/verifiers/new               303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/workspace/verifiers/<public_id:vid>/revoke 303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/workspace/verifiers/<public_id:vid>/revoke 303 404 403 403 303 404 400 400
GET    /w/<slug:ws>/policy                                303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/policy                                303 404 403 403 303 404 400 400
POST   /w/<slug:ws>/policy/preview                        303 404 403 403 200 404 400 400
GET    /w/<slug:ws>/solutions/new                         303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/solutions/new                         303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/solutions/<slug:solution>/edit        303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/solutions/<slug:solution>/edit        303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/solutions/<slug:solution>/apps/new    303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/solutions/<slug:solution>/apps/new    303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/apps/<slug:app>/edit                  303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/apps/<slug:app>/edit                  303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/api-members                           303 404 403 200 200 404 303 303
GET    /w/<slug:ws>/api-members/new                       303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/api-members/new                       303 404 403 422 422 404 400 400
POST   /w/<slug:ws>/api-members/new/for-key               303 404 403 200 200 404 400 400
POST   /w/<slug:ws>/api-members/new/review                303 404 403 200 200 404 400 400
GET    /w/<slug:ws>/api-members/<public_id:mid>           303 404 403 200 200 404 303 303
GET    /w/<slug:ws>/api-members/<public_id:mid>/access    303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/api-members/<public_id:mid>/access    303 404 403 303 303 404 400 400
POST   /w/<slug:ws>/api-members/<public_id:mid>/access/review 303 404 403 200 200 404 400 400
GET    /w/<slug:ws>/api-members/<public_id:mid>/edit      303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/api-members/<public_id:mid>/edit      303 404 403 422 422 404 400 400
GET    /w/<slug:ws>/api-members/<public_id:mid>/manager   303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/api-members/<public_id:mid>/manager   303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/api-members/<public_id:mid>/deactivate 303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/api-members/<public_id:mid>/deactivate 303 404 403 303 303 404 400 400
GET    /w/<slug:ws>/api-members/<public_id:mid>/reactivate 303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/api-members/<public_id:mid>/reactivate 303 404 403 303 303 404 400 400
GET    /w/<slug:ws>/api-members/<public_id:mid>/delete    303 404 403 200 200 404 303 303
POST   /w/<slug:ws>/api-members/<public_id:mid>/delete    303 404 403 303 303 404 400 400
GET    /w/<slug:ws>/members                               303 404 403 200 200 404 303 303
GET    /w/<slug:ws>/members/<public_id:mid>               303 404 403 200 200 404 303 303
GET    /w/<slug:ws>/members/<public_id:mid>/access        303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/members/<public_id:mid>/access        303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/members/<public_id:mid>/leave         303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/members/<public_id:mid>/leave         303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/members/<public_id:mid>/reactivate    303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/members/<public_id:mid>/reactivate    303 404 403 403 409 404 400 400
GET    /w/<slug:ws>/members/invite                        303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/members/invite                        303 404 403 403 422 404 400 400
GET    /w/<slug:ws>/members/invitations/<public_id:iid>/withdraw 303 404 403 403 200 404 303 303
POST   /w/<slug:ws>/members/invitations/<public_id:iid>/withdraw 303 404 403 403 303 404 400 400
GET    /docs/api                                          200 200 200 200 200 200 200 200
GET    /docs/api/errors                                   200 200 200 200 200 200 200 200
GET    /docs/api/scopes                                   302 302 302 302 302 302 302 302
GET    /docs/api/<slug:app>                               302 302 302 302 302 302 302 302
GET    /api/v1/openapi.json                               200 200 200 200 200 200 200 200
GET    /api/v1/me                                         401 401 401 401 401 401 200 200
POST   /api/v1/me/rotate                                  401 401 401 401 401 401 403 403
GET    /api/v1/solutions                                  401 401 401 401 401 401 200 200
GET    /api/v1/apps/<app:app>/records                     401 401 401 401 401 401 200 200
POST   /api/v1/apps/<app:app>/records                     401 401 401 401 401 401 201 201
GET    /api/v1/apps/<app:app>/records/<record_id>         401 401 401 401 401 401 200 404
PATCH  /api/v1/apps/<app:app>/records/<record_id>         401 401 401 401 401 401 200 404
DELETE /api/v1/apps/<app:app>/records/<record_id>         401 401 401 401 401 401 204 404
POST   /oauth/introspect                                  401 401 401 401 401 401 401 401
DELETE /api/v1/me                                         401 401 401 401 401 401 204 204
"""
STOPPED = ("reactivate", "receipt")  # asked of a deactivated key
RETIRING = ("retire", "extend")  # asked of the old key of a rotation
PLACEHOLDER = re.compile(r"<(?:\w+:)?(\w+)>")


class Row(NamedTuple):
    """One line of the table."""

    method: str
    rule: str
    statuses: dict[str, int]


def rows() -> Iterator[Row]:
    for line in TABLE.split("\n"):
        if line:
            method, rule, *statuses = line.split()
            rule = rule.replace("…", "/w/<slug:ws>/api/keys")
            yield Row(method, rule, dict(zip(VISITORS, map(int, statuses), strict=True)))


def differences(app: Flask) -> set[tuple[str, str]]:
    """Compare the table with the application: what only one of them has."""
    declared = {(row.method, row.rule) for row in rows()}
    return declared ^ {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or ())
        if method != "HEAD"  # it obeys GET; see below
    }


class Addresses:
    """Makes the path of a rule: with a key and a record of its own where the request may change them.

    What the table refuses to a visitor changes nothing, so those requests share what they name.
    """

    def __init__(self, cast: Cast, live: MadeKey) -> None:
        self._cast, self._live = cast, live
        self._looked_at: dict[str, str] = {}

    def __call__(self, row: Row, visitor: str) -> str:
        changes = row.method != "GET" and visitor in PEOPLE and row.statuses[visitor] < 400
        found = {"ws": "acme", "app": "tasks", "solution": "operations", "token": "x" * 43, "filename": "app.js"}
        if "eid" in row.rule:
            seen = self._cast.rio.get("/w/acme/audit").text  # rio's own newest
            found["eid"] = seen[(start := seen.index("evt_")) : start + 20]
        if "key_id" in row.rule:
            action = row.rule.rpartition("/")[2]
            found["key_id"] = self._key(action) if changes else self._key_to_look_at(action)
        if ":mid>" in row.rule:
            found["mid"] = self._api_member(row, changes=changes) if "/api-members/" in row.rule else self._rio()
        if ":iid>" in row.rule:
            found["iid"] = self._once("invitation", self._invitation, changes=changes)
        if ":vid>" in row.rule:
            found["vid"] = self._once("verifier", self._verifier, changes=changes)
        if "record_id" in row.rule:
            made = self._cast.call("POST", "/apps/tasks/records", self._live, json={"fields": {"title": "A task"}})
            found["record_id"] = made.get_json()["data"]["id"]
        return PLACEHOLDER.sub(lambda match: found[match[1]], row.rule)

    def _once(self, what: str, make: Callable[[], str], *, changes: bool) -> str:
        """Make something that the request may change, or what the others look at."""
        if changes:
            return make()
        if what not in self._looked_at:
            self._looked_at[what] = make()
        return self._looked_at[what]

    def _api_member(self, row: Row, *, changes: bool) -> str:
        action = row.rule.rpartition("/")[2]
        what = "api reactivate" if action == "reactivate" else "api member"
        return self._once(what, lambda: self._make_api_member(action), changes=changes)

    def _make_api_member(self, action: str) -> str:
        lea = self._cast.lea
        answers = {"name": f"For {action}, {token_hex(4)}"}
        made = lea.post("/w/acme/api-members/new", answers).headers["Location"]
        if "/login" in made:  # the visitor is lea, and has signed her other browsers out
            lea.sign_in()
            made = lea.post("/w/acme/api-members/new", answers).headers["Location"]
        if action == "reactivate":
            lea.post(f"{made}/deactivate")
        return made.rpartition("/")[2]

    def _verifier(self) -> str:
        made = self._cast.ana.post("/w/acme/workspace/verifiers/new", {"name": "Billing"})
        if made.status_code != 200:  # signed out, as above
            self._cast.ana.sign_in()
            made = self._cast.ana.post("/w/acme/workspace/verifiers/new", {"name": "Billing"})
        found = re.search(r"ver_\w+", made.text)
        assert found
        return found[0]

    def _rio(self) -> str:
        found = re.search(r'value="(mem_\w+)"', self._cast.rio.get("keys/new").text)
        assert found
        return found[1]

    def _invitation(self) -> str:
        answers = {"email": "ida@acme.test", "role": "member"}
        if self._cast.ana.post("/w/acme/members/invite", answers).status_code == 303:  # signed out, as above
            self._cast.ana.sign_in()
            self._cast.ana.post("/w/acme/members/invite", answers)
        found = re.search(r"inv_\w+", self._cast.ana.get("/w/acme/members/invite").text)
        assert found
        return found[0]

    def _key(self, action: str, name: str = "For") -> str:
        rio = self._cast.rio
        key = rio.generate(name=f"{name} {action}")
        if action in STOPPED:
            rio.post(f"keys/{key.id}/deactivate")
        elif action in RETIRING:
            rio.rotate(key)
        return key.id

    def _key_to_look_at(self, action: str) -> str:
        action = action if action in (*STOPPED, *RETIRING) else "anything"
        return self._once(f"key {action}", lambda: self._key(action, "Looks at"), changes=False)


@pytest.fixture
def live(cast: Cast) -> MadeKey:
    return cast.lea.generate(["tasks:read", "tasks:write"], name="Live")


@pytest.fixture
def address(cast: Cast, live: MadeKey) -> Addresses:
    return Addresses(cast, live)


@pytest.fixture
def visit(cast: Cast, live: MadeKey, database: Database) -> Callable[[str], Person]:
    """Sends a visitor."""

    def send(visitor: str) -> Person:
        person = cast.stranger()
        if visitor == "seatless":
            person = cast.max
            with database.transaction() as session:
                seat = session.query(Member).filter_by(name="Max Brandt").one()
                seat.removed_at = seat.created_at
        elif visitor.endswith("-key"):
            key = (
                live if visitor == "live-key" else cast.lea.generate(["tasks:read", "tasks:write"], environment="test")
            )
            person.browser = cast.app.test_client(use_cookies=False)
            person.browser.environ_base["HTTP_AUTHORIZATION"] = key.bearer["Authorization"]
        elif visitor != "nobody":
            person = cast.stranger(visitor)  # with a session that this test may end
            person.sign_in()
        return person

    return send


@cache
def token_of(person: Person) -> str:
    """Read the token that all pages of a visitor's session carry."""
    page = person.get("/reauth") if person.get("/login").status_code == 303 else person.get("/login")
    return token_on(page)


def knock(person: Person, row: Row, path: str, method: str | None = None) -> int:
    """Send a request as a page of ours or an integration would."""
    body: dict[str, Any] = {}
    if path.startswith("/oauth/"):
        body = {"data": {"token": "x"}}
    elif path.startswith("/api/"):
        body = {"json": {} if path.endswith("/rotate") else {"fields": {"title": "Another"}}}
    elif row.method == "POST":
        body = {"data": {"csrf_token": token_of(person)}}
    reply = person.browser.open(path, method=method or row.method, buffered=True, **body)
    assert not (method == "HEAD" and reply.data)
    return reply.status_code


@pytest.mark.parametrize(
    "visitor", [pytest.param(it, marks=pytest.mark.both if it in ON_BOTH_DATABASES else ()) for it in VISITORS]
)
def test_each_route_answers_each_visitor_as_the_table_says(
    visitor: str, visit: Callable[[str], Person], address: Addresses
) -> None:
    person = visit(visitor)
    ending = (("POST", "/logout"), ("DELETE", "/api/v1/me"))  # the visitor's session, or its key
    last = [row for row in rows() if (row.method, row.rule) in ending]
    asked = [row for row in rows() if row not in last] + last
    answered = {(row.method, row.rule): knock(person, row, address(row, visitor)) for row in asked}
    assert answered == {(row.method, row.rule): row.statuses[visitor] for row in asked}


@pytest.mark.parametrize("visitor", ["nobody", "rio", "live-key"])
def test_head_obeys_the_rule_of_get(visitor: str, visit: Callable[[str], Person], address: Addresses) -> None:
    person = visit(visitor)
    asked = [row for row in rows() if row.method == "GET"]
    answered = {row.rule: knock(person, row, address(row, visitor), "HEAD") for row in asked}
    assert answered == {row.rule: row.statuses[visitor] for row in asked}


def test_the_table_names_every_route_and_no_other(app: Flask) -> None:
    assert differences(app) == set()


def test_a_route_that_declares_nobody_is_out_of_reach_and_missed_in_the_table(launch: Callable[[], Flask]) -> None:
    careless = launch()
    careless.add_url_rule("/w/<slug:ws>/secrets", "secrets", lambda ws: f"secrets of {ws}", methods=["GET", "POST"])
    careless.add_url_rule("/api/v1/secrets", "api.secrets", lambda: "secrets")
    cast = Cast(careless)
    for reply in (cast.ana.get("/w/acme/secrets"), cast.ana.post("/w/acme/secrets"), cast.call("GET", "/secrets")):
        assert reply.status_code == 404
        assert "secrets of" not in reply.text
    assert differences(careless) == {
        ("GET", "/w/<slug:ws>/secrets"),
        ("POST", "/w/<slug:ws>/secrets"),
        ("GET", "/api/v1/secrets"),
    }


def allowed_at(rule: str) -> set[str]:
    methods = {row.method for row in rows() if row.rule == rule}
    return methods | ({"HEAD"} if "GET" in methods else set())


def plain_path(rule: str) -> str:
    """Make the path of a rule for requests that never come to look at what it names."""
    names = {
        "ws": "acme",
        "app": "tasks",
        "solution": "operations",
        "token": "x" * 43,
        "filename": "app.js",
        "key_id": "key_1",
        "eid": "evt_1",
        "record_id": "rec_1",
        "mid": "mem_1",
        "iid": "inv_1",
        "vid": "ver_1",
    }
    return PLACEHOLDER.sub(lambda match: names[match[1]], rule)


def test_methods_that_a_route_does_not_take_are_refused_with_those_that_it_takes(cast: Cast) -> None:
    for rule in {row.rule for row in rows()}:
        for method in {"OPTIONS", "TRACE", "PUT", "GET", "POST", "PATCH", "DELETE", "BREW"} - allowed_at(rule):
            reply = cast.ana.browser.open(plain_path(rule), method=method)
            assert (reply.status_code, method) == (405, method), rule
            assert set(reply.headers["Allow"].split(", ")) == allowed_at(rule)


@pytest.mark.parametrize("override", ["DELETE", "PATCH", "GET"])
def test_a_method_in_a_header_or_field_overrides_nothing(
    cast: Cast, live: MadeKey, database: Database, override: str
) -> None:
    key = cast.rio.generate()
    listed = cast.call("GET", "/apps/tasks/records", live).get_json()["data"]
    headers = dict.fromkeys(("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"), override)
    path = f"/apps/tasks/records/{listed[0]['id']}?"
    before = kept(database)
    assert cast.call("GET", path, live, headers=headers).get_json()["data"] == listed[0]
    assert cast.call("POST", path, live, headers=headers, json={"fields": {}, "_method": override}).status_code == 405
    assert cast.rio.get(f"keys/{key.id}/delete?_method=POST", headers=headers).status_code == 200
    assert kept(database) == before
    assert cast.rio.post(f"keys/{key.id}/delete", {"_method": override}, headers=headers).status_code == 303


def variants(path: str) -> Iterator[str]:
    """Write a path in ways that some routers take for the same one."""
    yield path + "/"
    yield "/" + path
    yield path.replace("/", "//", 2)
    yield path + ";x=1"
    yield path.replace("/", ";/", 2)
    yield path + ".json"
    yield path + "%20"
    yield path + "%00"
    yield path.upper()
    yield path.replace("/", "/./", 2)
    yield path.replace("/", "/x/../", 2)
    yield path.replace("/", "\\")


def test_other_ways_to_write_a_path_lead_nowhere(cast: Cast, live: MadeKey) -> None:
    integration = cast.app.test_client(use_cookies=False)
    integration.environ_base["HTTP_AUTHORIZATION"] = live.bearer["Authorization"]
    guarded = [row for row in rows() if row.method == "GET" and row.statuses["nobody"] != 200 and row.rule != "/"]
    for row in guarded:
        client: FlaskClient = integration if row.rule.startswith("/api/") else cast.ana.browser
        # As the path that a server has read: in an address the client takes what follows `//` for a host.
        paths = [unquote(path) for path in variants(plain_path(row.rule))]
        found = {path: client.get("/", environ_overrides={"PATH_INFO": path}).status_code for path in paths}
        assert set(found.values()) <= {400, 404}, found


def test_an_encoded_slash_takes_no_rule_away(cast: Cast) -> None:
    for row in rows():
        if row.method == "GET" and row.statuses["nobody"] != 200:
            path = "/" + plain_path(row.rule)[1:].replace("/", "%2f")
            assert cast.stranger().browser.get(path).status_code in {row.statuses["nobody"], 404}
            assert cast.zoe.browser.get(path).status_code in {row.statuses["zoe"], 404}


def test_htmx_headers_open_no_door(cast: Cast, database: Database) -> None:
    before = kept(database)
    hints = HTMX | {"HX-Boosted": "true", "HX-Target": "form#dlg-body", "HX-Current-URL": "http://localhost/w/acme"}
    for row in rows():
        guarded = row.rule.startswith("/w/")
        if guarded and row.method == "GET":
            assert cast.stranger().browser.get(plain_path(row.rule), headers=hints).status_code == 401
            assert cast.zoe.browser.get(plain_path(row.rule), headers=hints).status_code == 404
        elif guarded:
            assert cast.zoe.post(plain_path(row.rule), headers=hints).status_code == 404
    assert kept(database) == before
