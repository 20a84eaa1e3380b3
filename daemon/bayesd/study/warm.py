"""What an earlier study says to one that it is to help.

It is read from the earlier study itself, as it stood at the event that `study.warmed` names: complete trials whose
outcome is not younger. A complete trial never gets another outcome, so this is what it was then, but for trials that
were voided since: those are gone here as they are in forks, and the next fit starts from the prior.
"""

from bayesd.study.problem import Source
from bayesd.study.state import Data, Earlier, State, Study, Trial
from bayesd_schemas.space import Params
from bayesd_schemas.study import StudySpec
from bayesd_schemas.warm import WarmStart

ROWS_MAX = 1000     # of one study: the best half of them, and an even stride of the others


class Unusable(ValueError):
    """An earlier study that has nothing to say here; the text says why."""


def sources_of(study: Study) -> tuple[Source, ...]:
    """What the earlier studies of a study say, as the optimiser is told."""
    starts = {start.study: start for start in study.spec.warm_start}
    return tuple(_source(starts[each.study.name], each, study.spec) for each in study.sources)


def events(state: State, spec: StudySpec) -> list[Data]:
    """The data of a `study.warmed` for each earlier study of a new declaration. Raises Unusable."""
    out: list[Data] = []
    for start in spec.warm_start:
        known = state.studies.get(start.study)
        if known is None:
            raise Unusable(f"this log has no study {start.study}; it has "
                           f"{', '.join(list(state.studies)[:20]) or 'none'}")
        if _objective(known, spec) is None:
            raise Unusable(f"{start.study} measured no {spec.goals[0].name}; it measured "
                           f"{', '.join(goal.name for goal in known.goals)}")
        data = _data(start, Earlier(known, state.seq, state.hash.hex()), spec)
        if not data["n"]:
            raise Unusable(f"of the {known.counts['complete']} complete trials of {start.study} this space has a place "
                           "for none")
        out.append(data)
    return out


def kept(study: Study, spec: StudySpec) -> list[Data]:
    """The same for a fork, which keeps what helps its study, or none of it."""
    starts = {start.study: start for start in spec.warm_start}
    return [_data(starts[each.study.name], each, spec) for each in study.sources if each.study.name in starts]


def _data(start: WarmStart, earlier: Earlier, spec: StudySpec) -> Data:
    return {"source": start.study, "at": earlier.at, "hash": earlier.hash,
            "n": len(_source(start, earlier, spec).rows)}


def _objective(study: Study, spec: StudySpec) -> int | None:
    """The place of the other study's first objective among those of this one."""
    return next((at for at, goal in enumerate(study.goals) if goal.name == spec.goals[0].name), None)


def _source(start: WarmStart, earlier: Earlier, spec: StudySpec) -> Source:
    place = _objective(earlier.study, spec) or 0
    sign = 1.0 if earlier.study.goals[place].direction == "minimize" else -1.0
    rows: list[tuple[Params, float]] = [
        (trial.params, sign * trial.values[place]) for trial in earlier.study.trials
        if _counts(trial, earlier.at) and trial.values is not None]
    found, silent = start.fitted(spec.space, _telling(rows))
    return Source(start.study, tuple(found), silent, start.points)


def _counts(trial: Trial, at: int) -> bool:
    return trial.status == "complete" and trial.outcome_seq <= at and trial.of is None


def _telling(rows: list[tuple[Params, float]]) -> list[tuple[Params, float]]:
    """At most ROWS_MAX of them, in their order."""
    if len(rows) <= ROWS_MAX:
        return rows
    order = sorted(range(len(rows)), key=lambda row: rows[row][1])
    half = ROWS_MAX // 2
    others = order[half:]
    chosen = {*order[:half], *(others[at * len(others) // half] for at in range(half))}
    return [row for place, row in enumerate(rows) if place in chosen]
