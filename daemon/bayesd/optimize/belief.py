"""A person's prior in the search: a density over the space, what it is still worth, and its term in the acquisition.

Notation
    u           unit coordinate of one parameter; c its centre, s its spread there
    pi(u)       density relative to that at the centre: o + (1 - o) exp(-((u - c) / 2 s)^4); of a choice its weight,
                mixed with an even one, relative to that of the likeliest
    l (n,)      B (exp(t / B) - 1) with t the sum of log pi over the parameters that have a prior: t near the centre,
                never below -B
    n           finished trials

The acquisition of a point gets a weight times l added (piBO: Hvarfner et al., "piBO: Augmenting acquisition functions
with user beliefs", 2022, equation 6), but for three things. The density is flat over two spreads, so that it says where
to look and does not pull there: a normal one draws each trial from the optimum towards the centre. It is bounded: what
is expected to improve e^B times as much is tried wherever it is, so a lure is left once it is dry. And what fades it
is less the count of trials than what they say: `trust` asks whether points of high density are better than others,
which takes a handful of results.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from bayesd.optimize.acquisition import Term, Together
from bayesd.optimize.encode import ONE_HOT, Axis, Cube, cube
from bayesd.optimize.fidelity import at_full
from bayesd.optimize.kernel import CHOICES_MAX, Design
from bayesd.optimize.search import Target
from bayesd.optimize.streams import Floats, Stream
from bayesd.study.problem import Problem
from bayesd_schemas.prior import Confidence, Prior, spelled

SPREAD: dict[Confidence, float] = {"low": 0.3, "medium": 0.15, "high": 0.075}
"""s, in ranges."""
SURE: dict[Confidence, float] = {"low": 0.3, "medium": 0.6, "high": 0.85}
"""Of a choice: how much of the density it gets, before the rest is shared evenly."""
OUTSIDE: dict[Confidence, float] = {"low": 0.3, "medium": 0.1, "high": 0.02}
"""o"""
FLAT = 2.0              # spreads over which the density is flat
BOUND = 12.0            # B
EVERYWHERE = 0.1        # how much of the density of choices is even
HALF = 100              # trials after which it counts half, come what may
DRAWS = 256             # candidates of the search
DOUBT_AT = 1.0          # standard deviations of Kendall's tau below 0 at which trust is gone
LEAST = 1e-3            # a weight below which the term is left out


@dataclass(frozen=True)
class Side:
    """The density along one axis."""

    axis: int
    centre: float
    spread: float
    outside: float
    """The density far from the centre, relative to that at it."""
    shares: tuple[float, ...] | None
    """Of a choice: the density of each cell, relative to the highest."""

    def log_density(self, u: Floats) -> Floats:
        """log pi (n,) at coordinates of a numeric axis: 0 at the centre."""
        return np.asarray(np.log(self.outside + (1 - self.outside) * self._near(u)))

    def slope(self, u: Floats) -> Floats:
        """Its derivative (n,)."""
        near, width = (1 - self.outside) * self._near(u), FLAT * self.spread
        return np.asarray(-4 * near / (self.outside + near) * (u - self.centre) ** 3 / width**4)

    def _near(self, u: Floats) -> Floats:
        return np.asarray(np.exp(-((u - self.centre) / (FLAT * self.spread)) ** 4))

    def drawn(self, v: Floats, of: Axis) -> Floats:
        """Coordinates at the quantiles v (n,) of the opinion itself: the rest of the space has draws of its own."""
        if self.shares is not None:
            edges = np.cumsum(np.array(self.shares)) / sum(self.shares)
            return of.centre(np.minimum(np.searchsorted(edges, v, side="right"), of.cells - 1))
        low, high = (float(ndtr((end - self.centre) / self.spread)) for end in (0.0, 1.0))
        return np.asarray(np.clip(self.centre + self.spread * ndtri(low + v * (high - low)), 0.0, 1.0))


@dataclass(frozen=True)
class Belief:
    """The whole prior of a space."""

    of: Cube
    sides: tuple[Side, ...]

    def points(self, V: Floats) -> Floats:
        """Unit coordinates (n, p) of quantiles (n, p): where there is no opinion, the quantile itself."""
        U = V.copy()
        for side in self.sides:
            U[:, side.axis] = side.drawn(V[:, side.axis], self.of.axes[side.axis])
        return U

    @property
    def mode(self) -> Floats:
        """(1, p): the centres; the middle where there is no opinion."""
        U = np.full((1, self.of.p), 0.5)
        for side in self.sides:
            U[0, side.axis] = side.centre
        return U

    def log_density(self, U: Floats) -> Floats:
        """l (n,) of unit coordinates: 0 at the mode; parameters that are not active say nothing."""
        active = self.of.active(U)
        out = np.zeros(len(U))
        for side in self.sides:
            if side.shares is not None:
                l_ = np.log(np.array(side.shares))[self.of.axes[side.axis].cell(U[:, side.axis])]
            else:
                l_ = side.log_density(U[:, side.axis])
            out += np.where(active[:, side.axis], l_, 0.0)
        return bounded(out)


def bounded(t: Floats) -> Floats:
    """l (n,) of sums of log densities t (n,), none above 0."""
    return np.asarray(BOUND * np.expm1(t / BOUND))


def belief(problem: Problem) -> Belief | None:
    """The prior of a problem; None when nobody has one."""
    if not problem.prior:
        return None
    of = cube(problem.space)
    said = dict(problem.prior)
    return Belief(of, tuple(_side(j, axis, said[axis.name]) for j, axis in enumerate(of.axes) if axis.name in said))


def _side(j: int, axis: Axis, prior: Prior) -> Side:
    if axis.kind != "choice":
        return Side(j, float(axis.units([prior.centre])[0]), SPREAD[prior.confidence], OUTSIDE[prior.confidence], None)
    choices: Sequence[Any] = axis.cell_values(range(axis.cells))
    if prior.weights is not None:
        weights = [prior.weights.get(spelled(choice), 0.0) for choice in choices]
        total = math.fsum(weights)
        shares = [weight / total for weight in weights]
    else:
        sure, chosen = SURE[prior.confidence], axis.cell_of(prior.centre)
        shares = [(1 - sure) / axis.cells + sure * (cell == chosen) for cell in range(axis.cells)]
    mixed = [EVERYWHERE + (1 - EVERYWHERE) * share * axis.cells for share in shares]
    density = tuple(each / max(mixed) for each in mixed)
    best = max(range(axis.cells), key=lambda cell: (density[cell], -cell))
    return Side(j, float(axis.centre(np.array([best]))[0]), 0.0, min(density), density)


def trust(l_: Floats, cost: Floats) -> float:
    """How far results bear the prior out, from 0 to 1: log densities (n,) against outcomes (n,), lower is better.

    Kendall's tau counts pairs in which the point of higher density is the better one, less those in which it is the
    worse one; without a connection it has mean 0 and variance 2 (2 n + 5) / (9 n (n - 1)) (Kendall, "A new measure
    of rank correlation", 1938). Counts alone, so every machine agrees; densities are rounded before.
    """
    n = len(cost)
    if n < 2:
        return 1.0
    ranked = np.round(l_, 6)
    pairs = np.sign(ranked[:, None] - ranked) * np.sign(cost - cost[:, None])
    tau = float(pairs.sum()) / (n * (n - 1))
    deviation = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    return round(min(max(1.0 + tau / (DOUBT_AT * deviation), 0.0), 1.0), 6)


def trusted(problem: Problem, held: Belief) -> float:
    """Trust after the history of a problem. Failures are worse than every value; of several objectives the first
    alone is asked."""
    seen = at_full(problem).history
    sign = 1.0 if problem.directions[0] == "minimize" else -1.0
    cost = np.array([math.inf if each.values is None else sign * each.values[0] for each in seen])
    with np.errstate(invalid="ignore"):
        worst = np.nan_to_num(cost, posinf=1e308)
    return trust(held.log_density(held.of.encode([each.params for each in seen])), worst) if seen else 1.0


def weight(problem: Problem, held: Belief) -> float:
    """What l is multiplied with in the acquisition."""
    return HALF / (HALF + len(problem.history)) * trusted(problem, held)


@dataclass(frozen=True)
class Opinion:
    """`weight` times l, as a term of an acquisition."""

    model: Target
    """Whose columns, distances and smoothness it shares."""
    held: Belief
    weight: float

    @property
    def design(self) -> Design:
        return self.model.design

    @property
    def smooth(self) -> bool:
        return True

    def value(self, X: Floats) -> Floats:
        """(n,) of features (n, D)."""
        return self.weight * bounded(self._numeric(X)[0] + self._choices(X))

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""
        value, slope = self._numeric(X)
        t = value + self._choices(X)
        return self.weight * bounded(t), self.weight * np.exp(t / BOUND)[:, None] * slope

    def _numeric(self, X: Floats) -> tuple[Floats, Floats]:
        design = self.design
        value, slope = np.zeros(len(X)), np.zeros((len(X), design.m))
        flags = {column: X[:, design.m + design.one_hot + place] for place, column in enumerate(design.arcs)}
        for side in self.held.sides:
            if side.shares is not None:
                continue
            column = design.numeric.index(side.axis)
            active = flags.get(column, np.ones(len(X)))
            value += active * side.log_density(X[:, column])
            slope[:, column] = active * side.slope(X[:, column])
        return value, slope

    def _choices(self, X: Floats) -> Floats:
        design, value, at = self.design, np.zeros(len(X)), self.design.m
        sides = {side.axis: side for side in self.held.sides}
        for j in design.choices:
            columns = min(design.of.axes[j].cells, CHOICES_MAX)
            side = sides.get(j)
            if side is not None and side.shares is not None:      # choices that share a column share its density
                density = [float(np.mean(side.shares[column::columns])) for column in range(columns)]
                value += X[:, at:at + columns] @ (np.log(np.array(density)) / ONE_HOT)
            at += columns
        return value


def with_belief(problem: Problem, gain: Target, target: Target) -> Target:
    """The target with the prior's term, where there is a prior that still counts."""
    held = belief(problem)
    if held is None:
        return target
    weighs = weight(problem, held)
    if weighs < LEAST:
        return target
    terms: tuple[Target, *tuple[Term, ...]] = target.terms if isinstance(target, Together) else (target,)
    return Together((*terms, Opinion(gain, held, weighs)))


def likely(problem: Problem, target: Target) -> Floats | None:
    """(k, p) draws from the prior, for the search to look at: in six dimensions a thousand points that are even over
    the space have none where somebody is sure. None where the prior has no part in the target."""
    held = belief(problem)
    if held is None or weighed(target) is None:
        return None
    return held.points(Stream(problem.seed, problem.number, "prior").uniform(DRAWS, held.of.p))


def weighed(target: Target) -> float | None:
    """The factor of the log density in a target; None where the prior has no part in it."""
    terms = target.terms if isinstance(target, Together) else ()
    return next((term.weight for term in terms if isinstance(term, Opinion)), None)
