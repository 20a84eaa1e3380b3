"""A fork begins with what its study knew at a moment, and with nothing else."""

from typing import Any

import orjson
import pytest
from tests.study.story import BASE, Fact, Said, Story

from bayesd.optimize import suggest
from bayesd.replay import event_of
from bayesd.study import admin, rules, snapshot, view
from bayesd.study.desk import Desk, restart
from bayesd.study.fold import replay
from bayesd.study.state import State, Study
from bayesd_schemas import events
from bayesd_schemas.messages import Request


def replied(said: Said) -> tuple[str, Any]:
    status, body = next((body["status"], body) for _, kind, body in said[1] if kind == "reply")
    return status, body["error"] if status == "error" else body["result"]


def past(story: Story, at: int) -> State:
    return replay(event_of(row.body, row.hash) for row in story.rows[:at])


def fork(story: Story, at: int | None = None, id: str = "f1", new: Any = "t", **args: Any) -> Said:
    """A fork as the service does it: `at` an earlier event, on the newest state."""
    request = Request(id=id, verb="study.fork", args={"study": "s", "as": new, **args})
    admin.on_request(story.desk, "op", request, None if at is None else lambda desk, client, request: admin.study_fork(
        desk, client, request, past=past(story, at)))
    return story.said()


def measured(**spec: Any) -> Story:
    """Five trials: 1 complete, 2 failed, 3 complete with folds, 4 pruned behind a report, 5 pending."""
    story = Story(**spec)
    story.ask("w1", n=5)
    story.tell("w1", 1, value=3.0, seconds=2.0, cost=7.0)
    failed: dict[str, Any] = {"state": "fail", "class": "oom"}
    story.tell("w1", 2, **failed)
    story.tell("w1", 3, folds=[1.0, 2.0])
    story.report("w1", 4, 0, 0.5)
    story.tell("w1", 4, state="pruned")
    return story


def imports(facts: list[Fact]) -> list[tuple[int | None, dict[str, Any]]]:
    return [(trial, {key: value for key, value in data.items() if key != "origin"})
            for type, trial, data in facts if type == "trial.imported"]


def test_what_was_known_comes_along_in_its_order_and_what_was_pending_does_not() -> None:
    story = measured(budget={"trials": 5})
    at = len(story.rows)
    facts, letters = fork(story)
    assert facts[0][0] == "study.forked"
    assert facts[0][2]["origin"] == {"study": "s", "at": at, "hash": story.rows[at - 1].hash.hex()}
    assert imports(facts) == [
        (1, {"params": {"x": 1}, "values": {"value": 3}, "seconds": 2}),
        (2, {"params": {"x": 2}, "values": None, "class": "oom"}),
        (3, {"params": {"x": 3}, "values": {"value": 1.5}, "se": 0.5}),
        (4, {"params": {"x": 4}, "values": {"value": 0.5}, "state": "pruned"})]
    status, row = replied((facts, letters))
    assert (status, row["imported"], row["left_out"], row["not_carried"]) == ("ok", 4, 0, 1)
    made = story.desk.state.studies["t"]
    assert made.best is made.trials[2]           # a pruned value is no result, imported or not
    assert [seen.values for seen in made.history] == [seen.values for seen in story.desk.state.studies["s"].history]
    assert (made.used, made.imported, made.cost, made.elapsed_s) == (0, 4, 0.0, 0.0)
    assert view.trial_page(made.trials[1])["origin"] == {"study": "s", "trial": 2}
    story.check()


def test_a_fork_at_an_earlier_event_knows_no_later_one() -> None:
    story = measured()
    first = next(row.seq for row in story.rows if row.type == "trial.completed")
    facts, _ = fork(story, at=first)
    assert [trial for trial, _ in imports(facts)] == [1]
    origin = story.desk.state.studies["t"].origin
    assert origin is not None
    assert (origin.at, origin.hash) == (first, story.rows[first - 1].hash.hex())
    story.check()


