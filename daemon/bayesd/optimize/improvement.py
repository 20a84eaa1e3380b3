"""Expected improvement of a hypervolume, in log space: how much a point is worth to a front.

Notation (that of `hypervolume` and `acquisition`, and)
    [l, u]          a box of the open region, of which there are b
    psi_j           E max(0, u_j - max(l_j, y_j)) = EI(u_j) - EI(l_j), for independent objectives y_j
    EHVI            sum over boxes of the product over objectives of psi_j

(Yang, Emmerich, Deutz and Bäck, "Efficient computation of expected hypervolume improvement using box decomposition
algorithms", 2019, equation 14; in logarithms as in Ament et al. 2023, section 4.2.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import log_ndtr

from bayesd.optimize.acquisition import Model, log_h
from bayesd.optimize.encode import Ints
from bayesd.optimize.hypervolume import Boxes
from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import Posterior
from bayesd.optimize.streams import Floats

BLOCK = 2**20       # numbers in one table of candidates by boxes
_LEAST = 1e-14      # of a difference of logarithms: a box that is thinner has only rounding errors


@dataclass(frozen=True)
class HypervolumeImprovement:
    """log EHVI of independent models of the objectives, over disjoint boxes of the region that is still open."""

    posteriors: tuple[Model, ...]
    boxes: Boxes

    @property
    def design(self) -> Design:
        return self.posteriors[0].design

    @property
    def smooth(self) -> bool:
        return all(isinstance(posterior, Posterior) for posterior in self.posteriors)

    @property
    def lengths(self) -> Floats:
        """(m,) the shortest of the objectives' length scales: one that is left leaves the part that was modelled."""
        return np.asarray(np.min([posterior.lengths for posterior in self.posteriors], axis=0))

    def embedded(self, X: Floats) -> Floats:
        return np.hstack([posterior.embedded(X) for posterior in self.posteriors])

    @cached_property
    def _sides(self) -> tuple[tuple[Floats, Ints, Ints, Ints], ...]:
        """Of each objective: (e,) edges, the places of the lower and upper one of each side, and (b,) the side of
        each box. Many boxes share a side."""
        out = []
        for low, high in zip(self.boxes[0].T, self.boxes[1].T, strict=True):
            edges, at = np.unique(np.concatenate([low, high]), return_inverse=True)
            pairs, side = np.unique(at.reshape(2, -1).T, axis=0, return_inverse=True)
            out.append((edges, pairs[:, 0], pairs[:, 1], side.reshape(-1)))
        return tuple(out)

    def value(self, X: Floats) -> Floats:
        """(n,) of features (n, D)."""
        beliefs = [posterior.predict(X) for posterior in self.posteriors]
        rows = max(1, BLOCK // len(self.boxes[0]))
        return np.concatenate([self._of([(mean[i:i + rows], variance[i:i + rows]) for mean, variance in beliefs])
                               for i in range(0, len(X), rows)])

    def _of(self, beliefs: list[tuple[Floats, Floats]]) -> Floats:
        total = sum(_psi(mean, variance, *sides[:3])[0][:, sides[3]]
                    for (mean, variance), sides in zip(beliefs, self._sides, strict=True))
        return _summed(np.asarray(total))[0]

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""
        parts, slopes = [], []
        for posterior, sides in zip(self.posteriors, self._sides, strict=True):
            assert isinstance(posterior, Posterior)
            mean, variance, d_mean, d_variance = posterior.predict_gradient(X)
            parts.append(_psi(mean, variance, *sides[:3]))
            slopes.append((d_mean, d_variance))
        value, share = _summed(np.asarray(sum(part[0][:, sides[3]]
                                              for part, sides in zip(parts, self._sides, strict=True))))
        out = np.zeros_like(slopes[0][0])
        for (_, by_mean, by_variance), (d_mean, d_variance), sides in zip(parts, slopes, self._sides, strict=True):
            n, s = by_mean.shape
            # The boxes' shares, summed over the boxes of each side.
            place = (np.arange(n)[:, None] * s + sides[3]).reshape(-1)
            weight = np.bincount(place, weights=share.reshape(-1), minlength=n * s).reshape(n, s)
            out += np.sum(weight * by_mean, axis=1)[:, None] * d_mean
            out += np.sum(weight * by_variance, axis=1)[:, None] * d_variance
        return value, out


def _summed(total: Floats) -> tuple[Floats, Floats]:
    """log of the sum of exp over the last axis (n,), and each one's share of the sum (n, b)."""
    top = np.max(total, axis=1, keepdims=True)
    share = np.exp(total - top)
    size = np.sum(share, axis=1, keepdims=True)
    return (top + np.log(size))[:, 0], share / size


def _psi(mean: Floats, variance: Floats, edges: Floats, low: Ints, high: Ints) -> tuple[Floats, Floats, Floats]:
    """log psi of every side (n, s), and its derivatives by mean and variance."""
    sd = np.sqrt(variance)[:, None]
    finite = np.isfinite(edges)
    z = (np.where(finite, edges, 0.0) - mean[:, None]) / sd
    log_size, slope = log_h(z)
    log_size = np.where(finite, log_size + np.log(sd), -np.inf)
    by_mean, by_variance = -slope / sd, (1 - slope * z) / (2 * sd * sd)
    apart = np.minimum(log_size[:, low] - log_size[:, high], -_LEAST)
    ratio, rest = np.exp(apart), -np.expm1(apart)
    return (log_size[:, high] + np.log(rest), (by_mean[:, high] - ratio * by_mean[:, low]) / rest,
            (by_variance[:, high] - ratio * by_variance[:, low]) / rest)


@dataclass(frozen=True)
class Feasible:
    """log of the probability that an outcome keeps a limit (Schonlau 1997; Gelbart et al. 2014)."""

    posterior: Model
    most: float
    """The limit, in the units of the model: less is within it."""

    @property
    def design(self) -> Design:
        return self.posterior.design

    @property
    def smooth(self) -> bool:
        return isinstance(self.posterior, Posterior)

    @property
    def lengths(self) -> Floats:
        return self.posterior.lengths

    def embedded(self, X: Floats) -> Floats:
        return self.posterior.embedded(X)

    def value(self, X: Floats) -> Floats:
        """(n,) of features (n, D)."""
        mean, variance = self.posterior.predict(X)
        return np.asarray(log_ndtr((self.most - mean) / np.sqrt(variance)))

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""
        assert isinstance(self.posterior, Posterior)
        mean, variance, d_mean, d_variance = self.posterior.predict_gradient(X)
        sd = np.sqrt(variance)
        z = (self.most - mean) / sd
        value = np.asarray(log_ndtr(z))
        slope = np.exp(-0.5 * z * z - 0.5 * np.log(2 * np.pi) - value)
        return value, slope[:, None] * (-d_mean / sd[:, None] - (z / (2 * variance))[:, None] * d_variance)
