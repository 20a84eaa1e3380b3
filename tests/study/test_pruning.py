"""Who is stopped at a report, that it is decided once and on record, and what becomes of a worker that goes on."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.study.audited import stops_are_made_again
from tests.study.story import BASE, Letter, Story

from bayesd import Study
from bayesd.study.board import Board, board_of, bracket_of
from bayesd.study.pruning.quantile import percentile
from bayesd_schemas.study import LOGGED, Fidelity, StudySpec

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
    with pytest.raises(ValidationError, match='by = "a", by = "b", or by = "dominance"'):
        StudySpec.model_validate({**BASE, "objectives": [{"name": "a"}, {"name": "b"}], "prune": {"rule": "median"}})
    with pytest.raises(ValidationError, match="none of the objectives"):
        StudySpec.model_validate({**BASE, "metric": "loss", "prune": {"rule": "median", "metric": "a"}})
    with pytest.raises(ValidationError, match="by and metric say the same"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "median", "metric": "value", "by": "value"}})
    with pytest.raises(ValidationError, match="chance is for rule"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "median", "chance": 0.1}})
    with pytest.raises(ValidationError, match="percentile is for"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "median", "percentile": 10}})


EPOCHS = {"name": "epochs", "min": 1, "max": 9, "reduction": 2}


def test_asha_stops_at_a_rung_what_is_not_among_its_best() -> None:
    story = Story(prune={"rule": "asha"}, fidelity=EPOCHS)
    facts, letters = story.ask("w1", n=1)
    assert letters[0][2]["fidelity"] == {"name": "epochs", "value": 9}
    assert len(story.report("w1", 1, 1, 5.0)[0]) == 1           # the first is the best so far
    assert len(story.report("w1", 1, 2, 4.0)[0]) == 1
    story.ask("w2")
    assert len(story.report("w2", 2, 1, 3.0)[0]) == 1
    assert len(story.report("w2", 2, 5, 3.5)[0]) == 1           # past rungs 2 and 4 in one go
    story.ask("w3")
    facts, _ = story.report("w3", 3, 1, 4.5)
    assert facts[1][2] == {"fence": 1, "step": 1, "rule": "asha", "metric": "value", "value": 4.5, "threshold": 3.0,
                           "compared": 3, "rung": 1, "kept": 1}
    facts, _ = story.report("w1", 1, 4, 3.75)
    assert facts[1][2]["rung"] == 4
    story.restart()
    story.ask("w4")
    facts, _ = story.report("w4", 4, 1, 4.75)                   # the second of four goes on, and 4.75 is the third
    assert (facts[1][2]["kept"], facts[1][2]["threshold"]) == (2, 4.5)
    story.check()


def test_a_trial_that_is_voided_or_leased_anew_leaves_its_rungs() -> None:
    story = Story(prune={"rule": "asha"}, fidelity=EPOCHS, lease={"default_s": 60})
    story.ask("w1")
    story.report("w1", 1, 1, 1.0)
    story.tell("w1", 1, value=1.0)
    story.ask("w2")
    assert len(story.report("w2", 2, 1, 2.0)[0]) == 2
    story.request("op", "trial.void", id="v", trial=1, reason="x")
    story.request("op", "trial.void", id="v2", trial=2, reason="x")
    story.ask("w3")
    assert len(story.report("w3", 3, 1, 3.0)[0]) == 1
    story.tick(100.0)
    story.ask("w4")
    assert len(story.report("w4", 3, 1, 4.0, fence=2)[0]) == 1
    story.check()


def test_hyperband_gives_its_brackets_their_usual_shares() -> None:
    fidelity = Fidelity(name="epochs", min=1, max=81, reduction=3)       # the first rungs are 1, 3, 9 and 27
    shares = [bracket_of(fidelity, number) for number in range(1, 28 + 12 + 6 + 4)]
    assert [shares.count(bracket) for bracket in range(4)] == [27, 12, 6, 4]
    assert {*shares[:10]} == {0, 1, 2}                          # mixed, not one after the other
    story = Story(prune={"rule": "hyperband"}, fidelity={**EPOCHS, "max": 5})
    for number in range(1, 12):
        story.ask(f"w{number}")
    waits = [number for number in range(1, 12) if bracket_of(Fidelity(**{**EPOCHS, "max": 5}), number) > 0]
    for number in range(1, 12):
        facts, _ = story.report(f"w{number}", number, 1, float(number))
        assert (number in waits or number == 1) <= (len(facts) == 1)
    story.check()


@pytest.mark.parametrize("by", [None, "dominance"])
@pytest.mark.parametrize("shared", [False, True])
def test_brackets_that_share_a_rung_are_held_against_each_other(shared: bool, by: str | None) -> None:
    """A late bracket's first trial has nobody before it in its own rung, and a trial of the first in a common one."""
    spec = {**EPOCHS, "max": 5}
    late = next(number for number in range(1, 12) if bracket_of(Fidelity(**spec), number) > 0)
    goals = ["value", "other"] if by else ["value"]
    story = Story(prune={"rule": "hyperband", "shared": shared, "by": by}, fidelity=spec,
                  objectives=[{"name": name} for name in goals])
    for number in range(1, late + 1):
        story.ask(f"w{number}")
    story.report("w1", 1, 1, dict.fromkeys(goals, 1.0))
    story.report("w1", 1, 2, dict.fromkeys(goals, 1.0))
    assert not story.report(f"w{late}", late, 1, dict.fromkeys(goals, 9.0))[1][0][2].get("stop")
    facts, _ = story.report(f"w{late}", late, 2, dict.fromkeys(goals, 9.0))
    stops = [data for type, _, data in facts if type == "trial.stopped"]
    assert [(stop["bracket"], stop["rung"], stop["compared"]) for stop in stops] == ([(1, 2, 2)] if shared else [])
    story.request("op", "trial.void", id="v", trial=1, reason="x")
    story.check()


