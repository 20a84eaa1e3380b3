"""The least that a daemon on this transport can do: what ours is measured against, in the same run.

Receive a result, parse it, append two chained events to SQLite with group commit and
`synchronous=FULL`, publish a receipt and the next grant after the commit, acknowledge. No rules,
no state, no checks, no optimiser. It answers on our topics, so the same no-op workers load both.

    python floor.py PORT DATABASE
"""

import asyncio
import hashlib
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import aiomqtt
import orjson

PARAMS = {"lr": 0.00123, "wd": 0.5, "depth": 8, "act": "gelu"}


class Log:
    """One writer thread; each commit takes everything that queued while the last one ran."""

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE event (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL)")
        self.hash, self.seq = bytes(32), 0
        self.rows: list[tuple[int, bytes, bytes]] = []
        self.then: list[Callable[[], None]] = []
        self.news = asyncio.Event()
        self.thread = ThreadPoolExecutor(1)

    def add(self, body: bytes) -> None:
        self.seq += 1
        self.hash = hashlib.sha256(self.hash + body).digest()
        self.rows.append((self.seq, body, self.hash))

    def commit(self, rows: list[tuple[int, bytes, bytes]]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT INTO event VALUES (?, ?, ?)", rows)
        self.db.execute("COMMIT")

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.news.wait()
            self.news.clear()
            rows, then, self.rows, self.then = self.rows, self.then, [], []
            if rows:
                await loop.run_in_executor(self.thread, self.commit, rows)
            for done in then:
                done()


async def main(port: int, path: str) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    log = Log(path)
    client = aiomqtt.Client("127.0.0.1", port, identifier="floor", max_inflight_messages=1000,
                            max_queued_outgoing_messages=0, socket_options=[(6, 1, 1)])
    client.pending_calls_threshold = 10**9
    paho = client._client
    paho.manual_ack_set(True)
    trial = 0

    def grant(worker: str) -> bytes:
        nonlocal trial
        trial += 1
        return orjson.dumps({"ask": "a", "run": worker, "study": "d", "trial": trial, "fence": 1, "params": PARAMS,
                             "lease_s": 600, "at": "2026-11-23T09:00:00Z", "epoch": 1, "space_rev": 1})

    def answer(message: aiomqtt.Message) -> None:
        _, _, _, worker, kind = message.topic.value.split("/")
        if kind == "beat":
            paho.ack(message.mid, message.qos)
            return
        said = orjson.loads(bytes(message.payload))  # type: ignore[arg-type]
        given = grant(worker)
        if kind == "tell":
            log.add(orjson.dumps({"event": said, "worker": worker}, option=orjson.OPT_SORT_KEYS))
        log.add(orjson.dumps({"event": orjson.Fragment(given), "worker": worker}, option=orjson.OPT_SORT_KEYS))
        receipt = orjson.dumps({"id": said["id"], "status": "recorded", "seq": log.seq, "hash": log.hash.hex()})

        def done() -> None:
            paho.ack(message.mid, message.qos)
            if kind == "tell":
                paho.publish(f"bayesd/1/to/{worker}/receipt", receipt, 1)
            paho.publish(f"bayesd/1/to/{worker}/grant", given, 1)

        log.then.append(done)
        log.news.set()

    async with client:
        await client.subscribe("bayesd/1/from/+/+", qos=1)
        writer = asyncio.create_task(log.run())
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(_read(client, answer))
        loop.add_signal_handler(signal.SIGTERM, reader.cancel)
        print("ready", flush=True)
        await asyncio.wait((reader,))
        writer.cancel()


async def _read(client: aiomqtt.Client, answer: Callable[[aiomqtt.Message], None]) -> None:
    async for message in client.messages:
        answer(message)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
