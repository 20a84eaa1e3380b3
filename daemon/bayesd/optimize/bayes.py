"""The sampler that learns: a Gaussian process and log expected improvement.

A start design (the centre, then Sobol points), then: transform the outcomes, fit or take the given
fit, believe what the model says of pending trials ("kriging believer", Ginsbourger et al. 2010),
and go where the improvement on the best belief is likely to be largest. The `acquisition` of a
proposal is log EI in standardised units. With several objectives each trial draws weights of its
own and looks for the best trade-off under them (ParEGO, Knowles 2006).

Tried on tabulated, surrogate and BBOB tasks, and left out: a second model without trend and warp,
averaged in evenly or by leave-one-out evidence; a constant among the trend features; repeats.
"""

from dataclasses import dataclass, replace

import numpy as np

from bayesd.optimize import outcomes, samplers, search, streams
from bayesd.optimize.encode import PINNED, cube
from bayesd.optimize.encode import Ints as Rows
from bayesd.optimize.outcomes import Outcomes
from bayesd.optimize.posterior import Design, Posterior, fit
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Fit, Problem, Proposal, Suggestion

CENTRES = 5         # best data points that the search looks around
FIT_ROWS_MAX = 256  # a fit's cost is cubic and its answer is a handful of numbers
ROWS_MAX = 600      # more observations than this: the model takes the telling ones


def design_size(p: int) -> int:
    """Trials before the first model."""
    return min(max(5, p + 1), 12)


