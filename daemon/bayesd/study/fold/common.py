"""What the handlers of all events share: finding what an event is about, and moving it."""

from sys import intern
from typing import Any

from bayesd.study.state import Data, Event, Lease, State, Study, Told, Trial, TrialStatus
from bayesd_schemas.space import Params


def study_of(state: State, event: Event) -> Study:
    assert event.study is not None
    study = state.studies[event.study]
    elapsed_s = event.data.get("elapsed_s")
    if elapsed_s is not None:
        study.elapsed_s = float(elapsed_s)
    return study


def trial_of(state: State, event: Event) -> Trial:
    study = study_of(state, event)
    assert event.trial is not None
    return study.trials[event.trial - 1]


def lease_of(trial: Trial, event: Event) -> Lease:
    lease = trial.lease(event.data["fence"])
    assert lease is not None, "the fence was never handed out"
    return lease


def move(trial: Trial, status: TrialStatus) -> None:
    """Put a trial into a status; the study's counts and lists follow."""
    study = trial.study
    study.counts[trial.status] -= 1
    study.counts[status] = study.counts.get(status, 0) + 1
    study.running.pop(trial.number, None)
    study.waiting.pop(trial.number, None)
    study.paused.pop(trial.number, None)
    trial.status = status
    if status == "running":
        study.running[trial.number] = trial
    elif status == "waiting":
        study.waiting[trial.number] = trial
    elif status == "paused":
        study.paused[trial.number] = trial
    if study.board is not None:
        study.board.note(trial)
    if study.ladder is not None:
        study.ladder.note(trial)


def end(state: State, lease: Lease, reason: str) -> None:
    lease.ended = reason
    lease.at = ""
    state.workers[lease.worker].open.pop(lease, None)


def end_open(state: State, trial: Trial, reason: str) -> None:
    lease = trial.open_lease
    if lease is not None:
        end(state, lease, reason)


def typed(study: Study, params: dict[str, Any]) -> Params:
    """Params as the space has them, in its order: canonical JSON sorts keys and writes 1.0 as 1."""
    out: dict[str, Any] = {}
    for name, parameter in study.spec.space.root.items():
        if name in params:
            value = params[name]
            if type(value) is int and parameter.type == "float":
                value = float(value)
            elif type(value) is str:
                value = intern(value)      # a choice, said once for all trials
            elif type(value) is float and parameter.type != "float" and value.is_integer():
                value = int(value)
            out[name] = value
    return out


def count_failure(trial: Trial, failure: str, by: int = 1) -> None:
    trial.failures = trial.failures or {}
    trial.failures[failure] = trial.failures.get(failure, 0) + by


def told_of(event: Event, status: str) -> Told | None:
    message = event.data.get("message")
    return Told(bytes.fromhex(message), event.seq, event.hash, status) if message is not None else None


def as_number(value: Any) -> float | None:
    """Canonical JSON writes 1.0 as 1 and -0.0 as 0; life and replay read both alike."""
    return None if value is None else float(value) + 0.0


def as_numbers(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: as_number(value) for name, value in values.items()}


def values_of(study: Study, data: Data) -> tuple[float, ...] | None:
    """The objectives' values of an outcome, in the study's order."""
    values = data.get("values")
    if values is None:
        return None
    found = [values.get(goal.name) for goal in study.goals]
    return None if None in found else tuple([float(value) + 0.0 for value in found])


def forget(trial: Trial, *, keep_late: bool) -> None:
    """Take back what the optimiser knew of a trial: its provisional outcome alone, or its late outcomes too."""
    study = trial.study
    known, gone = study.learned
    values_before, _ = gone.get(trial.number, (0, 0))
    if trial.status == "pruned" and not trial.rungs:
        # Provisionally: its last report was learned, and late outcomes only after it.
        values_before = next((place for place in range(values_before + 1, len(known) + 1)
                              if known[place - 1].trial == trial.number and known[place - 1].values is not None),
                             values_before)
    gone[trial.number] = (values_before if keep_late else len(known)), len(known)
    study.version += 1
    # A fit that saw what is gone is gone with it, and the next starts from the prior: whether or not it saw
    # it, so that what is known afterwards does not depend on that (see `knowledge.py`).
    study.fit = None


def nothing(state: State, event: Event) -> None:
    """Facts for people and for the audit, which the state does not need."""
