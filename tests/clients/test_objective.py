"""What an objective may do, return and raise; where the broker is; the command line's words."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import bayesd_client as bayesd
from bayesd_client.agent import Lease
from bayesd_client.cli import worker_run
from bayesd_client.discover import find_broker
from bayesd_client.link import address
from bayesd_client.objective import _say, raised, returned
from bayesd_client.trial import Trial, measured
from bayesd_client.worker import Options
from bayesd_schemas.space import Space

SPACE = Space.model_validate({
    "C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
    "kernel": {"type": "categorical", "choices": ["rbf", "poly", None, True]},
    "size": {"type": "ordinal", "choices": [16, 32, 64]},
    "degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}})


def make_trial(space: Space | None = SPACE, objectives: tuple[str, ...] = (), **params: Any) -> Trial:
    def nowhere(trial: Trial, step: int, values: Mapping[str, Any]) -> None:
        trial.answer(step)
    return Trial(Lease("s", 7, 1, params, 60.0), space, nowhere, objectives)


# trial.suggest_*

def test_an_optuna_objective_reads_its_assigned_values_in_their_declared_types() -> None:
    trial = make_trial(C=1, kernel="poly", degree=3.0, size=32)
    value = trial.suggest_float("C", 1e-3, 1e3, log=True)
    assert value == 1.0
    assert type(value) is float
    assert trial.suggest_categorical("kernel", ["rbf", "poly"]) == "poly"
    degree = trial.suggest_int("degree", 2, 5)
    assert degree == 3
    assert type(degree) is int
    assert type(trial.params["degree"]) is int
    assert trial.suggest_categorical("size", (16, 32, 64)) == 32
    assert make_trial(kernel=None).suggest_categorical("kernel", [None, "rbf"]) is None
    assert make_trial(kernel=True).suggest_categorical("kernel", [1, True]) is True


@pytest.mark.parametrize(("call", "text"), [
    (lambda t: t.suggest_float("gamma", 0, 1), "'gamma' is not declared in study s, which has C, kernel"),
    (lambda t: t.suggest_int("degree", 2, 5), "not active in trial 7: it needs kernel = 'poly'"),
    (lambda t: t.suggest_int("C", 1, 5), "asks for C as int, but study s declares it as float from 0.001 to 1000, log"),
    (lambda t: t.suggest_float("kernel", 1, 5), "as float, but study s declares it as categorical"),
    (lambda t: t.suggest_categorical("C", [1.0]), "as categorical, but study s declares it as float"),
    (lambda t: t.suggest_float("C", 0.1, 0.9), "wants C from 0.1 to 0.9, but study s assigned 1.0"),
    (lambda t: t.suggest_categorical("kernel", ["poly"]), "wants kernel one of 'poly', but study s assigned 'rbf'")])
def test_an_objective_that_does_not_fit_the_space_gets_a_clear_error(call: Any, text: str) -> None:
    with pytest.raises(bayesd.SpaceMismatch) as caught:
        call(make_trial(C=1.0, kernel="rbf", size=16))
    assert text in str(caught.value)


def test_without_a_known_space_the_assigned_values_are_all_there_is() -> None:
    trial = make_trial(None, C=0.5)
    assert trial.suggest_float("C", 0, 1) == 0.5
    with pytest.raises(bayesd.SpaceMismatch):
        trial.suggest_float("D", 0, 1)


# What it returns and raises.

class Scalar:
    """As NumPy's and torch's scalars are: numbers that are not Python's."""

    def __float__(self) -> float:
        return 0.5


@pytest.mark.parametrize(("value", "fields"), [
    (0.5, {"value": 0.5}), (3, {"value": 3.0}), (Scalar(), {"value": 0.5}),
    ({"acc": Scalar(), "loss": 1}, {"values": {"acc": 0.5, "loss": 1.0}}),
    (bayesd.Folds([1, Scalar()]), {"folds": [1.0, 0.5]}), (10**400, {"value": float("inf")})])
def test_what_may_be_returned(value: Any, fields: dict[str, Any]) -> None:
    assert returned(make_trial(), value) == fields


def test_several_objectives_in_optunas_way() -> None:
    assert returned(make_trial(objectives=("acc", "ms")), (0.9, 3)) == {"values": {"acc": 0.9, "ms": 3.0}}


@pytest.mark.parametrize("value", [None, "0.5", True, [1.0], (1.0, 2.0), {"a": None}])
def test_anything_else_is_a_failure_that_says_what_is_wanted(value: Any) -> None:
    outcome = returned(make_trial(), value)
    assert (outcome["state"], outcome["class"]) == ("fail", "other")
    assert "bayesd.Folds" in outcome["error"]


class OptunasTrialPruned(Exception):
    """Stands for optuna.TrialPruned, which is known by its name."""


OptunasTrialPruned.__name__ = "TrialPruned"


@pytest.mark.parametrize(("error", "fields"), [
    (bayesd.TrialPruned(), {"state": "pruned"}), (OptunasTrialPruned(), {"state": "pruned"}),
    (bayesd.TrialStopped("over"), {"state": "released"}),
    (ValueError("bad"), {"state": "fail", "class": "crash"}), (SystemExit(1), {"state": "fail", "class": "crash"}),
    (MemoryError(), {"state": "fail", "class": "oom"}),
    (RuntimeError("CUDA out of memory. Tried to allocate"), {"state": "fail", "class": "oom"})])
