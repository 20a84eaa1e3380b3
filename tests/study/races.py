"""Races over a table of scores: trials report one fold after another until the rule stops them, or all are there."""

from collections.abc import Sequence

from tests.study.story import Story

from bayesd.study.folds import mean_and_se
from bayesd.study.race import decide
from bayesd.study.state import Study, Trial
from bayesd_schemas.study import Prune, StudySpec

STARTUP = Prune(rule="race").needed


class Races:
    """One study whose trials are run one by one; the metric is maximised."""

    def __init__(self, folds: int, error: float | None, min_folds: int,
                 bounds: tuple[float | None, float | None] | None = None) -> None:
        """`error` None: nothing is stopped."""
        spec = StudySpec.model_validate({"name": "s", "direction": "maximize", "folds": {"count": folds},
                                         **({} if bounds is None else {"bounds": bounds}),
                                         "space": {"x": {"type": "float", "low": 0, "high": 1}}})
        self.study = Study("s", spec, 1, spec.goals)
        self.evaluations = 0
        self._error, self._min_folds = error, min_folds

    def run(self, scores: Sequence[float]) -> bool:
        """Run a trial; whether it came to its end."""
        number = len(self.study.trials) + 1
        trial = Trial(self.study, number, {"x": 0.5}, 1, "random", number, reports={})
        self.study.trials.append(trial)
        reports = trial.reports
        assert reports is not None
        for step, score in enumerate(scores):
            reports[step] = {"value": float(score)}
            self.evaluations += 1
            if self._error is not None and decide(trial, self._error, self._min_folds, STARTUP) is not None:
                trial.status = "pruned"
                return False
        mean, _ = mean_and_se(scores)
        assert mean is not None
        trial.status, trial.values = "complete", (mean,)
        best = self.study.best
        if best is None or best.values is None or mean > best.values[0]:
            self.study.best = trial
        return True


def raced() -> Story:
    """Three trials with all folds, and two that the rule stops: one that can hardly win, one that cannot."""
    story = Story(folds={"count": 4}, direction="maximize", metric="f1", prune={"rule": "race"}, bounds=[0, 1])
    for number, scores in enumerate(([1.0, 0.9, 0.8, 0.7], [0.98, 0.9, 0.77, 0.68], [0.99, 0.89, 0.79, 0.68], [0.5],
                                     [0.99, 0.41]), start=1):
        story.ask("w1", id=f"a{number}")
        for step, score in enumerate(scores):
            story.report("w1", number, step, score)
        story.tell("w1", number, state="complete" if len(scores) == 4 else "pruned")
    return story
