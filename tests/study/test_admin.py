"""What operators ask for, told as stories."""

from typing import Any

import orjson
import pytest
from tests.study.story import BASE, Said, Story, answer, granted, leased, proposed, receipt, stop

from bayesd.study import admin


def replied(said: Said) -> tuple[str, Any]:
    """(status, result or error code) of the one reply, and nothing else was said."""
    replies = [body for _, kind, body in said[1] if kind == "reply"]
    assert len(replies) == 1
    body = replies[0]
    return body["status"], body["error"]["code"] if body["status"] == "error" else body["result"]


def test_the_same_file_again_answers_exists_and_another_one_is_refused() -> None:
    story = Story()
    assert replied(story.request("op", "study.create", id="q2", spec=BASE))[0] == "exists"
    assert replied(story.request("op", "study.create", id="q3", spec={**BASE, "seed": 9})) == ("error", "name-used")


def test_the_same_file_is_the_same_study_after_an_amend_too() -> None:
    story = Story()
    for trials in (77, 78):
        changes = {"budget": {"trials": trials}}
        assert replied(story.request("op", "study.amend", id=f"q{trials}", study="s", changes=changes))[0] == "ok"
    assert replied(story.request("op", "study.create", id="q3", spec=BASE))[0] == "exists"
    story.restart()
    assert replied(story.request("op", "study.create", id="q4", spec=BASE))[0] == "exists"


def test_the_same_file_with_points_by_hand_is_the_same_after_a_restart() -> None:
    spec = {**BASE, "enqueue": [{"x": 1}, {"x": 2.5}]}
    story = Story(enqueue=spec["enqueue"])
    story.check()
    story.restart()
    assert replied(story.request("op", "study.create", id="q2", spec=spec))[0] == "exists"
    assert [fact[2]["params"] for fact in story.ask("w1", n=2)[0] if fact[0] == "trial.proposed"] == [
        {"x": 1}, {"x": 2.5}]


@pytest.mark.parametrize(("spec", "key"), [
    ({"name": "t"}, "space"), ({**BASE, "name": "T!"}, "name"), ({**BASE, "name": "t", "nonsense": 1}, "nonsense"),
    ({**BASE, "name": "t", "budget": {"trials": 0}}, "budget.trials"), ("text", "spec")])
def test_a_bad_file_is_refused_by_its_key_and_nothing_is_created(spec: Any, key: str) -> None:
    story = Story()
    facts, letters = story.request("op", "study.create", id="q2", spec=spec)
    assert (facts, letters[0][2]["error"]["code"], letters[0][2]["error"]["key"]) == ([], "bad-field", key)


def test_a_copy_of_a_write_is_answered_from_its_event_and_changes_nothing() -> None:
    story = Story()
    facts, _ = story.request("op", "study.enqueue", params={"x": 7.0})
    assert facts == [("point.enqueued", None, {"params": {"x": 7}})]
    at = len(story.rows)
    for _ in range(2):
        assert story.request("op", "study.enqueue", params={"x": 7.0}) == ([], [
            ("op", "reply", {"id": "q1", "status": "ok",
                             "result": {"seq": at, "event": "point.enqueued", "again": True}})])
        story.restart()
    assert story.request("other", "study.enqueue", params={"x": 7.0})[0] != []      # ids are each client's own


def test_only_operators_may_write_when_there_is_a_list_of_them() -> None:
    story = Story(operators=frozenset(("op",)))
    assert replied(story.request("eve", "study.pause")) == ("error", "not-allowed")
    assert replied(story.request("eve", "study.show"))[0] == "ok"
    assert replied(story.request("op", "study.pause"))[0] == "ok"


@pytest.mark.parametrize(("verb", "args", "code"), [
    ("study.dance", {}, "unknown-verb"), ("study.pause", {"study": "nope"}, "unknown-study"),
    ("study.pause", {"study": 7}, "bad-field"), ("trial.show", {"trial": 9}, "unknown-trial"),
    ("trial.show", {"trial": True}, "bad-field"), ("trial.void", {"trial": 1}, "bad-field"),
    ("study.close", {"running": "maybe"}, "bad-field"), ("study.amend", {"changes": {}}, "bad-field"),
    ("study.amend", {"changes": {"seed": 1}}, "bad-field"), ("study.enqueue", {"params": {"x": 1e9}}, "bad-field"),
    ("study.enqueue", {"params": {"y": 1}}, "bad-field"), ("worker.revoke", {"worker": "No!"}, "bad-field"),
    ("trial.list", {"limit": 0}, "bad-field"), ("trial.list", {"after": "x"}, "bad-field")])
