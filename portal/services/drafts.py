"""The generate form's answers before there is a key: whom it can act as, what it would do, what is to be mended.

Nothing is changed here. What makes a key of a draft: `keys`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

from sqlalchemy import Integer, Select, bindparam, or_, select
from sqlalchemy.orm import Session

from portal.rules import text
from portal.rules.access import (
    AccessLevel,
    AppAccess,
    Environment,
    Role,
    Scope,
    grantable_scopes,
    holdable_scopes,
    level_of,
)
from portal.rules.credentials import KEY_SHAPED, new_id
from portal.rules.lifetimes import Lifetime, Overlap
from portal.services import key_views, members, policy
from portal.services.actor import Actor
from portal.services.members import Seat, Shelf
from portal.store.database import read
from portal.store.models import Access, ApiKey, App, Member, Solution

_MAX_SCOPES = 100
_FORM_ID = re.compile(r"[0-9A-Za-z_-]{8,40}")


@dataclass(frozen=True, slots=True)
class Draft:
    """The answers to the generate form, as they came: nothing in it has been checked."""

    name: str = ""
    note: str = ""
    owner: str = ""
    environment: str = Environment.TEST
    scopes: Sequence[str] = ()
    expires: str = Lifetime.DAYS_90
    form_id: str = ""
    similar_to: str = ""  # the id of the key that the form was opened from
    replaces: str = ""  # the id of a key that this one is to take over from
    overlap: str = Overlap.DAY
    self_rotate: bool = False  # may it replace itself over the API?


@dataclass(frozen=True, slots=True)
class Owner:
    """A member whom a key can act as, in the eyes of somebody who may choose it."""

    member: Member
    is_me: bool
    access: AppAccess
    access_text: str

    @property
    def kind(self) -> str:
        """`me` or `api`: nobody else's key can be made."""
        return "me" if self.is_me else "api"


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked draft: the key that it would make, and what the form needs to say about the choices."""

    draft: Draft
    seat: Seat
    owners: list[Owner]
    owner: Owner | None
    shelves: list[Shelf]
    grantable: frozenset[Scope]
    scopes: tuple[Scope, ...]
    expires_at: datetime | None
    problems: Mapping[str, str]
    beyond: tuple[str, ...]  # scopes asked for that exist but lie beyond owner or creator


def plan(session: Session, actor: Actor, draft: Draft, *, lock: bool = False) -> Plan:
    """Judge a draft: what it would make, what its form may offer, and what is to be mended, in the form's order.

    With `lock`, creator, owner and policy are held until the transaction ends, in this order, and no other owner is
    read.
    """
    seat = members.seat_of(session, actor, lock=lock)
    owners = _owners(session, seat, only=draft.owner if lock else None)
    if lock:
        seat = replace(seat, workspace=policy.hold(session, seat.workspace))
    owner = next((owner for owner in owners if owner.member.public_id == draft.owner), None)
    shelves = members.shelves_for(session, seat)
    mine = {app.slug: shelf.level for shelf in shelves for app in shelf.apps}
    grantable = grantable_scopes(owner.access, mine) if owner else frozenset[Scope]()
    problems: dict[str, str] = {}
    read_words(draft.name, draft.note, problems)
    if owner is None:
        problems["owner"] = "Choose whom the key acts as."
    if draft.environment not in list(Environment):
        problems["environment"] = "Choose Sandbox or Live."
    scopes, beyond = _check_scopes(draft, grantable, mine, problems, owner)
    lifetime = Lifetime(draft.expires) if draft.expires in list(Lifetime) else None
    if lifetime is None:
        problems["expires"] = "Choose when the key expires."
    elif owner:
        broken = policy.check(seat.workspace, lifetime, Role(owner.member.role), draft.environment)
        problems |= {field: words for field, words in broken.items() if field not in problems}
    expires_at = lifetime.ends_at(actor.at) if lifetime else None
    return Plan(draft, seat, owners, owner, shelves, grantable, scopes, expires_at, problems, beyond)


def first(session: Session, actor: Actor, seat: Seat, *, owner: str = "", similar_to: str = "", add: str = "") -> Draft:
    """Fill a new form; with `similar_to`, from that key's answers and the scope `add` that it lacked.

    A key that lacks a scope, or that an `owner` is to take over, is meant to be replaced; one that is only similar
    stays beside the new one.
    """
    draft = Draft(
        owner=owner or seat.member.public_id,
        form_id=new_form_id(),
        scopes=[add] if Scope.parse(add) else [],
        expires=policy.nearest(seat.workspace, Lifetime.DAYS_90),
    )
    key = session.scalar(key_views.visible_to(seat).where(ApiKey.public_id == similar_to)) if similar_to else None
    if key is None:
        return draft
    scopes = [view.text for view in key_views.scopes_of_key(session, key)]
    if owner and owner != key.member.public_id:
        may_replace = key_views.may_move(session, key, actor.at)
    else:
        may_replace = bool(draft.scopes) and key_views.may_rotate(session, seat, key, actor.at)
    return replace(
        draft,
        name=key.name,
        note=key.note,
        owner=key.member.public_id if key.member.is_api and not owner else draft.owner,
        environment=key.environment,
        scopes=[*scopes, *(scope for scope in draft.scopes if scope not in scopes)],
        similar_to=key.public_id,
        replaces=key.public_id if may_replace else "",
        self_rotate=key.self_rotate,
    )


def _owners(session: Session, seat: Seat, *, only: str | None) -> list[Owner]:
    """List whom this seat can make keys for: itself, and the API members that it manages; or lock and give one."""
    who = {"workspace": seat.workspace.id, "me": seat.member.id, "owner": only}
    found = session.scalars(_owners_of(seat.is_admin, seat.is_lead, only is not None), who).all()
    access = access_of(session, [member.id for member in found])
    owners = [Owner(member, member.id == seat.member.id, *access[member.id]) for member in found]
    return sorted(owners, key=lambda owner: (not owner.is_me, owner.member.name.casefold()))


@cache
def _owners_of(is_admin: bool, is_lead: bool, is_held: bool) -> Select[Member]:
    me = bindparam("me", type_=Integer)
    managed = members.managed(bindparam("workspace"), me, is_admin=is_admin, is_lead=is_lead)
    statement = select(Member).where(
        or_(Member.id == me, Member.id.in_(select(Member.id).where(*managed))),
        *members.ACTIVE,
    )
    if is_held:
        return statement.where(Member.public_id == bindparam("owner")).with_for_update(key_share=True)
    return statement


def access_of(session: Session, member_ids: Sequence[int]) -> dict[int, tuple[AppAccess, str]]:
    """Read what several members of a workspace may do, by app slug, and in words."""
    rows = read(session, _ACCESS, {"members": member_ids})
    access: dict[int, dict[str, AccessLevel]] = {member_id: {} for member_id in member_ids}
    words: dict[int, dict[str, str]] = {member_id: {} for member_id in member_ids}
    for member_id, role, solution_name, app_slug, level in rows:
        has = level_of(Role(role), AccessLevel(level) if level else None)
        if app_slug:
            access[member_id][app_slug] = has
        if has is not AccessLevel.NONE:
            words[member_id][solution_name] = f"{has.value} {solution_name}"
    return {member_id: (access[member_id], ", ".join(words[member_id].values())) for member_id in access}


_ACCESS = (
    select(Member.id, Member.role, Solution.name, App.slug, Access.level)
    .join(Solution, Solution.workspace_id == Member.workspace_id)
    .outerjoin(App, App.solution_id == Solution.id)
    .outerjoin(Access, (Access.solution_id == Solution.id) & (Access.member_id == Member.id))
    .where(Member.id.in_(bindparam("members", expanding=True)))
    .order_by(Solution.name)
)


def read_words(name: str, note: str, problems: dict[str, str]) -> tuple[str, str]:
    """Read a key's name and note, which `edit` changes too; `problems` gets what is to be mended."""
    return (
        text.read_line(problems, "name", name, 3, 60, "so that you can recognise this key later"),
        text.read_line(problems, "note", note, 0, 140, "that tells where the key lives"),
    )


