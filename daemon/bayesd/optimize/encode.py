"""The space as a unit cube, one axis a parameter, and back.

Notation
    p       number of parameters; axes are in `Space.ordered()` order, parents before children
    U       (n, p)  unit coordinates in [0, 1]; every row holds a number for *every* parameter,
            so a move that activates a parameter finds a value waiting
    active  (n, p)  bool: which parameters are part of the configuration of that row
    X       (n, D)  features for the surrogate: inactive axes pinned, categories one-hot

A real axis is the scale of its parameter: value = low + (high - low) * u, its logarithm, or its
power. An axis of cells (int, ordinal, float with a step) is cut into cells, and a point is moved
to the centre of its cell. Integers take half a unit more at both ends, so that the first and the
last value get a cell as wide as their neighbours' on a linear scale; on the other scales the
coordinate of an integer is that of its *value*: if it were the centre of an evenly spaced cell, a
log integer with more values than the grid has points would repeat itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bayesd.optimize.streams import Floats
from bayesd_schemas.space import FloatParameter, IntParameter, OrdinalParameter, Parameter, Params, Space

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PINNED = 0.5        # where an inactive or unknown coordinate stands
ABSENT: Any = object()  # a parameter that a point does not have; None may be a choice
ONE_HOT = math.sqrt(0.5)    # two different categories are then at distance 1, as in Hamming's metric


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter on the unit interval. `cells` is 0 for a real axis."""

    name: str
    parameter: Parameter
    kind: Literal["real", "cells", "choice"]
    cells: int
    conditions: tuple[tuple[int, frozenset[int]], ...]
    """(axis of the parent, cells of it that make this one active)."""

    # Real axes ------------------------------------------------------------------------------

    def _real_values(self, u: Floats) -> list[float]:
        of = self.parameter
        assert isinstance(of, FloatParameter)
        low, high = of.low, of.high
        if of.scale == "linear":
            values: list[float] = (low + (high - low) * u).tolist()
        elif of.scale == "log":
            # exp and pow differ between libraries in their last bits; twelve digits hide that.
            a, width = math.log(low), math.log(high) - math.log(low)
            values = [float(f"{math.exp(a + width * x):.12g}") for x in u.tolist()]
        else:
            values = [float(f"{low + (high - low) * x**of.exponent:.12g}") for x in u.tolist()]
        return [low if v < low else high if v > high else v for v in values]

    def _real_units(self, values: Floats) -> Floats:
        of = self.parameter
        assert isinstance(of, FloatParameter)
        values = np.clip(values, of.low, of.high)
        if of.scale == "log":
            u = (np.log(values) - math.log(of.low)) / (math.log(of.high) - math.log(of.low))
        else:
            u = (values - of.low) / (of.high - of.low)
        return np.clip(u if of.scale != "power" else u ** (1 / of.exponent), 0.0, 1.0)

    # Axes of cells --------------------------------------------------------------------------

    def _curved(self) -> tuple[float, float, float] | None:
        """(low, high, exponent or 0 for log) of an int whose cells are not evenly spaced."""
        of = self.parameter
        if isinstance(of, IntParameter) and of.scale != "linear":
            return of.low - 0.5, of.high + 0.5, of.exponent if of.scale == "power" else 0.0
        return None

    def cell(self, u: Floats) -> Ints:
        """Index of the cell that holds each coordinate."""
        curved = self._curved()
        if curved is None:
            index = np.floor(u * self.cells)
        else:
            low, high, exponent = curved
            if exponent:
                value = low + (high - low) * u**exponent
            else:
                value = np.exp(math.log(low) + (math.log(high) - math.log(low)) * u)
            index = np.floor(value + 0.5) - (low + 0.5)
        return np.clip(index, 0, self.cells - 1).astype(np.int64)

    def centre(self, cell: Ints) -> Floats:
        """Coordinate at which a cell stands."""
        curved = self._curved()
        if curved is None:
            return np.asarray((cell + 0.5) / self.cells, dtype=np.float64)
        low, high, exponent = curved
        value = cell + (low + 0.5)
        if exponent:
            return np.asarray(((value - low) / (high - low)) ** (1 / exponent), dtype=np.float64)
        return np.asarray(np.log(value / low) / math.log(high / low), dtype=np.float64)

    def cell_values(self, cells: Sequence[int]) -> list[Any]:
        of = self.parameter
        if isinstance(of, IntParameter):
            step = of.step or 1
            return [of.low + step * i for i in cells]
        if isinstance(of, FloatParameter):
            # In decimal, so that 0.1 + 2 * 0.1 is the 0.3 that the user would write.
            assert of.step is not None
            low, step_ = Decimal(repr(of.low)), Decimal(repr(of.step))
            return [min(float(low + i * step_), of.high) for i in cells]
        return [of.choices[i] for i in cells]

    def cell_of(self, value: Any) -> int | None:
        """The cell of a value, moved into the range if need be; None for an unknown choice."""
        of = self.parameter
        if isinstance(of, (IntParameter, FloatParameter)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return None
            cell = (min(max(value, of.low), of.high) - of.low) / (of.step or 1)
            return min(max(math.floor(cell + 0.5), 0), self.cells - 1)
        return of.index(value)

    # Both -----------------------------------------------------------------------------------

    def values(self, u: Floats) -> list[Any]:
        """Values at the coordinates, valid and typed."""
        if self.kind == "real":
            return self._real_values(u)
        return self.cell_values(self.cell(u).tolist())

    def units(self, values: Sequence[Any]) -> Floats:
        """Coordinates of values; one that the axis does not know stands in the middle."""
        if self.kind == "real":
            plain = set(map(type, values)) <= {float, int}
            numbers = values if plain else [
                v if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in values]
            u = self._real_units(np.array(numbers, dtype=np.float64))
            return np.where(np.isnan(u), PINNED, u)
        cells = [self.cell_of(value) for value in values]
        known = np.array([0 if cell is None else cell for cell in cells], dtype=np.int64)
        return np.where([cell is None for cell in cells], PINNED, self.centre(known))


@dataclass(frozen=True, slots=True)
class Cube:
    """A space ready for arithmetic."""

    axes: tuple[Axis, ...]
    names: tuple[str, ...]
    conditional: bool

    @property
    def p(self) -> int:
        return len(self.axes)

    def snap(self, U: Floats, bits: int) -> Floats:
        """U with real coordinates on a grid of 2**-bits and all others at their cell's centre.

        Two machines that differ in the last bits of a candidate then still propose the same one.
        """
        out = np.empty_like(U)
        for j, axis in enumerate(self.axes):
            if axis.kind == "real":
                out[:, j] = np.floor(U[:, j] * 2.0**bits + 0.5) * 2.0**-bits
            else:
                out[:, j] = axis.centre(axis.cell(U[:, j]))
        return out

    def active(self, U: Floats) -> Bools:
        """(n, p): which parameters each row's configuration has."""
        active = np.ones(U.shape, dtype=np.bool_)
        if self.conditional:
            cells: dict[int, Ints] = {}
            for j, axis in enumerate(self.axes):
                for parent, wanted in axis.conditions:
                    if parent not in cells:
                        cells[parent] = self.axes[parent].cell(U[:, parent])
                    active[:, j] &= active[:, parent] & np.isin(cells[parent], list(wanted))
        return active

    def decode(self, U: Floats) -> list[dict[str, Any]]:
        """Configurations: active parameters only, parents first, values valid and typed."""
        columns = [axis.values(U[:, j]) for j, axis in enumerate(self.axes)]
        rows = zip(*columns, strict=True)
        if not self.conditional:
            return [dict(zip(self.names, row, strict=True)) for row in rows]
        return [{name: value for name, value, here in zip(self.names, row, mask, strict=True) if here}
                for row, mask in zip(rows, self.active(U).tolist(), strict=True)]

    def encode(self, params: Sequence[Params]) -> Floats:
        """(n, p). Points of an earlier space are clipped into this one; gaps stand in the middle."""
        out = np.empty((len(params), self.p))
        for j, axis in enumerate(self.axes):
            out[:, j] = axis.units([row.get(axis.name, ABSENT) for row in params])
        return out

    def pin(self, U: Floats) -> Floats:
        """U with inactive coordinates at one value: points that differ only there are one point."""
        return np.where(self.active(U), U, PINNED) if self.conditional else U


def cube(space: Space) -> Cube:
    """The cube of a space. Equal spaces give equal cubes, so the few last ones are kept."""
    found = _recent.get(id(space))
    if found is not None and found[0] is space:
        return found[1]
    names = tuple(space.ordered())
    axes: list[Axis] = []
    for name in names:
        conditions = []
        for parent, wanted in space[name].conditions():
            of = axes[names.index(parent)]
            conditions.append((names.index(parent), frozenset(
                cell for value in wanted if (cell := of.cell_of(value)) is not None)))
        axes.append(_axis(name, space[name], tuple(conditions)))
    made = Cube(axes=tuple(axes), names=names, conditional=any(axis.conditions for axis in axes))
    if len(_recent) >= _RECENT_MAX:
        _recent.clear()
    _recent[id(space)] = (space, made)
    return made


_RECENT_MAX = 64
_recent: dict[int, tuple[Space, Cube]] = {}     # the space is kept too, so its id stays its own


def _axis(name: str, of: Parameter, conditions: tuple[tuple[int, frozenset[int]], ...]) -> Axis:
    if isinstance(of, IntParameter):
        return Axis(name, of, "cells", (of.high - of.low) // (of.step or 1) + 1, conditions)
    if isinstance(of, FloatParameter):
        if of.step is None:
            return Axis(name, of, "real", 0, conditions)
        steps = (Decimal(repr(of.high)) - Decimal(repr(of.low))) / Decimal(repr(of.step))
        return Axis(name, of, "cells", math.floor(steps + Decimal("1e-9")) + 1, conditions)
    return Axis(name, of, "cells" if isinstance(of, OrdinalParameter) else "choice", len(of.choices), conditions)
