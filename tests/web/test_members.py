"""The pages of people and API members: what each shows to whom, what they send on, and what they cost."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, func, insert, select, update

from portal.mail import Folder
from portal.rules.access import Role
from portal.services import invitations, workspaces
from portal.services.actor import operator
from portal.store.database import Database
from portal.store.models import Access, Account, ApiKey, AuditEvent, Member, Solution, UserSession
from tests.cast import HTMX, Cast, MadeKey, Person
from tests.web.looking import kept

API = "/w/acme/api-members"
PEOPLE = "/w/acme/members"


def make(person: Person, name: str = "CRM bot", **access: str) -> str:
    """Make an API member with the form; give its address."""
    levels = {f"access-{slug}": level for slug, level in access.items()}
    reply = person.post(f"{API}/new", {"name": name, "purpose": "Copies tasks", **levels})
    assert reply.status_code == 303, reply.text
    return reply.headers["Location"]


def id_of(address: str) -> str:
    return address.rpartition("/")[2]


def person_id(database: Database, name: str) -> str:
    with database.reading() as session:
        found = session.scalars(select(Member.public_id).join(Account).where(Account.email.like(f"{name}@%"))).one()
    return f"{PEOPLE}/{found}"


def words(html: str) -> str:
    """Give a page's text as it reads."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", html.partition("<main")[2]))


def lapse(database: Database) -> None:
    """Let every password have been given more than ten minutes ago."""
    with database.transaction() as session:
        session.execute(update(UserSession).values(proved_at=datetime.now(UTC) - timedelta(minutes=11)))


def status(cast: Cast, key: MadeKey, method: str = "GET") -> int:
    body = {"json": {"fields": {"title": "A task"}}} if method == "POST" else {}
    return cast.call(method, "/apps/tasks/records", key, **body).status_code


# --- API members ----------------------------------------------------------------------------------------------------


def test_a_lead_makes_an_api_member_and_its_first_key_without_asking_anybody(cast: Cast) -> None:
    address = make(cast.lea, operations="full")
    page = cast.lea.get(address).text
    assert "CRM bot can read and change Operations. Nothing else." in words(page)
    link = re.search(r'id="first-key"[^>]*href="([^"]+)"', page.replace("\n", " "))
    assert link
    form = cast.lea.get(link[1]).text
    assert re.search(rf'value="{id_of(address)}"[^>]*checked', form)
    key = cast.lea.generate(["tasks:write"], owner=id_of(address))
    assert (status(cast, key, "POST"), status(cast, key)) == (201, 403)
    assert "Generate its first key" not in cast.lea.get(address).text


def test_only_what_one_manages_has_a_control_and_the_rest_says_why(cast: Cast) -> None:
    page = cast.lea.get(f"{API}/new").text
    assert re.findall(r'name="(access-\w+)"', page) == ["access-operations"] * 3
    assert 'value="manage"' not in page
    assert "Your access: read-only, so you cannot change this. Ask Ana Ruiz." in words(page)
    both = cast.ana.get(f"{API}/new").text
    assert set(re.findall(r'name="(access-\w+)"', both)) == {"access-operations", "access-sales"}


@pytest.mark.both
@pytest.mark.parametrize(
    "forged", [{"access-sales": "read"}, {"access-sales": "none"}, {"access-operations": "manage"}]
)
def test_a_forged_form_hands_out_nothing_and_is_told(cast: Cast, database: Database, forged: dict[str, str]) -> None:
    address = make(cast.lea)
    where = "Sales" if "access-sales" in forged else "Operations"
    before = kept(database)
    for path in (f"{API}/new", f"{address}/access"):
        reply = cast.lea.post(path, {"name": "More than allowed", "access-operations": "full", **forged})
        assert reply.status_code == 403
        assert f"You cannot hand out access in {where}. Nothing was saved." in reply.text
    assert kept(database) == before
    with database.reading() as session:
        told = session.scalars(select(AuditEvent).where(AuditEvent.outcome == "refused").order_by(AuditEvent.id)).all()
    assert [each.action for each in told] == ["api_member_created", "access_granted"]


