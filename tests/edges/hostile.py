"""A broker in the middle: it hears all, keeps all, and sends whatever it likes, but has no key.

    daemon = await bench.start()           # w1, w2 and op have keys; honest messages are in the corpus
    bench.forge(20_000)                    # how many of so many altered messages were acted on

`HostileBroker` does the same to a whole world: it drops, delays, alters, moves, replays, strips, makes up messages,
and lies about the log, until it is told to be honest.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bayesd.seals import Seals
from bayesd.service import Service, Settings
from bayesd.testing import Daemon, MemoryBroker, MemoryClient, matches, run
from bayesd_client.link import Address
from bayesd_client.signing import Ignored, Signing
from bayesd_client.trial import Trial
from bayesd_client.worker import Options, Worker
from bayesd_schemas.sealed import Sealer, is_sealed, seal
from bayesd_schemas.topics import Topics

Body = dict[str, Any]

KEYS = {name: bytes([number]) * 32 for number, name in enumerate(("w1", "w2", "op"), 1)}
TOPICS = Topics()
LOG = "memory"
KINDS = ("ask", "beat", "report", "tell")
SPACE = {"x": {"type": "float", "low": 0, "high": 1}}


def altered(payload: bytes, topic: str, corpus: list[tuple[str, bytes]], draw: random.Random) -> tuple[str, bytes]:
    """A message that nobody said: one of the corpus with something changed."""
    other_topic, other = draw.choice(corpus)
    envelope, others = json.loads(payload), json.loads(other)
    match draw.randrange(9):
        case 0:                                              # some bytes
            spoilt = bytearray(payload)
            for _ in range(draw.randint(1, 3)):
                spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
            return topic, bytes(spoilt)
        case 1:                                              # what it says
            said = json.loads(envelope["signed"])
            name = draw.choice(sorted(said))
            said[name] = draw.choice([0.999, "x", 1, None, [["s", 1, 1]]])
            return topic, _envelope(json.dumps(said), envelope["mac"])
        case 2:                                              # the code of another message
            return topic, _envelope(envelope["signed"], others["mac"])
        case 3:                                              # at another topic, of a worker or of the daemon
            return other_topic, payload
        case 4:                                              # said by another worker, or as another kind
            who, kind = draw.choice(("w1", "w2")), draw.choice(KINDS)
            return TOPICS.sent(who, kind), payload
        case 5:                                              # without its envelope
            return topic, envelope["signed"].encode()
        case 6:                                              # without a code, or with half of one
            return topic, _envelope(envelope["signed"], draw.choice([None, "", envelope["mac"][:32], 7, ["a"]]))
        case 7:                                              # cut, or with something behind it
            return topic, payload[:draw.randrange(len(payload))] if draw.random() < 0.5 else payload + b" {}"
        case _:                                              # under a key of one's own, or for another log
            key = draw.choice([KEYS["w1"], KEYS["w2"], bytes(32)])
            log = LOG if key == bytes(32) else "another"
            said = {**json.loads(envelope["signed"]), "count": draw.randint(10_000, 20_000)}    # new, and there
            return topic, seal(key, log, topic.removeprefix(f"{TOPICS.prefix}/"), json.dumps(said).encode())


def _envelope(text: str, mac: Any) -> bytes:
    return json.dumps({"signed": text, "mac": mac}).encode()


def _same(one: bytes, other: bytes) -> bool:
    """Whether it is the same envelope in other bytes: then it is no forgery."""
    try:
        a, b = json.loads(one), json.loads(other)
        return bool(a["signed"] == b["signed"] and a["mac"] == b["mac"])
    except (ValueError, KeyError, TypeError):
        return False


class Bench:
    """A daemon in memory, two workers and an operator with keys, and every message that they exchanged."""

    def __init__(self, seed: int = 1, *, required: bool = False) -> None:
        self.draw = random.Random(seed)  # a seeded test
        self.broker = MemoryBroker()
        self.daemon = Daemon(self.broker, settings=Settings(settle_s=0.0, rate_burst=1e12),
                             seals=lambda: Seals(KEYS, required=required))
        self.corpus: list[tuple[str, bytes]] = []
        """What was said to the daemon."""
        self.answers: list[tuple[str, bytes]] = []
        self.broker.watchers.append(self._watch)
        self.sealers = {name: Sealer(key, TOPICS.prefix) for name, key in KEYS.items()}
        self.heard: dict[str, list[tuple[str, Body]]] = {name: [] for name in KEYS}
        self.unsigned: list[tuple[str, Body]] = []

    def _watch(self, sender: str, topic: str, payload: bytes) -> None:
        if topic.startswith((f"{TOPICS.prefix}/from/", f"{TOPICS.prefix}/admin/")):
            self.corpus.append((topic, payload))
        elif topic.startswith(f"{TOPICS.prefix}/to/"):
            self.answers.append((topic, payload))

    @property
    def service(self) -> Service:
        assert self.daemon.service is not None
        return self.daemon.service

    async def start(self) -> None:
        """Honest work: trials that run, that are told, an ask that waits."""
        await self.daemon.start()
        self.clients = {name: MemoryClient(self.broker, name, [TOPICS.to(name, "+"), TOPICS.daemon],
                                           partial(self._hear, name))
                        for name in KEYS}
        for client in self.clients.values():
            client.connect()
        await self.settle()
        self.say("op", "request", id="1", verb="study.create",
                 args={"spec": {"name": "s", "method": "random", "space": SPACE}})
        for name in ("w1", "w2"):
            self.say(name, "beat", run=f"r-{name}")
            for number in range(4):
                self.say(name, "ask", id=f"r-{name}.{number}", run=f"r-{name}", study="s")
            await self.settle()
            for grant in self.grants(name)[:2]:
                self.say(name, "report", id=f"r{grant['trial']}:r-{name}", step=0, value=0.5, **lease(grant))
                self.say(name, "tell", id=f"t{grant['trial']}:r-{name}", value=0.5, **lease(grant))
            self.say(name, "beat", run=f"r-{name}", leases=[list(lease(grant).values()) for grant in
                                                           self.grants(name)[2:]])
        await self.settle()

    async def settle(self) -> None:
        await asyncio.sleep(3.0)

    def grants(self, name: str) -> list[Body]:
        return [body for kind, body in self.heard[name] if kind == "grant"]

    def _hear(self, name: str, topic: str, payload: bytes) -> None:
        if topic == TOPICS.daemon:
            self.sealers[name].heard(json.loads(payload))
            return
        kind = topic.rpartition("/")[2]
        try:
            self.heard[name].append((kind, json.loads(self.sealers[name].open(topic, payload))))
        except ValueError:
            self.unsigned.append((kind, json.loads(payload)))

    def say(self, name: str, kind: str, **fields: Any) -> bytes:
        topic = TOPICS.request(name) if kind == "request" else TOPICS.sent(name, kind)
        payload = self.sealers[name].seal(topic, fields)
        self.clients[name].publish(topic, payload)
        return payload

    def position(self) -> tuple[Any, ...]:
        """What a message can move: the study, the standing asks, the ends of leases."""
        desk = self.service.desk
        return desk.state.hash, sorted(desk.standing), {id(lease): at for lease, at in desk.deadlines.items()}

    def forge(self, count: int) -> int:
        """How many of so many altered messages the daemon acted on."""
        corpus, rejected = self._signed(), self.service.counters.rejected
        before, made = _turned_away(rejected), 0
        while made < count:
            topic, payload = self.draw.choice(self.corpus)
            to, spoilt = altered(payload, topic, corpus, self.draw)
            if (to == topic and _same(spoilt, payload)) or TOPICS.parse(to) is None:
                continue
            self.service.on_message(to, spoilt, _ignore)
            made += 1
        return count - (_turned_away(rejected) - before)

    def _signed(self) -> list[tuple[str, bytes]]:
        return [each for each in (*self.corpus, *self.answers) if is_sealed(each[1])]

    def forge_answers(self, count: int) -> int:
        """How many of so many altered answers a worker believed."""
        signing = Signing(KEYS["w1"], "w1", "r-w1", TOPICS)
        signing.heard({"log": LOG, "epoch": 1})
        corpus = self._signed()
        mine = [(topic, payload) for topic, payload in corpus if topic.startswith(TOPICS.to("w1", ""))]
        grant = next((topic, payload) for topic, payload in mine if topic.endswith("grant"))
        assert signing.open("grant", *grant)[0]["run"] == "r-w1"        # honest ones are believed; the log is fixed
        believed = made = 0
        while made < count:
            topic, payload = self.draw.choice(mine)
            to, spoilt = altered(payload, topic, corpus, self.draw)
            if _same(spoilt, payload) and to == topic:
                continue
            if not to.startswith(TOPICS.to("w1", "")):
                to = topic                                    # the broker may deliver anything as anything
                if _same(spoilt, payload):
                    continue
            made += 1
            with contextlib.suppress(Ignored):
                signing.open(to.rpartition("/")[2], to, spoilt)
                believed += 1
        return believed


def _turned_away(rejected: dict[str, int]) -> int:
    return rejected.get("unsigned", 0)


def _ignore() -> None:
    """No acknowledgement."""


def lease(grant: Body) -> Body:
    return {name: grant[name] for name in ("study", "trial", "fence")}


# --- A whole world behind such a broker ------------------------------------------------------------


class HostileBroker(MemoryBroker):
    """Sends what it likes to whom it likes."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.draw = random.Random(seed)  # a seeded test
        self.honest = True
        self.kept: list[tuple[str, bytes]] = []
        self.lies = 0

    def _carry(self, client: MemoryClient, topic: str, payload: bytes) -> None:
        if self.honest:
            super()._carry(client, topic, payload)
            if payload.startswith(b'{"signed"'):
                self.kept.append((topic, payload))
            return
        draw = self.draw
        if payload.startswith(b'{"signed"'):
            self.kept.append((topic, payload))
        chance = draw.random()
        if topic.endswith("/daemon") and chance < 0.5 and client.name != "daemon":
            self.lies += 1
            said = {**json.loads(payload), draw.choice(["log", "nonce"]): "a lie", "epoch": draw.choice([1, 9, 10**9])}
            super()._carry(client, topic, json.dumps(said).encode())
            if chance < 0.2:
                return
        if 0.2 < chance < 0.4:
            return
        asyncio.get_running_loop().call_later(
            draw.choice([0.0, 0.0, draw.uniform(0, 30)]), client._receive, client.connection, topic, payload)
        for _ in range(draw.randrange(5)):
            self._lie(client)

    def _lie(self, client: MemoryClient) -> None:
        """Something old, altered, moved or made up, for one listener."""
        draw = self.draw
        mine = [each for each in self.kept if any(matches(filter, each[0]) for filter in client.filters)]
        topic, payload = draw.choice(mine or self.kept)
        if draw.random() < 0.5:
            topic, payload = altered(payload, topic, self.kept, draw)
        if draw.random() < 0.2:
            topic, payload = self._made_up()
        if any(matches(filter, topic) for filter in client.filters):
            self.lies += 1
            asyncio.get_running_loop().call_later(
                draw.uniform(0, 60), client._receive, client.connection, topic, payload)

    def _made_up(self) -> tuple[str, bytes]:
        draw = self.draw
        who, trial, status = draw.choice(("w1", "w2")), draw.randint(1, 20), draw.choice(
            ["recorded", "rejected", "closed", "late", "duplicate"])
        id = draw.choice([f"t.s.{trial}.1", f"r.s.{trial}.1.0"])
        key = {"study": "s", "trial": trial, "fence": 1}
        kind, body = draw.choice([
            ("to/receipt", {"id": id, "status": status, "reason": "bad-field"}),
            ("to/stop", {**key, "reason": "superseded"}),
            ("from/tell", {"id": id, **key, "value": -1e9}),
            ("from/tell", {"id": id, **key, "state": "released"}),
            ("from/beat", {"run": "forged", "leases": [], "asks": []}),
            ("from/ask", {"id": "forged.1", "run": "forged", "study": "s", "n": 9}),
        ])
        way, _, what = kind.partition("/")
        return f"{TOPICS.prefix}/{way}/{who}/{what}", json.dumps(body).encode()


