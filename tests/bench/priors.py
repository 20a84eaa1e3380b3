"""What knowledge from before is worth when it is right, and what it costs when it is wrong: `make bench-priors`.

    python tests/bench/priors.py                                   # all arms, 10 seeds
    python tests/bench/priors.py --arms plain,right,wrong --seeds 0-2 --tasks branin,ackley

For each task: how many evaluations until the regret is as low as the median run of plain bayes has it after 50, and in
a second table after 25. A run that has not got there by 100 counts as 100. Each arm is told by the ratio of its mean
over the seeds to that of plain bayes, task by task; below are the median and the worst of these, and how many tasks
are within the promise (half when right, 1.2 when wrong).

Arms
    plain       no prior
    right       high confidence, the centre within 5 to 10 % of the range from the optimum on every axis
    near        high confidence, within 15 to 20 %
    wrong       high confidence in the corner farthest from the optimum
    lure        high confidence in the best of 200 random points far from the optimum: it looks good and leads astray
    same        warm start from a study of the same task with another seed, 50 evaluations
    shifted     … of the same task with its optimum moved by 5 to 10 % of the range on every axis, in other units
    unrelated   … of another landscape, peaks of random place and height, over the same space
    reversed    … of the same task upside down
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

import numpy as np  # noqa: E402  # the path comes first
from tests.bench.quality import reference  # noqa: E402
from tests.bench.quality.functions import peaks  # noqa: E402
from tests.bench.quality.task import Instance, Task, stable, stream  # noqa: E402
from tests.bench.quality.tasks import tasks  # noqa: E402

from bayesd.optimize import suggest  # noqa: E402
from bayesd.optimize.encode import cube  # noqa: E402
from bayesd.study.problem import Fit, Observation, Problem, Source  # noqa: E402
from bayesd_schemas.prior import Prior  # noqa: E402
from bayesd_schemas.space import Params  # noqa: E402

BUDGET, MOST = 50, 100
QUALITIES = (BUDGET, 25)
"""Evaluations of plain bayes whose median regret is to be reached; the first is the hardest."""
TASKS = ("branin-2", "rastrigin-2", "hartmann-3", "rosenbrock-3", "schwefel-3", "ellipsoid-4", "levy-4", "ackley-5",
         "sphere-5", "griewank-6", "hartmann-6", "peaks-6", "rastrigin-8", "rosenbrock-10")
PROMISE = {"right": 0.5, "near": 1.0, "wrong": 1.2, "lure": 1.2, "same": 0.5, "shifted": 0.5, "unrelated": 1.2,
           "reversed": 1.2}
WARM = ("same", "shifted", "unrelated", "reversed")


def opinion(arm: str, instance: Instance, task: str, seed: int) -> dict[str, Prior]:
    """What somebody says who is right, roughly right, wrong, or taken in."""
    of, random = cube(instance.space), stream("prior", arm, task, seed)
    assert instance.best_at is not None
    at = of.encode([instance.best_at])[0]
    if arm in ("right", "near"):
        low, high = (0.05, 0.1) if arm == "right" else (0.15, 0.2)
        off = random.uniform(low, high, of.p) * random.choice([-1.0, 1.0], of.p)
        u = np.where((at + off < 0) | (at + off > 1), at - off, at + off)
    elif arm == "wrong":
        u = np.where(at < 0.5, 0.95, 0.05)
    else:
        U = random.random((200, of.p))
        U = U[np.abs(U - at).max(axis=1) > 0.35]
        u = U[int(np.argmin(reference.values(instance, U)))]
    return {name: Prior(centre=value, confidence="high") for name, value in of.decode(u[None])[0].items()}


def earlier(arm: str, instance: Instance, task: str, seed: int) -> Source:
    """What an earlier study measured."""
    of, random = cube(instance.space), stream("source", arm, task, seed)
    off = random.uniform(0.05, 0.1, of.p) * random.choice([-1.0, 1.0], of.p)
    other = peaks(of.p, stable("peaks", task, seed))

    def value(params: Params) -> float:
        if arm == "same":
            return instance.value(params)
        if arm == "reversed":
            return -instance.value(params)
        U = of.encode([params])
        if arm == "unrelated":
            return other.value(cube(other.space).decode(U)[0])
        return 3 * instance.value(of.decode(np.clip(U + off, 0, 1))[0]) + 7

    history = run(replace(instance, value=value), stable("earlier", task, seed), BUDGET, {})
    return Source("earlier", tuple((each.params, each.values[0]) for each in history if each.values is not None))


def run(instance: Instance, seed: int, most: int, prior: dict[str, Prior],
        until: Callable[[float], bool] = lambda _: False, sources: tuple[Source, ...] = ()) -> list[Observation]:
    """One worker's study."""
    history: list[Observation] = []
    fit: Fit | None = None
    drawn = 0
    while len(history) < most:
        suggestion = suggest(Problem(instance.space, ("minimize",), "bayes", seed, True, len(history) + 1, drawn,
                                     tuple(history), (), fit, prior=tuple(prior.items()), sources=sources))
        proposal = suggestion.proposals[0]
        if proposal.fallback and "no candidate" not in proposal.fallback:
            print("fallback:", proposal.fallback, file=sys.stderr)
        fit, drawn = suggestion.fit or fit, proposal.drawn
        value = instance.value(proposal.params)
        history.append(Observation(len(history) + 1, proposal.params, (value,)))
        if until(value):
            break
    return history


