"""What a process puts under its key: stamps where they are needed, and for the log that a message belongs to."""

import json

import pytest

from bayesd_schemas.sealed import NotSigned, Sealer, unseal

KEY, TOPIC = bytes(32), "bayesd/1/from/w1/tell"


def test_an_ask_inside_a_tell_is_stamped_and_the_tell_is_not() -> None:
    sealer = Sealer(KEY, "bayesd/1")
    sealer.heard({"log": "a", "nonce": "n"})
    said = json.loads(unseal(KEY, "a", "from/w1/tell", sealer.seal(TOPIC, {"id": "t", "ask": {"id": "q"}})))
    assert said == {"id": "t", "ask": {"id": "q", "count": 1, "nonce": "n"}}


def test_a_message_is_for_the_log_that_is_named_and_nothing_is_signed_for_none() -> None:
    sealer = Sealer(KEY, "bayesd/1")
    with pytest.raises(NotSigned, match="no daemon has said"):
        sealer.seal(TOPIC, {})
    with pytest.raises(NotSigned, match="no daemon has said"):
        sealer.open(TOPIC, b"{}")
    sealer.heard({"log": "a"})
    sent = sealer.seal(TOPIC, {"id": "t"}, "b")
    assert sealer.open(TOPIC, sent, "b") == b'{"id":"t"}'
    with pytest.raises(NotSigned, match="does not match"):
        sealer.open(TOPIC, sent)
