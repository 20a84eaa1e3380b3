"""Workers that take trials and tell results as fast as they are served, all in one client, and keep what they heard.

They are no model of a worker beyond the contract: what was told without a receipt is told again to the next life of
the daemon, asks keep their ids until they are served. `receipts` and `grants` are what the log is held against.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tests.edges.daemon import WAIT_S, Body, key

Lease = tuple[str, int, int]


class Receipt(NamedTuple):
    """One that names an event."""

    worker: str
    id: str
    status: str
    seq: int
    hash: str


class Load:
    """`workers` workers of `slots` trials each on one study, below one root."""

    def __init__(self, port: int, *, study: str = "s", root: str = "", workers: int = 4, slots: int = 4,
                 paused: bool = False) -> None:
        self.study = study
        self.prefix = f"{root}/bayesd/1" if root else "bayesd/1"
        self.receipts: list[Receipt] = []
        """Those not taken yet; `take_receipts` empties it."""
        self.heard = 0
        self.grants: dict[Lease, Body] = {}
        self.refusals: list[Body] = []
        """Receipts that refuse what is right."""
        self.epoch = 0
        """Of the daemon that was heard to be online last."""
        self.offline = False
        self.head: str | None = None
        self.paused = paused
        """No new trials are asked for."""
        self.seen: str | None = None
        """A head that the asks show."""
        self._port = port
        self._owed: dict[str, dict[Lease, Body]] = {f"w{number}": {} for number in range(workers)}
        self._asks: dict[str, dict[str, None]] = {worker: {} for worker in self._owed}
        self._slots = slots
        self._number = 0
        self._created = False
        self.changed = threading.Condition()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"load-{os.getpid()}-{id(self):x}")
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(f"{self.prefix}/{topic}", 0) for topic in ("to/+/+", "daemon", "head")])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_S), "the broker does not answer"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # ------------------------------------------------------------ for the round

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until something holds, looked at after each message and now and then; what was lost is sent again."""
        now = time.monotonic()
        deadline_s, again_s = now + timeout_s, now + 1.0
        with self.changed:
            while not holds():
                now = time.monotonic()
                assert now < deadline_s, f"not within {timeout_s:g} s: {what}"
                if now > again_s:
                    again_s = now + 1.0
                    self._send_again()
                self.changed.wait(0.02)

    def take_receipts(self) -> list[Receipt]:
        with self.changed:
            taken, self.receipts = self.receipts, []
            return taken

    def create(self) -> None:
        """Create the study; the answer is awaited. A daemon that comes online is asked for it, too."""
        with self.changed:
            if not self._created and self._owed:
                self._send_again()
        self.until(lambda: self._created, "the study is created")

    def clear(self, *topics: str) -> None:
        """Take what is retained there off the broker."""
        for topic in topics:
            self._client.publish(topic, b"", qos=1, retain=True).wait_for_publish(WAIT_S)

    def nudge(self) -> None:
        """Send again what has no answer."""
        with self.changed:
            self._send_again()

    def forget(self, study: str) -> None:
        """Work on another study of another log from now on."""
        with self.changed:
            self.study, self.epoch, self.head, self.seen, self._created = study, 0, None, None, False
            self.receipts.clear()
            self.grants.clear()
            for worker in self._owed:
                self._owed[worker].clear()
                self._asks[worker].clear()

    @property
    def unsettled(self) -> int:
        return sum(map(len, self._owed.values()))

    @property
    def asking(self) -> int:
        return sum(map(len, self._asks.values()))

    # ------------------------------------------------------------ on the wire

    def _say(self, topic: str, body: Body) -> None:
        self._client.publish(f"{self.prefix}/{topic}", json.dumps(body), qos=0)

    def _send_again(self) -> None:
        if not self._created and self._owed:
            self._say("admin/op/request", {"id": f"create.{self.study}", "verb": "study.create", "args": {"spec": {
                "name": self.study, "method": "random", "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}}}})
        for worker, owed in self._owed.items():
            asks = self._asks[worker]
            self._say(f"from/{worker}/beat", {"run": "r1", "leases": [list(lease) for lease in owed],
                                              "asks": list(asks)})
            for message in owed.values():
                self._say(f"from/{worker}/tell", message)
            for ask in asks:
                self._ask(worker, ask)
            while not self.paused and len(asks) + len(owed) < self._slots:
                self._new_ask(worker)

    def _new_ask(self, worker: str) -> None:
        self._number += 1
        id = f"a{self._number}"
        self._asks[worker][id] = None
        self._ask(worker, id)

    def _ask(self, worker: str, id: str) -> None:
        shown = {} if self.seen is None else {"seen": self.seen}
        self._say(f"from/{worker}/ask", {"id": id, "run": "r1", "study": self.study, **shown})

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{self.prefix}/").split("/")
        body: Body = json.loads(message.payload) if message.payload else {}
        with self.changed:
            if topic[0] == "daemon":
                self._on_daemon(body)
            elif topic[0] == "head":
                self.head = body.get("note", self.head)
            elif topic[2] == "grant":
                self._on_grant(topic[1], body)
            elif topic[2] == "receipt":
                self._on_receipt(topic[1], body)
            elif topic[2] == "reply":
                assert body["status"] in ("ok", "exists"), body
                self._created = self._created or body["id"] == f"create.{self.study}"
            self.changed.notify_all()

    def _on_daemon(self, said: Body) -> None:
        if not said:
            return
        self.offline = said.get("state") == "offline"
        if said.get("state") == "online" and said["epoch"] != self.epoch:
            self.epoch = said["epoch"]
            self._send_again()

    def _on_grant(self, worker: str, grant: Body) -> None:
        lease = key(grant)
        if lease[0] != self.study or lease in self.grants or worker not in self._owed:
            return
        self.grants[lease] = {**grant, "worker": worker}
        self._asks[worker].pop(grant["ask"], None)
        study, trial, fence = lease
        outcome = ({"state": "fail", "class": "other", "error": f"no luck with {trial}"} if trial % 9 == 2
                   else {"value": (trial * 7919 + fence) % 1000 / 1000})
        tell = {"id": f"t.{study}.{trial}.{fence}", "study": study, "trial": trial, "fence": fence, **outcome}
        self._owed[worker][lease] = tell
        if trial % 4 == 0:
            self._say(f"from/{worker}/report", {"id": f"r.{study}.{trial}.{fence}.0", "study": study, "trial": trial,
                                                "fence": fence, "step": 0, "value": 0.5})
        self._say(f"from/{worker}/tell", tell)

    def _on_receipt(self, worker: str, receipt: Body) -> None:
        id, status = receipt["id"], receipt["status"]
        if "seq" in receipt:
            self.receipts.append(Receipt(worker, id, status, receipt["seq"], receipt["hash"]))
            self.heard += 1
        elif status == "rejected":
            self.refusals.append(receipt)
        elif status in ("duplicate", "closed"):
            self._asks.get(worker, {}).pop(id, None)
        owed = self._owed.get(worker, {})
        for lease, tell in list(owed.items()):
            if tell["id"] == id:
                del owed[lease]
        if worker in self._owed and not self.paused and len(self._asks[worker]) + len(owed) < self._slots:
            self._new_ask(worker)
