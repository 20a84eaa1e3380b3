"""Where the winner's lead comes from: credit for the step from a starting point to the winner.

Two ways to share out f(start) - f(winner), both on the believed response and with the intervals of its paths.
Shapley values give each parameter its mean gain over all orders in which the winner's values can be taken over
(Shapley 1953; as "baseline Shapley" in Sundararajan and Najmi 2020): by all subsets up to EXACT_MAX parameters
that differ, by seeded orders above. An ablation path takes over one value after another, each time the one that
is believed to gain most (Fawcett and Hoos, "Analysing differences between algorithm configurations through
ablation", 2016). A parameter that is active in neither point, nor in between, has no part in it.

Units: those of the metric; a gain is positive where the step makes it better.
"""

import math
from typing import Any

import numpy as np

from bayesd.importance.belief import INTERVAL, Belief
from bayesd.optimize import streams
from bayesd.optimize.streams import Floats

EXACT_MAX = 10
ORDERS = 96

Spread = dict[str, float]


def spread(values: Floats) -> Spread:
    """A number of the mean (first) and its interval over the paths."""
    value = float(values[0])
    low, high = np.quantile(values[1:], INTERVAL)
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def differing(belief: Belief, start: Floats, end: Floats) -> list[int]:
    """Axes that stand at different places in two points (1, p) and are active in one of them at least."""
    of = belief.cube
    apart = belief.cube.snap(start, 30)[0] != belief.cube.snap(end, 30)[0]
    return [j for j in range(of.p) if apart[j] and (of.active(start)[0, j] or of.active(end)[0, j])]


def shapley(belief: Belief, start: Floats, end: Floats) -> dict[str, Any]:
    """Each parameter's share of the lead, the largest first."""
    axes = differing(belief, start, end)
    k = len(axes)
    exact = k <= EXACT_MAX
    gains = (_by_subsets if exact else _by_orders)(belief, start, end, axes) if k else []
    rows = [{"param": belief.cube.names[j], "gain": spread(gain)} for j, gain in zip(axes, gains, strict=True)]
    return {"exact": exact, "orders": None if exact else ORDERS,
            "params": sorted(rows, key=lambda row: -row["gain"]["value"])}


def _cost(belief: Belief, rows: Floats) -> Floats:
    return belief.sign * belief.values(rows)


def _by_subsets(belief: Belief, start: Floats, end: Floats, axes: list[int]) -> list[Floats]:
    k = len(axes)
    masks = np.arange(2**k)
    rows = np.repeat(start, 2**k, axis=0)
    for i, j in enumerate(axes):
        rows[(masks >> i) & 1 == 1, j] = end[0, j]
    cost = _cost(belief, rows)
    sizes = np.array([int(mask).bit_count() for mask in masks])
    weight = np.array([1 / (k * math.comb(k - 1, size)) if size < k else 0.0 for size in range(k + 1)])[sizes]
    gains = []
    for i in range(k):
        without = masks[(masks >> i) & 1 == 0]
        gains.append(weight[without] @ (cost[without] - cost[without | (1 << i)]))
    return gains


def _by_orders(belief: Belief, start: Floats, end: Floats, axes: list[int]) -> list[Floats]:
    k = len(axes)
    orders = np.argsort(streams.Stream(belief.seed, 0, "shapley").uniform(ORDERS // 2, k), axis=1)
    orders = np.vstack([orders, orders[:, ::-1]])       # an order and its reverse: antithetic
    rows = np.repeat(start, len(orders) * (k + 1), axis=0).reshape(len(orders), k + 1, -1)
    for r, order in enumerate(orders):
        for step, i in enumerate(order.tolist(), start=1):
            rows[r, step:, axes[i]] = end[0, axes[i]]
    cost = _cost(belief, rows.reshape(-1, belief.cube.p)).reshape(len(orders), k + 1, -1)
    steps = cost[:, :-1] - cost[:, 1:]
    gains = [np.zeros(cost.shape[2]) for _ in axes]
    for r, order in enumerate(orders):
        for step, i in enumerate(order.tolist()):
            gains[i] = gains[i] + steps[r, step] / len(orders)
    return gains


def ablation(belief: Belief, start: Floats, end: Floats) -> list[dict[str, Any]]:
    """The steps from start to end; each with what is believed behind it and what it gains."""
    of, left, here = belief.cube, differing(belief, start, end), start.copy()
    path: list[tuple[int, Floats]] = []
    while left:
        can = [j for j in left if of.active(_moved(here, end, j))[0, j] or of.active(here)[0, j]]
        if not can:
            break
        cost = belief.sign * belief.units(belief.posterior.predict(belief.posterior.design.features(
            of.snap(np.vstack([_moved(here, end, j) for j in can]), 30)))[0])
        j = can[int(np.argmin(np.round(cost, 12)))]
        here = _moved(here, end, j)
        left.remove(j)
        path.append((j, here))
    values = belief.values(np.vstack([start, *(row for _, row in path)]))
    decoded = [of.decode(row)[0] for _, row in path]
    return [{"param": of.names[j], "to": point.get(of.names[j]), "active": of.names[j] in point,
             "value": spread(values[i + 1]), "gain": spread(belief.sign * (values[i] - values[i + 1]))}
            for i, ((j, _), point) in enumerate(zip(path, decoded, strict=True))]


def _moved(here: Floats, end: Floats, j: int) -> Floats:
    out = here.copy()
    out[0, j] = end[0, j]
    return out
