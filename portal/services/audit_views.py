"""The audit log as members see it: whose events, filters, pages by cursor, exports. What writes it: `audit`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, SelectBase, or_, select, union_all

from portal.rules.errors import Forbidden, NotFound
from portal.services import audit, audit_reading, key_views
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.audit_reading import ChainVerdict
from portal.services.members import Seat
from portal.store.database import Database, Session
from portal.store.models import Account, ApiKey, AuditEvent, AuditHead, Member, Solution

_NO_WORKSPACE = 0  # the chain of what belongs to no workspace: signing in and out
_CHUNK = 500  # rows that an export reads at once, each time in a session of its own
PEOPLE_OFFERED = 200
_SEARCHED = 20_000  # of the newest events, for a request by its id
GROUPS: dict[str, tuple[str, frozenset[Event]]] = {
    "keys": ("Keys", frozenset(event for event in Event if event.startswith("key_") and event != Event.KEY_REFUSED)),
    "refused": ("Refused requests", frozenset({Event.KEY_REFUSED})),
    "access": ("Access and roles", frozenset({Event.ACCESS_GRANTED, Event.ROLE_CHANGED, Event.MANAGER_CHANGED})),
    "people": (
        "People and API members",
        frozenset(event for event in Event if "member_" in event or event.startswith(("invitation_", "account_"))),
    ),
    "workspace": (
        "Workspace and policy",
        frozenset(
            event
            for event in Event
            if event.startswith(("backup_", "workspace_", "solution_", "app_", "policy_", "audit_", "verifier_"))
        ),
    ),
    "records": (
        "Records",
        frozenset(event for event in Event if event.startswith(("record_", "sandbox_"))),
    ),
    "sign-in": (
        "Signing in",
        frozenset(
            {
                Event.SIGNED_IN,
                Event.SIGN_IN_FAILED,
                Event.SIGNED_OUT,
                Event.PROVED,
                Event.SESSIONS_ENDED,
                Event.FORM_REFUSED,
                Event.LOOK_REFUSED,
                Event.PASSWORD_CHANGED,
                Event.PASSWORD_RESET_ASKED,
                Event.PASSWORD_RESET,
            }
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Filters:
    """What the log is narrowed to. `is_sign_ins`: what belongs to no workspace, instead of the workspace's own."""

    person: str = ""  # a member's id: what they did, and what was done with them
    group: str = ""  # one of GROUPS
    key: str = ""  # a key's id, its hint or last four
    env: str = ""
    outcome: str = ""
    since: datetime | None = None
    until: datetime | None = None
    is_sign_ins: bool = False

    @property
    def is_narrowed(self) -> bool:
        """Whether anything is left out."""
        return any((self.person, self.group, self.key, self.env, self.outcome, self.since, self.until))


@dataclass(frozen=True, slots=True)
class Page:
    """Some events, newest first, and whether there are newer and older ones that match."""

    events: list[AuditEvent]
    has_newer: bool
    has_older: bool


@dataclass(frozen=True, slots=True)
class Names:
    """What the ids and slugs in events are called now."""

    members: dict[str, str]
    keys: dict[str, str]
    solutions: dict[str, str]


def list_for(
    session: Session, seat: Seat, filters: Filters, *, size: int, before: int | None = None, after: int | None = None
) -> Page:
    """List events as far as a seat sees them: the newest, those before one's number, or those after it."""
    statement = _matching(session, seat, filters)
    if after is not None:
        later = statement.where(AuditEvent.seq > after).order_by(AuditEvent.seq).limit(size + 1)
        found = audit_reading.readable(session, later)
        newest_first = list(reversed(found[:size]))
        return Page(newest_first, len(found) > size, bool(newest_first) or after > 0)
    if before is not None:
        statement = statement.where(AuditEvent.seq < before)
    events = audit_reading.readable(session, statement.order_by(AuditEvent.seq.desc()).limit(size + 1))
    return Page(events[:size], before is not None, len(events) > size)


def get(session: Session, seat: Seat, event_id: str) -> AuditEvent:
    """Find one event that this seat may see; NotFound for any other."""
    for filters in (Filters(), Filters(is_sign_ins=True)):
        this = _matching(session, seat, filters).where(AuditEvent.public_id == event_id)
        for event in audit_reading.readable(session, this):
            return event
    raise NotFound()


def refused_in(session: Session, seat: Seat, request_id: str) -> AuditEvent | None:
    """Find what was refused in a page's request, among the newest events, as far as a seat sees them."""
    head = session.get(AuditHead, seat.workspace.id)
    conditions = (
        AuditEvent.request_id == request_id,
        AuditEvent.outcome == "refused",
        AuditEvent.seq > (head.seq if head else 0) - _SEARCHED,
    )
    found = audit_reading.readable(session, _matching(session, seat, Filters()).where(*conditions).limit(1))
    return next((event for event in found if event.action != audit_reading.UNREADABLE), None)


def _matching(session: Session, seat: Seat, filters: Filters) -> Select[AuditEvent]:
    in_chain = (AuditEvent.chain == _chain_of(seat, filters), AuditEvent.seq > 0)
    statement = select(AuditEvent).where(*in_chain, *_visible_to(seat, filters))
    if filters.person:
        statement = statement.where(_of([filters.person]))
    if filters.group in GROUPS:
        statement = statement.where(AuditEvent.action.in_(sorted(GROUPS[filters.group][1])))
    if filters.key:
        statement = statement.where(_of(_keys_called(session, seat, filters.key)))
    if filters.env:
        statement = statement.where(AuditEvent.details["environment"].as_string() == filters.env)
    if filters.outcome:
        statement = statement.where(AuditEvent.outcome == filters.outcome)
    if filters.since:
        statement = statement.where(AuditEvent.at >= filters.since)
    if filters.until:
        statement = statement.where(AuditEvent.at < filters.until)
    return statement


