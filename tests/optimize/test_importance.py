"""Shares of variance, credit and warnings, on functions whose answers are known."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bayesd.importance import credit, effect, indices, warnings
from bayesd.importance.belief import Belief, NothingToSay, inside
from bayesd.importance.warnings import Fact, Facts
from bayesd.optimize import sobol
from bayesd.optimize.encode import cube
from bayesd.optimize.streams import Floats
from bayesd.study.problem import Observation, Problem
from bayesd.warned import brief
from bayesd_schemas.space import Space

Function = Callable[[Floats], Floats]


def measured(space: dict[str, Any], function: Callable[[dict[str, Any]], float | None], count: int) -> Problem:
    """A Sobol design of a space, measured."""
    read = Space.model_validate(space)
    points = cube(read).decode(sobol.points(3, 0, count, len(space)))
    seen = [Observation(i, point, None if (value := function(point)) is None else (value,))
            for i, point in enumerate(points, start=1)]
    return Problem(read, ("minimize",), "random", 3, True, count + 1, count, tuple(seen))


def floats(p: int, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    return {f"x{j}": {"type": "float", "low": low, "high": high} for j in range(p)}


def ishigami(point: dict[str, float]) -> float:
    x, y, z = point.values()
    return math.sin(x) + 7 * math.sin(y) ** 2 + 0.1 * z**4 * math.sin(x)


def g(point: dict[str, float]) -> float:
    """Sobol's g-function with weights 0, 1, 4.5, 9, 99."""
    return math.prod((abs(4 * x - 2) + a) / (1 + a) for x, a in zip(point.values(), (0, 1, 4.5, 9, 99), strict=True))


def known_of_g() -> tuple[list[float], list[float]]:
    alone = [1 / 3 / (1 + a) ** 2 for a in (0, 1, 4.5, 9, 99)]
    whole = math.prod(1 + v for v in alone) - 1
    return [v / whole for v in alone], [v * (1 + whole) / (1 + v) / whole for v in alone]


@pytest.mark.parametrize(("function", "space", "main", "total"), [
    (ishigami, floats(3, -math.pi, math.pi), [0.314, 0.442, 0.0], [0.558, 0.442, 0.244]),
    (g, floats(5), *known_of_g())])
def test_shares_of_known_functions(function: Callable[[dict[str, Any]], float], space: dict[str, Any],
                                   main: list[float], total: list[float]) -> None:
    said = indices.of(Belief.of(measured(space, function, 160)), None, True)
    rows = {row["param"]: row for row in said["params"]}
    assert [rows[f"x{j}"]["main"]["value"] for j in range(len(space))] == pytest.approx(main, abs=0.06)
    assert [rows[f"x{j}"]["total"]["value"] for j in range(len(space))] == pytest.approx(total, abs=0.06)
    assert said["pairs"][0]["params"] == (["x0", "x2"] if len(space) == 3 else ["x0", "x1"])
    for row in rows.values():
        assert row["total"]["low"] <= row["total"]["value"] <= row["total"]["high"]


def test_values_whose_squares_are_beyond_all_numbers_have_the_same_shares() -> None:
    space = floats(2)
    plain = indices.of(Belief.of(measured(space, lambda at: at["x0"] + 0.2 * at["x1"], 24)), None, False)
    huge = indices.of(Belief.of(measured(space, lambda at: 1e290 * (at["x0"] + 0.2 * at["x1"]), 24)), None, False)
    for one, other in zip(plain["params"], huge["params"], strict=True):
        assert other["param"] == one["param"]
        assert other["total"]["value"] == pytest.approx(one["total"]["value"], abs=0.01)
    assert huge["spread"]["value"] == pytest.approx(1e290 * plain["spread"]["value"], rel=0.01)


def test_what_has_no_weight_can_be_dropped_and_costs_nothing() -> None:
    problem = measured(floats(4), lambda point: (point["x0"] - 0.3) ** 2 + point["x2"], 60)
    belief = Belief.of(problem)
    drop = indices.of(belief, None, False)["droppable"]
    assert set(drop["params"]) == {"x1", "x3"}
    lost = indices.loss(belief, drop["params"], belief.encode([{"x0": 0.3, "x1": 0.9, "x2": 0.0, "x3": 0.1}]))
    assert lost["value"] < 0.03
    assert indices.loss(belief, ["x2"], belief.encode([{"x0": 0.3, "x1": 0.9, "x2": 0.9, "x3": 0.1}]))["value"] > 0.5


