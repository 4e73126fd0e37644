"""API Settings over HTTP: what may be asked for, who may do what to whose key, and where the secret is seen."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import escape, unescape
from typing import Any

import pytest
import time_machine
from flask import Flask, Response, request
from sqlalchemy import delete, event, update
from werkzeug.test import TestResponse

from portal.logs import JsonLines
from portal.rules.access import AccessLevel
from portal.services import api_members
from portal.services.actor import Actor, Means
from portal.store.database import Database
from portal.store.models import Access, ApiKey, App, Member, Solution
from portal.web import guards
from tests.cast import HTMX, KEY_TEXT, Cast, MadeKey, Person
from tests.web.looking import everything, kept


def member_id(database: Database, name: str) -> str:
    with database.reading() as session:
        return session.query(Member).filter_by(name=name).one().public_id


def problems(page: TestResponse) -> dict[str, str]:
    """Read the error summary: which field, and what is wrong with it."""
    listed = re.findall(r'<a href="#new-(\w+)"[^>]*>(.*?)</a>', page.text, re.DOTALL)
    return {field: unescape(message.strip()) for field, message in listed}


# --- Asking for a key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "owner"),
    [
        *(("rio", "Max Brandt"), ("rio", "Nightly sync"), ("lea", "Ana Ruiz")),
        *(("ana", "Rio Tanaka"), ("ana", "Zoe Lindqvist"), ("zoe", "Nightly sync")),
    ],
)
def test_nobody_makes_a_key_that_acts_as_another_human_or_as_a_member_they_do_not_manage(
    cast: Cast, database: Database, who: str, owner: str
) -> None:
    person: Person = getattr(cast, who)
    before = kept(database)
    reply = person.post("keys", person.form(owner=member_id(database, owner)))
    assert reply.status_code == 422
    assert "owner" in problems(reply)
    assert kept(database) == before
    (told,) = [row for row in everything(database)["audit_event"] if row["outcome"] == "refused"]
    assert told["action"] == "key_generated"


ODD_SCOPES = ("*", "tasks:*", "*:read", "tasks", "tasks:admin", "TASKS:read", "tasks:READ", "tasks:read,tasks:write")


@pytest.mark.parametrize(
    ("answers", "field", "named"),
    [
        ({"scopes": ["tasks:write"]}, "scopes", "tasks:write"),
        ({"scopes": ["tasks:read", "leads:read"]}, "scopes", "leads:read"),
        ({"scopes": ["tickets:read"]}, "scopes", "tickets:read"),  # of another workspace
        ({"scopes": []}, "scopes", "at least one"),
        ({"scopes": ["tasks:read", "tasks:read"]}, "scopes", "tasks:read"),
        *(({"scopes": ["tasks:read", odd]}, "scopes", odd) for odd in ODD_SCOPES),
        ({"scopes": ["tasks:read", " tasks:read"]}, "scopes", "tasks:read"),
        ({"scopes": [f"tasks{n}:read" for n in range(101)]}, "scopes", "100"),
        *(({"environment": odd}, "environment", "") for odd in ("", "prod", "LIVE", "live ", "sandbox")),
        *(({"expires": odd}, "expires", "") for odd in ("", "10y", "31d", "90", "NEVER", "2030-01-01")),
        ({"name": ""}, "name", ""),
        ({"name": "  ab  "}, "name", ""),
        ({"name": "x" * 61}, "name", "61"),
        ({"note": "x" * 141}, "note", "141"),
    ],
)
def test_a_forged_answer_is_refused_and_named_and_the_others_are_kept(
    shared_cast: Cast, answers: dict[str, Any], field: str, named: str
) -> None:
    rio, database = shared_cast.rio, shared_cast.app.extensions["portal"].database
    before = kept(database)
    sent = rio.form(name="Kept as typed", note="kept too") | answers
    page, fragment = rio.post("keys", sent), rio.post("keys", sent, headers=HTMX)
    for reply in (page, fragment):
        assert reply.status_code == 422
        assert set(problems(reply)) == {field}
        assert named in problems(reply)[field]
        assert ("Kept as typed" in reply.text) == ("name" not in answers)
        assert ("kept too" in reply.text) == ("note" not in answers)
    assert "<title>Error: " in page.text
    assert ("<html" in page.text, "<html" in fragment.text) == (True, False)
    assert kept(database) == before


def test_every_wrong_answer_is_told_at_once_in_the_order_of_the_form(shared_cast: Cast) -> None:
    answers = {"name": "", "note": "x" * 141, "owner": "mem_1", "environment": "", "scopes": [], "expires": ""}
    told = problems(shared_cast.rio.post("keys", shared_cast.rio.form(**answers)))
    assert list(told) == ["name", "note", "owner", "environment", "scopes", "expires"]


def test_the_form_offers_each_person_only_what_they_may_hand_out(shared_cast: Cast) -> None:
    def offered(person: Person) -> set[str]:
        return set(re.findall(r'name="scopes"\s+value="([^"]+)"', person.get("keys/new").text))

    both = {"tasks:read", "tasks:write", "reservations:read", "reservations:write"}
    sales = {"leads:read", "leads:write", "accounts:read", "accounts:write"}
    assert offered(shared_cast.rio) == {"tasks:read", "reservations:read"}
    assert offered(shared_cast.max) == sales | {"tasks:read", "reservations:read"}
    assert offered(shared_cast.lea) == both | {"leads:read", "accounts:read"}
    assert offered(shared_cast.ana) == both | sales
    assert offered(shared_cast.zoe) == {"tickets:read", "tickets:write"}
    owners = re.findall(r'name="owner"\s+value="(\w+)"', shared_cast.lea.get("keys/new").text)
    assert len(owners) == 2


def test_another_owner_leaves_the_ticks_that_this_owner_may_have_and_tells_of_the_others(
    shared_cast: Cast,
) -> None:
    lea, database = shared_cast.lea, shared_cast.app.extensions["portal"].database
    sync = member_id(database, "Nightly sync")
    answers = lea.form(owner=sync, name="For the sync", scopes=["tasks:read", "tasks:write", "leads:read"])
    fragment, page = lea.post("keys/new/scopes", answers, headers=HTMX), lea.post("keys/new/scopes", answers)
    for reply in (fragment, page):
        assert reply.status_code == 200
        ticked = re.findall(r'value="([^"]+)"[^>]*?\bchecked', reply.text[reply.text.index('id="scopes"') :])
        assert [scope for scope in ticked if ":" in scope] == ["tasks:read"]
        assert "2 scopes removed: Nightly sync cannot read Sales or write Operations." in reply.text
        assert re.search(
            'id="scopes-lost".*<code[^>]*>leads:read</code> <code[^>]*>tasks:write<', reply.text, re.DOTALL
        )
    assert "<html" not in fragment.text
    assert 'value="For the sync"' in page.text
    assert lea.post("keys", answers).status_code == 422


def test_the_check_page_carries_every_answer_to_the_button_that_generates(cast: Cast, database: Database) -> None:
    answers = cast.max.form(name="Checked", note="twice", scopes=["leads:read", "leads:write"], expires="never")
    before = kept(database)
    page = cast.max.post("keys/new/review", answers)
    assert page.status_code == 200
    assert "never expires" in page.text
    assert 'Read <bdi hx-ignore>Leads</bdi> (<code translate="no">leads:read</code>)' in page.text
    assert kept(database) == before
    form = page.text[page.text.index('action="/w/acme/api/keys"') :]
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'type="hidden"\s+name="(\w+)"\s+value="([^"]*)"', form):
        fields.setdefault(name, []).append(unescape(value))
    assert {name: fields[name] for name in answers} == {
        name: value if isinstance(value, list) else [value] for name, value in answers.items()
    }
    assert cast.max.browser.post("/w/acme/api/keys", data=fields).status_code == 200


def test_apps_of_one_name_are_told_apart_by_their_solutions(cast: Cast, database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(App).where(App.slug == "reservations").values(name="Leads"))
    scopes = ["leads:read", "leads:write", "reservations:read", "tasks:read"]
    cast.max.generate(scopes)
    review = cast.max.post("keys/new/review", cast.max.form(name="Other", scopes=scopes), headers=HTMX).text
    pages = (review, cast.max.get("keys").text)
    sentence, row = (re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page)) for page in pages)
    assert "read Leads (Sales), Leads (Operations) and Tasks and add, change and delete Leads (Sales) on" in sentence
    assert row[row.find("Read Leads") :].startswith("Read Leads (Operations), Tasks and Leads (Sales)")


def test_the_forms_own_page_takes_it_too(cast: Cast) -> None:
    answers = cast.rio.form(name="Sent to its page")
    assert cast.rio.post("keys/new", answers | {"name": ""}).status_code == 422
    assert 'id="secret"' in cast.rio.post("keys/new", answers).text


def test_the_same_form_twice_makes_one_key_and_shows_it_once(cast: Cast, database: Database) -> None:
    for headers in ({}, HTMX):
        before = len(everything(database)["api_key"])
        answers = cast.rio.form(name=f"Key {before}")
        first, second = (cast.rio.post("keys", answers, headers=headers) for _ in range(2))
        assert (first.status_code, second.status_code) == (200, 410)
        (text,) = set(KEY_TEXT.findall(first.text))
        assert text not in second.text
        assert not KEY_TEXT.search(second.text)
        assert "already been shown" in second.text
        assert f"Key {before}" in second.text
        assert len(everything(database)["api_key"]) == before + 1
        changed = cast.rio.post("keys", {**answers, "name": "Another name"}, headers=headers)
        assert changed.status_code == 410
        assert len(everything(database)["api_key"]) == before + 1
        assert ("<html" in second.text) == (not headers)


def test_a_form_of_somebody_else_with_the_same_id_is_another_form(cast: Cast) -> None:
    mine = cast.rio.form()
    assert cast.rio.post("keys", mine).status_code == 200
    assert cast.max.post("keys", cast.max.form(form_id=mine["form_id"])).status_code == 200


def test_a_name_in_use_is_refused_until_its_key_is_deleted(cast: Cast) -> None:
    key = cast.rio.generate(name="CRM sync")
    for name in ("CRM sync", "  crm SYNC ", "CRM sync"):
        refused = cast.rio.post("keys", cast.rio.form(name=name))
        assert refused.status_code == 422
        told = f"You already have a key called “CRM sync” (…{key.text[47:51]}, active). Choose a different name."
        assert problems(refused) == {"name": told}
        assert '<h2 id="new-errors"' in refused.text
    other = cast.rio.generate(name="Other")
    renamed = cast.rio.post(f"keys/{other.id}/edit", {"name": "crm sync", "note": "", "was_name": "Other"})
    assert renamed.status_code == 422
    assert told in unescape(renamed.text)
    assert cast.max.generate(["tasks:read"], name="CRM sync")
    cast.rio.post(f"keys/{key.id}/delete")
    assert cast.rio.generate(name="CRM sync")


def test_the_twenty_first_key_is_refused_until_one_is_deleted(cast: Cast, database: Database) -> None:
    form = cast.rio.form()
    asked = ({**form, "name": f"Key {n}", "form_id": f"form-{n:04}"} for n in range(20))
    assert [cast.rio.post("keys", answers).status_code for answers in asked] == [200] * 20
    before = kept(database)
    for headers in ({}, HTMX):
        refused = cast.rio.post("keys", cast.rio.form(name="One more"), headers=headers)
        assert refused.status_code == 409
        assert "limit" in problems(refused)
        assert 'value="One more"' in refused.text
        rio = re.escape("/w/acme/api/keys?owner=me&sort=used&state=unused")
        assert re.search(f'id="new-limit".*You have 20 of 20 keys.*href="{rio}"', unescape(refused.text), re.DOTALL)
    assert kept(database) == before
    one = everything(database)["api_key"][0]["public_id"]
    assert cast.rio.post(f"keys/{one}/deactivate").status_code == 303
    assert cast.rio.post("keys", cast.rio.form(name="One more")).status_code == 409
    assert cast.rio.post(f"keys/{one}/delete").status_code == 303
    assert cast.rio.post("keys", cast.rio.form(name="One more")).status_code == 200


# --- Fragments and pages --------------------------------------------------------------------------------------------


def test_each_address_gives_a_page_to_browsers_and_its_part_to_htmx(cast: Cast) -> None:
    key, off = cast.rio.generate(), cast.rio.generate(name="Off")
    cast.rio.post(f"keys/{off.id}/deactivate")
    roots = {
        "keys": "keys-panel",
        "keys?owner=me&page=1": "keys-panel",
        "keys/new": "new-key-form",
        f"keys/{key.id}/deactivate": f"key-{key.id}-deactivating",
        f"keys/{off.id}/reactivate": f"key-{off.id}-reactivating",
        f"keys/{key.id}/delete": f"key-{key.id}-deleting",
    }
    for path, root in roots.items():
        page, fragment = cast.rio.get(path), cast.rio.get(path, headers=HTMX)
        assert page.text.count("<h1") == 1
        assert f'id="{root}"' in page.text
        assert "<html" not in fragment.text
        assert re.match(rf'\s*<\w+\s+id="{root}"', fragment.text)
        restored = cast.rio.get(path, headers=HTMX | {"HX-History-Restore-Request": "true"})
        assert "<html" in restored.text


def test_a_change_leads_a_browser_to_the_list_and_gives_htmx_the_row(cast: Cast) -> None:
    key = cast.rio.generate()
    for action, done in (("deactivate", "Deactivated"), ("reactivate", "Active")):
        changed = cast.rio.post(f"keys/{key.id}/{action}", headers=HTMX)
        assert changed.status_code == 200
        assert re.match(rf'\s*<tbody[^>]*id="key-{key.id}"', changed.text)
        assert done in changed.text
        assert key.id in changed.headers["HX-Trigger"]
    page = cast.rio.post(f"keys/{key.id}/deactivate")
    assert page.status_code == 303
    assert page.location.startswith(f"/w/acme/api/keys/{key.id}/receipt?")
    assert "is deactivated" in cast.rio.get(page.location).text
    deleted = cast.rio.post(f"keys/{key.id}/delete", headers=HTMX | {"HX-Target": "div#dlg-body"})
    assert deleted.status_code == 200
    assert re.match(rf'\s*<div\s+id="key-{key.id}-receipt"', deleted.text)
    assert key.id not in cast.rio.get("keys").text


def test_a_change_that_came_too_late_is_told_and_changes_nothing(cast: Cast, database: Database) -> None:
    key = cast.rio.generate()
    assert cast.rio.post(f"keys/{key.id}/reactivate").status_code == 409
    assert cast.ana.post(f"keys/{key.id}/deactivate").status_code == 303
    before = kept(database)
    for headers in ({}, HTMX):
        late = cast.rio.post(f"keys/{key.id}/deactivate", headers=headers)
        assert late.status_code == 409
        assert "Ana Ruiz" in (late.headers["HX-Trigger"] if headers else late.text)
        assert "Deactivated" in late.text or not headers
    assert kept(database) == before
    assert cast.rio.post(f"keys/{key.id}/delete").status_code == 303
    told = f"“Nightly export” (…{key.text[47:51]}) is already deleted. Nothing was changed."
    for action in ("delete", "deactivate", "reactivate", "edit", "rotate", "replace"):
        for ask in (cast.rio.get, cast.rio.post):
            page, row = ask(f"keys/{key.id}/{action}"), ask(f"keys/{key.id}/{action}", headers=HTMX)
            assert (page.status_code, told in page.text) == (409, True), action
            assert (row.status_code, "Revoked" in row.text) == (409, True), action
            assert json.loads(row.headers["HX-Trigger"])["portal:done"]["message"] == told
        assert cast.lea.get(f"keys/{key.id}/{action}").status_code == 404


def test_a_key_in_use_is_deleted_only_under_its_name(cast: Cast) -> None:
    key = cast.rio.generate(name="CRM sync")
    assert cast.call("GET", "/me", key).status_code == 200
    cast.app.extensions["portal"].usage.flush()
    for typed in ({}, {"name": ""}, {"name": "CRM"}):
        refused = cast.rio.post(f"keys/{key.id}/delete", typed)
        assert refused.status_code == 422
        assert "CRM sync" in refused.text
    assert cast.call("GET", "/me", key).status_code == 200
    assert cast.rio.post(f"keys/{key.id}/delete", {"name": " crm SYNC"}).status_code == 303
    assert cast.call("GET", "/me", key).status_code == 401


@pytest.mark.parametrize(("minutes", "status"), [(1, 303), (11, 422)])
def test_a_form_that_did_not_ask_for_the_name_is_taken_though_the_key_was_used_since(
    cast: Cast, minutes: int, status: int
) -> None:
    key = cast.rio.generate()
    form = cast.rio.get(f"keys/{key.id}/delete").text
    assert "to delete it" not in form
    other = cast.rio.generate(name="Another")
    [seen_idle, of_another] = [
        re.findall(r'name="idle"\s+value="([^"]+)"', page)[0]
        for page in (form, cast.rio.get(f"keys/{other.id}/delete").text)
    ]
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes)):
        assert cast.call("GET", "/me", key).status_code == 200
        cast.app.extensions["portal"].usage.flush()
        for odd in ("2999-01-01T00:00:00+00:00", of_another):
            assert cast.rio.post(f"keys/{key.id}/delete", {"idle": odd}).status_code == 422
        assert cast.rio.post(f"keys/{key.id}/delete", {"idle": seen_idle}).status_code == status


# --- Whose keys -----------------------------------------------------------------------------------------------------

STOP = ("deactivate", "delete")


@pytest.mark.both
@pytest.mark.parametrize(
    ("owner", "may"),
    [
        # contract, section 5: what each may do; None: to them there is no such key
        ("rio", {"rio": "all", "max": None, "lea": None, "ana": "stop", "zoe": None}),
        ("ana", {"rio": None, "max": None, "lea": None, "ana": "all", "zoe": None}),
        ("Nightly sync", {"rio": None, "max": None, "lea": "all", "ana": "all", "zoe": None}),
        ("Other sync", {"rio": None, "max": None, "lea": None, "ana": "all", "zoe": None}),
    ],
)
def test_each_may_do_to_a_key_what_the_contract_says(
    cast: Cast, database: Database, owner: str, may: dict[str, str | None]
) -> None:
    maker = {"rio": cast.rio, "Nightly sync": cast.lea}.get(owner, cast.ana)
    answers: dict[str, Any] = {"scopes": ["tasks:read"]}
    if owner == "Other sync":
        with database.transaction() as session:
            ana = session.query(Member).filter_by(name="Ana Ruiz").one()
            actor = Actor(ana.created_at, Means.SESSION, ana.name, ana.public_id, ana.workspace_id, ana.id)
            access = {"operations": AccessLevel.READ}
            api_members.create(session, actor, name=owner, purpose="", access=access)
    if owner.endswith("sync"):
        answers["owner"] = member_id(database, owner)
    made = iter(range(20))

    def make(*, is_off: bool) -> MadeKey:
        key = maker.generate(name=f"Key {next(made)}.", **answers)
        if is_off:
            assert maker.post(f"keys/{key.id}/deactivate").status_code == 303
        return key

    on, off = make(is_off=False), make(is_off=True)
    for who, reach in may.items():
        person: Person = getattr(cast, who)
        listed = "".join(person.get(f"keys?owner={tab}", headers=HTMX).text for tab in ("me", "api", "all"))
        assert (off.id in listed) == (reach is not None)
        for action in ("reactivate", "deactivate", "delete"):
            key = off if action == "reactivate" else on
            allowed = reach == "all" or (reach == "stop" and action in STOP)
            refused = 404 if reach is None else 403
            page, done = person.get(f"keys/{key.id}/{action}"), person.post(f"keys/{key.id}/{action}")
            answered = (page.status_code, done.status_code)
            assert answered == ((200, 303) if allowed else (refused, refused)), (who, action)
            if allowed and action == "reactivate":
                off = make(is_off=True)
            elif allowed and action == "delete":
                on = make(is_off=False)
            elif allowed:
                assert maker.post(f"keys/{key.id}/reactivate").status_code == 303
    assert cast.call("GET", "/me", on).status_code == 200
    assert cast.call("GET", "/me", off).status_code == 401


def test_a_member_sees_no_tab_of_others_keys_whatever_the_address_says(shared_cast: Cast) -> None:
    for tab in ("api", "all", "ALL", "x"):
        assert "Whose keys" not in shared_cast.rio.get(f"keys?owner={tab}").text


@pytest.mark.both
def test_who_loses_access_sees_it_on_the_key_and_the_key_loses_it_at_once(cast: Cast, database: Database) -> None:
    key = cast.max.generate(["leads:read", "leads:write"])
    assert cast.call("POST", "/apps/leads/records", key, json={"fields": {"name": "x"}}).status_code == 201
    with database.transaction() as session:
        sales = session.query(Access).join(Solution).join(Member, Member.id == Access.member_id)
        sales = sales.filter(Member.name == "Max Brandt")
        sales.filter(Solution.slug == "sales").one().level = "read"
    assert cast.call("POST", "/apps/leads/records", key, json={"fields": {"name": "x"}}).status_code == 403
    assert cast.call("GET", "/apps/leads/records", key).status_code == 200
    listed = cast.max.get("keys").text
    assert "Limited by owner" in listed
    assert "no longer has write in Sales" in listed
    assert cast.max.post("keys", cast.max.form(name="Again", scopes=["leads:write"])).status_code == 422


@pytest.mark.both
def test_somebody_without_any_access_is_told_whom_to_ask(cast: Cast, database: Database) -> None:
    opened_before = cast.rio.form()
    with database.transaction() as session:
        session.query(Access).delete()
    for page in (cast.rio.get("keys"), cast.rio.get("/w/acme")):
        assert page.status_code == 200
        assert "Ana Ruiz" in page.text
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=11)):  # nor for the password, first
        form = cast.rio.get("keys/new")
    assert form.status_code == 403
    assert "no access to any solution in this workspace. Ask Ana Ruiz." in form.text
    late = cast.rio.post("keys", opened_before)
    assert late.status_code == 422
    assert "you have no access to any solution" in late.text


# --- The list's price -----------------------------------------------------------------------------------------------


@contextmanager
def counting(database: Database) -> Iterator[list[str]]:
    """Count what the database is asked."""
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield asked
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.both
def test_a_full_page_of_the_list_takes_eight_queries_and_sixty_kilobytes_at_most(cast: Cast) -> None:
    scopes = ["tasks:read", "leads:read", "leads:write"]
    for person, count in ((cast.max, 16), (cast.ana, 10)):
        form = person.form(note="On the server", scopes=scopes)
        for n in range(count):
            answers = {**form, "name": f"Nightly export to the CRM {n}", "form_id": f"form-{n:04}"}
            assert person.post("keys", answers).status_code == 200
    with counting(cast.app.extensions["portal"].database) as asked:
        page = cast.ana.get("keys?owner=all")
    assert page.text.count("<tbody") == 25
    assert "1–25 of 26" in page.text
    assert len([statement for statement in asked if not statement.startswith("BEGIN")]) <= 8, asked
    assert len(page.data) < 60_000
    second = cast.ana.get("keys?owner=all&page=2")
    assert second.text.count("<tbody") == 1
    assert cast.ana.get("keys?owner=all&page=99").text.count("<tbody") == 1


# --- What people typed ----------------------------------------------------------------------------------------------

MARKUP = ('<div hx-get="/x" hx-trigger="load">', "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')


@pytest.mark.parametrize("typed", MARKUP)
def test_what_people_typed_is_shown_as_they_typed_it_wherever_it_is_shown(cast: Cast, typed: str) -> None:
    rio = cast.rio
    answers = rio.form(name=typed, note=typed)
    shown = [rio.post("keys/new/review", answers), rio.browser.post("/w/acme/api/keys", data=answers)]
    shown += [rio.post("keys", answers), rio.post("keys", answers), rio.post("keys", rio.form(name=typed))]
    assert [page.status_code for page in shown] == [200, 400, 200, 410, 422]
    shown += [rio.get("keys"), cast.ana.get("keys?owner=all"), rio.post("keys/new/scopes", rio.form(name=typed))]
    key_id = re.findall(r'id="key-(key_\w+)"', rio.get("keys").text)[0]
    for action in ("delete", "deactivate"):
        shown += [rio.get(f"keys/{key_id}/{action}"), rio.get(f"keys/{key_id}/{action}", headers=HTMX)]
    shown += [rio.post(f"keys/{key_id}/deactivate", headers=HTMX), rio.post(f"keys/{key_id}/deactivate")]
    shown += [rio.get(f"keys/{key_id}/reactivate"), rio.post("keys", rio.form(scopes=[typed]))]
    for page in shown:
        assert typed not in page.text
        assert escape(typed, quote=False) in unescape_quotes(page.text)
        assert not re.search(r"<div hx-get|<script>|<img", page.text)


def test_no_name_in_a_row_of_the_list_is_markup(cast: Cast, database: Database) -> None:
    """Of a key, its owner, its maker, its apps, its successor, and where it was used from."""
    cast.max.rotate(cast.max.generate(name="First"))
    cast.max.generate(name="Second", scopes=["leads:read"])
    with database.transaction() as session:
        for n, entity in enumerate((Member, App, Solution)):
            session.execute(update(entity).values(name=f"{n}{MARKUP[1]}"))
        session.execute(
            update(ApiKey).values(note=MARKUP[1], last_used_address=MARKUP[1], last_used_at=datetime.now(UTC))
        )
        session.execute(update(ApiKey).values(name=MARKUP[1] + ApiKey.name))
        ended = update(ApiKey).where(ApiKey.retires_at.is_not(None))
        session.execute(ended.values(retires_at=datetime.now(UTC) - timedelta(hours=1)))
        session.execute(delete(Access))
    for path in ("keys?owner=all", "keys?owner=all&state=revoked", "keys?owner=all&sort=owner"):
        page = cast.ana.get(path).text
        assert page.count(escape(MARKUP[1], quote=False)) > 5
        assert "<script>" not in page


def unescape_quotes(page: str) -> str:
    return page.replace("&#34;", '"').replace("&#39;", "'")


# --- The secret -----------------------------------------------------------------------------------------------------


@contextmanager
def overhearing(app: Flask) -> Iterator[tuple[list[Response], io.StringIO]]:
    """Keep every answer that leaves the portal, and every line of its log as it would be written."""
    answers: list[Response] = []
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)

    @app.after_request
    def keep(response: Response) -> Response:
        answers.append(response)
        return response

    yield answers, written
    logging.getLogger().removeHandler(handler)


def fail_with_the_key_in_hand() -> None:
    raise RuntimeError(f"could not go on with {request.headers['Authorization']} ({request.url})")


def test_a_key_is_in_one_answer_and_nowhere_else(launch: Callable[[], Flask], database: Database) -> None:
    app = launch()
    app.add_url_rule("/careless", "careless", guards.anybody(fail_with_the_key_in_hand))
    with overhearing(app) as (answers, log):
        cast = Cast(app)
        form = cast.max.form(scopes=["leads:read"])
        reveal = cast.max.post("keys", form)
        (text,) = set(KEY_TEXT.findall(reveal.text))
        random = text[8:51]
        key = MadeKey(everything(database)["api_key"][-1]["public_id"], text)
        cast.max.post("keys", form)
        cast.max.post("keys", form, headers=HTMX)
        for path, status in (("/me", 200), ("/apps/tasks/records", 403), (f"/me?key={text}", 401), (f"/{text}", 404)):
            reply = cast.call("GET", path, key, headers={"User-Agent": text, "Referer": text, "X-Request-Id": text})
            assert reply.status_code == status
        cast.call("POST", "/apps/leads/records", key, data=f'{{"fields": "{text}"}}', content_type="application/json")
        for path in (
            "keys",
            f"keys/{key.id}/delete",
            f"keys/{key.id}/deactivate",
            f"/{text}",
            "/w/acme",
            f"keys?x={text}",
        ):
            cast.max.get(path)
            cast.ana.get(path)
        careless = cast.stranger().browser.get(f"/careless?{text}", headers=key.bearer)
        assert (careless.status_code, random in careless.text) == (500, False)
        cast.max.post(f"keys/{key.id}/deactivate")
        cast.call("GET", "/me", key)
        cast.max.post(f"keys/{key.id}/delete", {"name": "Nightly export"})
        cast.stranger(text).sign_in(text)
        app.extensions["portal"].usage.flush()

    stored = repr(everything(database))
    for part in (text, random, random[:20], random[-20:], text.encode().hex()):
        assert part not in stored
        assert part not in log.getvalue()
    assert random[-4:] in stored  # the hint
    assert "could not go on with" in log.getvalue()
    holding = [answer for answer in answers if random in answer.get_data(as_text=True)]
    ours = [answer for answer in holding if 'id="secret"' in answer.get_data(as_text=True)]
    assert len(ours) == 1
    assert ours[0].headers["Cache-Control"] == "no-store"
    # The others tell a sender what was just sent: the path that is not there, the email that does not match.
    assert {answer.status_code for answer in holding if answer not in ours} <= {404, 422}
    for answer in answers:
        assert random not in str(answer.headers)


def test_no_page_or_answer_holds_what_is_stored_of_a_key(cast: Cast, database: Database) -> None:
    key = cast.rio.generate()
    digest: bytes = everything(database)["api_key"][-1]["digest"]
    for reply in (cast.rio.get("keys"), cast.rio.get(f"keys/{key.id}/delete"), cast.call("GET", "/me", key)):
        assert digest not in reply.data
        assert digest.hex() not in reply.text
        assert key.text[-11:-7] in reply.text  # the last four
        assert key.text[-12:-6] not in reply.text


def test_two_keys_are_never_alike_and_carry_their_environment(cast: Cast, database: Database) -> None:
    texts = [cast.rio.generate(name=f"Key {n}", environment="test").text for n in range(3)]
    assert len(set(texts)) == 3
    assert all(text.startswith("sk_test_") for text in texts)
    assert len({bytes(row["digest"]) for row in everything(database)["api_key"]}) == 3
