"""What an event of the audit log says: one sentence, in parts, and what changed from what to what."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from string import Formatter
from typing import Any, NamedTuple

from portal.rules.errors import Refusal
from portal.services import audit_reading
from portal.services.actor import Means
from portal.services.audit import Event
from portal.services.audit_views import Names
from portal.store.models import AuditEvent
from portal.web import refusals
from portal.web.display import absolute, thousands

_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A piece of a sentence; `kind` is '' for our own words, `name` for what people chose, `code` for scopes."""

    text: str
    kind: str = ""
    at: datetime | None = None  # where it is a moment


class Change(NamedTuple):
    """One thing that an event changed, in words."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Telling:
    """One event as pages tell of it."""

    id: str
    seq: int
    at: datetime | None  # None: the event cannot be read
    actor: str  # '' where the sentence has another subject
    parts: tuple[Part, ...]
    changes: tuple[Change, ...]
    address: str
    is_refused: bool
    means: str
    target_id: str

    @property
    def text(self) -> str:
        """The sentence as plain text, without its subject."""
        return "".join(part.text for part in self.parts)


# What was done, and how trying it is called. A field in braces is one of the functions or details below.
_SAYS: dict[Event, tuple[str, str]] = {
    Event.SIGNED_IN: ("{target} signed in", "sign in as {target}"),
    Event.SIGN_IN_FAILED: ("gave a password that did not match, for {target}", "sign in as {target}"),
    Event.SIGNED_OUT: ("signed out", "sign out"),
    Event.PROVED: ("confirmed their password", "confirm their password"),
    Event.SESSIONS_ENDED: ("signed out {count}", "sign out other sessions"),
    Event.LOOK_REFUSED: ("opened {target}", "open {target}"),
    Event.FORM_REFUSED: ("sent the form {target}", "send the form {target}"),
    Event.PASSWORD_CHANGED: ("changed their password", "change their password"),
    Event.PASSWORD_RESET_ASKED: (
        "asked for a link to choose a new password, for {target}",
        "get a link to choose a new password, for {target}",
    ),
    Event.PASSWORD_RESET: ("chose a new password by a link, for {target}", "choose a new password, for {target}"),
    Event.WORKSPACE_CREATED: ("created the workspace {target}", "create the workspace {target}"),
    Event.SOLUTION_ADDED: ("added the solution {target}", "add the solution {target}"),
    Event.APP_ADDED: ("added the app {target}", "add the app {target}"),
    Event.SOLUTION_CHANGED: ("changed the solution {target}", "change the solution {target}"),
    Event.APP_CHANGED: ("changed the app {target}", "change the app {target}"),
    Event.POLICY_CHANGED: ("changed the workspace’s policy", "change the workspace’s policy"),
    Event.MEMBER_INVITED: ("invited {target}{as_role}", "invite {target}"),
    Event.INVITATION_WITHDRAWN: ("withdrew the invitation of {target}", "withdraw the invitation of {target}"),
    Event.MEMBER_JOINED: ("{target} joined{as_role}", "let {target} join"),
    Event.MEMBER_EDITED: ("changed {what}", "change the facts of {target}"),
    Event.MEMBER_DEACTIVATED: ("deactivated {target}; their keys stopped", "deactivate {target}"),
    Event.MEMBER_REACTIVATED: ("reactivated {target}", "reactivate {target}"),
    Event.MEMBER_REMOVED: ("removed {target} from the workspace", "remove {target} from the workspace"),
    Event.ACCOUNT_DEACTIVATED: (
        "deactivated the account of {target}: it cannot sign in, its keys stopped",
        "deactivate the account of {target}",
    ),
    Event.ACCOUNT_REACTIVATED: ("reactivated the account of {target}", "reactivate the account of {target}"),
    Event.ROLE_CHANGED: ("changed the role of {target}", "change the role of {target}"),
    Event.MANAGER_CHANGED: ("changed who manages {target}", "change who manages {target}"),
    Event.API_MEMBER_CREATED: ("made the API member {target}", "make the API member {target}"),
    Event.ACCESS_GRANTED: ("changed the access of {target}", "change the access of {target}"),
    Event.KEY_GENERATED: ("generated the {env} key {target}{owner}{scopes}{expires}", "generate the key {target}"),
    Event.KEY_DEACTIVATED: ("deactivated the {env} key {target}{because}", "deactivate the key {target}"),
    Event.KEY_REACTIVATED: ("reactivated the {env} key {target}", "reactivate the key {target}"),
    Event.KEY_ROTATED: ("rotated the {env} key {target}{retires}", "rotate the key {target}"),
    Event.KEY_RETIRED: ("retired the {env} key {target}", "retire the key {target}"),
    Event.KEY_OVERLAP_EXTENDED: (
        "let the old {env} key {target} work longer{retires}",
        "let the old key {target} work longer",
    ),
    Event.KEY_EDITED: ("changed the name or note of the key {target}", "change the name or note of the key {target}"),
    Event.KEY_RATE_CHANGED: (
        "changed how many requests the {env} key {target} may send",
        "change how many requests the key {target} may send",
    ),
    Event.KEY_DELETED: ("deleted the {env} key {target}{because}", "delete the key {target}"),
    Event.KEY_IDENTIFIED: ("asked which key a text is: {found}", "ask which key a text is"),
    Event.KEY_REFUSED: ("Requests with the {env} key {target} were refused: {why}", "use the key {target}"),
    Event.KEY_REVIEWED: ("reviewed the key {target}: looks fine{note}", "mark the key {target} as fine"),
    Event.BACKUP_RESTORED: ("restored the backup of {made}", "restore a backup"),
    Event.AUDIT_EXPORTED: ("exported the audit log as {format}", "export the audit log"),
    Event.VERIFIER_MADE: ("made the verifier {target}", "make the verifier {target}"),
    Event.VERIFIER_REVOKED: ("revoked the verifier {target}", "revoke the verifier {target}"),
    Event.RECORD_CREATED: ("created a {env} record in {target}", "create a record in {target}"),
    Event.RECORD_CHANGED: ("changed a {env} record in {target}", "change a record in {target}"),
    Event.RECORD_DELETED: ("deleted a {env} record in {target}", "delete a record in {target}"),
    Event.SANDBOX_FILLED: ("filled the sandbox of {target} with {copied}", "fill the sandbox of {target}"),
}
_INVITED = "{target} got the access that their invitation{by} gives"
_COUNTED = {"count": "other session", "copied": "record"}
_LEVELS = {"none": "no access", "read": "read", "full": "full", "manage": "manage"}
_ROLES = {"admin": "administrator", "member": "member"}
_FACTS = {
    "max_key_days": "Longest life of a key, in days",
    "admins_own_live": "Administrators may own live keys",
    "rate_per_minute": "Requests in any 60 seconds (none: as usual)",
    "rate_per_second": "Requests in any second (none: as usual)",
    "is_external": "Its data lives in another product",
}


def tell(event: AuditEvent, names: Names) -> Telling:
    """Put an event into words; one whose details are not as anybody writes them is unreadable."""
    try:
        return _told(event, names)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
        _log.exception("an event of the audit log cannot be told: %s", event.public_id)
        instead = audit_reading.unreadable(event.seq, event.public_id)
        instead.at = event.at
        return _told(instead, names)


def _told(event: AuditEvent, names: Names) -> Telling:
    is_refused = event.outcome == "refused"
    actor = event.actor_name if event.actor_name != "visitor" or event.actor_id else "Somebody"
    if "more" in event.details:
        actor, parts = "", tuple(_counted(event, names))
    elif event.action == Event.KEY_REFUSED:
        actor, parts = "", tuple(_filled(_SAYS[Event.KEY_REFUSED][0], event, names))
    elif is_refused:
        reason = str(event.details.get("reason") or "the answer does not match")
        attempt = _filled(_words_of(event.action)[1], event, names)
        parts = (Part("tried to "), *attempt, Part(". Refused: "), Part(reason, "name"))
    elif event.action == Event.ACCESS_GRANTED and "invited_by" in event.details:
        actor, parts = "", tuple(_filled(_INVITED, event, names))
    else:
        actor = "" if event.action in (Event.MEMBER_JOINED, Event.SIGNED_IN) else actor
        parts = tuple(_filled(_words_of(event.action)[0], event, names))
    return Telling(
        id=event.public_id,
        seq=event.seq,
        at=event.at,
        actor=actor,
        parts=parts,
        changes=() if is_refused else tuple(_changes(event, names)),
        address=event.address or "",
        is_refused=is_refused,
        means=_MEANS.get(event.means, event.means),
        target_id=event.target_id or "",
    )


_MEANS = {
    str(Means.SESSION): "in the portal",
    str(Means.KEY): "with a key",
    str(Means.COMMAND): "by a command",
    str(Means.SYSTEM): "by itself",
}


def _words_of(action: str) -> tuple[str, str]:
    """Give an event's two sentences; of one that a later version wrote, its name."""
    unknown = action.replace("_", " ")
    return _SAYS[Event(action)] if action in list(Event) else (f"{unknown}: {{target}}", unknown)


