"""The front of a study and what it is worth, beside what a reader would count by hand."""

from typing import Any

import pytest

from bayesd import Study, front

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}


def told(rows: list[dict[str, float]], objectives: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    study = Study(SPACE, objectives=objectives, method="random", **more)
    for values in rows:
        study.tell(study.ask(), values)
    return front.later(study._folded)()


def test_a_front_of_two_with_its_volume_over_time() -> None:
    found = told([{"loss": 3, "gain": 1}, {"loss": 1, "gain": 2}, {"loss": 2, "gain": 1}, {"loss": 2, "gain": 4}],
                 [{"name": "loss", "reference": 4}, {"name": "gain", "direction": "maximize", "reference": 0}])
    assert [row["trial"] for row in found["trials"]] == [2, 4]
    assert found["trials"][1]["values"] == {"loss": 2.0, "gain": 4.0}
    assert found["over_time"] == [[1, 1.0], [2, 6.0], [4, pytest.approx(10.0)]]
    assert found["hypervolume"] == pytest.approx(10.0)
    assert found["declared"] == ["loss", "gain"]


def test_without_a_reference_the_worst_that_was_measured_is_one() -> None:
    found = told([{"a": 1, "b": 3}, {"a": 3, "b": 1}, {"a": 2, "b": 2}, {"a": 4, "b": 5}],
                 [{"name": "a"}, {"name": "b"}])
    assert found["reference"] == {"a": 4.0, "b": 5.0}
    assert found["declared"] == []
    assert found["hypervolume"] == pytest.approx(6 + 2 + 1)


def test_a_trial_that_breaks_a_limit_is_no_part_of_it() -> None:
    found = told([{"a": 1, "b": 1, "size": 9}, {"a": 2, "b": 2, "size": 1}], [{"name": "a"}, {"name": "b"}],
                 limits=[{"name": "size", "at_most": 5}])
    assert [row["trial"] for row in found["trials"]] == [2]
    assert found["complete"] == 1


def test_nothing_yet_and_five_objectives_have_no_volume() -> None:
    names = [{"name": name} for name in "abcde"]
    assert told([], names)["trials"] == []
    found = told([dict.fromkeys("abcde", 1.0), dict.fromkeys("abcde", 2.0)], names)
    assert [row["trial"] for row in found["trials"]] == [1]
    assert found["hypervolume"] is None
