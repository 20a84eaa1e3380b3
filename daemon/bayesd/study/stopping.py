"""Stop rules: when a search ends before its budget, and the numbers that say so.

A rule that looks at results alone (`target`, `patience`) is judged when a result comes; one that asks the model
(`improvement`, `regret`, `converged`) when a suggestion is made, from the `Convergence` that comes with it. What fires
is an event, `study.stopping`: nothing new is handed out, running trials finish, the leaders are confirmed if that is
wanted, and the study closes by that rule. To amend the study before it has closed takes the decision back, and patience
counts from there.

`converged` has no number to set. What is left to gain must be little, in the mean and at its bound (5 % and 15 % of how
far the search has come, or a half and one and a half deviations of one measurement, whichever is more), by what was
known four results ago as well as now; for fifteen results the best has not moved by 1 %; and there are ten results for
each part of the space that the model takes for unlike the others. A model is surest before its first surprise.
"""

from dataclasses import asdict, dataclass

from bayesd.study import limits
from bayesd.study.problem import Convergence
from bayesd.study.state import Data, Study, Trial
from bayesd_schemas.study import Stop

RESULTS_MIN = 20        # a model of fewer is not asked
BARREN_MIN = 15         # results since the best moved ...
STEADY_MIN = 2          # ... and moments, now and before, at which little is left, before a search has converged
CELL_RESULTS = 10       # results for each of `Convergence.cells`
FLOOR = 0.001           # of the spread: the least that counts as noise, where results repeat to the last digit

BY_RESULTS = frozenset(("target", "patience"))

Fired = tuple[str, Data]
"""A rule and its numbers."""


def by_results(study: Study) -> Fired | None:
    """The rule on the results of a study that fires now. A result is a complete trial that is not void; imported
    ones set the best to beat, and what measures a leader again counts for nothing."""
    stop = study.spec.stop
    if stop is None or (stop.target is None and stop.patience is None):
        return None
    sign = _sign(study)
    if stop.target is not None:
        best = study.best
        if best is not None and best.values is not None and sign * best.values[0] <= sign * stop.target:
            return "target", {"trial": best.number, "value": best.values[0], "target": stop.target}
    if stop.patience is not None:
        barren, leader = barren_results(study, stop.min_delta)
        if leader is not None and leader.values is not None and barren >= stop.patience:
            return "patience", {"trial": leader.number, "value": leader.values[0], "barren": barren,
                                "patience": stop.patience, "min_delta": stop.min_delta}
    return None


@dataclass(slots=True)
class Drought:
    """How many results came since one was better than all before by more than `least`. Values are signed: lower is
    better."""

    least: float = 0.0
    best: float | None = None
    barren: int = 0

    def take(self, value: float | None, counts: bool = True) -> bool:
        """One more result; whether it ended the drought. None: one that may not lead."""
        if value is not None and (self.best is None or self.best - value > self.least):
            self.best, self.barren = value, 0
            return True
        self.barren += counts
        return False


def barren_results(study: Study, least: float) -> tuple[int, Trial | None]:
    """How many results came since one was better than all before by more than `least`, and which that was."""
    sign, drought, leader = _sign(study), Drought(least), None
    for trial in sorted((trial for trial in study.trials if trial.status == "complete" and trial.of is None),
                        key=lambda trial: trial.outcome_seq):
        assert trial.values is not None
        value = sign * trial.values[0] if limits.keeps(trial) else None
        if drought.take(value, trial.origin is None and trial.outcome_seq > study.patient_since):
            leader = trial
    return drought.barren, leader


def by_model(stop: Stop | None, seen: Convergence) -> Fired | None:
    """The rule on what the model says that fires; the numbers say against what it was held."""
    if stop is None or seen.results < RESULTS_MIN:
        return None
    noise = max(seen.noise, FLOOR * seen.spread)
    if stop.improvement is not None and seen.improvement < stop.improvement * noise:
        return "improvement", {**asdict(seen), "at_most": stop.improvement * noise}
    if stop.regret is not None and seen.regret < stop.regret:
        return "regret", {**asdict(seen), "at_most": stop.regret}
    if (stop.converged and seen.steady >= STEADY_MIN and seen.barren >= BARREN_MIN
            and seen.results >= CELL_RESULTS * seen.cells):
        return "converged", asdict(seen)
    return None


def _sign(study: Study) -> float:
    """Times a value: lower is better."""
    return 1.0 if study.goals[0].direction == "minimize" else -1.0
