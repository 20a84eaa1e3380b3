"""The service: the one writer, the owner of every task, of the clock and of the shutdown.

The way of one result:

1. `bus` hands over bytes; they become a `Tell`, or are answered and counted, never logged.
2. `rules.on_tell` decides on the newest state, uncommitted facts included.
3. The facts move the state at once and lie in the desk's tray, in order.
4. `_committer` gives the log what has gathered while the last commit ran: group commit.
5. Everything outward (receipt, grant, stop, reply, acknowledgement, public state) waits for its commit.
6. `_thinker` lets threads make suggestions on frozen problems while results go on being taken.
7. A proposal and its lease are written together at hand-out, committed, then granted.

Now and then the head of what is committed is signed and given away (`heads.py`). A head that comes
back and that this log has not made ends the service: there is another future of this log somewhere.

A commit that fails for want of space has a known outcome: the memory is thrown away, the log is
folded again, nothing is granted, and a write is tried every few seconds. Any other failure of a
commit ends the process, because nobody knows what is on disk: the next start reads it.

Clock, bus, log and the thread that thinks are handed in, so a seeded world runs this very file.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import orjson

from bayesd import reads, replay
from bayesd.bus import Ack, Bus
from bayesd.heads import Conflict, Heads, RolledBack, fences_from
from bayesd.log import DiskFull, Log, LogError, Snapshot
from bayesd.moments import NoMoment
from bayesd.notes import Checkpoint, Signer
from bayesd.optimize import suggest
from bayesd.past import Moment, Past
from bayesd.seals import RETRY_S, Seals, Unverified
from bayesd.study import admin, rules, snapshot, view
from bayesd.study.desk import Desk, Letter, Order, note_engine, restart
from bayesd.study.fork import Prefix
from bayesd.study.problem import Problem, Suggestion
from bayesd.study.row import Row
from bayesd.tally import Durations, Tally
from bayesd_schemas.messages import Ask, BadMessage, Request, decode, validate
from bayesd_schemas.names import is_name
from bayesd_schemas.sealed import STAMPED
from bayesd_schemas.topics import Origin, Topics

logger = logging.getLogger("bayesd")

Suggest = Callable[[Problem, int], Awaitable[Suggestion]]

BUCKETS_MAX = 10_000       # senders whose rate is remembered
JUMP_S = 5.0               # the wall clock moved by so much against the other one between two ticks
SLOW_MAX = 16              # reads under way that take time; more are refused
LOOKS_MAX = 4              # heads of workers that are held against the log at the same time, and of the broker
WAITING_MAX = 1000         # asks that wait for one such look
SIGNATURE_COST = 10.0      # tokens of a sender for a signature that must be verified: as much work as ten messages
SHED_WARN_S = 60.0         # who floods is named once in this time
RUN_COST = 100.0           # ... and for a beat that is written down: a new run is kept for ever, in log and memory


class Clock(Protocol):
    """Two clocks: `now` only ever moves forward and drives leases; `time` is for people."""

    def now(self) -> float: ...
    def time(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may change. Reloaded by SIGHUP."""

    root: str = ""
    operators: frozenset[str] | None = None
    events: bool = False
    """Publish committed events at study/{study}/events."""
    tick_s: float = 0.25
    state_s: float = 1.0
    """A study's public state is published at most this often."""
    deadline_s: float = 1.2
    """A suggestion slower than this, while somebody waits, is answered by a plainer sampler."""
    full_disk_retry_s: float = 5.0
    settle_s: float = 0.5
    """How long a starting daemon listens for another one on the same root; 0 with the embedded broker."""
    rate_per_s: float = 2000.0
    rate_burst: float = 10_000.0
    checkpoint_idle_s: float = 5.0
    snapshot_events: int = 20_000
    """A stop or start after so many events saves a snapshot."""
    note_events: int = 1000
    """The head is signed after so many events, ..."""
    note_s: float = 60.0
    """... after so long if there is news, and at the stop."""


class Twin(LogError):
    """Another daemon with another log serves this root: give one of them another --root."""

    exit_code = 75


@dataclass(slots=True)
class Counters:
    """What happened since the start; for people and for metrics, never for a decision."""

    received: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    shed: int = 0
    undeliverable: int = 0
    commits: int = 0
    events: int = 0
    suggestions: int = 0
    fallbacks: int = 0
    letters: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """What was sent: (kind, status, reason) -> how often. All three are words of the protocol."""
    append_s: Durations = field(default_factory=Durations)
    suggest_s: Durations = field(default_factory=Durations)
    fit_s: Durations = field(default_factory=Durations)
    """Of suggestions that fitted a model on the way."""
    lag_s: Durations = field(default_factory=Durations)
    """How late the loop came back to the ticker."""
    replay_s: float = 0.0
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class Outside:
    """What is known of a log's heads outside of its file when its daemon starts."""

    heads: Sequence[tuple[str, Sequence[str]]] = ()
    """Where, and the notes there, oldest first."""
    accept: str | None = None
    """An operator's reason to go on behind a head that is found before the daemon announces itself."""
    keep: Callable[[str], None] | None = None
    """Takes each note that is signed, in a thread; it may raise OSError."""
    forget: Callable[[], None] | None = None
    """Called when the log is right, or what was given up is on record."""
    save_key: Callable[[], None] | None = None
    """Called once, when the first start that writes is on record: the log has a name from then on."""


