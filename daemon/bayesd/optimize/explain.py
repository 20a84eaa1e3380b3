"""What the model held of one point, for people: made again from a problem, and deciding nothing.

The share of expected improvement that the mean brings says whether a proposal exploits or explores.
With z = (best - mean) / sd, expected improvement is the sum of (best - mean) Phi(z), which is there
without any doubt about the mean, and sd phi(z), which is there because of the doubt (Jones,
Schonlau and Welch 1998, equation 15). `share` is the first part of the sum, from 0 to 1.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bayesd.optimize import bayes, metrics, samplers, search, streams
from bayesd.optimize.acquisition import Improvement, log_h
from bayesd.optimize.allowed import allowed
from bayesd.optimize.arms import arms
from bayesd.optimize.encode import Cube
from bayesd.optimize.forest import Forest
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import Surrogate, surrogate
from bayesd.optimize.threads import one_blas_thread
from bayesd.optimize.transfer import Stacked
from bayesd.study.problem import Fit, Problem
from bayesd_schemas.space import Params

RIVALS = 3          # next-best points that are shown
APART = 0.1         # of the range along some axis, or another choice: less is the same point to a reader
SLICES = 2
SLICE_POINTS = 49
SCREEN_POINTS = 7
FLAT = 0.02         # standardised units: an axis along which the mean moves less tells nothing


@dataclass(frozen=True, slots=True)
class Rival:
    """A point that the search liked next."""

    params: dict[str, Any]
    mean: float | None
    sd: float | None
    ratio: float
    """Its acquisition (expected improvement, times the chance to end well) over that of the chosen point."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What the model expects along one parameter, all others as in the point. Metric units."""

    name: str
    scale: str
    values: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Explained:
    """One point under the model of a moment. Metric units are None with several objectives."""

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    """One deviation to both sides, in metric units: not even around the mean where outcomes are skewed."""
    best: float | None
    """The best belief, which an improvement had to beat."""
    ahead: float
    """How many sd the mean is better than the best belief; negative: worse."""
    share: float
    success: float
    """Probability that a trial ends well here; 1 while none has failed."""
    noise: float | None
    """Standard deviation that the model ascribes to one measurement."""
    weights: tuple[float, ...] | None
    found: dict[str, Any] | None
    """The point that the search proposes when it is made again."""
    rivals: tuple[Rival, ...]
    slices: tuple[Slice, ...]
    means: tuple[float, ...] | None = None
    """With two to four objectives: what is expected of each, in its units."""
    sds: tuple[float, ...] | None = None
    gain: float | None = None
    """Logarithm of the expected improvement of the hypervolume, in standardised units."""
    feasible: tuple[float | None, ...] = ()
    """Probability to keep each limit, as if nothing were pending; None while nobody has told a value of it."""


def explain(problem: Problem, params: Params) -> Explained | None:
    """None where no model can be made of this history."""
    if not bayes.enough(problem):
        return None
    try:
        with one_blas_thread():
            return _explain(problem, params)
    except Exception:       # a page is owed without it too: it says that nothing could be made again
        return None


def _explain(problem: Problem, params: Params) -> Explained:
    if metrics.needed(problem):
        return _explain_metrics(problem, params)
    base = surrogate(problem, bayes.weights_of(problem))
    aimed, design, of = bayes.sought(problem, base), base.design, base.design.of
    assert isinstance(aimed, bayes.Aim)
    one = len(problem.directions) == 1
    U = of.encode([params])
    X = design.features(U)
    mean, variance = aimed.posterior.predict(X)
    sd = np.sqrt(variance)
    z = float((aimed.gain.best - mean[0]) / sd[0])
    ends = base.outcomes.metric(np.array([mean[0] - sd[0], mean[0] + sd[0]])).tolist()
    return Explained(
        mean=float(base.outcomes.metric(mean)[0]) if one else None,
        sd=float(base.outcomes.metric_sd(mean, sd)[0]) if one else None,
        low=min(ends) if one else None, high=max(ends) if one else None,
        best=float(base.outcomes.metric(np.array([aimed.gain.best]))[0]) if one else None,
        ahead=z, share=share_of_mean(z),
        success=1.0 if base.success is None else float(np.exp(base.success.value(X)[0])),
        noise=_noise(base, mean) if one else None,
        weights=None if one else tuple(bayes.weights_of(problem).tolist()),
        **_others(problem, base, aimed, U, float(aimed.target.value(X)[0])),
        slices=_slices(base, aimed, U, base.outcomes) if one else ())


