"""Workspaces, their solutions and apps: made by an operator or an administrator."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from time import thread_time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, contains_eager

from portal.rules import text
from portal.rules.access import SLUG
from portal.rules.credentials import new_id
from portal.rules.errors import Attempt, Conflict, Forbidden, Invalid, NotFound, PortalError
from portal.rules.schemas import Schema
from portal.services import audit, members
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.members import Seat, SeatWorkspace
from portal.store.database import IntegrityError
from portal.store.models import App, Record, Solution, Workspace

_NAMED_MISFITS = 3
_PATIENCE = 3  # seconds of this thread's time for all records of an app: others who write wait for five at most
_ANY_OBJECT = {"type": "object"}


def get(session: Session, slug: str) -> Workspace:
    """Find a workspace by its slug; NotFound."""
    workspace = session.scalar(select(Workspace).where(Workspace.slug == slug))
    if workspace is None:
        raise NotFound(f"There is no workspace {slug}.")
    return workspace


def list_all(session: Session) -> list[Workspace]:
    """List all workspaces, for an operator."""
    return list(session.scalars(select(Workspace).order_by(Workspace.slug)))


def create(session: Session, actor: Actor, slug: str, name: str) -> Workspace:
    """Make an empty workspace; Conflict when the slug is taken."""
    workspace = Workspace(public_id=new_id("ws"), slug=_slug(slug), name=_checked(name)[0], created_at=actor.at)
    _add(session, workspace, Conflict(f"There is a workspace {slug} already."))
    audit.record(
        session,
        actor,
        Event.WORKSPACE_CREATED,
        workspace_id=workspace.id,
        target_id=workspace.public_id,
        target_name=workspace.name,
    )
    return workspace


def add_solution(
    session: Session,
    actor: Actor,
    workspace: Workspace | SeatWorkspace,
    slug: str,
    name: str,
    description: str = "",
    *,
    is_external: bool = False,
) -> Solution:
    """Add a solution to a workspace; Invalid for a name that cannot be, or a slug that is taken there.

    The apps of an external one are for scopes only: their data lives in somebody's own product, which asks about keys.
    """
    name, description = _checked(name, description)
    solution = Solution(
        public_id=new_id("sol"),
        workspace_id=workspace.id,
        slug=_slug(slug),
        name=name,
        description=description,
        is_external=is_external,
        created_at=actor.at,
    )
    taken = f"{workspace.name} has a solution {slug} already. Choose another short name."
    _add(session, solution, Invalid({"slug": taken}))
    audit.record(
        session,
        actor,
        Event.SOLUTION_ADDED,
        workspace_id=workspace.id,
        target_id=solution.public_id,
        target_name=solution.name,
        details={"is_external": is_external},
    )
    return solution


def get_solution(session: Session, workspace: Workspace | SeatWorkspace, slug: str, *, lock: bool = False) -> Solution:
    """Find a solution of a workspace; NotFound."""
    statement = select(Solution).where(Solution.workspace_id == workspace.id, Solution.slug == slug)
    solution = session.scalar(statement.with_for_update(key_share=True) if lock else statement)
    if solution is None:
        raise NotFound(f"{workspace.name} has no solution {slug}.")
    return solution


def reachable(session: Session, workspace_id: int, slugs: Iterable[str]) -> list[tuple[Solution, list[App]]]:
    """List the solutions that hold these apps, each with those of them it holds."""
    statement = (
        select(App)
        .join(App.solution)
        .options(contains_eager(App.solution))
        .where(App.workspace_id == workspace_id, App.slug.in_(list(slugs)))
        .order_by(Solution.name, Solution.id, App.name, App.id)
    )
    found: dict[Solution, list[App]] = {}
    for app in session.scalars(statement):
        found.setdefault(app.solution, []).append(app)
    return list(found.items())


def add_app(
    session: Session,
    actor: Actor,
    solution: Solution,
    slug: str,
    name: str,
    schema: Schema | None,
    description: str = "",
) -> App:
    """Add an app with the JSON Schema of its records; Invalid for a slug that is taken in the workspace.

    An external solution's needs none; should its records ever be kept here, they may then be any objects.
    """
    name, description = _checked(name, description)
    app = App(
        public_id=new_id("app"),
        workspace_id=solution.workspace_id,
        solution_id=solution.id,
        slug=_slug(slug),
        name=name,
        description=description,
        schema=_given(schema, _ANY_OBJECT if solution.is_external else None),
        created_at=actor.at,
    )
    taken = f"The workspace has an app {slug} already. Choose another short name."
    _add(session, app, Invalid({"slug": taken}))
    audit.record(
        session,
        actor,
        Event.APP_ADDED,
        workspace_id=solution.workspace_id,
        target_id=app.public_id,
        target_name=app.name,
    )
    return app


def version_of(row: Solution | App) -> str:
    """Write down what a form shows of a solution or an app, so that its answer can be told from a stale one."""
    more = row.is_external if isinstance(row, Solution) else row.schema
    return hashlib.sha256(json.dumps([row.name, row.description, more]).encode()).hexdigest()


def edit_solution(
    session: Session,
    actor: Actor,
    slug: str,
    name: str,
    description: str,
    *,
    is_external: bool = False,
    was: str | None = None,
) -> Solution:
    """Rename and describe a solution; its slug stays, for it stands in addresses.

    `was` is what the form showed (`version_of`), Conflict if that is old. Raises Invalid when it is to become external
    while it holds records.
    """
    seat = admin_seat(session, actor, Event.SOLUTION_CHANGED)
    solution = get_solution(session, seat.workspace, slug, lock=True)
    _check_shown(solution, was)
    before = {"name": solution.name, "description": solution.description, "is_external": solution.is_external}
    solution.name, solution.description = _checked(name, description)
    if is_external and not solution.is_external:
        _check_empty(session, solution)
    solution.is_external = is_external
    after = {"name": solution.name, "description": solution.description, "is_external": is_external}
    audit.record(
        session,
        actor,
        Event.SOLUTION_CHANGED,
        target_id=solution.public_id,
        target_name=solution.name,
        details={"before": before, "after": after},
    )
    return solution


def edit_app(
    session: Session,
    actor: Actor,
    slug: str,
    name: str,
    description: str,
    schema: Schema | None,
    *,
    was: str | None = None,
) -> App:
    """Rename and describe an app and change its schema; Invalid when records that stand would not fit it.

    `was` is what the form showed (`version_of`), Conflict if that is old. Without a schema an external solution's app
    keeps the one it has.
    """
    seat = admin_seat(session, actor, Event.APP_CHANGED)
    app = session.scalar(select(App).where(App.workspace_id == seat.workspace.id, App.slug == slug).with_for_update())
    if app is None:
        raise NotFound("There is no such app.")
    _check_shown(app, was)
    before = {"name": app.name, "description": app.description}
    app.name, app.description = _checked(name, description)
    given = _given(schema, app.schema if solution_of(session, app).is_external else None)
    is_new = given != app.schema
    if is_new and schema is not None:
        _check_records(session, app, schema)
        app.schema = given
    after = {"name": app.name, "description": app.description, "new_schema": is_new}
    audit.record(
        session,
        actor,
        Event.APP_CHANGED,
        target_id=app.public_id,
        target_name=app.name,
        details={"before": before, "after": after},
    )
    return app


def solution_of(session: Session, app: App) -> Solution:
    """Give the solution that holds an app."""
    return session.get_one(Solution, app.solution_id)


def admin_seat(session: Session, actor: Actor, event: Event) -> Seat:
    """Give the actor's seat, held until the transaction ends; Forbidden to all but administrators."""
    seat = members.seat_of(session, actor, lock=True)
    if not seat.is_admin:
        raise Forbidden("Only administrators set up the workspace.", attempt=Attempt(event))
    return seat


