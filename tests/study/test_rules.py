"""The numbered rules of the wire contract, each told as a story: given, when, then.

A story compares everything that was recorded and said. `story.py` says how events and letters
are written here.
"""

from typing import Any

import pytest
from tests.study.story import Said, Story, answer, began, granted, leased, proposed, receipt, stop

from bayesd.study import rules
from bayesd.study.problem import Proposal, Suggestion
from bayesd_schemas.messages import validate

# ---------------------------------------------------------------- 1: the receipt is the acknowledgement


def test_1_nothing_is_said_before_its_event_is_on_disk() -> None:
    story = Story()
    story.ask("w1")
    rules.on_tell(story.desk, "w1", validate("tell", {"id": "t", "study": "s", "trial": 1, "fence": 1, "value": 0.5}))
    on_disk = len(story.rows)
    assert story.desk.committed(on_disk) == []
    assert story.said() == (
        [("trial.completed", 1, {"fence": 1, "values": {"value": 0.5}})],
        [receipt("w1", "t", "recorded", seq="trial.completed")])


# ---------------------------------------------------------------- 2: everything may arrive twice


def test_2_a_copy_of_a_tell_gets_the_first_answer_again() -> None:
    story = Story()
    story.ask("w1")
    assert story.tell("w1", 1, value=0.5)[1] == [receipt("w1", "t.s.1.1", "recorded", seq="trial.completed")]
    again: Said = ([], [receipt("w1", "t.s.1.1", "duplicate", seq="trial.completed")])
    assert story.tell("w1", 1, value=0.5) == again
    story.restart()
    assert story.tell("w1", 1, value=0.5) == again


@pytest.mark.parametrize("same", [
    {"value": 0.5, "id": "another"}, {"value": 0.5, "seconds": 7.0}, {"value": 0.5, "state": "complete"},
    {"value": 0.5, "unknown": 1}, {"value": 0.50}])
def test_2_two_tells_are_the_same_when_their_known_fields_are(same: dict[str, Any]) -> None:
    story = Story()
    story.ask("w1")
    story.tell("w1", 1, value=0.5)
    facts, letters = story.tell("w1", 1, **same)
    assert (facts, letters[0][2]["status"]) == ([], "duplicate")


@pytest.mark.parametrize(("first", "same"), [
    ({"value": None}, {"value": "nan"}), ({"value": "inf"}, {"value": 1e301}),
    ({"state": "fail"}, {"state": "fail", "class": "crash"})])
def test_2_tells_are_normalised_before_they_are_compared(first: dict[str, Any], same: dict[str, Any]) -> None:
    story = Story()
    story.ask("w1")
    story.tell("w1", 1, **first)
    assert story.tell("w1", 1, **same)[1][0][2]["status"] == "duplicate"


def test_2_a_second_different_tell_with_the_same_fence_is_late_and_changes_nothing() -> None:
    story = Story()
    story.ask("w1")
    story.tell("w1", 1, value=0.5)
    assert story.tell("w1", 1, value=0.6) == ([], [receipt("w1", "t.s.1.1", "late", seq="trial.completed")])
    assert story.desk.state.studies["s"].trials[0].values == (0.5,)


def test_2_a_copy_of_a_late_tell_is_late_again() -> None:
    story = Story()
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    late = receipt("w1", "t.s.1.1", "late", seq="outcome.late")
    assert story.tell("w1", 1, value=0.5) == (
        [("outcome.late", 1, {"fence": 1, "state": "complete", "values": {"value": 0.5}})], [late])
    assert story.tell("w1", 1, value=0.5) == ([], [late])


def test_2_a_copy_of_a_report_is_a_duplicate_and_a_rejection_is_not_remembered() -> None:
    story = Story()
    assert story.report("w1", 1, 0, 0.5)[1] == [receipt("w1", "r.s.1.1.0", "rejected", reason="unknown-trial")]
    story.ask("w1")
    assert story.report("w1", 1, 0, 0.5) == (
        [("trial.reported", 1, {"fence": 1, "step": 0, "values": {"value": 0.5}})],
        [receipt("w1", "r.s.1.1.0", "recorded", seq="trial.reported")])
    assert story.report("w1", 1, 0, 0.5) == ([], [receipt("w1", "r.s.1.1.0", "duplicate", seq="trial.reported")])


