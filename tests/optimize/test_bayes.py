"""The learning sampler: any history, no duplicates, and clearly better than chance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayesd.optimize import bayes, posterior_at_data, samplers, suggest, surrogate
from bayesd.study.problem import Fit, Observation, Problem
from bayesd_schemas.space import Space

TWO = Space.model_validate({"x": {"type": "float", "low": -5, "high": 5}, "y": {"type": "float", "low": -5, "high": 5}})


def fresh(space: Space = TWO, **changes: Any) -> Problem:
    return replace(Problem(space, ("minimize",), "bayes", 3, True, 1, 0), **changes)


def told(values: Sequence[float | None], space: Space = TWO, **changes: Any) -> Problem:
    """A problem whose history has these values at random points."""
    points = suggest(fresh(space, method="random"), len(values)).proposals
    return fresh(space, number=len(values) + 1, **changes, history=tuple(
        Observation(i, point.params, None if value is None else (value,))
        for i, (point, value) in enumerate(zip(points, values, strict=True), start=1)))


def play(problem: Problem, trials: int, objective: Callable[[Any], float | tuple[float, ...] | None],
         workers: int = 1) -> Problem:
    """Trials finish in the order they were asked for, with `workers` on their way at a time."""
    now = problem
    running: list[tuple[int, Any]] = []
    for _ in range(trials + workers - 1):
        if now.number <= trials:
            suggestion = suggest(now)
            proposal = suggestion.proposals[0]
            assert proposal.fallback is None
            running.append((now.number, proposal.params))
            now = replace(now, number=now.number + 1, drawn=proposal.drawn, fit=suggestion.fit or now.fit)
        if len(running) == workers or now.number > trials:
            trial, params = running.pop(0)
            value = objective(params)
            values = value if isinstance(value, tuple) or value is None else (value,)
            now = replace(now, history=(*now.history, Observation(trial, params, values)))
        now = replace(now, pending=tuple(params for _, params in running))
    return now


def best(problem: Problem) -> float:
    return min(o.values[0] for o in problem.history if o.values)


# Any history ---------------------------------------------------------------------------------

HISTORIES: dict[str, Sequence[float | None]] = {
    "one point": [1.0],
    "constant": [2.0] * 12,
    "constant but for rounding": [1.0 + 1e-16 * i for i in range(12)],
    "all failed": [None] * 12,
    "one success": [None] * 11 + [1.0],
    "huge": [1e300, -1e300] * 6,
    "tiny": [1e-310 * i for i in range(12)],
    "outliers": [1e6, 1.0, 1.1, 1e6, 0.9, 1e6, 1.2, 0.8, 1.05, 1e6, 1e4, 0.95],
    "one in a plateau": [0.0] * 11 + [-1e-9],
    "zeros": [0.0] * 12,
}


@pytest.mark.parametrize("name", list(HISTORIES))
@pytest.mark.parametrize(("direction", "surrogate"), [("minimize", "gp"), ("maximize", "gp"), ("maximize", "forest")])
def test_any_history_has_a_next_point(name: str, direction: Any, surrogate: Any) -> None:
    problem = told(HISTORIES[name], directions=(direction,), surrogate=surrogate)
    for proposal in suggest(problem, 2).proposals:
        assert TWO.check(proposal.params) == proposal.params
        assert proposal.fallback is None
        for number in (proposal.acquisition, proposal.mean, proposal.sd):
            assert number is None or math.isfinite(number)
    means, sds = posterior_at_data(problem)
    assert len(means) == len(sds) == len(problem.history)
    assert all(map(math.isfinite, [*means, *sds]))
    assert all(sd >= 0 for sd in sds)


def test_one_place_again_and_again_and_nearly() -> None:
    for spread in (0.0, 1e-15, 1e-9):
        history = tuple(Observation(i, {"x": 1.0 + i * spread, "y": 2.0}, (float(i % 3),)) for i in range(40))
        proposal = suggest(fresh(history=history, number=41)).proposals[0]
        assert proposal.fallback is None
        assert proposal.params != {"x": 1.0, "y": 2.0}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.floats(-1e300, 1e300) | st.none(), min_size=1, max_size=15), st.integers(0, 100))
def test_nothing_raises(values: list[float | None], pending: int) -> None:
    waiting = tuple(p.params for p in suggest(fresh(method="random", number=500), pending % 7).proposals)
    suggestion = suggest(told(values, pending=waiting), 1)
    assert suggestion.proposals[0].fallback is None
    posterior_at_data(told(values))


def test_a_number_that_breaks_the_model_is_answered_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise np.linalg.LinAlgError("no such matrix")

    monkeypatch.setattr(bayes, "surrogate", broken)
    suggestion = suggest(told([1.0] * 12), 2)
    assert [p.sampler for p in suggestion.proposals] == ["random", "random"]
    assert suggestion.proposals[0].fallback == "bayes: LinAlgError: no such matrix"
    assert posterior_at_data(told([1.0, None, 3.0])) == ((1.0, 3.0, 3.0), (0.0, 0.0, 0.0))


# The evidence in a proposal --------------------------------------------------------------------

def test_the_first_points_are_the_centre_and_a_design() -> None:
    proposals = suggest(fresh(), 6).proposals
    assert proposals[0].params == {"x": 0.0, "y": 0.0}
    assert [p.sampler for p in proposals] == ["sobol"] * 6
    assert [p.drawn for p in proposals] == [1, 2, 3, 4, 5, 6]


def test_mean_and_sd_are_in_the_units_of_the_metric() -> None:
    for direction, sign in (("minimize", 1), ("maximize", -1)):
        def height(p: Any, sign: int = sign) -> float:
            return float(sign * (1000 + p["x"] ** 2 + p["y"] ** 2))

        now = play(fresh(directions=(direction,)), 25, height)
        proposal = suggest(now).proposals[0]
        truth = height(proposal.params)
        assert proposal.sd is not None
        assert 0 < proposal.sd < 25     # the outcomes' own range is 50
        assert proposal.mean == pytest.approx(truth, abs=3 * proposal.sd)
        assert proposal.gap is not None
        assert proposal.gap >= 0
        means, sds = posterior_at_data(now)
        assert means == pytest.approx([o.values[0] for o in now.history if o.values], abs=1)
        assert min(sds) >= 0
        assert np.median(sds) < 3


def test_noise_is_smoothed_at_the_data() -> None:
    rng = np.random.default_rng(0)
    history = tuple(Observation(i, {"x": float(x), "y": 0.0}, (x**2 + float(rng.normal()),))
                    for i, x in enumerate(np.linspace(-5, 5, 60)))
    means = np.array(posterior_at_data(fresh(history=history))[0])
    truth = np.linspace(-5, 5, 60) ** 2
    observed = np.array([o.values[0] for o in history if o.values])
    assert np.std(means - truth) < 0.6 * np.std(observed - truth)


def test_a_known_error_is_believed() -> None:
    history = [Observation(i, {"x": x, "y": 0.0}, (x * x,)) for i, x in enumerate(np.linspace(-5, 5, 21).tolist())]
    odd = replace(history[10], values=(30.0,))
    plain = posterior_at_data(fresh(history=(*history[:10], odd, *history[11:])))[0][10]
    told_so = posterior_at_data(fresh(history=(*history[:10], replace(odd, se=100.0), *history[11:])))[0][10]
    assert abs(told_so) < abs(plain)
    assert abs(told_so) < 5


def test_a_forest_learns_a_tree_of_parameters() -> None:
    now = play(fresh(TREE, surrogate="forest"), 35, tree, workers=4)
    plain = [best(play(fresh(TREE, method="random", seed=seed), 35, tree)) for seed in range(5)]
    assert best(now) < 0.4 * np.mean(plain)
    suggestion = suggest(now)
    assert suggestion.fit is None       # it has no hyperparameters to log
    assert suggestion == suggest(now)
    assert suggestion.proposals[0].sampler == "bayes"
    observed = [o.values[0] for o in now.history if o.values]
    assert np.corrcoef(posterior_at_data(now)[0], observed)[0, 1] > 0.8


# Fits ------------------------------------------------------------------------------------------

def test_fits_follow_counts_and_are_taken_as_given() -> None:
    due = [n for n, last in zip(range(6, 200), range(5, 200), strict=False) if surrogate.refit_due(n, last)]
    assert due == list(range(6, 21))
    assert surrogate.refit_due(110, 100)
    assert not surrogate.refit_due(109, 100)
    anew = [n for n in range(6, 101) if surrogate.anew_due(n, n - 1)]
    assert anew == [21, 26, 32, 41, 51, 64, 81]
    assert surrogate.anew_due(20, 0)
    assert not surrogate.anew_due(19, 0)
    problem = told([float(i * i) for i in range(30)])
    first = suggest(problem)
    assert first.fit is not None
    assert first.fit.n == 30
    again = suggest(replace(problem, fit=first.fit))
    assert again.fit is None
    assert again.proposals == first.proposals


def test_a_fit_of_another_model_is_not_used() -> None:
    problem = told([float(i * i) for i in range(12)])
    own = suggest(problem).fit
    assert own is not None
    for strange in (Fit("older", 12, own.theta), Fit(own.model, 12, (0.0,) * 3),
                    Fit(own.model, 12, (math.nan, *own.theta[1:])), Fit(own.model, 12, (900.0, *own.theta[1:]))):
        assert suggest(replace(problem, fit=strange)) == suggest(problem)


def test_what_fails_even_at_random_says_that_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no")

    problem = told([1.0] * 12)
    monkeypatch.setattr(samplers, "random", broken)
    monkeypatch.setattr(bayes, "suggest", broken)
    assert suggest(problem).exhausted


def test_a_look_back_takes_the_recorded_fit_however_old(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = told([math.sin(i) for i in range(40)])
    early = suggest(replace(problem, history=problem.history[:20])).fit
    assert early is not None
    assert surrogate.refit_due(40, early.n)

    def never(*_: Any) -> Any:
        raise AssertionError("fitted again")

    monkeypatch.setattr(surrogate, "fit", never)
    means, sds = posterior_at_data(replace(problem, fit=early))
    assert len(set(means)) == 40
    assert all(sd > 0 for sd in sds)


def test_more_observations_than_the_model_holds() -> None:
    rng = np.random.default_rng(0)
    history = tuple(Observation(i, {"x": float(x), "y": float(y)}, (float(x * x + y * y),))
                    for i, (x, y) in enumerate(rng.uniform(-5, 5, (700, 2))))
    suggestion = suggest(fresh(history=history, number=701))
    assert suggestion.counters["observations"] == surrogate.ROWS_MAX
    assert suggestion.proposals[0].mean == pytest.approx(0, abs=0.1)
    assert len(posterior_at_data(fresh(history=history))[0]) == 700
    rows = surrogate.telling(rng.random((700, 2)), np.arange(700.0), 600)
    assert set(range(200)) <= set(rows.tolist())
    assert len(set(rows.tolist())) == 600


# Pending, duplicates, several objectives --------------------------------------------------------

def test_pending_points_push_the_next_one_away() -> None:
    now = play(fresh(), 8, lambda p: p["x"] ** 2 + p["y"] ** 2)
    first = suggest(now).proposals[0].params
    alone, beside = (suggest(replace(now, number=now.number + 1, pending=pending)).proposals[0].params
                     for pending in ((), (first,)))

    def apart(other: Any) -> float:
        return math.dist(other.values(), first.values())  # type: ignore[arg-type]  # two floats each

    assert apart(alone) < 0.01      # the same top, found by another stream
    assert apart(beside) > 0.5


@pytest.mark.parametrize("repeats", [True, False])
def test_no_point_twice_while_there_are_new_ones(repeats: bool) -> None:
    space = Space.model_validate({
        "n": {"type": "int", "low": 1, "high": 10}, "k": {"type": "categorical", "choices": ["a", "b", "c"]},
        "m": {"type": "int", "low": 1, "high": 8, "scale": "log", "when": {"k": "a"}}})
    total = 10 * 8 + 20
    now = play(fresh(space, repeats=repeats), 50, lambda p: p["n"] + p.get("m", 9) + (p["k"] == "c"), workers=4)
    points = [repr(sorted(o.params.items())) for o in now.history]
    assert len(set(points)) == len(points) == 50 < total
    assert best(now) == 2


def test_several_objectives_spread_along_their_trade_off() -> None:
    start = fresh(directions=("minimize", "maximize"))
    now = play(start, 40, lambda p: ((p["x"] - 1) ** 2 + p["y"] ** 2, -((p["x"] + 1) ** 2) - p["y"] ** 2))
    late: list[Any] = [o.params for o in now.history[15:]]
    assert np.mean([abs(p["y"]) < 0.7 and -1.7 < p["x"] < 1.7 for p in late]) > 0.7     # the front: y = 0, x in [-1, 1]
    assert {round(float(p["x"])) for p in late} >= {-1, 0, 1}
    assert suggest(now).proposals[0].mean is None
    means, _ = posterior_at_data(now)
    assert means == pytest.approx([o.values[0] for o in now.history if o.values], abs=2)


def test_failures_are_avoided() -> None:
    now = play(fresh(), 40, lambda p: None if p["x"] > 0 else (p["x"] + 2) ** 2 + p["y"] ** 2)
    assert sum(o.values is None for o in now.history[10:]) <= 15    # half of the space fails
    assert best(now) < 0.001


def test_the_best_place_beside_a_cliff_is_found() -> None:
    """The optimum is at the edge of what works: a failure there says nothing bad of its neighbours' values."""
    now = play(fresh(), 40, lambda p: None if p["x"] > 1 else (p["x"] - 1.2) ** 2 + p["y"] ** 2)
    assert best(now) < 0.1      # 0.04 at the edge itself


