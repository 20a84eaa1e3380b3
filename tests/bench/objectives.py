"""Two objectives: the hypervolume that bayesd and Optuna's samplers reach, in one run.

    python tests/bench/objectives.py --seeds 5 --budget 100 --tasks zdt1,zdt2,zdt3 --optimisers bayesd,nsga2,tpe

Printed is the hypervolume as a share of that of the true front's (for DTLZ2 and ZDT), with the CPU milliseconds of a
suggestion. ZDT: Zitzler, Deb and Thiele (2000), six variables; DTLZ2: Deb et al. (2002), two objectives, six variables.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from bayesd.optimize import hypervolume, suggest
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Fit, Observation, Problem
from bayesd_schemas.space import Space

P = 6
NAMES = [f"x{i}" for i in range(P)]
REFERENCE = (1.1, 1.1)
Task = Callable[[Floats], tuple[float, float]]


def _g(x: Floats) -> float:
    return float(1 + 9 * np.mean(x[1:]))


def zdt1(x: Floats) -> tuple[float, float]:
    return float(x[0]), float(_g(x) * (1 - np.sqrt(x[0] / _g(x))))


def zdt2(x: Floats) -> tuple[float, float]:
    return float(x[0]), float(_g(x) * (1 - (x[0] / _g(x)) ** 2))


def zdt3(x: Floats) -> tuple[float, float]:
    share = x[0] / _g(x)
    return float(x[0]), float(_g(x) * (1 - np.sqrt(share) - share * np.sin(10 * np.pi * x[0])))


def dtlz2(x: Floats) -> tuple[float, float]:
    g, angle = 1 + float(np.sum((x[1:] - 0.5) ** 2)), x[0] * np.pi / 2
    return float(g * np.cos(angle)), float(g * np.sin(angle))


TASKS: dict[str, tuple[Task, float]] = {"zdt1": (zdt1, 0.0), "zdt2": (zdt2, 0.0), "zdt3": (zdt3, 0.0),
                                        "dtlz2": (dtlz2, 0.5)}
"""Name -> the function, and the value of all variables but the first on its front."""


def bayesd(task: Task, seed: int, budget: int) -> list[tuple[float, float]]:
    space = Space.model_validate({name: {"type": "float", "low": 0.0, "high": 1.0} for name in NAMES})
    history: list[Observation] = []
    fit: Fit | None = None
    drawn = 0
    out: list[tuple[float, float]] = []
    for number in range(1, budget + 1):
        made = suggest(Problem(space, ("minimize", "minimize"), "bayes", seed, True, number, drawn, tuple(history), (),
                               fit))
        fit, proposal = made.fit or fit, made.proposals[0]
        drawn = proposal.drawn
        out.append(task(np.array([proposal.params[name] for name in NAMES], dtype=np.float64)))
        history.append(Observation(number, proposal.params, out[-1]))
    return out


def optuna(sampler: str) -> Callable[[Task, int, int], list[tuple[float, float]]]:
    def run(task: Task, seed: int, budget: int) -> list[tuple[float, float]]:
        made: Any = import_module("optuna")
        made.logging.set_verbosity(made.logging.ERROR)
        study = made.create_study(directions=["minimize", "minimize"],
                                  sampler=getattr(made.samplers, sampler)(seed=seed))
        out: list[tuple[float, float]] = []
        for _ in range(budget):
            trial = study.ask()
            out.append(task(np.array([trial.suggest_float(name, 0.0, 1.0) for name in NAMES])))
            study.tell(trial, out[-1])
        return out
    return run


OPTIMISERS = {"bayesd": bayesd, "nsga2": optuna("NSGAIISampler"), "tpe": optuna("TPESampler"),
              "gp": optuna("GPSampler"), "random": optuna("RandomSampler")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--optimisers", default="bayesd,nsga2,tpe,random")
    said = parser.parse_args()
    r = np.array(REFERENCE)
    print("| task | optimiser | hypervolume, mean | least | most | ms |\n|---|---|---|---|---|---|")
    for task_name in said.tasks.split(","):
        task, rest = TASKS[task_name]
        true = np.array([task(np.array([first] + [rest] * (P - 1))) for first in np.linspace(0, 1, 2000)])
        whole = hypervolume.hypervolume(true, r)
        for name in said.optimisers.split(","):
            began = time.process_time()
            runs = [hypervolume.hypervolume(np.array(OPTIMISERS[name](task, seed, said.budget)), r) / whole
                    for seed in range(said.seeds)]
            ms = 1000 * (time.process_time() - began) / said.seeds / said.budget
            print(f"| {task_name} | {name} | {statistics.mean(runs):.3f} | {min(runs):.3f} | {max(runs):.3f} "
                  f"| {ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
