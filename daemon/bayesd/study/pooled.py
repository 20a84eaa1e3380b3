"""A point that was measured more than once has one value: the mean of its evaluations.

The evaluations of a point are the trial that proposed it and those that measured it again (`Trial.of`). To take the
best of them would be to take the luckiest. The mean counts every evaluation alike, the first included; where a choice
was made by the first (confirm.py), it is not to be counted, and that is the caller's to say.

Its standard error is the larger of two: what the folds within each evaluation say, as if evaluations were independent,
and what the evaluations among themselves say. They share data, so the first alone would promise too much. Sums are
exact (fsum).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bayesd.study.folds import mean_and_se
from bayesd.study.state import Study, Trial


@dataclass(frozen=True, slots=True)
class Pooled:
    """What all evaluations of a point say of the first objective."""

    trial: int
    """The one that proposed the point."""
    evaluations: tuple[int, ...]
    """The complete ones, in order."""
    mean: float
    se: float | None

    @property
    def n(self) -> int:
        return len(self.evaluations)


def evaluations(study: Study) -> dict[int, list[Trial]]:
    """Trial that proposed a point -> its complete evaluations, in order."""
    found: dict[int, list[Trial]] = {}
    for trial in study.trials:
        if trial.status == "complete" and trial.values is not None:
            found.setdefault(trial.of or trial.number, []).append(trial)
    return found


def pooled(study: Study, *, with_first: bool = True) -> dict[int, Pooled]:
    """Every point that has a complete evaluation, by the trial that proposed it. `with_first` False: a point that was
    measured again is judged by the repeats alone."""
    out = {}
    for number, trials in evaluations(study).items():
        counted = trials if with_first or len(trials) == 1 else [each for each in trials if each.number != number]
        out[number] = _pool(number, counted)
    return out


def mean_of(values: Sequence[float], ses: Sequence[float | None]) -> tuple[float, float | None]:
    """Mean of the evaluations of a point, at least one, and its standard error as far as one is known."""
    mean, between = mean_and_se(values)
    assert mean is not None
    known = [se for se in ses if se is not None]
    within = math.hypot(*known) / len(known) if len(known) == len(values) else None
    said = [each for each in (within, between) if each is not None]
    return mean, max(said, default=None)


def _pool(number: int, trials: Sequence[Trial]) -> Pooled:
    told = [trial for trial in trials if trial.values is not None]
    mean, se = mean_of([trial.values[0] for trial in told if trial.values is not None], [trial.se for trial in told])
    return Pooled(number, tuple(trial.number for trial in trials), mean, se)


def repeat_of(trial: Trial) -> int:
    """For the how-manieth time a trial measures its point again; 0 for the first evaluation. A worker uses it for other
    seeds, so it is never given twice, not even after a void."""
    if trial.of is None:
        return 0
    return 1 + sum(other.of == trial.of for other in trial.study.trials[trial.of:trial.number - 1])
