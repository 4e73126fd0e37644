"""Records of apps, live and sandbox apart: what integrations read and write, and people look at."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, delete, func, insert, literal, select
from sqlalchemy.orm import Session

from portal.rules.access import AccessLevel, Environment
from portal.rules.credentials import new_id
from portal.rules.errors import Attempt, DoesNotFit, Forbidden, NotFound, PreconditionFailed, TooLarge
from portal.rules.schemas import Schema
from portal.services import audit, members
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.store.database import Moment
from portal.store.models import App, Record, Solution

MAX_RECORD = 1024 * 1024  # bytes of JSON as it is given back, where a number may be longer than it was sent


@dataclass(frozen=True, slots=True)
class Place:
    """Where records are: an app of a workspace, in one environment."""

    workspace_id: int
    app: str  # slug
    environment: str


def list_for(session: Session, place: Place, *, limit: int, offset: int) -> tuple[list[Record], int]:
    """List records, newest first, and count them all; NotFound where they are kept by another product."""
    here = _in(place)
    total = session.scalar(select(func.count()).select_from(Record).join(App, App.id == Record.app_id).where(*here))
    if not total:
        _check_kept_here(session, get_app(session, place.workspace_id, place.app))
    page = select(Record).join(App, App.id == Record.app_id).where(*here).order_by(Record.id.desc())
    return list(session.scalars(page.limit(limit).offset(offset))), total or 0


def get(session: Session, place: Place, record_id: str, *, lock: bool = False) -> Record:
    """Find a record; NotFound when it is not in this app and environment."""
    statement = select(Record).join(App, App.id == Record.app_id).where(*_in(place), Record.public_id == record_id)
    record = session.scalar(statement.with_for_update(of=Record) if lock else statement)
    if record is None:
        raise NotFound("There is no such record.")
    return record


def create(session: Session, actor: Actor, place: Place, fields: dict[str, Any]) -> Record:
    """Add a record; TooLarge, DoesNotFit by the app's schema, NotFound where another product keeps its records."""
    app = get_app(session, place.workspace_id, place.app, hold=True)
    _check_kept_here(session, app)
    _check(app, fields)
    record = Record(
        public_id=new_id("rec"),
        app_id=app.id,
        environment=place.environment,
        fields=fields,
        version=1,
        created_at=actor.at,
        updated_at=actor.at,
    )
    session.add(record)
    session.flush()
    _tell(session, actor, Event.RECORD_CREATED, place, record)
    return record


def change(
    session: Session,
    actor: Actor,
    place: Place,
    record_id: str,
    fields: dict[str, Any],
    *,
    if_match: set[str] | None,
    may_read: bool,
) -> Record:
    """Merge top-level fields into a record, held to what `create` is; PreconditionFailed for another ETag.

    Who may not read the record is told nothing that stands in it when it does not fit.
    """
    app = get_app(session, place.workspace_id, place.app, hold=True)  # before its record, as `fill_sandbox` does
    record = get(session, place, record_id, lock=True)
    check_match(record, if_match)
    merged = {**record.fields, **fields}
    _check(app, merged, sent=None if may_read else fields)
    record.fields = merged
    record.version += 1
    record.updated_at = max(actor.at, record.updated_at)
    _tell(session, actor, Event.RECORD_CHANGED, place, record)
    session.flush()
    return record


def remove(session: Session, actor: Actor, place: Place, record_id: str, *, if_match: set[str] | None) -> None:
    """Delete a record for good; PreconditionFailed when `if_match` does not hold its ETag."""
    record = get(session, place, record_id, lock=True)
    check_match(record, if_match)
    session.delete(record)
    _tell(session, actor, Event.RECORD_DELETED, place, record)


def etag(record: Record) -> str:
    """Give a record's strong entity tag (RFC 9110, section 8.8.3)."""
    return f'"{record.version}"'


def check_match(record: Record, if_match: set[str] | None) -> None:
    """Raise PreconditionFailed unless the tags a client sent (None: it sent none) hold the record's own or `*`."""
    if if_match is not None and not if_match & {"*", etag(record)}:
        raise PreconditionFailed("The record has changed since you read it. Read it again, then repeat your change.")


def get_app(session: Session, workspace_id: int, slug: str, *, hold: bool = False) -> App:
    """Find an app of a workspace; NotFound.

    With `hold` its schema, and whether its solution is external, stay as they are until the transaction ends.
    """
    statement = select(App).where(App.workspace_id == workspace_id, App.slug == slug)
    app = session.scalar(statement.with_for_update(read=True, key_share=True) if hold else statement)
    if app is None:
        raise NotFound("There is no such app.")
    return app


