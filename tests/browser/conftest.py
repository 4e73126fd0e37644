"""Chromium for the tests in this folder: one browser per worker, a context of its own for every page asked for."""

import shutil
from collections.abc import Iterator
from typing import Literal, Protocol

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, sync_playwright

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


class NewPage(Protocol):
    """Opens a page in a context of its own; paths are relative to the live server."""

    def __call__(
        self, *, scripts: bool = True, theme: Literal["light", "dark"] = "light", width: int = 1280, height: int = 900
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


@pytest.fixture
def new_page(browser: Browser, live_server: Server) -> Iterator[NewPage]:
    """Make pages as a test needs them; an uncaught error or a breach of the content policy in one fails the test."""
    pages: list[Page] = []
    complaints: list[str] = []

    def note_violation(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            complaints.append(message.text)

    def make(
        *, scripts: bool = True, theme: Literal["light", "dark"] = "light", width: int = 1280, height: int = 900
    ) -> Page:
        context = browser.new_context(
            base_url=live_server.url,
            java_script_enabled=scripts,
            color_scheme=theme,
            viewport=ViewportSize(width=width, height=height),
            reduced_motion="reduce",
        )
        context.set_default_timeout(TIMEOUT_MS)
        context.on("console", note_violation)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        pages.append(context.new_page())
        return pages[-1]

    yield make
    for page in pages:
        page.context.close()
    assert not complaints


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """A page with scripts, light, 1280 × 900."""
    return new_page()
