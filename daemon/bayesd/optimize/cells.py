"""The cells of a discrete space, numbered without ever listing them.

Every distinct active configuration has exactly one number from 0 to `total` - 1. Without
conditions that is a mixed radix number. With them, a parameter's digit exists only while it is
active, so the configurations behind a digit are counted first: parameters that depend on each
other form a component, components multiply, and within one a small dynamic program counts what
lies behind every state. A state says no more of a parent than which of its children's
conditions its value satisfies, so a parent of ten thousand values with one child has two states.

Constraints join the components that they name into a block. The configurations of a block are
tried once, and those that the constraints allow are listed, so that numbers stay without holes;
only a block of very many configurations is left unsieved, and then a number may stand for a
configuration that is not allowed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bayesd.optimize.encode import Axis, Cube, Ints, cube
from bayesd_schemas.constraints import Constraint, broken
from bayesd_schemas.space import FLOAT_LEVELS, FloatParameter, IntParameter, Space

Class: TypeAlias = tuple[bool, ...]
State: TypeAlias = tuple[Class, ...]
"""Classes of the live parents: those already set that later parameters still ask about."""

STATES_MAX = 200_000
SIEVED_MAX = 2**16      # configurations of a block that are tried one by one: half a second
JUDGED_MAX = 2**20      # steps of constraints taken for them


@dataclass(frozen=True, slots=True)
class Levels:
    """The values one parameter takes here, by index."""

    name: str
    size: int
    value: Callable[[int], Any]
    conditions: tuple[tuple[int, frozenset[int]], ...]
    """(index of the parent, level indices of it that make this one active)."""


class Cells:
    """Numbered configurations over some levels of every parameter, those that break a constraint left out."""

    def __init__(self, levels: Sequence[Levels], constraints: Sequence[Constraint] = ()) -> None:
        self.levels = tuple(levels)
        components = [_Component(self.levels, group) for group in _groups(self.levels)]
        self._blocks = [_Block(self.levels, *block) for block in _joined(self.levels, components, constraints)]
        self.total = 1
        for block in self._blocks:
            self.total *= block.total
        self.sieved = all(block.sieved for block in self._blocks)
        """False: `at` may give a configuration that breaks a constraint."""

    def at(self, number: int) -> dict[str, Any]:
        """Configuration `number`, active parameters only, parents first."""
        digits: dict[int, int] = {}
        for block in reversed(self._blocks):
            number, rest = divmod(number, block.total)
            block.digits(rest, digits)
        return {of.name: of.value(digits[j]) for j, of in enumerate(self.levels) if j in digits}


class _Block:
    """Components that constraints look at together; most blocks are one component without any."""

    def __init__(self, levels: Sequence[Levels], components: Sequence["_Component"],
                 constraints: Sequence[Constraint]) -> None:
        self._components = tuple(components)
        self._numbers: Ints | None = None
        self.total = 1
        for component in components:
            self.total *= component.total
        steps = sum(constraint.steps for constraint in constraints)
        self.sieved = not constraints or (self.total <= SIEVED_MAX and self.total * steps <= JUDGED_MAX)
        if constraints and self.sieved:
            allowed = []
            for number in range(self.total):
                digits: dict[int, int] = {}
                self.digits(number, digits)
                if broken(constraints, {levels[j].name: levels[j].value(digit) for j, digit in digits.items()}) is None:
                    allowed.append(number)
            self._numbers, self.total = np.array(allowed, dtype=np.int64), len(allowed)

    def digits(self, number: int, out: dict[int, int]) -> None:
        """Put the level index of every active member into `out`."""
        if self._numbers is not None:
            number = int(self._numbers[number])
        for component in reversed(self._components):
            number, rest = divmod(number, component.total)
            if component.alone is None:
                component.digits(rest, out)
            else:
                out[component.alone] = rest


def _joined(levels: Sequence[Levels], components: Sequence["_Component"],
            constraints: Sequence[Constraint]) -> list[tuple[list["_Component"], list[Constraint]]]:
    """Components that hang together by constraints, with these constraints, in the order of the first of each."""
    where = {levels[j].name: i for i, component in enumerate(components) for j in component.members}
    find, join = _forest(len(components))
    for constraint in constraints:
        named = [where[name] for name in constraint.names]
        for other in named[1:]:
            join(other, named[0])
    blocks: dict[int, tuple[list[_Component], list[Constraint]]] = {}
    for i, component in enumerate(components):
        blocks.setdefault(find(i), ([], []))[0].append(component)
    for constraint in constraints:
        blocks[find(where[constraint.names[0]])][1].append(constraint)
    return list(blocks.values())


def _forest(count: int) -> tuple[Callable[[int], int], Callable[[int, int], None]]:
    """(find, join) of sets of the numbers below `count`, each a set of its own at first."""
    group = list(range(count))

    def find(j: int) -> int:
        while group[j] != j:
            j = group[j]
        return j

    def join(j: int, into: int) -> None:
        group[find(j)] = find(into)

    return find, join


def _groups(levels: Sequence[Levels]) -> list[list[int]]:
    """Indices that hang together by conditions; each group has parents before children."""
    find, join = _forest(len(levels))
    for j, of in enumerate(levels):
        for parent, _ in of.conditions:
            join(j, parent)
    members: dict[int, list[int]] = {}
    for j in range(len(levels)):
        members.setdefault(find(j), []).append(j)
    return [_leaves_early(levels, group) for group in members.values()]


def _leaves_early(levels: Sequence[Levels], group: list[int]) -> list[int]:
    """Reorder a group so that parents are live for a short stretch: childless members first."""
    parents = {parent for j in group for parent, _ in levels[j].conditions}
    left, placed, order = list(group), set[int](), list[int]()
    while left:
        ready = [j for j in left if all(parent in placed for parent, _ in levels[j].conditions)]
        pick = next((j for j in ready if j not in parents), ready[0])
        left.remove(pick)
        placed.add(pick)
        order.append(pick)
    return order


class _Component:
    """The dynamic program of one group of parameters."""

    def __init__(self, levels: Sequence[Levels], order: list[int]) -> None:
        self._levels, self._order = levels, order
        self.members = tuple(order)
        self.alone = order[0] if len(order) == 1 else None
        last = {parent: i for i, j in enumerate(order) for parent, _ in levels[j].conditions}
        # Conditions on each parent, numbered in the order of its children.
        self._asks: dict[int, list[frozenset[int]]] = {}
        self._where: dict[tuple[int, int], int] = {}
        for j in order:
            for k, (parent, wanted) in enumerate(levels[j].conditions):
                asks = self._asks.setdefault(parent, [])
                self._where[j, k] = len(asks)
                asks.append(wanted)
        self._runs = {parent: _runs(levels[parent].size, asks) for parent, asks in self._asks.items()}
        # Live parents before each position.
        self._live = [tuple(p for p in order[:i] if last.get(p, -1) >= i) for i in range(len(order) + 1)]
        states: list[set[State]] = [{()}]
        for i in range(len(order)):
            states.append({after for state in states[i] for _, after in self._steps(i, state)})
            if len(states[-1]) > STATES_MAX:
                raise ValueError("the conditions of this space are too entangled to number its cells")
        self._behind: list[dict[State, int]] = [{} for _ in states]
        self._behind[-1] = dict.fromkeys(states[-1], 1)
        for i in range(len(order) - 1, -1, -1):
            self._behind[i] = {state: sum(size * self._behind[i + 1][after] for size, after in self._steps(i, state))
                               for state in states[i]}
        self.total = self._behind[0][()]

    def _active(self, i: int, state: State) -> bool:
        j = self._order[i]
        return all(state[self._live[i].index(parent)][self._where[j, k]]
                   for k, (parent, _) in enumerate(self._levels[j].conditions))

    def _after(self, i: int, state: State, own: Class) -> State:
        known = dict(zip(self._live[i], state, strict=True))
        known[self._order[i]] = own
        return tuple(known[parent] for parent in self._live[i + 1])

    def _steps(self, i: int, state: State) -> list[tuple[int, State]]:
        """(how many values, the state after them) in the order of the values."""
        j = self._order[i]
        if not self._active(i, state):
            return [(1, self._after(i, state, (False,) * len(self._asks.get(j, ()))))]
        if j not in self._runs:
            return [(self._levels[j].size, self._after(i, state, ()))]
        return [(size, self._after(i, state, own)) for size, own in self._runs[j]]

    def digits(self, rest: int, out: dict[int, int]) -> None:
        """Put the level index of every active member into `out`."""
        state: State = ()
        for i, j in enumerate(self._order):
            start = 0
            for size, after in self._steps(i, state):
                behind = self._behind[i + 1][after]
                if rest < size * behind:
                    break
                rest -= size * behind
                start += size
            if self._active(i, state):
                out[j] = start + rest // behind
            rest %= behind
            state = after


def _runs(size: int, asks: Sequence[frozenset[int]]) -> list[tuple[int, Class]]:
    """Cut the values of a parent into runs of one class: (length, class), in order."""
    runs: list[tuple[int, Class]] = []
    at = 0
    for special in sorted(set().union(*asks)):
        if special > at:
            runs.append((special - at, (False,) * len(asks)))
        runs.append((1, tuple(special in wanted for wanted in asks)))
        at = special + 1
    if at < size:
        runs.append((size - at, (False,) * len(asks)))
    return runs


def grid(space: Space, constraints: Sequence[Constraint] = ()) -> Cells:
    """The cells of method grid: floats take their levels, everything else every value."""
    return _kept(_grids, space, constraints, lambda: Cells(_all_levels(cube(space)), constraints))


def finite(space: Space, constraints: Sequence[Constraint] = ()) -> Cells | None:
    """All configurations of a space without real parameters; None when there is one."""
    if any(axis.kind == "real" for axis in cube(space).axes):
        return None
    return _kept(_finites, space, constraints, lambda: Cells([
        Levels(axis.name, axis.cells, _cell_value(axis), axis.conditions) for axis in cube(space).axes], constraints))


Kept: TypeAlias = dict[int, tuple[Space, tuple[Constraint, ...], Cells]]
_grids: Kept = {}
_finites: Kept = {}


def _kept(where: Kept, space: Space, constraints: Sequence[Constraint], make: Callable[[], Cells]) -> Cells:
    found = where.get(id(space))
    if found is not None and found[0] is space and found[1] == tuple(constraints):
        return found[2]
    made = make()
    if len(where) >= 64:
        where.clear()
    where[id(space)] = (space, tuple(constraints), made)
    return made


def _cell_value(axis: Axis) -> Callable[[int], Any]:
    return lambda cell: axis.cell_values([cell])[0]


def _all_levels(of: Cube) -> list[Levels]:
    levels: list[Levels] = []
    cells_of: list[dict[int, int] | None] = []      # cell -> level where they differ
    for axis in of.axes:
        size, value, index = _levels(axis)
        conditions = []
        for parent, wanted in axis.conditions:
            known = cells_of[parent]
            conditions.append((parent, wanted if known is None else frozenset(
                known[cell] for cell in wanted if cell in known)))
        levels.append(Levels(axis.name, size, value, tuple(conditions)))
        cells_of.append(index)
    return levels


def _levels(axis: Axis) -> tuple[int, Callable[[int], Any], dict[int, int] | None]:
    """(how many, value of each, level of each cell or None when cells are levels)."""
    parameter = axis.parameter
    if axis.kind == "real":
        assert isinstance(parameter, FloatParameter)
        count = parameter.levels or FLOAT_LEVELS
        inner = axis.values(np.arange(1, count - 1) / (count - 1))
        values = [parameter.low, *inner, parameter.high]        # the ends exactly, whatever the scale
        return count, values.__getitem__, None
    if isinstance(parameter, IntParameter) and parameter.levels is not None and parameter.levels < axis.cells:
        u = np.arange(parameter.levels) / (parameter.levels - 1)
        reach = float(parameter.high - parameter.low)
        if parameter.scale == "log":
            at = parameter.low * (parameter.high / parameter.low) ** u - parameter.low
        else:
            at = reach * u ** (parameter.exponent if parameter.scale == "power" else 1.0)
        chosen = sorted({min(max(int(x), 0), axis.cells - 1) for x in np.floor(at + 0.5).tolist()})
        return len(chosen), lambda level: axis.cell_values([chosen[level]])[0], {
            cell: level for level, cell in enumerate(chosen)}
    return axis.cells, _cell_value(axis), None
