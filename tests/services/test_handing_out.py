"""Whatever people do, one after another or at once: nobody holds or hands out more than they may (issue 4, 2)."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from portal.rules.access import AccessLevel, Role
from portal.rules.credentials import PlainKey, new_id
from portal.rules.errors import Conflict, Forbidden, Invalid, KeyRefused, NotFound, PortalError
from portal.services import api_members, audit, audit_reading, drafts, invitations, keys, members, people, rotation
from portal.services.actor import Actor, Means
from portal.services.invitations import NewAccount
from portal.services.key_views import KeyView
from portal.store.models import ApiKey, Member, Workspace
from tests.services.office import API_MEMBER, NOON, Office, at_once

NONE, READ, FULL, MANAGE = AccessLevel
APPS = {"leads": "sales", "accounts": "sales", "tasks": "operations", "reservations": "operations"}
SOLUTIONS = ("operations", "sales")
SCOPES = [f"{app}:{action}" for app in APPS for action in ("read", "write")]
PEOPLE = ("ana", "lea", "max", "rio")

Done = Callable[[], Any]
Tried = tuple[Done, bool, Callable[[Any], Any]]  # what is asked, whether it may be, and what it then changes


# --- One after another: a model of the contract beside the portal ---------------------------------------------------


@dataclass
class Someone:
    """What the model knows of a person or an API member."""

    id: str
    role: str = "member"
    levels: dict[str, AccessLevel] = field(default_factory=lambda: dict.fromkeys(SOLUTIONS, NONE))
    state: str = "active"
    manager: str = ""  # of an API member: a person's name
    creator: str = ""

    @property
    def is_admin(self) -> bool:
        return self.state == "active" and self.role == "admin"

    @property
    def is_lead(self) -> bool:
        return self.is_admin or (self.state == "active" and MANAGE in self.levels.values())

    def level(self, solution: str) -> AccessLevel:
        return MANAGE if self.role == "admin" else self.levels[solution]

    def may_hold(self, scope: str) -> bool:
        app, _, action = scope.partition(":")
        return self.level(APPS[app]) in ((READ, FULL, MANAGE) if action == "read" else (FULL, MANAGE))


@dataclass
class Held:
    """A key that somebody was given."""

    plain: PlainKey
    owner: str
    scopes: list[str]
    works: bool = True


class World:
    """The contract's section 5, and what the portal has been asked to do so far."""

    def __init__(self, office: Office, seed: int) -> None:
        self.office, self.dice = office, random.Random(seed)
        self.people = {name: Someone(office.member(name).public_id) for name in PEOPLE}
        self.people["ana"].role = "admin"
        self.people["lea"].levels = {"operations": MANAGE, "sales": READ}
        self.people["max"].levels = {"operations": READ, "sales": FULL}
        self.people["rio"].levels["operations"] = READ
        bot = Someone(office.member(API_MEMBER).public_id, manager="lea", creator="lea")
        bot.levels["operations"] = READ
        self.bots = {API_MEMBER: bot}
        self.keys: list[Held] = []
        self.done = self.refused = 0

    def step(self) -> None:
        """Let somebody try something; the portal must do exactly what the model says may be done."""
        leads = [name for name in PEOPLE if self.people[name].is_lead]
        who = self.dice.choice([*PEOPLE, *leads * 3])  # who may do little is refused often enough
        tries = [self.set_access, self.leave, self.come_back, self.create, self.lower_or_raise]
        tries += [
            self.come_back,
            self.start,
            self.set_access,
            self.stop,
            self.start,
            self.delete,
            self.hand_over,
            *[self.generate] * 4,
        ]
        asked, allowed, change = self.dice.choice(tries)(who)
        try:
            made = asked()
        except PortalError as error:
            assert not allowed, f"{who} should have been allowed: {error.message}"
            self.refused += 1
        else:
            assert allowed, f"{who} should have been refused"
            change(made)
            self.done += 1

    def run(self, what: Callable[..., Any], who: str, *given: Any, **named: Any) -> Any:
        actor = self.office.actor(who)
        with audit.transaction(self.office.database, actor) as session:
            return what(session, actor, *given, **named)

    def levels(self, *choices: AccessLevel) -> dict[str, AccessLevel]:
        return {solution: self.dice.choice(choices) for solution in SOLUTIONS if self.dice.random() < 0.7}

    def is_last_admin(self, name: str) -> bool:
        return [other for other in PEOPLE if self.people[other].is_admin] == [name]

    def manages(self, who: str, name: str) -> bool:
        person, bot = self.people[who], self.bots[name]
        mine = person.is_admin or (person.is_lead and who in (bot.manager, bot.creator))
        return mine and bot.state != "removed"

    def may_grant(self, who: str, levels: dict[str, AccessLevel]) -> bool:
        person = self.people[who]
        return all(person.level(solution) is MANAGE and level is not MANAGE for solution, level in levels.items())

    # Each gives what is asked of the portal, whether it may be, and what it changes.

    def set_access(self, who: str) -> Tried:
        name = self.dice.choice(PEOPLE)
        me, target = self.people[who], self.people[name]
        role, levels = self.dice.choice(("member", "member", "admin")), self.levels(*AccessLevel)
        raises = any(target.levels[solution] < level for solution, level in levels.items())
        allowed = me.is_admin and target.state != "removed" and not (who == name and raises)
        allowed = allowed and not (self.is_last_admin(name) and role == "member")
        given: dict[str, Any] = {"role": role, "levels": levels, "was": None, "is_proved": True}

        def change(_: object) -> None:
            target.role = role
            target.levels |= levels

        return partial(self.run, people.set_access, who, self.office.keyring, target.id, **given), allowed, change

    def leave(self, who: str) -> Tried:
        name, then = self.dice.choice(PEOPLE), self.dice.choice(people.THEN)
        target = self.people[name]
        fits = {
            "demote": target.role == "admin",
            "deactivate": target.state == "active",
            "remove": target.state != "removed",
        }
        allowed = self.people[who].is_admin and fits[then] and not self.is_last_admin(name)

        def change(_: object) -> None:
            if then == "demote":
                target.role = "member"
            else:
                target.state = {"deactivate": "deactivated", "remove": "removed"}[then]

        return partial(self.run, people.leave, who, target.id, then), allowed, change

    def come_back(self, who: str) -> Tried:
        name = self.dice.choice(PEOPLE)
        target = self.people[name]

        def change(_: object) -> None:
            if target.state == "removed":
                target.role, target.levels = "member", dict.fromkeys(SOLUTIONS, NONE)
            target.state = "active"
            self.end_keys(name)

        allowed = self.people[who].is_admin and target.state != "active"
        return partial(self.run, people.reactivate, who, target.id), allowed, change

    def create(self, who: str) -> Tried:
        levels, name = self.levels(NONE, READ, FULL, FULL, MANAGE), f"Bot {len(self.bots)}"

        def change(made: Member) -> None:
            self.bots[name] = Someone(made.public_id, manager=who, creator=who)
            self.bots[name].levels |= levels

        allowed = self.people[who].is_lead and self.may_grant(who, levels)
        return partial(self.run, api_members.create, who, name=name, purpose="", access=levels), allowed, change

    def lower_or_raise(self, who: str) -> Tried:
        name, levels = self.dice.choice(list(self.bots)), self.levels(NONE, READ, FULL, FULL, MANAGE)
        bot = self.bots[name]
        allowed = self.manages(who, name) and self.may_grant(who, levels)
        ask = partial(self.run, api_members.set_access, who, self.office.keyring, bot.id, levels)
        return partial(ask, was=None, is_proved=True), allowed, lambda _: bot.levels.update(levels)

    def stop(self, who: str) -> Tried:
        name = self.dice.choice(list(self.bots))
        bot = self.bots[name]
        allowed = self.manages(who, name) and bot.state == "active"
        return partial(self.run, api_members.deactivate, who, bot.id), allowed, lambda _: setattr(bot, "state", "off")

    def start(self, who: str) -> Tried:
        name = self.dice.choice(list(self.bots))
        bot = self.bots[name]

        def change(_: object) -> None:
            bot.state = "active"
            self.end_keys(name)

        return (
            partial(self.run, api_members.reactivate, who, bot.id),
            self.manages(who, name) and bot.state == "off",
            change,
        )

    def delete(self, who: str) -> Tried:
        name = self.dice.choice(list(self.bots))
        bot = self.bots[name]

        def change(_: object) -> None:
            bot.state = "removed"
            self.end_keys(name)

        return partial(self.run, api_members.delete, who, bot.id, typed=name), self.manages(who, name), change

    def hand_over(self, who: str) -> Tried:
        name, to = self.dice.choice(list(self.bots)), self.dice.choice(PEOPLE)
        bot, boss = self.bots[name], self.people[to]
        allowed = self.people[who].is_admin and bot.state != "removed" and boss.is_lead
        return (
            partial(self.run, api_members.set_manager, who, bot.id, boss.id),
            allowed,
            lambda _: setattr(bot, "manager", to),
        )

    def generate(self, who: str) -> Tried:
        name = self.dice.choice([who, who, *self.bots, *PEOPLE])
        me, owner = self.people[who], self.people.get(name) or self.bots[name]
        usual = [scope for scope in SCOPES if owner.may_hold(scope)]
        scopes = self.dice.sample(usual if usual[1:] and self.dice.random() < 0.6 else SCOPES, self.dice.randint(1, 2))
        mine = name == who or (name in self.bots and self.manages(who, name))
        allowed = me.state == "active" and mine and owner.state == "active"
        allowed = allowed and all(owner.may_hold(scope) and me.may_hold(scope) for scope in scopes)
        draft = drafts.Draft(f"Key {len(self.keys)}", "", owner.id, "live", scopes, "90d")

        def change(made: tuple[KeyView, PlainKey]) -> None:
            self.keys.append(Held(made[1], name, scopes))

        return partial(self.run, keys.create, who, self.office.keyring, draft), allowed, change

    def end_keys(self, owner: str) -> None:
        for key in self.keys:
            key.works = key.works and key.owner != owner

    # What must be so after every step.

    def check(self) -> None:
        for key in self.keys:
            owner = self.people.get(key.owner) or self.bots[key.owner]
            if key.works and owner.state == "active":
                reach = self.office.check(key.plain).reach
                assert set(reach.effective_texts) == {scope for scope in key.scopes if owner.may_hold(scope)}
            else:
                with pytest.raises(KeyRefused):
                    self.office.check(key.plain)

    def check_levels(self) -> None:
        for name, someone in {**self.people, **self.bots}.items():
            member = self.office.member(name)
            with self.office.database.reading() as session:
                stored = members.levels_of(session, member)
            assert (member.role, stored) == (someone.role, someone.levels), name
            assert name in self.people or (member.account_id is None and MANAGE not in stored.values())
        assert any(person.is_admin for person in self.people.values())


