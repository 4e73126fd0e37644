"""Lists of keys: search, filters, sorting, pages; the counts above them, the short lists. One key: `key_views`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, and_, bindparam, case, exists, func, not_, or_, select
from sqlalchemy.orm import aliased, contains_eager

from portal.rules import text
from portal.rules.access import Scope
from portal.rules.credentials import Keyring, last_four_in_part
from portal.rules.paging import Page, pages_of
from portal.services import key_views, members
from portal.services.activity import DaysOf, recent_days
from portal.services.actor import Actor
from portal.services.key_views import EXPIRING, KeyView, ScopeView, ShownKey
from portal.services.members import Seat
from portal.store.database import Moment, Session, read
from portal.store.models import ApiKey, App, KeyScope, KeyState, Member, Workspace

PAGE_SIZE = 25
UNUSED = timedelta(days=30)
_SORTS_OF_LIST = 256  # whose statements are kept
_COPYABLE = 200
_OWNERS_OFFERED = 200
_EXPIRING_SHOWN = 3
_AT_ONCE = 1_000  # keys whose scopes are read together: a statement of PostgreSQL takes 65,535 parameters
_Successor = aliased(ApiKey, name="successor")
_Select = Select[*tuple[Any, ...]]  # of columns


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list of keys is narrowed to and how it is sorted; `owner` is `me`, `api`, `all` or a member's id."""

    owner: str = "me"
    q: str = ""
    env: str = ""
    state: str = ""
    scope: str = ""
    sort: str = "attention"

    @property
    def active_count(self) -> int:
        """How many filters narrow the list, beside whose keys they are."""
        return sum(map(bool, (self.q, self.env, self.state, self.scope)))


def list_for(
    session: Session,
    actor: Actor,
    seat: Seat,
    keyring: Keyring,
    filters: Filters,
    number: int,
    size: int = PAGE_SIZE,
    days_of: DaysOf = recent_days,
) -> Page[KeyView]:
    """List keys as far as a seat sees them, `size` a page; what `days_of` tells of their use is read last.

    The old key of a rotation follows its successor, beyond `size` where the list is not narrowed.
    """
    shape, values = _shape_of(seat, filters), _values_of(seat, filters, actor.at)
    found = read(session, _page(shape), {**values, "size": size, "skip": (number - 1) * size})
    if not found and number > 1:  # beyond the last page: that one is shown
        number = pages_of(total_of(session, actor, seat, filters), size)
        found = read(session, _page(shape), {**values, "size": size, "skip": (number - 1) * size})
    rows = key_views.shown(found)
    pairs = key_views.pairs_of(session, rows)
    if not filters.active_count:
        rows = [
            each
            for key in rows
            for each in (key, pairs.get(key.replaces_id or 0))
            if each and each.member_id == key.member_id and each.state_at(actor.at) is not KeyState.REVOKED
        ]
    else:
        rows = _old_after_new(rows)
    views = key_views.of(session, seat, keyring, rows, actor.at, days_of=days_of, pairs=pairs)
    return Page(views, number, found[0].total if found else 0, size)


def total_of(session: Session, actor: Actor, seat: Seat, filters: Filters) -> int:
    """Count the keys of a list, without those old ones that are shown beside their successors."""
    counting = _matching(_shape_of(seat, filters)).with_only_columns(func.count())
    return int(read(session, counting, _values_of(seat, filters, actor.at))[0][0])


def owners_for(session: Session, seat: Seat, chosen: str = "") -> list[tuple[str, str, bool]]:
    """List the others who have keys that a seat sees: id, name, and whether it is an API member.

    The one whose id is `chosen` comes first, with or without keys.
    """
    who = {"workspace": seat.workspace.id, "me": seat.member.id, "chosen": chosen}
    found = read(session, _owners(seat.is_admin, seat.is_lead), who)
    return [(public_id, name, account_id is None) for public_id, name, account_id in found]