def test_2_a_tell_that_was_answered_stays_answered_when_its_trial_is_given_up() -> None:
    """A failure is to be tried again, but the study closes: the failure must not be forgotten for that."""
    story = Story(retry={"crash": 1})
    story.ask("w1")
    story.tell("w1", 1, state="fail")
    story.request("op", "study.pause")
    story.request("op", "study.close", id="q2")
    assert story.tell("w1", 1, state="fail") == ([], [receipt("w1", "t.s.1.1", "duplicate", seq="trial.failed")])


# ---------------------------------------------------------------- 3: asks


def test_3_an_ask_gets_a_trial_and_a_copy_gets_the_same() -> None:
    story = Story()
    assert story.ask("w1") == ([proposed(1), leased(1, "w1")], [granted(1, "w1")])
    assert story.ask("w1") == ([], [granted(1, "w1")])
    story.restart()
    assert story.ask("w1") == ([], [granted(1, "w1")])


def test_3_an_ask_has_at_most_n_leases_that_are_open_or_told() -> None:
    story = Story()
    assert story.ask("w1", n=2) == ([proposed(1), leased(1, "w1"), proposed(2), leased(2, "w1")],
                                    [granted(1, "w1"), granted(2, "w1")])
    story.tell("w1", 1, value=0.5)
    assert story.ask("w1", n=2) == ([], [granted(2, "w1")])
    story.tell("w1", 2, value=0.5)
    assert story.ask("w1", n=2) == ([], [answer("w1", "duplicate")])
    story.restart()
    assert story.ask("w1", n=2) == ([], [answer("w1", "duplicate")])


def test_3_a_lease_that_ended_untold_gives_its_place_back() -> None:
    story = Story()
    story.ask("w1")
    story.tick(600.0)
    assert story.ask("w1") == ([leased(1, "w1", fence=2)], [granted(1, "w1", fence=2)])


def test_3_what_cannot_be_served_waits_and_the_reason_is_said() -> None:
    story = Story(budget={"trials": 1}, tags=["gpu"])
    assert story.ask("w1", tags=["gpu", "big"])[1] == [granted(1, "w1")]
    assert story.ask("w2", tags=["cpu"]) == ([], [answer("w2", "waiting", "no-matching-tags")])
    assert story.ask("w3", tags=["gpu"]) == ([], [answer("w3", "waiting", "budget")])
    assert story.ask("w4", study="nope") == ([], [answer("w4", "waiting", "unknown-study")])
    story.request("op", "study.pause")
    assert story.ask("w3", tags=["gpu"]) == ([], [answer("w3", "waiting", "paused")])
    story.desk.disk_full = True
    assert story.ask("w5", tags=["gpu"]) == ([], [answer("w5", "waiting", "disk-full")])


def test_3_a_copy_that_names_another_study_stands_in_its_line_alone() -> None:
    story = Story()
    assert story.ask("w1", study="nope") == ([], [answer("w1", "waiting", "unknown-study")])
    assert story.ask("w1", study=None) == ([proposed(1), leased(1, "w1")], [granted(1, "w1")])
    assert story.desk.queues == {}


def test_3_who_stands_first_is_passed_over_while_its_tags_do_not_match() -> None:
    story = Story(tags=["gpu"])
    assert story.ask("w1", tags=["cpu"]) == ([], [answer("w1", "waiting", "no-matching-tags")])
    assert story.ask("w2", tags=["gpu"]) == ([proposed(1), leased(1, "w2")], [granted(1, "w2")])


def test_3_an_ask_that_stands_is_served_when_something_comes_free() -> None:
    story = Story(budget={"trials": 1})
    story.ask("w1")
    story.ask("w2")
    facts, letters = story.tell("w1", 1, state="released")
    assert facts == [("lease.released", 1, {"fence": 1}), leased(1, "w2", fence=2)]
    assert letters == [receipt("w1", "t.s.1.1", "recorded", seq="lease.released"), granted(1, "w2", fence=2)]


