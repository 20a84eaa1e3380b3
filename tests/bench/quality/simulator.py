"""Asynchronous workers on a virtual clock: what an optimiser meets in a daemon, without the waiting.

A free worker asks; its trial takes a lognormal time; when it ends, the outcome is told and the worker
asks again. So with q workers an optimiser answers while q - 1 trials are pending, and outcomes come in
another order than the trials were proposed in. Times and noise of a trial depend on the task, the seed
and the number of the trial alone: they are the same for every optimiser.
"""

import heapq
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

from tests.bench.quality.task import Floats, Instance, stream

SPREAD = 0.6    # sd of the logarithm of a trial's time: 5 % take more than 2.7 times the median


class Optimiser(Protocol):
    """Minimises. Between an ask and its tell the trial is pending."""

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """A key of the optimiser's own, and the active parameters."""

    def tell(self, key: Any, value: float | None) -> None:
        """None: the trial failed."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened, one entry a finished trial in the order in which they ended."""

    order: list[int]
    """Numbers of the trials, from 0 in the order of the asks."""
    incumbent: list[float | None]
    """Noise-free value of the point with the lowest *observed* value so far; None before any success."""
    cpu_s: list[float]
    """Of the i-th ask and the i-th tell together."""
    failed: int
    repeated: int
    """Trials at a point that was proposed before."""


def durations(task: str, seed: int, count: int) -> Floats:
    return stream("duration", task, seed).lognormal(0.0, SPREAD, count)


def noise(task: str, seed: int, count: int) -> Floats:
    return stream("noise", task, seed).normal(size=count)


def simulate(optimiser: Optimiser, instance: Instance, workers: int, budget: int, times: Floats,
             noise: Floats) -> Trace:
    """`times` and `noise` by number of the trial; the noise in the unit of the value."""
    running: list[tuple[float, int, Any, dict[str, Any]]] = []
    order: list[int] = []
    incumbent: list[float | None] = []
    ask_s: list[float] = []
    tell_s: list[float] = []
    seen: set[str] = set()
    clock, lowest, of_lowest, failed = 0.0, math.inf, None, 0
    while len(order) < budget:
        while len(running) < workers and len(ask_s) < budget:
            start = time.process_time()
            key, params = optimiser.ask()
            ask_s.append(time.process_time() - start)
            params = instance.space.check(params)
            seen.add(repr(sorted(params.items())))
            number = len(ask_s) - 1
            heapq.heappush(running, (clock + float(times[number]), number, key, params))
        clock, number, key, params = heapq.heappop(running)
        true = instance.value(params)
        observed = true + float(noise[number])
        start = time.process_time()
        optimiser.tell(key, observed if math.isfinite(observed) else None)
        tell_s.append(time.process_time() - start)
        if not math.isfinite(observed):
            failed += 1
        elif observed < lowest:
            lowest, of_lowest = observed, true
        order.append(number)
        incumbent.append(of_lowest)
    return Trace(order, incumbent, [a + b for a, b in zip(ask_s, tell_s, strict=True)], failed, budget - len(seen))
