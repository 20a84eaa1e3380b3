"""The sampler that learns: a Gaussian process and log expected improvement.

A start design (the centre, then Sobol points), then: the model of the history (`surrogate`), which
believes what it says itself of pending trials ("kriging believer", Ginsbourger et al. 2010), and
the point where the improvement on the best belief is likely to be largest, times the probability
that a trial ends well there. The `acquisition` of a proposal is the logarithm of that, in
standardised units. With two to four objectives, and with limits on outcomes, each metric has a model of its own
(`metrics`), and what is looked for is hypervolume within the limits. With more objectives each trial draws weights of
its own and looks for the best trade-off under them (ParEGO, Knowles 2006).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bayesd.optimize import metrics, opening, samplers, search, streams
from bayesd.optimize.acquisition import Improvement, Model, Together
from bayesd.optimize.allowed import allowed
from bayesd.optimize.belief import likely, weighed, with_belief
from bayesd.optimize.cost import with_costs
from bayesd.optimize.encode import ABSENT, PINNED, Cube, cube
from bayesd.optimize.metrics import Metrics, Sought
from bayesd.optimize.search import Target
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import CENTRES, ROWS_MAX, Surrogate, doubt, surrogate
from bayesd.optimize.transfer import Stacked
from bayesd.study.problem import NONE_NEW, Fit, Problem, Proposal, Suggestion
from bayesd_schemas.constraints import broken
from bayesd_schemas.space import Params


def design_size(p: int) -> int:
    """Trials before the first model."""
    return min(max(5, p + 1), 12)


def suggest(problem: Problem, count: int) -> Suggestion:
    """Points by model where there is one, by design where there is none yet."""
    proposals: list[Proposal] = []
    made: Fit | None = None
    base: Surrogate | Metrics | None = None
    counters: dict[str, float] = {}
    while len(proposals) < count:
        done = len(proposals)
        now = replace(problem, number=problem.number + done, pending=(
            *problem.pending, *(proposal.params for proposal in proposals)),
            drawn=proposals[-1].drawn if proposals else problem.drawn, fit=made or problem.fit)
        if not enough(now):
            step = _designed(now)
        else:
            try:
                if base is None or (len(problem.directions) > 1 and isinstance(base, Surrogate)):
                    base = model_of(now)
                    made = made or base.fit
                step = _modelled(now, base)
            except Exception as error:     # a study must go on; the log says on what
                step = samplers.random(now, 1, fallback=f"bayes: {type(error).__name__}: {error}"[:200])
        if not step.proposals:
            return Suggestion(tuple(proposals), made, exhausted=True, counters=counters)
        proposals += step.proposals
        counters.update(step.counters)
    return Suggestion(tuple(proposals), made, counters=counters)


def model_of(problem: Problem) -> Surrogate | Metrics:
    """What is believed of the history, as a whole or metric by metric."""
    return metrics.metrics(problem) if metrics.needed(problem) else surrogate(problem, weights_of(problem))


def enough(problem: Problem) -> bool:
    """True when a model is worth more than another point of the design.

    While every trial fails the design goes on: a model of failures alone only knows to go far from
    them, into the corners of the space, and took far longer to find a part that works.
    """
    size = opening.size_of(problem, design_size(len(problem.space)))
    finished = len(problem.history)
    return (finished + len(problem.pending) >= size and 2 * finished >= size
            and any(observation.values is not None for observation in problem.history))


def _designed(problem: Problem) -> Suggestion:
    """The centre of the space first: it is the best single guess; then Sobol points."""
    if problem.prior or problem.sources:
        return opening.designed(problem)
    if problem.drawn == 0:
        params = cube(problem.space).decode(np.full((1, len(problem.space)), PINNED))[0]
        if broken(problem.constraints, params) is None and (
                problem.repeats or params not in samplers.seen(problem)):
            return Suggestion((Proposal(params, "sobol", streams.name(problem.seed, 0, "centre"), 1),))
    # Even where repeats are allowed, a design learns more from new points while there are any.
    fresh = samplers.sobol_points(replace(problem, repeats=False), 1, skip=1)
    return samplers.sobol_points(problem, 1, skip=1) if fresh.exhausted and problem.repeats else fresh


def weights_of(problem: Problem) -> Floats:
    """A direction of the trade-off, even over the simplex, from the trial's own stream."""
    k = len(problem.directions)
    if k == 1:
        return np.ones(1)
    spacing = -np.log1p(-streams.Stream(problem.seed, problem.number, "weights").uniform(k))
    return np.asarray(spacing / max(float(spacing.sum()), 1e-300))


@dataclass(frozen=True)
class Aim:
    """What a suggestion is looked for with: the model that believes its pending trials, and what is to be gained."""

    posterior: Model
    gain: Improvement
    target: Target
    centres: Floats
    """Unit coordinates of the best data points."""
    known: Floats
    """Unit coordinates of everything tried or on its way."""


def aim(problem: Problem, base: Surrogate) -> Aim:
    """The target of the search. Pending trials count with what the model itself expects of them."""
    design, posterior = base.design, base.posterior
    known, U, means = base.U, base.U[base.rows], posterior.means[:len(base.rows)]
    if problem.pending:
        P = design.of.encode(problem.pending)
        X = design.features(P)
        believed = posterior.predict(X)[0]
        posterior = posterior.condition(X, believed)
        U, known, means = np.vstack([U, P]), np.vstack([known, P]), np.concatenate([means, believed])
    gain = Improvement(posterior, float(np.min(means)))
    target: Target = gain if base.success is None else Together((gain, base.success))
    return Aim(posterior, gain, with_belief(problem, gain, target),
               U[np.argsort(means, kind="stable")[:CENTRES]], known)