def test_what_cannot_be_done_is_refused_with_a_code(verb: str, args: dict[str, Any], code: str) -> None:
    story = Story()
    story.ask("w1")
    said = story.request("op", verb, **args)
    assert (said[0], replied(said)) == ([], ("error", code))


def test_nothing_is_decided_while_the_disk_is_full_and_everybody_still_gets_an_answer() -> None:
    story = Story()
    story.desk.disk_full = True
    said = story.request("op", "study.pause")
    assert (said[0], replied(said)) == ([], ("error", "disk-full"))
    assert replied(story.request("op", "study.show", id="q2"))[0] == "ok"
    story.desk.disk_full = False
    assert story.request("op", "study.pause")[0] == [("study.paused", None, {})]


# ---------------------------------------------------------------- studies


def test_a_paused_study_leases_nothing_and_goes_on_when_it_is_resumed() -> None:
    story = Story()
    story.ask("w1")
    assert story.request("op", "study.pause")[0] == [("study.paused", None, {})]
    assert replied(story.request("op", "study.pause", id="q2"))[0] == "exists"
    assert story.ask("w2") == ([], [answer("w2", "waiting", "paused")])
    assert story.tell("w1", 1, state="fail")[0] == [("trial.failed", 1, {"fence": 1, "class": "crash"})]
    facts, letters = story.request("op", "study.resume", id="q3")
    assert facts == [("study.resumed", None, {}), proposed(2), leased(2, "w2")]
    assert letters[1:] == [granted(2, "w2")]
    story.check()


def test_close_finish_lets_what_runs_come_to_its_end() -> None:
    story = Story()
    story.ask("w1")
    facts, letters = story.request("op", "study.close")
    assert facts == [("study.closed", None, {"rule": "operator", "running": "finish"})]
    assert [letter[1] for letter in letters] == ["reply"]
    assert replied(story.request("op", "study.close", id="q2"))[0] == "exists"
    assert replied(story.request("op", "study.pause", id="q3")) == ("error", "closed")
    assert story.tell("w1", 1, value=0.5)[1][0][2]["status"] == "recorded"


def test_close_stop_ends_what_runs_and_the_first_word_still_counts() -> None:
    story = Story()
    story.ask("w1")
    facts, letters = story.request("op", "study.close", running="stop")
    assert facts == [
        ("study.closed", None, {"rule": "operator", "running": "stop"}),
        ("lease.expired", 1, {"fence": 1, "reason": "closed"}),
        ("trial.failed", 1, {"fence": 1, "class": "lost", "error": "no word from any worker that held it"})]
    assert letters[0] == stop("w1", 1, "closed")
    assert story.beat("w1", (1, 1))[1] == [stop("w1", 1, "superseded")]
    assert story.tell("w1", 1, value=0.5)[1] == [receipt("w1", "t.s.1.1", "recorded", seq="trial.completed")]
    story.check()


def test_amend_changes_the_future_only() -> None:
    story = Story(budget={"trials": 1})
    story.ask("w1")
    assert story.ask("w2")[1] == [answer("w2", "waiting", "budget")]
    facts, letters = story.request("op", "study.amend", changes={"budget": {"trials": 2}, "lease": {"default_s": 60}})
    assert [fact[0] for fact in facts] == ["study.amended", "trial.proposed", "trial.leased"]
    assert letters[1:] == [granted(2, "w2", lease_s=60.0)]
    assert story.ask("w1")[1] == [granted(1, "w1")]
    story.check()


def test_what_cannot_be_amended_says_why_and_what_to_do() -> None:
    story = Story(prune={"rule": "asha", "resume": True}, fidelity={"name": "epochs", "max": 9})
    for i, (changes, words) in enumerate([
            ({"fidelity": {"max": 27}}, "is counted in it: fork the study"), ({"prune": None}, "stand at their rungs"),
            ({"prune": {"resume": False}}, "fork the study"), ({"seed": 3}, "came from it: fork the study"),
            ({"warm_start": []}, "create another"), ({"name": "t"}, "budget, stop")]):
        _, letters = story.request("op", "study.amend", id=f"bad{i}", changes=changes)
        assert words in letters[0][2]["error"]["message"]
    assert replied(story.request("op", "study.amend", changes={"prune": {"startup": 4}, "winner": {"rule": "best"}}))[
        0] == "ok"
    prune = story.desk.state.studies["s"].spec.prune
    assert prune is not None
    assert (prune.rule, prune.resume, prune.startup) == ("asha", True, 4)
    story.check()


