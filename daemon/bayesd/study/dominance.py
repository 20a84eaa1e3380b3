"""Several objectives at once: which reports are behind others in everything.

One point dominates another when it is worse in no objective and better in one. In a cloud of points each is ranked by
how many others dominate it (Fonseca and Fleming, "Genetic algorithms for multiobjective optimization", 1993): whoever
dominates another has the better rank, as with sorting into fronts, and a newcomer is ranked in one pass. Of equal ranks
those go first that have most room around them (the crowding distance of Deb et al., "NSGA-II", 2002, section III-B),
so that what is kept is spread over the front, and then the earlier trial. Schmucker et al. ("Multi-objective
asynchronous successive halving", 2021) rank rungs by fronts, and within them by an epsilon-net or by crowding.

Values are signed: lower is better. One that is no number counts as worse than any. What is compared exactly or made by
the same few operations is the same on every machine.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bayesd.study.limits import keeps

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial

Vector = tuple[float, ...]
Floats = NDArray[np.float64]
Entry = tuple[int, Vector]
"""A step and what was reported there."""


def dominates(one: Vector, other: Vector) -> bool:
    """Whether one is worse in nothing than another, and better in something."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


class Cloud:
    """Points of trials, one of each."""

    def __init__(self, width: int, *, ranked: bool) -> None:
        self._ranked = ranked
        self._size = 0
        self._places: dict[int, int] = {}
        self._numbers = np.zeros(8, dtype=np.int64)
        self._values = np.empty((width, 8))
        """Objective by objective, which compares fastest."""
        self._counts = np.zeros(8, dtype=np.int64)
        """Of ranked points: how many dominate it."""

    def __len__(self) -> int:
        return self._size

    def add(self, number: int, vector: Vector) -> None:
        """A trial that is not there yet."""
        n = self._size
        if n == len(self._numbers):
            self._numbers = np.concatenate([self._numbers, self._numbers])
            self._values = np.hstack([self._values, self._values])
            self._counts = np.concatenate([self._counts, self._counts])
        if self._ranked:
            self._counts[:n] += self._side(vector, np.greater_equal)
            self._counts[n] = self.dominating(vector)
        self._values[:, n] = vector
        self._numbers[n] = number
        self._places[number] = n
        self._size = n + 1

    def drop(self, number: int) -> None:
        """A trial that is there. The last point takes its place."""
        place, last = self._places.pop(number), self._size - 1
        vector = tuple(self._values[:, place].tolist())
        if place != last:
            self._places[int(self._numbers[last])] = place
            for kept in (self._numbers, self._counts, *self._values):
                kept[place] = kept[last]
        self._size = last
        if self._ranked:
            self._counts[:last] -= self._side(vector, np.greater_equal)

    def _side(self, vector: Vector, compare: np.ufunc) -> NDArray[np.bool_]:
        """Which points are so, `less_equal` or `greater_equal`, in every objective, and unlike the vector."""
        found, same = np.ones(self._size, dtype=bool), np.ones(self._size, dtype=bool)
        for known, value in zip(self._values[:, :self._size], vector, strict=True):
            found &= compare(known, value)
            same &= known == value
        return found & ~same

    def dominating(self, vector: Vector) -> int:
        """How many points dominate a vector."""
        return int(np.count_nonzero(self._side(vector, np.less_equal)))

    def first(self, among: Sequence[int]) -> int:
        """Of some ranked points, one at least, the trial that is before the others in the order."""
        counts = self._counts[[self._places[number] for number in among]]
        numbers, room = self._equals(int(counts.min()))
        there = np.isin(numbers, among)
        return int(numbers[there][np.argmax(room[there])])      # of equals the first, which has the lowest number

    def _equals(self, count: int) -> tuple[NDArray[np.int64], Floats]:
        """The trials whose points so many dominate, the lowest number first, and the room around each."""
        equals = np.flatnonzero(self._counts[:self._size] == count)
        equals = equals[np.argsort(self._numbers[equals])]      # the same however it grew
        return self._numbers[equals], crowding(self._values[:, equals].T)

    def rank(self, number: int) -> tuple[int, int]:
        """Of a ranked point: how many points are before it in the order, and how many of them dominate it."""
        counts = self._counts[:self._size]
        mine = int(counts[self._places[number]])
        numbers, room = self._equals(mine)
        own = room[np.searchsorted(numbers, number)]
        first = np.count_nonzero((room > own) | ((room == own) & (numbers < number)))
        return int(np.count_nonzero(counts < mine)) + int(first), mine


def crowding(values: Floats) -> Floats:
    """(n,) how much room is around each of (n, k) points: the sum over objectives of the distance between its two
    neighbours there, as a share of the whole width; infinite at the ends."""
    n, k = values.shape
    room = np.zeros(n)
    for column in range(k):
        order = np.argsort(values[:, column], kind="stable")
        along = values[order, column]
        first, last = along[0], along[-1]
        room[order[along == first]] = room[order[along == last]] = math.inf
        if n > 2 and last > first and math.isfinite(first) and math.isfinite(last):
            room[order[1:-1]] += (along[2:] - along[:-2]) / (last - first)
    return room


