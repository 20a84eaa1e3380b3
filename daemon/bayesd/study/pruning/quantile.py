"""The median and percentile rules: stop what is worse than others were at the same step.

As in Optuna's MedianPruner and PercentilePruner (and Golovin et al., "Google Vizier", 2017, section 3.2.2, for the
median): the *best* value that the trial has reported so far is held against the values that complete trials reported
*at this very step*. It is stopped when it is worse than their percentile: of `percentile = 25` only what is among the
best quarter goes on; the median is 50.
"""

import math
from collections.abc import Sequence

from bayesd.study.board import board_of
from bayesd.study.pruning.verdict import Verdict, said
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune


def judge(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop at `step` when enough others are there to compare with, and the best so far is behind."""
    board = board_of(study)
    own = board.seen(trial).best
    others = board.steps.get(step, ())
    threshold = limit(own, others, prune.share, prune.needed)
    if own is None or threshold is None:
        return None
    return Verdict(step, prune.rule, {"metric": board.metric, "value": said(own, board.sign),
                                      "threshold": said(threshold, board.sign), "compared": len(others)})


def limit(own: float | None, others: Sequence[float], percent: float, startup: int) -> float | None:
    """The limit that a value is behind, or None when it is not. `others` are sorted, lower is better."""
    if own is None or not others or len(others) < startup:
        return None
    threshold = percentile(others, percent)
    return threshold if own > threshold or math.isinf(own) else None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of sorted values, linearly between two of them (method 7 of Hyndman and Fan, 1996)."""
    place = (len(ordered) - 1) * percent / 100.0
    below = math.floor(place)
    low = ordered[below]
    if place == below or ordered[below + 1] == low:
        return low
    return low + (ordered[below + 1] - low) * (place - below)
