"""What every sampler promises: one suite for all of them, on every kind of space."""

import math
from dataclasses import replace
from typing import Any

import pytest

from bayesd.optimize import suggest
from bayesd.study.problem import Observation, Problem, Proposal
from bayesd_schemas.space import Space


def fresh(space: Space, method: str, **changes: Any) -> Problem:
    chosen: Any = method
    return replace(Problem(space, ("minimize",), chosen, 7, True, 1, 0), **changes)


def outcome(params: Any) -> float:
    return sum(math.sin(i + len(str(value))) for i, value in enumerate(params.values()))


def with_history(problem: Problem, trials: int) -> Problem:
    """The problem after some finished trials at random points."""
    points = suggest(replace(problem, method="random"), trials).proposals
    history = tuple(Observation(i, point.params, None if i % 5 == 4 else (outcome(point.params),))
                    for i, point in enumerate(points, start=1))
    return replace(problem, history=history, number=len(history) + 1)


def key(params: Any) -> str:
    return repr(sorted(params.items()))


def test_points_are_valid_typed_and_in_the_order_of_the_space(method: str, any_space: Space) -> None:
    for problem in (fresh(any_space, method), with_history(fresh(any_space, method), 14)):
        for proposal in suggest(problem, 5).proposals:
            checked = any_space.check(proposal.params)
            assert checked == proposal.params
            assert [type(v) for v in checked.values()] == [type(v) for v in proposal.params.values()]
            assert list(checked) == list(proposal.params)
            assert all(math.isfinite(v) for v in checked.values() if isinstance(v, float))


def test_no_plain_sampler_stands_in(method: str, any_space: Space) -> None:
    for proposal in suggest(with_history(fresh(any_space, method), 14), 3).proposals:
        assert proposal.sampler == method
        assert proposal.fallback is None or "no candidate" in proposal.fallback


def test_the_same_problem_gives_the_same_suggestion(method: str, any_space: Space) -> None:
    problem = with_history(fresh(any_space, method), 14)
    again = replace(problem, space=Space.model_validate(any_space.model_dump(exclude_unset=True)))
    assert suggest(problem, 3) == suggest(problem, 3) == suggest(again, 3)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("trials", [0, 3, 14])
def test_one_call_for_three_equals_three_calls_for_one(
        method: str, any_space: Space, trials: int, repeats: bool) -> None:
    start = with_history(fresh(any_space, method, repeats=repeats), trials)
    one_by_one: list[Proposal] = []
    now, fit = start, None
    for _ in range(3):
        suggestion = suggest(now)
        fit = fit or suggestion.fit
        if not suggestion.proposals:
            break
        proposal = suggestion.proposals[0]
        one_by_one.append(proposal)
        now = replace(now, number=now.number + 1, drawn=proposal.drawn, fit=suggestion.fit or now.fit,
                      pending=(*now.pending, proposal.params))
    together = suggest(start, 3)
    assert list(together.proposals) == one_by_one
    assert together.exhausted == (len(one_by_one) < 3)
    assert together.fit == fit


def test_a_study_resumes_where_it_stopped(method: str, any_space: Space) -> None:
    whole = suggest(fresh(any_space, method), 4).proposals
    first = suggest(fresh(any_space, method), 2).proposals
    rest = suggest(fresh(any_space, method, number=3, drawn=first[-1].drawn,
                         pending=tuple(proposal.params for proposal in first)), 2).proposals
    assert whole == first + rest


def test_seeds_differ_and_are_named_in_the_stream(any_space: Space) -> None:
    if len(any_space) > 1:      # one categorical value may well be drawn twice
        for method in ("random", "sobol"):
            drawn = {seed: suggest(fresh(any_space, method, seed=seed), 8) for seed in (1, 2)}
            assert drawn[1] != drawn[2]
            assert drawn[1].proposals[0].stream.startswith("1/")


def test_random_depends_on_seed_and_number_alone(any_space: Space) -> None:
    many = suggest(fresh(any_space, "random"), 40).proposals
    later = suggest(fresh(any_space, "random", number=30), 2).proposals
    assert [p.params for p in many[29:31]] == [p.params for p in later]
    assert [p.stream for p in later] == ["7/30/random", "7/31/random"]


@pytest.mark.parametrize("name", ["small", "choices only"])
def test_without_repeats_a_small_space_is_used_up_once(method: str, name: str, spaces: dict[str, Space]) -> None:
    space = spaces[name]
    total = {"small": 4 * 3 + 4 * 3 + 4, "choices only": 12}[name]
    now = fresh(space, method, repeats=False)
    points: list[str] = []
    while True:
        suggestion = suggest(now)
        if not suggestion.proposals:
            break
        proposal = suggestion.proposals[0]
        assert not suggestion.exhausted
        points.append(key(proposal.params))
        assert len(points) <= total
        # Every third stays pending and every fifth fails: all of them count as seen.
        pending = (*now.pending, proposal.params) if len(points) % 3 == 0 else now.pending
        history = now.history if len(points) % 3 == 0 else (*now.history, Observation(
            now.number, proposal.params, None if len(points) % 5 == 0 else (outcome(proposal.params),)))
        now = replace(now, number=now.number + 1, drawn=proposal.drawn, pending=pending, history=history,
                      fit=suggestion.fit or now.fit)
    assert suggestion.exhausted
    assert len(points) == len(set(points)) == total


@pytest.mark.parametrize("plain", ["random", "sobol", "bayes"])
def test_with_repeats_a_small_space_never_runs_out(plain: str, spaces: dict[str, Space]) -> None:
    suggestion = suggest(with_history(fresh(spaces["choices only"], plain), 60), 20)
    assert len(suggestion.proposals) == 20
    assert not suggestion.exhausted


def test_points_of_an_earlier_space_do_no_harm(method: str, any_space: Space) -> None:
    old: tuple[dict[str, Any], ...] = (
        {}, {"gone": 3, "x": 1e9}, {"kernel": "vanished", "lr": -1, "n": "text", "a": 0.5}, {"x": True, "size": 3})
    problem = fresh(any_space, method, pending=old[:2], number=9, history=tuple(
        Observation(i, params, (float(i),)) for i, params in enumerate(old * 3, start=1)))
    for proposal in suggest(problem, 2).proposals:
        assert any_space.check(proposal.params) == proposal.params
        assert proposal.fallback is None or "no candidate" in proposal.fallback


def test_nothing_asked_nothing_given(method: str, any_space: Space) -> None:
    assert suggest(fresh(any_space, method), 0).proposals == ()


@pytest.mark.parametrize("repeats", [True, False])
def test_one_call_may_use_a_space_up(method: str, repeats: bool, spaces: dict[str, Space]) -> None:
    suggestion = suggest(fresh(spaces["choices only"], method, repeats=repeats), 30)
    distinct = {key(proposal.params) for proposal in suggestion.proposals}
    if method == "grid" or not repeats:
        assert len(suggestion.proposals) == len(distinct) == 12
        assert suggestion.exhausted
    else:
        assert len(suggestion.proposals) == 30
        assert not suggestion.exhausted


def test_the_stream_of_a_model_is_that_of_its_trial(spaces: dict[str, Space]) -> None:
    problem = with_history(fresh(spaces["every kind"], "bayes"), 14)
    other = suggest(replace(problem, number=problem.number + 1)).proposals[0]
    assert other.stream == f"7/{problem.number + 1}/bayes"
    assert other.params != suggest(problem).proposals[0].params
