"""What counts as a credential: one Bearer key in one Authorization header, and nothing else anywhere else."""

import base64
import re
import string
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from portal.rules.access import Environment
from portal.rules.credentials import KeyFormat
from portal.web import front
from tests.cast import Cast, MadeKey
from tests.web.looking import data, error


@pytest.fixture(scope="module")
def key(shared_cast: Cast) -> MadeKey:
    return shared_cast.rio.generate()


@pytest.fixture(scope="module")
def other(shared_cast: Cast) -> MadeKey:
    return shared_cast.rio.generate(name="Another", environment="test")


Ask = Callable[[str | None], TestResponse]


@pytest.fixture(scope="module")
def ask(shared_cast: Cast) -> Ask:
    """Ask who I am with a header as the server hands it to us: bytes as Latin-1, several headers joined by commas."""

    def send(authorization: str | None, path: str = "/me") -> TestResponse:
        environ = {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}
        return shared_cast.call("GET", path, environ_overrides=environ)

    return send


@pytest.mark.parametrize(
    "written", ["Bearer {}", "bearer {}", "BEARER {}", "BeArEr {}", "Bearer    {}", "Bearer {}  ", "bEARER  {} "]
)
def test_the_scheme_may_be_written_in_any_case_with_any_number_of_spaces(ask: Ask, key: MadeKey, written: str) -> None:
    assert data(ask(written.format(key.text)))["key"]["id"] == key.id


MALFORMED = (
    *("Bearer", "Bearer ", "bearer   ", "Bearer =", "Bearer a=b, c=d", "Bearer null", "Bearer token={}", "Bearer {};"),
    *("Bearer \x00", "Bearer {}\x00", "Bearer \xff\xfe", "Bearer {}\xe4", "Bearer \xe2\x80\xae{}", "Bearer {}\r\n"),
    *("Bearer {}{}", "Bearer {}x", "Bearer x{}", "Bearer {} {}", "Bearer {}..", "Bearer Bearer {}", "Bearer {}\n"),
    *("Bearer\t{}", "Bearer \t{}", "Bearer {}\t", 'Bearer "{}"', "Bearer '{}'", "Bearer <{}>", "Bearer " + "a" * 2**20),
    *("Bearer {},Bearer {}", "Bearer {}, Bearer {}", "Bearer {other},Bearer {}", "Bearer {},Basic x", "Bearer {},"),
    *("Basic x,Bearer {}", "Basic x, bearer {}", "Token {},Bearer {}", "Bearer {},Token {}", ",Bearer", ", Bearer\t{}"),
)
MISSING = (
    *("", " ", "{}", "Bearer{}", "Bearer:{}", "Bearer-{}", 'Bearer"{}"', " Bearer {}", "\tBearer {}", "\x00Bearer {}"),
    *(
        "Token {}",
        "ApiKey {}",
        "Basic {}",
        "Digest {}",
        "Bearers {}",
        "B earer {}",
        "Basic x,Bearers {}",
        "=",
        "\xff",
        "a" * 2**20,
    ),
)


@pytest.mark.parametrize(
    ("header", "code"),
    [*((header, "malformed_key") for header in MALFORMED), *((header, "missing_key") for header in MISSING)],
    ids=lambda value: repr(value)[:40],
)
def test_a_header_that_is_not_one_bearer_key_is_refused_at_once(
    ask: Ask, key: MadeKey, other: MadeKey, header: str, code: str
) -> None:
    written = header.replace("{}", key.text).replace("{other}", other.text)
    took = []
    for _ in range(3):  # the quickest counts: a machine that is busy with other things says nothing about us
        started = time.process_time()
        reply = ask(written)
        took.append(time.process_time() - started)
    assert min(took) < 0.1
    assert error(reply, 401)["code"] == code
    assert ('error="invalid_token"' in reply.headers["WWW-Authenticate"]) == (code == "malformed_key")


@pytest.mark.parametrize("pair", ["{}:", ":{}", "user:{}", "{}:x-oauth-basic", "{}"])
def test_a_key_as_basic_user_or_password_is_nothing(ask: Ask, key: MadeKey, pair: str) -> None:
    encoded = base64.b64encode(pair.format(key.text).encode()).decode()
    assert error(ask(f"Basic {encoded}"), 401)["code"] == "missing_key"


def test_case_counts_in_a_key(ask: Ask, key: MadeKey) -> None:
    for text in (key.text.upper(), key.text.lower(), key.text.swapcase()):
        assert error(ask(f"Bearer {text}"), 401)["code"] == "malformed_key"


def test_a_key_with_another_environment_on_it_is_no_key(ask: Ask, key: MadeKey, other: MadeKey) -> None:
    for text in (key.text.replace("_live_", "_test_"), other.text.replace("_test_", "_live_")):
        assert error(ask(f"Bearer {text}"), 401)["code"] == "malformed_key"


def test_one_wrong_character_anywhere_makes_it_no_key(ask: Ask, key: MadeKey) -> None:
    for place, right in enumerate(key.text):
        wrong = "0" if right != "0" else "1"
        assert error(ask(f"Bearer {key.text[:place]}{wrong}{key.text[place + 1 :]}"), 401)["code"] == "malformed_key"


