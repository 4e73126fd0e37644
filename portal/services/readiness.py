"""Whether this process can do its work: its database answers, and has the tables that this code knows.

A database that hangs must not hang the one who asks: a thread of its own waits for it, one question at a time.
"""

import logging
import os
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from typing import Any

from portal.store.database import TROUBLE, Database, is_silent
from portal.store.migrate import trouble_with

_log = logging.getLogger(__name__)
_PATIENCE = 0.9  # seconds
_SILENT = "The database does not answer."


class Readiness:
    """The question, on a connection that is kept for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._asked: Future[str] | None = None
        self._connection: Any = None
        self._pid = 0  # of the process that opened it: no connection may cross a fork
        self._said = ""

    def trouble(self) -> str:
        """Say in a sentence what is amiss, within a second; '' when all is well."""
        with self._lock:
            asked = self._asked
            if asked is None or asked.done():
                asked = self._asked = Future()
                threading.Thread(target=self._answer, args=(asked,), name="readiness", daemon=True).start()
        try:
            says = asked.result(_PATIENCE)
        except TookTooLong:
            says = _SILENT
        if says != self._said:
            self._said = says
            _log.warning("not ready: %s", says) if says else _log.info("ready again")
        return says

    def close(self) -> None:
        """Close the connection."""
        asked = self._asked
        if asked is None or asked.done():
            self._hang_up()

    def _answer(self, asked: "Future[str]") -> None:
        try:
            asked.set_result(self._ask())
        except TROUBLE as trouble:
            asked.set_result(_SILENT if is_silent(trouble) else "The database cannot be asked.")
        except Exception as error:
            asked.set_exception(error)

    def _ask(self) -> str:
        if self._connection is not None and self._pid == os.getpid():
            try:
                return self._compare()
            except TROUBLE:
                self._hang_up()
        self._connection, self._pid = self._database.driver_connection(), os.getpid()
        return self._compare()

    def _compare(self) -> str:
        has_any = (
            "SELECT count(*) FROM sqlite_schema WHERE name = 'alembic_version'"
            if self._database.is_sqlite
            else "SELECT count(*) FROM pg_class WHERE oid = to_regclass('alembic_version')"
        )
        found = (
            self._connection.execute(has_any).fetchall()[0][0]
            and self._connection.execute("SELECT version_num FROM alembic_version").fetchall()
        )
        return trouble_with(found[0][0] if found else None)

    def _hang_up(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None
