"""Which configuration to take. The lowest score alone is often the luckiest, not the best.

Every rule is a function of the recorded outcomes, and says in words why it chose what it chose.
"""

import math
from dataclasses import dataclass
from typing import Any

from bayesd.optimize import posterior_at_data
from bayesd.study import ladder
from bayesd.study.problem import Problem
from bayesd.study.state import Study
from bayesd_schemas.space import Params

RULES = ("best", "mean", "one-se")
DEFAULT = "best"
CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete trial that may be chosen."""

    trial: int
    params: Params
    value: float
    se: float | None
    seconds: float | None
    fidelity: int | None = None
    """Of a trial that was not trained to the end, the rung at which it told its value."""


def entries(study: Study) -> tuple[Entry, ...]:
    """The complete trials of a study, frozen. Where trials climb rungs and none is complete, those at the highest rung
    that was reached."""
    complete = tuple(Entry(trial.number, trial.params, trial.values[0], trial.se, trial.seconds)
                 for trial in study.trials
                 if trial.status == "complete" and trial.values is not None and trial.of is None)
    if complete or not study.spec.resumes:
        return complete
    climbed = [(trial, max(trial.rungs)) for trial in ladder.furthest(study) if trial.rungs]
    highest = max((rung for _, rung in climbed), default=0)
    return tuple(Entry(trial.number, trial.params, trial.rungs[highest].values[0], trial.rungs[highest].se,
                       trial.seconds, highest) for trial, _ in climbed if trial.rungs)


def of(study: Study, problem: Problem, rule: str | None) -> dict[str, Any]:
    """The winner of a study by a rule; None: of its last confirmation if there was one, else the best observed."""
    has_confirmed = study.winner is not None and study.winner["confirmed"]
    rule = rule or (CONFIRMED if has_confirmed else DEFAULT)
    return _confirmed(study) if rule == CONFIRMED else choose(entries(study), problem, rule)


def _confirmed(study: Study) -> dict[str, Any]:
    """The winner of the last confirmation, in words; `trial` is None when there was none."""
    said = study.winner
    if said is None or not said["confirmed"]:
        return {"rule": CONFIRMED, "trial": None, "reason": "nothing was measured again yet: "
                f"bayesd study confirm {study.name}, or [confirm] in the study file"}
    chosen = next(each for each in said["leaders"] if each["trial"] == said["trial"])
    trial = study.trials[said["trial"] - 1]
    times = "once" if chosen["measured"] == 1 else f"{chosen['measured']} times, at least once"
    where = "on another worker" if chosen["elsewhere"] else "on the same worker, since no other was there"
    reason = (f"of {len(said['leaders'])} leaders that were measured again it did best: {chosen['mean']:.6g}, measured "
              f"{times} {where}; it was {chosen['value']:.6g} when it was chosen")
    return {"rule": CONFIRMED, "trial": trial.number, "value": chosen["mean"], "se": None,
            "params": dict(trial.params), "reason": reason, "leaders": said["leaders"]}


def choose(complete: tuple[Entry, ...], problem: Problem, rule: str) -> dict[str, Any]:
    """The winner by a rule, with its reason; `trial` is None when nothing is complete."""
    if not complete:
        return {"rule": rule, "trial": None, "reason": "no trial is complete yet"}
    sign = 1.0 if problem.directions[0] == "minimize" else -1.0
    best = min(complete, key=lambda entry: (sign * entry.value, entry.trial))
    low = "lowest" if sign > 0 else "highest"
    if rule == "mean":
        return _by_mean(complete, problem, sign, best, low)
    if rule == "one-se":
        return _within_one_se(complete, sign, best, low)
    return _answer(best, rule, f"the {low} observed value of {len(complete)} " + (
        "complete trials" if best.fidelity is None else f"trials that told at rung {best.fidelity}; none is complete"))


def _answer(entry: Entry, rule: str, reason: str, **more: Any) -> dict[str, Any]:
    return {"rule": rule, "trial": entry.trial, "value": entry.value, "se": entry.se, "params": dict(entry.params),
            "reason": reason, **more}


def _by_mean(complete: tuple[Entry, ...], problem: Problem, sign: float, best: Entry, low: str) -> dict[str, Any]:
    """The trial with the best posterior mean: what its neighbours say counts, too."""
    means, sds = posterior_at_data(problem)
    expected: dict[int, tuple[float, float]] = {}
    for observation, mean, sd in zip(problem.history, means, sds, strict=True):
        if observation.values is not None:
            expected[observation.trial] = (mean, sd)
    entry = min((entry for entry in complete if entry.trial in expected),
                key=lambda entry: (sign * expected[entry.trial][0], entry.trial), default=best)
    mean, sd = expected.get(entry.trial, (entry.value, math.nan))
    reason = f"the {low} expected value by the model: {mean:.6g} ± {sd:.2g}"
    if entry.trial != best.trial:
        reason += (f"; trial {best.trial} has the {low} observed value {best.value:.6g}, "
                   "but its neighbours do not bear it out")
    return _answer(entry, "mean", reason, mean=mean, sd=sd)


def _within_one_se(complete: tuple[Entry, ...], sign: float, best: Entry, low: str) -> dict[str, Any]:
    """The cheapest trial within one standard error of the best (Breiman et al., Classification and
    Regression Trees, 1984, section 3.4.3); cost is the seconds that the worker reported."""
    if best.se is None:
        return _answer(best, "one-se", f"the {low} observed value; no standard error is known: tell folds")
    limit = sign * best.value + best.se
    close = [entry for entry in complete if sign * entry.value <= limit and entry.seconds is not None]
    entry = min(close, key=lambda entry: (entry.seconds, sign * entry.value), default=best)
    if entry.trial == best.trial or entry.seconds is None:
        return _answer(best, "one-se", f"the {low} observed value {best.value:.6g} ± {best.se:.2g}, "
                                       f"and no cheaper trial is within one standard error")
    cheaper = f", {best.seconds / entry.seconds:.1f} times cheaper" if best.seconds and entry.seconds > 0 else ""
    return _answer(entry, "one-se", f"within one standard error ({best.se:.2g}) of trial {best.trial} "
                                    f"at {best.value:.6g}{cheaper}; {len(close)} trials are")
