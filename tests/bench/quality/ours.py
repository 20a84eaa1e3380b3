"""bayesd's optimiser as an optimiser of the quality harness (whose `core` must be importable)."""

import os
from typing import Any

import core

from bayesd.optimize import suggest
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Space


def translated(space: Any) -> Space:
    """The harness's list of parameters as a declared space."""
    out: dict[str, Any] = {}
    for p in space:
        if p.kind == "cat":
            of: dict[str, Any] = {"type": "categorical", "choices": list(p.choices)}
        else:
            number = int if p.kind == "int" else float
            of = {"type": p.kind, "low": number(p.lo), "high": number(p.hi), "scale": "log" if p.log else "linear"}
        if p.parent is not None:
            of["when"] = {p.parent: list(p.parent_values)}
        out[p.name] = of
    return Space.model_validate(out)


class Ours(core.Optimizer):  # type: ignore[misc]  # the harness has no types
    """Replays what the daemon does: the history in order of arrival, the pending set, the last fit."""

    method = "bayes"
    repeats = os.environ.get("BAYESD_REPEATS", "1") == "1"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.declared = translated(self.space)
        self.history: list[Observation] = []
        self.pending: dict[int, Any] = {}
        self.number, self.drawn, self.fit = 1, 0, None
        self.fallbacks = 0

    def ask(self) -> tuple[int, dict[str, Any]]:
        suggestion = suggest(Problem(
            self.declared, ("minimize",), self.method, self.seed, self.repeats, self.number, self.drawn,  # type: ignore[arg-type]
            tuple(self.history), tuple(self.pending.values()), self.fit))
        proposal, number = suggestion.proposals[0], self.number
        if proposal.fallback:
            print("fallback:", proposal.fallback, flush=True)
        self.fit = suggestion.fit or self.fit
        self.drawn, self.number = proposal.drawn, number + 1
        self.pending[number] = proposal.params
        return number, dict(proposal.params)

    def tell(self, number: int, value: float, status: str = "ok") -> None:
        params = self.pending.pop(number)
        self.history.append(Observation(number, params, (float(value),) if status == "ok" else None))


class OursSobol(Ours):
    method = "sobol"


class OursRandom(Ours):
    method = "random"
