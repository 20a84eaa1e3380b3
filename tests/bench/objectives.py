"""Two objectives, some with limits: the hypervolume that bayesd and Optuna's samplers reach, in one run.

    python tests/bench/objectives.py --seeds 5 --budget 100 --q 1,4 --optimisers bayesd,nsga2,tpe,gp:3

Printed is the hypervolume of what keeps the limits, as a share of that of the front: the true one of ZDT and DTLZ, else
of what all runs of this call found together. With q > 1 workers ask on a virtual clock, while others are pending. gp is
GPSampler and needs torch.

    zdt1, zdt2, zdt3    Zitzler, Deb and Thiele (2000), six variables
    dtlz2, dtlz7        Deb, Thiele, Laumanns and Zitzler (2002), two objectives, six variables
    bnh, srn            Binh and Korn (1997); Srinivas and Deb (1994): two variables, two limits
    tree, features      error against size on digits and breast cancer (scikit-learn): a pruned decision tree by its
                        nodes, ridge regression on random Fourier features by their number; the same point gives the
                        same value, and a prediction takes as long as they are large
    fast-tree           the tree's error alone, with a limit on its nodes
"""

import argparse
import heapq
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bayesd.optimize import hypervolume, suggest
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Bound, Fit, Observation, Problem, Proposal
from bayesd_schemas.space import Space

P = 6
SIX = {f"x{i}": {"type": "float", "low": 0.0, "high": 1.0} for i in range(P)}
Params = Mapping[str, Any]
Told = tuple[tuple[float, ...], tuple[float, ...]]
"""Objectives, all minimised, and what the limits are on."""


@dataclass(frozen=True)
class Task:
    space: dict[str, dict[str, Any]]
    function: Callable[[Params], Told]
    reference: tuple[float, ...]
    limits: tuple[Bound, ...] = ()
    rest: float | None = None
    """Of a task on six variables with a known front: the value of all but the first there."""

    def keeps(self, told: Told) -> bool:
        return all(bound.keeps(value) for bound, value in zip(self.limits, told[1], strict=True))

    def front(self) -> list[Told] | None:
        if self.rest is None:
            return None
        return [self.function(dict.fromkeys(SIX, self.rest) | {"x0": float(first)})
                for first in np.linspace(0, 1, 2000)]


def six(function: Callable[[Floats], tuple[float, float]]) -> Callable[[Params], Told]:
    return lambda params: (function(np.array([params[name] for name in SIX], dtype=np.float64)), ())


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


def dtlz7(x: Floats) -> tuple[float, float]:
    return float(x[0]), float(2 * (1 + _g(x)) - x[0] * (1 + np.sin(3 * np.pi * x[0])))


def bnh(params: Params) -> Told:
    x, y = params["x"], params["y"]
    return ((4 * x * x + 4 * y * y, (x - 5) ** 2 + (y - 5) ** 2), ((x - 5) ** 2 + y * y, (x - 8) ** 2 + (y + 3) ** 2))


def srn(params: Params) -> Told:
    x, y = params["x"], params["y"]
    return (2 + (x - 2) ** 2 + (y - 1) ** 2, 9 * x - (y - 1) ** 2), (x * x + y * y, x - 3 * y + 10)


@cache
def _data(name: str) -> Any:
    return getattr(import_module("sklearn.datasets"), f"load_{name}")(return_X_y=True)


@cache
def _tree(depth: int, leaf: int, split: int, alpha: float) -> tuple[float, float]:
    selection, trees = import_module("sklearn.model_selection"), import_module("sklearn.tree")
    X, y = _data("digits")
    model = trees.DecisionTreeClassifier(max_depth=depth, min_samples_leaf=leaf, min_samples_split=split,
                                         ccp_alpha=alpha, random_state=0)
    found = selection.cross_validate(model, X, y, cv=3, return_estimator=True)
    nodes = statistics.mean(each.tree_.node_count for each in found["estimator"])
    return 1 - float(np.mean(found["test_score"])), float(np.log10(nodes))


def tree(params: Params) -> Told:
    return _tree(params["depth"], params["leaf"], params["split"], params["alpha"]), ()


def fast_tree(params: Params) -> Told:
    error, nodes = tree(params)[0]
    return (error,), (nodes,)


