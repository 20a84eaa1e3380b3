"""What knowledge from before is worth when it is right, and what it costs when it is wrong: `make bench-priors`.

    python tests/bench/priors.py                                   # all arms, 10 seeds
    python tests/bench/priors.py --arms plain,right,wrong --seeds 0-2 --tasks branin,ackley

For each task: how many evaluations until the regret is as low as the median run of plain bayes has it after 50. A run
that has not got there by 100 counts as 100. Each arm is told by the ratio of its mean over the seeds to that of plain
bayes, task by task; the table has the median and the worst of these, and in brackets how many tasks are within
the promise (half when right, 1.2 when wrong).

Arms
    plain       no prior
    right       high confidence, the centre within 5 to 10 % of the range from the optimum on every axis
    near        high confidence, within 15 to 20 %
    wrong       high confidence in the corner farthest from the optimum
    lure        high confidence in the best of 200 random points far from the optimum: it looks good and leads astray
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

import numpy as np  # noqa: E402  # the path comes first
from tests.bench.quality import reference  # noqa: E402
from tests.bench.quality.task import Instance, Task, stable, stream  # noqa: E402
from tests.bench.quality.tasks import tasks  # noqa: E402

from bayesd.optimize import suggest  # noqa: E402
from bayesd.optimize.encode import cube  # noqa: E402
from bayesd.study.problem import Fit, Observation, Problem  # noqa: E402
from bayesd_schemas.prior import Prior  # noqa: E402

BUDGET, MOST = 50, 100
TASKS = ("branin-2", "rastrigin-2", "hartmann-3", "rosenbrock-3", "schwefel-3", "ellipsoid-4", "levy-4", "ackley-5",
         "sphere-5", "griewank-6", "hartmann-6", "peaks-6", "rastrigin-8", "rosenbrock-10")
PROMISE = {"right": 0.5, "near": 1.0, "wrong": 1.2, "lure": 1.2}


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


def run(instance: Instance, seed: int, most: int, prior: dict[str, Prior],
        until: Callable[[float], bool] = lambda _: False) -> list[Observation]:
    """One worker's study."""
    history: list[Observation] = []
    fit: Fit | None = None
    drawn = 0
    while len(history) < most:
        suggestion = suggest(Problem(instance.space, ("minimize",), "bayes", seed, True, len(history) + 1, drawn,
                                     tuple(history), (), fit, prior=tuple(prior.items())))
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


def informed(job: tuple[str, str, int, float]) -> int:
    arm, name, seed, target = job
    instance, known = _instance(name, seed)

    def reached(value: float) -> bool:
        return known.regret(value) <= target

    prior = opinion(arm, instance, name, seed)
    history = run(instance, stable("optimiser", name, seed), MOST, prior, reached)
    last = history[-1].values
    assert last is not None
    return len(history) if reached(last[0]) else MOST


def _instance(name: str, seed: int) -> tuple[Instance, reference.Reference]:
    task: Task = tasks()[name]
    instance = task.make(seed)
    known = reference.known(task, instance, seed)
    assert known is not None
    return instance, known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="right,near,wrong,lure")
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
        target = {name: statistics.median(curves[name, seed][BUDGET - 1] for seed in seeds) for name in names}
        base = {name: [next((i for i, regret in enumerate(curves[name, seed], 1) if regret <= target[name]), MOST)
                       for seed in seeds] for name in names}
        jobs = [(arm, name, seed, target[name]) for arm in arms for name in names for seed in seeds]
        found: dict[tuple[str, str], list[int]] = {}
        for job, count in zip(jobs, pool.map(informed, jobs), strict=True):
            found.setdefault((job[0], job[1]), []).append(count)
    print(f"{len(seeds)} seeds; evaluations to the median regret of plain bayes at {BUDGET}, mean over the seeds")
    print(f"{'task':<16}{'target':>9}{'plain':>8}" + "".join(f"{arm:>11}" for arm in arms))
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for name in names:
        mean = statistics.fmean(base[name])
        row = ""
        for arm in arms:
            ratios[arm].append(statistics.fmean(found[arm, name]) / mean)
            row += f"{ratios[arm][-1]:>11.2f}"
        print(f"{name:<16}{target[name]:>9.4f}{mean:>8.1f}{row}")
    for words, of in (("median", statistics.median), ("worst", max)):
        print(f"{words:<33}" + "".join(f"{of(ratios[arm]):>11.2f}" for arm in arms))
    print(f"{'within the promise':<33}" + "".join(
        f"{sum(each <= PROMISE[arm] for each in ratios[arm])}/{len(names)}".rjust(11) for arm in arms))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
