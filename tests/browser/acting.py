"""What people do at the screen, found by the words that they read; with the mouse, or with the keyboard alone."""

import http.client
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Locator, Page, expect

from portal.demo import PASSWORD
from tests.servers import Server

LIST = "/w/acme/api/keys"
NEW = f"{LIST}/new"
_CSRF = re.compile(r'name="csrf_token" value="([^"]+)"')
_MOST_TABS = 80


class Hands(Protocol):
    """A way to use a page."""

    page: Page

    def press(self, control: Locator) -> None:
        """Follow a link or press a button."""

    def write(self, field: Locator, text: str) -> None:
        """Fill a field."""

    def choose(self, answer: Locator) -> None:
        """Tick a box, or choose a radio."""


@dataclass(frozen=True)
class Mouse:
    """Clicks on everything."""

    page: Page

    def press(self, control: Locator) -> None:
        control.click()

    def write(self, field: Locator, text: str) -> None:
        field.fill(text)

    def choose(self, answer: Locator) -> None:
        answer.check()


@dataclass(frozen=True)
class Keyboard:
    """Goes from control to control with Tab, as far as it takes."""

    page: Page

    def press(self, control: Locator) -> None:
        self.reach(control)
        self.page.keyboard.press("Enter")

    def write(self, field: Locator, text: str) -> None:
        self.reach(field)
        self.page.keyboard.type(text)

    def choose(self, answer: Locator) -> None:
        group = answer.evaluate("node => node.type === 'radio' ? node.name : ''")
        if not group:
            self.reach(answer)
            self.page.keyboard.press("Space")
        else:
            # A group of radios is one stop of Tab; the arrow keys choose in it.
            self.reach(self.page.locator(f"input[type=radio][name={group}]:focus"))
            for _ in range(_MOST_TABS):
                if answer.is_checked():
                    break
                self.page.keyboard.press("ArrowDown")
        expect(answer).to_be_checked()

    def reach(self, control: Locator) -> None:
        expect(control if "focus" in str(control) else control).to_have_count(1) if "focus" not in str(control) else None
        for _ in range(_MOST_TABS):
            if control.count() and control.evaluate("node => node === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{control} cannot be reached with Tab")
