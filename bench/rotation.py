"""Whether a rotation interrupts nobody: `.venv/bin/python bench/rotation.py` prints who was accepted with which key.

Two programs call the shipped server (four workers) from two addresses without a pause; a person rotates their key by
the page's form, with an overlap of an hour. One program takes the new key at once, the other never does. The overlap
is then cut to a few seconds in the trial's database. No request may be refused before it ended, none with the old key
accepted that began after, and the page of the pair must name the program that had not switched. SQLite and PostgreSQL
(from the test environment); needs Linux, for /proc and for 127.0.0.2.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from threading import Event

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import WORKERS, Browser, Line, lines_to_all, stage, wait_until  # noqa: E402
from tests.cast import KEY_TEXT  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.servers import serving  # noqa: E402

CALL = "/api/v1/apps/leads/records?limit=1"
SWITCHING, STAYING = ("127.0.0.2", "switching/1.0"), ("127.0.0.3", "staying/2.0")
OLD, NEW = "old", "new"
_MOMENT = re.compile(
    r'<time[^>]* datetime="[^"]*T([\d:]+)[^"]*"[^>]*>[^<]*</time>(?:\s*<span class="abs">[^<]*</span>)?'
)


@dataclass
class Program:
    """A program that calls with a key and notes what came of each request."""

    lines: Sequence[Line]
    keys: dict[str, str]  # texts, by `old` and `new`
    holds: str = OLD
    calls: list[tuple[str, datetime, datetime, int]] = field(default_factory=list)  # key, began, ended, status

    def run(self, rate: float, is_over: Event) -> None:
        """Call at a rate until it is over."""
        start, number = time.monotonic(), 0
        while not is_over.is_set():
            wait_until(start + number / rate)
            which = self.holds
            began = datetime.now(UTC)
            status = self.lines[number % len(self.lines)].call(self.keys[which], CALL)
            self.calls.append((which, began, datetime.now(UTC), status))
            number += 1


def rotate(browser: Browser, key_id: str) -> tuple[str, str]:
    """Rotate a key by its form, with an overlap of an hour; give the new key's id and text."""
    path = f"/w/acme/api/keys/{key_id}/rotate"
    form_id = re.search(r'name="form_id" value="([^"]+)"', browser.get(path))
    if not form_id:
        raise RuntimeError("The form has no form_id.")
    page = browser.form(
        path, [("form_id", form_id[1]), ("scopes", "leads:read"), ("expires", "90d"), ("overlap", "1h")]
    )
    text, new_id = KEY_TEXT.search(page), re.search(r'data-key="(key_\w+)"', page)
    if not text or not new_id:
        raise RuntimeError(f"The key was not rotated: {page[:2000]}")
    return new_id[1], text[0]


def told_of(page: str) -> str:
    """Read off a pair's page who still uses the old key, with the moments that its times stand for."""
    page = _MOMENT.sub(r"at \1", page)
    words = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page)))
    found = re.search(r"Still used: .*?(?= Safe once)", words)
    return found[0] if found else ""


def trial(kind: str, rate: float, seconds: float) -> bool:
    """Run one trial; print its figures and say whether all is as it must be."""
    with stage(kind) as here, serving(here.url, here.instance, PORTAL_WORKERS=str(WORKERS)) as server:
        view, plain = here.office.generate("max", at=datetime.now(UTC), name="Rotating", scopes=["leads:read"])
        here.office.lift_limits(view.id)
        texts = {OLD: plain.reveal()}
        opened = [lines_to_all(server, texts[OLD], client=client, address=at) for at, client in (SWITCHING, STAYING)]
        switching, staying = (Program(lines, texts) for lines in opened)
        browser, is_over = Browser(server, "max@acme.test"), Event()
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(program.run, rate, is_over) for program in (switching, staying)]
            try:
                time.sleep(seconds / 4)
                new_id, texts[NEW] = rotate(browser, view.id)
                here.office.lift_limits(new_id)
                switching.holds = NEW
                rotated = datetime.now(UTC)
                time.sleep(seconds / 4)
                told = told_of(browser.get(f"/w/acme/api/keys/{new_id}"))
                ends = datetime.now(UTC) + timedelta(seconds=seconds / 4)
                here.office.set_key(view.id, retires_at=ends)
                time.sleep(seconds / 2)
            finally:
                is_over.set()
            for each in running:
                each.result()
    click.echo(
        f"{kind}: over {WORKERS} workers, rotated by {rotated:%H:%M:%S}, the overlap ended at {ends:%H:%M:%S},"
        f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    return tell({"switching": switching, "staying": staying}, ends, told)


def tell(programs: dict[str, Program], ends: datetime, told: str) -> bool:
    """Print what came of each program's requests and what the page told of them."""
    click.echo("  program    key  until the overlap ended: accepted  refused  astride  begun after: accepted  refused")
    wrong = 0
    for name, program in programs.items():
        for which in (OLD, NEW):
            calls = [(began, ended, status == 200) for held, began, ended, status in program.calls if held == which]
            before = [accepted for _, ended, accepted in calls if ended < ends]
            after = [accepted for began, _, accepted in calls if began >= ends]
            astride = len(calls) - len(before) - len(after)
            wrong += before.count(False) + after.count(which == OLD)
            click.echo(
                f"  {name:<9}  {which}  {before.count(True):>34,}  {before.count(False):>7,}  {astride:>7}"
                f"  {after.count(True):>21,}  {after.count(False):>7,}"
            )
    first = told.partition(";")[0]  # the latest caller; one that switched may follow, with its last call before that
    click.echo(f"  The pair's page: {told or 'names nobody.'}")
    return all(word in first for word in STAYING) and not wrong


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--rate", default=40.0, help="Requests a second of each program.")
@click.option("--seconds", default=24.0, help="Of each trial.")
def main(kinds: Sequence[str], rate: float, seconds: float) -> None:
    """Print what was accepted and refused."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = [trial(kind, rate, seconds) for kind in kinds]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