def _modelled(problem: Problem, base: Surrogate | Metrics) -> Suggestion:
    design = base.design
    aimed = sought(problem, base)
    known, target, centres = aimed.known, aimed.target, aimed.centres
    # A known point is not proposed again while there are new ones, whether repeats are allowed or
    # not: allowing them was tried, and was worse even on tabulated runs whose repeats differ.
    stream = streams.Stream(problem.seed, problem.number, "bayes")
    judge = allowed(problem)
    beside = likely(problem, target)
    found = search.maximise(target, stream, centres, known, judge, beside)
    name = streams.name(problem.seed, problem.number, "bayes")
    pick, params = _first_new(problem, design.of, found.U)
    if params is None:
        params = samplers.another(problem, problem.number, samplers.seen(problem))
        if params is not None:
            return Suggestion((Proposal(params, "bayes", name, problem.drawn + 1,
                                        fallback=f"bayes: {NONE_NEW}"),))
        if not problem.repeats:
            return Suggestion((), exhausted=True)
        found = search.maximise(target, stream, centres, known[:0], judge, beside)
        if not len(found.U):
            return Suggestion((), exhausted=True)
        pick, params = 0, design.of.decode(found.U[:1])[0]
    following = found.acquisition[pick + 1:pick + 2]
    return Suggestion((Proposal(
        params, "bayes", name, problem.drawn + 1,
        acquisition=float(found.acquisition[pick]),
        gap=float(found.acquisition[pick] - following[0]) if len(following) else None,
        index=pick, prior=weighed(target), sources=_sources(base),
        **_costing(problem, base, design.features(found.U[pick:pick + 1])),
        **_expected(problem, base, aimed, design.features(found.U[pick:pick + 1]))),),
        counters={"observations": float(len(base.rows))})


def _sources(base: Surrogate | Metrics) -> tuple[tuple[str, float], ...] | None:
    """What earlier studies weigh in a model; None where they have no part in it."""
    if isinstance(base, Surrogate) and isinstance(base.posterior, Stacked):
        return base.posterior.weights
    return None


def sought(problem: Problem, base: Surrogate | Metrics) -> Aim | Sought:
    """The target of the search: what is to be gained, against what it is expected to take."""
    found = aim(problem, base) if isinstance(base, Surrogate) else metrics.sought(problem, base)
    return replace(found, target=with_costs(found.target, base.costs, problem.thrift))


def _costing(problem: Problem, base: Surrogate | Metrics, X: Floats) -> dict[str, Any]:
    """What a point is expected to take, and how much that counted."""
    if base.costs is None or problem.thrift is None:
        return {}
    return {"power": problem.thrift, "cost": base.costs.expected(X)}


def _expected(problem: Problem, base: Surrogate | Metrics, aimed: Aim | Sought, X: Floats) -> dict[str, Any]:
    """What the model expects of a point, in metric units; of a scalarised trade-off nobody has units."""
    if isinstance(base, Metrics):
        assert isinstance(aimed, Sought)
        beliefs = metrics.expected(base, aimed, X)
        if len(beliefs) > 1:
            return {"means": tuple(mean for mean, _ in beliefs), "sds": tuple(sd for _, sd in beliefs)}
        return {"mean": beliefs[0][0], "sd": beliefs[0][1]}
    if len(problem.directions) > 1:
        return {}
    assert isinstance(aimed, Aim)
    mean, variance = aimed.posterior.predict(X)
    return {"mean": float(base.outcomes.metric(mean)[0]),
            "sd": float(base.outcomes.metric_sd(mean, np.sqrt(variance))[0])}


def _first_new(problem: Problem, of: Cube, U: Floats) -> tuple[int, dict[str, Any] | None]:
    """The first row that is neither in the history nor pending, as parameters."""
    tried = [*(observation.params for observation in problem.history), *problem.pending]
    for i in range(len(U)):
        params = of.decode(U[i:i + 1])[0]
        # Parameters that an earlier space had besides do not make a point another one.
        if not any(all(old.get(name, ABSENT) == params.get(name, ABSENT) for name in of.names) for old in tried):
            return i, params
    return 0, None


def value_of(problem: Problem, params: Params) -> float | None:
    """See `bayesd.optimize.value_of`."""
    if problem.method != "bayes" or not enough(problem):
        return None
    base = model_of(problem)
    target = sought(problem, base).target
    return float(target.value(base.design.features(base.design.of.encode([params])))[0])


def fit_of(problem: Problem) -> Fit | None:
    """See `bayesd.optimize.fit_of`."""
    return model_of(problem).fit


def doubt_of(problem: Problem, fit: Fit) -> float:
    """See `bayesd.optimize.doubt_of`."""
    if metrics.needed(problem):
        return metrics.doubt(problem, fit.theta)
    return doubt(problem, weights_of(problem), fit.theta)


def posterior_at_data(problem: Problem) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """See `bayesd.optimize.posterior_at_data`."""
    first = metrics.of_first(problem)
    observed = [o.values[0] for o in first.history if o.values is not None]
    if not observed:
        return (0.0,) * len(first.history), (0.0,) * len(first.history)
    try:
        base = surrogate(first, np.ones(1), refit=False)
        X = base.design.features(base.U)
        blocks = [base.posterior.predict(X[i:i + ROWS_MAX]) for i in range(0, len(X), ROWS_MAX)]
        mean, variance = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        means, sds = base.outcomes.metric(mean), base.outcomes.metric_sd(mean, np.sqrt(variance))
        return tuple(means.tolist()), tuple(sds.tolist())
    except Exception:       # an answer is owed even when the numbers fail: what was observed
        worst = max(observed) if first.directions[0] == "minimize" else min(observed)
        return (tuple(worst if o.values is None else o.values[0] for o in first.history),
                (0.0,) * len(first.history))
