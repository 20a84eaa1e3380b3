"""Where to look next: a pure function of everything a study knows.

`suggest` never raises and keeps nothing between calls; see `bayesd.study.problem` for what goes
in and what comes out.
"""

from dataclasses import replace

from bayesd.optimize import bayes, samplers
from bayesd.optimize.convergence import convergence
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Fit, Problem, Suggestion
from bayesd_schemas.space import Params

__all__ = ["VERSION", "convergence", "doubt_of", "fit_of", "posterior_at_data", "suggest", "value_of"]

VERSION = 4
"""Of the engine: raised with every change after which some problem may get another answer."""


def suggest(problem: Problem, count: int = 1) -> Suggestion:
    """Propose the next `count` points; each later one treats the earlier ones as pending.

    Whatever goes wrong in the numbers, a plainer sampler answers and says so in `fallback`.
    """
    if count < 1:
        return Suggestion(())
    if problem.judged:
        made = suggest(replace(problem, judged=False), count)
        return replace(made, convergence=convergence(replace(problem, fit=made.fit or problem.fit)))
    try:
        if problem.method == "random":
            return samplers.random(problem, count)
        if problem.method == "sobol":
            return samplers.sobol_points(problem, count)
        if problem.method == "grid":
            return samplers.grid(problem, count)
        with one_blas_thread():
            return bayes.suggest(problem, count)
    except Exception as error:      # a study must go on; the log says why it did so on random points
        if problem.method == "random":
            return Suggestion((), exhausted=True)
        plain = suggest(replace(problem, method="random", repeats=problem.repeats and problem.method != "grid"), count)
        reason = f"{problem.method}: {type(error).__name__}: {error}"[:200]
        return replace(plain, proposals=tuple(replace(proposal, fallback=reason) for proposal in plain.proposals))


def posterior_at_data(problem: Problem) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the model believes at each observation of the history: (means, sds), metric units.

    With several objectives: of the first. Where no model can be made, what was observed, and a
    standard deviation of 0. A failed trial has what the model expects there, had the trial ended well.
    """
    with one_blas_thread():
        return bayes.posterior_at_data(problem)


def value_of(problem: Problem, params: Params) -> float | None:
    """The acquisition of any point, as `suggest` would see it for the next trial; None where it asks no model."""
    with one_blas_thread():
        return bayes.value_of(problem, params)


def fit_of(problem: Problem) -> Fit | None:
    """The fit that `suggest` would make on the way; None where the one in the problem will do or none is needed."""
    with one_blas_thread():
        return bayes.fit_of(problem)


def doubt_of(problem: Problem, fit: Fit) -> float:
    """What `fit_of` made as small as it could, -log p(theta | history) up to a constant, of any fit."""
    with one_blas_thread():
        return bayes.doubt_of(problem, fit)
