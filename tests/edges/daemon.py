"""A real daemon on a real broker for tests of the wire: a process, a SQLite file, mosquitto on loopback.

    with serving(folder) as (daemon, wire):
        wire.create("s1")
        w1 = wire.worker("w1")
        w1.beat()
        grant = w1.lease("s1", ask="a1")
        assert w1.told("t1", grant, value=0.5)["status"] == "recorded"
        assert daemon.events()[-1]["type"] == "trial.completed"

Nothing here sleeps: a message is awaited, or `heard` asks the daemon something after everything else
and returns what came before the answer.
"""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tests.edges.mosquitto import Mosquitto as Broker

WAIT_S = 20.0        # how long a busy machine may take; the contract's own limits are asserted by tests
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}

Body = dict[str, Any]


class Daemon:
    """`bayesd serve` as a process. It can be killed, stopped, and started again on the same log."""

    def __init__(self, folder: Path, broker: str, *flags: str, log: str = "log.db", name: str = "daemon",
                 program: Sequence[str] = ("-m", "bayesd.cli")) -> None:
        self.log = folder / log
        self.errors = folder / f"{name}.stderr"
        self._command = [
            sys.executable, *program, "serve", "--broker", broker, "--log", str(self.log), *flags]
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")} | {
            "XDG_RUNTIME_DIR": str(folder / f"{name}-run"), "XDG_STATE_HOME": str(folder / f"{name}-state")}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process; `ready` waits for it."""
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=errors)
        return self

    def ready(self, wire: "Wire") -> Self:
        """Wait until this life of the daemon has announced itself."""
        def announced() -> bool:
            assert self.alive, f"the daemon ended: {self.said()}"
            said = wire.daemon
            return said is not None and said["state"] == "online" and said["epoch"] == self.epochs()
        wire.until(announced, "the daemon is online")
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self, timeout_s: float = WAIT_S) -> int:
        """SIGTERM, and the exit status."""
        return self._end(signal.SIGTERM, timeout_s)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for an end that comes by itself."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def _end(self, number: int, timeout_s: float = WAIT_S) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def said(self) -> str:
        """The last lines of its stderr."""
        return "\n".join(self.errors.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    def events(self) -> list[Body]:
        """Every committed event, read from the file while the daemon may live."""
        if not self.log.exists():
            return []
        reader = sqlite3.connect(f"file:{self.log}?mode=ro", uri=True)
        try:
            return [json.loads(body) for (body,) in reader.execute("SELECT body FROM event ORDER BY seq")]
        except sqlite3.OperationalError:       # so young that there is no table
            return []
        finally:
            reader.close()

    def epochs(self) -> int | None:
        """The newest epoch in the log."""
        return next((event["data"]["epoch"] for event in reversed(self.events()) if event["type"] == "daemon.started"),
                    None)

    def rss_kib(self) -> int:
        """Resident memory of the process."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.alive:
            self.kill()


@contextlib.contextmanager
def serving(folder: Path, *flags: str, root: str = "") -> Iterator[tuple[Daemon, "Wire"]]:
    """A broker, a daemon that is ready, and a client."""
    flags = (*flags, "--root", root) if root else flags
    with Broker(folder) as broker, Wire(broker.url, root) as wire, Daemon(folder, broker.url, *flags) as daemon:
        yield daemon.ready(wire), wire


