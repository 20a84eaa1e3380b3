"""What rule `converged` saves, and what it costs: python tests/bench/stopping.py [--seeds 20] [--jobs 1] [--out FILE].

Each run goes to the end of its budget; where the rule would have stopped is noted on the way. The result of a moment is
the noise-free value of the trial with the best belief, and what a stop falls short is in shares of the range from the
best to the median random value. The rule was tuned on `--tuned`, other tasks and seeds than those that are reported.

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
from dataclasses import asdict, replace
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
from bayesd.study.problem import Observation, Problem  # noqa: E402
from bayesd.study.stopping import by_model  # noqa: E402
from bayesd_schemas.study import Stop  # noqa: E402

REPORTED = ("hartmann-3", "noisy-levy-4", "mixed-valleys", "logistic-iris", "svc-digits")
TUNED = ("rosenbrock-3", "noisy-branin-2", "svc-cancer", "hartmann-6", "mixed-ellipsoid", "noisy-ackley-5",
         "logistic-wine", "rastrigin-2", "neighbours-digits", "noisy-griewank-6", "sphere-5", "peaks-2")
TUNED_SEED = 901
RULE = Stop(converged=True)


def run(name: str, seed: int, budget: int) -> dict[str, Any]:
    """One run: where the rule stopped it, the result there, and the result of the whole budget."""
    task = tasks()[name]
    instance = task.make(seed)
    known = reference.known(task, instance, seed) or reference.stored()[name]
    noise, sd = stream("stopping", name, seed), task.noise * known.range
    problem = Problem(instance.space, ("minimize",), "bayes", seed, True, 1, 0)
    truth: list[float] = []
    stop: dict[str, Any] | None = None
    for number in range(1, budget + 1):
        suggestion = suggest(problem)
        proposal = suggestion.proposals[0]
        truth.append(instance.value(proposal.params))
        value = truth[-1] + sd * float(noise.normal())
        seen = Observation(number, proposal.params, (value,) if value == value else None)
        problem = replace(problem, number=number + 1, drawn=proposal.drawn, history=(*problem.history, seen),
                          fit=suggestion.fit or problem.fit)
        if stop is None:
            judged = convergence(problem)
            if judged is not None and by_model(RULE, judged) is not None:
                stop = {"at": number, "regret": _result(problem, truth, known), "seen": asdict(judged)}
    whole = _result(problem, truth, known)
    return {"task": name, "seed": seed, "budget": budget, "stop": stop, "whole": whole,
            "at": budget if stop is None else stop["at"], "short": 0.0 if stop is None else stop["regret"] - whole}


def _result(problem: Problem, truth: list[float], known: reference.Reference) -> float:
    """Regret, in shares of the range, of the trial with the best belief."""
    means = posterior_at_data(problem)[0]
    best = min((i for i, seen in enumerate(problem.history) if seen.values is not None), key=lambda i: means[i])
    return known.regret(truth[best])


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
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that gets a line for each run")
    options = parser.parse_args()
    names = options.tasks or (TUNED if options.tuned else REPORTED)
    first = TUNED_SEED if options.tuned else 1
    cells = list(product(range(first, first + options.seeds), names))
    progress, runs = Progress(len(cells)), []
    with ProcessPoolExecutor(options.jobs) as pool:
        for one in pool.map(run, *zip(*((name, seed, options.budget) for seed, name in cells), strict=True)):
            runs.append(one)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            progress.step(f"{one['task']} seed {one['seed']}: at {one['at']}, short {one['short']:.2%}")
    progress.close()
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
