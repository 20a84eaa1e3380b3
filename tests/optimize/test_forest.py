"""The forest: against scikit-learn, against its formulas by hand, and the same to the last bit."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from bayesd.optimize import forest as forests
from bayesd.optimize import search
from bayesd.optimize.acquisition import Improvement, Success, Together, log_ei
from bayesd.optimize.encode import cube
from bayesd.optimize.forest import BELIEVED, FLOOR, TREES, Forest
from bayesd.optimize.kernel import Design
from bayesd.optimize.streams import Stream
from bayesd_schemas.space import Space

REAL: dict[str, Any] = {f"x{i}": {"type": "float", "low": 0, "high": 1} for i in range(3)}
CHOICE: dict[str, Any] = {"k": {"type": "categorical", "choices": list("abcd")},
                          "x": {"type": "float", "low": 0, "high": 1}}


def designed(parameters: dict[str, Any]) -> Design:
    return Design(cube(Space.model_validate(parameters)))


def outcomes(U: Any) -> Any:
    z = np.sin(5 * U[:, 0]) + 2 * np.abs(U[:, -1] - 0.3)
    return (z - z.mean()) / (z.std() or 1)


def grown(design: Design, n: int, seed: int = 0) -> Forest:
    U = np.random.default_rng(seed).random((n, design.of.p))
    return Forest.of(design, design.features(U), outcomes(U), np.zeros(n), seed)


def digest(forest: Forest) -> str:
    at = forest.design.features(np.random.default_rng(9).random((50, forest.design.of.p)))
    more = forest.condition(at[:3], forest.predict(at[:3])[0])
    parts = [*forest.predict(at), *more.predict(at), forest.means]
    return hashlib.blake2b(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


# Mean and variance ----------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [60, forests.SAMPLE_MAX + 200])
def test_the_mean_is_that_of_scikit_learn(n: int) -> None:
    design = designed(REAL)
    U = np.random.default_rng(1).random((n, 3))
    se2 = np.linspace(0, 0.5, n)
    other = ExtraTreesRegressor(TREES, bootstrap=True, max_samples=min(n, forests.SAMPLE_MAX),
                                random_state=Stream(7, n, "forest").integer(2**32))
    other.fit(U.astype(np.float32), np.round(outcomes(U), forests.DECIMALS),
              sample_weight=forests.NOISE_UNIT / (forests.NOISE_UNIT + se2))
    at = np.random.default_rng(2).random((200, 3))
    forest = Forest.of(design, design.features(U), outcomes(U), se2, 7)
    mean, _ = forest.predict(design.features(at))
    assert np.allclose(mean, other.predict(at.astype(np.float32)), rtol=1e-12, atol=1e-13)
    assert np.array_equal(forest.means, forest.predict(forest.X)[0])


@dataclass(frozen=True)
class Stump:
    """A tree of three nodes: left of the cut and right of it."""

    cut: float

    def apply(self, C: Any) -> Any:
        return np.where(C[:, 0] <= self.cut, 1, 2)


@pytest.fixture
def two_stumps() -> Forest:
    design = designed({"x": {"type": "float", "low": 0, "high": 1}})
    return Forest(design, np.array([[0.1], [0.9]]), np.array([0.0, 1.0]), np.empty(0), (Stump(0.5), Stump(0.8)),
                  np.array([[0], [3]]), count=np.array([4.0, 3, 1, 4, 2, 2]),
                  mean=np.array([0.0, -1, 3, 0, -2, 2]), variance=np.array([9.0, 0.5, 0, 9, 0.25, 1]))


def test_the_variance_is_that_of_the_law_of_total_variance(two_stumps: Forest) -> None:
    mean, variance = two_stumps.predict(np.array([[0.2], [0.6], [0.9]]))
    assert mean.tolist() == [-1.5, 0.5, 2.5]
    # The mean of the leaves' variances, none of them below the floor, and the variance of their means.
    assert np.allclose(variance, [(0.5 + 0.25) / 2 + 0.25, (FLOOR + 0.25) / 2 + 6.25, (FLOOR + 1) / 2 + 0.25])


def test_an_appended_row_counts_in_its_leaves_and_nowhere_else(two_stumps: Forest) -> None:
    told = two_stumps.condition(np.array([[0.6], [0.7]]), np.array([1.0, -3.0]))
    # In the first tree both join an outcome of 3; in the second, two of mean -2 and variance 0.25.
    for node, values, weights in ((2, [3.0, 1, -3], [1, BELIEVED, BELIEVED]),
                                  (4, [-2.5, -1.5, 1, -3], [1, 1, BELIEVED, BELIEVED])):
        mean = np.average(values, weights=weights)
        assert told.count[node] == sum(weights)
        assert told.mean[node] == pytest.approx(mean)
        assert told.variance[node] == pytest.approx(np.average((np.array(values) - mean) ** 2, weights=weights))
    untouched = [0, 1, 3, 5]
    for after, before in ((told.count, two_stumps.count), (told.mean, two_stumps.mean),
                          (told.variance, two_stumps.variance)):
        assert np.allclose(after[untouched], before[untouched], rtol=1e-15)
    assert told.X.tolist() == [[0.1], [0.9], [0.6], [0.7]]
    assert told.z.tolist() == [0.0, 1.0, 1.0, -3.0]
    assert len(told.means) == 4


def test_a_believed_row_keeps_its_mean_and_is_less_of_a_surprise() -> None:
    forest = grown(designed(REAL), 80)
    at = forest.design.features(np.random.default_rng(3).random((5, 3)))
    mean, variance = forest.predict(at)
    after, left = forest.condition(at, mean).predict(at)
    assert np.all(np.sqrt(left / variance) < 0.85)
    assert np.allclose(after, mean, atol=0.5 * float(np.sqrt(variance).max()))
    assert np.array_equal(forest.predict(at)[0], mean)      # and the old one is as it was


def test_a_row_of_great_known_noise_hardly_counts() -> None:
    design = designed({"x": {"type": "float", "low": 0, "high": 1}})
    X = np.linspace(0, 1, 21)[:, None]
    z, se2 = np.zeros(21), np.zeros(21)
    z[10], se2[10] = 4.0, 100.0
    assert Forest.of(design, X, z, se2, 0).means[10] < 0.25 * Forest.of(design, X, z, np.zeros(21), 0).means[10]


# Spaces ---------------------------------------------------------------------------------------------

def test_choices_stand_in_the_order_of_their_outcomes() -> None:
    design = designed(CHOICE)
    U = np.column_stack([(np.arange(40) % 3 + 0.5) / 4, np.random.default_rng(0).random(40)])    # d is never tried
    z = np.array([1.0, -5.0, 3.0])[np.arange(40) % 3]
    forest = Forest.of(design, design.features(U), z, np.zeros(40), 0)
    assert forest.order.tolist() == [0.75, 0.25, 1.0, 0.5]      # b, then d of which nothing is known, then a, c
    each = np.column_stack([(np.arange(4) + 0.5) / 4, np.full(4, 0.5)])
    mean, variance = forest.predict(design.features(each))
    assert np.allclose(mean[:3], [1, -5, 3], atol=1e-6)
    assert variance[3] > 4 * variance[:3].max()


def test_an_inactive_choice_is_like_none_of_the_others() -> None:
    design = designed({"on": {"type": "categorical", "choices": [False, True]},
                       "k": {"type": "categorical", "choices": list("ab"), "when": {"on": True}},
                       "x": {"type": "float", "low": 0, "high": 1, "when": {"on": True}}})
    U = np.random.default_rng(0).random((60, 3))
    X = design.features(U)
    on, a = U[:, 0] >= 0.5, U[:, 1] < 0.5
    forest = Forest.of(design, X, np.where(on, np.where(a, 1.0, -1.0), 0.0), np.zeros(60), 0)
    at = np.array([[0.2, 0.2, 0.9], [0.2, 0.8, 0.1], [0.8, 0.2, 0.5], [0.8, 0.8, 0.5]])
    mean, variance = forest.predict(design.features(at))
    assert np.allclose(mean, [0, 0, 1, -1], atol=0.1)
    assert mean[0] == mean[1]
    assert variance[0] == variance[1]


def test_every_kind_of_space(any_space: Space) -> None:
    design = Design(cube(any_space))
    for n in (1, 2, 40):
        forest = grown(design, n)
        known = np.random.default_rng(0).random((n, design.of.p))
        at = design.features(np.random.default_rng(1).random((30, design.of.p)))
        for one in (forest, forest.condition(at[:4], np.zeros(4))):
            mean, variance = one.predict(at)
            assert np.all(np.isfinite(mean))
            assert np.all(variance >= FLOOR * (1 - 1e-12))
        target = Together((Improvement(forest, float(forest.means.min())), Success(forest, 0.3, 0.01)))
        assert not target.smooth
        found = search.maximise(target, Stream(1, n, "bayes"), known[:5], known)
        if len(found.U):
            assert found.acquisition[0] == pytest.approx(target.value(design.features(found.U[:1]))[0])


def test_a_fidelity_is_one_more_column() -> None:
    design = replace(designed(CHOICE), fidelity=True)
    U, fidelity = np.random.default_rng(0).random((60, 2)), np.where(np.arange(60) % 2, 1.0, 0.125)
    forest = Forest.of(design, design.features(U, fidelity), np.where(fidelity < 1, 1.0, -1.0), np.zeros(60), 0)
    assert np.allclose(forest.predict(design.features(U[:9]))[0], -1, atol=0.2)


# Determinism ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("parameters", [REAL, CHOICE])
def test_the_same_arguments_give_the_same_bits(parameters: dict[str, Any]) -> None:
    one = digest(grown(designed(parameters), 70, 4))
    assert one == digest(grown(designed(parameters), 70, 4))
    assert one != digest(grown(designed(parameters), 70, 5))


def test_another_process_gives_the_same_bits() -> None:
    code = ("import importlib.util, sys\n"
            f"spec = importlib.util.spec_from_file_location('module', {str(Path(__file__))!r})\n"
            "module = importlib.util.module_from_spec(spec)\nsys.modules['module'] = module\n"
            "spec.loader.exec_module(module)\n"
            "print(module.digest(module.grown(module.designed(module.CHOICE), 70, 4)))")
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "17"})
    assert fresh.stdout.strip() == digest(grown(designed(CHOICE), 70, 4))


# Search ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Terraces:
    """Steps that rise towards one corner of the reals under one choice: flat nearly everywhere."""

    design: Design
    smooth: bool = False

    @property
    def lengths(self) -> Any:
        return np.full(self.design.m, 0.5)

    def embedded(self, X: Any) -> Any:
        return X

    def value(self, X: Any) -> Any:
        near = 1 - np.abs(X[:, :self.design.m] - 0.83).max(axis=1)
        return np.floor(60 * near) / 60 + (X[:, self.design.m + 3] > 0)

    def gradient(self, X: Any) -> Any:
        raise AssertionError("a target that is not smooth was asked for its gradient")


@pytest.mark.parametrize("seed", range(4))
def test_the_search_climbs_terraces_without_a_gradient(seed: int) -> None:
    design = designed({**{f"x{i}": {"type": "float", "low": 0, "high": 1} for i in range(4)},
                       "n": {"type": "int", "low": 1, "high": 100},
                       "k": {"type": "categorical", "choices": list("abcdef")}})
    target, far = Terraces(design), np.full((1, 6), 0.1)
    found = search.maximise(target, Stream(seed, 1, "bayes"), far, far)
    assert found.acquisition[0] >= 1.9
    assert np.array_equal(found.U, search.maximise(target, Stream(seed, 1, "bayes"), far, far).U)
    swept = target.value(design.features(np.random.default_rng(seed).random((search.EVERYWHERE + search.AROUND, 6))))
    assert found.acquisition[0] > swept.max()


@pytest.mark.parametrize("parameters", [REAL, CHOICE])
def test_the_search_is_nearly_as_high_as_a_dense_sample(parameters: dict[str, Any]) -> None:
    design = designed(parameters)
    for seed in range(3):
        forest = grown(design, 60, seed)
        U = np.random.default_rng(seed).random((60, design.of.p))
        best = float(forest.means.min())
        dense = design.features(np.random.default_rng(8).random((20_000, design.of.p)))
        found = search.maximise(Improvement(forest, best), Stream(seed, 1, "bayes"), U[np.argsort(forest.means)[:5]], U)
        assert found.acquisition[0] > float(log_ei(*forest.predict(dense), best).max()) - 0.1
