"""Test functions with a known optimum, moved and turned by the seed.

Notation
    d   number of dimensions
    z   (d,)    coordinates of the published formula, whose optimum is z*
    x   (d,)    what the optimiser sets; z = R (x - c) + z*
    c   (d,)    where the optimum of this instance lies: uniform in the middle 80 % of every range
    R   (d, d)  a random rotation, or the identity where the axes matter (as they do in most tuning)

Every formula here has no lower value anywhere outside its usual box than z* has, so the optimum
stays where it is whatever R and c are. Schwefel's function, which has, is moved with care.

Formulas
    sphere, Rosenbrock, Rastrigin, Griewank, Schwefel 2.26, step: Yao, Liu and Lin, "Evolutionary
        programming made faster", IEEE Trans. Evol. Comp. 3(2), 1999 (f1, f5, f9, f11, f8, f6)
    ellipsoid: Hansen, Finck, Ros and Auger, "Real-parameter black-box optimization benchmarking
        2009: noiseless functions definitions", INRIA RR-6829 (f10 without its oscillation)
    Ackley: Ackley, "A connectionist machine for genetic hillclimbing", 1987, for d dimensions as in
        Bäck and Schwefel, Evol. Comp. 1(1), 1993
    Levy: Levy and Montalvo, SIAM J. Sci. Stat. Comp. 6(1), 1985, in the form of Laguna and Martí,
        J. Global Optimization 33, 2005
    Branin, Hartmann 3 and 6: Dixon and Szegö, "Towards global optimisation 2", 1978
    peaks: after Gallagher and Yuan, "A general-purpose tunable landscape generator", IEEE Trans.
        Evol. Comp. 10(5), 2006, with the weights and conditions of f21 of INRIA RR-6829
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tests.bench.quality.task import Floats, Instance, Task, stream

from bayesd_schemas.space import Params, Space

Formula = Callable[[Floats], float]


def sphere(z: Floats) -> float:
    return float(z @ z)


def ellipsoid(z: Floats) -> float:
    return float(10.0 ** np.linspace(0, 6, len(z)) @ z**2)


def rosenbrock(z: Floats) -> float:
    return float((100 * (z[1:] - z[:-1]**2)**2 + (1 - z[:-1])**2).sum())


def rastrigin(z: Floats) -> float:
    return float((z**2 - 10 * np.cos(2 * np.pi * z) + 10).sum())


def ackley(z: Floats) -> float:
    waves = math.exp(np.cos(2 * np.pi * z).mean())
    return float(20 * (1 - math.exp(-0.2 * math.sqrt(z @ z / len(z)))) + math.e - waves)


def levy(z: Floats) -> float:
    w = 1 + (z - 1) / 4
    return float(math.sin(math.pi * w[0])**2
                 + ((w[:-1] - 1)**2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1)**2)).sum()
                 + (w[-1] - 1)**2 * (1 + math.sin(2 * math.pi * w[-1])**2))


def griewank(z: Floats) -> float:
    return float(z @ z / 4000 - np.cos(z / np.sqrt(np.arange(1, len(z) + 1))).prod() + 1)


def branin(z: Floats) -> float:
    bent = z[1] - 5.1 / (4 * math.pi**2) * z[0]**2 + 5 / math.pi * z[0] - 6
    return float(bent**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(z[0]) + 10)


def steps(z: Floats) -> float:
    return float((np.floor(z + 0.5)**2).sum())


HARTMANN_WEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
HARTMANN_A: dict[int, Floats] = {
    3: np.array([[3.0, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]]),
    6: np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8],
                 [17, 8, 0.05, 10, 0.1, 14]])}
HARTMANN_P: dict[int, Floats] = {
    3: np.array([[3689.0, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]) / 10_000,
    6: np.array([[1312.0, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
                 [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]) / 10_000}
# Minimised to the last digit from the published points. No other point of all of R^d is lower: where
# the gradient vanishes, each coordinate is a mean of those of P with positive weights, so in the cube.
HARTMANN_AT: dict[int, tuple[float, ...]] = {
    3: (0.11458887665506895, 0.5556488946169301, 0.8525469846866774),
    6: (0.20168951100670543, 0.15001069182345797, 0.476873974221897, 0.2753324304940561, 0.31165161660011326,
        0.6573005340656204)}


def hartmann(z: Floats) -> float:
    inner = (HARTMANN_A[len(z)] * (z - HARTMANN_P[len(z)])**2).sum(axis=1)
    return -float(HARTMANN_WEIGHTS @ np.exp(-inner))


@dataclass(frozen=True)
class Shape:
    """A formula, its box, and where its optimum is."""

    formula: Formula
    low: tuple[float, ...]
    high: tuple[float, ...]
    """One number for all axes, or one for each."""
    at: tuple[float, ...] = (0.0,)
    """Empty for Hartmann's, which has an own one for each d."""

    def optimum(self, d: int) -> Floats:
        return np.broadcast_to(np.array(self.at or HARTMANN_AT[d]), (d,))

    def box(self, d: int) -> tuple[Floats, Floats]:
        return np.broadcast_to(np.array(self.low), (d,)), np.broadcast_to(np.array(self.high), (d,))


