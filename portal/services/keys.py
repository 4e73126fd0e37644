"""API keys as their owners and managers make and change them. What a request with a key may do: `key_check`."""

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NoReturn

from sqlalchemy import and_, bindparam, exists, func, insert, or_, select
from sqlalchemy.orm import Session, aliased, joinedload

from portal.rules import text
from portal.rules.access import (
    Environment,
    Scope,
    grantable_scopes,
)
from portal.rules.credentials import Keyring, PlainKey, new_id
from portal.rules.errors import (
    AlreadyShown,
    Attempt,
    Conflict,
    Forbidden,
    Invalid,
    KeyRefused,
    NotFound,
    Refusal,
    Unavailable,
)
from portal.services import activity, audit, audit_reading, drafts, key_views, members, policy
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.drafts import Draft, Owner, Plan
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.store.database import TROUBLE, IntegrityError, broken_rule, read
from portal.store.models import ApiKey, KeyScope, KeyState, Member

KEYS_PER_MEMBER = 20
KEY_LIMIT = "key_limit"  # the code of the refusal of one more
KEY_EDITED = "key_edited"  # and of an edit from a form that showed something older
_ASKED_FOR = timedelta(minutes=10)  # that what a form did not ask for, as a key was idle, is not asked for
ONLY_ITS_OWNER = "Only its owner can reactivate this key."
ONLY_ITS_OWNER_RENAMES = "Only its owner can rename this key."
ADMINS_SET_RATES = "Only administrators set how many requests a key may send."
MOST_PER_MINUTE, MOST_PER_SECOND = 100_000, 5_000  # requests that an administrator may allow a key
_Successor = aliased(ApiKey)  # made once: it learns its columns anew each time


# --- Generating -----------------------------------------------------------------------------------------------------


def create(
    session: Session,
    actor: Actor,
    keyring: Keyring,
    draft: Draft,
    *,
    replaced: ApiKey | None = None,
    rates_of: ApiKey | None = None,
) -> tuple[KeyView, PlainKey]:
    """Generate the key of a draft; give it with its text, which is nowhere else.

    `replaced` is the key that it takes over from: one that counts no more and whose name is free (see `rotation`).
    It may send as many requests as `rates_of`, usually the same key, where an administrator set that.
    Raises Invalid with every answer to mend, AlreadyShown when this form made its key before, Conflict at the limit.
    """
    planned = drafts.plan(session, actor, draft, lock=True)
    if made_before := made_by_form(session, actor, draft.form_id):  # asked once the lock is held: it may just have
        raise AlreadyShown(made_before)
    owner = planned.owner
    if planned.problems or owner is None:
        raise Invalid(planned.problems, attempt=_overreach(planned))
    # Else it takes the place of one that counted, of the same member.
    if replaced is None or replaced.member_id != owner.member.id or _is_expired(replaced, actor.at):
        _check_limit(session, owner, actor.at)
    plain, digest, pepper_id = keyring.mint(Environment(draft.environment))
    name = text.clean_line(draft.name) or ""
    rates_of = rates_of or replaced
    key = ApiKey(
        public_id=new_id("key"),
        workspace_id=planned.seat.workspace.id,
        member_id=owner.member.id,
        environment=draft.environment,
        name=name,
        name_folded=text.fold(name),
        note=text.clean_line(draft.note) or "",
        digest=digest,
        pepper_id=pepper_id,
        last_four=plain.last_four,
        form_id=draft.form_id or None,
        created_at=actor.at,
        created_by_id=planned.seat.member.id,
        expires_at=planned.expires_at,
        replaces_id=replaced.id if replaced else None,
        self_rotate=draft.self_rotate,
        rate_per_minute=rates_of.rate_per_minute if rates_of else None,
        rate_per_second=rates_of.rate_per_second if rates_of else None,
    )
    key.member, key.created_by = owner.member, session.get_one(Member, planned.seat.member.id)
    _insert(session, actor, key, is_mine=owner.is_me)
    app_ids = {app.slug: app.id for shelf in planned.shelves for app in shelf.apps}
    granted = [
        {"key_id": key.id, "app_id": app_ids[scope.app], "action": str(scope.action)} for scope in planned.scopes
    ]
    session.connection().execute(_ADD_SCOPES, granted)
    tell(session, actor, Event.KEY_GENERATED, key, _facts(key, owner, planned.scopes, replaced))
    return key_views.of(session, planned.seat, keyring, [key], actor.at)[0], plain