@dataclass(slots=True, eq=False)
class _Look:
    """A head that is being held against the log, and the asks that wait for it."""

    where: str
    note: str
    theirs: Checkpoint
    is_worker: bool
    then: list[Callable[[], None]]


@dataclass(slots=True)
class _Bucket:
    """Tokens of one sender: who floods is shed, and everybody else is served."""

    tokens: float
    at: float
    answered: float = -1e9
    warned: float = -1e9


async def in_thread(problem: Problem, count: int) -> Suggestion:
    """Think in a thread, so that results go on being taken meanwhile; points that need no thought take
    microseconds, less than the way to a thread and back. Under constraints many may be drawn for one."""
    if problem.method in ("random", "sobol") and not problem.constraints and not problem.judged:
        return suggest(problem, count)
    return await asyncio.to_thread(suggest, problem, count)


class Service:
    """One daemon life on one log and one bus. `await Service(...).run()` ends after `stop()`."""

    def __init__(self, log: Log, bus: Bus, clock: Clock, *, settings: Settings | None = None, version: str = "0",
                 suggest: Suggest = in_thread, plainly: Suggest = in_thread,
                 new_log: Callable[[], str] = lambda: "log", new_salt: Callable[[], bytes] | None = None,
                 fingerprint: dict[str, Any] | None = None, signer: Signer | None = None,
                 outside: Outside | None = None, seals: Seals | None = None) -> None:
        self.log = log
        self.bus = bus
        self.clock = clock
        self.settings = settings or Settings()
        self.topics = Topics(self.settings.root)
        self.version = version
        self.desk = Desk()
        self.counters = Counters()
        self.replayed = 0
        self.heads = Heads(log, signer) if signer is not None else None
        self._outside = outside or Outside()
        self.seals = seals or Seals()
        self._suggest = suggest
        self._plainly = plainly        # answers where `suggest` is too slow, or fails
        self._new_log = new_log
        self._new_salt = new_salt
        self._fingerprint = fingerprint
        self._committed = 0
        self._acks: deque[tuple[int, Ack]] = deque()
        self._work = asyncio.Event()
        self._think = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = False
        self._announced = False
        self._introduced = False
        self._announce_at: float | None = None
        self._published: dict[str, float] = {}
        self._cleared: set[str] = set()
        """Retained topics of ours that were emptied, by us or by somebody who may: said again at the next tick, so
        that two daemons on one root do not answer each other at the speed of the broker."""
        self._shown: deque[tuple[int, str, bytes]] = deque()
        self._buckets: dict[str, _Bucket] = {}
        self._checkpointed = 0.0
        self._cramped = False
        self._ticked = clock.now()
        self._committing: float | None = None
        self._drift: float | None = None
        self._conflict: LogError | None = None
        self._slow: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.reads: dict[str, Callable[[Request], Awaitable[Any]]] = {}
        """Further verbs, answered beside the service like those of `reads.py`."""
        self._past = Past()
        self._looks: set[asyncio.Task[None]] = set()
        """Heads that are being held against the log."""
        self._looking: list[_Look] = []
        self._note = asyncio.Event()
        self._signing = asyncio.Lock()
        self._given_up: list[Conflict] = []
        """Accepted and not yet on record."""
        self._repaired: str | None = None
        """The head that this life gave up, until the heads file has it."""
        self._kept = True

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Replay the log and note the start. After this the service is ready, broker or not."""
        await self._fold()
        if self.heads is not None:
            state = self.desk.state
            await self.heads.open(state.keys)
            for where, notes in self._outside.heads:
                conflicts = await self.heads.conflicts_in(where, notes, state)
                if conflicts and self._outside.accept is None:
                    raise RolledBack(max(conflicts, key=lambda each: each.theirs.size))    # before a word is written
                self._given_up += conflicts
        await self._start_writing()

    async def _fold(self) -> None:
        """Every restart is a replay: the only way to a state."""
        began = self.clock.now()
        state, self.replayed = await replay.fold(self.log)
        self.counters.replay_s = self.clock.now() - began
        self.desk = Desk(state, operators=self.settings.operators, new_salt=self._new_salt)
        self._committed = state.seq
        self._past.drop()
        self._shown.clear()            # what it shows was not written; `restart` has every study shown again
        self._touch_clock()
        restart(self.desk)

    async def _start_writing(self) -> None:
        """Note the start in the log. On a full disk reads are answered and this is tried again."""
        desk, state = self.desk, self.desk.state
        self._touch_clock()
        if not state.log:
            desk.record("log.opened", {"log": self._new_log(), "format": 1, "version": self.version})
        desk.record("daemon.started", {"epoch": self.log.epoch, "version": self.version,
                                       **({"key": self.heads.key} if self.heads is not None else {})})
        for conflict in self._given_up:
            self._record_repair(conflict)
        if self._fingerprint is not None:
            note_engine(desk, self._fingerprint)
        rows = desk.take_rows()
        try:
            await self.log.append(rows)
        except DiskFull as error:
            logger.error("%s", error, extra={"seq": self._committed})
            await self._fold()
            self.desk.disk_full = True
            # Answers given while it was tried rest on nothing that was lost: on a full disk nothing is decided.
            for letter in desk.committed(desk.state.seq):
                self.desk.send(letter.who, letter.kind, letter.body)
            self._work.set()
            return
        self._committed = rows[-1].seq
        self.counters.tally.add(rows)
        self._given_up = []
        if self._outside.save_key is not None:
            self._outside.save_key()
            self._outside = replace(self._outside, save_key=None)
        if self._outside.forget is not None:
            self._outside.forget()     # what was accepted is on record, and only now

    async def run(self) -> None:
        """Serve until `stop`. Raises what ended the service otherwise."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job, name=name) for name, job in (
                ("bus", self.bus.run(self.on_message, self.on_connect)), ("committer", self._committer()),
                ("thinker", self._thinker(group)), ("ticker", self._ticker()), ("noter", self._noter()))]
            await self._stopping.wait()
            await self._drain()
            for task in tasks:
                task.cancel()
        if self._conflict is not None:
            raise self._conflict

    def stop(self) -> None:
        """Begin a clean end: commit what is decided, say it, and go."""
        self._stopping.set()

    def reload(self, settings: Settings) -> None:
        """Take over settings that may change while running; the root may not."""
        self.settings = replace(settings, root=self.settings.root)
        self.desk.operators = settings.operators

    def is_healthy(self, within_s: float) -> bool:
        """The loop turns and no commit hangs: both were seen within this time."""
        now = self.clock.now()
        return now - self._ticked < within_s and (self._committing is None or now - self._committing < within_s)

    @property
    def committed(self) -> int:
        """The seq up to which the log is on disk."""
        return self._committed

    @property
    def committing_s(self) -> float:
        """How long the commit that is under way has taken."""
        return 0.0 if self._committing is None else self.clock.now() - self._committing

    @property
    def refused(self) -> LogError | None:
        """Why this log is not served any more: another future of it, or another daemon, was found."""
        return self._conflict

    @property
    def stopping(self) -> bool:
        return self._stopped or self._stopping.is_set()

    @property
    def announced(self) -> bool:
        """The broker has our word that we are online."""
        return self._announced

    @property
    def slow_reads(self) -> int:
        """Reads that take time and are under way."""
        return len(self._slow)

    def heard_within(self, seconds: float) -> set[str]:
        """Workers that sent something within this time."""
        since = self.clock.now() - seconds
        return {who for who, bucket in self._buckets.items() if bucket.at >= since} - self.desk.clients

    async def _drain(self) -> None:
        self._stopped = True           # nothing new is taken: what comes now is sent again to the next life
        for look in self._looks:
            look.cancel()
        desk = self.desk
        self._touch_clock()
        saved: Snapshot | None = None
        if not desk.disk_full and self._conflict is None:
            rules.on_stop(desk)
            saved = await self._snapshot()
            if desk is self.desk and self._conflict is None:    # else what was decided here never was
                desk.record("daemon.stopped", {"reason": "stop"} if saved is None
                            else {"reason": "stop", "snapshot": replay.told(saved)})
        self._work.set()
        # What is not committed when a conflict is known never is. What is being written is waited for.
        while not self.desk.disk_full and (  # noqa: ASYNC110  # ends with the committer
                self._committing is not None if self._conflict is not None
                else self._committed < self.desk.state.seq):
            await asyncio.sleep(0.005)        # the committer may fail meanwhile; this ends with it
        self._deliver()
        await self._sign_head()
        if self._announced:
            if self._conflict is None:        # else the state has what was not committed
                self._publish_states(all=True)
            self.bus.publish(self.topics.daemon, self.presence("offline"), retain=True)
        await self.bus.close(timeout_s=2.0)
        if saved is not None and not self.desk.disk_full:
            await self._save_snapshot(saved)

    async def _snapshot(self) -> Snapshot | None:
        """The state as bytes, when the next start would have much to fold."""
        if self.replayed + self.counters.events < self.settings.snapshot_events:
            return None
        state = self.desk.state
        digest, blob = await asyncio.to_thread(snapshot.dump, state)
        return Snapshot(state.seq, snapshot.CODEC, digest, blob)

    async def _save_snapshot(self, saved: Snapshot) -> None:
        try:
            await self.log.save_snapshot(saved.seq, saved.codec, saved.digest, saved.blob)
        except LogError as error:      # a cache: the log is whole without it
            logger.warning("the snapshot was not saved: %s", error, extra={"seq": saved.seq})

    def _touch_clock(self) -> None:
        self.desk.at(self.clock.now(), self.clock.time())

    # ------------------------------------------------------------ in

    def on_connect(self) -> None:
        """The broker may have lost everything that it was told to keep."""
        self._announced = False
        self._announce_at = self.clock.now() + self.settings.settle_s
        if self.settings.settle_s <= 0:
            self._announce()

    def _announce(self) -> None:
        if not self._introduced and self._outside.accept is not None and self._repaired is None:
            logger.warning("no head is ahead of this log, so nothing was given up: leave --accept-rollback out")
        self._announced = self._introduced = True
        self._announce_at = None
        self.bus.publish(self.topics.daemon, self.presence("online"), retain=True)
        self._publish_head()
        self._publish_states(all=True)

    def _announce_if_due(self, now: float) -> None:
        if self._announce_at is not None and now >= self._announce_at and self.bus.connected and not self._looks:
            self._announce()

    def presence(self, state: str) -> bytes:
        """The daemon's retained state; as `offline` it is also the last will."""
        return orjson.dumps({"state": state, "version": self.version, "log": self.desk.state.log,
                             "epoch": self.log.epoch,
                             **({"nonce": self.seals.nonce} if self.seals.nonce is not None else {})})

    def on_message(self, topic: str, payload: bytes, ack: Ack) -> None:
        """Take one message. It is acknowledged to the broker after the commit of what it caused."""
        if self._stopped:
            return
        origin = self.topics.parse(topic)
        if origin is None:
            self._on_retained(topic, payload)
            ack()
            return
        self.counters.received += 1
        if not self._introduced:           # perhaps another daemon's: its workers would believe what we answer
            ack()
            return
        if not is_name(origin.who):
            self._count("bad-name")        # there is no inbox to answer to
            ack()
            return
        self._touch_clock()
        before, letters = self.desk.state.seq, self.desk.letters
        if self._admit(origin.who, len(payload)):
            try:
                said, signed = self._open(topic, origin, payload) if self.seals.active else (payload, False)
                self._handle(origin.who, origin.kind, decode(origin.kind, said), signed)
            except Unverified as error:
                self._turn_away(origin.who, origin.kind, error)
            except BadMessage as error:
                self._refuse(origin.who, origin.kind, error)
                self._ask_inside(origin.who, error.ask, origin.who in self.seals.keys)
            if origin.kind == "beat" and self.desk.state.seq > before:
                self._buckets[origin.who].tokens -= RUN_COST
            # Who makes us write many answers pays for them, be it later.
            self._buckets[origin.who].tokens -= max(0, self.desk.letters - letters - 1)
        elif origin.kind != "request":
            self._shed(topic, origin, payload)
        if self.desk.state.seq == before:
            ack()
        else:
            self._acks.append((self.desk.state.seq, ack))
        self._work.set()
        self._think.set()

    def _open(self, topic: str, origin: Origin, payload: bytes) -> tuple[bytes, bool]:
        """What a payload says, and whether its sender's key signed it. Raises Unverified."""
        return self.seals.open(self.desk.state.log, topic[len(self.topics.prefix) + 1:], *origin, payload)

    def _turn_away(self, who: str, kind: str, error: Unverified) -> None:
        """Answer what may be anybody's: for people, and unsigned, so that it ends nothing for one who signs. A result
        is kept by its worker until it has the right key; an ask or beat ends a worker that has the wrong one."""
        self._count("unsigned")
        if error.id is None:
            return
        if kind == "request":
            body: dict[str, Any] = {"id": error.id, "status": "error",
                                    "error": {"code": error.reason, "message": error.detail}}
        else:
            body = {"id": error.id, "status": "rejected", "reason": error.reason, "detail": error.detail}
            if kind in ("tell", "report"):
                body["retry_after_s"] = RETRY_S
        self.bus.publish(self.topics.to(who, "reply" if kind == "request" else "receipt"), orjson.dumps(body))

    def _handle(self, who: str, kind: str, message: Any, signed: bool) -> None:
        desk = self.desk
        if signed and kind in STAMPED and not self._is_fresh(who, kind, message):
            return
        if kind == "request":
            if self.seals.required and not signed and message.verb in admin.WRITES:
                raise Unverified(f"this daemon takes changes from operators that sign only, and has no key for {who}: "
                                 f"`bayesd worker key {who}` makes one", message.id)
            if who in desk.state.workers:
                admin.fail(desk, who, message.id, admin.Refused(
                    "name-in-use", f"{who} is a worker; an operator needs a name of its own", "client"))
            elif message.verb in reads.SLOW or message.verb in self.reads or (
                    message.args.get("at") is not None and message.verb in _AT):
                self._later(who, message)
            else:
                admin.on_request(desk, who, message)
            return
        if who in desk.clients:
            raise BadMessage("bad-name", f"{who} is an operator; a worker needs a name of its own",
                             message.run if kind == "beat" else message.id, run=getattr(message, "run", None))
        if kind == "tell":
            if desk.disk_full:
                rules.reject(desk, who, message.id, "disk-full", "the log's disk is full; the result is not recorded")
            else:
                rules.on_tell(desk, who, message, "hmac" if signed else None)
            self._ask_inside(who, message.ask, signed)
        elif kind == "ask":
            self._on_ask(who, message)
        elif kind == "beat":
            if not desk.disk_full:
                rules.on_beat(desk, who, message)
        elif desk.disk_full:
            rules.reject(desk, who, message.id, "disk-full", "the log's disk is full; the report is not recorded")
        else:
            rules.on_report(desk, who, message)

    def _is_fresh(self, who: str, kind: str, message: Any) -> bool:
        """Whether a signed message is no copy of an old one; a stale one is lost, and its sender says it again."""
        source = message.id if kind == "request" else message.run
        if self.seals.is_fresh(who, source, message.nonce, message.count):
            return True
        self._count("stale")
        return False

    def _ask_inside(self, who: str, ask: Any, signed: bool) -> None:
        """An ask inside a tell is judged on its own, whatever became of the tell [9]."""
        if ask is None or who in self.desk.clients:
            return
        try:
            if not isinstance(ask, dict):
                raise BadMessage("bad-field", "ask: an ask is an object")
            inner = validate("ask", ask)
            if not signed or self._is_fresh(who, "ask", inner):
                self._on_ask(who, inner)
        except BadMessage as error:
            self._refuse(who, "ask", error)

    def _on_ask(self, who: str, ask: Ask) -> None:
        """Serve an ask, unless it shows a head that we do not know: then that is looked at first, since a grant
        of a log that went back may have the number and the fence of another one that this worker still trains."""
        heads = self.heads
        if heads is not None and ask.seen is not None and not heads.knows(ask.seen):
            self._buckets[who].tokens -= SIGNATURE_COST
            if self._look(f"worker {who}", ask.seen, lambda: self._on_ask_later(who, ask)):
                return
        rules.on_ask(self.desk, who, ask)

    def _on_ask_later(self, who: str, ask: Ask) -> None:
        self._touch_clock()
        try:
            rules.on_ask(self.desk, who, ask)
        except BadMessage as error:
            self._refuse(who, "ask", error)
        self._work.set()
        self._think.set()

    def _refuse(self, who: str, kind: str, error: BadMessage) -> None:
        self._count(error.reason)
        if error.id is None:
            return
        if kind == "request":
            admin.fail(self.desk, who, error.id, admin.Refused(error.reason, error.detail))
        else:
            rules.reject(self.desk, who, error.id, error.reason, error.detail, error.run)

    def _count(self, reason: str) -> None:
        self.counters.rejected[reason] = self.counters.rejected.get(reason, 0) + 1

    def _admit(self, who: str, size: int) -> bool:
        """Take tokens of the sender's bucket: one, and one more for each half KiB, since long messages cost time."""
        now, settings, cost = self.desk.now, self.settings, 1.0 + size // 512
        bucket = self._buckets.get(who)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:      # forget the oldest, most of them full again
                self._buckets = dict(sorted(self._buckets.items(), key=lambda one: one[1].at)[BUCKETS_MAX // 2:])
            bucket = self._buckets[who] = _Bucket(settings.rate_burst, now)
        bucket.tokens = min(settings.rate_burst, bucket.tokens + (now - bucket.at) * settings.rate_per_s)
        bucket.at = now
        if bucket.tokens < cost:
            return False
        bucket.tokens -= cost
        return True

    def _shed(self, topic: str, origin: Origin, payload: bytes) -> None:
        """Drop a flooder's message unread; say so once a second, since its sender will try again."""
        self.counters.shed += 1
        who = origin.who
        bucket = self._buckets[who]
        if self.desk.now - bucket.warned >= SHED_WARN_S:
            bucket.warned = self.desk.now
            logger.warning("%s sends more than it may, so some of it is dropped unread (%d messages of all senders "
                           "since the start). Look at that worker, or revoke it", who, self.counters.shed,
                           extra={"worker": who})
        if self.desk.now - bucket.answered >= 1.0:
            bucket.answered = self.desk.now
            try:
                message = decode(origin.kind, self._open(topic, origin, payload)[0])
            except BadMessage:
                return
            run = getattr(message, "run", None)
            rules.reject(self.desk, who, getattr(message, "id", None) or message.run, "rate",
                         "too many messages from this worker", run)

    def _on_retained(self, topic: str, payload: bytes) -> None:
        """Our own retained topics come back to us; those of another log are cleared or refused."""
        if not self.desk.state.log:
            return
        study = self.topics.study_of(topic)
        if not payload:
            if study is None or study in self.desk.state.studies:     # so there are never more than studies
                self._cleared.add(topic)
            return
        try:
            said = orjson.loads(payload)
        except orjson.JSONDecodeError:
            said = None
        log = said.get("log") if isinstance(said, dict) else None
        if topic == self.topics.daemon:
            online = isinstance(said, dict) and said.get("state") == "online"
            if self._announced and not online:
                # A last will came after our word: of our connection before this one, or of a daemon that was refused.
                self.bus.publish(topic, self.presence("online"), retain=True)
            elif not self._announced and online and log != self.desk.state.log:
                self._conflict = Twin(
                    f"another daemon (log {log}) serves {self.topics.prefix} on this broker. Stop it, or give one of "
                    "the two another --root")
                self._stopped = True       # at once: what follows is meant for the other
                self.stop()
            return
        if log == self.desk.state.log:
            note = said.get("note") if isinstance(said, dict) and topic == self.topics.head else None
            if self.heads is not None and isinstance(note, str) and not self.heads.knows(note):
                self._look("the broker", note)
            if study is not None and study not in self.desk.state.studies:
                self.bus.publish(topic, b"", retain=True)
            return
        if study is not None or topic == self.topics.head:
            self.bus.publish(topic, b"", retain=True)
        if study is not None and study in self.desk.state.studies:
            self.desk.touched[study] = None

    def _say_cleared_again(self) -> None:
        for topic in self._cleared:
            if topic == self.topics.daemon:
                self.bus.publish(topic, self.presence("online"), retain=True)
            elif topic == self.topics.head:
                self._publish_head()
            elif (study := self.topics.study_of(topic)) is not None and study in self.desk.state.studies:
                self.desk.touched[study] = None
        self._cleared.clear()

    # ------------------------------------------------------------ commit, then out

    async def _committer(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self.desk.disk_full or self._conflict is not None:
                self._deliver()
                continue
            rows = self.desk.take_rows()
            if rows:
                began = self._committing = self.clock.now()
                try:
                    await self.log.append(rows)
                except DiskFull as error:
                    await self._on_full_disk(error)
                    continue
                finally:
                    self._committing = None
                self._committed = rows[-1].seq
                self.counters.commits += 1
                self.counters.events += len(rows)
                self.counters.append_s.add(self.clock.now() - began)
                self.counters.tally.add(rows)
                if logger.isEnabledFor(logging.DEBUG):
                    _say_events(rows)
                if self.settings.events:
                    for row in rows:
                        if row.study is not None:
                            self.bus.publish(self.topics.events(row.study), cloud_event(row.seq, row.body), qos=0)
            self._deliver()
            if self.heads is not None and self.heads.is_due(self.clock.now(), self.settings.note_events, float("inf")):
                self._note.set()
            if self.log.checkpoint_due:
                self._committing = self.clock.now()     # what is decided meanwhile waits for it as for a commit
                try:
                    await self._tidy_log()
                finally:
                    self._committing = None

    async def _tidy_log(self) -> None:
        """Housekeeping of the log. What finds no space is tried again: every event is in the WAL, and a commit that
        finds none either says so itself."""
        try:
            await self.log.checkpoint()
        except DiskFull as error:
            if not self._cramped:
                logger.warning("%s; it is tried again", error, extra={"seq": self._committed})
            self._cramped = True
        else:
            self._cramped = False

    async def _on_full_disk(self, error: DiskFull) -> None:
        """Nothing was written: throw the memory away, fold again, grant nothing until a write succeeds."""
        logger.error("%s", error, extra={"seq": self._committed})
        self._acks.clear()             # never acknowledged: their senders have no receipt and try again
        await self._fold()
        self.desk.disk_full = True
        self._deliver()

    async def _retry_disk(self) -> None:
        """Try to write again; the first success ends the stand-still."""
        desk = self.desk
        await self._start_writing()    # nothing is decided meanwhile: a second failure would cut it out of the middle
        if desk is self.desk:          # not folded again
            desk.disk_full = False
            logger.warning("there is space again: the log goes on at event %d", self.desk.state.seq,
                           extra={"seq": self.desk.state.seq})
            self._think.set()

    def _deliver(self) -> None:
        """Send every letter whose facts are on disk, and acknowledge what caused them."""
        publish, to, keys = self.bus.publish, self.topics.to, self.seals.keys
        for letter in self.desk.committed(self._committed):
            if letter.kind == "grant" and self._conflict is not None:
                continue               # its number and fence may be out with other parameters
            text = encode(letter)
            if letter.who in keys:
                text = self.seals.seal(self.desk.state.log, f"to/{letter.who}/{letter.kind}", letter.who, text)
            if publish(to(letter.who, letter.kind), text):
                self._count_letter(letter)
            else:
                self.counters.undeliverable += 1        # the receipts make that safe: it is asked for again
        if self._conflict is None:
            self._show()
        acks = self._acks
        while acks and acks[0][0] <= self._committed:
            acks.popleft()[1]()

    def _count_letter(self, letter: Letter) -> None:
        body, sent = letter.body, self.counters.letters
        key = letter.kind, body.get("status", ""), body.get("reason", "") if letter.kind == "receipt" else ""
        sent[key] = sent.get(key, 0) + 1

    # ------------------------------------------------------------ thinking

    async def _thinker(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._think.wait()
            self._think.clear()
            if self._stopped or self.desk.disk_full:
                continue
            for order in rules.orders(self.desk):
                group.create_task(self._suggest_one(self.desk, order), name=f"suggest {order.study}")

    async def _suggest_one(self, desk: Desk, order: Order) -> None:
        began = self.clock.now()
        suggestion = await self._suggestion(order)
        took_s = self.clock.now() - began
        self.counters.suggest_s.add(took_s)
        if suggestion.fit is not None:
            self.counters.fit_s.add(took_s)
        self.counters.suggestions += len(suggestion.proposals)
        if desk is not self.desk or self._stopped:
            return                     # folded again meanwhile: what was asked for is history
        self._touch_clock()
        rules.supply(desk, order, suggestion)
        self._work.set()
        self._think.set()

    async def _suggestion(self, order: Order) -> Suggestion:
        """What the optimiser says. One study that upsets it is our bug and must not end the others: it is
        answered by a plainer sampler, with the reason on record."""
        try:
            return await self._suggest(order.problem, order.wanted)
        except Exception as error:
            logger.exception("the optimiser failed on %s; a random point answers. Please report this", order.study,
                             extra={"study": order.study, "trial": order.problem.number})
            self.counters.fallbacks += order.wanted
            plain = await self._plainly(replace(order.problem, method="random", judged=False), order.wanted)
            return replace(plain, proposals=tuple(
                replace(proposal, drawn=order.problem.drawn, fallback=f"error: {type(error).__name__}")
                for proposal in plain.proposals))

    async def _answer_overdue(self) -> None:
        desk = self.desk
        for order in rules.overdue(desk, self.settings.deadline_s):
            suggestion = await self._plainly(order.problem, order.wanted)
            if desk is not self.desk or self._stopped:
                return                 # folded again meanwhile
            self.counters.fallbacks += len(suggestion.proposals)
            rules.supply_fallback(desk, order, suggestion)

    # ------------------------------------------------------------ time

    async def _ticker(self) -> None:
        full_since: float | None = None
        while True:
            slept = self.clock.now()
            await asyncio.sleep(self.settings.tick_s)
            if self._stopped:
                return
            self._touch_clock()
            self.counters.lag_s.add(max(0.0, self.clock.now() - slept - self.settings.tick_s))
            now = self._ticked = self.clock.now()
            if self.desk.disk_full:
                full_since = now if full_since is None else full_since
                if now - full_since >= self.settings.full_disk_retry_s:
                    await self._retry_disk()
                    full_since = self.clock.now()      # a try folds the log again: that may outlast the pause
                if self.desk.state.log:        # reads are answered in a life that began on a full disk, too
                    self._announce_if_due(now)
                continue
            full_since = None
            self._note_jump(now)
            rules.on_tick(self.desk)
            await self._answer_overdue()
            if self._stopped or self.desk.disk_full:
                continue
            self._past.tidy(now)
            self._announce_if_due(now)
            if self._announced:
                self._say_cleared_again()
                self._publish_states()
                if self.seals.turn(now):
                    self.bus.publish(self.topics.daemon, self.presence("online"), retain=True)
            if now - self._checkpointed >= self.settings.checkpoint_idle_s and not self.desk.has_rows:
                self._checkpointed = now
                await self._tidy_log()
            if self.heads is not None and self.heads.is_due(now, self.settings.note_events, self.settings.note_s):
                self._note.set()
            self._work.set()
            self._think.set()

    def _note_jump(self, now: float) -> None:
        """Note when the wall clock moved against the other one. Nothing else follows from it."""
        drift = datetime.fromisoformat(self.clock.time()).timestamp() - now
        if self._drift is not None and abs(drift - self._drift) >= JUMP_S:
            self.desk.record("clock.jumped", {"by_s": round(drift - self._drift, 3)})
        self._drift = drift

    def _publish_states(self, *, all: bool = False) -> None:
        """Publish studies that changed, each at most once a second, behind the commit of what is shown: under
        load there is always something that is not on disk yet, so to wait for a quiet moment is to wait for ever."""
        desk = self.desk
        now = self.clock.now()
        for name in list(desk.state.studies) if all else list(desk.touched):
            study = desk.state.studies[name]
            if all or now - self._published.get(name, -1e9) >= self.settings.state_s:
                self._published[name] = now
                desk.touched.pop(name, None)
                self._shown.append((desk.state.seq, self.topics.study(name), orjson.dumps(
                    view.study_state(desk.state, study, desk.elapsed(study)), option=orjson.OPT_NON_STR_KEYS)))
        self._show()

    def _show(self) -> None:
        """Publish the states that are on disk by now."""
        while self._shown and self._shown[0][0] <= self._committed:
            _, topic, payload = self._shown.popleft()
            self.bus.publish(topic, payload, retain=True)

    # ------------------------------------------------------------ heads

    async def _noter(self) -> None:
        while True:
            await self._note.wait()
            self._note.clear()
            await self._sign_head()

    async def _sign_head(self) -> None:
        """Sign what is committed: save it, then say it. Not before we have listened: what the broker keeps
        of an earlier life is the witness against this one."""
        heads = self.heads
        if heads is None or not self._introduced or self._conflict is not None or self.desk.disk_full:
            return
        async with self._signing:
            try:
                note = await heads.sign(self.clock.now(), self.desk.state.repairs)
            except DiskFull as error:
                # The next commit fails as well.
                logger.warning("the head is not signed: %s", error, extra={"seq": self._committed})
                return
            if note is None:
                return
            self._publish_head()
            if self._outside.keep is not None:
                if self._repaired is not None:      # what follows it in the file is of the log that goes on
                    await self._keep(self._outside.keep, self._repaired)
                    self._repaired = None
                await self._keep(self._outside.keep, note)

    def _publish_head(self) -> None:
        heads = self.heads
        if heads is not None and heads.latest is not None and self._announced:
            self.bus.publish(self.topics.head, orjson.dumps(
                {"log": self.desk.state.log, "epoch": self.log.epoch, "note": heads.latest, "key": heads.key}),
                retain=True)

    async def _keep(self, keep: Callable[[str], None], note: str) -> None:
        """Write a note to the heads file. A disk that is away must not end the daemon; it is said once."""
        try:
            await asyncio.to_thread(keep, note)
        except OSError as error:
            if self._kept:
                logger.error("the heads file cannot be written: %s; the daemon goes on", error,
                             extra={"seq": self._committed})
            self._kept = False
        else:
            self._kept = True

    def _look(self, where: str, note: str, then: Callable[[], None] | None = None) -> bool:
        """Hold a head against the log, then do what waits for it. False when there is nothing to look at.

        Each look reads all hashes, and one note has endless spellings: so looks at the same head are one, a worker has
        one at a time, and all have a few. What is beyond is not looked at.
        """
        assert self.heads is not None
        theirs = self.heads.read(note)
        if theirs is None:
            return False
        for look in self._looking:
            if look.theirs == theirs:
                if then is not None and len(look.then) < WAITING_MAX:
                    look.then.append(then)
                    return True
                return then is None
        is_worker = then is not None
        alike = [look for look in self._looking if look.is_worker == is_worker]
        if len(alike) >= LOOKS_MAX or (is_worker and any(look.where == where for look in alike)):
            return False
        look = _Look(where, note, theirs, is_worker, [] if then is None else [then])
        self._looking.append(look)
        task = asyncio.create_task(self._ending(self._look_at(self.heads, look)), name=f"head of {where}")
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)
        return True

    async def _look_at(self, heads: Heads, look: "_Look") -> None:
        try:
            conflict = await heads.conflict(look.where, look.note, look.theirs, self.desk.state)
        finally:
            self._looking.remove(look)
        if self._stopped:
            return
        if conflict is None:
            for then in look.then:
                then()
        elif self._outside.accept is not None and not self._introduced:
            self._accept(conflict)
        else:
            self._end(RolledBack(conflict))

    async def _ending(self, look: Coroutine[Any, Any, None]) -> None:
        """Whatever the log says of a head that it cannot look at ends the service, as it would at a commit."""
        try:
            await look
        except LogError as error:
            self._end(error)

    def _end(self, why: LogError) -> None:
        self._conflict = self._conflict or why
        self._stopped = True           # at once: nothing more is granted
        self.stop()

    def _accept(self, conflict: Conflict) -> None:
        if self.desk.disk_full:
            self._given_up.append(conflict)    # goes on record when there is space again
        else:
            self._record_repair(conflict)
            self._work.set()

    def _record_repair(self, conflict: Conflict) -> None:
        desk, heads, base = self.desk, self.heads, 0
        assert heads is not None
        reason, repairs = self._outside.accept or "accepted", desk.state.repairs
        if heads.excuses(conflict.theirs, desk.state):
            return                     # by what was accepted a moment ago
        # Once more if the branch would have the name of the one that is given up, as when a copy is put back twice.
        while not base or repairs[-1].seq == conflict.theirs.branch:
            base = fences_from(conflict, desk.state, desk.time)
            desk.record("log.repaired", {
                "reason": reason, "accepted": conflict.note, "size": conflict.theirs.size, "fences_from": base,
                "shared": conflict.shared, "signature": heads.sign_repair(conflict, desk.state.hash.hex(), base)})
        logger.warning("%s has a head of %d events, the log has %d: what is lost is given up, fences go on from %d",
                       conflict.where, conflict.theirs.size, conflict.ours.size, desk.state.fence_base,
                       extra={"seq": desk.state.seq, "fence": desk.state.fence_base})
        self._repaired = conflict.note

    # ------------------------------------------------------------ reads that take time

    def _later(self, client: str, request: Request) -> None:
        key = (client, request.id)
        if key in self._slow:
            return                     # a copy, and the answer is on its way
        if len(self._slow) >= SLOW_MAX:
            admin.fail(self.desk, client, request.id, admin.Refused(
                "rate", f"{SLOW_MAX} requests that take time are under way; ask again in a second"))
            return
        task = asyncio.create_task(self._answer_later(client, request), name=f"{request.verb} for {client}")
        self._slow[key] = task
        task.add_done_callback(lambda _: self._slow.pop(key, None))

    async def _answer_later(self, client: str, request: Request) -> None:
        desk = self.desk
        desk.heard(client)
        try:
            if request.verb in admin.WRITES and not admin.may_write(desk, client, request):
                self._work.set()
                return
            moment = await self._moment(request)
            if request.verb in admin.WRITES:
                assert moment is not None
                taken = await asyncio.to_thread(admin.fork_prefix, desk, request, moment.state)
                self._write_of_past(client, request, moment, taken)
                return
            if request.verb in self.reads:
                result = await self.reads[request.verb](request)
            elif request.verb in reads.SLOW:
                result = await reads.SLOW[request.verb](
                    reads.Reading(self.log, self.desk, self._committed, moment), request)
            else:
                assert moment is not None
                result = admin.READS[request.verb](Desk(moment.state), client, request)[1]
            if moment is not None:
                result = {**result, "at": moment.words}
        except admin.Refused as refused:
            admin.fail(desk, client, request.id, refused)
        except NoMoment as error:
            admin.fail(desk, client, request.id, admin.Refused("bad-field", str(error), "at"))
        except LogError as error:        # what it reads is damaged or gone: the next commit says the same and ends us
            admin.fail(desk, client, request.id, admin.Refused("log", str(error)))
        except Exception:
            logger.exception("%s for %s failed; please report this", request.verb, client, extra={
                name: request.args[name] for name in ("study", "trial", "worker") if name in request.args})
            admin.fail(desk, client, request.id, admin.Refused("bug", "the daemon failed at this; its log says where"))
        else:
            admin.reply(desk, client, request.id, "ok", result)
        self._work.set()

    async def _moment(self, request: Request) -> Moment | None:
        """The moment that a request asks about; None: now."""
        at = request.args.get("at")
        if at is None:
            return None
        return await self._past.at(self.log, at, self._committed, self.clock.now(), self.clock.time())

    def _write_of_past(self, client: str, request: Request, moment: Moment, taken: Prefix) -> None:
        """Do a write that begins at a moment of the past, on the newest state."""
        if self._stopped:
            return                     # no answer: it is asked again in the next life
        self._touch_clock()
        admin.on_request(self.desk, client, request, partial(admin.study_fork, past=moment.state, taken=taken))
        self._work.set()
        self._think.set()


_AT = frozenset((*admin.READS, "study.fork"))      # verbs that may also ask about an earlier moment


def _say_events(rows: Sequence[Row]) -> None:
    """Each committed event as a line, for who looks for what happened to a trial."""
    for row in rows:
        data = orjson.loads(row.body)["data"]
        logger.debug("%s by %s", row.type, row.actor, extra={
            "seq": row.seq, "study": row.study, "trial": row.trial, "fence": data.get("fence"),
            "worker": data.get("worker") or (row.actor[7:] if row.actor.startswith("worker/") else None)})


# ---------------------------------------------------------------- what goes out, as bytes


def encode(letter: Letter) -> bytes:
    return orjson.dumps(letter.body)


def cloud_event(seq: int, body: bytes) -> bytes:
    """A committed event as CloudEvents 1.0 structured JSON."""
    envelope = orjson.loads(body)
    subject = envelope["study"] + (f"/{envelope['trial']}" if "trial" in envelope else "")
    return orjson.dumps({
        "specversion": "1.0", "id": str(seq), "source": f"/bayesd/{envelope['log']}",
        "type": f"org.bayesd.{envelope['type']}.v{envelope['tv']}", "subject": subject, "time": envelope["time"],
        "datacontenttype": "application/json", "data": orjson.Fragment(body)})
