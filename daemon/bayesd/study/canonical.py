"""The bytes of an event: RFC 8785 (JSON Canonicalization Scheme), and the hash that chains them.

One value has one form, in every language, so anyone can check a hash without our code. orjson
writes that form at C speed in all but three matters, which are put right here: numbers (RFC 8785
writes them as ECMAScript does: `1` for 1.0, `0.000001` for 1e-6), the order of keys beyond the
Basic Multilingual Plane (UTF-16 code units, not code points), and what must be refused rather
than written (NaN and infinity, integers that a double cannot hold, half a surrogate pair).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import orjson

INTEGER_MAX = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""

ZERO = "0" * 64
"""`prev` of the first event: there is nothing before it."""

_BEYOND_BMP = re.compile(rb"[\xf0-\xf4]")   # the first byte of a four-byte UTF-8 sequence
_EXPONENT_FROM, _EXPONENT_BELOW = 1e21, 1e-6
_PLAINLY = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def canonical(value: object) -> bytes:
    """The RFC 8785 bytes of a JSON value.

    >>> canonical({"b": 1.0, "a": [1e-7, 0.1]})
    b'{"a":[1e-7,0.1],"b":1}'

    A number or string that has no canonical form raises ValueError and names its key; a type
    that is not JSON raises TypeError.
    """
    try:
        plain = _plain(value, None)
        text = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
        # orjson sorts keys by UTF-8 bytes. That is UTF-16 order too, unless a surrogate pair meets
        # a character from U+E000 up; so the slow way is taken only when there is a pair at all.
        if not text.isascii() and _BEYOND_BMP.search(text):
            text = orjson.dumps(_utf16_sorted(plain))
        return text
    except orjson.JSONEncodeError as error:
        _explain(value, None, error)
    except RecursionError as error:
        raise ValueError("the value is nested too deep") from error


def is_canonical(body: bytes, value: object) -> bool:
    """Whether `body`, which was parsed to `value`, is its RFC 8785 form: then every reader reads the same.

    What orjson writes is that form for all but odd numbers, so most bodies are compared without a second copy.
    """
    try:
        if orjson.dumps(value, option=_PLAINLY) == body and not _has_odd_float(value) \
                and (body.isascii() or not _BEYOND_BMP.search(body)):
            return True
    except TypeError:
        pass                            # an integer beyond 2^53-1
    try:
        return canonical(_doubles(value)) == body
    except (ValueError, TypeError, OverflowError, RecursionError):
        return False


def _has_odd_float(value: Any) -> bool:
    """Whether orjson writes a number in it in another way than ECMAScript."""
    kind = type(value)
    if kind is float:
        return bool(value.is_integer() or not 1e-5 <= abs(value) < 1e16)
    if kind is not dict and kind is not list:
        return False
    for item in value.values() if kind is dict else value:
        kind = type(item)
        if kind is str or kind is int:
            continue
        if kind is float:       # the same again: a call for each would cost as much as all the rest
            if item.is_integer() or not 1e-5 <= abs(item) < 1e16:
                return True
        elif (kind is dict or kind is list) and _has_odd_float(item):
            return True
    return False


def _doubles(value: Any) -> Any:
    """`value` with integers beyond 2^53-1 as the doubles that they are in JSON: 1e16 is written without an exponent."""
    if type(value) is dict:
        return {name: _doubles(item) for name, item in value.items()}
    if type(value) is list:
        return [_doubles(item) for item in value]
    return float(value) if type(value) is int and not -INTEGER_MAX <= value <= INTEGER_MAX else value


def leaf_hash(body: bytes) -> bytes:
    """The hash of one event: SHA-256 over a zero byte (RFC 9162's mark of a leaf) and the body."""
    return hashlib.sha256(b"\0" + body).digest()


def _plain(value: Any, key: object) -> Any:
    """`value` with every number that orjson would write differently replaced.

    Containers in which nothing changes are returned as they are: most events pass without a copy.
    """
    kind = type(value)
    if kind is dict:
        changes: dict[Any, Any] | None = None
        for name, item in value.items():
            # The common leaves are judged here and not by a call: the walk is the larger half of
            # the cost of an event.
            kind = type(item)
            if kind is str or item is None or kind is bool:
                continue
            if kind is int and -INTEGER_MAX <= item <= INTEGER_MAX:
                continue
            if kind is float and 1e-5 <= abs(item) < 1e16 and not item.is_integer():
                continue
            plain = _plain(item, name)
            if plain is not item:
                changes = changes or {}
                changes[name] = plain
        return value if changes is None else {**value, **changes}
    if kind is list or kind is tuple:
        items = [_plain(item, key) for item in value]
        return value if all(map(_is, items, value)) else items
    if kind is float:
        return _float(value, key)
    if kind is int:
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise ValueError(f"{_at(key)}: integer {value} is beyond 2^53-1; send it as a string")
        return value
    if kind is str or kind is bool or value is None:
        return value
    # Subclasses (string enums, frozen mappings) become the plain value that they stand for.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _plain(int(value), key)
    if isinstance(value, float):
        return _float(float(value), key)
    if isinstance(value, Mapping):
        return _plain(dict(value), key)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return _plain(list(value), key)
    raise TypeError(f"{_at(key)}: {type(value).__name__} is not a JSON value")


def _is(a: object, b: object) -> bool:
    return a is b


def _float(value: float, key: object) -> object:
    if 1e-5 <= abs(value) < 1e16 and not value.is_integer():
        return value        # orjson and ECMAScript agree: the shortest digits, no exponent
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{_at(key)}: {value} is not a number in JSON; use null or a named state")
    if abs(value) <= INTEGER_MAX and value.is_integer():
        return int(value)   # 1.0 is written 1, and -0.0 is written 0
    return orjson.Fragment(_ecmascript(value))


def _ecmascript(value: float) -> str:
    """A finite float as ECMAScript's Number::toString writes it, from Python's shortest digits."""
    text = repr(value)
    if "e" not in text:
        return text.removesuffix(".0")
    mantissa, _, exponent = text.partition("e")
    power = int(exponent)
    if not _EXPONENT_BELOW <= abs(value) < _EXPONENT_FROM:
        return f"{mantissa}e{power:+d}"
    sign = "-" if value < 0 else ""
    digits = mantissa.lstrip("-").replace(".", "")
    if power > 0:
        return sign + digits.ljust(power + 1, "0")
    return f"{sign}0.{'0' * (-power - 1)}{digits}"


def _utf16_sorted(value: Any) -> Any:
    if type(value) is dict:
        # "surrogatepass" only keeps this function total; such keys never get this far.
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return {name: _utf16_sorted(value[name]) for name in names}
    if type(value) in (list, tuple):
        return [_utf16_sorted(item) for item in value]
    return value


def _explain(value: Any, key: object, error: Exception) -> NoReturn:
    """Find what orjson refused, which does not say where; only ever on the way to an error."""
    _refuse_surrogates(value, key)
    if "ecursion" in str(error):
        raise ValueError("the value is nested too deep") from error
    raise TypeError(str(error)) from error


def _refuse_surrogates(value: Any, key: object) -> None:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{_at(key)}: half a surrogate pair is not text")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_surrogates(name, name)
            _refuse_surrogates(item, name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_surrogates(item, key)


def _at(key: object) -> str:
    return "the value" if key is None else f"key {key!r}"
