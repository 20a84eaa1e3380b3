"""What a trial takes is learned, and improvement is looked for per unit of it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bayesd.optimize import doubt_of, fit_of, suggest, value_of
from bayesd.optimize.cost import spent
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Params, Space

SPACE = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1}})


def steep(params: Params) -> float:
    """From 2 to 100."""
    return 2.0 * math.pow(50.0, of(params, "x"))


def of(params: Params, name: str) -> float:
    value = params[name]
    assert isinstance(value, float)
    return value


def problem_of(cost: Callable[[Params], float | None], n: int = 16, fails: int = 0, **more: Any) -> Problem:
    """Points of a design, measured; every `fails`-th one failed."""
    points = [each.params for each in suggest(Problem(SPACE, ("minimize",), "sobol", 3, True, 1, 0), n).proposals]
    history = tuple(
        Observation(i, params, None) if fails and i % fails == 0 else
        Observation(i, params, ((of(params, "x") - 0.6) ** 2 + (of(params, "y") - 0.3) ** 2,), spent=cost(params))
        for i, params in enumerate(points, start=1))
    return Problem(SPACE, ("minimize",), "bayes", 3, True, n + 1, n, history, **more)


def test_a_cheaper_point_is_proposed_the_more_the_cost_counts() -> None:
    problem = problem_of(steep, thrift=0.0)
    made = [suggest(replace(problem, thrift=power)).proposals[0] for power in (0.0, 0.5, 1.0)]
    took = [steep(each.params) for each in made]
    assert took[2] < took[1] < took[0]
    assert [each.power for each in made] == [0.0, 0.5, 1.0]


def test_what_a_point_takes_is_foretold() -> None:
    proposal = suggest(problem_of(steep, thrift=0.5)).proposals[0]
    assert proposal.cost == pytest.approx(steep(proposal.params), rel=0.15)


def test_costs_that_are_all_alike_move_nothing() -> None:
    plain = suggest(problem_of(lambda params: None)).proposals[0]
    alike = suggest(problem_of(lambda params: 7.0, thrift=1.0)).proposals[0]
    assert (plain.params, plain.acquisition) == (alike.params, alike.acquisition)
    assert (plain.power, plain.cost) == (None, None)
    assert alike.cost == pytest.approx(7.0)


def test_a_unit_moves_nothing() -> None:
    euros = suggest(problem_of(steep, thrift=1.0)).proposals[0]
    cents = suggest(problem_of(lambda params: 100 * steep(params), thrift=1.0)).proposals[0]
    assert euros.params == cents.params
    assert euros.cost is not None
    assert cents.cost == pytest.approx(100 * euros.cost)


@pytest.mark.parametrize("fails", [0, 4])
def test_the_fit_on_record_has_the_costs_and_gives_the_same_answer_again(fails: int) -> None:
    problem = problem_of(steep, fails=fails, thrift=0.7)
    made = suggest(problem, 2)
    plain = suggest(problem_of(lambda params: None, fails=fails))
    assert made.fit is not None
    assert plain.fit is not None
    size = len(plain.fit.theta) // (1 + (fails > 0))
    assert made.fit.theta[:-size] == plain.fit.theta       # the other models are what they were
    again = replace(problem, fit=made.fit)
    assert suggest(again, 2).proposals == made.proposals
    assert suggest(again).fit is None
    assert fit_of(again) is None
    assert fit_of(problem) == made.fit
    assert math.isfinite(doubt_of(problem, made.fit))
    first = made.proposals[0]
    assert first.acquisition is not None
    assert value_of(again, first.params) == pytest.approx(first.acquisition, abs=1e-6)


@pytest.mark.parametrize("directions", [("minimize", "minimize"), ("minimize",) * 5])
def test_several_objectives_heed_it_too(directions: tuple[Any, ...]) -> None:
    problem = problem_of(steep, fails=5)
    history = tuple(each if each.values is None else replace(each, values=tuple(
        each.values[0] + k * of(each.params, "y") for k in range(len(directions)))) for each in problem.history)
    problem = replace(problem, directions=directions, history=history)
    dear, cheap = (suggest(replace(problem, thrift=power)) for power in (0.0, 1.0))
    assert not any(each.fallback for each in (*dear.proposals, *cheap.proposals))
    assert steep(cheap.proposals[0].params) < steep(dear.proposals[0].params)


def test_a_forest_learns_costs_as_well() -> None:
    proposal = suggest(problem_of(steep, n=40, thrift=1.0, surrogate="forest")).proposals[0]
    assert proposal.fallback is None
    assert proposal.cost == pytest.approx(steep(proposal.params), rel=0.5)


def test_few_costs_and_costs_of_nothing_make_no_model() -> None:
    some = problem_of(lambda params: 3.0, n=7, thrift=1.0)
    free = replace(some, history=tuple(replace(each, spent=0.0) for each in some.history[:3]) + some.history[3:])
    assert spent(free, 100) is None
    assert suggest(free).proposals[0].cost is None
    assert spent(some, 100) is not None


def test_a_long_history_is_thinned_evenly() -> None:
    told = spent(problem_of(steep, n=90), 10)
    assert told is not None
    assert told.rows.tolist() == sorted(set(told.rows.tolist()))
    assert len(told.rows) == 10
    assert (told.rows[0], told.rows[-1]) == (0, 89)
