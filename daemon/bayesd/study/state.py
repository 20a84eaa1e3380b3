"""The state of a log: a pure fold over its events.

    state = State();  for event in log: apply(state, event)

Two rules keep everything else simple, and all code that could break them is in this file.

1. **State is the fold and nothing else.** Every fact here came from an event; what did not (who
   asked, when a lease runs out, which candidates lie ready) is memory, in `desk.py`, and may be
   lost at any moment. So every restart is a replay, and a replay equals the life it replays.
2. **`apply` is total.** It accepts every event ever logged, in log order, and never refuses:
   refusing is the business of `rules.py`, before the event exists. It reads no clock and draws
   no number.

A study holds trials; a trial is one point, leased to one worker after another until it has an
outcome. A **fence** numbers the leases of a trial: 1, 2, 3, ... Whoever holds the newest fence may
tell the result, however late; an older fence is history. (After a rollback that an operator has
accepted they go on far above any that was ever handed out.)

          trial.proposed + trial.leased
                     |
                 [running] <---- trial.leased (next fence), lease.held (same fence)
                  |     |                    |
        a tell counts   lease.expired,       |
                  |     run.began (ended),   |
                  |     lease.released,      |
                  |     trial.failed (retry) |
                  v              v           |
     [complete | fail | pruned]  [waiting] --+      outcome.voided: any -> [voided]

Where trials go on from rungs (`[prune] resume`), a tell below the full fidelity counts as `trial.paused`: the trial is
[paused] until it is leased again, up to the next rung, or ends as [pruned] with its study. See ladder.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

from bayesd.study import limits
from bayesd.study.board import Board
from bayesd.study.canonical import canonical
from bayesd.study.folds import by_step
from bayesd.study.ladder import Ladder, Rung
from bayesd.study.problem import Fit, Observation
from bayesd.study.reached import Curve, as_curve, curve_of, share_of
from bayesd_schemas.space import Params
from bayesd_schemas.study import LOGGED, Objective, StudySpec
from bayesd_schemas.upcast import VERSIONS
from bayesd_schemas.warm import WarmStart

Data: TypeAlias = dict[str, Any]
TrialStatus = Literal["running", "waiting", "paused", "complete", "fail", "pruned", "voided"]
FINAL = frozenset(("complete", "fail", "pruned", "voided"))
MEASURED = frozenset((    # of a stop: numbers, even when whole
    "value", "threshold", "difference", "chance", "bound", "expected", "low", "high"))


class Event(NamedTuple):
    """One event of the log, read from its envelope. A tuple: one is made for every event of every fold."""

    seq: int
    hash: bytes
    type: str
    study: str | None
    trial: int | None
    actor: str
    cmd: str | None
    data: Data


@dataclass(slots=True, eq=False)
class Lease:
    """A trial in the hands of one run of one worker, from its commit."""

    trial: "Trial"
    fence: int
    worker: str
    run: str
    ask: str
    lease_s: float
    at: str
    ended: str | None = None
    """None while open; expired, superseded (by a new run), released, told, closed, cancelled, voided."""
    proof: bytes | None = None
    """Digest of the message that told it (16 bytes) and hash of its event (32): kept for every trial, so packed."""
    told_seq: int = 0
    told_late: bool = False
    fidelity: int = 0
    """The rung up to which it trains; 0: to the full fidelity."""

    @property
    def told(self) -> "Told | None":
        """The first tell of this (trial, fence), or None."""
        if self.proof is None:
            return None
        return Told(self.proof[:16], self.told_seq, self.proof[16:], "late" if self.told_late else "recorded")

    @told.setter
    def told(self, told: "Told | None") -> None:
        if told is None:
            self.proof = None
        else:
            self.proof, self.told_seq, self.told_late = told.message + told.hash, told.seq, told.status == "late"

    @property
    def is_open(self) -> bool:
        return self.ended is None

    @property
    def holds_place(self) -> bool:
        """It counts against its ask's `n`: open, or told with an outcome."""
        return self.ended is None or (self.proof is not None and self.ended != "released")

    @property
    def may_hold_again(self) -> bool:
        """Its worker was silent or replaced, not overtaken: the same fence may go on."""
        return (self.proof is None and self.ended in ("expired", "superseded")
                and self.trial.leases[-1] is self
                and (self.trial.status == "waiting" or self.trial.is_provisional))


class Told(NamedTuple):
    """The first tell of a (trial, fence): what answers its copies."""

    message: bytes
    """Digest of the message's known fields; a copy has the same."""
    seq: int
    hash: bytes
    status: str
    """The receipt it got: recorded or late."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a late tell said of a trial, as measured."""

    state: str
    fence: int
    values: dict[str, float | None] | None
    se: float | None
    seconds: float | None
    failure: str | None
    seq: int


