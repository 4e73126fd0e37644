"""The demo: two small companies with people, solutions, apps and records (contract, section 6). Local use only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.rules.access import AccessLevel, Environment, Role
from portal.rules.credentials import hash_password, new_id
from portal.rules.errors import Conflict
from portal.rules.schemas import Schema
from portal.services import api_members, members, records, workspaces
from portal.services.actor import Actor, Means, operator
from portal.services.audit import Event
from portal.services.records import Place
from portal.store.models import Account, Member, Solution, Workspace

PASSWORD = "correct horse battery staple"  # noqa: S105 - printed at every start of a demo
SIGN_INS = (
    ("ana@acme.test", "administrator of Acme"),
    ("lea@acme.test", "team lead: manages Operations, reads Sales"),
    ("max@acme.test", "member: full Sales, reads Operations"),
    ("rio@acme.test", "member: reads Operations only"),
    ("zoe@globex.test", "administrator of Globex"),
)

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _App:
    slug: str
    name: str
    description: str
    schema: Fields
    make: Callable[[], Iterator[Fields]]
    live: int
    test: int


def is_empty(session: Session) -> bool:
    """Say whether the database has no workspace and no account yet; who is only invited has none."""
    return not any(session.scalar(select(kind.id).limit(1)) for kind in (Workspace, Account))


def has_people(session: Session) -> bool:
    """Say whether the demo's people are there."""
    return bool(session.scalar(select(Account.id).where(Account.email == SIGN_INS[0][0])))


def seed(session: Session, step: Callable[[str], None]) -> None:
    """Fill an empty database; Conflict when it has any workspace or account. `step` is told what comes next."""
    if not is_empty(session):
        raise Conflict("The database has a workspace or accounts already. The demo only fills an empty one.")
    actor = operator("demo")
    password_hash = hash_password(PASSWORD)
    step("Acme")
    acme = workspaces.create(session, actor, "acme", "Acme")
    sales = _solution(session, actor, acme, "sales", "Sales", "Leads and the accounts they turn into", _SALES)
    operations = _solution(session, actor, acme, "operations", "Operations", "Who does what, and where", _OPERATIONS)
    person = _Hiring(session, actor, password_hash)
    person(acme, "Ana Ruiz", "ana@acme.test", Role.ADMIN)
    lea = person(acme, "Lea Okoro", "lea@acme.test", access={operations: AccessLevel.MANAGE, sales: AccessLevel.READ})
    person(acme, "Max Brandt", "max@acme.test", access={sales: AccessLevel.FULL, operations: AccessLevel.READ})
    person(acme, "Rio Tanaka", "rio@acme.test", access={operations: AccessLevel.READ})
    as_lea = replace(
        actor, means=Means.COMMAND, name=lea.name, public_id=lea.public_id, workspace_id=acme.id, member_id=lea.id
    )
    api_members.create(
        session,
        as_lea,
        name="Nightly sync",
        purpose="Copies tasks to the issue tracker every night",
        access={"operations": AccessLevel.READ},
    )
    step("Globex")
    globex = workspaces.create(session, actor, "globex", "Globex")
    _solution(session, actor, globex, "support", "Support", "Tickets from customers", _SUPPORT)
    person(globex, "Zoe Lindqvist", "zoe@globex.test", Role.ADMIN)


class _Hiring:
    """Makes people with a common password."""

    def __init__(self, session: Session, actor: Actor, password_hash: str) -> None:
        self._session, self._actor, self._password_hash = session, actor, password_hash

    def __call__(
        self,
        workspace: Workspace,
        name: str,
        email: str,
        role: Role = Role.MEMBER,
        access: dict[Solution, AccessLevel] | None = None,
    ) -> Member:
        session, at = self._session, self._actor.at
        account = Account(
            public_id=new_id("acc"), email=email, name=name, password_hash=self._password_hash, created_at=at
        )
        session.add(account)
        session.flush()
        member = Member(
            public_id=new_id("mem"),
            workspace_id=workspace.id,
            account_id=account.id,
            name=name,
            role=role,
            created_at=at,
        )
        session.add(member)
        session.flush()
        members.tell(session, self._actor, Event.MEMBER_JOINED, member, {"role": str(role)})
        levels = {solution.slug: level for solution, level in (access or {}).items()}
        members.set_levels(session, self._actor, member, levels, by_id=None)
        return member


