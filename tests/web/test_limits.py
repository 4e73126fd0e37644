"""Limits over the shipped server's processes, and what a Redis in trouble costs whoever asks."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from threading import Barrier

import pytest

from bench.stage import WORKERS, Line, Stage, hosts, lines_to_all
from portal.services.rate_limit import Admission
from portal.settings import Settings
from portal.store.database import Database
from tests.cast import Cast
from tests.servers import serving
from tests.services.office import Office
from tests.valkey import valkey

LIMIT, MORE = 200, 40
PATIENCE = 0.25  # seconds that a Redis in trouble may cost
BUSY = 4.0  # seconds that a loaded machine may add to one request; one that is not given up waits for ever


@pytest.fixture
def here(database: Database, database_url: str, tmp_path: Path) -> Iterator[Stage]:
    """The test's database, and keys in it that its server knows."""
    settings = Settings.from_environ({"PORTAL_DATABASE_URL": database_url}, tmp_path)
    office = Office(database, settings.keyring)
    yield Stage(database_url, tmp_path, database, office)
    office.close()


def make_key(here: Stage, name: str, **limits: int | None) -> str:
    key, plain = here.office.generate("rio", at=datetime.now(UTC), name=name)
    here.office.lift_limits(key.id, **limits)
    return plain.reveal()


@pytest.mark.both
def test_four_processes_admit_exactly_a_limit_over_eight_connections(here: Stage) -> None:
    warm, text = make_key(here, "Warm"), make_key(here, "Limited", rate_per_minute=LIMIT)
    with hosts(here) as servers:
        lines = lines_to_all(servers[0], warm, each=2)

        def call(line: Line) -> Counter[tuple[int, bool]]:
            calls = (LIMIT + MORE) // len(lines)
            return Counter((line.call(text), line.retry_after not in ("", "0")) for _ in range(calls))

        with ThreadPoolExecutor(len(lines)) as pool:
            answers = sum(pool.map(call, lines), Counter[tuple[int, bool]]())
        workers = {line.worker() for line in lines}
        for line in lines:
            line.close()
    assert answers == {(200, False): LIMIT, (429, True): MORE}
    assert len(workers) == WORKERS


@pytest.mark.parametrize("trouble", ["stopped", "hung", "slow"])
def test_a_redis_in_trouble_costs_a_request_less_than_a_quarter_of_a_second(here: Stage, trouble: str) -> None:
    text = make_key(here, "Limited", rate_per_minute=12)
    with valkey(trouble) as redis, serving(here.url, here.instance, PORTAL_REDIS_URL=redis.url) as server:
        line = Line(server)
        usual = max(_timed(line, "") for _ in range(5))  # refused before anybody is counted
        redis.begin()
        took = [_timed(line, text) for _ in range(14)]
        line.close()
    assert median(took) < usual + PATIENCE
    assert max(took) < usual + PATIENCE + BUSY
    assert line.answers == {401: 5, 200: 12, 429: 2}, "it limits all the same"


def test_requests_wait_for_redis_side_by_side(shared_cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process works on one request at a time, but passes more than one per round trip to Redis."""
    key, both = shared_cast.rio.generate(), Barrier(2, timeout=30)

    class Redis:
        def admit(self, *_: object) -> Admission:
            both.wait()  # until the other one asks as well
            return Admission(1000, 999, 0.0, 0.0)

    monkeypatch.setattr(shared_cast.app.extensions["portal"].rate_limit, "_shared", Redis())
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: shared_cast.call("GET", "/me", key).status_code, range(2)))
    assert answers == [200, 200]


def test_a_key_that_ends_while_its_request_waits_for_redis_is_refused(
    shared_cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = shared_cast.rio.generate(name="Ends meanwhile")

    class Redis:
        def admit(self, *_: object) -> Admission:
            shared_cast.rio.post(f"keys/{key.id}/deactivate")
            return Admission(1000, 999, 0.0, 0.0)

    monkeypatch.setattr(shared_cast.app.extensions["portal"].rate_limit, "_shared", Redis())
    assert shared_cast.call("GET", "/me", key).status_code == 401


def _timed(line: Line, text: str) -> float:
    start = time.monotonic()
    line.call(text)
    return time.monotonic() - start
