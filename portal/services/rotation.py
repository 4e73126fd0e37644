"""Rotation: a replacement with the same or fewer scopes, while the old key goes on for an overlap."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import joinedload

from portal.rules.access import Scope
from portal.rules.credentials import Keyring, PlainKey
from portal.rules.errors import AlreadyShown, Attempt, Conflict, Forbidden, Invalid, KeyRefused, NotFound, Refusal
from portal.rules.lifetimes import Lifetime, Overlap, extended, overlap_end
from portal.services import activity, drafts, key_views, keys, members, policy
from portal.services.activity import CallerSeen
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.services.drafts import Draft
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.store.database import Session
from portal.store.models import ApiKey, KeyState, Member

ONLY_ITS_OWNER = "Only its owner can rotate, replace or extend this key."
NOT_ITSELF = (
    "This key was not generated as one that may rotate itself. Rotate it in the portal, or generate another one there "
    "with “The key may rotate itself over the API”."
)
QUIET = timedelta(hours=1)  # an old key that is quiet this long while its successor is busy is safe to retire
AFTERMATH = timedelta(days=1)  # an old key that ended is told of until it has been quiet this long
_CALLERS = 50  # of each key of a pair that are compared


@dataclass(frozen=True, slots=True)
class Staying:
    """A caller that has used the old key of a rotation since then."""

    caller: CallerSeen
    count: int | None  # since the rotation; None where the count holds requests before it too


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the old key of a rotation may go.

    `kind` is `unused` (nothing used it since: safe), `quiet` (nothing for an hour, while the new one is used: safe),
    `early` (nothing used either key since a rotation within the hour), `waiting` (quiet, but nothing uses the new one),
    `used`, or `alone`, where the new key does not work or was deleted.
    """

    kind: str
    last_at: datetime | None
    new_count: int
    safe_at: datetime  # when nothing uses the old key until then
    ends_at: datetime | None  # the end of the overlap
    staying: list[Staying]
    moved: list[tuple[CallerSeen, CallerSeen]]  # with the old key, and since then with the new one

    @property
    def is_safe(self) -> bool:
        """Whether nothing is known to stop with the old key."""
        return self.kind in ("unused", "quiet")

    @property
    def ends_first(self) -> bool:
        """Whether the overlap ends before the old key can have been quiet for long enough."""
        return self.ends_at is not None and self.ends_at <= self.safe_at


@dataclass(frozen=True, slots=True)
class Aftermath:
    """Who still calls with the old key of a rotation after it ended, and so is refused."""

    ended_at: datetime
    callers: list[CallerSeen]


def rotate(session: Session, actor: Actor, keyring: Keyring, draft: Draft) -> tuple[KeyView, PlainKey]:
    """Replace the key that a draft names by one with the same or fewer scopes; give the new one and its text.

    The old key goes on for the draft's overlap. Raises Invalid for scopes that the old key lacks, Conflict when it is
    being replaced already or its own predecessor still works.
    """
    old, _ = _hold_replaced(session, actor, replace(draft, owner=""))  # it stays its member's, whatever was sent
    had = {view.text for view in key_views.scopes_of_key(session, old)}
    wider = [scope for scope in draft.scopes if scope not in had]
    if wider:
        real = [scope for scope in wider if Scope.parse(scope)]
        attempt = Attempt(
            Event.KEY_ROTATED,
            old.public_id,
            old.name,
            {"scopes": real[:20]},
        )
        problem = f"{drafts.quoted(wider[0])} is not a scope of the key that you rotate. Rotating never adds any."
        raise Invalid({"scopes": problem}, attempt=attempt)
    return _replace(session, actor, keyring, _taking_over(draft, old), old)


def _taking_over(draft: Draft, old: ApiKey) -> Draft:
    """Give a draft all that a rotation leaves as it was."""
    return replace(
        draft,
        name=old.name,
        note=old.note,
        owner=old.member.public_id,
        environment=old.environment,
        self_rotate=old.self_rotate,
    )


