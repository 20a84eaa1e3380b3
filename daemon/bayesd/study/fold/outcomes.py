"""Outcomes of trials, and what the optimiser learns from each: told, late, imported, taken back."""

from sys import intern
from typing import Literal

from bayesd.study import limits
from bayesd.study.fold.common import (
    as_number,
    as_numbers,
    count_failure,
    end,
    end_open,
    forget,
    lease_of,
    move,
    study_of,
    told_of,
    trial_of,
    typed,
    values_of,
)
from bayesd.study.folds import by_step
from bayesd.study.ladder import Rung
from bayesd.study.problem import Observation
from bayesd.study.reached import Curve, as_curve, curve_of, share_of
from bayesd.study.state import Data, Event, Outcome, State, Study, Trial, TrialStatus, is_better, may_lead


def _finish(state: State, event: Event, status: Literal["complete", "fail", "pruned", "paused"]) -> Trial:
    """Record the outcome of a trial, in place of a provisional one."""
    trial = trial_of(state, event)
    study, data = trial.study, event.data
    lease = lease_of(trial, event)
    promoted = "promoted" in data      # a late outcome became the result: its lease ended long ago
    if trial.is_provisional:
        forget(trial, keep_late=True)
    if not promoted:
        told = told_of(event, "recorded")
        if told is not None:           # else it is not the worker's word, and an earlier tell stays on record
            lease.told = told
            _count(trial, data)
            end(state, lease, "told")
        elif lease.ended is None:
            end(state, lease, data.get("ended", "cancelled"))
    trial.values = values_of(study, data)
    trial.se = as_number(data.get("se"))
    trial.limits = limits.read(study.spec, data.get("values"))
    trial.seconds = as_number(data.get("seconds"))
    trial.failure = data.get("class")
    trial.outcome_seq = event.seq
    if trial.reports is not None and status != "pruned" and trial.failure != "lost":    # that may be held again
        trial.reports = trial.said
    if study.spec.folds is not None and status == "complete" and data.get("folds") is not None:
        trial.reports = by_step(study, data["folds"])        # what others are compared with, fold by fold
    move(trial, status)
    return trial


def _count(trial: Trial, data: Data) -> None:
    """Add up what a tell cost, late or not: it was spent. What measures a leader again counts for no budget."""
    study = trial.study
    if trial.of is None:
        study.cost += float(data.get("cost") or 0.0)
    if data.get("seconds") is not None:
        study.told_seconds += float(data["seconds"])
        study.told_count += 1


def _observe(trial: Trial, values: tuple[float, ...] | None, se: float | None, measured: limits.Measured = (),
             spent: float | None = None, fidelity: float | None = None, curve: Curve = ()) -> None:
    trial.study.learned[0].append(Observation(trial.number, trial.params, values, se, limits=measured, spent=spent,
                                              fidelity=fidelity, curve=curve))


def _spent(study: Study, data: Data) -> float | None:
    """What a trial that ended well took, where the study wants to know it: what failed or was stopped says little of
    what its point takes."""
    return None if study.spec.cost is None else as_number(data.get(study.spec.cost.per))


def _supersede(trial: Trial) -> None:
    """Take back what the last rung of a trial taught: more is known of it now. No fit goes with it, since an
    observation comes in its place."""
    if not trial.rungs:
        return
    values, known = trial.rungs[max(trial.rungs)].values, trial.study.history
    place = next((place for place in reversed(range(len(known)))
                  if known[place].trial == trial.number and known[place].values == values), None)
    if place is not None:
        trial.study.history = known[:place] + known[place + 1:]      # the list may be read by a thread


def trial_completed(state: State, event: Event) -> None:
    best = study_of(state, event).best       # before this trial is one of those it is looked for among
    trial = _finish(state, event, "complete")
    _supersede(trial)
    if "promoted" not in event.data or trial.study.spec.late == "ignore":    # else it is known already
        _observe(trial, trial.values, trial.se, trial.limits, _spent(trial.study, event.data),
                 curve=() if "promoted" in event.data else curve_of(trial))
    if may_lead(trial) and is_better(trial.study, trial, best):
        trial.study.best = trial


def trial_failed(state: State, event: Event) -> None:
    data = event.data
    if data.get("retry"):
        trial = trial_of(state, event)
        lease = lease_of(trial, event)
        lease.told = told_of(event, "recorded")
        _count(trial, data)
        if trial.is_provisional:
            forget(trial, keep_late=True)
        trial.failure = None
        count_failure(trial, data["class"])
        if lease.ended is None:
            end(state, lease, "told")
        move(trial, "waiting")
        return
    trial = _finish(state, event, "fail")
    _supersede(trial)
    _observe(trial, None, None, trial.limits)


def trial_paused(state: State, event: Event) -> None:
    """A rung is told: what is learned of the point until more is known."""
    trial = _finish(state, event, "paused")
    _supersede(trial)
    assert trial.values is not None
    trial.rungs = {**(trial.rungs or {}), event.data["fidelity"]: Rung(
        trial.values, event.seq, trial.se, trial.limits)}
    trial.checkpoint = event.data.get("checkpoint")
    if trial.study.ladder is not None:
        trial.study.ladder.note(trial)
    _observe(trial, trial.values, trial.se, trial.limits, fidelity=share_of(trial), curve=curve_of(trial))


