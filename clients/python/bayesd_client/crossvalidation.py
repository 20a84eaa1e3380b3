"""Cross-validation of a scikit-learn estimator as one trial: each fold is a report, all folds are the result.

    return bayesd.cross_validate(trial, SVC(C=trial.params["C"]), X, y, cv=5)

The folds come in the same order for every trial, so that the daemon can compare two trials fold by fold and stop the
one that has no chance. scikit-learn is imported when a trial is first cross-validated: a worker that never does
installs without it.
"""

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from bayesd_client.errors import CannotTrain, TrialPruned
from bayesd_client.trial import Folds, Trial

Scoring: TypeAlias = str | Callable[..., Any] | Sequence[str] | Mapping[str, Any] | None


def cross_validate(trial: Trial, estimator: Any, X: Any, y: Any = None, *, cv: Any = 5, scoring: Scoring = None,
                   groups: Any = None, params: Mapping[str, Any] | None = None) -> Folds:
    """The scores of `estimator` in every fold, reported one by one (step = number of the fold, from 0).

    `cv`: a number of folds, any splitter of scikit-learn, or an iterable of (train, test) indices that can be gone
    through again for the next trial, such as a list. `scoring`: whatever scikit-learn takes; with a list or mapping
    of several scorers the result holds every metric by its name, and each objective of the study must be one of them.
    `groups` goes to the splitter, `params` (such as sample_weight) to fit, as in scikit-learn's own cross_validate.

    When a point is measured again (`trial.repeat` = n > 0) every fixed `random_state`, of the splitter and of the
    estimator and its parts, is n higher, and a plain number of folds is shuffled with seed n. A splitter that shuffles
    without a fixed `random_state` gets the seed n, since all trials have to see the same folds.

    Raises TrialPruned when the daemon stops the trial, ImportError without scikit-learn, and CannotTrain when the
    scorers are not what the study is about. What a fit raises goes through.
    """
    try:
        selection = importlib.import_module("sklearn.model_selection")     # by name: a light install has none
        base = importlib.import_module("sklearn.base")
    except ModuleNotFoundError as error:
        raise ImportError("cross_validate needs scikit-learn on the worker: pip install scikit-learn") from error
    estimator = _reseeded(base.clone(estimator), trial.repeat)
    splitter = _splitter(selection.check_cv(cv, y, classifier=base.is_classifier(estimator)), trial.repeat,
                         plain=cv is None or isinstance(cv, int))
    scores: dict[str, list[float]] = {}
    for step, split in enumerate(splitter.split(X, y, groups)):
        said = selection.cross_validate(estimator, X, y, scoring=scoring, cv=[split],
                                        params=dict(params) if params is not None else None, error_score="raise")
        fold = {name.removeprefix("test_"): float(value[0]) for name, value in said.items()
                if name.startswith("test_")}
        if not scores:
            _suits(trial, fold)
        for name, score in fold.items():
            scores.setdefault(name, []).append(score)
        trial.report(fold if _has_names(scoring) else fold["score"], step)
        if trial.should_prune():
            raise TrialPruned(f"trial {trial.number} was stopped after {step + 1} folds")
    if not scores:
        raise CannotTrain("cv gave no folds: an iterable must be one that the next trial can go through, too, such as "
                          "a list; a generator is used up after one")
    return Folds(scores if _has_names(scoring) else scores["score"])


def _has_names(scoring: Scoring) -> bool:
    """Whether scikit-learn gives the scores their own names."""
    return scoring is not None and not isinstance(scoring, str) and not callable(scoring)


def _suits(trial: Trial, fold: Mapping[str, float]) -> None:
    """Every objective of the study is measured; else no trial could be told, and each would cost a training."""
    if list(fold) == ["score"]:
        if len(trial.objectives) > 1:
            raise CannotTrain(f"study {trial.study} has the objectives {', '.join(trial.objectives)}: give scoring a "
                              "list or mapping with each of them")
        return
    missing = [name for name in trial.objectives if name not in fold]
    if missing:
        raise CannotTrain(f"objective {missing[0]} of study {trial.study} is none of the scorers {', '.join(fold)}: "
                          f"name one so, as in scoring={{{missing[0]!r}: ...}}")


def _splitter(splitter: Any, repeat: int, *, plain: bool) -> Any:
    """`splitter` with folds that are the same for every trial, and others when a point is measured again."""
    splitter = copy.copy(splitter)
    if plain and repeat > 0 and hasattr(splitter, "shuffle"):
        splitter.shuffle, splitter.random_state = True, repeat
    elif hasattr(splitter, "random_state") and getattr(splitter, "shuffle", True):
        splitter.random_state = _seed(splitter.random_state, repeat) if splitter.random_state is not None else repeat
    return splitter


def _reseeded(estimator: Any, repeat: int) -> Any:
    """`estimator` with every fixed seed moved by `repeat`."""
    if repeat > 0:
        seeds = {name: _seed(value, repeat) for name, value in estimator.get_params(deep=True).items()
                 if name.rpartition("__")[2] == "random_state" and value is not None}
        estimator.set_params(**seeds)
    return estimator


def _seed(seed: Any, repeat: int) -> Any:
    """A seed moved by `repeat`; a generator goes on by itself."""
    return (int(seed) + repeat) % 2**32 if hasattr(seed, "__index__") else seed
