"""The screens of a key's life for people who see, point, zoom, read or print them differently (ux A11Y, LAY, FRM-11).

Two zones, both clocks and the stronger theme are tried on the way, so that none of them has a walk of its own.
"""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from portal.rules.access import AccessLevel
from portal.services import keys
from tests.browser import looking
from tests.browser.acting import KEYS, NEW, keep, reveal, scope, without_htmx
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LEADS = [f"{app}:{action}" for app in ("leads", "accounts") for action in ("read", "write")]
# The colours of points on the screen, as somebody sees them: from a picture, not from the style sheets.
PIXELS = """async ([picture, points]) => {
    const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    canvas.drawImage(bitmap, 0, 0);
    return points.map(([x, y]) => canvas.getImageData(x, y, 1, 1).data.join());
}"""
SHIFTS = """() => new Promise((tell) => new PerformanceObserver((list) => tell(
    list.getEntries().filter((it) => !it.hadRecentInput).reduce((sum, it) => sum + it.value, 0)
)).observe({type: "layout-shift", buffered: true}) ?? setTimeout(() => tell(0), 500))"""


@dataclass
class Scene:
    """Keys in every state of a rotation, used and refused; and three people who prefer other things."""

    backstage: Backstage
    titles: dict[str, str] = field(default_factory=dict)  # of the pages of keys, with their paths

    def __post_init__(self) -> None:
        make, now = self.backstage.key, datetime.now(UTC)
        self.backstage.prefer("ana", time_zone="Europe/Berlin")
        self.backstage.prefer("max", time_zone="America/St_Johns", clock="12", theme="contrast")
        self.old = make("ana", "CRM sync", scopes=LEADS, age=70 * DAY, note="GitHub Actions, billing-sync")
        self.use(self.old, now - 2 * HOUR, times=3, scope="leads:write")
        self.new = self.backstage.rotate(self.old, "ana", age=HOUR)
        self.use(self.old, now - HOUR / 2, address="198.51.100.4", client="python-requests/2.32")
        self.use(self.new, now - HOUR / 3)
        self.quiet = make("ana", "Warehouse", age=5 * DAY)
        self.quiet_new = self.backstage.rotate(self.quiet, "ana", age=HOUR, overlap="7d")
        self.use(self.quiet_new, now - HOUR / 2)
        self.use(make("ana", "Loading bay", age=5 * DAY), now - HOUR / 2)
        self.lost = make("ana", "Text was lost")
        self.stopped = make("ana", "Stopped")
        self.backstage.act("ana", keys.deactivate, self.stopped, at=now)
        self.deleted = make("ana", "Deleted")
        self.backstage.act("ana", keys.delete, self.deleted, at=now, typed="")
        self.backstage.rotate(make("ana", "Replaced", age=5 * DAY), "ana", age=3 * DAY)
        self.refused = make("ana", "Refused often", scopes=["leads:read"], age=2 * DAY)
        self.be_refused(self.refused, now)
        self.of_max = make("max", "Partner portal", scopes=["leads:read", "tasks:read"], age=3 * DAY)
        self.be_refused(self.of_max, now)
        self.of_rio = make("rio", "Dock display", age=DAY, expires="30d")
        self.paused = make("Nightly sync", "Night shift", creator="lea", scopes=["tasks:read", "reservations:read"])
        self.backstage.grant("Nightly sync", "operations", AccessLevel.NONE)

    def use(self, key_id: str, at: datetime, **more: Any) -> None:
        """Let a key be accepted by its app."""
        usual: dict[str, Any] = {"path": "/api/v1/apps/leads/records", "scope": "leads:read"}
        self.backstage.use(key_id, at, **usual | more)

    def be_refused(self, key_id: str, now: datetime) -> None:
        """Let a key be used over days, and refused for want of scopes that one may and may not grant."""
        for days in range(2):
            self.use(key_id, now - days * DAY - HOUR / 2, times=4 - days)
        for text, times in (("leads:write", 3), ("tasks:write", 1)):
            path = f"/api/v1/apps/{text.split(':')[0]}/records"
            why: dict[str, Any] = {
                "refused": "missing_scope",
                "status": 403,
                "method": "POST",
                "scope": text,
                "path": path,
            }
            self.use(key_id, now - HOUR / 4, times=times, **why)


@pytest.fixture(scope="module")
def scene(backstage: Backstage) -> Scene:
    """The live server with keys in every state."""
    return Scene(backstage)


# --- The ways round: each goes from stop to stop and names them -----------------------------------------------------

Way = Callable[[Page, Scene], Iterator[str]]


def press(page: Page, name: str, role: str = "link") -> None:
    """Press what is named so, wherever it stands first."""
    page.get_by_role(role, name=name).first.click()  # type: ignore[arg-type]


