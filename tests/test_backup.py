"""Backups: whole, private, moved between databases, and never a way to bring back what was ended since (T-80)."""

import json
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update

from app import create_app
from portal import cli
from portal.rules.access import AccessLevel, Role
from portal.services import api_members, audit_reading, members, restoring
from portal.store import backup
from portal.store.database import Database
from portal.store.models import Account, AuditEvent, Invitation, Member, UserSession, Verifier, Workspace
from tests.cast import Cast, MadeKey
from tests.databases import Template
from tests.servers import free_port
from tests.services.office import NOON, Office


def run(app: Flask, *arguments: str, typed: str = "") -> str:
    result = app.test_cli_runner().invoke(args=list(arguments), input=typed)
    assert result.exit_code == 0, result.output
    return result.output


def refused(app: Flask, *arguments: str, typed: str = "") -> str:
    result = app.test_cli_runner().invoke(args=list(arguments), input=typed)
    assert result.exit_code not in (0, None)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result.output


@contextmanager
def closing_portal(app: Flask) -> Iterator[Flask]:
    yield app
    app.extensions["portal"].close()


@contextmanager
def portal_on(url: str, other: Flask) -> Iterator[Flask]:
    """A portal with the secrets of the test's other one."""
    ours = {"PORTAL_DATABASE_URL": url, "PORTAL_INSTANCE": other.instance_path, "PORT": str(free_port())}
    with closing_portal(create_app(ours)) as app:
        app.jinja_env.bytecode_cache = other.jinja_env.bytecode_cache  # to compile templates anew takes long
        yield app


@pytest.fixture
def empty(empty_url: str, app: Flask) -> Iterator[Flask]:
    """A portal on a migrated database in which nobody is yet."""
    with portal_on(empty_url, app) as other:
        yield other


@pytest.fixture
def key(cast: Cast) -> MadeKey:
    key = cast.rio.generate(["tasks:read"])
    assert cast.call("GET", "/me", key).status_code == 200
    cast.app.extensions["portal"].usage.flush()
    return key


@pytest.fixture
def file(app: Flask, key: MadeKey, tmp_path: Path) -> Path:
    path = tmp_path / "portal.backup"
    run(app, "backup", str(path))
    return path


def content(database: Database) -> dict[str, list[Any]]:
    """Read all that a backup must hold, with the words of the models."""
    with database.reading() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in backup.tables()
        }


def without_the_restore(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: rows for name, rows in found.items() if name not in ("audit_event", "audit_head")}


def status(app: Flask, key: MadeKey) -> int:
    return Cast(app).call("GET", "/me", key).status_code


# --- Whole ----------------------------------------------------------------------------------------------------------


def test_a_backup_moves_everything_to_another_kind_of_database_and_back(
    empty: Flask, file: Path, key: MadeKey, database: Database, tmp_path: Path
) -> None:
    """Of the two runs of this test one goes SQLite, SQLite, SQLite, and the other PostgreSQL, SQLite, PostgreSQL."""
    before = content(database)
    assert before["api_key"]
    assert before["usage"]
    with portal_on(f"sqlite:///{tmp_path}/between.db", empty) as between:
        run(between, "migrate")
        run(between, "restore", str(file), "--resurrect")
        assert status(between, key) == 200
        assert without_the_restore(content(between.extensions["portal"].database)) == without_the_restore(before)
        run(between, "backup", str(tmp_path / "second"))
    run(empty, "restore", str(tmp_path / "second"), "--resurrect")
    after = content(empty.extensions["portal"].database)
    assert without_the_restore(after) == without_the_restore(before)
    assert after["audit_event"][: len(before["audit_event"])] == before["audit_event"]
    assert "broken" not in run(empty, "verify-audit")


def test_life_goes_on_after_a_restore(empty: Flask, file: Path, key: MadeKey) -> None:
    run(empty, "restore", str(file), "--resurrect")
    cast = Cast(empty)
    assert status(empty, key) == 200
    made = cast.rio.generate(["tasks:read"], name="Second")  # new rows get new numbers
    assert status(empty, made) == 200
    record = cast.call(
        "POST", "/apps/tasks/records", cast.lea.generate(["tasks:write"]), json={"fields": {"title": "x"}}
    )
    assert record.status_code == 201
    assert cast.rio.post(f"keys/{key.id}/delete", {"name": "Nightly export"}).status_code == 303
    assert status(empty, key) == 401
    assert "restored the backup of" in cast.ana.get("/w/acme/audit").text
    empty.extensions["portal"].usage.flush()
    assert "broken" not in run(empty, "verify-audit")


