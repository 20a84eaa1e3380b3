"""The service as a whole on virtual time: what its shell promises beyond the rules."""

import asyncio
import json
import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from bayesd import logfile, service
from bayesd.cli import offline
from bayesd.log import Damaged, DiskFull, MemoryDisk, MemoryLog, Row, SqliteLog
from bayesd.optimize import suggest
from bayesd.replay import fold
from bayesd.service import Settings
from bayesd.study import snapshot
from bayesd.study.fold import refuse_newer
from bayesd.study.problem import Problem, Suggestion
from bayesd.testing import Daemon, MemoryBroker, MemoryClient, run
from bayesd_schemas.constraints import parse
from bayesd_schemas.messages import Request
from bayesd_schemas.space import Space

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}


class Worker:
    """One run that says what it is told to say and keeps what it hears."""

    def __init__(self, broker: MemoryBroker, name: str = "w1") -> None:
        self.broker, self.name = broker, name
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.client = MemoryClient(broker, name, [broker.topics.to(name, "+")], self._hear)
        self.client.connect()

    def _hear(self, topic: str, payload: bytes, *_: object) -> None:
        self.heard.append((topic.rsplit("/", 1)[1], json.loads(payload)))

    def say(self, kind: str, **fields: Any) -> None:
        topic = (self.broker.topics.request(self.name) if kind == "request"
                 else self.broker.topics.sent(self.name, kind))
        self.client.publish(topic, json.dumps(fields).encode())

    async def wait(self, holds: Callable[[str, dict[str, Any]], bool], seconds: float = 60.0) -> dict[str, Any]:
        """The first message that `holds`, within virtual time."""
        for _ in range(int(seconds / 0.05)):
            for kind, body in self.heard:
                if holds(kind, body):
                    return body
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; heard {self.heard[-3:]}")


async def begin(broker: MemoryBroker, **spec: Any) -> tuple[Worker, Worker]:
    await asyncio.sleep(1.0)           # a daemon that has just begun its life is not on the bus yet
    operator, worker = Worker(broker, "op"), Worker(broker)
    operator.say("request", id="1", verb="study.create", args={"spec": {"name": "s", "space": SPACE, **spec}})
    await operator.wait(lambda kind, body: kind == "reply")
    worker.say("beat", run="r")
    worker.say("ask", id="a1", run="r", study="s")
    return operator, worker


def events(disk: MemoryDisk, type: str) -> list[dict[str, Any]]:
    return [json.loads(row.body) for row in disk.rows if row.type == type]


def test_an_optimiser_that_fails_is_answered_for_and_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(problem: Problem, count: int) -> Suggestion:
        raise ZeroDivisionError("a bug of ours")

    async def story() -> MemoryDisk:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, suggest=broken)
        await daemon.start()
        _, worker = await begin(broker)
        grant = await worker.wait(lambda kind, body: kind == "grant")
        worker.say("tell", id="t1", study="s", trial=grant["trial"], fence=1, value=1.0)
        await worker.wait(lambda kind, body: body.get("status") == "recorded")
        await daemon.stop()
        return disk

    (proposed,) = events(run(story()), "trial.proposed")
    assert proposed["data"]["sampler"] == "random"
    assert proposed["data"]["fallback"] == "error: ZeroDivisionError"
    assert "the optimiser failed on s" in caplog.text


def test_a_slow_optimiser_is_answered_for_within_two_seconds() -> None:
    async def slow(problem: Problem, count: int) -> Suggestion:
        await asyncio.sleep(30.0)
        return suggest(problem, count)

    async def story() -> tuple[float, MemoryDisk]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, suggest=slow)
        await daemon.start()
        _, worker = await begin(broker)
        began = asyncio.get_running_loop().time()
        await worker.wait(lambda kind, body: kind == "grant")
        took = asyncio.get_running_loop().time() - began
        await daemon.stop()
        return took, disk

    took, disk = run(story())
    assert took < 2.0
    assert [event["data"]["fallback"] for event in events(disk, "trial.proposed")] == ["deadline"]


