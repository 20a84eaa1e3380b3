"""What all events of one log have in common, whatever they mean: one rule for every reader.

A chain says that nobody changed an event behind the back of the ones after it. It does not say that the events are
of one log, nor that two readers see the same in the same bytes: JSON allows a key twice, and 19.0 for 19. A daemon
writes neither. So whoever folds a log asks here, and all of them refuse the same events.
"""

from collections.abc import Mapping
from typing import Any

from bayesd.study.canonical import is_canonical
from bayesd.study.desk import NOT_CRITICAL
from bayesd.study.fold import KNOWN

NONSENSE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a fold raises when the content of an event makes no sense."""


class Envelopes:
    """The envelopes of one log, in order."""

    def __init__(self, log: str | None = None, epoch: int = 0) -> None:
        """Behind events of the log `log`, the last of which was written in `epoch`."""
        self._log, self._epoch = log or None, epoch or 1

    def fault(self, body: bytes, envelope: Mapping[str, Any]) -> str | None:
        """Why this cannot be the next event, `envelope` being what its `body` says; None when it can."""
        told = envelope.get
        log, epoch, type_ = told("log"), told("epoch"), told("type")
        if log != self._log:
            if self._log is not None:
                return f"it says that it is of log {log!r} and not of {self._log!r}, like those before it"
            if type(log) is not str:
                return "it does not say of which log it is"
            self._log = log
        if type(epoch) is not int or epoch < self._epoch:
            return f"its writer epoch ({epoch!r}) is before that of the event before it ({self._epoch})"
        self._epoch = epoch
        version, crit = told("v"), told("crit")
        if type(version) is not int or version != 1:
            return f"its envelope is of version {version!r}, and there is only version 1"
        if type_ in KNOWN and crit is not (type_ not in NOT_CRITICAL):
            # Else an event of a "later version" that readers may pass over would take a result away.
            return f"its crit is {crit!r}, which no event of type {type_} has"
        data = told("data")
        if type(data) is not dict:
            return "its data is no object"
        if type_ == "log.opened" and data.get("log") != log:
            return f"it opens log {data.get('log')!r} and says that it is of log {log!r}"
        if not is_canonical(body, envelope):
            return "its bytes are not the canonical form of what they say"
        return None