def test_a_form_that_a_member_forges_is_refused_and_told(cast: Cast, database: Database) -> None:
    address = make(cast.lea)
    assert cast.rio.get(f"{address}/reactivate").status_code == 403
    assert cast.rio.post(f"{address}/reactivate").status_code == 403
    with database.reading() as session:
        [told] = session.scalars(select(AuditEvent).where(AuditEvent.outcome == "refused")).all()
    assert (told.action, told.target_id) == ("member_reactivated", address.rpartition("/")[2])


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"access-operations": "everything"}, 422),
        ({"access-operations": ["read", "full"]}, 400),
        ({"access-../../etc": "read"}, 400),
        ({"access-nowhere": "read"}, 403),
        ({"name": "CRM\x00bot"}, 422),
        ({"name": ""}, 422),
        ({"purpose": "x" * 141}, 422),
    ],
)
def test_odd_answers_make_no_api_member(shared_cast: Cast, answers: dict[str, Any], code: int) -> None:
    database: Database = shared_cast.app.extensions["portal"].database
    before = kept(database)
    reply = shared_cast.lea.post(f"{API}/new", {"name": "CRM bot", "purpose": "", **answers})
    assert reply.status_code == code
    assert kept(database) == before


def test_a_name_is_shown_as_it_was_typed(cast: Cast) -> None:
    address = make(cast.lea, "<b onclick=x>Bot</b>", operations="read")
    for path in (API, address, f"{address}/access", f"{address}/delete", f"{address}/edit"):
        page = cast.lea.get(path).text
        assert "<b onclick" not in page
        assert "&lt;b onclick=x&gt;Bot" in page


def test_lowering_shows_beforehand_what_is_in_use_and_tells_afterwards_what_went(cast: Cast) -> None:
    address = make(cast.lea, operations="full")
    key = cast.lea.generate(["tasks:write", "reservations:read"], owner=id_of(address), name="Copier")
    assert status(cast, key, "POST") == 201
    cast.app.extensions["portal"].usage.flush()
    form = words(cast.lea.get(f"{address}/access").text)
    assert re.search(r"“Copier” \(…\w{4}\): tasks:write 1 request; reservations:read not used", form)
    assert cast.lea.post(f"{address}/access", {"access-operations": "read"}).status_code == 303
    after = words(cast.lea.get(address).text)
    status_text = cast.lea.get(address).text
    assert "CRM bot can read Operations. Nothing else." in after
    assert "CRM bot" in status_text
    assert status(cast, key, "POST") == 403


@pytest.mark.both
def test_what_a_lowering_would_take_is_listed_and_what_it_took_is_counted_and_marked(cast: Cast) -> None:
    address = make(cast.lea, operations="full")
    cast.lea.generate(["tasks:write", "tasks:read"], owner=id_of(address), name="Copier")
    assert "Limited by owner" not in cast.lea.get(address).text
    lower = {"access-operations": "read"}
    asked = words(cast.lea.post(f"{address}/access/review", lower).text)
    assert re.search(r"1 active key loses 1 scope: tasks:write of “Copier” \(…\w{4}\), not used in 30 days\.", asked)
    cast.lea.post(f"{address}/access", lower)
    page = cast.lea.get(address).text
    assert "Access of “CRM bot” is saved. 1 active key lost 1 scope.</div>" in page
    assert re.search(r"Copier.*Active Limited by owner", words(page))


def test_a_key_whose_every_scope_is_paused_is_not_called_read_only(cast: Cast) -> None:
    address = make(cast.lea, operations="full")
    cast.lea.generate(["tasks:read"], owner=id_of(address))
    assert '<span class="tag">Read-only</span>' in cast.lea.get("keys?owner=api").text
    cast.lea.post(f"{address}/access", {"access-operations": "none"})
    listed = cast.lea.get("keys?owner=api").text
    assert "Limited by owner" in listed
    assert '<span class="tag">Read-only</span>' not in listed


