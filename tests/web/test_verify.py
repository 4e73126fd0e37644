"""What a reverse proxy is told at /verify, and the limits that every request with a key meets."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update
from werkzeug.test import TestResponse

from portal.rules.access import AccessLevel
from portal.services import keys, rate_limit
from portal.services.actor import operator
from portal.services.rate_limit import PER_SECOND
from portal.store.database import Database
from portal.store.models import ApiKey
from portal.web import answers
from portal.web.door import MAX_SCOPES, client_label
from portal.web.turn import Turn
from tests.cast import Cast, MadeKey
from tests.services.office import Office
from tests.web.looking import error


@pytest.fixture
def key(cast: Cast) -> MadeKey:
    return cast.rio.generate()


def verify(app: Flask, key: MadeKey | None = None, query: str = "", **options: object) -> TestResponse:
    client = app.test_client(use_cookies=False)
    headers = {**(key.bearer if key else {}), **options.pop("headers", {})}  # type: ignore[dict-item]
    method = str(options.pop("method", "GET"))
    return client.open(f"/verify{query}", method=method, headers=headers, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_good_key_is_told_in_headers(cast: Cast, key: MadeKey, method: str) -> None:
    me = cast.call("GET", "/me", key).get_json()["data"]
    reply = verify(cast.app, key, "?scope=tasks:read", method=method)
    assert (reply.status_code, reply.data) == (200, b"")
    told = {name: value for name, value in reply.headers.items() if name.startswith("X-Auth-")}
    assert told == {
        "X-Auth-Workspace": me["workspace"]["id"],
        "X-Auth-Member": me["member"]["id"],
        "X-Auth-Key": key.id,
        "X-Auth-Scopes": "tasks:read",
        "X-Auth-Environment": "live",
    }
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Environment"] == "live"


def test_a_proxy_is_told_only_of_scopes_that_work_now(cast: Cast, database: Database) -> None:
    key = cast.max.generate(["leads:read", "leads:write"])
    office = Office(database)
    office.grant("max", "sales", AccessLevel.READ)
    office.close()
    assert verify(cast.app, key).headers["X-Auth-Scopes"] == "leads:read"


def test_a_refusal_names_its_code_in_a_header_for_proxies_that_pass_no_body_on(cast: Cast, key: MadeKey) -> None:
    bad = {"Authorization": "Bearer nonsense"}
    for reply, status in (
        (verify(cast.app), 401),
        (verify(cast.app, headers=bad), 401),
        (verify(cast.app, key, "?scope=tasks:write"), 403),
    ):
        assert reply.headers["X-Error-Code"] == error(reply, status)["code"]
        assert reply.headers.get("X-Fix-Url") == error(reply, status).get("fixUrl")
    assert "add=tasks:write" in reply.headers["X-Fix-Url"]
    assert "X-Error-Code" not in cast.call("GET", "/me", headers=bad).headers


def test_a_sandbox_key_says_so(cast: Cast) -> None:
    reply = verify(cast.app, cast.rio.generate(environment="test"))
    assert reply.headers["X-Auth-Environment"] == "test"


def test_every_scope_that_is_asked_for_is_needed(cast: Cast) -> None:
    key = cast.max.generate(["leads:read", "leads:write"])
    assert verify(cast.app, key, "?scope=leads:read&scope=leads:write").status_code == 200
    assert verify(cast.app, key, "?" + "&".join(["scope=leads:read"] * MAX_SCOPES)).status_code == 200
    refused = verify(cast.app, key, "?scope=leads:read&scope=tasks:write")
    told = error(refused, 403)
    assert (told["code"], told["requiredScope"], told["heldScopes"]) == (
        "missing_scope",
        "tasks:write",
        ["leads:read", "leads:write"],
    )
    assert 'error="insufficient_scope", scope="tasks:write"' in refused.headers["WWW-Authenticate"]
    assert not [name for name, _ in refused.headers if name.startswith("X-Auth-")]


@pytest.mark.parametrize(
    "query",
    [
        "?scope=",
        "?scope=tasks",
        "?scope=tasks:*",
        "?scope=%ff",
        "?" + "scope=a:read&" * 30,
        "?" + "&".join(["scope=tasks:read"] * (MAX_SCOPES + 1)),
    ],
)
def test_what_is_no_scope_is_said_to_be_none(cast: Cast, key: MadeKey, query: str) -> None:
    assert error(verify(cast.app, key, query), 400)["type"] == "validation_error"


@pytest.mark.parametrize(
    "query", ["?scopes=leads:write", "?SCOPE=leads:write", "?scope[]=leads:write", "?x=1;scope=leads:write"]
)
def test_a_misspelled_question_is_no_yes(cast: Cast, key: MadeKey, query: str) -> None:
    """Whoever asks about a scope under another name would otherwise let every key pass."""
    assert error(verify(cast.app, key, query), 400)["code"] == "invalid_parameter"
    assert error(verify(cast.app, key, f"{query}&scope=tasks:read"), 400)["code"] == "invalid_parameter"


def test_other_methods_are_told_which_there_are(cast: Cast, key: MadeKey) -> None:
    assert verify(cast.app, key, method="HEAD").status_code == 200
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X" * 50):
        reply = verify(cast.app, key, method=method)
        assert error(reply, 405)["code"] == "method_not_allowed"
        assert reply.headers["Allow"] == "GET, HEAD, POST"
        assert not [name for name, _ in reply.headers if name.startswith("X-Auth-")]


@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Basic x", "unknown"])
def test_door_and_views_refuse_alike(cast: Cast, key: MadeKey, header: str | None) -> None:
    if header == "unknown":
        cast.rio.post(f"keys/{key.id}/deactivate")
        header = f"Bearer {key.text}"
    headers = {} if header is None else {"Authorization": header}
    seen = []
    for reply in (verify(cast.app, headers=headers), cast.call("GET", "/me", headers=headers)):
        body = reply.get_json()
        body["meta"].pop("requestId")
        volatile = ("X-Request-Id", "Content-Length", "X-Error-Code")  # the last is for proxies only
        seen.append((reply.status, body, sorted((k, v) for k, v in reply.headers.items() if k not in volatile)))
    assert seen[0] == seen[1]
    assert seen[0][0] == "401 UNAUTHORIZED"


def test_a_key_in_the_query_is_refused(cast: Cast, key: MadeKey) -> None:
    beside = error(verify(cast.app, key, f"?key={key.text}"), 401)
    assert beside["code"] == "malformed_key"
    assert "nowhere else" in beside["message"]  # what the header holds is good


def test_the_workspace_that_is_asserted_counts(cast: Cast, key: MadeKey) -> None:
    assert error(verify(cast.app, key, headers={"Account-Id": "ws_other"}), 401)["code"] == "invalid_key"


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("curl/8.5 (x86_64)", "curl/8.5"),
        ("x" * 60, "x" * 60),
        ("x" * 61, ""),
        ("c\u00fcrl/8.5", ""),
        ("curl\t8.5", ""),
        ("sk_live_" + "x" * 43, ""),
    ],
)
def test_a_client_is_called_by_its_first_word_if_that_is_plain(header: str, told: str) -> None:
    assert client_label({"HTTP_USER_AGENT": header}) == told


def test_what_was_verified_is_noted_as_a_use(cast: Cast, key: MadeKey) -> None:
    verify(cast.app, key, "?scope=tasks:read", headers={"User-Agent": "gateway/1"})
    refused = verify(cast.app, key, "?scope=tasks:write")
    cast.app.extensions["portal"].usage.flush()
    assert "gateway/1" in cast.rio.get(f"keys/{key.id}").text
    told = cast.rio.post("/w/acme/explain", {"request_id": refused.headers["X-Request-Id"]}).text
    assert "tasks:write" in told
    assert "/verify" in told


def test_every_answer_to_a_key_tells_its_limits(cast: Cast, key: MadeKey) -> None:
    before = time.time()
    replies = [
        cast.call("GET", "/me", key),
        cast.call("GET", "/apps/tasks/records", key),
        cast.call("POST", "/apps/tasks/records", key),
        cast.call("GET", "/apps/tasks/records/rec_none", key),
        cast.call("DELETE", "/apps/tasks/records", key),
        verify(cast.app, key),
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 403, 404, 405, 200]
    assert [reply.headers["X-RateLimit-Limit"] for reply in replies] == ["1000"] * 6
    assert [int(reply.headers["X-RateLimit-Remaining"]) for reply in replies] == list(range(999, 993, -1))
    for reply in replies:
        assert before + 58 < int(reply.headers["X-RateLimit-Reset"]) <= time.time() + 62
        assert reply.headers["X-Environment"] == "live"
    for refused in (cast.call("GET", "/me"), cast.call("GET", "/me", headers={"Authorization": "Bearer x"})):
        assert not [name for name, _ in refused.headers if name.startswith("X-RateLimit")]


def test_a_key_that_comes_too_often_waits_and_is_told_why(
    cast: Cast, key: MadeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "PER_SECOND", PER_SECOND)
    now = time.monotonic()  # and no later: on a busy machine the second would be over before the last request
    monkeypatch.setattr(cast.app.extensions["portal"].rate_limit._host, "_clock", lambda: now)
    other = cast.rio.generate(name="Another")
    replies = [cast.call("GET", "/me", key) for _ in range(70)]
    assert [reply.status_code for reply in replies] == [200] * 50 + [429] * 20
    refused = replies[50:]
    told = error(refused[0], 429)
    assert (told["type"], told["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert refused[0].headers["X-RateLimit-Remaining"] == "950"
    assert "WWW-Authenticate" not in refused[0].headers
    assert cast.call("GET", "/me", other).status_code == 200
    cast.app.extensions["portal"].usage.flush()
    page = cast.rio.post("/w/acme/explain", {"request_id": refused[0].headers["X-Request-Id"]}).text
    assert "more often than its limits allow" in page
    assert "429" in page
    assert "50 in any second" in page
    assert "set for it" not in page
    assert f"keys/{key.id}/rate" not in page


@pytest.mark.both
def test_a_429_names_the_limit_that_was_met_and_who_set_it(
    cast: Cast, key: MadeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> TestResponse:
        """Call until one is refused: the second may be over before the next request."""
        return next(reply for reply in (cast.call("GET", "/me", key) for _ in range(50)) if reply.status_code == 429)

    def told(limit: str, reply: TestResponse) -> None:
        wait = reply.headers["Retry-After"]
        assert error(reply, 429)["message"] == f"This key’s limit is {limit}. Try again in {wait} s."

    by = ", set for it by an administrator"
    monkeypatch.setattr(rate_limit, "PER_SECOND", 1)
    told("1 request in any second", refused())
    monkeypatch.setattr(rate_limit, "PER_SECOND", 1_000_000)
    cast.ana.post(f"keys/{key.id}/rate", {"rate_per_minute": "", "rate_per_second": "1"})
    told(f"1 request in any second{by}", refused())
    cast.ana.post(f"keys/{key.id}/rate", {"rate_per_minute": "2", "rate_per_second": ""})
    reply = refused()
    told(f"2 requests in any 60 seconds{by}", reply)
    cast.app.extensions["portal"].usage.flush()
    asked = {"request_id": reply.headers["X-Request-Id"]}
    page = cast.ana.post("/w/acme/explain", asked).text
    assert "2 requests in any 60 seconds (set for it by an administrator)" in page
    assert f'href="/w/acme/api/keys/{key.id}/rate"' in page
    page = cast.rio.post("/w/acme/explain", asked).text
    assert f"keys/{key.id}/rate" not in page
    assert "An administrator can change how many requests" in page


def test_bad_keys_of_one_network_never_hurt_a_good_one(cast: Cast, key: MadeKey, launch: Callable[..., Flask]) -> None:
    app = launch(PORTAL_TRUSTED_PROXIES="127.0.0.1")

    def call(text: str, address: str = "203.0.113.7") -> TestResponse:
        headers = {"Authorization": f"Bearer {text}", "X-Forwarded-For": address}
        return app.test_client(use_cookies=False).get("/api/v1/me", headers=headers)

    answers = [call("sk_live_nonsense").status_code for _ in range(320)]
    assert answers[:300] == [401] * 300
    assert set(answers[300:]) <= {401, 429}  # a new minute counts anew
    assert call(key.text).status_code == 200
    assert call("sk_live_nonsense", "203.0.113.8").status_code == 401
    there = {"X-Forwarded-For": "203.0.113.7"}
    assert verify(app, headers=there).status_code == 401  # no key is no bad one
    assert verify(app, key, "?scope=tasks:write", headers=there).status_code == 403  # nor one that may less


# --- Turns ----------------------------------------------------------------------------------------------------------


class LongTurn(Turn):
    """A turn for which any wait is long; it tells when somebody, judged without it, has waited for it again."""

    def __init__(self) -> None:
        super().__init__()
        self._waits, self.waited_for = 0, Event()

    def acquire(self, timeout: float | None = None) -> bool:
        if super().acquire(timeout and 0):
            return True
        self._waits += 1
        if self._waits == 2:
            self.waited_for.set()
        return False


@pytest.fixture
def turn(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> LongTurn:
    """What a page holds for as long as it takes, also while it waits for somebody else's write."""
    outermost: Any = cast.app.wsgi_app
    monkeypatch.setattr(outermost._app, "_turn", LongTurn())
    return outermost._app._turn  # type: ignore[no-any-return]