def _explain_metrics(problem: Problem, params: Params) -> Explained:
    """Metric by metric; with several objectives there is no one mean, and no one best."""
    base = metrics.metrics(problem)
    aimed, design = bayes.sought(problem, base), base.design
    assert isinstance(aimed, metrics.Sought)
    U = design.of.encode([params])
    X = design.features(U)
    beliefs = metrics.expected(base, aimed, X)
    one, z = len(beliefs) == 1, 0.0
    ends, best = [0.0, 0.0], None
    if isinstance(aimed.gain, Improvement):
        mean, variance = aimed.objectives[0].predict(X)
        z = float((aimed.gain.best - mean[0]) / math.sqrt(variance[0]))
        best = float(base.objectives[0].outcomes.metric(np.array([aimed.gain.best]))[0])
    if one:
        mean, variance = aimed.objectives[0].predict(X)
        sd = np.sqrt(variance)
        ends = base.objectives[0].outcomes.metric(np.array([mean[0] - sd[0], mean[0] + sd[0]])).tolist()
    return Explained(
        mean=beliefs[0][0] if one else None, sd=beliefs[0][1] if one else None,
        low=min(ends) if one else None, high=max(ends) if one else None, best=best, ahead=z, share=share_of_mean(z),
        success=1.0 if base.success is None else float(np.exp(base.success.value(X)[0])),
        noise=None, weights=None, found=_found(problem, base, aimed), rivals=(), slices=(),
        means=None if one else tuple(mean for mean, _ in beliefs), sds=None if one else tuple(sd for _, sd in beliefs),
        gain=None if one or aimed.gain is None else float(aimed.gain.value(X)[0]),
        feasible=metrics.feasible(problem, base, X))


def _found(problem: Problem, base: metrics.Metrics, aimed: metrics.Sought) -> dict[str, Any] | None:
    """Where the search lands when it is made again."""
    stream = streams.Stream(problem.seed, problem.number, "bayes")
    found = search.maximise(aimed.target, stream, aimed.centres, aimed.known, allowed(problem))
    params = bayes._first_new(problem, base.design.of, found.U)[1]
    return params or samplers.another(problem, problem.number, samplers.seen(problem))


def share_of_mean(z: float) -> float:
    """The share of expected improvement that the mean brings, at z = (best - mean) / sd."""
    if z <= 0:
        return 0.0
    # z Phi(z) / h(z), and h' = Phi.
    return float(min(1.0, z * log_h(np.array([z]))[1][0]))


def _noise(base: Surrogate, mean: Floats) -> float | None:
    """The learned noise around a mean, in metric units."""
    if isinstance(base.posterior, Forest):
        return None
    rest = base.posterior.rest if isinstance(base.posterior, Stacked) else base.posterior
    return float(base.outcomes.metric_sd(mean, np.array([math.sqrt(rest.kernel.noise)]))[0])


