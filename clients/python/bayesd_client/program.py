"""Any program as a worker: parameters go in as arguments, the last line of its output is the value.

    run_program(["python", "train.py", "--lr", "{lr}"], study="digits-svm")

Parameters are data: there is no shell. A placeholder `{name}` in an argument becomes the value as
JSON writes it, strings without quotes; `{{name}}` is a literal `{name}`. A parameter that is not
active in a trial has no value: an argument that is only its placeholder (`{degree}`, or
`--degree={degree}`) is left out, together with the option before it (`--degree {degree}`), so that
the program's default stands; in the middle of other text it becomes nothing.

`{fidelity}` and `{from}` are how far to train and the checkpoint to go on from, unless the study has parameters of
these names; they have no value where the study says nothing of a fidelity, or a trial begins anew.
"""

import asyncio
import codecs
import contextlib
import ctypes
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from bayesd_client.agent import tail
from bayesd_client.discover import find_broker
from bayesd_client.errors import BadOptions, CannotTrain, SpaceMismatch, TrialStopped
from bayesd_client.link import address
from bayesd_client.trial import Trial
from bayesd_client.worker import Options, Say, Summary, Worker, in_thread

log = logging.getLogger("bayesd_client")

GRACE_S = 10.0          # between SIGTERM and SIGKILL
POLL_S = 0.05           # how soon a stop, a timeout or a silent exit is seen
LINE_MAX = 64 * 1024    # bytes of one line that are remembered
TOLD = ("state", "value", "values", "folds", "seconds", "cost", "class", "error", "checkpoint")
"""The fields of a tell that a program may print."""

_placeholder = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_.-]{0,63})\}")
_report = re.compile(r"bayesd:\s+(?P<pairs>\S+=\S+(?:\s+\S+=\S+)*)\s*")
_NO_NUMBER = {"nan", "inf", "infinity"}


def run_program(command: Sequence[str], broker: str | None = None, *, options: Options | None = None,
                timeout_s: float | None = None, grace_s: float = GRACE_S,
                password_file: str | os.PathLike[str] | None = None, ca_file: str | None = None,
                cert_file: str | None = None, key_file: str | None = None, say: Say = log.info,
                **more: Any) -> Summary:
    """Work with `command` until the study is closed. `more` are fields of Options: study, name, slots, keep, …

    Raises NameInUse, Undelivered, Refused, BadAddress, or SpaceMismatch for a placeholder that the
    study does not declare.
    """
    wanted = options if options is not None else Options(**more)
    broker, root = find_broker(broker, wanted.root)
    where = address(broker, password_file, ca_file, cert_file, key_file)
    wanted = replace(wanted, root=root)
    program = Program(tuple(command), timeout_s=timeout_s, grace_s=grace_s)

    async def work() -> Summary:
        return await Worker(program, where, wanted, say).run()
    return asyncio.run(work())


