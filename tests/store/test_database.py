"""The engine: pragmas, writers that lock at their start, aware moments, and which databases are taken (T-63)."""

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from portal.logs import redact
from portal.store.database import Database, Moment, checked_url
from portal.store.models import Access, Account, OutgoingMail, Workspace

NOON = datetime(2025, 11, 12, 12, 0, tzinfo=UTC)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A SQLite database without tables, whatever kind the run is on."""
    database = Database(f"sqlite:///{tmp_path}/portal.db")
    yield database
    database.close()


@contextmanager
def connected(database: Database, way: str) -> Iterator[Any]:
    """Give a connection as pages get it, or as the hot path gets it."""
    if way == "hot path":
        with closing(database.driver_connection()) as connection:
            yield connection
    else:
        with database.reading() as session:
            yield session.connection().connection.driver_connection


@pytest.mark.parametrize("way", ["pages", "hot path"])
def test_sqlite_is_set_up_for_several_processes(sqlite: Database, way: str) -> None:
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 5000, "synchronous": 1}  # 1: NORMAL
    with connected(sqlite, way) as connection:
        assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted} == wanted


@pytest.mark.parametrize("way", ["pages", "hot path"])
def test_nobody_waits_for_a_lock_for_ever(database: Database, way: str) -> None:
    asked = "PRAGMA busy_timeout" if database.is_sqlite else "SELECT setting FROM pg_settings WHERE name='lock_timeout'"
    with connected(database, way) as connection:
        assert 5_000 <= int(connection.execute(asked).fetchone()[0]) <= 10_000


def test_a_row_that_points_nowhere_is_refused(database: Database) -> None:
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.execute(insert(Access).values(member_id=999_999, solution_id=999_999, level="read"))


def test_a_new_sqlite_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        database = Database(f"sqlite:///{tmp_path}/new.db")
        with database.transaction() as session:
            session.execute(text("CREATE TABLE t (n INTEGER)"))
            files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        database.close()
    finally:
        os.umask(before)
    assert "new.db" in files
    assert set(files.values()) == {0o600}  # the write-ahead log beside it as well


# --- Transactions ---------------------------------------------------------------------------------------------------


def test_what_a_transaction_did_is_there_after_it_and_gone_after_an_error(database: Database) -> None:
    def rename(to: str) -> None:
        session.execute(update(Workspace).where(Workspace.slug == "acme").values(name=to))

    with database.transaction() as session:
        rename("Acme Inc.")
    with pytest.raises(RuntimeError), database.transaction() as session:
        rename("Never")
        raise RuntimeError
    with database.reading() as session:
        assert session.scalar(select(Workspace.name).where(Workspace.slug == "acme")) == "Acme Inc."


def test_a_session_that_reads_writes_nothing(database: Database) -> None:
    with database.reading() as session:
        session.execute(update(Workspace).values(name="Never"))
    with database.reading() as session:
        assert "Never" not in session.scalars(select(Workspace.name)).all()


def test_a_writer_holds_a_sqlite_database_from_its_start(sqlite: Database) -> None:
    other = sqlite3.connect(str(sqlite.url.database), timeout=0, isolation_level=None)
    with sqlite.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    with sqlite.reading() as session:
        session.execute(text("SELECT * FROM sqlite_schema")).all()
        other.execute("BEGIN IMMEDIATE")  # a reader holds nobody up
    other.close()


@pytest.mark.timeout(60)
def test_a_writer_in_a_hurry_gives_up_soon_and_leaves_the_others_their_patience(sqlite: Database) -> None:
    with sqlite.transaction():
        pass
    other = sqlite3.connect(str(sqlite.url.database), timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(20):  # with the usual five seconds each this would outlast the test
        with pytest.raises(OperationalError, match="locked"), sqlite.transaction(patience=10):
            pass
    other.close()
    with sqlite.transaction(patience=10) as session:
        assert session.scalar(text("PRAGMA busy_timeout")) == 5_000


def test_readers_see_the_last_commit_while_somebody_writes(database: Database) -> None:
    with database.transaction() as writing:
        writing.execute(update(Workspace).where(Workspace.slug == "acme").values(name="Acme Inc."))
        with database.reading() as session:
            assert session.scalar(select(Workspace.name).where(Workspace.slug == "acme")) == "Acme"


def test_threads_that_read_and_then_write_are_never_told_that_the_database_is_locked(database_url: str) -> None:
    threads, rounds = 3, 16  # few enough that on a slow machine too nobody waits five seconds: SQLite keeps no queue
    start = threading.Barrier(threads)

    def deposit(name: str) -> None:
        own = Database(database_url)  # as another process would have it
        start.wait()
        for n in range(rounds):
            with own.transaction() as session:
                count = session.scalar(select(func.count()).select_from(Account)) or 0
                session.execute(
                    insert(Account).values(
                        public_id=f"acc_{name}{n}",
                        email=f"{name}{n}@acme.test",
                        name=str(count),
                        password_hash="!",
                        created_at=NOON,
                    )
                )
        own.close()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(deposit, [f"t{n}x" for n in range(threads)]))
    database = Database(database_url)
    with database.reading() as session:
        added = session.scalar(select(func.count()).where(Account.password_hash == "!"))
    database.close()
    assert added == threads * rounds


# --- Moments --------------------------------------------------------------------------------------------------------

ZONES = (UTC, timezone(timedelta(hours=-9.5)), ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu"))
KEPT = Table("kept", MetaData(), Column("id", Integer), Column("at", Moment), prefixes=["TEMPORARY"])

moments = st.datetimes(
    datetime(1990, 1, 1),  # noqa: DTZ001 - Hypothesis adds the zone
    datetime(2120, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from(ZONES),
)


@given(st.lists(moments, min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_moments_come_back_the_same_in_utc_and_in_order(database: Database, some: list[datetime]) -> None:
    with database.engine.connect() as connection:
        KEPT.create(connection)
        connection.execute(insert(KEPT), [{"id": n, "at": moment} for n, moment in enumerate(some)])
        found = connection.scalars(select(KEPT.c.at).order_by(KEPT.c.at)).all()
        connection.rollback()
    # In UTC: Python calls no two moments of different zones equal while clocks are turned back (PEP 495).
    assert found == sorted(moment.astimezone(UTC) for moment in some)
    assert all(at.utcoffset() == timedelta() for at in found)


def test_a_moment_without_a_zone_is_refused(database: Database) -> None:
    naive = NOON.replace(tzinfo=None)
    with pytest.raises(StatementError, match="time zone"), database.transaction() as session:
        session.execute(update(Account).values(created_at=naive))


def test_no_moment_stays_none(database: Database) -> None:
    with database.reading() as session:
        assert session.scalars(select(Account.deactivated_at)).all() == [None] * 5


# --- Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "driver"),
    [
        ("sqlite:///portal.db", "sqlite+pysqlite"),
        ("sqlite:////var/lib/portal/portal.db", "sqlite+pysqlite"),
        ("postgresql://portal:pw@db.internal:5433/portal", "postgresql+psycopg"),
        ("postgresql+psycopg://db.internal/portal", "postgresql+psycopg"),
        ("postgresql+psycopg2://db.internal/portal", "postgresql+psycopg"),
        ("postgresql://portal@cloud:p%40w@db.internal/portal", "postgresql+psycopg"),
        ("postgresql:///portal?host=/run/postgresql", "postgresql+psycopg"),
    ],
)
def test_sqlite_files_and_postgresql_are_taken(written: str, driver: str) -> None:
    assert checked_url(written).drivername == driver


@pytest.mark.parametrize(
    "written",
    [
        "",
        "portal.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://db/portal",
        "oracle://db",
        "://",
        "x:y",
    ],
)
def test_any_other_database_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="it "):
        checked_url(written)


def test_an_error_does_not_tell_what_was_to_be_written(database: Database) -> None:
    """It is logged, and mails that wait hold one-time links."""
    with pytest.raises(IntegrityError) as refused, database.transaction() as session:
        session.add(
            OutgoingMail(public_id="mail_1", recipient="a@b", subject=None, body="/reset/t0ken", created_at=NOON)
        )
    assert "t0ken" not in redact(str(refused.value))
