"""The wire contract held against a real daemon from outside, rule by rule; the numbers are the contract's."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.edges.daemon import Body, Daemon, Wire, lease, serving

from bayesd.logfile import read_texts
from bayesd.study.texts import resolved

pytestmark = pytest.mark.mosquitto

RECORDED = {"id", "status", "seq", "hash"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Wire]]:
    with serving(tmp_path_factory.mktemp("wire")) as both:
        yield both


@pytest.fixture
def wire(both: tuple[Daemon, Wire]) -> Wire:
    return both[1]


@pytest.fixture
def daemon(both: tuple[Daemon, Wire]) -> Daemon:
    return both[0]


def events(daemon: Daemon, study: str) -> list[Body]:
    return [event for event in daemon.events() if event.get("study") == study]


def types(daemon: Daemon, study: str) -> list[str]:
    return [event["type"] for event in events(daemon, study)]


# ---------------------------------------------------------------- the exchange, and the shape of every message


def test_the_exchange_of_the_contract(wire: Wire, daemon: Daemon) -> None:
    wire.create("exchange", metric="accuracy", direction="maximize", budget={"trials": 1}, space={
        "C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
        "kernel": {"type": "categorical", "choices": ["rbf"]},
        "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "rbf"}}})
    w = wire.worker("ex1", run="4f2a")
    w.beat()
    grant = w.lease("exchange", "4f2a.1")
    assert grant.keys() == {"ask", "run", "study", "trial", "fence", "params", "lease_s", "at", "epoch", "space_rev"}
    assert (grant["ask"], grant["run"], grant["study"]) == ("4f2a.1", "4f2a", "exchange")
    assert (grant["trial"], grant["fence"], grant["lease_s"], grant["epoch"], grant["space_rev"]) == (1, 1, 600, 1, 1)
    assert grant["at"].endswith("Z")
    w.beat(grant)
    w.report("r.1", grant, 0, 0.81)
    assert w.receipt("r.1").keys() == RECORDED
    w.tell("t.1", grant, value=0.94, seconds=12.5, ask={"id": "4f2a.2", "run": "4f2a", "study": "exchange"})
    (_, first), (_, second) = w.heard()
    assert first.keys() == RECORDED
    assert first["status"] == "recorded"
    assert second == {"id": "4f2a.2", "run": "4f2a", "status": "closed", "reason": "budget"}


def test_params_hold_the_active_ones_only(wire: Wire) -> None:
    wire.create("active", method="grid", space={
        "kernel": {"type": "categorical", "choices": ["rbf", "poly"]},
        "degree": {"type": "int", "low": 2, "high": 3, "when": {"kernel": "poly"}}})
    w = wire.worker("active1")
    w.ask("a", study="active", n=3)
    params = [w.grant("a")["params"] for _ in range(3)]
    assert sorted(map(str, params)) == sorted(map(str, [
        {"kernel": "rbf"}, {"kernel": "poly", "degree": 2}, {"kernel": "poly", "degree": 3}]))


def test_a_receipt_names_what_is_on_disk(wire: Wire, daemon: Daemon) -> None:
    wire.create("disk")
    w = wire.worker("disk1")
    receipt = w.told("t", w.lease("disk", "a"), value=0.5)
    body = daemon.events()[receipt["seq"] - 1]
    assert body["type"] == "trial.completed"
    raw = json.dumps(body, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    assert hashlib.sha256(b"\0" + raw).hexdigest() == receipt["hash"]


def test_nothing_under_to_is_retained_and_the_state_is(wire: Wire) -> None:
    wire.create("kept", budget={"trials": 7}, metric="loss")
    w = wire.worker("kept1")
    w.told("t", w.lease("kept", "a"), value=0.5)
    wire.until(lambda: (wire.study("kept") or {}).get("trials", {}).get("complete") == 1, "the state shows the trial")
    with Wire(f"mqtt://127.0.0.1:{wire.port}") as later:
        later.until(lambda: later.study("kept") is not None and later.daemon is not None, "what is retained comes")
        assert later.heard("nobody") == []
        assert not any(any(flags) for topic, flags in later.flags.items() if topic.startswith("to/"))
        assert later.flags["study/kept"][0]
        state, daemon = later.study("kept"), later.daemon
    assert state is not None
    assert daemon is not None
    assert daemon.keys() == {"state", "version", "log", "epoch"}
    assert state.keys() == {"study", "state", "closed_by", "objectives", "space", "space_rev", "trials", "budget",
                            "best", "eta_s", "eta", "cost", "log", "epoch", "seq"}
    assert state["objectives"] == [{"name": "loss", "direction": "minimize"}]
    assert (state["log"], state["epoch"]) == (daemon["log"], daemon["epoch"])
    assert state["best"]["value"] == 0.5


def test_the_public_state_comes_at_most_once_a_second(wire: Wire) -> None:
    wire.create("calm")
    w = wire.worker("calm1")
    wire.until(lambda: wire.study("calm") is not None, "the state is published")
    began_s, before = time.monotonic(), len(wire.flags["study/calm"])
    for i in range(30):
        w.told(f"t{i}", w.lease("calm", f"a{i}"), value=i)
    wire.until(lambda: (wire.study("calm") or {})["trials"]["complete"] == 30, "the state shows all")
    assert len(wire.flags["study/calm"]) - before <= time.monotonic() - began_s + 2


# ---------------------------------------------------------------- 2: everything may arrive twice, late, in any order


def test_copies_and_second_tells(wire: Wire) -> None:
    wire.create("copies")
    w = wire.worker("copies1")
    grant = w.lease("copies", "a")
    assert w.told("bad", grant, value="much")["reason"] == "bad-field"       # a rejection is not remembered
    first = w.told("t1", grant, value=0.5, seconds=1.5)
    assert first["status"] == "recorded"
    again = w.told("t2", grant, value=0.5, seconds=99, state="complete", unknown="field")
    assert again == {**first, "id": "t2", "status": "duplicate"}
    other = w.told("t1", grant, value=0.6)
    assert (other["status"], other["seq"]) == ("late", first["seq"])
    assert w.told("t3", grant, state="fail")["status"] == "late"
    assert w.told("t4", grant, value=0.5)["status"] == "duplicate"


@pytest.mark.parametrize(("value", "same"), [(b"NaN", b"null"), (b"Infinity", b'"inf"'), (b'"nan"', b"-Infinity"),
                                             (b"1e301", b"null"), (b"-1e400", b'"-Infinity"')])
def test_what_is_not_finite_is_a_failure_and_one_value(wire: Wire, daemon: Daemon, value: bytes, same: bytes) -> None:
    id = hashlib.sha256(value).hexdigest()[:8]
    wire.create(f"finite-{id}")
    w = wire.worker("finite1")
    grant = w.lease(f"finite-{id}", id)
    fields = json.dumps({"id": f"t.{id}", **lease(grant)}).encode()[:-1]
    w.say("tell", fields + b',"value":' + value + b"}")
    receipt = w.receipt(f"t.{id}")
    assert receipt["status"] == "recorded"
    event = daemon.events()[receipt["seq"] - 1]
    assert (event["type"], event["data"]["class"], event["data"]["values"]) == (
        "trial.failed", "nonfinite", {"value": None})
    w.say("tell", fields + b',"value":' + same + b"}")
    assert w.receipt(f"t.{id}")["status"] == "duplicate"


def test_reports_count_once_a_step(wire: Wire) -> None:
    wire.create("steps")
    w = wire.worker("steps1")
    grant = w.lease("steps", "a")
    w.report("r0", grant, 0, 0.1)
    first = w.receipt("r0")
    w.report("r0.again", grant, 0, 0.1)
    assert w.receipt("r0.again") == {**first, "id": "r0.again", "status": "duplicate"}
    w.report("r0.other", grant, 0, 0.2)
    assert w.receipt("r0.other")["status"] == "late"
    w.report("r1", grant, 1, "nan")
    assert w.receipt("r1")["status"] == "recorded"
    w.say("report", {"id": "r2", **lease(grant), "step": 2})
    assert w.receipt("r2")["reason"] == "bad-field"
    reports = wire.ok("trial.show", {"study": "steps", "trial": 1})["reports"]
    assert reports == [[0, {"value": 0.1}], [1, {"value": None}]]


# ---------------------------------------------------------------- 3: asks


def test_an_ask_and_its_copies(wire: Wire) -> None:
    wire.create("asks")
    w = wire.worker("asks1")
    w.ask("a", study="asks", n=2, lease_s=50)
    one, two = w.grant("a"), w.grant("a")
    assert (one["trial"], two["trial"], one["lease_s"]) == (1, 2, 50)
    w.ask("a", study="asks", n=2)
    assert w.heard() == [("grant", one), ("grant", two)]
    assert w.told("t1", one, value=1)["status"] == "recorded"
    w.ask("a", study="asks", n=2)
    assert w.heard() == [("grant", two)]
    w.ask("a", study="asks", n=3)                           # its open leases first, then what is new
    assert w.grant("a") == two
    three = w.grant("a")
    assert three["trial"] == 3
    w.told("t2", two, value=1)
    w.told("t3", three, value=1)
    w.ask("a", study="asks", n=3)
    assert w.receipt("a") == {"id": "a", "run": "r1", "status": "duplicate"}


def test_the_reasons_to_wait(wire: Wire) -> None:
    w = wire.worker("waits1")

    def answer(study: str, **fields: Any) -> tuple[str, str | None]:
        w.ask(f"a.{study}", study=study, **fields)
        receipt = w.receipt(f"a.{study}")
        assert receipt["run"] == "r1"
        return receipt["status"], receipt.get("reason")

    assert answer("not-there") == ("waiting", "unknown-study")
    wire.create("tagged", tags=["gpu", "big"])
    assert answer("tagged", tags=["gpu"]) == ("waiting", "no-matching-tags")
    w.ask("a.tagged", study="tagged", tags=["big", "gpu", "more"])
    assert w.grant("a.tagged")["study"] == "tagged"
    wire.create("paused")
    wire.ok("study.pause", {"study": "paused"})
    assert answer("paused") == ("waiting", "paused")
    wire.ok("study.resume", {"study": "paused"})
    assert w.grant("a.paused")["trial"] == 1                # it stood, and is served when it can be
    wire.create("last", budget={"trials": 1})
    last = w.lease("last", "first")
    assert answer("last") == ("waiting", "budget")
    w.told("t", last, value=1)
    assert w.receipt("a.last") == {"id": "a.last", "run": "r1", "status": "closed", "reason": "budget"}
    assert answer("last") == ("closed", "budget")
    wire.create("grid", method="grid", space={"k": {"type": "categorical", "choices": ["a", "b"]}})
    grid = [w.lease("grid", "g1"), w.lease("grid", "g2")]
    assert answer("grid") == ("waiting", "exhausted")
    for number, grant in enumerate(grid):
        w.told(f"tg{number}", grant, value=1)
    assert w.receipt("a.grid") == {"id": "a.grid", "run": "r1", "status": "closed", "reason": "exhausted"}


def test_an_ask_is_answered_within_two_seconds_whatever_the_optimiser_does(wire: Wire) -> None:
    space = {f"x{i}": {"type": "float", "low": 0.0, "high": 1.0} for i in range(20)}
    wire.create("slow", method="bayes", space=space)
    w = wire.worker("slow1")
    for i in range(25):
        grant = w.lease("slow", f"a{i}", n=1)
        w.told(f"t{i}", grant, value=sum(grant["params"].values()))
    began_s = time.monotonic()
    w.ask("z", study="slow")
    wire.take("slow1", lambda kind, body: "z" in (body.get("id"), body.get("ask")), "an answer")
    assert time.monotonic() - began_s < 2.0


def test_a_withdrawn_ask_is_not_revived(wire: Wire) -> None:
    wire.create("drawn")
    wire.ok("study.pause", {"study": "drawn"})
    w = wire.worker("drawn1")
    w.ask("a", study="drawn")
    assert w.receipt("a")["reason"] == "paused"
    for n in (0, 0, 1):                                     # the last is an older copy that came late
        w.ask("a", study="drawn", n=n)
        assert w.receipt("a") == {"id": "a", "run": "r1", "status": "closed", "reason": "withdrawn"}
    wire.ok("study.resume", {"study": "drawn"})
    assert w.lease("drawn", "b")["trial"] == 1
    assert w.heard() == []


def test_a_lease_that_ended_untold_gives_its_place_back(wire: Wire) -> None:
    wire.create("place", retry={"lost": 5})
    w = wire.worker("place1")
    first = w.lease("place", "a", lease_s=0.2)
    wire.until(lambda: (wire.study("place") or {}).get("trials", {}).get("waiting") == 1, "the lease has run out")
    again = w.lease("place", "a")
    assert (again["trial"], again["fence"]) == (first["trial"], 2)
    assert again["params"] == first["params"]
    assert w.told("r", again, state="released")["status"] == "recorded"
    assert w.lease("place", "a")["fence"] == 3


# ---------------------------------------------------------------- 4: beats and runs


def test_a_beat_renews_what_it_lists(wire: Wire, daemon: Daemon) -> None:
    wire.create("renew")
    w = wire.worker("renew1")
    w.beat()
    kept, left = w.lease("renew", "a", lease_s=0.8), w.lease("renew", "b", lease_s=0.8)
    until_s = time.monotonic() + 2.0
    while time.monotonic() < until_s:
        w.beat(kept)
        w.heard()
    expired = [event for event in events(daemon, "renew") if event["type"] == "lease.expired"]
    assert [event["trial"] for event in expired] == [left["trial"]]


def test_a_lease_that_two_beats_leave_out_is_granted_again(wire: Wire) -> None:
    wire.create("missed")
    w = wire.worker("missed1")
    w.beat()
    grant = w.lease("missed", "a")
    w.beat()
    assert w.heard() == []
    w.beat()
    assert w.heard() == [("grant", grant)]


def test_a_listed_lease_that_is_not_held_is_stopped(wire: Wire) -> None:
    wire.create("stopped")
    w = wire.worker("stopped1")
    w.beat(leases=[["stopped", 1, 1], ["nowhere", 7, 3]])
    assert w.heard() == [
        ("stop", {"study": "stopped", "trial": 1, "fence": 1, "reason": "superseded"}),
        ("stop", {"study": "nowhere", "trial": 7, "fence": 3, "reason": "superseded"})]


def test_an_expired_lease_is_held_again(wire: Wire, daemon: Daemon) -> None:
    wire.create("held", retry={"lost": 0})
    w = wire.worker("held1")
    w.beat()
    grant = w.lease("held", "a", lease_s=0.2)
    wire.until(lambda: "trial.failed" in types(daemon, "held"), "the trial is lost, provisionally")
    w.beat(grant)
    assert w.heard() == []
    assert types(daemon, "held")[-1] == "lease.held"
    receipt = w.told("t", grant, value=1)
    assert receipt["status"] == "recorded"
    page = wire.ok("trial.show", {"study": "held", "trial": 1})
    assert (page["state"], page["fence"], page["failures"].get("lost", 0)) == ("complete", 1, 0)


def test_a_new_run_takes_over_what_it_lists_and_ends_the_others(wire: Wire, daemon: Daemon) -> None:
    wire.create("runs")
    old, new = wire.worker("runs1", run="old"), wire.worker("runs1", run="new")
    old.beat()
    mine, lost = old.lease("runs", "a"), old.lease("runs", "b")
    new.ask("n0", study="runs")                             # a run that has not beaten is served and ends nothing
    early = new.grant("n0")
    assert "lease.expired" not in types(daemon, "runs")
    new.beat(mine, early)
    assert new.heard() == []
    began = [event for event in daemon.events() if event["type"] == "run.began" and event["data"]["worker"] == "runs1"]
    assert began[-1]["data"] == {"worker": "runs1", "run": "new", "took": [["runs", 1, 1], ["runs", 3, 1]],
                                 "ended": [["runs", 2, 1]]}
    taken = new.lease("runs", "n1")                         # what came back goes before any new trial
    assert (taken["trial"], taken["fence"]) == (lost["trial"], 2)
    no = {"id": "old", "run": "old", "status": "rejected", "reason": "name-in-use"}
    old.beat(mine)
    old.ask("c", study="runs")
    assert old.heard() == [("receipt", no), ("receipt", no)]
    assert old.told("t1", mine, value=1)["status"] == "recorded"
    assert old.told("t2", lost, value=1)["status"] == "late"
    old.report("r3", early, 0, 1)                           # and so do its reports
    assert old.receipt("r3")["status"] == "recorded"


# ---------------------------------------------------------------- 5: leases and fences


def test_a_tell_long_after_the_lease_counts_if_nobody_took_the_trial(wire: Wire) -> None:
    wire.create("offline")
    w = wire.worker("offline1")
    grant = w.lease("offline", "a", lease_s=0.2)
    wire.until(lambda: (wire.study("offline") or {}).get("trials", {}).get("waiting") == 1, "the lease has run out")
    assert w.told("t", grant, value=1)["status"] == "recorded"


def test_an_older_fence_is_late(wire: Wire) -> None:
    wire.create("fences")
    w1, w2 = wire.worker("fences1"), wire.worker("fences2")
    old = w1.lease("fences", "a", lease_s=0.2)
    wire.until(lambda: (wire.study("fences") or {}).get("trials", {}).get("waiting") == 1, "the lease has run out")
    new = w2.lease("fences", "a")
    assert (new["trial"], new["fence"]) == (1, 2)
    w1.report("r", old, 0, 1)
    assert w1.receipt("r") == {"id": "r", "status": "late", "stop": "superseded"}
    late = w1.told("t", old, value=1)
    assert late["status"] == "late"
    assert w1.told("t", old, value=1) == late
    assert w2.told("t", new, value=2)["status"] == "recorded"
    page = wire.ok("trial.show", {"study": "fences", "trial": 1})
    assert page["values"] == {"value": 2}
    assert [outcome["values"] for outcome in page["late"]] == [{"value": 1}]


def test_a_late_outcome_becomes_the_result_when_nobody_else_answers(wire: Wire, daemon: Daemon) -> None:
    wire.create("promoted", retry={"lost": 1})
    w1, w2 = wire.worker("promoted1"), wire.worker("promoted2")
    old = w1.lease("promoted", "a", lease_s=0.2)
    wire.until(lambda: (wire.study("promoted") or {}).get("trials", {}).get("waiting") == 1, "the lease has run out")
    w2.lease("promoted", "a", lease_s=0.5)
    late = w1.told("t", old, value=1)
    assert late["status"] == "late"
    wire.until(lambda: types(daemon, "promoted")[-1] == "trial.completed", "the late outcome is the result")
    assert events(daemon, "promoted")[-1]["data"]["promoted"] == late["seq"]


def test_a_tell_counts_only_from_the_worker_it_was_leased_to(wire: Wire) -> None:
    wire.create("theirs")
    grant = wire.worker("theirs1").lease("theirs", "a")
    other = wire.worker("theirs2")

    def reason(**fields: Any) -> tuple[str, str]:
        receipt = other.told("t", {**grant, **fields}, value=1)
        return receipt["status"], receipt["reason"]

    assert reason() == ("rejected", "unknown-trial")
    assert reason(trial=2) == ("rejected", "unknown-trial")
    assert reason(fence=2) == ("rejected", "unknown-trial")
    assert reason(study="nowhere") == ("rejected", "unknown-study")


# ---------------------------------------------------------------- 7: what a tell says


def test_the_states_of_a_tell(wire: Wire, daemon: Daemon) -> None:
    wire.create("states")
    w = wire.worker("states1")

    def outcome(id: str, **fields: Any) -> tuple[str, Any]:
        receipt = w.told(id, w.lease("states", id), **fields)
        assert receipt["status"] == "recorded", receipt
        event = resolved(daemon.events()[receipt["seq"] - 1], read_texts(daemon.log))
        return event["type"], {key: value for key, value in event["data"].items()
                               if key in ("class", "values", "error", "cost", "folds", "se")}

    assert outcome("a", state="fail") == ("trial.failed", {"class": "crash"})
    assert outcome("b", state="fail", **{"class": "oom"}, error="no memory") == (
        "trial.failed", {"class": "oom", "error": "no memory"})
    assert outcome("c", state="pruned") == ("trial.pruned", {})
    assert outcome("d", state="pruned", value=3) == ("trial.pruned", {"values": {"value": 3}})
    assert outcome("e", values={"value": 1, "other": 2}, cost=0.5) == (
        "trial.completed", {"values": {"value": 1, "other": 2}, "cost": 0.5})
    type, data = outcome("f", folds=[1, 2, 3])
    assert (type, data["values"], data["folds"]) == ("trial.completed", {"value": 2}, [1, 2, 3])
    assert outcome("g", folds=[1, None])[1]["class"] == "nonfinite"
    _, data = outcome("h", state="fail", error="ü" * 4000)
    assert len(data["error"].encode()) == 4096
    assert w.told("i", w.lease("states", "i"), values={"other": 2})["reason"] == "bad-field"
    assert w.told("i", w.lease("states", "i"), value=1, folds=[1])["reason"] == "bad-field"


def test_several_objectives(wire: Wire) -> None:
    wire.create("goals", objectives=[{"name": "loss"}, {"name": "speed", "direction": "maximize"}])
    w = wire.worker("goals1")
    grant = w.lease("goals", "a")
    assert w.told("t", grant, value=1)["reason"] == "bad-field"
    assert w.told("t", grant, folds=[1])["reason"] == "bad-field"
    assert w.told("t", grant, values={"loss": 1})["reason"] == "bad-field"
    assert w.told("t", grant, values={"loss": 1, "speed": 2})["status"] == "recorded"


def test_released_is_offered_again_at_once_and_counts_no_retry(wire: Wire) -> None:
    wire.create("given", retry={"lost": 0})
    w1, w2 = wire.worker("given1"), wire.worker("given2")
    grant = w1.lease("given", "a")
    first = w1.told("t", grant, state="released")
    assert first["status"] == "recorded"
    assert w1.told("t", grant, state="released") == {**first, "status": "duplicate"}
    again = w2.lease("given", "a")
    assert (again["trial"], again["fence"], again["params"]) == (1, 2, grant["params"])
    assert wire.ok("trial.show", {"study": "given", "trial": 1})["failures"] == {}


def test_failures_are_retried_as_the_study_says(wire: Wire) -> None:
    wire.create("retry", retry={"crash": 1})
    w = wire.worker("retry1")
    grant = w.lease("retry", "a")
    first = w.told("t", grant, state="fail")
    assert w.told("t", grant, state="fail") == {**first, "status": "duplicate"}
    again = w.lease("retry", "b")
    assert (again["trial"], again["fence"]) == (1, 2)
    w.told("t2", again, state="fail")
    assert w.lease("retry", "c")["trial"] == 2


# ---------------------------------------------------------------- 9: the ask inside a tell


@pytest.mark.parametrize(("number", "fields", "status"), [
    (1, {"value": 1}, "recorded"), (2, {"value": "much"}, "rejected"), (3, {"value": 1, "trial": 99}, "rejected"),
    (4, {"value": 1, "study": "nowhere"}, "rejected"), (5, {"value": 1, "fence": 0}, "rejected")])
def test_the_ask_inside_a_tell_is_judged_alone(wire: Wire, number: int, fields: Body, status: str) -> None:
    wire.create(f"inside{number}")
    w = wire.worker(f"inside{number}")
    grant = w.lease(f"inside{number}", "a")
    w.say("tell", {"id": "t", **lease(grant), "ask": {"id": "b", "run": "r1", "study": f"inside{number}"}, **fields})
    assert w.receipt("t")["status"] == status
    assert w.grant("b")["trial"] == 2
    assert w.heard() == []


def test_a_bad_ask_inside_a_tell_leaves_the_tell_alone(wire: Wire) -> None:
    wire.create("outside")
    w = wire.worker("outside1")
    grant = w.lease("outside", "a")
    w.tell("t", grant, value=1, ask={"id": "b", "run": "r1", "n": "many"})
    first, second = w.heard()
    assert first[1]["status"] == "recorded"
    assert second[1]["id"] == "b"
    assert (second[1]["run"], second[1]["status"], second[1]["reason"]) == ("r1", "rejected", "bad-field")
    nonsense: list[Any] = [7, [], "b", {"run": "r1"}]       # nobody to answer to
    for ask in nonsense:
        w.tell("t", grant, value=1, ask=ask)
    assert [body["status"] for _, body in w.heard()] == ["duplicate"] * 4


# ---------------------------------------------------------------- closing


def test_the_budget_of_trials_counts_first_leases(wire: Wire) -> None:
    wire.create("trials", budget={"trials": 2}, retry={"crash": 1})
    w = wire.worker("trials1")
    one = w.lease("trials", "a")
    w.told("t1", one, state="fail")
    two = w.lease("trials", "b")
    assert (two["trial"], two["fence"]) == (1, 2)            # a retry does not count
    three = w.lease("trials", "c")
    wire.ok("trial.void", {"study": "trials", "trial": 1, "reason": "a wrong sensor"})
    assert w.stop(two)["reason"] == "cancelled"
    four = w.lease("trials", "d")                            # nor does a void
    w.told("t3", three, value=1)
    w.told("t4", four, value=1)
    w.ask("e", study="trials")
    assert w.receipt("e")["reason"] == "budget"
    wire.until(lambda: (wire.study("trials") or {}).get("closed_by") == "trials", "the rule that fired is shown")


def test_cost_closes_at_once_and_open_leases_are_still_recorded(wire: Wire) -> None:
    wire.create("cost", budget={"cost": 1.0})
    w = wire.worker("cost1")
    one, two, three = (w.lease("cost", id) for id in "abc")
    w.told("t1", one, value=1, cost=0.6)
    w.told("t2", two, state="fail", cost=0.6)
    w.ask("d", study="cost")
    assert w.receipt("d") == {"id": "d", "run": "r1", "status": "closed", "reason": "budget"}
    assert w.told("t3", three, value=1)["status"] == "recorded"


def test_wall_closes_and_tells_who_stands(wire: Wire) -> None:
    wire.create("wall", budget={"wall": 0.5, "trials": 1})
    w = wire.worker("wall1")
    grant = w.lease("wall", "a", lease_s=1.5)
    w.ask("b", study="wall")
    assert w.receipt("b")["status"] == "waiting"
    assert w.receipt("b") == {"id": "b", "run": "r1", "status": "closed", "reason": "budget"}
    wire.until(lambda: wire.ok("trial.show", {"study": "wall", "trial": 1})["class"] == "lost", "it ends untold")
    assert w.told("t", grant, value=1)["status"] == "recorded"       # provisional, also after a close
    assert wire.ok("study.show", {"study": "wall"})["closed_by"] == "wall"


def test_close_by_an_operator(wire: Wire) -> None:
    wire.create("finish")
    wire.create("stop")
    w = wire.worker("close1")
    finish, stop = w.lease("finish", "a"), w.lease("stop", "b")
    wire.ok("study.close", {"study": "finish"})
    wire.ok("study.close", {"study": "stop", "running": "stop"})
    assert w.heard() == [("stop", {**lease(stop), "reason": "closed"})]
    assert w.told("t1", finish, value=1)["status"] == "recorded"
    assert w.told("t2", stop, value=1)["status"] == "recorded"
    w.ask("c", study="stop")
    assert w.receipt("c") == {"id": "c", "run": "r1", "status": "closed", "reason": "operator"}
    assert wire.request("study.close", {"study": "stop"})["status"] == "exists"
    assert wire.request("study.resume", {"study": "stop"})["error"]["code"] == "closed"


# ---------------------------------------------------------------- 11 and 13: operators


def test_a_study_file_is_used_once(wire: Wire, daemon: Daemon) -> None:
    spec = {"name": "once", "method": "random", "space": {"x": {"type": "float", "low": 0, "high": 1}}}
    first = wire.request("study.create", {"spec": spec}, id="c1")
    assert first["status"] == "ok"
    copy = wire.request("study.create", {"spec": spec}, id="c1")
    assert (copy["status"], copy["result"]["seq"]) == ("ok", first["result"]["seq"])
    assert wire.request("study.create", {"spec": spec})["status"] == "exists"
    other = wire.request("study.create", {"spec": {**spec, "seed": 3}})
    assert (other["status"], other["error"]["key"]) == ("error", "name")
    wrong = wire.request("study.create", {"spec": {**spec, "name": "twice", "sede": 3}})
    assert wrong["error"]["key"] == "sede"
    assert types(daemon, "once") == ["study.created"]
    assert types(daemon, "twice") == []


def test_a_copy_of_a_write_is_answered_from_its_event(wire: Wire, daemon: Daemon) -> None:
    wire.create("writes")
    first = wire.request("study.enqueue", {"study": "writes", "params": {"x": 0.25}}, id="e1")
    again = wire.request("study.enqueue", {"study": "writes", "params": {"x": 0.25}}, id="e1")
    assert again["result"] == {"seq": first["result"]["seq"], "event": "point.enqueued", "again": True}
    other = wire.request("study.enqueue", {"study": "writes", "params": {"x": 0.5}}, id="e1", client="op2")
    assert "again" not in other["result"]                   # (client, id) is the key
    _, *enqueued = events(daemon, "writes")
    assert [(event["actor"], event["cmd"]) for event in enqueued] == [("operator/op", "e1"), ("operator/op2", "e1")]
    assert wire.worker("writes1").lease("writes", "a")["params"] == {"x": 0.25}


def test_amend_moves_the_space_revision(wire: Wire) -> None:
    wire.create("amend")
    wire.ok("study.amend", {"study": "amend", "changes": {"space": {"y": {"type": "int", "low": 0, "high": 3}}}})
    grant = wire.worker("amend1").lease("amend", "a")
    assert (grant["space_rev"], grant["params"].keys()) == (2, {"x", "y"})


def test_cancel_void_and_revoke(wire: Wire) -> None:
    wire.create("ends")
    w1, w2 = wire.worker("ends1"), wire.worker("ends2")
    cancelled, revoked = w1.lease("ends", "a"), w2.lease("ends", "a")
    wire.ok("trial.cancel", {"study": "ends", "trial": cancelled["trial"]})
    assert w1.stop(cancelled)["reason"] == "cancelled"
    w1.report("r", cancelled, 0, 1)
    assert w1.receipt("r") == {"id": "r", "status": "late", "stop": "cancelled"}
    assert w1.told("t", cancelled, value=1)["status"] == "late"
    wire.ok("worker.revoke", {"worker": "ends2"})
    assert w2.stop(revoked)["reason"] == "cancelled"
    assert w2.told("t", revoked, value=1)["status"] == "rejected"
    again = w1.lease("ends", "b")
    assert (again["trial"], again["fence"]) == (revoked["trial"], 2)


def test_a_name_is_a_worker_or_an_operator(wire: Wire) -> None:
    wire.create("names")
    w = wire.worker("names1")
    grant = w.lease("names", "a")
    assert wire.request("study.list", client="names1")["error"]["code"] == "name-in-use"
    wire.ok("study.list", client="names-op")
    op = wire.worker("names-op")
    op.ask("a", study="names")
    assert op.receipt("a")["status"] == "rejected"
    op.beat()
    assert op.receipt("r1")["status"] == "rejected"
    assert op.told("t", grant, value=1)["status"] == "rejected"


def test_an_unknown_verb_names_those_that_are(wire: Wire) -> None:
    reply = wire.request("study.explode")
    assert reply["status"] == "error"
    for verb in ("study.best", "events", "trial.void", "worker.revoke"):
        assert verb in reply["error"]["message"]


def test_reads_page_and_no_reply_is_too_large(wire: Wire) -> None:
    wire.create("pages", space={"c": {"type": "categorical", "choices": ["a" * 1000, "b" * 1000]}})
    w = wire.worker("pages1")
    w.ask("a", study="pages", n=150)
    grants = [w.grant("a") for _ in range(150)]
    for step in range(3000):
        w.report(f"r{step}", grants[0], step, step)
    w.heard()

    def pages(verb: str, name: str, **args: Any) -> list[Any]:
        found: list[Any] = []
        after: Any = None
        while True:
            result = wire.ok(verb, {**args, **({} if after is None else {"after": after})})
            found += result[name]
            if "next" not in result:
                return found
            assert result["next"] != after
            after = result["next"]

    assert [row["trial"] for row in pages("trial.list", "trials", study="pages")] == list(range(1, 151))
    assert len(pages("trial.list", "trials", study="pages", limit=7)) == 150
    assert [step for step, _ in pages("trial.show", "reports", study="pages", trial=1)] == list(range(3000))
    assert "pages1" in [row["worker"] for row in pages("worker.list", "workers")]
    seqs = [event["seq"] for event in pages("events", "events")]
    assert seqs == list(range(1, len(seqs) + 1))
    assert wire.request("trial.list", {"study": "pages", "limit": 0})["error"]["key"] == "limit"
    assert wire.largest_reply_bytes <= 60 * 1024


def test_a_large_study_file_is_shown_in_one_reply(wire: Wire) -> None:
    wire.create("large", space={f"c{i}": {"type": "categorical", "choices": ["a" * 900, "b"]} for i in range(45)})
    assert len(wire.ok("study.show", {"study": "large"})["space"]) == 45
    assert wire.largest_reply_bytes <= 60 * 1024


def test_best_says_why(wire: Wire) -> None:
    wire.create("best")
    w = wire.worker("best1")
    for value in (3, 1, 2):
        w.told(f"t{value}", w.lease("best", f"a{value}"), value=value)
    for rule in ("best", "mean", "one-se"):
        assert wire.ok("study.best", {"study": "best", "rule": rule})["trial"] in (1, 2, 3)
    assert wire.ok("study.best", {"study": "best", "rule": "best"})["trial"] == 2
    assert wire.request("study.best", {"study": "best", "rule": ["best"]})["status"] == "error"


def test_events_are_not_published_unless_asked_for(wire: Wire) -> None:
    assert not [topic for topic in wire.flags if topic.endswith("/events")]
