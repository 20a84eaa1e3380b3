"""A study in one process: ask and tell with the daemon's own rules and engine, no broker.

    from bayesd import Study
    study = Study({"x": {"type": "float", "low": 0, "high": 1}}, direction="minimize", seed=0)
    trial = study.ask()
    study.tell(trial, (trial.params["x"] - 0.3) ** 2)

The trial goes through the very rules that serve workers (an ask, a lease without end, a tell), and
with `log=` the same log is written as by a daemon: it can be verified, replayed and served on.
"""

import asyncio
import itertools
import math
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import ValidationError

from bayesd import __version__, winner
from bayesd.daemon import SystemClock, new_log_id, new_salt
from bayesd.files import BadFile, read_study
from bayesd.fingerprint import fingerprint
from bayesd.log import DiskFull, SqliteLog, read_events
from bayesd.optimize import suggest
from bayesd.replay import Replay, fold
from bayesd.study import admin, rules, view
from bayesd.study.desk import Desk, Letter, note_engine, restart
from bayesd.study.fold import refuse_newer
from bayesd.study.problem import Problem
from bayesd.study.state import State
from bayesd.study.state import Study as Folded
from bayesd.study.state import Trial as FoldedTrial
from bayesd_schemas.messages import Ask, BadMessage, Beat, Request, validate
from bayesd_schemas.study import Direction, Method, Model, StudySpec

T = TypeVar("T")
WORKER = "inprocess"
FOREVER_S = 1e9           # nobody can be silent in one process
OPERATOR = "inprocess-operator"


class StudyError(Exception):
    """What was asked of a study in this process cannot be done; the text says why and what is right."""


class Exhausted(StudyError):
    """The study has no further trial: its budget is used up, or every point was tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One point to try: `params` holds the active parameters only."""

    number: int
    params: dict[str, Any]
    fence: int = 1
    fidelity: int | None = None
    """How far to train it, where the study has a fidelity."""
    resume_from: str | None = None
    """The checkpoint to go on from; None: from the beginning."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial with its outcome."""

    number: int
    params: dict[str, Any]
    state: str
    value: float | None
    values: dict[str, float] | None
    se: float | None
    seconds: float | None


