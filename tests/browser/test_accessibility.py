"""Every page, strip and dialog for people who see, point, zoom, read or hear it differently (ux A11Y, KEY, LAY)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from portal.rules.access import AccessLevel, Role
from portal.services import keys, members
from portal.services.actor import operator
from portal.store.models import Account, Member, Workspace
from tests.browser import looking
from tests.browser.acting import KEYS, NEW, Mouse, fill_form, open_form, reveal, without_htmx
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server

DAYS = timedelta(days=1)
GLOBEX = "/w/globex/api/keys"
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
        make("Nightly sync", "Paused", creator="lea")
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


# --- The way round: how to come to each stop ------------------------------------------------------------------------

Go = Callable[[Page, Scene], object]


def at(path: str) -> Go:
    return lambda page, scene: page.goto(path)


def fail_to_sign_in(page: Page, scene: Scene, times: int = 1) -> None:
    page.goto("/login")
    for _ in range(times):
        page.get_by_label("Email").fill("nobody@acme.test")
        page.get_by_role("textbox", name="Password").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#login-error")).to_be_visible()


def open_menu(page: Page, scene: Scene) -> None:
    page.goto(KEYS)
    page.get_by_role("button", name="Profile and settings").click()


def open_dialog(page: Page, scene: Scene) -> None:
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Never ending", ["leads:read"], live=True)
    page.get_by_role("radio", name="Never").check()
    expect(page.locator("#review")).to_contain_text("live data")


def send_nothing(page: Page, scene: Scene) -> None:
    page.goto(NEW)
    page.locator("#new-submit").click()
    expect(page.locator(".error-summary")).to_be_visible()


def send_nothing_in_dialog(page: Page, scene: Scene) -> None:
    page.goto(KEYS)
    open_form(Mouse(page))
    page.locator("#new-submit").click()
    expect(page.locator(".error-summary")).to_be_visible()


def check_answers(page: Page, scene: Scene) -> None:
    page.goto(NEW)
    page.get_by_label("Used in").fill("GitHub Actions")
    fill_form(Mouse(page), "To be checked", ["leads:read"], live=True)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="Check your new key")).to_be_visible()


def see_reveal(page: Page, scene: Scene) -> None:
    reveal(page, "On a page", ["leads:read"], checked=True)


def see_it_again(page: Page, scene: Scene) -> None:
    reveal(page, "Seen twice", ["leads:read"], checked=True)
    page.reload()


def see_reveal_in_dialog(page: Page, scene: Scene) -> None:
    reveal(page, "In the dialog", ["leads:read", "leads:write"], live=True)


def see_guard(page: Page, scene: Scene) -> None:
    reveal(page, "Guarded", ["leads:read"])
    page.keyboard.press("Escape")


def see_dock(page: Page, scene: Scene) -> None:
    reveal(page, "Docked", ["leads:read"])
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")


def in_row(link: str) -> Go:
    def go(page: Page, scene: Scene) -> None:
        page.goto(KEYS)
        page.get_by_role("link", name=link).click()
        expect(page.locator(":focus")).to_have_count(1)
        expect(page.get_by_role("link", name="Cancel")).to_be_visible()

    return go


def type_a_wrong_name(page: Page, scene: Scene) -> None:
    page.goto(f"{KEYS}/{scene.busy}/delete")
    page.get_by_label("Type CRM sync to delete it").fill("CRM")
    page.get_by_role("button", name="Delete live key").click()
    expect(page.locator("#delete-name-error")).to_be_visible()


def lapsed(page: Page, scene: Scene) -> None:
    scene.backstage.lapse("zoe")
    page.goto(GLOBEX)
    page.get_by_role("link", name="Generate new API key").click()
    page.get_by_role("textbox", name="Password").fill("wrong")
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_text("That password is not right.")).to_be_visible()


def join_with_nothing(page: Page, scene: Scene) -> None:
    page.goto(f"/invite/{scene.for_somebody_new}")
    page.get_by_role("button", name="Join Acme").click()
    expect(page.locator(".error-summary")).to_be_visible()


def form_open_too_long(page: Page, scene: Scene) -> None:
    page.goto(NEW)
    page.get_by_label("What is this key for?").fill("Left over lunch")
    page.locator("#new-key-form [name=csrf_token]").evaluate("field => field.value = 'stale'")
    page.locator("#new-submit").click()
    expect(page.get_by_role("heading", name="This form was open too long")).to_be_visible()


def one_key_too_many(page: Page, scene: Scene) -> None:
    page.goto(NEW)
    fill_form(Mouse(page), "One too many", ["tasks:read"])
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Generate sandbox key").click()
    expect(page.get_by_role("heading", name="Something changed in the meantime")).to_be_visible()


def send_a_novel(page: Page, scene: Scene) -> None:
    page.goto(NEW)
    page.locator("#new-note").evaluate("field => { field.maxLength = 99999; field.value = 'x'.repeat(20000) }")
    page.locator("#new-submit").click()
    expect(page.get_by_role("heading", name="That is too long")).to_be_visible()


def guess_passwords(page: Page, scene: Scene) -> None:
    page.goto(f"{GLOBEX}/new")
    fill_form(Mouse(page), "Guessed", ["tickets:read"])
    page.get_by_role("button", name="Continue").click()
    scene.backstage.lapse("zoe")
    page.get_by_role("button", name="Generate sandbox key").click()
    for _ in range(6):
        page.get_by_role("textbox", name="Password").fill("wrong")
        page.get_by_role("button", name="Confirm").click()
        if page.get_by_role("heading", name="Too many tries").is_visible():
            return
    expect(page.get_by_role("heading", name="Too many tries")).to_be_visible()


# What is seen, by whom; "-" after a name: in a browser that does not find htmx.
STOPS: dict[str, tuple[str, Go]] = {
    "sign in": ("", at("/login")),
    "sign in, failed": ("", fail_to_sign_in),
    "sign in, throttled": ("", lambda page, scene: fail_to_sign_in(page, scene, 6)),
    "choose a workspace": ("zoe", at("/w")),
    "home": ("max", at("/w/acme")),
    "home, sandbox": ("ana", at("/w/acme?app=tasks&env=test")),
    "home, no access": ("zoe", at("/w/acme")),
    "fill the sandbox": ("ana", at("/w/acme/apps/tasks/sandbox")),
    "list, empty": ("rio", at(KEYS)),
    "list, empty, of an administrator": ("zoe", at(GLOBEX)),
    "list, no access": ("zoe", at(KEYS)),
    "list, every state": ("ana", at(KEYS)),
    "list, of API members": ("lea", at(f"{KEYS}?owner=api")),
    "list, second page": ("ana", at(f"{KEYS}?owner=all&page=2")),
    "profile menu": ("ana", open_menu),
    "form": ("lea", at(NEW)),
    "form in the dialog": ("ana", open_dialog),
    "form, wrong": ("max", send_nothing),
    "form in the dialog, wrong": ("lea", send_nothing_in_dialog),
    "check": ("max-", check_answers),
    "reveal": ("max-", see_reveal),
    "reveal in the dialog": ("max", see_reveal_in_dialog),
    "reveal, guarded": ("max", see_guard),
    "reveal, docked": ("max", see_dock),
    "already shown": ("max-", see_it_again),
    "deactivate": ("ana", lambda page, scene: page.goto(f"{KEYS}/{scene.busy}/deactivate")),
    "deactivate in the row": ("ana", in_row("Deactivate CRM sync")),
    "reactivate": ("ana", lambda page, scene: page.goto(f"{KEYS}/{scene.stopped}/reactivate")),
    "reactivate in the row": ("ana", in_row("Reactivate Stopped")),
    "delete": ("ana", lambda page, scene: page.goto(f"{KEYS}/{scene.stopped}/delete")),
    "delete in the dialog": ("ana", in_row("Delete CRM sync")),
    "delete, wrong name": ("ana", type_a_wrong_name),
    "password again": ("ana", at("/reauth?next=/w/acme")),
    "password again in the dialog, wrong": ("zoe", lapsed),
    "invitation": ("", lambda page, scene: page.goto(f"/invite/{scene.for_somebody_new}")),
    "invitation, wrong": ("", join_with_nothing),
    "invitation, known": ("", lambda page, scene: page.goto(f"/invite/{scene.for_max}")),
    "invitation, gone": ("", at("/invite/none")),
    "error 400": ("max", form_open_too_long),
    "error 403": ("ana", lambda page, scene: page.goto(f"{KEYS}/{scene.of_max}/reactivate")),
    "error 404": ("max", at("/w/acme/nowhere")),
    "error 404, signed out": ("", at("/nowhere")),
    "error 405": ("max", at("/logout")),
    "error 409": ("lea-", one_key_too_many),
    "error 413": ("max", send_a_novel),
    "error 429": ("zoe-", guess_passwords),
}


@pytest.fixture(scope="module")
def rooms(browser: Browser, live_server: Server) -> Iterator[Callable[[str], Page]]:
    """Give everybody's own page, which is kept from stop to stop; say at the end whether any complained."""
    new_page = NewPage(browser, live_server)
    opened: dict[str, Page] = {}

    def room(who: str) -> Page:
        if who not in opened:
            opened[who] = new_page(who.rstrip("-"))
            opened[who].on("dialog", lambda dialog: dialog.accept())
            if who.endswith("-"):
                without_htmx(opened[who])
        return opened[who]

    yield room
    new_page.close()
    assert new_page.complaints == []


@pytest.mark.parametrize("stop", STOPS)
def test_everybody_can_use(stop: str, rooms: Callable[[str], Page], scene: Scene) -> None:
    who, go = STOPS[stop]
    page = rooms(who)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    go(page, scene)
    faults = looking.outline(page) + looking.motion(page) + looking.plain_twins(page) + looking.clocks(page)
    faults += looking.axe(page) + looking.targets(page) + looking.overflow(page) + looking.spacing(page)
    page.emulate_media(color_scheme="dark")
    faults += looking.axe(page, "color-contrast", "link-in-text-block")
    page.set_viewport_size({"width": 320, "height": 568})
    faults += looking.axe(page, "color-contrast", "link-in-text-block")
    page.emulate_media(color_scheme="light")
    faults += looking.axe(page) + looking.targets(page) + looking.overflow(page) + looking.spacing(page)
    page.set_viewport_size({"width": 320, "height": 256})  # 1280 × 1024 at 400 %
    faults += looking.overflow(page)
    assert faults == []
