"""The pages of a key and of the list: what it did, its name, its first request, search; impact before an ending."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from sqlalchemy import text

from portal.store.database import Database
from tests.cast import HTMX, Cast, MadeKey, Person
from tests.web.looking import everything, kept


def flush(cast: Cast) -> None:
    cast.app.extensions["portal"].usage.flush()


def words(page: str) -> str:
    """Read a page as a person does: no markup, single spaces."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def later(**distance: float) -> time_machine.travel:
    return time_machine.travel(datetime.now(UTC) + timedelta(**distance))


@contextmanager
def without(database: Database, table: str) -> Iterator[None]:
    """Take a table away, as a broken disk would."""

    def rename(old: str, new: str) -> None:
        with database.transaction() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename(table, "elsewhere")
    yield
    rename("elsewhere", table)


# --- Overview, requests, history ------------------------------------------------------------------------------------


def test_the_pages_of_a_key_are_pages_and_lead_to_each_other(cast: Cast) -> None:
    key = cast.rio.generate(note="cron on web-3")
    for part in ("", "/requests", "/history"):
        page = cast.rio.get(f"keys/{key.id}{part}")
        assert page.status_code == 200
        assert page.text.count("<h1") == 1
        for other in ("", "/requests", "/history"):
            assert f'href="/w/acme/api/keys/{key.id}{other}"' in page.text
    assert "cron on web-3" in cast.rio.get(f"keys/{key.id}").text
    fragment = cast.rio.get(f"keys/{key.id}/requests", headers=HTMX).text
    assert re.match(r'\s*<div\s+id="requests"', fragment)
    assert "<html" not in fragment


def test_the_overview_tells_when_each_scope_was_last_used_and_whether_it_works(cast: Cast) -> None:
    key = cast.max.generate(["leads:read", "tasks:read"])
    cast.call("GET", "/apps/leads/records", key)
    flush(cast)
    page = cast.max.get(f"keys/{key.id}").text
    rows = {
        found[1]: words(row)
        for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)
        if (found := re.search(r"<code[^>]*>(\w+:\w+)</code>", row))
    }
    assert "just now" in rows["leads:read"]
    assert "Never" in rows["tasks:read"]
    assert all("Yes" in row for row in rows.values())


def test_scopes_without_use_in_sixty_days_suggest_a_narrower_key(cast: Cast) -> None:
    key = cast.max.generate(["leads:read", "tasks:read"], expires="1y")
    assert "never used in 60 days" not in cast.max.get(f"keys/{key.id}").text
    with later(days=61):
        cast.call("GET", "/apps/leads/records", key)
        flush(cast)
        cast.max.sign_in()
        page = words(cast.max.get(f"keys/{key.id}").text)
    assert "1 scope was never used in 60 days" in page


def test_the_chart_and_its_table_tell_the_same_numbers(cast: Cast) -> None:
    key = cast.rio.generate()
    for path, times in (("/apps/tasks/records", 3), ("/apps/leads/records", 2)):
        for _ in range(times):
            cast.call("GET", path, key)
    flush(cast)
    for span, bars in (("24h", 24), ("7d", 7), ("30d", 30)):
        page = cast.rio.get(f"keys/{key.id}/requests?range={span}").text
        table = re.findall(r'<td class="num">([\d,]+)</td>', page)
        assert len(table) == 2 * bars
        assert (sum(map(int, table[::2])), sum(map(int, table[1::2]))) == (3, 2)
        assert "3 accepted" in words(page)
        assert "2 refused" in words(page)
    for odd in ("", "1y", "7d&range=24h", "%00"):
        assert cast.rio.get(f"keys/{key.id}/requests?range={odd}").status_code == 200


