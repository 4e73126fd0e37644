"""The demo is what the contract's section 6 says, and never touches a database in which somebody is."""

from datetime import UTC, datetime

import pytest
from jsonschema import Draft202012Validator
from sqlalchemy import func, select

from portal import demo
from portal.rules.credentials import verify_password
from portal.rules.errors import Conflict
from portal.store.database import Base, Database
from portal.store.models import Access, Account, ApiKey, App, Member, Record, Solution, Workspace


def test_its_workspaces_solutions_and_apps_are_those_of_the_contract(database: Database) -> None:
    with database.reading() as session:
        rows = session.execute(
            select(Workspace.slug, Solution.slug, Solution.name, App.slug)
            .join(Solution, Solution.workspace_id == Workspace.id)
            .join(App, App.solution_id == Solution.id)
        ).all()
    assert {tuple(row) for row in rows if row[0] == "acme"} == {
        ("acme", "sales", "Sales", "leads"),
        ("acme", "sales", "Sales", "accounts"),
        ("acme", "operations", "Operations", "tasks"),
        ("acme", "operations", "Operations", "reservations"),
    }
    assert {row[0] for row in rows} == {"acme", "globex"}


def test_its_people_are_those_of_the_contract_with_its_password(database: Database) -> None:
    with database.reading() as session:
        people = {
            email: (workspace, role)
            for email, workspace, role in session.execute(
                select(Account.email, Workspace.slug, Member.role).join(Member.account).join(Member.workspace)
            )
        }
        hashes = session.scalars(select(Account.password_hash)).all()
        access = {
            (name, solution): level
            for name, solution, level in session.execute(
                select(Member.name, Solution.slug, Access.level)
                .join(Access, Access.member_id == Member.id)
                .join(Solution, Solution.id == Access.solution_id)
            )
        }
    assert people == {
        "ana@acme.test": ("acme", "admin"),
        "lea@acme.test": ("acme", "member"),
        "max@acme.test": ("acme", "member"),
        "rio@acme.test": ("acme", "member"),
        "zoe@globex.test": ("globex", "admin"),
    }
    assert all(verify_password(each, "correct horse battery staple") for each in set(hashes))
    assert access == {
        ("Lea Okoro", "operations"): "manage",
        ("Lea Okoro", "sales"): "read",
        ("Max Brandt", "sales"): "full",
        ("Max Brandt", "operations"): "read",
        ("Rio Tanaka", "operations"): "read",
        ("Nightly sync", "operations"): "read",
    }


def test_its_one_api_member_is_managed_by_lea(database: Database) -> None:
    with database.reading() as session:
        (sync,) = session.scalars(select(Member).where(Member.account_id.is_(None))).all()
        lea = session.scalars(select(Member).where(Member.name == "Lea Okoro")).one()
    assert (sync.name, sync.manager_id, sync.created_by_id) == ("Nightly sync", lea.id, lea.id)


def test_every_app_has_live_and_sandbox_records_that_fit_its_schema(database: Database) -> None:
    with database.reading() as session:
        for app in session.scalars(select(App)).all():
            found = session.scalars(select(Record).where(Record.app_id == app.id)).all()
            assert {record.environment for record in found} == {"live", "test"}
            Draft202012Validator.check_schema(app.schema)
            validator = Draft202012Validator(app.schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
            assert all(validator.is_valid(record.fields) for record in found)
            assert not validator.is_valid({"no such field": 1})


def test_it_holds_no_key(database: Database) -> None:
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 0


def test_it_refuses_a_database_that_has_any_account_and_changes_nothing(empty_url: str) -> None:
    database = Database(empty_url)
    somebody = {"public_id": "acc_1", "email": "ida@initech.test", "name": "Ida Berg", "password_hash": "!"}
    with database.transaction() as session:
        session.add(Account(**somebody, created_at=datetime.now(UTC)))

    def sizes() -> dict[str, int]:
        with database.reading() as session:
            return {
                table.name: session.scalar(select(func.count()).select_from(table)) or 0
                for table in Base.metadata.sorted_tables
            }

    before = sizes()
    with pytest.raises(Conflict), database.transaction() as session:
        demo.seed(session, lambda step: None)
    assert sizes() == before
    database.close()
