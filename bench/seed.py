"""Add stored keys of a realistic shape: `.venv/bin/python bench/seed.py N --keys FILE`.

Fills the migrated database of PORTAL_DATABASE_URL (default: the one in instance/) with workspaces of 25 members with
four keys each, also under a running server, and writes the texts of 5,000 of the keys (or N) to FILE, one a line.
`multiply` makes many more of them within the database: a million keys in a minute or two.
"""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Row,
    String,
    cast,
    func,
    insert,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from portal.rules.access import Environment  # noqa: E402
from portal.rules.credentials import Keyring, PlainKey, new_id  # noqa: E402
from portal.services import audit  # noqa: E402
from portal.services.actor import operator  # noqa: E402
from portal.services.audit import Event  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
from portal.store.key_log import log_of  # noqa: E402
from portal.store.models import Access, ApiKey, App, KeyScope, Member, Solution, Workspace  # noqa: E402

MEMBERS = 25  # in a workspace
KEYS = 4  # of a member
WRITTEN = 5_000
_APPS = (("sales", ("leads", "accounts")), ("operations", ("tasks", "reservations")))


def add_keys(database: Database, keyring: Keyring, count: int) -> Iterator[PlainKey]:
    """Add `count` keys, a workspace a transaction; yield each key as it is stored."""
    while count > 0:
        with database.transaction() as session:
            added = _add_workspace(session, keyring, min(count, MEMBERS * KEYS))
        count -= len(added)
        yield from added


def stored_keys(database: Database) -> int:
    """Count the stored keys."""
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(ApiKey)) or 0


def multiply(database: Database, times: int) -> None:
    """Make so many of each workspace that `add_keys` made, with all that is in it. Nobody knows the copies' keys.

    Only for a database of one's own: PostgreSQL takes it from an administrator alone, and others that write meanwhile
    would meet the new ids.
    """
    numbers = select(literal(1, Integer).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < times - 1))
    mark = f"-{new_id('')[-4:].lower()}"  # or copies of copies would have the names of copies
    workspaces = select(Workspace.id).where(Workspace.slug.like("bench-%"))
    members = select(Member.id).where(Member.workspace_id.in_(workspaces))
    keys = select(ApiKey.id).where(ApiKey.workspace_id.in_(workspaces))
    which: dict[Any, ColumnElement[bool]] = {
        Workspace: Workspace.id.in_(workspaces),
        **{model: model.workspace_id.in_(workspaces) for model in (Solution, App, Member, ApiKey)},
        Access: Access.member_id.in_(members),
        KeyScope: KeyScope.key_id.in_(keys),
    }
    with closing(database.driver_connection()) as driver:  # nobody follows a change of this size line by line
        log_of(driver, is_sqlite=database.is_sqlite).remove()
    with database.transaction() as session:
        connection = session.connection()
        database.take_time(connection)
        if database.is_sqlite:
            connection.execute(text("PRAGMA cache_size = -500000"))  # kB, of this connection: digests go everywhere
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # whatever they name is there
        steps = {
            model.__tablename__: int(connection.scalar(select(func.max(model.id))) or 0)
            for model in which
            if hasattr(model, "id")
        }
        for model, are_ours in which.items():
            columns = model.__table__.columns
            values = [_copied(column, numbers.c.n, steps, mark, database).label(column.name) for column in columns]
            copies = select(*values).select_from(model).join(numbers, true()).where(are_ours)
            connection.execute(insert(model).from_select([column.name for column in columns], copies))
        if not database.is_sqlite:
            for table in steps:
                connection.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")
                )
            connection.execute(text("ANALYZE"))  # as its autovacuum would, some time after so many rows
    with closing(database.driver_connection()) as driver:
        log_of(driver, is_sqlite=database.is_sqlite).install()


def _copied(
    column: Column[Any], number: ColumnElement[int], steps: dict[str, int], mark: str, database: Database
) -> Any:
    """Say what stands in a column of a row's copy of a number; ids go on in steps of a table, names get a mark."""
    if column.name == "id":
        return column + number * steps[column.table.name]
    for key in column.foreign_keys:
        return column + number * steps.get(key.column.table.name, 0)
    if column.name == "public_id" or column is Workspace.__table__.c.slug:
        return column.concat(mark).concat(cast(number, String))
    if column.name == "digest":
        if database.is_sqlite:
            return func.randomblob(32)
        return func.sha256(func.convert_to(ApiKey.public_id.concat(mark).concat(cast(number, String)), "UTF8"))
    return column


def replaceable(database: Database) -> Row[int, int, int]:
    """Find a member and an app that `churn` may make keys for."""
    with database.reading() as session:
        found = select(Member.id.label("member_id"), App.id.label("app_id"), Member.workspace_id)
        return session.execute(found.join(App, App.workspace_id == Member.workspace_id).limit(1)).one()


def churn(database: Database, keyring: Keyring, who: Row[int, int, int], number: int) -> None:
    """Store a key and revoke it, in two transactions, and nothing of what the services would do besides."""
    _, row = _key(keyring, datetime.now(UTC), 1_000 + number)
    row |= {"workspace_id": who.workspace_id, "member_id": who.member_id, "created_by_id": who.member_id}
    with database.transaction() as session:
        key_id = session.scalars(insert(ApiKey).returning(ApiKey.id), [row]).one()
        session.connection().execute(insert(KeyScope), {"key_id": key_id, "app_id": who.app_id, "action": "read"})
    with database.transaction() as session:
        change = update(ApiKey).where(ApiKey.id == key_id).values(revoked_at=datetime.now(UTC))
        session.connection().execute(change)


