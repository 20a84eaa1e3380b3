"""The processes of the demo: started, killed and buried by their ids, whatever way the demo ends."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import bayesd
import bayesd_client
import bayesd_schemas

STOP_S = 10.0
READY_S = 30.0


class Broken(Exception):
    """The demo cannot go on; the text says what happened and where to look."""


@dataclass(slots=True)
class Actor:
    """One process that we started."""

    name: str
    process: asyncio.subprocess.Process
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def lives(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        """SIGKILL: no goodbye, no clean-up, as when the power goes."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """A clean end, or else a hard one."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            await self.kill()

    def last_words(self) -> str:
        lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@dataclass(slots=True)
class Stage:
    """Everything that runs. `async with` ends it all."""

    folder: Path
    port: int
    broker_kind: str = "auto"
    actors: list[Actor] = field(default_factory=list)
    daemon: Actor | None = None
    replayed: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "log.db"

    @property
    def ledger(self) -> Path:
        return self.folder / "measured.jsonl"

    @property
    def broker(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        # Workers first: they may still want to say something to the daemon.
        for actor in [*(each for each in self.actors if each is not self.daemon), *filter(None, [self.daemon])]:
            if actor.lives:
                await (actor.stop() if kind is None else actor.kill())

    async def start(self, name: str, *arguments: str) -> Actor:
        """Start a Python module of ours; what it says goes into a file."""
        output = self.folder / f"{name}.txt"
        with output.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
                env=self._environment(), start_new_session=True, preexec_fn=_die_with_us())
        actor = Actor(name, process, output)
        self.actors.append(actor)
        return actor

    def _environment(self) -> dict[str, str]:
        """Ours, but with a place of its own for notes and spools, so that other daemons here are left alone."""
        out = {name: value for name, value in os.environ.items() if not name.startswith("BAYESD_")}
        homes = dict.fromkeys(str(Path(str(each.__file__)).resolve().parents[1])
                              for each in (bayesd, bayesd_client, bayesd_schemas))
        for name in ("run", "state"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        out |= {"XDG_RUNTIME_DIR": str(self.folder / "run"), "XDG_STATE_HOME": str(self.folder / "state"),
                "PYTHONPATH": os.pathsep.join([*homes, *filter(None, [out.get("PYTHONPATH")])]),
                # Three workers on a small machine: more threads would only stand in each other's way.
                "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return out

    async def start_daemon(self) -> float:
        """Start the daemon on its log; returns how many seconds it took until it served."""
        began = time.monotonic()
        self.daemon = daemon = await self.start(
            "daemon", "bayesd.cli", "serve", "--log", str(self.log), "--port", str(self.port),
            "--broker-kind", self.broker_kind, "--log-format", "json")
        said_before = daemon.output.stat().st_size if daemon.output.exists() else 0
        words = await self._wait_for(daemon, said_before, "ready: ")
        self.replayed = int(words.split()[1])
        return time.monotonic() - began

    async def _wait_for(self, actor: Actor, offset: int, beginning: str) -> str:
        """The line of a daemon's log that begins so. A file is read, because its writer may be killed."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for line in actor.output.read_bytes()[offset:].splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    words = str(json.loads(line)["message"])
                    if words.startswith(beginning):
                        return words
                    if " is taken by another program" in words:
                        raise Broken(f"{words}; name a free one with --port")
            if not actor.lives:
                raise Broken(f"the {actor.name} ended with status {actor.process.returncode}: {actor.last_words()}")
            await asyncio.sleep(0.05)
        raise Broken(f"the {actor.name} is not ready after {READY_S:g} s; see {actor.output}")

    async def start_worker(self, name: str) -> Actor:
        return await self.start(name, *self.worker_command(name))

    def worker_command(self, name: str) -> Sequence[str]:
        """Two kinds of worker: a decorated function, and any program."""
        if not name.startswith("any"):
            return ["bayesd.demo.worker", name, self.broker, str(self.ledger)]
        return ["bayesd.cli", "worker", "run", "--broker", self.broker, "--study", "digits-svm", "--name", name, "--",
                sys.executable, "-m", "bayesd.demo.train", str(self.ledger), "--C", "{C}", "--gamma", "{gamma}",
                "--kernel", "{kernel}", "--degree", "{degree}"]


def _die_with_us() -> Callable[[], None] | None:
    """On Linux our children get SIGKILL when we are killed and cannot clean up. Elsewhere they live on."""
    if not sys.platform.startswith("linux"):
        return None
    pr_set_pdeathsig = 1
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask() -> None:
        prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    return ask
