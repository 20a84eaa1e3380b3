"""Which trial is taken, by which rule, and what is said of it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from bayesd import verdict, winner
from bayesd.cli import studies
from bayesd.inprocess import Study, StudyError
from bayesd.winner.pareto import volume

X = {"x": {"type": "float", "low": 0, "high": 1}}


def told(value: Callable[[float], float], n: int = 16, **spec: Any) -> Study:
    """n trials of a sweep, and for each its value."""
    study = written({"direction": "minimize", "method": "sobol", "budget": {"trials": n}, **spec})
    for _ in range(n):
        trial = study.ask()
        study.tell(trial, value(float(str(trial.params["x"]))))
    return study


def written(spec: dict[str, Any]) -> Study:
    """The study of a study file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "study.json"
        path.write_text(json.dumps({"name": "s", "seed": 1, "space": X, **spec}))
        return Study.from_file(path)


def bowl_with_luck(x: float) -> float:
    """A bowl at 0.3, noise, and on its slope one value that was lucky."""
    return -0.2 if 0.53 < x < 0.57 else 4 * (x - 0.3) ** 2 + 0.1 * math.sin(1000 * x)


def test_the_rule_by_default_is_mean_once_ten_results_are_noisy() -> None:
    chosen = told(bowl_with_luck, 32).winner()
    best = chosen["others"]["best"]
    assert chosen["rule"] == "mean"
    assert best["value"] == -0.2
    assert abs(chosen["params"]["x"] - 0.3) < 0.15
    assert chosen["mean"] < best["mean"]
    assert chosen["probability"] > best["probability"]
    assert 0 <= chosen["expected_loss"] < best["expected_loss"]
    assert set(chosen["others"]) == {"best", "one-se", "robust", "pareto"}
    assert told(bowl_with_luck, 9).winner()["rule"] == "best"


def test_without_noise_the_lowest_is_the_best_for_sure() -> None:
    chosen = told(bowl_with_luck, 32, noise="none").winner()
    assert (chosen["rule"], chosen["value"], chosen["probability"], chosen["expected_loss"]) == ("best", -0.2, 1.0, 0.0)


def test_a_study_says_its_rule_and_one_se_takes_the_simplest() -> None:
    study = told(lambda x: 0.02 * math.sin(1000 * x), winner={"rule": "one-se", "simplest": ["-x"]})
    chosen = study.winner()
    assert chosen["rule"] == "one-se"
    assert chosen["within"] > 3
    assert "the simplest by -x" in chosen["reason"]
    assert chosen["params"]["x"] > np.median([trial.params["x"] for trial in study.trials])


def test_robust_leaves_a_narrow_valley() -> None:
    study = told(lambda x: min(40 * abs(x - 0.25) - 1.0, 4 * (x - 0.75) ** 2 - 0.9, 1.0), 64, winner={"radius": 0.08})
    assert study.winner("best")["params"]["x"] == pytest.approx(0.25, abs=0.02)
    robust = study.winner("robust")
    assert robust["params"]["x"] == pytest.approx(0.75, abs=0.1)
    assert robust["worst"] > study.winner("mean")["mean"]


def test_pareto_names_the_front_and_its_knee() -> None:
    study = Study(X, seed=1, method="sobol", noise="none", budget=20,
                  objectives=[{"name": "loss", "direction": "minimize"}, {"name": "score", "direction": "maximize"}])
    for _ in range(20):
        trial = study.ask()
        x = float(str(trial.params["x"]))
        study.tell(trial, {"loss": x**2, "score": 1 - (1 - x) ** 2 if x < 0.8 else 0.0})
    chosen = study.winner()
    assert chosen["rule"] == "pareto"
    best = {trial.number: trial.params["x"] for trial in study.trials if trial.params["x"] < 0.8}
    assert chosen["front_size"] == len(best)
    assert {row["trial"] for row in chosen["front"]} <= set(best)
    assert 0.25 < chosen["params"]["x"] < 0.6
    assert all(0 <= row["hypervolume"] <= 1 for row in chosen["front"])


def test_a_volume_counts_nothing_twice() -> None:
    assert volume(np.array([[2.0, 1.0], [1.0, 3.0]])) == pytest.approx(2 + 3 - 1)
    assert volume(np.array([[2.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 1.0]])) == pytest.approx(4)


def test_a_taste_for_what_is_not_there_is_refused() -> None:
    with pytest.raises(StudyError, match=r"winner\.simplest: 'depth' is no parameter"):
        written({"direction": "minimize", "winner": {"simplest": ["depth"]}})


def test_a_doubtful_winner_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = {"study": "s", **told(lambda x: math.sin(1000 * x), 12).winner()}
    assert chosen["probability"] < winner.DOUBTFUL
    page = {"study": "s", "objectives": [{"name": "value"}]}
    studies._show_best("table", page, chosen)
    said = capsys.readouterr()
    assert "bayesd study confirm s measures the leaders again" in said.err
    assert "OTHER RULES" in said.out
    assert f"best of those tried with {chosen['probability']:.0%}" in " ".join(said.out.split())
    studies._show_best("table", page, {**chosen, "probability": 0.9})
    assert "confirm" not in capsys.readouterr().err


def test_a_verdict_is_said_alike_everywhere() -> None:
    answer = {"rule": "mean", "trial": 3, "mean": 0.125, "sd": 0.03, "probability": 0.375, "expected_loss": 0.0125,
              "evaluations": [3, 8], "others": {"best": {"trial": 5}, "robust": {"trial": 3}, "pareto": {"trial": 5},
                                                "one-se": {"trial": 9}, "confirmed": {"trial": None}}}
    assert verdict.pooled(answer) == ", the mean of 2 trials: 3, 8"
    assert verdict.pooled({**answer, "evaluations": [3]}) == ""
    assert verdict.otherwise(answer) == "robust: the same; best, pareto: #5; one-se: #9"
    assert verdict.believed(answer) == (
        "The model expects 0.125 ± 0.03 there. With a probability of 38% it is the best point of those tried; it is "
        "expected to be 0.013 behind the best of them.")
    assert verdict.believed({**answer, "mean": None}) is None
    assert "bayesd study confirm s" in str(verdict.doubt(answer, "s"))
    assert verdict.doubt({**answer, "rule": "confirmed"}, "s") is None
    assert verdict.doubt({**answer, "probability": 0.5}, "s") is None
    assert "beats it in everything" in str(verdict.doubt({**answer, "rule": "pareto"}, "s"))
