"""Events of trials on their way: proposed, leased, given back, lost, reported on, stopped."""

from sys import intern

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
)
from bayesd.study.state import MEASURED, Event, Lease, State, Study, Trial, Worker


def trial_proposed(state: State, event: Event) -> None:
    study = study_of(state, event)
    data = event.data
    assert event.trial == len(study.trials) + 1, "trial numbers have no holes"
    trial = Trial(study, event.trial, typed(study, data["params"]), data["space_rev"],
                  intern(data["sampler"]), event.seq)
    study.trials.append(trial)
    study.counts["running"] += 1
    study.running[trial.number] = trial
    study.drawn = data["drawn"]
    if data["sampler"] == "enqueued":
        study.queue.pop(0)
    if data.get("of") is not None:
        trial.of = data["of"]
        if data["sampler"] == "again":
            if data["of"] in study.remeasure:
                study.remeasure.remove(data["of"])
        else:
            study.confirm.remove(data["of"])
            study.repeated[data["of"]].append(trial.number)
        study.again += 1


def trial_leased(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    data = event.data
    name, run = intern(data["worker"]), intern(data["run"])
    worker = state.workers.get(name)
    if worker is None:
        worker = state.workers[name] = Worker(name)
    lease = Lease(trial, data["fence"], name, run, data["ask"], _lease_s(trial.study, data["lease_s"]), data["at"])
    lease.fidelity = data.get("fidelity") or 0
    assert lease.fence == state.next_fence(trial), "fences have no holes"
    if trial.leases:
        trial.leases.append(lease)
    else:
        trial.leases = [lease]      # exactly as long as it must be, in nearly every trial
    trial.reports = trial.stopped = None
    if trial.rungs:      # what it had reached stays there
        trial.values = trial.se = trial.seconds = None
        trial.outcome_seq = 0
    if trial.status != "running":
        move(trial, "running")
    worker.open[lease] = None
    _remember(worker.asks.setdefault(run, {}), lease)


def _lease_s(study: Study, lease_s: float) -> float:
    """The same object for the usual length: a float for every lease would add up."""
    default_s = study.spec.lease.default_s
    return default_s if lease_s == default_s else float(lease_s)


def _remember(asks: dict[str, Lease | list[Lease]], lease: Lease) -> None:
    """Most asks get one lease, so only those that get more pay for a list."""
    known = asks.get(lease.ask)
    if known is None:
        asks[lease.ask] = lease
    elif isinstance(known, Lease):
        asks[lease.ask] = [known, lease]
    else:
        known.append(lease)


def lease_expired(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    end_open(state, trial, event.data.get("reason", "expired"))
    count_failure(trial, "lost")
    move(trial, "waiting")


def lease_held(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    lease = lease_of(trial, event)
    worker = state.workers[lease.worker]
    lease.ended = None
    lease.at = event.data["at"]
    lease.run = intern(event.data["run"])
    worker.open[lease] = None
    if trial.is_provisional:
        forget(trial, keep_late=True)
    trial.failure = None
    count_failure(trial, "lost", -1)
    move(trial, "running")


def lease_released(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    lease = lease_of(trial, event)
    lease.told = told_of(event, "recorded")
    end(state, lease, "released")
    if trial.is_provisional:
        return
    move(trial, "waiting")


def trial_reported(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    trial.reports = trial.reports if trial.reports is not None else {}
    trial.reports[event.data["step"]] = (as_numbers(event.data["values"]), event.seq, event.hash)
    if trial.study.board is not None:
        trial.study.board.note(trial)


def trial_stopped(state: State, event: Event) -> None:
    trial_of(state, event).stopped = {
        name: as_numbers(said) if name == "values" else as_number(said) if name in MEASURED else said
        for name, said in event.data.items()}
