"""What passing time means, and the end of a daemon."""

from bayesd.study.desk import ANSWER_S, Desk
from bayesd.study.rules.ends import after_loss, after_outcome, settle
from bayesd.study.rules.serving import explain, serve

TICK_EVENT_S = 60.0        # open time is noted at most this often, while leases are open or a budget counts it


def on_tick(desk: Desk) -> None:
    """Let time act: leases run out, asks lapse or get their answer, budgets of time are used up."""
    now = desk.now
    for lease in [lease for lease, deadline in desk.deadlines.items() if deadline <= now]:
        del desk.deadlines[lease]
        desk.missed.pop(lease, None)
        if not lease.is_open:
            continue
        trial = lease.trial
        desk.record("lease.expired", {"fence": lease.fence}, study=trial.study, trial=trial.number,
                    elapsed=trial.study.status == "open")
        after_loss(desk, trial)
        after_outcome(desk, trial.study)
    for study in desk.state.studies.values():
        if study.status != "open":
            continue
        settle(desk, study)
        if study.confirm:
            serve(desk, study)       # a leader may have waited long enough for another worker
        if ((study.running or study.spec.budget.wall is not None) and study.status == "open"
                and now - desk.since.setdefault(study.name, now) >= TICK_EVENT_S):
            desk.record("study.ticked", {}, study=study, elapsed=True)
    for standing in list(desk.standing.values()):
        if standing.lapses <= now:
            desk.sit(standing)
        elif not standing.answered and now - standing.since >= ANSWER_S:
            explain(desk, standing, late=True)


def on_stop(desk: Desk) -> None:
    """Note the open time of studies whose budget counts it: the next daemon life knows only what is logged."""
    for study in desk.state.studies.values():
        if study.status == "open" and study.spec.budget.wall is not None:
            desk.record("study.ticked", {}, study=study, elapsed=True)
