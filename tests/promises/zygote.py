"""Daemons forked from a warm interpreter, so that a start takes some 0.1 s and not 2: a thousand kills want that.

`python tests/promises/zygote.py` imports everything that `bayesd serve` needs and waits, before any thread or SQLite
handle exists. Each start forks it; the child runs the command line as ever (`bayesd serve ...`) and differs from a
daemon that was started by hand in this alone: its modules are there already, it ends with its starter, and, with
`brisk`, it listens for a twin 20 ms and not 500, saves a snapshot at every stop, cuts its WAL at 64 KiB, and
waits 0.3 s and not 5 for another who writes. A fault or a point to die at (points.py) is planted in the child.

    with Zygote() as zygote, Forked(zygote, folder, broker.url) as daemon: ...
"""

import contextlib
import ctypes
import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.edges.daemon import WAIT_S, Daemon  # noqa: E402  # the path comes first
from tests.promises.book import Fault  # noqa: E402

PR_SET_PDEATHSIG = 1


class Child:
    """A process that the zygote forked, with what the tests use of `subprocess.Popen`."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._reap(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._reap(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("bayesd", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        # Until the zygote has reaped it the number is nobody else's.
        if self.returncode is None:
            os.kill(self.pid, number)

    def _reap(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout_s)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._zygote.ask({"reap": self.pid}))
            os.close(self._ended)
        return self.returncode


class Zygote:
    """The warm interpreter."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        """Planted into every child."""

    def __enter__(self) -> Self:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()             # it kills what it forked, and ends
        self._process.wait(WAIT_S)
        self._process.stdout.close()

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return int(self._process.stdout.readline())

    def fork(self, arguments: list[str], environment: dict[str, str], errors: Path, *,
             point: tuple[str, int] | None = None, brisk: bool = True) -> Child:
        """Run `bayesd ARGUMENTS`; `point` is where it dies, and at which passage."""
        fault = None if self.fault is None else [getattr(self.fault, name) for name in Fault.__slots__]
        return Child(self, self.ask({"arguments": arguments, "environment": environment, "errors": str(errors),
                                     "point": point, "brisk": brisk, "fault": fault}))


class Forked(Daemon):
    """A daemon out of a zygote, on one log for all its lives."""

    def __init__(self, zygote: Zygote, folder: Path, broker: str, *flags: str, log: str = "log.db",
                 name: str = "daemon", brisk: bool = True) -> None:
        super().__init__(folder, broker, *flags, log=log, name=name)
        self._zygote = zygote
        self._brisk = brisk
        self.arguments = self._command[3:]

    def start(self, point: tuple[str, int] | None = None, *more: str) -> Self:
        self.process = cast("subprocess.Popen[bytes]", self._zygote.fork(   # as far as we use one
            [*self.arguments, *more], self._environment, self.errors, point=point, brisk=self._brisk))
        return self


# --- The warm interpreter itself -----------------------------------------------------------------


def _make_brisk() -> None:
    """Shorter waits: the same code, more lives a second."""
    from dataclasses import replace

    from bayesd import daemon, log, logfile

    plain = daemon._settings

    def brisk(config: Any, settle_s: float) -> Any:
        return replace(plain(config, settle_s), settle_s=min(settle_s, 0.02), tick_s=0.02, snapshot_events=1,
                       checkpoint_idle_s=0.1)

    daemon._settings = brisk
    log.WAL_MAX_BYTES = 64 * 1024
    for module in (log, logfile):
        vars(module)["BUSY_S"] = 0.3


def _live(request: dict[str, Any]) -> int:
    """The life of a child, to its exit status."""
    from tests.promises import points
    from tests.simulation.mutants import planted

    from bayesd import cli

    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(source, target)
    os.closerange(3, 1024)
    os.environ.update(request["environment"])
    random.seed()
    if request["brisk"]:
        _make_brisk()
    with contextlib.ExitStack() as stack:
        if request["fault"] is not None:
            stack.enter_context(planted(Fault(*request["fault"])))
        if request["point"] is not None:
            points.plant(*request["point"])
        return cli.run(request["arguments"])


def main() -> None:
    from tests.promises import points
    from tests.simulation import mutants

    from bayesd.fingerprint import fingerprint

    fingerprint("warm")                 # imports every BLAS
    assert points
    assert mutants
    assert len(os.listdir("/proc/self/task")) == 1, "a thread does not survive a fork"
    gc.collect()
    gc.freeze()                         # a child's collector need not look at what was there before it
    starter, die_with_us = os.getpid(), ctypes.CDLL(None).prctl
    alive: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            answer = os.waitpid(request["reap"], 0)[1]
            alive.discard(request["reap"])
        else:
            answer = os.fork()
            if not answer:
                die_with_us(PR_SET_PDEATHSIG, signal.SIGKILL)
                code = 70
                try:
                    code = _live(request) if os.getppid() == starter else 0
                finally:
                    os._exit(code)
            alive.add(answer)
        print(answer, flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
