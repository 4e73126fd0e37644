"""The text of a key is on the screen once and nowhere else, whatever happens then (ux, SEC; threats, A)."""

import base64
import re
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from enum import StrEnum

import pytest
from playwright.sync_api import BrowserContext, Cookie, Error, Page, Request, expect
from sqlalchemy import func, select

from portal.store.database import Database
from portal.store.models import ApiKey
from tests.browser.acting import KEYS, NEW, Mouse, fill_form, head_of, open_form, reveal, sign_in_unseen, without_htmx
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server
from tests.web.looking import everything

# What outlives the moment in a page that runs scripts: the history with its states, the storages, the odd corners.
KEPT = """async () => JSON.stringify([
    location.href, history.state, navigation.entries().map(entry => [entry.url, entry.getState()]),
    {...localStorage}, {...sessionStorage}, await indexedDB.databases(), await caches.keys(),
    document.cookie, window.name, document.title, performance.getEntries().map(entry => entry.name)])"""
# What a page holds, also where its HTML does not tell.
HELD = """() => [document.documentElement.outerHTML,
    ...[...document.querySelectorAll("input, textarea")].map(field => field.value)].join()"""


class Deed(StrEnum):
    """What a key is shown for."""

    GENERATE = "generated"
    ROTATE = "rotated"
    REPLACE = "replaced"


class Way(StrEnum):
    """Where a key is shown."""

    DIALOG = "in the dialog"
    PAGE = "on a page"
    PLAIN = "without scripts"


ways = pytest.mark.parametrize("way", Way)


def open_as(way: Way, new_page: NewPage, person: str = "rio") -> Page:
    """Open the page of somebody who goes this way."""
    page = new_page(person, scripts=way is not Way.PLAIN)
    page.on("dialog", lambda dialog: dialog.accept())
    return page if way is Way.DIALOG else without_htmx(page)


def show(page: Page, way: Way, subject: str) -> str:
    """Generate a key in this way; give its text, which the page shows, its script ready."""
    key = reveal(page, f"{subject} {way}", checked=way is not Way.DIALOG)
    if way is not Way.PLAIN:
        page.locator("#reveal[data-ready]").wait_for()
    return key


def show_another(page: Page, deed: Deed, name: str) -> str:
    """Rotate or replace a key; give the new one's text, which the page shows."""
    page.goto(KEYS)
    page.get_by_role("link", name=f"{'Rotate' if deed is Deed.ROTATE else 'Replace it'} {name}").click()
    page.get_by_role("button", name=re.compile("^(Rotate|Replace) live key$")).click()
    return page.get_by_label("API key, full text").input_value()


# Without htmx the server answers the same whether other scripts run or not, and what they do is the same for each deed.
@pytest.mark.parametrize(
    ("way", "deed"),
    [(Way.PAGE, Deed.GENERATE), *((way, deed) for way in (Way.DIALOG, Way.PLAIN) for deed in Deed)],
)
def test_the_text_is_in_one_answer_and_nowhere_else(
    way: Way, deed: Deed, new_page: NewPage, live_server: Server, backstage: Backstage
) -> None:
    page = open_as(way, new_page, "")
    sign_in_unseen(page.context, "max")
    trail = Trail(page.context)
    name = f"Trail, {deed} {way}"
    if deed is Deed.GENERATE:
        key = show(page, way, f"Trail, {deed}")
    else:
        backstage.key("max", name, scopes=["leads:read"])
        key = show_another(page, deed, name)
    field = page.get_by_label("API key, full text")
    assert field.evaluate("it => [it.form, it.name, it.readOnly, it.autocomplete]") == [None, "", True, "off"]
    assert page.locator("input[type=password]").count() == 0  # a password manager would offer to keep the key
    page.emulate_media(media="print")
    expect(field).not_to_be_visible()
    expect(page.get_by_text("Secret not printed")).to_be_visible()
    assert key not in page.locator("body").inner_text()
    page.emulate_media(media="screen")
    if way is not Way.PLAIN:
        assert key not in page.evaluate(KEPT)
        page.get_by_role("button", name="Copy key").click()
        expect(page.locator("#reveal-msg")).to_contain_text("copied at")
        page.get_by_role("button", name="Hide").click()
    page.get_by_role("link", name="Done").click()
    expect(head_of(page, key)).to_contain_text(name)
    assert key not in page.evaluate(HELD)
    for path in (NEW, "/w/acme"):
        page.goto(path)
        assert key not in page.evaluate(HELD)
    page.get_by_role("button", name="Profile and settings").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert key not in page.evaluate(HELD)
    if way is not Way.PLAIN:
        assert key not in page.evaluate(KEPT)
    assert trail.answers_to_forms() == ["no-store"]
    assert key not in trail.sent()
    assert key not in live_server.log.read_text()
    with closing(Database(live_server.database_url)) as database:
        assert key not in repr(everything(database))


@ways
def test_neither_back_nor_reload_brings_the_text_back(way: Way, new_page: NewPage, live_server: Server) -> None:
    page = open_as(way, new_page)
    asked: list[str] = []
    page.on("dialog", lambda dialog: asked.append(dialog.type))
    key = show(page, way, "Back")
    before = count_keys(live_server)
    page.goto("/w/acme")
    assert asked == ([] if way is Way.PLAIN else ["beforeunload"])
    with suppress(Error):  # Chromium has not kept the answer to the form, and does not send the form again unasked
        page.go_back()
    assert key not in page.evaluate(HELD)
    answer = page.reload()  # asks it to
    assert answer
    if way is Way.DIALOG:
        assert answer.status == 200
    else:
        assert answer.status == 410
        expect(page.get_by_role("heading", name="That key has already been shown", level=1)).to_be_visible()
        assert key not in page.evaluate(HELD)
        page.get_by_role("link", name=f"Go to Back {way}").click()
    in_list, on_page = (
        page.get_by_role("rowheader", name=f"Back {way}"),
        page.get_by_role("heading", name=f"Back {way}"),
    )
    expect(in_list if way is Way.DIALOG else on_page).to_be_in_viewport()
    assert key not in page.evaluate(HELD)
    assert count_keys(live_server) == before