def test_3_when_every_point_is_seen_asks_wait_for_the_open_ones_and_then_the_study_closes() -> None:
    story = Story(points=1)
    story.ask("w1")
    assert story.ask("w2")[1] == [answer("w2", "waiting", "exhausted")]
    facts, letters = story.tell("w1", 1, value=0.5)
    assert facts[1:] == [("study.closed", None, {"rule": "exhausted", "running": "finish"})]
    assert letters[1:] == [answer("w2", "closed", "exhausted")]


def test_3_an_ask_for_any_study_is_never_closed() -> None:
    story = Story()
    assert story.ask("w1", study=None)[1] == [granted(1, "w1")]
    assert story.ask("w2", id="a1", study=None)[1] == [granted(2, "w2")]
    story.request("op", "study.close")
    assert story.ask("w3", study=None) == ([], [answer("w3", "waiting", "unknown-study")])
    assert story.ask("w3", id="a2") == ([], [answer("w3", "closed", "operator", id="a2")])


def test_3_a_slow_suggestion_is_no_excuse_for_silence() -> None:
    story = Story()
    story.thinks = False
    assert story.ask("w1") == ([], [])
    assert story.tick(1.4) == ([], [])
    assert story.tick(1.5) == ([], [answer("w1", "waiting")])
    story.at(1.7)
    story.think()
    assert story.said() == ([proposed(1), leased(1, "w1")], [granted(1, "w1")])


def test_3_an_ask_lapses_90_s_after_its_last_copy_or_beat() -> None:
    story = Story()
    story.request("op", "study.pause")
    story.beat("w1")
    story.beat("w2")
    for worker in ("w1", "w2", "w3"):
        story.ask(worker)
    story.tick(60.0)
    story.beat("w1", asks=("a1",))
    story.ask("w2")
    story.tick(100.0)
    facts, letters = story.request("op", "study.resume", id="q2")
    assert facts[1:] == [proposed(1), leased(1, "w1"), proposed(2), leased(2, "w2")]
    assert [letter[0] for letter in letters] == ["op", "w1", "w2"]
    story.ask("w3")
    assert story.ask("w3") == ([], [granted(3, "w3")])


def test_3_n_0_withdraws_an_ask_and_older_copies_do_not_revive_it() -> None:
    story = Story()
    story.request("op", "study.pause")
    story.ask("w1")
    gone: Said = ([], [answer("w1", "closed", "withdrawn")])
    assert story.ask("w1", n=0) == gone
    assert story.ask("w1") == gone
    assert story.request("op", "study.resume", id="q2")[0] == [("study.resumed", None, {})]


def test_3_standing_asks_hear_of_the_close() -> None:
    story = Story(budget={"trials": 1})
    story.ask("w1")
    story.ask("w2")
    facts, letters = story.tell("w1", 1, value=0.5)
    assert facts == [("trial.completed", 1, {"fence": 1, "values": {"value": 0.5}}),
                     ("study.closed", None, {"rule": "trials", "running": "finish"})]
    assert letters == [receipt("w1", "t.s.1.1", "recorded", seq="trial.completed"), answer("w2", "closed", "budget")]


def test_3_the_longest_lease_is_the_studys_to_say() -> None:
    story = Story(lease={"default_s": 60, "max_s": 100})
    assert story.ask("w1", lease_s=1e6)[1] == [granted(1, "w1", lease_s=100.0)]
    assert story.ask("w2", lease_s=10)[1] == [granted(2, "w2", lease_s=10.0)]


# ---------------------------------------------------------------- 4: beats and runs


def test_4_a_beat_renews_what_it_lists_and_nothing_else() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1", n=2)
    story.at(400.0)
    assert story.beat("w1", (1, 1)) == ([], [])
    assert story.tick(600.0)[0] == [("lease.expired", 2, {"fence": 1})]
    assert story.tick(999.9)[0] == []
    assert story.tick(1000.0)[0] == [("lease.expired", 1, {"fence": 1})]


def test_4_a_lease_that_two_beats_do_not_list_is_granted_again() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1")
    assert story.beat("w1") == ([], [])
    assert story.beat("w1") == ([], [granted(1, "w1")])
    assert story.beat("w1", (1, 1)) == ([], [])