@pytest.mark.parametrize("rule", ["median", "percentile", "asha", "hyperband", "curve"])
def test_a_stop_is_made_again_by_the_audit_and_told_by_why(rule: str) -> None:
    story = Story(prune={"rule": rule, "startup": 3 if rule == "curve" else 2}, fidelity=EPOCHS)
    for number in range(1, 20):
        story.ask(f"w{number}")
        for step in range(1, 10):
            if story.report(f"w{number}", number, step, (number * 7 % 11) / step)[1][0][2].get("stop"):
                story.tell(f"w{number}", number, state="pruned")
                break
        else:
            story.tell(f"w{number}", number, value=number * 7 % 11)
    stops_are_made_again(story, threshold=-1.0)
    story.check()


def test_rungs_need_a_fidelity() -> None:
    with pytest.raises(ValidationError, match="needs \\[fidelity\\]"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "asha"}})
    with pytest.raises(ValidationError, match="not below max"):
        StudySpec.model_validate({**BASE, "fidelity": {"name": "epochs", "min": 9, "max": 9}})
    with pytest.raises(ValidationError, match="has brackets"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "asha", "shared": True}, "fidelity": EPOCHS})


def test_a_report_is_a_fold_or_so_many_epochs_and_not_both() -> None:
    """A trial stopped after three epochs would be learned from as if it were three folds."""
    said = {**BASE, "fidelity": {"name": "epochs", "max": 9}, "folds": {"count": 5}, "prune": {"rule": "asha"}}
    with pytest.raises(ValidationError, match="a report is a fold, and rule asha takes its step for epochs"):
        StudySpec.model_validate(said)
    StudySpec.model_validate({**said, "prune": {"rule": "asha", "resume": True}})
    StudySpec.model_validate(said, context=LOGGED)         # a log of before stays readable