@cache
def _owners(is_admin: bool, is_lead: bool) -> _Select:
    here, me = bindparam("workspace", type_=Integer), bindparam("me", type_=Integer)
    is_chosen = Member.public_id == bindparam("chosen")
    has_keys = Member.id.in_(select(ApiKey.member_id).where(ApiKey.workspace_id == here, ApiKey.revoked_at.is_(None)))
    conditions = [Member.workspace_id == here, Member.id != me, or_(is_chosen, has_keys)]
    if not is_admin:
        conditions += members.managed(here, me, is_admin=False, is_lead=is_lead)
    columns = select(Member.public_id, Member.name, Member.account_id).where(*conditions)
    return columns.order_by(not_(is_chosen), func.lower(Member.name), Member.id).limit(_OWNERS_OFFERED)


def _old_after_new(found: Sequence[ShownKey]) -> list[ShownKey]:
    """Put each key that another one of the same owner took over from behind that one."""
    by_id = {key.id: key for key in found}

    def before(key: ShownKey) -> ShownKey | None:
        old = by_id.get(key.replaces_id or 0)
        return old if old and old.member_id == key.member_id else None

    taken_over = {old.id for key in found if (old := before(key))}
    in_order: list[ShownKey] = []
    for key in found:
        each = None if key.id in taken_over else key
        while each:
            in_order.append(each)
            each = before(each)
    return in_order


# --- The statements of lists: built once for each sort of list, with names for what differs from one to the next -----


class _Shape(NamedTuple):
    """What the statement of a list depends on, beside its values."""

    sees: str  # `all` keys, those of `managed` API members and one's own, or `own` ones alone
    whose: str  # `me`, `api`, `all` or `one` member's
    q: bool
    env: bool
    state: str
    scope: bool
    sort: str


def _shape_of(seat: Seat, filters: Filters) -> _Shape:
    return _Shape(
        "all" if seat.is_admin else "managed" if seat.is_lead else "own",
        filters.owner if filters.owner in ("me", "api", "all") else "one",
        bool(filters.q),
        bool(filters.env),
        filters.state,
        Scope.parse(filters.scope) is not None,
        filters.sort,
    )


