"""Every page, strip and dialog for people who see, point, zoom, read or hear it differently (ux A11Y, KEY, LAY)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from portal.rules.access import AccessLevel, Role
from portal.services import invitations, keys
from portal.services.actor import operator
from portal.store.models import Account, Member, Workspace
from tests.browser import looking
from tests.browser.acting import KEYS, NEW, Mouse, fill_form, leave_receipt, open_form, reveal, without_htmx
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

DAYS = timedelta(days=1)
GLOBEX = "/w/globex/api/keys"
# These show everything that the others are made of.
MAIN = ("home", "list", "form in the dialog", "reveal in the dialog", "delete in the dialog")
BORDER = "node => getComputedStyle(node).borderTopStyle"
# The focused element, when nothing of it is on the screen or something else lies over all of it.
COVERED = """() => {
    const node = document.activeElement;
    if (node === document.body) return "";
    const box = (node.matches("[type=checkbox], [type=radio]") ? node.closest("label") : node).getBoundingClientRect();
    const seen = [.1, .5, .9].some((x) => [.1, .5, .9].some((y) => {
        const top = document.elementFromPoint(box.left + x * box.width, box.top + y * box.height);
        return top && (node.contains(top) || top.contains(node) || top.closest("label")?.contains(node));
    }));
    return seen ? "" : node.id || node.outerHTML.slice(0, 90);
}"""
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
        self.backstage.keep_busy(self.busy)
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
            self.for_somebody_new = invitations.issue(session, operator(), acme, "new@acme.test", Role.MEMBER)
            self.for_max = invitations.issue(session, operator(), globex, "max@acme.test", Role.ADMIN)


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
    page.goto("/docs/api")
    yield "reference, signed out"
    page.goto("/docs/api/errors")
    yield "causes of refusals"
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
    expect(page.get_by_role("link", name="That password is not right.")).to_be_visible()
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
    page.goto(f"{KEYS}/{scene.stopped}/deactivate")
    page.get_by_role("button", name="Deactivate Stopped").click()
    expect(page.get_by_role("heading", name="Something changed in the meantime")).to_be_visible()
    yield "error 409"


def forms(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}?owner=api")
    yield "list of API members’ keys"
    page.goto("/docs/api?app=leads&lang=python")
    yield "reference"
    page.goto(NEW)
    yield "form"
    page.locator("#new-submit").click()
    expect(page.locator(".error-summary")).to_be_focused()
    yield "form, wrong"
    fill_form(Mouse(page), "One too many", ["tasks:read"])
    page.locator("#new-submit").click()
    expect(page.locator("#new-limit")).to_be_visible()
    yield "form at the limit, wrong"
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
    page.goto(KEYS)
    page.get_by_role("link", name="Rotate Shown").click()
    page.get_by_role("button", name="Rotate live key").click()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    yield "reveal after a rotation"
    page.goto(KEYS)
    page.get_by_role("link", name="Retire now Shown (old)").click()
    page.get_by_role("button", name="Retire old key").click()
    expect(page.locator("#status")).to_contain_text("is retired")


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
    expect(page.locator("#reauth-password-error")).to_contain_text("Too many attempts")
    yield "proof throttled"
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
def test_everybody_can_use_every_page_on_the_way(way: str, new_page: NewPage, scene: Scene) -> None:
    who, go = WAYS[way]
    page = new_page(who)
    page.on("dialog", lambda dialog: dialog.accept())
    faults = []
    for stop in go(page, scene):
        faults += [f"{stop}: {fault}" for fault in looking.all_round(page, thoroughly=stop in MAIN)]
        path, title = page.evaluate("[location.pathname, document.title]")
        if "error" not in stop and scene.titles.setdefault(title, path) != path:
            faults += [f"{stop}: has the title of {scene.titles[title]}"]
        if re.search("wrong|failed|throttled|400", stop) and not title.startswith("Error: "):
            faults += [f"{stop}: has the title of a page without errors"]
    assert faults == []


# --- One thing at a time --------------------------------------------------------------------------------------------


def test_a_list_of_25_keys_is_light_and_a_table_with_names_of_its_own_also_on_a_phone(
    new_page: NewPage, scene: Scene
) -> None:
    page = new_page("ana", width=320, height=568)
    answer = page.goto(f"{KEYS}?owner=all")
    assert answer
    assert page.locator("tbody").count() == 25
    assert len(answer.body()) <= 60_000
    heard = page.get_by_role("table", name="API keys").aria_snapshot()
    for role in ("rowgroup", "row", "columnheader", "rowheader", "cell"):
        assert re.search(rf"^ *- {role}\b", heard, re.MULTILINE), role
    names = re.findall(r'^ *- (?:link|button) "(.*)"', page.locator("body").aria_snapshot(), re.MULTILINE)
    assert len(names) > 50
    assert [name for name in names if names.count(name) > 1] == []
    page.goto(KEYS)
    live, test = (page.locator(f"[data-env={env}] .env").first for env in ("live", "test"))
    expect(live).to_have_text("Live")
    expect(test).to_have_text("Sandbox")
    assert live.evaluate(BORDER) != test.evaluate(BORDER) == "dashed"


def test_the_focus_is_where_one_goes_on_and_messages_stay(new_page: NewPage, backstage: Backstage) -> None:
    older = backstage.key("max", "Older")
    page = new_page("max")
    page.clock.install()
    page.goto(KEYS)
    page.evaluate("ids => { window.regions = ids.map((id) => document.getElementById(id)) }", REGIONS)
    open_form(Mouse(page))
    expect_focus(page, "new-name")
    page.keyboard.press("Escape")
    expect_focus(page, "new-key")
    open_form(Mouse(page))
    fill_form(Mouse(page), "Newer")
    page.get_by_role("button", name="Generate sandbox key").click()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    expect_focus(page, "dlg-title")
    page.get_by_role("checkbox", name="I have stored this key").check()
    page.get_by_role("link", name="Done").click()
    expect(page.locator("#status")).to_have_text("“Newer” was generated.")
    key = f"key-{backstage.find('Newer').public_id}"
    expect_focus(page, f"{key}-link")

    for _ in range(2):
        page.get_by_role("link", name="Deactivate Newer").click()
        expect_focus(page, f"{key}-ask")
        page.get_by_role("link", name="Cancel").click()
        expect_focus(page, f"{key}-deactivate")
    page.get_by_role("link", name="Deactivate Newer").click()
    page.get_by_role("button", name="Deactivate Newer").click()
    expect_focus(page, f"{key}-reactivate")
    expect(page.locator("#status")).to_have_text("“Newer” is deactivated. Requests are refused from now.")
    page.clock.fast_forward("01:30")
    expect(page.locator("#status")).to_have_text("“Newer” is deactivated. Requests are refused from now.")
    page.get_by_role("link", name="Reactivate Newer").click()
    expect_focus(page, f"{key}-ask")
    page.get_by_role("button", name="Reactivate Newer").click()
    expect_focus(page, f"{key}-deactivate")

    page.get_by_role("link", name="Delete Newer").click()
    expect_focus(page, "dlg-title")
    page.keyboard.press("Escape")
    expect_focus(page, f"{key}-delete")
    page.get_by_role("link", name="Delete Newer").click()
    page.get_by_role("button", name="Delete sandbox key").click()
    expect_focus(page, "dlg-title")
    leave_receipt(page)
    expect(page.locator("#status")).to_contain_text("was deleted.")
    expect_focus(page, f"key-{older}-link")
    assert page.evaluate("regions.every((region) => document.getElementById(region.id) === region)")


def expect_focus(page: Page, element: str) -> None:
    """Look whether the element of this id has the focus."""
    expect(page.locator(f"#{element}")).to_be_focused()


@pytest.mark.parametrize(("width", "height"), [(1280, 600), (320, 568)])
def test_tab_stays_in_the_dialog_and_what_it_reaches_can_be_seen(
    width: int, height: int, new_page: NewPage, scene: Scene
) -> None:
    page = new_page("ana", width=width, height=height)
    page.goto(KEYS)
    covered = [page.evaluate(COVERED) for _ in tabs(page, 30)]
    open_form(Mouse(page))
    fill_form(Mouse(page), "", ["leads:read"])
    expect(page.locator("#review")).to_contain_text("read Leads")
    outside = []
    for opened in ("form", "rotate"):
        if opened == "rotate":
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Discard").click()
            page.get_by_role("link", name="Rotate CRM sync").click()
            expect(page.get_by_role("heading", name="Rotate “CRM sync”")).to_be_focused()
        for _ in tabs(page, 45 if opened == "form" else 20):
            outside.append(page.evaluate("!document.activeElement.closest('dialog:modal, body:not(:has(:focus))')"))
            covered.append(page.evaluate(COVERED))
    assert not any(outside)
    assert [found for found in covered if found] == []


def tabs(page: Page, times: int) -> Iterator[None]:
    """Press Tab so many times."""
    for _ in range(times):
        page.keyboard.press("Tab")
        yield


@pytest.mark.parametrize("width", [768, 1024])
def test_on_a_tablet_an_administrators_bar_fits(width: int, new_page: NewPage) -> None:
    page = new_page("ana", width=width)
    page.goto(KEYS)
    expect(page.get_by_role("button", name="Profile and settings: Ana Ruiz")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(".topbar").evaluate("bar => bar.offsetHeight") <= 64  # one line


def test_on_a_phone_the_reference_begins_with_its_title(new_page: NewPage) -> None:
    page = new_page("", width=320)
    page.goto("/docs/api")
    expect(page.get_by_role("heading", name="API reference")).to_be_in_viewport()
    limits = page.get_by_role("navigation", name="API reference").get_by_role("link", name="Rate limits")
    expect(limits).to_be_hidden()
    page.get_by_text("Contents").click()
    limits.click()
    expect(page.get_by_role("heading", name="Rate limits")).to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.reload()
    expect(limits).to_be_visible()


def test_with_text_of_twice_the_size_nothing_leaves_its_box_or_the_screen(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana", width=768)
    page.goto(KEYS)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    boxes = page.locator(".topbar :is(.tile, .icon-btn, .mark)").filter(visible=True)
    fit = "nodes => nodes.map((it) => it.scrollHeight <= it.clientHeight && it.clientWidth > 34)"
    assert boxes.evaluate_all(fit) == [True] * 4
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 900})
        assert looking.overflow(page) == []
        tops = page.locator(".icon-btn:visible").evaluate_all("them => them.map((it) => it.offsetTop)")
        assert len(set(tops)) == 1, width
    page.get_by_role("button", name="Menu").click()
    menu = page.get_by_role("navigation", name="Main").bounding_box()
    assert menu
    assert menu["x"] >= 0


def test_a_finger_hits_every_target(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana", width=320, height=568, has_touch=True, is_mobile=True)
    faults = []
    lists = ("/w/acme", "/w/acme/members", "/w/acme/review", "/account", "/docs/api")
    for path in (KEYS, NEW, f"{KEYS}/{scene.busy}/delete", f"{KEYS}/{scene.stopped}/reactivate", *lists):
        page.goto(path)
        page.get_by_role("link", name="Skip to content").focus()
        faults += [f"{path}: {fault}" for fault in looking.targets(page, 44)]
    assert faults == []


def test_without_scripts_nothing_is_dead_and_every_address_of_htmx_is_a_page(
    new_page: NewPage, scene: Scene, backstage: Backstage
) -> None:
    pressed = backstage.key("ana", "Pressed")  # every button is, so it is nobody else's
    backstage.keep_busy(pressed)
    page = new_page("ana", scripts=False)
    paths = (KEYS, NEW, f"{KEYS}/{pressed}/deactivate", f"{KEYS}/{pressed}/delete", "/reauth", "/w/acme")
    assert looking.dead_ends(page, paths) == []
