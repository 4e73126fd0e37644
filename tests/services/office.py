"""The cast at the services' own door: no HTTP, and at a moment that the test chooses."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from threading import Barrier
from typing import Any, TypeVar

from sqlalchemy import delete, func, or_, select, update

from portal.rules.access import AccessLevel
from portal.rules.credentials import KeyFormat, Keyring, Pepper, PlainKey, new_id
from portal.rules.paging import Page
from portal.services import audit, key_lists, key_views, keys, members
from portal.services.actor import Actor, Means
from portal.services.drafts import Draft
from portal.services.key_check import Caller, KeyCheck
from portal.services.key_lists import Filters
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.services.usage import Request, Usage
from portal.store.database import Database
from portal.store.models import Access, Account, ApiKey, AuditEvent, Member, RefusalCount, Solution

NOON = datetime(2026, 1, 12, 12, 0, tzinfo=UTC)
API_MEMBER = "Nightly sync"
RING = Keyring(KeyFormat(), (Pepper("new", b"the pepper of these tests only.."),))

Found = TypeVar("Found")


class Office:
    """What the services' tests do over and over; people are named as in the cast."""

    def __init__(self, database: Database, keyring: Keyring = RING) -> None:
        self.database = database
        self.keyring = keyring
        self._told_before = 0
        self._actors: dict[str, Actor] = {}

    @cached_property
    def key_check(self) -> KeyCheck:
        """The hot path, on a connection of its own."""
        return KeyCheck(self.database, self.keyring)

    # --- People -----------------------------------------------------------------------------------------------------

    def member(self, name: str) -> Member:
        """Find somebody: `ana` or another of the cast, or an API member by its whole name."""
        is_it = or_(Account.email.like(f"{name}@%"), Member.name == name)
        with self.database.reading() as session:
            return session.scalars(select(Member).outerjoin(Member.account).where(is_it)).one()

    def actor(self, name: str, at: datetime = NOON) -> Actor:
        """Make somebody act."""
        if name not in self._actors:
            member = self.member(name)
            seat = (member.name, member.public_id, member.workspace_id, member.id)
            self._actors[name] = Actor(NOON, Means.SESSION, *seat, "203.0.113.7", "req_1")
        return replace(self._actors[name], at=at)

    def seat(self, name: str) -> Seat:
        """Give somebody's seat."""
        with self.database.reading() as session:
            return members.seat_of(session, self.actor(name))

    def change(self, name: str, **values: Any) -> None:
        """Change somebody's membership as a later page will: role, deactivated_at, manager_id …"""
        member = self.member(name)
        with self.database.transaction() as session:
            session.execute(update(Member).where(Member.id == member.id).values(values))

    def grant(self, name: str, solution: str, level: AccessLevel) -> None:
        """Give somebody another level in a solution."""
        member = self.member(name)
        with self.database.transaction() as session:
            found = session.scalars(
                select(Solution.id).where(Solution.slug == solution, Solution.workspace_id == member.workspace_id)
            ).one()
            session.execute(delete(Access).where(Access.member_id == member.id, Access.solution_id == found))
            if level is not AccessLevel.NONE:
                session.add(Access(member_id=member.id, solution_id=found, level=level.value))

    # --- Keys -------------------------------------------------------------------------------------------------------

    def draft(self, owner: str, **answers: Any) -> Draft:
        """Fill in the generate form with answers that are fine for rio, but for those named."""
        usual = {"name": "Nightly export", "environment": "live", "scopes": ["tasks:read"], "expires": "90d"}
        return Draft(owner=self.actor(owner).public_id or "", **usual | answers)

    def generate(
        self, creator: str, *, owner: str | None = None, at: datetime = NOON, **answers: Any
    ) -> tuple[KeyView, PlainKey]:
        """Generate a key as the page does, with the refusal's audit row."""
        actor, draft = self.actor(creator, at), self.draft(owner or creator, **answers)
        with audit.transaction(self.database, actor) as session:
            return keys.create(session, actor, self.keyring, draft)

    def act(self, name: str, what: Callable[..., KeyView], key_id: str, at: datetime = NOON, **more: Any) -> KeyView:
        """Do something to a key: `keys.deactivate`, `keys.reactivate`, `keys.delete`."""
        actor = self.actor(name, at)
        with audit.transaction(self.database, actor) as session:
            return what(session, actor, self.keyring, key_id, **more)

    def check(self, plain: PlainKey | str, at: datetime = NOON, **more: Any) -> Caller:
        """Call with a key."""
        text = plain if isinstance(plain, str) else plain.reveal()
        return self.key_check.check(f"Bearer {text}", now=at, **more)

    def view(self, name: str, key_id: str, at: datetime = NOON) -> KeyView:
        """Show somebody a key."""
        with self.database.reading() as session:
            return key_views.get(session, self.actor(name, at), self.seat(name), self.keyring, key_id)

    def page(self, name: str, number: int = 1, at: datetime = NOON, **filters: str) -> Page[KeyView]:
        """Show somebody a page of their list; `owner`, `q`, `env`, `state`, `scope` and `sort` as in the address."""
        with self.database.reading() as session:
            actor, seat = self.actor(name, at), self.seat(name)
            return key_lists.list_for(session, actor, seat, self.keyring, Filters(**filters), number)

    def use(self, key_id: str, at: datetime, refused: str = "", times: int = 1, **more: Any) -> None:
        """Let a key have been used; `refused` says why not, `more` what is not as in a plain call of `/me`."""
        usual: dict[str, Any] = {
            "method": "GET",
            "path": "/api/v1/me",
            "status": 200,
            "scope": "",
            "client": "curl/8.5",
        }
        row = self.row(key_id)
        noted = Usage(self.database)
        for _ in range(times):
            request = Request(row.id, at, new_id("req"), **{"address": "203.0.113.9", **usual, **more})
            if refused:
                noted.refused(request, refused)
            else:
                noted.accepted(request, is_first=row.last_used_at is None, new_digest=None)
        noted.close()

    def row(self, key_id: str) -> ApiKey:
        """Look at what is stored of a key."""
        with self.database.reading() as session:
            return session.scalars(select(ApiKey).where(ApiKey.public_id == key_id)).one()

    def set_key(self, key_id: str, **values: Any) -> None:
        """Change a key's row behind the portal's back."""
        with self.database.transaction() as session:
            session.execute(update(ApiKey).where(ApiKey.public_id == key_id).values(values))

    def lift_limits(self, key_id: str, **limits: int | None) -> None:
        """Let a key be used as often as a benchmark needs, but for the `limits` that are named: None is the usual."""
        self.set_key(key_id, **{"rate_per_minute": 1_000_000, "rate_per_second": 1_000_000} | limits)

    def told(self, **wanted: Any) -> list[AuditEvent]:
        """Read the test's audit rows with these values, oldest first."""
        newer = select(AuditEvent).where(AuditEvent.id > self._told_before)
        with self.database.reading() as session:
            return list(session.scalars(newer.filter_by(**wanted).order_by(AuditEvent.id)))

    def begin(self) -> None:
        """Let a test begin: what was told until now is not its own, nor what refusals were counted."""
        with self.database.transaction() as session:
            session.execute(delete(RefusalCount))
            self._told_before = session.scalar(select(func.max(AuditEvent.id))) or 0

    def close(self) -> None:
        """Give the hot path's connection back."""
        if "key_check" in vars(self):
            self.key_check.close()


def at_once(calls: Mapping[str, Callable[[], Found]]) -> dict[str, Found | Exception]:
    """Make calls at the same moment, each in a thread; give what each returned or raised."""
    start = Barrier(len(calls))

    def run(call: Callable[[], Found]) -> Found | Exception:
        start.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(run, calls.values()), strict=True))