def refit_due(n: int, last: int) -> bool:
    """A schedule of counts alone: at every result while they are few, then every twentieth part."""
    return n >= last + max(1, last // 20) or n < last


@dataclass(frozen=True)
class Surrogate:
    """The model of one history: observations it uses, and a fit if one was made on the way."""

    posterior: Posterior
    outcomes: Outcomes
    U: Floats               # (n, p) of the whole history
    rows: Rows              # those of them that the posterior holds
    fit: Fit | None


def suggest(problem: Problem, count: int) -> Suggestion:
    """Points by model where there is one, by design where there is none yet."""
    proposals: list[Proposal] = []
    made: Fit | None = None
    base: Surrogate | None = None
    counters: dict[str, float] = {}
    while len(proposals) < count:
        done = len(proposals)
        now = replace(problem, number=problem.number + done, pending=(
            *problem.pending, *(proposal.params for proposal in proposals)),
            drawn=proposals[-1].drawn if proposals else problem.drawn)
        if not _enough(now):
            step = _designed(now)
        else:
            try:
                if base is None or len(problem.directions) > 1:
                    base = surrogate(now, _weights(now))
                    made = made or base.fit
                step = _modelled(now, base)
            except Exception as error:     # a study must go on; the log says on what
                step = samplers.random(now, 1, fallback=f"bayes: {type(error).__name__}: {error}"[:200])
        if not step.proposals:
            return Suggestion(tuple(proposals), made, exhausted=True, counters=counters)
        proposals += step.proposals
        counters.update(step.counters)
    return Suggestion(tuple(proposals), made, counters=counters)


def _enough(problem: Problem) -> bool:
    """True when a model is worth more than another point of the design."""
    size = design_size(len(problem.space))
    finished = len(problem.history)
    return (finished + len(problem.pending) >= size and 2 * finished >= size
            and any(observation.values is not None for observation in problem.history))


def _designed(problem: Problem) -> Suggestion:
    """The centre of the space first: it is the best single guess; then Sobol points."""
    if problem.drawn == 0:
        params = cube(problem.space).decode(np.full((1, len(problem.space)), PINNED))[0]
        if problem.repeats or params not in samplers.seen(problem):
            return Suggestion((Proposal(params, "sobol", streams.name(problem.seed, 0, "centre"), 1),))
    # Even where repeats are allowed, a design learns more from new points while there are any.
    fresh = samplers.sobol_points(replace(problem, repeats=False), 1, skip=1)
    return samplers.sobol_points(problem, 1, skip=1) if fresh.exhausted and problem.repeats else fresh


def _weights(problem: Problem) -> Floats:
    """A direction of the trade-off, even over the simplex, from the trial's own stream."""
    k = len(problem.directions)
    spacing = -np.log1p(-streams.Stream(problem.seed, problem.number, "weights").uniform(k))
    return np.asarray(spacing / max(float(spacing.sum()), 1e-300))


def surrogate(problem: Problem, weights: Floats) -> Surrogate:
    """The model that `problem` describes. Needs one observation that is not a failure."""
    design = Design(cube(problem.space))
    U = design.of.encode([observation.params for observation in problem.history])
    known = transformed(problem, weights)
    X, se2 = design.features(U), _known_noise(problem, known)
    n, last = len(problem.history), problem.fit
    theta, made = None, None
    if last is not None and last.model == design.model and len(last.theta) == design.size:
        theta = last.theta
    if theta is None or last is None or refit_due(n, last.n):
        # With several objectives theta is fitted to even weights: a fit belongs to the history,
        # not to the trade-off of the trial that happened to be due.
        z = known.z if len(weights) == 1 else transformed(problem, np.full(len(weights), 1 / len(weights))).z
        rows = telling(U, z, FIT_ROWS_MAX)
        theta = fit(design, X[rows], z[rows], se2[rows], theta)
        made = Fit(design.model, n, theta)
    rows = telling(U, known.z, ROWS_MAX)
    return Surrogate(Posterior.of(design, theta, X[rows], known.z[rows], se2[rows]), known, U, rows, made)


def transformed(problem: Problem, weights: Floats) -> Outcomes:
    k = len(problem.directions)
    values = np.array([observation.values or (np.nan,) * k for observation in problem.history], dtype=np.float64)
    maximize = tuple(direction == "maximize" for direction in problem.directions)
    if k == 1:
        return outcomes.transform(values[:, 0], maximize[0])
    return outcomes.transform(outcomes.scalarise(values, maximize, weights), False)


def _known_noise(problem: Problem, known: Outcomes) -> Floats:
    """Variances that folds told, zero elsewhere. With several objectives `se` has no one scale."""
    se = np.array([observation.se or 0.0 if observation.values is not None else 0.0
                   for observation in problem.history])
    return known.variance(se) if len(problem.directions) == 1 and se.any() else np.zeros(len(se))


def telling(U: Floats, z: Floats, most: int) -> Rows:
    """Rows to model when there are too many: the best third, those nearest to the best, an even stride."""
    n = len(z)
    if n <= most:
        return np.arange(n)
    order = np.argsort(z, kind="stable")
    third = most // 3
    centres = U[order[:CENTRES]]
    near = np.min(((U[:, None, :] - centres) ** 2).sum(axis=2), axis=1)
    near[order[:third]] = np.inf
    chosen = set(order[:third].tolist()) | set(np.argsort(near, kind="stable")[:third].tolist())
    rest = np.array([i for i in range(n) if i not in chosen])
    stride = rest[np.linspace(0, len(rest) - 1, most - len(chosen)).astype(np.int64)]
    return np.array(sorted(chosen | set(stride.tolist())), dtype=np.int64)


def _modelled(problem: Problem, base: Surrogate) -> Suggestion:
    posterior, design = base.posterior, base.posterior.kernel.design
    known_U, U = base.U, base.U[base.rows]
    means = posterior.predict(design.features(U))[0]
    if problem.pending:
        P = design.of.encode(problem.pending)
        believed = posterior.predict(design.features(P))[0]
        posterior = posterior.condition(design.features(P), believed)
        U, known_U, means = np.vstack([U, P]), np.vstack([known_U, P]), np.concatenate([means, believed])
    # A known point is not proposed again while there are new ones, whether repeats are allowed or
    # not: allowing them was tried, and was worse even on tabulated runs whose repeats differ.
    stream = streams.Stream(problem.seed, problem.number, "bayes")
    centres = U[np.argsort(means, kind="stable")[:CENTRES]]
    best = float(np.min(means))
    found = search.maximise(posterior, best, stream, centres, known_U)
    known = samplers.seen(problem)
    rows = design.of.decode(found.U)
    pick = next((i for i, params in enumerate(rows) if params not in known), None)
    name = streams.name(problem.seed, problem.number, "bayes")
    if pick is None:
        params = samplers.free_cell(problem.space, stream, known)
        if params is not None:
            return Suggestion((Proposal(params, "bayes", name, problem.drawn + 1,
                                        fallback="bayes: no candidate of the search was new"),))
        if not problem.repeats:
            return Suggestion((), exhausted=True)
        found = search.maximise(posterior, best, stream, centres, known_U[:0])
        rows, pick = design.of.decode(found.U), 0
    mean, variance = posterior.predict(design.features(found.U[pick:pick + 1]))
    one = len(problem.directions) == 1
    following = found.acquisition[pick + 1:pick + 2]
    return Suggestion((Proposal(
        rows[pick], "bayes", name, problem.drawn + 1,
        acquisition=float(found.acquisition[pick]),
        gap=float(found.acquisition[pick] - following[0]) if len(following) else None,
        mean=float(base.outcomes.metric(mean)[0]) if one else None,
        sd=float(base.outcomes.metric_sd(mean, np.sqrt(variance))[0]) if one else None),),
        counters={"observations": float(len(posterior.z) - len(problem.pending))})


def posterior_at_data(problem: Problem) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """See `bayesd.optimize.posterior_at_data`."""
    first = replace(problem, directions=problem.directions[:1], history=tuple(
        replace(o, values=None if o.values is None else o.values[:1]) for o in problem.history))
    observed = [o.values[0] for o in first.history if o.values is not None]
    if not observed:
        return (0.0,) * len(first.history), (0.0,) * len(first.history)
    try:
        base = surrogate(first if len(problem.directions) == 1 else replace(first, fit=None), np.ones(1))
        X = base.posterior.kernel.design.features(base.U)
        blocks = [base.posterior.predict(X[i:i + ROWS_MAX]) for i in range(0, len(X), ROWS_MAX)]
        mean, variance = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        means, sds = base.outcomes.metric(mean), base.outcomes.metric_sd(mean, np.sqrt(variance))
        return tuple(means.tolist()), tuple(sds.tolist())
    except Exception:       # an answer is owed even when the numbers fail: what was observed
        worst = max(observed) if first.directions[0] == "minimize" else min(observed)
        return (tuple(worst if o.values is None else o.values[0] for o in first.history),
                (0.0,) * len(first.history))
