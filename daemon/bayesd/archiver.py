"""A daemon that writes segments of its log by itself, each time that it has grown by one.

A process of its own does the work, `bayesd log archive`: to check and compress a million events would keep the loop
from its turns. Whatever goes wrong is said and tried again later; results never wait for an archive.
"""

import asyncio
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from bayesd import segments
from bayesd.logfile import LogError

logger = logging.getLogger("bayesd")

LOOK_S = 5.0            # between two looks at how far the log has grown: a comparison of two numbers
RETRY_S = 300.0         # after something went wrong


class Archiver:
    """Keeps `folder` no more than `events` events behind the log."""

    def __init__(self, log: Path, folder: Path, events: int, *, look_s: float = LOOK_S,
                 retry_s: float = RETRY_S) -> None:
        self._log, self._folder, self._events = log, folder, events
        self._look_s, self._retry_s = look_s, retry_s

    async def run(self, log_id: str, committed: Callable[[], int]) -> NoReturn:
        """Until cancelled. `committed` says the number of the last event that is on disk."""
        done: int | None = None
        while True:
            try:
                if done is None:
                    done = await asyncio.to_thread(segments.last_in, self._folder, log_id)
                if committed() - done >= self._events:
                    done = await self._archive()
            except (LogError, OSError, ValueError) as error:
                logger.error("the log is not archived in %s, and that is tried again in %.0f s: %s", self._folder,
                             self._retry_s, error)
                done = None
                await asyncio.sleep(self._retry_s)
            else:
                await asyncio.sleep(self._look_s)

    async def _archive(self) -> int | None:
        """Write whole segments; the last event that is in one of them, if one was written. Raises OSError."""
        if not self._folder.parent.is_dir():
            raise OSError(f"{self._folder.parent} is not there; is its disk mounted?")
        work = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bayesd.cli", "log", "archive", str(self._log), "-o", str(self._folder), "--events",
            str(self._events), "--whole", "-f", "json", stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        try:
            out, errors = await work.communicate()
        except asyncio.CancelledError:
            await _end(work)        # what it has begun is begun anew by the next one
            raise
        if work.returncode != 0:
            said = errors.decode("utf-8", "replace").strip().splitlines()
            raise OSError(said[-1] if said else f"log archive ended with {work.returncode}")
        made = json.loads(out)
        for each in made:
            logger.info("events %d to %d are archived in %s", each["first"], each["last"], each["segment"])
        return int(made[-1]["last"]) if made else None


async def _end(work: Process) -> None:
    with suppress(ProcessLookupError):
        work.kill()
    await work.wait()