def test_what_may_be_raised(error: BaseException, fields: dict[str, Any]) -> None:
    outcome = dict(raised(error))
    text = outcome.pop("error", None)
    assert outcome == fields
    assert (text is not None) == (fields["state"] == "fail")


def test_a_mismatch_is_not_a_failure_of_the_trial() -> None:
    with pytest.raises(bayesd.SpaceMismatch):
        raised(bayesd.SpaceMismatch("x"))


def test_reports() -> None:
    trial = make_trial()
    trial.report(0.5, step=0)
    trial.report({"acc": Scalar()}, 1)
    assert trial.should_prune() is False
    with pytest.raises(TypeError, match="a measurement is a number"):
        trial.report("high", 2)
    with pytest.raises(ValueError, match="counts from 0"):
        trial.report(1.0, -1)
    trial.halt("pruned", owed=True)
    assert trial.should_prune() is True
    trial.report(0.5, step=3)                            # still owed a tell: no reason to raise
    trial.halt("cancelled", owed=False)
    with pytest.raises(bayesd.TrialStopped, match="cancelled"):
        trial.report(0.5, step=4)
    assert issubclass(bayesd.TrialStopped, bayesd.TrialPruned)
    assert measured(Scalar()) == {"value": 0.5}


def test_the_decorated_function_is_still_a_function() -> None:
    @bayesd.worker("mqtt://localhost", study="s")
    def objective(trial: Any) -> float:
        """Twice x."""
        return float(trial) * 2
    assert objective(3) == 6.0
    assert objective.__doc__ == "Twice x."


def test_run_inside_a_loop_says_what_to_do() -> None:
    @bayesd.worker("mqtt://localhost", study="s")
    def objective(trial: Any) -> float:
        return 1.0

    async def notebook() -> None:
        objective.run()
    with pytest.raises(bayesd.WorkerError, match=r"await objective\.arun"):
        asyncio.run(notebook())


@pytest.mark.parametrize("wrong", [{"study": "Not A Name"}, {"slots": 0}, {"prefetch": 2}, {"prefetch": -1},
                                   {"lease_s": 0.0}, {"lease_s": float("nan")}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(bayesd.BadOptions):
        Options(**wrong).check()


# Where the broker is.

def test_the_broker_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BAYESD_BROKER", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    default = ("mqtt://127.0.0.1:1883", "")
    assert find_broker() == default
    (tmp_path / "bayesd").mkdir()
    note = tmp_path / "bayesd/daemon.json"
    note.write_text(json.dumps({"broker": "mqtt://127.0.0.1:4321", "pid": os.getpid(), "root": "acme"}))
    assert find_broker() == ("mqtt://127.0.0.1:4321", "acme")
    assert find_broker(root="other") == ("mqtt://127.0.0.1:4321", "other")
    for stale in ('{"broker": "mqtt://x", "pid": 4194999}', '{"broker": 3, "pid": 1}', "[]", "{", '{"pid": true}'):
        note.write_text(stale)
        assert find_broker() == default
    monkeypatch.setenv("BAYESD_BROKER", "mqtt://elsewhere")
    assert find_broker() == ("mqtt://elsewhere", "")
    assert find_broker("mqtt://said", "acme") == ("mqtt://said", "acme")


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BAYESD_PASSWORD_FILE", raising=False)
    plain = address("mqtt://broker.example")
    assert (plain.host, plain.port, plain.user, plain.password, plain.tls) == ("broker.example", 1883, None, None, None)
    secret = tmp_path / "password"
    secret.write_text("s3cret \n")
    monkeypatch.setenv("BAYESD_PASSWORD_FILE", str(secret))
    secure = address("mqtts://gpu-07@[::1]:9999")
    assert (secure.host, secure.port, secure.user, secure.password) == ("::1", 9999, "gpu-07", "s3cret ")
    assert secure.tls is not None
    assert secure.tls.context().check_hostname
    assert address("mqtts://h").port == 8883
    assert address("localhost:1884").port == 1884
    assert "s3cret" not in str(secure)


@pytest.mark.parametrize("url", ["http://x", "mqtt://", "mqtt://x:99999", "mqtt://me:secret@x", ""])
def test_a_bad_address_is_a_clear_error(url: str) -> None:
    with pytest.raises(bayesd.BadAddress):
        address(url)


def test_bad_files_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(bayesd.BadAddress, match="password file"):
        address("mqtt://x", tmp_path / "missing")
    with pytest.raises(bayesd.BadAddress, match="certificate"):
        address("mqtts://x", ca_file=str(tmp_path / "missing"))


@pytest.mark.parametrize(("arguments", "text"), [
    (["--study", "s"], "Missing argument"), (["--", "true"], "Missing option '--study'"),
    (["--study", "s", "--timeout", "soon", "true"], "90s"), (["--study", "S!", "true"], "is not a study's name"),
    (["--study", "s", "--broker", "http://x", "true"], "not a broker's address")])
def test_the_command_line_says_what_is_wrong(arguments: list[str], text: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    result = CliRunner().invoke(worker_run, arguments)
    assert result.exit_code == 2
    assert text in result.stderr


def test_what_a_person_should_read_is_a_warning_for_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Without any set-up Python's logging shows warnings only, and an unreachable broker must not look like work."""
    with caplog.at_level("INFO", logger="bayesd_client"):
        _say("worker w1, run 4f2a")
        _say("warning: no connection to the broker")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "worker w1, run 4f2a"), ("WARNING", "no connection to the broker")]
