"""The log of changes to what the check of a key reads, and how a process hears of them before its next answer."""

from collections.abc import Sequence
from typing import Any, Protocol

from portal.store.key_log.on_postgresql import PostgresqlLog
from portal.store.key_log.on_sqlite import SqliteLog
from portal.store.key_log.watched import TABLE, Change

__all__ = ["TABLE", "Change", "KeyLog", "log_of"]


class KeyLog(Protocol):
    """The log as one connection follows it; one thread at a time.

    Triggers write the log in the transaction of the change itself, whoever makes it.
    """

    is_fit: bool
    """Whether what is read from now on may be kept: whatever changes it will be among the news."""

    def news(self) -> Sequence[Change] | None:
        """Give what changed since the last call; None when all may have.

        Raises one of `database.TROUBLE` when the database cannot be asked.
        """

    def covers(self, key: int | None) -> bool:
        """Say whether the last news were complete up to that moment, so that what was kept may be used.

        Those of one key; without one, those of all keys, also of such as are not there.
        """

    def is_installed(self) -> bool:
        """Say whether every change is written down as this code wants it."""

    def install(self) -> None:
        """Make the log and the triggers that write it; does nothing where they are as this code wants them."""

    def remove(self) -> None:
        """Take log and triggers out, before tables change or where they are not those of this code."""


def log_of(connection: Any, *, is_sqlite: bool) -> KeyLog:
    """Give the log over a connection of a driver that is in autocommit and, while it is followed, never writes."""
    return SqliteLog(connection) if is_sqlite else PostgresqlLog(connection)
