"""What attention to cost brings: python tests/bench/cost.py [--seeds 10] [--jobs 1] [--out FILE] [--tabulate].

Each run has a budget of cost, that of 20 random points, and goes on until it is spent: once as with `[cost]` in the
study file, once without. What a trial costs varies 50 times over the space, from 1 to 50: along one axis (ramp), or
with the distance from a corner over all axes (corner), wherever the optimum may lie; of the forest it is the seconds
that were measured. Under `even` every trial costs the same, and nothing should be lost.

A result is the regret of the best value so far, in shares of the range from the optimum to the median random value,
when a quarter, half and the whole of the budget is spent; a trial that overruns the budget does not count. `plain over
aware` is the geometric mean, over seeds, of the ratio of regrets, each plus 0.001: above 1, attention to cost was
ahead.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

import numpy as np  # noqa: E402  # the path comes first
from tests.bench.quality import reference  # noqa: E402
from tests.bench.quality.progress import Progress  # noqa: E402
from tests.bench.quality.task import stream  # noqa: E402
from tests.bench.quality.tasks import tasks  # noqa: E402

from bayesd.optimize import suggest  # noqa: E402
from bayesd.optimize.encode import cube  # noqa: E402
from bayesd.study.problem import Observation, Problem  # noqa: E402
from bayesd_schemas.space import Params, Space  # noqa: E402

TABLE = Path(__file__).with_name("cost.json")
CASES = (("hartmann-3", "ramp"), ("rosenbrock-3", "ramp"), ("sphere-5", "corner"), ("hartmann-6", "corner"),
         ("mixed-valleys", "ramp"), ("noisy-branin-2", "ramp"), ("forest-digits", "seconds"),
         ("hartmann-3", "even"), ("mixed-valleys", "even"))
FACTOR = 50.0
TRIALS = 20         # random points that the budget pays for
TRIALS_MAX = 200
MARKS = (0.25, 0.5, 1.0)
LEAST = 1e-3        # of the range: what is added before ratios are taken

FOREST: dict[str, list[Any]] = {"trees": [2, 4, 8, 16, 32, 64, 128], "depth": [2, 4, 6, 8, 12, 16],
                                "features": [0.05, 0.1, 0.2, 0.4]}


def setting(name: str, surface: str, seed: int) -> tuple[Space, Callable[[Params], float], Callable[[Params], float],
                                                         Callable[[float], float], float]:
    """Space, value, cost, regret of a value, and the noise of a measurement."""
    if name == "forest-digits":
        table: dict[Any, list[float]] = {tuple(row[:3]): row[3:] for row in json.loads(TABLE.read_text())}
        space = Space.model_validate({key: {"type": "ordinal", "choices": choices} for key, choices in FOREST.items()})
        values = sorted(error for error, _ in table.values())
        best, middle = values[0], statistics.median(values)

        def cell(params: Params) -> list[float]:
            return table[tuple(params[key] for key in FOREST)]

        return (space, lambda params: cell(params)[0], lambda params: cell(params)[1],
                lambda value: (value - best) / (middle - best), 0.0)
    task = tasks()[name]
    instance = task.make(seed)
    known = reference.known(task, instance, seed) or reference.stored()[name]
    of = cube(instance.space)

    def cost(params: Params) -> float:
        u = of.encode([params])[0]
        share = {"ramp": u[0], "corner": math.sqrt(float(np.mean(u * u))), "even": 0.5}[surface]
        return float(FACTOR ** share)

    return instance.space, instance.value, cost, known.regret, task.noise * known.range


def run(name: str, surface: str, seed: int, aware: bool) -> dict[str, Any]:
    """One run: regrets at the marks, and how many trials the budget paid for."""
    space, value, cost, regret, sd = setting(name, surface, seed)
    of, noise = cube(space), stream("cost", name, seed)
    sample = of.decode(of.snap(stream("cost", "budget", name).uniform(size=(2000, of.p)), 18))
    budget = TRIALS * statistics.mean(map(cost, sample))
    problem = Problem(space, ("minimize",), "bayes", seed, True, 1, 0)
    spent, best, found = 0.0, math.inf, dict.fromkeys(MARKS, math.inf)
    number = 0
    while number < TRIALS_MAX:
        number += 1
        suggestion = suggest(replace(problem, thrift=round(1 - spent / budget, 6)) if aware else problem)
        proposal = suggestion.proposals[0]
        truth, took = value(proposal.params), cost(proposal.params)
        spent += took
        if spent > budget:
            break
        best = min(best, truth)
        for mark in MARKS:
            if spent <= mark * budget:
                found[mark] = best
        told = truth + sd * float(noise.normal())
        seen = Observation(number, proposal.params, (told,), spent=took if aware else None)
        problem = replace(problem, number=number + 1, drawn=proposal.drawn, history=(*problem.history, seen),
                          fit=suggestion.fit or problem.fit)
    return {"task": name, "surface": surface, "seed": seed, "aware": aware, "trials": number - 1,
            "regret": [regret(found[mark]) for mark in MARKS]}


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    header = "| task | cost | trials, plain and aware | regret at the end | plain over aware at 1/4, 1/2, 1 | "
    yield header + "ahead, behind |"
    yield "|---|---|---|---|---|---|"
    every: list[list[list[float]]] = []
    for name, surface in dict.fromkeys((each["task"], each["surface"]) for each in runs):
        arms = [{each["seed"]: each for each in runs if (each["task"], each["surface"], each["aware"]) == (
            name, surface, aware)} for aware in (False, True)]
        seeds = sorted(arms[0].keys() & arms[1].keys())
        logs = [[math.log((arms[0][seed]["regret"][i] + LEAST) / (arms[1][seed]["regret"][i] + LEAST))
                 for seed in seeds] for i in range(len(MARKS))]
        if surface != "even":
            every.append(logs)
        trials = [statistics.mean(arm[seed]["trials"] for seed in seeds) for arm in arms]
        ends = [statistics.median(arm[seed]["regret"][-1] for seed in seeds) for arm in arms]
        yield (f"| {name} | {surface} | {trials[0]:.0f}, {trials[1]:.0f} | {ends[0]:.4f}, {ends[1]:.4f} | "
               f"{_ratios(logs)} | {_sides(logs[-1])} |")
    if every:
        whole = [[log for logs in every for log in logs[i]] for i in range(len(MARKS))]
        yield f"| all but even | | | | {_ratios(whole)} | {_sides(whole[-1])} |"


def _ratios(logs: list[list[float]]) -> str:
    return ", ".join(f"{math.exp(statistics.mean(each)):.2f}" for each in logs)


def _sides(logs: list[float]) -> str:
    return f"{sum(log > 1e-9 for log in logs)}, {sum(log < -1e-9 for log in logs)}"


def tabulate() -> None:
    """Measure the forest on this machine: rows of trees, depth, features, error and seconds."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold

    X, y = (part[:900] for part in load_digits(return_X_y=True))
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    rows = []
    for trees, depth, features in product(FOREST["trees"], FOREST["depth"], FOREST["features"]):
        began, wrong = time.process_time(), 0
        for train, test in folds:
            model = RandomForestClassifier(int(trees), max_depth=int(depth), max_features=features, random_state=0)
            wrong += int(np.sum(model.fit(X[train], y[train]).predict(X[test]) != y[test]))
        rows.append([trees, depth, features, round(wrong / len(y), 6), round(time.process_time() - began, 4)])
    TABLE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--cases", nargs="+", help="such as hartmann-3/ramp")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that gets a line for each run")
    parser.add_argument("--tabulate", action="store_true", help="measure the forest again")
    options = parser.parse_args()
    if options.tabulate:
        tabulate()
        return
    cases = [case for case in CASES if not options.cases or "/".join(case) in options.cases]
    seeds = range(options.first, options.first + options.seeds)
    cells = [(*case, seed, aware) for seed, case, aware in product(seeds, cases, (False, True))]
    progress, runs = Progress(len(cells)), []
    with ProcessPoolExecutor(options.jobs) as pool:
        for one in pool.map(run, *zip(*cells, strict=True)):
            runs.append(one)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            progress.step(f"{one['task']} {one['surface']} seed {one['seed']} aware {one['aware']}: {one['regret']}")
    progress.close()
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
