"""The desk: the newest state, what is only in memory, and two trays that wait for a commit.

Rules work at the desk. `record` decides a fact: it gets its place in the log, moves the state at
once, and lies in the tray `rows` until the log has it on disk. `send` writes a letter that may
leave only after every fact recorded before it is on disk, so nothing goes outward before its
commit. Whoever drives the desk (the service, a test, a simulated world, a study in one process)
empties the trays:

    rows = desk.take_rows();  log.append(rows);  letters = desk.committed(rows[-1].seq)

What is here and not in `State` may be lost at any moment without harm: deadlines start again,
asks are sent again, candidates are drawn again.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bayesd.study import limits, texts, warm
from bayesd.study.canonical import canonical, leaf_hash
from bayesd.study.fold import apply
from bayesd.study.problem import Problem, Proposal
from bayesd.study.row import Row
from bayesd.study.state import Data, Event, Lease, State, Study
from bayesd.study.thrift import thrift
from bayesd_schemas.messages import Ask
from bayesd_schemas.space import Params
from bayesd_schemas.upcast import VERSIONS

PATIENCE_S = 90.0     # an unserved ask lapses this long after its last copy or beat
ANSWER_S = 1.5        # every ask is answered within 2 s; this leaves half a second for the way
CLIENTS_MAX = 10_000  # names of operators remembered; later ones are served and not remembered

NOT_CRITICAL = frozenset(("daemon.stopped", "clock.jumped", "text.redacted"))


class Letter(NamedTuple):
    """Something to say, once everything up to `after` is on disk."""

    after: int
    who: str
    kind: str
    """grant, receipt, stop or reply."""
    body: dict[str, Any]


@dataclass(slots=True, eq=False)
class Standing:
    """An ask that is not served yet. It lives in memory and lapses."""

    worker: str
    ask: Ask
    order: int
    since: float
    """When it last needed an answer."""
    lapses: float
    began: float
    """When it first stood."""
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposal that lies ready: a cache, never an event until it is handed out."""

    proposal: Proposal
    as_of: int
    pending: tuple[int, ...]
    ahead: tuple[Any, ...]
    """Parameters of the candidates that lay before it."""
    known: int
    """How many observations it was made from."""
    made: float
    fit_seq: int
    number: int
    """`Problem.number` for it: that of its trial, or of an earlier one if another answer has overtaken it."""
    drawn: int
    """What was drawn before it."""


@dataclass(slots=True, eq=False)
class Drawer:
    """The candidates of one study, in the order of their trial numbers."""

    candidates: deque[Candidate] = field(default_factory=deque)
    generation: int = 0
    """Grows when what lies here, or is being made, is no longer wanted."""
    exhausted: bool = False
    """The space has no new point to give while things stand as they do."""
    busy_since: float | None = None
    """A suggestion is being made since then."""

    def drop(self) -> None:
        """Dropping one drops all behind it, so trial numbers, Sobol points and grid cells have no holes."""
        self.candidates.clear()
        self.generation += 1
        self.exhausted = False


class Order(NamedTuple):
    """What the service asks of the optimiser."""

    study: str
    generation: int
    version: int
    problem: Problem
    wanted: int
    as_of: int
    pending: tuple[int, ...]