def test_4_an_expired_lease_that_is_listed_is_held_again_and_no_retry_counts() -> None:
    story = Story(retry={"lost": 0})
    story.beat("w1")
    story.ask("w1")
    facts, _ = story.tick(600.0)
    assert [fact[0] for fact in facts] == ["lease.expired", "trial.failed"]
    assert story.beat("w1", (1, 1)) == ([("lease.held", 1, {"fence": 1, "run": "w1-r1"})], [])
    assert story.tick(1199.9)[0] == []
    trial = story.desk.state.studies["s"].trials[0]
    assert (trial.status, trial.failures, trial.study.history) == ("running", {"lost": 0}, [])
    story.check()


def test_4_a_report_from_a_lease_that_is_held_again_still_has_its_receipt() -> None:
    story = Story(retry={"lost": 0})
    story.beat("w1")
    story.ask("w1")
    story.report("w1", 1, 0, 0.5)
    story.tick(600.0)
    story.beat("w1", (1, 1))
    assert story.report("w1", 1, 0, 0.5) == ([], [receipt("w1", "r.s.1.1.0", "duplicate", seq="trial.reported")])
    story.check()


def test_4_any_other_listed_lease_that_is_not_held_is_stopped() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    assert story.beat("w1", (1, 1), (1, 2), (9, 1)) == ([], [
        stop("w1", 1, "superseded"), stop("w1", 1, "superseded", fence=2), stop("w1", 9, "superseded")])


def test_4_the_first_beat_of_a_run_takes_over_what_it_lists_and_ends_the_rest() -> None:
    story = Story()
    assert story.beat("w1") == ([began("w1")], [])
    story.ask("w1", n=2)
    assert story.beat("w1", (2, 1), run="w1-r2") == ([began("w1", "w1-r2", took=[(2, 1)], ended=[(1, 1)])], [])
    assert story.beat("w1", (2, 1), run="w1-r2") == ([], [])
    assert story.ask("w2")[0] == [leased(1, "w2", fence=2)]


def test_4_what_a_new_run_ended_it_may_still_hold_again() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1")
    story.beat("w1", run="w1-r2")
    assert story.beat("w1", (1, 1), run="w1-r2") == ([("lease.held", 1, {"fence": 1, "run": "w1-r2"})], [])


def test_4_a_run_once_replaced_never_becomes_new_again() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1")
    story.beat("w1", (1, 1), run="w1-r2")
    refused: Said = ([], [receipt("w1", "w1-r1", "rejected", run="w1-r1", reason="name-in-use")])
    assert story.beat("w1", (1, 1)) == refused
    assert story.ask("w1", id="a2") == refused
    story.restart()
    assert story.beat("w1", (1, 1)) == refused
    assert story.tell("w1", 1, value=0.5)[1][0][2]["status"] == "recorded"      # tells count as always


def test_4_asks_of_a_run_that_has_not_beaten_are_served_and_end_nothing() -> None:
    story = Story()
    story.beat("w1")
    story.ask("w1")
    assert story.ask("w1", run="w1-r2") == ([proposed(2), leased(2, "w1", run="w1-r2")],
                                            [granted(2, "w1", run="w1-r2")])
    assert story.beat("w1", (1, 1)) == ([], [])


def test_4_a_standing_ask_of_a_run_that_has_not_beaten_survives_the_first_beat_of_another() -> None:
    story = Story()
    story.request("op", "study.pause")
    story.ask("w1", run="w1-r2")
    story.beat("w1")
    assert story.request("op", "study.resume", id="q2")[0][1:] == [proposed(1), leased(1, "w1", run="w1-r2")]


# ---------------------------------------------------------------- 5: leases and fences


def test_5_a_lease_gets_its_full_time_again_after_a_restart() -> None:
    story = Story()
    story.ask("w1")
    story.at(500.0)
    story.restart()
    assert story.tick(1099.9)[0] == []
    assert story.tick(1100.0)[0] == [("lease.expired", 1, {"fence": 1})]


