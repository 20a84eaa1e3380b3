"""What a regret is measured against: the optimum, and the median value of a random point.

Where the optimum is known, both follow from the instance. Where it is not (tasks of the family
`live`), `references.json` holds what a search once found; a run that finds less moves the optimum.
The file holds for the release of scikit-learn that it names: another one may move a value slightly.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.bench.quality.task import Floats, Instance, Task, stream

from bayesd.optimize.encode import cube

FILE = Path(__file__).with_name("references.json")
RANDOM_POINTS = 1000        # of a function; their median is within a few per cent of the true one
SEARCH_RANDOM, SEARCH_LOCAL = 300, 300      # evaluations of a task that has no known optimum


@dataclass(frozen=True, slots=True)
class Reference:
    best: float
    median: float

    @property
    def range(self) -> float:
        return max(self.median - self.best, 1e-12)

    def regret(self, value: float | None) -> float:
        """0 at the optimum, 1 at the median random point and above, and where no trial has succeeded."""
        return 1.0 if value is None else min(max((value - self.best) / self.range, 0.0), 1.0)


def known(task: Task, instance: Instance, seed: int) -> Reference | None:
    """Of a task whose optimum is known; failed points do not count in the median."""
    if instance.best is None:
        return None
    U = stream("median", task.name.removeprefix("noisy-"), seed).random((RANDOM_POINTS, len(instance.space)))
    return Reference(instance.best, float(np.nanmedian(values(instance, U))))


def values(instance: Instance, U: Floats) -> Floats:
    return np.array([instance.value(params) for params in cube(instance.space).decode(U)])


def searched(task: Task, told: Callable[[str], None] = print) -> Reference:
    """A random search, then steps of many sizes from the best eight points, any that is not worse is kept."""
    instance, random = task.make(0), stream("search", task.name)
    p, total = len(instance.space), SEARCH_RANDOM + SEARCH_LOCAL

    def ask(U: Floats, done: int) -> Floats:
        told(f"{task.name}: {done} of {total} evaluations")
        return values(instance, U)

    U = random.random((SEARCH_RANDOM, p))
    y = np.concatenate([ask(U[i:i + 1], i) for i in range(SEARCH_RANDOM)])
    median = float(np.nanmedian(y))
    order = np.argsort(np.where(np.isnan(y), np.inf, y))[:8]
    pool = [(float(y[i]), U[i]) for i in order]
    for k in range(SEARCH_LOCAL):
        i = int(random.integers(len(pool)))
        worst, here = pool[i]
        moved = random.random(p) < max(0.3, 1 / p)
        there = np.where(moved, np.clip(here + random.normal(0, (0.3, 0.1, 0.03, 0.01)[k % 4], p), 0, 1), here)
        found = float(ask(there[None], SEARCH_RANDOM + k)[0])
        if found <= worst:
            pool[i] = (found, there)
    return Reference(min(value for value, _ in pool), median)


def stored(path: Path = FILE) -> dict[str, Reference]:
    if not path.exists():
        return {}
    return {name: Reference(**of) for name, of in json.loads(path.read_text())["tasks"].items()}


def store(found: dict[str, Reference], path: Path = FILE) -> None:
    from sklearn import __version__
    rows = {name: {"best": of.best, "median": of.median} for name, of in sorted(found.items())}
    path.write_text(json.dumps({"scikit-learn": __version__, "tasks": rows}, indent=1) + "\n")
