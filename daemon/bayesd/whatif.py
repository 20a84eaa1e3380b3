"""What if: a recorded study under another budget, stopping rule, winner rule or pruning rule.

It replays what was measured and invents nothing. A stop rule only ever cuts a record short, and what
was measured before the cut was measured without knowledge of what came after, so the cut is exact:

    handed out until the stop        kept; what was pending then is counted with the result that it had
    handed out after the stop        never run: its seconds and costs are saved, its values are lost

What lies beyond the record (a larger budget than was spent, the points that another method would
have gone on to) nobody measured, and no number here stands for it. Another method's next points can
be named, not their values.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import orjson

from bayesd import whatif_prune, whatif_stop, winner
from bayesd.optimize import suggest
from bayesd.study.limits import keeps
from bayesd.study.problem import Problem
from bayesd.study.row import Row
from bayesd.study.state import Study
from bayesd.study.stopping import Drought
from bayesd_schemas.study import Method, Prune, Stop, StudySpec

ORDERS = ("recorded", "trial", "shuffled")
NUMBERS = ("trials", "wall", "cost", "no_improvement", "target", "patience", "improvement", "regret")
SHUFFLES = 1000
NEXT_MAX = 100
LISTED_MAX = 200        # trials that an answer lists; it must fit into a message
CAVEAT = ("Only what was measured is replayed: no result is invented for a point that nobody measured.")
CAVEAT_ADAPTIVE = ("A method that learns would have gone on to other points had other results come in; what those "
                   "would have been worth, nobody measured.")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop; whichever comes first. None: not limited by this."""

    trials: int | None = None
    wall: float | None = None
    cost: float | None = None
    no_improvement: int | None = None
    """Stop after so many results in a row without a better best."""
    target: float | None = None
    patience: int | None = None
    """As in the study file's [stop]: after so many complete trials in a row of which none was better by min_delta."""
    min_delta: float = 0.0
    improvement: float | None = None
    regret: float | None = None
    converged: bool = False
    """As in the study file's [stop]: these ask the model, see whatif_stop.py."""

    def __bool__(self) -> bool:
        return self.by_model or any(each is not None for each in (
            self.trials, self.wall, self.cost, self.no_improvement, self.target, self.patience))

    @property
    def by_model(self) -> bool:
        return self.converged or self.improvement is not None or self.regret is not None


@dataclass(frozen=True, slots=True)
class Known:
    """What a study holds at the moment whose past is looked at, frozen."""

    study: str
    metric: str
    problem: Problem
    entries: tuple[winner.Entry, ...]
    ends: dict[int, tuple[str, float | None]]
    """Trial -> its state and first value; None of one that breaks a limit, and is no better result than a failure."""
    imported: frozenset[int]
    again: frozenset[int]
    """Trials that measured a leader again: no budget counted them, no rule looks at them."""
    closed_by: str | None
    spec: StudySpec
    terms: winner.Terms = field(default_factory=winner.Terms)
    """What the study file says of its winner."""

    @property
    def rule(self) -> str:
        """The study's own, as things stand."""
        return self.terms.rule(len(self.entries))

    @property
    def sign(self) -> float:
        """Times a value: lower is better."""
        return 1.0 if self.problem.directions[0] == "minimize" else -1.0

    @property
    def void(self) -> frozenset[int]:
        """Taken back since: no result and no trial of a budget, now as in a replay. What they cost was spent."""
        return frozenset(number for number, (state, _) in self.ends.items() if state == "voided")


def known(study: Study, problem: Problem) -> Known:
    return Known(study.name, study.goals[0].name, problem, winner.entries(study), {
        trial.number: (trial.status, trial.values[0] if trial.values and keeps(trial) else None)
        for trial in study.trials},
        frozenset(trial.number for trial in study.trials if trial.origin is not None),
        frozenset(trial.number for trial in study.trials if trial.of is not None), study.closed_by,
        study.spec, winner.Terms.of(study.spec))


