"""What is believed of the points tried when nothing is taken for known: neither the noise, nor how smooth the
metric is.

A suggestion may trust one theta, the maximum a posteriori: a wrong one costs a trial. A probability may not. Twenty
noisy values are explained as well by a rough function without noise as by a smooth one with much of it, and whoever
believes the first alone is certain that the luckiest trial is the best. So three things are integrated out:

noise       its size on a fixed grid; at every node of it the other hyperparameters are climbed to their top, weighed by
            Laplace's approximation there, and drawn from it (Rue, Martino and Chopin, "Approximate Bayesian inference
            for latent Gaussian models by using integrated nested Laplace approximations", 2009, section 3.1)
its shape   even in what the model sees, or even in the metric, which is uneven in what the model sees, as outcomes
            were transformed: the power that spreads the good values out spreads their noise, too
roughness   the share of the noise that belongs to the point, and would be there again if it were measured again: what
            the function does between its points (independent local variation: the nugget of geostatistics, apart
            from the error of measurement; Cressie, "Statistics for spatial data", 1993, section 3.2.1). Whoever
            takes all of it for error is too sure of what the neighbours of a point say, where the function is rougher
            than the model can see. Between the cells of a table nothing need be smooth, so the odds are other ones
            there. Points that were measured again tell the two apart; where there are none, the odds are all there
            is to go by. They were chosen on runs of tests/bench/winners.py, such that probabilities came true.

Suggestions use none of this.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtri

from bayesd.optimize import streams
from bayesd.optimize.encode import Ints
from bayesd.optimize.kernel import Design
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.posterior import (
    DECIMALS,
    NotPositiveDefinite,
    Posterior,
    covariance,
    factor,
    negative_log_posterior,
)
from bayesd.optimize.streams import Floats

NOISES = np.array([-9, -7.5, -6, -5, -4.25, -3.5, -2.75, -2, -1.25, -0.5, 0.25])       # logarithms of the variance
PRIOR_NOISE = (-4.0, 2.0)       # mean and sd of that logarithm, of studies that say they are noisy
# Where every parameter is a set of cells, most measured once, noise passes for interactions: the likelihood alone found
# a third of it.
PRIOR_NOISE_CELLS = (-2.0, 1.0)
SMOOTH = {0.0: 10.0, 0.25: 1.0, 0.9: 0.1}               # share of the noise that belongs to the points -> its odds
CELLS = {0.0: 1.0, 0.15: 2.0, 0.4: 0.5, 0.9: 0.05}      # where every parameter is a set of cells
STEPS = 12          # of a climb
SURE = 100          # results that leave no second top: the nodes next to the best theta do
SIDE = 2            # so many of them on each side
DROP = 9.0          # logarithm of a weight, below the best one, from which a node says nothing
DRAWN = 4           # thetas of a node
APART = 0.05        # between two gradients, whose difference is a column of the Hessian
NEGLIGIBLE = 1e-3   # of the weight of the best belief
UNEVEN = (1e-2, 1e2)        # how far the noise of one row may be from the typical one
Value: TypeAlias = Callable[[Floats, float], tuple[float, Floats]]


@dataclass(frozen=True)
class Belief:
    """One way the world may be, and the true values of the k points in it."""

    weight: float
    mean: Floats
    """(k,) standardised."""
    covariance: Floats
    """(k, k)"""


@dataclass(frozen=True)
class _Way:
    """A theta, and what of each row's variance is noise."""

    weight: float
    """Logarithm, up to a constant."""
    theta: Floats
    noise: Floats
    """(n,)"""
    share: float = 0.0
    """Of the noise that belongs to the points."""


def beliefs(posterior: Posterior, known: Outcomes, arm: Ints, seed: int) -> list[Belief]:
    """Beliefs in the points of the first n = len(arm) rows of `posterior`, whose weights sum to 1. `arm` (n,) is the
    number of each row's point: rows of one number are one point, measured more than once."""
    n, design = len(arm), posterior.design
    X, z, se2 = posterior.X[:n], posterior.z[:n], posterior.noise[:n] - posterior.kernel.noise
    slope = known.slope(posterior.means[:n]) ** 2
    uneven = np.clip(slope / math.exp(float(np.mean(np.log(slope)))), *UNEVEN)
    ways: list[_Way] = []
    tops: dict[int, Floats] = {}
    finite = not any(axis.kind == "real" for axis in design.of.axes)
    prior = PRIOR_NOISE_CELLS if finite else PRIOR_NOISE
    for shape in (np.ones(n), uneven):
        ways += _ways(design, posterior.kernel.theta, X, z, se2, shape, prior, tops, seed)
    return _believed(design, ways, X, z, se2, arm, CELLS if finite else SMOOTH)


