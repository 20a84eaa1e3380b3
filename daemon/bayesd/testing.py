"""A whole bayesd in one process, on virtual time: for our simulation, and for tests of your workers.

    async def story() -> None:
        broker = MemoryBroker(seed=7, weather=Weather(drop=0.1, twice=0.1, delay_s=2.0))
        daemon = Daemon(broker)
        await daemon.start()
        worker = MemoryClient(broker, "w1", [broker.topics.to("w1", "+")], heard.append)
        worker.connect()
        worker.publish(broker.topics.sent("w1", "beat"), b'{"run":"4f2a"}')
        await asyncio.sleep(3600.0)         # an hour passes at once
        daemon.kill()                       # as kill -9 does; the next start reads the disk
        await daemon.start()

    run(story())

The service is the real one, and so are its rules. What is replaced stands at its edges: the clock,
the bus, the disk, and the thread that thinks. Nothing here waits, and everything that happens by
chance is drawn from one seed, so the same story goes the same way each time.

`run` needs no sockets and starts no threads, so whatever runs in it may use neither.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from bayesd.bus import Ack
from bayesd.log import Hook, MemoryDisk, MemoryLog
from bayesd.notes import Signer
from bayesd.optimize import suggest
from bayesd.seals import Seals
from bayesd.service import Outside, Service, Settings, Suggest
from bayesd.study.problem import Problem, Suggestion
from bayesd_schemas.topics import Topics

T = TypeVar("T")

# ---------------------------------------------------------------- time


class Stuck(RuntimeError):
    """Every task waits for something that nobody will do."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that never waits: when nothing is ready, it is at once the time of the next timer.

    `asyncio.sleep`, `timeout`, queues, events and task groups run on it unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self       # what asyncio asks to wait until a timer is due

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("no timer is set and nothing is ready: every task waits for something that nobody will do")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets, so there are no events."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody is woken."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:    # type: ignore[override]  # the same for every caller; typeshed's needs TypeVarTuple
        """What would go to a thread is done on the spot: a thread's end has no place in virtual time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class HandClock:
    """The service's two clocks, turned by hand; on a loop they also follow the loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, now: float = 0.0) -> None:
        self._loop = loop
        self._turned = now - (loop.time() if loop is not None else 0.0)
        self._wall_ahead = -now

    def now(self) -> float:
        return self._turned + (self._loop.time() if self._loop is not None else 0.0)

    def time(self) -> str:
        at = _BEGIN + timedelta(seconds=self.now() + self._wall_ahead)
        return at.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def turn(self, seconds: float) -> None:
        """Time passes: on both clocks."""
        self._turned += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward or back. No lease may notice."""
        self._wall_ahead += seconds


# ---------------------------------------------------------------- the broker


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to messages on their way from the broker to one who listens."""

    drop: float = 0.0
    """Chance that a message is lost."""
    twice: float = 0.0
    """Chance that a message comes a second time."""
    delay_s: float = 0.0
    """A message takes up to this long."""
    overtake: bool = True
    """Delayed messages overtake each other; False: each listener gets them in order."""


class MemoryBroker:
    """An MQTT broker without a network: topics, filters, retained messages, and a weather.

    `watchers` are called with (client, topic, payload) for every message as it is published,
    whatever becomes of it.
    """

    def __init__(self, seed: int = 0, weather: Weather | None = None, *, root: str = "") -> None:
        self.topics = Topics(root)
        self.weather = weather or Weather()
        self.up = True
        self.retained: dict[str, bytes] = {}
        self.watchers: list[Callable[[str, str, bytes], None]] = []
        self._random = random.Random(seed)      # noqa: S311  # a seeded world, no secret
        self._clients: dict[MemoryClient, None] = {}
        self._routes: dict[str, list[MemoryClient]] = {}
        """Topic -> who listens, until somebody comes or goes."""

    def restart(self, down_s: float = 0.0) -> None:
        """Lose everything: connections, retained messages, and what was on its way."""
        self.retained.clear()
        for client in list(self._clients):
            client.disconnect()
        if down_s > 0:
            self.up = False
            asyncio.get_running_loop().call_later(down_s, self._come_up)

    def _come_up(self) -> None:
        self.up = True

    def _join(self, client: "MemoryClient") -> None:
        self._clients[client] = None
        self._routes.clear()
        for topic, payload in list(self.retained.items()):
            if any(matches(filter, topic) for filter in client.filters):
                self._carry(client, topic, payload)

    def _part(self, client: "MemoryClient") -> None:
        self._clients.pop(client, None)
        self._routes.clear()

    def _publish(self, sender: str, topic: str, payload: bytes, retain: bool) -> None:
        for watcher in self.watchers:
            watcher(sender, topic, payload)
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        listeners = self._routes.get(topic)
        if listeners is None:
            listeners = self._routes[topic] = [
                client for client in self._clients if any(matches(filter, topic) for filter in client.filters)]
        for client in listeners:
            self._carry(client, topic, payload)

    def _carry(self, client: "MemoryClient", topic: str, payload: bytes) -> None:
        """Let the weather have its way with one message to one listener."""
        weather, draw = self.weather, self._random.random
        if weather.drop and draw() < weather.drop:
            return
        copies = 2 if weather.twice and draw() < weather.twice else 1
        loop = asyncio.get_running_loop()
        for _ in range(copies):
            at = loop.time() + (weather.delay_s * draw() if weather.delay_s else 0.0)
            if not (weather.overtake and weather.delay_s):
                # A loop takes timers of the very same moment in any order, so each gets its own.
                at = client.latest = max(at, math.nextafter(client.latest, math.inf))
            loop.call_at(at, client._receive, client.connection, topic, payload)


