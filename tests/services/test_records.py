"""Records: live and sandbox apart, held to their app's schema, changed by one at a time."""

import socket
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.rules.access import AccessLevel
from portal.rules.errors import DoesNotFit, Forbidden, Invalid, NotFound, PreconditionFailed, TooLarge
from portal.rules.schemas import Schema
from portal.services import audit, records, workspaces
from portal.services.records import Place, Sandbox
from portal.store.models import App, Record
from tests.servers import free_port
from tests.services.office import NOON, Office, at_once

TASK = {"title": "Count safety vests"}


def place(office: Office, app: str = "tasks", environment: str = "live", name: str = "ana") -> Place:
    return Place(office.member(name).workspace_id, app, environment)


def create(office: Office, where: Place, fields: dict[str, Any]) -> Record:
    actor = office.actor("ana")
    with office.database.transaction() as session:
        return records.create(session, actor, where, fields)


def change(
    office: Office, where: Place, record_id: str, fields: dict[str, Any], tags: set[str] | None = None
) -> Record:
    actor = office.actor("ana")
    with office.database.transaction() as session:
        return records.change(session, actor, where, record_id, fields, if_match=tags, may_read=True)


def get(office: Office, where: Place, record_id: str) -> Record:
    with office.database.reading() as session:
        return records.get(session, where, record_id)


def total(office: Office, where: Place) -> int:
    with office.database.reading() as session:
        return records.list_for(session, where, limit=1, offset=0)[1]


def fill(office: Office, who: str, app: str) -> Sandbox:
    actor = office.actor(who)
    with audit.transaction(office.database, actor) as session:
        return records.fill_sandbox(session, actor, app)


# --- Places ---------------------------------------------------------------------------------------------------------


def test_a_record_is_in_its_own_app_environment_and_workspace_only(office: Office) -> None:
    made = create(office, place(office), TASK)
    assert get(office, place(office), made.public_id).fields == TASK
    elsewhere = [
        place(office, environment="test"),
        place(office, "leads"),
        place(office, name="zoe"),
        place(office, "payroll"),
    ]
    actor = office.actor("ana")
    for where in elsewhere:
        with pytest.raises(NotFound):
            get(office, where, made.public_id)
        with pytest.raises(NotFound):
            change(office, where, made.public_id, TASK)
        with pytest.raises(NotFound), office.database.transaction() as session:
            records.remove(session, actor, where, made.public_id, if_match=None)
    assert get(office, place(office), made.public_id).version == 1


def test_writing_in_one_environment_leaves_the_other_alone(office: Office) -> None:
    live, test = place(office), place(office, environment="test")
    before = total(office, live), total(office, test)
    made = create(office, test, TASK)
    assert (total(office, live), total(office, test)) == (before[0], before[1] + 1)
    actor = office.actor("ana")
    with office.database.transaction() as session:
        records.remove(session, actor, test, made.public_id, if_match=None)
    assert (total(office, live), total(office, test)) == before


def test_records_are_listed_newest_first_and_counted_whole(office: Office) -> None:
    where = place(office)
    made = [create(office, where, TASK).public_id for _ in range(3)]
    with office.database.reading() as session:
        page, count = records.list_for(session, where, limit=2, offset=0)
        rest, _ = records.list_for(session, where, limit=100, offset=2)
        past, _ = records.list_for(session, where, limit=1, offset=2**31 - 1)
    assert [record.public_id for record in page] == made[:0:-1]
    assert (len(rest), past) == (count - 2, [])


@pytest.mark.parametrize("record_id", ["", "rec_", "rec_1", "-1", "%", "x" * 10_000])
def test_an_absurd_id_is_not_found(shared_office: Office, record_id: str) -> None:
    with pytest.raises(NotFound):
        get(shared_office, place(shared_office), record_id)


