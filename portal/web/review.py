"""The review of a workspace's keys: findings, one recommended action each, and what was looked at."""

from typing import Any

from flask import Blueprint, Response, flash, make_response, redirect, render_template, request, url_for
from markupsafe import Markup

from portal.rules.errors import Invalid, NotFound
from portal.rules.lifetimes import Lifetime
from portal.services import activity, key_views, keys, review
from portal.services.review import Advice, Finding, Reviewed
from portal.store.database import Session
from portal.web.display import both, ours, people_text, thousands
from portal.web.guards import actor, in_workspace, seat
from portal.web.http import answer, page_number, public_id, reading, reading_much, transaction, without_keys
from portal.web.keys import keyring

pages = Blueprint("review", __name__, url_prefix="/w/<slug:ws>/review")

_MOST = 100  # keys stopped at once
_NAMED = 5  # of these, where they were stopped before: what is told next goes by a cookie, which holds 4 KB
FINDINGS = {
    Finding.OWNER_LOST: "Owner left or lost access",
    Finding.ABOVE_GRANTER: "Granted above granter",
    Finding.EXPIRING: "Expires within 14 days",
    Finding.REFUSED_OFTEN: "Refused often",
    Finding.ADMIN_OWNED: "Owned by an administrator",
    Finding.STALE: "Unused for 30 days",
    Finding.NEVER_USED: "Never used",
    Finding.TOO_LONG: "Lives longer than the policy",
    Finding.NEVER_EXPIRES: "Never expires",
    Finding.UNUSED_SCOPES: "Unused scopes",
}


@pages.get("")
@in_workspace
def index() -> Response:
    """Show what needs a look, live before sandbox, the riskiest first."""
    wanted = request.args.get("finding", "")
    finding = Finding(wanted) if wanted in list(Finding) else None
    with reading_much() as session:
        found = review.look(session, actor(), seat(), keyring(), finding, page_number())
        last = review.last_look(session, seat())
    return make_response(
        render_template(
            "review/index.html",
            rows=[_row(key) for key in found.keys],
            cards=[(str(each), label, found.counts.get(each, 0)) for each, label in FINDINGS.items()],
            finding=str(finding or ""),
            finding_label=FINDINGS[finding] if finding else "",
            total=found.total,
            page=found.number,
            pages=found.pages,
            last=last,
            whose=_whose(),
        )
    )


def _whose() -> str:
    here = seat()
    if here.is_admin:
        return f"all keys of {here.workspace.name}"
    return "your keys and those of your API members" if here.is_lead else "your keys"


def _row(key: Reviewed) -> dict[str, Any]:
    ws = seat().workspace.slug
    urls = {
        Advice.DEACTIVATE: url_for("review.stop", ws=ws, key=key.id),  # which comes back to the review
        Advice.ROTATE: url_for("keys.rotate", ws=ws, key_id=key.id),
        Advice.ROTATE_NARROWER: url_for("keys.rotate", ws=ws, key_id=key.id),
        Advice.MOVE: url_for("keys.move", ws=ws, key_id=key.id),
        Advice.LOOK: url_for("keys.requests", ws=ws, key_id=key.id),
    }
    words = {
        Advice.DEACTIVATE: "Deactivate",
        Advice.ROTATE: "Rotate with expiry",
        Advice.ROTATE_NARROWER: "Rotate narrower",
        Advice.MOVE: "Move to API member",
        Advice.LOOK: "See requests",
    }
    if Finding.NEVER_EXPIRES in key.findings or Finding.TOO_LONG in key.findings:
        urls[Advice.ROTATE] = url_for("keys.rotate", ws=ws, key_id=key.id, expires=Lifetime.DAYS_90)
    else:
        words[Advice.ROTATE] = "Rotate"
    others = [each for each in (Advice.DEACTIVATE, Advice.LOOK) if each is not key.advice]
    return {
        "key": key,
        "chips": [(str(each), FINDINGS[each]) for each in key.findings],
        "evidence": [_evidence(key, each) for each in key.findings],
        "first": (words[key.advice], urls[key.advice]),
        "others": [(words[each], urls[each]) for each in others],
    }


