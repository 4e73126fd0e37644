"""A database as one file, the same for SQLite and PostgreSQL, so that it also moves from one to the other.

A zip: a file of JSON Lines for each table (a list of column names, then a list of values for each row, by primary key)
and, last, `backup.json` with what it is and the checksum of each table. It is read in one transaction that sees one
moment, and nothing is ever held in memory as a whole. What signs somebody in by itself is left out: sessions, reset
links, mails that wait to be sent (they may hold a link).
"""

import base64
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Integer, LargeBinary, Table, delete, func, insert, select, text, update

from portal.store.database import TROUBLE, Base, Database, Moment, Session
from portal.store.migrate import migration_of, newest
from portal.store.models import (
    AuditHead,
    OutgoingMail,
    PasswordReset,
    PepperProof,
    SignInFailure,
    UsageBatch,
    UserSession,
)

_FORMAT = 1
_MANIFEST = "backup.json"
_LEFT_OUT = frozenset(
    model.__tablename__ for model in (OutgoingMail, PasswordReset, SignInFailure, UsageBatch, UserSession)
)
# What a migration and a start make: the end of an audit log without entries, and by what the peppers are recognised.
_OWN = frozenset(model.__tablename__ for model in (AuditHead, PepperProof))
_AT_ONCE = 1_000  # rows
_LONGEST_LINE = 64 * 1024 * 1024  # bytes
_LONGEST_MANIFEST = 1024 * 1024  # bytes, so that a small file cannot unpack to more than there is memory


class BadBackup(Exception):
    """A file that cannot be restored; the message says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    made_at: datetime
    migration: str
    tables: dict[str, dict[str, Any]]  # by name: how many rows, and the SHA-256 of its file

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(table["rows"] for table in self.tables.values())


def tables() -> list[Table]:
    """List the tables that a backup holds, those that others refer to first."""
    return [table for table in Base.metadata.sorted_tables if table.name not in _LEFT_OUT]


def write(database: Database, path: Path) -> Manifest:
    """Write a backup to a new file that nobody else may read. Raises FileExistsError; on errors leaves no file."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
                manifest = _write_all(database, archive)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise
    return manifest


def _write_all(database: Database, archive: zipfile.ZipFile) -> Manifest:
    options: dict[str, Any] = {} if database.is_sqlite else {"isolation_level": "REPEATABLE READ"}
    with database.engine.connect().execution_options(**options) as connection:
        if not database.is_sqlite:
            connection.execute(text("SET TRANSACTION READ ONLY"))
        database.take_time(connection)
        made_at = datetime.now(UTC)
        migration = migration_of(connection)
        told = {}
        for table in tables():
            with archive.open(f"{table.name}.jsonl", "w", force_zip64=True) as file:
                told[table.name] = _write_table(connection, table, file)
    manifest = {"format": _FORMAT, "madeAt": made_at.isoformat(), "migration": migration, "tables": told}
    archive.writestr(_MANIFEST, json.dumps(manifest, indent=2))
    return Manifest(made_at, migration, told)


def _write_table(connection: Connection, table: Table, file: IO[bytes]) -> dict[str, Any]:
    checksum, count = hashlib.sha256(), 0

    def put(values: list[Any]) -> None:
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        checksum.update(line)
        file.write(line)

    put([column.name for column in table.columns])
    rows = connection.execute(select(table).order_by(*table.primary_key).execution_options(yield_per=_AT_ONCE))
    for row in rows:
        put([_to_json(value) for value in row])
        count += 1
    return {"rows": count, "sha256": checksum.hexdigest()}


