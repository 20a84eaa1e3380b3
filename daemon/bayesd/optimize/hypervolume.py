"""Fronts, hypervolumes, and the part of the outcome space where a new trial would still be worth something.

Notation (everything is minimised; n points, k objectives)
    F (n, k)    points
    r (k,)      reference: what is not better than it in every objective counts for nothing
    u (k,)      local upper bound: no point is better than u in every objective, and u is as large as can be

The region that a front leaves open is the union of the boxes below its local upper bounds (Klamroth, Lacour
and Vanderpooten, "On the representation of the search region in multi-objective optimization", 2015, algorithm 3).
Disjoint boxes of the dominated region follow from the bounds and the points that define them (Lacour, Klamroth and
Fonseca, "A box decomposition algorithm to compute the hypervolume indicator", 2017, section 3); the same done to the
negated bounds gives disjoint boxes of the open region (Daulton, Balandat and Bakshy 2020, section 4).
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bayesd.optimize.streams import Floats

Boxes: TypeAlias = tuple[Floats, Floats]
"""Lower and upper corners, (b, k) each."""
MARGIN = 0.1        # of the front's range that a reference made from data lies beyond its worst values


def nondominated(F: Floats) -> NDArray[np.bool_]:
    """(n,) which points no other one dominates; of equal points the first alone."""
    keep = np.ones(len(F), dtype=np.bool_)
    for i, point in enumerate(F):
        if keep[i]:
            worse = (point <= F).all(axis=1)
            worse[:i] &= (F[:i] > point).any(axis=1)
            worse[i] = False
            keep &= ~worse
    return keep


def lowered(values: Sequence[Sequence[float]], directions: Sequence[str]) -> Floats:
    """(n, k) measured values with the sign that makes lower better."""
    sign = np.where([direction == "maximize" for direction in directions], -1.0, 1.0)
    return np.asarray(np.array(values, dtype=np.float64).reshape(len(values), len(directions)) * sign)


def front(values: Sequence[Sequence[float]], directions: Sequence[str]) -> tuple[int, ...]:
    """Places of the points, as measured, that no other one beats; of equal ones the first."""
    return tuple(np.flatnonzero(nondominated(lowered(values, directions))).tolist()) if len(values) else ()


def reference(F: Floats) -> Floats:
    """(k,) a reference from data: the front's worst value of each objective and a tenth of its range beyond; where
    the front has no range, that of all points (the rule of BoTorch's `infer_reference_point`)."""
    best = F[nondominated(F)]
    worst, width = best.max(axis=0), np.ptp(best, axis=0)
    width = np.where(width > 0, width, np.ptp(F, axis=0))
    return np.asarray(worst + MARGIN * np.where(width > 0, width, np.maximum(np.abs(worst), 1.0)))


def hypervolume(F: Floats, r: Floats) -> float:
    """The volume between the points and the reference, exact up to rounding."""
    inside = F[(r > F).all(axis=1)]
    if not len(inside):
        return 0.0
    inside = inside[nondominated(inside)]
    if F.shape[1] == 1:
        return float(r[0] - inside.min())
    if F.shape[1] == 2:
        inside = inside[np.argsort(inside[:, 0], kind="stable")]
        above = np.concatenate([r[1:], inside[:-1, 1]])
        return math.fsum(((r[0] - inside[:, 0]) * (above - inside[:, 1])).tolist())
    low, high = _dominated(inside, r)
    return math.fsum(np.prod(high - low, axis=1).tolist())


def contributions(F: Floats, r: Floats) -> Floats:
    """(n,) what the hypervolume loses with each point."""
    whole = hypervolume(F, r)
    return np.array([max(0.0, whole - hypervolume(np.delete(F, i, axis=0), r)) for i in range(len(F))])


def over_time(values: Sequence[Sequence[float]], directions: Sequence[str], r: Sequence[float]) -> tuple[float, ...]:
    """The hypervolume after each point, as measured; `r` in the units of the metrics."""
    F, at = lowered(values, directions), lowered([r], directions)[0]
    out, kept, last = list[float](), F[:0], 0.0
    for point in F:
        if (point < at).all() and not (kept <= point).all(axis=1).any():
            kept = np.vstack([kept[~(point <= kept).all(axis=1)], point])
            last = hypervolume(kept, at)
        out.append(last)
    return tuple(out)


def open_boxes(F: Floats, r: Floats) -> Boxes:
    """Disjoint boxes of what lies below the reference and is dominated by no point: lower corners may be -inf."""
    inside = F[(r > F).all(axis=1)]
    inside = inside[nondominated(inside)]
    k = F.shape[1]
    if k == 2:
        inside = inside[np.argsort(inside[:, 0], kind="stable")]
        edges = np.concatenate([[-np.inf], inside[:, 0], r[:1]])
        return (np.column_stack([edges[:-1], np.full(len(edges) - 1, -np.inf)]),
                np.column_stack([edges[1:], np.concatenate([r[1:], inside[:, 1]])]))
    upper = np.unique(_upper_bounds(inside, r)[0], axis=0)
    low, high = _dominated(-upper, np.full(k, np.inf))
    return -high, -low


def _upper_bounds(F: Floats, r: Floats) -> tuple[Floats, Floats]:
    """Local upper bounds (b, k), and for each and each objective the point that defines it there (b, k, k)."""
    k = F.shape[1]
    U = r[None, :].astype(np.float64)
    Z = np.full((1, k, k), -np.inf)
    Z[0, np.arange(k), np.arange(k)] = r
    for point in F:
        under = (point < U).all(axis=1)
        if not under.any():
            continue
        split, defined = U[under], Z[under]
        bounds, points = [U[~under]], [Z[~under]]
        for j in range(k):
            others = np.delete(defined[:, :, j], j, axis=1).max(axis=1)
            made = point[j] >= others
            bound, by = split[made], defined[made]
            bound[:, j] = point[j]
            by[:, j, :] = point
            bounds.append(bound)
            points.append(by)
        U, Z = np.concatenate(bounds), np.concatenate(points)
    return U, Z


def _dominated(F: Floats, r: Floats) -> Boxes:
    """Disjoint boxes of what the points dominate, up to the reference."""
    U, Z = _upper_bounds(F, r)
    low, high = U.copy(), U.copy()
    high[:, 0] = r[0]
    for j in range(1, F.shape[1]):
        low[:, j] = Z[:, :j, j].max(axis=1)
    real = (high > low).all(axis=1)
    return low[real], high[real]