def test_a_stale_matrix_is_shown_again_as_things_are(cast: Cast) -> None:
    address = make(cast.lea, operations="read")
    was = re.search(r'name="was"\s+value="([^"]*)"', cast.lea.get(f"{address}/access").text)
    assert was
    cast.ana.post(f"{address}/access", {"access-operations": "none", "access-sales": "full"})
    reply = cast.lea.post(f"{address}/access", {"access-operations": "full", "was": was[1]})
    assert reply.status_code == 409
    assert "Somebody changed “CRM bot” a moment ago. Nothing was saved." in reply.text
    assert "Full (set by Ana Ruiz)" in words(reply.text)
    assert re.search(r'value="none"[^>]*checked', reply.text)


def test_a_stale_choice_of_a_manager_overwrites_nothing(cast: Cast, database: Database) -> None:
    path = make(cast.lea, operations="read") + "/manager"
    ana, lea = (id_of(person_id(database, name)) for name in ("ana", "lea"))
    was = re.search(r'name="was"\s+value="([^"]*)"', cast.ana.get(path).text)
    assert was
    assert was[1] == lea
    assert cast.ana.post(path, {"manager": ana, "was": lea}).status_code == 303
    reply = cast.ana.post(path, {"manager": lea, "was": lea})
    assert reply.status_code == 409
    assert "Somebody changed “CRM bot” a moment ago. Nothing was saved." in reply.text
    assert "Ana Ruiz manages it now." in words(reply.text)


def test_more_access_asks_for_the_password_and_then_goes_on_and_less_never_asks(cast: Cast, database: Database) -> None:
    address = make(cast.lea, operations="read")
    lapse(database)
    for path in (f"{address}/access", address, API):
        assert cast.lea.get(path).status_code == 200
    asked = cast.lea.post(f"{address}/access", {"access-operations": "full"})
    assert asked.status_code == 403
    assert "Confirm it’s you" in asked.text or "Confirm it's you" in asked.text or "hand out access" in asked.text
    carried = {"access-operations": "full", "password": "correct horse battery staple"}
    assert cast.lea.post(f"{address}/access", carried).status_code == 303
    assert "read and change Operations" in words(cast.lea.get(address).text)
    lapse(database)
    assert cast.lea.post(f"{address}/access", {"access-operations": "none"}).status_code == 303
    assert cast.lea.post(f"{address}/deactivate").status_code == 303
    for path in (f"{API}/new", f"{address}/reactivate"):
        assert cast.lea.get(path).headers["Location"].startswith("/reauth?next=")
        assert cast.lea.post(path, {"name": "Another one"}).status_code == 403
    assert cast.lea.post(f"{address}/delete").status_code == 303


def test_what_one_may_not_see_looks_like_what_there_is_not(cast: Cast, database: Database) -> None:
    of_ana = make(cast.ana, operations="read")
    of_globex = cast.zoe.post("/w/globex/api-members/new", {"name": "Globex bot"}).headers["Location"]
    stranger = of_globex.replace("globex", "acme")
    human = person_id(database, "rio").replace("members", "api-members")
    for one in (of_ana, stranger, human, f"{API}/mem_1"):
        for path in ("", "/access", "/edit", "/deactivate", "/reactivate", "/delete"):
            assert cast.lea.get(one + path).status_code == 404
            if path:
                assert cast.lea.post(one + path, {"name": "Mine now"}).status_code == 404
    assert cast.lea.get(of_ana.replace("api-members", "members")).status_code == 404


def test_nobody_signs_in_as_an_api_member(cast: Cast) -> None:
    address = make(cast.lea, operations="read")
    for email in ("CRM bot", id_of(address), f"{id_of(address)}@acme.test", ""):
        stranger = cast.stranger()
        stranger.email = email
        assert stranger.sign_in().status_code == 422


def test_the_generate_form_leads_leads_to_a_new_api_member(cast: Cast) -> None:
    link = f'formaction="{API}/new/for-key"'
    assert link in cast.lea.get("keys/new").text
    assert link in cast.ana.get("keys/new").text
    assert link not in cast.rio.get("keys/new").text


# --- People ---------------------------------------------------------------------------------------------------------


