"""Whether stated intervals of importance hold the truth, and how near it is: python tests/bench/importance.py.

    python tests/bench/importance.py --seeds 20 --trials 50,100,200 --points search,even --peers fanova,ped-anova

Each study is a search of its own (method bayes), or `even` points (Sobol). The truth is known: in closed form
(Ishigami and Homma 1990; Sobol's g-function), or of the function itself on 8,192 points (two conditional spaces).
Peers are Optuna's evaluators, on the same trials; without Optuna they are left out, and that is said.

    held        how often the interval of nine in ten holds the true share: of main shares, of total ones
    error       mean distance to the true share; beside a peer of main shares scaled to a sum of 1, as Optuna gives them
    agreement   Kendall's tau-b between the shares stated and the true ones (main), on those trials
    seconds     CPU, of one answer
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

import numpy as np  # noqa: E402  # the path comes first
from scipy import stats  # noqa: E402

from bayesd.importance import indices  # noqa: E402
from bayesd.importance.belief import Belief  # noqa: E402
from bayesd.optimize import sobol, suggest  # noqa: E402
from bayesd.optimize.encode import cube  # noqa: E402
from bayesd.optimize.streams import Floats  # noqa: E402
from bayesd.study.problem import Observation, Problem  # noqa: E402
from bayesd_schemas.space import Space  # noqa: E402

Params = Mapping[str, Any]
LEVEL, DIGITS = 0.9, 5e-5       # shares are rounded
TRUTH_POINTS = 8192
LEAST = 0.01                    # a share that is worth to be seen


@dataclass(frozen=True)
class Shares:
    """By parameter, in the order of the space."""

    main: dict[str, float]
    total: dict[str, float]


@dataclass(frozen=True)
class Task:
    space: dict[str, dict[str, Any]]
    function: Callable[[Params], float]
    known: Callable[[], Shares] | None = None


def floats(p: int, low: float = 0.0, high: float = 1.0) -> dict[str, dict[str, Any]]:
    return {f"x{j}": {"type": "float", "low": low, "high": high} for j in range(p)}


def ishigami(params: Params) -> float:
    x, y, z = (params[f"x{j}"] for j in range(3))
    return float(math.sin(x) + 7 * math.sin(y) ** 2 + 0.1 * z**4 * math.sin(x))


def known_of_ishigami() -> Shares:
    """With a = 7 and b = 0.1."""
    alone = 0.5 * (1 + 0.1 * math.pi**4 / 5) ** 2
    second, both = 49 / 8, 0.01 * math.pi**8 * (1 / 18 - 1 / 50)
    whole = alone + second + both
    return Shares({"x0": alone / whole, "x1": second / whole, "x2": 0.0},
                  {"x0": (alone + both) / whole, "x1": second / whole, "x2": both / whole})


WEIGHTS = (0.0, 1.0, 4.5, 9.0, 99.0, 99.0)


def g(params: Params) -> float:
    return float(math.prod((abs(4 * params[f"x{j}"] - 2) + a) / (1 + a) for j, a in enumerate(WEIGHTS)))


def known_of_g() -> Shares:
    alone = {f"x{j}": 1 / 3 / (1 + a) ** 2 for j, a in enumerate(WEIGHTS)}
    whole = math.prod(1 + v for v in alone.values()) - 1
    return Shares({name: v / whole for name, v in alone.items()},
                  {name: v * (1 + whole) / (1 + v) / whole for name, v in alone.items()})


NET: dict[str, dict[str, Any]] = {"rate": {"type": "float", "low": 1e-4, "high": 1.0, "scale": "log"},
       "kind": {"type": "categorical", "choices": ["adam", "sgd"]},
       "momentum": {"type": "float", "low": 0.0, "high": 1.0, "when": {"kind": "sgd"}},
       "decay": {"type": "float", "low": 0.0, "high": 1.0, "when": {"kind": "adam"}},
       "batch": {"type": "int", "low": 8, "high": 512, "scale": "log"}}


def net(params: Params) -> float:
    rate = math.log10(params["rate"])
    if params["kind"] == "sgd":
        own = 0.3 + (rate + 1 + params["momentum"]) ** 2 / 8 + 0.6 * (params["momentum"] - 0.8) ** 2
    else:
        own = (rate + 2.5) ** 2 / 5 + 0.15 * math.sin(6 * params["decay"])
    return float(own + 0.05 * math.log2(params["batch"] / 64))


SVM: dict[str, dict[str, Any]] = {"C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
       "kernel": {"type": "categorical", "choices": ["rbf", "poly", "linear"]},
       "gamma": {"type": "float", "low": 1e-4, "high": 10.0, "scale": "log", "when": {"kernel": ["rbf", "poly"]}},
       "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}}


def svm(params: Params) -> float:
    stiff = math.log10(params["C"])
    if params["kernel"] == "linear":
        return 0.5 + 0.3 * math.exp(-((stiff + 1) ** 2))
    gamma = math.log10(params["gamma"])
    if params["kernel"] == "rbf":
        return 1 - 0.9 * math.exp(-(gamma + 1) ** 2 / 2 - (stiff - 1 + 0.5 * gamma) ** 2 / 6)
    return float(0.8 - 0.4 * math.exp(-(gamma + 1.5) ** 2 / 3) + 0.08 * (params["degree"] - 3) ** 2)


TASKS = {"ishigami": Task(floats(3, -math.pi, math.pi), ishigami, known_of_ishigami),
         "g": Task(floats(6), g, known_of_g), "net": Task(NET, net), "svm": Task(SVM, svm)}


@cache
def truth(name: str) -> Shares:
    """The true shares; where no closed form is known, Jansen's sums over the function itself."""
    task = TASKS[name]
    if task.known is not None:
        return task.known()
    of = cube(Space.model_validate(task.space))

    def values(U: Floats) -> Floats:
        return np.array([task.function(params) for params in of.decode(U)])
    both = sobol.points(1, 0, TRUTH_POINTS, 2 * of.p)
    A, B = both[:, :of.p], both[:, of.p:]
    a, b = values(A), values(B)
    whole, main, total = float(np.var(np.concatenate([a, b]))), {}, {}
    for j, parameter in enumerate(of.names):
        mixed = A.copy()
        mixed[:, j] = B[:, j]
        at = values(mixed)
        main[parameter] = max(0.0, 1 - float(np.mean((b - at) ** 2)) / (2 * whole))
        total[parameter] = float(np.mean((a - at) ** 2)) / (2 * whole)
    return Shares(main, total)