def test_a_copy_is_answered_from_the_event_and_a_name_is_used_once() -> None:
    story = measured()
    fork(story)
    before = len(story.rows)
    _, result = replied(fork(story))
    assert result == {"seq": next(row.seq for row in story.rows if row.type == "study.forked"), "event": "study.forked",
                      "again": True}
    assert replied(fork(story, id="f2"))[1]["code"] == "name-used"
    assert len(story.rows) == before


def test_it_is_written_in_one_commit() -> None:
    story = measured()
    admin.on_request(story.desk, "op", Request(id="f", verb="study.fork", args={"study": "s", "as": "t"}))
    assert [row.type for row in story.desk.take_rows()] == ["study.forked"] + 4 * ["trial.imported"]


def test_only_own_trials_use_the_budget_up() -> None:
    story = measured(budget={"trials": 5})      # used up where it comes from
    fork(story, changes={"budget": {"trials": 2}})
    story.ask("w2", study="t", id="b1", n=2)
    assert story.desk.state.studies["t"].used == 2
    for number in (5, 6):
        story.tell("w2", number, study="t", value=9.0)
    made = story.desk.state.studies["t"]
    assert (made.status, made.closed_by, len(made.trials)) == ("closed", "trials", 6)
    story.check()


def test_a_voided_import_is_known_to_nobody_and_moves_no_budget() -> None:
    story = measured()
    fork(story)
    story.request("op", "trial.void", id="v", study="t", trial=3, reason="another data set")
    made = story.desk.state.studies["t"]
    assert (made.used, made.imported, made.counts["voided"]) == (0, 3, 1)
    assert made.best is made.trials[0]
    assert 3 not in {seen.trial for seen in made.history}
    assert replied(story.request("op", "trial.cancel", id="c", study="t", trial=1))[0] == "exists"
    story.check()


def test_points_that_the_new_space_has_no_place_for_are_left_out_and_counted() -> None:
    story = measured()
    facts, letters = fork(story, changes={"space": {"x": {"type": "float", "low": 2.5, "high": 100}}})
    assert [data["params"]["x"] for _, data in imports(facts)] == [3, 4]
    _, row = replied((facts, letters))
    assert (row["imported"], row["left_out"]) == (2, 2)
    assert "trial 1: parameter x = 1.0 is not in the space" in row["why_left_out"]
    assert story.desk.state.studies["t"].drawn == 0      # another space is drawn from its beginning
    story.check()


@pytest.mark.parametrize(("args", "code", "words"), [
    ({"changes": {"space": {"x": {"type": "float", "low": 200, "high": 300}}}}, "bad-field", "no place for any trial"),
    ({"changes": {"metric": "loss"}}, "bad-field", "measured no loss"),
    ({"changes": {"nonsense": 1}}, "bad-field", "unknown key"), ({"changes": 7}, "bad-field", "objects"),
    ({"new": "T!"}, "bad-field", "name"), ({"new": 7}, "bad-field", "needs as"), ({"new": "s"}, "name-used", "named s"),
    ({"study": "nope"}, "unknown-study", "no study")])
def test_what_cannot_be_forked_is_refused_and_nothing_is_written(args: dict[str, Any], code: str, words: str) -> None:
    story = measured()
    facts, letters = fork(story, **args)
    _, error = replied((facts, letters))
    assert (facts, error["code"]) == ([], code)
    assert words in error["message"]


def test_a_study_that_was_not_there_yet_cannot_be_forked() -> None:
    assert replied(fork(measured(), at=2))[1]["code"] == "unknown-study"


def test_a_whole_file_or_parts_of_one_declare_the_fork() -> None:
    story = measured(tags=["gpu"])
    fork(story, spec={**BASE, "method": "sobol"})
    assert story.desk.state.studies["t"].spec.tags == []
    fork(story, id="f2", new="u", changes={"method": "grid", "budget": {"trials": 3}})
    spec = story.desk.state.studies["u"].spec
    assert (spec.name, spec.method, spec.tags, spec.budget.trials) == ("u", "grid", ["gpu"], 3)