def rotate_itself(
    session: Session, actor: Actor, keyring: Keyring, key_pk: int, overlap: timedelta
) -> tuple[KeyView, PlainKey, datetime]:
    """Let a key that was generated so replace itself: same scopes, and the same life again as far as policy allows.

    Gives the new key, its text, and when the old one stops. Raises Forbidden for a key that may not, KeyRefused where
    its member may no longer hold one of its scopes, Conflict as a rotation by hand does.
    """
    actor, old = keys.hold_itself(session, actor, key_pk)
    if not old.self_rotate:
        attempt = Attempt(Event.KEY_ROTATED, old.public_id, old.label)
        raise Forbidden(NOT_ITSELF, code="rotation_not_allowed", attempt=attempt)
    scopes = key_views.scopes_of_key(session, old)
    if lost := [scope.text for scope in scopes if not scope.effective]:
        held = [scope.text for scope in scopes if scope.effective]
        raise KeyRefused(Refusal.ACCESS_WITHDRAWN, key_id=old.public_id, key_pk=key_pk, required=lost[0], held=held)
    workspace = members.seat_of(session, actor).workspace
    lifetime = policy.nearest(workspace, Lifetime.like(old.created_at, old.expires_at))
    draft = Draft(scopes=[scope.text for scope in scopes], expires=lifetime, replaces=old.public_id)
    try:
        key, plain = generate(session, actor, keyring, _taking_over(draft, old), overlap=overlap)
    except Invalid as error:  # nothing was asked that could be mended: it is the policy that is against it
        raise Conflict(error.message, attempt=error.attempt) from None
    return key, plain, old.retires_at or actor.at


def generate(
    session: Session, actor: Actor, keyring: Keyring, draft: Draft, *, overlap: timedelta | None = None
) -> tuple[KeyView, PlainKey]:
    """Generate the key of a draft in place of the one that it names, which goes on for `overlap`, or for the draft's.

    Unlike a rotation it may have other scopes: it is a new key, and its creator chooses what it can do. It may also
    act as an API member that the creator manages, so that a program outlives the person whose key it used.
    """
    old, moved = _hold_replaced(session, actor, draft)
    return _replace(session, actor, keyring, draft, old, moved=moved, overlap=overlap)


def _replace(
    session: Session,
    actor: Actor,
    keyring: Keyring,
    draft: Draft,
    old: ApiKey,
    *,
    moved: bool = False,
    overlap: timedelta | None = None,
) -> tuple[KeyView, PlainKey]:
    _begin_overlap(actor, old, draft, moved=moved, overlap=overlap)
    session.flush()
    key, plain = keys.create(session, actor, keyring, draft, replaced=old)
    end = {"successor": key.id, "retires_at": old.retires_at.isoformat() if old.retires_at else None}
    keys.tell(session, actor, Event.KEY_ROTATED, old, end)
    return key, plain


def draft_rotation(session: Session, actor: Actor, seat: Seat, key_id: str) -> Draft:
    """Fill the form that rotates a key: what it has and may still have, for as long again."""
    key = session.scalar(key_views.visible_to(seat).where(ApiKey.public_id == key_id))
    if key is None:
        raise NotFound()
    if key.state_at(actor.at) is KeyState.REVOKED:
        raise keys.gone(key)
    _check_rotatable(session, seat, key, actor.at)
    return Draft(
        name=key.name,
        note=key.note,
        owner=key.member.public_id,
        environment=key.environment,
        scopes=[view.text for view in key_views.scopes_of_key(session, key) if view.effective],
        expires=policy.nearest(seat.workspace, Lifetime.like(key.created_at, key.expires_at)),
        form_id=drafts.new_form_id(),
        replaces=key.public_id,
        self_rotate=key.self_rotate,
    )