class Study(AbstractContextManager["Study"]):
    """Ask and tell. Several trials may be pending; the next ask takes them into account.

    `space` and `constraints` use the words of the study file. `log` names a file to keep the events
    in; without it they live as long as the object.
    """

    def __init__(self, space: Mapping[str, Mapping[str, Any]], *, direction: Direction | None = None,
                 metric: str | None = None, objectives: Sequence[Mapping[str, Any]] | None = None,
                 method: Method = "bayes", seed: int = 0, noise: Literal["learn", "none"] = "learn",
                 surrogate: Model = "gp", constraints: Sequence[str] = (),
                 limits: Sequence[Mapping[str, Any]] = (), prior: Mapping[str, Mapping[str, Any]] | None = None,
                 warm_start: Sequence[Mapping[str, Any]] = (), cost: Mapping[str, Any] | None = None,
                 budget: int | None = None, stop: Mapping[str, Any] | None = None, name: str = "study",
                 log: str | Path | None = None) -> None:
        said: dict[str, Any] = {"name": name, "space": {key: dict(each) for key, each in space.items()},
                                "method": method, "seed": seed, "noise": noise}
        if surrogate != "gp":
            said["surrogate"] = surrogate
        if direction is not None:
            said["direction"] = direction
        if metric is not None:
            said["metric"] = metric
        if objectives is not None:
            said["objectives"] = [dict(each) for each in objectives]
        if limits:
            said["limits"] = [dict(each) for each in limits]
        if warm_start:
            said["warm_start"] = [dict(each) for each in warm_start]
        for key, table in (("prior", prior), ("cost", cost)):
            if table is not None:
                said[key] = dict(table)
        if constraints:
            said["constraints"] = constraints if isinstance(constraints, str) else list(constraints)
        if budget is not None:
            said["budget"] = {"trials": budget}
        if stop is not None:
            said["stop"] = dict(stop)
        try:
            spec = StudySpec.model_validate(said)
        except ValidationError as error:
            key, words = admin.explain(error)
            raise StudyError(f"{key}: {words}") from error
        self._open(spec, log)

    @classmethod
    def from_file(cls, path: str | Path, *, log: str | Path | None = None) -> Self:
        """The study of a study file (TOML, JSON or YAML)."""
        try:
            spec = read_study(str(path)).spec
        except BadFile as error:
            raise StudyError(str(error)) from error
        study = cls.__new__(cls)
        study._open(spec, log)
        return study

    @classmethod
    def replay(cls, path: str | Path, study: str | None = None, *, at: int | None = None) -> Self:
        """A study out of a log, at its end or at event `at`, to look at and to go on from in memory.
        The file is only read."""
        replay = Replay()
        for seq, body, hash in read_events(path, until=at):
            replay.take(seq, body, hash)
        state = replay.state
        if study is None:
            if len(state.studies) != 1:
                raise StudyError(f"{path} has {len(state.studies)} studies ({', '.join(state.studies) or 'none'}); "
                                 "name one: Study.replay(path, 'name')")
            study = next(iter(state.studies))
        if study not in state.studies:
            raise StudyError(f"{path} has no study {study}; it has {', '.join(state.studies) or 'none'}")
        made = cls.__new__(cls)
        made._begin(Desk(state), None)
        made._folded = state.studies[study]
        return made

    def _begin(self, desk: Desk, log: SqliteLog | None) -> None:
        self._desk, self._log = desk, log
        self._clock = SystemClock()
        self._asks = itertools.count(1)
        self._run = f"{new_log_id()}"
        self._requests = itertools.count(1)

    def _open(self, spec: StudySpec, path: str | Path | None) -> None:
        self._loop = asyncio.new_event_loop() if path is not None else None
        log: SqliteLog | None = None
        try:
            log = self._wait(SqliteLog.open(path, look=refuse_newer)) if path is not None else None
            state = self._wait(fold(log))[0] if log is not None else State()
            self._begin(Desk(state, new_salt=new_salt if log is not None else None), log)
            if log is not None:
                _close_in_the_end(self)
            desk = self._desk
            self._at()
            restart(desk)
            if not state.log:
                desk.record("log.opened", {"log": new_log_id(), "format": 1, "version": "inprocess"})
            desk.record("daemon.started", {"epoch": log.epoch if log is not None else 1, "version": "inprocess"})
            if log is not None:      # only a log is audited
                note_engine(desk, fingerprint(__version__))
            known = state.studies.get(spec.name)
            if known is None or known.spec != spec:
                self._request("study.create", {"spec": spec.model_dump(mode="json", exclude_unset=True)})
            self._folded: Folded = state.studies[spec.name]
            # A new run ends what a process before this one was asked for and never told, so it is asked again.
            rules.on_beat(desk, WORKER, Beat(run=self._run))
            self._commit()
        except BaseException:
            if log is not None:
                self._wait(log.close())
            if self._loop is not None:
                self._loop.close()
                self._loop = None
            raise

    _loop: asyncio.AbstractEventLoop | None = None

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Give the log file back."""
        for studies in _unclosed.values():
            studies.discard(self)
        if self._log is not None:
            self._wait(self._log.close())
            self._log = None
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ ask and tell

    def ask(self) -> Trial:
        """The next trial. Raises Exhausted when there is none."""
        desk, study = self._desk, self._folded
        self._at()
        rules.settle(desk, study)      # nothing ticks in one process, so a budget of time is looked at here
        ask = Ask(id=f"ask-{next(self._asks)}", run=self._run, study=study.name, lease_s=FOREVER_S)
        rules.on_ask(desk, WORKER, ask)
        for order in rules.orders(desk):
            rules.supply(desk, order, suggest(order.problem, order.wanted))
        letters = self._commit()
        for letter in letters:
            if letter.kind == "grant" and letter.body["ask"] == ask.id:
                fidelity = letter.body.get("fidelity", {})
                return Trial(letter.body["trial"], dict(letter.body["params"]), letter.body["fence"],
                             fidelity.get("value"), fidelity.get("from"))
        standing = desk.standing.get((WORKER, self._run, ask.id))
        if standing is not None:
            desk.sit(standing)
        why = next((letter.body.get("reason") for letter in letters if letter.kind == "receipt"), None)
        reason = study.closed_by or why or study.status
        words = {"trials": f"its budget of {study.spec.budget.trials} trials is used up",
                 "budget": f"its budget of {study.spec.budget.trials} trials is out; tell what is pending",
                 "wall": "its time is used up", "cost": "its cost is used up",
                 "exhausted": "every point has been tried", "target": "its target is reached",
                 "patience": "nothing better came for as long as its patience", "converged": "the search has converged",
                 "improvement": "too little improvement is expected", "regret": "too little is left to gain"}
        raise Exhausted(f"{study.name} has no further trial: {words.get(reason, reason)}")

    def tell(self, trial: Trial | int, value: float | Mapping[str, float] | Sequence[float] | None = None, *,
             state: Literal["complete", "fail", "pruned"] | None = None, seconds: float | None = None,
             cost: float | None = None, error: str | None = None, failure: str | None = None,
             checkpoint: str | None = None) -> None:
        """The outcome of a trial: a number, metrics by name, fold scores, or state="fail". `checkpoint` names what was
        trained, for whoever goes on with it.

        NaN and infinities are failures of class nonfinite, as on the wire.
        """
        number, fence = self._key(trial)
        said: dict[str, Any] = {"id": f"tell-{number}-{fence}", "study": self._folded.name, "trial": number,
                                "fence": fence, "state": state or "complete"}
        if isinstance(value, Mapping):
            said["values"] = {name: float(each) for name, each in value.items()}
        elif isinstance(value, (int, float)):
            said["value"] = float(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            said["folds"] = [float(each) for each in value]
        elif value is not None:
            said.update(_of_array(value))
        more = {"seconds": seconds, "cost": cost, "error": error, "class": failure,
                "checkpoint": checkpoint}
        said.update({key: each for key, each in more.items() if each is not None})
        self._at()
        rules.on_tell(self._desk, WORKER, _checked("tell", said))
        self._answered()

    def should_prune(self, trial: Trial | int) -> bool:
        """Whether the study's pruning rule has stopped this trial at one of its reports: end it, and tell it with
        state="pruned"."""
        known = self._desk.state.trial(self._folded.name, self._key(trial)[0])
        return known is not None and known.stopped is not None

    def report(self, trial: Trial | int, value: float | Mapping[str, float], step: int) -> None:
        """An intermediate value, or metrics by name; `should_prune` says afterwards whether to go on."""
        number, fence = self._key(trial)
        self._at()
        said = {"values": {name: _finite(each) for name, each in value.items()}} if isinstance(value, Mapping) \
            else {"value": _finite(value)}
        rules.on_report(self._desk, WORKER, _checked("report", {
            "id": f"report-{number}-{fence}-{step}", "study": self._folded.name, "trial": number, "fence": fence,
            "step": step, **said}))
        self._answered()

    def _key(self, trial: Trial | int) -> tuple[int, int]:
        """Number and fence; a bare number means the trial as it was handed out last."""
        if isinstance(trial, Trial):
            return trial.number, trial.fence
        known = self._desk.state.trial(self._folded.name, trial)
        return trial, known.fence if known is not None else 1

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Try this point next."""
        self._request("study.enqueue", {"study": self._folded.name, "params": dict(params)})
        self._commit()

    def fork(self, name: str, **changes: Any) -> Self:
        """Another study that begins with what this one knows, declared alike but for `changes`, in the words of the
        study file: `study.fork("again", method="random", budget={"trials": 50})`. It lives in the same log and may be
        used beside this one; `Study.replay(path, at=120).fork(...)` begins at an earlier moment."""
        self._request("study.fork", {"study": self._folded.name, "as": name, "changes": changes})
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._folded = self._desk.state.studies[name]
        return made

    # ------------------------------------------------------------ reads

    @property
    def name(self) -> str:
        return self._folded.name

    @property
    def state(self) -> str:
        return self._folded.status

    @property
    def best(self) -> Finished | None:
        """The complete trial with the best observed value, often the luckiest: `winner()` weighs that."""
        return None if self._folded.best is None else _finished(self._folded.best)

    @property
    def trials(self) -> list[Finished]:
        """Every trial so far."""
        return [_finished(trial) for trial in self._folded.trials]

    @property
    def problem(self) -> Problem:
        """What the optimiser would be asked now."""
        return self._desk.problem(self._folded)[0]

    def winner(self, rule: str | None = None) -> dict[str, Any]:
        """The configuration to take by a rule, with its reason, the probability that it is the best of the points
        tried, its expected loss, and what other rules would take. Default: what was confirmed, else by the study's own
        rule, which is `[winner] rule` or else depends on its noise."""
        rules = (*winner.RULES, winner.CONFIRMED)
        if rule not in (None, *rules):
            raise StudyError(f"rule is one of {', '.join(rules)}")
        return winner.of(self._folded, self.problem, rule)

    # ------------------------------------------------------------ the desk's trays

    def _at(self) -> None:
        self._desk.at(self._clock.now(), self._clock.time())

    def _request(self, verb: str, args: dict[str, Any]) -> None:
        self._at()
        admin.on_request(self._desk, OPERATOR, Request(id=f"{self._run}-{next(self._requests)}", verb=verb, args=args))
        for letter in self._commit():
            if letter.kind == "reply" and letter.body["status"] == "error":
                raise StudyError(letter.body["error"]["message"])

    def _answered(self) -> None:
        for letter in self._commit():
            if letter.kind == "receipt" and letter.body["status"] == "rejected":
                raise StudyError(letter.body.get("detail") or letter.body["reason"])
            if letter.kind == "receipt" and letter.body["status"] == "late":
                raise StudyError("this trial has another result already; the first one stands")

    def _commit(self) -> list[Letter]:
        rows = self._desk.take_rows()
        if rows and self._log is not None:
            try:
                self._wait(self._log.append(rows))
            except DiskFull:
                self._desk.put_back(rows)      # nothing was written: the next call writes these as well
                raise
        return self._desk.committed(self._desk.state.seq)


