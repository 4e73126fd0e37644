"""Whether "stopped" means stopped: `.venv/bin/python bench/receipt.py` prints what was accepted after the answer.

Over and over, with the shipped server and four workers: programs call with a key over a connection to each worker
without a pause, while somebody deactivates the key, deletes it, or withdraws the access of its member (in turns, the
first two by the page's form). Of the requests that began after the answer (or the commit) had arrived, none may be
accepted. SQLite and PostgreSQL (from the test environment); needs Linux, for /proc.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from threading import Barrier

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import WORKERS, Browser, Line, Stage, lines_to_all, stage  # noqa: E402
from portal.rules.access import AccessLevel  # noqa: E402
from portal.services import keys  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.servers import serving  # noqa: E402

CALL = "/api/v1/apps/leads/records?limit=1"
AFTER = 3  # requests that each connection begins after the answer
ACCEPTED, SEE_OTHER = 200, 303


@dataclass
class Tally:
    """What came of all trials of one kind."""

    trials: int = 0
    before: int = 0  # accepted, begun before the answer
    after: Counter[int] = field(default_factory=Counter)  # begun after it, by status
    first: list[float] = field(default_factory=list)  # milliseconds from the answer to the first that began after it


class Call:
    """One key and what ends it."""

    def __init__(self, here: Stage, browser: Browser) -> None:
        self._here, self._browser = here, browser
        self._kept = self._make("Kept")

    def _make(self, name: str) -> tuple[str, str]:
        made = self._here.office.generate("max", at=datetime.now(UTC), name=name, scopes=["leads:read"])
        return made[0].id, made[1].reveal()

    def deactivate(self) -> tuple[str, Callable[[], float], Callable[[], object]]:
        """Give a key's text, what ends it (and when its answer arrived), and what mends it for the next trial."""
        key_id, text = self._kept
        return text, lambda: self._send(key_id, "deactivate"), lambda: self._reactivate(key_id)

    def delete(self) -> tuple[str, Callable[[], float], Callable[[], object]]:
        """As above; there is nothing to mend."""
        key_id, text = self._make("To be deleted")
        return text, lambda: self._send(key_id, "delete", name="To be deleted"), lambda: None

    def demote(self) -> tuple[str, Callable[[], float], Callable[[], object]]:
        """As above, by what a page of members will do."""
        return self._kept[1], self._withdraw, lambda: self._here.office.grant("max", "sales", AccessLevel.FULL)

    def _send(self, key_id: str, what: str, **answers: str) -> float:
        status = self._browser.post(f"/w/acme/api/keys/{key_id}/{what}", answers)
        if status != SEE_OTHER:
            raise RuntimeError(f"{what} answered {status}")
        return self._browser.answered_at

    def _withdraw(self) -> float:
        self._here.office.grant("max", "sales", AccessLevel.NONE)
        return time.monotonic()

    def _reactivate(self, key_id: str) -> None:
        self._here.office.act("max", keys.reactivate, key_id, at=datetime.now(UTC))


def race(lines: Sequence[Line], text: str, end: Callable[[], float]) -> tuple[float, list[tuple[float, int]]]:
    """Call without a pause on every line while the key is ended; give that moment, and when each call began."""
    ended: list[float] = []
    warm = Barrier(len(lines) + 1)

    def call(line: Line) -> list[tuple[float, int]]:
        if line.call(text, CALL) != ACCEPTED:
            raise RuntimeError("The key does not work yet.")
        warm.wait()
        calls, left = [], AFTER
        while left:
            left -= bool(ended)
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


def trials(kind: str, count: int) -> bool:
    """Run the trials on one database; print what came of them and say whether none was accepted too late."""
    tallies: dict[str, Tally] = {}
    start = time.monotonic()
    with stage(kind) as here, serving(here.url, here.instance, PORTAL_WORKERS=str(WORKERS)) as server:
        browser = Browser(server, "max@acme.test")
        browser.get("/w/acme/api/keys")
        key = Call(here, browser)
        lines = lines_to_all(server, key.deactivate()[0])
        ways = cycle({"deactivate": key.deactivate, "delete": key.delete, "demote": key.demote}.items())
        for _, (name, prepare) in zip(range(count), ways, strict=False):
            text, end, mend = prepare()
            ended, calls = race(lines, text, end)
            mend()
            tally = tallies.setdefault(name, Tally())
            tally.trials += 1
            tally.before += sum(status == ACCEPTED for began, status in calls if began < ended)
            tally.after.update(status for began, status in calls if began >= ended)
            tally.first.append(1000 * (min(began for began, _ in calls if began >= ended) - ended))
    late = sum(tally.after[ACCEPTED] for tally in tallies.values())
    click.echo(
        f"{kind}: {count} trials over {WORKERS} workers in {time.monotonic() - start:.0f} s,"
        f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
        "  ended by    trials  accepted, begun before  begun after: accepted  refused  the first began after"
    )
    for name, tally in tallies.items():
        refused = tally.after.total() - tally.after[ACCEPTED]
        click.echo(
            f"  {name:<10}  {tally.trials:>6}  {tally.before:>22,}  {tally.after[ACCEPTED]:>21}  {refused:>7,}"
            f"  {sorted(tally.first)[len(tally.first) // 2]:>18.2f} ms"
        )
    return late == 0


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--trials", "count", default=200, help="On each database.")
def main(kinds: Sequence[str], count: int) -> None:
    """Print what was accepted before and after."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = [trials(kind, count) for kind in kinds]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
