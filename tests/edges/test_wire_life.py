"""Lives of the daemon as workers see them: killed, stopped, started twice, on a root of its own."""

import signal
import time
from pathlib import Path

import pytest
from tests.edges.daemon import Broker, Daemon, Wire, lease, serving

pytestmark = pytest.mark.mosquitto


def test_after_a_crash_everything_told_is_there_and_leases_go_on(tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1", space={"x": {"type": "float", "low": 1.0, "high": 1.5, "step": 0.5},
                                 "n": {"type": "int", "low": 1, "high": 9}})
        w = wire.worker("w1")
        w.beat()
        w.ask("a", study="s1", n=3, lease_s=2)
        told, open_, other = (w.grant("a") for _ in range(3))
        receipt = w.told("t", told, value=1)
        w.report("r", open_, 0, 1)
        report = w.receipt("r")
        daemon.kill()
        wire.until(lambda: wire.daemon is not None and wire.daemon["state"] == "offline", "the last will")
        daemon.start().ready(wire)
        assert wire.daemon is not None
        assert wire.daemon["epoch"] == 2
        assert w.told("t", told, value=1) == {**receipt, "status": "duplicate"}
        w.report("r", open_, 0, 1)
        assert w.receipt("r") == {**report, "status": "duplicate"}
        w.ask("a", study="s1", n=3)
        again, another = w.grant("a"), w.grant("a")
        assert again == {**open_, "epoch": 2}
        assert {name: type(value) for name, value in again["params"].items()} == {"x": float, "n": int}
        assert another == {**other, "epoch": 2}
        assert w.heard() == []
        w.beat(open_)
        assert w.heard() == []                               # the run is known: nothing is taken over anew
        assert w.told("t2", open_, value=2)["status"] == "recorded"
        began = [event["type"] for event in daemon.events()].count("run.began")
        assert began == 1
        wire.until(lambda: (wire.study("s1") or {})["epoch"] == 2, "the public state names the epoch")


def test_a_term_ends_within_seconds_with_everything_committed(tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1", method="bayes", space={f"x{i}": {"type": "float", "low": 0, "high": 1} for i in range(8)})
        w = wire.worker("w1")
        w.ask("a", study="s1", n=60)
        grants = [w.grant("a") for _ in range(60)]
        for number, grant in enumerate(grants):
            w.tell(f"t{number}", grant, value=number, ask={"id": f"b{number}", "run": "r1", "study": "s1"})
        w.receipt("t0")
        began_s = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began_s < 5.0
        wire.until(lambda: wire.daemon is not None and wire.daemon["state"] == "offline", "the daemon says goodbye")
        receipts = [body for kind, body in wire.inboxes["w1"] if kind == "receipt" and body["status"] == "recorded"]
        events = daemon.events()
        assert events[-1]["type"] == "daemon.stopped"
        for receipt in receipts:
            assert events[receipt["seq"] - 1]["cmd"] == receipt["id"]
        assert daemon.start().ready(wire)
        assert w.told("t59", grants[59], value=59)["status"] in ("recorded", "duplicate")


def test_one_log_per_root_and_one_daemon_per_log(tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        url = f"mqtt://127.0.0.1:{wire.port}"
        wire.create("s1")
        w = wire.worker("w1")
        grant = w.lease("s1", "a")
        with Daemon(tmp_path, url, log="other.db", name="other") as other, Daemon(tmp_path, url, name="same") as same:
            answers = [w.told(f"t{number}", grant, value=1) for number in range(200)]
            assert {answer["status"] for answer in answers} <= {"recorded", "duplicate"}     # one daemon answers
            assert (other.wait(), same.wait()) == (75, 75)
            assert "--root" in other.said()
        assert daemon.alive
        assert wire.daemon is not None
        assert wire.daemon["state"] == "online"
        assert wire.daemon["log"] == daemon.events()[0]["log"]
        assert w.told("again", grant, value=1)["status"] == "duplicate"
        with Daemon(tmp_path, url, "--root", "acme", log="other.db", name="third") as third, Wire(url, "acme") as acme:
            third.ready(acme)
            assert acme.prefix == "acme/bayesd/1"
            acme.create("s1")
            assert acme.worker("w1").lease("s1", "a")["trial"] == 1
            assert wire.ok("study.show", {"study": "s1"})["trials"]["total"] == 1


def test_what_another_log_left_is_cleared(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Wire(broker.url) as wire, Daemon(tmp_path, broker.url) as daemon:
        daemon.ready(wire)
        wire.create("s1")
        wire.until(lambda: wire.study("s1") is not None, "the state is published")
        daemon.kill()
        wire.until(lambda: wire.daemon is not None and wire.daemon["state"] == "offline", "the last will")
        wire.say("head", {"log": "an old one", "epoch": 9}, retain=True)
        with Daemon(tmp_path, broker.url, log="new.db", name="new") as new:
            new.ready(wire)
            wire.until(lambda: wire.retained["study/s1"] == b"" and wire.retained["head"] == b"", "all is cleared")
            with Wire(broker.url) as later:
                later.until(lambda: later.daemon is not None, "what is retained comes")
                later.heard("nobody")
                assert "study/s1" not in later.retained


def test_only_operators_write(tmp_path: Path) -> None:
    with serving(tmp_path, "--operators", "ann", "--events") as (daemon, wire):
        reply = wire.request("study.create", {"spec": {"name": "s1", "space": {}}}, client="bob")
        assert (reply["status"], reply["error"]["code"]) == ("error", "not-allowed")
        spec = {"name": "s1", "method": "random", "space": {"x": {"type": "float", "low": 0, "high": 1}}}
        assert wire.request("study.create", {"spec": spec}, client="ann")["status"] == "ok"
        assert wire.request("study.show", {"study": "s1"}, client="bob")["status"] == "ok"
        wire.until(lambda: "study/s1/events" in wire.flags, "the event is published")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        assert wire.request("study.pause", {"study": "s1"}, client="bob")["status"] == "error"


def test_an_ask_for_any_study_is_never_closed(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, wire):
        w = wire.worker("w1")
        w.ask("a")
        assert w.receipt("a")["status"] == "waiting"
        wire.create("s1", budget={"trials": 1})
        grant = w.grant("a")                                 # it stood
        w.ask("b")
        assert w.receipt("b") == {"id": "b", "run": "r1", "status": "waiting", "reason": "budget"}
        w.told("t", grant, value=1)
        w.ask("c")
        assert w.receipt("c")["status"] == "waiting"
        wire.create("s2")
        assert {w.grant("b")["study"], w.grant("c")["study"]} == {"s2"}
        assert w.heard() == []


def test_a_broker_that_forgets_is_told_again(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Daemon(tmp_path, broker.url) as daemon:
        with Wire(broker.url) as wire:
            daemon.ready(wire)
            wire.create("s1")
            w = wire.worker("w1")
            grant = w.lease("s1", "a")
        broker.kill()
        broker.start()
        with Wire(broker.url) as wire:
            daemon.ready(wire)
            wire.until(lambda: wire.study("s1") is not None, "the state is published again")
            assert wire.daemon is not None
            assert wire.daemon["epoch"] == 1
            w = wire.worker("w1")
            assert w.told("t", grant, value=1)["status"] == "recorded"
            assert lease(w.lease("s1", "b"))["trial"] == 2
