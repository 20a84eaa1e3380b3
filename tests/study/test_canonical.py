"""Our fast canonical bytes equal RFC 8785, as a slow and plain reading of that text has it."""

import enum
import hashlib
import json
import math
import struct
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bayesd.study.canonical import INTEGER_MAX, ZERO, canonical, is_canonical, leaf_hash

# --- A plain reading of RFC 8785 (section 3.2) ---------------------------------------------------

ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def reference(value: Any) -> str:
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return reference_number(value)
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{reference(name)}:{reference(value[name])}" for name in names) + "}"
    return "[" + ",".join(map(reference, value)) + "]"


def reference_number(value: float) -> str:
    """ECMAScript's Number::toString, step by step, with s, k and n as they are named there."""
    if value == 0:
        return "0"
    if value < 0:
        return "-" + reference_number(-value)
    n = int(f"{value:.17e}".partition("e")[2]) + 1
    for k in range(1, 18):      # the fewest digits that read back as the same number; of those, the nearest
        exact = Fraction(value) * Fraction(10) ** (k - n)
        near = [number for number in (math.floor(exact), math.floor(exact) + 1)
                if number > 0 and float(f"{number}e{n - k}") == value]
        if near:
            s = str(min(near, key=lambda number: (abs(number - exact), number % 2)))
            break
    n += len(s) - k             # 9.99 was rounded to 10.0
    s = s.rstrip("0")
    k = len(s)
    if k <= n <= 21:
        return s + "0" * (n - k)
    if 0 < n <= 21:
        return s[:n] + "." + s[n:]
    if -6 < n <= 0:
        return "0." + "0" * -n + s
    sign = "+" if n - 1 > 0 else "-"
    return s[0] + ("." + s[1:] if k > 1 else "") + f"e{sign}{abs(n - 1)}"


# --- What JSON can hold --------------------------------------------------------------------------

# Beside all floats, those at which the form changes, and their neighbours.
edges = st.sampled_from([1e-7, 1e-6, 1e-5, 1e-4, 1e15, 1e16, 1e17, 1e20, 1e21, 1e22, 2.0**53, 2.0**63, 2.0**64])
floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(min_value=1e-8, max_value=1e-3),
    st.integers(-(2**70), 2**70).map(float),
    edges, edges.map(lambda x: math.nextafter(x, 0)), edges.map(lambda x: -math.nextafter(x, math.inf)))
text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.sampled_from("a\"\\/\x00\x08\x1f\x7f\x80\u2028\ud7ff\ue000\ufb33\uffff\U00010000\U0001f600")))
leaves = st.one_of(st.none(), st.booleans(), st.integers(-INTEGER_MAX, INTEGER_MAX), floats, text)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)


@given(values)
@example({"\U0001f600": 1, "\ufb33": 2, "\ue000": {"\uffff": 1.0, "\U00010000": -0.0}})
def test_equals_a_plain_reading_of_rfc_8785(value: Any) -> None:
    assert canonical(value) == reference(value).encode()


@given(floats)
def test_a_number_has_one_form_and_keeps_its_value(value: float) -> None:
    assert canonical(value) == reference_number(value).encode()
    assert float(canonical(value)) == value


@given(values)
def test_writing_what_was_read_gives_the_same_bytes(value: Any) -> None:
    assert canonical(json.loads(canonical(value), parse_int=float)) == canonical(value)


@pytest.mark.parametrize(("bits", "form"), [
    # RFC 8785, appendix B
    ("0000000000000000", "0"), ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"), ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"), ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"), ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"), ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"), ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"), ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"), ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"), ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"), ("43143ff3c1cb0959", "1424953923781206.2"),
])
def test_the_numbers_of_the_rfc(bits: str, form: str) -> None:
    value = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert canonical([value]) == f"[{form}]".encode()
    assert reference_number(value) == form      # who checks the checker


def test_the_sorting_example_of_the_rfc() -> None:
    value = {"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh",
             "1": "One", "\U0001f600": "Emoji: Grinning Face", "\u0080": "Control",
             "\u00f6": "Latin Small Letter O With Diaeresis"}
    assert list(json.loads(canonical(value))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(("value", "says"), [
    ({"params": {"lr": math.nan}}, "'lr'"),
    ({"values": [1.0, math.inf]}, "'values'"),
    ({"cost": -math.inf}, "'cost'"),
    (math.nan, "the value"),
    ({"trial": 2**53}, "'trial'"),
    ({"a": {"b": [-(2**53)]}}, "'b'"),
    ({"trial": 10**30}, "'trial'"),
    ({"error": "half \ud83d"}, "'error'"),
    ({"deep": [{"tags": {"\udc00": "x"}}]}, "'\\\\udc00'"),
])
def test_what_has_no_form_is_refused_by_the_name_of_its_key(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        canonical(value)


@pytest.mark.parametrize("value", [{"a": b"bytes"}, {"a": {1, 2}}, {1: "a"}, {"a": object()}])
def test_what_is_not_json_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


def test_depth_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(400):
        deep = {"a": deep}
    for value in (endless, deep):
        with pytest.raises(ValueError, match="nested too deep"):
            canonical(value)


class State(enum.StrEnum):
    OPEN = "open"


class Count(enum.IntEnum):
    TWO = 2


def test_relatives_of_json_types_are_written_as_what_they_stand_for() -> None:
    value = {"b": State.OPEN, "a": (1.0, Count.TWO), "c": MappingProxyType({"z": 1e21, "y": MappingProxyType({})})}
    assert canonical(value) == b'{"a":[1,2],"b":"open","c":{"y":{},"z":1e+21}}'


def test_the_value_that_is_written_is_left_as_it_was() -> None:
    value = {"a": [1.0, {"b": -0.0}], "c": 1e-7}
    canonical(value)
    assert repr(value) == "{'a': [1.0, {'b': -0.0}], 'c': 1e-07}"


def test_the_hash_is_sha_256_of_a_zero_byte_and_the_body() -> None:
    assert leaf_hash(b"{}") == hashlib.sha256(b"\x00{}").digest()
    assert len(ZERO) == 64
    assert int(ZERO, 16) == 0


# --- Told from other spellings -------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    '{"a":1.0}', '{"a":-0.0,"b":1}', '[1.0]', '{"a":1e16}', '{"a":[1e16,2]}', '{"a":1e+16}', '{"a":0.00001e0}',
    '{"a":1E5}', '{"a":1e-5}', '{"a":10e-8}', '{"a":9007199254740993}', '{"a":1e400}',
    '{"b":1,"a":2}', '{"a":1,"a":2}',
    '{ "a":1}', '{"a":"\\u0041"}', '{"a":"\\/"}', '{"a":0.10}', '{"a":1}\n',
    '{"\ufb33":2,"\U0001f600":1}', '1.0', '1e16'])
def test_another_spelling_of_a_value_is_not_canonical(body: str) -> None:
    value = json.loads(body)
    assert not is_canonical(body.encode(), value)
    assert not is_canonical(body.encode(), [value])


def of_json(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=4)
                        | st.dictionaries(st.text(max_size=3), inner, max_size=4))


@given(of_json(st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text()))
@example({"a": 9007199254740992.0, "b": [1e16, -1e20]})     # read again, these are integers
def test_what_is_canonical_is_told_as_by_writing_it_anew(value: Any) -> None:
    try:
        body = canonical(value)
    except ValueError:
        return
    assert is_canonical(body, json.loads(body))
    assert is_canonical(body, orjson.loads(body))
    for other in (json.dumps(value).encode(), json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass")):
        assert is_canonical(other, json.loads(other)) == (other == body)
