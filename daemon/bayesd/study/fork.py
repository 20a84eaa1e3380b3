"""What a fork takes over: another study that begins with what was known at a moment of this one.

Every observation of the prefix becomes a `trial.imported`, in the order in which it was learned, so
that a model of the fork knows what the model of the study knew then, to the last bit. A late outcome
may have been learned before the trial's result: the event of the result says so. Trials that were
pending are not carried: nobody holds a lease on them in the new study; of one that a late outcome is
known of, that is taken over as its result. An observation that the new space has no
place for is left out and counted, since a point that is bent to fit was never measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bayesd.study import limits
from bayesd.study.problem import Observation
from bayesd.study.spec import spec_data
from bayesd.study.state import Data, Outcome, State, Study, Trial
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
    """Trials of which nothing was known at that moment."""


def prefix(past: State, study: Study, spec: StudySpec, *, keep_queue: bool) -> Prefix:
    """What a fork of `study`, as `past` has it, begins with under the declaration `spec`."""
    same_space = spec.space == study.spec.space
    imported: list[tuple[int, Data]] = []
    numbers: dict[int, int] = {}
    refused: dict[int, str] = {}
    for trial, seen, is_result in _observations(study):
        if trial.number in refused:
            continue
        try:
            unchanged = same_space and trial.space_rev == study.space_rev
            params = trial.params if unchanged else spec.space.check(trial.params)
        except ValueError as error:
            refused[trial.number] = f"trial {trial.number}: {error}"
            continue
        data = _imported(study, trial, seen, dict(params), is_result)
        if spec.goals[0].name != study.goals[0].name:      # it is of another objective
            data.pop("se", None)
        if seen.spent is not None and spec.cost is not None and study.spec.cost is not None and (
                spec.cost.per == study.spec.cost.per):
            data["spent"] = seen.spent
        if is_result and trial.number in numbers:
            data["result"] = True
        imported.append((numbers.setdefault(trial.number, len(numbers) + 1), data))
    forked: Data = {
        **spec_data(spec), "origin": {"study": study.name, "at": past.seq, "hash": past.hash.hex()},
        "drawn": study.drawn if same_space else 0,
        "streams": study.streams + len(study.trials) - len(numbers)}
    if keep_queue and same_space and study.queue:
        forked["queue"] = [dict(params) for params in study.queue]
    return Prefix(forked, tuple(imported), len(refused), next(iter(refused.values()), None),
                  sum(number not in numbers and number not in refused
                      for number in (*study.running, *study.waiting)))


def _observations(study: Study) -> Iterator[tuple[Trial, Observation, bool]]:
    """The history, each with whether it is its trial's result or what is known of the point besides."""
    seen_of: dict[int, list[Observation]] = {}
    for seen in study.history:
        seen_of.setdefault(seen.trial, []).append(seen)
    for seen in study.history:
        trial, all_seen = study.trials[seen.trial - 1], seen_of[seen.trial]
        yield trial, seen, len(all_seen) == 1 or seen is all_seen[_place(trial, all_seen)]


Said = tuple[tuple[float, ...] | None, float | None, limits.Measured]


def _place(trial: Trial, seen: list[Observation]) -> int:
    """Which of a trial's observations is its outcome. It has its place in the log between late outcomes, some of
    which may not have been used. Of a trial that is still pending, the first: in its study that would have become
    the result, had nobody told another."""
    if trial.is_pending and not trial.rungs:
        return 0
    result, said = _result(trial), [(each.values, each.se, each.limits) for each in seen]
    if trial.status == "complete" and trial.promoted:      # known since it came
        return said.index(result) if result in said else 0
    if trial.status == "pruned" and trial.promoted and len(seen) == sum(
            late.state != "fail" and _late(trial, late)[0] is not None for late in trial.late or ()):
        return 0                                           # so is this; earlier logs learned it again
    told = trial.rungs[max(trial.rungs)].seq if trial.rungs and trial.status not in ("complete", "fail") else \
        trial.outcome_seq
    early = [_late(trial, late) for late in trial.late or () if late.seq < told]
    after = [_late(trial, late) for late in trial.late or () if late.seq > told]
    for place in reversed(range(len(said))):
        is_result = said[place] == result or (trial.status == "pruned" and trial.study.spec.folds is not None)
        if is_result and _within(said[:place], early) and _within(said[place + 1:], after):
            return place       # of a trial that was stopped after some folds an estimate is known, not what it reported
    return 0


def _result(trial: Trial) -> Said:
    """What the optimiser learned from a trial's outcome."""
    if trial.rungs and trial.status not in ("complete", "fail"):      # what it told last stands, until it tells more
        told = trial.rungs[max(trial.rungs)]
        if trial.status != "pruned" or trial.values == told.values or (trial.values is None and not trial.reports):
            return told.values, told.se, trial.limits
    if trial.status != "pruned":
        return (trial.values, trial.se, trial.limits) if trial.status == "complete" else (None, None, trial.limits)
    if trial.values is None and trial.reports:      # the last report is what is known of the point
        return _values(trial.study, trial.said[max(trial.reports)]), None, trial.limits
    return trial.values, trial.se if trial.origin is not None else None, trial.limits


def _late(trial: Trial, late: Outcome) -> Said:
    said = late.values or {}
    return _values(trial.study, said), late.se, limits.read(trial.study.spec, said)


def _values(study: Study, said: Mapping[str, float | None]) -> tuple[float, ...] | None:
    """The objectives' values, or None when one of them is missing."""
    found = tuple(value for goal in study.goals if (value := said.get(goal.name)) is not None)
    return found if len(found) == len(study.goals) else None


def _within(some: list[Said], all_: list[Said]) -> bool:
    """These are among those, in this order."""
    rest = iter(all_)
    return all(each in rest for each in some)


def _imported(study: Study, trial: Trial, seen: Observation, params: Data, is_result: bool) -> Data:
    data: Data = {"params": params, "values": None, "origin": {"study": study.name, "trial": trial.number}}
    if seen.values is not None or seen.limits:
        data["values"] = {**({} if seen.values is None else dict(zip(
            (goal.name for goal in study.goals), seen.values, strict=True))), **limits.named(study, seen.limits)}
    if is_result and (trial.status == "pruned" or (trial.rungs and trial.status in ("running", "waiting", "paused"))):
        data["state"] = "pruned"
    elif seen.values is None:
        data["class"] = trial.failure or "other"
    seconds = trial.seconds if is_result else None
    if trial.is_pending:
        said = seen.values, seen.se, seen.limits
        seconds = next((late.seconds for late in trial.late or () if _late(trial, late) == said), None)
    for name, value in (("se", seen.se), ("seconds", seconds), ("fidelity", seen.fidelity),
                        ("curve", [list(rung) for rung in seen.curve] or None)):
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
