"""Is every suggestion of a log what its engine makes of its history? Each is asked for again.

Four levels, of which each needs the ones before it:

    L0  bytes   the chain holds (`bayesd.logfile.verify`)
    L1  state   the events fold to every state whose digest was saved beside them
    L2  answer  under the engine that wrote a proposal: the same point, evidence and fit, bit for bit
    L3  point   under another engine: the same point, or one that is as good to within rounding

Recomputing is teacher-forced: the problem of each proposal is built from the recorded events alone, the
recorded fit and the recorded points before it included. So an engine that once answers otherwise is not
blamed again for what follows, and any part of a log can be audited by itself. An event that was edited is:
what came after was made from what it said before. The fits are asked for again in the same way, each from
the history that it saw and the fit before it. A problem is what `desk.problem_of` says, the very function
that asked.

Pure: events in, verdicts out. `cli/audit.py` reads the file and spreads the work.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bayesd import optimize
from bayesd.optimize import samplers
from bayesd.study.canonical import canonical
from bayesd.study.desk import problem_of
from bayesd.study.problem import Fit, Problem, Proposal
from bayesd.study.state import Event, State, Study, _typed, apply
from bayesd_schemas.constraints import broken
from bayesd_schemas.space import Params

SAMPLERS = frozenset(("grid", "random", "sobol", "bayes"))
TIE = 1e-6          # of an acquisition, relative to its size: one climb ends so far from another on other kernels
FIT_TIE = 0.01      # of a log posterior density: theta is rounded to two decimals, which costs up to so much
UNDER_DEADLINE = "deadline"
UPSET = "error: "   # what the service says when the optimiser itself broke

Outcome = Literal["same", "tied", "diverged"]
Evidence = dict[str, Any]


# ---------------------------------------------------------------- what there is to ask again


@dataclass(frozen=True, slots=True)
class Case:
    """A proposal or a fit, and the moment whose state it was made from."""

    seq: int
    study: str
    as_of: int


@dataclass(slots=True)
class Plan:
    """What a log asks an audit to recompute, gathered event by event."""

    study: str | None = None
    from_seq: int = 1
    cases: list[Case] = field(default_factory=list)
    enqueued: int = 0
    """Points by hand: nobody suggested them."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Proposals by samplers that this version does not have."""
    engines: dict[str, tuple[int, Mapping[str, Any]]] = field(default_factory=dict)
    """Fingerprint -> (seq that named it first, what it stands for)."""

    def note(self, event: Event) -> None:
        if event.type == "engine.fingerprint":
            self.engines.setdefault(event.data["fingerprint"], (event.seq, event.data["engine"]))
        if event.study is None or event.seq < self.from_seq or self.study not in (None, event.study):
            return
        if event.type == "model.fitted":
            self.cases.append(Case(event.seq, event.study, event.data["as_of"]))
        elif event.type == "trial.proposed":
            sampler = event.data["sampler"]
            if sampler in SAMPLERS:
                self.cases.append(Case(event.seq, event.study, event.data["as_of"]))
            elif sampler == "enqueued":
                self.enqueued += 1
            else:
                self.unknown[sampler] += 1


