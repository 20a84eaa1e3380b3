"""A void leaves the optimiser with what it would know had the outcome never been told.

Each case is a seeded life at a desk: asks, tells of every kind, copies, late outcomes, leases that run out,
runs that replace each other, restarts, fits. At some moment one trial that was told of is voided, and life goes
on, late outcomes of the void trial included. The same log with that trial's outcomes left out, so that it ended
void without anybody having seen them, must leave the same knowledge at the void and at every later event.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from tests.study.story import Story

from bayesd.optimize import posterior_at_data
from bayesd.optimize.surrogate import surrogate
from bayesd.replay import event_of
from bayesd.study import rules
from bayesd.study.desk import Desk
from bayesd.study.fold import apply
from bayesd.study.knowledge import knowledge, knowledge_digest
from bayesd.study.problem import Fit, Problem, Proposal, Suggestion
from bayesd.study.state import Event, State, Study

CASES = 1000
OUTCOMES = ("trial.completed", "trial.failed", "trial.pruned", "outcome.late")
WORKERS = ("w1", "w2", "w3")


class Life(Story):
    """A story whose sampler also fits: made-up numbers, or with `real` the very model of the daemon."""

    def __init__(self, seed: int, real: bool = False) -> None:
        self.rng = Random(seed)
        self.real = real
        self.run = dict.fromkeys(WORKERS, 1)
        super().__init__(late=self.rng.choice(("use", "use", "ignore")),
                         direction=self.rng.choice(("minimize", "maximize")),
                         retry={"lost": self.rng.randint(0, 2), "crash": self.rng.randint(0, 1)})
        self.count = 0

    @property
    def study(self) -> Study:
        return self.desk.state.studies["s"]

    def think(self) -> None:
        for order in rules.orders(self.desk):
            first, count = order.problem.number, min(order.wanted, 4)
            fit = self.fit(order.problem) if self.rng.random() < 0.5 or self.real else None
            rules.supply(self.desk, order, Suggestion(tuple(
                Proposal({"x": number * 7.3 % 100}, "random", "0", order.problem.drawn + 1 + number - first)
                for number in range(first, first + count)), fit))

    def fit(self, problem: Problem) -> Fit | None:
        if not self.real:
            return Fit("made-up", len(problem.history), (self.rng.random(), 1.0))
        if sum(seen.values is not None for seen in problem.history) < 3:
            return None
        return surrogate(problem, np.ones(1)).fit

    def said(self) -> Any:
        """Commit; nobody looks at the letters here, and the models of events have tests of their own."""
        self.think()
        rows = self.desk.take_rows()
        self.rows += rows
        self.desk.committed(len(self.rows))
        return [], []

    def step(self) -> None:
        rng = self.rng
        worker = rng.choice(WORKERS)
        run = f"{worker}-r{self.run[worker]}"
        self.count += 1
        kind = rng.random()
        if kind < 0.3:
            self.ask(worker, id=f"a{self.count}", run=run, n=rng.randint(1, 2))
        elif kind < 0.72:
            lease = self.lease()
            if lease is not None:
                self.tell(lease.worker, lease.trial.number, lease.fence, **self.outcome())
        elif kind < 0.8:
            lease = self.lease()
            if lease is not None:
                self.report(lease.worker, lease.trial.number, rng.randint(0, 3), rng.random(), lease.fence)
        elif kind < 0.9:
            self.tick(self.now + rng.choice((1.0, 200.0, 700.0)))
        elif kind < 0.95:
            self.run[worker] += rng.random() < 0.5
            held = [(lease.trial.number, lease.fence) for trial in self.study.trials for lease in trial.leases
                    if lease.worker == worker and rng.random() < 0.5]
            self.beat(worker, *held, run=f"{worker}-r{self.run[worker]}")
        elif kind < 0.98:
            self.restart()
        elif self.study.trials:
            verb = rng.choice(("trial.cancel", "trial.void"))
            self.request("op", verb, id=f"q{self.count}", trial=rng.randint(1, len(self.study.trials)), reason="so")

    def lease(self) -> Any:
        leases = [lease for trial in self.study.trials for lease in trial.leases]
        return self.rng.choice(leases[-6:] if self.rng.random() < 0.6 else leases) if leases else None

    def outcome(self) -> dict[str, Any]:
        rng = self.rng
        return rng.choice((
            {"value": round(rng.uniform(-1, 1), 2), "seconds": 2.0}, {"value": round(rng.uniform(-1, 1), 2)},
            {"folds": [rng.random() for _ in range(3)]}, {"value": "nan"}, {"state": "fail"},
            {"state": "fail", "class": "oom", "error": "no room"}, {"state": "pruned"},
            {"state": "pruned", "value": rng.random()}, {"state": "released"}))

    def void_one(self) -> int | None:
        """Void a trial that was told of, if there is one: its number."""
        told = [trial.number for trial in self.study.trials
                if trial.status != "voided" and (trial.outcome_seq or trial.late)]
        if not told:
            return None
        number = self.rng.choice(told)
        self.request("op", "trial.void", id="the-void", trial=number, reason="the sensor was unplugged")
        return number


def life(seed: int, real: bool = False) -> tuple[list[Event], int, int]:
    """(events, number of the trial that was voided, seq of its void)."""
    story = Life(seed, real)
    for _ in range(story.rng.randint(6, 30) if not real else 50):
        story.step()
    number = story.void_one()
    while number is None:
        story.step()
        number = story.void_one()
    at = story.desk.state.commands["op the-void"][0]
    for _ in range(story.rng.randint(0, 8)):
        story.step()
    return [event_of(row.body, row.hash) for row in story.rows], number, at


def without_outcomes(events: list[Event], number: int) -> list[Event]:
    return [event for event in events if event.trial != number or event.type not in OUTCOMES]


def folded(events: list[Event], after: int) -> Iterator[tuple[int, State]]:
    """The state at event `after` and at each later one; the same object each time."""
    state = State()
    for event in events:
        apply(state, event)
        if event.seq >= after:
            yield event.seq, state


def moments(events: list[Event], after: int) -> dict[int, str]:
    return {seq: knowledge_digest(state.studies["s"]) for seq, state in folded(events, after)}


@pytest.mark.parametrize("part", range(10))
def test_what_is_known_after_a_void_is_that_of_a_log_in_which_the_outcome_was_never_told(part: int) -> None:
    seen = 0
    for seed in range(part * CASES // 10, (part + 1) * CASES // 10):
        events, number, at = life(seed)
        never = without_outcomes(events, number)
        told, untold = moments(events, at), moments(never, at)
        assert untold == {seq: digest for seq, digest in told.items() if seq in untold}, f"seed {seed}"
        state = next(folded(events, at))[1]
        study = state.studies["s"]
        assert study.trials[number - 1].status == "voided"
        assert study.fit is None, f"seed {seed}: a fit that saw the outcome outlived it"
        assert all(observation.trial != number for observation in study.history)
        seen += len(events) - len(never)
    assert seen > CASES // 10


def problem(events: list[Event]) -> Problem:
    state = State()
    for event in events:
        apply(state, event)
    return Desk(state).problem(state.studies["s"])[0]


def test_the_posterior_after_a_void_is_the_same_to_the_last_bit() -> None:
    compared = fits = 0
    for seed in range(20):
        events, number, _ = life(seed, real=True)
        fits += any(event.type == "model.fitted" for event in events)
        told, untold = problem(events), problem(without_outcomes(events, number))
        assert told == untold
        if sum(seen.values is not None for seen in told.history) >= 3:
            one, other = surrogate(told, np.ones(1)), surrogate(untold, np.ones(1))
            assert one.fit == other.fit
            assert posterior_at_data(told) == posterior_at_data(untold)
            compared += 1
    assert (compared > 10, fits > 10) == (True, True)


def test_a_digest_moves_with_each_part_of_what_is_known() -> None:
    story = Story()
    seen = set()

    def look() -> None:
        digest = knowledge_digest(story.desk.state.studies["s"])
        assert digest not in seen
        seen.add(digest)
    look()
    story.ask("w1")
    look()                                                  # a pending point
    story.tell("w1", 1, value=0.5)
    look()                                                  # an outcome
    story.ask("w1", id="a2")
    story.tell("w1", 2, folds=[0.4, 0.6])
    assert knowledge(story.desk.state.studies["s"])["history"][1][3] is not None
    look()                                                  # noise
    story.desk.record("model.fitted", {"model": "m", "n": 2, "theta": [0.1], "as_of": 1},
                      study=story.desk.state.studies["s"])
    look()                                                  # a fit
    story.ask("w1", id="a3")
    story.tell("w1", 3, state="fail")
    look()                                                  # a failure
