"""No-op workers for load: many MQTT 3.1.1 connections in one process, each as cheap as can be.

Each worker speaks the whole contract: a beat, an ask, and for every grant a tell with the next ask
inside; a turn is over when both the receipt and the next grant have come. Not a client to ship.
"""

import asyncio
import os
import struct
import sys
import time
from collections.abc import Callable


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("!H", len(raw)) + raw


def _packet(first: int, body: bytes) -> bytes:
    size, out = len(body), bytearray((first,))
    while True:
        size, digit = size >> 7, size & 127
        out.append(digit | (128 if size else 0))
        if not size:
            return bytes(out) + body


class Client(asyncio.Protocol):
    """CONNECT, SUBSCRIBE, PUBLISH and PUBACK, nothing else."""

    def __init__(self, name: str, on_message: Callable[[bytes, bytes], None]) -> None:
        self.name, self.on_message = name, on_message
        self.buffer = b""
        self.packet_id = 0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(_packet(0x10, _text("MQTT") + b"\x04\x02\x00\x00" + _text(self.name)))

    def subscribe(self, topic: str, qos: int) -> None:
        self.transport.write(_packet(0x82, b"\x00\x01" + _text(topic) + bytes((qos,))))

    def publish(self, topic: bytes, payload: bytes, qos: int) -> None:
        """`topic` with its length before it."""
        if qos:
            self.packet_id = self.packet_id % 65535 + 1
            self.transport.write(_packet(0x32, topic + struct.pack("!H", self.packet_id) + payload))
        else:
            self.transport.write(_packet(0x30, topic + payload))

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data
        start, end = 0, len(buffer)
        while end - start >= 2:
            size, shift, at = 0, 0, start + 1
            while at < end:
                digit = buffer[at]
                size |= (digit & 127) << shift
                shift, at = shift + 7, at + 1
                if digit < 128:
                    break
            else:
                break
            if end - at < size:
                break
            self._take(buffer[start], buffer[at:at + size])
            start = at + size
        self.buffer = buffer[start:]

    def _take(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == 3:
            size = body[0] << 8 | body[1]
            at = 2 + size
            if first & 6:
                self.transport.write(b"\x40\x02" + body[at:at + 2])
                self.on_message(body[2:2 + size], body[at + 2:])
            else:
                self.on_message(body[2:2 + size], body[at:])
        elif kind in (2, 9) and not self.ready.done():
            self.ready.set_result(None)


class NoOpWorker:
    """Told and granted as fast as the daemon can."""

    def __init__(self, number: int, study: str, qos: int) -> None:
        self.name = f"w{number}"
        self.study, self.qos = study, qos
        self.asked = 0
        self.turns = 0
        self.latencies: list[float] = []
        self.sent_at = 0.0
        self.waits_for = 0
        self.on = True

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        _, self.client = await loop.create_connection(lambda: Client(self.name, self.on_message), "127.0.0.1", port)
        await self.client.ready
        self.client.ready = loop.create_future()
        self.client.subscribe(f"bayesd/1/to/{self.name}/+", self.qos)
        await self.client.ready
        self.tell_topic = _text(f"bayesd/1/from/{self.name}/tell")
        self.grant_suffix = b"/grant"

    def begin(self) -> None:
        run, study = self.name.encode(), self.study.encode()
        self.client.publish(_text(f"bayesd/1/from/{self.name}/beat"),
                            b'{"run":"%s","leases":[],"asks":[]}' % run, self.qos)
        self.client.publish(_text(f"bayesd/1/from/{self.name}/ask"),
                            b'{"id":"%s.0","run":"%s","study":"%s"}' % (run, run, study), self.qos)
        self.waits_for = 1
        self.sent_at = time.perf_counter()

    def on_message(self, topic: bytes, payload: bytes) -> None:
        if topic.endswith(self.grant_suffix):
            at = payload.index(b'"trial":') + 8
            self.trial = payload[at:payload.index(b",", at)]
            self.waits_for -= 1
        elif b'"status":"recorded"' in payload:
            self.waits_for -= 1
        elif b'"seq"' in payload or b'"rejected"' in payload:
            raise AssertionError(payload)
        if self.waits_for == 0:
            now = time.perf_counter()
            self.latencies.append(now - self.sent_at)
            self.turns += 1
            if self.on:
                self.tell(now)

    def tell(self, now: float) -> None:
        self.asked += 1
        self.sent_at = now
        self.waits_for = 2
        name, study = self.name.encode(), self.study.encode()
        self.client.publish(self.tell_topic, (
            b'{"id":"t.%s.%s.1","study":"%s","trial":%s,"fence":1,"value":0.51234,"seconds":12.5,'
            b'"ask":{"id":"%s.%d","run":"%s","study":"%s"}}'
            % (study, self.trial, study, self.trial, name, self.asked, name, study)), self.qos)


async def measure(port: int, study: str, n: int, seconds: float, qos: int) -> dict[str, float]:
    """Turns a second and turnaround of `n` workers after a warm-up of half a second."""
    workers = [NoOpWorker(number, study, qos) for number in range(n)]
    for start in range(0, n, 32):
        await asyncio.gather(*[worker.connect(port) for worker in workers[start:start + 32]])
    for worker in workers:
        worker.begin()
    await asyncio.sleep(1.0)
    for worker in workers:
        worker.latencies.clear()
        worker.turns = 0
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    took, turns = time.perf_counter() - began, sum(worker.turns for worker in workers)
    latencies = sorted(each for worker in workers for each in worker.latencies)
    for worker in workers:
        worker.on = False
    await asyncio.sleep(0.5)
    for worker in workers:
        worker.client.transport.close()
    def at(share: float) -> float:
        return latencies[int(len(latencies) * share)] * 1e3 if latencies else float("nan")

    return {"workers": n, "turns_per_s": turns / took, "p50_ms": at(0.5), "p99_ms": at(0.99), "turns": turns,
            "load_cpu_us": (time.process_time() - cpu) / max(1, turns) * 1e6}


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {1})
    port_, study_, n_, seconds_, qos_ = sys.argv[1:]
    import json
    print(json.dumps(asyncio.run(measure(int(port_), study_, int(n_), float(seconds_), int(qos_)))))
