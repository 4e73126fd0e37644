"""The reveal: copying that is checked, a guard against closing too early, a key that no close button can lose (REV)."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.acting import KEYS, NEW, Mouse, call, fill_form, reveal
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server

NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
REFUSING_CLIPBOARD = "void (navigator.clipboard.writeText = () => Promise.reject(new Error('denied')))"
NO_COMMAND = "void (document.execCommand = () => false)"
# Holds the browser's answer back until the test lets it go.
SLOW_CLIPBOARD = """() => {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = async (text) => {
        await new Promise((go) => window.letGo = go);
        return write(text);
    };
}"""
# Writes down what a screen reader is given to say: each change of the live text.
LISTEN = """() => {
    const first = document.getElementById("first");
    window.heard = [];
    new MutationObserver(() => window.heard.push(first.innerText.trim()))
        .observe(first, {childList: true, characterData: true, subtree: true});
}"""
POLL_MS, LONG_MS = 3_000, 60_000
BLOCKED = "Your browser blocked copying. The key is selected: press Ctrl+C, or ⌘C on a Mac."


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """The page of rio, whose browser allows copying."""
    return new_page("rio", permissions=["clipboard-write"])


def test_copy_says_so_only_when_the_browser_has_done_it(page: Page, clipboard: Callable[[], str]) -> None:
    key = reveal(page, "Slow clipboard", live=True)
    page.evaluate(SLOW_CLIPBOARD)
    expect(page.locator("#reveal-msg")).to_have_text("Not saved yet")
    page.get_by_role("button", name="Copy key").click()
    while not page.evaluate("Boolean(window.letGo)"):  # the content policy forbids to wait for an expression
        page.wait_for_timeout(20)
    expect(page.locator("#reveal-msg")).to_have_text("Not saved yet")
    page.evaluate("letGo()")
    expect(page.locator("#reveal-msg")).to_have_text(
        re.compile(r"Live key copied at \d\d:\d\d:\d\d UTC\. Paste it into your secret store now\.")
    )
    assert clipboard() == key
    page.get_by_role("link", name="Done").click()
    expect_closed(page, "Slow clipboard")


def test_copy_falls_back_to_the_field_in_the_dialog(page: Page, clipboard: Callable[[], str]) -> None:
    key = reveal(page, "Fallback")
    for trouble in (REFUSING_CLIPBOARD, NO_CLIPBOARD):
        page.evaluate(trouble)
        page.get_by_role("button", name="Copy key").click()
        expect(page.locator("#reveal-msg")).to_contain_text("Sandbox key copied at")
        assert clipboard() == key


def test_blocked_copying_is_told_and_leaves_the_key_selected_and_unsaved(page: Page) -> None:
    key = reveal(page, "Blocked")
    page.get_by_role("button", name="Hide").click()
    page.evaluate(f"{NO_CLIPBOARD}; {NO_COMMAND}")
    page.get_by_role("button", name="Copy key").click()
    expect(page.locator("#reveal-msg")).to_have_text(BLOCKED)
    expect(page.get_by_role("button", name="Hide")).to_be_visible()
    field = page.get_by_label("API key, full text")
    expect(field).to_be_focused()
    assert field.evaluate("it => it.value.slice(it.selectionStart, it.selectionEnd)") == key
    expect(page.get_by_text(re.compile("copied|saved as", re.IGNORECASE))).to_have_count(0)
    page.get_by_role("link", name="Done").click()
    expect(guard(page)).to_be_focused()


def test_nothing_closes_over_an_unsaved_key(page: Page) -> None:
    key = reveal(page, "Guarded")
    field = page.get_by_label("API key, full text")
    ways_out: dict[str, Callable[[], None]] = {
        "Escape": lambda: page.keyboard.press("Escape"),
        "Done": lambda: page.get_by_role("link", name="Done").click(),
        "Generate another": lambda: page.get_by_role("link", name="Generate another").click(),
        "×": lambda: page.get_by_role("button", name="Close", exact=True).click(),
        "beside the dialog": lambda: page.mouse.click(5, 5),
    }
    for way_out, leave in ways_out.items():
        field.focus()
        leave()
        expect(guard(page), way_out).to_be_focused()
        expect(page.get_by_role("dialog")).to_be_visible()
        expect(field).to_have_value(key)
    page.get_by_role("group", name="You have not saved this key").get_by_role("button", name="Copy key").click()
    expect(guard(page)).to_have_count(0)
    expect(page.get_by_role("link", name="Done")).to_be_focused()


def test_escape_twice_docks_the_key_on_the_page(page: Page, clipboard: Callable[[], str]) -> None:
    key = reveal(page, "Docked")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    dock = page.get_by_role("region", name="Unsaved key")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(dock.get_by_role("heading", name="Copy this key now")).to_be_focused()
    expect(dock.get_by_label("API key, full text")).to_have_value(key)
    dock.get_by_role("link", name="Done").click()
    expect(guard(page)).to_be_focused()
    dock.get_by_role("group", name="You have not saved this key").get_by_role("button", name="Copy key").click()
    expect(dock.locator("#reveal-msg")).to_contain_text("Sandbox key copied at")
    assert clipboard() == key
    dock.get_by_role("link", name="Done").click()
    expect_closed(page, "Docked")
    expect(dock).to_have_count(0)


def test_a_dialog_that_the_browser_closes_by_itself_docks_the_key(page: Page) -> None:
    key = reveal(page, "Forced")
    page.evaluate("document.getElementById('dlg').close()")
    dock = page.get_by_role("region", name="Unsaved key")
    expect(dock.get_by_role("heading", name="Copy this key now")).to_be_focused()
    expect(dock.get_by_label("API key, full text")).to_have_value(key)


def test_closing_without_saving_is_possible_and_takes_the_text_away(page: Page) -> None:
    reveal(page, "Given up")
    page.get_by_role("link", name="Done").click()
    page.get_by_role("button", name="Close without saving").click()
    expect_closed(page, "Given up")


def by_hand(page: Page) -> None:
    page.get_by_label("API key, full text").focus()
    page.keyboard.press("Control+Home")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Control+C")
    expect(page.locator("#reveal-msg"), "a part is not the key").to_have_text("Not saved yet")
    page.keyboard.press("Control+A")
    page.keyboard.press("Control+C")


def test_a_click_selects_the_whole_key_and_a_drag_what_one_wants_of_it(page: Page) -> None:
    key = reveal(page, "Clicked")
    field = page.get_by_label("API key, full text")
    selected = "it => it.value.slice(it.selectionStart, it.selectionEnd)"
    field.focus()
    assert field.evaluate(selected) == ""
    field.click()
    assert field.evaluate(selected) == key
    box = field.bounding_box()
    assert box
    field.evaluate("it => it.setSelectionRange(0, 0)")
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 20)
    page.mouse.up()
    assert 0 < len(field.evaluate(selected)) < len(key)


def by_tick(page: Page) -> None:
    page.get_by_role("checkbox", name="I have stored this key").check()


@pytest.mark.parametrize("save", [by_hand, by_tick])
def test_a_saved_key_closes_at_once(save: Callable[[Page], None], page: Page) -> None:
    name = f"Saved {save.__name__}"
    reveal(page, name)
    save(page)
    expect(page.locator("#reveal-msg")).to_contain_text(re.compile("copied at|Stored by you"))
    page.get_by_role("link", name="Done").click()
    expect_closed(page, name)


def test_whoever_takes_the_tick_back_is_asked_again(page: Page) -> None:
    reveal(page, "Ticked by mistake")
    by_tick(page)
    page.get_by_role("checkbox", name="I have stored this key").uncheck()
    expect(page.locator("#reveal-msg")).to_have_text("Not saved yet")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="You have not saved this key")).to_be_focused()
    by_hand(page)
    page.get_by_role("checkbox", name="I have stored this key").check()
    page.get_by_role("checkbox", name="I have stored this key").uncheck()
    expect(page.locator("#reveal-msg")).to_contain_text("copied at")
    page.get_by_role("link", name="Done").click()
    expect_closed(page, "Ticked by mistake")


def test_download_is_a_file_to_use_as_it_is_and_counts_as_saved(page: Page) -> None:
    key = reveal(page, "CRM sync, Zürich №7", ["tasks:read", "reservations:read"], live=True)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download .env").click()
    until = page.locator("#reveal .facts time").get_attribute("datetime")
    assert download.value.suggested_filename == "acme-live-crm-sync-zu-rich-no7.env"
    assert Path(download.value.path()).read_text() == (
        "# CRM sync, Zürich №7 · live · Acme · scopes: reservations:read tasks:read\n"
        f"# expires {until} · do not commit this file\n"
        f"API_KEY={key}\n"
    )
    page.get_by_role("link", name="Done").click()
    expect_closed(page, "CRM sync, Zürich №7")


def test_after_a_reveal_that_was_a_page_the_list_goes_on_as_after_the_dialog(new_page: NewPage) -> None:
    page = new_page("rio", permissions=["clipboard-write"])
    page.goto(NEW)
    fill_form(Mouse(page), "On a page")
    page.get_by_role("button", name="Generate sandbox key").click()
    by_tick(page)
    page.get_by_role("link", name="Done").click()
    expect_closed(page, "On a page")
    page.reload()
    expect(page.get_by_role("row", name="On a page")).to_be_visible()
    expect(page.get_by_text("New", exact=True)).to_have_count(0)
    page.goto(f"{KEYS}?owner=me#key-key_gone-link")
    expect(page.get_by_text("New", exact=True)).to_have_count(0)


# --- The first request ----------------------------------------------------------------------------------------------


def listen(page: Page) -> list[str]:
    """Listen to the live text; give the list of requests for it."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/first-request" in request.url else None)
    page.evaluate(LISTEN)
    return asked