def _counted(event: AuditEvent, names: Names) -> Iterator[Part]:
    """Tell of attempts of an hour that were counted and not written down one by one."""
    more, who = int(event.details["more"]), str(event.details.get("who", "?"))
    hour = _moment(event.details.get("hour"))
    name = names.keys.get(who) or names.members.get(who) or who
    plural, were = ("", "was") if more == 1 else ("s", "were")
    if event.action == Event.KEY_REFUSED:
        yield from (Part(f"{thousands(more)} more request{plural} with the key "), Part(name, "name"))
        reason = str(event.details.get("reason", ""))
        words = refusals.words_of(reason, "a scope") if reason in list(Refusal) else "for several reasons"
        yield from (Part(f" {were} refused in the hour from "), hour, Part(f": {words}"))
    else:
        attempt = _words_of(event.action)[1].partition(" {target}")[0].rstrip(",")
        yield from (Part(f"{thousands(more)} more attempt{plural} to {attempt} by "), Part(name, "name"))
        yield from (Part(f" {were} refused in the hour from "), hour)


def _filled(pattern: str, event: AuditEvent, names: Names) -> Iterator[Part]:
    for words, name, _, _ in Formatter().parse(pattern):
        if words:
            yield Part(words)
        if name:
            yield from _field(name, event, names)


