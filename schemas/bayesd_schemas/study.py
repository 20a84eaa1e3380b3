"""The study file: what is searched, by what method, under which budget.

TOML, JSON and YAML mean the same. Every key has a type, a default and a sentence here; an
unknown key is an error.
"""

import math
import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bayesd_schemas import constraints as constraining
from bayesd_schemas import warm
from bayesd_schemas.names import INTEGER_MAX, Name
from bayesd_schemas.prior import Priors, check
from bayesd_schemas.space import Finite, Params, Space
from bayesd_schemas.warm import SOURCES_MAX, WarmStart

Method = Literal["grid", "random", "sobol", "bayes"]
Direction = Literal["minimize", "maximize"]
Model = Literal["gp", "forest"]
PruneRule = Literal[
    "median",
    "percentile",
    "asha",
    "hyperband",
    "race",
    "curve",
]
WinnerRule = Literal["best", "mean", "one-se", "robust", "pareto"]
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.:/@-]{0,63}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:=-]{1,64}$")]

CONSTRAINTS_MAX = 100
LIMITS_MAX = 16
LOGGED = {"logged": True}
"""Validation context for a study out of a log: what was accepted once is not judged at points again,
since a logarithm may differ between machines in its last bit, and every log must open on all of them."""

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def seconds(text: Any) -> Any:
    """Seconds from a number or from words such as "90s", "2h" or "1h30m"."""
    if not isinstance(text, str):
        return text
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(min|[smhd])|\s", "", text):
        raise ValueError(f'a time is a number of seconds or words such as "90s", "2h", "1h30m", not {text!r}')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=1e10)]


def _open_ended(bounds: Any) -> Any:
    """TOML has no null, but it has inf: an end that is infinite is none."""
    if isinstance(bounds, list | tuple):
        return [None if isinstance(end, float) and math.isinf(end) and (end > 0) == bool(i) else end
                for i, end in enumerate(bounds)]
    return bounds


def _ordered(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = bounds
    if low is None and high is None:
        raise ValueError("both ends are open, so nothing is bounded: leave bounds out, or give [0, 1] or [0, null]")
    if low is not None and high is not None and low >= high:
        raise ValueError(f"the low end, {low:g}, is not below the high end, {high:g}")
    return bounds


Bounds = Annotated[tuple[Finite | None, Finite | None], BeforeValidator(_open_ended), AfterValidator(_ordered)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(_Part):
    """One metric that workers report, and which way is better."""

    name: MetricName
    direction: Direction = "minimize"
    reference: Finite | None = Field(None, description="Reference value for the hypervolume of several objectives.")
    bounds: Bounds | None = Field(None, description="What this metric can be, [low, high]; null, or inf in TOML, is an "
                                  "open end. A value outside is a failure of class other, and is not learned from.")

    def misses(self, value: float) -> str | None:
        """Why a value cannot be one of this metric, in words; None when it can."""
        low, high = self.bounds or (None, None)
        if (low is None or value >= low) and (high is None or value <= high):
            return None
        ends = [f"{word} {end!r}" for word, end in (("at least", low), ("at most", high)) if end is not None]
        return f"{self.name} is {value!r}, but by the study's bounds it is {' and '.join(ends)}"


class Limit(_Part):
    """A limit on a metric that workers report in `values` beside the objectives: a fairness, a latency, a size."""

    name: MetricName = Field(description="What people call it, for example latency.")
    metric: MetricName | None = Field(None, description="The metric that workers report; by default the name itself.")
    at_most: Finite | None = Field(None, description="A trial with more breaks it, and never leads.")
    at_least: Finite | None = Field(None, description="A trial with less breaks it. One of the two is given.")

    @model_validator(mode="after")
    def _one_side(self) -> "Limit":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"limit {self.name}: give one of at_most and at_least; for a range give two limits")
        return self

    @property
    def metric_name(self) -> str:
        return self.metric or self.name

    @property
    def is_most(self) -> bool:
        return self.at_most is not None

    @property
    def side(self) -> str:
        return "at_most" if self.is_most else "at_least"

    @property
    def value(self) -> float:
        value = self.at_most if self.at_most is not None else self.at_least
        assert value is not None
        return value

    def keeps(self, measured: float) -> bool:
        return measured <= self.value if self.is_most else measured >= self.value


class Budget(_Part):
    """Whichever comes first; the rule that fired is recorded."""

    trials: Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True)] | None = Field(
        None, description="Trials with a first lease; retries and voids do not count.")
    wall: Seconds | None = Field(None, description="Open, unpaused time while the daemon lives.")
    cost: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Sum of the costs that workers report.")
    fidelity: Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True)] | None = Field(
        None, description="How far all trials are trained together, in the unit of [fidelity], for example epochs; for "
                          "[prune] with resume = true. The last of it goes to the leaders of the highest rungs.")


