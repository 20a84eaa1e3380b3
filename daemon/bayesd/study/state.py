"""The state of a log: a pure fold over its events.

    state = State();  for event in log: apply(state, event)

Two rules keep everything else simple, and all code that could break them is in this file and in `fold/`, which has a
handler for each type of event.

1. **State is the fold and nothing else.** Every fact here came from an event; what did not (who
   asked, when a lease runs out, which candidates lie ready) is memory, in `desk.py`, and may be
   lost at any moment. So every restart is a replay, and a replay equals the life it replays.
2. **`apply` is total.** It accepts every event ever logged, in log order, and never refuses:
   refusing is the business of `rules/`, before the event exists. It reads no clock and draws
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

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from bayesd.study import limits
from bayesd.study.board import Board
from bayesd.study.ladder import Ladder, Rung
from bayesd.study.problem import Fit, Observation
from bayesd_schemas.space import Params
from bayesd_schemas.study import Objective, StudySpec

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
                if may_lead(trial) and is_better(self, trial, best):
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


def may_lead(trial: Trial) -> bool:
    return trial.status == "complete" and trial.values is not None and trial.of is None and limits.keeps(trial)


def is_better(study: Study, a: Trial, b: Trial | None) -> bool:
    if b is None:
        return True
    assert a.values is not None
    assert b.values is not None
    if study.goals[0].direction == "minimize":
        return a.values[0] < b.values[0]
    return a.values[0] > b.values[0]
