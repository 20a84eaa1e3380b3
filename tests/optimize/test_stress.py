"""Generated studies: strange spaces and strange outcomes, and every point must still be a good one.

A seed makes a study (`study`): up to 12 parameters, among them ranges from 1e-300 to 1e300, ranges of three floats,
single choices, 3000 choices, deep conditions, spaces of few points that run out, constraints; outcomes that are
constant, outlying, failing, tiny, huge, of several objectives, with known standard errors; 1, 4 or 16 points at a
time; repeats or none. `walk` plays it and looks at each proposal: nothing raised, no plainer sampler standing in,
valid, active parameters only, allowed, new while anything is new, finite evidence, "exhausted" only when it is true.

    BAYESD_STRESS=500 python -m pytest tests/optimize/test_stress.py
    python tests/optimize/test_stress.py 500           # the same with a progress line, and on after a failure
    python tests/optimize/test_stress.py --seed 17     # one study, described
"""

import argparse
import itertools
import math
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pytest

from bayesd.optimize import posterior_at_data, suggest
from bayesd.optimize.encode import cube
from bayesd.study.problem import Observation, Problem, Proposal
from bayesd_schemas.constraints import Constraint, broken, parse, require_possible
from bayesd_schemas.space import FloatParameter, IntParameter, Parameter, Params, Space
from bayesd_schemas.study import Direction

STUDIES = 25            # in the suite: about 20 s of CPU
SUGGESTIONS = 20        # of one study, at least two calls
COUNTED_MAX = 4000      # combinations of a finite space that are looked at one by one

# Spaces ----------------------------------------------------------------------------------------

Make: TypeAlias = Callable[[random.Random], dict[str, Any]]


def _choices(n: int) -> list[str]:
    return [f"c{i}" for i in range(n)]


NUMBERS: dict[str, Make] = {
    "float": lambda r: {"type": "float", "low": -5, "high": r.choice([5, 0.5, 1e4])},
    "log": lambda r: {"type": "float", "low": 10.0 ** r.randint(-8, -1), "high": r.choice([1, 1e3]), "scale": "log"},
    "vast": lambda r: {"type": "float", "low": -1e299, "high": r.choice([1e299, 1e-299])},
    "vast log": lambda r: {"type": "float", "low": 1e-300, "high": r.choice([1e300, 1e-290, 1.0]), "scale": "log"},
    "offset": lambda r: {"type": "float", "low": 1e12, "high": 1e12 + r.choice([1e-3, 1.0])},
    "small": lambda r: {"type": "float", "low": 0, "high": r.choice([1e-300, 1e-12])},
    "power": lambda r: {"type": "float", "low": -1, "high": 3, "scale": "power",
                        "exponent": r.choice([0.1, 0.5, 3, 16])},
    "step": lambda r: {"type": "float", "low": 0.1, "high": 0.95, "step": r.choice([0.1, 0.3, 1e-4])},
    "many steps": lambda r: {"type": "float", "low": -1, "high": 1, "step": 1e-15},
    "int": lambda r: {"type": "int", "low": -3, "high": r.choice([-2, 9, 300])},
    "int step": lambda r: {"type": "int", "low": 2, "high": 100, "step": r.choice([3, 49, 98])},
    "vast int": lambda r: {"type": "int", "low": -(2**53 - 1), "high": 2**53 - 1},
    "log int": lambda r: {"type": "int", "low": 1, "high": r.choice([2, 4096, 2**53 - 1]), "scale": "log"},
    "power int": lambda r: {"type": "int", "low": -9, "high": r.choice([90, 2**40]), "scale": "power",
                            "exponent": r.choice([0.5, 4])},
}
TIGHT: dict[str, Make] = {
    "tight": lambda r: {"type": "float", "low": 1.0, "high": r.choice([1.0000000000000002, 1.0000000000000004])},
    "tight log": lambda _: {"type": "float", "low": 1.0, "high": 1.0000000000000004, "scale": "log"},
    "denormal": lambda _: {"type": "float", "low": 0, "high": 1e-323},
}
CHOICES: dict[str, Make] = {
    "ordinal": lambda r: {"type": "ordinal", "choices": [1, 10.5, 100, 1e300][: r.randint(2, 4)]},
    "words": lambda r: {"type": "ordinal", "choices": _choices(r.choice([1, 2, 7]))},
    "one": lambda _: {"type": "categorical", "choices": ["only"]},
    "any": lambda _: {"type": "categorical", "choices": [None, True, 0, "", "x"]},
    "few": lambda r: {"type": "categorical", "choices": _choices(r.choice([2, 3, 5]))},
    "dozens": lambda r: {"type": "categorical", "choices": _choices(r.choice([13, 64, 65, 70]))},
    "thousands": lambda _: {"type": "categorical", "choices": _choices(3000)},
}
FINITE: dict[str, Make] = {
    "int": lambda r: {"type": "int", "low": 1, "high": r.randint(2, 5)},
    "log int": lambda _: {"type": "int", "low": 1, "high": 6, "scale": "log"},
    "step": lambda _: {"type": "float", "low": 0, "high": 1, "step": 0.25},
    "few": CHOICES["few"], "one": CHOICES["one"], "any": CHOICES["any"], "ordinal": CHOICES["ordinal"],
}


