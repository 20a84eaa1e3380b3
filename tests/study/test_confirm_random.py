"""Random operators and workers around confirmations: the fold, the winner and the budgets hold whatever comes when."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.study.story import Story

from bayesd.study import confirm
from bayesd.study.state import Study

WORKERS = ("w1", "w2", "w3")
SPACES: tuple[dict[str, Any], ...] = (
    {"x": {"type": "float", "low": 0, "high": 100}}, {"x": {"type": "float", "low": 2, "high": 4}},
    {"x": None, "y": {"type": "int", "low": 0, "high": 9}})
SPECS: tuple[dict[str, Any], ...] = (
    {"budget": {"trials": 3}, "confirm": {"top": 2, "repeats": 2}},
    {"budget": {"trials": 4, "cost": 3.0}, "confirm": {"top": 1}, "retry": {"lost": 0, "crash": 2}},
    {"budget": {"wall": 900.0, "trials": 3}, "confirm": {"top": 3}, "direction": "maximize", "bounds": [0, 3]},
    {"points": 3, "method": "grid", "noise": "none", "confirm": {"top": 2}},
    {"budget": {"trials": 2}, "late": "ignore"})


class Play:
    """A story whose acts are drawn: what is possible at the moment, and some of what is not."""

    def __init__(self, spec: dict[str, Any], draw: Callable[[int], int]) -> None:
        self.story, self.draw, self.count = Story(**spec), draw, 0

    @property
    def study(self) -> Study:
        return self.story.desk.state.studies["s"]

    def id(self) -> str:
        self.count += 1
        return f"i{self.count}"

    def act(self) -> None:
        draw, story = self.draw, self.story
        trials = self.study.trials
        trial = trials[draw(len(trials))] if trials else None
        which = draw(16)
        if which < 4:
            story.ask(WORKERS[draw(3)], self.id(), n=draw(3) + 1)
        elif which < 9 and trial is not None:
            lease = trial.leases[draw(len(trial.leases))]
            outcome: dict[str, Any] = ({"value": float(draw(5))}, {"state": "fail"}, {"state": "released"},
                                       {"value": float(draw(5))})[draw(4)]
            story.tell(lease.worker, trial.number, fence=lease.fence, cost=0.5, **outcome)
        elif which == 9:
            story.tick(story.now + (1.0, 20.0, 700.0)[draw(3)])
        elif which == 10:
            story.restart()
        elif which == 11 and trial is not None:
            story.request("op", ("trial.void", "trial.cancel")[draw(2)], self.id(), trial=trial.number, reason="r")
        elif which == 12 and not draw(5):
            story.request("op", "worker.revoke", self.id(), worker=WORKERS[draw(3)], void=bool(draw(2)), reason="r")
        elif which == 13:
            story.request("op", ("study.pause", "study.resume", "study.close")[draw(3)], self.id(),
                          running=("finish", "stop")[draw(2)])
        elif which == 14:
            story.request("op", "study.amend", self.id(), changes=(
                {"budget": {"trials": draw(8) + 1}}, {"constraints": ["x >= 2"]}, {"space": SPACES[draw(3)]},
                {"confirm": {"top": draw(3) + 1}})[draw(4)])
        else:
            story.request("op", "study.confirm", self.id(), top=draw(3) + 1, repeats=draw(2) + 1)

    def check(self) -> None:
        study = self.study
        story = self.story
        story.check()
        assert study.used == sum(trial.of is None and trial.status != "voided" for trial in study.trials)
        assert study.best is None or study.best.of is None
        assert not (study.reopened and any(trial.of is None for trial in study.waiting.values()))
        if study.status == "closed":
            assert not study.waiting
            assert study.is_announced
            assert not study.confirm
        for trial in study.trials:
            if trial.of is not None:
                assert trial.params == study.trials[trial.of - 1].params
        if study.winner is not None and study.is_announced:
            rests = {each["trial"]: each["repeats"] for each in study.winner["leaders"]}
            assert confirm.winner(story.desk.state, study, rests) == study.winner
            assert study.winner["trial"] is None or study.trials[study.winner["trial"] - 1].status == "complete"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SPECS), st.randoms(use_true_random=False), st.integers(5, 60))
def test_whatever_comes_when(spec: dict[str, Any], random: Any, length: int) -> None:
    play = Play(spec, random.randrange)
    for _ in range(length):
        play.act()
    play.check()
