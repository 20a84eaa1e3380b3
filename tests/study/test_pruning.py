"""Who is stopped at a report, that it is decided once and on record, and what becomes of a worker that goes on."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.study.story import BASE, Letter, Story

from bayesd.study.pruning.quantile import percentile
from bayesd_schemas.study import StudySpec

MEDIAN = {"rule": "median", "startup": 2}
STOP: Letter = ("w3", "stop", {"study": "s", "trial": 3, "fence": 1, "reason": "pruned"})


def reported(curves: dict[int, list[float]], **spec: Any) -> Story:
    """A story in which complete trials reported these curves, their last value told."""
    story = Story(**spec)
    for number, curve in curves.items():
        story.ask(f"w{number}")
        for step, value in enumerate(curve):
            story.report(f"w{number}", number, step, value)
        story.tell(f"w{number}", number, value=curve[-1])
    return story


def stopped() -> Story:
    """Trial 3 is behind the median of two and has been stopped at step 1."""
    story = reported({1: [3.0, 1.0], 2: [5.0, 2.0]}, prune=MEDIAN)
    story.ask("w3")
    assert [type for type, *_ in story.report("w3", 3, 0, 4.0)[0]] == ["trial.reported"]     # at the median
    facts, letters = story.report("w3", 3, 1, 3.5)
    assert facts[1:] == [("trial.stopped", 3, {"fence": 1, "step": 1, "rule": "median", "metric": "value",
                                               "value": 3.5, "threshold": 1.5, "compared": 2})]
    assert letters == [("w3", "receipt", {"id": "r.s.3.1.1", "status": "recorded", "seq": "trial.reported",
                                          "stop": "pruned"}), STOP]
    return story


def test_a_trial_behind_the_median_is_stopped_once_and_its_worker_told() -> None:
    story = stopped()
    facts, letters = story.tell("w3", 3, state="pruned")
    assert [type for type, *_ in facts] == ["trial.pruned"]
    assert "stop" not in letters[0][2]
    assert story.desk.state.studies["s"].history[-1].values == (3.5,)
    story.check()


def test_a_stop_is_said_again_to_who_still_trains_and_not_decided_again() -> None:
    story = stopped()
    story.restart()
    facts, letters = story.report("w3", 3, 1, 3.5)
    assert (facts, letters[0][2]["status"], letters[0][2]["stop"]) == ([], "duplicate", "pruned")
    facts, letters = story.report("w3", 3, 2, 9.0)
    assert [type for type, *_ in facts] == ["trial.reported"]
    assert letters[0][2]["stop"] == "pruned"
    assert STOP in story.beat("w3", (3, 1))[1]
    assert STOP in story.ask("w3")[1]          # with the grant, which may have been lost
    story.check()


def test_a_worker_that_ignores_the_stop_still_delivers() -> None:
    story = stopped()
    assert [type for type, *_ in story.tell("w3", 3, value=0.5)[0]] == ["trial.completed"]
    best = story.desk.state.studies["s"].best
    assert best is not None
    assert best.number == 3
    story.check()


@pytest.mark.parametrize("end", ["expired", "released", "new run"])
def test_a_stopped_trial_without_an_end_is_not_leased_again(end: str) -> None:
    story = stopped()
    if end == "expired":
        facts, _ = story.tick(700.0)
    elif end == "released":
        facts, _ = story.tell("w3", 3, state="released")
    else:
        facts, _ = story.beat("w3", run="w3-r2")
    assert ("trial.pruned", 3, {"fence": 1, "class": "lost"}) in facts
    story.check()


def test_a_result_that_comes_after_all_takes_the_place_of_the_end_without_a_word() -> None:
    story = stopped()
    story.tick(700.0)
    study = story.desk.state.studies["s"]
    assert [seen.values for seen in study.history] == [(1.0,), (2.0,), (3.5,)]
    assert [type for type, *_ in story.tell("w3", 3, value=0.5)[0]] == ["trial.completed"]
    assert [seen.values for seen in study.history] == [(1.0,), (2.0,), (0.5,)]
    story.check()


def test_a_stopped_trial_that_is_held_again_is_told_so() -> None:
    story = stopped()
    story.tick(700.0)
    facts, letters = story.beat("w3", (3, 1))
    assert [type for type, *_ in facts] == ["run.began", "lease.held"]
    assert STOP in letters
    assert [type for type, *_ in story.tell("w3", 3, state="pruned")[0]] == ["trial.pruned"]
    story.check()


def test_startup_and_warmup_let_trials_run() -> None:
    for spec in ({"startup": 3}, {"startup": 2, "warmup": 2}):
        story = reported({1: [3.0, 1.0], 2: [5.0, 2.0]}, prune={"rule": "median", **spec})
        story.ask("w3")
        story.report("w3", 3, 0, 40.0)
        assert [type for type, *_ in story.report("w3", 3, 1, 35.0)[0]] == ["trial.reported"]


def test_a_voided_trial_is_no_yardstick_any_more() -> None:
    story = reported({1: [1.0], 2: [2.0], 3: [3.0]}, prune={"rule": "median", "startup": 1})
    story.ask("w4")
    story.request("op", "trial.void", id="v", trial=1, reason="x")
    story.request("op", "trial.void", id="v2", trial=2, reason="x")
    facts, _ = story.report("w4", 4, 0, 2.5)                    # held against 3 alone, it is better
    assert [type for type, *_ in facts] == ["trial.reported"]
    story.check()


def test_more_is_better_the_other_way_round() -> None:
    story = reported({1: [0.5], 2: [0.75]}, prune=MEDIAN, metric="accuracy", direction="maximize")
    story.ask("w3")
    facts, _ = story.report("w3", 3, 0, 0.5)
    assert (facts[1][2]["value"], facts[1][2]["threshold"]) == (0.5, 0.625)


def test_a_report_that_is_no_number_is_behind_all() -> None:
    story = reported({1: [0.5], 2: [0.75]}, prune=MEDIAN)
    story.ask("w3")
    facts, _ = story.report("w3", 3, 0, "nan")
    assert facts[1][2]["rule"] == "median"
    assert "value" in facts[1][2]
    assert facts[1][2]["value"] is None
    story.check()


def test_percentiles_are_between_values() -> None:
    assert percentile([1.0, 2.0, 4.0], 50) == 2.0
    assert percentile([1.0, 2.0, 4.0, 8.0], 50) == 3.0
    assert percentile([0.0, 4.0, 8.0, 12.0, 16.0], 25) == 4.0
    assert percentile([7.0], 25) == 7.0


def test_the_study_file_says_what_does_not_fit() -> None:
    with pytest.raises(ValidationError, match="metric says which one"):
        StudySpec.model_validate({**BASE, "objectives": [{"name": "a"}, {"name": "b"}], "prune": {"rule": "median"}})
    with pytest.raises(ValidationError, match="none of the objectives"):
        StudySpec.model_validate({**BASE, "metric": "loss", "prune": {"rule": "median", "metric": "a"}})
    with pytest.raises(ValidationError, match="percentile is for"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "median", "percentile": 10}})
