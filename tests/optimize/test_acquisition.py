"""Expected improvement: against sampling, against high precision, and far out in the tail."""

import math
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest

from bayesd.optimize.acquisition import log_ei, log_ei_gradient, log_h


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
