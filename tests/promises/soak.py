"""One long life of a daemon, with everything that happens to it: brokers and workers are killed, floods come, operators
read, studies are created and closed. What it holds must not grow but by what is on record.

A round is a segment of that life, 12 s and the time to come to rest; then its memory, its open descriptors and its
write-ahead log are measured. Rounds follow each other in one life, so that they are no function of their seeds. Each
recorded trial may take `TRIAL_KIB` of memory by right (0.6 to 0.8 were measured); whether what is beyond that grows is
judged by a line through all segments behind the first few, once there are enough of them for a line to mean something.
A first flood of each kind leaves some tens of MiB with the allocator, so that the line begins behind all five.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import Broker, Daemon, Wire
from tests.promises import flood
from tests.promises.book import Fault, Proof, Round

SEGMENT_S = 12.0
WORKERS = 3
FLOOD_RATE, FLOOD_S = 20_000, 2.0
TRIAL_KIB = 1.0
WARM, JUDGED = 15, 35           # segments left out, and so many must be there before memory is judged
SLOPE_MAX_MIB_PER_H = 1.0
WAL_MAX_MIB = 64
DESCRIPTORS_MORE = 4            # than at the first measurement: a read or a commit may be under way
HERE = Path(__file__).parent
CHAOS_WORKER = HERE / "chaos_worker.py"


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y)."""
    x_mean, y_mean = (sum(each) / len(points) for each in zip(*points, strict=True))
    return float(sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points))


class Life:
    """The processes, and what was measured."""

    def __init__(self, folder: Path, broker: Broker, daemon: Daemon, wire: Wire) -> None:
        self.folder, self.broker, self.daemon, self.wire = folder, broker, daemon, wire
        self.began = time.monotonic()
        self.trials = 0
        self.beyond_kib: list[tuple[float, float]] = []
        self.descriptors: int | None = None

    def worker(self, study: str, name: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "state")}
        return subprocess.Popen([sys.executable, str(CHAOS_WORKER), self.broker.url, study, name, str(self.folder)],
                                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def again(self, verb: str, args: dict[str, object]) -> None:
        """An operator who sends a write until it is answered: its broker may be dead."""
        id = f"{verb}.{self.trials}.{time.monotonic_ns()}"
        for _ in range(10):
            with contextlib.suppress(AssertionError):
                reply = self.wire.request(verb, args, id=id)
                assert reply["status"] in ("ok", "exists"), reply
                return
        raise AssertionError(f"no answer to {verb}")

    def segment(self, seed: int) -> dict[str, float]:
        """Live through one; says what happened."""
        rng, study = random.Random(seed), f"soak{seed}"
        self.again("study.create", {"spec": {"name": study, "method": "random", "lease": {"default_s": 30},
                                             "space": {"x": {"type": "float", "low": 0, "high": 1}}}})
        names = [f"w{seed}-{number}" for number in range(WORKERS)]
        workers = {name: self.worker(study, name) for name in names}
        flooder: subprocess.Popen[str] | None = None
        broker_kills = worker_kills = 0
        ends = time.monotonic() + SEGMENT_S
        try:
            while time.monotonic() < ends:
                time.sleep(rng.uniform(0.2, 1.0))
                match rng.choice(("broker", "broker", "worker", "flood", "read", "read")):
                    case "broker":
                        self.broker.kill()
                        self.broker.start()
                        broker_kills += 1
                    case "worker":
                        name = rng.choice(names)
                        workers[name].send_signal(signal.SIGKILL)
                        workers[name].wait()
                        workers[name] = self.worker(study, name)
                        worker_kills += 1
                    case "flood" if flooder is None and seed % 3 == 2:
                        flooder = subprocess.Popen(
                            [sys.executable, str(HERE / "flood.py"), str(self.broker.port), str(FLOOD_RATE),
                             str(FLOOD_S), flood.FLAVOURS[seed // 3 % len(flood.FLAVOURS)], str(seed)],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                    case _:
                        with contextlib.suppress(AssertionError):      # its broker may have been killed meanwhile
                            self.wire.request("trial.list", {"study": study, "limit": 50})
                            self.wire.request("events", {"after": 0, "limit": 50})
            self.again("study.close", {"study": study, "running": "stop"})
        finally:
            for each in workers.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.wait(15)
                each.kill()
                each.wait()
            if flooder is not None:
                flooder.communicate(timeout=60)
        return {"broker kills": broker_kills, "worker kills": worker_kills, "floods": float(flooder is not None)}

    def measure(self, study: str) -> tuple[dict[str, float], list[str]]:
        shown = self.wire.ok("study.show", {"study": study})
        self.trials += sum(shown["trials"].values())
        assert self.daemon.process is not None
        descriptors = len(list(Path(f"/proc/{self.daemon.process.pid}/fd").iterdir()))
        wal = Path(f"{self.daemon.log}-wal")
        wal_mib = wal.stat().st_size / 2**20 if wal.exists() else 0.0
        rss_kib = self.daemon.rss_kib()
        self.beyond_kib.append((time.monotonic() - self.began, rss_kib - TRIAL_KIB * self.trials))
        first = self.descriptors if self.descriptors is not None else descriptors
        self.descriptors = first
        broken = [] if shown["trials"]["complete"] else ["no worker delivered anything"]
        if descriptors > first + DESCRIPTORS_MORE:
            broken.append(f"{descriptors} open descriptors, and {first} at first")
        if wal_mib > WAL_MAX_MIB:
            broken.append(f"the write-ahead log has {wal_mib:.0f} MiB")
        counts = {"trials": float(sum(shown["trials"].values())), "MiB of memory max": round(rss_kib / 1024, 1),
                  "descriptors max": float(descriptors), "MiB of WAL max": round(wal_mib, 1)}
        judged = self.beyond_kib[WARM:]
        if len(judged) >= JUDGED - WARM:
            grows = slope(judged) * 3600 / 1024
            counts[f"MiB an hour beyond {TRIAL_KIB:g} KiB a trial max"] = round(grows, 2)
            if grows > SLOPE_MAX_MIB_PER_H:
                broken.append(f"memory beyond {TRIAL_KIB} KiB a trial grows by {grows:.2f} MiB an hour")
        return counts, broken

    def round(self, seed: int) -> Round:
        try:
            happened = self.segment(seed)
            measured, broken = self.measure(f"soak{seed}")
        except AssertionError as error:
            return Round({}, (f"{error}" if self.daemon.alive else f"the daemon ended: {self.daemon.said()}",))
        return Round({**happened, **measured}, tuple(broken))


@contextlib.contextmanager
def _lab(folder: Path, *fault: str) -> Iterator[Callable[[int], Round]]:
    program = (str(HERE / "launch.py"), *fault)
    with Broker(folder) as broker, Wire(broker.url) as wire, Daemon(folder, broker.url, program=program) as daemon:
        daemon.ready(wire)
        life = Life(folder, broker, daemon, wire)
        life.descriptors = len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))     # type: ignore[union-attr]
        yield life.round


@contextlib.contextmanager
def _faulty(fault: Fault, folder: Path) -> Iterator[Callable[[int], Round]]:
    with _lab(folder, "--fault", fault.name) as round_of:
        yield round_of


PROOFS = [Proof("soak", ("P33",), f"segments of {SEGMENT_S:.0f} s of one life", _lab, quick=1, release=90,
                faulty=_faulty, within=4, needs=("mosquitto",), faults=(
    Fault("the socket of a lost broker stays open", "bayesd.link",
          "            sock.close()\n        if not self._ended.done():",
          "            sock.detach()\n        if not self._ended.done():"),))]