def test_who_trains_for_long_waits_some_seconds_for_a_modelled_point() -> None:
    async def slow(problem: Problem, count: int) -> Suggestion:
        await asyncio.sleep(5.0 if problem.history else 0.0)
        return suggest(problem, count)

    async def story() -> MemoryDisk:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, suggest=slow)
        await daemon.start()
        _, worker = await begin(broker)
        grant = await worker.wait(lambda kind, body: kind == "grant")
        worker.say("tell", id="t1", study="s", trial=grant["trial"], fence=1, value=1.0, seconds=3600)
        worker.say("ask", id="a2", run="r", study="s")
        await worker.wait(lambda kind, body: body.get("id") == "a2" and body["status"] == "waiting", 2.0)
        await worker.wait(lambda kind, body: kind == "grant" and body["ask"] == "a2")
        await daemon.stop()
        return disk

    assert [event["data"].get("fallback") for event in events(run(story()), "trial.proposed")] == [None, None]


def test_a_full_disk_does_not_end_the_daemon_at_its_housekeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_space(log: MemoryLog) -> None:
        raise DiskFull("no space left to move the WAL")

    async def story() -> Daemon:
        daemon = Daemon(MemoryBroker(), settings=Settings(checkpoint_idle_s=1.0, settle_s=0.0))
        await daemon.start()
        await asyncio.sleep(10.0)
        await daemon.stop()
        return daemon

    monkeypatch.setattr(MemoryLog, "checkpoint", no_space)
    assert run(story()).ended is None


def test_a_life_that_begins_on_a_full_disk_answers_reads() -> None:
    async def story() -> dict[str, Any]:
        broker, disk = MemoryBroker(), MemoryDisk()
        await Daemon(broker, disk).start()
        await asyncio.sleep(1.0)
        disk.kill()

        async def before(rows: object) -> None:
            raise DiskFull("no space left")

        broker = MemoryBroker()
        daemon = Daemon(broker, disk, before_commit=before, settings=Settings(settle_s=0.5))
        await daemon.start()
        await asyncio.sleep(5.0)
        operator = Worker(broker, "op")
        operator.say("request", id="1", verb="study.list", args={})
        return await operator.wait(lambda kind, body: kind == "reply")

    assert run(story())["status"] == "ok"


def test_a_life_whose_every_tick_tries_a_full_disk_again_is_announced() -> None:
    async def story() -> dict[str, Any]:
        broker, disk = MemoryBroker(), MemoryDisk()
        await Daemon(broker, disk).start()
        await asyncio.sleep(1.0)
        disk.kill()

        async def before(rows: object) -> None:
            await asyncio.sleep(1.0)      # as to fold a long log again takes longer than the pause between tries
            raise DiskFull("no space left")

        broker = MemoryBroker()
        await Daemon(broker, disk, before_commit=before, settings=Settings(settle_s=0.5, full_disk_retry_s=0.0)).start()
        await asyncio.sleep(10.0)
        said: dict[str, Any] = json.loads(broker.retained[broker.topics.daemon])
        return said

    assert run(story())["state"] == "online"


def test_a_read_is_answered_although_it_came_while_a_full_disk_was_tried_again() -> None:
    async def story() -> set[str]:
        broker, disk, tries = MemoryBroker(), MemoryDisk(), []
        await Daemon(broker, disk).start()
        await asyncio.sleep(1.0)
        disk.kill()

        async def before(rows: object) -> None:
            tries.append(1)
            await asyncio.sleep(1.0)
            raise DiskFull("no space left")

        broker = MemoryBroker()
        await Daemon(broker, disk, before_commit=before, settings=Settings(settle_s=0.5, full_disk_retry_s=0.5)).start()
        operator = Worker(broker, "op")
        while len(tries) < 3:
            await asyncio.sleep(0.1)
        for number in range(30):
            operator.say("request", id=str(number), verb="study.list", args={})
            await asyncio.sleep(0.1)
        await asyncio.sleep(5.0)
        return {body["id"] for kind, body in operator.heard if kind == "reply"}

    assert run(story()) == {str(number) for number in range(30)}