class _Line:
    """A worker's line in memory."""

    def __init__(self, broker: MemoryBroker, worker: "SimulatedWorker", name: str) -> None:
        self._client = MemoryClient(broker, name, [TOPICS.to(name, "+"), TOPICS.daemon, TOPICS.head],
                                    lambda topic, payload: worker._received(topic, payload, False))
        self._worker = worker

    def send(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload)

    async def run(self, leave: asyncio.Event) -> None:
        self._client.connect()
        self._worker._connected()
        await leave.wait()
        self._client.disconnect()


class SimulatedWorker(Worker):
    """The real worker, on a line in memory; `trained` has what it measured."""

    def __init__(self, broker: MemoryBroker, name: str, folder: Path) -> None:
        self._broker = broker
        self.trained: dict[tuple[str, int, int], float] = {}
        self.said: list[str] = []
        key = folder / f"{name}.key"
        key.write_text(KEYS[name].hex())
        super().__init__(_Training(self.trained), Address("memory", 1),
                         Options(study="s", name=name, spool=folder, sign_key=key), self.said.append)

    def _make_link(self, address: Address) -> Any:
        return _Line(self._broker, self, self.name)

    def _signals(self) -> Any:
        return contextlib.nullcontext()


class _Training:
    cancels = True

    def __init__(self, trained: dict[tuple[str, int, int], float]) -> None:
        self._trained = trained

    async def __call__(self, trial: Trial) -> Body:
        await asyncio.sleep(20.0)
        value = (trial.params["x"] - 0.3) ** 2
        self._trained[trial.study, trial.number, trial.fence] = value
        return {"value": value}


