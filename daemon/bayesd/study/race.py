"""Racing: a cross-validated trial that can hardly win any more is stopped after its first folds.

After each fold the trial is held against the incumbent, fold by fold (`paired.compare`; unpaired while nobody's folds
are known). It is stopped when the chance that its mean of all n folds ends up better than the incumbent's is below a
bound:

    P(final difference < 0 | d_1..d_k) = T(-D / se),   T the distribution function of Student's t

The stated `error` is the probability that a trial which would have beaten the incumbent is stopped, at whatever fold;
spending.py shares it out among the looks, for a trial that would tie, which is the worst case. The idea of racing is
that of Maron and Moore (1994, Hoeffding races); paired by instance, as here, it is that of Birattari et al. (2002,
F-Race). Hoeffding's bound would hold for any distribution and stop next to nothing in ten folds; t needs differences
that are not far from normal, which tests/study/test_race.py and tests/bench/racing.py try.

And it is stopped when it cannot win: when the best values that the study's `bounds` allow in all folds to come would
not make it better. That chance is 0, and no error is spent on it.
"""

from dataclasses import dataclass
from typing import Any

from scipy.special import stdtr

from bayesd.study.folds import mean_and_se, scores
from bayesd.study.paired import NEIGHBOURS, compare, rounded
from bayesd.study.spending import boundaries
from bayesd.study.state import Trial


@dataclass(frozen=True, slots=True)
class Stop:
    """The trial ends here, and why."""

    against: int
    is_paired: bool
    references: tuple[int, ...]
    folds: int
    difference: float
    """By how much it is worse on average, a positive number whichever way the metric goes."""
    chance: float
    """That all folds would make it the better one."""
    bound: float

    @property
    def numbers(self) -> dict[str, Any]:
        """For the event."""
        return {"against": self.against, "paired": self.is_paired, "beside": list(self.references), "folds": self.folds,
                "difference": rounded(self.difference), "chance": self.chance, "bound": rounded(self.bound)}


def decide(trial: Trial, error: float, min_folds: int, startup: int = 0, goal: int = 0) -> Stop | None:
    """Whether to stop a trial after the folds that it has reported; None to go on.

    A trial that measures a point again is never stopped, and nor is one whose folds are all there. `startup`: so many
    complete trials must be known by fold before what is usual is believed.
    """
    folds = trial.study.spec.folds
    if folds is None or trial.of is not None:
        return None
    found = compare(trial, goal)
    if found is None or found.folds < min_folds or found.folds >= found.count:
        return None
    bound = boundaries(found.count, min_folds, error).get(found.folds, 0.0)
    if _is_beaten(trial, goal):
        chance = 0.0
    elif found.known < min(startup, NEIGHBOURS) or found.difference <= 0 or found.freedom <= 0 or found.variance <= 0:
        return None
    else:
        chance = rounded(float(stdtr(found.freedom, -found.difference / found.se)))
        if chance >= bound:
            return None
    return Stop(found.against, found.is_paired, found.references, found.folds, found.difference, chance, bound)


def _is_beaten(trial: Trial, goal: int) -> bool:
    """Whether the incumbent stays ahead even when the folds to come are as good as the bounds of the metric allow.
    Means are made of the same sums as a result's, so that rounding stops no winner."""
    study = trial.study
    aim, best = study.goals[goal], study.best
    assert study.spec.folds is not None
    if aim.bounds is None or best is None or best.values is None:
        return False
    ideal = aim.bounds[0 if aim.direction == "minimize" else 1]
    if ideal is None:
        return False
    mine = list(scores(trial, aim.name).values())
    mean, _ = mean_and_se([*mine, *[ideal] * (study.spec.folds.count - len(mine))])
    if mean is None:
        return False
    return mean >= best.values[goal] if aim.direction == "minimize" else mean <= best.values[goal]
