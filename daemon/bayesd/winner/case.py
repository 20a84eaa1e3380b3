"""What a rule chooses from: the candidates, what is believed of them, and the taste of the study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bayesd.optimize.arms import Arms, arms
from bayesd.study.problem import Problem
from bayesd.winner.candidates import Entry
from bayesd_schemas.study import Objective, StudySpec, Winner

ENOUGH = 10         # results, from which on the model has a say


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of the true value of a trial's point, in the units of the first objective."""

    mean: float
    sd: float
    probability: float
    """That no other point that was tried is better."""
    loss: float
    """How much worse than the best of them it is expected to be."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a study file says of its winner."""

    wishes: Winner = field(default_factory=Winner)
    is_exact: bool = False
    """noise = "none": what was observed is the true value."""
    goals: tuple[Objective, ...] = ()

    @classmethod
    def of(cls, spec: StudySpec) -> "Terms":
        return cls(spec.winner, spec.noise == "none", spec.goals)

    def rule(self, results: int) -> str:
        """The rule when nobody names one: not the lowest score alone where scores are noisy, once a model can
        tell."""
        if self.wishes.rule is not None:
            return self.wishes.rule
        if len(self.goals) > 1:
            return "pareto"
        return "best" if self.is_exact or results < ENOUGH else "mean"


@dataclass(frozen=True)
class Case:
    """One choice. `complete`, the candidates, is not empty."""

    complete: tuple[Entry, ...]
    problem: Problem
    terms: Terms = field(default_factory=Terms)

    @property
    def sign(self) -> float:
        """Times a value: lower is better."""
        return 1.0 if self.problem.directions[0] == "minimize" else -1.0

    @property
    def low(self) -> str:
        return "lowest" if self.sign > 0 else "highest"

    @property
    def extent(self) -> str:
        """Out of what is chosen, in words."""
        trials = sum(entry.n for entry in self.complete)
        if trials == len(self.complete):
            return f"{trials} complete trials"
        return f"{len(self.complete)} points, each the mean of its evaluations, {trials} in all"

    @cached_property
    def best(self) -> Entry:
        """Of the best observed values the earliest."""
        return min(self.complete, key=lambda entry: (self.sign * entry.value, entry.trial))

    @cached_property
    def arms(self) -> tuple[Arms | None, ...]:
        """The points tried, by objective; None where no model can be made or none is needed."""
        if self.terms.is_exact:
            return (None,) * len(self.problem.directions)
        return tuple(arms(self.problem, objective) for objective in range(len(self.problem.directions)))

    def belief(self, trial: int) -> Belief | None:
        """None where there is no model."""
        known = self.arms[0]
        if self.terms.is_exact:
            entry = next((entry for entry in self.complete if entry.trial == trial), None)
            if entry is None:
                return None
            loss = self.sign * (entry.value - self.best.value)
            return Belief(entry.value, 0.0, 1.0 if loss == 0 else 0.0, loss)
        if known is None or trial not in known.of_trial:
            return None
        at = known.of_trial[trial]
        return Belief(float(known.mean[at]), float(known.sd[at]), float(known.probability[at]), float(known.loss[at]))

    @cached_property
    def expected(self) -> Entry | None:
        """The trial whose point the model expects most of; None without a model."""
        known = self.arms[0]
        if self.terms.is_exact:
            return self.best
        if known is None:
            return None
        # Rounded, so that of points which the model holds for equal every machine takes the better observed.
        return min((entry for entry in self.complete if entry.trial in known.of_trial), key=lambda entry: (
            round(float(known.z[known.of_trial[entry.trial]]), 6), self.sign * entry.value, entry.trial), default=None)


@dataclass(frozen=True, slots=True)
class Pick:
    """What a rule takes, in words."""

    entry: Entry
    reason: str
    more: dict[str, Any] = field(default_factory=dict)


def simplicity(case: Case, names: Sequence[str]) -> dict[int, tuple[float, ...]]:
    """Trial -> how simple it is by `names`, lower is simpler; what is not known is as bad as can be."""
    goals = {goal.name: place for place, goal in enumerate(case.terms.goals)}
    space = case.problem.space

    def one(entry: Entry, said: str) -> float:
        name, sign = said.removeprefix("-"), -1.0 if said.startswith("-") else 1.0
        if name in space:
            if name not in entry.params:
                return -math.inf        # a parameter that is no part of it
            value: Any = entry.params[name]
            choices = getattr(space[name], "choices", None)
            return sign * (float(value) if choices is None else list(choices).index(value) if value in choices
                           else math.inf)
        if name in goals and goals[name] < len(entry.values):
            return (1.0 if case.terms.goals[goals[name]].direction == "minimize" else -1.0) * entry.values[goals[name]]
        return math.inf if entry.seconds is None else sign * entry.seconds

    return {entry.trial: tuple(one(entry, name) for name in names) for entry in case.complete}
