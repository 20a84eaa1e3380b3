"""Workers written against the contract, and the machines on which they crash, freeze and come back.

A `Machine` has a name and a spool, which is what a crash leaves. A `Process` is one run of a worker
on it: `ModelProcess` is our own reading of the contract, `AgentProcess` drives the real Python
client. Whoever supervises a machine starts the next process when one ends badly.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from bayesd.testing import MemoryBroker, MemoryClient
from bayesd_client import agent as client
from bayesd_client import kept

Key = tuple[str, int, int]
Message = dict[str, Any]

RESEND_S = 2.0
RESEND_MAX_S = 60.0
IDLE_TICKS_MAX = 100


@dataclass(frozen=True, slots=True)
class Habits:
    """What a worker wants and how it goes about it."""

    study: str | None = None
    slots: int = 1
    ahead: int = 1
    n: int = 1
    lease_s: float | None = None
    tags: tuple[str, ...] = ()
    beats: bool = True
    ask_in_tell: bool = True
    train_s: float = 8.0
    """The longest training."""
    reports: bool = True
    careless: float = 0.0
    """Chance to forget a grant that was queued: a worker with a bug."""
    agent: bool = False
    """Drive the Python client instead of our own reading of the contract."""


@dataclass(slots=True)
class Spool:
    """What is on the machine's disk: grants with the number of their starts, and tells without receipt."""

    grants: dict[Key, tuple[Message, int]] = field(default_factory=dict)
    tells: dict[Key, Message] = field(default_factory=dict)
    rejected: dict[Key, Message] = field(default_factory=dict)


class Truth(Protocol):
    """What the world hears from its workers, to judge the daemon by."""

    goals: dict[str, list[str]]
    limits: dict[str, list[str]]
    rng: Random

    def saved(self, machine: "Machine", key: Key, tell: Message) -> None: ...
    def ended(self, machine: "Machine", code: int) -> None: ...
    def trace(self, text: str) -> None: ...
    def fault(self, text: str) -> None: ...


class _AgentSpool(kept.MemorySpool):
    def __init__(self, machine: "Machine") -> None:
        super().__init__()
        self._machine = machine

    def save_tell(self, key: Key, saved: kept.SavedTell) -> None:
        super().save_tell(key, saved)
        self._machine.world.saved(self._machine, key, saved.tell)


class Machine:
    """A name, a disk, and at most one living process."""

    def __init__(self, world: Truth, broker: MemoryBroker, name: str, habits: Habits, seed: int) -> None:
        self.world = world
        self.broker = broker
        self.name = name
        self.habits = habits
        self.rng = Random(seed)
        self.spool = Spool()
        self.agent_spool = _AgentSpool(self)
        self.process: Process | None = None
        self.runs = 0
        self.wiped = False
        self.retired = False
        """Nobody starts it again."""
        self.prefix = f"{self.rng.getrandbits(24):06x}"

    def start(self) -> None:
        if self.process is not None:
            return
        self.runs += 1
        kind = AgentProcess if self.habits.agent else ModelProcess
        self.process = kind(self, f"{self.prefix}-{self.runs}")
        self.process.begin()

    def crash(self) -> None:
        """The process is gone; its disk stays."""
        if self.process is not None:
            self.process.die()
            self.process = None

    def leave(self) -> None:
        """SIGTERM."""
        if self.process is not None:
            self.process.leave()

    def wipe(self) -> None:
        """The disk is gone as well."""
        self.crash()
        self.wiped = True
        self.spool = Spool()
        self.agent_spool = _AgentSpool(self)

    def ended(self, code: int) -> None:
        assert self.process is not None
        self.process.die()
        self.process = None
        self.world.ended(self, code)

    @property
    def untold(self) -> int:
        """Results that have no receipt yet."""
        return len(self.spool.tells) + len(self.agent_spool.tells)

    @property
    def holds(self) -> int:
        """Everything on its disk that somebody has to take care of."""
        return self.untold + len(self.spool.grants) + len(self.agent_spool.grants)


