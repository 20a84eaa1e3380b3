"""What is believed of the points tried: that luck is seen as luck, and what is clear as clear."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bayesd.optimize import beliefs as module
from bayesd.optimize.arms import DRAWS, Arms, arms
from bayesd.optimize.encode import cube
from bayesd.optimize.neighbourhood import box, worst_nearby
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Space

FLOATS = Space.model_validate({name: {"type": "float", "low": 0, "high": 1} for name in "xy"})
CELLS = Space.model_validate({"x": {"type": "int", "low": 0, "high": 11}})


def problem(space: Space, told: list[tuple[dict[str, Any], float]], direction: Any = "minimize") -> Problem:
    return Problem(space, (direction,), "bayes", 3, True, len(told) + 1, 0, tuple(
        Observation(number, params, (value,)) for number, (params, value) in enumerate(told, start=1)))


def believed(of: Problem) -> Arms:
    known = arms(of)
    assert known is not None
    return known


def scattered(n: int, seed: int) -> list[dict[str, Any]]:
    return [{"x": float(x), "y": float(y)} for x, y in np.random.default_rng(seed).uniform(size=(n, 2))]


def test_the_luckiest_of_many_equals_is_not_called_the_best() -> None:
    """20 values of noise alone: the lowest is the best of them in one case of 20."""
    stated = []
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(size=20)
        points = scattered(20, seed)
        known = believed(problem(FLOATS, list(zip(points, noise.tolist(), strict=True))))
        stated.append(float(known.probability[known.of_trial[int(np.argmin(noise)) + 1]]))
    assert np.mean(stated) < 0.35
    assert max(stated) < 0.7


def test_a_clear_best_is_called_so_and_costs_nothing() -> None:
    points = scattered(25, 1)
    values = [(p["x"] - 0.4) ** 2 + (p["y"] - 0.6) ** 2 for p in points]
    points[7], values[7] = {"x": 0.4, "y": 0.6}, 0.0
    known = believed(problem(FLOATS, list(zip(points, values, strict=True))))
    at = known.of_trial[8]
    assert known.probability[at] > 0.9
    assert known.loss[at] < 1e-3 * np.ptp(values)
    assert known.probability.sum() == pytest.approx(1.0)
    assert (known.loss >= 0).all()


def test_more_is_better_is_the_same_question_upside_down() -> None:
    points, noise = scattered(15, 2), np.random.default_rng(2).normal(size=15)
    least = believed(problem(FLOATS, list(zip(points, noise.tolist(), strict=True))))
    most = believed(problem(FLOATS, list(zip(points, (-noise).tolist(), strict=True)), "maximize"))
    assert np.allclose(least.probability, most.probability, atol=2 / DRAWS)
    assert np.allclose(least.mean, -most.mean)
    assert np.allclose(least.loss, most.loss)


def test_trials_at_one_point_are_one_arm_and_speak_for_it_together() -> None:
    points, noise = scattered(12, 4), 0.3 * np.random.default_rng(4).normal(size=12)
    told = [(p, float(e)) for p, e in zip(points, noise, strict=True)]
    told[0] = (points[0], -1.5)     # lucky
    again = [(points[0], float(e)) for e in 0.3 * np.random.default_rng(5).normal(size=8)]
    once, often = believed(problem(FLOATS, told)), believed(problem(FLOATS, told + again))
    assert len(often.mean) == len(once.mean) == 12
    assert {often.of_trial[number] for number in (1, *range(13, 21))} == {often.of_trial[1]}
    assert often.mean[often.of_trial[1]] > once.mean[once.of_trial[1]] + 0.3
    assert often.probability[often.of_trial[1]] < once.probability[once.of_trial[1]] - 0.2


def test_what_nobody_measured_again_may_be_the_points_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that its neighbours do not bear out is luck, or the function is rougher than they show: measured once,
    nobody can tell; measured again and again, one can."""
    random = np.random.default_rng(8)
    points = scattered(40, 8)
    away = [(p["x"] - 0.5) ** 2 + (p["y"] - 0.5) ** 2 for p in points]
    told = [(p, 4 * d + 0.2 * float(random.normal())) for p, d in zip(points, away, strict=True)]
    slope = min(range(40), key=lambda i: abs(away[i] - 0.09))
    told[slope] = (points[slope], -0.4)
    again = [(points[slope], 0.4 + 0.2 * float(random.normal())) for _ in range(8)]
    once, often = believed(problem(FLOATS, told)), believed(problem(FLOATS, told + again))
    monkeypatch.setattr(module, "SMOOTH", {0.0: 1.0})
    sure, surer = believed(problem(FLOATS, told)), believed(problem(FLOATS, told + again))
    at = once.of_trial[slope + 1]
    assert once.mean[at] < sure.mean[at] - 0.01
    assert once.sd[at] > sure.sd[at] + 0.02
    assert once.probability[at] > 2 * sure.probability[at]
    assert often.mean[at] == pytest.approx(surer.mean[at], abs=0.005)
    assert often.probability[at] < 0.002


def test_what_a_cell_of_a_table_says_again_and_again_is_its_own_and_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the cells nothing need be smooth: a cell that was good four times is, whatever its neighbours say."""
    random = np.random.default_rng(6)
    rough = np.where(np.arange(12) == 5, -1.0, 0.6 * random.normal(size=12).clip(-1, 1))
    told = [({"x": x}, float(rough[x] + 0.15 * random.normal())) for x in range(12) for _ in range(4)]
    asked = problem(CELLS, told)
    known = believed(asked)
    assert known.probability[known.of_trial[21]] > 0.8
    assert known.mean[known.of_trial[21]] == pytest.approx(-1.0, abs=0.2)
    monkeypatch.setattr(module, "CELLS", {0.0: 1.0})
    assert believed(asked).sd[known.of_trial[21]] != known.sd[known.of_trial[21]]


def test_it_is_a_function_of_the_history_and_too_little_of_it_says_nothing() -> None:
    told = list(zip(scattered(9, 7), np.random.default_rng(7).normal(size=9).tolist(), strict=True))
    one, other = believed(problem(FLOATS, told)), believed(problem(FLOATS, told))
    assert (one.probability == other.probability).all()
    assert arms(problem(FLOATS, told[:2])) is None
    assert believed(replace(problem(FLOATS, told), surrogate="forest")).probability.sum() == pytest.approx(1.0)


def test_a_box_stays_in_the_space_and_moves_no_category() -> None:
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1},
                                  "n": {"type": "int", "low": 1, "high": 5},
                                  "kind": {"type": "categorical", "choices": ["a", "b", "c"]}})
    of = cube(space)
    point: dict[str, Any] = {"x": 0.02, "n": 3, "kind": "b"}
    found = of.decode(box(of, of.encode([point])[0], 0.05))
    assert found[0] == point
    assert {each["kind"] for each in found} == {"b"}
    assert {each["n"] for each in found} == {2, 3, 4}
    assert min(each["x"] for each in found) == 0.0
    assert max(each["x"] for each in found) == pytest.approx(0.07)


def test_the_worst_nearby_is_worse_where_the_valley_is_narrow() -> None:
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1}})
    xs = np.linspace(0, 1, 41)
    told = [({"x": float(x)}, float(min(40 * abs(x - 0.25) - 1.0, 4 * (x - 0.75) ** 2 - 0.9, 1.0))) for x in xs]
    narrow, broad = worst_nearby(problem(space, told), [{"x": 0.25}, {"x": 0.75}], 0.05) or (0.0, 0.0)
    assert narrow > broad + 0.3
