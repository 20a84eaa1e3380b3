"""Folds as reports of one trial: what they add up to, and what a trial teaches that was stopped on the way."""

import math
from typing import Any

import pytest
from tests.study.races import raced
from tests.study.story import Story

from bayesd import audit
from bayesd.replay import event_of
from bayesd_schemas.study import StudySpec

SCORES = [0.5, 0.7, 0.6, 0.8]


def story(**more: Any) -> Story:
    return Story(**{"folds": {"count": 4}, "direction": "maximize", "metric": "f1", **more})


def race(it: Story, number: int, scores: list[float], **tell: Any) -> Any:
    it.ask("w1", id=f"a{number}")
    for step, score in enumerate(scores):
        it.report("w1", number, step, score)
    facts, letters = it.tell("w1", number, **tell)
    it.check()
    return next((data for type, _, data in facts if type.startswith("trial.") and "fence" in data and "worker" not in
                 data), letters)


@pytest.mark.parametrize("tell", [{}, {"value": 0.65}, {"value": 0.65 * (1 + 1e-15)}, {"folds": SCORES},
                                  {"folds": {"f1": SCORES}}])
def test_all_folds_that_were_reported_are_the_result(tell: dict[str, Any]) -> None:
    it = story()
    data = race(it, 1, SCORES, **tell)
    trial = it.desk.state.studies["s"].trials[0]
    assert trial.values == (0.65,)
    assert trial.se == pytest.approx(math.sqrt(math.fsum((x - 0.65) ** 2 for x in SCORES) / 3 / 4))
    assert data["folds"] in (SCORES, {"f1": SCORES})
    assert it.desk.state.studies["s"].history[0].se == trial.se


def test_a_value_that_is_not_the_mean_is_the_workers_word() -> None:
    data = race(story(), 1, SCORES, value=0.9)
    assert "folds" not in data
    assert data["values"] == {"f1": 0.9}


def test_folds_that_were_told_and_not_reported_are_kept_for_comparison() -> None:
    it = story()
    race(it, 1, [], folds=SCORES)
    assert it.desk.state.studies["s"].trials[0].reports == {step: {"f1": score} for step, score in enumerate(SCORES)}


def test_without_a_value_and_with_a_fold_missing_the_tell_is_refused_with_words() -> None:
    it = story()
    letters = race(it, 1, SCORES[:3])
    assert letters[0][2]["status"] == "rejected"
    assert letters[0][2]["reason"] == "bad-field"
    assert it.desk.state.studies["s"].trials[0].status == "running"


def test_without_folds_in_the_study_file_reports_are_no_result() -> None:
    it = Story()
    assert race(it, 1, SCORES)[0][2]["status"] == "rejected"


def test_several_objectives_tell_folds_by_name() -> None:
    it = Story(objectives=[{"name": "precision", "direction": "maximize"}, {"name": "recall", "direction": "maximize"}],
               folds={"count": 2})
    data = race(it, 1, [], folds={"precision": [0.5, 0.7], "recall": [0.2, 0.4], "extra": [1, 2]})
    assert data["values"] == {"precision": 0.6, "recall": pytest.approx(0.3), "extra": 1.5}
    trial = it.desk.state.studies["s"].trials[0]
    assert list(trial.values or ()) == pytest.approx([0.6, 0.3])
    assert trial.se == pytest.approx(0.1)


def test_a_stopped_trial_teaches_its_difference_to_the_incumbent_and_how_sure_that_is() -> None:
    it = story()
    race(it, 1, SCORES)
    race(it, 2, [0.4, 0.65, 0.5, 0.71])            # what is usual: a difference of 0.085 that varies little
    data = race(it, 3, [0.4, 0.6], state="pruned")
    # Two folds: 0.05 and 0.075 worse than the mean of the two, which is 0.6075. These folds are harder than the others,
    # and that is not held against it.
    assert data["estimate"]["values"] == {"f1": pytest.approx(0.545)}
    assert data["estimate"]["against"] == 1
    assert data["estimate"]["folds"] == 2
    seen = it.desk.state.studies["s"].history[-1]
    first = it.desk.state.studies["s"].trials[0]
    assert seen.values == (data["estimate"]["values"]["f1"],)
    assert first.se is not None
    assert seen.se is not None
    assert seen.se > first.se                       # though its own two differences are the same


