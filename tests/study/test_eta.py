"""When a study ends: the pace, the interval, the rule that is expected to fire first, and the cost until then."""

from random import Random
from typing import Any

import pytest
from tests.study.story import Story

from bayesd.study import eta, view


def at_work(results: int, seconds: float, **spec: Any) -> Story:
    """A story in which so many results came, one after another, each `seconds` after the last."""
    story = Story(**spec)
    for number in range(1, results + 1):
        story.ask("w1", f"a{number}")
        story.at(story.now + seconds)
        story.tell("w1", number, value=1.0 / number, cost=2.0)
    return story


def page(story: Story) -> dict[str, object]:
    study = story.desk.state.studies["s"]
    return view.study_state(story.desk.state, study, story.desk.elapsed(study))


def test_the_pace_so_far_says_when_and_what_it_costs() -> None:
    said = page(at_work(4, 10.0, budget={"trials": 10}))
    assert said["eta_s"] == 60.0
    assert said["cost"] == {"spent": 8.0, "to_come": 12.0}
    ends = said["eta"]
    assert isinstance(ends, dict)
    assert ends["rule"] == "trials"
    assert ends["low_s"] < 60.0 < ends["high_s"]


@pytest.mark.parametrize(("budget", "rule", "eta_s"), [
    ({"trials": 10, "wall": 50}, "wall", 10.0), ({"trials": 10, "cost": 14}, "cost", 30.0),
    ({"trials": 10, "cost": 100}, "trials", 60.0)])
def test_the_rule_that_is_expected_first_is_named(budget: dict[str, float], rule: str, eta_s: float) -> None:
    ends = eta.forecast(at_work(4, 10.0, budget=budget).desk.state.studies["s"], 40.0)
    assert ends is not None
    assert (ends.rule, ends.eta_s) == (rule, eta_s)
    if rule == "wall":
        assert (ends.low_s, ends.high_s) == (10.0, 10.0)


def test_patience_and_a_stop_that_fired_end_it_sooner() -> None:
    study = at_work(4, 10.0, budget={"trials": 50}, stop={"patience": 5, "min_delta": 10.0}).desk.state.studies["s"]
    ends = eta.forecast(study, 40.0)
    assert ends is not None
    assert (ends.rule, ends.eta_s) == ("patience", 20.0)       # three have come in vain


def test_nothing_tells_before_the_first_result_and_a_closed_study_has_ended() -> None:
    said = page(Story(budget={"trials": 3}))
    assert (said["eta_s"], said["eta"], said["cost"]) == (None, None, {"spent": 0.0, "to_come": None})
    said = page(at_work(2, 5.0, budget={"trials": 2}))
    assert (said["eta_s"], said["eta"], said["cost"]) == (0.0, None, {"spent": 4.0, "to_come": 0.0})


def test_four_of_five_studies_end_within_their_interval() -> None:
    story = at_work(10, 1.0, budget={"trials": 30})
    study, random, inside = story.desk.state.studies["s"], Random(5), 0
    for _ in range(2000):
        so_far = sum(random.expovariate(1.0) for _ in range(10))
        ends = eta.forecast(study, so_far)
        assert ends is not None
        inside += ends.low_s <= sum(random.expovariate(1.0) for _ in range(20)) <= ends.high_s
    assert 0.77 < inside / 2000 < 0.83


def test_a_cost_of_nearly_nothing_promises_no_end() -> None:
    story = Story(budget={"cost": 1e10})
    story.ask("w1")
    story.at(10.0)
    story.tell("w1", 1, value=1.0, cost=5e-324)
    assert (page(story)["eta_s"], page(story)["eta"]) == (None, None)


def test_trials_that_measure_a_point_again_bring_the_end_no_nearer() -> None:
    story = at_work(4, 10.0, budget={"trials": 10})
    story.request("op", "study.enqueue", again=1, repeats=4)
    for number in range(5, 9):
        story.ask("w1", f"a{number}")
        story.at(story.now + 10.0)
        story.tell("w1", number, value=1.0)
    ends = eta.forecast(story.desk.state.studies["s"], 80.0)
    assert ends is not None
    assert ends.eta_s == 120.0       # six are left, and of two that come one counts


@pytest.mark.parametrize("rule", ["asha", "hyperband"])
def test_what_trials_that_climb_rungs_have_still_to_train_is_counted(rule: str) -> None:
    """A second for each epoch, one worker: the forecast is near the truth from the first third on, and ends at it."""
    story = Story(budget={"trials": 60}, prune={"rule": rule, "resume": True}, fidelity={"name": "epochs", "max": 27})
    study, draw = story.desk.state.studies["s"], Random(0)
    said: list[tuple[float, eta.Forecast | None]] = []
    while study.status != "closed":
        ask = f"a{len(said)}"
        story.ask("w1", ask)
        trial = next(iter(study.running.values()))
        lease = trial.open_lease
        assert lease is not None
        began = max(trial.rungs or (0,))
        story.at(story.now + (lease.fidelity or 27) - began)
        ends = eta.forecast(study, story.desk.elapsed(study))
        story.tell("w1", trial.number, fence=lease.fence, value=draw.random())
        said.append((story.desk.elapsed(study), ends))
    took = said[-1][0]
    for elapsed, ends in said[len(said) // 3:]:
        assert ends is not None
        assert ends.rule == "trials"
        assert abs(elapsed + ends.eta_s - took) < took / 4
        assert ends.low_s <= ends.eta_s <= ends.high_s
