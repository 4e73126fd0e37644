"""People: their list, one person, roles and access, invitations, leaving and coming back."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from flask import Response, flash, make_response, redirect, request

from portal.rules.access import SLUG, AccessLevel, Role
from portal.rules.errors import AlreadyShown, Conflict, Invalid
from portal.rules.text import clean_line
from portal.services import drafts, invitations, members, offboarding, people
from portal.services.offboarding import KeyAtRisk
from portal.services.people import Filters, Listed, Preview
from portal.store.models import Member, Solution
from portal.web.display import LEVEL_WORDS, role_text
from portal.web.guards import actor, in_workspace, only, recently_proved, seat
from portal.web.http import (
    afterwards,
    answer,
    page_number,
    portal,
    public_id,
    reading,
    send_mails,
    transaction,
    was_shown,
    without_keys,
)
from portal.web.keys import keyring
from portal.web.members import (
    access_words,
    here,
    keys_of,
    levels_in_form,
    lost_in_words,
    matrix,
    page,
    page_size,
    pages,
    proved_if_more,
    solutions,
)

_for_admins = only(attrgetter("is_admin"), members.ADMINS_ONLY)
_LEVELS = tuple(AccessLevel)
_ROLES = [(role, role_text(role)) for role in (Role.MEMBER, Role.ADMIN)]


@pages.get("/members", endpoint="people")
@in_workspace
def index() -> Response:
    """List the people of a workspace: leads look, administrators change."""
    filters = _filters()
    with reading() as session:
        found = people.list_for(session, seat(), filters, number=page_number(), size=page_size(), now=actor().at)
        every = solutions(session)
        waiting = len(invitations.list_open(session, actor(), seat())) if seat().is_admin else 0
    given = {name: getattr(filters, name) or None for name in ("q", "role", "solution", "state")}
    return page(
        "people/index.html",
        rows=[_listed(row) for row in found.rows],
        filters=filters,
        narrowed=any(given.values()),
        solutions=every,
        page=found.number,
        pages=found.count,
        total=found.total,
        first=found.first,
        last=found.last,
        url=here("people", **given),
        is_admin=seat().is_admin,
        waiting=waiting,
    )


def _filters() -> Filters:
    given = request.args
    role, solution, state = given.get("role", ""), given.get("solution", ""), given.get("state", "")
    return Filters(
        q=clean_line(without_keys(given.get("q", ""))[:100]) or "",
        role=role if role in people.ROLES else "",
        solution=solution if SLUG.fullmatch(solution) else "",
        state=state if state in people.STATES else "",
    )


def _listed(row: Listed) -> dict[str, Any]:
    return {
        "id": row.member.public_id,
        "name": row.member.name,
        "is_me": row.member.id == seat().member.id,
        "role_text": role_text(row.member.role, is_lead=row.is_lead),
        "access": "Manages everything" if row.member.role == Role.ADMIN else access_words(row.access),
        "keys": row.keys,
        "last_used_at": row.last_used_at,
        "state": _state(row.member),
    }


def _state(member: Member) -> str:
    if member.is_active and member.account and member.account.deactivated_at:
        return "off"  # by an operator, everywhere
    return "removed" if member.removed_at else "deactivated" if member.deactivated_at else "active"


@pages.get("/members/<public_id:mid>", endpoint="person")
@in_workspace
def person(mid: str) -> Response:
    """Show one person: facts, access, and to administrators their keys."""
    with reading() as session:
        found = people.get(session, seat(), mid)
        sees_keys = seat().is_admin or found.id == seat().member.id
        keys, count = keys_of(session, found) if sees_keys else ([], 0)
        led = offboarding.api_members_led_by(session, found) if seat().is_admin else []
        every = solutions(session)
        about = _about(found, every, members.levels_of(session, found, every))
    return page("people/person.html", keys=keys, key_count=count, sees_keys=sees_keys, led=led, **about)


def _about(member: Member, every: Sequence[Solution], levels: Mapping[str, AccessLevel]) -> dict[str, Any]:
    names = {solution.slug: solution.name for solution in every}
    return {
        "one": member,
        "email": member.account.email if member.account else "",
        "state": _state(member),
        "is_me": member.id == seat().member.id,
        "is_admin": seat().is_admin,
        "role_text": role_text(member.role, is_lead=AccessLevel.MANAGE in levels.values()),
        "levels": [(names[slug], LEVEL_WORDS[level]) for slug, level in levels.items()],
    }


# --- Roles and access -----------------------------------------------------------------------------------------------


@pages.route("/members/<public_id:mid>/access", methods=["GET", "POST"], endpoint="person_access")
@in_workspace
@_for_admins
def access(mid: str) -> Response:
    """Change a person's role and access. More of it asks for the password, less never does."""
    if request.method != "POST":
        return _access_form(mid)
    return proved_if_more(_save_access, mid)


