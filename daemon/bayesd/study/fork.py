"""What a fork takes over: another study that begins with what was known at a moment of this one.

Every observation of the prefix becomes a `trial.imported`, in the order in which it was learned, so
that a model of the fork knows what the model of the study knew then. Trials that were pending are
not carried: nobody holds a lease on them in the new study. An observation that the new space has no
place for is left out and counted, since a point that is bent to fit was never measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bayesd.study.problem import Observation
from bayesd.study.state import Data, State, Study, Trial, spec_data
from bayesd_schemas.study import StudySpec


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a fork begins with: the data of its first event, then those of its trials, (number, data) each."""

    forked: Data
    imported: tuple[tuple[int, Data], ...]
    left_out: int
    """Trials whose parameters the new space does not accept."""
    why: str | None
    """What is wrong with the first of them."""
    pending: int
    """Trials without an outcome at that moment."""


def prefix(past: State, study: Study, spec: StudySpec, *, keep_queue: bool) -> Prefix:
    """What a fork of `study`, as `past` has it, begins with under the declaration `spec`."""
    same_space = spec.space == study.spec.space
    imported: list[tuple[int, Data]] = []
    numbers: dict[int, int] = {}
    refused: dict[int, str] = {}
    for trial, seen in _observations(study):
        if trial.number in refused:
            continue
        try:
            params = spec.space.check(trial.params)
        except ValueError as error:
            refused[trial.number] = f"trial {trial.number}: {error}"
            continue
        number = numbers.setdefault(trial.number, len(numbers) + 1)
        imported.append((number, _imported(study, trial, seen, params)))
    forked: Data = {
        **spec_data(spec), "origin": {"study": study.name, "at": past.seq, "hash": past.hash.hex()},
        "drawn": study.drawn if same_space else 0,
        "streams": study.streams + len(study.trials) - len(numbers)}
    if keep_queue and same_space and study.queue:
        forked["queue"] = [dict(params) for params in study.queue]
    return Prefix(forked, tuple(imported), len(refused), next(iter(refused.values()), None),
                  len(study.running) + len(study.waiting))


def _observations(study: Study) -> Iterator[tuple[Trial, Observation]]:
    """The history, but a trial's result before what is known of its point besides: a late outcome may have come
    first and must not become the result of the imported trial."""
    seen_of: dict[int, list[Observation]] = {}
    for seen in study.history:
        seen_of.setdefault(seen.trial, []).append(seen)
    result_of = {number: _result(study.trials[number - 1], seen) for number, seen in seen_of.items()}
    begun: set[int] = set()
    for seen in study.history:
        trial = study.trials[seen.trial - 1]
        result = result_of[seen.trial]
        if seen is result:
            yield trial, seen
            begun.add(seen.trial)
            for other in seen_of[seen.trial]:
                if other is result:
                    break
                yield trial, other
        elif seen.trial in begun:
            yield trial, seen


def _result(trial: Trial, seen: list[Observation]) -> Observation:
    """The observation that is the trial's outcome. Of a trial that is still pending, the first late one: in its
    study that would have become the result, had nobody told another."""
    if trial.status in ("complete", "fail"):
        for each in seen:
            if each.values == trial.values or (trial.status == "fail" and each.values is None):
                return each
    return seen[-1] if trial.status == "pruned" else seen[0]


def _imported(study: Study, trial: Trial, seen: Observation, params: Data) -> Data:
    data: Data = {"params": params, "values": None, "origin": {"study": study.name, "trial": trial.number}}
    if seen.values is not None:
        data["values"] = {goal.name: value for goal, value in zip(study.goals, seen.values, strict=True)}
        if trial.status == "pruned":
            data["state"] = "pruned"
    elif trial.status == "pruned":
        data["state"] = "pruned"
    else:
        data["class"] = trial.failure or "other"
    for name, value in (("se", seen.se), ("seconds", trial.seconds)):
        if value is not None:
            data[name] = value
    return data


def copies(state: State, told: Mapping[Trial, int]) -> list[Trial]:
    """Trials of forks that were taken over from these, and from those in turn. Each is given with the event since
    which it says what it should not: a fork of an earlier moment took over something else."""
    since = {(trial.study.name, trial.number): seq for trial, seq in told.items()}
    out = []
    for study in state.studies.values():       # a fork stands behind the study that it left
        if study.origin is None or not since:
            continue
        for trial in study.trials:
            seq = since.get(trial.origin) if trial.origin is not None else None
            if seq is not None and seq <= study.origin.at:
                out.append(trial)
                since[study.name, trial.number] = trial.proposed_seq
    return out