CONDITIONAL = {"kind": {"type": "categorical", "choices": ["a", "b", "c", "d"]},
               "deep": {"type": "float", "low": 0, "high": 1, "when": {"kind": "a"}},
               "ghost": {"type": "float", "low": 0, "high": 1, "when": {"kind": "b"}}}


def test_a_conditional_parameter_counts_where_it_is_active() -> None:
    problem = measured(CONDITIONAL, lambda point: 4 * point.get("deep", 0.5) + (point["kind"] == "c") * 0.5, 120)
    belief = Belief.of(problem)
    rows = {row["param"]: row for row in indices.of(belief, None, False)["params"]}
    assert rows["deep"]["active"] == pytest.approx(0.25, abs=0.01)
    assert rows["deep"]["within"]["value"] > 0.95
    assert rows["deep"]["total"]["value"] < rows["deep"]["within"]["value"]
    assert rows["ghost"]["total"]["value"] < 0.02
    U = inside(belief.cube, belief.design(1, 64, 3), belief.cube.names.index("deep"))
    assert belief.cube.active(U)[:, belief.cube.names.index("deep")].all()
    said = effect.one(belief, "deep")
    assert said["active"] == pytest.approx(0.25, abs=0.01)
    assert said["mean"][-1] - said["mean"][0] == pytest.approx(4.0, abs=0.4)
    assert all(low <= mean <= high for low, mean, high in zip(said["low"], said["mean"], said["high"], strict=True))


def test_credit_adds_up_and_the_path_ends_at_the_winner() -> None:
    weights = (3.0, 2.0, 1.0, 0.0)
    belief = Belief.of(measured(floats(4), lambda point: math.fsum(
        w * x for w, x in zip(weights, point.values(), strict=True)), 60))
    start, end = np.full((1, 4), 0.5), np.zeros((1, 4))
    values = belief.values(np.vstack([start, end]))
    said = credit.shapley(belief, start, end)
    assert [row["param"] for row in said["params"]][:3] == ["x0", "x1", "x2"]
    total = math.fsum(row["gain"]["value"] for row in said["params"])
    assert total == pytest.approx(float(values[0, 0] - values[1, 0]))
    assert [row["gain"]["value"] for row in said["params"]] == pytest.approx([1.5, 1.0, 0.5, 0.0], abs=0.15)
    by_orders = credit._by_orders(belief, start, end, [0, 1, 2, 3])
    by_subsets = credit._by_subsets(belief, start, end, [0, 1, 2, 3])
    assert [float(gain[0]) for gain in by_orders] == pytest.approx([float(gain[0]) for gain in by_subsets], abs=0.05)
    path = credit.ablation(belief, start, end)
    assert [step["param"] for step in path][:3] == ["x0", "x1", "x2"]
    assert path[-1]["value"]["value"] == pytest.approx(float(values[1, 0]))


def test_paths_have_the_mean_and_the_spread_of_the_posterior() -> None:
    belief = Belief.of(measured(floats(2), lambda point: math.sin(6 * point["x0"]) + point["x1"], 12))
    U = np.array([[0.05, 0.95], [0.5, 0.5], [0.97, 0.02]])
    drawn = belief.latent(U)
    X = belief.posterior.design.features(U)
    assert drawn[:, 0] == pytest.approx(belief.posterior.predict(X)[0], abs=1e-6)
    means, variances = map(np.array, zip(*(group.posterior.predict(X) for group in belief._groups), strict=True))
    spread = np.sqrt(variances.mean(axis=0) + means.var(axis=0))        # of models at several hyperparameters
    assert drawn[:, 1:].mean(axis=1) == pytest.approx(means.mean(axis=0), abs=0.5 * float(spread.max()) + 0.02)
    assert drawn[:, 1:].std(axis=1) == pytest.approx(spread, rel=0.5, abs=0.02)
    assert np.all(means.std(axis=0) > 0)


def test_an_interval_holds_its_value_in_the_middle_unless_it_meets_an_end() -> None:
    paths = np.linspace(0.2, 0.3, 101)
    assert indices.share(np.concatenate([[0.2], paths])) == {"value": 0.2, "low": 0.105, "high": 0.295}
    assert indices.share(np.concatenate([[0.05], paths]))["low"] == 0.0


