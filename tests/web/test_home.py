"""A workspace's first page: what each person sees of it, and who may fill a sandbox."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from sqlalchemy import delete

from portal.store.database import Database
from portal.store.models import Record
from tests.cast import HTMX, Cast, Person
from tests.web.looking import data, everything, kept


def apps_on(page: str) -> set[str]:
    """Find the links to apps; each leads to its records, which stand below all apps on a small screen."""
    return set(re.findall(r'href="/w/acme\?app=([a-z]+)#records"', page))


@pytest.mark.parametrize(
    ("who", "apps"),
    [
        ("rio", {"tasks", "reservations"}),
        ("max", {"tasks", "reservations", "leads", "accounts"}),
        ("lea", {"tasks", "reservations", "leads", "accounts"}),
        ("ana", {"tasks", "reservations", "leads", "accounts"}),
    ],
)
def test_everybody_sees_the_apps_they_have_access_to_and_no_trace_of_others(
    shared_cast: Cast, who: str, apps: set[str]
) -> None:
    person: Person = getattr(shared_cast, who)
    page = person.get("/w/acme").text
    assert apps_on(page) == apps
    assert ("Sales" in page) == ("leads" in apps)
    assert "Support" not in page
    for app in ("tasks", "reservations", "leads", "accounts", "tickets", "nothing"):
        shown, fragment = person.get(f"/w/acme?app={app}"), person.get(f"/w/acme?app={app}", headers=HTMX)
        assert shown.status_code == fragment.status_code == (200 if app in apps else 404)


def test_an_app_one_may_not_see_looks_like_none(shared_cast: Cast) -> None:
    hidden, unknown = (shared_cast.rio.get(f"/w/acme?app={app}") for app in ("leads", "nope1"))
    bare = [
        re.sub(r'req_\w+|[\w-]{20,}\.[\w-]+\.[\w-]+|data-session="[^"]+"', "…", reply.text)
        for reply in (hidden, unknown)
    ]
    assert bare[0] == bare[1]


def test_what_an_integration_did_is_there_to_be_seen(cast: Cast) -> None:
    live = cast.lea.generate(["tasks:read", "tasks:write"])
    made = data(cast.call("POST", "/apps/tasks/records", live, json={"fields": {"title": "Water the plants"}}), 201)
    for page in (cast.rio.get("/w/acme?app=tasks"), cast.rio.get("/w/acme?app=tasks", headers=HTMX)):
        assert "Water the plants" in page.text
        assert made["id"] in page.text
        assert "19 records" in page.text
    assert "<title>Tasks, live – " in cast.rio.get("/w/acme?app=tasks").text
    sandbox = cast.rio.get("/w/acme?app=tasks&env=test").text
    assert "<title>Tasks, sandbox – " in sandbox
    assert "Water the plants" not in sandbox
    assert made["id"] not in sandbox
    cast.call("DELETE", f"/apps/tasks/records/{made['id']}", live)
    assert "Water the plants" not in cast.rio.get("/w/acme?app=tasks").text


def test_keys_that_expire_soon_are_counted_by_the_lists_that_hold_them(cast: Cast, database: Database) -> None:
    sync = next(row["public_id"] for row in everything(database)["member"] if row["name"] == "Nightly sync")
    for answers in ({"name": "One"}, {"name": "Two"}, {"owner": sync}):
        cast.lea.generate(expires="30d", **answers)
    cast.rio.generate(expires="30d")
    with time_machine.travel(datetime.now(UTC) + timedelta(days=20)):
        for who, lists in (("lea", {"My keys": 2, "API members’ keys": 1}), ("rio", {"My keys": 1})):
            person = Person(cast.app, who)
            person.sign_in()
            page = person.get("/w/acme").text
            links = re.findall(r'<a href="([^"]+)">([^<]+): (\d+)</a>', page)
            assert {name: int(count) for _, name, count in links} == lists
            for url, _, count in links:
                assert len(re.findall(r'<tbody[^>]*id="key-', person.get(unescape(url)).text)) == int(count)


def test_markup_in_a_record_is_shown_and_not_run(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:write"])
    typed = '<div hx-get="/x"><script>alert(1)</script>'
    made = cast.call("POST", "/apps/tasks/records", key, json={"fields": {"title": typed, "assignee": "\u202e<b>"}})
    assert made.status_code == 201
    page = cast.rio.get("/w/acme?app=tasks").text
    assert "&lt;div hx-get=" in page
    assert not re.search(r"<div hx-get|<script>|<b>", page)


def test_records_come_a_page_at_a_time(shared_cast: Cast) -> None:
    first, second = (shared_cast.max.get(f"/w/acme?app=leads&page={page}").text for page in (1, 2))
    ids = [set(re.findall(r"rec_[0-9A-Za-z]+", page)) for page in (first, second)]
    assert (len(ids[0]), len(ids[1])) == (20, 4)
    assert not ids[0] & ids[1]
    beyond = shared_cast.max.get("/w/acme?app=leads&page=99").text  # the last one is shown
    assert set(re.findall(r"rec_[0-9A-Za-z]+", beyond)) == ids[1]
    assert "Page 2 of 2" in beyond


@pytest.mark.parametrize(
    ("who", "slug", "status"),
    [
        *(("lea", "leads", 403), ("max", "leads", 403), ("max", "tasks", 403), ("rio", "tasks", 403)),
        *(("rio", "leads", 404), ("ana", "tickets", 404), ("zoe", "tasks", 404)),
    ],
)
def test_who_does_not_manage_an_app_fills_no_sandbox(shared_cast: Cast, who: str, slug: str, status: int) -> None:
    person: Person = getattr(shared_cast, who)
    database: Database = shared_cast.app.extensions["portal"].database
    before = kept(database)
    for headers in ({}, HTMX):
        assert person.get(f"/w/acme/apps/{slug}/sandbox", headers=headers).status_code == status
        assert person.post(f"/w/acme/apps/{slug}/sandbox", headers=headers).status_code == status
    assert kept(database) == before


@pytest.mark.parametrize(("who", "slug"), [("ana", "leads"), ("ana", "tasks"), ("lea", "tasks")])
def test_who_manages_an_app_fills_its_sandbox_with_copies_and_nothing_flows_back(
    cast: Cast, database: Database, who: str, slug: str
) -> None:
    person: Person = getattr(cast, who)
    before = kept(database)
    assert person.get(f"/w/acme/apps/{slug}/sandbox").status_code == 200
    assert kept(database) == before
    filled = person.post(f"/w/acme/apps/{slug}/sandbox")
    assert (filled.status_code, filled.location) == (303, f"/w/acme?app={slug}&env=test")

    after = kept(database)
    app_id = next(row["id"] for row in after["app"] if row["slug"] == slug)
    records, old = after.pop("record"), before.pop("record")
    live, test = ([r for r in records if (r["app_id"], r["environment"]) == (app_id, env)] for env in ("live", "test"))
    assert [record["fields"] for record in test] == [record["fields"] for record in live]
    assert [r for r in records if r not in test] == [
        r for r in old if (r["app_id"], r["environment"]) != (app_id, "test")
    ]
    assert after == before


def test_a_sandbox_is_filled_anew_however_often(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read", "tasks:write"], environment="test")
    cast.call("POST", "/apps/tasks/records", key, json={"fields": {"title": "Practice"}})
    for _ in range(2):
        assert cast.lea.post("/w/acme/apps/tasks/sandbox").status_code == 303
        reply = cast.call("GET", "/apps/tasks/records?limit=100", key)
        assert reply.get_json()["meta"]["pagination"]["total"] == 18
        assert "Practice" not in reply.text


def test_a_sandbox_is_offered_copies_only_where_there_is_something_to_copy(cast: Cast, database: Database) -> None:
    for environment, is_filled in (("test", True), ("live", False)):
        with database.transaction() as session:
            session.execute(delete(Record).where(Record.environment == environment))
        records, form = (cast.lea.get(f"/w/acme{path}").text for path in ("?app=tasks&env=test", "/apps/tasks/sandbox"))
        assert ("Fill the sandbox</a>" in records) == ("Fill the sandbox</button>" in form) == is_filled
    assert 'when a sandbox key with <code translate="no">tasks:write</code> adds them' in records
    assert "there is nothing to copy" in form
