"""`by = "dominance"`: the rules for several objectives at once, none of which is looked at alone.

median, percentile: as in quantile.py a share of the complete trials has to be better at this very step; here better is
to dominate the trial's report, and of its reports so far the one counts that fewest dominate. So trials that trade one
objective for another stop nobody.

asha, hyperband: as in halving.py, with the places that dominance.py gives in a rung.

curve: as in curve.py each objective's end is forecast. A trial is stopped when there is one on the front such that the
chances to end better than it in the one objective, in the other, and so on, add up to less than `chance`: whatever
the objectives have to do with each other, the chance to end better in any of them is not more (Boole's inequality).
"""

import math
from typing import Any

import numpy as np

from bayesd.study.board import board_of
from bayesd.study.dominance import Clouds, best_of
from bayesd.study.pruning.curve import forecast, rounded
from bayesd.study.pruning.verdict import Verdict
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune

HELD_MAX = 50       # trials on the front, those furthest ahead, that a forecast is held against


def _clouds(study: Study) -> Clouds:
    clouds = board_of(study).clouds
    assert clouds is not None, "the board is made for this rule"
    return clouds


def by_share(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop when more than a share of the complete trials dominate its best report."""
    clouds = _clouds(study)
    others, reported = clouds.clouds.get((0, step)), clouds.reported(trial)
    if others is None or len(others) < prune.needed or not reported:
        return None
    dominated, mine = min((others.dominating(vector), vector) for vector in best_of([each for _, each in reported]))
    if dominated * 100 <= prune.share * len(others) and any(map(math.isfinite, mine)):
        return None
    return Verdict(step, prune.rule, {"by": "dominance", "values": clouds.words(mine), "dominated": dominated,
                                      "compared": len(others)})


def by_place(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop at the first rung that this report entered, and where it is not among the best."""
    fidelity, clouds = study.spec.fidelity, _clouds(study)
    if fidelity is None:
        return None
    board = board_of(study)
    bracket, _ = board.levels_of(trial)
    place, _ = board.place_of(trial)
    for level, (entered, vector) in clouds.entries(trial):
        rung = clouds.clouds[place, level]
        kept = max(1, len(rung) // fidelity.reduction)
        if entered != step or len(rung) < prune.needed or level < prune.warmup:
            continue
        ahead, dominated = rung.rank(trial.number)
        if ahead >= kept or not all(map(math.isfinite, vector)):
            numbers = {"by": "dominance", "values": clouds.words(vector), "dominated": dominated, "ahead": ahead,
                       "compared": len(rung), "rung": level, "kept": kept}
            return Verdict(step, prune.rule, numbers if prune.rule == "asha" else {**numbers, "bracket": bracket})
    return None


def by_curve(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop when it hardly ends better in anything than one on the front. A report that is no number leads nowhere."""
    board = board_of(study)
    assert board.front is not None, "the board is made for this rule"
    ends, compared = [], []
    said = trial.said[step]
    for curves in board.curves:
        if curves.metric not in said:
            return None
        own = curves.of(trial)
        found = forecast(curves, own, step, prune.needed) if said[curves.metric] is not None else None
        if said[curves.metric] is not None and found is None:
            return None
        ends.append(found)
        compared.append(len(curves.at.get(step, ())) if found is None else found.compared)
    if min(compared) < prune.needed:
        return None
    numbers, members = board.front.members
    margin = np.full(len(numbers), math.inf)
    for end, column in zip(ends, members.T, strict=True):
        if end is not None:
            middle, width = end.end(0.5), end.end(0.95) - end.end(0.05)
            margin = np.minimum(margin, (middle - column) / (width if 0 < width < math.inf else 1.0))
    best: tuple[float, int] | None = None
    for place in np.argsort(-margin, kind="stable")[:HELD_MAX].tolist():
        if margin[place] <= 0:      # in something the chance to end better than this one is even
            break
        chance = rounded(math.fsum(0.0 if end is None else end.chance(value)
                                   for end, value in zip(ends, members[place].tolist(), strict=True)))
        if best is None or (chance, int(numbers[place])) < best:
            best = chance, int(numbers[place])
    if best is None or best[0] >= prune.least_chance:
        return None
    values: dict[str, Any] = {curves.metric: said[curves.metric] for curves in board.curves}
    return Verdict(step, prune.rule, {
        "by": "dominance", "values": values, "compared": min(compared), "against": best[1], "chance": best[0],
        "bound": prune.least_chance, "horizon": board.curves[0].horizon})


RULES = {"median": by_share, "percentile": by_share, "asha": by_place, "hyperband": by_place, "curve": by_curve}
