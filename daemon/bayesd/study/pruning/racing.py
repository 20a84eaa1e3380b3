"""The race rule: a cross-validated trial that can hardly beat the incumbent on all folds any more; see `study/race.py`.

`value` is the trial's mean of the folds that it has, `threshold` what that mean would be were it as good as the
incumbent.
"""

import math

from bayesd.study.folds import scores
from bayesd.study.paired import rounded
from bayesd.study.pruning.verdict import Verdict
from bayesd.study.race import decide
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune


def judge(study: Study, trial: Trial, step: int, prune: Prune) -> Verdict | None:
    """Stop at `step` when the chance to win is below the bound."""
    stop = decide(trial, prune.error, prune.min_folds, prune.needed)
    if stop is None:
        return None
    goal = study.goals[0]
    mine = scores(trial, goal.name)
    mean = math.fsum(mine.values()) / len(mine)
    sign = 1.0 if goal.direction == "minimize" else -1.0
    return Verdict(step, prune.rule, {"metric": goal.name, "value": rounded(mean),
                                      "threshold": rounded(mean - sign * stop.difference), "compared": 1,
                                      **stop.numbers})
