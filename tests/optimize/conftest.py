"""Spaces of every kind, and the methods: what the suite of all samplers runs on."""

from typing import Any

import pytest

from bayesd_schemas.space import Space

SPACES: dict[str, dict[str, Any]] = {
    "one float": {"x": {"type": "float", "low": -1, "high": 2}},
    "every kind": {
        "kernel": {"type": "categorical", "choices": ["rbf", "poly", None, True]},
        "lr": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"},
        "drop": {"type": "float", "low": 0, "high": 0.9, "scale": "power", "exponent": 3},
        "mix": {"type": "float", "low": 0.1, "high": 0.95, "step": 0.1},
        "units": {"type": "int", "low": 1, "high": 4096, "scale": "log"},
        "depth": {"type": "int", "low": 2, "high": 9, "step": 3},
        "width": {"type": "int", "low": -3, "high": 90, "scale": "power"},
        "size": {"type": "ordinal", "choices": ["s", "m", "l"]}},
    "conditional": {
        "gamma": {"type": "float", "low": 0, "high": 1, "when": {"kernel": ["rbf", "poly"]}},
        "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}},
        "deep": {"type": "categorical", "choices": ["a", "b"], "when": {"degree": [4, 5], "kernel": "poly"}},
        "kernel": {"type": "categorical", "choices": ["rbf", "poly", "linear"]}},
    "small": {
        "a": {"type": "int", "low": 1, "high": 4},
        "b": {"type": "categorical", "choices": ["x", "y", "z"]},
        "c": {"type": "ordinal", "choices": [1, 10, 100], "when": {"b": ["x", "z"]}}},
    "choices only": {
        "a": {"type": "categorical", "choices": list("abcdef")},
        "b": {"type": "categorical", "choices": [False, True]}},
    "wide": {
        "n": {"type": "int", "low": -(2**53 - 1), "high": 2**53 - 1},
        "m": {"type": "int", "low": 1, "high": 2**53 - 1, "scale": "log"},
        "x": {"type": "float", "low": -1e299, "high": 1e299},
        "y": {"type": "float", "low": 1e-300, "high": 1e300, "scale": "log"},
        "tight": {"type": "float", "low": 1.0, "high": 1.0000000000000004},
        "one": {"type": "categorical", "choices": ["only"]}},
    "many choices": {
        "word": {"type": "categorical", "choices": [f"w{i}" for i in range(3000)]},
        "x": {"type": "float", "low": 0, "high": 1}},
}


@pytest.fixture(params=("grid", "random", "sobol", "bayes"))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(SPACES))
def any_space(request: pytest.FixtureRequest, spaces: dict[str, Space]) -> Space:
    return spaces[request.param]


@pytest.fixture(scope="session")
def spaces() -> dict[str, Space]:
    return {name: Space.model_validate(parameters) for name, parameters in SPACES.items()}
