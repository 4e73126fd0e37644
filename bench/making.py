"""What people's clicks cost the server: `.venv/bin/python bench/making.py` prints it beside the floor.

The list of keys, 25 rows, as a page and as the fragment that HTMX asks for; generating a key by its form, until its
transaction is committed and the page with its text is there, and the transaction of that alone, in this process. They
take turns with the floor, a route without a check, over one kept connection to one worker; the database lies on a RAM
disk where there is one. SQLite and PostgreSQL (from the test environment).
"""

import signal
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from urllib.parse import urlencode

import click
from sqlalchemy import update

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import FLOOR, Cost, Kind, Loaded, circumstances, loaded, table  # noqa: E402
from bench.stage import Browser, Stage, stage  # noqa: E402
from portal.store.models import ApiKey  # noqa: E402
from tests.databases import KINDS  # noqa: E402

AT_ONCE = 10  # keys of a round; a person may have 20
KEYS = "/w/acme/api/keys"
LIST = f"{KEYS}?owner=all"
ROWS = 25


def lists(here: Stage, server: Loaded, browser: Browser, rounds: int, seconds: float) -> dict[str, list[Cost]]:
    """Measure the list, which more keys than one page's are made for."""
    for who, n in ((who, n) for who in ("max", "rio") for n in range(18)):
        here.office.generate(who, at=datetime.now(UTC), name=f"Listed {n}")
    shown = browser.get(LIST).count('data-state="')
    if shown != ROWS:
        raise RuntimeError(f"The list shows {shown} keys.")
    kinds = {
        FLOOR: Kind([server.floor()]),
        f"{ROWS} keys, page": Kind([server.get(LIST, f"Cookie: {browser.cookie}")]),
        f"{ROWS} keys, fragment": Kind([server.get(LIST, f"Cookie: {browser.cookie}", "HX-Request: true")]),
    }
    return server.compare(kinds, rounds, seconds, 1)


def generating(here: Stage, server: Loaded, browser: Browser, rounds: int, seconds: float) -> dict[str, list[Cost]]:
    """Measure the form and its transaction; a round's keys are revoked after it, outside the measurement."""
    browser.get(f"{KEYS}/new")
    costs: dict[str, list[Cost]] = {FLOOR: [], "a key, by its form": [], "a key, the transaction alone": []}
    for n in range(rounds + 1):
        names = [f"Made {n}.{each}" for each in range(AT_ONCE)]
        round_of_all = (
            server.load((server.floor() for _ in count()), seconds, 1),
            server.load([form(server, browser, name) for name in names], float("inf"), 1),
            transactions(here, [f"{name} again" for name in names]),
        )
        if n:  # the first round only warms up
            for found, cost in zip(costs.values(), round_of_all, strict=True):
                found.append(cost)
        revoke_made(here)
    return costs


def transactions(here: Stage, names: Sequence[str]) -> Cost:
    """Generate keys as the form does, in this process."""
    revoke_made(here)
    cpu, times = time.process_time(), []
    for name in names:
        start = time.perf_counter()
        here.office.generate("ana", at=datetime.now(UTC), name=name)
        times.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    return Cost(len(names) / sum(times), 1000 * cpu / len(names), 1000 * statistics.median(times))


def revoke_made(here: Stage) -> None:
    """Make room for more keys."""
    with here.database.transaction() as session:
        ours = ApiKey.name.startswith("Made ") & ApiKey.revoked_at.is_(None)
        session.execute(update(ApiKey).where(ours).values(revoked_at=datetime.now(UTC)))


def form(server: Loaded, browser: Browser, name: str) -> bytes:
    """Write the request that generates a key."""
    answers = {"name": name, "environment": "live", "scopes": "tasks:read", "expires": "90d"}
    body = urlencode({"csrf_token": browser.token, **answers})
    headers = (f"Cookie: {browser.cookie}", "Content-Type: application/x-www-form-urlencoded")
    return server.request("POST", KEYS, *headers, body=body)


@click.command()
@click.option("--database", "names", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--rounds", default=9, help="Of all sorts.")
@click.option("--seconds", default=1.0, help="Of each measurement of the floor and of a list.")
def main(names: Sequence[str], rounds: int, seconds: float) -> None:
    """Print what the list and the form cost beside the floor."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in names:
        with stage(name) as here, loaded(here.url, here.instance) as server:
            browser = Browser(server.server, "ana@acme.test")
            click.echo(f"{name}, {circumstances()}")
            click.echo(table("1 connection", lists(here, server, browser, rounds, seconds)))
            click.echo(table("1 connection", generating(here, server, browser, rounds, seconds)))


if __name__ == "__main__":
    main()
