"""The command line against a real daemon on loopback: every verb, its answer, its exit code."""

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from tests.edges.mosquitto import Mosquitto, binary, free_port

from bayesd import call
from bayesd.bus import BusError
from bayesd.cli import bayesd, explain, run
from bayesd.cli.hand import _ask
from bayesd.cli.phrases import of as phrase
from bayesd.cli.studies import RULES
from bayesd.log import CommitFailed, Damaged, Fenced, LockedOut
from bayesd.study.fold import UnknownEvent

SOURCES = [str(Path(__file__).parents[2] / part) for part in ("daemon", "clients/python", "schemas")]


def study(name: str, trials: int = 5, more: str = "") -> str:
    return f"""\
name = "{name}"
metric = "loss"
method = "sobol"
seed = 7
{more}
[budget]
trials = {trials}
[lease]
default_s = 60
[space.x]
type = "float"
low = -2.0
high = 2.0
"""


@dataclass(frozen=True)
class Home:
    """A folder with a daemon's log, its broker, and an environment for processes."""

    folder: Path
    broker: str
    environment: dict[str, str]
    pid: int

    @property
    def log(self) -> Path:
        return self.folder / "log.db"


def environment(folder: Path) -> dict[str, str]:
    out = {name: value for name, value in os.environ.items() if not name.startswith("BAYESD_")}
    for name in ("run", "state"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    return out | {"XDG_RUNTIME_DIR": str(folder / "run"), "XDG_STATE_HOME": str(folder / "state"),
                  "PYTHONPATH": os.pathsep.join(SOURCES), "PYTHONWARNINGS": "error", "USER": "ann"}


@contextlib.contextmanager
def daemon(folder: Path, *arguments: str) -> Iterator[Home]:
    """`bayesd serve` as a process, from its first word to its clean end."""
    where, said = environment(folder), folder / "daemon.txt"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bayesd.cli", "serve", "--log", str(folder / "log.db"), "--port", str(free_port()),
             *arguments], env=where, stdout=file, stderr=file)
    try:
        note = folder / "run" / "bayesd" / "daemon.json"
        deadline = time.monotonic() + 30
        while not note.exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)      # the note is how any client learns of it
        yield Home(folder, json.loads(note.read_text())["broker"], where, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, said.read_text()
        assert not note.exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with daemon(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def at_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """This process lives where the daemon lives: verbs find it by its note."""
    for name in list(os.environ):
        if name.startswith("BAYESD_"):
            monkeypatch.delenv(name)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "USER"):
        monkeypatch.setenv(name, home.environment[name])
    return home


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Types commands, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, line: str, *more: str, code: int = 0) -> Said:
        self._capsys.readouterr()
        ended = run([*shlex.split(line), *more])
        out, err = self._capsys.readouterr()
        assert ended == code, f"{line}: {ended}, not {code}\n{out}{err}"
        assert "Traceback" not in err
        return Said(ended, out, err)


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def create(sh: Shell, home: Home, name: str, trials: int = 5, more: str = "") -> str:
    path = home.folder / f"{name}.toml"
    path.write_text(study(name, trials, more))
    sh(f"study create {path}")
    return str(path)


def ask_and_tell(sh: Shell, name: str, value: str) -> dict[str, Any]:
    grant: dict[str, Any] = sh(f"ask {name}").json
    sh(f"tell {name} {grant['trial']} {value} --fence {grant['fence']}")
    return grant


# --- Help ----------------------------------------------------------------------------------------------


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(bayesd))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_verb_has_help_with_an_example(path: tuple[str, ...], sh: Shell) -> None:
    said = sh(" ".join(path) + " --help").out
    head, _, examples = said.partition("Example")
    assert examples, "no example"
    assert f"bayesd {' '.join(path)}" in examples
    assert len(head.splitlines()) > 3


def test_every_example_can_be_pasted() -> None:
    """A shell reads each of them to its end."""
    examples = {" ".join(path): getattr(command, "example", "") for path, command in ALL.items()}
    bad = {path: done.stderr for path, example in examples.items() for line in example.splitlines()
           if (done := subprocess.run(["sh", "-n"], input=line + "\n", capture_output=True, text=True)).returncode}
    assert bad == {}


def test_every_verb_of_the_contract_is_there() -> None:
    wanted = """serve; demo; doctor; ask; tell; watch; completion; config show; config check; study create; study list;
        study show; study pause; study resume; study close; study amend; study enqueue; study best; study export;
        trial list; trial show; trial cancel; trial void; worker list; worker revoke; worker run; worker key;
        log verify; log replay; log show; log tail; log export; log diff; log audit; log archive; log import;
        log redact; study fork; study what-if; study confirm; study importance; study effect; study warnings"""
    assert {tuple(each.split()) for each in wanted.split(";")} <= set(ALL)