def matches(filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter takes a topic."""
    wanted, given = filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(given) or level not in ("+", given[i]):
            return False
    return len(wanted) == len(given)


class MemoryClient:
    """One connection to a memory broker. What is published while it is down is gone."""

    def __init__(self, broker: MemoryBroker, name: str, filters: Sequence[str],
                 on_message: Callable[[str, bytes], None], on_lost: Callable[[], None] = lambda: None) -> None:
        self.broker = broker
        self.name = name
        self.filters = tuple(filters)
        self.connected = False
        self.connection = 0
        """Which of its connections this is: what was on its way to an earlier one never comes."""
        self.latest = 0.0
        self._on_message = on_message
        self._on_lost = on_lost

    def connect(self) -> bool:
        """Connect and subscribe, if the broker is there."""
        if self.broker.up and not self.connected:
            self.connected = True
            self.connection += 1
            self.broker._join(self)
        return self.connected

    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self.broker._part(self)
            self._on_lost()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if self.connected:
            self.broker._publish(self.name, topic, payload, retain)
        return self.connected

    def _receive(self, connection: int, topic: str, payload: bytes) -> None:
        if self.connected and connection == self.connection:
            self._on_message(topic, payload)


# ---------------------------------------------------------------- the bus and the daemon


class MemoryBus:
    """The daemon's side of a memory broker; it keeps the promises of `bayesd.bus.Bus`."""

    def __init__(self, broker: MemoryBroker, *, name: str = "daemon", reconnect_s: float = 1.0,
                 queue_max: int = 10_000) -> None:
        filters = [*broker.topics.inbound(), *broker.topics.retained()]
        self._client = MemoryClient(broker, name, filters, self._receive, self._lose)
        self._reconnect_s = reconnect_s
        self._queue: deque[tuple[str, bytes, bool]] = deque()
        self._queue_max = queue_max
        self._lost = asyncio.Event()
        self._failure: Exception | None = None
        self._on_message: Callable[[str, bytes, Ack], None] = lambda topic, payload, ack: None
        self._closed = self._dead = False
        self.dropped = 0
        """Refused because the queue was full."""

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def last_error(self) -> str | None:
        return None if self.connected else "the memory broker is down"

    async def run(self, on_message: Callable[[str, bytes, Ack], None], on_connect: Callable[[], None]) -> None:
        self._on_message = on_message
        while not self._closed:
            self._lost.clear()
            if self._client.connect():
                while self._queue:
                    topic, payload, retain = self._queue.popleft()
                    self._client.publish(topic, payload, retain=retain)
                on_connect()
                await self._lost.wait()
            if self._failure is not None:
                raise self._failure
            if not self._closed:
                await asyncio.sleep(self._reconnect_s)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int | None = None) -> bool:
        if self._dead:
            return False
        if not self._client.publish(topic, payload, retain=retain):
            if len(self._queue) >= self._queue_max:
                self.dropped += 1
                return False
            self._queue.append((topic, payload, retain))
        return True

    async def close(self, *, timeout_s: float = 2.0) -> None:
        self._closed = True
        self._client.disconnect()
        self._lost.set()

    def kill(self) -> None:
        """The process is gone: nothing goes out any more, and nothing comes in."""
        self._dead = self._closed = True
        self._queue.clear()
        self._client.disconnect()

    def _receive(self, topic: str, payload: bytes) -> None:
        try:
            self._on_message(topic, payload, _acknowledge)
        except Exception as error:      # it ends `run`, as on a real bus
            self._failure = error
            self._client.disconnect()

    def _lose(self) -> None:
        self._lost.set()


