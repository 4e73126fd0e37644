"""Every page, strip and dialog for people who see, point, zoom, read or hear it differently (ux A11Y, KEY, LAY)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from portal.rules.access import AccessLevel, Role
from portal.services import keys, members
from portal.services.actor import operator
from portal.store.models import Account, Member, Workspace
from tests.browser import looking
from tests.browser.acting import KEYS, NEW, Mouse, fill_form, open_form, reveal, without_htmx
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

DAYS = timedelta(days=1)
GLOBEX = "/w/globex/api/keys"
LOOKS: tuple[tuple[Literal["light", "dark"], int], ...] = (
    ("light", 1280),
    ("dark", 1280),
    ("dark", 320),
    ("light", 320),
)
OPPOSITE = (("light", 1280), ("dark", 320))
# These show everything that the others are made of.
MAIN = ("sign in", "home", "list", "form in the dialog", "check", "reveal in the dialog", "delete in the dialog")
REGIONS = ("status", "alert", "dlg-status", "dlg-alert")


@dataclass
class Scene:
    """The live server's data, made so that every state of every page can be seen."""

    backstage: Backstage
    titles: dict[str, str] = field(default_factory=dict)  # of the pages seen, with their paths

    def __post_init__(self) -> None:
        make, act, now = self.backstage.key, self.backstage.act, datetime.now(UTC)
        make("ana", "Idle, never used", environment="test", expires="never")
        all_scopes = [f"{app}:{action}" for app in ("leads", "accounts", "tasks") for action in ("read", "write")]
        self.busy = make("ana", "CRM sync", scopes=all_scopes)
        self.backstage.use(self.busy)
        make("ana", "Ends in two days", age=88 * DAYS)
        make("ana", "Ends in a week", age=23 * DAYS, expires="30d")
        make("ana", "Ended", age=40 * DAYS, expires="30d")
        self.stopped = make("ana", "Stopped", note="GitHub Actions, billing-sync")
        act("ana", keys.deactivate, self.stopped, at=now)
        make("ana", "W" * 60, note="N" * 140, environment="test")
        make("Nightly sync", "Stopped", creator="lea")
        self.backstage.grant("Nightly sync", "operations", AccessLevel.NONE)
        self.of_max = make("max", "Of somebody else")
        act("max", keys.deactivate, self.of_max, at=now)
        for n in range(20):
            make("lea", f"Batch {n}")
        with self.backstage.database.transaction() as session:
            acme, globex = (
                session.scalars(select(Workspace).where(Workspace.slug == slug)).one() for slug in ("acme", "globex")
            )
            zoe = session.scalars(select(Account).where(Account.email == "zoe@globex.test")).one()
            visitor = {"public_id": "mem_visitor", "name": zoe.name, "role": Role.MEMBER, "created_at": now}
            session.add(Member(workspace_id=acme.id, account_id=zoe.id, **visitor))
            self.for_somebody_new = members.invite(session, operator(), acme, "new@acme.test", Role.MEMBER)
            self.for_max = members.invite(session, operator(), globex, "max@acme.test", Role.ADMIN)


@pytest.fixture(scope="module")
def scene(backstage: Backstage) -> Scene:
    """The live server with something of everything on it."""
    return Scene(backstage)


# --- The ways round: each goes from stop to stop and names them -----------------------------------------------------

Way = Callable[[Page, Scene], Iterator[str]]


def signed_out(page: Page, scene: Scene) -> Iterator[str]:
    page.goto("/login")
    yield "sign in"
    for tried in ("failed", *[""] * 4, "throttled"):
        page.get_by_label("Email").fill("nobody@acme.test")
        page.get_by_role("textbox", name="Password").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#login-error")).to_contain_text("Too many" if tried == "throttled" else "do not match")
        if tried:
            yield f"sign in, {tried}"
    page.goto(f"/invite/{scene.for_somebody_new}")
    yield "invitation"
    page.get_by_role("button", name="Join Acme").click()
    expect(page.locator(".error-summary")).to_be_focused()
    yield "invitation, wrong"
    page.goto(f"/invite/{scene.for_max}")
    yield "invitation of somebody known"
    page.goto("/invite/none")
    yield "invitation, gone"
    page.goto("/nowhere")
    yield "error 404, signed out"


