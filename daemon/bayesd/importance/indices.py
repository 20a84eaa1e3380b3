"""Shares of variance: functional ANOVA of the believed response over the whole space.

Notation
    A, B  (N, p)    two independent halves of one scrambled Sobol design of 2 p columns
    AB_u            A with the columns of the parameters u from B
    V               variance of f over the space

For a set u of parameters (Jansen 1999; Saltelli et al. 2010, table 2, rows c and f):

    closed share    S_u = 1 - mean((f(B) - f(AB_u))^2) / 2V      what u decides alone and among itself
    total share     T_u =     mean((f(A) - f(AB_u))^2) / 2V      what is lost to know when u is unknown

The main share of i is S_i, the interaction of i and j is S_ij - S_i - S_j (Hutter, Hoos and Leyton-Brown,
"An efficient approach for assessing hyperparameter importance", 2014, on a forest). Each is worked out for the
posterior's mean and for paths drawn from it, each path on rows drawn again (a bootstrap) so that the error of the
sum counts too; the interval is that of the paths, and it widens to hold the value.

An inactive parameter moves nothing, so over the whole space a conditional one counts with the share of the
space in which it is active. Its importance `within` that part comes from a design that has it active everywhere.

Among the best: the response is cut at a quantile of the mean, so that only differences between good points are left
(the same paper, section 4.2, cuts at a default's value).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bayesd.importance.belief import INTERVAL, Belief, inside
from bayesd.optimize.streams import Floats

BUDGET = 12_288         # points at which the belief is asked for main and total shares
POINTS_MAX = 1024
WITHIN_POINTS = 256
PAIRED_MAX = 8          # parameters of largest total share, of which all pairs are looked at
PAIR_BUDGET = 24_576
FLAT = 1e-12
LARGE = 1e100           # values beyond it are counted in units of the largest
DROP = 0.05             # of the variance: parameters that decide less can be dropped

Share = dict[str, float]


@dataclass(frozen=True)
class Design:
    """The two halves, and what is believed at them."""

    belief: Belief
    A: Floats
    B: Floats
    a: Floats
    b: Floats
    cut: float | None
    weights: Floats
    """(N, 1 + DRAWS): how often each row counts; once for the mean."""
    unit: float = 1.0
    """What values are counted in here, where the squares of their own unit would be beyond all numbers."""

    @classmethod
    def of(cls, belief: Belief, count: int, best: float | None = None, within: int | None = None) -> "Design":
        p = belief.cube.p
        both = belief.design(1 if within is None else 2, count, 2 * p)
        A, B = both[:, :p], both[:, p:]
        if within is not None:
            A, B = inside(belief.cube, A, within), inside(belief.cube, B, within)
        a, b = belief.values(A), belief.values(B)
        size = float(np.max(np.abs([a, b])))
        unit = size if size > LARGE else 1.0
        a, b = a / unit, b / unit
        cut = None if best is None else float(np.quantile(belief.sign * np.concatenate([a[:, 0], b[:, 0]]), best))
        again = np.ones((count, a.shape[1]))
        rows = (belief.uniform(count, a.shape[1] - 1) * count).astype(np.int64)
        for d in range(1, a.shape[1]):
            again[:, d] = np.bincount(rows[:, d - 1], minlength=count)
        made = cls(belief, A, B, a, b, cut, again, unit)
        return replace(made, a=made.cutting(a), b=made.cutting(b))

    def cutting(self, values: Floats) -> Floats:
        return values if self.cut is None else np.asarray(np.minimum(self.belief.sign * values, self.cut))

    @property
    def variance(self) -> Floats:
        """(1 + DRAWS,)"""
        return np.asarray(np.maximum(np.var(np.vstack([self.a, self.b]), axis=0), FLAT * FLAT))

    def mixed(self, sets: Sequence[Sequence[int]]) -> list[Floats]:
        """f(AB_u) of each set."""
        if not sets:
            return []
        rows = np.concatenate([self.A] * len(sets))
        for k, u in enumerate(sets):
            rows[k * len(self.A):(k + 1) * len(self.A), list(u)] = self.B[:, list(u)]
        return [self.cutting(each) for each in np.split(self.belief.values(rows) / self.unit, len(sets))]

    def closed(self, mixed: Floats) -> Floats:
        return np.asarray(1 - np.mean(self.weights * (self.b - mixed) ** 2, axis=0) / (2 * self.variance))

    def total(self, mixed: Floats) -> Floats:
        return np.asarray(np.mean(self.weights * (self.a - mixed) ** 2, axis=0) / (2 * self.variance))


def share(values: Floats) -> Share:
    """Of the mean (first) and of the paths, as a share from 0 to 1 with its interval.

    Both the quantiles of the paths and these reflected in the value are in it (Davison and Hinkley, "Bootstrap methods
    and their application", 1997, sections 5.2 and 5.3): a path varies more than the mean, so that all of them may lie
    above a small share, and the truth is as likely to differ from the mean as a path is.
    """
    values = np.clip(values, 0.0, 1.0)
    low, high = np.quantile(values[1:], INTERVAL)
    value = float(values[0])
    half = max(value - float(low), float(high) - value)
    return {"value": round(value, 4), "low": round(max(0.0, value - half), 4),
            "high": round(min(1.0, value + half), 4)}


def points(p: int) -> int:
    """A power of two, within the budget."""
    return int(min(POINTS_MAX, 2 ** int(np.log2(max(64, BUDGET // (p + 2))))))


def of(belief: Belief, best: float | None, pairs: bool) -> dict[str, Any]:
    """Shares of all parameters, the largest total first, and on demand of pairs."""
    cube = belief.cube
    design = Design.of(belief, points(cube.p), best)
    mixed = design.mixed([[j] for j in range(cube.p)])
    total = [design.total(each) for each in mixed]
    order = sorted(range(cube.p), key=lambda j: (-round(float(total[j][0]), 4), j))
    flat = float(design.variance[0]) <= FLAT * max(1.0, float(np.mean(design.a[:, 0]) ** 2))
    active = cube.active(design.A).mean(axis=0)
    rows = []
    for j in order:
        row: dict[str, Any] = {"param": cube.names[j], "main": share(design.closed(mixed[j])),
                               "total": share(total[j]), "active": round(float(active[j]), 4)}
        if cube.axes[j].conditions:
            here = Design.of(belief, WITHIN_POINTS, best, within=j)
            row["within"] = share(here.total(here.mixed([[j]])[0]))
        rows.append(row)
    sd = np.sqrt(design.variance) * design.unit
    out: dict[str, Any] = {
        "params": rows, "flat": flat, "points": len(design.A),
        "spread": {"value": float(sd[0]), "low": float(np.quantile(sd[1:], INTERVAL[0])),
                   "high": float(np.quantile(sd[1:], INTERVAL[1]))},
        "explained": share(sum((design.closed(each) for each in mixed), np.zeros(1)))}
    if pairs:
        out["pairs"] = _pairs(belief, best, order[:PAIRED_MAX])
    out["droppable"] = _droppable(design, order, total) if not flat else None
    return out


def _pairs(belief: Belief, best: float | None, order: list[int]) -> list[dict[str, Any]]:
    found = [(i, j) for k, i in enumerate(order) for j in order[k + 1:]]
    count = int(min(512, 2 ** int(np.log2(max(64, PAIR_BUDGET // (len(found) + len(order) + 2))))))
    design = Design.of(belief, count, best)
    alone = dict(zip(order, map(design.closed, design.mixed([[j] for j in order])), strict=True))
    rows = []
    for (i, j), mixed in zip(found, design.mixed(found), strict=True):
        closed = design.closed(mixed)
        rows.append({"params": [belief.cube.names[i], belief.cube.names[j]], "joint": share(closed),
                     "interaction": share(closed - alone[i] - alone[j])})
    return sorted(rows, key=lambda row: -row["interaction"]["value"])


def _droppable(design: Design, order: list[int], total: list[Floats]) -> dict[str, Any] | None:
    """The largest set of parameters that together decide less than DROP, at the upper end of the interval."""
    rising = sorted(order, key=lambda j: share(total[j])["high"])
    rising = [j for j in rising if share(total[j])["high"] < DROP]
    sets = [rising[:k] for k in range(1, len(rising) + 1)]
    kept, bound = list[int](), None
    for u, mixed in zip(sets, design.mixed(sets), strict=True):
        together = share(design.total(mixed))
        if together["high"] >= DROP:
            break
        kept, bound = u, together
    if not kept:
        return None
    return {"params": [design.belief.cube.names[j] for j in kept], "together": bound, "limit": DROP}


def loss(belief: Belief, names: Sequence[str], winner: Floats) -> dict[str, float]:
    """How much of the best believed value is lost where these parameters stay at the winner's, with its interval:
    the best over a design and the winner itself, beside the same points with these axes fixed. Metric units."""
    axes = [belief.cube.names.index(name) for name in names]
    free = np.vstack([belief.design(3, 2048, belief.cube.p), winner, belief.space_U])
    fixed = free.copy()
    fixed[:, axes] = winner[:, axes]
    lost = np.maximum(np.min(belief.sign * belief.values(fixed), axis=0)
                      - np.min(belief.sign * belief.values(free), axis=0), 0.0)
    low, high = np.quantile(lost[1:], INTERVAL)
    return {"value": float(lost[0]), "low": float(min(low, lost[0])), "high": float(max(high, lost[0]))}
