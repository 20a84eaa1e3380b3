"""What a task is: a name, a family, and an instance of the problem for every seed.

An instance is what an optimiser meets: a space, and a value to minimise. A task whose optimum is
known has another instance for each seed (its optimum is moved, its axes are turned); a task whose
optimum nobody knows has one instance, so that "the best ever seen" means the same in every run.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayesd_schemas.space import Params, Space

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Instance:
    """One problem. `value` is free of noise; NaN says that the trial failed."""

    space: Space
    value: Callable[[Params], float]
    best: float | None = None
    best_at: Params | None = None
    """A point that has the value `best`; there may be others."""


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    family: str
    make: Callable[[int], Instance]
    """The instance of a seed."""
    noise: float = 0.0
    """Standard deviation of what is observed, in ranges from the optimum to the median random value."""


def stream(*parts: str | int) -> np.random.Generator:
    """Random numbers that depend on `parts` alone: not on the order of the runs, nor on the process."""
    return np.random.default_rng(stable(*parts))


def stable(*parts: str | int) -> int:
    """A seed of 31 bits, which every peer takes."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % 2**31
