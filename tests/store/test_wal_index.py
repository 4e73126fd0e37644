"""What SQLite keeps in memory tells of every commit, and looking at it takes nothing away from SQLite."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from portal.store.key_log import wal_index

ELSEWHERE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).executescript(sys.argv[2])"
DEAD_MAN_SWITCH = 128  # the byte of the index on which whoever has it open holds a lock


def opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    return connection


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a small database."""
    with closing(opened(tmp_path / "small.db")) as connection:
        connection.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, word TEXT)")
        yield connection


@pytest.fixture
def read(watching: sqlite3.Connection) -> Callable[[], bytes]:
    return wal_index.reader_of(watching)


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO thing (word) VALUES ('one')",
        "BEGIN IMMEDIATE; INSERT INTO thing (word) VALUES ('one'); DELETE FROM thing; COMMIT",
        "CREATE TABLE other (id)",
        "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO thing (word) VALUES ('one')",
        "VACUUM",
    ],
)
def test_a_commit_of_another_process_is_seen(
    change: str, watching: sqlite3.Connection, read: Callable[[], bytes], tmp_path: Path
) -> None:
    before, version = read(), watching.execute("PRAGMA data_version").fetchall()
    subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path / "small.db", change], check=True)
    assert read() != before
    assert watching.execute("PRAGMA data_version").fetchall() != version


def test_what_is_taken_back_changes_nothing(watching: sqlite3.Connection, read: Callable[[], bytes]) -> None:
    before = read()
    assert before
    watching.executescript("BEGIN IMMEDIATE; INSERT INTO thing (word) VALUES ('one'); ROLLBACK")
    assert read() == before
    watching.execute("SELECT * FROM thing").fetchall()
    assert read() == before


def test_sqlite_keeps_its_locks_whatever_is_read_and_closed(
    watching: sqlite3.Connection, read: Callable[[], bytes], tmp_path: Path
) -> None:
    """Without them another process would take the index for left behind, and begin a new one under our hands."""
    for _ in range(3):
        with closing(opened(tmp_path / "small.db")) as another:
            wal_index.reader_of(another)()
    try_it = f"""
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {DEAD_MAN_SWITCH})
"""
    tried = subprocess.run(
        [sys.executable, "-c", try_it, tmp_path / "small.db-shm"], capture_output=True, text=True, check=False
    )
    assert "BlockingIOError" in tried.stderr


def test_files_of_databases_that_are_gone_are_let_go(tmp_path: Path) -> None:
    for n in range(20):
        with closing(opened(tmp_path / f"{n}.db")) as connection:
            assert wal_index.reader_of(connection)()
    with closing(opened(tmp_path / "last.db")) as connection:
        assert wal_index.reader_of(connection)()
        files = [os.fstat(file).st_nlink for file, _ in wal_index._known.values()]
        assert files.count(0) == 0


@pytest.mark.parametrize("trouble", ["of another format", "not to be opened", "not to be mapped", "not there"])
def test_an_index_that_cannot_be_read_tells_nothing(
    trouble: str, watching: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "no")

    monkeypatch.setattr(wal_index, "_known", {})
    if trouble == "of another format":
        monkeypatch.setattr(wal_index, "_FORMAT", b"\0\0\0\1")
    elif trouble == "not to be opened":
        monkeypatch.setattr(os, "open", refuse)
    elif trouble == "not to be mapped":
        monkeypatch.setattr(wal_index._libc, "mmap", lambda *_: wal_index._NOT_MAPPED)
    else:
        (tmp_path / "small.db-shm").rename(tmp_path / "elsewhere")
    assert wal_index.reader_of(watching)() == b""
