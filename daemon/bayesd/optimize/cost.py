"""What a trial takes, as a function of its point: a model of the logarithm, and its term in the acquisition.

Notation
    c (n,)  what trials that ended well took, in seconds or in the cost that workers told; above zero
    z (n,)  log c, standardised

Divided by the expected cost, expected improvement is improvement per second or per euro (Snoek et al., "Practical
Bayesian optimization of machine learning algorithms", 2012, section 3.2). The model is that of the outcomes (a Gaussian
process, or a forest where the study learns with one), and its hyperparameters are fitted and recorded beside theirs.
A cost of zero has no logarithm, and is left out.
"""

import math
from dataclasses import dataclass

import numpy as np

from bayesd.optimize.acquisition import Model, Term, Thrift, Together
from bayesd.optimize.encode import Ints
from bayesd.optimize.search import Target
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem

RESULTS_MIN = 5     # with a cost, before there is a model of it
SAME = 1e-6         # standard deviation of log c below which all trials cost the same


@dataclass(frozen=True)
class Spent:
    """Costs as a model learns them."""

    rows: Ints
    """Of the history, those that told a cost; at most so many as were asked for, at an even stride."""
    z: Floats
    centre: float
    scale: float


def spent(problem: Problem, most: int) -> Spent | None:
    """What the history says of costs; None while too few trials told one."""
    told = [(row, math.log(seen.spent)) for row, seen in enumerate(problem.history)
            if seen.spent is not None and seen.spent > 0]
    if len(told) < RESULTS_MIN:
        return None
    logs = np.array([log for _, log in told])
    centre, sd = float(np.mean(logs)), float(np.std(logs))
    scale = sd if sd > SAME else 0.0
    some = np.arange(len(told)) if len(told) <= most else np.linspace(0, len(told) - 1, most).astype(np.int64)
    rows = np.array([row for row, _ in told])[some]
    return Spent(rows, (logs[some] - centre) / scale if scale else np.zeros(len(some)), centre, scale)


@dataclass(frozen=True)
class Costs:
    """What trials are believed to take."""

    posterior: Model
    """Of z."""
    centre: float
    scale: float

    def expected(self, X: Floats) -> float:
        """Of one row of features: the median, in the unit that was told."""
        log = self.centre + self.scale * float(self.posterior.predict(X)[0][0])
        return float(np.exp(min(log, 700.0)))


def with_costs(target: Target, costs: Costs | None, power: float | None) -> Target:
    """A target per unit of cost to a power; the target itself where costs do not count or are all alike."""
    if costs is None or not power or not costs.scale:
        return target
    terms: tuple[Target, *tuple[Term, ...]] = target.terms if isinstance(target, Together) else (target,)
    return Together((*terms, Thrift(costs.posterior, power * costs.scale)))
