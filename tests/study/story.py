"""A desk for stories: given events, when a message comes, then events and letters.

    story = Story()                               # one open study "s", nobody there yet
    story.ask("w1")                               # what was recorded and said, as two lists
    story.tell("w1", 1, value=0.5)

Events are (type, trial, data) and letters (who, kind, body), whole but for what would only repeat
itself: the ticks, `as_of`, digests and elapsed seconds of events, `at` and the constant parts of grants. A
receipt's seq is shown as the type of the event that it names, and its hash is checked here.
"""

from collections import Counter
from typing import Any

import orjson

from bayesd.log import Row
from bayesd.replay import event_of
from bayesd.study import admin, limits, rules, snapshot
from bayesd.study.desk import Desk, restart
from bayesd.study.fold import replay
from bayesd.study.problem import Proposal, Suggestion
from bayesd.study.state import State, Study
from bayesd_schemas import events
from bayesd_schemas.messages import BadMessage, validate

Fact = tuple[str, int | None, dict[str, Any]]
Letter = tuple[str, str, dict[str, Any]]
Said = tuple[list[Fact], list[Letter]]

BASE: dict[str, Any] = {"name": "s", "method": "random", "space": {"x": {"type": "float", "low": 0, "high": 100}},
                        "lease": {"default_s": 600}}


