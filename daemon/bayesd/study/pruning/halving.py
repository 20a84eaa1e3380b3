"""Asynchronous successive halving: stop at a rung what is not among the best of those that reached it.

Li et al., "A system for massively parallel hyperparameter tuning" (2020), in the stopping form: rungs lie at
min * reduction^k of the fidelity. A trial enters a rung with its first report at or past it, is held against all that
entered before it, and goes on when it is among the best 1/reduction, at least one; so nobody waits for a rung to fill.
A value stays in its rung whatever becomes of its trial, unless that is voided or leased anew.

Hyperband (Li et al., 2018) hedges against rungs that say little: in bracket b the first rung is that of index b, so
later brackets let a trial show more of itself before they judge; `board.bracket_of` says which a trial is in. With
`shared` the brackets have their rungs in common (as in Syne Tune, Salinas et al., 2022), so that the few trials of a
late one are held against many.
"""

import math
from bisect import bisect_left

from bayesd.study.board import board_of
from bayesd.study.pruning.verdict import Verdict, said
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune


def judge(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop at the first rung that this report entered and that has `kept` better values or more."""
    fidelity = study.spec.fidelity
    if fidelity is None:
        return None
    board = board_of(study)
    bracket, _ = board.levels_of(trial)
    place, levels = board.place_of(trial)
    for level, (entered, value) in zip(levels, board.entries(trial), strict=False):
        rung = board.rungs[place, level]
        kept = max(1, len(rung) // fidelity.reduction)
        if entered != step or len(rung) < prune.needed or level < prune.warmup:
            continue
        if bisect_left(rung, value) >= kept or math.isinf(value):
            numbers = {"metric": board.metric, "value": said(value, board.sign),
                       "threshold": said(rung[kept - 1], board.sign), "compared": len(rung), "rung": level,
                       "kept": kept}
            return Verdict(step, prune.rule, numbers if prune.rule == "asha" else {**numbers, "bracket": bracket})
    return None
