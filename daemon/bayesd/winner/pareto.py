"""Rule `pareto`: what no other trial beats in everything, and of that front the knee.

Objectives count with what the model expects of each (with noise = "none" with what was observed), and beside them what
`[winner] beside` names: parameters, seconds. With one objective and nothing named, seconds. The single answer is the
trial
of the front that is nearest to having the best of everything, each column between the front's best and worst
(compromise programming: Zeleny, "Multiple criteria decision making", 1982, chapter 10). `hypervolume` is the share
of the dominated volume that would be lost without a trial (While, Bradstreet and Barone, "A fast way of calculating
exact
hypervolumes", 2012, exclusive hypervolume), against the references of the objectives or else the worst of the column.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesd.winner import mean
from bayesd.winner.candidates import Entry
from bayesd.winner.case import Case, Pick, simplicity

Floats = NDArray[np.float64]
SHOWN_MAX = 20          # of a front: the nearest to the knee
VOLUME_MAX = 40         # of a larger front the volumes would take too long


def pick(case: Case) -> Pick:
    entries, names, columns = _columns(case)
    if columns.shape[1] < 2 or not entries:
        plain = mean.pick(case)
        return Pick(plain.entry, f"{plain.reason}; there is nothing to trade off: no seconds were told, and [winner] "
                                 "beside names nothing")
    front = [i for i in range(len(entries)) if not _dominated(columns, i)]
    low, high = columns[front].min(axis=0), columns[front].max(axis=0)
    away = np.linalg.norm((columns[front] - low) / np.where(high > low, high - low, 1.0), axis=1)
    order = sorted(range(len(front)), key=lambda at: (round(float(away[at]), 9), *columns[front[at]].tolist(),
                                                      entries[front[at]].trial))
    shares = _shares(columns[front], _references(case, columns))
    stay = _stays(case, entries, columns, [front[at] for at in order[:SHOWN_MAX]])
    rows = [_row(entries[front[at]], names, columns[front[at]], None if shares is None else shares[at], stays)
            for at, stays in zip(order[:SHOWN_MAX], stay, strict=True)]
    knee = entries[front[order[0]]]
    reason = (f"the knee of {len(front)} trials that nothing beats in {_listed(names)} together: nearest to the best "
              "of "
              "each")
    return Pick(knee, reason, {"front": rows, "front_size": len(front), "columns": names, "probability": stay[0]})


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]


def _row(entry: Entry, names: list[str], column: Floats, share: float | None, stays: float | None) -> dict[str, Any]:
    return {"trial": entry.trial, "values": list(entry.values) or [entry.value],
            "by": {name: abs(value) if value == 0 else value
                   for name, value in zip(names, column.tolist(), strict=True)},
            "hypervolume": share, "probability": stays}


def _columns(case: Case) -> tuple[list[Entry], list[str], Floats]:
    """Trials, names and (n, k) numbers, lower is better."""
    k = len(case.problem.directions)
    beside = list(case.terms.wishes.beside) or (
        ["seconds"] if k == 1 and any(entry.seconds is not None for entry in case.complete) else [])
    simple = simplicity(case, beside)
    entries = [entry for entry in case.complete if not any(value == math.inf for value in simple[entry.trial])]
    names = [*(goal.name for goal in case.terms.goals), *beside] if case.terms.goals else ["value", *beside]
    rows = [[*(_objective(case, entry, j) for j in range(k)),
             *(-1e300 if value == -math.inf else value for value in simple[entry.trial])] for entry in entries]
    return entries, names, np.array(rows, dtype=np.float64).reshape(len(entries), len(names))


def _objective(case: Case, entry: Entry, j: int) -> float:
    known, sign = case.arms[j], 1.0 if case.problem.directions[j] == "minimize" else -1.0
    at = None if known is None else known.of_trial.get(entry.trial)
    value = (entry.values or (entry.value,))[j]
    return sign * (value if known is None or at is None else float(known.mean[at]))


def _dominated(columns: Floats, i: int) -> bool:
    return bool(np.any(np.all(columns <= columns[i], axis=1) & np.any(columns < columns[i], axis=1)))


def _references(case: Case, columns: Floats) -> Floats:
    reference: Floats = columns.max(axis=0)
    for j, goal in enumerate(case.terms.goals):
        if goal.reference is not None:
            reference[j] = goal.reference if goal.direction == "minimize" else -goal.reference
    return reference


def _shares(front: Floats, reference: Floats) -> list[float] | None:
    """Of each row the share of the volume that it alone dominates; None for a front that is too large."""
    if len(front) > VOLUME_MAX or front.shape[1] > 4:
        return None
    low = front.min(axis=0)
    unit = np.clip((reference - front) / np.maximum(reference - low, 1e-300), 0.0, 1.0)     # sides of the boxes
    whole = volume(unit)
    return [0.0 if whole == 0 else 1 - volume(np.delete(unit, i, axis=0)) / whole for i in range(len(unit))]


def volume(sides: Floats) -> float:
    """Of the union of boxes from the origin, (n, k) sides: each box less what those behind it cover of it."""
    total = []
    for i in range(len(sides)):
        rest = np.minimum(sides[i + 1:], sides[i])
        rest = rest[[not _dominated(-rest, j) for j in range(len(rest))]]
        total.append(float(np.prod(sides[i])) - (volume(np.unique(rest, axis=0)) if len(rest) else 0.0))
    return math.fsum(total)


def _stays(case: Case, entries: list[Entry], columns: Floats, chosen: list[int]) -> list[float | None]:
    """Of each chosen trial the probability that no other is at least as good in everything and better in something, by
    draws of every objective for itself."""
    known = [each for each in case.arms if each is not None]
    if case.terms.is_exact:
        return [1.0] * len(chosen)
    if len(known) < len(case.arms):
        return [None] * len(chosen)
    drawn = np.repeat(columns[None], len(known[0].drawn), axis=0)       # (draws, n, k)
    points = np.array([[each.of_trial.get(entry.trial, -1 - i) for each in known] for i, entry in enumerate(entries)])
    for j, each in enumerate(known):
        place = {int(arm): at for at, arm in enumerate(each.leading.tolist())}
        for i in range(len(entries)):
            at = place.get(int(points[i, j]))
            if at is not None:
                drawn[:, i, j] = each.drawn[:, at]
    out: list[float | None] = []
    for i in chosen:
        beaten = np.all(drawn <= drawn[:, i:i + 1], axis=2) & np.any(drawn < drawn[:, i:i + 1], axis=2)
        out.append(float(1 - np.any(beaten, axis=1).mean()))
    return out
