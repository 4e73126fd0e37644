"""What stands in front of every form and page: tokens, origins, host names, proxies, headers, and HTMX's hints."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient

from portal.demo import PASSWORD
from portal.store.database import Database
from tests.cast import HTMX, KEY_TEXT, Cast, MadeKey
from tests.web.looking import SECURITY_HEADERS, everything, kept, token_on

KEYS = "/w/acme/api/keys"


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    return cast.ana.generate(["leads:read"])


def paths(app: Flask, method: str, key_id: str) -> list[str]:
    """List the addresses of all pages that take a method, with what ana has in acme."""
    found = {"ws": "acme", "app": "tasks", "token": "x" * 43, "key_id": key_id, "filename": "app.js"}
    found |= {"solution": "sales", "mid": "mem_1", "iid": "inv_1", "eid": "evt_1", "vid": "ver_1"}
    return [
        re.sub(r"<(?:\w+:)?(\w+)>", lambda match: found[match[1]], rule.rule)
        for rule in app.url_map.iter_rules()
        if method in (rule.methods or ()) and not rule.rule.startswith(("/api/", "/oauth/"))
    ]


# --- Tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad_tokens(cast: Cast) -> list[str | None]:
    """No token, nonsense, one of somebody else's session, and one of an earlier session of the same person."""
    foreign = token_on(cast.rio.get(KEYS))
    before = cast.stranger("ana")
    stale = token_on(before.get("/login"))
    return [None, "", "x", foreign, stale, token_on(cast.ana.get(KEYS))[:-1]]


def test_no_form_is_taken_without_its_own_sessions_token(
    cast: Cast, database: Database, key: MadeKey, bad_tokens: list[str | None]
) -> None:
    before = kept(database)
    for path in paths(cast.app, "POST", key.id):
        for token in bad_tokens:
            answers = {
                "name": "Typed by hand",
                "scopes": ["leads:read"],
                "password": PASSWORD,
                "email": "ana@acme.test",
            }
            sent = answers | ({} if token is None else {"csrf_token": token})
            page = cast.ana.browser.post(path, data=sent)
            assert (page.status_code, path) == (400, path)
            assert "Typed by hand" in page.text
            assert PASSWORD not in page.text
            fragment = cast.ana.browser.post(path, data=sent, headers=HTMX)
            assert (fragment.status_code, "<html" in fragment.text) == (400, False)
            if token:
                in_header = cast.ana.browser.post(path, data=answers, headers={"X-CSRFToken": token})
                assert in_header.status_code == 400
    assert kept(database) == before
    assert cast.ana.get(KEYS).status_code == 200


def test_without_any_cookie_no_form_is_taken_either(cast: Cast, database: Database, key: MadeKey) -> None:
    before = everything(database)
    token = token_on(cast.ana.get(KEYS))
    for path in paths(cast.app, "POST", key.id):
        reply = cast.app.test_client(use_cookies=False).post(path, data={"csrf_token": token})
        assert reply.status_code == 400, path
    assert everything(database) == before


def test_a_form_after_signing_out_in_another_tab_says_to_sign_in_and_goes_on_then(
    cast: Cast, database: Database
) -> None:
    max_ = cast.stranger("max")
    max_.sign_in()
    mine = max_.generate(["leads:read"], name="Left in a tab")
    path = f"{KEYS}/{mine.id}/edit"
    answers = {"csrf_token": token_on(max_.get(path)), "name": "Typed before", "note": ""}
    max_.post("/logout")
    before = kept(database)
    for headers in ({}, HTMX):
        assert max_.browser.post(path, data=answers, headers=headers).status_code == 400
    pressed = max_.browser.post(path, data=answers)
    assert "You are signed out" in pressed.text
    assert 'href="/login"' in pressed.text
    assert kept(database) == before
    answers["csrf_token"] = token_on(pressed)
    max_.sign_in()
    stale = max_.browser.post(path, data=answers)  # its token was made before signing in
    assert (stale.status_code, "You are signed out" in stale.text, "Typed before" in stale.text) == (400, False, True)
    assert max_.browser.post(path, data=answers | {"csrf_token": token_on(stale)}).status_code == 303
    assert "Typed before" in max_.get(path).text


