"""The pages of the review, of the policy, and of a workspace's solutions and apps."""

import json
import re
from datetime import UTC, datetime
from html import unescape

import pytest
from flask import Flask
from sqlalchemy import update
from werkzeug.test import TestResponse

from portal.store.database import Database
from portal.store.models import ApiKey
from tests.cast import HTMX, Cast
from tests.web.looking import kept

SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}})


@pytest.mark.both
def test_the_review_names_findings_and_one_thing_to_do(cast: Cast) -> None:
    cast.max.generate(["leads:read"], name="Without an end", expires="never")
    page = cast.max.get("/w/acme/review").text
    assert "Without an end" in page
    assert "Never expires" in page
    (advised,) = re.findall(r'href="([^"]*)"[^>]*>\s*Rotate with expiry', page)
    form = cast.max.get(advised).text
    assert re.search(r'name="expires"\s+value="90d"[^>]*checked', form)
    assert "Nothing needs attention." in cast.rio.get("/w/acme/review").text
    assert "No key has this finding." in cast.max.get("/w/acme/review?finding=stale").text


def test_the_review_tells_moments_with_their_zone_and_prints_one_footer(cast: Cast, database: Database) -> None:
    old, young = (cast.max.generate(["leads:read"], name=name, expires="never") for name in ("Old", "Young"))
    assert cast.call("GET", "/me", young).status_code == 200
    cast.app.extensions["portal"].usage.flush()
    with database.transaction() as session:
        used = datetime(2026, 8, 20, 14, 50, tzinfo=UTC)
        session.execute(update(ApiKey).where(ApiKey.public_id == old.id).values(created_at=used, last_used_at=used))
    page = cast.max.get("/w/acme/review").text
    said = [re.sub(r"<[^>]+>", "", each) for each in re.findall(r"<p><span class=\"tag.*?</p>", page)]
    moment = r"\d+ \w{3} \d{4}, \d\d:\d\d.UTC"
    assert any(re.fullmatch(rf"Unused for 30 days It was last used {moment}\.", each) for each in said)
    assert any(
        re.fullmatch(rf"Never expires Made just now {moment}, last used just now {moment}\.", each) for each in said
    )
    assert page.count("printed ") == 1
    assert re.search(r"</bdi> key review, printed", page)


@pytest.mark.both
def test_a_finding_that_looks_fine_is_gone_and_needs_a_note(cast: Cast) -> None:
    key = cast.max.generate(["leads:read"], expires="never")
    path = f"/w/acme/review/{key.id}/reviewed"
    assert cast.max.get(f"{path}?finding=never_expires").status_code == 200
    assert cast.max.post(path, {"finding": "never_expires", "note": " "}).status_code == 422
    assert cast.max.post(path, {"finding": "never_expires", "note": "yearly job"}).status_code == 303
    assert "Nothing needs attention." in cast.max.get("/w/acme/review").text
    assert cast.max.post(path, {"finding": "anything", "note": "x"}).status_code == 404
    assert cast.rio.post(path, {"finding": "stale", "note": "x"}).status_code == 404


@pytest.mark.both
def test_many_keys_are_stopped_at_once_and_busy_ones_only_when_ticked(app: Flask, cast: Cast) -> None:
    idle, busy = (cast.max.generate(["leads:read"], name=name, expires="never") for name in ("Idle", "Busy"))
    cast.call("GET", "/me", busy)
    app.extensions["portal"].usage.flush()
    page = cast.max.get(f"/w/acme/review/deactivate?key={idle.id}&key={busy.id}").text
    ticked = [part.split('"')[0] for part in page.split('name="key" value="')[1:] if " checked" in part.split(">")[0]]
    assert ticked == [idle.id]
    assert cast.max.post("/w/acme/review/deactivate", {"key": ticked}).status_code == 303
    assert cast.call("GET", "/me", idle).status_code == 401
    assert cast.call("GET", "/me", busy).status_code == 200


def test_stopping_many_stops_none_when_one_is_not_ones_own(cast: Cast) -> None:
    mine, other = cast.max.generate(["leads:read"]), cast.rio.generate()
    assert cast.max.post("/w/acme/review/deactivate", {"key": [mine.id, other.id]}).status_code == 404
    assert cast.call("GET", "/me", mine).status_code == 200
    assert cast.call("GET", "/me", other).status_code == 200