def test_success_has_an_importance_of_its_own() -> None:
    problem = measured(floats(3), lambda point: None if point["x1"] > 0.6 else point["x0"], 60)
    assert indices.of(Belief.of_success(problem), None, False)["params"][0]["param"] == "x1"
    assert indices.of(Belief.of(problem), None, False)["params"][0]["param"] == "x0"
    with pytest.raises(NothingToSay, match="no trial has failed"):
        Belief.of_success(measured(floats(1), lambda point: point["x0"], 8))
    with pytest.raises(NothingToSay, match="too few"):
        Belief.of(measured(floats(1), lambda point: point["x0"], 3))


def facts(trials: list[Fact], **space: Any) -> Facts:
    best = min((fact for fact in trials if fact.value is not None), key=lambda fact: fact.value or 0.0)
    return Facts("s", Space.model_validate(space or floats(1)), True, False, tuple(trials), best.trial)


def quiet(count: int = 24) -> list[Fact]:
    """Trials of which nothing is to be said."""
    return [Fact(i + 1, {"x0": (i + 0.5) / count}, abs((i + 0.5) / count - 0.5), False, f"w{i % 2}", 10.0)
            for i in range(count)]


def codes(found: Facts) -> list[str]:
    return [warning.code for warning in warnings.of(found)]


def test_warnings_are_said_where_there_is_reason_and_nowhere_else() -> None:
    plain = quiet()
    assert codes(facts(plain)) == []
    edge = [Fact(f.trial, f.params, f.params["x0"], f.failed, f.worker, f.seconds) for f in plain]      # type: ignore[arg-type]
    edge.append(Fact(25, {"x0": 0.0}, -1.0, False, "w0", 10.0))
    (said,) = warnings.of(facts(edge))
    assert (said.code, said.numbers["end"], said.numbers["suggested"]) == ("winner-on-boundary", "low", -0.5)
    assert codes(facts([f for f in plain if f.params["x0"] < 0.6])) == ["range-never-explored"]     # type: ignore[operator]
    failing = [Fact(f.trial, f.params, None if f.trial > 18 else f.value, f.trial > 18, f.worker, f.seconds)
               for f in plain]
    assert "failures-clustered" in codes(facts(failing))
    chance = [Fact(f.trial, f.params, None if f.trial % 4 == 0 else f.value, f.trial % 4 == 0, f.worker, f.seconds)
              for f in plain]
    assert "failures-clustered" not in codes(facts(chance))
    slow = [Fact(f.trial, f.params, f.value, False, f.worker, 10.0 + f.trial / 100 + 20 * (f.worker == "w1"))
            for f in plain]
    assert codes(facts(slow)) == ["worker-slower"]
    lying = [Fact(f.trial, f.params, (f.value or 0) + 0.5 * (f.worker == "w1"), False, f.worker, 10.0) for f in plain]
    assert "worker-differs" in codes(facts(lying))
    long = [*plain[:-1], Fact(24, plain[-1].params, 0.4, False, "w1", 1000.0)]
    assert codes(facts(long)) == ["durations-explode"]
    assert codes(facts(plain[:4])) == ["few-trials"]
    again = [*plain, *(Fact(30 + i, {"x0": 0.3}, 0.2, False, "w0", 10.0) for i in range(5))]
    assert codes(facts(again)) == ["duplicates"]


def test_leaders_within_the_noise() -> None:
    rng = np.random.default_rng(1)
    noise = rng.uniform(size=60)
    problem = measured(floats(1), lambda point: float(noise[int(point["x0"] * 59)]), 60)
    trials = [Fact(seen.trial, seen.params, seen.values and seen.values[0], False, "w", 1.0)  # type: ignore[arg-type]
              for seen in problem.history]
    assert "noise-exceeds-differences" in [w.code for w in warnings.of(facts(trials), Belief.of(problem))]


@pytest.mark.parametrize(("count", "lines"), [(0, []), (2, ["w0", "w1", "more: bayesd study warnings s"]),
                                              (5, ["w0", "w1", "w2", "more (2): bayesd study warnings s"])])
def test_three_warnings_stand_in_short_and_where_the_rest_is(count: int, lines: list[str]) -> None:
    assert list(brief("s", [{"text": f"w{i}", "code": "c"} for i in range(count)])) == lines
