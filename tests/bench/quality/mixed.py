"""Problems that are not a box of floats: ints and choices, conditional parameters, trials that fail.

Every one is a sum of terms that are at least 0, each of which is 0 at one point, so the optimum is
known; the seed moves that point, and with it which choices are the right ones.

Sources of the ideas: ints as cut axes, Tušar, Brockhoff and Hansen, "Mixed-integer benchmark problems
for single- and bi-objective optimization", GECCO 2019; a choice that picks the function, Ru et al.,
"Bayesian optimisation over multiple continuous and categorical inputs", ICML 2020; the tree, Jenatton
et al., "Bayesian optimization with tree-structured dependencies", ICML 2017; choosing a model and its
hyperparameters at once, Thornton et al., "Auto-WEKA", KDD 2013; Branin in a disc, Gelbart, Snoek and
Adams, "Bayesian optimization with unknown constraints", UAI 2014.
"""

import math
from typing import Any

import numpy as np
from tests.bench.quality.functions import SHAPES, Formula, array, floats, rastrigin, rosenbrock, rotation
from tests.bench.quality.task import Floats, Instance, Task, stream

from bayesd_schemas.space import Params, Space


def ellipsoid(seed: int) -> Instance:
    """Three floats, two ints, two choices. The five numbers are turned, so none can be tuned alone."""
    random = stream("instance", "mixed-ellipsoid", seed)
    space = Space.model_validate({
        "x": {"type": "float", "low": -5, "high": 5}, "y": {"type": "float", "low": 0, "high": 1},
        "rate": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"},
        "depth": {"type": "int", "low": 1, "high": 10}, "units": {"type": "int", "low": 1, "high": 256, "scale": "log"},
        "kind": {"type": "categorical", "choices": ["a", "b", "c", "d"]},
        "loss": {"type": "categorical", "choices": ["l1", "l2", "huber"]}})

    def numbers(params: Params) -> Floats:
        """On scales of width 1."""
        x, y, rate, depth, units = array(params, ["x", "y", "rate", "depth", "units"]).tolist()
        return np.array([x / 10, y, math.log10(rate) / 5, depth / 9, math.log2(units) / 8])

    best: dict[str, Any] = {
        "x": random.uniform(-4, 4), "y": random.uniform(0.1, 0.9), "rate": 10 ** random.uniform(-4.5, -0.5),
        "depth": int(random.integers(1, 11)), "units": round(2 ** random.uniform(0, 8))}
    c, R = numbers(best), rotation(random, 5)
    weights = 10.0 ** np.linspace(0, 2, 5)
    kinds, losses = costs(random, ["a", "b", "c", "d"], 1.0), costs(random, ["l1", "l2", "huber"], 1.0)
    best |= {"kind": cheapest(kinds), "loss": cheapest(losses)}

    def value(params: Params) -> float:
        z = R @ (numbers(params) - c)
        return float(weights @ z**2) + kinds[str(params["kind"])] + losses[str(params["loss"])]

    return Instance(space, value, 0.0, best)


def costs(random: np.random.Generator, choices: list[str], dearest: float) -> dict[str, float]:
    """What each choice adds, evenly from 0 to `dearest`, in random order."""
    return dict(zip(choices, random.permutation(np.linspace(0, dearest, len(choices))).tolist(), strict=True))


def number(params: Params, name: str) -> float:
    value = params[name]
    assert isinstance(value, (int, float))
    return value


def cheapest(of: dict[str, float]) -> str:
    return min(of, key=lambda choice: of[choice])


def valleys(seed: int) -> Instance:
    """Rastrigin's function over two floats and two ints; a choice decides where its valley is."""
    random = stream("instance", "mixed-valleys", seed)
    names, choices = ["x", "y", "m", "n"], ["a", "b", "c"]
    space = Space.model_validate({
        "x": {"type": "float", "low": -5, "high": 5}, "y": {"type": "float", "low": -5, "high": 5},
        "m": {"type": "int", "low": -5, "high": 5}, "n": {"type": "int", "low": -5, "high": 5},
        "valley": {"type": "categorical", "choices": choices}})
    centres = {choice: np.concatenate([random.uniform(-4, 4, 2), random.integers(-4, 5, 2)]) for choice in choices}
    floors = costs(random, choices, 10.0)
    right = cheapest(floors)
    x, y, m, n = centres[right].tolist()

    def value(params: Params) -> float:
        choice = str(params["valley"])
        return rastrigin(array(params, names) - centres[choice]) + floors[choice]

    return Instance(space, value, 0.0, {"x": x, "y": y, "m": int(m), "n": int(n), "valley": right})


