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
from collections.abc import Callable, Iterable, Sequence
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
        self._places: dict[int, int] = {}
        self._numbers: list[int] = []
        self._values = np.empty((8, width))
        self._counts = np.zeros(8, dtype=np.int64)
        """Of ranked points: how many dominate it."""

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, vector: Vector) -> None:
        """A trial that is not there yet."""
        n = len(self._numbers)
        if n == len(self._values):
            self._values = np.vstack([self._values, np.empty_like(self._values)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        if self._ranked:
            ahead, behind = self._sides(vector)
            self._counts[:n][behind] += 1
            self._counts[n] = np.count_nonzero(ahead)
        self._values[n] = vector
        self._places[number] = n
        self._numbers.append(number)

    def drop(self, number: int) -> None:
        """A trial that is there. The last point takes its place."""
        place, last = self._places.pop(number), len(self._numbers) - 1
        vector = tuple(self._values[place].tolist())
        moved = self._numbers.pop()
        if place != last:
            self._numbers[place], self._places[moved] = moved, place
            self._values[place], self._counts[place] = self._values[last], self._counts[last]
        if self._ranked:
            self._counts[:last][self._sides(vector)[1]] -= 1

    def _sides(self, vector: Vector) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which points dominate a vector, and which it dominates."""
        known, point = self._values[:len(self._numbers)], np.array(vector)
        unlike = (known != point).any(axis=1)
        return (known <= point).all(axis=1) & unlike, (known >= point).all(axis=1) & unlike

    def dominating(self, vector: Vector) -> int:
        """How many points dominate a vector."""
        return int(np.count_nonzero(self._sides(vector)[0]))

    def rank(self, number: int) -> tuple[int, int]:
        """Of a ranked point: how many points are before it in the order, and how many of them dominate it."""
        n, place = len(self._numbers), self._places[number]
        counts = self._counts[:n]
        mine = int(counts[place])
        equals = sorted(np.flatnonzero(counts == mine).tolist(), key=self._numbers.__getitem__)     # however it grew
        room = dict(zip((self._numbers[each] for each in equals), crowding(self._values[equals]).tolist(), strict=True))
        first = sum((-room[each], each) < (-room[number], number) for each in room)
        return int(np.count_nonzero(counts < mine)) + first, mine


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

    def note(self, trial: "Trial") -> None:
        """Bring it up to date with a trial that moved."""
        number = trial.number
        belongs = trial.status == "complete" and trial.values is not None and keeps(trial)
        if belongs and number not in self._all:
            assert trial.values is not None
            vector = tuple(sign * value for sign, value in zip(self._signs, trial.values, strict=True))
            self._all[number] = vector
            if self._front is not None:
                _join(self._front, number, vector)
        elif not belongs and self._all.pop(number, None) is not None and number in (self._front or ()):
            self._front = None      # others may come to the front now

    @property
    def members(self) -> Iterable[Entry]:
        """(number, signed values), the lowest number first."""
        if self._front is None:
            self._front = {}
            for number, vector in self._all.items():
                _join(self._front, number, vector)
        return sorted(self._front.items())


def _join(front: dict[int, Vector], number: int, vector: Vector) -> None:
    if not any(dominates(other, vector) for other in front.values()):
        for each in [each for each, other in front.items() if dominates(vector, other)]:
            del front[each]
        front[number] = vector


def best_of(vectors: Sequence[Vector]) -> list[Vector]:
    """Those that no other dominates."""
    return [one for one in vectors if not any(dominates(other, one) for other in vectors)]
