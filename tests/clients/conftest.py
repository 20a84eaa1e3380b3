"""A real broker on a loopback port, and a small daemon that does what its script says."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

SPACE = {"x": {"type": "float", "low": 0.0, "high": 10.0},
         "depth": {"type": "int", "low": 1, "high": 9},
         "kernel": {"type": "categorical", "choices": ["rbf", "poly"]},
         "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}}
LOG = "log-a"


def mosquitto_path() -> str | None:
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Broker:
    """mosquitto on a free loopback port; it can be killed and started again on the same one."""

    def __init__(self, folder: Path) -> None:
        found = mosquitto_path()
        assert found is not None
        self._program = found
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        self.config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
                                "set_tcp_nodelay true\n")
        # As root it would become a user that cannot read the test's files.
        self.as_us = "user root\n" if os.geteuid() == 0 else ""
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([self._program, "-c", str(self.config)],
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        process = self._process
        until(lambda: process.poll() is not None or _listens(self.port), "the broker listens")
        assert process.poll() is None, f"mosquitto ended with {process.returncode}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return False
    return True


def until(true: Callable[[], Any], what: str, patience_s: float = 15.0) -> None:
    """Wait for something that another process or thread will do."""
    deadline_s = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline_s, f"waited {patience_s} s in vain: {what}"
        time.sleep(0.01)


class FakeDaemon:
    """Grants `points` one after the other, answers tells, and remembers every word. Not the real rules."""

    def __init__(self, port: int, study: str, points: list[dict[str, Any]], lease_s: float = 30.0,
                 epoch: int = 1, log: str = LOG) -> None:
        self.study, self.points, self.lease_s, self.epoch, self.log = study, list(points), lease_s, epoch, log
        self.heard: list[tuple[str, str, dict[str, Any]]] = []
        self.told: dict[tuple[int, int], dict[str, Any]] = {}
        self.prune_at: int | None = None
        self.deaf_to: set[str] = set()       # kinds that are lost on the way
        self.closing = True                  # closed when the points are used up, else waiting
        self.granted: dict[str, dict[str, Any]] = {}
        self._seq = 0
        self._lock = threading.RLock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fake-daemon", clean_session=True)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe([("bayesd/1/from/+/+", 1),
                                                                       ("bayesd/1/worker/+", 1)])
        self._ready = threading.Event()
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(10)
        self.say_state()

    def say_state(self, state: str = "open") -> None:
        self._publish("daemon", {"state": "online", "version": "0", "log": self.log, "epoch": self.epoch}, True)
        self._publish(f"study/{self.study}", {
            "study": self.study, "state": state, "objectives": [{"name": "value", "direction": "minimize"}],
            "space": SPACE, "space_rev": 1, "trials": {}, "budget": {}, "log": self.log, "epoch": self.epoch,
            "seq": self._seq, "a_later_field": 1}, True)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def of(self, kind: str) -> list[dict[str, Any]]:
        with self._lock:
            return [message for _, said, message in self.heard if said == kind]

    def send(self, worker: str, kind: str, message: dict[str, Any]) -> None:
        self._publish(f"to/{worker}/{kind}", message)

    def _publish(self, topic: str, message: dict[str, Any], retain: bool = False) -> None:
        self._client.publish(f"bayesd/1/{topic}", json.dumps(message), qos=1, retain=retain)

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        parts = message.topic.split("/")
        if parts[2] == "worker":
            with self._lock:
                self.heard.append((parts[3], "presence", json.loads(message.payload) if message.payload else {}))
            return
        _, _, _, worker, kind = parts
        data = json.loads(message.payload)
        with self._lock:
            self.heard.append((worker, kind, data))
            if kind in self.deaf_to:
                return
            if kind == "ask":
                self._on_ask(worker, data)
            elif kind == "tell":
                self._on_tell(worker, data)
            elif kind == "report":
                self._on_report(worker, data)

    def _on_ask(self, worker: str, ask: dict[str, Any]) -> None:
        answer = {"id": ask["id"], "run": ask["run"]}
        if ask.get("n", 1) == 0:
            self.send(worker, "receipt", {**answer, "status": "closed", "reason": "withdrawn"})
        elif ask["id"] in self.granted:
            self.send(worker, "grant", self.granted[ask["id"]])
        elif self.points:
            self._seq += 1
            grant = {"ask": ask["id"], "run": ask["run"], "study": self.study, "trial": self._seq, "fence": 1,
                     "params": self.points.pop(0), "lease_s": self.lease_s, "at": "2026-11-23T09:00:00Z",
                     "epoch": self.epoch, "space_rev": 1, "a_later_field": True}
            self.granted[ask["id"]] = grant
            self.send(worker, "grant", grant)
        elif self.closing:
            self.send(worker, "receipt", {**answer, "status": "closed", "reason": "budget"})
        else:
            self.send(worker, "receipt", {**answer, "status": "waiting", "reason": "budget"})

    def _on_tell(self, worker: str, tell: dict[str, Any]) -> None:
        key = (tell["trial"], tell["fence"])
        status = "duplicate" if key in self.told else "recorded"
        self.told.setdefault(key, tell)
        self.send(worker, "receipt", {"id": tell["id"], "status": status, "seq": 10, "hash": "0" * 64})
        if "ask" in tell and "ask" not in self.deaf_to:
            self._on_ask(worker, tell["ask"])

    def _on_report(self, worker: str, report: dict[str, Any]) -> None:
        receipt = {"id": report["id"], "status": "recorded", "seq": 11, "hash": "0" * 64}
        if self.prune_at is not None and report["step"] >= self.prune_at:
            receipt["stop"] = "pruned"
        self.send(worker, "receipt", receipt)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto_path() is None:
        if os.environ.get("BAYESD_TEST_ALL") == "1":
            pytest.fail("mosquitto is not installed, and BAYESD_TEST_ALL=1 wants every test")
        pytest.skip("mosquitto is not installed")
    found = Broker(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def start_daemon(broker: Broker) -> Iterator[Callable[..., FakeDaemon]]:
    daemons: list[FakeDaemon] = []

    def start(points: list[dict[str, Any]], **more: Any) -> FakeDaemon:
        daemons.append(FakeDaemon(broker.port, more.pop("study", "s"), points, **more))
        return daemons[-1]
    yield start
    for daemon in daemons:
        daemon.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    return until


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a child with the packages of the tree, also uninstalled; it is killed after the test."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(str(root / part) for part in ("clients/python", "schemas"))
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        children.append(subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return children[-1]
    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()
