"""What people do at the screen, found by the words that they read: with the mouse, or with the keyboard alone."""

import http.client
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Locator, Page, expect

from portal.demo import PASSWORD
from tests.servers import Server

KEYS = "/w/acme/api/keys"
NEW = f"{KEYS}/new"
SCOPE = "input[name=scopes]"
_CSRF = re.compile(r'name="csrf_token" value="([^"]+)"')
_MOST_TABS = 80


class Hands(Protocol):
    """A way to use a page."""

    page: Page

    def press(self, control: Locator) -> None:
        """Follow a link or press a button."""

    def write(self, field: Locator, text: str) -> None:
        """Type into an empty field."""

    def choose(self, answer: Locator) -> None:
        """Tick a box, or choose one of several radios."""


@dataclass
class Mouse:
    """Points at everything."""

    page: Page

    def press(self, control: Locator) -> None:
        self.page.wait_for_load_state()  # before, its scripts have not begun, and more may come that hides the control
        control.click()

    def write(self, field: Locator, text: str) -> None:
        field.fill(text)

    def choose(self, answer: Locator) -> None:
        answer.check()


@dataclass
class Keyboard:
    """Goes from control to control with Tab, as far as it takes."""

    page: Page

    def press(self, control: Locator) -> None:
        self._reach(control)
        self.page.keyboard.press("Enter")

    def write(self, field: Locator, text: str) -> None:
        self._reach(field)
        self.page.keyboard.type(text)

    def choose(self, answer: Locator) -> None:
        if answer.get_attribute("type") == "radio":
            # All radios of a group are one stop of Tab; the arrow keys move between them.
            self._reach(answer, "(here, there) => here.name === there.name")
            while not answer.is_checked():
                self.page.keyboard.press("ArrowDown")
        else:
            self._reach(answer)
            self.page.keyboard.press("Space")

    def _reach(self, control: Locator, same: str = "(here, there) => here === there") -> None:
        self.page.wait_for_load_state()
        expect(control).to_be_visible()
        for _ in range(_MOST_TABS):
            if control.evaluate(f"there => ({same})(document.activeElement, there)"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{control} cannot be reached with Tab")


def email_of(person: str) -> str:
    """Give the address that one of the cast signs in with."""
    return f"{person}@{'globex' if person == 'zoe' else 'acme'}.test"


def sign_in(hands: Hands, person: str) -> None:
    """Fill in the sign-in form that is on the screen."""
    hands.write(hands.page.get_by_label("Email"), email_of(person))
    hands.write(hands.page.get_by_role("textbox", name="Password"), PASSWORD)
    hands.press(hands.page.get_by_role("button", name="Sign in"))


def sign_in_unseen(context: BrowserContext, person: str) -> None:
    """Sign a browser in without drawing a page, for tests about something else."""
    token = _CSRF.search(context.request.get("/login").text())
    assert token
    form = {"csrf_token": token[1], "email": email_of(person), "password": PASSWORD}
    assert context.request.post("/login", form=form, max_redirects=0).status == 303


def open_form(hands: Hands) -> None:
    """Press "Generate new API key" on the list."""
    hands.press(hands.page.get_by_role("link", name="Generate new API key"))
    expect(hands.page.get_by_label("What is this key for?")).to_be_visible()


def scope(page: Page, text: str) -> Locator:
    """Find the box of a scope, by the name that its label ends with."""
    return page.get_by_role("checkbox", name=text)


def fill_form(hands: Hands, name: str, scopes: Sequence[str] = ("tasks:read",), *, live: bool = False) -> None:
    """Answer the generate form."""
    page = hands.page
    hands.write(page.get_by_label("What is this key for?"), name)
    if live:
        hands.choose(page.get_by_role("radio", name="Live"))
    for text in scopes:
        hands.choose(scope(page, text))


def reveal(
    page: Page, name: str, scopes: Sequence[str] = ("tasks:read",), *, live: bool = False, checked: bool = False
) -> str:
    """Generate a key; give the text that is shown. Without htmx the answers are `checked` on a page in between."""
    hands = Mouse(page)
    page.goto(KEYS)
    open_form(hands)
    fill_form(hands, name, scopes, live=live)
    if checked:
        hands.press(page.get_by_role("button", name="Continue"))
    hands.press(page.get_by_role("button", name=f"Generate {'live' if live else 'sandbox'} key"))
    return page.get_by_label("API key, full text").input_value()


def keep(page: Page) -> None:
    """Say that the key on the screen is stored, and go on."""
    page.get_by_role("checkbox", name="I have stored this key").check()
    page.get_by_role("link", name="Done").click()
    page.wait_for_load_state()  # after a reveal that was a page, the list is another


def head_of(page: Page, key: str) -> Locator:
    """Find the head of a key's row by the end of its text, which no other row has: names are shared in a rotation."""
    return page.get_by_role("rowheader", name=re.compile(f"ends in {' '.join(key.split('_')[2][-4:])}"))


def leave_receipt(page: Page, *, scripts: bool = True) -> None:
    """Go on to the list from the receipt of a stop: it is in the dialog, or a page."""
    page.get_by_role("link", name="Done" if scripts else "Back to API keys").click()


def without_htmx(page: Page) -> Page:
    """Let the browser not find htmx."""
    page.route(re.compile("/static/vendor/htmx"), lambda route: route.fulfill(status=404))
    return page


def call(server: Server, key: str, path: str = "/me") -> int:
    """Call the REST API as an integration would; give the status."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.request("GET", f"/api/v1{path}", headers={"Authorization": f"Bearer {key}"})
    status = connection.getresponse().status
    connection.close()
    return status
