"""`bayesd log backup` of a daemon that serves a load, at seeded moments, and often killed -9 in the middle.

Real parts: mosquitto, the daemon, the command, SQLite on the file system of the temporary folder. Whatever has the name
of a copy, at any moment, is a whole log: it verifies (bytes, chain, states), is the live log up to some event, and
lacks nothing that was committed before its backup began. A killed backup leaves no such name, or the older copy; the
next one needs nobody. Each finished copy is restored, and must have the head and the state of the live log there.
"""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.daemon import WAIT_S, Broker
from tests.promises.book import Fault, Proof, Round
from tests.promises.kills import Lives
from tests.promises.load import Load
from tests.promises.zygote import Zygote

from bayesd.backup import PART
from bayesd.log import read_events, verify
from bayesd.logfile import LogError
from bayesd.replay import Replay
from bayesd.study import snapshot

BEFORE_MAX_S = 0.2      # a backup begins so long after the last round at the latest
KILLED = 0.75           # of the rounds
COPYING_S = 0.03        # half of the kills come so long after the first byte of a copy at the latest
FIRST_S = 0.6           # ... the others within the time that a whole backup takes; this, before one was measured
STOP_EVERY = 4          # after so many rounds the daemon is stopped, and its whole log looked at


class Copies:
    """The commands, and what they leave."""

    def __init__(self, zygote: Zygote, folder: Path, lives: Lives) -> None:
        self._zygote, self._folder, self._lives = zygote, folder, lives
        self.errors = folder / "commands.stderr"
        self.whole_s = FIRST_S

    def run(self, *arguments: str, kill_after_s: float | None = None, first: Path | None = None) -> int:
        """The exit status of a command; -9 when it was killed before its end, that time after `first` appears."""
        self.errors.write_text("")
        child = self._zygote.fork([*arguments], {"XDG_RUNTIME_DIR": str(self._folder / "run")}, self.errors)
        began = time.monotonic()
        if kill_after_s is not None:
            while first is not None and not first.exists() and child.poll() is None:
                time.sleep(0.0005)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(kill_after_s)
            child.send_signal(9)
            return child.wait(WAIT_S)
        code = child.wait(WAIT_S)
        self.whole_s = time.monotonic() - began
        return code

    def backup(self, out: Path, kill: random.Random | None = None) -> int:
        """Its exit status; killed at a moment that is drawn, if it has not ended by then."""
        command = "log", "backup", str(self._lives.daemon.log), "-o", str(out)
        if kill is None:
            return self.run(*command)
        if kill.random() < 0.5:
            return self.run(*command, kill_after_s=kill.uniform(0.0, COPYING_S), first=Path(f"{out}{PART}"))
        return self.run(*command, kill_after_s=kill.uniform(0.2, 1.0) * self.whole_s)

    def wrong_with(self, copy: Path, at_least: int) -> tuple[list[str], int]:
        """What is wrong with a file that has the name of a copy, and how many events it has."""
        log = self._lives.log
        try:
            report = verify(copy)
            if report.damage is not None:
                return [f"{copy.name} does not verify: {report.damage}"], report.events
            hashes = [hash.hex() for _, _, hash in read_events(copy)]
        except LogError as error:
            return [f"{copy.name} does not open: {error}"], 0
        broken = log.read_on()
        if hashes != log.hashes[:len(hashes)]:
            broken.append(f"{copy.name} of {len(hashes)} events is no prefix of the log of {log.seq}")
        if len(hashes) < at_least:
            broken.append(f"{copy.name} has {len(hashes)} events, {at_least} were committed before it began")
        return broken, len(hashes)

    def wrong_restored(self, copy: Path, events: int) -> list[str]:
        """Restore it beside, and look at head and state."""
        place = self._folder / "restored.db"
        code = self.run("log", "restore", str(copy), "-o", str(place))
        if code != 0:
            return [f"the restore ends with {code}: {self.errors.read_text()[-300:]}"]
        broken, there = self.wrong_with(place, events)
        if (_state(place, there), there) != (_state(self._lives.daemon.log, events), events):
            broken.append(f"restored it is the state at event {there}, not that at event {events} of the log")
        for each in self._folder.glob("restored.db*"):
            each.unlink()
        return broken


def _state(log: Path, events: int) -> str:
    """The digest of the fold of its first events, L1."""
    replay = Replay()
    for seq, body, hash in read_events(log, 0, events):
        replay.take(seq, body, hash)
    return snapshot.digest(replay.state)


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    with Broker(folder) as broker, Zygote(fault) as zygote, Load(broker.port, workers=2, slots=2) as load:
        lives = Lives(zygote, folder, broker, load)
        copies = Copies(zygote, folder, lives)
        shelf = folder / "copies"
        shelf.mkdir()
        rounds = 0

        def back_up(seed: int) -> Round:
            nonlocal rounds
            rounds += 1
            rng, heard = random.Random(f"backups.{seed}"), load.heard
            load.until(lambda: load.heard > heard, "the daemon serves")
            time.sleep(rng.uniform(0.0, BEFORE_MAX_S))
            out = shelf / "copy.db"
            broken, older = lives.log.read_on(), 0
            if out.exists() and rng.random() < 0.3:
                out.unlink()
            elif out.exists():
                older = sum(1 for _ in read_events(out))
            killed = 0
            if rng.random() < KILLED:
                code = copies.backup(out, rng)
                killed = code == -9
                if out.exists():
                    broken += copies.wrong_with(out, older)[0]
                elif older or not killed:
                    broken.append(f"a backup that ends with {code} leaves nothing, and an older copy was there" if older
                                  else f"a backup ends with {code} and there is no copy")
            seq = lives.log.seq
            code = copies.backup(out)
            if code != 0 or not out.exists():
                broken.append(f"the backup ends with {code}: {copies.errors.read_text()[-300:]}")
                return Round({}, tuple(broken))
            wrong, events = copies.wrong_with(out, seq)
            broken += wrong or copies.wrong_restored(out, events)
            broken += [f"{each.name} is left beside the copy" for each in shelf.glob("*.part*")]
            receipts = load.take_receipts()
            broken += lives.log.read_on() + lives.log.lacks(receipts)
            if rounds % STOP_EVERY == 0 and not broken:
                logs = lives.daemon.log
                broken += lives.stop()
                if lives.daemon.log != logs:        # the copies of another log are in the way
                    out.unlink()
            return Round({"killed on the way": killed, "receipts meanwhile": len(receipts), "events copied": events},
                         tuple(broken))

        yield back_up


PROOFS = [Proof(
    "backups of a running daemon", ("P14",), "backups", _lab, quick=4, release=200, needs=("mosquitto",),
    faulty=lambda fault, folder: _lab(folder, fault), within=60,
    faults=(
        Fault("a copy has its name before it is whole", "bayesd.backup",
              "        _copy_pages(log, part, on_pages)\n        proof = prove(part)\n        end = end_of(part)",
              "        out.unlink(missing_ok=True); os.link(part, out)\n        _copy_pages(log, part, on_pages)\n"
              "        proof = prove(part)\n        end = end_of(part)"),
        Fault("the older copy goes before there is a newer one", "bayesd.backup",
              "        _copy_pages(log, part, on_pages)\n        proof = prove(part)\n        end = end_of(part)",
              "        out.unlink(missing_ok=True)\n        _copy_pages(log, part, on_pages)\n"
              "        proof = prove(part)\n        end = end_of(part)"),
    ))]
