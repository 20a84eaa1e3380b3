"""`bayesd why`: pages of every kind of trial, study and worker, made of real small logs, and read as a person would."""

import asyncio
import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell
from tests.edges.test_cli_log import spoil
from tests.edges.test_service import Worker, begin
from tests.study.races import raced
from tests.study.story import Story
from tests.study.test_promotion import climbing

from bayesd import Study
from bayesd.inprocess import Exhausted
from bayesd.log import MemoryDisk, Row
from bayesd.optimize import samplers, suggest
from bayesd.optimize.explain import share_of_mean
from bayesd.replay import event_of
from bayesd.study import rules
from bayesd.study.problem import NONE_NEW, Problem
from bayesd.study.state import Event
from bayesd.testing import Daemon, MemoryBroker, run
from bayesd.why import chart, pages, words
from bayesd.why.witness import Witness
from bayesd.why.worker import Diary, worker_page

FLOAT = {"type": "float", "low": 0.0, "high": 1.0}
LOG = {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"}
KERNEL = {"type": "categorical", "choices": ["rbf", "poly"]}
DEGREE = {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}
MIXED = {"C": LOG, "kernel": KERNEL, "degree": DEGREE, "gamma": FLOAT}


class Engine(Story):
    """A story whose points come from the optimiser itself."""

    def think(self) -> None:
        for order in rules.orders(self.desk):
            rules.supply(self.desk, order, suggest(order.problem, order.wanted))

    def a_trial(self, worker: str = "w1", **told: Any) -> int:
        """Ask, and tell if there is something to tell."""
        self.asked = getattr(self, "asked", 0) + 1
        facts, _ = self.ask(worker, id=f"a{self.asked}")
        (number,) = [number for kind, number, _ in facts if kind == "trial.leased"]
        assert number is not None
        if told:
            self.tell(worker, number, **told)
        return number

    def params(self, number: int) -> dict[str, Any]:
        return dict(self.desk.state.studies["s"].trials[number - 1].params)


def seen(rows: Any, name: str, number: int | None, until: int | None = None) -> Witness:
    def look(at: Any) -> Witness:
        witness = Witness(name, at, () if number is None else {number})
        for row in rows:
            if until is None or row.seq <= until:
                witness.see(event_of(row.body, row.hash), row.body)
        witness.end()
        return witness
    first = look(())
    if number is None:
        return first
    return look(first.needed(number))


def page_of(rows: Any, number: int | None = None, name: str = "s", live: Any = None) -> dict[str, Any]:
    """A page, as it comes out of a message."""
    made = pages.of(seen(rows, name, number), number, live)
    page: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    readable(words.of(page))
    assert words.sentence(page)
    return page


def readable(text: str) -> str:
    """What is wrong with a page whatever it is about."""
    assert not re.search(r"\b(nan|None|inf|True|False)\b|\{|\}|  \.| ,|\.\.", text), text
    for line in text.splitlines():
        assert len(line) <= 80, line
        assert line == line.rstrip()
    return text


def flat(page: dict[str, Any]) -> str:
    """A page as one line, so that a test does not depend on where lines end."""
    return " ".join(words.of(page).split())


def value_at(params: dict[str, Any]) -> float:
    return float(0.95 - 0.01 * (math.log10(params["C"]) - 0.7) ** 2 - 0.3 * (params["gamma"] - 0.3) ** 2
                 - (0.02 if params["kernel"] == "poly" else 0.0) + 0.004 * math.sin(999 * params["gamma"]))


@pytest.fixture(scope="module")
def digits() -> Engine:
    """Twenty trials of a model, one by hand, some that failed, and three under way."""
    story = Engine(method="bayes", space=MIXED, metric="accuracy", direction="maximize", seed=3,
                   budget={"trials": 40})
    story.request("ann", "study.enqueue", id="q2", params={"C": 1.0, "kernel": "rbf", "gamma": 0.5})
    for _ in range(17):
        number = story.a_trial()
        params = story.params(number)
        if params["C"] > 300:
            failed: dict[str, Any] = {"state": "fail", "class": "oom", "error": "Traceback\nCUDA out of memory"}
            story.tell("w1", number, **failed)
        else:
            story.tell("w1", number, value=value_at(params), seconds=10.0 + number, cost=0.5)
    for worker in ("w2", "w3", "w4"):
        story.a_trial(worker)
    return story


# ---------------------------------------------------------------- trials


def test_a_point_by_the_model_is_explained_from_the_record(digits: Engine) -> None:
    page = page_of(digits.rows, 15)
    (proposed,) = (json.loads(row.body) for row in digits.rows if (row.type, row.trial) == ("trial.proposed", 15))
    assert page["choice"]["how"] == "model"
    assert page["expected"]["source"] == "recorded"
    assert (page["expected"]["mean"], page["expected"]["sd"]) == (proposed["data"]["mean"], proposed["data"]["sd"])
    made = page["recomputed"]
    assert made["agrees"] is True
    # What was made again is what was recorded: the problem is the one that was asked.
    assert made["mean"] == pytest.approx(page["expected"]["mean"], rel=1e-9)
    assert made["sd"] == pytest.approx(page["expected"]["sd"], rel=1e-6)
    # The ends are even around the mean only in the model's units; the record has half their distance.
    expected = page["expected"]
    assert expected["low"] < expected["mean"] < expected["high"]
    assert (expected["high"] - expected["low"]) / 2 == pytest.approx(expected["sd"], rel=1e-6)
    assert 0 <= made["mean_share"] <= 1
    assert made["rivals"]
    assert all(0 < rival["ratio"] <= 1 for rival in made["rivals"])
    assert {each["parameter"] for each in made["slices"]} <= {"C", "gamma", "degree"}
    record = page["provenance"]
    assert record["as_of"] == proposed["data"]["as_of"]
    assert record["fit"]["seq"] == proposed["data"]["fit"]
    assert record["hash"] == next(row.hash.hex() for row in digits.rows if row.seq == record["seq"])
    assert page["known"]["trials"] == 14
    text = flat(page)
    for said in ("The model, a Gaussian process, learned from 14 outcomes", "How far from what was tried",
                 "● this trial", "recomputed from the record", "random stream 3/15/bayes", "What it taught",
                 "It cost 0.5"):
        assert said in text


def test_pending_trials_are_named_and_believed(digits: Engine) -> None:
    page = page_of(digits.rows, 20)
    assert page["pending"] == {"used": True, "trials": [18, 19], "more": 0, "ahead": 0}
    assert page["recomputed"]["agrees"] is True
    assert page["recomputed"]["mean"] == pytest.approx(page["expected"]["mean"], rel=1e-9)
    assert page["became"]["state"] == "running"
    text = flat(page)
    assert "kept away from trial 18 and trial 19 without a result" in text
    assert "w4 works on it since 2026-01-01" in text


@pytest.mark.parametrize(("number", "how", "said"), [
    (1, "enqueued", "ann put it into the queue with bayesd study enqueue"),
    (2, "centre", "The middle of every range"),
    (3, "design", "It belongs to the start design")])
def test_points_that_no_model_chose(digits: Engine, number: int, how: str, said: str) -> None:
    page = page_of(digits.rows, number)
    assert page["choice"]["how"] == how
    assert page["aim"] is None
    assert said in flat(page)


def test_every_page_of_a_study_reads_well(digits: Engine) -> None:
    states = set()
    for number in range(1, 21):
        page = page_of(digits.rows, number)
        states.add(page["became"]["state"])
        if page["became"]["state"] == "fail":
            assert "class oom" in flat(page)
            assert "CUDA out of memory" in flat(page)
            assert page["became"]["value"] is None
            assert "× this trial, which has no result" in flat(page)
    assert states == {"complete", "fail", "running"}


def test_ranks_and_the_lesson_follow_the_values(digits: Engine) -> None:
    values = {number: value_at(digits.params(number)) for number in range(1, 18)
              if digits.params(number)["C"] <= 300}
    best = max(values, key=lambda number: values[number])
    page = page_of(digits.rows, best)
    assert page["became"]["rank"]["now"] == {"place": 1, "of": len(values)}
    assert page["became"]["improved"] is True
    assert ", a new best" in words.sentence(page)
    worst = min(values, key=lambda number: values[number])
    assert page_of(digits.rows, worst)["became"]["rank"]["now"]["place"] == len(values)
    later = page_of(digits.rows, 16)
    assert later["lesson"]["after"]["sd"] > 0
    assert "The model believe" in flat(later)


def test_the_page_as_of_then_knows_nothing_of_later(digits: Engine) -> None:
    at = next(row.seq for row in digits.rows if row.type == "trial.leased" and row.trial == 15)
    page = pages.of(seen(digits.rows, "s", 15, at), 15)
    assert page["became"]["state"] == "running"
    whole = page_of(digits.rows, 15)
    assert (page["known"], page["expected"], page["recomputed"]) == (
        whole["known"], whole["expected"], whole["recomputed"])
    assert page["curve"]["trials"] == 15


@pytest.mark.parametrize(("z", "share"), [(-3.0, 0.0), (0.0, 0.0), (30.0, 1.0)])
def test_the_share_of_the_mean(z: float, share: float) -> None:
    assert share_of_mean(z) == pytest.approx(share)
    # At z = 1, by the normal table: Phi(1) / (phi(1) + Phi(1)).
    assert share_of_mean(1.0) == pytest.approx(0.8413447 / (0.2419707 + 0.8413447), abs=1e-6)


SPACES: dict[str, dict[str, Any]] = {
    "forest": {"method": "bayes", "surrogate": "forest", "space": MIXED},
    "grid": {"method": "grid", "space": {"n": {"type": "int", "low": 1, "high": 5}, "kernel": KERNEL}},
    "random": {"method": "random", "space": MIXED},
    "sobol": {"method": "sobol", "space": MIXED},
    "categories": {"method": "bayes", "space": {"a": {"type": "categorical", "choices": list("abcd")}, "b": KERNEL,
                                                "c": {"type": "ordinal", "choices": [1, 2, 3]}}},
    "power": {"method": "bayes", "space": {"p": {"type": "float", "low": 0, "high": 10, "scale": "power"}}},
    "sure": {"method": "bayes", "noise": "none", "space": {"n": {"type": "int", "low": 1, "high": 50}}},
    "constrained": {"method": "bayes", "space": {"x": FLOAT, "y": FLOAT}, "constraints": ["x + y <= 1"]},
    "many": {"method": "bayes", "space": {f"x{i}": FLOAT for i in range(30)}},
}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("value", [
    lambda p: sum(v for v in p.values() if isinstance(v, (int, float))), lambda p: 1.0, lambda p: 1e300],
    ids=["sum", "constant", "huge"])
def test_spaces_and_methods_of_every_kind(kind: str, value: Callable[[dict[str, Any]], float]) -> None:
    story = Engine(**SPACES[kind])
    for i in range(8):
        number = story.a_trial()
        story.tell("w1", number, **({"state": "fail"} if i == 3 else {"value": value(story.params(number))}))
    story.a_trial("w2")
    for number in (4, 8) if kind != "forest" else ():
        page_of(story.rows, number)
    assert page_of(story.rows)["winner"] is not None
    how = page_of(story.rows, 9)["choice"]["how"]
    assert how == {"grid": "grid", "random": "random", "sobol": "sobol", "forest": "forest", "many": "design"}.get(
        kind, "model")


def test_several_objectives_tell_their_trade_off() -> None:
    story = Engine(method="bayes", space={"x": FLOAT, "y": FLOAT}, objectives=[
        {"name": "loss", "direction": "minimize"}, {"name": "speed", "direction": "maximize"}])
    for _ in range(10):
        number = story.a_trial()
        params = story.params(number)
        story.tell("w1", number, values={"loss": params["x"], "speed": params["x"] + params["y"]})
    page = page_of(story.rows, 10)
    made = page["recomputed"]
    assert len(made["means"]) == len(made["sds"]) == 2
    assert made["agrees"]
    assert page["expected"] is None
    assert page["became"]["rank"]["front"] in (True, False)
    assert "hypervolume that it would add to the front" in flat(page)
    assert "The models expected loss" in flat(page)
    assert "By the first objective alone" in flat(page_of(story.rows))


@pytest.mark.parametrize(("cost", "said"), [
    ({"per": "seconds"}, "What a trial takes counted: improvement was divided by it to the power 0.8,"),
    ({"per": "cost", "aware": False}, "of the study's cost; that did not count in the choice")])
def test_what_a_trial_takes_is_told(cost: dict[str, Any], said: str) -> None:
    story = Engine(method="bayes", space={"x": FLOAT, "y": FLOAT}, budget={"trials": 40}, cost=cost)
    for _ in range(9):
        number = story.a_trial()
        x = story.params(number)["x"]
        story.tell("w1", number, value=(x - 0.5) ** 2, seconds=2 + 90 * x, cost=1 + 9 * x)
    page = page_of(story.rows, 9)
    assert page["choice"]["power"] == (0.8 if cost.get("aware", True) else 0.0)
    assert page["recomputed"]["agrees"]
    assert said in flat(page)


def test_what_can_become_of_a_trial() -> None:
    story = Engine(method="bayes", space={"x": FLOAT}, retry={"lost": 1, "crash": 1})
    for value in (0.5, 0.7, 0.2):
        story.a_trial(value=value)
    void = story.a_trial(value=9.0)
    story.request("ann", "trial.void", id="v", trial=void, reason="the sensor was unplugged")
    pruned = story.a_trial()
    story.report("w1", pruned, 1, 0.9)
    story.tell("w1", pruned, state="pruned")
    crashed = story.a_trial()
    story.tell("w1", crashed, state="fail", error="segfault")
    story.ask("w2", id="again")
    story.tell("w2", crashed, fence=2, value=0.4)
    lost = story.a_trial()
    story.tick(1000.0)
    story.ask("w3", id="taken")
    story.tell("w1", lost, value=0.3)              # late: w3 has it by now
    waits = story.a_trial()
    story.tell("w1", waits, state="released")
    said = {number: flat(page_of(story.rows, number)) for number in (void, pruned, crashed, lost, waits)}
    assert "ann declared it void" in said[void]
    assert "the sensor was unplugged" in said[void]
    assert "It was stopped early at 0.9, after 1 report" in said[pruned]
    assert "An attempt failed with class crash" in said[crashed]
    assert "segfault" in said[crashed]
    assert "1 lease ended without a word from the worker; it was leased 2 times in all" in said[lost]
    assert "Another outcome came too late" in said[lost]
    assert "Nobody works on it: it will be leased again" in said[waits]


def test_a_repeated_point_is_told_as_one() -> None:
    story = Engine(method="bayes", space={"kernel": KERNEL}, budget={"trials": 12})
    for _ in range(12):
        number = story.a_trial()
        story.tell("w1", number, value=1.0 if story.params(number)["kernel"] == "rbf" else 2.0)
    page = page_of(story.rows, 12)
    assert "It is the very point of trial" in flat(page)
    # The search knew every point, so it looked again as if it knew none; and so does the page.
    assert (page["recomputed"]["agrees"], page["recomputed"]["found"]) == (True, None)


@pytest.mark.parametrize(("fallback", "said"), [
    ("deadline", "a worker had waited for the model longer than it should"),
    ("error: ZeroDivisionError", "the optimiser broke off with ZeroDivisionError, which is a bug to report"),
    (f"bayes: {NONE_NEW}", "every candidate that the search found had been tried or is not allowed"),
    ("bayes: no candidate of the search was new", "every candidate that the search found had been tried"),
    ("bayes: LinAlgError: not finite", "the numbers of method bayes went wrong (LinAlgError: not finite)")])
def test_a_fallback_is_told_with_its_reason(fallback: str, said: str) -> None:
    class Falling(Story):
        def think(self) -> None:
            for order in rules.orders(self.desk):
                if fallback == "deadline":
                    rules.supply_fallback(self.desk, order, suggest(_plain(order.problem), order.wanted))
                else:
                    rules.supply(self.desk, order, samplers.random(_plain(order.problem), order.wanted, fallback))
    story = Falling(method="bayes", space={"x": FLOAT})
    story.ask("w1")
    page = page_of(story.rows, 1)
    assert page["choice"]["fallback"] == fallback
    assert said in flat(page)


def test_the_sampler_says_what_the_page_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that finds nothing new: the point is any other one, and made again it is the same."""
    monkeypatch.setattr("bayesd.optimize.bayes._first_new", lambda *_: (0, None))
    story = Engine(method="bayes", noise="none", space={"n": {"type": "int", "low": 1, "high": 50}})
    for _ in range(7):
        number = story.a_trial()
        story.tell("w1", number, value=float(story.params(number)["n"]))
    page = page_of(story.rows, 7)
    assert page["choice"]["fallback"] == f"bayes: {NONE_NEW}"
    assert page["recomputed"]["agrees"] is True
    assert "every candidate that the search found had been tried" in flat(page)


def _plain(problem: Problem) -> Problem:
    return replace(problem, method="random")


def test_points_of_the_study_file_and_of_an_amended_queue() -> None:
    story = Engine(method="bayes", space={"x": FLOAT}, enqueue=[{"x": 0.9}, {"x": 0.1}])
    story.request("bob", "study.enqueue", id="q2", params={"x": 0.2})
    story.request("bob", "study.amend", id="q3", changes={"space": {"x": {"type": "float", "low": 0, "high": 0.5}}})
    for value in (1.0, 2.0):
        story.a_trial(value=value)
    assert "The study file lists it under enqueue" in flat(page_of(story.rows, 1))
    assert page_of(story.rows, 1)["params"] == {"x": 0.1}
    assert "bob put it into the queue" in flat(page_of(story.rows, 2))


# ---------------------------------------------------------------- studies


def answers(page: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in page["reasons"]]


def test_a_study_that_closed_says_by_what_and_what_to_do() -> None:
    story = Engine(space={"x": FLOAT}, budget={"trials": 2})
    story.a_trial(value=1.0)
    story.a_trial(value=2.0)
    page = page_of(story.rows)
    assert answers(page) == ["trials"]
    assert "Its budget of 2 trials was used up" in page["answer"]
    assert "budget.trials=4" in page["reasons"][0]["remedy"]

    story = Engine(space={"x": FLOAT}, budget={"cost": 3.0})
    story.a_trial(value=1.0, cost=5.0)
    assert "Its cost budget of 3 was used up" in page_of(story.rows)["answer"]
    story = Engine(method="random", budget={"fidelity": 5}, fidelity={"name": "epochs", "min": 2, "max": 4},
                   prune={"rule": "asha", "resume": True})
    story.a_trial(value=1.0)
    facts, _ = story.ask("w1", id="on")         # another would leave too little to finish the first
    assert [(type, number) for type, number, _ in facts] == [("trial.leased", 1)]
    story.tell("w1", 1, fence=2, value=0.5)
    assert "Its budget of 5 epochs was used up" in page_of(story.rows)["answer"]
    assert "trained for 4 together" in page_of(story.rows)["answer"]
    assert "Budget used: 4 of 5 epochs." in flat(page_of(story.rows))

    story = Engine(space={"x": FLOAT}, budget={"wall": 60})
    story.a_trial("w9")
    story.tick(100.0)
    page = page_of(story.rows)
    assert answers(page) == ["wall", "still-out"]
    assert "w9 has it since" in flat(page)

    story = Engine(method="grid", space={"kernel": KERNEL})
    story.a_trial(value=1.0)
    story.a_trial(value=1.0)
    story.ask("w1", id="more")
    page = page_of(story.rows)
    assert answers(page) == ["exhausted"]
    assert "no point is tried twice here" in page["answer"]
    assert "The two are equal" in flat(page)

    story = Engine(space={"x": FLOAT})
    story.request("ann", "study.close", id="q")
    page = page_of(story.rows)
    assert page["answer"].startswith("ann closed it at 2026-01-01")
    assert page["winner"] is None


def test_a_study_that_stands_still_says_why() -> None:
    story = Engine(space={"x": FLOAT}, budget={"trials": 3})
    assert answers(page_of(story.rows)) == ["nobody-works"]
    story.request("ann", "study.pause", id="p")
    page = page_of(story.rows)
    assert answers(page) == ["paused"]
    assert "ann paused it" in page["answer"]
    assert page["reasons"][0]["remedy"] == "To go on: bayesd study resume s"
    story.request("ann", "study.resume", id="r")
    story.a_trial("w1")
    assert answers(page_of(story.rows)) == ["running"]
    story.a_trial("w2")
    story.a_trial("w3")
    page = page_of(story.rows)
    assert answers(page) == ["budget"]
    assert "Missing: trial 1 (w1 has it since" in flat(page)
    story.desk.record("daemon.stopped", {"reason": "stop"})
    story.said()
    assert answers(page_of(story.rows))[0] == "no-daemon"


def test_a_study_whose_trials_all_fail_says_so() -> None:
    story = Engine(method="bayes", space={"x": FLOAT}, budget={"trials": 9})
    for _ in range(6):
        story.a_trial(state="fail", error="no module named torch", **{"class": "crash"})
        while story.desk.state.studies["s"].waiting:
            story.request("ann", "trial.cancel", id=f"c{len(story.rows)}",
                          trial=next(iter(story.desk.state.studies["s"].waiting)))
    page = page_of(story.rows)
    assert "failing" in answers(page)
    assert "no module named torch" in flat(page)


def test_the_winner_is_weighed_against_noise() -> None:
    story = Engine(method="bayes", space={"x": FLOAT})
    for spread in (0.3, 0.3, 0.001):
        number = story.a_trial()
        x = story.params(number)["x"]
        story.tell("w1", number, folds=[x - spread, x, x + spread])
    page = page_of(story.rows)
    won = page["winner"]
    assert won["difference"] == pytest.approx(abs(won["value"] - won["runner_up"]["value"]))
    assert won["noise_sd"] == pytest.approx(math.hypot(won["se"], won["runner_up"]["se"]))
    assert "times the noise of that difference" in flat(page)
    for _ in range(6):
        number = story.a_trial()
        story.tell("w1", number, value=story.params(number)["x"])
    page = page_of(story.rows)
    chances = page["winner"]["chances"]
    assert sum(each["probability"] for each in chances) <= 1.0 + 1e-9
    assert 0 < page["winner"]["chance"] <= 1
    assert "truly the best of the points tried" in flat(page)
    story = Engine(method="bayes", noise="none", space={"x": FLOAT})
    for _ in range(3):
        number = story.a_trial()
        story.tell("w1", number, value=story.params(number)["x"])
    page = page_of(story.rows)
    assert page["winner"]["chances"] is None
    assert "is real: the study says that the same point always gives the same value" in flat(page)


# ---------------------------------------------------------------- workers


def worker(story: Story, name: str, live: Any = None) -> dict[str, Any]:
    diary = Diary(name)
    for row in story.rows:
        diary.see(event_of(row.body, row.hash), row.body)
    page: dict[str, Any] = json.loads(json.dumps(worker_page(story.desk.state, diary, live), allow_nan=False))
    readable(words.of(page))
    return page


def test_a_worker_by_the_log_alone() -> None:
    story = Engine(space={"x": FLOAT}, budget={"trials": 3})
    story.beat("w1")
    story.a_trial("w1", value=1.0)
    story.a_trial("w1")
    page = worker(story, "w1")
    assert (page["state"], answers(page)) == ("busy", ["works"])
    assert "It works on trial 2 of s" in page["answer"]
    assert "Ask the daemon" in flat(page)
    story.beat("w1", run="w1-r2")
    page = worker(story, "w1")
    assert (page["state"], page["runs_replaced"]) == ("idle", 1)
    assert "1 earlier run was replaced" in flat(page)
    story.request("ann", "study.pause", id="p")
    assert answers(worker(story, "w1")) == ["paused"]
    story.request("ann", "study.close", id="c")
    assert answers(worker(story, "w1")) == ["closed"]
    story.request("ann", "worker.revoke", id="x", worker="w1", reason="its results are wrong")
    page = worker(story, "w1")
    assert answers(page) == ["revoked"]
    assert "by ann at 2026" in page["answer"]


# ---------------------------------------------------------------- a running daemon


async def asked(operator: Worker, id: str, **args: Any) -> dict[str, Any]:
    operator.say("request", id=id, verb="why", args=args)
    return await operator.wait(lambda kind, body: kind == "reply" and body["id"] == id)


def test_a_daemon_tells_what_only_it_knows() -> None:
    async def story() -> tuple[dict[str, Any], list[Row]]:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk)
        await daemon.start()
        operator, w1 = await begin(broker, method="bayes", budget={"trials": 3})
        for i in range(2):
            grant = await w1.wait(lambda kind, body, n=i + 1: kind == "grant" and body["trial"] == n)  # type: ignore[misc]
            w1.say("tell", id=f"t{i}", study="s", trial=grant["trial"], fence=1, value=1.0 + i)
            w1.say("ask", id=f"b{i}", run="r", study="s")
        await w1.wait(lambda kind, body: kind == "grant" and body["trial"] == 3)
        said = {"trial": await asked(operator, "1t", study="s", trial=2),
                "busy": await asked(operator, "1w", worker="w1")}
        w2 = Worker(broker, "w2")
        w2.say("beat", run="q")
        w2.say("ask", id="c1", run="q", study="s", tags=["gpu"])
        await w2.wait(lambda kind, body: body.get("status") == "waiting")
        said |= {"study": await asked(operator, "2s", study="s"), "waits": await asked(operator, "2w", worker="w2")}
        operator.say("request", id="3", verb="study.pause", args={"study": "s"})
        await operator.wait(lambda kind, body: body["id"] == "3")
        said |= {"paused": await asked(operator, "3w", worker="w2"),
                 "nobody": await asked(operator, "4", worker="w3"), "no study": await asked(operator, "5", study="t"),
                 "no trial": await asked(operator, "6", study="s", trial=99),
                 "bad": await asked(operator, "7", worker=7), "op": await asked(operator, "8", worker="op")}
        await daemon.stop()
        return said, list(disk.rows)

    said, rows = run(story())
    for name in ("trial", "busy", "study", "waits", "paused", "op"):
        assert said[name]["status"] == "ok", said[name]
        readable(words.of(said[name]["result"]))
    until = said["trial"]["result"]["seen_to"]["seq"]
    offline = pages.of(seen(rows, "s", 2, until), 2)
    assert said["trial"]["result"] == json.loads(json.dumps(offline))
    assert "left)" in said["busy"]["result"]["answer"]
    assert answers(said["study"]["result"]) == ["budget"]
    waits = said["waits"]["result"]
    assert (waits["state"], answers(waits), waits["asks"][0]["ask"]) == ("idle", ["budget"], "c1")
    assert answers(said["paused"]["result"]) == ["paused"]
    assert answers(said["op"]["result"]) == ["operator"]
    assert [said[name]["error"]["code"] for name in ("nobody", "no study", "no trial", "bad")] == [
        "unknown-worker", "unknown-study", "unknown-trial", "bad-field"]
    assert "Known: w1 and w2" in said["nobody"]["error"]["message"]


def test_tags_and_silence_are_told_by_a_daemon() -> None:
    async def story() -> list[dict[str, Any]]:
        broker = MemoryBroker()
        daemon = Daemon(broker)
        await daemon.start()
        operator, w1 = await begin(broker, tags=["gpu"])
        await w1.wait(lambda kind, body: body.get("reason") == "no-matching-tags")
        out = [await asked(operator, "q1", study="s"), await asked(operator, "q2", worker="w1")]
        w1.say("ask", id="a1", run="r", study="s", n=0)
        await w1.wait(lambda kind, body: body.get("reason") == "withdrawn")
        out += [await asked(operator, "q3", study="s"), await asked(operator, "q4", worker="w1")]
        await daemon.stop()
        return out

    wants, refused, nobody, silent = (body["result"] for body in run(story()))
    assert answers(wants) == ["no-matching-tags"]
    assert "wants tags gpu" in wants["answer"]
    assert answers(refused) == ["no-matching-tags"]
    assert answers(nobody) == ["nobody-asks"]
    assert "bayesd worker run --study s" in nobody["reasons"][0]["remedy"]
    assert answers(silent) == ["silent"]
    for page in (wants, refused, nobody, silent):
        readable(words.of(page))


def test_a_page_is_made_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the fold nor the numbers of a page hold up the thread that takes results."""
    threads: dict[str, set[int]] = {"see": set(), "page": set()}

    class Watched(Witness):
        def see(self, event: Event, body: bytes) -> None:
            threads["see"].add(threading.get_ident())
            super().see(event, body)

    made = pages.of

    def watched(*args: Any) -> Any:
        threads["page"].add(threading.get_ident())
        return made(*args)
    monkeypatch.setattr("bayesd.why.online.Witness", Watched)
    monkeypatch.setattr("bayesd.why.pages.of", watched)

    async def story() -> int:
        broker = MemoryBroker()
        daemon = Daemon(broker)
        await daemon.start()
        operator, w1 = await begin(broker)
        await w1.wait(lambda kind, body: kind == "grant")
        assert (await asked(operator, "9", study="s", trial=1))["status"] == "ok"
        await daemon.stop()
        return threading.get_ident()

    loop = asyncio.run(story())        # a virtual loop has no threads
    assert threads["see"]
    assert threads["page"]
    assert loop not in threads["see"] | threads["page"]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("why") / "log.db"
    with Study({"x": FLOAT}, name="kept", seed=1, budget=8, log=path, direction="minimize") as study:
        while True:
            try:
                trial = study.ask()
            except Exhausted:
                break
            study.tell(trial, (trial.params["x"] - 0.3) ** 2)
    return path


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_the_command_on_a_file(log: Path, sh: Shell) -> None:
    text = sh(f"why kept 8 --log {log}").out
    assert text.startswith("Why trial 8 of kept?")
    readable(text)
    page = sh(f"why kept 8 --log {log} -f json").json
    assert page["page"] == "trial"
    assert words.of(page) + "\n" == text
    assert sh(f"why kept 8 --log {log} -f value").out.strip() == words.sentence(page)
    assert "bayes" in sh(f"why kept 8 --log {log} -f yaml").out
    assert sh(f"why kept --log {log}").out.startswith("Why has kept stopped?")
    before = sh(f"why kept --log {log} --at {page['known']['seq']} -f json").json
    assert (before["state"], before["counts"]["complete"]) == ("open", 7)
    assert sh(f"why --worker inprocess --log {log}").out.startswith("Why is inprocess idle?")
    assert "no trial 99" in sh(f"why kept 99 --log {log}", code=1).err
    assert "no study 'other'" in sh(f"why other --log {log}", code=1).err
    assert "Is it inprocess?" in sh(f"why --worker inproces --log {log}", code=1).err
    assert "not a worker's name" in sh(f"why --worker A! --log {log}", code=2).err
    for wrong in ("why", f"why kept --worker w1 --log {log}"):
        assert "give STUDY [TRIAL], or --worker NAME" in sh(wrong, code=2).err


def test_damage_is_told_after_the_page(log: Path, sh: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "log.db"
    for part in log.parent.glob("log.db*"):
        shutil.copy(part, tmp_path / part.name)
    last = sh(f"why kept --log {copy} -f json").json
    seq = int(re.search(r"event (\d+)", last["record"][-1][1]).group(1))      # type: ignore[union-attr]
    spoil(copy, seq, b"trials", b"thials")
    said = sh(f"why kept 8 --log {copy}", code=65)
    assert said.out.startswith("Why trial 8 of kept?")
    assert str(seq) in said.err


# ---------------------------------------------------------------- charts


def lines(drawn: list[str]) -> Iterator[str]:
    for line in drawn:
        assert len(line) <= 78
        yield line


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, 1.0], [None, 2.0, None, 1.0], [0.0, 0.0], [-1e300, 1e300],
                                    [1.0, 2.0, 1e12], [5e-324, 1e-300]])