def wait(page: Page) -> None:
    """Let time go by until the page has asked again and has its answer. Beside it the clock goes on as ever: a page
    that is about to be told the last word may have asked for it before."""
    with page.expect_response(lambda response: "/first-request" in response.url):
        page.clock.run_for(POLL_MS)
    expect(page.locator("#first-box[aria-busy]")).to_have_count(0)


def test_the_first_accepted_request_is_told_once_and_ends_the_asking(
    page: Page, live_server: Server, backstage: Backstage
) -> None:
    page.clock.install()
    key = reveal(page, "First call")
    first = page.locator("#first")
    asked = listen(page)
    expect(first).to_have_text("Waiting for the first request from this key…")
    wait(page)
    wait(page)
    assert page.evaluate("heard") == [], "the same words are not announced again"
    assert call(live_server, key, "/apps/tasks/records") == 200
    backstage.wait_for_use("First call")  # written within a second; asked within three: told within five
    page.clock.run_for(POLL_MS)
    expect(first).to_have_text(
        re.compile(
            r"^\s*It works\. First request: GET /api/v1/apps/tasks/records, 200, on sandbox data, "
            r"\d+ \w+ \d+, \d\d:\d\d UTC from 127\.0\.0\.1\.\s*$"
        )
    )
    assert len(set(page.evaluate("heard"))) == 1
    told = len(asked)
    page.clock.run_for(LONG_MS)
    assert len(asked) == told


