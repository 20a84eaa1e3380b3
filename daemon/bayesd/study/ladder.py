"""Rungs that trials climb with pauses: who stands where, and who may go on.

Asynchronous successive halving in its own form (Li et al., "A system for massively parallel hyperparameter tuning",
2020, algorithm 2, `get_job`): every lease trains up to the next rung of the fidelity, min * reduction^k, and what is
told there pauses the trial. Whenever somebody asks for work, the rungs are looked at from the highest: one that is
among the best 1/reduction of all that reached its rung, rounded down, and has not gone on yet goes on to the next;
only when there is none does a new trial begin at the lowest rung. So nobody waits for a rung to fill, and an early
mistake is mended: who was passed over is looked at again with every newcomer. Rungs before `warmup`, and with fewer
trials than `startup`, are as in the other form: the first judge nobody, the second let nobody on yet.

Hyperband (Li et al., 2018) as the paper of ASHA has it: a trial of bracket b begins at rung b. With `shared` the
brackets have the rungs from there on in common.

What broke a limit of the study when it was told ranks behind all that kept them (the feasibility rule of Deb, "An
efficient constraint handling method for genetic algorithms", 2000): else those that may not lead go on first.

By dominance the places in a rung are those of dominance.py, as in Schmucker et al. ("Multi-objective asynchronous
successive halving", 2021).

With a budget of fidelity no trial begins that would leave too little to bring the leader of the highest rung to the
end; then the leaders alone go on, whatever their share of a rung, as long as the rest of the budget takes them there.

Like the board (board.py) a ladder holds nothing of its own: it is made anew from the trials whenever it is missing.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from bayesd.study import limits
from bayesd.study.board import bracket_of
from bayesd.study.dominance import Cloud

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial

Place = tuple[int, int]
"""A bracket, 0 where all share their rungs, and the fidelity of a rung."""
Height = tuple[bool, float]
"""Whether a limit was broken, and the value, turned so that lower is better."""


class Rung(NamedTuple):
    """What a trial told at a rung."""

    values: tuple[float, ...]
    """Of the objectives, in their order."""
    seq: int
    se: float | None = None
    measured: limits.Measured = ()
    """Of each limit of the study."""


class Promotion(NamedTuple):
    """Why a trial may go on, in numbers."""

    trial: int
    rung: int
    rank: int
    """Among those that reached the rung, from 1."""
    compared: int
    kept: int


class Ladder:
    """The rungs of a study, each with the trials that reached it, best first; of equals the earlier trial."""

    def __init__(self, study: "Study") -> None:
        prune = study.spec.prune
        names = [goal.name for goal in study.goals]
        self._goal = names.index(prune.looks_at) if prune is not None and prune.looks_at is not None else 0
        self._sign = 1.0 if study.goals[self._goal].direction == "minimize" else -1.0
        self._signs = [1.0 if goal.direction == "minimize" else -1.0 for goal in study.goals]
        self._shared = prune is not None and prune.shared
        self.clouds: dict[Place, Cloud] | None = {} if prune is not None and prune.by_dominance else None
        """By dominance, what was told at each rung; the lists that follow are in no order of merit then."""
        self.reached: dict[Place, list[tuple[Height, int]]] = {}
        self.standing: dict[Place, list[tuple[Height, int]]] = {}
        """Of those, the ones that are paused there now."""
        self.trained = 0
        """How much fidelity was told of in all."""
        self._noted: dict[int, tuple[list[tuple[Place, Height]], Place | None]] = {}
        self._far: dict[int, int] = {}
        self._most = study.spec.fidelity.max if study.spec.fidelity is not None else 0
        for trial in study.trials:
            self.note(trial)

    def note(self, trial: "Trial") -> None:
        """Bring it up to date with a trial that moved. One that is void was never there; whatever else becomes of a
        trial, what it told at its rungs stays."""
        if not trial.rungs:
            return
        bracket = 0 if self._shared else levels_of(trial)[0]
        number = trial.number
        before, stood = self._noted.pop(number, ([], None))
        now = [] if trial.status == "voided" else [
            ((bracket, fidelity), self._height(trial.study, rung)) for fidelity, rung in trial.rungs.items()]
        stands = now[-1][0] if now and trial.status == "paused" else None
        if before != now:
            for place, value in before:
                _drop(self.reached[place], (value, number))
            for place, value in now:
                insort(self.reached.setdefault(place, []), (value, number))
            if self.clouds is not None:
                for place in {place for place, _ in before} - {place for place, _ in now}:
                    self.clouds[place].drop(number)
                for place in {place for place, _ in now} - {place for place, _ in before}:
                    told = trial.rungs[place[1]]
                    self.clouds.setdefault(place, Cloud(len(told.values), ranked=True)).add(
                        number, self._vector(trial.study, told))
        if stood is not None:
            _drop(self.standing[stood], (before[-1][1], number))
        if stands is not None:
            insort(self.standing.setdefault(stands, []), (now[-1][1], number))
        if now:
            self._noted[number] = now, stands
        far = 0 if trial.status == "voided" or trial.origin is not None else (
            self._most if trial.status == "complete" else max(trial.rungs))
        self.trained += far - self._far.get(number, 0)
        self._far[number] = far

    def leader(self, place: Place) -> int:
        """The best of those that stand there, one at least."""
        standing = self.standing[place]
        return standing[0][1] if self.clouds is None else self.clouds[place].first([number for _, number in standing])

    def _height(self, study: "Study", rung: Rung) -> Height:
        if self.clouds is not None:
            return False, 0.0
        return bool(limits.broken(study, rung.measured)), self._sign * rung.values[self._goal]

    def _vector(self, study: "Study", rung: Rung) -> tuple[float, ...]:
        """By dominance: whoever keeps the limits is ahead in everything of whoever broke one."""
        if limits.broken(study, rung.measured):
            return (math.inf,) * len(self._signs)
        return tuple(sign * value for sign, value in zip(self._signs, rung.values, strict=True))


def _drop(entries: list[tuple[Height, int]], entry: tuple[Height, int]) -> None:
    del entries[bisect_left(entries, entry)]


def levels_of(trial: "Trial") -> tuple[int, tuple[int, ...]]:
    """The bracket of a trial and its rungs below the full fidelity; none where nothing pauses."""
    spec = trial.study.spec
    if not spec.resumes or spec.fidelity is None or spec.prune is None or trial.of is not None:
        return 0, ()
    bracket = bracket_of(spec.fidelity, trial.number) if spec.prune.rule == "hyperband" else 0
    return bracket, spec.fidelity.levels[bracket:]


def has_brackets(study: "Study") -> bool:
    """Whether trials begin at different rungs."""
    return study.spec.prune is not None and study.spec.prune.rule == "hyperband"


def target_of(trial: "Trial") -> int | None:
    """The rung up to which the next lease of a trial trains; None: to the full fidelity."""
    reached = max(trial.rungs) if trial.rungs else 0
    return next((level for level in levels_of(trial)[1] if level > reached), None)


def ladder_of(study: "Study") -> Ladder:
    """The study's ladder, made if it is not there."""
    ladder = study.ladder
    if ladder is None:
        ladder = study.ladder = Ladder(study)
    return ladder


