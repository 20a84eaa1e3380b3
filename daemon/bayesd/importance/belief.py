"""Whole functions drawn from the posterior: what else, beside its mean, the response may look like.

Notation
    U (n, p)    unit coordinates, as in `optimize.encode`
    d           a column: the posterior's mean first, then DRAWS sample paths

A path is a draw from the prior plus the update by which it meets the data (Wilson et al., "Efficiently
sampling functions from Gaussian process posteriors", 2020, equation 13; Matheron's rule):

    f(x) = g(x) + k(x, X) K^-1 (z - g(X) - e),   g = phi w + F sqrt(v) b,   e ~ N(0, noise)

phi are random Fourier features of Matern 5/2: cosines and sines at frequencies from Student's t with
five degrees of freedom (Rahimi and Recht 2007; Rasmussen and Williams, section 4.2.1). Joint draws by a
Cholesky factor would cost the cube of the thousands of points that a sensitivity index looks at.

The paths come in groups, each at hyperparameters of its own, drawn by `laplace`: at the fitted ones alone the
intervals of shares held the truth far too rarely (`tests/bench/importance.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.linalg.lapack import dpotrs
from scipy.special import gammaincinv, ndtr, ndtri

from bayesd.optimize import laplace, sobol, streams, surrogate
from bayesd.optimize.acquisition import Success
from bayesd.optimize.encode import Cube
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem
from bayesd_schemas.space import Params

THETAS = 8              # hyperparameters that paths are drawn at
PATHS = 6               # at each
DRAWS = THETAS * PATHS
FREQUENCIES = 128       # of each group
ROWS_MAX = 600          # results that the model holds; of more an even stride, since the whole space is asked about
BLOCK = 4096
NEEDED_MIN = 5          # results without which no share is worth naming
INTERVAL = (0.05, 0.95)


class NothingToSay(Exception):
    """The study holds too little for this question; the text says what is missing."""


@dataclass(frozen=True)
class _Group:
    """Paths at one theta: (F, E) frequencies, (2F, PATHS) and (q, PATHS) weights, (n, PATHS) of the update."""

    posterior: Posterior
    omega: Floats
    w: Floats
    b: Floats
    alpha: Floats

    @classmethod
    def of(cls, posterior: Posterior, stream: streams.Stream) -> "_Group":
        kernel = posterior.kernel
        spread = 2 * gammaincinv(2.5, np.clip(stream.uniform(FREQUENCIES), 1e-12, 1 - 1e-12)) / 5
        omega = _normal(stream, FREQUENCIES, len(kernel.lengths)) / np.sqrt(spread)[:, None]
        w = _normal(stream, 2 * FREQUENCIES, PATHS) * math.sqrt(kernel.s2 / FREQUENCIES)
        b = _normal(stream, posterior.F.shape[1], PATHS) * math.sqrt(kernel.v)
        e = _normal(stream, len(posterior.z), PATHS) * np.sqrt(posterior.noise)[:, None]
        prior = _features(posterior.S, omega) @ w + posterior.F @ b
        return cls(posterior, omega, w, b, dpotrs(posterior.L, posterior.z[:, None] - prior - e, lower=1)[0])

    def latent(self, X: Floats) -> Floats:
        """(n, PATHS)"""
        S, F = self.posterior.kernel.embedded(X), self.posterior.kernel.trend(X)
        out = self.posterior._with_data(X, S, F) @ self.alpha
        out += _features(S, self.omega) @ self.w
        out += F @ self.b
        return np.asarray(out)


@dataclass(frozen=True)
class Belief:
    """What is believed of one objective, or of success, over a whole space."""

    cube: Cube
    posterior: Posterior
    told: Outcomes | None
    """The way back to the units of the metric; None: of success, and values are probabilities."""
    level: float
    """Of success: the latent's mean where nothing is known."""
    sign: float
    """Times a value: lower is better."""
    seed: int
    space_U: Floats = field(repr=False)
    """(n, p) the whole history, in its order."""
    fitted_to: tuple[Floats, Floats, Floats] = field(repr=False)
    """X, z and se2 that the hyperparameters were fitted to."""

    @classmethod
    def of(cls, problem: Problem, objective: int = 0) -> "Belief":
        """The belief of the objective at this place. Raises NothingToSay."""
        base, parts = _surrogate(problem, objective)
        posterior = base.posterior
        assert isinstance(posterior, Posterior)
        good = np.array([i for i, seen in enumerate(problem.history) if seen.values is not None])
        rows = np.arange(len(good)) if len(good) <= ROWS_MAX else np.linspace(0, len(good) - 1, ROWS_MAX).astype(int)
        se2 = surrogate._known_noise(_of(problem, objective), base.outcomes)
        of = posterior.design.of
        held = Posterior.of(posterior.design, tuple(posterior.kernel.theta.tolist()),
                            posterior.design.features(base.U[good[rows]]), base.outcomes.z[rows], se2[rows])
        sign = 1.0 if problem.directions[objective] == "minimize" else -1.0
        return cls(of, held, base.outcomes, 0.0, sign, problem.seed, base.U, parts[0])

    @classmethod
    def of_success(cls, problem: Problem) -> "Belief":
        """The belief of whether a trial ends well: higher is better. Raises NothingToSay."""
        if all(seen.values is not None for seen in problem.history):
            raise NothingToSay("no trial has failed, so there is nothing to tell apart")
        base, parts = _surrogate(problem, 0)
        success = base.success
        assert isinstance(success, Success)
        assert isinstance(success.posterior, Posterior)
        return cls(success.posterior.design.of, success.posterior, None, success.level, -1.0, problem.seed,
                   base.U, parts[1])

    @cached_property
    def _groups(self) -> tuple[_Group, ...]:
        """Made when a path is asked for: what only looks at the posterior needs none."""
        stream, held = streams.Stream(self.seed, 0, "importance"), self.posterior
        design = held.design
        thetas = laplace.draws(design, tuple(held.kernel.theta.tolist()), *self.fitted_to,
                               _normal(stream, THETAS, design.size))
        known = held.noise - held.kernel.noise
        return tuple(_Group.of(Posterior.of(design, theta, held.X, held.z, known), stream) for theta in thetas)

    def latent(self, U: Floats) -> Floats:
        """(n, 1 + DRAWS): the mean and every path, in standardised units."""
        out = np.empty((len(U), 1 + DRAWS))
        for at in range(0, len(U), BLOCK):
            X = self.posterior.design.features(self.cube.snap(U[at:at + BLOCK], sobol.BITS))
            S, F = self.posterior.kernel.embedded(X), self.posterior.kernel.trend(X)
            here = out[at:at + BLOCK]
            here[:, 0] = self.posterior._with_data(X, S, F) @ self.posterior.alpha
            for k, group in enumerate(self._groups):
                here[:, 1 + k * PATHS:1 + (k + 1) * PATHS] = group.latent(X)
        return out

    def values(self, U: Floats) -> Floats:
        """(n, 1 + DRAWS) in the units of the metric, or probabilities of success."""
        return self.units(self.latent(U))

    def units(self, latent: Floats) -> Floats:
        return np.asarray(ndtr(self.level + latent)) if self.told is None else self.told.metric(latent)

    def sd(self, U: Floats) -> Floats:
        """(n,) standard deviation of the belief, in the units of `values`."""
        mean, variance = self.posterior.predict(self.posterior.design.features(self.cube.snap(U, sobol.BITS)))
        sd = np.sqrt(variance)
        return np.abs(self.units(mean + sd) - self.units(mean - sd)) / 2

    @property
    def noise_sd(self) -> float | None:
        """Standard deviation of one measurement where results are typical, in the units of the metric."""
        if self.told is None:
            return None
        return float(self.told.metric_sd(np.zeros(1), np.array([math.sqrt(self.posterior.kernel.noise)]))[0])

    def encode(self, params: Sequence[Params]) -> Floats:
        return self.cube.encode(params)

    def design(self, purpose: int, count: int, wide: int) -> Floats:
        """(count, wide) points of a scrambled Sobol sequence, the same for the same study."""
        return sobol.points(self.seed * 64 + purpose, 0, count, wide)

    def uniform(self, *shape: int) -> Floats:
        """Numbers for a bootstrap, the same for the same study."""
        return streams.Stream(self.seed, 1, "importance").uniform(*shape)


