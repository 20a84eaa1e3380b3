"""Cross-validation on the worker's side, with real estimators and data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, make_scorer, precision_score
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import bayesd_client as bayesd
from bayesd_client.agent import Lease
from bayesd_client.trial import Trial

CANCER = load_breast_cancer(return_X_y=True)
WINE = load_wine(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)
MODEL = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))


class Reports:
    """A worker's end of a trial: keeps reports, answers at once, and stops the trial after so many."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[tuple[int, Mapping[str, Any]]] = []
        self._stop_after = stop_after

    def __call__(self, trial: Trial, step: int, measured: Mapping[str, Any]) -> None:
        self.said.append((step, measured))
        if len(self.said) == self._stop_after:
            trial.halt("pruned", owed=True)
        trial.answer(step)


def trial(reports: Reports | None = None, *objectives: str, repeat: int = 0) -> Trial:
    return Trial(Lease("s", 1, 1, {}, 600.0, repeat=repeat), None, reports or Reports(), objectives or ("accuracy",))


GROUPS = np.arange(len(CANCER[1])) // 19


@pytest.mark.parametrize("cv", [
    3, None, StratifiedKFold(4, shuffle=True, random_state=3), KFold(3), GroupKFold(5), StratifiedGroupKFold(3),
    TimeSeriesSplit(4), RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=1),
    ShuffleSplit(3, random_state=0), [(np.arange(300), np.arange(300, 569)), (np.arange(269, 569), np.arange(269))],
], ids=lambda cv: type(cv).__name__ if not isinstance(cv, int) else "number")
def test_any_splitter_gives_the_scores_that_scikit_learn_gives(cv: Any) -> None:
    reports = Reports()
    groups = GROUPS if "Group" in type(cv).__name__ else None
    folds = bayesd.cross_validate(trial(reports), MODEL, *CANCER, cv=cv, groups=groups)
    expected = cross_val_score(MODEL, *CANCER, cv=cv, groups=groups)
    assert folds.values == expected.tolist()
    assert reports.said == [(step, {"value": value}) for step, value in enumerate(expected)]


@pytest.mark.parametrize("scoring", ["roc_auc", "f1", make_scorer(precision_score), None])
def test_any_scorer(scoring: Any) -> None:
    folds = bayesd.cross_validate(trial(), MODEL, *CANCER, cv=3, scoring=scoring)
    assert folds.values == cross_val_score(MODEL, *CANCER, cv=3, scoring=scoring).tolist()


def test_several_scorers_at_once_by_name() -> None:
    reports = Reports()
    folds = bayesd.cross_validate(trial(reports, "precision", "recall"), MODEL, *CANCER, cv=3,
                                  scoring=["precision", "recall", "f1"])
    assert folds.values == {name: cross_val_score(MODEL, *CANCER, cv=3, scoring=name).tolist()
                            for name in ("precision", "recall", "f1")}
    assert reports.said[1] == (1, {"values": {name: each[1] for name, each in folds.values.items()}})


def test_scorers_by_a_mapping_of_own_names_for_several_classes() -> None:
    scoring = {"quality": make_scorer(f1_score, average="macro"), "accuracy": "accuracy"}
    folds = bayesd.cross_validate(trial(None, "quality"), MODEL, *WINE, cv=4, scoring=scoring)
    assert isinstance(folds.values, dict)
    assert folds.values["quality"] == cross_val_score(MODEL, *WINE, cv=4, scoring="f1_macro").tolist()


def test_a_regression_is_not_stratified() -> None:
    folds = bayesd.cross_validate(trial(None, "r2"), Ridge(), *DIABETES, cv=5)
    assert folds.values == cross_val_score(Ridge(), *DIABETES, cv=KFold(5)).tolist()


def test_sample_weights_reach_the_fit() -> None:
    X, y = CANCER
    weights = np.where(y == 1, 100.0, 1e-6)
    tree = DecisionTreeClassifier(max_depth=1, random_state=0)
    weighed = bayesd.cross_validate(trial(), tree, X, y, cv=3, params={"sample_weight": weights})
    assert weighed.values == cross_val_score(tree, X, y, cv=3, params={"sample_weight": weights}).tolist()
    assert weighed.values != cross_val_score(tree, X, y, cv=3).tolist()


def test_it_stops_when_the_daemon_says_so() -> None:
    reports = Reports(stop_after=2)
    with pytest.raises(bayesd.TrialPruned, match="2 folds"):
        bayesd.cross_validate(trial(reports), MODEL, *CANCER, cv=5)
    assert [step for step, _ in reports.said] == [0, 1]


@pytest.mark.parametrize("cv", [5, StratifiedKFold(5, shuffle=True, random_state=7), ShuffleSplit(5),
                                RepeatedStratifiedKFold(n_splits=3, n_repeats=2)])
def test_all_trials_see_the_same_folds_and_a_repeat_sees_others(cv: Any) -> None:
    tree = DecisionTreeClassifier(random_state=0)
    first, again, repeat, another = (
        bayesd.cross_validate(trial(repeat=n), tree, *CANCER, cv=cv).values for n in (0, 0, 1, 2))
    assert first == again
    assert first != repeat
    assert repeat != another
    assert repeat == bayesd.cross_validate(trial(repeat=1), tree, *CANCER, cv=cv).values


def test_a_repeat_moves_the_seeds_of_the_estimator_and_leaves_the_given_one_alone() -> None:
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(3, random_state=4))
    other = make_pipeline(StandardScaler(), RandomForestClassifier(3, random_state=6))
    said = bayesd.cross_validate(trial(repeat=2), forest, *CANCER, cv=TimeSeriesSplit(3))
    assert said.values == cross_val_score(other, *CANCER, cv=TimeSeriesSplit(3)).tolist()
    assert forest[-1].random_state == 4


def test_a_splitter_without_shuffling_stays_as_it_is() -> None:
    assert (bayesd.cross_validate(trial(repeat=3), MODEL, *CANCER, cv=KFold(3)).values
            == cross_val_score(MODEL, *CANCER, cv=KFold(3)).tolist())


def test_a_generator_that_is_used_up_and_scorers_that_do_not_fit_end_the_worker_with_words() -> None:
    splits = KFold(3).split(*CANCER)
    bayesd.cross_validate(trial(), MODEL, *CANCER, cv=splits)
    with pytest.raises(bayesd.CannotTrain, match="such as a list"):
        bayesd.cross_validate(trial(), MODEL, *CANCER, cv=splits)
    with pytest.raises(bayesd.CannotTrain, match="objective recall of study s is none of the scorers f1"):
        bayesd.cross_validate(trial(None, "f1", "recall"), MODEL, *CANCER, scoring=["f1"])
    with pytest.raises(bayesd.CannotTrain, match="a list or mapping"):
        bayesd.cross_validate(trial(None, "f1", "recall"), MODEL, *CANCER, scoring="f1")


def test_what_a_fit_raises_goes_through() -> None:
    with pytest.raises(ValueError, match="NaN"):
        bayesd.cross_validate(trial(), LogisticRegression(), np.full((40, 2), np.nan), np.arange(40) % 2, cv=2)
