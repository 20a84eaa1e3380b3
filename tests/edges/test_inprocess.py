"""A study in one process: what its caller may hand over, and the words for what is wrong."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayesd import Study
from bayesd.inprocess import Exhausted, StudyError
from bayesd.log import DiskFull, Row, SqliteLog
from bayesd.optimize import suggest

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}


def a_study(**more: Any) -> Study:
    return Study(SPACE, direction="minimize", method="random", **more)


@pytest.mark.parametrize(("told", "value"), [
    (1, 1.0), (np.float32(0.5), 0.5), (np.array(0.25), 0.25), (np.array([0.25, 0.75]), 0.5), ([0.25, 0.75], 0.5),
    (np.array([0.25]), 0.25)])
def test_a_result_is_a_number_of_any_library_or_fold_scores(told: Any, value: float) -> None:
    study = a_study()
    study.tell(study.ask(), told)
    assert study.best is not None
    assert study.best.value == value


@pytest.mark.parametrize("told", ["12", object(), ["a"], None])
def test_what_is_no_result_is_said_in_words_and_the_trial_goes_on(told: Any) -> None:
    study = a_study()
    trial = study.ask()
    with pytest.raises((StudyError, ValueError)):
        study.tell(trial, told)
    study.tell(trial, 1.0)
    assert study.trials[0].state == "complete"


def test_wrong_words_are_errors_of_the_study() -> None:
    study = a_study()
    trial = study.ask()
    with pytest.raises(StudyError, match="state"):
        study.tell(trial, 1.0, state="done")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="step"):
        study.report(trial, 0.5, step=-1)
    with pytest.raises(StudyError, match="objectives"):
        Study(SPACE, objectives=[{"nme": "a"}])


@pytest.mark.parametrize(("name", "text"), [
    ("s.toml", 'name = "a"\nmethod = "random"\n[space.x]\ntype = "float"\nlow = 0\nhigh = 1\n'),
    ("s.json", '{"name": "a", "method": "random", "space": {"x": {"type": "float", "low": 0, "high": 1}}}'),
    ("s.yaml", "name: a\nmethod: random\nspace:\n  x: {type: float, low: 0, high: 1}\n")])
def test_a_study_file_means_the_same_in_three_notations(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    study = Study.from_file(tmp_path / name)
    assert study.name == "a"
    assert study.ask().params == a_study().ask().params


def test_a_wrong_study_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    with pytest.raises(StudyError, match="cannot be read"):
        Study.from_file(path)
    path.write_text('name = "a"\nmetod = "random"\n[space.x]\ntype = "float"\nlow = 0\nhigh = 1\n')
    with pytest.raises(StudyError, match=r"s\.toml:2"):
        Study.from_file(path)


def test_a_budget_of_time_ends_a_study_at_the_next_ask(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('name = "a"\nmethod = "random"\n[budget]\nwall = "0.1s"\n'
                    '[space.x]\ntype = "float"\nlow = 0\nhigh = 1\n')
    study = Study.from_file(path)
    study.tell(study.ask(), 1.0)
    time.sleep(0.2)
    with pytest.raises(Exhausted, match="its time is used up"):
        study.ask()


def test_a_full_disk_ends_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: SqliteLog, rows: Sequence[Row]) -> None:
        raise DiskFull("no space left")

    with a_study(log=tmp_path / "log.db") as study:
        trial = study.ask()
        with monkeypatch.context() as patched:
            patched.setattr(SqliteLog, "append", full)
            with pytest.raises(DiskFull):
                study.tell(trial, 1.0)
        study.tell(trial, 1.0)         # a copy of what is in memory already, and now on disk
    assert [trial.value for trial in Study.replay(tmp_path / "log.db").trials] == [1.0]


def test_what_a_process_before_this_one_left_pending_is_asked_again(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    space = {"x": {"type": "float", "low": 0, "high": 1}}
    with Study(space, log=log, budget=2) as study:
        study.tell(study.ask(), 1.0)
        left = study.ask()
    with Study(space, log=log, budget=2) as study:
        again = study.ask()
        assert (again.number, again.params, again.fence) == (left.number, left.params, 2)
        study.tell(again.number, 2.0)          # a bare number means the trial as it was handed out last
        with pytest.raises(Exhausted, match="its budget of 2 trials is used up"):
            study.ask()
        assert [trial.state for trial in study.trials] == ["complete", "complete"]


def test_params_keep_the_order_of_the_space_through_a_replay(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    space: dict[str, dict[str, Any]] = {
        "z": {"type": "float", "low": 0, "high": 1}, "a": {"type": "int", "low": 1, "high": 3}}
    with Study(space, log=log) as study:
        study.tell(study.ask(), 1.0)
        live = list(study.trials[0].params)
    assert live == ["z", "a"]
    assert list(Study.replay(log).trials[0].params) == live


def test_the_next_suggestions_after_a_replay_are_those_of_the_life_before_it(tmp_path: Path) -> None:
    # The order of the parameters is not that of the alphabet, by which canonical JSON sorts.
    space: dict[str, dict[str, Any]] = {
        "z": {"type": "float", "low": 0, "high": 1}, "m": {"type": "categorical", "choices": ["p", "q"]},
        "a": {"type": "float", "low": 1e-3, "high": 3, "scale": "log"}}
    with Study(space, log=tmp_path / "log.db", seed=5) as study:
        for _ in range(15):
            trial = study.ask()
            study.tell(trial, (trial.params["z"] - 0.2) ** 2 + trial.params["a"] + (trial.params["m"] == "p"))
        study.ask()
        live = suggest(study.problem, 3)
    assert suggest(Study.replay(tmp_path / "log.db").problem, 3) == live


def test_constraints_hold_at_every_point_and_are_kept_in_the_log(tmp_path: Path) -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1}}
    with Study(space, method="sobol", constraints=["x + y <= 1", "x < y"], log=tmp_path / "log.db") as study:
        for _ in range(20):
            trial = study.ask()
            assert trial.params["x"] < trial.params["y"] <= 1 - trial.params["x"]
            study.tell(trial, trial.params["x"])
        with pytest.raises(StudyError, match=r'constraint "x \+ y <= 1" does not hold at x = 0.75, y = 0.8'):
            study.enqueue({"x": 0.75, "y": 0.8})
    again = Study.replay(tmp_path / "log.db").problem.constraints
    assert [constraint.text for constraint in again] == ["x + y <= 1", "x < y"]


@pytest.mark.parametrize(("constraints", "words"), [
    (["z < 1"], "constraints: .*names z"), ("x < 1", "valid list"), (["x > 1"], "holds at none"),
    (["x + 1"], "comparison")])
def test_constraints_that_cannot_be_used_are_errors_of_the_study(constraints: Any, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        a_study(constraints=constraints)


def test_a_small_space_under_constraints_is_exhausted() -> None:
    space = {"n": {"type": "int", "low": 1, "high": 9}}
    study = Study(space, method="random", noise="none", constraints=["n % 4 == 0"])
    assert sorted(study.ask().params["n"] for _ in range(2)) == [4, 8]
    with pytest.raises(Exhausted):
        study.ask()


def test_a_fork_goes_on_from_what_is_known_beside_its_study(tmp_path: Path) -> None:
    with a_study(name="a", log=tmp_path / "log.db") as study:
        for value in (3.0, 1.0):
            study.tell(study.ask(), value)
        at = study._desk.state.seq
        study.tell(study.ask(), 0.5)
        fork = study.fork("b", budget={"trials": 1})
        assert (fork.name, fork.state, len(fork.trials)) == ("b", "open", 3)
        assert fork.best is not None
        assert fork.best.value == 0.5
        fork.tell(fork.ask(), 9.0)
        study.tell(study.ask(), 8.0)
        with pytest.raises(Exhausted, match="budget of 1"):
            fork.ask()
        assert [trial.value for trial in study.trials] == [3.0, 1.0, 0.5, 8.0]
        with pytest.raises(StudyError, match="a study named b"):
            study.fork("b")
    then = Study.replay(tmp_path / "log.db", "a", at=at).fork("c")
    assert [trial.value for trial in then.trials] == [3.0, 1.0]
    then.tell(then.ask(), 0.25)
    assert Study.replay(tmp_path / "log.db", "b").state == "closed"


def test_a_script_that_closes_nothing_ends_and_leaves_a_whole_log(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom bayesd import Study\n"
                      "study = Study({'x': {'type': 'float', 'low': 0, 'high': 1}}, method='random', log=sys.argv[1])\n"
                      "study.tell(study.ask(), 0.5)\nprint(study.best.value)\n")
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "log.db")], capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stdout) == (0, "0.5\n")
    assert not (tmp_path / "log.db-wal").exists()
    assert Study.replay(tmp_path / "log.db").best is not None


def test_what_is_known_before_the_first_trial_and_what_trials_take_may_be_said(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    with a_study(name="earlier", log=log) as study:
        for value in (0.5, 0.25):
            study.tell(study.ask(), value)
    with Study(SPACE, direction="minimize", name="later", log=log, prior={"x": {"centre": 1.0, "confidence": "low"}},
               warm_start=[{"study": "earlier", "points": 1}], cost={"per": "seconds"}) as study:
        trial = study.ask()
        assert trial.params == Study.replay(log, "earlier").trials[1].params      # its best point goes first
        study.tell(trial, 0.1, seconds=3.0)
        assert study.problem.history[0].spent == 3.0
        assert [name for name, _ in study.problem.prior] == ["x"]
    with pytest.raises(StudyError, match="has no study nobody"):
        a_study(warm_start=[{"study": "nobody"}])
