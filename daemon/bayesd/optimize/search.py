"""Where the acquisition function is highest: a sweep, a climb, and moves of one coordinate.

Notation
    U (n, p)    candidates in the unit cube, a number for every parameter, active or not
    X (n, D)    their features

The sweep looks everywhere and around the best data points, the climb refines the few best
candidates along their real axes, and the moves change one discrete axis at a time, which no
gradient can. Where the target has no gradient at all, Gaussian steps along the real axes join the
moves, in place of the climb (after the local search of SMAC, Hutter et al. 2011). Points that are
known or not allowed are left out before the sweep, not after it: in a small space every top
candidate would be one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtri

from bayesd.optimize import sobol
from bayesd.optimize.encode import Bools, Cube, Ints
from bayesd.optimize.kernel import Design
from bayesd.optimize.streams import Floats, Stream, Words

EVERYWHERE = 640        # shifted Sobol points of the sweep
AROUND = 384            # perturbations of the best data points
STARTS = 8
CLIMBS = 8              # steps of the climb
ROUNDS = 3              # rounds of one-coordinate moves
STEP_ROUNDS = 8         # of moves and random steps, where there is no climb
STEPS = 24              # random steps from each candidate in one round
SWEEP_BITS = 20         # grid of the candidates
CLIMB_BITS = 18         # grid of climbed points: coarser, because a climb gathers rounding errors
FEW = 12                # an axis of at most this many cells is tried in full
CURVED_MAX = 100        # more numeric axes than this climb along the gradient alone
MOVES_MAX = 2000        # in one round; with more discrete axes than that allows, each round draws some
FEATURES_MAX = 2**20    # numbers in the features of candidates judged at once
RELAXED = 20            # an ordered axis of more cells than this also takes part in the climb

_STEPS = np.array([1.0, 0.25, 0.0625])


class Target(Protocol):
    """What is to be made as large as possible."""

    @property
    def design(self) -> Design: ...

    @property
    def smooth(self) -> bool:
        """Whether it has a gradient that a climb can follow."""

    @property
    def lengths(self) -> Floats:
        """(m,) distances in the numeric columns over which it changes."""

    def embedded(self, X: Floats) -> Floats:
        """Coordinates in which a distance of 1 is a long one."""

    def value(self, X: Floats) -> Floats:
        """(n,)"""

    def gradient(self, X: Floats) -> tuple[Floats, Floats]:
        """Value (n,) and its derivatives (n, m) in the numeric columns."""


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates in falling order of acquisition, none of them known."""

    U: Floats
    acquisition: Floats


