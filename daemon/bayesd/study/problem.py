"""What a suggestion depends on, as one frozen value, and what comes back.

`optimize.suggest(problem, count) -> Suggestion` is a pure function of a `Problem`: the declared
space, the history in log order, the pending set, the seed and the number of the next trial.
Nothing else may move a suggestion. No clock, no randomness of its own, no state kept between
calls: that is what makes a log auditable and a restart invisible.
"""

from dataclasses import dataclass, field

from bayesd_schemas.constraints import Constraint
from bayesd_schemas.prior import Prior
from bayesd_schemas.space import Params, Space
from bayesd_schemas.study import Direction, Method, Model

NONE_NEW = "no candidate of the search was new and allowed"
"""Why a plainer sampler answered for the model: the log keeps it, and a page for people knows it again."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One outcome, in the order of the log.

    `values` are as measured, one per objective, in the study's order; None is a failure (which
    the optimiser learns from). `se` is the standard error of the first value when folds told it.
    """

    trial: int
    params: Params
    values: tuple[float, ...] | None
    se: float | None = None
    limits: tuple[float | None, ...] = ()
    """What was measured of the study's limits, in their order; None where nothing was."""
    spent: float | None = None
    """What the trial took, in the unit of the study's [cost]; None without one, and of all that did not end well."""
    fidelity: float | None = None
    """Of a trial that was stopped early: the share of its training that `values` were measured after, in (0, 1)."""
    curve: tuple[tuple[float, float], ...] = ()
    """(Share of the training, value) at the rungs that it reached; see `optimize.fidelity`."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Hyperparameters of a surrogate, enough to rebuild its posterior by one factorisation.

    `n` is how many observations it saw: the refit schedule depends on counts alone. `theta` is
    rounded so that it survives the last bits of another machine's BLAS.
    """

    model: str
    n: int
    theta: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Results of an earlier study, as far as this space has room for them."""

    study: str
    rows: tuple[tuple[Params, float], ...]
    """Points of this space, each with what was measured there, turned so that lower is better."""
    silent: frozenset[str] = frozenset()
    """Parameters that its points do not have."""
    points: int = 2
    """How many of its best points are tried first."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit on a metric that workers report: a point is feasible where its true value keeps it."""

    value: float
    is_most: bool
    """True: at most `value`; False: at least."""

    def keeps(self, measured: float) -> bool:
        return measured <= self.value if self.is_most else measured >= self.value


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that a suggestion depends on."""

    space: Space
    directions: tuple[Direction, ...]
    method: Method
    seed: int
    repeats: bool
    """False: no point is proposed twice (noise = "none"; method grid never repeats)."""
    number: int
    """Number of the trial that the first suggestion becomes; in a fork, of its random stream."""
    drawn: int
    """How many points this study has drawn from its sampler since the space last changed: the
    index of the next grid cell or Sobol point. Points enqueued by hand do not count."""
    history: tuple[Observation, ...] = ()
    pending: tuple[Params, ...] = ()
    fit: Fit | None = None
    constraints: tuple[Constraint, ...] = ()
    """What every proposed point must satisfy, read against `space`. Points of the history need not."""
    surrogate: Model = "gp"
    """What method bayes learns with."""
    prior: tuple[tuple[str, Prior], ...] = ()
    """Opinions on parameters, by name."""
    judged: bool = False
    """Whether to say how far the search has converged, too: it moves no proposal."""
    references: tuple[float | None, ...] = ()
    """Of the objectives, as measured: what is not better counts for no hypervolume. None: taken from data."""
    limits: tuple[Bound, ...] = ()
    sources: tuple[Source, ...] = ()
    """Earlier studies that are to help."""
    thrift: float | None = None
    """The power of the expected cost that an improvement is divided by; None: nobody asks what a trial takes."""

    def keeps(self, seen: Observation) -> bool:
        """Whether an outcome was measured to keep every limit."""
        return not self.limits or (len(seen.limits) == len(self.limits) and all(
            value is not None and bound.keeps(value) for bound, value in zip(self.limits, seen.limits, strict=True)))


@dataclass(frozen=True, slots=True)
class Proposal:
    """One point to try, with the evidence for it."""

    params: Params
    sampler: str
    """The sampler that made it: grid, random, sobol or bayes."""
    stream: str
    """Key of the random stream used: seed, trial number and purpose."""
    drawn: int
    """`Problem.drawn` after this proposal."""
    acquisition: float | None = None
    gap: float | None = None
    """Acquisition of the winner minus that of the runner-up."""
    mean: float | None = None
    """What the model expects here, in the units of the metric."""
    sd: float | None = None
    means: tuple[float, ...] | None = None
    """With two to four objectives: what is expected of each, in its units."""
    sds: tuple[float, ...] | None = None
    index: int | None = None
    """Which of the ranked candidates it was: those before it were known points or pending."""
    fallback: str | None = None
    """Why a plainer sampler answered than the study asked for."""
    prior: float | None = None
    """What the prior weighed: the factor of its log density in the acquisition; of a point that was drawn from it,
    how far it was trusted. None without a prior, and where it had no part in the point."""
    sources: tuple[tuple[str, float], ...] | None = None
    """What earlier studies weighed in the model, by name; of a point that was one of theirs, that study and 1."""
    power: float | None = None
    """`Problem.thrift`, where there is a model of costs."""
    cost: float | None = None
    """What that model expects the trial to take (a median), in the unit of the study's [cost]."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """How much a search may still gain, as the model sees it. Metric units, none below zero, but for the counts.

    Rounded to six significant digits: a stop rule compares them, and they are on record.
    """

    results: int
    """Trials that ended well, of which it was made."""
    barren: int
    """Of those, the last ones, since the best observed value moved by a share of `spread` (see `convergence`)."""
    steady: int
    """At how many moments in a row, now and some results ago each, models fitted then say that little is left to gain;
    counted as far as it decides."""
    best: float
    """The best belief at a point that was tried."""
    noise: float
    """Standard deviation that the model ascribes to one measurement there."""
    spread: float
    """From what a random point is worth to the best belief."""
    improvement: float
    """The largest expected improvement of any point."""
    expected_regret: float
    """How much better the best point anywhere is expected to be than the best belief."""
    regret: float
    """Its upper bound: exceeded with a chance of 5 %."""
    cells: float = 1.0
    """How many parts of the space the model takes for unlike each other: 1 where its length scales are long."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Proposals for trials number, number + 1, ...; fewer than asked means the space is exhausted, or that no
    point was found that the constraints allow."""

    proposals: tuple[Proposal, ...]
    fit: Fit | None = None
    """A fit made on the way, to be logged; None when the given one was used."""
    exhausted: bool = False
    convergence: Convergence | None = None
    """Of the history alone, where the problem asked for it and a model can tell."""
    counters: dict[str, float] = field(default_factory=dict)