@pytest.mark.parametrize("seed", range(5))
def test_no_sequence_lets_anybody_hold_or_grant_above_their_own_level(office: Office, seed: int) -> None:
    world = World(office, seed)
    for n in range(120):
        world.step()
        if n % 4 == 0:
            world.check()
    world.check()
    world.check_levels()
    assert min(world.done, world.refused) > 10  # the walk went somewhere


# --- At once --------------------------------------------------------------------------------------------------------


def did(office: Office, who: str, what: Callable[..., Any], *given: Any, **named: Any) -> Done:
    """Prepare somebody doing something in a transaction of its own."""
    actor = office.actor(who)

    def call() -> Any:
        with audit.transaction(office.database, actor) as session:
            return what(session, actor, *given, **named)

    return call


def lower(office: Office, name: str, role: str = "member", by: str = "ana") -> Done:
    levels = dict.fromkeys(SOLUTIONS, NONE)
    given = {"role": role, "levels": levels, "was": None, "is_proved": True}
    return did(office, by, people.set_access, office.keyring, office.member(name).public_id, **given)


def make_key(office: Office, who: str, owner: str = "", n: int = 0, **answers: Any) -> Done:
    draft = office.draft(owner or who, name=f"Key {n}", form_id=new_id("form"), **answers)
    return did(office, who, keys.create, office.keyring, draft)


