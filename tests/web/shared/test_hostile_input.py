"""Forms and addresses of pages with what no person types: always a clear 4xx, never a 5xx, and nothing changed."""

import io
import re
import time
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from portal.demo import PASSWORD
from portal.rules.access import Role
from portal.services import invitations, workspaces
from portal.services.actor import operator
from portal.store.database import Database
from tests.cast import HTMX, Cast, MadeKey, Person
from tests.web.looking import kept, token_on

KEYS = "/w/acme/api/keys"
SECOND = 1.0
OBJECT = '{"type": "object"}'
FORM, SIGN_IN = 16 * 1024, 4 * 1024  # bytes


@pytest.fixture(scope="module")
def key(cast: Cast) -> MadeKey:
    """A key of rio's that was used just now, so that deleting it asks for its name."""
    key = cast.rio.generate()
    assert cast.call("GET", "/me", key).status_code == 200
    cast.app.extensions["portal"].usage.flush()
    return key


@pytest.fixture(scope="module")
def invitation(database: Database) -> str:
    with database.transaction() as session:
        acme = workspaces.get(session, "acme")
        return "/invite/" + invitations.issue(session, operator(), acme, "kim@acme.test", Role.MEMBER)


@pytest.fixture(scope="module")
def answers(cast: Cast) -> dict[str, Any]:
    return cast.rio.form(name="Fine")


@pytest.fixture
def unchanged(database: Database) -> Any:
    """Nothing changes during the test."""
    before = kept(database)
    yield
    assert kept(database) == before


def encoded(fields: dict[str, Any]) -> str:
    """Encode a form as a browser would, lone surrogates as the bytes that a careless client makes of them."""
    lists = ((name, value if isinstance(value, list) else [value]) for name, value in fields.items())
    pairs = ((name, value.encode("utf-8", "surrogatepass")) for name, values in lists for value in values)
    return "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)


@cache
def token_of(person: Person) -> str:
    """Read the token of a session off a page that everybody may see."""
    return token_on(person.get(KEYS) if person.name in ("rio", "lea") else person.get("/login"))


def send(person: Person, path: str, fields: dict[str, Any], **options: Any) -> TestResponse:
    """Send a form with a good token; it may take a second of work at most."""
    body = encoded({"csrf_token": token_of(person), **fields})
    started = time.process_time()
    reply = person.browser.post(path, data=body, content_type="application/x-www-form-urlencoded", **options)
    assert time.process_time() - started < SECOND
    return reply


# Text that no field takes: NUL and other controls, text that turns around, bytes that are no UTF-8, more than fits.
UNFIT = {
    "NUL": "a\x00bcd",
    "only NULs": "\x00" * 5,
    "escape": "\x1b[31mred",
    "line breaks": "a\r\nSet-Cookie: b=c",
    "right to left": "abc\u202edef",
    "isolate": "\u2066abc",
    "byte order mark": "\ufeffabc",
    "unassigned": "abc\U000e0fff",
    "invisible": "\u200b\u200b\u200b\u200b",
    "too long": "x" * 3000,
    "too large": "x" * 20_000,
    "a million": "x" * 1_000_000,
}


def refused(limit: int) -> dict[str, int]:
    """Say what each of them gets of a form that takes `limit` bytes."""
    return {what: 413 if len(text) > limit else 422 for what, text in UNFIT.items()}


@pytest.mark.both
@pytest.mark.parametrize("field", ["name", "note", "owner", "environment", "scopes", "expires"])
def test_no_answer_of_the_generate_form_may_be_unfit(
    cast: Cast, answers: dict[str, Any], unchanged: None, field: str
) -> None:
    for path, headers in ((KEYS, {}), (KEYS, HTMX), (f"{KEYS}/new/review", {})):
        answered = {}
        for what, text in UNFIT.items():
            sent = answers | {field: ["tasks:read", text] if field == "scopes" else text}
            answered[what] = send(cast.rio, path, sent, headers=headers).status_code
        assert answered == refused(FORM)