@dataclass(slots=True, eq=False)
class Trial:
    """One point of a study and what became of it."""

    study: "Study"
    number: int
    params: Params
    space_rev: int
    sampler: str
    proposed_seq: int
    status: TrialStatus = "running"
    leases: list[Lease] = field(default_factory=list)
    values: tuple[float, ...] | None = None
    se: float | None = None
    limits: tuple[float | None, ...] = ()
    """What was measured of the study's limits, in their order; empty where nothing was."""
    seconds: float | None = None
    failure: str | None = None
    outcome_seq: int = 0
    failures: dict[str, int] | None = None
    """How often an attempt failed, by class: what the retry policy counts."""
    reports: dict[int, Any] | None = None
    """Step -> values of the newest fence."""
    late: list[Outcome] | None = None
    origin: tuple[str, int] | None = None
    """Of an imported trial: the study and the number that it had where it was measured."""
    of: int | None = None
    """Of a trial that measures a leader again: the leader's number."""
    stopped: Data | None = None
    """The verdict of the pruning rule on the newest fence; see pruning/."""
    rungs: dict[int, Rung] | None = None
    """Fidelity -> what was told when the trial paused there, the lowest first."""
    checkpoint: str | None = None
    """Where it goes on from, in the words of the worker that told the highest rung."""

    @property
    def said(self) -> dict[int, dict[str, float | None]]:
        """Step -> values of its reports, whether what answers their copies is still kept beside them or not."""
        return {step: said[0] if isinstance(said, tuple) else said for step, said in (self.reports or {}).items()}

    @property
    def fence(self) -> int:
        """The newest fence; 0 before the first lease."""
        return self.leases[-1].fence if self.leases else 0

    def lease(self, fence: int) -> Lease | None:
        """The lease with this fence. Fence n is at n - 1, except after a rollback that was accepted."""
        leases = self.leases
        if 1 <= fence <= len(leases) and leases[fence - 1].fence == fence:
            return leases[fence - 1]
        return next((lease for lease in reversed(leases) if lease.fence == fence), None)

    @property
    def open_lease(self) -> Lease | None:
        return self.leases[-1] if self.leases and self.leases[-1].ended is None else None

    @property
    def is_provisional(self) -> bool:
        """Ended because nobody answered: the first tell with the newest fence replaces it. A trial that the pruning
        rule had stopped by then is pruned, any other failed."""
        return self.failure == "lost" and self.status in ("fail", "pruned")

    @property
    def is_pending(self) -> bool:
        """It has no outcome that counts yet."""
        return self.status in ("running", "waiting")

    @property
    def promoted(self) -> Outcome | None:
        """The late outcome that became the result when nobody was left to tell another."""
        if (not self.late or self.origin is not None or self.status not in ("complete", "fail", "pruned")
                or self.failure in ("lost", "cancelled")
                or any(lease.proof is not None and lease.told_seq == self.outcome_seq for lease in self.leases)):
            return None
        return self.late[0]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a fork left its study: the event it follows, and the hash that pins everything before it."""

    study: str
    at: int
    hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """An earlier study that is to help another, and the event up to which its results are taken."""

    name: str
    study: "Study | None"
    """None: it is of another log."""
    at: int
    hash: str
    log: str | None = None
    rows: tuple[tuple[Params, float], ...] = ()
    """Of a study of another log: points of the space, each with what was measured, turned so that lower is better."""


@dataclass(slots=True, eq=False)
class Study:
    """One search: its declaration, its trials, and what the optimiser knows."""

    name: str
    spec: StudySpec
    created_seq: int
    goals: tuple[Objective, ...]
    """The objectives of the spec, in order."""
    created: StudySpec | None = None
    """The file that created it, once it was amended: the same file again is no other study."""
    space_rev: int = 1
    status: Literal["open", "paused", "closed"] = "open"
    closed_by: str | None = None
    trials: list[Trial] = field(default_factory=list)
    """Trial n is at n - 1: numbers have no holes."""
    running: dict[int, Trial] = field(default_factory=dict)
    waiting: dict[int, Trial] = field(default_factory=dict)
    """Trials to be leased again, in the order in which they came back."""
    paused: dict[int, Trial] = field(default_factory=dict)
    """Trials that stand at a rung, in the order in which they came there."""
    queue: list[Params] = field(default_factory=list)
    """Points enqueued by hand, not yet handed out."""
    drawn: int = 0
    learned: tuple[list[Observation], dict[int, tuple[int, int]]] = field(default_factory=lambda: ([], {}))
    """The history as it grew, and what of it is taken back: trial -> (place before which all of the trial's
    observations are gone, place before which its failures are). See `history`."""
    fit: Fit | None = None
    fit_seq: int = 0
    elapsed_s: float = 0.0
    """Open, unpaused seconds while a daemon lived, as far as the log knows."""
    cost: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ("running", "waiting", "complete", "fail", "pruned", "voided"), 0))
    leader: Trial | None = None
    leader_left: bool = False
    """The leader was taken back: the next is looked for when somebody asks for the best."""
    version: int = 0
    """Grows with everything that may move a suggestion, except new trials and appended outcomes."""
    told_seconds: float = 0.0
    told_count: int = 0
    origin: Origin | None = None
    """Of a fork: where it began."""
    imported: int = 0
    """Trials that were measured elsewhere and are not void."""
    streams: int = 0
    """How far the names of random streams are ahead of the trials' numbers: a fork draws none again."""
    confirm: list[int] = field(default_factory=list)
    """Trials whose points are to be measured again, each as often as it stands here; see confirm.py."""
    repeated: dict[int, list[int]] = field(default_factory=dict)
    """Leader -> the trials that measured its point again."""
    remeasure: list[int] = field(default_factory=list)
    """Trials whose points somebody wants measured again, each as often as it stands here; see again.py."""
    again: int = 0
    """Trials that measure a point again and are not void: no budget counts them."""
    reopened: str | None = None
    """A closed study that is open for a confirmation alone: the rule that had closed it."""
    winner: Data | None = None
    """What the last confirmation found."""
    is_announced: bool = True
    """False from the beginning of a confirmation until its winner is on record."""
    sources: list[Earlier] = field(default_factory=list)
    """Earlier studies that are to help, in the order of the declaration; see warm.py."""
    board: Board | None = None
    """What the reports say by step, for the pruning rules: made from them when it is asked for."""
    ladder: Ladder | None = None
    """Who stands at which rung: made from the trials when it is asked for."""

    stopping: Data | None = None
    """The stop rule that fired, with its numbers: nothing new is handed out. See stopping.py."""
    patient_since: int = 0
    """Results up to this event do not count against patience: a decision to stop was taken back then."""

    @property
    def history(self) -> list[Observation]:
        """What was learned, in the order of the log. Observations that were taken back are dropped here, in one
        pass for any number of them: an operator may void thousands of trials in one go, and every replay does."""
        known, gone = self.learned
        if gone:
            none = (0, 0)
            known = [seen for place, seen in enumerate(known)
                     if place >= gone.get(seen.trial, none)[seen.values is None]]
            self.learned = known, {}       # both at once: a state of the past is read by several threads
        return known

    @history.setter
    def history(self, known: list[Observation]) -> None:
        self.learned = known, {}

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best observed value of the first objective, of those that keep every limit; of
        equals the first told, or after a void the first of all."""
        if self.leader_left:
            best = None
            for trial in self.trials:
                if _may_lead(trial) and _better(self, trial, best):
                    best = trial
            self.leader, self.leader_left = best, False
        return self.leader

    @best.setter
    def best(self, trial: Trial | None) -> None:
        self.leader, self.leader_left = trial, False

    @property
    def used(self) -> int:
        """Trials that count against the budget: leased at least once and not void."""
        return len(self.trials) - self.counts["voided"] - self.imported - self.again

    @property
    def next_stream(self) -> int:
        """The number that names the random stream of the next trial."""
        return len(self.trials) + 1 + self.streams

    def learned_from(self, trial: Trial) -> bool:
        """Whether the outcome of a trial of an earlier study is among what helps this one."""
        return any(source.study is trial.study and 0 < trial.outcome_seq <= source.at for source in self.sources)

    @property
    def repeats(self) -> bool:
        return self.spec.noise == "learn" and self.spec.method != "grid"


@dataclass(slots=True, eq=False)
class Worker:
    """What the log knows of a worker: its runs, and what each ask was given."""

    name: str
    run: str | None = None
    """The run that began last."""
    replaced: set[str] = field(default_factory=set)
    """Runs that never become new again."""
    asks: dict[str, dict[str, Lease | list[Lease]]] = field(default_factory=dict)
    """Run -> ask id -> its lease, or leases, for runs that are not replaced."""
    open: dict[Lease, None] = field(default_factory=dict)
    revoked: str | None = None

    def leases(self, run: str, ask: str) -> Sequence[Lease]:
        """Every lease that an ask was given."""
        found = self.asks.get(run, {}).get(ask, ())
        return (found,) if isinstance(found, Lease) else found


@dataclass(frozen=True, slots=True)
class Repair:
    """An accepted rollback, as it was signed. Whether that is to be believed is for who has a key."""

    seq: int
    prev: str
    """The hash of the event before it."""
    accepted: str
    fences_from: int
    shared: int
    signature: str


@dataclass(slots=True, eq=False)
class State:
    """The whole log, folded."""

    seq: int = 0
    hash: bytes = bytes(32)
    log: str = ""
    epoch: int = 0
    fingerprint: str | None = None
    key: str | None = None
    """The public key of the daemon that started last: who holds a signed head finds here whose word it is."""
    fence_base: int = 0
    """Fences begin above it. After a rollback the log does not know which ones it has handed out before."""
    keys: list[str] = field(default_factory=list)
    """Every public key that the log named, the first one first: notes of each may still be around."""
    given_up: int = 0
    """The size of the largest head that was given up."""
    accepted: str | None = None
    """The head that was given up last, as it was signed."""
    repairs: list[Repair] = field(default_factory=list)
    """What was given up under a signature; lineage.py says what each excuses."""
    studies: dict[str, Study] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    commands: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Operator writes, "client id" -> (seq, event type): a copy is answered from its event."""

    def worker(self, name: str) -> Worker:
        """The worker of that name; a new one is not kept until an event names it."""
        return self.workers.get(name) or Worker(name)

    def trial(self, study: str, number: int) -> Trial | None:
        found = self.studies.get(study)
        if found is None or not 1 <= number <= len(found.trials):
            return None
        return found.trials[number - 1]

    def lease(self, study: str, number: int, fence: int) -> Lease | None:
        trial = self.trial(study, number)
        return trial.lease(fence) if trial is not None else None

    def next_fence(self, trial: Trial) -> int:
        return max(trial.fence, self.fence_base) + 1


