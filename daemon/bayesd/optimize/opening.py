"""The start design where something is known before: some of it is drawn from what is known, some from the space.

For what is known: the best points of earlier studies and the mode of the prior, then points of a Sobol sequence taken
through the prior's inverse distribution function. For the space: the usual design, its centre, then Sobol points, so
that a prior that is wrong is found out. Earlier studies get every second draw, a prior all but the last of ORDER. Once
the results do not bear the prior out (see `belief`), its draws go to the space as well.
"""

from dataclasses import replace

import numpy as np

from bayesd.optimize import samplers, sobol, sources, streams
from bayesd.optimize.allowed import allowed
from bayesd.optimize.belief import Belief, belief, trusted
from bayesd.optimize.encode import PINNED, cube
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem, Proposal, Suggestion
from bayesd_schemas.constraints import broken

APART = 2**20           # periods of the Sobol sequence between the space's draws and the prior's
SPARE = 2**10           # points of the space's sequence before those that take the place of a prior's
ORDER = "PPPS"          # draws from the prior, and from the space
LEAST = 5               # trials before the first model, where there is an opinion on every parameter
BELIEVED = 0.3          # trust from which the prior still draws


def size_of(problem: Problem, usual: int) -> int:
    """Trials before the first model: fewer than usual where somebody is sure of parameters, as there is less of the
    space to see."""
    sure = sum(prior.weights is not None or prior.confidence != "low" for _, prior in problem.prior)
    return min(usual, max(LEAST, len(problem.space) - sure + 1)) if sure else usual


def designed(problem: Problem) -> Suggestion:
    """The next point of the start design of a problem with a prior or with sources."""
    order = ORDER if problem.prior else "PS"
    rounds, place = divmod(problem.drawn, len(order))
    even = order[place] == "S"
    nth = rounds * order.count(order[place]) + order[:place].count(order[place])
    held = belief(problem)
    of, known = cube(problem.space), samplers.seen(problem)
    first = sources.starts(problem)
    if not even and nth < len(first):
        study, params = first[nth]
        if params not in known and broken(problem.constraints, params) is None:
            return Suggestion((Proposal(dict(params), "sobol", streams.name(problem.seed, 0, "source"),
                                        problem.drawn + 1, sources=((study, 1.0),)),))
    if not even and held is not None:
        trusts = trusted(problem, held)
        if trusts >= BELIEVED:
            return _drawn(problem, "prior", held, max(nth - len(first), 0), trusts)
    if even and nth == 0:
        params = of.decode(np.full((1, of.p), PINNED))[0]
        if params not in known and broken(problem.constraints, params) is None:
            return Suggestion((Proposal(params, "sobol", streams.name(problem.seed, 0, "centre"), problem.drawn + 1),))
    return _drawn(problem, "sobol", None, nth if even else SPARE + nth, None)


def _drawn(problem: Problem, purpose: str, held: Belief | None, first: int, trusts: float | None) -> Suggestion:
    """The first new and allowed point of a sequence, from an index on."""
    of = cube(problem.space)

    def draw(at: int, count: int) -> Floats:
        if held is None:
            return sobol.points(problem.seed, first + at, count, of.p)
        V = held.points(sobol.points(problem.seed, APART * sobol.PERIOD + first + at, count, of.p))
        if first + at == 0:
            V[0] = held.mode[0]
        return V

    known = samplers.seen(problem)
    params = samplers.Draws(of, allowed(problem), draw, 1).new(known) or samplers.another(
        problem, problem.number, known)
    if params is None:
        if not problem.repeats:
            return Suggestion((), exhausted=True)
        return samplers.sobol_points(replace(problem, prior=()), 1)
    return Suggestion((Proposal(params, "sobol", streams.name(problem.seed, 0, purpose), problem.drawn + 1,
                                prior=trusts),))
