"""How good bayesd's points are, beside random search and the peers that are installed: `make bench-quality`.

    python tests/bench/quality/run.py                                   # everything, 2 seeds, 50 trials
    python tests/bench/quality/run.py --families live --seeds 0-4 --workers 1,4 --budget 100 --out live.jsonl
    python tests/bench/quality/run.py --report live.jsonl --curves live.svg
    python tests/bench/quality/run.py --reference                       # search for optima that nobody knows

Runs are appended to a file, one a line, and what is there is not run again (a run that ended in an
error counts as done; delete its line to have it again). Seeds are the outermost loop, so a table made
of a run that was stopped is still a balanced one. Progress is on stderr, the tables on stdout.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):     # CPU seconds are compared
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.bench.quality import curves, reference, report, runs  # noqa: E402  # the path comes first
from tests.bench.quality.optimisers import OPTIMISERS, PACKAGES, Own  # noqa: E402
from tests.bench.quality.progress import Progress  # noqa: E402
from tests.bench.quality.simulator import durations, noise, simulate  # noqa: E402
from tests.bench.quality.task import Task, stable  # noqa: E402
from tests.bench.quality.tasks import FAMILIES, pick  # noqa: E402


class Job(NamedTuple):
    """A run to make. `label` is the name it is stored under."""

    optimiser: str
    label: str
    task: Task
    seed: int
    workers: int
    budget: int

    @property
    def key(self) -> runs.Key:
        return (self.label, self.task.name, self.seed, self.workers, self.budget)


def jobs(optimisers: dict[str, str], tasks: list[Task], seeds: list[int], workers: list[int],
         budget: int) -> Iterator[Job]:
    for seed in seeds:
        for task in tasks:
            for q in workers:
                for name, label in optimisers.items():
                    yield Job(name, label, task, seed, q, budget)


def made(job: Job) -> runs.Run:
    """Run one job. An optimiser that raises has a result, too."""
    entry, instance = OPTIMISERS[job.optimiser], job.task.make(job.seed)
    known = reference.known(job.task, instance, job.seed)
    run = runs.Run(job.label, job.task.name, job.task.family, job.seed, job.workers, job.budget, release(entry.package),
                   [], [], known.best if known else None, known.median if known else None)
    unit = job.task.noise * known.range if known else 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of peers, about their own insides
            optimiser = entry.make(instance.space, stable("optimiser", job.task.name, job.seed), job.budget)
            trace = simulate(optimiser, instance, job.workers, job.budget,
                             durations(job.task.name, job.seed, job.budget),
                             unit * noise(job.task.name, job.seed, job.budget))
    except Exception as error:
        return run.but(error=f"{type(error).__name__}: {error}"[:300])
    return run.but(incumbent=trace.incumbent, cpu_s=[float(f"{spent:.3g}") for spent in trace.cpu_s],
                   failed=trace.failed, repeated=trace.repeated,
                   fallbacks=len(optimiser.fallbacks) if isinstance(optimiser, Own) else 0)


def release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:    # bayesd from the tree, not installed
        return "-"


def run_all(todo: list[Job], out: Path, progress: Progress, total_seconds: float,
            make: Callable[[Job], runs.Run]) -> bool:
    """Append the runs of `todo`. False when the time was up before the last."""
    began = time.monotonic()
    try:
        for job in todo:
            if time.monotonic() - began > total_seconds:
                return False
            words = f"{job.label} {job.task.name} seed {job.seed} q {job.workers}"
            progress.now(words)
            run = make(job)
            runs.append(out, run)
            if run.error is not None:
                progress.say(f"{words}: {run.error}")
            progress.step(words)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None
    finally:
        progress.close()
    return True


def installed(names: list[str], say: Callable[[str], None]) -> list[str]:
    """Those of `names` that can run here; what is missing is said."""
    found = []
    for name in names:
        if name not in OPTIMISERS:
            raise SystemExit(f"there is no optimiser {name!r}; there are {', '.join(OPTIMISERS)}")
        missing = OPTIMISERS[name].missing()
        if missing:
            say(f"{name} is left out, {' and '.join(missing)} not installed; remedy: "
                f"pip install {' '.join(PACKAGES.get(module, module) for module in missing)}")
        else:
            found.append(name)
    return found


def search(tasks: list[Task], progress: Progress) -> None:
    """Store what a search finds for tasks without a known optimum."""
    for task in tasks:
        found = reference.searched(task, progress.now)
        reference.store({**reference.stored(), task.name: found})
        progress.step(f"{task.name} best {found.best:.6g} median {found.median:.6g}")
    progress.close()


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    """0-4 or 0,2,7"""
    found: list[int] = []
    for word in words(text):
        low, _, high = word.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def positives(text: str) -> list[int]:
    return [positive(str(number)) for number in numbers(text)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0].splitlines()[0])
    made.add_argument("--optimisers", type=words, default=[], metavar="A,B",
                      help=f"default: all that are installed of {', '.join(OPTIMISERS)}")
    made.add_argument("--families", type=words, default=list(FAMILIES), metavar="A,B",
                      help=f"default: {','.join(FAMILIES)}")
    made.add_argument("--tasks", type=words, default=[], metavar="A,B", help="only tasks that begin with one of these")
    made.add_argument("--seeds", type=numbers, default=[0, 1], metavar="0-4", help="default: 0-1")
    made.add_argument("--workers", type=positives, default=[1], metavar="1,4", help="q of the simulator; default: 1")
    made.add_argument("--budget", type=positive, default=50, metavar="N", help="trials of a run; default: 50")
    made.add_argument("--out", type=Path, default=Path("build/bench-quality.jsonl"), metavar="FILE",
                      help="where runs are stored; default: build/bench-quality.jsonl")
    made.add_argument("--label", help="store the runs of a single optimiser under this name, to compare versions")
    made.add_argument("--total-seconds", type=float, default=float("inf"), metavar="S",
                      help="after these start no further run")
    made.add_argument("--report", type=Path, metavar="FILE", help="run nothing, print the tables of stored runs")
    made.add_argument("--base", default="bayesd", help="optimiser that the tables compare with each other one")
    made.add_argument("--curves", type=Path, metavar="FILE", help="draw regret over trials into a .png or .svg")
    made.add_argument("--reference", action="store_true", help="search again for the optima that nobody knows")
    return made


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.curves is not None and not curves.available():
        raise SystemExit(curves.REMEDY)     # said before the work, not after it
    try:
        tasks = pick(args.families, args.tasks)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if args.reference:
        unknown = [task for task in tasks if task.make(0).best is None]
        return search(unknown, Progress(len(unknown)))
    if args.report is not None and not args.report.exists():
        raise SystemExit(f"there is no file {args.report}")
    if args.report is None:
        names = installed(args.optimisers or list(OPTIMISERS), lambda line: print(line, file=sys.stderr))
        if args.label and len(names) != 1:
            raise SystemExit("--label is for one optimiser: --optimisers bayesd --label new")
        have = {run.key for run in runs.read(args.out)}
        wanted = list(jobs({name: args.label or name for name in names}, tasks, args.seeds, args.workers, args.budget))
        todo = [job for job in wanted if job.key not in have]
        print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {args.out}", file=sys.stderr)
        if not run_all(todo, args.out, Progress(len(todo)), args.total_seconds, made):
            print("the time is up; the same command goes on", file=sys.stderr)
    chosen = {task.name for task in tasks}
    stored = [run for run in runs.read(args.report or args.out) if run.task in chosen]
    only = args.optimisers if args.report is not None else []
    print(report.report(stored, reference.stored(), args.base, only))
    if args.curves is not None:
        curves.draw(args.curves, [run for run in stored if not only or run.optimiser in only],
                    reference.stored(), args.base)


if __name__ == "__main__":
    main()