@cache
def _features(count: int, gamma: float, alpha: float) -> float:
    selection, pipeline = import_module("sklearn.model_selection"), import_module("sklearn.pipeline")
    X, y = _data("breast_cancer")
    model = pipeline.make_pipeline(
        import_module("sklearn.preprocessing").StandardScaler(),
        import_module("sklearn.kernel_approximation").RBFSampler(gamma=gamma, n_components=count, random_state=0),
        import_module("sklearn.linear_model").RidgeClassifier(alpha=alpha))
    return 1 - float(np.mean(selection.cross_val_score(model, X, y, cv=5)))


def features(params: Params) -> Told:
    return (_features(params["count"], params["gamma"], params["alpha"]), float(np.log10(params["count"]))), ()


def _float(low: float, high: float, scale: str = "linear") -> dict[str, Any]:
    return {"type": "float", "low": low, "high": high, "scale": scale}


def _int(low: int, high: int, scale: str = "linear") -> dict[str, Any]:
    return {"type": "int", "low": low, "high": high, "scale": scale}


TREE = {"depth": _int(1, 20), "leaf": _int(1, 100, "log"), "split": _int(2, 100, "log"),
        "alpha": _float(1e-5, 1e-1, "log")}
TASKS = {
    "zdt1": Task(SIX, six(zdt1), (1.1, 1.1), rest=0.0), "zdt2": Task(SIX, six(zdt2), (1.1, 1.1), rest=0.0),
    "zdt3": Task(SIX, six(zdt3), (1.1, 1.1), rest=0.0), "dtlz2": Task(SIX, six(dtlz2), (1.1, 1.1), rest=0.5),
    "dtlz7": Task(SIX, six(dtlz7), (1.0, 4.4), rest=0.0),
    "bnh": Task({"x": _float(0, 5), "y": _float(0, 3)}, bnh, (140.0, 50.0), (Bound(25.0, True), Bound(7.7, False))),
    "srn": Task({"x": _float(-20, 20), "y": _float(-20, 20)}, srn, (250.0, 20.0),
                (Bound(225.0, True), Bound(0.0, True))),
    "tree": Task(TREE, tree, (1.0, 3.0)),
    "features": Task({"count": _int(1, 1000, "log"), "gamma": _float(1e-4, 1.0, "log"),
                      "alpha": _float(1e-6, 1e3, "log")}, features, (0.5, 3.0)),
    "fast-tree": Task(TREE, fast_tree, (1.0,), (Bound(1.5, True),))}


class Bayesd:
    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed, self.fit, self.drawn, self.number = task, seed, None, 0, 0
        self.space = Space.model_validate(task.space)
        self.history: list[Observation] = []
        self.pending: dict[int, Proposal] = {}

    fit: Fit | None

    def ask(self) -> tuple[int, Params]:
        self.number += 1
        made = suggest(Problem(
            self.space, tuple("minimize" for _ in self.task.reference), "bayes", self.seed, True, self.number,
            self.drawn, tuple(self.history), tuple(each.params for each in self.pending.values()), self.fit,
            limits=self.task.limits), 1)
        self.fit, proposal = made.fit or self.fit, made.proposals[0]
        self.drawn, self.pending[self.number] = proposal.drawn, proposal
        return self.number, proposal.params

    def tell(self, number: int, told: Told) -> None:
        self.history.append(Observation(number, self.pending.pop(number).params, told[0], limits=told[1]))


class Optuna:
    sampler = ""

    def __init__(self, task: Task, seed: int) -> None:
        made: Any = import_module("optuna")
        made.logging.set_verbosity(made.logging.ERROR)
        self.task, self.trials = task, dict[int, Any]()
        more = {"constraints_func": lambda trial: trial.user_attrs["beyond"]} if task.limits else {}
        self.study = made.create_study(directions=["minimize"] * len(task.reference),
                                       sampler=getattr(made.samplers, self.sampler)(seed=seed, **more))

    def ask(self) -> tuple[int, Params]:
        trial = self.study.ask()
        self.trials[trial.number] = trial
        return trial.number, {
            name: (trial.suggest_int if each["type"] == "int" else trial.suggest_float)(
                name, each["low"], each["high"], log=each.get("scale") == "log")
            for name, each in self.task.space.items()}

    def tell(self, number: int, told: Told) -> None:
        trial = self.trials.pop(number)
        trial.set_user_attr("beyond", [value - bound.value if bound.is_most else bound.value - value for bound, value in
                                       zip(self.task.limits, told[1], strict=True)])
        self.study.tell(trial, list(told[0]))


class Random(Optuna):
    sampler = "RandomSampler"

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(Task(task.space, task.function, task.reference), seed)

    def tell(self, number: int, told: Told) -> None:
        self.study.tell(self.trials.pop(number), list(told[0]))


