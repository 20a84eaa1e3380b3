"""Constraints between parameters: `batch * units <= 65536`, `dropout == 0 or layers > 1`.

A constraint is an expression over the names of parameters that is true or false at a point. Python's
`ast` reads it, a small tree of our own keeps it, and nothing is ever executed. The language:

    numbers, "text", true false null, names; `odd-name` in backticks when a name is no plain word
    + - * / // % **    min max abs log log2 log10 sqrt exp
    < <= > >= == !=, chained too; in (a, b), not in; and, or, not, parentheses

Arithmetic is that of 64-bit floats, integers included, so that columns of values give the very same
answer as single ones. Truth has three values. What has no finite value (a division by zero, the
logarithm of a negative number, an overflow) makes its comparison *unknown*; `unknown or true` is true,
`unknown and false` is false, `not unknown` stays unknown, and a constraint that is unknown does not
hold: the answer never depends on the order in which a constraint was written.

A point has its active parameters only, and a constraint that names an inactive one holds.

Logs hold constraints for ever, so the language may grow and never shrink.
"""

import ast
import difflib
import itertools
import keyword
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Literal, NoReturn, TypeAlias

from bayesd_schemas.names import NUMBER_MAX
from bayesd_schemas.space import FLOAT_LEVELS, FloatParameter, IntParameter, Parameter, Params, Space, Value, typed

LENGTH_MAX = 1000       # characters of a constraint
DEPTH_MAX = 100         # of its tree
STEPS_MAX = 500         # in its tree; a chain reads its middle twice, and chains may stand in chains
EXPONENT_MAX = 1024     # of ** when it is written as a number
DRAWS_MAX = 10_000      # points drawn to see that constraints can hold
DRAWN_MAX = 100_000     # values drawn for them: a study is opened between two messages
JUDGED_MAX = 500_000    # steps of constraints taken for them, for the same reason

Kind = Literal["number", "truth", "choice"]
Truth: TypeAlias = int
"""1 true, -1 false, 0 unknown: `and` is the minimum, `or` the maximum, `not` the negative."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step: a `value`, a `name`, or an operation on what its arguments give."""

    op: str
    kind: Kind
    args: tuple["Node", ...] = ()
    value: Value = None
    """The constant of a `value`, the parameter of a `name`."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint that was read against a space."""

    text: str
    names: tuple[str, ...]
    """The parameters that it names."""
    root: Node
    steps: int = 1
    """How much work it is to judge a point."""

    def holds(self, params: Params) -> bool:
        """True at a point that this constraint allows; `params` are the active parameters."""
        if any(name not in params for name in self.names):
            return True
        truth: Truth = _evaluate(self.root, params)
        return truth > 0


def broken(constraints: Sequence[Constraint], params: Params) -> Constraint | None:
    """The first constraint that does not hold at a point, or None."""
    return next((constraint for constraint in constraints if not constraint.holds(params)), None)


def check(constraints: Sequence[Constraint], params: Params) -> None:
    """Raise ValueError, in words for the sender, when a point breaks a constraint."""
    constraint = broken(constraints, params)
    if constraint is not None:
        here = ", ".join(f"{name} = {params[name]!r}" for name in constraint.names)
        raise ValueError(f'constraint "{constraint.text}" does not hold at {here}')


def parse(texts: Sequence[str], space: Space) -> tuple[Constraint, ...]:
    """Read constraints. Raises ValueError in words for the person who wrote them."""
    return tuple(_Reader(text, space).constraint() for text in texts)


# ---------------------------------------------------------------- what the steps mean

NUMBERS: dict[str, Callable[..., float]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "//": lambda a, b: a // b, "%": lambda a, b: a % b,
    "**": math.pow,          # the operator gives complex numbers for roots of negative ones
    "negative": lambda a: -a, "min": min, "max": max, "abs": abs, "sqrt": math.sqrt, "exp": math.exp,
    "log": math.log, "log2": math.log2, "log10": math.log10,
}
FUNCTIONS = ("min", "max", "abs", "log", "log2", "log10", "sqrt", "exp")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
}


def number(op: str, *values: float) -> float:
    """One step of arithmetic; NaN where it has no finite value."""
    if any(value != value for value in values):
        return math.nan          # min and max would look past it
    try:
        made = NUMBERS[op](*values)
    except (ValueError, ZeroDivisionError, OverflowError):
        return math.nan
    return made if math.isfinite(made) else math.nan


