"""Does the API answer as its document says? `.venv/bin/python bench/fuzz.py` asks it 50,000 times.

Requests are made from /api/v1/openapi.json of the shipped server: every call that it names, with parameters and bodies
that fit and that do not, and with good, sandbox, narrow, stopped, unknown, malformed and no keys; calls that it does
not name too. Each answer is held to the document: its status, its body, its headers. It fails on a 5xx, a status that
is not told, or a body or header that does not fit. `--seed` repeats a run.
"""

import http.client
import json
import random
import signal
import string
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import Stage, stage  # noqa: E402
from portal.rules.access import Environment  # noqa: E402
from portal.rules.schemas import Schema  # noqa: E402
from portal.services import audit, keys, verifiers, workspaces  # noqa: E402
from portal.services.actor import operator  # noqa: E402
from portal.web.openapi import BASE  # noqa: E402
from tests.databases import KINDS  # noqa: E402
from tests.servers import serving  # noqa: E402

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SHOWN = 20  # faults that are printed
_ROOMY = {"rate_per_minute": 100_000_000, "rate_per_second": 1_000_000}
_ANY_APP = "notes"  # whose records may be any object
_FORM = "application/x-www-form-urlencoded"
_APPS = (_ANY_APP, "tasks", "leads")
_ADDRESSES = 50
_AT_ONCE = 300  # records that are kept in mind


@dataclass
class Wallet:
    """Authorization headers by what they are; those that a call may end are made again."""

    stage: Stage
    made: dict[str, list[str]] = field(default_factory=dict)
    _count: int = 0
    _last: str = ""  # that was thrown away

    def fill(self) -> None:
        """Make keys of every kind."""
        scopes = [f"{app}:{action}" for app in _APPS for action in ("read", "write")]
        self.made = {
            "good": [self._key(scopes) for _ in range(3)],
            "sandbox": [self._key(scopes, environment="test")],
            "narrow": [self._key(["tasks:read"]), self._key([f"{_ANY_APP}:write"])],
            "stopped": [self._stopped(scopes)],
            "unknown": [f"Bearer {self.stage.office.keyring.format.mint(Environment.LIVE).reveal()}"],
            "malformed": ["Bearer sk_live_EXAMPLE", "Bearer", "Basic YTpi", "Token x", "Bearer a b", "bearer  ", ""],
            "verifier": [self._verifier()],
            "none": [],
        }

    def throwaway(self, *, may_rotate: bool) -> str:
        """Make a key that the next call may end; the one before makes room for it."""
        office = self.stage.office
        if self._last:
            self.forget(self._last)
        self._last, text = self._made([f"{_ANY_APP}:read"])
        office.set_key(self._last, self_rotate=may_rotate)
        return f"Bearer {text}"

    def forget(self, key_id: str) -> None:
        """End a key that a call made, for a member may have only so many."""
        self.stage.office.set_key(key_id, revoked_at=datetime.now(UTC))

    def _verifier(self) -> str:
        office = self.stage.office
        actor = office.actor("ana", datetime.now(UTC))
        with audit.transaction(self.stage.database, actor) as session:
            _, plain = verifiers.create(session, actor, office.keyring, "Fuzz", "")
        return f"Bearer {plain.reveal()}"

    def _key(self, scopes: Sequence[str], **more: Any) -> str:
        return f"Bearer {self._made(scopes, **more)[1]}"

    def _made(self, scopes: Sequence[str], **more: Any) -> tuple[str, str]:
        self._count += 1
        office = self.stage.office
        at = datetime.now(UTC)
        view, plain = office.generate("ana", at=at, name=f"Fuzz {self._count}", scopes=list(scopes), **more)
        office.set_key(view.id, **_ROOMY)
        return view.id, plain.reveal()

    def _stopped(self, scopes: Sequence[str]) -> str:
        key_id, text = self._made(scopes)
        self.stage.office.act("ana", keys.deactivate, key_id, at=datetime.now(UTC))
        return f"Bearer {text}"


