"""Key texts, their checksum and digests, passwords, tokens: minted well, known again, and never shown by accident."""

import copy
import hashlib
import hmac
import json
import logging
import pickle
import re
import string
import sys
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import pytest
from argon2 import Parameters, PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError
from argon2.low_level import verify_secret
from hypothesis import assume, given
from hypothesis import strategies as st

from portal.rules import credentials
from portal.rules.access import Environment
from portal.rules.credentials import KEY_SHAPED, KeyFormat, Keyring, Pepper, PlainKey, PlainVerifier, last_four_of

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
SK = KeyFormat()

bodies = st.builds(
    "{}_{}_{}".format,
    st.from_regex(r"[a-z][a-z0-9]{1,9}", fullmatch=True),
    st.sampled_from(Environment),
    st.text(ALPHABET, min_size=43, max_size=43),
)
environments = st.sampled_from(Environment)


def base62_crc32(text: str) -> str:
    """Work out a checksum as a scanner of somebody else's would, from the published description alone."""
    number = zlib.crc32(text.encode("ascii"))
    places = [number // 62**place % 62 for place in (5, 4, 3, 2, 1, 0)]
    return "".join(ALPHABET[digit] for digit in places)


def parsed(text: str, key_format: KeyFormat = SK) -> PlainKey:
    plain = key_format.parse(text)
    assert plain is not None
    return plain


# --- The text of a key ----------------------------------------------------------------------------------------------


@given(environments)
def test_a_minted_key_has_the_published_shape_and_reads_back(environment: Environment) -> None:
    plain = SK.mint(environment)
    text = plain.reveal()
    assert re.fullmatch(r"sk_(live|test)_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", text)
    assert len(text) == 58
    assert text.split("_")[1] == environment == plain.environment
    again = parsed(text)
    assert (again.reveal(), again.environment, again.last_four) == (text, environment, plain.last_four)


@given(environments)
def test_a_minted_keys_checksum_is_the_crc_of_what_stands_before_it(environment: Environment) -> None:
    body, _, check = SK.mint(environment).reveal().rpartition("_")
    assert check == base62_crc32(body)


@given(bodies)
def test_a_checksum_is_six_base62_digits_of_the_crc(body: str) -> None:
    assert credentials.checksum(body) == base62_crc32(body)


def test_checksums_are_padded_with_zeros() -> None:
    small = next(text for n in range(100_000) if zlib.crc32((text := str(n)).encode()) < 62**4)
    assert credentials.checksum(small).startswith("00")


@given(bodies)
def test_any_text_of_the_shape_with_the_right_checksum_is_a_key(body: str) -> None:
    prefix = body.partition("_")[0]
    text = f"{body}_{base62_crc32(body)}"
    assert parsed(text, KeyFormat(prefix)).reveal() == text


@given(bodies, st.text(ALPHABET, min_size=6, max_size=6))
def test_any_other_checksum_is_refused(body: str, check: str) -> None:
    assume(check != base62_crc32(body))
    assert KeyFormat(body.partition("_")[0]).parse(f"{body}_{check}") is None


@given(environments, st.integers(0, 57), st.characters())
def test_a_key_with_one_character_changed_is_refused(environment: Environment, place: int, other: str) -> None:
    text = SK.mint(environment).reveal()
    assume(text[place] != other)
    assert SK.parse(text[:place] + other + text[place + 1 :]) is None


@given(environments, st.integers(0, 57), st.sampled_from(ALPHABET + "_ \n\x00é"))
def test_a_key_with_one_character_more_or_less_is_refused(environment: Environment, place: int, extra: str) -> None:
    text = SK.mint(environment).reveal()
    assert SK.parse(text[:place] + text[place + 1 :]) is None
    assert SK.parse(text[:place] + extra + text[place:]) is None
    assert SK.parse(text + extra) is None


@given(environments, st.text(ALPHABET, min_size=1, max_size=90), st.sampled_from(["", "-", "_", ".", "é", "\n", " "]))
def test_a_right_checksum_does_not_make_up_for_another_length_or_alphabet(
    environment: Environment, secret: str, odd: str
) -> None:
    assume(len(secret) != 43 or odd)
    for other in (secret + odd, odd + secret, secret + odd + "x" * (43 - len(secret) - len(odd))):
        body = f"sk_{environment}_{other}"
        assume(not re.fullmatch(r"[0-9A-Za-z]{43}", other))
        assert SK.parse(f"{body}_{credentials.checksum(body)}") is None
    twice = SK.mint(environment).reveal() + odd + secret
    assert SK.parse(f"{twice}_{credentials.checksum(twice)}") is None


def test_relabelling_a_sandbox_key_as_live_fails_the_checksum() -> None:
    text = SK.mint(Environment.TEST).reveal()
    assert SK.parse(text.replace("_test_", "_live_")) is None


def test_letters_of_the_other_case_and_other_digits_are_refused() -> None:
    text = SK.mint(Environment.LIVE).reveal()
    assert SK.parse(text.swapcase()) is None
    assert SK.parse(text.upper()) is None
    assert SK.parse(text[:9] + "٣" + text[10:]) is None  # a digit to str.isdigit, not to us


@given(st.text())
def test_no_text_makes_the_parser_stumble(text: str) -> None:
    assert SK.parse(text) is None


@given(environments)
def test_a_key_of_another_prefix_word_is_nothing_here(environment: Environment) -> None:
    acme = KeyFormat("acme2")
    text = acme.mint(environment).reveal()
    assert text.startswith("acme2_")
    assert parsed(text, acme).environment is environment
    assert SK.parse(text) is None
    assert acme.parse(SK.mint(environment).reveal()) is None


@pytest.mark.parametrize("prefix", ["", "s", "SK", "s_k", "1sk", "sk-", "sk ", "sk\n", "é2", "a" * 11, ".*", "s(k"])
def test_a_prefix_that_would_break_the_format_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        KeyFormat(prefix)


def test_keys_use_the_whole_alphabet_evenly_and_never_repeat() -> None:
    secrets = [SK.mint(Environment.LIVE).reveal().split("_")[2] for _ in range(3_000)]
    assert len(set(secrets)) == len(secrets)
    counts = [sum(secret.count(digit) for secret in secrets) for digit in ALPHABET]
    # 129,000 draws over 62 digits: 2,081 each, give or take 45; six times that is no accident.
    assert max(abs(count - 3_000 * 43 / 62) for count in counts) < 300


@given(environments)
def test_the_hint_shows_the_last_four_random_characters_and_nothing_of_the_checksum(environment: Environment) -> None:
    plain = SK.mint(environment)
    secret, check = plain.reveal().split("_")[2:]
    assert plain.last_four == secret[-4:]
    hint = SK.hint(environment, plain.last_four)
    assert hint == f"sk_{environment}_…{secret[-4:]}"
    assert check not in hint


# --- A plain key prints blind ---------------------------------------------------------------------------------------


WAYS_TO_PRINT: dict[str, Callable[[PlainKey], str]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "f-string": lambda key: f"{key} {key!r} {key!s} {key!a} {key:>80}",
    "format": lambda key: "{} {0!r}".replace("{}", "{0}").format(key),
    "percent": lambda key: "%s %r %a" % (key, key, key),  # noqa: UP031 - that way too
    "format()": lambda key: format(key, "") + format(key, "100"),
    "in a list": lambda key: str([key]) + str({"key": key}) + str((key,)),
    "template": lambda key: string.Template("$key").substitute(key=key),
    "dir": lambda key: " ".join(dir(key)),
}


@pytest.mark.parametrize("way", WAYS_TO_PRINT)
def test_a_plain_key_prints_blind(way: str) -> None:
    plain = SK.mint(Environment.LIVE)
    assert plain.reveal()[8:20] not in WAYS_TO_PRINT[way](plain)


def test_a_plain_key_prints_blind_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    plain = SK.mint(Environment.LIVE)
    logging.getLogger("test").warning("made %s and %r", plain, plain, extra={"key": plain})
    logging.getLogger("test").warning(plain)
    assert plain.reveal()[8:20] not in caplog.text


def test_a_plain_key_prints_blind_in_a_traceback_that_shows_locals() -> None:
    plain = SK.mint(Environment.LIVE)
    try:
        raise ValueError(plain)
    except ValueError as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "PlainKey" in told
    assert plain.reveal()[8:20] not in told


def test_a_plain_key_cannot_be_stored_copied_compared_or_hashed() -> None:
    plain = SK.mint(Environment.LIVE)
    same = parsed(plain.reveal())
    with pytest.raises(TypeError):
        pickle.dumps(plain)
    with pytest.raises(TypeError):
        copy.copy(plain)
    with pytest.raises(TypeError):
        copy.deepcopy(plain)
    with pytest.raises(TypeError):
        json.dumps(plain)
    with pytest.raises(TypeError):
        _ = plain == same
    with pytest.raises(TypeError):
        _ = plain != same
    with pytest.raises(TypeError):
        hash(plain)
    with pytest.raises(TypeError):
        vars(plain)


# --- What is stored of a key ----------------------------------------------------------------------------------------


@given(environments, st.binary(min_size=32, max_size=64))
def test_the_digest_is_an_hmac_of_the_whole_text_under_the_pepper(environment: Environment, secret: bytes) -> None:
    plain = SK.mint(environment)
    expected = hmac.new(secret, plain.reveal().encode(), hashlib.sha256).digest()
    assert Pepper("p", secret).digest(plain) == expected


@given(bodies, bodies, st.binary(min_size=32), st.binary(min_size=32))
def test_another_key_or_another_pepper_gives_another_digest(one: str, other: str, old: bytes, new: bytes) -> None:
    assume(one != other)
    assume(old.rstrip(b"\0") != new.rstrip(b"\0"))  # HMAC pads short secrets with zeros
    first, second = PlainKey(one, Environment.LIVE), PlainKey(other, Environment.LIVE)
    digests = {Pepper("p", secret).digest(plain) for secret in (old, new) for plain in (first, second)}
    assert len(digests) == 4


def test_a_keyring_mints_under_the_newest_pepper_and_knows_the_older_ones() -> None:
    newest, oldest = Pepper("b", b"n" * 32), Pepper("a", b"o" * 32)
    plain, digest, pepper_id = Keyring(SK, (newest, oldest)).mint(Environment.TEST)
    assert (digest, pepper_id) == (newest.digest(plain), "b")
    assert Keyring(SK, (newest, oldest)).digests(plain) == [newest.digest(plain), oldest.digest(plain)]


def test_a_keyring_shows_no_pepper() -> None:
    keyring = Keyring(SK, (Pepper("newest", b"N0body-may-read-this-secret-value"),))
    assert "N0body" not in f"{keyring!r} {keyring}"


# --- Passwords and tokens -------------------------------------------------------------------------------------------


HASH = credentials.hash_password("correct horse battery staple")


def work_of(call: Callable[[], object]) -> list[Parameters]:
    """Watch which password hashes a call computes, and with which parameters; nothing is replaced for it."""
    done: list[Parameters] = []

    def watch(frame: FrameType, event: str, result: object) -> None:
        if event == "return" and frame.f_code is verify_secret.__code__:
            with suppress(InvalidHashError):  # what cannot be read costs nothing
                done.append(extract_parameters(frame.f_locals["hash"].decode()))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return done


def test_a_password_is_known_again_and_no_other_is() -> None:
    assert credentials.verify_password(HASH, "correct horse battery staple")
    for wrong in ("", "correct horse battery stapl", "Correct horse battery staple", "correct horse battery staple "):
        assert not credentials.verify_password(HASH, wrong)


def test_the_same_password_gets_another_hash_each_time_with_the_parameters_of_the_owasp_sheet() -> None:
    again = credentials.hash_password("correct horse battery staple")
    assert again != HASH
    assert again.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


@pytest.mark.parametrize("password", ["pässwörd with ünïcode", "\x00" * 12, "\ud800 lone surrogate", "a" * 256])
def test_any_text_can_be_a_password(password: str) -> None:
    stored = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1).hash(
        password.encode("utf-8", "surrogatepass")
    )
    assert credentials.verify_password(stored, password)