ROUNDS = range(3)


@pytest.fixture(autouse=True)
def warm(office: Office) -> Iterator[None]:
    """Compile the statements before a race, so that it is one."""
    office.generate("lea", name="Warm")
    yield
    with office.database.reading() as session:
        assert audit_reading.verify(session, office.member("ana").workspace_id).holds


@pytest.mark.parametrize("n", ROUNDS)
def test_a_demotion_beside_a_generate(office: Office, n: int) -> None:
    ends = at_once({"demote": lower(office, "rio"), "generate": make_key(office, "rio")})
    assert not isinstance(ends["demote"], Exception)
    if isinstance(ends["generate"], Exception):
        assert isinstance(ends["generate"], Invalid)
    else:
        assert office.check(ends["generate"][1]).reach.effective == frozenset()


@pytest.mark.parametrize("then", ["deactivate", "remove"])
def test_a_member_who_goes_beside_a_generate(office: Office, then: str) -> None:
    gone = did(office, "ana", people.leave, office.member("rio").public_id, then)
    ends = at_once({"go": gone, "generate": make_key(office, "rio")})
    assert not isinstance(ends["go"], Exception)
    if isinstance(ends["generate"], Exception):
        assert isinstance(ends["generate"], Forbidden)
    else:
        with pytest.raises(KeyRefused):
            office.check(ends["generate"][1])


