"""The tables, to be read as tables. Methods judge a row by its own columns; rules across rows live in services."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    false,
    or_,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from portal.rules.access import AccessLevel, Role
from portal.store.database import Base


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Account(Base):
    """A human's login; may be a member of several workspaces."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(60))
    password_hash: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime]
    deactivated_at: Mapped[datetime | None]
    # Preferences: how pages look to this person.
    time_zone: Mapped[str] = mapped_column(String(64), default="UTC", server_default="UTC")
    clock: Mapped[str] = mapped_column(String(2), default="24", server_default="24")
    theme: Mapped[str] = mapped_column(String(10), default="system", server_default="system")
    page_rows: Mapped[int] = mapped_column(default=25, server_default="25")
    has_shortcuts: Mapped[bool] = mapped_column(default=False, server_default=false())


class Workspace(Base):
    """The organisation, the tenant. Nothing ever crosses it."""

    __tablename__ = "workspace"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    slug: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(String(60))
    created_at: Mapped[datetime]
    # Policy.
    max_key_days: Mapped[int | None]  # no key made from now on lives longer; None: it may live for ever
    admins_own_live: Mapped[bool] = mapped_column(default=True, server_default=true())


class Member(Base):
    """An account in a workspace; without an account, an API member."""

    __tablename__ = "member"
    __table_args__ = (
        UniqueConstraint("workspace_id", "account_id"),
        _one_of("role", *Role),
        CheckConstraint("account_id IS NOT NULL OR role = 'member'", name="api_member_is_no_admin"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    account_id: Mapped[int | None] = mapped_column(ForeignKey("account.id"), index=True)
    name: Mapped[str] = mapped_column(String(60))
    role: Mapped[str] = mapped_column(String(10))
    purpose: Mapped[str] = mapped_column(String(140), default="")
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"), index=True)
    created_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"), index=True)
    created_at: Mapped[datetime]
    deactivated_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]

    workspace: Mapped[Workspace] = relationship(lazy="raise")
    account: Mapped[Account | None] = relationship(lazy="raise")

    @property
    def is_api(self) -> bool:
        """Whether this is an API member: no login, made for one integration."""
        return self.account_id is None

    @property
    def is_active(self) -> bool:
        """Whether the membership stands; the account's own state is not looked at."""
        return self.deactivated_at is None and self.removed_at is None


class Solution(Base):
    """A group of apps; the unit in which access is given."""

    __tablename__ = "solution"
    __table_args__ = (UniqueConstraint("workspace_id", "slug"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    slug: Mapped[str] = mapped_column(String(40))
    name: Mapped[str] = mapped_column(String(60))
    description: Mapped[str] = mapped_column(String(140), default="")
    # Its apps are resources for scopes only; their data lives in somebody's own product, behind /verify.
    is_external: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime]


class App(Base):
    """Holds records; its JSON Schema says what a record's fields must be."""

    __tablename__ = "app"
    __table_args__ = (UniqueConstraint("workspace_id", "slug"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    solution_id: Mapped[int] = mapped_column(ForeignKey("solution.id"), index=True)
    slug: Mapped[str] = mapped_column(String(40))
    name: Mapped[str] = mapped_column(String(60))
    description: Mapped[str] = mapped_column(String(140), default="")
    schema: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime]

    solution: Mapped[Solution] = relationship(lazy="raise")


class Access(Base):
    """What a member was given in one solution. No row is no access; admins need none."""

    __tablename__ = "access"
    __table_args__ = (_one_of("level", *(level.value for level in AccessLevel if level is not AccessLevel.NONE)),)

    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"), primary_key=True)
    solution_id: Mapped[int] = mapped_column(ForeignKey("solution.id"), primary_key=True, index=True)
    level: Mapped[str] = mapped_column(String(10))
    granted_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    granted_at: Mapped[datetime | None]


class KeyState(StrEnum):
    """What a key is at a moment; the first that holds, from final to fine. All but the last are a `Refusal` as well."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    DEACTIVATED = "deactivated"
    ACTIVE = "active"


class ApiKey(Base):
    """A named key of one member in one environment. Its text is nowhere; a revoked key's row stays, with its digest."""

    __tablename__ = "api_key"
    __table_args__ = (
        _one_of("environment", "live", "test"),
        UniqueConstraint("created_by_id", "form_id"),
        Index(
            "uq_api_key_name_in_use",
            "member_id",
            "name_folded",
            unique=True,
            sqlite_where=text("revoked_at IS NULL AND retires_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL AND retires_at IS NULL"),
        ),
        Index("ix_api_key_workspace_id_id", "workspace_id", "id"),
        Index("ix_api_key_member_id", "member_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    environment: Mapped[str] = mapped_column(String(4))
    name: Mapped[str] = mapped_column(String(60))
    name_folded: Mapped[str] = mapped_column(String(180))  # folding makes up to three of one
    note: Mapped[str] = mapped_column(String(140), default="")
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    pepper_id: Mapped[str] = mapped_column(String(20))
    last_four: Mapped[str] = mapped_column(String(4))
    form_id: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime]
    created_by_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    expires_at: Mapped[datetime | None]
    deactivated_at: Mapped[datetime | None]
    deactivated_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    revoked_at: Mapped[datetime | None]
    revoked_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    # About when, for sorting: written at most once in ten seconds. What happened exactly is in `usage`.
    last_used_at: Mapped[datetime | None]
    last_used_address: Mapped[str | None] = mapped_column(String(45))
    last_used_client: Mapped[str | None] = mapped_column(String(60))
    # Rotation: a successor names its predecessor, which works until `retires_at` at most.
    replaces_id: Mapped[int | None] = mapped_column(ForeignKey("api_key.id"), unique=True)
    rotated_at: Mapped[datetime | None]  # when it was replaced: from here an overlap is counted
    retires_at: Mapped[datetime | None]
    self_rotate: Mapped[bool] = mapped_column(default=False, server_default=false())  # may rotate itself over the API
    # What an administrator allows instead of the usual rates: requests in any 60 s, and in any second.
    rate_per_minute: Mapped[int | None]
    rate_per_second: Mapped[int | None]

    member: Mapped[Member] = relationship(lazy="raise", foreign_keys=[member_id])
    created_by: Mapped[Member] = relationship(lazy="raise", foreign_keys=[created_by_id])

    def state_at(self, now: datetime) -> KeyState:
        """Say what this key is at a moment, its owner's state and access aside."""
        return state_of(now, self.revoked_at, self.retires_at, self.expires_at, self.deactivated_at)

    @classmethod
    def active_at(cls, now: datetime) -> tuple[ColumnElement[bool], ...]:
        """Give the conditions under which `state_at` says that a key is active."""
        return (
            cls.revoked_at.is_(None),
            cls.deactivated_at.is_(None),
            or_(cls.retires_at.is_(None), cls.retires_at > now),
            or_(cls.expires_at.is_(None), cls.expires_at > now),
        )

    @property
    def label(self) -> str:
        """What the audit log calls it."""
        return f"{self.name} (…{self.last_four})"


def state_of(
    now: datetime,
    revoked_at: datetime | None,
    retires_at: datetime | None,
    expires_at: datetime | None,
    deactivated_at: datetime | None,
) -> KeyState:
    """Say what a key with these moments is at another one: `ApiKey.state_at`, for rows that were read as columns."""
    if revoked_at is not None or (retires_at is not None and now >= retires_at):
        return KeyState.REVOKED
    if expires_at is not None and now >= expires_at:
        return KeyState.EXPIRED
    return KeyState.DEACTIVATED if deactivated_at is not None else KeyState.ACTIVE


class KeyScope(Base):
    """One scope of a key. Written with the key and never changed."""

    __tablename__ = "key_scope"
    __table_args__ = (_one_of("action", "read", "write"),)

    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    app_id: Mapped[int] = mapped_column(ForeignKey("app.id"), primary_key=True, index=True)
    action: Mapped[str] = mapped_column(String(5), primary_key=True)


def hour_of(moment: datetime) -> int:
    """Number a moment's hour, counted from 1970 in UTC."""
    return int(moment.timestamp()) // 3600


class Usage(Base):
    """How often a key was used in one hour, in one way, from one place. `hour` counts from 1970 in UTC."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_hour", "hour"),)  # old hours are taken out, whichever keys they are of

    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    hour: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(String(20), primary_key=True)  # `accepted`, or why it was refused
    scope: Mapped[str] = mapped_column(String(50), primary_key=True)  # '' where none is needed
    address: Mapped[str] = mapped_column(String(45), primary_key=True)
    client: Mapped[str] = mapped_column(String(60), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]


class KeyCaller(Base):
    """A place and program that a key was ever accepted from, by scope: what `usage` says of it, over all hours.

    Kept beside it because a key's callers are few and its hours are many.
    """

    __tablename__ = "key_caller"

    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    address: Mapped[str] = mapped_column(String(45), primary_key=True)
    client: Mapped[str] = mapped_column(String(60), primary_key=True)
    scope: Mapped[str] = mapped_column(String(50), primary_key=True)  # '' where none is needed
    count: Mapped[int] = mapped_column(BigInteger)
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]


class UsageBatch(Base):
    """A batch of notes that was written, so that one whose answer was lost is not counted twice."""

    __tablename__ = "usage_batch"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)


class RefusedRequest(Base):
    """One refused request of a known key, kept for 30 days so that it can be explained."""

    __tablename__ = "refused_request"
    __table_args__ = (Index("ix_refused_request_key_id_id", "key_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(String(40), unique=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"))
    at: Mapped[datetime] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(String(20))
    required: Mapped[str] = mapped_column(String(80))
    held: Mapped[str] = mapped_column(Text, default="")  # what the key could do then: scopes, parted by spaces
    method: Mapped[str] = mapped_column(String(10))
    path: Mapped[str] = mapped_column(String(200))
    address: Mapped[str] = mapped_column(String(45))
    client: Mapped[str] = mapped_column(String(60))


class FirstRequest(Base):
    """The first request that a key was accepted with: "it works"."""

    __tablename__ = "first_request"

    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    at: Mapped[datetime]
    method: Mapped[str] = mapped_column(String(10))
    path: Mapped[str] = mapped_column(String(200))
    status: Mapped[int]
    address: Mapped[str] = mapped_column(String(45))


class ExpiryNotice(Base):
    """That the people behind a key were told of its expiry so many days ahead: once each."""

    __tablename__ = "expiry_notice"

    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    days: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class OutgoingMail(Base):
    """A mail that waits to be sent: written with the change that it tells of, gone once it was handed over."""

    __tablename__ = "outgoing_mail"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)  # also its Message-ID
    recipient: Mapped[str] = mapped_column(String(254))
    subject: Mapped[str] = mapped_column(String(200))
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    # By a sender, who has some minutes for it; of a mail that was not taken so that these end when it is due again.
    claimed_at: Mapped[datetime | None]


class Record(Base):
    """One record of an app in one environment; `version` counts its changes and is its ETag."""

    __tablename__ = "record"
    __table_args__ = (
        _one_of("environment", "live", "test"),
        Index("ix_record_app_id_environment_id", "app_id", "environment", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    app_id: Mapped[int] = mapped_column(ForeignKey("app.id"))
    environment: Mapped[str] = mapped_column(String(4))
    fields: Mapped[dict[str, Any]] = mapped_column(JSON)
    version: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class UserSession(Base):
    """One sign-in of an account. The browser holds the token, this row its hash."""

    __tablename__ = "user_session"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    proved_at: Mapped[datetime]
    address: Mapped[str | None] = mapped_column(String(45))
    client: Mapped[str | None] = mapped_column(String(60))
    workspace_id: Mapped[int | None] = mapped_column(ForeignKey("workspace.id"))

    account: Mapped[Account] = relationship(lazy="raise")


class SignInFailure(Base):
    """A password that did not match, kept for an hour to slow guessing down. Addresses are hashed: most are typos."""

    __tablename__ = "sign_in_failure"
    __table_args__ = (Index("ix_sign_in_failure_email_hash_at", "email_hash", "at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    email_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    prefix: Mapped[str] = mapped_column(String(45), index=True)
    at: Mapped[datetime] = mapped_column(index=True)
    forgiven_at: Mapped[datetime | None]


class Invitation(Base):
    """A one-time link by which a person joins a workspace. The link holds the token, this row its hash."""

    __tablename__ = "invitation"
    __table_args__ = (_one_of("role", *Role),)

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"), index=True)
    email: Mapped[str] = mapped_column(String(254))
    role: Mapped[str] = mapped_column(String(10))
    access: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)  # level by solution slug
    invited_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))  # None: an operator
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    accepted_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]

    workspace: Mapped[Workspace] = relationship(lazy="raise")

    @classmethod
    def open_at(cls, now: datetime) -> tuple[ColumnElement[bool], ...]:
        """Give the conditions under which an invitation can be accepted, its sender aside."""
        return cls.accepted_at.is_(None), cls.withdrawn_at.is_(None), cls.expires_at > now


class AuditEvent(Base):
    """One thing that somebody did or was refused. Names are copied in and nothing is referenced: it outlives them."""

    __tablename__ = "audit_event"
    __table_args__ = (
        _one_of("outcome", "done", "refused"),
        Index("ix_audit_event_workspace_id_id", "workspace_id", "id"),
        Index("ix_audit_event_target_id_id", "target_id", "id"),
        Index("ix_audit_event_actor_id_id", "actor_id", "id"),
        UniqueConstraint("chain", "seq"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int | None]
    chain: Mapped[int]  # the workspace whose chain it stands in; 0 for what belongs to none
    seq: Mapped[int]
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    at: Mapped[datetime]
    action: Mapped[str] = mapped_column(String(40))
    outcome: Mapped[str] = mapped_column(String(10))
    actor_id: Mapped[str | None] = mapped_column(String(40))
    actor_name: Mapped[str] = mapped_column(String(254))
    means: Mapped[str] = mapped_column(String(10))
    address: Mapped[str | None] = mapped_column(String(45))
    request_id: Mapped[str | None] = mapped_column(String(40))
    target_id: Mapped[str | None] = mapped_column(String(40))
    target_name: Mapped[str] = mapped_column(String(254))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


class AuditHead(Base):
    """The end of a chain: whoever writes holds it, so that rows stand in one line."""

    __tablename__ = "audit_head"

    chain: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int]
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))


class RefusalCount(Base):
    """How often one actor was refused one thing in one hour: beyond the first few, attempts are only counted."""

    __tablename__ = "refusal_count"

    chain: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    who: Mapped[str] = mapped_column(String(45), primary_key=True)
    action: Mapped[str] = mapped_column(String(40), primary_key=True)
    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    count: Mapped[int]
    told: Mapped[int]  # how many of them have a row of their own


class KeyReview(Base):
    """That somebody looked at a finding about a key and left it so, with why; it is not shown again until then."""

    __tablename__ = "key_review"

    id: Mapped[int] = mapped_column(primary_key=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("api_key.id"), index=True)
    finding: Mapped[str] = mapped_column(String(20))
    note: Mapped[str] = mapped_column(String(140))
    by_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    at: Mapped[datetime]
    until: Mapped[datetime]


class PasswordReset(Base):
    """A one-time link by which a person chooses a new password. The link holds the token, this row its hash."""

    __tablename__ = "password_reset"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class IdempotentRequest(Base):
    """What a POST with an Idempotency-Key was answered, kept for 24 hours: the same request again gets it again.

    Keys of one member in one environment share their Idempotency-Keys, so that a retry may come with a successor.
    """

    __tablename__ = "idempotent_request"
    __table_args__ = (_one_of("environment", "live", "test"),)

    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"), primary_key=True)
    environment: Mapped[str] = mapped_column(String(4), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    request_hash: Mapped[bytes] = mapped_column(LargeBinary(32))  # of method, path and body
    status: Mapped[int]
    headers: Mapped[dict[str, str]] = mapped_column(JSON)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class PepperProof(Base):
    """What tells whether a pepper of the settings is the one of that id that stored keys were hashed under."""

    __tablename__ = "pepper"

    id: Mapped[str] = mapped_column(String(20), primary_key=True)
    proof: Mapped[bytes] = mapped_column(LargeBinary(32))


class Verifier(Base):
    """A credential with which a product of one's own asks this portal about keys (RFC 7662). Shown once, like a key."""

    __tablename__ = "verifier"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"), index=True)
    name: Mapped[str] = mapped_column(String(60))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    pepper_id: Mapped[str] = mapped_column(String(20))
    last_four: Mapped[str] = mapped_column(String(4))
    form_id: Mapped[str | None] = mapped_column(String(40), unique=True)
    created_at: Mapped[datetime]
    created_by_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    revoked_at: Mapped[datetime | None]
    revoked_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
