"""A trial as the objective sees it, and what an objective may return."""

import asyncio
import contextlib
import math
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, TypeAlias

from bayesd_client.agent import Lease
from bayesd_client.errors import SpaceMismatch, TrialStopped
from bayesd_schemas.messages import Fidelity
from bayesd_schemas.space import FloatParameter, IntParameter, Parameter, Space, describe, typed

RECEIPT_PATIENCE_S = 1.0


class Folds:
    """The values of all folds of a cross-validation; their mean is the trial's value. Of several metrics: by name.

    return bayesd.Folds([0.91, 0.94, 0.93])
    return bayesd.Folds({"precision": [0.91, 0.94], "recall": [0.82, 0.88]})
    """

    def __init__(self, values: Sequence[SupportsFloat] | Mapping[str, Sequence[SupportsFloat]]) -> None:
        self.values: list[float] | dict[str, list[float]]
        if isinstance(values, Mapping):
            self.values = {str(name): [number(value) for value in each] for name, each in values.items()}
        else:
            self.values = [number(value) for value in values]

    def __repr__(self) -> str:
        return f"Folds({self.values})"


Report: TypeAlias = Callable[["Trial", int, Mapping[str, Any]], None]
"""How a trial hands a report to its worker, from any thread; the worker calls `answer` when it is through."""


class Trial:
    """One granted trial.

    `params` holds the active parameters, typed by the study's space. The `suggest_` methods read
    them in Optuna's words, so an Optuna objective runs unchanged; what they may return was
    declared in the study, and they never widen it.
    """

    def __init__(self, lease: Lease, space: Space | None, report: Report, objectives: Sequence[str] = ()) -> None:
        self.study = lease.study
        self.number = lease.trial
        self.fence = lease.fence
        self.params: dict[str, Any] = typed_params(space, lease.params)
        self.fidelity: Fidelity | None = lease.fidelity
        """How far to train, where the study says so: up to `fidelity.value` of `fidelity.name`."""
        self.checkpoint: str | None = None
        """Set it in the objective: a name under which whoever goes on with the trial finds what was trained."""
        self.repeat = lease.repeat
        """0 for a new point; n when a point is measured again for the n-th time: use other seeds or folds then."""
        self.cost: float | None = None
        """Set it in the objective: what the trial cost, in the unit of the study's budget."""
        self.objectives = tuple(objectives)
        """The names of the study's objectives, in order, as far as they are known."""
        self._space = space
        self._report = report
        self._loop_thread = threading.get_ident()
        self._stop: str | None = None
        self._owed = True
        self._step: int | None = None
        self._answered = threading.Event()
        self._answered.set()
        self._answered_soon = asyncio.Event()
        self._answered_soon.set()

    @property
    def space(self) -> Space | None:
        """The study's declared space; None while the worker has not seen it."""
        return self._space

    @property
    def resume_from(self) -> str | None:
        """The checkpoint to go on from; None: train from the beginning."""
        return None if self.fidelity is None else self.fidelity.start

    @property
    def stop_reason(self) -> str | None:
        """Why this training should end (pruned, cancelled, closed, superseded, stopped), or None."""
        return self._stop

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None,
                      log: bool = False) -> float:
        """The assigned value of a float (or int) parameter. `step` and `log` are the study's business."""
        value = self._assigned(name, "float", (FloatParameter, IntParameter))
        slack = 1e-9 * max(abs(low), abs(high))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low - slack <= value <= high + slack:
            raise self._outside(name, value, f"from {low!r} to {high!r}")
        return float(value)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The assigned value of an int parameter. `step` and `log` are the study's business."""
        value = self._assigned(name, "int", (IntParameter,))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) \
                or not low <= value <= high:
            raise self._outside(name, value, f"from {low!r} to {high!r}")
        return int(value)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The assigned one of `choices`, of a categorical or ordinal parameter."""
        value = self._assigned(name, "categorical", None)
        for choice in choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise self._outside(name, value, "one of " + ", ".join(map(repr, choices)))

    def report(self, value: Any, step: int) -> None:
        """Say an intermediate value: a number, or a dict of metrics. At most about one a second is sent.

        Raises TrialStopped when the lease is over and nothing will be told for this trial.
        """
        if self._stop is not None and not self._owed:
            raise TrialStopped(f"trial {self.number} of {self.study}: the lease is over ({self._stop})")
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"a step counts from 0, not {step}")
        values = measured(value)
        self._step = step
        self._answered.clear()
        self._answered_soon.clear()
        self._report(self, step, values)

    def should_prune(self) -> bool:
        """Whether to end this trial. Waits up to 1 s for the last report's receipt, then says no.

        In an async objective it must not wait, so it says what is known; use `await trial.ashould_prune()`.
        """
        if self._stop is None and threading.get_ident() != self._loop_thread:
            self._answered.wait(RECEIPT_PATIENCE_S)
        return self._stop is not None

    async def ashould_prune(self) -> bool:
        """`should_prune` for async objectives."""
        if self._stop is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECEIPT_PATIENCE_S):
                    await self._answered_soon.wait()
        return self._stop is not None

    # The worker's side; on the loop's thread.

    def halt(self, reason: str, owed: bool) -> None:
        """The worker's word that this training should end."""
        self._owed = owed
        self._stop = reason
        self.answer(self._step)

    def answer(self, step: int | None) -> None:
        """The receipt of the report of `step` has come, or none will come."""
        if step == self._step:
            self._answered.set()
            self._answered_soon.set()

    def _assigned(self, name: str, kind: str, types: tuple[type, ...] | None) -> Any:
        declared = self._declared(name)
        if declared is not None:
            ranged = isinstance(declared, (FloatParameter, IntParameter))
            if (types is None and ranged) or (types is not None and not isinstance(declared, types)):
                raise SpaceMismatch(f"the objective asks for {name} as {kind}, but study {self.study} declares it as "
                                    f"{describe(declared)}; mend the objective or the study's space")
        if name in self.params:
            return self.params[name]
        if declared is not None:
            wanted = ", ".join(f"{parent} = {' or '.join(map(repr, values))}"
                               for parent, values in declared.conditions())
            raise SpaceMismatch(f"parameter {name} is not active in trial {self.number}: it needs {wanted}; "
                                "ask for it only in that branch of the objective")
        raise SpaceMismatch(f"parameter {name!r} is not active in trial {self.number}, which has "
                            f"{', '.join(self.params)}")

    def _declared(self, name: str) -> Parameter | None:
        if self._space is None:
            return None
        if name not in self._space:
            raise SpaceMismatch(f"parameter {name!r} is not declared in study {self.study}, which has "
                                f"{', '.join(self._space)}; declare it in the study file or mend the objective")
        return self._space[name]

    def _outside(self, name: str, value: object, wanted: str) -> SpaceMismatch:
        return SpaceMismatch(f"the objective wants {name} {wanted}, but study {self.study} assigned {value!r}; "
                             "make the objective's range the one that the study declares")


def typed_params(space: Space | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` in the types that the space declares: JSON writes 1.0 as 1, so types come from there."""
    if space is None:
        return dict(params)
    return {name: typed(space[name], value) if name in space and space[name].contains(value) else value
            for name, value in params.items()}


def number(value: Any) -> float:
    """A measurement as a float; raises TypeError for what is none. NumPy and torch scalars will do."""
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise TypeError(f"a measurement is a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def measured(value: Any) -> dict[str, Any]:
    """A returned or reported value as the fields of a message."""
    if isinstance(value, Folds):
        return {"folds": value.values}
    if isinstance(value, Mapping):
        return {"values": {str(name): number(one) for name, one in value.items()}}
    return {"value": number(value)}