def regrets(history: list[Observation], known: reference.Reference) -> list[float]:
    out: list[float] = []
    for seen in history:
        assert seen.values is not None
        out.append(min(known.regret(seen.values[0]), out[-1] if out else 1.0))
    return out


def plain(job: tuple[str, int]) -> list[float]:
    name, seed = job
    instance, known = _instance(name, seed)
    return regrets(run(instance, stable("optimiser", name, seed), MOST, {}), known)


def first(curve: list[float], target: float) -> int:
    return next((i for i, regret in enumerate(curve, 1) if regret <= target), MOST)


def informed(job: tuple[str, str, int, tuple[float, ...]]) -> list[int]:
    """Evaluations to each target."""
    arm, name, seed, targets = job
    instance, known = _instance(name, seed)

    def reached(value: float) -> bool:
        return known.regret(value) <= targets[0]

    optimiser = stable("optimiser", name, seed)
    if arm in WARM:
        history = run(instance, optimiser, MOST, {}, reached, (earlier(arm, instance, name, seed),))
    else:
        history = run(instance, optimiser, MOST, opinion(arm, instance, name, seed), reached)
    curve = regrets(history, known)
    return [first(curve, target) for target in targets]


def _instance(name: str, seed: int) -> tuple[Instance, reference.Reference]:
    task: Task = tasks()[name]
    instance = task.make(seed)
    known = reference.known(task, instance, seed)
    assert known is not None
    return instance, known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(PROMISE))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    low, _, high = chosen.seeds.partition("-")
    seeds, arms, names = range(int(low), int(high or low) + 1), chosen.arms.split(","), chosen.tasks.split(",")
    began = time.monotonic()
    with ProcessPoolExecutor(chosen.jobs) as pool:
        curves = dict(zip([(name, seed) for name in names for seed in seeds],
                          pool.map(plain, [(name, seed) for name in names for seed in seeds]), strict=True))
        targets = {name: tuple(statistics.median(curves[name, seed][after - 1] for seed in seeds)
                               for after in QUALITIES) for name in names}
        jobs = [(arm, name, seed, targets[name]) for arm in arms for name in names for seed in seeds]
        found: dict[tuple[str, str], list[list[int]]] = {}
        for job, counts in zip(jobs, pool.map(informed, jobs), strict=True):
            found.setdefault((job[0], job[1]), []).append(counts)
    for which, after in enumerate(QUALITIES):
        print(f"{len(seeds)} seeds; evaluations to the median regret of plain bayes at {after}, mean over the seeds")
        print(f"{'task':<16}{'target':>9}{'plain':>8}" + "".join(f"{arm:>11}" for arm in arms))
        ratios: dict[str, list[float]] = {arm: [] for arm in arms}
        for name in names:
            target = targets[name][which]
            mean = statistics.fmean(first(curves[name, seed], target) for seed in seeds)
            for arm in arms:
                ratios[arm].append(statistics.fmean(counts[which] for counts in found[arm, name]) / mean)
            print(f"{name:<16}{target:>9.4f}{mean:>8.1f}" + "".join(f"{ratios[arm][-1]:>11.2f}" for arm in arms))
        for words, of in (("median", statistics.median), ("worst", max)):
            print(f"{words:<33}" + "".join(f"{of(ratios[arm]):>11.2f}" for arm in arms))
        print(f"{'within the promise':<33}" + "".join(
            f"{sum(each <= PROMISE[arm] for each in ratios[arm])}/{len(names)}".rjust(11) for arm in arms))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
