"""Limits on outcomes: which trials keep them, and what they cost.

A study's `[[limits]]` name metrics that workers report beside the objectives, such as a latency or a difference between
groups, and what these may be. A trial that breaks a limit, or of which nobody told whether it does, is learned from and
never leads. Everything here is a function of what is recorded; sums are exact (fsum).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bayesd.study.problem import Bound

if TYPE_CHECKING:
    from bayesd.study.state import Study, Trial
    from bayesd_schemas.study import StudySpec

Measured = tuple[float | None, ...]
"""What was measured of each limit, in the study's order; empty where nothing was."""


def bounds(spec: "StudySpec") -> tuple[Bound, ...]:
    """As the optimiser takes them."""
    return tuple(Bound(limit.value, limit.is_most) for limit in spec.limits)


def read(spec: "StudySpec", *said: Mapping[str, Any] | None) -> Measured:
    """What is known of each limit, by the first that says something of it; empty where nobody says anything."""
    if not spec.limits:
        return ()
    found = tuple(next((float(each[limit.metric_name]) + 0.0 for each in said
                        if each is not None and each.get(limit.metric_name) is not None), None)
                  for limit in spec.limits)
    return found if any(value is not None for value in found) else ()


def broken(study: "Study", measured: Measured) -> tuple[str, ...]:
    """The names of the limits that these values break, or of which nobody told."""
    limits = study.spec.limits
    if not limits:
        return ()
    values = measured or (None,) * len(limits)
    return tuple(limit.name for limit, value in zip(limits, values, strict=True)
                 if value is None or not limit.keeps(value))


def keeps(trial: "Trial") -> bool:
    """Whether a trial keeps every limit of its study, so that it may lead."""
    return not trial.study.spec.limits or not broken(trial.study, trial.limits)


def mean(measured: Sequence[Measured]) -> Measured:
    """Of several measurements of one point, limit by limit, of those that were told."""
    out = []
    for each in zip(*(one for one in measured if one), strict=True):
        told = [value for value in each if value is not None]
        out.append(math.fsum(value / len(told) for value in told) if told else None)
    return tuple(out)


def named(study: "Study", measured: Measured) -> dict[str, float]:
    """Metric -> what was measured of it."""
    return {limit.metric_name: value for limit, value in zip(study.spec.limits, measured, strict=False)
            if value is not None}


def rows(study: "Study", measured: Measured) -> list[dict[str, Any]]:
    """Each limit with what was measured, and by how much it is kept (below zero: broken)."""
    values = measured or (None,) * len(study.spec.limits)
    return [{"name": limit.name, "metric": limit.metric_name, limit.side: limit.value, "measured": value,
             "room": None if value is None else (limit.value - value if limit.is_most else value - limit.value) + 0.0}
            for limit, value in zip(study.spec.limits, values, strict=True)]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is said of limits beside a winner, taken off a study in one go: it may be said in a thread."""

    study: "Study | None"
    """None: it has no limits."""
    measured: dict[int, Measured]
    """Of the complete trials that are no repeats."""
    values: dict[int, float]
    """Their first objective, signed so that lower is better."""

    @classmethod
    def of(cls, study: "Study") -> "Reading":
        if not study.spec.limits:
            return cls(None, {}, {})
        sign = 1.0 if study.goals[0].direction == "minimize" else -1.0
        done = [trial for trial in study.trials
                if trial.status == "complete" and trial.values is not None and trial.of is None]
        return cls(study, {trial.number: trial.limits for trial in done},
                   {trial.number: sign * trial.values[0] for trial in done if trial.values is not None})

    def beside(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer about the winner, with what the limits have to do with it: of each how much room it leaves and
        what it costs, or that nothing keeps all of them."""
        if self.study is None:
            return answer
        if answer["trial"] is not None and answer["trial"] in self.measured:
            found = rows(self.study, self.measured[answer["trial"]])
            for place, row in enumerate(found):
                row["without"] = self._without(place, answer["trial"])
                row["binds"] = row["without"] is not None
            return {**answer, "limits": found}
        if answer["trial"] is not None or not self.measured or any(
                not broken(self.study, each) for each in self.measured.values()):
            return answer
        least = self._least()
        said = rows(self.study, self.measured[least])
        return {**answer, "reason": f"none of {len(self.measured)} complete trials keeps every limit; trial {least} is "
                f"the one that breaks them least: {words(said)}", "least_violating": {"trial": least, "limits": said}}

    def _without(self, place: int, winner: int) -> dict[str, Any] | None:
        """The trial that would lead before the winner if this limit were not there; None if none would: the limit does
        not bind."""
        assert self.study is not None
        name = self.study.spec.limits[place].name
        others = [number for number, each in self.measured.items() if broken(self.study, each) == (name,)]
        best = min(others, key=lambda number: (self.values[number], number), default=None)
        if best is None or self.values[best] >= self.values[winner]:
            return None
        trial = self.study.trials[best - 1]
        assert trial.values is not None
        return {"trial": best, "value": trial.values[0]}

    def _least(self) -> int:
        """The trial whose excesses, each as a share of the range of its metric, add up to the least; what nobody told
        counts as the whole range."""
        assert self.study is not None
        limits = self.study.spec.limits
        ranges = []
        for place in range(len(limits)):
            told = [value for each in self.measured.values() if each and (value := each[place]) is not None]
            ranges.append((max(told) - min(told)) if told else 0.0)

        def excess(number: int) -> float:
            shares = []
            for row, width in zip(rows(self.study, self.measured[number]), ranges, strict=True):  # type: ignore[arg-type]  # not None, see above
                room = row["room"]
                shares.append(1.0 if room is None else max(0.0, -room) / (width or max(abs(room), 1.0)))
            return math.fsum(shares)

        return min(self.measured, key=lambda number: (excess(number), self.values[number], number))


def words(said: list[dict[str, Any]]) -> str:
    """Limits and what was measured of them, in words."""
    return ", ".join(f"{row['metric']} {'not told' if row['measured'] is None else format(row['measured'], '.6g')} "
                     f"({bound_words(row)})" for row in said)


def bound_words(row: dict[str, Any]) -> str:
    """Of one limit what it allows."""
    return f"at most {row['at_most']:.6g}" if "at_most" in row else f"at least {row['at_least']:.6g}"