def test_stopping_many_goes_past_what_is_stopped_or_named_twice(cast: Cast) -> None:
    names = ("Ended", "Halted", "Running")
    ended, halted, running = (cast.max.generate(["leads:read"], name=name) for name in names)
    cast.max.post(f"keys/{ended.id}/delete")
    cast.max.post(f"keys/{halted.id}/deactivate")
    chosen = [running.id, ended.id, halted.id, running.id]
    assert cast.max.post("/w/acme/review/deactivate", {"key": chosen}).status_code == 303
    assert cast.call("GET", "/me", running).status_code == 401
    page = unescape(cast.max.get("/w/acme/review").text)
    assert "1 key is deactivated." in page
    (told,) = re.findall("Stopped already: (.*?)[.]", page)
    assert sorted(told.split(", ")) == ["“Ended”", "“Halted”"]


def test_stopping_many_that_are_stopped_already_names_as_many_as_a_cookie_holds(cast: Cast) -> None:
    """A browser leaves a cookie of more than 4,093 bytes, and a proxy may refuse the answer."""
    names = ("".join(chr(0x4E00 + 331 * n + 7 * each) for each in range(60)) for n in range(20))
    chosen = [cast.max.generate(["leads:read"], name=name).id for name in names]
    for _ in range(2):
        answer = cast.max.post("/w/acme/review/deactivate", {"key": chosen})
    assert max(map(len, answer.headers.getlist("Set-Cookie"))) < 4093
    assert "and 15 more." in cast.max.get("/w/acme/review").text


def test_a_page_that_is_not_there_says_so_once(cast: Cast) -> None:
    page = cast.ana.get("/w/nowhere/review")
    assert page.status_code == 404
    assert page.text.count("We cannot find that") == 2  # title and heading
    assert "It may have been deleted" in page.text


@pytest.mark.both
def test_the_policy_is_previewed_saved_and_obeyed_by_the_form(cast: Cast) -> None:
    cast.rio.generate(name="Endless", expires="never")
    assert "No existing key breaks this policy" in cast.ana.get("/w/acme/policy").text
    preview = cast.ana.post("/w/acme/policy/preview", {"max_key_days": "30", "admins_own_live": "yes"}).text
    assert "1 existing key would break this policy" in preview
    assert "Endless" in preview
    assert cast.ana.post("/w/acme/policy", {"max_key_days": "30", "admins_own_live": "yes"}).status_code == 303
    form = cast.rio.get("keys/new").text
    assert "live for 30 days at most" in form
    assert 'value="never"' not in form
    assert cast.rio.post("keys", cast.rio.form(expires="never")).status_code == 422
    assert cast.ana.post("/w/acme/policy", {"max_key_days": "7", "admins_own_live": "yes"}).status_code == 422


def test_a_live_key_that_the_policy_forbids_is_said_to_be_so_before_the_button_is_pressed(cast: Cast) -> None:
    answers = cast.ana.form(scopes=["leads:read"], environment="live")
    as_a_part = {"HX-Request": "true"}
    assert "will be able to" in cast.ana.post("keys/new/review", answers, headers=as_a_part).text
    cast.ana.post("/w/acme/policy", {"max_key_days": "", "admins_own_live": "no"})
    review = cast.ana.post("keys/new/review", answers, headers=as_a_part).text
    assert "Administrators of Acme own no live keys." in review
    assert "will be able to" not in review


def test_before_and_after_a_key_is_stopped_its_page_says_whether_the_policy_lets_it_start_again(cast: Cast) -> None:
    endless, usual = (cast.rio.generate(name=f"For {life}", expires=life) for life in ("never", "30d"))
    cast.ana.post("/w/acme/policy", {"max_key_days": "30", "admins_own_live": "yes"})
    said = "Keys in Acme live for 30 days at most, and this one never expires. Generate a similar key."
    assert f"You cannot reactivate it later. {said}" in cast.rio.get(f"keys/{endless.id}/deactivate").text
    assert f"It cannot be reactivated. {said}" in cast.rio.post(f"keys/{endless.id}/deactivate", headers=HTMX).text
    assert f"It cannot be reactivated. {said}" in cast.rio.get(f"keys/{endless.id}/receipt").text
    offered = cast.rio.get(f"keys/{endless.id}/reactivate").text
    assert f"It cannot be reactivated. {said}" in unescape(re.sub("<[^>]+>", "", offered))
    assert f"keys/new?from={endless.id}" in offered
    assert "<span>Reactivate " not in offered
    refused = cast.rio.post(f"keys/{endless.id}/reactivate")
    assert refused.status_code == 409
    assert said in refused.text
    assert "You can reactivate it later." in cast.rio.get(f"keys/{usual.id}/deactivate").text
    assert "You can reactivate it at any time." in cast.rio.post(f"keys/{usual.id}/deactivate", headers=HTMX).text
    assert cast.rio.post(f"keys/{usual.id}/reactivate").status_code == 303


