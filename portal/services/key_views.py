"""API keys as members see them, and what they may do with each. Lists: `key_lists`; what changes a key: `keys`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    or_,
    select,
)
from sqlalchemy.orm import aliased, contains_eager, joinedload

from portal.rules.access import AccessLevel, Action, Role, Scope, effective_scopes, level_of
from portal.rules.credentials import KeyFormat, Keyring
from portal.rules.errors import NotFound
from portal.rules.lifetimes import extended
from portal.services import activity, members
from portal.services.activity import DayBars, DaysOf
from portal.services.actor import Actor
from portal.services.members import Seat
from portal.store.database import Session, read
from portal.store.models import Access, Account, ApiKey, App, KeyScope, KeyState, Member, Solution, state_of

EXPIRING = timedelta(days=14)
REPLACEABLE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class ScopeView:
    """One scope of a key in words, and whether it works now."""

    text: str
    app_name: str
    app_slug: str
    solution_name: str
    action: str
    effective: bool
    owner_is_active: bool
    is_external: bool = False  # the app's records are kept by another product

    @property
    def why_not(self) -> str:
        """Why the scope does nothing now, for a person."""
        if not self.owner_is_active:
            return "its owner is deactivated"
        return "" if self.effective else f"its owner no longer has {self.action} in {self.solution_name}"


class OwnerView(NamedTuple):
    """Whom a key acts as, relative to who looks: `me`, another `human`, or an `api` member."""

    id: str
    name: str
    kind: str
    is_active: bool  # and so is its account

    @property
    def listed_under(self) -> str:
        """Which list holds its keys: `me`, `api` or `all`."""
        return "all" if self.kind == "human" else self.kind


@dataclass(slots=True)  # frozen, each of its many fields would take several times as long to set
class KeyView:
    """What one member may see of a key and do with it. There is no secret in it."""

    id: str
    name: str
    note: str
    hint: str
    last_four: str
    environment: str
    state: KeyState
    owner: OwnerView
    scopes: tuple[ScopeView, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_address: str | None
    last_used_client: str | None
    deactivated_at: datetime | None
    revoked_at: datetime | None
    retires_at: datetime | None
    extends_to: datetime | None  # the end of its overlap if that is lengthened now
    successor_id: str | None
    successor_name: str
    successor_last_four: str
    successor_works: bool
    predecessor_id: str | None
    predecessor_last_four: str
    recent: DayBars | None  # None where it was not read, or cannot be
    is_unused: bool  # never accepted
    refused: int  # requests of a key that was never accepted, as far as its use was read
    is_retiring: bool
    is_old: bool  # of a rotation: its successor has its name
    is_expiring: bool
    self_rotate: bool
    rate_per_minute: int | None  # where an administrator set one
    rate_per_second: int | None
    may_deactivate: bool
    may_reactivate: bool
    may_delete: bool
    may_rotate: bool
    may_move: bool  # to an API member
    may_retire: bool
    may_extend: bool
    may_replace: bool
    may_edit: bool
    may_set_rate: bool

    @property
    def shown_scopes(self) -> Sequence[ScopeView]:
        """Those that a list names first: that work now, or all of them when its owner is not active."""
        return [each for each in self.scopes if each.effective] if self.owner.is_active else self.scopes

    @property
    def paused_scopes(self) -> Sequence[ScopeView]:
        """Those that an active owner no longer has."""
        return [each for each in self.scopes if not each.effective] if self.owner.is_active else ()

    @property
    def is_read_only(self) -> bool:
        """Whether it reads and changes nothing; with all its scopes paused it does not even read."""
        return bool(self.shown_scopes) and all(each.action == Action.READ for each in self.scopes)


class _Owner(NamedTuple):
    """What is shown of a key's owner: of `Member`, read as columns."""

    public_id: str
    name: str
    role: str
    is_api: bool
    is_active: bool


class _Creator(NamedTuple):
    name: str


@dataclass(slots=True)
class ShownKey:
    """What is shown of a key: of `ApiKey`, read as columns, for an entity takes several times as long."""

    id: int
    public_id: str
    member_id: int
    environment: str
    name: str
    name_folded: str
    note: str
    last_four: str
    created_at: datetime
    expires_at: datetime | None
    deactivated_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    last_used_address: str | None
    last_used_client: str | None
    replaces_id: int | None
    rotated_at: datetime | None
    retires_at: datetime | None
    self_rotate: bool
    rate_per_minute: int | None
    rate_per_second: int | None
    created_by: _Creator
    member: _Owner

    def state_at(self, now: datetime) -> KeyState:
        """Say what the key is at a moment, as `ApiKey.state_at` does."""
        return state_of(now, self.revoked_at, self.retires_at, self.expires_at, self.deactivated_at)


