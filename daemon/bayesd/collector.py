"""Python's garbage collector, kept off the state of the daemon.

A state only grows, and nothing in it is ever garbage, but now and then the collector looks at all of it: a report that
happened to set it off took 30 to 200 ms among 100,000 others, and under 1 ms without it. So what has grown since last
time is looked at here, between messages, and then set aside for good (`gc.freeze`). A cycle that is set aside while it
is in use is never collected; a daemon has few of them, and far fewer than events.
"""

import asyncio
import gc
from collections.abc import Callable

EVENTS = 2000       # by which the log has grown: looking at so many takes half a millisecond
EVERY_S = 1.0


def set_aside() -> None:
    """Collect what is garbage now; the rest is not looked at again."""
    gc.collect()
    gc.freeze()


def grown(before: int, now: int) -> int:
    """The seq at which the collector last looked, after it has looked again where the log has grown by enough."""
    if now - before < EVENTS:
        return before
    set_aside()
    return now


async def keep_off(seq: Callable[[], int]) -> None:
    """Do so again and again, until cancelled; `seq` says how far the log has come."""
    before = seq()
    while True:
        await asyncio.sleep(EVERY_S)
        before = grown(before, seq())
