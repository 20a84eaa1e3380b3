"""Questions about what mattered, and their answers as plain values: the same for a daemon and for a file.

`Known.of` takes what is needed off a study at once; the answers are then made beside a study that goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesd.importance import credit, effect, indices, warnings
from bayesd.importance.belief import Belief, NothingToSay
from bayesd.importance.warnings import Facts
from bayesd.optimize.encode import PINNED
from bayesd.optimize.streams import Floats
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.problem import Problem
from bayesd.study.state import Study
from bayesd_schemas.space import Params

BEST = 0.1              # `among best`: the part of the space that it looks at
AMONG = ("all", "best")
SUCCESS = "success"
PARAMS_MAX = 60         # that an answer lists; it must fit into a message

Answer = dict[str, Any]


class BadQuestion(ValueError):
    """The question cannot be asked of this study; the text says what is right. `key` is the argument."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True, slots=True)
class Known:
    """A study at a moment, frozen."""

    study: str
    metrics: tuple[str, ...]
    problem: Problem
    facts: Facts
    points: dict[int, Params]
    """Trial -> its point."""
    enqueued: Params | None
    """The first point, if somebody enqueued it: what was known before the search."""

    @classmethod
    def of(cls, study: Study, problem: Problem) -> "Known":
        points = {trial.number: trial.params for trial in study.trials}
        given = study.spec.enqueue
        return cls(study.name, tuple(goal.name for goal in study.goals), problem, Facts.of(study), points,
                   points.get(1) if given and study.origin is None else None)


def _flag(args: Mapping[str, Any], key: str) -> bool:
    value = args.get(key, False)
    if not isinstance(value, bool):
        raise BadQuestion(key, f"{key} is true or false")
    return value


def _belief(known: Known, args: Mapping[str, Any]) -> tuple[str, Belief]:
    """What is asked about: a metric by its name, the first by default, or success."""
    of = args.get("of", known.metrics[0])
    if of not in (*known.metrics, SUCCESS):
        raise BadQuestion("of", f"of is one of {', '.join((*known.metrics, SUCCESS))}")
    if of in known.metrics:
        return of, Belief.of(known.problem, known.metrics.index(of))
    return of, Belief.of_success(known.problem)


def importance(known: Known, args: Mapping[str, Any]) -> Answer:
    """Shares of variance, and on demand pairs, Shapley values and an ablation path.

    Raises BadQuestion, NothingToSay.
    """
    among = args.get("among", "all")
    if among not in AMONG:
        raise BadQuestion("among", f"among is {' or '.join(AMONG)}")
    pairs, shapley, ablation = (_flag(args, key) for key in ("pairs", "shapley", "ablation"))
    origin = args.get("from")
    if origin is not None and (isinstance(origin, bool) or not isinstance(origin, int) or origin not in known.points):
        raise BadQuestion("from", f"from is the number of a trial of {known.study}, 1 to {len(known.points)}")
    with one_blas_thread():
        of, belief = _belief(known, args)
        found = indices.of(belief, BEST if among == "best" else None, pairs)
        notes = list(_notes(known, found, among))
        out: Answer = {"study": known.study, "of": of, "among": among,
                       "observations": len(known.problem.history), **found}
        out["params"] = out["params"][:PARAMS_MAX]
        best = _winner(known, belief, of)
        if best is not None:
            number, end = best
            if out["droppable"] is not None:
                out["droppable"]["loss"] = indices.loss(belief, out["droppable"]["params"], end)
                out["droppable"]["fixed_at"] = {name: known.points[number].get(name)
                                                for name in out["droppable"]["params"]}
            if shapley or ablation:
                words, start = _start(known, belief, origin)
                values = belief.values(np.vstack([start, end]))
                out["winner"] = {"trial": number, "value": credit.spread(values[1])}
                out["start"] = {"point": words, "params": belief.cube.decode(start)[0],
                                "value": credit.spread(values[0])}
            if shapley:
                out["shapley"] = credit.shapley(belief, start, end)
            if ablation:
                out["ablation"] = credit.ablation(belief, start, end)
    return {**out, "notes": notes}


def _notes(known: Known, found: Answer, among: str) -> list[str]:
    p, n = len(known.problem.space), sum(seen.values is not None for seen in known.problem.history)
    notes = ["Shares are of the variance that the model believes in over the whole space, noise left out; intervals "
             "hold nine of ten responses drawn from the model, its hyperparameters drawn as well."]
    if found["flat"]:
        notes.append("The model sees no differences at all: no parameter has a share.")
    if n < warnings.FEW_PER_PARAMETER * p:
        notes.append(f"{n} results for {p} parameters are few: the order may still change.")
    if known.problem.method == "bayes":
        notes.append("A search crowds its trials where results are good; of the rest of the space, which counts as "
                     "much in a share, the model knows less than it believes.")
    if among == "best":
        notes.append(f"Differences between points outside the best {BEST:.0%} are left out.")
    if known.problem.constraints:
        notes.append("Points that constraints forbid are averaged over too; there the model guesses.")
    if len(found["params"]) > PARAMS_MAX:
        notes.append(f"Of {len(found['params'])} parameters the first {PARAMS_MAX} are listed.")
    return notes


def _winner(known: Known, belief: Belief, of: str) -> tuple[int, Floats] | None:
    """The winner, and of another metric than the first the trial that did best in it."""
    if of in known.metrics[1:]:
        at = known.metrics.index(of)
        told = [seen for seen in known.problem.history if seen.values is not None]
        number = min(told, key=lambda seen: (belief.sign * seen.values[at], seen.trial)).trial  # type: ignore[index]
    elif known.facts.winner is not None:
        number = known.facts.winner
    else:
        return None
    return number, belief.encode([known.points[number]])


def _start(known: Known, belief: Belief, origin: int | None) -> tuple[str, Floats]:
    """Where a path begins: the trial that was asked for, else the first enqueued point, else the centre."""
    if origin is not None:
        return f"trial {origin}", belief.encode([known.points[origin]])
    if known.enqueued is not None:
        return "the point enqueued first", belief.encode([known.enqueued])
    return "the centre of the space", belief.cube.snap(np.full((1, belief.cube.p), PINNED), 30)


def effects(known: Known, args: Mapping[str, Any]) -> Answer:
    """Partial dependence on one or two parameters. Raises BadQuestion, NothingToSay."""
    names = [args.get("param"), args.get("other")] if args.get("other") is not None else [args.get("param")]
    for key, name in zip(("param", "other"), names, strict=False):
        if not isinstance(name, str) or name not in known.problem.space:
            raise BadQuestion(key, f"{key} is a parameter of {known.study}: {', '.join(known.problem.space.ordered())}")
    if len(set(names)) < len(names):
        raise BadQuestion("other", "the two parameters are the same")
    with one_blas_thread():
        of, belief = _belief(known, args)
        found = effect.one(belief, str(names[0])) if len(names) == 1 else effect.two(belief, *map(str, names))
    best = _winner(known, belief, of)
    at = None if best is None else {"trial": best[0], "params": {
        str(name): known.points[best[0]].get(str(name)) for name in names}}
    return {"study": known.study, "of": of, **found, "winner": at}


def warned(known: Known, args: Mapping[str, Any]) -> Answer:
    """All warnings; `args` hold nothing. It always has an answer: without a model nothing is said of noise."""
    with one_blas_thread():
        try:
            belief = Belief.of(known.problem)
        except (NothingToSay, ArithmeticError):
            belief = None
        found = warnings.of(known.facts, belief)
    return {"study": known.study, "trials": len(known.facts.trials), "warnings": [each.row for each in found]}
