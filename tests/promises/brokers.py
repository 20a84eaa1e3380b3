"""A broker without persistence is killed at random instants, and now and then the daemon with it; no result is lost.

Real parts: mosquitto, which forgets everything with each kill, the daemon as a process, workers as processes with the
Python client, which train and tell all the while. A witness on the bus notes every receipt that it sees. After each
kill every value that a worker has returned must be in the log, once; when all is over the study is closed, and every
worker must end by itself.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import Broker, Wire
from tests.promises.book import Fault, Proof, Round
from tests.promises.follow import Follower
from tests.promises.load import Load
from tests.promises.zygote import Forked, Zygote

WORKER = Path(__file__).parent / "chaos_worker.py"
WORKERS = 4
WAIT_S = 60.0
ARRIVE_S = 25.0     # a worker waits seconds before it dials or tells again
SPEC = {"name": "s", "method": "random", "lease": {"default_s": 20},
        "space": {"x": {"type": "float", "low": 0, "high": 1}, "k": {"type": "categorical", "choices": ["a", "b"]}}}


class World:
    """The processes, and what was returned, answered and logged."""

    def __init__(self, folder: Path, broker: Broker, daemon: Forked, witness: Load, fault: Fault | None) -> None:
        self.folder, self.broker, self.daemon, self.witness = folder, broker, daemon, witness
        self.log = Follower(daemon.log)
        self._logged: Counter[tuple[int, float]] = Counter()
        self._counted = 0
        planted = [json.dumps([getattr(fault, name) for name in Fault.__slots__])] if fault is not None else []
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")}
        with (folder / "workers.stderr").open("wb") as errors:
            self.workers = [subprocess.Popen(
                [sys.executable, str(WORKER), broker.url, "s", f"c{number}", str(folder), *planted], stderr=errors,
                env=environment | {"XDG_STATE_HOME": str(folder / "state")}) for number in range(WORKERS)]

    def returned(self) -> list[tuple[int, float]]:
        """(trial, value) that a worker has returned so far."""
        lines = [line.split() for path in self.folder.glob("*.values") for line in path.read_text().splitlines()]
        return [(int(trial), float(value)) for trial, value in lines]

    def look(self) -> list[str]:
        """Take what is new in the log; what is wrong."""
        broken = self.log.read_on()
        for event in self.log.bodies[self._counted:]:
            if event["type"] in ("trial.completed", "outcome.late") and event["data"].get("values"):
                self._logged[event["trial"], event["data"]["values"]["value"]] += 1
        self._counted = len(self.log.bodies)
        return broken

    def settle(self, returned: list[tuple[int, float]]) -> list[str]:
        """Wait until all of these are in the log; what is wrong."""
        deadline_s = time.monotonic() + ARRIVE_S
        while True:
            broken = self.look()
            lost = [each for each in returned if each not in self._logged]
            if broken or not lost or time.monotonic() > deadline_s:
                broken += [f"trial {trial} = {value} is not in the log after {ARRIVE_S:g} s"
                           for trial, value in lost[:3]]
                return broken + [f"trial {trial} = {value} is in the log {self._logged[trial, value]} times"
                                 for trial, value in returned if self._logged[trial, value] > 1][:3]
            time.sleep(0.02)        # a file does not call us

    def rage(self, rng: random.Random) -> Round:
        """One kill of the broker, perhaps one of the daemon, and all that was returned must arrive."""
        before = len(self.returned())
        deadline_s = time.monotonic() + WAIT_S
        while len(self.returned()) < before + WORKERS:
            assert time.monotonic() < deadline_s, f"the workers do not work: {self.said()}"
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.5))
        daemon_too = rng.random() < 0.4
        order = [self.broker.kill, *([self.daemon.kill] if daemon_too else [])]
        rng.shuffle(order)
        for kill in order:
            kill()
            time.sleep(rng.uniform(0.0, 0.2))
        returned = self.returned()
        ends: list[Callable[[], object]] = [self.broker.start, *([self.daemon.start] if daemon_too else [])]
        rng.shuffle(ends)
        for start in ends:
            start()
            time.sleep(rng.uniform(0.0, 0.2))
        began = time.monotonic()
        broken = self.settle(returned)
        receipts = self.witness.take_receipts()
        self.look()
        broken += self.log.lacks(receipts)
        return Round({"kills of the daemon": daemon_too, "results": len(returned) - before,
                      "receipts seen": len(receipts),
                      "s until all had arrived max": round(time.monotonic() - began, 1)}, tuple(broken))

    def close(self) -> None:
        """Peace: every worker must end by itself, and the whole log hold."""
        with Wire(self.broker.url) as wire:
            wire.until(lambda: wire.daemon is not None and wire.daemon["state"] == "online", "the daemon is online")
            wire.ok("study.close", {"study": "s", "running": "finish"}, client="closer")
        ends = [worker.wait(WAIT_S) for worker in self.workers]
        assert ends == [0] * WORKERS, self.said()
        assert not (broken := self.settle(self.returned())), broken
        assert self.daemon.stop() == 0
        assert not (broken := self.log.finish()), broken

    def said(self) -> str:
        return f"{(self.folder / 'workers.stderr').read_text()[-1000:]}\n{self.daemon.said()}"


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    in_worker = fault if fault is not None and fault.module.startswith("bayesd_client") else None
    with (Broker(folder) as broker, Zygote(None if in_worker else fault) as zygote,
          Load(broker.port, workers=0) as witness, Forked(zygote, folder, broker.url) as daemon):
        with Wire(broker.url) as wire:
            daemon.ready(wire)
            wire.ok("study.create", {"spec": SPEC})
        world = World(folder, broker, daemon, witness, in_worker)
        is_whole = True

        def kill(seed: int) -> Round:
            nonlocal is_whole
            is_whole = False
            seen = world.rage(random.Random(f"brokers.{seed}"))
            is_whole = not seen.broken
            return seen

        try:
            yield kill
            if is_whole:
                world.close()
        finally:
            for worker in world.workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()


PROOFS = [Proof(
    "kills of the broker", ("P7", "P3", "P17"), "kills -9 of a broker that forgets all", _lab, quick=6, release=200,
    needs=("mosquitto",), faulty=lambda fault, folder: _lab(folder, fault), within=10,
    faults=(
        Fault("a worker tells once and takes the broker's word", "bayesd_client.agent",
              'self._out.append(Send("tell", message, told.log))',
              'told.tries > 1 or self._out.append(Send("tell", message, told.log))'),
        Fault("a copy that comes again is recorded again", "bayesd.study.rules.tells",
              "    if told is not None:\n        answer_copy(",
              "    if told is not None and told.message != message:\n        answer_copy("),
    ))]