def test_amend_of_the_budget_below_what_was_done_closes() -> None:
    story = Story(budget={"trials": 3})
    story.ask("w1")
    story.tell("w1", 1, value=0.5)
    assert story.request("op", "study.amend", changes={"budget": {"trials": 1}})[0][1:] == [
        ("study.closed", None, {"rule": "trials", "running": "finish"})]


def test_amend_of_the_space_drops_points_that_it_no_longer_holds() -> None:
    story = Story()
    for i, x in enumerate((5.0, 50.0)):
        story.request("op", "study.enqueue", id=f"e{i}", params={"x": x})
    said = story.request("op", "study.amend", changes={"space": {"x": {"type": "float", "low": 0, "high": 10}}})
    assert said[0][0][2]["queue"] == [{"x": 5}]
    status, result = replied(said)
    assert (status, result["space_rev"], result["dropped_from_queue"]) == ("ok", 2, 1)
    story.check()


BOUND: dict[str, Any] = {"constraints": ["x * 2 <= 150", "x != 13"]}


def test_constraints_are_part_of_a_study_and_survive_a_restart() -> None:
    story = Story(**BOUND)
    problem = story.desk.problem(story.desk.state.studies["s"])[0]
    assert [constraint.text for constraint in problem.constraints] == BOUND["constraints"]
    assert replied(story.request("op", "study.create", id="q2", spec={**BASE, **BOUND}))[0] == "exists"
    story.check()
    story.restart()
    assert replied(story.request("op", "study.create", id="q3", spec={**BASE, **BOUND}))[0] == "exists"
    assert replied(story.request("op", "study.create", id="q4", spec=BASE)) == ("error", "name-used")
    assert replied(story.request("op", "study.show", id="q5"))[1]["spec"]["constraints"] == BOUND["constraints"]


@pytest.mark.parametrize(("texts", "more", "words"), [
    (["y < 1"], {}, "names y, which is not in the space"), (["x > 100"], {}, "holds at none of them"),
    (["x < 50"], {"enqueue": [{"x": 51}]}, 'enqueue, point 1: constraint "x < 50" does not hold at x = 51.0')])
def test_constraints_that_cannot_be_used_are_refused_when_a_study_is_opened(
        texts: list[str], more: Any, words: str) -> None:
    story = Story()
    spec = {**BASE, "name": "t", "constraints": texts, **more}
    facts, letters = story.request("op", "study.create", id="q2", spec=spec)
    error = letters[0][2]["error"]
    assert (facts, error["code"]) == ([], "bad-field")
    assert words in error["message"]
    assert more or error["key"] == "constraints"


def test_a_point_by_hand_that_breaks_a_constraint_is_refused_by_name() -> None:
    story = Story(**BOUND)
    facts, letters = story.request("op", "study.enqueue", params={"x": 76})
    assert facts == []
    assert letters[0][2]["error"] == {"code": "bad-field", "key": "params",
                                      "message": 'constraint "x * 2 <= 150" does not hold at x = 76.0'}
    assert replied(story.request("op", "study.enqueue", id="q2", params={"x": 75}))[0] == "ok"


def test_amended_constraints_drop_points_by_hand_that_they_forbid_and_leave_the_history() -> None:
    story = Story()
    story.ask("w1")
    story.tell("w1", 1, value=0.5)
    for i, x in enumerate((5.0, 50.0)):
        story.request("op", "study.enqueue", id=f"e{i}", params={"x": x})
    said = story.request("op", "study.amend", changes={"constraints": ["x > 9"]})
    assert said[0][0][2]["queue"] == [{"x": 50}]
    status, result = replied(said)
    assert (status, result["space_rev"], result["dropped_from_queue"]) == ("ok", 1, 1)
    problem = story.desk.problem(story.desk.state.studies["s"])[0]
    assert [observation.params for observation in problem.history] == [{"x": 1.0}]      # it would not be proposed now
    assert [constraint.text for constraint in problem.constraints] == ["x > 9"]
    story.check()
    assert replied(story.request("op", "study.amend", id="q2", changes={"constraints": []}))[0] == "ok"
    assert story.desk.problem(story.desk.state.studies["s"])[0].constraints == ()
    story.check()