@pytest.mark.parametrize("what", ["NUL", "too long", "right to left"])
def test_a_form_id_that_is_none_makes_no_trouble(
    cast: Cast, answers: dict[str, Any], unchanged: None, what: str
) -> None:
    reply = send(cast.rio, f"{KEYS}/new/review", answers | {"form_id": UNFIT[what]})
    assert reply.status_code in {200, 400, 422}
    assert UNFIT[what] not in reply.text


@pytest.mark.both
@pytest.mark.parametrize("start", ["", "Nightly export"])
def test_typing_something_unfit_deletes_no_key(cast: Cast, key: MadeKey, unchanged: None, start: str) -> None:
    path = f"{KEYS}/{key.id}/delete"
    answered = {what: send(cast.rio, path, {"name": start + text}).status_code for what, text in UNFIT.items()}
    assert answered == refused(FORM)


@pytest.mark.both
@pytest.mark.parametrize("field", ["email", "password", "next"])
def test_nobody_signs_in_with_something_unfit(cast: Cast, unchanged: None, field: str) -> None:
    stranger, answered = cast.stranger(), {}
    for n, (what, text) in enumerate(UNFIT.items()):
        # An address of its own for every try: the limit on guessing is another test's.
        stranger.browser.environ_base["REMOTE_ADDR"] = f"2001:db8:{n:x}:{len(field)}::1"
        fields = {"email": f"{n}@x.test", "password": "wrong", field: text}
        answered[what] = send(stranger, "/login", fields).status_code
    assert answered == refused(SIGN_IN)
    assert stranger.get(KEYS).status_code == 303


@pytest.mark.both
@pytest.mark.parametrize("what", ["NUL", "too long", "too large", "a million"])
def test_nothing_unfit_proves_who_one_is(cast: Cast, unchanged: None, what: str) -> None:
    reply = send(cast.lea, "/reauth", {"password": UNFIT[what], "next": UNFIT[what]})
    assert reply.status_code in {403, 413}


@pytest.mark.both
def test_nobody_joins_with_an_unfit_name(cast: Cast, key: MadeKey, invitation: str, unchanged: None) -> None:
    stranger, fields = cast.stranger(), dict.fromkeys(("password", "password_again"), "a long enough one")
    answered = {what: send(stranger, invitation, fields | {"name": text}).status_code for what, text in UNFIT.items()}
    assert answered == refused(FORM)
    pasted = send(stranger, invitation, fields | {"name": key.text})
    assert pasted.status_code == 422
    assert key.text not in pasted.text


@pytest.mark.parametrize(
    ("who", "path", "form"),
    [
        ("rio", f"{KEYS}/{{key}}/edit", {"name": "<pasted>", "note": "<pasted>"}),
        ("ana", "/w/acme/solutions/new", {"name": "<pasted>", "slug": "new", "description": "<pasted>"}),
        ("ana", "/w/acme/solutions/sales/edit", {"name": "<pasted>", "description": "<pasted>"}),
        ("ana", "/w/acme/apps/leads/edit", {"name": "<pasted>", "description": "<pasted>", "schema": OBJECT}),
        ("ana", "/w/acme/solutions/sales/apps/new", {"name": "Fine", "slug": "new", "description": "<pasted>"}),
        ("ana", "/w/acme/api-members/new", {"name": "<pasted>", "purpose": "<pasted>"}),
        ("ana", "/w/acme/workspace/verifiers/new", {"name": "<pasted>"}),
        ("ana", "/w/acme/review/{key}/reviewed", {"finding": "never_expires", "note": "<pasted>"}),
    ],
)
def test_a_key_that_is_pasted_for_words_is_neither_kept_nor_shown_again(
    cast: Cast, key: MadeKey, unchanged: None, who: str, path: str, form: dict[str, str]
) -> None:
    person: Person = getattr(cast, who)
    sent = {name: text.replace("<pasted>", key.text) for name, text in form.items()}
    reply = person.post(path.format(key=key.id), sent)
    assert reply.status_code == 422
    assert reply.text.count("This looks like a key.") >= [*form.values()].count("<pasted>")
    assert key.text not in reply.text


@pytest.mark.both
@pytest.mark.parametrize("password", ["", "short", "x" * 257, "x" * 3000, "x" * 1_000_000])
def test_nobody_joins_with_an_unfit_password(cast: Cast, invitation: str, unchanged: None, password: str) -> None:
    fields = {"name": "Kim Novak", "password": password, "password_again": password}
    assert send(cast.stranger(), invitation, fields).status_code == (413 if len(password) > FORM else 422)