class UnknownEvent(Exception):
    """The log holds a critical event that this version does not know: use a newer one."""

    def __init__(self, seq: int, type: str, tv: int = 1) -> None:
        what = f"of type {type!r}" + (f", version {tv}" if type in KNOWN else "")
        super().__init__(f"event {seq} is {what}, which this version of bayesd does not know; "
                         "open the log with the version that wrote it, or a newer one")
        self.seq = seq


def refuse_newer(envelope: Mapping[str, Any]) -> bool:
    """True when a later release wrote this event and it may be passed over; raises UnknownEvent when it may not."""
    type, tv = envelope["type"], envelope.get("tv", 1)
    if type in KNOWN and tv <= VERSIONS.get(type, 1):
        return False
    if envelope.get("crit", True):
        raise UnknownEvent(envelope["seq"], type, tv)
    return True


def apply(state: State, event: Event) -> None:
    """Move the state by one event. Total: never refuses an event of a known type."""
    state.seq = event.seq
    if event.cmd is not None and event.actor.startswith("operator/"):
        state.commands.setdefault(f"{event.actor[9:]} {event.cmd}", (event.seq, event.type))
    _APPLY[event.type](state, event)
    state.hash = event.hash


def replay(events: Iterable[Event], state: State | None = None) -> State:
    """Fold events into a state."""
    state = State() if state is None else state
    for event in events:
        apply(state, event)
    return state


