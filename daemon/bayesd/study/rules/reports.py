"""A report, and the verdict of the pruning rule in its receipt: contract rule 8."""

from bayesd.study import pruning
from bayesd.study.desk import Desk
from bayesd.study.rules.answers import leased_to, out_of_bounds, reject, send_receipt, stop_again, stop_of
from bayesd.study.state import FINAL
from bayesd_schemas.messages import Report


def on_report(desk: Desk, worker: str, report: Report) -> None:
    """Record an intermediate value once per step, and ask the pruning rule. It renews nothing.

    A stop is an event, so it is decided once; until the worker tells, every report, copy and beat of this lease gets
    it again. A worker that goes on and tells a result is recorded all the same."""
    lease = leased_to(desk, worker, report)
    if lease is None:
        return
    trial = lease.trial
    values = report.values if report.values is not None else {trial.study.goals[0].name: report.value}
    if lease.fence != trial.fence or trial.status in FINAL or trial.status == "paused":
        send_receipt(desk, worker, report.id, "late", stop=stop_of(lease))
        return
    outside = out_of_bounds(trial.study, values)
    if outside is not None:
        reject(desk, worker, report.id, "bad-field", f"values: {outside}")
        return
    if trial.reports is not None and report.step in trial.reports:
        first, seq, hash = trial.reports[report.step]
        send_receipt(desk, worker, report.id, "duplicate" if first == values else "late", seq, hash,
                     stop=stop_of(lease))
        return
    event = desk.record("trial.reported", {"fence": lease.fence, "step": report.step, "values": values},
                        actor=f"worker/{worker}", study=trial.study, trial=trial.number, cmd=report.id)
    verdict = pruning.verdict(trial.study, trial)
    if verdict is not None:
        desk.record("trial.stopped", verdict.data(lease.fence), study=trial.study, trial=trial.number)
    send_receipt(desk, worker, report.id, "recorded", event.seq, event.hash, stop=stop_of(lease))
    if verdict is not None:
        stop_again(desk, lease)
