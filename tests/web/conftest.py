"""Further portals for the tests of pages and API: shared by a module, or with settings of their own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from jinja2 import FileSystemBytecodeCache

from app import create_app
from tests.cast import Cast
from tests.databases import Template


@pytest.fixture
def launch(
    database_url: str, tmp_path: Path, compiled_templates: FileSystemBytecodeCache
) -> Iterator[Callable[..., Flask]]:
    """Start one more portal; its secrets are those of `app`, so keys and cookies of the one are good at the other."""
    with ExitStack() as until_the_end:

        def start(**settings: str) -> Flask:
            app = create_app({"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path), **settings})
            app.jinja_env.bytecode_cache = compiled_templates
            until_the_end.callback(app.extensions["portal"].close)
            return app

        yield start


@pytest.fixture(scope="module")
def shared_cast(
    template: Template, tmp_path_factory: pytest.TempPathFactory, compiled_templates: FileSystemBytecodeCache
) -> Iterator[Cast]:
    """Everybody, at a portal that all tests of a module use: for those that leave it as it was, or add their own."""
    with template.copy() as url:
        app = create_app({"PORTAL_DATABASE_URL": url, "PORTAL_INSTANCE": str(tmp_path_factory.mktemp("instance"))})
        app.jinja_env.bytecode_cache = compiled_templates
        yield Cast(app)
        app.extensions["portal"].close()
