"""A person's own pages: account, sessions, a changed password, and a forgotten one."""

import email
import re
import socket
from email.policy import default
from pathlib import Path

import pytest
from flask import Flask

from app import create_app
from portal.services.accounts import PAIR_LIMIT
from portal.store.database import Database
from portal.store.models import OutgoingMail, PasswordReset
from tests.cast import Cast, Person
from tests.servers import free_port
from tests.web.looking import token_on

NEW = "seven green bottles on a wall"


def wait_for_errands(app: Flask) -> None:
    for pool in (app.extensions["portal"].errands, app.extensions["portal"].post):
        pool.submit(int).result(timeout=30)


def link_in_mail(app: Flask) -> str:
    """Find the link in the newest mail of the folder."""
    wait_for_errands(app)
    newest = max(Path(app.extensions["portal"].settings.mail_folder).glob("*.eml"))
    text = email.message_from_bytes(newest.read_bytes(), policy=default).get_content()
    found = re.search(r"http://\S+(/reset/\S+)", text)
    assert found
    return found[1]


def change(person: Person, old: str = "", **answers: str) -> int:
    person.get("/account/password")
    fields = {"current_password": old or "correct horse battery staple", "password": NEW, "password_again": NEW}
    return person.post("/account/password", fields | answers).status_code


def test_the_account_page_leads_to_what_can_be_changed(cast: Cast) -> None:
    page = cast.max.get("/account").text
    for path in ("/account/name", "/account/sessions", "/account/password", "/preferences", "/w/acme"):
        assert f'href="{path}"' in page


@pytest.mark.both
def test_the_account_page_and_the_menu_call_a_lead_the_same(cast: Cast) -> None:
    for person, role in ((cast.ana, "Administrator"), (cast.lea, "Team lead"), (cast.max, "Member")):
        assert f"</a> · {role}" in person.get("/account").text
        assert f"· {role}</p>" in person.get("/w/acme").text


def test_a_changed_name_is_that_of_the_next_page_and_of_the_next_call(cast: Cast) -> None:
    key = cast.max.generate(["leads:read"])
    cast.max.get("/account/name")
    assert cast.max.post("/account/name", {"name": "  Maxine Frey "}).status_code == 303
    page = cast.max.get("/account").text
    assert "Your name is Maxine Frey now." in page
    assert 'aria-label="Profile and settings: Maxine Frey"' in page
    assert cast.call("GET", "/me", key).get_json()["data"]["member"]["name"] == "Maxine Frey"
    assert "changed their own name" in cast.ana.get("/w/acme/audit").text


@pytest.mark.parametrize("name", ["", "M", "x" * 61, "Max\u202e", "sk_live_" + "a" * 40])
def test_a_name_that_cannot_be_taken_changes_nothing(cast: Cast, name: str) -> None:
    cast.max.get("/account/name")
    answer = cast.max.post("/account/name", {"name": name})
    assert answer.status_code == 422
    assert 'id="new-name-error"' in answer.text
    assert "a" * 40 not in answer.text
    assert "Max Brandt" in cast.max.get("/account").text


def test_a_changed_password_counts_from_now_on_and_signs_others_out(cast: Cast) -> None:
    elsewhere = Person(cast.app, "max")
    elsewhere.sign_in()
    form = {"name": "Maxine Frey", "csrf_token": token_on(cast.max.get("/account/name"))}
    assert change(cast.max) == 303
    assert cast.max.browser.post("/account/name", data=form).status_code == 400  # no form of before goes on
    assert cast.max.get("/account").status_code == 200
    assert elsewhere.get("/account").status_code == 303
    assert Person(cast.app, "max").sign_in().status_code == 422
    assert Person(cast.app, "max").sign_in(NEW).status_code == 303


def test_wrong_guesses_of_the_current_password_are_counted_as_at_sign_in(cast: Cast) -> None:
    statuses = [change(cast.max, old="wrong") for _ in range(PAIR_LIMIT + 1)]
    assert statuses == [422] * PAIR_LIMIT + [429]


def test_a_password_that_cannot_be_taken_changes_nothing_and_costs_no_try(cast: Cast) -> None:
    for _ in range(PAIR_LIMIT + 1):
        assert change(cast.max, password_again="something else") == 422
    assert Person(cast.app, "max").sign_in().status_code == 303


def test_keys_go_on_unless_they_are_to_stop(cast: Cast) -> None:
    key = cast.max.generate(["leads:read"])
    assert change(cast.max) == 303
    assert cast.call("GET", "/me", key).status_code == 200
    assert (
        change(
            cast.max, old=NEW, password="another long sentence", password_again="another long sentence", stop_keys="yes"
        )
        == 303
    )
    assert cast.call("GET", "/me", key).status_code == 401


def test_others_can_be_signed_out_one_by_one_or_all(cast: Cast) -> None:
    elsewhere, further = Person(cast.app, "max"), Person(cast.app, "max")
    elsewhere.sign_in()
    further.sign_in()
    page = cast.max.get("/account/sessions").text
    numbers = re.findall(r'name="session"\s+value="([0-9a-f]{16})"', page)
    assert len(set(numbers)) == 2
    assert cast.rio.post("/account/sessions", {"session": numbers[0]}).status_code == 404
    assert cast.max.post("/account/sessions", {"session": numbers[0]}).status_code == 303
    assert cast.max.post("/account/sessions", {"session": numbers[0]}).status_code == 404
    assert {elsewhere.get("/account").status_code, further.get("/account").status_code} == {200, 303}
    cast.max.post("/account/sessions")
    assert [elsewhere.get("/account").status_code, further.get("/account").status_code] == [303, 303]
    assert cast.max.get("/account").status_code == 200


