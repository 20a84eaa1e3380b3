"""Is every suggestion of a log what its engine makes of its history? Each is asked for again.

Four levels, of which each needs the ones before it:

    L0  bytes   the chain holds (`bayesd.logfile.verify`)
    L1  state   the events fold to every state whose digest was saved beside them; points by hand are the ones that
                were enqueued, forks took over what their origin knew, a confirmed winner is the one that the
                repeats say, and a trial is stopped where the pruning rule says so
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
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import ValidationError

from bayesd import optimize
from bayesd.optimize import samplers
from bayesd.study import again, confirm, ladder, paired, pruning, stopping, warm
from bayesd.study.asked import Frozen, Known, asked, freeze
from bayesd.study.canonical import canonical
from bayesd.study.fold import apply
from bayesd.study.fork import Prefix, prefix
from bayesd.study.problem import Fit, Problem, Proposal
from bayesd.study.spec import spec_of
from bayesd.study.state import Data, Event, State, Study
from bayesd_schemas.constraints import broken
from bayesd_schemas.events import EVENTS
from bayesd_schemas.study import Stop
from bayesd_schemas.warm import Carried

SAMPLERS = frozenset(("grid", "random", "sobol", "bayes"))
BY_HAND = frozenset(("enqueued", "confirm", "again"))    # made by no sampler: the record alone says which point it is
TIE = 1e-6          # of an acquisition, relative to its size: one climb ends so far from another on other kernels
STOP_TIE = 0.01     # of the spread, in the bound of the regret
FIT_TIE = 0.01      # of a log posterior density: theta is rounded to two decimals, which costs up to so much
BY_SERVICE = re.compile(r"deadline|error: \w+")      # was slow, or broke: why the service had a plainer point made
BY_ENGINE = re.compile(r"(bayes|sobol|grid): \w+: .*", re.DOTALL)      # what upset the engine, which then made one

Outcome = Literal["same", "tied", "diverged"]
Evidence = dict[str, Any]


# ---------------------------------------------------------------- what there is to ask again


@dataclass(frozen=True, slots=True)
class Case:
    """Something that the events before it decide, and the moment whose state it was made from."""

    seq: int
    study: str
    as_of: int | None
    """None where nothing but the event before matters, or where it cannot be read."""
    nonsense: tuple[str, ...] = ()
    """Fields that are not what an event of its type may have there."""
    forked: Data | None = None
    """Of a fork: what its first event says."""


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
    last: int = 0
    """The last event that could be folded."""
    _forking: str | None = None
    """A fork whose trials are still coming."""
    _climbing: set[str] = field(default_factory=set)
    """Studies whose trials go on from rungs: each of their leases is a decision."""

    def note(self, event: Event) -> None:
        self.last = event.seq
        if event.type == "engine.fingerprint":
            self.engines.setdefault(event.data["fingerprint"], (event.seq, event.data["engine"]))
        is_stray = event.type == "trial.imported" and event.study != self._forking
        if event.type == "study.forked" or event.type != "trial.imported":
            self._forking = event.study if event.type == "study.forked" else None
        if event.study is None or event.seq < self.from_seq or self.study not in (None, event.study):
            return
        if event.type in ("study.created", "study.forked", "study.amended") and _climbs(event.data):
            self._climbing.add(event.study)
        if event.study in self._climbing and (event.type == "trial.leased" or (
                event.type == "trial.pruned" and "rung" in event.data)):
            self.cases.append(Case(event.seq, event.study, None, _nonsense(event)))
        elif event.type in ("model.fitted", "trial.proposed"):
            self._note_answer(event, event.study)
        elif event.type in ("study.winner", "study.warmed", "trial.stopped") or (
                event.type == "trial.pruned" and event.data.get("estimate") is not None):
            self.cases.append(Case(event.seq, event.study, None, _nonsense(event)))
        elif event.type == "study.stopping":
            nonsense = _nonsense(event)
            asks = not nonsense and event.data["rule"] not in stopping.BY_RESULTS
            self.cases.append(Case(event.seq, event.study, event.data["as_of"] if asks else None, nonsense))
        elif event.type == "study.forked":
            at = event.data["origin"]["at"]
            self.cases.append(Case(event.seq, event.study, at if isinstance(at, int) else None, forked=event.data))
        elif is_stray:      # only a fork takes over what was measured elsewhere, in one go with its first event
            self.cases.append(Case(event.seq, event.study, None, ("origin",)))

    def _note_answer(self, event: Event, study: str) -> None:
        nonsense = _nonsense(event)
        sampler = str(event.data.get("sampler"))
        if event.type == "trial.proposed" and sampler not in SAMPLERS:
            if sampler in BY_HAND:
                self.enqueued += 1
            else:
                self.unknown[sampler] += 1
                nonsense = nonsense or ("sampler",)
        needs_moment = not nonsense and sampler not in BY_HAND
        self.cases.append(Case(event.seq, study, event.data["as_of"] if needs_moment else None, nonsense))


def _climbs(data: Data) -> bool:
    """Whether a declaration lets trials go on from rungs; of one that cannot be read nothing is said."""
    try:
        return spec_of(data).resumes
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _nonsense(event: Event) -> tuple[str, ...]:
    """Fields that no daemon writes so, of an event that is about to be asked for again."""
    try:
        EVENTS[event.type].model_validate(event.data, strict=True)
    except ValidationError as error:
        return tuple(dict.fromkeys(str(each["loc"][0]) if each["loc"] else "data" for each in error.errors()))
    return ()


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
    expected: Evidence | None = None
    """Of what no engine made, a point by hand or a fork: what it must say."""
    stop: Stop | None = None
    """Of a study that was stopped by what the model said: its rules."""


@dataclass(slots=True)
class _Floor:
    """Since when what was made for a study is no longer wanted: nothing handed out afterwards was made before."""

    drawer: int = 0
    """Candidates made before this event were dropped, and answers under way were not taken."""
    version: int = 0
    """Answers under way at this event were not taken; candidates that lay ready were kept."""

    def bears(self, event: Event) -> bool:
        """Whether this answer can have been wanted until now."""
        # A fit is recorded when the answer comes, whatever becomes of its candidates.
        return bool(event.data["as_of"] >= (self.drawer if event.type == "trial.proposed" else self.version))

    def saw(self, as_of: Any) -> None:
        """A candidate was handed out. First in, first out: behind the first one that was made after a change, none
        from before it can come."""
        if isinstance(as_of, int) and as_of >= self.version:
            self.drawer = max(self.drawer, self.version)


EMPTYING = frozenset(("study.created", "study.forked", "study.amended", "study.paused", "study.closed",
                      "study.confirming", "study.stopping", "point.enqueued", "point.again", "outcome.voided"))


@dataclass(slots=True)
class _Fork:
    """A fork that is being compared: its event, what its origin makes of it, and the trials seen so far."""

    event: Event
    engine: str | None
    prefix: Prefix | None
    wrong: list[str] = field(default_factory=list)
    trials: int = 0

    def begin(self) -> None:
        if self.prefix is None:
            self.wrong.append("origin")
            return
        said = self.event.data
        for name in ("origin", "drawn", "streams", "queue"):
            if name == "queue" and name not in said:
                continue      # an operator may have asked for none
            if canonical([said.get(name)]) != canonical([self.prefix.forked.get(name)]):
                self.wrong.append(name)

    def take(self, event: Event) -> None:
        self.trials += 1
        at = self.trials - 1
        if self.prefix is None or "trial.imported" in self.wrong:
            return
        if at >= len(self.prefix.imported) or canonical([event.trial, event.data]) != canonical(
                [*self.prefix.imported[at]]):
            self.wrong.append("trial.imported")

    def moment(self) -> Moment:
        count = None if self.prefix is None else len(self.prefix.imported)
        if count != self.trials and self.prefix is not None and "trial.imported" not in self.wrong:
            self.wrong.append("trial.imported")
        expected = {} if self.prefix is None else {
            name: self.prefix.forked[name] for name in ("origin", "drawn", "streams")}
        return Moment(self.event, None, self.engine, tuple(self.wrong), {**expected, "imported": count})


@dataclass(slots=True)
class _Fold:
    """The events up to now, and what is kept of them for the cases to come."""

    state: State = field(default_factory=State)
    frozen: dict[tuple[str, int], Frozen] = field(default_factory=dict)
    fits: dict[int, Known] = field(default_factory=dict)
    floors: dict[str, _Floor] = field(default_factory=dict)
    prefixes: dict[int, Prefix] = field(default_factory=dict)
    """By the seq of the first event of the fork."""
    warmed: dict[str, list[Data]] = field(default_factory=dict)
    """By study: what is to be said of the earlier ones that help it, in their order."""
    is_named: bool = False
    """The engine in force is one that proposals name: the first releases said its versions alone, and did not."""

    def apply(self, event: Event) -> None:
        name = event.study or ""
        before = self.state.studies.get(name)
        version = before.version if before is not None else -1
        if event.type == "study.created" and event.data["spec"].get("warm_start"):
            self.warmed[name] = _warmed(self.state, event)
        elif event.type == "study.forked" and event.data["spec"].get("warm_start"):
            self.warmed[name] = _kept(self.state, event)
        elif event.type == "outcome.voided":      # studies that it helped learn anew
            for other in self.state.studies.values():
                if before is not None and other.learned_from(before.trials[(event.trial or 0) - 1]):
                    self.floors[other.name] = _Floor(event.seq, event.seq)
        apply(self.state, event)
        study = self.state.studies.get(name)
        if event.type == "engine.fingerprint":
            self.is_named = "engine" in event.data["engine"]
        elif event.type == "daemon.started":      # what lay ready lay in the memory of the one before
            self.floors = {each: _Floor(event.seq, event.seq) for each in self.state.studies}
        if study is None:
            return
        floor = self.floors.setdefault(name, _Floor())
        if event.type in EMPTYING:
            floor.drawer = event.seq
        elif event.type == "trial.proposed" and event.data["sampler"] not in BY_HAND:
            floor.saw(event.data.get("as_of"))
        if study.version != version:
            floor.version = event.seq
        if event.type == "model.fitted" and study.fit is not None:
            self.fits[event.seq] = Known(study.fit, event.data.get("as_of", -1), name)

    def keep(self, study: str) -> None:
        found = self.state.studies.get(study)
        if found is not None:
            self.frozen[study, self.state.seq] = freeze(found)

    def keep_prefix(self, case: Case) -> None:
        assert case.forked is not None
        found = self.state.studies.get(case.forked["origin"]["study"])
        if found is not None:
            self.prefixes[case.seq] = prefix(self.state, found, spec_of(case.forked), keep_queue=True)


def moments(events: Iterable[Event], cases: Sequence[Case]) -> Iterator[Moment]:
    """Fold the events; at each case say what was asked. The cases are of these events, in their order."""
    fold = _Fold()
    wanted = {case.seq: case for case in cases}
    uses = Counter((case.study, case.as_of) for case in cases if case.as_of is not None and case.forked is None)
    kept: dict[int, set[str]] = {}
    for study, as_of in uses:
        kept.setdefault(as_of, set()).add(study)
    forks: dict[int, list[Case]] = {}
    for case in cases:
        if case.forked is not None and case.as_of is not None:
            forks.setdefault(case.as_of, []).append(case)
    fork: _Fork | None = None
    for event in events:
        if fork is not None and not (event.type == "trial.imported" and event.study == fork.event.study):
            yield fork.moment()
            fork = None
        if fork is not None:
            fork.take(event)
        case_here = wanted.get(event.seq)
        if case_here is not None and case_here.forked is not None:
            fork = _Fork(event, fold.state.fingerprint, fold.prefixes.pop(event.seq, None))
            fork.begin()
        elif case_here is not None:
            yield _moment(fold, event, case_here)
            if case_here.as_of is not None:
                key = (case_here.study, case_here.as_of)
                uses[key] -= 1
                if not uses[key]:
                    fold.frozen.pop(key, None)
        fold.apply(event)
        for name in kept.get(event.seq, ()):
            fold.keep(name)
        for case in forks.get(event.seq, ()):
            fold.keep_prefix(case)
    if fork is not None:
        yield fork.moment()


def _moment(fold: _Fold, event: Event, case: Case) -> Moment:
    engine = fold.state.fingerprint
    if case.nonsense:
        return Moment(event, None, engine, case.nonsense)
    study, data = fold.state.studies[case.study], event.data
    if event.type == "study.winner":
        try:
            return Moment(event, None, engine, (), confirm.due(fold.state, study))
        except (IndexError, KeyError):       # an earlier one spoke of trials that there are not
            return Moment(event, None, engine, ("leaders",))
    if event.type == "study.warmed":
        if data.get("rows") is not None:      # of another log: it says for itself what it holds
            return Moment(event, None, engine, (), _brought(study, data))
        due = fold.warmed.get(case.study)
        return Moment(event, None, engine, (), due.pop(0) if due else None)
    if event.type == "trial.stopped":
        return Moment(event, None, engine, (), _stopped(study, event))
    if event.type == "trial.pruned" and "rung" not in data:
        return Moment(event, None, engine, (), _estimated(study, event))
    if event.type in ("trial.leased", "trial.pruned"):
        return Moment(event, None, engine, (), _climbed(study, event))
    if event.type == "study.stopping" and case.as_of is None:
        return Moment(event, None, engine, (), _stopping(stopping.by_results(study), event.seq - 1))
    if data.get("sampler") in BY_HAND:
        return Moment(event, None, engine, (), _by_hand(study, event))
    frozen, floor = fold.frozen.get((case.study, data["as_of"])), fold.floors[case.study]
    if frozen is None or not floor.bears(event):
        return Moment(event, None, engine, ("as_of",))
    if event.type == "study.stopping":
        return Moment(event, frozen.problem, engine, () if study.stopping is None else ("rule",),
                      stop=study.spec.stop)
    if event.type == "model.fitted":
        number = data.get("number", frozen.problem.number)
        return Moment(event, replace(frozen.problem, number=number), engine, ())
    problem, wrong = asked(frozen, study.trials, event.trial or 0, study.drawn, data, fold.fits, study=study.name)
    left_out = _left_out(data) if fold.is_named else ()
    if data.get("power") not in (None, problem.thrift):      # it follows from the log, whatever engine answered
        wrong = (*wrong, "power")
    return Moment(event, problem, engine, (*wrong, *left_out, *_unlike(study, data, engine)))


def _warmed(state: State, event: Event) -> list[Data]:
    try:
        return warm.events(state, spec_of(event.data))
    except warm.Unusable:
        return []


def _brought(study: Study, data: Data) -> Data | None:
    try:
        return warm.brought(Carried.model_validate({name: data[name] for name in data if name != "n"}), study.spec)
    except (ValidationError, warm.Unusable):
        return None


def _kept(state: State, event: Event) -> list[Data]:
    origin = state.studies.get(event.data["origin"]["study"])
    return [] if origin is None else [each for each in warm.kept(origin, spec_of(event.data)) if "rows" not in each]


def _stopped(study: Study, event: Event) -> Evidence | None:
    """What the pruning rule says of a trial after the report before; None when it lets the trial go on."""
    number = event.trial or 0
    found = pruning.verdict(study, study.trials[number - 1]) if 1 <= number <= len(study.trials) else None
    return None if found is None else found.data(study.trials[number - 1].fence)


def _climbed(study: Study, event: Event) -> Evidence | None:
    """Of a study whose trials go on from rungs, what a lease or the end of a paused trial must say; None where the
    rungs do not bear it out."""
    number = event.trial or 0
    if not 1 <= number <= len(study.trials):
        return None
    trial = study.trials[number - 1]
    if event.type == "trial.pruned":
        return ladder.end_of(trial)
    due = ladder.due(study, trial)
    if due is not trial:
        return {"trial": None if due is None else due.number}
    fidelity = ladder.target_of(trial)
    return {} if fidelity is None else {"fidelity": fidelity}


def _stopping(fired: stopping.Fired | None, as_of: int) -> Evidence:
    """What `study.stopping` says where a rule fired, beside the time."""
    return {} if fired is None else {"rule": fired[0], "numbers": fired[1], "as_of": as_of}


def _estimated(study: Study, event: Event) -> Evidence | None:
    """What a trial that was stopped after some folds teaches, beside what its worker told; None when it is nothing."""
    number = event.trial or 0
    found = paired.estimate(study.trials[number - 1]) if 1 <= number <= len(study.trials) else None
    return None if found is None else {**event.data, "estimate": found}


def _by_hand(study: Study, event: Event) -> Evidence:
    """What the proposal of the point that was enqueued first says, or of a leader that is to be measured again: which
    of those it is depends on who asked."""
    if event.data["sampler"] == "confirm":
        due = next((number for number in study.confirm if number == event.data.get("of")), None)
        return {"params": None if due is None else dict(study.trials[due - 1].params), "space_rev": study.space_rev,
                "sampler": "confirm", "of": due, "drawn": study.drawn, "as_of": event.seq - 1}
    due_again = again.proposal(study, event.seq - 1)
    if due_again is not None:
        return due_again
    return {"params": dict(study.queue[0]) if study.queue else None, "space_rev": study.space_rev,
            "sampler": "enqueued", "drawn": study.drawn, "as_of": event.seq - 1}


def _left_out(data: Data) -> Iterator[str]:
    """Where the log names its engine, a proposal says which one made it, and from what."""
    for name in ("engine", "pending", "fit") if data["sampler"] == "bayes" else ("engine",):
        if data.get(name) is None:
            yield name


def _unlike(study: Study, data: Data, engine: str | None) -> Iterator[str]:
    if data.get("engine") is not None and data["engine"] != (engine or "")[:16]:
        yield "engine"
    if data["space_rev"] != study.space_rev:
        yield "space_rev"
    if study.queue or study.remeasure:
        yield "sampler"       # a point by hand goes before any drawn one


# ---------------------------------------------------------------- asked again


What = Literal["suggestion", "fit", "enqueued", "winner", "fork", "prune", "rung", "stop", "warm"]
Level = Literal["L1", "L2", "L3"]
OF_RECORD: frozenset[What] = frozenset(("enqueued", "winner", "fork", "prune", "rung", "warm"))
"""What follows from the record alone, at L1."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case."""

    seq: int
    study: str
    trial: int | None
    what: What
    level: Level
    outcome: Outcome
    exact: bool
    """Equal to the last bit, whatever the level asks for."""
    sampler: str | None = None
    fallback: str | None = None
    """Why a plainer sampler answered, in one word."""
    evidence: Evidence | None = None
    """Both answers, where they are not equal."""
    reproduced: bool = True
    """False: a plainer sampler answered for a reason that leaves no trace, and only its point was asked for again."""