def test_whoever_stops_anothers_key_reads_that_only_its_owner_can_reactivate_it(cast: Cast) -> None:
    mine, theirs = cast.ana.generate(name="Mine"), cast.rio.generate(name="Theirs")
    stop, only = f"keys/{theirs.id}/deactivate", "Only Rio Tanaka can reactivate it"
    bulk = "/w/acme/review/deactivate?key="
    both = cast.ana.get(f"{bulk}{mine.id}&key={theirs.id}").text
    assert "Each can be reactivated, another person’s only by its owner." in both
    pages = [cast.ana.get(bulk + theirs.id), cast.ana.get(stop), cast.ana.post(stop, headers=HTMX)]
    pages += [cast.ana.get(f"keys/{theirs.id}/receipt"), cast.ana.get(f"keys/{theirs.id}")]
    for page in pages:
        assert f"{only}." in re.sub("<[^>]+>", "", page.text)
        assert "You can reactivate" not in page.text
        assert "Generate a similar key to go on" not in page.text


def test_a_policy_form_that_is_out_of_date_changes_nothing(cast: Cast) -> None:
    cast.ana.post("/w/acme/policy", {"max_key_days": "90", "admins_own_live": "yes"})
    stale = {"max_key_days": "365", "admins_own_live": "no", "was_days": "", "was_live": "yes"}
    assert cast.ana.post("/w/acme/policy", stale).status_code == 409
    assert "90 days" in cast.ana.get("/w/acme/workspace").text


def test_an_administrator_adds_a_solution_and_an_app_that_keys_can_reach(cast: Cast) -> None:
    assert cast.ana.post("/w/acme/solutions/new", {"name": "People", "slug": "people"}).status_code == 303
    app = {"name": "Staff", "slug": "staff", "description": "Who works here", "schema": SCHEMA}
    assert cast.ana.post("/w/acme/solutions/people/apps/new", app).status_code == 303
    key = cast.ana.generate(["staff:read", "staff:write"])
    answer = cast.call("POST", "/apps/staff/records", key, json={"fields": {"name": "Ida"}})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("path", "slug", "words"),
    [
        ("solutions/new", "sales", "Acme has a solution sales already."),
        ("solutions/operations/apps/new", "leads", "The workspace has an app leads already."),
    ],
)
def test_a_short_name_that_is_taken_is_told_beside_it_and_the_answers_are_kept(
    path: str, slug: str, words: str, cast: Cast
) -> None:
    typed = {"name": "Kept name", "slug": slug, "description": "Kept words"}
    if "apps" in path:
        typed["schema"] = '{"type": "object", "title": "Kept schema"}'
    reply = cast.ana.post(f"/w/acme/{path}", typed)
    assert reply.status_code == 422
    assert words in reply.text
    assert '<a href="#set-slug"' in reply.text
    assert all(each in unescape(reply.text) for each in typed.values())


# Each part stands for two of the one before: to hold a record to the last would take longer than the sun has.
DOUBLING = {
    "type": "object",
    "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n - 1}"} if n else {}] * 2} for n in range(31)},
    "$ref": "#/$defs/d30",
}


def test_a_pattern_that_never_ends_holds_up_nobody(cast: Cast) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}}}
    app = {"name": "Slow", "slug": "slow", "description": "", "schema": json.dumps(schema)}
    assert cast.ana.post("/w/acme/solutions/sales/apps/new", app).status_code == 303
    key = cast.max.generate(["slow:write"])
    reply = cast.call("POST", "/apps/slow/records", key, json={"fields": {"name": "a" * 100_000 + "b"}})
    assert reply.status_code == 422
    assert "takes too long" in reply.text
    assert cast.call("POST", "/apps/slow/records", key, json={"fields": {"name": "aaa"}}).status_code == 201


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"name": ""}, "Enter a name"),
        ({"slug": "No Slug"}, "A short name is 2 to 40"),
        ({"schema": "{"}, "This is not JSON"),
        ({"schema": '{"type": "string"}'}, "must be an object"),
        ({"schema": '{"type": "object", "properties": {"a\\ud800": {}}}'}, "lone surrogates"),
        ({"schema": '{"type": "object", "properties": {"a": {"multipleOf": NaN}}}'}, "must be finite"),
        (
            {"schema": '{"type": "object", "properties": {"sku": {"pattern": "("}}}'},
            "The pattern ( at $.properties.sku.pattern cannot be read as a regular expression",
        ),
        ({"schema": json.dumps(DOUBLING)}, "refer to each other too often"),
        ({"description": "x" * 141}, "at most 140"),
    ],
)
def test_an_app_that_cannot_be_is_refused_with_its_answers_kept(
    answers: dict[str, str], words: str, cast: Cast
) -> None:
    app = {"name": "Kept name", "slug": "kept", "description": "", "schema": SCHEMA} | answers
    reply = cast.ana.post("/w/acme/solutions/sales/apps/new", app)
    assert reply.status_code == 422
    assert words in reply.text
    assert answers.get("name", "Kept name") in reply.text


