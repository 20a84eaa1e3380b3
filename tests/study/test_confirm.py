"""The leaders are measured again before a winner is announced: who gets what, what counts, what is said."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tests.study.story import Fact, Story

from bayesd import audit, winner
from bayesd.replay import event_of
from bayesd.study import confirm, snapshot, view


def measured(values: dict[int, tuple[str, float]], **spec: Any) -> Story:
    """A story whose trials were leased, in order, to these workers, who told these values."""
    story = Story(budget={"trials": len(values)}, **spec)
    for number, (worker, value) in values.items():
        story.ask(worker, f"a{number}")
        story.tell(worker, number, value=value)
    return story


def proposed(facts: list[Fact]) -> list[tuple[int | None, int]]:
    return [(trial, data["of"]) for type, trial, data in facts if type == "trial.proposed"]


TWO = {1: ("w1", 5.0), 2: ("w2", 1.0), 3: ("w1", 3.0), 4: ("w2", 2.0)}


def test_when_the_trials_are_used_up_the_leaders_go_to_another_worker_and_count_for_no_budget() -> None:
    story = measured(TWO, confirm={"top": 2, "repeats": 1})
    study = story.desk.state.studies["s"]
    assert study.status == "open"
    assert study.confirm == [2, 4]
    assert proposed(story.ask("w2", "b1")[0]) == []             # both are its own, and w1 was here a moment ago
    assert proposed(story.ask("w1", "b2", n=2)[0]) == [(5, 2), (6, 4)]
    assert study.used == 4
    story.tell("w1", 5, value=1.75)
    facts, letters = story.tell("w1", 6, value=0.75)
    assert [type for type, *_ in facts] == ["trial.completed", "study.winner", "study.closed"]
    assert facts[1][2] == {"trial": 4, "confirmed": True, "leaders": [
        {"trial": 2, "value": 1.0, "repeats": [5], "measured": 1, "mean": 1.75, "elsewhere": True},
        {"trial": 4, "value": 2.0, "repeats": [6], "measured": 1, "mean": 0.75, "elsewhere": True}]}
    assert letters[-1] == ("w2", "receipt", {"id": "b1", "run": "w2-r1", "status": "closed", "reason": "budget"})
    assert study.best is study.trials[1]          # a repeat never leads
    story.check()


def test_the_winner_in_words_is_the_default_rule_afterwards() -> None:
    story = measured(TWO, confirm={"top": 2})
    story.ask("w1", "b", n=2)
    story.tell("w1", 5, value=1.75)
    story.tell("w1", 6, value=1.5)
    study = story.desk.state.studies["s"]
    chosen = winner.of(study, story.desk.problem(study)[0], None)
    assert (chosen["rule"], chosen["trial"], chosen["value"]) == ("confirmed", 4, 1.5)
    assert chosen["reason"] == ("of 2 leaders that were measured again it did best: 1.5, measured once on another "
                                "worker; it was 2 when it was chosen")
    assert winner.of(study, story.desk.problem(study)[0], "best")["trial"] == 2
    assert view.confirmation(study)["confirmation"]["left"] == 0


def test_alone_a_worker_measures_its_own_leaders_and_that_is_on_record() -> None:
    story = measured({1: ("w1", 1.0), 2: ("w1", 2.0)}, confirm={"top": 1})
    assert proposed(story.ask("w1", "b")[0]) == [(3, 1)]
    facts, _ = story.tell("w1", 3, value=1.5)
    assert facts[1][2]["leaders"][0]["elsewhere"] is False


def test_a_leader_waits_for_another_worker_for_a_while_and_not_for_ever() -> None:
    story = measured(TWO, confirm={"top": 1})
    assert proposed(story.ask("w2", "b")[0]) == []
    assert proposed(story.tick(confirm.OTHERS_S - 1)[0]) == []
    assert proposed(story.tick(confirm.OTHERS_S + 1)[0]) == [(5, 2)]


def test_a_leader_waits_while_another_worker_is_at_work() -> None:
    story = Story(budget={"trials": 3}, confirm={"top": 1})
    for number, worker in ((1, "w1"), (2, "w2"), (3, "w1")):
        story.ask(worker, f"a{number}", lease_s=600)
    story.tell("w2", 2, value=1.0)
    story.request("op", "study.confirm", top=1)
    story.ask("w2", "b")
    assert proposed(story.tick(100.0)[0]) == []
    story.tell("w1", 1, value=4.0)
    assert proposed(story.ask("w1", "c")[0]) == [(4, 2)]


def test_by_hand_a_closed_study_opens_for_the_confirmation_alone_and_closes_by_the_same_rule() -> None:
    story = measured(TWO)
    study = story.desk.state.studies["s"]
    assert study.status == "closed"
    _, letters = story.request("op", "study.confirm", top=2, repeats=2)
    assert letters[0][2]["result"]["leaders"] == [2, 4]
    assert story.request("op", "study.enqueue", id="q2", params={"x": 7})[1][0][2]["error"]["code"] == "closed"
    assert story.request("op", "study.confirm", id="q3")[1][0][2]["error"]["code"] == "busy"
    assert proposed(story.ask("w1", "b", n=9)[0]) == [(5, 2), (6, 4), (7, 2), (8, 4)]
    for number, value in ((5, 3.0), (6, 2.0), (7, 2.5), (8, 2.5)):
        facts, _ = story.tell("w1", number, value=value)
    assert [(type, data.get("rule")) for type, _, data in facts[1:]] == [
        ("study.winner", None), ("study.closed", "trials")]
    assert facts[1][2]["trial"] == 4
    story.check()


def test_nothing_is_confirmed_where_nothing_is_complete() -> None:
    story = Story(budget={"trials": 1}, confirm={"top": 2})
    assert story.request("op", "study.confirm")[1][0][2]["error"]["message"].startswith("no trial of s is complete")
    story.ask("w1")
    facts, _ = story.tell("w1", 1, state="fail")
    assert [type for type, *_ in facts] == ["trial.failed", "study.closed"]


@pytest.mark.parametrize(("args", "key"), [({"top": 0}, "top"), ({"repeats": "two"}, "repeats"), ({"top": 1e9}, "top")])
def test_a_wrong_number_is_refused(args: dict[str, Any], key: str) -> None:
    error = measured(TWO).request("op", "study.confirm", **args)[1][0][2]["error"]
    assert (error["code"], error["key"]) == ("bad-field", key)


def test_failed_repeats_leave_the_leader_unconfirmed_and_say_so() -> None:
    story = measured(TWO, confirm={"top": 2})
    story.ask("w1", "b", n=2)
    story.tell("w1", 5, state="fail")
    facts, _ = story.tell("w1", 6, state="fail")
    assert facts[1][2]["trial"] == 2
    assert facts[1][2]["confirmed"] is False
    study = story.desk.state.studies["s"]
    assert winner.of(study, story.desk.problem(study)[0], None)["rule"] == "best"
    assert winner.of(study, story.desk.problem(study)[0], "confirmed")["trial"] is None


def test_a_voided_leader_is_not_measured_and_the_next_ones_are_confirmed_instead() -> None:
    story = measured(TWO, confirm={"top": 1})
    facts, _ = story.request("op", "trial.void", trial=2, reason="unplugged")
    study = story.desk.state.studies["s"]
    assert study.confirm == []
    assert [type for type, *_ in facts][:2] == ["outcome.voided", "study.winner"]
    assert facts[1][2]["trial"] is None
    assert study.used == 3                      # and so there is room for another trial
    story.ask("w1", "b")
    story.tell("w1", 5, value=9.0)
    assert study.confirm == [4]
    story.check()


def test_a_point_counts_once_among_the_leaders() -> None:
    story = Story(budget={"trials": 3}, enqueue=[{"x": 1}, {"x": 1}, {"x": 2}])
    for number, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        story.ask("w1", f"a{number}")
        story.tell("w1", number, value=value)
    assert [trial.number for trial in confirm.leaders(story.desk.state.studies["s"], 2)] == [1, 3]


def test_everything_survives_a_restart_in_the_middle() -> None:
    story = measured(TWO, confirm={"top": 2, "repeats": 2})
    story.ask("w1", "b1")
    story.restart()
    study = story.desk.state.studies["s"]
    assert study.confirm == [4, 2, 4]
    digest, blob = snapshot.dump(story.desk.state)
    again = snapshot.load(digest, blob)
    assert again is not None
    assert snapshot.dump(again) == (digest, blob)
    assert again.studies["s"].trials[4].of == 2


def best_of(story: Story) -> dict[str, Any]:
    study = story.desk.state.studies["s"]
    return winner.of(study, story.desk.problem(study)[0], None)


def confirmed(story: Story) -> Story:
    """w1 measures both leaders of TWO again: 2 (1.75) and 4 (1.5), which wins."""
    story.ask("w1", "b", n=2)
    story.tell("w1", 5, value=1.75)
    story.tell("w1", 6, value=1.5)
    return story


@pytest.mark.parametrize(("voided", "chosen"), [(4, 2), (6, 2), (5, 4), (2, 4)])
def test_a_winner_does_not_outlive_what_it_rests_on(voided: int, chosen: int) -> None:
    story = confirmed(measured(TWO, confirm={"top": 2}))
    facts, _ = story.request("op", "trial.void", trial=voided, reason="unplugged")
    assert [type for type, *_ in facts] == ["outcome.voided", "study.winner"]
    assert (best_of(story)["rule"], best_of(story)["trial"]) == ("confirmed", chosen)
    story.check()


def test_a_winner_that_only_a_revoked_worker_confirmed_is_confirmed_no_more() -> None:
    story = confirmed(measured(TWO, confirm={"top": 2}))
    story.request("op", "worker.revoke", worker="w1", void=True, reason="its clock was wrong")
    assert (best_of(story)["rule"], best_of(story)["trial"]) == ("best", 2)
    story.check()


def test_a_repeat_that_comes_after_it_was_given_up_as_lost_counts() -> None:
    story = measured(TWO, confirm={"top": 2}, retry={"lost": 0})
    story.ask("w1", "b", n=2)
    story.tell("w1", 5, value=1.75)
    story.tick(700.0)
    assert best_of(story)["trial"] == 2
    facts, _ = story.tell("w1", 6, value=1.5)
    assert [type for type, *_ in facts] == ["trial.completed", "study.winner"]
    assert best_of(story)["trial"] == 4
    story.check()


def test_who_gave_a_trial_back_has_not_measured_it() -> None:
    story = measured(TWO, confirm={"top": 1})
    story.ask("w1", "b")
    story.tell("w1", 5, state="released")
    story.ask("w2", "c")
    facts, _ = story.tell("w2", 5, fence=2, value=1.0)
    assert facts[1][2]["leaders"][0]["elsewhere"] is False


def test_a_fork_knows_who_measured_its_imported_leader() -> None:
    story = measured(TWO)
    story.request("op", "study.fork", **{"as": "t"}, changes={"confirm": {"top": 1}})
    story.request("op", "study.confirm", id="c", study="t", top=2)
    story.ask("w2", "b", study="t", n=2)                 # both are its own, and nobody else is there
    story.tell("w2", 5, study="t", value=1.0)
    story.tell("w2", 6, study="t", value=1.0)
    fork = story.desk.state.studies["t"]
    assert fork.winner is not None
    assert [each["elsewhere"] for each in fork.winner["leaders"]] == [False, False]
    story.check()


@pytest.mark.parametrize("changes", [
    {"space": {"x": {"type": "float", "low": 3, "high": 4}}}, {"constraints": ["x >= 3"]},
    {"space": {"x": None, "y": {"type": "float", "low": 0, "high": 9}}}])
def test_a_point_that_may_not_be_proposed_any_more_is_not_measured_again(changes: dict[str, Any]) -> None:
    story = Story(budget={"trials": 9}, confirm={"top": 3})
    for number in (1, 2, 3):
        story.ask("w1", f"a{number}")
        story.tell("w1", number, value=float(number))
    story.request("op", "study.confirm", id="c", top=3)
    story.request("op", "study.amend", id="am", changes=changes)
    study = story.desk.state.studies["s"]
    assert study.confirm == ([3] if "constraints" in changes else [])
    left = [trial.number for trial in confirm.leaders(study, 3)]
    assert left == ([] if "y" in changes.get("space", {}) else [3])
    story.check()


def test_what_is_measured_again_costs_no_budget() -> None:
    story = Story(budget={"trials": 2, "cost": 3.0}, confirm={"top": 2})
    for number, worker in ((1, "w1"), (2, "w2")):
        story.ask(worker, f"a{number}")
        story.tell(worker, number, value=float(number), cost=1.0)
    story.ask("w2", "b")
    story.ask("w1", "b")
    story.tell("w2", 3, value=1.0, cost=5.0)
    facts, _ = story.tell("w1", 4, value=2.0, cost=5.0)
    assert [type for type, *_ in facts] == ["trial.completed", "study.winner", "study.closed"]
    study = story.desk.state.studies["s"]
    assert (study.closed_by, study.cost) == ("trials", 2.0)


def test_a_study_that_is_open_for_a_confirmation_leases_nothing_else() -> None:
    story = Story(budget={"trials": 9}, retry={"crash": 5})
    for number in (1, 2, 3, 4):
        story.ask(f"w{number}", f"a{number}", lease_s=50)
    story.tell("w1", 1, value=1.0)
    story.request("op", "study.close", id="close")
    story.request("op", "study.confirm", id="c", top=1)
    story.tell("w2", 2, state="fail")
    story.tell("w3", 3, state="released")
    story.tick(60.0)
    assert [trial.status for trial in story.desk.state.studies["s"].trials] == ["complete", "fail", "fail", "fail"]
    assert proposed(story.ask("w4", "b", n=9)[0]) == [(5, 1)]
    story.tell("w4", 5, value=2.0)
    assert story.desk.state.studies["s"].closed_by == "operator"
    story.check()


def test_nobody_waits_for_a_repeat_of_a_confirmation_that_a_close_cut_off() -> None:
    story = measured(TWO, confirm={"top": 2})
    story.ask("w1", "b")
    story.request("op", "study.close", id="close")
    story.request("op", "study.confirm", id="c", top=1)
    assert proposed(story.ask("w3", "b")[0]) == [(6, 2)]
    facts, _ = story.tell("w3", 6, value=1.0)
    assert [type for type, *_ in facts] == ["trial.completed", "study.winner", "study.closed"]
    assert story.tell("w1", 5, value=1.0)[0][0][0] == "trial.completed"
    story.check()


def judged(story: Story, forge: Callable[[dict[str, Any]], None]) -> dict[str, str]:
    """What an audit says of the winners of a log whose events were changed before they were hashed."""
    events, plan = [], audit.Plan()
    for row in story.rows:
        body = orjson.loads(row.body)
        forge(body)
        events.append(event_of(orjson.dumps(body), row.hash))
        plan.note(events[-1])
    return {verdict.outcome: ",".join((verdict.evidence or {}).get("differs", ()))
            for verdict in (audit.judge(moment, "") for moment in audit.moments(events, plan.cases))
            if verdict.what == "winner"}


@pytest.mark.parametrize(("change", "said"), [
    ({}, {"same": ""}), ({"trial": 2}, {"diverged": "trial"}), ({"confirmed": False}, {"diverged": "confirmed"}),
    ({"leaders": []}, {"diverged": "leaders"}), ({"trial": "4"}, {"diverged": "trial"})])
def test_an_audit_works_out_the_winner_again(change: dict[str, Any], said: dict[str, str]) -> None:
    def forge(body: dict[str, Any]) -> None:
        if body["type"] == "study.winner":
            body["data"].update(change)
    assert judged(confirmed(measured(TWO, confirm={"top": 2})), forge) == said


def test_a_snapshot_keeps_the_order_of_the_leaders() -> None:
    """The winner is said with them in that order, whether the daemon started from a snapshot meanwhile or not."""
    story = measured({1: ("w1", 3.0), 2: ("w2", 1.0)}, confirm={"top": 2, "repeats": 1})
    study = story.desk.state.studies["s"]
    assert list(study.repeated) == [2, 1]
    loaded = snapshot.load(*snapshot.dump(story.desk.state))
    assert loaded is not None
    assert list(loaded.studies["s"].repeated.items()) == [(2, []), (1, [])]
    assert snapshot.digest(loaded) == snapshot.digest(story.replayed())
