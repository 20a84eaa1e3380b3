"""Is a suggestion the same under another BLAS kernel, another number of threads, another processor?

    python tests/bench/determinism.py [--runs 200] [--steps 60] [--jobs 2] [--surrogate forest]

Asynchronous runs in mixed spaces, half with one trial at a time and half with four, are played once and recorded:
every problem that the optimiser was asked, the logged fit included, and what it answered. Fresh processes under other
kernels of OpenBLAS (OPENBLAS_CORETYPE), other thread counts and, in the last of them, a numpy and a C library that may
not use what a newer processor can, then answer the very same problems. What a process really loaded is asked of
threadpoolctl; a kernel that did not take effect ends the program.

Counted are, from the same history, suggestions and fits that are equal, and whole runs that are equal when a process
plays by itself. For a run without any difference from the same history that follows: each step made the same next
problem. Any other run is played on from its first difference. Every difference is printed with its evidence.
Objectives are sums and products of Python floats, which IEEE 754 fixes, so that only the optimiser can differ.
"""

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@dataclass(frozen=True)
class Configuration:
    kernel: str
    threads: int
    plain: bool = False
    """Without the vector instructions that numpy and glibc choose at run time."""

    def __str__(self) -> str:
        return f"{self.kernel}, {self.threads} thread{'s' * (self.threads > 1)}" + ", old processor" * self.plain

    def environment(self) -> dict[str, str]:
        made = {"OPENBLAS_CORETYPE": self.kernel, "OPENBLAS_NUM_THREADS": str(self.threads),
                "OMP_NUM_THREADS": str(self.threads)}
        if self.plain:
            import numpy

            config: Any = numpy.show_config(mode="dicts")
            made["NPY_DISABLE_CPU_FEATURES"] = " ".join(config["SIMD Extensions"].get("found", []))
            made["GLIBC_TUNABLES"] = "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F"
        return made


CONFIGURATIONS = (
    Configuration("Haswell", 1), Configuration("Haswell", 2), Configuration("Sandybridge", 1),
    Configuration("Sandybridge", 2), Configuration("Prescott", 1), Configuration("Prescott", 2, plain=True))
"""The first one plays; the others answer its problems."""
LOADED = {"Prescott": ("prescott", "katmai")}      # what OpenBLAS calls its kernels, where that is another name