def studied(name: str, seed: int, count: int, points: str) -> Problem:
    """The longest study of a task; a shorter one is its beginning."""
    task = TASKS[name]
    space = Space.model_validate(task.space)
    problem = Problem(space, ("minimize",), "bayes" if points == "search" else "sobol", seed, True, 1, 0)
    for number in range(1, count + 1):
        made = suggest(problem)
        proposal = made.proposals[0]
        seen = Observation(number, proposal.params, (task.function(proposal.params),))
        problem = replace(problem, number=number + 1, drawn=proposal.drawn, history=(*problem.history, seen),
                          fit=made.fit or problem.fit)
    return problem


def beginning(problem: Problem, count: int) -> Problem:
    """Its first results. What was fitted later is not known yet."""
    return replace(problem, number=count + 1, drawn=count, history=problem.history[:count], fit=None)


# ---------------------------------------------------------------- what is stated of a study


def ours(problem: Problem) -> dict[str, Any]:
    began = time.process_time()
    rows = {row["param"]: row for row in indices.of(Belief.of(problem), None, False)["params"]}
    spent = time.process_time() - began
    return {"main": {name: row["main"] for name, row in rows.items()},
            "total": {name: row["total"] for name, row in rows.items()}, "s": spent}


def peer(evaluator: str, problem: Problem, seed: int) -> dict[str, Any]:
    """Optuna's shares, by its own names and defaults, of the same trials. A conditional parameter, which is not in
    every trial, gets none from fANOVA."""
    optuna: Any = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    kinds = {name: _distribution(optuna.distributions, each) for name, each in problem.space.root.items()}
    for seen in problem.history:
        assert seen.values is not None
        study.add_trial(optuna.trial.create_trial(
            params=dict(seen.params), distributions={name: kinds[name] for name in seen.params}, value=seen.values[0]))
    make: Any = {"fanova": lambda: optuna.importance.FanovaImportanceEvaluator(seed=seed),
                 "ped-anova": optuna.importance.PedAnovaImportanceEvaluator}[evaluator]
    began = time.process_time()
    found = optuna.importance.get_param_importances(study, evaluator=make())
    return {"main": {name: float(found.get(name, 0.0)) for name in problem.space.root},
            "s": time.process_time() - began}


def _distribution(kinds: Any, parameter: Any) -> Any:
    if parameter.type == "categorical":
        return kinds.CategoricalDistribution(parameter.choices)
    made = kinds.IntDistribution if parameter.type == "int" else kinds.FloatDistribution
    return made(parameter.low, parameter.high, log=parameter.scale == "log")


# ---------------------------------------------------------------- tables


