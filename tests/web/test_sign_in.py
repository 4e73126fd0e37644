"""Signing in and out, sessions and their cookies, and the proof that it is still you."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from werkzeug.test import TestResponse

from portal.demo import PASSWORD
from portal.logs import JsonLines
from portal.rules import credentials
from portal.rules.access import Role
from portal.rules.credentials import new_id
from portal.services import accounts, invitations, passwords, workspaces
from portal.services.actor import operator
from portal.store.database import Database
from portal.store.models import Account, AuditEvent, Member, UserSession, Workspace
from tests.cast import HTMX, Cast, Person
from tests.web.looking import everything, kept, token_on

HOME = "/w/acme/api/keys"


def cookie_of(browser: FlaskClient) -> str:
    cookie = browser.get_cookie("portal")
    return cookie.value if cookie else ""


def browser_with(app: Flask, cookie: str) -> FlaskClient:
    browser = app.test_client()
    browser.set_cookie("portal", cookie)
    return browser


def later(**distance: float) -> time_machine.travel:
    return time_machine.travel(datetime.now(UTC) + timedelta(**distance))


def is_signed_in(browser: FlaskClient) -> bool:
    return browser.get(HOME).status_code == 200


# --- Getting in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ana", "lea", "max", "rio", "zoe"])
def test_everybody_gets_in_and_to_their_workspace(shared_cast: Cast, name: str) -> None:
    person = shared_cast.stranger(name)
    assert person.get("/").location == "/login"
    assert person.sign_in().location == "/"
    assert person.get("/").location == f"/w/{person.workspace}"
    assert person.get(f"/w/{person.workspace}").status_code == 200


def test_an_email_may_be_typed_in_any_case_and_with_spaces_round_it(shared_cast: Cast) -> None:
    person = shared_cast.stranger("rio")
    person.email = " RIO@Acme.Test "
    assert person.sign_in().status_code == 303


def nothing_but_bytes(reply: TestResponse, email: str) -> tuple[str, list[tuple[str, str]], str]:
    """Give all that a guesser can tell two answers apart by, but for ids, tokens and the typed email."""

    def blot(text: str) -> str:
        return re.sub(r"req_\w+|[\w-]{20,}\.[\w-]+\.[\w-]+", "…", text.replace(email, "EMAIL"))

    headers = [(name, blot(value)) for name, value in reply.headers if name != "Content-Length"]
    return reply.status, headers, blot(reply.text)


@pytest.mark.both
def test_no_failure_tells_why(cast: Cast, database: Database) -> None:
    with database.transaction() as session:
        lea, rio, ana = (
            session.query(Account).filter_by(email=f"{name}@acme.test").one() for name in ("lea", "rio", "ana")
        )
        lea.deactivated_at = lea.created_at
        rio.password_hash = "!"  # an account without a password
        (seat,) = session.query(Member).filter_by(account_id=ana.id)
        seat.removed_at = seat.created_at

    def fail(name: str, password: str) -> tuple[str, list[tuple[str, str]], str]:
        person = cast.stranger()
        person.email = f"{name}@acme.test"
        return nothing_but_bytes(person.sign_in(password), person.email)

    usual = fail("max", "a wrong password")
    assert usual[0].startswith("422")
    assert "do not match" in usual[2]
    for name in ("nob", "lea", "rio", "ana"):
        assert fail(name, PASSWORD) == usual
    for password in ("x" * 3000, "\x00", PASSWORD + " "):
        assert fail("max", password) == usual


def test_who_mistypes_may_try_again_or_reset_the_password(shared_cast: Cast) -> None:
    reply = shared_cast.stranger("rio").sign_in("wrong")
    link = r'That email and password do not match. Try again or <a href="/reset">reset your password</a>\.'
    assert re.search(link, reply.text)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "@",
        "max",
        "max@",
        "max@acme.test\x00",
        "\x00",
        "\u202emax@acme.test",
        "a" * 300 + "@b.c",
        "m@x@y",
        "<b>@x.y",
    ],
)
def test_what_is_no_email_fails_like_an_unknown_one(shared_cast: Cast, email: str) -> None:
    person = shared_cast.stranger()
    person.email = email
    reply = person.sign_in()
    assert reply.status_code == 422
    assert "do not match" in reply.text
    assert "<b>@x.y" not in reply.text


def test_too_many_tries_are_told_alike_for_somebody_and_nobody_and_the_right_password_waits_too(
    cast: Cast, launch: Callable[[], Flask]
) -> None:
    with time_machine.travel(datetime.now(UTC), tick=False):
        answers = {}
        for name in ("max", "nob"):
            person = cast.stranger()
            person.email = f"{name}@acme.test"
            assert [person.sign_in("wrong").status_code for _ in range(5)] == [422] * 5
            reply = person.sign_in(PASSWORD)
            assert reply.status_code == 429
            assert 0 < int(reply.headers["Retry-After"]) <= 15 * 60
            answers[name] = nothing_but_bytes(reply, person.email)
            assert not is_signed_in(person.browser)
        assert answers["max"] == answers["nob"]
        restarted = Cast(launch())
        assert restarted.stranger("max").sign_in().status_code == 429
        elsewhere = restarted.stranger("max")
        elsewhere.browser.environ_base["REMOTE_ADDR"] = "198.51.100.7"
        assert elsewhere.sign_in().status_code == 303
    with later(minutes=15, seconds=1):
        assert cast.stranger("max").sign_in().status_code == 303


def test_a_sign_in_that_works_forgives_the_failures_of_that_account_and_place_only(cast: Cast) -> None:
    for name in ("max", "lea"):
        assert [cast.stranger(name).sign_in("wrong").status_code for _ in range(4)] == [422] * 4
    assert cast.stranger("max").sign_in().status_code == 303
    assert [cast.stranger("max").sign_in("wrong").status_code for _ in range(6)] == [422] * 5 + [429]
    assert [cast.stranger("lea").sign_in("wrong").status_code for _ in range(2)] == [422, 429]


def test_who_is_kept_from_trying_on_is_told_of(cast: Cast, database: Database) -> None:
    key, person = cast.rio.generate(), cast.stranger("max")
    assert [person.sign_in("wrong").status_code for _ in range(6)][-1] == 429
    person.get("/reset")
    assert [person.post("/reset", {"email": person.email}).status_code for _ in range(6)][-1] == 429
    assert [cast.rio.post("keys/identify", {"text": key.text}).status_code for _ in range(21)][-1] == 429
    with database.reading() as session:
        refused = session.scalars(select(AuditEvent).where(AuditEvent.outcome == "refused").order_by(AuditEvent.id))
        told = [(event.action, event.target_name, event.details["reason"]) for event in refused if event.details]
    assert told == [
        ("sign_in_failed", "max@acme.test", "Too many attempts."),
        ("password_reset_asked", "an account", "Too many attempts."),
        ("key_identified", "", "Too many look-ups."),
    ]


# --- The session ----------------------------------------------------------------------------------------------------


def test_a_session_begins_anew_at_sign_in_and_no_other_id_is_adopted(cast: Cast) -> None:
    victim = cast.stranger("rio")
    token = token_on(victim.get("/login"))
    planted = cookie_of(victim.browser)
    victim.sign_in()
    assert victim.browser.post(f"{HOME}/new/scopes", data={"csrf_token": token}).status_code == 400
    assert is_signed_in(victim.browser)
    assert cookie_of(victim.browser) != planted
    assert not is_signed_in(browser_with(cast.app, planted))
    mine = cookie_of(victim.browser)
    for made_up in ("", "x", "x" * 5000, mine[:-1], mine + "A", f"{mine}.{mine}", "eyJ9.a.b", "\x00", "\xff"):
        reply = cast.stranger().browser.get(HOME, headers={"Cookie": f"portal={made_up}"})
        assert (reply.status_code, "Solutions" in reply.text) == (303, False)
    assert is_signed_in(browser_with(cast.app, cookie_of(victim.browser)))


@pytest.mark.both
def test_no_page_waits_for_those_who_write(cast: Cast, database: Database) -> None:
    assert is_signed_in(cast.rio.browser)
    with later(minutes=2), database.transaction() as session:  # its session is due to be seen
        session.execute(select(UserSession.id).with_for_update()).all()
        assert is_signed_in(cast.rio.browser)


def test_two_sign_ins_are_two_sessions(cast: Cast) -> None:
    first, second = cast.stranger("rio"), cast.stranger("rio")
    first.sign_in()
    second.sign_in()
    first.post("/logout")
    assert not is_signed_in(first.browser)
    assert is_signed_in(second.browser)


def test_signing_out_ends_the_session_on_the_server_and_clears_the_browser(cast: Cast) -> None:
    rio = cast.rio
    kept_cookie = cookie_of(rio.browser)
    reply = rio.post("/logout")
    assert (reply.status_code, reply.location) == (303, "/login")
    assert reply.headers["Clear-Site-Data"] == '"cache", "storage"'
    replayed = browser_with(cast.app, kept_cookie)
    assert replayed.get(HOME).location.startswith("/login")
    assert replayed.get(HOME, headers=HTMX).status_code == 401


def test_signing_out_works_when_the_session_is_dead_already(cast: Cast) -> None:
    rio = cast.rio
    rio.get(HOME)
    other = Person(cast.app, "rio")
    other.browser.set_cookie("portal", cookie_of(rio.browser))
    other.get(HOME)
    assert other.post("/logout").status_code == 303
    again = rio.post("/logout")
    assert (again.status_code, again.location) == (303, "/login")
    assert again.headers["Clear-Site-Data"]


def test_signing_out_takes_a_post_with_a_token(cast: Cast) -> None:
    assert cast.rio.get("/logout").status_code == 405
    assert cast.rio.browser.post("/logout").status_code == 400
    assert is_signed_in(cast.rio.browser)


def test_who_tries_ids_of_others_is_told_of_and_a_flood_fills_nothing(cast: Cast, database: Database) -> None:
    key = cast.max.generate(["leads:read"])
    cast.rio.get(f"keys/{key.id}")
    cast.rio.post(f"keys/{key.id}/deactivate")  # this one is told of by its own name
    for n in range(30):
        cast.rio.get(f"keys/key_{n:016}/history")
    with database.reading() as session:
        tried = select(AuditEvent).where(AuditEvent.outcome == "refused").order_by(AuditEvent.id)
        told = [(event.action, event.actor_name, event.target_id) for event in session.scalars(tried)]
    assert told[:2] == [("look_refused", "Rio Tanaka", key.id), ("key_deactivated", "Rio Tanaka", key.id)]
    assert len(told) == 11
    assert f"tried to open {key.id}" in re.sub(r"<[^>]+>", "", cast.ana.get("/w/acme/audit?outcome=refused").text)


def test_a_form_that_is_not_ours_is_told_of_when_it_comes_with_a_session(cast: Cast, database: Database) -> None:
    foreign = {"Origin": "https://evil.example"}
    cast.rio.post("keys", headers=foreign)
    for data in ({}, {"csrf_token": "x"}):
        cast.rio.browser.post("/w/acme/policy", data=data)
    cast.rio.post("/preferences", headers=foreign)
    with database.reading() as session:
        told = session.scalars(select(AuditEvent).where(AuditEvent.action == "form_refused").order_by(AuditEvent.id))
        found = [(event.actor_name, event.target_name, event.details["reason"], event.chain > 0) for event in told]
    assert found == [
        ("Rio Tanaka", "/w/…/api/keys", "It came from another site.", True),
        ("Rio Tanaka", "/w/…/policy", "It was not from a page of this session.", True),
        ("Rio Tanaka", "/w/…/policy", "It was not from a page of this session.", True),
        ("Rio Tanaka", "/preferences", "It came from another site.", False),
    ]
    before = everything(database)
    stranger = cast.stranger()
    stranger.get("/login")
    for headers in ({}, foreign):  # nothing limits how many of them come
        assert stranger.browser.post("/login", data={"email": "max@acme.test"}, headers=headers).status_code >= 400
    assert everything(database) == before


@pytest.mark.parametrize(
    ("minutes", "active", "alive"),
    [(119, False, True), (121, False, False), (11 * 60 + 50, True, True), (12 * 60 + 10, True, False)],
)
def test_a_session_ends_after_two_idle_hours_and_after_twelve_in_any_case(
    cast: Cast, minutes: int, active: bool, alive: bool
) -> None:
    rio = cast.rio
    start = datetime.now(UTC)
    for visit in range(100, min(minutes, 710), 100) if active else []:
        with time_machine.travel(start + timedelta(minutes=visit)):
            assert is_signed_in(rio.browser)
    with time_machine.travel(start + timedelta(minutes=minutes)):
        assert is_signed_in(rio.browser) == alive


@pytest.mark.parametrize("page", ["/account", "/account/sessions", "/preferences", "/w", "/docs/api"])
def test_pages_of_no_workspace_keep_a_session_going(cast: Cast, page: str) -> None:
    rio = cast.rio
    with later(minutes=119):
        rio.get(page)
    with later(minutes=180):
        assert is_signed_in(rio.browser)


def test_a_page_that_is_used_after_a_long_while_does_not_say_that_the_session_ends_soon(cast: Cast) -> None:
    rio = cast.rio
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=119), tick=False):
        ends = re.search(r'data-session="(\d+) (\d+) (\d+)"', rio.get(HOME).text)
    assert ends
    idle, left, whole = map(int, ends.groups())
    assert idle == whole == accounts.SESSION_IDLE.total_seconds()
    assert left == pytest.approx((accounts.SESSION_LIFE - timedelta(minutes=119)).total_seconds(), abs=5)


@pytest.mark.both
def test_a_deactivated_account_is_out_at_once(cast: Cast, database: Database) -> None:
    assert is_signed_in(cast.rio.browser)
    with database.transaction() as session:
        rio = session.query(Account).filter_by(email="rio@acme.test").one()
        rio.deactivated_at = rio.created_at
    assert cast.rio.get(HOME).location.startswith("/login")


def test_the_database_holds_no_cookie_and_no_password(cast: Cast, database: Database) -> None:
    cast.rio.get(HOME)
    stored = repr(everything(database))
    token = browser_session_token(cast.app, cookie_of(cast.rio.browser))
    assert len(token) >= 43
    for secret in (cookie_of(cast.rio.browser), token, PASSWORD):
        assert secret not in stored
        assert repr(secret.encode())[2:-1] not in stored


def browser_session_token(app: Flask, cookie: str) -> str:
    with app.test_request_context("/", headers={"Cookie": f"portal={cookie}"}) as context:
        return str(context.session["_user_id"])


def test_the_cookie_is_for_this_site_and_no_script_while_developing(cast: Cast) -> None:
    person = cast.stranger("rio")
    for reply in (person.get("/login"), person.sign_in()):
        (cookie,) = reply.headers.getlist("Set-Cookie")
        assert cookie.startswith("portal=")
        assert set(cookie.split("; ")[1:]) == {"HttpOnly", "Path=/", "SameSite=Lax"}


# --- Where to go next -----------------------------------------------------------------------------------------------

ELSEWHERE = (
    *("https://evil.example", "//evil.example", "///evil.example", "////evil.example", "https:///evil.example"),
    *("/\\evil.example", "\\/evil.example", "\\\\evil.example", "/%5Cevil.example", "/%2Fevil.example"),
    *("http:evil.example", "http:/evil.example", "javascript:alert(1)", "data:text/html,x", "evil.example", "@evil"),
    *("/\t/evil.example", "/%09/evil.example", "\t//evil.example", " //evil.example", "/ /evil.example", "/\x00"),
    *("/\r\nLocation: //evil.example", "/%0d%0aSet-Cookie:a=b", "https://localhost@evil.example", "%2F%2Fevil.example"),
    *("", "w/acme", "./w", "?x", "#x", "/é", "/%00", "/" + "a" * 5000),
)


@pytest.mark.parametrize("target", ELSEWHERE, ids=lambda value: repr(value)[:40])
def test_next_leads_nowhere_else(shared_cast: Cast, target: str) -> None:
    start = "/w/acme"
    reply = shared_cast.rio.browser.get("/login", query_string={"next": target.encode("utf-8", "surrogatepass")})
    assert (reply.status_code, reply.location) == (303, start)
    page = shared_cast.stranger().browser.get("/login", query_string={"next": target.encode("utf-8", "surrogatepass")})
    assert page.status_code == 200
    assert "evil" not in page.text


@pytest.mark.parametrize(
    "target", ["/w/acme", "/w/acme/api/keys?owner=me&page=2", "/w/acme?app=tasks", "/nothing/here"]
)
def test_next_leads_to_a_page_of_ours(shared_cast: Cast, target: str) -> None:
    assert shared_cast.rio.browser.get("/login", query_string={"next": target}).location == target
    stranger = shared_cast.stranger("rio")
    asked = stranger.get(target)
    if asked.status_code == 303:
        assert asked.location.startswith("/login?next=")
        stranger.get(asked.location)
        answers = {"email": stranger.email, "password": PASSWORD, "next": target}
        assert stranger.post("/login", answers).location == target


def test_who_comes_back_is_told_so_and_who_was_signed_out_why(cast: Cast) -> None:
    ended, told = "Your session has ended.", "Signed in. Back to API keys."
    assert ended not in cast.stranger().get(f"/login?next={HOME}").text
    rio = cast.rio
    rio.get(HOME)
    with later(hours=3):
        asked = rio.get(rio.get(HOME).location)
        assert ended in asked.text
        answers = {"email": rio.email, "password": PASSWORD, "next": HOME}
        assert ended not in rio.post("/login", {**answers, "password": "wrong"}).text
        assert rio.post("/login", answers).location == HOME
        assert told in rio.get(HOME).text
        assert told not in rio.get(HOME).text
        rio.post("/logout")
        assert ended not in rio.get("/login").text
        rio.sign_in()
        assert "Signed in." not in rio.get("/w/acme").text


def test_a_forged_next_in_the_form_is_not_followed(shared_cast: Cast) -> None:
    stranger = shared_cast.stranger("rio")
    stranger.get("/login")
    answers = {"email": stranger.email, "password": PASSWORD, "next": "//evil.example"}
    assert stranger.post("/login", answers).location == "/"
    stranger.get(HOME)
    proof = {"next": "https://evil.example", "password": PASSWORD}
    assert stranger.post("/reauth", proof).location == "/"


def test_no_text_for_next_leads_off_the_site(shared_cast: Cast) -> None:
    nearly = st.lists(
        st.sampled_from(["/", "\\", "//", "evil.example", "%2f", "%5c", "\t", ":", "http", "@", "w", "?", "#"])
    )

    @given(target=nearly.map("".join) | st.text(max_size=20).map(lambda text: "/" + text))
    @settings(max_examples=60, deadline=None)
    def stays(target: str) -> None:
        reply = shared_cast.rio.browser.get("/login", query_string={"next": target.encode("utf-8", "surrogatepass")})
        assert reply.status_code == 303
        assert re.match(r"/(?![/\\])[\x21-\x7e]*$", reply.location)

    stays()


# --- Proving that it is still you -----------------------------------------------------------------------------------


def hidden(page: str) -> list[tuple[str, str]]:
    """Read the hidden fields of a page's main form, but for its token."""
    main = page.partition("<main")[2]
    tags = [tag for tag in re.findall(r"<input[^>]*>", main) if 'type="hidden"' in tag]
    pairs = [(re.search(r'name="([^"]*)"', tag), re.search(r'value="([^"]*)"', tag)) for tag in tags]
    return [(name[1], value[1]) for name, value in pairs if name and value and name[1] != "csrf_token"]


