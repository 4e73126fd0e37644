"""People and API members of a workspace: what their pages share. The pages themselves: `people`, `api_members`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request, url_for
from flask_login import current_user

from portal.rules.access import SLUG, AccessLevel
from portal.rules.errors import Invalid, NeedsProof, Unreadable
from portal.services import accounts, key_lists, members
from portal.services.key_lists import Filters
from portal.services.key_views import KeyView
from portal.services.offboarding import KeyAtRisk, Loss
from portal.store.database import Session
from portal.store.models import Member, Solution
from portal.web.display import LEVEL_WORDS, level_text, thousands
from portal.web.guards import actor, recently_proved, seat
from portal.web.http import answer
from portal.web.keys import keyring

pages = Blueprint("members", __name__, url_prefix="/w/<slug:ws>")

TO_API_MEMBERS = (AccessLevel.NONE, AccessLevel.READ, AccessLevel.FULL)
_FIELD = "access-"  # and the solution's slug: the name of its control (contract, section 4)
_KEYS_SHOWN = 20


def page(template: str, status: int = 200, /, **context: Any) -> Response:
    """Render a page of this area; it is whole for everybody who asks."""
    return make_response(render_template(template, **context), status)


def here(endpoint: str, **values: Any) -> str:
    """Give the address of a page of this area in the current workspace."""
    return url_for(f"members.{endpoint}", ws=seat().workspace.slug, **values)


def proved_if_more(save: Callable[[str, bool], Response], mid: str) -> Response:
    """Save a member's access; where it is more than before and the last proof too old, ask for the password first."""
    try:
        return save(mid, accounts.is_proved(current_user.user_session, actor().at))
    except NeedsProof:
        asking = recently_proved("to hand out access")(lambda: save(mid, True))
        return asking()  # type: ignore[no-any-return]


def page_size() -> int:
    """Give how many rows this person wants on a page."""
    size: int = current_user.account.page_rows
    return size


def solutions(session: Session) -> list[Solution]:
    """List the solutions of the current workspace."""
    return members.solutions_of(session, seat().workspace.id)


# --- The matrix of access -------------------------------------------------------------------------------------------


def levels_in_form(choices: Sequence[AccessLevel]) -> dict[str, AccessLevel]:
    """Read the levels that a form sets, by solution slug; Invalid for a word that names no level, with the `choices`.

    Whether a level may be given is for the service to say.
    """
    levels, problems = {}, {}
    words = {level.value: level for level in AccessLevel}
    for name in request.form:
        if not name.startswith(_FIELD):
            continue
        slug = name.removeprefix(_FIELD)
        if not SLUG.fullmatch(slug):
            raise Unreadable("The form names a solution that cannot be one.")
        level = words.get(answer(name))
        if level is None:
            problems[name] = (
                f"Choose {', '.join(LEVEL_WORDS[each] for each in choices[:-1])} or {LEVEL_WORDS[choices[-1]]}."
            )
        else:
            levels[slug] = level
    if problems:
        raise Invalid(problems)
    return levels


def matrix(
    session: Session,
    solutions: Sequence[Solution],
    choices: Sequence[AccessLevel],
    levels: Mapping[str, AccessLevel],
    chosen: Mapping[str, AccessLevel],
    *,
    givers: Mapping[str, str] | None = None,
    at_risk: Sequence[KeyAtRisk] = (),
) -> list[dict[str, Any]]:
    """Lay out access solution by solution: a control where the viewer hands it out, else text with the reason.

    `levels` is how things stand, `chosen` what was answered, `at_risk` the keys that would lose by less.
    """
    viewer = seat()
    others = [solution.id for solution in solutions if viewer.level_in(solution.id) is not AccessLevel.MANAGE]
    who = members.granters(session, viewer, others, for_api_member=True) if others else {}
    rows = []
    for solution in solutions:
        mine = viewer.level_in(solution.id)
        level = levels.get(solution.slug, AccessLevel.NONE)
        may = mine is AccessLevel.MANAGE
        rows.append(
            {
                "slug": solution.slug,
                "name": solution.name,
                "field": f"{_FIELD}{solution.slug}",
                "level": level.value,
                "level_text": LEVEL_WORDS[level],
                "set_by": (givers or {}).get(solution.slug, ""),
                "may": may,
                "mine": level_text(mine),
                "who": who.get(solution.id, ()),
                "options": [(each.value, LEVEL_WORDS[each]) for each in choices],
                "chosen": chosen.get(solution.slug, level).value,
                "in_use": _in_use(at_risk, solution.slug),
            }
        )
    return rows


def reach(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Name the solutions that a matrix as it is answered lets somebody read, and those that it lets them change."""
    held = [(row["name"], row["chosen"] if row["may"] else row["level"]) for row in rows]
    return {
        "reads": [name for name, level in held if level == AccessLevel.READ.value],
        "changes": [name for name, level in held if level == AccessLevel.FULL.value],
    }


def _in_use(at_risk: Sequence[KeyAtRisk], solution: str) -> list[dict[str, Any]]:
    """Say which keys use a solution, and how much: what lowering would take."""
    return [
        {"key": each.key, "scopes": used}
        for each in at_risk
        if (used := [scope for scope in each.scopes if scope.solution == solution])
    ]


def access_words(access: Mapping[str, AccessLevel]) -> str:
    """Sum up access by solution name, such as "Full Sales, read Operations"."""
    words = ", ".join(f"{level.value} {name}" for name, level in access.items() if level is not AccessLevel.NONE)
    return words[:1].upper() + words[1:]


def lost_in_words(losses: Sequence[Loss]) -> str:
    """Count what keys have lost: it is read out, and the member's keys stand below it."""
    return f" {_counted(losses, 'lost')}." if losses else ""


def losing_in_words(losses: Sequence[Loss]) -> str:
    """Say what keys would lose if it were saved, with how much it was used."""
    if not losses:
        return ""
    scopes = [(loss, scope) for loss in losses for scope in loss.scopes]
    told = [
        f"{scope.text} of “{loss.key.name}” (…{loss.key.last_four}), {_used(scope.count)}" for loss, scope in scopes[:5]
    ]
    more = f" and {len(scopes) - 5} more" if len(scopes) > 5 else ""
    return f" {_counted(losses, 'loses' if len(losses) == 1 else 'lose')}: {'; '.join(told)}{more}."


def _counted(losses: Sequence[Loss], verb: str) -> str:
    keys, scopes = len(losses), sum(len(loss.scopes) for loss in losses)
    return f"{keys} active {'key' if keys == 1 else 'keys'} {verb} {scopes} {'scope' if scopes == 1 else 'scopes'}"


def _used(count: int) -> str:
    return f"used {thousands(count)} {'time' if count == 1 else 'times'} in 30 days" if count else "not used in 30 days"


def keys_of(session: Session, member: Member) -> tuple[list[KeyView], int]:
    """Give a member's keys as far as the viewer may see them, and how many there are."""
    filters = Filters(owner=member.public_id)
    found = key_lists.list_for(session, actor(), seat(), keyring(), filters, 1, _KEYS_SHOWN)
    return found.rows, found.total
