"""The fields that an app's records have, as its JSON Schema tells them, laid out for people: a table, not the whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

_DEPTH, _ROWS, _VALUES = 3, 100, 20  # levels, fields in all, values that are named of one
_ROOM, _LONGEST = 60, 200  # characters of a name or value, and of a description
_RANGES = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", "characters"),
    ("minItems", "maxItems", "items"),
    ("minProperties", "maxProperties", "members"),
)
_RULES = {
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "format": "format {}",
    "pattern": "pattern {}",
}
_MORE = ("anyOf", "oneOf", "allOf", "not", "if", "$ref")  # what a row of a table cannot tell
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field; one within another is called `outer.inner`, in the items of a list `outer[].inner`."""

    name: str
    type: str
    is_required: bool
    values: tuple[str, ...]  # as JSON; none where the type allows any
    bounds: tuple[str, ...]
    words: str
    has_more: bool  # the schema says more than is told here


def fields_of(schema: Any) -> list[Field]:
    """List the fields that a JSON Schema names, required ones first: 100 at most, down to the third level."""
    return list(islice(_fields_in(schema, _resolved(schema, schema), "", 1), _ROWS)) if isinstance(schema, dict) else []


def _fields_in(root: dict[str, Any], schema: dict[str, Any], before: str, depth: int) -> Iterator[Field]:
    properties, required = schema.get("properties"), schema.get("required")
    properties = properties if isinstance(properties, dict) else {}
    wanted = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    for name in dict.fromkeys((*wanted, *properties)):
        part = _resolved(root, properties.get(name))
        yield _field(part, f"{before}{name}", is_required=name in wanted)
        if depth < _DEPTH:
            yield from _fields_in(root, part, f"{before}{name}.", depth + 1)
            yield from _fields_in(root, _resolved(root, part.get("items")), f"{before}{name}[].", depth + 1)


def _resolved(root: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Follow a reference such as `#/$defs/name`, once. What is no object (`true`, or nothing) has no rules."""
    if not isinstance(schema, dict):
        return {}
    first, *names = str(schema.get("$ref")).split("/")
    found: Any = root if first == "#" and names else None
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return schema
    return {**found, **{word: value for word, value in schema.items() if word != "$ref"}}


def _field(schema: dict[str, Any], name: str, *, is_required: bool) -> Field:
    listed = schema.get("enum")
    values = [schema["const"]] if "const" in schema else listed if isinstance(listed, list) else []
    words = schema.get("description")
    return Field(
        name=_short(name),
        type=_type_of(schema, values),
        is_required=is_required,
        values=tuple(_short(json.dumps(each, ensure_ascii=False)) for each in values[:_VALUES]),
        bounds=tuple(_bounds(schema)),
        words=words[:_LONGEST] if isinstance(words, str) else "",
        has_more=len(values) > _VALUES or any(word in schema for word in _MORE),
    )


def _type_of(schema: dict[str, Any], values: list[Any]) -> str:
    """Name a field's type: that of its values where the schema says none."""
    kinds = schema.get("type")
    if kinds is None:
        kinds = list(dict.fromkeys(_TYPES.get(type(each), "object") for each in values))
    text = " or ".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds)
    items = schema.get("items")
    of = items.get("type") if text == "array" and isinstance(items, dict) else None
    return _short(f"{text} of {of}" if isinstance(of, str) else text or "any")


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    for low, high, unit in _RANGES:
        least, most = (_number(schema.get(word)) for word in (low, high))
        if least and most:
            yield f"{least} to {most} {unit}".rstrip()
        elif least or most:
            one = unit.removesuffix("s") if "1" in (least, most) else unit
            yield f"{'at least' if least else 'at most'} {least or most} {one}".rstrip()
    yield from (words.format(_short(str(schema[word]))) for word, words in _RULES.items() if word in schema)
    if schema.get("uniqueItems") is True:
        yield "no item twice"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else ""


def _short(text: str) -> str:
    return text if len(text) <= _ROOM else f"{text[:_ROOM]}…"
