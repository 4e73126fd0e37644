"""Rotating, replacing, renaming: the focus is where one goes on, nothing widens, the old key ends (ux KEY, FRM)."""

import re
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import text

from tests.browser.acting import KEYS, NEW, SCOPE, call, keep, leave_receipt, reveal, scope
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server

REGIONS = ("status", "alert", "dlg-status", "dlg-alert")


def expect_focus(page: Page, element: str) -> None:
    """Look whether the element of this id has the focus."""
    expect(page.locator(f"#{element}")).to_be_focused()


def test_each_action_of_a_rotation_leaves_the_focus_where_one_goes_on(new_page: NewPage, backstage: Backstage) -> None:
    old = backstage.key("max", "Partner portal", scopes=["leads:read", "tasks:read"], age=timedelta(days=2))
    last_four = backstage.row(old).last_four
    backstage.key("max", "Stands below", scopes=["leads:read"], age=timedelta(days=3))
    page = new_page("max")
    page.goto(KEYS)
    page.evaluate("ids => { window.regions = ids.map((id) => document.getElementById(id)) }", REGIONS)
    status = page.locator("#status")

    page.get_by_role("link", name="Rotate Partner portal").click()
    expect_focus(page, "dlg-title")
    page.keyboard.press("Escape")
    expect_focus(page, f"key-{old}-rotate")
    page.keyboard.press("Enter")
    expect_focus(page, "dlg-title")
    for text_ in ("leads:read", "tasks:read"):
        scope(page, text_).uncheck()
    page.get_by_role("button", name="Rotate live key").click()
    expect(page.locator(".error-summary")).to_be_focused()
    page.locator(".error-summary a").click()
    expect_focus(page, "rotate-scopes")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Rotate live key").click()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_focused()
    keep(page)
    expect(status).to_contain_text(f"“Partner portal” was replaced. The old key (…{last_four}) stops on ")
    made = page.locator(f"#key-{old}").locator("xpath=preceding-sibling::tbody[1]")  # now that the list is a new one
    new = (made.get_attribute("id") or "").removeprefix("key-")
    expect_focus(page, f"key-{new}-link")

    page.get_by_role("link", name="Extend by 24 h Partner portal (old)").click()
    expect_focus(page, f"key-{old}-ask")
    page.keyboard.press("Escape")
    expect_focus(page, f"key-{old}-extend")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Extend by 24 h").click()
    expect_focus(page, f"key-{old}-retire")
    expect(status).to_contain_text(f"The old “Partner portal” (…{last_four}) works longer: until ")

    page.get_by_role("link", name="Edit Partner portal").click()
    expect_focus(page, "edit-name")
    page.keyboard.press("Escape")
    expect_focus(page, f"key-{new}-edit")
    page.keyboard.press("Enter")
    expect_focus(page, "edit-name")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    expect(page.locator(".error-summary")).to_be_focused()
    page.locator(".error-summary a").click()
    page.keyboard.type("Customer portal")
    page.keyboard.press("Enter")
    expect_focus(page, f"key-{new}-edit")
    expect(status).to_have_text("“Customer portal” is saved.")

    page.get_by_role("link", name="Retire now Partner portal (old)").click()
    expect_focus(page, f"key-{old}-ask")
    expect(page.get_by_text("Not used since the rotation: safe to retire.")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect_focus(page, f"key-{old}-retire")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Retire old key").click()
    expect_focus(page, f"key-{new}-link")
    expect(status).to_contain_text(f"(…{last_four}) is retired. Requests are refused from now.")
    expect(page.get_by_role("heading", name="The old “Partner portal” was retired")).to_be_visible()
    expect(page.locator(f"#key-{old}")).to_contain_text("Revoked")

    page.get_by_role("link", name="Replace it Customer portal").click()
    expect_focus(page, "dlg-title")
    page.keyboard.press("Escape")
    expect_focus(page, f"key-{new}-replace")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Replace live key").click()
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_focused()
    keep(page)
    replaced = page.get_by_role("rowheader", name="Customer portal").get_by_role("link")
    expect(replaced).to_be_focused()
    expect(replaced).not_to_have_id(f"key-{new}-link")
    page.get_by_role("link", name="Deactivate Customer portal").click()
    page.get_by_role("button", name="Deactivate Customer portal").click()
    expect(page.get_by_role("link", name="Reactivate Customer portal")).to_be_focused()
    page.get_by_role("link", name="Close").click()
    expect(page.get_by_role("link", name="Reactivate Customer portal")).to_be_focused()

    page.get_by_role("link", name="Which key is this?").click()
    expect_focus(page, "identify-text")
    page.keyboard.press("Escape")
    expect_focus(page, "identify-key")
    search = page.get_by_role("searchbox")
    search.fill("customer")
    expect(status).to_have_text("1 key matches")
    expect(search).to_be_focused()
    assert page.evaluate("regions.every((region) => document.getElementById(region.id) === region)")


@pytest.mark.parametrize("scripts", [True, False])
def test_rotating_never_adds_a_scope_and_the_old_key_goes_on_until_it_is_retired(
    scripts: bool, new_page: NewPage, backstage: Backstage, live_server: Server
) -> None:
    name = f"Shuttle, {scripts}"
    page = new_page("max", scripts=scripts)
    old = reveal(page, name, ["leads:read", "tasks:read"], checked=not scripts)
    leave(page, scripts)
    page.get_by_role("link", name=f"Rotate {name}").click()
    expect(page.get_by_role("heading", name=f"Rotate “{name}”")).to_be_visible()
    offered = page.locator(SCOPE)
    expect(offered.and_(page.locator(":checked"))).to_have_count(2)
    assert {box.get_attribute("value") for box in offered.all()} == {"leads:read", "tasks:read"}
    if scripts:  # nothing on the page asks for more, so only a forged form does
        scope(page, "tasks:read").evaluate("box => box.value = 'leads:write'")
        with page.expect_response("**/rotate") as answer:
            page.get_by_role("button", name="Rotate sandbox key").click()
        assert answer.value.status == 422
        expect(page.get_by_role("group", name="Check these answers")).to_contain_text("Rotating never adds any.")
    scope(page, "tasks:read").uncheck()
    page.get_by_role("button", name="Rotate sandbox key").click()
    new = page.get_by_label("API key, full text").input_value()
    assert new != old
    leave(page, scripts)
    assert [call(live_server, key, "/apps/leads/records") for key in (old, new)] == [200, 200]
    assert [call(live_server, key, "/apps/tasks/records") for key in (old, new)] == [200, 403]
    backstage.wait_for_use(name, 4)
    page.goto(KEYS)
    page.get_by_role("rowheader", name=name).get_by_role("link", name=name, exact=True).click()
    pair = page.get_by_role("region", name="Rotation")
    expect(pair).to_contain_text(f"{name} (old)")
    expect(pair).to_contain_text(
        re.compile(r"Still used: 127\.0\.0\.1 – last call (just now|1 min) .*, 2 since the rotation")
    )
    pair.get_by_role("link", name="Retire old key now").click()
    page.get_by_role("button", name="Retire old key").click()
    expect(page.locator("#status")).to_contain_text("is retired. Requests are refused from now.")
    assert [call(live_server, key, "/apps/leads/records") for key in (old, new)] == [401, 200]
    page.goto(KEYS)  # from the receipt
    expect(page.get_by_role("rowheader", name=name)).to_have_count(1)


def leave(page: Page, scripts: bool) -> None:
    """Go on from the reveal to the list."""
    if scripts:
        keep(page)
    else:
        page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("heading", name="API keys", level=1)).to_be_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_rotating_twice_is_told_and_changes_nothing(scripts: bool, new_page: NewPage, backstage: Backstage) -> None:
    name = f"Rotated in another tab, {scripts}"
    old = backstage.key("lea", name)
    page = new_page("lea", scripts=scripts)
    page.goto(KEYS)
    page.get_by_role("link", name=f"Rotate {name}").click()
    expect(page.get_by_role("heading", name=f"Rotate “{name}”")).to_be_visible()
    backstage.rotate(old, "lea")
    page.get_by_role("button", name="Rotate live key").click()
    told = page.locator("#alert") if scripts else page.get_by_role("main")
    expect(told).to_contain_text(name)
    expect(page.get_by_label("API key, full text")).to_have_count(0)
    if not scripts:
        page.goto(KEYS)
    expect(page.get_by_role("rowheader", name=name)).to_have_count(2)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_refused_call_leads_to_a_key_that_may_do_it(
    scripts: bool, new_page: NewPage, backstage: Backstage, live_server: Server
) -> None:
    name = f"Lacks a scope, {scripts}"
    page = new_page("max", scripts=scripts)
    old = reveal(page, name, ["leads:read"], checked=not scripts)
    leave(page, scripts)
    assert call(live_server, old, "/apps/accounts/records") == 403
    backstage.wait_for_use(name)
    page.get_by_role("rowheader", name=name).get_by_role("link", name=name, exact=True).click()
    page.get_by_role("link", name="Requests").click()
    page.get_by_role("link", name="Generate a key with this scope accounts:read").click()
    for wanted in ("leads:read", "accounts:read"):
        expect(scope(page, wanted)).to_be_checked()
    expect(page.locator("label", has_text="accounts:read")).to_contain_text("added")
    page.get_by_role("checkbox", name=f"Replace “{name}”").check()
    page.get_by_label("What is this key for?").fill(name)
    page.get_by_role("radio", name="1 hour").check()
    if not scripts:
        page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Generate sandbox key").click()
    new = page.get_by_label("API key, full text").input_value()
    assert [call(live_server, key, "/apps/accounts/records") for key in (old, new)] == [403, 200]
    assert call(live_server, old, "/apps/leads/records") == 200


