"""What somebody meets whose line is slow: between a press and its answer nothing that they do is lost (ux KEY, FRM)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, Request, Route, expect

from tests.browser.acting import KEYS, Mouse, fill_form, head_of, keep, open_form, reveal, scope
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage


@contextmanager
def held_up(page: Page, path: str, method: str = "GET") -> Iterator[list[Route]]:
    """Let nothing through that is sent to a path, until the block ends; give what waits."""
    waiting: list[Route] = []
    page.evaluate("void (htmx.config.defaultTimeout = 0)")  # however long this machine takes for what the test does

    def hold(route: Route) -> None:
        if route.request.method == method:
            waiting.append(route)
        else:
            route.fallback()

    def is_there(url: str) -> bool:
        return urlsplit(url).path == path

    page.route(is_there, hold)
    yield waiting
    for route in waiting:
        route.continue_()
    page.unroute(is_there, hold)


def is_in_reach(control: Locator) -> bool:
    """Say whether a press on the place where a control is would meet it."""
    control.scroll_into_view_if_needed()
    met: bool = control.evaluate("""node => {
        const box = node.getBoundingClientRect();
        return node.contains(document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2));
    }""")
    return met


def sent(page: Page) -> list[str]:
    """Note what the page asks the server for from now on."""
    asked: list[str] = []

    def note(request: Request) -> None:
        path = urlsplit(request.url).path
        if not path.startswith("/static/"):
            asked.append(f"{request.method} {path}")

    page.on("request", note)
    return asked


def test_rows_that_are_about_to_be_replaced_are_out_of_reach(new_page: NewPage, backstage: Backstage) -> None:
    before = backstage.key("rio", "Was there before")
    page = new_page("rio")
    key = reveal(page, "Made just now")
    panel, deactivate = page.locator("#keys-panel"), page.locator(f"#key-{before}-deactivate")
    with held_up(page, KEYS) as waiting:
        with page.expect_request(lambda request: urlsplit(request.url).path == KEYS):
            keep(page)
        expect(panel).to_have_attribute("aria-busy", "true")
        assert not is_in_reach(deactivate)
        for _ in range(10):
            page.keyboard.press("Tab")
            assert not page.evaluate("document.activeElement.closest('#keys-panel')?.id")
        assert len(waiting) == 1
    expect(head_of(page, key).get_by_role("link")).to_be_focused()
    expect(page.locator("#status")).to_have_text("“Made just now” was generated.")
    assert is_in_reach(deactivate)
    deactivate.click()
    expect(page.get_by_role("heading", name="Deactivate “Was there before”?")).to_be_focused()


def test_a_list_that_cannot_be_fetched_anew_stays_in_reach(new_page: NewPage, backstage: Backstage) -> None:
    backstage.key("lea", "Goes on")
    page = new_page("lea")
    reveal(page, "Not on the list yet")
    page.route(f"**{KEYS}", lambda route: route.abort("internetdisconnected"))
    keep(page)
    expect(page.locator("#status")).to_have_text("“Not on the list yet” was generated.")
    expect(page.get_by_role("heading", name="API keys", level=1)).to_be_focused()
    page.get_by_role("link", name="Deactivate Goes on").click()
    expect(page.get_by_role("heading", name="Deactivate “Goes on”?")).to_be_focused()


def test_the_list_is_fetched_again_for_what_was_made_while_it_was_on_its_way(
    new_page: NewPage, backstage: Backstage
) -> None:
    page = new_page("max")
    page.goto(KEYS)
    asked = sent(page)
    made = backstage.key("max", "Made meanwhile")
    with held_up(page, KEYS):
        page.evaluate("void portal.reloadPanel()")
        expect(page.locator("#keys-panel")).to_have_attribute("aria-busy", "true")
        page.evaluate("focus => void portal.done({message: 'Made', reload: true, focus})", [f"key-{made}-link"])
    expect(page.locator("#status")).to_have_text("Made")
    expect(page.locator(f"#key-{made}-link")).to_be_focused()
    assert asked == [f"GET {KEYS}"] * 2


def test_rows_that_a_search_is_about_to_replace_are_out_of_reach(new_page: NewPage, backstage: Backstage) -> None:
    wanted, other = (backstage.key("ana", name) for name in ("Sought", "Something else"))
    page = new_page("ana")
    page.goto(KEYS)
    search = page.get_by_role("searchbox")
    with held_up(page, KEYS):
        search.fill("sough")
        expect(page.locator("#keys-panel")).to_have_attribute("aria-busy", "true")
        assert not is_in_reach(page.locator(f"#key-{wanted}-deactivate"))
        search.press("End")
        page.keyboard.type("t")  # one can go on typing
        expect(search).to_have_value("sought")
    expect(page).to_have_url(re.compile("q=sought"))  # the last of the searches
    expect(page.locator("#status")).to_have_text("1 key matches")
    expect(page.locator(f"#key-{other}")).to_have_count(0)
    page.get_by_role("link", name="Deactivate Sought").click()
    expect(page.get_by_role("heading", name="Deactivate “Sought”?")).to_be_focused()


@pytest.mark.parametrize(("control", "action"), [("Edit Impatient", "edit"), ("Generate new API key", "")])
def test_a_second_press_asks_no_second_time(control: str, action: str, new_page: NewPage, backstage: Backstage) -> None:
    """Else its answer would come over what is typed into the first."""
    path = f"{KEYS}/{backstage.key('max', 'Impatient')}/{action}" if action else f"{KEYS}/new"
    page = new_page("max")
    page.goto(KEYS)
    asked = sent(page)
    with held_up(page, path):
        for _ in range(3):
            page.get_by_role("link", name=control).click()
    field = page.get_by_label("Name", exact=True) if action else page.get_by_label("What is this key for?")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(field).to_have_count(0)
    assert asked == [f"GET {path}"]


def test_the_answer_to_a_row_leaves_a_dialog_open_that_was_opened_meanwhile(
    new_page: NewPage, backstage: Backstage
) -> None:
    key_id = backstage.key("rio", "Stopped meanwhile")
    page = new_page("rio")
    page.goto(KEYS)
    page.get_by_role("link", name="Deactivate Stopped meanwhile").click()
    with held_up(page, f"{KEYS}/{key_id}/deactivate", "POST"):
        page.get_by_role("button", name="Deactivate Stopped meanwhile").click()
        open_form(Mouse(page))
        fill_form(Mouse(page), "Half typed")
    expect(page.locator("#dlg-status")).to_contain_text("“Stopped meanwhile” is deactivated.")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_label("What is this key for?")).to_have_value("Half typed")
    expect(page.locator(f"#key-{key_id}")).to_have_attribute("data-state", "deactivated")


def test_of_two_presses_the_later_one_counts(new_page: NewPage, backstage: Backstage) -> None:
    key_id = backstage.key("lea", "Pressed twice")
    page = new_page("lea")
    page.goto(KEYS)
    with held_up(page, f"{KEYS}/{key_id}/edit"):
        page.get_by_role("link", name="Edit Pressed twice").click()
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/edit")):
            page.get_by_role("link", name="Deactivate Pressed twice").click()
    expect(page.get_by_role("heading", name="Deactivate “Pressed twice”?")).to_be_focused()
    expect(page.locator("#alert")).to_have_text("")


@pytest.mark.parametrize("choice", ["Nightly sync", "Read-only, everything I can read"])
def test_scopes_are_out_of_reach_until_those_of_another_choice_are_there(choice: str, new_page: NewPage) -> None:
    page = new_page("lea")
    page.goto(KEYS)
    open_form(Mouse(page))
    box = page.locator("label.box", has=scope(page, "reservations:read"))
    radio = page.get_by_role("radio", name=choice)
    with held_up(page, f"{KEYS}/new/scopes", "POST"):
        radio.focus()
        page.keyboard.press("Space")
        expect(page.locator("#scopes")).to_have_attribute("aria-busy", "true")
        assert not is_in_reach(box)
        expect(radio).to_be_focused()
    expect(page.locator("#scopes[aria-busy]")).to_have_count(0)
    assert is_in_reach(box)
    expect(radio).to_be_focused()


def test_of_a_preset_and_an_owner_the_later_one_counts(new_page: NewPage) -> None:
    page = new_page("lea")
    page.goto(KEYS)
    open_form(Mouse(page))
    with held_up(page, f"{KEYS}/new/scopes", "POST"):
        page.get_by_role("radio", name="Read-only, everything I can read").check()
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/new/scopes")):
            page.get_by_role("radio", name="Nightly sync").check()
    expect(page.locator("#scopes[aria-busy]")).to_have_count(0)
    assert is_in_reach(page.locator("label.box", has=scope(page, "tasks:read")))
    expect(scope(page, "tasks:read")).to_be_checked()  # the preset holds for the new owner too
    expect(scope(page, "leads:read")).to_have_count(0)


def test_scopes_that_cannot_be_fetched_stay_in_reach(new_page: NewPage) -> None:
    page = new_page("lea")
    page.goto(KEYS)
    open_form(Mouse(page))
    page.route(f"**{KEYS}/new/scopes", lambda route: route.abort("internetdisconnected"))
    page.get_by_role("radio", name="Nightly sync").check()
    expect(page.locator("#dlg-alert")).to_contain_text("That did not go through.")
    expect(page.locator("#scopes[aria-busy]")).to_have_count(0)
    assert is_in_reach(page.locator("label.box", has=scope(page, "tasks:read")))


def test_whoever_types_a_password_before_the_scripts_are_there_goes_on_in_the_field(page: Page) -> None:
    page.context.clear_cookies()
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        waiting.append(route)

    page.route(re.compile(r"/static/app\b.*\.js"), hold)
    page.goto("/login", wait_until="commit")
    field = page.get_by_role("textbox", name="Password")
    field.press_sequentially("correct ")
    waiting[0].continue_()
    expect(page.get_by_role("button", name="Show password")).to_be_visible()
    page.keyboard.type("horse")
    expect(field).to_have_value("correct horse")
