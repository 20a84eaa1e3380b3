"""A random forest as an immutable value: the model for large spaces of mostly categories and conditions.

Notation (that of `kernel`, and)
    z  (n,)     standardised outcomes, lower is better
    T           trees
    C  (n, d)   what the trees see of X: its numeric columns and flags as they are, and one column for
                every category, d = D - h + number of categories
    leaves (T, b)   the leaf of each tree that a row falls into

A forest averages trees that were grown with chance in them (Breiman, "Random forests", 2001): each
on rows drawn with replacement, and here with cuts that are drawn too, evenly over the range of the
rows at hand, the best column of which is split (Geurts, Ernst and Wehenkel, "Extremely randomized
trees", 2006). As the model of a search it is that of SMAC (Hutter, Hoos and Leyton-Brown, "Sequential
model-based optimization for general algorithm configuration", 2011). It has no gradient and no
hyperparameters to fit, and its cost grows as n log n up to `SAMPLE_MAX` rows and hardly beyond.

The choices of a category stand in C in the order of their mean outcome, so that one cut parts the
good from the bad; for a single split no subset of choices does better (Breiman, Friedman, Olshen
and Stone, "Classification and regression trees", 1984). One-hot columns, of which a split sees one
choice at a time, predicted worse on most spaces with categories and took longer.

Tried on tabulated, surrogate and synthetic tasks, and left out: trees on all rows, which are sure of
themselves at data and got stuck; half of the columns for each split; leaves of two or three rows.

No sum goes through BLAS, so a forest is the same to the last bit under every one of its kernels
and thread counts. Another release of scikit-learn may grow other trees.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesd.optimize.encode import ONE_HOT, Ints
from bayesd.optimize.kernel import Design
from bayesd.optimize.streams import Floats, Stream

DECIMALS = 8            # of the outcomes, as the trees see them
TREES = 30
SAMPLE_MAX = 1000       # rows that each tree draws at most
BELIEVED = 3.0          # weight of an appended row: at 1 the forest is hardly surer where it was told its own mean
FLOOR = 0.01            # least variance within a leaf, as in Hutter et al. 2014, section 11.3
NOISE_UNIT = 0.1        # a row with this variance of its own weighs half
LENGTH = 0.5            # of all numeric columns: distances only serve to keep starts apart


@dataclass(frozen=True)
class Forest:
    """What is believed after some data. `condition` returns a new one."""

    design: Design
    X: Floats
    z: Floats
    order: Floats
    """(h,) place of each choice among those of its category, in (0, 1]; an inactive one is at 0."""
    trees: tuple[Any, ...]
    """scikit-learn's `Tree` objects, for their structure alone."""
    first: Ints
    """(T, 1) where each tree's nodes begin in the arrays below."""
    count: Floats
    mean: Floats
    variance: Floats
    """(nodes,) weight, mean and variance of the outcomes in each node, tree after tree."""

    @classmethod
    def of(cls, design: Design, X: Floats, z: Floats, se2: Floats, seed: int) -> "Forest":
        """The forest of some data, with known noise variances `se2` (n,); the same for the same arguments."""
        # Late: this import takes as long as twenty forests, and a study with another model needs none.
        from sklearn.ensemble import ExtraTreesRegressor

        # A tree splits where the gain is largest, and the gain of two splits is often the same but for the last bit
        # of an outcome, which another machine's logarithm may have otherwise.
        z = np.round(z, DECIMALS)
        n = len(z)
        order = _order(design, X, z)
        model = ExtraTreesRegressor(TREES, bootstrap=True, max_samples=min(n, SAMPLE_MAX), n_jobs=1,
                                    random_state=Stream(seed, n, "forest").integer(2**32))
        model.fit(_seen(design, order, X), z, sample_weight=NOISE_UNIT / (NOISE_UNIT + se2) if se2.any() else None)
        trees = tuple(tree.tree_ for tree in model.estimators_)
        first = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])[:, None]
        return cls(design, X, z, order, trees, first,
                   np.concatenate([tree.weighted_n_node_samples for tree in trees]),
                   np.concatenate([tree.value[:, 0, 0] for tree in trees]),
                   np.concatenate([tree.impurity for tree in trees]))

    def condition(self, X: Floats, z: Floats) -> "Forest":
        """Append rows without growing the trees again: each counts in its leaf of every tree.

        Growing them again takes as long as the first time, at every proposal while trials are pending
        or have failed.
        """
        leaves, size = self.leaves(X).ravel(), len(self.mean)
        each = np.tile(z, len(self.trees))
        count = self.count + BELIEVED * np.bincount(leaves, minlength=size)
        mean = (self.count * self.mean + BELIEVED * np.bincount(leaves, each, size)) / count
        squares = self.count * (self.variance + self.mean**2) + BELIEVED * np.bincount(leaves, each * each, size)
        return Forest(self.design, np.vstack([self.X, X]), np.concatenate([self.z, z]), self.order, self.trees,
                      self.first, count, mean, np.maximum(squares / count - mean * mean, 0.0))

    def leaves(self, X: Floats) -> Ints:
        """(T, b) nodes of the rows of X (b, D)."""
        C = _seen(self.design, self.order, X)
        return np.stack([tree.apply(C) for tree in self.trees]) + self.first

    def predict(self, X: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of each row, by the law of total variance over the trees: the mean of the
        variances in their leaves, plus the variance of the leaves' means (Hutter, Xu, Hoos and
        Leyton-Brown, "Algorithm runtime prediction: methods & evaluation", 2014, section 11.3)."""
        leaves = self.leaves(X)
        means = self.mean[leaves]
        within = np.maximum(self.variance[leaves], FLOOR)
        return np.asarray(means.mean(axis=0)), np.asarray(within.mean(axis=0) + means.var(axis=0))

    @cached_property
    def means(self) -> Floats:
        """(n,) mean at the data."""
        return self.predict(self.X)[0]

    @property
    def lengths(self) -> Floats:
        """(m,) length scales of the numeric columns."""
        return np.full(self.design.m, LENGTH)

    def embedded(self, X: Floats) -> Floats:
        """(n, D) coordinates for distances: two choices are 1 apart, as are numbers half the range apart."""
        S = X.copy()
        S[:, :self.design.m] /= LENGTH
        return S


def _starts(design: Design) -> Ints:
    """(number of categories,) first one-hot column of each."""
    columns = np.bincount(design.owner[design.m + len(design.arcs):], minlength=design.of.p)[design.choices]
    return np.asarray(np.cumsum(columns) - columns)


def _order(design: Design, X: Floats, z: Floats) -> Floats:
    """(h,) rank of each choice by mean outcome. One that was never tried counts as average."""
    tried = X[:, design.m:design.m + design.one_hot] > 0
    centred = z - z.mean()
    sums = np.array([centred[column].sum() for column in tried.T])
    means = sums / (tried.sum(axis=0) + 1)
    order = np.empty(design.one_hot)
    starts = _starts(design).tolist()
    for start, end in zip(starts, [*starts, design.one_hot][1:], strict=True):
        by_mean = start + np.argsort(np.round(means[start:end], DECIMALS), kind="stable")
        order[by_mean] = np.arange(1, end - start + 1) / (end - start)
    return order


def _seen(design: Design, order: Floats, X: Floats) -> NDArray[np.float32]:
    """C, in the precision of scikit-learn's trees."""
    m, h = design.m, design.one_hot
    if not h:
        return np.ascontiguousarray(X, dtype=np.float32)
    places = np.maximum.reduceat(X[:, m:m + h] * (order / ONE_HOT), _starts(design), axis=1)
    return np.hstack([X[:, :m], places, X[:, m + h:]]).astype(np.float32)
