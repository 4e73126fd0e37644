"""Texts from outside: names and notes, e-mail addresses, local paths, addresses of clients."""

import ipaddress
import re
import unicodedata
from urllib.parse import unquote, urlsplit

import regex

from portal.rules.credentials import KEY_SHAPED

_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_REFUSED = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})  # control, lone surrogate, unassigned, line and paragraph ends
_VISIBLE = frozenset("LNPS")  # letters, numbers, punctuation, symbols
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_EMAIL = re.compile(r"[^\s@\x00-\x1f\x7f,;:<>()\[\]\\\"]{1,64}@[^\s@\x00-\x1f\x7f,;:<>()\\\"]{1,189}")
_LOCAL_PATH = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")


def clean_line(text: str) -> str | None:
    """Trim and normalise (NFC) a line of text; None when it holds what no name should.

    Refused are control characters, lone surrogates, unassigned code points, bidi controls and the byte order mark,
    because they make one name look like another or break where it is printed. Everything else is kept.
    """
    try:
        line = unicodedata.normalize("NFC", text).strip()
    except ValueError:
        return None
    if any(map(_is_refused, line)):
        return None
    if line and not any(unicodedata.category(character)[0] in _VISIBLE for character in line):
        return None
    return line


def without_refused(text: str) -> str:
    """Put a mark in the place of each character that no name may hold."""
    return "".join("\ufffd" if _is_refused(character) else character for character in text)


def _is_refused(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in _REFUSED


def read_line(problems: dict[str, str], field: str, written: str, least: int, most: int, which: str) -> str:
    """Clean a name, a note or such that is `least` to `most` characters long and holds no key.

    Where it cannot be taken, `problems` gets what to do about it under its field; `which` tells what to write there.
    """
    line = clean_line(written)
    if line is None:
        problems[field] = f"Enter a {field} without control characters or hidden text direction marks."
    elif KEY_SHAPED.search(line):
        problems[field] = f"This looks like a key. Never write one down here: enter a {field} {which}."
    elif len(line) < least:
        problems[field] = f"Enter a {field} {which}: {least} to {most} characters."
    elif len(line) > most:
        problems[field] = f"Enter at most {most} characters; this {field} has {len(line)}."
    return line or ""


def fold(name: str) -> str:
    """Give the form in which two names count as the same."""
    return unicodedata.normalize("NFC", name.casefold())


def look(name: str) -> str:
    """Give the form in which two names that look the same count as one; letters of other alphabets stay others."""
    seen = unicodedata.normalize("NFKC", _UNSEEN.sub("", name)).casefold()
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def clean_email(text: str) -> str | None:
    """Give the form in which an address is stored and looked up, or None for what cannot be one."""
    line = clean_line(text) if len(text) <= 1000 else None
    email = fold(line) if line else ""
    return email if len(email) <= 254 and _EMAIL.fullmatch(email) else None


def local_path(text: str | None) -> str | None:
    """Give a path on this site that it is safe to go to, or None for anything that could lead elsewhere."""
    if not text or not text.isascii() or len(text) > 2000:
        return None
    decoded = unquote(text)
    parts = urlsplit(text) if _LOCAL_PATH.fullmatch(decoded) else None
    return text if parts and not parts.scheme and not parts.netloc and _LOCAL_PATH.fullmatch(text) else None


def network_of(address: str | None) -> str:
    """Group addresses as one guesser would have them: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if not parsed.ipv4_mapped:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
