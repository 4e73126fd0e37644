"""Schemas that somebody wrote to keep the portal busy: refused when read, or given up on in a moment."""

from math import inf, nan
from time import thread_time
from typing import Any

import pytest

from portal.rules.errors import Invalid
from portal.rules.schemas import PATIENCE, Schema

OBJECT: dict[str, Any] = {"type": "object"}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def doubling(steps: int) -> dict[str, Any]:
    """Make a schema whose last part stands for 2 ** steps of the first."""
    parts: dict[str, Any] = {"d0": OBJECT}
    parts |= {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2} for n in range(1, steps + 1)}
    return {**OBJECT, "$defs": parts, "properties": {"a": {"$ref": f"#/$defs/d{steps}"}}}


def with_pattern(pattern: str) -> dict[str, Any]:
    return {**OBJECT, "properties": {"a": {"type": "string", "pattern": pattern}}}


def problems(schema: dict[str, Any], record: dict[str, Any]) -> list[dict[str, str]]:
    """Check a record and hold the check to its time, with room for a slow machine."""
    read, began = Schema.read(schema), thread_time()
    found = read.problems(record)
    assert thread_time() - began < 2 * PATIENCE
    return found


@pytest.mark.parametrize(
    "schema",
    [
        doubling(30),
        {**OBJECT, "$defs": {"a": {"dependentSchemas": {x: {"$ref": "#/$defs/a"} for x in "xy"}}}},
        {**OBJECT, "allOf": [{"$ref": "#/allOf/0"}]},
        {**OBJECT, "properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#/properties/a"}}},
        {**OBJECT, "properties": {"a": {"$schema": DRAFT_7, "pattern": "(a+)+$"}}},  # other rules than the bounded ones
        {**OBJECT, "$ref": "#/const", "const": {"$schema": DRAFT_7, "pattern": "(a+)+$"}},
        {**OBJECT, "$schema": DRAFT_7},
        {**OBJECT, "properties": {"a": {"$id": "elsewhere"}}},
        {**OBJECT, "properties": {"a": {"$dynamicRef": "#"}}},
        {**OBJECT, "patternProperties": {"a": {}}, "unevaluatedProperties": False},
        with_pattern("("),
        with_pattern("a" * 501),
        with_pattern("(?i)a"),
        with_pattern("(?:" * 60 + "a" + ")+" * 60),  # its compiled form would be of 2 ** 60 parts
        with_pattern("((a{100}){100}){100}"),
        {**OBJECT, "patternProperties": {"((a{100}){100}){100}": {}}},
        *(with_pattern(f"a{{{count}}}") for count in (10**7, 2**32 - 2, 2**32 - 1, 10**12)),  # compiled, one is 1 GB
        {**OBJECT, "properties": {f"a{n}": {"pattern": f"{n}{{100,}}"} for n in range(100)}},
        {**OBJECT, "patternProperties": {f"({n}{{10}}){{10}}": {} for n in range(100)}},
    ],
)
def test_a_schema_that_could_keep_the_portal_busy_is_refused_at_once(schema: dict[str, Any]) -> None:
    began = thread_time()
    with pytest.raises(Invalid) as refused:
        Schema.read(schema)
    assert list(refused.value.problems) == ["schema"]
    assert thread_time() - began < 1


def test_a_refusal_repeats_little_of_a_schema() -> None:
    with pytest.raises(Invalid) as refused:
        Schema.read({**OBJECT, "properties": ["x" * 10_000]})
    assert len(refused.value.problems["schema"]) < 400


@pytest.mark.parametrize(("value", "written"), [(None, "null"), (True, "true"), (False, "false")])
def test_what_does_not_fit_is_written_as_json_writes_it(value: object, written: str) -> None:
    schema = Schema.read({"type": "object", "properties": {"name": {"type": "string"}}})
    assert schema.problems({"name": value}) == [{"path": "$.name", "message": f"{written} is not of type 'string'"}]
    schema = Schema.read({"type": "object", "properties": {"name": {"const": "None is True or False"}}})
    assert schema.problems({"name": value})[0]["message"] == "'None is True or False' was expected"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            with_pattern("("),
            "The pattern ( at $.properties.a.pattern cannot be read as a regular expression: missing )",
        ),
        (
            {**OBJECT, "patternProperties": {"[a": {}}},
            "The pattern [a at $.patternProperties cannot be read as a regular expression: unterminated",
        ),
        (
            {**OBJECT, "allOf": [{"properties": {"a": {"type": "thing"}}}]},
            "This is not a JSON Schema, at $.allOf[0].properties.a.type: 'thing'",
        ),
    ],
)
def test_what_is_wrong_in_a_schema_is_told_with_its_place(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid) as refused:
        Schema.read(schema)
    assert refused.value.problems["schema"].startswith(says)