class Story:
    """One log, one study, a clock turned by hand, and a sampler that counts: the points are 1, 2, 3, ..."""

    def __init__(self, *, points: int = 100, operators: frozenset[str] | None = None, **spec: Any) -> None:
        self.desk = Desk(operators=operators)
        self.points = points
        self.rows: list[Row] = []
        self.thinks = True
        self.at(0.0)
        self.desk.record("log.opened", {"log": "story", "format": 1, "version": "0"})
        self.desk.record("daemon.started", {"epoch": 1, "version": "0"})
        self.said()
        self.request("op", "study.create", id="create", spec={**BASE, **spec})

    # ------------------------------------------------------------ time

    def at(self, now: float) -> None:
        self.now = now
        self.desk.at(now, f"2026-01-01T00:00:00.{int(now) % 1_000_000:06d}Z")

    def tick(self, now: float) -> Said:
        self.at(now)
        rules.on_tick(self.desk)
        return self.said()

    def restart(self) -> None:
        """Another life: memory is lost, and the log is folded again."""
        now = self.desk.now
        self.desk = Desk(self.replayed(), operators=self.desk.operators)
        self.at(now)
        restart(self.desk)

    # ------------------------------------------------------------ messages

    def ask(self, worker: str, id: str = "a1", run: str | None = None, study: str | None = "s", **more: Any) -> Said:
        message = {"id": id, "run": run or f"{worker}-r1", **more}
        return self._on("ask", worker, message if study is None else {**message, "study": study})

    def beat(self, worker: str, *leases: tuple[int, int], run: str | None = None, asks: tuple[str, ...] = ()) -> Said:
        return self._on("beat", worker, {"run": run or f"{worker}-r1", "asks": list(asks),
                                         "leases": [["s", *lease] for lease in leases]})

    def tell(self, worker: str, trial: int, fence: int = 1, id: str | None = None, study: str = "s",
             **more: Any) -> Said:
        return self._on("tell", worker, {"id": id or f"t.s.{trial}.{fence}", "study": study, "trial": trial,
                                         "fence": fence, **more})

    def report(self, worker: str, trial: int, step: int, value: Any, fence: int = 1) -> Said:
        return self._on("report", worker, {"id": f"r.s.{trial}.{fence}.{step}", "study": "s", "trial": trial,
                                           "fence": fence, "step": step,
                                           ("values" if isinstance(value, dict) else "value"): value})

    def request(self, client: str, verb: str, id: str = "q1", **args: Any) -> Said:
        if verb.startswith(("study.", "trial.")) and verb not in ("study.create", "study.list"):
            args.setdefault("study", "s")
        admin.on_request(self.desk, client, validate("request", {"id": id, "verb": verb, "args": args}))
        return self.said()

    def _on(self, kind: str, worker: str, message: dict[str, Any]) -> Said:
        on = {"ask": rules.on_ask, "beat": rules.on_beat, "tell": rules.on_tell, "report": rules.on_report}[kind]
        try:
            on(self.desk, worker, validate(kind, message))      # type: ignore[operator]  # each takes its own kind
        except BadMessage as error:
            rules.reject(self.desk, worker, error.id or "no id", error.reason, error.detail)
        return self.said()

    def think(self) -> None:
        """Let the sampler do what is ordered."""
        for order in rules.orders(self.desk):
            first = order.problem.number
            last = min(first + order.wanted, self.points + 1)
            rules.supply(self.desk, order, Suggestion(tuple(
                Proposal({"x": float(number)}, "random", f"0/{number}/random", order.problem.drawn + 1 + number - first)
                for number in range(first, last)), exhausted=last - first < order.wanted))

    # ------------------------------------------------------------ what came of it

    def said(self) -> Said:
        """Commit, and show what was recorded and what left."""
        if self.thinks:
            self.think()
        rows = self.desk.take_rows()
        self.rows += rows
        letters = self.desk.committed(len(self.rows))
        wrong = untidy(self.desk)
        assert not wrong, wrong
        for row in rows:
            events.validate(orjson.loads(row.body))
        facts = [_fact(row) for row in rows if row.type != "study.ticked"]
        return facts, [(letter.who, letter.kind, self._letter(letter.kind, letter.body)) for letter in letters]

    def _letter(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        body = dict(body)
        if kind == "grant":
            assert body.pop("epoch") == 1
            assert body.pop("study") in ("s", "t")
            del body["at"], body["space_rev"]
        elif "hash" in body:
            row = self.rows[body["seq"] - 1]
            assert body.pop("hash") == row.hash.hex()
            body["seq"] = row.type
        body.pop("detail", None)       # for people
        return body

    def replayed(self) -> State:
        return replay(event_of(row.body, row.hash) for row in self.rows)

    def check(self) -> None:
        """A replay equals the life, and so does a snapshot."""
        state = self.replayed()
        assert snapshot.digest(state) == snapshot.digest(self.desk.state)
        loaded = snapshot.load(*snapshot.dump(state))
        assert loaded is not None
        assert snapshot.digest(loaded) == snapshot.digest(state)


def untidy(desk: Desk) -> list[str]:
    """What the desk has in memory and should not have, or the other way round: nobody would see it for a long time."""
    wrong = []
    open_ = {trial.open_lease for study in desk.state.studies.values() for trial in study.running.values()}
    if set(desk.deadlines) != open_:
        wrong.append("the leases with a deadline are not the open ones")
    if not set(desk.missed) <= open_:
        wrong.append("a lease that is not open is missed in beats")
    if any(deadline > desk.now + lease.lease_s for lease, deadline in desk.deadlines.items()):
        wrong.append("a lease has more than its full time")
    wrong += [f"the best of {study.name} is not the best" for study in desk.state.studies.values()
              if not is_best(study)]
    for name, worker in desk.state.workers.items():
        if worker.replaced & set(worker.asks):
            wrong.append(f"asks of runs of {name} that were replaced are kept")
        if set(worker.open) != {lease for lease in open_ if lease is not None and lease.worker == name}:
            wrong.append(f"the open leases of {name} are others")
    queued = [(key, standing, study) for study, queue in desk.queues.items() for key, standing in queue.items()]
    in_line = {(key, standing) for key, standing, study in queued if study == (standing.ask.study or "")}
    if in_line != set(desk.standing.items()) or len(queued) != len(in_line) or not all(desk.queues.values()):
        wrong.append("who stands and who is in a queue differ")
    if desk._standing_of != Counter(worker for worker, _, _ in desk.standing):
        wrong.append("the asks of a worker are counted wrongly")
    return wrong


def is_best(study: Study) -> bool:
    """Whether what leads a study is what a look at all its trials finds; of equals it may be any."""
    sign = -1.0 if study.goals[0].direction == "maximize" else 1.0
    values = [sign * trial.values[0] for trial in study.trials
              if trial.status == "complete" and trial.values is not None and trial.of is None and limits.keeps(trial)]
    best = study.best
    if best is None or best.values is None:
        return not values
    return best.status == "complete" and best.of is None and sign * best.values[0] == min(values)


def _fact(row: Row) -> Fact:
    data = orjson.loads(row.body)["data"]
    for name in ("as_of", "message", "elapsed_s", "at"):
        data.pop(name, None)
    return row.type, row.trial, data


# ---------------------------------------------------------------- what is said often


def proposed(trial: int, x: float | None = None) -> Fact:
    return "trial.proposed", trial, {"params": {"x": trial if x is None else x}, "space_rev": 1, "sampler": "random",
                                     "stream": f"0/{trial}/random", "drawn": trial}


def leased(trial: int, worker: str, fence: int = 1, ask: str = "a1", run: str | None = None,
           lease_s: float = 600) -> Fact:
    return "trial.leased", trial, {"fence": fence, "worker": worker, "run": run or f"{worker}-r1", "ask": ask,
                                   "lease_s": lease_s}


def began(worker: str, run: str | None = None, took: Any = (), ended: Any = ()) -> Fact:
    return "run.began", None, {"worker": worker, "run": run or f"{worker}-r1", "took": [["s", *key] for key in took],
                               "ended": [["s", *key] for key in ended]}


def granted(trial: int, worker: str, fence: int = 1, ask: str = "a1", run: str | None = None,
            lease_s: float = 600.0) -> Letter:
    return worker, "grant", {"ask": ask, "run": run or f"{worker}-r1", "trial": trial, "fence": fence,
                             "params": {"x": float(trial)}, "lease_s": lease_s}


def receipt(worker: str, id: str, status: str, **more: Any) -> Letter:
    return worker, "receipt", {"id": id, "status": status, **more}


def answer(worker: str, status: str, reason: str | None = None, id: str = "a1", run: str | None = None) -> Letter:
    """A receipt for an ask: it names the run."""
    body = {"id": id, "run": run or f"{worker}-r1", "status": status}
    return worker, "receipt", body if reason is None else {**body, "reason": reason}


def stop(worker: str, trial: int, reason: str, fence: int = 1) -> Letter:
    return worker, "stop", {"study": "s", "trial": trial, "fence": fence, "reason": reason}
