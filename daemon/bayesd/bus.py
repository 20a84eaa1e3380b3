"""MQTT in and out: one connection that is made again for ever, and a thin caller for the command line.

The bus carries bytes and knows no message: it decides when to dial, what to do with what
cannot be sent now, and which sentence explains a refused connection. It promises little on
purpose: the receipt in the contract is the acknowledgement, so a message may be lost with a
connection, and the worker sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from bayesd.link import Ack, BrokerAddress, BusError, Link, Outgoing, Will

logger = logging.getLogger(__name__)

KEEPALIVE_S = 30
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_S = 5.0                         # a connection that stood this long ends the outage and the backoff
OUTGOING_MAX_BYTES = 16 * 1024 * 1024  # topics, payloads and their overhead; when full, publish says False
MESSAGE_MAX_BYTES = 120_000            # brokers hang up on larger packets, and would again at each new try
TRIES_MAX = 3                          # so often is a QoS 1 message sent over connections that die unanswered


class Bus(Protocol):
    """What the service needs of a bus; the one in memory keeps the same promises."""

    @property
    def connected(self) -> bool:
        """Whether messages go out and come in now."""
        ...

    @property
    def last_error(self) -> str | None:
        """The sentence that explains the present outage, or the last one until a connection has stood a while."""
        ...

    async def run(self, on_message: Callable[[str, bytes, Ack], None], on_connect: Callable[[], None]) -> None:
        """Connects again and again until cancelled or closed; an exception from a callback ends it."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int | None = None) -> bool:
        """Never waits; False when the queue is full, and then the message is counted and gone."""
        ...

    async def close(self, *, timeout_s: float = 2.0) -> None:
        """Sends what is queued, says goodbye so that the last will is not fired, and ends `run`."""
        ...


# --- The bus of the daemon -----------------------------------------------------------------------


