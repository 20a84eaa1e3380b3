"""A decision to stop a trial, with the numbers that led to it."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """Stop at this step."""

    step: int
    rule: str
    numbers: dict[str, Any]
    """What the rule looked at, as `trial.stopped` records it: at least `value`, `threshold` and `compared`."""

    def data(self, fence: int) -> dict[str, Any]:
        """The data of the event."""
        return {"fence": fence, "step": self.step, "rule": self.rule, **self.numbers}


def said(value: float, sign: float) -> float | None:
    """A signed value as it was measured; None for one that is no number."""
    return sign * value + 0.0 if math.isfinite(value) else None