def test_version_and_completion(sh: Shell) -> None:
    assert sh("--version").out.startswith("bayesd, version ")
    for shell in ("bash", "zsh", "fish"):
        said = sh(f"completion {shell}")
        assert "_BAYESD_COMPLETE" in said.out
        assert f"bayesd completion {shell}" in said.err


def test_usage_errors_end_with_2(sh: Shell) -> None:
    said = sh("study pause", code=2).err
    assert said == "error: Missing argument 'STUDY'.\ntry: bayesd study pause --help\n"
    assert "create" in sh("study", code=2).err       # a noun alone shows its verbs
    assert "close" in sh("study clos x", code=2).err
    sh("study shw x", code=2)
    sh("study show", code=2)
    sh("study create nothing.toml", code=2)
    sh("study amend s budget.trials", code=2)
    sh("tell s 1", code=2)
    sh("tell s 1 much", code=2)
    sh("study list --broker http://localhost", code=2)
    sh("study list --client Ann", code=2)
    sh("study list --root a//b", code=2)
    sh("ask s --name Ann", code=2)


# --- A study from its file to its winner ------------------------------------------------------------------


def test_a_study_by_hand(at_home: Home, sh: Shell) -> None:
    path = at_home.folder / "by-hand.toml"
    path.write_text(study("by-hand"))
    said = sh(f"study create {path} -f json")
    assert said.json["state"] == "open"
    assert "bayesd watch by-hand" in said.err
    assert "exists already" in sh(f"study create {path}").err
    path.write_text(study("by-hand", 9))
    assert "amend it, or choose another name" in sh(f"study create {path}", code=1).err

    said = sh("ask by-hand")
    grant = said.json
    assert grant["params"].keys() == {"x"}
    told = next(line for line in said.err.splitlines() if line.startswith("tell"))
    command = told.removeprefix("tell").strip().removeprefix("bayesd ").replace("VALUE", "0.5")
    receipt = sh(command).json      # exactly what it said to type
    assert receipt["status"] == "recorded"
    again = sh(command)
    assert again.json["status"] == "duplicate"
    assert again.json["seq"] == receipt["seq"]
    assert "another result with this fence is recorded" in sh(command.replace("0.5", "0.7")).err

    ask_and_tell(sh, "by-hand", "-0.25")
    grant = sh("ask by-hand").json
    sh(f"tell by-hand {grant['trial']} --state fail --class oom --error 'out of memory'")
    shown = sh(f"trial show by-hand {grant['trial']}").out
    assert re.search(r"error +out of memory\n", shown), shown
    grant = sh("ask by-hand").json
    sh(f"tell by-hand {grant['trial']} 0.1 0.3 0.2 --folds --seconds 3 --cost 0.5")
    assert "trial 99 with fence 1 was not leased to" in sh("tell by-hand 99 1", code=1).err

    rows = sh("trial list by-hand -f json").json
    assert [row["state"] for row in rows] == ["complete", "complete", "fail", "complete"]
    assert rows[3]["values"] == {"loss": pytest.approx(0.2)}
    assert rows[3]["se"] is not None
    assert rows[2]["class"] == "oom"
    assert rows[0]["worker"] == call.hand_name()
    assert len(sh("trial list by-hand --state fail -f value").out.splitlines()) == 1

    best = sh("study best by-hand -f json").json
    assert (best["trial"], best["value"]) == (2, -0.25)
    for rule in ("best", "mean", "one-se"):
        words = sh(f"study best by-hand --rule {rule}").out
        assert f"(rule {rule})" in next(line for line in words.splitlines() if line.startswith("why"))
        assert {line.split()[0] for line in words.split("OTHER RULES")[1].splitlines()[1:]} == {
            "best", "mean", "one-se", "robust", "pareto"} - {rule}
    assert sh("study best by-hand -f value").out == "-0.25\n"

    ask_and_tell(sh, "by-hand", "nan")
    said = sh("ask by-hand", code=1)
    assert said.json["status"] == "closed"
    page = sh("study show by-hand -f json").json
    assert (page["state"], page["closed_by"]) == ("closed", "trials")
    assert page["trials"]["fail"] == 2