ODD_HASHES = [None, "", "x", "!", "$argon2id$broken", "$2b$12$" + "x" * 53]


@pytest.mark.parametrize("stored", ODD_HASHES)
@pytest.mark.parametrize("password", ["", "correct horse battery staple", "a" * 300])
def test_nobodys_or_an_unreadable_hash_lets_nobody_in(stored: str | None, password: str) -> None:
    assert not credentials.verify_password(stored, password)


@pytest.mark.parametrize("stored", [HASH, *ODD_HASHES], ids=["a good hash", *map(repr, ODD_HASHES)])
@pytest.mark.parametrize("length", [0, 12, 256, 257, 1_000_000])
def test_every_refusal_takes_the_work_of_one_verification(stored: str | None, length: int) -> None:
    usual = work_of(lambda: credentials.verify_password(HASH, "a wrong password"))
    assert len(usual) == 1
    assert work_of(lambda: credentials.verify_password(stored, "a" * length)) == usual


def test_a_password_that_is_too_long_is_never_right() -> None:
    long = "a" * 257
    stored = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1).hash(long)
    assert not credentials.verify_password(stored, long)


def test_a_hash_of_other_parameters_is_due_to_be_made_again() -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("correct horse battery staple")
    assert credentials.verify_password(weak, "correct horse battery staple")
    assert credentials.needs_rehash(weak)
    assert not credentials.needs_rehash(HASH)


