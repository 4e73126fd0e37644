"""From the audit log alone every key, member and grant can be rebuilt (issue 4, done when 3)."""

import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import aliased

from bench.replay import State, moment, rebuild
from portal.rules.access import AccessLevel, Role
from portal.rules.credentials import new_id
from portal.rules.errors import PortalError
from portal.services import (
    api_members,
    audit,
    audit_reading,
    audit_views,
    drafts,
    invitations,
    keys,
    people,
    rotation,
)
from portal.services.actor import Actor, Means
from portal.services.audit_views import Filters
from portal.services.invitations import NewAccount
from portal.services.members import Seat, SeatMember, SeatWorkspace
from portal.store.models import Access, Account, ApiKey, App, KeyScope, Member, Solution, Workspace
from portal.web.oversight import exported
from tests.services.office import NOON, Office

ACTIONS = 500
SCOPES = [f"{app}:{action}" for app in ("leads", "accounts", "tasks", "reservations") for action in ("read", "write")]


class Bustle:
    """Everybody does anything, allowed or not, half an hour apart."""

    def __init__(self, office: Office, seed: int) -> None:
        self.office, self.dice, self.now = office, random.Random(seed), NOON
        self.done: dict[str, int] = {}
        self.people: list[Member] = []
        self.bots: list[Member] = []
        self.keys: list[ApiKey] = []

    def step(self) -> None:
        """Let somebody try something."""
        self.now += timedelta(minutes=30)
        self.look()
        what = self.dice.choice([self.generate] * 4 + [self.touch] * 5 + [self.rotate] * 2 + [self.staff] * 3)
        try:
            name = what(self.somebody())
        except PortalError:
            name = "refused"
        self.done[name] = self.done.get(name, 0) + 1

    def somebody(self) -> Member:
        """Choose who acts: an administrator, or else anybody who is there."""
        active = [member for member in self.people if member.is_active]
        admins = [member for member in active if member.role == Role.ADMIN]
        return self.dice.choice(admins if self.dice.random() < 0.6 else active)

    def run(self, who: Member, what: Callable[..., Any], *given: Any, **named: Any) -> Any:
        actor = Actor(self.now, Means.SESSION, who.name, who.public_id, who.workspace_id, who.id)
        with audit.transaction(self.office.database, actor) as session:
            return what(session, actor, *given, **named)

    def look(self) -> None:
        """Read who and what there is in acme."""
        acme = select(Workspace.id).where(Workspace.slug == "acme").scalar_subquery()
        with self.office.database.reading() as session:
            found = session.scalars(select(Member).where(Member.workspace_id == acme).order_by(Member.id)).all()
            standing = (ApiKey.workspace_id == acme, ApiKey.revoked_at.is_(None))
            self.keys = list(session.scalars(select(ApiKey).where(*standing).order_by(ApiKey.id)))
        self.people = [member for member in found if not member.is_api]
        self.bots = [member for member in found if member.is_api]

    def draft(self, who: Member, **more: Any) -> drafts.Draft:
        usual = {
            "name": f"Key {self.dice.randrange(10**6)}",
            "note": self.dice.choice(("", "in the vault")),
            "owner": self.dice.choice(self.bots).public_id if self.dice.random() < 0.5 else who.public_id,
            "environment": self.dice.choice(("live", "test")),
            "scopes": self.dice.sample(SCOPES, 1),
            "expires": self.dice.choice(("30d", "90d", "1y", "never")),
            "form_id": new_id("form"),
        }
        return drafts.Draft(**usual | more)

    def generate(self, who: Member) -> str:
        self.run(who, keys.create, self.office.keyring, self.draft(who))
        return "generate"

    def rotate(self, who: Member) -> str:
        if not self.keys:
            return "nothing"
        key = self.dice.choice(self.keys)
        with self.office.database.reading() as session:
            scopes = [f"{slug}:{action}" for slug, action in session.execute(
                select(App.slug, KeyScope.action).join(App, App.id == KeyScope.app_id).where(KeyScope.key_id == key.id)
            )]  # fmt: skip
        overlap = self.dice.choice(("0", "1h", "24h", "7d", "until"))
        draft = self.draft(who, replaces=key.public_id, overlap=overlap, scopes=scopes[: self.dice.randint(1, 2)])
        if self.dice.random() < 0.3:
            self.run(who, rotation.replace_unused, self.office.keyring, key.public_id, new_id("form"))
            return "replace"
        self.run(who, rotation.rotate, self.office.keyring, draft)
        return "rotate"

    def touch(self, who: Member) -> str:
        if not self.keys:
            return "nothing"
        key = self.dice.choice(self.keys)
        ways = (
            keys.deactivate,
            keys.reactivate,
            keys.reactivate,
            keys.delete,
            keys.edit,
            rotation.retire,
            rotation.extend,
        )
        what = self.dice.choice(ways)
        more: dict[str, Any] = {}
        if what is keys.delete:
            more = {"typed": key.name}
        elif what is keys.edit:
            was = (key.name, key.note)
            more = {"name": f"Edited {self.dice.randrange(10**6)}", "note": "moved", "was": was}
        self.run(who, what, self.office.keyring, key.public_id, **more)
        return what.__name__

    def staff(self, who: Member) -> str:
        ring, dice = self.office.keyring, self.dice
        person, boss, bot = dice.choice(self.people), dice.choice(self.people), dice.choice(self.bots)
        levels = {each: dice.choice(list(AccessLevel)) for each in ("sales", "operations") if dice.random() < 0.7}
        few = {each: level for each, level in levels.items() if level is not AccessLevel.MANAGE}
        given: dict[str, Any] = {"was": None, "is_proved": True}
        role, unseen = dice.choice(("member", "admin")), {"purpose": "", "was": None}
        ways: list[tuple[str, Any]] = [
            ("make", (api_members.create, {"name": f"Bot {dice.randrange(999)}", "purpose": "", "access": few})),
            ("bot access", (api_members.set_access, ring, bot.public_id, few, given)),
            ("bot access", (api_members.set_access, ring, bot.public_id, few, given)),
            ("hand over", (api_members.set_manager, bot.public_id, boss.public_id, {})),
            ("stop", (api_members.deactivate, bot.public_id, {})),
            ("start", (api_members.reactivate, bot.public_id, {})),
            ("edit", (api_members.edit, bot.public_id, {"name": f"Bot {dice.randrange(999)}", **unseen})),
            ("remove bot", (api_members.delete, bot.public_id, {"typed": bot.name})),
            ("access", (people.set_access, ring, person.public_id, {"role": role, "levels": levels, **given})),
            ("leave", (people.leave, person.public_id, dice.choice(people.THEN), {})),
            *[("back", (people.reactivate, person.public_id, {}))] * 3,
            ("invite", None),
        ]
        name, asked = dice.choice(ways)
        if asked is None:
            self.join(who, person)
        else:
            what, *values, named = asked
            self.run(who, what, *values, **named)
        return name

    def join(self, who: Member, person: Member) -> None:
        """Invite somebody new, or somebody who had left."""
        with self.office.database.reading() as session:
            acme = session.scalars(select(Workspace).where(Workspace.slug == "acme")).one()
            account = session.get_one(Account, person.account_id)
        is_new = person.is_active
        email = f"new{self.dice.randrange(10**6)}@acme.test" if is_new else account.email
        levels = {"sales": self.dice.choice(list(AccessLevel))}
        token = self.run(who, invitations.issue, acme, email, Role.MEMBER, levels)
        visitor = Actor(self.now, Means.SESSION, "visitor")
        with self.office.database.transaction() as session:
            new = NewAccount.choose("Somebody New", "a long enough password", "a long enough password")
            invitations.accept(session, visitor, token, new if is_new else account)


