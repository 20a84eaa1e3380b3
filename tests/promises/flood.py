"""One worker sends ten times what the daemon can take; three honest ones go on and must hardly notice.

A real mosquitto and a real daemon. The flooder is a process that writes MQTT packets as fast as it is told to; what they
say depends on the seed: garbage, asks of studies that are not there, tells of trials that are not its own, new runs
without end, messages nearly as large as the daemon reads. One round is a few seconds of it.

How long a receipt takes is judged only where the machine was not busy with something else when the round began; that
everybody is served, and what memory and log may grow, always.

The capacity is what one daemon takes of such messages when it takes them all: about 5,000 a second on the 2-core
machine that sized this; ten times that is 50,000.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

import paho.mqtt.client as mqtt  # noqa: E402  # the path comes first
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from tests.edges.daemon import SPACE, Broker, Daemon, Wire  # noqa: E402
from tests.edges.mosquitto import publish_packet  # noqa: E402
from tests.promises.book import Fault, Proof, Round  # noqa: E402

from bayesd.log import read_events  # noqa: E402

RATE = 50_000
ROUND_S = 4.0
RECEIPT_MAX_S = 2.0
RSS_MAX_KIB = 300 * 1024
HONEST = ("h1", "h2", "h3")
PAUSE_S = 0.02
BATCH_S = 0.01
FLAVOURS = ("garbage", "asks", "tells", "runs", "large")


# ---------------------------------------------------------------- who floods


def packets(flavour: str, seed: int) -> Iterator[bytes]:
    """What the flooder sends, again and again."""
    for i in itertools.count():
        kind, said = "ask", b'{"id": "f%d", "run": "r' % i
        if flavour == "asks":
            said = b'{"id":"f%d","run":"r1","study":"nowhere"}' % i
        elif flavour == "tells":
            kind, said = "tell", b'{"id":"f%d","study":"honest","trial":%d,"fence":1,"value":1}' % (i, i % 1000 + 1)
        elif flavour == "runs":
            kind, said = "beat", b'{"run":"r%d.%d","leases":[],"asks":[]}' % (seed, i)
        elif flavour == "large":
            said = b'{"id":"f%d","run":"r1","study":"nowhere","x":"%s"}' % (i, b"x" * 60_000)
        yield publish_packet(f"bayesd/1/from/flood/{kind}", said)


def flood(port: int, rate: float, seconds: float, flavour: str, seed: int) -> int:
    """Publish at this rate, or as fast as the broker reads; says how many."""
    stream = socket.create_connection(("127.0.0.1", port))
    name = b"flood-%d" % seed
    stream.sendall(bytes((0x10, 12 + len(name))) + b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big")
                   + name)
    assert stream.recv(4)[3] == 0, "the broker does not want us"
    if flavour == "large":
        rate /= 50
    source, sent, began = packets(flavour, seed), 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        due = int(rate * passed) - sent
        if due <= 0:
            time.sleep(BATCH_S)
            continue
        due = min(due, int(rate * BATCH_S) + 1)
        stream.sendall(b"".join(itertools.islice(source, due)))
        sent += due
    stream.sendall(b"\xe0\x00")
    stream.close()
    return sent


# ---------------------------------------------------------------- who does not


class Honest:
    """A worker that asks, and tells, and waits for each receipt before it goes on."""

    def __init__(self, port: int, name: str) -> None:
        self.name, self.waits_s, self._numbers = name, list[float](), itertools.count(1)
        self._came: dict[str, tuple[str, dict[str, Any]]] = {}
        self._changed = threading.Condition()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"honest-{name}")
        self.client.on_message = self._on_message
        self.client.on_connect = lambda client, *_: client.subscribe(f"bayesd/1/to/{name}/+", 1)
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert subscribed.wait(10)

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        kind, body = message.topic.rsplit("/", 1)[1], json.loads(message.payload)
        with self._changed:
            self._came[body["ask"] if kind == "grant" else body.get("id", "")] = kind, body
            self._changed.notify_all()

    def _exchange(self, kind: str, id: str, message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Send until the answer comes, as the contract says a worker does."""
        payload, began = json.dumps({"id": id, **message}), time.monotonic()
        while True:
            self.client.publish(f"bayesd/1/from/{self.name}/{kind}", payload, 1)
            with self._changed:
                if self._changed.wait_for(lambda: id in self._came, 2.0):
                    self.waits_s.append(time.monotonic() - began)
                    return self._came.pop(id)
            assert time.monotonic() - began < 60.0, f"{self.name} has no answer to {id}"

    def work(self, seconds: float) -> None:
        began = time.monotonic()
        self.client.publish(f"bayesd/1/from/{self.name}/beat", '{"run":"h","leases":[],"asks":[]}', 1)
        while time.monotonic() - began < seconds:
            number = next(self._numbers)
            kind, grant = self._exchange("ask", f"{self.name}.a{number}", {"run": "h", "study": "honest"})
            if kind != "grant":
                continue
            _, receipt = self._exchange("tell", f"{self.name}.t{number}", {
                "study": "honest", "trial": grant["trial"], "fence": grant["fence"], "value": 1.0})
            assert receipt["status"] in ("recorded", "duplicate"), receipt
            time.sleep(PAUSE_S)


