"""What the benchmarks with a running server share: its database, connections to each of its workers, a browser."""

import http.client
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode, urlsplit

from sqlalchemy.engine import make_url

from portal.demo import PASSWORD
from portal.settings import Settings
from portal.store.database import Database
from tests.databases import migrated_template
from tests.servers import Server, serving
from tests.services.office import Office

WORKERS = 4
_PATIENCE = 30  # seconds for any answer
_CSRF = re.compile(r'name="csrf_token"\s+value="([^"]+)"')


@dataclass(frozen=True)
class Stage:
    """A database of one's own with the demo in it, and the folder with the secrets that its server will use."""

    url: str
    instance: Path
    database: Database
    office: Office


@contextmanager
def stage(kind: str, disk: Path | None = None) -> Iterator[Stage]:
    """Make a database that is there only for one trial; a SQLite file may lie on a disk of one's own."""
    with migrated_template(kind) as template, template.copy() as url, TemporaryDirectory() as folder:
        if disk:
            shutil.copyfile(str(make_url(url).database), disk / "portal.db")
            url = f"sqlite:///{disk}/portal.db"
        settings = Settings.from_environ({"PORTAL_DATABASE_URL": url}, Path(folder))
        database = Database(url)
        office = Office(database, settings.keyring)
        yield Stage(url, Path(folder), database, office)
        office.close()
        database.close()


@contextmanager
def hosts(here: Stage, count: int = 1, **settings: str) -> Iterator[list[Server]]:
    """Serve a stage from so many hosts: each has a folder of its own and its share of the workers, all one secret."""
    secrets = {
        "PORTAL_SECRET_KEY": (here.instance / "secret_key").read_text().strip(),
        "PORTAL_KEY_PEPPERS": "local:" + (here.instance / "key_pepper").read_text().strip(),
        "PORTAL_WORKERS": str(WORKERS // count),
    }
    with ExitStack() as stack:
        servers = []
        for n in range(count):
            folder = here.instance / f"host-{n}"
            folder.mkdir()
            servers.append(stack.enter_context(serving(here.url, folder, **secrets, **settings)))
        yield servers


class Line:
    """One kept connection of a program that calls the API."""

    def __init__(self, server: Server, client: str = "bench/1", address: str = "127.0.0.1") -> None:
        host = urlsplit(server.url)
        self.port = int(host.port or 0)
        self.client = client
        self.answers: Counter[int] = Counter()  # by status
        self.retry_after = ""  # of the last answer
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, _PATIENCE, source_address=(address, 0))
        self.connection.connect()

    def call(self, text: str, path: str = "/api/v1/me", more: Mapping[str, str] | None = None) -> int:
        """Call with a key, and with `more` headers; give the status."""
        headers = {"Authorization": f"Bearer {text}", "User-Agent": self.client, **(more or {})}
        self.connection.request("GET", path, headers=headers)
        with self.connection.getresponse() as answer:
            answer.read()
        self.retry_after = answer.headers.get("Retry-After", "")
        self.answers[answer.status] += 1
        return answer.status

    def worker(self) -> int:
        """Find the process at the other end, in /proc: each worker takes its own share of the connections."""
        inode = _inode(self.port, self.connection.sock.getsockname()[1])
        for name in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):
                if str(name.readlink()) == f"socket:[{inode}]":
                    return int(name.parts[2])
        raise RuntimeError("No process holds the other end of this connection.")

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


def _inode(local: int, remote: int) -> str:
    """Name the socket from the server's port to a client's."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{local:04X}") and fields[2].endswith(f":{remote:04X}"):
            return fields[9]
    raise RuntimeError("The connection is not listed in /proc/net/tcp.")


def lines_to_all(
    server: Server,
    key: str,
    each: int = 1,
    client: str = "bench/1",
    address: str = "127.0.0.1",
    workers: int = WORKERS,
) -> list[Line]:
    """Open connections until every worker serves so many, a worker after the other; the surplus is closed again.

    Each takes a call, so the key's limits must be lifted. The first line's count of answers tells of the surplus too.
    """
    found: dict[int, list[Line]] = {}
    surplus: Counter[int] = Counter()
    for _ in range(100 * workers):
        line = Line(server, client, address)
        line.call(key)  # only then has a worker taken it
        lines = found.setdefault(line.worker(), [])
        if len(lines) < each:
            lines.append(line)
        else:
            surplus += line.answers
            line.close()
        if len(found) == workers and all(len(lines) == each for lines in found.values()):
            opened = [lines[n] for n in range(each) for lines in found.values()]
            opened[0].answers += surplus
            return opened
    raise RuntimeError(f"Only {len(found)} of {workers} workers took connections.")


class Browser:
    """Somebody who is signed in, with a browser without scripts."""

    def __init__(self, server: Server, email: str) -> None:
        self._host = urlsplit(server.url).netloc
        self._cookies: dict[str, str] = {}
        self._token = ""
        self.answered_at = 0.0  # the moment of the monotonic clock at which the last answer began to arrive
        self._connect()
        self.get("/login")
        status = self.post("/login", {"email": email, "password": PASSWORD})
        if status != 303:
            raise RuntimeError(f"{email} could not sign in: {status}")

    @property
    def cookie(self) -> str:
        """The header's value by which the server knows it."""
        return "; ".join(f"{name}={value}" for name, value in self._cookies.items())

    @property
    def token(self) -> str:
        """What a form of the page that was opened last must send along."""
        return self._token

    def get(self, path: str) -> str:
        """Open a page, and remember its form's token."""
        status, text = self._ask("GET", path)
        if status != 200:
            raise RuntimeError(f"{path} answered {status}: {text[:300]}")
        if found := _CSRF.search(text):
            self._token = found[1]
        return text

    def post(self, path: str, answers: dict[str, str] | None = None) -> int:
        """Send a form; give the status of its answer."""
        return self._ask("POST", path, {"csrf_token": self._token, **(answers or {})})[0]

    def form(self, path: str, answers: list[tuple[str, str]]) -> str:
        """Send a form; give the page that answers it."""
        status, text = self._ask("POST", path, [("csrf_token", self._token), *answers])
        if status != 200:
            raise RuntimeError(f"{path} answered {status}: {text[:2000]}")
        return text

    def _ask(
        self, method: str, path: str, answers: dict[str, str] | list[tuple[str, str]] | None = None
    ) -> tuple[int, str]:
        headers = {"Cookie": self.cookie}
        body = None
        if answers is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(answers)
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
        except ConnectionError:  # it was idle for long
            self._connect()
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
        with answer:
            self.answered_at = time.monotonic()
            text = answer.read().decode()
            for cookie in answer.headers.get_all("Set-Cookie") or []:
                name, _, value = cookie.partition(";")[0].partition("=")
                self._cookies[name] = value
            return answer.status, text

    def _connect(self) -> None:
        host, _, port = self._host.partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), _PATIENCE)


def lines_to_hosts(servers: Sequence[Server], key: str, each: int = 1) -> list[list[Line]]:
    """Open so many connections to every worker of every host; give them by host."""
    return [lines_to_all(server, key, each, workers=WORKERS // len(servers)) for server in servers]


def wait_until(moment: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


__all__ = ["WORKERS", "Browser", "Line", "Stage", "hosts", "lines_to_all", "lines_to_hosts", "stage", "wait_until"]
