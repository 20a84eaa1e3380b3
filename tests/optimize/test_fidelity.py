"""What a trial that was stopped early says of its final value."""

from dataclasses import replace

import numpy as np
import pytest

from bayesd.optimize import suggest, value_of
from bayesd.optimize.fidelity import at_full
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Space

RUNGS = (1, 3, 9)
MOST = 27


def curve(x: float) -> list[float]:
    """A loss by epoch that falls to (x - 1)^2, the faster the nearer."""
    return [(x - 1) ** 2 + (2 + abs(x - 1)) / epoch for epoch in range(1, MOST + 1)]


def seen(trial: int, x: float, reached: int | None, sign: float = 1.0) -> Observation:
    """What is known of a trial after `reached` epochs; None: all of them."""
    loss = [sign * each for each in curve(x)]
    rungs = tuple((rung / MOST, loss[rung - 1]) for rung in RUNGS if reached is None or rung <= reached)
    return Observation(trial, {"x": x}, (loss[(reached or MOST) - 1],), curve=rungs,
                       fidelity=None if reached is None else reached / MOST)


def place(of: Observation) -> float:
    x = of.params["x"]
    assert isinstance(x, float)
    return x


def halved(trials: int, sign: float = 1.0) -> Problem:
    """Points all over the space, of which one of three goes on at a rung."""
    known: list[list[float]] = [[] for _ in RUNGS]
    history = []
    for number, x in enumerate(np.random.default_rng(0).uniform(-5, 5, trials).tolist(), start=1):
        stop = None
        for rung, others in zip(RUNGS, known, strict=True):
            value = curve(x)[rung - 1]
            others.append(value)
            if sum(each < value for each in others) >= max(1, len(others) // 3):
                stop = rung
                break
        history.append(seen(number, x, stop, sign))
    space = Space.model_validate({"x": {"type": "float", "low": -5, "high": 5}})
    return Problem(space, ("minimize" if sign > 0 else "maximize",), "bayes", 0, True, trials + 1, trials,
                   tuple(history))


def test_estimates_are_near_the_final_values_and_as_unsure_as_they_are_wrong() -> None:
    problem = halved(40)
    found = at_full(problem).history
    wrong = np.array([(mine.values or (0.0,))[0] - curve(place(mine))[-1] for mine in found])
    raw = np.array([(each.values or (0.0,))[0] - curve(place(each))[-1] for each in problem.history])
    se = np.array([each.se or 0.0 for each in found])
    early = np.array([each.fidelity is not None for each in problem.history])
    assert 25 < early.sum() < 40
    assert not wrong[~early].any()
    assert not se[~early].any()
    assert np.median(np.abs(wrong[early])) < np.median(np.abs(raw[early])) / 2
    assert np.all(np.abs(wrong[early]) < 3 * se[early])
    assert all(each.fidelity is None and (each.se is None or not each.curve) for each in found)


def test_the_other_direction_is_its_mirror_image() -> None:
    one, other = at_full(halved(30)).history, at_full(halved(30, sign=-1.0)).history
    for mine, its in zip(one, other, strict=True):
        assert mine.values is not None
        assert its.values == pytest.approx((-mine.values[0],))
        assert its.se == pytest.approx(mine.se)


def test_a_higher_rung_leaves_less_doubt() -> None:
    problem = halved(40)
    doubts = [at_full(replace(problem, history=(*problem.history, seen(41, 0.5, rung)))).history[-1].se
              for rung in RUNGS]
    assert None not in doubts
    assert doubts == sorted(doubts, key=lambda each: -(each or 0.0))


def test_before_anything_went_further_the_order_is_kept() -> None:
    few = replace(halved(1), history=tuple(seen(n, x, 1) for n, x in enumerate((4.0, 1.0, -3.0), start=1)))
    found = [(each.values or (0.0,))[0] for each in at_full(few).history]
    assert found == pytest.approx([curve(x)[0] for x in (4.0, 1.0, -3.0)])
    more = replace(few, history=(*few.history, seen(4, 0.0, None)))
    known = at_full(more).history
    found = [(each.values or (0.0,))[0] for each in known]
    assert np.argsort(found[:3]).tolist() == [1, 0, 2]
    assert all((each.se or 0.0) > 0 for each in known[:3])


def test_failures_a_diverged_run_and_equal_values_are_lived_with() -> None:
    problem = halved(12)
    wild = Observation(13, {"x": 2.0}, (1e300,), fidelity=1 / MOST, curve=((1 / MOST, 1e300),))
    early = Observation(14, {"x": 2.5}, (7.0,), fidelity=0.5 / MOST)
    failed = Observation(15, {"x": 3.0}, None)
    mixed = replace(problem, history=(*problem.history, wild, early, failed))
    found = at_full(mixed).history
    assert found[-1] is failed
    assert all(np.isfinite([each.values[0], each.se or 0.0]).all() for each in found if each.values is not None)
    assert suggest(mixed).proposals[0].fallback is None
    equal = replace(problem, history=tuple(replace(each, values=(1.0,), curve=tuple((s, 1.0) for s, _ in each.curve))
                                           for each in problem.history))
    assert [each.values for each in at_full(equal).history] == [(1.0,)] * 12


def test_without_partial_observations_or_with_several_objectives_nothing_is_touched() -> None:
    problem = halved(12)
    whole = replace(problem, history=tuple(seen(each.trial, place(each), None)
                                           for each in problem.history))
    assert at_full(whole) is whole
    two = replace(problem, directions=("minimize", "minimize"))
    assert at_full(two) is two


def test_the_model_looks_where_final_values_are_good() -> None:
    """Near the optimum a trial was stopped by chance after an epoch; far away one was trained to the end."""
    problem = halved(30)
    near, far = value_of(problem, {"x": 1.1}), value_of(problem, {"x": -4.0})
    assert near is not None
    assert far is not None
    assert near > far
    as_final = replace(problem, history=tuple(replace(each, fidelity=None, curve=()) for each in problem.history))
    assert value_of(as_final, {"x": 1.1}) != near