def _values_of(seat: Seat, filters: Filters, now: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {"workspace": seat.workspace.id, "me": seat.member.id, **_moments(now)}
    values |= {"owner": filters.owner, "env": filters.env}
    if filters.q:
        values |= {"named": _within(text.fold(filters.q)), "noted": _within(filters.q)}
        values |= {"ends": [filters.q, last_four_in_part(filters.q)]}
    if scope := Scope.parse(filters.scope):
        values |= {"app": scope.app, "action": str(scope.action)}
    return values


def _moments(now: datetime) -> dict[str, datetime]:
    return {"now": now, "soon": now + EXPIRING, "long_ago": now - UNUSED}


def _within(part: str) -> str:
    """Write a pattern of LIKE for texts that hold a part."""
    return "%" + re.sub(r"([/%_])", r"/\1", part) + "%"


@lru_cache(_SORTS_OF_LIST)
def _page(shape: _Shape) -> _Select:
    """Read one page of keys and the number of all. Only ids are sorted and cut; the rest is read for the page alone."""
    order = _ORDERS.get(shape.sort, _ORDERS["attention"])
    ids = _matching(shape)
    total = ids.with_only_columns(func.count()).correlate(None).scalar_subquery()
    ids = ids.add_columns(total.label("total")).order_by(*order)
    page = ids.limit(bindparam("size", type_=Integer)).offset(bindparam("skip", type_=Integer)).subquery()
    return key_views.SHOWN.add_columns(page.c.total).join(page, page.c.id == ApiKey.id).order_by(*order)


def _matching(shape: _Shape) -> _Select:
    """Select the ids of the keys that a list is of."""
    conditions = [*_seen(shape.sees), *_whose(shape.whose)]
    if shape.q:
        named = ApiKey.name_folded.like(bindparam("named"), escape="/")
        noted = ApiKey.note.ilike(bindparam("noted"), escape="/")
        conditions.append(or_(named, noted, ApiKey.last_four.in_(bindparam("ends", expanding=True))))
    if shape.env:
        conditions.append(ApiKey.environment == bindparam("env"))
    conditions += _in_state(shape.state)
    if shape.scope:
        has = (
            select(KeyScope.key_id)
            .join(App, App.id == KeyScope.app_id)
            .where(
                App.workspace_id == bindparam("workspace"),
                App.slug == bindparam("app"),
                KeyScope.action == bindparam("action"),
            )
        )
        conditions.append(ApiKey.id.in_(has))
    if not (shape.q or shape.env or shape.state or shape.scope):
        taken_over = exists().where(
            _Successor.replaces_id == ApiKey.id,
            _Successor.member_id == ApiKey.member_id,  # one that was moved stays in its own place
            _Successor.revoked_at.is_(None),
        )
        conditions.append(or_(ApiKey.retires_at.is_(None), ~taken_over))
    return select(ApiKey.id).join(Member, Member.id == ApiKey.member_id).where(*conditions)


def _seen(sees: str) -> list[ColumnElement[bool]]:
    here, me = bindparam("workspace", type_=Integer), bindparam("me", type_=Integer)
    return key_views.seen_by(here, me, is_admin=sees == "all", is_lead=sees == "managed")


def _whose(whose: str) -> list[ColumnElement[bool]]:
    if whose == "me":
        return [ApiKey.member_id == bindparam("me", type_=Integer)]
    if whose == "api":
        return [Member.account_id.is_(None)]
    return [] if whose == "all" else [Member.public_id == bindparam("owner")]


_NOW, _SOON, _LONG_AGO = (bindparam(name, type_=Moment) for name in ("now", "soon", "long_ago"))


def _in_state(state: str) -> list[ColumnElement[bool]]:
    """Give the conditions of a state filter; without one, all keys that are neither deleted nor retired."""
    if state == "revoked":
        return [or_(ApiKey.revoked_at.is_not(None), and_(ApiKey.retires_at.is_not(None), ApiKey.retires_at <= _NOW))]
    standing = [ApiKey.revoked_at.is_(None), or_(ApiKey.retires_at.is_(None), ApiKey.retires_at > _NOW)]
    return [*standing, _NARROWED[state]] if state in _NARROWED else standing


def _narrowed() -> dict[str, ColumnElement[bool]]:
    """Tell apart the keys that are neither deleted nor retired."""
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > _NOW)
    owner_is_there = members.is_in()
    active = and_(unexpired, ApiKey.deactivated_at.is_(None), owner_is_there)
    stopped = or_(ApiKey.deactivated_at.is_not(None), not_(owner_is_there))
    return {
        "active": active,
        "deactivated": and_(unexpired, stopped),
        "expired": ApiKey.expires_at <= _NOW,
        "stopped": or_(ApiKey.expires_at <= _NOW, stopped),
        # Not one that is being replaced already.
        "expiring": and_(ApiKey.expires_at.between(_NOW, _SOON), ApiKey.retires_at.is_(None), active),
        "unused": and_(active, func.coalesce(ApiKey.last_used_at, ApiKey.created_at) < _LONG_AGO),
    }


_NARROWED = _narrowed()
STATES = (*_NARROWED, "revoked")


_LATEST = [ApiKey.last_used_at.desc().nulls_last(), ApiKey.id.desc()]
_ORDERS: dict[str, list[Any]] = {
    # What has expired or will soon comes first, in this order.
    "attention": [case((ApiKey.expires_at <= _SOON, ApiKey.expires_at)).asc().nulls_last(), *_LATEST],
    "name": [ApiKey.name_folded, ApiKey.id],
    "created": [ApiKey.id.desc()],
    "used": _LATEST,
    "expires": [ApiKey.expires_at.asc().nulls_last(), ApiKey.id],
    "owner": [Member.name, Member.id, ApiKey.name_folded, ApiKey.id],
}
SORTS = tuple(_ORDERS)


# --- Counts and short lists ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """How many keys of a tab need a look."""

    active: int
    old: int  # of the active ones those that are being replaced
    expiring: int
    unused: int
    stopped: int


