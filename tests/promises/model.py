"""The wire contract as plain dictionaries: what may be recorded and said, and what must be. It is written from
sections 4.2 to 4.9 of the contract and not from the code; `machine.py` plays stories against it.

The model predicts the answer of every tell, report and copy. Which trial an ask gets is the daemon's choice, so there
it judges: each recorded fact in its order (`fact`), and what must hold after each message (`settled`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.study.story import Fact, Letter

Key = tuple[int, int]               # trial, fence
Asked = tuple[str, str, str]        # worker, run, id
ENDINGS = {"complete": "trial.completed", "fail": "trial.failed", "pruned": "trial.pruned",
           "released": "lease.released"}
PATIENCE_S = 90.0                   # an ask that nobody served lapses


@dataclass
class Lease:
    worker: str
    asked: Asked
    run: str
    lease_s: float
    ends: float
    ended: str | None = None
    told: Mapping[str, Any] | None = None
    status: str = ""
    seq: int = 0
    missed: int = 0

    @property
    def holds_place(self) -> bool:
        return self.ended is None or (self.told is not None and self.ended != "released")


@dataclass
class Trial:
    params: Any
    again: bool
    fence: int = 0
    status: str = "new"
    """new, running, waiting; complete, fail, pruned, voided; lost: failed for want of a word."""
    value: float | None = None
    failures: Counter[str] = field(default_factory=Counter)
    lates: int = 0
    is_promoted: bool = False
    steps: dict[int, tuple[float, int]] = field(default_factory=dict)


@dataclass
class Standing:
    n: int
    lease_s: float
    lapses: float
    is_named: bool
    """It names the study, and ends with it."""
    is_owed: bool = False
    """Its receipt may still be on its way, for 2 s."""
    was_full: bool = False
    """For a moment it had all that it asked for, and may have been forgotten then."""


def normal(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by which two tells are the same."""
    known = {key: value for key, value in outcome.items() if key != "seconds"}
    return {"class": "crash", **known} if known.get("state") == "fail" else known


