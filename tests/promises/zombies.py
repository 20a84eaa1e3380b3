"""Workers that are stopped by SIGSTOP until their trial is somebody else's, and workers that are killed.

Real parts: the Python client in processes of its own, mosquitto, the daemon. Who comes back tells its result with an
old fence: it must be `late` and never the trial's. The trial of a worker that is dead must be offered again and end.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import Body, Broker, Wire
from tests.promises.book import Fault, Proof, Round
from tests.promises.follow import Follower
from tests.promises.zygote import Forked, Zygote

HERE = Path(__file__).parent
WORKER = HERE / "patient_worker.py"
LEASE_S = 0.6
WAIT_S = 20.0
SPEC: Body = {"name": "s", "method": "random", "lease": {"default_s": LEASE_S}, "retry": {"lost": 1000},
              "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}}


class Patients:
    """Two workers whose trainings end when they are told to."""

    def __init__(self, folder: Path, daemon: Forked, wire: Wire, url: str) -> None:
        self._folder, self._wire, self._url = folder, wire, url
        self.log = Follower(daemon.log)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("a", "b"):
            self.start(name)

    def start(self, name: str) -> None:
        (self._folder / f"{name}.now").unlink(missing_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")}
        with (self._folder / f"{name}.stderr").open("ab") as errors:
            self._processes[name] = subprocess.Popen(
                [sys.executable, str(WORKER), self._url, "s", name, str(self._folder)], stderr=errors,
                env=environment | {"XDG_STATE_HOME": str(self._folder / "state")})

    def signal(self, name: str, number: int) -> None:
        self._processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self._processes[name].wait()

    def trains(self, name: str) -> tuple[int, int] | None:
        """(trial, fence) of what a worker has under way."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            trial, fence = (self._folder / f"{name}.now").read_text().split()
            if not self._go(name, int(trial), int(fence)).exists():
                return int(trial), int(fence)
        return None

    def at_work(self, name: str) -> tuple[int, int]:
        """What it trains, as soon as that is on a lease that is open: a grant may have waited for a zombie."""
        found: list[tuple[int, int]] = []

        def works() -> bool:
            now = self.trains(name)
            if now is None:
                return False
            assert not (broken := self.log.read_on()), broken
            if self.log.newest.get(("s", now[0])) == now[1]:
                found.append(now)
            elif ("s", *now) in self.log.leased:
                self.finish(name, *now)
            return bool(found)
        self.until(works, f"{name} trains")
        return found[0]

    def finish(self, name: str, trial: int, fence: int) -> None:
        """Let a training come to its end."""
        self._go(name, trial, fence).touch()

    def _go(self, name: str, trial: int, fence: int) -> Path:
        return self._folder / f"{name}.{trial}.{fence}.go"

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {WAIT_S:g} s: {what}; {self.said()}"
            time.sleep(0.01)        # processes and files do not call us

    def logged(self, broken: list[str], holds: Callable[[], bool], what: str) -> None:
        """Wait until something is in the log, and note what is wrong with it."""
        def is_logged() -> bool:
            broken.extend(self.log.read_on())
            return holds()
        self.until(is_logged, f"{what} is in the log")

    def said(self) -> str:
        return "; ".join(path.read_text()[-300:] for path in self._folder.glob("?.stderr"))

    def end(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    # ------------------------------------------------------------ the round

    def take_over(self, trial: int, fence: int) -> tuple[int, list[str]]:
        """Worker b goes on until it trains what a has lost: (its fence there, what is wrong)."""
        broken: list[str] = []

        def has() -> bool:
            now = self.trains("b")
            if now is not None and now[0] == trial and now[1] > fence:
                return True
            if now is not None and now[0] != trial:
                self.finish("b", *now)
            broken.extend(self.log.read_on())
            return bool(broken)
        self.until(has, f"trial {trial} of a is offered again")
        return (self.trains("b") or (trial, fence))[1], broken

    def meet(self, is_dead: bool, comes_first: bool) -> Round:
        trial, fence = self.at_work("a")
        self.signal("a", signal.SIGKILL if is_dead else signal.SIGSTOP)
        began = time.monotonic()
        newer, broken = self.take_over(trial, fence)
        waited_s = time.monotonic() - began
        if is_dead:
            self.finish("b", trial, newer)
            self.start("a")
        else:
            if not comes_first:
                self.finish("b", trial, newer)
                self.logged(broken, lambda: ("s", trial) in self.log.results, "b's result")
            self.finish("a", trial, fence)
            self.signal("a", signal.SIGCONT)
            self.logged(broken, lambda: self.log.is_told("s", trial, fence), "a's result")
            self.finish("b", trial, newer)
        self.logged(broken, lambda: ("s", trial) in self.log.results, f"the result of trial {trial}")
        counted = self.log.results["s", trial]
        if counted != newer:
            broken.append(f"trial {trial} has the result of fence {counted}, and {newer} is the newest")
        if not is_dead and ("s", trial, fence) not in self.log.late:
            broken.append(f"what came for trial {trial} with the old fence {fence} is not late")
        return Round({"zombies": not is_dead, "dead workers": is_dead,
                      "s until it was offered again max": round(waited_s, 2)}, tuple(broken))


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    with (Broker(folder) as broker, Zygote(fault) as zygote, Wire(broker.url) as wire,
          Forked(zygote, folder, broker.url) as daemon):
        daemon.ready(wire)
        wire.ok("study.create", {"spec": SPEC})
        patients = Patients(folder, daemon, wire, broker.url)
        try:
            yield lambda seed: patients.meet(is_dead=seed % 3 == 1, comes_first=seed % 2 == 0)
        finally:
            patients.end()


PROOFS = [Proof(
    "zombies and dead workers", ("P16", "P15"), "workers", _lab, quick=4, release=50, needs=("mosquitto",),
    faulty=lambda fault, folder: _lab(folder, fault), within=8,
    faults=(
        Fault("a result with an old fence is the trial's", "bayesd.study.rules.tells",
              "newest = lease.fence == trial.fence",
              "newest = True"),
        Fault("the lease of a dead worker never ends", "bayesd.study.rules.time", "if deadline <= now]:",
              "if deadline < 0]:"),
    ))]
