"""The shipped server and the portal together, byte for byte: what no well-behaved client library would send."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from app import create_app
from portal.store.models import Record
from tests.cast import Cast
from tests.servers import Server

HOST = b"Host: 127.0.0.1\r\nConnection: close\r\n"
JSON = b'{"fields": {"title": "By wire"}}'
BUSY = 4.0  # seconds that an answer may take on a loaded machine


@dataclass(frozen=True)
class Wire:
    """A connection to the server for each message, and a key's text to put into it."""

    server: Server
    key: bytes
    cast: Cast

    def connect(self) -> socket.socket:
        address = urlsplit(self.server.url)
        return socket.create_connection((address.hostname or "", address.port or 0), timeout=BUSY)

    def __call__(self, message: bytes) -> bytes:
        """Send a message; give all that comes back until the server closes."""
        with self.connect() as connection:
            answer = b""
            heard_enough = suppress(BrokenPipeError, ConnectionResetError)  # it may close before all is sent,
            with heard_enough:
                connection.sendall(message)
            with heard_enough:  # and has answered before it did
                while part := connection.recv(65_536):
                    answer += part
            return answer

    def get(self, headers: bytes = b"", path: bytes = b"/api/v1/me") -> bytes:
        return self(b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, headers))

    def post(self, headers: bytes, body: bytes) -> bytes:
        """Send a record of the key's own app."""
        return self(
            b"POST /api/v1/apps/tasks/records HTTP/1.1\r\n%bAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\n%b\r\n%b" % (HOST, self.key, headers, body)
        )

    def records(self) -> int:
        with self.cast.app.extensions["portal"].database.reading() as session:
            return int(session.query(Record).count())


def status(answer: bytes) -> int:
    """Read the status; 0 where the server closed the connection without a word."""
    return int(answer.split(b" ", 2)[1].decode()) if answer else 0


@pytest.fixture(scope="module")
def wire(live_server: Server) -> Iterator[Wire]:
    """A key made in the browser of a portal in process, beside the server and on the same database."""
    environ = {"PORTAL_DATABASE_URL": live_server.database_url, "PORTAL_INSTANCE": str(live_server.instance)}
    app = create_app(environ)
    cast = Cast(app)
    yield Wire(live_server, cast.lea.generate(["tasks:read", "tasks:write"]).text.encode(), cast)
    app.extensions["portal"].close()


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer %b",
        b"authorization: bearer %b",
        b"AUTHORIZATION:Bearer   %b  ",
        b"Authorization:\tBearer %b",
    ],
)
def test_a_well_written_header_is_understood(wire: Wire, header: bytes) -> None:
    assert status(wire.get(header % wire.key + b"\r\n")) == 200


@pytest.mark.parametrize(
    "headers",
    [
        *(b"Authorization: Bearer %b\r\nAuthorization: " + other for other in (b"Bearer %b", b"Basic x", b"", b"\xff")),
        *(b"Authorization: %b\r\nAuthorization: Bearer %%b" % other for other in (b"Bearer x", b"Basic x", b"")),
        *(b"Authorization: Bearer %b, Bearer %b", b"Authorization: Bearer\t%b", b"Authorization: Bearer%b"),
        *(b"Authorization: %b", b'Authorization: Bearer "%b"', b"Authorization: Bearer %b\xc3\xa9"),
        *(b"Authorization: \xff\xfe", b"Authorization:", b"Authorization: Bearer", b"Cookie: Authorization=%b"),
        *(b"Proxy-Authorization: Bearer %b", b"Authorization_: Bearer %b", b"X-Authorization: Bearer %b"),
    ],
)
def test_two_credentials_or_half_a_one_are_none(wire: Wire, headers: bytes) -> None:
    assert status(wire.get(headers.replace(b"%b", wire.key) + b"\r\n")) == 401


