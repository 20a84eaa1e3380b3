"""The curve rule: where a learning curve leads, whom that stops, and that its numbers are made again."""

import math
import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tests.edges.test_why import flat, page_of
from tests.study.story import BASE, Story

from bayesd.study.board import Board, board_of
from bayesd.study.extrapolate import extrapolated
from bayesd_schemas.study import StudySpec

EPOCHS = {"name": "epochs", "max": 9}
STEPS = range(1, 10)


def curve_of(end: float, rise: float = 1.0, rate: float = 1.0) -> list[float]:
    """A power law that comes to `end` at step 9."""
    return [end + rise * (step ** -rate - 9 ** -rate) for step in STEPS]


class Training:
    """A story whose trials report one after another until they are whole or stopped."""

    def __init__(self, **spec: Any) -> None:
        self.story = Story(**{"prune": {"rule": "curve", "startup": 5}, "fidelity": EPOCHS, **spec})
        self.number = 0

    def train(self, curve: list[Any], end: Any = None) -> dict[str, Any] | None:
        """What stopped a trial that reports this curve; None: it was trained to its end."""
        self.number += 1
        worker = f"w{self.number}"
        self.story.ask(worker)
        for step, value in enumerate(curve, start=1):
            facts, _ = self.story.report(worker, self.number, step, value)
            if len(facts) > 1:
                self.story.tell(worker, self.number, state="pruned")
                return facts[1][2]
        self.story.tell(worker, self.number, **({"values": curve[-1]} if isinstance(curve[-1], dict)
                                                else {"value": curve[-1] if end is None else end}))
        return None


def trained(turn: Callable[[float], float] = float, **spec: Any) -> Training:
    """Six trials that came to 0.55 down to 0.5, all by much the same way."""
    training = Training(**spec)
    for number in range(6):
        curve = curve_of(0.55 - 0.01 * number, 1.0 + 0.02 * (number % 3))
        assert training.train([turn(value) for value in curve]) is None
    return training


@pytest.mark.parametrize(("shape", "exact"), [
    (lambda u: 2.0 + 3.0 * u ** -0.5, True), (lambda u: 1.0 - 0.5 * math.exp(-u / 3.0), True),
    (lambda u: 5.0 - 0.3 * math.log(u), True), (lambda u: 4.0, True),
    (lambda u: 1.0 + 2.0 * u ** -0.7, False)])
def test_a_shape_of_the_family_is_carried_on(shape: Callable[[float], float], exact: bool) -> None:
    steps = list(range(10))
    found = extrapolated(steps, [shape(step + 1) for step in steps], 29)
    last, there = shape(10), shape(30)
    assert abs(found - there) < (0.03 if exact else 0.35) * max(abs(last - there), 0.01)


def test_few_points_say_nothing_of_a_shape_and_what_came_first_says_little() -> None:
    assert extrapolated([1, 2, 3], [3.0, 2.0, 1.0], 9) == 1.0
    worse_first = [1.0, 2.0, 3.0, *(0.5 + 3.0 * u ** -1.0 for u in range(1, 17))]
    found = extrapolated(list(range(1, 20)), worse_first, 40)
    assert 0.2 < found < 0.8


def test_a_trial_that_leads_nowhere_is_stopped_before_its_end_and_a_better_one_is_not() -> None:
    training = trained()
    assert training.train(curve_of(0.4)) is None
    said = training.train(curve_of(1.5))
    assert said is not None
    assert said["step"] < 9
    assert said["rule"] == "curve"
    assert (said["threshold"], said["against"], said["horizon"], said["compared"]) == (0.4, 7, 9, 7)
    assert said["chance"] < said["bound"] == 0.05
    assert said["low"] < said["expected"] < said["high"]
    assert said["low"] > said["threshold"]
    training.story.check()


def test_what_begins_badly_as_others_did_that_came_good_goes_on() -> None:
    """At every step but the last trials of the slow kind are behind half of the others, and would be stopped."""
    training = Training()
    for number in range(5):
        training.train(curve_of(0.6 + 0.01 * number, 0.2))
        training.train([2.0 - 0.18 * step + 0.01 * number for step in STEPS])
    assert training.train([1.95 - 0.18 * step for step in STEPS]) is None       # the best one in the end
    assert training.train(curve_of(0.9, 0.2)) is not None


def test_curves_that_get_worse_before_they_get_better() -> None:
    def hump(end: float) -> list[float]:
        return [end + (0.5 if step < 3 else 1.5 if step < 5 else 0.75 / step if step < 9 else 0.0) for step in STEPS]

    training = Training()
    for number in range(6):
        training.train(hump(1.0 + 0.02 * number))
    assert training.train(hump(0.9)) is None
    assert training.train(hump(2.5)) is not None


def test_flat_curves_say_at_once_and_an_equal_one_is_not_behind() -> None:
    training = Training(prune={"rule": "curve", "startup": 3})
    for end in (0.5, 0.6, 0.7):
        assert training.train([end] * 9) is None
    assert training.train([0.5] * 9) is None
    said = training.train([0.55] * 9)
    assert said is not None
    assert (said["step"], said["chance"], said["expected"]) == (1, 0.0, 0.55)
    assert training.train([0.55, 0.54, 0.53, 0.52, 0.51, 0.5, 0.49, 0.48, 0.47]) is not None    # no other ever moved
    training.story.check()


@pytest.mark.parametrize(("turn", "direction"), [
    (lambda value: -value, "maximize"), (lambda value: 2.0 - value, "maximize"),
    (lambda value: value - 0.7, "minimize"), (lambda value: 1.0 / value, "maximize")])