def _check_kept_here(session: Session, app: App) -> None:
    if session.scalar(select(Solution.is_external).where(Solution.id == app.solution_id)):
        raise NotFound(f"The records of {app.name} are kept by another product. Ask that product for them.")


def counts(session: Session, workspace_id: int) -> dict[tuple[int, str], int]:
    """Count the records of a workspace, by the app's number and environment."""
    rows = session.execute(
        select(Record.app_id, Record.environment, func.count())
        .join(App, App.id == Record.app_id)
        .where(App.workspace_id == workspace_id)
        .group_by(Record.app_id, Record.environment)
    )
    return {(app_id, environment): int(count) for app_id, environment, count in rows}


def _in(place: Place) -> tuple[Any, ...]:
    return (
        App.workspace_id == place.workspace_id,
        App.slug == place.app,
        Record.environment == place.environment,
    )


def _tell(session: Session, actor: Actor, event: Event, place: Place, record: Record) -> None:
    details = {"app": place.app, "environment": place.environment}
    audit.record(session, actor, event, target_id=record.public_id, target_name=place.app, details=details)


def _check(app: App, fields: dict[str, Any], *, sent: dict[str, Any] | None = None) -> None:
    """Raise unless a record fits its app; what is wrong is told as far as it is so of what was `sent` alone."""
    if len(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_RECORD:
        told = "counted as it is given back: without spaces, 1e15 as 1000000000000000.0"
        raise TooLarge(f"A record may hold at most {MAX_RECORD:,} bytes of JSON, {told}.")
    schema = Schema.read(app.schema)
    if problems := schema.problems(fields):
        if sent is not None:
            of_sent = schema.problems(sent)
            problems = [each for each in problems if each in of_sent] or [_WITH_THE_REST]
        raise DoesNotFit(problems)


_WITH_THE_REST = {"path": "$", "message": "With what is stored already, the record does not fit the app’s schema."}


# --- The sandbox ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How many records an app has in each environment."""

    app: App
    live: int
    test: int


def sandbox_of(session: Session, actor: Actor, slug: str) -> Sandbox:
    """Look at an app's sandbox before filling it; Forbidden to whoever does not manage its solution."""
    return _counted(session, _app_to_fill(session, actor, slug))


def _app_to_fill(session: Session, actor: Actor, slug: str) -> App:
    seat = members.seat_of(session, actor)
    app = get_app(session, seat.workspace.id, slug)
    if seat.level_in(app.solution_id) is AccessLevel.NONE:
        raise NotFound("There is no such app.")
    _check_kept_here(session, app)
    if seat.level_in(app.solution_id) is not AccessLevel.MANAGE:
        attempt = Attempt(Event.SANDBOX_FILLED, app.public_id, app.name)
        raise Forbidden(f"Only those who manage this solution can fill the sandbox of {app.name}.", attempt=attempt)
    return app


def _counted(session: Session, app: App) -> Sandbox:
    counts = session.execute(
        select(Record.environment, func.count()).where(Record.app_id == app.id).group_by(Record.environment)
    )
    found = {environment: int(count) for environment, count in counts}
    return Sandbox(app, found.get(Environment.LIVE, 0), found.get(Environment.TEST, 0))


def fill_sandbox(session: Session, actor: Actor, slug: str) -> Sandbox:
    """Replace an app's sandbox records by copies of its live ones; nothing ever flows back."""
    app = _app_to_fill(session, actor, slug)
    session.execute(select(App.id).where(App.id == app.id).with_for_update())  # two at once would copy twice
    removed = _counted(session, app).test
    session.execute(delete(Record).where(Record.app_id == app.id, Record.environment == Environment.TEST))
    # In the database: an app may hold more records than a request should carry through Python.
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    name = func.hex(func.randomblob(10)) if is_sqlite else func.replace(cast(func.gen_random_uuid(), String), "-", "")
    copies = (
        select(
            literal("rec_") + name,
            Record.app_id,
            literal(str(Environment.TEST)),
            Record.fields,
            literal(1),
            literal(actor.at, Moment()),
            literal(actor.at, Moment()),
        )
        .where(Record.app_id == app.id, Record.environment == Environment.LIVE)
        .order_by(Record.id)
    )
    columns = ["public_id", "app_id", "environment", "fields", "version", "created_at", "updated_at"]
    session.execute(insert(Record).from_select(columns, copies))
    filled = _counted(session, app)
    audit.record(
        session,
        actor,
        Event.SANDBOX_FILLED,
        target_id=app.public_id,
        target_name=app.name,
        details={"removed": removed, "copied": filled.test},
    )
    return filled
