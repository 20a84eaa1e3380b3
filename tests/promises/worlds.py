"""Seeded worlds: the service itself with a virtual clock, a bus that drops and doubles, a disk that fails, workers
that die and come back (tests/simulation). One round is one world."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.promises.book import Proof, Round
from tests.simulation.world import simulate


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    def world(seed: int) -> Round:
        outcome = simulate(seed)
        return Round({"events": outcome.events}, tuple(outcome.faults))
    yield world


PROOFS = [Proof("simulated worlds", ("P3", "P4", "P5", "P6", "P11", "P12", "P15", "P16", "P17", "P19", "P32"), "worlds",
                _lab, quick=20, release=10_000)]
