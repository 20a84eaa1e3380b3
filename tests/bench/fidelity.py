"""Pruning rules on real training: how good with a quarter of the epochs, and what a report costs the daemon.

    python -m tests.bench.fidelity                     # 10 seeds: a network on digits, full training against rungs
    python -m tests.bench.fidelity --method random --trials 20 40 80 --cache FOLDER     # curves are kept there
    python -m tests.bench.fidelity --lcbench FOLDER --task 168868 34539     # curves of LCBench; see lcbench.py
    python -m tests.bench.fidelity --reports           # CPU time of a report among 10,000 trials of 20 reports, and of
                                                       # a tell at a rung among 10,000 trials that climb

Training is scikit-learn's MLPClassifier on the digits that it brings, epoch by epoch; the metric is the log-loss on
held-out images. Full training gets `--trials` trials of all epochs, each rule a quarter of those epochs with the
same method, one worker, and ends there, whatever is under way; where trials pause the study knows that as its budget of
fidelity. The figure is the median over the seeds of the best loss
of a trial that was trained to the end; beside it the median of how much worse that is than with full training on the
same seed, and on how many seeds it is as good.
"""

import argparse
import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from tests.bench import lcbench

from bayesd import collector
from bayesd.optimize import suggest
from bayesd.study import rules
from bayesd.study.desk import Desk
from bayesd_schemas.messages import Ask, Report, Tell

TRIALS, EPOCHS = 20, 27
SPACE: dict[str, Any] = {
    "rate": {"type": "float", "low": 1e-4, "high": 0.3, "scale": "log"},
    "alpha": {"type": "float", "low": 1e-6, "high": 1.0, "scale": "log"},
    "units": {"type": "int", "low": 8, "high": 64},
    "batch": {"type": "int", "low": 16, "high": 256, "scale": "log"}}
RULES: dict[str, dict[str, Any]] = {
    "full": {}, "asha": {"prune": {"rule": "asha"}}, "hyperband": {"prune": {"rule": "hyperband"}},
    "median": {"prune": {"rule": "median", "startup": 2}},
    "curve": {"prune": {"rule": "curve", "startup": 4}},
    "asha-resume": {"prune": {"rule": "asha", "resume": True}},
    "hyper-resume": {"prune": {"rule": "hyperband", "resume": True}},
    "hyper-shared": {"prune": {"rule": "hyperband", "shared": True}},
    "hyper-resume-shared": {"prune": {"rule": "hyperband", "resume": True, "shared": True}}}