def of_one(name: str, seed: int, points: str, counts: Sequence[int], peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    whole = studied(name, seed, max(counts), points)
    for count in counts:
        problem = beginning(whole, count)
        yield {"task": name, "seed": seed, "points": points, "trials": count, "ours": ours(problem),
               "peers": {each: peer(each, problem, seed) for each in peers}}


def _held(cells: Sequence[tuple[dict[str, float], float]]) -> str:
    if not cells:
        return "-"
    return f"{statistics.mean(s['low'] - DIGITS <= true <= s['high'] + DIGITS for s, true in cells):.0%}"


def coverage(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (f"| points | task | trials | studies | main held | total held | … of shares above {LEAST:.0%} | error, main "
           "| total | width, main | total | seconds |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    names = list(dict.fromkeys(run["task"] for run in runs))
    for points, name, count in product(dict.fromkeys(run["points"] for run in runs), [*names, "all"],
                                       dict.fromkeys(run["trials"] for run in runs)):
        those = [run for run in runs if (run["points"], run["trials"]) == (points, count)
                 and name in ("all", run["task"])]
        cells = {kind: [(share, getattr(truth(run["task"]), kind)[parameter]) for run in those
                        for parameter, share in run["ours"][kind].items()] for kind in ("main", "total")}
        large = [cell for each in cells.values() for cell in each if cell[1] >= LEAST]
        error = {kind: statistics.mean(abs(share["value"] - true) for share, true in each)
                 for kind, each in cells.items()}
        wide = {kind: statistics.mean(share["high"] - share["low"] for share, _ in each)
                for kind, each in cells.items()}
        yield (f"| {points} | {name} | {count} | {len(those)} | {_held(cells['main'])} | {_held(cells['total'])} "
               f"| {_held(large)} | {error['main']:.3f} | {error['total']:.3f} | {wide['main']:.3f} "
               f"| {wide['total']:.3f} | {statistics.mean(run['ours']['s'] for run in those):.2f} |")


def _scaled(shares: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(shares.values())
    return {name: value / whole if whole > 0 else 0.0 for name, value in shares.items()}


def _agreement(said: list[float], true: list[float]) -> float:
    tau = float(stats.kendalltau(said, true).statistic)
    return 0.0 if math.isnan(tau) else tau


def beside(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| points | task | trials | of | agreement | first found | error | seconds | times ours |"
    yield "|---|---|---|---|---|---|---|---|---|"
    names = list(dict.fromkeys(run["task"] for run in runs))
    for points, name, count in product(dict.fromkeys(run["points"] for run in runs), [*names, "all"],
                                       dict.fromkeys(run["trials"] for run in runs)):
        those = [run for run in runs if (run["points"], run["trials"]) == (points, count)
                 and name in ("all", run["task"])]
        own = statistics.mean(run["ours"]["s"] for run in those)
        for who in ("bayesd", *those[0]["peers"]):
            taus, firsts, errors, spent = [], [], [], []
            for run in those:
                said = {parameter: share["value"] for parameter, share in run["ours"]["main"].items()} \
                    if who == "bayesd" else run["peers"][who]["main"]
                said, true = _scaled(said), _scaled(truth(run["task"]).main)
                order = sorted(true)
                tau = _agreement([said[p] for p in order], [round(true[p], 4) for p in order])
                taus.append(tau)
                firsts.append(max(said, key=lambda p: said[p]) == max(true, key=lambda p: true[p]))
                errors.append(statistics.mean(abs(said[p] - true[p]) for p in order))
                spent.append(run["ours"]["s"] if who == "bayesd" else run["peers"][who]["s"])
            yield (f"| {points} | {name} | {count} | {who} | {statistics.mean(taus):.2f} "
                   f"| {statistics.mean(firsts):.0%} | {statistics.mean(errors):.3f} | {statistics.mean(spent):.2f} "
                   f"| {statistics.mean(spent) / own:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trials", default="50,100,200")
    parser.add_argument("--points", default="search,even")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--peers", default="fanova,ped-anova", help="of Optuna; an empty word for none")
    parser.add_argument("--out", type=Path, help="a file that gets a line for each study")
    said = parser.parse_args()
    peers = [each for each in said.peers.split(",") if each]
    if peers and find_spec("optuna") is None:
        print("Optuna is not installed: nothing is set beside it.", file=sys.stderr)
        peers = []
    warnings.filterwarnings("ignore")       # Optuna says of its evaluators that they are experimental
    runs = list[dict[str, Any]]()
    for seed, points, name in product(range(said.first, said.first + said.seeds), said.points.split(","),
                                      said.tasks.split(",")):
        for one in of_one(name, seed, points, [int(each) for each in said.trials.split(",")], peers):
            runs.append(one)
            if said.out is not None:
                with said.out.open("a") as file:
                    file.write(json.dumps(one) + "\n")
        print(f"{name} seed {seed}, {points}", file=sys.stderr, flush=True)
    print("\n".join(coverage(runs)))
    if peers:
        print("\n" + "\n".join(beside(runs)))


if __name__ == "__main__":
    main()
