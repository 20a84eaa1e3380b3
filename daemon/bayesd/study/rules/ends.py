"""What follows an end: of a lease, of a trial, of a budget, of a study."""

from bayesd.study import confirm, ladder, paired, stopping
from bayesd.study.desk import Desk
from bayesd.study.rules.answers import stop_body
from bayesd.study.rules.serving import explain, freshen, has_room, serve
from bayesd.study.state import Data, Study, Trial
from bayesd_schemas.messages import StopReason

RETRIED = frozenset(("crash", "timeout", "oom"))


def is_over(trial: Trial) -> bool:
    """Whether nobody will have this trial any more: its study is closed, or open again for a confirmation alone."""
    return trial.study.status == "closed" or (trial.study.reopened is not None and trial.of is None)


def may_retry(study: Study, trial: Trial, failure: str, after: int) -> bool:
    """The policy allows another lease after this failure (`after` 1: the failure is not counted yet)."""
    if is_over(trial) or trial.stopped is not None or failure not in RETRIED | {"lost"}:
        return False
    limit: int = getattr(study.spec.retry, failure)
    return (trial.failures or {}).get(failure, 0) + after <= limit


def after_loss(desk: Desk, trial: Trial) -> None:
    """A lease ended without a word. Past the retry limit, or after a close, the trial fails with class
    lost, provisionally; an earlier late outcome becomes the result at that moment [5]. A trial that the pruning rule
    has stopped is not leased again: it ends as pruned, as provisionally."""
    study = trial.study
    if trial.status != "waiting" or may_retry(study, trial, "lost", after=0):
        return
    data: Data
    late = next((late for late in trial.late or () if not _is_part(trial, late.fence)), None)
    if late is None and trial.rungs:       # what it told at its rungs stands
        desk.record("trial.pruned", {**ladder.at_rung(trial), "class": "lost"}, study=study, trial=trial.number)
        return
    if late is None and trial.stopped is not None:
        data = {"fence": trial.fence, "class": "lost"}
        if (estimate := paired.estimate(trial)) is not None:
            data["estimate"] = estimate
        desk.record("trial.pruned", data, study=study, trial=trial.number)
        return
    if late is None:
        desk.record("trial.failed", {"fence": trial.fence, "class": "lost",
                                     "error": "no word from any worker that held it"},
                    study=study, trial=trial.number)
        return
    types = {"complete": "trial.completed", "fail": "trial.failed", "pruned": "trial.pruned"}
    data = {"fence": late.fence, "promoted": late.seq}
    for key, value in (("values", late.values), ("se", late.se), ("seconds", late.seconds), ("class", late.failure)):
        if value is not None:
            data[key] = value
    if late.state == "pruned" and late.values is not None and study.spec.late == "use":
        data["learn"] = False          # it is known already
    desk.record(types[late.state], data, study=study, trial=trial.number)


def _is_part(trial: Trial, fence: int) -> bool:
    """Whether what was told with this fence is of a part of the training: never in place of a result."""
    lease = trial.lease(fence)
    return lease is not None and lease.fidelity > 0


def end_paused(desk: Desk, trial: Trial) -> None:
    """A paused trial that will not go on any more, by the rule of its study."""
    desk.record("trial.pruned", ladder.at_rung(trial, by_rule=True), study=trial.study, trial=trial.number)


def after_outcome(desk: Desk, study: Study) -> None:
    """After an outcome: empty a stale drawer, close by budget, serve what came free."""
    freshen(desk, study)
    settle(desk, study)
    if study.waiting or study.confirm or study.paused:
        serve(desk, study)


def settle(desk: Desk, study: Study) -> None:
    """Close a study whose budget is used up; the rule that fired is on record."""
    confirm.correct(desk, study)
    if study.status == "closed":
        return
    budget = study.spec.budget
    if not study.is_announced and not confirm.is_under_way(study):
        confirm.announce(desk, study)
        if study.reopened is not None:
            close(desk, study, study.reopened)
            return
    if study.reopened is not None:
        return                         # for the confirmation alone: its budgets were used up before
    if may_stop(study) and desk.has_news(study):
        fired = stopping.by_results(study)
        if fired is not None:
            stop_by(desk, study, fired, desk.state.seq)
    if budget.cost is not None and study.cost >= budget.cost:
        close(desk, study, "cost")
    elif budget.wall is not None and desk.elapsed(study) >= budget.wall:
        close(desk, study, "wall")
    elif not study.running and not study.waiting and not study.confirm and not study.remeasure:
        rule = None
        if study.stopping is not None:
            rule = study.stopping["rule"]
        elif not has_room(study):
            rule = "trials" if ladder.may_begin(study) else "fidelity"
        elif desk.drawer(study.name).exhausted and not study.queue:
            rule = "exhausted"
        if rule is not None and ladder.going_on(study) is None:
            for trial in list(study.paused.values()):
                end_paused(desk, trial)
            _finish(desk, study, rule)


def may_stop(study: Study) -> bool:
    return study.spec.stop is not None and study.status == "open" and study.stopping is None and study.reopened is None


def stop_by(desk: Desk, study: Study, fired: stopping.Fired, as_of: int) -> None:
    """Record that a stop rule fired: from here on nothing new is handed out."""
    rule, numbers = fired
    desk.record("study.stopping", {"rule": rule, "numbers": numbers, "as_of": as_of}, study=study, elapsed=True)
    desk.drawer(study.name).drop()


def _finish(desk: Desk, study: Study, rule: str) -> None:
    """Every trial has its outcome: confirm the leaders if that is wanted and not done, else close."""
    wanted = study.spec.confirm
    if (wanted is None or confirm.is_done(study, wanted.top)
            or not confirm.begin(desk, study, wanted.top, wanted.repeats)):
        close(desk, study, rule)
    else:
        serve(desk, study)


def close(desk: Desk, study: Study, rule: str, *, running: str = "finish", actor: str = "daemon",
          cmd: str | None = None) -> None:
    """Close a study: nothing is leased afterwards, open leases are still recorded (running = finish)
    or ended (running = stop), and one that ends untold fails with class lost."""
    desk.record("study.closed", {"rule": rule, "running": running}, study=study, actor=actor, cmd=cmd, elapsed=True)
    desk.drawer(study.name).drop()
    if running == "stop":
        for trial in list(study.running.values()):
            end_lease(desk, trial, "closed")
    for trial in list(study.waiting.values()):
        after_loss(desk, trial)
    for trial in list(study.paused.values()):
        end_paused(desk, trial)
    confirm.correct(desk, study)       # what became known during a confirmation that this cuts off
    for standing in list(desk.queues.get(study.name, {}).values()):
        explain(desk, standing)


def end_lease(desk: Desk, trial: Trial, reason: StopReason) -> None:
    """End a trial's open lease from this side; the worker is told after the commit."""
    lease = trial.open_lease
    if lease is None:
        return
    desk.record("lease.expired", {"fence": lease.fence, "reason": reason}, study=trial.study, trial=trial.number)
    desk.deadlines.pop(lease, None)
    desk.missed.pop(lease, None)
    after_loss(desk, trial)
    desk.send(lease.worker, "stop", stop_body(trial.study.name, trial.number, lease.fence, reason))
