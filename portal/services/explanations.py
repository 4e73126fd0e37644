"""Why a request was refused: what was asked, why not, what the key could do then, and what would mend it now.

Whoever may not see a key gets the same answer as for a request that never was.
"""

from dataclasses import dataclass

from sqlalchemy import or_, select

from portal.rules.access import AccessLevel, Scope
from portal.rules.credentials import Keyring
from portal.rules.errors import Refusal
from portal.services import activity, drafts, key_views, members
from portal.services.activity import Denial
from portal.services.actor import Actor
from portal.services.key_views import KeyView
from portal.services.members import Seat
from portal.services.usage import KEEP_REFUSALS
from portal.store.database import Session
from portal.store.models import ApiKey, App, KeyState, Member, RefusedRequest

_KEYS = 5  # that a hint may lead to
_OF_THE_KEY = (Refusal.MISSING_SCOPE, Refusal.ACCESS_WITHDRAWN)
_STOPS = (Refusal.REVOKED, Refusal.EXPIRED, Refusal.DEACTIVATED, Refusal.RETIRED, Refusal.OWNER_INACTIVE)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One refused request as whoever may see its key gets it explained."""

    request: RefusedRequest
    reason: Refusal
    cause: Refusal  # what stands in the way now: a key may have been stopped in another way since
    key: KeyView
    owner: Member
    held: tuple[str, ...]  # what the key could have done at that moment
    app: App | None  # that was asked for, where the seat can know of it
    is_mended: bool  # whether the same request would pass now, as far as key and access go
    may_generate: bool  # whether this seat can make a key with what was missing
    owner_may: bool  # whether the key's member may hold what was missing
    ask: tuple[str, ...]  # who can hand out what is missing
    may_help: bool  # whether this seat can do that itself: give the owner access, or reactivate it
    stopped_by: str
    heir: ApiKey | None  # what works in the key's place, however often it was replaced since


def explain(session: Session, actor: Actor, seat: Seat, keyring: Keyring, request_id: str) -> Explanation | None:
    """Explain a refused request; None for one that is not known, is too old, or whose key the seat may not see."""
    statement = key_views.visible_to(seat).add_columns(RefusedRequest)
    found = session.execute(
        statement.join(RefusedRequest, RefusedRequest.key_id == ApiKey.id).where(
            RefusedRequest.request_id == request_id, RefusedRequest.at > actor.at - KEEP_REFUSALS
        )
    ).one_or_none()
    if found is None:
        return None
    row, request = found
    reason = Refusal(request.reason)
    key = key_views.of(session, seat, keyring, [row], actor.at)[0]
    is_stopped = reason in _STOPS or (reason is Refusal.MISSING_SCOPE and not key.owner.is_active)
    cause = _cause(key) if is_stopped else reason
    scope = Scope.parse(request.required)
    app = _app(session, seat, scope, key)
    may_generate = owner_may = False
    ask: tuple[str, ...] = ()
    may_help = seat.is_admin
    if cause in _OF_THE_KEY and scope and app:
        planned = drafts.plan(session, actor, drafts.Draft(owner=key.owner.id))
        may_generate = cause is Refusal.MISSING_SCOPE and scope in planned.grantable
        access, _ = drafts.access_of(session, [row.member_id])[row.member_id]
        owner_may = scope.action in access.get(scope.app, AccessLevel.NONE).actions
        here = app.solution_id
        ask = tuple(members.granters(session, seat, [here], for_api_member=row.member.is_api)[here])
        may_help = seat.is_admin or (row.member.is_api and seat.level_in(here) is AccessLevel.MANAGE)
    elif cause is Refusal.OWNER_INACTIVE:
        may_help = seat.is_admin or row.member.is_api
        ask = tuple(members.admin_names(session, seat.workspace.id))
    return Explanation(
        request=request,
        reason=reason,
        cause=cause,
        key=key,
        owner=row.member,
        held=tuple(request.held.split()),
        app=app,
        is_mended=_is_mended(key, reason, scope),
        may_generate=may_generate,
        owner_may=owner_may,
        ask=ask,
        may_help=may_help and row.member.removed_at is None,
        stopped_by=key_views.stopped_by(session, row),
        heir=_heir(session, actor, seat, row) if cause in (Refusal.DEACTIVATED, Refusal.REVOKED) else None,
    )


def _heir(session: Session, actor: Actor, seat: Seat, key: ApiKey) -> ApiKey | None:
    """Find the last key in the line of those that replaced one another after this one, of those that work."""
    line = select(ApiKey.id).where(ApiKey.replaces_id == key.id).cte("line", recursive=True)
    line = line.union(select(ApiKey.id).where(ApiKey.replaces_id == line.c.id))
    works = (
        ApiKey.revoked_at.is_(None),
        ApiKey.deactivated_at.is_(None),
        or_(ApiKey.retires_at.is_(None), ApiKey.retires_at > actor.at),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > actor.at),
        members.is_in(),
    )
    heirs = key_views.visible_to(seat).where(ApiKey.id.in_(select(line.c.id)), *works)
    return session.scalar(heirs.order_by(ApiKey.id.desc()).limit(1))


def _app(session: Session, seat: Seat, scope: Scope | None, key: KeyView) -> App | None:
    """Find the app that was asked for; None where neither the key nor the seat reaches it: its name tells nothing."""
    if scope is None:
        return None
    app = session.scalar(select(App).where(App.workspace_id == seat.workspace.id, App.slug == scope.app))
    is_own = any(view.app_slug == scope.app for view in key.scopes)
    reachable = {each.id for each in members.apps_of(session, seat)}
    return app if app and (is_own or app.id in reachable) else None


def _cause(key: KeyView) -> Refusal:
    """Say what stops a key now, if anything does; what is final comes first, for nothing else needs mending then."""
    if key.state is KeyState.ACTIVE or (key.state is not KeyState.REVOKED and not key.owner.is_active):
        return Refusal.OWNER_INACTIVE
    return Refusal(key.state)


def _is_mended(key: KeyView, reason: Refusal, scope: Scope | None) -> bool:
    """Say whether what was wrong is so no longer; what the request itself got wrong nobody can mend here."""
    if reason in (Refusal.OTHER_WORKSPACE, Refusal.UNKNOWN, Refusal.RATE_LIMITED):
        return False
    if key.state is not KeyState.ACTIVE or not key.owner.is_active:
        return False
    return reason not in _OF_THE_KEY or any(view.text == str(scope) and view.effective for view in key.scopes)


def recent(
    session: Session, actor: Actor, seat: Seat, keyring: Keyring, called: str
) -> list[tuple[KeyView, list[Denial]]]:
    """List what was refused of the keys that are called so, by id, hint or last four; like requests as one."""
    those = key_views.visible_to(seat).where(key_views.is_called(called))
    found = list(session.scalars(those.order_by(ApiKey.id.desc()).limit(_KEYS)))
    views = key_views.of(session, seat, keyring, found, actor.at)
    return [(view, activity.denials(session, key, actor.at)) for key, view in zip(found, views, strict=True)]
