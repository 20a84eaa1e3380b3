"""A point that was measured more than once."""

import math

import pytest
from tests.study.story import Story

from bayesd.study.pooled import pooled


def again() -> Story:
    it = Story(direction="maximize", budget={"trials": 2})
    for number, value in ((1, 0.9), (2, 0.8)):
        it.ask("w1", id=f"a{number}")
        it.tell("w1", number, value=value)
    return it


def test_a_point_is_the_mean_of_its_evaluations_and_its_grants_are_numbered() -> None:
    it = again()
    it.request("op", "study.confirm", top=2, repeats=2)
    repeats = []
    for number, folds in ((3, [0.6, 0.8]), (4, [0.8, 0.9]), (5, [0.7, 0.7]), (6, [0.8, 0.8])):
        it.at(it.now + 20)
        _, letters = it.ask("w2", id=f"b{number}")
        grant = next(body for _, kind, body in letters if kind == "grant")
        repeats.append((it.desk.state.studies["s"].trials[number - 1].of, grant["repeat"]))
        it.tell("w2", number, folds=folds)
    assert sorted(repeats) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    study = it.desk.state.studies["s"]
    of_first = [trial for trial in study.trials if 1 in (trial.number, trial.of)]
    found = pooled(study)[1]
    values = [trial.values[0] for trial in of_first if trial.values]
    assert found.n == 3
    assert found.evaluations == tuple(trial.number for trial in of_first)
    assert found.mean == pytest.approx(math.fsum(values) / 3)
    assert found.se is not None
    alone = pooled(study, with_first=False)[1]
    assert alone.n == 2
    assert alone.mean == pytest.approx(math.fsum(values[1:]) / 2)


def test_a_first_evaluation_has_no_repeat_and_a_void_one_does_not_count() -> None:
    it = Story(direction="maximize")
    _, letters = it.ask("w1")
    assert "repeat" not in next(body for _, kind, body in letters if kind == "grant")
    it.tell("w1", 1, folds=[0.8, 0.9])
    assert pooled(it.desk.state.studies["s"])[1].se == pytest.approx(0.05)
    it.request("op", "trial.void", trial=1, reason="no")
    assert pooled(it.desk.state.studies["s"]) == {}
