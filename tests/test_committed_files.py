"""No committed file names somebody's folders or a package registry, or holds a key that would pass as real."""

import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import lacking

ROOT = Path(__file__).parent.parent
BASE62 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MACHINE_PATH = re.compile(rb"(?<![\w.~])/(?:work|root|home|Users)/[\w.]|\b[A-Z]:\\Users\\")
REGISTRY = re.compile(rb"pypi\.(?:org|python)|pythonhosted\.|registry\.npm|crates\.io/api")
KEY = re.compile(rb"(sk_(?:live|test)_[0-9A-Za-z]{43})_([0-9A-Za-z]{6})")


def machine_paths(content: bytes) -> list[bytes]:
    return MACHINE_PATH.findall(content) + re.findall(re.escape(bytes(ROOT)) + rb"\b", content)


def registries(content: bytes) -> list[bytes]:
    return REGISTRY.findall(content)


def real_looking_keys(content: bytes) -> list[bytes]:
    return [body for body, checksum in KEY.findall(content) if checksum == base62_crc32(body)]


def base62_crc32(body: bytes) -> bytes:
    """Work out a key's checksum independently of portal/, as a scanner of somebody else's would."""
    number, digits = zlib.crc32(body), []
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits.append(BASE62[digit])
    return bytes(reversed(digits))


@pytest.mark.parametrize("suspicious", [machine_paths, registries, real_looking_keys])
def test_no_committed_file_holds(suspicious: Callable[[bytes], list[bytes]]) -> None:
    found = {path: hits for path in committed_files() if (hits := suspicious((ROOT / path).read_bytes()))}
    assert found == {}


def committed_files() -> list[str]:
    """Name the files that are committed or, not being ignored, would be with the next commit."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        lacking("not a git checkout: the committed files are not known")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def test_the_check_itself_finds_what_it_looks_for() -> None:
    body = b"sk_test_" + b"x" * 43
    assert real_looking_keys(b'key = "' + body + b"_" + base62_crc32(body) + b'"') == [body]
    assert real_looking_keys(body + b"_000000") == []
    assert machine_paths(b"cd /" + b"home/ana/portal") != []
    assert machine_paths(b"see https://example.org/" + b"home/ana, /w/acme and ~/" + b"work/x") == []
    assert registries(b"https://pypi." + b"org/simple") != []
