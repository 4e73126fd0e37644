"""Review, policy, solutions, apps and one's own account on the screen: for everybody, with and without scripts."""

from datetime import timedelta

import pytest
from playwright.sync_api import expect

from tests.browser import looking
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

SIGNED_OUT = {"forgotten": "/reset", "used up": f"/reset/{'x' * 43}"}


@pytest.fixture(scope="module")
def addresses(backstage: Backstage) -> dict[str, str]:
    """Some findings of every look; the addresses of all pages."""
    endless = backstage.key("max", "W" * 60, scopes=["leads:read", "leads:write"], expires="never", note="N" * 140)
    backstage.key("ana", "Of an administrator", scopes=["leads:read"], age=timedelta(days=80))
    backstage.key("rio", "Old and unused", age=timedelta(days=20))
    return {
        "review": "/w/acme/review",
        "review, one finding": "/w/acme/review?finding=never_expires",
        "review, none": "/w/acme/review?finding=stale",
        "looks fine": f"/w/acme/review/{endless}/reviewed?finding=never_expires",
        "stop many": f"/w/acme/review/deactivate?key={endless}",
        "stop none": "/w/acme/review/deactivate",
        "workspace": "/w/acme/workspace",
        "solution": "/w/acme/solutions/sales/edit",
        "new solution": "/w/acme/solutions/new",
        "app": "/w/acme/apps/leads/edit",
        "policy": "/w/acme/policy?max_key_days=30&admins_own_live=no",
        "account": "/account",
        "name": "/account/name",
        "sessions": "/account/sessions",
        "password": "/account/password",
    }


def test_every_page_is_for_everybody(new_page: NewPage, addresses: dict[str, str]) -> None:
    faults = []
    for person, paths in (("ana", addresses), ("", SIGNED_OUT)):
        page = new_page(person)
        for name, address in paths.items():
            page.goto(address)
            faults += [f"{name}: {fault}" for fault in looking.all_round(page)]
    assert faults == []


def test_nothing_is_dead_without_scripts(new_page: NewPage, addresses: dict[str, str]) -> None:
    page = new_page("ana", scripts=False)
    for address in addresses.values():
        page.goto(address)
        assert looking.inert_controls(page) == []
        assert looking.plain_twins(page) == []


def test_the_printed_review_has_no_controls_and_no_column_without_words(
    new_page: NewPage, backstage: Backstage
) -> None:
    backstage.key("lea", "Printed", expires="never")
    page = new_page("lea")
    page.goto("/w/acme/review?finding=never_expires")
    page.emulate_media(media="print")
    expect(page.get_by_text("key review, printed")).to_be_visible()
    for control in ("Looks fine", "What to do", "Deactivate"):
        expect(page.locator("#review-form").get_by_text(control).filter(visible=True)).to_have_count(0)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_finding_is_marked_and_a_key_is_stopped_from_the_review(
    scripts: bool, new_page: NewPage, backstage: Backstage
) -> None:
    name = f"Endless {'with' if scripts else 'without'} scripts"
    key = backstage.key("lea", name, expires="never")
    page = new_page("lea", scripts=scripts)
    page.goto("/w/acme/review?finding=never_expires")
    page.get_by_role("row").filter(has_text=name).get_by_role("checkbox").check()
    page.get_by_role("button", name="Deactivate 1 key" if scripts else "Deactivate chosen keys").click()
    expect(page.get_by_role("heading", name="Deactivate 1 key?")).to_be_visible()
    page.get_by_role("button", name="Deactivate 1 key" if scripts else "Deactivate key").click()
    expect(page.locator("#status")).to_have_text("1 key is deactivated. Requests are refused from now.")
    assert backstage.row(key).deactivated_at
    other = backstage.key("lea", f"{name}, yearly", expires="never")
    page.goto(f"/w/acme/review/{other}/reviewed?finding=never_expires")
    page.get_by_role("button", name="Looks fine").click()
    expect(page.locator(".error-summary")).to_be_focused()
    page.get_by_label("Why is this fine?").fill("runs every January")
    page.get_by_role("button", name="Looks fine").click()
    expect(page.get_by_role("row").filter(has_text=f"{name}, yearly")).to_have_count(0)