def parameters(r: random.Random) -> dict[str, Any]:
    """A space in one of several styles; conditions upon parameters that stand before."""
    style = r.choice(["mixed", "mixed", "mixed", "wild", "finite", "deep", "plain"])
    pools: dict[str, Sequence[dict[str, Make]]] = {
        "mixed": (NUMBERS, NUMBERS, CHOICES), "wild": (NUMBERS, TIGHT, CHOICES), "finite": (FINITE,),
        "deep": (FINITE, NUMBERS), "plain": (NUMBERS,)}
    most = {"finite": 4, "deep": 10}.get(style, 12)
    out: dict[str, Any] = {}
    for i in range(min(r.randint(1, most), r.randint(1, most))):
        pool = r.choice(pools[style])
        of = pool[r.choice(list(pool))](r)
        parents = [name for name, parent in out.items() if _values(parent)]
        if parents and r.random() < {"plain": 0.0, "deep": 0.9}.get(style, 0.3):
            # Deep: below the youngest, so that chains get long.
            for name in {parents[-1] if style == "deep" else r.choice(parents), *r.sample(parents, r.randint(0, 1))}:
                values = _values(out[name])
                of.setdefault("when", {})[name] = r.sample(values, r.randint(1, min(3, len(values))))
        out[f"p{i}"] = of
    names = list(out)
    r.shuffle(names)
    return {name: out[name] for name in names}


def _values(of: dict[str, Any]) -> list[Any]:
    """Some values that a condition can name."""
    if "choices" in of:
        return list(of["choices"][:5])
    return [of["low"], of["low"] + of.get("step", 1)] if of["type"] == "int" else []


def constraints(r: random.Random, space: Space) -> tuple[Constraint, ...]:
    """Up to two that can hold together with the space."""
    texts: list[str] = []
    half = {name: of.low / 2 + of.high / 2 for name, of in space.items()
            if isinstance(of, (FloatParameter, IntParameter))}
    for _ in range(r.randint(1, 2)):
        if len(half) > 1 and r.random() < 0.7:
            a, b = r.sample(list(half), 2)
            texts.append(r.choice([f"{a} <= {half[a]!r} or {b} <= {half[b]!r}", f"{a} >= {half[a]!r} or {b} <= {a}",
                                   f"not ({a} > {half[a]!r} and {b} > {half[b]!r})", f"{a} * 0 + {b} <= {half[b]!r}"]))
        else:
            name = r.choice(list(space))
            of = space[name]
            if isinstance(of, (FloatParameter, IntParameter)):
                texts.append(f"{name} <= {half[name]!r}")
            elif all(isinstance(choice, str) for choice in of.choices) and len(of.choices) > 1:
                texts.append(f"{name} != '{of.choices[0]}'")
    try:
        made = parse(texts, space)
        require_possible(made, space, grid=False)
    except ValueError:
        return ()
    return made


