"""What an earlier study says to one that it is to help.

It is read from the earlier study itself, as it stood at the event that `study.warmed` names: complete trials whose
outcome is not younger. A complete trial never gets another outcome, so this is what it was then, but for trials that
were voided since: those are gone here as they are in forks, and the next fit starts from the prior.
"""

from collections.abc import Iterable
from typing import Any

from bayesd.study.canonical import canonical
from bayesd.study.problem import Source
from bayesd.study.state import Data, Earlier, State, Study, Trial
from bayesd_schemas.space import Params
from bayesd_schemas.study import StudySpec
from bayesd_schemas.warm import CARRIED_MAX, Carried, WarmStart

ROWS_MAX = CARRIED_MAX      # of one study: the best half of them, and an even stride of the others


class Unusable(ValueError):
    """An earlier study that has nothing to say here; the text says why."""


def sources_of(study: Study) -> tuple[Source, ...]:
    """What the earlier studies of a study say, as the optimiser is told."""
    starts = {start.study: start for start in study.spec.warm_start}
    return tuple(_source(starts.get(each.name) or WarmStart(study=each.name), each, study.spec)
                 for each in study.sources)


def events(state: State, spec: StudySpec) -> list[Data]:
    """The data of a `study.warmed` for each earlier study of a new declaration. Raises Unusable."""
    out: list[Data] = []
    for start in spec.warm_start:
        known = state.studies.get(start.study)
        if known is None:
            raise Unusable(f"this log has no study {start.study}; it has "
                           f"{', '.join(list(state.studies)[:20]) or 'none'}")
        if _objective(known, spec) is None:
            raise Unusable(_no_metric(known, spec))
        data = _data(start, Earlier(start.study, known, state.seq, state.hash.hex()), spec)
        if not data["n"]:
            raise Unusable(f"of the {known.counts['complete']} complete trials of {start.study} this space has a place "
                           "for none")
        out.append(data)
    return out


def kept(study: Study, spec: StudySpec) -> list[Data]:
    """The same for a fork, which keeps what helps its study, or none of it."""
    starts = {start.study: start for start in spec.warm_start}
    return [_data(starts.get(each.name) or WarmStart(study=each.name), each, spec) for each in study.sources
            if each.study is None or each.name in starts]


def _data(start: WarmStart, earlier: Earlier, spec: StudySpec) -> Data:
    data: Data = {"source": start.study, "at": earlier.at, "hash": earlier.hash,
                  "n": len(_source(start, earlier, spec).rows)}
    if earlier.study is None:
        data |= {"log": earlier.log, "rows": _listed(earlier.rows)}
    return data


def _listed(rows: Iterable[tuple[Params, float]]) -> list[Any]:
    return [{"params": dict(params), "cost": cost} for params, cost in rows]


def brought(said: Carried, spec: StudySpec) -> Data:
    """The data of a `study.warmed` for a study of another log. Raises Unusable."""
    if any(start.study == said.source for start in spec.warm_start):
        raise Unusable(f"{said.source} stands there already, as a study of this log")
    rows, _ = WarmStart(study=said.source).fitted(spec.space, ((row.params, row.cost) for row in said.rows))
    if not rows:
        raise Unusable(f"this space has a place for none of the {len(said.rows)} results of {said.source}")
    return _data(WarmStart(study=said.source), Earlier(
        said.source, None, said.at, said.hash, said.log, tuple(rows)), spec)


def carried(state: State, study: Study, spec: StudySpec, most_bytes: int) -> Data:
    """What a study says to one of another log, as `Carried` has it: as many results as a message has room for.
    Raises Unusable."""
    rows = _measured(Earlier(study.name, study, state.seq, state.hash.hex()), spec)
    if rows is None or not rows:
        raise Unusable(f"{study.name} has no complete trial" if rows is not None else _no_metric(study, spec))
    while len(canonical(_listed(rows))) > most_bytes and len(rows) > 1:
        rows = _telling(rows, len(rows) * 3 // 4)
    return {"source": study.name, "log": state.log, "at": state.seq, "hash": state.hash.hex(), "rows": _listed(rows)}


def _no_metric(study: Study, spec: StudySpec) -> str:
    return f"{study.name} measured no {spec.goals[0].name}; it measured {', '.join(goal.name for goal in study.goals)}"


def _objective(study: Study, spec: StudySpec) -> int | None:
    """The place of the other study's first objective among those of this one."""
    return next((at for at, goal in enumerate(study.goals) if goal.name == spec.goals[0].name), None)


def _source(start: WarmStart, earlier: Earlier, spec: StudySpec) -> Source:
    found, silent = start.fitted(spec.space, _measured(earlier, spec) or [])
    return Source(earlier.name, tuple(found), silent, start.points)


def _measured(earlier: Earlier, spec: StudySpec) -> list[tuple[Params, float]] | None:
    """Points and what was measured there, turned so that lower is better; None when it was another metric."""
    study = earlier.study
    if study is None:
        return list(earlier.rows)
    place = _objective(study, spec)
    if place is None:
        return None
    sign = 1.0 if study.goals[place].direction == "minimize" else -1.0
    return _telling([(trial.params, sign * trial.values[place]) for trial in study.trials
                     if _counts(trial, earlier.at) and trial.values is not None])


def _counts(trial: Trial, at: int) -> bool:
    return trial.status == "complete" and trial.outcome_seq <= at and trial.of is None


def _telling(rows: list[tuple[Params, float]], most: int = ROWS_MAX) -> list[tuple[Params, float]]:
    """At most so many of them, in their order."""
    if len(rows) <= most:
        return rows
    order = sorted(range(len(rows)), key=lambda row: rows[row][1])
    half = (most + 1) // 2
    others = order[half:]
    chosen = {*order[:half], *(others[at * len(others) // (most - half)] for at in range(most - half))}
    return [row for place, row in enumerate(rows) if place in chosen]
