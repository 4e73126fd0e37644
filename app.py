"""The whole portal, put together. `flask run`, `flask <command>` and the server find it here."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flask import Flask
from flask_wtf.csrf import CSRFProtect
from werkzeug.routing import BaseConverter

from portal import cli, logs
from portal.rules.access import SLUG
from portal.services.key_check import KeyCheck
from portal.services.rate_limit import RateLimit
from portal.services.readiness import Readiness
from portal.services.usage import Usage
from portal.settings import BadSetting, Settings
from portal.store.database import Database
from portal.store.replica import Replica
from portal.web import (
    account,
    answers,
    api,
    api_members,
    assets,
    declared,
    display,
    guards,
    home,
    http,
    introspection,
    key_pages,
    key_rows,
    keys,
    members,
    operation,
    oversight,
    people,
    reference,
    review,
    rotation,
    sign_in,
    templates,
    verifiers,
    workspace,
)
from portal.web.door import Door
from portal.web.front import Front
from portal.web.parts import Portal

ROOT = Path(__file__).parent


class Slug(BaseConverter):
    """A workspace's, solution's or app's name in a path."""

    regex = SLUG.pattern


class PublicId(BaseConverter):
    """A public id in a path."""

    regex = http.PUBLIC_ID


class AppName(BaseConverter):
    """What an integration takes for an app's name: any that is safe to repeat in a refusal."""

    regex = declared.APP_NAME


class Token(BaseConverter):
    """A one-time link's token."""

    regex = "[0-9A-Za-z_-]{43}"


def create_app(environ: Mapping[str, str] | None = None) -> Flask:
    """Put a portal together from an environment (default: the process's own)."""
    environ = os.environ if environ is None else environ
    logs.configure()
    instance = Path(environ.get("PORTAL_INSTANCE") or ROOT / "instance")
    try:
        settings = Settings.from_environ(environ, instance)
    except BadSetting as error:
        sys.exit(f"Cannot start: {error}")
    except OSError as error:
        sys.exit(f"Cannot start: PORTAL_INSTANCE: {error.filename} cannot be used: {error.strerror}.")
    try:
        database = Database(settings.database_url)
    except ValueError as error:
        sys.exit(f"Cannot start: PORTAL_DATABASE_URL: {error}.")
    except OSError as error:
        sys.exit(f"Cannot start: PORTAL_DATABASE_URL: {error.filename} cannot be made: {error.strerror}.")
    try:
        replica = Replica(settings.replica_url, database) if settings.replica_url else None
    except ValueError as error:
        sys.exit(f"Cannot start: PORTAL_REPLICA_URL: {error}.")
    if not settings.is_local and (file := database.file_open_to_all):
        sys.exit(f"Cannot start: everybody on this machine may open {file}. Run: chmod 600 {file}")
    portal = Portal(
        settings,
        database,
        KeyCheck(database, settings.keyring),
        Usage(database),
        RateLimit(instance / "rates", settings.redis_url),
        Readiness(database),
        replica,
    )

    app = Flask(__name__, root_path=str(ROOT), instance_path=str(instance.resolve()), static_folder=None)
    app.extensions["portal"] = portal
    app.config.update(
        SECRET_KEY=settings.secret_key,
        SESSION_COOKIE_NAME="__Host-portal" if settings.is_https else "portal",
        SESSION_COOKIE_SECURE=settings.is_https,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        WTF_CSRF_TIME_LIMIT=None,  # the token lives as long as the session it is bound to
        WTF_CSRF_SSL_STRICT=settings.is_https,
        MAX_CONTENT_LENGTH=http.FORM_LIMIT,
        PROVIDE_AUTOMATIC_OPTIONS=False,
        TEMPLATES_AUTO_RELOAD=False,
    )
    app.url_map.merge_slashes = False
    app.url_map.converters.update(slug=Slug, public_id=PublicId, app=AppName, token=Token)

    http.register(app)
    display.register(app)
    templates.register(app)
    key_rows.register(app)
    guards.register(app)
    csrf = CSRFProtect(app)
    csrf.exempt(api.api)  # no cookie counts there
    csrf.exempt(introspection.oauth)
    assert key_pages and rotation  # noqa: S101 - imported for the views that they add to keys.pages
    assert verifiers  # noqa: S101 - and this to workspace.pages
    assert people and api_members  # noqa: S101 - and these to members.pages
    rooms = (sign_in, account, home, keys, members, review, oversight, workspace, reference, operation)
    for blueprint in (*(room.pages for room in rooms), api.api, introspection.oauth):
        app.register_blueprint(blueprint)
    assets.register(app, ROOT / "static")
    app.jinja_env.globals["product"] = answers.PRODUCT
    app.jinja_env.globals["sends_mail"] = settings.smtp_url is not None  # else mails are files in a folder
    app.jinja_env.globals["ui"] = app.jinja_env.get_template("_parts.html").module  # sees the globals until here
    app.register_blueprint(cli.commands)
    stand_before(app, settings)
    return app


def stand_before(app: Flask, settings: Settings) -> None:
    """Put a new front and a new door before Flask. Tests do it again, for counters that are empty."""
    door = Door(partial(Flask.wsgi_app, app), guards.keyed_paths(app), lambda: app.extensions["portal"])
    app.wsgi_app = Front(door, settings, http.body_limit)  # type: ignore[method-assign]
