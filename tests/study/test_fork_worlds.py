"""A fork knows exactly what its study knew, in small worlds where outcomes come late, twice and in any order."""

from random import Random
from typing import Any

import pytest
from tests.study.story import Story
from tests.study.test_fork import fork, past, replied

from bayesd.study.state import Study

WORKERS = ("w1", "w2", "w3")


def world(seed: int) -> Story:
    """Few different values, so that nothing can be told apart by them."""
    rng = Random(seed)
    story = Story(late=rng.choice(("use", "use", "ignore")), direction=rng.choice(("minimize", "maximize")),
                  retry={"lost": rng.randint(0, 2), "crash": rng.randint(0, 1)})
    for step in range(30):
        kind = rng.choice(("ask", "ask", "tell", "tell", "tell", "report", "tick", "tick", "void", "amend"))
        worker, trials = rng.choice(WORKERS), story.desk.state.studies["s"].trials
        held = [lease for trial in trials for lease in trial.leases]
        lease = rng.choice(held) if held else None
        if kind == "ask":
            story.ask(worker, id=f"a{step}", n=2)
        elif kind == "tell" and lease is not None:
            said: dict[str, Any] = rng.choice((
                {"value": float(rng.randint(0, 1))}, {"folds": [0.0, float(rng.randint(0, 2))]}, {"state": "fail"},
                {"state": "pruned"}, {"state": "pruned", "value": 1.0}, {"value": 1.0, "seconds": 3.0}))
            story.tell(lease.worker, lease.trial.number, lease.fence, **said)
        elif kind == "report" and lease is not None:
            story.report(lease.worker, lease.trial.number, step, float(rng.randint(0, 1)), lease.fence)
        elif kind == "tick":
            story.tick(story.now + 601.0)
        elif kind == "void" and trials and rng.random() < 0.3:
            story.request("op", "trial.void", id=f"v{step}", trial=rng.choice(trials).number, reason="so")
        elif kind == "amend" and rng.random() < 0.3:
            story.request("op", "study.amend", id=f"m{step}", changes={"late": rng.choice(("use", "ignore"))})
    return story


def known(study: Study, name: str) -> list[Any]:
    """What a study knows, with the numbers that the trials have in study `name`."""
    def number(at: int) -> int:
        origin = study.trials[at - 1].origin
        return origin[1] if study.name != name and origin is not None else at
    return [(number(seen.trial), list(seen.params.items()), seen.values, seen.se) for seen in study.history]


@pytest.mark.parametrize("seed", range(200))
def test_a_fork_knows_what_its_study_knew_to_the_last_bit(seed: int) -> None:
    story = world(seed)
    rng = Random(seed)
    for id, at in (("t", len(story.rows)), ("u", rng.randint(3, len(story.rows)))):
        state = past(story, at)
        study = state.studies["s"]
        _, row = replied(fork(story, at=at, id=id, new=id))
        made = story.desk.state.studies[id]
        assert known(made, "s") == known(study, "s")
        pending = study.counts["running"] + study.counts["waiting"]
        learned = {seen.trial for seen in study.history}
        assert row["not_carried"] == pending - len(learned & {*study.running, *study.waiting})
        for trial in made.trials[:made.imported]:
            assert trial.origin is not None
            of = study.trials[trial.origin[1] - 1]
            assert trial.status == ("complete" if of.is_pending else of.status)
            if of.status in ("complete", "fail") and of.number in learned:
                assert (trial.values, trial.seconds) == (of.values, of.seconds)
        assert len({trial.origin for trial in made.trials}) == len(learned)
    source = story.desk.state.studies["t"]
    fork(story, id="v", new="v", study="t")
    assert known(story.desk.state.studies["v"], "t") == known(source, "t")
    story.check()


def test_a_pruned_trial_keeps_its_report_when_a_late_value_follows() -> None:
    story = Story(late="use")
    story.ask("w1")
    story.tick(700.0)
    story.ask("w2")
    story.report("w2", 1, 0, 0.9, fence=2)
    story.tell("w2", 1, 2, state="pruned")
    story.tell("w1", 1, 1, value=0.2)
    fork(story)
    made = story.desk.state.studies["t"]
    assert (made.trials[0].status, made.trials[0].values) == ("pruned", (0.9,))
    assert [seen.values for seen in made.history] == [(0.9,), (0.2,)]


def test_a_late_outcome_of_the_same_value_keeps_its_own_noise() -> None:
    story = Story(late="use")
    story.ask("w1")
    story.tick(700.0)
    story.ask("w2")
    story.tell("w1", 1, 1, folds=[0.1, 0.9])
    story.tell("w2", 1, 2, value=0.5)
    fork(story)
    trial = story.desk.state.studies["t"].trials[0]
    assert (trial.values, trial.se, [late.se for late in trial.late or ()]) == ((0.5,), None, [0.4])
    story.check()
