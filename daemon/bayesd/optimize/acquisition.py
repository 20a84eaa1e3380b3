"""Expected improvement in log space, with tails that never become flat.

Notation (minimisation; arrays broadcast)
    mean, sd    posterior mean and standard deviation of a candidate
    best        the incumbent: what an improvement has to beat
    z           (best - mean) / sd
    h(z)        phi(z) + z Phi(z), so that EI = sd h(z)

Far from the incumbent EI underflows to zero and has no gradient. Its logarithm has one everywhere:
Ament et al., "Unexpected improvements to expected improvement" (2023), equation 9.
"""

import math
from typing import Any

import numpy as np
from scipy.special import erfcx, ndtr

from bayesd.optimize.streams import Floats

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF_PI = math.sqrt(math.pi / 2)
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