def home(page: Page, scene: Scene) -> Iterator[str]:
    page.goto("/w/acme")
    yield "home"
    page.goto("/w/acme?app=tasks&env=test")
    yield "home, sandbox"
    page.goto("/w/acme/apps/tasks/sandbox")
    yield "sandbox"
    page.goto("/reauth?next=/w/acme")
    yield "password again"


def guest(page: Page, scene: Scene) -> Iterator[str]:
    page.goto("/w")
    yield "choose a workspace"
    page.goto("/w/acme")
    yield "home, no access"
    page.goto(KEYS)
    yield "list, no access"
    page.goto(GLOBEX)
    yield "list, empty, of an administrator"
    scene.backstage.lapse("zoe")
    page.get_by_role("link", name="Generate new API key").click()
    page.get_by_role("textbox", name="Password").fill("wrong")
    yield "password again in the dialog"
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_text("That password is not right.")).to_be_visible()
    yield "password again in the dialog, wrong"


def lists(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}?owner=all&page=2")
    yield "list, second page"
    page.goto(KEYS)
    yield "list"
    page.get_by_role("button", name="Profile and settings").click()
    yield "profile menu"
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Deactivate CRM sync").click()
    expect(page.get_by_role("heading", name="Deactivate “CRM sync”?")).to_be_focused()
    yield "deactivate in the row"
    page.get_by_role("link", name="Reactivate Stopped").click()
    expect(page.get_by_role("heading", name="Reactivate “Stopped”?")).to_be_focused()
    yield "reactivate in the row"
    page.get_by_role("link", name="Delete CRM sync").click()
    expect(page.get_by_role("heading", name="Delete “CRM sync” for good?")).to_be_focused()
    yield "delete in the dialog"
    page.get_by_role("button", name="Delete live key").click()
    expect(page.locator("#delete-name-error")).to_be_visible()
    yield "delete in the dialog, wrong name"
    page.keyboard.press("Escape")
    open_form(Mouse(page))
    fill_form(Mouse(page), "Never ending", ["leads:read"], live=True)
    page.get_by_role("radio", name="Never").check()
    expect(page.locator("#review")).to_contain_text("live data")
    yield "form in the dialog"


def pages_of_a_key(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}/{scene.busy}/deactivate")
    yield "deactivate"
    page.goto(f"{KEYS}/{scene.stopped}/reactivate")
    yield "reactivate"
    page.goto(f"{KEYS}/{scene.stopped}/delete")
    yield "delete"
    page.goto(f"{KEYS}/{scene.busy}/delete")
    page.get_by_label("Type CRM sync to delete it").fill("CRM")
    page.get_by_role("button", name="Delete live key").click()
    expect(page.locator("#delete-name-error")).to_be_visible()
    yield "delete, wrong name"
    page.goto(f"{KEYS}/{scene.of_max}/reactivate")
    yield "error 403"


def forms(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}?owner=api")
    yield "list of API members’ keys"
    page.goto(NEW)
    yield "form"
    page.locator("#new-submit").click()
    expect(page.locator(".error-summary")).to_be_focused()
    yield "form, wrong"
    fill_form(Mouse(page), "One too many", ["tasks:read"])
    page.locator("#new-submit").click()
    expect(page.get_by_role("heading", name="Something changed in the meantime")).to_be_visible()
    yield "error 409"
    page.goto(NEW)
    page.get_by_label("What is this key for?").fill("Left over lunch")
    page.locator("#new-key-form [name=csrf_token]").evaluate("field => field.value = 'stale'")
    page.locator("#new-submit").click()
    expect(page.get_by_role("heading", name="This form was open too long")).to_be_visible()
    yield "error 400"
    page.goto(NEW)
    page.locator("#new-note").evaluate("field => { field.maxLength = 99999; field.value = 'x'.repeat(20000) }")
    page.locator("#new-submit").click()
    expect(page.get_by_role("heading", name="That is too long")).to_be_visible()
    yield "error 413"