def judge(moment: Moment, engine: str) -> Verdict:
    """Ask again, and compare. `engine` is the fingerprint of what computes here."""
    event = moment.event
    level: Level = "L2" if moment.engine == engine else "L3"
    what = _what(event)
    try:
        if what in OF_RECORD or (what == "stop" and moment.expected is not None):
            return _judge_record(moment, what)
        if moment.problem is None:
            return _unfounded(moment, what, level, {"differs": list(moment.wrong)})
        return {"fit": _judge_fit, "stop": _judge_stop}.get(what, _judge_suggestion)(moment, level)
    except Exception as error:      # what an engine cannot even be asked is not what it was asked
        return _unfounded(moment, what, level, {"differs": list(moment.wrong) or ["data"], "broke": repr(error)[:200]})


def _what(event: Event) -> What:
    if event.type == "model.fitted":
        return "fit"
    if event.type in ("study.forked", "trial.imported"):
        return "fork"
    if event.type == "study.winner":
        return "winner"
    if event.type == "trial.leased" or (event.type == "trial.pruned" and "rung" in event.data):
        return "rung"
    if event.type in ("trial.stopped", "trial.pruned"):
        return "prune"
    if event.type == "study.stopping":
        return "stop"
    if event.type == "study.warmed":
        return "warm"
    return "enqueued" if event.data.get("sampler") in BY_HAND else "suggestion"