def replace_unused(
    session: Session, actor: Actor, keyring: Keyring, key_id: str, form_id: str
) -> tuple[KeyView, PlainKey]:
    """Make a key anew whose text was lost before it was ever used, and delete the unused one."""
    members.seat_of(session, actor, lock=True)  # before the key, as everywhere
    if made_before := keys.made_by_form(session, actor, form_id):
        raise AlreadyShown(made_before)
    seat, old = keys.hold(session, actor, key_id, Event.KEY_GENERATED)
    keys.check_owner(seat, old, Event.KEY_GENERATED, ONLY_ITS_OWNER)
    was_called = activity.callers_of(session, old, actor.at) or activity.refusals_of(session, old)
    if was_called or not key_views.is_replaceable(old, actor.at):
        raise Conflict("Only a key of the last 24 hours that was never used can be replaced. Rotate this one instead.")
    lifetime = policy.nearest(seat.workspace, Lifetime.like(old.created_at, old.expires_at))
    scopes = [view.text for view in key_views.scopes_of_key(session, old)]
    before = session.get(ApiKey, old.replaces_id) if old.replaces_id else None
    old.replaces_id = None  # the new one takes its place, also beside a predecessor that still works
    old.revoked_at = actor.at
    old.revoked_by_id = seat.member.id
    keys.tell(session, actor, Event.KEY_DELETED, old, {"reason": "replaced before it was used", "replaces": None})
    session.flush()
    draft = _taking_over(Draft(scopes=scopes, expires=lifetime, form_id=form_id), old)
    return keys.create(session, actor, keyring, draft, replaced=before, rates_of=old)


def successor_of(session: Session, key: ApiKey) -> ApiKey | None:
    """Find the key that took over from this one, with its owner, if it still stands."""
    standing = select(ApiKey).where(ApiKey.replaces_id == key.id, ApiKey.revoked_at.is_(None))
    return session.scalar(standing.options(joinedload(ApiKey.member, innerjoin=True)))


def verdict_on(session: Session, old: ApiKey, new: ApiKey | None, now: datetime) -> Verdict:
    """Say whether the old key of a rotation may go, and who still uses it."""
    begun = old.rotated_at or (new.created_at if new else now)
    last_at = activity.last_use_of(session, old)
    new_count = activity.accepted_after(session, new, begun)[0] if new else 0
    seen = activity.callers_of(session, old, now, since=begun, limit=_CALLERS)
    with_new = activity.callers_of(session, new, now, since=begun, limit=_CALLERS) if new and seen else []
    after = {(each.address, each.client): each for each in with_new}
    moved = []
    staying = []
    for each in seen:
        other = after.get((each.address, each.client))
        if other and other.last_at > each.last_at:
            moved.append((each, other))
        else:
            staying.append(Staying(each, each.count if each.first_at > begun else None))
    last_since = last_at if last_at and last_at > begun else None
    is_quiet = now - (last_since or begun) > QUIET
    if last_since is None:
        kind = "early" if last_at and not new_count and not is_quiet else "unused"
    else:
        kind = "used" if not is_quiet else "quiet" if new_count else "waiting"
    if new is None or new.state_at(now) is not KeyState.ACTIVE or not new.member.is_active:
        kind = "alone"
    return Verdict(kind, last_since, new_count, (last_since or begun) + QUIET, old.retires_at, staying, moved)


def aftermath_of(session: Session, old: ApiKey, now: datetime) -> Aftermath | None:
    """Say who still calls with the old key of a rotation that has ended; None once it has been quiet for a day."""
    if old.retires_at is None or old.state_at(now) is not KeyState.REVOKED:
        return None
    ended_at = min(old.retires_at, old.revoked_at or old.retires_at)
    callers = activity.refused_since_its_end(session, old)
    latest = max([old.rotated_at or ended_at, ended_at, *(each.last_at for each in callers)])
    return Aftermath(ended_at, callers) if now - latest < AFTERMATH else None


def retire(session: Session, actor: Actor, keyring: Keyring, key_id: str) -> KeyView:
    """End the overlap of a key that is being replaced, at once."""
    seat, key = keys.hold(session, actor, key_id, Event.KEY_RETIRED)
    _check_retiring(key)
    key.retires_at = actor.at
    now = actor.at.isoformat()
    return keys.changed(session, actor, seat, keyring, key, Event.KEY_RETIRED, retires_at=now)