class Clouds:
    """What trials reported, all objectives at once: by step of complete trials, or by rung of all that reached it."""

    def __init__(self, study: "Study", rungs_of: Callable[["Trial"], tuple[int, tuple[int, ...]]] | None) -> None:
        self._goals = [(goal.name, 1.0 if goal.direction == "minimize" else -1.0) for goal in study.goals]
        self._rungs_of = rungs_of
        self.clouds: dict[tuple[int, int], Cloud] = {}
        """(Bracket, step or rung) -> its points. Without rungs the bracket is 0."""
        self._noted: dict[int, dict[tuple[int, int], Vector]] = {}

    def note(self, trial: "Trial") -> None:
        """Bring it up to date with a trial that reported or moved."""
        before = self._noted.get(trial.number, {})
        if self._rungs_of is None:
            belongs = trial.status == "complete" and keeps(trial)
            if belongs == (trial.number in self._noted):
                return
            now = {(0, step): vector for step, vector in self.reported(trial)} if belongs else {}
        else:
            belongs = trial.status != "voided" and (trial.status != "complete" or keeps(trial))
            bracket, _ = self._rungs_of(trial)
            now = {(bracket, level): vector for level, (_, vector) in self.entries(trial)} if belongs else {}
        for place, vector in before.items():
            if now.get(place) != vector:
                self.clouds[place].drop(trial.number)
        for place, vector in now.items():
            if before.get(place) != vector:
                cloud = self.clouds.setdefault(place, Cloud(len(self._goals), ranked=self._rungs_of is not None))
                cloud.add(trial.number, vector)
        if now:
            self._noted[trial.number] = now
        else:
            self._noted.pop(trial.number, None)

    def entries(self, trial: "Trial") -> list[tuple[int, Entry]]:
        """The rungs that a trial has reached, each with the first report at or past it that came."""
        reported, out = self.reported(trial), []
        for level in self._rungs_of(trial)[1] if self._rungs_of is not None else ():
            first = next((each for each in reported if each[0] >= level), None)
            if first is None:
                break
            out.append((level, first))
        return out

    def reported(self, trial: "Trial") -> list[Entry]:
        """(step, signed values) of reports that name every objective, in the order in which they came."""
        out = []
        for step, values in trial.said.items():
            if all(name in values for name, _ in self._goals):
                out.append((step, tuple(math.inf if (value := values[name]) is None else sign * value
                                        for name, sign in self._goals)))
        return out

    def words(self, vector: Vector) -> dict[str, float | None]:
        """Signed values by name, as they were measured."""
        return {name: sign * value + 0.0 if math.isfinite(value) else None
                for (name, sign), value in zip(self._goals, vector, strict=True)}


class Front:
    """The complete trials that keep the study's limits and that no other such trial dominates, by number."""

    def __init__(self, study: "Study") -> None:
        self._signs = [1.0 if goal.direction == "minimize" else -1.0 for goal in study.goals]
        self._all: dict[int, Vector] = {}
        self._front: dict[int, Vector] | None = {}
        self._arrays: tuple[NDArray[np.int64], Floats] | None = None

    def note(self, trial: "Trial") -> None:
        """Bring it up to date with a trial that moved."""
        number = trial.number
        belongs = trial.status == "complete" and trial.values is not None and keeps(trial)
        if belongs and number not in self._all:
            assert trial.values is not None
            vector = tuple(sign * value for sign, value in zip(self._signs, trial.values, strict=True))
            self._all[number] = vector
            if self._front is not None and _join(self._front, number, vector):
                self._arrays = None
        elif not belongs and self._all.pop(number, None) is not None and number in (self._front or ()):
            self._front = self._arrays = None      # others may come to the front now

    @property
    def members(self) -> tuple[NDArray[np.int64], Floats]:
        """Numbers, the lowest first, and their (n, k) signed values."""
        if self._front is None:
            self._front = {}
            for number, vector in self._all.items():
                _join(self._front, number, vector)
        if self._arrays is None:
            numbers = sorted(self._front)
            self._arrays = np.array(numbers, dtype=np.int64), np.array(
                [self._front[number] for number in numbers]).reshape(len(numbers), len(self._signs))
        return self._arrays


def _join(front: dict[int, Vector], number: int, vector: Vector) -> bool:
    """Whether it came to the front."""
    if any(dominates(other, vector) for other in front.values()):
        return False
    for each in [each for each, other in front.items() if dominates(vector, other)]:
        del front[each]
    front[number] = vector
    return True


def best_of(vectors: Sequence[Vector]) -> list[Vector]:
    """Those that no other dominates."""
    return [one for one in vectors if not any(dominates(other, one) for other in vectors)]
