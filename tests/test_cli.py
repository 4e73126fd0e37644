"""The `flask` commands, as an operator types them; what they do is looked at through HTTP."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import make_url, select, update

from app import create_app
from portal import cli, demo
from portal.store.database import Database
from portal.store.key_log import log_of
from portal.store.migrate import check
from portal.store.models import ApiKey, AuditEvent, Member, Workspace
from tests.cast import Cast, MadeKey
from tests.servers import ROOT, STOP_SECONDS, Server, free_port, serving

SCHEMA = {"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]}


def run(app: Flask, *arguments: str) -> str:
    """Type a command that succeeds; give what it prints."""
    result = app.test_cli_runner().invoke(args=list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def refused(app: Flask, *arguments: str) -> str:
    """Type a command that must fail with a line that says why, and not with a traceback."""
    result: Result = app.test_cli_runner().invoke(args=list(arguments))
    assert result.exit_code not in (0, None)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.output.startswith(("Error: ", "Usage: "))
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def blank_app(blank_url: str, tmp_path: Path) -> Iterator[Flask]:
    """A portal whose database has no table yet."""
    app = create_app({"PORTAL_DATABASE_URL": blank_url, "PORTAL_INSTANCE": str(tmp_path), "PORT": str(free_port())})
    yield app
    app.extensions["portal"].close()


@pytest.fixture
def schema_file(tmp_path: Path) -> Path:
    path = tmp_path / "stock.json"
    path.write_text(json.dumps(SCHEMA))
    return path


# --- A database -----------------------------------------------------------------------------------------------------


def test_migrate_makes_the_tables_and_may_be_run_again(blank_app: Flask, blank_url: str) -> None:
    for _ in range(2):
        assert run(blank_app, "migrate") == "The database is up to date.\n"
    check(blank_url)


def test_seed_demo_fills_a_migrated_database_once(blank_app: Flask) -> None:
    run(blank_app, "migrate")
    run(blank_app, "seed-demo")
    assert Cast(blank_app).ana.get("/w/acme").status_code == 200
    assert "has a workspace or accounts already" in refused(blank_app, "seed-demo")


def test_no_demo_comes_beside_a_workspace_whose_administrator_is_yet_to_join(blank_app: Flask) -> None:
    run(blank_app, "migrate")
    run(blank_app, "create-workspace", "initech", "Initech", "--admin", "ida@initech.test")
    assert "has a workspace or accounts already" in refused(blank_app, "seed-demo")
    with blank_app.extensions["portal"].database.reading() as session:
        assert not demo.is_empty(session)


def test_there_is_no_demo_in_production(blank_url: str, tmp_path: Path) -> None:
    with portal_at("127.0.0.1", blank_url, tmp_path, PRODUCTION) as app:
        run(app, "migrate")
        assert "password that everybody knows" in refused(app, "seed-demo")
        with app.extensions["portal"].database.reading() as session:
            assert demo.is_empty(session)


def test_seed_demo_refuses_a_database_in_which_somebody_is(app: Flask, database: Database) -> None:
    def content() -> list[Any]:
        with database.reading() as session:
            return [*session.scalars(select(Workspace.slug)), *session.scalars(select(AuditEvent.id))]

    before = content()
    refused(app, "seed-demo")
    assert content() == before


@pytest.mark.parametrize(
    "command", [["list-keys", "acme"], ["revoke-key", "key_1"], ["create-workspace", "a1", "A", "--admin", "a@b.test"]]
)
def test_a_command_before_the_first_migration_says_so(blank_app: Flask, command: list[str]) -> None:
    assert refused(blank_app, *command).endswith(" has no tables yet. Run: .venv/bin/flask migrate\n")  # to be pasted


def test_code_that_is_older_than_the_database_says_so(blank_app: Flask) -> None:
    run(blank_app, "migrate")
    with blank_app.extensions["portal"].database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'feedbeef0000'")
    for command in ("migrate", "serve"):
        told = refused(blank_app, command)
        assert "newer version" in told
        assert "feedbeef0000" in told
    for others in (["list-keys", "acme"], ["create-workspace", "a1", "A", "--admin", "a@b.test"], ["notify"]):
        assert "newer version" in refused(blank_app, *others)


def test_code_that_is_newer_than_the_database_says_so(blank_app: Flask) -> None:
    run(blank_app, "migrate")
    with blank_app.extensions["portal"].database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    assert "older migration than this code. Run: .venv/bin/flask migrate" in refused(blank_app, "list-keys", "acme")


@pytest.mark.once
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    app = create_app({"PORTAL_INSTANCE": str(tmp_path)})
    (tmp_path / "portal.db").unlink()
    (tmp_path / "portal.db").mkdir()
    assert f"may write {tmp_path / 'portal.db'} and its folder" in refused(app, "list-keys", "acme")


@pytest.mark.parametrize("command", [["list-keys", "\udcff"], ["invite-admin", "acme", "\udcff@b.test"]])
def test_an_argument_that_is_not_utf_8_is_told_of(app: Flask, command: list[str]) -> None:
    assert "not UTF-8" in refused(app, *command)


@pytest.mark.once
def test_output_that_cannot_be_written_is_told_in_a_line(app: Flask, database_url: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PORTAL_")}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flask", "invite-admin", "acme", "new@acme.test"],
            cwd=ROOT,
            env=environ | {"PORTAL_DATABASE_URL": database_url, "PORTAL_INSTANCE": str(tmp_path)},
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "Error: The output cannot be written: No space left on device. What was changed stays changed.\n"
    assert (done.returncode, done.stderr) == (1, said)


# --- Serving --------------------------------------------------------------------------------------------------------


def listen(address: str, port: int) -> socket.socket:
    """Listen as the shipped server does: it lets others share its port."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((address, port))
    listener.listen()
    return listener


