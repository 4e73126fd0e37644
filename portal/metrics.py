"""Numbers for those who watch the portal, as Prometheus reads them; exact however many processes serve.

Each process adds to a file of its own that is mapped into memory, so that counting is an addition and nobody waits for
anybody; whoever is asked adds all files up. `flask serve` makes the folder and hands it on by the environment. Without
one (another server, a command, a test) a process counts by itself and tells only of itself.

The names of series are ours (endpoints, reasons), never what somebody sends, so their number is bounded.
"""

import logging
import mmap
import os
import platform
import shutil
import threading
import time
import tomllib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

_log = logging.getLogger(__name__)
FOLDER = "PORTAL_METRICS_FOLDER"  # an environment variable from `serve` to its workers, no setting
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)  # seconds
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_KINDS = {
    "latchkey_requests_total": ("counter", "Answers by endpoint, method and class of status."),
    "latchkey_request_seconds": ("histogram", "From the moment a request was there in full to its answer, by area."),
    "latchkey_refused_total": ("counter", "Requests to the API that were refused, by reason."),
    "latchkey_key_reads_total": ("counter", "Reads of the database by the check of keys."),
    "latchkey_key_reconnects_total": ("counter", "Connections that the check of keys opened anew."),
    "latchkey_usage_flushes_total": ("counter", "Batches of usage: written, failed (tried again), lost."),
    "latchkey_usage_lag_seconds": ("gauge", "How long the oldest usage has waited since it could not be written."),
    "latchkey_redis_up": ("gauge", "1 while Redis answers every process that asks, 0 while it does not."),
    "latchkey_processes": ("gauge", "Processes that serve and have counted something."),
    "latchkey_build_info": ("gauge", "What runs here."),
}
_LEAST = frozenset({"latchkey_redis_up"})  # of the processes' gauges the smallest is told, of others the largest

_SERIES = 4_000  # that one file holds
_SPARE = _SERIES - len(BUCKETS) - 1  # what finds no place, a histogram too, counts from here on; nobody reads that
_NAME = 248  # bytes
_VALUES = 8 * (_SERIES + 1)  # bytes: how many names there are, then a number for each
_SIZE = _VALUES + _NAME * _SERIES
_opening = threading.Lock()


