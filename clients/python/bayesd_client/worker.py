"""One worker process: the agent, its line, its spool and its slots on one event loop.

This is the shell round the agent: it has the clock, carries out effects, and runs trainings. A
training is a coroutine that returns the fields of a tell; objectives that block and programs run
in a thread each, and the coroutine waits for the thread.
"""

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from bayesd_client.agent import Agent, Answered, Effect, End, Halt, Lease, Send, Settings, Start
from bayesd_client.errors import BadOptions, CannotTrain, NameInUse, Refused, Undelivered, WorkerError
from bayesd_client.kept import Key
from bayesd_client.link import Address, Link, Presence
from bayesd_client.signing import Ignored, Signing
from bayesd_client.spool import claim
from bayesd_client.trial import Trial
from bayesd_schemas.messages import BadMessage, parse
from bayesd_schemas.names import is_name
from bayesd_schemas.sealed import read_key
from bayesd_schemas.space import Space
from bayesd_schemas.topics import Topics

SPACE_PATIENCE_S = 5.0     # how long a first training waits for the study's retained topic
LEAVE_PATIENCE_S = 10.0    # how long a clean exit waits for receipts
HALT_PATIENCE_S = 15.0     # how long it then waits for trainings to end; programs get a grace of 10 s

Say = Callable[[str], None]
Body = Callable[[Trial], Awaitable[Mapping[str, Any]]]
"""A training: a trial in, the fields of its tell out. CannotTrain ends the worker."""


class Training(Protocol):
    """How a worker trains."""

    cancels: bool
    """Whether a stop cancels the coroutine; one that waits for a thread looks at the trial instead."""

    async def __call__(self, trial: Trial) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a worker works; the defaults are right for one trial after the other."""

    study: str | None = None
    name: str | None = None
    slots: int = 1
    prefetch: int = 1
    """Trials asked for ahead of free slots, so that no slot waits for a round trip."""
    lease_s: float | None = None
    tags: Sequence[str] = ()
    keep: bool = False
    root: str = ""
    spool: str | os.PathLike[str] | None = None
    """The folder of all spools; default $XDG_STATE_HOME/bayesd/workers."""
    sign_key: str | os.PathLike[str] | None = None
    """The file with the key that signs; default BAYESD_SIGN_KEY_FILE, else nothing is signed."""

    def check(self) -> None:
        if self.study is not None and is_name(self.study) is None:
            raise BadOptions(f"{self.study!r} is not a study's name: a-z, 0-9, '.', '_', '-', for example digits-svm")
        if self.slots < 1 or not 0 <= self.prefetch <= self.slots:
            raise BadOptions("slots is 1 or more, and prefetch from 0 to slots: "
                             "a worker asks ahead at most one per slot")
        if self.lease_s is not None and not self.lease_s > 0:
            raise BadOptions(f"lease_s is a number of seconds above 0, not {self.lease_s!r}")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a worker did. `reason` is closed, or stopped after SIGTERM."""

    name: str
    reason: str
    told: int