_unclosed: dict[threading.Thread, set[Study]] = {}
"""Studies with a log that nobody has closed yet, by the thread that opened them."""


def _finite(value: float) -> float | None:
    """A number, or None for one that is none."""
    value = float(value)
    return value if math.isfinite(value) else None


def _close_in_the_end(study: Study) -> None:
    """Close the study when its thread ends, if nobody does before: the log's own thread would keep a script, at
    its end, waiting for ever."""
    owner = threading.current_thread()
    known = _unclosed.setdefault(owner, set())
    if not known:
        threading.Thread(target=_close_behind, args=(owner,), name="bayesd closes", daemon=True).start()
    known.add(study)


def _close_behind(owner: threading.Thread) -> None:
    owner.join()
    for study in _unclosed.pop(owner, set()):
        study.close()


def _checked(kind: str, said: dict[str, Any]) -> Any:
    try:
        return validate(kind, said)
    except BadMessage as error:
        raise StudyError(error.detail) from error


def _of_array(value: Any) -> dict[str, Any]:
    """A number of any library, of which some are arrays without a dimension, or an array of fold scores."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("text is no result")
        try:
            folds = list(value)
        except TypeError:
            return {"value": float(value)}
        return {"folds": [float(each) for each in folds]}
    except (TypeError, ValueError) as error:
        raise StudyError(f"a result is a number, metrics by name or fold scores, not {value!r}") from error


def _finished(trial: FoldedTrial) -> Finished:
    values = view.named(trial.study, trial.values)
    return Finished(trial.number, dict(trial.params), trial.status, trial.values[0] if trial.values else None,
                    values, trial.se, trial.seconds)
