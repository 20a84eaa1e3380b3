"""Every event of the log, as it lies in the file.

An event's shape is a promise: a new field has a default, a new meaning gets a new type, what neither can
express gets a step in `upcast.py`, and old logs stay readable for ever. The daemon writes plain dictionaries on
its hot path; a test and every simulated world hold them against these models.

Canonical JSON (RFC 8785) writes 1.0 as 1, so numbers that are floats by meaning may read as ints.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bayesd_schemas.names import Count, Id, Name, Run
from bayesd_schemas.space import Value
from bayesd_schemas.study import MetricName, PruneRule, StudySpec
from bayesd_schemas.upcast import upcast
from bayesd_schemas.warm import Row

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="Of the message's known fields")]
Number = Annotated[float, Field(allow_inf_nan=False)]
LeaseKey = tuple[Name, Count, Count]
Params = dict[str, Value]
Values = dict[str, Number | None]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LogOpened(_Data):
    log: str
    format: int
    version: str


class LogRepaired(_Data):
    reason: str = Field(description="The operator's words")
    accepted: str = Field(description="The signed head, word for word, that the log is behind or apart from")
    size: Annotated[int, Field(ge=0)] = Field(description="How many events that head has")
    fences_from: Count = Field(description="New leases get fences above it")
    shared: Annotated[int, Field(ge=0)] = Field(0, description="The newest event that both histories are known to have")
    signature: str | None = Field(None, description="By the log's key, over what goes on and what is given up; without "
                                                    "it nothing is excused")


class DaemonStarted(_Data):
    epoch: Count
    version: str
    key: str | None = Field(None, description="The public key that signs the log's heads, as a C2SP verifier key")


class StateDigest(_Data):
    seq: Count
    codec: str
    digest: Hex64


class DaemonStopped(_Data):
    reason: str
    snapshot: StateDigest | None = Field(None, description="The state after event `seq`; a start believes no other")


class EngineFingerprint(_Data):
    fingerprint: Hex64
    engine: dict[str, Any]


class ClockJumped(_Data):
    by_s: Number


class StudyCreated(_Data):
    spec: StudySpec
    order: list[str] | None = Field(None, description="The parameters in the order of the file: canonical JSON sorts")


class StudyOrigin(_Data):
    study: Name
    at: Count = Field(description="The seq of the last event that the fork has in common with it")
    hash: Hex64 = Field(description="Of that event: it pins everything before")


class StudyForked(_Data):
    spec: StudySpec
    order: list[str] | None = None
    origin: StudyOrigin
    drawn: Annotated[int, Field(ge=0)] = Field(0, description="Points of the sampler's sequence that are passed over")
    streams: Annotated[int, Field(ge=0)] = Field(
        0, description="How far names of random streams are ahead of trial numbers, so that none is used again")
    queue: list[Params] | None = Field(None, description="Points enqueued by hand and not handed out by then")


class StudyWarmed(_Data):
    """An earlier study is to help; its results are those of its events up to `at`, less what is void."""

    source: Name
    at: Count = Field(description="The seq of the last event that counts")
    hash: Hex64 = Field(description="Of that event: it pins everything before")
    n: Annotated[int, Field(ge=0)] = Field(description="Results that the space has a place for")
    log: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="Of a study of another log: its id; `at` and `hash` are of that log")
    rows: list[Row] | None = Field(None, description="Of a study of another log: what it measured")


class StudyAmended(_Data):
    spec: StudySpec
    order: list[str] | None = None
    space_rev: Count
    queue: list[Params] | None = Field(None, description="Enqueued points that space and constraints still allow")
    elapsed_s: Number


class StudyPaused(_Data):
    elapsed_s: Number


class StudyResumed(_Data):
    elapsed_s: Number


class StudyTicked(_Data):
    elapsed_s: Number = Field(description="Open, unpaused seconds while a daemon lived")


class StudyClosed(_Data):
    rule: Literal["trials", "wall", "cost", "fidelity", "exhausted", "operator", "target", "patience", "improvement",
                  "regret", "converged"]
    running: Literal["finish", "stop"]
    elapsed_s: Number


class StudyStopping(_Data):
    """A stop rule fired: nothing new is handed out, and the study closes by it when every trial has its outcome."""

    rule: Literal["target", "patience", "improvement", "regret", "converged"]
    numbers: dict[str, Number] = Field(description="What the rule saw, and against what it was held")
    as_of: Annotated[int, Field(ge=0)] = Field(description="The seq of the state that it was judged on")
    elapsed_s: Number


class StudyConfirming(_Data):
    trials: Annotated[list[Count], Field(min_length=1)] = Field(description="The leaders, best first")
    repeats: Count = Field(description="How often each is measured again")
    elapsed_s: Number


class Confirmed(_Data):
    """A leader, and what was measured of it again."""

    trial: Count
    value: Number = Field(description="What had made it a leader")
    repeats: list[Count] = Field(description="The trials that measured it again")
    measured: Annotated[int, Field(ge=0)] = Field(description="Of those, the complete ones")
    mean: Number | None = Field(None, description="Of the complete repeats; the first value does not count")
    elsewhere: bool = Field(description="A worker that had not measured it before measured it again")
    broken: list[MetricName] | None = Field(None, description="Limits that it breaks by the mean of its repeats, so "
                                                              "that it cannot win")


class StudyWinner(_Data):
    trial: Count | None
    confirmed: bool = Field(description="False: no repeat is complete, and the trial is the one that led before")
    leaders: list[Confirmed]


class RunBegan(_Data):
    worker: Name
    run: Run
    took: list[LeaseKey] = Field(description="Leases of an earlier run that are this run's from now on")
    ended: list[LeaseKey] = Field(description="Leases of this worker's earlier runs that ended")


class PointEnqueued(_Data):
    params: Params


class PointAgain(_Data):
    """Somebody wants the point of this trial measured again."""

    repeats: Count


class TrialProposed(_Data):
    params: Params
    space_rev: Count
    sampler: Literal["grid", "random", "sobol", "bayes", "enqueued", "confirm", "again"]
    of: Count | None = Field(None, description="Of samplers confirm and again: the trial whose point is measured again")
    drawn: Annotated[int, Field(ge=0)]
    as_of: Annotated[int, Field(ge=0)] = Field(description="The seq of the state that it was made from")
    stream: str | None = Field(None, description="Key of the random stream: seed, trial number, purpose")
    pending: list[Count] | None = Field(None, description="Trials without an outcome that it took into account")
    ahead: list[Params] | None = Field(None, description="Candidates that lay before it, by value")
    fit: Annotated[int, Field(ge=0)] | None = Field(None, description="Seq of the model.fitted that it used; 0: none")
    age_s: Number | None = None
    acquisition: Number | None = None
    gap: Number | None = None
    mean: Number | None = None
    sd: Number | None = None
    means: list[Number] | None = Field(None, description="Of two to four objectives: what the models expect of each")
    sds: list[Number] | None = None
    index: Annotated[int, Field(ge=0)] | None = Field(None, description="Which of the ranked candidates it was")
    number: Count | None = Field(None, description="The trial that it was made for, if it became a later one")
    after: Annotated[int, Field(ge=0)] | None = Field(
        None, description="`drawn` before it, if not that of the trial before")
    engine: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = Field(
        None, description="How the fingerprint of what computed it begins")
    fallback: str | None = Field(None, description="Why a plainer sampler answered")
    sources: dict[Name, Number] | None = Field(None, description="What earlier studies weighed in the model; of a "
                                                                 "point of theirs that is tried first, 1")
    prior: Number | None = Field(None, description="What the prior weighed: the factor of its log density in the "
                                                   "acquisition; of a point drawn from it, how far it was trusted")
    power: Number | None = Field(None, description="The power of the expected cost that improvement was divided by")
    cost: Number | None = Field(None, description="What it was expected to take, in the unit of the study's [cost]")


class TrialLeased(_Data):
    fence: Count
    worker: Name
    run: Run
    ask: Id
    lease_s: Annotated[float, Field(gt=0)]
    at: str
    elapsed_s: Number
    fidelity: Count | None = Field(None, description="Of trials that pause at rungs: it trains up to this one; None: "
                                                     "the whole of it")


class LeaseExpired(_Data):
    fence: Count
    reason: Literal["expired", "cancelled", "closed", "superseded"] = "expired"
    elapsed_s: Number | None = None


class LeaseHeld(_Data):
    fence: Count
    run: Run
    at: str


class LeaseReleased(_Data):
    fence: Count
    message: Digest
    elapsed_s: Number | None = None


class TrialReported(_Data):
    fence: Count
    step: Annotated[int, Field(ge=0)]
    values: Values


class TrialStopped(_Data):
    """The pruning rule stopped a trial at a report; the worker is told, and tells `pruned`."""

    fence: Count
    step: Annotated[int, Field(ge=0)]
    rule: PruneRule
    by: Literal["dominance"] | None = Field(None, description="All objectives were compared at once")
    metric: MetricName | None = Field(None, description="What was compared")
    value: Number | None = Field(None, description="What counted of this trial; None is no number")
    values: Values | None = Field(None, description="By dominance: the same of all objectives")
    dominated: Annotated[int, Field(ge=0)] | None = Field(
        None, description="By dominance, not of curve: how many of the others dominate it")
    ahead: Annotated[int, Field(ge=0)] | None = Field(
        None, description="By dominance, of asha and hyperband: how many of the rung were before it")
    threshold: Number | None = Field(None, description="What it was behind")
    compared: Annotated[int, Field(ge=0)] = Field(
        description="With how many values; of a rung the trial's own is one of them")
    rung: Count | None = Field(None, description="Of asha and hyperband: the fidelity at which it was judged")
    bracket: Annotated[int, Field(ge=0)] | None = Field(None, description="Of hyperband: its first rung, from 0")
    kept: Count | None = Field(None, description="Of asha and hyperband: how many of the rung may go on")
    against: Count | None = Field(None, description="Of race and curve: the trial that it was held against")
    paired: bool | None = Field(None, description="Of race: fold by fold, or against the mean of all folds")
    beside: list[Count] | None = Field(None, description="Of race: the trials whose mean it was compared with by fold")
    folds: Count | None = Field(None, description="Of race: how many folds it had")
    difference: Number | None = Field(None, description="Of race: by how much it was worse on average")
    chance: Number | None = Field(None, description="Of race: that all folds would make it the better one; of curve: "
                                  "that it would have ended better, by dominance in anything")
    bound: Number | None = Field(None, description="Of race and curve: the least chance with which it would have gone "
                                 "on")
    expected: Number | None = Field(None, description="Of curve: where its own led, in the median")
    low: Number | None = Field(None, description="Of curve: the end of it is above this with a chance of 95 %")
    high: Number | None = Field(None, description="Of curve: the end of it is below this with a chance of 95 %")
    horizon: Annotated[int, Field(ge=0)] | None = Field(None, description="Of curve: the last step")


class _Outcome(_Data):
    fence: Count
    message: Digest | None = None
    values: Values | None = None
    se: Number | None = Field(None, description="Standard error of the first value, from folds")
    folds: list[Number | None] | dict[str, list[Number | None]] | None = Field(
        None, description="The values of all folds; of several metrics, by name")
    seconds: Number | None = None
    cost: Number | None = None
    error: str | None = Field(None, description="The daemon's own words; in earlier logs free text, too")
    error_ref: Hex64 | None = Field(None, description="SHA-256 of salt and free text, which lie outside the body")
    failure: Annotated[str | None, Field(alias="class")] = None
    promoted: Count | None = Field(None, description="The seq of the late outcome that became the result")
    ended: Literal["cancelled"] | None = None
    elapsed_s: Number | None = None
    auth: Literal["hmac"] | None = Field(None, description="The worker's key signed the message; else the broker alone "
                                                           "says who sent it")
    checkpoint: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="The worker's name for what it has trained so far")


class TrialCompleted(_Outcome):
    values: Values


class TrialPaused(_Outcome):
    """A rung is told: the trial goes on from there, or ends as pruned."""

    values: Values
    fidelity: Count = Field(description="The rung")


class TrialFailed(_Outcome):
    failure: Annotated[
        Literal["crash", "timeout", "oom", "nonfinite", "other", "lost", "cancelled"], Field(alias="class")]
    retry: bool = Field(False, description="The attempt failed; the trial is offered again")


class Estimate(_Data):
    """What the folds that were measured say of the value that all of them would have had."""

    values: Values
    se: Number | None = Field(None, description="Standard error of the first value")
    folds: Count = Field(description="How many were measured")
    against: Count | None = Field(None, description="The trial whose values say how hard these folds are")


class TrialPruned(_Outcome):
    estimate: Estimate | None = Field(None, description="What is learned in place of the last report's value")
    learn: Literal[False] | None = Field(None, description="False: its value was learned when it came late, or when "
                                                           "the trial paused")
    rule: PruneRule | None = Field(None, description="Of a paused trial: the rule that did not let it go on")
    rung: Count | None = Field(None, description="Of a paused trial: where it had paused")


class TrialOrigin(_Data):
    study: Annotated[str, Field(max_length=200)]
    trial: Annotated[int, Field(ge=0)]


class TrialImported(_Data):
    """A result that was measured elsewhere. With the number of a trial that was imported before, it is one more
    observation of that point."""

    params: Params
    values: Values | None = Field(None, description="None: a failure")
    state: Literal["complete", "fail", "pruned"] | None = Field(None, description="Default: complete with values")
    se: Number | None = None
    seconds: Number | None = None
    spent: Number | None = Field(None, description="What the model of costs learned of it")
    failure: Annotated[str | None, Field(alias="class")] = None
    result: bool = Field(False, description="Of a point that was imported before: this is the trial's outcome, and "
                                            "what came before it was a late one")
    fidelity: Number | None = Field(None, description="The share of the training that values were measured after, "
                                                      "when that was not all of it")
    curve: list[tuple[Number, Number]] | None = Field(None, description="(Share, value) at the rungs reached")
    origin: TrialOrigin


class OutcomeLate(_Outcome):
    state: Literal["complete", "fail", "pruned"]
    learn: Literal[False] | None = Field(None, description="False: the value of a failure, or of a "
                                                           "part of the training: nothing to learn")


class OutcomeVoided(_Data):
    reason: str | None = None
    reason_ref: Hex64 | None = None


class ModelFitted(_Data):
    model: str
    n: Annotated[int, Field(ge=0)]
    theta: list[Number]
    as_of: Annotated[int, Field(ge=0)]
    number: Count | None = Field(None, description="The trial that was to be suggested: it draws a trade-off")


class WorkerRevoked(_Data):
    worker: Name
    reason: str | None = None
    reason_ref: Hex64 | None = None


class TextRedacted(_Data):
    refs: Annotated[list[Hex64], Field(min_length=1)]
    reason: str


EVENTS: dict[str, type[_Data]] = {
    "log.opened": LogOpened, "log.repaired": LogRepaired,
    "daemon.started": DaemonStarted, "daemon.stopped": DaemonStopped,
    "engine.fingerprint": EngineFingerprint, "clock.jumped": ClockJumped,
    "study.created": StudyCreated, "study.forked": StudyForked, "study.warmed": StudyWarmed,
    "study.amended": StudyAmended,
    "study.paused": StudyPaused, "study.resumed": StudyResumed, "study.ticked": StudyTicked,
    "study.closed": StudyClosed, "study.stopping": StudyStopping, "study.confirming": StudyConfirming,
    "study.winner": StudyWinner,
    "run.began": RunBegan, "point.enqueued": PointEnqueued, "point.again": PointAgain, "trial.proposed": TrialProposed,
    "trial.leased": TrialLeased, "lease.expired": LeaseExpired, "lease.held": LeaseHeld,
    "lease.released": LeaseReleased, "trial.reported": TrialReported, "trial.stopped": TrialStopped,
    "trial.completed": TrialCompleted, "trial.paused": TrialPaused,
    "trial.failed": TrialFailed, "trial.pruned": TrialPruned, "trial.imported": TrialImported,
    "outcome.late": OutcomeLate, "outcome.voided": OutcomeVoided, "model.fitted": ModelFitted,
    "worker.revoked": WorkerRevoked, "text.redacted": TextRedacted,
}
"""Event type -> the model of its data."""

Actor = Annotated[str, Field(pattern=r"^(daemon|(worker|operator)/[a-z0-9][a-z0-9._-]{0,63})$")]


class Envelope(BaseModel):
    """What every event has, around its data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1]
    tv: Annotated[int, Field(ge=1, description="Version of this type's data")]
    seq: Count
    log: Annotated[str, Field(min_length=1, max_length=64)]
    epoch: Count
    type: str
    crit: bool = Field(description="A reader that does not know the type must stop")
    time: Annotated[str, Field(description="UTC, for people; it never drives state")]
    actor: Actor
    study: Name | None = None
    trial: Count | None = None
    cmd: Id | None = Field(None, description="The sender's id of the message that caused it")
    data: dict[str, Any]
    prev: Annotated[Hex64, Field(description="Hash of the event before it; zeros at the first")]


_adapters: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(model) for name, model in EVENTS.items()}


def validate(envelope: dict[str, Any]) -> Envelope:
    """Hold an event, of any version, against its model. Raises pydantic.ValidationError, or KeyError for an
    unknown type."""
    checked = Envelope.model_validate(envelope)
    _adapters[checked.type].validate_python(upcast(checked.type, checked.tv, checked.data))
    return checked