def dialogs(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(KEYS)
    yield "list with pairs"
    press(page, "Rotate Refused often")
    expect(page.get_by_role("heading", name="Rotate “Refused often”")).to_be_focused()
    yield "rotate in the dialog"
    scope(page, "leads:read").uncheck()
    press(page, "Rotate live key", "button")
    expect(page.locator(".error-summary")).to_be_focused()
    yield "rotate in the dialog, wrong"
    page.keyboard.press("Escape")
    press(page, "Replace it Text was lost")
    expect(page.get_by_role("heading", name="Replace “Text was lost”")).to_be_focused()
    yield "replace in the dialog"
    page.keyboard.press("Escape")
    press(page, "Which key is this?")
    expect(page.get_by_label("Paste a key")).to_be_focused()
    yield "identify in the dialog"
    page.get_by_label("Paste a key").fill("no key at all")
    press(page, "Look it up", "button")
    expect(page.get_by_text("This does not look like one of our keys.")).to_be_visible()
    yield "identify in the dialog, no key"
    page.keyboard.press("Escape")
    press(page, "Delete Text was lost")
    press(page, "Delete live key", "button")
    expect(page.get_by_role("heading", name="“Text was lost” was deleted")).to_be_focused()
    yield "receipt in the dialog"


def strips(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(KEYS)
    press(page, "Edit Refused often")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    yield "edit in the row"
    page.get_by_label("Name", exact=True).fill("")
    press(page, "Save", "button")
    expect(page.locator(".error-summary")).to_be_focused()
    yield "edit in the row, with errors"  # it is no page of its own: the title stays
    press(page, "Retire now CRM sync (old)")
    expect(page.get_by_role("heading", name="Retire the old “CRM sync” now?")).to_be_focused()
    yield "retire in the row"
    press(page, "Extend by 24 h CRM sync (old)")
    expect(page.get_by_role("heading", name="Extend the old “CRM sync” by 24 h?")).to_be_focused()
    yield "extend in the row"
    press(page, "Deactivate Loading bay")
    press(page, "Deactivate Loading bay", "button")
    expect(page.get_by_role("heading", name="“Loading bay” is deactivated")).to_be_visible()
    yield "receipt in the row"


def one_key(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}/{scene.new}")
    expect(page.get_by_text("Still used:")).to_be_visible()
    yield "new key of a pair"
    page.goto(f"{KEYS}/{scene.old}")
    yield "old key of a pair"
    page.goto(f"{KEYS}/{scene.quiet_new}")
    expect(page.get_by_text("Safe to retire")).to_be_visible()
    yield "pair, safe to retire"
    page.goto(f"{KEYS}/{scene.stopped}")
    yield "deactivated key"
    page.goto(f"{KEYS}/{scene.deleted}")
    yield "deleted key"
    page.goto(f"{KEYS}/{scene.paused}")
    expect(page.get_by_text("paused").first).to_be_visible()
    yield "key that its owner limits"
    page.goto(f"{KEYS}/{scene.paused}/requests")
    expect(page.get_by_role("heading", name="Never used")).to_be_visible()
    yield "requests, never used"
    page.goto(f"{KEYS}/{scene.refused}/requests")
    expect(page.get_by_role("link", name="Generate a key with this scope")).to_have_count(2)
    page.get_by_text("Show as table").click()
    yield "requests"
    page.goto(f"{KEYS}/{scene.refused}/requests?range=24h")
    yield "requests of a day"
    page.goto(f"{KEYS}/{scene.new}/history")
    yield "history"


def answers(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}/{scene.refused}/rotate?leaked=1")
    expect(page.get_by_role("radio", name="Not at all: stop it now", exact=True)).to_be_checked()
    scope(page, "leads:read").uncheck()
    press(page, "Rotate live key", "button")
    expect(page.locator(".error-summary")).to_be_focused()
    yield "rotate, wrong"
    page.goto(f"{KEYS}/{scene.refused}/edit")
    page.get_by_label("Name", exact=True).fill("")
    press(page, "Save", "button")
    expect(page.locator(".error-summary")).to_be_focused()
    yield "edit, wrong"
    page.goto(f"{KEYS}/{scene.old}/extend")
    yield "extend"
    page.goto(f"{KEYS}/{scene.old}/retire")
    yield "retire"
    page.goto(f"{KEYS}/{scene.refused}/impact")
    yield "impact"
    page.goto(f"{KEYS}/{scene.paused}/first-request")
    yield "first request"
    page.goto(f"{KEYS}/{scene.stopped}/receipt")
    yield "receipt"
    page.goto(f"{KEYS}/identify")
    yield "identify"
    page.get_by_label("Paste a key").fill(reveal_elsewhere(page))
    press(page, "Look it up", "button")
    expect(page.get_by_text("This is the key")).to_be_visible()
    yield "identify, found"


def reveal_elsewhere(page: Page) -> str:
    """Generate a key in another tab; give its text."""
    other = page.context.new_page()
    text = reveal(other, "Found in a log")
    keep(other)
    other.close()
    return text


def finding(page: Page, scene: Scene) -> Iterator[str]:
    page.goto(f"{KEYS}?owner=all&sort=owner")
    page.locator("details.filters").evaluate("it => it.open = true")  # on a wide screen there is nothing to open
    yield "list by owner, filters open"
    page.goto(f"{KEYS}?state=revoked")
    expect(page.get_by_role("rowheader", name="Deleted")).to_be_visible()
    expect(page.get_by_text("Replaced by")).to_be_visible()
    yield "list of deleted keys"
    page.goto(f"{KEYS}?env=live&q=nothing+like+it")
    expect(page.get_by_role("heading", name="No keys match")).to_be_visible()
    yield "list, no match"
    page.goto(f"{KEYS}?q=wxyz&reduced=1")
    yield "list, no match for a pasted key"


def fixing(page: Page, scene: Scene) -> Iterator[str]:
    page.goto("/preferences")
    yield "preferences"
    page.get_by_role("radio", name="100").evaluate("radio => radio.value = '7'")
    page.get_by_role("radio", name="100").check()
    press(page, "Save preferences", "button")
    expect(page.locator(".error-summary")).to_be_focused()
    yield "preferences, wrong"
    page.goto("/help/keyboard")
    yield "keyboard"
    page.goto(f"{KEYS}/{scene.of_max}/requests")
    expect(page.get_by_text("Ask an administrator")).to_be_visible()
    yield "requests, somebody else can grant"
    page.goto(f"{NEW}?from={scene.of_max}&add=tasks:write")
    expect(page.get_by_text("You cannot add")).to_be_visible()
    yield "fix-it form, cannot add"
    without_htmx(page)
    page.goto(f"{NEW}?from={scene.of_max}&add=leads:write")
    expect(scope(page, "leads:write")).to_be_checked()
    page.get_by_role("checkbox", name="Replace “Partner portal”").check()
    yield "fix-it form"
    press(page, "Continue", "button")
    expect(page.get_by_text("is replaced. It stops on")).to_be_visible()
    yield "check, replaces"
    page.goto(f"{KEYS}/{scene.of_max}")
    yield "key, more contrast"
    page.goto(KEYS)
    yield "list, more contrast"
    page.goto("/w/acme?app=leads")
    yield "home, more contrast"


WAYS: dict[str, tuple[str, Way]] = {
    "dialogs": ("ana", dialogs),
    "strips": ("ana", strips),
    "pages of a key": ("ana", one_key),
    "answers": ("ana", answers),
    "finding a key": ("ana", finding),
    "fixing, with more contrast": ("max", fixing),
}


@pytest.mark.parametrize("way", WAYS)
def test_everybody_can_use_every_screen_of_a_key(way: str, new_page: NewPage, scene: Scene) -> None:
    who, go = WAYS[way]
    page = new_page(who)
    faults = []
    for stop in go(page, scene):
        faults += [f"{stop}: {fault}" for fault in looking.all_round(page)]
        if ("wrong" in stop) != page.title().startswith("Error: "):
            faults.append(f"{stop}: has the title {page.title()}")
        path = page.evaluate("location.pathname")
        if way == "pages of a key" and scene.titles.setdefault(page.title(), path) != path:
            faults.append(f"{stop}: has the title of {scene.titles[page.title()]}")
    assert faults == []


# --- One thing at a time --------------------------------------------------------------------------------------------


def test_without_scripts_nothing_on_the_new_pages_is_dead(
    new_page: NewPage, scene: Scene, backstage: Backstage
) -> None:
    pressed = backstage.key("ana", "Pressed", age=5 * DAY)  # every button is, so it is nobody else's
    backstage.rotate(pressed, "ana", age=HOUR)
    page = new_page("ana", scripts=False)
    actions = ("rotate", "edit", "impact", "requests", "history", "first-request")
    paths = [f"{KEYS}/{scene.refused}/{action}" for action in actions]
    paths += [f"{KEYS}/{pressed}/{action}" for action in ("extend", "retire")]
    paths += [f"{KEYS}/{scene.new}", f"{KEYS}/identify", f"{KEYS}?owner=all", f"{KEYS}?q=no+such+key"]
    paths += [f"{NEW}?from={scene.refused}&add=tasks:read", "/preferences", "/help/keyboard"]
    assert looking.dead_ends(page, paths) == []


def test_each_control_of_a_list_with_pairs_has_a_name_of_its_own(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana", width=320, height=568)
    page.goto(f"{KEYS}?owner=all")
    expect(page.get_by_role("link", name="Retire now CRM sync (old)")).to_be_visible()
    heard = page.get_by_role("table", name="API keys").aria_snapshot()
    names = re.findall(r'^ *- (?:link|button) "(.*)"', heard, re.MULTILINE)
    assert len(names) > 30
    # The two keys of a pair share their name; what is done to them does not.
    twice = {name for name in names if names.count(name) > 1}
    assert twice == set()


def test_forced_colours_leave_tags_focus_and_both_lanes_of_the_chart(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana", forced_colors="active")
    page.goto(f"{KEYS}/{scene.refused}/requests")
    inside, beside = colours(page, "main .env", [(0, 0.5), (-0.1, 0.5)])
    assert inside != beside, "the edge of a tag"
    for lane in (".chart rect:not(.refused)", ".chart rect.refused"):
        seen = colours(page, lane, [(0.5, n / 40) for n in range(2, 39)])
        assert {*colours(page, ".chart", [(0.01, 0.1)])} != {*seen}, lane
    solid, hatched = (
        {*colours(page, f".chart rect{lane}", [(0.5, n / 40) for n in range(2, 39)])}
        for lane in (":not(.refused)", ".refused")
    )
    assert len(solid) == 1 < len(hatched)
    tab = page.get_by_role("link", name="Overview")
    [before] = colours(page, "nav.tabs a >> nth=0", [(0.5, -3.5)])
    tab.focus()
    page.keyboard.press("Shift")
    [ring] = colours(page, "nav.tabs a >> nth=0", [(0.5, -3.5)])
    assert before != ring, "the focus ring"


def colours(page: Page, selector: str, points: list[tuple[float, float]]) -> list[str]:
    """See what colours points of an element have: as parts of its size, beyond 1 or below 0 in pixels."""
    node = page.locator(selector).last
    node.scroll_into_view_if_needed()
    box = node.bounding_box()
    assert box
    where = [
        [box["x"] + (x if x < -1 else x * box["width"]), box["y"] + (y if y < -1 else y * box["height"])]
        for x, y in points
    ]
    picture = base64.b64encode(page.screenshot()).decode()
    found: list[str] = page.evaluate(PIXELS, [picture, [[round(x), round(y)] for x, y in where]])
    return found


def test_nothing_jumps_while_a_page_of_a_key_loads(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana")
    for path in (f"{KEYS}/{scene.refused}/requests", f"{KEYS}/{scene.refused}/rotate", f"{KEYS}/{scene.new}", KEYS):
        page.goto(path)
        assert page.evaluate(SHIFTS) < 0.05, path
    # What opens below a row moves nothing above it. Of what moves below it Chromium would judge by how fast it came.
    before = top_of(page, scene.refused)
    press(page, "Deactivate Refused often")
    expect(page.get_by_role("heading", name="Deactivate “Refused often”?")).to_be_visible()
    assert top_of(page, scene.refused) == before


def top_of(page: Page, key_id: str) -> float:
    """Measure how far below the top of the page the row of a key begins."""
    top: float = page.locator(f"#key-{key_id}").evaluate("row => row.getBoundingClientRect().top + scrollY")
    return top


def test_on_paper_a_list_is_a_table_without_controls_and_says_who_printed_it(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana")
    page.goto(KEYS)
    page.emulate_media(media="print")
    table = page.get_by_role("table", name="API keys")
    assert table.locator("thead").evaluate("node => getComputedStyle(node).display") == "table-header-group"
    rows = table.locator("tbody tr")
    assert {row.evaluate("node => getComputedStyle(node).breakInside") for row in rows.all()} == {"avoid"}
    for control in ("button", "input", "select", "nav a", ".btn", ".keys td:last-child a", "summary"):
        expect(page.locator(f"body {control} >> visible=true"), control).to_have_count(0)
    for relative in page.locator(".keys time:not([data-fixed], .meta *):visible").all():
        expect(relative.locator("xpath=following-sibling::*[1]")).to_contain_text("UTC+")
    expect(page.locator(".keys details.more:not([open]) p").first).to_be_visible()  # "and 1 more", on the screen
    footer = page.locator("footer")
    expect(footer).to_contain_text("Acme")
    expect(footer).to_contain_text("printed")
    expect(footer).to_contain_text(" by Ana")
    page.goto(f"{KEYS}/{scene.refused}/requests")
    expect(page.get_by_role("table", name="Requests as a table").or_(page.locator("details table"))).to_be_visible()