def same(a: Value, b: Value) -> bool:
    """Equality of choices. Types count: 1 is not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _evaluate(node: Node, params: Params) -> Any:
    """A float, a Truth or a choice, by the node's kind."""
    if node.op == "name":
        return _read(node.kind, params[str(node.value)])
    if node.op == "value":
        return node.value
    values = [_evaluate(each, params) for each in node.args]
    if node.kind == "number":
        return number(node.op, *values)
    if node.op in _COMPARE:
        a, b = values
        return 0 if a != a or b != b else 1 if _COMPARE[node.op](a, b) else -1
    if node.op == "and":
        return min(values)
    if node.op == "or":
        return max(values)
    if node.op == "not":
        return -values[0]
    if node.op == "alike":       # of two truths, each 1, 0 or -1
        return values[0] * values[1]
    assert node.op == "same"
    return 1 if same(*values) else -1


def _read(kind: Kind, value: Value) -> Any:
    """A parameter's value as its kind; one of an earlier space that has another type is no number."""
    if kind == "number":
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if kind == "truth":
        return 1 if value is True else -1 if value is False else 0
    return value


# ---------------------------------------------------------------- reading

_PIECES = re.compile(r"""(?P<text>"[^"]*"|'[^']*')|(?P<name>`[^`]*`)|(?P<code>[^"'`]+)|(?P<open>.)""", re.DOTALL)
_FOREIGN = re.compile(r"[^A-Za-z0-9_\s.,()\[\]+\-*/%<>=!]")
_INSTEAD = {"&": "and", "|": "or", "^": "**", "~": "not", "{": "(", "}": ")"}
# Python would read 0x10, 1_000 and 2j as numbers, and warn of 1or.
_GLUED = re.compile(r"(?<![A-Za-z0-9_.])(?>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?=[A-Za-z_])")
_STAND_IN = "ø"         # begins the names that stand for quoted pieces; no piece of code may hold it
_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**"}
_ORDER: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