@dataclass(slots=True)
class Tally:
    """How far a study is, event by event."""

    seq: int = 0
    time: str = ""
    trial: int = 0
    """The trial that the last event was about; 0: the study."""
    handed_out: set[int] = field(default_factory=set)
    void: set[int] = field(default_factory=set)
    """Trials handed out, and void since."""
    done: dict[int, int] = field(default_factory=dict)
    """Trial -> seq of its outcome, in the order in which they came."""
    elapsed_s: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0
    untimed: int = 0
    """Outcomes that told no seconds."""
    best: float | None = None
    """The best value so far, signed: lower is better."""
    barren: int = 0
    """Results since the best one."""
    drought: Drought = field(default_factory=Drought)
    """What patience counts: complete trials alone."""

    @classmethod
    def begun(cls, of: "Known", limits: Limits) -> "Tally":
        """Before the first event: imported results are there to beat."""
        tally = cls(best=_imported_best(of), drought=Drought(limits.min_delta))
        for entry in of.entries:
            if entry.trial in of.imported:
                tally.drought.take(of.sign * entry.value, False)
        return tally

    def result(self, value: float | None) -> None:
        """One more result: a signed value, or None for a failure or a pruned trial."""
        if value is not None:
            self.drought.take(value)
        if value is not None and (self.best is None or value < self.best):
            self.best, self.barren = value, 0
        else:
            self.barren += 1

    def fired(self, limits: Limits, sign: float) -> str | None:
        """The rule that says stop here."""
        if limits.target is not None and self.best is not None and self.best <= sign * limits.target:
            return "target"
        if limits.no_improvement is not None and self.barren >= limits.no_improvement:
            return "no-improvement"
        if limits.patience is not None and self.drought.best is not None and self.drought.barren >= limits.patience:
            return "patience"
        if limits.trials is not None and len(self.handed_out) >= limits.trials:
            return "trials"
        if limits.cost is not None and self.cost >= limits.cost:
            return "cost"
        if limits.wall is not None and self.elapsed_s >= limits.wall:
            return "wall"
        return None

    def words(self) -> Body:
        return {"seq": self.seq, "time": self.time, "handed_out": len(self.handed_out), "results": len(self.done),
                "elapsed_s": round(self.elapsed_s, 3), "cost": self.cost, "seconds": round(self.seconds, 3)}


_OUTCOMES = frozenset(("trial.completed", "trial.failed", "trial.pruned"))
_TOLD = _OUTCOMES | {"outcome.late"}


def _walk(events: Iterable[Body], of: Known, tally: Tally, only: set[int] | None = None) -> Iterator[Tally]:
    """The tally after each event of the study; with `only`, of these trials alone."""
    void = of.void
    for body in events:
        trial, data = body.get("trial", 0), body["data"]        # 0: the event is about the study
        if only is not None and trial not in only:
            continue
        tally.seq, tally.time, tally.trial = body["seq"], body["time"], trial
        if data.get("elapsed_s") is not None:
            tally.elapsed_s = float(data["elapsed_s"])
        type = body["type"]
        if trial in of.again:
            pass
        elif type == "trial.leased":
            (tally.void if trial in void else tally.handed_out).add(trial)
        elif type in _TOLD:
            if data.get("message") is not None:      # else nobody spent anything on it again
                tally.cost += float(data.get("cost") or 0.0)
                tally.seconds += float(data.get("seconds") or 0.0)
                tally.untimed += data.get("seconds") is None
            if type in _OUTCOMES and not data.get("retry") and trial not in void:
                first = trial not in tally.done
                tally.done[trial] = body["seq"]
                complete, value = type == "trial.completed", of.ends[trial][1]
                if first or complete:
                    tally.result(of.sign * value if complete and value is not None else None)
        yield tally


