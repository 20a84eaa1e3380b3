"""Earlier studies whose results are to help: `[[warm_start]]` in a study file.

Their space may be another one. Parameters that this space lacks are left out of their points; a point whose value this
space has no place for says nothing, since a point that is bent to fit was never measured; and of parameters that they
lacked they say nothing, unless `assume` says what these were at the time.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bayesd_schemas.names import INTEGER_MAX, Name
from bayesd_schemas.space import Choice, Finite, ParameterName, Params, Space, Value, typed

SOURCES_MAX = 4
CARRIED_MAX = 1000


class WarmStart(BaseModel):
    """An earlier study of the same log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: Name
    assume: dict[ParameterName, Choice] = Field(
        default={}, description="Parameters of this space that the earlier one did not have, and what they were there. "
                                "Without it the earlier study says nothing about them.")
    points: Annotated[int, Field(ge=0, le=20, strict=True)] = Field(
        2, description="How many of its best points are tried first here.")

    def fitted(self, space: Space, rows: Iterable[tuple[Params, float]]) -> tuple[
            list[tuple[Params, float]], frozenset[str]]:
        """The rows that this space has a place for, as points of it, and the parameters that they do not have."""
        out, silent = list[tuple[Params, float]](), set[str]()
        for params, value in rows:
            found = self._point(space, params)
            if found is not None:
                out.append((found[0], value))
                silent |= found[1]
        return out, frozenset(silent)

    def _point(self, space: Space, params: Params) -> tuple[dict[str, Any], set[str]] | None:
        out, silent = dict[str, Any](), set[str]()
        said: Mapping[str, Any] = {**self.assume, **params}
        for name in space.ordered():
            if any(parent in silent for parent, _ in space[name].conditions()):
                silent.add(name)
            elif space.is_active(name, out):
                if name not in said:
                    silent.add(name)
                elif space[name].contains(said[name]):
                    out[name] = typed(space[name], said[name])
                else:
                    return None
        return out, silent


class Row(BaseModel):
    """A point, and what was measured there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: dict[str, Value]
    cost: Finite = Field(description="Of the first objective, turned so that lower is better")


class Carried(BaseModel):
    """Results of a study of another log, by value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Name
    log: Annotated[str, Field(min_length=1, max_length=64, description="The id of that log")]
    at: Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True, description="Its last event that was read")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Of that event")]
    rows: Annotated[list[Row], Field(min_length=1, max_length=CARRIED_MAX)]


def check(space: Space | None, starts: list[WarmStart]) -> list[WarmStart]:
    """Hold what is assumed of earlier studies against the space. Raises ValueError."""
    names = [start.study for start in starts]
    if len(set(names)) != len(names):
        raise ValueError("it names a study twice")
    for start in starts:
        for name, value in start.assume.items() if space is not None else ():
            if space is None or name not in space or not space[name].contains(value):
                raise ValueError(f"of {start.study}: assume {name} = {value!r} is not in the space")
    return starts
