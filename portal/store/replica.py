"""A replica of PostgreSQL, for pages that read much and change nothing. Never for what decides about a key."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from portal.store.database import TROUBLE, Database, Session

_log = logging.getLogger(__name__)
_LOOKS = 5  # at how far a replica has come
_BETWEEN = 0.01  # seconds
_LEFT_ALONE = 5.0  # seconds for which one that is away is not asked again
# With `synchronous_commit` on, the usual, every commit that anybody can see has been flushed.
_WRITTEN = text("SELECT pg_current_wal_flush_lsn()::text")
_REPLAYED = text("SELECT pg_last_wal_replay_lsn() >= CAST(:written AS pg_lsn)")


class Replica:
    """A database that follows another one, and that other one for whenever it is not as far."""

    def __init__(self, url: str, primary: Database) -> None:
        self._database = Database(url)
        self._primary = primary
        self._not_before = 0.0  # on the monotonic clock
        self._said = ""

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session that only reads, and sees at least what was committed until now."""
        database = self._database if self._has_all() else self._primary
        with database.reading() as session:
            yield session

    def close(self) -> None:
        """Give its connections back."""
        self._database.close()

    def _has_all(self) -> bool:
        """Say whether the replica has come to where the log of writes ends now, within the time that a page can wait.

        Raises one of `database.TROUBLE` when the database itself is away: then nothing is known to be new.
        """
        if time.monotonic() < self._not_before:
            return False
        with self._primary.reading() as session:
            written = session.scalar(_WRITTEN)
        try:
            has_all = self._came_to(written)
        except TROUBLE:
            self._tell("it cannot be asked")
            return False
        self._tell("it does not follow another one" if has_all is None else "")
        return bool(has_all)

    def _came_to(self, written: str) -> bool | None:
        with self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for look in range(_LOOKS):
                if look:
                    time.sleep(_BETWEEN)
                has_all: bool | None = connection.scalar(_REPLAYED, {"written": written})
                if has_all is not False:
                    return has_all
        return False

    def _tell(self, says: str) -> None:
        if says:
            self._not_before = time.monotonic() + _LEFT_ALONE
        if says != self._said:
            self._said = says
            _log.warning("pages do without the replica: %s", says) if says else _log.info("pages use the replica again")