class Desk:
    """The newest state with what rules need around it."""

    def __init__(self, state: State | None = None, *, operators: frozenset[str] | None = None,
                 new_salt: Callable[[], bytes] | None = None) -> None:
        self.state = State() if state is None else state
        self.operators = operators
        """Who may ask for writes; None: everyone."""
        self.new_salt = new_salt
        """Random bytes for free text, which is kept outside the bodies then; None: in a test, inside."""
        self.now = 0.0
        self.time = "1970-01-01T00:00:00Z"
        self._rows: list[Row] = []
        self._letters: deque[Letter] = deque()
        self.deadlines: dict[Lease, float] = {}
        self.missed: dict[Lease, int] = {}
        self.standing: dict[tuple[str, str, str], Standing] = {}
        self.queues: dict[str, dict[tuple[str, str, str], Standing]] = {}
        """Standing asks by the study that they name, "" for any, oldest first."""
        self.withdrawn: dict[tuple[str, str, str], None] = {}
        self.drawers: dict[str, Drawer] = {}
        self.since: dict[str, float] = {}
        """Study -> when its open time was last counted."""
        self.confirming: dict[str, float] = {}
        """Study -> since when a leader waits for a worker that has not measured it."""
        self.judged: dict[str, tuple[int, int, int]] = {}
        """Study -> what was known when its results were last held against its stop rules."""
        self.touched: dict[str, None] = {}
        """Studies whose public state has changed, in that order."""
        self.clients: set[str] = set()
        """Names that operators used: a name is a worker or an operator, not both."""
        self.disk_full = False
        self._asked = 0
        self._standing_of: dict[str, int] = {}

    # -------------------------------------------------------------- time

    def at(self, now: float, time: str) -> None:
        """Set the clock: `now` is monotonic in seconds, `time` the wall clock for people."""
        self.now = max(now, self.now)
        self.time = time

    def elapsed(self, study: Study) -> float:
        """Open, unpaused seconds of a study, to now."""
        if study.status != "open":
            return study.elapsed_s
        return study.elapsed_s + max(0.0, self.now - self.since.setdefault(study.name, self.now))

    def has_news(self, study: Study) -> bool:
        """Whether results came, or were taken back, since this was asked before: looking at all of them takes time,
        and most ticks bring none."""
        known = study.version, len(study.learned[0]), study.counts["complete"]
        return self.judged.get(study.name) != known and self.judged.update({study.name: known}) is None

    # -------------------------------------------------------------- the trays

    def record(self, type: str, data: Data, *, actor: str = "daemon", study: Study | str | None = None,
               trial: int | None = None, cmd: str | None = None, elapsed: bool = False,
               redacts: tuple[str, ...] = ()) -> Event:
        """Decide a fact: it gets its place in the log, and the state moves at once. What of it is free text is
        put beside its body; texts that it `redacts` are deleted with its commit."""
        state = self.state
        name = study.name if isinstance(study, Study) else study
        beside = tuple(texts.Text(ref, None, None) for ref in redacts)
        free = texts.FREE.get(type)
        if free is not None and free in data and self.new_salt is not None and actor != "daemon":
            text = texts.of(self.new_salt(), data.pop(free))
            data[f"{free}_ref"] = text.ref
            beside = (text,)
        if elapsed:
            assert isinstance(study, Study)
            data["elapsed_s"] = round(self.elapsed(study), 3)
        seq = state.seq + 1
        envelope: dict[str, Any] = {
            "v": 1, "tv": VERSIONS.get(type, 1), "seq": seq, "log": state.log or data["log"], "epoch": state.epoch or 1,
            "type": type, "crit": type not in NOT_CRITICAL, "time": self.time, "actor": actor, "data": data,
            "prev": state.hash.hex()}
        if name is not None:
            envelope["study"] = name
        if trial is not None:
            envelope["trial"] = trial
        if cmd is not None:
            envelope["cmd"] = cmd
        row = Row.of(envelope, beside)
        event = Event(seq, row.hash, type, name, trial, actor, cmd, data)
        self._rows.append(row)
        apply(state, event)
        if name is not None:
            self.touched[name] = None
            if elapsed:
                self.since[name] = self.now
        return event

    def send(self, who: str, kind: str, body: dict[str, Any]) -> None:
        """Write a letter; it leaves after all that is recorded so far."""
        self._letters.append(Letter(self.state.seq, who, kind, body))

    def take_rows(self) -> list[Row]:
        """Everything recorded since the last call, to be committed as one."""
        rows, self._rows = self._rows, []
        return rows

    def put_back(self, rows: list[Row]) -> None:
        """Rows that were not written, for the next try."""
        self._rows = rows + self._rows

    @property
    def has_rows(self) -> bool:
        return bool(self._rows)

    @property
    def letters(self) -> int:
        """How many letters wait."""
        return len(self._letters)

    def committed(self, seq: int) -> list[Letter]:
        """The letters that may leave now that the log is on disk up to `seq`."""
        out = []
        letters = self._letters
        while letters and letters[0].after <= seq:
            out.append(letters.popleft())
        return out

    # -------------------------------------------------------------- what is only in memory

    def stand(self, worker: str, ask: Ask) -> Standing:
        """Keep an ask, or renew it."""
        key = (worker, ask.run, ask.id)
        standing = self.standing.get(key)
        if standing is None:
            self._asked += 1
            standing = Standing(worker, ask, self._asked, self.now, self.now + PATIENCE_S, self.now)
            self.standing[key] = standing
            self.queues.setdefault(ask.study or "", {})[key] = standing
            self._standing_of[worker] = self._standing_of.get(worker, 0) + 1
        else:
            if (standing.ask.study or "") != (ask.study or ""):
                self._leave(standing.ask.study, key)
                self.queues.setdefault(ask.study or "", {})[key] = standing
            standing.ask, standing.since, standing.answered = ask, self.now, False
            standing.lapses = self.now + PATIENCE_S
        return standing

    def sit(self, standing: Standing) -> None:
        """Forget a standing ask: served, ended or lapsed."""
        ask = standing.ask
        key = (standing.worker, ask.run, ask.id)
        if self.standing.pop(key, None) is not None:
            self._standing_of[standing.worker] -= 1
            if not self._standing_of[standing.worker]:
                del self._standing_of[standing.worker]
        self._leave(ask.study, key)

    def _leave(self, study: str | None, key: tuple[str, str, str]) -> None:
        """Take an ask out of its queue; an empty one goes, since anybody can name studies without end."""
        queue = self.queues.get(study or "")
        if queue is not None:
            queue.pop(key, None)
            if not queue:
                del self.queues[study or ""]

    def heard(self, client: str) -> None:
        """Note that an operator uses this name."""
        if len(self.clients) < CLIENTS_MAX:
            self.clients.add(client)

    def standing_count(self, worker: str) -> int:
        return self._standing_of.get(worker, 0)

    def waiting_for(self, study: str) -> Iterator[Standing]:
        """Standing asks that this study may serve, oldest first."""
        named, anyone = self.queues.get(study, {}), self.queues.get("", {})
        if not anyone:
            yield from list(named.values())
        else:
            yield from sorted([*named.values(), *anyone.values()], key=lambda standing: standing.order)

    def drawer(self, study: str) -> Drawer:
        drawer = self.drawers.get(study)
        if drawer is None:
            drawer = self.drawers[study] = Drawer()
        return drawer

    def problem(self, study: Study) -> tuple[Problem, tuple[int, ...]]:
        """What the optimiser is asked now, with the numbers of the pending trials."""
        ready = self.drawer(study.name).candidates
        return problem_of(study, tuple(candidate.proposal.params for candidate in ready),
                          ready[-1].proposal.drawn if ready else study.drawn)