class Hour(NamedTuple):
    """What came of an hour behind a hostile broker."""

    lies: int
    trials: int
    broken: tuple[str, ...]
    """What was lost, doubled, changed or set aside."""


def hour(seed: int, folder: Path) -> Hour:
    """Two real workers and a real daemon, an hour of a broker that does what it can, then an honest one."""
    trials = 60

    async def story() -> tuple[HostileBroker, list[SimulatedWorker], Daemon, list[str]]:
        broker = HostileBroker(seed)
        daemon = Daemon(broker, settings=Settings(settle_s=0.0, rate_burst=1e12),
                        seals=lambda: Seals(KEYS, required=True))
        await daemon.start()
        await asyncio.sleep(1.0)
        operator = Sealer(KEYS["op"], TOPICS.prefix)
        operator.heard(json.loads(broker.retained[TOPICS.daemon]))
        broker._publish("op", TOPICS.request("op"), operator.seal(TOPICS.request("op"), {
            "id": "1", "verb": "study.create", "args": {"spec": {
                "name": "s", "method": "random", "budget": {"trials": trials}, "lease": {"default_s": 120},
                "retry": {"lost": 100}, "space": SPACE}}}), False)
        await asyncio.sleep(1.0)
        workers = [SimulatedWorker(broker, name, folder) for name in ("w1", "w2")]
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        await asyncio.sleep(45.0)
        broker.honest = False
        await asyncio.sleep(400.0)
        daemon.kill()
        await daemon.start()
        await asyncio.sleep(3200.0)
        broker.honest = True
        await asyncio.wait(tasks, timeout=20_000.0)
        ends = [task.result().reason if task.done() else "still at work" for task in tasks]
        await daemon.stop()
        return broker, workers, daemon, ends

    broker, workers, daemon, ends = run(story())
    trained = {key: value for worker in workers for key, value in worker.trained.items()}
    events = [json.loads(row.body) for row in daemon.disk.rows]
    outcomes = [(("s", event["trial"], event["data"]["fence"]), event) for event in events
                if event["type"] in ("trial.completed", "outcome.late", "trial.failed")]
    told = Counter(key for key, _ in outcomes)
    completed = sum(event["type"] == "trial.completed" for _, event in outcomes)
    broken = [*(f"a worker ended as {end!r}" for end in ends if end != "closed"),
              *(f"{key} has {count} outcomes" for key, count in told.items() if count > 1),
              *(f"{key} is on record as {event['type']}, {event['data']}" for key, event in outcomes
                if event["type"] == "trial.failed" or event["data"]["values"]["value"] != trained.get(key)),
              *([f"{completed} of {trials} trials are completed"] if completed != trials else []),
              *(f"{path} was left" for where in ("rejected", "tells") for path in folder.glob(f"*/{where}/*"))]
    if {event["data"]["worker"] for event in events if event["type"] == "trial.leased"} != {"w1", "w2"}:
        broken.append("somebody else than the two workers has a lease, or one of them none")
    return Hour(broker.lies, len(trained), tuple(broken))