def _add_workspace(session: Session, keyring: Keyring, count: int) -> list[PlainKey]:
    now = datetime.now(UTC)
    tag = new_id("bench")[-12:].lower()
    workspace = {"public_id": new_id("ws"), "slug": f"bench-{tag}", "name": f"Bench {tag}", "created_at": now}
    workspace_id = session.scalars(insert(Workspace).returning(Workspace.id), [workspace]).one()
    # A workspace whose log is empty has lost it.
    audit.record(session, operator(), Event.WORKSPACE_CREATED, workspace_id=workspace_id, target_name=f"Bench {tag}")
    here = {"workspace_id": workspace_id, "created_at": now}
    solutions = [here | {"public_id": new_id("sol"), "slug": slug, "name": slug.title()} for slug, _ in _APPS]
    solution_ids = _add(session, Solution, solutions)
    apps = [
        here
        | {"public_id": new_id("app"), "solution_id": solution_id, "slug": slug, "name": slug.title(), "schema": {}}
        for solution_id, (_, slugs) in zip(solution_ids, _APPS, strict=True)
        for slug in slugs
    ]
    app_ids = _add(session, App, apps)
    members = [
        here | {"public_id": new_id("mem"), "name": f"Integration {n}", "role": "member"} for n in range(MEMBERS)
    ]
    member_ids = _add(session, Member, members)
    session.connection().execute(
        insert(Access),
        [
            {"member_id": member_id, "solution_id": solution_id, "level": random.choice(("read", "full"))}
            for member_id in member_ids
            for solution_id in solution_ids
        ],
    )
    plain, keys = [], []
    for n in range(count):
        key, row = _key(keyring, now, n)
        plain.append(key)
        keys.append(row | {"workspace_id": workspace_id, "member_id": member_ids[n % MEMBERS]})
    key_ids = _add(session, ApiKey, [key | {"created_by_id": key["member_id"]} for key in keys])
    session.connection().execute(insert(KeyScope), [scope for key_id in key_ids for scope in _scopes(key_id, app_ids)])
    return plain


def _add(session: Session, model: Any, rows: list[dict[str, Any]]) -> list[int]:
    """Insert rows of one new workspace and read their ids: several times faster than asking for them row by row."""
    connection = session.connection()
    connection.execute(insert(model), rows)
    ids = select(model.id).where(model.workspace_id == rows[0]["workspace_id"]).order_by(model.id)
    return list(connection.scalars(ids))


def _key(keyring: Keyring, now: datetime, n: int) -> tuple[PlainKey, dict[str, Any]]:
    environment = random.choice(list(Environment))
    plain, digest, pepper_id = keyring.mint(environment)
    lifetime = random.choice((timedelta(days=30), timedelta(days=90), timedelta(days=365), None))
    return plain, {
        "public_id": new_id("key"),
        "environment": environment,
        "name": f"Key {n}",
        "name_folded": f"key {n}",
        "digest": digest,
        "pepper_id": pepper_id,
        "last_four": plain.last_four,
        "created_at": now,
        "expires_at": now + lifetime if lifetime else None,
        "rate_per_minute": 60_000,  # so that a few keys can be asked with as fast as many
        "rate_per_second": 6_000,
    }


def _scopes(key_id: int, app_ids: list[int]) -> list[dict[str, Any]]:
    chosen = random.sample([(app, action) for app in app_ids for action in ("read", "write")], random.randint(1, 4))
    return [{"key_id": key_id, "app_id": app, "action": action} for app, action in chosen]


@click.command()
@click.argument("count", type=click.IntRange(1))
@click.option("--keys", "keys_file", required=True, type=click.Path(dir_okay=False, writable=True, path_type=Path))
def main(count: int, keys_file: Path) -> None:
    """Add COUNT keys and write the texts of 5,000 of them to a file."""
    if not keys_file.parent.is_dir():
        raise click.BadParameter(f"There is no folder {keys_file.parent}.", param_hint="--keys")
    settings = Settings.from_environ(os.environ, Path(os.environ.get("PORTAL_INSTANCE") or ROOT / "instance"))
    database = Database(settings.database_url)
    try:
        stored_keys(database)
    except DatabaseError as error:
        advice = "If it is new, run: .venv/bin/flask migrate"
        raise click.ClickException(f"The database cannot be used: {error.orig}. {advice}") from None
    stored = add_keys(database, settings.keyring, count)
    every = max(1, count // WRITTEN)
    with click.progressbar(stored, length=count, label="adding keys", file=sys.stderr) as progress:
        texts = [key.reveal() for n, key in enumerate(progress) if n % every == 0][:WRITTEN]
    keys_file.touch(mode=0o600)
    keys_file.write_text("".join(f"{text}\n" for text in texts))
    database.close()
    click.echo(f"{count} keys added; the texts of {len(texts)} are in {keys_file}.")


if __name__ == "__main__":
    main()