SHAPES: dict[str, Shape] = {
    "sphere": Shape(sphere, (-5.0,), (5.0,)),
    "ellipsoid": Shape(ellipsoid, (-5.0,), (5.0,)),
    "rosenbrock": Shape(rosenbrock, (-5.0,), (5.0,), (1.0,)),
    "rastrigin": Shape(rastrigin, (-5.12,), (5.12,)),
    "ackley": Shape(ackley, (-32.768,), (32.768,)),
    "levy": Shape(levy, (-10.0,), (10.0,), (1.0,)),
    "griewank": Shape(griewank, (-600.0,), (600.0,)),
    "branin": Shape(branin, (-5.0, 0.0), (10.0, 15.0), (math.pi, 2.275)),
    "hartmann": Shape(hartmann, (0.0,), (1.0,), ()),
    "steps": Shape(steps, (-5.0,), (5.0,)),
}


def moved(name: str, d: int, turned: bool, seed: int) -> Instance:
    """The instance of a seed: the optimum somewhere else, and an offset on every value."""
    shape, random = SHAPES[name], stream("instance", name, d, seed)
    low, high = shape.box(d)
    at = shape.optimum(d)
    c = low + (high - low) * random.uniform(0.1, 0.9, d)
    offset = round(random.uniform(-100, 100), 2)
    R = rotation(random, d) if turned else np.eye(d)
    return of_floats(lambda x: shape.formula(R @ (x - c) + at) + offset, low, high, shape.formula(at) + offset, c)


def schwefel(d: int, seed: int) -> Instance:
    """Mirrored in every axis by chance, and moved by 20 at most: below z = -525 and above 666 there are
    lower values than the optimum's. That is why it is not turned, either."""
    random = stream("instance", "schwefel", d, seed)
    sign, shift = random.choice([-1.0, 1.0], d), random.uniform(-20, 20, d)
    offset = round(random.uniform(-100, 100), 2)

    def formula(x: Floats) -> float:
        z = sign * (x - shift)
        return float(418.98288727243374 * d - (z * np.sin(np.sqrt(np.abs(z)))).sum()) + offset

    c = sign * 420.9687463599820 + shift
    return of_floats(formula, np.full(d, -500.0), np.full(d, 500.0), offset, c)


def peaks(d: int, seed: int) -> Instance:
    """101 Gaussian peaks of random place, height and form, upside down; only one has the full height."""
    random = stream("instance", "peaks", d, seed)
    count = 101
    places = random.uniform(-5, 5, (count, d))
    places[0] = random.uniform(-4, 4, d)
    heights = np.concatenate([[10.0], np.linspace(1.1, 9.1, count - 1)])
    conditions = np.concatenate([[1000.0], random.permutation(1000.0 ** np.linspace(0, 2, count - 1))])
    widths = np.array([random.permutation(a ** np.linspace(-0.25, 0.25, d)) for a in conditions])
    R = rotation(random, d)
    offset = round(random.uniform(-100, 100), 2)

    def formula(x: Floats) -> float:
        turned = (x - places) @ R.T
        return float((10 - (heights * np.exp(-(widths * turned**2).sum(axis=1) / (2 * d))).max())**2) + offset

    return of_floats(formula, np.full(d, -5.0), np.full(d, 5.0), offset, places[0])


def rotation(random: np.random.Generator, d: int) -> Floats:
    """Uniform among the rotations: QR of a Gaussian matrix, with the signs of R's diagonal
    (Mezzadri, "How to generate random matrices from the classical compact groups", 2007)."""
    q, r = np.linalg.qr(random.normal(size=(d, d)))
    return np.asarray(q * np.sign(np.diag(r)))


def of_floats(formula: Formula, low: Floats, high: Floats, best: float, at: Floats) -> Instance:
    """The instance over parameters x1, x2, ... of one array."""
    names = [f"x{i}" for i in range(1, len(low) + 1)]

    def value(params: Params) -> float:
        return formula(array(params, names))

    return Instance(floats(names, low, high), value, best, dict(zip(names, at.tolist(), strict=True)))


def floats(names: list[str], low: Floats, high: Floats) -> Space:
    parameters: dict[str, Any] = {name: {"type": "float", "low": a, "high": b}
                                  for name, a, b in zip(names, low.tolist(), high.tolist(), strict=True)}
    return Space.model_validate(parameters)


def array(params: Params, names: list[str]) -> Floats:
    return np.array([params[name] for name in names], dtype=np.float64)


# Name, dimensions, turned. Where there are two sizes, the smaller one keeps its axes.
MOVED: tuple[tuple[str, int, bool], ...] = (
    ("sphere", 5, False), ("sphere", 20, False), ("ellipsoid", 4, False), ("ellipsoid", 10, True),
    ("rosenbrock", 3, False), ("rosenbrock", 10, True), ("rastrigin", 2, False), ("rastrigin", 8, True),
    ("ackley", 5, False), ("ackley", 15, True), ("levy", 4, False), ("levy", 12, True), ("griewank", 6, True),
    ("branin", 2, True), ("hartmann", 3, True), ("hartmann", 6, True), ("steps", 5, True))
NOISE = 0.05


def tasks() -> list[Task]:
    """All of them, and all of them again with noise on the same instances."""
    made = [(f"{name}-{d}", partial(moved, name, d, turned)) for name, d, turned in MOVED]
    made += [(f"schwefel-{d}", partial(schwefel, d)) for d in (3,)]
    made += [(f"peaks-{d}", partial(peaks, d)) for d in (2, 6)]
    return ([Task(name, "functions", make) for name, make in made]
            + [Task(f"noisy-{name}", "noisy", make, NOISE) for name, make in made])
