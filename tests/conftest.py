"""Databases and servers for all tests. One run uses one kind of database; `make test` runs once with each."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
from argon2 import PasswordHasher
from flask import Flask
from jinja2 import BytecodeCache, FileSystemBytecodeCache
from psycopg import sql
from sqlalchemy import URL, event, make_url

from app import create_app, stand_before
from portal.rules import credentials
from portal.services.key_check import KeyCheck
from portal.services.rate_limit import RateLimit
from portal.services.readiness import Readiness
from portal.services.usage import Usage
from portal.store.database import Database
from portal.web.parts import Portal
from tests.cast import Cast
from tests.databases import KINDS, Template, migrated_template, replica
from tests.servers import Server, serving

WEB = Path(__file__).parent / "web"
TEMPLATE = pytest.StashKey[Template]()
LONGEST = ("test_accessibility.py", "test_key_screens.py", "test_walk.py", "test_access_table.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", choices=KINDS, default="sqlite", help="kind of database for this run")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the controller's template to an xdist worker, so that all workers share one server and one migration."""
    node.workerinput["template_url"] = template_of(node.config).url


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run on SQLite alone what no database can change, the tests that ask for none and those that are marked so; on
    PostgreSQL alone what is marked as a server's own, or asks for a follower.

    Tests of pages and API (tests/web) are about words, forms and who may: of them PostgreSQL runs those marked `both`.
    These are where two requests meet, where something odd could reach a column, the access table, which opens every
    page, and whatever asks or is refused a statement that no test of services asks. A new test gets the mark when its
    view makes a statement of its own.
    """
    is_sqlite = config.getoption("--database") == "sqlite"

    def is_elsewhere(item: pytest.Item) -> bool:
        asks_for = getattr(item, "fixturenames", ())
        if "follower" in asks_for or item.get_closest_marker("server"):
            return bool(is_sqlite)
        if is_sqlite:
            return False
        if item.path.is_relative_to(WEB) and item.get_closest_marker("both") is None:
            return True
        return item.get_closest_marker("once") is not None or "template" not in asks_for

    elsewhere = {item for item in items if is_elsewhere(item)}
    config.hook.pytest_deselected(items=list(elsewhere))
    items[:] = [item for item in items if item not in elsewhere]
    # First the files that take longest, so that no process is left with one when the others are done.
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path.parent.name != "browser"))


def template_of(config: pytest.Config) -> Template:
    """Return the run's template database; in the process that leads the run, make it at the first call."""
    if hasattr(config, "workerinput"):
        return Template(config.workerinput["template_url"])
    if TEMPLATE not in config.stash:
        until_the_end = ExitStack()
        config.add_cleanup(until_the_end.close)
        with quick_passwords():
            config.stash[TEMPLATE] = until_the_end.enter_context(migrated_template(config.getoption("--database")))
    return config.stash[TEMPLATE]


@contextmanager
def quick_passwords() -> Iterator[None]:
    """Hash passwords with a hundredth of the work, for tests about something else; tests/rules has the real work."""
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credentials, "_hasher", hasher)
        patch.setattr(credentials, "_NOBODY", hasher.hash("nobody"))
        yield


@pytest.fixture(scope="session")
def template(pytestconfig: pytest.Config) -> Template:
    """The database with the demo; for fixtures that want a copy for longer than one test."""
    return template_of(pytestconfig)