def _field(name: str, event: AuditEvent, names: Names) -> Iterator[Part]:
    details = event.details
    if name == "target":
        yield Part(event.target_name or event.target_id or "something", "name")
    elif name == "what" and event.actor_id == event.target_id:
        yield Part("their own name")
    elif name == "what":
        yield from (Part("the facts of "), Part(event.target_name, "name"))
    elif name == "env":
        yield Part({"live": "live", "test": "sandbox"}.get(details.get("environment", ""), "API"))
    elif name == "owner":
        owner = details.get("owner_name") or names.members.get(details.get("owner", ""), "")
        yield from (Part(" for "), Part(owner, "name")) if owner else ()
    elif name == "scopes" and details.get("scopes"):
        yield from (Part(" with "), Part(", ".join(map(str, details["scopes"])), "code"))
    elif name == "expires" and "expires_at" in details:
        ends = details["expires_at"]
        yield from (Part("; expires "), _moment(ends)) if ends else (Part("; never expires"),)
    elif name == "retires" and details.get("retires_at"):
        yield from (Part("; the old one stops "), _moment(details["retires_at"]))
    elif name == "by" and details.get("invited_by"):
        yield from (Part(" by "), Part(str(details["invited_by"]), "name"))
    elif name == "because" and details.get("reason"):
        yield from (Part(": "), Part(str(details["reason"]), "name"))
    elif name == "as_role" and details.get("role"):
        yield Part(f" as {_ROLES.get(details['role'], details['role'])}")
    elif name == "note" and details.get("note"):
        yield from (Part(", “"), Part(str(details["note"]), "name"), Part("”"))
    elif name == "found":
        yield Part(event.target_name or "no key here", "name")
    elif name == "why":
        yield Part(refusals.told_of(details))
    elif name in _COUNTED:
        many = details.get(name, "?")
        yield Part(f"{many} {_COUNTED[name]}{'' if many == 1 else 's'}")
    elif name == "made":
        yield _moment(details.get(name))
    elif name == "format":
        yield Part(str(details.get(name, "?")), "name")


def _changes(event: AuditEvent, names: Names) -> Iterator[Change]:
    details = event.details
    before, after = details.get("before"), details.get("after")
    if event.action == Event.API_MEMBER_CREATED:
        before, after = {}, details.get("access") or {}
    if event.action == Event.KEY_EDITED and isinstance(before, list) and isinstance(after, list):
        pairs = zip(("Name", "Note"), before, after, strict=False)
        yield from (Change(what, str(old), str(new)) for what, old, new in pairs if old != new)
    elif event.action == Event.ROLE_CHANGED:
        yield Change("Role", _ROLES.get(str(before), str(before)), _ROLES.get(str(after), str(after)))
    elif event.action == Event.MANAGER_CHANGED:
        yield Change("Manager", _member(details, "before", names), _member(details, "after", names))
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        is_access = event.action in (Event.ACCESS_GRANTED, Event.API_MEMBER_CREATED)
        for slug in sorted({*before, *after}):
            if is_access:
                old, new = before.get(slug, "none"), after.get(slug, "none")
                if old != new:
                    yield Change(names.solutions.get(slug, slug), _LEVELS.get(old, "?"), _LEVELS.get(new, "?"))
            elif before.get(slug) != after.get(slug):
                yield Change(_FACTS.get(slug, slug.capitalize()), _plain(before.get(slug)), _plain(after.get(slug)))


def _member(details: Mapping[str, Any], which: str, names: Names) -> str:
    member_id = str(details.get(which) or "nobody")
    return str(details.get(f"{which}_name") or names.members.get(member_id, member_id))


def _plain(value: Any) -> str:
    if isinstance(value, dict | list):
        return "…"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def _moment(written: Any) -> Part:
    try:
        at = datetime.fromisoformat(written)
        return Part(absolute(at), at=at)
    except (ValueError, TypeError, OverflowError):
        return Part("?" if written is None else str(written), "name")