class MqttBus:
    """The daemon's connection, made again whenever it is lost.

    What is published while there is no connection waits in a queue of `outgoing_max_bytes` and goes
    out, in order, before `on_connect` is called. QoS 1 messages whose PUBACK had not come go out again
    first; so a message may arrive twice. When the queue is full a new message is refused and counted.

    `on_message` may be called before `on_connect`: retained messages follow the subscription at once.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        filters: Sequence[str],
        will: Callable[[], Will | None] = lambda: None,
        qos: int = 1,
        keepalive_s: int = KEEPALIVE_S,
        outgoing_max_bytes: int = OUTGOING_MAX_BYTES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self._client_id = client_id
        self._filters = tuple(filters)
        self._will = will
        self._qos = qos
        self._keepalive_s = keepalive_s
        self._outgoing_max_bytes = outgoing_max_bytes
        self._jitter = jitter
        self._queue: deque[Outgoing] = deque()   # at most outgoing_max_bytes, see publish()
        self._queued_bytes = 0
        self._link: Link | None = None       # set while messages may go out
        self._opening: asyncio.Task[None] | None = None
        self._closing = False
        self._changed = asyncio.Event()       # something that close() or a pause waits for may have happened
        self._on_message: Callable[[str, bytes, Ack], None] = lambda topic, payload, ack: None
        self._settled = True                  # no outage now: the last connection stood for STABLE_S
        self._short_lives = 0                 # connections since then that did not stand so long
        self._backoff_s = BACKOFF_MIN_S
        self._last_error: str | None = None
        self.received = 0
        self.published = 0
        self.dropped = 0                      # refused because the queue was full, or given up after TRIES_MAX
        self.skipped = 0                      # came in too large, or with a topic that is not UTF-8
        self.connects = 0

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def last_error(self) -> str | None:
        return self._last_error

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int | None = None) -> bool:
        message = Outgoing(topic, payload, retain, self._qos if qos is None else qos)
        if len(payload) > MESSAGE_MAX_BYTES:
            logger.error("a message of %d bytes to %s is too large for a broker and was dropped: report this as a bug",
                         len(payload), topic)
            self.dropped += 1
            return False
        link = self._link
        if link is not None and not self._queue and link.has_room(message.qos):
            link.publish(message)
            self.published += 1
            return True
        if self._queued_bytes + message.size_bytes > self._outgoing_max_bytes:
            self.dropped += 1
            return False
        self._queue.append(message)
        self._queued_bytes += message.size_bytes
        return True

    async def run(self, on_message: Callable[[str, bytes, Ack], None], on_connect: Callable[[], None]) -> None:
        self._on_message = on_message
        while not self._closing:
            link = Link(
                self.address, self._client_id, will=self._will(), keepalive_s=self._keepalive_s,
                deliver=self._deliver, on_room=self._send_queued)
            began_s = time.monotonic()
            # A task of its own, so that close() can end it without ending us.
            self._opening = asyncio.create_task(link.open(self._filters, self._qos), name="mqtt opening")
            try:
                await self._opening
                if self._closing:   # close() came between the two
                    await link.leave(1.0)
                else:
                    await self._serve(link, on_connect)
            except BusError as error:
                self._explain(str(error))
            except asyncio.CancelledError:
                if not (self._closing and self._opening.cancelled()):
                    raise
            else:
                if not self._closing:
                    self._explain(self._loss(link, time.monotonic() - began_s))
            finally:
                self._opening = None
                await link.end()
                self.skipped += link.skipped
            if link.failure is not None:
                raise link.failure
            if not self._closing:
                await self._pause()

    async def _serve(self, link: Link, on_connect: Callable[[], None]) -> None:
        """Lives as long as the connection."""
        settle = asyncio.get_running_loop().call_later(STABLE_S, self._settle)
        self._link = link
        self.connects += 1
        logger.info("connected to %s as %s", self.address.url, self._client_id)
        try:
            self._send_queued()
            on_connect()
            await link.wait_ended()
        finally:
            self._link = None
            settle.cancel()
            self._send_again(link)
            self._changed.set()

    def _send_again(self, link: Link) -> None:
        """Puts what was not answered before the rest of the queue, even beyond its size: it had its place already.

        A message on which the broker hangs up would be sent for ever, and nothing behind it: so a few times only.
        """
        for message in reversed(link.unacked.values()):
            if message.tries < TRIES_MAX:
                self._queue.appendleft(message)
                self._queued_bytes += message.size_bytes
            else:
                self.dropped += 1

    def _deliver(self, topic: str, payload: bytes, ack: Ack, retained: bool) -> None:
        self.received += 1
        self._on_message(topic, payload, ack)

    def _send_queued(self) -> None:
        """Sends what waits, as far as there is room."""
        link = self._link
        if link is not None:
            while self._queue and link.has_room(self._queue[0].qos):
                message = self._queue.popleft()
                self._queued_bytes -= message.size_bytes
                link.publish(message)
                self.published += 1
        if self._closing:
            self._changed.set()

    def _settle(self) -> None:
        self._settled, self._short_lives, self._backoff_s, self._last_error = True, 0, BACKOFF_MIN_S, None

    def _loss(self, link: Link, stood_s: float) -> str:
        text = f"The connection to the broker at {self.address.url} was lost after {stood_s:.1f} s: {link.reason}"
        self._short_lives += stood_s < STABLE_S
        if self._short_lives > 1:
            # Broker and twin look the same from here. Two of us would throw each other out for ever;
            # the backoff, which only a stable connection ends, keeps that slow.
            return (f"{text}, not for the first time: another client may use our id {self._client_id!r}"
                    " (then stop one of the two), or the broker is in trouble (then look into its log).")
        return f"{text}; trying again."

    def _explain(self, sentence: str) -> None:
        """Logs the first reason of an outage, and another one only when the kind of trouble changes."""
        # The seconds in a sentence are no new trouble.
        if self._settled or _without_digits(sentence) != _without_digits(self._last_error or ""):
            logger.warning("%s", sentence)
        self._settled = False
        self._last_error = sentence

    async def _pause(self) -> None:
        """Waits between tries: 0.1 s doubling to 5 s, half of it by chance, so that a fleet does not dial in step."""
        delay_s = self._backoff_s * (0.5 + 0.5 * self._jitter())
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
        await self._wait_for_change(lambda: self._closing, delay_s)

    async def close(self, *, timeout_s: float = 2.0) -> None:
        self._closing = True
        self._changed.set()
        link = self._link
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        if link is None:
            return
        await self._wait_for_change(lambda: self._link is None or (not self._queue and link.idle), timeout_s)
        if self._link is link:
            await link.leave(timeout_s)

    async def _wait_for_change(self, happened: Callable[[], bool], timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not happened():
                    self._changed.clear()
                    await self._changed.wait()


def _without_digits(text: str) -> str:
    return "".join(each for each in text if not each.isdigit())


# --- The caller of the command line --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came."""

    topic: str
    payload: bytes
    retained: bool


