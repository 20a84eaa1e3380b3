"""Bad input on the wire: answered where it can be, never in the log, and no way to stop or starve the daemon."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.edges.daemon import SPACE, Body, Daemon, Wire, lease, serving

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Wire]]:
    with serving(tmp_path_factory.mktemp("bad")) as both:
        both[1].create("s1")
        yield both


@pytest.fixture
def wire(both: tuple[Daemon, Wire]) -> Wire:
    return both[1]


@pytest.fixture
def daemon(both: tuple[Daemon, Wire]) -> Iterator[Daemon]:
    yield both[0]
    assert both[0].alive, both[0].said()


def deep(levels: int) -> bytes:
    """An object with this many levels in all."""
    return b'{"id":"x","run":"r1","study":"none","deep":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


BAD = {
    "cut off": ("ask", b'{"id":"x","run":"r1"', "bad-json"),
    "duplicate key": ("ask", b'{"id":"x","run":"r1","run":"r2"}', "bad-json"),
    "duplicate key deep inside": ("tell", b'{"id":"x","values":{"a":1,"a":2}}', "bad-json"),
    "not UTF-8": ("ask", b'{"id":"x","run":"\xff"}', "bad-json"),
    "a byte order mark": ("ask", b'\xef\xbb\xbf{"id":"x","run":"r1"}', "bad-json"),
    "half a surrogate pair": ("ask", b'{"id":"x","run":"r1","tags":["\\ud800"]}', "bad-json"),
    "half a pair in a field that nobody reads": ("tell", b'{"id":"x","\\udfff":1}', "bad-json"),
    "17 levels": ("ask", deep(17), "bad-json"),
    "60,000 levels": ("ask", deep(30_000), "bad-json"),
    "5,000 digits": ("ask", b'{"id":"x","run":"r1","n":' + b"1" * 5000 + b"}", "bad-json"),
    "70 KiB": ("tell", b'{"id":"x","error":"' + b"e" * 70 * 1024 + b'"}', "too-large"),
    "200 KiB": ("tell", b'{"id":"x","error":"' + b"e" * 200 * 1024 + b'"}', "too-large"),
    "NaN for a number": ("ask", b'{"id":"x","run":"r1","n":NaN}', "bad-field"),
    "1e400 for a count": ("ask", b'{"id":"x","run":"r1","n":1e400}', "bad-field"),
    "1e400 for seconds": ("ask", b'{"id":"x","run":"r1","lease_s":1e400}', "bad-field"),
    "no time at all": ("ask", b'{"id":"x","run":"r1","lease_s":0}', "bad-field"),
    "a negative n": ("ask", b'{"id":"x","run":"r1","n":-1}', "bad-field"),
    "tags of another type": ("ask", b'{"id":"x","run":"r1","tags":"gpu"}', "bad-field"),
    "2^53": ("tell", b'{"id":"x","study":"s1","trial":9007199254740992,"fence":1,"value":1}', "bad-field"),
    "true for a count": ("tell", b'{"id":"x","study":"s1","trial":true,"fence":1,"value":1}', "bad-field"),
    "text for a count": ("tell", b'{"id":"x","study":"s1","trial":"1","fence":1,"value":1}', "bad-field"),
    "fence 0": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":0,"value":1}', "bad-field"),
    "an unknown state": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":1,"state":"done"}', "bad-field"),
    "an unknown class": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":1,"state":"fail","class":""}', "bad-field"),
    "text for a value": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":1,"value":"0.5"}', "bad-field"),
    "NaN seconds": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":1,"value":1,"seconds":NaN}', "bad-field"),
    "a negative cost": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":1,"value":1,"cost":-1}', "bad-field"),
    "no folds": ("tell", b'{"id":"x","study":"s1","trial":1,"fence":1,"folds":[]}', "bad-field"),
    "a step below 0": ("report", b'{"id":"x","study":"s1","trial":1,"fence":1,"step":-1,"value":1}', "bad-field"),
    "a report of nothing": ("report", b'{"id":"x","study":"s1","trial":1,"fence":1,"step":1}', "bad-field"),
    "a study in capitals": ("ask", b'{"id":"x","run":"r1","study":"S1"}', "bad-name"),
    "a study with a slash": ("ask", b'{"id":"x","run":"r1","study":"a/b"}', "bad-name"),
    "a study with a new line": ("ask", b'{"id":"x","run":"r1","study":"s1\\n"}', "bad-name"),
    "a run of 33": ("ask", b'{"id":"x","run":"' + b"r" * 33 + b'"}', "bad-name"),
    "no run": ("ask", b'{"id":"x"}', "bad-name"),
    "an unknown study": ("report", b'{"id":"x","study":"no","trial":1,"fence":1,"step":0,"value":1}', "unknown-study"),
    "an unknown trial": ("report", b'{"id":"x","study":"s1","trial":9,"fence":1,"step":0,"value":1}', "unknown-trial"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_messages_are_answered_and_not_logged(wire: Wire, daemon: Daemon, case: str) -> None:
    kind, payload, reason = BAD[case]
    before = len(daemon.events())
    w = wire.worker("bad1")
    w.say(kind, payload)
    receipt = w.receipt("x")
    assert (receipt["status"], receipt["reason"]) == ("rejected", reason)
    assert receipt["detail"]
    assert "retry_after_s" not in receipt
    assert len(daemon.events()) == before


def test_sixteen_levels_are_read(wire: Wire) -> None:
    w = wire.worker("bad1")
    w.say("ask", deep(16))
    assert w.receipt("x")["status"] == "waiting"


@pytest.mark.parametrize("payload", [
    b'{"run":"r1","leases":[[', b'{"run":"r1","leases":[["s1",1]]}', b'{"run":"r1","leases":[["s1",1,"1"]]}',
    b'{"run":"r1","asks":["a b"]}', b'{"run":"r1","leases":[' + b'["s1",1,1],' * 9000 + b'["s1",1,1]]}'])
def test_a_bad_beat_is_answered_by_its_run(wire: Wire, payload: bytes) -> None:
    w = wire.worker("bad2")
    w.say("beat", payload)
    receipt = w.receipt("r1")
    assert (receipt["run"], receipt["status"]) == ("r1", "rejected")


def test_a_rejected_ask_names_its_run(wire: Wire) -> None:
    w = wire.worker("bad2")
    w.ask("x", n="many")
    assert w.receipt("x")["run"] == "r1"


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"7", b'"x"', b"\x00", b"{}", b'{"id":7}', b'{"id":"a b"}',
                                     b'{"id":"' + b"x" * 129 + b'"}', '{"id":"ö"}'.encode(), b'{"id":""}'])
def test_what_has_no_id_is_not_answered(wire: Wire, daemon: Daemon, payload: bytes) -> None:
    before = len(daemon.events())
    w = wire.worker("bad3")
    for kind in ("ask", "tell", "report", "beat"):
        w.say(kind, payload)
    assert w.heard() == []
    assert len(daemon.events()) == before


@pytest.mark.parametrize("who", ["W1", "-w", "w w", "w" * 65, "ö", "%25", "w:1"])
def test_a_bad_name_has_no_inbox(wire: Wire, daemon: Daemon, who: str) -> None:
    before = len(daemon.events())
    wire.say(f"from/{who}/beat", {"run": "r1", "leases": [], "asks": []})
    wire.say(f"from/{who}/ask", {"id": "x", "run": "r1", "study": "s1"})
    wire.say(f"admin/{who}/request", {"id": "x", "verb": "study.list"})
    wire.heard("bad4")
    assert who not in wire.inboxes
    assert len(daemon.events()) == before


def test_a_result_is_worth_more_than_its_words(wire: Wire) -> None:
    w = wire.worker("bad5")
    grant = w.lease("s1", "a")
    w.say("tell", json.dumps({"id": "t", **lease(grant), "state": "fail"}).encode()[:-1] + b',"error":"a\\udc80b"}')
    assert w.receipt("t")["status"] == "recorded"


FATAL: dict[str, tuple[str, Any]] = {
    "a step beyond 2^53": ("study.create", {"spec": {"name": "f1", "space": {
        "x": {"type": "int", "low": 0, "high": 9, "step": 2**70}}}}),
    "a step that cannot be counted": ("study.create", {"spec": {"name": "f2", "space": {
        "x": {"type": "float", "low": -1e300, "high": 1e300, "step": 1e-300}}}}),
    "conditions upon conditions": ("study.create", {"spec": {"name": "f3", "space": {
        f"a{i}": {"type": "int", "low": 0, "high": 1, **({"when": {f"a{i + 1}": 1}} if i < 799 else {})}
        for i in range(800)}}}),
    "a circle": ("study.create", {"spec": {"name": "f4", "space": {
        "a": {"type": "int", "low": 0, "high": 1, "when": {"a": 1}}}}}),
    "infinity for an int": ("study.enqueue", {"study": "ints", "params": {"n": float("inf")}}),
    "NaN for an int": ("study.enqueue", {"study": "ints", "params": {"n": float("nan")}}),
    "a long key": ("study.create", {"spec": {"name": "f5", "space": SPACE, "z" * 60_000: 1}}),
    "a long parameter": ("study.enqueue", {"study": "ints", "params": {"n": 1, "z" * 60_000: 1}}),
    "half a pair for a key": ("study.amend", {"study": "ints", "changes": {"\ud800": 1}}),
    "half a pair for a parameter": ("study.enqueue", {"study": "ints", "params": {"\ud800": 1}}),
    "a change that is none": ("study.amend", {"study": "ints", "changes": {"space": {"n": None}}}),
    "NaN for a page": ("trial.list", {"study": "ints", "limit": float("nan")}),
    "a list for a rule": ("study.best", {"study": "ints", "rule": [[]]}),
    "an object for a study": ("study.show", {"study": {}}),
}


@pytest.mark.parametrize("case", FATAL)
def test_no_request_ends_the_daemon(wire: Wire, daemon: Daemon, case: str) -> None:
    wire.request("study.create", {"spec": {"name": "ints", "method": "random", "space": {
        "n": {"type": "int", "low": 0, "high": 9}}}})
    before = len(daemon.events())
    verb, args = FATAL[case]
    reply = wire.request(verb, args)
    assert reply["status"] == "error"
    assert reply["error"]["message"]
    assert len(json.dumps(reply)) < 4096
    assert len(daemon.events()) == before


@pytest.mark.parametrize("args", [{"after": 2**70}, {"after": 2**63}, {"limit": 2**70}, {"study": "\u0000"}])
def test_events_are_read_from_anywhere(wire: Wire, daemon: Daemon, args: Body) -> None:
    assert wire.request("events", args)["status"] == "ok"


def test_retained_junk_on_our_topics_is_cleared(wire: Wire, daemon: Daemon) -> None:
    wire.create("mine")
    wire.until(lambda: wire.study("mine") is not None, "the state is published")
    for topic in ("study/ghost", "study/mine", "head"):
        wire.say(topic, b"junk", retain=True)
    wire.say("study/other", {"log": "another", "epoch": 1}, retain=True)
    cleared = ("study/ghost", "study/other")
    wire.until(lambda: all(wire.retained.get(topic) == b"" for topic in cleared), "what is not ours is cleared")
    wire.until(lambda: wire.retained["head"].startswith(b"{"), "our own head is said again")
    wire.until(lambda: wire.retained["study/mine"].startswith(b"{"), "our own is said again")


def test_a_last_will_that_comes_late_is_put_right(wire: Wire, daemon: Daemon) -> None:
    assert wire.daemon is not None
    ours = wire.daemon
    for log in (ours["log"], "another"):
        wire.flags["daemon"].clear()
        wire.say("daemon", {**ours, "state": "offline", "log": log}, retain=True)
        wire.until(lambda: len(wire.flags["daemon"]) >= 2, "the daemon answers")
        assert wire.daemon == ours


@pytest.mark.parametrize("topic", ["daemon", "head", "study/mine"])
def test_what_somebody_cleared_is_said_again(wire: Wire, daemon: Daemon, topic: str) -> None:
    if wire.study("mine") is None:
        wire.create("mine")
    wire.until(lambda: bool(wire.retained.get(topic)), "it is there")
    wire.flags[topic].clear()
    wire.say(topic, b"", retain=True)
    wire.until(lambda: len(wire.flags[topic]) >= 2 and wire.retained[topic].startswith(b"{"), "it is said again")


def test_bad_messages_leave_nothing_behind(wire: Wire, daemon: Daemon) -> None:
    junk = [payload for _, payload, _ in BAD.values() if len(payload) < 1000]

    def pour(count: int) -> None:
        for i in range(count):
            wire.say(f"from/junk{i % 50}/tell", junk[i % len(junk)], qos=0)
        wire.heard("junk0")
        for inbox in wire.inboxes.values():
            inbox.clear()

    for _ in range(3):
        pour(20_000)                                         # what is made once, and queues as long as they get
    rows, rss_kib = len(daemon.events()), [daemon.rss_kib()]
    for _ in range(6):
        pour(20_000)
        rss_kib.append(daemon.rss_kib())
        if rss_kib[-1] - rss_kib[-2] < 8 * 1024:             # a queue gets longer on a busy machine; a leak always
            break
    assert rss_kib[-1] - rss_kib[-2] < 8 * 1024, rss_kib
    assert len(daemon.events()) == rows


def test_who_floods_is_shed_and_others_are_served(wire: Wire, daemon: Daemon) -> None:
    wire.create("busy")
    honest = [wire.worker(f"honest{i}") for i in range(3)]
    for i in range(30_000):
        wire.say("from/flood/ask", b'{"id":"f%d","run":"r1","study":"none"}' % i, qos=0)
    began_s = time.monotonic()
    for w in honest:
        w.beat()
        assert w.told("t", w.lease("busy", "a"), value=1)["status"] == "recorded"
    assert time.monotonic() - began_s < 15.0
    wire.say("from/flood/ask", {"id": "last", "run": "r1", "study": "none"})
    wire.heard("honest0")
    said = {(body["status"], body.get("reason")) for _, body in wire.inboxes["flood"]}
    assert said <= {("waiting", "unknown-study"), ("rejected", "rate")}
    assert all(body["retry_after_s"] > 0 for _, body in wire.inboxes["flood"] if body.get("reason") == "rate")


def test_a_worker_has_a_thousand_asks_standing(wire: Wire, daemon: Daemon) -> None:
    w = wire.worker("many1")
    for i in range(1010):
        w.ask(f"a{i}", study="none")
    answers = [body for _, body in w.heard()]
    assert [body["status"] for body in answers] == ["waiting"] * 1000 + ["rejected"] * 10
    assert {body["reason"] for body in answers[1000:]} == {"rate"}
    assert answers[-1]["retry_after_s"] > 0
    w.ask("a0", study="none")                                # one that stands already is no new one
    assert w.receipt("a0")["status"] == "waiting"