@pytest.mark.parametrize("depth", [100, 1000])
def test_a_schema_that_is_nested_without_end_is_refused(depth: int) -> None:
    schema: Any = OBJECT
    for _ in range(depth):
        schema = {**OBJECT, "properties": {"a": schema}}
    with pytest.raises(Invalid):
        Schema.read(schema)


@pytest.mark.parametrize(
    "part",
    [{"\ud800": {}}, {"a": {"title": "\udfff"}}, *({"a": {"multipleOf": n}} for n in (nan, inf, -inf, 10**400))],
)
def test_a_schema_holds_only_what_can_be_stored_shown_and_counted_with(part: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        Schema.read({**OBJECT, "properties": part})
    assert "lone surrogates" in refused.value.problems["schema"]


LONG = "a" * 100_000 + "b"


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("schema", "record"),
    [
        (with_pattern("^(a+)+$"), {"a": LONG}),
        (with_pattern("^(a|aa)+$"), {"a": LONG}),
        ({**OBJECT, "patternProperties": {"^(a|aa)+$": {}}}, {LONG: 1}),
        ({**OBJECT, "patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False}, {LONG: 1}),
        ({**OBJECT, "propertyNames": {"pattern": "^(a|aa)+$"}}, {LONG: 1}),
        ({**OBJECT, "not": {"propertyNames": {"pattern": "^(a|aa)+$"}}}, {LONG: 1}),  # what is given up is not "not"
        ({**OBJECT, "additionalProperties": {"allOf": [{"$ref": "#"}] * 10}}, nested(12)),
        ({**OBJECT, "anyOf": [{"type": "null"}] * 500}, {"a": "x" * 1_000_000}),
    ],
)
def test_a_record_that_would_take_long_does_not_fit(schema: dict[str, Any], record: dict[str, Any]) -> None:
    (problem,) = problems(schema, record)
    assert problem["path"] == "$"
    assert "takes too long" in problem["message"]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (doubling(6), {"a": {}}, {"a": 1}),
        (with_pattern(r"^\d{4}-\d{2}$"), {"a": "2030-01"}, {"a": "soon"}),
        (with_pattern("^([0-9A-F]{2}:){5}[0-9A-F]{2}$"), {"a": "00:1B:44:11:3A:B7"}, {"a": "00:1B"}),
        ({**OBJECT, "patternProperties": {"^x-": {"type": "string"}}}, {"x-a": "", "b": 1}, {"x-a": 1}),
        (
            {**OBJECT, "properties": {"b": {}}, "patternProperties": {"^x-": {}}, "additionalProperties": False},
            {"x-a": 1, "b": 1},
            {"c": 1},
        ),
        ({**OBJECT, "additionalProperties": {"type": "string"}}, {"a": ""}, {"a": 1}),
        ({**OBJECT, "properties": {"a/b %": True, "c": {"$ref": "#/properties/a~1b%20%25"}}}, {"c": 1}, None),
        ({**OBJECT, "$id": "https://acme.test/part", "properties": {"a": {"$ref": "#"}}}, {"a": {"a": {}}}, {"a": 1}),
        ({**OBJECT, "properties": {"$schema": {"type": "string"}, "$id": {}}}, {"$schema": ""}, {"$schema": 1}),
        ({**OBJECT, "properties": {"a": {"format": "regex"}}}, {"a": "("}, None),  # would be compiled, at any length
        ({**OBJECT, "properties": {"鍵🔑": {"maximum": 10**300}}}, {"鍵🔑": 1}, {"鍵🔑": 10**301}),
        ({**OBJECT, "properties": {"a": {"uniqueItems": True}}}, {"a": [1, True, {}]}, {"a": [{"b": 1}, {"b": 1}]}),
    ],
)
def test_what_honest_schemas_say_holds(schema: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]) -> None:
    assert problems(schema, good) == []
    assert bad is None or problems(schema, bad)


def test_problems_are_some_in_order_and_short() -> None:
    schema = {**OBJECT, "additionalProperties": {"type": "null"}}
    found = problems(schema, {f"f{n:03}": "x" * 100_000 for n in reversed(range(200))})
    assert len(found) == 20
    assert found == sorted(found, key=lambda each: each["path"])
    assert max(len(each["message"]) for each in found) <= 300
