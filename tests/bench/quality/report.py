"""Tables of stored runs, in Markdown.

Regret of a run after n trials: (incumbent - best) / (median random - best), clipped to [0, 1]. A cell
is one task with one seed; whatever is compared is compared on the cells that all of the compared have.
Seeds of one task are no independent evidence, so the bootstrap draws whole tasks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tests.bench.quality.reference import Reference
from tests.bench.quality.runs import Run
from tests.bench.quality.task import Floats
from tests.bench.quality.tasks import FAMILIES

COUNTS = (25, 50, 100, 200)
LOG_FLOOR = 1e-4        # a difference in regret below this is none
TIE = 1e-9
RESAMPLES = 2000
WINDOW = 10             # trials up to n over which CPU time is averaged: a refit is one of several

Cell = tuple[str, int]
"""(task, seed)"""


@dataclass(frozen=True)
class Scored:
    """What can be said of `workers` workers after `n` trials: optimiser -> cell -> run."""

    workers: int
    n: int
    runs: dict[str, dict[Cell, Run]]
    references: Mapping[Cell, Reference]

    def regrets(self, optimiser: str, cells: Iterable[Cell], n: int | None = None) -> Floats:
        at = (n or self.n) - 1
        return np.array([self.references[cell].regret(self.runs[optimiser][cell].incumbent[at]) for cell in cells])

    def cpu_ms(self, optimiser: str, cells: Iterable[Cell]) -> float:
        """Of an ask and its tell around n: the median run."""
        spent = [np.mean(self.runs[optimiser][cell].cpu_s[max(self.n - WINDOW, 0):self.n]) for cell in cells]
        return 1000 * float(np.median(spent))

    def shared(self, optimisers: Iterable[str], family: str | None = None) -> list[Cell]:
        """Cells that all of them have, in order."""
        sets = [{cell for cell, run in self.runs[name].items() if family in (None, run.family)} for name in optimisers]
        return sorted(set.intersection(*sets)) if sets else []


def references(runs: Iterable[Run], stored: Mapping[str, Reference]) -> dict[Cell, Reference]:
    """Of every cell that has one. Where nobody knows the optimum, it is the best that the stored
    search or any run has seen."""
    runs = list(runs)
    best = {name: of.best for name, of in stored.items()}
    for run in runs:
        if run.best is None and run.task in best:
            best[run.task] = min([best[run.task], *(value for value in run.incumbent if value is not None)])
    found: dict[Cell, Reference] = {}
    for run in runs:
        if run.best is not None and run.median is not None:
            found[run.task, run.seed] = Reference(run.best, run.median)
        elif run.task in best:
            found[run.task, run.seed] = Reference(best[run.task], stored[run.task].median)
    return found


def scored(runs: Iterable[Run], known: Mapping[Cell, Reference], workers: int, n: int) -> Scored:
    found: dict[str, dict[Cell, Run]] = {}
    # An optimiser may start otherwise when it has a longer budget, so the run made for n comes before that for 2 n.
    for run in sorted(runs, key=lambda run: run.budget):
        if run.workers == workers and len(run.incumbent) >= n and (run.task, run.seed) in known:
            found.setdefault(run.optimiser, {}).setdefault((run.task, run.seed), run)
    return Scored(workers, n, found, known)


def counts(runs: Iterable[Run], workers: int) -> list[int]:
    """The n to speak of: those of `COUNTS` that some run reaches, or else the longest run's end."""
    longest = max((len(run.incumbent) for run in runs if run.workers == workers), default=0)
    return [n for n in COUNTS if n <= longest] or ([longest] if longest else [])


