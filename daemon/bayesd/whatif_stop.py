"""Where a rule that asks the model would have stopped a recorded study: the model is asked again at every result.

What was known after a result is what the study knows now of the trials that had ended by then, and the model is fitted
from where its last fit on record had left it, as in the daemon. A result that was voided since, or pooled with repeats,
is what it is now; so where there are any, every fit starts from the prior.

Asking takes a fit or more at each result, tens of milliseconds to a second.
"""

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace
from typing import Any

from bayesd.optimize import convergence
from bayesd.study.problem import Fit, Problem
from bayesd.study.stopping import RESULTS_MIN, by_model
from bayesd_schemas.study import Stop

Body = dict[str, Any]
NEEDS = "need one objective, no limits and surrogate = \"gp\""


@dataclass(slots=True)
class Model:
    """The rules, and what the record has of fits."""

    stop: Stop
    problem: Problem
    """As the study is now."""
    fits: list[tuple[int, Fit]]
    """(seq, fit), as they were recorded; none where they would know too much."""
    asked: int = 0
    numbers: dict[str, Any] | None = field(default=None)
    """Of the rule that fired: what the model said."""

    @classmethod
    def of(cls, stop: Stop, problem: Problem, events: Iterable[Body], *, corrected: bool) -> "Model":
        """Raises ValueError in words where no model can be asked."""
        if len(problem.directions) > 1 or problem.limits or problem.surrogate != "gp":
            raise ValueError(f"improvement, regret and converged ask the model, and {NEEDS}")
        fits = [] if corrected else [
            (body["seq"], Fit(body["data"]["model"], body["data"]["n"], tuple(map(float, body["data"]["theta"]))))
            for body in events if body["type"] == "model.fitted"]
        return cls(stop, problem, fits)

    def fired(self, known: Set[int], before: float) -> str | None:
        """The rule that fires when these trials have ended; a fit counts that was made before an event."""
        history = tuple(seen for seen in self.problem.history if seen.trial in known)
        if sum(seen.values is not None for seen in history) < RESULTS_MIN:
            return None
        fit = next((fit for seq, fit in reversed(self.fits) if seq < before), None)
        self.asked += 1
        seen = convergence(replace(self.problem, history=history, fit=fit, pending=()))
        found = None if seen is None else by_model(self.stop, seen)
        if found is None:
            return None
        rule, self.numbers = found
        return rule


def following(seqs: Iterable[int]) -> dict[int, float]:
    """Of ascending numbers each with the next; of the last, infinity."""
    known = list(seqs)
    return dict(zip(known, [*map(float, known[1:]), math.inf], strict=True)) if known else {}
