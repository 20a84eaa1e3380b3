"""What a revoked worker told is void wherever it went, and to void much costs little."""

from random import Random
from typing import Any

import pytest
from tests.study.story import Said, Story

from bayesd.replay import event_of
from bayesd.study import snapshot
from bayesd.study.fold import apply
from bayesd.study.state import State

WORKERS = ("w1", "w2", "w3")


def life(seed: int) -> Story:
    """Many ties, so that it matters which of equals is the best; lost trials, so that failures are taken back."""
    rng = Random(seed)
    story = Story(late=rng.choice(("use", "ignore")), direction=rng.choice(("minimize", "maximize")),
                  retry={"lost": rng.randint(0, 1)})
    for step in range(60):
        kind = rng.choice(("ask", "ask", "tell", "tell", "tell", "tick", "void", "void", "amend"))
        worker, study = rng.choice(WORKERS), story.desk.state.studies["s"]
        trials = study.trials
        if kind == "ask":
            story.ask(worker, id=f"a{step}", n=2)
        elif kind == "tell" and trials:
            trial = rng.choice(trials)
            if trial.leases:
                lease = rng.choice(trial.leases)
                story.tell(lease.worker, trial.number, lease.fence, value=float(rng.randint(0, 2)))
        elif kind == "tick":
            story.tick(story.now + 400.0)
        elif kind == "void":
            for again in range(rng.randint(1, 3)):
                if trials:
                    number = rng.choice(trials).number
                    story.request("op", "trial.void", id=f"v{step}.{again}", trial=number, reason="so")
        elif kind == "amend":
            story.request("op", "study.amend", id=f"m{step}", changes={"budget": {"trials": 1000 + step}})
    return story


@pytest.mark.parametrize("seed", range(60))
def test_what_is_known_does_not_depend_on_who_looked_and_when(seed: int) -> None:
    story = life(seed)
    looked, unseen = State(), State()
    for row in story.rows:
        event = event_of(row.body, row.hash)
        apply(looked, event)
        apply(unseen, event)
        for study in looked.studies.values():
            known = {seen.trial for seen in study.history}
            assert not any(trial.status == "voided" for trial in study.trials if trial.number in known)
            assert study.best is None or study.best.status == "complete"
    assert snapshot.digest(looked) == snapshot.digest(unseen)
    story.check()


def test_thousands_of_voids_cost_one_pass_over_what_is_known() -> None:
    passes = 0

    class Counted(list):      # type: ignore[type-arg]
        def __iter__(self):   # type: ignore[no-untyped-def]
            nonlocal passes
            passes += 1
            return super().__iter__()

    story = Story(points=300)
    for number in range(1, 201):
        story.ask("w1", id=f"a{number}")
        story.tell("w1", number, value=float(-number))      # each better than all before: the best is voided often
    study = story.desk.state.studies["s"]
    study.history, study.trials = Counted(study.history), Counted(study.trials)
    story.request("op", "worker.revoke", id="r", worker="w1", void=True, reason="it lies")
    assert (study.history, study.best, study.counts["voided"]) == ([], None, 200)
    assert passes < 12


# ---------------------------------------------------------------- what a liar told, and where it went


def of(story: Story, study: str) -> list[tuple[int, str]]:
    return [(trial.number, trial.status) for trial in story.desk.state.studies[study].trials]


def lied(**spec: Any) -> Story:
    """The liar tells of trial 1, w2 of trial 2."""
    story = Story(**spec)
    story.ask("liar")
    story.tell("liar", 1, value=-99.0)
    story.ask("w2")
    story.tell("w2", 2, value=0.5)
    return story


def replied(said: Said) -> Any:
    return next(body for _, kind, body in said[1] if kind == "reply")["result"]


def test_voids_follow_a_result_into_forks_of_forks_also_closed_ones() -> None:
    story = lied()
    story.request("op", "study.fork", id="f1", **{"as": "t"})
    story.request("op", "study.fork", id="f2", study="t", **{"as": "u"})
    story.request("op", "study.close", id="c", study="t")
    result = replied(story.request("op", "worker.revoke", id="r", worker="liar", void=True, reason="it lies"))
    assert (result["voided"], result["copies"], result["forks"]) == (3, 2, ["t", "u"])
    assert result["trials"] == [["s", 1], ["t", 1], ["u", 1]]
    for name in ("s", "t", "u"):
        study = story.desk.state.studies[name]
        assert of(story, name)[:2] == [(1, "voided"), (2, "complete")]
        assert [seen.trial for seen in study.history] == [2]
        assert study.best is study.trials[1]
    assert {row.cmd for row in story.rows if row.type == "outcome.voided"} == {"r"}
    story.check()


def test_voids_of_one_trial_follow_it_and_a_second_request_finds_what_is_left() -> None:
    story = lied()
    story.request("op", "study.fork", id="f1", **{"as": "t"})
    result = replied(story.request("op", "trial.void", id="v", trial=1, reason="unplugged"))
    assert (result["copies"], result["forks"]) == (1, ["t"])
    assert of(story, "t") == [(1, "voided"), (2, "complete")]
    facts, letters = story.request("op", "trial.void", id="v2", trial=1, reason="unplugged")
    assert facts == []
    assert letters[-1][2]["status"] == "exists"


def test_a_void_in_a_fork_leaves_the_study_alone() -> None:
    story = lied()
    story.request("op", "study.fork", id="f1", **{"as": "t"})
    assert "copies" not in replied(story.request("op", "trial.void", id="v", study="t", trial=1, reason="elsewhere"))
    assert of(story, "s")[0] == (1, "complete")


def test_a_copy_that_was_taken_before_the_liar_told_stays() -> None:
    story = Story(late="use")
    story.ask("liar")
    story.tick(700.0)
    story.ask("w2")
    story.tell("w2", 1, 2, value=0.4)
    story.request("op", "study.fork", id="f1", **{"as": "t"})
    story.tell("liar", 1, 1, value=-99.0)
    result = replied(story.request("op", "worker.revoke", id="r", worker="liar", void=True, reason="it lies"))
    assert (result["trials"], of(story, "t")) == ([["s", 1]], [(1, "complete")])


@pytest.mark.parametrize(("late", "voided"), [("ignore", 0), ("use", 1)])
def test_a_late_outcome_that_nobody_uses_costs_an_honest_result_nothing(late: str, voided: int) -> None:
    story = Story(late=late)
    story.ask("liar")
    story.tick(700.0)
    story.ask("w2")
    story.tell("w2", 1, 2, value=0.4)
    story.tell("liar", 1, 1, value=-99.0)
    result = replied(story.request("op", "worker.revoke", id="r", worker="liar", void=True, reason="it lies"))
    assert result["voided"] == voided
    story.check()


def test_a_late_outcome_that_became_the_result_is_void_with_its_worker() -> None:
    story = Story(late="ignore", retry={"lost": 1})
    story.ask("liar")
    story.tick(700.0)
    story.ask("w2")
    story.tell("liar", 1, 1, value=-99.0)
    story.tick(1400.0)
    trial = story.desk.state.studies["s"].trials[0]
    assert (trial.status, trial.values) == ("complete", (-99.0,))
    story.request("op", "worker.revoke", id="r", worker="liar", void=True, reason="it lies")
    assert (trial.status, story.desk.state.studies["s"].history) == ("voided", [])
