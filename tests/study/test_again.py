"""A point that somebody wants measured again: who gets it, what counts, and what becomes of its values."""

from typing import Any

import pytest
from tests.study.story import Story

from bayesd import audit, whatif, winner
from bayesd.replay import event_of
from bayesd.study.pooled import pooled
from bayesd_schemas.space import Params


def measured(**spec: Any) -> Story:
    story = Story(**{"budget": {"trials": 3}, **spec})
    for number, value in ((1, 5.0), (2, 1.0)):
        story.ask("w1", f"a{number}")
        story.tell("w1", number, value=value)
    return story


def enqueue(story: Story, id: str = "q1", **args: Any) -> Any:
    return story.request("ann", "study.enqueue", id=id, **args)


def test_it_goes_before_any_new_point_and_no_budget_counts_it() -> None:
    story = measured()
    enqueue(story, again=2, repeats=2)
    study = story.desk.state.studies["s"]
    facts, letters = story.ask("w1", "b", n=3)
    assert [(trial, data["sampler"], data.get("of")) for type, trial, data in facts if type == "trial.proposed"] == [
        (3, "again", 2), (4, "again", 2), (5, "random", None)]
    assert [body.get("repeat") for _, kind, body in letters if kind == "grant"] == [1, 2, None]
    assert (study.used, study.remeasure) == (3, [])
    story.check()


def test_all_evaluations_are_learned_and_the_luckiest_does_not_lead() -> None:
    story = measured()
    enqueue(story, again=2, repeats=2)
    story.ask("w2", "b", n=2)
    story.tell("w2", 3, value=0.5)
    story.tell("w2", 4, value=6.0)
    study = story.desk.state.studies["s"]
    assert [(seen.trial, seen.values) for seen in study.history] == [(1, (5.0,)), (2, (1.0,)), (3, (0.5,)), (4, (6.0,))]
    assert study.best is study.trials[1]
    assert pooled(study)[2].mean == 2.5
    assert pooled(study)[2].evaluations == (2, 3, 4)
    story.check()


def test_a_point_and_its_repeats_are_one_candidate_with_the_mean_of_all() -> None:
    story = measured()
    enqueue(story, again=2, repeats=2)
    story.ask("w2", "b", n=2)
    story.tell("w2", 3, value=2.0)
    story.tell("w2", 4, value=3.0)
    study = story.desk.state.studies["s"]
    problem = story.desk.problem(study)[0]
    chosen = winner.of(study, problem, "best")
    assert (chosen["trial"], chosen["value"], chosen["n"], chosen["evaluations"]) == (2, 2.0, 3, [2, 3, 4])
    assert chosen["se"] == pytest.approx(1 / 3**0.5)
    assert "2 points, each the mean of its evaluations, 4 in all" in chosen["reason"]
    # Before the repeats were told, the trial alone spoke for its point.
    then = whatif._winner(whatif.known(study, problem), {1, 2}, "best")
    assert (then["value"], then["se"], then["evaluations"]) == (1.0, None, [2])


def test_a_lucky_point_that_its_repeats_do_not_bear_out_is_not_the_best() -> None:
    story = measured()
    enqueue(story, again=2, repeats=2)
    story.ask("w2", "b", n=2)
    story.tell("w2", 3, value=9.0)
    story.tell("w2", 4, value=11.0)
    study = story.desk.state.studies["s"]
    chosen = winner.of(study, story.desk.problem(study)[0], "best")
    assert (chosen["trial"], chosen["value"], chosen["n"]) == (1, 5.0, 1)
    assert study.best is study.trials[1]


def test_trials_that_were_proposed_at_the_same_point_are_one_candidate() -> None:
    one: Params = {"x": 1, "k": "a"}
    other: Params = {"x": True, "k": "a"}
    same: Params = {"k": "a", "x": 1}
    found = winner.candidates([winner.Entry(trial, params, value, se, seconds, (value, -value))
                               for trial, params, value, se, seconds in (
                                   (1, one, 4.0, 0.3, 2.0), (2, other, 1.0, None, None), (5, same, 2.0, 0.4, 4.0))])
    assert [(entry.trial, entry.value, entry.values, entry.seconds, entry.evaluations) for entry in found] == [
        (1, 3.0, (3.0, -3.0), 3.0, (1, 5)), (2, 1.0, (1.0, -1.0), None, (2,))]
    assert found[0].se == pytest.approx(1.0)        # the two differ by more than their folds say


def test_a_repeat_of_a_repeat_is_one_of_the_first() -> None:
    story = measured()
    enqueue(story, again=2)
    story.ask("w1", "b")
    story.tell("w1", 3, value=1.5)
    enqueue(story, "q2", again=3)
    assert story.desk.state.studies["s"].remeasure == [2]
    story.check()


def test_a_study_does_not_close_before_its_repeats_are_measured_and_a_confirmation_ignores_them() -> None:
    story = measured(budget={"trials": 2}, confirm={"top": 1, "repeats": 1})
    study = story.desk.state.studies["s"]
    assert study.confirm == [2]
    enqueue(story, again=1)
    story.ask("w2", "b", n=2)
    assert [trial.sampler for trial in study.trials[2:]] == ["confirm", "again"]
    story.tell("w2", 3, value=2.0)
    facts, _ = story.tell("w2", 4, value=0.0)
    assert [type for type, *_ in facts] == ["trial.completed", "study.closed"]
    assert study.winner is not None
    assert [each["trial"] for each in study.winner["leaders"]] == [2]
    story.check()


@pytest.mark.parametrize(("args", "code", "words"), [
    ({"again": 9}, "unknown-trial", "2 trials"),
    ({"again": 1, "repeats": 0}, "bad-field", "from 1 to"),
    ({"again": 1, "params": {"x": 1}}, "bad-field", "no place"),
    ({"again": "1"}, "bad-field", "again"),
])
def test_what_cannot_be_measured_again_is_refused_in_words(args: dict[str, Any], code: str, words: str) -> None:
    story = measured()
    facts, letters = enqueue(story, **args)
    assert facts == []
    error = letters[0][2]["error"]
    assert error["code"] == code
    assert words in error["message"]


def test_a_void_point_leaves_the_queue_and_is_refused_and_so_is_a_pending_one() -> None:
    story = measured()
    enqueue(story, again=1)
    story.request("ann", "trial.void", id="v", trial=1, reason="a bad disk")
    assert story.desk.state.studies["s"].remeasure == []
    story.ask("w1", "b")
    for number, words in ((1, "declared void"), (3, "no outcome yet")):
        _, letters = enqueue(story, f"q{number}x", again=number)
        assert words in letters[0][2]["error"]["message"]
    story.check()


@pytest.mark.parametrize(("change", "outcome"), [
    ({}, "same"), ({"of": 1}, "diverged"), ({"params": {"x": 7}}, "diverged")])
def test_an_audit_makes_the_repeats_again(change: dict[str, Any], outcome: str) -> None:
    story = measured()
    enqueue(story, again=2)
    story.ask("w1", "b")
    story.tell("w1", 3, value=1.5)
    rows = [event_of(row.body, row.hash) for row in story.rows]
    plan = audit.Plan()
    for event in rows:
        plan.note(event)
    case = next(case for case in plan.cases if rows[case.seq - 1].data.get("sampler") == "again")
    edited = [event._replace(data={**event.data, **change}) if event.seq == case.seq else event for event in rows]
    assert [audit.judge(moment, "").outcome for moment in audit.moments(edited, [case])] == [outcome]
