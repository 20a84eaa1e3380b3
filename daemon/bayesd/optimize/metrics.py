"""A model of each metric, where one number cannot say what a trial is worth: several objectives, or limits.

Every objective and every limit has a model and hyperparameters of its own, in a row in one theta: the objectives, the
limits, where trials have failed their success, and where they told it what they took. What is gained is hypervolume
where there are several objectives, and improvement on the best feasible belief where there is one. Where nothing tried
is feasible yet, the probability to be feasible is all that is looked for (Gelbart et al., "Bayesian optimization with
unknown constraints", 2014, section 3.3). A value that is missing is nothing to learn: its model knows the other trials.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from bayesd.optimize import hypervolume, outcomes
from bayesd.optimize.acquisition import Improvement, Model, Success, Together
from bayesd.optimize.belief import with_belief
from bayesd.optimize.cost import Costs
from bayesd.optimize.encode import Bools, Ints
from bayesd.optimize.fidelity import at_full
from bayesd.optimize.forest import Forest
from bayesd.optimize.improvement import Feasible, HypervolumeImprovement
from bayesd.optimize.kernel import Design
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.posterior import Posterior, fit, negative_log_posterior
from bayesd.optimize.search import Target
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import (
    CENTRES,
    FIT_ROWS_MAX,
    FOREST_ROWS_MAX,
    ROWS_MAX,
    Told,
    anew_due,
    believing,
    costs_of,
    has_costs,
    is_of,
    refit_due,
    telling,
)
from bayesd.study.problem import Fit, Problem

OBJECTIVES_MAX = 4          # of a hypervolume; more are scalarised
WIDE = (0.5, 1.0)           # of the way from the front's worst to the worst of all, where the reference lies: of trials
                            # with even numbers, and with odd ones
FRONT_MAX = {2: 300, 3: 60, 4: 24}      # points of a front: the number of boxes grows fast with the objectives


@dataclass(frozen=True)
class Metric:
    """One metric as it is modelled."""

    outcomes: Outcomes
    posterior: Model


@dataclass(frozen=True)
class Metrics:
    """What is believed of a history, metric by metric."""

    design: Design
    U: Floats
    """(n, p) unit coordinates of the whole history."""
    rows: Ints
    """The rows of U whose objectives are modelled."""
    objectives: tuple[Metric, ...]
    limits: tuple[Metric | None, ...]
    """None while nobody has told a value of it."""
    success: Success | None
    fit: Fit | None
    """A fit made on the way; None when the given one was used."""
    costs: Costs | None = None
    """None while too few trials told what they took, and where nobody asks."""


@dataclass(frozen=True)
class Sought:
    """What a suggestion is looked for with."""

    objectives: tuple[Model, ...]
    """Which believe their pending trials."""
    gain: Improvement | HypervolumeImprovement | None
    """None while nothing is feasible."""
    target: Target
    centres: Floats
    known: Floats


def needed(problem: Problem) -> bool:
    """Whether a problem is modelled metric by metric."""
    return bool(problem.limits) or 1 < len(problem.directions) <= OBJECTIVES_MAX


@dataclass(frozen=True, eq=False)
class _Part:
    """What one model learns from: rows of the history, values and known noise."""

    outcomes: Outcomes
    rows: Ints
    se2: Floats

    def chosen(self, told: Told, most: int) -> tuple[Floats, Floats, Floats]:
        some = telling(told.U[self.rows], self.outcomes.z, most)
        return told.X[self.rows[some]], self.outcomes.z[some], self.se2[some]


def _parts(problem: Problem, told: Told) -> list[_Part | None]:
    """Of the objectives, then of the limits."""
    out: list[_Part | None] = []
    well = [observation for observation in at_full(problem).history if observation.values is not None]
    values = np.array([observation.values for observation in well])
    none = np.zeros(len(told.good))
    for j, direction in enumerate(problem.directions):
        out.append(_Part(outcomes.transform(values[:, j], direction == "maximize"), told.good,
                         told.se2 if len(problem.directions) == 1 else none))
    for j, bound in enumerate(problem.limits):
        measured = [(i, value) for i, observation in enumerate(problem.history)
                    if j < len(observation.limits) and (value := observation.limits[j]) is not None]
        out.append(_Part(outcomes.transform(np.array([value for _, value in measured]), not bound.is_most),
                         np.array([i for i, _ in measured]), np.zeros(len(measured))) if measured else None)
    return out


def _to_fit(problem: Problem, told: Told, parts: list[_Part]) -> list[tuple[Floats, Floats, Floats]]:
    """X, z and se2 of each model in the order of theta."""
    out = [part.chosen(told, FIT_ROWS_MAX) for part in parts]
    if told.failed:
        every = told.chosen(FIT_ROWS_MAX)[1]
        out.append((told.X[every], told.labels[every], np.zeros(len(every))))
    return [*out, *told.costs_to_fit(problem)]


def metrics(problem: Problem, *, refit: bool = True) -> Metrics:
    """The models that `problem` describes. Needs one observation that is not a failure."""
    k = len(problem.directions)
    told = Told.of(problem, np.full(k, 1 / k))
    parts, design, n = _parts(problem, told), told.design, len(told.well)
    real = [part for part in parts if part is not None]
    zeros = np.zeros(n)
    # The objectives share their rows, so that they make one front.
    rows = told.chosen(FOREST_ROWS_MAX if problem.surrogate == "forest" else ROWS_MAX)[0]

    made = None
    if problem.surrogate == "forest":
        def model(at: int, X: Floats, z: Floats, se2: Floats) -> Model:
            return Forest.of(design, X, z, se2, problem.seed)
    else:
        last, size = problem.fit, design.size
        theta = last.theta if last is not None and is_of(
            last, design, len(real) + told.failed + has_costs(problem)) else None
        if theta is None or last is None or (refit and refit_due(n, last.n)):
            anew = anew_due(n, 0 if theta is None or last is None else last.n)
            theta = sum((fit(design, *each, theta and theta[at * size:(at + 1) * size], anew)
                         for at, each in enumerate(_to_fit(problem, told, real))), ())
            made = Fit(design.model, n, theta)
        thetas = theta

        def model(at: int, X: Floats, z: Floats, se2: Floats) -> Model:
            return Posterior.of(design, thetas[at * size:(at + 1) * size], X, z, se2)

    every = told.chosen(FOREST_ROWS_MAX if problem.surrogate == "forest" else ROWS_MAX)[1]
    never = told.X[every[~told.well[every]]]
    found: list[Metric | None] = []
    for j, part in enumerate(parts):
        if part is None:
            found.append(None)
        elif j < k:
            found.append(Metric(part.outcomes, believing(model(
                j, told.X[told.good[rows]], part.outcomes.z[rows], part.se2[rows]), never)))
        else:
            found.append(Metric(part.outcomes, model(real.index(part), *part.chosen(told, ROWS_MAX))))
    success = Success(model(len(real), told.X[every], told.labels[every], zeros[every]), told.level, 1 / (n + 2)) \
        if told.failed else None
    return Metrics(design, told.U, told.good[rows], tuple(each for each in found[:k] if each is not None),
                   tuple(found[k:]), success, made,
                   costs_of(problem, told, partial(model, len(real) + told.failed)))


def sought(problem: Problem, base: Metrics) -> Sought:
    """The target of the search. Pending trials count with what the models themselves expect of them."""
    design, k = base.design, len(base.objectives)
    n = len(base.rows)
    U, known = base.U[base.rows], base.U
    models = [each.posterior for each in base.objectives]
    means = np.column_stack([each.means[:n] for each in models])
    limits = [None if each is None else each.posterior for each in base.limits]
    kept = np.ones(n, dtype=np.bool_)
    for bound, each in zip(problem.limits, base.limits, strict=True):
        if each is not None:
            kept &= _keeps(each.posterior, _most(each, bound.value), design.features(U))
    if problem.pending:
        P = design.of.encode(problem.pending)
        X = design.features(P)
        believed = [each.predict(X)[0] for each in models]
        models = [each.condition(X, mean) for each, mean in zip(models, believed, strict=True)]
        limits = [None if each is None else each.condition(X, each.predict(X)[0]) for each in limits]
        here = np.ones(len(P), dtype=np.bool_)
        for bound, each, posterior in zip(problem.limits, base.limits, limits, strict=True):
            if each is not None and posterior is not None:
                here &= _keeps(posterior, _most(each, bound.value), X)
        U, known, kept = np.vstack([U, P]), np.vstack([known, P]), np.concatenate([kept, here])
        means = np.vstack([means, np.column_stack(believed)])

    terms: list[Target] = [Feasible(posterior, _most(each, bound.value)) for bound, each, posterior in zip(
        problem.limits, base.limits, limits, strict=True) if each is not None and posterior is not None]
    if base.success is not None:
        terms.append(base.success)
    gain: Improvement | HypervolumeImprovement | None = None
    if kept.any() or not terms:
        best = means[kept] if kept.any() else means
        gain = Improvement(models[0], float(np.min(best))) if k == 1 else HypervolumeImprovement(
            tuple(models), hypervolume.open_boxes(_spread(best), _reference(problem, base, best)))
        terms.insert(0, gain)
    # Those most worth looking near: feasible ones of the front, or of the best value, first.
    score = np.sum(means, axis=1) if k > 1 else means[:, 0]
    first = kept.copy()
    if k > 1 and kept.any():
        first[kept] = hypervolume.nondominated(means[kept])
    if not kept.any():
        chances = np.asarray(sum(term.value(design.features(U)) for term in terms))
        score = -chances
    order = np.lexsort((score, ~first))
    count = CENTRES if k == 1 else max(CENTRES, min(int(first.sum()), 16))
    if k > 1:       # along the whole front, not at its middle
        along = np.argsort(means[first][:, 0], kind="stable") if kept.any() else np.empty(0, dtype=np.int64)
        front = np.flatnonzero(first)[along] if len(along) else order
        if len(front) > count:
            front = front[np.linspace(0, len(front) - 1, count).astype(np.int64)]
        order = np.concatenate([front, order[~np.isin(order, front)]])
    first_term, *others = terms
    target = Together((first_term, *others)) if others else first_term
    return Sought(tuple(models), gain, with_belief(problem, first_term, target), U[order[:count]], known)


def _most(metric: Metric, bound: float) -> float:
    return float(metric.outcomes.standard(np.array([bound]))[0])


def _keeps(posterior: Model, most: float, X: Floats) -> Bools:
    """Whether each row is more likely within the limit than not."""
    return np.asarray(posterior.predict(X)[0] <= most)


def _reference(problem: Problem, base: Metrics, best: Floats) -> Floats:
    """(k,) the declared reference, else one from what is believed, standardised.

    Where a front's few points lie together the usual rule puts the reference beside them, and nothing beyond would ever
    be worth a trial: so every other trial looks as far as the worst of all, and finds the other pieces of a front. The
    trials between look half of that way, for a wide reference makes the ends of a front that is known the best places.
    """
    wide = WIDE[problem.number % 2]
    front = best[hypervolume.nondominated(best)].max(axis=0)
    out = np.maximum(hypervolume.reference(best), (1 - wide) * front + wide * best.max(axis=0))
    for j, declared in enumerate(problem.references):
        if declared is not None:
            out[j] = base.objectives[j].outcomes.standard(np.array([declared]))[0]
    return np.asarray(out)


def _spread(F: Floats) -> Floats:
    """The front of the points, thinned to those far from each other where it is long: its ends, then the farthest."""
    F = F[hypervolume.nondominated(F)]
    most = FRONT_MAX[F.shape[1]]
    if len(F) <= most:
        return F
    picked = list(dict.fromkeys(np.argmin(F, axis=0).tolist()))
    apart = np.min(np.sum((F[:, None, :] - F[picked]) ** 2, axis=2), axis=1)
    while len(picked) < most:
        picked.append(int(np.argmax(apart)))
        apart = np.minimum(apart, np.sum((F - F[picked[-1]]) ** 2, axis=1))
    return np.asarray(F[np.sort(picked)])


def expected(base: Metrics, aimed: Sought, X: Floats) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of each objective at one row of features, in its own units."""
    out = []
    for each, model in zip(base.objectives, aimed.objectives, strict=True):
        mean, variance = model.predict(X)
        out.append((float(each.outcomes.metric(mean)[0]), float(each.outcomes.metric_sd(mean, np.sqrt(variance))[0])))
    return tuple(out)