class Lease(_Part):
    """How long a worker may be silent before its trial is offered again."""

    default_s: Seconds = Field(600.0, description="What an ask without lease_s gets.")
    max_s: Seconds = Field(604800.0, description="The longest lease an ask can get.")

    @model_validator(mode="after")
    def _ordered(self) -> "Lease":
        if self.default_s > self.max_s:
            raise ValueError("lease.default_s is above lease.max_s")
        return self


class Retry(_Part):
    """How often the same trial is leased again, by class of failure."""

    lost: Annotated[int, Field(ge=0, le=1000, strict=True)] = Field(2, description="Its lease ended without a word.")
    crash: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    timeout: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    oom: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0


class Confirm(_Part):
    """Measure the leaders again before a winner is announced, when the trials are used up."""

    top: Annotated[int, Field(ge=1, le=100, strict=True)] = Field(3, description="How many leaders.")
    repeats: Annotated[int, Field(ge=1, le=20, strict=True)] = Field(
        1, description="How often each, on another worker than before where there is one; no budget counts these.")


class Folds(_Part):
    """Trials are cross-validated: a report is the value of one fold, its step the number of the fold, from 0."""

    count: Annotated[int, Field(ge=2, le=1000, strict=True)] = Field(description="How many folds make a full "
                                                                     "evaluation; repeats of a splitter count.")


class Prune(_Part):
    """Stop trials early whose reports are behind those of others."""

    rule: PruneRule = Field(description="median or percentile: stopped when its best report is behind that part of "
                            "what complete trials reported at the same step. asha: stopped at a rung of "
                            "[fidelity] unless among the best 1/reduction that reached it; hyperband: the same in "
                            "brackets that begin to judge at different rungs. race: cross-validated trials, with "
                            "[folds], stopped when they can hardly beat the best one on all folds any more. "
                            "curve: stopped when the trial's learning curve hardly leads to a better end than the "
                            "best trial has.")
    by: MetricName | None = Field(None, description="Which of several objectives is looked at, by name; or "
                                "dominance: all of them at once. Stopped is then what too many dominate, what is not "
                                "among the best of its rung by how many dominate it, or what hardly ends better in "
                                "anything than one trial on the front.")
    metric: MetricName | None = Field(None, description="The earlier name of by.")
    warmup: Annotated[int, Field(ge=0, le=INTEGER_MAX, strict=True)] = Field(
        0, description="Reports of steps before it are not judged.")
    startup: Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True)] | None = Field(
        None, description="So many complete trials must have reported at a step first (median and percentile, "
                          "default 5; curve, default 8), or trials have reached a rung (asha and hyperband; default "
                          "1), or complete trials be known by fold (race; default 3).")
    percentile: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] | None = Field(
        None, description="Of percentile: the share of the best that go on, in percent. Default 25.")

    chance: Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)] | None = Field(
        None, description="Of curve: a trial whose chance to end better than the best is below it is stopped. "
                          "Default 0.05.")
    error: Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)] = Field(
        0.05, description="Of race: the probability that a trial is stopped which would have won.")
    min_folds: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        1, description="Of race: so many folds are measured before the first look.")
    resume: Annotated[bool, Field(strict=True)] = Field(
        False, description="Of asha and hyperband: a trial is leased up to a rung, told, and paused there; one that is "
                           "among the best 1/reduction of its rung goes on later, from its checkpoint.")
    shared: Annotated[bool, Field(strict=True)] = Field(
        False, description="Of hyperband: a rung is one for all brackets, so that a trial is held against all that "
                           "reached it. Else each bracket has rungs of its own.")

    @model_validator(mode="after")
    def _fitting(self) -> "Prune":
        if self.percentile is not None and self.rule != "percentile":
            raise ValueError('percentile is for rule = "percentile"')
        if self.chance is not None and self.rule != "curve":
            raise ValueError('chance is for rule = "curve"; a race has error')
        if self.by is not None and self.metric is not None:
            raise ValueError("by and metric say the same: give by alone")
        if self.resume and self.rule not in ("asha", "hyperband"):
            raise ValueError('resume is for rule = "asha" and "hyperband", which have rungs to go on from')
        if self.shared and self.rule != "hyperband":
            raise ValueError('shared is for rule = "hyperband", which has brackets')
        return self

    @property
    def needed(self) -> int:
        """`startup`, or the rule's default."""
        return self.startup or {"median": 5, "percentile": 5, "race": 3, "curve": 8}.get(self.rule, 1)

    @property
    def looks_at(self) -> str | None:
        """The objective that is looked at; None: the first, or with `by_dominance` all."""
        return self.metric if self.by is None or self.by_dominance else self.by

    @property
    def by_dominance(self) -> bool:
        """Whether all objectives are looked at together. An objective of that name is named by `metric`."""
        return self.by == "dominance"

    @property
    def least_chance(self) -> float:
        """Below it the rule curve stops."""
        return 0.05 if self.chance is None else self.chance

    @property
    def share(self) -> float:
        """The percentile that median and percentile compare with."""
        return 50.0 if self.rule == "median" else 25.0 if self.percentile is None else self.percentile


