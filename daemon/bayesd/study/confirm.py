"""Confirmation: the leaders are measured again, on other workers where there are any, before a winner is announced.

The best of many noisy values is one that was lucky: who announces it announces the luck, too. And a value that one
worker alone has seen is that worker's word. So `study.confirming` names the leaders of a moment, each gets trials of
its own with the same point (sampler `confirm`, no budget counts them), and when all have an outcome `study.winner` says
which leader has the best mean of what was measured *again*. The first measurement, which made it a leader, does not
count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bayesd.study import ladder, limits
from bayesd.study.desk import Desk
from bayesd.study.state import Data, State, Study, Trial
from bayesd.study.view import lease_of

OTHERS_S = 10.0        # so long a leader waits for a worker that has not measured it, when there is one
RECENT = 200           # trials that are looked at for workers that are there


def leaders(study: Study, top: int) -> list[Trial]:
    """The complete trials with the best values of the first objective that keep every limit, best first, each point
    once. A point that the study may no longer propose, since its space or constraints were amended, cannot be measured
    again. Where trials climb rungs and none is complete, those at the highest rung that was reached."""
    sign = 1.0 if study.goals[0].direction == "minimize" else -1.0
    ranked = sorted((sign * trial.values[0], trial.number) for trial in study.trials
                    if trial.status == "complete" and trial.values is not None and trial.of is None
                    and limits.keeps(trial))
    out: list[Trial] = []
    candidates = [study.trials[number - 1] for _, number in ranked]
    if not candidates and study.spec.resumes:
        candidates = [trial for trial in ladder.furthest(study) if trial.of is None]
    for trial in candidates:
        if len(out) < top and all(trial.params != other.params for other in out) and study.spec.allows(trial.params):
            out.append(trial)
        if len(out) == top:
            break
    return out


def begin(desk: Desk, study: Study, top: int, repeats: int, **by: Any) -> list[Trial]:
    """Have the leaders measured again; none are there when nothing is complete."""
    chosen = leaders(study, top)
    if chosen:
        desk.record("study.confirming", {"trials": [trial.number for trial in chosen], "repeats": repeats},
                    study=study, elapsed=True, **by)
        desk.drawer(study.name).drop()
    return chosen


def proposal(desk: Desk, study: Study, worker: str) -> Data | None:
    """What is to be measured again by this worker: a leader that another worker measured first. Its own one only when
    nobody else is there, or comes within a while."""
    if not study.confirm:
        return None
    number = next((each for each in study.confirm
                   if worker not in _told_by(desk.state, study.trials[each - 1])), None)
    if number is None:
        since = desk.confirming.setdefault(study.name, desk.now)
        if _others(desk, study, worker, recently=desk.now - since < OTHERS_S):
            return None
        number = study.confirm[0]
    return {"params": dict(study.trials[number - 1].params), "space_rev": study.space_rev, "sampler": "confirm",
            "of": number, "drawn": study.drawn, "as_of": desk.state.seq}


def _told_by(state: State, trial: Trial) -> set[str]:
    """Workers that told anything of this trial; of an imported one, where it was measured."""
    source: Trial | None = trial
    while source is not None and source.origin is not None:
        source = state.trial(*source.origin)
    return set() if source is None else {
        lease.worker for lease in source.leases if lease.proof is not None and lease.ended != "released"}


def _others(desk: Desk, study: Study, worker: str, recently: bool) -> bool:
    """Whether another worker is at work here, stands in line, or was here a moment ago."""
    if any(trial.leases[-1].worker != worker for trial in study.running.values() if trial.leases):
        return True
    if any(standing.worker != worker for standing in desk.waiting_for(study.name)):
        return recently        # it may be one that must not have it: not for ever
    return recently and any(lease.worker != worker for trial in study.trials[-RECENT:] for lease in trial.leases)


def is_under_way(study: Study) -> bool:
    """Whether something is still to be measured again, or being measured. A repeat of an earlier confirmation, which
    a close cut off, may still be in somebody's hands: nobody waits for that."""
    return bool(study.confirm) or any(trial.of is not None and trial.number in study.repeated.get(trial.of, ())
                                      for trial in (*study.running.values(), *study.waiting.values()))


def is_done(study: Study, top: int) -> bool:
    """Whether all that lead now were measured again already."""
    return study.winner is not None and all(trial.number in study.repeated for trial in leaders(study, top))


def announce(desk: Desk, study: Study) -> None:
    """Record the winner of a confirmation that is over."""
    desk.confirming.pop(study.name, None)
    desk.record("study.winner", due(desk.state, study), study=study)


def correct(desk: Desk, study: Study) -> None:
    """Record the winner anew when what it rests on has changed since: a trial of it was voided, or one that was given
    up as lost was told after all."""
    if study.winner is None or not study.is_announced:
        return
    found = due(desk.state, study)
    if found != study.winner:
        desk.record("study.winner", found, study=study)


def due(state: State, study: Study) -> Data:
    """What `study.winner` says here: of the confirmation that is under way, else of the last one that had a winner."""
    if study.winner is None or not study.is_announced:
        return winner(state, study, study.repeated)
    return winner(state, study, {each["trial"]: each["repeats"] for each in study.winner["leaders"]})


def _value(leader: Trial) -> float | None:
    """What made it a leader: its result, or what it told at its highest rung; None when that is taken back."""
    if leader.status == "complete":
        return None if leader.values is None else leader.values[0]
    if not leader.rungs or leader.status in ("voided", "fail"):
        return None
    return leader.rungs[max(leader.rungs)].values[0]


def winner(state: State, study: Study, repeated: Mapping[int, Sequence[int]]) -> Data:
    """The leader whose repeats are best on average; of equals the earlier trial. Without a single repeat that is
    complete, the one that was best before, and it says so. `repeated`: leader -> the trials that measured it again.

    The mean is of the repeats alone: sums are exact (fsum), so every machine agrees. A leader whose repeats break a
    limit on average is none.
    """
    sign = 1.0 if study.goals[0].direction == "minimize" else -1.0
    found: list[Data] = []
    for number, repeats in repeated.items():
        leader = study.trials[number - 1]
        value = _value(leader)
        if value is None:
            continue
        again = [trial for trial in (study.trials[each - 1] for each in repeats) if trial.status != "voided"]
        measured = [trial for trial in again if trial.status == "complete" and trial.values is not None]
        values = [trial.values[0] for trial in measured if trial.values is not None]
        mean = math.fsum(value / len(values) for value in values) if values else None
        before = _told_by(state, leader)
        elsewhere = any(lease.worker not in before for trial in measured if (lease := lease_of(trial)) is not None)
        broken = limits.broken(study, limits.mean([trial.limits for trial in measured])) if measured else \
            limits.broken(study, leader.limits)
        found.append({"trial": number, "value": value, "repeats": [trial.number for trial in again],
                      "measured": len(values), **({} if mean is None else {"mean": mean}), "elsewhere": elsewhere,
                      **({"broken": list(broken)} if broken else {})})
    confirmed = [each for each in found if "mean" in each and "broken" not in each]
    chosen = min(confirmed, key=lambda each: (sign * each["mean"], each["trial"]), default=None) or min(
        (each for each in found if "broken" not in each), key=lambda each: (sign * each["value"], each["trial"]),
        default=None)
    return {"trial": None if chosen is None else chosen["trial"], "confirmed": bool(confirmed), "leaders": found}