def test_after_ten_minutes_generating_asks_for_the_password_and_keeps_every_answer(
    cast: Cast, database: Database
) -> None:
    max_ = cast.max
    answers = max_.form(name="CRM sync", note="On the server", scopes=["leads:read", "leads:write"], expires="30d")
    with later(minutes=11):
        asked = max_.post("keys", answers)
        assert asked.status_code == 403
        assert "Confirm it’s you" in asked.text
        sent = [
            (name, value)
            for name, values in answers.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        assert sorted(hidden(asked.text)) == sorted(sent)
        before = kept(database)

        wrong = max_.post("keys", {**answers, "password": "wrong"})
        assert wrong.status_code == 403
        assert "4 tries left" in wrong.text
        assert sorted(hidden(wrong.text)) == sorted(sent)
        assert "wrong" not in wrong.text
        assert kept(database) == before

        made = max_.post("keys", {**answers, "password": PASSWORD})
        assert made.status_code == 200
        assert 'id="secret"' in made.text
        assert PASSWORD not in made.text
    (key,) = everything(database)["api_key"]
    assert (key["name"], key["note"], key["form_id"]) == ("CRM sync", "On the server", answers["form_id"])
    assert len(everything(database)["key_scope"]) == 2


def test_a_proof_gives_the_session_a_new_id_and_is_good_for_ten_minutes(cast: Cast) -> None:
    rio = cast.rio
    with later(minutes=11):
        assert rio.get("keys/new").location.startswith("/reauth?next=")
        before = cookie_of(rio.browser)
        reply = rio.post("/reauth", {"password": PASSWORD, "next": "/w/acme/api/keys/new"})
        assert (reply.status_code, reply.location) == (303, "/w/acme/api/keys/new")
        assert cookie_of(rio.browser) != before
        assert not is_signed_in(browser_with(cast.app, before))
        assert rio.get("keys/new").status_code == 200
    with later(minutes=20):
        assert rio.get("keys/new").status_code == 200
    with later(minutes=22):
        assert rio.get("keys/new").status_code == 303


def test_what_hands_out_access_asks_and_what_stops_a_key_never_does(cast: Cast) -> None:
    key = cast.rio.generate()
    with later(minutes=11):
        assert cast.rio.get("keys").status_code == 200
        assert cast.rio.post(f"keys/{key.id}/deactivate").status_code == 303
        assert cast.rio.post(f"keys/{key.id}/reactivate").status_code == 403
        assert cast.call("GET", "/me", key).status_code == 401
        assert cast.rio.post(f"keys/{key.id}/reactivate", {"password": PASSWORD}).status_code == 303
        assert cast.call("GET", "/me", key).status_code == 200
    with later(minutes=30):
        assert cast.rio.post(f"keys/{key.id}/delete", {"name": "Nightly export"}).status_code == 303


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("policy", "ana"),
        ("workspace/verifiers/new", "ana"),
        ("members/invite", "ana"),
        ("members/mem_1/reactivate", "ana"),
        ("api-members/mem_1/manager", "ana"),
        ("api-members/mem_1/reactivate", "lea"),
        ("api-members/new", "lea"),
        ("audit.csv", "ana"),
    ],
)
def test_who_may_never_do_a_thing_is_told_so_without_being_asked_for_the_password(
    shared_cast: Cast, path: str, asked: str
) -> None:
    someone = Person(shared_cast.app, asked)
    someone.sign_in()
    rio = Person(shared_cast.app, "rio")
    rio.sign_in()
    with later(minutes=11):
        assert rio.get(f"/w/acme/{path}").status_code == 403
        assert someone.get(f"/w/acme/{path}").location.startswith("/reauth?next=")


