"""The folds of cross-validated trials: what was reported and told of them.

A study with `[folds] count = n` takes reports for folds: step i is fold i, and fold i is the same data for every trial.
All n together are a result, as if the worker had told them. Sums are exact (fsum), so every machine agrees.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayesd_schemas.messages import Tell
from bayesd_schemas.names import NUMBER_MAX

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial

SAME = 1e-9            # relative: a value told beside its folds is their mean up to rounding


def mean_and_se(folds: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard error of fold scores; no mean where a fold has no value, no error of one fold alone."""
    scores = [score for score in folds if score is not None]
    n = len(scores)
    if n < len(folds):
        return None, None
    mean = math.fsum(score / n for score in scores)
    if n < 2:
        return mean, None
    scale = max(abs(score - mean) for score in scores) or 1.0        # squares of 1e200 would overflow
    variance = math.fsum(((score - mean) / scale) ** 2 for score in scores) / (n - 1)
    se = scale * math.sqrt(variance / n)
    return mean, se if se <= NUMBER_MAX else None


def scores(trial: "Trial", metric: str) -> dict[int, float]:
    """Fold -> value of one metric, of the folds that were reported with a number."""
    folds = trial.study.spec.folds
    count = folds.count if folds is not None else 0
    found: dict[int, float] = {}
    for step, values in trial.said.items():
        value = values.get(metric)
        if step < count and value is not None:
            found[step] = value
    return found


def reported(trial: "Trial", tell: Tell) -> Any:
    """The folds of a tell that does not give them, when all of them were reported, and their mean is what was told if
    anything was; else None. A list for one objective, else by metric."""
    study = trial.study
    if study.spec.folds is None or tell.state != "complete" or tell.folds is not None:
        return None
    found = {goal.name: scores(trial, goal.name) for goal in study.goals}
    if any(len(each) < study.spec.folds.count for each in found.values()):
        return None
    for limit in study.spec.limits:        # what is told beside may be a maximum, say, and stands
        reports = scores(trial, limit.metric_name)
        if limit.metric_name not in (tell.values or {}) and len(reports) == study.spec.folds.count:
            found.setdefault(limit.metric_name, reports)
    lists = {name: [each[step] for step in sorted(each)] for name, each in found.items()}
    if "value" in tell.model_fields_set or tell.values is not None:
        told = tell.values if tell.values is not None else {study.goals[0].name: tell.value}
        for name, each in lists.items():
            if name not in told and name not in {goal.name for goal in study.goals}:
                continue
            mean, value = mean_and_se(each)[0], told.get(name)
            if mean is None or value is None or not math.isclose(value, mean, rel_tol=SAME, abs_tol=SAME * _size(each)):
                return None
    return lists if len(lists) > 1 else lists[study.goals[0].name]


def _size(values: Iterable[float]) -> float:
    return max(abs(value) for value in values)


def by_step(study: "Study", folds: Any) -> dict[int, dict[str, float | None]]:
    """Folds that were told, as the reports that they could have been."""
    by_metric: Mapping[str, Sequence[Any]] = folds if isinstance(folds, dict) else {study.goals[0].name: folds}
    count = max(map(len, by_metric.values()))
    return {step: {name: None if each[step] is None else float(each[step]) + 0.0
                   for name, each in by_metric.items() if step < len(each)} for step in range(count)}