def _save_access(mid: str, is_proved: bool) -> Response:
    role = answer("role")
    was = was_shown()
    chosen: dict[str, AccessLevel] = {}
    try:
        chosen = levels_in_form(_LEVELS)
        with transaction() as session:
            saved = people.set_access(
                session, actor(), keyring(), mid, role=role, levels=chosen, was=was, is_proved=is_proved
            )
    except Invalid as error:
        return _access_form(mid, role, chosen, was, errors=error.problems)
    except Conflict as error:
        return _access_form(mid, conflict=error.message)
    name = saved.member.name
    told = f"Access of “{name}” is saved." if saved.is_changed else f"Access of “{name}” is as it was."
    if saved.withdrawn:
        invited = "invitation" if saved.withdrawn == 1 else "invitations"
        told += f" {saved.withdrawn} open {invited} of theirs ended with it."
    flash(told + lost_in_words(saved.losses))
    return _back_to(mid)


def _back_to(mid: str) -> Response:
    """Go back to the person, or where whoever has just stopped being an administrator may be."""
    with reading() as session:
        still = members.find_seat(session, seat().member.account_id or 0, seat().workspace.slug)
    url = here("person", mid=mid) if still and still.is_lead else f"/w/{seat().workspace.slug}"
    return make_response(redirect(url if still else "/w", 303))


def _access_form(
    mid: str,
    role: str = "",
    chosen: Mapping[str, AccessLevel] | None = None,
    was: str | None = None,
    *,
    errors: Mapping[str, str] | None = None,
    conflict: str = "",
) -> Response:
    """Show the form as things are; or with answers, and what they were given to (`was`)."""
    with reading() as session:
        found = people.get(session, seat(), mid)
        every = solutions(session)
        levels = members.levels_of(session, found, every)
        at_risk = offboarding.keys_at_risk(session, actor(), seat(), keyring(), found)
        rows = matrix(session, every, _LEVELS, levels, chosen or {}, at_risk=at_risk)
    about = _about(found, every, levels)
    about |= {"matrix": rows, "roles": _ROLES, "role": role or found.role, "errors": errors or {}}
    about["was"] = people.version_of(found.role, levels) if was is None else was
    status = 422 if errors else 409 if conflict else 200
    return page("people/access.html", status, conflict=conflict, **about)


# --- Leaving and coming back ----------------------------------------------------------------------------------------


@pages.route("/members/<public_id:mid>/leave", methods=["GET", "POST"], endpoint="leave")
@in_workspace
@_for_admins
def leave(mid: str) -> Response:
    """Show what stops before somebody is demoted, deactivated or removed (`then`); then do it."""
    if request.method != "POST":
        return _leave_page(mid, request.args.get("then", ""))
    try:
        with transaction() as session:
            found = people.leave(session, actor(), mid, answer("then"))
    except (Invalid, Conflict) as error:
        status = 422 if isinstance(error, Invalid) else 409
        return _leave_page(mid, answer("then"), conflict=error.message, status=status)
    told = {
        "demote": "is a plain member now",
        "deactivate": "is deactivated. Requests with their keys are refused from now",
        "remove": "was removed. Requests with their keys are refused from now",
    }
    flash(f"“{found.name}” {told[answer('then')]}.")
    return _back_to(mid)


def _leave_page(mid: str, then: str, *, conflict: str = "", status: int = 200) -> Response:
    with reading() as session:
        found = people.preview(session, actor(), seat(), keyring(), mid)
        about = _about(found.member, found.solutions, found.levels)
    choices = [("demote", "Demote")] if found.member.role == Role.ADMIN else []
    if found.member.is_active:
        choices.append(("deactivate", "Deactivate"))
    choices.append(("remove", "Remove"))
    then = then if then in dict(choices) else "deactivate" if found.member.is_active else "remove"
    heir, kept = _heir(found, public_id(request.args.get("to", "")))
    rows = [_at_risk(each, found, then, kept if heir else None) for each in found.keys]
    return page(
        "people/leave.html",
        status,
        then=then,
        choices=choices,
        rows=rows,
        stopping=sum(row["stops"] for row in rows),
        shrinking=sum(bool(row["lost"]) and not row["stops"] for row in rows),
        today=sum(row["today"] for row in rows if row["stops"] or row["lost"]),
        led=found.led,
        heirs=[member for member, _ in found.heirs],
        heir=heir,
        is_last_admin=found.is_last_admin,
        conflict=conflict,
        **about,
    )


