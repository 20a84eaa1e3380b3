"""A tell: contract rules 2, 5 and 7."""

from typing import Any

from bayesd.study import folds, paired
from bayesd.study.desk import Desk
from bayesd.study.rules.answers import answer_copy, digest_of, leased_to, out_of_bounds, reject, send_receipt
from bayesd.study.rules.ends import after_loss, after_outcome, end_paused, is_over, may_retry
from bayesd.study.state import FINAL, Data, Study
from bayesd_schemas.messages import Tell


def on_tell(desk: Desk, worker: str, tell: Tell, auth: str | None = None) -> None:
    """Record an outcome once per (trial, fence); every copy gets the first answer again. `auth`: how it is known
    that the worker said it, beside the broker's word."""
    lease = leased_to(desk, worker, tell)
    if lease is None:
        return
    trial, study = lease.trial, lease.trial.study
    message = digest_of(tell)
    told = lease.told
    if told is not None:
        answer_copy(desk, worker, tell, told, message)
        return
    try:
        type, data = _outcome(study, tell, folds.reported(trial, tell) if lease.fence == trial.fence else None)
    except ValueError as error:
        reject(desk, worker, tell.id, "bad-field", str(error))
        return
    data = {"fence": lease.fence, "message": message.hex(), **data}
    is_part = bool(lease.fidelity) and type == "trial.completed"
    newest = lease.fence == trial.fence
    counts = newest and (trial.status not in FINAL or trial.is_provisional)
    if tell.state == "released":
        if not newest or trial.status in FINAL:
            send_receipt(desk, worker, tell.id, "late")
            return
        type = "lease.released"
    elif not counts:
        data["state"] = tell.state if type != "trial.failed" else "fail"
        if is_part or (data["state"] == "fail" and data.get("values") is not None):
            data["learn"] = False
        type = "outcome.late"
    elif type == "trial.failed" and may_retry(study, trial, data["class"], after=1):
        data["retry"] = True
    elif is_part:
        type, data["fidelity"] = "trial.paused", lease.fidelity
    elif type == "trial.pruned" and (estimate := paired.estimate(trial)) is not None:
        data["estimate"] = estimate
    if auth is not None and type != "lease.released":
        data["auth"] = auth
    desk.deadlines.pop(lease, None)
    desk.missed.pop(lease, None)
    event = desk.record(type, data, actor=f"worker/{worker}", study=study, trial=trial.number,
                        cmd=tell.id, elapsed=study.status == "open")
    send_receipt(desk, worker, tell.id, "late" if type == "outcome.late" else "recorded", event.seq, event.hash)
    if trial.status == "paused" and is_over(trial):
        end_paused(desk, trial)
    elif is_over(trial) or trial.stopped is not None:
        after_loss(desk, trial)             # given back after the close, or after a stop: nobody will have it any more
    after_outcome(desk, study)


def _outcome(study: Study, tell: Tell, reported: Any = None) -> tuple[str, Data]:
    """The event type and measured data of a tell; `reported`: its folds, when it rests on reports for them. Raises
    ValueError in words for the sender."""
    data: Data = {}
    for name in ("seconds", "cost", "error", "checkpoint"):
        value = getattr(tell, name)
        if value is not None:
            data[name] = value
    goals = study.goals
    values: dict[str, float | None] | None = None
    told = tell.folds if tell.folds is not None else reported
    if isinstance(told, dict):
        data["folds"] = told
        found = {name: folds.mean_and_se(each) for name, each in told.items()}
        values = {**_beside(tell), **{name: mean for name, (mean, _) in found.items()}}
        se = found[goals[0].name][1] if goals[0].name in found else None
        if se is not None:
            data["se"] = se
    elif told is not None:
        if len(goals) > 1:
            raise ValueError("folds: this study has several objectives; tell the folds of each by name")
        data["folds"] = told
        mean, se = folds.mean_and_se(told)
        values = {**_beside(tell), goals[0].name: mean}
        if se is not None:
            data["se"] = se
    elif tell.values is not None:
        values = dict(tell.values)
    elif tell.state == "complete" and "value" not in tell.model_fields_set:
        raise ValueError("value is missing; a trial without one is told with state fail, pruned or released"
                         + ("" if study.spec.folds is None else f", or once all of its {study.spec.folds.count} folds "
                            "are reported"))
    elif tell.value is not None or tell.state == "complete":
        if len(goals) > 1:
            raise ValueError(f"value: this study has several objectives; tell values with "
                             f"{', '.join(goal.name for goal in goals)}")
        values = {goals[0].name: tell.value}
    if values is not None:
        data["values"] = values
    if tell.state == "released":
        return "lease.released", {}
    if tell.state == "fail":
        return "trial.failed", {**data, "class": tell.failure or "crash"}
    wanted = [*(goal.name for goal in goals), *(limit.metric_name for limit in study.spec.limits)]
    missing = [name for name in wanted if values is None or name not in values]
    if tell.state == "complete" and missing:
        raise ValueError(_missing(study, missing[0], tell))
    if tell.state == "complete" and any(values is not None and values[name] is None for name in wanted):
        return "trial.failed", {**data, "class": "nonfinite"}
    outside = out_of_bounds(study, values or {}, told)
    if outside is not None:
        # On record as a failure: a rejection would be sent again by some, and forgotten by all.
        data["values"] = {name: None if name in wanted else value for name, value in (values or {}).items()}
        return "trial.failed", {**data, "class": "other", "error": outside}
    return ("trial.completed" if tell.state == "complete" else "trial.pruned"), data


def _beside(tell: Tell) -> dict[str, float | None]:
    """What was told by name beside folds that were reported: they speak for the metrics that they were reported for."""
    return {} if tell.folds is not None or tell.values is None else dict(tell.values)


def _missing(study: Study, name: str, tell: Tell) -> str:
    """That a metric was not told, in words for who wrote the worker."""
    goals, limits = [goal.name for goal in study.goals], study.spec.limits
    if name in goals:
        return f"values: {name} is missing; this study's objectives are {', '.join(goals)}"
    all_ = ", ".join(dict.fromkeys([*goals, *(limit.metric_name for limit in limits)]))
    told = "values" if tell.values is not None else "folds" if tell.folds is not None else "value"
    return (f"{told}: {name} is missing, on which this study has a limit; tell "
            + (f"the folds of {all_}, each by name" if told == "folds" else f"values with {all_}"))
