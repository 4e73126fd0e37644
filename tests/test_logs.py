"""What is written to the log: one JSON line an event, from which every secret is taken first (T-73, T-74)."""

import io
import json
import logging
from collections.abc import Iterator
from time import monotonic
from typing import Any

import psycopg
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.logs import JsonLines, redact
from portal.rules.access import Environment
from portal.rules.credentials import BASE62, KeyFormat, PlainVerifier, hash_password
from portal.store.database import Database
from portal.web import front, guards
from tests.cast import Cast

texts = st.text(max_size=30)
minted = st.builds(lambda environment: KeyFormat().mint(environment).reveal(), st.sampled_from(Environment))
mistyped = st.builds(
    "{}_{}_{}_{}".format,
    st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,9}", fullmatch=True),
    st.sampled_from(["live", "test", "LIVE", "Test"]),
    st.text(BASE62, min_size=43, max_size=43),
    st.text(BASE62, max_size=8),
)
verifiers = st.builds(lambda: PlainVerifier.mint().reveal())


def secret_of(text: str) -> str:
    """Give the random part of a key or verifier."""
    return max(text.split("_"), key=len)


class Log:
    """A logger that writes as the portal's own do, into memory."""

    def __init__(self) -> None:
        self._written = io.StringIO()
        handler = logging.StreamHandler(self._written)
        handler.setFormatter(JsonLines())
        self.logger = logging.Logger("test")
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._written.getvalue()

    @property
    def last(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text.splitlines()[-1])
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    yield Log()


@given(texts, minted | mistyped | verifiers, texts)
@settings(deadline=None)
def test_a_key_disappears_wherever_it_stands_in_a_text(before: str, key: str, after: str) -> None:
    assert secret_of(key) not in redact(f"{before}{key}{after}")


@given(st.lists(minted | verifiers, min_size=2, max_size=4), st.just("") | texts)
@settings(deadline=None)
def test_every_key_of_a_text_disappears(keys: list[str], between: str) -> None:
    kept = redact(between.join(keys))
    assert not [key for key in keys if secret_of(key) in kept]


@given(minted | verifiers, st.integers(20, 57))
@settings(deadline=None)
def test_a_key_that_was_cut_short_disappears_too(key: str, length: int) -> None:
    assert secret_of(key)[:12] not in redact(f"GET /?key={key[:length]}")