PRODUCTION = {
    "PORTAL_BASE_URL": "https://keys.example.org",
    "PORTAL_SECRET_KEY": uuid4().hex,
    "PORTAL_KEY_PEPPERS": f"a:{uuid4().hex}",
}


@contextmanager
def portal_at(
    address: str, blank_url: str, instance: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Flask]:
    """A portal that is to listen on an address and a free port, whose database has no table yet."""
    ours = {"PORTAL_DATABASE_URL": blank_url, "PORTAL_INSTANCE": str(instance), **settings}
    app = create_app({**ours, "PORT": str(free_port()), "PORTAL_BIND": address})
    yield app
    app.extensions["portal"].close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The portals that would serve now; none does, for it would not come back."""
    settings: list[Any] = []
    monkeypatch.setattr(cli, "run_server", settings.append)
    return settings


def port_of(app: Flask) -> int:
    port: int = app.extensions["portal"].settings.port
    return port


@pytest.mark.once
@pytest.mark.parametrize(
    ("taken", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")],
)
def test_a_port_on_which_somebody_listens_is_not_shared(
    blank_url: str, tmp_path: Path, served: list[Any], taken: str, address: str
) -> None:
    with portal_at(address, blank_url, tmp_path) as app:
        try:
            listener = listen(taken, port_of(app))
        except OSError as error:
            if taken != "::1" or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            pytest.skip("this machine has no IPv6")  # nor has the product then; the other addresses go the same way
        with listener:
            told = refused(app, "serve")
        assert told.startswith(f"Error: Port {port_of(app)} is taken by another program.")
        assert "PORT=8080 make run" in told
        assert told.count("\n") == 1
        assert "no tables yet" in refused(app, "list-keys", "acme")  # the database was left alone
    assert not served


@pytest.mark.once
def test_in_production_the_server_says_where_it_listens(blank_url: str, tmp_path: Path, served: list[Any]) -> None:
    with portal_at("127.0.0.1", blank_url, tmp_path, PRODUCTION) as app:
        with listen("127.0.0.1", port_of(app)):
            assert "PORT=8080, and tell the proxy" in refused(app, "serve")
        assert f"https://keys.example.org, from 127.0.0.1, port {port_of(app)} " in run(app, "serve")
    assert len(served) == 1


@pytest.mark.once
def test_an_address_of_another_machine_is_refused_in_a_sentence(
    blank_url: str, tmp_path: Path, served: list[Any]
) -> None:
    with portal_at("192.0.2.1", blank_url, tmp_path) as app:
        told = refused(app, "serve")
    assert "Cannot listen on 192.0.2.1" in told
    assert "PORTAL_BIND" in told
    assert not served


@pytest.mark.once
def test_a_port_whose_last_connections_are_still_closing_is_free(
    blank_url: str, tmp_path: Path, served: list[Any]
) -> None:
    with portal_at("127.0.0.1", blank_url, tmp_path) as app:
        port = port_of(app)
        with listen("127.0.0.1", port) as listener, socket.create_connection(("127.0.0.1", port)) as client:
            listener.accept()[0].close()  # who closes first remembers the connection for a minute (TIME_WAIT)
            client.recv(1)
        run(app, "serve")
    assert len(served) == 1


@pytest.mark.once
def test_a_misspelt_setting_is_told_at_the_start(
    blank_url: str, tmp_path: Path, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTAL_TRUSTED_PROXY", "10.0.0.1")
    with portal_at("127.0.0.1", blank_url, tmp_path) as app:
        told = run(app, "serve")
    assert "Warning: PORTAL_TRUSTED_PROXY is not a setting. The most similar one is PORTAL_TRUSTED_PROXIES." in told
    assert told.count("Warning") == len(served) == 1


# --- A workspace ----------------------------------------------------------------------------------------------------


def test_the_link_for_a_new_workspaces_admin_works_once(cast: Cast, database: Database) -> None:
    output = run(cast.app, "create-workspace", "initech", "Initech", "--admin", "Ida@Initech.test")
    link = output.split()[-1]
    assert link.startswith("http://127.0.0.1:5000/invite/")
    path = link.removeprefix("http://127.0.0.1:5000")

    ida = cast.stranger("ida")
    page = ida.get(path)
    assert page.status_code == 200
    assert "ida@initech.test" in page.text
    password = "a sentence of ida's own"
    answers = {"name": "Ida Berg", "password": password, "password_again": password}
    joined = ida.post(path, answers)
    assert (joined.status_code, joined.location) == (303, "/w/initech")
    adds, sets_up = 'href="/w/initech/solutions/new"', 'href="/w/initech/workspace">Set up'
    for where in ("", "/members/invite", "/api-members/new"):
        assert adds in ida.get(f"/w/initech{where}").text
    solution = {"slug": "sales", "name": "Sales"}
    for is_first in (True, False):
        assert sets_up in ida.get("/w/initech/api/keys").text
        form = ida.get("/w/initech/api/keys/new").text
        assert "Initech</bdi> has no apps yet" in form
        assert sets_up in form
        assert "access to any" not in form
        assert "you have no access" not in form
        if is_first:
            assert ida.post("/w/initech/solutions/new", solution).status_code == 303
    assert 'href="/w/initech/solutions/sales/apps/new"' in ida.get("/w/initech").text
    assert ida.get("/w/acme").status_code == 404

    late = cast.stranger("late")
    assert late.get(path).status_code == 404
    late.get("/login")
    assert late.post(path, answers).status_code == 404

    again = cast.stranger("ida")
    again.email = "ida@initech.test"
    assert again.sign_in(password).status_code == 303

    with database.reading() as session:
        commands = select(AuditEvent).where(AuditEvent.means == "command").order_by(AuditEvent.id)
        told = session.scalars(commands).all()
    assert [event.action for event in told[-2:]] == ["workspace_created", "member_invited"]
    assert path.rpartition("/")[2] not in repr([vars(event) for event in told])


def test_a_link_that_was_lost_is_made_anew_and_the_old_one_ends(cast: Cast, database: Database) -> None:
    first = run(cast.app, "create-workspace", "initech", "Initech", "--admin", "ida@initech.test").split()[-1]
    advice = ".venv/bin/flask invite-admin initech ida@initech.test\n"
    told = refused(cast.app, "create-workspace", "initech", "Initech", "--admin", "ida@initech.test")
    assert told.endswith(advice)
    assert ".venv/bin/flask invite-admin" in refused(cast.app, "reset-password", "ida@initech.test")
    second = run(cast.app, "invite-admin", "initech", "Ida@initech.test").split()[-1]
    old, new = (link.removeprefix("http://127.0.0.1:5000") for link in (first, second))
    ida = cast.stranger("ida")
    assert ida.get(old).status_code == 404
    assert ida.get(new).status_code == 200
    answers = {"name": "Ida Berg", "password": "a sentence of ida's own", "password_again": "a sentence of ida's own"}
    assert ida.post(new, answers).location == "/w/initech"
    assert ida.get("/w/initech/members").status_code == 200  # an administrator
    assert "already" in refused(cast.app, "invite-admin", "initech", "ida@initech.test")
    with database.reading() as session:
        events = session.scalars(select(AuditEvent.action).where(AuditEvent.means == "command").order_by(AuditEvent.id))
        assert events.all()[-3:] == ["member_invited", "invitation_withdrawn", "member_invited"]


@pytest.mark.parametrize(
    ("workspace", "email", "says"),
    [
        ("nowhere", "ida@initech.test", "nowhere"),
        ("acme", "ida", "email"),
        ("acme", "ana@acme.test", ".venv/bin/flask reset-password ana@acme.test\n"),
        ("acme", "Rio@acme.test", "as member"),
    ],
)
def test_who_cannot_be_invited_is_told(app: Flask, workspace: str, email: str, says: str) -> None:
    assert says in refused(app, "invite-admin", workspace, email)


@pytest.mark.once
@pytest.mark.parametrize("command", [["migrate"], ["list-keys", "acme"], ["notify"], ["backup", "FILE"], ["serve"]])
def test_a_database_that_cannot_be_reached_is_not_told_to_be_new(tmp_path: Path, command: list[str]) -> None:
    url = f"postgresql://portal:hunter2@127.0.0.1:{free_port()}/portal"
    app = create_app({"PORTAL_DATABASE_URL": url, "PORTAL_INSTANCE": str(tmp_path), "PORT": str(free_port())})
    told = refused(app, *[word.replace("FILE", str(tmp_path / "file")) for word in command])
    assert "refused" in told
    assert "PORTAL_DATABASE_URL" in told
    assert "flask migrate" not in told
    assert "hunter2" not in told
    assert told.count("\n") == 1
    app.extensions["portal"].close()


@pytest.mark.server
def test_a_role_that_may_not_make_what_is_missing_is_told_so(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    role = f"clerk_{uuid4().hex}"
    with closing(database.driver_connection()) as owner:
        log_of(owner, is_sqlite=False).remove()
        owner.execute(f"CREATE ROLE {role} LOGIN")
        owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
            app = create_app({"PORTAL_DATABASE_URL": url, "PORTAL_INSTANCE": str(tmp_path)})
            told = refused(app, "migrate")
            app.extensions["portal"].close()
        finally:
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")
    assert "permission denied" in told


@pytest.mark.parametrize(
    ("slug", "name", "admin", "says"),
    [
        ("acme", "Acme again", "ida@initech.test", "acme already"),
        ("Initech", "Initech", "ida@initech.test", "short name"),
        ("initech", "", "ida@initech.test", "name"),
        ("initech", "Initech", "ida", "email"),
    ],
)
def test_a_workspace_that_cannot_be_is_refused_whole(
    app: Flask, database: Database, slug: str, name: str, admin: str, says: str
) -> None:
    assert says in refused(app, "create-workspace", slug, name, "--admin", admin)
    with database.reading() as session:
        assert set(session.scalars(select(Workspace.slug))) == {"acme", "globex"}


# --- Solutions and apps ---------------------------------------------------------------------------------------------


def test_an_app_that_was_added_holds_records_that_fit_its_schema(cast: Cast, schema_file: Path) -> None:
    run(cast.app, "add-solution", "acme", "warehouse", "Warehouse", "--description", "What we store")
    run(cast.app, "add-app", "acme", "warehouse", "stock", "Stock", "--schema", str(schema_file))
    key = cast.ana.generate(["stock:read", "stock:write"])
    assert cast.call("POST", "/apps/stock/records", key, json={"fields": {"sku": "A-1"}}).status_code == 201
    assert cast.call("POST", "/apps/stock/records", key, json={"fields": {}}).status_code == 422
    assert "Warehouse" in cast.ana.get("/w/acme").text
    assert "Warehouse" not in cast.rio.get("/w/acme").text  # nobody is given access by it


def test_an_external_solutions_app_needs_no_schema(cast: Cast) -> None:
    run(cast.app, "add-solution", "acme", "billing", "Billing", "--external")
    run(cast.app, "add-app", "acme", "billing", "invoices", "Invoices")
    key = cast.ana.generate(["invoices:read"])
    assert cast.call("GET", "/apps/invoices/records", key).status_code == 404


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{'type': 'object'}", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 200_000, ""),
        (b"[]", "JSON Schema"),
        (b"true", "object"),
        (b"1", "JSON Schema"),
        (b'{"type": "thing"}', "JSON Schema"),
        (b'{"type": "array"}', "object"),
        (b'{"type": "object", "$ref": "https://evil.test/schema.json"}', "$ref"),
        (b'{"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}}', "$ref"),
    ],
)
def test_a_schema_that_is_none_is_refused(app: Flask, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    told = refused(app, "add-app", "acme", "sales", "stock", "Stock", "--schema", str(path))
    assert says in told
    assert len(told) < 500


@pytest.mark.parametrize(
    "arguments",
    [
        ["add-solution", "nowhere", "stock", "Stock"],
        ["add-solution", "acme", "sales", "Sales again"],
        ["add-solution", "acme", "Stock!", "Stock"],
        ["add-app", "nowhere", "sales", "stock", "Stock", "--schema", "SCHEMA"],
        ["add-app", "acme", "nowhere", "stock", "Stock", "--schema", "SCHEMA"],
        ["add-app", "globex", "sales", "stock", "Stock", "--schema", "SCHEMA"],
        ["add-app", "acme", "sales", "tasks", "Tasks again", "--schema", "SCHEMA"],
        ["add-app", "acme", "sales", "stock", "Stock", "--schema", "SCHEMA.missing"],
        ["add-app", "acme", "sales", "stock", "Stock"],
    ],
)
def test_what_is_taken_or_not_there_is_told(app: Flask, schema_file: Path, arguments: list[str]) -> None:
    refused(app, *[argument.replace("SCHEMA", str(schema_file)) for argument in arguments])


def test_an_app_without_a_schema_is_told_the_option(app: Flask) -> None:
    assert "--schema" in refused(app, "add-app", "acme", "sales", "stock", "Stock").splitlines()[-1]


# --- Keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(cast: Cast) -> MadeKey:
    return cast.rio.generate(name="Nightly export")


def test_keys_are_listed_as_json_without_any_secret(cast: Cast, key: MadeKey, database: Database) -> None:
    (listed,) = json.loads(run(cast.app, "list-keys", "acme", "--json"))
    assert {name: listed[name] for name in ("id", "name", "environment", "state", "owner", "scopes")} == {
        "id": key.id,
        "name": "Nightly export",
        "environment": "live",
        "state": "active",
        "owner": "Rio Tanaka",
        "scopes": ["tasks:read"],
    }
    assert listed["hint"] == f"sk_live_…{key.text[47:51]}"
    assert listed["expiresAt"] > listed["createdAt"]
    assert listed["lastUsedAt"] is None
    printed = run(cast.app, "list-keys", "acme", "--json") + run(cast.app, "list-keys", "acme")
    with database.reading() as session:
        digest = session.scalars(select(ApiKey.digest)).one()
    for secret in (key.text[8:47], key.text[-6:], digest.hex(), repr(digest)):
        assert secret not in printed


def test_a_key_whose_owner_is_out_is_not_called_active(cast: Cast, key: MadeKey) -> None:
    for command, state in (("deactivate-account", "owner_inactive"), ("reactivate-account", "active")):
        run(cast.app, command, "rio@acme.test")
        (listed,) = json.loads(run(cast.app, "list-keys", "acme", "--json"))
        assert listed["state"] == state
        assert state in run(cast.app, "list-keys", "acme")


def test_keys_are_listed_for_people_a_line_each(cast: Cast, key: MadeKey) -> None:
    cast.lea.generate(owner=api_member(cast), name="Sync")
    lines = run(cast.app, "list-keys", "acme").splitlines()
    assert len(lines) == 3
    assert key.id in lines[0]
    assert "active" in lines[0]
    assert "Rio Tanaka / Nightly export" in lines[0]
    assert "never used" in lines[0]
    assert "Nightly sync / Sync" in lines[1]
    assert lines[2] == "2 keys."


def api_member(cast: Cast) -> str:
    with cast.app.extensions["portal"].database.reading() as session:
        member: str = (
            session.connection()
            .exec_driver_sql("SELECT public_id FROM member WHERE name = 'Nightly sync'")
            .scalar_one()
        )
    return member


def test_keys_of_another_workspace_and_deleted_ones_are_not_listed(cast: Cast, key: MadeKey) -> None:
    assert json.loads(run(cast.app, "list-keys", "globex", "--json")) == []
    assert run(cast.app, "list-keys", "globex") == "0 keys.\n"
    cast.rio.post(f"keys/{key.id}/delete")
    assert json.loads(run(cast.app, "list-keys", "acme", "--json")) == []
    refused(cast.app, "list-keys", "nowhere")


def test_a_revoked_key_is_refused_on_the_next_request(cast: Cast, key: MadeKey, database: Database) -> None:
    other = cast.rio.generate(name="Another")
    assert cast.call("GET", "/me", key).status_code == 200
    assert "Nightly export" in run(cast.app, "revoke-key", key.id)
    assert cast.call("GET", "/me", key).status_code == 401
    assert cast.call("GET", "/me", other).status_code == 200
    with database.reading() as session:
        told = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()[-1]
    assert (told.action, told.means, told.target_id) == ("key_deleted", "command", key.id)
    assert told.workspace_id is not None
    refused(cast.app, "revoke-key", key.id)


@pytest.mark.parametrize("key_id", ["key_1", "", "%", "x" * 500])
def test_a_key_that_is_not_there_cannot_be_revoked(cast: Cast, key: MadeKey, key_id: str) -> None:
    refused(cast.app, "revoke-key", key_id)
    assert cast.call("GET", "/me", key).status_code == 200


@pytest.mark.parametrize("prefix", ["sk", "key"])
def test_who_pastes_a_keys_text_is_told_to_give_its_id_and_the_text_is_not_repeated(
    cast: Cast, key: MadeKey, prefix: str
) -> None:
    text = prefix + key.text.removeprefix("sk")
    told = refused(cast.app, "revoke-key", text)
    assert "list-keys" in told
    assert text not in told


def test_a_deactivated_account_is_out_at_once_and_shown_as_what_it_is(
    cast: Cast, key: MadeKey, database: Database
) -> None:
    assert cast.call("GET", "/me", key).status_code == 200
    printed = run(cast.app, "deactivate-account", "rio@acme.test")
    assert "1 session ended" in printed
    assert "Warning" not in printed
    refused_one = cast.call("GET", "/me", key)
    assert refused_one.status_code == 401
    assert "/login" in cast.rio.get("/w/acme").location
    assert cast.stranger("rio").sign_in().status_code == 422
    with database.reading() as session:
        rio = session.scalars(select(Member.public_id).where(Member.name == "Rio Tanaka")).one()
    for path in ("members?state=deactivated", f"members/{rio}"):
        page = cast.ana.get(f"/w/acme/{path}").text
        assert "Rio Tanaka" in page
        assert "Account deactivated" in page
        assert "/reactivate" not in page  # no administrator can do that
    for path in ("keys?owner=all", f"keys/{key.id}"):
        page = cast.ana.get(path).text
        assert "Owner deactivated" in page
        assert "st-active" not in page
    cast.app.extensions["portal"].usage.flush()
    found = cast.ana.post("/w/acme/explain", {"request_id": refused_one.headers["X-Request-Id"]}).text
    assert "Whoever runs Latchkey can reactivate the account of Rio Tanaka." in found
    assert "deactivated the account of" in cast.ana.get("/w/acme/audit?group=people").text
    assert "already" in run(cast.app, "deactivate-account", "rio@acme.test")

    assert "reactivate-account rio@acme.test" in refused(cast.app, "reset-password", "rio@acme.test")
    printed = run(cast.app, "reactivate-account", "Rio@acme.test")
    assert "active again" in printed
    assert "already" in run(cast.app, "reactivate-account", "rio@acme.test")
    assert cast.call("GET", "/me", key).status_code == 200
    assert "/login" in cast.rio.get("/w/acme").location
    assert cast.rio.sign_in().status_code == 422  # whoever knew the old password does not get in again
    (link,) = re.findall(r"/reset/\S+", printed)
    new = "seven green bottles on a wall"
    cast.rio.get(link)
    assert cast.rio.post(link, {"password": new, "password_again": new}).status_code == 303
    assert cast.rio.sign_in(new).status_code == 303


def test_who_left_and_is_invited_again_gets_a_new_password_where_the_old_one_is_forgotten(
    cast: Cast, database: Database
) -> None:
    with database.transaction() as session:
        session.execute(update(Member).where(Member.name == "Rio Tanaka").values(removed_at=datetime.now(UTC)))
    assert "invite-admin WORKSPACE EMAIL" in refused(cast.app, "reset-password", "rio@acme.test")
    invited = run(cast.app, "invite-admin", "acme", "rio@acme.test").split()[-1]
    stranger = cast.stranger("rio")
    assert 'href="/reset"' in stranger.get(invited.removeprefix("http://127.0.0.1:5000")).text
    chosen = re.search(r"/reset/\S+", run(cast.app, "reset-password", "rio@acme.test"))
    assert chosen
    assert stranger.get(chosen[0]).status_code == 200


def test_a_key_that_others_may_know_can_be_stopped_before_its_account_comes_back(cast: Cast, key: MadeKey) -> None:
    run(cast.app, "deactivate-account", "rio@acme.test")
    run(cast.app, "revoke-key", key.id)
    run(cast.app, "reactivate-account", "rio@acme.test")
    assert cast.call("GET", "/me", key).status_code == 401


def test_a_workspaces_last_administrator_can_be_stopped_and_the_operator_is_warned(cast: Cast) -> None:
    printed = run(cast.app, "deactivate-account", "ana@acme.test")
    assert "Warning: nobody administers acme. For another administrator: .venv/bin/flask invite-admin acme" in printed
    assert "flask invite-admin acme EMAIL" in printed


IN_A_TERMINAL = """
import os, sys
outside, inside = os.openpty()
os.set_inheritable(outside, True)
os.dup2(inside, 0)
os.execv(sys.executable, [sys.executable, "-m", "flask", "serve"])
"""


@pytest.mark.once
def test_a_terminal_that_closes_ends_the_server_that_runs_in_it(blank_url: str, tmp_path: Path) -> None:
    """Elsewhere the same signal replaces the workers."""
    with serving(blank_url, tmp_path, ("-c", IN_A_TERMINAL)) as server:
        os.kill(server.session, signal.SIGHUP)
        assert is_gone(server)
    with serving(blank_url, tmp_path) as server:
        os.kill(server.session, signal.SIGHUP)
        assert not is_gone(server, within=1)


def is_gone(server: Server, within: float = STOP_SECONDS) -> bool:
    """Say whether nobody listens any more, at the latest after so many seconds."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("command", ["deactivate-account", "reactivate-account"])
def test_an_account_that_is_not_there_is_told_of(app: Flask, command: str) -> None:
    assert "nobody@acme.test" in refused(app, command, "nobody@acme.test")


def test_every_command_explains_itself(app: Flask) -> None:
    commands = [
        "serve",
        "migrate",
        "seed-demo",
        "create-workspace",
        "invite-admin",
        "add-solution",
        "add-app",
        "list-keys",
        "revoke-key",
        "deactivate-account",
        "reactivate-account",
    ]
    listed = run(app, "--help")
    for command in commands:
        assert command in listed
        assert len(run(app, command, "--help").splitlines()) > 3