def _unfounded(moment: Moment, what: What, level: Level, evidence: Evidence) -> Verdict:
    """Of an event from whose own words no problem can be built."""
    event = moment.event
    sampler, fallback = event.data.get("sampler"), event.data.get("fallback")
    return Verdict(event.seq, event.study or "", event.trial, what, level, "diverged", False,
                   None if sampler is None else str(sampler), _word(fallback),
                   {"recorded": _said(event.data), "recomputed": {}, **_asked(moment), **evidence})


def _judge_record(moment: Moment, what: What) -> Verdict:
    """What no engine made follows from the record alone: a point by hand, and what a fork takes over."""
    event, expected = moment.event, moment.expected
    differs = list(moment.wrong)
    if what != "fork" and not differs and expected is not None:
        said = {"fidelity"} if event.type == "trial.leased" else event.data.keys() - {"elapsed_s"}
        differs = [name for name in sorted(expected.keys() | said)
                   if canonical([event.data.get(name)]) != canonical([expected.get(name)])]
    if differs or expected is None:
        recorded = {name: event.data[name] for name in (expected or event.data) if name in event.data}
        return _unfounded(moment, what, "L1", {
            "differs": differs, "recorded": recorded, "recomputed": dict(expected or {})})
    return Verdict(event.seq, event.study or "", event.trial, what, "L1", "same", True, event.data.get("sampler"))