@dataclass
class Asked:
    """One request, and what may be said of it."""

    method: str
    path: str
    template: str
    headers: dict[str, str]
    body: bytes | None
    kind: str  # of its key

    def __str__(self) -> str:
        return f"{self.method} {self.path} with {self.kind} key, {(self.body or b'')[:200]!r}"


class Document:
    """The API's document, and whether an answer is what it says."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self._validators: dict[int, Draft202012Validator] = {}

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        """List method, path as written, and operation."""
        return [
            (method.upper(), path, operation)
            for path, item in self.found["paths"].items()
            for method, operation in item.items()
            if method.upper() in METHODS
        ]

    def fault(self, asked: Asked, status: int, headers: dict[str, str], body: bytes) -> str | None:
        """Say in which way an answer is not what the document says, or None."""
        if status >= 500:
            return f"status {status}"
        operation = self.found["paths"].get(asked.template, {}).get(asked.method.lower())
        if operation:
            told = operation["responses"].get(str(status))
        else:
            other = {405: "Refused405WithoutKey", 401: "Refused401", 429: "Refused429"}.get(status)
            told = self.found["components"]["responses"][other] if other else None
        if told is None:
            return f"status {status} is not told"
        told = self._look_up(told)
        return self._header_fault(told.get("headers", {}), headers) or self._body_fault(told, headers, body)

    def _header_fault(self, told: dict[str, Any], headers: dict[str, str]) -> str | None:
        for name, each in told.items():
            header = self._look_up(each)
            value = headers.get(name.lower())
            if value is None:
                if header.get("required"):
                    return f"header {name} lacks"
                continue
            if error := next(self._validator(header["schema"]).iter_errors(value), None):
                return f"header {name}: {error.message}"
        return None

    def _body_fault(self, told: dict[str, Any], headers: dict[str, str], body: bytes) -> str | None:
        content = told.get("content")
        if content is None:
            return "a body where none is told" if body else None
        ((kind, each),) = content.items()
        if headers.get("content-type") != kind:
            return f"content type {headers.get('content-type')}"
        try:
            value = json.loads(body)
        except ValueError:
            return "the body is not JSON"
        error = next(self._validator(each["schema"]).iter_errors(value), None)
        return f"body {error.json_path}: {error.message[:200]}" if error else None

    def _look_up(self, value: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in value:
            return value
        _, _, group, name = value["$ref"].split("/")
        found: dict[str, Any] = self.found["components"][group][name]
        return found

    def _validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        if id(schema) not in self._validators:
            whole = closed({**schema, "components": self.found["components"]})  # what its references point at
            self._validators[id(schema)] = Draft202012Validator(
                whole, format_checker=Draft202012Validator.FORMAT_CHECKER
            )
        return self._validators[id(schema)]


def closed(schema: Any) -> Any:
    """Give a schema whose objects have no members but those that are told: answers may, for clients to bear with."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {"additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else {}
    return shut | {name: closed(each) for name, each in schema.items()}