def _check_scopes(
    draft: Draft, grantable: frozenset[Scope], mine: AppAccess, problems: dict[str, str], owner: Owner | None
) -> tuple[tuple[Scope, ...], tuple[str, ...]]:
    """Sort the asked-for scopes into those that may be granted and those beyond, and say what is wrong first."""
    parsed = {written: Scope.parse(written) for written in draft.scopes[: _MAX_SCOPES + 1]}
    good = tuple(sorted(scope for scope in parsed.values() if scope in grantable))
    beyond = tuple(str(scope) for scope in parsed.values() if scope and scope.app in mine and scope not in grantable)
    if not draft.scopes:
        problems["scopes"] = "Choose at least one scope. Scopes cannot be added later."
    elif len(draft.scopes) > _MAX_SCOPES:
        problems["scopes"] = f"Choose at most {_MAX_SCOPES} scopes."
    elif odd := [written for written, scope in parsed.items() if scope is None or scope.app not in mine]:
        problems["scopes"] = f"{quoted(odd[0])} is not a scope. Choose from the list."
    elif repeated := [written for written, count in Counter(draft.scopes).items() if count > 1]:
        problems["scopes"] = f"{repeated[0]} is given twice. Choose each scope once."
    elif beyond and owner:
        is_owners = parsed[beyond[0]] in holdable_scopes(mine)
        who = f"{owner.member.name} does" if is_owners and not owner.is_me else "You do"
        problems["scopes"] = f"{who} not have the access that {beyond[0]} needs. Remove it or ask an administrator."
    return good, beyond


def quoted(written: str) -> str:
    """Repeat what somebody sent, made harmless and short."""
    return "“" + KEY_SHAPED.sub("…", text.clean_line(written) or "…")[:60] + "”"


def new_form_id() -> str:
    """Make the one-time id of a form that mints."""
    return new_id("form")


def check_form_id(form_id: str) -> str:
    """Give a form's one-time id back when it can be one; '' for anything else, which then protects nothing."""
    return form_id if _FORM_ID.fullmatch(form_id) else ""