def trained(study: "Study") -> int:
    """How much fidelity trials were trained as far as it was told, or will have been once those at work have told."""
    most = 0 if study.spec.fidelity is None else study.spec.fidelity.max
    return ladder_of(study).trained + sum(
        (target_of(trial) or most) - max(trial.rungs or (0,))
        for trial in (*study.running.values(), *study.waiting.values()) if trial.of is None and trial.leases)


def may_begin(study: "Study") -> bool:
    """Whether a new trial leaves enough of a budget of fidelity to bring the leader of the highest rung to the end, or
    where nobody is paused the new one."""
    fidelity, most = study.spec.fidelity, study.spec.budget.fidelity
    if fidelity is None or most is None:
        return True
    # One that is proposed and not leased yet is the new one: an audit asks in between.
    number = len(study.trials) + (not study.trials or bool(study.trials[-1].leases))
    bracket = bracket_of(fidelity, number) if has_brackets(study) else 0
    leads = next(_leaders(study), None)
    first = fidelity.levels[bracket]
    return first + fidelity.max - (first if leads is None else leads[0]) <= most - trained(study)


def _leaders(study: "Study") -> Iterator[tuple[int, int]]:
    """(Rung, trial) of the best that is paused at each, the highest rung first."""
    if study.paused:
        standing = ladder_of(study).standing
        for place in sorted(standing, key=lambda place: (-place[1], place[0])):
            if standing[place]:
                yield place[1], ladder_of(study).leader(place)


