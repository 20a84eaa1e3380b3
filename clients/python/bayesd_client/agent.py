"""What a worker says and when: the worker's side of the wire contract, as plain calls.

The agent decides which messages to send, which trials to start and which to end, and when the
worker may leave. It refuses to know how messages travel, how training is done, what time it is
or where files are: every call gets `now` (seconds on any steady clock) and returns the effects
to carry out, in order. So a test is a list of calls, and a simulation can drive a thousand of
them by one seed.

    agent = Agent(Settings(run="4f2a", study="digits-svm"), MemorySpool(), random.Random(1))
    effects = agent.begin(now) + agent.connected(now)

Everything may arrive twice, late, never, in any order; every `received` call survives that.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from bayesd_client.kept import Key, SavedGrant, SavedHead, SavedTell, Spool
from bayesd_schemas.messages import (
    ERROR_MAX,
    DaemonState,
    Fidelity,
    Grant,
    Head,
    Receipt,
    Stop,
    StudyState,
    Tell,
    cut,
)

SEND_MAX = 60 * 1024
"""Bytes; a client never sends a larger message."""
ASK_EVERY_S = 30.0
RESEND_MIN_S = 1.0       # a resend sooner than the round trip only makes copies
RESEND_FIRST_S = 2.0
RESEND_MAX_S = 60.0
LOG_PATIENCE_S = 1.0     # how long saved work waits for the daemon's log id after a connect
OFFLINE_START_S = 30.0   # after this long without a broker, saved work is trained all the same
TELL_BEAT_S = 60.0       # beats for a saved tell whose lease_s is no longer known
BEAT_MIN_S = 0.05
REPORT_BURST = 10        # reports of one trial that may follow each other at once; then one a second
STARTS_MAX = 2

EndReason = Literal["closed", "stopped", "name-in-use", "refused", "undelivered"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What this worker wants. `run` is random per process."""

    run: str
    study: str | None = None
    slots: int = 1
    prefetch: int = 1
    lease_s: float | None = None
    tags: tuple[str, ...] = ()
    keep: bool = False
    """Wait for the study to be opened again instead of leaving when it is closed."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted trial, as the training sees it. `starts` counts this start."""

    study: str
    trial: int
    fence: int
    params: Mapping[str, Any]
    lease_s: float
    starts: int = 0
    fidelity: Fidelity | None = None
    repeat: int = 0

    @property
    def key(self) -> Key:
        return self.study, self.trial, self.fence


@dataclass(frozen=True, slots=True)
class Send:
    """Publish `message` at `from/{worker}/{kind}`."""

    kind: Literal["ask", "beat", "report", "tell"]
    message: dict[str, Any]
    log: str | None = None
    """The log that a tell or report belongs to, as far as it is known."""


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the training; call `finished` when it has ended, however it ended."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Halt:
    """End the training of `key`, then call `finished`. `owed` is false when nothing will be told for it."""

    key: Key
    reason: str
    owed: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The receipt of a report has come."""

    key: Key
    step: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person should read."""

    text: str
    warning: bool = False


Effect: TypeAlias = Send | Start | Halt | Answered | Note


@dataclass(frozen=True, slots=True)
class End:
    """The worker may leave, with this exit code."""

    reason: EndReason
    code: int
    detail: str = ""


@dataclass(slots=True)
class _Ask:
    id: str
    due_s: float
    tries: int = 0
    answered: bool = False     # by `waiting`: it stands
    withdrawn: bool = False
    showed: SavedHead | None = None
    said: str | None = None    # the reason that was last noted


@dataclass(slots=True)
class _Told:
    message: dict[str, Any]
    due_s: float
    beat_s: float
    log: str | None
    not_before_s: float = float("-inf")
    tries: int = 0


@dataclass(slots=True)
class _Held:
    lease: Lease
    grant: dict[str, Any]
    log: str | None
    training: bool = False
    recovered: bool = False
    stop: str | None = None               # pruned: it is still owed a tell
    reports_left: float = REPORT_BURST    # a bucket that fills by one a second
    counted_s: float = 0.0
    waiting_report: dict[str, Any] | None = None
    report_ids: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Daemon:
    """What the retained topic says of the daemon."""

    online: bool | None = None
    epoch: int | None = None
    log: str | None = None
    fresh: bool = field(default=False)    # said since the last connect