@dataclass(frozen=True, slots=True)
class _Frozen:
    """A study as it was when it was asked about."""

    problem: Problem
    pending: tuple[int, ...]
    fit_seq: int
    trials: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A recorded answer and the problem that it answered, built from the events before it."""

    event: Event
    problem: Problem | None
    """None when its `as_of` is no moment before it."""
    engine: str | None
    """The fingerprint in force."""
    wrong: tuple[str, ...]
    """Fields of its provenance that the events before it do not bear out."""


def moments(events: Iterable[Event], cases: Sequence[Case]) -> Iterator[Moment]:
    """Fold the events; at each case say what was asked. The cases are of these events, in their order."""
    state = State()
    wanted = {case.seq for case in cases}
    uses = Counter((case.study, case.as_of) for case in cases)
    names: dict[int, set[str]] = {}
    for case in cases:
        names.setdefault(case.as_of, set()).add(case.study)
    frozen: dict[tuple[str, int], _Frozen] = {}
    fits: dict[int, Fit] = {}
    for event in events:
        if event.seq in wanted:
            assert event.study is not None
            key = (event.study, event.data["as_of"])
            yield _moment(state, event, frozen.get(key), fits)
            uses[key] -= 1
            if not uses[key]:
                frozen.pop(key, None)
        apply(state, event)
        if event.type == "model.fitted":
            fit = state.studies[event.study or ""].fit
            assert fit is not None
            fits[event.seq] = fit
        for name in names.get(event.seq, ()):
            study = state.studies.get(name)
            if study is not None:
                problem, pending = problem_of(study, (), study.drawn)
                frozen[name, event.seq] = _Frozen(problem, pending, study.fit_seq, len(study.trials))


def _moment(state: State, event: Event, frozen: _Frozen | None, fits: Mapping[int, Fit]) -> Moment:
    if frozen is None:
        return Moment(event, None, state.fingerprint, ("as_of",))
    if event.type == "model.fitted":
        number = event.data.get("number", frozen.problem.number)
        return Moment(event, replace(frozen.problem, number=number), state.fingerprint, ())
    study = state.studies[event.study or ""]
    data, wrong = event.data, list[str]()
    ahead, as_said = _ahead(study, event, frozen)
    fit, known = _fit(data, frozen, fits)
    engine = data.get("engine")
    if not as_said:
        wrong.append("ahead")
    if not known:
        wrong.append("fit")
    if "pending" in data and tuple(data["pending"]) != frozen.pending:
        wrong.append("pending")
    if engine is not None and engine != (state.fingerprint or "")[:16]:
        wrong.append("engine")
    # Candidates leave the drawer in their order, so number and draws follow from the trial before; but where two
    # answers overtook each other the event says them.
    problem = replace(frozen.problem, number=data.get("number", study.next_stream),
                      drawn=data.get("after", study.drawn), pending=(*frozen.problem.pending, *ahead), fit=fit)
    return Moment(event, problem, state.fingerprint, tuple(wrong))


def _ahead(study: Study, event: Event, frozen: _Frozen) -> tuple[tuple[Params, ...], bool]:
    """The candidates that lay before it, and whether the event says the same.

    A drawer is first in, first out, and dropping one drops all behind it; so they are the trials proposed since
    `as_of`. Except where another answer came in between: then only the event knows them.
    """
    data, number = event.data, event.trial or 0
    said = tuple(_typed(study, params) for params in data.get("ahead", ()))
    if "number" in data:
        return said, True
    found = tuple(trial.params for trial in study.trials[frozen.trials:number - 1])
    # Logs from before proposals named their engine left the points of a design out.
    return found, "ahead" not in data or "engine" not in data or said == found


def _fit(data: Mapping[str, Any], frozen: _Frozen, fits: Mapping[int, Fit]) -> tuple[Fit | None, bool]:
    """The fit that a proposal used, and whether there is such a one."""
    seq = data.get("fit")
    if not seq:
        return frozen.problem.fit, seq is None or frozen.problem.fit is None
    if seq == frozen.fit_seq:      # None if it was taken back, or if the model has no use for it
        return frozen.problem.fit, True
    return fits.get(seq), seq in fits


# ---------------------------------------------------------------- asked again


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case."""

    seq: int
    study: str
    trial: int | None
    what: Literal["suggestion", "fit"]
    level: Literal["L2", "L3"]
    outcome: Outcome
    exact: bool
    """Equal to the last bit, whatever the level asks for."""
    sampler: str | None = None
    fallback: str | None = None
    """Why a plainer sampler answered, in one word."""
    evidence: Evidence | None = None
    """Both answers, where they are not equal."""


def judge(moment: Moment, engine: str) -> Verdict:
    """Ask again, and compare. `engine` is the fingerprint of what computes here."""
    make = _judge_fit if moment.event.type == "model.fitted" else _judge_suggestion
    return make(moment, "L2" if moment.engine == engine else "L3")


