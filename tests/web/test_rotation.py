"""Rotation over HTTP: pages and fragments, the one reveal, what is refused and how, and who may do it (T-33)."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
import time_machine
from sqlalchemy import update

from portal.store.database import Database
from portal.store.models import UserSession
from tests.cast import HTMX, KEY_TEXT, Cast, MadeKey, Person
from tests.web.looking import everything, kept

IN_DIALOG = HTMX | {"HX-Target": "div#dlg-body"}
STATUS = "/me"


def answers(person: Person, key: MadeKey, action: str = "rotate", **changed: Any) -> dict[str, Any]:
    """Give the answers of the form as it comes, but for those changed."""
    page = person.get(f"keys/{key.id}/{action}").text
    form = page[page.index(f'id="{action}-form"') :]
    found: dict[str, Any] = {"form_id": re.findall(r'name="form_id"\s+value="([^"]+)"', form)[0]}
    if action == "rotate":
        for name in ("overlap", "expires", "scopes"):
            ticked = [
                re.findall(r'value="([^"]+)"', box)[0]
                for box in re.findall(rf'<input[^>]*name="{name}"[^>]*>', form)
                if re.search(r"\schecked", box)
            ]
            found[name] = ticked if name == "scopes" else ticked[0]
    return found | changed


def made(reply_text: str) -> MadeKey:
    text, key_id = KEY_TEXT.findall(reply_text)[0], re.findall(r'data-key="(key_\w+)"', reply_text)[0]
    return MadeKey(key_id, text)


# --- The form and the reveal ----------------------------------------------------------------------------------------


def test_the_form_comes_filled_with_what_the_key_has(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read", "tasks:write"], expires="30d")
    form = answers(cast.lea, key)
    assert (form["overlap"], form["expires"], form["scopes"]) == ("24h", "30d", ["tasks:read", "tasks:write"])
    page = cast.lea.get(f"keys/{key.id}/rotate").text
    assert set(re.findall(r'name="overlap"\s+value="([^"]+)"', page)) == {"0", "1h", "24h", "7d", "until"}
    assert page.count("– until ") == 4  # what stops at once has no end to be told
    assert set(re.findall(r'name="scopes"\s+value="([^"]+)"', page)) == {"tasks:read", "tasks:write"}
    leaked = cast.lea.get(f"keys/{key.id}/rotate?leaked=1").text
    assert re.search(r'value="0"[^>]*\schecked', leaked)


def test_a_scope_counts_as_unused_only_when_the_key_is_old_enough_for_that(cast: Cast) -> None:
    key = cast.rio.generate()
    assert "not used in 60 days" not in cast.rio.get(f"keys/{key.id}/rotate").text
    with time_machine.travel(datetime.now(UTC) + timedelta(days=61)):
        cast.rio.sign_in()
        assert "not used in 60 days" in cast.rio.get(f"keys/{key.id}/rotate").text


@pytest.mark.parametrize("headers", [{}, IN_DIALOG])
def test_a_rotation_shows_the_new_key_once_and_both_work(
    cast: Cast, database: Database, headers: dict[str, str]
) -> None:
    old = cast.rio.generate(name="CRM sync")
    form = answers(cast.rio, old)
    shown = cast.rio.post(f"keys/{old.id}/rotate", form, headers=headers)
    assert shown.status_code == 200
    new = made(shown.text)
    assert (new.id != old.id, new.text != old.text) == (True, True)
    assert ("<html" in shown.text) == (not headers)
    assert old.text[8:51] not in shown.text
    assert shown.headers["Cache-Control"] == "no-store"
    assert [cast.call("GET", STATUS, key).status_code for key in (old, new)] == [200, 200]
    ending = cast.call("GET", STATUS, old).headers["X-Key-Expires-At"]
    assert ending < cast.call("GET", STATUS, new).headers["X-Key-Expires-At"]

    again = cast.rio.post(f"keys/{old.id}/rotate", form, headers=headers)
    assert again.status_code == 410
    assert "already been shown" in again.text
    assert not KEY_TEXT.search(again.text)
    assert len(everything(database)["api_key"]) == 2
    assert new.text[8:51] not in cast.rio.get(f"keys/{new.id}").text + cast.rio.get("keys").text
    assert new.text[8:51] not in repr(everything(database))


def test_without_an_overlap_the_old_key_stops_at_once(cast: Cast, database: Database) -> None:
    old = cast.rio.generate()
    new = cast.rio.rotate(old, overlap="0")
    assert [cast.call("GET", STATUS, key).status_code for key in (old, new)] == [401, 200]
    cast.app.extensions["portal"].usage.flush()
    (told,) = everything(database)["refused_request"]
    assert told["reason"] == "retired"
    assert "401: key retired after its rotation" in cast.rio.get(f"keys/{old.id}/requests").text
    assert cast.call("GET", STATUS, new).status_code == 200


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        *(({"overlap": odd}, "overlap") for odd in ("", "8d", "-1")),
        ({"expires": "10y"}, "expires"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["tasks:read", "tasks:write"]}, "scopes"),
        ({"scopes": ["leads:read"]}, "scopes"),
        ({"scopes": ["<script>alert(1)</script>"]}, "scopes"),
    ],
)
def test_a_forged_answer_is_refused_and_named(
    cast: Cast, database: Database, changed: dict[str, Any], field: str
) -> None:
    key = cast.lea.generate(["tasks:read"])
    form = answers(cast.lea, key, **changed)
    before = kept(database)
    for headers in ({}, IN_DIALOG):
        refused = cast.lea.post(f"keys/{key.id}/rotate", form, headers=headers)
        assert refused.status_code == 422
        assert set(re.findall(r'<a href="#rotate-(\w+)"', refused.text)) == {field}
        assert "<script>alert" not in refused.text
    assert kept(database) == before
    assert cast.call("GET", STATUS, key).status_code == 200


def test_rotating_twice_is_a_conflict_that_says_what_to_do_and_changes_nothing(cast: Cast, database: Database) -> None:
    old, other = cast.rio.generate(), cast.rio.generate(name="Other")
    form = answers(cast.rio, other)
    new = cast.rio.rotate(old)
    before = kept(database)
    for key in (old, new):
        for headers in ({}, HTMX):
            assert cast.rio.get(f"keys/{key.id}/rotate", headers=headers).status_code == 409
            refused = cast.rio.post(f"keys/{key.id}/rotate", form, headers=headers)
            assert refused.status_code == 409
            told = refused.headers.get("HX-Trigger") or unescape(refused.text)
            assert re.search("is being replaced already|Retire it first", told)
    assert kept(database) == before


@pytest.mark.parametrize("action", ["rotate", "replace"])
def test_minting_asks_for_the_password_again_and_stopping_does_not(cast: Cast, database: Database, action: str) -> None:
    key, retiring = cast.rio.generate(), cast.rio.generate(name="Retiring")
    cast.rio.rotate(retiring)
    form = answers(cast.rio, key, action)
    with database.transaction() as session:
        session.execute(update(UserSession).values(proved_at=datetime.now(UTC) - timedelta(minutes=11)))
    before = kept(database)
    for path in (f"keys/{key.id}/{action}", f"keys/{retiring.id}/extend"):
        asked = cast.rio.post(path, form)
        assert asked.status_code == 403
        assert 'name="password"' in asked.text
        assert not KEY_TEXT.search(asked.text)
    assert kept(database) == before
    assert cast.rio.post(f"keys/{retiring.id}/retire").status_code == 303
    assert cast.call("GET", STATUS, retiring).status_code == 401


# --- Retiring and extending -----------------------------------------------------------------------------------------


def test_each_step_has_a_page_for_browsers_and_its_part_for_htmx(cast: Cast) -> None:
    key, old = cast.rio.generate(), cast.rio.generate(name="Old")
    cast.rio.rotate(old)
    roots = {
        f"keys/{key.id}/rotate": "rotate-form",
        f"keys/{key.id}/replace": "replace-form",
        f"keys/{old.id}/retire": f"key-{old.id}-retiring",
        f"keys/{old.id}/extend": f"key-{old.id}-extending",
    }
    for path, root in roots.items():
        page, fragment = cast.rio.get(path), cast.rio.get(path, headers=HTMX)
        assert page.text.count("<h1") == 1
        assert f'id="{root}"' in page.text
        assert f'action="/w/acme/api/{path}"' in page.text
        assert "<html" not in fragment.text
        assert re.match(rf'\s*<\w+\s+id="{root}"', fragment.text)


def test_the_list_shows_a_pair_and_what_can_be_done_with_each(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync")
    new = cast.rio.rotate(old, overlap="7d")
    page = cast.rio.get("keys").text
    rows = dict(re.findall(r'<tbody[^>]*id="key-(key_\w+)"(.*?)</tbody>', page, re.DOTALL))
    assert list(rows) == [new.id, old.id]
    offered = {key_id: set(re.findall(r'id="key-key_\w+?-(\w+)"', row)) - {"link"} for key_id, row in rows.items()}
    assert offered == {old.id: {"retire", "extend"}, new.id: {"replace", "edit", "deactivate", "delete"}}
    assert "(old)" in rows[old.id]
    assert "Retiring in 7 days" in rows[old.id]


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_an_overlap_is_extended_and_ended_from_the_list(
    cast: Cast, database: Database, headers: dict[str, str]
) -> None:
    old = cast.rio.generate()
    cast.rio.rotate(old, overlap="1h")
    ends = [row["retires_at"] for row in everything(database)["api_key"] if row["public_id"] == old.id]
    extended = cast.rio.post(f"keys/{old.id}/extend", headers=headers)
    assert extended.status_code == (200 if headers else 303)
    later = [row["retires_at"] for row in everything(database)["api_key"] if row["public_id"] == old.id]
    assert later > ends
    retired = cast.rio.post(f"keys/{old.id}/retire", headers=headers)
    assert retired.status_code == (200 if headers else 303)
    receipt = retired.text if headers else cast.rio.get(retired.headers["Location"]).text
    assert f'id="key-{old.id}-receipt"' in receipt
    assert re.search(r"The old “.*” was retired", receipt)
    assert cast.call("GET", STATUS, old).status_code == 401
    assert old.id not in cast.rio.get("keys").text
    for action in ("retire", "extend"):
        late = cast.rio.post(f"keys/{old.id}/{action}", headers=headers)
        assert late.status_code == 409
        assert cast.rio.get(f"keys/{old.id}/{action}", headers=headers).status_code in (404, 409)


def test_an_extension_names_the_moment_that_it_leads_to(cast: Cast) -> None:
    old = cast.rio.generate()
    cast.rio.rotate(old, overlap="1h")
    asked = cast.rio.get(f"keys/{old.id}/extend").text
    (then,) = re.findall(r"Extended, it stops on <strong>.*?>([^<]+)</time>", asked)
    cast.rio.post(f"keys/{old.id}/extend")
    told = unescape(cast.rio.get("keys").text)
    assert "The old “" in told
    assert f"works longer: until {then}." in told


def test_a_key_that_is_not_being_replaced_has_no_overlap_to_end(cast: Cast) -> None:
    key = cast.rio.generate()
    for action in ("retire", "extend"):
        assert cast.rio.get(f"keys/{key.id}/{action}").status_code == 409
        assert cast.rio.post(f"keys/{key.id}/{action}").status_code == 409
    assert cast.call("GET", STATUS, key).status_code == 200


def test_the_overlap_ends_by_itself(cast: Cast) -> None:
    old = cast.rio.generate()
    new = cast.rio.rotate(old, overlap="1h")
    with time_machine.travel(timedelta(minutes=59), tick=True):
        assert cast.call("GET", STATUS, old).status_code == 200
    with time_machine.travel(timedelta(minutes=61), tick=True):
        assert [cast.call("GET", STATUS, key).status_code for key in (old, new)] == [401, 200]


def test_an_extension_ends_after_thirty_days(cast: Cast) -> None:
    old = cast.rio.generate()
    cast.rio.rotate(old, overlap="until")
    assert f"{old.id}/extend" not in cast.rio.get("keys").text + cast.rio.get(f"keys/{old.id}").text
    page = cast.rio.post(f"keys/{old.id}/extend")
    assert page.status_code == 409
    assert "cannot be extended further" in page.text


# --- A text that was lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, IN_DIALOG])
def test_an_unused_key_is_replaced_and_the_new_text_shown_once(
    cast: Cast, database: Database, headers: dict[str, str]
) -> None:
    lost = cast.rio.generate(name="CRM sync")
    form = answers(cast.rio, lost, "replace")
    shown = cast.rio.post(f"keys/{lost.id}/replace", form, headers=headers)
    assert shown.status_code == 200
    new = made(shown.text)
    assert [cast.call("GET", STATUS, key).status_code for key in (lost, new)] == [401, 200]
    again = cast.rio.post(f"keys/{lost.id}/replace", form, headers=headers)
    assert again.status_code == 410
    assert not KEY_TEXT.search(again.text)
    assert len(everything(database)["api_key"]) == 2


def test_the_answer_that_was_lost_leads_to_a_new_text(cast: Cast) -> None:
    """The connection broke while the key was made: sending the form again offers to replace the key."""
    form = cast.rio.form()
    cast.rio.post("keys", form)
    again = cast.rio.post("keys", form)
    assert again.status_code == 410
    (link,) = set(re.findall(r'href="(/w/acme/api/keys/key_\w+/replace)"', again.text))
    page = cast.rio.get(link)
    assert page.status_code == 200
    form_id = re.findall(r'name="form_id"\s+value="([^"]+)"', page.text)[0]
    assert KEY_TEXT.search(cast.rio.post(link, {"form_id": form_id}).text)


def test_a_key_in_use_is_not_replaced(cast: Cast, database: Database) -> None:
    key = cast.rio.generate()
    form = answers(cast.rio, key, "replace")
    cast.call("GET", STATUS, key)
    cast.app.extensions["portal"].usage.flush()
    before = kept(database)
    refused = cast.rio.post(f"keys/{key.id}/replace", form)
    assert refused.status_code == 409
    assert "Rotate this one instead" in refused.text
    assert kept(database) == before
    assert cast.call("GET", STATUS, key).status_code == 200


# --- Whose keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["rotate", "replace", "extend", "retire"])
def test_others_neither_rotate_nor_see_a_key_and_an_admin_may_only_stop_it(
    cast: Cast, database: Database, action: str
) -> None:
    key = cast.rio.generate()
    if action in ("extend", "retire"):
        cast.rio.rotate(key, overlap="7d")
    before = kept(database)
    for person, status in ((cast.max, 404), (cast.lea, 404), (cast.zoe, 404), (cast.ana, 403)):
        if person is cast.ana and action == "retire":
            continue
        sent = {"overlap": "0", "scopes": ["tasks:read"], "expires": "90d", "form_id": "form-12345678"}
        for reply in (person.get(f"keys/{key.id}/{action}"), person.post(f"keys/{key.id}/{action}", sent)):
            assert reply.status_code == status, person.name
            assert not KEY_TEXT.search(reply.text)
    assert kept(database) == before
    refused = [row for row in everything(database)["audit_event"] if row["outcome"] == "refused"]
    assert {row["target_id"] for row in refused} == {key.id}
    assert len(refused) >= 3
    if action == "retire":
        assert cast.ana.post(f"keys/{key.id}/retire").status_code == 303
        assert cast.call("GET", STATUS, key).status_code == 401


def test_a_lead_rotates_the_key_of_her_api_member(cast: Cast, database: Database) -> None:
    sync = next(row["public_id"] for row in everything(database)["member"] if row["name"] == "Nightly sync")
    old = cast.lea.generate(owner=sync, name="Sync")
    new = cast.lea.rotate(old)
    assert cast.call("GET", STATUS, new).get_json()["data"]["member"]["name"] == "Nightly sync"
    assert cast.ana.post(f"keys/{old.id}/retire").status_code == 303
    assert cast.call("GET", STATUS, old).status_code == 401


def test_the_reveal_names_the_key_that_goes_and_the_next_page_says_so(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync")
    shown = cast.rio.post(f"keys/{old.id}/rotate", answers(cast.rio, old))
    four = old.text[47:51]
    assert re.search(rf'<p id="replaces">Replaces …{four}, which\s+stops on <time', shown.text)
    new = made(shown.text)
    assert re.search(rf'href="/w/acme/api/keys/{new.id}"\s+data-leave>See who still uses the old key', shown.text)
    told = f"“CRM sync” was replaced. The old key (…{four}) stops on "
    assert told in unescape(cast.rio.get("keys").text)
    assert told not in unescape(cast.rio.get("keys").text)


# --- The fix-it form ------------------------------------------------------------------------------------------------


def test_a_refused_call_leads_to_a_form_that_replaces_the_key_with_the_missing_scope(cast: Cast) -> None:
    old = cast.lea.generate(["tasks:read"], name="CRM sync")
    refused = cast.call("POST", "/apps/tasks/records", old, json={"fields": {"title": "x"}})
    url = refused.get_json()["error"]["fixUrl"]
    page = cast.lea.get(url[url.index("/w/") :]).text
    ticked = re.findall(r'name="scopes"\s+value="([^"]+)"[^>]*\schecked', page)
    assert sorted(ticked) == ["tasks:read", "tasks:write"]
    assert re.search(rf'name="replaces"[^>]*value="{old.id}"', page)
    form_id = re.findall(r'name="form_id"\s+value="([^"]+)"', page)[0]
    form = cast.lea.form(name="CRM sync", scopes=ticked, replaces=old.id, overlap="1h", form_id=form_id)
    new = made(cast.lea.post("keys", form).text)
    assert cast.call("POST", "/apps/tasks/records", new, json={"fields": {"title": "x"}}).status_code == 201
    assert cast.call("GET", STATUS, old).status_code == 200


def test_the_fix_it_form_of_somebody_elses_key_is_an_ordinary_form(cast: Cast) -> None:
    key = cast.max.generate(["leads:read"])
    page = cast.rio.get(f"keys/new?from={key.id}&add=tasks:read")
    assert page.status_code == 200
    assert key.id not in page.text
    refused = cast.rio.post("keys", cast.rio.form(replaces=key.id, overlap="0"))
    assert refused.status_code == 404
    assert cast.call("GET", STATUS, key).status_code == 200


def test_the_form_that_adds_a_scope_says_what_it_replaces_and_keeps_saying_so(cast: Cast) -> None:
    old = cast.lea.generate(["tasks:read"], name="Report bot")
    page = cast.lea.get(f"keys/new?from={old.id}&add=tasks:write").text
    title = "Replace Report bot and add tasks:write"
    assert re.search(rf"<title>\s*{title}", page)
    assert "Scopes cannot be added to a key." in page
    assert re.search(r"The old key \(…\w{4}\) stops\s+<strong>on <time", page)
    form = cast.lea.form(name="", scopes=["tasks:read"], add="tasks:write", **{"from": old.id})
    assert "and add" not in cast.lea.post("keys", form).text  # the scope was taken out
    form = cast.lea.form(name="", scopes=["tasks:read", "tasks:write"], add="tasks:write", **{"from": old.id})
    again = cast.lea.post("keys", form).text
    assert title in again
    assert "The old key (" not in again  # it is not to be replaced


def test_an_app_that_nobody_knows_leads_to_the_path_and_replaces_nothing(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read"], name="Report bot")
    url = cast.call("GET", "/apps/chairs/records", key).get_json()["error"]["fixUrl"]
    page = cast.lea.get(url[url.index("/w/") :]).text
    assert re.search(r"There is no app\s+<code[^>]*>chairs</code>\s+that you could let a key use\.", page)
    assert not re.search(r'name="replaces"[^>]*\schecked', page)
    known = cast.lea.get(f"keys/new?from={key.id}&add=tasks:write").text
    assert "There is no app" not in known
    assert re.search(r'name="replaces"[^>]*\schecked', known)


def test_a_link_that_was_made_for_a_colleagues_key_says_that_it_replaces_nothing(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read"], name="Report bot")
    url = cast.call("POST", "/apps/tasks/records", key, json={"fields": {}}).get_json()["error"]["fixUrl"]
    link = url[url.index("/w/") :]
    unseen, seen, own = (person.get(link).text for person in (cast.rio, cast.ana, cast.lea))
    assert "The link that led here is for a key that you cannot see." in unseen
    assert "Report bot" not in unseen
    assert re.search(r"is for a key of .*Lea Okoro.*, who alone can replace it\.", seen)
    assert all("a key of your own and replaces nothing" in page for page in (unseen, seen))
    assert "The link that led here" not in own
    carried = dict(re.findall(r'name="(add|linked)" value="([^"]+)"', unseen))
    again = cast.rio.post("keys/new/review", cast.rio.form(name="Mine", **carried))
    assert "that you cannot see" in again.text
    cast.lea.post(f"keys/{key.id}/delete")
    assert "The link that led here" not in cast.ana.get(link).text


def test_the_form_that_adds_a_scope_to_half_of_a_pair_leads_to_the_pair(cast: Cast) -> None:
    old = cast.lea.generate(["tasks:read"], name="Report bot")
    new = cast.lea.rotate(old, overlap="7d")
    for key in (old, new):
        page = cast.lea.get(f"keys/new?from={key.id}&add=tasks:write").text
        assert "is being rotated. Retire the old key first." in page
        assert f'href="/w/acme/api/keys/{old.id}"' in page
        assert "is being rotated" not in cast.lea.get(f"keys/new?from={key.id}").text