# ---------------------------------------------------------------- the log and its daemon


def _log_opened(state: State, event: Event) -> None:
    state.log = event.data["log"]


def _daemon_started(state: State, event: Event) -> None:
    state.epoch = event.data["epoch"]
    state.key = event.data.get("key", state.key)
    if state.key is not None and state.key not in state.keys:
        state.keys.append(state.key)


def _log_repaired(state: State, event: Event) -> None:
    data = event.data
    state.fence_base = max(state.fence_base, data["fences_from"])
    state.given_up = max(state.given_up, data["size"])
    state.accepted = data["accepted"]
    if data.get("signature") is not None:       # logs of before have none: they excuse nothing and begin no branch
        state.repairs.append(Repair(event.seq, state.hash.hex(), data["accepted"], data["fences_from"],
                                    data.get("shared", 0), data["signature"]))


def _engine_fingerprint(state: State, event: Event) -> None:
    state.fingerprint = event.data["fingerprint"]


def _nothing(state: State, event: Event) -> None:
    """Facts for people and for the audit, which the state does not need."""


# ---------------------------------------------------------------- studies


def _study(state: State, event: Event) -> Study:
    assert event.study is not None
    study = state.studies[event.study]
    elapsed_s = event.data.get("elapsed_s")
    if elapsed_s is not None:
        study.elapsed_s = float(elapsed_s)
    return study


def spec_of(data: Data) -> StudySpec:
    """A study's declaration out of an event. What has just been declared is read as a replay will read it, with 1 for
    a choice of 1.0 and opinions in the order of their names: else a life would go on from another declaration than its
    log."""
    return spec_from({**data, "spec": orjson.loads(canonical(data["spec"]))})


def spec_from(data: Data) -> StudySpec:
    """The same out of what `spec_data` said, word for word. Canonical JSON sorts keys, but the order of the
    parameters is the order of the optimiser's axes, so it stands beside as a list."""
    said = data["spec"]
    order = data.get("order")
    if order is not None:
        said = {**said, "space": {name: said["space"][name] for name in order}}
    return StudySpec.model_validate(said, context=LOGGED)


def spec_data(spec: StudySpec) -> Data:
    """What `spec_from` reads."""
    return {"spec": spec.model_dump(mode="json", exclude_unset=True), "order": list(spec.space)}


def _study_created(state: State, event: Event) -> None:
    spec = spec_of(event.data)
    if spec.enqueue:      # typed by the space: canonical JSON writes 1.0 as 1
        spec = spec.model_copy(update={"enqueue": spec.first_points})
    name = intern(spec.name)
    state.studies[name] = Study(name, spec, event.seq, spec.goals, queue=list(spec.first_points))


def _study_forked(state: State, event: Event) -> None:
    """A study that begins where another one was; what was measured there follows as imported trials."""
    _study_created(state, event)
    assert event.study is not None
    study, data = state.studies[event.study], event.data
    origin = data["origin"]
    study.origin = Origin(intern(origin["study"]), origin["at"], origin["hash"])
    study.drawn, study.streams = data.get("drawn", 0), data.get("streams", 0)
    if data.get("queue") is not None:
        study.queue = [_typed(study, params) for params in data["queue"]]


def _study_warmed(state: State, event: Event) -> None:
    """What an earlier study measured is to help this one. It is read there, so nothing of it is kept here."""
    study, data = _study(state, event), event.data
    name = intern(data["source"])
    if data.get("rows") is not None:
        said = [(row["params"], float(row["cost"]) + 0.0) for row in data["rows"]]
        rows, _ = WarmStart(study=name).fitted(study.spec.space, said)
        study.sources.append(Earlier(name, None, data["at"], data["hash"], data["log"], tuple(rows)))
    elif name in state.studies:      # else somebody folds a part of a log
        study.sources.append(Earlier(name, state.studies[name], data["at"], data["hash"]))


def _study_amended(state: State, event: Event) -> None:
    study = _study(state, event)
    study.created = study.created or study.spec
    study.spec = spec_of(event.data)
    study.goals = study.spec.goals
    study.version += 1
    if event.data["space_rev"] != study.space_rev:
        study.space_rev = event.data["space_rev"]
        study.drawn = 0
        study.fit = None
        study.confirm, study.remeasure = [], []  # points of another space
    study.confirm = [number for number in study.confirm if study.spec.allows(study.trials[number - 1].params)]
    study.remeasure = [number for number in study.remeasure if study.spec.allows(study.trials[number - 1].params)]
    if event.data.get("queue") is not None:      # points that are no longer allowed have left
        study.queue = [_typed(study, params) for params in event.data["queue"]]
    study.leader_left = True
    study.board = study.ladder = None
    if study.stopping is not None:               # somebody wants it to go on
        study.stopping, study.patient_since = None, event.seq


def _study_paused(state: State, event: Event) -> None:
    _study(state, event).status = "paused"


def _study_resumed(state: State, event: Event) -> None:
    _study(state, event).status = "open"


def _study_closed(state: State, event: Event) -> None:
    study = _study(state, event)
    study.status = "closed"
    study.closed_by = event.data["rule"]
    study.confirm, study.reopened, study.is_announced = [], None, True
    study.remeasure = []


