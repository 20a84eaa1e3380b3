"""The Gaussian process: against scikit-learn, against finite differences, against itself."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from bayesd.optimize.encode import cube
from bayesd.optimize.kernel import Design, Kernel
from bayesd.optimize.posterior import Posterior, fit, negative_log_posterior
from bayesd_schemas.space import Space


def design(space: Space) -> Design:
    return Design(cube(space))


@pytest.fixture
def plain() -> Design:
    return design(Space.model_validate({f"x{i}": {"type": "float", "low": 0, "high": 1} for i in range(3)}))


@pytest.fixture
def mixed() -> Design:
    return design(Space.model_validate({
        "x": {"type": "float", "low": 0, "high": 1}, "n": {"type": "int", "low": 1, "high": 9},
        "k": {"type": "categorical", "choices": ["a", "b", "c"]}, "y": {"type": "float", "low": 0, "high": 1},
        "flag": {"type": "categorical", "choices": [False, True]}}))


def data(of: Design, n: int, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    X = of.features(rng.random((n, of.of.p)))
    return X, np.sin(3 * X).sum(axis=1) + 0.1 * rng.normal(size=n), 0.01 * rng.random(n)


def somewhere(of: Design, seed: int = 1) -> Any:
    mean, sd, _, _ = of.prior
    return mean + 0.7 * sd * np.random.default_rng(seed).normal(size=of.size)


def test_equals_scikit_learn_on_the_same_kernel(plain: Design) -> None:
    lengths, s2, noise = np.array([0.3, 0.7, 1.5]), 1.7, 0.02
    theta = np.log([*lengths, s2, noise, 1e-30, *[1.0] * 6])        # no trend and no warp
    X, z, _ = data(plain, 40)
    X = np.clip(X, 1e-5, 1 - 1e-5)
    new = np.clip(data(plain, 25, seed=5)[0], 1e-5, 1 - 1e-5)
    kernel = ConstantKernel(s2) * Matern(lengths, nu=2.5) + WhiteKernel(noise)
    other = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(X, z)
    wanted, wanted_sd = other.predict(new, return_std=True)
    mean, variance = Posterior.of(plain, tuple(theta), X, z, np.zeros(40)).predict(new)
    assert np.allclose(mean, wanted, rtol=1e-9, atol=1e-9)
    assert np.allclose(variance + noise, wanted_sd**2, rtol=1e-8)
    # The likelihood too; ours leaves out the constant.
    prior_mean, prior_sd, _, _ = plain.prior
    ours = negative_log_posterior(plain, theta, X, z, np.zeros(40))[0] - 0.5 * float(
        np.sum(((theta - prior_mean) / prior_sd) ** 2))
    assert -ours - 20 * math.log(2 * math.pi) == pytest.approx(other.log_marginal_likelihood_value_, rel=1e-9)


def test_known_standard_errors_are_noise_of_their_own_points(plain: Design) -> None:
    theta = np.log([0.3, 0.7, 1.5, 1.0, 1e-6, 1e-30, *[1.0] * 6])
    X, z, se2 = data(plain, 30)
    X = np.clip(X, 1e-5, 1 - 1e-5)
    other = GaussianProcessRegressor(Matern([0.3, 0.7, 1.5], nu=2.5), optimizer=None, alpha=se2 + 1e-6).fit(X, z)
    assert np.allclose(Posterior.of(plain, tuple(theta), X, z, se2).predict(X)[0], other.predict(X), atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_gradient_equals_finite_differences(plain: Design, mixed: Design, seed: int) -> None:
    for of in (plain, mixed):
        X, z, se2 = data(of, 25, seed)
        theta = somewhere(of, seed)
        norm = float(np.linalg.norm(negative_log_posterior(of, theta, X, z, se2)[1]))
        error = check_grad(lambda t, of=of, X=X, z=z, se2=se2: negative_log_posterior(of, t, X, z, se2)[0],
                           lambda t, of=of, X=X, z=z, se2=se2: negative_log_posterior(of, t, X, z, se2)[1], theta)
        assert error < 1e-5 * max(norm, 1)


def test_the_prediction_gradient_equals_finite_differences(plain: Design, mixed: Design) -> None:
    for of in (plain, mixed):
        X, z, se2 = data(of, 25)
        posterior = Posterior.of(of, tuple(somewhere(of)), X, z, se2)
        new = data(of, 12, seed=3)[0]
        new[:, : of.m] = np.clip(new[:, : of.m], 0.01, 0.99)
        mean, variance, d_mean, d_variance = posterior.predict_gradient(new)
        assert np.allclose(mean, posterior.predict(new)[0])
        assert np.allclose(variance, posterior.predict(new)[1])
        for j in range(of.m):
            step = np.zeros(new.shape[1])
            step[j] = 1e-6
            (up, up_v), (down, down_v) = posterior.predict(new + step), posterior.predict(new - step)
            assert np.allclose(d_mean[:, j], (up - down) / 2e-6, rtol=1e-5, atol=1e-6)
            assert np.allclose(d_variance[:, j], (up_v - down_v) / 2e-6, rtol=1e-4, atol=1e-6)


def test_conditioning_equals_a_new_factorisation(mixed: Design) -> None:
    X, z, _ = data(mixed, 40)
    theta = tuple(somewhere(mixed).tolist())
    whole = Posterior.of(mixed, theta, X, z, np.zeros(40))
    start = Posterior.of(mixed, theta, X[:30], z[:30], np.zeros(30))
    grown = start.condition(X[30:33], z[30:33]).condition(X[33:], z[33:])
    assert np.allclose(grown.L, whole.L, atol=1e-10)
    new = data(mixed, 9, seed=4)[0]
    assert np.allclose(grown.predict(new), whole.predict(new), atol=1e-9)


def test_believing_the_mean_leaves_the_mean_and_lowers_the_variance(mixed: Design) -> None:
    X, z, se2 = data(mixed, 20)
    posterior = Posterior.of(mixed, tuple(somewhere(mixed).tolist()), X, z, se2)
    pending, new = data(mixed, 3, seed=8)[0], data(mixed, 30, seed=9)[0]
    believer = posterior.condition(pending, posterior.predict(pending)[0])
    assert np.allclose(believer.predict(new)[0], posterior.predict(new)[0], atol=1e-8)
    assert np.all(believer.predict(new)[1] <= posterior.predict(new)[1] + 1e-9)
    assert len(posterior.z) == 20       # a value: conditioning made a new one


def test_two_different_categories_are_one_length_scale_apart(mixed: Design) -> None:
    kernel = Kernel(mixed, np.zeros(mixed.size))
    U = np.full((2, mixed.of.p), 0.5)
    U[1, mixed.of.names.index("k")] = 0.9
    S = kernel.embedded(mixed.features(U))
    assert float(((S[0] - S[1]) ** 2).sum()) == pytest.approx(1.0)


def test_a_fit_finds_the_axis_that_matters_and_is_rounded(plain: Design) -> None:
    rng = np.random.default_rng(2)
    X = rng.random((60, 3))
    z = np.sin(9 * X[:, 1])
    theta = fit(plain, X, z / z.std(), np.zeros(60), None)
    assert theta[1] < theta[0] - 1
    assert theta[1] < theta[2] - 1
    assert all(round(t, 2) == t for t in theta)


def test_noise_is_not_explained_by_short_length_scales(plain: Design) -> None:
    rng = np.random.default_rng(4)
    X = rng.random((80, 3))
    z = 2 * X[:, 0] + rng.normal(size=80)
    trapped = (*np.log([0.07, 0.07, 0.07, 1.0, 0.0025, 0.02]).tolist(), *[0.0] * 6)
    for warm in (None, trapped):
        theta = fit(plain, X, z / z.std(), np.zeros(80), warm)
        assert np.exp(theta[4]) > 0.3
        assert np.exp(theta[0]) > 0.2


def test_a_warm_start_never_ends_below_the_prior(plain: Design) -> None:
    X, z, se2 = data(plain, 20)
    cold = negative_log_posterior(plain, np.array(fit(plain, X, z, se2, None)), X, z, se2)[0]
    absurd = (-50.0,) * plain.size
    assert negative_log_posterior(plain, np.array(fit(plain, X, z, se2, absurd)), X, z, se2)[0] <= cold + 0.5


def test_near_duplicates_still_factor(plain: Design) -> None:
    X = np.repeat(data(plain, 5)[0], 30, axis=0) + 1e-12
    theta = tuple(np.log([3.0, 3.0, 3.0, 50.0, 1e-6, 1.0, *[1.0] * 6]).tolist())
    mean, variance = Posterior.of(plain, theta, X, np.arange(150.0), np.zeros(150)).predict(X[:9])
    assert np.all(np.isfinite(mean))
    assert np.all(variance > 0)
