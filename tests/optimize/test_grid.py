"""The grid: every distinct active combination once, by number, without a list."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bayesd.optimize import cells, suggest
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Space


def fresh(space: Space) -> Problem:
    return Problem(space, ("minimize",), "grid", 1, True, 1, 0)


def brute(space: Space) -> set[str]:
    """All active combinations, the slow way."""
    values = [list(of.choices) if of.type in ("categorical", "ordinal")
              else list(range(int(of.low), int(of.high) + 1)) for _, of in space.items()]  # type: ignore[union-attr]
    return {key(space.active(dict(zip(space, row, strict=True)))) for row in itertools.product(*values)}


def key(params: Any) -> str:
    return repr(sorted(params.items()))


@st.composite
def small_spaces(draw: st.DrawFn) -> Space:
    """Up to six small discrete parameters with conditions on earlier ones, listed in any order."""
    out: dict[str, Any] = {}
    sizes: list[int] = []
    for i in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, 4))
        of: dict[str, Any] = ({"type": "int", "low": 0, "high": size} if draw(st.booleans())
                              else {"type": "categorical", "choices": list(range(size + 1))})
        parents = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        if parents:
            of["when"] = {f"p{j}": draw(st.lists(st.integers(0, sizes[j]), min_size=1, max_size=2, unique=True))
                          for j in parents}
        out[f"p{i}"] = of
        sizes.append(size)
    names = draw(st.permutations(list(out)))
    return Space.model_validate({name: out[name] for name in names})


@settings(deadline=None)       # a busy machine is not a bug
@given(small_spaces())
def test_every_active_combination_exactly_once(space: Space) -> None:
    wanted = brute(space)
    for of in (cells.grid(space), cells.finite(space)):
        assert of is not None
        points = [of.at(number) for number in range(of.total)]
        assert all(space.check(params) == params for params in points)
        assert of.total == len(wanted) == len({key(params) for params in points})


def walk(problem: Problem) -> Iterator[dict[str, Any]]:
    now = problem
    while suggestion := suggest(now).proposals:
        yield dict(suggestion[0].params)
        now = replace(now, number=now.number + 1, drawn=suggestion[0].drawn, history=(
            *now.history, Observation(now.number, suggestion[0].params, (0.0,))))


@settings(deadline=None)       # a busy machine is not a bug
@given(small_spaces(), st.data())
def test_enqueued_points_are_skipped_and_voided_cells_come_back(space: Space, data: st.DataObject) -> None:
    total = cells.grid(space).total
    enqueued = tuple(cells.grid(space).at(i) for i in data.draw(st.sets(st.integers(0, total - 1), max_size=3)))
    voided = data.draw(st.sets(st.integers(0, total - 1), max_size=3))
    start = replace(fresh(space), history=tuple(Observation(i, params, None) for i, params in enumerate(enqueued)))
    first = list(itertools.islice(walk(start), 200))
    if total > 200:
        return
    assert len(first) + len(enqueued) == total
    left = tuple(o for i, o in enumerate((*start.history, *(
        Observation(10 + i, params, (1.0,)) for i, params in enumerate(first)))) if i not in voided)
    again = list(walk(replace(fresh(space), history=left, drawn=total, number=500)))
    gone = len({i for i in voided if i < total})
    assert len(again) == gone
    assert len({key(params) for params in [*again, *(o.params for o in left)]}) == total


def test_a_huge_grid_is_numbered_without_being_made() -> None:
    space = Space.model_validate({
        **{f"x{i}": {"type": "float", "low": 0, "high": 1, "levels": 1000} for i in range(5)},
        "n": {"type": "int", "low": 1, "high": 10**15},
        "k": {"type": "categorical", "choices": ["a", "b"]},
        "m": {"type": "int", "low": 0, "high": 9, "when": {"k": "b", "n": [5, 10**14]}}})
    of = cells.grid(space)
    assert of.total == 1000**5 * ((10**15 - 2) * 2 + 2 * (1 + 10))
    far = suggest(replace(fresh(space), drawn=of.total - 3), 9)
    assert len(far.proposals) == 9      # the last three, then cells that are missing from the history
    assert far.proposals[2].params == {**{f"x{i}": 1.0 for i in range(5)}, "n": 10**15, "k": "b"}
    assert far.proposals[3].params == of.at(0)


def test_many_independent_conditions_stay_cheap() -> None:
    space = Space.model_validate({
        **{f"use{i}": {"type": "categorical", "choices": [False, True]} for i in range(200)},
        **{f"x{i}": {"type": "int", "low": 1, "high": 9, "when": {f"use{i}": True}} for i in range(200)}})
    assert cells.grid(space).total == 10**200
    assert suggest(replace(fresh(space), drawn=10**200 - 1)).proposals[0].params["x199"] == 9


def test_a_thousand_children_of_one_parent() -> None:
    space = Space.model_validate({
        "use": {"type": "categorical", "choices": [False, True]},
        **{f"x{i}": {"type": "int", "low": 1, "high": 2, "when": {"use": True}} for i in range(999)}})
    assert cells.grid(space).total == 1 + 2**999


def test_floats_take_their_levels_even_on_the_scale() -> None:
    space = Space.model_validate({"x": {"type": "float", "low": 1e-4, "high": 1, "scale": "log", "levels": 5}})
    assert [p["x"] for p in walk(fresh(space))] == [1e-4, 1e-3, 1e-2, 0.1, 1.0]
    space = Space.model_validate({"x": {"type": "float", "low": 0, "high": 1}})
    assert len(list(walk(fresh(space)))) == 10
    space = Space.model_validate({"n": {"type": "int", "low": 1, "high": 64, "scale": "log", "levels": 7}})
    assert [p["n"] for p in walk(fresh(space))] == [1, 2, 4, 8, 16, 32, 64]


def test_a_condition_on_a_value_between_levels_never_holds() -> None:
    space = Space.model_validate({
        "n": {"type": "int", "low": 0, "high": 10, "levels": 3},
        "a": {"type": "categorical", "choices": ["u", "v"], "when": {"n": [5, 6]}}})
    assert [tuple(p.values()) for p in walk(fresh(space))] == [(0,), (5, "u"), (5, "v"), (10,)]
