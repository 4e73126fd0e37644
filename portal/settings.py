"""What the environment decides, read once. A bad value stops the start with one clear line."""

import ipaddress
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from portal.rules.credentials import KeyFormat, Keyring, Pepper

_MIN_SECRET = 32  # bytes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAMPLES = ("changeme", "change-me", "change_me", "secret", "example", "sample", "password", "pepper", "development")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadSetting(Exception):
    """A setting that the portal cannot start with; the message names it and says what to write."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one portal (contract, section 6)."""

    database_url: str
    secret_key: str = field(repr=False)
    keyring: Keyring
    base_url: str
    hosts: tuple[str, ...]
    trusted_proxies: tuple[Network, ...]
    bind: str
    port: int
    workers: int
    is_local: bool

    @property
    def is_https(self) -> bool:
        """Whether the portal is reached over TLS: cookies are `Secure` and `__Host-` exactly then."""
        return self.base_url.startswith("https://")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], instance: Path) -> "Settings":
        """Read PORTAL_… variables; raise BadSetting. Locally, missing secrets are made in the instance folder."""
        port = _number(environ, "PORT", 5000, 1, 65_535)
        base_url = environ.get("PORTAL_BASE_URL", f"http://127.0.0.1:{port}").rstrip("/")
        scheme, host = _split_base_url(base_url)
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
            bind=environ.get("PORTAL_BIND", "127.0.0.1"),
            port=port,
            workers=_number(environ, "PORTAL_WORKERS", 1, 1, 64),
            is_local=is_local,
        )


def _number(environ: Mapping[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
        raise BadSetting(f"{name} must be a whole number from {lowest} to {highest}, not {text!r}.")
    return int(text)


def _split_base_url(base_url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.path or parts.query or parts.fragment:
        raise BadSetting(f"PORTAL_BASE_URL must look like https://keys.example.org, not {base_url!r}.")
    return parts.scheme, host


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
    if not pairs or not all(name.isalnum() and len(name) <= 20 for name, _, _ in pairs):
        raise BadSetting("PORTAL_KEY_PEPPERS must look like id:secret, newest first, parted by commas.")
    if len({name for name, _, _ in pairs}) != len(pairs):
        raise BadSetting("PORTAL_KEY_PEPPERS names an id twice.")
    return tuple(Pepper(name, _checked_secret("PORTAL_KEY_PEPPERS", secret).encode()) for name, _, secret in pairs)


def _checked_secret(name: str, text: str | None) -> str:
    if not text or len(text.encode()) < _MIN_SECRET:
        raise BadSetting(f"{name} must hold a secret of at least {_MIN_SECRET} bytes: openssl rand -hex 32 makes one.")
    left = text.lower()
    for sample in _SAMPLES:
        left = left.replace(sample, "")
    if len(left) < len(text) // 2 or len(set(text)) < 8:
        raise BadSetting(f"{name} holds a sample value. Make one of your own: openssl rand -hex 32.")
    return text


def _kept_secret(path: Path) -> str:
    """Read a local secret, made on first need; of two processes that start at once, one makes it."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    return path.read_text().strip()


def _key_format(environ: Mapping[str, str]) -> KeyFormat:
    try:
        return KeyFormat(environ.get("PORTAL_KEY_PREFIX") or "sk")
    except ValueError as error:
        raise BadSetting(f"PORTAL_KEY_PREFIX: {error}.") from None


def _networks(environ: Mapping[str, str]) -> tuple[Network, ...]:
    texts = [text.strip() for text in environ.get("PORTAL_TRUSTED_PROXIES", "").split(",") if text.strip()]
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise BadSetting(f"PORTAL_TRUSTED_PROXIES must be addresses or networks parted by commas: {error}.") from None
