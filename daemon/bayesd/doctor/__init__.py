"""What is wrong, and what to do: every check looks at one thing that has kept somebody from working.

Nothing is changed: the round trips use reads, a write that must be refused because its study does
not exist, and withdrawals of asks that nobody made. None of them reaches the log.

A broker does not say what it denies: a forbidden publish is acknowledged, a forbidden subscription
gets a good answer. So only what comes back counts, and where nothing comes back, MQTT 5 tells
which half of the way is closed (`denied`).
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from bayesd.bus import BusError
from bayesd.call import Reach
from bayesd.doctor import broker, machine, settings, tls, ways
from bayesd.doctor.finding import Finding, State


async def examine(reach: Reach, log: Path | None = None, *, worker: Reach | None = None,
                  broker_settings: Path | None = None) -> list[Finding]:
    """All checks, the machine first, then the broker and what is behind it.

    `worker` is a second identity, to see what one of them may do with the other's name.
    """
    found = await asyncio.to_thread(machine.examine, log)
    found += [finding async for finding in _behind(reach, log, worker)]
    if broker_settings is not None:
        found += await asyncio.to_thread(settings.examine, broker_settings)
    return found


async def _behind(reach: Reach, log: Path | None, worker: Reach | None) -> AsyncIterator[Finding]:
    topics = reach.topics
    for each in (reach, worker):
        if each is not None:
            for finding in tls.own(each):
                yield finding
    try:
        async with reach.caller(topics.to(reach.client, "reply"), topics.daemon, topics.head) as caller:
            yield Finding("broker", "ok", f"{reach.address.url} takes us as {reach.known_as or reach.client}")
            said = await broker.announced(caller, topics.daemon, topics.head)
            yield await broker.latency(reach, caller, {topic for topic, each in said.items() if each is not None})
            yield await broker.version(caller)
    except BusError as error:
        yield Finding("broker", "bad", str(error), await tls.why_not(reach, str(error)))
        return
    for finding in await tls.of_broker(reach.address):
        yield finding
    yield await broker.anonymous(reach)
    for finding in await ways.examine(reach, worker, said.get(topics.daemon), said.get(topics.head), log):
        yield finding


__all__ = ["Finding", "State", "examine"]