def test_who_may_not_set_a_keys_rate_is_told_so_without_being_asked_for_the_password(cast: Cast) -> None:
    rate = f"keys/{cast.rio.generate().id}/rate"
    people = {"rio": cast.rio, "lea": cast.lea, "ana": cast.ana}
    with later(minutes=11):
        assert {name: who.get(rate).status_code for name, who in people.items()} == {"rio": 403, "lea": 404, "ana": 303}


def test_in_the_dialog_the_question_and_the_answer_are_fragments(cast: Cast) -> None:
    answers = cast.rio.form()
    with later(minutes=11):
        for data, status in (
            (answers, 403),
            ({**answers, "password": "wrong"}, 403),
            ({**answers, "password": PASSWORD}, 200),
        ):
            reply = cast.rio.post("keys", data, headers=HTMX)
            assert reply.status_code == status
            assert "<html" not in reply.text
        opened = cast.rio.get("keys/new", headers=HTMX)
        assert opened.status_code == 200


def test_guessing_at_the_proof_is_limited_like_signing_in_and_told_of(cast: Cast, database: Database) -> None:
    answers = cast.rio.form()
    with later(minutes=11):
        tries = [cast.rio.post("/reauth", {"password": "wrong"}) for _ in range(6)]
        assert [reply.status_code for reply in tries[:5]] == [403] * 5
        assert "4 tries left" in tries[0].text
        assert "0 tries left" in tries[4].text
        with database.reading() as session:
            told = session.scalars(select(AuditEvent.actor_id).where(AuditEvent.action == "sign_in_failed")).all()
            rio = session.scalars(select(Account.public_id).where(Account.email == "rio@acme.test")).one()
        assert told == [rio] * 6  # the one too many, too
        assert cast.stranger("rio").sign_in().status_code == 429
        for limited in (
            tries[5],
            cast.rio.post("/reauth", {"password": PASSWORD}),
            cast.rio.post("keys", {**answers, "password": PASSWORD}),
            cast.rio.post("keys", {**answers, "password": PASSWORD}, headers=HTMX),
        ):
            assert limited.status_code == 429
            assert int(limited.headers["Retry-After"]) > 0
            assert "Too many attempts. Try again at" in limited.text
        assert "HX-Retarget" not in limited.headers  # the question stays where it stands