def _chain_of(seat: Seat, filters: Filters) -> int:
    return _NO_WORKSPACE if filters.is_sign_ins else seat.workspace.id


def _visible_to(seat: Seat, filters: Filters) -> list[ColumnElement[bool]]:
    """Give the conditions under which a seat sees an event (contract, section 5).

    Members see what they did and what happened to them and their keys; leads also that of the API members they
    manage, even of those that were removed; administrators the workspace.
    """
    if filters.is_sign_ins:
        return [_sign_ins(seat)]
    if seat.is_admin:
        return []
    whose = Member.id == seat.member.id
    if seat.is_lead:
        mine = or_(Member.manager_id == seat.member.id, Member.created_by_id == seat.member.id)
        whose = or_(whose, (Member.workspace_id == seat.workspace.id) & Member.account_id.is_(None) & mine)
    members = select(Member.public_id).where(whose)
    keys = select(ApiKey.public_id).join(Member, Member.id == ApiKey.member_id).where(whose)
    return [_of(union_all(members, keys))]


def _of(ids: list[str] | SelectBase) -> ColumnElement[bool]:
    """Say that an event was done by one of these or to one of them; in two parts, each of which has its index."""
    done_by = select(AuditEvent.id).where(AuditEvent.actor_id.in_(ids))
    done_to = select(AuditEvent.id).where(AuditEvent.target_id.in_(ids))
    return AuditEvent.id.in_(union_all(done_by, done_to))


def _sign_ins(seat: Seat) -> ColumnElement[bool]:
    """Say that somebody signed in whom a seat answers for: itself; for an administrator, who is only in here."""
    account = select(Account.public_id).where(Account.id == seat.member.account_id)
    if not seat.is_admin:
        return AuditEvent.target_id.in_(account)
    elsewhere = select(Member.account_id).where(
        Member.workspace_id != seat.workspace.id, Member.account_id.is_not(None)
    )
    only_here = (
        select(Account.public_id)
        .join(Member, Member.account_id == Account.id)
        .where(Member.workspace_id == seat.workspace.id, Account.id.not_in(elsewhere))
    )
    return or_(AuditEvent.target_id.in_(account), AuditEvent.target_id.in_(only_here))


def _keys_called(session: Session, seat: Seat, called: str) -> list[str]:
    """Find keys of the workspace by id or by the end of their hint; what a seat may not see, its events leave out."""
    those = (ApiKey.workspace_id == seat.workspace.id, key_views.is_called(called))
    return list(session.scalars(select(ApiKey.public_id).where(*those)))


def people_of(session: Session, seat: Seat, chosen: str) -> list[Member]:
    """List whom a seat can ask for: itself and those it manages; for an administrator everybody who ever was.

    Of very many not all are offered; the one whose id is `chosen` comes first.
    """
    statement = select(Member).where(Member.workspace_id == seat.workspace.id)
    if not seat.is_admin:
        mine = Member.id == seat.member.id
        if seat.is_lead:
            managed = or_(Member.manager_id == seat.member.id, Member.created_by_id == seat.member.id)
            mine = or_(mine, Member.account_id.is_(None) & managed)
        statement = statement.where(mine)
    in_order = (Member.public_id != chosen, Member.account_id.is_(None), Member.name, Member.id)
    return list(session.scalars(statement.order_by(*in_order).limit(PEOPLE_OFFERED)))


def names_for(session: Session, workspace_id: int, events: Sequence[AuditEvent]) -> Names:
    """Read what the members and solutions that events speak of are called now."""
    ids = sorted({value for event in events for value in event.details.values() if isinstance(value, str)})
    members = select(Member.public_id, Member.name).where(
        Member.workspace_id == workspace_id, Member.public_id.in_([each for each in ids if each.startswith("mem_")])
    )
    keys = select(ApiKey.public_id, ApiKey.name).where(
        ApiKey.workspace_id == workspace_id, ApiKey.public_id.in_([each for each in ids if each.startswith("key_")])
    )
    solutions = select(Solution.slug, Solution.name).where(Solution.workspace_id == workspace_id)
    return Names(*({id: name for id, name in session.execute(each)} for each in (members, keys, solutions)))  # noqa: C416


# --- Exports and the check ------------------------------------------------------------------------------------------


def begin_export(session: Session, actor: Actor, seat: Seat, filters: Filters, form: str) -> int:
    """Write down that the log leaves the house; give the number of the last event that goes along."""
    _admins_only(seat)
    head = session.get(AuditHead, _chain_of(seat, filters))
    audit.record(session, actor, Event.AUDIT_EXPORTED, target_name=form, details={"format": form})
    return head.seq if head else 0


def export(database: Database, seat: Seat, filters: Filters, last: int) -> Iterator[list[AuditEvent]]:
    """Read the events up to a number, oldest first, some hundred at a time: no session lives as long as a download."""
    after = 0
    while True:
        with database.reading() as session:
            part = _matching(session, seat, filters).where(AuditEvent.seq > after, AuditEvent.seq <= last)
            events = audit_reading.readable(session, part.order_by(AuditEvent.seq).limit(_CHUNK))
        if events:
            yield events
        if len(events) < _CHUNK:
            return
        after = events[-1].seq


def check(session: Session, seat: Seat) -> ChainVerdict:
    """Check the workspace's chain from its beginning."""
    _admins_only(seat)
    return audit_reading.verify(session, seat.workspace.id)


def _admins_only(seat: Seat) -> None:
    if not seat.is_admin:
        raise Forbidden("Only administrators export and check the audit log.")
