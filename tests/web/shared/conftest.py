"""The tests in this folder share a portal and its database with those of their module: they leave it as it was."""

import pytest

from portal.store.database import Database
from tests.cast import Cast


@pytest.fixture(scope="module")
def cast(shared_cast: Cast) -> Cast:
    """Everybody, at the portal of the module."""
    return shared_cast


@pytest.fixture(scope="module")
def database(cast: Cast) -> Database:
    """What that portal stores."""
    found: Database = cast.app.extensions["portal"].database
    return found