@dataclass(frozen=True, slots=True)
class Program:
    """Trains by starting a program."""

    command: tuple[str, ...]
    timeout_s: float | None = None
    grace_s: float = GRACE_S
    out: IO[bytes] | None = None
    """Where the program's output is passed through to; default our own stdout and stderr."""
    cancels = False
    kills = True

    def __post_init__(self) -> None:
        if not self.command:
            raise BadOptions("no program is given; for example: -- python train.py --lr {lr}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise BadOptions(f"timeout is a number of seconds above 0, not {self.timeout_s!r}")

    async def __call__(self, trial: Trial) -> Mapping[str, Any]:
        return await in_thread(lambda: self.train(trial), f"{trial.study} trial {trial.number}")

    def train(self, trial: Trial) -> Mapping[str, Any]:
        """Run the program once. Blocks; a stop of the trial kills the program."""
        argv = arguments(self.command, trial)
        try:
            return _Run(self, trial, argv).outcome()
        except (FileNotFoundError, PermissionError) as error:
            raise CannotTrain(f"the program {argv[0]!r} cannot be started: {error}") from error
        except OSError as error:          # no memory or no process left, a list of arguments too long
            return {"state": "fail", "class": "crash", "error": f"the program could not be started: {error}"}
        except ValueError as error:       # a NUL in an argument
            return {"state": "fail", "class": "other", "error": f"the program cannot get its arguments: {error}"}


def arguments(command: Sequence[str], trial: Trial) -> list[str]:
    """`command` with the trial's values. Raises SpaceMismatch for a placeholder that nobody declares."""
    check_placeholders(command, trial)
    out: list[str] = []
    values = {**progress(trial), **trial.params}
    for argument in command:
        alone = re.fullmatch(r"(?:--?[A-Za-z0-9][\w.-]*=)?\{([A-Za-z_][A-Za-z0-9_.-]{0,63})\}", argument)
        if alone is not None and alone[1] not in values:
            if argument.startswith("{") and len(out) > 1 and re.fullmatch(r"--?[A-Za-z][\w.-]*", out[-1]):
                out.pop()
            continue
        out.append(_placeholder.sub(lambda found: _filled(found, values), argument))
    return out


def check_placeholders(command: Sequence[str], trial: Trial) -> None:
    """A placeholder names a declared parameter; without a known space, anything may be inactive."""
    names = {found[1] for argument in command for found in _placeholder.finditer(argument) if found[1]}
    declared = set(trial.space) if trial.space is not None else set(trial.params) | names
    if unknown := sorted(names - declared - {"fidelity", "from"}):
        raise SpaceMismatch(f"{', '.join('{' + name + '}' for name in unknown)} in the command is no parameter of "
                            f"study {trial.study}, which has {', '.join(sorted(declared))}; "
                            "mend the command, or write {{name}} for literal braces")


def _filled(found: re.Match[str], values: Mapping[str, Any]) -> str:
    if found[1] is None:
        return found[0][0]
    return as_text(values[found[1]]) if found[1] in values else ""


def progress(trial: Trial) -> dict[str, Any]:
    """How far a trial is to be trained, and from where: only what its grant says."""
    out: dict[str, Any] = {}
    if trial.fidelity is not None:
        value = trial.fidelity.value
        out["fidelity"] = int(value) if value == int(value) else value      # epochs are whole, and JSON has no integers
    if trial.resume_from is not None:
        out["from"] = trial.resume_from
    return out


def as_text(value: Any) -> str:
    """A parameter as an argument: a string as it is, everything else as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value)


class _Run:
    """One run of the program: one thread, which reads, watches the clock and the trial, and kills."""

    def __init__(self, program: Program, trial: Trial, argv: list[str]) -> None:
        self._program = program
        self._trial = trial
        self._started_s = time.monotonic()
        self._ended: str | None = None       # why we ended it: timeout, or the trial's stop
        self._kill_at_s: float | None = None
        self._said_last = ""
        self._errors = b""
        self._child = subprocess.Popen(  # noqa: S603  # the user's own command, without a shell
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env=environment(trial), start_new_session=True, preexec_fn=_die_with_parent())
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        sink = program.out
        self._streams = {
            self._child.stdout.fileno(): _Stream(sink or _binary(sys.stdout), self._on_line),
            self._child.stderr.fileno(): _Stream(sink or _binary(sys.stderr), None, self._on_error)}

    def outcome(self) -> Mapping[str, Any]:
        try:
            self._watch()
        finally:
            status = self._bury()
        if self._ended == "timeout":
            return {"state": "fail", "class": "timeout",
                    "error": f"the program was ended after its timeout of {self._program.timeout_s:g} s"}
        if self._ended is not None:
            return {"state": "released"}     # the agent knows whether that is a prune or nothing
        if status != 0:
            return {"state": "fail", "class": "crash", "error": self._why(status)}
        return parse_outcome(self._said_last)

    def _watch(self) -> None:
        """Until the program itself has exited; its children may hold the pipes open for longer."""
        poll = select.poll()
        for fd in self._streams:
            os.set_blocking(fd, False)
            poll.register(fd, select.POLLIN)
        open_fds = set(self._streams)
        while not self._exited():
            self._end_when_due()
            ready = poll.poll(POLL_S * 1000)
            for fd, _ in ready:
                if not self._streams[fd].take(fd):
                    poll.unregister(fd)
                    open_fds.discard(fd)
            if not open_fds:
                time.sleep(POLL_S / 10)      # both pipes closed: it is about to exit, or a daemon
        for fd in open_fds:
            self._streams[fd].take(fd)
        for stream in self._streams.values():
            stream.finish()

    def _exited(self) -> bool:
        """Without reaping: as long as the child is a zombie, nobody else can get its group's number."""
        return os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _end_when_due(self) -> None:
        now = time.monotonic()
        if self._ended is None:
            timeout_s = self._program.timeout_s
            if self._trial.stop_reason is not None:
                self._ended = self._trial.stop_reason
            elif timeout_s is not None and now - self._started_s >= timeout_s:
                self._ended = "timeout"
            if self._ended is not None:
                self._signal(signal.SIGTERM)
                self._kill_at_s = now + self._program.grace_s
        elif self._kill_at_s is not None and now >= self._kill_at_s:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

    def _bury(self) -> int:
        """Kill what is left of the group, then reap: the slot is free for the next trial."""
        self._signal(signal.SIGKILL)
        status = self._child.wait()
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()
        return status

    def _on_line(self, line: str) -> None:
        text = line.strip()
        if text.startswith("bayesd:"):
            self._on_report(text)
        elif text:
            self._said_last = text

    def _on_report(self, text: str) -> None:
        report = parse_report(text)
        if report is None:
            log.warning("a line that begins with bayesd: is no report: %s; for example: bayesd: step=3 value=0.7",
                        text[:200])
            return
        step, value = report
        with contextlib.suppress(TrialStopped):      # it will be killed in a moment
            self._trial.report(value, step)

    def _on_error(self, chunk: bytes) -> None:
        self._errors = (self._errors + chunk)[-8192:]

    def _why(self, status: int) -> str:
        if status < 0:
            with contextlib.suppress(ValueError):
                return self._with_errors(f"the program was killed by {signal.Signals(-status).name}")
        return self._with_errors(f"the program ended with exit status {status}")

    def _with_errors(self, head: str) -> str:
        said = self._errors.decode("utf-8", "replace").strip()
        return f"{head}\n{tail(said, 3900)}" if said else head


class _Stream:
    """One pipe of the program: passed through as it comes, and cut into lines for us."""

    def __init__(self, sink: IO[bytes] | None, on_line: Callable[[str], None] | None,
                 on_chunk: Callable[[bytes], None] | None = None) -> None:
        self._sink = sink
        self._on_line = on_line
        self._on_chunk = on_chunk
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._line = ""

    def take(self, fd: int) -> bool:
        """Read what is there; False at the end of the stream."""
        for _ in range(64):              # then look at the clock again: a program may print for ever
            try:
                chunk = os.read(fd, 64 * 1024)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._pass_on(chunk)
            if self._on_chunk is not None:
                self._on_chunk(chunk)
            if self._on_line is not None:
                self._cut(self._decode(chunk))
        return True

    def finish(self) -> None:
        if self._on_line is not None and self._line:
            self._on_line(self._line)
            self._line = ""

    def _cut(self, text: str) -> None:
        assert self._on_line is not None
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self._on_line(line)
        self._line = rest[-LINE_MAX:]

    def _pass_on(self, chunk: bytes) -> None:
        if self._sink is not None:
            with contextlib.suppress(OSError, ValueError):      # our own reader has gone; the result still counts
                self._sink.write(chunk)
                self._sink.flush()


def _binary(stream: Any) -> IO[bytes] | None:
    """The bytes below a text stream; None where a test or a notebook has put something else."""
    found: IO[bytes] | None = getattr(stream, "buffer", None)
    return found


def parse_report(text: str) -> tuple[int, float | dict[str, float]] | None:
    """`bayesd: step=3 value=0.7`, or named metrics in place of value. None when it is not one."""
    found = _report.fullmatch(text)
    if found is None:
        return None
    try:
        pairs = dict(pair.split("=", 1) for pair in found["pairs"].split())
        step = int(pairs.pop("step"))
        values = {name: float(value) for name, value in pairs.items()}
    except (KeyError, ValueError):
        return None
    if step < 0 or not values:
        return None
    return (step, values["value"]) if set(values) == {"value"} else (step, values)


def parse_outcome(line: str) -> Mapping[str, Any]:
    """The last line of the output as the fields of a tell: a number, nan, inf, or a JSON object."""
    if line.lower().lstrip("+-") in _NO_NUMBER:
        return {"value": float(line)}
    try:
        return {"value": float(line)} if "_" not in line else _no_outcome(line)
    except ValueError:
        pass
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return _no_outcome(line)
    if not isinstance(data, dict):
        return _no_outcome(line)
    return {name: value for name, value in data.items() if name in TOLD}


def _no_outcome(line: str) -> Mapping[str, Any]:
    said = f"the last line of its output is {line[:200]!r}" if line else "it printed nothing"
    return {"state": "fail", "class": "other",
            "error": f"the program told no value: {said}; print a number, or a JSON object such as "
                     '{"value": 0.9, "cost": 2}, as the last line'}


def environment(trial: Trial) -> dict[str, str]:
    """The program's environment: ours, and the trial."""
    names = {"fidelity": "BAYESD_FIDELITY", "from": "BAYESD_RESUME_FROM"}
    ours = {name: value for name, value in os.environ.items() if name not in names.values()}
    return {**ours, "BAYESD_PARAMS": json.dumps(trial.params), "BAYESD_STUDY": trial.study,
            "BAYESD_TRIAL": str(trial.number), "BAYESD_FENCE": str(trial.fence), "BAYESD_REPEAT": str(trial.repeat),
            **{names[name]: as_text(value) for name, value in progress(trial).items()}}


_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux the program gets SIGKILL when the worker is killed and cannot say goodbye. Best effort.

    The library is loaded here, before the fork: after it, only the call is left to do.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:           # it died between the fork and the call
            os._exit(1)
    return ask
