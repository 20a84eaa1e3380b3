"""How much what a trial takes counts against what it may bring, from facts of the log alone.

An improvement is divided by the expected cost to a power that falls from 1 to 0 as the budget is used ("EI-cool", Lee
et al., "Cost-aware Bayesian optimization", 2020, section 4): early on cheap trials teach more for the same money; at
the end only the best point counts, whatever it takes. Without a budget there is no end to save for, and the power
stays 1.
"""

from bayesd.study.state import Study


def thrift(study: Study) -> float | None:
    """The power, rounded; None where the study asks for no model of costs."""
    cost = study.spec.cost
    if cost is None:
        return None
    return round(1.0 - _used(study), 6) if cost.aware else 0.0


def _used(study: Study) -> float:
    """The share used of the budget that is nearest to its end, from 0 to 1. Open time is what the log knew of it."""
    budget = study.spec.budget
    shares = [used / limit for used, limit in (
        (study.used, budget.trials), (study.elapsed_s, budget.wall), (study.cost, budget.cost)) if limit is not None]
    return min(1.0, max(shares, default=0.0))
