"""Telling people that keys expire: 30, 7 and 1 days ahead, once each, one mail a person and workspace."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import contains_eager

from portal.rules.credentials import Keyring
from portal.services import members, outbox
from portal.store.database import Session
from portal.store.models import Account, ApiKey, ExpiryNotice, Member, Workspace

DAYS = (1, 7, 30)


@dataclass(frozen=True, slots=True)
class _Due:
    """A key of which somebody is to hear."""

    key: ApiKey
    days: int


def write_due(session: Session, now: datetime, keyring: Keyring, base_url: str) -> tuple[int, int]:
    """Put the mails that are due into the outbox; give how many, and about how many keys.

    Of a key only the most urgent notice is sent: whoever hears late hears once. The owner is told, of an API member's
    key its manager; where there is none any more, the workspace's administrators.
    """
    due = _due(session, now)
    letters: defaultdict[tuple[int, int], list[_Due]] = defaultdict(list)
    people: dict[int, Account] = {}
    places: dict[int, Workspace] = {}
    for each in due:
        session.add(ExpiryNotice(key_id=each.key.id, days=each.days, at=now))
        places[each.key.workspace_id] = each.key.member.workspace
        for account in _who_answers(session, each.key):
            people[account.id] = account
            letters[account.id, each.key.workspace_id].append(each)
    for (account_id, workspace_id), keys in letters.items():
        subject, body = _letter(people[account_id], places[workspace_id], keys, now, keyring, base_url)
        outbox.put(session, now, people[account_id].email, subject, body)
    return len(letters), len(due)


def _due(session: Session, now: datetime) -> list[_Due]:
    """Find the keys whose most urgent notice has not been sent, soonest first. Holds them until the commit."""
    is_near = (ApiKey.expires_at > now, ApiKey.expires_at <= now + timedelta(days=max(DAYS)))
    keys = session.scalars(
        select(ApiKey)
        .join(Member, Member.id == ApiKey.member_id)
        .options(contains_eager(ApiKey.member).joinedload(Member.workspace))
        .where(
            *is_near,
            ApiKey.revoked_at.is_(None),
            ApiKey.retires_at.is_(None),  # it is being replaced already
            ApiKey.deactivated_at.is_(None),
            members.is_in(),
        )
        .order_by(ApiKey.id)
        .with_for_update(of=ApiKey)
    ).all()
    # Read once the keys are held: a run beside this one may just have told of some.
    told: defaultdict[int, set[int]] = defaultdict(set)
    notices = select(ExpiryNotice).join(ApiKey, ApiKey.id == ExpiryNotice.key_id).where(*is_near)
    for notice in session.scalars(notices):
        told[notice.key_id].add(notice.days)
    due = []
    for key in keys:
        days = _days(key, now)
        if days and days < min(told[key.id], default=max(DAYS) + 1):
            due.append(_Due(key, days))
    return sorted(due, key=lambda each: (each.key.expires_at or now, each.key.id))


def _days(key: ApiKey, now: datetime) -> int | None:
    """Say which notice a key is due for; None before its first. One that would fall on its birth is left out."""
    assert key.expires_at is not None  # noqa: S101 - the statement asked for it
    ends = key.expires_at
    return next((days for days in DAYS if key.created_at < ends - timedelta(days=days) <= now), None)


def _who_answers(session: Session, key: ApiKey) -> Sequence[Account]:
    member = key.member
    people = select(Account).join(Member, Member.account_id == Account.id).where(members.is_in())
    answers = Member.id == member.id
    if member.is_api:
        answers = (Member.id == member.manager_id) & members.is_lead_now()
    found = session.scalars(people.where(answers)).all()
    admins = people.where(Member.workspace_id == key.workspace_id, members.is_admin_now()).order_by(Member.id)
    return found or session.scalars(admins).all()


def _letter(
    account: Account, workspace: Workspace, due: list[_Due], now: datetime, keyring: Keyring, base_url: str
) -> tuple[str, str]:
    """Write subject and text; the most urgent key first, moments in ISO 8601 and UTC."""
    first = due[0].key
    when = _in_days(first, now)
    subject = f"“{first.name}” in {workspace.name} expires {when}"
    if len(due) > 1:
        subject = f"{len(due)} keys in {workspace.name} expire, the first {when}"
    parts = [
        f"Hello {account.name},",
        "These API keys stop working soon. Rotate each of them: the old key goes on while you move to the new one.",
        *(_paragraph(each.key, workspace, now, keyring, base_url) for each in due),
        "You hear of each key 30, 7 and 1 days before it expires, once each.",
    ]
    return subject, "\n\n".join(parts) + "\n"


def _paragraph(key: ApiKey, workspace: Workspace, now: datetime, keyring: Keyring, base_url: str) -> str:
    assert key.expires_at is not None  # noqa: S101
    lines = [
        f"“{key.name}” ({keyring.format.hint(key.environment, key.last_four)})",
        f"  expires    {_iso(key.expires_at)}, {_in_days(key, now)}",
        f"  last used  {_iso(key.last_used_at) if key.last_used_at else 'never'}",
    ]
    if key.member.is_api:
        lines.append(f"  acts as    {key.member.name}, API member")
    if key.note:
        lines.append(f"  used in    {key.note}")
    lines.append(f"  rotate it  {base_url}/w/{workspace.slug}/api/keys/{key.public_id}/rotate")
    return "\n".join(lines)


def _in_days(key: ApiKey, now: datetime) -> str:
    left = (key.expires_at or now) - now
    if left < timedelta(hours=48):
        return f"in {max(1, round(left / timedelta(hours=1)))} h"
    return f"in {round(left / timedelta(days=1))} days"


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