class _Reader:
    """Turns one text into a tree, or says what is wrong with it."""

    def __init__(self, text: str, space: Space) -> None:
        self._text = text.strip()
        self._space = space
        self._quoted: list[tuple[Literal["text", "name"], str]] = []
        self._names: dict[str, None] = {}
        self._steps = 0

    def constraint(self) -> Constraint:
        if len(self._text) > LENGTH_MAX:
            self._wrong(f"is longer than {LENGTH_MAX} characters; split it at its ands into several constraints")
        code = self._code()
        if not code:
            self._wrong("is empty; take it out")
        try:
            tree = ast.parse(code, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            words = error.msg if isinstance(error, SyntaxError) else "it is nested too deep"
            equals = "; equality is written ==" if re.search(r"(?<![<>=!])=(?!=)", code) else ""
            self._wrong(f"is not an expression ({words}){self._odd() or equals}; "
                        'for example "batch * units <= 65536" or "dropout == 0 or layers > 1"')
        root = self._truth(tree.body, 1)
        if not self._names:
            self._wrong("names no parameter, so it is the same at every point; take it out")
        return Constraint(self._text, tuple(self._names), root, self._steps)

    def _wrong(self, words: str) -> NoReturn:
        shown = self._text if len(self._text) <= 100 else self._text[:97] + "..."
        raise ValueError(f'"{shown}" {words}')

    def _code(self) -> str:
        """The text with a plain name in place of every quoted piece, so that Python reads no quotes."""
        out = []
        for piece in _PIECES.finditer(self._text):
            kind, part = piece.lastgroup, piece[0]
            if kind == "open":
                self._wrong(f"has a {part} that is not closed")
            elif kind == "code":
                if found := _FOREIGN.search(part):
                    better = f"; write {_INSTEAD[found[0]]}" if found[0] in _INSTEAD else ""
                    self._wrong(f"has {found[0]!r}, which is no part of a constraint{better}")
                if found := _GLUED.search(part):
                    self._wrong(f"has letters right after {found[0]}; "
                                "numbers are written as 1000, 0.5 or 1e-3, with a space behind")
                out.append(re.sub(r"\s+", " ", part))
            else:
                out.append(f" {_STAND_IN}{len(self._quoted)} ")
                self._quoted.append(("text" if kind == "text" else "name", part[1:-1]))
        return "".join(out).strip()

    def _odd(self) -> str:
        """A hint for names that Python does not read as one word, when the text seems to have one."""
        for name in self._space:
            if (not name.isidentifier() or keyword.iskeyword(name)) and re.search(
                    rf"(?<![\w`]){re.escape(name)}(?![\w`])", self._text):
                return f"; the parameter {name} is written in backticks, `{name}`"
        return ""

    # The kinds ------------------------------------------------------------------------------

    def _number(self, node: ast.expr, depth: int) -> Node:
        made = self._node(node, depth)
        if made.kind == "number":
            return made
        if made.op == "name":
            self._wrong(f"calculates with {made.value}, which is not a number; "
                        f"compare it with ==, != or in: {self._choices(made)}")
        self._wrong("calculates with what is not a number; quotes are for choices, and a comparison gives yes or no")

    def _truth(self, node: ast.expr, depth: int) -> Node:
        made = self._node(node, depth)
        if made.kind == "truth":
            return made
        if made.kind == "number":
            self._wrong("has a number where a comparison should stand, for example layers > 1")
        self._wrong("has a choice where a comparison should stand" + (
            f'; compare it with ==, != or in: {self._choices(made)}' if made.op == "name" else ""))

    def _choices(self, node: Node) -> str:
        choices = getattr(self._space[str(node.value)], "choices", [])
        return ", ".join(map(_shown, choices[:20])) + (", ..." if len(choices) > 20 else "")

    # The nodes ------------------------------------------------------------------------------

    def _node(self, node: ast.expr, depth: int) -> Node:
        self._steps += 1
        if self._steps > STEPS_MAX:
            self._wrong(f"has more than {STEPS_MAX} steps; split it at its ands into several constraints")
        if depth > DEPTH_MAX:
            self._wrong(f"is nested deeper than {DEPTH_MAX} steps; split it into several constraints")
        below = depth + 1
        match node:
            case ast.Constant(value=value):
                return self._constant(value)
            case ast.Name(id=id):
                return self._name(id)
            case ast.BoolOp(op=op, values=values):
                return Node("and" if isinstance(op, ast.And) else "or", "truth",
                            tuple(self._truth(each, below) for each in values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Node("not", "truth", (self._truth(operand, below),))
            case ast.UnaryOp(op=op, operand=operand):
                of = self._number(operand, below)
                if isinstance(op, ast.UAdd):
                    return of
                if of.op == "value":
                    assert isinstance(of.value, float)
                    return Node("value", "number", value=-of.value)
                return Node("negative", "number", (of,))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                a, b = self._number(left, below), self._number(right, below)
                if isinstance(op, ast.Pow) and isinstance(b.value, float) and abs(b.value) > EXPONENT_MAX:
                    self._wrong(f"has an exponent beyond {EXPONENT_MAX}")
                return Node(_BINARY[type(op)], "number", (a, b))
            case ast.Call():
                return self._call(node, below)
            case ast.Compare():
                return self._comparison(node, below)
            case ast.Attribute() | ast.Subscript():
                self._wrong(f"has a dot or brackets behind a name, which is no part of a constraint{self._odd()}")
            case ast.Tuple() | ast.List():
                self._wrong("has a list; a list stands only after in, for example kernel in (\"rbf\", \"poly\")")
            case ast.IfExp():
                self._wrong("has an if; write it with and, or, not")
        self._wrong("has something that is no part of a constraint; there are numbers, names, + - * / // % **, "
                    f"comparisons, and, or, not, in (...) and {', '.join(FUNCTIONS)}")

    def _constant(self, value: Any) -> Node:
        if isinstance(value, bool):
            return Node("value", "truth", value=1 if value else -1)
        if isinstance(value, (int, float)):
            if value > NUMBER_MAX:
                self._wrong(f"has a number beyond {NUMBER_MAX:g}")
            return Node("value", "number", value=float(value))
        if value is None:
            return Node("value", "choice", value=None)
        self._wrong("has three dots, which is no part of a constraint")

    def _name(self, id: str) -> Node:
        if id.startswith(_STAND_IN):
            kind, piece = self._quoted[int(id[len(_STAND_IN):])]
            if kind == "text":
                return Node("value", "choice", value=piece)
            id = piece
        elif id in _WORDS and id not in self._space:
            return self._constant(_WORDS[id])
        if id not in self._space:
            known = list(self._space)
            near = difflib.get_close_matches(id, known, n=1)
            hint = self._odd()
            if not hint and any(id in getattr(parameter, "choices", ()) for _, parameter in self._space.items()):
                hint = f'; a choice stands in quotes, "{id}"'
            if not hint:
                hint = f"; did you mean {near[0]}?" if near else "; there are " + ", ".join(
                    [*known[:20], *(["..."] if len(known) > 20 else [])])
            self._wrong(f"names {id}, which is not in the space{hint}")
        self._names[id] = None
        return Node("name", _kind(self._space[id]), value=id)

    def _call(self, node: ast.Call, depth: int) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            called = name if name and not name.startswith(_STAND_IN) else "something else"
            self._wrong(f"calls {called}; the functions are {', '.join(FUNCTIONS)}")
        several = name in ("min", "max")
        if node.keywords or any(isinstance(each, ast.Starred) for each in node.args) or (
                len(node.args) < 2 if several else len(node.args) != 1):
            self._wrong(f"calls {name}, which takes {'two numbers or more' if several else 'one number'}"
                        + (", for example log(x) / log(3) for another base" if name == "log" else ""))
        return Node(name, "number", tuple(self._number(each, depth) for each in node.args))

    def _comparison(self, node: ast.Compare, depth: int) -> Node:
        """One comparison, or a chain of them: a < b < c is a < b and b < c."""
        parts = []
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                of = self._node(left, depth)
                if of.kind == "truth" and of.op != "name":
                    self._wrong("asks whether a comparison is in a list; write the comparison, or not (...)")
                # One value in parentheses is no tuple to Python, and means the same.
                elements = right.elts if isinstance(right, (ast.Tuple, ast.List)) else [right]
                values = [self._node(each, depth) for each in elements]
                if not values or any(value.op != "value" for value in values):
                    self._wrong('needs values after in, for example kernel in ("rbf", "poly")')
                part = Node("or", "truth", tuple(self._equal(of, value) for value in values))
            elif isinstance(op, (ast.Eq, ast.NotEq)):
                part = self._equal(self._node(left, depth), self._node(right, depth))
            elif type(op) in _ORDER:
                part = Node(_ORDER[type(op)], "truth", (self._number(left, depth), self._number(right, depth)))
            else:
                self._wrong("has is; write == or !=")
            if isinstance(op, (ast.NotIn, ast.NotEq)):
                part = Node("not", "truth", (part,))
            parts.append(part)
            left = right
        return parts[0] if len(parts) == 1 else Node("and", "truth", tuple(parts))

    def _equal(self, a: Node, b: Node) -> Node:
        self._possible(a, b)
        self._possible(b, a)
        if a.kind == b.kind:
            return Node({"number": "==", "truth": "alike", "choice": "same"}[a.kind], "truth", (a, b))
        # A parameter of mixed choices may be equal to a number or a truth value that stands there.
        if any(of.op == "name" and of.kind == "choice" and other.op == "value" for of, other in ((a, b), (b, a))):
            return Node("same", "truth", (_plain(a), _plain(b)))
        self._wrong(f"compares {_words(a)} with {_words(b)}, which are never equal")

    def _possible(self, of: Node, constant: Node) -> None:
        """Refuse a comparison with what is not among the choices: it is a slip of the pen."""
        if of.op != "name" or constant.op != "value":
            return
        parameter, value = self._space[str(of.value)], _plain(constant).value
        if not isinstance(parameter, (FloatParameter, IntParameter)) and not parameter.contains(value):
            self._wrong(f"compares {of.value} with {_shown(value)}, which it never is; "
                        f"it is one of {self._choices(of)}")


def _kind(parameter: Parameter) -> Kind:
    """Choices that are all numbers are numbers, whether they have an order or not."""
    if isinstance(parameter, (FloatParameter, IntParameter)):
        return "number"
    if all(isinstance(choice, bool) for choice in parameter.choices):
        return "truth"
    if all(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in parameter.choices):
        return "number"
    return "choice"


def _plain(node: Node) -> Node:
    """A constant as the choice that it may be equal to."""
    if node.op == "value" and node.kind == "truth":
        return Node("value", "choice", value=node.value == 1)
    return node


def _shown(value: Value) -> str:
    if isinstance(value, str):
        return f"'{value}'" if '"' in value else f'"{value}"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(node: Node) -> str:
    if node.op == "name":
        return str(node.value)
    if node.op == "value":
        return _shown(_plain(node).value)
    return {"number": "a number", "truth": "a comparison", "choice": "a choice"}[node.kind]


# ---------------------------------------------------------------- whether they can hold


def require_possible(constraints: Sequence[Constraint], space: Space, *, grid: bool) -> None:
    """Raise ValueError when no point seems to satisfy the constraints.

    A space of few points is looked at in full. From any other, points are drawn as a sampler would
    draw them (`grid`: from the levels of method grid) by hashes of their numbers: the answer is the
    same on every machine that calculates alike. Of constraints that take very many steps fewer points
    are judged, and what nobody has looked through is not called impossible.
    """
    if not constraints:
        return
    held = [False] * len(constraints)
    points, whole = _points(constraints, space, grid)
    most = JUDGED_MAX // sum(constraint.steps for constraint in constraints)
    count = 0
    for params in points:
        count += 1
        here = [constraint.holds(params) for constraint in constraints]
        if all(here) or count > most:
            return
        held = [a or b for a, b in zip(held, here, strict=True)]
    where = "no point of the space satisfies" if whole else f"none of {count} points drawn from the space satisfies"
    never = [constraint.text for constraint, any_ in zip(constraints, held, strict=True) if not any_]
    why = f'"{never[0]}" holds at none of them' if never else "each holds at some of them, never all at one"
    raise ValueError(f"{where} the constraints: {why}; widen the space or loosen a constraint"
                     + ("" if whole else ", and write an equality of real numbers as a range"))


def _points(constraints: Sequence[Constraint], space: Space, grid: bool) -> tuple[Iterator[dict[str, Any]], bool]:
    """Points over the parameters that matter to the constraints, and whether these are all."""
    wanted = {name for constraint in constraints for name in constraint.names}
    order = space.ordered()
    for name in reversed(order):         # children stand behind their parents
        if name in wanted:
            wanted.update(parent for parent, _ in space[name].conditions())
    names = [name for name in order if name in wanted]
    sizes = [_size(space[name], grid) for name in names]
    count = max(1000, min(DRAWS_MAX, DRAWN_MAX // len(names)))
    whole = all(sizes) and math.prod(sizes) <= count

    def all_points() -> Iterator[dict[str, Any]]:
        for cells in itertools.product(*map(range, sizes)):
            yield _active(space, names, [
                _cell(space[name], cell, size, grid)
                for name, cell, size in zip(names, cells, sizes, strict=True)])

    def drawn() -> Iterator[dict[str, Any]]:
        for i in range(count):
            values = []
            for name, size in zip(names, sizes, strict=True):
                u = int.from_bytes(blake2b(f"{i}/{name}".encode(), digest_size=8).digest(), "little") / 2**64
                values.append(_cell(space[name], min(int(u * size), size - 1), size, grid) if size
                              else _real(space[name], u))
            yield _active(space, names, values)

    return (all_points() if whole else drawn()), whole


def _active(space: Space, names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if space.is_active(name, out):
            out[name] = value
    return out


def _size(parameter: Parameter, grid: bool) -> int:
    """How many values a parameter has here; 0 when they are drawn from its scale."""
    if isinstance(parameter, FloatParameter):
        if parameter.step is not None:
            low, high, step = (Decimal(repr(each)) for each in (parameter.low, parameter.high, parameter.step))
            return math.floor((high - low) / step + Decimal("1e-9")) + 1
        return (parameter.levels or FLOAT_LEVELS) if grid else 0
    if isinstance(parameter, IntParameter):
        whole = (parameter.high - parameter.low) // (parameter.step or 1) + 1
        if grid and parameter.levels is not None and parameter.levels < whole:
            return parameter.levels
        # On a curved scale the small values of a wide range come up far more often than each in its turn.
        return whole if parameter.scale == "linear" or whole <= 1000 else 0
    return len(parameter.choices)


def _cell(parameter: Parameter, cell: int, size: int, grid: bool) -> Any:
    if isinstance(parameter, FloatParameter):
        if parameter.step is None:
            return parameter.low if cell == 0 else parameter.high if cell == size - 1 else _real(
                parameter, cell / (size - 1))
        return min(float(Decimal(repr(parameter.low)) + cell * Decimal(repr(parameter.step))), parameter.high)
    if isinstance(parameter, IntParameter):
        if grid and size == parameter.levels:
            return _real(parameter, cell / (size - 1))
        return parameter.low + cell * (parameter.step or 1)
    return parameter.choices[cell]


def _real(parameter: Parameter, u: float) -> Any:
    """The value at a unit coordinate, on the scale of a range."""
    assert isinstance(parameter, (FloatParameter, IntParameter))
    low, high = float(parameter.low), float(parameter.high)
    if parameter.scale == "log":
        a = math.log(low)
        value = float(f"{math.exp(a + (math.log(high) - a) * u):.12g}")
    elif parameter.scale == "power":
        value = float(f"{low + (high - low) * u**parameter.exponent:.12g}")
    else:
        value = low + (high - low) * u
    value = min(max(value, low), high)
    return typed(parameter, value if isinstance(parameter, FloatParameter) else math.floor(value + 0.5))
