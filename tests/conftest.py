"""Databases and servers for all tests. One run uses one kind of database; `make test` runs once with each."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
from flask import Flask
from jinja2 import FileSystemBytecodeCache

from app import create_app
from portal.store.database import Database
from tests.cast import Cast
from tests.databases import KINDS, Template, migrated_template
from tests.servers import Server, serving

TEMPLATE = pytest.StashKey[Template]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", choices=KINDS, default="sqlite", help="kind of database for this run")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the controller's template to an xdist worker, so that all workers share one server and one migration."""
    node.workerinput["template_url"] = template_of(node.config).url


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run on SQLite alone what no database can change: the tests that ask for none, and those that are marked so."""
    if config.getoption("--database") == "sqlite":
        return
    once = [it for it in items if it.get_closest_marker("once") or "template" not in getattr(it, "fixturenames", ())]
    config.hook.pytest_deselected(items=once)
    items[:] = [item for item in items if item not in set(once)]


def template_of(config: pytest.Config) -> Template:
    """Return the run's template database; in the process that leads the run, make it at the first call."""
    if hasattr(config, "workerinput"):
        return Template(config.workerinput["template_url"])
    if TEMPLATE not in config.stash:
        until_the_end = ExitStack()
        config.add_cleanup(until_the_end.close)
        config.stash[TEMPLATE] = until_the_end.enter_context(migrated_template(config.getoption("--database")))
    return config.stash[TEMPLATE]


@pytest.fixture(scope="session")
def template(pytestconfig: pytest.Config) -> Template:
    """The database with the demo; for fixtures that want a copy for longer than one test."""
    return template_of(pytestconfig)


@pytest.fixture
def database_url(template: Template) -> Iterator[str]:
    """A database with the demo's people, apps and records that this test alone has."""
    with template.copy() as url:
        yield url


@pytest.fixture
def blank_url(template: Template) -> Iterator[str]:
    """A database without a table."""
    with template.blank() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The test's database, for services that are called directly and for looking at what was stored."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def compiled_templates(tmp_path_factory: pytest.TempPathFactory) -> FileSystemBytecodeCache:
    """Templates compiled once a run: each portal would compile them anew, which takes longer than most tests."""
    return FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))


@pytest.fixture
def app(database_url: str, tmp_path: Path, compiled_templates: FileSystemBytecodeCache) -> Iterator[Flask]:
    """The portal on the test's database, asked in process. Its secrets lie in `tmp_path`."""
    app = create_app({"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path)})
    app.jinja_env.bytecode_cache = compiled_templates
    yield app
    app.extensions["portal"].close()


@pytest.fixture
def cast(app: Flask) -> Cast:
    """The demo's people, each with a browser of their own, and integrations with keys."""
    return Cast(app)


@pytest.fixture(scope="module")
def live_server(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped server on a database of its own, shared by the tests of one module."""
    with template.copy() as url, serving(url, tmp_path_factory.mktemp("instance")) as server:
        yield server


def lacking(what: str) -> NoReturn:
    """Skip a test whose outside part this machine lacks; with CI=true fail instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (CI=true: a missing part is a failure)")
    pytest.skip(what)