def test_tokens_are_long_random_and_stored_as_a_hash() -> None:
    tokens = {credentials.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[0-9A-Za-z_-]{43}", token) for token in tokens)
    token = tokens.pop()
    assert credentials.token_digest(token) == hashlib.sha256(token.encode()).digest()


@pytest.mark.parametrize("kind", ["key", "mem", "rec", "ws"])
def test_public_ids_are_a_word_and_letters_and_digits(kind: str) -> None:
    ids = [credentials.new_id(kind) for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(re.fullmatch(kind + r"_[0-9A-Za-z]{16,32}", each) for each in ids)


# --- Verifiers ------------------------------------------------------------------------------------------------------


def test_a_verifier_has_a_shape_of_its_own_and_reads_back() -> None:
    plain = PlainVerifier.mint()
    text = plain.reveal()
    assert re.fullmatch(r"vf_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", text)
    body, _, check = text.rpartition("_")
    assert check == base62_crc32(body)
    assert plain.last_four == body[-4:] == last_four_of(text)
    assert last_four_of(text.replace(f"{body}_", body)) == body[-4:]
    again = PlainVerifier.parse(text)
    assert again is not None and again.reveal() == text
    assert text not in f"{plain} {plain!r} {[plain]}"


@pytest.mark.parametrize("prefix", ["sk", "vf"])
@given(environments)
def test_a_verifier_is_no_key_and_a_key_no_verifier(prefix: str, environment: Environment) -> None:
    keys = KeyFormat(prefix)
    assert keys.parse(PlainVerifier.mint().reveal()) is None
    assert PlainVerifier.parse(keys.mint(environment).reveal()) is None


def test_a_mistyped_verifier_is_none() -> None:
    text = PlainVerifier.mint().reveal()
    for wrong in ("", text[:-1], text + "0", text.swapcase(), f" {text}", f"{text}\n", text.replace("vf", "sk")):
        assert PlainVerifier.parse(wrong) is None
    assert all(PlainVerifier.parse(text[:at] + "!" + text[at + 1 :]) is None for at in range(len(text)))


@pytest.mark.parametrize("text", ["ver_0123456789abcdef", "vf_short", "my vf_ word", "vf 0123456789"])
def test_what_is_only_like_a_verifier_is_let_be(text: str) -> None:
    assert not KEY_SHAPED.search(text)
