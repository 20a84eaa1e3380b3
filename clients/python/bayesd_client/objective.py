"""The decorator: a Python function as a worker."""

import asyncio
import inspect
import logging
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayesd_client.agent import tail
from bayesd_client.discover import find_broker
from bayesd_client.errors import CannotTrain, TrialStopped, WorkerError
from bayesd_client.link import address
from bayesd_client.trial import Trial, measured
from bayesd_client.worker import Options, Summary, Worker, in_thread

log = logging.getLogger("bayesd_client")
WARNING = "warning: "       # how the worker and its line begin what a person should read


def worker(broker: str | None = None, *, study: str | None = None, name: str | None = None,
           password_file: str | os.PathLike[str] | None = None, ca_file: str | None = None,
           cert_file: str | None = None, key_file: str | None = None, lease_s: float | None = None,
           tags: Sequence[str] = (), prefetch: int = 1, root: str = "",
           spool: str | os.PathLike[str] | None = None,
           sign_key: str | os.PathLike[str] | None = None) -> Callable[[Callable[[Trial], Any]], "Objective"]:
    """Make an objective of a function of one trial.

    @bayesd.worker("mqtt://localhost", study="digits-svm")
    def objective(trial): ...

    objective.run(slots=4)
    """
    options = Options(study=study, name=name, lease_s=lease_s, tags=tuple(tags), prefetch=prefetch, root=root,
                      spool=spool, sign_key=sign_key)
    line = _Line(broker, password_file, ca_file, cert_file, key_file)

    def decorate(function: Callable[[Trial], Any]) -> Objective:
        return Objective(function, line, options)
    return decorate


@dataclass(frozen=True, slots=True)
class _Line:
    broker: str | None
    password_file: str | os.PathLike[str] | None
    ca_file: str | None
    cert_file: str | None
    key_file: str | None


class Objective:
    """A function that can be called as before, or run as a worker."""

    def __init__(self, function: Callable[[Trial], Any], line: _Line, options: Options) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._line = line
        self._options = options

    def __call__(self, trial: Any) -> Any:
        return self.function(trial)

    def run(self, slots: int = 1, keep: bool = False, name: str | None = None) -> Summary:
        """Work until the study is closed (`keep` waits for it to be opened again).

        A blocking function runs in `slots` threads, an async one as tasks. SIGTERM and Ctrl-C give
        back what is not finished; then `run` returns with reason "stopped". Raises NameInUse,
        Undelivered, Refused or SpaceMismatch.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.arun(slots, keep, name))
        raise WorkerError("an event loop is running here already, as in a notebook: use `await objective.arun()`")

    async def arun(self, slots: int = 1, keep: bool = False, name: str | None = None) -> Summary:
        """`run` for a program that has an event loop."""
        line = self._line
        broker, root = find_broker(line.broker, self._options.root)
        where = address(broker, line.password_file, line.ca_file, line.cert_file, line.key_file)
        options = replace(self._options, slots=slots, keep=keep, name=name or self._options.name, root=root)
        return await Worker(_Function(self.function), where, options, _say).run()


def _say(text: str) -> None:
    """Talk goes to the logger; what a person should read, without any set-up of logging, to stderr as well."""
    if text.startswith(WARNING):
        log.warning("%s", text.removeprefix(WARNING))
    else:
        log.info("%s", text)


class _Function:
    """Trains by calling a function."""

    def __init__(self, function: Callable[[Trial], Any]) -> None:
        self._function = function
        self.cancels = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None))  # noqa: B004  # an object whose call is async

    async def __call__(self, trial: Trial) -> Mapping[str, Any]:
        outcome = await self._outcome(trial)
        if outcome.get("state") == "fail":
            # A broken objective would else use up the whole budget without a word.
            said = str(outcome.get("error", "")).strip().splitlines() or ["it gave no reason"]
            log.warning("%s trial %d failed (%s): %s", trial.study, trial.number, outcome.get("class", "crash"),
                        said[-1])
        return outcome

    async def _outcome(self, trial: Trial) -> Mapping[str, Any]:
        if not self.cancels:
            return await in_thread(lambda: self._blocking(trial), f"{trial.study} trial {trial.number}")
        try:
            return returned(trial, await self._function(trial))
        except Exception as error:
            return raised(error)

    def _blocking(self, trial: Trial) -> Mapping[str, Any]:
        try:
            return returned(trial, self._function(trial))
        except (Exception, SystemExit) as error:
            return raised(error)


def returned(trial: Trial, value: Any) -> Mapping[str, Any]:
    """What an objective returned, as the fields of a tell."""
    if isinstance(value, (list, tuple)) and len(value) == len(trial.objectives) > 0:
        value = dict(zip(trial.objectives, value, strict=True))      # Optuna's way for several objectives
    try:
        return measured(value)
    except TypeError as error:
        return {"state": "fail", "class": "other", "error": "the objective returns a number, a dict of metrics or "
                f"bayesd.Folds([...]): {error}"}


def raised(error: BaseException) -> Mapping[str, Any]:
    """What an objective raised, as the fields of a tell. CannotTrain goes on: it ends the worker."""
    if isinstance(error, CannotTrain):
        raise error
    if isinstance(error, TrialStopped):
        return {"state": "released"}
    # By name, because an Optuna objective raises Optuna's.
    if any(kind.__name__ == "TrialPruned" for kind in type(error).__mro__):
        return {"state": "pruned"}
    text = tail("".join(traceback.format_exception(error)))
    out_of_memory = isinstance(error, MemoryError) or "CUDA out of memory" in str(error)
    return {"state": "fail", "class": "oom" if out_of_memory else "crash", "error": text}