def test_a_message_is_acknowledged_when_what_it_caused_is_on_disk_and_waits_for_nothing_else() -> None:
    """An acknowledgement that waits for the next event would fill the broker's window, and stop everybody."""
    async def story() -> tuple[list[int], int]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk)
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        assert daemon.service is not None
        acknowledged: list[int] = []
        for id in ("t1", "t2"):         # the second is a copy, and causes nothing
            daemon.service.on_message(broker.topics.sent("w1", "tell"), json.dumps(
                {"id": id, "study": "s", "trial": 1, "fence": 1, "value": 1.0}).encode(),
                lambda: acknowledged.append(len(disk.rows)))
            await asyncio.sleep(0.5)
        (told,) = events(disk, "trial.completed")
        await daemon.stop()
        return acknowledged, told["seq"]

    acknowledged, seq = run(story())
    assert acknowledged == [seq, seq]


def test_a_message_that_was_lost_with_a_full_disk_is_never_acknowledged() -> None:
    """What the broker has no acknowledgement of it may bring again; its sender will in any case."""
    async def story() -> list[str]:
        broker, full = MemoryBroker(), [False]

        async def before(rows: object) -> None:
            if full[0]:
                raise DiskFull("no space")

        daemon = Daemon(broker, MemoryDisk(), before_commit=before)
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        assert daemon.service is not None
        acknowledged: list[str] = []
        for id, full[0] in (("lost", True), ("kept", False)):
            daemon.service.on_message(broker.topics.sent("w1", "tell"), json.dumps(
                {"id": id, "study": "s", "trial": 1, "fence": 1, "value": 1.0}).encode(),
                partial(acknowledged.append, id))
            await asyncio.sleep(0.1)
            full[0] = False
            await asyncio.sleep(20.0)
        await daemon.stop()
        return acknowledged

    assert run(story()) == ["kept"]


def test_nobody_is_answered_before_the_daemon_knows_that_it_is_alone() -> None:
    async def story() -> list[list[str]]:
        broker, disk, seen = MemoryBroker(), MemoryDisk(), []
        daemon = Daemon(broker, disk)
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        await daemon.stop()
        await Daemon(broker, disk, settings=Settings(settle_s=5.0)).start()
        for seconds in (2.0, 6.0):
            worker.heard.clear()
            worker.say("ask", id="a1", run="r", study="s")
            worker.say("tell", id="t1", study="s", trial=1, fence=9, value=1.0)
            await asyncio.sleep(seconds)
            seen.append([kind for kind, _ in worker.heard])
        worker.heard.clear()
        worker.say("ask", id="a1", run="r", study="s")
        await worker.wait(lambda kind, body: kind == "grant")
        return seen

    assert run(story()) == [[], []]


def test_an_operator_is_no_worker() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        daemon = Daemon(broker, MemoryDisk())
        await daemon.start()
        operator, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        operator.say("ask", id="a1", run="r", study="s")
        operator.say("beat", run="r")
        operator.say("tell", id="t1", study="s", trial=1, fence=1, value=1.0)
        for id in ("a1", "r", "t1"):
            said = await operator.wait(lambda kind, body, id=id: kind == "receipt" and body["id"] == id)    # type: ignore[misc]  # mypy cannot infer a lambda with a default
            assert (said["status"], said["reason"]) == ("rejected", "bad-name")
        worker.say("request", id="q1", verb="study.list", args={})
        said = await worker.wait(lambda kind, body: kind == "reply")
        assert said["error"]["code"] == "name-in-use"
        await daemon.stop()

    run(story())


def test_who_was_shed_is_served_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> list[str]:
        broker = MemoryBroker()
        daemon = Daemon(broker, MemoryDisk(), settings=Settings(rate_per_s=20.0, rate_burst=200.0))
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        for number in range(300):
            worker.say("ask", id=f"b{number}", run="r", n=0)
        refused = await worker.wait(lambda kind, body: body.get("reason") == "rate")
        seen = []
        for seconds in (1.0, refused["retry_after_s"]):
            await asyncio.sleep(seconds)
            worker.heard.clear()
            for _ in range(50):
                worker.say("ask", id="c", run="r", n=0)
            await asyncio.sleep(0.5)
            seen.append("".join(sorted({body["status"][0] for _, body in worker.heard})))
        await daemon.stop()
        return seen

    assert run(story()) == ["cr", "c"]      # closed, as a withdrawn ask is; rejected
    named = [record.getMessage() for record in caplog.records if "dropped unread" in record.getMessage()]
    assert len(named) == 1
    assert named[0].startswith("w1 sends more than it may")


