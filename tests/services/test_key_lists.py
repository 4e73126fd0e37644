"""Lists of keys: who sees which, search, filters, sorting, pages, pairs; and the counts that lead there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert

from portal.services import audit, key_lists, keys, rotation
from portal.services.key_lists import STATES
from portal.store.database import Database
from portal.store.models import ApiKey, Workspace
from tests.services.office import API_MEMBER, NOON, Office

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def names(office: Office, who: str = "max", **filters: Any) -> list[str]:
    return [key.name for key in office.page(who, **filters).rows]


def rotate(office: Office, who: str, key_id: str, overlap: str = "7d") -> str:
    actor = office.actor(who)
    with audit.transaction(office.database, actor) as session:
        draft = rotation.draft_rotation(session, actor, office.seat(who), key_id)
        return rotation.rotate(session, actor, office.keyring, replace(draft, overlap=overlap))[0].id


# --- Search ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("crm", ["CRM sync"]),
        ("SYNC", ["CRM sync"]),
        ("straße", ["STRASSE 7"]),
        ("github", ["Billing"]),  # the note
        ("Über", ["Wien"]),
        ("%", ["100% sure"]),
        ("_", ["snake_case"]),
        ("\\", ["back\\slash"]),
        ("%%", []),
        ("'", []),
        ('" OR 1=1 --', []),
        ("x" * 500, []),
    ],
)
def test_search_looks_for_the_very_text_in_name_and_note(office: Office, q: str, found: list[str]) -> None:
    for name in ("CRM sync", "STRASSE 7", "100% sure", "snake_case", "back\\slash"):
        office.generate("max", name=name)
    office.generate("max", name="Billing", note="GitHub Actions")
    office.generate("max", name="Wien", note="Überlauf")
    assert names(office, q=q, sort="name") == found


def test_a_search_is_as_good_for_composed_and_decomposed_letters(office: Office) -> None:
    office.generate("max", name="Zu\u0308rich")
    assert names(office, q="zürich") == names(office, q="ZU\u0308RICH") == ["Zürich"]


def test_search_finds_a_key_by_its_last_four_characters_exactly(office: Office) -> None:
    wanted, plain = office.generate("max", name="Wanted")
    for other, last_four in (("Upper", "aBcD"), ("Lower", "abcd")):
        office.set_key(office.generate("max", name=other)[0].id, last_four=last_four)
    assert wanted.last_four == plain.last_four
    assert "Wanted" in names(office, q=plain.last_four)
    assert names(office, q="aBcD") == ["Upper"]
    assert names(office, q="aBc") == []


def test_search_reaches_no_further_than_the_list(office: Office) -> None:
    for who in ("ana", "max", "rio"):
        office.generate(who, name=f"Shared word {who}")
    office.generate("zoe", name="Shared word zoe", scopes=["tickets:read"])
    assert names(office, "max", owner="all", q="shared") == ["Shared word max"]
    assert names(office, "ana", owner="all", q="shared", sort="name") == [
        f"Shared word {n}" for n in ("ana", "max", "rio")
    ]


# --- Filters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_of_each(office: Office) -> Office:
    """Keys of max in every state at NOON, named after it."""
    office.generate("max", name="active")
    off, _ = office.generate("max", name="deactivated")
    office.act("max", keys.deactivate, off.id)
    office.generate("max", name="expired", expires="30d", at=NOON - 31 * DAY)
    office.generate("max", name="expiring", expires="30d", at=NOON - 20 * DAY)
    office.generate("max", name="unused", at=NOON - 40 * DAY)
    gone, _ = office.generate("max", name="deleted")
    office.act("max", keys.delete, gone.id, typed="")
    retired, _ = office.generate("max", name="retired")
    rotate(office, "max", retired.id, overlap="0")
    paired, _ = office.generate("max", name="pair")
    rotate(office, "max", paired.id)
    return office


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("active", ["active", "expiring", "pair", "pair", "retired", "unused"]),
        ("deactivated", ["deactivated"]),
        ("expired", ["expired"]),
        ("stopped", ["deactivated", "expired"]),
        ("expiring", ["expiring"]),
        ("unused", ["unused"]),
        ("revoked", ["deleted", "retired"]),
        ("", ["active", "deactivated", "expired", "expiring", "pair", "pair", "retired", "unused"]),
    ],
)
def test_each_state_finds_its_keys(one_of_each: Office, state: str, found: list[str]) -> None:
    assert sorted(names(one_of_each, state=state)) == found


def test_the_counts_are_those_of_the_lists_that_they_lead_to(one_of_each: Office) -> None:
    with one_of_each.database.reading() as session:
        counts = key_lists.count_for(session, one_of_each.actor("max"), one_of_each.seat("max"), "me")
    for state in ("active", "expiring", "unused", "stopped"):
        assert getattr(counts, state) == one_of_each.page("max", state=state).total, state
    assert set(STATES) >= {"active", "expiring", "unused", "stopped"}


def test_a_key_in_use_is_not_among_the_unused(office: Office) -> None:
    used, _ = office.generate("max", name="Used", at=NOON - 40 * DAY)
    office.generate("max", name="Idle", at=NOON - 40 * DAY)
    office.use(used.id, NOON - 29 * DAY)
    assert names(office, state="unused") == ["Idle"]
    office.set_key(used.id, last_used_at=NOON - 31 * DAY)
    assert sorted(names(office, state="unused")) == ["Idle", "Used"]


def test_environment_and_scope_narrow_the_list_together(office: Office) -> None:
    office.generate("max", name="Live reader", scopes=["leads:read"])
    office.generate("max", name="Live writer", scopes=["leads:read", "leads:write"])
    office.generate("max", name="Sandbox writer", scopes=["leads:write"], environment="test")
    assert sorted(names(office, env="live")) == ["Live reader", "Live writer"]
    assert sorted(names(office, scope="leads:write")) == ["Live writer", "Sandbox writer"]
    assert names(office, scope="leads:write", env="live") == ["Live writer"]
    assert names(office, scope="leads:write", env="live", q="reader") == []
    assert names(office, scope="tickets:read") == []  # another workspace's


def test_an_owner_narrows_the_list_to_those_one_may_see(office: Office) -> None:
    for who in ("ana", "lea", "max"):
        office.generate(who, name=f"Of {who}")
    office.generate("lea", owner=API_MEMBER, name="Of the sync")
    ids = {who: office.member(who).public_id for who in ("ana", "max", API_MEMBER)}
    assert names(office, "ana", owner=ids["max"]) == ["Of max"]
    assert names(office, "lea", owner=ids[API_MEMBER]) == ["Of the sync"]
    assert names(office, "lea", owner=ids["max"]) == names(office, "max", owner=ids[API_MEMBER]) == []
    assert names(office, "zoe", owner=ids["ana"]) == names(office, "zoe", owner="all") == []
    assert names(office, "ana", owner="mem_unknown") == []


# --- Order and pages ------------------------------------------------------------------------------------------------


def test_each_order_is_what_its_name_says(office: Office) -> None:
    made = {}
    for name, expires, age in (("b", "1y", 3), ("a", "never", 2), ("d", "30d", 29), ("c", "90d", 0)):
        made[name] = office.generate("max", name=f"Key {name}", expires=expires, at=NOON - age * DAY)[0].id
    office.use(made["a"], NOON - 2 * HOUR)
    office.use(made["c"], NOON - HOUR)

    def order(sort: str) -> str:
        return "".join(name[-1] for name in names(office, sort=sort))

    assert {sort: order(sort) for sort in ("name", "created", "used", "expires")} == {
        "name": "abcd",
        "created": "cdab",
        "used": "cadb",
        "expires": "dcba",
    }
    assert order("attention") == "dcab"  # what expires within 14 days first, then what was used last
    assert order("nonsense") == "dcab"


def test_what_needs_attention_is_what_has_expired_and_then_what_expires_first(office: Office) -> None:
    made = {}
    for name, age in (("Used last", 1), ("In 12 days", 18), ("In 2 days", 28), ("Expired", 31), ("Not used", 2)):
        made[name] = office.generate("max", name=name, expires="30d", at=NOON - age * DAY)[0].id
    for hours, name in enumerate(("Used last", "In 12 days", "In 2 days")):
        office.use(made[name], NOON - hours * HOUR)
    assert names(office) == ["Expired", "In 2 days", "In 12 days", "Used last", "Not used"]


def test_the_owners_to_choose_from_are_those_whose_keys_one_sees(office: Office) -> None:
    for who in ("ana", "max", "rio", "lea"):
        office.generate(who, name=f"Of {who}")
    office.generate("lea", owner=API_MEMBER, name="Of the sync")
    gone, _ = office.generate("rio", name="Gone")
    office.act("rio", keys.delete, gone.id, typed="")
    office.act("rio", keys.delete, office.page("rio").rows[0].id, typed="")

    def offered(who: str, chosen: str = "") -> list[tuple[str, bool]]:
        with office.database.reading() as session:
            found = key_lists.owners_for(session, office.seat(who), office.member(chosen).public_id if chosen else "")
        return [(name, is_api) for _, name, is_api in found]

    assert offered("ana") == [("Lea Okoro", False), ("Max Brandt", False), (API_MEMBER, True)]
    assert offered("ana", "rio")[0] == ("Rio Tanaka", False)
    assert offered("lea") == offered("lea", "max") == [(API_MEMBER, True)]
    assert offered("max") == offered("max", API_MEMBER) == offered("zoe", "ana") == []


def test_an_administrator_sorts_by_owner(office: Office) -> None:
    for who in ("rio", "max", "ana"):
        office.generate(who, name=f"One of {who}")
        office.generate(who, name=f"Another of {who}")
    listed = [(key.owner.name, key.name) for key in office.page("ana", owner="all", sort="owner").rows]
    assert listed == sorted(listed)
    assert len(listed) == 6


def test_pages_hold_every_key_once(office: Office) -> None:
    made = [office.generate(who, name=f"Key {n}")[0].id for who in ("ana", "lea") for n in range(20)]
    rotate(office, "ana", made[0])
    for sort in ("attention", "name", "created", "used", "expires", "owner"):
        pages = [office.page("ana", number, owner="all", sort=sort) for number in (1, 2)]
        listed = [key.id for page in pages for key in page.rows]
        assert [(page.number, page.total, page.count) for page in pages] == [(1, 40, 2), (2, 40, 2)]
        assert len(listed) == len(set(listed)) == 41
        assert set(made) < set(listed)
    with office.database.reading() as session:
        actor, seat = office.actor("ana"), office.seat("ana")
        filters = key_lists.Filters(owner="all")
        small = key_lists.list_for(session, actor, seat, office.keyring, filters, 99, size=15)
    assert (small.number, small.count, small.total) == (3, 3, 40)


# --- Pairs ----------------------------------------------------------------------------------------------------------


def test_the_old_key_of_a_pair_follows_its_successor_and_is_not_counted(office: Office) -> None:
    old, _ = office.generate("max", name="Rotated", at=NOON - DAY)
    for n in range(3):
        office.generate("max", name=f"Other {n}")
    new = rotate(office, "max", old.id)
    page = office.page("max")
    ids = [key.id for key in page.rows]
    assert ids.index(old.id) == ids.index(new) + 1
    assert (len(ids), page.total) == (5, 4)
    shown = {key.id: key for key in page.rows}
    assert (shown[old.id].is_retiring, shown[old.id].successor_id, shown[old.id].retires_at) == (
        True,
        new,
        NOON + 7 * DAY,
    )
    assert (shown[new].is_retiring, shown[new].predecessor_id) == (False, old.id)
    later = [key.id for key in office.page("max", at=NOON + 7 * DAY).rows]
    assert (old.id in later, new in later) == (False, True)


def test_an_old_key_stands_by_itself_when_its_successor_is_deleted_or_the_list_is_narrowed(office: Office) -> None:
    old, _ = office.generate("max", name="Rotated")
    new = rotate(office, "max", old.id)
    found = office.page("max", q=old.last_four)
    assert (old.id in {key.id for key in found.rows}, found.total) == (True, len(found.rows))
    office.act("max", keys.delete, new, typed="")
    page = office.page("max")
    assert ([key.id for key in page.rows], page.total) == ([old.id], 1)


# --- What a list costs, and what else is listed ---------------------------------------------------------------------


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Note what the database is asked."""
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield asked
    event.remove(database.engine, "before_cursor_execute", note)