@pytest.mark.parametrize("n", ROUNDS)
def test_a_lead_who_is_demoted_beside_a_generate_for_an_api_member(office: Office, n: int) -> None:
    calls = {"demote": lower(office, "lea"), "generate": make_key(office, "lea", API_MEMBER)}
    ends = at_once(calls)
    assert not isinstance(ends["demote"], Exception)
    if isinstance(ends["generate"], Exception):
        assert isinstance(ends["generate"], Invalid)  # to her there is no such owner any more
    else:
        assert office.check(ends["generate"][1]).reach.effective_texts == ("tasks:read",)  # the API member's own


@pytest.mark.parametrize("n", ROUNDS)
def test_lower_access_of_an_api_member_beside_a_generate_and_a_rotation(office: Office, n: int) -> None:
    old, _ = office.generate("lea", owner=API_MEMBER, name="Old")
    bot = office.member(API_MEMBER).public_id
    ask = did(
        office, "ana", api_members.set_access, office.keyring, bot, {"operations": NONE}, was=None, is_proved=True
    )
    turn = drafts.Draft(scopes=["tasks:read"], form_id=new_id("form"), replaces=old.id, overlap="0")
    ends = at_once(
        {
            "lower": ask,
            "generate": make_key(office, "lea", API_MEMBER),
            "rotate": did(office, "lea", rotation.rotate, office.keyring, turn),
        }
    )
    assert not isinstance(ends["lower"], Exception)
    for made in (ends["generate"], ends["rotate"]):
        if isinstance(made, Exception):
            assert isinstance(made, Invalid)
        else:
            assert office.check(made[1]).reach.effective == frozenset()


@pytest.mark.parametrize("n", ROUNDS)
def test_two_admins_who_demote_each_other(office: Office, n: int) -> None:
    office.change("max", role=Role.ADMIN)
    ends = at_once({"ana": lower(office, "max", by="ana"), "max": lower(office, "ana", by="max")})
    (refusal,) = [end for end in ends.values() if isinstance(end, Exception)]
    assert isinstance(refusal, Forbidden)
    assert {office.member("ana").role, office.member("max").role} == {"admin", "member"}


@pytest.mark.parametrize("then", people.THEN)
def test_the_last_two_admins_do_not_both_leave(office: Office, then: str) -> None:
    office.change("max", role=Role.ADMIN)
    calls = {name: did(office, name, people.leave, office.member(name).public_id, then) for name in ("ana", "max")}
    ends = at_once(calls)
    (refusal,) = [end for end in ends.values() if isinstance(end, Exception)]
    assert isinstance(refusal, Conflict)
    assert sum(office.member(name).role == "admin" and office.member(name).is_active for name in calls) == 1


@pytest.mark.parametrize("owner", ["lea", API_MEMBER])
def test_sixteen_generates_at_one_below_the_limit(office: Office, owner: str) -> None:
    for n in range(keys.KEYS_PER_MEMBER - (2 if owner == "lea" else 1)):  # one of hers is there already
        office.generate("lea", owner=owner, name=f"Before {n}")
    makers = ("lea", "ana") if owner == API_MEMBER else ("lea",)
    calls = {str(n): make_key(office, makers[n % len(makers)], owner, n) for n in range(16)}
    ends = at_once(calls)
    refused = [end for end in ends.values() if isinstance(end, Exception)]
    assert (len(refused), {type(each) for each in refused}) == (15, {Conflict})
    with office.database.reading() as session:
        count = select(func.count()).where(ApiKey.member_id == office.member(owner).id)
        assert session.scalar(count) == keys.KEYS_PER_MEMBER


