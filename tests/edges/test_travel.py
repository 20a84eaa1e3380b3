"""Any past moment, of a daemon and of its file; forks; all of it typed at the command line."""

import asyncio
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Home, Shell, ask_and_tell, create, daemon
from tests.edges.test_service import Worker, begin

from bayesd import past, replay
from bayesd.log import MemoryDisk
from bayesd.testing import Daemon, MemoryBroker, run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with daemon(tmp_path_factory.mktemp("travel")) as running:
        yield running


@pytest.fixture
def sh(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Types commands where the daemon lives."""
    for name in list(os.environ):
        if name.startswith("BAYESD_"):
            monkeypatch.delenv(name)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "USER"):
        monkeypatch.setenv(name, home.environment[name])
    return Shell(capsys)


def lived(sh: Shell, home: Home, name: str, values: tuple[float, ...] = (3.0, 1.0, 2.0)) -> list[dict[str, Any]]:
    """A study with these results; returned: the events of its outcomes."""
    create(sh, home, name, trials=10)
    for value in values:
        ask_and_tell(sh, name, str(value))
    return [event for event in sh(f"log show {home.log} --study {name} -f json").json
            if event["type"] == "trial.completed"]


READS = ("study list", "study show {name}", "study best {name}", "trial list {name}", "trial show {name} 1",
         "study export {name}")


def test_a_daemon_and_its_file_say_the_same_of_any_moment(home: Home, sh: Shell) -> None:
    first, second, _ = lived(sh, home, "past")
    between = second["seq"] - 1
    for at, seq in ((first["seq"], first["seq"]), (first["time"], first["seq"]), (between, between)):
        for read in READS:
            format = " --format jsonl" if "export" in read else " -f json"
            line = read.format(name="past") + format + f" --at {at}"
            said, kept = sh(line), sh(f"{line} --log {home.log}")
            assert said.out == kept.out if "export" in read else said.json == kept.json
            if "list" in read or "export" in read:
                assert f"as of event {seq}, " in said.err
                assert said.err == kept.err
            else:
                assert said.json["at"]["seq"] == seq
    assert sh(f"study best past -f json --at {first['seq']}").json["value"] == 3.0
    assert sh("study best past -f value").out.strip() == "1"
    assert f"as of event {first['seq']}" in sh(f"study best past --at {first['seq']}").err
    assert f"event {first['seq']}, " in sh(f"study show past --at {first['seq']}").out
    assert "as of" in sh(f"trial show past 1 --at {first['seq']}").out


@pytest.mark.parametrize(("at", "words"), [
    ("0", "there is nothing before it"), ("99999999", "the log ends at event"), ("2020-01-01", "the log begins after"),
    ("yesterday", "neither a seq nor a time"), ("-3", "neither a seq nor a time")])
def test_what_is_no_moment_of_this_log(home: Home, sh: Shell, at: str, words: str) -> None:
    for more in ("", f" --log {home.log}"):
        said = sh(f"study list --at={at}{more}", code=2)
        assert words in said.err
        assert said.out == ""


def test_a_daemon_has_no_future(sh: Shell) -> None:
    assert "still to come" in sh("study list --at 2999-01-01", code=2).err


def test_a_moment_before_the_study(home: Home, sh: Shell) -> None:
    lived(sh, home, "young", ())
    assert "no study 'young'" in sh("study show young --at 2", code=1).err
    assert "no study 'young'" in sh(f"study show young --at 2 --log {home.log}", code=1).err


def test_a_fork_of_a_moment(home: Home, sh: Shell) -> None:
    _, second, _ = lived(sh, home, "parent")
    sh("ask parent")
    said = sh(f"study fork parent --as child --at {second['seq']} method=random budget.trials=2 -f json")
    assert "with 2 trials of parent" in said.err
    assert (said.json["imported"], said.json["trials"], said.json["best"]) == (2, 0, 1.0)
    page = sh("study show child")
    assert "fork of" in page.out
    assert "imported=2" in page.out
    rows = list(csv.DictReader(io.StringIO(sh("study export child").out)))
    assert [(row["trial"], row["sampler"], row["worker"], row["values.loss"]) for row in rows] == [
        ("1", "imported", "", "3.0"), ("2", "imported", "", "1.0")]
    assert "trial 2 of parent" in sh("trial show child 2").out
    assert sh("study best child -f json").json["trial"] == 2
    for value in ("7.0", "8.0"):
        ask_and_tell(sh, "child", value)
    assert sh("study show child -f json").json["closed_by"] == "trials"      # two of its own, and no imported one
    watched = sh("watch child").out
    assert "child  2/2" in watched
    assert "imported 2" in watched
    assert "a study named child" in sh("study fork parent --as child", code=1).err
    now = sh("study fork parent --as now")
    assert "with 3 trials of parent" in now.err
    assert "1 trials that were pending then are not carried" in now.err
    words = sh(f"log show {home.log} --study child").out
    assert f"of parent behind event {second['seq']}" in words
    assert "from parent #1" in words
    whole = sh(f"log verify {home.log} -f json").json
    assert whole["damage"] is None


def test_a_fork_by_a_file(home: Home, sh: Shell, tmp_path: Path) -> None:
    lived(sh, home, "wide")
    whole = tmp_path / "whole.toml"
    whole.write_text('name = "wide"\nmetric = "loss"\nmethod = "grid"\n'
                     '[space.x]\ntype = "float"\nlow = 1.9\nhigh = 2.0\nlevels = 3\n')
    assert "no place for any trial of wide" in sh(f"study fork wide {whole} --as narrow", code=2).err
    whole.write_text(whole.read_text().replace("1.9", "-0.1"))
    said = sh(f"study fork wide {whole} --as narrow seed=9 -f json")
    assert said.json["left_out"] + said.json["imported"] == 3
    assert said.json["left_out"] > 0
    assert "are left out, because the new space has no place for them" in said.err
    page = sh("study show narrow -f json").json
    assert (page["spec"]["method"], page["spec"]["seed"]) == ("grid", 9)
    parts = tmp_path / "parts.toml"
    parts.write_text("[budget]\ntrials = 77\n")
    assert sh(f"study fork wide {parts} --as longer -f json").json["budget"] == 77


def test_results_are_taken_while_the_daemon_is_in_the_past_and_a_fork_is_made_once(
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> MemoryDisk:
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk)
        await daemon.start()
        operator, worker = await begin(broker, method="random")
        for trial in range(1, 40):
            await worker.wait(lambda kind, body, trial=trial: kind == "grant" and body["trial"] == trial)  # type: ignore[misc]
            worker.say("tell", id=f"t{trial}", study="s", trial=trial, fence=1, value=trial,
                       ask={"id": f"b{trial}", "run": "r", "study": "s"})
            await worker.wait(lambda kind, body, trial=trial: body.get("id") == f"t{trial}")  # type: ignore[misc]
        assert daemon.service is not None
        before = daemon.service.desk.state.seq

        async def slow(log: Any, until: int, *, aside: bool) -> Any:
            await asyncio.sleep(30.0)
            return await replay.fold(log, until, aside=aside)
        monkeypatch.setattr(past, "fold", slow)
        operator.say("request", id="f", verb="study.fork", args={"study": "s", "as": "t", "at": before - 20})
        for _ in range(40):                      # as a client does that has no answer yet
            operator.say("request", id="f", verb="study.fork", args={"study": "s", "as": "t", "at": before - 20})
            await asyncio.sleep(0.5)
        worker.say("tell", id="t40", study="s", trial=40, fence=1, value=0.5)
        recorded = await worker.wait(lambda kind, body: body.get("id") == "t40", 2.0)
        assert recorded["status"] == "recorded"
        reply = await operator.wait(lambda kind, body: body.get("id") == "f")
        assert reply["status"] == "ok", reply
        assert reply["result"]["origin"]["at"] == before - 20
        assert reply["result"]["seq"] > recorded["seq"]
        operator.say("request", id="f", verb="study.fork", args={"study": "s", "as": "t", "at": before - 20})
        again = await operator.wait(lambda kind, body: body.get("id") == "f" and body["result"].get("again"), 5.0)
        assert again["result"]["seq"] == reply["result"]["seq"]
        await daemon.stop()
        return disk

    disk = run(story())
    assert [row.type for row in disk.rows].count("study.forked") == 1


def test_only_operators_fork_and_pages_of_the_past_go_on(home: Home) -> None:
    async def story() -> None:
        from bayesd.service import Settings
        broker, disk = MemoryBroker(), MemoryDisk()
        daemon = Daemon(broker, disk, settings=Settings(operators=frozenset(("op",))))
        await daemon.start()
        operator, worker = await begin(broker, method="random")
        worker.say("ask", id="many", run="r", study="s", n=7)
        await worker.wait(lambda kind, body: kind == "grant" and body["trial"] == 8)
        assert daemon.service is not None
        at = daemon.service.desk.state.seq
        worker.say("tell", id="t", study="s", trial=1, fence=1, value=0.5)
        await worker.wait(lambda kind, body: body.get("id") == "t")
        stranger = Worker(broker, "eve")
        stranger.say("request", id="f", verb="study.fork", args={"study": "s", "as": "t", "at": 3})
        refused = await stranger.wait(lambda kind, body: body.get("id") == "f")
        assert refused["error"]["code"] == "not-allowed"
        seen: list[Any] = []
        after = None
        for page in range(4):
            args = {"study": "s", "limit": 3, "at": at, **({} if after is None else {"after": after})}
            stranger.say("request", id=f"p{page}", verb="trial.list", args=args)
            result = (await stranger.wait(lambda kind, body, page=page: body.get("id") == f"p{page}"))["result"]  # type: ignore[misc]
            assert result["at"]["seq"] == at
            seen += result["trials"]
            after = result.get("next")
            if after is None:
                break
        assert [(row["trial"], row["state"]) for row in seen] == [(number, "running") for number in range(1, 9)]
        kept = daemon.service._past._kept
        assert kept is not None
        await asyncio.sleep(60.0)
        assert daemon.service._past._kept is None        # a state may be large, and nobody asks any more
        wrong: tuple[Any, ...] = (True, [], {"seq": 1}, 1.5)
        for number, at in enumerate(wrong):
            operator.say("request", id=f"bad{number}", verb="study.list", args={"at": at})
            error = await operator.wait(lambda kind, body, id=f"bad{number}": body.get("id") == id)  # type: ignore[misc]
            assert error["error"]["key"] == "at"
        await daemon.stop()
    run(story())


def test_what_changed_between_two_moments(home: Home, sh: Shell) -> None:
    first, second, third = lived(sh, home, "changing")
    sh("study amend changing budget.trials=33")
    said = sh(f"log diff {home.log} {first['seq']} {third['seq']} -f json").json
    assert (said["from"], said["to"]) == ({"seq": first["seq"], "time": first["time"]},
                                          {"seq": third["seq"], "time": third["time"]})
    (study,) = said["studies"]
    assert [each["trial"] for each in study["outcomes"]] == [2, 3]
    assert study["gained"] == 2.0
    words = sh(f"log diff {home.log} {second['time']}").out
    assert "budget.trials  10 -> 33" in words
    assert "1 (trial 2), as before" in words
    assert "give the earlier one first" in sh(f"log diff {home.log} {third['seq']} {first['seq']}", code=2).err
    for moments in ("99999999", "1 99999999"):
        assert "the log ends at event" in sh(f"log diff {home.log} {moments}", code=2).err


def test_what_if_asked_of_a_daemon_and_of_its_file(home: Home, sh: Shell) -> None:
    first, *_ = lived(sh, home, "judged", (3.0, 1.0, 2.0, 0.5))
    for flags in ("--trials 2 --rule mean", "--no-improvement 1", "--target 1.0 --order trial", "--wall 1h", "--cost 3",
                  "--trials 3 --order shuffled --seed 4", "--prune median --startup 1", "--prune curve", "--prune asha",
                  "--method grid --next 2",
                  f"--method random --at {first['seq']} --next 3", f"--trials 1 --at {first['seq']}"):
        said = sh(f"study what-if judged {flags} -f json").json
        assert said == sh(f"study what-if judged {flags} --log {home.log} -f json").json
        assert said["notes"]
        assert sh(f"study what-if judged {flags}").out.startswith("study")
    said = sh("study what-if judged --no-improvement 1")
    assert "by no-improvement" in said.out
    assert "trial 2, 1 " in said.out
    assert "0.5 of the metric" in said.out
    assert "no result is invented" in said.out
    assert "give its log" in sh("study what-if judged --converged", code=2).err
    assert sh(f"study what-if judged --converged --regret 0.1 --log {home.log} -f json").json["stop"]["rule"] is None
    for more in ("", f" --log {home.log}"):
        assert "so [folds] has to say" in sh(f"study what-if judged --prune race{more}", code=2).err
        assert "needs a limit" in sh(f"study what-if judged --order shuffled{more}", code=2).err
        assert "no study 'nobody'" in sh(f"study what-if nobody{more}", code=1).err
    assert "never measured" in sh("study what-if judged --method sobol --next 2").out


def test_warnings_stand_in_short_beside_what_is_read(home: Home, sh: Shell) -> None:
    lived(sh, home, "wary", (3.0, 1.0))
    assert [each["code"] for each in sh("study warnings wary -f json").json["warnings"]] == ["few-trials"]
    for page in ("show", "best"):
        for more in ("", f" --log {home.log}"):
            said = sh(f"study {page} wary{more}").out
            assert "2 complete trials for 1 parameters" in said
            assert "more: bayesd study warnings wary" in said
            assert "study warnings" not in sh(f"study {page} wary{more} -f json").out


def test_what_mattered_asked_of_a_daemon_and_of_its_file(home: Home, sh: Shell) -> None:
    *_, last = lived(sh, home, "mattered", (3.0, 1.0, 2.0, 0.5, 1.5, 2.5))
    for line in ("importance mattered --pairs --shapley --ablation --from 1", "importance mattered --among best",
                 "effect mattered x", f"warnings mattered --at {last['seq']}"):
        said = sh(f"study {line} -f json").json
        assert said == sh(f"study {line} --log {home.log} -f json").json
        assert sh(f"study {line}").out
        assert sh(f"study {line} --log {home.log} -f value").out is not None
    assert "few-trials" not in sh("study warnings mattered").out
    assert "study warnings" not in sh("study show mattered").out
    for more in ("", f" --log {home.log}"):
        assert "a parameter of mattered" in sh(f"study effect mattered nothing{more}", code=2).err
        assert "no trial has failed" in sh(f"study importance mattered --of success{more}", code=1).err
        assert "1 to 6" in sh(f"study importance mattered --from 99{more}", code=2).err
