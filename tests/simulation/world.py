"""A seeded world: the real service, workers and an operator in one process, and everything that can go wrong.

    outcome = simulate(seed)

A world has two acts. In the first, studies are made and trials run while daemons are killed,
brokers lose everything, disks fill up, workers crash, freeze, vanish and fight for a name, and
messages are lost, doubled, delayed and overtaken. In the second the faults stop, and the world must
come to rest: every study closed, every worker ended, every result delivered. All the while the
oracles watch (`_judge` for letters as they leave, `ledger.py` for events as they are committed),
and at the end the log is replayed and compared with the life that wrote it.

The same seed gives the same world, to the last byte of its log.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import orjson
from tests.simulation.ledger import Ledger, Message, agrees
from tests.simulation.ledger import Study as LedgerStudy
from tests.simulation.workers import Habits, Key, Machine, tell_id
from tests.study.story import untidy

from bayesd.log import CommitFailed, DiskFull, MemoryDisk, Row
from bayesd.notes import Signer, open_note
from bayesd.replay import event_of, fold
from bayesd.service import Settings
from bayesd.study import snapshot
from bayesd.study.fold import replay
from bayesd.study.merkle import root_of
from bayesd.study.state import State, Study
from bayesd.study.warm import sources_of
from bayesd.testing import Daemon, MemoryBroker, MemoryBus, MemoryClient, Weather, inline, run, slow

CALM = Weather()
SIGNER = Signer("memory", bytes(32))
ANSWER_S = 2.0
REST_S = 3000.0         # the second act ends by then, in virtual time
OUTCOMES = frozenset(("trial.completed", "trial.paused", "trial.failed", "trial.pruned", "outcome.late",
                      "lease.released"))

SPACES: list[Message] = [
    {"x": {"type": "float", "low": 0, "high": 1}},
    {"a": {"type": "int", "low": 1, "high": 3}, "b": {"type": "categorical", "choices": ["u", "v"]}},
    {"c": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
     "k": {"type": "categorical", "choices": ["rbf", "poly"]},
     "d": {"type": "int", "low": 2, "high": 5, "when": {"k": "poly"}}},
    {"w": {"type": "ordinal", "choices": [1, 10, 100]}, "x": {"type": "float", "low": -2, "high": 2}},
]
POINTS: list[Message] = [{"x": 0.5}, {"a": 2, "b": "v"}, {"c": 1.0, "k": "rbf"}, {"w": 10, "x": 1.0}]

CONSTRAINTS = ["(x - 0.5) ** 2 < 0.1", 'a != 3 or b == "v"', "c * d <= 100", "w * abs(x) <= 50 and x != 0"]
"""One for each space; the ledger knows them in its own words. The points by hand satisfy them."""


class Fault(AssertionError):
    """A world in which a rule was broken. Says which, and by what seed it is seen again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a world."""

    seed: int
    faults: tuple[str, ...]
    events: int
    digest: str
    """Of the log's bytes: the same seed gives the same."""
    seconds: float
    """Virtual ones."""
    types: dict[str, int]

    def check(self) -> None:
        if self.faults:
            raise Fault(f"seed {self.seed}: {self.faults[0]}\n"
                        f"see it again: python tests/simulation/run.py --seed {self.seed} --worlds 1 --trace")


def simulate(seed: int, *, trace: Callable[[str], None] | None = None) -> Outcome:
    """Let one world live."""
    return run(World(seed, trace).live())


class _WatchedBus(MemoryBus):
    """The bus, with the world looking at what comes in and when it is acknowledged."""

    def __init__(self, broker: MemoryBroker, world: "World") -> None:
        super().__init__(broker)
        self._world = world

    def _receive(self, topic: str, payload: bytes) -> None:
        world = self._world
        service = world.daemon.service
        assert service is not None
        desk, done = service.desk, [False, False]

        def ack() -> None:
            if done[0]:
                world.fault("a message was acknowledged twice")
            done[0] = True
            if done[1] and desk is service.desk and len(world.disk.rows) < needs:
                world.fault(f"a message was acknowledged before the commit of event {needs}, which it caused")

        before, needs = desk.state.seq, 0
        world.arrives(topic, payload)
        try:
            self._on_message(topic, payload, ack)
        except Exception as error:
            self._failure = error
            self._client.disconnect()
        needs, done[1] = desk.state.seq, True
        if done[0] and needs != before:
            world.fault(f"a message was acknowledged at once although it caused event {needs}")