def _judge_suggestion(moment: Moment, level: Level) -> Verdict:
    event, problem = moment.event, moment.problem
    assert problem is not None
    said = _said(event.data)
    made, is_plain = _again(problem, event.data)
    found = {} if made is None else _made(made)
    differs = list(dict.fromkeys(
        (*moment.wrong, *(name for name in said | found if not _equal(said, found, name, event.data)))))
    point = not moment.wrong and not {"params", "sampler", "drawn"} & set(differs)
    outcome: Outcome = "same" if not differs or (level == "L3" and point) else "diverged"
    evidence: Evidence | None = None
    if differs:
        worth = _worth(problem, event.data)
        evidence = {"differs": differs, "recorded": said, "recomputed": found, **_asked(moment),
                    "acquisition_of_recorded": worth, "acquisition_of_recomputed": found.get("acquisition")}
        if level == "L3" and outcome == "diverged" and not moment.wrong and _tied(problem, said, found, worth):
            outcome = "tied"
        if outcome != "diverged" and level == "L3" and point:
            evidence = None        # other last bits of the evidence are no news on another engine
    return Verdict(event.seq, event.study or "", event.trial, "suggestion", level, outcome, not differs,
                   event.data["sampler"], _word(event.data.get("fallback")), evidence, not is_plain)


