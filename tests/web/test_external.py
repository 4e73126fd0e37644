"""External solutions: apps that are resources for scopes, whose data lives in somebody's own product."""

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import delete, select

from portal.store.database import Database
from portal.store.models import App, AuditEvent, Record, Solution
from tests.cast import Cast
from tests.services.office import at_once
from tests.web.looking import data, error, kept


@pytest.fixture
def billing(cast: Cast) -> Cast:
    """Acme with an external solution, Billing, and its app, invoices."""
    answers = {"slug": "billing", "name": "Billing", "is_external": "yes"}
    assert cast.ana.post("/w/acme/solutions/new", answers).status_code == 303
    app = {"slug": "invoices", "name": "Invoices"}
    assert cast.ana.post("/w/acme/solutions/billing/apps/new", app).status_code == 303
    return cast


def solution(database: Database, slug: str) -> Solution:
    with database.reading() as session:
        return session.scalars(select(Solution).where(Solution.slug == slug)).one()


def test_its_scopes_work_and_the_api_keeps_no_records_for_it(billing: Cast) -> None:
    key = billing.ana.generate(["invoices:read", "invoices:write"])
    assert data(billing.call("GET", "/me", key))["key"]["effectiveScopes"] == ["invoices:read", "invoices:write"]
    (found,) = data(billing.call("GET", "/solutions", key))
    assert (found["slug"], found["external"], found["apps"][0]["slug"]) == ("billing", True, "invoices")
    path = "/apps/invoices/records"
    for method, end in (("GET", ""), ("POST", ""), ("GET", "/rec_1"), ("PATCH", "/rec_1"), ("DELETE", "/rec_1")):
        body = {"json": {"fields": {"a": 1}}} if method in ("POST", "PATCH") else {}
        reply = billing.call(method, path + end, key, **body)
        assert error(reply, 404)["code"] == "not_found"
    reads = billing.ana.generate(["tasks:read"], name="Tasks")
    assert error(billing.call("GET", path, reads), 403)["code"] == "missing_scope"
    assert error(billing.call("GET", path), 401)["code"] == "missing_key"


def test_the_reveal_names_a_call_that_works(billing: Cast) -> None:
    page = billing.ana.post("keys", billing.ana.form(scopes=["invoices:read"])).text
    assert "/api/v1/me" in page
    assert "/api/v1/apps/invoices" not in page


def test_home_says_where_the_data_lives(billing: Cast) -> None:
    page = billing.ana.get("/w/acme?app=invoices").text
    assert "lives in another product" in page
    assert "Fill or reset sandbox" not in page
    assert billing.ana.get("/w/acme/apps/invoices/sandbox").status_code == 404
    assert "External" in billing.ana.get("/w/acme/workspace").text
    assert "lives in another product" not in billing.ana.get("/w/acme?app=tasks").text


def test_access_is_given_as_elsewhere(billing: Cast) -> None:
    answers = {"name": "Biller", "access-billing": "full"}
    made = billing.ana.post("/w/acme/api-members/new", answers).headers["Location"]
    key = billing.ana.generate(["invoices:write"], owner=made.rpartition("/")[2])
    assert data(billing.call("GET", "/me", key))["member"]["name"] == "Biller"


@pytest.mark.both
def test_a_solution_that_holds_records_does_not_become_external(cast: Cast, database: Database) -> None:
    before = kept(database)
    reply = cast.ana.post("/w/acme/solutions/sales/edit", {"name": "Sales", "is_external": "yes"})
    assert reply.status_code == 422
    assert "holds 41 records" in reply.text
    assert kept(database) == before
    with database.transaction() as session:
        apps = select(App.id).where(App.solution_id == solution(database, "sales").id)
        session.execute(delete(Record).where(Record.app_id.in_(apps)))
    key = cast.max.generate(["leads:read"])
    assert data(cast.call("GET", "/apps/leads/records", key)) == []
    assert cast.ana.post("/w/acme/solutions/sales/edit", {"name": "Sales", "is_external": "yes"}).status_code == 303
    assert error(cast.call("GET", "/apps/leads/records", key), 404)
    assert cast.ana.post("/w/acme/solutions/sales/edit", {"name": "Sales"}).status_code == 303
    assert data(cast.call("GET", "/apps/leads/records", key)) == []
    with database.reading() as session:
        told = session.scalars(select(AuditEvent).where(AuditEvent.action == "solution_changed")).all()
    assert [event.details["after"]["is_external"] for event in told] == [True, False]


@pytest.mark.both
def test_a_record_and_the_change_to_external_do_not_pass_each_other(
    cast: Cast, database: Database, launch: Callable[[], Flask]
) -> None:
    key = cast.lea.generate(["tasks:write"])
    other = Cast(launch())  # as another process: within one, requests take turns
    assert other.ana
    for _ in range(5):
        with database.transaction() as session:
            session.execute(delete(Record))
        replies = at_once(
            {
                "record": lambda: cast.call("POST", "/apps/tasks/records", key, json={"fields": {"title": "A"}}),
                "change": lambda: other.ana.post(
                    "/w/acme/solutions/operations/edit", {"name": "Operations", "is_external": "yes"}
                ),
            }
        )
        statuses = tuple(getattr(replies[each], "status_code", replies[each]) for each in ("record", "change"))
        assert statuses in ((201, 422), (404, 303))
        other.ana.post("/w/acme/solutions/operations/edit", {"name": "Operations"})


@pytest.mark.both
def test_its_apps_need_no_schema_and_others_do(billing: Cast, database: Database) -> None:
    page = billing.ana.get("/w/acme/solutions/billing/apps/new").text
    assert 'name="schema"' not in page
    reply = billing.ana.post("/w/acme/solutions/sales/apps/new", {"slug": "quotes", "name": "Quotes"})
    assert reply.status_code == 422
    edited = billing.ana.post("/w/acme/apps/invoices/edit", {"name": "Bills"})
    assert edited.status_code == 303
    with database.reading() as session:
        app = session.scalars(select(App).where(App.slug == "invoices")).one()
    assert (app.name, app.schema) == ("Bills", {"type": "object"})