def _judge_suggestion(moment: Moment, level: Literal["L2", "L3"]) -> Verdict:
    event, problem = moment.event, moment.problem
    said = _said(event.data)
    made = None if problem is None else _again(problem, event.data)
    found = {} if made is None else _made(made)
    differs = [*moment.wrong, *(name for name in said | found if not _equal(said, found, name, event.data))]
    point = not moment.wrong and not {"params", "sampler", "drawn"} & set(differs)
    outcome: Outcome = "same" if not differs or (level == "L3" and point) else "diverged"
    evidence: Evidence | None = None
    if differs:
        evidence = {"differs": differs, "recorded": said, "recomputed": found, **_asked(moment)}
        if problem is not None:
            worth = _worth(problem, event.data)
            evidence |= {"acquisition_of_recorded": worth, "acquisition_of_recomputed": found.get("acquisition")}
            if level == "L3" and outcome == "diverged" and not moment.wrong and _tied(
                    problem, said, found, worth):
                outcome = "tied"
        if outcome != "diverged" and level == "L3" and point:
            evidence = None        # other last bits of the evidence are no news on another engine
    return Verdict(event.seq, event.study or "", event.trial, "suggestion", level, outcome, not differs,
                   event.data["sampler"], _word(event.data.get("fallback")), evidence)


def _again(problem: Problem, data: Mapping[str, Any]) -> Proposal | None:
    """What the engine says now; where a plainer sampler answered, by the clock or by an accident, what that says."""
    fallback = data.get("fallback")
    plain = replace(problem, method="random")
    if fallback == UNDER_DEADLINE or (fallback or "").startswith(UPSET):
        proposals = optimize.suggest(plain).proposals
        return replace(proposals[0], fallback=fallback, drawn=problem.drawn) if proposals else None
    proposals = optimize.suggest(problem).proposals
    if fallback is not None and data["sampler"] == "random" and not (proposals and proposals[0].fallback):
        # What upset it then, such as a lack of memory, does not now.
        proposals = tuple(replace(each, fallback=fallback) for each in optimize.suggest(plain).proposals)
    return proposals[0] if proposals else None


_FIELDS = ("params", "sampler", "stream", "drawn", "acquisition", "gap", "mean", "sd", "index", "fallback")


def _said(data: Mapping[str, Any]) -> Evidence:
    return {name: data[name] for name in _FIELDS if data.get(name) is not None}


def _made(proposal: Proposal) -> Evidence:
    """A proposal as the log would have it: without what is not there or is no number."""
    values = {name: getattr(proposal, name) for name in _FIELDS}
    values["params"] = dict(proposal.params)
    return {name: value for name, value in values.items() if value is not None and not (
        isinstance(value, float) and not math.isfinite(value))}


def _equal(said: Evidence, found: Evidence, name: str, data: Mapping[str, Any]) -> bool:
    if name == "index" and "engine" not in data and name not in said:
        return True     # the log is from before it was recorded
    return name in said and name in found and canonical([said[name]]) == canonical([found[name]])


def _asked(moment: Moment) -> Evidence:
    data = moment.event.data
    return {"as_of": data["as_of"], "engine": moment.engine, **{
        name: data[name] for name in ("fit", "pending", "ahead", "number", "after", "space_rev") if name in data}}


def _worth(problem: Problem, data: Mapping[str, Any]) -> float | None:
    """The acquisition of the recorded point, as this engine sees it."""
    try:
        worth = optimize.value_of(problem, data["params"]) if data["sampler"] == "bayes" else None
    except Exception:      # a model that cannot be made has no opinion
        return None
    return worth if worth is not None and math.isfinite(worth) else None


def _tied(problem: Problem, said: Evidence, found: Evidence, worth: float | None) -> bool:
    """Whether the recorded point might have been chosen here as well: allowed, new where it must be, as good."""
    best = found.get("acquisition")
    if worth is None or best is None or said["sampler"] != found["sampler"] or said["drawn"] != found["drawn"]:
        return False
    try:
        params = problem.space.check(said["params"])
    except ValueError:
        return False
    if broken(problem.constraints, params) is not None or (not problem.repeats and params in samplers.seen(problem)):
        return False
    return bool(worth >= best - TIE * max(1.0, abs(best)))