class Caller:
    """One connection for a request and its answers: no reconnecting, no queue for later.

        async with Caller(address, client_id="bayesd-cli-4f2a", filters=["bayesd/1/to/cli/reply"]) as caller:
            await caller.publish("bayesd/1/admin/cli/request", request)
            async for message in caller.messages(timeout_s=5.0):
                ...

    Whatever goes wrong with the broker is a BusError with a sentence for people.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        filters: Sequence[str] = (),
        qos: int = 1,
        keepalive_s: int = KEEPALIVE_S,
        will: Will | None = None,
        timeout_s: float = 5.0,
        incoming_max: int = 10_000,
    ) -> None:
        self.address = address
        self._client_id = client_id
        self._filters = tuple(filters)
        self._qos = qos
        self._keepalive_s = keepalive_s
        self._will = will
        self._timeout_s = timeout_s
        self._incoming_max = incoming_max
        self._link: Link | None = None
        self._incoming: deque[Message] = deque()   # at most incoming_max; a newer message is then dropped
        self._changed = asyncio.Event()
        self.dropped = 0

    async def __aenter__(self) -> Self:
        link = Link(
            self.address, self._client_id, will=self._will, keepalive_s=self._keepalive_s,
            deliver=self._deliver, on_room=self._changed.set)
        await link.open(self._filters, self._qos)
        self._link = link
        self._ending = asyncio.create_task(self._notice_end(link), name="mqtt caller")
        return self

    async def _notice_end(self, link: Link) -> None:
        await link.wait_ended()
        self._changed.set()   # whoever waits for a message now learns that none will come

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._link is not None:
            await self._link.leave(1.0)
            await self._link.end()
            await asyncio.wait((self._ending,))

    async def subscribe(self, *filters: str) -> None:
        await self._open_link().subscribe(filters, self._qos)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int | None = None) -> None:
        """Returns when the broker has the message (QoS 1) or the kernel (QoS 0)."""
        qos = self._qos if qos is None else qos
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self._open_link().has_room(qos):
                    await self._wait()
                self._open_link().publish(Outgoing(topic, payload, retain, qos))
                while not self._open_link().idle:
                    await self._wait()
        except TimeoutError as error:
            raise BusError(
                f"The broker at {self.address.url} did not take our message within {self._timeout_s:g} s:"
                " look into its log.") from error

    async def receive(self, timeout_s: float | None = None) -> Message:
        """The next message; TimeoutError when none came in time."""
        async with asyncio.timeout(timeout_s):
            while not self._incoming:
                self._open_link()
                await self._wait()
            return self._incoming.popleft()

    async def messages(self, timeout_s: float | None = None) -> AsyncIterator[Message]:
        """Messages as they come, until `timeout_s` have passed in all; for ever without it."""
        loop = asyncio.get_running_loop()
        end_s = None if timeout_s is None else loop.time() + timeout_s
        while True:
            try:
                message = await self.receive(None if end_s is None else end_s - loop.time())
            except TimeoutError:
                return
            yield message

    def _deliver(self, topic: str, payload: bytes, ack: Ack, retained: bool) -> None:
        if len(self._incoming) >= self._incoming_max:
            self.dropped += 1
        else:
            self._incoming.append(Message(topic, payload, retained))
        ack()
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _open_link(self) -> Link:
        if self._link is None:
            raise BusError("This caller is not connected: use it in `async with`.")
        if self._link.fileno() < 0:
            raise BusError(f"The connection to the broker at {self.address.url} was lost: {self._link.reason}.")
        return self._link


__all__ = ["Ack", "BrokerAddress", "Bus", "BusError", "Caller", "Message", "MqttBus", "Outgoing", "Will"]
