"""The configurations in deploy/, run by the real nginx and Caddy in front of the served portal (T-57)."""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from portal.rules.access import AccessLevel
from portal.rules.credentials import PlainKey
from portal.settings import Settings
from portal.store.database import Database
from portal.store.models import ApiKey, Usage
from tests.conftest import lacking
from tests.databases import Template
from tests.servers import ROOT, Server, free_port, serving
from tests.services.office import Office

pytestmark = pytest.mark.once
DEPLOY = ROOT / "deploy"
PROXIES = ("nginx", "caddy")
AUTH = ("Workspace", "Member", "Key", "Scopes", "Environment")
APP = "tasks"  # that takes the place of `stock`


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)["error"]
        return found


def ask(port: int, host: str, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    """Send a request to a proxy; headers are named with `__` for `_` and `_` for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    named = {name.replace("__", "\0").replace("_", "-").replace("\0", "_"): value for name, value in headers.items()}
    connection.request(method, path, headers={"Host": host, **named})
    with connection.getresponse() as answer:
        said: dict[str, str] = {}
        for name, value in answer.getheaders():  # of a header that came twice both values, joined as RFC 9110 has it
            said[name.lower()] = f"{said[name.lower()]}, {value}" if name.lower() in said else value
        found = Answer(answer.status, said, answer.read().decode())
    connection.close()
    return found


class Backend(ThreadingHTTPServer):
    """Somebody's service, which answers with the headers that reached it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.hits = 0
        super().__init__(("127.0.0.1", 0), _Echo)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Backend)
        self.server.hits += 1
        status = 500 if self.path == "/broken" else 200
        body = json.dumps([[name, value] for name, value in self.headers.items()]).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_HEAD = do_GET  # noqa: N815 - the library's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@dataclass
class Gate:
    """A proxy with the portal and a protected service behind it."""

    port: int
    backend: Backend
    portal: Server
    keys: dict[str, str]
    database: Database
    office: Office
    sandbox: Backend | None  # None: there is none, as in the files as they are

    def get(self, key: str | None = None, path: str = "/", method: str = "GET", **headers: str) -> Answer:
        bearer = {"Authorization": f"Bearer {self.keys.get(key, key)}"} if key else {}
        return ask(self.port, "stock.example.org", path, method, **bearer, **headers)


@contextmanager
def proxy(name: str, config: str, folder: Path, port: int) -> Iterator[None]:
    """Run a proxy with a configuration until the end of the block."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        lacking(f"{name} is not installed: apt-get install nginx-light caddy")
    path = folder / f"{name}.conf"
    if name == "nginx":
        places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy"))
        path.write_text(
            f"daemon off; {'user root;' if os.getuid() == 0 else ''} pid {folder}/pid; error_log {folder}/errors;\n"
            f"events {{}}\nhttp {{ access_log off; {places}\n{config}\n}}\n"
        )
        command = [program, "-p", str(folder), "-e", str(folder / "errors"), "-c", str(path)]
    else:
        path.write_text("{\n\tadmin off\n\tauto_https off\n}\n" + config)
        command = [program, "run", "--config", str(path), "--adapter", "caddyfile"]
    homes = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def fitted(path: str, changes: Mapping[str, str]) -> str:
    """Read a configuration of ours with its example's places exchanged, each of which must be in it."""
    text = (DEPLOY / path).read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module", params=PROXIES)
def gate(
    request: pytest.FixtureRequest, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gate]:
    """A service that lets in who may read or write tasks, behind the files as they are."""
    with standing(str(request.param), template, tmp_path_factory.mktemp("gate")) as made:
        yield made