def test_who_makes_the_daemon_write_much_pays_for_it_and_few_senders_are_remembered(
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        broker = MemoryBroker()
        daemon = Daemon(broker, MemoryDisk(), settings=Settings(rate_per_s=1.0, rate_burst=200.0))
        await daemon.start()
        _, worker = await begin(broker)
        worker.say("ask", id="many", run="r", study="s", n=50)
        await worker.wait(lambda kind, body: kind == "grant" and body["trial"] == 51)
        for _ in range(6):                  # each is answered with fifty grants
            worker.say("ask", id="many", run="r", study="s", n=50)
        await worker.wait(lambda kind, body: body.get("reason") == "rate", 2.0)
        for number in range(100):
            other = Worker(broker, f"other{number}")
            other.say("ask", id="a1", run="r", n=0)
            await other.wait(lambda kind, body: body["status"] == "closed")
        assert daemon.service is not None
        assert len(daemon.service._buckets) <= 20
        await daemon.stop()

    monkeypatch.setattr(service, "BUCKETS_MAX", 20)
    run(story())


def test_a_read_that_takes_time_is_begun_once_and_few_are_under_way() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        daemon = Daemon(broker, MemoryDisk())
        await daemon.start()
        operator, _ = await begin(broker)
        done, begun = asyncio.Event(), list[str]()

        async def long(request: Request) -> dict[str, Any]:
            begun.append(request.id)
            await done.wait()
            return {"of": request.id}

        assert daemon.service is not None
        daemon.service.reads["study.list"] = long
        ids = [f"r{number}" for number in range(service.SLOW_MAX + 1)]
        for id in (*ids[:-1], ids[0], ids[-1]):        # a copy of the first, and one too many
            operator.say("request", id=id, verb="study.list", args={})
        refused = await operator.wait(lambda kind, body: body.get("id") == ids[-1])
        assert refused["error"]["code"] == "rate"
        assert (begun, daemon.service.slow_reads) == (ids[:-1], service.SLOW_MAX)
        done.set()
        assert (await operator.wait(lambda kind, body: body.get("id") == "r0"))["result"] == {"of": "r0"}
        await asyncio.sleep(1.0)
        assert sum(body.get("id") == "r0" for _, body in operator.heard) == 1
        assert daemon.service.slow_reads == 0
        await daemon.stop()

    run(story())


def test_an_ask_inside_a_tell_that_is_refused_is_served() -> None:
    async def story() -> None:
        broker = MemoryBroker()
        daemon = Daemon(broker, MemoryDisk())
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        worker.say("tell", id="t1", study="s", trial=1, fence=0, value=1.0,
                   ask={"id": "a2", "run": "r", "study": "s"})
        await worker.wait(lambda kind, body: (body.get("id"), body.get("reason")) == ("t1", "bad-field"))
        await worker.wait(lambda kind, body: kind == "grant" and body["ask"] == "a2")
        await daemon.stop()

    run(story())


def test_a_last_will_that_comes_late_does_not_stand() -> None:
    """The broker says it of our connection before this one, after we said that we are online."""
    async def story() -> list[str]:
        broker = MemoryBroker()
        daemon = Daemon(broker, MemoryDisk())
        await daemon.start()
        await begin(broker)
        ghost, seen = MemoryClient(broker, "ghost", [], lambda *_: None), []
        ghost.connect()
        for said in (b'{"state":"offline"}', b"nonsense"):
            ghost.publish(broker.topics.daemon, said, retain=True)
            await asyncio.sleep(0.2)
            seen.append(json.loads(broker.retained[broker.topics.daemon])["state"])
        await daemon.stop()
        return seen

    assert run(story()) == ["online", "online"]


def test_a_full_disk_loses_nothing_and_the_daemon_goes_on_by_itself() -> None:
    async def story() -> MemoryDisk:
        broker, disk = MemoryBroker(), MemoryDisk()
        full = False

        async def before(rows: object) -> None:
            if full:
                raise DiskFull("no space; nothing was written")

        daemon = Daemon(broker, disk, before_commit=before)
        await daemon.start()
        operator, worker = await begin(broker)
        grant = await worker.wait(lambda kind, body: kind == "grant")
        full = True
        tell = {"id": "t1", "study": "s", "trial": grant["trial"], "fence": 1, "value": 1.0}
        worker.say("tell", **tell)                      # the commit fails: no receipt
        await asyncio.sleep(1.0)
        worker.say("tell", **tell)
        rejected = await worker.wait(lambda kind, body: body.get("status") == "rejected")
        assert rejected["reason"] == "disk-full"
        assert rejected["retry_after_s"] > 0
        worker.say("ask", id="a2", run="r", study="s")
        await worker.wait(lambda kind, body: body.get("reason") == "disk-full" and body["status"] == "waiting")
        operator.say("request", id="2", verb="study.show", args={"study": "s"})
        await operator.wait(lambda kind, body: body.get("id") == "2" and body["status"] == "ok")
        full = False
        await asyncio.sleep(6.0)
        worker.say("tell", **tell)
        await worker.wait(lambda kind, body: body.get("status") == "recorded")
        await daemon.stop()
        return disk

    disk = run(story())
    assert len(events(disk, "trial.completed")) == 1
    assert [row.seq for row in disk.rows] == list(range(1, len(disk.rows) + 1))


def test_a_disk_too_full_for_housekeeping_ends_nobody(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The WAL has room where the file has none: results are taken, and the WAL is moved when there is space."""
    tries: list[float] = []

    async def checkpoint(log: MemoryLog) -> None:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) < 4:
            raise DiskFull("no space left to move the WAL")

    async def story() -> list[BaseException | None]:
        broker, disk = MemoryBroker(), MemoryDisk()
        ended: list[BaseException | None] = []
        daemon = Daemon(broker, disk, on_end=ended.append)
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        await asyncio.sleep(10.0)
        monkeypatch.setattr(MemoryLog, "checkpoint_due", True)
        worker.say("tell", id="t1", study="s", trial=1, fence=1, value=1.0)
        await worker.wait(lambda kind, body: body.get("status") == "recorded")
        monkeypatch.setattr(MemoryLog, "checkpoint_due", False)
        await asyncio.sleep(20.0)
        assert ended == []
        await daemon.stop()
        return ended

    monkeypatch.setattr(MemoryLog, "checkpoint", checkpoint)
    run(story())
    assert len(tries) > 4
    assert caplog.text.count("no space left to move the WAL") == 1       # said once, and not every few seconds


def test_a_stop_saves_a_snapshot_and_the_next_start_folds_only_the_rest() -> None:
    async def story() -> tuple[int, int, str, str]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, settings=Settings(snapshot_events=1, settle_s=0.0))
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        await daemon.stop()
        assert disk.snapshots
        service = await daemon.start()
        await asyncio.sleep(1.0)
        replayed = service.replayed
        live = snapshot.digest(service.desk.state)
        await daemon.stop()
        disk.snapshots.clear()
        log = await MemoryLog.open(disk)
        whole, folded = await fold(log, service.desk.state.seq)
        await log.close()
        at_end = snapshot.digest(service.desk.state)
        assert live != at_end                       # the stop itself is an event
        return replayed, folded, at_end, snapshot.digest(whole)

    replayed, folded, at_end, whole = run(story())
    assert replayed == 1        # the stop, which vouches for the snapshot
    assert folded > 5
    assert at_end == whole


def test_a_snapshot_of_another_history_is_not_believed() -> None:
    async def story() -> int:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, settings=Settings(snapshot_events=1, settle_s=0.0))
        await daemon.start()
        await begin(broker)
        await daemon.stop()
        at = disk.snapshots[-1].seq - 1
        disk.rows[at] = Row.of({**json.loads(disk.rows[at].body), "time": "2001-01-01T00:00:00Z"})
        for after in range(at + 1, len(disk.rows)):     # the same state after another event
            disk.rows[after] = Row.of({**json.loads(disk.rows[after].body), "prev": disk.rows[after - 1].hash.hex()})
        service = await daemon.start()
        await asyncio.sleep(1.0)
        await daemon.stop()
        return service.replayed

    assert run(story()) > 3


def test_a_snapshot_that_was_made_to_fit_is_not_believed() -> None:
    """Its digest is right and so is the event it names; but the log says that the state was another."""
    async def story() -> tuple[int, int, str]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, settings=Settings(snapshot_events=1, settle_s=0.0))
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        await daemon.stop()
        saved = disk.snapshots[-1]
        blob = saved.blob.replace(b'"status":"running"', b'"status":"pruned"')
        assert blob != saved.blob
        assert snapshot.load(sha256(blob).digest(), blob) is not None
        disk.snapshots[-1] = replace(saved, blob=blob, digest=sha256(blob).digest())
        service = await daemon.start()
        await asyncio.sleep(1.0)
        status = service.desk.state.studies["s"].trials[0].status
        await daemon.stop()
        return service.replayed, saved.seq, status

    replayed, seq, status = run(story())
    assert (replayed, status) == (seq + 1, "running")


def test_the_open_time_of_a_study_without_leases_outlives_a_stop() -> None:
    async def story() -> float:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk)
        await daemon.start()
        await asyncio.sleep(1.0)
        operator = Worker(broker, "op")
        operator.say("request", id="1", verb="study.create",
                     args={"spec": {"name": "s", "space": SPACE, "budget": {"wall": "1h"}}})
        await operator.wait(lambda kind, body: kind == "reply")
        await asyncio.sleep(30.0)
        await daemon.stop()
        log = await MemoryLog.open(disk)
        state, _ = await fold(log)
        await log.close()
        return state.studies["s"].elapsed_s

    assert run(story()) == pytest.approx(30.0, abs=2.0)


def test_public_state_is_shown_under_load() -> None:
    """While results pour in there is at no tick a moment at which everything is on disk."""
    async def slow_disk(*_: object) -> None:
        await asyncio.sleep(0.05)

    async def story() -> int:
        broker = MemoryBroker()
        daemon = Daemon(broker, before_commit=slow_disk)
        await daemon.start()
        _, worker = await begin(broker, method="random")
        grant = await worker.wait(lambda kind, body: kind == "grant")
        shown: list[int] = []
        viewer = MemoryClient(broker, "viewer", [broker.topics.study("s")],
                              lambda topic, payload, *_: shown.append(json.loads(payload)["seq"]))
        viewer.connect()
        for step in range(1000):
            worker.say("report", id=f"r{step}", study="s", trial=grant["trial"], fence=1, step=step, value=1.0)
            await asyncio.sleep(0.01)
        seen = len(shown)
        await daemon.stop()
        assert shown == sorted(shown)
        return seen

    assert run(story()) >= 8


def test_points_under_constraints_are_not_drawn_between_two_messages() -> None:
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1}})
    plain = Problem(space, ("minimize",), "random", 1, True, 1, 0)

    async def threads(problem: Problem) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            seen: list[str] = []

            def where(*_: object) -> Suggestion:
                seen.append(threading.current_thread().name)
                return Suggestion(())

            patch.setattr(service, "suggest", where)
            await service.in_thread(problem, 1)
        return seen

    here = threading.current_thread().name
    assert asyncio.run(threads(plain)) == [here]
    assert asyncio.run(threads(replace(plain, constraints=parse(["x < 1e-6"], space)))) != [here]


def test_a_snapshot_of_nonsense_leads_to_a_fold_of_all_events(caplog: pytest.LogCaptureFixture) -> None:
    """Even one that the log vouches for: it is a cache, and a cache ends no start."""
    async def story(blob: bytes) -> tuple[int, int]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, settings=Settings(snapshot_events=1, settle_s=0.0))
        await daemon.start()
        await begin(broker)
        await daemon.stop()
        saved = disk.snapshots[-1]
        disk.snapshots[-1] = replace(saved, blob=blob, digest=sha256(blob).digest())
        last = json.loads(disk.rows[-1].body)
        last["data"]["snapshot"]["digest"] = sha256(blob).hexdigest()
        disk.rows[-1] = Row.of(last)
        log = await MemoryLog.open(disk)
        state, folded = await fold(log)
        await log.close()
        return state.seq, folded

    for blob in (b"[]", b'{"seq":1,"hash":"","log":"x","epoch":1,"fingerprint":null,"commands":[]}', b"\xff", b"7"):
        caplog.clear()
        seq, folded = run(story(blob))
        assert seq == folded > 1
        assert "makes no sense" in caplog.text


ODD: dict[str, Callable[[bytes], bytes]] = {
    "of another log": lambda body: body.replace(b'"log":"memory"', b'"log":"other"'),
    "of an older writer": lambda body: body.replace(b'"epoch":1', b'"epoch":0'),
    "version 2": lambda body: body.replace(b'"v":1}', b'"v":2}'),
    "version true": lambda body: body.replace(b'"v":1}', b'"v":true}'),
    "may be passed over": lambda body: re.sub(rb'"crit":true(.*)"tv":1', rb'"crit":false\1"tv":2', body),
    "must be known": lambda body: body.replace(b'"crit":false', b'"crit":true'),
    "a key twice": lambda body: body.replace(b'"data":{', b'"data":{"x":1,"x":2,'),
    "a new line": lambda body: body.replace(b'"data":{', b'"data":\n{'),
    "30 digits": lambda body: body.replace(b'"data":{', b'"data":{"a":' + b"1" * 30 + b","),
    "half a surrogate": lambda body: body.replace(b'"data":{', b'"data":{"a":"\\ud800",'),
    "a double for an integer": lambda body: re.sub(rb'"seq":(\d+)', rb'"seq":\1.0', body),
    "deep": lambda body: body.replace(b'"data":{', b'"data":{"a":' + b"[" * 900 + b"]" * 900 + b","),
    "no JSON": lambda body: body.replace(b'"data":{', b'"data":{#'),
    "data is a list": lambda body: re.sub(rb'"data":\{[^}]*\}', b'"data":[]', body)}


@pytest.fixture(scope="module")
def honest() -> list[Row]:
    async def story() -> list[Row]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, settings=Settings(settle_s=0.0))
        await daemon.start()
        _, worker = await begin(broker)
        await worker.wait(lambda kind, body: kind == "grant")
        await daemon.stop()
        return disk.rows
    return run(story())


def has_it(type: str, what: str) -> bool:
    """Only what may not be passed over can be made so that it may, and the other way round."""
    one_of = {"must be known": type == "daemon.stopped", "may be passed over": type != "daemon.stopped"}
    return one_of.get(what, True)


@pytest.mark.parametrize(("type", "what"), [
    (type, what) for type in ("log.opened", "daemon.started", "trial.leased", "daemon.stopped") for what in ODD
    if has_it(type, what)])
def test_who_writes_the_chain_anew_deceives_neither_the_daemon_nor_verify(
        tmp_path: Path, honest: list[Row], what: str, type: str) -> None:
    """Each hash is right and so is each prev, but one event is none that a daemon writes."""
    seq = found_at = [row.type for row in honest].index(type) + 1
    if (type, what) == ("log.opened", "of another log"):
        found_at += 1       # what the first says of itself, all others must say
    prev, rows = "0" * 64, []
    for row in honest:
        body = re.sub(rb'"prev":"[0-9a-f]{64}"', b'"prev":"%s"' % prev.encode(), row.body)
        if row.seq == seq:
            spoilt = ODD[what](body)
            assert spoilt != body
            body = spoilt
        rows.append((row.seq, body, sha256(b"\0" + body).digest(), *row.fields[3:]))
        prev = rows[-1][2].hex()
    logfile.create(path := tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE writer SET epoch = 1")
        db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        db.commit()
    async def start() -> None:
        log = await SqliteLog.open(path, look=refuse_newer)
        try:
            await fold(log)
        finally:
            await log.close()
    found = offline.examine(path).damage
    assert found is not None
    assert found.seq == found_at
    with pytest.raises(Damaged) as refused:
        asyncio.run(start())
    assert refused.value.seq == found_at