def count_for(session: Session, actor: Actor, seat: Seat, owner: str) -> Counts:
    """Count the keys of one tab by what needs attention, in one statement."""
    filters = Filters(owner=owner)
    shape = _shape_of(seat, filters)
    row = read(session, _counting(shape.sees, shape.whose), _values_of(seat, filters, actor.at))[0]
    total, expiring, unused, stopped, old = map(int, row)
    return Counts(total - stopped, old, expiring, unused, stopped)


@cache
def _counting(sees: str, whose: str) -> _Select:
    columns = [func.count(case((_NARROWED[state], 1))) for state in ("expiring", "unused", "stopped")]
    columns.append(func.count(case((and_(_NARROWED["active"], ApiKey.retires_at.is_not(None)), 1))))
    conditions = [*_seen(sees), *_whose(whose), *_in_state("")]
    keys = select(func.count(), *columns).select_from(ApiKey).join(Member, Member.id == ApiKey.member_id)
    return keys.where(*conditions)


def copyable(session: Session, actor: Actor, seat: Seat) -> list[tuple[str, str]]:
    """List the keys whose scopes a new one can start from: one's own and API members', the newest first."""
    statement = _answered_for(seat, "").order_by(ApiKey.id.desc()).limit(_COPYABLE)
    rows = session.scalars(statement, _moments(actor.at))
    return [(key.public_id, f"{key.name} …{key.last_four}") for key in rows]


def expiring_soon(session: Session, actor: Actor, seat: Seat, keyring: Keyring) -> tuple[int, int, list[KeyView]]:
    """Count one's own keys and those of API members that expire within 14 days, and give the first of them all."""
    statement = _answered_for(seat, "expiring")
    moments = _moments(actor.at)
    found = list(session.scalars(statement.order_by(ApiKey.expires_at, ApiKey.id).limit(_EXPIRING_SHOWN), moments))
    if not found:
        return 0, 0, []
    mine, every = func.count(case((ApiKey.member_id == seat.member.id, 1))), func.count()
    own, total = session.execute(statement.with_only_columns(mine, every), moments).one()
    return own, total - own, key_views.of(session, seat, keyring, found, actor.at)


def _answered_for(seat: Seat, state: str) -> Select[ApiKey]:
    """Select one's own keys and those of API members, in a state, as far as a seat sees them."""
    mine = or_(ApiKey.member_id == seat.member.id, Member.account_id.is_(None))
    return key_views.visible_to(seat).where(mine, *_in_state(state))


def list_all(session: Session, actor: Actor, workspace: Workspace, keyring: Keyring) -> list[dict[str, Any]]:
    """List a workspace's keys that are not deleted, for an operator: facts only, no secret, no digest."""
    statement = (
        select(ApiKey)
        .join(ApiKey.member)
        .options(contains_eager(ApiKey.member))
        .where(ApiKey.workspace_id == workspace.id, ApiKey.revoked_at.is_(None))
        .order_by(ApiKey.id)
    )
    listed: list[dict[str, Any]] = []
    for keys in session.scalars(statement).partitions(_AT_ONCE):
        scopes = key_views.scopes_of(session, workspace.id, keys)
        listed += [_told(key, actor.at, keyring, scopes.get(key.id, [])) for key in keys]
    return listed


def _told(key: ApiKey, now: datetime, keyring: Keyring, scopes: Sequence[ScopeView]) -> dict[str, Any]:
    return {
        "id": key.public_id,
        "name": key.name,
        "hint": keyring.format.hint(key.environment, key.last_four),
        "environment": key.environment,
        "state": _told_state(key, now, scopes),
        "owner": key.member.name,
        "scopes": [scope.text for scope in scopes],
        "createdAt": _utc(key.created_at),
        "expiresAt": _utc(key.expires_at) if key.expires_at else None,
        "lastUsedAt": _utc(key.last_used_at) if key.last_used_at else None,
    }


def _told_state(key: ApiKey, now: datetime, scopes: Sequence[ScopeView]) -> str:
    state = key.state_at(now)
    is_there = key.member.is_active and all(scope.owner_is_active for scope in scopes)
    return str(state) if is_there or state is not KeyState.ACTIVE else "owner_inactive"


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