def _again(problem: Problem, data: Mapping[str, Any]) -> tuple[Proposal | None, bool]:
    """What the engine says now; where a plainer sampler answered, by the clock or by an accident, what that says,
    and that it is that. Another reason than the service and the engine give is none: the engine's answer stands."""
    fallback = data.get("fallback")
    plain = replace(problem, method="random")
    if fallback is not None and BY_SERVICE.fullmatch(fallback):
        proposals = optimize.suggest(plain).proposals
        return replace(proposals[0], fallback=fallback, drawn=problem.drawn) if proposals else None, True
    proposals = optimize.suggest(problem).proposals
    upset = fallback is not None and BY_ENGINE.fullmatch(fallback) and fallback.startswith(f"{problem.method}: ")
    if upset and data["sampler"] == "random" and not (proposals and proposals[0].fallback):
        # What upset it then, such as a lack of memory, does not now.
        proposals = tuple(replace(each, fallback=fallback) for each in optimize.suggest(plain).proposals)
        return proposals[0] if proposals else None, True
    return proposals[0] if proposals else None, False


_FIELDS = ("params", "sampler", "stream", "drawn", "acquisition", "gap", "mean", "sd", "means", "sds", "index",
           "fallback", "prior", "sources", "power", "cost")


def _said(data: Mapping[str, Any]) -> Evidence:
    return {name: data[name] for name in _FIELDS if data.get(name) is not None}


