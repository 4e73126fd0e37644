"""One thread at a time, and none that still waits for the interpreter."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from portal.web.turn import Turn


@pytest.fixture
def alone() -> Iterator[None]:
    """A thread that computes keeps the interpreter until it waits for something."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(30)
    yield
    sys.setswitchinterval(before)


def wait_for_a_waiter(turn: Turn) -> None:
    while not turn._free._waiters:  # type: ignore[attr-defined]
        time.sleep(0.001)


def test_one_thread_has_it_at_a_time_and_each_gets_it() -> None:
    turn, inside, most = Turn(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turn:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(work) for _ in range(8)]:
            each.result()
    assert (most, inside) == (1, 0)


def test_who_waits_long_enough_goes_without_and_holds_up_nobody() -> None:
    turn = Turn()
    turn.acquire()
    assert not turn.acquire(0.01)
    turn.release()
    assert turn.acquire(0)


def test_it_is_not_that_of_a_thread_that_waits_for_the_interpreter(alone: None) -> None:
    turn = Turn()
    turn.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(turn.acquire)
        wait_for_a_waiter(turn)
        for _ in range(50):
            turn.release()
            sum(range(30_000))  # time enough for the other to wake, but the interpreter is this thread's
            assert turn.acquire(0)
        turn.release()
        assert waiting.result(30)