class World:
    """A desk with one study and one worker."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.desk = Desk()
        self.desk.record("log.opened", {"log": "bench", "format": 1, "version": "0"})
        self.desk.record("daemon.started", {"epoch": 1, "version": "0"})
        self.desk.record("study.created", {"spec": {"name": "s", **spec}}, study="s")
        self.asked = 0

    def ask(self) -> dict[str, Any] | None:
        """A grant; None once the study has ended."""
        self.asked += 1
        rules.on_ask(self.desk, "w", Ask(id=f"a{self.asked}", run="r", study="s"))
        for order in rules.orders(self.desk):
            rules.supply(self.desk, order, suggest(order.problem, order.wanted))
        return next((letter.body for letter in self.said() if letter.kind == "grant"), None)

    def report(self, trial: int, step: int, value: float, fence: int = 1) -> bool:
        """Whether the trial is to stop."""
        rules.on_report(self.desk, "w", Report(id="r", study="s", trial=trial, fence=fence, step=step, value=value))
        return any(letter.body.get("stop") == "pruned" for letter in self.said())

    def tell(self, trial: int, fence: int = 1, **outcome: Any) -> None:
        rules.on_tell(self.desk, "w", Tell(id=f"t{trial}", study="s", trial=trial, fence=fence, **outcome))
        self.said()

    def said(self) -> list[Any]:
        self.desk.take_rows()
        return list(self.desk.committed(self.desk.state.seq))


class Digits:
    """A network that is trained for real."""

    epochs, least, space, goal = EPOCHS, 2, SPACE, {"metric": "loss", "direction": "minimize"}
    name = "digits"

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache

    def curve(self, params: dict[str, Any], seed: int) -> Iterator[float]:
        """Log-loss on held-out images after each epoch; what the cache knows of it is not trained again."""
        if self.cache is None:
            yield from self._trained(params, seed)
            return
        key = json.dumps([seed, sorted(params.items())]).encode()
        file = self.cache / f"{hashlib.sha256(key).hexdigest()[:20]}.json"
        known: list[float] = json.loads(file.read_text()) if file.exists() else []
        yield from known
        for step, value in enumerate(self._trained(params, seed), start=1):
            if step > len(known):
                known.append(value)
                file.write_text(json.dumps(known))
                yield value

    def _trained(self, params: dict[str, Any], seed: int) -> Iterator[float]:
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images / 16.0, labels, test_size=0.4, random_state=seed, stratify=labels)
        network = MLPClassifier((params["units"],), learning_rate_init=params["rate"], alpha=params["alpha"],
                                batch_size=params["batch"], random_state=seed)
        while True:
            network.partial_fit(parts[0], parts[2], classes=np.arange(10))
            yield float(log_loss(parts[3], np.clip(network.predict_proba(parts[1]), 1e-12, 1.0), labels=range(10)))


class Lcbench:
    """A data set of LCBench, whose curves are looked up."""

    epochs, least, space, goal = lcbench.EPOCHS, 2, lcbench.SPACE, {"metric": "accuracy", "direction": "maximize"}

    def __init__(self, folder: Path, task: str) -> None:
        self.name = f"LCBench {task}"
        self.curves = lcbench.Curves(folder, task)

    def curve(self, params: dict[str, Any], seed: int) -> Iterator[float]:
        yield from self.curves.of(params)


def run(task: Digits | Lcbench, method: str, rule: str, seed: int, epochs: int) -> tuple[float, int, int]:
    """(Best value of a whole training, less is better; trials begun; whole trainings) within so many epochs."""
    world = World({"method": method, "seed": seed, "space": task.space, **task.goal,
                   "fidelity": {"name": "epochs", "min": task.least, "max": task.epochs}, **RULES[rule],
                   "budget": {"fidelity": epochs} if "resume" in rule else {}})
    left, best, whole = epochs, float("inf"), 0
    sign = 1.0 if task.goal["direction"] == "minimize" else -1.0
    checkpoints: dict[str, tuple[Iterator[float], int]] = {}      # in the worker's memory: a training and its epochs
    while left > 0:
        grant = world.ask()
        if grant is None:
            break
        trial, fence, fidelity = grant["trial"], grant["fence"], grant["fidelity"]
        curve, done = (checkpoints.pop(fidelity["from"]) if "from" in fidelity
                       else (task.curve(grant["params"], seed), 0))
        for step in range(done + 1, min(fidelity["value"], done + left) + 1):
            value = next(curve)
            left -= 1
            if world.report(trial, step, value, fence):
                world.tell(trial, fence, state="pruned")
                break
        else:
            if step == fidelity["value"]:
                checkpoints[f"{trial}"] = curve, step
                world.tell(trial, fence, value=value, checkpoint=f"{trial}")
            if step == task.epochs:
                best, whole = min(best, sign * value), whole + 1
    return best, len(world.desk.state.studies["s"].trials), whole


def quality(task: Digits | Lcbench, method: str, chosen: list[str], seeds: int, trials: int) -> None:
    name, most = task.goal["metric"], trials * task.epochs
    full = [run(task, method, "full", seed, most) for seed in range(seeds)]
    print(f"{task.name}, method {method}: full training of {trials} trials, {most} epochs: {name} "
          f"{abs(statistics.median(each[0] for each in full)):.4f}, {seeds} seeds", flush=True)
    for rule in chosen:
        found = [run(task, method, rule, seed, most // 4) for seed in range(seeds)]
        worse = [mine[0] - whole[0] for mine, whole in zip(found, full, strict=True)]
        print(f"    {rule:20} {most // 4 / most:.2f} of the epochs: {name} "
              f"{abs(statistics.median(each[0] for each in found)):.4f}, "
              f"worse by {statistics.median(worse):+.4f}, as good or better in {sum(each <= 0 for each in worse)}; "
              f"{statistics.median(each[1] for each in found):g} trials, "
              f"{statistics.median(each[2] for each in found):g} whole", flush=True)


def reports(rule: str, trials: int = 10_000, steps: int = 20) -> None:
    """CPU time of each report, the rule's answer included."""
    draw = np.random.default_rng(0)
    world = World({"method": "random", "space": {"x": {"type": "float", "low": 0, "high": 1}},
                   "fidelity": {"name": "epochs", "max": steps}, **RULES[rule]})
    spent, looked = [], 0
    collector.set_aside()
    for _ in range(trials):
        looked = collector.grown(looked, world.desk.state.seq)       # as the daemon does, between messages
        grant = world.ask()
        assert grant is not None
        trial = grant["trial"]
        level, stopped = draw.random(), False
        for step in range(1, steps + 1):
            value = level + 1.0 / step + 0.01 * draw.random()
            message = Report(id="r", study="s", trial=trial, fence=1, step=step, value=value)
            began = time.process_time()
            rules.on_report(world.desk, "w", message)
            spent.append(time.process_time() - began)
            # Every other worker goes on: the rungs fill, and the next reports find most to compare with.
            stopped = any(letter.body.get("stop") for letter in world.said()) and trial % 2 == 0
            if stopped:
                break
        world.tell(trial, **({"state": "pruned"} if stopped else {"value": value}))
    spent.sort()
    print(f"{rule:20} {len(spent)} reports of {trials} trials: mean {1e3 * statistics.fmean(spent):.3f} ms, "
          f"99th percentile {1e3 * spent[len(spent) * 99 // 100]:.3f} ms, worst {1e3 * spent[-1]:.3f} ms", flush=True)