@pytest.mark.both
def test_a_schema_is_changed_only_where_the_records_that_stand_fit_it(cast: Cast) -> None:
    strict = json.dumps({"type": "object", "required": ["missing"]})
    reply = cast.ana.post("/w/acme/apps/leads/edit", {"name": "Leads", "description": "", "schema": strict})
    assert reply.status_code == 422
    assert "would not fit this schema" in reply.text
    renamed = {"name": "Prospects", "description": "New", "schema": '{"type": "object"}'}
    assert cast.ana.post("/w/acme/apps/leads/edit", renamed).status_code == 303
    assert "Prospects" in cast.max.get("/w/acme").text
    assert cast.ana.post("/w/acme/solutions/sales/edit", {"name": "Selling", "description": ""}).status_code == 303
    assert "Selling" in cast.max.get("/w/acme").text


def was_on(reply: TestResponse) -> str:
    """Read what a form says that it showed."""
    found = re.search(r'name="was"\s+value="([^"]+)"', reply.text)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("path", "typed", "meanwhile", "now"),
    [
        ("apps/leads/edit", {"description": "Typed words"}, {"schema": SCHEMA}, '"type": "string"'),
        ("solutions/sales/edit", {"description": "Typed words"}, {"description": "Who buys"}, "Who buys"),
        ("solutions/sales/edit", {"name": "Typed name", "description": ""}, {"description": "Who buys"}, "Who buys"),
    ],
)
def test_a_form_that_showed_something_older_keeps_its_answers_and_says_what_stands_now(
    path: str, typed: dict[str, str], meanwhile: dict[str, str], now: str, cast: Cast, database: Database
) -> None:
    path, kind = f"/w/acme/{path}", {"name": "Named", "schema": '{"type": "object"}'}
    form = kind | typed | {"was": was_on(cast.ana.get(path))}
    assert cast.ana.post(path, kind | meanwhile).status_code == 303
    before = kept(database)
    reply = cast.ana.post(path, form)
    assert reply.status_code == 409
    assert "Somebody changed “Named” a moment ago. Nothing was saved." in reply.text
    answers, stands = unescape(reply.text), unescape(reply.text.partition("what stands now")[2].partition("</dl>")[0])
    assert all(f'value="{each}"' in answers for each in typed.values())
    assert now in stands
    assert "Named" not in stands or "name" in typed  # what is the same is not told
    assert kept(database) == before
    assert cast.ana.post(path, form | {"was": was_on(reply)}).status_code == 303


def test_a_schema_that_is_refused_does_not_make_an_old_form_new(cast: Cast, database: Database) -> None:
    path, form = "/w/acme/apps/leads/edit", {"name": "Leads", "schema": "{"}
    form["was"] = was_on(cast.ana.get(path))
    assert cast.ana.post(path, {"name": "Prospects", "schema": SCHEMA}).status_code == 303
    before = kept(database)
    refused = cast.ana.post(path, form)
    assert refused.status_code == 422
    assert cast.ana.post(path, form | {"schema": SCHEMA, "was": was_on(refused)}).status_code == 409
    assert kept(database) == before


@pytest.mark.parametrize("path", ["workspace", "policy", "solutions/new", "solutions/sales/edit", "apps/leads/edit"])
def test_only_administrators_set_up_the_workspace(path: str, cast: Cast) -> None:
    for person in (cast.lea, cast.max):
        assert person.get(f"/w/acme/{path}").status_code == 403
        if path != "workspace":
            assert person.post(f"/w/acme/{path}", {"name": "Mine", "slug": "mine", "schema": "{}"}).status_code == 403
    assert cast.zoe.get(f"/w/acme/{path}").status_code == 404
    assert "Workspace</a>" not in cast.lea.get("/w/acme").text
