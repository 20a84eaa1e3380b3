"""Regret over trials as a picture: a row of panels for each number of workers, a panel for each family."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.quality import report
from tests.bench.quality.reference import Reference
from tests.bench.quality.runs import Run
from tests.bench.quality.task import Floats
from tests.bench.quality.tasks import FAMILIES

REMEDY = "--curves needs matplotlib; pip install matplotlib, or pip install 'bayesd[bench]'"


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def quartiles(at: report.Scored, optimiser: str, cells: Sequence[report.Cell]) -> Floats:
    """(3, n): lower quartile, median and upper quartile over the cells after 1 ... n trials."""
    over = np.array([at.regrets(optimiser, cells, n) for n in range(1, at.n + 1)])
    return np.asarray(np.percentile(np.maximum(over, report.LOG_FLOOR), [25, 50, 75], axis=1))


def panels(runs: Sequence[Run], stored: Mapping[str, Reference], base: str) -> list[tuple[report.Scored, list[str]]]:
    """For each number of workers, the longest n that all optimisers reach, and the optimisers."""
    known, out = report.references(runs, stored), []
    for workers in sorted({run.workers for run in runs}):
        names = {run.optimiser for run in runs if run.workers == workers and run.incumbent}
        if names:
            n = min(max(len(run.incumbent) for run in runs if run.workers == workers and run.optimiser == name)
                    for name in names)
            at = report.scored(runs, known, workers, n)
            out.append((at, report.order(at, base)))
    return out


def draw(path: Path, runs: Sequence[Run], stored: Mapping[str, Reference], base: str = "bayesd") -> None:
    """Median and quartile band of the regret; the format follows from the suffix (.png, .svg, .pdf)."""
    if not available():
        raise SystemExit(REMEDY)
    rows = panels(runs, stored, base)
    families = [family for family in FAMILIES if any(at.shared(names, family) for at, names in rows)]
    if not families:
        raise SystemExit("no cell that all optimisers have, so there is nothing to draw; name fewer with --optimisers")
    # Without pyplot there is no display and no global state.
    figure: Any = importlib.import_module("matplotlib.figure").Figure(
        figsize=(3.4 * len(families), 0.6 + 3.0 * len(rows)), layout="constrained")
    axes: Any = figure.subplots(len(rows), len(families), squeeze=False)
    everybody = list(dict.fromkeys(name for _, names in rows for name in names))
    colour = {name: f"C{i}" for i, name in enumerate(everybody)}
    for i, (at, names) in enumerate(rows):
        for j, family in enumerate(families):
            panel, cells = axes[i, j], at.shared(names, family)
            panel.set_title(f"{family}, q = {at.workers} ({len(cells)} cells)", fontsize=9)
            panel.set_yscale("log")
            panel.set_xlim(1, at.n)
            panel.grid(alpha=0.3)
            panel.set_xlabel("trials")
            panel.xaxis.get_major_locator().set_params(integer=True)
            for name in names if cells else ():
                low, middle, high = quartiles(at, name, cells)
                x = np.arange(1, at.n + 1)
                panel.fill_between(x, low, high, color=colour[name], alpha=0.12, linewidth=0)
                panel.plot(x, middle, color=colour[name], label=name, linewidth=2.0 if name == base else 1.2)
        axes[i, 0].set_ylabel("normalised regret")
    handles = {label: handle for panel in axes.flat
               for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 8), fontsize=9)
    figure.savefig(path, dpi=150)