class Model:
    """One study."""

    def __init__(self, late: str, retry: Mapping[str, int], budget: int, default_s: float) -> None:
        self.late, self.retry, self.budget, self.default_s = late, retry, budget, default_s
        self.now = 0.0
        self.status = "open"
        self.is_confirming = False
        self.trials: dict[int, Trial] = {}
        self.leases: dict[Key, Lease] = {}
        self.standing: dict[Asked, Standing] = {}
        self.withdrawn: set[Asked] = set()
        self.run: dict[str, str] = {}
        self.replaced: set[tuple[str, str]] = set()
        self.untold: set[int] = set()

    # ------------------------------------------------------------ what is asked of it

    @property
    def waiting(self) -> list[int]:
        return [number for number, trial in self.trials.items() if trial.status == "waiting"]

    @property
    def used(self) -> int:
        return sum(not trial.again and trial.status != "voided" for trial in self.trials.values())

    def of(self, asked: Asked) -> dict[Key, Lease]:
        return {key: lease for key, lease in self.leases.items() if lease.asked == asked}

    def rest(self, asked: Asked, n: int) -> int:
        return n - sum(lease.holds_place for lease in self.of(asked).values())

    def may_hold_again(self, key: Key) -> bool:
        lease, trial = self.leases[key], self.trials[key[0]]
        return (lease.told is None and lease.ended in ("expired", "superseded") and key[1] == trial.fence
                and trial.status in ("waiting", "lost"))

    def answer(self, worker: str, key: Key, outcome: Mapping[str, Any]) -> tuple[str, str | None, int]:
        """What a tell must get: (status, event or None, seq of an earlier event or 0) [2, 5, 7]."""
        lease = self.leases.get(key)
        if lease is None or lease.worker != worker:
            return "rejected", None, 0
        if lease.told is not None:
            is_copy = lease.told == normal(outcome)
            return ("duplicate" if is_copy and lease.status == "recorded" else "late"), None, lease.seq
        trial, state = self.trials[key[0]], outcome.get("state", "complete")
        is_newest = key[1] == trial.fence
        if state == "released":
            is_free = is_newest and trial.status in ("running", "waiting")
            return ("recorded", "lease.released", 0) if is_free else ("late", None, 0)
        if not is_newest or trial.status not in ("running", "waiting", "lost"):
            return "late", "outcome.late", 0
        if outcome.get("value") == "nan":
            state = "fail"
        return "recorded", ENDINGS[state], 0

    def may_retry(self, number: int, failure: str) -> bool:
        return self.status != "closed" and self.trials[number].failures[failure] + 1 <= self.retry.get(failure, 0)

    def report(self, worker: str, key: Key, step: int, value: float) -> tuple[str, int]:
        """What a report must get: (status, seq of an earlier event or 0) [8]."""
        lease = self.leases.get(key)
        if lease is None or lease.worker != worker:
            return "rejected", 0
        trial = self.trials[key[0]]
        if key[1] != trial.fence or trial.status not in ("running", "waiting"):
            return "late", 0
        first = trial.steps.get(step)
        if first is None:
            return "recorded", 0
        return ("duplicate" if first[0] == value else "late"), first[1]

    # ------------------------------------------------------------ what is recorded

    def fact(self, fact: Fact, seq: int, *, told: bool = False) -> None:
        """One event, in its order. `told`: it is the word of a worker, just now."""
        type, number, data = fact
        if type.startswith("study."):
            self._study(type, data)
        elif type == "run.began":
            self._began(data)
        elif type == "trial.proposed":
            assert self.status == "open", f"a trial is proposed in a study that is {self.status}"
            assert not self.waiting, f"a new trial, while trials {self.waiting} wait [5]"
            assert number == len(self.trials) + 1, "trials are not numbered in order"
            again = data["sampler"] == "confirm"
            assert again or self.used < self.budget, "the budget of trials is used up"
            self.trials[number] = Trial(data["params"], again)
        elif number is not None:
            key = (number, int(data.get("fence", 0)))
            on = {"trial.leased": self._leased, "lease.expired": self._expired, "lease.held": self._held,
                  "lease.released": self._released, "outcome.late": self._late, "outcome.voided": self._voided}
            if type == "trial.reported":
                self.trials[number].steps[data["step"]] = data["values"]["value"], seq
            elif type in on:
                on[type](key, data)
            elif type != "point.enqueued":
                self._outcome(type, key, data, told)

    def _study(self, type: str, data: Mapping[str, Any]) -> None:
        assert type != "study.closed" or self.status != "closed", "closed twice"
        self.status = {"study.closed": "closed", "study.paused": "paused", "study.resumed": "open"}.get(
            type, self.status)
        self.is_confirming |= type == "study.confirming"

    def _began(self, data: Mapping[str, Any]) -> None:
        worker, run = data["worker"], data["run"]
        assert (worker, run) not in self.replaced, "a replaced run came back [4]"
        took = {tuple(key[1:]) for key in data["took"]}
        ended = {tuple(key[1:]) for key in data["ended"]}
        open_ = {key for key, lease in self.leases.items() if lease.worker == worker and lease.ended is None}
        assert took <= open_, "it took over what it had not"
        assert ended == {key for key in open_ - took if self.leases[key].run != run}, "not all others were ended [4]"
        for key in took:
            self.leases[key].run = run
        for key in ended:
            self._end(key, "superseded")
        others = {lease.asked[1] for lease in self.leases.values() if lease.worker == worker} | {self.run.get(worker)}
        self.replaced |= {(worker, other) for other in others if other not in (run, None)}
        self.run[worker] = run
        for asked in [asked for asked in self.standing if asked[:2] in self.replaced]:
            del self.standing[asked]

    def _end(self, key: Key, why: str) -> None:
        lease, trial = self.leases[key], self.trials[key[0]]
        assert lease.ended is None, f"lease {key} ended twice"
        lease.ended = why
        trial.failures["lost"] += 1
        trial.status = "waiting"
        self.untold.add(key[0])

    def _leased(self, key: Key, data: Mapping[str, Any]) -> None:
        trial, asked = self.trials[key[0]], (data["worker"], data["run"], data["ask"])
        assert self.status == "open", f"a lease in a study that is {self.status}"
        assert key[1] == trial.fence + 1, "fences have a gap"
        assert trial.status in ("new", "waiting"), f"a trial that is {trial.status} is leased"
        assert asked not in self.withdrawn, "a withdrawn ask is served [3]"
        assert asked[:2] not in self.replaced, "a replaced run is served [4]"
        standing = self.standing.get(asked)
        assert standing is not None, f"nobody asks: {asked}"
        assert self.rest(asked, standing.n) > 0, f"{asked} has {standing.n} already [3]"
        assert data["lease_s"] == standing.lease_s, "another length of lease than was asked for"
        last = self.leases.get((key[0], trial.fence))
        if last is not None and last.worker == asked[0]:
            others = [number for number in self.waiting
                      if self.leases[number, self.trials[number].fence].worker != asked[0]]
            assert not others, "its own trial again, while others wait [5]"
        trial.fence, trial.status, trial.steps = key[1], "running", {}
        self.leases[key] = Lease(asked[0], asked, asked[1], data["lease_s"], self.now + data["lease_s"])
        if self.rest(asked, standing.n) <= 0:
            del self.standing[asked]

    def _expired(self, key: Key, data: Mapping[str, Any]) -> None:
        if "reason" not in data:
            early_s = self.leases[key].ends - self.now
            assert early_s <= 0, f"lease {key} ended {early_s} s early [5]"
        self._end(key, data.get("reason", "expired"))

    def _held(self, key: Key, data: Mapping[str, Any]) -> None:
        assert self.may_hold_again(key), f"lease {key} is held again and may not be [4]"
        lease, trial = self.leases[key], self.trials[key[0]]
        lease.ended, lease.run, lease.ends = None, data["run"], self.now + lease.lease_s
        trial.status = "running"
        trial.failures["lost"] -= 1

    def _released(self, key: Key, data: Mapping[str, Any]) -> None:
        self.leases[key].ended = "released"
        self.trials[key[0]].status = "waiting"

    def _late(self, key: Key, data: Mapping[str, Any]) -> None:
        values = data.get("values")
        if self.trials[key[0]].status != "voided" and values is not None and values["value"] is not None:
            self.trials[key[0]].lates += 1

    def _voided(self, key: Key, data: Mapping[str, Any]) -> None:
        trial = self.trials[key[0]]
        lease = self.leases.get((key[0], trial.fence))
        if lease is not None and lease.ended is None:
            lease.ended = "voided"
        trial.status, trial.lates = "voided", 0

    def _outcome(self, type: str, key: Key, data: Mapping[str, Any], told: bool) -> None:
        lease, trial = self.leases[key], self.trials[key[0]]
        assert trial.status in ("running", "waiting", "lost"), f"a trial that is {trial.status} gets a result [5]"
        assert not told or key[1] == trial.fence, "an older fence counts [5]"
        failure: str = data.get("class", "")
        if data.get("retry"):
            assert self.may_retry(key[0], failure), "tried again more often than allowed"
            trial.failures[failure] += 1
            trial.status = "waiting"
        else:
            assert not told or not failure or not self.may_retry(key[0], failure), "not tried again [7]"
            is_lost = failure == "lost" and "promoted" not in data
            if is_lost or "promoted" in data:
                assert self.status == "closed" or trial.failures["lost"] > self.retry["lost"], "given up too soon [5]"
                assert is_lost != self._has_late(key[0]), "a late outcome becomes the result of a lost trial [5]"
            values = data.get("values") or {}
            trial.status = "lost" if is_lost else type.removeprefix("trial.").replace("completed", "complete").replace(
                "failed", "fail")
            trial.value = values.get("value") if trial.status == "complete" else None
            trial.is_promoted = "promoted" in data
        if told or data.get("ended"):
            lease.ended = lease.ended if lease.ended is not None and not told else "told" if told else data["ended"]

    def _has_late(self, number: int) -> bool:
        return any(key[0] == number and lease.status == "late" for key, lease in self.leases.items())

    # ------------------------------------------------------------ what must hold after each message

    def settled(self, letters: list[Letter]) -> None:
        """What was said, and what must be so now."""
        for who, kind, body in letters:
            if kind == "grant":
                lease = self.leases[body["trial"], body["fence"]]
                assert (lease.worker, lease.asked[2]) == (who, body["ask"]), "granted to another than was recorded"
                assert lease.ended is None, "a lease that ended is granted"
                assert body["params"] == self.trials[body["trial"]].params, "the same trial with other parameters"
        if self.status == "open":
            for asked, standing in self.standing.items():
                standing.was_full |= self.rest(asked, standing.n) <= 0
            alive = [asked for asked, standing in self.standing.items()
                     if standing.lapses > self.now and not standing.was_full]
            assert not (alive and self.waiting), f"trials {self.waiting} wait, and {alive} ask [5]"
        for number in self.untold:
            trial = self.trials[number]
            assert trial.status != "waiting" or trial.failures["lost"] <= self.retry["lost"], \
                f"trial {number} waits again, after more losses than are allowed [5]"
        self.untold.clear()
        assert self.status != "closed" or not self.waiting, "a trial waits in a closed study"

    def passed(self) -> None:
        """After a tick: what ran out is over."""
        late = [key for key, lease in self.leases.items() if lease.ended is None and lease.ends <= self.now]
        assert not late, f"leases {late} have run out and stand [5]"
        for asked in [asked for asked, standing in self.standing.items() if standing.lapses <= self.now]:
            del self.standing[asked]

    def known(self) -> Counter[int]:
        """How many observations of each trial the optimiser has."""
        out: Counter[int] = Counter()
        for number, trial in self.trials.items():
            out[number] = trial.lates if self.late == "use" else 0
            is_result = trial.status in ("complete", "fail", "pruned", "lost")
            is_known = trial.is_promoted and trial.value is not None and self.late == "use"     # as a late outcome
            out[number] += is_result and not is_known
        return +out

    def best(self) -> float | None:
        return min((trial.value for trial in self.trials.values() if trial.value is not None and not trial.again
                    and trial.status == "complete"), default=None)