def _within_budget(study: "Study") -> int | None:
    """Who goes on where fidelity has a budget: who may by its rung, unless that leaves too little to finish the
    leader; once nobody new may begin, the leader of the highest rung that what is left brings to the end."""
    fidelity, most = study.spec.fidelity, study.spec.budget.fidelity
    assert fidelity is not None
    assert most is not None
    left = most - trained(study)
    found, leads = promotion(study), next(_leaders(study), None)
    if found is not None and leads is not None:
        steps = (target_of(study.trials[found.trial - 1]) or fidelity.max) - found.rung
        if steps + (0 if found.trial == leads[1] else fidelity.max - leads[0]) <= left:
            return found.trial
    if may_begin(study):
        return None
    return next((trial for rung, trial in _leaders(study) if fidelity.max - rung <= left), None)


def promotion(study: "Study") -> Promotion | None:
    """The trial that goes on next, or None: of the highest rung that has one, the best."""
    prune, fidelity = study.spec.prune, study.spec.fidelity
    if prune is None or fidelity is None or not study.paused:
        return None
    ladder = ladder_of(study)
    for place in sorted(ladder.standing, key=lambda place: (-place[1], place[0])):
        standing, reached, level = ladder.standing[place], ladder.reached[place], place[1]
        if not standing:
            continue
        number = ladder.leader(place)
        rank = bisect_left(reached, standing[0]) if ladder.clouds is None else ladder.clouds[place].rank(number)[0]
        kept = len(reached) if level < prune.warmup else len(reached) // fidelity.reduction
        if rank < kept and (len(reached) >= prune.needed or level < prune.warmup):
            return Promotion(number, level, rank + 1, len(reached), kept)
    return None


def going_on(study: "Study") -> "Trial | None":
    """The paused trial that is to be leased next, up to the next rung. A stop rule ends that, too: only what is out
    finishes."""
    if study.stopping is not None or study.reopened is not None or study.status == "closed":
        return None
    if study.spec.budget.fidelity is not None:
        number = _within_budget(study)
        return None if number is None else study.trials[number - 1]
    found = promotion(study)
    return None if found is None else study.trials[found.trial - 1]


def due(study: "Study", trial: "Trial") -> "Trial | None":
    """Whose turn it is when `trial` is about to be leased: its own, or that of one which goes before it. One that came
    back goes first, whichever; then who goes on; then a new one."""
    if trial.status == "waiting":
        return trial
    return next(iter(study.waiting.values()), None) or going_on(study) or (
        None if trial.status == "paused" else trial)


def at_rung(trial: "Trial", *, by_rule: bool = False) -> dict[str, Any]:
    """What the event says that ends a trial at the highest rung that it has told: its values are learned already."""
    rungs, study = trial.rungs or {}, trial.study
    rung = max(rungs)
    told = rungs[rung]
    return {"fence": trial.fence, "rung": rung, "learn": False, **({} if told.se is None else {"se": told.se}),
            "values": {goal.name: value for goal, value in zip(study.goals, told.values, strict=True)},
            **({"rule": study.spec.prune.rule} if by_rule and study.spec.prune is not None else {})}


def end_of(trial: "Trial") -> dict[str, Any] | None:
    """The same as an audit finds it, or None where the trial had to go on: a paused one ends when nobody else is at
    work and nobody may go on, or with its study; one that is lost ends where it stood."""
    study = trial.study
    if not trial.rungs:
        return None
    if trial.status == "waiting":
        return {**at_rung(trial), "class": "lost"}
    is_over = study.status == "closed" or study.reopened is not None
    if trial.status != "paused" or (not is_over and (study.running or study.waiting or going_on(study) is not None)):
        return None
    return at_rung(trial, by_rule=True)


def furthest(study: "Study") -> list["Trial"]:
    """The trials that reached the highest rung of all that were reached, best first by the first objective: what is
    known while none is trained to the end. What was told last has to keep every limit."""
    climbed = [trial for trial in study.trials if trial.rungs and trial.status not in ("voided", "fail")
               and limits.keeps(trial)]
    if not climbed:
        return []
    highest = max(max(trial.rungs or ()) for trial in climbed)
    sign = 1.0 if study.goals[0].direction == "minimize" else -1.0
    return sorted((trial for trial in climbed if highest in (trial.rungs or ())),
                  key=lambda trial: (sign * trial.rungs[highest].values[0] if trial.rungs else math.inf, trial.number))
