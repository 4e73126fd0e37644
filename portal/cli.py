"""Commands: `.venv/bin/flask <command>`. The same services as the pages, by the hand of an operator."""

import ctypes
import errno
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
from flask import Blueprint
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from portal import demo, logs, mail, metrics
from portal.rules.access import Role
from portal.rules.errors import Conflict, NotFound, PortalError
from portal.rules.schemas import Schema
from portal.rules.text import clean_email
from portal.services import (
    accounts,
    audit,
    audit_reading,
    invitations,
    key_lists,
    keys,
    notices,
    outbox,
    passwords,
    people,
    peppers,
    restoring,
    workspaces,
)
from portal.services.actor import operator
from portal.settings import Settings, misspelt
from portal.store import backup
from portal.store.database import MISTAKES, TROUBLE, Session, lacks_file, out_of_reach
from portal.store.migrate import OtherMigration, migrate, migration_of
from portal.web.http import portal

_M_ARENA_MAX = -8
THREADS = 64  # a process; all but one wait: for bodies that are still on their way, for Redis, for their turn
_MAX_HEADERS = 16 * 1024  # bytes of a request's header block

commands = Blueprint("commands", __name__, cli_group=None)


def _say_errors(function: Callable[..., None], needs_tables: bool) -> Callable[..., None]:
    @wraps(function)
    def careful(**values: Any) -> None:
        if not all(_is_utf_8(value) for value in values.values() if isinstance(value, str)):
            raise click.ClickException("An argument is not UTF-8.")
        try:
            if needs_tables:
                with portal().database.reading() as session:
                    migration_of(session.connection())
            function(**values)
        except PortalError as error:
            raise click.ClickException(error.message) from None
        except (backup.BadBackup, OtherMigration) as error:
            raise click.ClickException(str(error)) from None
        except (*TROUBLE, *MISTAKES) as error:
            reason = str(getattr(error, "orig", error)).strip().splitlines()[0].rstrip(".")
            advice = ""
            if out_of_reach(error):
                advice = " See that PORTAL_DATABASE_URL is right and that PostgreSQL runs."
            elif file := lacks_file(error, portal().database):
                advice = f" See that this user may write {file} and its folder, and that the disk is not read-only."
            raise click.ClickException(f"The database cannot do this: {reason}.{advice}") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            what = error.filename or "The output"
            done = "" if error.filename else " What was changed stays changed."
            raise click.ClickException(f"{what} cannot be written: {error.strerror}.{done}") from None

    return careful


def _is_utf_8(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:  # Python keeps such bytes as halves of characters
        return False
    return True


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command `flask NAME`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        careful = _say_errors(function, needs_tables=name not in ("migrate", "serve"))
        made: click.Command = commands.cli.command(name)(careful)
        return made

    return decorate


@command("serve")
def serve() -> None:
    """Migrate, seed the demo into an empty local database, and serve."""
    settings = portal().settings
    _check_port(settings)
    migrate(settings.database_url)
    _check_peppers()
    with portal().database.reading() as session:
        has_demo = settings.is_local and demo.has_people(session)
        empty = demo.is_empty(session)
    if settings.is_local and empty:
        _seed()
        has_demo = True
    portal().database.close()
    _welcome(settings, has_demo=has_demo)
    with metrics.shared():
        run_server(settings)


@command("migrate")
def migrate_command() -> None:
    """Bring the database's tables up to date."""
    migrate(portal().settings.database_url)
    click.echo("The database is up to date.")


@command("seed-demo")
def seed_demo() -> None:
    """Fill an empty database with the demo; not in production: everybody knows its password."""
    if not portal().settings.is_local:
        raise click.ClickException("The demo has a password that everybody knows: it is for http on this machine only.")
    _seed()


@command("create-workspace")
@click.argument("slug")
@click.argument("name")
@click.option("--admin", required=True, metavar="EMAIL", help="Who gets the one-time link.")
def create_workspace(slug: str, name: str, admin: str) -> None:
    """Create a workspace; print the one-time link by which its first admin joins."""
    actor = operator()
    try:
        with portal().database.transaction() as session:
            workspace = workspaces.create(session, actor, slug, name)
            token = invitations.issue(session, actor, workspace, admin, Role.ADMIN)
    except Conflict as error:
        advice = f"For a new link: .venv/bin/flask invite-admin {slug} {admin}"
        raise click.ClickException(f"{error.message} {advice}") from None
    click.echo(f"Workspace {slug} is there.")
    _tell_invitation(admin, token)


@command("invite-admin")
@click.argument("workspace")
@click.argument("email")
def invite_admin(workspace: str, email: str) -> None:
    """Print a one-time link by which an administrator joins a workspace.

    For when the first link was lost or has expired, or nobody who administers the workspace can sign in. Links
    that were made for the same address before end.
    """
    with portal().database.transaction() as session:
        token = invitations.invite_admin(session, operator(), workspaces.get(session, workspace), email)
    _tell_invitation(email, token)


@command("add-solution")
@click.argument("workspace")
@click.argument("slug")
@click.argument("name")
@click.option("--description", default="")
@click.option("--external", is_flag=True, help="Its data lives in a product of your own, which asks about keys.")
def add_solution(workspace: str, slug: str, name: str, description: str, external: bool) -> None:
    """Add a solution to a workspace."""
    with portal().database.transaction() as session:
        found = workspaces.get(session, workspace)
        workspaces.add_solution(session, operator(), found, slug, name, description, is_external=external)
    click.echo(f"Solution {slug} is there.")


@command("add-app")
@click.argument("workspace")
@click.argument("solution")
@click.argument("slug")
@click.argument("name")
@click.option("--schema", "schema_file", type=click.File("rb"), help="A JSON Schema (2020-12).")
@click.option("--description", default="")
def add_app(workspace: str, solution: str, slug: str, name: str, schema_file: Any, description: str) -> None:
    """Add an app with the JSON Schema of its records, which an external solution's does without."""
    try:
        schema = Schema.read(json.load(schema_file)) if schema_file else None
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"The schema is not JSON: {error}") from None
    with portal().database.transaction() as session:
        found = workspaces.get_solution(session, workspaces.get(session, workspace), solution)
        if schema is None and not found.is_external:
            raise click.UsageError("An app whose records are kept here needs --schema FILE.")
        workspaces.add_app(session, operator(), found, slug, name, schema, description)
    click.echo(f"App {slug} is there.")


