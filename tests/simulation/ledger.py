"""A second opinion on the log: the contract's rules, told once more from the events alone.

The ledger reads committed rows in order and finds fault with each that the contract does not
allow. It shares no code with `bayesd.study`: what both get wrong in the same way would have to be
thought wrong twice. It also knows at any moment what is on disk, which is how letters are judged.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import orjson

from bayesd.log import Row
from bayesd.study.board import bracket_of
from bayesd_schemas import events
from bayesd_schemas.space import Space
from bayesd_schemas.study import Fidelity

FINAL = ("complete", "fail", "pruned", "voided")
RETRIED = ("crash", "timeout", "oom")
Message = dict[str, Any]
ALLOWED: dict[str, Callable[[Message], bool]] = {
    "(x - 0.5) ** 2 < 0.1": lambda at: abs(at["x"] - 0.5) < 0.31622776601683795,
    'a != 3 or b == "v"': lambda at: (at["a"], at["b"]) != (3, "u"),
    "c * d <= 100": lambda at: at["k"] == "rbf" or at["c"] * at["d"] <= 100,
    "w * abs(x) <= 50 and x != 0": lambda at: 0 < abs(at["x"] * at["w"]) <= 50,
}
"""What the constraints of the worlds mean."""


@dataclass(slots=True, eq=False)
class Lease:
    worker: str
    run: str
    ask: str
    lease_s: float
    ended: str | None = None
    told: str | None = None
    """recorded, late or released."""
    told_seq: int = 0
    renewed: float = 0.0
    """The last moment that gave it its full time for certain."""
    perhaps: float = 0.0
    """The last moment that may have done so."""
    granted: float = 0.0
    rung: int | None = None
    """Up to which it trains; None: to the end."""


@dataclass(slots=True, eq=False)
class Trial:
    params: dict[str, Any]
    status: str = "new"
    failure: str | None = None
    waits: str = ""
    """Why it waits to be leased again: lost, retry or released."""
    leases: list[Lease] = field(default_factory=list)
    lost: int = 0
    stopped: bool = False
    """The pruning rule stopped its newest fence."""
    given: tuple[float, ...] | None = None
    """What was learned of its last outcome, as long as that may be taken back."""
    failed: Counter[str] = field(default_factory=Counter)
    late: list[tuple[int, Message]] = field(default_factory=list)
    steps: dict[int, tuple[int, Any]] = field(default_factory=dict)
    """Of the newest fence: step -> (seq, values)."""
    known: list[Any] = field(default_factory=list)
    """What the optimiser should know of it: a tuple of values, or None for a failure."""
    values: tuple[float, ...] | None = None
    """Its result, if it is complete."""
    of: int | None = None
    """The leader that it measures again."""
    rungs: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """What it told when it paused."""
    broke: dict[int, bool] = field(default_factory=dict)
    """Whether what it told then broke a limit."""
    told: dict[str, Any] = field(default_factory=dict)
    """Every metric of its result, or of its highest rung until there is one."""
    spent: float | None = None
    """Of its result: what a study with a model of costs learns."""
    outcome_seq: int = 0

    @property
    def provisional(self) -> bool:
        return self.status in ("fail", "pruned") and self.failure == "lost"


@dataclass(slots=True, eq=False)
class Study:
    spec: Message
    space: Space
    goals: list[str]
    status: str = "open"
    rule: str | None = None
    trials: list[Trial] = field(default_factory=list)
    lost_max: int = 0
    """The most generous retry policy for lost leases that it ever had."""
    queued: int = 0
    remeasure: list[int] = field(default_factory=list)
    amended: bool = False
    voided: bool = False
    cost: float = 0.0
    confirm: list[int] | None = None
    """What a confirmation still has to measure again; None: none is under way."""
    repeats: dict[int, list[int]] = field(default_factory=dict)
    """Leader -> what measured it again, of the confirmation that began last."""
    announced: dict[int, list[int]] | None = None
    """The same, of the one that had a winner last."""
    winner: int | None = None
    reopened: str | None = None
    stopping: str | None = None
    """The stop rule that fired and was not taken back."""
    warmed: dict[str, int] = field(default_factory=dict)
    """Earlier study that helps -> the last event that counts."""
    doubted_seq: int = 0
    """When a result of an earlier study was taken back last."""

    @property
    def used(self) -> int:
        return sum(trial.status != "voided" and trial.of is None for trial in self.trials)

    def measured(self, trial: Trial) -> list[Any]:
        """What was told of each limit."""
        return [trial.told.get(limit.get("metric", limit["name"])) for limit in self.spec.get("limits", ())]

    def keeps(self, trial: Trial) -> bool:
        return self.allows(self.measured(trial))

    def allows(self, measured: list[Any]) -> bool:
        return all(value is not None and (value <= limit["at_most"] if "at_most" in limit else
                                          value >= limit["at_least"])
                   for limit, value in zip(self.spec.get("limits", ()), measured, strict=True))

    def results(self, at: float = math.inf) -> list[tuple[Trial, float]]:
        """Complete trials by an event, each with its value turned so that lower is better."""
        goal = self.spec["objectives"][0] if "objectives" in self.spec else self.spec
        sign = -1.0 if goal.get("direction") == "maximize" else 1.0
        return [(trial, sign * trial.values[0]) for trial in self.trials if trial.status == "complete"
                and trial.values is not None and trial.of is None and trial.outcome_seq <= at]

    def retry(self, failure: str) -> int:
        return int(self.spec.get("retry", {}).get(failure, 2 if failure == "lost" else 0))


class Ledger:
    """Reads committed events; what is wrong with them goes into `faults`."""

    def __init__(self, sent: Callable[[str, str, int, int], list[Message]]) -> None:
        self.faults: list[str] = []
        self.studies: dict[str, Study] = {}
        self.current: dict[str, str] = {}
        self.replaced: dict[str, set[str]] = {}
        self.served: dict[str, set[str]] = {}
        """Worker -> runs that got a lease."""
        self.revoked: set[str] = set()
        self.ask_max: dict[tuple[str, str, str], int] = {}
        """The largest n that was sent for an ask."""
        self.ask_tags: dict[tuple[str, str, str], set[str]] = {}
        """The tags that were sent with it."""
        self.withdrawn: dict[tuple[str, str, str], float] = {}
        """Asks that this life of the daemon has heard the end of, and when."""
        self.bodies: list[Message] = []
        self.seq = 0
        self.time = 0.0
        self.commit_s = 1.0
        """The longest time from a decision to its commit."""
        self.slack_s = 1.0
        self.listed: dict[tuple[str, str], set[tuple[str, int, int]]] = {}
        """(worker, run) -> every lease that a beat of it has listed."""
        self.steady_since = 0.0
        self.outcomes: dict[tuple[str, int, int], int] = {}
        """(study, trial, fence) -> seq of the event that answers its tells."""
        self._sent = sent
        self._hash = "0" * 64
        self._commands: set[tuple[str, str]] = set()

    def fault(self, text: str) -> None:
        self.faults.append(f"event {self.seq}: {text}")

    def lease(self, study: str, number: int, fence: int) -> Lease | None:
        of = self.studies.get(study)
        if of is None or not 1 <= number <= len(of.trials) or not 1 <= fence <= len(of.trials[number - 1].leases):
            return None
        return of.trials[number - 1].leases[fence - 1]

    # ------------------------------------------------------------ reading

    def read(self, rows: list[Row], now: float) -> None:
        """Read what was committed since the last call. Batches are whole, so what must follow has followed."""
        if len(rows) == self.seq:
            return
        self.time = now
        touched: dict[str, None] = {}
        for row in rows[self.seq:]:
            body = orjson.loads(row.body)
            self.seq += 1
            if body["seq"] != self.seq or row.seq != self.seq:
                self.fault(f"seq is {body['seq']}")
            if body["prev"] != self._hash or row.hash != sha256(b"\0" + row.body).digest():
                self.fault("the chain is broken")
            self._hash = row.hash.hex()
            self.bodies.append(body)
            try:
                events.validate(body)
            except (ValueError, KeyError) as error:
                self.fault(f"{body['type']} does not fit its model: {error}")
            self._command(body)
            try:
                getattr(self, "_" + body["type"].replace(".", "_"))(body, body["data"])
            except (IndexError, KeyError) as error:
                self.fault(f"{body['type']} speaks of what is not there: {error!r}")
            if "study" in body:
                touched[body["study"]] = None
        for name in touched:
            self._whole(name)

    def _command(self, body: Message) -> None:
        if "cmd" in body and body["actor"].startswith("operator/"):
            command = body["actor"], body["cmd"]
            if command in self._commands:
                self.fault(f"the request {command} was done twice")
            self._commands.add(command)

    def _whole(self, name: str) -> None:
        """What must be true of a study whenever a batch is on disk."""
        study = self.studies[name]
        if study.announced is not None and study.confirm is None and study.winner not in self._wins(study):
            self.fault(f"the winner of {name} is said to be {study.winner}, and it is one of {self._wins(study)}")
        for number, trial in enumerate(study.trials, start=1):
            if trial.status == "waiting":
                if study.reopened is not None and trial.of is None:
                    self.fault(f"{name}/{number} waits for a lease in a study that is open for a confirmation alone")
                if study.status == "closed":
                    self.fault(f"{name}/{number} waits for a lease in a closed study")
                elif trial.waits == "lost" and trial.lost > study.lost_max:
                    self.fault(f"{name}/{number} waits for a lease although it was lost {trial.lost} times")
            elif trial.status == "running" and (not trial.leases or trial.leases[-1].ended is not None):
                self.fault(f"{name}/{number} runs without an open lease")
            elif trial.status != "running" and trial.leases[-1].ended is None:
                self.fault(f"{name}/{number} is {trial.status} with an open lease")

    def check_deadlines(self, now: float) -> None:
        """No open lease outlives its time, unless something stood in the daemon's way."""
        for name, study in self.studies.items():
            for number, trial in enumerate(study.trials, start=1):
                for fence, lease in enumerate(trial.leases, start=1):
                    if lease.ended is None and now > (
                            max(lease.perhaps, self.steady_since) + lease.lease_s + self.slack_s):
                        self.fault(f"the lease {name}/{number}/{fence} is still open, {now - lease.perhaps:.1f} s "
                                   f"after its last renewal; it had {lease.lease_s} s")

    # ------------------------------------------------------------ studies

    def _log_opened(self, body: Message, data: Message) -> None:
        if self.seq != 1:
            self.fault("the log was opened twice")

    def _daemon_started(self, body: Message, data: Message) -> None:
        pass

    def _daemon_stopped(self, body: Message, data: Message) -> None:
        pass

    def _clock_jumped(self, body: Message, data: Message) -> None:
        pass

    def _study_created(self, body: Message, data: Message) -> None:
        name = body["study"]
        if name in self.studies:
            self.fault(f"{name} was created twice")
            return
        spec = data["spec"]
        goals = [goal["name"] for goal in spec["objectives"]] if "objectives" in spec else [spec.get("metric", "value")]
        self.studies[name] = Study(spec, Space.model_validate(spec["space"]), goals,
                                   queued=len(spec.get("enqueue", ())))
        self.studies[name].lost_max = self.studies[name].retry("lost")

    def _study_warmed(self, body: Message, data: Message) -> None:
        """An earlier study helps with what it had measured when the new one was declared."""
        at, source = data["at"], self.studies[data["source"]]
        if self.bodies[at]["type"] != "study.created" or self.bodies[at]["study"] != body["study"]:
            self.fault(f"{body['study']} is helped by {data['source']} as of {at}, and was not created after that")
        if data["hash"] != self.bodies[at]["prev"]:
            self.fault(f"{body['study']} is helped by {data['source']} at another hash than that of event {at}")
        if data["n"] != len(source.results(at)):
            self.fault(f"{data['source']} helps with {data['n']} results; it had {len(source.results(at))}")
        self.studies[body["study"]].warmed[data["source"]] = at

    def _study_amended(self, body: Message, data: Message) -> None:
        study = self._changing(body)
        study.spec = data["spec"]
        study.space = Space.model_validate(study.spec["space"])
        study.lost_max = max(study.lost_max, study.retry("lost"))
        study.amended, study.stopping = True, None
        if "queue" in data:
            study.queued = len(data["queue"])

    def _changing(self, body: Message) -> Study:
        study = self.studies[body["study"]]
        if study.status == "closed":
            self.fault(f"{body['type']} in a closed study")
        return study

    def _study_paused(self, body: Message, data: Message) -> None:
        self._changing(body).status = "paused"

    def _study_resumed(self, body: Message, data: Message) -> None:
        self._changing(body).status = "open"

    def _study_closed(self, body: Message, data: Message) -> None:
        study = self._changing(body)
        study.status, study.rule = "closed", data["rule"]
        budget = study.spec.get("budget", {})
        trials = budget.get("trials")
        reopened, study.reopened, study.confirm, study.remeasure = study.reopened, None, None, []
        if reopened is not None:
            if data["rule"] not in (reopened, "operator"):
                self.fault(f"closed by {data['rule']} after a confirmation; it was closed by {reopened} before")
            return
        active = any(trial.status in ("running", "waiting") for trial in study.trials)
        if data["rule"] == "trials" and (trials is None or study.used < trials or active):
            self.fault(f"closed by its trials with {study.used} of {trials} used, some of them open: {active}")
        if data["rule"] == "fidelity" and (active or self._trained(study) + 5 < budget.get("fidelity", math.inf)
                                           or any(trial.status == "paused" and self._trained(study) + 5 - max(
                                               trial.rungs) <= budget["fidelity"] for trial in study.trials)):
            self.fault(f"closed by its fidelity after {self._trained(study)} of {budget.get('fidelity')}: {active}")
        if data["rule"] == "cost" and not study.cost >= budget.get("cost", math.inf):
            self.fault(f"closed by its cost with {study.cost} of {budget.get('cost')} spent")
        if data["rule"] == "wall" and not data["elapsed_s"] >= budget.get("wall", math.inf):
            self.fault(f"closed by its wall time after {data['elapsed_s']} of {budget.get('wall')} s")
        if data["rule"] in ("target", "patience") and (data["rule"] != study.stopping or active):
            self.fault(f"closed by its {data['rule']}, and what fired was {study.stopping}; trials are open: {active}")
        if data["rule"] == "exhausted" and active:
            self.fault("closed as exhausted while a trial is open")

    def _study_stopping(self, body: Message, data: Message) -> None:
        study = self._changing(body)
        if study.stopping is not None or study.reopened is not None:
            self.fault(f"{body['study']} stops twice")
        study.stopping = data["rule"]
        stop, sign = study.spec["stop"], 1 if study.spec.get("direction", "minimize") == "minimize" else -1
        done = [trial for trial in study.trials if trial.status == "complete" and trial.of is None]
        values = [sign * trial.values[0] for trial in done if trial.values is not None and study.keeps(trial)]
        if data["rule"] == "target" and not min(values, default=math.inf) <= sign * stop["target"]:
            self.fault(f"stopped by its target {stop['target']} with {values}")
        if data["rule"] == "patience" and not len(done) > stop["patience"]:
            self.fault(f"stopped by its patience of {stop['patience']} with {len(done)} results")

    def _study_confirming(self, body: Message, data: Message) -> None:
        study = self.studies[body["study"]]
        if study.confirm is not None:
            self.fault(f"{body['study']} confirms its leaders twice at the same time")
        if study.status == "closed":
            study.status, study.reopened, study.rule = "open", study.rule, None
            if body["actor"] == "daemon":
                self.fault(f"{body['study']} was opened again by nobody")
        sign = 1 if study.spec.get("direction", "minimize") == "minimize" else -1
        found = [sign * (self._reached(study.trials[number - 1]) or (math.nan,))[0] for number in data["trials"]]
        whole = any(trial.status == "complete" and trial.of is None and study.keeps(trial) for trial in study.trials)
        chosen = [study.trials[number - 1] for number in data["trials"]]
        if found != sorted(found) or any(trial.status != "complete" and (whole or not trial.rungs) for trial in chosen):
            self.fault(f"the leaders {data['trials']} of {body['study']} have {found}")
        if not all(study.keeps(trial) for trial in chosen):
            self.fault(f"a leader of {data['trials']} of {body['study']} breaks a limit")
        study.repeats = {number: [] for number in data["trials"]}
        study.confirm = [number for number in data["trials"] for _ in range(data["repeats"])]

    def _reached(self, trial: Trial) -> tuple[float, ...] | None:
        """What a leader told: its result, or where it climbs, what it told at its highest rung."""
        if trial.status == "complete":
            return trial.values
        return trial.rungs[max(trial.rungs)] if trial.rungs and trial.status not in ("voided", "fail") else None

    def _study_winner(self, body: Message, data: Message) -> None:
        study = self.studies[body["study"]]
        if study.confirm is not None:
            self._changing(body)
            if study.confirm or any(study.trials[number - 1].status in ("running", "waiting")
                                    for numbers in study.repeats.values() for number in numbers):
                self.fault(f"{body['study']} has a winner before its leaders were measured again")
            study.announced, study.confirm = study.repeats, None
        elif study.announced is None:
            self.fault(f"{body['study']} has a winner and confirmed none")
        study.winner = data["trial"]

    def _wins(self, study: Study) -> set[int | None]:
        """Which trials the last winner may be, by what is known now; more than one only if they are equals."""
        sign = 1 if study.spec.get("direction", "minimize") == "minimize" else -1
        first, again = dict[int, float](), dict[int, float]()
        for number, repeats in (study.announced or {}).items():
            leader = study.trials[number - 1]
            told = self._reached(leader)
            measured = [trial for trial in (study.trials[each - 1] for each in repeats) if trial.status == "complete"]
            each_limit = zip(*map(study.measured, measured), strict=True) if measured else study.measured(leader)
            if told is not None and study.allows([math.fsum(limit) / len(limit) if measured else limit
                                                  for limit in each_limit]):
                first[number] = sign * told[0]
                values = [sign * trial.values[0] for trial in measured if trial.values is not None]
                if values:
                    again[number] = sum(values) / len(values)
        found = again or first
        return {number for number, value in found.items()
                if math.isclose(value, min(found.values()), rel_tol=1e-12, abs_tol=1e-12)} or {None}

    def _study_ticked(self, body: Message, data: Message) -> None:
        pass

    def _point_enqueued(self, body: Message, data: Message) -> None:
        self._changing(body).queued += 1

    def _point_again(self, body: Message, data: Message) -> None:
        study, trial = self._trial(body)
        self._changing(body)
        if trial.of is not None or trial.status in ("running", "waiting", "voided") or study.reopened is not None:
            self.fault(f"{body['study']}/{body['trial']} is to be measured again, and cannot be")
        study.remeasure += [body["trial"]] * data["repeats"]

    def _model_fitted(self, body: Message, data: Message) -> None:
        pass

    # ------------------------------------------------------------ leases

    def _trial(self, body: Message) -> tuple[Study, Trial]:
        study = self.studies[body["study"]]
        if body["trial"] < 1:
            raise IndexError(body["trial"])
        return study, study.trials[body["trial"] - 1]

    def _trial_proposed(self, body: Message, data: Message) -> None:
        study = self._changing(body)
        name = body["study"]
        if body["trial"] != len(study.trials) + 1:
            self.fault(f"trial {body['trial']} of {name} follows {len(study.trials)}")
        if study.status != "open":
            self.fault(f"{name} is {study.status} and proposes a trial")
        budget = study.spec.get("budget", {}).get("trials")
        again = data["sampler"] in ("confirm", "again")
        if data["sampler"] == "again":
            if data["of"] not in study.remeasure or data["params"] != study.trials[data["of"] - 1].params:
                self.fault(f"{name} measures {data.get('of')} again, of {study.remeasure}")
            else:
                study.remeasure.remove(data["of"])
        elif again:
            if data["of"] not in (study.confirm or ()) or data["params"] != study.trials[data["of"] - 1].params:
                self.fault(f"{name} measures {data.get('of')} again, of {study.confirm}")
            elif study.confirm is not None:
                study.confirm.remove(data["of"])
                study.repeats[data["of"]].append(body["trial"])
        elif study.reopened is not None:
            self.fault(f"{name} is open for a confirmation alone and proposes trial {body['trial']}")
        if study.stopping is not None and not again:
            self.fault(f"{name} proposes trial {body['trial']} although its rule {study.stopping} fired")
        if budget is not None and study.used >= budget and not again:
            self.fault(f"{name} proposes trial {body['trial']} beyond its budget of {budget} trials")
        if not study.stopping and study.reopened is None and (better := self._going_on(study)) and (
                "fidelity" not in study.spec.get("budget", {})):        # they may be too dear
            self.fault(f"{name} proposes trial {body['trial']} while {better} may go on")
        if any(trial.status == "waiting" for trial in study.trials):
            self.fault(f"{name} proposes a new trial while another waits to be leased again")
        if study.queued and data["sampler"] not in ("enqueued", "confirm", "again"):
            self.fault(f"{name} proposes a drawn point before the {study.queued} enqueued ones")
        if study.remeasure and not again:
            self.fault(f"{name} proposes a new point before those to be measured again, {study.remeasure}")
        if data["sampler"] == "enqueued":
            study.queued -= 1
        if data["sampler"] in ("random", "grid") and data["stream"].split("/")[1] != str(body["trial"]):
            self.fault(f"{name} proposes trial {body['trial']} from the stream {data['stream']}")
        if study.doubted_seq > data["as_of"]:
            self.fault(f"{name} proposes what was made at {data['as_of']}; a result that helps it was voided at "
                       f"{study.doubted_seq}")
        params = study.space.check(data["params"])
        for text in study.spec.get("constraints", ()):
            if not ALLOWED[text](params):
                self.fault(f"{name} proposes {params}, which breaks {text}")
        once = study.spec.get("noise") == "none" or study.spec.get("method") == "grid"
        if once and data["sampler"] not in ("enqueued", "confirm", "again") and any(
                trial.params == params for trial in study.trials if trial.status != "voided"):
            self.fault(f"{name} proposes {params} a second time")
        study.trials.append(Trial(params, of=data["of"] if again else None))

    def _trial_leased(self, body: Message, data: Message) -> None:
        study, trial = self._trial(body)
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        worker, run, ask = data["worker"], data["run"], data["ask"]
        if data["fence"] != len(trial.leases) + 1:
            self.fault(f"{what} is leased after fence {len(trial.leases)}")
        if study.status != "open" or (study.reopened is not None and trial.of is None):
            self.fault(f"{what} is leased in a study that is {study.status}")
        if trial.status not in ("new", "waiting", "paused"):
            self.fault(f"{what} is leased while the trial is {trial.status}")
        rungs = self._rungs(study, body["trial"], trial)
        rung = next((each for each in rungs if each not in trial.rungs), None)
        if data.get("fidelity") != rung:
            self.fault(f"{what} is leased up to {data.get('fidelity')}; its next rung is {rung}")
        most = study.spec.get("budget", {}).get("fidelity")
        if trial.status == "paused" and (study.stopping or (
                most is None and body["trial"] not in self._going_on(study))):
            self.fault(f"{what} goes on from {[*trial.rungs]} and must not")
        if most is not None and trial.status != "waiting" and trial.of is None and self._trained(study) + (
                rung or 5) - max(trial.rungs, default=0) > most:
            self.fault(f"{what} trains beyond a budget of {most}, of which {self._trained(study)} is used")
        if run in self.replaced.get(worker, ()):
            self.fault(f"{what} is leased to the replaced run {run} of {worker}")
        if worker in self.revoked:
            self.fault(f"{what} is leased to {worker}, who is revoked")
        for failure, times in trial.failed.items():
            if times > study.retry(failure) and not study.amended:
                self.fault(f"{what} is leased again after {times} failures of class {failure}")
        held = [lease for other in self.studies.values() for each in other.trials for lease in each.leases
                if (lease.worker, lease.run, lease.ask) == (worker, run, ask)
                and (lease.ended is None or lease.told in ("recorded", "late"))]
        if len(held) >= self.ask_max.get((worker, run, ask), 0):
            self.fault(f"{what}: the ask {ask} of {worker} has {len(held)} leases already")
        if not set(study.spec.get("tags", ())) <= self.ask_tags.get((worker, run, ask), set()):
            self.fault(f"{what} is leased to {worker}, whose tags do not match")
        withdrawn = self.withdrawn.get((worker, run, ask))
        if withdrawn is not None and withdrawn < self.time - self.commit_s:
            self.fault(f"{what} is leased to the ask {ask}, which was withdrawn")
        self.served.setdefault(worker, set()).add(run)
        trial.leases.append(Lease(worker, run, ask, data["lease_s"], renewed=self.time - self.commit_s,
                                  perhaps=self.time, granted=self.time, rung=data.get("fidelity")))
        trial.status = "running"
        trial.steps = {}
        if trial.stopped:
            self.fault("a trial that was stopped is leased again")
        trial.stopped = False

    def _lease_expired(self, body: Message, data: Message) -> None:
        _, trial = self._trial(body)
        lease = trial.leases[data["fence"] - 1]
        reason = data.get("reason", "expired")
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        if lease.ended is not None or data["fence"] != len(trial.leases):
            self.fault(f"{what} expires but is not open")
        if reason == "expired" and self.time < lease.renewed + lease.lease_s - 1e-6:
            self.fault(f"{what} expires {self.time - lease.renewed:.2f} s after its renewal; it had {lease.lease_s} s")
        lease.ended = reason
        trial.lost += 1
        trial.status, trial.waits = "waiting", "lost"

    def _lease_held(self, body: Message, data: Message) -> None:
        _, trial = self._trial(body)
        lease = trial.leases[data["fence"] - 1]
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        if data["fence"] != len(trial.leases) or lease.ended not in ("expired", "superseded") or lease.told:
            self.fault(f"{what} is held again, but it is {lease.ended}, told {lease.told}, of {len(trial.leases)}")
        if trial.status != "waiting" and not trial.provisional:
            self.fault(f"{what} is held again while the trial is {trial.status}")
        if body["actor"] != f"worker/{lease.worker}" or data["run"] != self.current.get(lease.worker):
            self.fault(f"{what} is held again by {body['actor']} with run {data['run']}")
        if trial.provisional and not (trial.rungs and trial.status == "pruned"):      # what it told at rungs stands
            trial.known.remove(trial.given)
        lease.ended, lease.run = None, data["run"]
        lease.renewed, lease.perhaps = self.time - self.commit_s, self.time
        trial.lost -= 1
        trial.status, trial.failure = "running", None

    def _lease_released(self, body: Message, data: Message) -> None:
        _, trial = self._trial(body)
        lease = self._told(body, data)
        if data["fence"] != len(trial.leases) or trial.status not in ("running", "waiting"):
            self.fault(f"a release of fence {data['fence']} while the trial is {trial.status}")
        lease.told = "released"
        lease.ended = "released"
        trial.status, trial.waits = "waiting", "released"

    def _run_began(self, body: Message, data: Message) -> None:
        worker, run = str(data["worker"]), str(data["run"])
        replaced = self.replaced.setdefault(worker, set())
        if run in replaced or run == self.current.get(worker):
            self.fault(f"run {run} of {worker} began a second time")
        took, ended = ({tuple(key) for key in data[name]} for name in ("took", "ended"))
        if not took <= self.listed.get((worker, run), set()):
            self.fault(f"run {run} of {worker} took over {took}; its beats listed {self.listed.get((worker, run))}")
        for name, study in self.studies.items():
            for number, trial in enumerate(study.trials, start=1):
                for fence, lease in enumerate(trial.leases, start=1):
                    if lease.worker != worker:
                        continue
                    key = (name, number, fence)
                    if lease.run != run and lease.ended is None and key not in took | ended:
                        self.fault(f"run {run} of {worker} left the lease {key} open")
                    if key in took | ended and lease.ended is not None:
                        self.fault(f"run {run} of {worker} took or ended the lease {key}, which is {lease.ended}")
                    if key in took:
                        lease.run = run
                    elif key in ended:
                        lease.ended = "superseded"
                        trial.lost += 1
                        trial.status, trial.waits = "waiting", "lost"
        replaced |= self.served.get(worker, set())
        replaced.add(self.current.get(worker, run))
        replaced.discard(run)
        self.current[worker] = run

    def _worker_revoked(self, body: Message, data: Message) -> None:
        self.revoked.add(data["worker"])

    def _trial_reported(self, body: Message, data: Message) -> None:
        _, trial = self._trial(body)
        if data["fence"] != len(trial.leases) or trial.status in FINAL:
            self.fault(f"a report of fence {data['fence']} is recorded while the trial is {trial.status}")
        if body["actor"] != f"worker/{trial.leases[data['fence'] - 1].worker}":
            self.fault(f"a report by {body['actor']} is recorded")
        if data["step"] in trial.steps:
            self.fault(f"step {data['step']} of fence {data['fence']} is recorded twice")
        trial.steps[data["step"]] = self.seq, data["values"]

    def _trial_stopped(self, body: Message, data: Message) -> None:
        """Decided once for a lease, with the report that led to it, and never of what measures a leader again."""
        study, trial = self._trial(body)
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        if trial.stopped or trial.of is not None or "prune" not in study.spec:
            self.fault(f"{what} is stopped, and must not be")
        if trial.status != "running" or data["fence"] != len(trial.leases):
            self.fault(f"{what} is stopped while the trial is {trial.status} with fence {len(trial.leases)}")
        if trial.steps.get(data["step"], (0,))[0] != self.seq - 1 or data["step"] != max(trial.steps):
            self.fault(f"{what} is stopped at step {data['step']}, which was not reported just before")
        trial.stopped = True

    # ------------------------------------------------------------ rungs

    def _rungs(self, study: Study, number: int, trial: Trial) -> list[int]:
        """The rungs below the whole of it, of which worlds have 1, 2 and 4; hyperband's brackets begin higher."""
        if not study.spec.get("prune", {}).get("resume") or trial.of is not None:
            return []
        first = bracket_of(Fidelity.model_validate(study.spec["fidelity"]), number) \
            if study.spec["prune"]["rule"] == "hyperband" else 0
        return [1, 2, 4][first:]

    def _trained(self, study: Study) -> int:
        """How far all trials were trained, or will have been when those at work have told."""
        found = 0
        for number, trial in enumerate(study.trials, start=1):
            if trial.of is None and trial.status == "complete":
                found += 5
            elif trial.of is None and trial.status in ("running", "waiting"):
                found += next((each for each in self._rungs(study, number, trial) if each not in trial.rungs), 5)
            elif trial.status not in ("voided", "new"):
                found += max(trial.rungs, default=0)
        return found

    def _going_on(self, study: Study) -> list[int]:
        """Trials that are paused at a rung and in the better half of all that were there, in the same bracket or in any
        where they share their rungs."""
        shared = study.spec.get("prune", {}).get("shared", False)
        if study.spec.get("prune", {}).get("by") == "dominance":
            return self._going_on_by_dominance(study, shared)
        metric = study.spec.get("prune", {}).get("metric")
        goal = study.goals.index(metric) if metric else 0
        objective = study.spec["objectives"][goal] if "objectives" in study.spec else study.spec
        sign = -1 if objective.get("direction") == "maximize" else 1
        there: dict[tuple[int, int], list[tuple[bool, float, int]]] = {}
        for number, trial in enumerate(study.trials, start=1):
            if trial.status != "voided":
                for rung, values in trial.rungs.items():
                    bracket = 0 if shared else len(self._rungs(study, number, trial))
                    there.setdefault((bracket, rung), []).append((trial.broke[rung], sign * values[goal], number))
        return [number for (_, rung), entries in there.items()
                for *_, number in sorted(entries)[:len(entries) // 2]
                if (trial := study.trials[number - 1]).status == "paused" and max(trial.rungs) == rung]

    def _going_on_by_dominance(self, study: Study, shared: bool) -> list[int]:
        """The same by how many dominate a trial, and then by the room between its neighbours; pair by pair."""
        signs = [-1 if goal.get("direction") == "maximize" else 1 for goal in study.spec["objectives"]]
        there: dict[tuple[int, int], dict[int, tuple[float, ...]]] = {}
        for number, trial in enumerate(study.trials, start=1):
            if trial.status != "voided":
                for rung, values in trial.rungs.items():
                    bracket = 0 if shared else len(self._rungs(study, number, trial))
                    there.setdefault((bracket, rung), {})[number] = tuple(
                        float("inf") if trial.broke[rung] else sign * value
                        for sign, value in zip(signs, values, strict=True))
        out = []
        for (_, rung), points in there.items():
            behind = {number: sum(other != point and all(a <= b for a, b in zip(other, point, strict=True))
                                  for other in points.values()) for number, point in points.items()}
            room = dict.fromkeys(points, 0.0)
            for k in range(len(signs)):
                for count in set(behind.values()):
                    row = sorted((points[number][k], number) for number in points if behind[number] == count)
                    low, high = row[0][0], row[-1][0]
                    for i, (value, number) in enumerate(row):
                        room[number] += float("inf") if value in (low, high) else (
                            row[i + 1][0] - row[i - 1][0]) / (high - low)
            order = sorted(points, key=lambda number: (behind[number], -room[number], number))
            out += [number for number in order[:len(order) // 2]
                    if (trial := study.trials[number - 1]).status == "paused" and max(trial.rungs) == rung]
        return out

    def _trial_paused(self, body: Message, data: Message) -> None:
        """The first tell of the newest fence, at the rung of its lease."""
        study, trial = self._trial(body)
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        lease = self._told(body, data)
        if data["fence"] != len(trial.leases) or (trial.status in (*FINAL, "paused") and not trial.provisional):
            self.fault(f"{what} pauses while the trial is {trial.status} with fence {len(trial.leases)}")
        if data["fidelity"] != lease.rung or data["fidelity"] in trial.rungs:
            self.fault(f"{what} pauses at {data['fidelity']}; it was leased for {lease.rung}")
        if trial.provisional and trial.status == "fail":
            trial.known.remove(trial.given)
        lease.told, lease.ended = "recorded", "told"
        self._superseded(trial)
        values = self._values(study, data)
        assert values is not None
        trial.rungs[data["fidelity"]], trial.told = values, data["values"]
        trial.broke[data["fidelity"]] = not study.keeps(trial)
        trial.known.append(values)
        trial.status, trial.failure, trial.given = "paused", None, None

    def _superseded(self, trial: Trial) -> None:
        """What its last rung taught, from the end: a late outcome may have said the same."""
        if trial.rungs:
            values = trial.rungs[max(trial.rungs)]
            place = next((place for place in reversed(range(len(trial.known))) if trial.known[place] == values), None)
            if place is not None:
                del trial.known[place]

    # ------------------------------------------------------------ outcomes

    def _told(self, body: Message, data: Message) -> Lease:
        """A worker's tell became this event: it is the first with its fence, and says what was sent."""
        study, trial = self._trial(body)
        key = body["study"], body["trial"], data["fence"]
        lease: Lease = trial.leases[data["fence"] - 1]
        if body["actor"] != f"worker/{lease.worker}":
            self.fault(f"a tell of {key} by {body['actor']} counts; its worker is {lease.worker}")
        if key in self.outcomes:
            self.fault(f"a second tell of {key} is recorded; the first is event {self.outcomes[key]}")
        self.outcomes[key] = lease.told_seq = self.seq
        if not any(agrees(study.goals, body, message) for message in self._sent(lease.worker, *key)):
            self.fault(f"{body['type']} of {key} does not say what its worker told")
        if data.get("cost") and trial.of is None:
            study.cost += data["cost"]
        return lease

    def _trial_completed(self, body: Message, data: Message) -> None:
        self._outcome(body, data, "complete")

    def _trial_pruned(self, body: Message, data: Message) -> None:
        self._outcome(body, data, "pruned")

    def _trial_failed(self, body: Message, data: Message) -> None:
        self._outcome(body, data, "fail")

    def _outcome(self, body: Message, data: Message, status: str) -> None:
        study, trial = self._trial(body)
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        newest = data["fence"] == len(trial.leases)
        if "promoted" in data:
            if trial.status != "waiting" or not self._given_up(study, trial):
                self.fault(f"the late outcome of {what} becomes the result while the trial is {trial.status}")
            whole = [each for each in trial.late if trial.leases[each[1]["fence"] - 1].rung is None]
            if not whole or whole[0][0] != data["promoted"]:
                self.fault(f"{what} has no first late outcome at {data['promoted']}")
            elif data.get("values") != whole[0][1].get("values"):
                self.fault(f"the late outcome of {what} became another result than it was")
        elif body["actor"] == "daemon" and "rung" in data:
            self._ended_at_rung(study, trial, body, data)
            return
        elif body["actor"] == "daemon":
            if trial.status != "waiting" or not self._given_up(study, trial) or data.get("class") != "lost":
                self.fault(f"{what} is given up while the trial is {trial.status}")
            if any(trial.leases[said["fence"] - 1].rung is None for _, said in trial.late):
                self.fault(f"{what} is given up as lost although a late outcome is known at {trial.late[0][0]}")
        elif body["actor"].startswith("operator/"):
            if trial.status in FINAL:
                self.fault(f"{what} is cancelled while the trial is {trial.status}")
            trial.leases[-1].ended = trial.leases[-1].ended or "cancelled"
        else:
            lease = self._told(body, data)
            if not newest or (trial.status in FINAL and not trial.provisional):
                self.fault(f"a tell of {what} is the result while the trial is {trial.status} "
                           f"with fence {len(trial.leases)}")
            lease.told = "recorded"
            lease.ended = "told"
        if trial.provisional and not (trial.rungs and trial.status == "pruned"):
            trial.known.remove(trial.given)
        if data.get("retry"):
            trial.failed[data["class"]] += 1
            if trial.failed[data["class"]] > study.retry(data["class"]) or data["class"] not in RETRIED \
                    or self._is_over(study, trial):
                self.fault(f"{what} is tried again after {trial.failed[data['class']]} failures of class "
                           f"{data['class']} in a study that is {study.status}")
            trial.status, trial.failure, trial.waits = "waiting", None, "retry"
            return
        if body["actor"].startswith("worker/") and data.get("class") in RETRIED and not self._is_over(study, trial) \
                and not trial.stopped and trial.failed[data["class"]] < study.retry(data["class"]):
            self.fault(f"{what} failed with class {data['class']} and is not tried again")
        if data.get("learn") is not False:
            self._superseded(trial)
        trial.status, trial.failure = status, data.get("class")
        trial.values = self._values(study, data) if status == "complete" else None
        trial.given, trial.outcome_seq = None, self.seq
        if status == "complete":
            cost = study.spec.get("cost")
            trial.told, trial.spent = data["values"], data.get(cost["per"]) if cost is not None else None
        if status == "fail":
            trial.known.append(None)
        elif status == "pruned":
            values = self._values(study, data)
            was_known = "promoted" in data and values is not None and study.spec.get("late") != "ignore"
            if values is None and trial.steps:
                values = self._values(study, {"values": trial.steps[max(trial.steps)][1]})
            elif values is None and trial.rungs:
                values = trial.rungs[max(trial.rungs)]
            if ("estimate" in data) != ("folds" in study.spec and bool(trial.steps) and trial.of is None
                                        and "promoted" not in data):
                self.fault(f"{what} has the estimate {data.get('estimate')} of {len(trial.steps)} reports")
            if "estimate" in data:
                values = self._values(study, data["estimate"])
            if not was_known:
                trial.known.append(values)
                trial.given = values
        elif "promoted" not in data or study.spec.get("late") == "ignore":
            trial.known.append(self._values(study, data))

    def _ended_at_rung(self, study: Study, trial: Trial, body: Message, data: Message) -> None:
        """A paused trial ends with its study, or when nobody may go on; one that is lost ends where it stood."""
        what = f"{body['study']}/{body['trial']}/{data['fence']}"
        is_lost = data.get("class") == "lost"
        highest = max(trial.rungs, default=0)
        if data["rung"] != highest or self._values(study, data) != trial.rungs.get(highest):
            self.fault(f"{what} ends at rung {data['rung']}, and had told {trial.rungs}")
        if is_lost and (trial.status != "waiting" or not self._given_up(study, trial)):
            self.fault(f"{what} is given up while the trial is {trial.status}")
        if not is_lost and trial.status != "paused":
            self.fault(f"{what} ends at its rung while the trial is {trial.status}")
        if not is_lost and not self._is_over(study, trial) and not study.stopping and (
                (self._going_on(study) and "fidelity" not in study.spec.get("budget", {}))
                or any(each.status in ("running", "waiting") for each in study.trials)):
            self.fault(f"{what} ends at its rung while {self._going_on(study)} may go on, or others are at work")
        trial.status, trial.failure = "pruned", data.get("class")

    def _given_up(self, study: Study, trial: Trial) -> bool:
        return self._is_over(study, trial) or study.amended or trial.lost > study.lost_max or trial.stopped

    def _is_over(self, study: Study, trial: Trial) -> bool:
        return study.status == "closed" or (study.reopened is not None and trial.of is None)

    def _values(self, study: Study, data: Message) -> tuple[float, ...] | None:
        values = [(data.get("values") or {}).get(goal) for goal in study.goals]
        return None if None in values else tuple(values)    # type: ignore[arg-type]  # None was just excluded

    def _outcome_late(self, body: Message, data: Message) -> None:
        study, trial = self._trial(body)
        lease = self._told(body, data)
        if data["fence"] == len(trial.leases) and (trial.status not in FINAL or trial.provisional):
            self.fault(f"a tell with the newest fence of {body['study']}/{body['trial']} is late "
                       f"while the trial is {trial.status}")
        lease.told = "late"
        trial.late.append((self.seq, data))
        values = self._values(study, data)
        if (study.spec.get("late") != "ignore" and trial.status != "voided" and values is not None
                and data["state"] != "fail" and (lease.rung is None or data["state"] == "pruned")):
            trial.known.append(values)

    def _outcome_voided(self, body: Message, data: Message) -> None:
        study, trial = self._trial(body)
        if trial.status == "voided":
            self.fault(f"{body['study']}/{body['trial']} is voided twice")
        if trial.leases[-1].ended is None:
            trial.leases[-1].ended = "voided"
        trial.status = "voided"
        trial.known.clear()
        for other in self.studies.values():
            if 0 < trial.outcome_seq <= other.warmed.get(body["study"], 0):
                other.doubted_seq = self.seq
        if study.confirm is not None:
            study.confirm = [number for number in study.confirm if number != body["trial"]]
        study.remeasure = [number for number in study.remeasure if number != body["trial"]]
        study.voided = True
        if study.status != "closed":
            study.stopping = None


def _number(value: Any) -> float | None:
    if isinstance(value, str) or value is None or not abs(value) <= 1e300:
        return None
    return float(value)


def _mean(folds: list[float | None]) -> float | None:
    return None if None in folds else math.fsum(folds) / len(folds)    # type: ignore[arg-type]  # no None


def agrees(goals: list[str], body: Message, tell: Message) -> bool:
    """Whether an event says what a tell said, by the words of the contract."""
    data, state = body["data"], tell.get("state", "complete")
    if "folds" in tell:
        by_name = tell["folds"] if isinstance(tell["folds"], dict) else {goals[0]: tell["folds"]}
        values: Message | None = {name: _mean([_number(value) for value in folds]) for name, folds in by_name.items()}
    elif "values" in tell:
        values = {name: _number(value) for name, value in tell["values"].items()}
    elif "value" in tell:
        values = {goals[0]: _number(tell["value"])}
    else:
        values = None
    if state != "complete" and "value" in tell and values == {goals[0]: None}:
        values = None              # of what did not run to its end, no number says nothing
    failure = tell.get("class", "crash") if state == "fail" else None
    if state == "complete" and values is not None and None in [values.get(goal) for goal in goals]:
        state, failure = "fail", "nonfinite"
    if body["type"] == "lease.released":
        return bool(state == "released")
    said = {"trial.completed": "complete", "trial.failed": "fail", "trial.pruned": "pruned",
            "trial.paused": "complete", "outcome.late": data.get("state")}.get(body["type"])
    return (said == state and data.get("class") == failure and _same(data.get("values"), values)
            and ("error_ref" in data) == (tell.get("error") is not None)
            and all(data.get(name) == tell.get(name) for name in ("cost", "seconds")))


def _same(a: Message | None, b: Message | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(
        a[name] is b[name] or (a[name] is not None and b[name] is not None
                               and math.isclose(a[name], b[name], rel_tol=1e-12)) for name in a)