@pytest.mark.parametrize("minimize", [True, False])
def test_a_curve_of_any_values(values: list[float | None], minimize: bool) -> None:
    drawn = list(lines(chart.best_so_far(values, minimize, 0, width=60, label="trial 1", first="1", last="9")))
    assert len(drawn) == 9
    assert sum(line.count(chart.MARK) + line.count("×") for line in drawn) == 1
    assert chart.best_so_far([None, None], minimize, 0, width=60, label="", first="", last="") == []


def test_the_line_of_a_curve_never_gets_worse() -> None:
    values: list[float | None] = [3.0, 5.0, 1.0, 4.0]
    canvas = chart.Canvas(10, 4, 1.0, 5.0)
    assert canvas.row(5.0) == 0
    assert canvas.row(1.0) == 15
    drawn = chart.best_so_far(values, True, 2, width=40, height=4, label="t", first="1", last="4")
    assert chart.MARK in drawn[3]                    # the best lies at the bottom
    assert drawn[0].startswith("5 ┤")


@pytest.mark.parametrize("here", [0.0, 0.5, 1.0])
def test_a_band_holds_its_mark(here: float) -> None:
    values = [0.0, 0.5, 1.0]
    drawn = list(lines(chart.band(values, [0.0, 1.0, 0.0], [-1.0, 0.5, -1.0], [1.0, 1.5, 1.0], here, here,
                                  logarithmic=False, width=50, label="x")))
    assert sum(line.count(chart.MARK) for line in drawn) == 1
    assert any(chart.BAND in line for line in drawn)
    row = next(line for line in drawn if chart.MARK in line)
    left = row.index(chart.MARK) - row.index("│" if "│" in row else "┤") - 1
    assert abs(left - here * 49) <= 1


