"""How far a trial was trained, and what it had at the rungs of its study: what `optimize.fidelity` learns from.

Only a study with `[fidelity]` and a pruning rule over it has any of it, and only with one objective. A race stops
trials by folds, which are no training.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from bayesd_schemas.study import Fidelity

if TYPE_CHECKING:
    from bayesd.study.state import Trial


Curve: TypeAlias = tuple[tuple[float, float], ...]


def curve_of(trial: "Trial") -> Curve:
    """(Share of the whole training, value) at the rungs that a trial reached: of each what was told there, or else the
    report at or past it that came first. A value that is no number ends it."""
    fidelity = _fidelity(trial)
    if fidelity is None:
        return ()
    name, told, out = trial.study.goals[0].name, trial.rungs or {}, []
    for level in fidelity.levels:
        said = next((each for step, each in (trial.reports or {}).items() if step >= level), None)
        if said is None and level not in told:      # a higher bracket's trial passes the rungs below it
            continue
        report = said[0] if isinstance(said, tuple) else said or {}
        value = told[level].values[0] if level in told else report.get(name)
        if value is None or not math.isfinite(value):
            break
        out.append((level / fidelity.max, float(value) + 0.0))
    return tuple(out)


def share_of(trial: "Trial") -> float | None:
    """The share of the whole training after which the last of a trial was measured; None when that is all of it, or
    nobody can tell."""
    fidelity = _fidelity(trial)
    if fidelity is None or not (trial.reports or trial.rungs):
        return None
    last = max(*(trial.reports or ()), *(trial.rungs or ()), 1)
    return last / fidelity.max if last < fidelity.max else None


def as_curve(said: Iterable[Any]) -> Curve:
    """A curve as a record has it, with the numbers that life has: canonical JSON writes 1.0 as 1."""
    return tuple((float(share), float(value) + 0.0) for share, value in said)


def _fidelity(trial: "Trial") -> Fidelity | None:
    spec = trial.study.spec
    if spec.prune is None or spec.prune.rule == "race" or len(trial.study.goals) > 1:
        return None
    return spec.fidelity
