"""A cross-validated trial beside the best, when it has its first few folds only.

Folds differ in difficulty, so trials are compared fold by fold, and that not with the incumbent alone, whose own luck
in each fold would count as much as the trial's: the reference is the mean of the few best complete trials.
Of a trial with k of n folds,

    d_i = how much worse it is than the reference in fold i        (i = 1..k; the reference has all n)
    D   = mean of d_1..d_k, plus how much worse the reference is than the incumbent on all folds

and, when the order of folds says nothing about them, the final difference to the incumbent given the first k folds has
mean D and variance s^2 (1/k) (1 - k/n), that of a sample mean from a finite population (Cochran 1977, Sampling
Techniques, 3rd edition, equation 2.8). So few folds are enough where trials differ clearly, and the last fold leaves no
doubt at all. The question is who wins on these folds; how well that generalises (Nadeau and Bengio 2003) is another.

s^2 from two or three folds is a bad guess, and can be nearly nothing by luck. It is shrunk towards what trials of this
study usually have (Smyth 2004, Linear models and empirical Bayes methods, section 6: the moderated t): with d0 and s0^2
from the variances of the complete trials, s^2 = (d0 s0^2 + (k - 1) s_k^2) / (d0 + k - 1), with d0 + k - 1 degrees of
freedom. That is also the floor of a standard error.

Sums are exact (fsum).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

from scipy.special import digamma, polygamma

from bayesd.study import limits
from bayesd.study.folds import mean_and_se, scores
from bayesd.study.state import Data, Study, Trial
from bayesd_schemas.names import NUMBER_MAX

REFERENCES = 3         # the best complete trials, whose mean others are compared with: more are further from the best
NEIGHBOURS = 50        # complete trials, the latest, whose differences say what is usual
DIGITS = 12            # of what is recorded: the last bits are another machine's


@dataclass(frozen=True, slots=True)
class Comparison:
    """A trial beside the incumbent on the folds that it has."""

    against: int
    """The incumbent's number."""
    is_paired: bool
    """Fold by fold; else its folds beside the incumbent's value, since no complete trial's folds are known."""
    references: tuple[int, ...]
    """The trials whose mean is the reference, best first."""
    folds: int
    """k, of the trial."""
    count: int
    """n, of a full evaluation."""
    difference: float
    """D: by how much the trial is worse, so a positive number whichever way the metric goes."""
    variance: float
    """s^2, moderated."""
    freedom: float
    """Degrees of freedom of s^2; 0: nothing is known of it."""
    known: int
    """Complete trials whose folds say what is usual."""

    @property
    def se(self) -> float:
        """Standard error of D as a guess at the final difference."""
        return math.sqrt(self.variance * max(0.0, 1 - self.folds / self.count) / self.folds)


def compare(trial: Trial, goal: int = 0) -> Comparison | None:
    """A trial beside the incumbent in one objective; None without an incumbent, or without a fold."""
    study = trial.study
    assert study.spec.folds is not None
    count = study.spec.folds.count
    metric = study.goals[goal].name
    sign = 1.0 if study.goals[goal].direction == "minimize" else -1.0
    mine = scores(trial, metric)
    best = study.best
    if not mine or best is None or best is trial or best.values is None:
        return None
    references = _references(study, trial, metric)
    if references:
        reference = _mean_by_fold(list(references.values()))
        behind = sign * (math.fsum(reference.values()) / count - best.values[goal])
    else:
        reference, behind = dict.fromkeys(range(count), best.values[goal]), 0.0
    differences = [sign * (value - reference[step]) for step, value in mine.items()]
    usual, weight, known = _usual(study, trial, references, reference, metric)
    k = len(differences)
    mean = math.fsum(differences) / k
    freedom = weight + k - 1
    square = _squares(differences, mean) + weight * usual
    return Comparison(best.number, bool(references), tuple(references), k, count, mean + behind,
                      square / freedom if freedom else 0.0, freedom, known)


def _references(study: Study, trial: Trial, metric: str) -> dict[int, dict[int, float]]:
    """The best complete trials of which all folds are known, best first, with these folds."""
    assert study.spec.folds is not None
    count = study.spec.folds.count
    sign = 1.0 if study.goals[0].direction == "minimize" else -1.0
    whole = ((sign * other.values[0], other.number) for other in study.trials
             if other.status == "complete" and other.of is None and other.values is not None and other is not trial
             and limits.keeps(other)
             and len(other.reports or ()) >= count and len(scores(other, metric)) == count)
    return {number: scores(study.trials[number - 1], metric) for _, number in nsmallest(REFERENCES, whole)}


