"""kill -9 of the daemon at random instants, while it serves and while it starts, under a load of asks and tells.

Real parts: mosquitto, the process of the daemon, SQLite on the file system of the temporary folder. The instants are
drawn from the seed; where they hit is up to the machine, so a seed does not give the same round twice. After each kill
the next start must need nobody, and every receipt and grant that ever came out must be in the log, word for word.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import WAIT_S, Broker
from tests.promises.book import Fault, Proof, Round
from tests.promises.follow import Follower
from tests.promises.load import Load
from tests.promises.zygote import Forked, Zygote

SERVING_MAX_S = 0.25        # a kill comes so long after the daemon is online at the latest
STARTING_MAX_S = 0.12       # ... or after its process began
EVENTS_MAX = 6000           # a longer log gives way to a new one: a start reads all of it
WHOLE_EVERY = 8             # after so many kills the daemon is stopped, and the whole log is looked at


class Lives:
    """A daemon that is killed and started again, the load on it, and what is known of its log."""

    def __init__(self, zygote: Zygote, folder: Path, broker: Broker, load: Load) -> None:
        self._zygote, self._folder, self._broker, self._load = zygote, folder, broker, load
        self._logs = 0
        self.restart_max_s = 0.0
        self.new_log()

    def new_log(self) -> None:
        """Begin again on a log that is not there."""
        self._logs += 1
        self.since_whole = 0
        self._load.forget(f"s{self._logs}")
        folder = self._folder / str(self._logs)
        folder.mkdir()
        self._load.clear(f"{self._load.prefix}/daemon", f"{self._load.prefix}/head")
        self.daemon = Forked(self._zygote, folder, self._broker.url, "--note-events", "50", "--note-s", "1",
                             "--heads", str(folder / "heads"))
        self.log = Follower(self.daemon.log)
        self.start()
        self._load.create()

    def start(self) -> None:
        """Start, and wait until it is online: this must need nobody."""
        before, began = self._load.epoch, time.monotonic()
        self.daemon.start()

        def online() -> bool:
            assert self.daemon.alive, f"the daemon does not start again: {self.daemon.said()}"
            return self._load.epoch > before and not self._load.offline
        self._load.until(online, "the daemon is online", WAIT_S)
        self.restart_max_s = max(self.restart_max_s, time.monotonic() - began)

    def stop(self) -> list[str]:
        """SIGTERM, a look at the whole log, and a new life or a new log."""
        code = self.daemon.stop()
        broken = [] if code == 0 else [f"a clean stop ends with {code}: {self.daemon.said()}"]
        broken += self.log.finish()
        self.since_whole = 0
        if self.log.seq > EVENTS_MAX:
            self.new_log()
        else:
            self.start()
        return broken


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    with Broker(folder) as broker, Zygote(fault) as zygote, Load(broker.port) as load:
        lives = Lives(zygote, folder, broker, load)
        is_whole = True

        def kill(seed: int) -> Round:
            nonlocal is_whole
            is_whole, rng = False, random.Random(f"kills.{seed}")
            before, heard, starting = lives.log.seq, load.heard, rng.random() < 0.3
            lives.restart_max_s = 0.0
            if starting:
                lives.daemon.kill()
                lives.daemon.start()
                time.sleep(rng.uniform(0.0, STARTING_MAX_S))
            else:
                load.until(lambda: load.heard > heard, "the daemon serves")
                time.sleep(rng.uniform(0.0, SERVING_MAX_S))
            lives.daemon.kill()
            lives.start()
            lives.since_whole += 1
            receipts = load.take_receipts()
            grants = [(lease, grant) for lease, grant in load.grants.items() if grant.pop("new", True)]
            for _, grant in grants:
                grant["new"] = False
            broken = lives.log.read_on()
            broken += lives.log.lacks(receipts) + lives.log.lacks_grants(grants)
            broken += [f"what is right is refused: {each}" for each in load.refusals]
            load.refusals.clear()
            events = lives.log.seq - before
            if lives.since_whole >= WHOLE_EVERY:
                broken += lives.stop()
            is_whole = not broken
            return Round({"of them during a start": starting, "receipts": len(receipts), "events": events,
                          "s to be back max": round(lives.restart_max_s, 2)}, tuple(broken))

        yield kill
        if is_whole:
            assert not (broken := lives.stop()), broken


PROOFS = [Proof(
    "kills of the daemon", ("P1", "P8", "P3", "P5"), "kills -9", _lab, quick=25, release=1000,
    needs=("mosquitto",), faulty=lambda fault, folder: _lab(folder, fault), within=60,
    faults=(
        Fault("a receipt leaves before the commit of its event", "bayesd.study.desk",
              "self._letters.append(Letter(self.state.seq, who", "self._letters.append(Letter(0, who"),
        Fault("receipts leave while their commit runs", "bayesd.service",
              "                began = self._committing = self.clock.now()\n",
              "                began = self._committing = self.clock.now(); self._committed = rows[-1].seq\n"
              "                self._deliver()\n"),
        Fault("a lock outlives who held it", "bayesd.logfile",
              "os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)",
              "os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)"),
    ))]
