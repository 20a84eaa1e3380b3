"""What a trial that was stopped early says of its final value: an estimate, and how unsure it is.

A model of final values must not read the loss after 1 epoch of 27 as a final one. But trials that went further show
how values grow from one rung of the fidelity to the next, and the last rung leads to the final value. So there is a
chain of regressions, each over the trials that have values at both its ends; an estimate climbs it from the rung that
its trial reached, and its variance grows with every link. Few trials reach the top, many the next rung, so the chain
learns where a regression from each rung to the top would have too few pairs.

A link is a Bayesian linear regression in the units of the two rungs' own power transforms (see `outcomes`), which
make it nearly linear and keep one diverged run from ruling it. Most pairs are of good trials, since the others were
stopped; the prior of the slope speaks where there were none, and what lies far from the pairs is less sure. Estimates
stay in the range of what the next rung has seen, and as much again. A link of fewer than `PAIRS_MIN` pairs keeps
the order and the distances of its values, shifted by what the pairs say, as unsure as those values are spread.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bayesd.optimize.outcomes import Outcomes, transform
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem

PAIRS_MIN = 3
SLOPE, SLOPE_SD = 0.8, 0.4      # prior of the slope, where both ends are standardised over the pairs
RESIDUAL2, RESIDUAL_N = 0.3, 2  # prior of the residual variance, and the pairs that it counts for
NARROWEST = 0.25                # of standardised values: pairs closer than this tell no slope
FULL = 1.0


@dataclass(frozen=True)
class _Link:
    """From the values of one rung to those of the next; `x` and `y` are the pairs."""

    start: Outcomes
    end: Outcomes
    x: Floats
    y: Floats
    spread: float
    """Of all values at the start, in metric units."""

    def follow(self, value: Floats, se: Floats) -> tuple[Floats, Floats]:
        """Values and standard errors at the end of those at the start, metric units."""
        n = len(self.x)
        if n < PAIRS_MIN:
            shift = _mean(self.y) - _mean(self.x) if n else 0.0
            return value + shift, np.hypot(se, self.spread)
        a, b = self.start.standard(self.x), self.end.standard(self.y)
        middle_a, middle_b = _mean(a), _mean(b)
        width_a, width_b = (max(math.sqrt(_mean((each - middle) ** 2)), NARROWEST)
                            for each, middle in ((a, middle_a), (b, middle_b)))
        u, v = (a - middle_a) / width_a, (b - middle_b) / width_b
        uu, uv = math.fsum(u * u), math.fsum(u * v)
        slope = (SLOPE / SLOPE_SD**2 + uv / RESIDUAL2) / (1 / SLOPE_SD**2 + uu / RESIDUAL2)
        slope = max(slope, 0.0)
        residual2 = (math.fsum((v - slope * u) ** 2) + RESIDUAL_N * RESIDUAL2) / (n + RESIDUAL_N)
        slope_variance = 1 / (1 / SLOPE_SD**2 + uu / residual2)
        at = (self.start.standard(value) - middle_a) / width_a
        before = self.start.standard(np.stack([value - se, value + se]))
        moved = np.abs(before[1] - before[0]) / 2 / width_a
        variance = residual2 * (1 + 1 / n) + at**2 * slope_variance + (slope * moved) ** 2
        z, sd = middle_b + width_b * slope * at, width_b * np.sqrt(variance)
        return self.end.metric(z), np.maximum(self.end.metric_sd(z, sd), 1e-12 * self.end.unit)


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
    value = np.array([each[2] for each in partial])
    se = np.zeros(len(partial))
    rung = np.array([each[1] for each in partial])
    scales = [transform(np.array(list(level.values())), maximize) if level else None for level in levels]
    for k, (low, high) in enumerate(pairwise(levels)):
        start, end = scales[k], scales[k + 1]
        if start is None or end is None:
            if not any(levels[k + 1:]):         # nothing has gone further: nobody knows more than the order
                break
            continue
        both = [row for row in low if row in high]
        link = _Link(start, end, np.array([low[row] for row in both]), np.array([high[row] for row in both]),
                     float(np.std(list(low.values()))))
        here = rung <= k
        value[here], se[here] = link.follow(value[here], se[here])
    return {row: (float(mean), float(error)) for (row, *_), mean, error in zip(partial, value, se, strict=True)}


def _mean(values: Floats) -> float:
    return math.fsum(values) / len(values)