@pytest.mark.parametrize(
    "path", ["/w/acme?app=", "/w/acme?env=", f"{KEYS}?owner=", f"{KEYS}?page=", f"{KEYS}/new?from=", f"{KEYS}/new?add="]
)
def test_an_odd_address_is_no_trouble(cast: Cast, unchanged: None, path: str) -> None:
    for text in (*(quote(text[:10_000]) for text in UNFIT.values()), "%FF", "%ED%A0%80", "x&x=y&" * 300):
        assert cast.rio.browser.get(path + text).status_code in {200, 400, 404}


@pytest.mark.both
@pytest.mark.parametrize("page", ["-1", "0", "1.5", "1e309", "9" * 6, "9" * 400, "NaN", "١", "true", "1;2", "%2B1"])
def test_a_page_that_is_none_is_some_page(cast: Cast, page: str) -> None:
    for path in ("/w/acme?app=tasks&page=", f"{KEYS}?page="):
        assert cast.rio.browser.get(path + page).status_code == 200


# --- Ids ------------------------------------------------------------------------------------------------------------

ABSURD = (
    *("key_1", "key_", "KEY_1", "1", "0", "-1", "mem_1", "key_a%00b", "%00", "key_%FF", "key_%ED%A0%80", "%20", ".."),
    *("key_" + "a" * n for n in (31, 32, 40, 41, 300, 8000)),
    *("abcdefgh_" + "a" * n for n in (31, 32, 40, 41)),
    *(
        "key_1%20",
        "key_1%2f..",
        "key_'or'1'='1",
        "%2e%2e",
        "key_1.json",
        "key_1;x",
        "key_*",
        "key_%25",
        "key_%F0%9F%98%80",
    ),
)


@pytest.mark.parametrize("action", ["deactivate", "reactivate", "delete"])
def test_a_key_that_is_not_there_is_not_found_however_odd_its_id(cast: Cast, unchanged: None, action: str) -> None:
    for method in (cast.ana.get, cast.ana.post):
        answered = {key_id[:40]: method(f"{KEYS}/{key_id}/{action}").status_code for key_id in ABSURD}
        assert answered == {key_id[:40]: 404 for key_id in ABSURD}


def bytes_of(reply: TestResponse, key_id: str) -> tuple[str, list[tuple[str, str]], str]:
    def blot(text: str) -> str:
        volatile = r'req_\w+|[\w-]{20,}\.[\w-]+\.[\w-]+|data-session="[\d ]+"'
        return re.sub(volatile, "…", text.replace(key_id, "KEY"))

    return reply.status, [(name, blot(value)) for name, value in reply.headers], blot(reply.text)


def test_a_key_of_another_workspace_or_person_looks_like_none(cast: Cast, key: MadeKey, unchanged: None) -> None:
    unknown = "key_" + "a" * (len(key.id) - 4)
    for stranger, path in ((cast.zoe, "/w/globex/api/keys"), (cast.max, KEYS), (cast.lea, KEYS)):
        stranger.get(path)
        for action in ("deactivate", "reactivate", "delete"):
            for ask in (stranger.get, stranger.post):
                for headers in ({}, HTMX):
                    seen = [
                        bytes_of(ask(f"{path}/{each}/{action}", headers=headers), each) for each in (key.id, unknown)
                    ]
                    assert seen[0] == seen[1]
                    assert seen[0][0].startswith("404")


@pytest.mark.parametrize(
    "slug", ["acme%00", "ACME", "acme%20", "%FF", "a", "1", "a" * 41, "a" * 5000, "acme;x", "%ED%A0%80"]
)
def test_a_workspace_or_app_that_is_none_is_not_found(cast: Cast, unchanged: None, slug: str) -> None:
    for path in (f"/w/{slug}", f"/w/{slug}/api/keys", f"/w/acme/apps/{slug}/sandbox"):
        assert cast.ana.get(path).status_code == 404
    assert cast.ana.post(f"/w/acme/apps/{slug}/sandbox").status_code == 404
    assert cast.call("GET", f"/apps/{slug}/records").status_code in {401, 404}


