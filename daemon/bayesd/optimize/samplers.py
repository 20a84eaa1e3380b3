"""Grid, random, Sobol: the samplers that look at no outcome; and what all samplers share.

Each is a pure function of the problem. Random draws depend on the seed, the trial number and the
purpose; a Sobol point or a grid cell on how many were drawn before. A later proposal of one call
sees the earlier ones as pending, so one call for three equals three calls for one.
"""

from collections.abc import Iterable
from typing import Any

from bayesd.optimize import cells, sobol, streams
from bayesd.optimize.encode import Cube, cube
from bayesd.study.problem import Problem, Proposal, Suggestion
from bayesd_schemas.space import Params, Space, Value

TRIES_MAX = 100     # draws that hit known points before the free cells are looked at one by one


class Seen:
    """Configurations that may not be proposed again. Names that the space lacks do not count."""

    def __init__(self, of: Cube, points: Iterable[Params]) -> None:
        self._names = of.names
        self._keys = {self._key(params) for params in points}

    def _key(self, params: Params) -> tuple[Value, ...]:
        # A missing parameter and one whose value is None must differ.
        return tuple(params.get(name, _ABSENT) for name in self._names)

    def __contains__(self, params: Params) -> bool:
        return self._key(params) in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, params: Params) -> None:
        self._keys.add(self._key(params))


_ABSENT: Any = object()


def seen(problem: Problem) -> Seen:
    """Everything tried, failed or on its way."""
    return Seen(cube(problem.space), (*(observation.params for observation in problem.history), *problem.pending))


def grid(problem: Problem, count: int) -> Suggestion:
    """The cells in order from `drawn`; then those whose trial was voided; then nothing."""
    of, known = cells.grid(problem.space), seen(problem)
    proposals: list[Proposal] = []
    number, second_pass = problem.drawn, False
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
        known.add(params)
        proposals.append(Proposal(
            params=params, sampler="grid", drawn=of.total if second_pass else number,
            stream=streams.name(problem.seed, problem.number + len(proposals), "grid")))
    return Suggestion(tuple(proposals), exhausted=len(proposals) < count)


def random(problem: Problem, count: int, fallback: str | None = None) -> Suggestion:
    """Independent uniform points on the scales of the parameters."""
    of = cube(problem.space)
    rows = of.decode(streams.across(problem.seed, "random", problem.number, count, of.p))
    if not problem.repeats:
        known, fresh = seen(problem), list[dict[str, Any]]()
        for t, params in enumerate(rows):
            found = params if params not in known else _another(problem, problem.number + t, known)
            if found is None:
                break
            known.add(found)
            fresh.append(found)
        rows = fresh
    return Suggestion(tuple([
        Proposal(params, "random", streams.name(problem.seed, problem.number + t, "random"), problem.drawn + t + 1,
                 fallback=fallback) for t, params in enumerate(rows)]), exhausted=len(rows) < count)


def sobol_points(problem: Problem, count: int, fallback: str | None = None, skip: int = 0) -> Suggestion:
    """Points of the study's scrambled Sobol sequence, from index `drawn` - `skip`."""
    of = cube(problem.space)
    stream = streams.name(problem.seed, 0, "sobol")
    first = max(problem.drawn - skip, 0)
    rows = of.decode(sobol.points(problem.seed, first, count, of.p))
    if problem.repeats:
        return Suggestion(tuple([
            Proposal(params, "sobol", stream, first + skip + t + 1, fallback=fallback)
            for t, params in enumerate(rows)]))
    known, proposals = seen(problem), list[Proposal]()
    index = first
    while len(proposals) < count:
        for _ in range(TRIES_MAX):
            if index - first >= len(rows):
                rows += of.decode(sobol.points(problem.seed, index, count, of.p))
            params = rows[index - first]
            index += 1
            if params not in known:
                break
        else:
            found = _another(problem, problem.number + len(proposals), known)
            if found is None:
                return Suggestion(tuple(proposals), exhausted=True)
            params = found
        known.add(params)
        proposals.append(Proposal(params, "sobol", stream, index + skip, fallback=fallback))
    return Suggestion(tuple(proposals))


def _another(problem: Problem, number: int, known: Seen) -> dict[str, Any] | None:
    """A point outside `known`, from the trial's own stream; None when there is none left."""
    of = cube(problem.space)
    stream = streams.Stream(problem.seed, number, "another")
    for params in of.decode(stream.uniform(TRIES_MAX, of.p)):
        if params not in known:
            return params
    return free_cell(problem.space, stream, known)


def free_cell(space: Space, stream: streams.Stream, known: Seen) -> dict[str, Any] | None:
    """An unknown cell of a finite space, looked for from a random one onward."""
    of = cells.finite(space)
    if of is None:
        return None
    start = stream.integer(of.total)
    for i in range(min(of.total, len(known) + 1)):
        params = of.at((start + i) % of.total)
        if params not in known:
            return params
    return None