class Process:
    """One run of a worker: its connection, its timers, and the ways in which it fails."""

    def __init__(self, machine: Machine, run: str) -> None:
        self.machine = machine
        self.habits = machine.habits
        self.rng = machine.rng
        self.run = run
        self.dead = False
        self.frozen = False
        self.frozen_until = 0.0
        self.offline_until = 0.0
        self._thawed: list[Callable[[], None]] = []
        self.loop = asyncio.get_running_loop()
        topics = machine.broker.topics
        public = [topics.daemon, *([topics.study("+"), topics.head] if self.habits.agent else ())]
        self.link = MemoryClient(machine.broker, machine.name, [topics.to(machine.name, "+"), *public],
                                 self._hear, self._lost)

    # ------------------------------------------------------------ what a kind of process does

    def begin(self) -> None:
        raise NotImplementedError

    def on_connect(self) -> None:
        raise NotImplementedError

    def on_disconnect(self) -> None:
        """Nothing, for most."""

    def on_message(self, kind: str, data: Message) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """SIGTERM."""
        raise NotImplementedError

    @property
    def at_rest(self) -> bool:
        """It trains nothing, holds nothing, and has nothing to deliver."""
        raise NotImplementedError

    # ------------------------------------------------------------ life

    def die(self) -> None:
        self.dead = True
        self.link.disconnect()

    def freeze(self, seconds: float) -> None:
        """A zombie: the machine sleeps; messages pile up, and timers go off when it wakes."""
        self.frozen = True
        self.frozen_until = max(self.frozen_until, self.loop.time() + seconds)
        self.loop.call_at(self.frozen_until, self._thaw)

    def _thaw(self) -> None:
        if self.dead or self.loop.time() < self.frozen_until - 1e-6:
            return
        self.frozen = False
        waiting, self._thawed = self._thawed, []
        for act in waiting:
            self._when_awake(act)

    def offline(self, seconds: float) -> None:
        """No network for so long; training goes on."""
        self.offline_until = max(self.offline_until, self.loop.time() + seconds)
        self.link.disconnect()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self.loop.call_later(seconds, self._when_awake, act)

    def _when_awake(self, act: Callable[[], None]) -> None:
        if self.dead:
            return
        if self.frozen:
            self._thawed.append(act)
        else:
            act()

    def connect(self) -> None:
        if self.link.connected:
            return
        wait_s = self.offline_until - self.loop.time()
        if wait_s > 0 or not self.link.connect():
            self.later(max(wait_s, 0.0) + self.rng.uniform(0.5, 3.0), self.connect)
            return
        self._when_awake(self.on_connect)

    def _lost(self) -> None:
        if not self.dead:
            self._when_awake(self._reconnect)

    def _reconnect(self) -> None:
        self.on_disconnect()
        self.later(self.rng.uniform(0.1, 2.0), self.connect)

    def _hear(self, topic: str, payload: bytes) -> None:
        self._when_awake(lambda: self._take(topic, payload))

    def _take(self, topic: str, payload: bytes) -> None:
        if payload:
            data = json.loads(payload)
            if topic == self.machine.broker.topics.daemon:
                kind = "daemon"
            elif topic == self.machine.broker.topics.head:
                kind = "head"
            elif self.machine.broker.topics.study_of(topic) is not None:
                kind = "study"
            else:
                kind = topic.rpartition("/")[2]
            self.on_message(kind, data)

    def send(self, kind: str, message: Message) -> None:
        self.link.publish(self.machine.broker.topics.sent(self.machine.name, kind), json.dumps(message).encode())

    def outcome(self, study: str) -> Message:
        """What a training ends with: where the study has limits, the metrics that they are about, too."""
        said = self._measured(study)
        beside = self.machine.world.limits[study]
        if not beside or said.get("state", "complete") != "complete":
            return said
        goal = self.machine.world.goals[study][0]
        if "folds" in said:
            each = {name: [round(self.rng.gauss(0, 1), 3) for _ in said["folds"]] for name in beside}
            return {**said, "folds": {goal: said["folds"], **each}}
        values = said.pop("values", None) or {goal: said.pop("value")}
        return {**said, "values": {**{name: round(self.rng.gauss(0, 1), 3) for name in beside}, **values}}

    def _measured(self, study: str) -> Message:
        rng = self.rng
        goals = self.machine.world.goals[study]
        more: Message = {"cost": round(rng.uniform(0.5, 2.0), 3), "seconds": round(rng.uniform(1, 9), 2)}
        chance = rng.random()
        if chance < 0.12:
            return {**more, "state": "fail", "class": rng.choice(["crash", "crash", "timeout", "oom", "other"]),
                    "error": "it broke"}
        if chance < 0.16:
            return {"state": "released"}
        if chance < 0.20:
            return {**more, "state": "pruned"}
        if len(goals) > 1:
            return {**more, "values": {goal: round(rng.gauss(0, 1), 4) for goal in goals}}
        if chance < 0.24:
            return {**more, "value": rng.choice(["nan", None, "inf", 1e305])}
        if chance < 0.33:
            return {**more, "folds": [round(rng.random(), 3) for _ in range(rng.randint(1, 4))]}
        if chance < 0.42:
            return {**more, "values": {goals[0]: round(rng.random(), 3), "other": 1.5}}
        return {**more, "value": round(rng.gauss(0, 1), 4)}


