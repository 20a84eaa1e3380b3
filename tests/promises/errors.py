"""The disk reports an error, or has no space, at the n-th call of a run of some 200 commits: every n is tried.

`disk errors`: a write, sync, truncation or deletion fails, once or from then on for ever. From that moment no receipt
and no grant may go out, and the process must end with 74. A failed sync throws away what it should have written, as
Linux does, and half of the rounds cut the power as well. The next start must read a whole log with every receipt.

`full writes`: from the n-th write on there is no space for some seconds, for any write or for those that make a file
longer than the little that is left allows. Nothing that has a receipt is lost, results are refused with the time after
which to try again, reads are answered, nothing is granted, and when there is space again all goes on by itself, without
a restart but at the start itself, without a gap, and with one more start in the log at most.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest import mock

from tests.promises.book import Fault, Proof, Round
from tests.promises.disk import Call, Disk, broken, full
from tests.promises.life import SPACE, Body, Story, lost

import bayesd.log
from bayesd.log import DiskFull, verify
from bayesd.logfile import create
from bayesd.testing import run

RESULTS = 100       # each with two commits: its lease and its outcome
PATIENCE_S = 200.0  # virtual ones, in which a run that nothing disturbs comes to its end six times
STRIDE = 5_003      # a prime larger than any number of calls: seed after seed goes all over the run
LOG, SERVICE = "bayesd.log", "bayesd.service"


async def _until_stopped(story: Story, results: int) -> int:
    """A life in which the worker tells its results, stopped when all are told; its exit status."""
    life = asyncio.create_task(story.life())
    talk = asyncio.create_task(_talk(story, results))
    await asyncio.wait([life, talk], return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
    if talk.done():
        await talk
        assert story.service is not None
        story.service.stop()
    else:
        talk.cancel()
        if not life.done():
            life.cancel()
            await asyncio.wait([life])
            raise TimeoutError(f"{len(story.recorded)} results are recorded after {PATIENCE_S:g} s")
    return await life


async def _talk(story: Story, results: int) -> None:
    await story.request("study.create", {"spec": {"name": "s", "method": "random", "space": SPACE}})
    await story.work(results)


def _calls(empty: Path, path: Path) -> int:
    """How often the disk is called in a run in which nothing fails."""
    shutil.copyfile(empty, path)
    disk = Disk()
    with disk.under_the_log():
        assert run(_until_stopped(Story(path), RESULTS)) == 0
    return disk.calls


# ---------------------------------------------------------------- errors


async def _error(seed: int, calls: int, folder: Path) -> Round:
    rng, path = Random(seed), folder / "log.db"
    at, for_ever, power = 1 + seed * STRIDE % calls, rng.random() < 0.5, rng.random() < 0.5
    failed: list[Call] = []
    seen: list[str] = []

    def fail(call: Call) -> None:
        if call.number == at or (for_ever and failed):
            failed.append(call)
            raise broken()

    def letter(kind: str, body: Body) -> None:
        if failed and kind in ("receipt", "grant"):
            seen.append(f"a {kind} after the error: {body}")

    disk, story = Disk(fail), Story(path, letter)
    with disk.under_the_log():
        try:
            code = await _until_stopped(story, RESULTS)
        except TimeoutError as error:
            return Round({}, (f"the process lives on after {failed[:1]}: {error}",))
    at_the_end = story.service is None and code == 0     # the disk failed when the log was closed: all is said
    if code != 74 and not at_the_end:
        seen.append(f"the process ends with {code} after {failed[:1]}")
    if power:
        left = folder / "left"
        left.mkdir()
        shutil.copyfile(folder.parent / "empty.db", left / "log.db")
        disk.lose_power(rng, left)
        path = left / "log.db"
    acknowledged = len(story.recorded)
    seen += lost(story, path)
    story.path = path
    story._on_letter = lambda kind, body: None
    with Disk().under_the_log():
        if (code := await _until_stopped(story, acknowledged + 1)) != 0:
            seen.append(f"the next life ends with {code}")
    seen += lost(story, path)
    report = verify(path)
    if report.damage is not None:
        seen.append(f"after the next life: {report.damage}")
    return Round({"results acknowledged before": acknowledged, f"at a {failed[0].kind}" if failed else "unused": 1},
                 tuple(seen))


# ---------------------------------------------------------------- no space


async def _full(seed: int, calls: int, folder: Path) -> Round:
    rng, path = Random(seed), folder / "log.db"
    at, all_writes, free_bytes = 1 + seed * STRIDE % calls, rng.random() < 0.3, rng.choice([0, 5_000, 15_000])
    lasts_s = rng.choice([0.5, 3.0, 20.0])
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    until: list[float] = []
    asked: set[asyncio.Task[Body]] = set()

    def is_full() -> bool:
        return bool(until) and loop.time() < until[0]

    def fail(call: Call) -> None:
        nonlocal free_bytes
        if call.number >= at and not until and call.kind == "write":
            until.append(loop.time() + lasts_s)
        if call.kind == "write" and is_full() and (all_writes or call.grows_bytes):
            free_bytes -= call.grows_bytes
            if all_writes or free_bytes < 0:
                free_bytes += call.grows_bytes
                raise full()

    def letter(kind: str, body: Body) -> None:
        standing = story.service is not None and story.service.desk.disk_full
        if kind == "grant" and standing:
            seen.append(f"granted on a full disk: {body}")
        if body.get("reason") == "disk-full" and kind == "receipt":
            if body["status"] == "rejected" and not body.get("retry_after_s"):
                seen.append(f"no retry_after_s: {body}")
            if not asked:
                asked.add(asyncio.ensure_future(story.request("study.list")))

    def no_room(_: Path) -> None:
        if is_full():
            raise DiskFull("no space left (a simulated disk)")

    disk, story = Disk(fail), Story(path, letter)
    with disk.under_the_log(), mock.patch.object(bayesd.log, "refuse_no_room", no_room):
        code = await _until_stopped(story, RESULTS)
        while code != 0 and story.lives < 100:      # at its start it has nothing to serve: the supervisor tries again
            if story.granted or story.replies:
                seen.append(f"the process ends with {code}")
                break
            await asyncio.sleep(1.0)
            code = await _until_stopped(story, RESULTS)
        if code != 0:
            seen.append(f"in its life {story.lives} the process ends with {code}")
    for each in asked:
        await each      # raises when reads were not answered
    seen += lost(story, path)
    report = verify(path)
    if report.damage is not None:
        seen.append(f"the log is damaged: {report.damage}")
    starts = sum(b'"type":"daemon.started"' in body for _, body, _ in bayesd.log.read_events(path))
    if starts > 2:      # the life itself, and the one after the full disk
        seen.append(f"{starts} times the daemon went on, though the disk was full once")
    return Round({"results acknowledged": len(story.recorded), "results refused meanwhile": len(story.refused),
                  "starts on a full disk": story.lives - 1}, tuple(seen))


def _lab(one: Callable[[int, int, Path], object]) -> Callable[[Path], contextlib.AbstractContextManager[
        Callable[[int], Round]]]:
    @contextlib.contextmanager
    def lab(folder: Path) -> Iterator[Callable[[int], Round]]:
        empty, work = folder / "empty.db", folder / "work"
        create(empty)
        work.mkdir()
        before, level = logging.root.manager.disable, logging.CRITICAL
        logging.disable(level)      # a disk that fails is much talked about
        try:
            calls = _calls(empty, work / "log.db")

            def round_(seed: int) -> Round:
                shutil.rmtree(work)
                work.mkdir()
                shutil.copyfile(empty, work / "log.db")
                return run(one(seed, calls, work))     # type: ignore[arg-type]  # a coroutine
            yield round_
        finally:
            logging.disable(before)
    return lab


PROOFS = [
    Proof("disk errors", ("P10",), "disk errors", _lab(_error), quick=40, release=2_000, within=50, faults=(
        Fault("an error of the disk is taken for a full one", LOG,
              "if clean and sqlite_code(error) == sqlite3.SQLITE_FULL:", "if clean:"),
        Fault("a receipt before its commit", SERVICE,
              "                began = self._committing = self.clock.now()\n",
              "                began = self._committing = self.clock.now()\n"
              "                self._committed = rows[-1].seq\n                self._deliver()\n"),
        Fault("a failed checkpoint is passed over", LOG, 'self._end(CommitFailed(f"the checkpoint of',
              'str(CommitFailed(f"the checkpoint of'))),
    Proof("full writes", ("P9",), "full disks", _lab(_full), quick=40, release=2_000, within=50, faults=(
        Fault("what was not written is said all the same", SERVICE,
              "        await self._fold()\n        self.desk.disk_full = True\n        self._deliver()",
              "        self._committed = self.desk.state.seq\n        self._deliver()\n        await self._fold()\n"
              "        self.desk.disk_full = True"),
        Fault("a full disk ends the process", SERVICE, "await self._on_full_disk(error)", "raise"),
        Fault("a full disk at a checkpoint ends the process", SERVICE,
              "        except DiskFull as error:\n            if not self._cramped:",
              "        except ZeroDivisionError as error:\n            if not self._cramped:"))),
]