def test_a_list_takes_the_same_few_statements_however_long_it_is(office: Office) -> None:
    def cost() -> int:
        seat, actor = office.seat("ana"), office.actor("ana")
        with statements(office.database) as asked, office.database.reading() as session:
            key_lists.list_for(session, actor, seat, office.keyring, key_lists.Filters(owner="all"), 1)
        return len([each for each in asked if each.startswith("SELECT")])

    def pair(who: str, n: int) -> None:
        rotate(office, who, office.generate(who, name=f"Key {n}", scopes=["tasks:read", "leads:read"])[0].id)

    pair("max", 0)
    few = cost()
    for n in range(1, 12):
        pair("max", n)
        pair("ana", n)
    assert cost() == few <= 4  # the page, the other keys of its rotations, scopes, days


def test_an_operators_list_of_very_many_keys_asks_for_a_part_at_a_time(office: Office) -> None:
    """PostgreSQL takes 65,535 parameters."""
    kept, _ = office.generate("max")
    row = office.row(kept.id)
    usual = {column.key: getattr(row, column.key) for column in ApiKey.__table__.columns if column.key != "id"}
    more = [
        usual | {"public_id": f"key_{n}", "name_folded": str(n), "digest": n.to_bytes(32, "big")} for n in range(1_500)
    ]
    with office.database.transaction() as session:
        session.execute(insert(ApiKey), more)
        here = session.get_one(Workspace, row.workspace_id)
    given: list[int] = []
    event.listen(office.database.engine, "before_cursor_execute", lambda *told: given.append(len(told[3])))
    with office.database.reading() as session:
        listed = key_lists.list_all(session, office.actor("ana"), here, office.keyring)
    assert (len(listed), listed[0]["scopes"]) == (1_501, ["tasks:read"])
    assert max(given) < 1_100