def _judge_fit(moment: Moment, level: Literal["L2", "L3"]) -> Verdict:
    event, problem, data = moment.event, moment.problem, moment.event.data
    said = Fit(data["model"], data["n"], tuple(map(float, data["theta"])))
    made = None if problem is None else _fitted(problem)
    outcome: Outcome = "same" if made == said else "diverged"
    evidence: Evidence | None = None
    if made != said:
        apart = max((abs(a - b) for a, b in zip(said.theta, made.theta, strict=False)), default=0.0) if made else None
        evidence = {"differs": list(moment.wrong) or [
            name for name in ("model", "n", "theta") if getattr(said, name) != getattr(made, name, None)],
            "recorded": _fit_data(said), "recomputed": None if made is None else _fit_data(made), "apart": apart,
            **_asked(moment)}
        if problem is not None and made is not None and (made.model, made.n) == (said.model, said.n):
            doubts = optimize.doubt_of(problem, said), optimize.doubt_of(problem, made)
            evidence |= {"doubt_of_recorded": doubts[0], "doubt_of_recomputed": doubts[1]}
            if level == "L3" and doubts[0] <= doubts[1] + FIT_TIE:
                outcome = "tied"
    return Verdict(event.seq, event.study or "", None, "fit", level, outcome, made == said, evidence=evidence)


def _fitted(problem: Problem) -> Fit | None:
    try:
        return optimize.fit_of(problem)
    except Exception:      # nothing to fit, or not here: the verdict says so
        return None


def _fit_data(fit: Fit) -> Evidence:
    return {"model": fit.model, "n": fit.n, "theta": list(fit.theta)}


def _word(fallback: str | None) -> str | None:
    return None if fallback is None else fallback.split(":")[0]


# ---------------------------------------------------------------- the sum of it


ROWS = (("L2", "suggestion", "suggestions, same engine, bit for bit"), ("L2", "fit", "fits, same engine, bit for bit"),
        ("L3", "suggestion", "suggestions, another engine"), ("L3", "fit", "fits, another engine"))


def table(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """How many of how many, for L2 and L3; a level that nothing was asked of is left out."""
    counts = Counter[tuple[str, ...]]((each.level, each.what, each.outcome) for each in verdicts)
    exact = Counter[tuple[str, ...]]((each.level, each.what) for each in verdicts if each.exact)
    rows = []
    for level, what, words in ROWS:
        same, tied, diverged = (counts[level, what, outcome] for outcome in ("same", "tied", "diverged"))
        if same + tied + diverged:
            rows.append({"level": level, "what": words, "checked": same + tied + diverged, "same": same, "tied": tied,
                         "diverged": diverged, "to_the_bit": exact[level, what]})
    return rows


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two engines differ: the name, what is there, what is here."""
    said, found = dict(_leaves(one)), dict(_leaves(other))
    return [f"{name} {said.get(name)} there, {found.get(name)} here" for name in sorted(said.keys() | found.keys())
            if said.get(name) != found.get(name)]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for at, each in enumerate(value, start=1):
            yield from _leaves(each, f"{name}.{at}")
    else:
        yield name, value


def what_next(verdict: Verdict, differences: Sequence[str]) -> str:
    """What the reader of a difference does, in a sentence or two."""
    differs = (verdict.evidence or {}).get("differs", [])
    provenance = [name for name in differs if name in ("as_of", "ahead", "fit", "pending", "engine")]
    if provenance:
        return (f"The events before event {verdict.seq} do not bear out its {', '.join(provenance)}: no daemon wrote "
                "it so. Compare the file with a copy or a signed checkpoint kept elsewhere.")
    if verdict.level == "L3":
        return ("Another engine wrote it (" + ("; ".join(differences) or "the log does not say which") + "). Audit it "
                "there, or with those versions, for a verdict bit for bit; if that one differs, too, the event is not "
                "what was suggested.")
    return (f"The same engine says something else, so event {verdict.seq}, or one before it, is not what was written, "
            "or the engine is not a function of its problem. Compare the file with a copy or a signed checkpoint kept "
            "elsewhere; if they are equal, audit again, and report it as a bug with this page.")
