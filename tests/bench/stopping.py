"""What rule `converged` saves, and what it costs: python tests/bench/stopping.py [--seeds 20] [--jobs 1] [--out FILE].

Each run goes to the end of its budget; where the rule would have stopped is noted on the way. The result of a moment is
the noise-free value of the trial with the best belief, and what a stop falls short is in shares of the range from the
best to the median random value. The rule was tuned on `--tuned`, other tasks, and then on the seeds 100 to 108 of those
that are reported (`--first 100 --seeds 9`).

    saved     mean share of the budget that was not spent
    short     what the stop's result is worse by than that of the whole budget: mean, and the worst run
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.bench.quality import reference  # noqa: E402  # the path comes first
from tests.bench.quality.progress import Progress  # noqa: E402
from tests.bench.quality.task import stream  # noqa: E402
from tests.bench.quality.tasks import tasks  # noqa: E402

from bayesd.optimize import convergence, posterior_at_data, suggest  # noqa: E402
from bayesd.study.problem import Fit, Observation, Problem  # noqa: E402
from bayesd.study.stopping import RESULTS_MIN, by_model  # noqa: E402
from bayesd_schemas.study import Stop  # noqa: E402

REPORTED = ("hartmann-3", "noisy-levy-4", "mixed-valleys", "logistic-iris", "svc-digits")
TUNED = ("rosenbrock-3", "noisy-branin-2", "svc-cancer", "hartmann-6", "mixed-ellipsoid", "noisy-ackley-5",
         "logistic-wine", "rastrigin-2", "neighbours-digits", "noisy-griewank-6", "sphere-5", "peaks-2")
TUNED_SEED = 901
RULE = Stop(converged=True)


@dataclass(frozen=True)
class Recorded:
    """A run to the end of its budget. The rule moves no trial, so one run serves for every rule."""

    task: str
    seed: int
    moments: list[dict[str, Any]]

    @property
    def known(self) -> reference.Reference:
        task = tasks()[self.task]
        return reference.known(task, task.make(self.seed), self.seed) or reference.stored()[self.task]

    def problem(self, results: int) -> Problem:
        """What is known when so many results are in."""
        last = self.moments[results - 1]
        history = tuple(Observation(at, each["params"], None if each["value"] is None else (each["value"],))
                        for at, each in enumerate(self.moments[:results], 1))
        fit = None if last["fit"] is None else Fit(last["fit"]["model"], last["fit"]["n"], tuple(last["fit"]["theta"]))
        return Problem(tasks()[self.task].make(self.seed).space, ("minimize",), "bayes", self.seed, True, results + 1,
                       last["drawn"], history, fit=fit)

    def regret(self, results: int) -> float:
        """In shares of the range, of the trial with the best belief."""
        means = posterior_at_data(self.problem(results))[0]
        tried = self.moments[:results]
        best = min((i for i, each in enumerate(tried) if each["value"] is not None), key=lambda i: means[i])
        return self.known.regret(tried[best]["truth"])


def record(name: str, seed: int, budget: int) -> Recorded:
    """A run of a task."""
    task = tasks()[name]
    instance = task.make(seed)
    made = Recorded(name, seed, [])
    noise, sd = stream("stopping", name, seed), task.noise * made.known.range
    problem = Problem(instance.space, ("minimize",), "bayes", seed, True, 1, 0)
    for number in range(1, budget + 1):
        suggestion = suggest(problem)
        proposal, fit = suggestion.proposals[0], suggestion.fit or problem.fit
        truth = instance.value(proposal.params)
        value = truth + sd * float(noise.normal())
        made.moments.append({"params": proposal.params, "value": value if value == value else None, "truth": truth,
                             "drawn": proposal.drawn, "fit": fit and asdict(fit)})
        seen = Observation(number, proposal.params, (value,) if value == value else None)
        problem = replace(problem, number=number + 1, drawn=proposal.drawn, history=(*problem.history, seen), fit=fit)
    return made


def judge(run: Recorded, every: int) -> dict[str, Any]:
    """Where the rule would have stopped a run, the result there, and the result of the whole budget. It is asked after
    every so many results."""
    budget = len(run.moments)
    said: dict[str, Any] = {"task": run.task, "seed": run.seed, "budget": budget, "stop": None,
                            "whole": run.regret(budget), "at": budget, "short": 0.0}
    for results in range(RESULTS_MIN, budget + 1, every):
        seen = convergence(run.problem(results))
        if seen is not None and by_model(RULE, seen) is not None:
            regret = run.regret(results)
            return said | {"stop": {"at": results, "regret": regret, "seen": asdict(seen)}, "at": results,
                           "short": regret - said["whole"]}
    return said


def recorded(file: Path | None) -> dict[tuple[str, int, int], Recorded]:
    """The runs that a file has by now, by task, seed and budget."""
    if file is None or not file.exists():
        return {}
    lines = [Recorded(**json.loads(line)) for line in file.read_text().splitlines()]
    return {(run.task, run.seed, len(run.moments)): run for run in lines}


def _one(name: str, seed: int, budget: int, had: Recorded | None, every: int) -> tuple[Recorded, dict[str, Any]]:
    run = had or record(name, seed, budget)
    return run, judge(run, every)


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "| task | runs | stopped | saved | short, mean | worst run | runs over 2 % |"
    yield "|---|---|---|---|---|---|---|"
    names = list(dict.fromkeys(each["task"] for each in runs))
    for name in [*names, "all"]:
        those = [each for each in runs if name in ("all", each["task"])]
        saved = statistics.mean(1 - each["at"] / each["budget"] for each in those)
        short = [each["short"] for each in those]
        yield (f"| {name} | {len(those)} | {sum(each['stop'] is not None for each in those)} | {saved:.1%} | "
               f"{statistics.mean(short):.2%} | {max(short):.2%} | {sum(each > 0.02 for each in short)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", help="names of other tasks of tests/bench/quality")
    parser.add_argument("--tuned", action="store_true", help="the tasks and seeds that the rule was tuned on")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="results between two questions; more is faster")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--first", type=int, help="the first seed")
    parser.add_argument("--runs", type=Path, help="a file that keeps the runs; those in it are judged, not made again")
    parser.add_argument("--out", type=Path, help="a file that gets a line for each run")
    options = parser.parse_args()
    names = options.tasks or (TUNED if options.tuned else REPORTED)
    first = options.first or (TUNED_SEED if options.tuned else 1)
    had = recorded(options.runs)
    cells = list(product(range(first, first + options.seeds), names))
    progress, runs = Progress(len(cells)), []
    with ProcessPoolExecutor(options.jobs) as pool:
        for run, one in pool.map(_one, *zip(*((name, seed, options.budget, had.get((name, seed, options.budget)),
                                               options.every)
                                              for seed, name in cells), strict=True)):
            runs.append(one)
            if options.runs is not None and (one["task"], one["seed"], options.budget) not in had:
                with options.runs.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            progress.step(f"{one['task']} seed {one['seed']}: at {one['at']}, short {one['short']:.2%}")
    progress.close()
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
