"""JSON Schemas of records (2020-12), of which nobody needs to trust the author: each check ends soon.

One process serves every workspace, and a schema is a small program: subschemas that refer to others twice double their
work at every step, and a pattern may try every way to split a text (CWE-1333). So what multiplies is refused when a
schema is read, and what a record makes of the rest has a fixed time.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import isinf, prod
from time import thread_time
from typing import Any
from urllib.parse import unquote

import regex
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

from portal.rules.errors import Invalid

PATIENCE = 0.5  # seconds of this thread's time for one record: some 15,000 values; honest ones take thousandths
MOST_PROBLEMS = 20  # that are told of one record
_PATTERN_PATIENCE = 0.05  # seconds for one pattern in one text
_MAX_PARTS = 10_000  # subschemas, each counted as often as something refers to it
_MAX_PATTERN = 500  # characters
_MAX_REPEATS = 2_000  # of all patterns of a schema: compiling one writes them out, groups within groups multiplied
_MAX_MESSAGE = 300  # characters
_SLOW = "This record takes too long to check against the app's schema. Send less, or ask for a simpler schema."
_UNFIT = "Numbers in a schema must be finite and lie within ±10³⁰⁸, and its texts must hold no lone surrogates."
_TOO_LONG = f"The patterns of a schema may repeat things at most {_MAX_REPEATS:,} times in all."
_DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Where subschemas are (JSON Schema Core, section 10): by name, in a row, one.
_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_ROWS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = (
    "items", "contains", "additionalProperties", "propertyNames", "if", "then", "else", "not", "contentSchema",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_HERE = {"allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas"}  # they look at the same value
# They would move what a reference is relative to, or change the rules of the part that they stand in.
_NOT_TAKEN = ("$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef", "$recursiveAnchor")
_GROUP = re.compile(r"\(\?(?!:|=|!|<=|<!)")
_REPEAT = re.compile(r"(\)?)(?:\+|\{(\d*)(?:,(\d*))?\})")

_Path = tuple[str, ...]
_clock = threading.local()


class _TooMuch(Exception):
    """The time for one record is over."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was read: its text as it was given, and what holds records to it."""

    given: dict[str, Any]
    _validator: Validator

    @classmethod
    def read(cls, value: Any) -> "Schema":
        """Take only what every record can be held to: an object's schema whose references all lead to within itself.

        Raises Invalid for `schema` also when checking a record could take long.
        """
        if not isinstance(value, dict) or value.get("type") != "object":
            raise _refuse('The JSON Schema of a record must be an object that says "type": "object".')
        try:
            return _read(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())
        except RecursionError:
            raise _refuse("The schema is nested too deep.") from None
        except ValueError:
            raise _refuse(_UNFIT) from None

    def problems(self, fields: dict[str, Any], most: int = MOST_PROBLEMS) -> list[dict[str, str]]:
        """List where a record does not fit, by `path` and `message`; one that would take too long does not fit."""
        _clock.end = thread_time() + PATIENCE
        try:
            found = list(islice(self._validator.iter_errors(fields), most))
        except (_TooMuch, RecursionError):
            return [{"path": "$", "message": _SLOW}]
        return [{"path": each.json_path[:200], "message": each.message} for each in sorted(found, key=_path_of)]


@lru_cache(maxsize=256)
def _read(text: bytes) -> Schema:
    given: dict[str, Any] = json.loads(text, parse_int=_integer)
    if given.get("$schema", _DIALECT) != _DIALECT:
        raise _refuse(f"Schemas are read as {_DIALECT}, so $schema can say nothing else.")
    # Both words are for others. To the library they would mean another set of rules, and another place for `#`.
    root = {word: value for word, value in given.items() if word not in ("$schema", "$id")}
    try:
        Draft202012Validator.check_schema(root)
    except SchemaError as error:
        where = error.json_path[:200]
        if error.validator_value == "regex":  # the format that a schema of schemas holds patterns to
            raise _unreadable(f"{_cut(str(error.instance))} at {where}", error.cause) from None
        raise _refuse(f"This is not a JSON Schema, at {where}: {error.message[:_MAX_MESSAGE]}") from None
    except OverflowError:  # from a pattern
        raise _refuse(_TOO_LONG) from None
    parts = dict(_parts((), root))
    for part in parts.values():
        _check_words(part)
    _check_patterns({pattern for part in parts.values() for pattern in _patterns_of(part)})
    words = {word for part in parts.values() for word in part}
    if {"patternProperties", "unevaluatedProperties"} <= words:  # the library's own would search without a limit
        raise _refuse("Say additionalProperties, not unevaluatedProperties, in a schema with patternProperties.")
    _check_ends(parts)
    if _count((), parts, {}) > _MAX_PARTS:
        raise _refuse(f"The schema's parts refer to each other too often: together they make more than {_MAX_PARTS:,}.")
    # An empty registry: a $ref to somewhere else is an error, never a request to it.
    return Schema(given, _Bounded(root, registry=Registry(), format_checker=_FORMATS))


