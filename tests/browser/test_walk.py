"""The main job from end to end, in every way that a person may go it; afterwards the database says the same."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select

from portal.store.database import Database
from portal.store.models import ApiKey, App, AuditEvent, KeyScope, Member, UserSession
from tests.browser.acting import (
    SCOPE,
    Hands,
    Keyboard,
    Mouse,
    call,
    fill_form,
    head_of,
    open_form,
    sign_in,
    without_htmx,
)
from tests.browser.backstage import Backstage
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


# With and without scripts the server is asked for other things; how else one walks is nothing to the database.
ON_BOTH_DATABASES = ("with scripts", "without scripts")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in ON_BOTH_DATABASES else pytest.mark.once) for way in WAYS]
)
def test_rio_generates_a_key_rotates_it_and_ends_it(
    way: str,
    new_page: NewPage,
    clipboard: Callable[[], str],
    backstage: Backstage,
    live_server: Server,
    written: Callable[[], list[tuple[object, ...]]],
) -> None:
    how = WAYS[way]
    page = new_page(scripts=how.scripts, width=how.width, height=how.height, permissions=["clipboard-write"])
    if not how.htmx:
        without_htmx(page)
    name = f"Dock display {way}"
    walk = Walk(how, how.hands(page), name, clipboard, live_server, Pictures(page, way))
    first = walk.to_the_first_key()
    second = walk.to_its_successor(first)
    walk.to_the_refused_call(first, second)
    backstage.wait_for_use(name, 5)
    walk.to_the_end(first, second)
    key = ("key", name, "", "live", "Rio Tanaka", ["tasks:read"], timedelta(days=90))
    assert written() == [
        (*key, "active", timedelta(days=1)),
        (*key, "revoked", None),
        ("event", "signed_in", "done", "visitor"),
        ("event", "key_generated", "done", "Rio Tanaka"),
        ("event", "key_generated", "done", "Rio Tanaka"),
        ("event", "key_rotated", "done", "Rio Tanaka"),
        ("event", "key_deactivated", "done", "Rio Tanaka"),
        ("event", "key_deleted", "done", "Rio Tanaka"),
        ("sessions", 1),
    ]


@dataclass
class Walk:
    """The way from the sign-in page to a deleted key."""

    how: Way
    hands: Hands
    name: str
    clipboard: Callable[[], str]
    server: Server
    picture: "Pictures"

    def to_the_first_key(self) -> str:
        """Sign in and generate a key; give its text."""
        page, hands, picture = self.hands.page, self.hands, self.picture
        page.goto("/login")
        picture("sign in")
        sign_in(hands, "rio")

        hands.press(page.get_by_role("button", name="Profile and settings: Rio Tanaka"))
        picture("profile menu")
        hands.press(page.get_by_role("link", name="API Settings"))
        expect(page.get_by_role("heading", name="API keys", level=1)).to_be_visible()
        picture("list")

        open_form(hands)
        expect(page.locator(f"{SCOPE}[value$=':read']")).to_have_count(2)
        expect(page.locator(f"{SCOPE}[value$=':write']")).to_have_count(0)
        fill_form(hands, self.name, live=True)
        picture("form")
        if not (self.how.scripts and self.how.htmx):
            hands.press(page.get_by_role("button", name="Continue"))
            expect(page.get_by_role("heading", name="Check your new key")).to_be_visible()
            picture("check")
        hands.press(page.get_by_role("button", name="Generate live key"))
        key = self._take("generated")
        assert call(self.server, key, "/apps/tasks/records") == 200
        assert call(self.server, key, "/apps/reservations/records") == 403
        return key

    def to_its_successor(self, old: str) -> str:
        """Rotate the key; give the new one's text."""
        page, hands = self.hands.page, self.hands
        hands.press(page.get_by_role("link", name=f"Rotate {self.name}"))
        expect(page.get_by_role("heading", name=f"Rotate “{self.name}”")).to_be_visible()
        self.picture("rotate")
        hands.press(page.get_by_role("button", name="Rotate live key"))
        new = self._take("rotated")
        assert [call(self.server, key, "/apps/tasks/records") for key in (old, new)] == [200, 200]
        return new

    def to_the_refused_call(self, old: str, new: str) -> None:
        """Deactivate the new key, beside the old one that goes on."""
        page, hands = self.hands.page, self.hands
        hands.press(page.get_by_role("link", name=f"Deactivate {self.name}"))
        self.picture("deactivate")
        hands.press(page.get_by_role("button", name=f"Deactivate {self.name}"))
        expect(page.locator("#status")).to_have_text(f"“{self.name}” is deactivated. Requests are refused from now.")
        self.picture("deactivated")
        assert [call(self.server, key, "/apps/tasks/records") for key in (old, new)] == [200, 401]
        if not (self.how.scripts and self.how.htmx):
            hands.press(page.get_by_role("link", name="Back to API keys"))

    def to_the_end(self, old: str, new: str) -> None:
        """Delete the new key, by its name: it was used just now."""
        page, hands = self.hands.page, self.hands
        hands.press(page.get_by_role("link", name=f"Delete {self.name}"))
        hands.write(page.get_by_label(f"Type {self.name} to delete it"), self.name)
        self.picture("delete")
        hands.press(page.get_by_role("button", name="Delete live key"))
        expect(page.get_by_role("heading", name=f"“{self.name}” was deleted")).to_be_visible()
        self.picture("deleted")
        hands.press(page.get_by_role("link", name=re.compile("^(Done|Back to API keys)$")))
        expect(page.get_by_role("rowheader", name=f"{self.name} (old)")).to_be_visible()
        expect(page.get_by_role("rowheader", name=self.name)).to_have_count(1)
        assert [call(self.server, key, "/apps/tasks/records") for key in (old, new)] == [200, 401]

    def _take(self, step: str) -> str:
        """Copy the key that is on the screen and go on; give its text."""
        page, hands = self.hands.page, self.hands
        expect(page.get_by_role("heading", name="Copy this key now")).to_be_visible()
        self.picture(f"{step}, reveal")
        key = page.get_by_label("API key, full text").input_value()
        if self.how.scripts:
            hands.press(page.get_by_role("button", name="Copy key"))
            expect(page.locator("#reveal-msg")).to_contain_text("Live key copied at")
        else:
            page.get_by_label("API key, full text").focus()
            page.keyboard.press("Control+A")
            page.keyboard.press("Control+C")
        assert self.clipboard() == key
        self.picture(f"{step}, copied")
        hands.press(page.get_by_role("link", name="Done"))
        expect(head_of(page, key)).to_contain_text(self.name)
        if self.how.scripts and self.how.htmx:  # until then whoever goes on with Tab would be called back
            expect(head_of(page, key).get_by_role("link")).to_be_focused()
        assert key not in page.content()
        expect(page.get_by_role("link", name="Generate new API key")).to_be_visible()  # after the first key too
        self.picture(step)
        return key


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
                .order_by(ApiKey.id)
            )
            story: list[tuple[object, ...]] = []
            for key, owner in keys:
                scopes = select(App.slug, KeyScope.action).join(App).where(KeyScope.key_id == key.id)
                lives = key.expires_at - key.created_at if key.expires_at else None
                held = [":".join(row) for row in session.execute(scopes)]
                state = str(key.state_at(datetime.now(UTC)))
                overlap = key.retires_at - key.rotated_at if key.retires_at and key.rotated_at else None
                story.append(("key", key.name, key.note, key.environment, owner, held, lives, state, overlap))
            events = select(AuditEvent).where(AuditEvent.id > before[AuditEvent]).order_by(AuditEvent.id)
            # What a key was refused is told by the next flush of usage, in its own time.
            events = events.where(AuditEvent.action != "key_refused")
            story += [("event", each.action, each.outcome, each.actor_name) for each in session.scalars(events)]
            sessions = select(func.count()).where(UserSession.id > before[UserSession])
            return [*story, ("sessions", session.scalar(sessions))]

    yield tell
    database.close()
