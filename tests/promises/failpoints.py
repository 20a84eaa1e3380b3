"""Death by SIGKILL at each named point in the life of a daemon (points.py), and a start that needs nobody.

Every point has a scene that leads there: a log that is not there yet, a start, serving under load, a stop, an
archive, an old copy that was put back and refused, and one that is accepted. The same command again must
succeed, and the log must bear out everything that ever came out. A point that its scene does not reach is an error.
"""

import contextlib
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import WAIT_S, Broker, Daemon
from tests.promises.book import Fault, Proof, Round
from tests.promises.follow import Follower
from tests.promises.load import Load
from tests.promises.points import POINTS, Point
from tests.promises.zygote import Forked, Zygote

from bayesd.log import verify
from bayesd.segments import Joined, join

WORDS = "the disk died"
SEGMENT = "100"      # events of a segment


def copy_of(log: Path, target: Path) -> None:
    """A log of a daemon that is stopped or not, as one file; the target's WAL goes."""
    for leftover in (target, Path(f"{target}-wal"), Path(f"{target}-shm")):
        leftover.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(log)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


class Scenes:
    """What leads to the points, one log at a time."""

    def __init__(self, zygote: Zygote, folder: Path, broker: Broker, load: Load) -> None:
        self._zygote, self._folder, self._broker, self._load = zygote, folder, broker, load
        self._logs = 0
        self.restart_s = 0.0

    def play(self, point: Point, passage: int) -> list[str]:
        """Die at the point, begin again, and say what is wrong."""
        self._logs += 1
        load = self._load
        load.forget(f"s{self._logs}")
        load.paused = False
        load.clear(f"{load.prefix}/daemon", f"{load.prefix}/head")
        self.folder = self._folder / str(self._logs)
        self.folder.mkdir()
        self.daemon = self._daemon("--heads", str(self.folder / "heads"))
        self.log = Follower(self.daemon.log)
        try:
            broken: list[str] = getattr(self, f"_{point.scene}")((point.name, passage))
        finally:
            if self.daemon.alive:
                self.daemon.kill()
        shutil.rmtree(self.folder)
        return broken

    # ------------------------------------------------------------ the scenes

    def _new(self, point: tuple[str, int]) -> list[str]:
        self._dies(self.daemon.start(point))
        return self._again()

    def _start(self, point: tuple[str, int]) -> list[str]:
        self._served(40)
        self.daemon.kill()
        self._dies(self.daemon.start(point))
        return self._again()

    def _serve(self, point: tuple[str, int]) -> list[str]:
        self._dies(self.daemon.start(point))
        return self._again()

    def _stop(self, point: tuple[str, int]) -> list[str]:
        # Two lives that saved a snapshot, so that a third saves one and lets the first go.
        for _ in range(2):
            self._served(10)
            assert self.daemon.stop() == 0
        self._served(10, point)
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGTERM)
        self._dies(self.daemon)
        return self._again()

    def _archive(self, point: tuple[str, int]) -> list[str]:
        self._served(60)
        assert self.daemon.stop() == 0
        self.log.read_on()
        target = self.folder / "archive"
        arguments = ["log", "archive", str(self.daemon.log), "--output", str(target), "--events", SEGMENT]
        errors = self.folder / "archive.stderr"
        child = self._zygote.fork(arguments, self.daemon._environment, errors, point=point)
        assert child.wait(WAIT_S) == -signal.SIGKILL, f"{point} is not passed: {errors.read_text()}"
        # The log grows: what was broken off is not what is written now.
        self._served(10)
        assert self.daemon.stop() == 0
        self.log.read_on()
        began = time.monotonic()
        code = self._zygote.fork(arguments, self.daemon._environment, errors).wait(WAIT_S)
        self.restart_s = time.monotonic() - began
        if code != 0:
            return [f"the archive is not gone on with: {errors.read_text()}"]
        leftovers = [path.name for path in target.iterdir() if path.name.endswith(".part")]
        hashes = [hash.hex() for _, _, hash in join(sorted(target.glob("*.jsonl.gz")), Joined())]
        return [f"{leftovers} are left"] * bool(leftovers) + \
            ["the segments are not the log"] * (hashes != self.log.hashes)

    def _put_back(self) -> None:
        """The log, as it was before some of what its heads speak of."""
        self._served(20)
        assert self.daemon.stop() == 0
        copy_of(self.daemon.log, self.folder / "backup.db")
        self._served(30)
        assert self.daemon.stop() == 0
        self._load.take_receipts()      # of a future that is gone
        shutil.copy(self.folder / "backup.db", self.daemon.log)
        for ending in ("-wal", "-shm"):
            Path(f"{self.daemon.log}{ending}").unlink(missing_ok=True)
        self._load.forget(self._load.study)

    def _refused(self, point: tuple[str, int]) -> list[str]:
        self._put_back()
        self._dies(self.daemon.start(point))
        return self._must_be_refused() + self._accepted()

    def _accept(self, point: tuple[str, int]) -> list[str]:
        self._put_back()
        broken = self._must_be_refused()
        if "heads file" not in point[0]:
            # From here on what the refused start left beside the log is the only witness.
            self.daemon = self._daemon()
            self._load.clear(f"{self._load.prefix}/head")
        self._dies(self.daemon.start(point, "--accept-rollback", WORDS))
        if not any(event["type"] == "log.repaired" for event in self.daemon.events()):
            broken += self._must_be_refused()
        return broken + self._accepted()

    def _must_be_refused(self) -> list[str]:
        load = self._load
        load.epoch = 0
        self.daemon.start()
        load.until(lambda: not self.daemon.alive or load.epoch > 0, "an old copy is refused")
        code = self.daemon.wait() if load.epoch == 0 else "service"
        broken = [] if code == 65 else [f"an old copy ends in {code} and not 65: {self.daemon.said()}"]
        if load.epoch:
            self.daemon.kill()
            return broken
        if verify(self.daemon.log).seq != verify(self.folder / "backup.db").seq:
            broken.append("a start that is refused wrote into the log")
        return broken

    def _accepted(self) -> list[str]:
        broken = self._again("--accept-rollback", WORDS)
        repairs = sum(event["type"] == "log.repaired" for event in self.log.bodies)
        if repairs != 1:
            broken.append(f"what was accepted is on record {repairs} times")
        return broken

    # ------------------------------------------------------------ what they are made of

    def _daemon(self, *flags: str) -> Forked:
        return Forked(self._zygote, self.folder, self._broker.url, "--note-events", "10", "--note-s", "1", *flags)

    def _online(self, *more: str, point: tuple[str, int] | None = None) -> None:
        before, began, daemon, load = self._load.epoch, time.monotonic(), self.daemon, self._load
        daemon.start(point, *more)

        def online() -> bool:
            assert daemon.alive, f"the daemon does not start again: {daemon.said()}"
            return load.epoch > before and not load.offline
        load.until(online, "the daemon is online", WAIT_S)
        self.restart_s = time.monotonic() - began

    def _served(self, receipts: int, point: tuple[str, int] | None = None) -> None:
        """A life up to so many receipts; it is left running."""
        load = self._load
        self._online(point=point)
        load.create()
        goal = load.heard + receipts
        load.until(lambda: load.heard >= goal, f"{receipts} receipts")

    def _dies(self, daemon: Daemon) -> None:
        load, deadline_s = self._load, time.monotonic() + WAIT_S
        load.until(lambda: not daemon.alive or time.monotonic() > deadline_s - 1, "the point is passed", WAIT_S)
        code = daemon.process.poll() if daemon.process is not None else None
        assert code == -signal.SIGKILL, f"the point is not passed (exit {code}): {daemon.said()}"

    def _again(self, *more: str) -> list[str]:
        """The same command without the point: it must serve, stop cleanly, and have everything."""
        load = self._load
        self._online(*more)
        load.create()
        goal = load.heard + 5
        load.until(lambda: load.heard >= goal, "the daemon serves again")
        code = self.daemon.stop()
        broken = [] if code == 0 else [f"a clean stop ends with {code}: {self.daemon.said()}"]
        broken += self.log.finish()
        broken += self.log.lacks(load.take_receipts()) + self.log.lacks_grants(load.grants.items())
        broken += [f"what is right is refused: {each}" for each in load.refusals]
        load.refusals.clear()
        return broken


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    with Broker(folder) as broker, Zygote(fault) as zygote, Load(broker.port) as load:
        scenes = Scenes(zygote, folder, broker, load)

        def die(seed: int) -> Round:
            rng = random.Random(f"failpoints.{seed}")
            point = POINTS[seed % len(POINTS)]
            passage = rng.randint(1, point.passages_max)
            broken = [f"{point.name}, passage {passage}: {what}" for what in scenes.play(point, passage)]
            return Round({"s to be back max": round(scenes.restart_s, 2)}, tuple(broken))

        yield die


PROOFS = [Proof(
    f"deaths at {len(POINTS)} named points", ("P8", "P1"), "deaths", _lab, quick=len(POINTS),
    release=20 * len(POINTS), needs=("mosquitto",), faulty=lambda fault, folder: _lab(folder, fault),
    within=len(POINTS),
    faults=(
        Fault("what a crash left of a new log is in the way", "bayesd.logfile",
              "        leftover.unlink(missing_ok=True)\n    os.close", "        pass\n    os.close"),
        Fault("what was refused is forgotten before the repair is on record", "bayesd.service",
              "        await self._fold()\n        if self.heads is not None:",
              "        await self._fold(); self._outside.forget and self._outside.forget()\n"
              "        if self.heads is not None:"),
        Fault("a segment that was broken off is taken for a whole one", "bayesd.segments",
              "            path.unlink()\n", "            pass\n"),
    ))]
