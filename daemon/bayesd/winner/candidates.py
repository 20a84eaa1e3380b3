"""One point, one candidate: trials at equal points, and the repeats of each, are averaged.

Whoever takes the best of the evaluations of a point takes the luckiest. What-ifs look at trials one by one, so `Entry`
keeps what each of them measured, and the means are taken where a choice is made.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bayesd.study import ladder, limits
from bayesd.study.pooled import evaluations, mean_of
from bayesd.study.state import Study, Trial
from bayesd_schemas.space import Params


@dataclass(frozen=True, slots=True)
class Repeat:
    """One more evaluation of a trial's point."""

    trial: int
    values: tuple[float, ...]
    se: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete trial that may be chosen."""

    trial: int
    params: Params
    value: float
    se: float | None
    seconds: float | None
    values: tuple[float, ...] = ()
    """Of all objectives."""
    fidelity: int | None = None
    """Of a trial that was not trained to the end, the rung at which it told its value."""
    repeats: tuple[Repeat, ...] = ()
    """What measured its point again; in a candidate none is left."""
    evaluations: tuple[int, ...] = ()
    """Of a candidate, the trials that it is the mean of."""

    @property
    def n(self) -> int:
        return max(len(self.evaluations), 1)

    def among(self, trials: Collection[int]) -> "Entry":
        """As if only these trials had been."""
        return replace(self, repeats=tuple(each for each in self.repeats if each.trial in trials))


def eligible(trial: Trial) -> bool:
    """Whether a trial may be the winner: complete, it keeps the limits, and no repeat, whose values speak for their
    leader."""
    return trial.status == "complete" and trial.values is not None and trial.of is None and limits.keeps(trial)


def entries(study: Study) -> tuple[Entry, ...]:
    """The trials of a study that may be chosen, frozen. Where trials climb rungs and none is complete, those at the
    highest rung that was reached. A trial whose point breaks a limit on average, measured again, is none of them."""
    again = evaluations(study)
    complete = []
    for trial in study.trials:
        if not eligible(trial) or trial.values is None:
            continue
        repeats = [each for each in again[trial.number] if each is not trial]
        if repeats and limits.broken(study, limits.mean([trial.limits, *(each.limits for each in repeats)])):
            continue
        complete.append(Entry(trial.number, trial.params, trial.values[0], trial.se, trial.seconds, trial.values,
                              repeats=tuple(Repeat(each.number, each.values, each.se, each.seconds)
                                            for each in repeats if each.values is not None)))
    if complete or not study.spec.resumes:
        return tuple(complete)
    climbed = [(trial, max(trial.rungs)) for trial in ladder.furthest(study) if trial.rungs]
    highest = max((rung for _, rung in climbed), default=0)
    return tuple(Entry(trial.number, trial.params, trial.rungs[highest].values[0], trial.rungs[highest].se,
                       trial.seconds, trial.rungs[highest].values, highest) for trial, _ in climbed if trial.rungs)


def candidates(measured: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries, each point once, by the earliest of its trials."""
    points: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in measured:
        points.setdefault(tuple(sorted((name, repr(value)) for name, value in entry.params.items())), []).append(entry)
    return tuple(_one(same) for same in points.values())


def _one(same: Sequence[Entry]) -> Entry:
    first = min(same, key=lambda entry: entry.trial)
    every = sorted((*(Repeat(entry.trial, entry.values or (entry.value,), entry.se, entry.seconds) for entry in same),
                    *(repeat for entry in same for repeat in entry.repeats)), key=lambda each: each.trial)
    if len(every) == 1:
        return replace(first, evaluations=(first.trial,))
    value, se = mean_of([each.values[0] for each in every], [each.se for each in every])
    values = tuple(mean_of([each.values[j] for each in every], [None] * len(every))[0]
                   for j in range(len(first.values)))
    known = [each.seconds for each in every if each.seconds is not None]
    return replace(first, value=value, se=se, values=values, repeats=(),
                   seconds=mean_of(known, [None] * len(known))[0] if known else None,
                   evaluations=tuple(each.trial for each in every))
