"""People and API members on the screen: every page for everybody, and offboarding by hand."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from portal.rules.access import AccessLevel, Role
from portal.services import api_members, invitations
from portal.store.models import Workspace
from tests.browser import looking
from tests.browser.acting import call
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server

HOME = "/w/acme"


@dataclass
class Scene:
    """Addresses of what was made so that every page has something to show."""

    bot: str
    idle: str
    max: str
    rio: str
    off: str
    invitation: str


@pytest.fixture(scope="module")
def scene(backstage: Backstage) -> Scene:
    """An API member that is busy, one that has nothing, people with keys, and an open invitation."""
    at = datetime.now(UTC)
    lea = backstage.actor("lea", at)
    with backstage.database.transaction() as session:
        full = {"operations": AccessLevel.FULL}
        bot = api_members.create(session, lea, name="CRM bot", purpose="Copies tasks every night", access=full)
        idle = api_members.create(session, lea, name="W" * 60, purpose="N" * 140, access={})
        off = api_members.create(session, lea, name="Old scanner", purpose="", access=full)
    backstage.change("Old scanner", deactivated_at=at)
    backstage.grant("CRM bot", "sales", AccessLevel.READ)
    busy = backstage.key("CRM bot", "Task copier", creator="lea", scopes=["tasks:read", "tasks:write"])
    backstage.use(busy, at, scope="tasks:write", times=1)
    for name in ("Sheet import", "L" * 60):
        key = backstage.key("max", name, scopes=["leads:read", "leads:write"])
        backstage.use(key, at, scope="leads:read", times=3)
    with backstage.database.transaction() as session:
        acme = session.scalars(select(Workspace).where(Workspace.slug == "acme")).one()
        who = backstage.actor("ana", at)
        invitations.issue(session, who, acme, "ida@acme.test", Role.MEMBER, {"sales": AccessLevel.READ})
    waiting = backstage.told(action="member_invited")[-1].target_id or ""

    def member(name: str) -> str:
        return f"{HOME}/members/{backstage.member(name).public_id}"

    made = [f"{HOME}/api-members/{each.public_id}" for each in (bot, idle, off)]
    return Scene(made[0], made[1], member("max"), member("rio"), made[2], f"{HOME}/members/invitations/{waiting}")


def addresses(scene: Scene) -> dict[str, str]:
    """Name all pages that an administrator can open."""
    return {
        "api members": f"{HOME}/api-members",
        "api members, none match": f"{HOME}/api-members?state=unmanaged",
        "new": f"{HOME}/api-members/new",
        "detail": scene.bot,
        "detail, first key": scene.idle,
        "detail, off": scene.off,
        "access": f"{scene.bot}/access",
        "edit": f"{scene.idle}/edit",
        "manager": f"{scene.bot}/manager",
        "deactivate": f"{scene.bot}/deactivate",
        "reactivate": f"{scene.off}/reactivate",
        "delete": f"{scene.bot}/delete",
        "people": f"{HOME}/members",
        "people, none match": f"{HOME}/members?q=nobody",
        "person": scene.max,
        "person access": f"{scene.max}/access",
        "leave": f"{scene.max}/leave",
        "invite": f"{HOME}/members/invite",
        "withdraw": f"{scene.invitation}/withdraw",
    }


def test_every_page_is_for_everybody(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana")
    faults = []
    for name, address in addresses(scene).items():
        page.goto(address)
        faults += [f"{name}: {fault}" for fault in looking.all_round(page)]
        looking.picture(page, name)
    assert faults == []


def test_forms_say_what_is_wrong_and_nothing_is_dead_without_scripts(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana", scripts=False)
    for address in addresses(scene).values():
        page.goto(address)
        assert looking.inert_controls(page) == []
        assert looking.plain_twins(page) == []
    page.goto(f"{HOME}/api-members/new")
    page.get_by_role("button", name="Save API member").click()
    expect(page).to_have_title("Error: New API member – Acme – Latchkey")
    expect(page.locator(".error-summary")).to_be_visible()
    page.get_by_role("link", name="Enter a name that tells what it is for: 3 to 60 characters.").click()
    expect(page.get_by_label("Name")).to_have_attribute("aria-invalid", "true")


def test_on_a_phone_the_filters_of_people_wait_until_they_are_wanted(new_page: NewPage, scene: Scene) -> None:
    page = new_page("ana", width=320)
    page.goto(f"{HOME}/members")
    role = page.get_by_label("Role")
    expect(role).to_be_hidden()
    page.get_by_text("Filter", exact=True).click()
    role.select_option("Administrator")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("rowheader")).to_have_text(re.compile("Ana Ruiz"))
    expect(role).to_be_visible()  # what narrows a list is told


def test_all_of_an_invitations_link_can_be_read_on_a_phone(new_page: NewPage, backstage: Backstage) -> None:
    page = new_page("ana", width=320)
    page.goto(f"{HOME}/members/invite")
    page.get_by_label("Email").fill("kim@acme.test")
    page.get_by_role("button", name="Invite").click()
    assert page.get_by_label("One-time link").evaluate("link => link.scrollHeight <= link.clientHeight")


def test_a_sentence_says_what_an_api_member_will_be_able_to_do_while_one_chooses(
    new_page: NewPage, scene: Scene
) -> None:
    page = new_page("ana")
    page.goto(f"{HOME}/api-members/new")
    said = page.locator("#review")
    expect(said).to_have_text("It will be able to reach nothing.")
    page.get_by_label("Name").fill("Mail robot")
    page.get_by_role("radiogroup", name="Operations").get_by_role("radio", name="Read-only").check()
    expect(said).to_have_text("Mail robot will be able to read Operations. Nothing else.")
    page.get_by_role("radiogroup", name="Sales").get_by_role("radio", name="Full").check()
    expect(said).to_have_text("Mail robot will be able to read and change Sales, and read Operations. Nothing else.")
    page.goto(f"{scene.bot}/access")
    expect(said).to_have_text("CRM bot will be able to read and change Operations, and read Sales. Nothing else.")
    page.get_by_role("radiogroup", name="Operations").get_by_role("radio", name="Read-only").check()
    expect(said).to_contain_text("CRM bot will be able to read Operations and Sales. Nothing else.")
    expect(said).to_contain_text("1 active key loses 1 scope: tasks:write of “Task copier”")
    expect(said).to_contain_text("used 1 time in 30 days.")


def test_a_person_leaves_and_their_program_goes_on(new_page: NewPage, scene: Scene, live_server: Server) -> None:
    """From the preview to the last refused call of the old key: the program has a new one by then."""
    rio = new_page("rio")
    old = key_of(rio, "Dock display", "tasks:read")
    page = new_page("ana", scripts=False)
    page.goto(f"{scene.rio}/leave")
    expect(page.get_by_text("1 key stops")).to_be_visible()
    page.get_by_label("Move keys to").select_option("CRM bot")
    page.get_by_role("button", name="Choose").click()
    page.get_by_role("link", name="Move to CRM bot (Dock display").click()
    expect(page.get_by_role("radio", name="CRM bot")).to_be_checked()
    expect(page.get_by_role("checkbox", name="Replace “Dock display”")).to_be_checked()
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Generate sandbox key").click()
    new = page.get_by_label("API key, full text").input_value()
    assert [call(live_server, key, "/apps/tasks/records") for key in (old, new)] == [200, 200]
    page.goto(f"{scene.rio}/leave")
    expect(page.get_by_text("Moved or replaced, stops in 1 day")).to_be_visible()
    page.get_by_role("button", name="Deactivate Rio Tanaka").click()
    expect(page.locator("#status")).to_contain_text("“Rio Tanaka” is deactivated.")
    assert [call(live_server, key, "/apps/tasks/records") for key in (old, new)] == [401, 200]


def key_of(page: Page, name: str, scope: str) -> str:
    page.goto(f"{HOME}/api/keys/new")
    page.get_by_label("What is this key for?").fill(name)
    page.get_by_role("checkbox", name=scope).check()
    page.get_by_role("button", name="Generate sandbox key").click()
    return page.get_by_label("API key, full text").input_value()
