"""Long lists: pages, filters, search and "which key is this?", with scripts and without (ux FRM-10, NOJS-05)."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect
from sqlalchemy import insert, select

from portal.rules.credentials import new_id
from portal.store.models import ApiKey, App, KeyScope
from tests.browser.acting import KEYS, keep, reveal
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

MANY = 312
NOTE = "We searched by the last 4 characters so that the key itself is not stored."


@pytest.fixture(scope="module")
def many(backstage: Backstage) -> None:
    """More keys of ana than a member may make; all live, one of them with an ending that no other has."""
    backstage.key("ana", "Key 0000")
    with backstage.database.transaction() as session:
        row = session.execute(select(ApiKey.__table__).where(ApiKey.name == "Key 0000")).one()
        tasks = session.scalars(select(App.id).where(App.slug == "tasks", App.workspace_id == row.workspace_id)).one()
        rows = [
            row._asdict()
            | {
                "id": None,
                "public_id": new_id("key"),
                "name": f"Key {n:04}",
                "name_folded": f"key {n:04}",
                "digest": n.to_bytes(32, "big"),
                "last_four": "q7Zy" if n == 200 else f"{n:04}",
                "form_id": None,
                "created_at": datetime.now(UTC) - timedelta(days=60, minutes=n),
            }
            for n in range(1, MANY)
        ]
        for one in rows:
            del one["id"]
        session.execute(insert(ApiKey), rows)
        made = session.scalars(select(ApiKey.id).where(ApiKey.name.like("Key %"), ApiKey.name != "Key 0000"))
        session.execute(insert(KeyScope), [{"key_id": key, "app_id": tasks, "action": "read"} for key in made])


@pytest.mark.parametrize("scripts", [True, False])
def test_312_keys_are_13_pages_that_keep_the_filters(scripts: bool, many: None, new_page: NewPage) -> None:
    page = new_page("ana", scripts=scripts)
    page.goto(f"{KEYS}?env=live&state=active&scope=tasks:read&sort=name")
    expect(page.get_by_text("Showing 1–25 of 312")).to_be_visible()
    pages = page.get_by_role("navigation", name="Pages")
    pages.get_by_role("link", name="Page 2", exact=True).click()
    expect(page.get_by_text("Showing 26–50 of 312")).to_be_visible()
    pages.get_by_role("link", name="Page 13").click()
    expect(page.get_by_text("Showing 301–312 of 312")).to_be_visible()
    expect(page.locator(".keys tbody")).to_have_count(12)
    expect(page.locator(".keys tbody").last).to_contain_text("Key 0311")
    for kept in ("env=live", "state=active", "scope=tasks:read", "sort=name", "page=13"):
        assert kept in page.url.replace("%3A", ":")
    page.get_by_role("navigation", name="Environment").get_by_role("link", name="Sandbox").click()
    expect(page.get_by_role("heading", name=re.compile("^No keys"))).to_be_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_the_last_four_find_the_one_key_also_from_a_pasted_one(
    scripts: bool, many: None, new_page: NewPage, backstage: Backstage
) -> None:
    page = new_page("ana", scripts=scripts)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(f"{request.url} {request.post_data or ''}"))
    page.goto(KEYS)
    search = page.get_by_role("searchbox")
    search.fill("q7Zy")
    search.press("Enter")
    expect(page.locator(".keys tbody")).to_have_count(1)
    if scripts:
        expect(search).to_be_focused()
    expect(page.get_by_role("rowheader", name="Key 0200")).to_be_visible()
    pasted = f"sk_live_{'x' * 39}q7Zy_000000"
    page.goto(KEYS)
    search.fill(pasted)
    if not scripts:
        page.get_by_role("button", name="Search").click()
    expect(page.locator("#q-note")).to_have_text(NOTE)
    expect(page).to_have_url(re.compile("[?&]q=q7Zy(&|$)"))
    expect(page.locator(".keys tbody")).to_have_count(1)
    if scripts:
        assert pasted not in "".join(sent)
    else:
        assert [line for line in sent if pasted in line.split(" ")[0]] == []


def test_what_a_row_low_on_the_screen_asks_is_seen_down_to_its_button(many: None, new_page: NewPage) -> None:
    page = new_page("ana", height=800)
    page.goto(KEYS)
    ask = page.get_by_role("link", name=re.compile("^Deactivate Key")).last
    ask.evaluate("link => scrollBy(0, link.closest('tr').getBoundingClientRect().bottom - innerHeight + 120)")
    ask.click()
    expect(page.get_by_role("heading", name=re.compile("^Deactivate “"))).to_be_focused()
    expect(page.get_by_role("button", name=re.compile("^Deactivate Key"))).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("width", [768, 1280])
def test_the_filters_stand_in_one_row_and_the_chosen_state_is_read_to_its_end(
    width: int, many: None, new_page: NewPage
) -> None:
    page = new_page("ana", width=width)
    page.goto(f"{KEYS}?owner=all&state=expiring")
    controls = page.locator(".filters select, .filters button" + (", #q" if width == 1280 else ""))
    assert len(set(controls.evaluate_all("all => all.map((it) => it.getBoundingClientRect().bottom)"))) == 1
    state = page.get_by_label("State")
    expect(state).to_have_value("expiring")
    shown = state.evaluate("it => it.offsetWidth")
    assert shown >= state.evaluate("it => { it.style.width = 'max-content'; return it.offsetWidth }")


@pytest.mark.parametrize("count", [4, 6])
def test_no_card_stands_alone_in_its_row(count: int, many: None, new_page: NewPage) -> None:
    page = new_page("ana")
    page.goto(KEYS)
    cards = page.locator("#cards")
    for _ in range(count - cards.locator("li").count()):
        cards.evaluate("list => list.append(list.lastElementChild.cloneNode(true))")
    alone = []
    for width in (320, 480, 560, 640, 768, 800, 899, 920, 1024, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        tops = cards.evaluate("list => [...list.children].map((it) => it.getBoundingClientRect().top)")
        if tops.count(tops[-1]) == 1:
            alone.append(width)
    assert alone == []


@pytest.mark.parametrize("scripts", [True, False])
def test_a_key_from_a_log_is_found_by_whoever_may_see_it(scripts: bool, new_page: NewPage) -> None:
    name = f"Leaked, {scripts}"
    page = new_page("rio", scripts=scripts)
    key = reveal(page, name, checked=not scripts)
    if scripts:
        keep(page)
    said = {"rio": f"This is the key {name}.", "lea": "not in this workspace, or not visible to you"}
    for person, words in said.items():
        page = new_page(person, scripts=scripts)
        page.goto(f"{KEYS}?owner=api" if person == "lea" else KEYS)
        page.goto(f"{KEYS}/identify")
        page.get_by_label("Paste a key").fill(f"ERROR 401 for {key} in job 7")
        page.get_by_role("button", name="Look it up").click()
        expect(page.locator("#identify-result")).to_contain_text(words)
        assert key not in page.content()
    page = new_page("rio", scripts=scripts)
    page.goto(f"{KEYS}/identify")
    page.get_by_label("Paste a key").fill(key)
    page.get_by_role("button", name="Look it up").click()
    page.get_by_role("link", name=f"Deactivate {name}").click()
    page.get_by_role("button", name=f"Deactivate {name}").click()
    expect(page.locator("#status")).to_have_text(f"“{name}” is deactivated. Requests are refused from now.")