def test_an_empty_password_is_asked_for_and_costs_no_try(cast: Cast, database: Database) -> None:
    answers, link = cast.rio.form(name="CRM sync"), invited(database, "rio@acme.test", "globex")
    stranger = cast.stranger("rio")
    stranger.get(link)
    with later(minutes=11):
        for reply, status in (
            (cast.stranger("rio").sign_in(""), 422),
            (stranger.post(link, {"password": ""}), 422),
            (cast.rio.post("/account/password", {"current_password": "", "password": "seven green bottles"}), 422),
            (cast.rio.post("/reauth", {"password": ""}), 403),
            (cast.rio.post("keys", {**answers, "password": ""}, headers=HTMX), 403),
        ):
            assert reply.status_code == status
            assert "Enter your password.</" in reply.text
    assert "CRM sync" in reply.text
    assert not everything(database)["sign_in_failure"]


def filled(page: str) -> set[str]:
    """Name what is filled in, ticked or chosen in a page's forms."""
    tags = re.findall(r"<(?:input|option)[^>]*>", page)
    typed = [tag for tag in tags if not re.search(r'type="(?:hidden|radio|checkbox)"|<option', tag)]
    chosen = [tag for tag in tags if re.search(r" (?:checked|selected)\b", tag)]
    return {value[1] for tag in (*typed, *chosen) if (value := re.search(r'value="([^"]*)"', tag))}


