"""What usage costs on disk and to prune: `.venv/bin/python bench/prune.py` fills `usage` and takes an hour out of it.

Every key has one way of use in every hour of 62 days, the oldest of which the hourly pruning takes out. Prints bytes a
row with all indexes, and how long the pruning takes with the index on `hour` and without. On SQLite and PostgreSQL.
"""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from sqlalchemy import delete, text
from sqlalchemy.engine import make_url

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stage import Stage, stage  # noqa: E402
from portal.services.usage import KEEP_HOURS  # noqa: E402
from portal.store.models import ApiKey, Usage  # noqa: E402
from tests.databases import KINDS  # noqa: E402

_SERIES = {
    True: "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) SELECT i FROM n",
    False: "SELECT i FROM generate_series(0, {last}) AS n(i)",
}
_FILL = """
INSERT INTO usage (key_id, hour, outcome, scope, address, client, count, first_at, last_at)
SELECT key.i + {first}, {hour} - hour.i, 'accepted', 'tasks:read', '203.0.113.7', 'python-requests/2.32', 100,
       '2026-01-12 12:00:00.000000', '2026-01-12 12:59:59.000000'
FROM ({hours}) AS hour, ({keys}) AS key
"""


def size_of(here: Stage) -> int:
    """Give the bytes of the table with its indexes (of the whole file on SQLite)."""
    with here.database.engine.connect() as connection:
        if here.database.is_sqlite:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).all()
            return Path(str(make_url(here.url).database)).stat().st_size
        return int(connection.execute(text("SELECT pg_total_relation_size('usage')")).scalar_one())


def prune(here: Stage, before: int) -> tuple[float, int]:
    """Take out the hours before one; give the milliseconds and the rows."""
    start = time.perf_counter()
    with here.database.transaction() as session:
        done = session.connection().execute(delete(Usage).where(Usage.hour < before))
    return 1000 * (time.perf_counter() - start), done.rowcount


@click.command()
@click.option("--database", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Default: both.")
@click.option("--keys", default=300, help="That are used every hour.")
def main(kinds: Sequence[str], keys: int) -> None:
    """Print what usage costs."""
    for kind in kinds:
        with stage(kind) as here:
            is_sqlite = here.database.is_sqlite
            here.office.generate("lea", at=datetime.now(UTC), scopes=["tasks:read"])
            now = int(time.time()) // 3600
            with here.database.transaction() as session:
                first = session.query(ApiKey.id).order_by(ApiKey.id.desc()).limit(1).scalar()
                copy = [column.name for column in ApiKey.__table__.columns if column.name not in ("id", "replaces_id")]
                own = {"public_id", "digest", "name", "name_folded", "form_id"}
                values = ", ".join(name if name not in own else _made(name, is_sqlite) for name in copy)
                many = _SERIES[is_sqlite].format(last=keys - 1)
                columns = ", ".join(copy)
                more = f"INSERT INTO api_key ({columns}) SELECT {values} FROM api_key, ({many}) AS n WHERE id = {first}"
                session.execute(text(more))
            before = size_of(here)
            with here.database.transaction() as session:
                here.database.take_time(session.connection())
                hours = _SERIES[is_sqlite].format(last=KEEP_HOURS + 3)
                fill = _FILL.format(first=first + 1, hour=now, hours=hours, keys=many)
                session.execute(text(fill if is_sqlite else fill.replace("'2026-01-12", "timestamptz '2026-01-12")))
            if not is_sqlite:  # autovacuum does this by itself; on SQLite nobody does
                with here.database.transaction() as session:
                    session.execute(text("ANALYZE"))
            rows = keys * (KEEP_HOURS + 4)
            bytes_each = (size_of(here) - before) / rows
            oldest = now - KEEP_HOURS - 3
            with_index, taken = prune(here, oldest + 1)
            with here.database.transaction() as session:
                session.execute(text("DROP INDEX ix_usage_hour"))
            without, _ = prune(here, oldest + 2)
            click.echo(
                f"{kind}: {rows:,} rows, {bytes_each:.0f} bytes each with indexes; the oldest hour ({taken:,} rows) is"
                f" pruned in {with_index:.0f} ms, without the index on hour in {without:.0f} ms"
            )


def _made(name: str, is_sqlite: bool) -> str:
    if name == "digest":
        return "randomblob(32)" if is_sqlite else "sha256(i::text::bytea)"
    if name == "form_id":
        return "NULL"
    return f"{name} || 'x' || i"


if __name__ == "__main__":
    main()