def _mean_by_fold(trials: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {step: math.fsum(each[step] for each in trials) / len(trials) for step in trials[0]}


def _usual(study: Study, trial: Trial, references: Mapping[int, Mapping[int, float]], reference: Mapping[int, float],
           metric: str) -> tuple[float, float, int]:
    """(s0^2, d0, trials): the usual variance of the differences to the reference within a trial, how many folds it is
    worth, and how many trials say so. A trial of the reference is held against the others of it.

    From the variances s_g^2 of the latest complete trials, of which Smyth's equations give both from mean and variance
    of log s_g^2. With few of them d0 is at most their number: they know too little of how much variances vary.
    """
    found: list[tuple[float, int]] = []
    complete = (each for each in reversed(study.trials) if each.status == "complete" and each.of is None
                and each is not trial)
    for each in islice(complete, NEIGHBOURS):
        beside = reference
        if each.number in references:
            others = [folds for number, folds in references.items() if number != each.number]
            if not others:
                continue
            beside = _mean_by_fold(others)
        differences = [value - beside[step] for step, value in scores(each, metric).items()]
        if len(differences) > 1:
            n = len(differences)
            mean = math.fsum(differences) / n
            found.append((_squares(differences, mean) / (n - 1), n - 1))
    known = [(variance, freedom) for variance, freedom in found if 0 < variance <= NUMBER_MAX]
    if not known:
        return 0.0, 0.0, len(found)
    return (*moderation(known), len(found))


def _squares(differences: Sequence[float], mean: float) -> float:
    """Sum of squared deviations; infinite where a square is beyond all numbers: nothing is known then."""
    return math.fsum(apart * apart for apart in (each - mean for each in differences))


def moderation(known: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """(s0^2, d0) from variances with their degrees of freedom (Smyth 2004, section 6.2)."""
    total = len(known)
    plain = math.fsum(variance * freedom for variance, freedom in known) / sum(freedom for _, freedom in known)
    if total < 3:
        return plain, float(total)
    logs = [math.log(variance) - float(digamma(freedom / 2)) + math.log(freedom / 2) for variance, freedom in known]
    mean = math.fsum(logs) / total
    excess = (math.fsum((each - mean) ** 2 for each in logs) / (total - 1)
              - math.fsum(float(polygamma(1, freedom / 2)) for _, freedom in known) / total)
    if excess <= 0:
        return math.exp(mean), float(total)
    half = _trigamma_inverse(excess)
    d0 = min(2 * half, float(total))
    return math.exp(mean + float(digamma(half)) - math.log(half)), round(d0, 6)


def _trigamma_inverse(value: float) -> float:
    """x with trigamma(x) = value, by Newton's steps on 1 / trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        slope = float(polygamma(1, x))
        step = slope * (1 - slope / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-9:
            break
    return x


# ---------------------------------------------------------------- what a stopped trial teaches


def estimate(trial: Trial) -> Data | None:
    """What is learned of a trial that was stopped after some folds: the incumbent's values and what these folds say of
    the difference. Without an incumbent, their mean. None when the study has no folds, or the trial none of its own.

    The standard error adds what the missing folds leave open to the incumbent's own.
    """
    study = trial.study
    if study.spec.folds is None or trial.of is not None:
        return None
    values: dict[str, float | None] = {}
    se: float | None = None
    against = None
    measured = 0
    for place, goal in enumerate(study.goals):
        mine = list(scores(trial, goal.name).values())
        if not mine:
            return None
        measured = measured or len(mine)
        found = compare(trial, place)
        if found is None:
            values[goal.name], error = mean_and_se(mine)
        else:
            other = study.trials[found.against - 1]
            assert other.values is not None
            sign = 1.0 if goal.direction == "minimize" else -1.0
            said = other.values[place] + sign * found.difference
            values[goal.name] = said if abs(said) <= NUMBER_MAX else mean_and_se(mine)[0]
            error = math.hypot(found.se, other.se or 0.0) if found.freedom else None
            against = found.against if place == 0 else against
        if place == 0:
            se = error if error is not None and error <= NUMBER_MAX else None
    values = {name: None if value is None else rounded(value) for name, value in values.items()}
    return {"values": values, "folds": measured, **({} if se is None else {"se": rounded(se)}),
            **({} if against is None else {"against": against})}


def rounded(value: float) -> float:
    """A number as it is recorded."""
    return float(f"{value:.{DIGITS}g}")
