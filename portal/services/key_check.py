"""The hot path: an Authorization header in, a Caller or KeyRefused out.

Every condition is decided from the one row that one indexed statement reads, on a connection of the driver itself, in
autocommit: the statement sees every commit of every process that ended before it began, so a change takes effect on
the next request wherever that lands. The row is kept and read again when something changed that it shows
(`store.key_cache` and `store.key_log`, with the proof). Nothing is written. Text that is not a key by length, alphabet
and checksum never reaches the database.
"""

import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from sqlalchemy import BindParameter, Select, String, bindparam, cast, func, literal_column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg

from portal import metrics
from portal.rules.access import AccessLevel, Role, Scope, effective_scopes, level_of
from portal.rules.credentials import BEARER, BEARER_AMONG, KeyDigest, Keyring
from portal.rules.errors import KeyRefused, Refusal
from portal.store.database import TROUBLE, Database, is_silent
from portal.store.key_cache import KeyCache
from portal.store.key_log import log_of
from portal.store.models import Access, Account, ApiKey, App, KeyScope, Member, Workspace


class Caller(NamedTuple):
    """A key that passed, with all that its request needs to know."""

    key_pk: int
    key_id: str
    key_name: str
    last_four: str
    environment: str
    ends_at: datetime | None  # its expiry, or the end of its overlap where that comes first
    is_unused: bool  # as far as written down
    reach: "Reach"
    member_id: str
    member_name: str
    is_api_member: bool
    workspace_pk: int
    workspace_id: str
    workspace_slug: str
    workspace_name: str
    rate_per_minute: int | None  # where an administrator set one
    rate_per_second: int | None
    new_digest: tuple[KeyDigest, str] | None  # under the newest pepper, where the stored one is under an older

    def require(self, scope: Scope) -> None:
        """Raise KeyRefused unless the key has this scope and its member may still hold it."""
        if scope in self.reach.effective:
            return
        refusal = Refusal.ACCESS_WITHDRAWN if scope in self.reach.scopes else Refusal.MISSING_SCOPE
        held = self.reach.effective_texts
        raise KeyRefused(
            refusal,
            key_id=self.key_id,
            key_pk=self.key_pk,
            required=str(scope),
            held=held,
            workspace=self.workspace_slug,
        )


class Reach(NamedTuple):
    """A key's scopes and those of them that work now, each also as sorted text."""

    scopes: frozenset[Scope]
    effective: frozenset[Scope]
    texts: tuple[str, ...]
    effective_texts: tuple[str, ...]


class _Record(NamedTuple):
    """A key's row, read: all that decides about it but the moment and what the request says."""

    key_pk: int
    member_pk: int
    is_revoked: bool
    retires_at: datetime | None
    expires_at: datetime | None
    stopped: Refusal | None  # for as long as the row is as it is
    had: tuple[str, str]  # its scopes with their levels and its member's role, as read
    caller: Caller


