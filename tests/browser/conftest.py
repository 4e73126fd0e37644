"""Chromium for the tests in this folder: one browser per worker, a context of its own for every page asked for."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.browser.acting import sign_in_unseen
from tests.conftest import lacking
from tests.servers import Server

# The distribution's browser: Playwright's own is downloaded from outside the package registries.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Playwright adds most of what an unattended Chromium needs. No name but ours resolves, so that the browser's own
# look-ups end at once and a page that needs something from outside is found out.
ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
TIMEOUT_MS = 10_000
# Chromium logs every answer of 4xx as an error; that a 422 is a 422 is no fault of the page.
EXPECTED_ERROR = re.compile(r"Failed to load resource: (the server responded with a status of|net::)")


class NewPage(Protocol):
    """Opens a page in a context of its own, signed in as `person`; paths are relative to the live server."""

    def __call__(
        self,
        person: str = "",
        *,
        scripts: bool = True,
        theme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
        **context_options: Any,
    ) -> Page: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        lacking("no Chromium on this machine: `make test` installs it where there is apt")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def cookies(live_server: Server) -> dict[str, Any]:
    """The cookies of everybody who has signed in to the module's server: hashing a password takes its time."""
    return {}


@pytest.fixture
def new_page(browser: Browser, live_server: Server, cookies: dict[str, Any]) -> Iterator[NewPage]:
    """Make pages as a test needs them. An error, a breach of the content policy or a foreign request fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def note_error(message: ConsoleMessage) -> None:
        if message.type == "error" and not EXPECTED_ERROR.match(message.text):
            complaints.append(message.text)

    def note_foreign(request: Request) -> None:
        if not request.url.startswith((f"{live_server.url}/", "blob:", "data:")):
            complaints.append(f"request to {request.url}")

    def make(
        person: str = "",
        *,
        scripts: bool = True,
        theme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
        **context_options: Any,
    ) -> Page:
        context = browser.new_context(
            base_url=live_server.url,
            java_script_enabled=scripts,
            color_scheme=theme,
            viewport={"width": width, "height": height},
            **{"reduced_motion": "reduce", **context_options},
        )
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        context.on("console", note_error)
        context.on("request", note_foreign)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        if person and person not in cookies:
            sign_in_unseen(context, person)
            cookies[person] = context.cookies()
        elif person:
            context.add_cookies(cookies[person])
        return context.new_page()

    yield make
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def clipboard(new_page: NewPage) -> Callable[[], str]:
    """Read what was copied last. The browser has one clipboard; a page of its own looks into it."""
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto("/healthz")
    page.evaluate("navigator.clipboard.writeText('nothing yet')")

    def read() -> str:
        page.bring_to_front()
        text: str = page.evaluate("navigator.clipboard.readText()")
        return text

    return read


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """A page with scripts, light, 1280 × 900; nobody is signed in."""
    return new_page()
