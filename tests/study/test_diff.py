"""What changed between two moments, told as stories."""

from typing import Any

from tests.study.story import Story

from bayesd.replay import event_of
from bayesd.study.diff import Diff
from bayesd.study.fold import apply, replay


def between(story: Story, a: int, b: int | None = None) -> dict[str, Any]:
    events = [event_of(row.body, row.hash) for row in story.rows[:b]]
    diff = Diff(replay(events[:a]))
    after = replay(events[:a])
    for event in events[a:]:
        diff.note(event)
        apply(after, event)
    return diff.against(after)


def only(diff: dict[str, Any]) -> dict[str, Any]:
    (study,) = diff["studies"]
    return dict(study)


def test_between_a_moment_and_itself_nothing_changed() -> None:
    story = Story()
    story.ask("w1")
    story.tell("w1", 1, value=1.0)
    diff = between(story, len(story.rows))
    assert (diff["events"], diff["studies"]) == ({}, [])
    assert diff["workers"] == {"came": [], "began_again": [], "revoked": []}


def test_outcomes_states_and_the_best_before_and_after() -> None:
    story = Story()
    story.ask("w1", n=3)
    story.tell("w1", 1, value=3.0)
    a = len(story.rows)
    story.tell("w1", 2, value=1.5, seconds=4.0, cost=2.0)
    story.tell("w1", 3, state="fail")
    story.ask("w2")
    study = only(between(story, a))
    assert [study["trials"][state] for state in ("complete", "fail", "running")] == [[1, 2], [0, 1], [2, 1]]
    assert [(each["trial"], each["state"], each["class"]) for each in study["outcomes"]] == [
        (2, "complete", None), (3, "fail", "crash")]
    assert [best["value"] for best in study["best"]] == [3.0, 1.5]
    assert study["gained"] == 1.5
    assert (study["cost"], study["told_seconds"]) == ([0.0, 2.0], [0.0, 4.0])
    assert between(story, a)["workers"]["came"] == ["w2"]
    # The other way of better.
    story = Story(direction="maximize")
    story.ask("w1", n=2)
    story.tell("w1", 1, value=1.0)
    a = len(story.rows)
    story.tell("w1", 2, value=4.0)
    assert only(between(story, a))["gained"] == 3.0


def test_an_amendment_is_told_key_by_key() -> None:
    story = Story(budget={"trials": 9})
    a = len(story.rows)
    story.request("op", "study.amend", changes={"budget": {"trials": 12, "cost": 5}, "tags": ["gpu"]})
    assert only(between(story, a))["spec"] == {
        "budget.cost": [None, 5.0], "budget.trials": [9, 12], "tags": [None, ["gpu"]]}


def test_a_voided_result_is_told_with_its_value_and_reason() -> None:
    story = Story()
    story.ask("w1", n=2)
    story.tell("w1", 1, value=0.5)
    story.tell("w1", 2, value=2.0)
    a = len(story.rows)
    story.request("op", "trial.void", trial=1, reason="a bad cable")
    study = only(between(story, a))
    assert study["voided"] == [{"trial": 1, "was": "complete", "values": {"value": 0.5}, "reason": "a bad cable"}]
    assert (study["gained"], study["outcomes"]) == (-1.5, [])
    assert only(between(story, 2))["voided"] == [
        {"trial": 1, "was": None, "values": None, "reason": "a bad cable"}]


def test_new_studies_and_forks_revoked_workers_and_another_run() -> None:
    story = Story()
    story.beat("w1")
    story.beat("w2")
    story.ask("w1")
    story.tell("w1", 1, value=0.5)
    a = len(story.rows)
    story.request("op", "study.fork", id="f", **{"as": "t"})
    story.request("op", "worker.revoke", id="r", worker="w2", reason="it lies")
    story.beat("w1", run="w1-r2")
    diff = between(story, a)
    study = only(diff)
    assert (study["study"], study["is_new"], study["origin"]["study"], study["imported"]) == ("t", True, "s", [0, 1])
    assert study["state"] == [None, "open"]
    assert diff["workers"] == {"came": [], "began_again": ["w1"], "revoked": [{"worker": "w2", "reason": "it lies"}]}


def test_a_late_outcome_and_the_end_of_a_study() -> None:
    story = Story(retry={"lost": 3})
    story.ask("w1")
    story.tick(601)
    story.ask("w2")
    a = len(story.rows)
    story.tell("w1", 1, value=0.1)
    story.request("op", "study.close")
    study = only(between(story, a))
    assert (study["late"], study["state"], study["closed_by"]) == (1, ["open", "closed"], "operator")
    assert study["elapsed_s"][1] >= study["elapsed_s"][0]
