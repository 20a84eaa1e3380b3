"""Results of earlier studies in the model of this one: what they expect, as far as it is borne out, and where to begin.

Notation
    z  (n,)     transformed outcomes of this study, lower is better
    f  (n, k)   what the models of k earlier studies expect at its points, each less its mean over them
    w  (k,)     what they weigh: outcomes are w f plus a Gaussian process of the rest
    K, L        covariance of the rest, and its Cholesky factor

The rest is learned as if it were the outcomes ("transfer learning" of Golovin et al., "Google Vizier", 2017, section
3.3), so where this study has results it goes by them. The weights are generalised least squares, not negative (Lawson
and Hanson 1974), with a guess beforehand that counts for PRIOR of evidence and says that the sources are right. So a
source in other units is scaled, one that has nothing to do with this study falls to 0, and one that ranks the results
the wrong way round is dropped at once. On top of that a weight falls by FADE / (FADE + n): what is left of a landscape
that is like this one, but not this one, is harder to learn than this one (figures in README.md).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg.lapack import dtrtrs
from scipy.optimize import nnls

from bayesd.optimize import outcomes
from bayesd.optimize.belief import trust
from bayesd.optimize.encode import Cube, Ints, cube
from bayesd.optimize.kernel import CHOICES_MAX, Design
from bayesd.optimize.posterior import Posterior, fit
from bayesd.optimize.streams import Floats
from bayesd.optimize.transfer import Earlier, Stacked, Weighed, said_by
from bayesd.study.problem import Problem, Source
from bayesd_schemas.space import Params, Space

ROWS_MAX = 150      # of a source
LEAST = 3           # rows from which a source is a model; fewer are points to try and nothing else
PRIOR = 1.0         # weight of the guess that a source is right, in squared deviations
FADE = 4            # results at which a source counts half
SMALLEST = 0.1      # weight below which a source is left out
DECIMALS = 2        # of a weight, so that it survives another machine's last bits
APART = 0.1         # least distance of the points that are tried first, in diagonals of the cube


def posterior_of(problem: Problem, design: Design, theta: tuple[float, ...], X: Floats, z: Floats,
                 se2: Floats) -> Posterior | Stacked:
    """The posterior of outcomes at a given theta, with the sources that count. Raises `NotPositiveDefinite`."""
    sources = weighed(problem, design, theta, X, z, se2)
    if not sources:
        return Posterior.of(design, theta, X, z, se2)
    return Stacked(Posterior.of(design, theta, X, z - said_by(sources, X), se2), sources)


def rest_of(problem: Problem, design: Design, theta: tuple[float, ...], X: Floats, z: Floats, se2: Floats) -> Floats:
    """(n,) what the sources leave of z, if they weigh what they do at this theta: what the next theta is fitted to."""
    return z - said_by(weighed(problem, design, theta, X, z, se2), X)


def weighed(problem: Problem, design: Design, theta: tuple[float, ...], X: Floats, z: Floats,
            se2: Floats) -> tuple[Weighed, ...]:
    """Sources with a weight above 0, each with its mean over the data. With several objectives there is none: the
    trade-off of a trial is no quantity that an earlier study measured."""
    if not problem.sources or len(problem.directions) > 1:
        return ()
    held = [found for source in problem.sources if (found := earlier(problem.space, source)) is not None]
    if not held:
        return ()
    f = np.column_stack([source.mean(X) for source in held])
    centres = f.mean(axis=0)
    f -= centres
    trusts = np.array([trust(-f[:, i], z) for i in range(len(held))])
    L = Posterior.of(design, theta, X, z, se2).L
    white = dtrtrs(L, np.column_stack([f, z - z.mean()]), lower=1)[0]
    k, guess = len(held), math.sqrt(PRIOR)
    found, _ = nnls(np.vstack([white[:, :k], guess * np.eye(k)]),
                    np.concatenate([white[:, k], np.full(k, guess / k)]))
    weights = [round(float(each), DECIMALS) for each in found * trusts * (FADE / (FADE + len(z)))]
    return tuple((source, weight, float(centre))
                 for source, weight, centre in zip(held, weights, centres, strict=True) if weight >= SMALLEST)


def earlier(space: Space, source: Source) -> Earlier | None:
    """The model of an earlier study; None while it has too few results. A few are kept: it is the same one at
    every suggestion of a study."""
    return _earlier(_Key(cube(space), source)) if len(source.rows) >= LEAST else None


@dataclass(frozen=True)
class _Key:
    """A source over a cube, compared by what they are."""

    of: Cube
    source: Source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.source == other.source and Design(self.of).model == Design(
            other.of).model

    def __hash__(self) -> int:
        return hash((self.source.study, len(self.source.rows), Design(self.of).model))


@lru_cache(maxsize=16)
def _earlier(key: _Key) -> Earlier:
    design = Design(key.of)
    U = key.of.encode([params for params, _ in key.source.rows])
    z = outcomes.transform(np.array([cost for _, cost in key.source.rows]), False).z
    rows = _telling(z)
    keep = _known_columns(design, key.source.silent)
    X, z, none = design.features(U[rows]) * keep, z[rows], np.zeros(len(rows))
    return Earlier(key.source.study, Posterior.of(design, fit(design, X, z, none, None), X, z, none), keep)


def _telling(z: Floats) -> Ints:
    """Rows to model when there are too many: the best half of them, and an even stride of the others."""
    if len(z) <= ROWS_MAX:
        return np.arange(len(z))
    order = np.argsort(z, kind="stable")
    half = ROWS_MAX // 2
    others = order[half:][np.linspace(0, len(z) - half - 1, ROWS_MAX - half).astype(np.int64)]
    return np.sort(np.concatenate([order[:half], others]))


def _known_columns(design: Design, silent: frozenset[str]) -> Floats:
    """(D,) 0 for every column of these parameters."""
    axes = design.of.axes
    numeric = [axes[j].name not in silent for j in design.numeric]
    choices = [axes[j].name not in silent for j in design.choices for _ in range(min(axes[j].cells, CHOICES_MAX))]
    return np.array([*numeric, *choices, *(numeric[column] for column in design.arcs)], dtype=np.float64)


def starts(problem: Problem) -> list[tuple[str, Params]]:
    """Points to try first, each with its study: the best of every source that are not near each other, in turns."""
    of, taken = cube(problem.space), list[Floats]()
    queues = [_best(of, source, taken) for source in problem.sources]
    return [(problem.sources[at].study, queue[turn]) for turn in range(max(map(len, queues), default=0))
            for at, queue in enumerate(queues) if turn < len(queue)]


def _best(of: Cube, source: Source, taken: list[Floats]) -> list[Params]:
    """The best points of one source, apart from each other and from those taken before."""
    if source.silent or not source.rows:      # such a point is none of this space
        return []
    order = sorted(range(len(source.rows)), key=lambda row: source.rows[row][1])
    U = of.pin(of.encode([source.rows[row][0] for row in order]))
    out: list[Params] = []
    for row, u in zip(order, U, strict=True):
        if len(out) == source.points:
            break
        if all(float(np.sum((u - other) ** 2)) > of.p * APART**2 for other in taken):
            taken.append(u)
            out.append(source.rows[row][0])
    return out
