"""The audit log on its pages and in its exports, and what was refused explained: to those who may know (section 5)."""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, select, update
from werkzeug.test import TestResponse

from portal.rules.access import Role
from portal.rules.credentials import new_id
from portal.rules.errors import Refusal
from portal.services import accounts, audit, audit_views, workspaces
from portal.services.actor import Actor, Means
from portal.services.audit import Event
from portal.services.audit_views import GROUPS, Names
from portal.services.usage import KEEP_REFUSALS
from portal.store.database import Database
from portal.store.models import Account, ApiKey, AuditEvent, Member, RefusedRequest, UserSession
from portal.web import oversight, refusals, sentences
from tests.cast import Cast, MadeKey, Person

AUDIT, EXPLAIN = "/w/acme/audit", "/w/acme/explain"
NOBODY = Names({}, {}, {})


def said(page: TestResponse) -> list[str]:
    """Read the sentences on a page of the log, newest first, as they are heard."""
    assert page.status_code == 200, page.text
    found = re.findall(r'<p class="said">(.*?)</p>', page.text, re.S)
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", each)).strip() for each in found]


def events_of(page: TestResponse) -> list[str]:
    return re.findall(r'<li id="(evt_\w+)"', page.text)


def flush(cast: Cast) -> None:
    cast.app.extensions["portal"].usage.flush()


# --- Sentences ------------------------------------------------------------------------------------------------------


def made(action: str, outcome: str = "done", **details: Any) -> AuditEvent:
    at = datetime(2026, 1, 12, 12, tzinfo=UTC)
    facts: dict[str, Any] = {"target_id": "key_1", "target_name": "CRM sync (…abcd)", "details": details}
    return AuditEvent(
        public_id="evt_1", seq=1, at=at, action=action, outcome=outcome, actor_name="Ana Ruiz", means="session", **facts
    )


@pytest.mark.parametrize("action", list(Event))
def test_every_event_has_a_sentence_done_refused_and_counted(app: Flask, action: Event) -> None:
    with app.test_request_context():
        done = sentences.tell(made(action), NOBODY)
        tried = sentences.tell(made(action, "refused", reason="Not you."), NOBODY) if action != "key_refused" else None
        more = sentences.tell(
            made(action, "refused", more=1_200, who="mem_1", hour="2026-01-12T12:00:00+00:00"), NOBODY
        )
    assert action in sentences._SAYS
    assert done.text and "{" not in done.text + more.text and "_" not in done.text
    assert "1,200 more" in more.text and "12 Jan 2026, 12:00 UTC" in more.text
    if tried:
        assert tried.text.startswith("tried to ") and tried.text.endswith("Refused: Not you.")


@pytest.mark.parametrize(
    ("action", "details", "one", "more"),
    [
        ("sessions_ended", "count", "signed out 1 other session", "signed out 2 other sessions"),
        ("sandbox_filled", "copied", "with 1 record", "with 2 records"),
        ("key_edited", "more", "1 more attempt to", "2 more attempts to"),
        ("key_refused", "more", "1 more request with", "2 more requests with"),
    ],
)
def test_one_of_a_thing_is_told_in_the_singular(app: Flask, action: str, details: str, one: str, more: str) -> None:
    with app.test_request_context():
        singular, plural = (sentences.tell(made(action, "done", **{details: n}), NOBODY).text + " " for n in (1, 2))
    assert f"{one} " in singular and "were" not in singular
    assert f"{more} " in plural and " was " not in plural


def test_a_restore_says_of_when_its_backup_was(app: Flask) -> None:
    with app.test_request_context():
        told = sentences.tell(made("backup_restored", made="2026-01-12T12:00:00+00:00"), NOBODY).text
    assert told == "restored the backup of 12 Jan 2026, 12:00 UTC"


def test_a_rate_of_one_is_a_number(app: Flask) -> None:
    with app.test_request_context():
        one = made("key_rate_changed", before={"rate_per_second": None}, after={"rate_per_second": 1})
        told = sentences.tell(one, NOBODY)
    assert [(each.before, each.after) for each in told.changes] == [("none", "1")]


def test_every_event_but_none_twice_stands_in_a_group_of_the_filter() -> None:
    grouped = [each for _, events in GROUPS.values() for each in events]
    assert sorted(grouped) == sorted(Event)


def test_an_event_that_nobody_knows_yet_is_told_by_its_name(app: Flask) -> None:
    with app.test_request_context():
        assert sentences.tell(made("key_polished"), NOBODY).text == "key polished: CRM sync (…abcd)"


