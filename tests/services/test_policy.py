"""A workspace's policy: what it refuses, what it leaves alone, and who sets it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import pytest
from sqlalchemy import select

from portal.rules.access import Role
from portal.rules.credentials import PlainKey
from portal.rules.errors import Conflict, Forbidden, Invalid
from portal.rules.lifetimes import Lifetime
from portal.services import audit, drafts, keys, policy, rotation
from portal.services.drafts import Draft
from portal.services.key_views import KeyView
from portal.services.policy import Policy
from portal.store.models import ApiKey, Member
from tests.services.office import API_MEMBER, NOON, Office

OPEN = Policy(None, True)


def set_policy(office: Office, wanted: Policy, was: Policy = OPEN, name: str = "ana") -> None:
    actor = office.actor(name)
    with audit.transaction(office.database, actor) as session:
        policy.change(session, actor, wanted, was)


@pytest.mark.parametrize(
    ("days", "refused"),
    [(30, {"90d", "1y", "never"}), (90, {"1y", "never"}), (365, {"never"}), (None, set[str]())],
)
def test_no_key_is_made_that_lives_longer(days: int | None, refused: set[str], office: Office) -> None:
    if days:
        set_policy(office, Policy(days, True))
    stopped = set()
    for lifetime in Lifetime:
        try:
            office.generate("rio", name=f"For {lifetime}", expires=str(lifetime))
        except Invalid as error:
            assert set(error.problems) == {"expires"}
            stopped.add(str(lifetime))
    assert stopped == refused


def test_forms_offer_what_is_allowed(office: Office) -> None:
    set_policy(office, Policy(30, True))
    with office.database.reading() as session:
        draft = drafts.first(session, office.actor("rio"), office.seat("rio"))
    assert draft.expires == "30d"
    assert policy.lifetimes(office.seat("rio").workspace) == [Lifetime.DAYS_30]


def test_rotating_a_key_of_before_obeys_the_policy(office: Office) -> None:
    key, _ = office.generate("rio", expires="never")
    set_policy(office, Policy(90, True))
    actor = office.actor("rio")
    with office.database.reading() as session:
        assert rotation.draft_rotation(session, actor, office.seat("rio"), key.id).expires == "90d"
    wanted = Draft(scopes=["tasks:read"], expires="never", replaces=key.id, overlap="24h")
    with pytest.raises(Invalid), audit.transaction(office.database, actor) as session:
        rotation.rotate(session, actor, office.keyring, wanted)
    assert office.row(key.id).retires_at is None


def test_administrators_own_no_live_keys_when_so_decided(office: Office) -> None:
    old, plain = office.generate("ana", name="Of before")
    set_policy(office, Policy(None, False))
    office.check(plain)
    with pytest.raises(Invalid) as refused:
        office.generate("ana")
    assert set(refused.value.problems) == {"environment"}
    in_sandbox, _ = office.generate("ana", environment="test")
    office.act("ana", keys.deactivate, in_sandbox.id)
    office.act("ana", keys.reactivate, in_sandbox.id)
    office.generate("ana", owner=API_MEMBER)
    office.generate("rio")
    office.act("ana", keys.deactivate, old.id)
    with pytest.raises(Conflict):
        office.act("ana", keys.reactivate, old.id)


@pytest.mark.parametrize("expires", ["30d", "90d", "1y", "never"])
def test_no_key_is_reactivated_that_lives_longer(expires: str, office: Office) -> None:
    key, plain = office.generate("rio", expires=expires)
    set_policy(office, Policy(90, True))
    office.act("rio", keys.deactivate, key.id)
    if expires in ("30d", "90d"):
        office.act("rio", keys.reactivate, key.id)
        office.check(plain)
        return
    its = {"1y": "was made for 365 days", "never": "never expires"}[expires]
    with pytest.raises(Conflict, match=f"live for 90 days at most, and this one {its}. Generate a similar key"):
        office.act("rio", keys.reactivate, key.id)
    assert office.row(key.id).deactivated_at


@pytest.mark.server
@pytest.mark.parametrize("for_what", ["for the policy", "for a row"])
@pytest.mark.parametrize("what", ["generates", "rotates", "reactivates"])
def test_who_waits_while_the_policy_is_changed_obeys_the_new_one(what: str, for_what: str, office: Office) -> None:
    office.change("max", role=Role.ADMIN)
    ana, bot = office.actor("ana"), office.member(API_MEMBER)
    old, _ = office.generate("max", owner=API_MEMBER, name="Of before", expires="never")
    own, _ = office.generate("max", name="Of an administrator")
    office.act("max", keys.deactivate, own.id)
    wanted = Draft(scopes=["tasks:read"], expires="never", replaces=old.id, overlap="24h")

    def rotate() -> tuple[KeyView, PlainKey]:
        with office.database.transaction() as session:
            return rotation.rotate(session, office.actor("max"), office.keyring, wanted)

    then: dict[str, Callable[[], object]] = {
        "generates": partial(office.generate, "max", owner=API_MEMBER, expires="never"),
        "rotates": rotate,
        "reactivates": partial(office.act, "max", keys.reactivate, own.id),
    }
    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            if for_what == "for the policy":
                policy.change(session, ana, Policy(30, False), OPEN)
            else:
                session.execute(select(Member.id).where(Member.id == bot.id).with_for_update(key_share=True))
                session.execute(select(ApiKey.id).where(ApiKey.public_id == own.id).with_for_update(key_share=True))
            waiting = pool.submit(then[what])
            assert wait([waiting], 0.3).done == set()
            if for_what == "for a row":
                set_policy(office, Policy(30, False))
        with pytest.raises((Invalid, Conflict), match=r"30 days|own no live"):
            waiting.result()


def test_the_preview_counts_what_stands_against_it(office: Office) -> None:
    office.generate("rio", name="Short", expires="30d")
    office.generate("rio", name="Long", expires="1y")
    office.generate("ana", name="Endless", expires="never")
    office.generate("zoe", name="Of another workspace", expires="never", scopes=["tickets:read"])
    stopped, _ = office.generate("rio", name="Stopped", expires="never")
    office.act("rio", keys.deactivate, stopped.id)
    with office.database.reading() as session:
        count, listed = policy.preview(session, office.seat("ana"), Policy(90, False), NOON)
    assert count == 2
    assert {each.name: each.why for each in listed} == {
        "Long": "lives longer than 90 days",
        "Endless": "never expires and is a live key of an administrator",
    }


@pytest.mark.parametrize("name", ["lea", "max", "rio"])
def test_only_administrators_set_it(name: str, office: Office) -> None:
    with pytest.raises(Forbidden):
        set_policy(office, Policy(30, True), name=name)
    [told] = office.told(action="policy_changed")
    assert told.outcome == "refused"
    assert policy.of(office.seat("ana").workspace) == OPEN


def test_a_change_is_told_with_before_and_after_and_a_stale_one_refused(office: Office) -> None:
    set_policy(office, Policy(90, True))
    [told] = office.told(action="policy_changed")
    assert told.details == {
        "before": {"max_key_days": None, "admins_own_live": True},
        "after": {"max_key_days": 90, "admins_own_live": True},
    }
    with pytest.raises(Conflict):
        set_policy(office, Policy(None, False), was=OPEN)


def test_other_workspaces_keep_theirs(office: Office) -> None:
    set_policy(office, Policy(30, True))
    assert policy.of(office.seat("zoe").workspace) == OPEN


def test_only_offered_limits_are_read() -> None:
    for days in ("1", "-30", "x", "0"):
        with pytest.raises(Invalid):
            policy.read(days, admins_own_live=True)