def test_a_denial_is_told_with_its_reason_and_the_way_on(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read"])
    for _ in range(3):
        cast.call("POST", "/apps/tasks/records", key, json={"fields": {}})
    cast.call("GET", "/apps/accounts/records", key)
    cast.call("POST", "/apps/leads/records", key, json={"fields": {}})
    flush(cast)
    page = cast.lea.get(f"keys/{key.id}/requests").text
    told = words(page)
    assert "403: lacks tasks:write" in told
    assert "× 3, this is the latest" in told
    assert f"keys/new?from={key.id}&amp;add=accounts:read" in page or f"add=accounts:read&amp;from={key.id}" in page
    assert "Ask an administrator for write in Sales." in told  # lea only reads it
    told = words(cast.ana.get(f"keys/{key.id}/requests").text)
    assert "Lea Okoro can generate a key with tasks:write." in told
    assert "Give Lea Okoro write in Sales first." in told
    assert "Ask an administrator" not in told


def test_a_denial_for_an_app_that_one_cannot_see_sends_one_to_the_path_first(cast: Cast) -> None:
    said = "Check the name of the app in the path"
    for person, words_ in ((cast.rio, f"{said}, or ask an administrator for it."), (cast.ana, f"{said}.")):
        key = person.generate(["tasks:read"])
        cast.call("GET", "/apps/taskz/records", key)
        flush(cast)
        told = words(person.get(f"keys/{key.id}/requests").text)
        assert words_ in told
        assert "Ask an administrator for" not in told


@pytest.mark.parametrize(("stop", "said"), [("deactivate", "key deactivated"), ("delete", "key deleted")])
def test_a_request_after_a_stop_is_told_with_the_reason_that_its_sender_does_not_get(
    cast: Cast, stop: str, said: str
) -> None:
    key = cast.rio.generate()
    cast.rio.post(f"keys/{key.id}/{stop}")
    refused = cast.call("GET", "/me", key)
    assert (refused.status_code, said in refused.text) == (401, False)
    flush(cast)
    for path in (f"keys/{key.id}/requests", f"keys/{key.id}/receipt"):
        assert f"401: {said}" in cast.rio.get(path).text


def test_what_a_client_says_of_itself_is_shown_and_harms_no_page(cast: Cast) -> None:
    key = cast.rio.generate()
    cast.call("GET", "/me", key, headers={"User-Agent": "<script>alert(1)</script>"})
    cast.call("GET", "/apps/<img%20src=x>/records", key)
    cast.call("GET", "/apps/leads/records", key, headers={"User-Agent": "python-requests/2.32.3 (Linux)"})
    flush(cast)
    for part in ("", "/requests", "/delete", "/rotate", "/first-request"):
        page = cast.rio.get(f"keys/{key.id}{part}").text
        assert not re.search(r"<script>|<img", page)
    assert "python-requests/2.32.3" in cast.rio.get(f"keys/{key.id}/requests").text


def test_the_history_tells_who_did_and_tried_what(cast: Cast) -> None:
    key = cast.rio.generate(name="CRM sync")
    cast.rio.post(f"keys/{key.id}/edit", {"name": "CRM", "note": ""})
    cast.ana.post(f"keys/{key.id}/deactivate")
    cast.ana.post(f"keys/{key.id}/reactivate")
    cast.rio.post(f"keys/{key.id}/reactivate")
    cast.rio.rotate(key)
    for person in (cast.rio, cast.ana):
        page = person.get(f"keys/{key.id}/history").text
        told = re.findall(r"<p>(.*?)</p>", page[page.index('class="events"') : page.index("</main>")], re.DOTALL)
        assert [re.sub(r"\. Refused: .+", "", words(each).strip()) for each in told] == [
            "Rio Tanaka rotated this key",
            "Rio Tanaka reactivated this key",
            "Ana Ruiz tried to reactivate this key",
            "Ana Ruiz deactivated this key",
            "Rio Tanaka changed its name or note",
            "Rio Tanaka generated this key",
        ]
    assert "127.0.0.1" in cast.rio.get(f"keys/{key.id}/history").text
    cast.rio.post(f"keys/{key.id}/retire")
    cast.call("GET", "/me", key)
    flush(cast)
    newest = words(cast.rio.get(f"keys/{key.id}/history").text)
    assert "Requests with this key were refused: 401: key retired after its rotation" in newest


def test_a_key_that_was_only_refused_was_called_and_its_text_is_not_lost(cast: Cast, database: Database) -> None:
    key = cast.rio.generate(name="CRM sync")
    lost = f"/w/acme/api/keys/{key.id}/replace"
    form_id = re.findall(r'name="form_id"\s+value="([^"]+)"', cast.rio.get(f"keys/{key.id}/replace").text)[0]
    assert lost in cast.rio.get(f"keys/{key.id}").text
    for _ in range(2):
        assert cast.call("GET", "/apps/leads/records", key).status_code == 403
    flush(cast)
    for path in ("keys", f"keys/{key.id}", f"keys/{key.id}/requests", f"keys/{key.id}/deactivate"):
        page = cast.rio.get(path).text
        assert "Called, but never accepted: 2 refused" in words(page)
        assert "Never used" not in words(page)
        assert lost not in page
    before = kept(database)
    assert cast.rio.post(f"keys/{key.id}/replace", {"form_id": form_id}).status_code == 409
    assert kept(database) == before


def test_a_count_of_active_keys_says_how_many_are_old(cast: Cast) -> None:
    assert re.search(r"\b0 Active ", words(cast.rio.get("keys?state=active").text))
    cast.rio.rotate(cast.rio.generate(name="CRM sync"))
    cast.rio.generate(name="Billing")
    page = words(cast.rio.get("keys").text)
    assert "3 Active, 1 being rotated out" in page
    assert "of 2 keys and 1 old key" in page


@pytest.mark.parametrize("stop", ["deactivate", "delete"])
def test_the_page_of_a_stopped_key_says_when_and_by_whom(cast: Cast, stop: str) -> None:
    key = cast.rio.generate()
    cast.ana.post(f"keys/{key.id}/{stop}")
    page = words(cast.rio.get(f"keys/{key.id}").text)
    assert re.search(r"(Deactivated|Revoked) just now .*by Ana Ruiz", page)


def test_beside_a_new_key_that_does_not_work_the_old_one_is_not_safe_to_retire(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync")
    new = cast.rio.rotate(old, overlap="7d")
    assert "Its successor goes on." in words(cast.rio.get(f"keys/{old.id}/retire").text)
    cast.rio.post(f"keys/{new.id}/deactivate")
    with later(hours=2):
        cast.rio.sign_in()
        for page in (f"keys/{old.id}", f"keys/{new.id}", f"keys/{old.id}/retire"):
            told = words(cast.rio.get(page).text)
            assert "The new key does not work. Without the old key nothing does" in told
            assert "afe to retire" not in told
            assert "Safe once" not in told
        assert "Its successor does not work." in told


@pytest.mark.parametrize("ending", ["deactivate", "delete"])
def test_a_key_whose_successor_has_ended_is_retired_with_eyes_open(cast: Cast, ending: str) -> None:
    old = cast.rio.generate(name="CRM sync")
    new = cast.rio.rotate(old, overlap="7d")
    cast.rio.post(f"keys/{new.id}/{ending}")
    told = words(cast.rio.get(f"keys/{old.id}/retire").text)
    assert "The new key does not work." in told
    assert "Its successor does not work." in told


def test_the_pair_shows_who_still_uses_the_old_key_and_when_it_is_safe_to_retire(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync", expires="1y")
    new = cast.rio.rotate(old, overlap="7d")
    cast.call("GET", "/me", old, headers={"User-Agent": "cron/1"})
    cast.call("GET", "/me", new)
    flush(cast)
    for key in (old, new):
        page = words(cast.rio.get(f"keys/{key.id}").text)
        assert re.search(
            r"Still used: 127.0.0.1 , cron/1 – last call just now .*, 1 since the rotation ?\. Safe once", page
        )
        assert "Safe to retire" not in page
    assert "Still used:" in words(cast.rio.get(f"keys/{old.id}/retire").text)
    with later(hours=2):
        cast.rio.sign_in()
        cast.call("GET", "/me", new)
        flush(cast)
        for key in (old, new):
            assert "Safe to retire: last used 2 h ago" in words(cast.rio.get(f"keys/{key.id}").text)
        retire = words(cast.rio.get(f"keys/{old.id}/retire").text)
        assert "Safe to retire: last used 2 h ago" in retire
        assert "in the last 24 hours" not in retire
    with later(days=8):
        cast.rio.sign_in()
        assert 'aria-labelledby="pair-h"' not in cast.rio.get(f"keys/{new.id}").text


def test_the_pair_stays_until_the_old_key_has_been_quiet_for_a_day_after_its_end(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync", expires="1y")
    new = cast.rio.rotate(old, overlap="1h")
    needs = f"It needs the new key, …{new.text[47:51]}."

    def told(**distance: float) -> list[str]:
        with later(**distance):
            cast.rio.sign_in()
            pages = [cast.rio.get(f"keys/{key.id}").text for key in (new, old)]
        return [words(page) if 'aria-labelledby="pair-h"' in page else "" for page in pages]

    assert all("Ended 30 min ago" in page and "Nothing has called with it since." in page for page in told(hours=1.5))
    with later(hours=2):
        for _ in range(3):
            assert cast.call("GET", "/me", old, headers={"User-Agent": "oldapp/1.0"}).status_code == 401
        flush(cast)
    for page in told(hours=25.5):  # the overlap ended more than a day ago, the last call did not
        assert re.search(r"Still called since by 127.0.0.1 , oldapp/1.0 : 3 refused, last 1 day ago", page)
        assert needs in page
    with later(hours=3):
        cast.call("GET", "/me", old, headers={"User-Agent": "cron/1"})
        flush(cast)
    assert all("They need the new key" in page for page in told(hours=4))
    assert told(hours=28) == ["", ""]


def test_an_overlap_that_ends_before_the_old_key_can_be_quiet_is_not_called_safe_by_then(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync", expires="1y")
    new = cast.rio.rotate(old, overlap="1h")
    early = words(cast.rio.get(f"keys/{old.id}").text)
    cast.call("GET", "/me", old, headers={"User-Agent": "cron/1"})
    flush(cast)
    for page in (f"keys/{old.id}", f"keys/{new.id}", f"keys/{old.id}/retire"):
        told = words(cast.rio.get(page).text)
        assert re.search(r"It stops on .*, before it can be quiet for an hour: extend it, or these callers break", told)
        assert "Safe once" not in told
    assert "Safe to retire" not in early
    cast.rio.post(f"keys/{old.id}/extend")
    assert "Safe once nothing has used it for an hour" in words(cast.rio.get(f"keys/{old.id}").text)


@pytest.mark.both
def test_a_key_that_rotated_itself_and_then_ended_itself_names_its_successor(cast: Cast) -> None:
    old = cast.lea.generate(["tasks:read"], name="Night shift", self_rotate="yes")
    made = json.loads(cast.call("POST", "/me/rotate", old).text)["data"]
    new = MadeKey(made["id"], made["key"])
    assert cast.call("DELETE", "/me", old).status_code == 204
    page = cast.lea.get(f"keys/{old.id}").text
    told = words(page)
    assert re.search(rf"Revoked just now .* by itself ?; replaced by Night shift \(…{new.text[47:51]}\)", told)
    assert "Let its programs use that key." in told
    assert "Generate a similar key to go on" not in told
    assert f'href="/w/acme/api/keys/{new.id}"' in page
    assert re.search(r"</strong> <time", page)
    row = cast.lea.get("keys?state=revoked").text
    assert f"Replaced by Night shift …{new.text[47:51]}" in words(row)

    request_id = cast.call("GET", "/me", old).headers["X-Request-Id"]
    flush(cast)
    explained = cast.lea.get(f"/w/acme/explain?request_id={request_id}").text
    link = f"Let the program use the key that replaced it: Night shift (…{new.text[47:51]})"
    assert link in words(explained)
    assert f'href="/w/acme/api/keys/{new.id}"' in explained
    assert "Still called since by" in words(cast.lea.get(f"keys/{new.id}").text)

    told = words(cast.lea.get(f"keys/{new.id}").text)
    assert re.search(rf"by the key before it ?, …{old.text[47:51]} ?: it rotated itself", told)
    last = json.loads(cast.call("POST", "/me/rotate", new, json={"overlap": 0}).text)["data"]
    link = f"Let the program use the key that replaced it: Night shift (…{last['hint'][-4:]})"
    assert link in words(cast.lea.get(f"/w/acme/explain?request_id={request_id}").text)
    cast.lea.post(f"keys/{last['id']}/delete", {"name": "Night shift"})
    assert "Generate a similar key" in words(cast.lea.get(f"/w/acme/explain?request_id={request_id}").text)


def test_a_caller_that_has_moved_to_the_new_key_is_told_so_and_counts_begin_at_the_rotation(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync")
    for _ in range(2):
        cast.call("GET", "/me", old, headers={"User-Agent": "stays/1"})
    new = cast.rio.rotate(old, overlap="7d")
    for agent, key in (("stays/1", old), ("moves/1", old), ("moves/1", new)):
        cast.call("GET", "/me", key, headers={"User-Agent": agent})
    flush(cast)
    page = words(cast.rio.get(f"keys/{new.id}").text)
    assert re.search(
        r"Still used: 127.0.0.1 , stays/1 – last call just now [^,]*, \d\d:\d\d UTC ?\.", page
    )  # and no count
    assert re.search(r"127.0.0.1 , moves/1 has moved: last old request just now .* first new request just now", page)


def test_an_old_key_that_nothing_used_since_its_rotation_is_safe_to_retire(cast: Cast) -> None:
    never, busy = cast.rio.generate(name="Never"), cast.rio.generate(name="Busy")
    cast.call("GET", "/me", busy)
    flush(cast)
    cast.rio.rotate(never, overlap="7d")
    new = cast.rio.rotate(busy, overlap="7d")
    safe = "Not used since the rotation: safe to retire."
    assert safe in words(cast.rio.get(f"keys/{never.id}").text)
    assert safe not in words(cast.rio.get(f"keys/{busy.id}").text)  # nothing has had the time to use either key
    cast.call("GET", "/me", new)
    flush(cast)
    for page in (f"keys/{busy.id}", f"keys/{new.id}", f"keys/{busy.id}/retire"):
        assert safe in words(cast.rio.get(page).text)


def test_an_old_key_that_is_quiet_before_its_successor_is_used_is_not_safe_to_retire(cast: Cast) -> None:
    old = cast.rio.generate()
    cast.rio.rotate(old, overlap="7d")
    cast.call("GET", "/me", old)
    flush(cast)
    with later(hours=2):
        cast.rio.sign_in()
        page = words(cast.rio.get(f"keys/{old.id}").text)
    assert "Nothing uses the new key yet." in page
    assert "afe to retire" not in page


def test_the_page_of_a_retired_key_leads_to_its_successor(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync", expires="1y")
    new = cast.rio.rotate(old, overlap="7d")
    assert re.search(r"Stops in 7 days .*\(its own expiry would be ", words(cast.rio.get(f"keys/{old.id}").text))
    cast.rio.post(f"keys/{old.id}/retire")
    page = cast.rio.get(f"keys/{old.id}").text
    told = words(page)
    assert "CRM sync (old)" in told
    assert re.search(rf"Retired just now .*; replaced by CRM sync \(…{new.text[47:51]}\)", told)
    assert f'href="/w/acme/api/keys/{new.id}"' in page
    assert "No: retired" in told
    assert "to go on" not in told
    assert "expiry would be" not in told


@pytest.mark.parametrize(("stop", "said"), [("deactivate", "No: deactivated"), ("delete", "No: deleted")])
def test_no_scope_of_a_stopped_key_is_effective(cast: Cast, stop: str, said: str) -> None:
    key = cast.rio.generate()
    cast.rio.post(f"keys/{key.id}/{stop}")
    assert said in words(cast.rio.get(f"keys/{key.id}").text)


@pytest.mark.parametrize("part", ["", "/requests", "/history", "/impact", "/first-request", "/edit", "/receipt"])
def test_what_one_may_not_see_has_no_pages(shared_cast: Cast, part: str) -> None:
    key = shared_cast.max.generate(["leads:read"], name=f"Of max{part}")
    for person in (shared_cast.rio, shared_cast.lea, shared_cast.zoe):
        for headers in ({}, HTMX):
            assert person.get(f"keys/{key.id}{part}", headers=headers).status_code == 404
    assert shared_cast.zoe.get(f"/w/acme/api/keys/{key.id}{part}").status_code == 404
    assert shared_cast.max.get(f"keys/key_0{part}").status_code == 404


# --- The first request ----------------------------------------------------------------------------------------------


def first_of(person: Person, key: MadeKey, waited: str = "0") -> tuple[str, int | None]:
    """Ask as the page does; give what is told, and when it asks again."""
    answer = person.get(f"keys/{key.id}/first-request?waited={waited}", headers=HTMX)
    assert re.match(r'\s*<div\s+id="first-box"', answer.text)
    state = re.findall(r'data-state="(\w+)"', answer.text)[0]
    again = re.search(r'hx-trigger="every (\d+)s"', answer.text)
    return state, int(again[1]) if again else None


def test_the_page_waits_for_the_first_request_ever_slower_for_a_quarter_of_an_hour(cast: Cast) -> None:
    key = cast.rio.generate()
    asked = {}
    for seconds in (1, 30, 90, 240, 360, 840, 960):
        with later(seconds=seconds):
            asked[seconds] = first_of(cast.rio, key)
    assert asked == {
        1: ("waiting", 3),
        30: ("waiting", 3),
        90: ("waiting", 10),
        240: ("waiting", 10),
        360: ("waiting", 30),
        840: ("waiting", 30),
        960: ("stopped", None),
    }
    by_the_page = {waited: first_of(cast.rio, key, waited) for waited in ("61", "301", "901", "9" * 30, "-1", "long")}
    assert by_the_page == {
        "61": ("waiting", 10),
        "301": ("waiting", 30),
        "901": ("stopped", None),
        "9" * 30: ("stopped", None),
        "-1": ("waiting", 3),
        "long": ("waiting", 3),
    }


def test_the_first_request_is_told_refused_or_accepted_and_then_asked_for_no_more(cast: Cast) -> None:
    key = cast.rio.generate()
    reveal = cast.rio.get(f"keys/{key.id}")
    assert 'id="first"' in reveal.text
    cast.call("GET", "/apps/leads/records", key)
    flush(cast)
    assert first_of(cast.rio, key) == ("refused", 3)
    assert "403, lacks leads:read ." in words(cast.rio.get(f"keys/{key.id}/first-request").text)
    cast.call("GET", "/apps/tasks/records", key)
    flush(cast)
    assert first_of(cast.rio, key) == ("accepted", None)
    cast.call("GET", "/me", key)
    flush(cast)
    told = words(cast.rio.get(f"keys/{key.id}/first-request").text)
    assert "It works. First request: GET /api/v1/apps/tasks/records , 200, on live data" in told


@pytest.mark.once
def test_nobody_waits_for_the_first_request_of_a_key_that_ended(cast: Cast) -> None:
    key = cast.rio.generate()
    pages = [f"keys/{key.id}{part}" for part in ("", "/requests")]
    assert ['id="first"' in cast.rio.get(page).text for page in pages] == [True, True]
    cast.rio.post(f"keys/{key.id}/delete")
    assert cast.call("GET", "/me", key).status_code == 401
    flush(cast)
    opened = [cast.rio.get(page).text for page in pages]
    assert [('id="first"' in page, "API_KEY" in page) for page in opened] == [(False, False)] * 2
    assert "1 refused" in words(opened[1])


def test_the_reveal_waits_for_the_first_request(cast: Cast) -> None:
    page = cast.rio.post("keys", cast.rio.form()).text
    assert re.search(r'id="first-box"[^>]*every 3s.*data-state="waiting"', page, re.DOTALL)


# --- Impact ---------------------------------------------------------------------------------------------------------


def test_before_every_ending_stands_what_it_would_stop(cast: Cast) -> None:
    key = cast.max.generate(["leads:read", "leads:write"])
    old = cast.max.generate(["leads:read"], name="Old")
    cast.max.rotate(old)
    for each in (key, old):
        cast.call("GET", "/apps/leads/records", each, headers={"User-Agent": "cron/1"})
    cast.call("POST", "/apps/leads/records", key, json={"fields": {"name": "x"}})
    flush(cast)
    for action in ("deactivate", "delete", "rotate", "impact"):
        page = words(cast.max.get(f"keys/{key.id}/{action}").text)
        assert "Used 2 times in the last 24 hours" in page
        assert "1 write to Leads" in page
        assert "cron/1" in page
    assert "Used once in the last 24 hours" in words(cast.max.get(f"keys/{old.id}/retire").text)
    idle = cast.max.generate(["leads:read"], name="Idle")
    for action in ("deactivate", "delete", "impact"):
        assert "Never used." in words(cast.max.get(f"keys/{idle.id}/{action}").text)


@pytest.mark.both
def test_of_what_cannot_be_read_no_page_says_that_there_is_none(cast: Cast, database: Database) -> None:
    used, unused = cast.rio.generate(name="Used"), cast.rio.generate(name="Unused")
    cast.call("GET", "/me", used)
    flush(cast)
    assert "No request was refused" in words(cast.rio.get(f"keys/{used.id}/requests").text)
    with without(database, "refused_request"):
        for key in (used, unused):
            page = cast.rio.get(f"keys/{key.id}/requests")
            assert page.status_code == 200
            assert "Denials are unavailable right now" in words(page.text)
            assert "No request was refused" not in words(page.text)


@pytest.mark.both
@pytest.mark.parametrize("table", ["usage", "refused_request", "first_request"])
def test_a_key_whose_use_cannot_be_read_is_listed_and_shown(cast: Cast, database: Database, table: str) -> None:
    key = cast.rio.generate(name="CRM sync")
    cast.call("GET", "/apps/leads/records", key)
    flush(cast)
    cast.rio.rotate(key)
    unused = cast.rio.generate(name="Unused")
    with without(database, table):
        listed = cast.rio.get("keys")
        assert listed.status_code == 200
        assert ("Usage is unavailable right now. The keys still work." in words(listed.text)) == (table == "usage")
        assert f'href="/w/acme/api/keys/{key.id}/deactivate"' in listed.text or "Retire now" in listed.text
        for each in (key, unused):
            shown = cast.rio.get(f"keys/{each.id}")
            assert shown.status_code == 200
            assert "Usage is unavailable right now. The key still works." in words(shown.text)
            assert "ever used" not in words(shown.text)
        assert ("Never used" in words(listed.text)) == (table != "usage")
        moved = cast.rio.post(f"keys/{unused.id}/deactivate", headers=HTMX)
        assert (moved.status_code, "Deactivated" in words(moved.text)) == (200, True)
    assert "Usage is unavailable" not in words(cast.rio.get("keys").text)


@pytest.mark.both
def test_a_key_whose_use_cannot_be_read_is_treated_as_in_use_and_can_be_ended(
    cast: Cast, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    key, other = cast.rio.generate(name="CRM sync"), cast.rio.generate(name="Other")
    with without(database, "usage"):
        for action in ("deactivate", "delete", "impact"):
            page = cast.rio.get(f"keys/{key.id}/{action}")
            assert page.status_code == 200
            assert "Treat this key as in use" in words(page.text)
        assert "Type CRM sync to delete it" in words(cast.rio.get(f"keys/{key.id}/delete").text)
        unnamed = cast.rio.post(f"keys/{key.id}/delete")
        assert (unnamed.status_code, "Type CRM sync exactly" in words(unnamed.text)) == (422, True)
        assert cast.call("GET", "/me", key).status_code == 200
        assert cast.rio.post(f"keys/{key.id}/delete", {"name": "CRM sync"}).status_code == 303
        stopped = cast.rio.post(f"keys/{other.id}/deactivate")
        receipt = words(cast.rio.get(stopped.location).text)
        assert "“Other” is deactivated" in receipt
        assert "Requests accepted since not known: use cannot be read right now" in receipt
        assert [cast.call("GET", "/me", each).status_code for each in (key, other)] == [401, 401]
    said = "what keys did cannot be read; pages go on without"
    (told,) = (each for each in caplog.records if each.message.startswith(said))
    assert told.exc_info  # the error itself
    assert cast.rio.get(f"keys/{cast.rio.generate().id}/impact").status_code == 200
    assert caplog.messages.count(f"over: {said}") == 1


# --- Name and note --------------------------------------------------------------------------------------------------


def test_name_and_note_are_changed_and_nothing_else(cast: Cast, database: Database) -> None:
    key = cast.rio.generate(name="CRM sync", note="old")
    (before,) = everything(database)["api_key"]
    page = cast.rio.get(f"keys/{key.id}/edit")
    assert 'value="CRM sync"' in page.text
    sent = {"name": " Billing ", "note": "On web-3", "was_name": "CRM sync", "was_note": "old"}
    saved = cast.rio.post(f"keys/{key.id}/edit", {**sent, "scopes": "tasks:write", "expires": "never"})
    assert saved.status_code == 303
    (after,) = everything(database)["api_key"]
    changed = {column for column in after if after[column] != before[column]}
    assert changed == {"name", "name_folded", "note"}
    assert (after["name"], after["note"]) == ("Billing", "On web-3")
    assert cast.call("GET", "/me", key).status_code == 200
    row = cast.rio.post(f"keys/{key.id}/edit", {"name": "Again", "note": ""}, headers=HTMX)
    assert re.match(rf'\s*<tbody[^>]*id="key-{key.id}"', row.text)


def test_a_keys_forms_lead_to_its_page_and_that_to_a_list_that_holds_it(cast: Cast, database: Database) -> None:
    sync = next(row["public_id"] for row in everything(database)["member"] if row["name"] == "Nightly sync")
    of_rio, of_sync = cast.rio.generate(name="Of rio"), cast.lea.generate(name="Of the sync", owner=sync)

    def is_listed(person: Person, key: MadeKey, url: str) -> bool:
        return f'id="key-{key.id}"' in person.get(unescape(url)).text

    for person, key in ((cast.rio, of_rio), (cast.ana, of_rio), (cast.lea, of_sync)):
        (link,) = re.findall(rf'href="([^"]+)#key-{key.id}"', person.get(f"keys/{key.id}").text)
        assert is_listed(person, key, link)
        for action in ("deactivate", "delete"):
            assert person.get(f"keys/{key.id}/{action}").text.count(f'href="/w/acme/api/keys/{key.id}"') == 2, action
        person.post(f"keys/{key.id}/deactivate")
        receipt = person.get(f"keys/{key.id}/receipt").text
        back = re.findall(r'href="([^"]+)">(?:Back to API keys|<svg.*?</svg>API keys)</a>', receipt)
        assert len(back) == 2
        assert all(is_listed(person, key, link) for link in back)
    for person, key in ((cast.rio, of_rio), (cast.lea, of_sync)):
        for action, answers in (("reactivate", {}), ("edit", {"name": "Renamed", "note": ""})):
            assert person.get(f"keys/{key.id}/{action}").text.count(f'href="/w/acme/api/keys/{key.id}"') == 2, action
            assert person.post(f"keys/{key.id}/{action}", answers).location == f"/w/acme/api/keys/{key.id}"


@pytest.mark.both
@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "ab"}, "name"),
        ({"name": "x" * 61}, "name"),
        ({"name": "Taken"}, "name"),
        ({"name": " tAKEN "}, "name"),
        ({"name": "a\u202eb c"}, "name"),
        ({"note": "x" * 141}, "note"),
    ],
)
def test_a_name_or_note_that_cannot_be_is_refused_and_kept_in_the_form(
    shared_cast: Cast, sent: dict[str, str], field: str
) -> None:
    rio, database = shared_cast.rio, shared_cast.app.extensions["portal"].database
    listed = rio.get("keys").text
    for name in ("Taken", "To rename"):
        if name not in listed:
            rio.generate(name=name)
    key_id = next(row["public_id"] for row in everything(database)["api_key"] if row["name"] == "To rename")
    before = kept(database)
    answers = {"name": "To rename", "note": "", "was_name": "To rename", "was_note": ""} | sent
    for headers in ({}, HTMX):
        refused = rio.post(f"keys/{key_id}/edit", answers, headers=headers)
        assert refused.status_code == 422
        assert set(re.findall(r'<a href="#edit-(\w+)"', refused.text)) == {field}
        assert answers[field].strip() in unescape(refused.text)
    assert kept(database) == before


def test_a_key_is_not_a_name(cast: Cast, database: Database) -> None:
    key = cast.rio.generate()
    for field in ("name", "note"):
        assert (
            cast.rio.post(f"keys/{key.id}/edit", {"name": "CRM sync", "note": "", field: key.text}).status_code == 422
        )
    assert key.text[8:51] not in repr(everything(database))


@pytest.mark.both
@pytest.mark.parametrize(
    ("name", "note", "now"),
    [
        ("Billing", "", "its name is “Billing”"),
        ("CRM sync", "On web-3", "its note is “On web-3”"),
        ("Billing", "On web-3", "its name is “Billing” and its note is “On web-3”"),
    ],
)
def test_a_form_that_showed_something_older_keeps_what_was_typed_and_says_what_is_there_now(
    cast: Cast, database: Database, name: str, note: str, now: str
) -> None:
    key = cast.rio.generate(name="CRM sync")
    page = f"keys/{key.id}/edit"
    cast.rio.post(page, {"name": name, "note": note, "was_name": "CRM sync", "was_note": ""})
    before = kept(database)
    late = {"name": "Late", "note": "Typed", "was_name": "CRM sync", "was_note": ""}
    for headers in ({}, HTMX):
        refused = cast.rio.post(page, late, headers=headers)
        assert refused.status_code == 409
        told = re.search(r"You changed this key at \d\d:\d\d UTC: (.*?) now\. Save again", unescape(refused.text))
        assert told and told[1] == now
        assert 'value="Late"' in refused.text and 'value="Typed"' in refused.text
        assert f'name="was_name" value="{name}"' in refused.text and f'name="was_note" value="{note}"' in refused.text
    assert kept(database) == before
    assert cast.rio.post(page, late | {"was_name": name, "was_note": note}).status_code == 303
    assert "Late" in cast.rio.get(f"keys/{key.id}").text


def test_an_administrator_does_not_rename_anothers_key_and_the_attempt_is_told(cast: Cast, database: Database) -> None:
    key = cast.rio.generate()
    before = kept(database)
    assert cast.ana.post(f"keys/{key.id}/edit", {"name": "Mine now", "note": ""}).status_code == 403
    assert kept(database) == before
    told = everything(database)["audit_event"][-1]
    assert (told["action"], told["outcome"], told["target_id"]) == ("key_edited", "refused", key.id)


# --- Search ---------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_search_leads_to_an_address_that_keeps_the_other_filters(cast: Cast) -> None:
    for name in ("CRM sync", "Billing"):
        cast.rio.generate(name=name)
    sent = {"q": " crm ", "env": "live", "sort": "name", "owner": "me", "page": "9", "evil": "x"}
    found = cast.rio.post("keys/search", sent)
    assert found.status_code == 303
    assert set(found.location.partition("?")[2].split("&")) == {"q=crm", "env=live", "sort=name", "owner=me"}
    page = cast.rio.get(found.location, headers=HTMX).text
    assert ("CRM sync" in page, "Billing" in page) == (True, False)


def test_a_pasted_key_is_cut_to_its_last_four_before_it_goes_anywhere(cast: Cast, database: Database) -> None:
    key = cast.rio.generate(name="CRM sync")
    cast.rio.generate(name="Billing")
    for pasted in (key.text, f"  Bearer {key.text}\n", f"API_KEY={key.text}", key.text[:-2], f"{key.text}x"):
        found = cast.rio.post("keys/search", {"q": pasted})
        assert found.status_code == 303
        assert f"q={key.text[47:51]}" in found.location
        assert key.text[8:47] not in str(found.headers)
        page = cast.rio.get(found.location)
        assert ("CRM sync" in page.text, "so that the key itself is not stored" in page.text) == (True, True)
    assert key.text[8:40] not in repr(everything(database))


@pytest.mark.both
@pytest.mark.parametrize("q", ["%00", "%F0%9F", "%", "_", "x" * 9000, "%E2%80%AE", "'; DROP TABLE api_key"])
def test_an_odd_search_finds_nothing_and_breaks_nothing(shared_cast: Cast, q: str) -> None:
    page = shared_cast.rio.get(f"keys?q={q}")
    assert page.status_code in (200, 400, 414)
    assert shared_cast.rio.post("keys/search", {"q": q[:200]}).status_code == 303


@pytest.mark.both
@pytest.mark.parametrize(
    "filters", ["state=x", "env=prod", "sort=%00", "scope=nope", "owner=mem_0", "owner=all", "page=-1", "page=99999999"]
)
def test_what_is_no_filter_is_none(shared_cast: Cast, filters: str) -> None:
    assert shared_cast.rio.get(f"keys?{filters}").status_code == 200


@pytest.mark.parametrize("part", ["{}_123456", "sk_live_…{}", "…{}", "...{}", "wxyz{}_123456"])
def test_a_part_of_a_key_is_found_by_its_last_four(cast: Cast, part: str) -> None:
    key = cast.rio.generate(name="CRM sync")
    cast.rio.generate(name="Billing")
    last_four = key.text[47:51]
    found = cast.rio.get("keys", query_string={"q": part.format(last_four)}, headers=HTMX).text
    assert ("CRM sync" in found, "Billing" in found) == (True, False)
    asked = words(cast.rio.post("keys/identify", {"text": part.format(last_four)}).text)
    assert f"This is only a part of a key. Search the list for its last four: …{last_four}" in asked


def test_who_types_the_checksum_of_a_key_is_told_which_four_characters_count(cast: Cast) -> None:
    which = "recognised by the four characters before its last _ , not by those after it"
    key = cast.rio.generate(name="CRM sync")
    for end in (key.text[-4:], key.text[-6:]):
        assert which in words(cast.rio.get("keys", query_string={"q": end}).text)
        assert which in words(cast.rio.post("keys/identify", {"text": end}).text)
        assert which in words(cast.rio.post("/w/acme/explain", {"request_id": end}).text)
    for other in ("abc", "abcde", "ab-d", "abcdefg"):
        assert which not in words(cast.rio.get("keys", query_string={"q": other}).text)
    # A whole key is cut to the right four.
    for path, field in (("keys/search", "q"), ("/w/acme/explain", "request_id")):
        other_text = cast.ana.generate(name=f"Of ana {field}").text
        assert which not in words(cast.rio.post(path, {field: other_text}, follow_redirects=True).text)
    assert "The four characters before its last _" in words(cast.rio.post("keys", cast.rio.form(name="New")).text)
    for path in ("keys", "keys/identify", "/w/acme/explain"):
        assert re.search(r"(4|four characters) before (its|the) last _", words(cast.rio.get(path).text))


def test_a_name_that_looks_like_the_end_of_a_key_is_still_found(cast: Cast) -> None:
    cast.rio.generate(name="nightly_backup")
    assert "nightly_backup" in cast.rio.get("keys?q=nightly_backup").text


@pytest.mark.both
def test_the_old_key_of_a_pair_stands_below_the_new_one_in_a_search_too(cast: Cast) -> None:
    old = cast.rio.generate(name="CRM sync")
    new = cast.rio.rotate(old, overlap="7d")
    cast.call("GET", "/me", old)  # last used, so sorted first
    flush(cast)
    for query in ("", "?q=crm", "?env=live&sort=used"):
        page = cast.rio.get(f"keys{query}").text
        assert re.findall(r'<tbody[^>]*id="key-(key_\w+)"', page) == [new.id, old.id]
    assert "Showing 1–1 of 1 key and 1 old key" in words(cast.rio.get("keys").text)
    assert "Showing 1–2 of 2 " in words(cast.rio.get("keys?q=crm").text)


def test_a_swapped_row_brings_the_counts_of_the_list_that_is_shown(cast: Cast) -> None:
    key = cast.rio.generate()
    cast.ana.generate(name="Of ana")
    for person, owner, left in ((cast.rio, "me", 0), (cast.ana, "all", 1)):
        headers = HTMX | {"HX-Current-URL": f"http://localhost/w/acme/api/keys?owner={owner}"}
        swapped = person.post(f"keys/{key.id}/deactivate", headers=headers).text
        cards = swapped[swapped.index('<ul id="cards" hx-swap-oob="innerHTML">') :]
        assert f"{left} Active" in words(cards)
        assert "1 Deactivated or expired" in words(cards)
        assert f"owner={owner}" in cards
        assert "hx-swap-oob" not in person.get("keys").text
        cast.rio.post(f"keys/{key.id}/reactivate")
    odd = HTMX | {"HX-Current-URL": "http://localhost//["}  # no browser is there
    assert cast.rio.post(f"keys/{key.id}/deactivate", headers=odd).status_code == 200


@pytest.mark.both
def test_a_search_without_a_match_says_so_and_leads_back(cast: Cast) -> None:
    cast.rio.generate(name="CRM sync")
    page = cast.rio.get("keys?q=nothing&env=test")
    assert "No keys match “nothing” in Sandbox." in words(page.text).replace("“ ", "“").replace(" ”", "”")
    assert "Clear search" in page.text
    assert "Search all environments (0)" in page.text
    assert "Search all environments (1)" in cast.rio.get("keys?q=crm&env=test").text


@pytest.mark.both
def test_leads_choose_an_owner_beside_the_other_filters(cast: Cast, database: Database) -> None:
    sync = next(row["public_id"] for row in everything(database)["member"] if row["name"] == "Nightly sync")
    cast.lea.generate(["tasks:read"], owner=sync, name="Of the sync")

    def owners(page: str) -> list[tuple[str, str]]:
        found = re.search(r'<select name="owner">(.*?)</select>', page, re.DOTALL)
        return re.findall(r"<option[^>]*?( selected)?>([^<]*)</option>", found[1]) if found else []

    usual = [("", "My keys"), ("", "API members’ keys")]
    chosen = cast.lea.get(f"keys?owner={sync}&state=active").text
    assert owners(chosen) == [*usual, (" selected", "Nightly sync, API member")]
    assert "Of the sync" in chosen
    assert owners(cast.lea.get("keys?owner=api").text)[1] == (" selected", "API members’ keys")
    assert owners(cast.rio.get("keys?q=nothing").text) == []


def test_the_list_says_whose_keys_these_are_and_how_they_are_sorted(cast: Cast) -> None:
    cast.lea.generate(["tasks:read"])
    own, all_keys = cast.lea.get("keys"), cast.ana.get("keys?owner=all&sort=created")
    assert "Keys act with your permissions in Acme." in words(own.text).replace(" .", ".")
    assert "Keys act with their owner’s permissions in Acme." in words(all_keys.text).replace(" .", ".")
    assert "Your API keys, sorted by attention needed" in own.text
    assert "All keys, newest first" in all_keys.text
    assert "Which key is this?" in own.text


def test_an_empty_list_leads_to_a_quick_start_and_leads_to_an_api_member(cast: Cast) -> None:
    member, lead = cast.rio.get("keys").text, cast.lea.get("keys").text
    for page in (member, lead):
        assert 'href="/docs/api#quick-start"' in page
    assert "For an integration, make an API member first." in words(lead).replace(" .", ".")
    assert "For an integration" not in member
    assert 'id="quick-start"' in cast.stranger().get("/docs/api").text


# --- Receipt, and which key this is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["deactivate", "delete"])
def test_a_receipt_counts_nothing_after_a_stop_and_names_the_first_refused_request(cast: Cast, stop: str) -> None:
    key = cast.rio.generate()
    cast.call("GET", "/me", key)
    flush(cast)
    stopped = cast.rio.post(f"keys/{key.id}/{stop}", {"name": "Nightly export"})
    assert stopped.status_code == 303
    page = cast.rio.get(stopped.location).text
    assert re.search(r"Requests accepted since 0", words(page))
    assert "Waiting for the first refused request" in page
    cast.call("GET", "/apps/tasks/records", key)
    flush(cast)
    told = words(cast.rio.get(stopped.location).text)
    assert "Requests accepted since 0" in told
    assert "First refused: GET /api/v1/apps/tasks/records" in told
    assert 'hx-trigger="every 2s"' in cast.rio.get(stopped.location).text
    with later(seconds=70):
        assert "hx-trigger" not in cast.rio.get(stopped.location, headers=HTMX).text


def test_a_key_that_works_has_no_receipt_and_an_odd_moment_is_none(cast: Cast) -> None:
    key = cast.rio.generate()
    assert cast.rio.get(f"keys/{key.id}/receipt").status_code == 404
    cast.rio.post(f"keys/{key.id}/deactivate")
    for odd in ("", "x", "2020-01-01", "2020-01-01T00:00:00Z", "9999-12-31T23:59:59%2B00:00", "%00", "1e99"):
        page = cast.rio.get(f"keys/{key.id}/receipt?at={odd}")
        assert page.status_code == 200
        assert "Stopped at" in page.text
    cast.rio.post(f"keys/{key.id}/reactivate")
    assert cast.rio.get(f"keys/{key.id}/receipt").status_code == 404


def test_a_found_key_is_named_to_those_who_may_see_it_and_never_shown_again(cast: Cast, database: Database) -> None:
    key = cast.rio.generate(name="CRM sync")
    pasted = {"text": f"2026-01-12 GET /me Authorization: Bearer {key.text}"}
    for headers in ({}, HTMX):
        found = cast.rio.post("keys/identify", pasted, headers=headers)
        assert found.status_code == 200
        assert f"/keys/{key.id}" in found.text
        assert key.text[8:51] not in found.text
    for person in (cast.max, cast.zoe):
        hidden = person.post("keys/identify", pasted)
        assert "not in this workspace, or not visible to you" in hidden.text
        assert key.id not in hidden.text
    assert "does not look like one of our keys" in cast.rio.post("keys/identify", {"text": key.text[:-1] + "!"}).text
    assert key.text[8:51] not in repr(everything(database))


def test_questions_about_found_keys_are_limited(cast: Cast) -> None:
    key = cast.rio.generate()
    asked = [cast.rio.post("keys/identify", {"text": key.text}) for _ in range(21)]
    assert [reply.status_code for reply in asked] == [200] * 20 + [429]
    assert int(asked[-1].headers["Retry-After"]) > 0
    assert "Too many look-ups. Try again at" in asked[-1].text
