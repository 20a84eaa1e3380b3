"""The power goes at any write, sync or truncation of a log that is being written, and what the disk may have kept is
opened by the next daemon.

A round is one cut. The log is that of `daemon/bayesd/log.py` on the disk of `disk.py`: batches of events with texts,
notes, snapshots, checkpoints of the WAL, redactions, clean restarts. After the cut the surviving files must open
without a hand, hold every batch, note and text that was acknowledged before it, end at the end of a batch, verify,
and take the next event.

Two controls do the same with one pragma of ours changed: `synchronous = NORMAL` must lose what was acknowledged, and
`OFF` must lose it or leave a log that does not open.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.edges.test_log import following
from tests.promises.book import Fault, Lab, Proof, Round
from tests.promises.disk import Call, Disk, broken
from tests.simulation.mutants import planted

from bayesd.log import LogError, SqliteLog, verify
from bayesd.logfile import create
from bayesd.notes import Signer
from bayesd.study.row import Row
from bayesd.study.texts import Text, reference

SIGNER = Signer("0a1b", bytes(32))
CALLS_MAX = 400     # of a life before its power goes at the latest
LOG = "bayesd.log"


class _Life:
    """A log that is written until the power goes, and what it acknowledged."""

    def __init__(self, path: Path, rng: Random, disk: Disk) -> None:
        self.path, self.rng, self.disk = path, rng, disk
        self.acknowledged: list[Row] = []
        self.under_way: list[Row] = []
        self.notes: dict[int, bytes] = {}
        self.texts: dict[str, str] = {}
        self.redacted: set[str] = set()

    async def live(self) -> None:
        """Ends with the power."""
        while not self.disk.dead:
            log = None
            try:
                log = await SqliteLog.open(self.path)
                log._wal_bound_bytes = self.rng.choice([40_000, 200_000, 2**30])
                for _ in range(self.rng.randint(5, 60)):
                    await self._step(log)
            except LogError:
                if not self.disk.dead:
                    raise
            finally:
                if log is not None:
                    await log.close()

    async def _step(self, log: SqliteLog) -> None:
        rng, what = self.rng, self.rng.random()
        if what < 0.75:
            await self._append(log)
        elif what < 0.85:
            await log.checkpoint()
        elif what < 0.95 and self.acknowledged:
            seq, note = log.tree.size, SIGNER.sign(log.tree.size, log.tree.root()).encode()
            await log.save_note(seq, note)
            self.notes[seq] = note
        elif self.acknowledged:     # what a snapshot says, nobody asks here
            await log.save_snapshot(len(self.acknowledged), "json", bytes(32), rng.randbytes(rng.choice([500, 20_000])))

    async def _append(self, log: SqliteLog) -> None:
        rng = self.rng
        rows = following(log.head(), rng.choice([1, 1, 2, 5, 20]),
                         data={"why": "x" * rng.choice([10, 100, 3000])})
        texts: tuple[Text, ...] = ()
        if rng.random() < 0.2:
            if self.texts and rng.random() < 0.4:
                texts = (Text(rng.choice(sorted(self.texts)), b"", None),)
                self.redacted.add(texts[0].ref)
                self.texts.pop(texts[0].ref)
            else:
                salt, said = rng.randbytes(16), rng.randbytes(20).hex()
                texts = (Text(reference(salt, said), salt, said),)
        rows[-1] = Row(*rows[-1].fields, texts=texts)
        self.under_way = rows
        await log.append(rows)
        self.under_way = []
        self.acknowledged += rows
        self.texts.update({text.ref: text.text for text in texts if text.text is not None})


async def _round(seed: int, empty: Path, folder: Path) -> Round:
    rng = Random(seed)
    at = rng.randint(1, rng.choice([30, CALLS_MAX, CALLS_MAX]))

    def fail(call: Call) -> None:
        if call.number >= at:
            disk.cut()
            raise broken()

    disk = Disk(fail)
    life = _Life(folder / "log.db", rng, disk)
    shutil.copyfile(empty, life.path)
    with disk.under_the_log():
        await life.live()
    left = folder / "left"
    left.mkdir()
    shutil.copyfile(empty, left / "log.db")     # as it was made, unless something was written since
    disk.lose_power(rng, left)
    if rng.random() < 0.3:
        (left / "log.db-shm").write_bytes(rng.randbytes(32768))
    seen: list[str] = []
    found = -1
    try:
        log = await SqliteLog.open(left / "log.db")
        try:
            rows = [row async for chunk in log.read() for row in chunk]
            found = len(rows)
            seen += _compare(life, rows)
            seen += [f"the note of event {seq} is gone" for seq, note in life.notes.items()
                        if (kept := await log.load_note(seq)) is None or kept.note != note]
            texts = await log.texts(sorted(life.texts))
            seen += [f"the text {ref} is gone" for ref in life.texts if ref not in texts]
            await log.append(following(log.head(), 1))
        finally:
            await log.close()
        report = verify(left / "log.db")
        if report.damage is not None or report.events != found + 1:
            seen.append(f"after one more event: {report.damage or report.events}")
    except LogError as error:
        seen.append(f"it does not open: {error}")
    shutil.rmtree(left)
    for each in folder.glob("log.db*"):
        each.unlink()
    return Round({"events acknowledged": len(life.acknowledged), "in a batch under way": len(life.under_way),
                  "of those kept": max(0, found - len(life.acknowledged))}, tuple(seen))


def _compare(life: _Life, rows: list[Row]) -> Iterator[str]:
    there, must = len(rows), len(life.acknowledged)
    if [row.fields for row in rows[:must]] != [row.fields for row in life.acknowledged[:there]]:
        yield "events are not those that were written"
    if there < must:
        yield f"{must - there} of {must} acknowledged events are lost"
    elif there not in (must, must + len(life.under_way)):
        yield f"{there - must} of a batch of {len(life.under_way)} events are there"


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    empty = folder / "empty.db"
    create(empty)
    work = folder / "work"
    work.mkdir()
    yield lambda seed: asyncio.run(_round(seed, empty, work))


def _lab_with(fault: Fault) -> Lab:
    @contextlib.contextmanager
    def lab(folder: Path) -> Iterator[Callable[[int], Round]]:
        with planted(fault), _lab(folder) as round_of:
            yield round_of
    return lab


_FULL = '"PRAGMA synchronous = FULL",            #'
FAULTS = (
    Fault("a receipt before the commit", LOG, "                        await self._keep(texts)\n"
          "                    await self._writer.commit()\n",
          "                        await self._keep(texts)\n"
          "                    asyncio.get_running_loop().call_soon(asyncio.ensure_future, self._writer.commit())\n"),
    Fault("each event has a transaction of its own", LOG, 'isolation_level="IMMEDIATE")', "isolation_level=None)"),
    Fault("the WAL is cut without a sync", LOG, '"PRAGMA busy_timeout = 0"', '"PRAGMA synchronous = OFF"'),
)

PROOFS = [
    Proof("power cuts", ("P2",), "power cuts", _lab, quick=60, release=2_000, faults=FAULTS, within=60),
    Proof("power cuts with synchronous=NORMAL", ("P2",), "power cuts", _lab_with(
        Fault("synchronous NORMAL", LOG, _FULL, '"PRAGMA synchronous = NORMAL",          #')),
        quick=30, release=1_000, is_control=True),
    Proof("power cuts with synchronous=OFF", ("P2",), "power cuts", _lab_with(
        Fault("synchronous OFF", LOG, _FULL, '"PRAGMA synchronous = OFF",             #')),
        quick=30, release=1_000, is_control=True),
]
