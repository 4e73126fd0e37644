"""The office: the services with the demo's people behind them."""

from collections.abc import Iterator

import pytest

from portal.store.database import Database
from tests.conftest import Place, quick_passwords
from tests.services.office import Office


@pytest.fixture(scope="module", autouse=True)
def passwords() -> Iterator[None]:
    """Sign people in without the work that guessing must cost."""
    with quick_passwords():
        yield


@pytest.fixture
def office(database: Database) -> Iterator[Office]:
    """The services on a database that this test alone has."""
    office = Office(database)
    office.begin()
    yield office
    office.close()


@pytest.fixture(scope="module")
def office_of_module(shared_place: Place) -> Iterator[Office]:
    """The office behind `shared_office`."""
    with shared_place.filled():
        office = Office(shared_place.database)
        yield office
        office.close()
        shared_place.database.close()


@pytest.fixture
def shared_office(office_of_module: Office) -> Office:
    """The services on a database that a module's tests share: for refusals, which leave it as it was."""
    office_of_module.begin()
    return office_of_module
