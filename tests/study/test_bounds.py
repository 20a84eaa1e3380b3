"""What a metric can be: a value outside its bounds is a failure on record, never a number to learn from."""

import json
import tomllib
from typing import Any

import pytest
from pydantic import ValidationError
from tests.study.story import Story, receipt

from bayesd.cli.studies import _bounds
from bayesd_schemas.study import StudySpec

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}
TWO: dict[str, Any] = {"objectives": [{"name": "loss", "bounds": [0, None]}, {"name": "size", "direction": "maximize"}]}


def spec(**fields: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "s", "space": SPACE, **fields})


@pytest.mark.parametrize(("told", "words"), [
    ({"value": 1.5}, "accuracy is 1.5, but by the study's bounds it is at least 0.0 and at most 1.0"),
    ({"value": 1.0000000000000002}, "accuracy is 1.0000000000000002, but"),
    ({"values": {"accuracy": -0.1, "size": 7}}, "accuracy is -0.1, but"),
    ({"folds": [0.5, 1.5, 0.5]}, "in a fold, accuracy is 1.5, but"),         # their mean is inside
    ({"value": 2.0, "state": "pruned"}, "accuracy is 2.0, but"),
])
def test_a_value_outside_is_a_failure_on_record(told: dict[str, Any], words: str) -> None:
    story = Story(metric="accuracy", direction="maximize", bounds=[0, 1])
    story.ask("w1")
    facts, letters = story.tell("w1", 1, **told)
    (type, trial, data), = facts
    assert (type, trial, data["class"]) == ("trial.failed", 1, "other")
    assert data["values"]["accuracy"] is None
    assert data["error"].startswith(words)
    assert letters == [receipt("w1", "t.s.1.1", "recorded", seq="trial.failed")]
    assert story.tell("w1", 1, **told)[1] == [receipt("w1", "t.s.1.1", "duplicate", seq="trial.failed")]
    study = story.desk.state.studies["s"]
    assert [(seen.trial, seen.values) for seen in study.history] == [(1, None)]
    story.restart()
    assert [(seen.trial, seen.values) for seen in story.desk.state.studies["s"].history] == [(1, None)]


@pytest.mark.parametrize("told", [
    {"value": 0}, {"value": 1}, {"folds": [0.1, 0.1, 0.1]}, {"folds": [1, 1, 1]},
    {"values": {"accuracy": 0.5, "size": 1e9}}])
def test_an_end_is_inside_and_other_metrics_are_free(told: dict[str, Any]) -> None:
    story = Story(metric="accuracy", bounds=[0, 1])
    story.ask("w1")
    assert story.tell("w1", 1, **told)[0][0][0] == "trial.completed"


def test_nan_is_nonfinite_and_a_failure_keeps_its_class() -> None:
    story = Story(metric="accuracy", bounds=[0, 1])
    story.ask("w1", n=2)
    assert story.tell("w1", 1, value=None)[0][0][2]["class"] == "nonfinite"
    failed: dict[str, Any] = {"state": "fail", "value": 7, "class": "oom"}
    assert story.tell("w1", 2, **failed)[0][0][2]["class"] == "oom"


def test_a_late_outcome_outside_is_no_observation() -> None:
    story = Story(metric="accuracy", bounds=[0, 1], retry={"lost": 0})
    story.ask("w1")
    story.tick(700.0)
    facts, _ = story.tell("w1", 1, value=9)
    assert [(type, data["class"]) for type, _, data in facts] == [("trial.failed", "other")]
    assert all(seen.values is None for seen in story.desk.state.studies["s"].history)


def test_a_report_outside_is_rejected_and_its_step_stays_free() -> None:
    story = Story(metric="accuracy", bounds=[0, 1])
    story.ask("w1")
    facts, ((_, kind, body),) = story.report("w1", 1, step=0, value=3.0)
    assert (facts, kind, body["status"], body["reason"]) == ([], "receipt", "rejected", "bad-field")
    assert story.report("w1", 1, step=0, value=0.3)[0][0][0] == "trial.reported"


def test_one_of_several_objectives() -> None:
    story = Story(**TWO)
    story.ask("w1", n=2)
    assert story.tell("w1", 1, values={"loss": 3, "size": -1e9})[0][0][0] == "trial.completed"
    type, _, data = story.tell("w1", 2, values={"loss": -1, "size": 2})[0][0]
    assert (type, data["error"]) == ("trial.failed", "loss is -1.0, but by the study's bounds it is at least 0.0")


def test_bounds_are_amended_for_what_is_told_from_then_on() -> None:
    story = Story(metric="accuracy", bounds=[0, 1])
    story.ask("w1", n=3)
    story.tell("w1", 1, value=55)
    assert story.request("op", "study.amend", changes={"bounds": [0, 100]})[1][0][2]["status"] == "ok"
    assert story.tell("w1", 2, value=55)[0][0][0] == "trial.completed"
    assert story.desk.state.studies["s"].trials[0].status == "fail"             # on record as it was
    assert story.request("op", "study.amend", id="q2", changes={"bounds": None})[1][0][2]["status"] == "ok"
    assert story.tell("w1", 3, value=-55)[0][0][0] == "trial.completed"


def test_of_objectives_only_bounds_are_amended() -> None:
    story = Story(**TWO)
    free = [{"name": "loss"}, {"name": "size", "direction": "maximize"}]
    assert story.request("op", "study.amend", changes={"objectives": free})[1][0][2]["status"] == "ok"
    turned = [{"name": "loss"}, {"name": "size"}]
    reply = story.request("op", "study.amend", id="q2", changes={"objectives": turned})[1][0][2]
    assert (reply["status"], reply["error"]["key"]) == ("error", "objectives")


@pytest.mark.parametrize(("fields", "words"), [
    ({"bounds": [1, 0]}, "not below"), ({"bounds": [1, 1]}, "not below"), ({"bounds": [None, None]}, "both ends"),
    ({"bounds": [float("inf"), 2]}, "finite"), ({"bounds": [0]}, "bounds"), ({"bounds": ["a", 1]}, "number"),
    ({"bounds": [0, 1], "objectives": [{"name": "a"}]}, "in each"),
    ({"objectives": [{"name": "a", "bounds": [3, 2]}]}, "not below")])
def test_what_bounds_may_not_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**fields)


def test_an_open_end_in_toml_and_in_json_is_the_same() -> None:
    file = tomllib.loads("bounds = [0.0, inf]")
    assert spec(**file) == spec(bounds=[0, None])
    assert json.loads(spec(**file).model_dump_json(exclude_unset=True))["bounds"] == [0, None]
    assert spec(bounds=[float("-inf"), 1]).goals[0].bounds == (None, 1)


def test_people_see_them() -> None:
    said = [goal.model_dump(mode="json") for goal in spec(**TWO).goals]
    assert [_bounds(goal) for goal in said] == [" (at least 0)", ""]
    assert _bounds({"bounds": [0, 1]}) == " (from 0 to 1)"
    assert _bounds({"bounds": [None, 1]}) == " (at most 1)"
