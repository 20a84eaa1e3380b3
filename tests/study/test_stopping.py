"""Stop rules: what fires, what is on record of it, what takes it back, and what an audit says of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from tests.study.story import Story

from bayesd import audit
from bayesd.replay import event_of
from bayesd.study import rules, snapshot, stopping
from bayesd.study.problem import Convergence, Suggestion
from bayesd.why.study import study_page
from bayesd.why.witness import Witness
from bayesd_schemas.study import Stop, StudySpec

LITTLE = Convergence(results=40, barren=15, steady=2, best=1.0, noise=0.1, spread=10.0, improvement=0.05,
                     expected_regret=0.1, regret=0.9)
"""Of a search that has just converged."""


def told(values: Sequence[float | None], **spec: Any) -> Story:
    """A story in which one worker asks and tells these values in turn, as long as it gets trials."""
    story = Story(**spec)
    for number, value in enumerate(values, start=1):
        story.ask("w1", f"a{number}")
        if number <= len(story.desk.state.studies["s"].trials):
            story.tell("w1", number, **({"state": "fail"} if value is None else {"value": value}))
    return story


def fired(story: Story) -> tuple[str, dict[str, Any]] | None:
    said = story.desk.state.studies["s"].stopping
    return None if said is None else (said["rule"], said["numbers"])


def audited(story: Story, change: dict[str, Any] | None = None) -> audit.Verdict:
    """What an audit says of the stop of a log in which it was changed before it was hashed."""
    events, plan = [], audit.Plan()
    for row in story.rows:
        body = orjson.loads(row.body)
        if body["type"] == "study.stopping":
            body["data"].update(change or {})
        events.append(event_of(orjson.dumps(body), row.hash))
        plan.note(events[-1])
    verdict, = (each for each in (audit.judge(moment, "") for moment in audit.moments(events, plan.cases))
                if each.what == "stop")
    return verdict


def test_a_target_closes_the_study_and_says_by_which_trial() -> None:
    story = told([5.0, 3.0, 1.0, 2.0], stop={"target": 1.5})
    study = story.desk.state.studies["s"]
    assert (study.closed_by, study.used) == ("target", 3)
    assert fired(story) == ("target", {"trial": 3, "value": 1.0, "target": 1.5})
    story.check()


@pytest.mark.parametrize(("direction", "values"), [("minimize", [5.0, 3.0, 4.0, 2.9, 3.0, 9.0]),
                                                   ("maximize", [1.0, 3.0, 2.0, 3.1, 3.0, 0.0])])
def test_patience_counts_complete_trials_since_the_best_moved_by_more_than_min_delta(direction: str,
                                                                                   values: list[float]) -> None:
    story = told(values, direction=direction, stop={"patience": 3, "min_delta": 0.25})
    assert (story.desk.state.studies["s"].closed_by, story.desk.state.studies["s"].used) == ("patience", 5)
    assert fired(story) == ("patience", {"trial": 2, "value": 3.0, "barren": 3, "patience": 3, "min_delta": 0.25})
    assert told(values, direction=direction, stop={"patience": 3}).desk.state.studies["s"].status == "open"


def test_failures_do_not_wear_out_patience() -> None:
    story = told([1.0, None, None, None, 2.0], stop={"patience": 2})
    assert (story.desk.state.studies["s"].status, fired(story)) == ("open", None)


def test_running_trials_finish_and_nothing_new_is_handed_out() -> None:
    story = Story(stop={"target": 1.0})
    story.ask("w1", "a", n=3)
    facts, _ = story.tell("w1", 1, value=0.5)
    assert [type for type, *_ in facts] == ["trial.completed", "study.stopping"]
    assert story.ask("w2", "b") == ([], [("w2", "receipt", {"id": "b", "run": "w2-r1", "status": "waiting",
                                                          "reason": "budget"})])
    story.tell("w1", 2, value=3.0)
    facts, letters = story.tell("w1", 3, value=0.25)
    assert [type for type, *_ in facts] == ["trial.completed", "study.closed"]
    assert facts[1][2] == {"rule": "target", "running": "finish"}
    assert letters[-1] == ("w2", "receipt", {"id": "b", "run": "w2-r1", "status": "closed", "reason": "target"})
    story.check()


def test_the_leaders_are_confirmed_before_a_stopped_study_closes() -> None:
    story = told([5.0, 1.0], stop={"target": 1.0}, confirm={"top": 1, "repeats": 1})
    study = story.desk.state.studies["s"]
    assert (study.status, study.confirm) == ("open", [2])
    story.tick(60.0)
    story.ask("w1", "again")
    story.tell("w1", 3, value=2.0)
    assert (study.closed_by, study.winner and study.winner["trial"]) == ("target", 2)


def test_an_amendment_takes_a_stop_back_and_patience_counts_from_there() -> None:
    story = Story(stop={"patience": 2})
    story.ask("w1", "a", n=4)
    for number in (1, 2, 3):
        story.tell("w1", number, value=float(number))
    study = story.desk.state.studies["s"]
    assert study.stopping is not None
    story.request("op", "study.amend", changes={"budget": {"trials": 50}})
    assert study.stopping is None
    story.tell("w1", 4, value=4.0)
    story.ask("w1", "b")
    assert (study.status, len(study.trials)) == ("open", 5)
    story.tell("w1", 5, value=5.0)
    assert (study.closed_by, fired(story)) == ("patience", ("patience", {
        "trial": 1, "value": 1.0, "barren": 2, "patience": 2, "min_delta": 0.0}))
    story.check()


def test_a_void_takes_back_a_stop_that_rested_on_it() -> None:
    story = Story(stop={"target": 1.0})
    story.ask("w1", "a", n=2)
    story.tell("w1", 1, value=0.5)
    story.request("op", "trial.void", trial=1, reason="a bad cable")
    assert story.desk.state.studies["s"].stopping is None
    story.tell("w1", 2, value=3.0)
    assert story.ask("w1", "b")[0][0][0] == "trial.proposed"
    story.check()


def test_a_snapshot_keeps_what_fired() -> None:
    story = Story(stop={"target": 1.0})
    story.ask("w1", "a", n=2)
    story.tell("w1", 1, value=0.5)
    loaded = snapshot.load(*snapshot.dump(story.desk.state))
    assert loaded is not None
    assert loaded.studies["s"].stopping == {
        "rule": "target", "numbers": {"trial": 1, "value": 0.5, "target": 1.0}, "as_of": story.desk.state.seq - 1}


@pytest.mark.parametrize(("change", "rule"), [
    ({}, "converged"), ({"steady": 1}, None), ({"barren": 14}, None), ({"results": 19}, None),
    ({"cells": 4.1}, None), ({"cells": 4.0}, "converged")])
def test_converged_asks_for_a_while_without_anything_to_gain(change: dict[str, Any], rule: str | None) -> None:
    found = stopping.by_model(Stop(converged=True), replace(LITTLE, **change))
    assert (found and found[0]) == rule


@pytest.mark.parametrize(("stop", "at_most"), [
    ({"improvement": 0.6}, 0.06), ({"improvement": 0.4}, None), ({"regret": 1.0}, 1.0), ({"regret": 0.5}, None)])
def test_improvement_is_held_against_the_noise_and_regret_against_a_value(stop: dict[str, float],
                                                                          at_most: float | None) -> None:
    found = stopping.by_model(Stop.model_validate(stop), LITTLE)
    assert (found and found[1]["at_most"]) == (at_most and pytest.approx(at_most))


def test_what_the_model_says_comes_with_a_suggestion_and_closes_the_study() -> None:
    story = Story(method="bayes", stop={"converged": True})
    story.thinks = False
    story.ask("w1", "a")
    order, = rules.orders(story.desk)
    assert order.problem.judged
    rules.supply(story.desk, order, Suggestion((), convergence=LITTLE))
    facts, letters = story.said()
    assert [(type, data.get("rule")) for type, _, data in facts] == [
        ("study.stopping", "converged"), ("study.closed", "converged")]
    assert facts[0][2]["numbers"]["regret"] == 0.9
    assert letters == [("w1", "receipt", {"id": "a", "run": "w1-r1", "status": "closed", "reason": "converged"})]


def test_what_the_model_said_of_another_moment_stops_nothing() -> None:
    story = Story(method="bayes", stop={"converged": True})
    story.thinks = False
    story.ask("w1", "a")
    order, = rules.orders(story.desk)
    story.request("op", "study.amend", changes={"lease": {"default_s": 9}})
    rules.supply(story.desk, order, Suggestion((), convergence=LITTLE))
    assert story.desk.state.studies["s"].stopping is None


def test_rules_that_ask_a_model_are_refused_where_there_is_none() -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1}}
    with pytest.raises(ValueError, match="need one objective and surrogate"):
        StudySpec.model_validate({"name": "s", "space": space, "surrogate": "forest", "stop": {"converged": True}})


@pytest.mark.parametrize("stop", [{"target": 1.5}, {"patience": 2}])
def test_an_audit_finds_a_stop_by_results_again_and_a_changed_number(stop: dict[str, Any]) -> None:
    story = told([5.0, 1.0, 2.0, 3.0], stop=stop)
    verdict = audited(story)
    assert (verdict.level, verdict.outcome, verdict.exact) == ("L1", "same", True)
    forged = audited(story, {"as_of": 3})
    assert (forged.outcome, forged.evidence and forged.evidence["differs"]) == ("diverged", ["as_of"])


def test_the_page_of_a_stopped_study_says_which_rule_and_its_numbers() -> None:
    story = told([5.0, 1.0, 2.0, 3.0], stop={"patience": 2})
    seen = Witness("s")
    for row in story.rows:
        seen.see(event_of(row.body, row.hash), row.body)
    page = study_page(seen, story.desk.problem(seen.study)[0], None)
    assert page["reasons"][0]["code"] == "patience"
    assert "2 complete trials in a row brought nothing better than the 1 of trial 2" in page["answer"]
