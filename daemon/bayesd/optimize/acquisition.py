"""How much a point is worth: expected improvement in log space, with tails that never become flat.

Notation (minimisation; arrays broadcast)
    mean, sd    posterior mean and standard deviation of a candidate
    best        the incumbent: what an improvement has to beat
    z           (best - mean) / sd
    h(z)        phi(z) + z Phi(z), so that EI = sd h(z)

Far from the incumbent EI underflows to zero and has no gradient. Its logarithm has one everywhere:
Ament et al., "Unexpected improvements to expected improvement" (2023), equation 9.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from scipy.special import erfcx, ndtr

from bayesd.optimize.forest import Forest
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.search import Target
from bayesd.optimize.streams import Floats
from bayesd.optimize.transfer import Stacked

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF_PI = math.sqrt(math.pi / 2)
DOUBT = 0.01        # variance of the latent below which no verdict on success goes
_FAR = -100.0       # beyond it 1 + z R(z) has lost twelve digits, and its series has not


def log_h(z: Floats) -> tuple[Floats, Floats]:
    """(log h(z), its derivative Phi(z) / h(z))."""
    z = np.asarray(z, dtype=np.float64)
    near = np.maximum(z, -1.0)
    density, below = np.exp(-0.5 * near * near - _LOG_SQRT_2PI), ndtr(near)
    h = density + near * below
    # h = phi (1 + z R) with Mills' ratio R = Phi / phi, which erfcx gives without underflow.
    tail = np.minimum(z, -1.0)
    R = _SQRT_HALF_PI * erfcx(-tail / math.sqrt(2))
    w = 1 / (tail * tail)
    rest = np.where(tail < _FAR, w * (1 - w * (3 - w * (15 - 105 * w))), 1 + tail * R)
    log_tail = -0.5 * tail * tail - _LOG_SQRT_2PI + np.log(rest)
    return np.where(z > -1, np.log(h), log_tail), np.where(z > -1, below / h, R / rest)


def log_ei(mean: Floats, variance: Floats, best: float) -> Floats:
    """log EI, shape of `mean`."""
    sd = np.sqrt(variance)
    value: Floats = log_h((best - mean) / sd)[0] + np.log(sd)
    return value


def log_ei_gradient(mean: Floats, variance: Floats, d_mean: Floats, d_variance: Floats,
                    best: float) -> tuple[Floats, Floats]:
    """log EI (n,) and its gradient (n, p), from those of mean and variance."""
    sd = np.sqrt(variance)
    z = (best - mean) / sd
    value, slope = log_h(z)
    d_log_sd: Any = d_variance / (2 * variance)[:, None]
    d_z = -d_mean / sd[:, None] - z[:, None] * d_log_sd
    return value + np.log(sd), slope[:, None] * d_z + d_log_sd


Model: TypeAlias = Posterior | Forest | Stacked


class _OfModel:
    """What an acquisition takes from the model under it."""

    posterior: Model

    @property
    def design(self) -> Design:
        return self.posterior.design

    @property
    def smooth(self) -> bool:
        """Whether there is a gradient: a forest is made of steps."""
        return not isinstance(self.posterior, Forest)

    @property
    def lengths(self) -> Floats:
        """(m,) length scales of the numeric columns."""
        return self.posterior.lengths

    def embedded(self, X: Floats) -> Floats:
        """Coordinates in which distances are in length scales."""
        return self.posterior.embedded(X)

    def _slopes(self, X: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean, variance and their derivatives, of a model that is smooth."""
        if isinstance(self.posterior, Forest):
            raise TypeError("a forest is made of steps, and has no slopes")
        return self.posterior.predict_gradient(X)


@dataclass(frozen=True)
class Improvement(_OfModel):
    """log EI over the best belief."""

    posterior: Model
    best: float

    def value(self, X: Floats) -> Floats:
        """(n,) of features (n, D)."""
        return log_ei(*self.posterior.predict(X), self.best)

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""
        return log_ei_gradient(*self._slopes(X), self.best)


@dataclass(frozen=True)
class Success(_OfModel):
    """log of the probability that a trial ends well: of a latent above zero.

    The latent is regressed on labels of 1 and -1 (least-squares classification, Rasmussen and
    Williams, section 6.5). Its noise does not widen the verdict: where failures are chance that
    would only lower every point alike. But nobody knows more from n trials than they can show, so
    no verdict goes below 1 / (n + 2) (Laplace's rule of succession after n failures): without that
    floor the regression's ripples on chance failures ruled whole regions out.
    """

    posterior: Model
    level: float
    """The latent's mean where nothing is known."""
    floor: float
    """The least probability."""

    def value(self, X: Floats) -> Floats:
        """(n,) of features (n, D)."""
        mean, variance = self.posterior.predict(X)
        return np.asarray(self._log((mean + self.level) / np.sqrt(variance + DOUBT)))

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""
        mean, variance, d_mean, d_variance = self._slopes(X)
        wide = np.sqrt(variance + DOUBT)
        z = (mean + self.level) / wide
        value = self._log(z)
        slope = (1 - self.floor) * np.exp(-0.5 * z * z - _LOG_SQRT_2PI - value)
        d_z: Any = d_mean / wide[:, None] - (z / (2 * wide * wide))[:, None] * d_variance
        return value, slope[:, None] * d_z

    def _log(self, z: Floats) -> Floats:
        return np.asarray(np.log(self.floor + (1 - self.floor) * ndtr(z)))


@dataclass(frozen=True)
class Thrift(_OfModel):
    """Minus `power` times the expected logarithm of a trial's cost: added to log EI with a power
    of 1 it is improvement per unit of cost (Snoek et al. 2012, section 3.2); a power that falls
    to 0 as the budget ends cools it (Lee et al., "Cost-aware Bayesian optimization", 2020)."""

    posterior: Model
    """Of the logarithm of the cost, in any unit: a constant factor moves nothing."""
    power: float = 1.0

    def value(self, X: Floats) -> Floats:
        """(n,) of features (n, D)."""
        return np.asarray(-self.power * self.posterior.predict(X)[0])

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""
        mean, _, d_mean, _ = self._slopes(X)
        return -self.power * mean, -self.power * d_mean


class Term(Protocol):
    """A logarithm that is added to others."""

    @property
    def smooth(self) -> bool: ...

    def value(self, X: Floats) -> Floats: ...

    def gradient(self, X: Floats) -> tuple[Floats, Floats]: ...


@dataclass(frozen=True)
class Together:
    """The sum of several logarithms: the product of what they stand for. Distances are the first one's."""

    terms: tuple[Target, *tuple[Term, ...]]

    @property
    def design(self) -> Design:
        return self.terms[0].design

    @property
    def smooth(self) -> bool:
        return all(term.smooth for term in self.terms)

    @property
    def lengths(self) -> Floats:
        return self.terms[0].lengths

    def embedded(self, X: Floats) -> Floats:
        return self.terms[0].embedded(X)

    def value(self, X: Floats) -> Floats:
        return np.asarray(sum(term.value(X) for term in self.terms))

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        values, slopes = zip(*(term.gradient(X) for term in self.terms), strict=True)
        return np.asarray(sum(values)), np.asarray(sum(slopes))
