"""What trials reported, sorted by step, so that a rule finds in microseconds whom it compares with.

A board holds nothing of its own: it is what the reports of the study's trials say, and is made anew from them
whenever it is missing (after a start, or when the study's declaration changed). `note` brings it up to date with
one trial, and `state.apply` calls it for each that moves. So a life and its replay find the same board.

Values are signed: lower is better, whatever the direction. A value that is no number counts as worse than any.
"""

import math
from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial


class Board:
    """The reports of a study by step."""

    def __init__(self, study: "Study") -> None:
        prune = study.spec.prune
        goal = next((goal for goal in study.goals if prune is not None and goal.name == prune.metric), study.goals[0])
        self.metric = goal.name
        self.sign = 1.0 if goal.direction == "minimize" else -1.0
        self.steps: dict[int, list[float]] = {}
        """Step -> what complete trials reported there, best first."""
        self._inside: set[int] = set()
        for trial in study.trials:
            self.note(trial)

    def note(self, trial: "Trial") -> None:
        """Bring the board up to date with a trial that reported or moved. One that measures a leader again is nobody's
        yardstick: its point is there already."""
        if trial.of is not None:
            return
        belongs = trial.status == "complete"
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

    def curve(self, trial: "Trial") -> list[tuple[int, float]]:
        """(step, signed value) of a trial's reports, in the order in which they came."""
        out = []
        for step, said in (trial.reports or {}).items():
            values = said[0] if isinstance(said, tuple) else said
            if self.metric in values:
                value = values[self.metric]
                out.append((step, math.inf if value is None else self.sign * value))
        return out


def board_of(study: "Study") -> Board:
    """The study's board, made if it is not there."""
    board = study.board
    if board is None:
        board = study.board = Board(study)
    return board
