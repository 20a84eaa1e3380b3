"""The real service on a `Disk`, with a worker, on virtual time: its lives and what its receipts promised."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.simulation.world import SIGNER

from bayesd.cli import explain
from bayesd.log import SqliteLog
from bayesd.service import Service, Settings
from bayesd.testing import HandClock, MemoryBroker, MemoryBus, MemoryClient, inline

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}
TRAIN_S = 0.3
Body = dict[str, Any]
SETTINGS = Settings(settle_s=0.0, full_disk_retry_s=1.0, note_events=25, checkpoint_idle_s=3.0, snapshot_events=50)


class Story:
    """One log, one worker that tells results until it has had enough, and an operator."""

    def __init__(self, path: Path, on_letter: Callable[[str, Body], None] = lambda kind, body: None) -> None:
        self.path = path
        self.broker = MemoryBroker()
        self.broker.watchers.append(self._watch)
        self.recorded: dict[str, tuple[int, str]] = {}
        """Id of a tell -> (seq, hash) of its first receipt that says recorded."""
        self.refused: list[Body] = []
        """Receipts that say disk-full."""
        self.replies: dict[str, Body] = {}
        self.granted: list[Body] = []
        self.service: Service | None = None
        self.lives = 0
        self._heard = asyncio.Event()
        self._on_letter = on_letter
        self._worker = MemoryClient(self.broker, "w1", [self.broker.topics.to("w1", "+")], lambda topic, payload: None)
        self._operator = MemoryClient(self.broker, "op", [self.broker.topics.to("op", "+")],
                                      lambda topic, payload: None)
        self._numbers = 0

    def _watch(self, sender: str, topic: str, payload: bytes) -> None:
        if sender != "daemon" or "/to/" not in topic:
            return
        kind, body = topic.rsplit("/", 1)[1], json.loads(payload)
        self._on_letter(kind, body)
        if kind == "grant" and body not in self.granted:
            self.granted.append(body)
        elif kind == "reply":
            self.replies[body["id"]] = body
        elif kind == "receipt" and body["status"] in ("recorded", "duplicate") and "hash" in body:
            self.recorded.setdefault(body["id"], (body["seq"], body["hash"]))
        elif kind == "receipt" and body.get("reason") == "disk-full":
            self.refused.append(body)
        self._heard.set()

    # ------------------------------------------------------------ the daemon

    async def life(self) -> int:
        """From a start to its end by itself; the exit status."""
        self.lives += 1
        log = None
        bus = MemoryBus(self.broker)
        try:
            log = await SqliteLog.open(self.path)
            self.service = service = Service(
                log, bus, HandClock(asyncio.get_running_loop()), settings=SETTINGS, suggest=inline, plainly=inline,
                new_log=lambda: "memory", version="testing", new_salt=lambda: b"salt", signer=SIGNER)
            await service.open()
            await service.run()
        except Exception as error:
            return explain(error)[0]
        finally:
            self.service = None
            bus.kill()
            if log is not None:
                await log.close()
        return 0

    # ------------------------------------------------------------ who talks to it

    async def request(self, verb: str, args: Body | None = None) -> Body:
        """Asked again until it is answered with a yes, in this life or the next."""
        self._operator.connect()
        self._numbers += 1
        for attempt in range(400):
            id = f"q{self._numbers}.{attempt}"
            self._operator.publish(self.broker.topics.request("op"), json.dumps(
                {"id": id, "verb": verb, "args": args or {}}).encode())
            await self._wait(lambda id=id: id in self.replies, 1.0)     # type: ignore[misc]  # a lambda with a default
            reply = self.replies.get(id)
            if reply is not None and reply["status"] != "error":
                return reply
            await asyncio.sleep(1.0)
        raise AssertionError(f"{verb} is never answered: {list(self.replies.values())[-1:]}")

    async def work(self, results: int) -> None:
        """Tell so many results, each until its receipt."""
        self._worker.connect()
        done = 0
        while len(self.recorded) < results:
            self._say("beat", run="r", leases=[], asks=[])
            ask, told = f"a{done}", None
            while told is None:
                self._say("ask", id=ask, run="r", study="s")
                await self._wait(lambda ask=ask: any(g["ask"] == ask for g in self.granted), 2.0)  # type: ignore[misc]
                told = next((g for g in self.granted if g["ask"] == ask), None)
            await asyncio.sleep(TRAIN_S)
            id = f"t.{told['study']}.{told['trial']}.{told['fence']}"
            while id not in self.recorded:
                self._say("tell", id=id, study="s", trial=told["trial"], fence=told["fence"], value=0.5,
                          user={"text": "x" * (12_000 if done % 7 == 3 else done * 37 % 400)})
                await self._wait(lambda id=id: id in self.recorded, 2.0)       # type: ignore[misc]
            done += 1

    def _say(self, kind: str, **body: Any) -> None:
        self._worker.publish(self.broker.topics.sent("w1", kind), json.dumps(body).encode())

    async def _wait(self, holds: Callable[[], bool], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not holds():
                    self._heard.clear()
                    await self._heard.wait()


def lost(story: Story, path: Path) -> list[str]:
    """What a receipt said and the file at `path` does not have."""
    with closing(sqlite3.connect(path)) as db:
        there = {seq: hash_.hex() for seq, hash_ in db.execute("SELECT seq, hash FROM event")}
    return [f"{id} has a receipt for event {seq}, which is not in the log"
            for id, (seq, hash_) in story.recorded.items() if there.get(seq) != hash_]