def _ways(design: Design, best: Floats, X: Floats, z: Floats, se2: Floats, shape: Floats,
          prior_noise: tuple[float, float], tops: dict[int, Floats], seed: int) -> list[_Way]:
    """Thetas for one shape of the noise. `tops` are those that another shape found, and become those of this one."""
    _, sd, low, high = design.prior
    at = design.of.p + 1        # of the noise, which is on the grid and so no part of theta here
    free = np.delete(np.arange(design.size), at)

    def full(x: Floats) -> Floats:
        theta = np.empty(design.size)
        theta[free], theta[at] = np.clip(x, low[free], high[free]), low[at]
        return theta

    def value(x: Floats, noise: float) -> tuple[float, Floats]:
        found, slope = negative_log_posterior(design, full(x), X, z, se2 + math.exp(noise) * shape)
        return found, slope[free]

    values = _climbed(value, best[free], float(best[at]), list(zip(low[free], high[free], strict=True)), len(z), tops)
    prior = -0.5 * ((NOISES - prior_noise[0]) / prior_noise[1]) ** 2 + np.log(np.gradient(NOISES))
    weights = {i: float(prior[i]) - found for i, found in values.items()}
    least = max(weights.values()) - DROP
    out = []
    for i in sorted(weights):
        if weights[i] < least:
            continue
        noise, x = float(NOISES[i]), tops[i]
        L = _curvature(value, x, noise, 0.5 / float(np.max(sd)) ** 2)
        inside = weights[i] - float(np.log(np.diagonal(L)).sum()) - math.log(DRAWN)
        normal = ndtri(streams.Stream(seed, i, "beliefs").uniform(DRAWN, len(x)))
        for each in normal:
            theta = full(np.round(x + solve_triangular(L, each, lower=True, trans=1), DECIMALS))
            out.append(_Way(inside, theta, math.exp(noise) * shape))
    return out


def _climbed(value: Value, best: Floats, noise: float, bounds: list[tuple[float, float]], n: int,
             tops: dict[int, Floats]) -> dict[int, float]:
    """What is least at each node, where `tops` then says it is. The likelihood may have two tops, of little noise and
    of much: so the grid is walked outwards from the best theta, and once more from its noisy end."""
    values: dict[int, float] = {}

    def climb(i: int, start: Floats) -> Floats:
        found = minimize(value, start, args=(float(NOISES[i]),), jac=True, method="L-BFGS-B", bounds=bounds,
                         options={"maxiter": STEPS})
        if i not in values or found.fun < values[i]:
            values[i], tops[i] = float(found.fun), np.round(found.x, DECIMALS)
        return tops[i]

    if tops:
        for i, start in list(tops.items()):
            climb(i, start)
        return values
    nearest = int(np.argmin(np.abs(NOISES - noise)))
    side = SIDE if n > SURE else len(NOISES)
    first, last = max(nearest - side, 0), min(nearest + side, len(NOISES) - 1)
    x = climb(nearest, best)
    for i in range(nearest + 1, last + 1):
        x = climb(i, x)
    x = tops[nearest]
    for i in range(nearest - 1, first - 1, -1):
        x = climb(i, x)
    if n <= SURE:
        x = tops[last]
        for i in range(last - 1, first - 1, -1):
            x = climb(i, x)
    return values


def _curvature(value: Value, x: Floats, noise: float, least: float) -> Floats:
    """Cholesky factor of the Hessian, of which no eigenvalue is below `least`."""
    slope = value(x, noise)[1]
    H = np.array([(value(x + APART * unit, noise)[1] - slope) / APART for unit in np.eye(len(x))])
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    return np.asarray(np.linalg.cholesky((vectors * np.maximum(values, least)) @ vectors.T))


def _believed(design: Design, ways: list[_Way], X: Floats, z: Floats, se2: Floats, arm: Ints,
              shares: dict[float, float]) -> list[Belief]:
    _, first = np.unique(arm, return_index=True)
    same = (arm[:, None] == arm[None, :]).astype(np.float64)
    found: list[tuple[_Way, float]] = []
    for way in ways:
        plain, fits = None, 0.0
        for share, odds in shares.items():
            if plain is None or len(first) < len(arm):      # of points that were measured once each, all fit alike
                try:
                    _, L = _together(design, way, share, X, se2, same)
                except NotPositiveDefinite:
                    continue
                half = solve_triangular(L, z, lower=True)
                fits = -0.5 * float(half @ half) - float(np.log(np.diagonal(L)).sum())
            plain = fits if plain is None else plain
            # The first share, none, is weighed with the way itself; the others against it.
            found.append((replace(way, share=share), way.weight + fits - plain + math.log(odds)))
    best = max(weight for _, weight in found)
    kept = [(way, math.exp(weight - best)) for way, weight in found if math.exp(weight - best) > NEGLIGIBLE]
    total = math.fsum(weight for _, weight in kept)
    out = []
    for way, weight in kept:
        G, L = _together(design, way, way.share, X, se2, same)
        half = solve_triangular(L, G[:, first], lower=True)
        out.append(Belief(weight / total, G[first] @ cho_solve((L, True), z),
                          G[np.ix_(first, first)] - half.T @ half))
    return out


def _together(design: Design, way: _Way, share: float, X: Floats, se2: Floats, same: Floats) -> tuple[Floats, Floats]:
    """Covariance (n, n) of the rows' true values, and the factor of that of what was measured."""
    G = covariance(design, way.theta, X)
    if share:
        G += share * same * np.sqrt(np.outer(way.noise, way.noise))
    K = G.copy()
    K[np.diag_indices(len(K))] += (1 - share) * way.noise + se2
    return G, factor(K)