def test_what_was_typed_into_a_form_that_expired_can_be_sent_again(cast: Cast) -> None:
    max_ = cast.stranger("max")
    max_.sign_in()
    answers = max_.form(name="Typed <once>", note="“here”", scopes=["leads:read", "leads:write"])
    stale = max_.browser.post(KEYS, data={**answers, "csrf_token": "stale"})
    assert "Typed &lt;once&gt;" in stale.text
    assert f'action="{KEYS}"' in stale.text
    assert "<title>Error: This form was open too long – Acme – Latchkey</title>" in stale.text
    told = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", stale.text.partition("<main")[2])))
    assert "Your answers are kept below: press “Generate live key” again." in told
    facts = told.partition("again.")[2].partition("Request id")[0].split()
    assert " ".join(facts) == (
        "Name Typed <once> Used in “here” Environment Live Scopes leads:read , leads:write Expires 90 days "
        "Generate live key"
    )
    fields: dict[str, list[str]] = {}
    for tag in re.findall(r"<input[^>]*>", stale.text.partition("<main")[2]):
        name, value = re.search(r'name="([^"]*)"', tag), re.search(r'value="([^"]*)"', tag)
        if name and value:
            fields.setdefault(name[1], []).append(unescape(value[1]))
    reveal = max_.browser.post(KEYS, data=fields)
    assert reveal.status_code == 200
    assert KEY_TEXT.search(reveal.text)
    assert "Typed &lt;once&gt;" in reveal.text


def test_a_token_lives_as_long_as_its_session_and_may_come_in_a_header(cast: Cast) -> None:
    rio = cast.stranger("rio")
    rio.sign_in()
    token = token_on(rio.get(KEYS))
    for minutes in (59, 110):
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes)):
            assert rio.browser.post(f"{KEYS}/new/scopes", data={"csrf_token": token}).status_code == 200
            assert rio.browser.post(f"{KEYS}/new/scopes", headers={"X-CSRFToken": token} | HTMX).status_code == 200
            assert rio.browser.post(f"{KEYS}/new/scopes?csrf_token={token}").status_code == 400


# --- Origins --------------------------------------------------------------------------------------------------------