@pytest.mark.parametrize("token", ["x" * 42, "x" * 44, "%00" * 43, "é" * 43, "x" * 5000, "-" * 43])
def test_an_invitation_that_is_none_is_not_found(cast: Cast, unchanged: None, token: str) -> None:
    stranger = cast.stranger()
    stranger.get("/login")
    assert stranger.get(f"/invite/{token}").status_code == 404
    assert stranger.post(f"/invite/{token}", {"password": PASSWORD}).status_code == 404


# --- Bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\xff\xfe=\xff", "application/x-www-form-urlencoded"),
        (b"name", "application/x-www-form-urlencoded"),
        (b"&".join(b"scopes=tasks:read" for _ in range(900)), "application/x-www-form-urlencoded"),
        (b"=&" * 4000, "application/x-www-form-urlencoded"),
        (b'{"name": "x"}', "application/json"),
        (b"name=x", "text/plain"),
        (b"name=x", ""),
        (b"--x\r\nContent-Disposition: form-data; name=name\r\n\r\nx\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x"),
        (b"nonsense", "multipart/form-data"),
        (
            b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\nx\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("path", ["/login", KEYS, f"{KEYS}/new/review", "/logout"])
def test_a_body_that_is_no_form_changes_nothing(
    cast: Cast, unchanged: None, path: str, body: bytes, content_type: str
) -> None:
    assert cast.rio.browser.post(path, data=body, content_type=content_type).status_code in {400, 413}
    if path == KEYS:
        headers = {"X-CSRFToken": token_of(cast.rio)}
        assert cast.rio.browser.post(path, data=body, content_type=content_type, headers=headers).status_code in {
            400,
            413,
            422,
        }


@pytest.mark.parametrize(("path", "limit"), [("/login", SIGN_IN), (KEYS, FORM), ("/logout", FORM)])
def test_a_form_is_refused_by_its_size_before_anything_else(cast: Cast, unchanged: None, path: str, limit: int) -> None:
    for length, status in ((limit + 1, 413), (limit, 400)):
        reply = cast.rio.browser.post(path, data=b"a" * length, content_type="application/x-www-form-urlencoded")
        assert reply.status_code == status
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    reply = cast.rio.browser.post(path, data=b"a=" + b"b" * limit, environ_overrides=chunked)
    assert reply.status_code in {400, 411, 413}


# --- Anything -------------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(max_size=80) | st.text(
    st.characters(categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zs"]), max_size=20
)


@pytest.mark.both
def test_any_text_in_the_generate_form_gets_a_clear_answer(
    cast: Cast, answers: dict[str, Any], unchanged: None
) -> None:
    fields = dict.fromkeys(("name", "note", "owner", "environment", "expires", "form_id"), ANY_TEXT)

    @given(odd=st.fixed_dictionaries({}, optional={**fields, "scopes": st.lists(ANY_TEXT, max_size=4)}))
    @settings(max_examples=30, deadline=None)
    def answered(odd: dict[str, Any]) -> None:
        reply = send(cast.rio, f"{KEYS}/new/review", answers | odd)
        assert reply.status_code in {200, 400, 413, 422}
        refused = send(cast.rio, KEYS, answers | odd | {"expires": "some day"})
        assert refused.status_code in {400, 413, 422}
        for value in odd.values():
            if isinstance(value, str) and ("<" in value or '"' in value):
                assert f'value="{value}"' not in refused.text

    answered()


class Stalled(io.RawIOBase):
    """A body that does not come."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise AssertionError("everybody would wait for this client")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path", ["/account/password", "/w/acme/api/keys/new", "/w/acme/members/invite", "/w/acme/workspace/verifiers/new"]
)
def test_nobody_waits_for_the_body_of_a_request_that_needs_none(cast: Cast, path: str, method: str) -> None:
    """The process works on one request at a time: a form that is read here would stop it for everybody."""
    for length in ({"CONTENT_LENGTH": "100"}, {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}):
        environ = {"CONTENT_TYPE": "application/x-www-form-urlencoded", "wsgi.input": Stalled(), **length}
        assert cast.ana.browser.open(path, method=method, environ_overrides=environ).status_code == 200