def inside(cube: Cube, U: Floats, j: int) -> Floats:
    """U with the ancestors of axis j moved, evenly, to cells at which it is active."""
    out = U.copy()
    for parent, wanted in cube.axes[j].conditions:
        cells = np.array(sorted(wanted))
        out = inside(cube, out, parent)
        pick = np.minimum((out[:, parent] * len(cells)).astype(np.int64), len(cells) - 1)
        out[:, parent] = cube.axes[parent].centre(cells[pick])
    return out


def _normal(stream: streams.Stream, *shape: int) -> Floats:
    return np.asarray(ndtri(np.clip(stream.uniform(*shape), 1e-12, 1 - 1e-12)))


def _features(S: Floats, omega: Floats) -> Floats:
    angle = S @ omega.T
    return np.hstack([np.cos(angle), np.sin(angle)])


def _of(problem: Problem, objective: int) -> Problem:
    """The problem with one objective. A recorded fit is of the only one, or of an even trade-off of several."""
    if len(problem.directions) == 1:
        return replace(problem, surrogate="gp", pending=())
    return replace(problem, surrogate="gp", pending=(), fit=None, directions=(problem.directions[objective],),
                   history=tuple(replace(seen, se=None, values=None if seen.values is None else
                                         (seen.values[objective],)) for seen in problem.history))


def _surrogate(problem: Problem, objective: int) -> tuple[surrogate.Surrogate, list[tuple[Floats, Floats, Floats]]]:
    """The model, and what its hyperparameters are fitted to: of the outcomes, and of success where trials failed."""
    good = sum(seen.values is not None for seen in problem.history)
    if good < NEEDED_MIN:
        raise NothingToSay(f"{good} trials with a value are too few: {NEEDED_MIN} are needed, and some ten for each "
                           "parameter before the order means much")
    if problem.sources:      # what this study measured says how much each parameter matters here
        problem = replace(problem, sources=(), fit=None)
    one = _of(problem, objective)
    return surrogate.surrogate(one, np.ones(1), refit=False), list(surrogate.Told.of(one, np.ones(1)).to_fit(one))
