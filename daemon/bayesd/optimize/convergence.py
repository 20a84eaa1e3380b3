"""How much is left to gain: expected improvement, and the regret of stopping here, by the model's own word.

Regret is what the best point anywhere would be better than the best belief at a point that was tried. Its
distribution is that of draws from the posterior over a set of candidates: the tried points with the best
beliefs, what the search for the largest expected improvement came across, and points everywhere. A bound is a
quantile of the draws (Wilson, "Stopping Bayesian optimization with probabilistic regret bounds", 2024); Makarova
et al. ("Automatic termination for hyperparameter optimization", 2022) bound the same from a lower confidence
bound on the minimum, which is never tight where many points are alike.

The draws come from several models, at hyperparameters that the results allow beside the fitted ones (`laplace`): the
fitted model alone is sure too soon, above all where its length scales are short and results are few. And a space of
many cells of such length is not known after twenty results, whatever a model says: `cells` counts them.

Pending trials are left out: what they bring is still to come.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from bayesd.optimize import bayes, laplace, search, sobol, streams
from bayesd.optimize.allowed import allowed
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.streams import Floats
from bayesd.optimize.surrogate import Surrogate, Told, surrogate
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Convergence, Problem

TRIED_MAX = 60      # points that were tried, with the best beliefs
FOUND_MAX = 64      # of the search for the largest improvement
EVERYWHERE = 256    # points of the whole space
THETAS = 8          # models that the draws come from
DRAWS = 128         # of each
BOUND = 0.95        # the quantile that bounds the regret
MOVED = 0.01        # of the spread: the best moved if it moved by so much
DIGITS = 6
SHARE, NOISES = 0.05, 0.5               # little in the mean: of the spread, or of the noise
BOUND_SHARE, BOUND_NOISES = 0.15, 1.5   # ... and at the bound
STEADY_MAX, STEP = 2, 4                 # looks back, each so many results before the last
STEADY_FROM = 15                        # results without a move, before which nobody looks back


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
    X = base.design.features(candidates)
    drawn = np.vstack([model.draw(X, _normal(stream, DRAWS, len(candidates)))
                       for model in _models(problem, base, posterior.kernel.theta, stream)])
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
        expected_regret=gain(float(np.mean(regrets))), regret=gain(float(np.quantile(regrets, BOUND))),
        cells=_cells(base.design, posterior.kernel.theta))


def _models(problem: Problem, base: Surrogate, theta: Floats, stream: streams.Stream) -> Iterator[Posterior]:
    """The model of the same results at other hyperparameters."""
    fit = base.fit or problem.fit
    assert fit is not None
    part = next(Told.of(problem, np.ones(1)).to_fit(problem))
    drawn = laplace.draws(base.design, tuple(theta.tolist()), *part, _normal(stream, THETAS, base.design.size))
    for each in drawn:
        there = replace(problem, fit=replace(fit, theta=(*each, *fit.theta[len(each):])))
        posterior = surrogate(there, np.ones(1), refit=False).posterior
        assert isinstance(posterior, Posterior)
        yield posterior


def _cells(design: Design, theta: Floats) -> float:
    """How many boxes, each as wide as a length scale is expected to be, fit between points that are alike: the product
    over the parameters of the prior's median over the length scale, none below 1."""
    shorter = np.maximum(design.prior[0][:design.of.p] - theta[:design.of.p], 0.0)
    return _rounded(math.exp(min(math.fsum(shorter), 700.0)))


def _normal(stream: streams.Stream, *shape: int) -> Floats:
    return np.asarray(ndtri(np.clip(stream.uniform(*shape), 1e-12, 1 - 1e-12)))


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
