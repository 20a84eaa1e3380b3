"""What is believed of all points tried, together: which of them is the best, and what it costs to be wrong.

An arm is a point that was tried, however often: trials at equal points are one arm, and all their
values speak for it. Its belief is the posterior of the surrogate, and as a decision rests on it the
hyperparameters are not taken for known: around the maximum a posteriori stands a grid in the two
directions that matter here, the size of the noise and a common factor of all length scales, and each
node counts with its posterior density (Rue, Martino and Chopin, "Approximate Bayesian inference for
latent Gaussian models by using integrated nested Laplace approximations", 2009, section 3.1). A single
theta says of a lucky value that it is the best with far more certainty than it has.

Draws of all arms together (with their covariance: neighbours rise and fall together) give the
probability that an arm is the best, and the loss that its choice is expected to bring:
E[f(arm) - min over arms f], in the units of the metric. Suggestions use none of this.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from bayesd.optimize import streams
from bayesd.optimize.acquisition import Model
from bayesd.optimize.encode import Ints
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.posterior import NotPositiveDefinite, Posterior
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import ROWS_MAX, Surrogate, surrogate
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Problem

ARMS_MAX = 100      # arms with the best means, among which the best is looked for
DRAWS = 4096
NOISES = np.arange(-4, 5) * 0.7         # added to the logarithm of the noise
LENGTHS = np.arange(-2, 3) * 0.5        # and to that of every length scale
ENOUGH = 3          # results before a model says anything
NEGLIGIBLE = 1e-3   # of the weight of the best node


@dataclass(frozen=True)
class Arms:
    """The points tried, k of them. Lower is better in z, whatever the direction of the metric."""

    of_trial: dict[int, int]
    """Trial -> its arm. A trial that the model left out, as there were too many, is in none."""
    mean: Floats
    """(k,) in metric units."""
    sd: Floats
    """(k,) of the mean, without the noise of a measurement."""
    z: Floats
    """(k,) mean in standardised units."""
    probability: Floats
    """(k,) that it is the best of them all."""
    loss: Floats
    """(k,) expected, in metric units."""
    drawn: Floats
    """(DRAWS, m) values of the m leading arms, in metric units, times -1 where more is better."""
    leading: Ints
    """(m,) arms that were drawn."""


def of_objective(problem: Problem, objective: int) -> Problem:
    """The problem of one objective alone, with nothing pending. A recorded fit of several is of no use to it."""
    return replace(problem, directions=(problem.directions[objective],), pending=(), history=tuple(
        replace(o, values=None if o.values is None else (o.values[objective],),
                se=o.se if objective == 0 else None) for o in problem.history),
        fit=problem.fit if len(problem.directions) == 1 else None)


def arms(problem: Problem, objective: int = 0) -> Arms | None:
    """The arms of one objective; None where no model can be made, as of fewer than three results."""
    one = of_objective(problem, objective)
    if sum(o.values is not None for o in one.history) < ENOUGH:
        return None
    try:
        with one_blas_thread():
            return _arms(one, surrogate(one, np.ones(1)))
    except Exception:       # an answer is owed even when the numbers fail: it then says no probability
        return None


def _arms(problem: Problem, base: Surrogate) -> Arms:
    well = np.array([i for i, o in enumerate(problem.history) if o.values is not None])
    if len(well) > ROWS_MAX:
        well = well[np.sort(np.argsort(base.outcomes.z, kind="stable")[:ROWS_MAX])]
    pinned = base.design.of.pin(base.U[well])
    _, first, arm = np.unique(pinned, axis=0, return_index=True, return_inverse=True)
    arm = arm.ravel()
    X = base.design.features(base.U[well[first]])
    nodes = _nodes(base)
    beliefs = [posterior.predict(X) for _, posterior in nodes]
    weights = np.array([weight for weight, _ in nodes])
    z = np.sum([weight * mean for weight, (mean, _) in zip(weights, beliefs, strict=True)], axis=0)
    variance = np.sum([weight * (own + (mean - z) ** 2) for weight, (mean, own)
                       in zip(weights, beliefs, strict=True)], axis=0)
    leading = np.argsort(z, kind="stable")[:ARMS_MAX]
    drawn = _signed(base.outcomes, _draws(problem.seed, nodes, X[leading]))
    mean, sd = base.outcomes.metric(z), base.outcomes.metric_sd(z, np.sqrt(variance))
    least = drawn.min(axis=1)
    probability, loss = np.zeros(len(z)), base.outcomes.sign * mean - float(least.mean())
    probability[leading] = np.bincount(np.argmin(drawn, axis=1), minlength=len(leading)) / len(drawn)
    loss[leading] = (drawn - least[:, None]).mean(axis=0)
    return Arms({problem.history[i].trial: int(at) for i, at in zip(well.tolist(), arm.tolist(), strict=True)},
                mean, sd, z, probability, np.maximum(loss, 0.0), drawn, leading)


def _signed(outcomes: Outcomes, z: Floats) -> Floats:
    return np.asarray(outcomes.sign * outcomes.metric(z))


def _nodes(base: Surrogate) -> list[tuple[float, Model]]:
    """Weights, which sum to 1, and posteriors over the grid; of a forest, which has no theta, the one there is."""
    posterior = base.posterior
    if not isinstance(posterior, Posterior):
        return [(1.0, posterior)]
    n = len(base.rows)
    X, z, se2 = posterior.X[:n], posterior.z[:n], posterior.noise[:n] - posterior.kernel.noise
    design, p = base.design, base.design.of.p
    mean, sd, low, high = design.prior
    found: list[tuple[float, Posterior]] = []
    for by_noise in NOISES:
        for by_length in LENGTHS:
            theta = posterior.kernel.theta.copy()
            theta[p + 1] += by_noise
            theta[:p] += by_length
            if theta[p + 1] < low[p + 1] or theta[p + 1] > high[p + 1]:
                continue
            try:
                node = Posterior.of(design, tuple(theta.tolist()), X, z, se2)
            except NotPositiveDefinite:
                continue
            off = (theta - mean) / sd
            fits = -0.5 * float(z @ node.alpha) - float(np.log(np.diagonal(node.L)).sum()) - 0.5 * float(off @ off)
            found.append((fits, node))
    best = max(fits for fits, _ in found)
    kept: list[tuple[float, Model]] = [(math.exp(fits - best), node) for fits, node in found
                                       if math.exp(fits - best) > NEGLIGIBLE]
    total = math.fsum(weight for weight, _ in kept)
    return [(weight / total, node) for weight, node in kept]


def _draws(seed: int, nodes: list[tuple[float, Model]], X: Floats) -> Floats:
    """(DRAWS, m): each node has its share of the draws."""
    u = streams.Stream(seed, 0, "chances").uniform(DRAWS, len(X))
    normal = ndtri(np.clip(u, 1e-12, 1 - 1e-12))
    shares = np.round(np.cumsum([weight for weight, _ in nodes]) * DRAWS).astype(np.int64)
    shares[-1] = DRAWS
    out, at = np.empty_like(normal), 0
    for until, (_, posterior) in zip(shares.tolist(), nodes, strict=True):
        if until > at:
            if isinstance(posterior, Posterior):
                mean, covariance = posterior.joint(X)
                values, vectors = np.linalg.eigh(covariance)
                out[at:until] = mean + (normal[at:until] * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
            else:       # a forest knows variances alone
                mean, own = posterior.predict(X)
                out[at:until] = mean + normal[at:until] * np.sqrt(own)
            at = until
    return np.asarray(out)
