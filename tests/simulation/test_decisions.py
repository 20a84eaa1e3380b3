"""Kills in the middle of everything change no decision: what to try, stop, promote, measure again, announce.

Two lives of the same study are compared, event by event: one without a kill, and one whose daemon is killed before and
after commits and between them. Suggestions take no time, and each worker speaks in its own seconds of every minute,
again and again until it is answered: so a kill delays, but nobody overtakes anybody.
"""

import asyncio
import json
import logging
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from bayesd.replay import event_of
from bayesd.study.fold import replay
from bayesd.study.knowledge import knowledge
from bayesd.testing import Daemon, MemoryBroker, MemoryClient, run

WORKERS, KILLS = 3, 25
TURN_S, RESEND_S, DOWN_S, LONG_S = 20.0, 1.0, 0.5, 10 * 86_400.0
PASSING = {"seq", "fit", "as_of", "at", "elapsed_s", "error_ref"}
"""Places in the log, of which a life with kills has more, times, and what is drawn for secrecy alone."""
ABOUT_LIVES = ("log.", "daemon.", "run.", "head.", "study.ticked")

SPACE = {"x": {"type": "float", "low": -2, "high": 2},
         "rate": {"type": "float", "low": 1e-4, "high": 1, "scale": "log"},
         "k": {"type": "categorical", "choices": ["a", "b"]}}
EPOCHS = {"name": "epochs", "max": 9}
STUDIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "asha": ({"fidelity": EPOCHS, "prune": {"rule": "asha"}, "stop": {"patience": 8}}, {"trial.stopped"}),
    "promotion": ({"fidelity": EPOCHS, "prune": {"rule": "asha", "resume": True}}, {"trial.paused", "trial.pruned"}),
    "hyperband": ({"fidelity": EPOCHS, "prune": {"rule": "hyperband", "resume": True}}, {"trial.paused"}),
    "median": ({"fidelity": EPOCHS, "prune": {"rule": "median", "startup": 3}}, {"trial.stopped"}),
    "race": ({"folds": {"count": 5}, "prune": {"rule": "race", "startup": 3}}, {"trial.stopped"}),
    "models": ({"stop": {"improvement": 1.0, "regret": 0.2}}, {"study.stopping"}),
    "cost": ({"cost": {"per": "seconds"}, "limits": [{"name": "size", "at_most": 1.2}],
              "prior": {"x": {"centre": 0.5, "confidence": "high"}}}, {"model.fitted"}),
    "two": ({"objectives": [{"name": "loss"}, {"name": "size"}]}, {"model.fitted"}),
    "confirmed": ({"confirm": {"top": 2, "repeats": 2}, "winner": {"rule": "mean"}},
                  {"study.confirming", "study.winner"})}
"""A declaration, and events that a life of it is to have, since otherwise little would be compared."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A daemon that is killed has much to say."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Client:
    """A connection that says the same again until it is answered."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.name, self.news = name, asyncio.Event()
        self.answers: dict[str, dict[str, Any]] = {}
        self.link = MemoryClient(broker, name, [broker.topics.to(name, "+")], self._hear)
        self.topics = broker.topics

    def _hear(self, topic: str, payload: bytes) -> None:
        said = json.loads(payload)
        if said.get("status") != "waiting":
            self.answers[said.get("ask") or said.get("id") or "stop"] = said
            self.news.set()

    async def say(self, topic: str, message: dict[str, Any]) -> dict[str, Any]:
        while message["id"] not in self.answers:
            self.link.connect()
            self.link.publish(topic, json.dumps(message).encode())
            self.news.clear()
            try:
                async with asyncio.timeout(RESEND_S):
                    await self.news.wait()
            except TimeoutError:
                pass
        return self.answers[message["id"]]