@pytest.mark.parametrize(
    ("headers", "refusals"),
    [
        (b"Authorization: Bearer %b\0", {400, 401}),
        (b"Authorization\0: Bearer %b", {400, 401}),
        (b"Authorization : Bearer %b", {400, 401}),
        (b" Authorization: Bearer %b", {400, 401}),
        (b"Authorization: Bearer\r\n %b", {400, 401}),  # obs-fold (RFC 9112, section 5.2)
        (b"Authorization: Bearer %b\r\n folded", {400, 401}),
        (b"Authorization: Bearer %b" + b"a" * 2**20, {400, 401, 413, 431}),
        (b"Authorization: Bearer %b\r\nX-Long: " + b"a" * 17_000, {400, 413, 431}),
        (b"Authorization: Bearer %b" + b"".join(b"\r\nX-%d: 1" % n for n in range(3000)), {400, 413, 431}),
        (b"Authorization: Bearer %b\r\nHost: elsewhere.example", {400}),
        (b"Authorization: Bearer %b\r\nno colon at all", {400}),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_header_that_breaks_the_protocol_is_refused(wire: Wire, headers: bytes, refusals: set[int]) -> None:
    assert status(wire.get(headers.replace(b"%b", wire.key) + b"\r\n")) in refusals


@pytest.mark.parametrize("key", [b"%b", b"%b&limit=1", b"Bearer%20%b"])
def test_a_key_in_the_address_never_counts(wire: Wire, key: bytes) -> None:
    path = b"/api/v1/me?key=" + key.replace(b"%b", wire.key)
    assert status(wire.get(path=path)) == 401
    assert status(wire.get(b"Authorization: Bearer %b\r\n" % wire.key, path)) == 401


@pytest.mark.parametrize(
    "path",
    [
        *(b"//w/acme", b"/w%2facme", b"/w/acme/", b"/w//acme", b"/w/acme;x", b"/W/ACME", b"/w/acme.json", b"/%77/acme"),
        *(b"/./w/acme", b"/x/../w/acme", b"/w/acme/%2e%2e/acme", b"/w\\acme", b"/w/acme%00"),
        b"http://elsewhere/w/acme",
    ],
)
def test_no_way_to_write_a_path_leads_past_its_rule(wire: Wire, path: bytes) -> None:
    answer = wire.get(path=path)
    assert status(answer) in {303, 400, 404}
    assert b"Solutions" not in answer


@pytest.mark.parametrize(
    "path",
    [
        *(b"/static/../app.py", b"/static/%2e%2e/app.py", b"/static/..%2fapp.py", b"/static//etc/passwd", b"/static/"),
        *(b"/static/.gitignore", b"/static", b"/static/vendor", b"/static/app.js%00.css", b"/static/\\..\\app.py"),
        *(b"/static/%ff", b"/static/" + b"a" * 5000, b"/../../etc/passwd", b"/static/....//app.py"),
    ],
)
def test_only_the_static_files_themselves_are_served(wire: Wire, path: bytes) -> None:
    assert status(wire.get(path=path)) in {400, 404}
    assert status(wire.get(path=b"/static/app.js")) == 200


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"OPTIONS", b"PUT", b"PRI", b"BREW", b"G\0T", b"A" * 30_000])
def test_methods_that_nobody_needs_are_refused(wire: Wire, method: bytes) -> None:
    secret = b"Authorization: Bearer %b\r\n" % wire.key
    answer = wire(b"%b /api/v1/me HTTP/1.1\r\n%b%b\r\n" % (method, HOST, secret))
    assert status(answer) in {400, 405, 431, 501}
    assert wire.key not in answer
    if status(answer) == 405:
        assert b"allow: delete, get, head\r\n" in answer.lower()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_a_chunked_body_is_read_like_any_other(wire: Wire) -> None:
    assert status(wire.post(b"Transfer-Encoding: chunked\r\n", chunked(JSON[:10], JSON[10:]))) == 201


