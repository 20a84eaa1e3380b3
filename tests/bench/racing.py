"""What racing saves in cross-validation, and what it costs in quality, on five scikit-learn tasks.

    python tests/bench/racing.py --tables FOLDER [--seeds 10] [--error 0.05] [--min-folds 1] [--folds 10]

Each task has 120 configurations, all of them evaluated on 10 folds once, and on 10 other folds (another shuffle) that
say how good a configuration really is; the tables are kept in FOLDER, so that a race is a look-up. A run takes 60
configurations in random order, seed by seed, with and without the rule.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine, make_classification
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.study.races import Races

CONFIGURATIONS = 120
TRIALS = 60
FOLDS = 10
BOUNDS = (None, 1.0)       # of accuracy and of R^2, as a study file would say it

Draw = Callable[[np.random.Generator], Any]


def svm(rng: np.random.Generator) -> Any:
    return make_pipeline(StandardScaler(), SVC(C=10 ** rng.uniform(-3, 3), gamma=10 ** rng.uniform(-5, 1)))


def tree(rng: np.random.Generator) -> Any:
    return DecisionTreeClassifier(max_depth=int(rng.integers(1, 20)), min_samples_leaf=int(rng.integers(1, 40)),
                                  criterion=str(rng.choice(["gini", "entropy"])), random_state=0)


def neighbours(rng: np.random.Generator) -> Any:
    return make_pipeline(StandardScaler(), KNeighborsClassifier(int(rng.integers(1, 40)), p=rng.uniform(1, 3),
                                                                weights=str(rng.choice(["uniform", "distance"]))))


def linear(rng: np.random.Generator) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=10 ** rng.uniform(-5, 3), max_iter=50))


def trees(rng: np.random.Generator) -> Any:
    return ExtraTreesRegressor(8, max_depth=int(rng.integers(1, 12)), min_samples_leaf=int(rng.integers(1, 30)),
                               max_features=rng.uniform(0.1, 1.0), random_state=0)


def mixed(*draws: Draw) -> Draw:
    return lambda rng: draws[int(rng.integers(len(draws)))](rng)


def tasks() -> dict[str, tuple[Any, Any, Draw]]:
    digits = load_digits(return_X_y=True)
    made = make_classification(600, 20, n_informative=6, flip_y=0.1, random_state=0)
    return {"breast_cancer": (*load_breast_cancer(return_X_y=True), mixed(svm, linear, neighbours)),
            "digits": (digits[0][:700], digits[1][:700], mixed(svm, neighbours, tree)),
            "wine": (*load_wine(return_X_y=True), mixed(svm, linear, neighbours, tree)),
            "diabetes": (*load_diabetes(return_X_y=True), trees),
            "made": (*made, mixed(svm, tree, neighbours, linear))}


def table(folder: Path, name: str, X: Any, y: Any, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores (configurations, folds), and those on the other folds."""
    path = folder / f"racing-{name}.npy"
    if not path.exists():
        splitter = KFold if draw is trees else StratifiedKFold
        rng = np.random.default_rng(1)
        rows = [[cross_val_score(model, X, y, cv=splitter(FOLDS, shuffle=True, random_state=seed)) for seed in (0, 1)]
                for model in (draw(rng) for _ in range(CONFIGURATIONS))]
        np.save(path, np.array(rows))
    both = np.load(path)
    return both[:, 0], both[:, 1]


def run(scores: np.ndarray, truth: np.ndarray, seed: int, error: float | None, min_folds: int) -> tuple[int, float]:
    """(fold evaluations, value of the winner on other folds)."""
    order = np.random.default_rng(seed).permutation(len(scores))[:TRIALS]
    races = Races(scores.shape[1], error, min_folds, BOUNDS)
    for one in order:
        races.run(scores[one].tolist())
    best = races.study.best
    assert best is not None
    return races.evaluations, float(truth[order[best.number - 1]].mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tables", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--error", type=float, default=0.05)
    options.add_argument("--min-folds", type=int, default=1)
    options.add_argument("--folds", type=int, default=FOLDS, help="The first so many of the ten make an evaluation.")
    given = options.parse_args()
    given.tables.mkdir(parents=True, exist_ok=True)
    print("| task | folds saved | winner with all folds | with racing | same winner | better, equal, worse |\n"
          "|---|---|---|---|---|---|")
    report = {}
    for name, (X, y, draw) in tasks().items():
        scores, truth = table(given.tables, name, X, y, draw)
        scores = scores[:, :given.folds]
        before = time.process_time()
        raced = [run(scores, truth, seed, given.error, given.min_folds) for seed in range(given.seeds)]
        cpu_s = time.process_time() - before
        full = [run(scores, truth, seed, None, given.min_folds) for seed in range(given.seeds)]
        saved = 1 - sum(each for each, _ in raced) / sum(each for each, _ in full)
        gains = [one - other for (_, one), (_, other) in zip(raced, full, strict=True)]
        same = sum(gain == 0 for gain in gains)
        report[name] = {"saved": saved, "full": float(np.mean([value for _, value in full])),
                        "raced": float(np.mean([value for _, value in raced])), "same": same,
                        "ms_per_fold": 1000 * cpu_s / sum(each for each, _ in raced)}
        better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        print(f"| {name} | {saved:.0%} | {report[name]['full']:.4f} | {report[name]['raced']:.4f} | "
              f"{same} of {given.seeds} | {better}, {same}, {worse} |", flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
