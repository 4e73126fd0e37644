"""How Alembic runs our migrations: one transaction each; on SQLite without foreign keys, as it rebuilds tables."""

import logging
import time
from contextlib import closing
from itertools import count
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event

from portal.store import models
from portal.store.database import Base, Database, Moment
from portal.store.key_log import TABLE, log_of

_log = logging.getLogger("portal.store.migrate")
assert models  # noqa: S101 - imported for its tables

_MY_TURN = "SELECT pg_try_advisory_lock(hashtext('portal.migrate'))"  # until the connection is closed


def _render(kind: str, item: Any, autogenerate: AutogenContext) -> str | Literal[False]:
    if kind == "type" and isinstance(item, Moment):
        autogenerate.imports.add("from portal.store.database import Moment")
        return "Moment()"
    return False


def _is_at(connection: Connection, revision: Any) -> bool:
    is_at: bool = MigrationContext.configure(connection).get_current_revision() == revision
    connection.rollback()
    return is_at


def _goes_elsewhere(connection: Connection) -> bool:
    try:
        return not _is_at(connection, context.get_revision_argument())
    except KeyError:
        return False  # it is only compared with the models


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        render_item=_render,
        compare_type=True,
        include_name=lambda name, kind, _: not (kind == "table" and name is not None and name.startswith(TABLE)),
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


database = Database(context.config.attributes["url"].render_as_string(hide_password=False))
with closing(database), database.engine.connect() as connection:
    if database.is_sqlite:
        raw = connection.connection.dbapi_connection
        assert raw is not None  # noqa: S101
        # SQLite changes a table by dropping and remaking it, which would cascade to its children. The pragma does
        # nothing inside a transaction, so it goes to the driver before one begins.
        raw.execute("PRAGMA foreign_keys=OFF")
        _run(connection)
        connection.rollback()  # where there was nothing to do, reading the version began a transaction
        if raw.execute("PRAGMA foreign_key_check").fetchall():
            raise RuntimeError("a migration left rows that point nowhere")
        # A table that was remade has lost its triggers, and an older step has not the tables that they stand on.
        log = log_of(raw, is_sqlite=True)
        (log.install if _is_at(connection, context.get_head_revision()) else log.remove)()
        connection.invalidate()  # a connection without foreign keys must not be used again
    else:
        with closing(database.driver_connection()) as driver:
            for tries in count():
                if driver.execute(_MY_TURN).fetchone() == (True,):
                    break
                if tries == 20:  # two seconds: hosts that start together are done by then
                    _log.warning("another process migrates this database; waiting until it has ended")
                time.sleep(0.1)
            event.listen(connection, "begin", database.take_time)
            log = log_of(driver, is_sqlite=False)
            if _goes_elsewhere(connection):
                log.remove()  # columns that a trigger names cannot be dropped
            _run(connection)
            if _is_at(connection, context.get_head_revision()):
                log.install()
