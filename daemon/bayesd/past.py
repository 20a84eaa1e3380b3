"""What was known at an earlier moment, for a daemon that goes on meanwhile.

A past state is the fold of the committed events up to there, made in a thread beside the newest
state and never in its place. The one that was asked for last is kept for a while: a list comes in
pages, and each page is a request of its own.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from bayesd import moments
from bayesd.log import Log
from bayesd.replay import fold
from bayesd.study.row import Row
from bayesd.study.state import State

KEPT_S = 30.0

@dataclass(frozen=True, slots=True)
class Moment:
    """A place in the log, and the state there. The state is shared and must not be moved."""

    seq: int
    time: str
    state: State

    @property
    def words(self) -> dict[str, Any]:
        """For an answer: which moment it is of."""
        return {"seq": self.seq, "time": self.time}


class Past:
    """Finds moments. One is folded at a time, so that no crowd of questions fills the memory."""

    def __init__(self) -> None:
        self._kept: Moment | None = None
        self._used = 0.0
        self._turn = asyncio.Lock()

    def tidy(self, now: float) -> None:
        """Forget what nobody asked for lately."""
        if self._kept is not None and now - self._used > KEPT_S:
            self._kept = None

    def drop(self) -> None:
        """The log may be another: nothing is kept."""
        self._kept = None

    async def at(self, log: Log, given: Any, head: int, now: float, time: str) -> Moment:
        """The moment that a request names. Raises NoMoment."""
        async with self._turn:
            seq = await self._seq(log, given, head, time)
            kept = self._kept
            if kept is None or kept.seq != seq:
                self._kept = None      # never two of them
                kept = self._kept = Moment(seq, await _time_of(log, seq), (await fold(log, seq, aside=True))[0])
            self._used = now
            return kept

    async def _seq(self, log: Log, given: Any, head: int, time: str) -> int:
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise moments.NoMoment(f"at is a seq or a time, {moments.EXAMPLE}")
        wanted = moments.parse(str(given))
        if isinstance(wanted, int):
            if wanted > head:
                raise moments.NoMoment(f"the log ends at event {head}: event {wanted} is not there yet")
            return wanted
        if wanted > datetime.fromisoformat(time):
            raise moments.NoMoment(f"{given} is still to come: it is {time}")
        found = 0
        async for rows in log.read(0, head):
            found = await asyncio.to_thread(_last_until, wanted, rows, found)
        if not found:
            raise moments.NoMoment(f"the log begins after {given}")
        return found


def _last_until(wanted: datetime, rows: list[Row], found: int) -> int:
    return moments.last_until(wanted, ((row.seq, orjson.loads(row.body)["time"]) for row in rows), found)


async def _time_of(log: Log, seq: int) -> str:
    async for rows in log.read(seq - 1, seq):
        return str(orjson.loads(rows[0].body)["time"])
    raise moments.NoMoment(f"there is no event {seq}")
