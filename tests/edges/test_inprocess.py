"""A study in one process: what its caller may hand over, and the words for what is wrong."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayesd import Study
from bayesd.inprocess import Exhausted, StudyError
from bayesd.log import DiskFull, Row, SqliteLog

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
    with pytest.raises(Exhausted, match="wall"):
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
