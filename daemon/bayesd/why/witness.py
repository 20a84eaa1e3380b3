"""What a log says of one study, with the moments at which its suggestions were made.

A `Witness` sees the events in order and folds those of its study; a study depends on no other one.
At each seq that it was told to stop at it takes a `Moment`: what the optimiser knew then. It also
keeps what a state forgets and a page needs: when things happened, by whose hand, and the provenance
of the trials that are asked about. Pure: the events are handed in, from a file or from a daemon.
"""

import json
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from bayesd.study.asked import Frozen, Known, asked, freeze
from bayesd.study.fold import apply
from bayesd.study.problem import Fit, Observation, Problem
from bayesd.study.state import Data, Event, State, Study, Trial
from bayesd.study.texts import Words, ref_of
from bayesd_schemas.study import StudySpec

STEERING = frozenset(("study.created", "study.forked", "study.amended", "study.paused", "study.resumed",
                      "study.closed", "study.stopping", "study.confirming"))
ENDING = frozenset(("study.amended", "trial.completed", "trial.failed", "trial.pruned"))
DAEMON = frozenset(("daemon.started", "daemon.stopped", "engine.fingerprint", "log.opened"))


@dataclass(frozen=True, slots=True)
class Entry:
    """An event and when it happened."""

    event: Event
    time: str

    @property
    def seq(self) -> int:
        return self.event.seq

    @property
    def data(self) -> Data:
        return self.event.data

    @property
    def operator(self) -> str | None:
        """Who did it, if a person did."""
        kind, _, name = self.event.actor.partition("/")
        return name if kind == "operator" else None


def entry_of(event: Event, body: bytes) -> Entry:
    return Entry(event, json.loads(body)["time"])


@dataclass(frozen=True, slots=True)
class Moment:
    """A study as it stood after the event `seq` of the log."""

    seq: int
    time: str | None
    spec: StudySpec
    frozen: Frozen
    counts: dict[str, int]
    best: tuple[int, float] | None
    """Trial with the best observed value of the first objective, and that value."""
    values: dict[int, tuple[float, ...]]
    """Of the complete trials."""
    engine: Entry | None
    imported: int = 0
    """Trials that were measured elsewhere and are not void: no budget counts them."""

    @property
    def problem(self) -> Problem:
        """What the optimiser would have been asked, had nothing lain ready."""
        return self.frozen.problem

    @property
    def trials(self) -> int:
        """How many were proposed: the next one has the number after."""
        return self.frozen.trials

    @property
    def pending(self) -> tuple[int, ...]:
        return self.frozen.pending

    @property
    def history(self) -> tuple[Observation, ...]:
        return self.problem.history