FOREIGN = (
    *({"Sec-Fetch-Site": site} for site in ("cross-site", "same-site", "nonsense")),
    *({"Origin": origin} for origin in ("https://evil.example", "null", "", "http://localhost:1", "https://localhost")),
    *({"Origin": origin} for origin in ("http://localhost.evil.example", "http://evil.example/localhost", "http://")),
    {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_no_form_is_taken_from_another_site(
    cast: Cast, database: Database, key: MadeKey, headers: dict[str, str]
) -> None:
    before = kept(database)
    # Either header keeps every form shut; what else may stand in them is read in one place for all.
    everywhere = headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"})
    for path in paths(cast.app, "POST", key.id) if everywhere else ("/login", KEYS, f"{KEYS}/{key.id}/delete"):
        reply = cast.ana.post(path, {"password": PASSWORD}, headers=headers)
        assert (reply.status_code, path) == (403, path)
        assert cast.ana.post(path, headers=headers | HTMX).status_code == 403
    assert kept(database) == before


@pytest.mark.parametrize(
    "headers",
    [
        *({}, {"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}),
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_a_form_of_our_own_is_taken_with_or_without_the_headers_that_say_so(
    cast: Cast, headers: dict[str, str]
) -> None:
    assert cast.ana.post(f"{KEYS}/new/scopes", headers=headers).status_code == 200


def test_pages_may_be_opened_and_the_api_called_from_anywhere(cast: Cast) -> None:
    headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert cast.ana.get(KEYS, headers=headers).status_code == 200
    key = cast.lea.generate(["tasks:write"], name="From anywhere")
    made = cast.call("POST", "/apps/tasks/records", key, json={"fields": {"title": "x"}}, headers=headers)
    assert made.status_code == 201
    assert not [name for name, _ in made.headers if name.startswith("Access-Control")]


# --- Fragments ------------------------------------------------------------------------------------------------------


def test_a_fragment_without_a_session_is_told_to_go_and_sign_in(cast: Cast, key: MadeKey) -> None:
    guarded = [path for path in paths(cast.app, "GET", key.id) if path.startswith("/w")]
    on_page = HTMX | {"HX-Current-URL": "http://localhost/w/acme/api/keys?owner=all&page=2"}
    for path in guarded:
        reply = cast.stranger().browser.get(path, headers=on_page)
        assert (reply.status_code, reply.data) == (401, b"")
        assert reply.headers["HX-Redirect"] == "/login?next=/w/acme/api/keys?owner%3Dall%26page%3D2"
        assert reply.headers["Cache-Control"] == "no-store"
    stranger = cast.stranger()
    stranger.get("/login")
    for path in paths(cast.app, "POST", key.id):
        if path.startswith("/w"):
            reply = stranger.post(path, headers=on_page)
            assert (reply.status_code, reply.data, reply.headers["HX-Redirect"][:6]) == (401, b"", "/login")


@pytest.mark.parametrize(
    "current",
    [
        *("https://evil.example/", "//evil.example", "javascript:alert(1)", "", "\x00", "x" * 5000),
        *("http://localhost", "http://localhost.evil/", "http://localhost@evil/"),
        *("http://localhost//evil.example", "http://localhost/\\evil.example"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_page_that_a_fragment_says_it_is_on_cannot_send_anybody_away(cast: Cast, current: str) -> None:
    headers = HTMX | {"HX-Current-URL": current}
    reply = cast.stranger().browser.get(KEYS, headers=headers)
    assert reply.status_code == 401
    target = reply.headers["HX-Redirect"]
    assert re.match(r"/login(\?|$)", target)
    assert re.match(r"/(?!/)", cast.ana.browser.get(target).location)
    assert cast.ana.browser.get(target).location == "/w/acme"


def test_a_page_without_a_session_leads_to_signing_in_and_back(cast: Cast, key: MadeKey) -> None:
    for path in paths(cast.app, "GET", key.id):
        if path.startswith("/w"):
            reply = cast.stranger().browser.get(path + "?page=2")
            assert reply.status_code == 303
            assert reply.location.startswith("/login?next=/w")
            assert cast.ana.browser.get(reply.location).location == path + "?page=2"


# --- Headers --------------------------------------------------------------------------------------------------------


def test_nothing_that_somebody_signed_in_gets_is_kept_anywhere(cast: Cast, key: MadeKey) -> None:
    ana = cast.ana
    for path in [*paths(cast.app, "GET", key.id), "/nothing", "/w/nowhere"]:
        for headers in ({}, HTMX):
            reply = ana.browser.get(path, headers=headers, buffered=True)
            assert SECURITY_HEADERS.items() <= dict(reply.headers).items(), path
            if not path.startswith("/static"):
                assert reply.headers["Cache-Control"] == "no-store", path
                assert {"Cookie", "HX-Request"} <= set(re.split(", *", reply.headers["Vary"])), path
    somebody = cast.stranger("max")
    for path in paths(cast.app, "POST", key.id):
        if somebody.get("/account").status_code != 200:  # at first, and after what ends a session
            somebody.sign_in()
        for reply in (somebody.browser.post(path), somebody.post(path, headers=HTMX)):
            assert reply.headers["Cache-Control"] == "no-store"
            assert {"Cookie", "HX-Request"} <= set(re.split(", *", reply.headers["Vary"]))
            assert SECURITY_HEADERS.items() <= dict(reply.headers).items()


def test_no_page_carries_anything_that_the_content_policy_would_stop(cast: Cast, key: MadeKey) -> None:
    for path in paths(cast.app, "GET", key.id):
        page = cast.ana.browser.get(path, follow_redirects=True, buffered=True)
        if page.mimetype == "text/html":
            assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)|<style|\sstyle=|\son\w+=\"|javascript:", page.text)
            assert not re.search(r'(?:src|href|action|formaction)="(?:https?:)?//', page.text)


# --- Host names and proxies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "evil.example:5000", "localhost:80:80", "localhost@evil.example"),
        *("localhost:x", "localhost:", "localhost:-1", "localhost/", "localhost\\", "localhost,evil.example"),
        *(" localhost", "[localhost", "localhost]", "[localhost]", "::1", "[::1", "[::1]x", "0", "127.1"),
        *("localhost\x00", "\xff", "", "local host", "localhost.", "a" * 10_000),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_host_name_that_is_not_ours_gets_nothing(cast: Cast, host: str) -> None:
    for path in ("/login", "/w/acme", "/api/v1/me", "/healthz", "/nothing"):
        reply = cast.ana.browser.get(path, environ_overrides={"HTTP_HOST": host})
        assert reply.status_code == 400
        assert not {"Set-Cookie", "Location"} & {name for name, _ in reply.headers}
        assert host not in reply.text or len(host) < 2
        assert SECURITY_HEADERS.items() <= dict(reply.headers).items()


@pytest.mark.parametrize("host", ["localhost", "LocalHost:5000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:5000"])
def test_the_loopback_names_are_ours_while_developing(cast: Cast, host: str) -> None:
    assert cast.stranger().browser.get("/login", environ_overrides={"HTTP_HOST": host}).status_code == 200


def address_seen(app: Flask, database: Database, headers: dict[str, str], peer: str = "127.0.0.1") -> object:
    """Sign in through a portal; give the address that it noted."""
    person = Cast(app).stranger("rio")
    person.browser.environ_base["REMOTE_ADDR"] = peer
    for name, value in headers.items():
        person.browser.environ_base["HTTP_" + name.upper().replace("-", "_")] = value
    assert person.sign_in().status_code == 303
    return everything(database)["user_session"][-1]["address"]


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "Forwarded", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Client-Ip"]
)
def test_nobody_is_believed_who_says_to_come_from_elsewhere(cast: Cast, database: Database, name: str) -> None:
    assert address_seen(cast.app, database, {name: "203.0.113.7"}) == "127.0.0.1"


PROXIES = "127.0.0.1, 10.0.0.0/8, ::1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),  # what the client made up stands farther left
        ("127.0.0.1", "198.51.100.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7:50123, [fd00::1]:443, 10.1.2.3", "fd00::1"),  # as some gateways write it
        ("::1", "203.0.113.7:50123", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7:", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.7, nonsense, 10.1.2.3", "10.1.2.3"),
        ("198.51.100.9", "203.0.113.7", "198.51.100.9"),  # no proxy of ours
    ],
)
def test_only_a_configured_proxy_is_believed_and_only_its_own_word(
    launch: Callable[..., Flask], peer: str, forwarded: str, seen: str
) -> None:
    app = launch(PORTAL_TRUSTED_PROXIES=PROXIES)
    assert address_seen(app, app.extensions["portal"].database, {"X-Forwarded-For": forwarded}, peer) == seen


def test_a_proxy_cannot_rename_the_portal(launch: Callable[..., Flask]) -> None:
    cast = Cast(launch(PORTAL_TRUSTED_PROXIES=PROXIES))
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Port": "666", "X-Forwarded-Prefix": "/evil"}
    assert cast.rio.browser.get("/login", headers=headers).location == "/w/acme"
    key = cast.rio.generate()
    refused = cast.call("GET", "/apps/leads/records", key, headers=headers).get_json()["error"]
    assert refused["fixUrl"].startswith("http://127.0.0.1:5000/w/acme/")


# --- A portal reached over https ------------------------------------------------------------------------------------

SITE = "https://keys.example.org"


@pytest.fixture
def secure(launch: Callable[..., Flask]) -> Iterator[FlaskClient]:
    """A browser at a portal behind a proxy that speaks TLS."""
    app = launch(
        PORTAL_BASE_URL=SITE,
        PORTAL_SECRET_KEY="Vq3x" * 10 + "0123456789",
        PORTAL_KEY_PEPPERS="a1:" + "Zk8w" * 10 + "0123456789",
        PORTAL_TRUSTED_PROXIES="127.0.0.1",
    )
    browser = app.test_client()
    browser.environ_base |= {"HTTP_HOST": "keys.example.org", "HTTP_X_FORWARDED_PROTO": "https"}
    yield browser


def test_over_https_the_cookie_is_locked_to_the_host_and_everything_works(secure: FlaskClient) -> None:
    own = {"base_url": SITE, "headers": {"Origin": SITE, "Referer": f"{SITE}/login"}}
    page = secure.get("/login", base_url=SITE)
    assert page.headers["Strict-Transport-Security"].startswith("max-age=")
    answers = {"csrf_token": token_on(page), "email": "rio@acme.test", "password": PASSWORD}
    reply = secure.post("/login", data=answers, **own)
    assert (reply.status_code, reply.location) == (303, "/")
    for answered in (page, reply):
        (cookie,) = answered.headers.getlist("Set-Cookie")
        assert cookie.startswith("__Host-portal=")
        assert set(cookie.split("; ")[1:]) == {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}
    listed = secure.get(KEYS, base_url=SITE)
    assert listed.status_code == 200
    signed_out = secure.post("/logout", data={"csrf_token": token_on(listed)}, **own)
    assert signed_out.status_code == 303


def test_over_https_only_this_origin_and_this_host_count(secure: FlaskClient) -> None:
    token = token_on(secure.get("/login", base_url=SITE))
    answers = {"csrf_token": token, "email": "rio@acme.test", "password": PASSWORD}
    for origin in ("http://keys.example.org", "https://keys.example.org:8443", "https://evil.example", "null"):
        assert secure.post("/login", data=answers, base_url=SITE, headers={"Origin": origin}).status_code == 403
    referer = {"Referer": "https://evil.example/"}
    assert secure.post("/login", data=answers, base_url=SITE, headers=referer).status_code == 400
    for host in ("localhost", "127.0.0.1", "evil.example", "example.org", "x.keys.example.org"):
        assert secure.get("/login", base_url=SITE, environ_overrides={"HTTP_HOST": host}).status_code == 400


def test_over_https_a_fragment_knows_its_page_though_the_proxy_does_not_speak_of_tls(secure: FlaskClient) -> None:
    del secure.environ_base["HTTP_X_FORWARDED_PROTO"]
    on_page = HTMX | {"HX-Current-URL": f"{SITE}{KEYS}?owner=all"}
    reply = secure.get(KEYS, base_url="http://keys.example.org", headers=on_page)
    assert reply.headers["HX-Redirect"] == f"/login?next={KEYS}?owner%3Dall"


# --- Repeated fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["name", "note", "owner", "environment", "expires", "form_id"])
def test_a_field_that_is_sent_twice_is_refused(cast: Cast, database: Database, field: str) -> None:
    answers = cast.rio.form()
    before = kept(database)
    for path in (KEYS, f"{KEYS}/new/review", f"{KEYS}/new/scopes"):
        for headers in ({}, HTMX):
            twice = {**answers, field: [answers[field], "test" if field == "environment" else "other"]}
            assert cast.rio.post(path, twice, headers=headers).status_code == 400
    assert kept(database) == before


@pytest.mark.parametrize("field", ["email", "password", "next"])
def test_a_field_of_the_sign_in_form_that_is_sent_twice_is_refused(cast: Cast, field: str) -> None:
    answers: dict[str, object] = {"email": "rio@acme.test", "password": PASSWORD, "next": "/w/acme"}
    stranger = cast.stranger()
    stranger.get("/login")
    assert stranger.post("/login", {**answers, field: [answers[field], "other"]}).status_code == 400
    assert stranger.get(KEYS).status_code == 303
    if field != "email":
        assert cast.rio.post("/reauth", {**answers, field: [answers[field], "other"]}).status_code == 400