def _integer(digits: str) -> int:
    if isinf(float(digits)):  # no record could be held to it: Python refuses to divide a float by it
        raise ValueError
    return int(digits)


def _refuse(message: str) -> Invalid:
    return Invalid({"schema": message})


def _path_of(error: ValidationError) -> str:
    return error.json_path


# --- What a schema may say ------------------------------------------------------------------------------------------


def _parts(path: _Path, part: Any) -> Iterator[tuple[_Path, dict[str, Any]]]:
    """Walk through a schema and its subschemas, each with the way to it from the root."""
    if not isinstance(part, dict):
        return  # true or false
    yield path, part
    for way, below in _below(part):
        yield from _parts(path + way, below)


def _below(part: dict[str, Any]) -> Iterator[tuple[_Path, Any]]:
    for word in _NAMED:
        yield from (((word, name), below) for name, below in part.get(word, {}).items())
    for word in _ROWS:
        yield from (((word, str(number)), below) for number, below in enumerate(part.get(word, ())))
    yield from (((word,), part[word]) for word in _ONES if word in part)


def _check_words(part: dict[str, Any]) -> None:
    for word in ("$schema", "$id", *_NOT_TAKEN):
        if word in part:
            raise _refuse(f"{word} cannot stand here: a schema is one piece, and a $ref says #/… .")


def _patterns_of(part: dict[str, Any]) -> Iterator[str]:
    yield from part.get("patternProperties", ())
    if "pattern" in part:
        yield part["pattern"]


def _check_patterns(patterns: set[str]) -> None:
    """Compile patterns, but only such as are known to stay small: compiling has no limit of time or memory."""
    for pattern in patterns:
        if len(pattern) > _MAX_PATTERN:
            raise _refuse(f"A pattern may have at most {_MAX_PATTERN} characters: {_cut(pattern)}")
        if _GROUP.search(pattern):
            allowed = "(?:, (?=, (?!, (?<= and (?<!"
            raise _refuse(f"Of groups that begin with (? a pattern may hold {allowed}: {_cut(pattern)}")
    if sum(map(_written_out, patterns)) > _MAX_REPEATS:
        raise _refuse(_TOO_LONG)
    for pattern in patterns:
        try:
            _compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise _unreadable(_cut(pattern), error) from None


def _unreadable(pattern: str, why: Exception | None) -> Invalid:
    return _refuse(f"The pattern {pattern} cannot be read as a regular expression: {str(why)[:80]}.")


def _written_out(pattern: str) -> int:
    """Count, at most, how often compiling writes parts of a pattern out: a group so often, all else its least times."""
    repeats = [(group, int(least or 0), int(most or 0)) for group, least, most in _REPEAT.findall(pattern)]
    of_groups = [max(2, least, most) for group, least, most in repeats if group]
    inside = max((max(2, least, most) for group, least, most in repeats if not group), default=1)
    alone = sum(least for group, least, _ in repeats if not group)
    return alone + (prod(of_groups) * inside if of_groups else 0)


def _cut(pattern: str) -> str:
    return pattern if len(pattern) <= 60 else f"{pattern[:60]}…"


