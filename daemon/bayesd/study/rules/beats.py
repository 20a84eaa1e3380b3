"""A beat, and the run that it belongs to: contract rule 4."""

from bayesd.study.desk import PATIENCE_S, Desk
from bayesd.study.rules.answers import may_act, send_grant, stop_again, stop_body
from bayesd.study.rules.ends import after_loss, settle
from bayesd.study.rules.serving import serve
from bayesd.study.state import Lease, Worker
from bayesd_schemas.messages import Beat


def on_beat(desk: Desk, worker: str, beat: Beat) -> None:
    """Renew what the beat lists and nothing else; a run's first beat begins it."""
    known = desk.state.worker(worker)
    if not may_act(desk, known, beat.run, beat.run):
        return
    if beat.run != known.run:
        _begin_run(desk, known, beat)
        known = desk.state.worker(worker)
    listed: set[Lease] = set()
    for study, number, fence in beat.leases:
        lease = desk.state.lease(study, number, fence)
        if lease is not None and lease.worker == worker and lease.is_open:
            listed.add(lease)
            desk.deadlines[lease] = desk.now + lease.lease_s
            desk.missed.pop(lease, None)
            stop_again(desk, lease)
        elif lease is not None and lease.worker == worker and lease.may_hold_again:
            _hold_again(desk, lease, beat.run)
            stop_again(desk, lease)
            listed.add(lease)
        else:
            desk.send(worker, "stop", stop_body(study, number, fence, "superseded"))
    for lease in known.open:
        if lease.run == beat.run and lease not in listed:
            missed = desk.missed.get(lease, 0) + 1
            if missed >= 2:                      # its grant was lost on the way
                send_grant(desk, lease)
                missed = 0
            desk.missed[lease] = missed
    for id in beat.asks:
        standing = desk.standing.get((worker, beat.run, id))
        if standing is not None:
            standing.lapses = desk.now + PATIENCE_S


def _begin_run(desk: Desk, known: Worker, beat: Beat) -> None:
    """Take over the leases that the first beat lists, end this worker's others, and log both."""
    named = {tuple(key) for key in beat.leases}
    took, ended = [], []
    for lease in known.open:
        key = (lease.trial.study.name, lease.trial.number, lease.fence)
        if key in named:
            took.append(key)
        elif lease.run != beat.run:
            ended.append(lease)
    desk.record("run.began", {
        "worker": known.name, "run": beat.run, "took": [list(key) for key in took],
        "ended": [[lease.trial.study.name, lease.trial.number, lease.fence] for lease in ended],
    }, actor=f"worker/{known.name}")
    replaced = desk.state.worker(known.name).replaced
    for standing in [s for s in desk.standing.values() if s.worker == known.name and s.ask.run in replaced]:
        desk.sit(standing)
    for lease in ended:
        desk.deadlines.pop(lease, None)
        desk.missed.pop(lease, None)
        after_loss(desk, lease.trial)
    for study in {lease.trial.study.name: lease.trial.study for lease in ended}.values():
        settle(desk, study)
        serve(desk, study)


def _hold_again(desk: Desk, lease: Lease, run: str) -> None:
    """A listed lease that expired, or that a new run ended, goes on with the same fence and its full time."""
    trial = lease.trial
    desk.record("lease.held", {"fence": lease.fence, "run": run, "at": desk.time},
                actor=f"worker/{lease.worker}", study=trial.study, trial=trial.number)
    desk.deadlines[lease] = desk.now + lease.lease_s
    desk.missed.pop(lease, None)