def test_more_is_better_and_signs_change_nothing(turn: Callable[[float], float], direction: str) -> None:
    training = trained(turn, direction=direction)
    assert training.train([turn(value) for value in curve_of(0.4)]) is None
    said = training.train([turn(value) for value in curve_of(1.5)])
    assert said is not None
    assert said["threshold"] == turn(curve_of(0.4)[-1])
    assert said["low"] < said["expected"] < said["high"]
    training.story.check()


def test_noise_stops_nothing_that_is_still_open() -> None:
    rng = random.Random(0)
    training = Training()
    stopped = [training.train([1.0 + rng.gauss(0, 0.3) for _ in STEPS]) for _ in range(30)]
    early = [each["step"] for each in stopped if each is not None and each["chance"] == 0.0]
    assert not early
    assert all(each["expected"] > each["threshold"] for each in stopped if each is not None)


def test_a_report_that_is_no_number_is_stopped_and_one_in_the_past_left_out() -> None:
    training = trained()
    assert training.train([math.inf, *curve_of(0.4)[1:]]) is not None
    said = training.train([*curve_of(0.4)[:2], "nan"])
    assert said is not None
    assert (said["value"], said["chance"], said["step"]) == (None, 0.0, 3)
    assert "expected" not in said
    training.story.check()


def test_startup_warmup_and_the_last_step_stop_nobody() -> None:
    for prune in ({"startup": 7}, {"startup": 5, "warmup": 9}):
        training = trained(prune={"rule": "curve", **prune})
        assert training.train(curve_of(3.0)) is None


def test_without_a_fidelity_the_last_step_is_the_furthest_that_was_reported() -> None:
    training = trained(fidelity=None)
    said = training.train(curve_of(1.5))
    assert said is not None
    assert said["horizon"] == 9


def test_one_that_breaks_a_limit_is_nobodys_best_but_its_curve_is_a_curve() -> None:
    training = Training(metric="loss", limits=[{"name": "latency", "at_most": 1.0}])
    for number in range(6):
        training.number += 1
        training.story.ask(f"w{training.number}")
        for step, value in enumerate(curve_of(0.1 if number == 0 else 0.5 + 0.01 * number), start=1):
            training.story.report(f"w{training.number}", training.number, step, value)
        training.story.tell(f"w{training.number}", training.number,
                            values={"loss": 0.1 if number == 0 else 0.5 + 0.01 * number,
                                    "latency": 2.0 if number == 0 else 0.5})
    said = training.train(curve_of(1.5))
    assert said is not None
    assert (said["against"], said["threshold"], said["compared"]) == (2, 0.51, 6)


def test_a_voided_trial_is_no_curve_any_more_and_a_restart_finds_the_same() -> None:
    training = trained()
    story = training.story
    story.request("op", "trial.void", id="v", trial=6, reason="x")
    study = story.desk.state.studies["s"]
    kept = board_of(study).curves[0]
    again = Board(story.replayed().studies["s"]).curves[0]
    assert kept.leaders == again.leaders
    assert kept.at == again.at
    assert kept.by_ratios(next(iter(kept.whole.values())))
    assert {number: curve.values for number, curve in kept.whole.items()} == {
        number: curve.values for number, curve in again.whole.items()}
    assert 6 not in kept.whole
    said = training.train(curve_of(1.5))
    assert said is not None
    assert (said["against"], said["compared"]) == (5, 5)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300, 0.0])
def test_extreme_values_stop_no_daemon(value: float) -> None:
    for fill in ([value] * 9, [value, *curve_of(0.5)[1:]], [*curve_of(0.5)[:-1], value]):
        training = trained()
        training.train(fill)
        training.train(curve_of(0.7))
        training = Training(prune={"rule": "curve", "startup": 3})
        for _ in range(4):
            training.train(fill)
            training.train(curve_of(0.5))
        training.story.check()


def test_why_says_where_the_curve_led() -> None:
    training = trained()
    said = training.train(curve_of(1.5))
    assert said is not None
    words = flat(page_of(training.story.rows, training.number))
    assert f"Rule curve stopped it at step {said['step']}" in words
    assert "The chance to end better than" in words
    training.train([*curve_of(0.4)[:2], "nan"])
    assert "was no number" in flat(page_of(training.story.rows, training.number))


def test_old_and_new_spelling_of_a_metric_mean_the_same() -> None:
    two = [{"name": "a"}, {"name": "b"}]
    for key in ("by", "metric"):
        spec = StudySpec.model_validate({**BASE, "objectives": two, "prune": {"rule": "median", key: "b"}})
        assert spec.prune is not None
        assert spec.prune.looks_at == "b"
        assert orjson.loads(orjson.dumps(spec.model_dump(mode="json", exclude_unset=True)))["prune"][key] == "b"


def test_shapes_are_believed_as_far_as_they_were_borne_out() -> None:
    """At step 6 both kinds are at about 0.9: one fell early and is flat, the other still falls."""
    training = Training(prune={"rule": "curve", "startup": 5, "warmup": 6})
    for number in range(8):
        training.train([1.0 + 0.01 * number + 2.0 * math.exp(-step) for step in STEPS])
        training.train([0.25 + 0.01 * number + 1.5 * math.exp(-step / 9 * 1.4) for step in STEPS])
    said = training.train([0.95 + 2.0 * math.exp(-step) for step in STEPS])
    assert said is not None
    assert said["step"] == 6
    assert said["high"] - said["low"] < 0.25
    assert training.train([0.2 + 1.5 * math.exp(-step / 9 * 1.4) for step in STEPS]) is None