def replay(events: Sequence[Body], of: Known, limits: Limits, rule: str | None = None,
           order: str = "recorded", seed: int = 0) -> Body:
    """What `limits` and `rule` (by default the study's own) would have made of the recorded events of a study."""
    rule = rule or of.rule
    whole = Tally.begun(of, limits)
    for _ in _walk(events, of, whole):
        pass
    actual = _winner(of, None, of.rule)
    answer: Body = {
        "study": of.study, "order": order, "rule": rule,
        "limits": {name: getattr(limits, name) for name in NUMBERS if getattr(limits, name) is not None}
        | {name: getattr(limits, name) for name in ("min_delta", "converged") if getattr(limits, name)},
        "actual": {**whole.words(), "closed_by": of.closed_by, "winner": actual},
        "notes": [CAVEAT, *([CAVEAT_ADAPTIVE] if of.problem.method == "bayes" and order != "recorded" else [])]}
    if order == "shuffled":
        answer["shuffled"] = _shuffled(events, of, limits, whole, seed)
        return answer
    model = whatif_stop.Model.of(Stop(improvement=limits.improvement, regret=limits.regret, converged=limits.converged),
                                 of.problem, events, corrected=bool(of.void or of.again)) if limits.by_model else None
    if order == "recorded":
        stop, fired = _stop(events, of, limits, model=model)
    else:
        stop, fired = _stop(_one_by_one(events), of, limits, True)
    if fired is None:
        kept = None
        if limits:
            answer["notes"].append("No rule fires within the record; what more trials would have brought, nobody "
                                   "measured.")
    else:
        kept = stop.handed_out | stop.void
    end = Tally.begun(of, limits)
    for _ in _walk(events, of, end, kept):
        pass
    pending = sorted(stop.handed_out - set(stop.done))
    then = _winner(of, kept, rule)
    unseen = [entry for entry in of.entries if kept is not None and entry.trial not in kept | of.imported]
    answer["stop"] = {"rule": fired, **stop.words(), "pending": pending[:LISTED_MAX], "pending_count": len(pending)}
    if model is not None:
        answer["stop"]["numbers"] = model.numbers
        answer["notes"].append(f"The model was asked again at {model.asked} results; a daemon asks when it is to "
                               "propose the next point, which may be a result or two later.")
    if order != "recorded":
        answer["stop"]["elapsed_s"] = None
    answer["end"] = end.words()
    if order != "recorded":
        answer["end"]["elapsed_s"] = None
    answer["winner"] = then
    answer["lost"] = {
        "value": _difference(of, then, actual),
        "trials": len(unseen),
        "better": sum(then["trial"] is None or of.sign * entry.value < of.sign * then["value"] for entry in unseen)}
    answer["saved"] = {
        "trials": len(whole.handed_out) - len(end.handed_out), "cost": whole.cost - end.cost,
        "seconds": round(whole.seconds - end.seconds, 3), "untimed": whole.untimed - end.untimed,
        "elapsed_s": round(whole.elapsed_s - end.elapsed_s, 3) if order == "recorded" else None}
    return answer


def _stop(events: Sequence[Body], of: Known, limits: Limits, at_results: bool = False,
          model: whatif_stop.Model | None = None) -> tuple[Tally, str | None]:
    """Where the first rule fires: the tally there, and the rule; at the end of the record, None. `at_results`:
    nothing is looked at while a trial runs, since there is one at a time; one that never ended runs until its last
    event."""
    tally = Tally.begun(of, limits)
    last = {body["trial"]: body["seq"] for body in events} if at_results else {}
    nexts = whatif_stop.following(body["seq"] for body in events if body["type"] in _OUTCOMES)
    for _ in _walk(events, of, tally):
        if at_results and tally.trial not in tally.done and tally.seq != last[tally.trial]:
            continue
        fired = tally.fired(limits, of.sign)
        if fired is None and model is not None and tally.done.get(tally.trial) == tally.seq:
            fired = model.fired(tally.done.keys() | of.imported, nexts[tally.seq])
        if fired is not None:
            return tally, fired
    return tally, None


def _imported_best(of: Known) -> float | None:
    return min((of.sign * entry.value for entry in of.entries if entry.trial in of.imported), default=None)


def _one_by_one(events: Sequence[Body]) -> list[Body]:
    """The events as one worker would have caused them, trial after trial."""
    return sorted((body for body in events if body.get("trial") is not None),
                  key=lambda body: (body["trial"], body["seq"]))