def reveals(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(KEYS)
    open_form(Mouse(page))
    page.locator("#new-submit").click()
    expect(page.locator(".error-summary")).to_be_focused()
    yield "form in the dialog, wrong"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Discard").click()
    reveal(page, "Shown", ["leads:read", "leads:write"], live=True)
    yield "reveal in the dialog"
    page.keyboard.press("Escape")
    yield "reveal in the dialog, guarded"
    page.keyboard.press("Escape")
    expect(page.get_by_role("region", name="Unsaved key")).to_be_visible()
    yield "reveal, docked"


def without_help(page: Page, scene: Scene) -> Iterator[str]:
    without_htmx(page)
    page.goto(KEYS)
    yield "list, empty"
    page.goto(NEW)
    page.get_by_label("Used in").fill("GitHub Actions")
    fill_form(Mouse(page), "To be checked", live=True)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="Check your new key")).to_be_visible()
    yield "check"
    page.get_by_role("button", name="Generate live key").click()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    yield "reveal"
    page.reload()
    expect(page.get_by_role("heading", name="That key has already been shown")).to_be_visible()
    yield "already shown"
    page.goto(NEW)
    fill_form(Mouse(page), "Guessed")
    page.get_by_role("button", name="Continue").click()
    scene.backstage.lapse("rio")
    page.get_by_role("button", name="Generate sandbox key").click()
    for _ in range(6):
        page.get_by_role("textbox", name="Password").fill("wrong")
        page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("heading", name="Too many tries")).to_be_visible()
    yield "error 429"
    page.goto("/w/acme/nowhere")
    yield "error 404"


WAYS: dict[str, tuple[str, Way]] = {
    "signed out": ("", signed_out),
    "home": ("ana", home),
    "a guest": ("zoe", guest),
    "lists, strips and dialogs": ("ana", lists),
    "pages of a key": ("ana", pages_of_a_key),
    "forms": ("lea", forms),
    "reveals": ("max", reveals),
    "without htmx": ("rio", without_help),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.timeout(180)
def test_everybody_can_use_every_page_on_the_way(way: str, new_page: NewPage, scene: Scene) -> None:
    who, go = WAYS[way]
    page = new_page(who)
    page.on("dialog", lambda dialog: dialog.accept())
    faults = []
    for stop in go(page, scene):
        faults += [f"{stop}: {fault}" for fault in look_around(page, thoroughly=stop in MAIN)]
        path, title = page.evaluate("[location.pathname, document.title]")
        if "error" not in stop and scene.titles.setdefault(title, path) != path:
            faults += [f"{stop}: has the title of {scene.titles[title]}"]
        if re.search("wrong|failed|throttled|400", stop) and not title.startswith("Error: "):
            faults += [f"{stop}: has the title of a page without errors"]
    assert faults == []


def look_around(page: Page, *, thoroughly: bool) -> list[str]:
    """Look at a stop in both themes, on a screen, on a phone and magnified.

    axe takes its time. What it looks for depends on theme or on width, but for contrast on both; so it sees two
    opposite looks, or all `thoroughly`, and contrast is measured in each. What lies behind a dialog it has seen before.
    """
    part = next((part for part in ("dialog:modal", ".strip:has(form)") if page.locator(part).count()), "html")
    faults = looking.outline(page) + looking.motion(page) + looking.plain_twins(page) + looking.clocks(page)
    for theme, width in LOOKS:
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": width, "height": 900 if width > 320 else 568})
        found = looking.contrast(page) + looking.overflow(page)
        if thoroughly or (theme, width) in OPPOSITE:
            found += looking.axe(page, part) + looking.targets(page) + looking.spacing(page)
        faults += [f"{theme}, {width}: {fault}" for fault in found]
    page.set_viewport_size({"width": 320, "height": 256})  # 1280 × 1024, magnified to 400 %
    faults += looking.overflow(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    return faults