def _made(proposal: Proposal) -> Evidence:
    """A proposal as the log would have it: without what is not there or is no number."""
    values = {name: getattr(proposal, name) for name in _FIELDS}
    values["params"] = dict(proposal.params)
    values["sources"] = None if proposal.sources is None else dict(proposal.sources)
    for name in ("means", "sds"):
        if values[name] is not None:
            values[name] = list(values[name]) if all(map(math.isfinite, values[name])) else None
    return {name: value for name, value in values.items() if value is not None and not (
        isinstance(value, float) and not math.isfinite(value))}


def _equal(said: Evidence, found: Evidence, name: str, data: Mapping[str, Any]) -> bool:
    if name == "index" and "engine" not in data and name not in said:
        return True     # the log is from before it was recorded
    return name in said and name in found and canonical([said[name]]) == canonical([found[name]])


def _asked(moment: Moment) -> Evidence:
    data = moment.event.data
    names = ("as_of", "fit", "pending", "ahead", "number", "after", "space_rev")
    return {"engine": moment.engine, **{name: data[name] for name in names if name in data}}


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


def _judge_fit(moment: Moment, level: Level) -> Verdict:
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


def _judge_stop(moment: Moment, level: Level) -> Verdict:
    """Whether the model says so again. Another engine may see other numbers, but has to stop by the same rule, or
    nearly."""
    event, data = moment.event, moment.event.data
    assert moment.problem is not None
    seen = optimize.convergence(moment.problem)
    found = _stopping(None if seen is None else stopping.by_model(moment.stop, seen), data["as_of"])
    said = {name: data[name] for name in ("rule", "numbers", "as_of")}
    exact = not moment.wrong and canonical([said]) == canonical([found])
    outcome: Outcome = "same" if exact else "diverged"
    if not exact and not moment.wrong and level == "L3" and seen is not None:
        agrees = found.get("rule") == said["rule"]
        near = abs(seen.regret - data["numbers"].get("regret", math.inf)) <= STOP_TIE * seen.spread
        outcome = "same" if agrees else "tied" if near else "diverged"
    evidence: Evidence | None = None
    if not exact:
        evidence = {"differs": list(moment.wrong) or [name for name in said if canonical([said[name]]) != canonical(
            [found.get(name)])], "recorded": said, "recomputed": found or (seen and asdict(seen)), **_asked(moment)}
    return Verdict(event.seq, event.study or "", None, "stop", level, outcome, exact, evidence=evidence)