class Wire:
    """A client that hears everything under one root and says whatever it is told to."""

    def __init__(self, url: str, root: str = "") -> None:
        self.prefix = f"{root}/bayesd/1" if root else "bayesd/1"
        host, _, port = url.removeprefix("mqtt://").partition(":")
        self.host, self.port = host, int(port)
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self.retained: dict[str, bytes] = {}
        """Topic below the prefix -> what is retained there, as far as it was heard."""
        self.inboxes: dict[str, list[tuple[str, Body]]] = {}
        """Who -> (kind, body) in the order in which they came."""
        self.flags: dict[str, list[bool]] = {}
        """Topic below the prefix -> the retained flag of each message that came."""
        self.largest_reply_bytes = 0
        self._client = self._new_client()

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"wire-{os.getpid()}-{id(self):x}")
        client.on_connect = lambda client, *_: self._subscribe(client)
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._on_message
        client.max_queued_messages_set(0)
        client.max_inflight_messages_set(1000)
        return client

    def _subscribe(self, client: mqtt.Client) -> None:
        client.subscribe(f"{self.prefix}/#", 1)

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{self.prefix}/")
        parts = topic.split("/")
        with self._changed:
            self.flags.setdefault(topic, []).append(message.retain)
            if parts[0] == "to":
                if parts[2] == "reply":
                    self.largest_reply_bytes = max(self.largest_reply_bytes, len(message.payload))
                self.inboxes.setdefault(parts[1], []).append((parts[2], json.loads(message.payload)))
            elif topic in ("daemon", "head") or parts[0] in ("study", "worker"):
                self.retained[topic] = bytes(message.payload)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._client.connect(self.host, self.port)
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_S), "the broker does not answer"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # What is said

    def say(self, topic: str, message: Body | bytes, *, retain: bool = False, qos: int = 1) -> mqtt.MQTTMessageInfo:
        """Publish below the prefix, bytes as they are."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self._client.publish(f"{self.prefix}/{topic}", payload, qos=qos, retain=retain)

    def worker(self, name: str, run: str = "r1") -> "Worker":
        return Worker(self, name, run)

    def request(self, verb: str, args: Body | None = None, *, client: str = "op", id: str | None = None) -> Body:
        """Ask as an operator and wait for the reply."""
        id = id or f"q{next(self._numbers)}"
        self.say(f"admin/{client}/request", {"id": id, "verb": verb, "args": args or {}})
        return self.reply(id, client=client)

    def reply(self, id: str, *, client: str = "op") -> Body:
        return self.take(client, lambda kind, body: kind == "reply" and body["id"] == id, f"reply {id}")[1]

    def ok(self, verb: str, args: Body | None = None, *, client: str = "op") -> Any:
        """The result of a request that must succeed."""
        reply = self.request(verb, args, client=client)
        assert reply["status"] == "ok", reply
        return reply["result"]

    def create(self, name: str, **spec: Any) -> None:
        """A study: one float, random points, unless `spec` says otherwise."""
        self.ok("study.create", {"spec": {"name": name, "method": "random", "space": SPACE, **spec}})

    # What is heard

    @property
    def daemon(self) -> Body | None:
        said = self.retained.get("daemon")
        return json.loads(said) if said else None

    def study(self, name: str) -> Body | None:
        said = self.retained.get(f"study/{name}")
        return json.loads(said) if said else None

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until something holds; looked at after each message, and now and then."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not holds():
                assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
                self._changed.wait(0.05)

    def take(self, who: str, fits: Callable[[str, Body], bool], what: str,
             timeout_s: float = WAIT_S) -> tuple[str, Body]:
        """The first message to `who` that fits, taken out of the inbox."""
        with self._changed:
            inbox = self.inboxes.setdefault(who, [])

            def found() -> bool:
                return any(fits(*each) for each in inbox)

            self.until(found, f"{what} for {who}, which got {inbox[-5:]}", timeout_s)
            return inbox.pop(next(i for i, each in enumerate(inbox) if fits(*each)))

    def heard(self, who: str) -> list[tuple[str, Body]]:
        """Everything that came to `who` and was not taken, up to the answer to a question asked now."""
        id = f"sync.{next(self._numbers)}"
        self.say(f"from/{who}/report", {"id": id, "study": "sync", "trial": 1, "fence": 1, "step": 0, "value": 0})
        with self._changed:
            inbox = self.inboxes.setdefault(who, [])
            self.until(lambda: any(body.get("id") == id for _, body in inbox), f"the answer to {id}")
            at = next(i for i, (_, body) in enumerate(inbox) if body.get("id") == id)
            out = inbox[:at]
            del inbox[:at + 1]
            return out


class Worker:
    """What a worker says and hears; it keeps nothing and decides nothing."""

    def __init__(self, wire: Wire, name: str, run: str) -> None:
        self.wire = wire
        self.name = name
        self.run = run

    def say(self, kind: str, message: Body | bytes, *, qos: int = 1) -> None:
        self.wire.say(f"from/{self.name}/{kind}", message, qos=qos)

    def ask(self, id: str, **fields: Any) -> None:
        self.say("ask", {"id": id, "run": self.run, **fields})

    def beat(self, *grants: Body, **fields: Any) -> None:
        self.say("beat", {"run": self.run, "leases": [list(key(grant)) for grant in grants], "asks": [], **fields})

    def tell(self, id: str, grant: Body, **fields: Any) -> None:
        self.say("tell", {"id": id, **lease(grant), **fields})

    def report(self, id: str, grant: Body, step: int, value: Any) -> None:
        self.say("report", {"id": id, **lease(grant), "step": step, "value": value})

    def grant(self, ask: str | None = None, timeout_s: float = WAIT_S) -> Body:
        return self.wire.take(self.name, lambda kind, body: kind == "grant" and ask in (None, body["ask"]),
                              f"a grant for {ask}", timeout_s)[1]

    def receipt(self, id: str, timeout_s: float = WAIT_S) -> Body:
        return self.wire.take(self.name, lambda kind, body: kind == "receipt" and body["id"] == id,
                              f"receipt {id}", timeout_s)[1]

    def stop(self, grant: Body) -> Body:
        return self.wire.take(self.name, lambda kind, body: kind == "stop" and key(body) == key(grant),
                              f"stop of {key(grant)}")[1]

    def heard(self) -> list[tuple[str, Body]]:
        return self.wire.heard(self.name)

    def lease(self, study: str, ask: str, **fields: Any) -> Body:
        """Ask for one trial and get it."""
        self.ask(ask, study=study, **fields)
        return self.grant(ask)

    def told(self, id: str, grant: Body, **fields: Any) -> Body:
        """Tell, and the receipt."""
        self.tell(id, grant, **fields)
        return self.receipt(id)


def key(message: Body) -> tuple[str, int, int]:
    return message["study"], message["trial"], message["fence"]


def lease(message: Body) -> Body:
    """The three fields that name a lease."""
    return dict(zip(("study", "trial", "fence"), key(message), strict=True))


__all__ = ["SPACE", "Body", "Broker", "Daemon", "Wire", "Worker", "key", "lease", "serving"]
