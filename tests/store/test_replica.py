"""Pages that read much may read from a replica that follows, and never see less than the database itself shows."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from portal.rules.credentials import new_id
from portal.store.database import Database
from portal.store.models import Workspace
from portal.store.replica import Replica

IS_REPLICA = text("SELECT pg_is_in_recovery()")
COUNT = text("SELECT count(*) FROM workspace")


@pytest.fixture
def primary(database_url: str) -> Iterator[Database]:
    """The test's database itself."""
    with closing(Database(database_url)) as database:
        yield database


def begin_workspace(database: Database) -> None:
    """Commit something."""
    tag = new_id("ws")
    with database.transaction() as session:
        session.add(Workspace(public_id=tag, slug=tag[3:].lower(), name="Of a test", created_at=datetime.now(UTC)))


def test_what_was_committed_is_there_whoever_is_asked(primary: Database, replica_url: str) -> None:
    asked: list[bool] = []
    with closing(Replica(replica_url, primary)) as pages:
        assert _comes_up(pages)
        while len(asked) < 20 or (not any(asked) and len(asked) < 500):  # on a busy machine it is seldom in time
            begin_workspace(primary)
            with pages.reading() as session, primary.reading() as there:
                asked.append(session.scalar(IS_REPLICA))
                assert session.scalar(COUNT) == there.scalar(COUNT)
    assert any(asked)


def test_a_replica_that_stands_still_is_not_read(primary: Database, replica_url: str) -> None:
    with closing(Database(replica_url)) as follower, closing(Replica(replica_url, primary)) as pages:
        assert _comes_up(pages)
        with follower.reading() as session:
            session.execute(text("SELECT pg_wal_replay_pause()"))
        try:
            begin_workspace(primary)
            with pages.reading() as session, primary.reading() as there:
                assert session.scalar(IS_REPLICA) is False
                assert session.scalar(COUNT) == there.scalar(COUNT)
        finally:
            with follower.reading() as session:
                session.execute(text("SELECT pg_wal_replay_resume()"))
        assert _comes_up(pages)


def _comes_up(pages: Replica) -> bool:
    for _ in range(100):
        with pages.reading() as session:
            if session.scalar(IS_REPLICA):
                return True
        time.sleep(0.1)
    return False


def test_a_replica_that_is_away_or_none_is_done_without(
    primary: Database, replica_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with closing(Replica(replica_url.replace("copy_", "elsewhere_"), primary)) as pages:
        for _ in range(3):
            with pages.reading() as session:
                assert session.scalar(IS_REPLICA) is False
    with closing(Replica(database_url, primary)) as pages:  # one that was promoted, or the same database by mistake
        for _ in range(3):
            with pages.reading() as session:
                assert session.scalar(IS_REPLICA) is False
    told = [each.message for each in caplog.records if "replica" in each.message]
    assert [each.rpartition(": ")[2] for each in told] == ["it cannot be asked", "it does not follow another one"]