def test_checks_wait_for_no_page(cast: Cast, key: MadeKey, turn: LongTurn) -> None:
    unknown = MadeKey("", cast.app.extensions["portal"].settings.keyring.format.mint("live").reveal())
    with turn:
        assert verify(cast.app, key, "?scope=tasks:read").status_code == 200
        assert verify(cast.app, key, "?scope=leads:read").status_code == 403
        assert cast.call("GET", "/me", key).status_code == 200
        assert cast.call("GET", "/me", unknown).status_code == 401
        assert cast.app.test_client().get("/healthz").status_code == 200


@pytest.mark.both
@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_a_key_is_checked_again_after_a_long_wait_and_counted_once(
    cast: Cast, key: MadeKey, turn: LongTurn, database: Database, ends: bool
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with turn:
            asked = pool.submit(cast.call, "GET", "/solutions", key)
            assert turn.waited_for.wait(30)
            with database.transaction() as session:
                if ends:
                    keys.revoke(session, operator(), key.id)
                else:
                    soon = datetime.now(UTC) + timedelta(hours=1)
                    session.execute(update(ApiKey).where(ApiKey.public_id == key.id).values(expires_at=soon))
        reply = asked.result()
    if ends:
        assert error(reply, 401)["code"] == "invalid_key"
    else:
        assert reply.status_code == 200
        assert reply.headers["X-RateLimit-Remaining"] == str(rate_limit.PER_MINUTE - 1)
        assert reply.headers["X-Key-Expires-At"] == answers.moment(soon), "as it is by now"
