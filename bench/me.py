"""What checking a key costs: `.venv/bin/python bench/me.py` prints GET /api/v1/me as a share of the floor.

The floor is a route without a check that answers the same JSON from the same app, server and request headers. Floor
and check take turns in one run, because machines drift; only their ratio means anything. Eight keep-alive
connections, 5,000 different keys, one server process; SQLite and PostgreSQL (from the test environment).
"""

import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.seed import add_keys  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from tests.databases import KINDS, migrated_template  # noqa: E402
from tests.servers import free_port, stop  # noqa: E402

CONNECTIONS = 8
IN_USE = 5_000
FLOOR, CHECK = "/api/v1/floor", "/api/v1/me"


@contextmanager
def serving(database_url: str, instance: Path) -> Iterator[str]:
    """Serve the portal with the floor route added (bench/floor.py) as it ships; yield its address."""
    port = free_port()
    environ = os.environ | {
        "PORT": str(port),
        "PORTAL_DATABASE_URL": database_url,
        "PORTAL_INSTANCE": str(instance),
    }
    process = subprocess.Popen([sys.executable, str(ROOT / "bench" / "floor.py")], cwd=ROOT, env=environ)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{url}/healthz", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        stop(process)


def load(url: str, path: str, keys: Sequence[str], seconds: float) -> float:
    """Keep eight connections busy with GET requests; give the 200s a second. Anything else raises."""
    host = urlsplit(url)
    requests = cycle(
        f"GET {path} HTTP/1.1\r\nHost: {host.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n".encode() for key in keys
    )
    with selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            connection = socket.create_connection((host.hostname, host.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(next(requests))
        done = 0
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            for ready, _ in selector.select():
                connection = ready.fileobj  # type: ignore[assignment]
                answer = connection.recv(65536)
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"{path} answered {answer[:300]!r}")
                body = answer.partition(b"\r\n\r\n")[2]
                length = int(re.search(rb"content-length: (\d+)", answer)[1])  # type: ignore[index]
                while len(body) < length:
                    body += connection.recv(65536)
                done += 1
                connection.sendall(next(requests))
        for ready in list(selector.get_map().values()):
            ready.fileobj.close()  # type: ignore[union-attr]
    return done / (now - start)


def compare(url: str, keys: Sequence[str], rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Load floor and check in turn; give the requests a second of each, round by round."""
    load(url, CHECK, keys, seconds)
    load(url, FLOOR, keys, seconds)
    pairs = []
    for n in range(rounds):
        paths = (FLOOR, CHECK) if n % 2 else (CHECK, FLOOR)
        figures = {path: load(url, path, keys, seconds) for path in paths}
        pairs.append((figures[FLOOR], figures[CHECK]))
    return [floor for floor, _ in pairs], [check for _, check in pairs]


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--keys", "counts", multiple=True, type=int, default=(1_000, 100_000), help="Stored keys.")
@click.option("--rounds", default=9, help="Pairs of floor and check.")
@click.option("--seconds", default=1.0, help="Of each measurement.")
def main(kinds: Sequence[str], counts: Sequence[int], rounds: int, seconds: float) -> None:
    """Print the share of the floor that GET /api/v1/me reaches."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    click.echo("database    stored keys  floor req/s  check req/s  share of the floor, median [lowest..highest]")
    for kind in kinds:
        with migrated_template(kind) as template, tempfile.TemporaryDirectory() as folder:
            settings = Settings.from_environ({"PORTAL_DATABASE_URL": template.url}, Path(folder))
            stored = 0
            keys: list[str] = []
            for count in sorted(counts):
                database = Database(template.url)
                adding = add_keys(database, settings.keyring, count - stored)
                with click.progressbar(adding, length=count - stored, label="adding keys", file=sys.stderr) as progress:
                    new = [plain.reveal() for plain in progress]
                database.close()
                stored = count
                every = max(1, len(new) // IN_USE)
                keys = new[::every][:IN_USE]
                with serving(template.url, Path(folder)) as url:
                    floors, checks = compare(url, keys, rounds, seconds)
                shares = sorted(check / floor for floor, check in zip(floors, checks, strict=True))
                click.echo(
                    f"{kind:<11} {count:>11,}  {statistics.median(floors):>11,.0f}  {statistics.median(checks):>11,.0f}"
                    f"  {statistics.median(shares):.2f} [{shares[0]:.2f}..{shares[-1]:.2f}]"
                )


if __name__ == "__main__":
    main()