def maximise(target: Target, stream: Stream, centres: Floats, known: Floats,
             judge: Callable[[Cube, Floats], Bools] | None = None, beside: Floats | None = None) -> Found:
    """Search for the highest value.

    `centres` are the best data points; rows of `known` (both unit coordinates) are left out, and
    so is what the judge does not allow. `beside` are more candidates for the sweep.
    """
    design = target.design
    of = design.of
    taken = np.sort(_fingerprints(of, of.snap(known, SWEEP_BITS)))

    def free(U: Floats) -> Bools:
        ok = np.ones(len(U), dtype=np.bool_) if judge is None else judge(of, U)
        if len(taken):
            prints = _fingerprints(of, U)
            ok &= taken[np.minimum(np.searchsorted(taken, prints), len(taken) - 1)] != prints
        return ok

    def value(U: Floats) -> Floats:
        # In blocks where a row is very wide: thousands of choices would take a gigabyte at once.
        rows = max(1, FEATURES_MAX // design.width)
        if len(U) <= rows:
            return target.value(design.features(U))
        return np.concatenate([target.value(design.features(U[i:i + rows])) for i in range(0, len(U), rows)])

    U = np.vstack([_everywhere(stream, of.p), _around(stream, of, centres), *(() if beside is None else (beside,))])
    U = of.snap(U, SWEEP_BITS)
    U = U[free(U)]
    if not len(U):
        return Found(np.empty((0, of.p)), np.empty(0))
    scores = value(U)
    order = np.argsort(-scores, kind="stable")
    chosen = _diverse(target, U, order)
    V, reached = U[chosen], scores[chosen]
    if target.smooth:
        climbed = of.snap(_climb(target, V), CLIMB_BITS)
        V, reached = _better(V, reached, climbed, value, free)
    stepping = not target.smooth and bool(_relaxed(of).any())
    for _ in range(ROUNDS if target.smooth else STEP_ROUNDS):
        owner, W = _moves(of, V, stream)
        if stepping:
            stepped, steps = _steps(of, V, stream)
            owner, W = np.concatenate([owner, stepped]), np.vstack([W, steps])
        ok = free(W)
        owner, W = owner[ok], W[ok]
        gained = value(W) if len(W) else np.empty(0)
        any_better = False
        for i in range(len(V)):
            mine = np.flatnonzero(owner == i)
            if len(mine) and gained[k := mine[int(np.argmax(gained[mine]))]] > reached[i]:
                V[i], reached[i], any_better = W[k], gained[k], True
        if not any_better and not stepping:      # new steps may gain where the last ones did not
            break
    # The sweep's best stay in the list: should all climbed points turn out known, they are next.
    V, reached = np.vstack([V, U[order[:64]]]), np.concatenate([reached, scores[order[:64]]])
    _, first = np.unique(_fingerprints(of, of.snap(V, SWEEP_BITS)), return_index=True)
    first = np.sort(first)
    # Rounded, so that of two climbs to one top the same comes first on every machine. Where nothing is
    # left to gain the logarithm is in the tens of thousands, and so are its rounding errors.
    size = 10.0 ** np.floor(np.log10(np.maximum(np.abs(reached[first]), 1.0)))
    order = first[np.argsort(-np.round(reached[first] / size, 6) * size, kind="stable")]
    return Found(V[order], reached[order])


def _everywhere(stream: Stream, p: int) -> Floats:
    shifted = sobol.net(p, 1 << (EVERYWHERE - 1).bit_length())[:EVERYWHERE] + stream.uniform(p)
    return np.asarray(shifted - np.floor(shifted))


def _around(stream: Stream, of: Cube, centres: Floats) -> Floats:
    """Perturbed data points: steps of every size, half of them along few axes."""
    p = of.p
    if not len(centres):
        return np.empty((0, p))
    base = centres[np.arange(AROUND) % len(centres)]
    size = 2.0 ** (-1 - 8 * stream.uniform(AROUND, 1))
    step = size * ndtri(np.clip(stream.uniform(AROUND, p), 1e-12, 1 - 1e-12))
    sparse = np.arange(AROUND)[:, None] % 2 == 0
    few = stream.uniform(AROUND, p) < min(1.0, 2.0 / p)
    few[np.arange(AROUND), (stream.uniform(AROUND) * p).astype(np.int64)] = True
    move = np.where(sparse, few, True)
    out = np.clip(base + np.where(move, step, 0.0), 0.0, 1.0)
    # A step has no direction among categories: one that moves is drawn anew, now and then.
    choices = [j for j, axis in enumerate(of.axes) if axis.kind == "choice"]
    if choices:
        fresh, drawn = stream.uniform(AROUND, p), stream.uniform(AROUND, p)
        redrawn = move & (drawn < np.where(sparse, 0.5, 1 / 3))
        out[:, choices] = np.where(redrawn, fresh, base)[:, choices]
    return out


def _diverse(target: Target, U: Floats, order: Ints) -> Ints:
    """The best candidate and good ones at some distance, in length scales, from those before."""
    order = order[:256]
    S = target.embedded(target.design.features(U[order]))
    nearest = np.full(len(order), np.inf)
    picked: list[int] = []
    for _ in range(min(STARTS, len(order))):
        far = np.flatnonzero(nearest > 0.1)
        i = int(far[0]) if len(far) else next(k for k in range(len(order)) if k not in picked)
        picked.append(i)
        apart = S - S[i]
        nearest = np.minimum(nearest, np.einsum("ij,ij->i", apart, apart))
        nearest[i] = 0.0
    return np.asarray(order[picked], dtype=np.int64)


def _relaxed(of: Cube) -> Bools:
    """(p,): axes fine enough to be moved along as if they were real."""
    return np.array([axis.kind == "real" or (axis.kind == "cells" and axis.cells > RELAXED) for axis in of.axes],
                    dtype=np.bool_)


def _climb(target: Target, V: Floats) -> Floats:
    """Projected BFGS from all rows of V at once; three step lengths are tried in one batch.

    Nocedal and Wright, Numerical Optimization, equation 6.17, preconditioned by length scales.
    """
    design = target.design
    of, m = design.of, design.m
    free_axes = _relaxed(of)[design.numeric]
    if not free_axes.any():
        return V
    X = design.features(V)
    movable = free_axes & of.active(V)[:, design.numeric]                  # (b, m)
    rows, steps = np.arange(len(V)), len(_STEPS)
    x = X[:, :m].copy()
    f, g = target.gradient(X)
    g = np.where(movable, g, 0.0)
    length = np.minimum(target.lengths, 1.0)
    metric = (0.3 * length) ** 2
    curved = m <= CURVED_MAX
    start = np.zeros((len(V), m, m)) if curved else np.zeros((1, 1, 1))
    if curved:
        start[:, np.arange(m), np.arange(m)] = metric
    H = start.copy()
    trial = np.repeat(X, steps, axis=0)
    for _ in range(CLIMBS):
        inward = movable & ~(((x <= 0) & (g < 0)) | ((x >= 1) & (g > 0)))
        d = np.where(inward, g, 0.0)
        d = np.matmul(H, d[:, :, None])[:, :, 0] if curved else metric * d
        d *= inward
        # A step of more than half a length scale leaves the part of the model that made it.
        d /= np.maximum(1.0, np.max(np.abs(d) / (0.5 * length), axis=1))[:, None]
        tried = np.clip(x[:, None, :] + _STEPS[:, None] * d[:, None, :], 0.0, 1.0)
        trial[:, :m] = tried.reshape(-1, m)
        ft, gt = target.gradient(trial)
        ft, gt = ft.reshape(-1, steps), np.where(movable[:, None, :], gt.reshape(-1, steps, m), 0.0)
        k = np.argmax(ft, axis=1)
        up = ft[rows, k] > f
        here, slope = tried[rows, k], gt[rows, k]
        if curved:
            # A failed step: begin again with a shorter one.
            H = np.where(up[:, None, None], _updated(H, here - x, g - slope), start / 16)
        x = np.where(up[:, None], here, x)
        g = np.where(up[:, None], slope, g)
        f = np.where(up, ft[rows, k], f)
    out = V.copy()
    out[:, design.numeric] = np.where(movable, x, V[:, design.numeric])
    return out


def _updated(H: Floats, s: Floats, y: Floats) -> Floats:
    """The BFGS update of inverse Hessians (b, m, m), without cubic products; flat steps change nothing."""
    sy = np.einsum("bi,bi->b", s, y)
    curved = sy > 1e-12
    rho = np.where(curved, 1 / np.where(curved, sy, 1.0), 0.0)
    Hy = np.matmul(H, y[:, :, None])[:, :, 0]
    cross = (rho[:, None] * s)[:, :, None] * Hy[:, None, :]
    gain = rho + rho * rho * np.einsum("bi,bi->b", y, Hy)
    H = H - cross
    H -= cross.transpose(0, 2, 1)
    H += (gain[:, None] * s)[:, :, None] * s[:, None, :]
    return np.asarray(H)


def _better(V: Floats, reached: Floats, W: Floats, value: Callable[[Floats], Floats],
            free: Callable[[Floats], Bools]) -> tuple[Floats, Floats]:
    """Row by row the higher of V and W, if W is free."""
    gained = np.where(free(W), value(W), -np.inf)
    up = gained > reached
    return np.where(up[:, None], W, V), np.where(up, gained, reached)


def _moves(of: Cube, V: Floats, stream: Stream) -> tuple[Ints, Floats]:
    """Every row of V with one discrete axis changed: (row it came from, candidate)."""
    owners, moved = [], []
    active = of.active(V)
    discrete = [j for j, axis in enumerate(of.axes) if axis.kind != "real" and axis.cells > 1]
    most = max(1, MOVES_MAX // (len(V) * FEW))
    if len(discrete) > most:
        drawn = np.argsort(stream.uniform(len(discrete)), kind="stable")[:most]
        discrete = [discrete[i] for i in np.sort(drawn).tolist()]
    for j in discrete:
        axis = of.axes[j]
        cell = axis.cell(V[:, j])
        if axis.cells <= FEW:
            targets = np.broadcast_to(np.arange(axis.cells), (len(V), axis.cells))
        elif axis.kind == "choice":
            targets = np.floor(stream.uniform(len(V), FEW) * axis.cells).astype(np.int64)
        else:
            hops = np.array([1, 2, 3, 5, 9])
            targets = np.clip(cell[:, None] + np.concatenate([-hops, hops]), 0, axis.cells - 1)
        row, column = np.nonzero((targets != cell[:, None]) & active[:, j][:, None])
        U = V[row]
        U[:, j] = axis.centre(targets[row, column])
        owners.append(row)
        moved.append(U)
    if not moved:
        return np.empty(0, dtype=np.int64), np.empty((0, of.p))
    return np.concatenate(owners), np.vstack(moved)


def _steps(of: Cube, V: Floats, stream: Stream) -> tuple[Ints, Floats]:
    """Every row of V with steps of several sizes along one or a few real axes: (row it came from, candidate)."""
    row = np.repeat(np.arange(len(V)), STEPS)
    movable = (of.active(V) & _relaxed(of))[row]
    size = 2.0 ** (-1 - 8 * stream.uniform(len(row), 1))
    step = size * ndtri(np.clip(stream.uniform(len(row), of.p), 1e-12, 1 - 1e-12))
    drawn = np.where(movable, stream.uniform(len(row), of.p), np.inf)
    moves = drawn < 1 / np.maximum(movable.sum(axis=1, keepdims=True), 1)
    moves |= drawn == drawn.min(axis=1, keepdims=True)
    moves &= movable
    some = moves.any(axis=1)
    U = np.clip(V[row] + np.where(moves, step, 0.0), 0.0, 1.0)
    return row[some], of.snap(U[some], CLIMB_BITS)


_MIX = np.random.Philox(key=[0, 0], counter=(0, 0, 0, 0)).random_raw(2048) | np.uint64(1)


def _fingerprints(of: Cube, U: Floats) -> Words:
    """A 64-bit number for each configuration; inactive coordinates do not count."""
    quantised = np.floor(of.pin(U) * 2.0**SWEEP_BITS + 0.5).astype(np.uint64)
    return np.asarray((quantised * _MIX[: of.p]).sum(axis=1, dtype=np.uint64))