def test_5_a_trial_that_came_back_goes_before_any_new_one_and_to_somebody_else_if_it_can() -> None:
    story = Story()
    story.ask("w1")
    story.at(1.0)
    story.ask("w2")
    story.tick(601.0)
    assert story.ask("w1", id="a2", n=3)[0] == [
        leased(2, "w1", fence=2, ask="a2"), leased(1, "w1", fence=2, ask="a2"), proposed(3),
        leased(3, "w1", ask="a2")]


def test_5_a_tell_counts_when_its_fence_is_the_newest_expired_or_not() -> None:
    story = Story()
    story.ask("w1")
    story.tick(600.0)
    assert story.tell("w1", 1, value=0.5) == (
        [("trial.completed", 1, {"fence": 1, "values": {"value": 0.5}})],
        [receipt("w1", "t.s.1.1", "recorded", seq="trial.completed")])


@pytest.mark.parametrize(("late", "known"), [("use", [(0.5,), (0.7,)]), ("ignore", [(0.7,)])])
def test_5_an_older_fence_is_late_and_never_in_place_of_the_result(late: str, known: list[Any]) -> None:
    story = Story(late=late)
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    assert story.tell("w1", 1, value=0.5)[1] == [receipt("w1", "t.s.1.1", "late", seq="outcome.late")]
    assert story.tell("w2", 1, fence=2, value=0.7)[1] == [
        receipt("w2", "t.s.1.2", "recorded", seq="trial.completed")]
    study = story.desk.state.studies["s"]
    assert (study.trials[0].values, [seen.values for seen in study.history]) == ((0.7,), known)
    story.check()


def test_5_past_the_retry_limit_a_trial_fails_as_lost_until_somebody_speaks() -> None:
    story = Story(retry={"lost": 1}, budget={"trials": 1})
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    assert story.tick(1200.0)[0] == [
        ("lease.expired", 1, {"fence": 2}),
        ("trial.failed", 1, {"fence": 2, "class": "lost", "error": "no word from any worker that held it"}),
        ("study.closed", None, {"rule": "trials", "running": "finish"})]
    study = story.desk.state.studies["s"]
    assert [seen.values for seen in study.history] == [None]
    assert story.tell("w2", 1, fence=2, value=0.7)[1] == [
        receipt("w2", "t.s.1.2", "recorded", seq="trial.completed")]
    assert (study.trials[0].status, [seen.values for seen in study.history]) == ("complete", [(0.7,)])
    story.check()


def test_5_an_earlier_late_outcome_becomes_the_result_of_a_lost_trial() -> None:
    story = Story(retry={"lost": 1})
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    story.tell("w1", 1, value=0.5)
    at = len(story.rows)
    assert story.tick(1200.0)[0] == [
        ("lease.expired", 1, {"fence": 2}),
        ("trial.completed", 1, {"fence": 1, "promoted": at, "values": {"value": 0.5}})]
    study = story.desk.state.studies["s"]
    assert [seen.values for seen in study.history] == [(0.5,)]
    assert story.tell("w2", 1, fence=2, value=0.7)[1] == [receipt("w2", "t.s.1.2", "late", seq="outcome.late")]
    assert study.trials[0].values == (0.5,)
    story.check()


def test_5_a_lost_trial_whose_worker_says_that_it_failed_is_tried_again_and_known_once() -> None:
    story = Story(retry={"lost": 0, "crash": 1})
    story.ask("w1")
    story.tick(600.0)
    assert story.tell("w1", 1, state="fail")[0] == [
        ("trial.failed", 1, {"fence": 1, "class": "crash", "retry": True})]
    study = story.desk.state.studies["s"]
    assert (study.trials[0].status, study.trials[0].failure, study.history) == ("waiting", None, [])
    story.check()


def test_5_a_tell_counts_only_from_the_worker_that_its_fence_was_leased_to() -> None:
    story = Story()
    story.ask("w1")
    refused: Said = ([], [receipt("w2", "t.s.1.1", "rejected", reason="unknown-trial")])
    assert story.tell("w2", 1, value=0.5) == refused
    assert story.tell("w1", 1, value=0.5)[1][0][2]["status"] == "recorded"


def test_5_trials_leased_before_a_close_are_recorded_after_it() -> None:
    story = Story()
    story.ask("w1")
    story.request("op", "study.close")
    assert story.tell("w1", 1, value=0.5)[1] == [receipt("w1", "t.s.1.1", "recorded", seq="trial.completed")]


