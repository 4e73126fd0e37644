"""Secrets: the text of a key, its checksum and stored digest; passwords; opaque tokens.

A plain secret and what is stored of it are two types, and the plain one prints blind: only `reveal` gives the text,
for the one response that shows it.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Any, NewType, NoReturn

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from portal.rules.access import Environment

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_LENGTH = 43  # 43 base62 digits hold 256 bits
CHECKSUM_LENGTH = 6  # 6 base62 digits hold the 32 bits of a CRC-32
_PAIRS = tuple(first + second for first in BASE62 for second in BASE62)

VERIFIER_WORD = "vf"  # a verifier's text begins so: no environment follows, by which it can never be taken for a key

_MARK = rf"(?:_(?:live|test)_|(?<={VERIFIER_WORD})_)"


def _shaped(least: int) -> re.Pattern[str]:
    return re.compile(
        rf"[A-Za-z][A-Za-z0-9]{{0,9}}(?:{_MARK}[0-9A-Za-z]{{{least},}}(?:_(?!(?:live|test)_)[0-9A-Za-z]*)?)+"
    )


# Anything that looks like one of our keys whatever its prefix word, or like a verifier, good or mistyped, whole or cut,
# and several in a row: what is neither taken nor kept. Logs redact what is cut shorter still: there it harms nobody if
# that was a word, but people do call a key `billing_live_production`.
KEY_SHAPED = _shaped(16)
KEY_SHAPED_IN_LOGS = _shaped(8)

# The end of a key with its checksum ("abcd_123456"), or what the portal shows of one ("sk_live_…abcd").
_END = re.compile(r"([0-9A-Za-z]{4})_[0-9A-Za-z]{6}(?![0-9A-Za-z_])|(?:…|\.\.\.)([0-9A-Za-z]{4})(?![0-9A-Za-z])")
_RANDOM_PART = re.compile(rf"{_MARK}([0-9A-Za-z]{{8,}})")
_VERIFIER = re.compile(rf"{VERIFIER_WORD}_[0-9A-Za-z]{{{SECRET_LENGTH}}}_[0-9A-Za-z]{{{CHECKSUM_LENGTH}}}")

KeyDigest = NewType("KeyDigest", bytes)


def last_four_of(text: str) -> str:
    """Reduce what holds something key-shaped, good or mistyped, to the last four of its random characters."""
    found = _RANDOM_PART.search(text)
    return found[1][:SECRET_LENGTH][-4:] if found else ""


def last_four_in_part(text: str) -> str:
    """Find the last four random characters in what holds the end of a key and no key; '' where it does not."""
    found = None if KEY_SHAPED.search(text) else _END.search(text)
    return (found[1] or found[2]) if found else ""


def is_like_an_end(text: str) -> bool:
    """Say whether a text is as long as what people type of a key's end: its checksum, or four characters of that."""
    return len(text) in (4, CHECKSUM_LENGTH) and all(digit in BASE62 for digit in text)


def random_base62(length: int) -> str:
    """Draw base62 digits uniformly from the operating system's randomness."""
    digits = ""
    while len(digits) < length:
        # 248 is 4 × 62: larger bytes would favour the low digits, so they are dropped.
        digits += "".join(BASE62[byte % 62] for byte in secrets.token_bytes(64) if byte < 248)
    return digits[:length]


def new_id(kind: str) -> str:
    """Make a public id, such as `key_…`: 16 random base62 digits, 95 bits; a name, not a secret."""
    return f"{kind}_{random_base62(16)}"


def id_by_form(kind: str, maker: str, form_id: str, *answers: str) -> str:
    """Make the public id of what a maker's form makes: the same each time it is sent, by which a repeat is known.

    Another one with other answers, and a new one for a form without an id.
    """
    if not form_id:
        return new_id(kind)
    digest = hashlib.sha256("\0".join((kind, maker, form_id, *answers)).encode()).digest()
    return f"{kind}_{''.join(BASE62[byte % 62] for byte in digest[:16])}"


def checksum(text: str) -> str:
    """Compute the six base62 digits of the CRC-32 of a key's text before its last underscore."""
    rest, last = divmod(zlib.crc32(text.encode()), len(_PAIRS))
    first, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]


class PlainSecret:
    """A text that passed its format and checksum. It cannot be printed, compared, hashed or pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Give the full text. Callers: the reveal, the answer to a key that rotates itself, the digest, tests."""
        return self._text

    @property
    def last_four(self) -> str:
        """The last four of the random characters, none of the checksum: what lists show."""
        return self._text[-CHECKSUM_LENGTH - 5 : -CHECKSUM_LENGTH - 1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(not shown)"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a plain secret is not stored")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("plain secrets are not compared; compare digests")

    __hash__ = None  # type: ignore[assignment]


BEARER = re.compile(r"bearer +([^ \t,]+) *", re.IGNORECASE | re.ASCII)  # a whole header with its credential, RFC 6750
# One that somehow speaks of a Bearer credential: servers put several headers into one, with commas between them.
BEARER_AMONG = re.compile(r"(?:\A|,[ \t]*)bearer(?:[ \t]|\Z)", re.IGNORECASE | re.ASCII)


class PlainKey(PlainSecret):
    """The text of a key."""

    __slots__ = ("environment",)

    def __init__(self, text: str, environment: Environment) -> None:
        super().__init__(text)
        self.environment = environment


