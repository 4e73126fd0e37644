"""Starts the server that `make run` starts, as a process of its own, for tests that come in through HTTP."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from wsgiref.types import WSGIApplication, WSGIEnvironment

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import get_input_stream

ROOT = Path(__file__).parent.parent
START_SECONDS = 30
STOP_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """A running portal: where it listens, what it stores in, what it printed."""

    url: str
    database_url: str
    instance: Path
    log: Path
    session: int = 0  # of the system, that all its processes are of


class _Quiet(WSGIRequestHandler):
    """Keeps connections open, as the shipped server does, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def make_environ(self) -> WSGIEnvironment:
        environ = super().make_environ()
        environ["wsgi.input"] = get_input_stream(environ)  # ends where the body does
        return environ

    def log(self, type: str, message: str, *args: object) -> None:
        pass


@contextmanager
def listening(port: int, app: WSGIApplication) -> Iterator[None]:
    """Serve from threads of this process, for tests of what is on the screen: to start a server takes seconds."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@contextmanager
def serving(
    database_url: str, instance: Path, command: Sequence[str] = ("-m", "flask", "serve"), **settings: str
) -> Iterator[Server]:
    """Serve the database on a free loopback port, stop by SIGTERM; `settings` are further environment variables."""
    port = free_port()
    log_path = instance / "server.log"
    ours = {"PORT": str(port), "PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(instance)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PORTAL_")}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=inherited | ours | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its workers can then be ended with it, should it not stop by itself
        )
    server = Server(f"http://127.0.0.1:{port}", database_url, instance, log_path, process.pid)
    try:
        wait_until_healthy(server, process)
        yield server
    finally:
        stop(process)


def wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Return once GET /healthz answers 200; raise with the server's output when it ends or takes too long."""
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with suppress(OSError), urllib.request.urlopen(f"{server.url}/healthz", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    state = "did not answer /healthz" if process.poll() is None else f"ended with status {process.returncode}"
    raise RuntimeError(f"The server {state}. It printed:\n{server.log.read_text(errors='replace')}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop; end its whole process group when it does not."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Below 32768, where the kernel hands out none for outgoing connections. Between finding a port free and listening on it
# goes a while: so each process has its own ports, and hands out none twice. Else one hears somebody else's server.
_PROCESSES = 16
_OURS = range(20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _PROCESSES, 32_000, _PROCESSES)
_PORTS = cycle(random.sample(_OURS, len(_OURS)))


def free_port() -> int:
    """Find a port that nobody listens on."""
    while True:
        port = next(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
