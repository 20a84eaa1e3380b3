"""What trials reported, sorted by step, so that a rule finds in microseconds whom it compares with.

A complete trial that breaks a limit of its study is nobody's yardstick: what is better only because it may break one
would stop those that keep them.

A board holds nothing of its own: it is what the reports of the study's trials say, and is made anew from them
whenever it is missing (after a start, or when the study's declaration changed). `note` brings it up to date with
one trial, and the fold calls it for each that moves. So a life and its replay find the same board.

Values are signed: lower is better, whatever the direction. A value that is no number counts as worse than any.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from bayesd.study import limits
from bayesd.study.curves import Curves
from bayesd.study.dominance import Clouds, Front
from bayesd_schemas.study import Fidelity

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial


class Board:
    """The reports of a study by step."""

    def __init__(self, study: "Study") -> None:
        prune = study.spec.prune
        goal = next((goal for goal in study.goals if prune is not None and goal.name == prune.looks_at), study.goals[0])
        self.metric = goal.name
        self.sign = 1.0 if goal.direction == "minimize" else -1.0
        self.steps: dict[int, list[float]] = {}
        """Step -> what complete trials reported there, best first."""
        self.rungs: dict[tuple[int, int], list[float]] = {}
        """(Bracket, or 0 where all share their rungs, fidelity) -> what trials had when they reached it, best first."""
        self._shared = prune is not None and prune.shared
        self._rule = prune.rule if prune is not None else ""
        dominance = prune is not None and prune.by_dominance
        self.curves = [Curves(study, k) for k, each in enumerate(study.goals) if dominance or each is goal] \
            if self._rule == "curve" else []
        """What the rule `curve` looks at."""
        self.front = Front(study) if dominance and self.curves else None
        """By dominance, what it is held against."""
        self._fidelity = study.spec.fidelity if self._rule in ("asha", "hyperband") else None
        self.clouds = Clouds(study, None if self._fidelity is None else self.place_of) \
            if dominance and not self.curves else None
        """By dominance, what the other rules look at."""
        self._inside: set[int] = set()
        self._seen: dict[int, Seen] = {}
        self._entered: dict[int, list[tuple[int, float]]] = {}
        for trial in study.trials:
            self.note(trial)

    def note(self, trial: "Trial") -> None:
        """Bring the board up to date with a trial that reported or moved. One that measures a leader again is nobody's
        yardstick: its point is there already."""
        if trial.of is not None:
            return
        if self.curves:
            for curves in self.curves:
                curves.note(trial)
            if self.front is not None:
                self.front.note(trial)
            return
        if self.clouds is not None:
            self.clouds.note(trial)
            return
        if self._fidelity is not None:
            self._note_rungs(trial)
            return
        belongs = trial.status == "complete" and limits.keeps(trial)
        if belongs != (trial.number in self._inside):
            for step, value in self.curve(trial):
                known = self.steps.setdefault(step, [])
                if belongs:
                    insort(known, value)
                else:
                    del known[bisect_left(known, value)]
            if belongs:
                self._inside.add(trial.number)
            else:
                self._inside.discard(trial.number)

    def _note_rungs(self, trial: "Trial") -> None:
        before = self._entered.pop(trial.number, [])
        is_out = trial.status == "voided" or (trial.status == "complete" and not limits.keeps(trial))
        now = [] if is_out else self.entries(trial)
        if now:
            self._entered[trial.number] = now
        if before != now:
            bracket, levels = self.place_of(trial)
            for level, (_, value) in zip(levels, before, strict=False):
                known = self.rungs[bracket, level]
                del known[bisect_left(known, value)]
            for level, (_, value) in zip(levels, now, strict=False):
                insort(self.rungs.setdefault((bracket, level), []), value)

    def place_of(self, trial: "Trial") -> tuple[int, tuple[int, ...]]:
        """The bracket, or 0 where all share their rungs, under which a trial is held against others; its rungs."""
        bracket, levels = self.levels_of(trial)
        return 0 if self._shared else bracket, levels

    def levels_of(self, trial: "Trial") -> tuple[int, tuple[int, ...]]:
        """The bracket of a trial and its rungs."""
        if self._fidelity is None:
            return 0, ()
        bracket = bracket_of(self._fidelity, trial.number) if self._rule == "hyperband" else 0
        return bracket, self._fidelity.levels[bracket:]

    def entries(self, trial: "Trial") -> list[tuple[int, float]]:
        """(step, value) with which a trial entered its rungs, the lowest first: of each, the report at or past it that
        came first. The list ends with the highest rung that it has reached."""
        return list(self.seen(trial).entered)

    def seen(self, trial: "Trial") -> "Seen":
        """What the reports of a trial come to. Of one that is running only those are looked at that are new since the
        last time: some report a hundred thousand steps."""
        reports = trial.reports or {}
        known = self._seen.get(trial.number)
        if trial.status != "running" or known is None or known.fence != trial.fence or known.count > len(reports):
            known = Seen(trial.fence)
            if trial.status == "running":
                self._seen[trial.number] = known
            else:
                self._seen.pop(trial.number, None)
        new = list(islice(reversed(reports.items()), len(reports) - known.count))
        known.take(self._curve(reversed(new)), self.levels_of(trial)[1])
        known.count, known.furthest = len(reports), max((known.furthest, *(step for step, _ in new)))
        return known

    def curve(self, trial: "Trial") -> list[tuple[int, float]]:
        """(step, signed value) of a trial's reports, in the order in which they came."""
        return list(self._curve((trial.reports or {}).items()))

    def _curve(self, reports: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, float]]:
        for step, said in reports:
            values = said[0] if isinstance(said, tuple) else said
            if self.metric in values:
                value = values[self.metric]
                yield step, math.inf if value is None else self.sign * value