def test_a_key_form_goes_on_with_its_answers_after_an_api_member_was_made_for_it(cast: Cast) -> None:
    answers = cast.lea.form(
        scopes=["tasks:read", "reservations:write"], name="Kept name", environment="live", expires="1y"
    )
    between = cast.lea.post(f"{API}/new/for-key", answers).text
    carried: dict[str, list[str]] = {}
    for name, value in re.findall(r'name="(key-\w+)" value="([^"]*)"', between):
        carried.setdefault(name, []).append(html.unescape(value))
    assert re.search(r'name="access-operations"\s+value="full"[^>]*checked', between)  # what the ticks need
    sent = {"name": "Carrier", "access-operations": "read", **carried}
    onward = cast.lea.post(f"{API}/new", sent)
    assert onward.status_code == 307
    assert re.fullmatch(r"/w/acme/api/keys/new\?owner=mem_\w+", onward.location)
    reply = cast.lea.post(onward.location, sent)
    assert reply.status_code == 200
    assert "“Carrier” is made." in reply.text
    assert 'value="Kept name"' in reply.text
    for name, value in (("environment", "live"), ("expires", "1y"), ("scopes", "tasks:read")):
        assert re.search(rf'name="{name}"\s+value="{value}"[^>]*checked', reply.text), name
    said = "1 scope removed: Carrier cannot write Operations."  # it was given less than the ticks need
    assert said in words(reply.text)
    assert re.search(r'name="owner"\s+value="mem_\w+"[^>]*checked[^>]*>(?:(?!<input).)*Carrier', reply.text, re.DOTALL)


