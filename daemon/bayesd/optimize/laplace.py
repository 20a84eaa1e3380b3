"""Other hyperparameters that the data allow beside the fitted ones.

A fit is one point of a posterior that is wide while results are few, and a model at that one point is surer than
anybody can be. Laplace's approximation (MacKay, "A practical Bayesian framework for backpropagation networks", 1992;
Rasmussen and Williams, section 5.5.1 has the matrix): a normal distribution round the maximum a posteriori, with the
inverse of the matrix of second derivatives as its covariance. That matrix is taken from differences of the exact
gradient. A draw that the posterior likes much less than the approximation does is taken nearer to the fit.
"""

import numpy as np
from scipy.linalg.lapack import dpotrf, dtrtrs

from bayesd.optimize.kernel import Design
from bayesd.optimize.posterior import DECIMALS, negative_log_posterior
from bayesd.optimize.streams import Floats

STEP = 1e-3             # of a logarithm
SLACK = 3.0             # of -log p: by how much a draw may be less likely than the approximation has it
HALVINGS = 4

Theta = tuple[float, ...]


def draws(design: Design, theta: Theta, X: Floats, z: Floats, se2: Floats, normal: Floats) -> list[Theta]:
    """A theta, rounded as fits are, for each row of standard normal numbers (k, size). X (n, D), z and se2 (n,) are
    what `theta` was fitted to."""
    _, sd, low, high = design.prior
    centre = np.clip(np.array(theta), low, high)

    def value(at: Floats) -> tuple[float, Floats]:
        return negative_log_posterior(design, at, X, z, se2)

    best, slope = value(centre)
    H = np.array([(value(centre + step)[1] - slope) / STEP for step in STEP * np.eye(len(centre))])
    factor = _factor((H + H.T) / 2, 1 / sd**2)
    out = []
    for row in normal:
        moved = dtrtrs(factor, row, lower=1, trans=1)[0]
        for _ in range(HALVINGS):
            at = np.round(np.clip(centre + moved, low, high), DECIMALS)
            if value(at)[0] - best <= 0.5 * float(row @ row) + SLACK:
                break
            moved, row = moved / 2, row / 2
        else:
            at = np.round(centre, DECIMALS)
        out.append(tuple((at + 0.0).tolist()))
    return out


def _factor(H: Floats, prior: Floats) -> Floats:
    """Lower Cholesky factor of the matrix; where the fit is no maximum, with more of the prior in it."""
    for more in (0.0, 1.0, 10.0):
        L, info = dpotrf(H + more * np.diag(prior), lower=1, clean=1)
        if info == 0 and float(np.min(np.diagonal(L) ** 2 / prior)) >= 0.5:
            return np.asarray(L)
    return np.asarray(np.diag(np.sqrt(np.maximum(np.diagonal(H), prior))))
