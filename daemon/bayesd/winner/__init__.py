"""Which configuration to take. The lowest score alone is often the luckiest, not the best.

Every rule is a function of the recorded outcomes, and says in words why it chose what it chose, what the model expects
of it, how probably it is the best of the points tried, and what it is expected to cost if it is not. A rule
is a module; `case` is what all of them choose from.
"""

from collections.abc import Callable
from typing import Any

from bayesd.study import limits
from bayesd.study.pooled import mean_of
from bayesd.study.problem import Problem
from bayesd.study.state import Study
from bayesd.verdict import CONFIRMED, DOUBTFUL
from bayesd.winner import mean, one_se, pareto, robust
from bayesd.winner.candidates import Entry, candidates, eligible, entries
from bayesd.winner.case import Case, Pick, Terms

__all__ = ["CONFIRMED", "DOUBTFUL", "RULES", "Entry", "Terms", "all_of", "candidates", "choose", "eligible", "entries",
           "later", "of"]


def _best(case: Case) -> Pick:
    rung = case.best.fidelity
    return Pick(case.best, f"the {case.low} observed value of " + (
        case.extent if rung is None else f"{len(case.complete)} trials that told at rung {rung}; none is complete"))


_PICK: dict[str, Callable[[Case], Pick]] = {
    "best": _best, "mean": mean.pick, "one-se": one_se.pick, "robust": robust.pick, "pareto": pareto.pick}
RULES = tuple(_PICK)


def of(study: Study, problem: Problem, rule: str | None) -> dict[str, Any]:
    """The winner of a study by a rule; None: of its last confirmation if there was one, else by the study's own rule.
    `others` is what the other rules would take."""
    return limits.Reading.of(study).beside(later(study, problem, rule)())


def later(study: Study, problem: Problem, rule: str | None) -> Callable[[], dict[str, Any]]:
    """The same, to be asked for in a thread: what it needs of the study, which goes on meanwhile, is copied now."""
    complete, terms, confirmed, name = entries(study), Terms.of(study.spec), _confirmed(study), rule or default(study)

    def answer() -> dict[str, Any]:
        chosen = _all(complete, problem, terms, confirmed)
        won = chosen.pop(name, confirmed)
        others = {other: _short(each) for other, each in chosen.items()}
        return {**won, "others": others} if won["trial"] is not None else won

    return answer


def default(study: Study) -> str:
    """The rule when nobody names one."""
    if study.winner is not None and study.winner["confirmed"]:
        return CONFIRMED
    return Terms.of(study.spec).rule(len(entries(study)))


def all_of(study: Study, problem: Problem) -> dict[str, dict[str, Any]]:
    """The winner by each rule, and the confirmed one where there is one; the model is made once."""
    return _all(entries(study), problem, Terms.of(study.spec), _confirmed(study))


def _all(complete: tuple[Entry, ...], problem: Problem, terms: Terms,
         confirmed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if not complete:
        return {rule: _nothing(rule) for rule in RULES}
    case = Case(candidates(complete), problem, terms)
    chosen = {}
    for rule in RULES:
        pick = _PICK[rule](case)
        chosen[rule] = {**_answer(pick, rule), **_believed(case, pick.entry.trial), **pick.more}
    if confirmed["trial"] is not None:
        chosen[CONFIRMED] = {**confirmed, **_believed(case, confirmed["trial"])}
    return chosen


def choose(complete: tuple[Entry, ...], problem: Problem, rule: str, terms: Terms | None = None) -> dict[str, Any]:
    """The winner by a rule, with its reason alone; `trial` is None when nothing is complete."""
    if not complete:
        return _nothing(rule)
    return _answer(_PICK[rule](Case(candidates(complete), problem, terms or Terms())), rule)


def _nothing(rule: str) -> dict[str, Any]:
    return {"rule": rule, "trial": None, "reason": "no trial is complete yet"}


def _answer(pick: Pick, rule: str) -> dict[str, Any]:
    entry = pick.entry
    return {"rule": rule, "trial": entry.trial, "value": entry.value, "se": entry.se, "n": entry.n,
            "evaluations": list(entry.evaluations), "params": dict(entry.params), "reason": pick.reason}


def _believed(case: Case, trial: int) -> dict[str, Any]:
    belief = case.belief(trial)
    if belief is None:
        return {"mean": None, "sd": None, "probability": None, "expected_loss": None}
    return {"mean": belief.mean, "sd": belief.sd, "probability": round(belief.probability, 4),
            "expected_loss": belief.loss}


def _short(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer.get(name)
            for name in ("trial", "value", "se", "n", "mean", "sd", "probability", "expected_loss", "reason")}


def _confirmed(study: Study) -> dict[str, Any]:
    """The winner of the last confirmation, in words; `trial` is None when there was none."""
    said = study.winner
    if said is None or not said["confirmed"]:
        return {"rule": CONFIRMED, "trial": None, "reason": "nothing was measured again yet: "
                f"bayesd study confirm {study.name}, or [confirm] in the study file"}
    chosen = next(each for each in said["leaders"] if each["trial"] == said["trial"])
    trial = study.trials[said["trial"] - 1]
    times = "once" if chosen["measured"] == 1 else f"{chosen['measured']} times, at least once"
    where = "on another worker" if chosen["elsewhere"] else "on the same worker, since no other was there"
    reason = (f"of {len(said['leaders'])} leaders that were measured again it did best: {chosen['mean']:.6g}, measured "
              f"{times} {where}; it was {chosen['value']:.6g} when it was chosen")
    repeats = [each for each in (study.trials[number - 1] for number in chosen["repeats"])
               if each.status == "complete" and each.values is not None]
    _, se = mean_of([each.values[0] for each in repeats if each.values is not None], [each.se for each in repeats])
    return {"rule": CONFIRMED, "trial": trial.number, "value": chosen["mean"], "se": se, "n": len(repeats),
            "evaluations": [each.number for each in repeats], "params": dict(trial.params), "reason": reason,
            "leaders": said["leaders"]}