def test_references_that_point_forward_survive(cast: Cast, empty: Flask, database: Database, tmp_path: Path) -> None:
    with database.transaction() as session:
        session.connection().exec_driver_sql(
            "UPDATE member SET manager_id = (SELECT max(id) FROM member) WHERE id = (SELECT min(id) FROM member)"
        )
    run(cast.app, "backup", str(tmp_path / "file"))
    run(empty, "restore", str(tmp_path / "file"), "--resurrect")
    assert content(empty.extensions["portal"].database)["member"] == content(database)["member"]


# --- Private --------------------------------------------------------------------------------------------------------


def test_only_its_maker_may_read_it_and_no_secret_is_in_it(
    app: Flask, file: Path, key: MadeKey, database: Database
) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        text = b"".join(archive.read(name) for name in names).decode()
    assert key.text not in text
    assert key.text.split("_")[2] not in text
    assert "correct horse" not in text
    assert "user_session.jsonl" not in names
    with database.reading() as session:
        assert session.scalars(select(UserSession.id)).all()


def test_it_overwrites_nothing_and_leaves_nothing_half_made(app: Flask, blank_url: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    assert "cannot be written" in refused(app, "backup", str(path))
    assert path.read_text() == "mine"
    with portal_on(blank_url, app) as blank:
        refused(blank, "backup", str(tmp_path / "half"))
    assert not (tmp_path / "half").exists()


# --- Restoring ------------------------------------------------------------------------------------------------------


def test_a_database_that_holds_something_is_left_alone(app: Flask, file: Path, database: Database) -> None:
    before = content(database)
    assert "--replace" in refused(app, "restore", str(file), "--resurrect")
    assert content(database) == before


def test_an_empty_database_knows_nothing_of_what_was_ended_so_the_operator_decides(
    empty: Flask, file: Path, key: MadeKey
) -> None:
    for typed in ("", "n\n"):
        assert "work again" in refused(empty, "restore", str(file), typed=typed)
        assert status(empty, key) == 401
    run(empty, "restore", str(file), typed="y\n")
    assert status(empty, key) == 200


@pytest.mark.parametrize("options", [[], ["--resurrect"], ["--deactivate-keys"], ["--replace"]])
def test_a_database_without_tables_is_found_before_anything_is_asked(
    app: Flask, blank_url: str, file: Path, key: MadeKey, options: list[str]
) -> None:
    with portal_on(blank_url, app) as unmigrated:
        told = refused(unmigrated, "restore", str(file), *options, typed="y\n")
        assert told == "Error: The database has no tables yet. Run: .venv/bin/flask migrate\n"
        assert "Run: .venv/bin/flask migrate" in refused(unmigrated, "backup", str(file.with_name("another")))


def test_a_backup_names_what_must_be_kept_beside_it(app: Flask, tmp_path: Path) -> None:
    assert "Keep PORTAL_KEY_PEPPERS too" in run(app, "backup", str(tmp_path / "mine"))


def test_all_keys_can_be_restored_deactivated(cast: Cast, empty: Flask, key: MadeKey, tmp_path: Path) -> None:
    before = cast.rio.generate(["tasks:read"], name="Deactivated before")
    cast.rio.post(f"keys/{before.id}/deactivate")
    file = tmp_path / "file"
    run(cast.app, "backup", str(file))
    assert "1 key deactivated" in run(empty, "restore", str(file), "--deactivate-keys")
    assert status(empty, key) == 401
    assert Cast(empty).rio.post(f"keys/{key.id}/reactivate").status_code == 303
    assert status(empty, key) == 200


def test_what_was_ended_since_stays_ended(cast: Cast, database: Database, tmp_path: Path) -> None:
    keys = {name: cast.rio.generate(["tasks:read"], name=f"{name} later") for name in ("kept", "deleted", "stopped")}
    keys["rotated"] = cast.rio.generate(["tasks:read"], name="Rotated later")
    keys["lowered"] = cast.lea.generate(["tasks:write"], name="Lowered later")
    keys["theirs"] = cast.max.generate(["leads:read"], name="Leaves later")
    before = cast.rio.generate(["tasks:read"], name="Deleted before")
    cast.rio.post(f"keys/{before.id}/delete")
    file = str(tmp_path / "file")
    run(cast.app, "backup", file)

    after = cast.rio.generate(["tasks:read"], name="Made since")
    cast.rio.post(f"keys/{keys['deleted'].id}/delete")
    cast.rio.post(f"keys/{keys['stopped'].id}/deactivate")
    successor = cast.rio.rotate(keys["rotated"], overlap="0")
    office = Office(database)
    office.grant("lea", "operations", AccessLevel.READ)
    office.grant("lea", "sales", AccessLevel.FULL)  # a restore gives back what it was: nobody is raised by one
    office.change("max", deactivated_at=office.actor("max").at)
    office.change("Nightly sync", manager_id=office.member("ana").id)
    office.close()

    said = run(cast.app, "restore", file, "--replace")
    with database.reading() as session:
        sync = session.scalars(select(Member).where(Member.name == "Nightly sync")).one()
        assert session.get_one(Member, sync.manager_id).name == "Ana Ruiz"
        lea = session.scalars(select(Member).where(Member.name == "Lea Okoro")).one()
        assert members.levels_of(session, lea) == {"operations": AccessLevel.READ, "sales": AccessLevel.READ}
    for what in (
        "API members handed over: 1",
        "keys deleted: 1",
        "keys deactivated: 1",
        "keys rotated out: 1",
        "access lowered: 1",
    ):
        assert what in said, said
    assert "members deactivated: 1" in said
    app = cast.app
    assert status(app, keys["kept"]) == 200
    for name in ("deleted", "stopped", "rotated", "theirs"):
        assert status(app, keys[name]) == 401, name
    assert status(app, after) == status(app, successor) == 401  # the backup does not know them
    reply = Cast(app).call("POST", "/apps/tasks/records", keys["lowered"], json={"fields": {}})
    assert reply.get_json()["error"]["code"] == "access_withdrawn"
    with database.reading() as session:
        assert all(audit_reading.verify(session, chain).holds for chain in (0, *session.scalars(select(Workspace.id))))

    said = run(app, "restore", file, "--replace", "--resurrect")
    assert "stays as it was" not in said
    for name in ("kept", "deleted", "stopped", "rotated", "theirs"):
        assert status(app, keys[name]) == 200, name


def test_rights_that_ended_since_stay_ended_and_nobody_else_loses_any(
    cast: Cast, database: Database, tmp_path: Path
) -> None:
    office = Office(database)
    with database.transaction() as session:
        api_members.create(session, office.actor("lea"), name="Second bot", purpose="", access={})
    office.change("max", role=Role.ADMIN)
    shortened, lengthened = (cast.rio.generate(name=name) for name in ("Shortened", "Lengthened"))
    for each in (shortened, lengthened):
        cast.rio.rotate(each)
    ends = office.row(lengthened.id).retires_at
    assert ends
    file = str(tmp_path / "file")
    run(cast.app, "backup", file)

    office.change("max", role=Role.MEMBER)
    office.grant("max", "sales", AccessLevel.NONE)
    office.change("Second bot", manager_id=None)
    office.change("zoe", deactivated_at=ends)
    office.set_key(shortened.id, retires_at=ends - timedelta(hours=1))
    office.set_key(lengthened.id, retires_at=ends + timedelta(hours=1))
    with database.transaction() as session:
        session.execute(update(Account).where(Account.email == "rio@acme.test").values(password_hash="another"))

    said = run(cast.app, "restore", file, "--replace")
    for what in (
        "keys rotated out: 1",
        "administrators demoted: 1",
        "API members handed over: 1",
        "passwords changed: 1",
        "access lowered: 1",
        "globex",  # which nobody administers now
    ):
        assert what in said, said
    assert "acme" not in said
    assert {name: office.member(name).role for name in ("ana", "max", "zoe")} == {
        "ana": "admin",
        "max": "member",
        "zoe": "admin",
    }
    assert office.member("Second bot").manager_id is None
    assert office.member("Nightly sync").manager_id == office.member("lea").id
    with database.reading() as session:
        found = members.levels_of(session, office.member("max"))
    assert found == {"operations": AccessLevel.READ, "sales": AccessLevel.NONE}
    assert [office.row(each.id).retires_at for each in (shortened, lengthened)] == [ends - timedelta(hours=1), ends]


def test_each_column_by_which_something_ends_is_kept(database: Database) -> None:
    office = Office(database)
    ana, (key, _) = office.member("ana"), office.generate("rio")
    shared: dict[str, Any] = {"workspace_id": ana.workspace_id, "created_at": NOON}
    of_verifier = {"name": "Ours", "pepper_id": "new", "last_four": "abcd", "digest": b"1", "created_by_id": ana.id}
    of_invitation = {"token_hash": b"1", "email": "ida@acme.test", "role": Role.MEMBER, "expires_at": NOON}
    words = {"revoked_at", "deactivated_at", "removed_at", "accepted_at", "withdrawn_at"}
    ends = [column for table in backup.tables() for column in table.c if column.name in words]
    ids = {"api_key": key.id, "verifier": "ver_1", "invitation": "inv_1", "member": ana.public_id}
    with database.transaction() as session:
        session.add(Verifier(public_id="ver_1", **shared, **of_verifier))
        session.add(Invitation(public_id="inv_1", **shared, **of_invitation))
        session.flush()
        ids["account"] = session.get_one(Account, ana.account_id).public_id

        def end_all(at: datetime | None) -> None:
            for column in ends:
                table = column.table
                session.execute(update(table).where(table.c.public_id == ids[table.name]).values({column.name: at}))

        end_all(NOON)
        restoring.set_aside(session)
        end_all(None)  # as the backup has it
        said = restoring.end_again(session)
        restoring.forget_aside(session)
        for column in ends:
            assert session.scalar(select(column).where(column.table.c.public_id == ids[column.table.name])) == NOON
    assert said == {
        "keys deleted": 1,
        "keys deactivated": 1,
        "verifiers revoked": 1,
        "members removed": 1,
        "members deactivated": 1,
        "accounts deactivated": 1,
        "invitations used": 1,
        "invitations withdrawn": 1,
    }


def test_a_restore_is_told_in_every_audit_log(app: Flask, file: Path, database: Database) -> None:
    run(app, "restore", str(file), "--replace")
    with database.reading() as session:
        told = session.scalars(select(AuditEvent).where(AuditEvent.action == "backup_restored")).all()
        chains = {0, *session.scalars(select(Workspace.id))}
    assert {event.chain for event in told} == chains
    assert {event.means for event in told} == {"command"}


def test_keys_under_a_pepper_that_is_missing_are_named(
    empty: Flask, file: Path, empty_url: str, tmp_path: Path
) -> None:
    other = {"PORTAL_DATABASE_URL": empty_url, "PORTAL_INSTANCE": str(tmp_path)}
    with closing_portal(create_app({**other, "PORTAL_KEY_PEPPERS": "other:0123456789abcdef0123456789abcdef"})) as app:
        assert "PORTAL_KEY_PEPPERS lacks local" in run(app, "restore", str(file), "--resurrect")


def test_a_secret_that_is_another_than_the_keys_were_made_under_is_noticed(
    app: Flask, key: MadeKey, database_url: str, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever restores, and by whoever serves: all keys would be unknown, and nothing else would tell why."""
    served: list[Any] = []
    monkeypatch.setattr(cli, "run_server", served.append)
    with portal_on(database_url, app) as before:
        run(before, "serve")
        run(before, "serve")
        file = tmp_path / "backup"
        run(before, "backup", str(file))
    mixed_up = "local:0123456789abcdef0123456789abcdef"
    place = {"PORTAL_DATABASE_URL": empty_url, "PORTAL_INSTANCE": str(tmp_path), "PORT": str(free_port())}
    other = {**place, "PORTAL_KEY_PEPPERS": mixed_up}
    with closing_portal(create_app(other)) as wrong:
        run(wrong, "serve")  # so that it has proofs of its own, which the restored ones replace
        told = run(wrong, "restore", str(file), "--replace", "--resurrect")
        assert "1 key cannot be used: PORTAL_KEY_PEPPERS has another secret for local" in told
        told = refused(wrong, "serve")
        assert "has another secret for local" in told
        assert "0123456789abcdef" not in told
    with closing_portal(create_app({**other, "PORTAL_KEY_PEPPERS": mixed_up.replace("local", "new")})) as renamed:
        assert "1 key cannot be used: PORTAL_KEY_PEPPERS lacks local" in run(renamed, "serve")
    with portal_on(empty_url, app) as right:
        assert "Warning" not in run(right, "restore", str(file), "--replace", "--resurrect")
        run(right, "serve")
    assert len(served) == 5


# --- Damage ---------------------------------------------------------------------------------------------------------


def rewritten(file: Path, name: str, change: Any) -> Path:
    """Copy a backup with one of its files changed."""
    copy = file.with_suffix(".changed")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for each in old.namelist():
            new.writestr(each, change(old.read(each)) if each == name else old.read(each))
    return copy


def other_manifest(**values: Any) -> Any:
    return lambda old: json.dumps({**json.loads(old), **values})


DAMAGES = {
    "a row was taken out": ("api_key.jsonl", lambda old: b"\n".join(old.splitlines()[:1]) + b"\n"),
    "a word was changed": ("member.jsonl", lambda old: old.replace(b'"member"', b'"admin"', 1)),
    "a line is no JSON": ("record.jsonl", lambda old: old + b"{\n"),
    "a column is missing": ("app.jsonl", lambda old: old.replace(b'"slug"', b'"slog"')),
    "another migration": ("backup.json", other_manifest(migration="0001")),
    "another format": ("backup.json", other_manifest(format=99)),
    "no tables": ("backup.json", other_manifest(tables={})),
    "tables of another shape": ("backup.json", lambda old: re.sub(rb'"rows"', b'"rose"', old)),
    "numbers that are none": ("backup.json", lambda old: re.sub(rb'"rows": \d+', b'"rows": "many"', old)),
    "made at no moment": ("backup.json", other_manifest(madeAt="yesterday")),
    "a table of contents that fills the memory": ("backup.json", lambda old: old + b" " * 2_000_000),
    "nested without end": ("record.jsonl", lambda old: old + b"[" * 100_000 + b"\n"),
    "an absurd number": ("record.jsonl", lambda old: re.sub(rb"\n\[\d+", b"\n[" + b"9" * 30, old, count=1)),
    "a row of a moment without a zone": ("record.jsonl", lambda old: old.replace(b"+00:00", b"")),
    "a value of another kind": ("account.jsonl", lambda old: re.sub(rb"\n\[(\d+),", rb'\n[{"a": \1},', old, count=1)),
    "letters that take over the terminal": ("backup.json", other_manifest(migration="\x1b]0;root\x07\x1b[2J")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_changes_nothing(
    app: Flask, file: Path, key: MadeKey, database: Database, damage: str
) -> None:
    before = content(database)
    bad = rewritten(file, *DAMAGES[damage])
    assert "\x1b" not in refused(app, "restore", str(bad), "--replace", "--resurrect")
    assert content(database) == before
    assert status(app, key) == 200


def test_bytes_that_are_broken_anywhere_change_nothing(app: Flask, file: Path, database: Database) -> None:
    before, whole = content(database), file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        middles = [each.header_offset + 60 + each.compress_size // 2 for each in archive.infolist() if each.file_size]
    with zipfile.ZipFile(file) as archive:
        flags = [archive.start_dir + 8, archive.start_dir + 10]  # encrypted; packed in another way
    for at in (*middles[::4], *flags):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) * 8 + whole[at + 8 :])
        assert "backup" in refused(app, "restore", str(file), "--replace", "--resurrect")
        assert content(database) == before


def test_a_file_that_is_cut_off_or_none_is_refused(empty: Flask, file: Path, template: Template) -> None:
    whole = file.read_bytes()
    for left in (b"", b"PK", whole[: len(whole) // 2], whole[:-10]):
        file.write_bytes(left)
        assert "backup" in refused(empty, "restore", str(file), "--resurrect")
    refused(empty, "restore", str(file.with_name("nowhere")), "--resurrect")
    shutil.rmtree(file.parent, ignore_errors=True)
