"""Constraints on many candidates at once, and samplers that keep to them."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesd.optimize import cells, samplers, streams, suggest
from bayesd.optimize.allowed import allowed
from bayesd.optimize.encode import cube
from bayesd.study.problem import Observation, Problem, Proposal
from bayesd_schemas.constraints import broken, parse
from bayesd_schemas.space import Space

SPACE = Space.model_validate({
    "kernel": {"type": "categorical", "choices": ["rbf", "poly", "linear"]},
    "lr": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"},
    "top": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"},
    "drop": {"type": "float", "low": 0, "high": 0.9, "step": 0.1},
    "batch": {"type": "ordinal", "choices": [16, 32.5, 64]},
    "units": {"type": "int", "low": 1, "high": 4096, "scale": "log"},
    "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}},
    "mixed": {"type": "categorical", "choices": ["auto", 3, None, True]},
    "bias": {"type": "categorical", "choices": [True, False], "when": {"degree": [3, 4]}},
    "x": {"type": "float", "low": -5, "high": 5}})
SMALL = Space.model_validate({
    "a": {"type": "int", "low": 1, "high": 4}, "b": {"type": "categorical", "choices": ["x", "y", "z"]},
    "c": {"type": "ordinal", "choices": [1, 10, 100], "when": {"b": ["x", "z"]}},
    "d": {"type": "int", "low": 0, "high": 2}})


def problem(space: Space, *texts: str, method: Any = "random", repeats: bool = True, **more: Any) -> Problem:
    return Problem(space, ("minimize",), method, 7, repeats, **{"number": 1, "drawn": 0, **more},
                   constraints=parse(texts, space))


OPERATORS, COMPARE = ["+", "-", "*", "/", "//", "%", "**"], ["<", "<=", ">", ">=", "==", "!="]
NUMBERS = st.recursive(
    st.sampled_from(["lr", "top", "drop", "batch", "units", "degree", "x", "0", "1", "2.5", "-3"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(lambda each: f"({' '.join(each)})"),
        st.tuples(st.sampled_from(["log", "log2", "log10", "sqrt", "exp", "abs", "-"]), inner).map(
            lambda each: f"{each[0]}({each[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner, inner).map(
            lambda each: f"{each[0]}({', '.join(each[1:])})")), max_leaves=5)
TRUTHS = st.recursive(
    st.one_of(
        st.tuples(NUMBERS, st.sampled_from(COMPARE), NUMBERS).map(" ".join),
        st.tuples(NUMBERS, NUMBERS, NUMBERS).map(" < ".join),
        st.sampled_from(["kernel == 'rbf'", "kernel != 'poly'", "kernel in ('rbf', 'linear')", "mixed == 3",
        "mixed != null",
                         "mixed in (true, 'auto')", "mixed == kernel", "bias", "bias == false", "bias != (x > 0)",
                         "batch in (16, 64)", "drop in (0, 0.3)", "true", "units not in (1, 2, 3)"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda each: f"({' '.join(each)})"),
        inner.map(lambda each: f"(not ({each}))")), max_leaves=4)


@settings(deadline=None, max_examples=200)
@given(st.lists(TRUTHS, min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_many_at_once_are_judged_as_each_by_itself(texts: list[str], seed: int) -> None:
    now = problem(SPACE, *[f"({text}) and abs(x) <= 5" for text in texts])
    judge = allowed(now)
    assert judge is not None
    of, U = cube(SPACE), np.random.default_rng(seed).random((40, len(SPACE)))
    U[:3] = [[0.0], [0.5], [1.0]]
    assert judge(of, U).tolist() == [broken(now.constraints, params) is None for params in of.decode(U)]


def test_without_constraints_there_is_nothing_to_ask() -> None:
    assert allowed(problem(SPACE)) is None
    judge = allowed(problem(SPACE, "lr < top"))
    assert judge is not None
    assert judge(cube(SPACE), np.empty((0, len(SPACE)))).shape == (0,)


def test_a_sweep_of_candidates_takes_milliseconds() -> None:
    judge = allowed(problem(SPACE, "batch * units <= 65536", "lr < top", "drop == 0 or degree > 3"))
    assert judge is not None
    U = np.random.default_rng(0).random((1300, len(SPACE)))
    took = []
    for _ in range(5):
        began = time.perf_counter()
        judge(cube(SPACE), U)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05          # 3 ms on a quiet machine


# ---------------------------------------------------------------- the samplers


TEXTS = ("batch * units <= 20000", "lr < top", "drop == 0 or degree > 3", "kernel != 'linear' or mixed in ('auto', 3)")


def walk(now: Problem, most: int) -> Iterator[Proposal]:
    """Ask and tell one by one; every third stays pending."""
    for _ in range(most):
        suggestion = suggest(now)
        if not suggestion.proposals:
            assert suggestion.exhausted
            return
        proposal = suggestion.proposals[0]
        yield proposal
        pending, history = now.pending, now.history
        if now.number % 3:
            value = float(len(str(proposal.params)))
            history = (*history, Observation(now.number, proposal.params, None if now.number % 5 == 0 else (value,)))
        else:
            pending = (*pending, proposal.params)
        now = replace(now, number=now.number + 1, drawn=proposal.drawn, pending=pending, history=history,
                      fit=suggestion.fit or now.fit)


@pytest.mark.parametrize("repeats", [True, False])
def test_no_sampler_proposes_what_a_constraint_forbids(method: str, repeats: bool) -> None:
    now = problem(SPACE, *TEXTS, method=method, repeats=repeats)
    proposals = list(walk(now, 30))
    assert len(proposals) == 30
    for proposal in proposals:
        assert broken(now.constraints, proposal.params) is None
        assert SPACE.check(proposal.params) == proposal.params


@pytest.mark.parametrize("repeats", [True, False])
def test_one_call_for_many_equals_many_calls_for_one(method: str, repeats: bool) -> None:
    now = problem(SPACE, *TEXTS, method=method, repeats=repeats)
    together = suggest(now, 12).proposals
    one_by_one: list[Proposal] = []
    for _ in range(12):
        one_by_one += suggest(now).proposals
        now = replace(now, number=now.number + 1, drawn=one_by_one[-1].drawn,
                      pending=(*now.pending, one_by_one[-1].params))
    assert list(together) == one_by_one
    again = problem(Space.model_validate(SPACE.model_dump(exclude_unset=True)), *TEXTS, method=method, repeats=repeats)
    assert suggest(again, 12).proposals == together


@pytest.mark.parametrize(("texts", "count"), [
    (("a + d <= 3",), (3 + 2 + 1) * 7), (("b != 'x'", "c != 10"), 4 * 3 + 4 * 2 * 3),
    (("a == 1 and b == 'y' and d == 2",), 1),
    (("a < d", "c > 1"), 1 * (2 + 1 + 2)), (("a > 4",), 0), (("a > 1", "d > 0", "b == 'z'"), 3 * 2 * 3)])
def test_a_small_space_is_used_up_once_and_then_exhausted(method: str, texts: tuple[str, ...], count: int) -> None:
    proposals = list(walk(problem(SMALL, *texts, method=method, repeats=False), 200))
    points = {repr(sorted(proposal.params.items())) for proposal in proposals}
    assert len(points) == len(proposals) == count
    assert all(broken(parse(texts, SMALL), proposal.params) is None for proposal in proposals)


def test_the_allowed_cells_of_a_grid_come_in_their_order_without_holes() -> None:
    texts = ("a * d <= 4", "c != 100")
    whole = cells.grid(SMALL)
    left = [params for params in map(whole.at, range(whole.total)) if broken(parse(texts, SMALL), params) is None]
    of = cells.grid(SMALL, parse(texts, SMALL))
    assert of.sieved
    made = list(map(of.at, range(of.total)))
    assert sorted(map(repr, made)) == sorted(map(repr, left))
    assert [list(params) for params in made] == [list(SMALL.check(params)) for params in made]
    assert [proposal.params for proposal in suggest(problem(SMALL, *texts, method="grid"), 100).proposals] == made


VAST = Space.model_validate({name: {"type": "int", "low": 1, "high": 2000} for name in "abc"})


def test_a_vast_grid_is_not_listed_and_still_kept_to() -> None:
    now = problem(VAST, "a > 1999", "a + b < c", method="grid")     # a million cells of nothing come first
    assert not cells.grid(VAST, now.constraints).sieved
    none = suggest(now, 3)
    assert none.exhausted                   # there is nothing, and the search for it ends
    now = problem(VAST, "a > 1000", "a + b < c + 1500", method="grid")
    proposals = list(walk(now, 4))
    assert len(proposals) == 4
    assert [proposal.drawn for proposal in proposals] == [4096, 8192, 12288, 16384]     # and the walk goes on
    for proposal in proposals:
        assert broken(now.constraints, proposal.params) is None
    assert suggest(now, 4).proposals == tuple(walk(now, 4))


@pytest.mark.parametrize("plain", ["random", "sobol"])
def test_a_narrow_gap_is_found_and_what_is_not_there_is_not_looked_for_for_ever(plain: str) -> None:
    ordered = problem(SPACE, "2 < x < 2.002", "lr < top", method=plain)
    for proposal in suggest(ordered, 3).proposals:
        assert 2 < float(proposal.params["x"]) < 2.002  # type: ignore[arg-type]  # a float by the space
    assert len(suggest(ordered, 3).proposals) == 3
    assert suggest(problem(SPACE, "x > 5", method=plain)).exhausted


def test_random_keeps_its_allowed_points_and_draws_the_others_from_the_trials_own_stream() -> None:
    free, bound = suggest(problem(SPACE), 30).proposals, suggest(problem(SPACE, "lr < top"), 30).proposals
    moved = 0
    for a, b in zip(free, bound, strict=True):
        if a.params["lr"] < a.params["top"]:  # type: ignore[operator]  # floats by the space
            assert a == b
        else:
            moved += 1
            assert a.params != b.params
            assert a.stream == b.stream
    assert 5 < moved < 25
    later = suggest(problem(SPACE, "lr < top", number=20, drawn=19), 3).proposals
    assert later == bound[19:22]


def test_sobol_takes_the_next_of_its_sequence() -> None:
    now = problem(SPACE, "lr < top", method="sobol")
    free = [proposal.params for proposal in suggest(problem(SPACE, method="sobol"), 60).proposals]
    left = [(index, params) for index, params in enumerate(free, 1) if broken(now.constraints, params) is None]
    assert [(proposal.drawn, proposal.params) for proposal in suggest(now, 20).proposals] == left[:20]


def test_points_of_the_history_need_not_be_allowed(method: str) -> None:
    now = problem(SMALL, "a < 3", method=method, repeats=False)
    old = tuple(Observation(i, {"a": 4, "b": "y", "d": i % 3}, (float(i),)) for i in range(1, 12))
    for proposal in suggest(replace(now, history=old, number=12), 5).proposals:
        assert broken(now.constraints, proposal.params) is None


def test_a_free_cell_is_an_allowed_one() -> None:
    now = problem(SMALL, "a == 2 and d == 1")
    known = samplers.seen(now)
    found = []
    while (params := samplers.free_cell(SMALL, streams.Stream(1, 1, "t"), known, now.constraints)) is not None:
        found.append(params)
        known.add(params)
    assert len(found) == 7
    assert all(broken(now.constraints, params) is None for params in found)
