"""The main job from end to end, in every way that a person may go it; afterwards the database says the same."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select

from portal.store.database import Database
from portal.store.models import ApiKey, App, AuditEvent, KeyScope, Member, UserSession
from tests.browser.acting import SCOPE, Hands, Keyboard, Mouse, call, fill_form, open_form, sign_in, without_htmx
from tests.browser.conftest import NewPage
from tests.servers import Server

# Names a folder that keeps a picture of every step, for people who want to see the walk.
PICTURES = os.environ.get("WALK_PICTURES")


@dataclass(frozen=True)
class Way:
    """How a walk is gone."""

    scripts: bool = True
    htmx: bool = True
    width: int = 1280
    height: int = 900
    hands: Callable[[Page], Hands] = Mouse


WAYS = {
    "with scripts": Way(),
    "on a phone": Way(width=320, height=568),
    "without scripts": Way(scripts=False),
    "without htmx": Way(htmx=False),
    "by keyboard": Way(hands=Keyboard),
}


@pytest.mark.parametrize("way", WAYS)
def test_rio_generates_a_key_that_works_until_he_deactivates_it(
    way: str,
    new_page: NewPage,
    clipboard: Callable[[], str],
    live_server: Server,
    written: Callable[[], list[tuple[object, ...]]],
) -> None:
    how = WAYS[way]
    page = new_page(scripts=how.scripts, width=how.width, height=how.height, permissions=["clipboard-write"])
    if not how.htmx:
        without_htmx(page)
    name = f"Dock display {way}"
    walk(how, how.hands(page), name, clipboard, live_server, Pictures(page, way))
    assert written() == [
        ("key", name, "", "live", "Rio Tanaka", ["tasks:read"], timedelta(days=90), True),
        ("event", "signed_in", "done", "visitor"),
        ("event", "key_generated", "done", "Rio Tanaka"),
        ("event", "key_deactivated", "done", "Rio Tanaka"),
        ("sessions", 1),
    ]


def walk(how: Way, hands: Hands, name: str, clipboard: Callable[[], str], server: Server, picture: "Pictures") -> None:
    """Go from the sign-in page to the refused call."""
    page = hands.page
    page.goto("/login")
    picture("sign in")
    sign_in(hands, "rio")

    hands.press(page.get_by_role("button", name="Profile and settings: Rio Tanaka"))
    picture("profile menu")
    hands.press(page.get_by_role("link", name="API Settings"))
    expect(page.get_by_role("heading", name="API keys", level=1)).to_be_visible()
    picture("list")

    open_form(hands)
    assert page.locator(f"{SCOPE}[value$=':read']").count() == 2
    assert page.locator(f"{SCOPE}[value$=':write']").count() == 0
    fill_form(hands, name, live=True)
    picture("form")
    if not (how.scripts and how.htmx):
        hands.press(page.get_by_role("button", name="Continue"))
        expect(page.get_by_role("heading", name="Check your new key")).to_be_visible()
        picture("check")
    hands.press(page.get_by_role("button", name="Generate live key"))
    expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
    picture("reveal")

    key = page.get_by_label("API key, full text").input_value()
    if how.scripts:
        hands.press(page.get_by_role("button", name="Copy key"))
        expect(page.locator("#reveal-msg")).to_contain_text("Live key copied at")
    else:
        page.get_by_label("API key, full text").focus()
        page.keyboard.press("Control+A")
        page.keyboard.press("Control+C")
    assert clipboard() == key
    picture("copied")
    hands.press(page.get_by_role("link", name="Done"))
    expect(page.get_by_role("rowheader", name=name)).to_be_visible()
    assert key not in page.content()
    picture("done")

    assert call(server, key, "/apps/tasks/records") == 200
    assert call(server, key, "/apps/reservations/records") == 403
    hands.press(page.get_by_role("link", name=f"Deactivate {name}"))
    picture("deactivate")
    hands.press(page.get_by_role("button", name=f"Deactivate {name}"))
    expect(page.locator("#status")).to_have_text(f"“{name}” is deactivated. Requests are refused from now.")
    picture("deactivated")
    assert call(server, key, "/apps/tasks/records") == 401


@dataclass
class Pictures:
    """Keeps what the page looks like after each step, if somebody asked for it."""

    page: Page
    way: str
    taken: int = field(default=0)

    def __call__(self, step: str) -> None:
        self.taken += 1
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES, self.way, f"{self.taken:02} {step}.png"))


@pytest.fixture
def written(live_server: Server) -> Iterator[Callable[[], list[tuple[object, ...]]]]:
    """Tell what has been written to the database since the test began."""
    database = Database(live_server.database_url)
    with database.reading() as session:
        before = {table: session.scalar(select(func.max(table.id))) or 0 for table in (ApiKey, AuditEvent, UserSession)}

    def tell() -> list[tuple[object, ...]]:
        with database.reading() as session:
            keys = session.execute(
                select(ApiKey, Member.name)
                .join(Member, Member.id == ApiKey.member_id)
                .where(ApiKey.id > before[ApiKey])
            )
            story: list[tuple[object, ...]] = []
            for key, owner in keys:
                scopes = select(App.slug, KeyScope.action).join(App).where(KeyScope.key_id == key.id)
                lives = key.expires_at - key.created_at if key.expires_at else None
                held = [":".join(row) for row in session.execute(scopes)]
                stopped = key.deactivated_at is not None and key.revoked_at is None
                story.append(("key", key.name, key.note, key.environment, owner, held, lives, stopped))
            events = select(AuditEvent).where(AuditEvent.id > before[AuditEvent]).order_by(AuditEvent.id)
            story += [("event", each.action, each.outcome, each.actor_name) for each in session.scalars(events)]
            sessions = select(func.count()).where(UserSession.id > before[UserSession])
            return [*story, ("sessions", session.scalar(sessions))]

    yield tell
    database.close()