def interval(values: Floats, tasks: Sequence[str]) -> tuple[float, float]:
    """95 % of the mean of `values`, by resampling the tasks that they belong to."""
    names = sorted(set(tasks))
    sums = np.array([values[[task == name for task in tasks]].sum() for name in names])
    sizes = np.array([tasks.count(name) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def report(runs: Iterable[Run], stored: Mapping[str, Reference], base: str = "bayesd",
           only: Sequence[str] = ()) -> str:
    """Everything about the runs (of the optimisers in `only`, if any are named)."""
    runs = [run for run in runs if not only or run.optimiser in only]
    known = references(runs, stored)
    out: list[str] = []
    for workers in sorted({run.workers for run in runs}):
        for n in counts(runs, workers):
            out += [*section(scored(runs, known, workers, n), base), ""]
    return "\n".join(out + remarks(runs, known))


def section(at: Scored, base: str) -> list[str]:
    names = order(at, base)
    cells = at.shared(names)
    out = [f"### q = {at.workers}, n = {at.n}", ""]
    if not cells:
        return [*out, f"No cell that all of {', '.join(names)} have; name fewer with --optimisers."]
    families = [family for family in FAMILIES if at.shared(names, family)]
    out += [f"Mean normalised regret on {len(cells)} cells of {len({task for task, _ in cells})} tasks "
            "(0 the optimum, 1 a random point); CPU ms of an ask and its tell.", "",
            row("optimiser", *(f"{family} ({len(at.shared(names, family))})" for family in families), "all", "CPU ms"),
            row("---", *["---:"] * (len(families) + 2))]
    for name in names:
        means = [at.regrets(name, at.shared(names, family)).mean() for family in families]
        out.append(row(name, *map(short, means), short(at.regrets(name, cells).mean()),
                       f"{at.cpu_ms(name, cells):.1f}"))
    against = [versus(at, base, peer) for peer in names if peer != base and base in names]
    if against:
        out += ["", f"{base} against each on the cells of the two; a difference below 0 is in favour of {base}; "
                    "in brackets 95 %, tasks resampled.", "",
                row(f"{base} against", "cells", "wins-ties-losses", "regret", "log10 regret"),
                row("---", *["---:"] * 4), *against]
    return out


def order(at: Scored, base: str) -> list[str]:
    """The base first, then by regret where all can be compared."""
    cells = at.shared(at.runs)
    return sorted(at.runs, key=lambda name: (name != base, at.regrets(name, cells).mean() if cells else 0.0, name))


def versus(at: Scored, base: str, peer: str) -> str:
    cells = at.shared([base, peer])
    if not cells:
        return row(peer, "0", "-", "-", "-")
    ours, theirs = at.regrets(base, cells), at.regrets(peer, cells)
    plain = ours - theirs
    logs = np.log10(ours + LOG_FLOOR) - np.log10(theirs + LOG_FLOOR)
    wins, losses = int((plain < -TIE).sum()), int((plain > TIE).sum())
    tasks = [task for task, _ in cells]
    return row(peer, str(len(cells)), f"{wins}-{len(cells) - wins - losses}-{losses}",
               bracketed(plain, tasks, 3), bracketed(logs, tasks, 2))


def bracketed(values: Floats, tasks: Sequence[str], digits: int) -> str:
    low, high = interval(values, tasks)
    return f"{values.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def remarks(runs: Iterable[Run], known: Mapping[Cell, Reference]) -> list[str]:
    """What must not go unsaid: releases, errors, fallbacks, tasks left out."""
    runs, out = list(runs), []
    versions = {f"{run.optimiser} {run.version}" for run in runs}
    if versions:
        out.append(f"Releases: {', '.join(sorted(versions))}.")
    for name in sorted({run.optimiser for run in runs}):
        errors = [run.error for run in runs if run.optimiser == name and run.error is not None]
        if errors:
            out.append(f"{name}: {len(errors)} runs ended in an error and are left out; the first: {errors[0]}")
        fallbacks = sum(run.fallbacks for run in runs if run.optimiser == name)
        if fallbacks:
            out.append(f"{name}: a plainer sampler answered {fallbacks} times.")
    lost = sorted({run.task for run in runs if run.error is None and (run.task, run.seed) not in known})
    if lost:
        out.append(f"Left out, since nothing says what is good there: {', '.join(lost)}. "
                   f"Remedy: --reference --tasks {','.join(lost)}")
    return out


def short(value: float) -> str:
    """.031 rather than 0.031."""
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.000"


def row(*words: str) -> str:
    return f"| {' | '.join(words)} |"
