"""The page of a trial that a fork began with: where it was measured, and what became of it in this study.

Nothing here suggested it, so there is no model to ask why; the study that it comes from has that page.
"""

from typing import Any

from bayesd.study import limits, view
from bayesd.study.state import Trial
from bayesd.why.trial import curve, ranks, voided
from bayesd.why.witness import Entry, Witness

Page = dict[str, Any]


def imported_page(seen: Witness, number: int) -> Page:
    """Where an imported trial comes from. The witness kept its events; it needs no moments."""
    trial, study = seen.trial(number), seen.study
    goal = study.goals[0]
    sign = 1.0 if goal.direction == "minimize" else -1.0
    entry = next(entry for entry in seen.kept[number] if entry.event.type == "trial.imported")
    return {
        "page": "imported", "study": study.name, "trial": number, "params": dict(trial.params),
        "metric": goal.name, "direction": goal.direction,
        "objectives": [{"name": each.name, "direction": each.direction} for each in study.goals],
        "seen_to": {"seq": seen.seq, "time": seen.time},
        "from": _from(seen, trial),
        "became": _became(seen, trial, sign),
        "recomputed": None, "curve": curve(seen, sign, number),
        "provenance": _provenance(seen, entry)}


def _from(seen: Witness, trial: Trial) -> Page:
    """Of which study and trial, and who forked that one at which moment."""
    assert trial.origin is not None
    name, number = trial.origin
    origin = seen.study.origin
    forked = next((entry for entry in seen.steering if entry.event.type == "study.forked"), None)
    at = origin if origin is not None and origin.study == name else None
    return {"study": name, "trial": number, "at": None if at is None else at.at,
            "who": None if forked is None else forked.operator, "time": None if forked is None else forked.time}


def _became(seen: Witness, trial: Trial, sign: float) -> Page:
    study = trial.study
    late = trial.late or []
    out: Page = {
        "state": trial.status, "value": trial.values[0] if trial.values and trial.status != "voided" else None,
        "values": view.named(study, trial.values), "se": trial.se, "seconds": trial.seconds, "class": trial.failure,
        "more": [{"state": each.state, "values": each.values, "seq": each.seq} for each in late[-view.SHOWN_MAX:]],
        "voided": voided(seen, trial), "rank": None, "best": study.best is trial, "leader": None,
        "broken": list(limits.broken(study, trial.limits)) if trial.status == "complete" else []}
    if trial.status == "complete" and trial.values is not None:
        out["rank"] = ranks(seen, trial, sign)
    if study.best is not None and study.best.values is not None and study.best is not trial:
        out["leader"] = {"trial": study.best.number, "value": study.best.values[0],
                         "imported": study.best.origin is not None}
    return out


def _provenance(seen: Witness, entry: Entry) -> Page:
    origin = seen.study.origin
    return {"log": seen.log, "seq": entry.seq, "hash": entry.event.hash.hex(), "time": entry.time,
            "origin": None if origin is None else {"study": origin.study, "at": origin.at, "hash": origin.hash}}