class Fidelity(_Part):
    """How far a trial is trained: at most `max` of a unit such as epochs, in which its reports count their steps."""

    name: MetricName = Field(description="The unit, for example epochs.")
    min: Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True)] = Field(
        1, description="The lowest rung. One that is too low ranks trials by chance: a 25th of max is a good first "
                       "choice.")
    max: Annotated[int, Field(ge=2, le=INTEGER_MAX, strict=True)] = Field(
        description="The whole of it; every grant says so.")
    reduction: Annotated[int, Field(ge=2, le=100, strict=True)] = Field(
        3, description="From a rung to the next the fidelity grows by it, and one of so many trials goes on.")

    @model_validator(mode="after")
    def _ordered(self) -> "Fidelity":
        if self.min >= self.max:
            raise ValueError(f"min, {self.min}, is not below max, {self.max}")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """The rungs below max, in steps."""
        found, level = [], self.min
        while level < self.max:
            found.append(level)
            level *= self.reduction
        return tuple(found)


class Stop(_Part):
    """When to stop before the budget is used up; the first rule that fires is recorded with its numbers. Running
    trials finish."""

    target: Finite | None = Field(None, description="Stop when a trial is as good as this.")
    patience: Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True)] | None = Field(
        None, description="Stop after so many complete trials in a row of which none was a better best.")
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="What better means for patience: by more than this.")
    improvement: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Stop when the best expected improvement is below so many standard deviations of the noise.")
    regret: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Stop when the best point anywhere is better than the best belief by less than this, with a "
                          "chance of 95 % by the model.")
    converged: bool = Field(False, description="Stop when little is left to gain, by a rule that needs no number.")

    @property
    def by_model(self) -> bool:
        """Whether a rule asks the model."""
        return self.improvement is not None or self.regret is not None or self.converged


class Cost(_Part):
    """What a trial takes differs over the space: learn it, and look for improvement per unit of it."""

    per: Literal["seconds", "cost"] = Field(description="Of what workers tell: seconds, or cost in any unit.")
    aware: bool = Field(True, description="False: what a trial should take is on record, and moves no proposal.")


class Winner(_Part):
    """Which trial is taken, and by what taste."""

    rule: WinnerRule | None = Field(None, description="What `study best` says without --rule, where nothing was "
                                    "confirmed. Default: pareto with several objectives, best where noise = "
                                    "\"none\", else mean.")
    simplest: Annotated[list[str], Field(max_length=16)] = Field(
        default=[], description="What one-se prefers, first things first: parameters (less, or an earlier choice, is "
                                "simpler; with a minus before the name more is), seconds, or an objective. Default "
                                "seconds.")
    radius: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.05, description="Neighbourhood of rule robust, as a share of every numeric range on its scale; whole "
                          "numbers and ordered choices move by one step at least.")
    beside: Annotated[list[str], Field(max_length=8)] = Field(
        default=[], description="What rule pareto trades off beside the objectives, named as in simplest.")


