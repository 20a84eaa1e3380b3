"""Seeded worlds in which the wall clock of the daemon is pushed about all the time, apart from the clock that drives
its leases: set by ten years, by the hour of a summer time, by a leap second, standing still, running at another rate,
ahead by hours after a suspension. Kills, full disks, frozen workers and the rest of `tests/simulation` go on meanwhile.

The oracles know the leases from the log and from their own clock: none may end before its time, and none may outlast
it by more than two ticks. One round is one world.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.promises.book import Fault, Proof, Round
from tests.simulation.world import World

from bayesd.testing import run

YEARS_S = 10 * 365.25 * 86_400
STEP_S = 0.5
SERVICE = "bayesd.service"


class _Clocked(World):
    """A world with somebody at the daemon's wall clock."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.hand = Random(f"clock {seed}")     # of its own: the rest of the world stays as it is
        self.moves = 0
        self._ahead_s = 0.0

    async def first_act(self, seconds: float) -> None:
        pushing = asyncio.create_task(self._push())
        try:
            await super().first_act(seconds)
        finally:
            pushing.cancel()

    async def _push(self) -> None:
        rng, rate = self.hand, 0.0
        while True:
            await asyncio.sleep(max(STEP_S, self._morning - self.loop.time()))      # nobody is up at night
            if rate:
                self._set(rate * STEP_S)
            if rng.random() < 0.2:
                what = rng.choice(["years", "summer", "leap", "stand still", "another rate", "suspension", "right"])
                if what == "years":
                    self._set(rng.uniform(-YEARS_S, YEARS_S))
                elif what == "summer":
                    self._set(rng.choice([-3600.0, 3600.0]))
                elif what == "leap":
                    self._set(rng.choice([-1.0, 1.0]))
                elif what == "stand still":
                    rate = -1.0
                elif what == "another rate":
                    rate = rng.choice([-3.0, -0.2, 0.2, 20.0])
                elif what == "suspension":
                    self._set(rng.uniform(10.0, 8 * 3600.0))
                else:
                    rate = 0.0
                    self._set(-self._ahead_s)

    def _set(self, by_s: float) -> None:
        if abs(self._ahead_s + by_s) < 50 * YEARS_S:        # the calendar has an end
            self.daemon.clock.jump(by_s)
            self._ahead_s += by_s
            self.moves += 1


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    def world(seed: int) -> Round:
        made = _Clocked(seed)
        outcome = run(made.live())
        leases = outcome.types.get("trial.leased", 0)
        ended = outcome.types.get("lease.expired", 0)
        return Round({"times that the clock was set": made.moves, "leases": leases, "of those expired": ended},
                     tuple(outcome.faults))
    yield world


PROOFS = [Proof("clocks", ("P11",), "worlds", _lab, quick=20, release=1_000, within=20, faults=(
    Fault("leases run on the wall clock", SERVICE, "self.desk.at(self.clock.now(), self.clock.time())",
          'self.desk.at(__import__("datetime").datetime.fromisoformat(self.clock.time()).timestamp(), "")'),
    Fault("leases move with the wall clock", SERVICE,
          '            self.desk.record("clock.jumped", {"by_s": round(drift - self._drift, 3)})\n',
          "            self.desk.deadlines.update({lease: at - (drift - self._drift)\n"
          "                                        for lease, at in self.desk.deadlines.items()})\n"),
))]