def test_a_refused_first_request_is_told_with_its_reason_and_a_way_on(
    page: Page, live_server: Server, backstage: Backstage
) -> None:
    page.clock.install()
    key = reveal(page, "Refused first")
    listen(page)
    assert call(live_server, key, "/apps/leads/records") == 403
    backstage.wait_for_use("Refused first")
    wait(page)
    expect(page.locator("#first")).to_have_text("A request arrived but was refused: 403, lacks leads:read.")
    expect(page.locator("#first code")).to_have_text("leads:read")
    way_on = page.get_by_role("link", name="Generate a key that includes it")
    way_on.click()
    expect(guard(page)).to_be_focused()  # the key is not saved yet
    wait(page)
    assert len(set(page.evaluate("heard"))) == 1
    assert call(live_server, key, "/apps/tasks/records") == 200
    backstage.wait_for_use("Refused first", 2)
    page.clock.run_for(POLL_MS)
    expect(page.locator("#first")).to_contain_text("It works.")
    expect(way_on).to_have_count(0)
    assert len(set(page.evaluate("heard"))) == 2


def test_after_a_quarter_of_an_hour_nobody_asks_any_more_but_by_hand(page: Page, backstage: Backstage) -> None:
    page.clock.install()
    reveal(page, "Patience")
    asked = listen(page)
    made = backstage.find("Patience")
    backstage.set_key(made.public_id, created_at=datetime.now(UTC) - timedelta(minutes=16))
    page.clock.run_for(POLL_MS)
    expect(page.locator("#first")).to_have_text("No request in 15 minutes. That is fine; the key is ready.")
    told = len(asked)
    page.clock.run_for(LONG_MS)
    assert len(asked) == told
    with page.expect_response("**/first-request?*"):
        page.get_by_role("link", name="Check now").click()
    expect(page.locator("#first")).to_have_text("No request in 15 minutes. That is fine; the key is ready.")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert len(asked) == told + 1