def _study_stopping(state: State, event: Event) -> None:
    data = event.data
    _study(state, event).stopping = {"rule": data["rule"], "as_of": data["as_of"], "numbers": {
        name: _float(said) for name, said in data["numbers"].items()}}


def _study_confirming(state: State, event: Event) -> None:
    study, data = _study(state, event), event.data
    if study.status == "closed":
        study.status, study.reopened, study.closed_by = "open", study.closed_by, None
    study.repeated = {number: [] for number in data["trials"]}
    study.confirm = [number for _ in range(data["repeats"]) for number in data["trials"]]
    study.is_announced = False
    study.version += 1


def _study_winner(state: State, event: Event) -> None:
    study = _study(state, event)
    study.winner = {**event.data, "leaders": [
        {name: _float(said) if name in ("value", "mean") else said for name, said in each.items()}
        for each in event.data["leaders"]]}
    study.is_announced = True


def _study_ticked(state: State, event: Event) -> None:
    _study(state, event)


def _point_enqueued(state: State, event: Event) -> None:
    study = _study(state, event)
    study.queue.append(_typed(study, event.data["params"]))
    study.version += 1


def _point_again(state: State, event: Event) -> None:
    trial = _trial(state, event)
    trial.study.remeasure += [trial.number] * event.data["repeats"]
    trial.study.version += 1


def _model_fitted(state: State, event: Event) -> None:
    study = _study(state, event)
    data = event.data
    study.fit = Fit(data["model"], data["n"], tuple(map(float, data["theta"])))
    study.fit_seq = event.seq


# ---------------------------------------------------------------- trials and leases


def _trial(state: State, event: Event) -> Trial:
    study = _study(state, event)
    assert event.trial is not None
    return study.trials[event.trial - 1]


def _lease(trial: Trial, event: Event) -> Lease:
    lease = trial.lease(event.data["fence"])
    assert lease is not None, "the fence was never handed out"
    return lease


def _move(trial: Trial, status: TrialStatus) -> None:
    """Put a trial into a status; the study's counts and lists follow."""
    study = trial.study
    study.counts[trial.status] -= 1
    study.counts[status] = study.counts.get(status, 0) + 1
    study.running.pop(trial.number, None)
    study.waiting.pop(trial.number, None)
    study.paused.pop(trial.number, None)
    trial.status = status
    if status == "running":
        study.running[trial.number] = trial
    elif status == "waiting":
        study.waiting[trial.number] = trial
    elif status == "paused":
        study.paused[trial.number] = trial
    if study.board is not None:
        study.board.note(trial)
    if study.ladder is not None:
        study.ladder.note(trial)


def _end(state: State, lease: Lease, reason: str) -> None:
    lease.ended = reason
    lease.at = ""
    state.workers[lease.worker].open.pop(lease, None)


def _end_open(state: State, trial: Trial, reason: str) -> None:
    lease = trial.open_lease
    if lease is not None:
        _end(state, lease, reason)


def _trial_proposed(state: State, event: Event) -> None:
    study = _study(state, event)
    data = event.data
    assert event.trial == len(study.trials) + 1, "trial numbers have no holes"
    trial = Trial(study, event.trial, _typed(study, data["params"]), data["space_rev"],
                  intern(data["sampler"]), event.seq)
    study.trials.append(trial)
    study.counts["running"] += 1
    study.running[trial.number] = trial
    study.drawn = data["drawn"]
    if data["sampler"] == "enqueued":
        study.queue.pop(0)
    if data.get("of") is not None:
        trial.of = data["of"]
        if data["sampler"] == "again":
            if data["of"] in study.remeasure:
                study.remeasure.remove(data["of"])
        else:
            study.confirm.remove(data["of"])
            study.repeated[data["of"]].append(trial.number)
        study.again += 1


def _typed(study: Study, params: dict[str, Any]) -> Params:
    """Params as the space has them, in its order: canonical JSON sorts keys and writes 1.0 as 1."""
    out: dict[str, Any] = {}
    for name, parameter in study.spec.space.root.items():
        if name in params:
            value = params[name]
            if type(value) is int and parameter.type == "float":
                value = float(value)
            elif type(value) is str:
                value = intern(value)      # a choice, said once for all trials
            elif type(value) is float and parameter.type != "float" and value.is_integer():
                value = int(value)
            out[name] = value
    return out


def _trial_leased(state: State, event: Event) -> None:
    trial = _trial(state, event)
    data = event.data
    name, run = intern(data["worker"]), intern(data["run"])
    worker = state.workers.get(name)
    if worker is None:
        worker = state.workers[name] = Worker(name)
    lease = Lease(trial, data["fence"], name, run, data["ask"], _lease_s(trial.study, data["lease_s"]), data["at"])
    lease.fidelity = data.get("fidelity") or 0
    assert lease.fence == state.next_fence(trial), "fences have no holes"
    if trial.leases:
        trial.leases.append(lease)
    else:
        trial.leases = [lease]      # exactly as long as it must be, in nearly every trial
    trial.reports = trial.stopped = None
    if trial.rungs:      # what it had reached stays there
        trial.values = trial.se = trial.seconds = None
        trial.outcome_seq = 0
    if trial.status != "running":
        _move(trial, "running")
    worker.open[lease] = None
    _remember(worker.asks.setdefault(run, {}), lease)


def _lease_s(study: Study, lease_s: float) -> float:
    """The same object for the usual length: a float for every lease would add up."""
    default_s = study.spec.lease.default_s
    return default_s if lease_s == default_s else float(lease_s)