class Maker:
    """Makes requests out of the document."""

    def __init__(self, document: Document, wallet: Wallet, seed: int) -> None:
        self.document, self.wallet = document, wallet
        self.chance = random.Random(seed)
        self.operations = document.operations()
        self.records: dict[str, list[str]] = {}  # ids that were seen, by app

    def request(self) -> Asked:
        """Make one request; most are asked as they should be in all but one respect."""
        chance = self.chance
        method, template, operation = chance.choice(self.operations)
        kind = self._kind(operation)
        headers = self._credential(kind, operation)
        path, query = self._address(template, operation, headers)
        body = self._body(operation, path, headers)
        if chance.random() < 0.02 and template.startswith(BASE):
            told = self.document.found["paths"][template]
            method = chance.choice([each for each in METHODS if each.lower() not in told])
        return Asked(method, path + query, template, headers, body, kind)

    def seen(self, asked: Asked, status: int, body: bytes) -> None:
        """Keep the ids of records that there are, to ask for them."""
        if asked.template.endswith("/records") and status == 201:
            app = asked.path.split("/")[4]
            found = self.records.setdefault(app, [])
            found.append(json.loads(body)["data"]["id"])
            del found[:-_AT_ONCE]
        if asked.template == f"{BASE}/me/rotate" and status == 201:
            self.wallet.forget(json.loads(body)["data"]["id"])

    def _kind(self, operation: dict[str, Any]) -> str:
        if not operation["security"]:
            return self.chance.choice(["none", "good"])
        if "verifier" in operation["security"][0]:
            return self.chance.choice(["verifier", "verifier", "good", "none", "malformed"])
        kinds = ["good", "sandbox", "narrow", "stopped", "unknown", "malformed", "none"]
        return self.chance.choices(kinds, [60, 12, 10, 4, 4, 6, 4])[0]

    def _credential(self, kind: str, operation: dict[str, Any]) -> dict[str, str]:
        ends_key = operation["operationId"] in ("rotate_me", "end_me")
        if ends_key and kind in ("good", "sandbox", "narrow"):
            if self.chance.random() < 0.05:
                return {"Authorization": self.wallet.throwaway(may_rotate=self.chance.random() < 0.8)}
            kind = "unknown"
        texts = self.wallet.made[kind]
        return {"Authorization": self.chance.choice(texts)} if texts else {}

    def _address(self, template: str, operation: dict[str, Any], headers: dict[str, str]) -> tuple[str, str]:
        chance = self.chance
        path, query = template, []
        app = (
            chance.choice(_APPS) if chance.random() < 0.9 else chance.choice(["nothing", "TASKS", "a" * 64, "tickets"])
        )
        for parameter in operation["parameters"]:
            name, place = parameter["name"], parameter["in"]
            if place == "path":
                value = app if name == "app" else self._record_id(app)
                path = path.replace(f"{{{name}}}", quote(value, safe=""))
            elif chance.random() < (0.05 if name == "Account-Id" else 0.3):
                value = self._value(name, parameter["schema"])
                if place == "query":
                    query.append(f"{name}={quote(value, safe='')}")
                else:
                    headers[name] = value
        if chance.random() < 0.03:
            query.append(chance.choice(["x=1", "x=1&x=2", "%ff=1", "limit=%00", "=", "&&&", "sk=sk_live_" + "a" * 43]))
        return path, f"?{'&'.join(query)}" if query else ""

    def _record_id(self, app: str) -> str:
        known = self.records.get(app)
        if known and self.chance.random() < 0.8:
            return self.chance.choice(known)
        return self.chance.choice(["rec_0000000000000000", "rec_", "x", "rec_é", "%", "..", "rec_" + "a" * 40, "null"])

    def _value(self, name: str, schema: dict[str, Any]) -> str:
        """Make a value for the query or a header: one that fits, one at a limit, one beyond, or none at all."""
        chance = self.chance
        if schema.get("type") == "integer":
            low, high = schema["minimum"], schema["maximum"]
            near = [low - 1, low, low + 1, high - 1, high, high + 1, chance.randint(low, min(high, low + 50))]
            return chance.choice([*map(str, near), "", "x", "1.0", "-1", "+1", " 1", "٣", "1e3", "9" * 30])
        known = {
            "If-Match": ['"1"', '"2"', "*", '"1", "2"', 'W/"1"', "1", '"', "", '"1",'],
            "If-None-Match": ['"1"', "*", "x"],
            "Account-Id": ["ws_1", "", "acme"],
            "Idempotency-Key": [chance.choice("abc") * chance.randint(1, 3), "", " ", "k" * 255, "k" * 256],
            "scope": [f"{_ANY_APP}:read", "tasks:write", "tasks", ""],
        }
        return chance.choice(known.get(name, ["", "x", "1"]))

    def _body(self, operation: dict[str, Any], path: str, headers: dict[str, str]) -> bytes | None:
        if "requestBody" not in operation:
            return None
        chance = self.chance
        ((kind, content),) = operation["requestBody"]["content"].items()
        headers["Content-Type"] = (
            kind if chance.random() < 0.95 else chance.choice(["text/plain", "", f"{kind};charset=x"])
        )
        value = self._fitting(content["schema"], path)
        if kind == _FORM:
            everything = [text.partition(" ")[2] for texts in self.wallet.made.values() for text in texts]
            return urlencode(value | {"token": chance.choice([*everything, value["token"]])}).encode()
        way = chance.random()
        if way < 0.75:
            return json.dumps(value).encode()
        if way < 0.9:
            return json.dumps(self._spoilt(value)).encode()
        broken = [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"x"',
            b"\xff",
            b'{"fields": {"a": NaN}}',
            b'{"fields": {"a": 1, "a": 2}}',
        ]
        broken += [
            b'{"fields": {"a": 9007199254740993}}',
            b'{"fields": {"a": "\\u0000"}}',
            b'{"fields": {"a": "\\ud800"}}',
        ]
        broken += [b'{"fields": ' + b'{"a": ' * 40 + b"1" + b"}" * 41, b'{"fields": {"a": [' + b"0," * 200 + b"0]}}"]
        return chance.choice(broken)

    def _fitting(self, schema: dict[str, Any], path: str) -> Any:
        """Make a value that a schema of the document takes."""
        chance = self.chance
        if "fields" in schema.get("properties", {}):
            return {"fields": self._fields(path)}
        if "enum" in schema:
            return chance.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            required = schema.get("required", [])
            return {
                name: self._fitting(each, path)
                for name, each in schema.get("properties", {}).items()
                if name in required or chance.random() < 0.5
            }
        if kind == "array":
            return [self._fitting(schema.get("items", {}), path) for _ in range(chance.randint(0, 3))]
        if kind == "integer":
            return chance.randint(schema.get("minimum", 0), min(schema.get("maximum", 100), 10**6))
        return self._word()

    def _fields(self, path: str) -> dict[str, Any]:
        if f"/{_ANY_APP}/" in path:
            return {self._word(): self._anything(0) for _ in range(self.chance.randint(0, 4))}
        known = {"title": "Count the chairs"} if "/tasks/" in path else {"name": "Ines", "stage": "new"}
        return known | ({self._word(): self._anything(0)} if self.chance.random() < 0.3 else {})

    def _anything(self, depth: int) -> Any:
        chance = self.chance
        simple: list[Callable[[], Any]] = [
            self._word,
            lambda: chance.randint(-(2**53), 2**53),
            lambda: chance.uniform(-1e9, 1e9),
            lambda: chance.choice([None, True, False]),
        ]
        if depth < 3 and chance.random() < 0.3:
            several = [self._anything(depth + 1) for _ in range(chance.randint(0, 3))]
            return several if chance.random() < 0.5 else {self._word(): each for each in several}
        return chance.choice(simple)()

    def _word(self) -> str:
        letters = string.ascii_letters + "é漢🙂 \"'<>&%\\\n\t\u202e"
        return "".join(self.chance.choices(letters, k=self.chance.randint(0, 12)))

    def _spoilt(self, value: Any) -> Any:
        """Change a value that fits in one respect."""
        chance = self.chance
        if not isinstance(value, dict):
            return value
        ways: list[Callable[[], Any]] = [
            dict,
            lambda: value | {self._word() or "x": 1},
            lambda: {name: self._anything(0) for name in value},
            lambda: [value],
            lambda: {name.upper(): each for name, each in value.items()},
        ]
        return chance.choice(ways)()