def _winner(of: Known, kept: set[int] | None, rule: str) -> Body:
    if kept is None:
        return winner.choose(of.entries, of.problem, rule, of.terms)
    there = kept | of.imported
    history = tuple(seen for seen in of.problem.history if seen.trial in there)
    # A recorded fit may have seen what this replay leaves out.
    fit = of.problem.fit if len(history) == len(of.problem.history) else None
    problem = replace(of.problem, history=history, fit=fit)
    return winner.choose(tuple(entry.among(there) for entry in of.entries if entry.trial in there), problem, rule,
                         of.terms)


def _difference(of: Known, then: Body, actual: Body) -> float | None:
    """How much worse the winner is than the actual one, in the metric; 0 when it is the same."""
    if then["trial"] is None or actual["trial"] is None:
        return None
    return float(of.sign * (then["value"] - actual["value"])) + 0.0


def _shuffled(events: Sequence[Body], of: Known, limits: Limits, whole: Tally, seed: int) -> Body:
    """The same results in many other orders, one by one: how much of it was the luck of the order."""
    spent: dict[int, float] = {}
    for body in events:
        if body["type"] in _TOLD:
            spent[body["trial"]] = spent.get(body["trial"], 0.0) + float(body["data"].get("cost") or 0.0)
    results: list[tuple[int, float | None, float]] = []
    for number in (*whole.done, *sorted(whole.void)):
        state, value = of.ends[number]
        results.append((number, of.sign * value if state == "complete" and value is not None else None,
                        spent.get(number, 0.0)))
    limits = replace(limits, wall=None)
    draw = random.Random(seed)  # noqa: S311  # orders of results, no secrets
    stops, values = [], []
    for _ in range(SHUFFLES):
        tally = Tally.begun(of, limits)
        for place in range(len(results)):
            other = draw.randrange(place, len(results))      # a shuffle, as far as it is looked at
            results[place], results[other] = results[other], results[place]
            number, value, cost = results[place]
            tally.cost += cost
            if number not in whole.void:
                tally.handed_out.add(number)
                tally.result(value)
            if tally.fired(limits, of.sign) is not None:
                break
        stops.append(float(len(tally.handed_out)))
        if tally.best is not None:
            values.append(of.sign * tally.best)
    best = min((of.sign * entry.value for entry in of.entries), default=0.0)
    return {"orders": SHUFFLES, "seed": seed, "results": _spread(stops), "best": _spread(values),
            "found_the_winner": sum(of.sign * value <= best for value in values) / SHUFFLES}


def _spread(values: list[float]) -> Body | None:
    if not values:
        return None
    ordered = sorted(values)
    at = [ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9)]
    return {"p10": at[0], "p50": at[1], "p90": at[2]}


# ---------------------------------------------------------------- questions


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, as a daemon's verb and the command line ask it."""

    limits: Limits = Limits()
    rule: str | None = None
    order: str = "recorded"
    seed: int = 0
    prune: Prune | None = None
    method: Method | None = None
    count: int = 1

    @property
    def needs_events(self) -> bool:
        """Next points need the state alone."""
        return self.method is None

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> "Question":
        """Out of a request's arguments. Raises ValueError in words for the sender."""
        limits = Limits(**{name: _number(args, name, whole=name in ("trials", "no_improvement", "patience"))
                           for name in NUMBERS},
                        min_delta=float(_number(args, "min_delta", whole=False) or 0.0),
                        converged=args.get("converged") is True)
        if limits.min_delta and limits.patience is None:
            raise ValueError("min_delta says what better means for patience: give patience as well")
        rule, order, method = args.get("rule"), args.get("order", "recorded"), args.get("method")
        for name, value, choices in (("rule", rule, (None, *winner.RULES)), ("order", order, ORDERS),
                                     ("method", method, (None, *get_args(Method)))):
            if value not in choices:
                raise ValueError(f"{name} is one of {', '.join(each for each in choices if each)}")
        if order != "recorded" and limits.by_model:
            raise ValueError("improvement, regret and converged need order recorded: they ask what a model knew then")
        if order != "recorded" and limits.wall is not None:
            raise ValueError("wall needs order recorded: results that come in another order have no times")
        if order == "shuffled" and not limits:
            raise ValueError("order shuffled needs a limit: trials, cost, no_improvement, patience or target")
        count = _number(args, "next", whole=True)
        if count is not None and count > NEXT_MAX:
            raise ValueError(f"next is at most {NEXT_MAX}")
        return cls(limits, rule, order, int(_number(args, "seed", whole=True, least=0) or 0),
                   whatif_prune.asked(args), method, int(count or 1))


