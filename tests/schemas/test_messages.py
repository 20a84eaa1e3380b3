"""The strict decoder: what is not a message is refused with a reason, and answered when it can be."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesd_schemas.messages import DEPTH_MAX, ERROR_MAX, SIZE_MAX, Ask, BadMessage, Report, Tell, decode

TELL = {"id": "t1", "study": "s", "trial": 1, "fence": 1, "value": 0.5}


def refused(kind: str, payload: bytes) -> tuple[str, str | None]:
    with pytest.raises(BadMessage) as caught:
        decode(kind, payload)
    return caught.value.reason, caught.value.id


def tell(**changes: Any) -> bytes:
    return json.dumps({**TELL, **changes}).encode()


@pytest.mark.parametrize(("payload", "reason"), [
    (b"", "bad-json"), (b"{", "bad-json"), (b"[]", "bad-json"), (b"null", "bad-json"), (b"7", "bad-json"),
    (b"\xff\xfe", "bad-json"), (b'{"id":"t1","id":"t1"}', "bad-json"),
    (b'{"a":{"b":1,"b":2}}', "bad-json"),
    (b"[" * 1000 + b"]" * 1000, "bad-json"), (b'{"a":' * 100_000, "too-large"),
    (b'{"a":' * 500 + b"1" + b"}" * 500, "bad-json"),
    (b'{"id":"t1","trial":' + b"9" * 5000 + b"}", "bad-json"),
    (b'{"id":"' + b"x" * SIZE_MAX + b'"}', "too-large"),
])
def test_what_is_not_a_message_is_refused(payload: bytes, reason: str) -> None:
    assert refused("tell", payload)[0] == reason


@pytest.mark.parametrize("half", ["\\ud800", "x\\udfffx", "\\ude00\\ud83d"])
def test_half_a_surrogate_pair_is_refused_and_in_an_error_mended(half: str) -> None:
    for more in (f'"unknown":"{half}"', f'"unknown":{{"deep":["{half}"]}}', f'"{half}":1'):
        assert refused("tell", tell()[:-1] + f",{more}}}".encode()) == ("bad-json", "t1")
    told = decode("tell", tell(state="fail")[:-1] + f',"error":"{half}"}}'.encode())
    assert isinstance(told, Tell)
    assert told.error is not None
    told.error.encode()
    assert decode("tell", tell()[:-1] + b',"unknown":"\\ud83d\\ude00"}').id == "t1"      # a whole one is text


def test_brackets_inside_strings_are_no_depth() -> None:
    assert decode("tell", tell(state="fail", error="[{" * 100)).error == "[{" * 100


def test_depth_is_allowed_up_to_the_limit() -> None:
    deep: Any = 1
    for _ in range(DEPTH_MAX - 1):
        deep = [deep]
    decode("tell", tell(unknown=deep))
    assert refused("tell", tell(unknown=[deep])) == ("bad-json", "t1")


def test_too_large_still_names_the_id_or_its_sender_would_try_for_ever() -> None:
    assert refused("tell", tell(pad="x" * SIZE_MAX)) == ("too-large", "t1")


@pytest.mark.parametrize("value", [None, "nan", "NaN", "inf", "-Infinity", float("nan"), float("inf"), 1e301, -1e308,
                                   10**400])
def test_what_is_no_finite_number_is_a_value_of_none(value: Any) -> None:
    assert decode("tell", tell(value=value)).value is None


@pytest.mark.parametrize("changes", [
    {"value": True}, {"value": "much"}, {"value": [1]}, {"trial": 0}, {"trial": 2**53}, {"trial": 1.5}, {"trial": "1"},
    {"fence": -1}, {"seconds": -1}, {"seconds": float("nan")}, {"cost": float("inf")}, {"state": "done"},
    {"class": "tired"}, {"value": 1, "folds": [1]}, {"values": {"bad name": 1}},
])
def test_a_bad_field_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(BadMessage) as caught:
        decode("tell", tell(**changes))
    assert caught.value.reason == "bad-field"
    assert caught.value.id == "t1"
    assert next(iter(changes)).split(".")[0] in caught.value.detail or "give one of" in caught.value.detail


@pytest.mark.parametrize("changes", [{"study": "UPPER"}, {"study": "../etc"}, {"study": "a/b"}, {"study": "+"},
                                     {"study": "x" * 65}, {"study": ""}, {"study": "s\n"}])
def test_a_bad_name_is_a_bad_name(changes: dict[str, Any]) -> None:
    assert refused("tell", tell(**changes)) == ("bad-name", "t1")


def test_a_missing_value_is_not_a_null() -> None:
    # Whether reports stand for it is for the rules to say.
    payload = {key: value for key, value in TELL.items() if key != "value"}
    assert "value" not in decode("tell", json.dumps(payload).encode()).model_fields_set
    assert "value" in decode("tell", json.dumps({**payload, "value": None}).encode()).model_fields_set
    assert decode("tell", json.dumps({**payload, "state": "released"}).encode()).state == "released"


def test_a_long_error_is_cut_in_whole_characters() -> None:
    said = decode("tell", tell(state="fail", error="é" * 5000)).error
    assert len(said.encode()) <= ERROR_MAX
    assert set(said) == {"é"}


def test_unknown_fields_are_ignored() -> None:
    assert decode("ask", b'{"id":"a","run":"r","colour":"red"}') == Ask(id="a", run="r")


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert decode("tell", tell(trial=7.0)).trial == 7


def test_a_report_may_be_nonfinite() -> None:
    report = decode("report", b'{"id":"r","study":"s","trial":1,"fence":1,"step":3,"value":NaN}')
    assert report == Report(id="r", study="s", trial=1, fence=1, step=3, value=None)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_decoder(payload: bytes) -> None:
    for kind in ("ask", "beat", "report", "tell", "request"):
        with contextlib.suppress(BadMessage):
            decode(kind, payload)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                    max_leaves=20), st.sampled_from(sorted(Tell.model_fields)))
def test_no_value_in_any_field_crashes_the_decoder(value: Any, field: str) -> None:
    with contextlib.suppress(BadMessage):
        decode("tell", json.dumps({**TELL, field: value}).encode())