_ADD_SCOPES = insert(KeyScope)


def _facts(key: ApiKey, owner: Owner, scopes: Iterable[Scope], replaced: ApiKey | None) -> dict[str, Any]:
    """Give all that a key is made of but its text, so that the audit log alone tells what it was."""
    return {
        "name": key.name,
        "note": key.note,
        "replaces": replaced.public_id if replaced else None,
        "owner": owner.member.public_id,
        "owner_name": owner.member.name,
        "environment": key.environment,
        "scopes": [str(scope) for scope in scopes],
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "self_rotate": key.self_rotate,
        "rate_per_minute": key.rate_per_minute,
        "rate_per_second": key.rate_per_second,
    }


def _overreach(planned: Plan) -> Attempt | None:
    """A slip of the pen is no event; asking for more than one may have, or to act as somebody else, is."""
    if not planned.beyond and "owner" not in planned.problems:
        return None
    details = {"scopes": list(planned.beyond)[:20], "owner": planned.draft.owner[:40]}
    return Attempt(Event.KEY_GENERATED, target_label=planned.draft.name[:60], details=details)


def standing_count(session: Session, member_id: int, now: datetime) -> int:
    """Count a member's keys that are neither revoked nor expired, a rotating pair once."""
    return int(read(session, _STANDING, {"member": member_id, "now": now})[0][0])


_STANDING = select(func.count()).where(
    ApiKey.member_id == bindparam("member"),
    ApiKey.revoked_at.is_(None),
    or_(
        ApiKey.retires_at.is_(None),
        and_(
            ApiKey.retires_at > bindparam("now"),
            ~exists().where(_Successor.replaces_id == ApiKey.id, _Successor.revoked_at.is_(None)),
        ),
    ),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now")),
)


def _check_limit(session: Session, owner: Owner, now: datetime) -> None:
    count = standing_count(session, owner.member.id, now)
    if count >= KEYS_PER_MEMBER:
        who = "You have" if owner.is_me else f"{owner.member.name} has"
        message = f"{who} {count} of {KEYS_PER_MEMBER} keys. Delete one first."
        raise Conflict(message, code=KEY_LIMIT, attempt=Attempt(Event.KEY_GENERATED, owner.member.public_id))


def _is_expired(key: ApiKey, now: datetime) -> bool:
    return key.expires_at is not None and key.expires_at <= now


def _insert(session: Session, actor: Actor, key: ApiKey, *, is_mine: bool) -> None:
    try:
        with session.begin_nested():
            session.add(key)
    except IntegrityError as error:
        rule = broken_rule(error)
        if "form_id" in rule and (made_before := made_by_form(session, actor, key.form_id or "")):
            raise AlreadyShown(made_before) from None
        if "name" in rule:
            _refuse_name(session, actor, key.member_id, key.name, is_mine=is_mine)
        raise Unavailable("The key could not be made. Try again.") from error


def made_by_form(session: Session, actor: Actor, form_id: str) -> str | None:
    """Name the key that a form of the actor's made before, if it did."""
    _, member_id = actor.seat
    if not form_id:
        return None
    return session.scalar(select(ApiKey.public_id).where(ApiKey.created_by_id == member_id, ApiKey.form_id == form_id))


def _refuse_name(session: Session, actor: Actor, member_id: int, name: str, *, is_mine: bool) -> NoReturn:
    other = session.scalars(
        select(ApiKey).where(
            ApiKey.member_id == member_id,
            ApiKey.name_folded == text.fold(name),
            ApiKey.revoked_at.is_(None),
            ApiKey.retires_at.is_(None),  # an old key gave its name to its successor
        )
    ).first()
    which = f"“{other.name}” (…{other.last_four}, {other.state_at(actor.at)})" if other else f"“{name}”"
    whose = "You already have" if is_mine else "It already has"
    raise Invalid({"name": f"{whose} a key called {which}. Choose a different name."})


# --- Stopping and starting ------------------------------------------------------------------------------------------