@pytest.mark.parametrize(
    "event",
    [
        made("key_generated", scopes=7),
        made("key_edited", "refused", more="many"),
        made("member_joined", role={"a": 1}),
        made("access_granted", before={"sales": []}, after={"sales": "read"}),
    ],
)
def test_an_event_with_details_that_nobody_wrote_is_unreadable(app: Flask, event: AuditEvent) -> None:
    with app.test_request_context():
        assert sentences.tell(event, NOBODY).text == "unreadable event: its row holds what nobody wrote there"


@pytest.mark.parametrize("ends", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00", "soon", "7"])
def test_a_moment_in_an_event_that_is_none_is_told_as_it_is(app: Flask, ends: str) -> None:
    with app.test_request_context():
        assert f"; expires {ends}" in sentences.tell(made("key_generated", expires_at=ends), NOBODY).text


def test_the_log_says_who_did_what_with_names_and_from_what_to_what(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read", "tasks:write"], name="CRM sync")
    cast.lea.post(f"keys/{key.id}/edit", {"name": "CRM sync 2", "note": "vault"})
    cast.lea.post(f"keys/{key.id}/deactivate")
    newest = said(cast.ana.get(AUDIT))[:3]
    label = f"CRM sync 2 (…{key.text[-11:-7]})"
    assert newest[0] == f"Lea Okoro deactivated the live key {label}"
    assert newest[1] == f"Lea Okoro changed the name or note of the key {label}"
    assert newest[2].startswith(
        f"Lea Okoro generated the live key CRM sync (…{key.text[-11:-7]}) for Lea Okoro with tasks:read"
    )
    page = cast.ana.get(AUDIT).text
    assert re.search(r"Name</bdi>:.*?CRM sync</bdi>.*?CRM sync 2</bdi>", page, re.S)
    assert key.text not in page


def test_the_access_of_an_invitation_is_told_as_its_senders(cast: Cast) -> None:
    reply = cast.ana.post(
        "/w/acme/members/invite", {"email": "ida@acme.test", "role": "member", "access-sales": "full"}
    )
    path = re.findall(r"/invite/[\w-]{43}", reply.text)[0]
    ida = cast.stranger()
    ida.get(path)
    ida.post(path, {"name": "Ida Berg", "password": "twelve chars", "password_again": "twelve chars"})
    page = cast.ana.get(AUDIT)
    assert said(page)[:3] == [
        "Ida Berg joined as member",
        "Ida Berg got the access that their invitation by Ana Ruiz gives",
        "Ana Ruiz invited ida@acme.test as member",
    ]
    assert "visitor" not in page.text


def test_a_new_api_member_is_told_with_the_access_that_it_got_and_no_other(cast: Cast) -> None:
    cast.ana.post("/w/acme/api-members/new", {"name": "CRM bot", "access-sales": "read", "access-operations": "none"})
    page = cast.ana.get(AUDIT)
    assert said(page)[0] == "Ana Ruiz made the API member CRM bot"
    (changes,) = re.findall(r'<ul class="changes".*?</ul>', page.text.partition("CRM bot")[2], re.S)[:1]
    assert "Sales" in changes
    assert "Operations" not in changes


def test_who_is_not_signed_in_is_somebody(cast: Cast) -> None:
    stranger = cast.stranger()
    stranger.get("/reset")
    assert stranger.post("/reset", {"email": "ana@acme.test"}).status_code == 200
    log = said(cast.ana.get(f"{AUDIT}?of=sign-ins"))
    assert [line for line in log if line.startswith("Somebody asked for a link to choose a new password")]


def test_user_text_is_shown_as_it_is(cast: Cast) -> None:
    cast.rio.generate(name="<b hx-get=/x>Bold")
    assert "&lt;b hx-get=/x&gt;Bold" in cast.ana.get(AUDIT).text
    assert "<b hx-get" not in cast.ana.get(AUDIT).text


@pytest.mark.both
@pytest.mark.parametrize("number", ["2147483647", "2147483648", "9" * 17, "-1", "1e309", "١"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_no_number_in_the_address_breaks_the_log(side: str, number: str, shared_cast: Cast) -> None:
    assert shared_cast.ana.get(f"{AUDIT}?{side}={number}").status_code == 200


# --- Whose events ---------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_members_see_their_own_leads_what_they_manage_and_admins_the_workspace(cast: Cast) -> None:
    own = cast.rio.generate(name="Of rio")
    bot = next(iter(re.findall(r'value="(mem_\w+)"[^>]*>(?=[^<]*Nightly sync)', cast.lea.get("keys/new").text)), "")
    bot = bot or re.findall(r'(mem_\w+)"', cast.lea.get("keys/new").text)[1]
    managed = cast.lea.generate(name="Of the bot", owner=bot)
    cast.max.generate(["leads:read"], name="Of max")
    cast.ana.post(f"keys/{own.id}/deactivate")
    seen = {name: " | ".join(said(getattr(cast, name).get(AUDIT))) for name in ("rio", "lea", "max", "ana")}
    assert {
        name: [what for what in ("Of rio", "Of the bot", "Of max") if what in text] for name, text in seen.items()
    } == {
        "rio": ["Of rio"],
        "lea": ["Of the bot"],
        "max": ["Of max"],
        "ana": ["Of rio", "Of the bot", "Of max"],
    }
    assert "Ana Ruiz deactivated the live key Of rio" in seen["rio"]
    of_max = events_of(cast.max.get(AUDIT))[0]
    assert cast.ana.get(f"{AUDIT}/{of_max}").status_code == 200
    assert [cast.lea.get(f"{AUDIT}/{each}").status_code for each in (of_max, "evt_0")] == [404, 404]
    assert cast.zoe.get(f"/w/globex/audit/{of_max}").status_code == 404
    assert managed.id


@pytest.mark.both
def test_sign_ins_are_told_to_oneself_and_to_the_administrator_of_the_only_workspace(
    cast: Cast, database: Database
) -> None:
    cast.stranger("rio").sign_in("wrong password here")
    cast.rio.get("/account")
    mine, hers = said(cast.rio.get(f"{AUDIT}?of=sign-ins")), said(cast.ana.get(f"{AUDIT}?of=sign-ins"))
    assert any("Refused" in each and "rio@acme.test" in each for each in mine)
    assert any("rio@acme.test" in each for each in hers)
    assert not any("rio@" in each for each in said(cast.lea.get(f"{AUDIT}?of=sign-ins")))
    assert not any("acme.test" in each for each in said(cast.zoe.get("/w/globex/audit?of=sign-ins")))
    with database.transaction() as session:  # zoe is in two workspaces from here: ana does not answer for her alone
        zoe = session.scalars(select(Account).where(Account.email == "zoe@globex.test")).one()
        facts = {"name": zoe.name, "role": Role.MEMBER, "created_at": zoe.created_at}
        acme = workspaces.get(session, "acme")
        session.add(Member(public_id=new_id("mem"), workspace_id=acme.id, account_id=zoe.id, **facts))
    assert not any("zoe@" in each for each in said(cast.ana.get(f"{AUDIT}?of=sign-ins")))
    assert any("zoe@" in each for each in said(cast.zoe.get(f"{AUDIT}?of=sign-ins")))


# --- Filters and pages ----------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_key_that_is_pasted_as_a_filter_becomes_its_last_four(cast: Cast) -> None:
    key = cast.rio.generate(name="Pasted")
    for text in (key.text, key.text[:40]):
        moved = cast.ana.get(f"{AUDIT}?key={text}&outcome=done")
        assert (moved.status_code, text in moved.location, "outcome=done" in moved.location) == (303, False, True)
    [told] = [each for each in said(cast.ana.get(cast.ana.get(f"{AUDIT}?key={key.text}").location)) if "Pasted" in each]
    assert "generated" in told


@pytest.mark.both
def test_filters_narrow_and_say_when_nothing_matches(cast: Cast) -> None:
    first_day = datetime.now(UTC).strftime("%Y-%m-%d")
    live = cast.rio.generate(name="Live one")
    cast.rio.generate(name="Test one", environment="test")
    cast.rio.post(f"keys/{live.id}/deactivate")

    def found(**filters: str) -> list[str]:
        return said(cast.ana.get(AUDIT, query_string=filters))

    assert all("Test one" in each for each in found(env="test", what="keys"))
    assert len(found(key=live.text[-11:-7])) == len(found(key=live.id)) == 2
    assert "<p>2 events</p>" in cast.ana.get(f"{AUDIT}?key={live.id}").text
    assert len(found(key=live.id, outcome="refused")) == 0
    rio = re.findall(r'value="(mem_\w+)"[^>]*>Rio', cast.ana.get(AUDIT).text)[0]
    assert {each[:10] for each in found(person=rio, what="keys")} == {"Rio Tanaka"}
    last_day = datetime.now(UTC).strftime("%Y-%m-%d")  # another, if it was midnight meanwhile
    assert found(**{"from": first_day, "to": last_day, "what": "keys"})
    assert not found(to="2020-01-01")
    assert "No event matches" in cast.ana.get(f"{AUDIT}?to=2020-01-01").text
    assert "is not a day" in cast.ana.get(f"{AUDIT}?from=yesterday").text
    assert "last four characters" in cast.ana.get(f"{AUDIT}?key=whatever").text


def test_moments_in_sentences_are_marked_as_such(cast: Cast) -> None:
    key = cast.rio.generate(name="Rotated", scopes=["tasks:read"])
    assert (
        cast.rio.post(f"keys/{key.id}/rotate", cast.rio.form(overlap="24h", scopes=["tasks:read"])).status_code == 200
    )
    sentences = re.findall(r'<p class="said">.*?</p>', cast.ana.get(AUDIT).text, re.S)
    for words in ("; expires ", "; the old one stops "):
        assert re.search(words + r'<time datetime="[^"]+Z"', "".join(sentences))


def test_of_very_many_people_some_are_offered_and_the_chosen_one_always(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offered(path: str) -> list[str]:
        return re.findall(r'<option value="(mem_\w+)"', cast.ana.get(path).text)

    everybody = offered(AUDIT)
    monkeypatch.setattr(audit_views, "PEOPLE_OFFERED", 2)
    assert offered(AUDIT) == everybody[:2]
    assert "Others: by the link on their page." in cast.ana.get(AUDIT).text
    assert f"{AUDIT}?person={everybody[-1]}" in cast.ana.get(f"/w/acme/api-members/{everybody[-1]}").text
    assert offered(f"{AUDIT}?person={everybody[-1]}") == [everybody[-1], everybody[0]]


@pytest.mark.both
def test_pages_follow_each_other_without_a_gap(cast: Cast, database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(Account).values(page_rows=7))
    first = cast.ana.get(f"{AUDIT}?what=records")
    assert "7 events on this page" in first.text
    pages, page = [events_of(first)], first
    while older := re.search(r'href="([^"]+)"\s+rel="next"', page.text):
        page = cast.ana.get(older[1].replace("&amp;", "&"))
        pages.append(events_of(page))
    everything = [each for found in pages for each in found]
    assert len(everything) == len(set(everything)) > 40
    newer = re.search(r'href="([^"]+)"\s+rel="prev"', page.text)
    assert newer
    assert events_of(cast.ana.get(newer[1].replace("&amp;", "&"))) == pages[-2]


# --- Exports and the check ------------------------------------------------------------------------------------------


@pytest.mark.both
def test_exports_hold_all_events_and_no_cell_is_a_formula(cast: Cast) -> None:
    for name in ("=cmd()", "+1 a", "-1 a", "@sum"):
        cast.rio.generate(name=name)
    lines = [json.loads(line) for line in cast.ana.get("/w/acme/audit.jsonl").text.splitlines()]
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    reply = cast.ana.get("/w/acme/audit.csv")
    table = list(csv.DictReader(io.StringIO(reply.text)))
    assert {row["target"][:2] for row in table if row["action"] == "key_generated"} == {"'=", "'+", "'-", "'@"}
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in table for cell in row.values())
    assert all(datetime.fromisoformat(row["at"]).utcoffset() is not None and row["at"].endswith("Z") for row in table)
    assert "attachment" in reply.headers["Content-Disposition"]
    assert said(cast.ana.get(AUDIT))[0] == "Ana Ruiz exported the audit log as csv"
    narrowed = cast.ana.get("/w/acme/audit.jsonl?what=keys").text.splitlines()
    assert {json.loads(line)["action"] for line in narrowed} == {"key_generated"}
    odd = cast.ana.get("/w/acme/audit.csv?from=yesterday")
    assert odd.status_code == 400
    assert "is not a day" in odd.text


@pytest.mark.both
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", "'yesterday'"),
        ("details", "'[]'"),
        ("details", '\'{"half": "\\ud800"}\''),
        ("details", f"'{'[' * 3_000}{']' * 3_000}'"),
        ("target_name", "CAST(x'ff41' AS TEXT)"),
        ("hash", "'no bytes'"),
    ],
)
def test_a_row_that_cannot_be_read_is_shown_as_such_and_an_export_with_it_says_so(
    column: str, value: str, cast: Cast, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    if not database.is_sqlite:
        column, value = "details", "'[]'"  # of these the only one that PostgreSQL takes
    key = cast.rio.generate(name="Odd")
    with database.transaction() as session:
        odd = session.query(AuditEvent).filter_by(target_id=key.id).one().public_id
        session.connection().exec_driver_sql(f"UPDATE audit_event SET {column} = {value} WHERE public_id = '{odd}'")
    page = cast.ana.get(AUDIT)
    assert "unreadable event: its row holds what nobody wrote there" in said(page)
    assert odd in events_of(page)
    for path in (f"audit/{odd}", f"api/keys/{key.id}/history"):
        shown = cast.ana.get(f"/w/acme/{path}")
        assert (shown.status_code, "nreadable event" in shown.text) == (200, True)
    assert cast.ana.get("/w/acme/audit/verify").status_code == 200
    *lines, last = [json.loads(line) for line in cast.ana.get("/w/acme/audit.jsonl").text.splitlines()]
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["id"] for line in lines if line["action"] == "unreadable_event"] == [odd]
    assert "cannot be read" in last["incomplete"]
    *_, row = csv.reader(io.StringIO(cast.ana.get("/w/acme/audit.csv").text))
    assert row[0].startswith("INCOMPLETE: ") and len(row) == len(oversight.COLUMNS)
    assert "events that cannot be read: 1" in caplog.text


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_export_that_breaks_off_says_so_in_its_last_line_and_in_the_log(
    form: str, cast: Cast, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with database.transaction() as session:
        visitor = Actor(datetime.now(UTC), Means.SESSION, "visitor")
        for _ in range(600):  # more than are read at once
            audit.record(session, visitor, Event.SIGNED_IN, workspace_id=workspaces.get(session, "acme").id)
    reply = cast.ana.browser.get(f"/w/acme/audit.{form}", buffered=False)
    parts = reply.iter_encoded()
    begun = next(parts)
    with database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE audit_event RENAME TO gone")
    last = (begun + b"".join(parts)).decode().splitlines()[-1]
    assert last.startswith({"csv": "INCOMPLETE: This export broke off", "jsonl": '{"incomplete": "This'}[form])
    assert "broke off after number" in caplog.text


def test_an_export_asks_for_the_password_again_but_not_whoever_may_not_export(cast: Cast, database: Database) -> None:
    _ = cast.ana, cast.rio
    with database.transaction() as session:
        session.execute(update(UserSession).values(proved_at=datetime.now(UTC) - accounts.PROOF_LIFE * 2))
    asked = cast.ana.get("/w/acme/audit.csv")
    assert (asked.status_code, asked.location) == (303, "/reauth?next=/w/acme/audit.csv")
    assert cast.rio.get("/w/acme/audit.csv").status_code == 403


@pytest.mark.both
@pytest.mark.parametrize("harm", ["edited", "deleted", "cut off", "put beside"])
def test_a_row_that_was_touched_is_named_by_the_page(cast: Cast, database: Database, harm: str) -> None:
    assert "The log is whole" in cast.ana.get(f"{AUDIT}/verify").text
    with database.transaction() as session:
        rows = session.query(AuditEvent).filter_by(
            chain=session.query(Member).filter_by(name="Ana Ruiz").one().workspace_id
        )
        found = rows.order_by(AuditEvent.seq).all()
        named = found[5]
        if harm == "edited":
            named.address = "203.0.113.99"
        elif harm == "deleted":
            session.delete(found[6])
        elif harm == "put beside":
            values = {column.key: getattr(named, column.key) for column in AuditEvent.__table__.c if column.key != "id"}
            named = AuditEvent(**values | {"public_id": "evt_forged", "seq": -1})
            session.add(named)
        else:
            named = found[-3]
            session.delete(found[-1])
            session.delete(found[-2])
    page = cast.ana.get(f"{AUDIT}/verify").text
    assert "tampered with" in page
    assert named.public_id in page
    assert cast.app.test_cli_runner().invoke(args=["verify-audit", "globex"]).exit_code == 0
    told = cast.app.test_cli_runner().invoke(args=["verify-audit"])
    assert told.exit_code == 1
    assert named.public_id in told.output


# --- Explain --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(cast: Cast, database: Database) -> dict[str, tuple[str, MadeKey]]:
    """A mixed run: one refused request for every reason; its id and its key."""
    found: dict[str, tuple[str, MadeKey]] = {}

    def call(reason: str, key: MadeKey, status: int, method: str = "GET", path: str = "/me", **options: Any) -> None:
        reply = cast.call(method, path, key, **options)
        assert reply.status_code == status, reply.text
        found[reason] = (reply.get_json()["meta"]["requestId"], key)

    def change(key: MadeKey, **values: Any) -> None:
        with database.transaction() as session:
            session.execute(update(ApiKey).where(ApiKey.public_id == key.id).values(values))

    def key(name: str) -> MadeKey:
        return cast.rio.generate(name=name)

    call("missing_scope", key("Scope"), 403, "POST", "/apps/tasks/records", json={"fields": {"title": "x"}})
    for reason, action in (("deactivated", "deactivate"), ("revoked", "delete")):
        stopped = key(reason)
        cast.rio.post(f"keys/{stopped.id}/{action}")
        call(reason, stopped, 401)
    expired = key("Expired")
    change(expired, expires_at=datetime.now(UTC))
    call("expired", expired, 401)
    retired = key("Retired")
    cast.rio.rotate(retired, overlap="0")
    call("retired", retired, 401)
    busy = key("Busy")
    change(busy, rate_per_minute=1)
    cast.call("GET", "/me", busy)
    call("rate_limit_exceeded", busy, 429)
    call("other_workspace", key("Elsewhere"), 401, headers={"Account-Id": "ws_other"})
    tampered = key("Tampered")
    change(tampered, environment="test")
    call("unknown", tampered, 401)
    kept = key("Kept")
    with database.transaction() as session:
        rio = session.query(Member).filter_by(name="Rio Tanaka").one()
        session.execute(update(Member).where(Member.id == rio.id).values(deactivated_at=rio.created_at))
    call("owner_inactive", kept, 401)
    with database.transaction() as session:
        session.execute(update(Member).where(Member.id == rio.id).values(deactivated_at=None))
        session.connection().exec_driver_sql(f"DELETE FROM access WHERE member_id = {int(rio.id)}")
    call("access_withdrawn", kept, 403, "GET", "/apps/tasks/records")
    flush(cast)
    assert set(found) == set(Refusal) - {"missing_key", "malformed_key"}
    return found


def explained(person: Person, asked: str) -> str:
    reply = person.post(EXPLAIN, {"request_id": asked})
    assert reply.status_code == 200
    return reply.text


@pytest.mark.both
def test_each_refused_request_is_explained_with_its_true_reason_and_to_nobody_else(
    cast: Cast, refused: dict[str, tuple[str, MadeKey]]
) -> None:
    for reason, (request_id, key) in refused.items():
        for person in (cast.rio, cast.ana):
            page = explained(person, request_id)
            scope = {"missing_scope": "tasks:write", "access_withdrawn": "tasks:read"}.get(reason, "")
            assert refusals.words_of(reason, scope) in page, reason
            assert key.id in page
            assert "How to fix it" in page
            assert key.text not in page
        for person in (cast.lea, cast.max, cast.zoe):
            where = f"/w/{person.workspace}/explain"
            answer, unknown = (
                re.sub(r'value="[^"]*"|"[\d ]+"|\d\d:\d\d UTC', "", person.post(where, {"request_id": each}).text)
                for each in (request_id, "req_" + "0" * 24)
            )
            assert "We cannot explain this" in answer
            assert answer == unknown  # not visible and unknown look alike


@pytest.mark.both
def test_what_the_key_could_do_is_told_as_of_then(cast: Cast, refused: dict[str, tuple[str, MadeKey]]) -> None:
    page = explained(cast.rio, refused["missing_scope"][0])
    held = page[page.index("What the key could do at that moment") : page.index("How to fix it")]
    assert "tasks:read" in held  # rio has lost the access since
    assert "No scope worked" not in held
    page = explained(cast.rio, refused["access_withdrawn"][0])
    held = page[page.index("What the key could do at that moment") : page.index("How to fix it")]
    assert "No scope worked" in held


def test_a_request_that_was_refused_just_now_is_explained_at_once(cast: Cast) -> None:
    refused = cast.call("POST", "/apps/tasks/records", cast.rio.generate(), json={"fields": {}})
    assert refused.status_code == 403
    assert refusals.words_of("missing_scope", "tasks:write") in explained(cast.rio, refused.headers["X-Request-Id"])


def test_an_app_out_of_reach_is_explained_as_one_that_there_is_not_and_nothing_after_30_days(
    cast: Cast, database: Database
) -> None:
    key = cast.rio.generate()
    for app in ("leads", "nothing"):
        refused = cast.call("GET", f"/apps/{app}/records", key).headers["X-Request-Id"]
        assert "no app of that name is in your" in explained(cast.rio, refused), app
    with database.transaction() as session:
        session.execute(update(RefusedRequest).values(at=datetime.now(UTC) - KEEP_REFUSALS))
    assert "We cannot explain this" in explained(cast.rio, refused)


def mend(page: str) -> str:
    return page[page.index("How to fix it") : page.index("<footer")]


def test_what_would_mend_it_is_a_link_where_one_can_do_it(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read"], name="Mendable")
    lacking = cast.call("POST", "/apps/tasks/records", key, json={"fields": {"title": "x"}}).get_json()
    cast.lea.post(f"keys/{key.id}/deactivate")
    stopped = cast.call("GET", "/me", key).get_json()
    flush(cast)
    lacking, stopped = (each["meta"]["requestId"] for each in (lacking, stopped))
    assert f"new?add=tasks:write&amp;from={key.id}" in mend(explained(cast.lea, lacking)).replace("%3A", ":")
    assert "Lea Okoro can generate a key with tasks:write" in mend(explained(cast.ana, lacking))
    assert f"{key.id}/reactivate" in mend(explained(cast.lea, stopped))
    assert "Lea Okoro can reactivate it" in mend(explained(cast.ana, stopped))
    cast.lea.post(f"keys/{key.id}/reactivate")
    assert "mended since" in mend(explained(cast.lea, stopped))


def test_who_lacks_the_access_is_given_it_before_they_can_generate(cast: Cast) -> None:
    refused = cast.call("POST", "/apps/tasks/records", cast.rio.generate(), json={"fields": {}})
    told = mend(explained(cast.ana, refused.headers["X-Request-Id"]))
    assert re.search(r'/mem_\w+/access"><bdi hx-ignore>Give Rio \w+ the access that tasks:write needs', told)
    assert re.search(r"Then Rio \w+ can generate a key with tasks:write\.", told)
    cast.ana.post(re.findall(r"/w/acme/members/mem_\w+", told)[0] + "/leave", {"then": "deactivate"})
    told = mend(explained(cast.ana, refused.headers["X-Request-Id"]))
    assert "can generate a key" not in told
    assert re.search(r'/reactivate"><bdi hx-ignore>Reactivate Rio', told)


def test_what_stops_the_key_now_is_to_be_mended_not_what_stopped_it_then(cast: Cast) -> None:
    address = cast.lea.post("/w/acme/api-members/new", {"name": "Night bot", "access-operations": "read"}).location
    key = cast.lea.generate(["tasks:read"], owner=address.rpartition("/")[2])
    cast.lea.post(f"{address}/deactivate")
    refused = cast.call("GET", "/me", key).get_json()["meta"]["requestId"]
    flush(cast)
    cast.lea.post(f"keys/{key.id}/deactivate")
    assert f'href="{address}/reactivate"' in mend(explained(cast.lea, refused))
    cast.lea.post(f"{address}/reactivate")
    assert f"{key.id}/reactivate" in mend(explained(cast.lea, refused))
    assert f'href="{address}/reactivate"' not in mend(explained(cast.lea, refused))
    cast.lea.post(f"keys/{key.id}/delete")
    assert "Generate a similar key" in mend(explained(cast.lea, refused))


def test_whoever_can_give_the_access_back_gets_a_link_and_is_not_told_to_ask_themselves(cast: Cast) -> None:
    made = cast.lea.post("/w/acme/api-members/new", {"name": "Night bot", "access-operations": "read"})
    address = made.headers["Location"]
    key = cast.lea.generate(["tasks:read"], owner=address.rpartition("/")[2])
    cast.lea.post(f"{address}/access", {"access-operations": "none"})
    refused = cast.call("GET", "/apps/tasks/records", key).get_json()["meta"]["requestId"]
    cast.lea.post(f"{address}/deactivate")
    stopped = cast.call("GET", "/apps/tasks/records", key).get_json()["meta"]["requestId"]
    flush(cast)
    for person in (cast.lea, cast.ana):
        assert f'href="{address}/access"' in mend(explained(person, refused))
        assert f'href="{address}/reactivate"' in mend(explained(person, stopped))
        assert "Ask " not in mend(explained(person, refused)) + mend(explained(person, stopped))


@pytest.mark.both
def test_a_hint_lists_the_refusals_of_its_key_and_a_whole_key_is_not_shown_again(cast: Cast) -> None:
    key = cast.rio.generate(name="Lister")
    request_id = cast.call("POST", "/apps/tasks/records", key, json={"fields": {}}).get_json()["meta"]["requestId"]
    flush(cast)
    last_four, uncut = key.text[-11:-7], key.text[:-7]
    for asked in (last_four, f"sk_live_…{last_four}", key.id, key.text, f"Bearer {key.text}", uncut):
        page = explained(cast.rio, asked)
        assert request_id in page, asked
        assert key.text not in page
        assert "We cannot explain this" in explained(cast.lea, asked)
    assert request_id in cast.rio.get(f"keys/{key.id}/requests").text  # and the key's own page leads here


@pytest.mark.both
def test_a_hint_lists_like_refusals_as_one_with_the_id_of_the_latest(cast: Cast) -> None:
    key = cast.rio.generate()
    replies = [cast.call("POST", "/apps/tasks/records", key, json={"fields": {}}) for _ in range(3)]
    cast.call("GET", "/apps/leads/records", key)
    flush(cast)
    page = explained(cast.rio, key.id)
    assert page.count("403: lacks tasks:write") == page.count("403: lacks leads:read") == 1
    assert page.count("× 3, latest") == page.count("× ") == 1
    assert f'<code translate="no">{replies[-1].headers["X-Request-Id"]}</code>' in page


def test_an_explanation_of_nothing_is_an_error_in_title_and_field(cast: Cast) -> None:
    assert "<title>Explain" in cast.rio.get(EXPLAIN).text
    page = cast.rio.post(EXPLAIN, {"request_id": ""}).text
    assert "<title>Error: Explain" in page
    assert '<span class="vh">Error: </span>Paste a request id' in page


@pytest.mark.parametrize("prefix", ["acme", "key"])
def test_a_hint_is_known_by_whatever_prefix_the_instance_has(
    cast: Cast, launch: Callable[..., Flask], prefix: str
) -> None:
    hint = f"{prefix}_live_…{cast.rio.generate(name='Lister').text[-11:-7]}"
    instance = Cast(launch(PORTAL_KEY_PREFIX=prefix))
    assert f"{prefix}_test_</code> works on sandbox data" in instance.rio.get("keys/new").text
    assert "No request with this key was refused" in explained(instance.rio, hint)
    assert len(said(instance.ana.get(AUDIT, query_string={"key": hint}))) == 1


def test_an_error_that_refused_no_key_is_not_blamed_on_the_header(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:write"], name="Wrong body")
    reply = cast.call("POST", "/apps/tasks/records", key, json={"fields": {}})
    assert reply.status_code == 422
    flush(cast)
    page = explained(cast.lea, reply.get_json()["meta"]["requestId"])
    assert "Only requests whose key was refused are explained here: 401, 403 and 429." in page
    assert "says in its own body what is wrong" in page
    assert 'href="/docs/api#errors"' in page


def test_what_a_proxy_or_a_product_asked_is_said_to_be_theirs(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read"], name="Behind a proxy")
    browser = cast.app.test_client(use_cookies=False)
    by_proxy = browser.get("/verify?scope=tasks:write", headers=key.bearer)
    by_program = cast.call("POST", "/apps/tasks/records", key, json={"fields": {}})
    made = cast.ana.post("/w/acme/workspace/verifiers/new", {"name": "Gateway"}).text
    verifier = re.search(r"vf_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", made)
    assert verifier
    cast.lea.post(f"keys/{key.id}/deactivate")
    headers = {"Authorization": f"Bearer {verifier[0]}"}
    by_product = browser.post("/oauth/introspect", data={"token": key.text}, headers=headers)
    assert by_product.get_json() == {"active": False}
    flush(cast)
    proxy, product = "A reverse proxy asked about the key at /verify", "A product of yours asked about the key"
    for reply, expected in ((by_proxy, proxy), (by_product, product), (by_program, "")):
        page = explained(cast.lea, reply.headers["X-Request-Id"])
        assert [words for words in (proxy, product) if words in page] == ([expected] if expected else [])


def test_a_key_that_another_companys_product_was_sent_is_said_to_be_out(cast: Cast) -> None:
    key = cast.lea.generate(["tasks:read"], name="Sent astray")
    made = cast.zoe.post("/w/globex/workspace/verifiers/new", {"name": "Gateway"}).text
    verifier = re.search(r"vf_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", made)
    assert verifier
    asked = cast.app.test_client(use_cookies=False).post(
        "/oauth/introspect", data={"token": key.text}, headers={"Authorization": f"Bearer {verifier[0]}"}
    )
    flush(cast)
    page = explained(cast.lea, asked.headers["X-Request-Id"])
    assert "A product of another workspace asked about the key" in page
    assert f"{key.id}/rotate?leaked=1" in mend(page)
    assert "Account-Id" not in page
    assert "product of yours" not in page


@pytest.mark.both
def test_what_was_refused_in_the_portal_is_explained_by_its_request_id(cast: Cast) -> None:
    foreign = cast.max.generate(["leads:read"], name="Of max")
    request_id = cast.rio.post(f"keys/{foreign.id}/deactivate").headers["X-Request-Id"]
    assert "tried to deactivate" in explained(cast.rio, request_id)
    assert "We cannot explain this" in explained(cast.lea, request_id)


@pytest.mark.parametrize("odd", ["", " ", "x", "req_", "req_'; --", "\u202e", "…" * 200, "key_1", "=1+1"])
def test_odd_questions_have_an_answer(shared_cast: Cast, odd: str) -> None:
    assert shared_cast.rio.post(EXPLAIN, {"request_id": odd}).status_code in (200, 422)


@pytest.mark.both
def test_a_page_of_the_log_takes_few_statements(cast: Cast, database: Database) -> None:
    statements: list[str] = []
    engine = cast.app.extensions["portal"].database.engine
    _ = cast.rio, cast.lea, cast.ana

    def count(*given: Any) -> None:
        statements.append(given[2])

    for person in (cast.rio, cast.lea, cast.ana):
        person.get(AUDIT)
        event.listen(engine, "before_cursor_execute", count)
        person.get(AUDIT)
        event.remove(engine, "before_cursor_execute", count)
        assert len(statements) < 20, "\n".join(statements)
        statements.clear()
