"""Workspaces, solutions and apps: names that are taken, and schemas that records can be held to."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from sqlalchemy.orm import Session

from portal.rules.errors import Conflict, DoesNotFit, Invalid, NotFound
from portal.rules.schemas import Schema
from portal.services import records, workspaces
from portal.services.actor import operator
from portal.services.records import Place
from portal.store.models import App
from tests.services.office import Office

OBJECT: dict[str, Any] = {"type": "object"}
PASTED = "sk_live_" + "a" * 43


def add_app(office: Office, slug: str = "stock", schema: Any = None, name: str = "Stock", description: str = "") -> App:
    read = Schema.read(OBJECT if schema is None else schema)
    with office.database.transaction() as session:
        sales = workspaces.get_solution(session, workspaces.get(session, "acme"), "sales")
        return workspaces.add_app(session, operator(), sales, slug, name, read, description)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda session: workspaces.create(session, operator(), "acme", "Another Acme"), Conflict),
        (
            lambda session: workspaces.add_solution(
                session, operator(), workspaces.get(session, "acme"), "sales", "Another Sales"
            ),
            Invalid,
        ),
        (
            lambda session: workspaces.add_app(
                session,
                operator(),
                workspaces.get_solution(session, workspaces.get(session, "acme"), "operations"),
                "leads",  # in another solution of the workspace
                "Another Leads",
                Schema.read(OBJECT),
            ),
            Invalid,
        ),
    ],
)
def test_a_slug_is_given_once(
    shared_office: Office, make: Callable[[Session], object], refusal: type[Exception]
) -> None:
    before = len(shared_office.told())
    with pytest.raises(refusal, match="already"), shared_office.database.transaction() as session:
        make(session)
    assert len(shared_office.told()) == before


@pytest.mark.parametrize(
    "slug", ["", "a", "1a", "-a", "A", "aB", "a b", "a_b", "é", "a" * 41, "a\n", "a\x00", "../etc"]
)
def test_a_slug_that_would_not_stand_in_an_address_is_refused(shared_office: Office, slug: str) -> None:
    with pytest.raises(Invalid) as refused:
        add_app(shared_office, slug)
    assert list(refused.value.problems) == ["slug"]


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 61}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"description": "x" * 141}, "description"),
        ({"description": "a\x00b"}, "description"),
        ({"name": PASTED}, "name"),
        ({"description": f"x {PASTED}"}, "description"),
    ],
)
def test_a_name_or_description_that_cannot_be_is_refused(
    shared_office: Office, answers: dict[str, str], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        add_app(shared_office, **answers)
    assert list(refused.value.problems) == [field]


@pytest.mark.parametrize(
    "schema",
    [
        {}, [], True, False, 1, "object", {"type": "array"}, {"type": ["object", "null"]}, {"type": "thing"},
        {**OBJECT, "properties": []}, {**OBJECT, "properties": {"a": 1}}, {**OBJECT, "required": "a"},
        {**OBJECT, "properties": {"a": {"pattern": "("}}}, {**OBJECT, "properties": {"a": {"maxLength": -1}}},
        {**OBJECT, "$ref": "https://json-schema.org/draft/2020-12/schema"},
        {**OBJECT, "properties": {"a": {"$ref": "http://127.0.0.1:1/a"}}},
        {**OBJECT, "properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {**OBJECT, "properties": {"a": {"$ref": "other.json"}}},
        {**OBJECT, "allOf": [{"items": {"$dynamicRef": "https://evil.test/a"}}]},
        {**OBJECT, "$defs": {"a": {"$ref": "https://evil.test/a"}}},
        {**OBJECT, "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
        {**OBJECT, "properties": {"a": {"$ref": "#nowhere"}}},
        {**OBJECT, "$ref": "#"},
    ],
)  # fmt: skip
def test_a_schema_that_records_cannot_be_held_to_is_refused(shared_office: Office, schema: Any) -> None:
    with pytest.raises(Invalid) as refused:
        add_app(shared_office, schema=schema)
    assert list(refused.value.problems) == ["schema"]
    with shared_office.database.reading() as session, pytest.raises(NotFound):
        records.get_app(session, shared_office.member("ana").workspace_id, "stock")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (OBJECT, {"anything": 1}, None),
        ({**OBJECT, "required": ["a"]}, {"a": 1}, {}),
        ({**OBJECT, "$defs": {"n": {"enum": [1]}}, "properties": {"a": {"$ref": "#/$defs/n"}}}, {"a": 1}, {"a": 2}),
        ({**OBJECT, "properties": {"part": {"$ref": "#"}}}, {"part": {"part": {}}}, {"part": {"part": 1}}),
        ({**OBJECT, "properties": {"$ref": {"type": "string"}}}, {"$ref": "a field of that name"}, {"$ref": 1}),
        ({**OBJECT, "properties": {"a": {"const": {"$ref": "x"}}}}, {"a": {"$ref": "x"}}, {"a": 1}),
    ],
)  # fmt: skip
def test_records_are_held_to_a_schema_that_was_taken(office: Office, schema: Any, good: Any, bad: Any) -> None:
    app = add_app(office, schema=schema)
    where = Place(app.workspace_id, "stock", "live")
    actor = office.actor("ana")
    with office.database.transaction() as session:
        assert records.create(session, actor, where, good).fields == good
    if bad is not None:
        with pytest.raises(DoesNotFit), office.database.transaction() as session:
            records.create(session, actor, where, bad)


def test_a_schema_that_records_do_not_fit_is_refused_with_their_number(office: Office) -> None:
    app = add_app(office)
    strict = Schema.read({**OBJECT, "required": ["a"]})
    for environment, told in (("live", "1 live record would"), ("test", "1 live and 1 sandbox records would")):
        with office.database.transaction() as session:
            records.create(session, office.actor("ana"), Place(app.workspace_id, "stock", environment), {})
        with pytest.raises(Invalid) as refused, office.database.transaction() as session:
            workspaces.edit_app(session, office.actor("ana"), "stock", "Stock", "", strict)
        assert refused.value.problems["schema"].startswith(told)


def test_more_records_than_can_be_held_to_a_schema_in_time_are_told(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "_PATIENCE", -1)
    wide = Schema.read({"type": "object", "title": "Task"})
    with office.database.transaction() as session, pytest.raises(Invalid, match=r"Only 0 records .* there are more"):
        workspaces.edit_app(session, office.actor("ana"), "tasks", "Tasks", "", wide)


def test_a_new_app_is_empty_in_both_environments_and_told_of(office: Office) -> None:
    app = add_app(office)
    with office.database.reading() as session:
        for environment in ("live", "test"):
            assert records.list_for(session, Place(app.workspace_id, "stock", environment), limit=1, offset=0) == (
                [],
                0,
            )
    (told,) = office.told(target_id=app.public_id)
    assert (told.action, told.workspace_id, told.means) == ("app_added", app.workspace_id, "command")


@pytest.mark.parametrize("slug", ["nowhere", "", "ACME", "%"])
def test_what_is_not_there_is_not_found(shared_office: Office, slug: str) -> None:
    with shared_office.database.reading() as session:
        with pytest.raises(NotFound):
            workspaces.get(session, slug)
        with pytest.raises(NotFound):
            workspaces.get_solution(session, workspaces.get(session, "acme"), slug)
        with pytest.raises(NotFound):
            workspaces.get_solution(session, workspaces.get(session, "globex"), "sales")


# --- Changing -------------------------------------------------------------------------------------------------------


def edit(office: Office, session: Session, what: str, description: str, was: str | None, who: str = "ana") -> object:
    """Change a description alone, of the solution Sales or of its app Leads."""
    actor = office.actor(who)
    if what == "solution":
        return workspaces.edit_solution(session, actor, "sales", "Sales", description, was=was)
    return workspaces.edit_app(session, actor, "leads", "Leads", description, Schema.read(OBJECT), was=was)


def version(office: Office, what: str) -> str:
    with office.database.reading() as session:
        acme = workspaces.get(session, "acme")
        if what == "solution":
            return workspaces.version_of(workspaces.get_solution(session, acme, "sales"))
        return workspaces.version_of(records.get_app(session, acme.id, "leads"))


def test_a_slug_is_free_in_another_workspace_and_each_changes_their_own_app(office: Office) -> None:
    with office.database.transaction() as session:
        globex = workspaces.get(session, "globex")
        sales = workspaces.add_solution(session, operator(), globex, "sales", "Sales")
        workspaces.add_app(session, operator(), sales, "leads", "Leads", Schema.read(OBJECT))
        for who, description in (("ana", "Of acme"), ("zoe", "Of globex")):
            edit(office, session, "app", description, None, who)
        for slug, description in (("acme", "Of acme"), ("globex", "Of globex")):
            place = workspaces.get(session, slug).id
            assert records.get_app(session, place, "leads").description == description


@pytest.mark.parametrize("what", ["solution", "app"])
def test_a_form_that_is_old_changes_nothing(office: Office, what: str) -> None:
    was = version(office, what)
    with office.database.transaction() as session:
        edit(office, session, what, "First", was)
    now = version(office, what)
    with pytest.raises(Conflict, match="Nothing was saved"), office.database.transaction() as session:
        edit(office, session, what, "Second", was)
    assert version(office, what) == now
    with office.database.transaction() as session:
        edit(office, session, what, "Third", now)
    assert version(office, what) not in (was, now)


@pytest.mark.server
@pytest.mark.parametrize("what", ["solution", "app"])
def test_of_two_who_change_it_at_once_the_second_waits_and_is_told(office: Office, what: str) -> None:
    office.change("lea", role="admin")
    was = version(office, what)

    def second() -> None:
        with office.database.transaction() as session:
            edit(office, session, what, "Second", was, "lea")

    with ThreadPoolExecutor() as pool:
        with office.database.transaction() as session:
            edit(office, session, what, "First", was)
            waiting = pool.submit(second)
            assert wait([waiting], 0.3).done == set()
        with pytest.raises(Conflict):
            waiting.result()
