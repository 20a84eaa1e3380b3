"""What a daemon says on stderr: one line, one object, and what it is about as fields."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.edges.daemon import Daemon, Wire, serving
from tests.edges.mosquitto import Mosquitto

from bayesd.daemon import JsonLines, TextLines

_is_time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00").fullmatch


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a file, each of which must be an object with the four fields that all have."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        assert set(said) <= {"time", "level", "message", "logger", "exception", "study", "trial", "worker", "fence",
                             "seq"}, line
        assert _is_time(said["time"]), line
        assert said["level"] in ("debug", "info", "warning", "error", "critical"), line
        assert isinstance(said["message"], str), line
        out.append(said)
    return out


@pytest.mark.mosquitto
def test_every_line_of_a_busy_daemon_is_an_object(tmp_path: Path) -> None:
    secret = "a-secret-of-the-broker"
    (tmp_path / "password").write_text(secret)
    flags = ("--log-format", "json", "--log-level", "debug", "--username", "someone", "--password-file",
             str(tmp_path / "password"), "--listen", f"unix:{tmp_path}/http.sock")
    with serving(tmp_path, *flags) as (daemon, wire):
        wire.create("s1", method="bayes")
        w1 = wire.worker("w1")
        w1.beat()
        for number in range(12):
            w1.told(f"t{number}", w1.lease("s1", f"a{number}"), value=number / 10)
        w1.say("tell", b"\xff\x00 this is not a message \n with two lines")
        w1.say("tell", {"id": "x", "study": "s1\n{", "trial": 1, "fence": 1, "value": 1})
        assert wire.request("study.best", {"study": "none"})["status"] == "error"
        twin = Daemon(tmp_path, f"mqtt://{wire.host}:{wire.port}", "--log-format", "json", log="other.db", name="twin")
        with twin:
            assert twin.wait() == 75           # its last word is a line like the others
        assert daemon.stop() == 0
    said = lines(daemon.errors)
    assert secret not in daemon.errors.read_text()
    done = [each for each in said if each["message"].startswith("trial.completed")]
    assert [(each["study"], each["trial"], each["fence"], each["worker"]) for each in done] == [
        ("s1", trial, 1, "w1") for trial in range(1, 13)]
    assert sorted(each["seq"] for each in said if each["message"].startswith("trial.")) == [
        event["seq"] for event in daemon.events() if event["type"].startswith("trial.")]
    last = lines(twin.errors)[-1]
    assert last["level"] == "critical"
    assert "another daemon" in last["message"]


def test_what_python_itself_says_is_an_object_too(tmp_path: Path) -> None:
    program = """
import threading, warnings
from bayesd.config import Config
from bayesd.daemon import logger, set_up_logging

class Bad:
    def __del__(self):
        raise ValueError("in a finalizer")

set_up_logging(Config(log_format="json"))
warnings.warn("something is old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
bad = Bad()
del bad
try:
    raise KeyError("a")
except KeyError:
    logger.exception("it failed", extra={"study": "s1", "trial": 7})
"""
    errors = tmp_path / "errors"
    with errors.open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stderr=file, check=True, timeout=60)
    said = lines(errors)
    assert [next(word for word in ("something is old", "ZeroDivisionError", "in a finalizer", "KeyError")
                 if word in each["message"] + each.get("exception", "")) for each in said] == [
        "something is old", "ZeroDivisionError", "in a finalizer", "KeyError"]
    assert (said[-1]["study"], said[-1]["trial"]) == ("s1", 7)


def record(**about: Any) -> logging.LogRecord:
    made = logging.LogRecord("bayesd", logging.WARNING, "file", 1, "%s is full\nand more", ("the disk",), None)
    made.__dict__.update(about)
    return made


def test_people_see_what_a_line_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert TextLines().format(record(study="s1", seq=9, trial=None)).endswith(
        " warning: the disk is full\nand more  [study=s1 seq=9]")
    assert TextLines().format(record()).endswith("and more")
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert TextLines().format(record(trial=3)) == "<4>warning: the disk is full\nand more  [trial=3]"


def test_an_odd_field_breaks_no_line() -> None:
    text = JsonLines().format(record(study={"not": object()}, fence=2**70))
    assert "\n" not in text
    assert json.loads(text)["fence"] == 2**70


@pytest.mark.mosquitto
def test_wrong_settings_are_said_as_an_object(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Wire(broker.url), Daemon(
            tmp_path, broker.url, "--log-format", "json", "--listen", "0.0.0.0:0") as daemon:
        assert daemon.wait() == 78
    (last,) = lines(daemon.errors)
    assert "listen_token_file" in last["message"]