def camel(z: Floats) -> float:
    """Six-hump camel back (Dixon and Szegö 1978), lifted so that its optimum is 0."""
    x, y = z.tolist()
    return float((4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2) + 1.0316284534898774


CAMEL_AT = (0.08984201310031807, -0.7126564030207396)


def picked(seed: int) -> Instance:
    """Two floats under a function that one choice picks and another weighs."""
    random = stream("instance", "mixed-picked", seed)
    space = Space.model_validate({
        "x1": {"type": "float", "low": -3, "high": 3}, "x2": {"type": "float", "low": -3, "high": 3},
        "function": {"type": "categorical", "choices": ["rosenbrock", "camel", "rastrigin"]},
        "weight": {"type": "categorical", "choices": ["1", "2", "5", "10"]}})
    # Scaled so that all three have values of one size in the box.
    formulas: dict[str, tuple[Formula, tuple[float, float]]] = {
        "rosenbrock": (lambda z: rosenbrock(z) / 50, (1.0, 1.0)), "camel": (camel, CAMEL_AT),
        "rastrigin": (lambda z: rastrigin(z) / 2, (0.0, 0.0))}
    shift = random.uniform(-1, 1, 2)
    floors, fees = costs(random, list(formulas), 1.0), costs(random, ["1", "2", "5", "10"], 0.9)
    right = cheapest(floors)
    x1, x2 = (np.array(formulas[right][1]) + shift).tolist()

    def value(params: Params) -> float:
        name, weight = str(params["function"]), str(params["weight"])
        z = array(params, ["x1", "x2"]) - shift
        return float(weight) * formulas[name][0](z) + floors[name] + fees[weight]

    return Instance(space, value, 0.0, {"x1": x1, "x2": x2, "function": right, "weight": cheapest(fees)})


def tree(seed: int) -> Instance:
    """Four leaves below two levels of choices: an own float at every leaf, a shared one for each side."""
    random = stream("instance", "conditional-tree", seed)
    leaves = {("no", "no"): ("x4", "r8"), ("no", "yes"): ("x5", "r8"), ("yes", "no"): ("x6", "r9"),
              ("yes", "yes"): ("x7", "r9")}
    yes_no = {"type": "categorical", "choices": ["no", "yes"]}
    space = Space.model_validate({
        "side": yes_no, "left": {**yes_no, "when": {"side": "no"}}, "right": {**yes_no, "when": {"side": "yes"}},
        "r8": {"type": "float", "low": 0, "high": 1, "when": {"side": "no"}},
        "r9": {"type": "float", "low": 0, "high": 1, "when": {"side": "yes"}},
        "x4": {"type": "float", "low": -1, "high": 1, "when": {"left": "no"}},
        "x5": {"type": "float", "low": -1, "high": 1, "when": {"left": "yes"}},
        "x6": {"type": "float", "low": -1, "high": 1, "when": {"right": "no"}},
        "x7": {"type": "float", "low": -1, "high": 1, "when": {"right": "yes"}}})
    floors = dict(zip(leaves, random.permutation([0.1, 0.2, 0.3, 0.4]).tolist(), strict=True))
    at = {name: random.uniform(-0.8, 0.8) for name in ("x4", "x5", "x6", "x7")}
    at |= {name: random.uniform(0, 0.5) for name in ("r8", "r9")}
    right = min(leaves, key=lambda leaf: floors[leaf])

    def value(params: Params) -> float:
        leaf = (str(params["side"]), str(params["left" if params["side"] == "no" else "right"]))
        own, shared = leaves[leaf]
        return float((number(params, own) - at[own])**2 + abs(number(params, shared) - at[shared]) + floors[leaf])

    own, shared = leaves[right]
    return Instance(space, value, 0.1, {"side": right[0], "left" if right[0] == "no" else "right": right[1],
                                        own: at[own], shared: at[shared]})


def model(seed: int) -> Instance:
    """A model and its hyperparameters: three models, of which the richest has parameters of parameters."""
    random = stream("instance", "conditional-model", seed)
    space = Space.model_validate({
        "model": {"type": "categorical", "choices": ["linear", "tree", "net"]},
        "scaler": {"type": "categorical", "choices": ["none", "standard", "range"]},
        "penalty": {"type": "float", "low": 1e-4, "high": 1e2, "scale": "log", "when": {"model": "linear"}},
        "depth": {"type": "int", "low": 1, "high": 12, "when": {"model": "tree"}},
        "leaf": {"type": "int", "low": 1, "high": 64, "scale": "log", "when": {"model": "tree"}},
        "rate": {"type": "float", "low": 1e-4, "high": 1e-1, "scale": "log", "when": {"model": "net"}},
        "solver": {"type": "categorical", "choices": ["adam", "sgd"], "when": {"model": "net"}},
        "momentum": {"type": "float", "low": 0, "high": 1, "when": {"solver": "sgd"}},
        "layers": {"type": "int", "low": 1, "high": 3, "when": {"model": "net"}},
        "width": {"type": "int", "low": 4, "high": 256, "scale": "log", "when": {"layers": [2, 3]}}})
    floors = {"net": 0.0, "tree": 0.1, "linear": 0.2}
    scalers = costs(random, ["none", "standard", "range"], 0.2)
    at: dict[str, Any] = {
        "penalty": 10 ** random.uniform(-3, 1), "depth": int(random.integers(2, 12)),
        "leaf": int(random.integers(1, 33)), "rate": 10 ** random.uniform(-3.5, -1.5), "solver": "sgd",
        "momentum": random.uniform(0.5, 0.95), "layers": int(random.integers(2, 4)),
        "width": int(random.integers(16, 200))}

    def off(params: Params, name: str, scale: float, log: bool = False) -> float:
        """Squared distance from the right value, 0 where the parameter is not active."""
        if name not in params:
            return 0.0
        here, there = number(params, name), number(at, name)
        return ((math.log(here / there) if log else here - there) / scale)**2

    def value(params: Params) -> float:
        return (floors[str(params["model"])] + scalers[str(params["scaler"])]
                + off(params, "penalty", 10, log=True) + off(params, "depth", 20) + off(params, "leaf", 8, log=True)
                + off(params, "rate", 4, log=True) + off(params, "momentum", 1) + off(params, "layers", 4)
                + off(params, "width", 8, log=True) + (0.05 if params.get("solver") == "adam" else 0.0))

    return Instance(space, value, 0.0, {"model": "net", "scaler": cheapest(scalers), **{
        name: at[name] for name in ("rate", "solver", "momentum", "layers", "width")}})


def disc(seed: int) -> Instance:
    """Branin's function, moved; a trial outside a disc fails. One of its three optima is inside."""
    random = stream("instance", "failing-disc", seed)
    shift, shape = random.uniform(-1, 1, 2), SHAPES["branin"]
    low, high = shape.box(2)
    at = shape.optimum(2)

    def value(params: Params) -> float:
        z = array(params, ["x1", "x2"]) - shift
        return shape.formula(z) if (z[0] - 2.5)**2 + (z[1] - 7.5)**2 <= 50 else math.nan

    x1, x2 = (at + shift).tolist()
    return Instance(floats(["x1", "x2"], low, high), value, shape.formula(np.array([x1, x2]) - shift),
                    {"x1": x1, "x2": x2})


def edge(seed: int) -> Instance:
    """The further the better, until it fails: a sphere whose centre lies beyond a plane, with the
    optimum on the plane (as with a learning rate, which is best just before training diverges)."""
    random = stream("instance", "failing-edge", seed)
    d, beyond = 5, random.uniform(0.15, 0.25)
    names = [f"x{i}" for i in range(1, d + 1)]
    normal = random.normal(size=d)
    normal /= np.linalg.norm(normal)
    at = random.uniform(0.2, 0.8, d)
    centre = at + beyond * normal

    def value(params: Params) -> float:
        x = array(params, names)
        if (x - at) @ normal > 1e-12:     # the optimum itself must not fail by a rounding
            return math.nan
        return float(((x - centre)**2).sum())

    best = dict(zip(names, at.tolist(), strict=True))
    return Instance(floats(names, np.zeros(d), np.ones(d)), value, beyond**2, best)


def tasks() -> list[Task]:
    return [Task(name, "mixed", make) for name, make in (
        ("mixed-ellipsoid", ellipsoid), ("mixed-valleys", valleys), ("mixed-picked", picked),
        ("conditional-tree", tree), ("conditional-model", model), ("failing-disc", disc), ("failing-edge", edge))]
