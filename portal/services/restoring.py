"""What a restore must not give back: keys, people and access that were ended after the backup was made (T-80).

The database that is replaced knows of them. Before its rows go, what was ended is set aside in temporary tables; after
the backup's rows are in, it is ended there again. Things are recognised by their public ids, so a backup of another
portal takes nothing over.
"""

from datetime import datetime

from sqlalchemy import exists, func, select, text, update

from portal.rules.access import AccessLevel, Role
from portal.services import audit, members
from portal.services.actor import Actor
from portal.services.audit import Event
from portal.store.database import Session
from portal.store.models import ApiKey, Member, Workspace

# Table, column that ends a thing, and what it is called.
_ENDINGS = (
    ("api_key", "revoked_at", "keys deleted"),
    ("api_key", "deactivated_at", "keys deactivated"),
    ("verifier", "revoked_at", "verifiers revoked"),
    ("member", "removed_at", "members removed"),
    ("member", "deactivated_at", "members deactivated"),
    ("account", "deactivated_at", "accounts deactivated"),
    ("invitation", "accepted_at", "invitations used"),
    ("invitation", "withdrawn_at", "invitations withdrawn"),
)
_RANK = "CASE {} " + " ".join(f"WHEN '{level.value}' THEN {n}" for n, level in enumerate(AccessLevel)) + " ELSE 0 END"


def set_aside(session: Session) -> None:
    """Remember what is ended in the database that is about to be replaced; for `end_again` in the same transaction."""
    for table, column, _ in _ENDINGS:
        session.execute(
            text(
                f"CREATE TEMPORARY TABLE kept_{table}_{column} AS"  # noqa: S608 - our own names
                f" SELECT public_id, {column} AS ended FROM {table} WHERE {column} IS NOT NULL"
            )
        )
    session.execute(
        text(
            "CREATE TEMPORARY TABLE kept_retiring AS"
            " SELECT public_id, rotated_at, retires_at FROM api_key WHERE retires_at IS NOT NULL"
        )
    )
    session.execute(text("CREATE TEMPORARY TABLE kept_role AS SELECT public_id, role FROM member"))
    session.execute(
        text(
            "CREATE TEMPORARY TABLE kept_manager AS SELECT member.public_id, manager.public_id AS manager FROM member"
            " LEFT JOIN member AS manager ON manager.id = member.manager_id WHERE member.account_id IS NULL"
        )
    )
    session.execute(text("CREATE TEMPORARY TABLE kept_password AS SELECT public_id, password_hash FROM account"))
    session.execute(
        text(
            "CREATE TEMPORARY TABLE kept_access AS"  # noqa: S608
            " SELECT member.public_id AS member, solution.public_id AS solution, access.level,"
            f" {_RANK.format('access.level')} AS rank FROM member"
            " JOIN solution ON solution.workspace_id = member.workspace_id"
            " LEFT JOIN access ON access.member_id = member.id AND access.solution_id = solution.id"
        )
    )


def end_again(session: Session) -> dict[str, int]:
    """End in the restored database what was ended since the backup; give how many of each kind."""
    ended = {
        what: _changed(
            session,
            f"UPDATE {table} SET {column} = kept.ended FROM kept_{table}_{column} AS kept"  # noqa: S608
            f" WHERE kept.public_id = {table}.public_id AND {table}.{column} IS NULL",
        )
        for table, column, what in _ENDINGS
    }
    ended["keys rotated out"] = _changed(
        session,
        "UPDATE api_key SET rotated_at = kept.rotated_at, retires_at = kept.retires_at FROM kept_retiring AS kept"
        " WHERE kept.public_id = api_key.public_id"
        " AND (api_key.retires_at IS NULL OR api_key.retires_at > kept.retires_at)",
    )
    ended["administrators demoted"] = _changed(
        session,
        f"UPDATE member SET role = '{Role.MEMBER}' FROM kept_role AS kept"  # noqa: S608
        f" WHERE kept.public_id = member.public_id AND kept.role = '{Role.MEMBER}' AND member.role <> '{Role.MEMBER}'",
    )
    later = "(SELECT manager.id FROM member AS manager WHERE manager.public_id = kept.manager)"
    ended["API members handed over"] = _changed(
        session,
        f"UPDATE member SET manager_id = {later} FROM kept_manager AS kept"  # noqa: S608
        f" WHERE kept.public_id = member.public_id AND member.manager_id IS NOT NULL"
        f" AND member.manager_id <> coalesce({later}, 0)",
    )
    ended["passwords changed"] = _changed(
        session,
        "UPDATE account SET password_hash = kept.password_hash FROM kept_password AS kept"
        " WHERE kept.public_id = account.public_id AND kept.password_hash <> account.password_hash",
    )
    of_one = (
        "SELECT {} FROM kept_access AS kept JOIN member ON member.public_id = kept.member"
        " JOIN solution ON solution.public_id = kept.solution"
        " WHERE member.id = access.member_id AND solution.id = access.solution_id AND kept.rank {}"
    )
    rank = _RANK.format("access.level")
    taken = _changed(session, f"DELETE FROM access WHERE EXISTS ({of_one.format('1', '= 0')})")  # noqa: S608
    lowered = _changed(
        session,
        f"UPDATE access SET level = ({of_one.format('kept.level', f'< {rank}')})"  # noqa: S608
        f" WHERE EXISTS ({of_one.format('1', f'< {rank}')})",
    )
    ended["access lowered"] = taken + lowered
    return {what: count for what, count in ended.items() if count}


def forget_aside(session: Session) -> None:
    """Drop what `set_aside` made: a connection may be used again."""
    names = [f"{table}_{column}" for table, column, _ in _ENDINGS]
    for name in (*names, "retiring", "role", "manager", "password", "access"):
        session.execute(text(f"DROP TABLE kept_{name}"))


def deactivate_keys(session: Session, at: datetime) -> int:
    """Deactivate every key that is not ended; their people look at each and reactivate it."""
    usable = (ApiKey.revoked_at.is_(None), ApiKey.deactivated_at.is_(None))
    count = session.scalar(select(func.count()).select_from(ApiKey).where(*usable)) or 0
    session.execute(update(ApiKey).where(*usable).values(deactivated_at=at))
    return count


def tell(session: Session, actor: Actor, made_at: datetime) -> None:
    """Write into each workspace's audit log, and into the one of signing in, that a backup was restored."""
    made = made_at.isoformat(timespec="seconds")
    for workspace in [None, *session.scalars(select(Workspace.id).order_by(Workspace.id))]:
        audit.record(session, actor, Event.BACKUP_RESTORED, workspace_id=workspace, details={"made": made})


def without_admin(session: Session) -> list[str]:
    """List the workspaces, by slug, that no administrator can sign in to any more."""
    admin = select(Member.id).where(Member.workspace_id == Workspace.id, members.is_admin_now())
    return list(session.scalars(select(Workspace.slug).where(~exists(admin)).order_by(Workspace.slug)))


def _changed(session: Session, statement: str) -> int:
    return int(session.execute(text(statement)).rowcount)  # type: ignore[attr-defined]