def climbs(rule: str, trials: int = 10_000) -> None:
    """CPU time of each tell at a rung with the ask that follows: who goes on is decided there."""
    draw = np.random.default_rng(0)
    world = World({"method": "random", "space": {"x": {"type": "float", "low": 0, "high": 1}},
                   "fidelity": {"name": "epochs", "max": 27}, **RULES[rule]})
    spent: list[float] = []
    looked = 0
    collector.set_aside()
    grant = world.ask()
    while grant is not None and grant["trial"] < trials:
        looked = collector.grown(looked, world.desk.state.seq)
        message = Tell(id="t", study="s", trial=grant["trial"], fence=grant["fence"], value=draw.random())
        began = time.process_time()
        rules.on_tell(world.desk, "w", message)
        said = world.desk.state.studies["s"]
        rules.on_ask(world.desk, "w", Ask(id=f"b{len(spent)}", run="r", study="s"))
        spent.append(time.process_time() - began)
        grants = [letter.body for letter in world.said() if letter.kind == "grant"]
        if grants:
            grant = grants[0]
        else:       # a point has to be drawn for this ask first
            for order in rules.orders(world.desk):
                rules.supply(world.desk, order, suggest(order.problem, order.wanted))
            grant = next(letter.body for letter in world.said() if letter.kind == "grant")
    spent.sort()
    print(f"{rule:20} {len(spent)} tells of {len(said.trials)} trials: mean {1e3 * statistics.fmean(spent):.3f} ms, "
          f"99th percentile {1e3 * spent[len(spent) * 99 // 100]:.3f} ms, worst {1e3 * spent[-1]:.3f} ms", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--least", type=int, help="the lowest rung (2 epochs)")
    parser.add_argument("--trials", type=int, nargs="+", default=[TRIALS])
    parser.add_argument("--method", nargs="+", choices=["bayes", "random"], default=["bayes", "random"])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--cache", type=Path, help="folder for the curves of networks, which makes later runs fast")
    parser.add_argument("--lcbench", type=Path, help="folder of the scenario")
    parser.add_argument("--task", nargs="+", default=["189873"], help="data sets of LCBench")
    parser.add_argument("--reports", action="store_true")
    arguments = parser.parse_args()
    if arguments.reports:
        for name in arguments.rules:
            (climbs if "resume" in name else reports)(name)
    else:
        if arguments.cache is not None:
            arguments.cache.mkdir(parents=True, exist_ok=True)
        for task in ([Digits(arguments.cache)] if arguments.lcbench is None
                     else [Lcbench(arguments.lcbench, each) for each in arguments.task]):
            task.least = arguments.least or task.least
            for method in arguments.method:
                for trials in arguments.trials:
                    quality(task, method, arguments.rules, arguments.seeds, trials)
