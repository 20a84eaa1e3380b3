"""What is believed of all points tried, together: which of them is the best, and what it costs to be wrong.

An arm is a point that was tried, however often: trials at equal points are one arm, and all their
values speak for it. What is believed of it is told in `beliefs`, which takes nothing for known.

Draws of all arms together (with their covariance: neighbours rise and fall together) give the
probability that an arm is the best, and the loss that its choice is expected to bring:
E[f(arm) - min over arms f], in the units of the metric. Suggestions use none of this.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from bayesd.optimize import streams
from bayesd.optimize.beliefs import Belief, beliefs
from bayesd.optimize.encode import Ints
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import Surrogate, surrogate
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Problem

ARMS_MAX = 100      # arms with the best means, among which the best is looked for
DRAWS = 4096
ENOUGH = 3          # results before a model says anything


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
    """The problem of one objective alone, with nothing pending, of what was measured here and keeps the limits. A
    recorded fit of several models is of no use to it."""
    alone = len(problem.directions) == 1 and not (problem.limits or problem.sources or problem.thrift is not None)
    return replace(problem, directions=(problem.directions[objective],), pending=(), history=tuple(
        replace(o, values=None if o.values is None else (o.values[objective],), limits=(),
                se=o.se if objective == 0 else None) for o in problem.history if problem.keeps(o)),
        fit=problem.fit if alone else None, references=(), limits=(), sources=(), thrift=None)


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
    rows, posterior = base.rows, base.posterior
    _, first, arm = np.unique(base.design.of.pin(base.U[rows]), axis=0, return_index=True, return_inverse=True)
    arm = arm.ravel()
    if isinstance(posterior, Posterior):
        found = beliefs(posterior, base.outcomes, arm, problem.seed)
    else:       # a forest has no hyperparameters to doubt, and knows variances alone
        own, variance = posterior.predict(base.design.features(base.U[rows[first]]))
        found = [Belief(1.0, own, np.diag(variance))]
    z = np.sum([each.weight * each.mean for each in found], axis=0)
    variance = np.sum([each.weight * (np.diagonal(each.covariance) + (each.mean - z) ** 2) for each in found], axis=0)
    leading = np.argsort(z, kind="stable")[:ARMS_MAX]
    drawn = _draws(problem.seed, found, leading)
    wins = np.bincount(np.argmin(drawn, axis=1), minlength=len(leading)) / DRAWS      # before metric() clips any
    metric = np.asarray(base.outcomes.sign * base.outcomes.metric(drawn))
    least = metric.min(axis=1)
    mean, sd = base.outcomes.metric(z), base.outcomes.metric_sd(z, np.sqrt(np.maximum(variance, 0.0)))
    probability, loss = np.zeros(len(z)), base.outcomes.sign * mean - float(least.mean())
    probability[leading], loss[leading] = wins, (metric - least[:, None]).mean(axis=0)
    trials = [problem.history[i].trial for i in rows.tolist()]
    return Arms(dict(zip(trials, arm.tolist(), strict=True)), mean, sd, z, probability, np.maximum(loss, 0.0), metric,
                leading)


def _draws(seed: int, found: list[Belief], leading: Ints) -> Floats:
    """(DRAWS, m): each belief has its share of the draws."""
    normal = ndtri(np.clip(streams.Stream(seed, 0, "chances").uniform(DRAWS, len(leading)), 1e-12, 1 - 1e-12))
    shares = np.round(np.cumsum([each.weight for each in found]) * DRAWS).astype(np.int64)
    shares[-1] = DRAWS
    out, at = np.empty_like(normal), 0
    for until, each in zip(shares.tolist(), found, strict=True):
        if until > at:
            values, vectors = np.linalg.eigh(each.covariance[np.ix_(leading, leading)])
            out[at:until] = each.mean[leading] + (normal[at:until] * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
            at = until
    return np.asarray(out)