def combinations(space: Space, rules: Sequence[Constraint]) -> set[str] | None:
    """Every allowed configuration of a space that has few; None for one that has many. The slow, plain way."""
    rows: list[dict[str, Any]] = [{}]
    for name in space.ordered():
        active = [row for row in rows if space.is_active(name, row)]
        if not active:      # a condition that nothing meets
            continue
        values = _all_values(space[name])
        if values is None or len(active) * len(values) > COUNTED_MAX:
            return None
        rows = [row for row in rows if not space.is_active(name, row)]
        rows += [{**row, name: value} for row in active for value in values]
        if len(rows) > COUNTED_MAX:
            return None
    return {key(row) for row in rows if broken(rules, row) is None}


def _all_values(of: Parameter) -> list[Any] | None:
    if isinstance(of, FloatParameter):
        if of.step is None or (of.high - of.low) / of.step > COUNTED_MAX:
            return None
        return [round(of.low + i * of.step, 12) for i in range(math.floor((of.high - of.low) / of.step + 1e-9) + 1)]
    if isinstance(of, IntParameter):
        found = range(of.low, of.high + 1, of.step or 1)
        return list(found) if len(found) <= COUNTED_MAX else None
    return list(of.choices)


def coarse(space: Space) -> bool:
    """Whether a real axis has so few values that the space may run out of them: floats, or on a curved scale
    numbers of twelve digits, that lie wider apart than the search thinks."""
    u = np.linspace(0, 1, 4096)
    return any(axis.kind == "real" and len(set(axis.values(u))) < len(u) for axis in cube(space).axes)


# Outcomes --------------------------------------------------------------------------------------

Outcome: TypeAlias = Callable[[random.Random, float, int], float | None]
"""(dice, height of the point between 0 and about 1, trial) -> value, or None for a failure."""

OUTCOMES: dict[str, Outcome] = {
    "smooth": lambda _, x, __: x,
    "constant": lambda *_: 2.5,
    "zeros": lambda *_: 0.0,
    "plateau": lambda _, x, __: 0.0 if x > 0.15 else -x,
    "one in a plateau": lambda _, __, t: -1e-9 if t == 7 else 0.0,
    "outliers": lambda r, x, _: 1e6 if r.random() < 0.3 else x,
    "vast outliers": lambda r, x, _: r.choice([1e300, -1e300]) if r.random() < 0.2 else x,
    "all failed": lambda *_: None,
    "half failed": lambda r, x, _: None if r.random() < 0.5 else x,
    "one in ten succeeds": lambda r, x, _: x if r.random() < 0.1 else None,
    "a region fails": lambda _, x, __: None if x > 0.3 else x,
    "the best fail": lambda _, x, __: None if x < 0.1 else x,
    "noise": lambda r, *_: r.gauss(0, 1),
    "Cauchy": lambda r, *_: math.tan(math.pi * (r.random() - 0.5)),
    "duplicated": lambda _, x, __: round(x, 1),
    "integers": lambda _, x, __: float(math.floor(20 * x)),
    "denormal": lambda _, x, __: x * 1e-320,
    "huge": lambda _, x, __: x * 1e300,
    "alternating": lambda _, x, t: x if t % 2 else -x,
    "vast alternating": lambda _, __, t: 1e300 if t % 2 else -1e300,
    "on an offset": lambda _, x, __: 1e15 + x,
    "rounding": lambda _, __, t: 1 + t * 2.0**-52,
    "exponential": lambda _, x, __: math.exp(500 * x),
}
ERRORS: dict[str, Callable[[random.Random], float | None]] = {
    "none": lambda _: None, "sensible": lambda r: r.random() / 10, "vast": lambda _: 1e300, "tiny": lambda _: 1e-320,
    "of every size": lambda r: 10.0 ** r.uniform(-300, 300), "some": lambda r: r.choice([None, 0.0, 0.1]),
}


