"""When keys were last used: noted in memory by each request, written in batches beside them.

A key's row is written at most once in ten seconds whatever its traffic, and never by a request. A process that is
killed loses what it noted in its last second, and of busy keys the last ten.
"""

import atexit
import json
import logging
import threading
from datetime import datetime, timedelta
from multiprocessing import util as multiprocessing_util

from sqlalchemy import bindparam, text, update

from portal.rules.credentials import KeyDigest
from portal.services.key_check import Caller
from portal.store.database import Database
from portal.store.models import ApiKey

_log = logging.getLogger(__name__)

FLUSH_EVERY = 1.0  # seconds
WRITE_EVERY = timedelta(seconds=10)
_REMEMBERED = 100_000  # keys whose last write a process remembers

Note = tuple[datetime, str | None, str]  # when, from which address, by which client

# One statement a flush: a batch sent row by row would trade the interpreter lock with requests once a row.
_SQLITE = """
UPDATE api_key SET last_used_at = used.at, last_used_address = used.address, last_used_client = used.client
FROM (SELECT value ->> 0 AS id, value ->> 1 AS at, value ->> 2 AS since, value ->> 3 AS address, value ->> 4 AS client
      FROM json_each(:batch)) AS used
WHERE api_key.id = used.id AND (api_key.last_used_at IS NULL OR api_key.last_used_at <= used.since)
RETURNING api_key.id
"""
_POSTGRESQL = """
UPDATE api_key SET last_used_at = used.at, last_used_address = used.address, last_used_client = used.client
FROM (SELECT (value ->> 0)::bigint AS id, (value ->> 1)::timestamp AT TIME ZONE 'UTC' AS at,
             (value ->> 2)::timestamp AT TIME ZONE 'UTC' AS since, value ->> 3 AS address, value ->> 4 AS client
      FROM json_array_elements(CAST(:batch AS json)) AS value) AS used
WHERE api_key.id = used.id AND (api_key.last_used_at IS NULL OR api_key.last_used_at <= used.since)
RETURNING api_key.id
"""


class Usage:
    """The notes of one process and the thread that writes them down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statement = text(_SQLITE if database.is_sqlite else _POSTGRESQL)
        self._lock = threading.Lock()
        self._noted: dict[int, Note] = {}
        self._held: dict[int, Note] = {}
        self._written: dict[int, datetime] = {}
        self._digests: dict[int, tuple[KeyDigest, str]] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._at_exit: multiprocessing_util.Finalize | None = None

    def note(self, caller: Caller, at: datetime, address: str | None, client: str) -> None:
        """Remember that a key was used; cheap, and never fails a request."""
        self._noted[caller.key_pk] = (at, address, client)
        if caller.new_digest:
            self._digests[caller.key_pk] = caller.new_digest
        if self._thread is None:
            self._start()

    def flush(self, *, everything: bool = True) -> None:
        """Write what was noted; without `everything`, no row written in the last ten seconds. Never raises."""
        with self._lock:
            noted = self._take(everything=everything)
            digests, self._digests = self._digests, {}
            if not noted and not digests:
                return
            try:
                written = self._write(noted, digests, timedelta() if everything else WRITE_EVERY)
            except Exception:
                _log.exception("usage could not be written; it is kept for the next try")
                self._noted = noted | self._noted
                self._digests = digests | self._digests
                return
        for key, note in noted.items():
            self._written[key] = note[0]
            if key in written or everything:
                self._held.pop(key, None)
            else:  # another process wrote this row moments ago
                self._held[key] = note

    def _take(self, *, everything: bool) -> dict[int, Note]:
        taken = self._held if everything else {}
        for key, note in list(self._noted.items()):
            written = self._written.get(key)
            if everything or written is None or note[0] - written >= WRITE_EVERY:
                taken[key] = self._noted.pop(key)
        if everything:
            self._held = {}
        if len(self._written) > _REMEMBERED:
            self._written.clear()
        return taken

    def _write(self, noted: dict[int, Note], digests: dict[int, tuple[KeyDigest, str]], gap: timedelta) -> set[int]:
        """Write a batch; a row that any process wrote less than `gap` before its note is left alone."""
        batch = [
            (key, _sortable(at), _sortable(at - gap), address, client) for key, (at, address, client) in noted.items()
        ]
        written: set[int] = set()
        with self._database.transaction() as session:
            if batch:
                written.update(session.scalars(self._statement, {"batch": json.dumps(batch)}))
            if digests:
                move = (
                    update(ApiKey)
                    .where(ApiKey.id == bindparam("pk"))
                    .values(digest=bindparam("d"), pepper_id=bindparam("p"))
                )
                rows = [{"pk": key, "d": digest, "p": pepper} for key, (digest, pepper) in digests.items()]
                session.connection().execute(move, rows)
        return written

    def _start(self) -> None:
        """Start writing with the first note, so that no thread exists before the server has forked or spawned."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
                self._thread.start()
                # Both, because servers differ: granian's workers run Finalize and no atexit, others the reverse.
                atexit.register(self.flush)
                self._at_exit = multiprocessing_util.Finalize(None, self.flush, exitpriority=100)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_EVERY):
            self.flush(everything=False)

    def close(self) -> None:
        """Write everything down and stop the thread."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            atexit.unregister(self.flush)
        if self._at_exit is not None:
            self._at_exit.cancel()
        self.flush()


def _sortable(moment: datetime) -> str:
    """Write a UTC moment as SQLite keeps it, so that the statement can compare the two as text."""
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
