"""Preferences: zone, clock, theme and single-key shortcuts, and what they change elsewhere (ux FRM-04, KEY-05)."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Page, expect

from tests.browser import looking
from tests.browser.acting import KEYS, NEW, SCOPE, Keyboard, Mouse, fill_form, scope
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

# Somewhere the clocks change within 90 days, in most months of a year.
ZONES = ("Europe/Berlin", "Pacific/Auckland", "America/Santiago", "Africa/Casablanca")


@pytest.mark.parametrize("scripts", [True, False])
def test_what_somebody_prefers_holds_on_every_page(scripts: bool, new_page: NewPage, backstage: Backstage) -> None:
    backstage.key("lea", f"Zoned, {scripts}")
    page = new_page("lea", scripts=scripts, timezone_id="America/New_York")
    page.goto("/preferences")
    expect(page.get_by_label("Time zone")).to_have_value("UTC")
    if scripts:
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_label("Time zone")).to_have_value("America/New_York")
    page.get_by_label("Time zone").select_option("Europe/Berlin")
    page.get_by_role("radio", name="12 hours").check()
    page.get_by_role("radio", name="Dark").check()
    page.get_by_role("button", name="Save preferences").click()
    expect(page.locator("#status")).to_have_text("Preferences saved.")
    expect(page.get_by_label("Time zone")).to_have_value("Europe/Berlin")
    page.goto(KEYS)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
    assert looking.clocks(page) == []
    created = page.locator(".meta time").first
    moment = datetime.fromisoformat(created.get_attribute("datetime") or "").astimezone(ZoneInfo("Europe/Berlin"))
    assert created.inner_text() == (
        f"{moment.day} {moment:%b %Y}, {moment:%I:%M %p}".replace(", 0", ", ") + f" {offset(moment)}"
    )
    backstage.prefer("lea", time_zone="UTC", clock="24", theme="system")


def test_every_choice_of_expiry_names_its_moment_also_across_a_change_of_the_clocks(
    new_page: NewPage, backstage: Backstage
) -> None:
    now = datetime.now(UTC)
    changing = [name for name in ZONES if len({at(now, name, days).utcoffset() for days in (0, 30, 90)}) > 1]
    page = new_page("max")
    for zone in {*changing[:1], "Europe/Berlin"}:
        backstage.prefer("max", time_zone=zone)
        before = datetime.now(UTC).replace(microsecond=0)
        page.goto(NEW)
        for label, days in (("30 days", 30), ("90 days", 90), ("1 year", 365)):
            shown = page.locator("label", has_text=label).locator("time")
            ends_at = datetime.fromisoformat(shown.get_attribute("datetime") or "")
            assert before <= ends_at - timedelta(days=days) <= datetime.now(UTC)
            local = ends_at.astimezone(ZoneInfo(zone))
            assert shown.inner_text() == f"{local.day} {local:%b %Y, %H:%M} {offset(local)}"
    backstage.prefer("max", time_zone="UTC")


def at(now: datetime, zone: str, days: int) -> datetime:
    """Give a moment so many days ahead, as it is told somewhere."""
    return (now + timedelta(days=days)).astimezone(ZoneInfo(zone))


def offset(local: datetime) -> str:
    """Write an offset of whole hours."""
    hours = int((local.utcoffset() or timedelta()).total_seconds()) // 3600
    return f"UTC{'+' if hours > 0 else '−'}{abs(hours)}" if hours else "UTC"


def test_single_keys_do_nothing_until_they_are_switched_on_and_never_in_a_field(
    new_page: NewPage, backstage: Backstage
) -> None:
    backstage.key("rio", "One key")
    page = new_page("rio")
    page.goto(KEYS)
    for key in ("n", "/", "?"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement === document.body")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page).to_have_url(re.compile(f"{KEYS}$"))

    page.goto("/preferences")
    keyboard = Keyboard(page)
    keyboard.choose(page.get_by_role("checkbox", name="Single-key shortcuts"))
    keyboard.press(page.get_by_role("button", name="Save preferences"))
    expect(page.locator("#status")).to_have_text("Preferences saved.")
    page.goto(KEYS)
    page.keyboard.press("/")
    search = page.get_by_role("searchbox")
    expect(search).to_be_focused()
    page.keyboard.type("n/?")
    expect(search).to_have_value("n/?")
    search.fill("")
    search.blur()
    expect(page.get_by_role("rowheader", name="One key")).to_be_visible()
    for held in ("Control+Alt+n", "Alt+n"):
        page.keyboard.press(held)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("n")
    expect(page.get_by_label("What is this key for?")).to_be_focused()
    page.keyboard.type("n?")
    expect(page.get_by_label("What is this key for?")).to_have_value("n?")
    page.get_by_role("radio", name="Live").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.goto(KEYS)
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard", level=1)).to_be_visible()
    backstage.prefer("rio", has_shortcuts=False)


@pytest.mark.parametrize("scripts", [True, False])
def test_presets_tick_what_can_be_granted_and_a_hand_takes_over(
    scripts: bool, new_page: NewPage, backstage: Backstage
) -> None:
    source = backstage.key("max", f"Source, {scripts}", scopes=["accounts:write", "tasks:read"])
    page = new_page("max", scripts=scripts)
    page.goto(NEW)
    fill_form(Mouse(page), f"Preset, {scripts}", [])
    reads = {"leads:read", "accounts:read", "tasks:read", "reservations:read"}
    for preset, ticks in (
        ("Read-only, everything I can read", reads),
        ("Read and write, one solution", {"leads:read", "leads:write", "accounts:read", "accounts:write"}),
    ):
        page.get_by_role("radio", name=preset).check()
        expect_ticks(page, ticks, scripts)
    page.get_by_label("Key to copy from").select_option(source)
    if not scripts:
        page.get_by_role("radio", name="Copy from a key").check()
    expect_ticks(page, {"accounts:write", "tasks:read"}, scripts)
    expect(page.get_by_label("What is this key for?")).to_have_value(f"Preset, {scripts}")
    if scripts:
        page.get_by_role("checkbox", name="leads:read").check()
        expect(page.get_by_role("radio", name="Choose myself")).to_be_checked()


def expect_ticks(page: Page, ticks: set[str], scripts: bool) -> None:
    """Look whether just these scopes are ticked; without scripts a button applies the preset."""
    if not scripts:
        page.get_by_role("button", name="Apply").click()
    for wanted in ticks:
        expect(scope(page, wanted)).to_be_checked()
    expect(page.locator(f"{SCOPE}:checked")).to_have_count(len(ticks))