def test_a_forgotten_password_is_chosen_anew_over_the_link_in_the_mail(app: Flask, cast: Cast) -> None:
    key = cast.max.generate(["leads:read"])
    stranger = cast.stranger()
    stranger.get("/reset")
    assert stranger.post("/reset", {"email": "MAX@acme.test"}).status_code == 200
    path = link_in_mail(app)
    form = stranger.get(path)
    assert 'value="yes" checked' in form.text
    chosen = {"password": NEW, "password_again": NEW, "stop_keys": "yes"}
    assert stranger.post(path, chosen).headers["Location"] == "/login"
    assert stranger.browser.post("/login", data={"csrf_token": token_on(form)}).status_code == 400  # nothing goes on
    assert cast.max.get("/account").status_code == 303
    assert cast.call("GET", "/me", key).status_code == 401
    assert stranger.get(path).status_code == 404
    assert Person(app, "max").sign_in(NEW).status_code == 303


def test_a_mail_is_promised_only_where_a_server_for_it_is_set(cast: Cast, database_url: str, tmp_path: Path) -> None:
    smtp = {"PORTAL_SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "PORTAL_MAIL_FROM": "keys@acme.test"}
    mailing = create_app({"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path), **smtp})

    def told_by(portal: Cast) -> list[str]:
        somebody, ana = portal.stranger(), portal.ana
        invite = "/w/acme/members/invite"
        pages = [somebody.get("/reset"), somebody.post("/reset", {"email": "rio@acme.test"}), ana.get(invite)]
        pages.append(ana.post(invite, {"email": "ida@acme.test", "role": "member"}))
        return [" ".join(page.text.split()) for page in pages]

    promises = (
        "We mail you a link",
        "a link is on its way",
        "They get a link by mail",
        "A mail with this link is on its way",
    )
    instead = ("No mail server is set", "in its mail folder", "no mail server is set", "copy this link")
    for promise, other, without, with_server in zip(
        promises, instead, told_by(cast), told_by(Cast(mailing)), strict=True
    ):
        assert (promise in without, other in without) == (False, True)
        assert (promise in with_server, other in with_server) == (True, False)
    mailing.extensions["portal"].close()


@pytest.mark.both
def test_a_link_is_made_while_the_mail_server_says_nothing(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        smtp = {"PORTAL_SMTP_URL": f"smtp://127.0.0.1:{silent.getsockname()[1]}", "PORTAL_MAIL_FROM": "keys@acme.test"}
        mailing = create_app({"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path), **smtp})
        portal = Cast(mailing)
        portal.ana.post("/w/acme/members/invite", {"email": "ida@acme.test", "role": "member"})
        somebody = portal.stranger()
        somebody.get("/reset")
        somebody.post("/reset", {"email": "max@acme.test"})
        mailing.extensions["portal"].errands.submit(int).result(timeout=5)
        with database.reading() as session:
            assert session.query(PasswordReset).count() == 1
            assert session.query(OutgoingMail).count() == 2
    mailing.extensions["portal"].close()


@pytest.mark.parametrize("address", ["max@acme.test", "nobody@acme.test"])
def test_asking_for_a_link_tells_nothing_of_who_is_there(address: str, app: Flask, cast: Cast) -> None:
    stranger = cast.stranger()
    stranger.get("/reset")
    answer = stranger.post("/reset", {"email": address})
    assert answer.status_code == 200
    assert address in answer.text
    wait_for_errands(app)
    folder = Path(app.extensions["portal"].settings.mail_folder)
    assert folder.exists() == (address == "max@acme.test")


def test_asking_for_links_is_limited(cast: Cast) -> None:
    stranger = cast.stranger()
    stranger.get("/reset")
    statuses = [stranger.post("/reset", {"email": "max@acme.test"}).status_code for _ in range(PAIR_LIMIT + 1)]
    assert statuses == [200] * PAIR_LIMIT + [429]
    assert Person(cast.app, "max").sign_in().status_code == 303


def test_a_link_that_nobody_made_is_used_up(cast: Cast) -> None:
    answer = cast.stranger().get(f"/reset/{'x' * 43}")
    assert answer.status_code == 404
    assert "used up" in answer.text


def test_staying_signed_in_is_a_form_of_ones_own(cast: Cast) -> None:
    assert cast.max.post("/account/stay").status_code == 303
    assert cast.stranger().browser.post("/account/stay").status_code in (303, 400)


def test_an_operator_prints_a_link(app: Flask, cast: Cast) -> None:
    runner = app.test_cli_runner()
    printed = runner.invoke(args=["reset-password", "max@acme.test"])
    found = re.search(r"/reset/\S+", printed.output)
    assert found
    assert cast.stranger().get(found[0]).status_code == 200
    assert runner.invoke(args=["reset-password", "nobody@acme.test"]).exit_code != 0
