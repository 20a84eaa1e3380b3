"""A Gaussian process as an immutable value: fit, condition, predict.

Notation
    n, m, D     data points, numeric axes, feature columns
    X  (n, D)   features: m numeric columns in [0, 1], then scaled one-hot columns of categories
    z  (n,)     standardised outcomes, lower is better
    W  (n, D)   X with the numeric columns warped: w = 1 - (1 - x^a)^b (Kumaraswamy's distribution
                function, one a and b per column; Snoek et al., "Input warping", 2014)
    S  (n, D)   W divided by the length scale of the parameter that owns the column
    F  (n, q)   trend features: 2x - 1 and its square for numeric columns, the one-hot indicators
    K  (n, n)   s2 M(r^2) + v F F' + diag(noise + se^2), with r^2 = |S_i - S_k|^2 and Matern's
                M(r^2) = (1 + sqrt5 r + 5/3 r^2) exp(-sqrt5 r)   (Rasmussen and Williams, 4.17)
    L  (n, n)   lower Cholesky factor of K
    alpha (n,)  K^-1 z                              (Rasmussen and Williams, algorithm 2.1)
    theta       logarithms of: length scale per parameter, s2, noise, v, a per column, b per column

Every entry of exp(theta) has a lognormal prior, so theta is found by its maximum a posteriori. The
length scales' prior does not grow with the dimension: with transformed outcomes and tens of
evaluations that was clearly better on 5 to 20 axes. The quadratic trend finds a bowl in a handful
of points; where there is none, v shrinks.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs, dtrtrs
from scipy.optimize import minimize

from bayesd.optimize.encode import ONE_HOT, Cube
from bayesd.optimize.streams import Floats

ITERATIONS = 30
CHOICES_MAX = 64            # columns of one category: with more choices, every 64th looks alike to the model
DECIMALS = 2                # of theta: enough for the model, few enough for another machine's last bits
_EDGE = 1e-6                # the warp's slope is infinite at 0 or 1 for a or b below 1
_SQRT5 = math.sqrt(5)

# (mean, sd, lowest, highest) of the logarithm
_PRIOR_LENGTH = (math.log(0.5), 0.8, math.log(0.01), math.log(100))
_PRIOR_S2 = (0.0, 1.0, -6.0, 6.0)
_PRIOR_NOISE = (-6.0, 2.0, math.log(1e-6), 2.0)     # wide: LN(-4, 1) was a little worse
_PRIOR_TREND = (math.log(0.1), 1.5, -10.0, 4.0)
_PRIOR_WARP = (0.0, 0.3, -1.5, 1.5)


class NotPositiveDefinite(ArithmeticError):
    """The covariance has no Cholesky factor, even with jitter."""


@dataclass(frozen=True)
class Design:
    """Which feature columns a cube has and which parameter owns each."""

    of: Cube

    @cached_property
    def numeric(self) -> list[int]:
        return [j for j, axis in enumerate(self.of.axes) if axis.kind != "choice"]

    @cached_property
    def choices(self) -> list[int]:
        return [j for j, axis in enumerate(self.of.axes) if axis.kind == "choice"]

    @property
    def m(self) -> int:
        return len(self.numeric)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """(D,) parameter of each column."""
        return np.array(self.numeric + [j for j in self.choices for _ in range(self._columns(j))], dtype=np.int64)

    def _columns(self, j: int) -> int:
        return min(self.of.axes[j].cells, CHOICES_MAX)

    @property
    def size(self) -> int:
        """Length of theta."""
        return self.of.p + 3 + 2 * self.m

    @cached_property
    def model(self) -> str:
        """Name of the model in the log. It holds a digest of the axes: length scales are in units of
        their ranges, so a theta of another space, or of the same one before it was amended, is no use here.
        """
        axes = repr([(axis.name, axis.kind, axis.parameter.model_dump_json()) for axis in self.of.axes])
        return f"gp-matern52-kumaraswamy-quadratic/1:{blake2b(axes.encode(), digest_size=6).hexdigest()}"

    def features(self, U: Floats) -> Floats:
        """X of unit coordinates, with inactive axes pinned."""
        U = self.of.pin(U)
        blocks = [U[:, self.numeric]]
        for j in self.choices:
            axis = self.of.axes[j]
            columns = self._columns(j)
            blocks.append(ONE_HOT * ((axis.cell(U[:, j]) % columns)[:, None] == np.arange(columns)))
        return np.ascontiguousarray(np.hstack(blocks))

    def prior(self) -> tuple[Floats, Floats, list[tuple[float, float]]]:
        rows = np.array([_PRIOR_LENGTH] * self.of.p + [_PRIOR_S2, _PRIOR_NOISE, _PRIOR_TREND]
                        + [_PRIOR_WARP] * (2 * self.m))
        return rows[:, 0], rows[:, 1], [(low, high) for low, high in rows[:, 2:].tolist()]


@dataclass(frozen=True)
class Kernel:
    """The covariance function at one theta."""

    design: Design
    theta: Floats

    @cached_property
    def lengths(self) -> Floats:
        """(D,) length scale of each column."""
        return np.exp(self.theta[: self.design.of.p])[self.design.owner]

    @cached_property
    def s2(self) -> float:
        return math.exp(self.theta[self.design.of.p])

    @cached_property
    def noise(self) -> float:
        return math.exp(self.theta[self.design.of.p + 1])

    @cached_property
    def v(self) -> float:
        return math.exp(self.theta[self.design.of.p + 2])

    @cached_property
    def a(self) -> Floats:
        return np.exp(self.theta[self.design.of.p + 3:][: self.design.m])

    @cached_property
    def b(self) -> Floats:
        return np.exp(self.theta[self.design.of.p + 3 + self.design.m:])

    def scaled(self, X: Floats) -> Floats:
        """S, shape of X."""
        m = self.design.m
        S = X / self.lengths
        if m:
            x = np.clip(X[:, :m], _EDGE, 1 - _EDGE)
            S[:, :m] = (1 - (1 - x**self.a) ** self.b) / self.lengths[:m]
        return S

    def scaled_slope(self, X: Floats) -> Floats:
        """(n, m): dS/dX of the numeric columns."""
        m = self.design.m
        x = np.clip(X[:, :m], _EDGE, 1 - _EDGE)
        slope: Floats = (self.a * self.b * x ** (self.a - 1) * (1 - x**self.a) ** (self.b - 1)) / self.lengths[:m]
        return slope

    def trend(self, X: Floats) -> Floats:
        """F."""
        m = self.design.m
        c = 2 * X[:, :m] - 1
        return np.hstack([c, c * c, X[:, m:] / ONE_HOT])

    def matern(self, S: Floats, T: Floats) -> Floats:
        """M between the rows of S and of T."""
        r = _distance(S, T)
        return np.asarray((1 + r + r * r / 3) * np.exp(-r))

    def matern_and_slope(self, S: Floats, T: Floats) -> tuple[Floats, Floats]:
        """(M, dM/dr^2)."""
        r = _distance(S, T)
        e = np.exp(-r)
        return (1 + r + r * r / 3) * e, (-5 / 6) * (1 + r) * e


def _distance(S: Floats, T: Floats) -> Floats:
    """sqrt5 times the distance between the rows of S and of T, by one matrix product."""
    r2 = np.einsum("ij,ij->i", S, S)[:, None] + np.einsum("ij,ij->i", T, T) - 2 * (S @ T.T)
    return np.asarray(_SQRT5 * np.sqrt(np.maximum(r2, 0, out=r2)))


def negative_log_posterior(design: Design, theta: Floats, X: Floats, z: Floats,
                           se2: Floats) -> tuple[float, Floats]:
    """-log p(z | X, theta) - log p(theta) up to a constant, and its gradient (size,).

    Rasmussen and Williams, equations 5.8 and 5.9. Where K has no factor: a very bad value.
    """
    kernel = Kernel(design, theta)
    p, m, n = design.of.p, design.m, len(z)
    S, F = kernel.scaled(X), kernel.trend(X)
    M, dM = kernel.matern_and_slope(S, S)
    K = kernel.s2 * M + kernel.v * (F @ F.T)
    K[np.diag_indices(n)] += kernel.noise + se2
    L, info = dpotrf(K, lower=1, clean=1)
    if info:
        return 1e25, np.zeros_like(theta)
    alpha, _ = dpotrs(L, z, lower=1)
    mean, sd, _ = design.prior()
    off = (theta - mean) / sd
    value = 0.5 * float(z @ alpha) + float(np.sum(np.log(np.diagonal(L)))) + 0.5 * float(off @ off)

    inverse, _ = dpotri(L, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    A = 0.5 * (inverse - np.outer(alpha, alpha))            # d value / dK
    B = A * (kernel.s2 * dM)                                # d value / dr^2
    row = B.sum(axis=1)
    BS = B @ S
    # sum_ik B_ik (S_ij - S_kj)^2, without an (n, n, D) array.
    spread = 2 * (row @ (S * S) - np.einsum("ij,ij->j", S, BS))
    gradient = off / sd
    gradient[:p] += -2 * np.bincount(design.owner, weights=spread, minlength=p)
    gradient[p] += kernel.s2 * float(np.sum(A * M))
    gradient[p + 1] += kernel.noise * float(np.trace(A))
    gradient[p + 2] += kernel.v * float(np.sum((A @ F) * F))
    if m:
        dW = 4 * (row[:, None] * S[:, :m] - BS[:, :m]) / kernel.lengths[:m]
        x = np.clip(X[:, :m], _EDGE, 1 - _EDGE)
        power = x**kernel.a
        rest = 1 - power
        gradient[p + 3: p + 3 + m] += np.sum(
            dW * kernel.b * rest ** (kernel.b - 1) * power * np.log(x), axis=0) * kernel.a
        gradient[p + 3 + m:] += np.sum(-dW * rest**kernel.b * np.log(rest), axis=0) * kernel.b
    return value, gradient


def fit(design: Design, X: Floats, z: Floats, se2: Floats, warm: tuple[float, ...] | None) -> tuple[float, ...]:
    """The maximum a posteriori theta, rounded.

    Starts from the last fit unless the prior's centre already explains the data better.
    """
    mean, _, bounds = design.prior()
    start = mean
    if warm is not None:
        low, high = np.array(bounds).T
        last = np.clip(np.array(warm), low, high)
        if negative_log_posterior(design, last, X, z, se2)[0] < negative_log_posterior(design, mean, X, z, se2)[0]:
            start = last
    found = minimize(lambda theta: negative_log_posterior(design, theta, X, z, se2), start, jac=True,
                     method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS, "maxcor": 10})
    theta = found.x if np.all(np.isfinite(found.x)) else mean
    return tuple(round(float(t), DECIMALS) + 0.0 for t in theta)


@dataclass(frozen=True)
class Posterior:
    """What is believed after some data. `condition` returns a new one."""

    kernel: Kernel
    S: Floats
    F: Floats
    z: Floats
    L: Floats
    alpha: Floats

    @classmethod
    def of(cls, design: Design, theta: tuple[float, ...], X: Floats, z: Floats, se2: Floats) -> "Posterior":
        kernel = Kernel(design, np.array(theta))
        S, F = kernel.scaled(X), kernel.trend(X)
        K = kernel.s2 * kernel.matern(S, S) + kernel.v * (F @ F.T)
        K[np.diag_indices(len(z))] += kernel.noise + se2
        L = _factor(K)
        alpha, _ = dpotrs(L, z, lower=1)
        return cls(kernel, S, F, z, L, alpha)

    def condition(self, X: Floats, z: Floats) -> "Posterior":
        """Append rows without factoring the old ones again: block Cholesky, O(n^2) a row."""
        S, F = self.kernel.scaled(X), self.kernel.trend(X)
        n, k = len(self.z), len(z)
        cross = dtrtrs(self.L, self._covariance(S, F).T, lower=1)[0]        # (n, k)
        own = self.kernel.s2 * self.kernel.matern(S, S) + self.kernel.v * (F @ F.T)
        own[np.diag_indices(k)] += self.kernel.noise
        L = np.zeros((n + k, n + k), order="F")
        L[:n, :n] = self.L
        L[n:, :n] = cross.T
        L[n:, n:] = _factor(own - cross.T @ cross)
        z = np.concatenate([self.z, z])
        alpha, _ = dpotrs(L, z, lower=1)
        return Posterior(self.kernel, np.vstack([self.S, S]), np.vstack([self.F, F]), z, L, alpha)

    def _covariance(self, S: Floats, F: Floats) -> Floats:
        """(len(S), n) prior covariance of new rows with the data."""
        return self.kernel.s2 * self.kernel.matern(S, self.S) + self.kernel.v * (F @ self.F.T)

    def predict(self, X: Floats) -> tuple[Floats, Floats]:
        """Mean and variance, without noise, of each row (Rasmussen and Williams, 2.25 and 2.26)."""
        S, F = self.kernel.scaled(X), self.kernel.trend(X)
        k = self._covariance(S, F)
        half = dtrtrs(self.L, k.T, lower=1)[0]
        variance = self.kernel.s2 + self.kernel.v * np.einsum("ij,ij->i", F, F) - np.einsum("ij,ij->j", half, half)
        return k @ self.alpha, np.maximum(variance, _TINY)

    def predict_gradient(self, X: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean (b,), variance (b,) and their gradients (b, m) in the numeric columns of X (b, D)."""
        kernel, m = self.kernel, self.kernel.design.m
        S, F = kernel.scaled(X), kernel.trend(X)
        M, dM = kernel.matern_and_slope(S, self.S)
        k = kernel.s2 * M + kernel.v * (F @ self.F.T)
        half = dtrtrs(self.L, k.T, lower=1)[0]                              # L^-1 k'
        beta = dtrtrs(self.L, half, lower=1, trans=1)[0].T                  # (b, n) K^-1 k'
        variance = kernel.s2 + kernel.v * np.einsum("ij,ij->i", F, F) - np.einsum("ij,ij->j", half, half)
        slope = kernel.scaled_slope(X)
        c = 2 * X[:, :m] - 1

        def through(weights: Floats, trend: Floats) -> Floats:
            """sum_i weights_i d k_i / dx, with `trend` = weights @ F."""
            G = 2 * kernel.s2 * weights * dM                                # d / dr^2, twice
            by_matern = (G.sum(axis=1)[:, None] * S[:, :m] - G @ self.S[:, :m]) * slope
            by_trend: Floats = kernel.v * (2 * trend[:, :m] + 4 * c * trend[:, m:2 * m])
            return np.asarray(by_matern + by_trend)

        d_mean = through(np.broadcast_to(self.alpha, k.shape), np.broadcast_to(self.alpha @ self.F, F.shape))
        d_variance = 2 * kernel.v * (2 * F[:, :m] + 4 * c * F[:, m:2 * m]) - 2 * through(beta, beta @ self.F)
        return k @ self.alpha, np.maximum(variance, _TINY), d_mean, d_variance


_TINY = 1e-12


def _factor(K: Floats) -> Floats:
    """Lower Cholesky factor. Near duplicates need jitter, in steps that start below the noise floor."""
    for jitter in (0.0, 1e-8, 1e-6, 1e-4):
        shifted = K.copy(order="F")
        shifted[np.diag_indices(len(K))] += jitter * float(np.mean(np.diagonal(K)))
        L, info = dpotrf(shifted, lower=1, clean=1)
        if info == 0:
            return np.asarray(L)
    raise NotPositiveDefinite(f"no Cholesky factor of a {len(K)} by {len(K)} covariance")
