"""Limits on outcomes: what a tell has to say, who may lead, and that nothing of it is lost on the way."""

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError
from tests.study.story import BASE, Story

from bayesd import Study as InProcess
from bayesd import winner
from bayesd.inprocess import StudyError
from bayesd.study import admin, confirm, knowledge, limits, snapshot, stopping
from bayesd.study.problem import Bound, Observation
from bayesd.study.state import Study
from bayesd_schemas.study import StudySpec

LATENCY = {"name": "latency", "at_most": 10}
GAP = {"name": "fair", "metric": "parity", "at_least": 0.8}


class Limited(Story):
    """Reports have values by name, and what people are told is kept."""

    @property
    def study(self) -> Study:
        return self.desk.state.studies["s"]

    def reports(self, trial: int, step: int, **values: float) -> None:
        self._on("report", "w1", {"id": f"r.{trial}.{step}", "study": "s", "trial": trial, "fence": 1, "step": step,
                                  "values": values})

    def _letter(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        detail = body.get("detail")
        return {**super()._letter(kind, body), **({} if detail is None else {"detail": detail})}


def limited(*said: dict[str, Any], **spec: Any) -> Limited:
    return Limited(**{"metric": "loss", "limits": list(said) or [LATENCY], **spec})


def told(it: Limited, values: dict[str, Any], **more: Any) -> int:
    number = len(it.study.trials) + 1
    it.ask("w1", id=f"a{number}")
    it.tell("w1", number, values=values, **more)
    return number


@pytest.mark.parametrize(("limit", "words"), [
    ({"name": "latency"}, "give one of at_most and at_least"),
    ({"name": "latency", "at_most": 1, "at_least": 0}, "give one of at_most and at_least"),
    ({"name": "latency", "at_most": float("inf")}, "finite"),
    ({"name": "latency", "most": 1}, "Extra inputs")])
def test_a_limit_has_one_side(limit: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StudySpec.model_validate({**BASE, "limits": [limit]})


@pytest.mark.parametrize(("more", "words"), [
    ({"limits": [LATENCY, LATENCY]}, "same name"),
    ({"limits": [LATENCY], "stop": {"converged": True}}, "and no limits")])
def test_what_limits_do_not_go_with(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StudySpec.model_validate({**BASE, **more})


@pytest.mark.parametrize(("said", "words"), [
    ({"value": 1.0}, "value: latency is missing, on which this study has a limit; tell values with loss, latency"),
    ({"values": {"loss": 1.0}}, "values: latency is missing, on which this study has a limit"),
    ({"values": {"latency": 1.0}}, "values: loss is missing; this study's objectives are loss"),
    ({"folds": [1.0, 2.0]}, "folds: latency is missing, on which this study has a limit; tell the folds of loss, "
                            "latency, each by name")])
def test_a_complete_tell_without_its_metric_is_rejected(said: dict[str, Any], words: str) -> None:
    it = limited()
    it.ask("w1")
    facts, letters = it.tell("w1", 1, **said)
    assert facts == []
    assert letters[0][2]["status"] == "rejected"
    assert letters[0][2]["detail"].startswith(words)
    assert it.study.trials[0].is_pending


def test_what_was_told_reaches_the_optimiser() -> None:
    it = limited(LATENCY, GAP)
    told(it, {"loss": 0.5, "latency": 12, "parity": 0.9, "memory": 3})
    told(it, {"latency": 4}, state="fail")
    told(it, {"loss": None, "latency": 5, "parity": 1})
    told(it, {"loss": 0.4, "latency": None, "parity": 1})
    told(it, {"loss": 0.6, "latency": 6}, state="pruned")
    told(it, {}, state="fail")
    assert [(seen.values, seen.limits) for seen in it.study.history] == [
        ((0.5,), (12.0, 0.9)), (None, (4.0, None)), (None, (5.0, 1.0)), (None, (None, 1.0)), ((0.6,), (6.0, None)),
        (None, ())]
    assert [trial.failure for trial in it.study.trials] == [None, "crash", "nonfinite", "nonfinite", None, "crash"]
    problem, _ = it.desk.problem(it.study)
    assert problem.limits == (Bound(10.0, is_most=True), Bound(0.8, is_most=False))
    assert problem.history == tuple(it.study.history)
    it.restart()
    assert it.desk.problem(it.study)[0].history == problem.history


def test_no_limit_moves_nothing() -> None:
    """The digests of studies that have none are what they were."""
    it = Limited(metric="loss")
    told(it, {"loss": 0.5, "latency": 12})
    assert it.study.history == [Observation(1, {"x": 1.0}, (0.5,))]
    assert it.desk.problem(it.study)[0].limits == ()
    assert knowledge.knowledge(it.study)["history"] == [[1, [("x", 1.0)], (0.5,), None]]
    assert b"limits" not in snapshot.dump(it.desk.state)[1]


def test_only_who_keeps_them_leads() -> None:
    it = limited()
    told(it, {"loss": 0.1, "latency": 11})
    assert it.study.best is None
    assert confirm.leaders(it.study, 3) == []
    told(it, {"loss": 0.5, "latency": 10})
    told(it, {"loss": 0.4, "latency": 10.5})
    assert it.study.best is it.study.trials[1]
    told(it, {"loss": 0.3, "latency": 9})
    assert it.study.best is it.study.trials[3]
    assert [trial.number for trial in confirm.leaders(it.study, 3)] == [4, 2]
    it.request("op", "trial.void", id="v", study="s", trial=4, reason="a typing error")
    assert it.study.best is it.study.trials[1]


def answer(it: Limited, rule: str | None = None) -> dict[str, Any]:
    return winner.of(it.study, it.desk.problem(it.study)[0], rule)


def test_the_winner_says_which_limits_bind() -> None:
    it = limited(LATENCY, GAP)
    told(it, {"loss": 0.1, "latency": 11, "parity": 0.9})
    told(it, {"loss": 0.2, "latency": 11, "parity": 0.7})
    told(it, {"loss": 0.5, "latency": 8, "parity": 0.85})
    told(it, {"loss": 0.6, "latency": 8, "parity": 0.7})
    said = answer(it, "best")
    assert said["trial"] == 3
    latency, fair = said["limits"]
    assert latency == {"name": "latency", "metric": "latency", "at_most": 10.0, "measured": 8.0, "room": 2.0,
                       "binds": True, "without": {"trial": 1, "value": 0.1}}
    assert fair["room"] == pytest.approx(0.05)
    assert not fair["binds"]
    assert fair["without"] is None


def test_when_nothing_is_feasible_the_least_violating_is_named() -> None:
    it = limited(LATENCY, GAP)
    told(it, {"loss": 0.1, "latency": 20, "parity": 0.79})
    told(it, {"loss": 0.2, "latency": 11, "parity": 0.79})
    told(it, {"loss": 0.3, "latency": 10, "parity": 0.5})
    said = answer(it)
    assert said["trial"] is None
    assert said["least_violating"]["trial"] == 2
    assert "none of 3 complete trials keeps every limit" in said["reason"]
    assert "latency 11 (at most 10), parity 0.79 (at least 0.8)" in said["reason"]


def test_an_empty_study_speaks_of_no_limits() -> None:
    assert answer(limited())["reason"] == "no trial is complete yet"


def test_a_late_outcome_brings_its_limits() -> None:
    it = limited(retry={"lost": 1})
    it.ask("w1", lease_s=10)
    it.tick(20)
    it.ask("w2")
    it.tell("w1", 1, values={"loss": 0.3, "latency": 12})
    assert it.study.history[-1].limits == (12.0,)
    it.tell("w2", 1, fence=2, values={"loss": 0.2, "latency": 8})
    assert it.study.trials[0].limits == (8.0,)
    it.check()
    assert [seen.limits for seen in it.study.history] == [(12.0,), (8.0,)]


def test_a_promoted_late_outcome_keeps_them() -> None:
    it = limited(retry={"lost": 1}, late="ignore")
    it.ask("w1", lease_s=10)
    it.tick(20)
    it.ask("w2", lease_s=10)
    it.tell("w1", 1, values={"loss": 0.3, "latency": 12})
    it.tick(40)
    assert it.study.trials[0].status == "complete"
    assert it.study.trials[0].limits == (12.0,)
    assert it.study.best is None


def test_reported_folds_and_what_is_told_beside_them() -> None:
    it = limited(folds={"count": 2})
    it.ask("w1")
    for step, loss in enumerate((0.2, 0.4)):
        it.reports(1, step, loss=loss, latency=8 + step)
    it.tell("w1", 1)
    assert it.study.trials[0].limits == (8.5,)
    it.ask("w1", id="a2")
    for step, loss in enumerate((0.2, 0.4)):
        it.reports(2, step, loss=loss)
    facts, _ = it.tell("w1", 2, values={"loss": 0.3, "latency": 9})
    assert facts[0][2]["values"] == {"loss": pytest.approx(0.3), "latency": 9.0}
    assert it.study.trials[1].limits == (9.0,)


def test_a_pruned_trial_is_known_by_its_last_report() -> None:
    it = limited()
    it.ask("w1")
    it.reports(1, 3, loss=0.5, latency=7)
    it.tell("w1", 1, state="pruned")
    assert it.study.history[-1].limits == (7.0,)
    it.check()


def test_a_value_that_cannot_be_takes_its_limits_with_it() -> None:
    it = limited(bounds=[0, 1])
    told(it, {"loss": 7, "latency": 3})
    assert it.study.history[-1] == Observation(1, {"x": 1.0}, None)


def test_a_fork_takes_them_over() -> None:
    it = limited(LATENCY, GAP)
    told(it, {"loss": 0.1, "latency": 11, "parity": 0.9})
    told(it, {"loss": 0.5, "latency": 8, "parity": 0.85})
    told(it, {"latency": 4}, state="fail")
    it.request("op", "study.fork", id="f", study="s", **{"as": "t"})
    fork = it.desk.state.studies["t"]
    assert [(seen.values, seen.limits) for seen in fork.history] == [
        (seen.values, seen.limits) for seen in it.study.history]
    assert fork.best is fork.trials[1]
    it.check()
    it.request("op", "study.fork", id="g", study="s", **{"as": "u", "changes": {"limits": [
        LATENCY, {"name": "memory", "at_most": 1}]}})
    assert it.desk.state.studies["u"].history[0].limits == (11.0, None)
    assert it.desk.state.studies["u"].best is None       # nobody measured its memory
    it.request("op", "study.fork", id="h", study="s", **{"as": "free", "changes": {"limits": []}})
    assert it.desk.state.studies["free"].best is it.desk.state.studies["free"].trials[0]


def test_a_bound_can_be_amended_and_its_metric_cannot() -> None:
    it = limited()
    told(it, {"loss": 0.1, "latency": 11})
    told(it, {"loss": 0.5, "latency": 8})
    it.request("op", "study.amend", id="a", study="s", changes={"limits": [{**LATENCY, "at_most": 11}]})
    assert it.study.best is it.study.trials[0]
    assert it.desk.problem(it.study)[0].limits == (Bound(11.0, is_most=True),)
    it.request("op", "study.amend", id="b", study="s", changes={"limits": [{**LATENCY, "at_most": 9}]})
    assert it.study.best is it.study.trials[1]
    for i, other in enumerate(([], [GAP], [LATENCY, GAP])):
        _, letters = it.request("op", "study.amend", id=f"c{i}", study="s", changes={"limits": other})
        assert "fork the study" in letters[-1][2]["error"]["message"]


def test_repeats_that_break_a_limit_make_no_winner() -> None:
    it = limited(budget={"trials": 2}, confirm={"top": 2, "repeats": 1})
    told(it, {"loss": 0.1, "latency": 10})
    told(it, {"loss": 0.5, "latency": 8})
    for latency in (10.5, 8.5):
        told(it, {"loss": 0.2, "latency": latency})
    assert it.study.status == "closed"
    said = it.study.winner
    assert said is not None
    assert said["trial"] == 2
    assert [each.get("broken") for each in said["leaders"]] == [["latency"], None]


def test_stop_rules_look_at_feasible_trials_alone() -> None:
    it = limited(stop={"target": 0.2, "patience": 2})
    told(it, {"loss": 0.1, "latency": 11})
    told(it, {"loss": 0.1, "latency": 12})
    told(it, {"loss": 0.1, "latency": 12})
    assert it.study.status == "open"
    told(it, {"loss": 0.3, "latency": 9})
    assert stopping.barren_results(it.study, 0.0) == (0, it.study.trials[3])
    told(it, {"loss": 0.2, "latency": 9})
    assert (it.study.status, it.study.closed_by) == ("closed", "target")


def test_the_optimiser_looks_for_what_keeps_them() -> None:
    """End to end in one process: the best of the objective alone lies where the limit is broken."""
    study = InProcess({"x": {"type": "float", "low": 0, "high": 1}}, metric="loss", budget=21,
                      limits=[{"name": "size", "at_most": 0.5}])
    for _ in range(20):
        trial = study.ask()
        x = trial.params["x"]
        study.tell(trial, {"loss": (x - 0.9) ** 2, "size": x})
    assert study.best is not None
    assert 0.47 < study.best.params["x"] <= 0.5
    last = [trial.values for trial in study._folded.trials[10:]]
    assert sum(values is not None and values[0] < 0.14 for values in last) <= 7
    with pytest.raises(StudyError, match="tell values with loss, size"):
        study.tell(study.ask(), 0.5)


def test_bounds_agree_with_the_study_file() -> None:
    for limit in (LATENCY, GAP):
        spec = StudySpec.model_validate({**BASE, "limits": [limit]})
        bound = limits.bounds(spec)[0]
        for value in (0.79, 0.8, 9, 10, 10.1):
            assert bound.keeps(value) == spec.limits[0].keeps(value)
    assert [field.name for field in dataclasses.fields(Bound)] == ["value", "is_most"]
    assert "limits" in admin.AMENDABLE