class World:
    """Everything there is, and what the oracles know of it."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.faults: list[str] = []
        self.goals: dict[str, list[str]] = {}
        self.limits: dict[str, list[str]] = {}
        """Study -> metrics that it has a limit on."""
        self.sent: dict[tuple[str, str], list[Message]] = {}
        """(worker, id of a tell) -> the different tells that were sent under it."""
        self.spooled: dict[tuple[str, Key], list[tuple[Machine, Message]]] = {}
        self.machines: list[Machine] = []
        self.ledger = Ledger(self._said)
        self.disk = MemoryDisk()
        self.receipts: dict[tuple[str, str], set[str]] = {}
        self.acting = True
        self.rows_read = 0
        self._trace = trace
        self._unanswered: dict[tuple[str, str, str], float] = {}
        self._samples: list[tuple[int, bytes, str]] = []
        self._full_until = -1.0
        self._morning = 0.0
        self._armed: list[str] = []
        self._operator: Operator | None = None
        self._doing: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ what the workers tell us

    def saved(self, machine: Machine, key: Key, tell: Message) -> None:
        self.spooled.setdefault((machine.name, key), []).append((machine, tell))

    def ended(self, machine: Machine, code: int) -> None:
        self.trace(f"{machine.name} ends with {code}")
        if code != 0 and not machine.retired:
            # Its supervisor starts it again, as systemd does.
            self.later(machine.rng.uniform(0.5, 10.0), lambda: self._start_again(machine))

    def _start_again(self, machine: Machine) -> None:
        if not machine.retired or machine.holds:
            machine.start()

    def trace(self, text: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.loop.time():9.2f}  {text}")

    def fault(self, text: str) -> None:
        self.trace(f"FAULT: {text}")
        self.faults.append(text)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self.loop.call_later(seconds, self._by_day, act)

    def _by_day(self, act: Callable[[], None]) -> None:
        """Do it now, or when the night is over."""
        if self.loop.time() < self._morning:
            self.loop.call_at(self._morning, act)
        else:
            act()

    def _said(self, worker: str, study: str, trial: int, fence: int) -> list[Message]:
        return self.sent.get((worker, tell_id((study, trial, fence))), [])

    # ------------------------------------------------------------ the daemon's surroundings

    async def before_commit(self, rows: Sequence[Row]) -> None:
        if self._full_until > self.loop.time():
            self.ledger.steady_since = self.loop.time() + 20.0
            await asyncio.sleep(self.latency())
            # The daemon throws its memory away, and with it what was not answered yet.
            self._forget_promises()
            self.later(0.01, self._forget_promises)
            raise DiskFull("no space left (a simulated disk)")
        await self._commit("before")

    async def after_commit(self, rows: Sequence[Row]) -> None:
        self.ledger.read(self.disk.rows, self.loop.time())
        await self._commit("after")

    async def _commit(self, when: str) -> None:
        await asyncio.sleep(self.latency())
        if self._armed and self._armed[0].endswith(when):
            what = self._armed.pop(0)
            if what.startswith("kill"):
                self.trace(f"the daemon is killed {when} a commit")
                self.kill()
            else:
                self.trace(f"the disk reports an error {when} a commit")
                raise CommitFailed("input/output error (a simulated disk)")

    def latency(self) -> float:
        return 0.0 if self.rng.random() < 0.7 else self.rng.uniform(0.0, self.commit_s)

    def kill(self, again_s: float | None = None) -> None:
        self.daemon.kill()
        self._lifeless()
        self.later(self.rng.uniform(0.1, 8.0) if again_s is None else again_s, self.revive)

    def _forget_promises(self) -> None:
        """What a daemon has only in memory: asks that stand, and which were withdrawn."""
        self._unanswered.clear()
        self.ledger.withdrawn.clear()

    def _lifeless(self) -> None:
        self._forget_promises()
        self.ledger.steady_since = 1e12

    def daemon_ended(self, error: BaseException | None) -> None:
        """A life that was not killed came to its end."""
        self._lifeless()
        if error is not None:
            causes = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
            for cause in causes:
                if not isinstance(cause, CommitFailed):
                    self.fault(f"the daemon died of {cause!r}")
                    self._trace_error(cause)
            self.later(self.rng.uniform(0.1, 5.0), self.revive)

    def _trace_error(self, error: BaseException) -> None:
        if self._trace is not None:
            import traceback
            self._trace("".join(traceback.format_exception(error)))

    def revive(self) -> None:
        if self.daemon.service is None:
            task = asyncio.ensure_future(self._revive())
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)

    async def _revive(self) -> None:
        if self.daemon.service is None:
            self.trace("the daemon starts")
            self.ledger.steady_since = self.loop.time() + self.ledger.commit_s
            self._at_start()
            await self.daemon.start(now=self.rng.uniform(0.0, 1e5))

    def _at_start(self) -> None:
        """Open leases get their full time again."""
        self.ledger.read(self.disk.rows, self.loop.time())
        for study in self.ledger.studies.values():
            for trial in study.trials:
                for lease in trial.leases[-1:]:
                    lease.renewed = lease.perhaps = self.loop.time()

    # ------------------------------------------------------------ what comes in

    def arrives(self, topic: str, payload: bytes) -> None:
        """A message reaches the living daemon."""
        origin = self.broker.topics.parse(topic)
        if origin is None:
            return
        self.trace(f"from {origin.who}: {origin.kind} {payload[:200]!r}")
        now, ledger = self.loop.time(), self.ledger
        try:
            message = json.loads(payload)
        except ValueError:
            return
        if not isinstance(message, dict) or not all(isinstance(message.get(key, ""), str) for key in ("id", "run")):
            return
        service = self.daemon.service
        assert service is not None
        if not service._introduced:
            return              # it still listens for another daemon on this root
        if origin.kind == "tell" and isinstance(message.get("ask"), dict):
            self._ask_arrives(origin.who, message["ask"], now)
        elif origin.kind == "ask":
            self._ask_arrives(origin.who, message, now)
        elif origin.kind == "beat" and not service.desk.disk_full:
            listed = ledger.listed.setdefault((origin.who, message.get("run", "")), set())
            for key in message.get("leases", ()):
                listed.add(tuple(key))
                lease = ledger.lease(*key)
                if lease is not None and lease.worker == origin.who:
                    lease.perhaps = now
                    if lease.run == message["run"] and lease.ended is None and not self._uncertain():
                        lease.renewed = now

    def _uncertain(self) -> bool:
        """Something decided is not on disk yet, so what is on disk is not what the daemon judges by."""
        service = self.daemon.service
        return service is None or service.desk.state.seq != len(self.disk.rows) or self.ledger.seq != len(
            self.disk.rows)

    def _ask_arrives(self, worker: str, ask: Message, now: float) -> None:
        if not isinstance(ask, dict) or "run" not in ask or "value" in ask or ask.get("n", 1) not in range(100):
            return              # noise
        key = (worker, ask["run"], ask["id"])
        self._unanswered.setdefault(key, now)
        if ask.get("n") == 0:
            self.ledger.withdrawn.setdefault(key, now)

    # ------------------------------------------------------------ what goes out

    def watch(self, who: str, topic: str, payload: bytes) -> None:
        """Every message as it is published."""
        if who == "daemon":
            if payload:
                self._judge(topic, json.loads(payload))
        elif topic.endswith("/tell"):
            tell = json.loads(payload)
            ask = tell.pop("ask", None)
            if ask is not None:
                self._asked(who, ask)
            known = self.sent.setdefault((who, tell["id"]), [])
            if tell not in known:
                known.append(tell)
        elif topic.endswith("/ask"):
            try:
                self._asked(who, json.loads(payload))
            except (ValueError, KeyError, TypeError):
                return          # a bad message, sent on purpose

    def _asked(self, who: str, ask: Message) -> None:
        key = (who, ask["run"], ask["id"])
        self.ledger.ask_max[key] = max(self.ledger.ask_max.get(key, 0), ask.get("n", 1))
        self.ledger.ask_tags[key] = {*self.ledger.ask_tags.get(key, ()), *ask.get("tags", ())}

    def _judge(self, topic: str, body: Message) -> None:
        """A letter leaves: everything that it speaks of is on disk, and it is true."""
        rows, ledger = self.disk.rows, self.ledger
        ledger.read(rows, self.loop.time())
        self._blame()
        seq = body.get("seq", (body.get("result") or {}).get("seq", 0) if isinstance(body.get("result"), dict) else 0)
        if seq > len(rows):
            self.fault(f"{topic} speaks of event {seq} while the disk has {len(rows)}")
            return
        if topic == self.broker.topics.head:
            self._judge_head(body["note"])
        if not topic.startswith(self.broker.topics.prefix + "/to/"):
            return
        _, who, kind = topic.rsplit("/", 2)
        if self._trace is not None:
            self.trace(f"   to {who}: {kind} {json.dumps(body)}")
        if kind == "grant":
            self._judge_grant(who, body)
        elif kind == "stop":
            self._judge_stop(who, body)
        elif kind == "receipt":
            self._judge_receipt(who, body)

    def _judge_head(self, note: str) -> None:
        """It is saved, and says of the first events what is on the disk."""
        rows, head = self.disk.rows, open_note(note, SIGNER.vkey)
        if head.size > len(rows) or head.root != root_of([row.hash for row in rows[:head.size]]):
            self.fault(f"a head of {head.size} events is not that of the {len(rows)} on the disk")
        if not any(saved.note == note.encode() for saved in self.disk.notes):
            self.fault(f"a head of {head.size} events is said and not saved")

    def _judge_grant(self, who: str, grant: Message) -> None:
        self._unanswered.pop((who, grant["run"], grant["ask"]), None)
        key = grant["study"], grant["trial"], grant["fence"]
        lease = self.ledger.lease(*key)
        if lease is None:
            self.fault(f"{key} is granted to {who} before its lease is on disk")
        elif (lease.worker, lease.ask) != (who, grant["ask"]):
            self.fault(f"{key} is granted to {who} for {grant['ask']}; its lease is of {lease.worker}, {lease.ask}")
        elif grant["params"] != self.ledger.studies[key[0]].trials[key[1] - 1].params:
            self.fault(f"{key} is granted with {grant['params']}, which was not proposed")
        elif "fidelity" in grant and grant["fidelity"]["value"] != (lease.rung or 5):
            self.fault(f"{key} is granted with {grant['fidelity']}; its lease is for {lease.rung}")

    def _judge_stop(self, who: str, stop: Message) -> None:
        key = stop["study"], stop["trial"], stop["fence"]
        lease = self.ledger.lease(*key)
        if lease is not None and lease.worker == who and lease.ended is None and stop["reason"] != "pruned":
            self.fault(f"{key} of {who} is stopped ({stop['reason']}) while its lease is open on disk")
        if lease is not None and lease.worker == who and stop["reason"] == "superseded":
            trial = self.ledger.studies[key[0]].trials[key[1] - 1]
            if (trial.leases[-1] is lease and lease.told is None and lease.ended in ("expired", "superseded")
                    and (trial.status == "waiting" or trial.provisional)):
                self.fault(f"{key} of {who} is stopped as superseded, and nobody took it over")

    def _judge_receipt(self, who: str, receipt: Message) -> None:
        id, status = receipt["id"], receipt["status"]
        if "run" in receipt:
            self._unanswered.pop((who, receipt["run"], id), None)
            if receipt.get("reason") == "name-in-use":
                if receipt["run"] == self.ledger.current.get(who) or id != receipt["run"]:
                    self.fault(f"the current run of {who} is told name-in-use")
                for key in [key for key in self._unanswered if key[:2] == (who, receipt["run"])]:
                    del self._unanswered[key]
            return
        if id.startswith("t."):
            self.receipts.setdefault((who, id), set()).add(status)
            self._judge_tell_receipt(who, receipt)
        elif id.startswith("r.") and status in ("recorded", "duplicate"):
            event = self.ledger.bodies[receipt["seq"] - 1]
            _, study, trial, fence, step = id.split(".")
            if (event["type"], event["study"], event["trial"], event["data"]["fence"], event["data"]["step"]) != (
                    "trial.reported", study, int(trial), int(fence), int(step)):
                self.fault(f"the receipt of {id} names event {receipt['seq']}, a {event['type']}")

    def _judge_tell_receipt(self, who: str, receipt: Message) -> None:
        """Each receipt names exactly the event in the log."""
        id, status = receipt["id"], receipt["status"]
        _, study, trial, fence = id.split(".")
        key = study, int(trial), int(fence)
        ledger = self.ledger
        if status == "rejected":
            if receipt["reason"] not in ("disk-full",) and who not in ledger.revoked:
                self.fault(f"a good tell {id} of {who} is rejected: {receipt['reason']}, {receipt.get('detail')}")
            return
        if "seq" not in receipt:
            if status != "late" or not any(tell.get("state") == "released" for tell in self._said(who, *key)):
                self.fault(f"the receipt of {id} says {status} and names no event")
            return
        seq = receipt["seq"]
        row, event = self.disk.rows[seq - 1], ledger.bodies[seq - 1]
        if receipt["hash"] != row.hash.hex():
            self.fault(f"the receipt of {id} has another hash than event {seq}")
        if (event["type"] not in OUTCOMES or event["actor"] != f"worker/{who}"
                or (event["study"], event["trial"], event["data"]["fence"]) != key):
            self.fault(f"the receipt of {id} to {who} names event {seq}, a {event['type']} of {event.get('study')}/"
                       f"{event.get('trial')} by {event['actor']}")
            return
        if ledger.outcomes.get(key) != seq:
            self.fault(f"the receipt of {id} names event {seq}; the first tell is event {ledger.outcomes.get(key)}")
        told = self._said(who, *key)
        late = event["type"] == "outcome.late"
        if status in ("recorded", "duplicate"):
            if late:
                self.fault(f"the late tell {id} of {who} is told {status}")
            if not any(agrees(ledger.studies[study].goals, event, tell) for tell in told):
                self.fault(f"{id} of {who} is {status}, but event {seq} does not say it")
            if status == "recorded" and "recorded" in self._told_before(who, id, seq):
                self.fault(f"{id} of {who} is recorded a second time")
        elif status == "late":
            if not late and len(told) < 2:
                self.fault(f"{id} of {who} is told late, but event {seq} is its result")
        else:
            self.fault(f"a tell is told {status}")

    def _told_before(self, who: str, id: str, seq: int) -> list[str]:
        known = self._recorded.setdefault((who, id), [])
        known.append("recorded")
        return known[:-1]

    # ------------------------------------------------------------ the two acts

    async def live(self) -> Outcome:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._on_loop_error)
        rng = self.rng
        self._recorded: dict[tuple[str, str], list[str]] = {}
        self.commit_s = rng.choice([0.01, 0.05, 0.4])
        self.ledger.commit_s = 3 * self.commit_s + 0.01     # it waits for one commit, then for its own
        self.tick_s = rng.choice([0.25, 0.5, 1.0, 1.0])
        self.storm = Weather(drop=rng.choice([0.0, 0.05, 0.2, 0.35]), twice=rng.choice([0.0, 0.1, 0.3]),
                             delay_s=rng.choice([0.0, 0.1, 2.0, 8.0]), overtake=rng.random() < 0.7)
        self.broker = MemoryBroker(rng.getrandbits(32), self.storm)
        self.broker.watchers.append(self.watch)
        self.ledger.slack_s = 2 * self.tick_s + 2 * self.ledger.commit_s
        settings = Settings(tick_s=self.tick_s, settle_s=rng.choice([0.0, 0.5]), events=rng.random() < 0.2,
                            snapshot_events=rng.choice([10, 40, 20_000]), full_disk_retry_s=rng.choice([1.0, 5.0]),
                            note_events=(5, 40, 1000)[self.seed // 6 % 3], note_s=(2.0, 60.0)[self.seed // 18 % 2])
        self.daemon = Daemon(
            self.broker, self.disk, settings=settings,
            suggest=slow(rng.getrandbits(32), rng.choice([0.1, 1.0, 4.0])) if rng.random() < 0.3 else inline,
            before_commit=self.before_commit, after_commit=self.after_commit,
            make_bus=lambda broker: _WatchedBus(broker, self), on_end=self.daemon_ended,
            signer=SIGNER if self.seed % 6 == 5 else None)      # no draw: the other worlds stay as they are
        self._operator = Operator(self, "op")
        await self._revive()
        self.trace(f"{self.storm} tick {self.tick_s} commit {self.commit_s}")
        specs = [self.make_study(i) for i in range(rng.choice([1, 1, 2, 3]))]
        for spec in specs:
            warm(spec, specs[0])
            self.later(rng.uniform(0.0, 10.0), lambda spec=spec: self.create(spec))    # type: ignore[misc]  # mypy cannot infer a lambda with a default
        for i in range(rng.choice([1, 2, 2, 3, 4, 6])):
            self.make_machine(f"w{i}", rng.choice([None, *[spec["name"] for spec in specs]]))
        await self.first_act(rng.uniform(30.0, 90.0))
        if not self.faults:
            await self.second_act()
        await self.check_replay()
        self._blame()
        counts: dict[str, int] = {}
        for row in self.disk.rows:
            counts[row.type] = counts.get(row.type, 0) + 1
        digest = hashlib.sha256(b"\n".join(row.body for row in self.disk.rows)).hexdigest()
        for machine in self.machines:
            machine.crash()
        self.daemon.kill()
        return Outcome(self.seed, tuple(self.faults), len(self.disk.rows), digest, self.loop.time(), counts)

    @property
    def operator(self) -> "Operator":
        assert self._operator is not None
        return self._operator

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.fault(f"{context['message']}: {error!r}")
        if error is not None:
            self._trace_error(error)

    def create(self, spec: Message) -> None:
        """Have a study made; one that is to be helped waits until there is help, and does without in the end."""
        for start in spec.get("warm_start", ()):
            earlier = self.ledger.studies.get(start["study"])
            if earlier is None or not earlier.results():
                if self.acting:
                    self.later(3.0, lambda: self.create(spec))
                    return
                del spec["warm_start"]
                break
        self.operator.ask("study.create", {"spec": spec})

    def make_study(self, i: int) -> Message:
        rng = self.rng
        which = rng.randrange(len(SPACES))
        method = rng.choice(["random", "random", "sobol", "sobol", "grid", "bayes"])
        if method == "grid":
            which = 1
        name = f"s{i}"
        spec: Message = {"name": name, "method": method, "seed": rng.randrange(1000), "space": SPACES[which],
                         "direction": rng.choice(["minimize", "maximize"]),
                         "lease": {"default_s": rng.choice([6, 10, 20, 30]), "max_s": 60},
                         "retry": {"lost": rng.choice([0, 1, 2]), "crash": rng.choice([0, 1]),
                                   "timeout": rng.choice([0, 0, 2])}}
        budget: Message = {}
        if rng.random() < 0.8 or method == "bayes":
            budget["trials"] = rng.randint(1, 6 if method == "bayes" else 12)
        if rng.random() < 0.15:
            budget["wall"] = rng.uniform(10, 100)
        if rng.random() < 0.15:
            budget["cost"] = rng.uniform(2, 15)
        if budget:
            spec["budget"] = budget
        if spec["seed"] % 5 == 1:
            spec["confirm"] = {"top": spec["seed"] % 3 + 1, "repeats": spec["seed"] % 2 + 1}
        if spec["seed"] % 3 == 0:
            spec["fidelity"] = {"name": "epochs", "max": 5, "reduction": 2}
            spec["prune"] = [{"rule": "median", "startup": 1}, {"rule": "asha"}, {"rule": "hyperband"},
                             {"rule": "race", "startup": 1, "error": 0.4}][spec["seed"] // 3 % 4]
            if spec["prune"]["rule"] == "median" and spec["seed"] // 12 % 2:
                spec["prune"] = {"rule": "curve", "startup": 3, "chance": 0.4}
            if spec["prune"]["rule"] == "race":
                del spec["fidelity"]
                spec["folds"] = {"count": 5}
            elif spec["prune"]["rule"] in ("asha", "hyperband") and spec["seed"] // 12 % 2:
                spec["prune"]["resume"] = True
            if spec["prune"].get("resume") and spec["seed"] // 48 % 2:
                spec["budget"] = {**budget, "fidelity": spec["seed"] % 20 + 5}
            if spec["prune"]["rule"] == "hyperband" and spec["seed"] // 24 % 2:
                spec["prune"]["shared"] = True
        if spec["seed"] % 3 == 2:
            spec["stop"] = ({"target": spec["seed"] / 500 - 1} if spec["seed"] % 2
                            else {"patience": spec["seed"] % 5 + 2})
        if spec["seed"] % 4 == 0:
            spec["constraints"] = [CONSTRAINTS[which]]
        if rng.random() < 0.5 and which == 1:
            spec["noise"] = "none"
        if rng.random() < 0.3:
            spec["late"] = "ignore"
        if rng.random() < 0.15:
            spec["tags"] = ["gpu"]
        if rng.random() < 0.2:
            spec["enqueue"] = [POINTS[which]] * rng.randint(1, 2)
        if rng.random() < 0.15:
            del spec["direction"]
            spec["objectives"] = [{"name": "loss"}, {"name": "size", "direction": "maximize"}]
            if "prune" in spec:
                spec["prune"]["metric"] = "loss" if "folds" in spec else "size"      # a race is for the first
                if "folds" not in spec and spec["seed"] // 3 % 2:
                    del spec["prune"]["metric"]
                    spec["prune"]["by"] = "dominance"
        self.goals[name] = [goal["name"] for goal in spec["objectives"]] if "objectives" in spec else ["value"]
        if spec["seed"] % 7 == 2:
            spec["limits"] = [{"name": "latency", "at_most": 0.5},
                              {"name": "floor", "metric": "size", "at_least": -0.5}][:spec["seed"] % 2 + 1]
        self.limits[name] = [limit.get("metric", limit["name"]) for limit in spec.get("limits", ())]
        if spec["seed"] % 4 == 3:
            spec["cost"] = {"per": ["seconds", "cost"][spec["seed"] // 4 % 2]}
        return spec

    def make_machine(self, name: str, study: str | None, *, twin: bool = False, habits: Habits | None = None,
                     wait_s: float | None = None) -> Machine:
        rng = self.rng
        if habits is None:
            beats = rng.random() < 0.9
            habits = Habits(study=study, slots=rng.choice([1, 1, 2, 3]), ahead=rng.choice([0, 1, 1, 3]),
                            n=rng.choice([1, 1, 1, 3]), lease_s=rng.choice([None, None, 5.0, 25.0]) if beats else 60.0,
                            tags=("gpu", "big") if rng.random() < 0.5 else (), beats=beats,
                            ask_in_tell=rng.random() < 0.6, train_s=rng.choice([2.0, 8.0, 15.0]),
                            careless=0.1 if rng.random() < 0.1 else 0.0, agent=rng.random() < 0.35)
        machine = Machine(self, self.broker, name, habits, rng.getrandbits(32))
        machine.retired = twin
        self.machines.append(machine)
        self.later(rng.uniform(0.0, 10.0) if wait_s is None else wait_s, machine.start)
        return machine

    async def first_act(self, seconds: float) -> None:
        rng, loop = self.rng, self.loop
        end = loop.time() + seconds
        pace_s = rng.choice([1.0, 3.0, 10.0])
        while loop.time() < end and not self.faults:
            await asyncio.sleep(rng.expovariate(1 / pace_s))
            await self.mishap()
            self.look()
        self.trace("the faults stop")
        self.acting = False

    def look(self) -> None:
        """The oracles that are not bound to a letter or an event."""
        now = self.loop.time()
        self.ledger.read(self.disk.rows, now)
        self.ledger.check_deadlines(now)
        if self.daemon.service is not None:
            desk = self.daemon.service.desk
            self.faults += untidy(desk)
            if not desk.disk_full and len(self._samples) < 4 and self.rng.random() < 0.15:
                self._samples.append((desk.state.seq, desk.state.hash, snapshot.digest(desk.state)))
            if self.tick_s <= 0.25 and not desk.disk_full:
                late_s = ANSWER_S + 2 * self.ledger.commit_s
                for key, since in self._unanswered.items():
                    # Who has lost its name hears so when it speaks next.
                    if now - since > late_s and key[1] not in self.ledger.replaced.get(key[0], ()):
                        self.fault(f"the ask {key} has no answer after {now - since:.2f} s")
        self._blame()

    def _blame(self) -> None:
        for text in self.ledger.faults:
            self.fault(text)
        self.ledger.faults.clear()

    async def mishap(self) -> None:
        """One thing that goes wrong, or that an operator does."""
        rng = self.rng
        machine = rng.choice(self.machines)
        what = rng.choices(list(MISHAPS), weights=list(MISHAPS.values()))[0]
        if what == "kill":
            self.trace("the daemon is killed")
            self.kill()
        elif what == "commit":
            if not self._armed:
                self._armed.append(rng.choice(["kill before", "kill after", "kill after", "error before",
                                               "error after"]))
        elif what == "stop":
            self.trace("the daemon is stopped")
            if self.daemon.service is not None and self._full_until < self.loop.time():
                await self.daemon.stop()
                self.later(rng.uniform(0.0, 5.0), self.revive)
        elif what == "disk":
            self._full_until = self.loop.time() + rng.uniform(1.0, 15.0)
            self.ledger.steady_since = self._full_until + 20.0
            self._unanswered.clear()
            self.trace(f"the disk is full until {self._full_until:.2f}")
        elif what == "broker":
            self.trace("the broker loses everything")
            self._unanswered.clear()
            self.broker.restart(rng.choice([0.0, 1.0, 10.0]))
        elif what == "clock":
            self.daemon.clock.jump(rng.uniform(-3e8, 3e8))
        elif what == "weather":
            self.broker.weather = rng.choice([CALM, self.storm, self.storm])
        elif what == "operator":
            self.operate()
        elif what == "crash":
            self.trace(f"{machine.name} crashes")
            if machine.process is not None:
                machine.crash()
                self.later(rng.uniform(0.1, 20.0), lambda: self._start_again(machine))
        elif what == "freeze" and machine.process is not None:
            seconds = rng.choice([2.0, 15.0, 60.0])
            self.trace(f"{machine.name} freezes for {seconds} s")
            machine.process.freeze(seconds)
        elif what == "offline" and machine.process is not None:
            seconds = rng.choice([1.0, 10.0, 60.0])
            self.trace(f"{machine.name} is offline for {seconds} s")
            machine.process.offline(seconds)
        elif what == "leave" and machine.process is not None:
            self.trace(f"{machine.name} is told to end")
            machine.process.leave()
            self.later(rng.uniform(5.0, 20.0), lambda: self._start_again(machine))
        elif what == "twin":
            self.trace(f"a twin of {machine.name} starts")
            twin = self.make_machine(machine.name, None, twin=True, habits=machine.habits, wait_s=0.0)
            self.later(rng.uniform(5.0, 30.0), twin.leave)
        elif what == "wipe":
            self.trace(f"the disk of {machine.name} is lost")
            machine.wipe()
            self.later(rng.uniform(0.1, 20.0), lambda: self._start_again(machine))
        elif what == "night":
            await self.night()
        elif what == "noise":
            self.make_noise(machine)

    async def night(self) -> None:
        """Everybody sleeps for days."""
        rng = self.rng
        seconds = rng.choice([3600.0, 86400.0, 30 * 86400.0])
        self.trace(f"a night of {seconds} s")
        self._morning = self.loop.time() + seconds
        for machine in self.machines:
            if machine.process is not None:
                machine.process.freeze(seconds)
                if rng.random() < 0.5:
                    machine.process.offline(seconds)
        service = self.daemon.service
        alive = service is not None and rng.random() < 0.6
        if service is not None and alive:
            # It ticks seldom, so that the days are cheap, and as usual again before they end.
            service.settings = replace(service.settings, tick_s=seconds / 6)
            self.ledger.steady_since = self.loop.time() + seconds + 10.0
            self._unanswered.clear()
        else:
            self.kill(again_s=seconds)
        await asyncio.sleep(seconds - 1.5)
        if service is not None:
            service.settings = replace(service.settings, tick_s=self.tick_s)
        self._unanswered.clear()
        await asyncio.sleep(3.0)
        self._unanswered.clear()

    def make_noise(self, machine: Machine) -> None:
        """Messages that no worker should send. They change nothing, and hurt nobody."""
        rng = self.rng
        bad = rng.choice([b"", b"{", b"[1]", b'{"id":"x"}', b'{"id":"b.1","run":7}', b'{"id":"b.2","run":"r","n":-1}',
                          b'{"id":"b.3","id":"b.3"}', b'{"id":"b.4","study":"nope","trial":1,"fence":1,"value":1}',
                          b'{"id":"b.5","study":"s0","trial":99,"fence":1,"value":1}', b"x" * 70_000,
                          b'{"id":"b.6","study":"s0","trial":1,"fence":77,"step":0,"value":1}', b"\xff\xfe"])
        others = [(name, number, len(trial.leases)) for name, study in self.ledger.studies.items()
                  for number, trial in enumerate(study.trials, start=1)
                  if trial.status == "running" and trial.leases[-1].worker != machine.name]
        if machine.process is not None and others and rng.random() < 0.5:
            study, trial, fence = rng.choice(others)       # a result of somebody else's trial
            machine.process.send("tell", {"id": "b.9", "study": study, "trial": trial, "fence": fence,
                                          "values": dict.fromkeys(self.goals[study], 0.5)})
        elif machine.process is not None:
            topic = self.broker.topics.sent(machine.name, rng.choice(["report", "beat", "ask"]))
            if b"b.2" not in bad or not topic.endswith("beat"):
                machine.process.link.publish(topic, bad)

    def operate(self) -> None:
        """An operator does something sensible, or not."""
        rng, operator = self.rng, self.operator
        if not self.goals:
            return
        name = rng.choice(list(self.goals))
        study = self.ledger.studies.get(name)
        verb = rng.choices(
            ["pause", "resume", "amend", "enqueue", "void", "cancel", "close", "read", "revoke", "confirm"],
            weights=[3, 4, 3, 4, 3, 3, 1.5, 2, 0.5, 1])[0]
        trial = rng.randint(1, max(1, len(study.trials) if study is not None else 1))
        if verb in ("pause", "resume"):
            operator.ask(f"study.{verb}", {"study": name})
        elif verb == "amend":
            changes = rng.choice([{"budget": {"trials": rng.randint(1, 14)}}, {"budget": {"cost": rng.uniform(5, 30)}},
                                  {"lease": {"default_s": rng.choice([8, 15])}}, {"retry": {"lost": rng.randint(0, 3)}},
                                  {"method": rng.choice(["random", "sobol"])}])
            operator.ask("study.amend", {"study": name, "changes": changes})
        elif verb == "enqueue":
            again = {"again": trial, "repeats": trial % 2 + 1}
            operator.ask("study.enqueue", {"study": name, **({"params": rng.choice(POINTS)} if self.ledger.seq % 2
                                                             else again)})
        elif verb == "void":
            operator.ask("trial.void", {"study": name, "trial": trial, "reason": "the sensor was unplugged"})
        elif verb == "cancel":
            operator.ask("trial.cancel", {"study": name, "trial": trial})
        elif verb == "close":
            operator.ask("study.close", {"study": name, "running": rng.choice(["finish", "stop"])})
        elif verb == "confirm":
            operator.ask("study.confirm", {"study": name, "top": rng.randint(1, 3)})
        elif verb == "read":
            past = {"at": max(1, self.ledger.seq // 2)} if self.ledger.seq % 2 else {}
            operator.ask(rng.choice(["study.list", "study.show", "trial.list", "worker.list", "events", "study.best"]),
                         {"study": name, **past})
        elif len(self.machines) > 1:
            operator.ask("worker.revoke", {"worker": rng.choice(self.machines).name})

    async def second_act(self) -> None:
        """The faults stop, and everything comes to rest."""
        loop, began = self.loop, self.loop.time()
        self.broker.weather = CALM
        self._armed.clear()
        self._full_until = -1.0
        self.ledger.steady_since = max(self.ledger.steady_since if self.ledger.steady_since < 1e11 else 0.0,
                                       loop.time() + 20.0)
        self._unanswered.clear()
        helpers = False
        resumed: dict[str, float] = {}
        while not self.faults:
            await asyncio.sleep(2.0)
            self.look()
            if self.daemon.service is None and loop.time() - began > 10.0:
                self.revive()
            state = self.daemon.service.desk.state if self.daemon.service is not None else None
            if loop.time() - began > 6.0 and not helpers and len(self.ledger.studies) == len(self.goals):
                helpers = True
                for name in self.goals:
                    # Somebody who takes everything: so no study waits for want of a worker.
                    self.make_machine(f"helper-{name}", name, wait_s=0.0, habits=Habits(
                        study=name, slots=2, ahead=1, tags=("gpu", "big"), train_s=4.0, reports=False))
            if state is not None:
                for name, study in self.ledger.studies.items():
                    # A study that was opened again for its confirmation may have nobody left who measures.
                    endless = loop.time() - began > 60.0 and (
                        "trials" not in study.spec.get("budget", {}) or study.reopened is not None)
                    if study.status == "paused" and loop.time() - resumed.get(name, -100.0) > 20.0:
                        resumed[name] = loop.time()
                        self.operator.ask("study.resume", {"study": name})
                    elif study.status == "open" and endless and loop.time() - resumed.get(name, -100.0) > 20.0:
                        resumed[name] = loop.time()
                        self.operator.ask("study.close", {"study": name})
            for machine in self.machines:
                if machine.process is None and machine.holds:
                    machine.start()
            closed = helpers and all(study.status == "closed" for study in self.ledger.studies.values())
            if closed and loop.time() - began > 12.0:
                for machine in self.machines:
                    machine.retired = True
                    if machine.process is not None:
                        machine.process.leave()
                if all(machine.process is None and not machine.holds for machine in self.machines):
                    break
            if loop.time() - began > REST_S:
                self.fault("the world does not come to rest: " + self.unrest())
                return
        ends = loop.time() + 100.0
        while self.open_leases() and loop.time() < ends:    # those of workers that never beat run out
            await asyncio.sleep(2.0)
        self.look()
        self.check_rest()

    def open_leases(self) -> bool:
        return any(lease.ended is None for study in self.ledger.studies.values()
                   for trial in study.trials for lease in trial.leases[-1:])

    def unrest(self) -> str:
        """Who is still up, and why."""
        said = []
        for name, study in self.ledger.studies.items():
            if study.status != "closed":
                said.append(f"{name} is {study.status} with "
                            + ", ".join(f"{i}:{trial.status}" for i, trial in enumerate(study.trials, start=1)))
        said += [f"{machine.name} runs: {machine.process is not None}, holds {machine.holds}, "
                 f"tells {[*machine.spool.tells, *machine.agent_spool.tells]}"
                 for machine in self.machines if machine.process is not None or machine.holds]
        return "; ".join(said) or f"{len(self.ledger.studies)} of {len(self.goals)} studies exist"

    def check_rest(self) -> None:
        """Everything has its outcome, and no result was lost."""
        for name, study in self.ledger.studies.items():
            for number, trial in enumerate(study.trials, start=1):
                if trial.status not in ("complete", "fail", "pruned", "voided"):
                    self.fault(f"{name}/{number} is {trial.status} at the end of a closed study")
            budget = study.spec.get("budget", {}).get("trials")
            if study.rule == "trials" and budget is not None and not study.voided and not study.amended \
                    and study.used != budget:
                self.fault(f"{name} is closed by its trials with {study.used} of {budget}")
        for (worker, key), tells in self.spooled.items():
            if any(machine.wiped for machine, _ in tells) or worker in self.ledger.revoked:
                continue
            lease = self.ledger.lease(*key)
            what = f"the result {key} of {worker}"
            assert lease is not None
            released = any(tell.get("state") == "released" for _, tell in tells)
            statuses = self.receipts.get((worker, tell_id(key)), set())
            if not statuses - {"rejected"}:
                self.fault(f"{what} has no receipt")
            if lease.told is None and not released:
                self.fault(f"{what} is not in the log; its receipts said {sorted(statuses)}")
            trial = self.ledger.studies[key[0]].trials[key[1] - 1]
            if key[2] == len(trial.leases) and lease.told == "recorded" and trial.status not in (
                    "complete", "fail", "pruned", "voided"):
                self.fault(f"{what} was recorded, and its trial is {trial.status}")

    async def check_replay(self) -> None:
        """The log, folded again, is the life that wrote it; and any part of it replays."""
        rows = self.disk.rows
        service = self.daemon.service
        if service is not None and not self._uncertain():
            self._samples.append((len(rows), rows[-1].hash if rows else bytes(32), snapshot.digest(service.desk.state)))
        samples = {seq: (hash, digest) for seq, hash, digest in self._samples
                   if seq <= len(rows) and (seq == 0 or rows[seq - 1].hash == hash)}
        state, at = State(), 0
        try:
            for seq in [*sorted(samples), len(rows)]:
                replay((event_of(row.body, row.hash) for row in rows[at:seq]), state)
                at = seq
                digest = snapshot.digest(state)
                if seq in samples and samples[seq][1] != digest:
                    self.fault(f"the replay to event {seq} differs from the life that wrote it")
        except Exception as error:
            self.fault(f"the log does not replay: {error!r}")
            self._trace_error(error)
            return
        loaded = snapshot.load(*snapshot.dump(state))
        if loaded is None or snapshot.digest(loaded) != snapshot.digest(state):
            self.fault("a snapshot that is read again differs")
        if self.disk.snapshots:
            log = _Reader(self.disk)
            again, _ = await fold(log)      # type: ignore[arg-type]  # the two methods that fold needs
            if snapshot.digest(again) != snapshot.digest(state):
                self.fault("a snapshot and the tail of the log differ from the whole log")
        self.compare(state)
        if loaded is not None:
            self.compare(loaded)    # a digest says nothing about what is not in it

    def compare(self, state: State) -> None:
        """The ledger's opinion against the fold's."""
        self.ledger.read(self.disk.rows, self.loop.time())
        for name, study in self.ledger.studies.items():
            folded = state.studies[name]
            if (folded.status, folded.closed_by) != (study.status, study.rule):
                self.fault(f"{name} is {folded.status} by {folded.closed_by}; "
                           f"the log says {study.status}, {study.rule}")
            counts = dict.fromkeys(folded.counts, 0)
            for number, trial in enumerate(study.trials, start=1):
                other = folded.trials[number - 1]
                counts[trial.status] += 1
                if (other.status, other.failure) != (trial.status, trial.failure):
                    self.fault(f"{name}/{number} is {other.status}, {other.failure}; the log says {trial.status}, "
                               f"{trial.failure}")
                knows = [seen.values for seen in folded.history if seen.trial == number]
                if sorted(map(repr, knows)) != sorted(map(repr, _floats(trial.known))):
                    self.fault(f"the optimiser knows {knows} of {name}/{number}; it should know {trial.known}")
                if (other.failures or {}).get("lost", 0) != trial.lost:
                    self.fault(f"{name}/{number} was lost {trial.lost} times, and {other.failures} are counted")
            self._compare_beside(name, study, folded)
            if counts != folded.counts:
                self.fault(f"{name} counts {folded.counts}; the log says {counts}")
            if abs(folded.cost - study.cost) > 1e-9:
                self.fault(f"{name} cost {folded.cost}; the log says {study.cost}")
        for worker, current in self.ledger.current.items():
            if state.workers[worker].run != current or state.workers[worker].replaced != self.ledger.replaced[worker]:
                self.fault(f"the runs of {worker} are {state.workers[worker].run} after "
                           f"{state.workers[worker].replaced}; the log says {current} after "
                           f"{self.ledger.replaced[worker]}")


    def _compare_beside(self, name: str, study: LedgerStudy, folded: Study) -> None:
        """What is known beside the values: limits, costs, and what earlier studies measured."""
        sign = 1 if folded.goals[0].direction == "minimize" else -1
        values = {number: sign * trial.values[0] for number, trial in enumerate(study.trials, start=1)
                  if trial.status == "complete" and trial.of is None and trial.values is not None
                  and study.keeps(trial)}
        best = folded.best.number if folded.best is not None else None
        if (best is None) != (not values) or (best is not None and values.get(best) != min(values.values())):
            self.fault(f"{name} is led by {best}, of {values}")
        for number, trial in enumerate(study.trials, start=1):
            seen = [each for each in folded.history if each.trial == number and each.values is not None]
            if trial.status == "complete" and not trial.late and [(each.spent, [*each.limits]) for each in seen] != [
                    (trial.spent, [float(value) for value in study.measured(trial)])]:
                self.fault(f"{name}/{number} took {trial.spent} and measured {trial.told}; the optimiser knows {seen}")
        for source, at in study.warmed.items():
            known = [(params, value) for each in sources_of(folded) for params, value in each.rows]
            there = self.ledger.studies[source].results(at)
            if known != [(trial.params, value) for trial, value in there]:
                self.fault(f"{source} helps {name} with {known}; it measured {there} by event {at}")


def _floats(known: list[Any]) -> list[Any]:
    return [None if values is None else tuple(map(float, values)) for values in known]


def warm(spec: Message, first: Message) -> None:
    """Let the first study of a world help a later one: in the same space, and with the same metric."""
    if spec is not first and spec["seed"] % 3 != 1 and "grid" not in (spec["method"], first["method"]) and (
            ("objectives" in spec) == ("objectives" in first)):
        spec.pop("enqueue", None)
        spec.pop("constraints", None)
        spec |= {"space": first["space"], "warm_start": [{"study": first["name"]}]}
        if "constraints" in first:
            spec["constraints"] = first["constraints"]


class _Reader:
    """A disk as `fold` reads it, without opening it."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk

    async def read(self, after: int = 0, until: int | None = None) -> Any:
        rows = self._disk.rows[after:until]
        if rows:
            yield rows

    async def load_snapshot(self, until: int | None = None) -> Any:
        return self._disk.snapshots[-1]