def doubt(problem: Problem, theta: tuple[float, ...]) -> float:
    """-log p(theta | history) up to a constant: what a fit makes small. Infinite where theta is of other models."""
    told = Told.of(problem, np.full(len(problem.directions), 1 / len(problem.directions)))
    parts = _to_fit(problem, told, [part for part in _parts(problem, told) if part is not None])
    size = told.design.size
    if len(theta) != size * len(parts):
        return math.inf
    return sum(negative_log_posterior(told.design, np.array(theta[at * size:(at + 1) * size]), *part)[0]
               for at, part in enumerate(parts))


def of_first(problem: Problem) -> Problem:
    """The first objective alone, as if nothing else had been measured."""
    if len(problem.directions) == 1 and not problem.limits:
        return problem
    return replace(
        problem, directions=problem.directions[:1], fit=None, limits=(), references=(), sources=(),
        history=tuple(replace(o, values=None if o.values is None else o.values[:1]) for o in problem.history))


def feasible(problem: Problem, base: Metrics, X: Floats) -> tuple[float | None, ...]:
    """Probability that one row of features keeps each limit."""
    return tuple(None if each is None else math.exp(float(
        Feasible(each.posterior, _most(each, bound.value)).value(X)[0]))
        for bound, each in zip(problem.limits, base.limits, strict=True))
