"""How the error of a race is shared out among its looks.

A trial that would just tie with the incumbent is behind it after one fold or another by chance alone, and every look is
an occasion to stop it wrongly. So each look k of n folds may spend a part of the stated error, in proportion to the
folds that a stop there saves, n - k: the sum over looks is the error (Lan and DeMets 1983, Discrete sequential
boundaries for clinical trials, Biometrika 70). A part is spent by those alone that came through all looks before, which
is where looks that depend on each other leave room that Bonferroni's inequality gives away.

Of a trial that ties in the end the mean of the first k differences, over its standard error with finite population
correction (paired.py), is a standardised Brownian bridge at k/n, that is Brownian motion at u = k/(n - k) over its
root. The boundaries follow by recursive numerical integration (Armitage, McPherson and Rowe 1969, Repeated significance
tests on accumulating data, JRSS A 132). They are rounded, so that machines agree.
"""

from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

LOOKS_MAX = 30         # of one trial: looks are spread when there are more folds
GRID = 301             # points of the density of those that are still in the race
REACH = 8.0            # standard deviations that it covers
HALVINGS = 40          # of the interval that holds a boundary
DIGITS = 4             # of a boundary
ERROR_MIN = 1e-9       # less than this cannot be shared out in double precision: then nobody is stopped by chance


@lru_cache(maxsize=256)
def boundaries(count: int, min_folds: int, error: float) -> dict[int, float]:
    """Look, in folds -> the chance below which a trial is stopped there. There is none at all `count` folds."""
    looks = np.unique(np.linspace(min_folds, count - 1, min(LOOKS_MAX, count - min_folds)).round().astype(int))
    if error < ERROR_MIN:
        return dict.fromkeys(looks.tolist(), 0.0)
    parts = error * (count - looks) / (count - looks).sum()
    times = looks / (count - looks)
    out: dict[int, float] = {}
    mass = np.zeros(0)
    places = np.zeros(0)
    before = 0.0
    for look, part, time in zip(looks.tolist(), parts.tolist(), times.tolist(), strict=True):
        root = float(np.sqrt(time))
        step = float(np.sqrt(time - before))
        if not before:
            limit = -float(ndtri(part)) * root
        else:
            low, limit = -REACH * root, REACH * root
            for _ in range(HALVINGS):
                middle = (low + limit) / 2
                if float(mass @ ndtr((places - middle) / step)) > part:
                    low = middle
                else:
                    limit = middle
        still = np.linspace(-REACH * root, limit, GRID)
        arrived = (np.exp(-0.5 * ((still[:, None] - places) / step) ** 2) @ mass if before
                   else np.exp(-0.5 * (still / step) ** 2)) / (step * np.sqrt(2 * np.pi))
        weights = np.full(GRID, still[1] - still[0])
        weights[[0, -1]] /= 2
        mass, places, before = arrived * weights, still, time
        out[look] = float(f"{float(ndtr(-limit / root)):.{DIGITS}g}")
    return out