class StudySpec(_Part):
    """A whole study file."""

    name: Name
    metric: MetricName | None = Field(None, description="The one metric; or [[objectives]] for several.")
    direction: Direction | None = Field(None, description="Which way the metric is better. Default minimize.")
    bounds: Bounds | None = Field(None, description="What the one metric can be, as in [[objectives]].")
    objectives: Annotated[list[Objective], Field(max_length=16)] | None = None
    limits: Annotated[list[Limit], Field(max_length=LIMITS_MAX)] = Field(
        default=[], description="What other metrics may be. Every complete trial tells them; one that breaks a limit "
                                "is learned from and never leads.")
    method: Method = "bayes"
    seed: Annotated[int, Field(ge=0, le=INTEGER_MAX, strict=True)] = 0
    noise: Literal["learn", "none"] = Field("learn", description="none: the same point always gives the same value, "
                                            "so no point is proposed twice.")
    surrogate: Model = Field("gp", description="What method bayes learns with: a Gaussian process (gp), which was "
                             "ahead wherever both were measured, or a forest of randomised trees.")
    late: Literal["use", "ignore"] = Field("use", description="Whether a late outcome is an observation.")
    tags: Annotated[list[Tag], Field(max_length=16)] = Field(
        default=[], description="Only asks that carry all of these tags get trials.")
    budget: Budget = Budget()
    lease: Lease = Lease()
    retry: Retry = Retry()
    prune: Prune | None = Field(None, description="None: every trial runs to its end.")
    fidelity: Fidelity | None = Field(None, description="What rungs are counted in; a report's step says how much of "
                                      "it was trained by then.")
    stop: Stop | None = Field(None, description="None: only the budget ends the search.")
    cost: Cost | None = Field(None, description="None: all trials count alike, whatever they take. Read by method "
                                                "bayes.")
    confirm: Confirm | None = Field(None, description="None: the winner is announced as it was measured once.")
    folds: Folds | None = Field(None, description="None: a report is not a fold.")
    winner: Winner = Winner()
    space: Space
    constraints: Annotated[list[Annotated[str, StringConstraints(strict=True, max_length=constraining.LENGTH_MAX)]],
                           Field(max_length=CONSTRAINTS_MAX)] = Field(
        default=[], description="Expressions that hold at every proposed point, for example \"batch * units <= "
                                "65536\"; one that names an inactive parameter holds.")
    enqueue: Annotated[list[dict[str, Any]], Field(max_length=1000)] = Field(
        default=[], description="Points to try first.")
    prior: Priors = Field(
        default={}, description="Parameter -> where it is probably good, and how sure that is. Read by method bayes.")
    warm_start: Annotated[list[WarmStart], Field(max_length=SOURCES_MAX)] = Field(
        default=[], description="Earlier studies of the log that are to help method bayes, as far as they are borne "
                                "out.")

    @field_validator("constraints")
    @classmethod
    def _constraining(cls, constraints: list[str], info: ValidationInfo) -> list[str]:
        space = info.data.get("space")
        if space is not None:        # else it has a fault of its own
            made = constraining.parse(constraints, space)
            if info.context != LOGGED:
                constraining.require_possible(made, space, grid=info.data.get("method") == "grid")
        return constraints

    @field_validator("prior")
    @classmethod
    def _about_space(cls, prior: Priors, info: ValidationInfo) -> Priors:
        return check(info.data.get("space"), prior)

    @field_validator("warm_start")
    @classmethod
    def _into_space(cls, starts: list[WarmStart], info: ValidationInfo) -> list[WarmStart]:
        return warm.check(info.data.get("space"), starts)

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> "StudySpec":
        if self.objectives is not None:
            if self.metric is not None or self.direction is not None:
                raise ValueError("give metric and direction, or [[objectives]], not both")
            if self.bounds is not None:
                raise ValueError("with [[objectives]], bounds stand in each of them")
            if not self.objectives:
                raise ValueError("objectives is empty")
            names = [objective.name for objective in self.objectives]
            if len(set(names)) != len(names):
                raise ValueError("two objectives have the same name")
        if len({limit.name for limit in self.limits}) < len(self.limits):
            raise ValueError("limits: two of them have the same name")
        if self.prune is not None:
            self._prunable(self.prune)
            if info.context != LOGGED:
                self._one_kind_of_report(self.prune)
        self._trainable()
        if self.stop is not None and self.stop.by_model and (
                self.surrogate != "gp" or len(self.goals) > 1 or self.limits):
            raise ValueError("stop.improvement, stop.regret and stop.converged need one objective and surrogate = "
                             "\"gp\", and no limits; stop.target and stop.patience do not")
        known = {"seconds", *self.space, *(goal.name for goal in self.goals)}
        for key in ("simplest", "beside"):
            for name in getattr(self.winner, key):
                if name.removeprefix("-") not in known:
                    raise ValueError(f"winner.{key}: {name!r} is no parameter, no objective and not seconds")
        for i, params in enumerate(self.enqueue, start=1):
            try:
                checked = self.space.check(params)
                if info.context != LOGGED:
                    constraining.check(self.constrained, checked)
            except ValueError as error:
                raise ValueError(f"enqueue, point {i}: {error}") from error
        return self

    def _trainable(self) -> None:
        most = self.budget.fidelity
        if most is not None and (not self.resumes or self.fidelity is None):
            raise ValueError("budget.fidelity is for trials that climb rungs with pauses; it needs [fidelity], and "
                             "[prune] with rule = \"asha\" or \"hyperband\" and resume = true")
        if most is not None and self.fidelity is not None and most < self.fidelity.max:
            raise ValueError(f"budget.fidelity, {most}, is below fidelity.max, {self.fidelity.max}: not one trial "
                             "could be trained to the end")

    def _prunable(self, prune: Prune) -> None:
        if prune.rule in ("asha", "hyperband") and self.fidelity is None:
            raise ValueError(f"prune: rule {prune.rule} needs [fidelity], for example with name = \"epochs\", max = 81")
        names = [goal.name for goal in self.goals]
        if prune.by_dominance:
            if len(names) == 1:
                raise ValueError('prune: by = "dominance" is for several [[objectives]]; with one, leave by out')
            if prune.rule == "race":
                raise ValueError(f'prune: a race looks at one objective: write by = "{names[0]}", or take another rule '
                                 'for by = "dominance"')
        elif prune.looks_at is None and len(names) > 1:
            raise ValueError("prune: with several objectives, by says what is looked at: "
                             + ", ".join(f'by = "{name}"' for name in names) + ', or by = "dominance" for all of them')
        if prune.looks_at is not None and prune.looks_at not in names:
            raise ValueError(f"prune: by names {prune.looks_at}, which is none of the objectives {', '.join(names)}")
        if prune.rule == "race":
            if self.folds is None:
                raise ValueError('prune: rule = "race" compares folds, so [folds] has to say how many make a full '
                                 "evaluation, for example count = 5")
            if prune.min_folds >= self.folds.count:
                raise ValueError(f"prune: min_folds is {prune.min_folds}, but folds.count is {self.folds.count}: "
                                 "nothing would ever be stopped")
            if prune.looks_at not in (None, names[0]):
                raise ValueError(f"prune: a race is for the first objective, {names[0]}")

    def _one_kind_of_report(self, prune: Prune) -> None:
        if self.folds is not None and self.fidelity is not None and prune.rule in ("asha", "hyperband") and (
                not prune.resume):
            raise ValueError(f"prune: with [folds] a report is a fold, and rule {prune.rule} takes its step for "
                             f"{self.fidelity.name}: leave [folds] out, or give resume = true, with which what is told "
                             "at the rungs decides, and not the reports")

    @property
    def resumes(self) -> bool:
        """Whether trials pause at rungs and go on from there."""
        return self.prune is not None and self.prune.resume

    @property
    def goals(self) -> tuple[Objective, ...]:
        """The objectives in order, however the file spelled them."""
        if self.objectives:
            return tuple(self.objectives)
        return (Objective(name=self.metric or "value", direction=self.direction or "minimize",
                          bounds=self.bounds),)

    @cached_property
    def constrained(self) -> tuple[constraining.Constraint, ...]:
        """The constraints, ready to be held against points."""
        return constraining.parse(self.constraints, self.space)

    def allows(self, params: Params) -> bool:
        """Whether space and constraints have this point."""
        try:
            constraining.check(self.constrained, self.space.check(params))
        except ValueError:
            return False
        return True

    @property
    def first_points(self) -> list[Params]:
        return [self.space.check(params) for params in self.enqueue]
