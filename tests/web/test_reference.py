"""The reference of the API: for everybody, and for whoever is signed in about their own keys; its samples work."""

import html
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from sqlalchemy import event, select, update

from portal.rules.access import Environment
from portal.rules.credentials import KeyFormat
from portal.rules.errors import Refusal
from portal.services import audit, verifiers
from portal.settings import Settings
from portal.store.database import Database
from portal.store.models import Access, Account, ApiKey, App, Member, Solution, UserSession, Workspace
from portal.web.declared import declared_calls
from portal.web.fields import fields_of
from portal.web.openapi import CODES
from portal.web.samples import example_fields
from tests.cast import Cast, MadeKey, Person
from tests.conftest import lacking
from tests.servers import Server
from tests.services.office import Office
from tests.web.looking import error

DOCS = "/docs/api"
LANGUAGES = ("curl", "python", "js")


def words_of(page: str) -> str:
    """Give the text of a page, its spaces made one."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


def block(page: str, block_id: str) -> str:
    """Give the text of a code block."""
    found = re.search(rf'<pre[^>]*\bid="{block_id}"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert found, block_id
    return html.unescape(found[1])


def part(page: str, call: str) -> str:
    """Give what the page says of one call, as text."""
    found = re.search(rf'<article[^>]*aria-labelledby="{call}">(.*?)</article>', page, re.DOTALL)
    assert found, call
    return words_of(found[1])


@pytest.fixture
def key(cast: Cast) -> MadeKey:
    return cast.lea.generate(["tasks:read"], name="Drop-off")


# --- For everybody --------------------------------------------------------------------------------------------------


def test_everybody_reads_it_and_finds_every_call_with_its_scope(cast: Cast) -> None:
    page = cast.stranger().get(DOCS)
    assert page.status_code == 200
    calls = declared_calls(cast.app)
    assert len(calls) > 8
    for each in calls:
        if each.endpoint.endswith("_by_post"):
            continue
        said = part(page.text, each.endpoint.replace("_", "-"))
        assert each.path in said
        assert (f"Needs the scope {each.scope}" if each.scope else "key") in said
    assert "Your keys" not in words_of(page.text)
    assert "None of your keys" not in words_of(page.text)


def test_short_addresses_lead_to_where_their_thing_stands(shared_cast: Cast) -> None:
    for path, to in (
        (f"{DOCS}/scopes", f"{DOCS}#scopes"),
        (f"{DOCS}/tasks", f"{DOCS}?app=tasks"),
        ("/w/acme/verifiers", "/w/acme/workspace/verifiers"),
    ):
        reply = shared_cast.ana.get(path)
        assert (reply.status_code, reply.location) == (302, to)
        assert shared_cast.ana.get(to).status_code == 200


def test_the_samples_language_is_chosen_by_a_link_and_kept_in_a_cookie(cast: Cast) -> None:
    visitor = cast.stranger()
    assert block(visitor.get(DOCS).text, "list-records-sample").startswith("curl ")
    chosen = visitor.get(f"{DOCS}?lang=python")
    assert "import requests" in block(chosen.text, "list-records-sample")
    assert "reply.text" in block(chosen.text, "list-records-sample")  # a refusal says what to do: it must be seen
    assert "SameSite=Lax" in chosen.headers["Set-Cookie"]
    assert "HttpOnly" in chosen.headers["Set-Cookie"]
    assert "import requests" in block(visitor.get(DOCS).text, "list-records-sample")
    unknown = visitor.get(f"{DOCS}?lang=cobol")
    assert "import requests" in block(unknown.text, "list-records-sample")
    assert "cobol" not in str(unknown.headers)
    assert "await fetch" in block(visitor.get(f"{DOCS}?lang=js").text, "list-records-sample")


def test_no_example_begins_otherwise_than_the_keys_of_the_instance(launch: Callable[..., Flask]) -> None:
    page = Cast(launch(PORTAL_KEY_PREFIX="acme")).stranger().get(DOCS).text
    assert "acme_live_EXAMPLE" in page
    assert not re.search(r"\bsk_", page)


def test_the_published_check_tells_real_keys_from_look_alikes(cast: Cast) -> None:
    page = cast.stranger().get(DOCS).text
    published: dict[str, Any] = {}
    exec(block(page, "scanner"), published)
    minted = [KeyFormat().mint(each).reveal() for each in Environment]
    assert all(published["is_key"](text) and re.fullmatch(block(page, "pattern"), text) for text in minted)
    for wrong in (minted[0][:-1], minted[0] + "x", minted[0].swapcase(), "sk_live_EXAMPLE", ""):
        assert not published["is_key"](wrong)
    shown = re.findall(r"sk_(?:live|test)_\w+", page)
    assert shown and not any(published["is_key"](text) for text in shown)


# --- For whoever is signed in ---------------------------------------------------------------------------------------


def test_it_names_ones_keys_that_can_make_a_call_and_offers_one_where_none_can(cast: Cast, key: MadeKey) -> None:
    stopped = cast.lea.generate(["tasks:read"], name="Stopped")
    cast.lea.post(f"keys/{stopped.id}/deactivate")
    page = cast.lea.get(f"{DOCS}?app=tasks").text
    said = part(page, "list-records")
    assert "Needs the scope tasks:read" in said
    assert f"Your keys that can call this: Drop-off …{key.text[47:51]}" in said
    assert "Stopped" not in said
    assert "None of your keys can. Generate one with tasks:write" in part(page, "create-record")
    offered = re.search(r'href="(/w/acme/api/keys/new\?add=tasks[^"]*)"', page)
    assert offered
    form = cast.lea.get(html.unescape(offered[1])).text
    assert re.search(r'value="tasks:write"[^>]*\bchecked', form)


def test_only_keys_that_may_rotate_themselves_are_named_for_that(cast: Cast, key: MadeKey) -> None:
    assert "None of your keys can. Generate one that may rotate itself" in part(cast.lea.get(DOCS).text, "rotate-me")
    able = cast.lea.generate(["tasks:read"], name="By itself", self_rotate="yes")
    said = part(cast.lea.get(DOCS).text, "rotate-me")
    assert f"Your keys that can call this: By itself …{able.text[47:51]}" in said
    assert "Drop-off" not in said
    assert "Any key can call this" not in said
    assert "Only for keys that may rotate themselves" in said
    cast.lea.rotate(able)
    assert "None of your keys can." in part(cast.lea.get(DOCS).text, "rotate-me")  # the old one still works


def test_a_rotation_is_not_offered_as_one_to_be_sent_again(cast: Cast) -> None:
    said = part(cast.stranger().get(DOCS).text, "rotate-me")
    assert "Idempotency-Key header" not in said  # as a parameter
    assert "a repeat is 409" in said
    assert "Replace it" in said
    assert "0 to 604,800, 86,400 when left out" in said
    document = cast.call("GET", "/openapi.json").get_json()["paths"]
    told = document["/api/v1/me/rotate"]["post"]
    assert "Idempotency-Key" not in {each["name"] for each in told["parameters"]}
    assert "a repeat is 409" in told["description"]
    assert "may rotate themselves" in told["description"]
    assert "Idempotency-Key" in {each["name"] for each in document["/api/v1/apps/{app}/records"]["post"]["parameters"]}


def test_it_says_that_introspection_is_a_use_and_not_against_the_limits(cast: Cast) -> None:
    assert "counts as a use of the key, on its pages too, but not against its rate limits" in part(
        cast.stranger().get(DOCS).text, "introspect"
    )


def test_it_says_where_ones_own_access_ends(cast: Cast, key: MadeKey) -> None:
    page = cast.lea.get(f"{DOCS}?app=leads").text
    assert "None of your keys can. You have read-only access in Sales." in part(page, "create-record")
    assert "Generate one with leads:read" in part(page, "get-record")
    assert "leads:write Add, change and delete Leads (Sales) Beyond your access" in words_of(page)


def rows(page: str) -> list[str]:
    """Give the rows of the table of fields, as text."""
    table = re.search(r'<table[^>]*aria-labelledby="create-record-fields".*?</table>', page, re.DOTALL)
    assert table
    return [words_of(row) for row in re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)][1:]


def test_whoever_is_signed_in_sees_the_fields_of_an_app(cast: Cast, database: Database) -> None:
    assert "create-record-fields" not in cast.stranger().get(DOCS).text
    page = cast.rio.get(f"{DOCS}?app=tasks").text
    assert rows(page) == [
        "title string Yes 1 to 120 characters",
        "assignee string No 1 to 60 characters",
        "priority integer No 0 to 5",
        'status string No "open", "doing", "done"',
    ]
    assert "No other fields." in part(page, "create-record")
    with database.transaction() as session:
        app = session.scalars(select(App).where(App.slug == "tasks")).one()
        app.schema = {
            "type": "object",
            "required": ["lines", "unnamed"],
            "$defs": {"line": {"type": "object", "properties": {"sum": {"type": "number", "exclusiveMinimum": 0}}}},
            "properties": {
                "lines": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/line"}},
                "state": {"type": ["string", "null"], "pattern": "^<b>$", "description": "Where it is."},
                "who": {"oneOf": [{"type": "string"}]},
            },
        }
    page = cast.rio.get(f"{DOCS}?app=tasks").text
    assert rows(page) == [
        "lines array Yes at least 1 item",
        "lines[].sum number No more than 0",
        "unnamed any Yes Any",
        "state string or null No pattern ^<b>$ Where it is.",
        "who any No Any and more rules, which a 422 names",
    ]
    assert "Other fields are taken too." in part(page, "create-record")


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a": {"properties": {f"f{n}": {"$ref": "#/$defs/a"} for n in range(50)}}}, "$ref": "#/$defs/a"},
        {"properties": {f"f{n}": {"$ref": "#"} for n in range(500)}},
        {"properties": {"a": {"$ref": "#/properties/a"}, "b": {"$ref": "#/$defs/none/x"}}},
        {"properties": {"a": {"properties": {"a": {"$ref": "#/properties/a"}}, "enum": ["x" * 10**6] * 1000}}},
        {"properties": [], "required": "a"},
        {"properties": {"a": True, "b": {"enum": 1, "minimum": "x", "type": 7, "items": [1], "description": {}}}},
        True,
    ],
)
def test_a_hard_schema_makes_no_long_table(schema: Any) -> None:
    found = fields_of(schema)
    assert len(found) <= 100
    assert len(str(found)) < 50_000


@pytest.mark.both
def test_it_speaks_of_an_app_that_ones_keys_reach_or_could(cast: Cast, database: Database) -> None:
    def chosen() -> str:
        found = re.search(r"Scopes, fields and samples below speak of (\w+)", words_of(cast.lea.get(DOCS).text))
        assert found
        return found[1]

    first = chosen()
    assert first != "Leads"  # lea may only read there
    cast.lea.generate(["leads:read"], name="Reader")
    assert chosen() == "Leads"
    cast.lea.generate(["tasks:write"], name="Writer")
    assert chosen() == "Tasks"
    with database.transaction() as session:
        session.execute(update(Solution).where(Solution.slug == "operations").values(is_external=True))
    assert chosen() == "Leads"  # of the others there are no records here
    page = words_of(cast.lea.get(f"{DOCS}?app=tasks").text)
    assert "Its records are kept by another product" in page


def test_of_a_solution_without_an_app_it_says_nothing(cast: Cast, database: Database) -> None:
    cast.ana.post("/w/acme/solutions/new", {"name": "People", "slug": "people"})
    with database.transaction() as session:  # all that rio may see
        rio = select(Member.id).where(Member.name == "Rio Tanaka").scalar_subquery()
        people = select(Solution.id).where(Solution.slug == "people").scalar_subquery()
        session.execute(update(Access).where(Access.member_id == rio).values(solution_id=people))
    page = cast.rio.get(DOCS)
    assert page.status_code == 200
    assert "samples below speak of" not in words_of(page.text)


def test_nobody_elses_keys_apps_or_workspace_are_on_it(cast: Cast, key: MadeKey) -> None:
    for person in (cast.rio, cast.zoe):
        assert "Drop-off" not in person.get(DOCS).text
    assert "(Sales)" not in words_of(cast.rio.get(f"{DOCS}?app=leads").text)  # rio has no access there
    assert "tickets" not in cast.ana.get(f"{DOCS}?app=tickets").text
    assert "tickets:read" in cast.zoe.get(DOCS).text


@pytest.mark.both
def test_of_several_workspaces_it_speaks_of_the_last_one(cast: Cast, database: Database) -> None:
    with database.transaction() as session:
        ana = session.scalars(select(Account).where(Account.email == "ana@acme.test")).one()
        globex = session.scalars(select(Workspace).where(Workspace.slug == "globex")).one()
        session.add(
            Member(
                public_id="mem_anaatglobex",
                workspace_id=globex.id,
                account_id=ana.id,
                name="Ana Ruiz",
                role="admin",
                created_at=datetime.now(UTC),
            )
        )
    assert cast.ana.get(DOCS).status_code == 200  # before any was chosen
    assert "tickets:read" not in cast.ana.get(DOCS).text
    cast.ana.get("/w/globex")
    assert "tickets:read" in cast.ana.get(DOCS).text
    cast.ana.get("/w/acme")
    with database.transaction() as session:  # it is noted at most once a minute
        acme = session.scalars(select(Workspace).where(Workspace.slug == "acme")).one()
        session.query(UserSession).filter_by(account_id=ana.id).update({"workspace_id": acme.id})
    assert "tickets:read" not in cast.ana.get(DOCS).text
    assert "leads:read" in cast.ana.get(DOCS).text


@pytest.mark.both
def test_it_takes_few_statements_however_many_keys_there_are(cast: Cast, database: Database) -> None:
    def statements() -> int:
        counted: list[str] = []
        engine = cast.app.extensions["portal"].database.engine

        def count(*given: Any) -> None:
            counted.append(given[2])

        event.listen(engine, "before_cursor_execute", count)
        assert cast.lea.get(DOCS).status_code == 200
        event.remove(engine, "before_cursor_execute", count)
        return len(counted)

    cast.lea.generate(["tasks:read"], name="First")
    few = statements()
    for n in range(4):
        cast.lea.generate(["tasks:read", "leads:read"], name=f"Further {n}")
    assert statements() == few < 20


def test_every_page_leads_there(cast: Cast) -> None:
    for page in (cast.rio.get("/w/acme/api/keys"), cast.stranger().get("/login")):
        assert f'href="{DOCS}"' in page.text


def test_every_code_stands_under_its_status_with_what_to_do(cast: Cast) -> None:
    page = cast.stranger().get(DOCS).text
    assert {each.status for each in Refusal} | {500, 503} <= set(CODES)
    for status, codes in CODES.items():
        told = re.search(rf'<div id="error-{status}">(.*?)</div>', page, re.DOTALL)
        assert told
        for code, fix in codes.items():
            assert f"{code}: {fix.replace('`', '')}" in words_of(told[1])
    assert "`" not in words_of(re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL))


def test_the_samples_of_a_call_that_can_be_repeated_send_an_idempotency_key(cast: Cast) -> None:
    for language, made in (("curl", "$(openssl rand -hex 16)"), ("python", "uuid.uuid4()"), ("js", "randomUUID()")):
        page = cast.stranger().get(f"{DOCS}?lang={language}").text
        assert made in block(page, "create-record-sample")
        for other in ("rotate-me", "change-record", "introspect"):
            assert "Idempotency-Key" not in block(page, f"{other}-sample")


# --- Causes ---------------------------------------------------------------------------------------------------------


def test_every_cause_of_a_401_and_a_403_has_an_entry_with_the_answer_that_it_gets(cast: Cast, key: MadeKey) -> None:
    page = cast.stranger().get(f"{DOCS}/errors").text
    for refusal in Refusal:
        if refusal.status in (401, 403):
            assert "What to do:" in part(page, str(refusal).replace("_", "-"))
    dead = cast.lea.generate(["tasks:read"], name="Dead")
    cast.lea.post(f"keys/{dead.id}/delete")
    real = {
        "missing-key": error(cast.call("GET", "/me"), 401),
        "malformed-key": error(cast.call("GET", "/me", headers={"Authorization": "Bearer x"}), 401),
        "revoked": error(cast.call("GET", "/me", dead), 401),
        "missing-scope": error(cast.call("POST", "/apps/tasks/records", key, json={"fields": {}}), 403),
        "rotation-not-allowed": error(cast.call("POST", "/me/rotate", key), 403),
    }
    for cause, answered in real.items():
        told = re.search(rf'aria-labelledby="{cause}">.*?<pre[^>]*>(.*?)</pre>', page, re.DOTALL)
        assert told
        sample = html.unescape(told[1])
        shown = json.loads(sample[sample.index("{") :])["error"]
        assert set(shown) == set(answered)
        same = ("type", "code", "message", "requiredScope")
        assert {name: shown.get(name) for name in same} == {name: answered.get(name) for name in same}
        assert "WWW-Authenticate: Bearer" in sample


# --- Samples --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(live_server: Server) -> Iterator[Callable[[], dict[str, str]]]:
    """Makes what a sample takes from its environment, each for one sample: some end their key."""
    settings = Settings.from_environ({"PORTAL_DATABASE_URL": live_server.database_url}, Path(live_server.instance))
    database = Database(live_server.database_url)
    office = Office(database, settings.keyring)
    made: list[str] = []
    ana = office.actor("ana", datetime.now(UTC))
    with audit.transaction(database, ana) as session:
        verifier_id, verifier = verifiers.create(session, ana, settings.keyring, "Samples", "")

    def make() -> dict[str, str]:
        at, name = datetime.now(UTC), f"Sample {len(made)}"
        view, plain = office.generate("lea", at=at, name=name, scopes=["tasks:read", "tasks:write"])
        office.set_key(view.id, self_rotate=True)
        made.append(view.id)
        return {"API_KEY": plain.reveal(), "VERIFIER_SECRET": verifier.reveal()}

    yield make
    for row in database_keys(database):
        office.set_key(row, revoked_at=datetime.now(UTC))
    with audit.transaction(database, ana) as session:
        verifiers.revoke(session, ana, verifier_id)
    office.close()
    database.close()


def database_keys(database: Database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(ApiKey.public_id)))


def run_sample(language: str, text: str, environ: dict[str, str]) -> str:
    """Run a sample as its reader would; give what it printed."""
    command = {
        "curl": ["sh", "-c", text],
        "python": [sys.executable, "-c", text],
        "js": ["node", "--input-type=module", "-e", text],
    }[language]
    finished = subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_sample_does_what_it_says(language: str, live_server: Server, fresh: Callable[[], dict[str, str]]) -> None:
    program = {"curl": "curl", "js": "node"}.get(language)
    if program and not shutil.which(program):
        lacking(f"{program} is not installed")
    with urllib.request.urlopen(f"{live_server.url}{DOCS}?lang={language}", timeout=10) as answer:
        page = answer.read().decode()
    samples = re.findall(r'<pre[^>]*\bid="([\w-]+)-sample"', page)
    assert len(samples) >= 8
    for name in samples:
        environ = fresh()
        if "RECORD_ID" in block(page, f"{name}-sample"):
            environ["RECORD_ID"] = made_record(live_server, environ["API_KEY"])
        printed = run_sample(language, block(page, f"{name}-sample"), environ)
        if language == "curl":
            assert (
                '"data"' in printed
                or '"active":true' in printed
                or '"openapi"' in printed
                or re.match(r"HTTP/1.1 20[04] ", printed)
            ), printed
        else:
            assert re.search(r"\bdata\b|openapi|\bactive\b|^20[04]$", printed, re.MULTILINE), printed


def test_the_program_that_rotates_its_key_stores_one_that_works(
    live_server: Server, fresh: Callable[[], dict[str, str]], tmp_path: Path
) -> None:
    with urllib.request.urlopen(f"{live_server.url}{DOCS}", timeout=10) as answer:
        program = block(answer.read().decode(), "rotation-program")
    store, old = tmp_path / "api-key.txt", fresh()["API_KEY"]
    store.write_text(f"{old}\n")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=30, check=True)
    new = store.read_text()
    assert (new[:8], len(new), new == old, stat.S_IMODE(store.stat().st_mode)) == ("sk_live_", 58, False, 0o600)
    made_record(live_server, new)


def made_record(server: Server, key: str) -> str:
    asked = urllib.request.Request(
        f"{server.url}/api/v1/apps/tasks/records",
        json.dumps({"fields": {"title": "A task"}}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        made: str = json.load(answer)["data"]["id"]
    return made


def test_the_fields_of_samples_fit_the_schemas_of_apps(database: Database) -> None:
    with database.reading() as session:
        schemas = [app.schema for app in session.scalars(select(App))]
    assert len(schemas) == 5
    for schema in schemas:
        Draft202012Validator(schema).validate(example_fields(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "required": ["a", "b"]},
        {"type": "object", "properties": {"a": {"type": "string", "minLength": 10**9}}},
        {"type": "object", "properties": {"a": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}, "b": True}},
        {"type": "object", "properties": {"a": {"type": ["null", "string"]}, "b": {"type": "number", "minimum": 2.5}}},
    ],
)
def test_a_hard_schema_makes_no_long_sample(schema: dict[str, Any]) -> None:
    assert len(json.dumps(example_fields(schema))) < 1000


def test_what_an_admin_writes_into_a_schema_is_text_in_samples(cast: Cast, database: Database) -> None:
    nasty = "</pre><script>'\"; $(id) `id` ${x}\n"
    with database.transaction() as session:
        app = session.scalars(select(App).where(App.slug == "tasks")).one()
        app.schema = {"type": "object", "properties": {nasty: {"const": nasty}}}
    for language in LANGUAGES:
        page = cast.lea.get(f"{DOCS}?app=tasks&lang={language}")
        assert "<script>'" not in page.text
        shown = block(page.text, "create-record-sample")
        if language == "python":
            compile(shown, "sample", "exec")
        if language == "curl":
            sent = shown.partition("-d ")[2]
            printed = subprocess.run(["sh", "-c", f"printf %s {sent}"], capture_output=True, text=True, check=True)
            assert json.loads(printed.stdout) == {"fields": {nasty: nasty}}


def test_the_cookie_is_secure_where_the_portal_is(launch: Callable[..., Flask]) -> None:
    secrets = {"PORTAL_SECRET_KEY": token_hex(32), "PORTAL_KEY_PEPPERS": f"a:{token_hex(32)}"}
    app = launch(PORTAL_BASE_URL="https://keys.example.org", **secrets)
    reply = Person(app, "nobody").browser.get(f"{DOCS}?lang=js", base_url="https://keys.example.org")
    assert reply.status_code == 200
    assert "Secure" in reply.headers["Set-Cookie"]