@command("list-keys")
@click.argument("workspace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_keys(workspace: str, as_json: bool) -> None:
    """List the keys of a workspace that are not deleted."""
    actor = operator()
    with portal().database.reading() as session:
        rows = key_lists.list_all(session, actor, workspaces.get(session, workspace), portal().settings.keyring)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        used = f"last used {row['lastUsedAt']}" if row["lastUsedAt"] else "never used"
        click.echo(f"{row['id']}  {row['hint']}  {row['state']:<14}  {row['owner']} / {row['name']}  ({used})")
    click.echo(f"{_counted(len(rows), 'key')}.")


@command("revoke-key")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """Stop a key for ever, whoever owns it."""
    if not re.fullmatch("key_[0-9A-Za-z]+", key_id):  # perhaps a key's text, which is not repeated on the screen
        raise click.ClickException("Send a key's id, such as key_2bN8vC6xZ1aS5dF3: list-keys shows all.")
    with portal().database.transaction() as session:
        name = keys.revoke(session, operator(), key_id)
    click.echo(f"“{name}” is revoked. Requests with it are refused from now.")


@command("verify-audit")
@click.argument("workspace", required=False)
def verify_audit(workspace: str | None) -> None:
    """Check that the audit log is as it was written: of one workspace, or of all and of signing in."""
    broken = 0
    with portal().database.reading() as session:
        every = [workspaces.get(session, workspace)] if workspace else workspaces.list_all(session)
        chains = [(found.slug, found.id) for found in every] + ([] if workspace else [("(signing in)", 0)])
        for name, chain in chains:
            verdict = audit_reading.verify(session, chain)
            broken += not verdict.holds
            where = f" ({verdict.broken})" if verdict.broken else ""
            says = f"broken: {verdict.reason}{where}" if verdict.reason else "whole"
            click.echo(f"{name}: {_counted(verdict.count, 'event')} as written; {says}.")
    if broken:
        raise click.ClickException("The audit log was tampered with. Compare it with an export or a backup.")


@command("reset-password")
@click.argument("email")
def reset_password(email: str) -> None:
    """Print a one-time link by which a person chooses a new password."""
    who = operator()
    with portal().database.transaction() as session:
        account = accounts.find_usable(session, clean_email(email) or "", invited_at=who.at)
        if account is None:
            advice = f"If the account is deactivated: .venv/bin/flask reactivate-account {email}\n"
            advice += "Who has not joined yet needs a link: .venv/bin/flask invite-admin WORKSPACE EMAIL"
            raise NotFound(f"Nobody can sign in as {email}.\n{advice}")
        token = passwords.begin_reset(session, who, account)
    _tell_reset(email, token)


@command("deactivate-account")
@click.argument("email")
def deactivate_account(email: str) -> None:
    """Stop a person's account at once in all workspaces: no sign-in, no session, no key of theirs."""
    with portal().database.transaction() as session:
        ended = people.deactivate_account(session, operator(), email)
    if ended is None:
        click.echo(f"The account {email} is already deactivated. Nothing was changed.")
        return
    click.echo(f"The account {email} is deactivated, {_counted(ended.sessions, 'session')} ended.")
    click.echo(f"Requests with its keys ({ended.keys} active) are refused from now.")
    _warn_of(ended.orphans)


@command("reactivate-account")
@click.argument("email")
def reactivate_account(email: str) -> None:
    """Let a person in again with their keys, and print a one-time link for a new password: the old one has ended."""
    with portal().database.transaction() as session:
        token = people.reactivate_account(session, operator(), email)
    if token is None:
        click.echo(f"The account {email} is already active. Nothing was changed.")
        return
    click.echo(f"The account {email} is active again, with its keys as they were. Its old password has ended.")
    _tell_reset(email, token)


@command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def backup_command(file: Path) -> None:
    """Write the whole database to a new file that only you may read. The portal may go on serving."""
    try:
        made = backup.write(portal().database, file)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}.") from None
    click.echo(f"{_counted(made.rows, 'row')} of {_counted(len(made.tables), 'table')} are in {file}.")
    ids = ", ".join(pepper.id for pepper in portal().settings.keyring.peppers)
    click.echo("It holds digests, no key and no password. Keep PORTAL_KEY_PEPPERS too, apart from it:")
    click.echo(f"without the secrets of today ({ids}) no key in it can work again.")


