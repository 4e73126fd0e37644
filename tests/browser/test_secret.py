"""The text of a key is on the screen once and nowhere else, whatever the browser is made to do afterwards (SEC, T-01…10)."""

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Page, Request, expect
from sqlalchemy import func, select

from portal.store.database import Database
from portal.store.models import ApiKey
from tests.browser.acting import KEYS, NEW, reveal, without_htmx
from tests.browser.conftest import NewPage
from tests.servers import Server
from tests.web.looking import everything

# Everything in a page that outlives the moment: addresses and states of the history, storages, and the odd corners.
KEPT = """async () => JSON.stringify([
    location.href, history.state, navigation.entries().map(entry => [entry.url, entry.getState()]),
    {...localStorage}, {...sessionStorage}, await indexedDB.databases(), await caches.keys(),
    document.cookie, window.name, document.title, performance.getEntries().map(entry => entry.name)])"""
# What a page holds, also where its HTML does not tell.
HELD = """() => document.documentElement.outerHTML +
    [...document.querySelectorAll("input, textarea")].map(field => field.value).join("\\n")"""

WAYS = ("in the dialog", "on a page", "without scripts")


def test_the_text_goes_into_one_answer_and_nowhere_else(
    way: str, open_page: Callable[..., Page], live_server: Server
) -> None:
    page = open_page("max")
    trail = Trail(page.context)
    key = reveal(page, f"Trail {way}", checked=way != "in the dialog")
    assert key not in kept(page, way)
    if way != "without scripts":
        page.get_by_role("button", name="Copy key").click()
        for copy in page.get_by_role("button", name="Copy example").all():
            if copy.is_visible():
                copy.click()
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("rowheader", name=f"Trail {way}")).to_be_visible()
    assert key not in held(page) + kept(page, way)
    for path in (KEYS, NEW, "/w/acme"):
        page.goto(path)
        assert key not in held(page)
    page.get_by_role("button", name="Profile and settings").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert key not in held(page) + kept(page, way)
    assert key not in trail.told()
    assert key not in live_server.log.read_text()
    assert key not in repr(everything(Database(live_server.database_url)))


def test_back_does_not_bring_the_text_back(way: str, open_page: Callable[..., Page]) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    key = reveal(page, f"Back {way}", checked=way != "in the dialog")
    page.goto("/w/acme")
    assert asked == ([] if way == "without scripts" else ["beforeunload"])
    for step in (page.go_back, page.go_back, page.go_forward, page.go_forward):
        with suppress(Error):  # the answer to a form was not stored, so Chromium asks before it sends the form again
            step()
        assert key not in held(page)


def test_reloading_shows_that_the_text_was_shown_and_makes_no_second_key(
    way: str, open_page: Callable[..., Page], live_server: Server
) -> None:
    page = open_page()
    page.on("dialog", lambda dialog: dialog.accept())
    key = reveal(page, f"Reload {way}", checked=way != "in the dialog")
    before = count_keys(live_server)
    answer = page.reload()
    assert answer
    assert answer.headers["cache-control"] == "no-store"
    if way == "in the dialog":
        expect(page.get_by_role("rowheader", name=f"Reload {way}")).to_be_visible()
    else:
        assert answer.status == 410
        expect(page.get_by_role("heading", name="That key has already been shown", level=1)).to_be_visible()
        page.get_by_role("link", name=f"Go to Reload {way}").click()
        expect(page.get_by_role("rowheader", name=f"Reload {way}")).to_be_in_viewport()
    assert key not in held(page)
    assert count_keys(live_server) == before


@pytest.mark.parametrize("way", ["in the dialog", "on a page"])
def test_a_page_that_the_browser_keeps_for_later_is_wiped(way: str, open_page: Callable[..., Page]) -> None:
    page = open_page()
    key = reveal(page, f"Wiped {way}", checked=way != "in the dialog")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    assert key not in held(page)


def test_one_form_makes_one_key_however_often_it_is_sent(open_page: Callable[..., Page], live_server: Server) -> None:
    page = open_page(way="in the dialog")
    before = count_keys(live_server)
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Pressed twice")
    page.get_by_role("button", name="Generate sandbox key").dblclick()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    assert count_keys(live_server) == before + 1
    # Whoever sends the answers again, also at the same moment and round our scripts, gets no second key.
    page.goto(NEW)
    fill_form(Mouse(page), "Sent five times")
    answers = page.evaluate("""() => {
        const form = document.getElementById("new-key-form");
        const sending = () => fetch(form.action, {method: "POST", body: new FormData(form)});
        return Promise.all([...Array(5)].map(async () => {
            const answer = await sending();
            return [answer.status, (await answer.text()).includes("id=\"secret\"")];
        }));
    }""")
    assert sorted(answers) == [[200, True]] + [[410, False]] * 4
    assert count_keys(live_server) == before + 2


def test_the_field_belongs_to_no_form_and_nothing_asks_a_password_manager_to_keep_it(
    way: str, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    passwords = page.locator("input[type=password]")
    page.goto(KEYS)
    assert passwords.count() == 0
    page.goto(NEW)
    assert passwords.count() == 0
    reveal(page, f"Field {way}", checked=way != "in the dialog")
    assert passwords.count() == 0
    field = page.get_by_label("API key, full text")
    assert field.get_attribute("name") is None
    assert field.evaluate("field => field.form") is None
    assert field.get_attribute("autocomplete") == "off"
    assert field.get_attribute("spellcheck") == "false"
    assert field.get_attribute("readonly") is not None


def test_print_shows_no_text_of_a_key(way: str, open_page: Callable[..., Page]) -> None:
    page = open_page()
    key = reveal(page, f"Print {way}", checked=way != "in the dialog")
    assert page.get_by_label("API key, full text").is_visible()
    page.emulate_media(media="print")
    assert not page.get_by_label("API key, full text").is_visible()
    assert key not in page.locator("body").inner_text()
    expect(page.get_by_text("Secret not printed")).to_be_visible()


def test_examples_take_the_key_from_the_environment(
    open_page: Callable[..., Page], clipboard: Callable[[], str]
) -> None:
    page = open_page(way="in the dialog", permissions=["clipboard-read", "clipboard-write"])
    key = reveal(page, "Examples")
    for language in ("curl", "Python", "JavaScript"):
        page.get_by_role("radio", name=language, exact=True).check()
        example = page.get_by_role("region", name=f"{language} example")
        page.get_by_role("button", name="Copy example").locator("visible=true").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = clipboard()
        page.bring_to_front()
        assert copied == example.text_content()
        assert "API_KEY" in copied
        assert "/api/v1/apps/tasks/records" in copied
        assert key not in copied


def test_examples_call_what_the_key_may_call(open_page: Callable[..., Page]) -> None:
    page = open_page("max", way="in the dialog")
    reveal(page, "Deposits only", ["leads:write"])
    expect(page.get_by_role("region", name="curl example")).to_contain_text("/api/v1/me")


# --- What the tests look at -----------------------------------------------------------------------------------------


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How the key is generated."""
    chosen: str = request.param
    return chosen