@given(minted, st.integers(16_000, 16_500))
@settings(deadline=None)
def test_a_key_in_a_text_that_is_too_long_to_be_kept_whole_disappears_too(key: str, place: int) -> None:
    kept = redact("x " * (place // 2) + key + " and more" * 1_000)
    assert key[8:20] not in kept
    assert len(kept) < 17_000


@pytest.mark.timeout(10)  # such a text holds up the request that logs it
@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a-",
        "password",
        "password=",
        "token: '",
        "://a:",
        "sk_live_",
        "sk_live_aaaaaaaa",
        "_live_",
        "vf_",
        "vf_aaaaaaaa",
        '\\"',
    ],
)
def test_no_text_keeps_the_redaction_busy(piece: str) -> None:
    for _ in range(5):
        redact(piece * (300_000 // len(piece)))


@pytest.mark.parametrize(
    "text",
    [
        "a member signed in",
        "Latchkey serves on http://127.0.0.1:5000",
        "GET /w/acme/api/keys/key_1a2B3c 200",
        "sk_live_…abcd was deactivated",
        "sk_live_ and sk_test_ are the two prefixes",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2hunter2",
        "authorization: Basic hunter2hunter2",
        "AUTHORIZATION=hunter2hunter2",
        "{'Authorization': 'Bearer hunter2hunter2'}",
        '{"authorization": "Bearer hunter2hunter2"}',
        "('Authorization', 'Bearer hunter2hunter2')",
        "HTTP_AUTHORIZATION='Bearer hunter2hunter2'",
        "Cookie: portal=hunter2hunter2",
        "Cookie: theme=dark; portal=hunter2hunter2",
        "Set-Cookie: portal=hunter2hunter2; HttpOnly; Path=/",
        "{'HTTP_COOKIE': 'theme=dark; portal=hunter2hunter2'}",
        "password=hunter2hunter2",
        "email=ana@acme.test&password=hunter2hunter2&next=/",
        "password: hunter2hunter2",
        "{'password': 'hunter2hunter2'}",
        '{"password": "hunter2hunter2"}',
        "password_again=hunter2hunter2",
        "password=correct horse battery hunter2hunter2",
        """{'password': "it's hunter2hunter2"}""",
        '{"password": "a \\" hunter2hunter2"}',
        "csrf_token=hunter2hunter2",
        "X-CSRFToken: hunter2hunter2",
        "access_token=hunter2hunter2",
        "PORTAL_SECRET_KEY=hunter2hunter2",
        "PORTAL_KEY_PEPPERS=local:hunter2hunter2",
        "postgresql://portal:hunter2hunter2@db/portal",
    ],
)
def test_what_follows_the_name_of_a_secret_disappears(text: str) -> None:
    assert "hunter2" not in redact(text)


def test_the_hash_of_a_password_disappears_from_the_row_that_an_error_quotes() -> None:
    row = f"DETAIL: Failing row contains (1, ana@acme.test, {hash_password('correct horse')}, Ana Ruiz)."
    assert redact(row) == "DETAIL: Failing row contains (1, ana@acme.test, [redacted], Ana Ruiz)."


@pytest.mark.parametrize("way", ["message", "argument", "extra", "exception", "chained exception", "object"])
def test_a_key_disappears_from_every_part_of_a_line(log: Log, way: str) -> None:
    key = KeyFormat().mint(Environment.LIVE).reveal()
    if way == "message":
        log.logger.warning(f"refused {key}")  # noqa: G004 - as a library might
    elif way == "argument":
        log.logger.warning("refused %s of %r", key, {"headers": [key]})
    elif way == "extra":
        log.logger.warning("refused", extra={"path": f"/api/v1/me?key={key}", "headers": {"authorization": key}})
    elif way == "object":
        log.logger.warning({"key": key})
    else:
        try:
            try:
                raise LookupError(key)
            except LookupError as error:
                if way == "exception":
                    raise
                raise ValueError("while looking") from error
        except (LookupError, ValueError):
            log.logger.exception("it broke")
        assert "LookupError" in log.last["exception"]
    assert key[8:51] not in log.text
    assert "[redacted]" in log.text


@pytest.mark.parametrize("name", ["authorization", "cookie", "password", "csrf_token", "secret"])
def test_an_extra_field_with_the_name_of_a_secret_is_not_written(log: Log, name: str) -> None:
    log.logger.warning("a request came", extra={name: "hunter2hunter2"})
    assert "hunter2" not in log.text


@given(st.text())
@settings(deadline=None)
def test_whatever_a_user_sends_stays_on_one_line_of_plain_characters(text: str) -> None:
    log = Log()
    log.logger.warning("a client said %s", text, extra={"agent": text})
    assert log.text.count("\n") == 1
    assert log.text.rstrip("\n").isprintable()
    assert log.last["level"] == "warning"


@pytest.mark.parametrize("control", ["\r\n", "\n", "\r", "\x1b[2J", "\x00", "\x85", "\u2028", "\x7f"])
def test_control_characters_come_out_escaped(log: Log, control: str) -> None:
    log.logger.warning("before%safter", control, extra={"agent": control})
    assert control not in log.text.removesuffix("\n")
    assert log.last["message"] == f"before{control}after"


def test_a_line_says_when_how_grave_and_who(log: Log) -> None:
    log.logger.error("it broke", extra={"key_id": "key_1"})
    assert log.last.keys() == {"at", "level", "logger", "message", "key_id"}
    assert log.last["at"].endswith("+00:00")


def test_a_line_of_a_request_says_whose_it_was_by_ids_only(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise LookupError("broken")

    cast = Cast(app)
    key = cast.rio.generate()
    monkeypatch.setitem(app.view_functions, "api.solutions", guards.with_key()(fail))
    monkeypatch.setitem(app.view_functions, "home.index", guards.in_workspace(fail))
    caplog.handler.setFormatter(JsonLines())
    called = cast.call("GET", "/solutions", key)
    opened = cast.rio.get("/w/acme")
    assert (called.status_code, opened.status_code) == (500, 500)
    of_key, of_page = (json.loads(line) for line in caplog.text.splitlines() if "a request failed" in line)
    assert (of_key["request_id"], of_key["key_id"]) == (called.headers["X-Request-Id"], key.id)
    assert of_page["request_id"] == opened.headers["X-Request-Id"]
    assert of_key["member_id"] == of_page["member_id"]
    assert of_page["member_id"].startswith("mem_")
    assert len(of_page["session"]) == 12
    assert "Tanaka" not in caplog.text


def test_a_refused_host_is_told_once_a_minute_at_most(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [monotonic() + 3600.0]  # the portal of other tests may have refused a host just now
    monkeypatch.setattr(front, "monotonic", lambda: clock[0])
    client = app.test_client(use_cookies=False)
    told = []
    for passed in (0, 1, 58, 2):  # seconds
        clock[0] += passed
        caplog.clear()
        assert client.get("/verify", headers={"Host": "keys.example\x7f.org" + "x" * 999}).status_code == 400
        told.append([each.getMessage() for each in caplog.records])
    assert [len(lines) for lines in told] == [1, 0, 0, 1]
    assert "keys.example\\x7f.org" in told[0][0]
    assert "PORTAL_BASE_URL" in told[0][0]
    assert len(told[0][0]) < 300


# --- Trouble that lasts ---------------------------------------------------------------------------------------------


def test_an_outage_is_told_when_it_begins_and_when_it_is_over_however_many_meet_it(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = Cast(app)
    portal, key = app.extensions["portal"], cast.lea.generate(["tasks:write"])
    record = {"json": {"fields": {"title": "A task"}}}

    def away(*_: Any, **__: Any) -> None:
        raise psycopg.OperationalError("the server is away")

    def told() -> list[Any]:
        found = [each for each in caplog.records if "usage" not in each.getMessage()]  # the thread beside has its own
        caplog.clear()
        return found

    caplog.clear()
    for owner, name, method, path, status, what in (
        (type(portal.key_check), "check", "GET", "/me", 200, "keys cannot be checked"),
        (Database, "reading", "GET", "/solutions", 200, "nothing can be read"),
        (Database, "transaction", "POST", "/apps/tasks/records", 201, "nothing can be changed"),
    ):
        more = record if method == "POST" else {}
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, away)
            assert {cast.call(method, path, key, **more).status_code for _ in range(5)} == {503}
        (begun,) = told()
        assert (begun.getMessage().partition(":")[0], bool(begun.exc_info)) == (what, True)
        assert [cast.call(method, path, key, **more).status_code for _ in range(3)] == [status] * 3
        (over,) = told()
        assert over.getMessage().startswith(f"over: {what}")
        assert over.failed == 5