@dataclass(frozen=True)
class Study:
    seed: int
    problem: Problem
    outcomes: tuple[str, ...]
    errors: str
    at_once: int
    given: int
    """Random points whose outcomes are known from the start."""

    def __str__(self) -> str:
        now = self.problem
        return (f"study {self.seed}: {now.space.model_dump_json(exclude_unset=True)[:1500]}\n"
                f"constraints {[rule.text for rule in now.constraints]}, {self.outcomes} {now.directions}, "
                f"errors {self.errors}, {self.at_once} at once, {self.given} given, repeats {now.repeats}")


def study(seed: int) -> Study:
    """The same for ever for one seed, as long as the lists above stay."""
    r = random.Random(seed)
    space = Space.model_validate(parameters(r))
    rules = constraints(r, space) if r.random() < 0.3 else ()
    k = r.choice([1, 1, 1, 1, 2, 3])
    directions: list[Direction] = [r.choice(("minimize", "maximize")) for _ in range(k)]
    names = tuple(r.choice(list(OUTCOMES)) for _ in range(k))
    problem = Problem(space, tuple(directions), "bayes", seed, r.random() < 0.5, 1, 0, constraints=rules)
    errors = r.choice(list(ERRORS)) if k == 1 and r.random() < 0.3 else "none"
    return Study(seed, problem, names, errors, r.choice([1, 1, 4, 16]), r.choice([0, 0, 0, 12, 60, 320]))


def measured(of: Study, params: Params, trial: int) -> Observation:
    r = random.Random(f"{of.seed}/{trial}")
    units = cube(of.problem.space).encode([params])[0]
    height = float(sum((units - 0.3) ** 2) / len(units))
    values = [OUTCOMES[name](r, height, trial) for name in of.outcomes]
    told = [value for value in values if value is not None]
    se = ERRORS[of.errors](r)
    return Observation(trial, params, tuple(told), se) if len(told) == len(values) else Observation(trial, params, None)


# What must hold --------------------------------------------------------------------------------

def key(params: Params) -> str:
    return repr(sorted(params.items()))


def inspect(proposal: Proposal, problem: Problem) -> None:
    """What must hold of a proposal by itself."""
    checked = problem.space.check(proposal.params)
    assert checked == proposal.params, "the space reads it otherwise"
    assert [type(v) for v in checked.values()] == [type(v) for v in proposal.params.values()], "another type"
    assert list(checked) == list(proposal.params), "another order"
    assert broken(problem.constraints, proposal.params) is None, "a constraint is broken"
    # In a coarse space different candidates may be one point, and the search runs out of them before its time.
    ran_out = "bayes: no candidate of the search was new and allowed" if coarse(problem.space) else None
    assert proposal.fallback in (None, ran_out), proposal.fallback
    for name in ("acquisition", "gap", "mean", "sd"):
        number = getattr(proposal, name)
        assert number is None or math.isfinite(number), f"{name} is {number}"
    assert proposal.sd is None or proposal.sd >= 0, f"sd is {proposal.sd}"
    assert proposal.gap is None or proposal.gap >= -1e-6, f"the runner-up is ahead by {-proposal.gap}"


