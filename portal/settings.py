"""What the environment decides, read once. A bad value stops the start with one clear line."""

import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from email.utils import formataddr, getaddresses, parseaddr
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from redis import ConnectionPool

from portal.rules.credentials import KeyFormat, Keyring, Pepper
from portal.rules.text import clean_email

_MIN_SECRET = 32  # bytes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAMPLES = ("changeme", "change-me", "change_me", "secret", "example", "sample", "password", "pepper", "development")
NAMES = (
    "PORTAL_BASE_URL",
    "PORTAL_BIND",
    "PORTAL_DATABASE_URL",
    "PORTAL_INSTANCE",
    "PORTAL_KEY_PEPPERS",
    "PORTAL_KEY_PREFIX",
    "PORTAL_MAIL_FROM",
    "PORTAL_METRICS_TOKEN",
    "PORTAL_REDIS_URL",
    "PORTAL_REPLICA_URL",
    "PORTAL_SECRET_KEY",
    "PORTAL_SMTP_URL",
    "PORTAL_TRUSTED_PROXIES",
    "PORTAL_WORKERS",
)
_ALIKE = 0.8  # of `difflib`: what Kubernetes sets for a service that is called portal is less so

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadSetting(Exception):
    """A setting that the portal cannot start with; the message names it and says what to write."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one portal (contract, section 6)."""

    database_url: str = field(repr=False)  # may hold a password
    secret_key: str = field(repr=False)
    keyring: Keyring
    base_url: str
    hosts: tuple[str, ...]
    trusted_proxies: tuple[Network, ...]
    bind: str
    port: int
    workers: int
    replica_url: str | None = field(repr=False)  # None: pages read from the database too
    redis_url: str | None = field(repr=False)  # None: each host limits by itself
    smtp_url: str | None = field(repr=False)  # None: mail goes to `mail_folder`
    mail_from: str
    mail_folder: Path
    metrics_token: str | None = field(repr=False)  # what GET /metrics asks for
    is_local: bool

    @property
    def lets_others_in(self) -> bool:
        """Whether a local portal, with a demo whose password is known, listens to more than this machine."""
        return self.is_local and not ipaddress.ip_address(self.bind).is_loopback

    @property
    def is_https(self) -> bool:
        """Whether the portal is reached over TLS: cookies are `Secure` and `__Host-` exactly then."""
        return self.base_url.startswith("https://")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], instance: Path) -> "Settings":
        """Read PORTAL_… variables; raise BadSetting. Locally, missing secrets are made in the instance folder."""
        port = _number(environ, "PORT", 5000, 1, 65_535)
        base_url, scheme, host = _split_base_url(environ.get("PORTAL_BASE_URL") or f"http://127.0.0.1:{port}")
        is_local = scheme == "http" and host in _LOOPBACK
        if not is_local and environ.get("FLASK_DEBUG", "0") not in ("", "0"):
            raise BadSetting("FLASK_DEBUG must not be set in production.")
        instance.mkdir(parents=True, exist_ok=True)
        return cls(
            database_url=environ.get("PORTAL_DATABASE_URL") or f"sqlite:///{instance.resolve() / 'portal.db'}",
            secret_key=_secret_key(environ, instance if is_local else None),
            keyring=Keyring(_key_format(environ), _peppers(environ, instance if is_local else None)),
            base_url=base_url,
            hosts=_LOOPBACK if is_local else (host,),
            trusted_proxies=_networks(environ),
            bind=_bind(environ),
            port=port,
            workers=_number(environ, "PORTAL_WORKERS", 1, 1, 64),
            replica_url=_replica_url(environ),
            redis_url=_redis_url(environ),
            smtp_url=_smtp_url(environ),
            mail_from=_mail_from(environ, host),
            mail_folder=instance.resolve() / "mail",
            metrics_token=_checked_secret("PORTAL_METRICS_TOKEN", environ["PORTAL_METRICS_TOKEN"])
            if environ.get("PORTAL_METRICS_TOKEN")
            else None,
            is_local=is_local,
        )


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find variables that are no settings, but look like one: each with the most similar setting."""
    others = sorted(name for name in environ if name.startswith("PORTAL_") and name not in NAMES)
    return [(name, near) for name in others for near in get_close_matches(name, NAMES, 1, _ALIKE)]


def _number(environ: Mapping[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    text = environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not lowest <= int(text) <= highest:
        raise BadSetting(f"{name} must be a whole number from {lowest} to {highest}, not {text[:40]!r}.")
    return int(text)


_LABEL = "[0-9a-z_](?:[0-9a-z_-]*[0-9a-z_])?"  # names inside a network may have underscores
_BASE_URL = re.compile(
    rf"(https?)://(\[[0-9a-f:.]+\]|{_LABEL}(?:\.{_LABEL})*)(:[0-9]{{1,5}})?/?", re.ASCII | re.IGNORECASE
)
_LONGEST_HOST = 200  # characters; mail may come from an address there


def _split_base_url(text: str) -> tuple[str, str, str]:
    """Give the base URL in its plain form, its scheme and its host."""
    match = _BASE_URL.fullmatch(text)
    if not match or not 1 <= int((match[3] or ":1")[1:]) <= 65_535 or len(match[2]) > _LONGEST_HOST:
        raise BadSetting(f"PORTAL_BASE_URL must look like https://keys.example.org, not {text[:200]!r}.")
    scheme, host, port = match[1].lower(), match[2].lower(), match[3] or ""
    if port == {"http": ":80", "https": ":443"}[scheme]:
        port = ""  # browsers leave it out of Origin
    return f"{scheme}://{host}{port}", scheme, host.strip("[]")


def _bind(environ: Mapping[str, str]) -> str:
    text = environ.get("PORTAL_BIND") or "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise BadSetting(f"PORTAL_BIND must be an address to listen on, without a port, not {text[:80]!r}.") from None


def _secret_key(environ: Mapping[str, str], instance: Path | None) -> str:
    text = environ.get("PORTAL_SECRET_KEY")
    if text is None and instance:
        return _kept_secret(instance / "secret_key")
    return _checked_secret("PORTAL_SECRET_KEY", text)


def _peppers(environ: Mapping[str, str], instance: Path | None) -> tuple[Pepper, ...]:
    text = environ.get("PORTAL_KEY_PEPPERS")
    if text is None and instance:
        text = f"local:{_kept_secret(instance / 'key_pepper')}"
    pairs = [part.strip().partition(":") for part in (text or "").split(",") if part.strip()]
    if not pairs or not all(name.isalnum() and len(name) <= 20 and colon for name, colon, _ in pairs):
        raise BadSetting("PORTAL_KEY_PEPPERS must look like id:secret, newest first, parted by commas.")
    if len({name for name, _, _ in pairs}) != len(pairs):
        raise BadSetting("PORTAL_KEY_PEPPERS names an id twice.")
    if any(re.search(r"[\s:;][0-9A-Za-z]{1,20}:", secret) for *_, secret in pairs):
        raise BadSetting("PORTAL_KEY_PEPPERS: put commas between pairs; a secret holds what looks like another pair.")
    return tuple(Pepper(name, _checked_secret("PORTAL_KEY_PEPPERS", secret).encode()) for name, _, secret in pairs)


def _checked_secret(name: str, text: str | None) -> str:
    if not text or not text.isascii() or len(text) < _MIN_SECRET:
        message = (
            f"{name} must hold a secret of at least {_MIN_SECRET} bytes, in ASCII: openssl rand -hex 32 makes one."
        )
        raise BadSetting(message)
    left = text.lower()
    for sample in _SAMPLES:
        left = left.replace(sample, "")
    if len(left) < len(text) // 2 or len(set(text)) < 8:
        raise BadSetting(f"{name} holds a sample value. Make one of your own: openssl rand -hex 32.")
    return text


def _kept_secret(path: Path) -> str:
    """Read a local secret, made on first need; of processes that start at once, all read the one that came first."""
    if not path.exists():
        handle, draft = tempfile.mkstemp(dir=path.parent)  # readable for nobody else
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):
            os.link(draft, path)  # whole or not at all, and never over another's
        Path(draft).unlink()
    return _checked_secret(str(path), path.read_text("ascii", "replace").strip())


def _key_format(environ: Mapping[str, str]) -> KeyFormat:
    try:
        return KeyFormat(environ.get("PORTAL_KEY_PREFIX") or "sk")
    except ValueError as error:
        raise BadSetting(f"PORTAL_KEY_PREFIX: {error}.") from None


def _replica_url(environ: Mapping[str, str]) -> str | None:
    text = environ.get("PORTAL_REPLICA_URL")
    for url in (text, environ.get("PORTAL_DATABASE_URL")) if text else ():
        if not re.match(r"postgresql(\+psycopg)?://", url or ""):
            raise BadSetting("PORTAL_REPLICA_URL must begin with postgresql:// and go with such a PORTAL_DATABASE_URL.")
    return text or None


def _redis_url(environ: Mapping[str, str]) -> str | None:
    text = environ.get("PORTAL_REDIS_URL")
    if not text:
        return None
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("redis", "rediss") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"(/[0-9]{0,3})?", parts.path):
        raise BadSetting("PORTAL_REDIS_URL must look like redis://:password@redis.example.org:6379/0 or rediss://….")
    if not all(parts.scheme == "rediss" and name.startswith("ssl_") for name in parse_qs(parts.query, True)):
        raise BadSetting("PORTAL_REDIS_URL: behind the ? of rediss:// may stand ssl_… options, and nothing else.")
    try:
        ConnectionPool.from_url(text).make_connection()  # which connects to nothing yet
    except Exception:
        raise BadSetting("PORTAL_REDIS_URL: what stands behind its ? is no such option, or not its value.") from None
    return text


def _smtp_url(environ: Mapping[str, str]) -> str | None:
    text = environ.get("PORTAL_SMTP_URL")
    if not text:
        return None
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("smtp", "smtps") and parts.hostname and parts.path in ("", "/")
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise BadSetting("PORTAL_SMTP_URL must look like smtp://user:password@mail.example.org:587 or smtps://….")
    if not environ.get("PORTAL_MAIL_FROM"):
        raise BadSetting("PORTAL_MAIL_FROM must name the address that mail comes from, as PORTAL_SMTP_URL is set.")
    return text


def _mail_from(environ: Mapping[str, str], host: str) -> str:
    text = environ.get("PORTAL_MAIL_FROM") or f"Latchkey <latchkey@{'localhost' if ':' in host else host}>"
    name, address = parseaddr(text)
    is_one = len(getaddresses([text])) == 1
    if not (is_one and text.isprintable() and address.isascii() and clean_email(address)):
        raise BadSetting(f"PORTAL_MAIL_FROM must look like Keys <keys@example.org>, not {text[:80]!r}.")
    return formataddr((name, address))


def _networks(environ: Mapping[str, str]) -> tuple[Network, ...]:
    texts = [text.strip() for text in environ.get("PORTAL_TRUSTED_PROXIES", "").split(",") if text.strip()]
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise BadSetting(f"PORTAL_TRUSTED_PROXIES must be addresses or networks parted by commas: {error}.") from None
