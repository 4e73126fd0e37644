"""Whether "stopped" means stopped: `.venv/bin/python bench/receipt.py` prints what was accepted after the answer.

Over and over, with the shipped server and four workers: programs call with a key over a connection to each worker
again and again, while the key ends in one of seven ways: an administrator deactivates it, deletes it, withdraws its
member's access, demotes its member from administrator, or deactivates its member, each by the page's form; or its
expiry or the end of its overlap comes. Of the requests that began after the answer had arrived (or the moment had
come), none may be accepted.

`--hosts 2` serves from two hosts with two workers each and one Valkey, which is up, stopped, hung or slow; the pages
are the first host's. SQLite and PostgreSQL (from the test environment; two hosts need PostgreSQL); needs Linux, for
/proc.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, product
from pathlib import Path
from threading import Barrier

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import Browser, Line, Stage, hosts, lines_to_hosts, stage, wait_until  # noqa: E402
from portal.rules.access import AccessLevel  # noqa: E402
from portal.services import keys  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.valkey import TROUBLES, valkey  # noqa: E402

CALL = "/api/v1/apps/leads/records?limit=1"
AFTER = 3  # requests that each connection begins after the answer
PAUSE = 0.002  # seconds between a connection's calls until then, so that pages get their turn too
SOON = 0.06  # seconds until a key ends by itself
ACCEPTED, SEE_OTHER = 200, 303
REFUSED = (401, 403)


@dataclass
class Tally:
    """What came of all trials of one kind."""

    trials: int = 0
    before: int = 0  # accepted, begun before the answer
    after: Counter[int] = field(default_factory=Counter)  # begun after it, by status
    first: list[float] = field(default_factory=list)  # milliseconds from the answer to the first that began after it


Trial = tuple[str, Callable[[], float], Callable[[], object]]


class Ways:
    """One key and what ends it.

    Each way gives the key's text, what ends it (and the moment of the monotonic clock from which it must be refused),
    and what mends it for the next trial.
    """

    def __init__(self, here: Stage, browser: Browser) -> None:
        self._here, self._browser = here, browser
        self._max = here.office.member("max").public_id
        self._kept, self._text = self._make("Kept")

    def _make(self, name: str) -> tuple[str, str]:
        key, plain = self._here.office.generate("max", at=datetime.now(UTC), name=name, scopes=["leads:read"])
        self._here.office.lift_limits(key.id)
        return key.id, plain.reveal()

    def deactivate(self) -> Trial:
        """Deactivate the key."""

        def reactivate() -> object:
            return self._here.office.act("max", keys.reactivate, self._kept, at=datetime.now(UTC))

        return self._text, lambda: self._send(f"api/keys/{self._kept}/deactivate"), reactivate

    def delete(self) -> Trial:
        """Delete a key of the trial's own."""
        key_id, text = self._make("To be deleted")
        return text, lambda: self._send(f"api/keys/{key_id}/delete", name="To be deleted"), lambda: None

    def expire(self) -> Trial:
        """Let its expiry come."""
        return self._text, lambda: self._come("expires_at"), lambda: self._set(expires_at=None)

    def retire(self) -> Trial:
        """Let the end of its overlap come."""
        return self._text, lambda: self._come("retires_at"), lambda: self._set(retires_at=None)

    def withdraw(self) -> Trial:
        """Take its member's access away."""
        form = {"role": "member", "access-sales": "none"}
        return self._text, lambda: self._send(f"members/{self._max}/access", **form), self._grant

    def demote(self) -> Trial:
        """Demote its member, who has access as an administrator alone."""
        office = self._here.office
        office.grant("max", "sales", AccessLevel.NONE)
        office.change("max", role="admin")

        def mend() -> None:
            office.change("max", role="member")
            self._grant()

        return self._text, lambda: self._send(f"members/{self._max}/leave", then="demote"), mend

    def member_off(self) -> Trial:
        """Deactivate its member."""

        def mend() -> None:
            self._here.office.change("max", deactivated_at=None)

        return self._text, lambda: self._send(f"members/{self._max}/leave", then="deactivate"), mend

    def _send(self, path: str, **answers: str) -> float:
        status = self._browser.post(f"/w/acme/{path}", answers)
        if status != SEE_OTHER:
            raise RuntimeError(f"{path} answered {status}")
        return self._browser.answered_at

    def _come(self, column: str) -> float:
        now = datetime.now(UTC)
        comes = time.monotonic() + SOON  # read after `now`: no earlier than the moment that is stored
        self._set(**{column: now + timedelta(seconds=SOON)})
        comes = max(comes, time.monotonic())
        wait_until(comes)
        return comes

    def _set(self, **values: datetime | None) -> None:
        self._here.office.set_key(self._kept, **values)

    def _grant(self) -> None:
        self._here.office.grant("max", "sales", AccessLevel.FULL)