def _number(args: Mapping[str, Any], name: str, *, whole: bool, least: int = 1) -> Any:
    value = args.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or (
            value < least if whole else value <= 0 and name != "target"):
        where = f" from {least}" if whole else "" if name == "target" else " above 0"
        raise ValueError(f"{name} is a number{where}")
    return value


def answer(question: Question, events: Sequence[Body], of: Known, measured: Sequence[winner.Entry]) -> Body:
    """The answer to a question, ready for JSON."""
    if question.method is not None:
        return next_points(of, question.method, question.count, measured)
    if question.prune is not None:
        return prune(events, of, question.prune)
    return replay(events, of, question.limits, question.rule, question.order, question.seed)


def bodies_of(rows: Iterable[Row], study: str) -> list[Body]:
    """The envelopes of a study's events."""
    return [orjson.loads(row.body) for row in rows if row.study == study]


# ---------------------------------------------------------------- pruning


def prune(events: Iterable[Body], of: Known, rule: Prune) -> Body:
    """A pruning rule on recorded reports, as if it had judged each as it came; see whatif_prune.py."""
    found = whatif_prune.judged(events, rule, of.spec, of.void | of.again)
    return _pruned(of, found)


def _pruned(of: Known, found: whatif_prune.Judged) -> Body:
    cut, per = found.cut, found.per
    actual = _winner(of, None, of.rule)
    left = {entry.trial for entry in of.entries if entry.trial not in cut}
    then = _winner(of, left, of.rule)
    seconds = {entry.trial: entry.seconds for entry in of.entries}
    estimate = sum((seconds.get(trial) or 0.0) * (1 - per[trial][0] / per[trial][1]) for trial in cut)
    pruned = [{"trial": trial, "step": step, "reports": per[trial][0], "of": per[trial][1],
               "state": of.ends[trial][0], "value": of.ends[trial][1]} for trial, step in sorted(cut.items())]
    notes = [CAVEAT, CAVEAT_ADAPTIVE] if of.problem.method == "bayes" else [CAVEAT]
    notes += found.notes
    if not found.reports:
        notes.append("This study has no reports, so there is nothing to prune by.")
    return {"study": of.study, "prune": found.rule, "reports": found.reports, "reports_saved": found.saved,
            "reporting_trials": len(per), "pruned_count": len(pruned), "pruned": pruned[:LISTED_MAX],
            "seconds_saved_estimate": round(estimate, 3), "winner_pruned": actual["trial"] in cut,
            "actual": {"winner": actual}, "winner": then, "lost": {"value": _difference(of, then, actual)},
            "same_winner": actual["trial"] == then["trial"], "notes": notes}


# ---------------------------------------------------------------- another sampler's next points


def next_points(of: Known, method: Method, count: int, measured: Sequence[winner.Entry] = ()) -> Body:
    """What another method would propose at this moment. A point has no result, unless the very same one is among
    the trials that were `measured`, then or later."""
    fit = of.problem.fit if method == of.problem.method else None
    suggestion = suggest(replace(of.problem, method=method, fit=fit), count)
    points = [{"params": dict(proposal.params), "sampler": proposal.sampler, "fallback": proposal.fallback,
               "expected": proposal.mean, "sd": proposal.sd, "measured": _measured(proposal.params, measured)}
              for proposal in suggestion.proposals]
    return {"study": of.study, "method": method, "trials_known": len(of.problem.history), "next": points,
            "exhausted": suggestion.exhausted,
            "notes": ["Where no trial is named, the point was never measured: a model may say what it expects there, "
                      "and nobody knows what it would have been."]}


def _measured(params: Mapping[str, Any], entries: Sequence[winner.Entry]) -> Body | None:
    same = next((entry for entry in entries if dict(entry.params) == dict(params)), None)
    return None if same is None else {"trial": same.trial, "value": same.value}