# ---------------------------------------------------------------- our own reading of the contract


@dataclass(slots=True)
class _Ask:
    id: str
    n: int
    got: set[Key] = field(default_factory=set)
    answered: bool = False
    withdrawn: bool = False
    due_s: float = 0.0


@dataclass(slots=True)
class _Held:
    grant: Message
    starts: int
    training: bool = False
    halted: bool = False


class ModelProcess(Process):
    """A worker as the contract tells it, with nothing that it does not ask for."""

    def __init__(self, machine: Machine, run: str) -> None:
        super().__init__(machine, run)
        self.spool = machine.spool
        self.asks: dict[str, _Ask] = {}
        self.asked = 0
        self.held: dict[Key, _Held] = {}
        self.tries: dict[Key, int] = {}
        self.done: set[Key] = set()
        self.stopped: dict[Key, str] = {}
        self.epoch = 0
        self.leaving: int | None = None
        """The exit code, once it is on its way out."""
        self.closed = False
        self.no_name = False
        self._beating = False

    @property
    def at_rest(self) -> bool:
        return not self.held and not self.spool.tells

    def begin(self) -> None:
        for key, (grant, starts) in list(self.spool.grants.items()):
            if key in self.spool.tells:
                del self.spool.grants[key]
            elif starts >= 2:
                self.tell(key, {"state": "fail", "class": "crash", "error": "its process died twice"})
            else:
                self.held[key] = _Held(grant, starts)
        self.connect()
        if self.rng.random() < 0.5:
            self.fill()         # it trains before it has a connection: an offline worker may

    def on_connect(self) -> None:
        if not self.no_name:
            self.beat()
        for key in list(self.spool.tells):
            self.send_tell(key)
        for ask in list(self.asks.values()):
            self.send_ask(ask)
        if not self._beating and self.habits.beats:
            self._beating = True
            self.later(self.period_s(), self.beat_on)
        self.fill()

    # ------------------------------------------------------------ asks

    def fill(self) -> None:
        """Start what is queued, and ask for what there is room for."""
        if self.dead:
            return
        for key, held in list(self.held.items()):
            if sum(each.training for each in self.held.values()) >= self.habits.slots:
                break
            if not held.training:
                self.start(key, held)
        while self.room() > 0:
            self.send_ask(self.new_ask())

    def room(self) -> int:
        if self.leaving is not None or self.closed or not self.link.connected:
            return 0
        asked = sum(ask.n - len(ask.got) for ask in self.asks.values())
        return self.habits.slots + self.habits.ahead - len(self.held) - asked

    def new_ask(self) -> _Ask:
        self.asked += 1
        ask = self.asks[f"{self.run}.{self.asked}"] = _Ask(f"{self.run}.{self.asked}", min(self.habits.n, self.room()))
        return ask

    def ask_message(self, ask: _Ask) -> Message:
        message: Message = {"id": ask.id, "run": self.run}
        if self.habits.study is not None:
            message["study"] = self.habits.study
        if ask.withdrawn:
            message["n"] = 0
        elif ask.n != 1 or self.rng.random() < 0.5:
            message["n"] = ask.n
        if self.habits.lease_s is not None:
            message["lease_s"] = self.habits.lease_s
        if self.habits.tags:
            message["tags"] = list(self.habits.tags)
        ask.due_s = self.loop.time() + (30.0 if ask.answered and not ask.withdrawn else self.rng.uniform(3.0, 10.0))
        self.later(ask.due_s - self.loop.time(), lambda: self.ask_again(ask.id))
        return message

    def send_ask(self, ask: _Ask) -> None:
        self.send("ask", self.ask_message(ask))

    def ask_again(self, id: str) -> None:
        ask = self.asks.get(id)
        if ask is not None and self.loop.time() >= ask.due_s - 1e-6 and self.link.connected:
            self.send_ask(ask)

    # ------------------------------------------------------------ beats

    def period_s(self) -> float:
        held = [each.grant["lease_s"] for each in self.held.values()]
        return float(min(held, default=60.0)) / 3 * self.rng.uniform(0.9, 1.0)

    def beat(self) -> None:
        if self.habits.beats and self.link.connected and not self.no_name:
            keys = {**dict.fromkeys(self.held), **dict.fromkeys(self.spool.tells)}
            self.send("beat", {"run": self.run, "leases": [list(key) for key in keys],
                               "asks": [ask.id for ask in self.asks.values() if not ask.withdrawn]})

    def beat_on(self) -> None:
        if self.held or self.spool.tells:
            self.beat()
        self.later(min(self.period_s(), 5.0), self.beat_on)

    # ------------------------------------------------------------ what comes in

    def on_message(self, kind: str, data: Message) -> None:
        if kind == "grant":
            self.on_grant(data)
        elif kind == "receipt":
            self.on_receipt(data)
        elif kind == "stop":
            self.on_stop((data["study"], data["trial"], data["fence"]), data["reason"])
        elif kind == "daemon" and data["state"] == "online":
            self.on_epoch(data["epoch"])
        if self.dead:
            return
        self.fill()
        if self.leaving is not None and not self.spool.tells and (self.no_name or not (self.held or self.asks)):
            self.machine.ended(self.leaving)

    def on_epoch(self, epoch: int) -> None:
        if epoch > self.epoch:
            known, self.epoch = self.epoch, epoch
            if known and self.link.connected:
                self.on_connect()

    def on_grant(self, grant: Message) -> None:
        if grant["run"] != self.run:
            return
        key = (grant["study"], grant["trial"], grant["fence"])
        self.on_epoch(grant["epoch"])
        ask = self.asks.get(grant["ask"])
        if ask is not None:
            ask.got.add(key)
            if len(ask.got) >= ask.n and not ask.withdrawn:
                del self.asks[ask.id]
        if key in self.spool.tells:
            self.send_tell(key)
        elif key in self.held or key in self.done:
            return
        elif key in self.stopped:
            if self.stopped[key] == "pruned":
                self.tell(key, {"state": "pruned"})
        elif self.no_name:
            return
        elif self.leaving is not None or len(self.held) >= self.habits.slots + self.habits.ahead:
            self.tell(key, {"state": "released"})
        elif self.rng.random() < self.habits.careless:
            self.done.add(key)
        else:
            self.held[key] = _Held(grant, 0)
            self.spool.grants[key] = grant, 0

    def on_receipt(self, receipt: Message) -> None:
        id, status = receipt["id"], receipt["status"]
        if receipt.get("run", self.run) != self.run:
            return
        if receipt.get("reason") == "name-in-use":
            self.give_up_the_name()
            return
        key = next((key for key in self.spool.tells if tell_id(key) == id), None)
        if key is not None:
            if "retry_after_s" in receipt:
                self.later(receipt["retry_after_s"], lambda: self.send_tell(key))
                return
            message = self.spool.tells.pop(key)
            self.done.add(key)
            if status == "rejected":
                self.spool.rejected[key] = {"tell": message, "receipt": receipt}
        ask = self.asks.get(id)
        if ask is not None:
            if status == "waiting" or "retry_after_s" in receipt:
                ask.answered = True
            else:
                del self.asks[id]
                if status == "closed" and receipt["reason"] != "withdrawn":
                    self.closed = True
                    if self.leaving is None and self.habits.study is not None:
                        self.leaving = 0
                elif status == "rejected" and self.leaving is None:
                    self.leaving = 1
        if "stop" in receipt and id.startswith("r."):
            _, study, trial, fence, _ = id.split(".")
            self.on_stop((study, int(trial), int(fence)), receipt["stop"])

    def on_stop(self, key: Key, reason: str) -> None:
        if key in self.spool.tells or key in self.done:
            return
        self.stopped[key] = reason
        held = self.held.get(key)
        if held is None:
            return
        if reason == "pruned":
            self.tell(key, {"state": "pruned"})
        else:
            self.give_up(key)

    def give_up(self, key: Key) -> None:
        self.held.pop(key).halted = True
        self.spool.grants.pop(key, None)
        self.done.add(key)

    def give_up_the_name(self) -> None:
        self.no_name, self.leaving = True, 1
        self.asks.clear()
        for key in list(self.held):
            self.give_up(key)

    # ------------------------------------------------------------ training and tells

    def start(self, key: Key, held: _Held) -> None:
        held.training = True
        held.starts += 1
        self.spool.grants[key] = held.grant, held.starts
        seconds = self.rng.uniform(0.2, self.habits.train_s)
        if self.habits.reports and self.rng.random() < 0.5:
            for step in range(self.rng.randint(1, 3)):
                self.later(seconds * (step + 1) / 5, lambda step=step: self.report(key, held, step))    # type: ignore[misc]  # mypy cannot infer a lambda with a default
        self.later(seconds, lambda: self.finish(key, held))

    def report(self, key: Key, held: _Held, step: int) -> None:
        if not held.halted and self.held.get(key) is held:
            study, trial, fence = key
            self.send("report", {"id": f"r.{study}.{trial}.{fence}.{step}", "study": study, "trial": trial,
                                 "fence": fence, "step": step, **reported(self.machine.world.goals[study], self.rng)})

    def finish(self, key: Key, held: _Held) -> None:
        if held.halted or self.held.get(key) is not held:
            return
        if self.rng.random() < 0.02:
            self.machine.crash()                # the training took the process with it
            self.machine.world.ended(self.machine, 139)
            return
        self.tell(key, self.outcome(key[0]))
        self.fill()

    def tell(self, key: Key, outcome: Message) -> None:
        """Save, then send; until a receipt comes, again."""
        held = self.held.pop(key, None)
        if held is not None:
            held.halted = True
        study, trial, fence = key
        message = {"id": tell_id(key), "study": study, "trial": trial, "fence": fence, **outcome}
        self.machine.world.saved(self.machine, key, message)
        self.spool.tells[key] = message
        self.spool.grants.pop(key, None)
        if self.rng.random() < 0.02:
            self.machine.crash()                # between the disk and the network
            self.machine.world.ended(self.machine, 137)
            return
        ask = None
        if self.habits.ask_in_tell and self.room() > 0:
            ask = self.ask_message(self.new_ask())
        self.tries[key] = 0
        self.send_tell(key, ask)

    def send_tell(self, key: Key, ask: Message | None = None) -> None:
        message = self.spool.tells.get(key)
        if message is None:
            return
        self.send("tell", message if ask is None else {**message, "ask": ask})
        tries = self.tries[key] = self.tries.get(key, 0) + 1
        seconds = self.rng.uniform(0.5, 1.0) * min(RESEND_MAX_S, RESEND_S * 2.0 ** min(tries - 1, 8))
        self.later(seconds, lambda: self.tell_again(key, tries))

    def tell_again(self, key: Key, tries: int) -> None:
        if self.tries.get(key) == tries:        # a newer transmission has its own timer
            self.send_tell(key)

    def leave(self) -> None:
        if self.leaving is not None:
            return
        self.leaving = 0
        for ask in list(self.asks.values()):
            ask.withdrawn = True
            self.send_ask(ask)
        for key in list(self.held):
            self.tell(key, {"state": "released"})
            if self.dead:
                return
        if not self.spool.tells and not self.asks:
            self.machine.ended(0)


