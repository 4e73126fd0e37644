"""Whether limits are exact: `.venv/bin/python bench/limits.py` prints how many requests of one key were admitted.

Over eight connections to the shipped server's four processes come 100 requests more than a limit, as fast as they go:
1,100 within a minute (the second's limit lifted) and 150 within a second. Exactly the limit must pass, every other be
a 429 with Retry-After. The same over two hosts with two processes each and one Valkey: while it is up they admit one
limit together, while it is stopped or hung each admits one of its own; while it is slow (80 of the 100 ms for which a
portal waits) something between the two.

At last a flood of bad keys comes through a proxy from one address, beside a good key from the same: the good one is
never refused, the flood is told to wait. SQLite and PostgreSQL (from the test environment; two hosts need PostgreSQL);
needs Linux, for /proc.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, cycle
from pathlib import Path
from threading import Barrier

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import WORKERS, Line, Stage, hosts, lines_to_hosts, stage, wait_until  # noqa: E402
from portal.rules.access import Environment  # noqa: E402
from portal.services.rate_limit import PER_MINUTE, PER_SECOND  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.valkey import TROUBLES, valkey  # noqa: E402

CONNECTIONS = 8
MORE = 100  # requests than a limit admits
TRIES = 20  # at 150 answers within a second
FLOOD = 4_000  # bad keys
GOOD_RATE = 20.0  # requests a second of the good key beside them
SENDER = {"X-Forwarded-For": "203.0.113.7"}
ACCEPTED, UNKNOWN, TOO_MANY = 200, 401, 429


@dataclass(frozen=True)
class Scene:
    """A stage that is served, with connections to each process of each host."""

    here: Stage
    lines: list[list[Line]]  # by host: a connection to each process, then a second to each


def make_key(here: Stage, name: str, **limits: int | None) -> str:
    """Make a key that has the usual limits where `limits` says None, none where it says nothing; give its text."""
    made, plain = here.office.generate("max", at=datetime.now(UTC), name=name, scopes=["leads:read"])
    here.office.lift_limits(made.id, **limits)
    return plain.reveal()


@contextmanager
def served(kind: str, host_count: int = 1, trouble: str = "", **settings: str) -> Iterator[Scene]:
    """Serve one or two hosts; with `trouble`, Redis is so when it begins."""
    with ExitStack() as stack:
        shared = stack.enter_context(valkey(trouble)) if trouble else None
        here = stack.enter_context(stage(kind))
        if shared:
            settings["PORTAL_REDIS_URL"] = shared.url
        servers = stack.enter_context(hosts(here, host_count, **settings))
        lines = lines_to_hosts(servers, make_key(here, "Warm"), CONNECTIONS // WORKERS)
        if shared:
            shared.begin()
        yield Scene(here, lines)


# --- Exactly so many ------------------------------------------------------------------------------------------------


def burst(lines: Sequence[Line], text: str, count: int) -> tuple[Counter[str], float]:
    """Call so many times over some connections at once; give what was answered, and in how many seconds."""
    numbers = iter(range(count))  # `next` of it is one step for the interpreter: no two threads get one number
    start = Barrier(len(lines) + 1)

    def call(line: Line) -> Counter[str]:
        answers: Counter[str] = Counter()
        start.wait()
        while next(numbers, None) is not None:
            answers[_named(line.call(text), line.retry_after)] += 1
        return answers

    with ThreadPoolExecutor(len(lines)) as pool:
        running = [pool.submit(call, line) for line in lines]
        start.wait()
        began = time.monotonic()
        answers = sum((each.result() for each in running), Counter[str]())
    return answers, time.monotonic() - began


def _named(status: int, retry_after: str) -> str:
    if status == ACCEPTED:
        return "admitted"
    is_told = status == TOO_MANY and retry_after.isdigit() and int(retry_after) >= 1
    return "told to wait" if is_told else f"other: {status}"


@dataclass(frozen=True)
class Limit:
    """A limit and the seconds of its window."""

    count: int
    window: int


def holds(where: str, lines: Sequence[Line], limit: Limit, text: str, at_most: int = 0) -> bool:
    """Send more than a limit, print what passed, and say whether that is exact, or up to `at_most`.

    A burst that took longer than the limit's window says nothing; one of a second is then tried again.
    """
    requests = (at_most or limit.count) + MORE
    for tried in range(1, TRIES + 1):  # noqa: B007 - it is printed
        answers, seconds = burst(lines, text, requests)
        if seconds < limit.window or limit.window > 1:
            break
        time.sleep(1.1)
    admitted, waiting = answers["admitted"], answers["told to wait"]
    click.echo(
        f"  {where:<34}  {limit.count:>5} in {limit.window:>2} s  {requests:>5} in {seconds:>5.2f} s  {admitted:>8}"
        f"  {waiting:>12}  {requests - admitted - waiting:>6}{f'  (try {tried})' if tried > 1 else ''}"
        f"{'' if seconds < limit.window else '  TOO SLOW TO TELL'}"
    )
    good = limit.count <= admitted <= (at_most or limit.count) and admitted + waiting == requests
    return good and seconds < limit.window


def limits(kind: str, host_count: int, trouble: str) -> bool:
    """Try both limits on one database and so many hosts."""
    where = f"2 hosts, Redis {trouble}" if trouble else "1 host"
    minute, second = Limit(PER_MINUTE, 60), Limit(PER_SECOND, 1)
    with served(kind, host_count, trouble) as scene:
        in_minute = make_key(scene.here, "A minute's", rate_per_minute=None)
        in_second = make_key(scene.here, "A second's", rate_per_second=None)
        together = list(chain.from_iterable(scene.lines))
        if trouble == "slow":  # so slow that a second is over too soon; and now and then it is too slow to wait for
            return holds(where, together, minute, in_minute, at_most=host_count * PER_MINUTE)
        good = True
        for limit, text in ((minute, in_minute), (second, in_second)):
            if trouble in ("stopped", "hung"):
                for n, lines in enumerate(scene.lines):
                    good &= holds(f"{where}, host {n + 1}", lines, limit, text)
            else:
                good &= holds(where, together, limit, text)
        return good


# --- A flood of bad keys --------------------------------------------------------------------------------------------


def flood(kind: str) -> bool:
    """Send bad keys beside a good one from one address; print what both got."""
    with served(kind, PORTAL_TRUSTED_PROXIES="127.0.0.1") as scene:
        lines = scene.lines[0]
        good, unknown = make_key(scene.here, "Good"), scene.here.office.keyring.mint(Environment.LIVE)[0].reveal()
        bad = cycle([unknown, unknown[:-1] + ("0" if unknown[-1] != "0" else "1")])
        numbers = iter(range(FLOOD))
        answers, passed = Counter[str](), Counter[int]()

        def send(line: Line) -> Counter[str]:
            got = Counter[str]()
            while next(numbers, None) is not None:
                status = line.call(next(bad), more=SENDER)
                got["401" if status == UNKNOWN else _named(status, line.retry_after)] += 1
            return got

        start = time.monotonic()
        with ThreadPoolExecutor(WORKERS) as pool:
            running = [pool.submit(send, line) for line in lines[:WORKERS]]
            for n, line in enumerate(cycle(lines[WORKERS:])):
                if all(each.done() for each in running):
                    break
                wait_until(start + n / GOOD_RATE)
                passed[line.call(good, more=SENDER)] += 1
            answers = sum((each.result() for each in running), answers)
    others = answers.total() - answers["401"] - answers["told to wait"]
    click.echo(
        f"  {FLOOD:,} bad keys from one address in {time.monotonic() - start:.1f} s: {answers['401']:,} got 401,"
        f" {answers['told to wait']:,} 429 with Retry-After, {others} another answer\n"
        f"  a good key from there beside them: {passed[ACCEPTED]} accepted, {passed.total() - passed[ACCEPTED]} refused"
    )
    return set(passed) == {ACCEPTED} and not others and answers["told to wait"] > 0


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--redis", "troubles", multiple=True, type=click.Choice(TROUBLES), default=TROUBLES, help="Default: all.")
@click.option("--hosts", "host_counts", multiple=True, type=click.IntRange(1, 2), default=(1, 2), help="Default: both.")
def main(kinds: Sequence[str], troubles: Sequence[str], host_counts: Sequence[int]) -> None:
    """Print how many were admitted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = True
    for kind in kinds:
        click.echo(
            f"{kind}, {CONNECTIONS} connections to {WORKERS} processes, load {os.getloadavg()[0]:.1f}"
            f" on {os.cpu_count()} cores\n"
            f"  {'':<34}  limit          requests          admitted  told to wait  others"
        )
        if 1 in host_counts:
            good &= limits(kind, 1, "")
        if 2 in host_counts and kind != "sqlite":  # a file is one host's
            for trouble in troubles:
                good &= limits(kind, 2, trouble)
        if 1 in host_counts:
            good &= flood(kind)
    click.echo("All is exact." if good else "NOT ALL IS EXACT.")
    sys.exit(not good)


if __name__ == "__main__":
    main()
