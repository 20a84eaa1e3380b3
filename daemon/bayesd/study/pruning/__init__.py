"""Pruning: which trial is stopped at which report.

`verdict(study, trial)` is asked once after each report, and its answer depends on the study's events alone: on the
reports, which of their trials are complete, and what `[prune]` of the study file says. `rules.on_report` records a
stop as `trial.stopped` with the numbers that led to it, so that it is made once and an audit makes it again.

Each rule is a module with one function, `judge(study, trial, step, prune) -> Verdict | None`.
"""

from collections.abc import Callable

from bayesd.study.board import board_of
from bayesd.study.pruning import curve, dominated, halving, quantile, racing
from bayesd.study.pruning.verdict import Verdict
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune

Judge = Callable[[Study, Trial, int, Prune], Verdict | None]

RULES: dict[str, Judge] = {"median": quantile.judge, "percentile": quantile.judge, "race": racing.judge,
                          "asha": halving.judge, "hyperband": halving.judge, "curve": curve.judge}


def verdict(study: Study, trial: Trial) -> Verdict | None:
    """What the study's rule says of a trial that has just reported: a stop, or None to go on.

    Only the newest report is judged, and only when it is of the furthest step: what comes late changes no decision.
    A trial that measures a leader again runs to its end, and so does one whose lease is over. With `resume` reports
    decide nothing: what is told at the rungs does, see ladder.py.
    """
    prune, reports = study.spec.prune, trial.reports
    if (prune is None or prune.resume or not reports or trial.of is not None or trial.stopped is not None
            or trial.open_lease is None):
        return None
    step = next(reversed(reports))
    if step < prune.warmup or step != board_of(study).seen(trial).furthest:
        return None
    return (dominated.RULES if prune.by_dominance else RULES)[prune.rule](study, trial, step, prune)


__all__ = ["RULES", "Judge", "Verdict", "verdict"]
