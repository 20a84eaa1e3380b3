"""The start design where something is known before: half of it is drawn from what is known, half from the space.

Even draws are for what is known: the best points of earlier studies and the mode of the prior, then points of a Sobol
sequence taken through the prior's inverse distribution function. Odd draws are the usual design: the centre, then Sobol
points of the space, so that a prior that is wrong is found out. Once the results do not bear the prior out (see
`belief`), its draws go to the space as well.
"""

from dataclasses import replace

import numpy as np

from bayesd.optimize import samplers, sobol, streams
from bayesd.optimize.allowed import allowed
from bayesd.optimize.belief import Belief, belief, trusted
from bayesd.optimize.encode import PINNED, cube
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem, Proposal, Suggestion
from bayesd_schemas.constraints import broken

APART = 2**20           # periods of the Sobol sequence between the space's draws and the prior's
SPARE = 2**10           # points of the space's sequence before those that take the place of a prior's
BELIEVED = 0.3          # trust from which the prior still draws


def designed(problem: Problem) -> Suggestion:
    """The next point of the start design of a problem with a prior or with sources."""
    half, odd = divmod(problem.drawn, 2)
    held = belief(problem)
    of, known = cube(problem.space), samplers.seen(problem)
    if not odd and held is not None:
        trusts = trusted(problem, held)
        if trusts >= BELIEVED:
            return _drawn(problem, "prior", held, half, trusts)
    if odd and half == 0:
        params = of.decode(np.full((1, of.p), PINNED))[0]
        if params not in known and broken(problem.constraints, params) is None:
            return Suggestion((Proposal(params, "sobol", streams.name(problem.seed, 0, "centre"), problem.drawn + 1),))
    return _drawn(problem, "sobol", None, half if odd else SPARE + half, None)


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
