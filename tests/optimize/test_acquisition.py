"""Expected improvement: against sampling, against high precision, and far out in the tail."""

import math
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest

from bayesd.optimize.acquisition import DOUBT, Improvement, Success, Thrift, Together, log_ei, log_ei_gradient, log_h
from bayesd.optimize.encode import cube
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd_schemas.space import Space


@pytest.mark.parametrize(("mean", "sd", "best"), [(0.0, 1.0, 0.0), (1.0, 0.5, 0.3), (-2.0, 2.0, -1.0), (0.4, 0.1, 1.0)])
def test_equals_the_mean_of_sampled_improvements(mean: float, sd: float, best: float) -> None:
    improvements = np.maximum(best - np.random.default_rng(0).normal(mean, sd, 1_000_000), 0)
    value = math.exp(float(log_ei(np.array([mean]), np.array([sd**2]), best)[0]))
    assert value == pytest.approx(float(improvements.mean()), abs=5 * float(improvements.std()) / 1000)


def exact_log_h(z: int) -> float:
    """log h(z) for z < 0 from its asymptotic series, in decimals, cut at the smallest term."""
    getcontext().prec = 50
    w, term, total, k = 1 / Decimal(z) ** 2, Decimal(1), Decimal(1), 1
    while True:     # h = phi / z^2 (1 - 3/z^2 + 15/z^4 - 105/z^6 ...)
        following = -term * (2 * k + 1) * w
        if abs(following) >= abs(term) or abs(following) < Decimal("1e-40"):
            break
        term, total, k = following, total + following, k + 1
    return float(-Decimal(z) ** 2 / 2 - Decimal(2 * math.pi).ln() / 2 + w.ln() + total.ln())


@pytest.mark.parametrize("z", [-12, -30, -99, -101, -1000, -10_000, -10**8, -10**15])
def test_the_tail_is_right_and_never_flat(z: int) -> None:
    value, slope = log_h(np.array([float(z)]))
    assert float(value[0]) == pytest.approx(exact_log_h(z), rel=1e-13)
    # d log h / dz is -z - 2/z to first order.
    assert float(slope[0]) == pytest.approx(-z - 2 / z, rel=20 / z**4 + 1e-12)


def test_rises_everywhere_and_has_no_seam() -> None:
    z = np.concatenate([np.linspace(-300, -0.5, 200_001), np.linspace(-0.5, 40, 10_000)])
    value, slope = log_h(z)
    assert np.all(np.diff(value)[np.diff(z) > 0] > 0)
    assert np.all(slope > 0)
    for seam in (-100.0, -1.0):
        (a, b), (c, d) = log_h(np.array([np.nextafter(seam, -500), np.nextafter(seam, 500)]))
        assert a == pytest.approx(b, rel=1e-13)
        assert c == pytest.approx(d, rel=1e-10)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0, 30.0, 1e4])
def test_the_gradient_equals_finite_differences(shift: float) -> None:
    def parts(x: Any) -> Any:
        mean = shift + np.sin(x[:, 0]) + x[:, 1] ** 2
        variance = 0.3 + 0.2 * np.cos(x[:, 0] * x[:, 1])
        d_mean = np.column_stack([np.cos(x[:, 0]), 2 * x[:, 1]])
        d_variance = -0.2 * np.sin(x[:, 0] * x[:, 1])[:, None] * x[:, ::-1]
        return mean, variance, d_mean, d_variance

    def value_at(x: Any) -> Any:
        mean, variance, _, _ = parts(x)
        return log_ei(mean, variance, 0.1)

    x = np.random.default_rng(1).random((20, 2))
    mean, variance, d_mean, d_variance = parts(x)
    value, gradient = log_ei_gradient(mean, variance, d_mean, d_variance, 0.1)
    assert np.array_equal(value, value_at(x))
    for j in range(2):
        step = np.zeros((1, 2))
        step[0, j] = 1e-6
        numeric = (value_at(x + step) - value_at(x - step)) / 2e-6
        assert np.allclose(gradient[:, j], numeric, rtol=2e-6, atol=1e-6)


# Terms -------------------------------------------------------------------------------------------

@pytest.fixture
def believed() -> tuple[Posterior, Posterior]:
    """Posteriors of an outcome, and of a latent that is high at small x."""
    design = Design(cube(Space.model_validate({
        "x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1}})))
    X = design.features(np.random.default_rng(0).random((20, 2)))
    theta = tuple(np.log([0.4, 0.6, 1.0, 1e-3, 0.01, 1.1, 0.9, 1.2, 0.8]).tolist())
    return (Posterior.of(design, theta, X, np.sin(5 * X[:, 0]) + X[:, 1], np.zeros(20)),
            Posterior.of(design, theta, X, np.where(X[:, 0] < 0.5, 1.0, -1.0), np.zeros(20)))


def test_success_is_the_chance_that_the_latent_is_positive(believed: tuple[Posterior, Posterior]) -> None:
    latent, at = believed[1], np.array([[0.2, 0.5], [0.55, 0.5], [0.9, 0.1]])
    mean, variance = latent.predict(at)
    rng = np.random.default_rng(1)
    drawn = mean + 0.3 + np.sqrt(variance + DOUBT) * rng.normal(size=(400_000, 3))
    chance = np.exp(Success(latent, 0.3, 0.01).value(at))
    assert chance == pytest.approx(0.01 + 0.99 * (drawn > 0).mean(axis=0), abs=0.004)
    assert chance[0] > 0.7 > 0.3 > chance[2]


def test_no_verdict_on_success_is_surer_than_the_trials_can_show(believed: tuple[Posterior, Posterior]) -> None:
    latent, corner = believed[1], np.array([[0.9, 0.1]])
    assert np.exp(Success(latent, -9.0, 1 / 22).value(corner)) == pytest.approx(1 / 22)
    assert np.allclose(Success(latent, -9.0, 1 / 22).gradient(corner)[1], 0)


def test_terms_add_up_and_their_gradients_equal_finite_differences(believed: tuple[Posterior, Posterior]) -> None:
    one, other = believed
    terms = (Improvement(one, -0.5), Success(other, 0.2, 0.01), Thrift(other, 0.7))
    at = np.random.default_rng(2).uniform(0.05, 0.95, (9, 2))
    for target in (*terms, Together(terms)):
        value, slope = target.gradient(at)
        assert np.allclose(value, target.value(at), rtol=1e-12)
        for j in range(2):
            step = np.zeros(2)
            step[j] = 1e-6
            assert np.allclose(slope[:, j], (target.value(at + step) - target.value(at - step)) / 2e-6, atol=1e-5)
    assert np.allclose(Together(terms).value(at), sum(term.value(at) for term in terms))
