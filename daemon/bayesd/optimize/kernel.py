"""What resembles what: the covariance of a mixed, conditional space.

Notation
    p, m, c     parameters; of them numeric ones; of those, conditional ones
    h           one-hot columns of the categories
    n, b        rows of data, rows of candidates
    X  (n, D)   features, D = m + h + c (+ 1): numeric columns in [0, 1], scaled one-hot columns, a
                flag for every conditional numeric column (1 active, 0 not), and with a fidelity
                its logarithm to base 2 (0 at the full one, -1 at half of it)
    W  (n, m)   numeric columns, warped: w = 1 - (1 - x^a)^b (Kumaraswamy's distribution function,
                one a and b per column; Snoek et al., "Input warping", 2014)
    S  (n, E)   embedding, E = m + c + h, in units of the length scale of the parameter that owns
                the column, so that distances are Euclidean and come from one matrix product
    F  (n, q)   trend features: 2x - 1 and its square for numeric columns, the one-hot indicators
    k(x, x')    s2 M(r^2) + v F F', with r^2 = |S - S'|^2 and Matern's
                M(r^2) = (1 + sqrt5 r + 5/3 r^2) exp(-sqrt5 r)   (Rasmussen and Williams, 4.17)
                With a fidelity all of it times M of the difference of fidelities over l_f^2.
    theta       logarithms of: length scale per parameter, s2, noise, v, a per column, b per column,
                and with a fidelity l_f

A conditional number lives on an arc of radius 1 and angle w: (cos w, sin w) while it is active and
the centre of the circle while it is not. Two active values are then (nearly) as far apart as
their difference, and an inactive one is equally far from every active one, wherever that is
(after Swersky et al., "Raiders of the lost architecture: kernels for conditional parameter
spaces", 2014). Inactive categories have no column set.

Every entry of exp(theta) has a lognormal prior. The length scales' prior does not grow with the
dimension: with transformed outcomes and tens of evaluations that was clearly better on 5 to 20
axes. The quadratic trend finds a bowl in a handful of points; where there is none, v shrinks.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from bayesd.optimize.encode import ONE_HOT, Cube
from bayesd.optimize.streams import Floats

CHOICES_MAX = 64            # columns of one category: with more choices, every 64th looks alike to the model
_EDGE = 1e-6                # the warp's slope is infinite at 0 or 1 for a or b below 1

# (mean, sd, lowest, highest) of the logarithm
_PRIOR_LENGTH = (math.log(0.5), 0.8, math.log(0.01), math.log(100))
# Categories are far apart already: at 0.5 two points that differ in two of them have nothing in common.
_PRIOR_CHOICE_LENGTH = (math.log(2.0), 0.8, math.log(0.01), math.log(100))
_PRIOR_S2 = (0.0, 1.0, -6.0, 6.0)
_PRIOR_NOISE = (-6.0, 2.0, math.log(1e-6), 2.0)     # wide: LN(-4, 1) was a little worse
_PRIOR_TREND = (math.log(0.1), 1.5, -10.0, 4.0)
_PRIOR_WARP = (0.0, 0.3, -1.5, 1.5)
_PRIOR_FIDELITY = (math.log(4.0), 0.8, math.log(0.1), math.log(100))    # in doublings


@dataclass(frozen=True)
class Design:
    """Which feature columns a cube has and which parameter owns each."""

    of: Cube
    fidelity: bool = False
    """True: the last column of X says at which fidelity a row was measured."""

    @cached_property
    def numeric(self) -> list[int]:
        return [j for j, axis in enumerate(self.of.axes) if axis.kind != "choice"]

    @cached_property
    def choices(self) -> list[int]:
        return [j for j, axis in enumerate(self.of.axes) if axis.kind == "choice"]

    @cached_property
    def arcs(self) -> list[int]:
        """Numeric columns of conditional parameters."""
        return [i for i, j in enumerate(self.numeric) if self.of.axes[j].conditions]

    @property
    def m(self) -> int:
        return len(self.numeric)

    @cached_property
    def one_hot(self) -> int:
        return sum(map(self._columns, self.choices))

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """(E,) parameter of each column of the embedding."""
        return np.array([*self.numeric, *(self.numeric[i] for i in self.arcs),
                         *(j for j in self.choices for _ in range(self._columns(j)))], dtype=np.int64)

    def _columns(self, j: int) -> int:
        return min(self.of.axes[j].cells, CHOICES_MAX)

    @property
    def size(self) -> int:
        """Length of theta."""
        return self.of.p + 3 + 2 * self.m + self.fidelity

    @cached_property
    def model(self) -> str:
        """Name of the model in the log. It holds a digest of the axes: length scales are in units of
        their ranges, so a theta of another space, or of the same one before it was amended, is no use here.
        """
        axes = repr([(axis.name, axis.kind, axis.parameter.model_dump_json()) for axis in self.of.axes])
        axes += "fidelity" * self.fidelity
        return f"gp-matern52-kumaraswamy-quadratic/2:{blake2b(axes.encode(), digest_size=6).hexdigest()}"

    @property
    def width(self) -> int:
        """D, the number of features."""
        return self.m + self.one_hot + len(self.arcs) + self.fidelity

    def features(self, U: Floats, fidelity: Floats | None = None) -> Floats:
        """X of unit coordinates (n, p); `fidelity` (n,) in (0, 1], by default the full one."""
        active = self.of.active(U) if self.of.conditional else None
        X = np.zeros((len(U), self.width))
        X[:, :self.m] = self.of.pin(U)[:, self.numeric]
        rows, at = np.arange(len(U)), self.m
        for j in self.choices:
            axis, columns = self.of.axes[j], self._columns(j)
            X[rows, at + axis.cell(U[:, j]) % columns] = ONE_HOT * (1.0 if active is None else active[:, j])
            at += columns
        if self.arcs and active is not None:
            X[:, at:at + len(self.arcs)] = active[:, [self.numeric[i] for i in self.arcs]]
        if self.fidelity and fidelity is not None:
            X[:, -1] = np.log2(fidelity)
        return X

    @cached_property
    def prior(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean, sd, lowest and highest of theta, each (size,)."""
        lengths = [_PRIOR_CHOICE_LENGTH if axis.kind == "choice" else _PRIOR_LENGTH for axis in self.of.axes]
        rows = np.array(lengths + [_PRIOR_S2, _PRIOR_NOISE, _PRIOR_TREND]
                        + [_PRIOR_WARP] * (2 * self.m) + [_PRIOR_FIDELITY] * self.fidelity)
        return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]