@pytest.mark.parametrize(
    ("headers", "body", "refusals"),
    [
        (b"Content-Length: 2000000\r\n", JSON, {413}),
        (b"Content-Length: 99999999999999999999999\r\n", JSON, {400, 413}),
        (b"Content-Length: -1\r\n", JSON, {400}),
        (b"Content-Length: +32\r\n", JSON, {400}),
        (b"Content-Length: 4\r\nContent-Length: %d\r\n" % len(JSON), JSON, {400}),
        (b"Transfer-Encoding: chunked\r\n", chunked(JSON, b" " * 2**20), {413}),
        (b"Transfer-Encoding: chunked\r\n", chunked(JSON, *[b" " * 2**20] * 20), {0, 413}),
        (b"Transfer-Encoding: chunked\r\n", chunked(JSON[:10]), {400}),
        (b"Transfer-Encoding: chunked\r\n", b"zz\r\n" + JSON, {400}),
        (b"Transfer-Encoding: xchunked\r\n", JSON, {400, 501}),
        (b"Transfer-Encoding: identity\r\n", JSON, {400, 501}),
        (b"", JSON, {400, 411}),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_body_whose_end_is_unclear_or_too_far_away_is_refused(
    wire: Wire, headers: bytes, body: bytes, refusals: set[int]
) -> None:
    before = wire.records()
    assert status(wire.post(headers, body)) in refusals
    assert wire.records() == before


def test_two_lengths_for_one_body_hide_no_second_request(wire: Wire) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for body in (chunked(JSON) + hidden, chunked() + hidden):
        answer = wire.post(b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", body)
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert status(answer) in {0, 201, 400}
        assert b"ok\n" not in answer


@pytest.mark.parametrize(
    "message",
    [
        *(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\r\n\r\n"),
        *(b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"\0" * 1000, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_request_for_us_is_no_trouble(wire: Wire, message: bytes) -> None:
    assert status(wire(message)) in {0, 400, 404, 505}


@pytest.mark.parametrize("length", [99, 10_000, 100_000, 2_000_000])
@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        (b"/login", b"application/x-www-form-urlencoded"),
        (b"/api/v1/apps/tasks/records", b"application/json"),
        (b"//api/v1/apps/tasks/records", b"application/json"),
    ],
)
def test_a_client_that_stalls_in_its_body_stops_nobody_else(
    wire: Wire, path: bytes, content_type: bytes, length: int
) -> None:
    head = b"POST %b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    with wire.connect() as stalled:
        stalled.sendall(head % (path, HOST, wire.key, content_type, length) + JSON[:3])
        assert status(wire.get(path=b"/healthz")) == 200
        assert status(wire.get(b"Authorization: Bearer %b\r\n" % wire.key)) == 200


def test_when_too_many_clients_stall_the_others_are_told_to_come_back(wire: Wire) -> None:
    head = b"POST /login HTTP/1.1\r\n%bContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\nab"

    def write_until(expected: int) -> bytes:
        """Write on until the server has noticed that clients came or went."""
        give_up = time.monotonic() + 60  # the server starts its threads one by one, slowly on a busy machine
        while time.monotonic() < give_up:
            answer = wire.post(b"Content-Length: %d\r\n" % len(JSON), JSON)
            if status(answer) == expected:
                return answer
            time.sleep(0.05)
        raise AssertionError(f"never {expected}")

    with ExitStack() as stalled:
        for _ in range(60):
            stalled.enter_context(wire.connect()).sendall(head % HOST)
        answer = write_until(503)
        assert re.search(rb"\r\nretry-after: [1-9]\d*\r\n", answer.lower())
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "api_error"
        assert status(wire.get(b"Authorization: Bearer %b\r\n" % wire.key)) == 200
    write_until(201)


def test_after_all_of_this_the_server_serves_and_its_log_holds_no_key(wire: Wire) -> None:
    places = b"Authorization: Bearer %b\r\nUser-Agent: %b\r\nReferer: http://127.0.0.1/?key=%b\r\n" % ((wire.key,) * 3)
    assert status(wire.get(places)) == 200
    assert status(wire.get(places, b"/%b" % wire.key)) == 404
    assert status(wire.get(places, b"/api/v1/me?key=%b" % wire.key)) == 401
    log = wire.server.log.read_bytes()
    assert b"Latchkey serves" in log
    for part in (wire.key, wire.key[8:51], wire.key[8:30], wire.key[-20:]):
        assert part not in log
