"""How many messages a broker keeps for somebody who is slow: what is beyond, it drops without a word.

Many answers are asked for, and one listener of two does not acknowledge until the other has all of
them. What it then gets is what the broker had kept.
"""

import asyncio
import json
import secrets
from collections.abc import Callable

from bayesd.call import Reach
from bayesd.doctor.finding import Finding
from bayesd.link import Ack, Link

ASKS = 2_200                 # more than mosquitto's 1,000 that wait, and 1,000 in flight
ALL_S, QUIET_S = 15.0, 3.0     # a mosquitto that saves at each change takes 5 ms for a message of this many


class _Ear:
    """A listener that acknowledges at once, or when it is told to."""

    def __init__(self, reach: Reach, *, slow: bool, changed: Callable[[], None]) -> None:
        self.slow = slow
        self.ids: set[bytes] = set()
        self._acks: list[Ack] = []
        self._changed = changed
        self.link = Link(reach.address, f"bayesd-{reach.client}-{secrets.token_hex(4)}", will=None, keepalive_s=30,
                         deliver=self._deliver, on_room=lambda: None)

    def _deliver(self, topic: str, payload: bytes, ack: Ack, retained: bool) -> None:
        if b'"doctor.' not in payload:
            ack()
            return
        self.ids.add(payload)
        if self.slow:
            self._acks.append(ack)
        else:
            ack()
        self._changed()

    def wake(self) -> None:
        self.slow = False
        for ack in self._acks:
            ack()
        self._acks.clear()


async def examine(reach: Reach) -> Finding:
    """Raises BusError."""
    name, topics = reach.client, reach.topics
    changed = asyncio.Event()
    filters = [topics.to(name, "receipt")]
    slow, quick = (_Ear(reach, slow=each, changed=changed.set) for each in (True, False))
    async with reach.caller(name=name) as mouth:
        try:
            await slow.link.open(filters, 1)
            await quick.link.open(filters, 1)
            run = secrets.token_hex(4)
            for number in range(ASKS):
                await mouth.publish(topics.sent(name, "ask"), json.dumps(
                    {"id": f"doctor.{run}.{number}", "run": "doctor", "n": 0}).encode(), qos=0)
            await _until(changed, lambda: len(quick.ids) >= ASKS, ALL_S)
            slow.wake()
            await _until(changed, lambda: len(slow.ids) >= len(quick.ids), ALL_S, QUIET_S)
        finally:
            for ear in (slow, quick):
                await ear.link.leave(1.0)
                await ear.link.end()
    if len(quick.ids) < ASKS:
        return Finding("waiting messages", "warn", f"{ASKS - len(quick.ids)} of {ASKS} answers did not come in "
                       f"{ALL_S:g} s", "the daemon or the broker is very busy; try again, and look at "
                                       "max_queued_messages")
    if len(slow.ids) < len(quick.ids):
        return Finding("waiting messages", "warn", f"of {len(quick.ids)} messages that waited for a slow listener the "
                                                   f"broker dropped {len(quick.ids) - len(slow.ids)}, which it had "
                                                   "acknowledged; receipts make that safe, and slow",
                       "max_queued_messages 100000 in mosquitto.conf, then restart it")
    return Finding("waiting messages", "ok", f"{len(quick.ids)} wait for a slow listener, none is dropped")


async def _until(changed: asyncio.Event, holds: Callable[[], bool], within_s: float,
                 quiet_s: float | None = None) -> None:
    """Wait until something holds, or the time is over, or nothing has come for `quiet_s`."""
    try:
        async with asyncio.timeout(within_s):
            while not holds():
                changed.clear()
                await asyncio.wait_for(changed.wait(), quiet_s)
    except TimeoutError:
        return