@contextmanager
def standing(name: str, template: Template, folder: Path, *, has_sandbox: bool = False) -> Iterator[Gate]:
    """Serve the portal, a service, a proxy before both, and a sandbox service if there is to be one."""
    backend, sandbox = Backend(), Backend()
    for each in (backend, sandbox):
        threading.Thread(target=each.serve_forever, daemon=True).start()
    with template.copy() as url:
        office = Office(Database(url), Settings.from_environ({"PORTAL_DATABASE_URL": url}, folder).keyring)

        def make(who: str, *scopes: str, **more: str) -> tuple[Any, PlainKey]:
            label = f"Key {len(keys)} of {who}"
            return office.generate(who, at=datetime.now(UTC), scopes=list(scopes), name=label, **more)

        keys: dict[str, str] = {}
        keys["good"] = make("lea", "tasks:read", "tasks:write")[1].reveal()
        keys["reader"] = make("lea", "tasks:read")[1].reveal()
        keys["sandbox"] = make("lea", "tasks:read", environment="test")[1].reveal()
        keys["elsewhere"] = make("max", "leads:read")[1].reveal()
        keys["withdrawn"] = make("rio", "tasks:read")[1].reveal()
        office.grant("rio", "operations", AccessLevel.NONE)
        dead, text = make("lea", "tasks:read")
        keys["dead"] = text.reveal()
        office.set_key(dead.id, revoked_at=office.actor("lea").at)
        slow, text = make("lea", "tasks:read")
        keys["slow"] = text.reveal()
        with office.database.transaction() as session:
            session.execute(update(ApiKey).where(ApiKey.public_id == slow.id).values(rate_per_minute=2))
        with serving(url, folder, PORTAL_TRUSTED_PROXIES="127.0.0.1") as portal:
            port, at = free_port(), portal.url.removeprefix("http://")
            common = {"127.0.0.1:5000": at, "127.0.0.1:8000": f"127.0.0.1:{backend.port}", "stock:": f"{APP}:"}
            if name == "nginx":
                common["listen 127.0.0.1:8001"] = f"listen 127.0.0.1:{(nowhere := free_port())}"
                common["server 127.0.0.1:8001"] = f"server 127.0.0.1:{sandbox.port if has_sandbox else nowhere}"
                config = fitted(
                    "nginx/protect.conf", {**common, "listen 80;": f"listen 127.0.0.1:{port};"} | PORTAL_NAME
                )
            else:
                if has_sandbox:
                    common["# reverse_proxy 127.0.0.1:8001"] = f"reverse_proxy 127.0.0.1:{sandbox.port}"
                ours = {"stock.example.org {": f"http://stock.example.org:{port} {{"}
                ours["\nkeys.example.org {"] = f"\nhttp://keys.example.org:{port} {{"
                config = fitted("caddy/Caddyfile", {**common, **ours, "Host keys.example.org": "Host 127.0.0.1"})
            with proxy(name, config, folder, port):
                yield Gate(port, backend, portal, keys, office.database, office, sandbox if has_sandbox else None)
        office.close()
        office.database.close()
    for each in (backend, sandbox):
        each.shutdown()
        each.server_close()


PORTAL_NAME = {"Host           keys.example.org": "Host 127.0.0.1"}


def test_a_good_key_passes_and_the_service_hears_whose_it_is(gate: Gate) -> None:
    answer = gate.get("good", "/anything?at=all")
    assert answer.status == 200
    reached = {name.lower(): value for name, value in json.loads(answer.text)}
    assert reached["x-auth-key"].startswith("key_")
    assert reached["x-auth-member"].startswith("mem_")
    assert reached["x-auth-workspace"].startswith("ws_")
    assert (reached["x-auth-scopes"], reached["x-auth-environment"]) == ("tasks:read tasks:write", "live")
    assert "authorization" not in reached
    assert gate.keys["good"] not in answer.text


def test_a_method_that_writes_needs_the_scope_for_writing(gate: Gate) -> None:
    assert gate.get("reader").status == 200
    refused = gate.get("reader", method="POST", Content_Length="0")
    assert (refused.status, refused.error["requiredScope"]) == (403, "tasks:write")
    assert gate.get("good", method="POST", Content_Length="0").status == 200


def test_a_sandbox_key_never_reaches_the_live_service(gate: Gate) -> None:
    hits = gate.backend.hits
    for forged in ({}, {"X_Auth_Environment": "live"}, {"X__Auth__Environment": "live"}):
        refused = gate.get("sandbox", "/anything?at=all", **forged)
        assert refused.status == 403
        assert (refused.error["type"], refused.error["code"]) == ("authorization_error", "no_sandbox")
        assert refused.headers["content-type"] == "application/json"
        assert json.loads(refused.text)["meta"]["requestId"].startswith("req_")
    assert gate.backend.hits == hits


