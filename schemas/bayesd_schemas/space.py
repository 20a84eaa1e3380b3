"""The declared search space: parameters, their scales, and when each is active.

A parameter maps the unit interval to its values (`scale`); the optimiser works in the unit
interval, everybody else sees values. A conditional parameter (`when`) is part of a
configuration only while its condition holds, so a configuration holds the *active*
parameters and nothing else.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints, model_validator

from bayesd_schemas.names import NUMBER_MAX, PARAMETER

Value: TypeAlias = str | bool | int | float | None
Params: TypeAlias = Mapping[str, Value]
"""One configuration: active parameter name -> value."""

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-NUMBER_MAX, le=NUMBER_MAX)]
Integer = Annotated[int, Field(strict=True, ge=-(2**53 - 1), le=2**53 - 1)]
Choice = Annotated[str, StringConstraints(strict=True, max_length=1024)] | bool | Integer | Finite | None
Scale = Literal["linear", "log", "power"]
When = dict[str, Choice | list[Choice]]

FLOAT_LEVELS = 10     # grid points of a float that does not say how many
STEPS_MAX = 2**53     # steps of a float that can be counted
NESTED_MAX = 100      # parents above a conditional parameter


class _Parameter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    when: When | None = Field(None, description="Active only while each named parameter has (one of) the value(s).")

    def conditions(self) -> Iterator[tuple[str, tuple[Value, ...]]]:
        """Yield (parent, the values of it that make this parameter active)."""
        for parent, wanted in (self.when or {}).items():
            yield parent, tuple(wanted) if isinstance(wanted, list) else (wanted,)


class _Range(_Parameter):
    scale: Scale = Field("linear", description="How the unit interval maps to values.")
    exponent: Annotated[float, Field(gt=0, le=16)] = Field(
        2.0, description="Scale power: value = low + (high - low) * u**exponent; above 1 it is denser near low.")
    levels: Annotated[int, Field(ge=2, le=100_000)] | None = Field(
        None, description="Method grid: this many points, even on the scale. Default 10, or every int.")

    def _check_range(self, low: float, high: float, step: float | None) -> None:
        if not low < high:
            raise ValueError(f"low must be below high, not {low!r} and {high!r}, for example low = 1, high = 10")
        if not math.isfinite(high - low):
            raise ValueError("the range from low to high is too wide for a number")
        if self.scale == "log" and low <= 0:
            raise ValueError(f"scale log needs low above 0, not {low!r}, for example low = 1e-6")
        if self.scale != "power" and "exponent" in self.model_fields_set:
            raise ValueError('exponent is for scale = "power" only')
        if step is not None:
            if self.scale != "linear":
                raise ValueError('step is for scale = "linear" only')
            if "levels" in self.model_fields_set:
                raise ValueError("give step or levels, not both")


class FloatParameter(_Range):
    """A real number between low and high, both included."""

    type: Literal["float"]
    low: Finite
    high: Finite
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Only low, low + step, low + 2 step, ... are proposed.")

    @model_validator(mode="after")
    def _valid(self) -> "FloatParameter":
        self._check_range(self.low, self.high, self.step)
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError("step is larger than the range")
        if self.step is not None and (self.high - self.low) / self.step > STEPS_MAX:
            raise ValueError("step is so small that floats cannot tell the steps apart")
        return self

    def contains(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        return self.low - slack <= value <= self.high + slack


class IntParameter(_Range):
    """A whole number between low and high, both included."""

    type: Literal["int"]
    low: Integer
    high: Integer
    step: Annotated[int, Field(ge=1, le=2**53 - 1, strict=True)] | None = Field(
        None, description="Only low, low + step, low + 2 step, ... are proposed.")

    @model_validator(mode="after")
    def _valid(self) -> "IntParameter":
        self._check_range(self.low, self.high, self.step)
        return self

    def contains(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if isinstance(value, float) and not value.is_integer():      # nor are NaN and infinity
            return False
        return self.low <= value <= self.high and (int(value) - self.low) % (self.step or 1) == 0


class _Choices(_Parameter):
    choices: Annotated[list[Choice], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _distinct(self) -> "_Choices":
        # 1, 1.0 and true are one value to most languages, so they may not be two choices.
        seen: list[Value] = []
        for choice in self.choices:
            if choice in seen:
                raise ValueError(f"choice {choice!r} is there twice (1, 1.0 and true count as the same)")
            seen.append(choice)
        return self

    def index(self, value: object) -> int | None:
        """Position of `value` among the choices, or None. Types count: 1 is not true."""
        for i, choice in enumerate(self.choices):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return i
        return None

    def contains(self, value: object) -> bool:
        return self.index(value) is not None


class CategoricalParameter(_Choices):
    """One of several choices without order."""

    type: Literal["categorical"]


class OrdinalParameter(_Choices):
    """One of several choices whose order means something: small, medium, large."""

    type: Literal["ordinal"]


Parameter: TypeAlias = Annotated[
    FloatParameter | IntParameter | CategoricalParameter | OrdinalParameter, Field(discriminator="type")]
ParameterName = Annotated[str, StringConstraints(pattern=PARAMETER)]


class Space(RootModel[Annotated[dict[ParameterName, Parameter], Field(min_length=1, max_length=1000)]]):
    """Parameters by name, in the order of the file. Immutable by convention."""

    model_config = ConfigDict(frozen=True)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a space is iterated by name, not by model field
        return iter(self.root)

    def __getitem__(self, name: str) -> Parameter:
        return self.root[name]

    def __contains__(self, name: object) -> bool:
        return name in self.root

    def __len__(self) -> int:
        return len(self.root)

    def items(self) -> Iterator[tuple[str, Parameter]]:
        yield from self.root.items()

    @model_validator(mode="after")
    def _conditions_hold(self) -> "Space":
        for name, parameter in self.root.items():
            for parent, wanted in parameter.conditions():
                if parent not in self.root:
                    raise ValueError(f"{name}: when names {parent!r}, which is not in the space")
                if not wanted:
                    raise ValueError(f"{name}: when {parent} has an empty list, so it could never be active")
                of = self.root[parent]
                if isinstance(of, FloatParameter):
                    raise ValueError(f"{name}: when needs a categorical, ordinal or int parent; {parent} is a float")
                for value in wanted:
                    if not of.contains(value):
                        raise ValueError(f"{name}: when {parent} = {value!r}, which {parent} never takes")
        self.ordered()
        return self

    def ordered(self) -> list[str]:
        """Names with every parent before its children, else in the order of the file."""
        done: dict[str, None] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise ValueError("when makes a circle: " + " -> ".join((*path, name)))
            if len(path) > NESTED_MAX:
                raise ValueError(f"{path[0]}: when is nested deeper than {NESTED_MAX} parameters")
            if name not in done:
                for parent, _ in self.root[name].conditions():
                    visit(parent, (*path, name))
                done[name] = None

        for name in self.root:
            visit(name, ())
        return list(done)

    def is_active(self, name: str, values: Mapping[str, Any]) -> bool:
        """True when every condition of `name` holds in `values`, which holds active parents only."""
        for parent, wanted in self.root[name].conditions():
            if parent not in values or values[parent] not in wanted:
                return False
        return True

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The part of `values` (one for every parameter) that is active, parents first."""
        out: dict[str, Any] = {}
        for name in self.ordered():
            if self.is_active(name, out):
                out[name] = values[name]
        return out

    def check(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return `params` typed by the space (3.0 becomes 3 for an int).

        Raises ValueError, in words for the sender, when a value is outside, missing or inactive.
        """
        out: dict[str, Any] = {}
        for name in self.ordered():
            parameter = self.root[name]
            if not self.is_active(name, out):
                continue
            if name not in params:
                raise ValueError(f"parameter {name} is missing")
            value = params[name]
            if not parameter.contains(value):
                raise ValueError(f"parameter {name} = {value!r} is not in the space: {describe(parameter)}")
            out[name] = typed(parameter, value)
        for name in params:
            if name not in self.root:
                raise ValueError(f"parameter {name} is not in the space, which has {', '.join(self.root)}")
            if name not in out:
                raise ValueError(f"parameter {name} is not active here: its condition does not hold")
        return out


def typed(parameter: Parameter, value: Any) -> Any:
    """`value` in the type that the space declares; JSON writes 1.0 as 1, so types come from here."""
    if isinstance(parameter, FloatParameter):
        return float(value)
    if isinstance(parameter, IntParameter):
        return int(value)
    index = parameter.index(value)
    assert index is not None
    return parameter.choices[index]


def describe(parameter: Parameter) -> str:
    """A parameter in a few words, for errors and tables."""
    if isinstance(parameter, (FloatParameter, IntParameter)):
        words = f"{parameter.type} from {parameter.low:g} to {parameter.high:g}"
        if parameter.scale != "linear":
            words += f", {parameter.scale}"
        return words + (f", step {parameter.step:g}" if parameter.step else "")
    return f"{parameter.type}: " + ", ".join(map(str, parameter.choices))
