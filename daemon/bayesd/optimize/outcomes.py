"""What was measured, as numbers a Gaussian process can live with.

Notation
    y    (n,)  outcomes in metric units
    x    (n,)  outcomes turned to minimisation, centred and scaled
    t    (n,)  x after the power transform of Yeo and Johnson (2000)
    z    (n,)  t standardised: what the surrogate sees

Scale comes before power, and it is a robust scale. If one diverged run of 1e6 set the scale, all
good outcomes would collapse into one value and the model would be blind exactly where it matters.
"""

import math
from dataclasses import dataclass

import numpy as np

from bayesd.optimize.streams import Floats

# A fixed grid is ten times cheaper than a line search, and its answer survives the last bits.
_LAMBDAS = np.arange(-20, 21) / 10
_SAMPLE = 400
AUGMENT = 0.05          # weight of the plain sum in the scalarisation, as in ParEGO


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Transformed outcomes of one objective, and the way back."""

    z: Floats
    sign: float
    unit: float
    centre: float
    scale: float
    lam: float
    shift: float
    spread: float
    reach: tuple[float, float]
    """Range of x that is worth reporting: the data's, and as much again on both sides."""

    def metric(self, z: Floats) -> Floats:
        """Metric units of standardised values. Quantiles go to quantiles, not means to means."""
        x = _yeo_johnson_inverse(z * self.spread + self.shift, self.lam)
        x = np.clip(np.nan_to_num(x, nan=self.reach[1], posinf=self.reach[1], neginf=self.reach[0]), *self.reach)
        # unit last: with values of 1e300 the product of the others stays small.
        with np.errstate(over="ignore"):
            return np.asarray(np.clip(self.sign * (x * self.scale + self.centre) * self.unit, -1e300, 1e300))

    def standard(self, y: Floats) -> Floats:
        """Standardised values of metric units."""
        x = (self.sign * np.asarray(y, dtype=np.float64) / self.unit - self.centre) / self.scale
        return (yeo_johnson(x, self.lam) - self.shift) / self.spread

    def metric_sd(self, mean: Floats, sd: Floats) -> Floats:
        """Half the width, in metric units, of one deviation to both sides."""
        return np.abs(self.metric(mean + sd) / 2 - self.metric(mean - sd) / 2)

    def slope(self, z: Floats) -> Floats:
        """dt/dx of the power transform at standardised values."""
        x = _yeo_johnson_inverse(z * self.spread + self.shift, self.lam)
        return np.asarray((1 + np.abs(x)) ** np.where(x >= 0, self.lam - 1, 1 - self.lam))

    def variance(self, se: Floats) -> Floats:
        """Known standard errors (metric units) as variances of z, to first order."""
        slope = self.slope(self.z)
        # The ratio may exceed any number; above 100 deviations an observation says nothing anyway.
        with np.errstate(over="ignore"):
            return np.asarray(np.minimum(se / self.unit / self.scale * slope / self.spread, 100.0) ** 2)


def transform(y: Floats, maximize: bool) -> Outcomes:
    """Transformed outcomes of trials that ended well, one at least."""
    sign = -1.0 if maximize else 1.0
    # Dividing by the largest first keeps every square below overflow.
    unit = max(float(np.max(np.abs(y))) or 1.0, 1e-300)
    x = sign * y / unit
    sd = float(np.std(x))
    centre = float(np.median(x))
    if sd < 1e-14:      # constant up to rounding: nothing to learn from the outcomes
        return Outcomes(np.zeros_like(x), sign, unit, centre, 1.0, 1.0, 0.0, 1.0, (0.0, 0.0))
    better = x[x <= centre] - centre
    rms = math.sqrt(float(np.mean(better**2)))
    scale = max(min(sd, 5 * rms), 1e-9 * sd) if rms > 0 else sd
    x = (x - centre) / scale
    # A few hundred order statistics say as much about the power as all of them.
    lam = _likeliest(x if len(x) <= _SAMPLE else np.sort(x)[np.linspace(0, len(x) - 1, _SAMPLE).astype(np.int64)])
    t = yeo_johnson(x, lam)
    shift, spread = float(np.mean(t)), float(np.std(t)) or 1.0
    width = float(np.ptp(x))
    return Outcomes((t - shift) / spread, sign, unit, centre, scale, lam, shift, spread,
                    (float(np.min(x)) - width, float(np.max(x)) + width))


def scalarise(values: Floats, maximize: tuple[bool, ...], weights: Floats) -> Floats:
    """One number an evaluation from several objectives (n, k): lower is better.

    The augmented Tchebycheff function of ParEGO (Knowles 2006, equation 2) over objectives that
    are normalised to [0, 1] by the observed range.
    """
    f = np.where(maximize, -1.0, 1.0) * (values / np.maximum(np.max(np.abs(values), axis=0), 1e-300))
    low = np.min(f, axis=0)
    f = (f - low) / np.maximum(np.max(f, axis=0) - low, 1e-300)
    return np.asarray(np.max(weights * f, axis=1) + AUGMENT * (f @ weights), dtype=np.float64)


def yeo_johnson(x: Floats, lam: float) -> Floats:
    """Yeo and Johnson (2000), equation 2.1."""
    size = np.log1p(np.abs(x))
    up = size if abs(lam) < 1e-9 else np.expm1(lam * size) / lam
    down = size if abs(lam - 2) < 1e-9 else np.expm1((2 - lam) * size) / (2 - lam)
    return np.where(x >= 0, up, -down)


def _yeo_johnson_inverse(t: Floats, lam: float) -> Floats:
    with np.errstate(all="ignore"):     # values outside the transform's range become NaN on purpose
        up = np.expm1(np.abs(t)) if abs(lam) < 1e-9 else np.expm1(np.log1p(lam * np.abs(t)) / lam)
        down = np.expm1(np.abs(t)) if abs(lam - 2) < 1e-9 else np.expm1(np.log1p((2 - lam) * np.abs(t)) / (2 - lam))
        return np.where(t >= 0, up, -down)


def _likeliest(x: Floats) -> float:
    """The power of highest likelihood (Yeo and Johnson 2000, equation 3.1) on a fixed grid."""
    size = np.log1p(np.abs(x))
    jacobian = float(np.sum(np.sign(x) * size))
    powers = _LAMBDAS[:, None]
    # All powers at once; the two of them at which a branch is a logarithm are written over.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(x >= 0, np.expm1(powers * size) / powers, -np.expm1((2 - powers) * size) / (2 - powers))
    for at in (_LAMBDAS == 0.0).nonzero()[0].tolist() + (_LAMBDAS == 2.0).nonzero()[0].tolist():
        t[at] = yeo_johnson(x, float(_LAMBDAS[at]))
    likelihood = -len(x) * np.log(np.maximum(np.std(t, axis=1), 1e-300)) + (_LAMBDAS - 1) * jacobian
    return float(_LAMBDAS[int(np.argmax(likelihood))])
