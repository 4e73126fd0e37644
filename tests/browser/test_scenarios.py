"""The three scenarios of the permissions help page, from the team lead's first click to the last refused call."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from portal.rules.access import AccessLevel
from tests.browser.acting import Hands, Keyboard, Mouse
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server


@dataclass(frozen=True)
class Way:
    """How a lead goes through it."""

    scripts: bool = True
    width: int = 1280


def ask(server: Server, key: str, method: str, path: str, fields: dict[str, Any] | None = None) -> int:
    """Call the REST API as the integration does; give the status."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps({"fields": fields}) if fields else None
    connection.request(method, f"/api/v1{path}", body=body, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def start(page: Page) -> Hands:
    """Open the workspace as somebody who looks for where to begin."""
    page.goto("/w/acme")
    return Mouse(page)


def open_menu(hands: Hands, link: str) -> None:
    """Follow a link of the main menu, which a phone keeps behind a button."""
    page = hands.page
    if page.get_by_role("button", name="Menu", exact=True).is_visible():
        hands.press(page.get_by_role("button", name="Menu", exact=True))
    hands.press(page.get_by_role("navigation", name="Main").get_by_role("link", name=link))


def make_member(hands: Hands, name: str, purpose: str, access: dict[str, str]) -> None:
    """Make an API member with these levels, and end on its page."""
    page = hands.page
    open_menu(hands, "API members")
    hands.press(page.get_by_role("link", name="New API member").first)
    hands.write(page.get_by_label("Name"), name)
    hands.write(page.get_by_label("Purpose"), purpose)
    for solution, level in access.items():
        hands.choose(page.get_by_role("radiogroup", name=solution).get_by_role("radio", name=level))
    hands.press(page.get_by_role("button", name="Save API member"))
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def first_key(hands: Hands, name: str, owner: str, scopes: list[str], *, scripts: bool = True) -> str:
    """Generate the first key of the API member whose page is open; give its text."""
    page = hands.page
    hands.press(page.get_by_role("link", name="Generate its first key"))
    expect(page.get_by_role("radio", name=owner)).to_be_checked()
    hands.write(page.get_by_label("What is this key for?"), name)
    hands.choose(page.get_by_role("radio", name="Live"))
    for scope in scopes:
        hands.choose(page.get_by_role("checkbox", name=scope))
    if not scripts:
        hands.press(page.get_by_role("button", name="Continue"))
    hands.press(page.get_by_role("button", name="Generate live key"))
    text = page.get_by_label("API key, full text").input_value()
    if scripts:  # they ask whether the key is stored
        page.get_by_role("checkbox", name="I have stored this key").check()
    return text


# How else a page is drawn is nothing to the database.
@pytest.mark.parametrize("way", [Way(), pytest.param(Way(scripts=False, width=320), marks=pytest.mark.once)])
def test_automated_data_entry(new_page: NewPage, live_server: Server, backstage: Backstage, way: Way) -> None:
    """Marketing adds leads from a CRM: write alone, in one app; it ends when the lead lowers the access."""
    backstage.grant("lea", "sales", AccessLevel.MANAGE)
    page = new_page("lea", scripts=way.scripts, width=way.width)
    hands = start(page)
    name = f"CRM entry {way.width}"
    make_member(hands, name, "Adds new leads from the CRM", {"Sales": "Full"})
    key = first_key(hands, "Lead deposit", name, ["leads:write"], scripts=way.scripts)
    lead = {"name": "Ines Moreau"}
    tried = [
        ask(live_server, key, "POST", "/apps/leads/records", lead),
        ask(live_server, key, "GET", "/apps/leads/records"),  # write does not imply read
        ask(live_server, key, "POST", "/apps/accounts/records", lead),
        ask(live_server, key, "GET", "/apps/tasks/records"),
    ]
    assert tried == [201, 403, 403, 403]
    hands.page.goto("/w/acme/api-members")
    hands.press(page.get_by_role("link", name=name, exact=True))
    hands.press(page.get_by_role("link", name="Change access"))
    expect(page.get_by_text("Lead deposit")).to_be_visible()
    hands.choose(page.get_by_role("radiogroup", name="Sales").get_by_role("radio", name="Read-only"))
    hands.press(page.get_by_role("button", name="Save access"))
    expect(page.locator("#status")).to_contain_text("1 active key lost 1 scope.")
    assert ask(live_server, key, "POST", "/apps/leads/records", lead) == 403


def test_data_synchronisation(new_page: NewPage, live_server: Server) -> None:
    """Engineering syncs tasks with a tracker: read-only by access and by scope; it ends when the key is deleted."""
    page = new_page("lea", scripts=False)
    page.goto("/w/acme")
    make_member(Keyboard(page), "Tracker sync", "Copies tasks to the tracker", {"Operations": "Read-only"})
    hands = Mouse(page)
    hands.press(page.get_by_role("link", name="Generate its first key"))
    expect(page.get_by_role("button", name="Continue")).to_be_visible()  # below the scopes
    expect(page.get_by_role("checkbox", name=":write")).to_have_count(0)  # nothing above the ceiling is offered
    page.go_back()
    key = first_key(hands, "Tracker, hourly", "Tracker sync", ["tasks:read", "reservations:read"], scripts=False)
    tried = [
        ask(live_server, key, "GET", "/apps/tasks/records"),
        ask(live_server, key, "GET", "/apps/reservations/records"),
        ask(live_server, key, "POST", "/apps/tasks/records", {"title": "No"}),
        ask(live_server, key, "GET", "/apps/leads/records"),
    ]
    assert tried == [200, 200, 403, 403]
    page.goto("/w/acme/api-members")
    hands.press(page.get_by_role("link", name="Tracker sync", exact=True))
    hands.press(page.get_by_role("link", name="Delete"))
    hands.write(page.get_by_label("Type Tracker sync to delete it"), "tracker sync")
    hands.press(page.get_by_role("button", name="Delete Tracker sync"))
    expect(page.locator("#status")).to_have_text("“Tracker sync” was deleted. Its keys are revoked.")
    assert ask(live_server, key, "GET", "/apps/tasks/records") == 401


def test_controlled_access_for_a_third_party_tool(new_page: NewPage, live_server: Server) -> None:
    """An analytics platform gets one app to read, on an account of its own; it ends when that is deactivated."""
    page = new_page("lea")
    hands = start(page)
    make_member(hands, "Analytics Inc", "Reads reservations for the weekly report", {"Operations": "Read-only"})
    key = first_key(hands, "Weekly report", "Analytics Inc", ["reservations:read"])
    tried = [ask(live_server, key, "GET", f"/apps/{app}/records") for app in ("reservations", "tasks", "leads")]
    assert tried == [200, 403, 403]
    page.goto("/w/acme/api-members")
    hands.press(page.get_by_role("link", name="Analytics Inc", exact=True))
    hands.press(page.get_by_role("link", name="Deactivate"))
    expect(page.get_by_text("1 active key stops")).to_be_visible()
    hands.press(page.get_by_role("button", name="Deactivate Analytics Inc"))
    expect(page.locator("#status")).to_contain_text("Requests with its keys are refused from now.")
    assert ask(live_server, key, "GET", "/apps/reservations/records") == 401
    hands.press(page.get_by_role("link", name="Reactivate"))
    hands.press(page.get_by_role("button", name="Reactivate Analytics Inc"))
    expect(page.locator("#status")).to_contain_text("1 key stays deactivated")
    assert ask(live_server, key, "GET", "/apps/reservations/records") == 401