class Agent:
    """One worker's protocol state. `end` is set when the worker may leave."""

    def __init__(self, settings: Settings, spool: Spool, rng: random.Random) -> None:
        self.settings = settings
        self.end: End | None = None
        self.studies: dict[str, StudyState] = {}
        """The retained state of each study, as far as it was seen and is of the daemon's log."""
        self._spool = spool
        self._random = rng
        self._connected = False
        self._daemon = _Daemon()
        self._asks: dict[str, _Ask] = {}
        self._asked = 0
        self._held: dict[Key, _Held] = {}
        self._halted: dict[Key, str] = {}     # no longer ours, but its training still fills a slot
        self._told: dict[Key, _Told] = {}
        self._tell_ids: dict[str, Key] = {}
        self._report_ids: dict[str, tuple[Key, int]] = {}
        self._done: set[Key] = set()          # kept for the life of the process
        self._stopped: dict[Key, str] = {}    # a stop may come before its grant
        self._head: SavedHead | None = None
        self._newer_head: SavedHead | None = None
        self._head_shown = False      # an ask that showed it was answered, in this life of connection and daemon
        self._next_beat_s: float | None = None
        self._burst_at_s: float | None = None
        self._offline_start_s: float | None = None
        self._closed = False
        self._ask_from_s = float("-inf")
        self._leaving: EndReason | None = None
        self._detail = ""
        self._deadline_s = float("inf")
        self._undeliverable = 0
        self._complaints: set[str] = set()
        self._out: list[Effect] = []

    # What happens to the worker. Each call returns the effects to carry out, in order.

    def begin(self, now: float) -> list[Effect]:
        """Take up what an earlier process left in the spool. The first call."""
        grants, tells = self._spool.load()
        self._head = self._spool.load_head()
        for told in tells:
            self._hold_tell(told.tell, told.log, TELL_BEAT_S, now)
        for saved in grants:
            self._recover(saved, now)
        self._offline_start_s = now + OFFLINE_START_S
        return self._effects(now)

    def connected(self, now: float) -> list[Effect]:
        """The broker has taken our subscriptions."""
        self._connected = True
        self._daemon.fresh = False
        # Work saved under a log waits for the word which log this daemon has, so that a result of
        # one log is never told to another one that happens to use the same names and numbers.
        if self._daemon.log is None and self._knows_a_log():
            self._burst_at_s = now + LOG_PATIENCE_S
        else:
            self._burst(now)
        return self._effects(now)

    def disconnected(self, now: float) -> list[Effect]:
        """Nothing can be sent until `connected`; training goes on."""
        self._connected = False
        self._burst_at_s = None
        if not self._told and self._leaving == "stopped":
            self._asks.clear()      # unserved asks lapse by themselves
        return self._effects(now)

    def received(self, kind: str, data: Mapping[str, Any], now: float, retained: bool = False) -> list[Effect]:
        """A message of `kind`: grant, receipt, stop, daemon, head or study. Unknown kinds and fields are ignored."""
        if kind == "grant":
            if (grant := self._read(Grant, data)) is not None:
                self._on_grant(grant, dict(data), now)
        elif kind == "receipt":
            if (receipt := self._read(Receipt, data)) is not None:
                self._on_receipt(receipt, now)
        elif kind == "stop":
            if (stop := self._read(Stop, data)) is not None:
                self._on_stop((stop.study, stop.trial, stop.fence), stop.reason, now)
        elif kind == "daemon":
            if (daemon := self._read(DaemonState, data)) is not None:
                self._on_daemon(daemon, retained, now)
        elif kind == "head":
            if (head := self._read(Head, data)) is not None:
                self._on_head(SavedHead(head.log, head.note))
        elif kind == "study" and (study := self._read(StudyState, data)) is not None:
            self._on_study(study, now)
        return self._effects(now)

    def report(self, key: Key, step: int, measured: Mapping[str, Any], now: float) -> list[Effect]:
        """An intermediate value: `measured` is {"value": x} or {"values": {...}}. It may be lost."""
        held = self._held.get(key)
        if held is not None and held.training and held.stop is None and self._connected:
            study, trial, fence = key
            message = {"id": f"r.{study}.{trial}.{fence}.{step}", "study": study, "trial": trial,
                       "fence": fence, "step": step, **finite(measured)}
            self._refill(held, now)
            if held.reports_left >= 1:
                self._send_report(held, message)
            else:
                held.waiting_report = message      # the newest wins; a report may be lost
        return self._effects(now)

    def finished(self, key: Key, outcome: Mapping[str, Any], now: float) -> list[Effect]:
        """The training of `key` has ended; `outcome` has the fields of its tell."""
        if key in self._halted:
            reason = self._halted.pop(key)
            # A superseded training that came to its end all the same is a late outcome: worth telling.
            if reason == "superseded" and outcome.get("state", "complete") == "complete" and not self._leaving:
                self._tell(key, outcome, now)
        elif (held := self._held.get(key)) is not None and held.training:
            if held.stop == "pruned" and outcome.get("state") != "pruned":
                kept = {name: outcome[name] for name in ("value", "values", "folds", "seconds", "cost")
                        if name in outcome}
                outcome = {"state": "pruned", **kept}
            self._tell(key, outcome, now)
        return self._effects(now)

    def give_back(self, key: Key, now: float) -> list[Effect]:
        """The training cannot be done here: release the lease. Nobody's trial fails for it."""
        return self.finished(key, {"state": "released"}, now)

    def leave(self, now: float, patience_s: float = 10.0) -> list[Effect]:
        """A clean exit: withdraw asks, release what is not finished, wait for the receipts."""
        if self._leaving in (None, "refused"):
            self._begin_leaving("stopped", now)
        self._deadline_s = min(self._deadline_s, now + patience_s)
        return self._effects(now)

    def tick(self, now: float) -> list[Effect]:
        """Do what has become due."""
        return self._effects(now)

    def due_s(self) -> float | None:
        """When `tick` is to be called at the latest; None when only a message can change something."""
        if self.end is not None:
            return None
        times = [self._deadline_s]
        if self._offline_start_s is not None:
            times.append(self._offline_start_s)
        if self._connected:
            if self._burst_at_s is not None:
                times.append(self._burst_at_s)
            else:
                times += [ask.due_s for ask in self._asks.values()]
                times += [told.due_s for told in self._told.values()]
                times += [held.counted_s + 1 for held in self._held.values() if held.waiting_report]
                if self._next_beat_s is not None:
                    times.append(self._next_beat_s)
                if self._closed and self.settings.keep and not self._leaving:
                    times.append(self._ask_from_s)
        soonest = min(times)
        return None if soonest == float("inf") else soonest

    @property
    def training(self) -> frozenset[Key]:
        """Every training that fills a slot."""
        return frozenset(key for key, held in self._held.items() if held.training) | self._halted.keys()

    @property
    def undelivered(self) -> frozenset[Key]:
        """Every result without receipt."""
        return frozenset(self._told)

    # Deciding. Nothing below returns effects; it appends to `_out`.

    def _effects(self, now: float) -> list[Effect]:
        if self.end is None:
            self._do_what_is_due(now)
            self._settle(now)
        out, self._out = self._out, []
        return out

    def _do_what_is_due(self, now: float) -> None:
        self._fill_slots(now)
        if not self._connected:
            return
        if self._burst_at_s is not None:
            if now < self._burst_at_s:
                return
            self._burst(now)
        self._beat_when_due(now)
        for told in list(self._told.values()):
            if told.due_s <= now:
                self._send_tell(told, now)
        for held in self._held.values():
            if held.waiting_report is not None:
                self._refill(held, now)
                if held.reports_left >= 1:
                    message, held.waiting_report = held.waiting_report, None
                    self._send_report(held, message)
        for ask in list(self._asks.values()):
            if ask.due_s <= now:
                self._send_ask(ask, now)
        while self._wants_more(now):
            self._send_ask(self._new_ask(now), now)
        if self._closed and now >= self._ask_from_s:
            self._ask_from_s = float("inf")      # asked; the answer says when to hope again

    def _burst(self, now: float) -> None:
        """Everything again, after a connect or when the daemon is a new one: beat, tells, asks, in this order."""
        self._burst_at_s = None
        self._offline_start_s = None
        self._head_shown = False
        if self._leaving != "name-in-use":
            self._send_beat(now)
        for told in self._told.values():
            if told.not_before_s <= now:
                self._send_tell(told, now)
        for ask in self._asks.values():
            self._send_ask(ask, now)
        self._fill_slots(now)

    def _settle(self, now: float) -> None:
        """Whether the worker may leave: never while it holds a tell without receipt, except at its deadline."""
        leaving = self._leaving or ("closed" if self._closed and not self.settings.keep else None)
        if leaving is None:
            return
        failed = leaving in ("name-in-use", "refused") or self._undeliverable > 0 or bool(self._detail)
        if self._told:
            if now >= self._deadline_s:
                self.end = End("undelivered", 1, f"{len(self._told)} tells have no receipt yet and are kept")
        elif now >= self._deadline_s or not (self._held or self._asks):
            detail = self._detail or (f"{self._undeliverable} results were refused" if failed else "")
            self.end = End(leaving, int(failed), detail)

    # Grants and leases.

    def _on_grant(self, grant: Grant, raw: dict[str, Any], now: float) -> None:
        if grant.run != self.settings.run:
            return                               # meant for another process of this name
        key = (grant.study, grant.trial, grant.fence)
        self._heard_epoch(grant.epoch, now)
        ask = self._asks.get(grant.ask)
        if ask is not None:
            self._head_answered(ask)
        if ask is not None and not ask.withdrawn:
            self._closed = False
            del self._asks[grant.ask]            # a withdrawn one waits for its receipt
        if key in self._told:
            self._send_tell(self._told[key], now)
        elif key in self._done or key in self._held or key in self._halted:
            return
        elif key in self._stopped:
            if self._stopped[key] == "pruned":       # the only stop that leaves the lease open
                self._tell(key, {"state": "pruned"}, now)
        elif self._leaving == "name-in-use":
            return
        elif self._leaving or not self._has_room() or self._of_another_study(grant.study):
            self._tell(key, {"state": "released"}, now)
        else:
            self._hold(grant, raw, 0, self._daemon.log, recovered=False)
            self._next_beat_s = min(self._next_beat_s or float("inf"), now + self._beat_period_s())

    def _recover(self, saved: SavedGrant, now: float) -> None:
        grant = self._read(Grant, saved.grant)
        if grant is None:
            return
        key = (grant.study, grant.trial, grant.fence)
        if key in self._told:
            self._keep_safe("drop a grant", lambda: self._spool.drop_grant(key))   # died between the two
        elif saved.starts >= STARTS_MAX:
            self._tell(key, {"state": "fail", "class": "crash",
                             "error": f"the worker's process died during each of {saved.starts} starts"},
                       now, log=saved.log)
        elif self._of_another_study(grant.study):
            self._tell(key, {"state": "released"}, now, log=saved.log)
        else:
            self._hold(grant, saved.grant, saved.starts, saved.log, recovered=True)

    def _hold(self, grant: Grant, raw: dict[str, Any], starts: int, log: str | None, recovered: bool) -> None:
        lease = Lease(grant.study, grant.trial, grant.fence, grant.params, grant.lease_s, starts, grant.fidelity,
                      grant.repeat or 0)
        self._held[lease.key] = _Held(lease, raw, log, recovered=recovered)
        if not recovered:
            self._keep_safe("save a grant", lambda: self._spool.save_grant(lease.key, SavedGrant(raw, starts, log)))

    def _fill_slots(self, now: float) -> None:
        # A saved lease is listed in a beat before it is trained again; without a broker, after a while.
        if self._offline_start_s is not None and now >= self._offline_start_s:
            self._offline_start_s = None
        for key, held in self._held.items():
            if len(self.training) >= self.settings.slots or self._leaving in ("stopped", "name-in-use"):
                return
            if held.training or (held.recovered and self._offline_start_s is not None):
                continue
            self._start(key, held, now)

    def _start(self, key: Key, held: _Held, now: float) -> None:
        old = held.lease
        lease = Lease(old.study, old.trial, old.fence, old.params, old.lease_s, old.starts + 1, old.fidelity,
                      old.repeat)
        # The count is on disk before the start: a training that kills its process is not started for ever.
        self._keep_safe("save a grant",
                        lambda: self._spool.save_grant(key, SavedGrant(held.grant, lease.starts, held.log)))
        held.lease, held.training, held.counted_s = lease, True, now
        self._out.append(Start(lease))

    def _has_room(self) -> bool:
        return len(self._held) + len(self._halted) < self.settings.slots + self.settings.prefetch

    def _of_another_study(self, study: str) -> bool:
        return self.settings.study is not None and study != self.settings.study

    def _on_stop(self, key: Key, reason: str, now: float) -> None:
        if key in self._told or key in self._done or key in self._halted:
            return                               # a stop never ends the sending of a tell
        held = self._held.get(key)
        if held is None:
            self._stopped.setdefault(key, reason)
        elif reason == "pruned":
            self._stopped[key] = reason
            if not held.training:
                self._tell(key, {"state": "pruned"}, now)
            elif held.stop is None:
                held.stop = reason
                self._out.append(Halt(key, reason, owed=True))
        else:
            self._stopped[key] = reason
            self._forget(key, reason)

    def _forget(self, key: Key, reason: str) -> None:
        """End a lease that nothing is owed for any more."""
        held = self._held.pop(key)
        self._forget_reports(held)
        self._done.add(key)
        self._keep_safe("drop a grant", lambda: self._spool.drop_grant(key))
        if held.training:
            self._halted[key] = reason
            self._out.append(Halt(key, reason, owed=False))

    # Tells and reports.

    def _tell(self, key: Key, outcome: Mapping[str, Any], now: float, log: str | None = None) -> None:
        """Save an outcome, then send it; the ask for the next trial rides in its first transmission."""
        held = self._held.pop(key, None)
        if held is not None:
            self._forget_reports(held)
        log = log or (held.log if held else None) or self._daemon.log
        message = tell_message(key, outcome)
        self._keep_safe("save a result", lambda: self._spool.save_tell(key, SavedTell(message, log)))
        told = self._hold_tell(message, log, held.lease.lease_s / 3 if held else TELL_BEAT_S, now)
        self._done.add(key)
        if self._connected and self._burst_at_s is None:
            self._send_tell(told, now, self._new_ask(now) if self._wants_more(now) else None)

    def _hold_tell(self, message: dict[str, Any], log: str | None, beat_s: float, now: float) -> _Told:
        key = (message["study"], message["trial"], message["fence"])
        told = self._told[key] = _Told(message, now, beat_s, log)
        self._tell_ids[message["id"]] = key
        return told

    def _send_tell(self, told: _Told, now: float, ask: _Ask | None = None) -> None:
        message = told.message
        if ask is not None:
            message = {**message, "ask": self._ask_message(ask)}
            self._ask_sent(ask, now)
        told.due_s = now + self._resend_after_s(told.tries)
        told.tries += 1
        self._out.append(Send("tell", message, told.log))

    def _on_tell_receipt(self, key: Key, receipt: Receipt, now: float) -> None:
        told = self._told[key]
        if receipt.retry_after_s is not None:
            told.not_before_s = told.due_s = now + max(0.0, receipt.retry_after_s)
            return
        _, trial, _ = key
        if receipt.status == "rejected":
            self._undeliverable += 1
            why = receipt.detail or receipt.reason or "no reason given"
            self._out.append(Note(f"trial {trial}: the daemon refused the result ({why}); it is kept in rejected/",
                                  warning=True))
            self._keep_safe("set a result aside",
                            lambda: self._spool.reject_tell(key, receipt.model_dump(exclude_none=True)))
        else:
            if receipt.status == "late":
                self._out.append(Note(f"trial {trial}: the result came late; somebody else has the trial now"))
            self._keep_safe("drop a result", lambda: self._spool.drop_tell(key))
        del self._told[key], self._tell_ids[told.message["id"]]

    def _send_report(self, held: _Held, message: dict[str, Any]) -> None:
        held.reports_left -= 1
        held.report_ids.add(message["id"])
        self._report_ids[message["id"]] = (held.lease.key, message["step"])
        self._out.append(Send("report", message, held.log))

    def _forget_reports(self, held: _Held) -> None:
        for id in held.report_ids:
            self._report_ids.pop(id, None)

    def _refill(self, held: _Held, now: float) -> None:
        held.reports_left = min(REPORT_BURST, held.reports_left + max(0.0, now - held.counted_s))
        held.counted_s = now

    # Asks.

    def _wants_more(self, now: float) -> bool:
        if self._leaving or (self._closed and not self._may_hope(now)):
            return False
        open_asks = sum(not ask.withdrawn for ask in self._asks.values())
        return len(self._held) + len(self._halted) + open_asks < self.settings.slots + self.settings.prefetch

    def _may_hope(self, now: float) -> bool:
        """With `keep`, a closed study is asked for again now and then, unless its topic says closed."""
        if not self.settings.keep or now < self._ask_from_s:
            return False
        state = self.studies.get(self.settings.study or "")
        if state is not None and state.state == "closed":
            self._ask_from_s = now + ASK_EVERY_S
            return False
        return True

    def _new_ask(self, now: float) -> _Ask:
        self._asked += 1
        ask = _Ask(f"{self.settings.run}.{self._asked}", now)
        self._asks[ask.id] = ask
        return ask

    def _ask_message(self, ask: _Ask) -> dict[str, Any]:
        message: dict[str, Any] = {"id": ask.id, "run": self.settings.run}
        if self.settings.study is not None:
            message["study"] = self.settings.study
        if ask.withdrawn:
            return {**message, "n": 0}
        if self.settings.lease_s is not None:
            message["lease_s"] = self.settings.lease_s
        if self.settings.tags:
            message["tags"] = list(self.settings.tags)
        if self._head is not None and not self._head_shown:
            message["seen"] = self._head.note
            ask.showed = self._head
        return message

    def _send_ask(self, ask: _Ask, now: float) -> None:
        self._out.append(Send("ask", self._ask_message(ask)))
        self._ask_sent(ask, now)

    def _ask_sent(self, ask: _Ask, now: float) -> None:
        if ask.answered and not ask.withdrawn:
            ask.due_s = now + ASK_EVERY_S
        else:
            # An answer is due within 2 s, so silence means that the ask or its answer was lost.
            ceiling_s = min(ASK_EVERY_S, 4.0 * 2.0 ** min(ask.tries, 8))
            ask.due_s = now + self._random.uniform(2.0, ceiling_s)
        ask.tries += 1

    def _on_ask_receipt(self, ask: _Ask, receipt: Receipt, now: float) -> None:
        if receipt.status != "rejected":         # or it was perhaps not even read
            self._head_answered(ask)
        if receipt.status == "waiting" or (receipt.status == "rejected" and receipt.retry_after_s is not None):
            ask.answered = True
            self._closed = self._closed and receipt.status != "waiting"      # opened again
            ask.due_s = now + (receipt.retry_after_s if receipt.retry_after_s is not None else ASK_EVERY_S)
            if receipt.reason and receipt.reason != ask.said:
                ask.said = receipt.reason
                if not any(other.said == receipt.reason for other in self._asks.values() if other is not ask):
                    self._out.append(Note(f"waiting: {receipt.detail or receipt.reason}"))
        elif receipt.status == "closed":
            del self._asks[ask.id]
            if receipt.reason != "withdrawn" and not ask.withdrawn:
                self._on_closed(receipt.reason, now)
        elif receipt.status == "duplicate":
            del self._asks[ask.id]
        elif receipt.status == "rejected":
            del self._asks[ask.id]
            self._detail = f"the daemon refused our ask: {receipt.detail or receipt.reason}"
            if self._leaving is None:
                self._begin_leaving("refused", now)

    def _on_closed(self, reason: str | None, now: float) -> None:
        if not self._closed:
            then = "; waiting for it to be opened again" if self.settings.keep else ""
            self._out.append(Note(f"study {self.settings.study} is closed ({reason or 'no reason given'}){then}"))
        self._closed = True
        self._ask_from_s = now + ASK_EVERY_S

    # Heads.

    def _on_head(self, head: SavedHead) -> None:
        """Keep the newest head of the log. The one that we have is shown to the daemon before it gives way: were this
        a daemon on another copy of the log, the newer head would be its own, and the older one the proof."""
        known = self._newer_head or self._head
        if head.size < 0 or (known is not None and known.log == head.log and known.age >= head.age):
            return
        if self._head is None or self._head.log != head.log:
            self._keep_head(head)
        else:
            self._newer_head = head
            if self._head_shown:
                self._keep_head(head)

    def _keep_head(self, head: SavedHead) -> None:
        self._head, self._newer_head, self._head_shown = head, None, False
        self._keep_safe("save a head", lambda: self._spool.save_head(head))

    def _head_answered(self, ask: _Ask) -> None:
        """The daemon has served or answered an ask that showed our head, so it has seen it."""
        if ask.showed is not None and ask.showed == self._head:
            self._head_shown = True
            if self._newer_head is not None:
                self._keep_head(self._newer_head)

    # Beats.

    def _listed(self) -> Iterator[Key]:
        yield from self._held
        yield from self._told

    def _send_beat(self, now: float) -> None:
        leases: list[list[str | int]] = []
        size = 200 + sum(len(ask.id) + 4 for ask in self._asks.values())
        for study, trial, fence in self._listed():
            size += len(study) + len(str(trial)) + len(str(fence)) + 10
            if size > SEND_MAX:
                break                            # the oldest come first; the rest waits for receipts
            leases.append([study, trial, fence])
        asks = [ask.id for ask in self._asks.values() if not ask.withdrawn]
        self._out.append(Send("beat", {"run": self.settings.run, "leases": leases, "asks": asks}))
        self._next_beat_s = now + self._beat_period_s() if self._held or self._told else None

    def _beat_period_s(self) -> float:
        thirds = [held.lease.lease_s / 3 for held in self._held.values()]
        thirds += [told.beat_s for told in self._told.values()]
        return max(BEAT_MIN_S, min(thirds, default=TELL_BEAT_S))

    def _beat_when_due(self, now: float) -> None:
        if self._leaving == "name-in-use" or not (self._held or self._told):
            self._next_beat_s = None
        elif self._next_beat_s is None:
            self._next_beat_s = now + self._beat_period_s()
        elif now >= self._next_beat_s:
            self._send_beat(now)

    # Receipts, and what the retained topics say.

    def _on_receipt(self, receipt: Receipt, now: float) -> None:
        if receipt.run is not None and receipt.run != self.settings.run:
            return
        if receipt.status == "rejected" and receipt.reason == "name-in-use":
            if receipt.run == self.settings.run:
                self._on_name_in_use(receipt, now)
        elif receipt.id in self._tell_ids:
            self._on_tell_receipt(self._tell_ids[receipt.id], receipt, now)
        elif receipt.id in self._asks:
            self._on_ask_receipt(self._asks[receipt.id], receipt, now)
        elif receipt.id in self._report_ids:
            key, step = self._report_ids.pop(receipt.id)
            if key in self._held:
                self._held[key].report_ids.discard(receipt.id)
            if receipt.stop is not None:
                self._on_stop(key, receipt.stop, now)
            self._out.append(Answered(key, step))

    def _on_name_in_use(self, receipt: Receipt, now: float) -> None:
        """Another process is this worker now: stop asking and beating, give up what is not told, deliver the rest."""
        if self._leaving == "name-in-use":
            return
        self._leaving = "name-in-use"
        self._detail = receipt.detail or "another process works under this worker's name"
        self._asks.clear()
        for key in list(self._held):
            self._forget(key, "name-in-use")

    def _begin_leaving(self, reason: EndReason, now: float) -> None:
        """Withdraw asks; when stopped, also give back what is not finished."""
        self._leaving = reason
        for ask in list(self._asks.values()):
            if self._connected:
                ask.withdrawn, ask.tries = True, 0
                self._send_ask(ask, now)
            else:
                del self._asks[ask.id]
        if reason == "stopped":
            for key, held in list(self._held.items()):
                if held.training:
                    self._halted[key] = "stopped"
                    self._out.append(Halt(key, "stopped", owed=False))
                self._tell(key, {"state": "pruned" if held.stop == "pruned" else "released"}, now)

    def _heard_epoch(self, epoch: int, now: float) -> None:
        known = self._daemon.epoch
        self._daemon.epoch = epoch if known is None else max(known, epoch)
        if known is not None and epoch > known and self._connected:
            self._burst(now)

    def _on_daemon(self, said: DaemonState, retained: bool, now: float) -> None:
        """A daemon that is new, or back, has not heard what was said meanwhile: say everything again."""
        before = self._daemon
        self._daemon = _Daemon(said.state == "online", said.epoch, said.log, fresh=True)
        if before.log != said.log:
            self._set_other_logs_aside(said.log)
            self.studies = {name: state for name, state in self.studies.items() if state.log == said.log}
        if said.state != "online" or not self._connected:
            return
        # A retained word is older than our connect, so that daemon has heard what we said after it.
        news = not retained and (before.online is not True or (before.epoch, before.log) != (said.epoch, said.log))
        if self._burst_at_s is not None or news:
            self._burst(now)

    def _knows_a_log(self) -> bool:
        return any(held.log for held in self._held.values()) or any(told.log for told in self._told.values())

    def _set_other_logs_aside(self, log: str) -> None:
        why = {"status": "rejected", "reason": "other-log",
               "detail": f"it belongs to another log; this daemon's log is {log}"}
        for key, told in list(self._told.items()):
            if told.log not in (None, log):
                self._undeliverable += 1
                self._out.append(Note(f"trial {key[1]}: the result belongs to another log; it is kept in rejected/",
                                      warning=True))
                self._keep_safe("set a result aside", partial(self._spool.reject_tell, key, why))
                del self._told[key], self._tell_ids[told.message["id"]]
        for key, held in list(self._held.items()):
            if held.log not in (None, log):
                self._forget(key, "other-log")

    def _on_study(self, state: StudyState, now: float) -> None:
        if self._daemon.log is not None and state.log != self._daemon.log:
            return
        before = self.studies.get(state.study)
        self.studies[state.study] = state
        if state.study == self.settings.study and before is not None and before.state == "closed" != state.state:
            self._closed = False
            self._ask_from_s = now

    def _read(self, model: type["_Model"], data: Mapping[str, Any]) -> "_Model | None":
        try:
            return model.model_validate(known_fields(model, data))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            if (complaint := f"{model.__name__}.{where}") not in self._complaints:     # once, not once a second
                self._complaints.add(complaint)
                self._out.append(Note(f"a {model.__name__} that cannot be read was ignored: {where}: {first['msg']}",
                                      warning=True))
            return None

    def _resend_after_s(self, tries: int) -> float:
        """Full jitter under a ceiling that doubles, so that a fleet does not come back in step."""
        ceiling_s = min(RESEND_MAX_S, RESEND_FIRST_S * 2.0 ** min(tries, 8))
        return self._random.uniform(RESEND_MIN_S, ceiling_s)

    def _keep_safe(self, what: str, write: Callable[[], None]) -> None:
        """A full or broken disk must not stop a worker: memory still has it, and the daemon will soon."""
        try:
            write()
        except OSError as error:
            self._out.append(Note(f"the spool could not {what} ({error}); free the disk, or it is lost in a crash",
                                  warning=True))