@dataclass(slots=True)
class Seen:
    """What the first `count` reports of a lease come to."""

    fence: int
    count: int = 0
    furthest: int = -1
    """The furthest step."""
    best: float | None = None
    """The best signed value."""
    entered: list[tuple[int, float]] = field(default_factory=list)
    """(step, value) with which it entered its rungs."""

    def take(self, curve: Iterable[tuple[int, float]], levels: Sequence[int]) -> None:
        """More reports, as they came."""
        for step, value in curve:
            self.best = value if self.best is None else min(self.best, value)
            while len(self.entered) < len(levels) and step >= levels[len(self.entered)]:
                self.entered.append((step, value))


@lru_cache(maxsize=64)
def _cycle(fidelity: Fidelity) -> tuple[int, ...]:
    """The brackets of successive trials, over and over. With s rungs behind its first one a bracket gets
    ceil((s_max + 1) / (s + 1) * reduction^s) of them (Li et al., 2018, algorithm 1), mixed evenly (D'Hondt)."""
    most = len(fidelity.levels) - 1
    counts = [-(-(most + 1) * fidelity.reduction ** (most - bracket) // (most - bracket + 1))
              for bracket in range(most + 1)]
    given = [0] * len(counts)
    out = []
    for _ in range(min(sum(counts), 10_000)):
        bracket = min(range(len(counts)), key=lambda each: ((given[each] + 1) / counts[each], each))
        given[bracket] += 1
        out.append(bracket)
    return tuple(out)


def shares_of(fidelity: Fidelity) -> tuple[float, ...]:
    """Of each bracket of Hyperband the share of all trials."""
    cycle = _cycle(fidelity)
    return tuple(cycle.count(bracket) / len(cycle) for bracket in range(len(fidelity.levels)))


def bracket_of(fidelity: Fidelity, number: int) -> int:
    """The bracket of a trial under Hyperband: a function of its number."""
    cycle = _cycle(fidelity)
    return cycle[(number - 1) % len(cycle)]


def board_of(study: "Study") -> Board:
    """The study's board, made if it is not there."""
    board = study.board
    if board is None:
        board = study.board = Board(study)
    return board