def test_a_chart_that_leaves_something_out_says_so() -> None:
    assert chart.beyond([1.0, 2.0, 3.0, 4.0, 1e9, None], minimize=True) == 1
    assert chart.beyond([1.0, 2.0, None], minimize=True) == 0
    assert chart.is_cut([1, 1, 1], [0.9, 0.9, -9], [1.1, 1.1, 9], 1)
    assert not chart.is_cut([1, 1, 1], [0.9] * 3, [1.1] * 3, 1)


@pytest.mark.parametrize(("number", "said"), [
    (4, ("after 1 fold (step 0): its f1 was 0.5 on", "beside the mean of trials 1, 3, 2", "The chance that all folds")),
    (5, ("after 2 folds (step 1): its f1 was 0.7 on", "as good as trial 1, the best then", "Even the best values")),
])
def test_a_raced_trial_says_against_whom_and_what_chance_was_left(number: int, said: tuple[str, ...]) -> None:
    page = flat(page_of(raced().rows, number))
    for each in said:
        assert each in page


def test_a_point_measured_again_on_request_says_who_wanted_it() -> None:
    story = raced()
    story.request("ann", "study.enqueue", id="q", again=1)
    story.ask("w2", "b")
    page = flat(page_of(story.rows, 6))
    assert "ann wanted trial 1 measured again; no sampler had a say in it." in page
    assert "one more evaluation of the same point, which no budget counts" in page