def stored(office: Office) -> State:
    """Read what the database holds of acme, in the words of a replay."""
    manager, before, owner = aliased(Member), aliased(ApiKey), aliased(Member)
    with office.database.reading() as session:
        acme = session.scalars(select(Workspace.id).where(Workspace.slug == "acme")).one()
        access: dict[int, dict[str, str]] = {}
        for member_id, slug, level in session.execute(
            select(Access.member_id, Solution.slug, Access.level).join(Solution, Solution.id == Access.solution_id)
        ):
            access.setdefault(member_id, {})[slug] = level
        scopes: dict[int, list[str]] = {}
        for key_id, slug, action in session.execute(
            select(KeyScope.key_id, App.slug, KeyScope.action).join(App, App.id == KeyScope.app_id)
        ):
            scopes.setdefault(key_id, []).append(f"{slug}:{action}")
        found_members = session.execute(
            select(Member, manager.public_id)
            .outerjoin(manager, manager.id == Member.manager_id)
            .where(Member.workspace_id == acme)
        ).all()
        found_keys = session.execute(
            select(ApiKey, owner.public_id, before.public_id)
            .join(owner, owner.id == ApiKey.member_id)
            .outerjoin(before, before.id == ApiKey.replaces_id)
            .where(ApiKey.workspace_id == acme)
        ).all()
    return {
        "members": {
            member.public_id: {
                "name": member.name,
                "role": member.role,
                "manager": manager_id,
                "access": access.get(member.id, {}),
                **_moments(member, "deactivated_at", "removed_at"),
            }
            for member, manager_id in found_members
        },
        "keys": {
            key.public_id: {
                "owner": owner_id,
                "environment": key.environment,
                "name": key.name,
                "note": key.note,
                "scopes": sorted(scopes.get(key.id, [])),
                "replaces": before_id,
                **_moments(key, "created_at", "expires_at", "deactivated_at", "revoked_at", "retires_at"),
            }
            for key, owner_id, before_id in found_keys
        },
    }


def _moments(row: object, *names: str) -> dict[str, str | None]:
    values: dict[str, datetime | None] = {name: getattr(row, name) for name in names}
    return {name: moment(value.isoformat()) if value else None for name, value in values.items()}


def log_of(office: Office) -> list[str]:
    """Export acme's log as an administrator does."""
    ana = office.member("ana")  # whatever became of her meanwhile
    ana.role = Role.ADMIN
    with office.database.reading() as session:
        acme = session.get_one(Workspace, ana.workspace_id)
    seat = Seat(
        SeatMember(ana.id, ana.public_id, ana.account_id, ana.name, ana.role),
        SeatWorkspace(acme.id, acme.public_id, acme.slug, acme.name, acme.max_key_days, acme.admins_own_live),
        {},
    )
    parts = audit_views.export(office.database, seat, Filters(), last=10**9)
    return [json.dumps(exported(event)) for part in parts for event in part]


@pytest.mark.parametrize("seed", [7])
def test_the_log_alone_tells_every_key_member_and_grant(office: Office, seed: int) -> None:
    bustle = Bustle(office, seed)
    for _ in range(ACTIONS if office.database.is_sqlite else ACTIONS // 3):  # three times as slow
        bustle.step()
    assert rebuild(log_of(office)) == stored(office)
    assert len([name for name, times in bustle.done.items() if times]) > 12, bustle.done
    with office.database.reading() as session:
        assert audit_reading.verify(session, office.member("ana").workspace_id).holds
