"""Hypothesis plays the rules against the contract: a state machine whose every step is a message, a passing of time, a
word of an operator or a restart, and a model of plain dictionaries (`model.py`) that says what must come of it.

One round is a few runs of many steps each; what they do is a function of the seed, of Hypothesis and of our source,
from which it takes numbers to try. A broken round names what was wrong; `python tests/promises/machine.py SEED`
plays it again and prints the shortest story that shows it.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

import hypothesis  # noqa: E402  # the path comes first
import orjson  # noqa: E402
from hypothesis import HealthCheck, Phase, Verbosity, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import (  # noqa: E402
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from tests.promises.book import Fault, Proof, Round  # noqa: E402
from tests.promises.model import PATIENCE_S, Asked, Key, Model, Standing, normal  # noqa: E402
from tests.simulation.mutants import MUTANTS  # noqa: E402
from tests.study.story import Said, Story  # noqa: E402

RUNS, STEPS = 10, 60
WORKERS = ("w1", "w2", "w3")
OUTCOMES: tuple[dict[str, Any], ...] = (
    {"value": 0.0}, {"value": 1.0}, {"value": 1.0, "seconds": 3.0}, {"value": "nan"}, {"state": "pruned"},
    {"state": "fail"}, {"state": "fail", "class": "crash"}, {"state": "fail", "class": "other"}, {"state": "released"})
PLAYED: Counter[str] = Counter()
workers, ids, picks = st.sampled_from(WORKERS), st.integers(1, 6), st.integers(0, 10_000)


class Committing(Story):
    """A story that also looks at what would leave before its commit, and at the seq of every receipt."""

    def said(self) -> Said:
        early = self.desk.committed(len(self.rows))
        leased = {(row.trial, orjson.loads(row.body)["data"]["fence"]) for row in self.rows
                  if row.type == "trial.leased"}
        for letter in early:
            body = letter.body
            assert body.get("seq", 0) <= len(self.rows), "a receipt left before the commit of its event [1]"
            assert letter.kind != "grant" or (body["trial"], body["fence"]) in leased, "a grant left before its commit"
        self.desk._letters.extendleft(reversed(early))
        facts, letters = super().said()
        assert [row.seq for row in self.rows] == list(range(1, len(self.rows) + 1)), "seq has a gap"
        return facts, letters

    def _letter(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        said = super()._letter(kind, body)
        return {**said, "seq": body["seq"]} if "hash" in body else said


class Machine(RuleBasedStateMachine):
    """What can happen, in any order."""

    @initialize(late=st.sampled_from(("use", "ignore")), lost=st.integers(0, 2), crash=st.integers(0, 1),
                budget=st.sampled_from((4, 12, 1000)), confirm=st.booleans())
    def begin(self, late: str, lost: int, crash: int, budget: int, confirm: bool) -> None:
        more: dict[str, Any] = {"confirm": {"top": 2, "repeats": 1}} if confirm else {}
        retry = {"lost": lost, "crash": crash}
        self.story = Committing(points=2000, late=late, retry=retry, budget={"trials": budget}, **more)
        self.model = Model(late, retry, budget, 600.0)
        self.turn, self.judged = 0, len(self.story.rows)
        PLAYED["runs"] += 1
        for worker in WORKERS:
            self._ask(worker, 1)

    def saw(self, said: Said, *, told: bool = False) -> Said:
        """Judge what was recorded, then what was said."""
        facts, letters = said
        seqs = [row.seq for row in self.story.rows[self.judged:] if row.type != "study.ticked"]
        self.judged = len(self.story.rows)
        for number, (fact, seq) in enumerate(zip(facts, seqs, strict=True)):
            self.model.fact(fact, seq, told=told and number == 0)
        self.model.settled(letters)
        PLAYED["events"] += len(facts)
        PLAYED["messages"] += 1
        return said

    def run_of(self, worker: str, other: int = 0) -> str:
        """The run that this worker is in, or one of its others."""
        return f"{worker}-r{other}" if other else self.model.run.get(worker, f"{worker}-r1")

    def lease(self, pick: int) -> Key:
        """Mostly one of the newest."""
        keys = list(self.model.leases)
        return keys[-1 - pick % min(len(keys), 8 if pick % 3 else 1000)]

    # ------------------------------------------------------------ asks [3]

    @rule(worker=workers, id=ids, lease_s=st.sampled_from((None, None, 60.0)))
    def ask(self, worker: str, id: int, lease_s: float | None) -> None:
        self._ask(worker, id, lease_s=lease_s)

    @rule(worker=workers, id=ids, other=st.sampled_from((0, 0, 1, 2)), named=st.booleans())
    def ask_somehow(self, worker: str, id: int, other: int, named: bool) -> None:
        self._ask(worker, id, other, named)

    def _ask(self, worker: str, id: int, other: int = 0, named: bool = True, lease_s: float | None = None) -> None:
        run, n, model = self.run_of(worker, other), 1 + id % 2, self.model
        asked: Asked = (worker, run, f"a{id}")
        more: dict[str, Any] = {} if lease_s is None else {"lease_s": lease_s}
        is_new = (worker, run) not in model.replaced and asked not in model.withdrawn
        if is_new and model.rest(asked, n) > 0:
            model.standing[asked] = Standing(n, lease_s or model.default_s, model.now + PATIENCE_S, named)
        open_before = {key for key, lease in model.of(asked).items() if lease.ended is None}
        _, letters = self.saw(self.story.ask(worker, asked[2], run, "s" if named else None, n=n, **more))
        receipts = [body for who, kind, body in letters if (who, kind) == (worker, "receipt")
                    and body["id"] in (asked[2], run)]
        statuses = [(body["status"], body.get("reason")) for body in receipts if body["run"] == run]
        if (worker, run) in model.replaced:
            assert statuses == [("rejected", "name-in-use")], statuses
        elif asked in model.withdrawn:
            assert statuses == [("closed", "withdrawn")], statuses
        else:
            granted = {(body["trial"], body["fence"]) for who, kind, body in letters
                       if (who, kind) == (worker, "grant")}
            mine = model.of(asked)
            open_ = {key for key, lease in mine.items() if lease.ended is None}
            assert open_ <= granted, f"open leases {open_ - granted} are not granted again"
            if model.rest(asked, n) <= 0:
                assert statuses == ([] if open_ else [("duplicate", None)]), statuses
            else:
                self._explained(asked, named, statuses, is_owed=not statuses and bool(granted - open_before))

    def _explained(self, asked: Asked, named: bool, statuses: list[tuple[str, str | None]], *,
                   is_owed: bool) -> None:
        """Of what is left of an ask something is said, at once or within 2 s."""
        model = self.model
        if is_owed:
            model.standing[asked].is_owed = True
        elif model.status == "closed":
            assert [status for status, _ in statuses] == ["closed" if named else "waiting"], statuses
            if named:
                del model.standing[asked]
        else:
            assert statuses == [("waiting", "paused" if model.status == "paused" else "budget")], statuses
            assert model.status == "paused" or model.used >= model.budget, "an ask waits, and there is room"

    @rule(worker=workers, id=ids)
    def withdraw(self, worker: str, id: int) -> None:
        run = self.run_of(worker)
        asked = (worker, run, f"a{id}")
        self.model.withdrawn.add(asked)
        self.model.standing.pop(asked, None)
        _, letters = self.saw(self.story.ask(worker, asked[2], run, n=0))
        assert [body["reason"] for _, _, body in letters] == ["withdrawn"], letters

    # ------------------------------------------------------------ beats [4]

    @rule(worker=workers, pick=picks, other=st.sampled_from((0, 0, 0, 1, 2, 3)), wanted=st.booleans())
    def beat(self, worker: str, pick: int, other: int, wanted: bool) -> None:
        model, run = self.model, self.run_of(worker, other)
        theirs = [key for key, lease in model.leases.items() if lease.worker == worker]
        listed = [key for place, key in enumerate(reversed(theirs[-6:])) if pick >> place & 1]
        if pick % 7 == 0:       # it may be somebody else's, or one that was told
            listed = [*listed, *({self.lease(pick)} - set(listed))]
        is_replaced = (worker, run) in model.replaced
        asks = tuple(asked[2] for asked in model.standing if asked[:2] == (worker, run)) if wanted else ()
        if not is_replaced:
            for key in listed:
                lease = model.leases[key]
                if lease.worker == worker and lease.ended is None:
                    lease.ends, lease.missed = model.now + lease.lease_s, 0
        facts, letters = self.saw(self.story.beat(worker, *listed, run=run, asks=asks))
        if is_replaced:
            assert (facts, [body.get("reason") for _, _, body in letters]) == ([], ["name-in-use"]), letters
            return
        for asked in asks:
            if (worker, run, asked) in model.standing:
                model.standing[worker, run, asked].lapses = model.now + PATIENCE_S
        assert model.run[worker] == run, "a first beat begins a run"
        stopped = {(body["trial"], body["fence"]) for _, kind, body in letters if kind == "stop"}
        for key in listed:
            lease = model.leases[key]
            is_held = lease.worker == worker and lease.ended is None
            assert is_held != (key in stopped), f"lease {key} is {'held' if is_held else 'not held'}: {letters}"
            assert is_held or lease.worker != worker or not model.may_hold_again(key), f"{key} could be held again"
        granted = {(body["trial"], body["fence"]) for _, kind, body in letters if kind == "grant"}
        for key in theirs:
            lease = model.leases[key]
            if lease.ended is None and lease.run == run and key not in listed:
                lease.missed = 0 if key in granted else lease.missed + 1
                assert lease.missed < 2, f"two beats do not list {key}, and it is not granted again [4]"
            else:
                lease.missed = 0

    # ------------------------------------------------------------ tells and reports [2, 5, 7, 8]

    @rule(pick=picks, outcome=st.sampled_from(OUTCOMES))
    def tell(self, pick: int, outcome: dict[str, Any]) -> None:
        self._tell(pick, outcome, None)

    @rule(pick=picks, outcome=st.sampled_from(OUTCOMES), thief=st.sampled_from((None, None, *WORKERS)))
    def tell_somehow(self, pick: int, outcome: dict[str, Any], thief: str | None) -> None:
        self._tell(pick, outcome, thief)

    def _tell(self, pick: int, outcome: dict[str, Any], thief: str | None) -> None:
        key, id = self.lease(pick), f"t{pick}"
        model, lease = self.model, self.model.leases[key]
        worker = thief or lease.worker
        status, event, seq = model.answer(worker, key, outcome)
        if event is not None:
            lease.told, lease.status = normal(outcome), "late" if event == "outcome.late" else "recorded"
        facts, letters = self.saw(self.story.tell(worker, *key, id=id, **outcome), told=event is not None)
        (body,) = [body for _, kind, body in letters if kind == "receipt" and body["id"] == id]
        assert body["status"] == status, f"{outcome} for {key} is {body}, and should be {status}"
        assert [fact[:2] for fact in facts[:1]] == ([] if event is None else [(event, key[0])]), (facts, event)
        if seq:
            assert body["seq"] == seq, f"the copy names {body['seq']}, the first was {seq} [2]"
        if event is not None:
            lease.seq = body["seq"]
            assert facts[0][2].get("fence") == key[1]
        if event is None:
            assert facts == []
        PLAYED[status] += 1

    @rule(pick=picks, step=st.integers(0, 1), value=st.sampled_from((0.0, 1.0)))
    def report(self, pick: int, step: int, value: float) -> None:
        key = self.lease(pick)
        worker = self.model.leases[key].worker
        status, seq = self.model.report(worker, key, step, value)
        facts, letters = self.saw(self.story.report(worker, key[0], step, value, key[1]))
        assert ([body["status"] for _, _, body in letters], len(facts)) == ([status], status == "recorded"), letters
        assert not seq or letters[0][2]["seq"] == seq

    # ------------------------------------------------------------ time, restarts, operators

    @rule(seconds=st.sampled_from((1.0, 50.0, 95.0, 300.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        self.model.now += seconds
        _, letters = self.saw(self.story.tick(self.model.now))
        said = {(who, body.get("ask") or body.get("id")) for who, _, body in letters}
        self.model.passed()
        for asked, standing in self.model.standing.items():
            assert not standing.is_owed or seconds < 2 or standing.was_full or (asked[0], asked[2]) in said, \
                f"{asked} was not answered within 2 s [3]"
            standing.is_owed &= seconds < 2

    @rule(kind=st.sampled_from(("restart", "pause", "resume", "trial.void", "trial.cancel", "enqueue", "close")),
          pick=picks)
    def seldom(self, kind: str, pick: int) -> None:
        model = self.model
        if kind == "restart":
            self._restart()
        elif kind in ("pause", "resume"):
            self._request(f"study.{kind}")
        elif kind == "enqueue":
            self._request("study.enqueue", params={"x": float(pick % 100)})
        elif kind == "close" and len(model.leases) > 8 and pick % 3 == 0 and model.status != "closed":
            running = "stop" if pick % 2 else "finish"
            self._request("study.close", running=running)
            model.standing = {asked: each for asked, each in model.standing.items() if not each.is_named}
            assert running == "finish" or all(lease.ended for lease in model.leases.values()), "it outlived a close"
        elif kind.startswith("trial."):
            number = 1 + pick % len(model.trials)
            self._request(kind, trial=number, reason="so")
            status = model.trials[number].status
            assert status not in ("new", "running", "waiting"), f"{kind} of trial {number} left it {status}"

    def _request(self, verb: str, **args: Any) -> None:
        self.turn += 1
        self.saw(self.story.request("op", verb, id=f"q{self.turn}", **args))

    def _restart(self) -> None:
        self.story.check()
        self.story.restart()
        model = self.model
        model.standing.clear()
        model.withdrawn.clear()
        for lease in model.leases.values():
            lease.missed = 0
            if lease.ended is None:
                lease.ends = model.now + lease.lease_s
        PLAYED["restarts"] += 1

    def teardown(self) -> None:
        if not hasattr(self, "story"):
            return
        self.story.check()
        study = self.story.desk.state.studies["s"]
        assert Counter(seen.trial for seen in study.history) == self.model.known(), "the optimiser knows other things"
        best = None if study.best is None or study.best.values is None else study.best.values[0]
        assert best == self.model.best(), f"the best is said to be {best}, and is {self.model.best()}"


def play(seed: int, *, shrink: bool = False) -> None:
    """The runs of a seed. Raises what they found."""
    machine = hypothesis.seed(seed)(type("Machine", (Machine,), {}))
    run_state_machine_as_test(machine, settings=settings(
        max_examples=RUNS, stateful_step_count=STEPS, database=None, deadline=None, print_blob=False,
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.normal if shrink else Verbosity.quiet,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])], report_multiple_bugs=False))


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    def round_of(seed: int) -> Round:
        PLAYED.clear()
        try:
            play(seed)
        except Exception as error:
            return Round(dict(PLAYED), (f"{type(error).__name__}: {error}"[:400],))
        return Round(dict(PLAYED))
    yield round_of


SEEN = ("a letter leaves before its commit", "an older fence counts", "a copy of a tell is recorded again",
        "an ask is served again once its trials are told", "a replaced run comes back", "a beat renews everything",
        "a restart ends the leases", "a lost lease is not counted", "a voided outcome is still known")
"""Planted faults of the simulated worlds that these few steps see as well."""
PROOFS = [Proof("state machine", ("P3", "P4", "P5", "P6", "P12", "P15", "P16", "P32"),
                f"plays of {RUNS} runs with {STEPS} steps", _lab, quick=15, release=300, within=15, faults=tuple(
                    Fault(each.name, each.module, each.old, each.new) for each in MUTANTS if each.name in SEEN))]

if __name__ == "__main__":
    play(int(sys.argv[1]), shrink=True)
