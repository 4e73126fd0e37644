"""JSON bodies of the REST API, read strictly so that what is stored is what was meant (RFC 8259, RFC 7493)."""

import json
import math
import re
from typing import Any, NoReturn

from portal.rules.errors import Invalid, Unreadable

MAX_DEPTH = 16
MAX_ITEMS = 100  # in one array
MAX_MEMBERS = 1000  # in one object
MAX_INTEGER = 2**53 - 1  # beyond it, other languages' numbers lose digits (RFC 7493, section 2.2)
_SURROGATE_OR_NUL = re.compile("[\x00\ud800-\udfff]")


def read_object(body: bytes) -> dict[str, Any]:
    """Read one JSON object; raise Unreadable (not one) or Invalid (too deep, too long an array)."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_members,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise Unreadable("The body is not valid UTF-8.", code="invalid_utf8") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise Unreadable(message, code="invalid_json") from None
    if not isinstance(value, dict):
        raise Unreadable("The body must be a JSON object.", code="not_an_object")
    _check_shape(value)
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("The body names the same member twice.", code="duplicate_member")
    return members


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= 17 else MAX_INTEGER + 1
    if abs(number) > MAX_INTEGER:
        raise Unreadable("Whole numbers must lie within ±9007199254740991.", code="number_out_of_range")
    return number


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number) or abs(number) > MAX_INTEGER:
        raise Unreadable("Numbers must lie within ±9007199254740991.", code="number_out_of_range")
    return number


def _constant(name: str) -> NoReturn:
    raise Unreadable(f"{name} is not a JSON number.", code="invalid_json")


def _check_shape(value: dict[str, Any]) -> None:
    """Hold the whole value to the limits, level by level: recursion would meet the depth that it is to refuse."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for container in level for child in _containers_in(container)]
        if not level:
            return
    raise _too_deep()


def _containers_in(container: dict[str, Any] | list[Any]) -> list[Any]:
    if isinstance(container, list) and len(container) > MAX_ITEMS:
        raise Invalid({"fields": f"An array may hold at most {MAX_ITEMS} items."})
    if isinstance(container, dict) and len(container) > MAX_MEMBERS:
        raise Invalid({"fields": f"An object may hold at most {MAX_MEMBERS} members."})
    children = [*container, *container.values()] if isinstance(container, dict) else container
    for child in children:
        if isinstance(child, str):
            _check_text(child)
    return [child for child in children if isinstance(child, dict | list)]


def _check_text(text: str) -> None:
    if _SURROGATE_OR_NUL.search(text):
        raise Unreadable("Text must not hold U+0000 or lone surrogates.", code="invalid_text")


def _too_deep() -> Invalid:
    return Invalid({"fields": f"The body is nested more than {MAX_DEPTH} levels deep."})
