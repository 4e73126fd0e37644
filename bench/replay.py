"""Rebuild a workspace from its audit log alone: `.venv/bin/python bench/replay.py audit.jsonl` prints it as JSON.

Reads the JSON Lines export of the page /w/<workspace>/audit and nothing of the portal: what every member may reach and
what every key is, after all that was done. What was refused changes nothing.
"""

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

State = dict[str, dict[str, dict[str, Any]]]


def rebuild(lines: Iterable[str]) -> State:
    """Give members and keys by their ids, as the events of an export, oldest first, leave them."""
    state: State = {"members": {}, "keys": {}}
    for line in lines:
        event = json.loads(line)
        if event["outcome"] != "done":
            continue
        change = _CHANGES.get(event["action"])
        if change:
            kind = "keys" if event["action"].startswith("key_") else "members"
            change(state[kind].setdefault(event["target_id"], {}), event, event["details"])
    return state


def moment(text: str | None) -> str | None:
    """Write a moment in one form, whichever it came in."""
    return datetime.fromisoformat(text).astimezone(UTC).isoformat() if text else None


Thing = dict[str, Any]


def _joined(member: Thing, event: Thing, details: Thing) -> None:
    member.setdefault("access", {})
    member.setdefault("manager", None)
    member.update(name=event["target"], role=details["role"], deactivated_at=None, removed_at=None)


def _made(member: Thing, event: Thing, details: Thing) -> None:
    member.update(name=event["target"], role="member", manager=details["manager"], deactivated_at=None, removed_at=None)
    member["access"] = _held(details["access"])


def _edited(member: Thing, event: Thing, details: Thing) -> None:
    member["name"] = details["after"]["name"]


def _access(member: Thing, event: Thing, details: Thing) -> None:
    member["access"] = _held({**member.get("access", {}), **details["after"]})


def _held(levels: Thing) -> Thing:
    return {solution: level for solution, level in levels.items() if level != "none"}


def _role(member: Thing, event: Thing, details: Thing) -> None:
    member["role"] = details["after"]


def _manager(member: Thing, event: Thing, details: Thing) -> None:
    member["manager"] = details["after"]


def _off(member: Thing, event: Thing, details: Thing) -> None:
    member["deactivated_at"] = moment(event["at"])


def _on(member: Thing, event: Thing, details: Thing) -> None:
    member.update(deactivated_at=None, removed_at=None)


def _removed(member: Thing, event: Thing, details: Thing) -> None:
    member["removed_at"] = moment(event["at"])


def _generated(key: Thing, event: Thing, details: Thing) -> None:
    key.update({name: details[name] for name in ("owner", "environment", "name", "note", "replaces")})
    key.update(
        scopes=sorted(details["scopes"]), expires_at=moment(details["expires_at"]), created_at=moment(event["at"])
    )
    key.update(deactivated_at=None, revoked_at=None, retires_at=None)


def _key_off(key: Thing, event: Thing, details: Thing) -> None:
    key["deactivated_at"] = moment(event["at"])


def _key_on(key: Thing, event: Thing, details: Thing) -> None:
    key["deactivated_at"] = None


def _retiring(key: Thing, event: Thing, details: Thing) -> None:
    key["retires_at"] = moment(details["retires_at"])


def _key_edited(key: Thing, event: Thing, details: Thing) -> None:
    key["name"], key["note"] = details["after"]


def _deleted(key: Thing, event: Thing, details: Thing) -> None:
    key["revoked_at"] = moment(event["at"])
    if "replaces" in details:
        key["replaces"] = details["replaces"]


_CHANGES = {
    "member_joined": _joined,
    "api_member_created": _made,
    "member_edited": _edited,
    "access_granted": _access,
    "role_changed": _role,
    "manager_changed": _manager,
    "member_deactivated": _off,
    "member_reactivated": _on,
    "member_removed": _removed,
    "key_generated": _generated,
    "key_deactivated": _key_off,
    "key_reactivated": _key_on,
    "key_rotated": _retiring,
    "key_retired": _retiring,
    "key_overlap_extended": _retiring,
    "key_edited": _key_edited,
    "key_deleted": _deleted,
}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as log:  # noqa: PTH123 - a script of one file
        print(json.dumps(rebuild(log), indent=2, ensure_ascii=False, sort_keys=True))