class Worker(Client):
    """Trains, in turns of its own, until the study is closed."""

    def __init__(self, broker: MemoryBroker, place: int, spec: dict[str, Any]) -> None:
        super().__init__(broker, f"w{place}")
        self.place, self.spec, self.said = place, spec, 0
        self.trained: dict[str, int] = {}

    async def turn(self) -> None:
        """Wait for the next moment at which it is this worker's turn."""
        round_s = WORKERS * TURN_S
        now = asyncio.get_running_loop().time() - self.place * TURN_S
        await asyncio.sleep(round_s * (math.floor(now / round_s) + 1) - now)

    async def send(self, kind: str, **message: Any) -> dict[str, Any]:
        self.said += 1
        return await self.say(self.topics.sent(self.name, kind), {"id": f"{self.name}.{self.said}", **message})

    async def live(self) -> None:
        while True:
            await self.turn()
            grant = await self.send("ask", run=f"{self.name}-run", study="s", lease_s=86_400.0)
            if grant.get("status") == "closed":
                return
            await self.train(grant)

    async def train(self, grant: dict[str, Any]) -> None:
        lease = {"study": "s", "trial": grant["trial"], "fence": grant["fence"]}
        params, fidelity = grant["params"], grant.get("fidelity") or {"value": 1}
        noise = Random(f"{grant['trial']} {grant.get('repeat')}").gauss(0, 0.05)
        steps = self.spec["folds"]["count"] if "folds" in self.spec else int(fidelity["value"])
        folds = []
        for step in range(int(fidelity.get("from", 0)) + 1, steps + 1):
            loss = (params["x"] - 0.7) ** 2 + abs(math.log10(params["rate"]) + 2) / 4 + (params["k"] == "a") + noise
            folds.append(loss + 1 / step if "fidelity" in self.spec else loss + 0.03 * (step % 3))
            await self.turn()
            if "fidelity" in self.spec or "folds" in self.spec:
                receipt = await self.send("report", **lease, step=step, value=folds[-1])
                if receipt.get("stop"):
                    await self.turn()
                    await self.send("tell", **lease, state="pruned")
                    return
        await self.turn()
        outcome: dict[str, Any] = {"values": {"loss": folds[-1], "size": 1.0 + abs(params["x"]) / 4}}
        if "folds" in self.spec:
            outcome = {"folds": folds}
        if grant["trial"] % 7 == 3:
            outcome = {"state": "fail", "class": "other", "error": "it broke"}
        await self.send("tell", **lease, **outcome, seconds=10.0 + abs(params["x"]), checkpoint=f"{steps}")


class Life:
    """A study from its creation to its end, with a kill at each of these commits."""

    def __init__(self, spec: dict[str, Any], kills: dict[int, str]) -> None:
        self.spec, self.kills, self.commits = spec, kills, 0
        self.broker = MemoryBroker()
        self.daemon = Daemon(self.broker, before_commit=lambda rows: self.commit("before"),
                             after_commit=lambda rows: self.commit("after"))
        self.restarts: set[asyncio.Task[None]] = set()

    async def commit(self, when: str) -> None:
        self.commits += when == "before"
        if self.kills.get(self.commits) == when:
            del self.kills[self.commits]
            self.daemon.kill()
            self.restarts.add(asyncio.create_task(self.again()))
            await asyncio.sleep(math.inf)

    async def again(self) -> None:
        await asyncio.sleep(DOWN_S)
        await self.daemon.start()

    async def live(self) -> list[tuple[Any, ...]]:
        await self.daemon.start()
        spec = {"name": "s", "space": SPACE, "method": "bayes", "budget": {"trials": 25},
                **({} if "objectives" in self.spec else {"metric": "loss"}), **self.spec}
        created = await Client(self.broker, "op").say(self.broker.topics.request("op"), {
            "id": "1", "verb": "study.create", "args": {"spec": spec}})
        assert created["status"] == "ok", created
        async with asyncio.timeout(LONG_S):
            await asyncio.gather(*(Worker(self.broker, place, self.spec).live() for place in range(WORKERS)))
        await self.daemon.stop()
        rows = self.daemon.disk.rows
        self.study = replay([event_of(row.body, row.hash) for row in rows]).studies["s"]
        assert self.study.status == "closed"
        return [(row.type, row.trial, kept(json.loads(row.body)["data"])) for row in rows
                if not row.type.startswith(ABOUT_LIVES)]


def kept(said: Any) -> Any:
    if isinstance(said, dict):
        return {key: kept(value) for key, value in said.items() if key not in PASSING}
    return [kept(each) for each in said] if isinstance(said, list) else said


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_kills_in_the_middle_change_no_decision(name: str) -> None:
    spec, expected = STUDIES[name]
    calm = Life(spec, {})
    decided = run(calm.live())
    assert expected <= {type for type, *_ in decided}
    draw = Random(name)
    kills = {number: draw.choice(["before", "after"]) for number in draw.sample(range(2, calm.commits), KILLS)}
    hurt = Life(spec, kills)
    again = run(hurt.live())
    assert hurt.daemon.lives == KILLS + 1
    for mine, theirs in zip(decided, again, strict=False):
        assert mine == theirs
    assert len(decided) == len(again)
    assert knowledge(hurt.study) == knowledge(calm.study)