class PlainVerifier(PlainSecret):
    """The text of a verifier: `vf_<43 base62>_<6 base62 checksum>`, by which somebody's own product asks about keys."""

    __slots__ = ()

    @classmethod
    def mint(cls) -> "PlainVerifier":
        """Make a new one from 256 bits of the operating system's randomness."""
        body = f"{VERIFIER_WORD}_{random_base62(SECRET_LENGTH)}"
        return cls(f"{body}_{checksum(body)}")

    @classmethod
    def parse(cls, text: str) -> "PlainVerifier | None":
        """Read a verifier's text; None when length, alphabet or checksum are off. Never asks the database."""
        is_one = _VERIFIER.fullmatch(text) and checksum(text[: -CHECKSUM_LENGTH - 1]) == text[-CHECKSUM_LENGTH:]
        return cls(text) if is_one else None


@dataclass(frozen=True, slots=True)
class KeyFormat:
    """How this instance's keys look: `<prefix>_(live|test)_<43 base62>_<6 base62 checksum>` (contract, section 2)."""

    prefix: str = "sk"
    pattern: re.Pattern[str] = field(init=False, repr=False)
    shape: re.Pattern[str] = field(init=False, repr=False)  # a key of ours anywhere in a text, whole or cut

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{1,9}", self.prefix):
            raise ValueError("a key prefix is 2 to 10 lower-case letters and digits and begins with a letter")
        expression = rf"{self.prefix}_(live|test)_[0-9A-Za-z]{{{SECRET_LENGTH}}}_[0-9A-Za-z]{{{CHECKSUM_LENGTH}}}"
        object.__setattr__(self, "pattern", re.compile(expression))
        object.__setattr__(self, "shape", re.compile(rf"{self.prefix}_(?:live|test)_[0-9A-Za-z]{{20}}"))

    def mint(self, environment: Environment) -> PlainKey:
        """Make a new key from 256 bits of the operating system's randomness."""
        body = f"{self.prefix}_{environment}_{random_base62(SECRET_LENGTH)}"
        return PlainKey(f"{body}_{checksum(body)}", environment)

    def parse(self, text: str) -> PlainKey | None:
        """Read a key's text; None when length, alphabet or checksum are off. Never asks the database."""
        match = self.pattern.fullmatch(text)
        if not match or checksum(text[: -CHECKSUM_LENGTH - 1]) != text[-CHECKSUM_LENGTH:]:
            return None
        return PlainKey(text, Environment(match[1]))

    def hint(self, environment: str, last_four: str) -> str:
        """Write what lists show of a key, such as `sk_live_…abcd`."""
        return f"{self.prefix}_{environment}_…{last_four}"


@dataclass(frozen=True, slots=True)
class Pepper:
    """A secret of the instance, kept outside the database, under which keys are hashed; rows name it by `id`."""

    id: str
    secret: bytes = field(repr=False)
    _begun: "hmac.HMAC" = field(init=False, repr=False, compare=False)  # to begin anew costs more than the hash

    def __post_init__(self) -> None:
        object.__setattr__(self, "_begun", hmac.new(self.secret, digestmod="sha256"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Pepper, (self.id, self.secret)  # what was begun cannot be handed to another process

    def digest(self, plain: PlainSecret) -> KeyDigest:
        """Compute what is stored of a key or verifier: HMAC-SHA-256 of its whole text (RFC 2104)."""
        return KeyDigest(self._digest(plain.reveal().encode()))

    @property
    def proof(self) -> bytes:
        """What the secret can be recognised by, and nothing else: no key has this text."""
        return self._digest(b"Latchkey: the pepper itself")

    def _digest(self, text: bytes) -> bytes:
        begun = self._begun.copy()
        begun.update(text)
        return begun.digest()


@dataclass(frozen=True, slots=True)
class Keyring:
    """What an instance needs to make keys and to know them again."""

    format: KeyFormat
    peppers: tuple[Pepper, ...]  # newest first: it hashes new keys, the others are still accepted

    def mint(self, environment: Environment) -> tuple[PlainKey, KeyDigest, str]:
        """Make a key; give it with its digest under the newest pepper and that pepper's id."""
        plain = self.format.mint(environment)
        return plain, self.peppers[0].digest(plain), self.peppers[0].id

    def digests(self, plain: PlainSecret) -> list[KeyDigest]:
        """Compute what may be stored of a key or verifier, one digest a pepper, newest first."""
        return [pepper.digest(plain) for pepper in self.peppers]


def new_token() -> str:
    """Make an opaque token of 256 bits for a session or a one-time link."""
    return secrets.token_urlsafe(32)


def token_digest(token: str) -> bytes:
    """Hash a token for storage. It is random, so a plain SHA-256 is enough."""
    return hashlib.sha256(token.encode()).digest()


PASSWORD_MIN = 12  # characters
PASSWORD_MAX = 256  # characters; longer ones are refused without hashing them

# OWASP password storage cheat sheet, Argon2id: 19 MiB, 2 passes, 1 lane.
_hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
_NOBODY = _hasher.hash(secrets.token_hex(16))
NO_PASSWORD = "!"  # noqa: S105 - stands where a hash does, and no password has it


def hash_password(password: str) -> str:
    """Hash a password with Argon2id (RFC 9106) and a salt of its own."""
    return _hasher.hash(password)


def verify_password(stored: str | None, password: str) -> bool:
    """Say whether the password is the stored one.

    Nobody (`None`), an unreadable hash and a password that is too long take the same work as a wrong one.
    """
    if len(password) > PASSWORD_MAX:
        stored, password = None, ""
    try:
        return _hasher.verify(stored or _NOBODY, password.encode("utf-8", "surrogatepass")) and stored is not None
    except VerifyMismatchError:
        return False
    except (InvalidHashError, VerificationError):  # an unreadable hash
        return verify_password(None, password)


def needs_rehash(stored: str) -> bool:
    """Say whether a hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)