MISHAPS: dict[str, float] = {
    "kill": 3, "commit": 3, "stop": 1, "disk": 1, "broker": 2, "clock": 1, "weather": 2, "operator": 8, "crash": 4,
    "freeze": 3, "offline": 3, "leave": 2, "twin": 1, "wipe": 0.5, "night": 0.4, "noise": 1.5}


class Operator:
    """Somebody with a terminal: sends a request until it is answered."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.waiting: dict[str, Message] = {}
        self.asked = 0
        self.link = MemoryClient(world.broker, name, [world.broker.topics.to(name, "reply")], self._hear,
                                 self._lost)
        self._connect()

    def _connect(self) -> None:
        if self.link.connect():
            for id in list(self.waiting):
                self._send(id)
        else:
            self.world.later(1.0, self._connect)

    def _lost(self) -> None:
        self.world.later(1.0, self._connect)

    def ask(self, verb: str, args: Message) -> None:
        self.asked += 1
        id = f"{self.name}.{self.asked}"
        self.waiting[id] = {"id": id, "verb": verb, "args": args}
        self.world.trace(f"{self.name}: {verb} {args}")
        self._send(id)

    def _send(self, id: str) -> None:
        if id in self.waiting:
            self.link.publish(self.world.broker.topics.request(self.name), orjson.dumps(self.waiting[id]))
            self.world.later(5.0, lambda: self._send(id))

    def _hear(self, topic: str, payload: bytes) -> None:
        reply = json.loads(payload)
        if reply.get("error", {}).get("code") != "disk-full":      # then it is sent again
            self.waiting.pop(reply["id"], None)
