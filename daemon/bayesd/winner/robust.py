"""Rule `robust`: the trial around which the worst that the model expects is best. For values that nobody will set,
or keep,
quite as they were tried."""

from bayesd.optimize.neighbourhood import worst_nearby
from bayesd.winner import mean
from bayesd.winner.case import Case, Pick

CANDIDATES_MAX = 40     # with the best expectations: around the others it is hardly better


def pick(case: Case) -> Pick:
    expected, radius = case.expected, case.terms.wishes.radius
    ranked = sorted(case.complete, key=lambda entry: (_expected(case, entry.trial, entry.value), entry.trial))
    some = ranked[:CANDIDATES_MAX]
    worst = None if expected is None else worst_nearby(case.problem, [entry.params for entry in some], radius)
    if worst is None or expected is None:
        return mean.pick(case)
    order = sorted(range(len(some)), key=lambda i: (round(case.sign * worst[i], 9), i))
    entry, reached = some[order[0]], worst[order[0]]
    reason = (f"within {radius:.0%} of every range around it the model expects {reached:.6g} at worst, the "
              f"{case.low} of {len(some)} trials")
    if entry.trial != expected.trial and expected in some:
        reason += (f"; around trial {expected.trial}, which is expected to be better itself, it may be "
                   f"{worst[some.index(expected)]:.6g}")
    return Pick(entry, reason, {"worst": reached, "radius": radius})


def _expected(case: Case, trial: int, value: float) -> float:
    belief = case.belief(trial)
    return float("inf") if belief is None else case.sign * (value if case.terms.is_exact else belief.mean)