# ---------------------------------------------------------------- a round


class Field:
    """Broker, daemon and honest workers, for many rounds."""

    def __init__(self, folder: Path, broker: Broker, daemon: Daemon) -> None:
        self.folder, self.broker, self.daemon = folder, broker, daemon
        self.honest = [Honest(broker.port, name) for name in HONEST]

    def round(self, seed: int) -> Round:
        flavour = FLAVOURS[seed % len(FLAVOURS)]
        before = sum(1 for _ in read_events(self.daemon.log, 0))
        flooder = subprocess.Popen([sys.executable, __file__, str(self.broker.port), str(RATE), str(ROUND_S), flavour,
                                    str(seed)], stdout=subprocess.PIPE, text=True)
        for each in self.honest:
            each.waits_s.clear()
        errors: list[str] = []

        def work(each: Honest) -> None:
            try:
                each.work(ROUND_S + 1.0)
            except AssertionError as error:
                errors.append(str(error))
        threads = [threading.Thread(target=work, args=(each,)) for each in self.honest]
        for thread in threads:
            thread.start()
        rss_kib, has_room = 0, os.getloadavg()[0] < (os.cpu_count() or 1)
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            if not self.daemon.alive:
                break
            rss_kib = max(rss_kib, self.daemon.rss_kib())
        for thread in threads:
            thread.join()
        sent = int(flooder.communicate(timeout=60)[0] or 0)
        waits_s = sorted(wait for each in self.honest for wait in each.waits_s)
        p99_s = waits_s[int(0.99 * (len(waits_s) - 1))] if waits_s else 999.0
        rows = [body for _, body, _ in read_events(self.daemon.log, before)]
        by_flooder = sum(b'"worker/flood"' in body for body in rows)
        broken = [*errors, *([f"the daemon ended: {self.daemon.said()}"] if not self.daemon.alive else []),
                  *([f"{flavour}: receipt p99 {p99_s:.2f} s"] if p99_s > RECEIPT_MAX_S and has_room else []),
                  *([f"{flavour}: the daemon takes {rss_kib} KiB"] if rss_kib > RSS_MAX_KIB else []),
                  *([f"{flavour}: {by_flooder} events of the flooder"] if by_flooder > 0.01 * sent + 50 else [])]
        return Round({"judged for time": has_room, "messages of the flooder": sent, "events of the flooder": by_flooder,
                      "honest answers": len(waits_s), "s honest p99 max": round(p99_s, 3),
                      "MiB of the daemon max": round(rss_kib / 1024)}, tuple(broken))


@contextlib.contextmanager
def _lab(folder: Path, *fault: str) -> Iterator[Callable[[int], Round]]:
    program = (str(Path(__file__).with_name("launch.py")), *fault)
    with Broker(folder) as broker, Daemon(folder, broker.url, program=program) as daemon:
        with Wire(broker.url) as wire:
            daemon.ready(wire)
            wire.create("honest", space=SPACE)
        field = Field(folder, broker, daemon)
        yield field.round
        for each in field.honest:
            each.client.disconnect()
            each.client.loop_stop()


@contextlib.contextmanager
def _faulty(fault: Fault, folder: Path) -> Iterator[Callable[[int], Round]]:
    with _lab(folder, "--fault", fault.name) as round_of:
        yield round_of


SERVICE = "bayesd.service"
PROOFS = [Proof("floods", ("P27",), "rounds of a flood", _lab, quick=5, release=30, faulty=_faulty, within=5,
                needs=("mosquitto",), faults=(
    Fault("new runs cost nothing", SERVICE, ".tokens -= RUN_COST", ".tokens -= 0.0"),
    Fault("nobody is shed", SERVICE, "if bucket.tokens < cost:", "if False:"),
))]

if __name__ == "__main__":
    print(flood(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
