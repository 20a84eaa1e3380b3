"""Racing: a cross-validated trial that can hardly win any more is stopped after its first folds.

After each fold the trial is held against the incumbent, fold by fold (`paired.compare`; unpaired while the incumbent's
folds are not known). It is stopped when the chance that its mean of all n folds ends up better than the incumbent's is
below a bound:

    P(mean of d_1..d_n < 0 | d_1..d_k) = T(-D / se),   T the distribution function of Student's t

The stated `error` is the probability that a trial which would have beaten the incumbent is stopped, at whatever fold.
There are at most n - m looks when at least m folds are measured before the first, so each has an equal part of the
error (Bonferroni), which holds however the looks depend on each other. The idea of racing is that of Maron and Moore
(1994, Hoeffding races); paired by instance, as here, it is that of Birattari et al. (2002, F-Race). Hoeffding's bound
would hold for any distribution and stop next to nothing within ten folds; t needs differences that are not far from
normal, which tests/study/test_race.py and tests/bench/racing.py try.
"""

from dataclasses import dataclass
from typing import Any

from scipy.special import stdtr

from bayesd.study.paired import compare, rounded
from bayesd.study.state import Trial


@dataclass(frozen=True, slots=True)
class Stop:
    """The trial ends here, and why."""

    against: int
    is_paired: bool
    folds: int
    difference: float
    """By how much it is worse on average, a positive number whichever way the metric goes."""
    chance: float
    """That all folds would make it the better one."""
    bound: float

    @property
    def numbers(self) -> dict[str, Any]:
        """For the event."""
        return {"against": self.against, "paired": self.is_paired, "folds": self.folds,
                "difference": rounded(self.difference), "chance": self.chance, "bound": rounded(self.bound)}


def decide(trial: Trial, error: float, min_folds: int, goal: int = 0) -> Stop | None:
    """Whether to stop a trial after the folds that it has reported; None to go on.

    A trial that measures a point again is never stopped, and nor is one whose folds are all there.
    """
    folds = trial.study.spec.folds
    if folds is None or trial.of is not None:
        return None
    found = compare(trial, goal)
    if (found is None or found.folds < min_folds or found.folds >= found.count or found.difference <= 0
            or found.freedom <= 0 or found.variance <= 0):
        return None
    chance = rounded(float(stdtr(found.freedom, -found.difference / found.se)))
    bound = error / (found.count - min_folds)
    if chance >= bound:
        return None
    return Stop(found.against, found.is_paired, found.folds, found.difference, chance, bound)
