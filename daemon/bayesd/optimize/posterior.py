"""A Gaussian process as an immutable value: fit, condition, predict.

Notation (that of `kernel`, and)
    z  (n,)     standardised outcomes, lower is better
    K  (n, n)   k between the data, plus diag(noise + se^2)
    L  (n, n)   lower Cholesky factor of K
    alpha (n,)  K^-1 z                              (Rasmussen and Williams, algorithm 2.1)

theta is the maximum a posteriori: that of the likelihood times the prior of `kernel`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs, dtrtrs
from scipy.optimize import minimize

from bayesd.optimize.kernel import Design, Kernel, distance, matern, matern_and_slope
from bayesd.optimize.streams import Floats

ITERATIONS = 30
WARM_ITERATIONS = 20        # from the last fit, a few results ago
NOISY = -1.5                # logarithm of the noise at which the second climb starts
MARGIN = 1e-3               # by which it has to be better
DECIMALS = 2                # of theta: enough for the model, few enough for another machine's last bits
_TINY = 1e-12


class NotPositiveDefinite(ArithmeticError):
    """The covariance has no Cholesky factor, even with jitter."""


def negative_log_posterior(design: Design, theta: Floats, X: Floats, z: Floats,
                           se2: Floats) -> tuple[float, Floats]:
    """-log p(z | X, theta) - log p(theta) up to a constant, and its gradient (size,).

    Rasmussen and Williams, equations 5.8 and 5.9. Where K has no factor: a very bad value.
    """
    kernel = Kernel(design, theta)
    p, m, n = design.of.p, design.m, len(z)
    arms = m + len(design.arcs)
    S, F = kernel.embedded(X), kernel.trend(X)
    M, dM = matern_and_slope(distance(S, S))
    FF = F @ F.T
    between = kernel.across(X, X)
    plain = kernel.s2 * M + kernel.v * FF
    K = plain.copy() if between is None else plain * between
    K[np.diag_indices(n)] += kernel.noise + se2
    L, info = dpotrf(K, lower=1, clean=1)
    if info:
        return 1e25, np.zeros_like(theta)
    alpha, _ = dpotrs(L, z, lower=1)
    mean, sd, _, _ = design.prior
    off = (theta - mean) / sd
    value = 0.5 * float(z @ alpha) + float(np.sum(np.log(np.diagonal(L)))) + 0.5 * float(off @ off)

    inverse, _ = dpotri(L, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    A = 0.5 * (inverse - np.outer(alpha, alpha))            # d value / dK
    gradient = off / sd
    gradient[p + 1] += kernel.noise * float(np.trace(A))
    if between is not None:
        apart = (X[:, -1:] - X[:, -1]) ** 2 / kernel.fidelity_length**2
        _, slope = matern_and_slope(5 * apart)
        gradient[-1] += float(np.sum(A * plain * slope * -2 * apart))
        A = A * between
    B = A * (kernel.s2 * dM)                                # d value / dr^2
    row = B.sum(axis=1)
    BS = B @ S
    # sum_ik B_ik (S_ij - S_kj)^2, without an (n, n, E) array.
    spread = 2 * (row @ (S * S) - np.einsum("ij,ij->j", S, BS))
    gradient[:p] += -2 * np.bincount(design.owner, weights=spread, minlength=p)
    gradient[p] += kernel.s2 * float(np.sum(A * M))
    gradient[p + 2] += kernel.v * float(np.sum(A * FF))
    if m:
        dW = kernel.unturned(S, 4 * (row[:, None] * S[:, :arms] - BS[:, :arms]))
        _, by_a, by_b = kernel.warp_slopes(X)
        gradient[p + 3: p + 3 + m] += np.einsum("ij,ij->j", dW, by_a)
        gradient[p + 3 + m: p + 3 + 2 * m] += np.einsum("ij,ij->j", dW, by_b)
    return value, gradient


def fit(design: Design, X: Floats, z: Floats, se2: Floats, warm: tuple[float, ...] | None,
        anew: bool = True) -> tuple[float, ...]:
    """The maximum a posteriori theta, rounded.

    It climbs from the last fit, unless the prior's centre already explains the data better, and if
    `anew` from a noisy world too. The likelihood has a second top where short length scales explain
    noise as signal; a search that starts there stays there, result after result, and sees no structure.
    """
    mean, _, low, high = design.prior

    def value(theta: Floats) -> tuple[float, Floats]:
        return negative_log_posterior(design, theta, X, z, se2)

    start, noisy = mean, mean.copy()
    noisy[design.of.p + 1] = NOISY
    if warm is not None:
        last = np.clip(np.array(warm), low, high)
        if value(last)[0] < value(mean)[0]:
            start = last

    def climb(at: Floats, steps: int) -> Any:
        return minimize(value, at, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)),
                        options={"maxiter": steps, "maxcor": 10})

    found = climb(start, ITERATIONS if anew else WARM_ITERATIONS)
    if anew:
        other = climb(noisy, ITERATIONS)
        # By a margin, so that of two climbs to one top the same counts on every machine.
        found = other if other.fun < found.fun - MARGIN else found
    theta = found.x if np.all(np.isfinite(found.x)) else mean
    return tuple(round(float(t), DECIMALS) + 0.0 for t in theta)


@dataclass(frozen=True)
class Posterior:
    """What is believed after some data. `condition` returns a new one."""

    kernel: Kernel
    X: Floats
    S: Floats
    F: Floats
    z: Floats
    noise: Floats
    """(n,) variance of each row's noise, learned and known."""
    L: Floats
    alpha: Floats

    @classmethod
    def of(cls, design: Design, theta: tuple[float, ...], X: Floats, z: Floats, se2: Floats) -> "Posterior":
        """The posterior at a given theta. Raises `NotPositiveDefinite`."""
        kernel = Kernel(design, np.array(theta))
        S, F = kernel.embedded(X), kernel.trend(X)
        K = _covariance(kernel, (X, S, F), (X, S, F))
        noise = kernel.noise + se2
        K[np.diag_indices(len(z))] += noise
        L = factor(K)
        return cls(kernel, X, S, F, z, noise, L, dpotrs(L, z, lower=1)[0])

    def condition(self, X: Floats, z: Floats) -> "Posterior":
        """Append rows without factoring the old ones again: block Cholesky, O(n^2) a row."""
        kernel = self.kernel
        S, F = kernel.embedded(X), kernel.trend(X)
        n, k = len(self.z), len(z)
        cross = dtrtrs(self.L, self._with_data(X, S, F).T, lower=1)[0]        # (n, k)
        own = _covariance(kernel, (X, S, F), (X, S, F))
        own[np.diag_indices(k)] += kernel.noise
        noise = np.concatenate([self.noise, np.full(k, kernel.noise)])
        L = np.zeros((n + k, n + k), order="F")
        L[:n, :n] = self.L
        L[n:, :n] = cross.T
        L[n:, n:] = factor(own - cross.T @ cross)
        z = np.concatenate([self.z, z])
        return Posterior(kernel, np.vstack([self.X, X]), np.vstack([self.S, S]), np.vstack([self.F, F]), z,
                         noise, L, dpotrs(L, z, lower=1)[0])

    @property
    def design(self) -> Design:
        return self.kernel.design

    @property
    def lengths(self) -> Floats:
        """(m,) length scales of the numeric columns."""
        return self.kernel.lengths[:self.design.m]

    def embedded(self, X: Floats) -> Floats:
        """Coordinates in which distances are in length scales."""
        return self.kernel.embedded(X)

    @property
    def means(self) -> Floats:
        """(n,) mean at the data: k alpha, and (k + noise) alpha is z."""
        return np.asarray(self.z - self.noise * self.alpha)

    def _with_data(self, X: Floats, S: Floats, F: Floats) -> Floats:
        """(len(X), n) prior covariance of new rows with the data."""
        return _covariance(self.kernel, (X, S, F), (self.X, self.S, self.F))

    def predict(self, X: Floats) -> tuple[Floats, Floats]:
        """Mean and variance, without noise, of each row (Rasmussen and Williams, 2.25 and 2.26)."""
        S, F = self.kernel.embedded(X), self.kernel.trend(X)
        k = self._with_data(X, S, F)
        mean = k @ self.alpha
        half = dtrtrs(self.L, k.T, lower=1, overwrite_b=1)[0]
        variance = self.kernel.s2 + self.kernel.v * np.einsum("ij,ij->i", F, F) - np.einsum("ij,ij->j", half, half)
        return mean, np.maximum(variance, _TINY)

    def joint(self, X: Floats) -> tuple[Floats, Floats]:
        """Mean (b,) and covariance (b, b), without noise, of rows that are believed together."""
        S, F = self.kernel.embedded(X), self.kernel.trend(X)
        k = self._with_data(X, S, F)
        half = dtrtrs(self.L, k.T, lower=1)[0]
        return k @ self.alpha, _covariance(self.kernel, (X, S, F), (X, S, F)) - half.T @ half

    def draw(self, X: Floats, normal: Floats) -> Floats:
        """(d, b) values without noise of rows that are believed together, from standard normal numbers (d, b)."""
        mean, covariance = self.joint(X)
        return np.asarray(mean + normal @ factor(covariance).T)

    def predict_gradient(self, X: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean (b,), variance (b,) and their gradients (b, m) in the numeric columns of X (b, D)."""
        kernel, m = self.kernel, self.kernel.design.m
        arms = m + len(kernel.design.arcs)
        S, F = kernel.embedded(X), kernel.trend(X)
        M, dM = matern_and_slope(distance(S, self.S))
        dM *= 2 * kernel.s2
        M *= kernel.s2
        M += kernel.v * (F @ self.F.T)
        v = np.full((1, 1), kernel.v)
        between = kernel.across(X, self.X)
        if between is not None:
            M *= between
            dM *= between
            v = kernel.v * between
        half = dtrtrs(self.L, M.T, lower=1)[0]                              # L^-1 k'
        beta = dtrtrs(self.L, half, lower=1, trans=1)[0].T                  # (b, n) K^-1 k'
        variance = kernel.s2 + kernel.v * np.einsum("ij,ij->i", F, F) - np.einsum("ij,ij->j", half, half)
        slope = kernel.warp_slopes(X)[0]
        turn = 4 * F[:, :m]

        def through(weights: Floats) -> Floats:
            """sum_i weights_i d k_i / dx."""
            G = weights * dM
            by_matern = kernel.unturned(S, G.sum(axis=1)[:, None] * S[:, :arms] - G @ self.S[:, :arms]) * slope
            trend = (v * weights) @ self.F[:, :2 * m]
            by_matern += 2 * trend[:, :m]
            by_matern += turn * trend[:, m:]
            return by_matern

        d_mean = through(np.broadcast_to(self.alpha, M.shape))
        d_variance = 2 * kernel.v * (2 * F[:, :m] + turn * F[:, m:2 * m]) - 2 * through(beta)
        return M @ self.alpha, np.maximum(variance, _TINY), d_mean, d_variance


def covariance(design: Design, theta: Floats, X: Floats) -> Floats:
    """(n, n) of the true values of rows, before anything is measured."""
    kernel = Kernel(design, theta)
    rows = X, kernel.embedded(X), kernel.trend(X)
    return _covariance(kernel, rows, rows)


def _covariance(kernel: Kernel, one: tuple[Floats, Floats, Floats], other: tuple[Floats, Floats, Floats]) -> Floats:
    """k between rows (X, S, F) and rows (X, S, F)."""
    k = matern(distance(one[1], other[1]))
    k *= kernel.s2
    k += (kernel.v * one[2]) @ other[2].T
    between = kernel.across(one[0], other[0])
    if between is not None:
        k *= between
    return k


def factor(K: Floats) -> Floats:
    """Lower Cholesky factor of a new matrix. Near duplicates need jitter, in steps that start below the noise floor."""
    for jitter in (0.0, 1e-8, 1e-6, 1e-4):
        shifted = K.copy(order="F")
        shifted[np.diag_indices(len(K))] += jitter * float(np.mean(np.diagonal(K)))
        L, info = dpotrf(shifted, lower=1, clean=1)
        if info == 0:
            return np.asarray(L)
    raise NotPositiveDefinite(f"no Cholesky factor of a {len(K)} by {len(K)} covariance")