def test_api_members_that_are_made_at_once_do_not_pass_the_limit(office: Office) -> None:
    lea = office.member("lea")
    here = {"workspace_id": lea.workspace_id, "role": "member", "purpose": "", "created_at": NOON}
    rows = [{"public_id": f"mem_x{n}", "name": f"Bot {n}", **here} for n in range(api_members.LIMIT - 2)]
    with office.database.transaction() as session:
        session.execute(insert(Member), rows)
    calls = {
        str(n): did(office, ("ana", "lea")[n % 2], api_members.create, name=f"New {n}", purpose="", access={})
        for n in range(8)
    }
    ends = at_once(calls)
    assert sorted(type(end).__name__ for end in ends.values()) == ["Conflict"] * 7 + ["Member"]


def test_one_of_those_who_take_a_name_at_once_gets_it(office: Office) -> None:
    with audit.transaction(office.database, office.actor("lea")) as session:
        old = api_members.create(session, office.actor("lea"), name="Old", purpose="", access={}).public_id
    takers = zip(("ana", "lea", "ana", "lea", "ana"), ("Twin", "TWIN", "TWIN", "Twin", "twin"), strict=True)
    calls = {
        str(n): did(office, who, api_members.create, name=name, purpose="", access={})
        for n, (who, name) in enumerate(takers)
    }
    ends = at_once(calls | {"rename": did(office, "ana", api_members.edit, old, name="twin", purpose="", was=None)})
    assert sorted(type(end).__name__ for end in ends.values()) == ["Invalid"] * 5 + ["Member"]


def test_an_api_member_is_deleted_while_its_keys_are_stopped_and_moved(office: Office) -> None:
    made = [office.generate("lea", owner=API_MEMBER, name=f"Key {n}")[0].id for n in range(3)]
    bot = office.member(API_MEMBER).public_id
    draft = drafts.Draft(scopes=["tasks:read"], form_id=new_id("form"), replaces=made[2], overlap="24h")
    ends = at_once(
        {
            "delete": did(office, "lea", api_members.delete, bot, typed=API_MEMBER),
            "stop": did(office, "lea", keys.deactivate, office.keyring, made[0]),
            "end": did(office, "ana", keys.delete, office.keyring, made[1], typed=""),
            "rotate": did(office, "ana", rotation.rotate, office.keyring, draft),
        }
    )
    assert not isinstance(ends["delete"], Exception)
    assert {type(end) for end in ends.values() if isinstance(end, Exception)} <= {NotFound, Invalid, Conflict}
    with office.database.reading() as session:
        left = select(func.count()).where(ApiKey.member_id == office.member(API_MEMBER).id, ApiKey.revoked_at.is_(None))
        assert session.scalar(left) == 0


@pytest.mark.parametrize("n", ROUNDS)
def test_an_invitation_is_accepted_while_its_sender_is_demoted(office: Office, n: int) -> None:
    office.change("max", role=Role.ADMIN)
    with office.database.transaction() as session:
        acme = session.scalars(select(Workspace).where(Workspace.slug == "acme")).one()
        who = office.actor("max")
        given = {"sales": FULL}
        token = invitations.issue(session, who, acme, "ida@acme.test", Role.ADMIN, given)
    visitor = Actor(NOON, Means.SESSION, "visitor")
    ida = NewAccount.choose("Ida Berg", "twelve chars", "twelve chars")

    def accept() -> Member:
        with office.database.transaction() as session:
            return invitations.accept(session, visitor, token, ida)

    ends = at_once({"demote": lower(office, "max"), "accept": accept})
    saved = ends["demote"]
    assert not isinstance(saved, Exception)
    assert isinstance(ends["accept"], NotFound if saved.withdrawn else Member)


def test_invitations_beside_each_other_leave_one_open(office: Office) -> None:
    given = {"role": "member", "levels": {}, "base_url": "http://x"}
    calls = {str(n): did(office, "ana", invitations.invite, email="ida@acme.test", **given) for n in range(4)}
    assert not [end for end in at_once(calls).values() if isinstance(end, Exception)]
    with office.database.reading() as session:
        seat = members.seat_of(session, office.actor("ana"))
        assert len(invitations.list_open(session, office.actor("ana"), seat)) == 1
