"""The broker alone: how fast it is, how old, and whom it takes."""

import secrets
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from bayesd.bus import BusError, Caller
from bayesd.call import Reach, read
from bayesd.doctor.denied import numbers
from bayesd.doctor.finding import LOOPBACK, Finding
from bayesd.mosquitto import VERSION_TOPIC

SLOW_S = 0.025               # Nagle's algorithm and delayed acknowledgements make it 40 ms and more
TURNS = 7
OLD, CARED_FOR = (2, 0), (2, 0, 21)


async def announced(caller: Caller, *topics: str) -> dict[str, dict[str, Any] | None]:
    """What the daemon keeps on the broker, by topic: it comes at once or not at all."""
    out: dict[str, dict[str, Any] | None] = {}
    async for message in caller.messages(1.0):
        if message.topic in topics:
            out[message.topic] = read(message)
            if len(out) == len(topics):
                break
    return out


async def latency(reach: Reach, caller: Caller, retained: Collection[str]) -> Finding:
    """A turn of the broker: a subscription that we have already.

    Where something is retained there, the broker writes twice, its answer and the message; without
    TCP_NODELAY the second waits for our acknowledgement of the first, on any network.
    """
    topic = min(retained, default=None)
    turns, seconds = [], []
    for _ in range(TURNS):
        began = time.perf_counter()
        await caller.subscribe(topic or reach.topics.to(reach.client, "reply"))
        answered = time.perf_counter()
        turns.append(answered - began)
        if topic is not None:
            async for message in caller.messages(1.0):
                if message.topic == topic:
                    seconds.append(time.perf_counter() - answered)
                    break
    turn_s, second_s = _middle(turns), _middle(seconds)
    words = f"{1000 * (turn_s + second_s):.1f} ms a turn"
    if second_s > SLOW_S or (turn_s > SLOW_S and reach.address.host in LOOPBACK):
        return Finding("latency", "warn", words, "this is what TCP does without TCP_NODELAY: set_tcp_nodelay true in "
                                                 "mosquitto.conf, then restart it")
    return Finding("latency", "ok", words)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


async def version(caller: Caller) -> Finding:
    """What the broker says of itself, where the access list lets us read it."""
    try:
        await caller.subscribe(VERSION_TOPIC)
    except BusError:
        return of_version(None)
    async for message in caller.messages(0.5):
        if message.topic == VERSION_TOPIC:
            return of_version(message.payload.decode(errors="replace"))
    return of_version(None)


def of_version(text: str | None) -> Finding:
    """Whether a broker that calls itself so is too old."""
    if text is None:
        return Finding("broker version", "ok", f"not known: an operator may be let to read {VERSION_TOPIC}")
    have = numbers(text)
    if "mosquitto" not in text or not have:
        return Finding("broker version", "ok", text)
    if have < OLD:
        return Finding("broker version", "bad", f"{text}, which nobody cares for any more",
                       "upgrade to mosquitto 2: before it everybody on the network was let in by default")
    if have < CARED_FOR:
        return Finding("broker version", "ok", f"{text}; faults were mended up to 2.0.21, which distributions put into "
                       "older numbers, too: keep it up to date (apt-get upgrade mosquitto)")
    return Finding("broker version", "ok", text)


async def anonymous(reach: Reach) -> Finding:
    """Whether people without a login come in: fine on one machine, an open door on a network."""
    nobody = replace(reach, client=f"doctor-{secrets.token_hex(4)}", known_as=None, address=replace(
        reach.address, username=None, password_file=None, cert_file=None, key_file=None))
    try:
        async with nobody.caller():
            pass
    except BusError:
        return Finding("anonymous access", "ok", "the broker asks everybody for a login")
    advice = ("allow_anonymous false, an access list, and with TLS require_certificate true in the broker: "
              "`bayesd deploy mosquitto` writes all of it")
    if reach.address.host not in LOOPBACK or reach.address.tls:
        return Finding("anonymous access", "bad", f"{reach.address.url} takes everybody: whoever reaches it may change "
                       "studies and tell results", advice)
    if reach.known_as is not None:
        return Finding("anonymous access", "warn", f"{reach.address.url} takes people without a login as well, so ours "
                       "keeps nobody out", advice)
    return Finding("anonymous access", "ok", "the broker takes everybody on this machine")
