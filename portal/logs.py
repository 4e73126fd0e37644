"""Log lines as JSON, one an event, from which anything shaped like a secret is taken before it is written."""

import json
import logging
import re
import sys
from datetime import UTC, datetime

from flask import g, has_request_context, request

from portal.rules.credentials import KEY_SHAPED_IN_LOGS
from portal.web.door import PASSAGE

_REDACTED = "[redacted]"
_LONGEST = 16_384  # characters of one text; a traceback fits, what somebody sends to keep us busy does not
_NAMES = "authorization|cookie|passw|token|secret|pepper"
_SECRETS = re.compile(
    rf"{KEY_SHAPED_IN_LOGS.pattern}"
    # What stands behind a secret's name: a quoted text, or all up to the next form field or the end of the line.
    rf"|(?P<name>(?<![\w-])[\w-]{{0,40}}(?:{_NAMES})[\w-]{{0,40}}(?:[\"']?\s*[:=]|[\"']\s*,)\s*)"
    r"(?:\"(?:\\.|[^\"\\])*\"?|'(?:\\.|[^'\\])*'?|[^&\r\n]*)"
    r"|(?P<user>://[^:/\s@]{0,64}:)[^@\s]{1,256}(?=@)"
    # One-time links, in an address or a mail, and password hashes: PostgreSQL's errors quote whole rows.
    r"|(?P<link>/(?:invite|reset)/)[\w-]+|\$argon2(?:[^\s,'\"]|,\w=)+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def redact(text: str) -> str:
    """Replace everything shaped like a key, and what follows a secret's name."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "… (cut)"
    return _SECRETS.sub(lambda match: (match["name"] or match["user"] or match["link"] or "") + _REDACTED, text)


class JsonLines(logging.Formatter):
    """Write a record with its request id and the extra facts it was given; control characters come out escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Give one line."""
        facts = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        facts |= _who()
        for name, value in vars(record).items():
            if name not in _STANDARD:
                facts[name] = _REDACTED if _SECRET_NAME.search(name) else redact(str(value))
        if record.exc_info:
            facts["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(facts)


def _who() -> dict[str, str]:
    """Say whose request a line belongs to: never a name or an address, only ids that lead to them."""
    if not has_request_context() or "request_id" not in g:
        return {}
    found = {"request_id": g.request_id}
    if (passage := request.environ.get(PASSAGE)) and passage.caller:
        found |= {"key_id": passage.caller.key_id, "member_id": passage.caller.member_id}
    elif actor := g.get("actor"):
        found["member_id"] = actor.public_id or ""
    if user_session := g.get("user_session"):
        found["session"] = user_session.token_hash.hex()[:12]
    return found


def configure() -> None:
    """Send every logger's lines, ours and the libraries', through the one redacting handler."""
    root = logging.getLogger()
    if not any(isinstance(handler.formatter, JsonLines) for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("alembic", "flask_wtf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
