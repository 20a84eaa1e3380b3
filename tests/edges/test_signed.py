"""P29: a hostile broker can delay and drop, not forge; and what it did is over when it is honest again."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edges.hostile import KEYS, LOG, TOPICS, Bench, SimulatedWorker, hour, lease

from bayesd import seals
from bayesd.log import MemoryDisk
from bayesd.seals import NONCE_S, Seals
from bayesd.testing import run
from bayesd_client.kept import SavedTell
from bayesd_client.signing import Ignored, Signing
from bayesd_client.spool import claim
from bayesd_schemas import sealed
from bayesd_schemas.events import validate
from bayesd_schemas.sealed import seal

FORGERIES = int(os.environ.get("BAYESD_TEST_FORGERIES", "20000"))      # each way


def forgeries(count: int, seed: int = 1) -> tuple[int, int]:
    """How many altered messages a daemon and a worker acted on, of `count` for each."""
    async def story() -> tuple[int, int]:
        bench = Bench(seed)
        await bench.start()
        await bench.settle()
        before = bench.position()
        accepted = bench.forge(count)
        if not accepted:
            assert bench.position() == before
        believed = bench.forge_answers(count)
        bench.daemon.kill()
        return accepted, believed
    return run(story())


def test_no_altered_message_is_acted_on() -> None:
    assert forgeries(FORGERIES) == (0, 0)


def _without_topic(key: bytes, log: str, topic: str, text: bytes) -> str:
    return REAL_MAC(key, log, "", text)


def _without_log(key: bytes, log: str, topic: str, text: bytes) -> str:
    return REAL_MAC(key, "", topic, text)


REAL_MAC, REAL_OPEN = sealed.mac, Seals.open


def _accept_unsigned(self: Seals, log: str, topic: str, who: str, kind: str, payload: bytes) -> tuple[bytes, bool]:
    if not sealed.is_sealed(payload):
        return payload, False
    return REAL_OPEN(self, log, topic, who, kind, payload)


@pytest.mark.parametrize(("where", "name", "fault"), [
    (sealed, "mac", _without_topic), (sealed, "mac", _without_log), (Seals, "open", _accept_unsigned)])
def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch, where: Any, name: str,
                                  fault: Callable[..., Any]) -> None:
    monkeypatch.setattr(where, name, fault)
    accepted, _ = forgeries(500)
    assert accepted > 0


def test_copies_are_answered_and_move_nothing() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.start()
        desk, rejected = bench.service.desk, bench.service.counters.rejected
        await asyncio.sleep(20.0)
        seq, deadlines = desk.state.seq, {id(lease): at for lease, at in desk.deadlines.items()}
        for topic, payload in list(bench.corpus):
            bench.service.on_message(topic, payload, lambda: None)
        assert desk.state.seq == seq
        assert deadlines == {id(lease): at for lease, at in desk.deadlines.items()}
        stamped = [topic for topic, _ in bench.corpus if topic.rpartition("/")[2] in sealed.STAMPED]
        assert rejected.get("stale", 0) == len(stamped)
        bench.daemon.kill()
    run(story())


def test_an_old_beat_holds_no_lease_and_ends_no_run() -> None:
    """Held back for longer than a nonce lives; also after a restart, and for a run that never came."""
    async def story() -> None:
        bench = Bench()
        await bench.start()
        grants = bench.grants("w1")[2:]
        held_back = [bench.sealers["w1"].seal(TOPICS.sent("w1", "beat"), {
            "run": "r-w1", "leases": [list(lease(each).values()) for each in grants]}) for _ in range(9)]
        ghost = bench.sealers["w1"].seal(TOPICS.sent("w1", "beat"), {"run": "never-came", "leases": []})
        await asyncio.sleep(2 * NONCE_S + 10)
        for _ in range(9):                       # the worker has died, and the broker goes on for it
            bench.service.on_message(TOPICS.sent("w1", "beat"), held_back.pop(), lambda: None)
            await asyncio.sleep(100.0)
        assert not bench.service.desk.state.workers["w1"].open
        bench.service.on_message(TOPICS.sent("w1", "beat"), ghost, lambda: None)
        fresh = bench.sealers["w1"].seal(TOPICS.sent("w1", "beat"), {"run": "never-came", "leases": []})
        bench.daemon.kill()
        await bench.daemon.start()
        await bench.settle()
        bench.service.on_message(TOPICS.sent("w1", "beat"), fresh, lambda: None)
        assert bench.service.desk.state.workers["w1"].run == "r-w1"
        assert bench.service.counters.rejected == {"stale": 1}
        bench.daemon.kill()
    run(story())


def test_a_withdrawn_ask_and_a_request_do_not_come_back() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.start()
        asked = bench.say("w1", "ask", id="r-w1.9", run="r-w1", study="none-yet")
        bench.say("w1", "ask", id="r-w1.9", run="r-w1", study="none-yet", n=0)
        bench.say("op", "request", id="2", verb="study.pause", args={"study": "s"})
        again = bench.say("op", "request", id="3", verb="study.pause", args={"study": "s"})    # "exists": not on record
        await bench.settle()
        bench.say("op", "request", id="4", verb="study.resume", args={"study": "s"})
        await bench.settle()
        bench.service.on_message(TOPICS.sent("w1", "ask"), asked, lambda: None)
        bench.service.on_message(TOPICS.request("op"), again, lambda: None)
        await bench.settle()
        assert not bench.service.desk.standing
        assert bench.service.desk.state.studies["s"].status == "open"
        assert bench.heard["op"][-1] == ("reply", bench.heard["op"][-1][1])
        assert bench.heard["op"][-1][1]["id"] == "4"
        bench.daemon.kill()
    run(story())


def test_a_copy_that_overtakes_is_taken_once() -> None:
    seals = Seals(KEYS, new_nonce=iter("abcdef").__next__)
    assert [seals.is_fresh("w1", "r", "a", count) for count in (1, 3, 2, 2, 3, 100, 36, 37, 37)] == [
        True, True, True, False, False, True, False, True, False]
    assert not seals.is_fresh("w1", "r", "b", 101)
    assert not seals.is_fresh("w1", "r", None, 101)
    assert not seals.is_fresh("w1", "r", "a", None)
    assert seals.is_fresh("w1", "another", "a", 1)
    assert seals.turn(0.0)
    assert not seals.turn(NONCE_S - 1)
    assert seals.turn(NONCE_S)
    assert seals.is_fresh("w1", "r", "a", 101)
    assert seals.turn(2 * NONCE_S)
    assert not seals.is_fresh("w1", "r", "a", 102)


def test_who_may_be_anybody_is_told_why_and_nothing_follows() -> None:
    async def story() -> None:
        bench = Bench(required=True)
        await bench.start()
        seq, grant = bench.service.desk.state.seq, bench.grants("w1")[2]
        forged = {"id": "t.forged", "value": 9.0, **lease(grant)}
        bench.clients["w1"].publish(TOPICS.sent("w1", "tell"), json.dumps(forged).encode())
        bench.clients["w2"].publish(TOPICS.sent("w3", "ask"), b'{"id":"a","run":"r"}')
        bench.clients["w1"].publish(TOPICS.request("nobody"), b'{"id":"q","verb":"study.pause","args":{"study":"s"}}')
        answers = len(bench.answers)
        await bench.settle()
        assert bench.service.desk.state.seq == seq
        said = {topic.removeprefix(f"{TOPICS.prefix}/to/"): json.loads(body) for topic, body in bench.answers[answers:]}
        assert "must be signed" in said["w1/receipt"]["detail"]
        assert said["w1/receipt"]["retry_after_s"] > 0            # a worker without its key keeps what it has
        assert "no key for w3" in said["w3/receipt"]["detail"]
        assert "no key for nobody" in said["nobody/reply"]["error"]["message"]
        assert bench.service.counters.rejected == {"unsigned": 3}
        bench.clients["w1"].publish(TOPICS.request("nobody"), b'{"id":"q2","verb":"study.list"}')
        await bench.settle()
        assert json.loads(bench.answers[-1][1])["status"] == "ok"          # whoever may listen may ask
        bench.daemon.kill()
    run(story())


def test_the_record_says_who_signed() -> None:
    async def story() -> MemoryDisk:
        bench = Bench()
        await bench.start()
        await bench.daemon.stop()
        return bench.daemon.disk
    events = [json.loads(row.body) for row in run(story()).rows]
    completed = [event for event in events if event["type"] == "trial.completed"]
    assert len(completed) == 4
    assert {event["data"]["auth"] for event in completed} == {"hmac"}
    for event in events:
        validate(event)


def test_another_log_is_believed_by_no_worker_whose_work_would_be_lost() -> None:
    signing = Signing(KEYS["w1"], "w1", "r", TOPICS)
    topic = "to/w1/receipt"

    def receipt(log: str, **body: Any) -> bytes:
        return seal(KEYS["w1"], log, topic, json.dumps({"status": "recorded", **body}).encode())

    assert not signing.heard({"log": "b", "epoch": 1})               # a claim, and no more
    with pytest.raises(Ignored):                                     # what log b said to an earlier process
        signing.open("receipt", f"{TOPICS.prefix}/{topic}", receipt("b", id="t.s.7.1:r0"))
    with pytest.raises(Ignored):
        signing.open("receipt", f"{TOPICS.prefix}/{topic}", receipt("b", id="t.s.7.1"))
    assert not signing.heard({"log": "a", "epoch": 1})
    data, claim = signing.open("receipt", f"{TOPICS.prefix}/{topic}", receipt("a", id="t.s.7.1:r"))
    assert (data["id"], claim and claim["log"]) == ("t.s.7.1", "a")
    with pytest.raises(Ignored, match="believes no other"):
        signing.heard({"log": "b", "epoch": 1})
    with pytest.raises(Ignored, match="unsigned: 'no key'"):
        signing.open("receipt", f"{TOPICS.prefix}/{topic}", b'{"id":"t.s.7.1:r","status":"rejected","detail":"no key"}')


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_or_doubled_once_the_broker_is_honest(seed: int, tmp_path: Path) -> None:
    seen = hour(seed, tmp_path)
    assert seen.broken == ()
    assert seen.lies > 500


def test_a_lie_about_the_log_sets_no_saved_result_aside(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench()
        await bench.start()
        grant = bench.grants("w1")[2]
        key = (grant["study"], grant["trial"], grant["fence"])
        _, spool = claim("w1", None, tmp_path)
        spool.save_tell(key, SavedTell({"id": "t", **lease(grant), "value": 0.25}, LOG))
        spool.close()
        truth = bench.broker.retained[TOPICS.daemon]
        bench.broker.retained[TOPICS.daemon] = json.dumps({**json.loads(truth), "log": "a-lie", "epoch": 9}).encode()
        worker = SimulatedWorker(bench.broker, "w1", tmp_path)
        task = asyncio.create_task(worker.run())
        await asyncio.sleep(120.0)
        assert worker.agent.undelivered == {key}
        bench.broker._publish("daemon", TOPICS.daemon, truth, True)
        await asyncio.sleep(60.0)
        assert not worker.agent.undelivered
        trial = bench.service.desk.state.studies["s"].trials[grant["trial"] - 1]
        assert (trial.status, trial.values) == ("complete", (0.25,))
        worker.stop()
        await task
        bench.daemon.kill()
    run(story())
    assert not list(tmp_path.glob("*/rejected/*"))


def test_seals_without_keys_do_nothing() -> None:
    assert not Seals().active
    assert Seals().nonce is None
    assert seals.Seals({"w1": bytes(32)}).active