def test_the_page_asks_ever_slower_and_stops_by_its_own_clock_too(page: Page) -> None:
    page.clock.install()
    reveal(page, "By its own clock")
    asked = listen(page)
    for minutes, pause in ((2, "10s"), (4, "30s")):
        page.clock.fast_forward(minutes * 60_000)
        expect(page.locator("#first-box")).to_have_attribute("hx-trigger", f"every {pause}")
    assert page.evaluate("heard") == []
    page.clock.fast_forward(11 * 60_000)
    expect(page.locator("#first")).to_have_text("No request in 15 minutes. That is fine; the key is ready.")
    page.get_by_role("link", name="Check now").click()
    expect(page.locator("#first-box[aria-busy]")).to_have_count(0)
    told = len(asked)
    page.clock.run_for(LONG_MS)
    assert len(asked) == told == 4


def guard(page: Page) -> Locator:
    """Find what asks before an unsaved key is left."""
    return page.get_by_role("heading", name="You have not saved this key")


def expect_closed(page: Page, name: str) -> None:
    """Look whether the reveal has gone and its key's row, in the list, has the focus."""
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#status")).to_have_text(f"“{name}” was generated.")
    expect(page.locator("#secret")).to_have_count(0)
    expect(page.get_by_role("rowheader", name=name).locator(":focus")).to_have_text(name)
    expect(page.get_by_role("row", name=name).get_by_text("New", exact=True)).to_be_visible()


def test_a_verifier_is_revealed_by_the_same_rules(new_page: NewPage, clipboard: Callable[[], str]) -> None:
    page = new_page("ana", permissions=["clipboard-write"])
    page.goto("/w/acme/workspace/verifiers/new")
    page.get_by_label("Which product will ask?").fill("Billing")
    page.get_by_role("button", name="Make verifier").click()
    secret = page.get_by_label("Verifier, full text").input_value()
    assert secret.startswith("vf_")
    expect(page.locator("#reveal-msg")).to_have_text("Not saved yet")  # the script is there
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("heading", name="You have not saved this verifier")).to_be_focused()
    page.locator(".secret-actions").get_by_role("button", name="Copy verifier").click()
    expect(page.locator("#reveal-msg")).to_contain_text("Verifier copied at")
    assert clipboard() == secret
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("rowheader", name="Billing")).to_be_visible()
    assert secret not in page.content()