class Nsga2(Optuna):
    sampler = "NSGAIISampler"


class Tpe(Optuna):
    sampler = "TPESampler"


class Gp(Optuna):
    sampler = "GPSampler"


OPTIMISERS: dict[str, Callable[[Task, int], Any]] = {"bayesd": Bayesd, "nsga2": Nsga2, "tpe": Tpe, "gp": Gp,
                                                     "random": Random}


def run(name: str, task: Task, seed: int, budget: int, q: int) -> tuple[list[Told], float]:
    """What was told, in order, and the CPU milliseconds of a suggestion. Durations are of seed and trial alone."""
    made, spent_s = OPTIMISERS[name](task, seed), 0.0
    durations = np.random.default_rng(seed).lognormal(0.0, 0.5, budget)
    clock, asked, out = 0.0, 0, list[Told]()
    running: list[tuple[float, int, int, Told]] = []
    while len(out) < budget:
        while asked < budget and len(running) < q:
            began = time.process_time()
            number, params = made.ask()
            spent_s += time.process_time() - began
            heapq.heappush(running, (clock + durations[asked], asked, number, task.function(params)))
            asked += 1
        clock, _, number, told = heapq.heappop(running)
        began = time.process_time()
        made.tell(number, told)
        spent_s += time.process_time() - began
        out.append(told)
    return out, 1000 * spent_s / budget


def volume(task: Task, told: list[Told]) -> float:
    kept = [values for values, limits in told if task.keeps((values, limits))]
    return hypervolume.hypervolume(np.array(kept, dtype=np.float64).reshape(len(kept), len(task.reference)),
                                   np.array(task.reference))


@dataclass(frozen=True)
class Run:
    told: list[Told]
    ms: float


def kept(path: Path | None) -> dict[str, Run]:
    """The runs that a file has by now: a call that was cut short goes on where it was."""
    if path is None or not path.exists():
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {each["run"]: Run([(tuple(values), tuple(limits)) for values, limits in each["told"]], each["ms"])
            for each in lines}


def rows(q: int, task: Task, name: str, runs: Mapping[str, list[Run]]) -> Iterator[str]:
    whole = volume(task, task.front() or [told for each in runs.values() for out in each for told in out.told])
    shares = {optimiser: [volume(task, out.told) / whole for out in each] for optimiser, each in runs.items()}
    for optimiser, got in shares.items():
        apart = [a - b for a, b in zip(shares.get("bayesd", got), got, strict=False)]       # of the seeds of both
        score = "" if optimiser == "bayesd" else ", ".join(map(str, (
            sum(d > 1e-9 for d in apart), sum(abs(d) <= 1e-9 for d in apart), sum(d < -1e-9 for d in apart))))
        yield (f"| {q} | {name} | {optimiser} | {len(got)} | {statistics.mean(got):.3f} | {min(got):.3f} "
               f"| {max(got):.3f} | {score} | {statistics.mean(out.ms for out in runs[optimiser]):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--q", default="1")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--optimisers", default="bayesd,nsga2,tpe,random",
                        help="gp:3 gives one the first three seeds alone")
    parser.add_argument("--out", type=Path, help="a file that keeps the runs; those in it are not made again")
    said = parser.parse_args()
    seeds = {name: int(count or said.seeds) for name, _, count in
             (each.partition(":") for each in said.optimisers.split(","))}
    warnings.filterwarnings("ignore", category=FutureWarning)       # Optuna says that constraints_func will go
    had = kept(said.out)
    print("| q | task | optimiser | seeds | mean | least | most | won, tied, lost by bayesd | ms |\n|" + "---|" * 9,
          flush=True)
    for q, name in product(map(int, said.q.split(",")), said.tasks.split(",")):
        runs: dict[str, list[Run]] = {optimiser: [] for optimiser in seeds}
        for optimiser, seed in ((optimiser, seed) for optimiser, count in seeds.items() for seed in range(count)):
            key = f"{name} {optimiser} seed {seed} q {q} of {said.budget}"
            if key not in had:
                had[key] = Run(*run(optimiser, TASKS[name], seed, said.budget, q))
                if said.out is not None:
                    with said.out.open("a") as file:
                        file.write(json.dumps({"run": key, "told": had[key].told, "ms": had[key].ms}) + "\n")
            runs[optimiser].append(had[key])
        print("\n".join(rows(q, TASKS[name], name, runs)), flush=True)


if __name__ == "__main__":
    main()
