"""From stored bytes to a state: the one way in which a log is folded, whoever reads it.

A daemon at its start, a study in one process, a verb on a file and a pack for an auditor all go through `Replay`, so
all of them refuse the same events: those of another log, those that no daemon writes, and those that make no sense.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import orjson

from bayesd.log import Damaged, Log, Snapshot
from bayesd.study import snapshot
from bayesd.study.envelope import NONSENSE, Envelopes
from bayesd.study.fold import apply, refuse_newer
from bayesd.study.row import Row
from bayesd.study.state import Event, State
from bayesd_schemas.upcast import VERSIONS, upcast

logger = logging.getLogger("bayesd")

RECORD_WITHIN = 1_000      # events behind a snapshot among which the one that vouches for it must be


def event_of(body: bytes, hash: bytes) -> Event:
    """A stored body as the event that it is, in today's shape. Unknown events that are not critical become nothing."""
    return _event_in(orjson.loads(body), hash)


def _event_in(envelope: dict[str, Any], hash: bytes) -> Event:
    type, data, told = envelope["type"], envelope["data"], envelope.get
    if refuse_newer(envelope):
        type = "clock.jumped"
    elif type in VERSIONS:
        data = upcast(type, told("tv", 1), data)
    return Event(envelope["seq"], hash, type, told("study"), told("trial"), envelope["actor"], told("cmd"), data)


class Replay:
    """A state that takes stored events, in the order of the log."""

    def __init__(self, state: State | None = None) -> None:
        """Behind the events that `state` has folded; from the beginning without one."""
        self.state = State() if state is None else state
        self._envelopes = Envelopes(self.state.log, self.state.epoch)

    def take(self, seq: int, body: bytes, hash: bytes) -> Event:
        """Fold the next event. Raises Damaged, and UnknownEvent when only a later release can."""
        try:
            envelope = orjson.loads(body)
            why = self._envelopes.fault(body, envelope)
            if why is None:
                event = _event_in(envelope, hash)
                apply(self.state, event)
                return event
        except NONSENSE as error:
            raise Damaged(seq, f"its content makes no sense here ({type(error).__name__}: {error})") from error
        raise Damaged(seq, why)

    def take_all(self, rows: Iterable[Row]) -> None:
        """The same for some rows."""
        for row in rows:
            self.take(row.seq, row.body, row.hash)


async def fold(log: Log, until: int | None = None, *, aside: bool = False) -> tuple[State, int]:
    """The state of a log, from the newest snapshot that can be believed, and how many events were folded.

    `aside` folds in a thread, for a daemon that has other things to do.
    """
    state = State()
    saved = await log.load_snapshot(until)
    if saved is not None and saved.codec == snapshot.CODEC and await _is_on_record(log, saved):
        loaded = (await asyncio.to_thread(snapshot.load, saved.digest, saved.blob) if aside
                  else snapshot.load(saved.digest, saved.blob))
        if loaded is not None and loaded.seq == saved.seq:
            async for rows in log.read(saved.seq - 1, saved.seq):
                if rows[0].hash == loaded.hash:
                    state = loaded
        if state is not loaded:
            logger.warning("the snapshot of event %d makes no sense; all events are folded instead", saved.seq,
                           extra={"seq": saved.seq})
    folded, replay = 0, Replay(state)
    async for rows in log.read(state.seq, until):
        if aside:
            await asyncio.to_thread(replay.take_all, rows)
        else:
            replay.take_all(rows)
            await asyncio.sleep(0)
        folded += len(rows)
    return state, folded


async def _is_on_record(log: Log, saved: Snapshot) -> bool:
    """Whether the daemon that stopped wrote into the log that this was its state: the cache itself has no chain."""
    async for rows in log.read(saved.seq, saved.seq + RECORD_WITHIN):
        for row in rows:
            if row.type == "daemon.stopped":
                with suppress(*NONSENSE):       # what makes no sense vouches for nothing; the fold names it
                    if orjson.loads(row.body)["data"].get("snapshot") == told(saved):
                        return True
    return False


def told(saved: Snapshot) -> dict[str, Any]:
    """What a daemon that stops writes into the log about a snapshot."""
    return {"seq": saved.seq, "codec": saved.codec, "digest": saved.digest.hex()}
