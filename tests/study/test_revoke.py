"""To void many trials costs one pass, not one for each, and is the same state as when each is looked at."""

from random import Random

import pytest
from tests.study.story import Story

from bayesd.service import event_of
from bayesd.study import snapshot
from bayesd.study.state import State, apply

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
                    story.request("op", "trial.void", id=f"v{step}.{again}", trial=rng.choice(trials).number, reason="so")
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
