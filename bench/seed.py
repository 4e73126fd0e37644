"""Add stored keys of a realistic shape: `.venv/bin/python bench/seed.py N --keys FILE`.

Fills the migrated database of PORTAL_DATABASE_URL (default: the one in instance/) with workspaces of 25 members with
four keys each, also under a running server, and writes the texts of 5,000 of the keys (or N) to FILE, one a line.
"""

import os
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from portal.rules.access import Environment  # noqa: E402
from portal.rules.credentials import Keyring, PlainKey, new_id  # noqa: E402
from portal.settings import Settings  # noqa: E402
from portal.store.database import Database  # noqa: E402
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


def _add_workspace(session: Session, keyring: Keyring, count: int) -> list[PlainKey]:
    now = datetime.now(UTC)
    tag = new_id("bench")[-12:].lower()
    workspace = {"public_id": new_id("ws"), "slug": f"bench-{tag}", "name": f"Bench {tag}", "created_at": now}
    workspace_id = session.scalars(insert(Workspace).returning(Workspace.id), [workspace]).one()
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
    }


def _scopes(key_id: int, app_ids: list[int]) -> list[dict[str, Any]]:
    chosen = random.sample([(app, action) for app in app_ids for action in ("read", "write")], random.randint(1, 4))
    return [{"key_id": key_id, "app_id": app, "action": action} for app, action in chosen]


@click.command()
@click.argument("count", type=click.IntRange(1))
@click.option("--keys", "keys_file", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(count: int, keys_file: Path) -> None:
    """Add COUNT keys and write the texts of 5,000 of them to a file."""
    settings = Settings.from_environ(os.environ, Path(os.environ.get("PORTAL_INSTANCE") or ROOT / "instance"))
    database = Database(settings.database_url)
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
