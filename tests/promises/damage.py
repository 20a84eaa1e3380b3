"""Damage to a log's file and its WAL, at random places, and whether the daemon and `bayesd log verify` see it.

A round is one edit of a copy of a log: bits or bytes flipped, pages zeroed, swapped, or cut off, in the file or in the
WAL beside it, the WAL cut short or taken away, or an index of the WAL that is of another time. When what can be read
afterwards is not exactly the log that was written, or its last events are missing, both must say so: at the first
event that is not what it was, with 65, and without changing a byte. What nobody can see in a file alone, a WAL whose
end is missing, is seen with one head kept elsewhere. An edit that changes no event may pass, and must open.
"""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from random import Random

from tests.edges.test_log import following
from tests.promises.book import Fault, Proof, Round

from bayesd.evidence import Head
from bayesd.log import Damaged, LogError, SqliteLog
from bayesd.logfile import verify
from bayesd.notes import Signer
from bayesd.study.row import Fields
from bayesd_schemas.upcast import VERSIONS

EVENTS = 120
PAGE = 4096
SIGNER = Signer("0a1b", bytes(32))
SHAPE = {"crit": True, "time": "2026-01-01T00:00:00.000000Z", "tv": VERSIONS.get("trial.completed", 1)}
LOGFILE = "bayesd.logfile"


async def _write(path: Path) -> str:
    """A log with a third of its events still in the WAL, as a kill leaves it; the note of its head."""
    log = await SqliteLog.open(path)
    while log.head()[0] < EVENTS:
        count = 1 + log.head()[0] % 5
        await log.append(following(log.head(), count, **SHAPE, data={"why": "x" * (log.head()[0] * 97 % 900)}))
        if log.head()[0] * 3 < EVENTS * 2:
            await log.checkpoint()
    await log.save_note(log.tree.size, (note := SIGNER.sign(log.tree.size, log.tree.root())).encode())
    for name in ("", "-wal", "-shm"):
        shutil.copyfile(f"{path}{name}", f"{path}.killed{name}")
    await log.close()
    return note


class _Bench:
    def __init__(self, folder: Path) -> None:
        source = folder / "source.db"
        self.note = asyncio.run(_write(source))
        self.parts = {name: Path(f"{source}.killed{name}").read_bytes() for name in ("", "-wal", "-shm")}
        self.whole = source.read_bytes()
        self.path = folder / "log.db"
        with closing(sqlite3.connect(source)) as db:
            self.rows: list[Fields] = db.execute(
                "SELECT seq, body, hash, type, study, trial, actor, cmd FROM event ORDER BY seq").fetchall()

    def _put(self, rng: Random) -> tuple[str, bool]:
        """A damaged copy in place; what was done, and whether its end may be missing without a trace in the file."""
        parts = {name: bytearray(content) for name, content in self.parts.items()}
        if rng.random() < 0.4:      # all in the file, as a stop leaves it
            parts = {"": bytearray(self.whole)}
        name = "-wal" if "-wal" in parts and rng.random() < 0.5 else ""
        content, what = parts[name], rng.choice(
            ["byte", "byte", "byte", "bit", "run of bytes", "zeroed page", "swapped pages", "cut short", "no WAL",
             "old index"])
        at = rng.randrange(len(content))
        if what == "byte":
            content[at] = rng.choice([each for each in range(256) if each != content[at]])
        elif what == "bit":
            content[at] ^= 1 << rng.randrange(8)
        elif what == "run of bytes":
            end = min(len(content), at + rng.randint(2, 600))
            content[at:end] = rng.randbytes(end - at)
        elif what == "zeroed page":
            at -= at % PAGE
            content[at:at + PAGE] = bytes(len(content[at:at + PAGE]))
        elif what == "swapped pages":
            one, two = (rng.randrange(len(content) // PAGE) * PAGE for _ in range(2))
            content[one:one + PAGE], content[two:two + PAGE] = content[two:two + PAGE], content[one:one + PAGE]
        elif what == "cut short":
            del content[at:]
        elif what == "no WAL":
            parts.pop("-wal", None)
            parts.pop("-shm", None)
        else:
            parts["-shm"] = bytearray(rng.randbytes(32_768) if rng.random() < 0.5 else
                                      self.parts["-shm"][:16_384] + bytes(16_384))
        for leftover in self.path.parent.glob("log.db*"):
            leftover.unlink()
        for part, data in parts.items():
            Path(f"{self.path}{part}").write_bytes(data)
        return f"{what} in {name or 'the file'} at {at}", name == "-wal" or what == "no WAL"

    def _hash(self) -> str:
        return sha256(b"".join(part.read_bytes() for suffix in ("", "-wal")
                               if (part := Path(f"{self.path}{suffix}")).exists())).hexdigest()

    def _first_bad(self) -> int | None:
        """The first event that SQLite does not give as it was written; None when all are right."""
        copy = self.path.parent / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self.path}{suffix}", copy / f"log.db{suffix}")
        good = 0
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError, OverflowError), \
                closing(sqlite3.connect(copy / "log.db")) as db:
            for row in db.execute("SELECT seq, body, hash, type, study, trial, actor, cmd FROM event "
                                  "WHERE seq > 0 ORDER BY seq"):
                if good == EVENTS or row != self.rows[good]:
                    return good + 1
                good += 1
        return None if good == EVENTS else good + 1

    def round(self, seed: int) -> Round:
        rng = Random(seed)
        what, in_wal = self._put(rng)
        bad, before = self._first_bad(), self._hash()
        seen: list[str] = []
        try:
            plain, with_head = verify(self.path).damage, verify(self.path, heads=[Head("elsewhere", self.note)]).damage
        except LogError as error:       # its header says that it is no log of ours, or of a later release
            plain = with_head = error if isinstance(error, Damaged) else Damaged(1, str(error))
        if self._hash() != before:
            seen.append("verify changed the file")
        found = plain or (with_head if in_wal else None)
        if bad is not None and found is None:
            seen.append(f"not noticed at event {bad}")
        elif bad is not None and found is not None and found.first > bad:
            seen.append(f"event {bad} is the first that is wrong, named is {found.first}: {found.why}")
        code = asyncio.run(self._start())
        if plain is not None and code not in (65, 78):
            seen.append(f"verify finds {plain.why}; the daemon's start says {code}")
        if plain is None and code != 0:
            seen.append(f"verify finds nothing; the daemon's start says {code}")
        if code != 0 and self._hash() != before:
            seen.append("a refused start changed the file")
        return Round({"edits that change events": int(bad is not None), "of those noticed": int(
            bad is not None and found is not None), "noticed though no event is changed": int(
            bad is None and plain is not None)}, tuple(f"{what}: {each}" for each in seen))

    async def _start(self) -> int:
        try:
            log = await SqliteLog.open(self.path)
        except LogError as error:
            return error.exit_code
        await log.close()
        return 0


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    yield _Bench(folder).round


PROOFS = [Proof("damage", ("P13",), "edits", _lab, quick=300, release=10_000, within=200, faults=(
    Fault("the hash of an event is not looked at", LOGFILE, "mine.digest() == hash_ and body", "body"),
    Fault("a damaged log is opened", LOGFILE, "    if report.damage is not None:\n        raise report.damage\n",
          ""),
))]