@pytest.mark.parametrize("name", PROXIES)
def test_a_sandbox_key_reaches_a_sandbox_of_ones_own(name: str, template: Template, tmp_path: Path) -> None:
    with standing(name, template, tmp_path, has_sandbox=True) as gate:
        assert gate.sandbox
        answer = gate.get("sandbox", "/anything?at=all")
        assert (answer.status, gate.sandbox.hits, gate.backend.hits) == (200, 1, 0)
        reached = {header.lower(): value for header, value in json.loads(answer.text)}
        assert (reached["x-auth-environment"], "authorization" in reached) == ("test", False)
        assert gate.get("good").status == 200
        assert (gate.sandbox.hits, gate.backend.hits) == (1, 1)
        assert gate.get("sandbox", method="POST", Content_Length="0").status == 403
        assert gate.sandbox.hits == 1


def test_who_may_not_is_told_so_and_the_service_is_not_asked(gate: Gate) -> None:
    hits = gate.backend.hits
    for key, status, code, challenge, words in (
        (None, 401, "missing_key", "Bearer realm=", "Send your key as: Authorization"),
        ("dead", 401, "invalid_key", 'error="invalid_token"', "This key cannot be used."),
        ("nonsense", 401, "malformed_key", 'error="invalid_token"', "Send one whole key"),
        ("elsewhere", 403, "missing_scope", 'error="insufficient_scope", scope="tasks:read"', "The key lacks"),
        ("withdrawn", 403, "access_withdrawn", 'error="insufficient_scope"', ("The key has", "The key was given")),
    ):
        refused = gate.get(key)
        assert (refused.status, refused.error["code"]) == (status, code), key
        assert challenge in refused.headers["www-authenticate"]
        assert refused.headers["www-authenticate"].count("Bearer") == 1
        assert refused.error["type"] == {401: "authentication_error", 403: "authorization_error"}[status]
        assert refused.headers["x-request-id"].startswith("req_")
        assert refused.error["message"].startswith(words)
        assert ("/w/acme/api/keys/new?from=key_" in refused.error.get("fixUrl", "")) == (code == "missing_scope")
    assert gate.backend.hits == hits


def test_who_asks_too_often_is_told_when_to_come_back(gate: Gate) -> None:
    statuses = [gate.get("slow") for _ in range(3)]
    assert [answer.status for answer in statuses] == [200, 200, 429]
    assert 1 <= int(statuses[2].headers["retry-after"]) <= 61
    assert statuses[2].error["type"] == "rate_limit_error"