def _target(part: dict[str, Any], parts: dict[_Path, dict[str, Any]]) -> _Path | None:
    """Give where a part's $ref leads; Invalid when that is not a subschema of the same schema (RFC 6901)."""
    ref = part.get("$ref")
    if ref is None:
        return None
    names = unquote(ref[1:]).split("/") if ref == "#" or ref.startswith("#/") else None
    path = tuple(name.replace("~1", "/").replace("~0", "~") for name in names[1:]) if names else ()
    if names is None or (path not in parts and not isinstance(_at(path, parts), bool)):
        raise _refuse(f"A $ref may only point to a subschema within the schema itself (#/…): {ref[:100]}.")
    return path


def _at(path: _Path, parts: dict[_Path, dict[str, Any]]) -> Any:
    """Give `true` or `false` where that is a subschema; they are no parts by themselves."""
    for length in (1, 2):
        if len(path) >= length and path[:-length] in parts:
            for way, below in _below(parts[path[:-length]]):
                if way == path[-length:]:
                    return below
    return None


def _check_ends(parts: dict[_Path, dict[str, Any]]) -> None:
    """Refuse a schema that comes back to itself without having gone down into the record."""
    done: set[_Path] = set()

    def follow(path: _Path, above: frozenset[_Path]) -> None:
        if path in above:
            raise _refuse("The schema refers to itself without end.")
        if path in done or path not in parts:
            return
        part = parts[path]
        ways = [path + way for way, _ in _below(part) if way[0] in _HERE]
        target = _target(part, parts)
        for each in (*ways, *([target] if target is not None else ())):
            follow(each, above | {path})
        done.add(path)

    for path in parts:
        follow(path, frozenset())


def _count(path: _Path, parts: dict[_Path, dict[str, Any]], known: dict[_Path, int]) -> int:
    """Count the parts below one, those that it refers to again each time; a circle down the record counts once."""
    if path not in parts:
        return 1
    if path not in known:
        known[path] = 1  # should it come back here
        below = [path + way for way, _ in _below(parts[path])]
        target = _target(parts[path], parts)
        below += [target] if target is not None else []
        known[path] = 1 + sum(_count(each, parts, known) for each in below)
    return known[path]


# --- Holding a record to it -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> Any:
    return regex.compile(pattern)


def _matches(pattern: str, text: str) -> bool:
    try:
        return _compile(pattern).search(text, timeout=_PATTERN_PATIENCE) is not None
    except TimeoutError:
        raise _TooMuch from None
    finally:
        _check_clock()


def _check_clock() -> None:
    if thread_time() > _clock.end:
        raise _TooMuch


def _pattern(validator: Any, pattern: str, text: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(text, str) and not _matches(pattern, text):
        yield ValidationError(f"{text[:_MAX_MESSAGE]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], fields: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(fields, dict):
        for pattern, schema in patterns.items():
            for name, value in fields.items():
                if _matches(pattern, name):
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, schema: Any, fields: Any, beside: Any) -> Iterator[ValidationError]:
    if not isinstance(fields, dict):
        return
    known, patterns = beside.get("properties", {}), beside.get("patternProperties", ())
    for name, value in fields.items():
        if name not in known and not any(_matches(pattern, name) for pattern in patterns):
            if schema is False:
                yield ValidationError(f"Additional properties are not allowed ({name!r} was unexpected)")
            else:
                yield from validator.descend(value, schema, path=name)


def _bounded(keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
    """Let a keyword look only while there is time, and keep little of what it says: it repeats the whole value.

    Where that is None, True or False in Python, it is what JSON calls it.
    """

    def look(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _check_clock()
        for error in keyword(validator, value, instance, schema) or ():
            message = error.message[:_MAX_MESSAGE]
            if (instance is None or isinstance(instance, bool)) and message.startswith(repr(instance)):
                message = json.dumps(instance) + message.removeprefix(repr(instance))
            error.message, error.context = message, []
            yield error

    return look


_KEYWORDS = {
    **Draft202012Validator.VALIDATORS,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
_BOUNDED = {word: _bounded(keyword) for word, keyword in _KEYWORDS.items()}
_Bounded: type[Validator] = extend(Draft202012Validator, _BOUNDED)  # type: ignore[no-untyped-call]
# Not "regex": it would compile whatever text a record brings.
_FORMATS = FormatChecker(formats=[name for name in Draft202012Validator.FORMAT_CHECKER.checkers if name != "regex"])