def test_a_trial_without_an_incumbent_teaches_the_mean_of_its_folds() -> None:
    it = story()
    data = race(it, 1, [0.4, 0.6], state="pruned")
    assert data["estimate"] == {"values": {"f1": 0.5}, "folds": 2, "se": pytest.approx(0.1)}


def test_fewer_folds_leave_more_open() -> None:
    it = story()
    race(it, 1, SCORES)
    race(it, 2, [0.4, 0.65, 0.5, 0.71])
    errors = [race(it, 3 + k, [0.45, 0.6, 0.55][:k + 1], state="pruned")["estimate"]["se"] for k in range(3)]
    assert errors == sorted(errors, reverse=True)


def test_a_fold_beyond_the_bounds_is_a_failure() -> None:
    it = story(bounds=[0, 1])
    assert race(it, 1, [], folds={"f1": [0.5, 1.5]})["class"] == "other"


def test_a_race_is_stopped_by_an_event_that_says_why() -> None:
    it = story(prune={"rule": "race", "min_folds": 2})
    race(it, 1, SCORES)
    race(it, 2, [0.48, 0.69, 0.57, 0.8])
    race(it, 3, [0.49, 0.7, 0.58, 0.79])
    it.ask("w1", id="a4")
    facts, letters = it.report("w1", 4, 0, 0.1)
    assert [type for type, _, _ in facts] == ["trial.reported"]
    facts, letters = it.report("w1", 4, 1, 0.3)
    stopped = facts[1][2]
    assert stopped["rule"] == "race"
    assert (stopped["against"], stopped["paired"], stopped["folds"]) == (1, True, 2)
    assert stopped["beside"] == [1, 3, 2]
    hard = (0.49 + 0.695) / 2 - (0.65 + 0.64 + 0.635) / 3        # the first two folds, by the mean of the three
    assert stopped["difference"] == pytest.approx(0.65 - (0.2 - hard), abs=0.002)
    assert stopped["value"] == pytest.approx(0.2)
    assert stopped["threshold"] == pytest.approx(stopped["value"] + stopped["difference"])
    assert stopped["chance"] < stopped["bound"] == pytest.approx(0.05 * 2 / 3, rel=1e-3)
    assert letters[0][2]["stop"] == "pruned"
    facts, _ = it.tell("w1", 4, state="pruned")
    assert facts[0][2]["estimate"]["values"]["f1"] == pytest.approx(0.65 - stopped["difference"])
    it.check()


@pytest.mark.parametrize(("folds", "prune", "words"), [
    (None, {"rule": "race"}, "has to say how many"),
    ({"count": 3}, {"rule": "race", "min_folds": 3}, "ever be stopped"),
])
def test_a_race_needs_folds(folds: Any, prune: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StudySpec.model_validate({"name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}},
                                  "folds": folds, "prune": prune})


def judged(it: Story, type: str, **change: Any) -> set[str]:
    """What an audit says of the events of a type when something in them was changed."""
    rows = [event_of(row.body, row.hash) for row in it.rows]
    plan = audit.Plan()
    for event in rows:
        plan.note(event)
    cases = [case for case in plan.cases if rows[case.seq - 1].type == type]
    assert len(cases) == 2
    edited = [event._replace(data={**event.data, **change}) if event.type == type else event for event in rows]
    return {audit.judge(moment, "").outcome for moment in audit.moments(edited, cases)}


def test_an_audit_makes_the_stops_of_a_race_and_what_they_teach_again() -> None:
    it = raced()
    assert judged(it, "trial.stopped") == judged(it, "trial.pruned") == {"same"}
    for name, value in (("chance", 0.5), ("bound", 0.5), ("against", 2), ("beside", [1])):
        assert judged(it, "trial.stopped", **{name: value}) == {"diverged"}
    assert judged(it, "trial.pruned", estimate={"values": {"f1": 0.9}, "folds": 1}) == {"diverged"}