def test_whoever_cancels_at_the_password_has_the_form_as_it_was_sent_and_nothing_is_done(
    cast: Cast, database: Database
) -> None:
    lea, ana, key = cast.lea, cast.ana, cast.rio.generate()
    made = lea.post("/w/acme/api-members/new", {"name": "CRM bot", "access-operations": "read"}).location
    with database.reading() as session:
        rio, of_ana = (
            session.query(Member.public_id).filter_by(name=name).scalar() for name in ("Rio Tanaka", "Ana Ruiz")
        )
    overlap = {"scopes": "tasks:read", "overlap": "7d", "expires": "30d", "form_id": cast.rio.form()["form_id"]}
    forms: list[tuple[Person, str, dict[str, str], set[str]]] = [
        (cast.rio, "/w/acme/api/keys", cast.rio.form(name="CRM sync", expires="30d"), {"CRM sync", "30d", "live"}),
        (cast.rio, f"/w/acme/api/keys/{key.id}/rotate", overlap, {"7d", "30d", "tasks:read"}),
        (ana, f"/w/acme/api/keys/{key.id}/rate", {"rate_per_minute": "77", "rate_per_second": "7"}, {"77", "7"}),
        (ana, "/w/acme/policy", {"max_key_days": "90", "admins_own_live": "no"}, {"90", "no"}),
        (ana, "/w/acme/workspace/verifiers/new", {"name": "Shop front"}, {"Shop front"}),
        (ana, "/w/acme/members/invite", {"email": "ida@acme.test", "role": "admin"}, {"ida@acme.test", "admin"}),
        (ana, f"/w/acme/members/{rio}/access", {"role": "admin"}, {"admin"}),
        (lea, "/w/acme/api-members/new", {"name": "ERP bot", "access-operations": "full"}, {"ERP bot", "full"}),
        (lea, f"{made}/access", {"access-operations": "full"}, {"full"}),
        (ana, f"{made}/manager", {"manager": of_ana}, {of_ana}),
    ]
    before = kept(database)
    # Also where the password was given in another tab meanwhile.
    cancelled = {"max_key_days": "90", "admins_own_live": "no", "cancel": "yes"}
    assert ana.post("/w/acme/policy", cancelled).status_code == 200
    assert kept(database) == before
    with later(minutes=11):
        for person, path, answers, shown in forms:
            asked = person.post(path, answers)
            assert (asked.status_code, 'name="cancel"' in asked.text) == (403, True), path
            carried: dict[str, list[str]] = {}
            for name, value in hidden(asked.text):
                carried.setdefault(name, []).append(value)
            back = person.post(path, {**carried, "cancel": "yes", "password": PASSWORD})
            assert (back.status_code, shown <= filled(back.text)) == (200, True), path
            assert "Check these answers" not in back.text
        assert kept(database) == before