FLOAT = {"type": "float", "low": -5, "high": 5}
SPACES: dict[str, dict[str, Any]] = {
    "floats": {f"x{i}": FLOAT for i in range(5)},
    "mixed": {
        "lr": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"}, "x": FLOAT,
        "units": {"type": "int", "low": 1, "high": 512, "scale": "log"}, "depth": {"type": "int", "low": 1, "high": 9},
        "act": {"type": "categorical", "choices": ["relu", "tanh", "gelu"]},
        "size": {"type": "ordinal", "choices": ["s", "m", "l"]}},
    "conditional": {
        "kernel": {"type": "categorical", "choices": ["rbf", "poly", "linear"]},
        "C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
        "gamma": {"type": "float", "low": 1e-4, "high": 10, "scale": "log", "when": {"kernel": ["rbf", "poly"]}},
        "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}},
    "choices": {f"op{i}": {"type": "categorical", "choices": list("abcde")} for i in range(5)},
    "ten": {**{f"x{i}": FLOAT for i in range(8)}, "k": {"type": "categorical", "choices": ["a", "b", "c", "d"]},
            "n": {"type": "int", "low": 1, "high": 40}},
    "small": {"depth": {"type": "int", "low": 1, "high": 6}, "op": {"type": "categorical", "choices": list("abcd")},
              "size": {"type": "ordinal", "choices": ["s", "m", "l"], "when": {"op": ["a", "b"]}}},
    "constrained": {"batch": {"type": "int", "low": 1, "high": 256, "scale": "log"},
                    "units": {"type": "int", "low": 1, "high": 512, "scale": "log"}, "x": FLOAT, "y": FLOAT},
}
CONSTRAINTS = {"constrained": ("batch * units <= 8192", "x <= y")}
KINDS = ("smooth", "failing", "noisy", "two objectives")


def objective(params: Any, kind: str, seed: int, trial: int) -> tuple[float, ...] | None:
    """A bowl with ripples in whatever the parameters are; None is a failure. Nothing here rounds by a library."""
    total = 0.0
    for i, (name, value) in enumerate(sorted(params.items())):
        x = float(sum(map(ord, value))) % 7 - 3 if isinstance(value, str) else float(value)
        if name in ("lr", "C", "gamma", "units", "batch"):
            mantissa, exponent = math.frexp(x)      # a logarithm of straight pieces
            x = (exponent + 2 * mantissa) / 2
        ripple = abs(x * 0.7 % 2 - 1)
        total += (x - ((seed * 31 + i * 7) % 11 - 5) * 0.4) ** 2 * (1 + i % 3) + ripple
    if kind == "failing" and total % 5 > 3.5:
        return None
    if kind == "noisy":
        total += ((seed * 7919 + trial * 104729) % 1000 / 1000 - 0.5) * 3
    return (total, abs(total - 10)) if kind == "two objectives" else (total,)


@dataclass(frozen=True)
class Run:
    """One study as its daemon sees it: what is asked next, and what is on its way."""

    problem: Any
    kind: str
    seed: int
    workers: int
    running: tuple[tuple[int, Any], ...] = ()

    @classmethod
    def start(cls, run: int, surrogate: Any) -> "Run":
        from bayesd.study.problem import Problem
        from bayesd_schemas.constraints import parse
        from bayesd_schemas.space import Space
        from bayesd_schemas.study import Direction

        name, turn = list(SPACES)[run % len(SPACES)], run // len(SPACES)
        kind, workers = KINDS[turn % len(KINDS)], 4 if (run + turn // len(KINDS)) % 2 else 1
        directions: tuple[Direction, ...] = ("minimize", "minimize") if kind == "two objectives" else ("minimize",)
        space = Space.model_validate(SPACES[name])
        return cls(Problem(
            space, directions, "bayes", 1000 + run, kind == "noisy", 1, 0,
            constraints=parse(CONSTRAINTS.get(name, ()), space), surrogate=surrogate), kind, run, workers)

    def after(self, suggestion: Any) -> "Run":
        """The point is tried; once every worker has a trial, the oldest ends."""
        from bayesd.study.problem import Observation

        now = self.problem
        proposal = suggestion.proposals[0]
        running = (*self.running, (now.number, proposal.params))
        now = replace(now, number=now.number + 1, drawn=proposal.drawn, fit=suggestion.fit or now.fit)
        if len(running) == self.workers:
            (trial, params), *rest = running
            running = tuple(rest)
            values = objective(params, self.kind, self.seed, trial)
            now = replace(now, history=(*now.history, Observation(trial, params, values)))
        return replace(self, running=running, problem=replace(now, pending=tuple(params for _, params in running)))


def said(suggestion: Any) -> dict[str, Any]:
    """What is compared, and the evidence. Every number in full."""
    out: dict[str, Any] = {"params": None, "fit": None if suggestion.fit is None else list(suggestion.fit.theta)}
    for proposal in suggestion.proposals:       # none when the space is used up
        out |= {"params": repr(sorted(proposal.params.items())), "sampler": proposal.sampler, "drawn": proposal.drawn,
                "acquisition": proposal.acquisition, "gap": proposal.gap, "fallback": proposal.fallback}
    return out


FED_BACK = ("params", "fit", "drawn")      # of what is said, what the next problem holds


def played(run: Run, steps: int) -> Iterator[tuple[Run, Any]]:
    """(state, suggestion) of each step, until the space is used up."""
    from bayesd.optimize import suggest

    for _ in range(steps):
        suggestion = suggest(run.problem)
        yield run, suggestion
        if not suggestion.proposals:
            return
        run = run.after(suggestion)


def answered(recorded: list[tuple[Run, dict[str, Any]]], steps: int) -> dict[str, Any]:
    """What this process answers to the recorded problems, and whether it would have played the same run."""
    from bayesd.optimize import suggest

    suggestions = [suggest(run.problem) for run, _ in recorded]
    answers = [said(suggestion) for suggestion in suggestions]
    parted = next((i for i, ((_, theirs), ours) in enumerate(zip(recorded, answers, strict=True))
                   if any(theirs.get(name) != ours.get(name) for name in FED_BACK)), None)
    same = parted is None or answers[parted]["params"] == recorded[parted][1]["params"]
    if parted is not None and same and suggestions[parted].proposals:      # by its fit alone: how does it go on?
        own = [said(each)["params"] for _, each in played(
            recorded[parted][0].after(suggestions[parted]), steps - parted - 1)]
        same = own == [theirs["params"] for _, theirs in recorded[parted + 1:]]
    return {"answers": answers, "same run": same}


def child(options: argparse.Namespace) -> None:
    """Play and record, or answer what was recorded. One line of JSON for each run on stdout."""
    import threadpoolctl

    import bayesd.optimize  # noqa: F401  # loads both copies of OpenBLAS

    print(json.dumps([[str(library.get("architecture")), library["num_threads"]]
                      for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]))
    for run in range(options.runs):
        file = Path(options.child) / f"{run}.pickle"
        if options.record:
            made = [(state, said(suggestion)) for state, suggestion in played(
                Run.start(run, options.surrogate), options.steps)]
            file.write_bytes(pickle.dumps(made))
            line: dict[str, Any] = {"answers": [each for _, each in made], "same run": True}
        else:       # a file of this very program, written a minute ago in a folder of its own
            line = answered(pickle.loads(file.read_bytes()), options.steps)
        print(json.dumps(line), flush=True)


def answers(configuration: Configuration, options: argparse.Namespace, folder: str, record: bool) -> list[Any]:
    """What a process of its own says, a line for each run."""
    command = [sys.executable, __file__, "--runs", str(options.runs), "--steps", str(options.steps),
               "--surrogate", options.surrogate, "--child", folder, *(["--record"] if record else [])]
    made: list[Any] = []
    began = time.monotonic()
    with subprocess.Popen(command, env={**os.environ, **configuration.environment()}, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            made.append(json.loads(line))
            if len(made) == 1:
                _require(configuration, made[0])
            print(f"\r{configuration}: {len(made) - 1} of {options.runs} runs, {time.monotonic() - began:.0f} s    ",
                  end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(f"\nthe process under {configuration} ended with {process.returncode}")
    return made[1:]


def _require(configuration: Configuration, loaded: list[tuple[str, int]]) -> None:
    kernels = LOADED.get(configuration.kernel, (configuration.kernel.lower(),))
    for architecture, threads in loaded:
        if architecture.lower() not in kernels or threads != min(configuration.threads, os.cpu_count() or 1):
            raise SystemExit(f"\n{configuration} was asked for, and {architecture}, {threads} threads was loaded")
    if not loaded:
        raise SystemExit("\nthreadpoolctl finds no BLAS whose kernel could be chosen")


def report(configuration: Configuration, wanted: list[Any], got: list[Any]) -> None:
    """A row of the table, and below it every difference with its evidence."""
    pairs = [(run, step, a, b) for run, (one, other) in enumerate(zip(wanted, got, strict=True))
             for step, (a, b) in enumerate(zip(one["answers"], other["answers"], strict=True))]
    different = [pair for pair in pairs if pair[2]["params"] != pair[3]["params"]]
    fits = [(a["fit"], b["fit"]) for _, _, a, b in pairs if a["fit"] is not None]
    scores = [(a["acquisition"], b.get("acquisition")) for _, _, a, b in pairs if a.get("acquisition") is not None]
    print(f"{configuration!s:36s}{len(pairs) - len(different):7d} of {len(pairs):5d}"
          f"{sum(each['same run'] for each in got):9d} of {len(got):3d}"
          f"{sum(a == b for a, b in fits):9d} of {len(fits):5d}"
          f"{sum(a == b for a, b in scores):9d} of {len(scores):5d}")
    for run, step, a, b in different:
        state = Run.start(run, "gp")
        print(f"    run {run} ({', '.join(state.problem.space)}; {state.kind}, {state.workers} at a time), "
              f"suggestion {step + 1}")
        for each in (a, b):
            print(f"        {each['params']}\n            acquisition {each.get('acquisition')!r}, to the next "
                  f"{each.get('gap')!r}, {each.get('fallback') or each.get('sampler') or 'nothing left'}")
        print("        fit: " + ("none made" if a["fit"] is None else "equal" if a["fit"] == b["fit"] else "different"))
    for run, step, a, b in pairs:
        if a["fit"] != b["fit"]:
            apart = [(i, x, y) for i, (x, y) in enumerate(zip(a["fit"] or [], b["fit"] or [], strict=False)) if x != y]
            print(f"    run {run}, fit at suggestion {step + 1}: {len(apart)} of {len(a['fit'] or [])} numbers differ, "
                  f"the most by {max((abs(x - y) for _, x, y in apart), default=math.nan):.2f}: {apart[:4]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60, help="suggestions of a run")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--surrogate", default="gp", help="gp or forest")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        wanted = answers(CONFIGURATIONS[0], options, folder, record=True)
        others = list(pool.map(lambda each: answers(each, options, folder, record=False), CONFIGURATIONS[1:]))
    print(f"\n\nplayed under {CONFIGURATIONS[0]}; equal to it, of {len(wanted)} runs:\n\n{'':36s}"
          f"{'from the same':>16s}{'whole runs':>16s}\n{'answered under':36s}{'history':>16s}{'':16s}{'fits':>17s}"
          f"{'acquisitions, to the last bit':>32s}")
    for configuration, got in zip(CONFIGURATIONS[1:], others, strict=True):
        report(configuration, wanted, got)


if __name__ == "__main__":
    main()