def test_moving_a_key_goes_to_an_api_member_that_may_do_as_much_else_to_a_new_one(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:write"], name="Mover")
    make(cast.lea, "Too little", operations="read")
    away = cast.lea.get(f"keys/{key.id}/move").headers["Location"]
    assert away == f"{API}/new?from={key.id}"
    form = cast.lea.get(away).text
    assert 'value="Mover"' in form
    assert re.search(r'name="access-operations"\s+value="full"[^>]*checked', form)
    reply = cast.lea.post(f"{API}/new", {"name": "Mover", "access-operations": "full", "key-from": key.id})
    made = reply.headers["Location"]
    assert f"from={key.id}" in made
    assert cast.lea.get(f"keys/{key.id}/move").headers["Location"].partition("?")[2] == made.partition("?")[2]
    assert re.search(rf'name="replaces"\s+value="{key.id}"[^>]*checked', cast.lea.get(made).text)


def test_an_api_member_made_for_somebody_who_leaves_goes_back_to_that(cast: Cast, database: Database) -> None:
    key = cast.max.generate(["leads:read"], name="Departing")
    person = person_id(database, "max")
    link = re.search(rf'href="([^"]+leaving={id_of(person)})"', cast.ana.get(f"{person}/leave").text)
    assert link
    assert f'name="leaving" value="{id_of(person)}"' in cast.ana.get(link[1]).text
    reply = cast.ana.post(f"{API}/new", {"name": "Heir", "access-sales": "read", "leaving": id_of(person)})
    back = cast.ana.get(reply.headers["Location"]).text
    assert "Move to Heir" in words(back)
    heir = id_of(reply.headers["Location"]).partition("to=")[2]
    answers = cast.ana.form(scopes=["leads:read"], owner=heir, replaces=key.id, overlap="24h", **{"from": key.id})
    assert f'href="{person}/leave?to={heir}"' in cast.ana.post("keys", answers).text  # Done goes on with the others


def test_a_key_is_offered_to_an_api_member_that_may_do_something_of_it(cast: Cast, database: Database) -> None:
    person = person_id(database, "max")
    make(cast.lea, "Ace", operations="read")
    sales = cast.max.generate(["leads:read", "leads:write"], name="Departing")
    alone = f'href="{API}/new?from={sales.id}"'
    page = cast.ana.get(f"{person}/leave").text
    assert "No API member could use any of this key’s scopes." in words(page)
    assert alone in page
    assert "Move to" not in words(page)
    make(cast.ana, "Best", sales="read")
    page = cast.ana.get(f"{person}/leave").text
    assert "Move to Best" in words(page)
    assert "It lacks access for 1 of 2 scopes." in words(page)
    assert alone not in page
    cast.max.generate(["tasks:read"], name="Other")  # so that both keep as much
    page = cast.ana.get(f"{person}/leave").text
    assert "Move to Ace (Other" in words(page)
    assert "Ace could use none of this key’s scopes." in words(page)
    assert alone in page


@pytest.mark.both
def test_the_keys_of_somebody_deactivated_are_not_called_active(cast: Cast, database: Database) -> None:
    cast.max.generate(["leads:read"], name="Left behind")
    person = person_id(database, "max")
    cast.ana.post(f"{person}/leave", {"then": "deactivate"})
    for page in (cast.ana.get(person).text, cast.ana.get("keys?owner=all").text):
        assert "Owner deactivated" in words(page)
        assert "no longer has" not in page
    assert "Left behind" not in cast.ana.get("keys?owner=all&state=active").text
    assert "Left behind" in cast.ana.get("keys?owner=all&state=deactivated").text


def test_leads_see_people_and_only_admins_have_what_changes_them(cast: Cast, database: Database) -> None:
    rio = person_id(database, "rio")
    cast.rio.generate(name="Of rio")
    for page in (cast.lea.get(PEOPLE).text, cast.lea.get(rio).text):
        assert "Rio Tanaka" in page
        for address in ("/invite", "/access", "/leave", "keys?owner=mem_"):
            assert address not in page
        assert "Of rio" not in page
    seen = cast.ana.get(rio).text
    assert "Of rio" in seen
    assert f"{rio}/access" in seen
    listed = cast.ana.get(PEOPLE).text
    assert f"owner={id_of(rio)}" in listed
    assert all(f">{access}<" in listed for access in ("Manages everything", "Read Operations"))


def test_an_admin_takes_access_away_and_it_is_gone_at_the_next_call(cast: Cast, database: Database) -> None:
    key, rio = cast.rio.generate(), person_id(database, "rio")
    assert status(cast, key) == 200
    reply = cast.ana.post(f"{rio}/access", {"role": "member", "access-operations": "none"})
    assert reply.status_code == 303
    assert status(cast, key) == 403
    assert "1 active key lost 1 scope." in cast.ana.get(rio).text


def test_the_last_admin_is_told_why_not(cast: Cast, database: Database) -> None:
    ana = person_id(database, "ana")
    reply = cast.ana.post(f"{ana}/access", {"role": "member"})
    assert reply.status_code == 409
    assert "Ana Ruiz is the last administrator of Acme. Make somebody else an administrator first." in reply.text
    for then in ("demote", "deactivate", "remove"):
        assert cast.ana.post(f"{ana}/leave", {"then": then}).status_code == 409
    assert cast.ana.get(f"{ana}/leave").status_code == 200


def test_an_admin_who_demotes_themselves_lands_where_they_may_be(cast: Cast, database: Database) -> None:
    cast.ana.post(f"{person_id(database, 'max')}/access", {"role": "admin"})
    reply = cast.ana.post(f"{person_id(database, 'ana')}/access", {"role": "member"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/w/acme")
    assert cast.ana.get("/w/acme").status_code == 200
    assert cast.ana.get(PEOPLE).status_code == 403
    assert cast.max.post(f"{person_id(database, 'max')}/leave", {"then": "remove"}).status_code == 409


def test_offboarding_lists_what_stops_and_moves_it_to_an_api_member(cast: Cast, database: Database) -> None:
    old = cast.rio.generate(name="Dock display", note="Warehouse 2")
    bot, rio = make(cast.ana, operations="read"), person_id(database, "rio")
    page = cast.ana.get(f"{rio}/leave?to={id_of(bot)}").text
    assert "1 key stops" in words(page)
    assert "Used in: Warehouse 2" in words(page)
    link = re.search(r'href="([^"]*/api/keys/new\?[^"]*)"', page)
    assert link
    form = cast.ana.get(link[1].replace("&amp;", "&")).text
    assert re.search(rf'value="{id_of(bot)}"[^>]*checked', form)
    assert re.search(rf'name="replaces"\s+value="{old.id}"[^>]*checked', form)
    new = cast.ana.generate(owner=id_of(bot), name="Dock display", replaces=old.id, overlap="24h")
    assert (status(cast, old), status(cast, new)) == (200, 200)
    assert cast.rio.get(f"keys/{old.id}").status_code == 200
    assert new.id not in cast.rio.get(f"keys/{old.id}").text + cast.rio.get("keys").text
    assert cast.ana.post(f"{rio}/leave", {"then": "remove"}).status_code == 303
    assert (status(cast, old), status(cast, new)) == (401, 200)
    assert cast.rio.get("/w/acme").status_code == 404


@pytest.mark.both
def test_who_is_refused_is_told_whom_to_ask(cast: Cast, database: Database) -> None:
    for path in (PEOPLE, "/w/acme/workspace", "/w/acme/policy"):
        for headers in ({}, HTMX):
            reply = cast.rio.get(path, headers=headers)
            assert (reply.status_code, "dministrators" in reply.text) == (403, True)
            assert " Ask Ana Ruiz." in reply.text
            assert "Ask one of them" not in reply.text
    mine = cast.ana.post(f"{person_id(database, 'ana')}/access", {"access-operations": "manage"})
    assert "Ask Ana Ruiz" not in mine.text
    with database.transaction() as session:
        session.execute(update(Member).where(Member.name == "Ana Ruiz").values(deactivated_at=Member.created_at))
    assert " Ask " not in cast.rio.get(PEOPLE).text  # nobody is there


def test_leaving_needs_no_password_and_coming_back_does(cast: Cast, database: Database) -> None:
    rio = person_id(database, "rio")
    for person in (cast.ana, cast.rio):  # signing in is a proof
        person.get("/w/acme")
    lapse(database)
    assert cast.ana.get(f"{rio}/leave").status_code == 200
    assert cast.ana.post(f"{rio}/access", {"role": "member", "access-operations": "none"}).status_code == 303
    assert cast.ana.post(f"{rio}/access", {"role": "admin"}).status_code == 403
    assert cast.ana.post(f"{rio}/leave", {"then": "deactivate"}).status_code == 303
    assert cast.ana.post(f"{rio}/reactivate").status_code == 403
    assert cast.ana.post(f"{PEOPLE}/invite", {"email": "ida@acme.test", "role": "member"}).status_code == 403
    assert cast.rio.get("/w/acme").status_code == 404


def test_who_was_removed_is_shown_without_the_access_that_ended(cast: Cast, database: Database) -> None:
    rio = person_id(database, "rio")
    assert "Read-only" in cast.ana.get(rio).text
    cast.ana.post(f"{rio}/leave", {"then": "remove"})
    page = cast.ana.get(rio).text
    assert "None: removed people come back without access." in page
    assert "Read-only" not in page


# --- Invitations ----------------------------------------------------------------------------------------------------


def test_an_invitation_is_shown_once_mailed_and_gives_what_it_says(cast: Cast, database: Database, app: Flask) -> None:
    answers = {"email": "ida@acme.test", "role": "member", "access-sales": "full"}
    reply = cast.ana.post(f"{PEOPLE}/invite", answers)
    (link,) = set(re.findall(r"http://[^<\s]+/invite/[\w-]{43}", reply.text))
    for pool in (app.extensions["portal"].errands, app.extensions["portal"].post):
        pool.submit(int).result()  # whatever was sent on before is done by now
    (mail,) = app.extensions["portal"].settings.mail_folder.iterdir()
    letter = message_from_bytes(mail.read_bytes(), policy=policy.default)
    assert letter["To"] == "ida@acme.test"
    assert link in letter.get_content().replace("=\n", "")
    listed = cast.ana.get(f"{PEOPLE}/invite").text
    assert "ida@acme.test" in listed
    assert link.rpartition("/")[2] not in listed
    ida = cast.stranger()
    path = link.partition("127.0.0.1:5000")[2]
    ida.get(path)
    joined = ida.post(path, {"name": "Ida Berg", "password": "twelve chars", "password_again": "twelve chars"})
    assert joined.status_code == 303
    assert "Sales" in ida.get("/w/acme").text
    assert "Operations" not in words(ida.get("/w/acme").text)
    assert ida.get(path).status_code == 404


@pytest.mark.both
def test_a_form_that_is_sent_twice_makes_one_invitation_and_one_api_member(cast: Cast) -> None:
    def form_of(page: str) -> str:
        (found,) = re.findall(r'name="form_id"\s+value="([^"]+)"', page)
        return str(found)

    invite = cast.ana.get(f"{PEOPLE}/invite").text
    answers = {"email": "ida@acme.test", "role": "member", "form_id": form_of(invite)}
    wrong = cast.ana.post(f"{PEOPLE}/invite", answers | {"email": "ida"})
    assert (wrong.status_code, form_of(wrong.text)) == (422, answers["form_id"])
    link = re.findall(r"/invite/[\w-]{43}", cast.ana.post(f"{PEOPLE}/invite", answers).text)[0]
    again = cast.ana.post(f"{PEOPLE}/invite", answers)
    assert again.status_code == 410
    assert "ida@acme.test was invited at" in words(again.text)
    assert not re.search(r"/invite/[\w-]{43}", again.text)
    assert len(set(re.findall(r"inv_\w+", cast.ana.get(f"{PEOPLE}/invite").text))) == 1
    assert cast.stranger().get(link).status_code == 200
    made = [cast.lea.get(f"{API}/new").text, cast.lea.get(f"{API}/new").text]
    answers = {"name": "CRM bot", "form_id": form_of(made[0])}
    replies = [cast.lea.post(f"{API}/new", answers) for _ in range(2)]
    assert (replies[0].status_code, replies[0].location) == (replies[1].status_code, replies[1].location)
    places = {replies[0].location}
    for other in ({"name": "Mail robot", "form_id": form_of(made[1])}, answers | {"name": "Sent with other answers"}):
        places.add(cast.lea.post(f"{API}/new", other).location)
    assert len(places) == 3
    cast.lea.post(f"{replies[0].location}/delete")
    late = cast.lea.post(f"{API}/new", answers)
    assert (late.status_code, "deleted since" in late.text) == (409, True)


def test_with_too_many_open_invitations_the_form_keeps_its_answers_beside_all_of_them(
    cast: Cast, database: Database
) -> None:
    with database.transaction() as session:
        acme = workspaces.get(session, "acme")
        for n in range(100):
            invitations.issue(session, operator(), acme, f"p{n}@acme.test", Role.MEMBER)
    reply = cast.ana.post(f"{PEOPLE}/invite", {"email": "ida@acme.test", "role": "member"})
    assert reply.status_code == 409
    assert "Withdraw one first" in reply.text
    assert 'value="ida@acme.test"' in reply.text
    assert len(set(re.findall(r"/invitations/(\w+)/withdraw", reply.text))) == 100


@pytest.mark.parametrize("trouble", ["no thread", "no server"])
def test_an_invitation_that_cannot_be_mailed_is_shown_all_the_same_and_that_is_logged(
    trouble: str, cast: Cast, app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("cannot now")

    errands = app.extensions["portal"].errands
    if trouble == "no thread":
        monkeypatch.setattr(errands, "submit", refuse)
    else:
        monkeypatch.setattr(Folder, "send", refuse)
    reply = cast.ana.post(f"{PEOPLE}/invite", {"email": "ida@acme.test", "role": "member"})
    assert reply.status_code == 200
    assert re.search(r"/invite/[\w-]{43}", reply.text)
    if trouble == "no server":
        for pool in (errands, app.extensions["portal"].post):
            pool.submit(int).result()
    assert "cannot now" in caplog.text


def test_a_withdrawn_link_opens_nothing(cast: Cast) -> None:
    reply = cast.ana.post(f"{PEOPLE}/invite", {"email": "ida@acme.test", "role": "admin"})
    path = re.findall(r"/invite/[\w-]{43}", reply.text)[0]
    waiting = re.findall(r"inv_\w+", cast.ana.get(f"{PEOPLE}/invite").text)[0]
    assert cast.ana.get(f"{PEOPLE}/invitations/{waiting}/withdraw").status_code == 200
    assert cast.ana.post(f"{PEOPLE}/invitations/{waiting}/withdraw").status_code == 303
    assert cast.stranger().get(path).status_code == 404
    assert cast.ana.get(f"{PEOPLE}/invitations/{waiting}/withdraw").status_code == 404


# --- Cost -----------------------------------------------------------------------------------------------------------


@contextmanager
def counting(database: Database) -> Iterator[list[str]]:
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield asked
    event.remove(database.engine, "before_cursor_execute", note)


def crowd(database: Database, people: int = 300, bots: int = 199, keys: int = 2000) -> None:
    """Fill the workspace: people and API members with access, and keys of all of them."""
    now = datetime.now(UTC)
    with database.transaction() as session:
        lea = session.scalars(select(Member).where(Member.name == "Lea Okoro")).one()
        solutions = list(session.scalars(select(Solution.id).where(Solution.workspace_id == lea.workspace_id)))
        here = {"workspace_id": lea.workspace_id, "role": "member", "created_at": now}
        last = session.scalars(select(func.max(Member.id))).one()
        known = {"password_hash": "none", "created_at": now}
        names = [f"X {n}" for n in range(people)]
        rows = [
            {"public_id": f"acc_crowd{n}", "email": f"x{n}@acme.test", "name": name, **known}
            for n, name in enumerate(names)
        ]
        session.execute(insert(Account), rows)
        found = session.scalars(select(Account.id).where(Account.public_id.like("acc_crowd%")))
        rows = [{"public_id": f"mem_h{n}", "name": f"X {n}", "account_id": id, **here} for n, id in enumerate(found)]
        session.execute(insert(Member), rows)
        led = {"manager_id": lea.id, "created_by_id": lea.id, "purpose": "Something", **here}
        rows = [{"public_id": f"mem_b{n}", "name": f"Bot {n}", **led} for n in range(bots)]
        session.execute(insert(Member), rows)
        everybody = session.scalars(select(Member.id).where(Member.id > last)).all()
        rows = [{"member_id": id, "solution_id": each, "level": "full"} for id in everybody for each in solutions]
        session.execute(insert(Access), rows)
        usual = {"workspace_id": lea.workspace_id, "created_by_id": lea.id, "environment": "live", "pepper_id": "none"}
        usual |= {"last_four": "abcd", "created_at": now, "last_used_at": now}
        rows = [
            {
                "public_id": f"key_x{n}",
                "member_id": everybody[n % len(everybody)],
                "name": f"Key {n}",
                "name_folded": f"key {n}",
                "digest": n.to_bytes(32, "big"),
                **usual,
            }
            for n in range(keys)
        ]
        session.execute(insert(ApiKey), rows)


@pytest.mark.both
def test_a_lead_of_one_of_many_solutions_is_told_whom_to_ask_by_one_statement(cast: Cast, database: Database) -> None:
    def cost() -> int:
        with counting(cast.app.extensions["portal"].database) as asked:
            page = cast.lea.get(f"{API}/new").text
        assert "Ana Ruiz" in page
        return len(asked)

    def more(count: int) -> None:
        with database.transaction() as session:
            acme = workspaces.get(session, "acme")
            for n in range(count):
                workspaces.add_solution(session, operator(), acme, f"more-{count}-{n}", f"More {count} {n}")

    more(1)
    cost()
    few = cost()
    more(10)
    assert cost() == few


@pytest.mark.both
def test_no_page_asks_more_for_many_than_for_few(cast: Cast, database: Database) -> None:
    crowd(database)
    cast.ana.get(PEOPLE)
    bot, person = f"{API}/mem_b1", f"{PEOPLE}/mem_h1"
    paths = [
        API,
        f"{API}?state=unused",
        f"{API}/new",
        f"{PEOPLE}/invite",
        PEOPLE,
        f"{PEOPLE}?q=x+1&role=member&solution=sales",
    ]
    paths += [f"{bot}{rest}" for rest in ("", "/access", "/manager", "/deactivate", "/delete")]
    paths += [f"{person}{rest}" for rest in ("", "/access", "/leave")]
    asked = {}
    for path in paths:
        with counting(cast.app.extensions["portal"].database) as statements:
            assert cast.ana.get(path).status_code == 200
        asked[path] = len(statements)
    assert max(asked.values()) < 20, asked
    listed = cast.ana.get(f"{API}?page=2").text
    assert "Showing 26–50 of 200" in words(listed)
    assert listed.count("Change manager") == 0
    found = cast.ana.get(f"{PEOPLE}?page=99").text
    assert "Showing 301–304 of 304" in words(found)
