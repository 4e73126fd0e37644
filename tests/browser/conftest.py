"""Chromium for the tests in this folder: one browser per worker, a context of its own for every page asked for."""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from threading import Condition
from typing import Any, Literal
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from flask import Flask
from jinja2 import BytecodeCache
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    WebError,
    expect,
    sync_playwright,
)
from werkzeug.wsgi import ClosingIterator

from portal.store.database import Database
from tests.browser.acting import sign_in_unseen
from tests.browser.backstage import Backstage
from tests.conftest import Place, lacking, quick_passwords
from tests.databases import Template
from tests.servers import Server, free_port, listening, serving

# The distribution's browser: Playwright's own is downloaded from outside the package registries. The first is Chromium
# without its window, which for every context and page takes about half the computing of one that has a window and
# hides it; it is also what Playwright runs where nobody looks on.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
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
TIMEOUT_MS = 20_000  # of every wait: for a machine that is slow or does other things too
# Chromium logs every answer of 4xx as an error, and htmx every request that fails; a page cannot help either.
EXPECTED_ERROR = re.compile(
    "Failed to load resource: (the server responded with a status of|net::)|htmx: htmx:error: Failed"
)


class NewPage:
    """Opens pages on one server and notes what no page may do: fail, breach the content policy, call abroad."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self._browser, self._server = browser, server
        self._kept: dict[str, BrowserContext] = {}
        self._strangers: list[BrowserContext] = []
        self._pages: list[Page] = []
        self._cookies: dict[str, Any] = {}
        self._complaints: list[str] = []

    def __call__(
        self,
        person: str = "",
        *,
        scripts: bool = True,
        theme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
        **more: Any,
    ) -> Page:
        """Open a page; with `person`, signed in as one of the cast. Paths are relative to the server's address.

        A new context costs a second of computing, so people keep theirs from test to test. Whoever signs in or out in
        a test begins as a stranger, in a context of their own.
        """
        options: dict[str, Any] = {
            "base_url": self._server.url,
            "java_script_enabled": scripts,
            "color_scheme": theme,
            "viewport": {"width": width, "height": height},
            "reduced_motion": "reduce",
            **more,
        }
        kept = f"{person} {options}"
        context = self._kept.get(kept)
        if context is None:
            context = self._new_context(person, options)
            if person:
                self._kept[kept] = context
            else:
                self._strangers.append(context)
        self._pages.append(context.new_page())
        return self._pages[-1]

    def tidy_up(self) -> None:
        """Close what a test has opened; fail with what its pages complained of."""
        for page in self._pages:
            page.close()
        for context in self._strangers:
            context.close()
        complaints, self._complaints, self._pages, self._strangers = self._complaints, [], [], []
        assert complaints == []

    def close(self) -> None:
        """Close what was kept from test to test."""
        for context in self._kept.values():
            context.close()

    def _new_context(self, person: str, options: dict[str, Any]) -> BrowserContext:
        context = self._browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        context.on("console", self._note_error)
        context.on("request", self._note_foreign)
        context.on("weberror", self._note_uncaught)
        if person and person not in self._cookies:
            sign_in_unseen(context, person)
            self._cookies[person] = context.cookies()
        elif person:
            context.add_cookies(self._cookies[person])
        return context

    def _note_error(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not EXPECTED_ERROR.match(message.text):
            self._complaints.append(message.text)

    def _note_uncaught(self, error: WebError) -> None:
        self._complaints.append(str(error.error))

    def _note_foreign(self, request: Request) -> None:
        if not request.url.startswith((f"{self._server.url}/", "blob:", "data:")):
            self._complaints.append(f"request to {request.url}")


# What a page looks like and how it behaves does not depend on the database; whole jobs run on both.
ON_BOTH_DATABASES = ("test_walk.py", "test_scenarios.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = []
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            if config.getoption("--database") != "sqlite" and item.path.name not in ON_BOTH_DATABASES:
                elsewhere.append(item)
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        lacking("no Chromium on this machine: `make test` installs it where there is apt")
    with sync_playwright() as playwright:
        expect.set_options(timeout=TIMEOUT_MS)
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


# What a page looks like does not depend on what hands it out: these ask the shipped server, the others a portal that is
# there already.
WITH_THE_SHIPPED_SERVER = (*ON_BOTH_DATABASES, "test_secret.py")


class Gate:
    """Lets requests in to a portal while a module's tests are on, and waits at their end for those that are in.

    A page that is closed leaves behind what it has asked for. Answered later, that would open the database which is
    gone by then, and the next module's tests would be given this connection.
    """

    def __init__(self) -> None:
        self._app: Flask | None = None
        self._inside = 0
        self._moved = Condition()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._moved:
            app = self._app
            self._inside += app is not None
        if app is None:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        try:
            with closing(ClosingIterator(app(environ, start_response))) as answer:
                return list(answer)
        finally:
            with self._moved:
                self._inside -= 1
                self._moved.notify_all()

    @contextmanager
    def open(self, app: Flask) -> Iterator[None]:
        """Let requests in to a portal for a while."""
        self._app = app
        yield
        with self._moved:
            self._app = None
            self._moved.wait_for(lambda: not self._inside)


@pytest.fixture(scope="session")
def own_server(
    template: Template, tmp_path_factory: pytest.TempPathFactory, compiled_templates: BytecodeCache
) -> Iterator[tuple[Place, Gate, str]]:
    """A place whose portal this process serves, the gate to it, and the address."""
    port = free_port()
    place = Place(template, tmp_path_factory.mktemp("instance"), compiled_templates, PORT=str(port))

    gate = Gate()
    with listening(port, gate):
        yield place, gate, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def live_server(
    request: pytest.FixtureRequest, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with a database that the tests of a module share."""
    if request.path.name in WITH_THE_SHIPPED_SERVER:
        with template.copy() as url, serving(url, tmp_path_factory.mktemp("instance")) as server:
            yield server
    else:
        place, gate, address = request.getfixturevalue("own_server")
        with quick_passwords(), place.filled() as url, place.portal() as app, gate.open(app):
            yield Server(address, url, place.instance, place.instance / "server.log")


@pytest.fixture(scope="module")
def backstage(live_server: Server) -> Iterator[Backstage]:
    """The hands behind the live server."""
    with closing(Database(live_server.database_url)) as database:
        yield Backstage(database)


@pytest.fixture(scope="module")
def opener(browser: Browser, live_server: Server) -> Iterator[NewPage]:
    """What opens the pages of all tests of a module."""
    opener = NewPage(browser, live_server)
    yield opener
    opener.close()


@pytest.fixture
def new_page(opener: NewPage) -> Iterator[NewPage]:
    """Make pages as a test needs them; it fails with what they complain of."""
    yield opener
    opener.tidy_up()


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """A page with scripts, light, 1280 × 900; nobody is signed in."""
    return new_page()


@pytest.fixture(scope="module")
def clipboard(browser: Browser, live_server: Server) -> Iterator[Callable[[], str]]:
    """Read what was copied last; a browser has one clipboard for all its pages."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{live_server.url}/healthz")

    def read() -> str:
        text: str = page.evaluate("navigator.clipboard.readText()")
        page.evaluate("navigator.clipboard.writeText('nothing')")
        return text

    yield read
    context.close()