def deactivate(session: Session, actor: Actor, keyring: Keyring, key_id: str) -> KeyView:
    """Stop a key until it is reactivated; from the commit on every request with it is refused."""
    seat, key = hold(session, actor, key_id, Event.KEY_DEACTIVATED)
    if key.state_at(actor.at) is not KeyState.ACTIVE:
        raise _changed_meanwhile(session, key, actor.at)
    key.deactivated_at, key.deactivated_by_id = actor.at, seat.member.id
    return changed(session, actor, seat, keyring, key, Event.KEY_DEACTIVATED)


def deactivate_those_active(session: Session, actor: Actor, key_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Stop several keys, each once; give the names of those stopped, and of those that somebody else stopped before.

    NotFound, and none is stopped, when one of them is not the actor's to stop.
    """
    seat = members.seat_of(session, actor, lock=True)
    wanted = set(key_ids)
    those = key_views.visible_to(seat).where(ApiKey.public_id.in_(wanted)).order_by(ApiKey.id)  # as everybody locks
    found = session.scalars(those.with_for_update(of=ApiKey, key_share=True)).all()
    if missing := wanted - {key.public_id for key in found}:
        raise NotFound(attempt=Attempt(Event.KEY_DEACTIVATED, min(missing)))
    stopped, before = [], []
    for key in found:
        if key.state_at(actor.at) is KeyState.ACTIVE:
            key.deactivated_at, key.deactivated_by_id = actor.at, seat.member.id
            tell(session, actor, Event.KEY_DEACTIVATED, key, {})
            stopped.append(key.name)
        else:
            before.append(key.name)
    return stopped, before


def reactivate(session: Session, actor: Actor, keyring: Keyring, key_id: str) -> KeyView:
    """Let a deactivated key work again, with the same scopes; never another human's.

    Conflict for one that the policy would not allow to be made as it is.
    """
    seat, key = hold(session, actor, key_id, Event.KEY_REACTIVATED)
    check_owner(seat, key, Event.KEY_REACTIVATED, ONLY_ITS_OWNER)
    if key.state_at(actor.at) is not KeyState.DEACTIVATED:
        raise _changed_meanwhile(session, key, actor.at)
    check_still_grantable(session, seat, key, Event.KEY_REACTIVATED)
    if against := policy.against(policy.hold(session, seat.workspace), key):
        raise Conflict(against)
    key.deactivated_at = key.deactivated_by_id = None
    return changed(session, actor, seat, keyring, key, Event.KEY_REACTIVATED)


def check_owner(seat: Seat, key: ApiKey, event: Event, message: str) -> None:
    """Forbid with a key of another human what only its owner does; an API member's is everybody's who manages that."""
    if not key_views.is_ones_own(seat, key):
        raise Forbidden(message, attempt=Attempt(event, key.public_id, key.label))


def check_still_grantable(session: Session, seat: Seat, key: ApiKey, event: Event) -> None:
    """Forbid to start what one could not generate: somebody with more access may have stopped it for a reason."""
    access = drafts.access_of(session, [key.member_id, seat.member.id])
    mine, owners = access[seat.member.id][0], access[key.member_id][0]
    works = {Scope.parse(view.text) for view in key_views.scopes_of_key(session, key) if view.effective}
    beyond = sorted(str(scope) for scope in works - grantable_scopes(owners, mine))
    if beyond:
        attempt = Attempt(event, key.public_id, key.label, {"scopes": beyond})
        message = f"This key holds {beyond[0]}, which you cannot hand out."
        raise Forbidden(message, attempt=attempt)


def delete(
    session: Session, actor: Actor, keyring: Keyring, key_id: str, *, typed: str, seen_idle_at: datetime | None = None
) -> KeyView:
    """Stop a key for ever. One that is in use asks for its name, so that nobody ends the wrong one in a hurry.

    Where a form did not ask, as the key was not in use at `seen_idle_at`, a first request meanwhile changes nothing.
    """
    seat, key = hold(session, actor, key_id, Event.KEY_DELETED)
    is_named = text.fold(text.clean_line(typed) or "") == key.name_folded
    was_idle = seen_idle_at is not None and actor.at - seen_idle_at < _ASKED_FOR
    if not (is_named or was_idle) and _may_be_busy(session, key, actor.at):  # these end also when usage is away
        raise Invalid({"name": f"Type {key.name} exactly to delete it."})
    key.revoked_at = actor.at
    key.revoked_by_id = seat.member.id
    return changed(session, actor, seat, keyring, key, Event.KEY_DELETED)


def _may_be_busy(session: Session, key: ApiKey, now: datetime) -> bool:
    try:
        return activity.is_busy(session, key, now)
    except TROUBLE:  # its use cannot be read
        return True


def edit(
    session: Session, actor: Actor, keyring: Keyring, key_id: str, *, name: str, note: str, was: tuple[str, str]
) -> KeyView:
    """Change a key's name and note, and nothing else of it; `was` is what the form showed, Conflict if that is old."""
    seat, key = hold(session, actor, key_id, Event.KEY_EDITED)
    check_owner(seat, key, Event.KEY_EDITED, ONLY_ITS_OWNER_RENAMES)
    if (key.name, key.note) != was:
        raise Conflict(_told_of_edit(session, actor, key, was), code=KEY_EDITED)
    problems: dict[str, str] = {}
    new_name, new_note = drafts.read_words(name, note, problems)
    if problems:
        raise Invalid(problems)
    member_id = key.member_id
    try:
        with session.begin_nested():
            key.name, key.name_folded, key.note = new_name, text.fold(new_name), new_note
            session.flush()
    except IntegrityError:
        _refuse_name(session, actor, member_id, new_name, is_mine=member_id == seat.member.id)
    tell(session, actor, Event.KEY_EDITED, key, {"before": list(was), "after": [key.name, key.note]})
    session.flush()
    return key_views.of(session, seat, keyring, [key], actor.at)[0]


def _told_of_edit(session: Session, actor: Actor, key: ApiKey, was: tuple[str, str]) -> str:
    last = audit_reading.last_done(session, key.public_id, Event.KEY_EDITED)
    who = "Somebody" if last is None else "You" if last.actor_id == actor.public_id else last.actor_name
    day = f" on {last.at:%d %b %Y}" if last and last.at.date() != actor.at.date() else ""
    when = f"at {last.at:%H:%M} UTC{day}" if last else "meanwhile"
    now = [f"its name is “{key.name}”"] if key.name != was[0] else []
    if key.note != was[1]:
        now.append(f"its note is “{key.note}”" if key.note else "it has no note")
    return f"{who} changed this key {when}: {' and '.join(now)} now. Save again to change that."


def set_rate(
    session: Session,
    actor: Actor,
    keyring: Keyring,
    key_id: str,
    per_minute: str,
    per_second: str,
    *,
    was: tuple[str, str],
) -> KeyView:
    """Set how many requests a key may send in any 60 seconds and in any second; '' for as many as usual.

    `was` is what the form showed, Conflict if that is old. Forbidden to all but administrators.
    """
    seat, key = hold(session, actor, key_id, Event.KEY_RATE_CHANGED)
    if not seat.is_admin:
        attempt = Attempt(Event.KEY_RATE_CHANGED, key.public_id, key.label)
        raise Forbidden(ADMINS_SET_RATES, attempt=attempt)
    before = {"rate_per_minute": key.rate_per_minute, "rate_per_second": key.rate_per_second}
    if tuple("" if rate is None else str(rate) for rate in before.values()) != was:
        raise Conflict("Somebody changed these rates a moment ago. Look at them again.")
    problems: dict[str, str] = {}
    asked = (per_minute, MOST_PER_MINUTE), (per_second, MOST_PER_SECOND)
    after = {
        field: _rate(field, written.strip(), most, problems)
        for field, (written, most) in zip(before, asked, strict=True)
    }
    if problems:
        raise Invalid(problems)
    key.rate_per_minute, key.rate_per_second = after["rate_per_minute"], after["rate_per_second"]
    return changed(session, actor, seat, keyring, key, Event.KEY_RATE_CHANGED, before=before, after=after)


def _rate(field: str, written: str, most: int, problems: dict[str, str]) -> int | None:
    if not written:
        return None
    if not re.fullmatch("[0-9]{1,6}", written) or not 1 <= int(written) <= most:
        problems[field] = f"Enter a whole number from 1 to {most:,}, or nothing for the usual rate."
        return None
    return int(written)


def end_itself(session: Session, actor: Actor, key_pk: int) -> None:
    """Let a key end itself for ever: whoever holds its text may always stop it."""
    _, key = hold_itself(session, actor, key_pk)
    key.revoked_at = actor.at
    key.revoked_by_id = key.member_id
    tell(session, actor, Event.KEY_DELETED, key, {"reason": "the key ended itself"})


def hold_itself(session: Session, actor: Actor, key_pk: int) -> tuple[Actor, ApiKey]:
    """Lock a key by which its own request acts, after its member; give its member as the actor, by means of the key.

    Raises KeyRefused when it was stopped since it was checked.
    """
    member_id = session.scalar(select(ApiKey.member_id).where(ApiKey.id == key_pk))
    actor = replace(actor, member_id=member_id)
    try:
        members.seat_of(session, actor, lock=True)
    except Forbidden:
        raise KeyRefused(Refusal.OWNER_INACTIVE, key_id=actor.public_id, key_pk=key_pk) from None
    statement = select(ApiKey).options(joinedload(ApiKey.member, innerjoin=True)).where(ApiKey.id == key_pk)
    key = session.scalars(statement.with_for_update(of=ApiKey, key_share=True)).one()
    if (state := key.state_at(actor.at)) is not KeyState.ACTIVE:
        is_retired = state is KeyState.REVOKED and key.revoked_at is None
        refusal = Refusal.RETIRED if is_retired else Refusal(state)
        raise KeyRefused(refusal, key_id=key.public_id, key_pk=key_pk)
    return actor, key


def revoke(session: Session, actor: Actor, key_id: str) -> str:
    """Stop any key for ever, by an operator's hand; give its name."""
    statement = select(ApiKey).where(ApiKey.public_id == key_id, ApiKey.revoked_at.is_(None))
    key = session.scalar(statement.with_for_update())
    if key is None:
        raise NotFound(f"There is no key {key_id} that could be revoked.")
    key.revoked_at = actor.at
    audit.record(
        session,
        actor,
        Event.KEY_DELETED,
        workspace_id=key.workspace_id,
        target_id=key.public_id,
        target_name=key.label,
        details={"environment": key.environment},
    )
    return key.name


def hold(session: Session, actor: Actor, key_id: str, event: Event) -> tuple[Seat, ApiKey]:
    """Lock a key that the actor may stop; NotFound for any other, Conflict for one that has stopped for ever.

    The member is locked before the key, as in a rotation: whoever stops a key is named in its row, which needs both.
    """
    seat = members.seat_of(session, actor, lock=True)
    statement = key_views.visible_to(seat).where(ApiKey.public_id == key_id)
    key = session.scalar(statement.with_for_update(of=ApiKey, key_share=True))  # counting its use need not wait
    if key is None:
        raise NotFound(attempt=Attempt(event, key_id))
    if key.state_at(actor.at) is KeyState.REVOKED:
        raise gone(key)
    return seat, key


def gone(key: ApiKey | KeyView) -> Conflict:
    """Tell of a key that has stopped for ever: another tab, or somebody else, was quicker."""
    word = "deleted" if key.revoked_at else "retired"
    return Conflict(f"“{key.name}” (…{key.last_four}) is already {word}. Nothing was changed.")


def _changed_meanwhile(session: Session, key: ApiKey, now: datetime) -> Conflict:
    state = key.state_at(now)
    by = session.get(Member, key.deactivated_by_id) if key.deactivated_by_id else None
    who = f" ({by.name}, {key.deactivated_at:%H:%M} UTC)" if by and state is KeyState.DEACTIVATED else ""
    return Conflict(f"“{key.name}” is already {state}{who}. Nothing was changed.")


def changed(
    session: Session, actor: Actor, seat: Seat, keyring: Keyring, key: ApiKey, event: Event, **more: Any
) -> KeyView:
    """Write a change of a key into the audit log, with `more` details, and give the key as it is now."""
    tell(session, actor, event, key, more)
    session.flush()
    return key_views.of(session, seat, keyring, [key], actor.at)[0]


def tell(session: Session, actor: Actor, event: Event, key: ApiKey, details: dict[str, Any]) -> None:
    """Write what happened to a key into the audit log."""
    members.tell_of_key(session, actor, event, key, key.member, details)
