"""The limits of a key: exact over threads, processes and hosts, with Redis and without."""

import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from portal.services import rate_limit
from portal.services.rate_limit import PER_MINUTE, PER_SECOND, BadKeys, HostWindows, RateLimit, RedisWindows
from tests.valkey import Valkey, valkey

MANY = 1_000_000


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def windows(tmp_path: Path, clock: Clock) -> Iterator[HostWindows]:
    made = HostWindows(tmp_path / "rates", clock)
    yield made
    made.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[Valkey]:
    with valkey() as made:
        yield made


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a Redis that is well as long as a busy machine may need; the usual patience has tests of its own."""
    monkeypatch.setattr(rate_limit, "REDIS_PATIENCE", 10.0)
    monkeypatch.setattr(rate_limit, "_TO_CONNECT", 10.0)


def test_a_minute_holds_a_thousand_and_then_grows_again(windows: HostWindows, clock: Clock) -> None:
    for n in range(PER_MINUTE):
        admission = windows.admit(1, PER_MINUTE, MANY)
        assert (admission.wait, admission.remaining, admission.limit) == (0, PER_MINUTE - n - 1, PER_MINUTE)
        clock.now += 0.03
    refused = windows.admit(1, PER_MINUTE, MANY)
    assert refused.remaining == 0
    assert 29.4 <= refused.wait <= 30.6
    assert refused.wait == pytest.approx(refused.grows_in)
    clock.now += refused.wait - 0.001
    assert windows.admit(1, PER_MINUTE, MANY).wait > 0
    clock.now += 0.002
    assert windows.admit(1, PER_MINUTE, MANY).wait == 0


def test_a_second_holds_fifty_however_they_come(windows: HostWindows, clock: Clock) -> None:
    passed = [windows.admit(1, PER_MINUTE, PER_SECOND) for _ in range(PER_SECOND + 20)]
    assert sum(not each.wait for each in passed) == PER_SECOND
    assert 0.9 < passed[-1].wait <= 1.02
    assert passed[-1].retry_after in (1, 2)
    clock.now += passed[-1].wait
    assert windows.admit(1, PER_MINUTE, PER_SECOND).wait == 0
    assert windows.admit(2, PER_MINUTE, PER_SECOND).remaining == PER_MINUTE - 1, "each key by itself"


def test_refused_requests_do_not_count(windows: HostWindows, clock: Clock) -> None:
    for _ in range(500):
        windows.admit(1, 5, MANY)
    clock.now += 60.5
    assert [windows.admit(1, 5, MANY).wait > 0 for _ in range(6)] == [False] * 5 + [True]


_keys = count(1_000_000)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(
        st.sampled_from([0.0, 0.0, 0.001, 0.009, 0.2, 0.5, 0.99, 1.0, 7.0, 31.0, 59.99, 60.0, 3600.0]), max_size=300
    ),
    per_minute=st.integers(1, 20),
    per_second=st.integers(1, 8),
)
def test_no_window_ever_holds_more_and_none_is_refused_much_too_long(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], per_minute: int, per_second: int
) -> None:
    clock = Clock()
    windows = HostWindows(tmp_path_factory.getbasetemp() / "random", clock)
    key = next(_keys)  # one that no earlier example left in the file
    passed: list[float] = []
    for gap in gaps:
        clock.now += gap
        admission = windows.admit(key, per_minute, per_second)
        minute = [at for at in passed if at > clock.now - 60]
        if not admission.wait:
            passed.append(clock.now)
            assert len(minute) < per_minute
            assert sum(at > clock.now - 1 for at in passed) <= per_second
        else:
            nearly = [at for at in passed if at > clock.now - 60.5]
            assert len(nearly) >= per_minute or sum(at > clock.now - 1.01 for at in passed) >= per_second
    windows.close()


def test_a_machine_that_was_started_anew_counts_anew(tmp_path: Path, clock: Clock) -> None:
    windows = HostWindows(tmp_path / "rates", clock)
    assert [windows.admit(1, 3, MANY).wait > 0 for _ in range(4)] == [False, False, False, True]
    windows.close()
    clock.now = 5.0
    windows = HostWindows(tmp_path / "rates", clock)
    assert [windows.admit(1, 3, MANY).wait > 0 for _ in range(4)] == [False, False, False, True]
    windows.close()


def test_more_keys_than_there_is_room_for_are_still_limited_each(windows: HostWindows) -> None:
    for key in range(1, 80_000, 7):
        windows.admit(key, 2, MANY)
    assert [windows.admit(1, 2, MANY).wait > 0 for _ in range(2)] == [False, True]


def test_where_no_file_can_be_made_a_process_limits_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    windows = HostWindows(tmp_path / "missing" / "rates")
    assert [windows.admit(1, 2, MANY).wait > 0 for _ in range(3)] == [False, False, True]
    windows.close()
    assert "file of counts" in caplog.text


def test_a_full_disk_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    windows = HostWindows(tmp_path / "rates")
    windows.admit(1, 2, MANY)
    with patch.object(os, "posix_fallocate", side_effect=OSError(28, "No space left on device")):
        assert [windows.admit(2, 2, MANY).wait > 0 for _ in range(3)] == [False, False, True]
    assert "file of counts" in caplog.text
    windows.close()
    assert (tmp_path / "rates").stat().st_blocks * 512 < 1 << 20, "only what is used takes room"


def _use(path: Path, redis_url: str | None, count: int) -> int:
    """Use one key from one process over some threads; give how often it passed."""
    rate_limit.REDIS_PATIENCE = rate_limit._TO_CONNECT = 10.0  # as `patience`, in a process of its own
    limit = RateLimit(path, redis_url)
    with ThreadPoolExecutor(2) as threads:
        passed = list(threads.map(lambda _: not limit.admit(77, "key_shared", 300, MANY).wait, range(count)))
    limit.close()
    return sum(passed)


@pytest.mark.parametrize("shared", [False, True], ids=["one host", "two hosts with Redis"])
def test_four_processes_admit_exactly_the_limit(tmp_path: Path, redis: Valkey, shared: bool) -> None:
    url = redis.url if shared else None
    paths = [tmp_path / (f"host-{n % 2}" if shared else "rates") for n in range(4)]
    with multiprocessing.get_context("spawn").Pool(4) as processes:
        passed = processes.starmap(_use, [(path, url, 100) for path in paths])
    assert sum(passed) == 300, passed


def _hold_and_die(path: Path) -> None:
    windows = HostWindows(path)
    windows.admit(1, 10, MANY)
    with patch.object(HostWindows, "_judge", lambda *args, **more: os.kill(os.getpid(), signal.SIGKILL)):
        windows.admit(1, 10, MANY)


def test_a_process_that_dies_while_it_counts_holds_nobody_up(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(tmp_path / "rates",))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    windows = HostWindows(tmp_path / "rates")
    assert windows.admit(1, 10, MANY).remaining == 8
    windows.close()


def test_redis_limits_like_a_host_does(redis: Valkey, patience: None) -> None:
    windows = RedisWindows(redis.url)
    for key in count():  # to connect and to send the script may take longer than the second that they must all be in
        start = time.monotonic()
        passed = [windows.admit(f"key_a{key}", 10, 4) for _ in range(6)]
        if time.monotonic() - start < 1:
            break
    assert [each.wait > 0 for each in passed] == [False] * 4 + [True] * 2
    assert [each.remaining for each in passed] == [9, 8, 7, 6, 6, 6]
    time.sleep(max(each.wait for each in passed) + 0.01)
    passed = [windows.admit(f"key_a{key}", 10, MANY) for _ in range(8)]
    assert [each.wait > 0 for each in passed] == [False] * 6 + [True] * 2
    assert 59.9 - (time.monotonic() - start) < passed[-1].wait <= 60  # the first one's minute
    assert windows.admit("key_b", 10, 4).remaining == 9
    windows.close()


def test_without_redis_each_host_limits_at_once_and_redis_is_found_again(tmp_path: Path, patience: None) -> None:
    with valkey() as redis, closing(RateLimit(tmp_path / "rates", redis.url)) as limit:
        assert [limit.admit(1, "key_a", 5).remaining for _ in range(3)] == [4, 3, 2]
        redis.stop()
        start = time.monotonic()
        after = [limit.admit(1, "key_a", 5) for _ in range(4)]
        assert time.monotonic() - start < 5, "nobody waits for what is gone"
        assert limit.shared_state == "away"
        assert [each.wait > 0 for each in after] == [False, False, True, True], "what Redis admitted counts here too"
        redis.start()
        until = time.monotonic() + 10
        while limit.shared_state == "away" and time.monotonic() < until:
            time.sleep(0.05)
        assert limit.shared_state == "up"
        assert limit.admit(2, "key_b", 5).remaining == 4
        assert limit.admit(1, "key_a", 5).wait > 0, "Redis lost its count, but this host has its own"


def test_a_redis_that_hangs_costs_one_request_a_tenth_of_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rate_limit.REDIS_PATIENCE == 0.1
    monkeypatch.setattr(rate_limit, "REDIS_PATIENCE", 1.0)  # a busy machine takes a tenth of a second for nothing
    with valkey("hung") as redis, closing(RateLimit(tmp_path / "rates", redis.url)) as limit:
        limit.admit(1, "key_a")
        redis.begin()
        with patch.object(Redis, "evalsha", autospec=True, side_effect=Redis.evalsha) as asked:
            start = time.monotonic()
            assert limit.admit(1, "key_a").wait == 0
            assert 1 <= time.monotonic() - start < 1.9, "once"
            for _ in range(4):
                assert limit.admit(1, "key_a").wait == 0
        assert asked.call_count == 1, "and then no more"


def test_requests_that_wait_side_by_side_for_a_redis_that_hangs_tell_of_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with valkey("hung") as redis, closing(RateLimit(tmp_path / "rates", redis.url)) as limit:
        redis.begin()
        with ThreadPoolExecutor(8) as threads:
            verdicts = list(threads.map(lambda _: limit.admit(1, "key_a", 5), range(8)))
        assert sum(admission.wait == 0 for admission in verdicts) == 5, "the host limits"
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == ["Redis is away"]


def test_a_redis_whose_clock_is_put_back_shuts_nobody_out(redis: Valkey, patience: None) -> None:
    windows = RedisWindows(redis.url)
    client: Any = Redis.from_url(redis.url)
    for step, waits in ((3_600.0, 0.0), (0.5, 60.5)):
        key = f"key_of_{step}"
        assert [windows.admit(key, 5, MANY).wait > 0 for _ in range(6)] == [False] * 5 + [True]
        name = f"latchkey:rate:{key}:5"
        count, first, *moments = struct.unpack(">7d", client.get(name))
        later = [each + step * 1e6 for each in moments]
        client.set(name, struct.pack(">7d", count, first, *later))  # as if they had been noted by the clock of before
        assert max(0.0, waits - 5) <= windows.admit(key, 5, MANY).wait <= waits  # less what has passed since
    client.close()
    windows.close()


def test_a_redis_that_answers_and_cannot_count_is_away_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patience: None
) -> None:
    with (
        valkey() as redis,
        closing(Redis.from_url(redis.url)) as client,
        closing(RateLimit(tmp_path / "rates", redis.url)) as limit,
    ):
        client.replicaof("127.0.0.1", 1)  # read-only from now on
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert limit.admit(1, "key_a").wait == 0
            assert limit.shared_state == "away"
            time.sleep(0.1)
        assert [each.getMessage().partition(":")[0] for each in caplog.records] == ["Redis is away"]
        client.replicaof("NO", "ONE")
        until = time.monotonic() + 10
        while limit.shared_state == "away" and time.monotonic() < until:
            time.sleep(0.05)
        assert limit.shared_state == "up"


@pytest.mark.parametrize("answer", [None, b"OK", 7, [], [1, 2], [b"a", b"b", b"c"], [None] * 3, {}])
def test_a_redis_that_answers_nonsense_is_away(
    tmp_path: Path, redis: Valkey, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(Redis, "evalsha", lambda *_: answer)
    with closing(RateLimit(tmp_path / "rates", redis.url)) as limit:
        assert limit.admit(1, "key_a", 5).remaining == 4
        assert limit.shared_state == "away"


def test_redis_is_asked_once_a_request_and_at_first_once_more(tmp_path: Path, redis: Valkey, patience: None) -> None:
    with closing(Redis.from_url(redis.url)) as client:
        client.script_flush()  # as one that was started anew
    with (
        patch.object(Redis, "evalsha", autospec=True, side_effect=Redis.evalsha) as by_name,
        patch.object(Redis, "eval", autospec=True, side_effect=Redis.eval) as in_full,
        closing(RateLimit(tmp_path / "rates", redis.url)) as limit,
    ):
        for _ in range(3):
            limit.admit(1, "key_asked")
    assert (by_name.call_count, in_full.call_count) == (3, 1)


def test_bad_keys_make_their_network_wait_but_not_this_machine(clock: Clock) -> None:
    bad_keys = BadKeys(clock)
    clock.now = 60 * 20.0 + 45
    waits = [bad_keys.wait_of("203.0.113.9") for _ in range(310)]
    assert waits == [0] * 300 + [15] * 10
    assert bad_keys.wait_of("203.0.113.10") == 0
    flood = [bad_keys.wait_of(f"2001:db8::{n:x}") for n in range(310)]
    assert flood[-1] == 15, "one network of 64 bits is one sender"
    assert {bad_keys.wait_of(own) for own in ("127.0.0.1", "::1", None) for _ in range(320)} <= {0, 15}
    assert {bad_keys.wait_of("127.0.0.1") for _ in range(320)} == {0}
    clock.now += 16
    assert bad_keys.wait_of("203.0.113.9") == 0