def _remember(asks: dict[str, Lease | list[Lease]], lease: Lease) -> None:
    """Most asks get one lease, so only those that get more pay for a list."""
    known = asks.get(lease.ask)
    if known is None:
        asks[lease.ask] = lease
    elif isinstance(known, Lease):
        asks[lease.ask] = [known, lease]
    else:
        known.append(lease)


def _count_failure(trial: Trial, failure: str, by: int = 1) -> None:
    trial.failures = trial.failures or {}
    trial.failures[failure] = trial.failures.get(failure, 0) + by


def _lease_expired(state: State, event: Event) -> None:
    trial = _trial(state, event)
    _end_open(state, trial, event.data.get("reason", "expired"))
    _count_failure(trial, "lost")
    _move(trial, "waiting")


def _lease_held(state: State, event: Event) -> None:
    trial = _trial(state, event)
    lease = _lease(trial, event)
    worker = state.workers[lease.worker]
    lease.ended = None
    lease.at = event.data["at"]
    lease.run = intern(event.data["run"])
    worker.open[lease] = None
    if trial.is_provisional:
        _forget(trial, keep_late=True)
    trial.failure = None
    _count_failure(trial, "lost", -1)
    _move(trial, "running")


def _lease_released(state: State, event: Event) -> None:
    trial = _trial(state, event)
    lease = _lease(trial, event)
    lease.told = _told(event, "recorded")
    _end(state, lease, "released")
    if trial.is_provisional:
        return
    _move(trial, "waiting")


def _run_began(state: State, event: Event) -> None:
    data = event.data
    name, run = intern(data["worker"]), intern(data["run"])
    worker = state.workers.get(name)
    if worker is None:
        worker = state.workers[name] = Worker(name)
    for study, number, fence in data["took"]:
        lease = state.lease(study, number, fence)
        assert lease is not None
        lease.run = run
    for study, number, fence in data["ended"]:
        lease = state.lease(study, number, fence)
        assert lease is not None
        _end(state, lease, "superseded")
        _count_failure(lease.trial, "lost")
        _move(lease.trial, "waiting")
    if worker.run is not None and worker.run != run:
        worker.replaced.add(worker.run)
    for other in [other for other in worker.asks if other != run]:
        worker.replaced.add(other)
        del worker.asks[other]
    worker.run = run
    worker.asks.setdefault(run, {})


def _trial_reported(state: State, event: Event) -> None:
    trial = _trial(state, event)
    trial.reports = trial.reports if trial.reports is not None else {}
    trial.reports[event.data["step"]] = (_floats(event.data["values"]), event.seq, event.hash)
    if trial.study.board is not None:
        trial.study.board.note(trial)


def _trial_stopped(state: State, event: Event) -> None:
    _trial(state, event).stopped = {
        name: _floats(said) if name == "values" else _float(said) if name in MEASURED else said
        for name, said in event.data.items()}


# ---------------------------------------------------------------- outcomes


def _told(event: Event, status: str) -> Told | None:
    message = event.data.get("message")
    return Told(bytes.fromhex(message), event.seq, event.hash, status) if message is not None else None


def _float(value: Any) -> float | None:
    """Canonical JSON writes 1.0 as 1 and -0.0 as 0; life and replay read both alike."""
    return None if value is None else float(value) + 0.0


def _floats(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: _float(value) for name, value in values.items()}


def _values(study: Study, data: Data) -> tuple[float, ...] | None:
    """The objectives' values of an outcome, in the study's order."""
    values = data.get("values")
    if values is None:
        return None
    found = [values.get(goal.name) for goal in study.goals]
    return None if None in found else tuple([float(value) + 0.0 for value in found])


def _finish(state: State, event: Event, status: Literal["complete", "fail", "pruned", "paused"]) -> Trial:
    """Record the outcome of a trial, in place of a provisional one."""
    trial = _trial(state, event)
    study, data = trial.study, event.data
    lease = _lease(trial, event)
    promoted = "promoted" in data      # a late outcome became the result: its lease ended long ago
    if trial.is_provisional:
        _forget(trial, keep_late=True)
    if not promoted:
        told = _told(event, "recorded")
        if told is not None:           # else it is not the worker's word, and an earlier tell stays on record
            lease.told = told
            _count(trial, data)
            _end(state, lease, "told")
        elif lease.ended is None:
            _end(state, lease, data.get("ended", "cancelled"))
    trial.values = _values(study, data)
    trial.se = _float(data.get("se"))
    trial.limits = limits.read(study.spec, data.get("values"))
    trial.seconds = _float(data.get("seconds"))
    trial.failure = data.get("class")
    trial.outcome_seq = event.seq
    if trial.reports is not None and status != "pruned" and trial.failure != "lost":    # that may be held again
        trial.reports = trial.said
    if study.spec.folds is not None and status == "complete" and data.get("folds") is not None:
        trial.reports = by_step(study, data["folds"])        # what others are compared with, fold by fold
    _move(trial, status)
    return trial


def _count(trial: Trial, data: Data) -> None:
    """Add up what a tell cost, late or not: it was spent. What measures a leader again counts for no budget."""
    study = trial.study
    if trial.of is None:
        study.cost += float(data.get("cost") or 0.0)
    if data.get("seconds") is not None:
        study.told_seconds += float(data["seconds"])
        study.told_count += 1


def _observe(trial: Trial, values: tuple[float, ...] | None, se: float | None, measured: limits.Measured = (),
             spent: float | None = None, fidelity: float | None = None, curve: Curve = ()) -> None:
    trial.study.learned[0].append(Observation(trial.number, trial.params, values, se, limits=measured, spent=spent,
                                              fidelity=fidelity, curve=curve))


