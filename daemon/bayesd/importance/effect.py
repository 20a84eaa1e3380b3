"""What a parameter does on average: partial dependence of the believed response, with bands.

At each value of the parameter the response is averaged over all others, evenly over the space (Friedman,
"Greedy function approximation", 2001, section 8.2), for the posterior's mean and for each path; the band is that
of the paths. A conditional parameter is looked at where it is active: its ancestors are moved to values that
activate it, evenly. Units: those of the metric.
"""

from typing import Any

import numpy as np

from bayesd.importance.belief import INTERVAL, Belief, inside
from bayesd.optimize.streams import Floats

GRID = 25
GRID_PAIR = 9
CELLS_MAX = 40          # values of an int, an ordinal or a category that are shown one by one
OTHERS = 256
OTHERS_PAIR = 96


def _grid(belief: Belief, j: int, most: int) -> Floats:
    axis = belief.cube.axes[j]
    if axis.kind == "real":
        return np.linspace(0.0, 1.0, most)
    if axis.kind == "choice" or axis.cells <= most:
        return axis.centre(np.arange(min(axis.cells, CELLS_MAX)))
    return axis.centre(np.unique(axis.cell(np.linspace(0.0, 1.0, most))))


def _averaged(belief: Belief, axes: list[int], rows: Floats, others: int) -> Floats:
    """(len(rows), 1 + DRAWS) the response at coordinates (g, len(axes)), averaged over the other axes."""
    U = belief.design(4, others, belief.cube.p)
    for j in axes:
        U = inside(belief.cube, U, j)
    every = np.repeat(U[None], len(rows), axis=0)
    every[:, :, axes] = rows[:, None, :]
    return np.asarray(belief.values(every.reshape(-1, belief.cube.p)).reshape(len(rows), others, -1).mean(axis=1))


def one(belief: Belief, name: str) -> dict[str, Any]:
    """Along one parameter, in rising order of its values or in the order of its choices."""
    j = belief.cube.names.index(name)
    axis = belief.cube.axes[j]
    u = _grid(belief, j, CELLS_MAX if 0 < axis.cells <= CELLS_MAX else GRID)
    values = _averaged(belief, [j], u[:, None], OTHERS)
    low, high = np.quantile(values[:, 1:], INTERVAL, axis=1)
    mean = values[:, 0]
    return {"param": name, "type": axis.parameter.type, "scale": getattr(axis.parameter, "scale", "linear"),
            "values": axis.values(u), "shown": len(u), "of": axis.cells or None, "mean": mean.tolist(),
            "low": np.minimum(low, mean).tolist(), "high": np.maximum(high, mean).tolist(),
            "active": _active(belief, [j])}


def two(belief: Belief, first: str, second: str) -> dict[str, Any]:
    """Over the grid of two parameters: mean[i][k] at the i-th value of the first and the k-th of the second."""
    axes = [belief.cube.names.index(first), belief.cube.names.index(second)]
    grids = [_grid(belief, j, GRID_PAIR)[:CELLS_MAX // 2] for j in axes]
    rows = np.array([(a, b) for a in grids[0] for b in grids[1]])
    values = _averaged(belief, axes, rows, OTHERS_PAIR)
    low, high = np.quantile(values[:, 1:], INTERVAL, axis=1)
    shape = (len(grids[0]), len(grids[1]))

    def table(each: Floats) -> list[list[float]]:
        rounded: list[list[float]] = [[float(f"{value:.6g}") for value in row] for row in each.reshape(shape)]
        return rounded
    return {"params": [first, second],
            "values": [belief.cube.axes[j].values(u) for j, u in zip(axes, grids, strict=True)],
            "mean": table(values[:, 0]), "low": table(np.minimum(low, values[:, 0])),
            "high": table(np.maximum(high, values[:, 0])), "active": _active(belief, axes)}


def _active(belief: Belief, axes: list[int]) -> float:
    """The share of the space in which all of them are active."""
    return round(float(belief.cube.active(belief.design(5, 1024, belief.cube.p))[:, axes].all(axis=1).mean()), 4)
