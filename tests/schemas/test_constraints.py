"""The language of constraints: what holds, what does not, and the words for what cannot be read."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bayesd_schemas import constraints
from bayesd_schemas.constraints import JUDGED_MAX, Node, parse, require_possible
from bayesd_schemas.space import Space
from bayesd_schemas.study import LOGGED, StudySpec

SPACE = Space.model_validate({
    "batch": {"type": "ordinal", "choices": [16, 32, 64]},
    "units": {"type": "int", "low": 1, "high": 4096, "scale": "log"},
    "lr": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"},
    "x": {"type": "float", "low": -5, "high": 5},
    "kernel": {"type": "categorical", "choices": ["rbf", "poly", "it's"]},
    "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}},
    "bias": {"type": "categorical", "choices": [True, False]},
    "mixed": {"type": "categorical", "choices": ["auto", 3, None, False]},
    "lambda": {"type": "float", "low": 0, "high": 1},
    "l2-norm": {"type": "float", "low": 0, "high": 1}})
POINT: dict[str, Any] = {"batch": 32, "units": 100, "lr": 0.01, "x": -2.0, "kernel": "rbf", "bias": False,
                         "mixed": "auto", "lambda": 0.5, "l2-norm": 0.25}


def one(text: str, space: Space = SPACE) -> constraints.Constraint:
    return parse([text], space)[0]


@pytest.mark.parametrize(("text", "holds"), [
    ("batch * units <= 3200", True), ("batch * units < 3200", False), ("batch * (units + 1) <= 3200", False),
    ("1 < units < 101", True), ("1 < units < 100", False), ("units == 100 != x", True),
    ("x ** 2 == 4", True), ("-x ** 2 == -4", True), ("units // 30 == 3", True), ("x % 3 == 1", True),
    ("x - -2 == 0", True),
    ("+x < 0", True), ("log10(lr) == -2", True), ("log2(batch) == 5", True), ("log(exp(x)) == x", True),
    ("sqrt(units) == 10", True), ("abs(x) == 2", True), ("min(x, batch, 0) == -2", True),
    ("max(x, batch) == batch", True),
    ("kernel == 'rbf'", True), ('kernel != "rbf"', False), ('kernel in ("poly", "rbf")', True),
    ("kernel in ('poly')", False),
    ('kernel not in ["poly"]', True), ('kernel == "it\'s"', False), ("batch in (16, 32)", True),
    ("units in (1, 2)", False),
    ("bias", False), ("not bias", True), ("bias == false", True), ("bias != (x < 0)", True), ("bias == True", False),
    ("mixed == 'auto'", True), ("mixed == 3", False), ("mixed == null", False), ("mixed in (None, false)", False),
    ("`lambda` > 0.4 and `l2-norm` <= .25", True), ("bias or lr < 1e-1 and not x > 0", True),
    ("lr\n  < 1", True), (" x<0 ", True)])
def test_what_holds_at_a_point(text: str, holds: bool) -> None:
    assert one(text).holds(POINT) is holds


@pytest.mark.parametrize("unknown", [
    "1 / (x + 2) > 0", "1 // (x + 2) > 0", "1 % (x + 2) == 0", "log(x) < 0", "log(x + 2) < 0", "sqrt(x) >= 0",
    "x ** 0.5 > 0",
    "exp(units * 100) > 0", "units ** 1000 > 0", "(x + 2) ** -1 > 0", "1e300 * 1e300 > x", "min(x, log(x)) < 0",
    "1 / (1 / (x + 2)) == 0", "log(x) != 3"])
def test_what_has_no_value_does_not_hold_and_neither_does_its_opposite(unknown: str) -> None:
    assert not one(unknown).holds(POINT)
    assert not one(f"not ({unknown})").holds(POINT)
    assert not one(f"{unknown} and batch == 32").holds(POINT)
    assert not one(f"not ({unknown}) == (batch == 32)").holds(POINT)
    for text in (f"{unknown} or batch == 32", f"batch == 32 or {unknown}", f"not ({unknown} and batch == 16)"):
        assert one(text).holds(POINT)       # the other side decides, on whichever side it stands


def test_one_that_names_an_inactive_parameter_holds() -> None:
    constraint = one("degree > 3 and units < 10")
    assert constraint.names == ("degree", "units")
    assert constraint.holds(POINT)
    assert not constraint.holds({**POINT, "kernel": "poly", "degree": 4})
    assert constraint.holds({**POINT, "kernel": "poly", "degree": 4, "units": 9})


def test_a_value_of_an_earlier_space_is_no_number() -> None:
    assert not one("units < 200").holds({"units": "many"})
    assert not one("bias or not bias").holds({"bias": "perhaps"})


OPERATORS, COMPARE = ["+", "-", "*", "/", "//", "%", "**"], ["<", "<=", ">", ">=", "==", "!="]
NUMBERS = st.one_of(st.sampled_from(["a", "b"]), st.integers(0, 9).map(str),
                    st.floats(0, 100, allow_nan=False).map(lambda x: f"{x!r}" if "e" not in repr(x) else "0.5"))
EXPRESSIONS = st.recursive(NUMBERS, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from(OPERATORS), inner).map(lambda each: f"({' '.join(each)})"),
    inner.map(lambda each: f"(-{each})"), inner.map(lambda each: f"abs({each})"),
    st.tuples(inner, inner).map(lambda each: f"max({each[0]}, {each[1]})"),
    st.tuples(st.sampled_from(["log", "sqrt", "exp"]), inner).map(lambda each: f"{each[0]}({each[1]})")), max_leaves=6)
COMPARISONS = st.tuples(EXPRESSIONS, st.sampled_from(COMPARE), EXPRESSIONS).map(" ".join)
TRUTHS = st.recursive(COMPARISONS, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda each: f"({' '.join(each)})"),
    inner.map(lambda each: f"(not {each})")), max_leaves=4)
PLANE = Space.model_validate({name: {"type": "float", "low": -10, "high": 10} for name in "ab"})


@settings(deadline=None, max_examples=300)
@given(TRUTHS, st.floats(-10, 10), st.floats(-10, 10))
def test_it_says_what_python_says_wherever_python_says_something(text: str, a: float, b: float) -> None:
    # Numbers are floats here as there: 3 // 2.0 and 7 ** 60 would differ otherwise.
    inside = {"a": a, "b": b, "abs": abs, "max": max, "log": math.log, "sqrt": math.sqrt, "exp": math.exp}
    try:
        meant = eval(text, {"__builtins__": {}}, inside)
        constraint = one(text, PLANE)
    except (ArithmeticError, ValueError, TypeError):        # TypeError: a comparison of a complex root
        assume(False)
        return
    if constraint.holds({"a": a, "b": b}):
        assert meant
    elif meant:
        # Python stops at the first side that decides, and does not look at what comes behind.
        assert not parse([f"not ({text})"], PLANE)[0].holds({"a": a, "b": b})
        parts = constraints._evaluate(constraint.root, {"a": a, "b": b})
        assert parts == 0


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(
    "ab xyz0123456789.,()[]+-*/%<>=!\"'`_\n\\#:;@&|^~{}?ø", max_size=60), TRUTHS.map(lambda text: text[1:])))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        constraint = one(text, PLANE)
    except ValueError:
        return
    assert constraint.names
    assert constraint.holds({"a": 1.0, "b": 2.0}) in (True, False)
    assert hash(constraint) == hash(one(text, PLANE))


@pytest.mark.parametrize(("text", "words"), [
    ("batch * untis <= 65536", "did you mean units?"), ("depth > 1", "there are batch, units"),
    ("kernel == rbf", 'a choice stands in quotes, "rbf"'), ('kernel == "rbff"', 'it is one of "rbf", "poly"'),
    ("batch == 48", "it is one of 16, 32, 64"), ("mixed == true", 'it is one of "auto", 3, null, false'),
    ("lambda > 0", "`lambda`"), ("l2-norm > 0", "`l2-norm`"), ("`nothing` > 0", "not in the space"),
    ("kernel < 3", "not a number"), ("kernel + 1 == 2", "not a number"), ("bias * 2 > 1", "not a number"),
    ("(x < 1) * 2 > 1", "yes or no"),
    ("x", "a comparison should stand"), ("kernel", "a comparison should stand"), ("not x", "a comparison should stand"),
    ("x and bias", "a comparison should stand"), ("x == 'rbf'", "never equal"), ("bias == 1", "never is"),
    ("mixed == x", "never equal"), ("x = 3", "written =="), ("x < 3 && bias", "write and"),
    ("x ^ 2 < 3", r"write \*\*"),
    ("x < 1or bias", "space behind"), ("x < 0x10", "space behind"), ("x < 2j", "space behind"),
    ("x < 1_000", "space behind"),
    ("x.real < 1", "dot or brackets"), ("x[0] < 1", "dot or brackets"), ("foo(x) < 1", "the functions are min, max"),
    ("__import__('os')", "the functions are min"), ("min(x) < 1", "two numbers or more"),
    ("log(x, 2) < 1", "one number"),
    ("max(*x) < 1", "two numbers"), ("abs(x=1) < 1", "one number"), ("x if bias else 1", "and, or, not"),
    ("(lambda: x)()", "':'"), ("[y for y in x]", "no part of a constraint"), ("x in ()", "needs values"),
    ("x in units", "needs values"), ("x in (1, units)", "needs values"), ("(x, 1) == 2", "only after in"),
    ("x is 3", "write =="),
    ("'rbf == kernel", "not closed"), ("x < 1 # why", "'#'"), ("x < ...", "three dots"), ("x < ø0", "'ø'"),
    ("f'{x}' == kernel", "not an expression"), ("1 < 2", "names no parameter"), ("", "empty"),
    ("x < ", "not an expression"),
    ("x < 1e999", "beyond"), ("x < " + "9" * 400, "beyond"), ("x ** 2000 < 1", "exponent"),
    ("x ** -2000 < 1", "exponent"),
    ("x < " + "(" * 300 + "1" + ")" * 300, "not an expression"), ("x < " + "-" * 900 + "1", "deeper than 100"),
    ("+".join(["x"] * 150) + " < 1", "deeper than 100"), ("x < 1" + " " * 1000 + "and bias", "longer than 1000")])
def test_what_cannot_be_read_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        one(text)


def test_quoted_text_is_taken_as_it_stands() -> None:
    space = Space.model_validate({"path": {"type": "categorical", "choices": ["C:\\d", "é"]}})
    assert one(r'path == "C:\d"', space).holds({"path": "C:\\d"})        # a backslash is itself
    assert one('path == "é"', space).holds({"path": "é"})


# ---------------------------------------------------------------- in a study file

BASE: dict[str, Any] = {"name": "s", "space": {
    "x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1, "levels": 3},
    "n": {"type": "int", "low": 1, "high": 1000}, "k": {"type": "categorical", "choices": ["a", "b"]},
    "m": {"type": "int", "low": 1, "high": 9, "when": {"k": "b"}}}}


def spec(*texts: str, **more: Any) -> StudySpec:
    return StudySpec.model_validate({**BASE, "constraints": list(texts), **more})


def test_a_study_reads_its_constraints_once() -> None:
    study = spec("x < y", "n * m <= 40")
    assert [constraint.names for constraint in study.constrained] == [("x", "y"), ("n", "m")]
    assert study.constrained is study.constrained
    assert study == spec("x < y", "n * m <= 40") != spec("x < y")
    assert "constraints" not in StudySpec.model_validate(BASE).model_dump(exclude_unset=True)


@pytest.mark.parametrize(("texts", "more", "words"), [
    (["x < z"], {}, "names z"), (["x < y"] * 101, {}, "at most 100"),
    (["x <" + " " * 1000 + "y"], {}, "1000 characters"),
    (["x > 2"], {}, 'none of 10000 points drawn from the space satisfies the constraints: "x > 2" holds at none'),
    (["x < y", "y < x"], {}, "each holds at some of them, never all at one"), (["x == y"], {}, "write an equality"),
    (["n > 1000"], {}, "no point of the space satisfies the constraints"),
    (["x + y < 1"], {"enqueue": [{"x": 0, "y": 0, "n": 1, "k": "a"}, {"x": 0.5, "y": 0.75, "n": 1, "k": "a"}]},
     r'enqueue, point 2: constraint "x \+ y < 1" does not hold at x = 0.5, y = 0.75')])
def test_a_study_is_refused_when_its_constraints_cannot_be_used(texts: list[str], more: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(*texts, **more)


def test_whether_constraints_can_hold_is_asked_of_the_points_that_come() -> None:
    spec("x == y or x == 1", "x != 0", method="grid")         # a grid has its levels, ends included
    with pytest.raises(ValidationError, match="holds at none"):
        spec("x == 1", method="random")
    spec("m > 8", "n > 999")                                  # m inactive: the first holds
    spec("n == 1000")                                         # one of a thousand: all are looked at
    with pytest.raises(ValidationError, match="no point of the space"):
        spec("n > 999 or n < 2", "1 < n < 999")
    assert spec("n == 500 and k == 'b' and m == 3").constrained


def test_what_a_log_accepted_is_not_judged_at_points_again() -> None:
    data = {**BASE, "constraints": ["log(x) > 0"], "enqueue": [{"x": 0.5, "y": 0.5, "n": 1, "k": "a"}]}
    with pytest.raises(ValidationError):
        StudySpec.model_validate(data)
    assert StudySpec.model_validate(data, context=LOGGED).constrained[0].text == "log(x) > 0"


def test_a_short_text_cannot_become_a_large_tree() -> None:
    space = Space.model_validate({"a": {"type": "categorical", "choices": [True, False]},
                                  "b": {"type": "categorical", "choices": [True, False]}})
    chain = member = "a == b"
    for _ in range(30):
        chain = f"b==({chain})==b"
        member = f"({member}) in (true,true)"
    for text in (chain, member):
        with pytest.raises(ValueError, match=r"steps|in a list"):
            parse([text], space)


def test_constraints_of_many_steps_do_not_hold_up_who_reads_them() -> None:
    space = Space.model_validate({f"x{i}": {"type": "float", "low": 0, "high": 1} for i in range(9)})
    text = " + ".join(f"x{i % 9}*x{(i + 1) % 9}" for i in range(90)) + " < 0"
    made = parse([text], space)
    assert made[0].steps > 300
    seen: list[int] = []

    def never(*_: object) -> int:
        seen.append(1)
        return -1

    made = tuple(replace(each, root=Node("counted", "truth")) for each in made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraints, "_evaluate", never)
        require_possible(made, space, grid=False)       # not called impossible: nobody has looked it through
    assert len(seen) * made[0].steps <= JUDGED_MAX + 2 * made[0].steps
