"""JSON bodies, read strictly: what is accepted means one thing only and can be stored and given back (T-51 to T-54)."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.rules.errors import Invalid, PortalError, Unreadable
from portal.rules.payload import read_object

BIGGEST = 9_007_199_254_740_991

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-BIGGEST, BIGGEST)
    | st.floats(-BIGGEST, BIGGEST, allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5), max_leaves=20
)
objects = st.dictionaries(texts, values, max_size=5)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def nested(levels: int, innermost: Any = 1, *, arrays: bool = False) -> bytes:
    """Write an object of so many levels around a value; with `arrays`, all but the outermost are arrays."""
    opening, closing = ("[", "]") if arrays else ('{"a":', "}")
    text = f'{{"a":{opening * (levels - 1)}{json.dumps(innermost)}{closing * (levels - 1)}}}'
    return text.encode()


@given(objects.filter(lambda value: depth(value) <= 14), st.booleans())
def test_what_is_acceptable_comes_out_as_it_went_in(value: dict[str, Any], escaped: bool) -> None:
    assert read_object(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(st.binary(max_size=60) | st.text('{}[]":,0123456789.eE+-truefalsn \\ud8"\x00').map(str.encode))
def test_any_bytes_are_an_object_or_a_clear_refusal(body: bytes) -> None:
    try:
        assert isinstance(read_object(body), dict)
    except PortalError as error:
        assert isinstance(error, Unreadable | Invalid)
        assert re.fullmatch(r"[a-z0-9_]+", error.code)
        assert error.message.isprintable()


@given(objects, texts, values, values, st.integers(0, 10))
def test_a_member_named_twice_is_refused_at_any_depth(
    beside: dict[str, Any], name: str, one: Any, other: Any, levels: int
) -> None:
    twice = f"{{{json.dumps(name)}: {json.dumps(one)}, {json.dumps(name)}: {json.dumps(other)}}}"
    for _ in range(levels):
        twice = f'{{"fields": [{json.dumps(beside)}, {twice}]}}'
    with pytest.raises(Unreadable) as refused:
        read_object(twice.encode())
    assert refused.value.code == "duplicate_member"


def test_a_member_named_twice_is_found_though_it_is_written_in_two_ways() -> None:
    with pytest.raises(Unreadable):
        read_object(rb'{"a": 1, "\u0061": 2}')


@pytest.mark.parametrize(
    "number",
    [
        "NaN", "Infinity", "-Infinity", "nan", "1e309", "-1e309", "1e999999999", "9007199254740992",
        "-9007199254740992",
        "9007199254740993.0", "1e16", "-1e16", "9" * 5_000, "-" + "9" * 5_000, "2" + "0" * 400 + ".5",
        "01", "+1", ".5", "1.", "0x10", "1_000", "--1", "1e", "²", "٣",
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", ['{{"a": {}}}', '{{"a": [{{"b": {}}}]}}'])
def test_numbers_that_lose_digits_or_are_none_are_refused(body: str, number: str) -> None:
    with pytest.raises(Unreadable):
        read_object(body.format(number).encode())


@pytest.mark.parametrize(
    "number", ["0", "-0", "1", str(BIGGEST), str(-BIGGEST), "0.5", "1e15", "1E-400", "9007199254740991.0", "1e+2"]
)
def test_numbers_that_every_language_reads_alike_are_kept(number: str) -> None:
    assert read_object(f'{{"a": {number}}}'.encode()) == {"a": json.loads(number)}


@pytest.mark.parametrize("odd", [r"\u0000", r"\ud800", r"\udfff", r"a\ud800b", r"\udc00\ud800"])
@pytest.mark.parametrize("body", ['{"a": "ODD"}', '{"ODD": 1}', '{"a": [["ODD"]]}', '{"a": [{"b": {"ODD": 1}}]}'])
def test_nul_and_lone_surrogates_are_refused_in_names_and_in_values(body: str, odd: str) -> None:
    with pytest.raises(Unreadable):
        read_object(body.replace("ODD", odd).encode())


def test_a_surrogate_pair_is_one_character() -> None:
    assert read_object(rb'{"key": "\ud83d\udd11"}') == {"key": "🔑"}


@pytest.mark.parametrize("body", [b'{"a": "\x00"}', b'{"a": "\n"}', b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}'])
def test_raw_controls_and_broken_utf8_are_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"true", b"1", b'"text"', b"[]", b"[{}]", b"{", b"}", b"{}{}", b"{} {}", b"{},", b"{}x",
        b"{}\x00", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-32"), b"{'a': 1}", b"{a: 1}",
        b'{"a": 1,}', b'{"a"}', b'{"a": }', b'{"a": 1 "b": 2}', b'{"a": [1,]}', b"{} // x", b"/**/{}", b'{"a": "\\x"}',
        b'{"a": "\\u12"}', b"fields=1",
    ],
)  # fmt: skip
def test_anything_but_one_object_is_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read_object(body)


@pytest.mark.parametrize("body", [b"{}", b" \t\r\n{} \t\r\n", b'{"":{}}'])
def test_an_object_may_be_empty_and_have_space_around_it(body: bytes) -> None:
    assert read_object(body) in ({}, {"": {}})


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("innermost", [1, "text", None, {}, []])
def test_nesting_ends_at_sixteen_levels(innermost: Any, arrays: bool) -> None:
    own = 1 if innermost in ({}, []) else 0  # an empty object is a level too
    read_object(nested(16 - own, innermost, arrays=arrays))
    with pytest.raises(Invalid):
        read_object(nested(17 - own, innermost, arrays=arrays))


@pytest.mark.parametrize("levels", [100, 900, 1_100, 10_000, 200_000])
@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_bottomless_body_is_refused_and_nothing_overflows(levels: int, arrays: bool, is_closed: bool) -> None:
    body = nested(levels, arrays=arrays)
    with pytest.raises((Invalid, Unreadable)):
        read_object(body if is_closed else body[: len(body) // 2])


def test_an_array_holds_a_hundred_items_at_most() -> None:
    hundred = list(range(100))
    assert read_object(json.dumps({"a": [hundred]}).encode()) == {"a": [hundred]}
    longers: list[list[object]] = [[*hundred, 100], [[]] * 101, [*hundred, [1]]]
    for longer in longers:
        with pytest.raises(Invalid):
            read_object(json.dumps({"a": {"b": longer}}).encode())


def test_an_object_may_have_many_members_but_not_any_number() -> None:
    many = {str(n): n for n in range(1_000)}
    assert read_object(json.dumps({"a": many}).encode()) == {"a": many}
    with pytest.raises(Invalid):
        read_object(json.dumps({"a": many | {"one": "more"}}).encode())
