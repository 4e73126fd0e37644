"""Who may hold and hand out what: levels, roles, scopes, and the sets that follow from them (contract, section 1)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

SLUG = re.compile(r"[a-z][a-z0-9-]{1,39}")
_SCOPE = re.compile(rf"({SLUG.pattern}):(read|write)")


class Role(StrEnum):
    """What a member is in a workspace. An API member is always `member`."""

    MEMBER = "member"
    ADMIN = "admin"


class Environment(StrEnum):
    """The two worlds whose records never mix; `test` is shown as Sandbox."""

    LIVE = "live"
    TEST = "test"


class Action(StrEnum):
    """What a scope lets a key do in an app. `write` is create, change and delete, and does not imply `read`."""

    READ = "read"
    WRITE = "write"


class AccessLevel(Enum):
    """What a member may do in one solution; levels compare by reach."""

    NONE = "none"
    READ = "read"
    FULL = "full"
    MANAGE = "manage"

    @property
    def actions(self) -> frozenset[Action]:
        """The actions that a member at this level may let a key hold."""
        return _ACTIONS[self]

    def __le__(self, other: "AccessLevel") -> bool:
        return _REACH[self] <= _REACH[other]

    def __lt__(self, other: "AccessLevel") -> bool:
        return _REACH[self] < _REACH[other]


_REACH = {level: reach for reach, level in enumerate(AccessLevel)}
_BOTH = frozenset(Action)
_ACTIONS = {
    AccessLevel.NONE: frozenset[Action](),
    AccessLevel.READ: frozenset({Action.READ}),
    AccessLevel.FULL: _BOTH,
    AccessLevel.MANAGE: _BOTH,
}
Levels = Mapping[str, AccessLevel]  # by solution slug


@dataclass(frozen=True, order=True, slots=True)
class Scope:
    """`<app>:read` or `<app>:write`."""

    app: str
    action: Action

    @classmethod
    def parse(cls, text: str) -> "Scope | None":
        """Read exactly the written form: no wildcard, no other case, no surrounding space."""
        match = _SCOPE.fullmatch(text)
        return cls(match[1], Action(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.app}:{self.action}"


# What one member may do now, by app slug. An app that is not in it is out of reach.
AppAccess = Mapping[str, AccessLevel]


def level_of(role: Role, granted: AccessLevel | None) -> AccessLevel:
    """Say what a member has in a solution: an admin manages everywhere, anybody else what was granted."""
    if role is Role.ADMIN:
        return AccessLevel.MANAGE
    return granted or AccessLevel.NONE


def holdable_scopes(access: AppAccess) -> frozenset[Scope]:
    """List every scope that a member with this access may let a key hold."""
    return frozenset(Scope(app, action) for app, level in access.items() for action in level.actions)


def effective_scopes(scopes: Iterable[Scope], access: AppAccess) -> frozenset[Scope]:
    """Say what a key can do now: its scopes, less what its member may no longer hold."""
    return frozenset(scope for scope in scopes if scope.action in access.get(scope.app, AccessLevel.NONE).actions)


def grantable_scopes(owner: AppAccess, creator: AppAccess) -> frozenset[Scope]:
    """List what a creator may put on a key of this owner: what both of them may hold."""
    return holdable_scopes(owner) & holdable_scopes(creator)


def may_grant(granter: AccessLevel, level: AccessLevel) -> bool:
    """Say whether a member at `granter` in a solution may give an API member this level there: `full` at most."""
    return granter is AccessLevel.MANAGE and level <= AccessLevel.FULL