def test_every_read_has_four_formats(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "formats")
    ask_and_tell(sh, "formats", "0.5")
    for line in ("study list", "study show formats", "study best formats", "trial list formats",
                 "trial show formats 1", "worker list", "config show"):
        data = sh(f"{line} -f json").json
        assert data
        assert still(yaml.safe_load(sh(f"{line} -f yaml").out)) == still(data)
        assert sh(f"{line} -f value").out.strip()
        table = sh(line).out
        assert "\x1b" not in table
        assert all(shown == shown.rstrip() for shown in table.splitlines())


def still(data: Any) -> Any:
    """Without what moves with the clock."""
    moving = ("budget", "eta_s", "eta", "cost")
    return {key: value for key, value in data.items() if key not in moving} if isinstance(data, dict) else data


def test_numbers_stand_to_the_right(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "right", 12345)
    head, *lines = sh("study list").out.splitlines()
    end = head.index("BUDGET") + len("BUDGET")
    assert all(line[end - 1].isdigit() and line[end:end + 2] == "  " for line in lines)


def test_pause_resume_close(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "steer")
    assert "steer is paused" in sh("study pause steer").err
    assert "nothing changed" in sh("study pause steer").err
    said = sh("ask steer --timeout 5", code=1)
    assert (said.json["status"], said.json["reason"]) == ("waiting", "paused")
    assert "open again" in sh("study resume steer").err
    grant = sh("ask steer").json
    assert sh("study close steer --running stop -f json").json["state"] == "closed"
    assert sh(f"trial show steer {grant['trial']} -f json").json["class"] == "lost"
    assert "nothing changed" in sh("study close steer").err
    assert "closed" in sh("study pause steer", code=1).err
    assert "no study 'nobody'" in sh("study pause nobody", code=1).err


def test_an_ask_that_gets_nothing_does_not_stand(at_home: Home, sh: Shell) -> None:
    """Or a trial would be leased to nobody when the study goes on."""
    create(sh, at_home, "stands")
    sh("study pause stands")
    sh("ask stands --timeout 4", code=1)
    sh("study resume stands")
    time.sleep(0.5)
    assert sh("study show stands -f json").json["trials"]["running"] == 0


