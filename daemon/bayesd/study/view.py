"""What people and workers are shown of a state: plain dictionaries, ready for JSON."""

from typing import Any

from bayesd.study import eta, ladder, limits
from bayesd.study.state import Lease, State, Study, Trial, Worker


def study_row(study: Study) -> dict[str, Any]:
    """A study in one line."""
    goal = study.goals[0]
    return {"study": study.name, "state": study.status, "closed_by": study.closed_by, "method": study.spec.method,
            "trials": study.used, "budget": study.spec.budget.trials, "running": study.counts["running"],
            "complete": study.counts["complete"], "fail": study.counts["fail"],
            "metric": goal.name, "direction": goal.direction,
            **({"paused": len(study.paused)} if study.spec.resumes else {}),
            "best": None if (found := best(study)) is None else found["value"]}


def study_state(state: State, study: Study, elapsed_s: float) -> dict[str, Any]:
    """A study's retained public state."""
    spec = study.spec
    return {
        "study": study.name, "state": study.status, "closed_by": study.closed_by,
        "objectives": [goal.model_dump(exclude_none=True) for goal in study.goals],
        **({"limits": [limit.model_dump(exclude_none=True) for limit in spec.limits]} if spec.limits else {}),
        "space": spec.space.model_dump(mode="json", exclude_unset=True), "space_rev": study.space_rev,
        "trials": {**counts(study), "total": study.used, **imported(study)},
        "budget": {"trials": spec.budget.trials, "wall": spec.budget.wall, "cost": spec.budget.cost,
                   "used_trials": study.used, "used_wall": round(elapsed_s, 3), "used_cost": study.cost,
                   **({} if spec.budget.fidelity is None else {"fidelity": spec.budget.fidelity,
                                                               "used_fidelity": ladder.trained(study)})},
        "best": best(study), **_forecast(study, elapsed_s),
        "log": state.log, "epoch": state.epoch, "seq": state.seq}


def _forecast(study: Study, elapsed_s: float) -> dict[str, Any]:
    """When it ends at the pace seen so far, by which rule, and what it costs until then; None when nothing tells."""
    ends = eta.forecast(study, elapsed_s)
    said = None if ends is None else ends.words()
    return {"eta_s": 0.0 if study.status == "closed" else None if said is None else said["eta_s"],
            "eta": None if said is None else {name: said[name] for name in ("low_s", "high_s", "rule")},
            "cost": eta.costs(study, elapsed_s)}


def counts(study: Study) -> dict[str, int]:
    """Trials by state; paused ones where there may be some."""
    return {**study.counts, "paused": len(study.paused)} if study.spec.resumes else dict(study.counts)


def imported(study: Study) -> dict[str, int]:
    """Of the finished trials, those that were measured elsewhere, which no budget counts."""
    return {"imported": study.imported} if study.imported else {}


def origin(study: Study) -> dict[str, Any]:
    """Where a fork began."""
    if study.origin is None:
        return {}
    return {"origin": {"study": study.origin.study, "at": study.origin.at, "hash": study.origin.hash}}


def confirmation(study: Study) -> dict[str, Any]:
    """What was measured again, and what came of it."""
    if not study.repeated:
        return {}
    return {"confirmation": {"leaders": list(study.repeated), "left": len(study.confirm), "winner": study.winner,
                             "is_announced": study.is_announced}}


def best(study: Study) -> dict[str, Any] | None:
    """The complete trial with the best observed value, or None. Where trials climb rungs and none is complete, the
    best at the highest rung that was reached, and which that is."""
    trial = study.best
    if trial is None and study.spec.resumes:
        return _furthest(study)
    if trial is None or trial.values is None:
        return None
    return {"trial": trial.number, "value": trial.values[0], "values": measured(trial),
            "params": dict(trial.params)}


def _furthest(study: Study) -> dict[str, Any] | None:
    trial = next(iter(ladder.furthest(study)), None)
    if trial is None or not trial.rungs:
        return None
    fidelity = max(trial.rungs)
    values = trial.rungs[fidelity].values
    return {"trial": trial.number, "value": values[0], "values": named(study, values), "params": dict(trial.params),
            "fidelity": fidelity}


def named(study: Study, values: tuple[float, ...] | None) -> dict[str, float] | None:
    return None if values is None else {goal.name: value for goal, value in zip(study.goals, values, strict=True)}


def measured(trial: Trial) -> dict[str, float] | None:
    """Metric -> value: objectives, and what the study has a limit on."""
    return {**(named(trial.study, trial.values) or {}), **limits.named(trial.study, trial.limits)} or None


SHOWN_MAX = 100     # leases and late outcomes that a page shows, the newest


def lease_of(trial: Trial) -> Lease | None:
    """Whose work a trial is: the lease that its outcome came from, else the newest.

    A tell stands at its lease. Of a late outcome that became the result the lease ended long before, and others may
    have come after it; the first late one is the one that is taken.
    """
    if not trial.leases or not trial.outcome_seq:
        return trial.leases[-1] if trial.leases else None
    for lease in reversed(trial.leases):
        if lease.proof is not None and lease.told_seq == trial.outcome_seq:
            return lease
    late = trial.late[0] if trial.late else None
    if (late is not None and late.seq < trial.outcome_seq and late.failure == trial.failure
            and late.values == measured(trial)):
        return trial.lease(late.fence) or trial.leases[-1]
    return trial.leases[-1]


def trial_row(trial: Trial) -> dict[str, Any]:
    """A trial in one line."""
    lease, broken = lease_of(trial), limits.broken(trial.study, trial.limits) if trial.status == "complete" else ()
    return {"trial": trial.number, "state": trial.status, "params": dict(trial.params),
            "values": measured(trial), "se": trial.se, "seconds": trial.seconds,
            "class": trial.failure, "sampler": trial.sampler, "fence": trial.fence,
            "worker": lease.worker if lease is not None else None, **({"broken": list(broken)} if broken else {}),
            **({"fidelity": max(trial.rungs)} if trial.rungs and trial.status != "complete" else {})}


def trial_page(trial: Trial) -> dict[str, Any]:
    """Everything about a trial."""
    return {**trial_row(trial), "space_rev": trial.space_rev, "proposed_seq": trial.proposed_seq,
            "outcome_seq": trial.outcome_seq or None, "failures": trial.failures or {},
            **({} if trial.origin is None else {"origin": {"study": trial.origin[0], "trial": trial.origin[1]}}),
            **({} if trial.of is None else {"of": trial.of}),
            **({} if not trial.rungs else {"checkpoint": trial.checkpoint, "rungs": [
                [fidelity, named(trial.study, rung.values)] for fidelity, rung in trial.rungs.items()]}),
            "leases": [{"fence": lease.fence, "worker": lease.worker, "run": lease.run, "lease_s": lease.lease_s,
                        "ended": lease.ended, "told_seq": lease.told.seq if lease.told else None}
                       for lease in trial.leases[-SHOWN_MAX:]],
            "reports": [[step, values] for step, values in sorted(trial.said.items())],
            "late": [{"state": outcome.state, "values": outcome.values, "seq": outcome.seq}
                     for outcome in (trial.late or [])[-SHOWN_MAX:]]}


def worker_row(worker: Worker) -> dict[str, Any]:
    """A worker in one line."""
    return {"worker": worker.name, "run": worker.run, "runs": len(worker.replaced) + (worker.run is not None),
            "leases": [[lease.trial.study.name, lease.trial.number, lease.fence]
                       for lease in list(worker.open)[-SHOWN_MAX:]],
            "open": len(worker.open),
            "revoked": worker.revoked}