@dataclass(slots=True)
class Witness:
    """See events in order with `see`, then call `end`."""

    name: str
    at: Collection[int] = ()
    """Take a moment after each of these events of the log."""
    trials: Collection[int] = ()
    """Keep the events of these trials."""
    beside: Collection[str] = ()
    """Earlier studies that help it: what they measured is needed, too, to make its models again."""
    state: State = field(default_factory=State)
    moments: dict[int, Moment] = field(default_factory=dict)
    steering: list[Entry] = field(default_factory=list)
    daemon: dict[str, Entry] = field(default_factory=dict)
    """The last event of each type about daemon and log."""
    kept: dict[int, list[Entry]] = field(default_factory=dict)
    fits: dict[int, Fit] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    """Of the trials that are asked about: what the study had drawn before."""
    enqueued: dict[int, Entry] = field(default_factory=dict)
    """Trial -> what put it into the queue."""
    last: dict[str, Entry] = field(default_factory=dict)
    """The last event of each type about the study."""
    ended_by: Entry | None = None
    """The last outcome or amendment before the study closed."""
    revoked: dict[str, Entry] = field(default_factory=dict)
    """Worker -> what revoked it."""
    words: Words = field(default_factory=Words)
    """Free text, which lies outside the events: whoever reads the log hands it in before a page is made."""
    seq: int = 0
    """The last event of the log, of whatever study."""
    time: str | None = None
    _known: dict[int, Known] = field(default_factory=dict)
    _due: deque[int] = field(default_factory=deque)
    _queue: list[tuple[dict[str, Any], Entry]] = field(default_factory=list)
    _again: list[tuple[int | None, Entry]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._due = deque(sorted(set(self.at)))

    @property
    def study(self) -> Study:
        return self.state.studies[self.name]

    @property
    def log(self) -> str:
        return self.state.log

    def see(self, event: Event, body: bytes) -> None:
        """Take the next event; those of other studies pass by."""
        while self._due and self._due[0] < event.seq:
            self._take(self._due.popleft())
        self.seq = event.seq
        if event.study in self.beside:
            apply(self.state, narrowed(event, self.name, self.beside))
            return
        if event.study not in (None, self.name):
            return
        if event.type == "trial.proposed" and event.trial is not None and event.trial in self.trials:
            self.drawn[event.trial] = self.study.drawn
        apply(self.state, narrowed(event, self.name, self.beside))
        entry = entry_of(event, body)
        self.time = entry.time
        if event.study is None:
            if event.type in DAEMON:
                self.daemon[event.type] = entry
            elif event.type == "worker.revoked":
                self.revoked[event.data["worker"]] = entry
            self.words.note(event.type, event.data)
            return
        self.last[event.type] = entry
        if event.type in ENDING and self.study.status != "closed":
            self.ended_by = entry
        if event.type in STEERING:
            self.steering.append(entry)
        if event.trial is not None and event.trial in self.trials:
            self.kept.setdefault(event.trial, []).append(entry)
        if event.type == "model.fitted" and self.study.fit is not None:
            self.fits[event.seq] = self.study.fit
            self._known[event.seq] = Known(self.study.fit, event.data["as_of"], self.name)
        self._follow_queue(entry)

    def pass_by(self, seq: int) -> None:
        """The log is seen up to here; what came since was about other studies."""
        while self._due and self._due[0] < seq:
            self._take(self._due.popleft())
        self.seq = max(self.seq, seq)

    def end(self) -> None:
        """No event comes any more."""
        while self._due:
            self._take(self._due.popleft())

    def _follow_queue(self, entry: Entry) -> None:
        """Who put a point into the queue, until it becomes a trial."""
        event = entry.event
        if event.type in ("study.created", "study.forked"):
            self._queue = [(dict(params), entry) for params in self.study.queue]
        elif event.type == "point.enqueued":
            self._queue.append((event.data["params"], entry))
        elif event.type == "study.amended" and event.data.get("queue") is not None:
            left, self._queue = self._queue, []
            for params in event.data["queue"]:
                i = next((i for i, (old, _) in enumerate(left) if old == params), None)
                self._queue.append(left.pop(i) if i is not None else (params, entry))
        elif event.type == "trial.proposed" and event.data["sampler"] == "enqueued" and self._queue:
            assert event.trial is not None
            self.enqueued[event.trial] = self._queue.pop(0)[1]
        elif event.type == "point.again":
            self._again += [(event.trial, entry)] * event.data["repeats"]
        elif event.type == "trial.proposed" and event.data["sampler"] == "again":
            found = next((each for each in self._again if each[0] == event.data["of"]), None)
            if found is not None and event.trial is not None:
                self._again.remove(found)
                self.enqueued[event.trial] = found[1]

    def _take(self, seq: int) -> None:
        study = self.state.studies.get(self.name)
        if study is not None:
            self.moments[seq] = moment(self.state, study, seq, self.time, self.daemon.get("engine.fingerprint"))

    # -------------------------------------------------------------- trials

    def trial(self, number: int) -> Trial:
        return self.study.trials[number - 1]

    def proposal(self, number: int) -> Entry:
        """Of a trial that was suggested here; a fork imports others."""
        return next(entry for entry in self.kept[number] if entry.event.type == "trial.proposed")

    def needed(self, number: int) -> set[int]:
        """The moments that its page needs."""
        trial = self.trial(number)
        return set() if trial.origin is not None else moments_for([self.proposal(number).data], [trial.outcome_seq])

    def said(self, entry: Entry) -> Data:
        """The data of an event with its free text in place."""
        return self.words.of(entry.data)

    def refs(self) -> list[str]:
        """References to every free text that a page may show."""
        kept = (entry for entries in self.kept.values() for entry in entries)
        found = (ref_of(entry.event.type, entry.data) for entry in (*self.last.values(), *self.revoked.values(), *kept))
        return sorted({ref for ref in found if ref is not None})

    def entry(self, number: int, seq: int) -> Entry | None:
        return next((entry for entry in self.kept.get(number, ()) if entry.seq == seq), None)

    def problem(self, number: int) -> Problem | None:
        """What the optimiser was asked when it proposed this trial, made again from the record."""
        proposed = self.proposal(number)
        then = self.moments.get(proposed.data["as_of"])
        return None if then is None else asked(then.frozen, self.study.trials, number, self.drawn[number],
                                               proposed.data, self._known, study=self.name)[0]


def moment(state: State, study: Study, seq: int, time: str | None, engine: Entry | None = None) -> Moment:
    best = study.best
    return Moment(
        seq, time, study.spec, freeze(study), dict(study.counts),
        (best.number, best.values[0]) if best is not None and best.values else None,
        {trial.number: trial.values for trial in study.trials if trial.status == "complete" and trial.values},
        engine, study.imported)


def narrowed(event: Event, study: str, beside: Collection[str] = ()) -> Event:
    """An event about a worker, without what it says of other studies."""
    if event.type != "run.began":
        return event
    names = {study, *beside}
    return event._replace(data={**event.data, **{key: [each for each in event.data[key] if each[0] in names]
                                                 for key in ("took", "ended")}})


def moments_for(proposals: Iterable[Data], outcomes: Iterable[int]) -> set[int]:
    """The events after which a page needs to know the study: what each suggestion was made from, and what was
    known before and after each outcome."""
    at = {data["as_of"] for data in proposals}
    for seq in outcomes:
        if seq:
            at |= {seq - 1, seq}
    return at