_Key = ApiKey | ShownKey
_K = TypeVar("_K", bound=_Key)
_Creating = aliased(Member, name="creator")
_COLUMNS = [getattr(ApiKey, each.name) for each in fields(ShownKey) if each.name not in ("created_by", "member")]
# Selects what `shown` makes keys of; lists narrow and sort it.
SHOWN = (
    select(
        *_COLUMNS,
        _Creating.name.label("created_by"),
        Member.public_id.label("owner_id"),
        Member.name.label("owner_name"),
        Member.role,
        Member.account_id,
        Member.deactivated_at.label("owner_deactivated_at"),
        Member.removed_at,
    )
    .join(Member, Member.id == ApiKey.member_id)
    .join(_Creating, _Creating.id == ApiKey.created_by_id)
)
_BOTH_HALVES = SHOWN.where(
    or_(ApiKey.replaces_id.in_(bindparam("keys", expanding=True)), ApiKey.id.in_(bindparam("before", expanding=True)))
)


def shown(found: Iterable[Any]) -> list[ShownKey]:
    """Make keys of what `SHOWN` read."""
    rows, owners = [], dict[int, _Owner]()
    width = len(_COLUMNS)
    for row in found:
        creator, public_id, name, role, account_id, deactivated_at, removed_at = row[width : width + 7]
        owner = owners.get(row.member_id)
        if owner is None:
            is_active = deactivated_at is None and removed_at is None
            owner = owners[row.member_id] = _Owner(public_id, name, role, account_id is None, is_active)
        values: list[Any] = [*row[:width], _Creator(creator), owner]
        rows.append(ShownKey(*values))
    return rows


def pairs_of(session: Session, keys: Sequence[_K]) -> dict[int, _K | ShownKey]:
    """Find keys, those that they replaced and those that replaced them, by internal id; nothing for keys without."""
    before = [key.replaces_id for key in keys if key.replaces_id]
    if not before and not any(key.retires_at for key in keys):  # one that was replaced has a `retires_at`
        return {}
    others = shown(read(session, _BOTH_HALVES, {"keys": [key.id for key in keys], "before": before}))
    return {key.id: key for key in (*keys, *others)}


def get(session: Session, actor: Actor, seat: Seat, keyring: Keyring, key_id: str) -> KeyView:
    """Find a key that this seat may see; NotFound for any other."""
    return get_both(session, actor, seat, keyring, key_id)[0]


def get_both(session: Session, actor: Actor, seat: Seat, keyring: Keyring, key_id: str) -> tuple[KeyView, ApiKey]:
    """Find a key that this seat may see, as it sees it and as its row; NotFound for any other."""
    row = row_of(session, seat, key_id)
    return of(session, seat, keyring, [row], actor.at)[0], row


def with_refusals(session: Session, view: KeyView, key: ApiKey) -> KeyView:
    """Add how often a never accepted key was refused; apart, as a key can be stopped when use is unreadable."""
    refused = activity.refusals_of(session, key) if view.is_unused else 0
    return replace(view, refused=refused, may_replace=view.may_replace and not refused)


def row_of(session: Session, seat: Seat, key_id: str) -> ApiKey:
    """Find the row of a key that this seat may see; NotFound for any other."""
    key = session.scalar(visible_to(seat).where(ApiKey.public_id == key_id))
    if key is None:
        raise NotFound()
    return key


def stopped_by(session: Session, key: ApiKey) -> str:
    """Name who stopped a key; '' for one that nobody did, or an operator."""
    return members.name_of(session, key.revoked_by_id or key.deactivated_by_id)