_Model = TypeVar("_Model", bound=BaseModel)


def known_fields(model: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` without what a later version may have added: a worker ignores unknown fields."""
    names = {field.alias or name for name, field in model.model_fields.items()}
    known = {name: value for name, value in data.items() if name in names}
    if model is Grant and isinstance(known.get("fidelity"), dict):
        known["fidelity"] = known_fields(Fidelity, known["fidelity"])
    return known


def finite(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """`outcome` as strict JSON can carry it: a non-finite number becomes its name."""
    return {name: _finite(value) for name, value in outcome.items() if value is not None or name == "value"}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return "inf" if value >= 10**300 else "-inf" if value <= -(10**300) else float(value)
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)      # nan, inf, -inf
    return value


def tell_message(key: Key, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The tell of an outcome. One that the daemon would refuse becomes a failure that says why."""
    study, trial, fence = key
    address = {"id": f"t.{study}.{trial}.{fence}", "study": study, "trial": trial, "fence": fence}
    message = {**address, **finite(outcome)}
    if isinstance(message.get("error"), str):
        message["error"] = tail(message["error"])
    try:
        if Tell.model_validate(message).state == "complete" and not {"value", "values", "folds"} & message.keys():
            raise ValueError("value is missing")
        if len(json.dumps(message)) <= SEND_MAX:
            return message
        why = f"the result is over {SEND_MAX} bytes"
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
    except (TypeError, ValueError) as error:
        why = str(error)
    return {**address, "state": "fail", "class": "other", "error": tail(f"the result cannot be told: {why}")}


def tail(text: str, bytes_max: int = ERROR_MAX) -> str:
    """The end of `text`, which is where a traceback says what happened."""
    whole = text.encode("utf-8", "replace")
    if len(whole) <= bytes_max:
        return whole.decode("utf-8")
    mark = "…"
    return cut(mark + whole[len(mark.encode()) - bytes_max:].decode("utf-8", "ignore"), bytes_max)
