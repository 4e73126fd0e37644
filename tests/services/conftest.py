"""The office: the services with the demo's people behind them."""

from collections.abc import Iterator

import pytest

from portal.store.database import Database
from tests.services.office import Office


@pytest.fixture
def office(database: Database) -> Iterator[Office]:
    """The services on a database that this test alone has."""
    office = Office(database)
    yield office
    office.close()