def test_a_late_outcome_stays_an_observation_and_is_not_taken_for_the_result() -> None:
    story = Story(retry={"lost": 3})
    story.ask("w1")
    story.tick(601)
    story.ask("w2")                              # fence 2
    story.tell("w1", 1, value=0.1)               # late, and lower than what becomes the result
    story.tick(700)
    at = len(story.rows)
    story.tell("w2", 1, fence=2, value=5.0)
    story.tell("w1", 1, value=0.1)
    fork(story)
    made = story.desk.state.studies["t"]
    assert [trial.values for trial in made.trials] == [(5.0,)]
    assert [seen.values for seen in made.history] == [(0.1,), (5.0,)]      # in the order in which it was learned
    assert made.best is made.trials[0]
    # While the result was still to come, the late outcome was all that was known.
    fork(story, at=at, id="f2", new="u")
    assert [trial.values for trial in story.desk.state.studies["u"].trials] == [(0.1,)]
    story.check()


def test_what_was_enqueued_and_not_handed_out_is_tried_next() -> None:
    story = measured()
    story.request("op", "study.pause", id="p")
    story.request("op", "study.enqueue", id="e", params={"x": 42.0})
    fork(story)
    facts, _ = story.ask("w2", study="t", id="b1")
    assert [data["params"] for type, _, data in facts if type == "trial.proposed"] == [{"x": 42}]
    story.check()


def lived(method: str, trials: int, space: dict[str, Any], told: int) -> Desk:
    """A study by the real samplers: `told` of its trials have a result, the first ones are still pending."""
    desk = Desk()
    desk.record("log.opened", {"log": "l", "format": 1, "version": "0"})
    desk.record("study.created", {"spec": {"name": "s", "method": method, "seed": 3, "space": space}, "order": None},
                study="s")
    for _ in range(trials):
        propose(desk, desk.state.studies["s"])
    for number in range(trials - told + 1, trials + 1):
        desk.record("trial.completed", {"fence": 1, "values": {"value": float(number)}}, study="s", trial=number)
    return desk


def propose(desk: Desk, study: Study) -> dict[str, Any]:
    proposal = suggest(desk.problem(study)[0], 1).proposals[0]
    number = len(study.trials) + 1
    desk.record("trial.proposed", {"params": dict(proposal.params), "space_rev": 1, "sampler": proposal.sampler,
                                   "drawn": proposal.drawn, "as_of": 0}, study=study, trial=number)
    desk.record("trial.leased", {"fence": 1, "worker": "w", "run": "r", "ask": "a", "lease_s": 60.0, "at": "",
                                 "elapsed_s": 0}, study=study, trial=number)
    return dict(proposal.params)


@pytest.mark.parametrize("method", ["random", "sobol"])
def test_no_random_stream_is_drawn_again(method: str) -> None:
    """Twelve trials, of which the last six are known: the fork's seventh must not be the study's seventh."""
    desk = lived(method, 12, {"x": {"type": "float", "low": 0, "high": 1}}, told=6)
    admin.on_request(desk, "op", Request(id="f", verb="study.fork", args={"study": "s", "as": "t"}))
    old, made = desk.state.studies["s"], desk.state.studies["t"]
    assert len(made.trials) == 6
    new = [propose(desk, made) for _ in range(6)]
    assert not [params for params in new if params in [trial.params for trial in old.trials]]
    # And a fork of the fork goes on behind both.
    admin.on_request(desk, "op", Request(id="g", verb="study.fork", args={"study": "t", "as": "u"}))
    points = [tuple(propose(desk, desk.state.studies["u"]).items()) for _ in range(6)]
    assert not {*points} & {tuple(trial.params.items()) for study in (old, made) for trial in study.trials}