def test_in_one_process_a_study_says_when_to_stop(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('name = "s"\nmethod = "random"\n[prune]\nrule = "asha"\n[fidelity]\nname = "epochs"\nmax = 9\n'
                    '[space.x]\ntype = "float"\nlow = 0\nhigh = 1\n')
    with Study.from_file(file) as study:
        for value in (1.0, 2.0):
            trial = study.ask()
            assert not study.should_prune(trial)
            study.report(trial, value, step=1)
        assert study.should_prune(trial)
        study.tell(trial, state="pruned")


def test_what_a_stopped_trial_had_at_its_rungs_is_learned_as_that_and_a_fork_knows_it() -> None:
    story = Story(prune={"rule": "asha"}, fidelity={**EPOCHS, "max": 8})
    story.ask("w1")
    for step in (1, 2, 3, 4, 8):
        story.report("w1", 1, step, 9.0 - step)
    story.tell("w1", 1, value=1.0)
    story.ask("w2")
    story.report("w2", 2, 1, 7.5)
    assert len(story.report("w2", 2, 3, 6.5)[0]) == 1       # past rung 2 it counts there
    assert story.report("w2", 2, 4, 7.0)[1][0][2]["stop"] == "pruned"
    story.tell("w2", 2, state="pruned")
    story.ask("w3")
    story.report("w3", 3, 1, float("nan"))
    story.tell("w3", 3, state="fail")
    seen = story.desk.state.studies["s"].history
    assert [each.fidelity for each in seen] == [None, 0.5, None]
    assert seen[0].curve == ((0.125, 8.0), (0.25, 7.0), (0.5, 5.0))
    assert seen[1].curve == ((0.125, 7.5), (0.25, 6.5), (0.5, 7.0))
    story.request("op", "study.fork", **{"as": "f"})
    forked = story.desk.state.studies["f"].history
    assert [(each.values, each.fidelity, each.curve) for each in forked] == [
        (each.values, each.fidelity, each.curve) for each in seen]
    story.check()


@pytest.mark.parametrize("by", [None, "dominance"])
@pytest.mark.parametrize("rule", ["median", "asha"])
def test_what_breaks_a_limit_stops_nobody(rule: str, by: str | None) -> None:
    """It is better because it may break the limit: held against it, what keeps the limit would never come to an end."""
    goals = ["value", "other"] if by else ["value"]
    story = Story(limits=[{"name": "latency", "at_most": 1.0}], prune={"rule": rule, "startup": 1, "by": by},
                  fidelity={"name": "epochs", "max": 9}, objectives=[{"name": name} for name in goals])
    for number, (value, latency) in enumerate([(1.0, 5.0), (1.5, 7.0)], start=1):
        story.ask("w1", f"a{number}")
        story.report("w1", number, 1, dict.fromkeys(goals, value))
        story.tell("w1", number, values={**dict.fromkeys(goals, value), "latency": latency})
    story.ask("w1", "a3")
    assert "trial.stopped" not in [type for type, *_ in story.report("w1", 3, 1, dict.fromkeys(goals, 4.0))[0]]
    story.tell("w1", 3, values={**dict.fromkeys(goals, 4.0), "latency": 0.5})
    story.ask("w1", "a4")
    last = story.report("w1", 4, 1, dict.fromkeys(goals, 5.0))
    assert "trial.stopped" in [type for type, *_ in last[0]]        # it is behind one that keeps the limit
    story.check()


@pytest.mark.parametrize("rule", ["median", "asha"])
def test_what_reports_come_to_is_kept_up_to_date_and_is_what_all_of_them_say(rule: str) -> None:
    """Steps out of order, another lease and a replay: what was added up is what a look at all reports finds."""
    story = Story(prune={"rule": rule, "startup": 100}, fidelity={"name": "epochs", "max": 9})
    story.ask("w1")
    board = board_of(story.desk.state.studies["s"])
    trial = story.desk.state.studies["s"].trials[0]

    def check(furthest: int, best: float) -> None:
        seen = board.seen(trial)
        assert (seen.furthest, seen.best) == (furthest, best)
        assert seen.entered == Board(trial.study).seen(trial).entered

    for step, value, furthest, best in ((2, 5.0, 2, 5.0), (0, 9.0, 2, 5.0), (4, None, 4, 5.0), (3, 4.0, 4, 4.0)):
        story.report("w1", 1, step, value)
        check(furthest, best)
    story.tick(700.0)
    story.ask("w2")
    for step, value in ((0, 7.0), (1, 8.0), (2, 8.5), (3, 9.0), (4, 9.5)):
        story.report("w2", 1, step, value, fence=2)
    check(4, 7.0)
    story.check()
