"""Behind a broker that enforces nothing, the daemon still keeps its own rules: who is an operator, which name is whose,
and where an answer goes. (Who speaks as whom is then anybody's word: that takes an access list, see test_forgery.)"""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.edges.daemon import SPACE, Daemon, Wire, lease, serving

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Wire]]:
    with serving(tmp_path_factory.mktemp("identity"), "--operators", "op,alice") as both:
        both[1].create("s1")
        yield both


WRITES: dict[str, dict[str, Any]] = {
    "study.create": {"spec": {"name": "s2", "space": SPACE}}, "study.pause": {"study": "s1"},
    "study.resume": {"study": "s1"}, "study.close": {"study": "s1"},
    "study.amend": {"study": "s1", "changes": {"budget": {"trials": 1}}},
    "study.enqueue": {"study": "s1", "points": [{"x": 0.5}]}, "study.fork": {"study": "s1", "as": "s3"},
    "trial.cancel": {"study": "s1", "trial": 1}, "trial.void": {"study": "s1", "trial": 1, "reason": "r"},
    "worker.revoke": {"worker": "w1", "reason": "r"}, "text.redact": {"refs": ["0" * 64], "reason": "r"}}


@pytest.mark.parametrize("verb", WRITES)
@pytest.mark.parametrize("who", ["eve", "op2", "o", "alice.", "op-alice"])
def test_who_is_not_on_the_list_changes_nothing(both: tuple[Daemon, Wire], verb: str, who: str) -> None:
    daemon, wire = both
    before = len(daemon.events())
    reply = wire.request(verb, WRITES[verb], client=who)
    assert reply["status"] == "error", reply
    assert len(daemon.events()) == before


def test_who_is_on_the_list_does(both: tuple[Daemon, Wire]) -> None:
    daemon, wire = both
    before = len(daemon.events())
    wire.ok("study.pause", {"study": "s1"}, client="alice")
    wire.ok("study.resume", {"study": "s1"}, client="op")
    assert [event["actor"] for event in daemon.events()[before:]] == ["operator/alice", "operator/op"]


FIELDS = {"worker": "w2", "client": "alice", "from": "w2", "actor": "operator/alice", "user": "alice",
          "username": "alice", "operator": True,
          "reply_to": "bayesd/1/to/w2/receipt", "response_topic": "bayesd/1/to/w2/receipt",
          "replyTo": "bayesd/1/to/w2/receipt", "topic": "bayesd/1/to/w2/receipt", "to": "w2", "inbox": "w2"}
"""Identities and addresses inside a message, as other protocols have them."""


def test_an_identity_or_an_address_inside_a_message_is_no_news(both: tuple[Daemon, Wire]) -> None:
    daemon, wire = both
    w1 = wire.worker("w1")
    w1.beat(**FIELDS)
    w1.ask("a1", study="s1", **FIELDS)
    grant = w1.grant("a1")
    before = len(daemon.events())
    assert w1.told("t1", grant, value=0.5, **FIELDS)["status"] == "recorded"
    assert {event["actor"] for event in daemon.events()[before:] if event["type"] == "trial.completed"} == {"worker/w1"}
    wire.say("admin/eve/request", {"id": "e1", "verb": "study.close", "args": {"study": "s1", **FIELDS}, **FIELDS})
    assert wire.reply("e1", client="eve")["status"] == "error"
    assert wire.inboxes.get("w2", []) == []
    assert [body for _, body in wire.inboxes.get("alice", []) if body["id"] == "e1"] == []


def test_a_trial_is_told_by_whom_it_was_leased_to(both: tuple[Daemon, Wire]) -> None:
    daemon, wire = both
    w3, w4 = wire.worker("w3"), wire.worker("w4")
    w3.beat()
    grant = w3.lease("s1", "a1")
    before = len(daemon.events())
    w4.beat()
    answer = w4.told("t9", grant, value=99.0)
    assert (answer["status"], answer["reason"]) == ("rejected", "unknown-trial")
    assert not [event for event in daemon.events()[before:] if event["type"].startswith("trial.")]
    assert w3.told("t9", grant, value=1.0)["status"] == "recorded"


def test_a_name_is_a_worker_or_an_operator(both: tuple[Daemon, Wire]) -> None:
    daemon, wire = both
    wire.worker("w5").beat()
    wire.worker("w5").lease("s1", "a1")
    assert wire.request("study.list", client="w5")["error"]["code"] == "name-in-use"
    before = len(daemon.events())
    wire.say("from/op/tell", {"id": "t", **lease({"study": "s1", "trial": 1, "fence": 1}), "value": 1})
    wire.say("from/op/ask", {"id": "a", "run": "r", "study": "s1"})
    assert wire.request("study.list")["status"] == "ok"
    assert len(daemon.events()) == before