def _to_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is being read."""

    manifest: Manifest
    archive: zipfile.ZipFile

    def load(self, session: Session) -> None:
        """Put all rows into the tables, which must be empty. Raises BadBackup for what was changed or cut off."""
        connection = session.connection()
        is_sqlite = connection.dialect.name == "sqlite"
        if is_sqlite:
            connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        for table in tables():
            if table.name in _OWN:
                connection.execute(delete(table))
        for table in tables():
            try:
                self._load_table(connection, table)
            except TROUBLE:
                raise
            except Exception as error:  # whatever a file can hold that nobody thought of
                raise BadBackup(f"{table.name} in the backup is damaged ({error}).") from error
            if not is_sqlite and isinstance(table.c[table.primary_key.columns.keys()[0]].type, Integer):
                _go_on_counting(connection, table)

    def _load_table(self, connection: Connection, table: Table) -> None:
        told = self.manifest.tables[table.name]
        checksum, count = hashlib.sha256(), 0
        own = [column.name for column in table.columns if any(key.column.table is table for key in column.foreign_keys)]
        later: list[dict[str, Any]] = []  # references to rows of the same table that come only afterwards
        with self.archive.open(f"{table.name}.jsonl") as file:
            head = _line(file, checksum)
            if sorted(head or []) != sorted(column.name for column in table.columns):
                raise ValueError("its columns are not those of this table")
            read = [_reader(table, name) for name in head or []]
            batch: list[dict[str, Any]] = []
            while (values := _line(file, checksum)) is not None:
                row = {name: one(value) for (name, one), value in zip(read, values, strict=True)}
                for name in own:
                    if row[name] is not None and row[name] >= row["id"]:
                        later.append({"pk": row["id"], "column": name, "value": row[name]})
                        row[name] = None
                batch.append(row)
                count += 1
                if len(batch) == _AT_ONCE:
                    connection.execute(insert(table), batch)
                    batch = []
            if batch:
                connection.execute(insert(table), batch)
        for each in later:
            where = table.c.id == each["pk"]
            connection.execute(update(table).where(where).values({each["column"]: each["value"]}))
        if (count, checksum.hexdigest()) != (told["rows"], told["sha256"]):
            raise ValueError("its checksum does not fit")


@contextmanager
def read(path: Path) -> Iterator[Backup]:
    """Open a backup. Raises BadBackup for what is none, or none that this code can restore."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadBackup(f"{path} cannot be read as a backup ({error}).") from error
    with archive:
        try:
            written = _read_manifest(archive)
            told = {
                name: {"rows": int(each["rows"]), "sha256": each["sha256"]} for name, each in written["tables"].items()
            }
            manifest = Manifest(datetime.fromisoformat(written["madeAt"]).astimezone(UTC), written["migration"], told)
            good = written["format"] == _FORMAT and set(told) == {table.name for table in tables()}
        except Exception as error:  # whatever a file can hold that nobody thought of
            raise BadBackup(f"{path} is no backup, or was cut off ({error}).") from error
        if manifest.migration != newest():
            raise BadBackup(
                f"The backup is of migration {manifest.migration!r:.40}, this code of {newest()}. Restore it with the"
                " code that made it, then upgrade."
            )
        if not good:
            raise BadBackup(f"{path} is a backup of another kind than this code reads.")
        yield Backup(manifest, archive)


def _read_manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    with archive.open(_MANIFEST) as file:
        text = file.read(_LONGEST_MANIFEST + 1)
    if len(text) > _LONGEST_MANIFEST:
        raise ValueError("it tells too much of itself")
    found: dict[str, Any] = json.loads(text)
    return found


def is_empty(session: Session) -> bool:
    """Say whether no table holds a row but those that are there before anybody writes one."""
    others = [table for table in tables() if table.name not in _OWN]
    return all(session.execute(select(table).limit(1)).first() is None for table in others)


def clear(session: Session) -> None:
    """Take all rows out of all tables, also of those that no backup holds."""
    every = Base.metadata.sorted_tables
    if session.connection().dialect.name == "sqlite":
        session.execute(text("PRAGMA defer_foreign_keys = ON"))
        for table in reversed(every):
            session.execute(table.delete())
    else:
        session.execute(text(f"TRUNCATE {', '.join(table.name for table in every)}"))


def _line(file: IO[bytes], checksum: Any) -> list[Any] | None:
    line = file.readline(_LONGEST_LINE)
    if not line:
        return None
    checksum.update(line)
    values = json.loads(line)
    if not isinstance(values, list):
        raise TypeError("a line is no list")
    return values


def _reader(table: Table, name: str) -> tuple[str, Any]:
    kind = table.columns[name].type
    if isinstance(kind, Moment):
        return name, lambda value: value and datetime.fromisoformat(value)
    if isinstance(kind, LargeBinary):
        return name, lambda value: value and base64.b64decode(value, validate=True)
    return name, lambda value: value


def _go_on_counting(connection: Connection, table: Table) -> None:
    """Let PostgreSQL number new rows after the restored ones; SQLite does by itself."""
    column = table.primary_key.columns.keys()[0]
    sequence = connection.scalar(select(func.pg_get_serial_sequence(table.name, column)))
    if sequence:
        highest = connection.scalar(select(func.max(table.c[column]))) or 0
        connection.execute(select(func.setval(sequence, highest + 1, False)))
