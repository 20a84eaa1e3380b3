"""Real tuning: scikit-learn models on the data sets that ship with it, cross-validated, always a loss.

The folds are fixed and every model gets its random numbers from a fixed seed, so the same point has
the same value and there is one instance for all seeds; nobody knows its optimum. The rows are cut so
that an evaluation takes tens of milliseconds. What scikit-learn refuses, or what diverges, has failed.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from tests.bench.quality.task import Floats, Instance, Task, stream
from threadpoolctl import threadpool_limits

from bayesd_schemas.space import Params, Space

Model = Callable[[dict[str, Any]], Any]


@cache
def data(name: str, rows: int | None = None) -> tuple[Floats, Floats]:
    """(X, y) of a bundled data set, or of a fixed sample of its rows."""
    from sklearn import datasets
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if rows is not None:
        chosen = stream("rows", name).permutation(len(X))[:rows]
        X, y = X[chosen], y[chosen]
    return X, y


def loss(model: Any, X: Floats, y: Floats, scoring: str) -> float:
    """Mean over three fixed folds of a score, with the sign of a loss; NaN where the model fails."""
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
    kind = KFold if np.issubdtype(y.dtype, np.floating) else StratifiedKFold
    folds = kind(3, shuffle=True, random_state=0)
    # On many threads these small models are no faster, and slow each other down where cores are few.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")     # that it did not converge shows in the score
        try:
            scores = cross_val_score(model, X, y, cv=folds, scoring=scoring, error_score="raise")
        except (ValueError, ArithmeticError):
            return math.nan
    found = -float(scores.mean())
    return found if math.isfinite(found) else math.nan


def task(name: str, space: dict[str, dict[str, Any]], rows: tuple[str, int | None], scoring: str, model: Model) -> Task:
    declared = Space.model_validate(space)

    def value(params: Params) -> float:
        return loss(model(dict(params)), *data(*rows), scoring)

    return Task(name, "live", lambda seed: Instance(declared, value))


def scaled(model: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    return make_pipeline(StandardScaler(), model)


SVC: dict[str, dict[str, Any]] = {
    "C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
    "kernel": {"type": "categorical", "choices": ["rbf", "poly", "sigmoid", "linear"]},
    "gamma": {"type": "float", "low": 1e-5, "high": 1e1, "scale": "log",
              "when": {"kernel": ["rbf", "poly", "sigmoid"]}},
    "coef0": {"type": "float", "low": -1, "high": 1, "when": {"kernel": ["poly", "sigmoid"]}},
    "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}}


def svc(params: dict[str, Any]) -> Any:
    from sklearn.svm import SVC as Classifier
    return scaled(Classifier(**params, max_iter=20_000))    # a poly kernel on a large C might run for minutes


def boosting(params: dict[str, Any]) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor
    return GradientBoostingRegressor(**params, random_state=0)


def forest(params: dict[str, Any]) -> Any:
    from sklearn.ensemble import RandomForestRegressor
    params["bootstrap"] = params["bootstrap"] == "yes"
    return RandomForestRegressor(**params, random_state=0)


def mlp(params: dict[str, Any]) -> Any:
    from sklearn.neural_network import MLPClassifier
    layers, width = params.pop("layers"), params.pop("width")
    params["hidden_layer_sizes"] = (width,) if layers == 1 else (width, params.pop("width2"))
    return scaled(MLPClassifier(**params, random_state=0))


def net(params: dict[str, Any]) -> Any:
    from sklearn.linear_model import ElasticNet
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler
    degree = params.pop("degree")
    crosses = params.pop("crosses", "no") == "yes"
    return make_pipeline(StandardScaler(), PolynomialFeatures(degree, interaction_only=crosses, include_bias=False),
                         StandardScaler(), ElasticNet(**params, max_iter=200, random_state=0))


def logistic(params: dict[str, Any]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler
    scaler = {"none": None, "standard": StandardScaler(), "range": MinMaxScaler()}[params.pop("scaler")]
    params["class_weight"] = "balanced" if params.pop("balanced") == "yes" else None
    return make_pipeline(scaler if scaler is not None else "passthrough",
                         LogisticRegression(**params, random_state=0))


LOGISTIC: dict[str, dict[str, Any]] = {
    "C": {"type": "float", "low": 1e-4, "high": 1e4, "scale": "log"},
    "scaler": {"type": "categorical", "choices": ["none", "standard", "range"]},
    "balanced": {"type": "categorical", "choices": ["no", "yes"]},
    "solver": {"type": "categorical", "choices": ["lbfgs", "saga"]},
    "max_iter": {"type": "int", "low": 3, "high": 200, "scale": "log"},
    "tol": {"type": "float", "low": 1e-6, "high": 1e-1, "scale": "log", "when": {"solver": "saga"}}}


def neighbours(params: dict[str, Any]) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    return make_pipeline(PCA(params.pop("components"), whiten=params.pop("whiten") == "yes", random_state=0),
                         KNeighborsClassifier(**params, algorithm="brute"))


def tasks() -> list[Task]:
    return [
        task("svc-digits", SVC, ("digits", 400), "accuracy", svc),
        task("svc-cancer", SVC, ("breast_cancer", None), "roc_auc", svc),
        task("boosting-diabetes", {
            "n_estimators": {"type": "int", "low": 4, "high": 50, "scale": "log"},
            "learning_rate": {"type": "float", "low": 1e-3, "high": 1, "scale": "log"},
            "max_depth": {"type": "int", "low": 1, "high": 6},
            "subsample": {"type": "float", "low": 0.2, "high": 1},
            "min_samples_leaf": {"type": "int", "low": 1, "high": 50, "scale": "log"},
            "loss": {"type": "categorical", "choices": ["squared_error", "absolute_error", "huber"]},
            "alpha": {"type": "float", "low": 0.5, "high": 0.99, "when": {"loss": "huber"}},
        }, ("diabetes", 250), "neg_root_mean_squared_error", boosting),
        task("forest-diabetes", {
            "n_estimators": {"type": "int", "low": 3, "high": 30, "scale": "log"},
            "max_depth": {"type": "int", "low": 1, "high": 12},
            "max_features": {"type": "float", "low": 0.1, "high": 1},
            "min_samples_leaf": {"type": "int", "low": 1, "high": 40, "scale": "log"},
            "bootstrap": {"type": "categorical", "choices": ["yes", "no"]},
            "max_samples": {"type": "float", "low": 0.1, "high": 1, "when": {"bootstrap": "yes"}},
        }, ("diabetes", 300), "neg_root_mean_squared_error", forest),
        task("mlp-wine", {
            "layers": {"type": "int", "low": 1, "high": 2},
            "width": {"type": "int", "low": 2, "high": 64, "scale": "log"},
            "width2": {"type": "int", "low": 2, "high": 64, "scale": "log", "when": {"layers": 2}},
            "activation": {"type": "categorical", "choices": ["relu", "tanh", "logistic"]},
            "alpha": {"type": "float", "low": 1e-6, "high": 1e1, "scale": "log"},
            "learning_rate_init": {"type": "float", "low": 1e-4, "high": 1, "scale": "log"},
            "max_iter": {"type": "int", "low": 5, "high": 40, "scale": "log"},
            "solver": {"type": "categorical", "choices": ["adam", "sgd"]},
            "momentum": {"type": "float", "low": 0, "high": 0.99, "when": {"solver": "sgd"}},
        }, ("wine", None), "neg_log_loss", mlp),
        task("net-diabetes", {
            "alpha": {"type": "float", "low": 1e-3, "high": 1e2, "scale": "log"},
            "l1_ratio": {"type": "float", "low": 0.01, "high": 1},
            "selection": {"type": "categorical", "choices": ["cyclic", "random"]},
            "degree": {"type": "int", "low": 1, "high": 2},
            "crosses": {"type": "categorical", "choices": ["no", "yes"], "when": {"degree": 2}},
        }, ("diabetes", None), "neg_root_mean_squared_error", net),
        task("logistic-iris", LOGISTIC, ("iris", None), "neg_log_loss", logistic),
        task("logistic-wine", LOGISTIC, ("wine", None), "neg_log_loss", logistic),
        task("neighbours-digits", {
            "components": {"type": "int", "low": 2, "high": 60},
            "whiten": {"type": "categorical", "choices": ["no", "yes"]},
            "n_neighbors": {"type": "int", "low": 1, "high": 50, "scale": "log"},
            "weights": {"type": "categorical", "choices": ["uniform", "distance"]},
            "metric": {"type": "categorical", "choices": ["minkowski", "cosine", "chebyshev"]},
            "p": {"type": "float", "low": 1, "high": 5, "when": {"metric": "minkowski"}},
        }, ("digits", 400), "accuracy", neighbours),
    ]
