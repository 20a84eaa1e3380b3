"""What the winner of a noisy study is worth, by each rule, and whether its stated probability is true.

    python tests/bench/winners.py --seeds 20

Ten noisy tasks whose truth is known, each tuned by method bayes; at several budgets every rule names a winner. Then
  gain    true value of the lowest observed minus true value of the rule's winner, in ranges (from the optimum to the
          median random value): its median over seeds, the runs that were better, equal, worse, and the mean
  table   stated probability that the winner is the best of the points tried, in bins, beside how often it truly was
  loss    stated expected loss beside the true one, both in ranges
The last budget of a run is also looked at after a confirmation (the three leaders, twice more each). What is believed
was chosen on these tasks; `--held` takes five others. `--keep DIR` keeps the logs of the runs, and takes those that
are there, so that a change of a rule is measured on the same runs.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.bench.quality.functions import moved, peaks, schwefel  # noqa: E402
from tests.bench.quality.task import Instance, stream  # noqa: E402

from bayesd import winner  # noqa: E402
from bayesd.inprocess import Study  # noqa: E402
from bayesd.log import read_events  # noqa: E402
from bayesd_schemas.space import Params, Space  # noqa: E402

BUDGETS = (20, 30, 40, 60, 80)
LEADERS, REPEATS = 3, 2
LOWEST = "lowest observed"
BINS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
Told = float | list[float]


@dataclass(frozen=True, slots=True)
class Noisy:
    """A task: an instance for every seed, and what is measured of a true value, both in ranges."""

    name: str
    make: Callable[[int], Instance]
    measured: Callable[[float, np.random.Generator], Told]
    """(true value in ranges above the optimum, random numbers) -> what is told, in ranges."""


def table(seed: int) -> Instance:
    """60 cells of an ordinal and a category, smooth along the first: points come again, and are pooled."""
    random = stream("winners", "table", seed)
    levels = list(range(20))
    at, tilt = random.uniform(3, 17), random.uniform(0.0, 0.3, 3)
    rough = random.normal(0, 0.03, (3, 20))
    space = Space.model_validate({"depth": {"type": "ordinal", "choices": levels},
                                  "kernel": {"type": "categorical", "choices": ["a", "b", "c"]}})

    def value(params: Params) -> float:
        i, k = int(str(params["depth"])), "abc".index(str(params["kernel"]))
        return float(((i - at) / 10) ** 2 + tilt[k] + rough[k, i])

    cells: list[Params] = [{"depth": i, "kernel": k} for i in levels for k in "abc"]
    best = min(cells, key=value)
    return Instance(space, value, value(best), best)


def smooth_table(seed: int) -> Instance:
    """8 by 8 whole numbers round a bowl."""
    random = stream("winners", "smooth table", seed)
    at = random.uniform(1.5, 6.5, 2)
    space = Space.model_validate({name: {"type": "int", "low": 1, "high": 8} for name in ("width", "depth")})

    def value(params: Params) -> float:
        return float(((int(str(params["width"])) - at[0]) / 3) ** 2 + ((int(str(params["depth"])) - at[1]) / 4) ** 2)

    cells: list[Params] = [{"width": i, "depth": j} for i in range(1, 9) for j in range(1, 9)]
    best = min(cells, key=value)
    return Instance(space, value, value(best), best)


def choices(seed: int) -> Instance:
    """96 combinations of three categories: what each adds, and what every pair of them adds together."""
    random = stream("winners", "choices", seed)
    sizes = {"a": 4, "b": 4, "c": 6}
    alone = {name: random.normal(0, 0.3, size) for name, size in sizes.items()}
    pairs = {pair: random.normal(0, 0.1, (sizes[pair[0]], sizes[pair[1]])) for pair in itertools.combinations(sizes, 2)}
    space = Space.model_validate({name: {"type": "categorical", "choices": [f"{name}{i}" for i in range(size)]}
                                  for name, size in sizes.items()})

    def value(params: Params) -> float:
        at = {name: int(str(params[name])[1:]) for name in sizes}
        return float(sum(alone[name][at[name]] for name in sizes)
                     + sum(pairs[one, other][at[one], at[other]] for one, other in pairs))

    cells: list[Params] = [{"a": f"a{i}", "b": f"b{j}", "c": f"c{k}"} for i, j, k in itertools.product(
        range(4), range(4), range(6))]
    best = min(cells, key=value)
    return Instance(space, value, value(best), best)


def plain(sd: float) -> Callable[[float, np.random.Generator], Told]:
    return lambda true, random: true + sd * float(random.normal())


def heavy(sd: float) -> Callable[[float, np.random.Generator], Told]:
    """Student's t with 2.5 degrees of freedom: now and then a measurement is wild."""
    return lambda true, random: true + sd * float(random.standard_t(2.5))


