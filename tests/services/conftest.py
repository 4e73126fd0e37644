"""The office: the services with the demo's people behind them."""

from collections.abc import Iterator

import pytest

from portal.store.database import Database
from tests.databases import Template
from tests.services.office import Office


@pytest.fixture
def office(database: Database) -> Iterator[Office]:
    """The services on a database that this test alone has."""
    office = Office(database)
    office.begin()
    yield office
    office.close()


@pytest.fixture(scope="module")
def office_of_module(template: Template) -> Iterator[Office]:
    """The office behind `shared_office`."""
    with template.copy() as url:
        database = Database(url)
        office = Office(database)
        yield office
        office.close()
        database.close()


@pytest.fixture
def shared_office(office_of_module: Office) -> Office:
    """The services on a database that a module's tests share: for refusals, which leave it as it was.

    SQLAlchemy compiles every statement anew for every database, which takes longer than most tests.
    """
    office_of_module.begin()
    return office_of_module