def going_on(now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Give the conditions under which a key works, its owner aside, and nothing takes over from it."""
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    return ApiKey.revoked_at.is_(None), ApiKey.retires_at.is_(None), ApiKey.deactivated_at.is_(None), unexpired


def visible_to(seat: Seat) -> Select[ApiKey]:
    """Select the keys that a seat may see, each with its owner and its creator."""
    statement = (
        select(ApiKey)
        .join(Member, Member.id == ApiKey.member_id)
        .options(contains_eager(ApiKey.member), joinedload(ApiKey.created_by, innerjoin=True))
    )
    return statement.where(*seen_by(seat.workspace.id, seat.member.id, is_admin=seat.is_admin, is_lead=seat.is_lead))


def is_called(called: str) -> ColumnElement[bool]:
    """Give the condition that a key is called so: by its id, its hint or its last four."""
    is_id = called.rpartition("_")[0] == "key"  # a hint has two of these, whatever its prefix
    return ApiKey.public_id == called if is_id else ApiKey.last_four == called[-4:]


def seen_by(workspace_id: Any, member_id: Any, *, is_admin: bool, is_lead: bool) -> list[ColumnElement[bool]]:
    """Give the conditions of `visible_to` for such a seat; the ids may be parameters of a statement."""
    here: ColumnElement[bool] = ApiKey.workspace_id == workspace_id
    if is_admin:
        return [here]
    managed = members.managed(workspace_id, member_id, is_admin=False, is_lead=is_lead)
    return [here, or_(ApiKey.member_id == member_id, ApiKey.member_id.in_(select(Member.id).where(*managed)))]


def of(
    session: Session,
    seat: Seat,
    keyring: Keyring,
    keys: Sequence[_Key],
    now: datetime,
    *,
    days_of: DaysOf | None = None,
    pairs: Mapping[int, _Key] | None = None,
) -> list[KeyView]:
    """Show keys as a seat may see them, all with the same few statements.

    `days_of` reads their last 14 days; `pairs` are the other keys of their rotations where these are known already.
    """
    scopes = scopes_of(session, seat.workspace.id, keys)
    if pairs is None:
        pairs = pairs_of(session, keys)
    hidden = _hidden(session, seat, keys, pairs)
    days = days_of(session, [key.id for key in keys], now) if days_of and keys else {}  # last: it may go wrong
    seen = {number: key for number, key in pairs.items() if key.id not in hidden}
    successors = {key.replaces_id: key for key in seen.values() if key.replaces_id}
    sight = _Sight(seat.member.id, seat.is_admin, keyring.format, now, pairs, seen, successors)
    return [_view(sight, key, tuple(scopes.get(key.id, ())), days.get(key.id)) for key in keys]


def _hidden(session: Session, seat: Seat, keys: Sequence[_Key], pairs: Mapping[int, _Key]) -> set[int]:
    """Find the other halves of pairs that a seat may not see: a key that moved from a person to an API member."""
    owners = {key.member_id for key in keys}
    others = {key.id for key in pairs.values() if key.member_id not in owners}
    if seat.is_admin or not others:
        return set()
    seen = session.scalars(visible_to(seat).where(ApiKey.id.in_(others)).with_only_columns(ApiKey.id))
    return others - set(seen)


class _Sight(NamedTuple):
    """Who looks at keys, when, and at which pairs: what all keys of a list are shown by."""

    me: int
    is_admin: bool
    format: KeyFormat
    now: datetime
    pairs: Mapping[int, _Key]
    seen: Mapping[int, _Key]  # those of the pairs that may be shown
    successors: Mapping[int, _Key]  # of these, by the id of the key that each replaced


def _view(sight: _Sight, key: _Key, scopes: tuple[ScopeView, ...], recent: DayBars | None) -> KeyView:
    now, owner = sight.now, key.member
    state = key.state_at(now)
    is_active, is_standing = state is KeyState.ACTIVE, state is not KeyState.REVOKED
    expires_at, used_at = key.expires_at, key.last_used_at
    refused = recent.refused if recent and used_at is None else 0
    is_mine = key.member_id == sight.me
    may_hand_out = is_mine or owner.is_api
    is_there = owner.is_active and all(scope.owner_is_active for scope in scopes)  # its account too
    is_retiring = key.retires_at is not None and state in (KeyState.ACTIVE, KeyState.DEACTIVATED)
    successor, predecessor = sight.successors.get(key.id), sight.seen.get(key.replaces_id or 0)
    retires_at = key.retires_at if is_retiring else None
    extends_to = extended(retires_at, key.rotated_at, expires_at) if retires_at else None
    has_its_name = successor is not None and successor.name_folded == key.name_folded
    is_free = _is_free(key, sight.pairs.get(key.replaces_id or 0), now)
    return KeyView(
        id=key.public_id,
        name=key.name,
        note=key.note,
        hint=sight.format.hint(key.environment, key.last_four),
        last_four=key.last_four,
        environment=key.environment,
        state=state,
        owner=OwnerView(owner.public_id, owner.name, "me" if is_mine else "api" if owner.is_api else "human", is_there),
        scopes=scopes,
        created_at=key.created_at,
        created_by=key.created_by.name,
        expires_at=expires_at,
        last_used_at=used_at,
        last_used_address=key.last_used_address,
        last_used_client=key.last_used_client,
        deactivated_at=key.deactivated_at,
        revoked_at=key.revoked_at,
        retires_at=key.retires_at,
        extends_to=extends_to,
        successor_id=successor.public_id if successor else None,
        successor_name=successor.name if successor else "",
        successor_last_four=successor.last_four if successor else "",
        successor_works=successor is not None and successor.state_at(now) is KeyState.ACTIVE,
        predecessor_id=predecessor.public_id if predecessor else None,
        predecessor_last_four=predecessor.last_four if predecessor else "",
        recent=recent,
        is_unused=used_at is None,
        refused=refused,
        is_retiring=is_retiring,
        is_old=is_retiring or (not is_standing and key.revoked_at is None and has_its_name),
        is_expiring=is_active and expires_at is not None and expires_at - now <= EXPIRING,
        self_rotate=key.self_rotate,
        rate_per_minute=key.rate_per_minute,
        rate_per_second=key.rate_per_second,
        may_deactivate=is_active,
        may_reactivate=state is KeyState.DEACTIVATED and may_hand_out,
        may_delete=is_standing,
        may_rotate=may_hand_out and is_free,
        may_move=is_free,
        may_retire=is_retiring,
        may_extend=extends_to is not None and may_hand_out,
        may_replace=may_hand_out and not refused and is_replaceable(key, now),
        may_edit=may_hand_out and is_standing,
        may_set_rate=sight.is_admin and is_standing,
    )


def may_rotate(session: Session, seat: Seat, key: ApiKey, now: datetime) -> bool:
    """Say whether a seat can replace a key: its own or an API member's, and neither half of a pair that goes on."""
    return is_ones_own(seat, key) and may_move(session, key, now)


def is_ones_own(seat: Seat, key: ApiKey) -> bool:
    """Say whether a key that a seat sees is its own, or that of an API member, and so no other human's."""
    return key.member_id == seat.member.id or key.member.is_api


def may_move(session: Session, key: ApiKey, now: datetime) -> bool:
    """Say whether an API member's key can take over from this one: it is used, and no half of a pair that goes on."""
    return _is_free(key, pairs_of(session, [key]).get(key.replaces_id or 0), now)


def _is_free(key: _Key, predecessor: _Key | None, now: datetime) -> bool:
    is_usable = key.state_at(now) in (KeyState.ACTIVE, KeyState.EXPIRED) and key.retires_at is None
    before_works = predecessor is not None and predecessor.state_at(now) in (KeyState.ACTIVE, KeyState.DEACTIVATED)
    return is_usable and not before_works


def is_replaceable(key: _Key, now: datetime) -> bool:
    """Say whether a key is so new and unused that its text may have been lost: it can be made anew."""
    is_fresh = key.last_used_at is None and now - key.created_at < REPLACEABLE
    return is_fresh and key.state_at(now) is KeyState.ACTIVE and key.retires_at is None


def scopes_of(session: Session, workspace_id: int, keys: Sequence[_Key]) -> dict[int, list[ScopeView]]:
    """Read the scopes of several keys of a workspace at once, with what each owner has now."""
    owner = {key.id: key.member for key in keys}
    views: dict[int, list[ScopeView]] = {}
    made: dict[tuple[Any, ...], ScopeView] = {}  # the keys of a list have few different ones
    for row in read(session, _SCOPES, {"keys": list(owner), "workspace": workspace_id}):
        member = owner[row[0]]
        *facts, account_off_at = row[1:]
        what = (*facts, member.role, member.is_active and account_off_at is None)
        view = made.get(what)
        if view is None:
            view = made[what] = _scope(*what)
        views.setdefault(row[0], []).append(view)
    return views


def scopes_of_key(session: Session, key: ApiKey) -> list[ScopeView]:
    """Read the scopes of one key, with what its owner has now."""
    return scopes_of(session, key.workspace_id, [key]).get(key.id, [])


_SCOPES = (
    select(
        *(KeyScope.key_id, KeyScope.action, App.slug, members.app_called(bindparam("workspace")), Solution.name),
        *(Solution.is_external, Access.level, Account.deactivated_at),
    )
    .join(App, App.id == KeyScope.app_id)
    .join(Solution, Solution.id == App.solution_id)
    .join(ApiKey, ApiKey.id == KeyScope.key_id)
    .join(Member, Member.id == ApiKey.member_id)
    .outerjoin(Account, Account.id == Member.account_id)
    .outerjoin(Access, (Access.solution_id == Solution.id) & (Access.member_id == ApiKey.member_id))
    .where(KeyScope.key_id.in_(bindparam("keys", expanding=True)))
    .order_by(Solution.name, App.name, KeyScope.action)
)


def _scope(
    action: str,
    slug: str,
    app_name: str,
    solution_name: str,
    is_external: bool,
    level: str | None,
    role: str,
    is_there: bool,
) -> ScopeView:
    granted = level_of(Role(role), AccessLevel(level) if level else None)
    scope = Scope(slug, Action(action))
    works = bool(effective_scopes([scope], {slug: granted})) and is_there
    return ScopeView(str(scope), app_name, slug, solution_name, action, works, is_there, is_external)