WAYS = ("deactivate", "delete", "expire", "retire", "withdraw", "demote", "member_off")


def race(lines: Sequence[Line], text: str, end: Callable[[], float]) -> tuple[float, list[tuple[float, int]]]:
    """Call again and again on every line while the key is ended; give that moment, and when each call began."""
    ended: list[float] = []
    warm = Barrier(len(lines) + 1, timeout=30)  # should a key not work yet

    def call(line: Line) -> list[tuple[float, int]]:
        if line.call(text, CALL) != ACCEPTED:
            raise RuntimeError("The key does not work yet.")
        warm.wait()
        calls, left = [], AFTER
        while left:
            if ended:
                left -= 1
            else:
                time.sleep(PAUSE)
            began = time.monotonic()
            calls.append((began, line.call(text, CALL)))
        return calls

    with ThreadPoolExecutor(len(lines)) as pool:
        running = [pool.submit(call, line) for line in lines]
        warm.wait()
        time.sleep(0.02)
        try:
            ended.append(end())
        except BaseException:
            ended.append(0.0)
            raise
        return ended[0], [call for each in running for call in each.result()]


def trials(kind: str, count: int, ways: Sequence[str], host_count: int, trouble: str) -> bool:
    """Run so many trials of each way; print what came of them and say whether none was accepted too late."""
    tallies = {name: Tally() for name in ways}
    start = time.monotonic()
    with ExitStack() as stack:
        shared = stack.enter_context(valkey(trouble)) if trouble else None
        here = stack.enter_context(stage(kind))
        environ = {"PORTAL_REDIS_URL": shared.url} if shared else {}
        servers = stack.enter_context(hosts(here, host_count, **environ))
        browser = Browser(servers[0], "ana@acme.test")
        browser.get("/w/acme/api/keys")
        found = Ways(here, browser)
        lines = list(chain.from_iterable(lines_to_hosts(servers, found.expire()[0])))
        if shared:
            shared.begin()
        for name, _ in product(ways, range(count)):
            text, end, mend = getattr(found, name)()
            ended, calls = race(lines, text, end)
            mend()
            tally = tallies[name]
            tally.trials += 1
            tally.before += sum(status == ACCEPTED for began, status in calls if began < ended)
            tally.after.update(status for began, status in calls if began >= ended)
            tally.first.append(1000 * (min(began for began, _ in calls if began >= ended) - ended))
    late = sum(tally.after[ACCEPTED] for tally in tallies.values())
    others = sum(
        tally.after.total() - sum(tally.after[each] for each in (ACCEPTED, *REFUSED)) for tally in tallies.values()
    )
    at = f"{host_count} hosts, Redis {trouble}, " if trouble else ""
    click.echo(
        f"{kind}: {at}{count} trials of each over {len(lines)} workers in {time.monotonic() - start:.0f} s,"
        f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
        "  ended by    trials  accepted, begun before  begun after: accepted  refused  the first began after"
    )
    for name, tally in tallies.items():
        refused = sum(tally.after[each] for each in REFUSED)
        click.echo(
            f"  {name.replace('_', ' '):<10}  {tally.trials:>6}  {tally.before:>22,}  {tally.after[ACCEPTED]:>21}"
            f"  {refused:>7,}  {sorted(tally.first)[len(tally.first) // 2]:>18.2f} ms"
        )
    if others:
        click.echo(f"  {others} answers were neither.")
    return late == 0 and others == 0


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), help="Default: all that will do.")
@click.option("--trials", "count", default=1000, help="Of each way, on each database, with each trouble of Redis.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS, help="Default: all.")
@click.option("--hosts", "host_count", type=click.IntRange(1, 2), default=1, help="With PostgreSQL and one Redis.")
@click.option("--redis", "troubles", multiple=True, type=click.Choice(TROUBLES), help="Of two hosts; default: all.")
def main(kinds: Sequence[str], count: int, ways: Sequence[str], host_count: int, troubles: Sequence[str]) -> None:
    """Print what was accepted before and after."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if host_count > 1 and "sqlite" in kinds:
        raise click.UsageError("One file of SQLite is one host's.")
    kinds = kinds or (KINDS if host_count == 1 else ("postgresql",))
    troubles = (troubles or TROUBLES) if host_count > 1 else ("",)
    good = [trials(kind, count, ways, host_count, trouble) for kind in kinds for trouble in troubles]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
