"""The front of a study with several objectives: the trials that no other one beats, and what they are worth together.

The worth is the hypervolume between the front and a reference. That is the study's where it declares one, else the
worst value of each objective that was measured: then the volume says how a study went on, and is nothing to compare
studies by. Trials that break a limit are no part of it.
"""

from collections.abc import Callable
from typing import Any

from bayesd.optimize import hypervolume
from bayesd.study import limits
from bayesd.study.state import Study

OBJECTIVES_MAX = 4      # of a hypervolume: it takes long with more
FRONT_MAX = {2: 2000, 3: 100, 4: 40}        # points of a front: with more, no volume over time
STEPS_MAX = 100         # of the volume over time, the last ones of even strides


def later(study: Study) -> Callable[[], dict[str, Any]]:
    """The front of a study, to be asked for in a thread: what it needs of the study is taken now."""
    done = sorted((trial for trial in study.trials if trial.status == "complete" and trial.values is not None
                   and trial.of is None and limits.keeps(trial)), key=lambda trial: trial.outcome_seq)
    numbers = [trial.number for trial in done]
    values = [trial.values for trial in done if trial.values is not None]
    directions = [goal.direction for goal in study.goals]
    names = [goal.name for goal in study.goals]
    declared = [goal.reference for goal in study.goals]

    def answer() -> dict[str, Any]:
        places = hypervolume.front(values, directions)
        worst = [(max if direction == "minimize" else min)(column) for direction, column in zip(
            directions, zip(*values, strict=True), strict=True)] if values else []
        reference = [each if each is not None else bound for each, bound in zip(declared, worst, strict=False)]
        out: dict[str, Any] = {
            "trials": [{"trial": numbers[i], "values": dict(zip(names, values[i], strict=True))} for i in places],
            "complete": len(values), "reference": dict(zip(names, reference, strict=False)) or None,
            "declared": [name for name, each in zip(names, declared, strict=True) if each is not None],
            "hypervolume": None, "over_time": None}
        if values and 2 <= len(names) <= OBJECTIVES_MAX and len(places) <= FRONT_MAX[len(names)]:
            volumes = hypervolume.over_time(values, directions, reference)
            steps = [i for i in range(len(volumes)) if i == 0 or volumes[i] != volumes[i - 1]]
            stride = -(-len(steps) // STEPS_MAX)
            out["hypervolume"] = volumes[-1]
            out["over_time"] = [[i + 1, volumes[i]] for i in steps[::-1][::stride][::-1]]
        return out

    return answer
