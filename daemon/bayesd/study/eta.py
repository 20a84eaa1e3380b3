"""When a study ends and what it costs until then: a forecast with an interval, from the durations that were seen.

The pace is that of outcomes per open second, which has the workers, their idle times and their failures in it.
Of n outcomes that come at a steady rate the time for m more is
(m / n) times the time so far times a ratio of two gamma variables, F distributed with (2m, 2n) degrees of freedom: the
interval is its central 80 %, for trials that take a time by chance (exponential ones); steadier trials end in it more
often. Nothing here reads a clock: open seconds are given.

Where trials climb rungs with pauses an outcome is what was told at a rung, and what is left is counted in fidelity: a
trial is expected to train up to its first rung, and one of `reduction` of those that reach a rung up to the next.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import fdtri

from bayesd.study import ladder, stopping
from bayesd.study.board import shares_of
from bayesd.study.state import Study

INTERVAL = 0.8


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of open time until a rule fires."""

    eta_s: float
    low_s: float
    high_s: float
    rule: str
    """The one that is expected to fire first."""

    def words(self) -> dict[str, float | str]:
        return {"eta_s": round(self.eta_s, 1), "low_s": round(self.low_s, 1), "high_s": round(self.high_s, 1),
                "rule": self.rule}


def forecast(study: Study, elapsed_s: float) -> Forecast | None:
    """What ends an open study first at the pace seen so far; None when nothing tells. Target, regret and the like may
    end it sooner: when, nobody knows. Patience is counted as if nothing better came any more."""
    if study.status == "closed":
        return None
    budget, done = study.spec.budget, _done(study)
    counted = done - _repeats(study)
    found = [] if budget.wall is None else [_of(budget.wall - elapsed_s, None, 0, "wall")]
    if done and elapsed_s > 0:
        each_s = elapsed_s / done
        left: list[tuple[str, float]] = []
        if study.stopping is not None:
            left.append((study.stopping["rule"], len(study.running) + len(study.waiting)))
        if budget.trials is not None:
            left.append(("trials", done * _left(study, budget.trials) / max(ladder.ladder_of(study).trained, 1)
                         if study.spec.resumes else
                         (budget.trials - counted) * done / counted if counted else budget.trials))
        if budget.fidelity is not None:
            told = ladder.ladder_of(study).trained
            left.append(("fidelity", done * (budget.fidelity - told) / max(told, 1)))
        if budget.cost is not None and study.cost > 0:
            left.append(("cost", (budget.cost - study.cost) * done / study.cost))
        if study.spec.stop is not None and study.spec.stop.patience is not None and study.best is not None:
            barren, _ = stopping.barren_results(study, study.spec.stop.min_delta)
            left.append(("patience", study.spec.stop.patience - barren))
        found += [_of(more * each_s, more, done, rule) for rule, more in left]
    return min((each for each in found if math.isfinite(each.low_s + each.eta_s + each.high_s)),
               key=lambda each: each.eta_s, default=None)       # a cost of nearly nothing lasts for ever


def costs(study: Study, elapsed_s: float) -> dict[str, float | None]:
    """Cost so far, and what is expected to come until the study ends; None when nothing tells."""
    ends, done = forecast(study, elapsed_s), _done(study)
    to_come = None
    if study.status == "closed":
        to_come = 0.0
    elif ends is not None and done and elapsed_s > 0:
        to_come = study.cost * ends.eta_s / elapsed_s
        if study.spec.budget.cost is not None:
            to_come = min(to_come, max(0.0, study.spec.budget.cost - study.cost))
    return {"spent": study.cost, "to_come": None if to_come is None else round(to_come, 6)}


def _done(study: Study) -> int:
    """Own trials with an outcome; where they climb rungs, what was told."""
    if study.spec.resumes:
        return sum(len(trial.rungs or ()) + (trial.status in ("complete", "fail")) for trial in study.trials
                   if trial.origin is None)
    return sum(study.counts[status] for status in ("complete", "fail", "pruned")) - study.imported


def _repeats(study: Study) -> int:
    """Of those, the ones that measured a point again: no budget counts them."""
    return sum(trial.of is not None and trial.status in ("complete", "fail", "pruned") for trial in study.trials) if (
        study.again) else 0


def _left(study: Study, trials: int) -> float:
    """How much fidelity so many trials are still to be trained in all; at least what is being trained now."""
    spec = study.spec
    assert spec.fidelity is not None
    levels, most = spec.fidelity.levels, spec.fidelity.max
    expected = 0.0
    for bracket, share in enumerate(shares_of(spec.fidelity) if ladder.has_brackets(study) else (1.0,)):
        steps = [level - before for before, level in pairwise((0, *levels[bracket:], most))]
        expected += share * math.fsum(step / spec.fidelity.reduction**k for k, step in enumerate(steps))
    at_work = ladder.trained(study) - ladder.ladder_of(study).trained
    return max(trials * expected - ladder.ladder_of(study).trained, at_work)


def _of(eta_s: float, more: float | None, done: int, rule: str) -> Forecast:
    """`more` outcomes to come at the pace of `done`; None: the time is known."""
    eta_s = max(0.0, eta_s)
    if more is None or more <= 0:
        return Forecast(eta_s, eta_s, eta_s, rule)
    low, high = (float(fdtri(2 * more, 2 * done, share)) for share in ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2))
    return Forecast(eta_s, eta_s * low, eta_s * high, rule)