def _fitted(problem: Problem) -> Fit | None:
    try:
        return optimize.fit_of(problem)
    except Exception:      # nothing to fit, or not here: the verdict says so
        return None


def _fit_data(fit: Fit) -> Evidence:
    return {"model": fit.model, "n": fit.n, "theta": list(fit.theta)}


def _word(fallback: Any) -> str | None:
    return None if fallback is None else str(fallback).split(":")[0]


# ---------------------------------------------------------------- the sum of it


ROWS = (("L1", "enqueued", "points by hand, as they were enqueued"),
        ("L1", "winner", "confirmed winners, by what was measured again"),
        ("L1", "fork", "forks, as their origin was"),
         ("L1", "warm", "earlier studies that help, as they were"),
         ("L1", "prune", "trials stopped early, as the pruning rule says, and what they teach"),
         ("L1", "rung", "leases and ends of trials that pause, as their rungs say"),
         ("L1", "stop", "stops by results, as the study says"),
         ("L2", "stop", "stops by the model, same engine, bit for bit"),
         ("L3", "stop", "stops by the model, another engine"),
        ("L2", "suggestion", "suggestions, same engine, bit for bit"), ("L2", "fit", "fits, same engine, bit for bit"),
        ("L2", "plain", "not reproduced (the plain point was)"),
        ("L3", "suggestion", "suggestions, another engine"), ("L3", "fit", "fits, another engine"),
        ("L3", "plain", "not reproduced (the plain point was)"))


def table(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """How many of how many, level by level; a row that nothing was asked of is left out."""
    def row(each: Verdict) -> tuple[str, str]:
        return each.level, each.what if each.reproduced else "plain"

    counts = Counter[tuple[str, ...]]((*row(each), each.outcome) for each in verdicts)
    exact = Counter[tuple[str, ...]](row(each) for each in verdicts if each.exact)
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
    provenance = [name for name in differs if name in (
        "as_of", "ahead", "fit", "pending", "engine", "number", "after", "space_rev")]
    of_record = verdict.what in OF_RECORD or (
        verdict.what, verdict.level) == ("stop", "L1")
    if of_record or not verdict.evidence or not verdict.evidence.get("recomputed"):
        provenance = differs
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
