"""What somebody knows before the first trial: where a parameter is probably good.

`[prior.C]` in a study file is a centre and how sure its author is, or for a categorical parameter a weight for each
choice. It bends the search and never bounds it: every point of the space stays possible. It stands beside the space,
not in it, so a changed opinion does not make another space.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bayesd_schemas.space import CategoricalParameter, Choice, Parameter, ParameterName, Space, describe

Confidence = Literal["low", "medium", "high"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prior(_Part):
    """An opinion on one parameter."""

    centre: Choice = Field(None, description="The value that is probably best, or near the best.")
    confidence: Confidence = Field("medium", description="high: within a tenth or so of the range, on its scale; "
                                   "medium: within a fifth; low: rather here than elsewhere.")
    weights: dict[str, Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]] | None = Field(
        None, description="Of a categorical parameter, instead of a centre: choice -> how likely it is the best. "
                          "The table may also stand for itself: prior.kernel = { rbf = 0.7, poly = 0.3 }.")

    @model_validator(mode="before")
    @classmethod
    def _plain_weights(cls, data: Any) -> Any:
        """A table of numbers without a key of ours is the weights themselves."""
        if isinstance(data, Mapping) and data and not set(data) & set(cls.model_fields):
            return {"weights": data}
        return data

    @model_validator(mode="after")
    def _one_of(self) -> "Prior":
        if ("centre" in self.model_fields_set) == (self.weights is not None):
            raise ValueError("give a centre, or a weight for each choice, for example { centre = 1.0, confidence = "
                             '"medium" } or { rbf = 0.7, poly = 0.3 }')
        if self.weights is not None and not sum(self.weights.values()) > 0:
            raise ValueError("one weight at least is above 0")
        return self

    def check(self, name: str, parameter: Parameter) -> None:
        """Raises ValueError when this says nothing about the parameter."""
        if self.weights is None:
            if not parameter.contains(self.centre):
                raise ValueError(f"prior.{name}: the centre {self.centre!r} is not in the space: {describe(parameter)}")
            return
        if not isinstance(parameter, CategoricalParameter):
            raise ValueError(f"prior.{name}: weights are for a categorical parameter; give a centre, which "
                             f"{name} can have: {describe(parameter)}")
        unknown = set(self.weights) - {spelled(choice) for choice in parameter.choices}
        if unknown:
            raise ValueError(f"prior.{name}: {min(unknown)!r} is no choice of it: {describe(parameter)}")


def spelled(choice: Any) -> str:
    """A choice as the key of a table: true, 3, null and words as they are."""
    if isinstance(choice, str):
        return choice
    return "null" if choice is None else str(choice).lower() if isinstance(choice, bool) else str(choice)


Priors = dict[ParameterName, Prior]


def check(space: Space | None, priors: Priors) -> Priors:
    """Hold opinions against the space that they are about. Raises ValueError."""
    if space is not None:        # else it has a fault of its own
        for name, prior in priors.items():
            if name not in space:
                raise ValueError(f"prior.{name}: {name} is not in the space, which has {', '.join(space)}")
            prior.check(name, space[name])
    return priors