def test_5_a_lease_that_ends_untold_after_a_close_fails_as_lost() -> None:
    story = Story(retry={"lost": 5})
    story.ask("w1", n=2)
    story.request("op", "study.close")
    lost = {"fence": 1, "class": "lost", "error": "no word from any worker that held it"}
    assert story.tell("w1", 1, state="released")[0] == [("lease.released", 1, {"fence": 1}),
                                                        ("trial.failed", 1, lost)]
    assert story.tick(600.0)[0] == [("lease.expired", 2, {"fence": 1}), ("trial.failed", 2, lost)]


# ---------------------------------------------------------------- 7: the state of a tell


@pytest.mark.parametrize(("tell", "fact"), [
    ({"value": 1}, ("trial.completed", {"values": {"value": 1}})),
    ({"values": {"value": 1, "more": 2}}, ("trial.completed", {"values": {"value": 1, "more": 2}})),
    ({"folds": [1, 2, 3]}, ("trial.completed", {"folds": [1, 2, 3], "values": {"value": 2},
                                                "se": 0.5773502691896257})),
    ({"value": 1, "seconds": 3.5, "cost": 2}, ("trial.completed", {"values": {"value": 1}, "seconds": 3.5, "cost": 2})),
    ({"value": "nan"}, ("trial.failed", {"values": {"value": None}, "class": "nonfinite"})),
    ({"value": None}, ("trial.failed", {"values": {"value": None}, "class": "nonfinite"})),
    ({"value": -1e301}, ("trial.failed", {"values": {"value": None}, "class": "nonfinite"})),
    ({"folds": [1, "inf"]}, ("trial.failed", {"folds": [1, None], "values": {"value": None}, "class": "nonfinite"})),
    ({"state": "fail"}, ("trial.failed", {"class": "crash"})),
    ({"state": "fail", "class": "oom", "error": "no memory"}, ("trial.failed", {"class": "oom", "error": "no memory"})),
    ({"state": "pruned"}, ("trial.pruned", {})),
    ({"state": "pruned", "value": 3}, ("trial.pruned", {"values": {"value": 3}})),
    ({"state": "released"}, ("lease.released", {}))])
def test_7_what_is_told_is_recorded(tell: dict[str, Any], fact: tuple[str, dict[str, Any]]) -> None:
    story = Story()
    story.ask("w1")
    type, data = fact
    assert story.tell("w1", 1, **tell) == ([(type, 1, {"fence": 1, **data})],
                                           [receipt("w1", "t.s.1.1", "recorded", seq=type)])
    story.check()


def test_7_a_failure_is_tried_again_as_often_as_its_class_allows() -> None:
    story = Story(retry={"crash": 1})
    story.ask("w1")
    assert story.tell("w1", 1, state="fail")[0] == [
        ("trial.failed", 1, {"fence": 1, "class": "crash", "retry": True})]
    story.ask("w1", id="a2")
    assert story.tell("w1", 1, fence=2, state="fail")[0] == [("trial.failed", 1, {"fence": 2, "class": "crash"})]
    story.ask("w1", id="a3")
    other: dict[str, Any] = {"state": "fail", "class": "other"}
    assert story.tell("w1", 2, **other)[0] == [
        ("trial.failed", 2, {"fence": 1, "class": "other"})]


def test_7_a_release_counts_no_retry() -> None:
    story = Story(retry={"lost": 0})
    for fence in (1, 2, 3):
        story.ask("w1", id=f"a{fence}")
        assert story.tell("w1", 1, fence=fence, state="released")[0] == [("lease.released", 1, {"fence": fence})]
    assert story.ask("w2")[0] == [leased(1, "w2", fence=4)]


def test_7_a_release_of_what_somebody_else_has_now_is_late() -> None:
    story = Story()
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    assert story.tell("w1", 1, state="released") == ([], [receipt("w1", "t.s.1.1", "late")])