def _solution(
    session: Session,
    actor: Actor,
    workspace: Workspace,
    slug: str,
    name: str,
    description: str,
    apps: tuple[_App, ...],
) -> Solution:
    solution = workspaces.add_solution(session, actor, workspace, slug, name, description)
    for app in apps:
        workspaces.add_app(session, actor, solution, app.slug, app.name, Schema.read(app.schema), app.description)
        for environment, count in ((Environment.LIVE, app.live), (Environment.TEST, app.test)):
            place = Place(workspace.id, app.slug, environment)
            for n, fields in zip(range(count), app.make(), strict=False):
                then = replace(actor, at=actor.at - timedelta(hours=7 * (count - n)), workspace_id=workspace.id)
                records.create(session, then, place, fields)
    return solution


def _text(longest: int = 120) -> Fields:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _schema(required: tuple[str, ...], **properties: Fields) -> Fields:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_COMPANIES = ("Northwind Traders", "Blue Yonder", "Fabrikam", "Lumen Works", "Tailspin Toys", "Contoso", "Alpine Ski")
_PEOPLE = ("Ines Moreau", "Jon Adeyemi", "Mia Fischer", "Ravi Patel", "Sofia Rossi", "Tom Becker", "Yuki Sato")


def _leads() -> Iterator[Fields]:
    stages = cycle(("new", "contacted", "qualified", "lost"))
    for company, person, stage in zip(cycle(_COMPANIES), cycle(_PEOPLE), stages, strict=False):
        yield {
            "name": person,
            "company": company,
            "email": f"{person.split()[0].lower()}@{company.split()[0].lower()}.test",
            "stage": stage,
        }


def _accounts() -> Iterator[Fields]:
    for n, company in enumerate(cycle(_COMPANIES)):
        yield {"name": company, "plan": ("starter", "team", "enterprise")[n % 3], "seats": 5 + 7 * (n % 9)}


_TASKS = (
    "Check the loading dock camera",
    "Order spare scanners",
    "Walk through the evacuation plan",
    "Renew the forklift inspection",
    "Label the cold room shelves",
    "Count safety vests",
)


def _tasks() -> Iterator[Fields]:
    for n, title in enumerate(cycle(_TASKS)):
        yield {
            "title": title,
            "assignee": _PEOPLE[n % 7],
            "status": ("open", "doing", "done")[n % 3],
            "priority": n % 3,
        }


def _reservations() -> Iterator[Fields]:
    for n, person in enumerate(cycle(_PEOPLE)):
        yield {"room": ("Aspen", "Birch", "Cedar")[n % 3], "guest": person, "nights": 1 + n % 4}


def _tickets() -> Iterator[Fields]:
    subjects = ("Invoice shows the old address", "Cannot reset two-step sign-in", "Export stops at 10,000 rows")
    for n, person in enumerate(cycle(_PEOPLE)):
        yield {"subject": subjects[n % 3], "customer": person, "open": n % 3 != 1}


_SALES = (
    _App(
        "leads",
        "Leads",
        "People who asked about us",
        _schema(
            ("name",),
            name=_text(),
            company=_text(),
            email={"type": "string", "maxLength": 254, "format": "email"},
            stage={"enum": ["new", "contacted", "qualified", "lost"]},
        ),
        _leads,
        live=24,
        test=5,
    ),
    _App(
        "accounts",
        "Accounts",
        "Companies that buy from us",
        _schema(
            ("name",),
            name=_text(),
            plan={"enum": ["starter", "team", "enterprise"]},
            seats={"type": "integer", "minimum": 1, "maximum": 100_000},
        ),
        _accounts,
        live=9,
        test=3,
    ),
)
_OPERATIONS = (
    _App(
        "tasks",
        "Tasks",
        "What is to be done",
        _schema(
            ("title",),
            title=_text(),
            assignee=_text(60),
            status={"enum": ["open", "doing", "done"]},
            priority={"type": "integer", "minimum": 0, "maximum": 5},
        ),
        _tasks,
        live=18,
        test=4,
    ),
    _App(
        "reservations",
        "Reservations",
        "Rooms and their guests",
        _schema(
            ("room", "guest"),
            room=_text(60),
            guest=_text(),
            nights={"type": "integer", "minimum": 1, "maximum": 60},
        ),
        _reservations,
        live=12,
        test=3,
    ),
)
_SUPPORT = (
    _App(
        "tickets",
        "Tickets",
        "What customers wrote to us",
        _schema(("subject",), subject=_text(), customer=_text(), open={"type": "boolean"}),
        _tickets,
        live=8,
        test=3,
    ),
)
