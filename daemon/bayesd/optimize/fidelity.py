"""What a trial that was stopped early says of its final value: an estimate, and how unsure it is.

A model of final values must not read the loss after 1 epoch of 27 as a final one. But trials that went further show
how values grow from one rung of the fidelity to the next, and the last rung leads to the final value. So there is a
chain of regressions, each over the trials that have values at both its ends; an estimate climbs it from the rung that
its trial reached, and its variance grows with every link. Few trials reach the top, many the next rung, so the chain
learns where a regression from each rung to the top would have too few pairs.

A link is a Bayesian linear regression. All values share the units of one power transform (see `outcomes`), which keeps
one diverged run from ruling it, and which are those of every rung: most pairs are of good trials, since the others were
stopped, so in units of the pairs alone the others would look as good. Where there were no pairs the prior speaks: what
is ahead at a rung stays ahead by as much, more or less, and the further from the pairs, the less sure that is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bayesd.optimize.outcomes import transform
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem

SLOPE, SLOPE_SD = 1.0, 0.5      # prior of a link's slope
RESIDUAL2, RESIDUAL_N = 0.1, 2  # prior of its residual variance, and how many pairs it counts for
SHIFT_N = 0.5                   # pairs that the prior of its shift, none, counts for
FULL = 1.0


@dataclass(frozen=True)
class _Link:
    """From the values of one rung to those of the next, in units of the common transform."""

    x: Floats
    """(n,) of the pairs, at the start."""
    y: Floats
    """(n,) of the same, at the end."""

    def follow(self, value: Floats, variance: Floats) -> tuple[Floats, Floats]:
        """Means and variances at the end of those at the start."""
        n = len(self.x)
        middle = math.fsum(self.x) / n if n else 0.0
        shift = math.fsum(self.y - self.x) / (n + SHIFT_N)
        u, v = self.x - middle, self.y - middle - shift
        uu, uv = math.fsum(u * u), math.fsum(u * v)
        prior = RESIDUAL2 / SLOPE_SD**2
        slope = max((SLOPE * prior + uv) / (prior + uu), 0.0)
        residual2 = (math.fsum((v - slope * u) ** 2) + RESIDUAL_N * RESIDUAL2) / (n + RESIDUAL_N)
        slope2 = 1 / (1 / SLOPE_SD**2 + uu / residual2)
        at = value - middle
        return (middle + shift + slope * at,
                residual2 * (1 + 1 / (n + SHIFT_N)) + (at**2 + variance) * slope2 + slope**2 * variance)


def at_full(problem: Problem) -> Problem:
    """The problem with every observation of partial fidelity as an estimate of its final value, `se` its doubt.

    The same problem where there is none, or more than one objective: of several no order of values is known.
    """
    if len(problem.directions) != 1 or all(seen.fidelity is None for seen in problem.history):
        return problem
    rungs = sorted({share for seen in problem.history for share, _ in seen.curve})
    place = {share: k for k, share in enumerate(rungs)}
    levels: list[dict[int, float]] = [{} for _ in (*rungs, FULL)]
    partial: list[tuple[int, int, float]] = []         # (row, rung, value)
    for row, seen in enumerate(problem.history):
        for share, value in seen.curve:
            levels[place[share]][row] = value
        if seen.values is None:
            continue
        if seen.fidelity is None:
            levels[-1][row] = seen.values[0]
        elif seen.curve:
            partial.append((row, place[seen.curve[-1][0]], seen.curve[-1][1]))
        else:               # stopped before the first rung: taken for one that reached it
            partial.append((row, 0, seen.values[0]))
    found = _climbed(levels, partial, problem.directions[0] == "maximize")
    return replace(problem, history=tuple(
        replace(seen, values=(found[row][0],), se=found[row][1], fidelity=None, curve=()) if row in found else seen
        for row, seen in enumerate(problem.history)))


def _climbed(levels: Sequence[dict[int, float]], partial: Sequence[tuple[int, int, float]],
             maximize: bool) -> dict[int, tuple[float, float]]:
    """Row -> (value, standard error) at the top of the chain."""
    scale = transform(np.array([value for level in levels for value in level.values()]
                               + [value for *_, value in partial]), maximize)
    mean = scale.standard(np.array([value for *_, value in partial]))
    variance = np.zeros(len(partial))
    rung = np.array([rung for _, rung, _ in partial])
    known = [dict(zip(level, scale.standard(np.array(list(level.values()))).tolist(), strict=True)) for level in levels]
    for k, (low, high) in enumerate(pairwise(known)):
        if not any(known[k + 1:]):          # nothing has gone further: nobody knows more than the order
            break
        both = [row for row in low if row in high]
        here = rung <= k
        mean[here], variance[here] = _Link(np.array([low[row] for row in both]), np.array([high[row] for row in both])
                                           ).follow(mean[here], variance[here])
    found, sd = scale.metric(mean), scale.metric_sd(mean, np.sqrt(variance))
    return {row: (float(value), float(se)) for (row, *_), value, se in zip(partial, found, sd, strict=True)}