def test_7_a_pruned_trial_is_known_by_its_last_report() -> None:
    story = Story()
    story.ask("w1")
    for step, value in ((0, 0.3), (2, 0.9), (1, 0.5)):
        story.report("w1", 1, step, value)
    story.tell("w1", 1, state="pruned")
    assert [seen.values for seen in story.desk.state.studies["s"].history] == [(0.9,)]
    story.check()


# ---------------------------------------------------------------- 8: reports


def test_8_a_report_renews_nothing_and_a_step_counts_once() -> None:
    story = Story()
    story.ask("w1")
    story.at(500.0)
    story.report("w1", 1, 0, 0.5)
    assert story.report("w1", 1, 0, 0.6) == ([], [receipt("w1", "r.s.1.1.0", "late", seq="trial.reported")])
    assert story.tick(600.0)[0] == [("lease.expired", 1, {"fence": 1})]


def test_8_a_report_of_an_older_fence_is_late_and_says_stop() -> None:
    story = Story()
    story.ask("w1")
    story.tick(600.0)
    story.ask("w2")
    assert story.report("w1", 1, 0, 0.5) == ([], [receipt("w1", "r.s.1.1.0", "late", stop="superseded")])


# ---------------------------------------------------------------- 10: bad input


def test_10_bad_input_is_answered_and_never_recorded() -> None:
    story = Story(objectives=[{"name": "loss"}, {"name": "size"}])
    story.ask("w1")
    for told, reason in (
            ({"value": 1.0}, "bad-field"), ({"folds": [1.0]}, "bad-field"), ({"values": {"loss": 1.0}}, "bad-field"),
            ({"value": 1.0, "values": {}}, "bad-field"), ({"state": "complete"}, "bad-field"),
            ({"value": True}, "bad-field"), ({"value": 1.0, "cost": -1}, "bad-field"),
            ({"study": "nope", "value": 1.0}, "unknown-study"), ({"fence": 2, "value": 1.0}, "unknown-trial"),
            ({"study": "No!", "value": 1.0}, "bad-name")):
        facts, letters = story.tell("w1", 1, **told)
        assert (facts, [(letter[2]["status"], letter[2]["reason"]) for letter in letters]) == (
            [], [("rejected", reason)])
    assert story.tell("w1", 1, values={"loss": 1.0, "size": 2.0})[1][0][2]["status"] == "recorded"


def test_10_too_many_standing_asks_are_told_to_come_again() -> None:
    story = Story()
    story.request("op", "study.pause")
    for i in range(rules.STANDING_MAX):
        rules.on_ask(story.desk, "w1", validate("ask", {"id": f"a{i}", "run": "w1-r1", "study": "s"}))
    story.said()
    assert story.ask("w1", id="more") == ([], [receipt("w1", "more", "rejected", run="w1-r1", reason="rate",
                                                       retry_after_s=10.0)])
    assert story.ask("w2")[1] == [answer("w2", "waiting", "paused")]


# ---------------------------------------------------------------- budgets


def test_the_budget_of_trials_counts_neither_retries_nor_voids() -> None:
    story = Story(budget={"trials": 2})
    story.ask("w1")
    story.tick(600.0)
    story.ask("w1", id="a2")
    story.tell("w1", 1, fence=2, value=0.5)
    story.request("op", "trial.void", study="s", trial=1, reason="a test")
    assert [fact[0] for fact in story.ask("w1", id="a3", n=3)[0]] == ["trial.proposed", "trial.leased"] * 2
    story.tell("w1", 2, value=0.5)
    assert story.tell("w1", 3, value=0.5)[0][1:] == [("study.closed", None, {"rule": "trials", "running": "finish"})]


def test_the_budget_of_cost_closes_at_once_and_what_is_open_is_still_recorded() -> None:
    story = Story(budget={"cost": 3})
    story.ask("w1", n=3)
    story.tell("w1", 1, state="fail", cost=2)
    assert story.tell("w1", 2, value=0.5, cost=1)[0][1:] == [
        ("study.closed", None, {"rule": "cost", "running": "finish"})]
    assert story.tell("w1", 3, value=0.5)[1][0][2]["status"] == "recorded"