@dataclass
class Report:
    """What came of a run."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)  # by call
    kinds: Counter[tuple[str, int]] = field(default_factory=Counter)  # by kind of key
    faults: list[str] = field(default_factory=list)
    asked: int = 0


def run(url: str, wallet: Wallet, requests: int, seed: int) -> Report:
    """Ask a served portal so many times, one after the other."""
    host = urlsplit(url)
    # From many addresses: bad keys are counted by where they come from.
    connections = [
        http.client.HTTPConnection(host.hostname or "", host.port, timeout=30, source_address=(f"127.0.2.{n}", 0))
        for n in range(1, _ADDRESSES + 1)
    ]
    connections[0].request("GET", "/api/v1/openapi.json")
    document = Document(json.loads(connections[0].getresponse().read()))
    maker, report = Maker(document, wallet, seed), Report()
    for n in range(requests):
        asked, connection = maker.request(), connections[n % _ADDRESSES]
        try:
            status, answered, body = _ask(connection, asked)
        except (OSError, http.client.HTTPException) as error:
            report.faults.append(f"{asked}: {error!r}")
            connection.close()
            continue
        headers = {name.lower(): value for name, value in answered}
        report.asked += 1
        report.statuses[f"{asked.method} {asked.template}", status] += 1
        report.kinds[asked.kind, status] += 1
        maker.seen(asked, status, body)
        if fault := document.fault(asked, status, headers, body):
            report.faults.append(f"{asked}: {fault}")
    for connection in connections:
        connection.close()
    return report


def _ask(connection: http.client.HTTPConnection, asked: Asked) -> tuple[int, list[tuple[str, str]], bytes]:
    # What a header cannot hold goes as its UTF-8 bytes, as careless programs send it.
    headers = {name: value.encode() for name, value in asked.headers.items()}
    for is_last in (False, True):
        try:
            connection.request(asked.method, asked.path, asked.body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:  # the server had hung up after the answer before
            connection.close()
            if is_last:
                raise
    raise AssertionError("unreachable")


def prepare(here: Stage) -> Wallet:
    """Add an app that takes any object, and make the keys."""
    with here.database.transaction() as session:
        found = workspaces.get_solution(session, workspaces.get(session, "acme"), "operations")
        workspaces.add_app(session, operator(), found, _ANY_APP, "Notes", Schema.read({"type": "object"}))
    wallet = Wallet(here)
    wallet.fill()
    return wallet


def table(counts: Counter[tuple[str, int]], first: str) -> str:
    """Write counts by status, a line a thing."""
    statuses = sorted({status for _, status in counts})
    names = sorted({name for name, _ in counts})
    width = max(map(len, [first, *names]))
    lines = [f"  {first:<{width}}" + "".join(f"{status:>8}" for status in statuses)]
    for name in names:
        lines.append(f"  {name:<{width}}" + "".join(f"{counts[name, status] or '–':>8}" for status in statuses))
    return "\n".join(lines)


@click.command()
@click.option("--requests", default=50_000, help="How many, on each database.")
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--seed", default=1, help="The same seed asks the same.")
def main(requests: int, kinds: Sequence[str], seed: int) -> None:
    """Print the answers by status; fail on what the document does not say."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = False
    for kind in kinds:
        with stage(kind) as here:
            wallet = prepare(here)
            with serving(here.url, here.instance) as server:
                begun = time.monotonic()
                report = run(server.url, wallet, requests, seed)
                took = time.monotonic() - begun
        click.echo(
            f"{kind}: {report.asked:,} requests in {took:,.0f} s, {len(report.faults):,} not as the document says"
        )
        click.echo(table(report.statuses, "call"))
        click.echo(table(report.kinds, "key"))
        for fault in report.faults[:_SHOWN]:
            click.echo(f"  {fault}")
        failed = failed or bool(report.faults) or report.asked < requests
    sys.exit(failed)


if __name__ == "__main__":
    main()