# --- Schema ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "$"),
        ({"title": ""}, "$.title"),
        ({"title": 1}, "$.title"),
        ({"title": None}, "$.title"),
        ({"title": "x" * 121}, "$.title"),
        ({**TASK, "priority": 6}, "$.priority"),
        ({**TASK, "priority": 1.5}, "$.priority"),
        ({**TASK, "priority": True}, "$.priority"),
        ({**TASK, "status": "lost"}, "$.status"),
        ({**TASK, "colour": "red"}, "$"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_where_and_why(
    shared_office: Office, fields: dict[str, Any], path: str
) -> None:
    where = place(shared_office)
    before = total(shared_office, where)
    with pytest.raises(DoesNotFit) as refused:
        create(shared_office, where, fields)
    assert path in [detail["path"] for detail in refused.value.details]
    assert all(detail["message"] for detail in refused.value.details)
    assert total(shared_office, where) == before


def test_all_that_does_not_fit_is_told_but_no_more_than_a_reader_wants(office: Office) -> None:
    with pytest.raises(DoesNotFit) as refused:
        create(office, place(office), {"title": 1, "status": "x" * 10_000, "priority": -1, "assignee": ""})
    assert [detail["path"] for detail in refused.value.details] == [
        "$.assignee", "$.priority", "$.status", "$.title",
    ]  # fmt: skip
    assert max(len(detail["message"]) for detail in refused.value.details) <= 300


def test_the_format_of_an_email_field_is_held_to(office: Office) -> None:
    with pytest.raises(DoesNotFit):
        create(office, place(office, "leads"), {"name": "Ines", "email": "not an address"})
    create(office, place(office, "leads"), {"name": "Ines", "email": "ines@northwind.test"})


def test_a_schema_that_points_to_another_server_asks_nobody(office: Office) -> None:
    """Should such a schema ever get past `add_app`: no request leaves, and the record is not let through."""
    with closing(socket.create_server(("127.0.0.1", free_port()))) as server, office.database.transaction() as session:
        server.settimeout(0)
        app = session.scalars(select(App).where(App.slug == "tasks")).one()
        app.schema = {"type": "object", "$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"}
        with pytest.raises(Invalid, match="within the schema itself"):
            records.create(session, office.actor("ana"), place(office), TASK)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


# --- Versions -------------------------------------------------------------------------------------------------------


def test_a_change_merges_top_level_fields_and_counts_the_version(office: Office) -> None:
    where = place(office)
    made = create(office, where, {**TASK, "priority": 1})
    changed = change(office, where, made.public_id, {"priority": 2, "status": "open"})
    assert changed.fields == {**TASK, "priority": 2, "status": "open"}
    assert (records.etag(made), records.etag(changed)) == ('"1"', '"2"')
    assert (changed.created_at, changed.updated_at) == (NOON, NOON)
    with pytest.raises(DoesNotFit):  # null is stored as null, and this schema wants a text
        change(office, where, made.public_id, {"title": None})
    assert get(office, where, made.public_id).version == 2


@pytest.mark.parametrize(
    ("tags", "passes"),
    [(None, True), ({'"1"'}, True), ({"*"}, True), ({'"7"', '"1"'}, True), ({'"2"'}, False), (set(), False)],
)
@pytest.mark.parametrize("action", ["change", "remove"])
def test_a_version_that_is_no_longer_the_current_one_is_not_touched(
    shared_office: Office, tags: set[str] | None, passes: bool, action: str
) -> None:
    where = place(shared_office)
    made = create(shared_office, where, TASK)
    actor = shared_office.actor("ana")

    def act() -> None:
        with shared_office.database.transaction() as session:
            if action == "change":
                records.change(session, actor, where, made.public_id, {"priority": 1}, if_match=tags, may_read=True)
            else:
                records.remove(session, actor, where, made.public_id, if_match=tags)

    if passes:
        act()
    else:
        with pytest.raises(PreconditionFailed):
            act()
        assert get(shared_office, where, made.public_id).fields == TASK


def test_of_those_who_change_one_version_at_once_one_wins(office: Office) -> None:
    where = place(office)
    made = create(office, where, TASK)
    calls = {str(n): partial(change, office, where, made.public_id, {"priority": n}, {'"1"'}) for n in range(6)}
    ends = at_once(calls)
    assert sum(isinstance(end, PreconditionFailed) for end in ends.values()) == 5
    assert get(office, where, made.public_id).version == 2


def test_changes_of_several_fields_at_once_are_all_kept(office: Office) -> None:
    where = place(office)
    made = create(office, where, TASK)
    fields: dict[str, Any] = {"status": "doing", "priority": 3, "assignee": "Rio"}
    at_once({name: partial(change, office, where, made.public_id, {name: fields[name]}) for name in fields})
    found = get(office, where, made.public_id)
    assert (found.fields, found.version) == (TASK | fields, 4)


def test_each_change_is_told_with_its_app_and_environment_but_not_its_content(office: Office) -> None:
    where = place(office, environment="test")
    made = create(office, where, {"title": "A private matter"})
    change(office, where, made.public_id, {"priority": 1})
    actor = office.actor("ana")
    with office.database.transaction() as session:
        records.remove(session, actor, where, made.public_id, if_match=None)
    told = office.told(target_id=made.public_id)
    assert [event.action for event in told] == ["record_created", "record_changed", "record_deleted"]
    assert {str(event.details) for event in told} == {str({"app": "tasks", "environment": "test"})}
    assert "private" not in repr([vars(event) for event in told])


# --- While the schema changes ---------------------------------------------------------------------------------------

LONG = "x" * 110  # fits the schema of tasks, and not the one that `shorten` gives it


def shorten(office: Office, session: Session) -> App:
    schema = Schema.read({"type": "object", "properties": {"title": {"maxLength": 100}}})
    return workspaces.edit_app(session, office.actor("ana"), "tasks", "Tasks", "", schema)


@pytest.mark.server
def test_a_schema_waits_for_a_record_that_is_being_changed_and_must_then_fit_it(office: Office) -> None:
    where = place(office)
    made = create(office, where, TASK)
    ana = office.actor("ana")

    def change_schema() -> None:
        with office.database.transaction() as session:
            shorten(office, session)

    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            records.change(session, ana, where, made.public_id, {"title": LONG}, if_match=None, may_read=True)
            waiting = pool.submit(change_schema)
            assert wait([waiting], 0.3).done == set()
        with pytest.raises(Invalid, match="would not fit"):
            waiting.result()


@pytest.mark.server
def test_a_record_waits_for_a_schema_that_is_being_changed_and_must_then_fit_it(office: Office) -> None:
    where = place(office)
    made = create(office, where, TASK)
    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            shorten(office, session)
            waiting = pool.submit(change, office, where, made.public_id, {"title": LONG})
            assert wait([waiting], 0.3).done == set()
        with pytest.raises(DoesNotFit):
            waiting.result()
    assert get(office, where, made.public_id).fields == TASK


# --- The sandbox ----------------------------------------------------------------------------------------------------


def contents(office: Office, where: Place) -> list[str]:
    with office.database.reading() as session:
        found, _ = records.list_for(session, where, limit=1_000, offset=0)
    return [repr(sorted(record.fields.items())) for record in found]


@pytest.mark.parametrize("who", ["ana", "lea"])
def test_filling_the_sandbox_copies_live_records_and_never_the_other_way(office: Office, who: str) -> None:
    live, test = place(office), place(office, environment="test")
    others = [place(office, "leads", "live"), place(office, "leads", "test")]
    create(office, test, {"title": "Only in the sandbox"})
    before, untouched = contents(office, live), [contents(office, other) for other in others]
    filled = fill(office, who, "tasks")
    assert contents(office, test) == contents(office, live) == before
    assert (filled.live, filled.test) == (len(before), len(before))
    assert [contents(office, other) for other in others] == untouched
    (told,) = office.told(action="sandbox_filled")
    assert told.details == {"removed": 5, "copied": len(before)}


def test_a_sandbox_that_is_filled_many_times_at_once_is_filled_once(office: Office) -> None:
    fillers = ("ana", "lea", "ana", "lea")
    ends = at_once({str(n): partial(fill, office, who, "tasks") for n, who in enumerate(fillers)})
    assert {type(end) for end in ends.values()} == {Sandbox}
    assert contents(office, place(office, environment="test")) == contents(office, place(office))


def test_a_record_cannot_hold_more_than_the_limit_however_it_came_there(office: Office) -> None:
    with office.database.transaction() as session:
        app = session.scalars(select(App).where(App.slug == "tasks")).one()
        app.schema = {"type": "object"}
    where = place(office)
    made = create(office, where, {"a": "x" * 600_000})
    with pytest.raises(TooLarge):
        change(office, where, made.public_id, {"b": "x" * 600_000})
    assert get(office, where, made.public_id).version == 1
    change(office, where, made.public_id, {"a": "", "b": "x" * 600_000})
    change(office, where, made.public_id, {"a": "", "b": "鍵" * 300_000})  # 900,000 bytes, as a request sends them
    with pytest.raises(TooLarge):
        change(office, where, made.public_id, {"a": "鍵" * 50_000})
    numbers = [1e15] * 60_000  # 300,000 bytes as they are sent, four times as many as they are given back
    with pytest.raises(TooLarge, match="as it is given back"):
        create(office, where, {"a": numbers})
    made = create(office, where, {"a": numbers[:50_000]})
    change(office, where, made.public_id, {"a": numbers[:50_000], "b": 1})


def test_a_change_in_the_filled_sandbox_does_not_reach_the_live_record(office: Office) -> None:
    live, test = place(office), place(office, environment="test")
    before = contents(office, live)
    fill(office, "ana", "tasks")
    with office.database.reading() as session:
        found, _ = records.list_for(session, test, limit=1, offset=0)
    change(office, test, found[0].public_id, {"title": "Practice"})
    assert contents(office, live) == before


def test_an_app_without_live_records_has_its_sandbox_emptied(office: Office) -> None:
    actor = office.actor("ana")
    with office.database.reading() as session:
        found, _ = records.list_for(session, place(office), limit=100, offset=0)
    with office.database.transaction() as session:
        for record in found:
            records.remove(session, actor, place(office), record.public_id, if_match=None)
    assert fill(office, "ana", "tasks").test == 0
    assert contents(office, place(office, environment="test")) == []


@pytest.mark.parametrize(
    ("who", "app", "refusal"),
    [
        ("lea", "leads", Forbidden),  # she reads Sales
        ("max", "leads", Forbidden),  # full is not manage
        ("max", "tasks", Forbidden),
        ("rio", "tasks", Forbidden),
        ("rio", "leads", NotFound),  # Sales does not exist for him
        ("zoe", "tasks", NotFound),
        ("ana", "tickets", NotFound),
        ("ana", "payroll", NotFound),
    ],
)
def test_only_who_manages_a_solution_fills_its_sandboxes(
    shared_office: Office, who: str, app: str, refusal: type[Exception]
) -> None:
    sandboxes = [place(shared_office, name, "test") for name in ("tasks", "leads")]
    before = [contents(shared_office, each) for each in sandboxes]
    with pytest.raises(refusal):
        fill(shared_office, who, app)
    assert [contents(shared_office, each) for each in sandboxes] == before
    assert [event.outcome for event in shared_office.told(action="sandbox_filled")] == ["refused"] * (
        refusal is Forbidden
    )


def test_a_demoted_lead_fills_no_sandbox(office: Office) -> None:
    office.grant("lea", "operations", AccessLevel.FULL)
    with pytest.raises(Forbidden):
        fill(office, "lea", "tasks")
