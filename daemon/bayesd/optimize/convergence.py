"""How much is left to gain: expected improvement, and the regret of stopping here, by the model's own word.

Regret is what the best point anywhere would be better than the best belief at a point that was tried. Its
distribution is that of draws from the posterior over a set of candidates: the tried points with the best
beliefs, what the search for the largest expected improvement came across, and points everywhere. A bound is a
quantile of the draws (Wilson, "Stopping Bayesian optimization with probabilistic regret bounds", 2024); Makarova
et al. ("Automatic termination for hyperparameter optimization", 2022) bound the same from a lower confidence
bound on the minimum, which is never tight where many points are alike.

Pending trials are left out: what they bring is still to come.
"""

import math
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from bayesd.optimize import bayes, search, sobol, streams
from bayesd.optimize.allowed import allowed
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.surrogate import Surrogate, surrogate
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Convergence, Problem

TRIED_MAX = 60      # points that were tried, with the best beliefs
FOUND_MAX = 64      # of the search for the largest improvement
EVERYWHERE = 256    # points of the whole space
DRAWS = 1024
BOUND = 0.95        # the quantile that bounds the regret
MOVED = 0.01        # of the spread: the best moved if it moved by so much
DIGITS = 6
SHARE, NOISES = 0.02, 0.5               # little in the mean: of the spread, or of the noise
BOUND_SHARE, BOUND_NOISES = 0.1, 1.5    # ... and at the bound
STEADY_MAX, STEP = 5, 2                 # looks back, each so many results before the last
STEADY_FROM = 20                        # results without a move, before which nobody looks back


def convergence(problem: Problem) -> Convergence | None:
    """How far a search has converged; None where no model can tell: too few results, several objectives, a forest."""
    if len(problem.directions) > 1 or problem.surrogate != "gp" or not bayes.enough(problem):
        return None
    try:
        with one_blas_thread():
            now = replace(problem, pending=())
            seen = _of(now, surrogate(now, np.ones(1)))
            steady = 0
            while steady < STEADY_MAX and seen.barren >= STEADY_FROM and _is_little(
                    seen if not steady else _before(now, steady * STEP)):
                steady += 1
            return replace(seen, steady=steady)
    except Exception:       # a study must go on: without a model it does not stop by one
        return None


def _before(now: Problem, results: int) -> Convergence:
    """So many results ago. It is fitted anew: what the fits of now and then disagree on is not settled."""
    before = replace(now, history=now.history[:len(now.history) - results], fit=None)
    return _of(before, surrogate(before, np.ones(1)))


def _is_little(seen: Convergence) -> bool:
    """Whether what is left to gain is little, in the mean and at its bound: against how far the search has come, or
    against what one measurement cannot tell apart."""
    return (seen.expected_regret <= max(SHARE * seen.spread, NOISES * seen.noise)
            and seen.regret <= max(BOUND_SHARE * seen.spread, BOUND_NOISES * seen.noise))


def _of(problem: Problem, base: Surrogate) -> Convergence:
    posterior, of = base.posterior, base.design.of
    assert isinstance(posterior, Posterior)
    stream = streams.Stream(problem.seed, len(problem.history), "convergence")
    judge = allowed(problem)
    aimed = bayes.aim(problem, base)
    found = search.maximise(aimed.target, stream, aimed.centres, aimed.known, judge)
    everywhere = of.snap(sobol.net(of.p, EVERYWHERE), search.SWEEP_BITS)
    if judge is not None:
        everywhere = everywhere[judge(of, everywhere)]
    tried = base.U[base.rows]
    means = posterior.means[:len(base.rows)]
    order = np.argsort(means, kind="stable")[:TRIED_MAX]
    best = float(means[order[0]])
    candidates = np.vstack([tried[order], found.U[:FOUND_MAX], everywhere])
    _, first = np.unique(of.pin(candidates), axis=0, return_index=True)
    candidates = candidates[np.sort(first)]        # the best belief stays the first
    normal = ndtri(np.clip(stream.uniform(DRAWS, len(candidates)), 1e-12, 1 - 1e-12))
    drawn = posterior.draw(base.design.features(candidates), normal)
    regrets = drawn[:, 0] - np.min(drawn, axis=1)
    random = posterior.predict(base.design.features(everywhere))[0] if len(everywhere) else means

    def gain(z: float) -> float:
        """A gain over the best belief, from standardised to metric units."""
        ends = base.outcomes.metric(np.array([best, best - z]))
        return _rounded(abs(float(ends[1] - ends[0])))

    here = base.outcomes.metric(np.array([best, max(best, float(np.median(random)))]))
    spread = abs(float(here[1] - here[0]))
    noise = base.outcomes.metric_sd(np.array([best]), np.array([math.sqrt(posterior.kernel.noise)]))
    return Convergence(
        results=len(base.outcomes.z), barren=_barren(problem, MOVED * spread), steady=0, best=_rounded(float(here[0])),
        noise=_rounded(float(noise[0])),
        spread=_rounded(spread),
        improvement=gain(math.exp(min(700.0, float(found.acquisition[0])))) if len(found.U) else 0.0,
        expected_regret=gain(float(np.mean(regrets))), regret=gain(float(np.quantile(regrets, BOUND))))


def _barren(problem: Problem, least: float) -> int:
    """Results since the best observed value moved by at least `least`."""
    sign = 1.0 if problem.directions[0] == "minimize" else -1.0
    best, barren = math.inf, 0
    for seen in problem.history:
        if seen.values is not None:
            value = sign * seen.values[0]
            barren += 1
            if value < best - least and seen.fidelity is None:
                best, barren = value, 0
    return barren


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