def test_unknown_usage_counts_as_busy(new_page: NewPage, backstage: Backstage) -> None:
    backstage.key("rio", "Nobody knows")
    page = new_page("rio")
    page.goto(KEYS)
    change(backstage, "ALTER TABLE usage RENAME TO usage_elsewhere")
    try:
        page.get_by_role("link", name="Delete Nobody knows").click()
        expect(page.get_by_text("Usage could not be loaded. Treat this key as in use.")).to_be_visible()
        expect(page.get_by_label("Type Nobody knows to delete it")).to_be_visible()
    finally:
        change(backstage, "ALTER TABLE usage_elsewhere RENAME TO usage")


def change(backstage: Backstage, statement: str) -> None:
    """Change the database itself."""
    with backstage.database.transaction() as session:
        session.execute(text(statement))


def test_the_receipt_counts_by_itself_and_names_the_first_refusal(
    new_page: NewPage, live_server: Server, backstage: Backstage
) -> None:
    page = new_page("rio")
    key = reveal(page, "Receipt")
    keep(page)
    page.get_by_role("link", name="Deactivate Receipt").click()
    page.get_by_role("button", name="Deactivate Receipt").click()
    receipt = page.locator(".receipt")
    expect(receipt).to_contain_text("Waiting for the first refused request…")
    assert call(live_server, key, "/apps/tasks/records") == 401
    expect(receipt).to_contain_text(re.compile(r"First refused: GET /api/v1/apps/tasks/records, \d\d:\d\d:\d\d UTC"))
    expect(receipt).to_contain_text("from 127.0.0.1")
    expect(receipt.locator("dd strong")).to_have_text("0")
    page.get_by_role("link", name="Delete Receipt").click()
    page.get_by_role("button", name="Delete sandbox key").click()
    expect(page.get_by_role("heading", name="“Receipt” was deleted")).to_be_focused()
    leave_receipt(page)
    page.goto(f"{NEW}?from={backstage.find('Receipt').public_id}")
    expect(scope(page, "tasks:read")).to_be_checked()