class KeyCheck:
    """The check, with its prepared statement and one connection a process, over which requests take turns."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring
        self._sql = _statement(database, len(keyring.peppers))
        self._asking = threading.Lock()
        self._connection: Any = None
        self._cache: KeyCache[_Record] | None = None  # beside this connection
        self._pid = 0  # of the process that opened it: no connection may cross a fork

    def check(
        self, authorization: str | None, *, account_id: str | None = None, query: str = "", now: datetime
    ) -> Caller:
        """Decide about one request; `account_id` is the workspace that the caller asserts, `query` its query string.

        A key in the query beside a good header is refused: it is in somebody's log by now.

        Raises KeyRefused, or one of `database.TROUBLE` when the database cannot be asked.
        """
        plain = self._keyring.format.parse(_credential(authorization))
        if query and self._keyring.format.shape.search(unquote_to_bytes(query).decode("latin-1")):
            raise KeyRefused(Refusal.MALFORMED)
        if plain is None:
            raise KeyRefused(Refusal.MALFORMED)
        record = self._find(self._keyring.digests(plain))
        if record is None:
            raise KeyRefused(Refusal.UNKNOWN)
        caller = record.caller
        refusal = None
        if record.is_revoked:
            refusal = Refusal.REVOKED
        elif record.retires_at is not None and now >= record.retires_at:
            refusal = Refusal.RETIRED
        elif record.expires_at is not None and now >= record.expires_at:
            refusal = Refusal.EXPIRED
        elif record.stopped is not None:
            refusal = record.stopped
        elif account_id is not None and account_id != caller.workspace_id:
            refusal = Refusal.OTHER_WORKSPACE
        elif caller.environment != plain.environment:
            refusal = Refusal.UNKNOWN  # the text says its environment; a row that says another was tampered with
        if refusal is not None:
            raise KeyRefused(refusal, key_id=caller.key_id, key_pk=record.key_pk, had=record.had)
        return caller

    def close(self) -> None:
        """Close the connection; the next check opens another."""
        with self._asking:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = self._cache = None

    def _find(self, digests: Sequence[KeyDigest]) -> _Record | None:
        """Ask the database once; over a connection that broke since it was last used, once more over a new one."""
        with self._asking:
            if self._connection is not None and self._pid == os.getpid():
                try:
                    return self._ask(digests)
                except TROUBLE as trouble:
                    self._connection.close()
                    if is_silent(trouble):  # it would be over another connection too, and take as long again
                        self._connection = self._cache = None
                        raise
            self._connection, self._cache, self._pid = None, None, os.getpid()
            metrics.key_reconnected()
            self._connection = self._database.driver_connection()
            self._cache = KeyCache(log_of(self._connection, is_sqlite=self._database.is_sqlite))
            return self._ask(digests)

    def _ask(self, digests: Sequence[KeyDigest]) -> _Record | None:
        assert self._cache is not None  # noqa: S101 - opened with the connection
        if kept := self._cache.find(digests):
            return kept
        if self._cache.is_absent(digests[0]):
            return None
        metrics.key_read()
        if self._database.is_sqlite:
            rows: list[Sequence[Any]] = self._connection.execute(self._sql, digests).fetchall()
        else:
            rows = self._connection.ask(self._sql, digests)
        if not rows:
            self._cache.keep_absent(digests[0])
            return None
        digest, *row = rows[0]
        record = self._read(row, digests[0])
        self._cache.keep(digest, record)
        return record

    def _read(self, row: Sequence[Any], newest_digest: KeyDigest) -> _Record:
        (
            key_pk, key_id, key_name, last_four, environment, expires, retires, deactivated, revoked, pepper_id,
            last_used, per_minute, per_second,
            member_pk, member_id, member_name, role, member_off, member_gone, account_pk, account_off,
            workspace_pk, workspace_id, workspace_slug, workspace_name, scope_levels,
        ) = row  # fmt: skip
        # Records are kept, and those of a workspace and a member share what is the same in all.
        environment, role, member_id, member_name, workspace_id, workspace_slug, workspace_name = map(
            intern, (environment, role, member_id, member_name, workspace_id, workspace_slug, workspace_name)
        )
        expires_at, retires_at = _moment(expires), _moment(retires)
        stopped = None
        if deactivated is not None:
            stopped = Refusal.DEACTIVATED
        elif member_off is not None or member_gone is not None or account_off is not None:
            stopped = Refusal.OWNER_INACTIVE
        newest = self._keyring.peppers[0].id
        caller = Caller(
            key_pk, key_id, key_name, last_four, environment, _earlier(expires_at, retires_at), last_used is None,
            reach(scope_levels or "", role),
            member_id, member_name, account_pk is None,
            workspace_pk, workspace_id, workspace_slug, workspace_name, per_minute, per_second,
            None if pepper_id == newest else (newest_digest, newest),
        )  # fmt: skip
        had = (scope_levels or "", role)
        return _Record(key_pk, member_pk, revoked is not None, retires_at, expires_at, stopped, had, caller)


def _credential(authorization: str | None) -> str:
    """Take the one Bearer credential out of a header; '' for what is not one."""
    match = BEARER.fullmatch(authorization or "")
    if match:
        return match[1]
    if authorization and BEARER_AMONG.search(authorization):
        return ""
    raise KeyRefused(Refusal.MISSING)


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return datetime.fromisoformat(value).replace(tzinfo=UTC)  # SQLite keeps moments as text, in UTC


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one and other else one or other


@lru_cache(maxsize=4096)  # a pure function of its text: members with equal access share one answer
def reach(scope_levels: str, role: str) -> Reach:
    """Read `app:action=level …` into what the key has and what of it works now."""
    scopes, access = set(), {}
    for written in scope_levels.split():
        name, _, level = written.partition("=")
        if scope := Scope.parse(name):
            scopes.add(scope)
            access[scope.app] = level_of(Role(role), AccessLevel(level))
    effective = effective_scopes(scopes, access)
    return Reach(frozenset(scopes), effective, tuple(map(str, sorted(scopes))), tuple(map(str, sorted(effective))))


def _statement(database: Database, peppers: int) -> str:
    """Build the statement with Core, which knows both dialects, and give its text for the driver's own cursor."""
    digests: list[BindParameter[bytes]] = [bindparam(f"digest_{n}", b"") for n in range(peppers)]
    statement = (
        select(
            ApiKey.digest,
            ApiKey.id,
            ApiKey.public_id,
            ApiKey.name,
            ApiKey.last_four,
            ApiKey.environment,
            ApiKey.expires_at,
            ApiKey.retires_at,
            ApiKey.deactivated_at,
            ApiKey.revoked_at,
            ApiKey.pepper_id,
            ApiKey.last_used_at,
            ApiKey.rate_per_minute,
            ApiKey.rate_per_second,
            Member.id.label("member_pk"),
            Member.public_id.label("member_id"),
            Member.name.label("member_name"),
            Member.role,
            Member.deactivated_at.label("member_off"),
            Member.removed_at,
            Account.id.label("account_pk"),
            Account.deactivated_at.label("account_off"),
            Workspace.id.label("workspace_pk"),
            Workspace.public_id.label("workspace_id"),
            Workspace.slug,
            Workspace.name.label("workspace_name"),
            _scope_levels(),
        )
        .join(Workspace, Workspace.id == ApiKey.workspace_id)
        .join(Member, (Member.id == ApiKey.member_id) & (Member.workspace_id == Workspace.id))
        .outerjoin(Account, Account.id == Member.account_id)
        .where(ApiKey.digest == digests[0] if peppers == 1 else ApiKey.digest.in_(digests))
    )
    dialect = sqlite.dialect() if database.is_sqlite else psycopg.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))


def _scope_levels() -> Any:
    written = (
        App.slug + literal_column("':'")
        + KeyScope.action + literal_column("'='")
        + func.coalesce(Access.level, literal_column("'none'"))
    )  # fmt: skip
    listed: Select[Any] = (
        select(func.aggregate_strings(cast(written, String), " "))
        .select_from(KeyScope)
        .join(App, (App.id == KeyScope.app_id) & (App.workspace_id == ApiKey.workspace_id))
        .outerjoin(Access, (Access.solution_id == App.solution_id) & (Access.member_id == ApiKey.member_id))
        .where(KeyScope.key_id == ApiKey.id)
        .correlate(ApiKey)
    )
    return listed.scalar_subquery().label("scope_levels")
