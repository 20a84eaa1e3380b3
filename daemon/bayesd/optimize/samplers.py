"""Grid, random, Sobol: the samplers that look at no outcome; and what all samplers share.

Each is a pure function of the problem. Random draws depend on the seed, the trial number and the
purpose; a Sobol point or a grid cell on how many were drawn before. A later proposal of one call
sees the earlier ones as pending, so one call for three equals three calls for one.

A point that breaks a constraint is passed over: Sobol takes the next of its sequence, the grid its
next cell, random a point of the trial's own stream. The tries are bounded. When they find nothing,
the answer is "exhausted": exactly so where the configurations can be counted, else because nothing
allowed was found.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bayesd.optimize import cells, sobol, streams
from bayesd.optimize.allowed import Judge, allowed
from bayesd.optimize.encode import ABSENT, Cube, cube
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem, Proposal, Suggestion
from bayesd_schemas.constraints import Constraint, broken
from bayesd_schemas.space import Params, Space, Value

TRIES_MAX = 100     # draws that hit known points before the free cells are looked at one by one
DRAWS_MAX = 2**17   # draws for one point; constraints that pass a check of 10,000 points stop one in e**13
BLOCK_MAX = 4096    # draws that are judged at once
WALK_MAX = 4096     # cells of an unsieved grid that break a constraint, before cells are drawn
CELLS_MAX = 2**15   # cells of an unsieved block that are drawn, before nothing is said to be left


class Seen:
    """Configurations that may not be proposed again. Names that the space lacks do not count."""

    def __init__(self, of: Cube, points: Iterable[Params]) -> None:
        self._names = of.names
        self._keys = {self._key(params) for params in points}

    def _key(self, params: Params) -> tuple[Value, ...]:
        # A missing parameter and one whose value is None must differ.
        return tuple(params.get(name, ABSENT) for name in self._names)

    def __contains__(self, params: Params) -> bool:
        return self._key(params) in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, params: Params) -> None:
        self._keys.add(self._key(params))




def seen(problem: Problem) -> Seen:
    """Everything tried, failed or on its way."""
    return Seen(cube(problem.space), (*(observation.params for observation in problem.history), *problem.pending))


def grid(problem: Problem, count: int) -> Suggestion:
    """The cells in order from `drawn`; then those whose trial was voided; then nothing."""
    of, known = cells.grid(problem.space, problem.constraints), seen(problem)
    proposals: list[Proposal] = []
    number, second_pass = problem.drawn, False
    broke = 0       # cells in a row that broke a constraint
    while len(proposals) < count:
        if number >= of.total:
            if second_pass:
                break
            number, second_pass = 0, True
            continue
        params = of.at(number)
        number += 1
        if params in known:
            continue
        if not of.sieved and broken(problem.constraints, params) is not None:
            broke += 1
            if broke < WALK_MAX:
                continue
            # A vast grid, and a long way of nothing: look elsewhere, and go on from here the next time.
            found = _any_cell(of, streams.Stream(problem.seed, problem.number + len(proposals), "another"), known,
                              problem.constraints)
            if found is None:
                break
            params = found
        broke = 0
        known.add(params)
        proposals.append(Proposal(
            params=params, sampler="grid", drawn=of.total if second_pass else number,
            stream=streams.name(problem.seed, problem.number + len(proposals), "grid")))
    return Suggestion(tuple(proposals), exhausted=len(proposals) < count)


def random(problem: Problem, count: int, fallback: str | None = None) -> Suggestion:
    """Independent uniform points on the scales of the parameters."""
    of, judge = cube(problem.space), allowed(problem)
    U = streams.across(problem.seed, "random", problem.number, count, of.p)
    rows = of.decode(U)
    if judge is not None or not problem.repeats:
        fits = np.ones(count, dtype=np.bool_) if judge is None else judge(of, U)
        known, fresh = _avoided(problem), list[dict[str, Any]]()
        for t, params in enumerate(rows):
            found = params if fits[t] and params not in known else another(problem, problem.number + t, known)
            if found is None:
                break
            if not problem.repeats:
                known.add(found)
            fresh.append(found)
        rows = fresh
    return Suggestion(tuple([
        Proposal(params, "random", streams.name(problem.seed, problem.number + t, "random"), problem.drawn + t + 1,
                 fallback=fallback) for t, params in enumerate(rows)]), exhausted=len(rows) < count)


def sobol_points(problem: Problem, count: int, fallback: str | None = None, skip: int = 0) -> Suggestion:
    """Points of the study's scrambled Sobol sequence, from index `drawn` - `skip`; what is known or not
    allowed is passed over."""
    of, judge = cube(problem.space), allowed(problem)
    stream = streams.name(problem.seed, 0, "sobol")
    first = max(problem.drawn - skip, 0)
    draws = Draws(of, judge, lambda at, n: sobol.points(problem.seed, first + at, n, of.p), count)
    known, proposals = _avoided(problem), list[Proposal]()
    while len(proposals) < count:
        params = draws.new(known) or another(problem, problem.number + len(proposals), known)
        if params is None:
            return Suggestion(tuple(proposals), exhausted=True)
        if not problem.repeats:
            known.add(params)
        proposals.append(Proposal(params, "sobol", stream, first + draws.at + skip, fallback=fallback))
    return Suggestion(tuple(proposals))


def _avoided(problem: Problem) -> Seen:
    """What may not be proposed: the known points, or nothing where repeats are allowed."""
    return Seen(cube(problem.space), ()) if problem.repeats else seen(problem)


class Draws:
    """The points of one sequence in order, those that break a constraint left out.

    They are made in blocks; which point comes next does not depend on that.
    """

    def __init__(self, of: Cube, judge: Judge | None, draw: Callable[[int, int], Floats], block: int) -> None:
        self.at = 0
        """How many points of the sequence were taken or passed over."""
        self._of, self._judge, self._draw, self._block = of, judge, draw, block
        self._made = 0
        self._ready: deque[tuple[int, dict[str, Any]]] = deque()

    def new(self, known: Seen) -> dict[str, Any] | None:
        """The next point outside `known`; None after TRIES_MAX known ones or DRAWS_MAX in all."""
        end = self.at + DRAWS_MAX
        for _ in range(TRIES_MAX):
            while not self._ready and self._made < end:
                self._more()
            if not self._ready or self._ready[0][0] >= end:
                self.at = end
                return None
            index, params = self._ready.popleft()
            self.at = index + 1
            if params not in known:
                return params
        return None

    def _more(self) -> None:
        U = self._draw(self._made, self._block)
        rows = np.arange(len(U)) if self._judge is None else np.flatnonzero(self._judge(self._of, U))
        self._ready.extend(zip((self._made + rows).tolist(), self._of.decode(U[rows]), strict=True))
        self._made += len(U)
        if self._judge is not None:
            self._block = min(4 * max(self._block, 16), BLOCK_MAX)


def another(problem: Problem, number: int, known: Seen) -> dict[str, Any] | None:
    """An allowed point outside `known`, from the trial's own stream; None when none is found."""
    of = cube(problem.space)
    stream = streams.Stream(problem.seed, number, "another")
    draws = Draws(of, allowed(problem), lambda at, n: stream.uniform(n, of.p), TRIES_MAX)
    return draws.new(known) or free_cell(problem.space, stream, known, problem.constraints)


def free_cell(space: Space, stream: streams.Stream, known: Seen,
              constraints: Sequence[Constraint] = ()) -> dict[str, Any] | None:
    """An unknown, allowed cell of a finite space, looked for from a random one onward."""
    try:
        of = cells.finite(space, constraints)
    except ValueError:      # its conditions are too entangled to be numbered
        return None
    if of is None or not of.total:
        return None
    if not of.sieved:
        return _any_cell(of, stream, known, constraints)
    start = stream.integer(of.total)
    for i in range(min(of.total, len(known) + 1)):
        params = of.at((start + i) % of.total)
        if params not in known:
            return params
    return None


def _any_cell(of: cells.Cells, stream: streams.Stream, known: Seen,
              constraints: Sequence[Constraint]) -> dict[str, Any] | None:
    """An unknown, allowed cell among very many, drawn at random; None when many draws find none."""
    for _ in range(CELLS_MAX):
        params = of.at(stream.integer(of.total))
        if params not in known and broken(constraints, params) is None:
            return params
    return None