def walk(of: Study) -> int:
    """Play the study and look at everything; how many suggestions it took."""
    now = of.problem
    space, r = now.space, random.Random(of.seed)
    every = combinations(space, now.constraints)
    if of.given:
        points = suggest(replace(now, method="random"), of.given).proposals
        now = replace(now, number=len(points) + 1, history=tuple(
            measured(of, point.params, trial) for trial, point in enumerate(points, start=1)))
    tried = {key(observation.params) for observation in now.history}
    running: list[tuple[int, Params]] = []
    # A space of few points is followed to its end, and a little beyond.
    most = SUGGESTIONS if every is None else max(SUGGESTIONS, min(len(every) + 2, 60))
    asked = 0
    while asked < most:
        suggestion = suggest(now, of.at_once)
        asked += of.at_once
        assert len(suggestion.proposals) <= of.at_once
        assert suggestion.exhausted == (len(suggestion.proposals) < of.at_once), "few points and not exhausted"
        for proposal in suggestion.proposals:
            inspect(proposal, now)
            mine = key(proposal.params)
            assert every is None or mine in every, "no point of the space"
            new_left = not coarse(space) if every is None else not every <= tried
            if new_left or not now.repeats:
                assert mine not in tried, f"a known point again: {mine}"
            tried.add(mine)
            running.append((now.number, proposal.params))
            now = replace(now, number=now.number + 1, drawn=proposal.drawn)
        if suggestion.exhausted:
            assert not now.repeats, "exhausted, and points may be repeated"
            assert every <= tried if every is not None else coarse(space), "exhausted, and new points are left"
        # Trials end in any order; some stay on their way.
        r.shuffle(running)
        ended = running[: max(1, len(running) - r.choice([0, 0, 1, of.at_once]))]
        running = running[len(ended):]
        now = replace(now, fit=suggestion.fit or now.fit, pending=tuple(params for _, params in running),
                      history=(*now.history, *(measured(of, params, trial) for trial, params in ended)))
        if suggestion.exhausted:
            break
    assert suggest(now, 2) == suggest(now, 2), "two answers to one question"
    means, sds = posterior_at_data(now)
    assert len(means) == len(sds) == len(now.history)
    assert all(map(math.isfinite, [*means, *sds])), "the belief at the data is not finite"
    return asked


@pytest.mark.parametrize("seed", range(int(os.environ.get("BAYESD_STRESS", STUDIES))))
def test_a_generated_study_gets_good_points(seed: int) -> None:
    of = study(seed)
    print(of)       # shown when it fails
    walk(of)


def test_every_kind_of_outcome_and_of_parameter_comes_up() -> None:
    """So that a list above that grows is not left to chance; a few hundred studies suffice."""
    studies = [study(seed) for seed in range(300)]
    assert {name for of in studies for name in of.outcomes} == set(OUTCOMES)
    assert {of.errors for of in studies} == set(ERRORS)
    assert {(of.at_once, of.problem.repeats) for of in studies} == set(itertools.product((1, 4, 16), (True, False)))
    assert {len(of.problem.space) for of in studies} >= set(range(1, 11))
    assert any(of.problem.constraints for of in studies)
    assert any(coarse(of.problem.space) for of in studies)
    assert any(combinations(of.problem.space, of.problem.constraints) for of in studies)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", type=int, nargs="?", default=STUDIES)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--seed", type=int, help="this one alone, described")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.studies) if options.seed is None else [options.seed]
    warnings.simplefilter("error")
    failed, asked, slowest = [], 0, (0.0, -1)
    for i, seed in enumerate(seeds, start=1):
        of, began = study(seed), time.process_time()
        if options.seed is not None:
            print(of)
        try:
            asked += walk(of)
        except Exception as error:
            failed.append(seed)
            print(f"\r{of}", file=sys.stderr)
            traceback.print_exception(error, limit=-2)
        slowest = max(slowest, (time.process_time() - began, seed))
        print(f"\r{i} of {len(seeds)} studies, {asked} suggestions, {len(failed)} failed ", end="", file=sys.stderr,
              flush=True)
    print(f"\n{len(seeds)} studies, {asked} suggestions in {time.process_time():.0f} s of CPU, the longest study "
          f"{slowest[1]} in {slowest[0]:.1f} s; failed: {failed or 'none'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
