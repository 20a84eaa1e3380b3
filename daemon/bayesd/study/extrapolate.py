"""Learning curves: where one is heading, by a few shapes that such curves have.

The shapes are a + b g(u) with g a power, an exponential or a logarithm of the step, of those that Domhan, Springenberg
and Hutter fit ("Speeding up automatic hyperparameter optimization of deep neural networks by extrapolation of
learning curves", 2015). There a sampler draws their parameters. Here the rate of g is one of a fixed grid, so that a
and b are a least-squares line in closed form, the later points counting for more: what a curve does before it turns
says little of its end. The shapes are averaged by their likelihood. That is a guess and no more; how far such guesses
were borne out by whole curves is for who asks (pruning/curve.py).

Sums are exact (fsum), and what depends on the steps alone is made once for all trials that report at the same ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

POINTS_MIN = 4                              # of fewer nothing is guessed: the curve stays where it is
POWERS = (0.25, 0.5, 1.0, 2.0)              # u^-power
DECAYS = (0.03, 0.1, 0.3, 1.0)              # exp(-u / (decay * horizon))
FLOOR = 1e-4                                # of the curve's variance: no shape is believed to be nearer than that


@dataclass(frozen=True, slots=True)
class _Shape:
    """One g on some steps, centred."""

    centred: tuple[float, ...]
    """w (g - mean g), step by step."""
    spread: float
    """Sum of w (g - mean g)^2."""
    ahead: float
    """g at the horizon, less the mean."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """All shapes on some steps."""

    weights: tuple[float, ...]
    total: float
    effective: float
    """How many points the weights are worth (Kish, 1965)."""
    shapes: tuple[_Shape, ...]


@lru_cache(maxsize=2048)
def _grid(steps: tuple[int, ...], horizon: int) -> _Grid:
    n, end = len(steps), float(horizon + 1)
    weights = tuple(((j + 1) / n) ** 2 for j in range(n))
    total = math.fsum(weights)
    at = [float(step + 1) for step in steps]        # steps may begin at 0
    ways = [*([u ** -power for u in (*at, end)] for power in POWERS),
            *([math.exp(-u / (decay * end)) for u in (*at, end)] for decay in DECAYS),
            [math.log(u) for u in (*at, end)]]
    shapes = []
    for way in ways:
        mean = math.fsum(w * g for w, g in zip(weights, way, strict=False)) / total
        spread = math.fsum(w * (g - mean) ** 2 for w, g in zip(weights, way, strict=False))
        if spread > 1e-12 * mean * mean * total:     # else it is flat here, and its slope would be noise
            shapes.append(_Shape(tuple(w * (g - mean) for w, g in zip(weights, way, strict=False)), spread,
                                 way[-1] - mean))
    return _Grid(weights, total, total * total / math.fsum(w * w for w in weights), tuple(shapes))


def extrapolated(steps: Sequence[int], values: Sequence[float], horizon: int) -> float:
    """The value to expect at step `horizon`, which is past all `steps`, of a curve with these finite values at these
    ascending steps: the average of the shapes. With fewer than `POINTS_MIN` points, or on a flat curve, its last."""
    last = values[-1]
    if len(values) < POINTS_MIN:
        return last
    grid = _grid(tuple(steps), horizon)
    mean = math.fsum(w * y for w, y in zip(grid.weights, values, strict=True)) / grid.total
    moved = [y - mean for y in values]
    spread = math.fsum(w * y * y for w, y in zip(grid.weights, moved, strict=True))
    if spread == 0.0 or not grid.shapes:
        return last
    found, logs = [], []
    for shape in grid.shapes:
        slope = math.fsum(c * y for c, y in zip(shape.centred, moved, strict=True)) / shape.spread
        left = max(spread - slope * slope * shape.spread, 0.0) + FLOOR * spread
        found.append(mean + slope * shape.ahead)
        logs.append(-0.5 * grid.effective * math.log(left))
    top = max(logs)
    weights = [math.exp(each - top) for each in logs]
    return math.fsum(w * y for w, y in zip(weights, found, strict=True)) / math.fsum(weights)