def _spent(study: Study, data: Data) -> float | None:
    """What a trial that ended well took, where the study wants to know it: what failed or was stopped says little of
    what its point takes."""
    return None if study.spec.cost is None else _float(data.get(study.spec.cost.per))


def _forget(trial: Trial, *, keep_late: bool) -> None:
    """Take back what the optimiser knew of a trial: its provisional outcome alone, or its late outcomes too."""
    study = trial.study
    known, gone = study.learned
    values_before, _ = gone.get(trial.number, (0, 0))
    if trial.status == "pruned" and not trial.rungs:
        # Provisionally: its last report was learned, and late outcomes only after it.
        values_before = next((place for place in range(values_before + 1, len(known) + 1)
                              if known[place - 1].trial == trial.number and known[place - 1].values is not None),
                             values_before)
    gone[trial.number] = (values_before if keep_late else len(known)), len(known)
    study.version += 1
    # A fit that saw what is gone is gone with it, and the next starts from the prior: whether or not it saw
    # it, so that what is known afterwards does not depend on that (see `knowledge.py`).
    study.fit = None


def _supersede(trial: Trial) -> None:
    """Take back what the last rung of a trial taught: more is known of it now. No fit goes with it, since an
    observation comes in its place."""
    if not trial.rungs:
        return
    values, known = trial.rungs[max(trial.rungs)].values, trial.study.history
    place = next((place for place in reversed(range(len(known)))
                  if known[place].trial == trial.number and known[place].values == values), None)
    if place is not None:
        trial.study.history = known[:place] + known[place + 1:]      # the list may be read by a thread


def _may_lead(trial: Trial) -> bool:
    return trial.status == "complete" and trial.values is not None and trial.of is None and limits.keeps(trial)


def _better(study: Study, a: Trial, b: Trial | None) -> bool:
    if b is None:
        return True
    assert a.values is not None
    assert b.values is not None
    if study.goals[0].direction == "minimize":
        return a.values[0] < b.values[0]
    return a.values[0] > b.values[0]


def _trial_completed(state: State, event: Event) -> None:
    best = _study(state, event).best       # before this trial is one of those it is looked for among
    trial = _finish(state, event, "complete")
    _supersede(trial)
    if "promoted" not in event.data or trial.study.spec.late == "ignore":    # else it is known already
        _observe(trial, trial.values, trial.se, trial.limits, _spent(trial.study, event.data),
                 curve=() if "promoted" in event.data else curve_of(trial))
    if _may_lead(trial) and _better(trial.study, trial, best):
        trial.study.best = trial


def _trial_failed(state: State, event: Event) -> None:
    data = event.data
    if data.get("retry"):
        trial = _trial(state, event)
        lease = _lease(trial, event)
        lease.told = _told(event, "recorded")
        _count(trial, data)
        if trial.is_provisional:
            _forget(trial, keep_late=True)
        trial.failure = None
        _count_failure(trial, data["class"])
        if lease.ended is None:
            _end(state, lease, "told")
        _move(trial, "waiting")
        return
    trial = _finish(state, event, "fail")
    _supersede(trial)
    _observe(trial, None, None, trial.limits)


def _trial_paused(state: State, event: Event) -> None:
    """A rung is told: what is learned of the point until more is known."""
    trial = _finish(state, event, "paused")
    _supersede(trial)
    assert trial.values is not None
    trial.rungs = {**(trial.rungs or {}), event.data["fidelity"]: Rung(
        trial.values, event.seq, trial.se, trial.limits)}
    trial.checkpoint = event.data.get("checkpoint")
    if trial.study.ladder is not None:
        trial.study.ladder.note(trial)
    _observe(trial, trial.values, trial.se, trial.limits, fidelity=share_of(trial), curve=curve_of(trial))


def _trial_pruned(state: State, event: Event) -> None:
    trial = _trial(state, event)
    said = trial.said
    trial = _finish(state, event, "pruned")
    values = trial.values
    if said:         # the last report is what is known of the point
        last = said[max(said)]
        trial.limits = limits.read(trial.study.spec, event.data.get("values"), last)
        values = _values(trial.study, {"values": last}) if values is None else values
    elif values is None and trial.rungs:
        values = trial.rungs[max(trial.rungs)].values
    if trial.failure != "lost":         # that may be held again
        trial.reports = said or None
    if event.data.get("learn") is not False:
        _supersede(trial)
        estimate = event.data.get("estimate")
        if estimate is not None:        # better than the last of the folds that were measured
            _observe(trial, _values(trial.study, estimate), _float(estimate.get("se")), trial.limits)
        else:
            _observe(trial, values, None, trial.limits, fidelity=None if values is None else share_of(trial),
                     curve=curve_of(trial))


def _outcome_late(state: State, event: Event) -> None:
    trial = _trial(state, event)
    study, data = trial.study, event.data
    _lease(trial, event).told = _told(event, "late")
    _count(trial, data)
    outcome = Outcome(data["state"], data["fence"], _floats(data["values"]) if "values" in data else None,
                      _float(data.get("se")), _float(data.get("seconds")), data.get("class"), event.seq)
    trial.late = [*(trial.late or ()), outcome]
    values = _values(study, data)
    if (study.spec.late == "use" and trial.status != "voided" and values is not None
            and data.get("learn") is not False):
        _observe(trial, values, outcome.se, limits.read(study.spec, outcome.values),
                 _spent(study, data) if data["state"] == "complete" else None)