def test_an_amended_space_must_go_with_the_constraints() -> None:
    story = Story(**BOUND)
    smaller = {"x": {"type": "float", "low": 0, "high": 10}, "y": {"type": "float", "low": 0, "high": 1}}
    assert replied(story.request("op", "study.amend", id="q2", changes={"space": smaller}))[0] == "ok"
    problem = story.desk.problem(story.desk.state.studies["s"])[0]
    assert [constraint.text for constraint in problem.constraints] == BOUND["constraints"]
    for i, changes in enumerate(({"space": {"x": None}}, {"space": {"x": {"type": "float", "low": 80, "high": 90}}})):
        said = story.request("op", "study.amend", id=f"bad{i}", changes=changes)
        assert (said[0], replied(said)) == ([], ("error", "bad-field"))
        assert said[1][0][2]["error"]["key"] == "constraints"
    assert replied(story.request("op", "study.amend", id="q3", changes={
        "space": {"x": None}, "constraints": ["y < 0.5"]}))[0] == "ok"
    story.check()


def test_an_enqueued_point_goes_before_any_drawn_one_and_the_numbers_have_no_holes() -> None:
    story = Story()
    story.ask("w1")
    assert len(story.desk.drawer("s").candidates) > 0
    story.request("op", "study.enqueue", params={"x": 77.0})
    facts, _ = story.ask("w2", n=2)
    by_hand = ("trial.proposed", 2, {"params": {"x": 77}, "space_rev": 1, "sampler": "enqueued", "drawn": 1})
    type, number, data = proposed(3)
    assert facts == [by_hand, leased(2, "w2"), (type, number, {**data, "drawn": 2}), leased(3, "w2")]
    story.check()


# ---------------------------------------------------------------- trials and workers


def test_cancel_ends_a_trial_for_good() -> None:
    story = Story(retry={"lost": 5, "crash": 5})
    story.ask("w1")
    facts, letters = story.request("op", "trial.cancel", trial=1, reason="too slow")
    assert facts == [("trial.failed", 1, {"fence": 1, "class": "cancelled", "ended": "cancelled", "error": "too slow"})]
    assert letters[0] == stop("w1", 1, "cancelled")
    assert replied(story.request("op", "trial.cancel", id="q2", trial=1))[0] == "exists"
    assert story.tell("w1", 1, value=0.5)[1] == [receipt("w1", "t.s.1.1", "late", seq="outcome.late")]
    assert story.tick(600.0)[0] == []
    story.check()


def test_void_takes_a_trial_out_of_what_the_optimiser_knows() -> None:
    story = Story(retry={"lost": 0})
    story.ask("w1", n=2)
    story.tell("w1", 1, value=0.5)
    study = story.desk.state.studies["s"]
    assert study.best is study.trials[0]
    facts, _ = story.request("op", "trial.void", trial=1, reason="the sensor was unplugged")
    assert facts == [("outcome.voided", 1, {"reason": "the sensor was unplugged"})]
    assert [study.best, study.history, study.used] == [None, [], 1]
    assert story.request("op", "trial.void", id="q2", trial=2, reason="that one, too")[1][0] == stop(
        "w1", 2, "cancelled")
    assert story.tell("w1", 2, value=0.5)[1] == [receipt("w1", "t.s.2.1", "late", seq="outcome.late")]
    assert study.history == []
    story.check()


def test_a_revoked_worker_gets_nothing_more_and_its_trials_are_offered_again() -> None:
    story = Story(retry={"lost": 1})
    story.beat("w1")
    story.ask("w1")
    facts, letters = story.request("op", "worker.revoke", worker="w1", reason="it lies")
    assert facts == [("worker.revoked", None, {"worker": "w1", "reason": "it lies"}),
                     ("lease.expired", 1, {"fence": 1, "reason": "cancelled"})]
    assert letters[0] == stop("w1", 1, "cancelled")
    for said in (story.ask("w1", id="a2"), story.tell("w1", 1, value=0.5)):
        assert (said[0], said[1][0][2]["status"], said[1][0][2]["reason"]) == ([], "rejected", "bad-name")
    assert story.ask("w2")[0] == [leased(1, "w2", fence=2)]
    story.check()


def test_a_revoked_workers_trial_past_its_retries_is_lost() -> None:
    story = Story(retry={"lost": 0})
    story.ask("w1")
    assert [fact[0] for fact in story.request("op", "worker.revoke", worker="w1")[0]] == [
        "worker.revoked", "lease.expired", "trial.failed"]
    story.check()


