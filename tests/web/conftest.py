"""Further portals for the tests of pages and API: shared by a module, or with settings of their own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from flask import Flask
from jinja2 import BytecodeCache

from app import create_app
from portal.services import rate_limit
from tests.cast import Cast
from tests.conftest import Place, quick_passwords


@pytest.fixture(scope="module", autouse=True)
def passwords() -> Iterator[None]:
    """Sign people in without the work that guessing must cost."""
    with quick_passwords():
        yield


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests that call fast say what they are about; the limit of a second has tests of its own."""
    monkeypatch.setattr(rate_limit, "PER_SECOND", 1_000_000)


@pytest.fixture
def launch(place: Place, database_url: str, compiled_templates: BytecodeCache) -> Iterator[Callable[..., Flask]]:
    """Start one more portal; its secrets are those of `app`, so keys and cookies of the one are good at the other."""
    with ExitStack() as until_the_end:

        def start(**settings: str) -> Flask:
            app = create_app({"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(place.instance), **settings})
            app.jinja_env.bytecode_cache = compiled_templates
            until_the_end.callback(app.extensions["portal"].close)
            return app

        yield start


@pytest.fixture(scope="module")
def shared_cast(shared_place: Place) -> Iterator[Cast]:
    """Everybody, at a portal that all tests of a module use: for those that leave it as it was, or add their own."""
    with shared_place.filled(), shared_place.portal() as app:
        yield Cast(app)