def _acknowledge() -> None:
    """Nobody waits for it: a receipt is the acknowledgement that counts."""


async def inline(problem: Problem, count: int) -> Suggestion:
    """Think on the spot."""
    return suggest(problem, count)


def slow(seed: int, up_to_s: float) -> Suggest:
    """Think as long as a seed says, in virtual time."""
    draw = random.Random(seed)      # noqa: S311  # a seeded world, no secret

    async def think(problem: Problem, count: int) -> Suggestion:
        await asyncio.sleep(draw.uniform(0.0, up_to_s))
        return suggest(problem, count)

    return think


class Daemon:
    """The real service on a memory disk: start it, kill it at any moment, start it again.

    `before_commit` and `after_commit` are those of `bayesd.log.MemoryLog`: they may sleep, kill this
    daemon, or raise, and so decide what a commit that was cut short had done.
    """

    def __init__(self, broker: MemoryBroker, disk: MemoryDisk | None = None, *, settings: Settings | None = None,
                 suggest: Suggest = inline, before_commit: Hook | None = None, after_commit: Hook | None = None,
                 make_bus: Callable[[MemoryBroker], MemoryBus] = MemoryBus,
                 on_end: Callable[[BaseException | None], None] = lambda error: None,
                 fingerprint: dict[str, Any] | None = None, signer: Signer | None = None,
                 outside: Outside | None = None, seals: Callable[[], Seals] | None = None) -> None:
        self.broker = broker
        self.disk = MemoryDisk() if disk is None else disk
        self.settings = settings or Settings(settle_s=0.0)
        self.service: Service | None = None
        """The life that is going on, or None."""
        self.bus: MemoryBus | None = None
        self.signer = signer
        self.outside = outside
        self.seals = seals
        """Makes what each life knows of keys; None: nobody signs."""
        self.ended: BaseException | None = None
        """What ended the last life that ended by itself."""
        self.clock = HandClock()
        self.lives = 0
        self._suggest = suggest
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._make_bus = make_bus
        self._on_end = on_end
        self._fingerprint = fingerprint
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, now: float = 0.0) -> Service:
        """Begin a life: open the disk, replay it, and serve. `now` is where its monotonic clock stands."""
        assert self.service is None, "one life at a time"
        self.lives += 1
        log = await MemoryLog.open(self.disk, before_commit=self._before_commit, after_commit=self._after_commit)
        self.clock = HandClock(asyncio.get_running_loop(), now=now)
        bus = self.bus = self._make_bus(self.broker)
        service = Service(log, bus, self.clock, settings=self.settings, suggest=self._suggest,
                          plainly=inline, new_log=lambda: "memory", version="testing",
                          new_salt=lambda: b"%d salt" % service.desk.state.seq,
                          fingerprint=self._fingerprint, signer=self.signer, outside=self.outside,
                          seals=self.seals() if self.seals is not None else None)
        self.service = service
        self._task = asyncio.create_task(self._live(service, log), name=f"life {self.lives}")
        return service

    async def _live(self, service: Service, log: MemoryLog) -> None:
        ended: BaseException | None = None
        try:
            await service.open()
            await service.run()
        except Exception as error:
            ended = error
        finally:
            if self.service is service:         # not killed: it ended by itself
                self.service = None
                await log.close()
                assert self.bus is not None
                self.bus.kill()
                self.ended = ended
                self._on_end(ended)

    def kill(self) -> None:
        """kill -9: from now on this life writes nothing and says nothing."""
        if self.service is None:
            return
        assert self.bus is not None
        assert self._task is not None
        service, self.service = self.service, None
        self.disk.kill()
        self.bus.kill()
        for task in (self._task, *service._slow.values(), *service._looks):
            task.cancel()

    async def stop(self) -> None:
        """A clean end: what is decided is committed and said."""
        if self.service is not None:
            assert self._task is not None
            task = self._task
            self.service.stop()
            await asyncio.wait([task])      # it may be killed on the way


__all__ = ["Daemon", "HandClock", "MemoryBroker", "MemoryBus", "MemoryClient", "Stuck", "VirtualLoop",
           "Weather", "inline", "matches", "run", "slow"]
