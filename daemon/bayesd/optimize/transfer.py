"""A model that stands on earlier ones: what earlier studies expect, each with a weight, and a posterior of the rest.

It is used as a `Posterior` is. What the weights are, and why, is in `sources`.
"""

from dataclasses import dataclass, replace

import numpy as np

from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.streams import Floats

Weighed = tuple["Earlier", float, float]
"""An earlier model, its weight, and its mean over the data of this study."""


@dataclass(frozen=True)
class Earlier:
    """The model of one earlier study over this space."""

    study: str
    posterior: Posterior
    keep: Floats
    """(D,) 1 for feature columns that it knows of, 0 for those of parameters that it did not have."""

    def mean(self, X: Floats) -> Floats:
        """(n,) what it expects at features (n, D), in its own standardised units."""
        return self.posterior.predict(X * self.keep)[0]

    def slope(self, X: Floats) -> tuple[Floats, Floats]:
        """The mean and its derivatives (n, m) in the numeric columns."""
        mean, _, slope, _ = self.posterior.predict_gradient(X * self.keep)
        return mean, slope * self.keep[:slope.shape[1]]


@dataclass(frozen=True)
class Stacked:
    """A posterior of the rest, and what is expected without it. Used as a `Posterior` is."""

    rest: Posterior
    sources: tuple[Weighed, ...]

    @property
    def design(self) -> Design:
        return self.rest.design

    @property
    def lengths(self) -> Floats:
        return self.rest.lengths

    def embedded(self, X: Floats) -> Floats:
        return self.rest.embedded(X)

    @property
    def means(self) -> Floats:
        """(n,) mean at the data."""
        return np.asarray(self.rest.means + self.said(self.rest.X))

    def said(self, X: Floats) -> Floats:
        """(n,) the part of the mean that comes from the sources."""
        return said_by(self.sources, X)

    def condition(self, X: Floats, z: Floats) -> "Stacked":
        return replace(self, rest=self.rest.condition(X, z - self.said(X)))

    def predict(self, X: Floats) -> tuple[Floats, Floats]:
        mean, variance = self.rest.predict(X)
        return mean + self.said(X), variance

    def joint(self, X: Floats) -> tuple[Floats, Floats]:
        mean, covariance = self.rest.joint(X)
        return mean + self.said(X), covariance

    def predict_gradient(self, X: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        mean, variance, d_mean, d_variance = self.rest.predict_gradient(X)
        for source, weight, centre in self.sources:
            value, slope = source.slope(X)
            mean = mean + weight * (value - centre)
            d_mean = d_mean + weight * slope
        return mean, variance, d_mean, d_variance

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        return tuple((source.study, weight) for source, weight, _ in self.sources)


def said_by(sources: tuple[Weighed, ...], X: Floats) -> Floats:
    """(n,) the sum of what earlier models say at features (n, D), by their weights."""
    out = np.zeros(len(X))
    for source, weight, centre in sources:
        out += weight * (source.mean(X) - centre)
    return out