@command("restore")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Take out first what the database holds.")
@click.option("--resurrect", is_flag=True, help="Let everything work that worked when the backup was made.")
@click.option("--deactivate-keys", is_flag=True, help="Deactivate all keys; people reactivate theirs.")
def restore(file: Path, replace: bool, resurrect: bool, deactivate_keys: bool) -> None:
    """Put a backup into an empty, migrated database. Stop the portal first.

    With --replace, what the database knows to be ended since then (keys, members, access …) stays ended.
    """
    with backup.read(file) as found:
        is_blank = _is_blank()  # before anything is asked
        knows_later = replace and not is_blank
        has_keys = bool(found.manifest.tables["api_key"]["rows"])
        if has_keys and is_blank and not (resurrect or deactivate_keys):
            _ask_to_resurrect(found.manifest.made_at)
        with portal().database.transaction() as session:
            portal().database.take_time(session.connection())
            ended = _put_in_place(session, found, keep=knows_later and not resurrect, replace=replace)
            now = operator().at
            stopped = restoring.deactivate_keys(session, now) if deactivate_keys else 0
            restoring.tell(session, operator(), found.manifest.made_at)
            lost = peppers.lost_keys(session, portal().settings.keyring)
            orphans = restoring.without_admin(session)
    made = found.manifest.made_at
    rows = _counted(found.manifest.rows, "row")
    click.echo(f"The database is as it was at {made:%Y-%m-%d %H:%M:%S} UTC: {rows}.")
    for what, count in ended.items():
        click.echo(f"  stays as it was since then: {what}: {count}")
    if stopped:
        click.echo(f"{_counted(stopped, 'key')} deactivated. Their people may reactivate them.")
    _warn_of_lost(lost)
    _warn_of(orphans)
    click.echo("Everybody must sign in again.")


@command("notify")
def notify() -> None:
    """Mail the people whose keys expire soon; to be run once an hour or a day."""
    settings = portal().settings
    now = datetime.now(UTC)
    with portal().database.transaction() as session:
        audit.sum_up(session, now)
        letters, count = notices.write_due(session, now, settings.keyring, settings.base_url)
    click.echo(f"{_counted(letters, 'mail')} written about {_counted(count, 'key')}.")
    sent, failed = outbox.send_waiting(portal().database, mail.mailer(settings))
    where = "" if settings.smtp_url else f" to the folder {settings.mail_folder}"
    click.echo(f"{_counted(sent, 'mail')} sent{where}.")
    if failed:
        tries = "\n".join(f"  {logs.redact(each)}" for each in failed)  # servers may quote what they refuse
        raise click.ClickException(f"{_counted(len(failed), 'mail')} not taken:\n{tries}")


def _tell_invitation(email: str, token: str) -> None:
    click.echo(f"Send this link to {email}; it works once, for {invitations.INVITATION_LIFE.days} days:")
    click.echo(f"{portal().settings.base_url}/invite/{token}")


def _tell_reset(email: str, token: str) -> None:
    click.echo(f"Send this link to {email}; it works once, for {passwords.RESET_LIFE.seconds // 60} minutes:")
    click.echo(f"{portal().settings.base_url}/reset/{token}")


def _warn_of(orphans: list[str]) -> None:
    for slug in orphans:
        advice = f"For another administrator: .venv/bin/flask invite-admin {slug} EMAIL"
        click.echo(f"Warning: nobody administers {slug}. {advice}", err=True)


def _is_blank() -> bool:
    with portal().database.reading() as session:
        return backup.is_empty(session)