def _partly(data: Data) -> tuple[float | None, Curve]:
    """How far what was measured elsewhere was trained, and what it had on the way."""
    return _float(data.get("fidelity")), as_curve(data.get("curve") or ())


def _trial_imported(state: State, event: Event) -> None:
    """A result that was measured elsewhere: a trial without a lease, or one more observation of such a trial."""
    study, data = _study(state, event), event.data
    assert event.trial is not None
    values, se, measured = _values(study, data), _float(data.get("se")), limits.read(study.spec, data.get("values"))
    if event.trial <= len(study.trials):
        trial = study.trials[event.trial - 1]
        if data.get("result"):
            _replace_imported(trial, event)
            return
        told = _floats(data["values"]) if data.get("values") is not None else None
        trial.late = [*(trial.late or ()), Outcome(
            "fail" if values is None else "complete", 0, told, se, None, data.get("class"), event.seq)]
        _observe(trial, values, se, measured, _float(data.get("spent")), *_partly(data))
        return
    assert event.trial == len(study.trials) + 1, "trial numbers have no holes"
    status: TrialStatus = data.get("state") or ("fail" if values is None else "complete")
    origin = data["origin"]
    best = study.best
    trial = Trial(study, event.trial, _typed(study, data["params"]), study.space_rev, "imported", event.seq, status,
                  values=values, se=se, limits=measured, seconds=_float(data.get("seconds")), failure=data.get("class"),
                  outcome_seq=event.seq, origin=(intern(origin["study"]), origin["trial"]))
    study.trials.append(trial)
    study.counts[status] += 1
    study.imported += 1
    _observe(trial, values, se, measured, _float(data.get("spent")), *_partly(data))
    if _may_lead(trial) and _better(study, trial, best):
        study.best = trial


def _replace_imported(trial: Trial, event: Event) -> None:
    """The outcome of an imported trial of which a late one was learned before: that becomes the late one it was."""
    study, data = trial.study, event.data
    best = study.best
    said: dict[str, float | None] | None = {
        **({} if trial.values is None else dict(zip((goal.name for goal in study.goals), trial.values, strict=True))),
        **limits.named(study, trial.limits)} or None
    trial.late = [Outcome("fail" if trial.values is None else "complete", 0, said, trial.se, trial.seconds,
                          trial.failure, trial.outcome_seq), *(trial.late or ())]
    trial.values, trial.se, trial.seconds = _values(study, data), _float(data.get("se")), _float(data.get("seconds"))
    trial.limits = limits.read(study.spec, data.get("values"))
    trial.failure, trial.outcome_seq = data.get("class"), event.seq
    _move(trial, data.get("state") or ("fail" if trial.values is None else "complete"))
    _observe(trial, trial.values, trial.se, trial.limits, _float(data.get("spent")), *_partly(data))
    if best is trial:
        study.leader_left = True
    elif _may_lead(trial) and _better(study, trial, best):
        study.best = trial


def _outcome_voided(state: State, event: Event) -> None:
    trial = _trial(state, event)
    trial.study.imported -= trial.origin is not None
    if trial.status != "voided":
        trial.study.again -= trial.of is not None
    trial.study.confirm = [number for number in trial.study.confirm if number != trial.number]
    trial.study.remeasure = [number for number in trial.study.remeasure if number != trial.number]
    _end_open(state, trial, event.data.get("ended", "voided"))
    _move(trial, "voided")
    _forget(trial, keep_late=False)
    if trial.study.leader is trial:
        trial.study.leader_left = True
    for other in state.studies.values():      # what learned from it knows it no more
        if other.learned_from(trial):
            other.version += 1
            other.fit = None
    if trial.study.status != "closed":
        trial.study.stopping = None              # it may rest on what is taken back: it is judged again


def _worker_revoked(state: State, event: Event) -> None:
    name = intern(event.data["worker"])
    # The reason may be redacted one day, and a replay must not notice: so the event stands for it.
    state.workers.setdefault(name, Worker(name)).revoked = (
        f"event {event.seq}" if "reason_ref" in event.data else event.data.get("reason") or "revoked")


_APPLY: dict[str, Callable[[State, Event], None]] = {
    "log.opened": _log_opened,
    "log.repaired": _log_repaired,
    "daemon.started": _daemon_started,
    "daemon.stopped": _nothing,
    "engine.fingerprint": _engine_fingerprint,
    "clock.jumped": _nothing,
    "study.created": _study_created,
    "study.forked": _study_forked,
    "study.warmed": _study_warmed,
    "study.amended": _study_amended,
    "study.paused": _study_paused,
    "study.resumed": _study_resumed,
    "study.closed": _study_closed,
    "study.stopping": _study_stopping,
    "study.confirming": _study_confirming,
    "study.winner": _study_winner,
    "study.ticked": _study_ticked,
    "run.began": _run_began,
    "point.enqueued": _point_enqueued,
    "point.again": _point_again,
    "trial.proposed": _trial_proposed,
    "trial.leased": _trial_leased,
    "lease.expired": _lease_expired,
    "lease.held": _lease_held,
    "lease.released": _lease_released,
    "trial.reported": _trial_reported,
    "trial.stopped": _trial_stopped,
    "trial.completed": _trial_completed,
    "trial.paused": _trial_paused,
    "trial.failed": _trial_failed,
    "trial.pruned": _trial_pruned,
    "trial.imported": _trial_imported,
    "outcome.late": _outcome_late,
    "outcome.voided": _outcome_voided,
    "model.fitted": _model_fitted,
    "worker.revoked": _worker_revoked,
    "text.redacted": _nothing,
}
KNOWN = frozenset(_APPLY)
