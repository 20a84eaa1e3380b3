"""The real daemon on a small file system that fills up at any time and is freed again, under real messages.

A round fills the disk, to the last page or to a little less, while results are on their way, until a result is refused
for want of space. Reads must be answered then, and no trial granted. Some rounds kill or stop the daemon on the full
disk: its start there may end with 74, as often as a supervisor tries. When the space is back it must go on by itself
and record everything, with at most one more start in its log. Every receipt is held against the log at the end.

The file system is a tmpfs, so this needs the right to mount one. As a script it is the daemon's command line with a
shorter wait between two tries, and a fault planted: `python tests/promises/full.py [--fault NAME] serve ...`
"""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.edges.daemon import Body, Daemon, Wire, Worker  # noqa: E402  # the path comes first
from tests.edges.mosquitto import Mosquitto, missing  # noqa: E402
from tests.promises.book import Fault, Proof, Round  # noqa: E402
from tests.simulation.mutants import planted  # noqa: E402

SIZE_MIB = 48
WAIT_S = 120.0        # a loaded machine is slow; stuck is what lasts longer
PATIENCE_S = 0.5
TRIES = 400         # results of 12 kB until the disk must be full
SOON = Fault("a full disk is tried again soon", "bayesd.daemon", "events=config.events, settle_s=settle_s,",
             "events=config.events, settle_s=settle_s, full_disk_retry_s=0.3,")
FAULTS = (
    Fault("a full disk ends the daemon", "bayesd.service", "await self._on_full_disk(error)", "raise"),
    Fault("a refusal does not say when to try again", "bayesd.study.rules.answers",
          'if reason in ("rate", "disk-full"):',
          'if reason == "rate":'),
)