def test_a_grid_is_finished_by_its_fork_without_a_cell_twice() -> None:
    space = {"n": {"type": "int", "low": 1, "high": 8}}
    desk = lived("grid", 5, space, told=3)
    admin.on_request(desk, "op", Request(id="f", verb="study.fork", args={"study": "s", "as": "t"}))
    made = desk.state.studies["t"]
    while suggest(desk.problem(made)[0], 1).proposals:
        propose(desk, made)
    assert {trial.params["n"] for trial in made.trials} == {*range(1, 9)}
    assert len(made.trials) == 8


def test_candidates_lie_ready_in_a_fork_as_in_any_study() -> None:
    """The number of a stream is ahead of the trial's: who takes one for the other drops every candidate."""
    story = Story(noise="none")
    story.thinks = False
    desk = story.desk
    for _ in range(8):
        propose(desk, desk.state.studies["s"])
    for number in (5, 8):
        desk.record("trial.completed", {"fence": 1, "values": {"value": 1.0}}, study="s", trial=number)
    restart(desk)
    admin.on_request(desk, "op", Request(id="f", verb="study.fork", args={"study": "s", "as": "t"}))
    story.ask("w2", study="t", id="b1", n=3)
    for order in rules.orders(desk):
        rules.supply(desk, order, suggest(order.problem, order.wanted))
    story.said()
    made = desk.state.studies["t"]
    assert (len(made.trials), made.used) == (5, 3)
    streams = [orjson.loads(row.body)["data"]["stream"] for row in story.rows
               if row.type == "trial.proposed" and row.study == "t"]
    assert streams == ["0/9/random", "0/10/random", "0/11/random"]


def test_of_a_trial_stopped_after_some_folds_the_estimate_is_taken_over_as_its_outcome() -> None:
    story = Story(folds={"count": 3}, prune={"rule": "race"}, retry={"lost": 2})
    story.ask("w1")
    story.tell("w1", 1, folds=[1.0, 2.0, 3.0])
    story.ask("w1", "a2")
    story.tick(700.0)
    story.ask("w2")
    story.tell("w1", 2, value=5.0)                      # late, and known before the outcome
    story.report("w2", 2, 0, 2.0, fence=2)
    story.tell("w2", 2, fence=2, state="pruned")
    known = story.desk.state.studies["s"].history
    assert [(seen.trial, seen.values) for seen in known] == [(1, (2.0,)), (2, (5.0,)), (2, (3.0,))]
    fork(story)
    made = story.desk.state.studies["t"]
    assert [(seen.trial, seen.values) for seen in made.history] == [(1, (2.0,)), (2, (5.0,)), (2, (3.0,))]
    assert (made.trials[1].status, made.trials[1].values) == ("pruned", (3.0,))
    story.check()


def test_the_general_form_of_an_import_is_valid_and_folds() -> None:
    story = Story()
    for trial, x, values, number in ((1, 1, {"value": 2}, 0), (1, 1, None, 4), (2, 2, None, 1)):
        story.desk.record("trial.imported", {"params": {"x": x}, "values": values, "origin": {
            "study": "other/tool", "trial": number}}, study="s", trial=trial)
    for row in story.desk.take_rows():
        events.validate(orjson.loads(row.body))
        story.rows.append(row)
    study = story.desk.state.studies["s"]
    assert [trial.status for trial in study.trials] == ["complete", "fail"]
    assert [(seen.trial, seen.values) for seen in study.history] == [(1, (2.0,)), (1, None), (2, None)]
    story.check()
    fact = story.ask("w1")[0][0]
    assert (fact[0], fact[1], fact[2]["stream"]) == ("trial.proposed", 3, "0/3/random")


def test_a_study_without_imports_has_the_digest_that_it_always_had() -> None:
    story = measured()
    dumped = orjson.loads(snapshot.dump(story.desk.state)[1])["studies"][0]
    assert not {"origin", "imported", "streams"} & {*dumped, *dumped["trials"][0]}
