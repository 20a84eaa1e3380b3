"""Whose word a page gives: of forks and what they took over, of late results, and of text that lies outside."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell
from tests.edges.test_service import Worker, begin
from tests.edges.test_why import FLOAT, Engine, answers, asked, flat, page_of, readable, worker
from tests.study.story import Story

from bayesd import Study
from bayesd.replay import event_of
from bayesd.study import view
from bayesd.study.diff import Diff
from bayesd.study.fold import apply, replay
from bayesd.testing import Daemon, MemoryBroker, run
from bayesd.why import words

REASON, ERROR = "Anna unplugged the sensor", "no such file: /home/anna/data"


# ---------------------------------------------------------------- forks


@pytest.fixture(scope="module")
def forked() -> Engine:
    """Six trials, of which one failed and one was stopped early; a fork that goes on with two of its own."""
    story = Engine(method="bayes", space={"x": FLOAT}, budget={"trials": 30})
    for value in (0.5, 0.2, 0.9, 0.4):
        story.a_trial(value=value)
    story.a_trial(state="fail", **{"class": "oom"})
    pruned = story.a_trial()
    story.report("w1", pruned, 1, 0.7)
    story.tell("w1", pruned, state="pruned")
    story.request("anna", "study.fork", id="f", **{"as": "t"}, changes={"budget": {"trials": 5}})
    for number, value in ((7, 0.3), (8, 0.1)):
        story.ask("w2", id=f"t{number}", study="t")
        story.tell("w2", number, study="t", value=value)
    return story


def test_an_imported_trial_has_a_page_of_its_own(forked: Engine) -> None:
    forked_at = next(row.seq for row in forked.rows if row.type == "study.forked") - 1
    page = page_of(forked.rows, 2, "t")
    assert page["from"] == {"study": "s", "trial": 2, "at": forked_at, "who": "anna",
                            "time": "2026-01-01T00:00:00.000000Z"}
    assert page["params"] == forked.desk.state.studies["s"].trials[1].params
    assert page["became"]["rank"]["now"] == {"place": 2, "of": 6}
    text = flat(page)
    for said in ("It was not suggested here: it is trial 2 of s, which t began with.",
                 f"anna forked s at 2026-01-01 00:00:00 UTC, as it stood behind event {forked_at}.", "bayesd why s 2",
                 "The best here is trial 8 with 0.1, which was suggested here", "● this trial"):
        assert said in text
    assert "number 2 of 6 finished trials here" in words.sentence(page)
    assert "class oom" in flat(page_of(forked.rows, 5, "t"))
    assert "It was stopped early at 0.7" in flat(page_of(forked.rows, 6, "t"))
    # While nothing of its own is better, the imported one is the best.
    until = next(row.seq for row in forked.rows if row.study == "t" and row.type == "trial.proposed")
    assert "still the best here" in words.sentence(page_of(forked.rows[:until], 2, "t"))


def test_a_void_of_an_imported_trial_is_told() -> None:
    story = Story(direction="minimize")
    story.ask("w1")
    story.tell("w1", 1, value=0.5)
    story.request("anna", "study.fork", id="f", **{"as": "t"})
    story.request("bob", "trial.void", id="v", study="t", trial=1, reason=REASON)
    page = page_of(story.rows, 1, "t")
    assert f"It was declared void here: {REASON}." in words.sentence(page)
    assert "bob declared it void" in flat(page)


def test_a_trial_of_a_fork_was_not_handed_out_before_it(forked: Engine) -> None:
    first, second = (page_of(forked.rows, number, "t") for number in (7, 8))
    assert (first["known"]["handed_out"], first["known"]["imported"], first["known"]["used"]) == (0, 6, 0)
    assert "No trial of its own had been handed out yet; it began with 6 imported ones: 4 finished" in flat(first)
    assert "1 of 5 trials had been handed out, besides 6 imported ones: 5 finished" in flat(second)


def test_the_page_of_a_fork_says_that_it_is_one(forked: Engine) -> None:
    page = page_of(forked.rows, None, "t")
    assert "It is a fork of s as it stood behind event" in flat(page)
    assert "began with 6 trials that had been measured there" in flat(page)
    assert page["record"][1][0] == "forked"
    assert "of s by anna" in page["record"][1][1]
    assert "fork" not in flat(page_of(forked.rows))


def test_a_point_that_came_along_is_not_the_word_of_who_enqueued_another() -> None:
    story = Story(direction="minimize", enqueue=[{"x": 1.0}, {"x": 2.0}, {"x": 3.0}])
    story.ask("w1")
    story.tell("w1", 1, value=0.1)
    story.request("anna", "study.fork", id="f", **{"as": "t"})
    story.request("bob", "study.enqueue", id="e", study="t", params={"x": 50.0})
    for number in (2, 3, 4):
        story.ask("w1", id=f"b{number}", study="t")
    by = [page_of(story.rows, number, "t")["choice"]["by"] for number in (2, 3, 4)]
    assert [(each["who"], each["with"], each["of"]) for each in by] == [
        ("anna", "fork", "s"), ("anna", "fork", "s"), ("bob", "enqueue", None)]
    assert "It lay in the queue of points by hand when anna forked s" in flat(page_of(story.rows, 2, "t"))


# ---------------------------------------------------------------- whose result it is


def test_a_late_result_that_was_taken_is_of_who_measured_it() -> None:
    story = Story(direction="minimize", retry={"lost": 1})
    story.ask("w1")
    since = len(story.rows)
    story.tick(700)
    story.ask("w2", id="b")
    story.tell("w1", 1, 1, value=0.2)
    story.tick(1400)
    trial = story.desk.state.studies["s"].trials[0]
    assert (trial.status, trial.leases[-1].worker) == ("complete", "w2")
    assert view.trial_row(trial)["worker"] == "w1"
    page = page_of(story.rows, 1)
    assert page["became"]["worker"] == "w1"
    assert "value 0.2, from w1 at event" in flat(page)
    events = [event_of(row.body, row.hash) for row in story.rows]
    diff, after = Diff(replay(events[:since])), replay(events[:since])
    for event in events[since:]:
        diff.note(event)
        apply(after, event)
    assert [each["worker"] for each in diff.against(after)["studies"][0]["outcomes"]] == ["w1"]
    # Nobody told: then it is of who had it last.
    story = Story(direction="minimize", retry={"lost": 0})
    story.ask("w1")
    story.tick(700)
    assert view.trial_row(story.desk.state.studies["s"].trials[0])["worker"] == "w1"


def test_a_budget_that_was_lowered_closed_it() -> None:
    story = Engine(space={"x": FLOAT}, budget={"trials": 30})
    for _ in range(3):
        story.a_trial(value=1.0)
    story.request("anna", "study.amend", id="z", changes={"budget": {"trials": 2}})
    page = page_of(story.rows)
    assert answers(page) == ["trials"]
    assert page["answer"].startswith("anna amended it at 2026-01-01 00:00:00 UTC")
    assert "to a budget of 2 trials, and 3 had been tried by then" in page["answer"]
    story = Engine(space={"x": FLOAT}, budget={"trials": 30})
    story.request("anna", "study.amend", id="z", changes={"budget": {"trials": 1}})
    story.a_trial(value=1.0)
    assert "was used up, and the last outcome came at" in page_of(story.rows)["answer"]


# ---------------------------------------------------------------- text outside the events


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"
    with Study({"x": FLOAT}, name="kept", seed=1, log=path, direction="minimize") as study:
        study.tell(study.ask(), 0.5)
        study.tell(study.ask(), state="fail", error=ERROR)
        study._request("trial.void", {"study": "kept", "trial": 1, "reason": REASON})
        study._request("worker.revoke", {"worker": "inprocess", "reason": "it lies"})
    return path


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def told(sh: Shell, log: Path) -> list[str]:
    """Why trial 1 was void, the error of trial 2, and why the worker was revoked, each by whoever shows it."""
    one, two = (sh(f"why kept {number} --log {log} -f json").json["became"] for number in (1, 2))
    diff = sh(f"log diff {log} 3 -f json").json
    return [one["voided"]["reason"], diff["studies"][0]["voided"][0]["reason"], two["error"], two["revoked"]["reason"],
            sh(f"why --worker inprocess --log {log} -f json").json["revoked"], diff["workers"]["revoked"][0]["reason"]]


def test_reasons_and_errors_are_shown_as_long_as_they_are_there(log: Path, sh: Shell) -> None:
    assert told(sh, log) == [REASON, REASON, ERROR, "it lies", "it lies", "it lies"]
    text = " ".join(sh(f"why kept 2 --log {log}").out.split())
    assert f": {ERROR}." in text
    assert "inprocess, which had it, was revoked by inprocess-operator at event" in text
    assert f"Its outcome was declared void: {REASON}." in sh(f"why kept 1 --log {log} -f value").out
    before = sh(f"why kept 2 --log {log} -f json").json["became"]["seq"]
    sh(f"log redact {log} --study kept --trial 1 --reason so")
    assert told(sh, log)[:3] == ["(redacted)", "(redacted)", ERROR]
    # Redacted later than the moment that is asked about, and gone all the same.
    sh(f"log redact {log} --study kept --trial 2 --reason so")
    assert sh(f"why kept 2 --log {log} --at {before} -f json").json["became"]["error"] == "(redacted)"
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("DELETE FROM text")
    assert told(sh, log) == ["(redacted)", "(redacted)", "(redacted)", "(missing)", "(missing)", "(missing)"]


def test_a_daemon_shows_reasons_and_forks_as_its_file_does() -> None:
    async def story() -> dict[str, Any]:
        broker = MemoryBroker()
        daemon = Daemon(broker)
        await daemon.start()
        operator, w1 = await begin(broker)
        await w1.wait(lambda kind, body: kind == "grant")
        w1.say("tell", id="t", study="s", trial=1, fence=1, state="fail", error=ERROR, **{"class": "oom"})
        await w1.wait(lambda kind, body: kind == "receipt" and body["id"] == "t")
        said = {"failed": await asked(operator, "q1", study="s", trial=1)}
        await request(operator, "q2", "study.fork", study="s", **{"as": "t"})
        said["imported"] = await asked(operator, "q3", study="t", trial=1)
        await request(operator, "q4", "trial.void", study="s", trial=1, reason=REASON)
        await request(operator, "q5", "worker.revoke", worker="w1", reason="it lies")
        said |= {"void": await asked(operator, "q6", study="s", trial=1),
                 "worker": await asked(operator, "q7", worker="w1")}
        await daemon.stop()
        return {name: body["result"] for name, body in said.items()}

    said = run(story())
    for page in said.values():
        readable(words.of(page))
    assert said["failed"]["became"]["error"] == ERROR
    assert said["imported"]["from"]["trial"] == 1
    assert said["void"]["became"]["voided"]["reason"] == REASON
    assert said["void"]["became"]["revoked"]["reason"] == "it lies"
    assert said["worker"]["revoked"] == "it lies"


async def request(operator: Worker, id: str, verb: str, **args: Any) -> None:
    operator.say("request", id=id, verb=verb, args=args)
    await operator.wait(lambda kind, body: kind == "reply" and body["id"] == id)


def test_a_revoked_worker_by_a_log_of_an_early_release() -> None:
    story = Story()
    story.ask("w1")
    story.request("ann", "worker.revoke", id="x", worker="w1", reason="its results are wrong")
    assert "its results are wrong" in worker(story, "w1")["answer"]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("value", "said"), [
    (1.234, "1.23"), (123.4, "123"), (999.4, "999"), (999.6, "1,000"), (1e3, "1,000"), (12345.0, "12,300"),
    (1e6, "1,000,000"), (1e20, "1e+20")])
def test_a_large_number_reads_as_a_person_writes_it(value: float, said: str) -> None:
    assert words.large(value) == said
    assert words.difference({"parameter": "C", "here": 1.0, "there": value, "only": None, "share": 0.5,
                             "scale": "log"}).startswith(f"C is {said} times lower")