class Worker:
    """Run it once, with `await worker.run()`."""

    def __init__(self, training: Training, address: Address, options: Options, say: Say) -> None:
        options.check()
        key = _sign_key(options.sign_key)
        self._training = training
        self._options = options
        self._say = say
        base = Path(options.spool) if options.spool is not None else None
        self.name, self._spool = claim(options.name, address.name, base)
        self._known_as = address.name
        self._run_id = secrets.token_hex(4)
        self._topics = Topics(options.root)
        self._signing = Signing(key, self.name, self._run_id, self._topics) if key is not None else None
        self._line_up = False
        """The line is up, and the agent does not know, since nothing can be signed yet."""
        self.agent = Agent(
            Settings(self._run_id, options.study, options.slots, options.prefetch, options.lease_s,
                     tuple(options.tags), options.keep),
            self._spool, random.Random())  # noqa: S311  # it spreads resends; it is no secret
        self._link = self._make_link(address)
        self._trials: dict[Key, Trial] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._spaces: dict[tuple[str, str, int], Space] = {}
        self._study_seen: dict[str, asyncio.Event] = {}
        self._stopping = False
        self._told: set[str] = set()
        self._mistake: WorkerError | None = None

    async def run(self) -> Summary:
        """Work until the study is closed or somebody says stop. Raises WorkerError for an exit code of 1."""
        try:
            with self._spool:
                end = await self._work()
        finally:
            self._spool.close()
        if self._mistake is not None:
            raise self._mistake
        if end.code:
            raise self._error(end)
        return Summary(self.name, end.reason, len(self._told))

    def stop(self) -> None:
        """Begin a clean exit; the second call does not wait any more. On the loop's thread."""
        patience_s = LEAVE_PATIENCE_S if not self._stopping else 0.0
        self._stopping = True
        self._do(self.agent.leave(self._now(), patience_s))

    async def _work(self) -> End:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._wake = asyncio.Event()
        leave = asyncio.Event()
        self._say(f"worker {self.name}, run {self._run_id}")
        if self._known_as not in (None, self.name):
            self._say(f"warning: our name is {self.name}, and the broker knows us as {self._known_as}: one that lets "
                      "everybody write as themselves only drops all that we say, without a word. Leave the name out, "
                      "or come with the login of that name")
        async with asyncio.TaskGroup() as group:
            self._group = group
            link = group.create_task(self._link.run(leave), name="link")
            with self._signals():
                self._do(self.agent.begin(self._now()))
                while self.agent.end is None:
                    await self._sleep_until_due()
                    self._do(self.agent.tick(self._now()))
                await self._end_trainings()
            leave.set()
            # A line that hangs may not hold up the exit: the broker's last will says the rest.
            await asyncio.wait({link}, timeout=5)
            link.cancel()
        return self.agent.end

    def _now(self) -> float:
        return self._loop.time()

    async def _sleep_until_due(self) -> None:
        # Cleared before it is asked what is due: our own last tick set it, and what it changed is in the answer.
        self._wake.clear()
        due_s = self.agent.due_s()
        wait_s = None if due_s is None else max(0.0, due_s - self._now())
        with contextlib.suppress(TimeoutError):
            # Not wait_for: until Python 3.12 it can swallow a cancellation that comes with the event.
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect)
                if effect.kind == "tell" and effect.message.get("state") != "released":
                    self._told.add(effect.message["id"])
            elif isinstance(effect, Start):
                key = effect.lease.key
                self._tasks[key] = self._group.create_task(self._train(effect.lease), name=f"trial {key}")
            elif isinstance(effect, Halt):
                self._halt(effect)
            elif isinstance(effect, Answered):
                if (trial := self._trials.get(effect.key)) is not None:
                    trial.answer(effect.step)
            else:
                self._say(("warning: " if effect.warning else "") + effect.text)
        self._wake.set()

    def _send(self, send: Send) -> None:
        if self._signing is None:
            payload = encode(send.message)
        else:
            payload = self._signing.seal(send.kind, send.message, send.log)
        self._link.send(self._topics.sent(self.name, send.kind), payload)

    # Trainings.

    async def _train(self, lease: Lease) -> None:
        key = lease.key
        started_s = time.monotonic()
        outcome: Mapping[str, Any] | None = None
        trial: Trial | None = None
        try:
            space = await self._space_of(lease.study)
            trial = Trial(lease, space, self._report, self._objectives_of(lease.study))
            self._trials[key] = trial
            self._say(f"{lease.study} trial {lease.trial} starts: {in_words(trial.params)}")
            outcome = await self._training(trial)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if trial is None or (trial.stop_reason is None and task is not None and task.cancelling()):
                raise
            if trial.stop_reason is None:
                outcome = {"state": "fail", "error": "the objective raised CancelledError"}
        except CannotTrain as error:
            self._give_up(key, error)
        finally:
            self._trials.pop(key, None)
            self._tasks.pop(key, None)
        if trial is not None and self._mistake is None:
            seconds = time.monotonic() - started_s
            self._finish(trial, key, outcome if outcome is not None else {"state": "released"}, seconds)

    def _finish(self, trial: Trial, key: Key, outcome: Mapping[str, Any], seconds: float) -> None:
        fields = dict(outcome)
        if fields.get("state") != "released":
            fields.setdefault("seconds", round(seconds, 3))
            if trial.cost is not None:
                fields.setdefault("cost", trial.cost)
            if trial.checkpoint is not None:
                fields.setdefault("checkpoint", trial.checkpoint)
        why = f" ({trial.stop_reason})" if trial.stop_reason is not None else ""
        self._say(f"{key[0]} trial {key[1]} ended after {seconds:.1f} s: {in_short(fields)}{why}")
        self._do(self.agent.finished(key, fields, self._now()))

    def _give_up(self, key: Key, error: CannotTrain) -> None:
        """Every other trial would fail the same way: give them back instead of spending the budget."""
        self._mistake = error
        self._do(self.agent.give_back(key, self._now()))
        self._do(self.agent.leave(self._now(), LEAVE_PATIENCE_S))

    def _halt(self, halt: Halt) -> None:
        trial, task = self._trials.get(halt.key), self._tasks.get(halt.key)
        if trial is not None:
            trial.halt(halt.reason, halt.owed)
        if task is not None and trial is not None and self._training.cancels:
            task.cancel()

    async def _end_trainings(self) -> None:
        """Programs are killed before we leave. A thread cannot be: it is left behind, with a word."""
        for key in list(self._tasks):
            trial = self._trials.get(key)
            if trial is None or trial.stop_reason is None:
                self._halt(Halt(key, "stopped", owed=False))
        if self._tasks:
            patience_s = HALT_PATIENCE_S if getattr(self._training, "kills", False) else 2.0
            await asyncio.wait(self._tasks.values(), timeout=patience_s)
        for key, task in list(self._tasks.items()):
            self._say(f"warning: {key[0]} trial {key[1]} does not end; it is left behind")
            task.cancel()

    def _report(self, trial: Trial, step: int, measured: Mapping[str, Any]) -> None:
        """Called from the objective's thread, or from the loop's by an async one."""
        if threading.get_ident() == self._loop_thread:
            self._report_here(trial, step, measured)
        else:
            with contextlib.suppress(RuntimeError):        # the loop is gone: the worker has left
                self._loop.call_soon_threadsafe(self._report_here, trial, step, measured)

    def _report_here(self, trial: Trial, step: int, measured: Mapping[str, Any]) -> None:
        effects = self.agent.report((trial.study, trial.number, trial.fence), step, measured, self._now())
        if not any(isinstance(effect, Send) and effect.kind == "report" for effect in effects):
            trial.answer(step)        # nothing was sent, so no receipt will come
        self._do(effects)

    async def _space_of(self, study: str) -> Space | None:
        """The declared space, from the study's retained topic, which nobody signs."""
        if self._signing is not None:
            return None
        if study not in self.agent.studies:
            seen = self._study_seen.setdefault(study, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SPACE_PATIENCE_S):
                    await seen.wait()
        state = self.agent.studies.get(study)
        if state is None:
            self._say(f"warning: study {study} has not said its space; parameters are taken as they came")
            return None
        known = (state.log, study, state.space_rev)
        if known not in self._spaces:
            try:
                self._spaces[known] = Space.model_validate(state.space)
            except ValidationError as error:
                self._say(f"warning: the space of study {study} cannot be read: {error.errors()[0]['msg']}")
                return None
        return self._spaces[known]

    def _objectives_of(self, study: str) -> list[str]:
        state = self.agent.studies.get(study)
        return [str(objective.get("name", "")) for objective in state.objectives] if state is not None else []

    # The line.

    def _make_link(self, address: Address) -> Link:
        study = self._options.study
        topics = self._topics
        here = {"run": self._run_id, "host": socket.gethostname(), "slots": self._options.slots}
        presence = Presence(topics.presence(self.name), encode({"state": "online", **here}),
                            encode({"state": "offline", **here}))
        subscriptions = [topics.to(self.name, "+"), topics.daemon, topics.head,
                         topics.study(study) if study is not None else f"{topics.prefix}/study/+"]
        return Link(address, f"bayesd-{self.name}-{self._run_id}", subscriptions, presence,
                    self._connected, self._disconnected, self._received, self._say)

    def _connected(self) -> None:
        if self._signing is not None and not self._signing.ready:
            self._line_up = True
        else:
            self._do(self.agent.connected(self._now()))

    def _disconnected(self) -> None:
        self._line_up = False
        self._do(self.agent.disconnected(self._now()))

    def _received(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic == self._topics.daemon:
            kind = "daemon"
        elif topic == self._topics.head:
            kind = "head"
        elif self._topics.study_of(topic) is not None:
            kind = "study"
        else:
            kind = topic.rpartition("/")[2]
        if not payload:
            return                    # a retained topic that was emptied
        try:
            data = self._believed(kind, topic, payload) if self._signing is not None else parse(payload, 1024 * 1024)
        except BadMessage as error:
            self._say(f"warning: a message at {topic} was ignored: {error.detail}")
            return
        except Ignored as error:
            if str(error):
                self._say(f"warning: {error}")
            return
        self._do(self.agent.received(kind, data, self._now(), retained))
        if kind == "study" and (seen := self._study_seen.get(str(data.get("study")))) is not None:
            seen.set()

    def _believed(self, kind: str, topic: str, payload: bytes) -> dict[str, Any]:
        """What a worker that signs believes of a message. Raises BadMessage or Ignored."""
        assert self._signing is not None
        if kind in ("grant", "receipt", "stop"):
            data, claim = self._signing.open(kind, topic, payload)
            if claim is not None:
                self._do(self.agent.received("daemon", claim, self._now(), retained=True))
            return data
        data = parse(payload, 1024 * 1024)
        if kind == "daemon":
            known = self._signing.heard(data)
            if self._line_up and self._signing.ready:
                self._line_up = False
                self._do(self.agent.connected(self._now()))
            if known:
                return data
        elif kind == "head" and self._signing.knows(data.get("log")):
            return data
        raise Ignored("")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C begin a clean exit, where the main thread is ours."""
        mine = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGTERM, signal.SIGINT) if mine else ()
        for number in signals:
            self._loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in signals:
                self._loop.remove_signal_handler(number)

    def _error(self, end: End) -> WorkerError:
        kept = f"; see {self._spool.folder}" if end.reason in ("undelivered", "closed", "stopped") else ""
        kind = {"name-in-use": NameInUse, "refused": Refused}.get(end.reason, Undelivered)
        return kind(f"{end.detail}{kept}")


def _sign_key(path: str | os.PathLike[str] | None) -> bytes | None:
    path = path or os.environ.get("BAYESD_SIGN_KEY_FILE")
    if not path:
        return None
    try:
        return read_key(Path(path))
    except ValueError as error:
        raise BadOptions(str(error)) from error


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as compact JSON on one line."""
    return json.dumps(message, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def in_words(params: Mapping[str, Any]) -> str:
    """Parameters for a line of talk."""
    return " ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in params.items())


def in_short(outcome: Mapping[str, Any]) -> str:
    """An outcome for a line of talk."""
    state = outcome.get("state", "complete")
    if state == "fail":
        lines = str(outcome.get("error", "")).strip().splitlines()
        return f"failed, {outcome.get('class', 'crash')}" + (f": {lines[-1]}" if lines else "")
    found = next((outcome[name] for name in ("value", "values", "folds") if name in outcome), None)
    return f"{found}" if state == "complete" else state


async def in_thread(call: Callable[[], Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Run `call` in a daemon thread of its own: a pool would hold up the exit for a training that hangs."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Mapping[str, Any]] = loop.create_future()

    def deliver(outcome: Mapping[str, Any] | None, error: BaseException | None) -> None:
        if not ended.done():
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(outcome or {})

    def work() -> None:
        outcome: Mapping[str, Any] | None = None
        failure: BaseException | None = None
        try:
            outcome = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):        # the loop is gone: the worker has left
            loop.call_soon_threadsafe(deliver, outcome, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await ended
