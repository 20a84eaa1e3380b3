"""Outcomes to standardised numbers and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bayesd.optimize.outcomes import AUGMENT, scalarise, transform, yeo_johnson

numbers = st.floats(-1e300, 1e300, allow_subnormal=True)


@settings(deadline=None)       # a busy machine is not a bug
@given(st.lists(numbers, min_size=1, max_size=30), st.booleans())
def test_any_history_becomes_finite_numbers(y: list[float], maximize: bool) -> None:
    made = transform(np.array(y), maximize)
    assert np.all(np.isfinite(made.z))
    assert np.all(np.abs(made.z) < 1e6)
    for far in (-1e9, -3.0, 0.0, 3.0, 1e9):
        assert np.isfinite(made.metric(np.array([far]))[0])
        assert np.isfinite(made.metric_sd(np.array([far]), np.array([1.0]))[0])
    assert np.all(np.isfinite(made.variance(np.full(len(y), 0.1))))


@settings(deadline=None)       # a busy machine is not a bug
@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=30), st.booleans())
def test_the_way_back_and_the_order(y: list[float], maximize: bool) -> None:
    made = transform(np.array(y), maximize)
    if np.ptp(y) > 1e-3:
        assert np.allclose(made.metric(made.z), y, rtol=1e-6, atol=1e-5 * np.ptp(y))
    order = np.argsort(-np.array(y) if maximize else np.array(y), kind="stable")
    assert np.all(np.diff(made.z[order]) >= -1e-9)


def test_one_diverged_run_does_not_blind_the_model() -> None:
    y = np.array([0.10, 0.12, 0.15, 0.2, 0.21, 0.3, 0.35, 0.4, 1e6, 1e4])
    z = transform(y, False).z
    assert z[7] - z[0] > 0.1 * (z.max() - z[0])     # scaled by the plain deviation: about 1e-6


def test_the_power_transform_is_scipys() -> None:
    x = np.random.default_rng(0).normal(size=50)
    for lam in (-2.0, -0.5, 0.0, 0.7, 2.0):
        assert np.allclose(yeo_johnson(x, lam), stats.yeojohnson(x, lmbda=lam))
    skewed = np.random.default_rng(1).lognormal(size=400)
    assert abs(stats.skew(transform(skewed, False).z)) < 0.2


def test_known_errors_follow_the_transform() -> None:
    y = np.random.default_rng(3).lognormal(size=40)
    made = transform(y, False)
    step = 1e-6
    up = yeo_johnson(((y + step) / made.unit - made.centre) / made.scale, made.lam)
    slope = ((up - made.shift) / made.spread - made.z) / step
    assert np.allclose(np.sqrt(made.variance(np.full(40, 0.01))), 0.01 * slope, rtol=1e-3)


def test_several_objectives_become_one() -> None:
    values = np.array([[0.0, 10.0], [1.0, 30.0], [0.5, 20.0]])
    one = scalarise(values, (False, True), np.array([0.25, 0.75]))
    # Normalised (lower is better): (0, 1), (1, 0), (.5, .5).
    assert one == pytest.approx([0.75 + AUGMENT * 0.75, 0.25 + AUGMENT * 0.25, 0.375 + AUGMENT * 0.5])