def test_revoke_with_void_takes_back_all_that_the_worker_told_in_one_commit() -> None:
    story = Story(retry={"lost": 5, "crash": 5})
    for worker, id in (("w1", "a1"), ("w1", "a2"), ("w1", "a3"), ("w2", "a4"), ("w1", "a5"), ("w1", "a6")):
        story.ask(worker, id=id)
    story.tell("w1", 1, value=0.9)
    story.tell("w1", 2, state="fail")                          # tried again: no outcome
    story.ask("w2", id="b1")
    story.tell("w2", 2, fence=2, value=0.2)
    story.tick(700.0)
    story.ask("w2", id="b2", n=3)                              # 3, 4 and 5, which nobody told in time
    story.tell("w1", 3, fence=1, value=0.3)                    # late
    story.tell("w2", 3, fence=2, value=0.4)
    story.tell("w1", 5, fence=1, value=0.5)                    # late, while w2 works on it
    assert {trial.number for trial in story.desk.state.studies["s"].trials if trial.late} == {3, 5}
    status, result = replied(story.request("op", "worker.revoke", id="q9", worker="w1", void=True, reason="it lies"))
    study = story.desk.state.studies["s"]
    assert (status, result["voided"], result["trials"]) == ("ok", 3, [["s", 1], ["s", 3], ["s", 5]])
    assert [(seen.trial, seen.values) for seen in study.history] == [(2, (0.2,))]
    assert study.best is study.trials[1]
    at = result["seq"]
    assert [row.type for row in story.rows[at - 1:at + 3]] == ["worker.revoked", *["outcome.voided"] * 3]
    assert {(row.actor, row.cmd) for row in story.rows[at - 1:at + 3]} == {("operator/op", "q9")}
    story.check()


def test_revoke_with_void_stops_who_works_on_a_void_trial_and_needs_a_reason() -> None:
    story = Story(retry={"lost": 5})
    story.ask("w1")
    story.tick(700.0)
    story.ask("w2")
    story.tell("w1", 1, value=0.3)
    assert replied(story.request("op", "worker.revoke", worker="w1", void=True)) == ("error", "bad-field")
    assert replied(story.request("op", "worker.revoke", worker="w1", void=1, reason="so")) == ("error", "bad-field")
    facts, letters = story.request("op", "worker.revoke", worker="w1", void=True, reason="so")
    assert [fact[:2] for fact in facts[:2]] == [("worker.revoked", None), ("outcome.voided", 1)]
    assert stop("w2", 1, "cancelled", fence=2) in letters
    story.check()


# ---------------------------------------------------------------- reads


def test_reads_page_and_every_page_fits_a_message() -> None:
    story = Story()
    story.ask("w1", n=90)
    seen, after, pages = [], None, 0
    while True:
        args = {"limit": 40} if after is None else {"limit": 40, "after": after}
        said = story.request("op", "trial.list", id=f"p{pages}", **args)
        assert said[0] == []
        assert len(orjson.dumps(said[1][0][2])) < admin.PAGE_BYTES + 1024
        _, result = replied(said)
        seen += [row["trial"] for row in result["trials"]]
        pages += 1
        after = result.get("next")
        if after is None:
            break
    assert (seen, pages) == (list(range(1, 91)), 3)


def test_reads_show_what_is_known() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1")
    story.report("w1", 1, 0, 0.3)
    story.tell("w1", 1, value=0.5, seconds=2.0)
    _, shown = replied(story.request("op", "trial.show", id="q1", trial=1))
    assert (shown["state"], shown["values"], shown["reports"], shown["leases"][0]["ended"]) == (
        "complete", {"value": 0.5}, [[0, {"value": 0.3}]], "told")
    _, listed = replied(story.request("op", "study.list", id="q2"))
    assert (listed["studies"][0]["study"], listed["studies"][0]["best"]) == ("s", 0.5)
    _, workers = replied(story.request("op", "worker.list", id="q3"))
    assert [(row["worker"], row["run"], row["leases"]) for row in workers["workers"]] == [("w1", "w1-r1", [])]


@pytest.mark.parametrize("refs", [[], [7], [None], ["0" * 63], ["0" * 65], ["G" * 64], ["0" * 64, "x"],
                                  ["0" * 64] * 501])
def test_a_reference_that_is_none_redacts_nothing(refs: list[Any]) -> None:
    story = Story()
    before = story.desk.state.seq
    assert replied(story.request("op", "text.redact", refs=refs, reason="r")) == ("error", "bad-field")
    assert story.desk.state.seq == before


@pytest.mark.parametrize(("verb", "args"), [
    ("trial.void", {"study": "s", "trial": 1}), ("trial.cancel", {"study": "s", "trial": 1}),
    ("worker.revoke", {"worker": "w1"}), ("worker.revoke", {"worker": "w1", "void": True}),
    ("text.redact", {"refs": ["0" * 64]})])
def test_a_reason_without_words_is_none(verb: str, args: dict[str, Any]) -> None:
    story = Story()
    story.ask("w1")
    for reason in ("", " \n"):
        assert replied(story.request("op", verb, id=f"q{len(reason)}", reason=reason, **args)) == ("error", "bad-field")