def uneven(sd: float) -> Callable[[float, np.random.Generator], Told]:
    """Noise that grows with the value, as a loss that is noisier where it is worse."""
    return lambda true, random: true + sd * (0.3 + min(true, 2.0)) * float(random.normal())


def folds(sd: float) -> Callable[[float, np.random.Generator], Told]:
    return lambda true, random: [true + sd * float(random.normal()) for _ in range(5)]


TASKS = (
    Noisy("hartmann-6, even", lambda seed: moved("hartmann", 6, True, seed), plain(0.15)),
    Noisy("branin, uneven", lambda seed: moved("branin", 2, True, seed), uneven(0.3)),
    Noisy("levy-4, heavy tails", lambda seed: moved("levy", 4, False, seed), heavy(0.1)),
    Noisy("ackley-5, folds", lambda seed: moved("ackley", 5, False, seed), folds(0.3)),
    Noisy("table-60, even", table, plain(0.15)),
    Noisy("rastrigin-3, even", lambda seed: moved("rastrigin", 3, True, seed), plain(0.15)),
    Noisy("rosenbrock-3, faint", lambda seed: moved("rosenbrock", 3, True, seed), plain(0.02)),
    Noisy("griewank-4, uneven", lambda seed: moved("griewank", 4, True, seed), uneven(0.3)),
    Noisy("table-64, heavy tails", smooth_table, heavy(0.08)),
    Noisy("ellipsoid-5, folds", lambda seed: moved("ellipsoid", 5, True, seed), folds(0.3)))
"""The tasks on which `beliefs` was chosen."""

HELD = (
    Noisy("schwefel-3, even", lambda seed: schwefel(3, seed), plain(0.15)),
    Noisy("peaks-2, uneven", lambda seed: peaks(2, seed), uneven(0.3)),
    Noisy("sphere-4, heavy tails", lambda seed: moved("sphere", 4, False, seed), heavy(0.1)),
    Noisy("peaks-4, folds", lambda seed: peaks(4, seed), folds(0.2)),
    Noisy("choices-96, even", choices, plain(0.15)))
"""Tasks that were looked at once, when all was chosen; but choices-96 showed that noise passes for interactions in
tables, and has counted in the choice since."""


def scale(task: Noisy, seed: int) -> tuple[Instance, float]:
    """The instance, and its range: from the optimum to the median of 200 random points."""
    made = task.make(seed)
    study = Study(made.space.model_dump(mode="json", exclude_unset=True), seed=seed, method="random", budget=200)
    values = [made.value(study.ask().params) for _ in range(200)]
    assert made.best is not None
    return made, statistics.median(values) - made.best


@dataclass(frozen=True, slots=True)
class Look:
    """One study at one budget: what every rule needs, and the truth."""

    task: str
    seed: int
    budget: str
    study: Study
    truth: dict[int, float]
    """Trial -> its true value, in ranges above the optimum."""


def tune(task: Noisy, seed: int, made: Instance, unit: float, path: Path) -> None:
    """One run, and its confirmation, into a log."""
    random = stream("winners", task.name, seed)
    with Study(made.space.model_dump(mode="json", exclude_unset=True), seed=seed, direction="minimize",
               budget=BUDGETS[-1], log=path) as study:
        for number in range(1, BUDGETS[-1] + LEADERS * REPEATS + 1):
            if number == BUDGETS[-1] + 1:
                study._request("study.confirm", {"study": study.name, "top": LEADERS, "repeats": REPEATS})
            trial = study.ask()
            study.tell(trial, task.measured((made.value(trial.params) - (made.best or 0.0)) / unit, random))


def looks(task: Noisy, seed: int, folder: Path) -> Iterator[Look]:
    """A run at its budgets, read from its log, which is made if it is not there."""
    made, unit = scale(task, seed)
    path = folder / f"{task.name.replace(', ', '-').replace(' ', '-')}-{seed}.db"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:     # a run that was cut off leaves nothing behind
            log = Path(scratch) / "log.db"
            tune(task, seed, made, unit, log)
            log.rename(path)
    told = [seq for seq, body, _ in read_events(path) if json.loads(body)["type"] == "trial.completed"]
    ends = {str(budget): told[budget - 1] for budget in BUDGETS}
    for budget, at in (*ends.items(), (f"{BUDGETS[-1]}, confirmed", None)):
        study = Study.replay(path, at=at)
        yield Look(task.name, seed, budget, study, {
            trial.number: (made.value(trial.params) - (made.best or 0.0)) / unit for trial in study.trials})