def _heir(found: Preview, wanted: str) -> tuple[Member | None, Mapping[str, AccessLevel]]:
    """Choose the API member that keys are offered to be moved to: the one asked for, else the one that keeps most."""
    moving = [each for each in found.keys if each.key.may_move]

    def lost(levels: Mapping[str, AccessLevel]) -> int:
        return sum(len(each.lost_at(levels)) for each in moving)

    for heir in found.heirs:
        if heir[0].public_id == wanted:
            return heir
    best = min(found.heirs, key=lambda each: lost(each[1]), default=None)
    held = lost({})
    return best if best and (not held or lost(best[1]) < held) else (None, {})


def _at_risk(each: KeyAtRisk, found: Preview, then: str, heir: Mapping[str, AccessLevel] | None) -> dict[str, Any]:
    lost = each.lost_at(found.levels) if then == "demote" else []
    return {
        "key": each.key,
        "today": each.today,
        "lost": lost,
        "stops": then != "demote" or (bool(each.scopes) and len(lost) == len(each.scopes)),
        "heir_lacks": len(each.lost_at(heir)) if heir is not None else 0,
        "count": len(each.scopes),
    }


@pages.route("/members/<public_id:mid>/reactivate", methods=["GET", "POST"], endpoint="reactivate_person")
@in_workspace
@_for_admins
@recently_proved("to let somebody back in")
def reactivate(mid: str) -> Response:
    """Let somebody back in; their keys are started one by one."""
    if request.method != "POST":
        with reading() as session:
            found = people.get(session, seat(), mid)
            _, count = keys_of(session, found)
            every = solutions(session)
            about = _about(found, every, members.levels_of(session, found, every))
        return page("people/reactivate.html", key_count=count, **about)
    with transaction() as session:
        found, count = people.reactivate(session, actor(), mid)
    keys = f" {count} {'key of theirs stays' if count == 1 else 'keys of theirs stay'} deactivated."
    flash(f"“{found.name}” is active again.{keys if count else ''}")
    return make_response(redirect(here("person", mid=mid), 303))


# --- Invitations ----------------------------------------------------------------------------------------------------


@pages.route("/members/invite", methods=["GET", "POST"], endpoint="invite")
@in_workspace
@_for_admins
@recently_proved("to invite somebody")
def invite() -> Response:
    """Invite a person with a role and access; the answer shows the one-time link, once."""
    if request.method != "POST":
        return _invite_form({}, {})
    chosen: dict[str, AccessLevel] = {}
    email, role, base_url = answer("email"), answer("role"), portal().settings.base_url
    form_id = drafts.check_form_id(answer("form_id"))
    try:
        chosen = levels_in_form(_LEVELS)
        with transaction() as session:
            link = invitations.invite(
                session, actor(), email=email, role=role, levels=chosen, base_url=base_url, form_id=form_id
            )
    except Invalid as error:
        return _invite_form(chosen, error.problems)
    except AlreadyShown as error:
        with reading() as session:
            found = invitations.sent_before(session, seat(), error.made_id)
        return page("people/invited_before.html", 410, invitation=found)
    except Conflict as error:
        return _invite_form(chosen, {"email": error.message}, 409)
    afterwards(send_mails)
    return page("people/invited.html", link=link, email=email.strip(), days=invitations.INVITATION_LIFE.days)


def _invite_form(chosen: Mapping[str, AccessLevel], errors: Mapping[str, str], status: int = 422) -> Response:
    with reading() as session:
        every = solutions(session)
        rows = matrix(session, every, _LEVELS, {}, chosen)
        waiting = invitations.list_open(session, actor(), seat())
    names = {solution.slug: solution.name for solution in every}
    answers = {"email": without_keys(answer("email")), "role": answer("role") or Role.MEMBER}
    listed = [
        {
            "id": each.public_id,
            "email": each.email,
            "role_text": role_text(each.role),
            "access": access_words({names.get(slug, slug): AccessLevel(level) for slug, level in each.access.items()}),
            "by": by,
            "expires_at": each.expires_at,
        }
        for each, by in waiting
    ]
    context = {"matrix": rows, "answers": answers, "roles": _ROLES, "waiting": listed, "errors": errors}
    form_id = drafts.check_form_id(answer("form_id")) or drafts.new_form_id()
    return page("people/invite.html", status if errors else 200, form_id=form_id, **context)


@pages.route("/members/invitations/<public_id:iid>/withdraw", methods=["GET", "POST"], endpoint="withdraw")
@in_workspace
def withdraw(iid: str) -> Response:
    """End an invitation that was not accepted yet."""
    if request.method != "POST":
        with reading() as session:
            found = invitations.get(session, actor(), seat(), iid)
        return page("people/withdraw.html", invitation=found)
    with transaction() as session:
        found = invitations.withdraw(session, actor(), iid)
    flash(f"The invitation of {found.email} is withdrawn. Its link opens nothing any more.")
    return make_response(redirect(here("invite"), 303))
