"""Two daemons on one log, and two daemons on copies of one.

Twins: the second is refused by the lock (75). When the lock is stolen (its file removed or replaced while the first is
stopped by SIGSTOP at a random instant), the second takes the log over, and the first, which knows nothing of it, must
end with 76 before it has written one event. Workers go on telling both.

Copies: a log is copied while its daemon is stopped, and both copies are served behind one broker: below two roots,
with a worker that shows each the head of the other, or below one, where the broker keeps the head. The daemon whose
log lacks the head must end with 65 and grant nothing.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import WAIT_S, Broker
from tests.promises.book import Fault, Proof, Round
from tests.promises.follow import Follower
from tests.promises.load import Load
from tests.promises.zygote import Forked, Zygote

from bayesd.notes import read

EVENTS_MAX = 6000
OTHER_WRITER, FENCED, ROLLED_BACK = 75, 76, 65


def online(daemon: Forked, load: Load) -> None:
    """Start it and wait until it serves."""
    before = load.epoch
    daemon.start()

    def is_online() -> bool:
        assert daemon.alive, f"the daemon does not start: {daemon.said()}"
        return load.epoch > before and not load.offline
    load.until(is_online, "the daemon is online")


def served(load: Load, receipts: int) -> None:
    goal = load.heard + receipts
    load.until(lambda: load.heard >= goal, f"{receipts} receipts")


# --- One log --------------------------------------------------------------------------------------


class Twins:
    """A log with a daemon, and the second one that comes."""

    def __init__(self, zygote: Zygote, folder: Path, broker: Broker, load: Load) -> None:
        self._zygote, self._folder, self._broker, self._load = zygote, folder, broker, load
        self._logs = 0
        self.first = self._new_log()

    def _daemon(self) -> Forked:
        return Forked(self._zygote, self.folder, self._broker.url, "--note-events", "20", "--note-s", "0.2")

    def _new_log(self) -> Forked:
        self._logs += 1
        self.folder = self._folder / str(self._logs)
        self.folder.mkdir()
        self._load.forget(f"s{self._logs}")
        self._load.clear(f"{self._load.prefix}/daemon", f"{self._load.prefix}/head")
        self.first = self._daemon()
        self.log = Follower(self.first.log)
        online(self.first, self._load)
        self._load.create()
        return self.first

    def refuse(self) -> list[str]:
        """The second must not start."""
        epoch, second = self._load.epoch, self._daemon().start()
        self._load.until(lambda: not second.alive or self._load.epoch > epoch, "the second is refused")
        if second.alive:
            second.kill()
            return ["a second daemon serves the log beside the first"]
        code = second.wait()
        broken = [] if code == OTHER_WRITER else [f"the second ends with {code}: {second.said()}"]
        if not self.first.alive:
            return [*broken, f"the second ended the first: {self.first.said()}"]
        served(self._load, 1)
        return broken

    def steal(self, rng: random.Random) -> tuple[list[str], int]:
        """The lock is taken from the first; what is wrong, and how often the second had to be started again."""
        first, load = self.first, self._load
        assert first.process is not None
        time.sleep(rng.uniform(0.0, 0.1))
        first.process.send_signal(signal.SIGSTOP)
        _until_stopped(first.process.pid)
        lock = Path(f"{first.log}.lock")
        if rng.random() < 0.5:
            lock.unlink()
        else:
            lock.with_suffix(".mine").write_text("1\n")
            lock.with_suffix(".mine").replace(lock)
        second, epoch, again = self._daemon(), load.epoch, 0
        second.start()
        load.until(lambda: not second.alive or load.epoch > epoch, "the second takes the log over")
        if not second.alive:
            # The first was stopped inside a transaction, and SQLite's own lock holds: the manager tries again.
            again = 1
            first.process.send_signal(signal.SIGCONT)
            online(second, load)
        served(load, rng.randint(1, 10))
        first.process.send_signal(signal.SIGCONT)
        load.nudge()
        load.until(lambda: not first.alive, "the first ends")
        code = first.wait()
        broken = [] if code == FENCED else [f"the first ends with {code} and not {FENCED}: {first.said()}"]
        self.first = second
        served(load, 1)
        return broken, again

    def look(self) -> tuple[list[str], int]:
        """What the log says, and how many events are new."""
        load, before = self._load, self.log.seq
        receipts = load.take_receipts()
        broken = self.log.read_on() + self.log.lacks(receipts)
        events = self.log.seq - before
        if self.log.seq > EVENTS_MAX:
            self.first.kill()
            self._new_log()
        return broken, events


def _until_stopped(pid: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline_s, "SIGSTOP stops nobody"
        os.sched_yield()


@contextlib.contextmanager
def _twins(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    with Broker(folder) as broker, Zygote(fault) as zygote, Load(broker.port) as load:
        twins = Twins(zygote, folder, broker, load)

        def meet(seed: int) -> Round:
            rng = random.Random(f"twins.{seed}")
            again = 0
            if refused := rng.random() < 0.25:
                broken = twins.refuse()
            else:
                broken, again = twins.steal(rng)
            more, events = twins.look()
            return Round({"stolen locks": not refused, "second daemons refused": refused,
                          "of the stolen inside a transaction": again, "events": events}, (*broken, *more))

        yield meet


# --- Copies ----------------------------------------------------------------------------------------


class Copies:
    """A log that was served for a while, and copies of it."""

    def __init__(self, zygote: Zygote, folder: Path, broker: Broker) -> None:
        self._zygote, self._folder, self._broker = zygote, folder, broker
        self._rounds = 0
        original = self._daemon("original", "original")
        with Load(broker.port, root="original", workers=2) as load:
            online(original, load)
            load.create()
            served(load, 10)
            assert original.stop() == 0
        self._original = original.log
        self._size = len(original.events())

    def _daemon(self, name: str, root: str) -> Forked:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return Forked(self._zygote, folder, self._broker.url, "--root", root, "--note-events", "5", "--note-s", "0.1")

    def copy(self, name: str, root: str) -> Forked:
        daemon = self._daemon(name, root)
        for ending in ("", ".key"):
            shutil.copy(f"{self._original}{ending}", f"{daemon.log}{ending}")
        return daemon

    def grown(self, daemon: Forked, load: Load, receipts: int) -> None:
        """Let it serve until a head that is its own alone is out."""
        online(daemon, load)
        served(load, receipts)
        load.until(lambda: load.head is not None and read(load.head).size > self._size, "a new head is signed")

    def meet(self, rng: random.Random) -> list[str]:
        self._rounds += 1
        names = [f"{self._rounds}-a", f"{self._rounds}-b"]
        is_one_root = rng.random() < 0.3
        roots = names[:1] * 2 if is_one_root else names
        ours, theirs = (self.copy(name, root) for name, root in zip(names, roots, strict=True))
        load = Load(self._broker.port, root=roots[0], workers=2)
        other = Load(self._broker.port, root=roots[1], workers=2)
        with ours_ends(ours), ours_ends(theirs), load:
            self.grown(ours, load, rng.randint(5, 40))
            if is_one_root:
                theirs.start()
            else:
                load.paused = True      # so that either may be the longer one
                with other:
                    self.grown(theirs, other, rng.randint(5, 80))
                    other.paused = True
                    other.until(lambda: not other.unsettled and not other.asking, "what was granted is told")
                    granted = len(other.grants)
                    other.seen, other.paused = load.head, False
                    other.nudge()
                    other.until(lambda: not theirs.alive or len(other.grants) > granted, "the copy meets the head")
                    if len(other.grants) > granted:
                        return ["the copy granted a trial to a worker that showed it another future"]
            load.until(lambda: not theirs.alive, "the copy ends")
            code = theirs.wait()
            broken = [] if code == ROLLED_BACK else [f"the copy ends with {code}: {theirs.said()}"]
            code = theirs.start().wait()
            if code != ROLLED_BACK:
                broken.append(f"the copy starts again, and ends with {code}")
            load.paused = False
            load.nudge()
            served(load, 1)
            log, receipts = Follower(ours.log), load.take_receipts()
            broken += log.read_on() + log.lacks(receipts)
        for name in names:
            shutil.rmtree(self._folder / name)
        return broken


@contextlib.contextmanager
def ours_ends(daemon: Forked) -> Iterator[None]:
    """Whatever comes, it is not left running."""
    try:
        yield
    finally:
        if daemon.alive:
            daemon.kill()


@contextlib.contextmanager
def _copies(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    with Broker(folder) as broker, Zygote(fault) as zygote:
        copies = Copies(zygote, folder, broker)
        yield lambda seed: Round({}, tuple(copies.meet(random.Random(f"copies.{seed}"))))


PROOFS = [
    Proof("two daemons on one log", ("P18",), "rounds", _twins, quick=5, release=200, needs=("mosquitto",),
          faulty=lambda fault, folder: _twins(folder, fault), within=15,
          faults=(
              Fault("two daemons share the lock", "bayesd.logfile", "fcntl.LOCK_EX | fcntl.LOCK_NB",
                    "fcntl.LOCK_SH | fcntl.LOCK_NB"),
              Fault("an older writer is not fenced", "bayesd.log",
                    "WHERE (SELECT epoch FROM writer WHERE one = 1) = ?9", "WHERE ?9 = ?9"),
          )),
    Proof("two daemons on copies of a log", ("P19",), "pairs", _copies, quick=3, release=50, needs=("mosquitto",),
          faulty=lambda fault, folder: _copies(folder, fault), within=15,
          faults=(
              Fault("every shorter head is our own", "bayesd.heads",
                    "return await self._root_at(theirs.size) == theirs.root", "return True"),
              Fault("what a worker has seen is not looked at", "bayesd.service",
                    "if heads is not None and ask.seen is not None and not heads.knows(ask.seen):", "if False:"),
          )),
]