def test_the_budget_of_wall_time_counts_open_unpaused_time_while_a_daemon_lives() -> None:
    story = Story(budget={"wall": 1000})
    story.tick(100.0)
    story.request("op", "study.pause")
    story.tick(5000.0)
    story.request("op", "study.resume", id="q2")
    story.at(5100.0)
    story.request("op", "study.enqueue", id="q3", params={"x": 1.0})
    story.ask("w1")                      # an event that notes the time
    story.desk.at(9000.0, "")
    story.restart()                      # nobody lived since then
    assert story.tick(9799.0)[0] == [("lease.expired", 1, {"fence": 1})]
    assert story.tick(9800.0)[0][0] == ("study.closed", None, {"rule": "wall", "running": "finish"})


def test_a_plainer_sampler_answers_under_a_deadline_and_its_point_is_not_made_again() -> None:
    story = Story()
    story.thinks = False
    story.ask("w1")
    (slow,) = rules.orders(story.desk)
    story.at(2.0)
    (order,) = rules.overdue(story.desk, 1.2)
    point = Suggestion((Proposal({"x": 1.0}, "random", "0/1/random", 1),))
    rules.supply_fallback(story.desk, order, point)
    type, number, data = proposed(1)
    assert story.said() == ([(type, number, {**data, "drawn": 0, "fallback": "deadline"}), leased(1, "w1")],
                            [granted(1, "w1")])
    rules.supply(story.desk, slow, point)       # it comes late, and is the very same point
    assert story.ask("w2") == ([], [])


def test_a_plainer_sampler_answers_only_where_the_other_is_slow_and_leaves_it_under_way() -> None:
    story = Story()
    story.thinks = False
    assert rules.overdue(story.desk, 1.2) == []
    story.ask("w1", n=2)
    rules.orders(story.desk)
    story.at(1.0)
    assert rules.overdue(story.desk, 1.2) == []
    story.at(1.2)
    (order,) = rules.overdue(story.desk, 1.2)
    assert (order.wanted, order.problem.method) == (2, "random")
    rules.supply_fallback(story.desk, order, Suggestion((Proposal({"x": 1.0}, "random", "0/1/random", 1),)))
    assert rules.orders(story.desk) == []         # one is enough


def test_who_trains_for_long_waits_longer_for_a_good_point() -> None:
    story = Story()
    for number in (1, 2):
        story.ask("w1", id=f"a{number}")
        story.tell("w1", number, value=0.5, seconds=500.0)
    story.thinks = False
    story.desk.drawer("s").drop()
    story.ask("w1", id="a3")
    rules.orders(story.desk)
    for now, count in ((9.9, 0), (10.0, 1)):       # two hundredths of their mean
        story.at(now)
        assert len(rules.overdue(story.desk, 1.2)) == count


def test_no_fallback_without_a_suggestion_under_way() -> None:
    story = Story()
    story.thinks = False
    story.ask("w1")
    story.at(50.0)
    assert rules.overdue(story.desk, 1.2) == []


def test_a_run_that_ends_the_last_lease_closes_its_study() -> None:
    story = Story(budget={"trials": 1}, retry={"lost": 0})
    story.ask("w1")
    assert [fact[0] for fact in story.beat("w1", run="w1-r2")[0]] == ["run.began", "trial.failed", "study.closed"]


def test_open_time_is_noted_once_a_minute_while_something_runs() -> None:
    story = Story()
    story.tick(100.0)
    story.ask("w1")
    for second in range(101, 400):
        story.tick(float(second))
    assert [row.type for row in story.rows].count("study.ticked") == 4
    assert story.desk.state.studies["s"].elapsed_s == 340.0


def test_a_late_outcome_that_becomes_the_result_is_learned_once_and_a_failures_value_never() -> None:
    for told, known in (({"state": "pruned", "value": 3}, [(1, (3.0,))]),
                        ({"state": "fail", "value": 3}, [(1, None)]), ({"value": 3}, [(1, (3.0,))])):
        story = Story(lease={"default_s": 10}, retry={"lost": 1})
        story.ask("w1")
        story.tick(11)
        story.ask("w2")
        story.tell("w1", 1, **told)
        assert story.tick(30)[0][-1][2]["promoted"] == len(story.rows) - 2
        assert [(seen.trial, seen.values) for seen in story.desk.state.studies["s"].history] == known
        story.check()
