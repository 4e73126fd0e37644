"""What a refusal costs: `.venv/bin/python bench/refusals.py` prints GET /api/v1/me with bad keys beside the floor.

Floor (a route without a check, with a good key's header), good key and each sort of bad key take turns over eight kept
connections to one worker with 100,000 stored keys: no key at all by its form, a mistyped one whose checksum is off, and
a whole one that nobody was given. From this machine's own address: such keys are not limited as those of a network are.
SQLite and PostgreSQL (from the test environment).
"""

import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import CONNECTIONS, FLOOR, Kind, Loaded, circumstances, loaded, table  # noqa: E402
from bench.seed import add_keys, multiply  # noqa: E402
from portal.rules.access import Environment  # noqa: E402
from portal.rules.credentials import KeyFormat  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from tests.databases import KINDS, migrated_template  # noqa: E402

IN_USE = 5_000


def kinds(server: Loaded, keys: Sequence[str]) -> dict[str, Kind]:
    """Write requests with good keys and with what is made of them."""
    other = {"a": "b"}
    sorts = {
        "malformed": [key[:20] for key in keys],
        "mistyped": [key[:12] + other.get(key[12], "a") + key[13:] for key in keys],
        "unknown": [KeyFormat().mint(Environment.LIVE).reveal() for _ in keys],
    }
    asked = {
        FLOOR: Kind([server.floor(f"Authorization: Bearer {key}") for key in keys]),
        "good": Kind([server.get("/api/v1/me", f"Authorization: Bearer {key}") for key in keys]),
    }
    for sort, texts in sorts.items():
        requests = [server.get("/api/v1/me", f"Authorization: Bearer {text}") for text in texts]
        asked[sort] = Kind(requests, 401)
    return asked


@click.command()
@click.option("--database", "names", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--rounds", default=9, help="Of all sorts.")
@click.option("--seconds", default=1.0, help="Of each measurement.")
def main(names: Sequence[str], rounds: int, seconds: float) -> None:
    """Print what refusals cost beside the floor."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in names:
        with migrated_template(name) as template, tempfile.TemporaryDirectory() as folder:
            keyring = Settings.from_environ({"PORTAL_DATABASE_URL": template.url}, Path(folder)).keyring
            database = Database(template.url)
            keys = [plain.reveal() for plain in add_keys(database, keyring, IN_USE)]
            multiply(database, 20)
            database.close()
            with loaded(template.url, Path(folder)) as server:
                costs = server.compare(kinds(server, keys), rounds, seconds)
            click.echo(f"{name}, {circumstances()}\n{table(f'{CONNECTIONS} connections', costs)}")


if __name__ == "__main__":
    main()