class _Bench:
    """A broker, a daemon with its log on the small file system, and what it acknowledged."""

    def __init__(self, folder: Path, small: Path, wire: Wire, daemon: Daemon) -> None:
        self.small, self.wire, self.daemon = small, wire, daemon
        self.ballast = small / "ballast"
        self.recorded: dict[str, tuple[int, str]] = {}
        self.numbers = itertools.count(1)
        self.restarts = 0
        self.seen: list[str] = []

    def fill(self, leave_bytes: int) -> None:
        """Nothing but so much is left, whatever the daemon does meanwhile."""
        with self.ballast.open("ab", buffering=0) as file:
            for _ in range(20):
                space = os.statvfs(self.small)
                more = space.f_bavail * space.f_frsize - leave_bytes
                if more <= 0:
                    return
                with contextlib.suppress(OSError):      # the daemon was faster: look again
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def starts(self) -> int:
        return sum(event["type"] == "daemon.started" for event in self.daemon.events())

    def tell(self, worker: Worker, grant: Body, size: int) -> Body:
        """Once, and the answer."""
        id = f"t.{grant['study']}.{grant['trial']}.{grant['fence']}"
        receipt = self.answer(worker, lambda: worker.tell(id, grant, value=0.5, user={"text": "x" * size}),
                              lambda kind, body: kind == "receipt" and body.get("id") == id)[1]
        if receipt["status"] in ("recorded", "duplicate"):
            self.recorded.setdefault(id, (receipt["seq"], receipt["hash"]))
        elif receipt.get("reason") != "disk-full":
            self.seen.append(f"a result is refused: {receipt}")
        elif not receipt.get("retry_after_s"):
            self.seen.append(f"no retry_after_s: {receipt}")
        return receipt

    def grant(self, worker: Worker) -> Body | None:
        """A trial; None when the disk is full."""
        ask = f"a{next(self.numbers)}"
        kind, body = self.answer(worker, lambda: worker.ask(ask, study="s"), lambda kind, body: (
            kind == "grant" and body["ask"] == ask) or (kind == "receipt" and body.get("id") == ask
                                                        and body.get("reason") == "disk-full"))
        if kind != "grant":
            worker.ask(ask, study="s", n=0)     # it stands no longer
        return body if kind == "grant" else None

    def answer(self, worker: Worker, say: Callable[[], None],
               fits: Callable[[str, Body], bool]) -> tuple[str, Body]:
        """Said again, as a worker does: the message at which the disk turns out to be full is not answered."""
        for _ in range(int(WAIT_S / PATIENCE_S)):
            say()
            with contextlib.suppress(AssertionError):
                return self.wire.take(worker.name, fits, "an answer", PATIENCE_S)
            if not self.daemon.alive:
                break
        raise AssertionError(f"no answer; the daemon {'lives' if self.daemon.alive else 'ended'}: {self.daemon.said()}")

    def restart(self, how: str) -> None:
        """End the daemon on the full disk, see what its start does there, free the disk and be its supervisor."""
        after = (self.wire.daemon or {"epoch": 0})["epoch"]
        if how == "kill":
            self.daemon.kill()
        elif (code := self.daemon.stop(WAIT_S)) != 0:
            self.seen.append(f"a stop on a full disk ends with {code}: {self.daemon.said()}")
        self.daemon.start()
        self.restarts += 1
        try:
            self.wire.until(lambda: not self.daemon.alive or self.announced(after), "it ends or serves", WAIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said {self.daemon.said()}, and the broker has "
                                 f"{self.wire.daemon}") from error
        self.free()
        while not self.announced(after):
            if not self.daemon.alive:
                if (code := self.daemon.wait()) != 74:
                    self.seen.append(f"a start on a full disk ends with {code}: {self.daemon.said()}")
                    raise AssertionError(self.seen[-1])
                self.daemon.start()
                self.restarts += 1
            self.wire.until(lambda: not self.daemon.alive or self.announced(after), "it ends or serves", WAIT_S)

    def announced(self, after: int) -> bool:
        """A life with a later epoch is online."""
        said = self.wire.daemon
        return said is not None and said["state"] == "online" and said["epoch"] > after

    def round(self, seed: int) -> Round:
        rng, self.seen, self.restarts, refused = Random(seed), [], 0, 0
        before, acknowledged = self.starts(), len(self.recorded)
        worker = self.wire.worker("w1")
        worker.beat()
        size = rng.choice([10, 3_000, 12_000])
        stock = [grant for _ in range(rng.randint(2, 6)) if (grant := self.grant(worker)) is not None]
        at = rng.randrange(len(stock))
        waiting: list[Body] = []
        for number, grant in enumerate(stock):
            if number == at:
                self.fill(rng.choice([0, 0, 4_096, 20_000, 60_000]))
            if self.tell(worker, grant, size)["status"] == "rejected":
                waiting.append(grant)
        for _ in range(TRIES):
            if waiting:
                break
            grant = self.grant(worker)
            if grant is None:
                break
            if self.tell(worker, grant, 12_000)["status"] == "rejected":
                waiting.append(grant)
        else:
            self.seen.append(f"{TRIES} results of 12 kB are recorded on a full disk")
        if self.grant(worker) is not None and self.grant(worker) is not None:
            self.seen.append("trials are granted on a full disk")
        for _ in range(3):      # held for some of the daemon's tries
            time.sleep(0.35)
            waiting = [grant for grant in waiting if self.tell(worker, grant, 12_000)["status"] == "rejected"]
        self.wire.ok("study.list")
        how = rng.choice(["", "", "", "kill", "stop"])
        if how:
            self.restart(how)
        self.free()
        deadline_s = time.monotonic() + WAIT_S
        while True:
            refused += len(waiting)
            waiting = [grant for grant in waiting if self.tell(worker, grant, size)["status"] == "rejected"]
            if not waiting and (grant := self.grant(worker)) is not None:
                self.tell(worker, grant, size)
                break
            assert time.monotonic() < deadline_s, f"it does not go on by itself: {self.daemon.said()}"
            time.sleep(0.1)     # as a worker waits before it tries again
        there = {event["seq"] for event in self.daemon.events()}
        self.seen += [f"{id} has a receipt for event {seq}, which is not there"
                      for id, (seq, _) in self.recorded.items() if seq not in there]
        if there != set(range(1, len(there) + 1)):
            self.seen.append("events are missing in the middle")
        if (again := self.starts() - before) > 1 + self.restarts:
            self.seen.append(f"it went on {again} times, and {self.restarts} times it was started")
        if not self.daemon.alive:
            self.seen.append(f"the daemon ended: {self.daemon.said()}")
        return Round({"results acknowledged": len(self.recorded) - acknowledged, "refused and told again": refused,
                      "starts on a full disk": self.restarts}, tuple(self.seen))


@contextlib.contextmanager
def _small(folder: Path) -> Iterator[Path]:
    """A small file system; without the right to mount one this is skipped, or fails if nothing may be left out."""
    small = folder / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "tmpfs", small],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing("a small file system", f"mount says: {done.stderr.strip()}")
    try:
        yield small
    finally:
        subprocess.run(["umount", small], check=True)


@contextlib.contextmanager
def _faulty(fault: Fault | None, folder: Path) -> Iterator[Callable[[int], Round]]:
    with _small(folder) as small, Mosquitto(folder) as broker, Wire(broker.url) as wire:
        daemon = Daemon(folder, broker.url, log="small/log.db")
        daemon._command[1:3] = [str(Path(__file__).resolve()), *(["--fault", fault.name] if fault else [])]
        with daemon:
            daemon.ready(wire)
            wire.create("s", lease={"default_s": 3600, "max_s": 3600})
            yield _Bench(folder, small, wire, daemon).round


PROOFS = [Proof("full disks", ("P9",), "fills", lambda folder: _faulty(None, folder), quick=4, release=200,
                faults=FAULTS, faulty=_faulty, within=6, needs=("mosquitto",))]


def main() -> Any:
    from bayesd.cli import main as command
    with contextlib.ExitStack() as stack:
        stack.enter_context(planted(SOON))
        if sys.argv[1:2] == ["--fault"]:
            name = sys.argv[2]
            del sys.argv[1:3]
            stack.enter_context(planted(next(fault for fault in FAULTS if fault.name == name)))
        return command()


if __name__ == "__main__":
    sys.exit(main())