@dataclass(frozen=True)
class Kernel:
    """The covariance function at one theta."""

    design: Design
    theta: Floats

    @cached_property
    def lengths(self) -> Floats:
        """(E,) length scale of each column of the embedding."""
        return np.exp(self.theta[: self.design.of.p])[self.design.owner]

    @cached_property
    def s2(self) -> float:
        return math.exp(self.theta[self.design.of.p])

    @cached_property
    def noise(self) -> float:
        return math.exp(self.theta[self.design.of.p + 1])

    @cached_property
    def v(self) -> float:
        return math.exp(self.theta[self.design.of.p + 2])

    @cached_property
    def a(self) -> Floats:
        return np.exp(self.theta[self.design.of.p + 3:][: self.design.m])

    @cached_property
    def b(self) -> Floats:
        return np.exp(self.theta[self.design.of.p + 3 + self.design.m:][: self.design.m])

    @cached_property
    def fidelity_length(self) -> float:
        return math.exp(self.theta[-1])

    def warped(self, X: Floats) -> Floats:
        """W."""
        x = np.clip(X[:, :self.design.m], _EDGE, 1 - _EDGE)
        return np.asarray(1 - (1 - x**self.a) ** self.b)

    def warp_slopes(self, X: Floats) -> tuple[Floats, Floats, Floats]:
        """(n, m) each: dW/dX, dW/d log a, dW/d log b."""
        x = np.clip(X[:, :self.design.m], _EDGE, 1 - _EDGE)
        power = x**self.a
        rest = 1 - power
        up = self.b * rest ** (self.b - 1) * power * self.a
        return up / x, up * np.log(x), -(rest**self.b) * np.log(rest) * self.b

    def embedded(self, X: Floats) -> Floats:
        """S."""
        of = self.design
        m, c, h = of.m, len(of.arcs), of.one_hot
        S = np.empty((len(X), m + c + h))
        if m:
            S[:, :m] = self.warped(X)
        if c:
            angle, flag = S[:, of.arcs], X[:, m + h:m + h + c]
            S[:, of.arcs] = flag * np.cos(angle)
            S[:, m:m + c] = flag * np.sin(angle)
        S[:, m + c:] = X[:, m:m + h]
        S /= self.lengths
        return S

    def unturned(self, S: Floats, G: Floats) -> Floats:
        """(n, m): derivatives in W from `G` (n, m + c), those in the first columns of S."""
        of = self.design
        m = of.m
        out = G[:, :m] / self.lengths[:m]
        if of.arcs:     # on the arc (cos w, sin w) / l the derivative turns by a right angle; inactive rows are 0
            out[:, of.arcs] = G[:, m:] * S[:, of.arcs] - G[:, of.arcs] * S[:, m:m + len(of.arcs)]
        return np.asarray(out)

    def trend(self, X: Floats) -> Floats:
        """F."""
        m = self.design.m
        F = np.empty((len(X), 2 * m + self.design.one_hot))
        c = F[:, :m]
        np.multiply(X[:, :m], 2, out=c)
        c -= 1
        np.multiply(c, c, out=F[:, m:2 * m])
        np.divide(X[:, m:m + self.design.one_hot], ONE_HOT, out=F[:, 2 * m:])
        return F

    def across(self, X: Floats, Y: Floats) -> Floats | None:
        """(n, b) factor that the difference of fidelities makes; None without a fidelity."""
        if not self.design.fidelity:
            return None
        return matern((5 / self.fidelity_length**2) * (X[:, -1:] - Y[:, -1]) ** 2)


def distance(S: Floats, T: Floats) -> Floats:
    """Five times the squared distance between the rows of S and of T, by one matrix product."""
    r2 = S @ (-10 * T).T
    r2 += 5 * np.einsum("ij,ij->i", S, S)[:, None]
    r2 += 5 * np.einsum("ij,ij->i", T, T)
    return np.asarray(np.maximum(r2, 0, out=r2))


def matern(r2: Floats) -> Floats:
    """M from `distance`, which is overwritten."""
    r = np.sqrt(r2)
    r2 /= 3
    r2 += r
    r2 += 1
    np.negative(r, out=r)
    r2 *= np.exp(r, out=r)
    return r2


def matern_and_slope(r2: Floats) -> tuple[Floats, Floats]:
    """(M, dM/dr^2) from `distance`, which is overwritten."""
    r = np.sqrt(r2)
    e = np.exp(-r)
    r += 1
    r2 /= 3
    r2 += r
    r2 *= e
    r *= e
    r *= -5 / 6
    return r2, r
