"""Chromium for the tests in this folder: one browser per worker, a context of its own for every page asked for."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebError, sync_playwright

from portal.store.database import Database
from tests.browser.acting import sign_in_unseen
from tests.browser.backstage import Backstage
from tests.conftest import lacking
from tests.servers import Server

# The distribution's browser: Playwright's own is downloaded from outside the package registries.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Ours replaces Playwright's own list, so that is repeated. New are the last two: for each context Chromium draws the
# suggestions under an address bar that nobody sees, which takes longer than most tests.
SWITCHED_OFF = (
    *("AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "HttpsFirstBalancedModeAutoEnable"),
    *("HttpsUpgrades", "LensOverlay", "MediaRouter", "PaintHolding", "ThirdPartyStoragePartitioning"),
    *("AvoidCorsURLLoaderRestartOnRedirect", "OptimizationHints", "NetworkTimeServiceQuerying", "AimEnabled"),
    *("PreconnectToSearch", "WebUIOmniboxPopup", "WebUIOmniboxAimPopup"),
)
# Playwright adds most of what an unattended Chromium needs. No name but ours resolves, so that the browser's own
# look-ups end at once and a page that needs something from outside is found out.
ARGUMENTS = (
    f"--disable-features={','.join(SWITCHED_OFF)}",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
TIMEOUT_MS = 10_000
# Chromium logs every answer of 4xx as an error, and htmx every request that fails; a page cannot help either.
EXPECTED_ERROR = re.compile(
    "Failed to load resource: (the server responded with a status of|net::)|htmx: htmx:error: Failed"
)
# Everybody signs in once to each server: hashing a password takes its time.
_COOKIES: dict[str, dict[str, Any]] = {}


class NewPage:
    """Opens pages, each in a context of its own; notes what no page may do: fail, breach the policy, call abroad."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self.complaints: list[str] = []
        self._browser, self._server = browser, server
        self._contexts: list[BrowserContext] = []
        self._cookies: dict[str, Any] = _COOKIES.setdefault(server.url, {})

    def __call__(
        self,
        person: str = "",
        *,
        scripts: bool = True,
        theme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
        **context_options: Any,
    ) -> Page:
        """Open a page; with `person`, signed in as one of the cast. Paths are relative to the live server."""
        context = self._browser.new_context(
            base_url=self._server.url,
            java_script_enabled=scripts,
            color_scheme=theme,
            viewport={"width": width, "height": height},
            **{"reduced_motion": "reduce", **context_options},
        )
        self._contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        context.on("console", self._note_error)
        context.on("request", self._note_foreign)
        context.on("weberror", self._note_uncaught)
        if person and person not in self._cookies:
            sign_in_unseen(context, person)
            self._cookies[person] = context.cookies()
        elif person:
            context.add_cookies(self._cookies[person])
        return context.new_page()

    def close(self) -> None:
        """Close all pages."""
        for context in self._contexts:
            context.close()

    def _note_error(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not EXPECTED_ERROR.match(message.text):
            self.complaints.append(message.text)

    def _note_uncaught(self, error: WebError) -> None:
        self.complaints.append(str(error.error))

    def _note_foreign(self, request: Request) -> None:
        if not request.url.startswith((f"{self._server.url}/", "blob:", "data:")):
            self.complaints.append(f"request to {request.url}")


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
def backstage(live_server: Server) -> Iterator[Backstage]:
    """The hands behind the live server."""
    with closing(Database(live_server.database_url)) as database:
        yield Backstage(database)


@pytest.fixture
def new_page(browser: Browser, live_server: Server) -> Iterator[NewPage]:
    """Make pages as a test needs them; it fails with what they complain of."""
    opener = NewPage(browser, live_server)
    yield opener
    opener.close()
    assert opener.complaints == []


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