def runs(tasks: Sequence[Noisy], seeds: Sequence[int], keep: Path | None) -> Iterator[Look]:
    with TemporaryDirectory() as scratch:
        for task in tasks:
            for seed in seeds:
                yield from looks(task, seed, keep or Path(scratch))


# ---------------------------------------------------------------- what came of it


@dataclass(frozen=True, slots=True)
class Result:
    """A rule's winner at one look, all in ranges."""

    task: str
    seed: int
    budget: str
    rule: str
    true: float
    """Of the winner, above the optimum."""
    least: float
    """Of the best point tried."""
    probability: float | None
    loss: float | None


def judged(look: Look) -> Iterator[Result]:
    """What every rule takes here. A rule that names no probability is not in the table."""
    study = look.study
    entries = winner.entries(study._folded)
    least = min(look.truth[entry.trial] for entry in entries)
    lowest = min(entries, key=lambda entry: (entry.value, entry.trial))     # luck and all: repeats do not count
    yield Result(look.task, look.seed, look.budget, LOWEST, look.truth[lowest.trial], least, None, None)
    for rule, chosen in winner.all_of(study._folded, study.problem).items():
        if rule == "pareto":        # there is one objective, and no seconds
            continue
        yield Result(look.task, look.seed, look.budget, rule, look.truth[chosen["trial"]], least, chosen["probability"],
                     chosen["expected_loss"])


def gains(results: Sequence[Result]) -> Iterator[str]:
    by = {(r.task, r.seed, r.budget, r.rule): r for r in results}
    budgets = list(dict.fromkeys(r.budget for r in results))
    for rule in dict.fromkeys(r.rule for r in results if r.rule != LOWEST):
        yield f"{rule}: task | budget | median gain | better-equal-worse | mean gain | regret of rule, of lowest"
        for task in (*dict.fromkeys(r.task for r in results), None):
            for budget in budgets:
                pairs = [(by[(r.task, r.seed, r.budget, LOWEST)].true, r.true) for r in results
                         if r.rule == rule and task in (None, r.task) and r.budget == budget]
                if not pairs:
                    continue
                gain = [a - b for a, b in pairs]
                better, worse = sum(g > 1e-12 for g in gain), sum(g < -1e-12 for g in gain)
                counts = f"{better}-{len(gain) - better - worse}-{worse}"
                yield (f"  {task or 'all':<20} | {budget:<13} | {statistics.median(gain):+.4f} | {counts:>8} | "
                       f"{statistics.fmean(gain):+.4f} | {statistics.median(b for _, b in pairs):.4f}, "
                       f"{statistics.median(a for a, _ in pairs):.4f}")


def calibration(results: Sequence[Result], rule: str) -> Iterator[str]:
    known = [r for r in results if r.rule == rule and r.probability is not None]
    yield f"{rule}: stated | runs | mean stated | was the best | difference in points"
    for low, high in itertools.pairwise(BINS):
        here = [r for r in known if r.probability is not None and low <= r.probability and (
            r.probability < high or high == 1.0)]
        if here:
            said = statistics.fmean(r.probability or 0.0 for r in here)
            was = statistics.fmean(r.true <= r.least + 1e-12 for r in here)
            yield f"  {low:.1f} to {high:.1f} | {len(here):>4} | {said:.3f} | {was:.3f} | {100 * (said - was):+.1f}"
    for name in dict.fromkeys(r.task for r in known):
        here = [r for r in known if r.task == name]
        said, was = statistics.fmean(r.probability or 0 for r in here), statistics.fmean(
            r.true <= r.least + 1e-12 for r in here)
        yield (f"  {name:<20} | {len(here)} | {said:.3f} | {was:.3f} | {100 * (said - was):+.1f} | loss stated "
               f"{statistics.fmean(r.loss or 0 for r in here):.4f}, true "
               f"{statistics.fmean(r.true - r.least for r in here):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--held", action="store_true", help="Five other tasks, on which nothing was chosen.")
    parser.add_argument("--keep", type=Path, help="Folder of runs to take, and to keep new ones in.")
    options = parser.parse_args()
    tasks = HELD if options.held else TASKS
    results = [result for look in runs(tasks, range(options.seeds), options.keep) for result in judged(look)]
    for line in gains(results):
        print(line)
    for rule in ("mean", "best", "robust", "confirmed"):
        for line in calibration(results, rule):
            print(line)


if __name__ == "__main__":
    main()
