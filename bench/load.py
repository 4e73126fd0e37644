"""What the benchmarks that send load share: the server with the floor, its load, and what its answers cost.

Requests of several kinds take turns in one run, because machines drift: only what a kind costs beside the floor, a
route without a check in the same server, means anything. Where others use the machine too, the server's CPU time (of
all its processes, from /proc) tells more than answers a second.
"""

import os
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.servers import Server, serving  # noqa: E402

CONNECTIONS = 8
FLOOR = "floor"
_TICK = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What answers of one kind cost."""

    rate: float  # answers a second
    cpu: float  # milliseconds of the server's CPU time, an answer
    p50: float  # milliseconds from a request to the end of its answer


class Kind(NamedTuple):
    """Requests that cost the same, and the status of all their answers."""

    requests: Sequence[bytes]
    status: int = 200


class Loaded:
    """A server, and the CPU time of its processes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.host = urlsplit(server.url)
        self._processes = [path.parent for path in Path("/proc").glob("[0-9]*/stat") if _is_of(path, server.session)]

    def request(self, method: str, path: str, *headers: str, body: str = "") -> bytes:
        """Write a request."""
        length = (f"Content-Length: {len(body)}",) if body else ()
        return "\r\n".join(
            (f"{method} {path} HTTP/1.1", f"Host: {self.host.netloc}", *headers, *length, "", body)
        ).encode()

    def get(self, path: str, *headers: str) -> bytes:
        """Write a GET request."""
        return self.request("GET", path, *headers)

    def floor(self, *headers: str) -> bytes:
        """Write the request that is answered without a check."""
        return self.get("/api/v1/floor", *headers)

    def cpu(self) -> float:
        """Give the seconds of CPU time that all its processes have taken."""
        return cpu_of(self._processes)

    def worker_memory(self) -> tuple[float, float]:
        """Give the megabytes that its one worker, the largest of its processes, holds: in all, and for itself alone."""
        return max(map(_memory, self._processes))

    def load(self, requests: Iterable[bytes], seconds: float, connections: int, status: int = 200) -> Cost:
        """Keep connections busy until the time or the requests run out. Raises for another status."""
        waiting, expected, times = iter(requests), f"HTTP/1.1 {status}".encode(), []
        clock = time.perf_counter
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            sent = {}
            opened = [
                stack.enter_context(socket.create_connection((self.host.hostname, self.host.port)))
                for _ in range(connections)
            ]
            cpu, start = self.cpu(), clock()
            for connection in opened:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                connection.sendall(next(waiting))
                sent[connection] = clock()
            while sent:
                for ready, _ in selector.select():
                    connection = ready.fileobj  # type: ignore[assignment]
                    _read(connection, expected)
                    now = clock()
                    times.append(now - sent.pop(connection))
                    request = next(waiting, None) if now - start < seconds else None
                    if request:
                        connection.sendall(request)
                        sent[connection] = now
            took, cpu = clock() - start, self.cpu() - cpu
        return Cost(len(times) / took, 1000 * cpu / len(times), 1000 * statistics.median(times))

    def compare(
        self, kinds: Mapping[str, Kind], rounds: int, seconds: float, connections: int = CONNECTIONS
    ) -> dict[str, list[Cost]]:
        """Load with one kind after the other, round by round, each time in the opposite order."""
        endless = {name: cycle(kind.requests) for name, kind in kinds.items()}
        costs: dict[str, list[Cost]] = {name: [] for name in kinds}
        for n in range(-1, rounds):  # the first round only warms up
            for name in list(kinds)[:: 1 if n % 2 else -1]:
                cost = self.load(endless[name], seconds, connections, kinds[name].status)
                if n >= 0:
                    costs[name].append(cost)
        return costs


@contextmanager
def loaded(database_url: str, instance: Path, **settings: str) -> Iterator[Loaded]:
    """Serve the portal as it ships, with one worker and with the floor's route added (bench/floor.py)."""
    command = (str(ROOT / "bench" / "floor.py"),)
    with serving(database_url, instance, command, PORTAL_WORKERS="1", **settings) as server:
        yield Loaded(server)


def table(title: str, costs: Mapping[str, Sequence[Cost]]) -> str:
    """Lay out what answers cost, and beside the floor: medians of what each round gave."""
    lines = [f"{title:<34}answers/s  x floor [lowest..highest]    CPU ms  x floor    p50 ms  - floor"]
    floors = costs[FLOOR]
    for name, found in costs.items():
        line = f"  {name:<32}{_median(cost.rate for cost in found):>9,.0f}  "
        if name == FLOOR:
            line += f"{'':26}  {_median(cost.cpu for cost in found):>8.3f}  {'':7}"
            line += f"  {_median(cost.p50 for cost in found):>8.2f}"
        else:
            pairs = list(zip(found, floors, strict=True))
            shares = sorted(cost.rate / floor.rate for cost, floor in pairs)
            share = f"{statistics.median(shares):.2f} [{shares[0]:.2f}..{shares[-1]:.2f}]"
            line += f"{share:<26}  {_median(cost.cpu for cost in found):>8.3f}"
            line += f"  {_median(cost.cpu / floor.cpu for cost, floor in pairs):>7.2f}"
            line += f"  {_median(cost.p50 for cost in found):>8.2f}"
            line += f"  {_median(cost.p50 - floor.p50 for cost, floor in pairs):>+7.2f}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def cpu_of(processes: Iterable[Path]) -> float:
    """Give the seconds of CPU time that processes have taken, each named by its folder in /proc."""
    return sum(sum(map(int, stat_of(path / "stat")[11:13])) for path in processes) / _TICK


def circumstances() -> str:
    """Say how busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _median(figures: Iterable[float]) -> float:
    return statistics.median(figures)


def _read(connection: socket.socket, expected: bytes) -> None:
    """Read one whole answer."""
    answer = connection.recv(65536)
    if not answer.startswith(expected):
        raise RuntimeError(f"answered {answer[:2000]!r}")
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():  # as an app answers that does not tell the length
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += connection.recv(65536)
        return
    left = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]) - len(body)
    while left > 0:
        left -= len(connection.recv(65536))


def _is_of(path: Path, session: int) -> bool:
    try:
        return int(stat_of(path)[3]) == session
    except OSError:  # it ended meanwhile
        return False


def stat_of(path: Path) -> list[str]:
    """Read a process's /proc/<pid>/stat from its third field on: state, parent, group, session …"""
    return path.read_text().rpartition(")")[2].split()


def _memory(process: Path) -> tuple[float, float]:
    kilobytes = {name: int(rest.split()[0]) for name, rest in _smaps(process)}
    return kilobytes["Rss"] / 1024, (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024


def _smaps(process: Path) -> Iterator[tuple[str, str]]:
    for line in (process / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        yield name, rest
