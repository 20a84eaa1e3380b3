"""bayesd's own methods as optimisers of the simulator, and the list of all optimisers there are."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.quality.simulator import Optimiser

from bayesd.optimize import suggest
from bayesd.study.problem import Fit, Observation, Problem
from bayesd_schemas.space import Params, Space
from bayesd_schemas.study import Method


@dataclass
class Own:
    """What the daemon does: the history in order of arrival, the pending trials, the last fit."""

    space: Space
    seed: int
    method: Method = "bayes"
    number: int = 1
    drawn: int = 0
    fit: Fit | None = None
    history: list[Observation] = field(default_factory=list)
    pending: dict[int, Params] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    """Why a plainer sampler answered, as often as one did."""

    def ask(self) -> tuple[int, dict[str, Any]]:
        suggestion = suggest(Problem(
            space=self.space, directions=("minimize",), method=self.method, seed=self.seed, repeats=True,
            number=self.number, drawn=self.drawn, history=tuple(self.history), pending=tuple(self.pending.values()),
            fit=self.fit))
        (proposal,), number = suggestion.proposals, self.number
        if proposal.fallback is not None:
            self.fallbacks.append(proposal.fallback)
        self.fit = suggestion.fit or self.fit
        self.drawn, self.number = proposal.drawn, number + 1
        self.pending[number] = proposal.params
        return number, dict(proposal.params)

    def tell(self, key: int, value: float | None) -> None:
        self.history.append(Observation(key, self.pending.pop(key), None if value is None else (value,)))


@dataclass(frozen=True, slots=True)
class Entry:
    """How to make an optimiser, and what must be installed for it."""

    make: Callable[[Space, int, int], Optimiser]
    """Of (space, seed, budget)."""
    package: str = "bayesd"
    """Its name at a package index; the release of it is recorded with a run."""
    modules: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


PACKAGES = {"ax": "ax-platform", "hebo": "HEBO"}
"""Where the name at the index is not that of the module."""


def own(method: Method) -> Entry:
    return Entry(lambda space, seed, budget: Own(space, seed, method))


def peer(kind: str, *modules: str) -> Entry:
    """Of `peers.py`; the first module is that of its package."""
    def make(space: Space, seed: int, budget: int) -> Optimiser:
        peers = importlib.import_module("tests.bench.quality.peers")
        made: Optimiser = getattr(peers, kind)(space, seed, budget)
        return made
    return Entry(make, PACKAGES.get(modules[0], modules[0]), modules)


OPTIMISERS: dict[str, Entry] = {
    "bayesd": own("bayes"),
    "random": own("random"),
    "sobol": own("sobol"),
    "optuna-tpe": peer("OptunaTPE", "optuna"),
    "optuna-gp": peer("OptunaGP", "optuna", "torch"),
    "smac": peer("Smac", "smac"),
    "hebo": peer("Hebo", "hebo", "torch"),
    "ax": peer("Ax", "ax", "torch"),
}
