"""The covariance: what is far from what, conditional parameters and fidelities among it."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad

from bayesd.optimize.encode import cube
from bayesd.optimize.kernel import Design, Kernel
from bayesd.optimize.posterior import Posterior, fit, negative_log_posterior
from bayesd_schemas.space import Space

TREE: dict[str, Any] = {
    "kernel": {"type": "categorical", "choices": ["rbf", "poly", "linear"]},
    "C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
    "gamma": {"type": "float", "low": 0, "high": 1, "when": {"kernel": ["rbf", "poly"]}},
    "degree": {"type": "int", "low": 1, "high": 30, "when": {"kernel": "poly"}},
    "shape": {"type": "categorical", "choices": ["a", "b"], "when": {"kernel": "rbf"}}}


@pytest.fixture
def tree() -> Design:
    return Design(cube(Space.model_validate(TREE)))


def rows(of: Design, n: int, seed: int = 0, **given: float) -> Any:
    U = np.random.default_rng(seed).random((n, of.of.p))
    for name, u in given.items():
        U[:, of.of.names.index(name)] = u
    return of.features(U)


def theta(of: Design, seed: int = 1) -> Any:
    mean, sd, _, _ = of.prior
    return mean + 0.7 * sd * np.random.default_rng(seed).normal(size=of.size)


def test_an_inactive_number_is_equally_far_from_every_active_one(tree: Design) -> None:
    kernel = Kernel(tree, np.zeros(tree.size))
    of = kernel.embedded(rows(tree, 2, kernel=0.9, C=0.5))          # linear: gamma is inactive, whatever it is
    assert np.allclose(of[0], of[1])
    apart = [float(((kernel.embedded(rows(tree, 1, kernel=0.5, C=0.5, gamma=u, degree=0.5)) - of[0]) ** 2).sum())
             for u in (0.0, 0.3, 0.5, 1.0)]
    assert np.allclose(apart, apart[0])
    assert apart[0] == pytest.approx(3.0)       # another kernel, gamma and degree: one each


def test_two_active_values_are_about_their_difference_apart(tree: Design) -> None:
    kernel = Kernel(tree, np.zeros(tree.size))
    one, other = (kernel.embedded(rows(tree, 1, kernel=0.5, C=0.5, gamma=u, degree=0.5)) for u in (0.2, 0.9))
    assert float(np.linalg.norm(one - other)) == pytest.approx(0.7, rel=0.03)


def test_gradients_of_a_conditional_space_equal_finite_differences(tree: Design) -> None:
    X = rows(tree, 30)
    z = np.sin(4 * X[:, 0]) + X[:, -1]
    at = theta(tree)

    def value(t: Any) -> float:
        return negative_log_posterior(tree, t, X, z, np.zeros(30))[0]

    def gradient(t: Any) -> Any:
        return negative_log_posterior(tree, t, X, z, np.zeros(30))[1]

    assert check_grad(value, gradient, at) < 1e-5 * float(np.linalg.norm(gradient(at)))
    posterior = Posterior.of(tree, tuple(at), X, z, np.zeros(30))
    new = rows(tree, 12, seed=3)
    new[:, : tree.m] = np.clip(new[:, : tree.m], 0.01, 0.99)
    _, _, d_mean, d_variance = posterior.predict_gradient(new)
    flags = np.ones((12, tree.m), dtype=bool)
    flags[:, tree.arcs] = new[:, -len(tree.arcs):] > 0      # along an inactive axis nothing moves
    for j in range(tree.m):
        step = np.zeros(new.shape[1])
        step[j] = 1e-6
        (up, up_v), (down, down_v) = posterior.predict(new + step), posterior.predict(new - step)
        here = flags[:, j]
        assert np.allclose(d_mean[here, j], (up - down)[here] / 2e-6, rtol=1e-5, atol=1e-6)
        assert np.allclose(d_variance[here, j], (up_v - down_v)[here] / 2e-6, rtol=1e-4, atol=1e-6)


# Fidelities -------------------------------------------------------------------------------------

@pytest.fixture
def staged() -> Design:
    return Design(cube(Space.model_validate({"x": {"type": "float", "low": 0, "high": 1}})), fidelity=True)


def test_gradients_with_a_fidelity_equal_finite_differences(staged: Design) -> None:
    rng = np.random.default_rng(0)
    X = staged.features(rng.random((25, 1)), rng.choice([0.1, 0.3, 1.0], 25))
    z = np.sin(6 * X[:, 0]) + 0.2 * X[:, -1]
    at = theta(staged)
    norm = float(np.linalg.norm(negative_log_posterior(staged, at, X, z, np.zeros(25))[1]))
    assert check_grad(lambda t: negative_log_posterior(staged, t, X, z, np.zeros(25))[0],
                      lambda t: negative_log_posterior(staged, t, X, z, np.zeros(25))[1], at) < 1e-5 * norm
    posterior = Posterior.of(staged, tuple(at), X, z, np.zeros(25))
    new = staged.features(np.linspace(0.1, 0.9, 7)[:, None])
    step = np.array([1e-6, 0.0])
    (up, up_v), (down, down_v) = posterior.predict(new + step), posterior.predict(new - step)
    _, _, d_mean, d_variance = posterior.predict_gradient(new)
    assert np.allclose(d_mean[:, 0], (up - down) / 2e-6, rtol=1e-5, atol=1e-6)
    assert np.allclose(d_variance[:, 0], (up_v - down_v) / 2e-6, rtol=1e-4, atol=1e-6)


def test_cheap_measurements_teach_about_the_full_fidelity(staged: Design) -> None:
    def truth(x: Any) -> Any:
        return np.sin(8 * x)

    cheap, full = np.linspace(0, 1, 15)[:, None], np.array([[0.1], [0.9]])
    U = np.vstack([cheap, full])
    fidelity = np.array([0.25] * 15 + [1.0] * 2)
    X = staged.features(U, fidelity)
    z = truth(U[:, 0]) + 0.1 * (fidelity < 1)
    new = staged.features(np.linspace(0, 1, 30)[:, None])
    wanted = truth(new[:, 0])
    with_cheap = Posterior.of(staged, fit(staged, X, z, np.zeros(17), None), X, z, np.zeros(17)).predict(new)[0]
    alone = Posterior.of(staged, fit(staged, X[15:], z[15:], np.zeros(2), None), X[15:], z[15:], np.zeros(2))
    assert np.std(with_cheap - wanted) < 0.3 * np.std(alone.predict(new)[0] - wanted)
    assert staged.model != Design(staged.of).model
