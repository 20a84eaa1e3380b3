"""A person's prior: densities that are densities, a term with its true gradient, and trust that follows the results."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bayesd.optimize import belief, opening, suggest
from bayesd.optimize.acquisition import Improvement
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.prior import Prior
from bayesd_schemas.space import Space
from bayesd_schemas.study import StudySpec

SPACE: dict[str, Any] = {
    "x": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
    "n": {"type": "int", "low": 1, "high": 8, "when": {"kind": ["a", "b"]}},
    "kind": {"type": "categorical", "choices": ["a", "b", "c"]}}
PRIOR = {"x": Prior(centre=100.0, confidence="high"), "n": Prior(centre=3, confidence="low"),
         "kind": Prior.model_validate({"a": 3, "c": 1})}


def problem(**other: Any) -> Problem:
    whole = Problem(Space.model_validate(SPACE), ("minimize",), "bayes", 5, True, 1, 0, prior=tuple(PRIOR.items()))
    return replace(whole, **other)


def held(of: Problem) -> belief.Belief:
    found = belief.belief(of)
    assert found is not None
    return found


def test_a_density_is_highest_and_flat_at_its_centre_and_rules_nothing_out() -> None:
    u = (np.arange(2_000) + 0.5) / 2_000
    x, kind, n = held(problem()).sides
    for side in (x, n):
        density = np.exp(side.log_density(u))
        near = np.abs(u - side.centre) < side.spread
        assert float(density.max()) <= 1
        assert float(density[near].min()) > 0.93
        assert float(density.min()) >= side.outside
    assert np.array(kind.shares) == pytest.approx([1.0, 0.1 / 2.125, 0.775 / 2.125])


def test_what_speaks_against_a_point_is_bounded_however_many_parameters_do() -> None:
    space = Space.model_validate({f"x{j}": {"type": "float", "low": 0, "high": 1} for j in range(12)})
    prior = held(problem(space=space, prior=tuple((name, Prior(centre=0.1, confidence="high")) for name in space)))
    near, far = prior.log_density(np.array([[0.1] * 12, [0.9] * 12]))
    assert near == 0
    assert -belief.BOUND <= far < -0.9 * belief.BOUND


def test_the_term_has_the_gradient_of_its_value() -> None:
    prior = held(problem())
    design = Design(prior.of)
    U = np.random.default_rng(1).uniform(0.05, 0.95, (12, 3))
    X = design.features(U)
    model = Posterior.of(design, tuple(design.prior[0]), X[:2], np.zeros(2), np.zeros(2))
    term = belief.Opinion(Improvement(model, 0.0), prior, 0.7)
    value, slope = term.gradient(X)
    assert term.value(X) == pytest.approx(value)
    assert 0.7 * prior.log_density(U) == pytest.approx(value)
    for column in range(design.m):
        up, down = X.copy(), X.copy()
        up[:, column] += 1e-6
        down[:, column] -= 1e-6
        assert slope[:, column] == pytest.approx((term.value(up) - term.value(down)) / 2e-6, abs=1e-4)


def test_trust_stays_while_dense_points_are_good_and_goes_when_they_are_bad() -> None:
    density = np.linspace(-2, 2, 8)
    assert belief.trust(density, -density) == 1.0
    assert belief.trust(density, density) == 0.0
    assert belief.trust(density[:1], density[:1]) == 1.0


def test_the_start_is_drawn_from_the_prior_but_for_every_fourth_point_and_its_mode_comes_first() -> None:
    points, now = [], problem()
    for number in range(1, 6):
        proposal = suggest(now).proposals[0]
        points.append(proposal)
        now = replace(now, number=number + 1, drawn=proposal.drawn, pending=(*now.pending, proposal.params))
    assert points[0].params == {"x": 100.0, "kind": "a", "n": 3}
    assert [each.prior for each in points] == [1.0, 1.0, 1.0, None, 1.0]
    assert all(20 < float(each.params["x"] or 0) < 500 for each in points if each.prior)
    assert [suggest(problem(), 5).proposals[i].params for i in range(5)] == [each.params for each in points]


def ran(best: float, count: int = 12) -> tuple[list[float], list[float | None]]:
    """A study with high confidence in x = 100 whose optimum is elsewhere or there: log10 of x, and what it weighed."""
    now = problem(space=Space.model_validate({"x": SPACE["x"]}), prior=(("x", PRIOR["x"]),))
    at, weights = [], []
    for number in range(1, count + 1):
        suggestion = suggest(now)
        proposal = suggestion.proposals[0]
        x = float(np.log10(float(proposal.params["x"] or 0)))
        at.append(x)
        weights.append(proposal.prior)
        now = replace(now, number=number + 1, drawn=proposal.drawn, fit=suggestion.fit or now.fit,
                      history=(*now.history, Observation(number, proposal.params, ((x - best) ** 2,))))
    return at, weights


def test_a_right_prior_is_followed_and_fades() -> None:
    at, weights = ran(2.1)
    said = [each for each in weights if each is not None]
    assert said[-1] < said[4]
    assert min(abs(x - 2.1) for x in at) < 0.05


def test_a_wrong_prior_is_dropped_by_what_was_measured() -> None:
    at, weights = ran(-2.0)
    assert weights[-1] is None
    assert min(abs(x + 2.0) for x in at) < 0.05


@pytest.mark.parametrize(("prior", "words"), [
    ({"y": {"centre": 1}}, "prior.y: y is not in the space"),
    ({"x": {"centre": 1e9}}, "is not in the space: float"),
    ({"x": {"a": 0.5}}, "weights are for a categorical parameter"),
    ({"kind": {"d": 0.5}}, "'d' is no choice"),
    ({"kind": {"confidence": "high"}}, "give a centre, or a weight"),
    ({"kind": {"a": 0.0}}, "one weight at least"),
    ({"x": {"centre": 1.0, "confidence": "sure"}}, "'low', 'medium' or 'high'")])
def test_an_opinion_that_says_nothing_is_refused_in_words(prior: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StudySpec.model_validate({"name": "s", "space": SPACE, "prior": prior})


def far_and_near(near: float, far: float, parameters: int = 6) -> Problem:
    """Somebody is sure of every parameter; six results near what was said and six elsewhere."""
    space = Space.model_validate({f"x{j}": {"type": "float", "low": 0, "high": 1} for j in range(parameters)})
    random = np.random.default_rng(3)
    U = np.vstack([0.25 + 0.05 * random.standard_normal((6, parameters)), random.uniform(0.6, 1, (6, parameters))])
    history = tuple(Observation(i + 1, dict(zip(space, map(float, u), strict=True)), (
        (near if i < 6 else far) + 0.1 * float(np.sum(u)),)) for i, u in enumerate(U))
    return Problem(space, ("minimize",), "bayes", 5, True, 13, 13, history,
                   prior=tuple((name, Prior(centre=0.25, confidence="high")) for name in space))


def test_a_sure_prior_keeps_the_search_where_it_is_until_results_are_better_elsewhere() -> None:
    for near, far, stays in ((0.0, 1.0, True), (1.0, 0.0, False)):
        proposal = suggest(far_and_near(near, far)).proposals[0]
        apart = max(abs(float(value or 0) - 0.25) for value in proposal.params.values())
        assert (apart < 0.25) == stays
        assert (proposal.prior is not None) == stays


def test_the_search_looks_where_the_prior_is() -> None:
    now = far_and_near(0.0, 1.0)
    prior = held(now)
    model = Posterior.of(design := Design(prior.of), tuple(design.prior[0]), np.zeros((1, design.width)), np.zeros(1),
                         np.zeros(1))
    gain = Improvement(model, 0.0)
    draws = belief.likely(now, belief.with_belief(now, gain, gain))
    assert draws is not None
    assert np.mean(np.abs(draws - 0.25).max(axis=1) < 0.2) > 0.9
    assert belief.likely(replace(now, prior=()), gain) is None


def test_the_model_begins_earlier_where_somebody_is_sure_of_much_of_the_space() -> None:
    names = [f"x{j}" for j in range(9)]
    space = Space.model_validate({name: {"type": "float", "low": 0, "high": 1} for name in names})

    def before_the_model(sure: int, confidence: Any) -> int:
        prior = tuple((name, Prior(centre=0.5, confidence=confidence)) for name in names[:sure])
        return opening.size_of(problem(space=space, prior=prior), 10)

    assert [before_the_model(sure, "high") for sure in (0, 1, 3, 9)] == [10, 9, 7, 5]
    assert before_the_model(9, "low") == 10


@pytest.mark.parametrize("other", [{"surrogate": "forest"}, {"directions": ("minimize", "minimize")}])
def test_a_prior_has_its_say_in_every_model(other: dict[str, Any]) -> None:
    now = far_and_near(0.0, 1.0, parameters=3)
    k = len(other.get("directions", ("minimize",)))
    proposal = suggest(replace(now, **other, history=tuple(
        replace(each, values=(each.values or ()) * k) for each in now.history))).proposals[0]
    assert proposal.fallback is None
    assert proposal.prior is not None
    assert max(abs(float(value or 0) - 0.25) for value in proposal.params.values()) < 0.25
