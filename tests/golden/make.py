"""Write golden logs: stories at the desk that have, together, every event type a daemon writes.

    python tests/golden/make.py life tests/golden/log-1.jsonl
    python tests/golden/make.py fork tests/golden/log-2.jsonl
    python tests/golden/make.py confirm tests/golden/log-4.jsonl
    python tests/golden/make.py prune tests/golden/log-pruned.jsonl
    python tests/golden/make.py stop tests/golden/log-stop.jsonl
    python tests/golden/make.py pause tests/golden/log-paused.jsonl
    python tests/golden/make.py warm tests/golden/log-warm.jsonl

Golden logs must replay for ever. Write a new one when a new event or field comes; change an old one
never. The last line is not an event: the digests of the state that the log folds to, and of what the optimiser
then knows of each study.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bayesd.optimize import suggest
from bayesd.study import admin, rules, snapshot, texts
from bayesd.study.desk import Desk, Letter
from bayesd.study.knowledge import knowledge_digest
from bayesd_schemas.messages import Request, validate

SPACE = {"x": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"}, "u": {"type": "float", "low": 0, "high": 1},
         "n": {"type": "int", "low": 1, "high": 5}, "k": {"type": "categorical", "choices": ["a", "b"]},
         "size": {"type": "ordinal", "choices": ["small", "large"], "when": {"k": "b"}}}


class Story:
    """A desk, a clock turned by hand, and the letters so far."""

    def __init__(self) -> None:
        self.desk = Desk(new_salt=lambda: b"golden")
        self.bodies: list[bytes] = []
        self.letters: list[Letter] = []
        self.now = 0.0
        self.requests = 0
        self.pass_time(0.0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        minutes, rest = divmod(self.now, 60)
        self.desk.at(self.now, f"2026-01-01T{int(minutes) // 60:02}:{int(minutes) % 60:02}:{rest:09.6f}Z")

    def settle(self) -> None:
        for order in rules.orders(self.desk):
            rules.supply(self.desk, order, suggest(order.problem, order.wanted))
        self.bodies += [row.body for row in self.desk.take_rows()]
        self.letters += self.desk.committed(self.desk.state.seq)

    def admin(self, verb: str, **args: Any) -> None:
        self.requests += 1
        admin.on_request(self.desk, "alice", Request(id=f"q{self.requests}", verb=verb, args=args))
        self.settle()
        assert self.letters[-1].body["status"] == "ok", self.letters[-1]

    def say(self, worker: str, kind: str, **fields: Any) -> None:
        act = {"ask": rules.on_ask, "beat": rules.on_beat, "tell": rules.on_tell, "report": rules.on_report}[kind]
        act(self.desk, worker, validate(kind, fields))  # type: ignore[operator]  # each takes its own message
        self.pass_time(0.5)
        self.settle()

    def tick(self, seconds: float) -> None:
        self.pass_time(seconds)
        rules.on_tick(self.desk)
        self.settle()


def story() -> Story:
    world = Story()
    desk = world.desk
    desk.record("log.opened", {"log": "golden", "format": 1, "version": "0.1.0"})
    desk.record("daemon.started", {"epoch": 1, "version": "0.1.0"})
    desk.record("engine.fingerprint", {"fingerprint": "0" * 64, "engine": {"numpy": "2.0"}})
    world.admin("study.create", spec={
        "name": "s", "metric": "acc", "direction": "maximize", "seed": 3, "space": SPACE, "lease": {"default_s": 60},
        "retry": {"lost": 1, "crash": 1}, "budget": {"trials": 30},
        "enqueue": [{"x": 1, "u": 0.5, "n": 2, "k": "a"}]})
    world.say("w1", "beat", run="r1")
    for i in range(14):
        world.say("w1", "ask", id=f"a{i}", run="r1", study="s")
        number = len(desk.state.studies["s"].trials)
        if i % 5 == 3:
            world.say("w1", "report", id=f"r{i}", study="s", trial=number, fence=1, step=0, value=0.5)
        if i % 7 == 4:
            world.say("w1", "tell", id=f"t{i}", study="s", trial=number, fence=1, state="fail", error="no luck")
            world.say("w2", "ask", id=f"b{i}", run="r2", study="s")
            world.say("w2", "tell", id=f"u{i}", study="s", trial=number, fence=2, state="fail", **{"class": "oom"})
        elif i % 7 == 5:
            world.say("w1", "tell", id=f"t{i}", study="s", trial=number, fence=1, state="pruned", value=0.4)
        else:
            world.say("w1", "tell", id=f"t{i}", study="s", trial=number, fence=1, cost=1.5, seconds=2,
                      folds=[0.5 + 0.01 * i, 0.6 + 0.01 * i, 0.55])
    world.say("w1", "tell", id="nan", study="s", trial=1, fence=1, value="nan")     # another result: not logged
    world.say("w1", "ask", id="c1", run="r1", study="s")                           # lost, then late, then promoted
    lost = len(desk.state.studies["s"].trials)
    world.tick(61)
    world.say("w2", "ask", id="c2", run="r2", study="s")
    world.say("w1", "tell", id="late", study="s", trial=lost, fence=1, value=0.7)
    world.tick(61)
    world.say("w1", "ask", id="d1", run="r1", study="s")                                 # expired, then held again
    held = len(desk.state.studies["s"].trials)
    world.tick(61)
    world.say("w1", "beat", run="r1", leases=[["s", held, 1]])
    world.say("w1", "beat", run="r3", leases=[])                                         # a new run ends it
    world.say("w2", "ask", id="d2", run="r2", study="s")
    world.say("w2", "tell", id="rel", study="s", trial=held, fence=2, state="released")
    world.say("w2", "ask", id="d3", run="r2", study="s")
    world.say("w2", "tell", id="done", study="s", trial=held, fence=3, value="inf")
    world.admin("study.pause", study="s")
    world.admin("study.resume", study="s")
    world.admin("study.enqueue", study="s", params={"x": 2.5, "u": 1, "n": 3, "k": "b", "size": "large"})
    world.admin("study.amend", study="s", changes={"space": {"n": {"type": "int", "low": 1, "high": 9}}, "tags": []})
    world.say("w2", "ask", id="e1", run="r2", study="s")
    world.admin("trial.cancel", study="s", trial=len(desk.state.studies["s"].trials), reason="enough")
    world.admin("trial.void", study="s", trial=2, reason="the sensor was unplugged")
    world.say("w2", "ask", id="e2", run="r2", study="s")
    for _ in range(3):
        world.tick(25)
        world.say("w2", "beat", run="r2", leases=[["s", len(desk.state.studies["s"].trials), 1]])
    world.admin("worker.revoke", worker="w2", reason="it lies")
    world.admin("study.close", study="s", running="stop")
    for method in ("grid", "sobol", "random"):
        world.admin("study.create", spec={"name": method, "method": method, "noise": "none", "space": {
            "n": {"type": "int", "low": 1, "high": 3}, "k": {"type": "categorical", "choices": [True, 2, None]}}})
        for i in range(10):
            world.say("w3", "ask", id=f"{method}{i}", run="r9", study=method)
            if i < 9:
                world.say("w3", "tell", id=f"{method}t{i}", study=method, trial=i + 1, fence=1, value=i)
        assert desk.state.studies[method].closed_by == "exhausted"
    refs = [ref for body in map(json.loads, world.bodies) if (ref := texts.ref_of(body["type"], body["data"]))]
    world.admin("text.redact", refs=refs[:1], reason="it names a person")
    desk.record("clock.jumped", {"by_s": 3600.0})
    desk.record("daemon.stopped", {"reason": "stop"})
    world.settle()
    return world


def fork() -> Story:
    """A study with results of every kind, and two forks of it; one of them is worked on and forked again."""
    world = Story()
    desk = world.desk
    desk.record("log.opened", {"log": "golden-2", "format": 1, "version": "0.2.0"})
    desk.record("daemon.started", {"epoch": 1, "version": "0.2.0"})
    world.admin("study.create", spec={"name": "s", "method": "random", "seed": 3, "space": SPACE, "metric": "loss",
                                      "lease": {"default_s": 60}, "retry": {"lost": 1}})
    world.say("w1", "beat", run="r1")
    tells: list[dict[str, Any]] = [
        {"value": 3}, {"folds": [1.0, 2.0, 4.5], "seconds": 2.5}, {"state": "fail", "class": "oom"},
        {"state": "pruned"}, {"value": 0.5, "cost": 2}]
    for i, tell in enumerate(tells, start=1):
        world.say("w1", "ask", id=f"a{i}", run="r1", study="s")
        world.say("w1", "report", id=f"r{i}", study="s", trial=i, fence=1, step=0, value=0.25)
        world.say("w1", "tell", id=f"t{i}", study="s", trial=i, fence=1, **tell)
    world.say("w1", "ask", id="a6", run="r1", study="s")
    world.tick(61)
    world.say("w2", "ask", id="b1", run="r2", study="s")
    world.say("w1", "tell", id="late", study="s", trial=6, fence=1, value=0.125)      # and w2 is still at it
    world.admin("study.enqueue", study="s", params={"x": 2.5, "u": 1, "n": 3, "k": "b", "size": "large"})
    world.admin("study.fork", study="s", **{"as": "t", "changes": {"budget": {"trials": 3}}})
    for i in range(3):
        world.say("w3", "ask", id=f"c{i}", run="r3", study="t")
        if i < 2:
            world.say("w3", "tell", id=f"d{i}", study="t", trial=7 + i, fence=1, value=i)
    world.admin("trial.void", study="t", trial=2, reason="another data set")
    world.admin("study.fork", study="t", **{"as": "u", "changes": {
        "method": "grid", "space": {"n": {"type": "int", "low": 1, "high": 3}}}})
    return world


def confirm() -> Story:
    """Leaders are measured again, by the study file and by hand, and one of them is voided meanwhile."""
    world = Story()
    world.desk.record("log.opened", {"log": "golden-4", "format": 1, "version": "0.4.0"})
    world.desk.record("daemon.started", {"epoch": 1, "version": "0.4.0"})
    world.admin("study.create", spec={"name": "s", "method": "random", "seed": 5, "space": SPACE, "metric": "loss",
                                      "budget": {"trials": 5}, "confirm": {"top": 2, "repeats": 2}})
    for worker, run in (("w1", "r1"), ("w2", "r2")):
        world.say(worker, "beat", run=run)
    for trial, (worker, run) in enumerate([("w1", "r1"), ("w2", "r2"), ("w1", "r1"), ("w2", "r2"), ("w1", "r1")], 1):
        world.say(worker, "ask", id=f"a{trial}", run=run, study="s")
        world.say(worker, "tell", id=f"t{trial}", study="s", trial=trial, fence=1, value=[4, 1, 3, 1.5, 2][trial - 1])
    world.say("w1", "ask", id="b", run="r1", study="s", n=3)
    world.say("w1", "tell", id="t6", study="s", trial=6, fence=1, value=2.5)
    world.say("w1", "tell", id="t7", study="s", trial=7, fence=1, state="fail", **{"class": "oom"})
    world.say("w1", "tell", id="t8", study="s", trial=8, fence=1, value=1.25)
    world.say("w1", "ask", id="c", run="r1", study="s")
    world.say("w1", "tell", id="t9", study="s", trial=9, fence=1, value=2)
    assert world.desk.state.studies["s"].closed_by == "trials"
    world.admin("study.confirm", study="s", top=3, repeats=1)
    world.admin("trial.void", study="s", trial=4, reason="the sensor was unplugged")
    world.say("w2", "ask", id="d", run="r2", study="s", n=2)
    world.say("w2", "tell", id="t10", study="s", trial=10, fence=1, value=2)
    world.tick(20)
    world.say("w2", "tell", id="t11", study="s", trial=11, fence=1, value=1)
    return world


def prune() -> Story:
    """Trials are stopped at reports: one worker tells so, one never does, one goes on and delivers."""
    world = Story()
    world.desk.record("log.opened", {"log": "golden-pruned", "format": 1, "version": "0.3.0"})
    world.desk.record("daemon.started", {"epoch": 1, "version": "0.3.0"})
    world.admin("study.create", spec={"name": "s", "method": "random", "seed": 3, "space": SPACE, "metric": "loss",
                                      "lease": {"default_s": 60}, "prune": {"rule": "median", "startup": 2}})
    world.say("w1", "beat", run="r1")
    curves: list[list[Any]] = [[4.0, 2.0, 1.0], [3.0, 2.5, 2.0], [5.0, 4.0], [3.25, "nan"], [9.0], [8.0, 7.0, 0.5],
                               [2.0, 1.5, 1.25]]
    for trial, curve in enumerate(curves, start=1):
        world.say("w1", "ask", id=f"a{trial}", run="r1", study="s")
        for step, value in enumerate(curve):
            world.say("w1", "report", id=f"r{trial}.{step}", study="s", trial=trial, fence=1, step=step, value=value)
        if trial in (3, 4):
            world.say("w1", "tell", id=f"t{trial}", study="s", trial=trial, fence=1, state="pruned")
        elif trial == 5:
            world.tick(61)
        else:
            world.say("w1", "tell", id=f"t{trial}", study="s", trial=trial, fence=1, value=curve[-1])
    return world


def stop() -> Story:
    """Stop rules fire: one is taken back by an amendment, one by a void, and the last ends the study."""
    world = Story()
    world.desk.record("log.opened", {"log": "golden-stop", "format": 1, "version": "0.5.0"})
    world.desk.record("daemon.started", {"epoch": 1, "version": "0.5.0"})
    world.admin("study.create", spec={"name": "s", "method": "random", "seed": 6, "space": SPACE, "metric": "loss",
                                      "budget": {"trials": 9}, "stop": {"target": 1, "patience": 2}})
    world.say("w1", "beat", run="r1")
    world.say("w1", "ask", id="a", run="r1", study="s", n=3)
    for trial, value in enumerate([3, 4, 5], 1):       # asked for the second and third before the first was told
        world.say("w1", "ask", id=f"a{trial}", run="r1", study="s")
        world.say("w1", "tell", id=f"t{trial}", study="s", trial=trial, fence=1, value=value)
    world.admin("study.amend", study="s", changes={"stop": {"patience": 3}})
    world.say("w1", "tell", id="t4", study="s", trial=4, fence=1, value=0.5)
    world.admin("trial.void", study="s", trial=4, reason="the sensor was unplugged")
    for trial in range(5, 10):
        world.say("w1", "ask", id=f"a{trial}", run="r1", study="s")
        world.say("w1", "tell", id=f"t{trial}", study="s", trial=trial, fence=1, value=trial)
    assert world.desk.state.studies["s"].closed_by == "patience"
    return world


def pause() -> Story:
    """Trials pause at rungs and go on: one from a checkpoint to its end, one is lost on the way, one is void."""
    world = Story()
    world.desk.record("log.opened", {"log": "golden-paused", "format": 1, "version": "0.6.0"})
    world.desk.record("daemon.started", {"epoch": 1, "version": "0.6.0"})
    for rule, trials in (("asha", 12), ("hyperband", 9)):
        world.admin("study.create", spec={
            "name": rule, "method": "random", "seed": 8, "space": SPACE, "metric": "loss", "retry": {"lost": 1},
            "lease": {"default_s": 60}, "budget": {"trials": trials}, "prune": {"rule": rule, "resume": True},
            "fidelity": {"name": "epochs", "max": 9, "reduction": 3}})
    world.say("w1", "beat", run="r1")
    study = world.desk.state.studies["asha"]
    for turn in range(30):
        world.say("w1", "ask", id=f"a{turn}", run="r1", study="asha")
        if not study.running:
            break
        trial = next(iter(study.running.values()))
        lease = trial.leases[-1]
        if turn == 7:
            world.tick(61)                                    # comes too late, but nobody has it yet
        told: dict[str, Any] = {"value": (trial.number * 5 % 9) + 1.5 / lease.fence}
        if turn % 3:
            told["checkpoint"] = f"run-{trial.number}-{lease.fence}"
        if turn == 9:
            told = {"state": "fail", "class": "oom", "error": "no luck"}
        world.say("w1", "tell", id=f"t{turn}", study="asha", trial=trial.number, fence=lease.fence, seconds=2.5, **told)
        if turn == 4:
            world.admin("trial.void", study="asha", trial=2, reason="the sensor was unplugged")
    assert study.closed_by == "trials"
    for number in range(1, 7):
        world.say("w2", "ask", id=f"b{number}", run="r2", study="hyperband")
    for number in range(1, 6):
        world.say("w2", "tell", id=f"u{number}", study="hyperband", trial=number, fence=1, value=number,
                  checkpoint=f"b-{number}")
    world.say("w3", "ask", id="c", run="r3", study="hyperband")
    world.tick(61)                                            # both are lost, and leased again
    world.say("w3", "ask", id="d", run="r3", study="hyperband", n=2)
    world.say("w2", "tell", id="u6", study="hyperband", trial=6, fence=1, value=6)
    world.tick(61)
    world.admin("study.close", study="hyperband")
    return world


def warm() -> Story:
    """An earlier study helps another; a trial of it is voided, and the other one is forked."""
    world = Story()
    world.desk.record("log.opened", {"log": "golden-warm", "format": 1, "version": "0.5.0"})
    world.desk.record("daemon.started", {"epoch": 1, "version": "0.5.0"})
    world.admin("study.create", spec={"name": "s", "method": "random", "seed": 4, "space": SPACE, "metric": "loss"})
    world.say("w1", "beat", run="r1")

    def measure(study: str, trials: range) -> None:
        for trial in trials:
            world.say("w1", "ask", id=f"{study}{trial}", run="r1", study=study)
            world.say("w1", "tell", id=f"{study}t{trial}", study=study, trial=trial, fence=1, value=(trial - 3) ** 2)

    measure("s", range(1, 7))
    world.admin("study.create", spec={"name": "t", "seed": 5, "space": SPACE, "metric": "loss",
                                      "warm_start": [{"study": "s", "points": 1}]})
    measure("t", range(1, 9))
    world.admin("trial.void", study="s", trial=3, reason="the sensor was unplugged")
    measure("t", range(9, 11))
    world.admin("study.fork", study="t", **{"as": "u", "changes": {"budget": {"trials": 3}}})
    measure("u", range(11, 13))
    return world


def main() -> None:
    world = {"life": story, "fork": fork, "confirm": confirm, "prune": prune, "stop": stop,
             "pause": pause, "warm": warm}[sys.argv[1]]()
    lines = [body.decode() for body in world.bodies]
    Path(sys.argv[2]).write_text("\n".join([*lines, json.dumps({
        "digest": snapshot.digest(world.desk.state), "knowledge": {
            name: knowledge_digest(study) for name, study in world.desk.state.studies.items()}})]) + "\n",
                                 encoding="utf-8")


if __name__ == "__main__":
    main()