def test_what_expires_soon_is_listed_for_those_who_answer_for_it(office: Office) -> None:
    soon = NOON - 80 * DAY
    for n in range(4):
        office.generate("lea", name=f"Soon {n}", at=soon + n * HOUR)
    office.generate("lea", owner=API_MEMBER, name="Of the sync", at=soon - HOUR)
    office.generate("lea", name="Later")
    office.generate("max", name="Of max", at=soon)
    rotated, _ = office.generate("lea", name="Rotated", at=soon)
    rotate(office, "lea", rotated.id)

    def told(who: str) -> tuple[int, int, list[str]]:
        with office.database.reading() as session:
            own, of_api, first = key_lists.expiring_soon(session, office.actor(who), office.seat(who), office.keyring)
        return own, of_api, [key.name for key in first]

    assert told("lea") == (4, 1, ["Of the sync", "Soon 0", "Soon 1"])
    assert told("max") == (1, 0, ["Of max"])
    assert told("ana") == (0, 1, ["Of the sync"])
    assert told("rio") == (0, 0, [])
    # The list says the same: what is being replaced needs no look.
    assert [office.page("lea", owner=tab, state="expiring").total for tab in ("me", "api")] == [4, 1]


def test_one_copies_scopes_from_ones_own_keys_and_those_of_api_members(office: Office) -> None:
    for who in ("ana", "max"):
        office.generate(who, name=f"Of {who}")
    office.generate("lea", owner=API_MEMBER, name="Of the sync")
    gone, _ = office.generate("max", name="Gone")
    office.act("max", keys.delete, gone.id, typed="")

    def offered(who: str) -> list[str]:
        with office.database.reading() as session:
            listed = key_lists.copyable(session, office.actor(who), office.seat(who))
        return [words.rpartition(" …")[0] for _, words in listed]

    assert {who: offered(who) for who in ("ana", "lea", "max", "rio")} == {
        "ana": ["Of the sync", "Of ana"],
        "lea": ["Of the sync"],
        "max": ["Of max"],
        "rio": [],
    }