def _others(problem: Problem, base: Surrogate, aimed: bayes.Aim, U: Floats, reached: float) -> dict[str, Any]:
    """The search made again: where it lands, and the next points that a reader would call different."""
    of, stream = base.design.of, streams.Stream(problem.seed, problem.number, "bayes")
    found = search.maximise(aimed.target, stream, aimed.centres, aimed.known, allowed(problem))
    _, params = bayes._first_new(problem, of, found.U)
    if params is None:      # as the sampler goes on when nothing that was found is new
        params = samplers.another(problem, problem.number, samplers.seen(problem))
        if params is not None or not problem.repeats:
            return {"found": params, "rivals": ()}
        found = search.maximise(aimed.target, stream, aimed.centres, aimed.known[:0], allowed(problem))
        if not len(found.U):
            return {"found": None, "rivals": ()}
        params = of.decode(found.U[:1])[0]
    taken, rivals = of.pin(U), list[int]()
    for i in range(len(found.U)):
        here = of.pin(found.U[i:i + 1])
        if len(rivals) < RIVALS and bool((_apart(of, taken, here) > APART).all()):
            taken = np.vstack([taken, here])
            rivals.append(i)
    V = found.U[rivals]
    mean, variance = aimed.posterior.predict(base.design.features(V)) if rivals else (np.empty(0), np.empty(0))
    one = len(problem.directions) == 1
    means, sds = base.outcomes.metric(mean), base.outcomes.metric_sd(mean, np.sqrt(variance))
    return {"found": params, "rivals": tuple(
        Rival(rival, float(means[k]) if one else None, float(sds[k]) if one else None,
              math.exp(min(0.0, float(found.acquisition[i]) - reached)))
        for k, (i, rival) in enumerate(zip(rivals, of.decode(V), strict=True)))}


def _apart(of: Cube, U: Floats, here: Floats) -> Floats:
    """(n,) the largest distance along an axis; two choices are 1 apart."""
    apart = np.abs(U - here)
    for j, axis in enumerate(of.axes):
        if axis.kind == "choice":
            apart[:, j] = axis.cell(U[:, j]) != axis.cell(here[:, j])
    return np.asarray(apart.max(axis=1))


def _slices(base: Surrogate, aimed: bayes.Aim, U: Floats, outcomes: Outcomes) -> tuple[Slice, ...]:
    """Along the active numeric parameters in which the mean moves most."""
    of, design = base.design.of, base.design
    active = of.active(U)[0]
    axes = [j for j in design.numeric if active[j] and of.axes[j].parameter.type in ("float", "int")
            and of.axes[j].cells not in (1, 2)]
    coarse = np.linspace(0.0, 1.0, SCREEN_POINTS)
    moves = []
    for j in axes:
        V = np.repeat(U, SCREEN_POINTS, axis=0)
        V[:, j] = coarse
        moves.append(float(np.ptp(aimed.posterior.predict(design.features(V))[0])))
    order = [i for i in np.argsort(-np.array(moves), kind="stable").tolist() if moves[i] > FLAT] if moves else []
    return tuple(_slice(aimed, design, U, axes[i], outcomes) for i in order[:SLICES])


def _slice(aimed: bayes.Aim, design: Any, U: Floats, j: int, outcomes: Outcomes) -> Slice:
    axis = design.of.axes[j]
    if 0 < axis.cells <= SLICE_POINTS:
        u = axis.centre(np.arange(axis.cells))
    else:
        u = np.linspace(0.0, 1.0, SLICE_POINTS)
    V = np.repeat(U, len(u), axis=0)
    V[:, j] = u
    mean, variance = aimed.posterior.predict(design.features(V))
    sd = np.sqrt(variance)
    ends = np.sort(np.vstack([outcomes.metric(mean - sd), outcomes.metric(mean + sd)]), axis=0)
    return Slice(axis.name, getattr(axis.parameter, "scale", "linear"), tuple(map(float, axis.values(u))),
                 tuple(outcomes.metric(mean).tolist()), tuple(ends[0].tolist()), tuple(ends[1].tolist()),
                 float(axis.values(U[:, j])[0]))


# ---------------------------------------------------------------- which trial is the best


def chances(problem: Problem) -> dict[int, float]:
    """Trial -> the probability that its point has the best true value of those tried that were seen to keep every
    limit; {} without a model.

    Draws of all their values together, so that neighbours, which rise and fall together, are weighed
    as such. Only the trials with the best beliefs can win; the others count as 0.
    """
    known = arms(problem)
    return {} if known is None else {trial: float(known.probability[arm]) for trial, arm in known.of_trial.items()}


# ---------------------------------------------------------------- how a belief moved


def keeping(problem: Problem, fit: Fit) -> Problem:
    """The problem under hyperparameters that no result since has moved: what is then different is due to the
    results alone."""
    return replace(problem, fit=Fit(fit.model, len(problem.history), fit.theta))