def _ask_to_resurrect(made_at: datetime) -> None:
    """An empty database knows nothing of what was ended after a backup."""
    click.echo(
        f"Keys, members and access that were ended after {made_at:%Y-%m-%d %H:%M} UTC would work again. To decide"
        " without being asked: --resurrect lets them, --deactivate-keys restores all keys deactivated.",
        err=True,
    )
    if not click.confirm("Restore everything as it was then?", err=True):
        raise click.ClickException("Nothing was changed.")


def _put_in_place(session: Session, found: backup.Backup, *, keep: bool, replace: bool) -> dict[str, int]:
    if keep:
        restoring.set_aside(session)
    if replace:
        backup.clear(session)
    elif not backup.is_empty(session):
        raise click.ClickException("The database is not empty. To take out what it holds, say --replace.")
    found.load(session)
    if not keep:
        return {}
    ended = restoring.end_again(session)
    restoring.forget_aside(session)
    return ended


def _check_port(settings: Settings) -> None:
    """Refuse to serve where somebody listens: the server's socket would share the port, and each get some requests."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.bind else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a stopped server leaves may be closing
            probe.bind((settings.bind, settings.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            message = f"Cannot listen on {settings.bind}, port {settings.port}: {error.strerror}."
            raise click.ClickException(f"{message} See PORTAL_BIND and PORT.") from None
        other = 8080 if settings.port != 8080 else 8081
        how = f"PORT={other} make run" if settings.is_local else f"PORT={other}, and tell the proxy."
        message = f"Port {settings.port} is taken by another program. Stop it, or choose another port:"
        raise click.ClickException(f"{message} {how}") from None


def _check_peppers() -> None:
    """Refuse to serve with another secret under a known id; warn of keys whose pepper was dropped."""
    with portal().database.transaction() as session:
        changed = peppers.note(session, portal().settings.keyring)
        lost = peppers.lost_keys(session, portal().settings.keyring)
    if changed:
        raise click.ClickException(
            f"PORTAL_KEY_PEPPERS (locally key_pepper in the instance folder) has another secret for {changed[0]} than "
            "this database's keys were made under: none of them would work. Put that secret back. If it is lost, give "
            "the new one another id, and let people replace their keys."
        )
    _warn_of_lost(lost)


def _warn_of_lost(keys: Mapping[str, int]) -> None:
    """Tell of keys that cannot be used, counted by the pepper that they need."""
    for pepper, count in keys.items():
        known = any(each.id == pepper for each in portal().settings.keyring.peppers)
        why = f"has another secret for {pepper} than they were made under" if known else f"lacks {pepper}"
        click.echo(f"Warning: {_counted(count, 'key')} cannot be used: PORTAL_KEY_PEPPERS {why}.", err=True)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _seed() -> None:
    with portal().database.transaction() as session:
        demo.seed(session, lambda step: click.echo(f"Seeding the demo: {step} …", err=True))


def _welcome(settings: Settings, *, has_demo: bool) -> None:
    is_there = settings.is_local and settings.bind in ("127.0.0.1", "0.0.0.0", "::")  # noqa: S104
    where = "" if is_there else f", from {settings.bind}, port {settings.port}"
    click.echo(f"Latchkey serves on {settings.base_url}{where}  (stop with Ctrl+C)")
    if settings.lets_others_in:
        click.echo("Warning: PORTAL_BIND lets others in, and all know the demo's password. Set PORTAL_BASE_URL first.")
    for name, near in misspelt(os.environ):
        click.echo(f"Warning: {name} is not a setting. The most similar one is {near}.")
    if has_demo:
        click.echo(f"Demo sign-ins, all with the password “{demo.PASSWORD}”:")
        for email, who in demo.SIGN_INS:
            click.echo(f"  {email:<16} {who}")
    sys.stdout.flush()


def run_server(settings: Settings, target: str = "app:create_app") -> None:
    """Serve; each process works on one request at a time (`web.door`), whatever its threads are waiting for."""
    server: Any = Granian(
        target,
        factory=True,
        address=settings.bind,
        port=settings.port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=_MAX_HEADERS),
        workers=settings.workers,
        blocking_threads=THREADS,
        websockets=False,
        respawn_failed_workers=True,
        respawn_interval=0.5,  # seconds; one that was killed is back before its clients have counted to two
        workers_kill_timeout=10,
        log_dictconfig={"formatters": {name: {"()": "portal.logs.JsonLines"} for name in ("generic", "access")}},
        log_level=LogLevels.error,  # it warns of the threads that are meant, and tells what we have told
        working_dir=Path(__file__).parent.parent,
    )
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's, see mallopt(3); workers are forked
        mallopt(_M_ARENA_MAX, 2)  # heaps for so many threads would take 7 MB
    # A terminal that closes ends what it began, unless told not to; from elsewhere SIGHUP means new workers.
    if os.isatty(0) and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        server.on_startup(lambda: signal.signal(signal.SIGHUP, server.signal_handler_interrupt))
    server.serve()
