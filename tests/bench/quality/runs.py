"""Stored runs: one JSON object a line, only ever appended to."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

Key = tuple[str, str, int, int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """One optimiser on one instance."""

    optimiser: str
    task: str
    family: str
    seed: int
    workers: int
    budget: int
    version: str
    """Of the optimiser's package."""
    incumbent: list[float | None]
    """Noise-free value of the best observed point after 1, 2, ... finished trials."""
    cpu_s: list[float]
    best: float | None = None
    """The known optimum of the instance."""
    median: float | None = None
    """Of random points of the instance; None for tasks of which it is stored elsewhere."""
    failed: int = 0
    repeated: int = 0
    fallbacks: int = 0
    error: str | None = None
    """What the optimiser died of; such a run has no incumbents."""

    @property
    def key(self) -> Key:
        return (self.optimiser, self.task, self.seed, self.workers, self.budget)

    def but(self, **changes: Any) -> "Run":
        return replace(self, **changes)


def read(path: Path) -> list[Run]:
    """All runs of a file. A line that was cut off by a kill is left out, so it is run again."""
    names = {field.name for field in fields(Run)}
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(Run(**{name: value for name, value in row.items() if name in names}))
    return found


def append(path: Path, run: Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write(("\n" if cut else "") + json.dumps(asdict(run)) + "\n")