def test_the_question_for_the_password_keeps_whom_a_new_key_is_for(cast: Cast) -> None:
    lea = cast.lea
    made = lea.post("/w/acme/api-members/new", {"name": "CRM bot", "access-operations": "read"}).location
    bot = made.rpartition("/")[2]
    with later(minutes=11):
        asked = lea.post(f"/w/acme/api/keys/new?owner={bot}", {"key-environment": "test", "key-name": "CRM sync"})
        assert asked.status_code == 403
        assert f'action="/w/acme/api/keys/new?owner={bot}"' in asked.text
        expired = lea.browser.post(f"/w/acme/api/keys/new?owner={bot}", data={"key-environment": "test"})
    assert (expired.status_code, f'action="/w/acme/api/keys/new?owner={bot}"' in expired.text) == (400, True)
    assert "“Go on”" in expired.text


def test_answers_that_are_shown_again_overwrite_nothing_that_came_in_between(cast: Cast, database: Database) -> None:
    """After Cancel at the password, and after a look at what they would do."""
    ana = cast.ana
    bot = ana.post("/w/acme/api-members/new", {"name": "CRM bot", "access-operations": "read"}).location
    with database.reading() as session:
        rio = f"/w/acme/members/{session.query(Member.public_id).filter_by(name='Rio Tanaka').scalar()}"
        of_ana, of_lea = (
            session.query(Member.public_id).filter_by(name=name).scalar() for name in ("Ana Ruiz", "Lea Okoro")
        )
    plain, full = {"role": "member", "access-sales": "read"}, {"access-operations": "full"}
    forms: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
        (f"{rio}/access", "", {"role": "admin"}, plain),
        (f"{bot}/access", "", full, {"access-operations": "none"}),
        (f"{bot}/access", "/review", full, {"access-sales": "read"}),
        (f"{bot}/manager", "", {"manager": of_ana}, {"manager": of_lea}),
        ("/w/acme/policy", "", {"max_key_days": "90"}, {"max_key_days": "365"}),
        ("/w/acme/policy", "/preview", {"max_key_days": "90"}, {"max_key_days": "30"}),
    ]
    for path, look, answers, meanwhile in forms:
        form = dict(hidden(ana.get(path).text)) | answers
        assert ana.post(path, meanwhile).status_code == 303
        before = kept(database)
        shown = ana.post(f"{path}{look}", form if look else form | {"cancel": "yes"})
        assert shown.status_code == 200
        assert ana.post(path, dict(hidden(shown.text)) | answers).status_code == 409, (path, look)
        assert kept(database) == before


def test_nothing_that_asks_for_the_password_is_done_without_it_by_cancelling(cast: Cast, database: Database) -> None:
    key = cast.rio.generate()
    cast.rio.post(f"keys/{key.id}/deactivate")
    made = cast.ana.post("/w/acme/api-members/new", {"name": "CRM bot", "access-sales": "read"}).location
    values = {"ws": "acme", "key_id": key.id, "mid": made.rpartition("/")[2]}
    asking = [rule for rule in cast.app.url_map.iter_rules() if hasattr(cast.app.view_functions[rule.endpoint], "asks")]
    before = kept(database)
    tried = 0
    with later(minutes=11):
        for rule in asking:
            _, path = rule.build({name: values[name] for name in rule.arguments}) or ("", "")
            for person in (cast.rio, cast.ana):
                for answers in ({"cancel": "yes"}, {"cancel": "", "name": "CRM bot", "then": "x"}):
                    assert person.post(path, answers).status_code < 500, path
                    tried += 1
                if "GET" in (rule.methods or ()):
                    assert person.get(f"{path}?cancel=yes").status_code in (303, 403, 404), path
    assert tried > 40
    assert kept(database) == before


