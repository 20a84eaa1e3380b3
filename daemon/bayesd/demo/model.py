"""What the demo tunes: a support vector machine that reads handwritten digits.

The pictures come with scikit-learn, so nothing is fetched. A trial is a cross-validation; its
folds are told, so the winner's standard error is known.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STUDY = "digits-svm"
FOLDS = 5


def study_file(trials: int) -> str:
    """The study, as anybody would write it."""
    return f"""\
name = "{STUDY}"
metric = "accuracy"
direction = "maximize"
method = "bayes"
seed = 7

[budget]
trials = {trials}

[lease]
default_s = 4          # so short that the demo does not have to wait for a dead worker

[space.C]
type = "float"
low = 1e-2
high = 1e3
scale = "log"

[space.gamma]
type = "float"
low = 1e-5
high = 1e-1
scale = "log"

[space.kernel]
type = "categorical"
choices = ["rbf", "poly"]

[space.degree]
type = "int"
low = 2
high = 4
when = {{ kernel = "poly" }}
"""


def folds(params: Mapping[str, Any]) -> Iterator[float]:
    """The accuracy on each fold, as it is known."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    pictures, digits = load_digits(return_X_y=True)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=7).split(pictures, digits):
        model = SVC(C=params["C"], gamma=params["gamma"], kernel=params["kernel"], degree=params.get("degree", 3),
                    random_state=7)
        model.fit(pictures[train], digits[train])
        yield float(model.score(pictures[test], digits[test]))


def note(ledger: Path, worker: str, trial: int, fence: int, scores: list[float]) -> None:
    """Write down what was measured, before anybody else hears of it: the proof compares it with the log."""
    line = json.dumps({"worker": worker, "trial": trial, "fence": fence, "folds": scores, "time": time.time(),
                       "pid": os.getpid()}) + "\n"
    with ledger.open("ab", buffering=0) as file:
        file.write(line.encode())      # one write to a file opened for appending: lines of two workers do not mix
        os.fsync(file.fileno())
