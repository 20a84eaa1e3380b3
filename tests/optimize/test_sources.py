"""Earlier studies in the model: weights that follow results, a stack with its true gradient, points to begin with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bayesd.optimize import sources, suggest
from bayesd.optimize.encode import cube
from bayesd.optimize.kernel import Design
from bayesd.optimize.streams import Floats
from bayesd.optimize.transfer import Stacked
from bayesd.study.problem import Observation, Problem, Source
from bayesd_schemas.space import Space

SPACE: dict[str, Any] = {
    "x": {"type": "float", "low": -5, "high": 5}, "y": {"type": "float", "low": -5, "high": 5},
    "n": {"type": "int", "low": 1, "high": 8, "when": {"kind": "a"}},
    "kind": {"type": "categorical", "choices": ["a", "b"]}}
OF = cube(Space.model_validate(SPACE))
POINTS = OF.decode(np.random.default_rng(1).random((40, 4)))


def bowl(params: Any) -> float:
    apart = (params["x"] - 1) ** 2 + (params["y"] + 2) ** 2
    return float(apart + 0.5 * params.get("n", 3) + 2 * (params["kind"] == "b"))


def source(scale: float = 1.0, **more: Any) -> Source:
    return Source("earlier", tuple((params, scale * bowl(params)) for params in POINTS[:25]), **more)


def problem(*helping: Source, n: int = 10) -> Problem:
    history = tuple(Observation(i + 1, params, (bowl(params),)) for i, params in enumerate(POINTS[25:25 + n]))
    return Problem(Space.model_validate(SPACE), ("minimize",), "bayes", 5, True, n + 1, n, history, sources=helping)


def posterior(of: Problem) -> tuple[Any, Floats]:
    design = Design(OF)
    X = design.features(OF.encode([each.params for each in of.history]))
    z = np.array([each.values[0] for each in of.history if each.values is not None])
    z = (z - z.mean()) / z.std()
    return sources.posterior_of(of, design, tuple(design.prior[0]), X, z, np.zeros(len(z))), z


def weight(of: Problem) -> float:
    made, _ = posterior(of)
    return dict(made.weights)["earlier"] if isinstance(made, Stacked) else 0.0


def test_a_source_weighs_what_it_is_worth_and_less_with_every_result() -> None:
    right, other_units, wrong = (weight(problem(source(scale), n=10)) for scale in (1.0, 1000.0, -1.0))
    assert right == pytest.approx(other_units, abs=0.02)
    assert right > 0.3
    assert wrong == 0
    assert weight(problem(source(), n=4)) > right > weight(problem(source(), n=15))


def test_a_stack_predicts_with_its_true_gradient_and_conditions_on_whole_outcomes() -> None:
    made, z = posterior(problem(source()))
    assert isinstance(made, Stacked)
    X = made.design.features(np.random.default_rng(2).uniform(0.05, 0.95, (9, 4)))
    mean, variance, d_mean, d_variance = made.predict_gradient(X)
    assert made.predict(X)[0] == pytest.approx(mean)
    for column in range(made.design.m):
        up, down = X.copy(), X.copy()
        up[:, column] += 1e-5
        down[:, column] -= 1e-5
        both = made.predict(up), made.predict(down)
        assert d_mean[:, column] == pytest.approx((both[0][0] - both[1][0]) / 2e-5, abs=1e-4)
        assert d_variance[:, column] == pytest.approx((both[0][1] - both[1][1]) / 2e-5, abs=1e-4)
    assert made.means == pytest.approx(z, abs=0.2)
    told = made.condition(X[:1], np.array([3.0]))
    assert told.predict(X[:1])[0] == pytest.approx([3.0], abs=0.2)
    assert variance[0] > told.predict(X[:1])[1][0]
    assert made.joint(X[:3])[0] == pytest.approx(mean[:3])


def test_of_parameters_that_it_did_not_have_a_source_says_nothing() -> None:
    rows = tuple(({"x": params["x"], "kind": params["kind"]}, value) for params, value in source().rows)
    held = sources.earlier(problem().space, replace(source(), rows=rows, silent=frozenset({"y", "n"})))
    assert held is not None
    U = np.random.default_rng(3).random((6, 4))
    moved = U.copy()
    moved[:, [OF.names.index("y"), OF.names.index("n")]] = 0.9
    design = Design(OF)
    assert held.mean(design.features(U)) == pytest.approx(held.mean(design.features(moved)))
    assert not np.any(held.slope(design.features(U))[1][:, design.numeric.index(OF.names.index("y"))])


def test_the_best_points_that_are_apart_come_first_in_turns() -> None:
    best = sorted(POINTS[:25], key=bowl)
    near = {**best[0], "x": best[0]["x"] + 1e-3}
    first = replace(source(points=3), rows=((near, bowl(best[0]) + 1e-9), *source().rows))
    found = sources.starts(problem(first, replace(source(-1.0, points=1), study="other"), n=0))
    assert [study for study, _ in found] == ["earlier", "other", "earlier", "earlier"]
    assert found[0][1] == best[0]
    assert found[1][1] == max(POINTS[:25], key=bowl)
    assert near not in [params for _, params in found]
    whole = problem(first, n=0)
    made = suggest(replace(whole, number=1, drawn=0), 1).proposals[0]
    assert (made.params, made.sources) == (best[0], (("earlier", 1.0),))


@pytest.mark.parametrize("change", [{"directions": ("minimize", "maximize")}, {"surrogate": "forest"}])
def test_models_that_take_no_source_go_on_without(change: dict[str, Any]) -> None:
    history = tuple(Observation(each.trial, each.params, (each.values or (0.0,)) * len(
        change.get("directions", "1"))) for each in problem().history)
    made = suggest(replace(problem(source()), history=history, **change), 1).proposals[0]
    assert (made.sampler, made.fallback, made.sources) == ("bayes", None, None)