def trial_pruned(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    said = trial.said
    trial = _finish(state, event, "pruned")
    values = trial.values
    if said:         # the last report is what is known of the point
        last = said[max(said)]
        trial.limits = limits.read(trial.study.spec, event.data.get("values"), last)
        values = values_of(trial.study, {"values": last}) if values is None else values
    elif values is None and trial.rungs:
        values = trial.rungs[max(trial.rungs)].values
    if trial.failure != "lost":         # that may be held again
        trial.reports = said or None
    if event.data.get("learn") is not False:
        _supersede(trial)
        estimate = event.data.get("estimate")
        if estimate is not None:        # better than the last of the folds that were measured
            _observe(trial, values_of(trial.study, estimate), as_number(estimate.get("se")), trial.limits)
        else:
            _observe(trial, values, None, trial.limits, fidelity=None if values is None else share_of(trial),
                     curve=curve_of(trial))


def outcome_late(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    study, data = trial.study, event.data
    lease_of(trial, event).told = told_of(event, "late")
    _count(trial, data)
    outcome = Outcome(data["state"], data["fence"], as_numbers(data["values"]) if "values" in data else None,
                      as_number(data.get("se")), as_number(data.get("seconds")), data.get("class"), event.seq)
    trial.late = [*(trial.late or ()), outcome]
    values = values_of(study, data)
    if (study.spec.late == "use" and trial.status != "voided" and values is not None
            and data.get("learn") is not False):
        _observe(trial, values, outcome.se, limits.read(study.spec, outcome.values),
                 _spent(study, data) if data["state"] == "complete" else None)


def _partly(data: Data) -> tuple[float | None, Curve]:
    """How far what was measured elsewhere was trained, and what it had on the way."""
    return as_number(data.get("fidelity")), as_curve(data.get("curve") or ())


def trial_imported(state: State, event: Event) -> None:
    """A result that was measured elsewhere: a trial without a lease, or one more observation of such a trial."""
    study, data = study_of(state, event), event.data
    assert event.trial is not None
    values, se = values_of(study, data), as_number(data.get("se"))
    measured = limits.read(study.spec, data.get("values"))
    if event.trial <= len(study.trials):
        trial = study.trials[event.trial - 1]
        if data.get("result"):
            _replace_imported(trial, event)
            return
        told = as_numbers(data["values"]) if data.get("values") is not None else None
        trial.late = [*(trial.late or ()), Outcome(
            "fail" if values is None else "complete", 0, told, se, None, data.get("class"), event.seq)]
        _observe(trial, values, se, measured, as_number(data.get("spent")), *_partly(data))
        return
    assert event.trial == len(study.trials) + 1, "trial numbers have no holes"
    status: TrialStatus = data.get("state") or ("fail" if values is None else "complete")
    origin = data["origin"]
    best = study.best
    trial = Trial(study, event.trial, typed(study, data["params"]), study.space_rev, "imported", event.seq, status,
                  values=values, se=se, limits=measured, seconds=as_number(data.get("seconds")),
                  failure=data.get("class"),
                  outcome_seq=event.seq, origin=(intern(origin["study"]), origin["trial"]))
    study.trials.append(trial)
    study.counts[status] += 1
    study.imported += 1
    _observe(trial, values, se, measured, as_number(data.get("spent")), *_partly(data))
    if may_lead(trial) and is_better(study, trial, best):
        study.best = trial


def _replace_imported(trial: Trial, event: Event) -> None:
    """The outcome of an imported trial of which a late one was learned before: that becomes the late one it was."""
    study, data = trial.study, event.data
    best = study.best
    said: dict[str, float | None] | None = {
        **({} if trial.values is None else dict(zip((goal.name for goal in study.goals), trial.values, strict=True))),
        **limits.named(study, trial.limits)} or None
    trial.late = [Outcome("fail" if trial.values is None else "complete", 0, said, trial.se, trial.seconds,
                          trial.failure, trial.outcome_seq), *(trial.late or ())]
    trial.values, trial.se = values_of(study, data), as_number(data.get("se"))
    trial.seconds = as_number(data.get("seconds"))
    trial.limits = limits.read(study.spec, data.get("values"))
    trial.failure, trial.outcome_seq = data.get("class"), event.seq
    move(trial, data.get("state") or ("fail" if trial.values is None else "complete"))
    _observe(trial, trial.values, trial.se, trial.limits, as_number(data.get("spent")), *_partly(data))
    if best is trial:
        study.leader_left = True
    elif may_lead(trial) and is_better(study, trial, best):
        study.best = trial


def outcome_voided(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    trial.study.imported -= trial.origin is not None
    if trial.status != "voided":
        trial.study.again -= trial.of is not None
    trial.study.confirm = [number for number in trial.study.confirm if number != trial.number]
    trial.study.remeasure = [number for number in trial.study.remeasure if number != trial.number]
    end_open(state, trial, event.data.get("ended", "voided"))
    move(trial, "voided")
    forget(trial, keep_late=False)
    if trial.study.leader is trial:
        trial.study.leader_left = True
    for other in state.studies.values():      # what learned from it knows it no more
        if other.learned_from(trial):
            other.version += 1
            other.fit = None
    if trial.study.status != "closed":
        trial.study.stopping = None              # it may rest on what is taken back: it is judged again
