"""The model of one history: which observations it holds, in what units, at which hyperparameters.

Outcomes are modelled where trials ended well; whether they do is a second model of its own (Gelbart
et al., "Bayesian optimization with unknown constraints", 2014). A failure counted as a bad value was
worse: the regression then bends towards a cliff that the outcomes do not have.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from bayesd.optimize import outcomes, sources
from bayesd.optimize.acquisition import Model, Success
from bayesd.optimize.cost import Costs, spent
from bayesd.optimize.encode import Ints, cube
from bayesd.optimize.fidelity import at_full
from bayesd.optimize.forest import Forest
from bayesd.optimize.kernel import Design
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.posterior import DECIMALS, Posterior, fit, negative_log_posterior
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Fit, Problem

CENTRES = 5         # best data points, around which rows are near
ANEW_MIN = 20       # results from which noise can be told from structure
FIT_ROWS_MAX = 256  # a fit's cost is cubic and its answer is a handful of numbers
FOREST_ROWS_MAX = 5000
ROWS_MAX = 300      # more observations than this: the model takes the telling ones


@dataclass(frozen=True)
class Surrogate:
    """What is believed of a history."""

    design: Design
    U: Floats
    """(n, p) unit coordinates of the whole history."""
    outcomes: Outcomes
    posterior: Model
    """Of the transformed outcomes."""
    rows: Ints
    """The rows of U whose outcomes the posterior holds, in its order; failures that it believes follow."""
    success: Success | None
    """None while no trial has failed."""
    fit: Fit | None
    """A fit made on the way; None when the given one was used, and for a forest, which has none."""
    costs: Costs | None = None
    """None while too few trials told what they took, and where nobody asks."""


def refit_due(n: int, last: int) -> bool:
    """A schedule of counts alone: at every result while they are few, then with every tenth part more."""
    return n >= last + max(1, last // 10) or n < last


def anew_due(n: int, last: int) -> bool:
    """Whether a fit looks for another top of the likelihood too: with every fourth part more results.

    Of fewer than 20 nobody can tell whether they are noisy, and to believe it hid the peaks of
    functions in two and three dimensions.
    """
    return n >= ANEW_MIN and (n < last or (n**3).bit_length() != (last**3).bit_length())


@dataclass(frozen=True)
class Told:
    """A history as arrays: n rows, of which `good` (g,) ended well."""

    design: Design
    U: Floats
    X: Floats
    well: NDArray[np.bool_]
    good: Ints
    outcomes: Outcomes
    se2: Floats
    """(g,)"""
    labels: Floats
    level: float

    @classmethod
    def of(cls, problem: Problem, weights: Floats) -> "Told":
        problem = at_full(problem)
        design = Design(cube(problem.space))
        well = np.array([observation.values is not None for observation in problem.history])
        good = np.flatnonzero(well)
        U = design.of.encode([observation.params for observation in problem.history])
        known = transformed(problem, weights)
        level = float(ndtri((len(good) + 1) / (len(well) + 2)))
        return cls(design, U, design.features(U), well, good, known, _known_noise(problem, known),
                   np.where(well, 1.0, -1.0) - level, level)

    @property
    def failed(self) -> bool:
        return len(self.good) < len(self.well)

    def chosen(self, most: int) -> tuple[Ints, Ints]:
        """Rows of the outcomes, and where trials have failed rows of the history, failures among them."""
        return (telling(self.U[self.good], self.outcomes.z, most),
                telling(self.U, _ranked(self.well, self.outcomes.z), most) if self.failed else self.good[:0])

    def to_fit(self, problem: Problem) -> Iterator[tuple[Floats, Floats, Floats]]:
        """X, z and se2 that theta is fitted to: of the outcomes, of success where trials have failed, of costs where
        they were told."""
        # With several objectives theta is fitted to even weights: a fit belongs to the history,
        # not to the trade-off of the trial that happened to be due.
        k = len(problem.directions)
        even = self.outcomes.z if k == 1 else transformed(problem, np.full(k, 1 / k)).z
        rows, every = self.chosen(FIT_ROWS_MAX)
        X, z, se2 = self.X[self.good[rows]], even[rows], self.se2[rows]
        if problem.sources:      # weighed at the last theta, so that what is fitted to does not move with the fit
            last, size = problem.fit, self.design.size
            usable = last is not None and is_of(last, self.design, 1 + self.failed + has_costs(problem))
            theta = last.theta[:size] if last is not None and usable else tuple(self.design.prior[0].tolist())
            z = sources.rest_of(problem, self.design, theta, X, z, se2)
        yield X, z, se2
        if self.failed:
            yield self.X[every], self.labels[every], np.zeros(len(every))
        yield from self.costs_to_fit(problem)

    def costs_to_fit(self, problem: Problem) -> Iterator[tuple[Floats, Floats, Floats]]:
        """X, z and se2 of the model of costs, if there is one."""
        told = spent(problem, FIT_ROWS_MAX)
        if told is not None:
            yield self.X[told.rows], told.z, np.zeros(len(told.rows))


def surrogate(problem: Problem, weights: Floats, *, refit: bool = True) -> Surrogate:
    """The model that `problem` describes, and with several objectives the trade-off `weights` (k,).

    Needs one observation that is not a failure. Without `refit` the recorded fit counts, however old:
    who looks back wants what was believed, and in the time of one factorisation.
    """
    data = Told.of(problem, weights)
    design, U, X, well, good = data.design, data.U, data.X, data.well, data.good
    n, failed, chosen, known = len(well), data.failed, data.chosen, data.outcomes
    z, se2, level, labels, told = known.z, data.se2, data.level, data.labels, np.zeros(n)
    floor = 1 / (n + 2)

    if problem.surrogate == "forest":
        rows, every = chosen(FOREST_ROWS_MAX)
        posterior: Model = Forest.of(design, X[good[rows]], z[rows], se2[rows], problem.seed)
        success = Success(Forest.of(design, X[every], labels[every], told[every], problem.seed), level, floor) \
            if failed else None
        costs = costs_of(problem, data, lambda X, z, se2: Forest.of(design, X, z, se2, problem.seed))
        return Surrogate(design, U, known, believing(posterior, X[every[~well[every]]]), good[rows], success, None,
                         costs)

    # Several thetas in a row: of the outcomes, of success where trials have failed, of costs where they were told.
    last, size = problem.fit, design.size
    theta: tuple[float, ...] | None = None
    if last is not None and is_of(last, design, 1 + failed + has_costs(problem)):
        theta = last.theta
    made = None
    if theta is None or last is None or (refit and refit_due(n, last.n)):
        anew = anew_due(n, 0 if theta is None or last is None else last.n)
        theta = sum((fit(design, *part, theta and theta[at * size:(at + 1) * size], anew)
                     for at, part in enumerate(data.to_fit(problem))), ())
        made = Fit(design.model, n, theta)

    rows, every = chosen(ROWS_MAX)
    posterior = sources.posterior_of(problem, design, theta[:size], X[good[rows]], z[rows], se2[rows])
    success = Success(Posterior.of(design, theta[size:2 * size], X[every], labels[every], told[every]), level, floor) \
        if failed else None
    of_costs = theta[-size:]
    costs = costs_of(problem, data, lambda X, z, se2: Posterior.of(design, of_costs, X, z, se2))
    return Surrogate(design, U, known, believing(posterior, X[every[~well[every]]]), good[rows], success, made, costs)


def has_costs(problem: Problem) -> bool:
    """Whether there is a model of costs."""
    return spent(problem, FIT_ROWS_MAX) is not None


def costs_of(problem: Problem, data: Told, model: Callable[[Floats, Floats, Floats], Model]) -> Costs | None:
    """What trials are believed to take; `model` makes a posterior of features, standardised logarithms and noise."""
    told = spent(problem, ROWS_MAX)
    return None if told is None else Costs(
        model(data.X[told.rows], told.z, np.zeros(len(told.rows))), told.centre, told.scale)


def doubt(problem: Problem, weights: Floats, theta: tuple[float, ...]) -> float:
    """-log p(theta | history) up to a constant: what a fit makes small. Infinite where theta is of other axes."""
    data = Told.of(problem, weights)
    size = data.design.size
    if len(theta) != size * (1 + data.failed + has_costs(problem)):
        return math.inf
    return sum(negative_log_posterior(data.design, np.array(theta[at * size:(at + 1) * size]), *part)[0]
               for at, part in enumerate(data.to_fit(problem)))


def is_of(last: Fit, design: Design, models: int) -> bool:
    """Whether a recorded fit speaks of these models, and of nothing that no fit could say."""
    if last.model != design.model or len(last.theta) != design.size * models:
        return False
    _, _, low, high = design.prior
    theta = np.array(last.theta).reshape(models, design.size)
    half = 0.5 * 10.0**-DECIMALS       # theta is rounded
    return bool(np.all((theta >= low - half) & (theta <= high + half)))


def believing(posterior: Model, never: Floats) -> Model:
    """A place that fails has no outcome to learn: it is believed, so that nothing draws there."""
    return posterior.condition(never, posterior.predict(never)[0]) if len(never) else posterior


def _ranked(well: NDArray[np.bool_], z: Floats) -> Floats:
    """(n,) outcomes with failures behind the worst, to choose rows by."""
    ranked = np.full(len(well), float(np.max(z, initial=0.0)) + 1)
    ranked[well] = z
    return ranked


def transformed(problem: Problem, weights: Floats) -> Outcomes:
    """Outcomes of the trials that ended well, in the order of the history."""
    values = np.array([observation.values for observation in problem.history if observation.values is not None])
    maximize = tuple(direction == "maximize" for direction in problem.directions)
    if values.shape[1] == 1:
        return outcomes.transform(values[:, 0], maximize[0])
    return outcomes.transform(outcomes.scalarise(values, maximize, weights), False)


def _known_noise(problem: Problem, known: Outcomes) -> Floats:
    """Variances that folds told, zero elsewhere. With several objectives `se` has no one scale."""
    se = np.array([observation.se or 0.0 for observation in problem.history if observation.values is not None])
    return known.variance(se) if len(problem.directions) == 1 and se.any() else np.zeros(len(se))


def telling(U: Floats, z: Floats, most: int) -> Ints:
    """Rows to model when there are too many: the best third, those nearest to the best, an even stride."""
    n = len(z)
    if n <= most:
        return np.arange(n)
    order = np.argsort(z, kind="stable")
    third = most // 3
    near = np.full(n, np.inf)
    for centre in U[order[:CENTRES]]:
        apart = U - centre
        near = np.minimum(near, np.einsum("ij,ij->i", apart, apart))
    near[order[:third]] = np.inf
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[order[:third]] = True
    chosen[np.argsort(near, kind="stable")[:third]] = True
    rest = np.flatnonzero(~chosen)
    chosen[rest[np.linspace(0, len(rest) - 1, most - int(chosen.sum())).astype(np.int64)]] = True
    return np.flatnonzero(chosen)