def test_the_design_goes_on_while_everything_fails() -> None:
    now = play(fresh(), 40, lambda p: None if p["x"] < 3.5 else 1.0)
    first = next(i for i, o in enumerate(now.history) if o.values)
    assert 5 < first < 20
    assert suggest(replace(now, history=now.history[:first])).proposals[0].sampler == "sobol"


# Better than chance ------------------------------------------------------------------------------

def bowl(p: Any) -> float:
    return math.log1p(sum((value - 0.7 * i) ** 2 for i, value in enumerate(p.values())))


def branin(p: Any) -> float:
    x, y = 5 + 1.5 * (p["x"] - 1.6667), 7.5 + 1.5 * p["y"]
    return float((y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
            + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.397887)


def tree(p: Any) -> float:
    if p["kind"] == "wide":
        return 0.3 + abs(math.log10(p["lr"]) + 2)
    return float(abs(p["depth"] - 6) * 0.1 + (math.log10(p["lr"]) + 3) ** 2)


TREE = Space.model_validate({
    "kind": {"type": "categorical", "choices": ["wide", "deep", "none"]},
    "lr": {"type": "float", "low": 1e-6, "high": 1, "scale": "log"},
    "depth": {"type": "int", "low": 1, "high": 12, "when": {"kind": ["deep", "none"]}}})
FOUR = Space.model_validate({f"x{i}": {"type": "float", "low": -5, "high": 5} for i in range(4)})


@pytest.mark.parametrize(("space", "objective"), [(FOUR, bowl), (TWO, branin), (TREE, tree)])
@pytest.mark.parametrize("workers", [1, 4])
def test_better_than_chance(space: Space, objective: Callable[[Any], float], workers: int) -> None:
    ours = [best(play(fresh(space, seed=seed), 35, objective, workers)) for seed in range(3)]
    plain = [best(play(fresh(space, method="random", seed=seed), 35, objective)) for seed in range(9)]
    assert np.mean(ours) < 0.4 * np.mean(plain)
