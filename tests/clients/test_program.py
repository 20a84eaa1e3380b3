"""Any program as a worker: what goes in, what comes out, and that nothing stays behind."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bayesd_client.agent import Lease
from bayesd_client.errors import BadOptions, CannotTrain, SpaceMismatch
from bayesd_client.program import Program, arguments, environment, parse_outcome, parse_report
from bayesd_client.trial import Trial
from bayesd_schemas.messages import Fidelity
from bayesd_schemas.space import Space

SPACE = Space.model_validate({
    "lr": {"type": "float", "low": 1e-6, "high": 10.0, "scale": "log"},
    "kernel": {"type": "categorical", "choices": ["rbf", "poly", "a b; rm -rf *"]},
    "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}},
    "flag": {"type": "categorical", "choices": [True, False]}})
Reports = list[tuple[int, Mapping[str, Any]]]


def make_trial(params: dict[str, Any] | None = None, reports: Reports | None = None) -> Trial:
    """A trial without a worker; it takes reports on the spot."""
    def report(trial: Trial, step: int, values: Mapping[str, Any]) -> None:
        if reports is not None:
            reports.append((step, values))
    params = params if params is not None else {"lr": 1, "kernel": "rbf", "flag": True}
    return Trial(Lease("s", 7, 2, params, 60.0), SPACE, report)


def train(code: str, trial: Trial | None = None, **more: Any) -> tuple[Mapping[str, Any], str]:
    out = io.BytesIO()
    program = Program((sys.executable, "-u", "-c", code), out=out, **more)
    return program.train(trial or make_trial()), out.getvalue().decode()


@pytest.mark.parametrize(("command", "params", "argv"), [
    (["p", "--lr", "{lr}"], {"lr": 1}, ["p", "--lr", "1.0"]),                     # typed: a float stays one
    (["p", "--lr={lr}", "x{kernel}y"], {"lr": 1e-5, "kernel": "rbf"}, ["p", "--lr=1e-05", "xrbfy"]),
    (["p", "{kernel}"], {"kernel": "a b; rm -rf *"}, ["p", "a b; rm -rf *"]),     # data, not shell
    (["p", "{flag}"], {"flag": True}, ["p", "true"]),
    (["p", "--degree", "{degree}", "z"], {"kernel": "rbf"}, ["p", "z"]),          # inactive: left out
    (["p", "--degree={degree}", "z"], {}, ["p", "z"]),
    (["p", "{degree}", "z"], {}, ["p", "z"]),
    (["{degree}", "z"], {}, ["z"]),
    (["p", "d{degree}!"], {}, ["p", "d!"]),
    (["p", "--degree", "{degree}"], {"kernel": "poly", "degree": 3.0}, ["p", "--degree", "3"]),
    (["p", "{{lr}}", '{"a": {lr}}', "{}", "{0}"], {"lr": 2}, ["p", "{lr}", '{"a": 2.0}', "{}", "{0}"]),
])
def test_placeholders(command: list[str], params: dict[str, Any], argv: list[str]) -> None:
    assert arguments(command, make_trial(params)) == argv


def going_on(start: str | None) -> Trial:
    fidelity = Fidelity.model_validate({"name": "epochs", "value": 9.0, "from": start})
    return Trial(Lease("s", 7, 2, {"lr": 1.0}, 60.0, fidelity=fidelity), SPACE, lambda *_: None)


def test_a_program_is_told_how_far_to_train_and_from_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYESD_RESUME_FROM", "of somebody else")
    command = ["p", "--epochs", "{fidelity}", "--from={from}"]
    assert arguments(command, going_on("runs/7.pt")) == ["p", "--epochs", "9", "--from=runs/7.pt"]
    assert arguments(command, going_on(None)) == ["p", "--epochs", "9"]
    assert arguments(command, make_trial()) == ["p"]
    assert environment(going_on("runs/7.pt"))["BAYESD_RESUME_FROM"] == "runs/7.pt"
    assert environment(going_on("runs/7.pt"))["BAYESD_FIDELITY"] == "9"
    assert "BAYESD_RESUME_FROM" not in environment(going_on(None))
    assert parse_outcome('{"value": 1, "checkpoint": "c"}') == {"value": 1, "checkpoint": "c"}


def test_an_unknown_placeholder_is_a_clear_error() -> None:
    with pytest.raises(SpaceMismatch, match=r"\{rate\}.*study s, which has degree, flag, kernel, lr"):
        arguments(["p", "{rate}"], make_trial())


@pytest.mark.parametrize(("line", "outcome"), [
    ("0.5", {"value": 0.5}), ("-3", {"value": -3.0}), ("1e-3", {"value": 0.001}), ("inf", {"value": float("inf")}),
    ("-Infinity", {"value": float("-inf")}),
    ('{"values": {"acc": 0.9, "loss": 0.1}, "cost": 2}', {"values": {"acc": 0.9, "loss": 0.1}, "cost": 2}),
    ('{"folds": [1, 2], "trial": 99, "novelty": 1}', {"folds": [1, 2]}),
    ('{"state": "fail", "class": "oom"}', {"state": "fail", "class": "oom"}),
])
def test_the_last_line_is_the_value(line: str, outcome: dict[str, Any]) -> None:
    assert parse_outcome(line) == outcome


def test_nan_is_a_value() -> None:
    assert str(parse_outcome("NaN")["value"]) == "nan"
    assert str(parse_outcome('{"value": NaN}')["value"]) == "nan"


@pytest.mark.parametrize("line", ["", "done", "1_000", "[1]", '"0.5"', "0.5 0.6", "{", "[" * 100_000])
def test_a_last_line_that_is_no_value_is_a_failure_that_says_so(line: str) -> None:
    outcome = parse_outcome(line)
    assert (outcome["state"], outcome["class"]) == ("fail", "other")
    assert "last line" in outcome["error"]


@pytest.mark.parametrize(("text", "report"), [
    ("bayesd: step=3 value=0.7", (3, 0.7)), ("bayesd: step=3 acc=0.7 loss=0.3", (3, {"acc": 0.7, "loss": 0.3})),
    ("bayesd:  value=1e-3   step=0", (0, 0.001)), ("bayesd: step=3", None), ("bayesd: value=1", None),
    ("bayesd: step=-1 value=1", None), ("bayesd: step=3 value=high", None), ("bayesd: hello", None)])
def test_report_lines(text: str, report: object) -> None:
    assert parse_report(text) == report


def test_a_program_gets_its_trial_and_its_output_is_passed_through() -> None:
    outcome, out = train("""if True:
        import os, json
        params = json.loads(os.environ["BAYESD_PARAMS"])
        print("hello from", os.environ["BAYESD_STUDY"], os.environ["BAYESD_TRIAL"], os.environ["BAYESD_FENCE"])
        print(params["lr"] * 2); print(); print("   ")""")
    assert outcome == {"value": 2.0}
    assert out == "hello from s 7 2\n2.0\n\n   \n"


def test_reports_are_read_while_it_runs_and_are_not_the_value() -> None:
    reports: Reports = []
    outcome, _ = train("print('bayesd: step=0 value=0.5'); print(3); print('bayesd: step=1 acc=0.7 loss=0.3')",
                       make_trial(reports=reports))
    assert reports == [(0, {"value": 0.5}), (1, {"values": {"acc": 0.7, "loss": 0.3}})]
    assert outcome == {"value": 3.0}


def test_the_value_needs_no_newline_and_may_come_after_a_lot() -> None:
    outcome, out = train("import sys; sys.stdout.write('x' * 3_000_000 + '\\n' + 'é' * 100 + '\\n0.25')")
    assert outcome == {"value": 0.25}
    assert len(out) == 3_000_106


def test_an_exit_status_is_a_failure_whatever_was_printed() -> None:
    outcome, _ = train("import sys; print(0.9); sys.stderr.write('the cause'); sys.exit(3)")
    assert (outcome["state"], outcome["class"]) == ("fail", "crash")
    assert outcome["error"] == "the program ended with exit status 3\nthe cause"
    outcome, _ = train("import os; print(0.9); os.kill(os.getpid(), 11)")
    assert "SIGSEGV" in outcome["error"]


def test_a_program_that_is_missing_ends_the_worker() -> None:
    with pytest.raises(CannotTrain, match="no-such-program"):
        Program(("no-such-program",)).train(make_trial())
    with pytest.raises(BadOptions, match=r"train\.py"):
        Program(())


FAMILY = """
import os, signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", child])
print(os.getpid(), grandchild.pid)
if sys.argv[1:] == ["stubborn"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready")
{rest}
"""


def gone(pid: int) -> bool:
    """Dead, or a zombie that nobody reaps (its parent here is whoever adopts orphans)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def family_of(out: str) -> list[int]:
    return [int(pid) for pid in out.split("\n")[0].split()]


def test_a_timeout_ends_the_whole_group(until: Callable[..., None]) -> None:
    began_s = time.monotonic()
    outcome, out = train(FAMILY.format(rest="time.sleep(600)"), timeout_s=0.7, grace_s=0.2)
    assert (outcome["state"], outcome["class"]) == ("fail", "timeout")
    assert time.monotonic() - began_s < 10
    until(lambda: all(map(gone, family_of(out))), "the group is gone")


def test_what_a_program_leaves_behind_is_ended_too(until: Callable[..., None]) -> None:
    outcome, out = train(FAMILY.format(rest="print(0.5)"))       # the grandchild holds the pipe open
    assert outcome == {"value": 0.5}
    until(lambda: all(map(gone, family_of(out))), "the group is gone")


def test_a_stop_ends_the_whole_group_even_a_stubborn_one(until: Callable[..., None]) -> None:
    trial = make_trial()
    out = io.BytesIO()
    program = Program((sys.executable, "-u", "-c", FAMILY.format(rest="time.sleep(600)"), "stubborn"), out=out,
                      grace_s=0.2)
    found: list[Mapping[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(program.train(trial)))
    thread.start()
    until(lambda: b"ready" in out.getvalue(), "the program is at work")
    trial.halt("pruned", owed=True)
    thread.join(15)
    assert found == [{"state": "released"}]              # the agent makes a prune of it
    until(lambda: all(map(gone, family_of(out.getvalue().decode()))), "the group is gone")


def test_a_program_may_end_well_on_sigterm() -> None:
    trial = make_trial()
    trial.halt("cancelled", owed=False)
    outcome, _ = train("import time; time.sleep(600)", trial)
    assert outcome == {"state": "released"}


def test_a_program_that_prints_for_ever_is_still_ended() -> None:
    outcome, _ = train("while True: print('x' * 10000)", timeout_s=0.5, grace_s=0.2)
    assert outcome["class"] == "timeout"


def test_a_program_that_closes_its_pipes_is_still_waited_for() -> None:
    outcome, _ = train("import os, time; print(0.5); os.close(1); os.close(2); time.sleep(0.3); os._exit(4)")
    assert outcome["class"] == "crash"


ORPHAN = """
import sys
from bayesd_client.agent import Lease
from bayesd_client.program import Program
from bayesd_client.trial import Trial
trial = Trial(Lease("s", 1, 1, {}, 60.0), None, lambda *a: None)
Program((sys.executable, "-u", "-c", "import os, time; print(os.getpid()); time.sleep(600)")).train(trial)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_the_program_dies_with_a_killed_worker(start_python: Callable[..., "subprocess.Popen[str]"],
                                               until: Callable[..., None]) -> None:
    worker = start_python("-c", ORPHAN)
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    assert not gone(pid)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    until(lambda: gone(pid), "the program died with its worker")


def test_the_environment_is_json() -> None:
    outcome, _ = train("import os, json; print(json.dumps({'value': len(json.loads(os.environ['BAYESD_PARAMS']))}))")
    assert outcome == {"value": 3}
    assert json.dumps(make_trial().params) == '{"lr": 1.0, "kernel": "rbf", "flag": true}'