def _evidence(key: Reviewed, finding: Finding) -> Markup:
    """Say in a sentence what a finding rests on, with its moments as `display.both` writes them."""
    owner, made = people_text(key.owner_name), both(key.created_at)
    use = f"last used {both(key.last_used_at)}" if key.last_used_at else "never used"
    said = {
        Finding.OWNER_LOST: (
            f"{owner} lost the access that {_lost(key)}."
            if key.owner_is_active
            else f"{owner} is deactivated or has left: every request is refused."
        ),
        Finding.ABOVE_GRANTER: f"Who gave {owner} this access cannot hand it out any more.",
        Finding.EXPIRING: f"It stops {both(key.expires_at)}, {use}." if key.expires_at else "",
        Finding.REFUSED_OFTEN: f"{thousands(key.refusals)} requests were refused in the last 24 hours.",
        Finding.ADMIN_OWNED: (
            f"It acts for an administrator, {use}. A program needs less: give it an API member of its own."
        ),
        Finding.STALE: f"It was {use}.",
        Finding.NEVER_USED: f"Made {made} and never used.",
        Finding.TOO_LONG: "It was made for longer than the policy allows now.",
        Finding.NEVER_EXPIRES: f"Made {made}, {use}.",
        Finding.UNUSED_SCOPES: f"{_scopes(key.scope_count)}, {key.unused_scopes} not used in 60 days.",
    }[finding]
    return ours(said)


def _lost(key: Reviewed) -> str:
    if key.paused_scopes == key.scope_count:
        return "its only scope needs" if key.scope_count == 1 else f"all its {key.scope_count} scopes need"
    return f"{key.paused_scopes} of its {key.scope_count} scopes {'needs' if key.paused_scopes == 1 else 'need'}"


def _scopes(count: int) -> str:
    return f"{count} {'scope' if count == 1 else 'scopes'}"


@pages.route("/<public_id:key_id>/reviewed", methods=["GET", "POST"])
@in_workspace
def reviewed(key_id: str) -> Response:
    """Note that a finding is fine, with why: it is hidden for 90 days."""
    wanted = request.args.get("finding", "") if request.method != "POST" else answer("finding")
    if wanted not in list(Finding):
        raise NotFound()
    finding = Finding(wanted)
    if request.method != "POST":  # HEAD is a GET
        return _fine_page(key_id, finding)
    try:
        with transaction() as session:
            name = review.mark_fine(session, actor(), key_id, finding, answer("note"))
    except Invalid as error:
        return _fine_page(key_id, finding, answer("note"), error.problems)
    flash(f"“{name}”: {FINDINGS[finding].lower()} is fine for 90 days.")
    return make_response(redirect(url_for("review.index", ws=seat().workspace.slug), 303))


def _fine_page(key_id: str, finding: Finding, note: str = "", errors: dict[str, str] | None = None) -> Response:
    with reading() as session:
        key = key_views.get(session, actor(), seat(), keyring(), key_id)
    context = {"key": key, "finding": str(finding), "label": FINDINGS[finding], "note": without_keys(note)[:400]}
    status = 422 if errors else 200
    return make_response(render_template("review/fine.html", **context, errors=errors or {}), status)


@pages.route("/deactivate", methods=["GET", "POST"])
@in_workspace
def stop() -> Response:
    """Deactivate several keys at once: those that are still ticked on a page that tells what each of them does."""
    given = request.args if request.method != "POST" else request.form
    ids = [each for each in given.getlist("key") if public_id(each)][:_MOST]
    if request.method != "POST":  # HEAD is a GET
        with reading() as session:
            rows = [_stopping(session, key) for key in review.chosen(session, actor(), seat(), keyring(), ids)]
        total = sum(row["impact"].total for row in rows)
        return make_response(render_template("review/deactivate.html", rows=rows, grand_total=total))
    with transaction() as session:
        stopped, before = keys.deactivate_those_active(session, actor(), ids)
    told = []
    if stopped:
        told = [f"{len(stopped)} {'key is' if len(stopped) == 1 else 'keys are'} deactivated."]
        told += ["Requests are refused from now."]
    if before:
        names = [f"“{name}”" for name in before[:_NAMED]]
        more = f" and {len(before) - _NAMED} more" if len(before) > _NAMED else ""
        told += [f"Stopped already: {', '.join(names)}{more}."]
    flash(" ".join(told) or "No key was chosen. Nothing was changed.")
    return make_response(redirect(url_for("review.index", ws=seat().workspace.slug), 303))


def _stopping(session: Session, key: Reviewed) -> dict[str, Any]:
    row = key_views.row_of(session, seat(), key.id)
    impact = activity.impact_of(session, row, actor().at)
    return {"key": key, "impact": impact, "ticked": not impact.is_busy}