def test_what_a_client_says_of_itself_never_reaches_the_service(gate: Gate) -> None:
    forged: dict[str, str] = {}
    for name in AUTH:
        forged |= {f"X_Auth_{name}": "forged", f"X__Auth__{name}": "forged", f"X_Auth__{name}": "forged"}
    forged |= {f"X_Forwarded_{name}": "6.6.6.6" for name in ("For", "Proto", "Host", "Port")}
    forged |= {"X__Forwarded__For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    answer = gate.get("good", **forged)
    assert answer.status == 200
    assert "forged" not in answer.text
    assert "6.6.6.6" not in answer.text
    assert gate.get(None, **forged).status == 401


def test_a_client_cannot_have_a_header_taken_out_as_one_of_the_connection(gate: Gate) -> None:
    """RFC 9110, section 7.6.1: what `Connection` names goes no further than the next hop."""
    for named in (", ".join(f"X-Auth-{name}" for name in AUTH), "x-auth-key", "keep-alive,X-AUTH-ENVIRONMENT"):
        answer = gate.get("good", Connection=named)
        reached = {name.lower() for name, _ in json.loads(answer.text)}
        assert (answer.status, {f"x-auth-{name.lower()}" for name in AUTH} - reached) == (200, set()), named


def test_an_error_of_the_service_is_not_taken_for_one_of_the_key(gate: Gate) -> None:
    answer = gate.get("good", "/broken")
    assert (answer.status, "x-auth-key" in answer.text.lower()) == (500, True)


def test_the_clients_own_address_is_what_the_portal_notes(gate: Gate) -> None:
    gate.get("good", X_Forwarded_For="6.6.6.6", X__Forwarded__For="6.6.6.6", User_Agent="noted/1")
    asked, noted = select(Usage.address).where(Usage.client == "noted/1"), list[str]()
    for _ in range(200):  # usage is written down every second
        with gate.database.reading() as session:
            noted = list(session.scalars(asked))
        if noted:
            break
        time.sleep(0.1)
    assert noted == ["127.0.0.1"]


def test_without_the_portal_nobody_passes(tmp_path: Path) -> None:
    backend = Backend()
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    for name in PROXIES:
        port, nobody = free_port(), free_port()
        common = {"127.0.0.1:5000": f"127.0.0.1:{nobody}", "127.0.0.1:8000": f"127.0.0.1:{backend.port}"}
        if name == "nginx":
            places = {"listen 80;": f"listen 127.0.0.1:{port};", "127.0.0.1:8001": f"127.0.0.1:{free_port()}"}
            config = fitted("nginx/protect.conf", common | places)
        else:
            sites = {f"\n{site}.example.org {{": f"\nhttp://{site}.example.org:{port} {{" for site in ("stock", "keys")}
            config = fitted("caddy/Caddyfile", {**common, **sites})
        folder = tmp_path / name
        folder.mkdir()
        with proxy(name, config, folder, port):
            for headers in ({}, {"Authorization": "Bearer anything"}):
                answer = ask(port, "stock.example.org", **headers)
                assert answer.status in {502, 503}, name
                assert name != "nginx" or answer.headers["retry-after"]
    assert backend.hits == 0
    backend.shutdown()
    backend.server_close()


# --- The portal itself ----------------------------------------------------------------------------------------------

SECRETS = {"PORTAL_SECRET_KEY": "0123456789abcdef" * 4, "PORTAL_KEY_PEPPERS": "a:" + "fedcba9876543210" * 4}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for keys.example.org that nobody vouches for."""
    if shutil.which("openssl") is None:
        lacking("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    asked = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=keys.example.org", "-keyout", str(key)]
    subprocess.run(["openssl", "req", "-x509", *asked, "-out", str(chain)], check=True, capture_output=True)
    return chain, key


@pytest.mark.parametrize("name", PROXIES)
def test_the_portal_behind_tls(name: str, template: Template, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    settings = {"PORTAL_BASE_URL": "https://keys.example.org", "PORTAL_TRUSTED_PROXIES": "127.0.0.1", **SECRETS}
    with template.copy() as url, serving(url, tmp_path, **settings) as portal:
        port, plain = free_port(), free_port()
        at = portal.url.removeprefix("http://")
        if name == "nginx":
            changes = {"127.0.0.1:5000": at, "listen 443 ssl": f"listen 127.0.0.1:{port} ssl"}
            changes |= {"listen 80;": f"listen 127.0.0.1:{plain};"}
            places = [f"/etc/ssl/keys.example.org/{old}" for old in ("fullchain.pem", "privkey.pem")]
            changes |= dict(zip(places, map(str, certificate), strict=True))
            config = fitted("nginx/portal.conf", changes)
        else:
            sites = {"\nstock.example.org {": f"\nhttp://stock.example.org:{plain} {{"}
            tls = f"\ttls {certificate[0]} {certificate[1]}\n"
            sites["\nkeys.example.org {\n"] = f"\nhttps://keys.example.org:{port} {{\n{tls}"
            config = fitted("caddy/Caddyfile", {"127.0.0.1:5000": at, **sites})
        with proxy(name, config, tmp_path, port):
            host = "keys.example.org"
            page = over_tls(port, host, "/login")
            assert page.status == 200
            assert "__Host-portal=" in page.headers["set-cookie"]
            assert "Secure" in page.headers["set-cookie"]
            assert over_tls(port, host, "/api/v1/me").status == 401
            assert over_tls(port, host, "/healthz").status == 200
            for path in ("/metrics", "/readyz"):
                assert over_tls(port, host, path).status == 404
            if name == "nginx":
                away = ask(plain, host, "/login")
                assert (away.status, away.headers["location"]) == (308, "https://keys.example.org/login")


def test_a_host_that_is_stopped_does_not_show(
    template: Template, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """What docs/deploy.md says about two hosts behind nginx, with the first one away."""
    guide = (ROOT / "docs" / "deploy.md").read_text()
    upstream = guide[guide.index("upstream latchkey {") :].partition("}\n")[0] + "}\n"
    with template.copy() as url, serving(url, tmp_path) as portal:
        port = free_port()
        upstream = upstream.replace("10.0.0.11:5000", f"127.0.0.1:{free_port()}")
        upstream = upstream.replace("10.0.0.12:5000", portal.url.removeprefix("http://"))
        places = [f"/etc/ssl/keys.example.org/{old}" for old in ("fullchain.pem", "privkey.pem")]
        changes = dict(zip(places, map(str, certificate), strict=True)) | {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "listen 80;": f"listen 127.0.0.1:{free_port()};",
            "Host $host": "Host 127.0.0.1",
            "proxy_next_upstream off": "proxy_next_upstream error",
        }
        assert "proxy_next_upstream error;" in guide
        config = fitted("nginx/portal.conf", changes)
        ours = config[config.index("upstream latchkey {") :].partition("}\n")[0] + "}\n"
        with proxy("nginx", config.replace(ours, upstream), tmp_path, port):
            for _ in range(4):
                assert over_tls(port, "keys.example.org", "/login").status == 200


def over_tls(port: int, host: str, path: str) -> Answer:
    """Ask for a page as a browser that trusts everybody does, by its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    bare = socket.create_connection(("127.0.0.1", port), timeout=20)
    with bare, context.wrap_socket(bare, server_hostname=host) as secure:
        secure.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(secure)
        answer.begin()
        headers = {header.lower(): value for header, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read().decode())


def test_units_and_examples_name_what_is_there() -> None:
    unit = (DEPLOY / "systemd" / "latchkey.service").read_text()
    assert "ExecStart=/opt/latchkey/.venv/bin/flask serve" in unit
    head = unit[unit.index("[Unit]") : unit.index("[Service]")]
    assert "\nStartLimitIntervalSec=0\n" in head, "systemd gives up after five starts in ten seconds"
    script = DEPLOY / "systemd" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    for path in (DEPLOY / "other").iterdir():
        assert "NOT RUN BY OUR TESTS" in path.read_text()


def test_the_guide_shows_no_secret_to_others_on_the_machine() -> None:
    """What stands in a command's arguments is in the list of processes, and in sudo's log."""
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert "$(sudo cat" not in guide
    made = guide.index("sudo install -m 600 /dev/null /etc/latchkey.env")
    assert made < guide.index("sudo tee /etc/latchkey.env"), "readable for all until its mode is changed"


def test_traefik_takes_out_every_way_to_write_a_header() -> None:
    """It drops no header for its underscores, and WSGI and CGI take each for a hyphen."""
    told = (DEPLOY / "other" / "traefik.yml").read_text()
    part = told[told.index("no-forged-headers:\n") : told.index("may-read:\n")]
    taken_out = set(re.findall(r'^ +([\w-]+): ""$', part, re.MULTILINE))
    for name in (*(f"X-Auth-{each}" for each in AUTH), "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"):
        parts = name.split("-")
        ways = {f"{parts[0]}{one}{parts[1]}{two}{parts[2]}" for one in "-_" for two in "-_"}
        assert ways - {name} <= taken_out
        assert name in taken_out or name.startswith("X-Forwarded")  # those Traefik replaces itself


def test_haproxy_compares_header_names_as_it_keeps_them() -> None:
    """It keeps them in small letters, and `-m reg` minds the case: `^X-Auth-` takes nothing out."""
    told = (DEPLOY / "other" / "haproxy.cfg").read_text()
    for line in ("x-auth- -m beg", "x-forwarded- -m beg", "forwarded", "_ -m sub"):
        assert f"    http-request del-header {line}\n" in told