# ---------------------------------------------------------------- limits


def limited(at_most: float) -> Engine:
    story = Engine(method="bayes", space={"x": FLOAT, "y": FLOAT}, metric="loss", budget={"trials": 14},
                   limits=[{"name": "latency", "at_most": at_most}])
    for i in range(14):
        if i == 11:
            story.request("ann", "study.enqueue", id="q2", params={"x": 0.9, "y": 0.4})
        number = story.a_trial()
        params = story.params(number)
        story.tell("w1", number, values={"loss": (params["x"] - 0.9) ** 2 + (params["y"] - 0.4) ** 2,
                                         "latency": 10 * params["x"]})
    return story


def test_a_page_tells_of_limits() -> None:
    story = limited(6.0)
    trials = story.desk.state.studies["s"].trials
    page = page_of(story.rows, next(trial.number for trial in trials if trial.sampler == "enqueued"))
    assert page["became"]["broken"] == ["latency"]
    assert page["became"]["rank"] is None
    (limit,) = page["limits"]
    assert 0 <= limit["chance"] <= 1
    assert "Its chance to keep the limit, by the models: latency at most 6 " in flat(page_of(story.rows, 14))
    text = flat(page)
    assert f"latency came out at {words.number(limit['measured'])}, at most 6: it breaks the limit latency." in text
    assert "So it cannot lead: it does not keep latency." in text
    best = story.desk.state.studies["s"].best
    assert best is not None
    kept = page_of(story.rows, best.number)
    assert kept["became"]["rank"]["now"]["place"] == 1
    assert kept["became"]["rank"]["now"]["of"] == sum(trial.limits[0] <= 6 for trial in trials)  # type: ignore[operator]  # told above
    whole = flat(page_of(story.rows))
    assert "It keeps the limits of the study: latency" in whole
    assert "The limit latency binds: without it trial" in whole
    chances = page_of(story.rows)["winner"]["chances"]
    assert {each["trial"] for each in chances} <= {trial.number for trial in trials if trial.limits[0] <= 6}  # type: ignore[operator]  # told above


def test_a_page_says_when_nothing_is_feasible_yet() -> None:
    story = limited(-1.0)
    page = page_of(story.rows)
    assert page["winner"] is None
    assert "There is no winner: none of 14 complete trials keeps every limit" in flat(page)
    assert "No point is believed to keep every limit yet" in flat(page_of(story.rows, 13))


def test_a_leader_at_a_rung_is_called_no_finished_trial() -> None:
    story = climbing([2.0, 1.0, 3.0])
    story.ask("v1")
    story.tell("v1", 2, fence=2, value=0.5)
    text = flat(page_of(story.rows))
    assert "No result stands behind it yet: it is what was told after 3 of 9 epochs" in text
    assert "It is the only trial at that rung" in text
    assert "only finished trial" not in text
