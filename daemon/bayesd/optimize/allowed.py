"""The constraints of a study on many candidates at once.

`Constraint.holds` judges one configuration; the function here judges rows of unit coordinates and
gives the very same answer, which a test of random expressions says. Only the columns that the
constraints name are decoded. What IEEE 754 fixes to the last bit (+ - * / sqrt, comparisons) is done
on arrays; logarithms, exponentials and powers go value by value through the same function as single
points, because numpy's own differ from the C library's in the last bit.

Notation
    U       (n, p)  unit coordinates, as everywhere
    number  (n,)    floats, NaN where there is no finite value
    truth   (n,)    1 true, -1 false, 0 unknown
    choice          a list of n values
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bayesd.optimize.encode import Bools, Cube
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Problem
from bayesd_schemas.constraints import NUMBERS, Constraint, Node, number, same

Judge: TypeAlias = Callable[[Cube, Floats], Bools]
"""(cube, U) -> which rows are allowed."""
Truths: TypeAlias = NDArray[np.int8]


def allowed(problem: Problem) -> Judge | None:
    """What tells allowed candidates from others; None when the study has no constraints."""
    constraints = problem.constraints
    if not constraints:
        return None

    def judge(of: Cube, U: Floats) -> Bools:
        return _judge(constraints, of, U)

    return judge


def _judge(constraints: Sequence[Constraint], of: Cube, U: Floats) -> Bools:
    ok = np.ones(len(U), dtype=np.bool_)
    if not len(U):
        return ok
    columns, active = _Columns(of, U), of.active(U) if of.conditional else None
    with np.errstate(all="ignore"):      # what has no finite value is looked for afterwards
        for constraint in constraints:
            holds = columns.truth(constraint.root) > 0
            if active is not None:
                holds |= ~active[:, [of.names.index(name) for name in constraint.names]].all(axis=1)
            ok &= holds
    return ok


_ARRAYS: dict[str, Callable[..., Floats]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "negative": np.negative, "abs": np.abs,
    "sqrt": np.sqrt, "min": lambda *each: np.minimum.reduce(each), "max": lambda *each: np.maximum.reduce(each),
}
_COMPARE: dict[str, Callable[[Floats, Floats], Bools]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
}


class _Columns:
    """The rows of U as values, a column for each parameter that is asked for."""

    def __init__(self, of: Cube, U: Floats) -> None:
        self._of, self._U = of, U
        self._known: dict[tuple[str, str], Any] = {}

    def truth(self, node: Node) -> Truths:
        made: Truths = self._evaluate(node)
        return made

    def _evaluate(self, node: Node) -> Any:
        n = len(self._U)
        if node.op == "name":
            key = str(node.value), node.kind
            if key not in self._known:
                self._known[key] = self._column(*key)
            return self._known[key]
        if node.op == "value":
            if node.kind == "choice":
                return [node.value] * n
            return np.full(n, node.value, dtype=np.float64 if node.kind == "number" else np.int8)
        values = [self._evaluate(each) for each in node.args]
        if node.kind == "number":
            return _number(node.op, values)
        if node.op in _COMPARE:
            a, b = values
            return np.where(np.isnan(a) | np.isnan(b), 0, np.where(_COMPARE[node.op](a, b), 1, -1)).astype(np.int8)
        if node.op == "and":
            return np.minimum.reduce(values)
        if node.op == "or":
            return np.maximum.reduce(values)
        if node.op == "not":
            return -values[0]
        if node.op == "alike":
            return values[0] * values[1]
        assert node.op == "same"
        return np.array([1 if same(a, b) else -1 for a, b in zip(*values, strict=True)], dtype=np.int8)

    def _column(self, name: str, kind: str) -> Any:
        j = self._of.names.index(name)
        axis, u = self._of.axes[j], self._U[:, j]
        if axis.kind == "real":
            return np.array(axis.values(u), dtype=np.float64)
        cells, where = np.unique(axis.cell(u), return_inverse=True)
        values = axis.cell_values(cells.tolist())
        if kind == "number":
            return np.array(values, dtype=np.float64)[where]
        if kind == "truth":
            return np.array([1 if value is True else -1 for value in values], dtype=np.int8)[where]
        return [values[i] for i in where.tolist()]


def _number(op: str, values: Sequence[Floats]) -> Floats:
    if op in _ARRAYS:
        made = _ARRAYS[op](*values)
    else:
        lists = [value.tolist() for value in values]
        try:
            made = np.array(list(map(NUMBERS[op], *lists)), dtype=np.float64)
        except (ValueError, ZeroDivisionError, OverflowError):       # somewhere there is no value
            made = np.array([number(op, *row) for row in zip(*lists, strict=True)])
    # A power of NaN may be a number: what has no value gives none, whatever is done with it.
    valued = np.isfinite(np.stack([made, *values])).all(axis=0)
    return np.where(valued, made, np.nan)