def extend(session: Session, actor: Actor, keyring: Keyring, key_id: str) -> KeyView:
    """Let the old key of a rotation work a day longer: never past its own expiry, for 30 days in all at most."""
    seat, key = keys.hold(session, actor, key_id, Event.KEY_OVERLAP_EXTENDED)
    keys.check_owner(seat, key, Event.KEY_OVERLAP_EXTENDED, ONLY_ITS_OWNER)
    ends = _check_retiring(key)
    keys.check_still_grantable(session, seat, key, Event.KEY_OVERLAP_EXTENDED)
    later = extended(ends, key.rotated_at, key.expires_at)
    if later is None:
        old = f"The old “{key.name}” (…{key.last_four})"
        raise Conflict(f"{old} cannot be extended further. Move what still uses it to the new key.")
    key.retires_at = later
    until = later.isoformat()
    return keys.changed(session, actor, seat, keyring, key, Event.KEY_OVERLAP_EXTENDED, retires_at=until)


def _check_retiring(key: ApiKey) -> datetime:
    if key.retires_at is None:
        raise Conflict(f"“{key.name}” is not being replaced. Nothing was changed.")
    return key.retires_at


def _hold_replaced(session: Session, actor: Actor, draft: Draft) -> tuple[ApiKey, bool]:
    """Lock the key that a draft replaces, after the members, in the order in which every change locks.

    Gives it, and whether an API member takes it over from another owner.
    """
    seat = members.seat_of(session, actor, lock=True)
    if made_before := keys.made_by_form(session, actor, draft.form_id):
        raise AlreadyShown(made_before)
    owner = select(ApiKey.member_id).where(ApiKey.public_id == draft.replaces).scalar_subquery()
    api_members = select(Member.id).where(
        or_(Member.id == owner, Member.public_id == draft.owner),
        Member.workspace_id == seat.workspace.id,
        Member.account_id.is_(None),
    )
    session.execute(api_members.order_by(Member.id).with_for_update(key_share=True))
    _, key = keys.hold(session, actor, draft.replaces, Event.KEY_ROTATED)
    moved = _is_moved(session, seat, key, draft)
    _check_rotatable(session, seat, key, actor.at, moved=moved)
    return key, moved


def _is_moved(session: Session, seat: Seat, key: ApiKey, draft: Draft) -> bool:
    """Say whether a draft lets an API member take over from another owner; `drafts.plan` asks whether it may."""
    if not draft.owner or draft.owner == key.member.public_id:
        return False
    new_owner = members.managed_by(seat)
    return session.scalar(select(Member.id).where(*new_owner, Member.public_id == draft.owner)) is not None


def _check_rotatable(session: Session, seat: Seat, key: ApiKey, now: datetime, *, moved: bool = False) -> None:
    if not moved:
        keys.check_owner(seat, key, Event.KEY_ROTATED, ONLY_ITS_OWNER)
    if key.retires_at is not None:
        message = f"“{key.name}” (…{key.last_four}) is being replaced already. Rotate its successor later."
        raise Conflict(message, code="already_replaced")
    if key.state_at(now) is KeyState.DEACTIVATED:
        raise Conflict(f"“{key.name}” is deactivated. Reactivate it first, or generate a similar key.")
    before = session.get(ApiKey, key.replaces_id) if key.replaces_id else None
    if before and before.state_at(now) in (KeyState.ACTIVE, KeyState.DEACTIVATED):
        message = f"The key before “{key.name}” (…{before.last_four}) still works. Retire it first."
        raise Conflict(message, code="predecessor_works")


def _begin_overlap(actor: Actor, old: ApiKey, draft: Draft, *, moved: bool, overlap: timedelta | None) -> None:
    """Let the old key run out, which also frees its name for the successor."""
    if draft.overlap not in list(Overlap):
        raise Invalid({"overlap": "Choose how long the old key keeps working."})
    if draft.environment != old.environment:
        raise Invalid({"environment": "A replacement works in the same environment."})
    if draft.owner != old.member.public_id and not moved:
        raise Invalid({"owner": "A replacement acts as the same member, or as an API member that you manage."})
    old.rotated_at = actor.at
    if overlap is None:
        old.retires_at = Overlap(draft.overlap).ends_at(actor.at, old.expires_at)
    else:
        old.retires_at = overlap_end(actor.at, overlap, old.expires_at)
