"""Space and unit cube: there, back, and never outside."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesd.optimize.encode import PINNED, cube
from bayesd_schemas.space import Space

finite = st.floats(-1e6, 1e6)
unit = st.floats(0, 1)


def one(**parameter: Any) -> Space:
    return Space.model_validate({"x": parameter})


def decoded(space: Space, u: float) -> Any:
    return cube(space).decode(np.array([[u]]))[0]["x"]


@st.composite
def axes(draw: st.DrawFn) -> Space:
    scale = draw(st.sampled_from(["linear", "log", "power"]))
    kind = draw(st.sampled_from(["int", "float", "ordinal"]))
    if kind == "ordinal":
        return one(type="ordinal", choices=list(range(draw(st.integers(1, 50)))))
    low: Any = draw(st.integers(1, 10**6)) if kind == "int" else draw(st.floats(1e-6, 1e6))
    high = low + draw(st.integers(1, 10**6)) if kind == "int" else low + draw(st.floats(1e-3, 1e6))
    if scale != "log":
        low, high = low - 500_000, high - 500_000
    extra: dict[str, Any] = {"exponent": draw(st.floats(0.3, 8))} if scale == "power" else {}
    if scale == "linear" and draw(st.booleans()):
        extra["step"] = draw(st.integers(1, 1000)) if kind == "int" else (high - low) / draw(st.integers(1, 1000))
    return one(type=kind, low=low, high=high, scale=scale, **extra)


@settings(deadline=None)       # a busy machine is not a bug
@given(axes(), unit)
def test_a_value_survives_the_way_there_and_back(space: Space, u: float) -> None:
    value = decoded(space, u)
    assert space.check({"x": value}) == {"x": value}
    back = decoded(space, float(cube(space).encode([{"x": value}])[0, 0]))
    assert back == pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else back == value


@settings(deadline=None)       # a busy machine is not a bug
@given(axes(), st.lists(unit, min_size=2, max_size=10))
def test_larger_coordinates_are_larger_values(space: Space, us: list[float]) -> None:
    values = [decoded(space, u) for u in sorted(us)]
    assert values == sorted(values)


@settings(deadline=None)       # a busy machine is not a bug
@given(axes(), unit)
def test_snapping_twice_is_snapping_once(space: Space, u: float) -> None:
    of = cube(space)
    once = of.snap(np.array([[u]]), 20)
    assert np.array_equal(of.snap(once, 20), once)
    if of.axes[0].kind != "real":
        assert of.decode(once) == of.decode(np.array([[u]]))


def test_the_ends_and_the_scales() -> None:
    assert decoded(one(type="float", low=2, high=10), 0.25) == 4
    assert decoded(one(type="float", low=1e-4, high=1, scale="log"), 0.25) == pytest.approx(1e-3)
    assert decoded(one(type="float", low=2, high=10, scale="power", exponent=2), 0.5) == 4
    assert [decoded(one(type="int", low=1, high=3), u) for u in (0, 0.34, 0.99, 1)] == [1, 2, 3, 3]
    assert [decoded(one(type="float", low=0.1, high=0.35, step=0.1), u) for u in (0, 0.5, 1)] == [0.1, 0.2, 0.3]
    assert decoded(one(type="float", low=1e-300, high=1e300, scale="log"), 0.5) == pytest.approx(1)


def test_every_integer_of_a_log_axis_is_reached_and_keeps_its_own_coordinate() -> None:
    space = one(type="int", low=1, high=200, scale="log")
    of = cube(space)
    u = of.encode([{"x": i} for i in range(1, 201)])
    assert [row["x"] for row in of.decode(u)] == list(range(1, 201))
    assert len(np.unique(of.snap(u, 20))) == 200


def test_points_of_another_space_are_clipped_and_filled(spaces: dict[str, Space]) -> None:
    of = cube(spaces["every kind"])
    old: dict[str, Any] = {"lr": 7, "units": -4, "depth": 4, "kernel": "gone", "size": "l", "mix": "no"}
    u = dict(zip(of.names, of.encode([old])[0], strict=True))
    assert u["lr"] == 1
    assert u["units"] == pytest.approx(math.log(2) / math.log(4096.5 * 2))
    assert u["depth"] == pytest.approx(0.5)
    assert u["kernel"] == u["mix"] == u["drop"] == PINNED
    assert u["size"] == pytest.approx(5 / 6)


def test_true_and_one_are_different_choices() -> None:
    of = cube(one(type="categorical", choices=["a", True]))
    assert of.encode([{"x": True}])[0, 0] == 0.75
    assert of.encode([{"x": 1}])[0, 0] == PINNED


def test_what_is_inactive_does_not_move_the_point(spaces: dict[str, Space]) -> None:
    of = cube(spaces["conditional"])
    rng = np.random.default_rng(0)
    U = rng.random((200, of.p))
    for params, row, pinned in zip(of.decode(U), U, of.pin(U), strict=True):
        assert spaces["conditional"].check(params) == params
        for name, u, v in zip(of.names, row, pinned, strict=True):
            assert v == (u if name in params else PINNED)
