"""The learning curves of complete trials by step, so that a trial finds those that stood where it stands now.

Kept by the board for `[prune] rule = "curve"`, one for each metric that is looked at, and like the board made anew from
the trials whenever it is missing. A curve is what one trial reported; the value that it told is its end.

Values are signed: lower is better. Where everything measured is above 0, as losses and accuracies are, changes are
counted as ratios: a loss that falls from 2 to 1 has gone as far as one that falls from 0.2 to 0.1.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bayesd.study.extrapolate import extrapolated
from bayesd.study.limits import keeps

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial

NEAREST = 40        # trials that one is held against: the others were further away
POINTS_MAX = 64     # of a curve that its shape is taken from
MOST = 1e100        # what is further from 0 counts as this far: its square is still a number
LOG_MAX = 700.0     # and so is the exponential of this


@dataclass(slots=True)
class Curve:
    """What a trial reported, by step, as far as it is numbers, and told."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    end: float | None = None
    guesses: dict[tuple[int, int, bool], float] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """1 where all of it is above 0, -1 below, 0 neither."""
        known = self.values if self.end is None else (*self.values, self.end)
        return 1 if min(known, default=0.0) > 0 else -1 if max(known, default=0.0) < 0 else 0

    def guess(self, step: int, horizon: int, ratios: bool) -> float:
        """What its points up to a step say of its value at the horizon, on the scale on which changes are counted."""
        key = step, horizon, ratios
        found = self.guesses.get(key)
        if found is None:
            n = bisect_left(self.steps, step + 1)
            taken: Sequence[int] = range(n) if n <= POINTS_MAX else [
                (n - 1) * j // (POINTS_MAX - 1) for j in range(POINTS_MAX)]
            found = self.guesses[key] = extrapolated(
                [self.steps[j] for j in taken], [scaled(self.values[j], ratios) for j in taken], horizon)
        return found


def scaled(value: float, ratios: bool) -> float:
    """A signed value on the scale on which changes are counted: still, lower is better."""
    return value if not ratios else math.log(value) if value > 0 else -math.log(-value)


def unscaled(value: float, ratios: bool, side: int) -> float:
    """The signed value that `scaled` made this of."""
    return value if not ratios else math.exp(min(value, LOG_MAX)) if side > 0 else -math.exp(min(-value, LOG_MAX))


def _clipped(value: float) -> float:
    return max(-MOST, min(MOST, value))


class Curves:
    """The curves of one metric."""

    def __init__(self, study: "Study", goal: int) -> None:
        self.metric = study.goals[goal].name
        self.sign = 1.0 if study.goals[goal].direction == "minimize" else -1.0
        self.at: dict[int, list[tuple[float, int]]] = {}
        """Step -> what complete trials reported there, each with its number, best first."""
        self.whole: dict[int, Curve] = {}
        """Complete trials that reported, by number."""
        self.leaders: list[tuple[float, int]] = []
        """What complete trials told that keep the study's limits, best first."""
        self._goal = goal
        self._whole_of_it = study.spec.fidelity.max if study.spec.fidelity is not None else None
        self._sides = {1: 0, -1: 0, 0: 0}
        self._led: dict[int, float] = {}

    def note(self, trial: "Trial") -> None:
        """Bring it up to date with a trial that moved."""
        number = trial.number
        belongs = trial.status == "complete" and trial.values is not None
        if belongs and keeps(trial) and number not in self._led:
            self._led[number] = self.told(trial)
            insort(self.leaders, (self._led[number], number))
        elif not belongs and number in self._led:
            del self.leaders[bisect_left(self.leaders, (self._led.pop(number), number))]
        if belongs and number not in self.whole:
            curve = self.of(trial)
            if curve.steps:
                curve.end = self.told(trial)
                self.whole[number] = curve
                self._sides[curve.side] += 1
                for step, value in zip(curve.steps, curve.values, strict=True):
                    insort(self.at.setdefault(step, []), (value, number))
        elif not belongs and number in self.whole:
            curve = self.whole.pop(number)
            self._sides[curve.side] -= 1
            for step, value in zip(curve.steps, curve.values, strict=True):
                known = self.at[step]
                del known[bisect_left(known, (value, number))]
                if not known:
                    del self.at[step]

    def told(self, trial: "Trial") -> float:
        """The signed value of a complete trial."""
        assert trial.values is not None
        return _clipped(self.sign * trial.values[self._goal])

    def of(self, trial: "Trial") -> Curve:
        """The curve of any trial so far."""
        points = sorted((step, _clipped(self.sign * value)) for step, values in trial.said.items()
                        if (value := values.get(self.metric)) is not None)
        return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))

    @property
    def horizon(self) -> int | None:
        """The last step: the whole of the fidelity, or else the furthest that a complete trial reported."""
        return self._whole_of_it if self._whole_of_it is not None else max(self.at, default=None)

    def nearest(self, step: int, value: float) -> list[Curve]:
        """The complete trials that reported nearest to a value at a step, about half of them better."""
        known = self.at.get(step, [])
        place = bisect_left(known, (value, 0))
        first = max(0, min(place - NEAREST // 2, len(known) - NEAREST))
        return [self.whole[number] for _, number in known[first:first + NEAREST]]

    def by_ratios(self, curve: Curve) -> bool:
        """Whether changes are counted as ratios: where this curve and all others are above 0."""
        return curve.side != 0 and self._sides[curve.side] == len(self.whole)