@pytest.mark.parametrize(
    ("path", "asked", "why", "back"),
    [
        ("api/keys/new?from=key_1", "rio", "to generate an API key", "api/keys"),
        ("api/keys/key_1/rotate", "rio", "to rotate an API key", "api/keys/key_1"),
        ("policy", "ana", "to change the policy", "workspace"),
        ("audit.csv", "ana", "to export the audit log", "audit"),
        ("members/invite", "ana", "to invite somebody", "members"),
        ("members/nothing/here", "ana", "to go on", None),
    ],
)
def test_the_question_says_what_it_is_for_and_leads_back_also_after_a_wrong_password(
    cast: Cast, path: str, asked: str, why: str, back: str | None
) -> None:
    person: Person = getattr(cast, asked)
    target = f"/w/acme/{path}"
    with later(minutes=11):
        for reply in (
            person.get(f"/reauth?next={target}"),
            person.post("/reauth", {"next": target, "password": "wrong"}),
            person.post("/reauth", {"next": target, "password": "wrong"}, headers=HTMX),
        ):
            assert f"Enter your password {why}." in reply.text
            assert re.search(r'href="([^"]*)" data-cancel', reply.text)[1] == (f"/w/acme/{back}" if back else "/")  # type: ignore[index]


def test_at_the_limit_of_guesses_a_form_keeps_all_its_answers(cast: Cast) -> None:
    answers = cast.rio.form(name="CRM sync", note="On the server")
    with later(minutes=11):
        for _ in range(6):
            asked = cast.rio.post("keys", {**answers, "password": "wrong"})
        assert asked.status_code == 429
        sent = {name: value[0] if isinstance(value, list) else value for name, value in answers.items()}
        assert dict(hidden(asked.text)) == sent


def test_who_waits_as_long_as_told_is_not_refused_again(cast: Cast) -> None:
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        for _ in range(5):
            cast.stranger("rio").sign_in("wrong")
        clock.shift(0.7)
        limited = cast.stranger("rio").sign_in()
        clock.shift(int(limited.headers["Retry-After"]))
        assert (limited.status_code, cast.stranger("rio").sign_in().status_code) == (429, 303)


# --- Several workspaces, invitations --------------------------------------------------------------------------------


def seat_in_globex(database: Database, email: str, role: Role = Role.MEMBER) -> None:
    with database.transaction() as session:
        account = session.query(Account).filter_by(email=email).one()
        globex = workspaces.get(session, "globex")
        facts = {"name": account.name, "role": role, "created_at": account.created_at}
        session.add(Member(public_id=new_id("mem"), workspace_id=globex.id, account_id=account.id, **facts))


def invited(database: Database, email: str, slug: str = "acme") -> str:
    """Invite a person as a member; give the link's path."""
    with database.transaction() as session:
        token = invitations.issue(session, operator(), workspaces.get(session, slug), email, Role.MEMBER)
    return f"/invite/{token}"


def test_somebody_in_two_workspaces_chooses_and_switches(cast: Cast, database: Database) -> None:
    seat_in_globex(database, "rio@acme.test")
    rio = cast.stranger("rio")
    assert rio.sign_in().location == "/"
    assert rio.get("/").location == "/w"
    chooser = rio.get("/w")
    for slug, name in (("acme", "Acme"), ("globex", "Globex")):
        assert f'href="/w/{slug}"' in chooser.text
        assert name in chooser.text
    assert chooser.text.count("Member") >= 2
    for slug, other in (("acme", "globex"), ("globex", "acme")):
        page = rio.get(f"/w/{slug}")
        assert page.status_code == 200
        assert f'href="/w/{other}"' in page.text
        assert rio.get("/").location == f"/w/{slug}"
        assert f'href="/w/{other}/api/keys"' in rio.get(f"/w/{slug}/api/keys").text
    assert cast.max.get("/w").location == "/w/acme"
    assert "globex" not in cast.max.get("/w/acme").text


def test_what_one_is_in_one_workspace_one_is_not_in_the_other(cast: Cast, database: Database) -> None:
    seat_in_globex(database, "ana@acme.test")
    zoe_key = cast.zoe.generate(["tickets:read"])
    ana = cast.ana
    assert ana.get("/w/globex/api/keys?owner=all").status_code == 200
    assert zoe_key.id not in ana.get("/w/globex/api/keys?owner=all").text
    assert ana.post(f"/w/globex/api/keys/{zoe_key.id}/deactivate").status_code == 404
    assert ana.post(f"/w/acme/api/keys/{zoe_key.id}/deactivate").status_code == 404
    ana_key = ana.generate(["tasks:read"])
    assert ana.get(f"/w/globex/api/keys/{ana_key.id}/deactivate").status_code == 404
    assert cast.zoe.get(f"/w/globex/api/keys/{ana_key.id}/deactivate").status_code == 404


def test_an_invitation_makes_an_account_once(cast: Cast, database: Database) -> None:
    path = invited(database, "kim@acme.test")
    kim = cast.stranger("kim")
    assert f'action="{path}"' in kim.get(path).text
    before = kept(database)
    good = {"name": "Kim Novak", "password": "a long enough one", "password_again": "a long enough one"}
    for bad in (
        {"name": "\x00"},
        {"name": "K"},
        {"password": "short", "password_again": "short"},
        {"password_again": "x" * 20},
    ):
        reply = kim.post(path, good | bad)
        assert reply.status_code == 422
        assert good["password"] not in reply.text
    assert kept(database) == before
    assert kim.post(path, good).location == "/w/acme"
    assert kim.get("/w/acme").status_code == 200
    assert kim.get(path).status_code == 404
    assert cast.stranger().get(path).status_code == 404
    assert cast.stranger("kim").sign_in(good["password"]).status_code == 303


