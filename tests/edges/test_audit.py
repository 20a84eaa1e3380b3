"""Every suggestion of a log can be asked for again: whole logs pass to the bit, and one changed word is found."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.edges.test_cli import Shell
from tests.edges.test_service import Worker, begin

from bayesd import Study
from bayesd.audit import Plan, Verdict, judge, moments, table
from bayesd.fingerprint import engine_settings, fingerprint
from bayesd.inprocess import Exhausted, StudyError
from bayesd.log import MemoryDisk, SqliteLog, read_events
from bayesd.optimize import bayes, search, suggest, value_of
from bayesd.replay import event_of
from bayesd.study import snapshot
from bayesd.study.canonical import ZERO
from bayesd.study.desk import engine_id
from bayesd.study.fold import replay
from bayesd.study.problem import Problem, Suggestion
from bayesd.study.row import Row
from bayesd.study.state import Event, State
from bayesd.testing import Daemon, MemoryBroker, inline, run
from bayesd.why.witness import Witness

HERE = fingerprint("0")
ENGINE = engine_id(HERE)
Envelope = dict[str, Any]

FLOATS = {"x": {"type": "float", "low": -5, "high": 5}, "y": {"type": "float", "low": -5, "high": 5}}
MIXED = {
    "lr": {"type": "float", "low": 1e-5, "high": 1, "scale": "log"}, "units": {"type": "int", "low": 1, "high": 64},
    "act": {"type": "categorical", "choices": ["relu", "tanh", "gelu"]},
    "drop": {"type": "float", "low": 0, "high": 0.9, "step": 0.1, "when": {"act": ["relu", "tanh"]}},
    "size": {"type": "ordinal", "choices": ["s", "m", "l"], "when": {"act": "gelu"}}}
SMALL = {"n": {"type": "int", "low": 1, "high": 4}, "k": {"type": "categorical", "choices": ["a", "b", True]}}


def loss(params: dict[str, Any]) -> float:
    """Sums and products alone."""
    return sum((float(value) - 1) ** 2 if isinstance(value, (int, float)) else ord(value[0]) % 7
               for value in params.values())


def play(path: Path, trials: int, at_once: int = 1, failing: float = 0.0, seed: int = 1,
         meanwhile: Callable[[Study, int], None] = lambda study, i: None, **spec: Any) -> list[Event]:
    """A study in one process, `at_once` trials pending, told in an order of its own; the events of its log."""
    draw, pending = Random(seed), []
    many = "objectives" in spec or "limits" in spec
    if not many:
        spec["direction"] = "minimize"
    with Study(log=path, seed=seed, **spec) as study:
        for i in range(trials):
            meanwhile(study, i)
            try:
                pending.append(study.ask())
            except Exhausted:
                break
            if len(pending) >= at_once:
                trial = pending.pop(draw.randrange(len(pending)))
                try:
                    if draw.random() < failing:
                        study.tell(trial, state="fail")
                    else:
                        value = loss(trial.params)
                        study.tell(trial, [value, value + 0.2] if i % 5 == 3 and not many else
                                   {"loss": value, "time": -value + len(trial.params)} if many else value)
                except StudyError:      # voided meanwhile
                    pass
    return [event_of(body, hash) for _, body, hash in read_events(path)]


def audit(events: Sequence[Event], engine: str = ENGINE, **plan: Any) -> list[Verdict]:
    made = Plan(**plan)
    for event in events:
        made.note(event)
    return [judge(moment, engine) for moment in moments(events, made.cases)]


def here(events: Sequence[Event]) -> str:
    """The fingerprint of the engine that wrote these events: this process."""
    return str(next(event.data["fingerprint"] for event in events if event.type == "engine.fingerprint"))


def proposed(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.type == "trial.proposed"]


def passes(events: Sequence[Event]) -> Counter[str | None]:
    """Everything is equal to the last bit; how many suggestions of each sampler there were."""
    verdicts = audit(events, here(events))
    assert [each for each in verdicts if not each.exact or each.outcome != "same"] == []
    assert {each.level for each in verdicts if each.what in ("suggestion", "fit")} <= {"L2"}
    asked = [event for event in proposed(events) if event.data["sampler"] != "enqueued"]
    assert len([each for each in verdicts if each.what == "suggestion"]) == len(asked)
    assert len([each for each in verdicts if each.what == "fit"]) == sum(
        event.type == "model.fitted" for event in events)
    return Counter(each.sampler for each in verdicts if each.what == "suggestion")


# --- Golden studies ------------------------------------------------------------------------------------


STUDIES: dict[str, tuple[dict[str, Any], int]] = {
    "grid": ({"method": "grid", "space": SMALL, "constraints": ["n != 2"], "trials": 30, "at_once": 3}, 9),
    "random": ({"method": "random", "space": MIXED, "trials": 25, "at_once": 4}, 25),
    "random, no repeats": ({"method": "random", "space": SMALL, "noise": "none", "trials": 30, "at_once": 2}, 12),
    "sobol": ({"method": "sobol", "space": FLOATS, "constraints": ["x <= y"], "trials": 25, "at_once": 3}, 25),
    "sobol, no repeats": ({"method": "sobol", "space": SMALL, "noise": "none", "trials": 30}, 12),
    "bayes": ({"space": MIXED, "trials": 16, "failing": 0.2}, 16),
    "bayes, 8 at once": ({"space": MIXED, "trials": 26, "at_once": 8, "failing": 0.2}, 26),
    "bayes, constraints": ({"space": FLOATS, "constraints": ["x <= y"], "trials": 12, "at_once": 2}, 12),
    "bayes, no repeats": ({"space": SMALL, "noise": "none", "trials": 30, "at_once": 2}, 12),
    "bayes, forest": ({"space": MIXED, "surrogate": "forest", "trials": 14, "at_once": 3, "failing": 0.2}, 14),
    "bayes, two objectives": ({"space": FLOATS, "objectives": [{"name": "loss"}, {"name": "time"}], "trials": 14,
                               "at_once": 4}, 14),
    "bayes, a limit": ({"space": FLOATS, "metric": "loss", "limits": [{"name": "time", "at_most": -3}], "trials": 16,
                        "at_once": 3, "failing": 0.2}, 16),
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_suggestion_is_found_again_to_the_bit(name: str, tmp_path: Path) -> None:
    given, count = STUDIES[name]
    samplers = passes(play(tmp_path / "log.db", **given))
    assert samplers.total() == count
    if name.startswith("bayes"):
        assert samplers["bayes"] >= 4


@pytest.mark.parametrize("name", ["means", "sds"])
def test_what_was_expected_of_each_objective_is_compared(name: str, tmp_path: Path) -> None:
    given, _ = STUDIES["bayes, two objectives"]
    events = play(tmp_path / "log.db", **given)
    place = next(i for i, event in enumerate(events) if event.type == "trial.proposed" and name in event.data)
    event = events[place]
    other = {**event.data, name: [event.data[name][0] + 1e-9, event.data[name][1]]}
    verdicts = audit([*events[:place], event._replace(data=other), *events[place + 1:]], here(events))
    (wrong,) = [each for each in verdicts if each.outcome != "same"]
    assert (wrong.trial, wrong.evidence and wrong.evidence["differs"]) == (event.trial, [name])


def test_a_study_that_is_changed_on_the_way(tmp_path: Path) -> None:
    """Points by hand, trials taken back, another space, other constraints, another model, a pause."""
    def meanwhile(study: Study, i: int) -> None:
        name = study.name
        if i in (0, 7, 15):
            study.enqueue({"x": 1.5, "y": 2.5})
        if i in (9, 13):
            study._request("trial.void", {"study": name, "trial": i - 5, "reason": "the sensor was unplugged"})
        changes: dict[int, dict[str, Any]] = {
            18: {"space": {"z": {"type": "int", "low": 0, "high": 9}}}, 24: {"constraints": ["x + y <= 6"]},
            28: {"surrogate": "forest"}, 32: {"noise": "none", "surrogate": "gp"}}
        if i in changes:
            if i == 18:
                study.enqueue({"x": 0, "y": 0})
            study._request("study.amend", {"study": name, "changes": changes[i]})
        if i == 21:
            study._request("study.pause", {"study": name})
            study._request("study.resume", {"study": name})

    events = play(tmp_path / "log.db", 38, at_once=3, failing=0.15, space=FLOATS, meanwhile=meanwhile)
    samplers = passes(events)
    enqueued = [event for event in proposed(events) if event.data["sampler"] == "enqueued"]
    assert len(enqueued) == 3            # the fourth lacked a parameter when its turn came
    assert samplers.total() == 35
    plan = Plan()
    for event in events:
        plan.note(event)
    assert plan.enqueued == 3


@pytest.mark.parametrize("spec", [{"method": "sobol", "space": SMALL, "noise": "none"}, {"space": FLOATS}],
                         ids=["sobol", "bayes"])
def test_a_fork_draws_from_streams_of_its_own(spec: dict[str, Any], tmp_path: Path) -> None:
    with Study(log=tmp_path / "log.db", direction="minimize", seed=3, **spec) as study:
        for _ in range(5):
            trial = study.ask()
            study.tell(trial, loss(trial.params))
        study.ask()      # is not taken over, so numbers of trials and of streams part
        fork = study.fork("again")
        assert fork._folded.streams
        pending = [fork.ask() for _ in range(3)]
        for _ in range(3):
            trial = pending.pop(0)
            fork.tell(trial, loss(trial.params))
            pending.append(fork.ask())
    events = [event_of(body, hash) for _, body, hash in read_events(tmp_path / "log.db")]
    assert passes(events).total() == 12
    assert not [event for event in proposed(events) if "number" in event.data]


def test_a_part_of_a_log_is_audited_by_itself(tmp_path: Path) -> None:
    events = play(tmp_path / "log.db", 20, at_once=2, space=FLOATS)
    whole = audit(events, here(events))
    middle = whole[len(whole) // 2].seq
    assert audit(events, here(events), from_seq=middle) == [each for each in whole if each.seq >= middle]
    assert audit(events, here(events), study="another") == []


# --- Through the service -------------------------------------------------------------------------------


def of_disk(disk: MemoryDisk) -> list[Event]:
    return [event_of(row.body, row.hash) for row in disk.rows]


def _is_grant(ask: str, kind: str, body: dict[str, Any]) -> bool:
    return kind == "grant" and body["ask"] == ask


async def work(broker: MemoryBroker, name: str, trials: int, seconds: float = 1.0) -> None:
    """A worker that asks ahead: its next trial is on the way while it works on this one."""
    worker, draw = Worker(broker, name), Random(name)
    worker.say("beat", run=name)
    worker.say("ask", id="a0", run=name, study="s")
    for i in range(trials):
        grant = await worker.wait(partial(_is_grant, f"a{i}"))
        worker.say("ask", id=f"a{i + 1}", run=name, study="s")
        await asyncio.sleep(seconds * draw.random())
        worker.say("tell", id=f"t{i}", study="s", trial=grant["trial"], fence=grant["fence"],
                   value=loss(grant["params"]))


def serve(think: Callable[[Problem, int], Any], workers: int, trials: int, kill_s: float | None = None,
          plainly: Callable[[Problem, int], Any] = inline, **spec: Any) -> list[Event]:
    async def story() -> MemoryDisk:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, suggest=think, fingerprint=HERE)
        (await daemon.start())._plainly = plainly
        await begin(broker, **spec)
        tasks = [asyncio.create_task(work(broker, f"v{i}", trials)) for i in range(workers)]
        if kill_s is not None:
            await asyncio.sleep(kill_s)
            daemon.kill()
            await asyncio.sleep(1.0)
            await daemon.start()
        done, late = await asyncio.wait(tasks, timeout=120.0)
        for task in late:
            task.cancel()
        if kill_s is None:
            for task in done:
                await task
        await daemon.stop()
        return disk

    return of_disk(run(story()))


def thinking(seconds: Callable[[Problem], float]) -> Callable[[Problem, int], Any]:
    async def think(problem: Problem, count: int) -> Suggestion:
        made = suggest(problem, count)
        await asyncio.sleep(seconds(problem))
        return made
    return think


def test_candidates_that_lay_ready_are_part_of_what_was_asked() -> None:
    events = serve(thinking(lambda problem: 0.02), workers=6, trials=7, space=FLOATS)
    assert passes(events)["bayes"] > 20
    ahead = [event.data["ahead"] for event in proposed(events) if event.data.get("ahead")]
    assert len(ahead) > 5


def test_a_plainer_sampler_under_the_deadline_and_the_slow_answer_behind_it() -> None:
    """The slow answer was made for a number that the plainer one took: its event says for which."""
    events = serve(thinking(lambda problem: 4.0 if problem.number % 4 == 0 else 0.02), workers=3, trials=8,
                   space=FLOATS)
    samplers = passes(events)
    fallbacks = Counter(event.data.get("fallback") for event in proposed(events))
    assert fallbacks["deadline"] >= 3
    assert samplers["bayes"] >= 5
    assert [event for event in proposed(events) if "number" in event.data]


def test_a_plainer_sampler_that_is_overtaken_itself() -> None:
    """Its points are random ones that were made for numbers of the slow answer, which came first after all."""
    events = serve(thinking(lambda problem: 1.6 if problem.number % 4 == 0 else 0.02), workers=3, trials=8,
                   plainly=thinking(lambda problem: 0.6), space=FLOATS)
    passes(events)
    late = [event.data for event in proposed(events) if event.data.get("fallback") == "deadline"]
    assert [data for data in late if data.get("number") and data.get("after") is not None]


def test_a_daemon_that_was_killed_and_an_optimiser_that_broke(caplog: pytest.LogCaptureFixture) -> None:
    async def think(problem: Problem, count: int) -> Suggestion:
        if problem.number % 5 == 3:
            raise ZeroDivisionError("a bug of ours")
        return suggest(problem, count)

    events = serve(think, workers=3, trials=7, kill_s=3.0, space=FLOATS, lease={"default_s": 5})
    assert passes(events)["bayes"] >= 3
    assert "error: ZeroDivisionError" in {event.data.get("fallback") for event in proposed(events)}
    assert sum(event.type == "daemon.started" for event in events) == 2


def test_a_lack_of_memory_then_is_no_difference_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(bayes, "surrogate", fails)
        events = play(tmp_path / "log.db", 12, space=FLOATS)
    assert "bayes: MemoryError: " in {event.data.get("fallback") for event in proposed(events)}
    passes(events)


# --- Planted differences -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audited") / "log.db"
    play(path, 14, at_once=2, failing=0.1, space=FLOATS)
    return path


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def envelopes(path: Path) -> list[Envelope]:
    return [json.loads(body) for _, body, _ in read_events(path)]


def nth(said: list[Envelope], n: int, **data: Any) -> Envelope:
    """The nth event that says this; `type` is its type."""
    type = data.pop("type")
    return [each for each in said if each["type"] == type and data.items() <= each["data"].items()][n]


def sealed(said: list[Envelope]) -> Iterator[Row]:
    """The chain made right again, as one who owns the file can."""
    prev = ZERO
    for envelope in said:
        row = Row.of({**envelope, "prev": prev})
        prev = row.hash.hex()
        yield row


def forge(path: Path, new: Path, change: Callable[[list[Envelope]], int]) -> int:
    """Another log with one change; the seq of the event that was changed."""
    said = envelopes(path)
    seq = change(said)

    async def write() -> None:
        forged = await SqliteLog.open(new)
        await forged.append(list(sealed(said)))
        await forged.close()

    asyncio.run(write())
    return seq


def move_a_point(said: list[Envelope]) -> int:
    event = nth(said, 5, type="trial.proposed", sampler="bayes")
    event["data"]["params"]["x"] = 3.25
    return int(event["seq"])


def change_a_number(name: str, by: float) -> Callable[[list[Envelope]], int]:
    def change(said: list[Envelope]) -> int:
        event = nth(said, 4, type="trial.proposed", sampler="bayes")
        event["data"][name] += by
        return int(event["seq"])
    return change


def change_a_fit(said: list[Envelope]) -> int:
    event = nth(said, 2, type="model.fitted")
    event["data"]["theta"][0] += 0.5
    return int(event["seq"])


def change_the_seed(said: list[Envelope]) -> int:
    event = nth(said, 0, type="study.created")
    event["data"]["spec"]["seed"] = 2
    return int(event["seq"])


def change_an_outcome(said: list[Envelope]) -> int:
    """Of an early trial: the first fit behind it is another."""
    event = nth(said, 1, type="trial.completed")
    event["data"]["values"]["value"] += 10
    return int(next(each["seq"] for each in said if each["type"] == "model.fitted"))


def forget_a_pending_trial(said: list[Envelope]) -> int:
    event = nth(said, 3, type="trial.proposed", sampler="bayes")
    event["data"]["pending"].pop()
    return int(event["seq"])


def name_no_moment(said: list[Envelope]) -> int:
    event = nth(said, 3, type="trial.proposed", sampler="bayes")
    event["data"]["as_of"] = event["seq"]
    return int(event["seq"])


def name_another_engine(said: list[Envelope]) -> int:
    event = nth(said, 3, type="trial.proposed", sampler="bayes")
    event["data"]["engine"] = "0" * 16
    return int(event["seq"])


PLANTED: dict[str, tuple[Callable[[list[Envelope]], int], str]] = {
    "a point": (move_a_point, "params"), "an acquisition": (change_a_number("acquisition", 1e-9), "acquisition"),
    "a mean": (change_a_number("mean", 1e-9), "mean"), "an index": (change_a_number("index", 1), "index"),
    "what was drawn": (change_a_number("drawn", 1), "drawn"), "a fit": (change_a_fit, "theta"),
    "an outcome": (change_an_outcome, "theta"), "a pending trial": (forget_a_pending_trial, "pending"),
    "its moment": (name_no_moment, "as_of"), "its engine": (name_another_engine, "engine"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_one_changed_word_is_found_and_named(name: str, log: Path, tmp_path: Path, sh: Shell) -> None:
    change, field = PLANTED[name]
    seq = forge(log, tmp_path / "forged.db", change)
    sh(f"log verify {tmp_path}/forged.db")           # the chain was made right again: the bytes say nothing
    said = sh(f"log audit {tmp_path}/forged.db -f json", code=1)
    first = said.json["first_difference"]
    assert first["seq"] == seq
    assert field in first["differs"]
    assert f"event {seq}" in said.err
    assert not said.json["passed"]
    assert first["next"]


def test_another_seed_is_found_at_the_first_suggestion(log: Path, tmp_path: Path, sh: Shell) -> None:
    forge(log, tmp_path / "forged.db", change_the_seed)
    said = sh(f"log audit {tmp_path}/forged.db -f json", code=1).json
    first = nth(envelopes(log), 0, type="trial.proposed")      # the centre, for any seed; but its stream names the seed
    assert (said["first_difference"]["seq"], said["first_difference"]["differs"]) == (first["seq"], ["stream"])
    assert said["differences"] > 10


# --- On another engine ---------------------------------------------------------------------------------


def test_on_another_engine_the_same_point_is_enough(log: Path) -> None:
    events = [event_of(body, hash) for _, body, hash in read_events(log)]
    verdicts = audit(events, "another")
    assert {(each.level, each.outcome) for each in verdicts} == {("L3", "same")}
    assert [row["level"] for row in table(verdicts)] == ["L3", "L3"]


def test_a_point_as_good_is_tied_and_a_worse_one_is_not(log: Path, tmp_path: Path) -> None:
    def moved(by: float) -> Verdict:
        said = envelopes(log)
        event = nth(said, 5, type="trial.proposed", sampler="bayes")
        event["data"]["params"]["x"] += by
        events = [event_of(row.body, row.hash) for row in sealed(said)]
        return next(each for each in audit(events, "another") if each.seq == event["seq"])

    near, far = moved(1e-9), moved(1.0)
    assert (near.outcome, near.exact) == ("tied", False)
    assert near.evidence is not None
    assert near.evidence["acquisition_of_recorded"] == pytest.approx(near.evidence["acquisition_of_recomputed"])
    assert far.outcome == "diverged"
    assert far.evidence is not None
    assert far.evidence["acquisition_of_recorded"] < far.evidence["acquisition_of_recomputed"]


def test_a_fit_as_likely_is_tied_and_a_worse_one_is_not(log: Path) -> None:
    def moved(by: float) -> Verdict:
        said = envelopes(log)
        event = nth(said, 2, type="model.fitted")
        event["data"]["theta"][0] += by
        events = [event_of(row.body, row.hash) for row in sealed(said)]
        return next(each for each in audit(events, "another") if each.seq == event["seq"])

    assert moved(0.01).outcome == "tied"
    assert moved(2.0).outcome == "diverged"


def test_the_value_of_a_point_is_the_acquisition_of_its_proposal(log: Path) -> None:
    events = [event_of(body, hash) for _, body, hash in read_events(log)]
    plan = Plan()
    for event in events:
        plan.note(event)
    compared = 0
    for moment in moments(events, plan.cases):
        if moment.event.data.get("sampler") == "bayes":
            assert moment.problem is not None
            assert value_of(moment.problem, moment.event.data["params"]) == pytest.approx(
                moment.event.data["acquisition"], rel=1e-9)
            compared += 1
    assert compared >= 6


# --- The verb ------------------------------------------------------------------------------------------


def test_a_whole_log_passes(log: Path, sh: Shell) -> None:
    said = sh(f"log audit {log} -f json").json
    assert said["passed"]
    assert [(row["level"], row["checked"] == row["same"] == row["to_the_bit"]) for row in said["levels"]] == [
        ("L0", True), ("L1", True), ("L2", True), ("L2", True)]
    assert said["levels"][0]["checked"] == len(envelopes(log))
    assert said["levels"][2]["checked"] == 14
    shown = sh(f"log audit {log}").out
    assert "suggestions, same engine, bit for bit" in shown
    assert sh(f"log audit {log} -f value").out.startswith("passed\t")


@pytest.mark.slow
def test_many_processes_say_what_one_says(log: Path, sh: Shell) -> None:
    assert sh(f"log audit {log} -f json --jobs 2").json == sh(f"log audit {log} -f json").json


def test_a_study_and_a_beginning_are_chosen(log: Path, sh: Shell) -> None:
    middle = nth(envelopes(log), 10, type="trial.proposed")["seq"]
    said = sh(f"log audit {log} --study study --from {middle} -f json").json
    assert said["levels"][2]["checked"] == 4
    assert "no study 'other'" in sh(f"log audit {log} --study other", code=1).err
    said = sh(f"log audit {log} --from 100000", code=2)
    assert ("event 100000 is not there" in said.err, said.out) == (True, "")


def test_a_saved_state_that_lies_is_damage(log: Path, tmp_path: Path, sh: Shell) -> None:
    shutil.copy(log, tmp_path / "log.db")
    events = [event_of(body, hash) for _, body, hash in read_events(log)]
    for seq, state in ((8, replay(events[:8])), (9, State())):
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as db:
            db.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?)", (seq, snapshot.CODEC, *snapshot.dump(state)))
            db.commit()
    said = sh(f"log audit {tmp_path}/log.db -f json", code=65)
    assert (said.json["levels"][1]["checked"], said.json["levels"][1]["same"]) == (2, 1)
    assert said.json["damaged_seq"] == 9
    assert said.json["levels"][2]["same"] == 14


def test_the_settings_of_an_engine_are_part_of_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = engine_settings().keys()
    assert {"search.EVERYWHERE", "posterior.DECIMALS", "kernel._PRIOR_LENGTH", "forest.TREES"} <= settings
    before = fingerprint("0")
    monkeypatch.setattr(search, "EVERYWHERE", 641)
    after = fingerprint("0")
    assert before["engine"]["version"] == after["engine"]["version"]
    assert before["engine"]["settings"] != after["engine"]["settings"]
    assert {**before, "engine": None} == {**after, "engine": None}
    assert {"name", "version", "core", "threads"} == before["blas"][0].keys()


def test_a_log_names_its_engine_once_and_every_proposal_refers_to_it(log: Path) -> None:
    said = envelopes(log)
    (engine,) = [each["data"] for each in said if each["type"] == "engine.fingerprint"]
    assert engine["fingerprint"] == engine_id(engine["engine"])
    proposals = [each["data"] for each in said if each["type"] == "trial.proposed"]
    assert {each["engine"] for each in proposals} == {engine["fingerprint"][:16]}
    assert all(("index" in each) == (each["sampler"] == "bayes") for each in proposals)


def test_what_is_before_a_damage_is_audited_and_the_damage_named(log: Path, tmp_path: Path, sh: Shell) -> None:
    shutil.copy(log, tmp_path / "log.db")
    seq = nth(envelopes(log), 9, type="trial.proposed")["seq"]
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("DROP TRIGGER event_is_never_changed")
        db.execute("UPDATE event SET body = "
                   "CAST(replace(CAST(body AS TEXT), 'proposed', 'proposes') AS BLOB) WHERE seq = ?", (seq,))
        db.commit()
    said = sh(f"log audit {tmp_path}/log.db -f json", code=65)
    assert said.json["damaged_seq"] == seq
    assert said.json["levels"][0]["same"] == seq - 1
    assert said.json["levels"][2]["same"] == 9
    (tmp_path / "text.db").write_text("not a log\n" * 100)
    assert "event 1" in sh(f"log audit {tmp_path}/text.db", code=65).err
    assert "No such file" in sh(f"log audit {tmp_path}/nothing.db", code=78).err


# --- What no honest daemon writes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> list[Envelope]:
    """Points by hand at 4, a trial that is voided at 11, a fork at the end."""
    path = tmp_path_factory.mktemp("eventful") / "log.db"

    def meanwhile(study: Study, i: int) -> None:
        if i == 4:
            study.enqueue({"x": 1.25, "y": 2})
            study.enqueue({"x": -2, "y": 0.5})
        elif i == 11:
            study._request("trial.void", {"study": study.name, "trial": 3, "reason": "the sensor was unplugged"})
        elif i == 13:
            study.fork("again")

    passes(play(path, 14, space=FLOATS, meanwhile=meanwhile))
    return envelopes(path)


def verdict_of(said: list[Envelope], change: Callable[[list[Envelope]], int]) -> Verdict:
    """Of the event that was changed, the chain made right again."""
    said = json.loads(json.dumps(said))
    seq = change(said)
    events = [event_of(row.body, row.hash) for row in sealed(said)]
    return next(each for each in audit(events, here(events), from_seq=seq) if each.seq == seq)


def changed(name: str, value: Any, n: int = 2, **which: Any) -> Callable[[list[Envelope]], int]:
    """A change of the third proposal by a model, or of another event; None leaves the field out."""
    def change(said: list[Envelope]) -> int:
        event = nth(said, n, **(which or {"type": "trial.proposed", "sampler": "bayes"}))
        event["data"][name] = value
        if value is None:
            del event["data"][name]
        return int(event["seq"])
    return change


BY_HAND = {"type": "trial.proposed", "sampler": "enqueued", "n": 0}
FITTED = {"type": "model.fitted", "n": 0}
NOT_SO: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "no pending": ("pending", None, {}), "no fit": ("fit", None, {}), "no engine": ("engine", None, {}),
    "no index": ("index", None, {}), "another space": ("space_rev", 7, {}), "a number that follows": ("number", 9, {}),
    "an unknown sampler": ("sampler", "tpe", {}), "a reason nobody gives": ("fallback", "because I say so", {}),
    "a reason of another method": ("fallback", "sobol: ValueError: x", {}),
    "another point by hand": ("params", {"x": -4, "y": 4}, BY_HAND), "draws by hand": ("drawn", 5, BY_HAND),
    "another moment by hand": ("as_of", 3, BY_HAND), "no moment": ("as_of", None, {}), "a list": ("as_of", [1], {}),
    "a text for a number": ("as_of", "12", {}), "ahead text": ("ahead", "x", {}), "ahead numbers": ("ahead", [1], {}),
    "pending 7": ("pending", 7, {}), "fallback 7": ("fallback", 7, {}), "after text": ("after", "x", {}),
    "fit list": ("fit", [1], {}), "engine 7": ("engine", 7, {}), "acquisition text": ("acquisition", "x", {}),
    "no theta": ("theta", [], FITTED), "n text": ("n", "x", FITTED), "a fit of no moment": ("as_of", None, FITTED),
}


@pytest.mark.parametrize("name", NOT_SO)
def test_a_field_that_no_daemon_writes_so_is_named(name: str, eventful: list[Envelope]) -> None:
    field, value, which = NOT_SO[name]
    verdict = verdict_of(eventful, changed(field, value, **which))
    assert verdict.outcome == "diverged"
    assert verdict.evidence is not None
    assert field in verdict.evidence["differs"]


def voided_before(said: list[Envelope], change: Callable[[Envelope, Envelope], None]) -> int:
    """Let a proposal claim to have been made before an outcome was voided, as the one before it was."""
    seq = nth(said, 0, type="outcome.voided")["seq"]
    made = [each for each in said if each["type"] == "trial.proposed"]
    last = max((each for each in made if each["seq"] < seq), key=lambda each: int(each["seq"]))
    first = min((each for each in made if each["seq"] > seq), key=lambda each: int(each["seq"]))
    change(last, first)
    return int(first["seq"])


def test_a_point_is_not_made_from_what_was_void_by_then(eventful: list[Envelope]) -> None:
    """The engine would say just this point of that history; but the drawer in which it would have lain was emptied."""
    def as_before(last: Envelope, first: Envelope) -> None:
        first["data"] |= {name: last["data"][name] for name in ("as_of", "pending", "fit")}
        first["data"]["ahead"] = [last["data"]["params"]]

    verdict = verdict_of(eventful, partial(voided_before, change=as_before))
    assert (verdict.evidence or {})["differs"] == ["as_of"]


def asked_at(said: list[Envelope], seq: int) -> Problem:
    events = [event_of(row.body, row.hash) for row in sealed(json.loads(json.dumps(said)))]
    plan = Plan(from_seq=seq)
    for each in events:
        plan.note(each)
    problem = next(moments(events, plan.cases[:1])).problem
    assert problem is not None
    return problem


def answer_late(said: list[Envelope], event: Envelope) -> int:
    """Let the event be just what answers under the deadline there."""
    data = event["data"]
    event["data"] = data = {**{name: data[name] for name in ("params", "space_rev", "as_of", "ahead") if name in data},
                            "sampler": "random", "drawn": 0, "fallback": "deadline",
                            "engine": nth(said, 0, type="engine.fingerprint")["data"]["fingerprint"][:16]}
    problem = asked_at(said, event["seq"])
    made = suggest(replace(problem, method="random")).proposals[0]
    data |= {"params": dict(made.params), "stream": made.stream, "drawn": problem.drawn}
    return int(event["seq"])


def test_a_point_by_hand_goes_before_any_drawn_one(eventful: list[Envelope]) -> None:
    def drawn(said: list[Envelope]) -> int:
        return answer_late(said, nth(said, 0, type="trial.proposed", sampler="enqueued"))

    verdict = verdict_of(eventful, drawn)
    assert (verdict.evidence or {})["differs"] == ["sampler"]


@pytest.mark.parametrize(("field", "change"), [
    ("trial.imported", changed("values", {"value": -1000}, type="trial.imported", n=2)),
    ("trial.imported", changed("params", {"x": 0, "y": 0}, type="trial.imported", n=4)),
    ("origin", changed("origin", {"study": "study", "at": 30, "hash": "0" * 64}, type="study.forked", n=0)),
    ("origin", changed("origin", {"study": "study", "at": 10_000, "hash": "0" * 64}, type="study.forked", n=0)),
    ("streams", changed("streams", 77, type="study.forked", n=0))], ids=["value", "point", "moment", "none", "streams"])
def test_a_fork_took_over_what_its_origin_knew(
        field: str, change: Callable[[list[Envelope]], int], eventful: list[Envelope]) -> None:
    def at_fork(said: list[Envelope]) -> int:
        change(said)
        return int(nth(said, 0, type="study.forked")["seq"])

    verdict = verdict_of(eventful, at_fork)
    assert (verdict.what, verdict.outcome) == ("fork", "diverged")
    assert field in (verdict.evidence or {})["differs"]


def test_what_a_fork_took_over_is_whole_and_nobody_adds_to_it(eventful: list[Envelope]) -> None:
    def rest(said: list[Envelope], taken: int) -> int:
        """Only so many trials are taken over; the chain ends there."""
        fork = nth(said, 0, type="study.forked")["seq"]
        del said[fork + taken:]
        return int(fork)

    whole = sum(each["type"] == "trial.imported" for each in eventful)
    assert verdict_of(eventful, partial(rest, taken=whole)).outcome == "same"
    assert verdict_of(eventful, partial(rest, taken=whole - 1)).outcome == "diverged"

    def stray(said: list[Envelope]) -> int:
        last = [each for each in said if each["type"] == "trial.imported"][-1]
        rest(said, whole)
        said += [{**said[0], "seq": said[-1]["seq"] + 1, "type": "clock.jumped", "crit": False, "data": {"by_s": 1}},
                 {**last, "seq": said[-1]["seq"] + 2}]
        return int(said[-1]["seq"])

    assert verdict_of(eventful, stray).outcome == "diverged"


def test_what_was_slow_or_broke_is_counted_by_itself(log: Path, tmp_path: Path, sh: Shell) -> None:
    """Nobody can prove that a model was slow: a reader sees for how many points the log claims it."""
    def slow(said: list[Envelope]) -> int:
        event = [each for each in said if each["type"] == "trial.proposed"][-1]
        return answer_late(said, event)

    seq = forge(log, tmp_path / "forged.db", slow)
    said = sh(f"log audit {tmp_path}/forged.db --from {seq} -f json").json
    (row,) = said["levels"][2:]
    assert (row["what"], row["checked"]) == ("not reproduced (the plain point was)", 1)
    assert said["not_reproduced"] == 1


def test_who_explains_a_suggestion_and_who_asks_again_speak_of_one_problem() -> None:
    events = serve(thinking(lambda problem: 4.0 if problem.number % 4 == 0 else 0.02), workers=3, trials=8,
                   space=FLOATS)
    proposals = [event for event in proposed(events) if event.data["sampler"] != "enqueued"]
    witness = Witness("s", {event.data["as_of"] for event in proposals}, {event.trial or 0 for event in proposals})
    for event in events:
        witness.see(event, b'{"time": "2026-01-01T00:00:00Z"}')
    witness.end()
    plan = Plan()
    for event in events:
        plan.note(event)
    asked = {moment.event.trial: moment.problem for moment in moments(events, plan.cases)
             if moment.event.type == "trial.proposed"}
    assert len(asked) == len(proposals) > 20
    assert any("number" in event.data for event in proposals)
    assert {number: witness.problem(number or 0) for number in asked} == asked


def test_a_log_from_before_proposals_named_their_engine_is_not_blamed_for_it() -> None:
    lines = (Path(__file__).parents[1] / "golden" / "log-3.jsonl").read_text().splitlines()
    events = [event_of(line.encode(), bytes(32)) for line in lines if '"seq":' in line]
    verdicts = audit(events)
    assert len(verdicts) > 30
    named = ("engine", "index", "as_of", "ahead", "pending", "fit")
    assert not [each for each in verdicts for name in (each.evidence or {}).get("differs", ()) if name in named]
