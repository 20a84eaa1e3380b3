"""Expected improvement of a hypervolume against draws, and gradients against differences."""

import numpy as np
import pytest

from bayesd.optimize import hypervolume, metrics, suggest
from bayesd.optimize.encode import cube
from bayesd.optimize.improvement import Feasible, HypervolumeImprovement
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.study.problem import Bound, Observation, Problem
from bayesd_schemas.space import Params, Space

SPACE = Space.model_validate({name: {"type": "float", "low": 0.0, "high": 1.0} for name in "xy"})


def number_of(params: Params, name: str) -> float:
    value = params[name]
    assert isinstance(value, float)
    return value


def models(k: int) -> tuple[Design, tuple[Posterior, ...]]:
    design = Design(cube(SPACE))
    random = np.random.default_rng(k)
    X = design.features(random.uniform(size=(8, 2)))
    theta = tuple(design.prior[0].tolist())
    return design, tuple(Posterior.of(design, theta, X, random.normal(size=8), np.zeros(8)) for _ in range(k))


@pytest.mark.parametrize("k", [2, 3])
def test_expected_gain_is_the_mean_gain_of_draws(k: int) -> None:
    design, posteriors = models(k)
    F, r = np.random.default_rng(3).normal(size=(5, k)), np.full(k, 2.0)
    target = HypervolumeImprovement(posteriors, hypervolume.open_boxes(F, r))
    X = design.features(np.array([[0.3, 0.6], [0.9, 0.1]]))
    normal = np.random.default_rng(4).normal(size=(4000, k))
    before = hypervolume.hypervolume(F, r)
    for row, value in zip(X, target.value(X), strict=True):
        beliefs = [posterior.predict(row[None]) for posterior in posteriors]
        drawn = np.column_stack([mean + np.sqrt(variance) * normal[:, j]
                                 for j, (mean, variance) in enumerate(beliefs)])
        gains = [hypervolume.hypervolume(np.vstack([F, y]), r) - before for y in drawn]
        assert np.exp(value) == pytest.approx(np.mean(gains), abs=1e-9 + 4 * float(np.std(gains)) / 63)


@pytest.mark.parametrize("far", [0.0, -30.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradients_are_those_of_differences(k: int, far: float) -> None:
    design, posteriors = models(k)
    F = np.random.default_rng(3).normal(size=(5, k)) + far
    target = (Feasible(posteriors[0], far) if k == 1
              else HypervolumeImprovement(posteriors, hypervolume.open_boxes(F, F.max(axis=0) + 1)))
    X, step = design.features(np.random.default_rng(5).uniform(0.1, 0.9, (6, 2))), 1e-6
    value, slope = target.gradient(X)
    assert np.isfinite(value).all()
    assert value == pytest.approx(target.value(X))
    for j in range(2):
        move = np.zeros_like(X)
        move[:, j] = step
        assert slope[:, j] == pytest.approx((target.value(X + move) - target.value(X - move)) / (2 * step),
                                            rel=1e-4, abs=1e-4)


def test_limits_are_kept_and_missing_and_failed_points_do_no_harm() -> None:
    history: list[Observation] = []
    fit, drawn = None, 0
    for number in range(1, 31):
        problem = Problem(SPACE, ("minimize",), "bayes", 3, True, number, drawn, tuple(history), (), fit,
                          limits=(Bound(0.8, False),))
        made = suggest(problem)
        fit, (proposal,) = made.fit or fit, made.proposals
        assert proposal.fallback is None
        drawn, x, y = proposal.drawn, number_of(proposal.params, "x"), number_of(proposal.params, "y")
        values = None if number % 7 == 0 else (x * x + y * y,)
        history.append(Observation(number, proposal.params, values,
                                   limits=() if values is None else (None if number % 5 == 0 else x + y,)))
    kept = [o.values[0] for o in history if o.values and o.limits[0] is not None and o.limits[0] >= 0.8]
    assert min(kept) < 0.35      # the best within the limit is 0.32; without it 0


def test_nothing_feasible_yet_looks_for_feasibility_alone() -> None:
    history = tuple(Observation(i + 1, {"x": i / 10, "y": 0.1}, (float(i),), limits=(1.0 - i / 10,)) for i in range(8))
    problem = Problem(SPACE, ("minimize",), "bayes", 0, True, 9, 8, history, limits=(Bound(0.1, True),))
    (proposal,) = suggest(problem).proposals
    assert proposal.fallback is None
    assert number_of(proposal.params, "x") > 0.7       # where the limit falls, although the objective rises


def test_two_objectives_find_more_of_a_front_than_the_design() -> None:
    history: list[Observation] = []
    fit, drawn = None, 0
    for number in range(1, 26):
        problem = Problem(SPACE, ("minimize", "maximize"), "bayes", 1, True, number, drawn, tuple(history), (), fit,
                          references=(1.1, None))
        made = suggest(problem)
        fit, (proposal,) = made.fit or fit, made.proposals
        assert proposal.fallback is None
        if number > 12:
            assert proposal.means is not None
            assert len(proposal.means) == 2
        drawn, x, y = proposal.drawn, number_of(proposal.params, "x"), number_of(proposal.params, "y")
        history.append(Observation(number, proposal.params, (x + y, -(1 - x) ** 2 - y)))
    r = (1.1, -1.1)
    grown = hypervolume.over_time([o.values for o in history if o.values], ("minimize", "maximize"), r)
    assert grown[-1] > grown[9] + 0.05
    assert grown[-1] > 0.75      # the whole front has 0.81


@pytest.mark.parametrize(("number", "share"), [(20, 0.5), (21, 1.0)])
def test_every_other_trial_looks_as_far_as_the_worst_of_all(number: int, share: float) -> None:
    space = Space.model_validate({"x": {"type": "float", "low": 0.0, "high": 1.0}})
    history = tuple(Observation(i, {"x": i / 12}, (i / 12, 1 + abs(i - 1.0))) for i in range(1, 13))
    problem = Problem(space, ("minimize", "minimize"), "bayes", 0, True, number, 12, history)
    base = metrics.metrics(problem)
    believed = np.column_stack([each.posterior.means[:12] for each in base.objectives])
    front = believed[hypervolume.nondominated(believed)].max(axis=0)
    wanted = np.maximum(hypervolume.reference(believed), front + share * (believed.max(axis=0) - front))
    assert metrics._reference(problem, base, believed) == pytest.approx(wanted)
    assert (wanted > hypervolume.reference(believed)).any()