def test_an_ask_without_study_takes_any(tmp_path: Path, sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with daemon(tmp_path, "--root", "acme/tuning") as other:
        monkeypatch.setenv("XDG_RUNTIME_DIR", other.environment["XDG_RUNTIME_DIR"])
        assert sh("ask --timeout 3", code=1).json["status"] == "waiting"
        create(sh, other, "only")       # under a root that the daemon's note names
        said = sh("ask")
        assert said.json["study"] == "only"
        assert "--root acme/tuning" in said.err


def test_amend_and_enqueue(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "change", 3)
    assert sh("study amend change budget.trials=7 late=ignore -f json").json["budget"] == 7
    changes = at_home.folder / "changes.yaml"
    changes.write_text("space:\n  k: {type: categorical, choices: [a, b]}\n")
    sh(f"study amend change {changes}")
    assert set(sh("study show change -f json").json["space"]) == {"x", "k"}
    assert sh("study enqueue change x=1.5 k=b -f json").json["params"] == {"x": 1.5, "k": "b"}
    assert sh("ask change").json["params"] == {"x": 1.5, "k": "b"}
    sh("study amend change name=other", code=2)
    said = sh("study enqueue change x=9 k=a", code=2).err
    assert "x" in said
    assert len(said.splitlines()) <= 2


def test_confirm_measures_the_leaders_again(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "again", 2)
    for value in (3, 1):
        trial = sh("ask again --name w1").json["trial"]
        sh(f"tell again {trial} {value} --name w1")
    assert sh("study show again -f json").json["closed_by"] == "trials"
    said = sh("study confirm again --top 1 -f json")
    assert "trials 2 of again are measured again: 1 trials" in said.err
    assert "are being measured again" in sh("study best again").err
    assert "open to measure its leaders again, nothing else" in sh("study amend again budget.trials=9", code=1).err
    grant = sh("ask again --name w2").json
    assert grant["trial"] == 3
    sh("tell again 3 1.5 --name w2")
    best = sh("study best again -f json").json
    assert (best["rule"], best["trial"], best["value"]) == ("confirmed", 2, 1.5)
    best_now = sh("study best again")
    assert "measured once on another worker" in best_now.out
    assert "are being measured again" not in best_now.err
    assert sh("study best again --rule best -f json").json["value"] == 1.25       # the mean of both its evaluations
    assert "It measures trial 2 again" in sh("why again 3").out
    assert "Confirmed is trial 2" in sh("why again").out


def test_cancel_void_and_revoke(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "mend")
    sh("ask mend --name held")
    assert "trial 1 of mend is cancelled" in sh("trial cancel mend 1 --reason 'it diverges'").err
    assert "nothing changed" in sh("trial cancel mend 1").err
    ask_and_tell(sh, "mend", "0.1")
    assert sh("trial void mend 2 --reason 'unplugged' -f json").json["state"] == "voided"
    sh("trial void mend 2", code=2)      # without a reason
    sh("trial show mend 99", code=1)
    assert "held is revoked" in sh("worker revoke held --reason 'no good'").err
    assert sh("ask mend --name held", code=1).json["status"] == "rejected"
    row = next(row for row in sh("worker list -f json").json if row["worker"] == "held")
    assert row["revoked"].startswith("event ")
    assert sh("worker revoke held --void", code=2).err.startswith("error: --void needs --reason")
    done = sh("worker revoke held --void --reason 'no good at all' -f json")
    assert ("0 trials are void" in done.err, done.json["trials"]) == (True, [])
    trial = sh("ask mend --name liar").json["trial"]
    sh(f"tell mend {trial} 0.2 --name liar")
    row = sh("worker revoke liar --void --reason 'a liar'").out
    assert f"mend #{trial}" in row
    assert "leases" not in row


def test_a_running_daemon_redacts_and_shows_what_is_left(at_home: Home, sh: Shell) -> None:
    words = "no such file: /home/jane.doe"
    create(sh, at_home, "words")
    trial = sh("ask words --name w").json["trial"]
    sh(f"tell words {trial} --name w --state fail --error '{words}'")
    sh(f"trial void words {trial} --reason 'jane asked for it'")
    seen = sh("log tail --study words --no-follow -n 100 -f json").out
    assert (words in seen, "jane asked" in seen) == (True, True)
    log = at_home.folder / "log.db"
    assert len(sh(f"log redact {log} --study words --trial {trial} --reason 'a name' -f json").json) == 2
    seen = sh("log tail --study words --no-follow -n 100 -f json").out
    assert (words in seen, "jane asked" in seen, "(redacted)" in seen) == (False, False, True)


def test_a_redacted_worker_leaves_no_word_of_its_revocation(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "gone")
    for number in range(3):
        trial = sh("ask gone --name jane").json["trial"]
        sh(f"tell gone {trial} {number} --name jane")
    sh("ask gone --name held2")
    sh("trial void gone 4 --reason 'another matter'")
    sh("worker revoke jane --void --reason 'jane.doe sold her laptop'")
    log = at_home.folder / "log.db"

    def raw() -> bytes:
        return b"".join(each.read_bytes() for each in log.parent.glob("log.db*"))
    assert b"jane.doe" in raw()
    said = sh(f"log redact {log} --worker jane --reason 'a name' -f json").json
    assert [each["type"] for each in said] == ["worker.revoked"] + 3 * ["outcome.voided"]
    until = time.monotonic() + 20
    while b"jane.doe" in raw() and time.monotonic() < until:      # a daemon cuts its WAL between results
        time.sleep(0.1)
    assert (b"jane.doe" in raw(), b"another matter" in raw()) == (False, True)


def test_an_empty_reason_is_none(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "why")
    sh("ask why --name silent")
    log = at_home.folder / "log.db"
    for line in ("trial cancel why 1 --reason ''", "trial void why 1 --reason ' '", "worker revoke silent --reason ''",
                 "worker revoke silent --void --reason ''", f"log redact {log} abcd --reason ''",
                 f"serve --log {log} --accept-rollback ''"):
        assert "reason" in sh(line, code=2).err, line
    assert sh("trial show why 1 -f json").json["state"] == "running"


def test_a_name_that_nobody_has_is_revoked_by_force_alone(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "names")
    sh("ask names --name somebody")
    said = sh("worker revoke sombody --reason 'a typo'", code=1).err
    assert ("no worker sombody" in said, "somebody" in said, "--force" in said) == (True, True, True)
    assert "nobody is revoked" in sh("worker revoke nobody --force --reason 'must never come'").err


def test_every_rule_of_the_daemon_can_be_typed() -> None:
    from bayesd import winner
    assert set(RULES) == set(winner.RULES)


def test_of_several_objectives_the_knee_or_by_another_rule_the_first_decides(at_home: Home, sh: Shell) -> None:
    path = at_home.folder / "two.toml"
    path.write_text(study("two").replace('metric = "loss"\n', "")
                    + '[[objectives]]\nname = "loss"\n[[objectives]]\nname = "size"\n')
    sh(f"study create {path}")
    for loss, size in ((0.2, 7), (0.1, 9)):
        grant = sh("ask two").json
        sh(f"tell two {grant['trial']} loss={loss} size={size}")
    said = sh("study best two -f json")
    assert (said.json["rule"], {row["trial"] for row in said.json["front"]}) == ("pareto", {1, 2})
    assert "by the first" not in said.err
    said = sh("study best two --rule best -f json")
    assert said.json["value"] == 0.1
    assert "by the first of 2 objectives, loss" in said.err
    assert "by the first of 2 objectives" in sh(f"study best two --rule best --log {at_home.log}").err
    head = sh("study export two").out.splitlines()[0]
    assert "values.loss,values.size" in head
    assert "loss=0.1  size=9" in sh("trial list two").out
    for more in ("", f" --log {at_home.log}"):
        shown = sh(f"study show two{more}").out
        assert re.search(r"front +2 of 2 complete trials", shown)
        assert re.search(r"hypervolume +0 after 1, 0 after 2 +\(up to loss=0.2  size=9, the worst", shown)


def test_limits_are_shown_and_the_one_that_binds_is_named(at_home: Home, sh: Shell) -> None:
    path = at_home.folder / "limited.toml"
    path.write_text(study("limited") + '[[limits]]\nname = "fast"\nmetric = "latency"\nat_most = 20\n')
    sh(f"study create {path}")
    assert re.search(r"limit fast +latency at most 20", sh("study show limited").out)
    trial = sh("ask limited").json["trial"]
    assert "latency is missing, on which this study has a limit" in sh(f"tell limited {trial} 0.5", code=1).err
    sh(f"tell limited {trial} loss=0.5 latency=30")
    for more in ("", f" --log {at_home.log}"):
        assert "breaks them least: latency 30 (at most 20)" in sh(f"study best limited{more}", code=1).err
    sh(f"tell limited {sh('ask limited').json['trial']} loss=0.75 latency=20")
    for more in ("", f" --log {at_home.log}"):
        said = sh(f"study best limited{more}").out
        assert re.search(r"limit fast +20, latency at most 20; it binds: without it trial 1 would lead with 0.5", said)
    assert "values.loss,values.latency" in sh("study export limited").out
    sh("""study amend limited 'limits=[{"name": "fast", "metric": "latency", "at_most": 40}]'""")
    assert sh("study best limited -f json").json["trial"] == trial


def test_the_shell_completes_names_of_studies(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "completed")
    done = subprocess.run([sys.executable, "-m", "bayesd.cli"], capture_output=True, text=True, timeout=30,
                          env=at_home.environment | {"_BAYESD_COMPLETE": "bash_complete", "COMP_CWORD": "3",
                                                     "COMP_WORDS": "bayesd study show compl"})
    assert "completed" in done.stdout, done.stderr


def test_a_study_that_no_message_can_carry(at_home: Home, sh: Shell) -> None:
    path = at_home.folder / "huge.toml"
    path.write_text(study("huge") + f'[space.c]\ntype = "categorical"\nchoices = {json.dumps(list(range(10_000)))}\n'
                    + f'[space.d]\ntype = "categorical"\nchoices = {json.dumps(list(range(10_000)))}\n')
    assert "too many for one message" in sh(f"study create {path}", code=2).err


def test_best_of_nothing_is_a_no(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "empty")
    assert sh("study best empty", code=1).err == "error: empty: no trial is complete yet\n"
    assert sh("study best empty -f json", code=1).json["trial"] is None


def test_export(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "out")
    ask_and_tell(sh, "out", "0.125")
    sh("ask out")
    rows = list(csv.DictReader(io.StringIO(sh("study export out").out)))
    assert [(row["state"], row["values.loss"]) for row in rows] == [("complete", "0.125"), ("running", "")]
    lines = sh("study export out --format jsonl").out.splitlines()
    assert float(rows[0]["params.x"]) == json.loads(lines[0])["params"]["x"]
    target = at_home.folder / "trials.jsonl"
    assert "2 trials in" in sh(f"study export out -o {target}").err
    assert len(target.read_text().splitlines()) == 2
    sh(f"study export out -o {at_home.folder}/no/such/folder.csv", code=74)


def test_long_lists_come_page_by_page(at_home: Home, sh: Shell) -> None:
    """A reply holds about 56 KiB; the points of this study need several."""
    choices = json.dumps([f"{i}{'x' * 1000}" for i in range(40)])
    path = at_home.folder / "long.toml"
    path.write_text(study("long", 90).replace('"sobol"', '"random"')
                    + f'[space.c]\ntype = "categorical"\nchoices = {choices}\n')
    sh(f"study create {path}")
    for _ in range(90):
        grant = call_hand("long")
        assert grant
    rows = sh("trial list long -f json").json
    assert [row["trial"] for row in rows] == list(range(1, 91))


def call_hand(name: str) -> Any:
    """A trial, without the ceremony of a command."""
    return asyncio.run(_ask(call.find(), call.hand_name(), name, 60.0))


# --- Programs --------------------------------------------------------------------------------------------


def bayesd_process(home: Home, *arguments: str, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "bayesd.cli", *arguments], env=home.environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_a_program_works_and_somebody_watches(at_home: Home, sh: Shell) -> None:
    """`worker run` and `watch` in a pipe both end with 0 when the study closes."""
    create(sh, at_home, "program", 4)
    watching = bayesd_process(at_home, "watch", "program")
    working = bayesd_process(at_home, "worker", "run", "--study", "program", "--name", "w1", "--", sys.executable, "-c",
                             "import sys; print(float(sys.argv[1]) ** 2)", "{x}")
    try:
        _, said = working.communicate(timeout=60)
        assert working.returncode == 0, said
        lines, said = watching.communicate(timeout=20)
        assert watching.returncode == 0, said
    finally:
        for process in (watching, working):
            process.kill()
            process.wait()
    assert lines.splitlines()[-1].startswith("program  4/4  best ")
    assert lines.splitlines()[-1].endswith("closed by trials")
    assert len(lines.splitlines()) >= 2
    assert "\x1b" not in lines
    assert sh("watch program").out.splitlines()[-1] == lines.splitlines()[-1]


def test_watching_nothing_is_explained(at_home: Home, sh: Shell) -> None:
    assert "no study 'nobody'" in sh("watch nobody", code=1).err


def test_log_tail_reads_a_running_daemon(at_home: Home, sh: Shell) -> None:
    create(sh, at_home, "tail")
    ask_and_tell(sh, "tail", "0.5")
    lines = sh("log tail --study tail --no-follow -n 100").out.splitlines()
    assert [line.split()[3] for line in lines] == [
        "study.created", "trial.proposed", "trial.leased", "trial.completed"]
    said = sh("log tail --study tail --type trial.c --no-follow -f json")
    assert said.json["type"] == "trial.completed"
    assert len(sh("log tail --no-follow -n 2").out.splitlines()) == 2
    following = bayesd_process(at_home, "log", "tail", "--study", "tail", "-n", "1")
    try:
        assert following.stdout is not None
        assert "trial.completed" in following.stdout.readline()      # it has read what is there
        sh("study close tail")
        assert "study.closed" in following.stdout.readline()
    finally:
        following.send_signal(signal.SIGINT)
        _, said_err = following.communicate(timeout=10)
    assert following.returncode == 130
    assert "Traceback" not in said_err


def test_a_reader_that_has_enough_is_no_error(at_home: Home) -> None:
    # `:` is gone long before we write.
    shell = f"{shlex.quote(sys.executable)} -m bayesd.cli log show {at_home.log} -f json | :; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], env=at_home.environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_debug_shows_where_an_error_came_from(at_home: Home) -> None:
    done = subprocess.run([sys.executable, "-m", "bayesd.cli", "--debug", "study", "show", "nobody"], text=True,
                          env=at_home.environment, capture_output=True, timeout=30)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_client_verbs_need_the_light_install_only(at_home: Home) -> None:
    """As if numpy, orjson and aiosqlite were not there; a verb of the daemon says what to install."""
    hide = ("import sys\n"
            "for name in ('numpy', 'scipy', 'sklearn', 'orjson', 'aiosqlite', 'threadpoolctl', 'iotcore'):\n"
            "    sys.modules[name] = None\n"
            "from bayesd.cli import main\n"
            "main()\n")

    def light(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", hide, *arguments], env=at_home.environment, capture_output=True,
                              text=True, timeout=30)
    for arguments in (["study", "list"], ["worker", "list"], ["worker", "run", "--help"], ["doctor", "-f", "json"],
                      ["log", "tail", "--no-follow"]):
        done = light(*arguments)
        assert done.returncode == 0, done.stderr
    for arguments in (["serve"], ["demo"], ["log", "verify", str(at_home.log)],
                      ["study", "list", "--log", str(at_home.log)]):
        done = light(*arguments)
        assert done.returncode == 2, done.stderr
        assert "pip install 'bayesd[daemon]'" in done.stderr
        assert len(done.stderr.splitlines()) == 1


# --- Who is not there -----------------------------------------------------------------------------------


def test_no_broker_and_no_daemon_are_told_apart(tmp_path: Path, sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    port = free_port()
    said = sh(f"study list --broker mqtt://127.0.0.1:{port}", code=3).err
    assert said == f"error: Nothing listens at mqtt://127.0.0.1:{port}: start the broker, or check the address.\n"


@pytest.mark.mosquitto
def test_a_broker_without_daemon(tmp_path: Path, sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Mosquitto(tmp_path) as broker:
        monkeypatch.setenv("BAYESD_BROKER", broker.url)
        for line in ("study list --timeout 1", "ask s --timeout 1", "tell s 1 0.5 --timeout 1"):
            said = sh(line, code=3).err
            assert "answers, but no daemon replied within 1 s: start one with `bayesd serve --broker" in said
        found = {row["check"]: row for row in sh("doctor -f json", code=1).json}
        assert found["broker"]["state"] == "ok"
        assert found["daemon"]["state"] == "bad"
        assert "bayesd serve --broker" in found["daemon"]["advice"]


@pytest.mark.mosquitto
def test_a_request_survives_its_broker(tmp_path: Path, sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is sent again over a new connection, and a write is done once."""
    folder = tmp_path / "d"
    folder.mkdir()
    with Mosquitto(tmp_path) as broker, daemon(folder, "--broker", broker.url) as running:
        monkeypatch.setenv("XDG_RUNTIME_DIR", running.environment["XDG_RUNTIME_DIR"])

        def restart() -> None:
            time.sleep(0.3)
            broker.start()

        async def go() -> Any:
            async with call.Client(call.find()) as client:
                assert await client.request("study.list") == {"studies": []}
                broker.kill()
                thread = threading.Thread(target=restart)
                thread.start()
                try:
                    return await client.request("study.list")
                finally:
                    thread.join()
        assert asyncio.run(go()) == {"studies": []}


@pytest.mark.mosquitto
def test_with_an_access_list(tmp_path: Path, sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators and workers under their broker users, and what doctor says to one who lacks a right."""
    passwords, rights = tmp_path / "passwords", tmp_path / "rights"
    passwords.write_text("".join(f"{name}:secret\n" for name in ("bayesd", "ann", "bob", "eve")))
    subprocess.run([binary("mosquitto_passwd"), "-U", str(passwords)], check=True, capture_output=True)
    worker = ("topic write bayesd/1/from/{0}/#\ntopic write bayesd/1/worker/{0}\ntopic read bayesd/1/to/{0}/#\n"
              "topic read bayesd/1/study/+\ntopic read bayesd/1/daemon\ntopic read bayesd/1/head\n")
    rights.write_text("user bayesd\ntopic readwrite bayesd/1/#\n"
                      "user ann\n" + worker.format("ann") + "topic write bayesd/1/admin/ann/request\n"
                      "user bob\n" + worker.format("bob") + "user eve\ntopic read bayesd/1/daemon\n")
    secret, folder = tmp_path / "secret", tmp_path / "d"
    secret.write_text("secret\n")
    folder.mkdir()
    settings = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {rights}")
    with Mosquitto(tmp_path, *settings) as broker, daemon(
            folder, "--broker", broker.url, "--username", "bayesd", "--password-file", str(secret)) as running:
        monkeypatch.setenv("XDG_RUNTIME_DIR", running.environment["XDG_RUNTIME_DIR"])
        monkeypatch.setenv("BAYESD_PASSWORD_FILE", str(secret))
        path = folder / "acl.toml"
        path.write_text(study("acl"))
        sh(f"study create {path} --username ann")
        grant = sh("ask acl --username bob").json
        sh(f"tell acl {grant['trial']} 0.5 --username bob")
        assert sh("study best acl --username ann -f value").out == "0.5\n"
        assert "refused our login" in sh("study list --username nobody", code=3).err
        assert "access list may not let bob write" in sh("study list --username bob --timeout 1", code=3).err
        well = {row["check"]: row["state"] for row in sh("doctor --username ann -f json").json}
        assert well["way of an operator"] == well["way of a worker"] == well["anonymous access"] == "ok"
        bob = {row["check"]: row["state"] for row in sh("doctor --username bob -f json").json}
        assert (bob["way of an operator"], bob["way of a worker"]) == ("warn", "ok")
        eve = {row["check"]: row for row in sh("doctor --username eve -f json", code=1).json}
        assert eve["way of a worker"]["state"] == "bad"
        assert "bayesd/1/from/eve/+" in eve["way of a worker"]["advice"]


def test_doctor_finds_nothing_wrong_at_home(at_home: Home, sh: Shell) -> None:
    said = sh("doctor -f json")
    checks = {row["check"] for row in said.json}
    assert {"python", "packages", "sqlite", "clock", "disk", "file system", "log", "embedded broker", "broker",
            "latency", "anonymous access", "daemon", "way of a worker", "way of an operator"} <= checks
    seq = sh("log tail --no-follow -n 1 -f json").json["seq"]
    sh("doctor")
    assert sh("log tail --no-follow -n 1 -f json").json["seq"] == seq, "looking has changed the log"


# --- serve and config -------------------------------------------------------------------------------------


def test_settings_and_where_they_come_from(tmp_path: Path, sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bayesd.toml"
    file.write_text('port = 1999\noperators = ["ann"]\n')
    monkeypatch.setenv("BAYESD_ROOT", "acme")
    rows = {row["setting"]: row for row in sh(f"config show --origin --config {file} -f json").json}
    assert (rows["port"]["value"], rows["port"]["origin"]) == (1999, str(file))
    assert (rows["root"]["value"], rows["root"]["origin"]) == ("acme", "BAYESD_ROOT")
    assert rows["events"]["origin"] == "default"
    assert "all of them good" in sh(f"config check --config {file}").err
    file.write_text("prot = 1999\n")
    said = sh(f"config check --config {file}", code=78).err
    assert "prot" in said
    file.write_text('broker = "mqtt://ann:secret@localhost"\n')
    said = sh(f"config check --config {file}", code=78).err
    assert "password" in said
    assert "secret" not in said


def test_serve_ends_as_the_contract_says(at_home: Home, tmp_path: Path, sh: Shell) -> None:
    where = at_home.environment

    def serve(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", "bayesd.cli", "serve", "--port", str(free_port()), *arguments],
                              env=where, capture_output=True, text=True, timeout=30)
    taken = serve("--log", str(at_home.log))
    assert taken.returncode == 75
    assert f"process {at_home.pid}" in taken.stderr
    assert "Traceback" not in taken.stderr
    done = serve("--log", str(tmp_path / "x.db"), "--broker", "http://x")
    assert done.returncode == 78, done.stderr
    assert "--port does nothing with a broker of yours (http://x, from --broker)" in done.stderr
    (tmp_path / "text.db").write_bytes(b"this is not a log" * 100)
    done = serve("--log", str(tmp_path / "text.db"))
    assert done.returncode == 65, done.stderr
    assert "damaged at event 1" in done.stderr
    assert "log_level" in sh("serve --log-level loud", code=78).err
    assert "intact" in sh(f"serve --read-only --log {at_home.log}").out


@pytest.mark.mosquitto
def test_a_second_daemon_on_the_same_root_is_refused(tmp_path: Path, sh: Shell) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Mosquitto(tmp_path) as broker, daemon(tmp_path / "a", "--broker", broker.url):
        log = str(tmp_path / "b" / "log.db")
        other = subprocess.run(
            [sys.executable, "-m", "bayesd.cli", "serve", "--broker", broker.url, "--log", log],
            env=environment(tmp_path / "b"), capture_output=True, text=True, timeout=30)
        assert other.returncode == 75, other.stderr
        assert "--root" in other.stderr


# --- Words ------------------------------------------------------------------------------------------------


def test_what_went_wrong_in_a_group_is_found() -> None:
    code, text = explain(ExceptionGroup("tasks", [RuntimeError("x"), BusError("the broker")]))
    assert (code, text) == (3, "the broker")
    for error, wanted in ((CommitFailed("x"), 74), (LockedOut("x"), 75), (Fenced("x"), 76), (Damaged(7, "x"), 65),
                          (UnknownEvent(7, "x"), 78)):
        assert explain(ExceptionGroup("tasks", [error]))[0] == wanted
    code, text = explain(RuntimeError("x"))
    assert code == 70
    assert "report" in text


def test_an_event_in_words() -> None:
    assert phrase({"type": "trial.later", "actor": "operator/ann", "data": {"x": 1}}) == "x=1"
    assert phrase({"type": "outcome.voided", "actor": "operator/ann", "data": {"reason": "dust"}}) == "dust  by ann"
