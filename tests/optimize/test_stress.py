"""Odd spaces times odd outcomes: no exception, no fallback, no invalid point, no point twice.

python tests/optimize/test_stress.py 200 plays that many studies instead of the few of the suite.
"""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bayesd.optimize import suggest
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Space

FEW = 24
STEPS = 40
OUTCOMES: dict[str, Callable[[float, Any], float | None]] = {
    "smooth": lambda x, _: x,
    "constant": lambda _x, _: 2.5,
    "plateau": lambda x, _: float(x > 1),
    "outliers": lambda x, rng: x * (1e6 if rng.random() < 0.1 else 1),
    "huge": lambda x, _: x * 1e299,
    "tiny": lambda x, _: x * 5e-324,
    "noise": lambda _x, rng: float(rng.normal()),
    "failing": lambda x, rng: None if rng.random() < 0.4 else x,
    "border": lambda x, _: None if x > 1.2 else -x,
    "all failed": lambda _x, _: None,
    "one success": lambda x, _: x if 0.9 < x < 1.0 else None,
    "whole": lambda x, _: float(round(3 * x)),
}


def space(rng: Any) -> dict[str, Any]:
    """One to twelve parameters of every kind, some conditional on an earlier one."""
    out: dict[str, Any] = {}
    for i in range(int(rng.integers(1, 13))):
        kind = rng.integers(8)
        if kind == 0:
            low = float(rng.normal() * 10.0 ** rng.integers(-9, 9))
            of: dict[str, Any] = {"type": "float", "low": low, "high": low + abs(low) * float(rng.random()) + 1e-6}
        elif kind == 1:
            of = {"type": "float", "low": 1e-300, "high": float(10.0 ** rng.integers(-200, 300)), "scale": "log"}
        elif kind == 2:
            of = {"type": "float", "low": 0, "high": 1, "step": float(rng.choice([0.05, 0.25, 0.3]))}
        elif kind == 3:
            of = {"type": "int", "low": 1, "high": int(rng.choice([2, 5, 1000, 2**40])), "scale": "log"}
        elif kind == 4:
            of = {"type": "int", "low": -3, "high": int(rng.integers(-2, 9))}
        elif kind == 5:
            of = {"type": "ordinal", "choices": list(range(int(rng.integers(1, 6))))}
        else:
            of = {"type": "categorical", "choices": [f"c{j}" for j in range(int(rng.choice([1, 2, 3, 6, 300])))]}
        parents = [name for name, each in out.items() if each["type"] == "categorical"]
        if parents and rng.random() < 0.4:
            parent = str(rng.choice(parents))
            of["when"] = {parent: [str(c) for c in out[parent]["choices"][: int(rng.integers(1, 4))]]}
        out[f"p{i}"] = of
    return out


def height(of: Space, params: Any) -> float:
    """Something between 0 and about 2 that depends on every active parameter."""
    total = 0.0
    for name, value in params.items():
        text = f"{name}={value}" if isinstance(value, str) else None
        number = sum(map(ord, text)) % 11 / 11 if text else math.atan(float(value)) / math.pi + 0.5
        total += (number - 0.4) ** 2 * 4
    return total / max(len(of), 1) * 2


def play(seed: int) -> int:
    """One study to its end; how many trials it had."""
    rng = np.random.default_rng(seed)
    of = Space.model_validate(space(rng))
    outcome = list(OUTCOMES)[seed % len(OUTCOMES)]
    k = int(rng.choice([1, 1, 1, 2]))
    workers = int(rng.choice([1, 4, 16]))
    now = Problem(of, tuple(rng.choice(["minimize", "maximize"], k).tolist()), "bayes", seed, bool(rng.integers(2)), 1,
                  0, surrogate="forest" if seed % 5 == 4 else "gp")
    running: list[tuple[int, Any]] = []
    seen: set[str] = set()
    for _ in range(STEPS):
        suggestion = suggest(now)
        if not suggestion.proposals:
            assert suggestion.exhausted
            assert not now.repeats
            break
        proposal = suggestion.proposals[0]
        assert of.check(proposal.params) == proposal.params
        assert proposal.fallback in (None, "bayes: no candidate of the search was new")
        key = repr(sorted(proposal.params.items()))
        assert now.repeats or key not in seen
        seen.add(key)
        for number in (proposal.acquisition, proposal.mean, proposal.sd, proposal.gap):
            assert number is None or math.isfinite(number)
        running.append((now.number, proposal.params))
        now = replace(now, number=now.number + 1, drawn=proposal.drawn, fit=suggestion.fit or now.fit)
        if len(running) == workers:
            trial, params = running.pop(int(rng.integers(len(running))))
            value = OUTCOMES[outcome](height(of, params), rng)
            se = abs(float(rng.normal())) if value is not None and rng.random() < 0.3 else None
            now = replace(now, history=(*now.history, Observation(
                trial, params, None if value is None else (value,) * k, se)))
        now = replace(now, pending=tuple(params for _, params in running))
    return len(seen)


@pytest.mark.parametrize("seed", range(FEW))
def test_any_study_goes_on(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert play(seed) > 0


def main() -> None:
    wanted, faults = int(sys.argv[1]) if len(sys.argv) > 1 else 200, 0
    for seed in range(wanted):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                play(seed)
        except Exception as error:      # counted, named, and the next study
            faults += 1
            print(f"\nseed {seed}: {type(error).__name__}: {error}")
        print(f"\r{seed + 1} of {wanted} studies, {faults} faults ", end="", file=sys.stderr, flush=True)
    print(f"\n{wanted} studies, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