def test_no_text_at_all_but_a_key_gets_in(ask: Ask, key: MadeKey) -> None:
    nearly = st.sampled_from(["Bearer ", "bearer", "", "Basic ", key.text, key.text[:20], ",", "\t", " ", "="])
    noise = st.text(st.characters(max_codepoint=255), max_size=30) | st.text(string.ascii_letters + "_", max_size=60)

    @given(parts=st.lists(nearly | noise, max_size=5))
    @settings(max_examples=150, deadline=None)
    def refused(parts: list[str]) -> None:
        header = "".join(parts)
        if re.fullmatch(f"bearer +{key.text} *", header, re.IGNORECASE):
            return
        assert error(ask(header), 401)["code"] in {"malformed_key", "missing_key"}

    refused()


@pytest.mark.parametrize("name", ["key", "api_key", "access_token", "token", "authorization", "x", ""])
def test_a_key_in_the_query_never_counts_and_spoils_the_one_in_the_header(
    shared_cast: Cast, key: MadeKey, other: MadeKey, name: str
) -> None:
    for text in (key.text, other.text, key.text.replace("_", "%5F"), key.text.replace("sk", "s%6B")):
        path = f"/me?{name}={text}" if name else f"/me?{text}"
        missing = shared_cast.call("GET", path)
        assert error(missing, 401)["code"] == "missing_key"
        assert missing.headers["WWW-Authenticate"] == 'Bearer realm="Latchkey"'
        at_the_door = shared_cast.app.test_client().get(f"/verify?{path.partition('?')[2]}")
        assert error(at_the_door, 401)["code"] == "missing_key"
        assert error(shared_cast.call("GET", path, key), 401)["code"] == "malformed_key"
        mine = f"/apps/tasks/records?limit=1&{path.partition('?')[2]}"
        assert error(shared_cast.call("GET", mine, key), 401)["code"] == "malformed_key"


def test_a_key_in_any_other_place_is_nothing(shared_cast: Cast, key: MadeKey) -> None:
    names = ("X-Api-Key", "Api-Key", "Proxy-Authorization", "X-Authorization", "X-Auth-Token", "Authentication", "From")
    for name in names:
        for value in (key.text, f"Bearer {key.text}"):
            assert error(shared_cast.call("GET", "/me", headers={name: value}), 401)["code"] == "missing_key"
    for cookie in ("portal", "session", "key", "Authorization"):
        reply = shared_cast.call("GET", "/me", headers={"Cookie": f"{cookie}={key.text}"})
        assert error(reply, 401)["code"] == "missing_key"
    body = {"fields": {"title": "x"}, "key": key.text, "access_token": key.text}
    assert error(shared_cast.call("POST", "/apps/tasks/records", json=body), 401)["code"] == "missing_key"
    assert error(shared_cast.call("POST", "/apps/tasks/records", data=body), 401)["code"] == "missing_key"


def test_a_session_is_no_key_and_a_key_gets_no_session(shared_cast: Cast, key: MadeKey) -> None:
    assert error(shared_cast.ana.browser.get("/api/v1/me"), 401)["code"] == "missing_key"
    as_browser = shared_cast.app.test_client()
    assert as_browser.get("/api/v1/me", headers=key.bearer).status_code == 200
    for path in ("/w", "/w/acme", "/w/acme/api/keys"):
        assert as_browser.get(path, headers=key.bearer).status_code == 303
        assert as_browser.get_cookie("portal") is None
    assert as_browser.get("/w/acme").location.startswith("/login")


def test_a_key_given_together_with_a_session_counts_alone(shared_cast: Cast, key: MadeKey) -> None:
    reply = shared_cast.ana.browser.get("/api/v1/me", headers=key.bearer)
    assert data(reply)["member"]["name"] == "Rio Tanaka"
    assert error(shared_cast.ana.browser.get("/api/v1/apps/leads/records", headers=key.bearer), 403)


def test_how_long_a_refusal_takes_does_not_tell_whether_there_is_such_a_key(
    shared_cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look a known key up and to note it takes longer; both are answered at one moment."""
    cast, waits = shared_cast, list[float]()
    monkeypatch.setattr(front, "sleep", waits.append)
    monkeypatch.setattr(front, "EVEN_AFTER", 60.0)  # whatever else this machine does meanwhile
    good, stopped, deleted = (cast.rio.generate(name=name) for name in ("Good", "Stopped", "Deleted"))
    cast.rio.post(f"keys/{stopped.id}/deactivate")
    assert cast.call("DELETE", "/me", deleted).status_code == 204
    unknown = MadeKey("", KeyFormat().mint(Environment.LIVE).reveal())
    for key in (unknown, stopped, deleted):
        for reply in (cast.call("GET", "/me", key), cast.app.test_client().get("/verify", headers=key.bearer)):
            assert reply.status_code == 401
    other = {**good.bearer, "Account-Id": "ws_other"}
    assert cast.call("GET", "/me", headers=other).status_code == 401
    assert len(waits) == 7
    assert all(0 < wait < front.EVEN_AFTER for wait in waits)
    for headers in (good.bearer, {}, {"Authorization": "Bearer x"}):
        cast.call("GET", "/me", headers=headers)
    assert len(waits) == 7