def test_what_is_wrong_with_the_answers_to_an_invitation_is_told_at_once_and_truly(
    cast: Cast, database: Database
) -> None:
    kim, path = cast.stranger("kim"), invited(database, "kim@acme.test")
    kim.get(path)
    reply = kim.post(path, {"name": "K", "password": "x" * 257, "password_again": "y" * 257})
    assert re.findall(r'href="#join-\w+" hx-ignore>([^<]+)', reply.text) == [
        "Enter a name by which others know you: 2 to 60 characters.",
        "Choose a password of at most 256 characters.",
        "Type the same password twice.",
    ]


def test_a_new_persons_password_is_hashed_while_others_can_write(
    cast: Cast, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = invited(database, "kim@acme.test")

    class Watched(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            with database.transaction(patience=50) as session:
                session.query(Account).update({"theme": "dark"})
            return super().hash(password, salt=salt)

    monkeypatch.setattr(credentials, "_hasher", Watched(time_cost=1, memory_cost=64, parallelism=1))
    kim = cast.stranger("kim")
    kim.get(path)
    good = {"name": "Kim Novak", "password": "a long enough one", "password_again": "a long enough one"}
    assert kim.post(path, good).location == "/w/acme"
    with database.reading() as session:
        assert session.query(Account).filter_by(theme="dark").count() > 0


def test_answers_that_cannot_be_taken_cost_no_hash(
    cast: Cast, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kim, path = cast.stranger("kim"), invited(database, "kim@acme.test")
    kim.get(path)
    monkeypatch.setattr(credentials, "hash_password", lambda _: pytest.fail("this takes a tenth of a second"))
    bad = {"name": "K", "password": "a long enough one", "password_again": "a long enough one"}
    assert kim.post(path, bad).status_code == 422


def test_an_invitation_to_somebody_with_an_account_takes_that_accounts_password(cast: Cast, database: Database) -> None:
    path = invited(database, "rio@acme.test", "globex")
    stranger = cast.stranger()
    stranger.get(path)
    assert stranger.post(path, {"password": "wrong"}).status_code == 422
    assert stranger.get("/w/globex").status_code == 303
    assert stranger.post(path, {"password": PASSWORD}).location == "/w/globex"
    assert stranger.get("/w/globex").status_code == 200
    assert stranger.get("/w/acme").status_code == 200


def test_whoever_joins_in_somebody_elses_browser_ends_that_ones_session(cast: Cast, database: Database) -> None:
    path = invited(database, "rio@acme.test", "globex")
    cast.max.get(path)
    before = browser_with(cast.app, cookie_of(cast.max.browser))
    assert is_signed_in(before)
    assert cast.max.post(path, {"password": PASSWORD}).location == "/w/globex"
    assert not is_signed_in(before)


@pytest.mark.both
def test_every_page_leads_to_the_keys_of_the_workspace_one_was_in_last(cast: Cast, database: Database) -> None:
    own = ["/account", "/account/name", "/account/password", "/account/sessions", "/preferences", "/help/keyboard"]
    stranger, path = cast.stranger("rio"), invited(database, "rio@acme.test", "globex")
    stranger.get(path)
    for each in [*own, "/reauth", "/no/such/page", "/w/nowhere"]:
        assert cast.rio.get(each).text.count('href="/w/acme/api/keys"') >= 2, each  # in the bar and in the menu
    assert stranger.post(path, {"password": PASSWORD}).location == "/w/globex"
    for each in [*own, "/reauth", "/no/such/page"]:  # now there are two, and nobody knows which
        page = stranger.get(each).text
        assert 'href="/w">' in page, each
        assert "API Settings" not in page, each
    stranger.get("/w/globex")
    assert 'href="/w/globex/api/keys"' in stranger.get("/account").text
    assert "API Settings" not in stranger.get("/w").text


@pytest.mark.both
def test_a_workspaces_slug_says_nothing_of_workspaces_one_is_not_in(cast: Cast, database: Database) -> None:
    with database.reading() as session:
        assert session.query(Workspace).count() == 2
    cast.rio.get("/account")  # the first page with a form sets a cookie
    known, unknown = (cast.rio.get(f"/w/{slug}/api/keys") for slug in ("globex", "nowhere"))
    assert nothing_but_bytes(known, "globex") == nothing_but_bytes(unknown, "nowhere")
    assert known.status_code == 404


def test_who_has_joined_is_told_so_though_signing_in_is_held_up(
    cast: Cast, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others behind the same address may have used up its tries."""
    kim, path = cast.stranger("kim"), invited(database, "kim@acme.test")
    kim.get(path)
    cast.stranger().sign_in("wrong password here")
    monkeypatch.setattr(accounts, "PREFIX_LIMIT", 1)
    joined = kim.post(path, {"name": "Kim Ito", "password": "twelve chars", "password_again": "twelve chars"})
    assert joined.status_code == 303
    assert kim.get(joined.location).location.startswith("/login")
    monkeypatch.undo()
    assert kim.sign_in("twelve chars").status_code == 303


@pytest.mark.parametrize("what", ["invite", "reset"])
def test_a_one_time_link_is_in_no_log_whatever_breaks(
    what: str, cast: Cast, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(invitations, "get_by_token", break_down)
    monkeypatch.setattr(passwords, "open_reset", break_down)
    token = "t0ken" * 8 + "end"
    assert cast.stranger().get(f"/{what}/{token}").status_code == 500
    (record,) = [each for each in caplog.records if each.message == "a request failed"]
    assert token not in JsonLines().format(record)
    assert f"/{what}/" in JsonLines().format(record)