class Numbers:
    """The numbers of one process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._memory = _shared(folder) if folder else bytearray(_SIZE)
        self._values = memoryview(self._memory)[:_VALUES].cast("d")
        self._places: dict[str, int] = {}
        self._ways: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._folder = folder

    def add(self, name: str, labels: str = "") -> None:
        """Count."""
        with self._lock:
            self._values[self._place(f"{name}|{labels}")] += 1

    def set(self, name: str, value: float) -> None:
        """Say what a gauge shows."""
        with self._lock:
            self._values[self._place(f"{name}|")] = value

    def request(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count an answer and the time that it took."""
        way = (endpoint, method, status // 100)
        with self._lock:
            places = self._ways.get(way) or self._new_way(way)
            self._values[places[0]] += 1
            self._values[places[1] + bisect_left(BUCKETS, seconds)] += 1
            self._values[places[1] + len(BUCKETS) + 1] += seconds

    def text(self) -> str:
        """Write what all processes counted (Prometheus' text format, 0.0.4)."""
        sums: dict[str, dict[str, float]] = defaultdict(dict)
        processes = 0
        for is_alive, series in self._every():
            processes += is_alive
            for key, value in series:
                name, _, labels = key.partition("|")
                told = sums[name]
                if _KINDS[name][0] != "gauge":
                    told[labels] = told.get(labels, 0) + value
                elif is_alive:
                    told[labels] = (min if name in _LEAST else max)(told.get(labels, value), value)
        sums["latchkey_processes"][""] = processes
        sums["latchkey_build_info"][f'version="{version()}",python="{platform.python_version()}"'] = 1
        lines = []
        for name, (kind, says) in _KINDS.items():
            if name in sums:
                lines += [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]
                write = _histogram if kind == "histogram" else _plain
                lines += write(name, sums[name])
        return "\n".join(lines) + "\n"

    def _new_way(self, way: tuple[str, str, int]) -> tuple[int, int]:
        endpoint, method, status = way
        known = method if method in _METHODS else "other"
        labels = f'endpoint="{endpoint}",method="{known}",status="{status}xx"'
        area = endpoint.partition(".")[0]
        parts = [self._place(f"latchkey_request_seconds|{area}|{n}") for n in range(len(BUCKETS) + 2)]
        places = self._place(f"latchkey_requests_total|{labels}"), parts[0]
        if method == known:  # what anybody may invent is not remembered
            self._ways[way] = places
        return places

    def _place(self, name: str) -> int:
        found = self._places.get(name)
        if found is None:
            written = name.encode()
            found = len(self._places) + 1
            if found >= _SPARE or len(written) > _NAME:
                return _SPARE
            start = _VALUES + _NAME * (found - 1)
            self._memory[start : start + len(written)] = written
            self._places[name] = found
            self._values[0] = found  # only now do others read it
        return found

    def _every(self) -> Iterator[tuple[bool, list[tuple[str, float]]]]:
        """List the series of every process that has a file, and whether it is alive."""
        if self._folder is None:
            yield True, _read(self._memory)
            return
        for path in sorted(self._folder.glob("*.numbers")):
            memory = path.read_bytes()
            if len(memory) == _SIZE:  # else its process is about to begin
                yield _is_alive(int(path.name.partition("-")[0])), _read(memory)


def _shared(folder: Path) -> mmap.mmap:
    """Map a file of this process's own, allocated in full: a disk that is full must be met here, not in a request."""
    path = folder / f"{os.getpid()}-{time.time_ns()}.numbers"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(handle, 0, _SIZE)
        return mmap.mmap(handle, _SIZE)
    finally:
        os.close(handle)


def _read(memory: bytes | bytearray | mmap.mmap) -> list[tuple[str, float]]:
    values = memoryview(memory)[:_VALUES].cast("d")
    names = [
        bytes(memory[start : start + _NAME]).rstrip(b"\0").decode()
        for start in range(_VALUES, _VALUES + _NAME * int(values[0]), _NAME)
    ]
    return [(name, values[n]) for n, name in enumerate(names, 1)]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _plain(name: str, series: dict[str, float]) -> Iterator[str]:
    for labels, value in sorted(series.items()):
        yield f"{name}{{{labels}}} {value:.17g}" if labels else f"{name} {value:.17g}"


def _histogram(name: str, series: dict[str, float]) -> Iterator[str]:
    for area in sorted({labels.partition("|")[0] for labels in series}):
        count = 0.0
        for n, bound in enumerate([*BUCKETS, "+Inf"]):
            count += series.get(f"{area}|{n}", 0)  # a new area's parts come one by one
            yield f'{name}_bucket{{area="{area}",le="{bound}"}} {count:.17g}'
        yield f'{name}_sum{{area="{area}"}} {series.get(f"{area}|{len(BUCKETS) + 1}", 0):.17g}'
        yield f'{name}_count{{area="{area}"}} {count:.17g}'


@cache
def version() -> str:
    """Give the version of this checkout."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    return str(project["version"])


# --- What the portal tells ------------------------------------------------------------------------------------------


@cache
def _numbers() -> Numbers:
    """Open this process's numbers with the first that it counts.

    Not before the server has started it: what the server's own process opened, all that it forks would take for theirs.
    """
    with _opening:  # or threads that count first at one time would open several
        return _open()


@cache
def _open() -> Numbers:
    folder = os.environ.get(FOLDER)
    try:
        return Numbers(Path(folder) if folder else None)
    except OSError:
        _log.exception("no room for numbers: this process counts by itself")
        return Numbers()


@contextmanager
def shared() -> Iterator[None]:
    """Give the processes that are started meanwhile a folder to count in together, in memory where there is room."""
    shm = Path("/dev/shm")  # noqa: S108 - the folder below is made private
    place = shm if os.access(shm, os.W_OK) else Path(gettempdir())
    for left in place.glob("latchkey-*-*"):  # by one that was killed
        pid = left.name.split("-")[1]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"latchkey-{os.getpid()}-", dir=place) as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]


def request(endpoint: str, method: str, status: int, seconds: float) -> None:
    """Count an answer; `endpoint` is the view's name, or a word of ours for what has none."""
    _numbers().request(endpoint, method, status, seconds)


def refused(reason: str) -> None:
    """Count a request to the API that was refused: why a key was refused, or `rate_limit_exceeded`."""
    _numbers().add("latchkey_refused_total", f'reason="{reason}"')


def key_read() -> None:
    """Count a read of the database by the check of keys."""
    _numbers().add("latchkey_key_reads_total")


def key_reconnected() -> None:
    """Count a connection that the check of keys had to open anew."""
    _numbers().add("latchkey_key_reconnects_total")


def usage_flushed(result: str, lag: float) -> None:
    """Count a batch of usage that was `written`, `failed` or `lost`; `lag` is how many seconds one waits by now."""
    _numbers().add("latchkey_usage_flushes_total", f'result="{result}"')
    _numbers().set("latchkey_usage_lag_seconds", lag)


def redis_is_up(is_up: bool) -> None:
    """Say whether Redis answers this process; to be called when that changes."""
    _numbers().set("latchkey_redis_up", is_up)


def text() -> str:
    """Write everything, for GET /metrics."""
    return _numbers().text()