def reported(goals: list[str], rng: Random) -> dict[str, Any]:
    """What a report says of a study's objectives."""
    if len(goals) == 1:
        return {"value": round(rng.random(), 3)}
    return {"values": {goal: round(rng.random(), 3) for goal in goals}}


def tell_id(key: Key) -> str:
    return f"t.{key[0]}.{key[1]}.{key[2]}"


# ---------------------------------------------------------------- the Python client


class AgentProcess(Process):
    """The Python client's agent, with its effects carried out on virtual time."""

    def __init__(self, machine: Machine, run: str) -> None:
        super().__init__(machine, run)
        habits = self.habits
        self.agent = client.Agent(
            client.Settings(run=run, study=habits.study, slots=habits.slots, prefetch=habits.ahead,
                            lease_s=habits.lease_s, tags=habits.tags), machine.agent_spool, self.rng)
        self._timer: asyncio.TimerHandle | None = None
        self._ticked = -1.0
        self._idle_ticks = 0

    @property
    def at_rest(self) -> bool:
        return not self.machine.agent_spool.grants and not self.machine.agent_spool.tells and not self.agent.training

    def begin(self) -> None:
        self.carry_out(self.agent.begin(self.loop.time()))
        self.connect()

    def on_connect(self) -> None:
        if self.link.connected:
            self.carry_out(self.agent.connected(self.loop.time()))

    def on_disconnect(self) -> None:
        self.carry_out(self.agent.disconnected(self.loop.time()))

    def on_message(self, kind: str, data: Message) -> None:
        self.carry_out(self.agent.received(kind, data, self.loop.time()))

    def leave(self) -> None:
        self.carry_out(self.agent.leave(self.loop.time(), patience_s=1e6))

    def carry_out(self, effects: list[client.Effect]) -> None:
        for effect in effects:
            if self.dead:
                return
            if isinstance(effect, client.Send):
                self.send(effect.kind, effect.message)
            elif isinstance(effect, client.Start):
                self.train(effect.lease)
            elif isinstance(effect, client.Halt):
                key = effect.key
                self.later(self.rng.uniform(0.0, 2.0), lambda key=key: self.finish(key))    # type: ignore[misc]  # mypy cannot infer a lambda with a default
        if self.agent.end is not None and not self.dead:
            self.machine.ended(self.agent.end.code)
            return
        self.set_timer()

    def set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self.agent.due_s()
        if due is not None:
            self._timer = self.loop.call_at(max(due, self.loop.time()), self._when_awake, self.tick)

    def tick(self) -> None:
        now = self.loop.time()
        self._idle_ticks = self._idle_ticks + 1 if now == self._ticked else 0
        self._ticked = now
        if self._idle_ticks > IDLE_TICKS_MAX:       # in the real world it would take a whole processor
            self.machine.world.fault(f"the client of {self.machine.name} wants to be called for ever at one moment")
            self.machine.crash()
            return
        self.carry_out(self.agent.tick(now))

    def train(self, lease: client.Lease) -> None:
        seconds = self.rng.uniform(0.2, self.habits.train_s)
        if self.habits.reports and self.rng.random() < 0.5:
            for step in range(self.rng.randint(1, 3)):
                self.later(seconds * (step + 1) / 5, lambda step=step: self.report(lease.key, step))    # type: ignore[misc]  # mypy cannot infer a lambda with a default
        self.later(seconds, lambda: self.finish(lease.key))

    def report(self, key: Key, step: int) -> None:
        said = reported(self.machine.world.goals[key[0]], self.rng)
        self.carry_out(self.agent.report(key, step, said, self.loop.time()))

    def finish(self, key: Key) -> None:
        if key not in self.agent.training:
            return
        if self.rng.random() < 0.02:
            self.machine.crash()
            self.machine.world.ended(self.machine, 139)
            return
        self.carry_out(self.agent.finished(key, self.outcome(key[0]), self.loop.time()))