@pytest.mark.parametrize("deed", [Deed.ROTATE, Deed.REPLACE])
def test_a_reload_neither_rotates_nor_replaces_again(
    deed: Deed, new_page: NewPage, live_server: Server, backstage: Backstage
) -> None:
    page = open_as(Way.PLAIN, new_page)
    backstage.key("rio", f"Reloaded, {deed}")
    key = show_another(page, deed, f"Reloaded, {deed}")
    before = count_keys(live_server)
    answer = page.reload()
    assert answer
    assert answer.status == 410
    assert key not in page.evaluate(HELD)
    assert count_keys(live_server) == before


@pytest.mark.parametrize("way", [Way.DIALOG, Way.PAGE])
def test_a_page_that_the_browser_keeps_for_later_loses_the_text(way: Way, new_page: NewPage) -> None:
    page = open_as(way, new_page)
    key = show(page, way, "Kept")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    assert key not in page.evaluate(HELD)


def test_one_form_makes_one_key_however_often_it_is_sent(new_page: NewPage, live_server: Server) -> None:
    page = open_as(Way.DIALOG, new_page)
    before = count_keys(live_server)
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Pressed twice")
    page.get_by_role("button", name="Generate sandbox key").dblclick()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    assert count_keys(live_server) == before + 1
    page.goto(NEW)
    fill_form(Mouse(page), "Sent five times")
    answers = page.evaluate("""() => {
        const form = document.getElementById("new-key-form");
        const send = () => fetch(form.action, {method: "POST", body: new FormData(form)});
        return Promise.all([1, 2, 3, 4, 5].map(async () => {
            const answer = await send();
            return [answer.status, (await answer.text()).includes('id="secret"')];
        }));
    }""")
    assert sorted(answers) == [[200, True], *[[410, False]] * 4]
    assert count_keys(live_server) == before + 2


def test_examples_take_the_key_from_the_environment(new_page: NewPage, clipboard: Callable[[], str]) -> None:
    page = new_page("rio", permissions=["clipboard-write"])
    key = reveal(page, "Examples")
    for language in ("curl", "Python", "JavaScript"):
        page.get_by_role("radio", name=language, exact=True).check()
        page.get_by_role("button", name="Copy example").locator("visible=true").click()
        expect(page.locator("#dlg-status")).to_have_text(f"Copied: {language} example")
        copied = clipboard()
        assert copied == page.get_by_role("region", name=f"{language} example").text_content()
        assert "API_KEY" in copied
        assert "/api/v1/apps/tasks/records" in copied
        assert key not in copied
    expect(page.locator("#reveal-msg")).to_have_text("Not saved yet")  # which an example that was copied is no part of
    page.evaluate("""navigator.clipboard.writeText = () => new Promise((_, no) => (window.refuse = no));
        document.execCommand = () => false""")
    page.get_by_role("button", name="Dismiss message").click()
    page.get_by_role("button", name="Copy example").locator("visible=true").click()
    expect(page.locator("#dlg-status")).to_have_text("")  # nothing is told before the browser has answered
    page.evaluate("refuse()")
    told = "Your browser blocked copying. The text is selected: press Ctrl+C, or ⌘C on a Mac."
    expect(page.locator("#dlg-alert")).to_have_text(told)
    assert page.evaluate("String(getSelection())").startswith("const reply")


def test_examples_call_what_the_key_may_call(new_page: NewPage) -> None:
    page = new_page("max")
    reveal(page, "Deposits only", ["leads:write"])
    expect(page.get_by_role("region", name="curl example")).to_contain_text("/api/v1/me")


class Trail:
    """All that a browser sends and is sent, and what its pages write to the console."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._console: list[str] = []
        self._requests: list[Request] = []
        context.on("console", lambda message: self._console.append(message.text))
        context.on("request", self._note)

    def _note(self, request: Request) -> None:
        self._requests.append(request)

    def sent(self) -> str:
        """Give everything but the answers' bodies, which are for the screen."""
        told = [*self._console, *map(_unpacked, self._context.cookies())]
        for request in self._requests:
            response = request.response()
            told += [request.url, request.post_data or "", repr(request.all_headers())]
            told += [repr(response.all_headers())] if response else []
        return "\n".join(told)

    def answers_to_forms(self) -> list[str]:
        """Say whether the browser may store the answers to the forms that were sent for a key."""
        minting = re.compile(f"{KEYS}(/key_[^/]+/(rotate|replace))?$")
        sent = [each for each in self._requests if each.method == "POST" and minting.search(each.url)]
        answers = [request.response() for request in sent]
        return [answer.headers["cache-control"] for answer in answers if answer]


def _unpacked(cookie: Cookie) -> str:
    """Give a cookie's value and what is packed into it: Flask's is signed, not encrypted."""
    value = cookie.get("value", "")
    payload = value.lstrip(".").partition(".")[0]
    with suppress(ValueError, zlib.error):
        content = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return value + (zlib.decompress(content) if value.startswith(".") else content).decode()
    return value


def count_keys(server: Server) -> int:
    """Count all keys that were ever made."""
    with closing(Database(server.database_url)) as database, database.reading() as session:
        return session.scalar(select(func.count(ApiKey.id))) or 0