def problem_of(study: Study, ahead: tuple[Params, ...], drawn: int) -> tuple[Problem, tuple[int, ...]]:
    """A study as the optimiser sees it behind the candidates `ahead`: what it is asked, and an audit asks again."""
    pending = (*study.running.values(), *study.waiting.values())
    return Problem(
        space=study.spec.space, directions=tuple(goal.direction for goal in study.goals),
        method=study.spec.method, seed=study.spec.seed, repeats=study.repeats,
        number=study.next_stream + len(ahead), drawn=drawn, history=tuple(study.history),
        pending=(*(trial.params for trial in pending), *ahead), fit=study.fit,
        constraints=study.spec.constrained, surrogate=study.spec.surrogate,
        prior=tuple(study.spec.prior.items()), sources=warm.sources_of(study) if study.sources else (),
        references=tuple(goal.reference for goal in study.goals), limits=limits.bounds(study.spec),
        thrift=thrift(study),
    ), tuple(trial.number for trial in pending)


def note_engine(desk: Desk, engine: dict[str, Any]) -> None:
    """Say in the log what computes from here on, if it is not what computed before."""
    known = engine_id(engine)
    if known != desk.state.fingerprint:
        desk.record("engine.fingerprint", {"fingerprint": known, "engine": engine})


def engine_id(engine: dict[str, Any]) -> str:
    """The fingerprint of an engine in 64 hex digits."""
    return leaf_hash(canonical(engine)).hex()


def restart(desk: Desk) -> None:
    """After a replay: every open lease gets its full time again, and open time counts from now."""
    for study in desk.state.studies.values():
        desk.since[study.name] = desk.now
        desk.touched[study.name] = None
        for trial in study.running.values():
            lease = trial.open_lease
            if lease is not None:
                desk.deadlines[lease] = desk.now + lease.lease_s