class Place:
    """A portal and a database whose connections lead to another copy of the demo for every test.

    For every engine SQLAlchemy compiles its statements anew, and for every portal Werkzeug its addresses and Jinja its
    templates; either takes longer than most tests.
    """

    def __init__(self, template: Template, instance: Path, templates: BytecodeCache, **settings: str) -> None:
        """Have a place whose portal gets further `settings`, as they stand in the environment."""
        self._template, self.instance, self._templates, self._settings = template, instance, templates, settings
        self._url = ""
        self._led: list[Database] = []

    @contextmanager
    def filled(self) -> Iterator[str]:
        """Make a copy of the demo, to which new connections lead; give its address."""
        with self._template.copy() as url:
            self._url = url
            for database in self._led:
                database.url = make_url(url)
            yield url

    @cached_property
    def database(self) -> Database:
        """The database, without the portal."""
        return self._lead(Database(self._url))

    @contextmanager
    def portal(self) -> Iterator[Flask]:
        """Let the portal be one that has just started: nothing in memory, no connection, no mail sent."""
        was: Portal = self.app.extensions["portal"]
        counts = self.instance / "rates"
        counts.unlink(missing_ok=True)
        parts = (
            KeyCheck(was.database, was.settings.keyring),
            Usage(was.database),
            RateLimit(counts),
            Readiness(was.database),
        )
        self.app.extensions["portal"] = Portal(was.settings, was.database, *parts)
        stand_before(self.app, was.settings)
        yield self.app
        self.app.extensions["portal"].close()
        shutil.rmtree(was.settings.mail_folder, ignore_errors=True)

    @cached_property
    def app(self) -> Flask:
        """What takes requests; to be asked for when the place has a database."""
        ours = {"PORTAL_DATABASE_URL": self._url, "PORTAL_INSTANCE": str(self.instance)}
        app = create_app(ours | self._settings)
        app.jinja_env.bytecode_cache = self._templates
        self._lead(app.extensions["portal"].database)
        return app

    def _lead(self, database: Database) -> Database:
        self._led.append(database)

        @event.listens_for(database.engine, "do_connect")
        def lead(dialect: object, record: object, positional: list[Any], named: dict[str, Any]) -> None:
            if database.is_sqlite:
                positional[0] = database.url.database
            else:
                named["dbname"] = database.url.database

        return database


@pytest.fixture(scope="session")
def place(template: Template, tmp_path_factory: pytest.TempPathFactory, compiled_templates: BytecodeCache) -> Place:
    """Where the tests are that have a database of their own, one after another."""
    return Place(template, tmp_path_factory.mktemp("instance"), compiled_templates)


@pytest.fixture(scope="session")
def shared_place(
    template: Template, tmp_path_factory: pytest.TempPathFactory, compiled_templates: BytecodeCache
) -> Place:
    """Where the tests are that share a database with those of their module."""
    return Place(template, tmp_path_factory.mktemp("instance"), compiled_templates)


@pytest.fixture
def database_url(place: Place) -> Iterator[str]:
    """A database with the demo's people, apps and records that this test alone has."""
    with place.filled() as url:
        yield url


@pytest.fixture(scope="module")
def follower(template: Template) -> Iterator[URL]:
    """A server that follows the run's own."""
    with replica(template.url) as url:
        yield make_url(url)


@pytest.fixture
def replica_url(follower: URL, database_url: str) -> str:
    """The test's database, as the follower has it."""
    name = make_url(database_url).database
    admin_url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin_url, autocommit=True) as admin:  # as on any server but the tests' own
        admin.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = on").format(sql.Identifier(name or "")))
    return follower.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def blank_url(template: Template) -> Iterator[str]:
    """A database without a table."""
    with template.blank() as url:
        yield url


@pytest.fixture
def empty_url(template: Template) -> Iterator[str]:
    """A migrated database in which nobody is yet."""
    with template.empty() as url:
        yield url


@pytest.fixture
def database(place: Place, database_url: str) -> Iterator[Database]:
    """The test's database, for services that are called directly and for looking at what was stored."""
    yield place.database
    place.database.close()


@pytest.fixture(scope="session")
def compiled_templates(tmp_path_factory: pytest.TempPathFactory) -> BytecodeCache:
    """Templates compiled once a worker: each portal would compile them anew, which takes longer than most tests."""
    return FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))


@pytest.fixture
def app(place: Place, database_url: str) -> Iterator[Flask]:
    """The portal on the test's database, asked in process."""
    with place.portal() as app:
        yield app


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