def _check_shown(row: Solution | App, was: str | None) -> None:
    if was is not None and was != version_of(row):
        raise Conflict(f"Somebody changed “{row.name}” a moment ago. Nothing was saved. Look at it again.")


def _check_empty(session: Session, solution: Solution) -> None:
    """Hold a solution's apps, so that `records.create` waits, and refuse it while they hold records."""
    apps = session.scalars(select(App.id).where(App.solution_id == solution.id).order_by(App.id).with_for_update())
    held = select(func.count()).select_from(Record).where(Record.app_id.in_(apps.all()))
    if count := session.scalar(held):
        message = f"{solution.name} holds {count:,} {'record' if count == 1 else 'records'} here. Empty it first."
        raise Invalid({"is_external": message})


def _given(schema: Schema | None, without: dict[str, Any] | None) -> dict[str, Any]:
    if schema is not None:
        return schema.given
    if without is None:
        raise Invalid({"schema": "Enter the JSON Schema of a record."})
    return without


def _check_records(session: Session, app: App, schema: Schema) -> None:
    """Hold all records of an app, of both environments, to a schema."""
    misfits: Counter[str] = Counter()
    named: list[str] = []
    end = thread_time() + _PATIENCE
    rows = select(Record.public_id, Record.environment, Record.fields).where(Record.app_id == app.id)
    with session.execute(rows.execution_options(yield_per=500)) as found:  # closed also when it is left early
        for checked, (record_id, environment, fields) in enumerate(found):
            if thread_time() > end:
                message = (
                    f"Only {checked:,} records could be held to this schema in {_PATIENCE} seconds, and there are "
                    "more. Simplify it, or delete records first."
                )
                raise Invalid({"schema": message})
            for problem in schema.problems(fields, most=1):
                misfits["live" if environment == "live" else "sandbox"] += 1
                if len(named) < _NAMED_MISFITS:
                    named.append(f"{record_id} ({problem['path']}: {problem['message'][:80]})")
    if misfits:
        counts = " and ".join(f"{count:,} {environment}" for environment, count in misfits.items())
        counts += " record" if misfits.total() == 1 else " records"
        message = f"{counts} would not fit this schema, such as {'; '.join(named)}. Change what does not fit first."
        raise Invalid({"schema": message})


def _add(session: Session, row: Workspace | Solution | App, taken: PortalError) -> None:
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        raise taken from None


def _slug(slug: str) -> str:
    if not SLUG.fullmatch(slug):
        message = "A short name is 2 to 40 lower-case letters, digits and hyphens, and begins with a letter."
        raise Invalid({"slug": message})
    return slug


def _checked(name: str, description: str = "") -> tuple[str, str]:
    problems: dict[str, str] = {}
    clean_name = text.read_line(problems, "name", name, 1, 60, "by which people know it")
    clean_description = text.read_line(problems, "description", description, 0, 140, "that tells what it holds")
    if problems:
        raise Invalid(problems)
    return clean_name, clean_description
