"""Trials that pause at rungs: who goes on, from which checkpoint, and how such a study ends."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError
from tests.study.story import BASE, Story

from bayesd import Study, audit, winner
from bayesd.replay import event_of
from bayesd.study import ladder, view
from bayesd.study.board import bracket_of
from bayesd_schemas.study import Fidelity, StudySpec

RUNGS: dict[str, Any] = {"prune": {"rule": "asha", "resume": True},
                         "fidelity": {"name": "epochs", "max": 9, "reduction": 3}}


def climbing(values: list[float], **spec: Any) -> Story:
    """Trials 1, 2, ... of one worker each, paused at rung 1 with these values."""
    story = Story(**{**RUNGS, **spec})
    for number in range(1, len(values) + 1):
        story.ask(f"w{number}")
    for number, value in enumerate(values, start=1):
        story.tell(f"w{number}", number, value=value, checkpoint=f"c{number}")
    return story


def grants(said: Any) -> list[tuple[int, int, dict[str, Any]]]:
    return [(body["trial"], body["fence"], body["fidelity"]) for _, kind, body in said[1] if kind == "grant"]


def test_a_trial_is_leased_up_to_a_rung_and_pauses_there() -> None:
    story = Story(**RUNGS)
    assert grants(story.ask("w1")) == [(1, 1, {"name": "epochs", "value": 1})]
    facts, letters = story.tell("w1", 1, value=2.0, checkpoint="c1", seconds=3.0)
    assert facts == [("trial.paused", 1, {"fence": 1, "values": {"value": 2}, "fidelity": 1, "checkpoint": "c1",
                                          "seconds": 3})]
    assert [body["status"] for _, _, body in letters] == ["recorded"]
    assert story.tell("w1", 1, value=2.0, checkpoint="c1")[1][0][2]["status"] == "duplicate"
    assert story.tell("w1", 1, value=2.0, checkpoint="c9")[1][0][2]["status"] == "late"
    assert story.report("w1", 1, 1, 2.0)[1][0][2]["status"] == "late"
    study = story.desk.state.studies["s"]
    assert [seen.values for seen in study.history] == [(2.0,)]
    assert study.best is None
    story.check()


def test_the_best_third_goes_on_before_a_new_trial_and_nobody_waits() -> None:
    story = climbing([3.0, 2.0])
    assert grants(story.ask("w3")) == [(3, 1, {"name": "epochs", "value": 1})]     # two are no third: a new one
    facts, _ = story.tell("w3", 3, value=1.0)
    assert [type for type, *_ in facts] == ["trial.paused"]
    assert grants(story.ask("w4")) == [(3, 2, {"name": "epochs", "value": 3})]      # without a checkpoint: anew
    assert grants(story.ask("w5")) == [(4, 1, {"name": "epochs", "value": 1})]
    story.tell("w5", 4, value=5.0)
    story.ask("w6")
    story.tell("w6", 5, value=0.5, checkpoint="best")
    assert grants(story.ask("w7")) == [(5, 2, {"name": "epochs", "value": 3, "from": "best"})]
    story.restart()
    assert grants(story.ask("w7")) == [(5, 2, {"name": "epochs", "value": 3, "from": "best"})]     # its copy
    story.check()


@pytest.mark.parametrize("shared", [False, True])
def test_brackets_may_share_their_rungs(shared: bool) -> None:
    """Three trials reached rung 3, two of them from there: one of three goes on where they are counted together."""
    fidelity = {"name": "epochs", "max": 9}
    late = [number for number in range(1, 6) if bracket_of(Fidelity(**fidelity), number)]
    assert len(late) == 2
    story = climbing([5.0 if number in late else float(number) for number in range(1, 6)], fidelity=fidelity,
                     prune={"rule": "hyperband", "resume": True, "shared": shared})
    assert grants(story.ask("v")) == [(1, 2, {"name": "epochs", "value": 3, "from": "c1"})]
    story.tell("v", 1, fence=2, value=4.0, checkpoint="d1")
    assert grants(story.ask("u"))[0][:2] == ((1, 3) if shared else (6, 1))
    story.check()


@pytest.mark.parametrize("rule", ["asha", "hyperband"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_budget_of_fidelity_is_kept_and_its_last_part_finishes_the_leaders(rule: str, workers: int) -> None:
    most = 100
    story = Story(budget={"fidelity": most}, prune={"rule": rule, "resume": True},
                  fidelity={"name": "epochs", "max": 27})
    study, draw = story.desk.state.studies["s"], Random(1)
    asked = 0
    while study.status != "closed":
        for number in range(workers - len(study.running)):
            asked += 1
            story.ask(f"w{number}", f"a{asked}")
        trial = next(iter(study.running.values()))
        lease = trial.open_lease
        assert lease is not None
        assert ladder.trained(study) <= most
        story.tell(lease.worker, trial.number, fence=lease.fence, value=draw.random())
        story.check()
    assert study.closed_by == "fidelity"
    assert study.counts["complete"] >= 1
    used = view.study_state(story.desk.state, study, 1.0)["budget"]["used_fidelity"]
    assert used == sum(27 if trial.status == "complete" else max(trial.rungs or (0,)) for trial in study.trials)
    assert most - 27 < used <= most
    assert not study.paused
    rows = [event_of(row.body, row.hash) for row in story.rows]
    plan = audit.Plan()
    for event in rows:
        plan.note(event)
    climbs = [case for case in plan.cases if rows[case.seq - 1].type != "trial.proposed"]
    assert {audit.judge(each, "").outcome for each in audit.moments(rows, climbs)} == {"same"}


def test_a_budget_of_fidelity_needs_rungs_to_pause_at_and_room_for_one_trial() -> None:
    with pytest.raises(ValidationError, match="with pauses"):
        StudySpec.model_validate({**BASE, "budget": {"fidelity": 99}, "fidelity": RUNGS["fidelity"]})
    with pytest.raises(ValidationError, match="not one trial"):
        StudySpec.model_validate({**BASE, **RUNGS, "budget": {"fidelity": 8}})


def test_equals_do_not_all_go_on() -> None:
    story = climbing([1.0] * 6)
    assert [grants(story.ask(f"v{n}"))[0][:2] for n in range(3)] == [(1, 2), (2, 2), (7, 1)]
    story.check()


def test_a_study_ends_when_nobody_can_go_on() -> None:
    story = climbing([float(n) for n in range(9)], budget={"trials": 9})
    for number in (1, 2, 3):
        assert grants(story.ask(f"v{number}")) == [(number, 2, {"name": "epochs", "value": 3, "from": f"c{number}"})]
        story.tell(f"v{number}", number, fence=2, value=10.0 + number, checkpoint=f"d{number}")
    assert grants(story.ask("last")) == [(1, 3, {"name": "epochs", "value": 9, "from": "d1"})]
    facts, _ = story.tell("last", 1, fence=3, value=11.5)
    assert [(type, trial) for type, trial, _ in facts] == [
        ("trial.completed", 1), *(("trial.pruned", n) for n in (4, 5, 6, 7, 8, 9, 2, 3)), ("study.closed", None)]
    assert facts[-2][2] == {"fence": 2, "values": {"value": 13}, "rung": 3, "learn": False, "rule": "asha"}
    assert facts[-1][2]["rule"] == "trials"
    study = story.desk.state.studies["s"]
    assert sorted((seen.trial, seen.values) for seen in study.history) == [      # of each what was told last
        (1, (11.5,)), (2, (12.0,)), (3, (13.0,)), *((n, (n - 1.0,)) for n in range(4, 10))]
    assert study.best is study.trials[0]
    story.check()


@pytest.mark.parametrize("end", ["trials", "operator"])
def test_trials_that_reported_end_where_they_paused_with_their_reports(end: str) -> None:
    story = Story(**RUNGS, budget={"trials": 3}, limits=[{"name": "size", "at_most": 5}])
    for number in (1, 2, 3):
        story.ask(f"w{number}")
        story.report(f"w{number}", number, 1, {"value": 1.0 * number, "size": 4.0})
    for number in (1, 2, 3):
        story.tell(f"w{number}", number, values={"value": 1.0 * number, "size": 4.0})
        story.check()
    if end == "operator":
        story.request("ann", "study.close", study="s")
    else:
        for fence in (2, 3):
            story.ask("w4")
            story.report("w4", 1, 2 * fence, {"value": 0.5, "size": 4.0}, fence=fence)
            story.tell("w4", 1, fence=fence, values={"value": 0.5, "size": 4.0})
    study = story.desk.state.studies["s"]
    assert study.closed_by == end
    assert [trial.status for trial in study.trials[1:]] == ["pruned", "pruned"]
    assert study.trials[1].reports == {1: {"value": 2.0, "size": 4.0}}
    assert [trial.limits for trial in study.trials] == [(4.0,)] * 3
    story.request("ann", "study.fork", id="q2", study="s", **{"as": "f"})
    assert sorted(seen.values or () for seen in story.desk.state.studies["f"].history)[-1] == (3.0,)
    story.check()


def test_a_lost_attempt_is_leased_again_from_the_old_checkpoint_and_ends_where_it_stood() -> None:
    story = climbing([1.0, 2.0, 3.0], retry={"lost": 1})
    story.ask("v1")
    story.tick(700.0)
    assert grants(story.ask("v2")) == [(1, 3, {"name": "epochs", "value": 3, "from": "c1"})]
    facts, _ = story.tick(1400.0)
    assert facts[-1] == ("trial.pruned", 1, {"fence": 3, "values": {"value": 1}, "rung": 1, "learn": False,
                                             "class": "lost"})
    study = story.desk.state.studies["s"]
    assert [(seen.trial, seen.values) for seen in study.history] == [(1, (1.0,)), (2, (2.0,)), (3, (3.0,))]
    facts, _ = story.tell("v2", 1, fence=3, value=0.5, checkpoint="d1")       # after all
    assert facts[0][0] == "trial.paused"
    assert [(seen.trial, seen.values) for seen in study.history] == [(2, (2.0,)), (3, (3.0,)), (1, (0.5,))]
    story.check()


def test_what_is_told_late_of_a_part_never_becomes_the_result() -> None:
    story = Story(**RUNGS, retry={"lost": 1})
    story.ask("w1")
    story.tick(700.0)
    story.ask("w2")
    facts, _ = story.tell("w1", 1, value=1.0)
    assert (facts[0][0], facts[0][2]["learn"]) == ("outcome.late", False)
    facts, _ = story.tick(1400.0)
    assert facts[-1][:2] == ("trial.failed", 1)
    assert [seen.values for seen in story.desk.state.studies["s"].history] == [None]
    story.check()


@pytest.mark.parametrize("end", ["released", "crash"])
def test_what_comes_back_is_leased_again_with_the_same_rung(end: str) -> None:
    story = climbing([1.0, 2.0, 3.0], retry={"crash": 1})
    story.ask("v1")
    story.tell("v1", 1, fence=2, state="released" if end == "released" else "fail")
    assert grants(story.ask("v2")) == [(1, 3, {"name": "epochs", "value": 3, "from": "c1"})]
    story.check()


def test_a_failure_at_a_higher_rung_is_what_is_known_of_the_point() -> None:
    story = climbing([1.0, 2.0, 3.0])
    story.ask("v1")
    story.tell("v1", 1, fence=2, state="fail")
    assert [seen.values for seen in story.desk.state.studies["s"].history] == [(2.0,), (3.0,), None]
    story.check()


def test_every_promotion_is_made_again_by_the_audit() -> None:
    story = climbing([float(n) for n in range(13)], budget={"trials": 13}, retry={"lost": 1})
    for turn in range(9):
        story.ask(f"v{turn}")
        running = [*story.desk.state.studies["s"].running.values()]
        if not running:
            break
        if turn == 1:
            story.tick(1000.0)
            story.ask("again")
            story.tick(2000.0)
        else:
            story.tell(f"v{turn}", running[0].number, fence=running[0].fence, value=10.0 + turn)
    rows = [event_of(row.body, row.hash) for row in story.rows]
    plan = audit.Plan()
    for event in rows:
        plan.note(event)
    seen = list(audit.moments(rows, [case for case in plan.cases if rows[case.seq - 1].type != "trial.proposed"]))
    kinds = Counter(moment.event.type for moment in seen)
    assert kinds["trial.leased"] == 13 + 5 + 1           # one was lost, one trained to the end
    assert kinds["trial.pruned"] == 12
    assert {(audit.judge(moment, "").what, audit.judge(moment, "").outcome) for moment in seen} == {("rung", "same")}

    def outcome(place: int, **changed: Any) -> str:
        edited = rows[place]._replace(**{"data": {**rows[place].data, **changed.pop("data", {})}, **changed})
        case = next(case for case in plan.cases if case.seq == place + 1)
        return audit.judge(next(audit.moments([*rows[:place], edited], [case])), "").outcome

    promoted = next(event.seq - 1 for event in rows if event.type == "trial.leased" and event.data["fence"] == 2)
    assert outcome(promoted) == "same"
    assert outcome(promoted, data={"fidelity": 9}) == "diverged"
    assert outcome(promoted, trial=7) == "diverged"
    ended = next(event.seq - 1 for event in rows if event.type == "trial.pruned" and "rule" in event.data)
    assert outcome(ended, data={"rung": 3}) == "diverged"
    story.check()


def test_a_void_takes_a_trial_out_of_its_rungs() -> None:
    story = climbing([1.0, 2.0, 3.0])
    story.request("op", "trial.void", id="v", trial=2, reason="x")
    assert grants(story.ask("v1")) == [(4, 1, {"name": "epochs", "value": 1})]
    story.request("op", "worker.revoke", id="r", worker="w1", void=True, reason="x")
    assert [seen.trial for seen in story.desk.state.studies["s"].history] == [3]
    story.check()


def test_what_a_revoked_worker_told_at_a_rung_is_void_though_another_went_on() -> None:
    story = climbing([1.0, 2.0, 3.0])
    story.ask("v1")
    story.tell("v1", 1, fence=2, value=0.5)
    story.request("op", "worker.revoke", id="r", worker="w1", void=True, reason="x")
    study = story.desk.state.studies["s"]
    assert study.trials[0].status == "voided"
    assert [seen.trial for seen in study.history] == [2, 3]
    story.check()


@pytest.mark.parametrize("running", ["finish", "stop"])
def test_a_close_ends_what_is_paused(running: str) -> None:
    story = climbing([1.0, 2.0, 3.0, 4.0])
    story.ask("v1")
    facts, _ = story.request("op", "study.close", id="c", running=running)
    assert [(type, trial) for type, trial, _ in facts if type == "trial.pruned"] == [
        ("trial.pruned", n) for n in ((1, 2, 3, 4) if running == "stop" else (2, 3, 4))]
    facts, _ = story.tell("v1", 1, fence=2, value=0.5)
    assert [type for type, *_ in facts] == ["trial.paused", "trial.pruned"]
    story.check()


def test_a_stop_rule_lets_nobody_go_on() -> None:
    story = climbing([1.0, 2.0, 3.0], stop={"target": 0.1}, fidelity={"name": "epochs", "max": 2, "reduction": 3})
    assert grants(story.ask("v1")) == [(1, 2, {"name": "epochs", "value": 2, "from": "c1"})]
    facts, _ = story.tell("v1", 1, fence=2, value=0.05)
    assert [type for type, *_ in facts] == ["trial.completed", "study.stopping", "trial.pruned", "trial.pruned",
                                            "study.closed"]
    story.check()


def test_without_a_whole_training_the_highest_rung_leads_and_is_confirmed_in_full() -> None:
    story = climbing([2.0, 1.0, 3.0], budget={"trials": 3}, confirm={"top": 1})
    story.ask("v1")
    story.tell("v1", 2, fence=2, value=0.5)
    study = story.desk.state.studies["s"]
    assert study.best is None
    assert view.best(study) == {"trial": 2, "value": 0.5, "values": {"value": 0.5}, "params": {"x": 2.0}, "fidelity": 3}
    assert study.repeated == {2: []}
    assert grants(story.ask("v2")) == [(4, 1, {"name": "epochs", "value": 9})]      # a repeat is trained to the end
    facts, _ = story.tell("v2", 4, value=0.25)
    assert [type for type, *_ in facts] == ["trial.completed", "study.winner", "study.closed"]
    assert facts[1][2]["trial"] == 2
    assert "told at rung 3; none is complete" in winner.choose(
        winner.entries(study), story.desk.problem(study)[0], "best")["reason"]
    story.check()


def test_a_fork_takes_over_what_was_told_last() -> None:
    story = climbing([2.0, 1.0, 3.0])
    story.ask("v1")                               # trial 2 is under way to rung 3
    story.request("op", "study.fork", id="f", **{"as": "t"})
    fork = story.desk.state.studies["t"]
    assert [(trial.status, trial.values) for trial in fork.trials] == [
        ("pruned", (2.0,)), ("pruned", (1.0,)), ("pruned", (3.0,))]
    story.check()


def test_in_one_process_a_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('name = "s"\nmethod = "random"\n[prune]\nrule = "asha"\nresume = true\n[fidelity]\n'
                    'name = "epochs"\nmax = 9\n[space.x]\ntype = "float"\nlow = 0\nhigh = 1\n')
    with Study.from_file(file) as study:
        for value in (2.0, 1.0, 3.0):
            trial = study.ask()
            assert (trial.fidelity, trial.resume_from) == (1, None)
            study.tell(trial, value, checkpoint=f"c{trial.number}")
        trial = study.ask()
        assert (trial.number, trial.fidelity, trial.resume_from) == (2, 3, "c2")


def test_who_goes_on_needs_rungs() -> None:
    with pytest.raises(ValidationError, match="resume is for"):
        StudySpec.model_validate({**BASE, "prune": {"rule": "median", "resume": True}})


LATENCY: dict[str, Any] = {"limits": [{"name": "latency", "at_most": 1.0}]}


def test_what_breaks_a_limit_at_its_rung_goes_on_behind_what_keeps_all() -> None:
    """Else the ones that may not lead would be the only ones that are trained to the end."""
    story = Story(**RUNGS, **LATENCY)
    for number, (value, latency) in enumerate([(1.0, 5.0), (2.0, 0.5), (3.0, 0.5)], start=1):
        story.ask(f"w{number}")
        story.tell(f"w{number}", number, values={"value": value, "latency": latency})
    assert grants(story.ask("w4"))[0][:2] == (2, 2)
    found = view.best(story.desk.state.studies["s"])
    assert found is not None
    assert found["trial"] == 2          # trial 1 told less, and breaks the limit
    story.check()
    rungs = story.replayed().studies["s"].trials[0].rungs
    assert rungs is not None
    assert rungs[1].measured == (5.0,)
