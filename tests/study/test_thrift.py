"""A study with [cost]: what counts is on record, follows from the log alone, and stays behind with nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.study.story import Story

from bayesd import Study
from bayesd.audit import Plan, judge, moments
from bayesd.inprocess import StudyError
from bayesd.log import read_events
from bayesd.replay import event_of
from bayesd.study import admin, snapshot
from bayesd.study.desk import problem_of
from bayesd.study.fold import replay
from bayesd.study.knowledge import knowledge, knowledge_digest
from bayesd.study.state import Event, State
from bayesd.study.thrift import thrift
from bayesd_schemas.messages import Request

SPACE = {"x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1}}


def begun(path: Path, **more: Any) -> Study:
    file = path / "study.json"
    file.write_text(json.dumps({"name": "s", "space": SPACE, "cost": {"per": "cost"}, **more}))
    return Study.from_file(file, log=path / "log.db")


def go_on(study: Study, trials: int) -> None:
    """Every fifth trial fails."""
    for _ in range(trials):
        trial = study.ask()
        x, y = trial.params["x"], trial.params["y"]
        if trial.number % 5 == 0:
            study.tell(trial, state="fail", cost=1.0)
        else:
            study.tell(trial, (x - 0.6) ** 2 + (y - 0.3) ** 2, cost=1.0 + 9.0 * x, seconds=2.0)


def events(path: Path) -> list[Event]:
    return [event_of(body, hash) for _, body, hash in read_events(path / "log.db")]


def test_power_and_expected_cost_are_on_record_and_an_audit_finds_them_again(tmp_path: Path) -> None:
    with begun(tmp_path, budget={"trials": 40, "cost": 100.0}) as study:
        go_on(study, 12)
    logged, plan, state = events(tmp_path), Plan(), State()
    powers = []
    for event in logged:
        if event.type == "trial.proposed" and event.data.get("power") is not None:
            folded = state.studies["s"]
            assert event.data["power"] == pytest.approx(1 - max(folded.used / 40, folded.cost / 100), abs=1e-6)
            assert 1 <= event.data["cost"] <= 12
            powers.append(event.data["power"])
        state = replay([event], state)
        plan.note(event)
    assert len(powers) >= 4
    assert powers == sorted(powers, reverse=True)
    verdicts = [judge(moment, moment.engine or "") for moment in moments(logged, plan.cases)]
    assert all(each.exact for each in verdicts)
    assert any(each.what == "fit" for each in verdicts)


def test_a_changed_power_is_found(tmp_path: Path) -> None:
    with begun(tmp_path, budget={"cost": 100.0}) as study:
        go_on(study, 9)
    logged, plan = events(tmp_path), Plan()
    at = max(i for i, event in enumerate(logged) if event.data.get("power") is not None)
    logged[at] = logged[at]._replace(data={**logged[at].data, "power": 0.125})
    for event in logged:
        plan.note(event)
    verdicts = [judge(moment, moment.engine or "") for moment in moments(logged, plan.cases)]
    wrong, = (each for each in verdicts if not each.exact)
    assert (wrong.seq, wrong.outcome) == (logged[at].seq, "diverged")
    assert wrong.evidence is not None
    assert wrong.evidence["differs"] == ["power"]
    elsewhere = [judge(moment, "another") for moment in moments(logged, plan.cases)]
    assert [each.seq for each in elsewhere if each.outcome == "diverged"] == [logged[at].seq]


def test_a_snapshot_and_a_fork_keep_what_was_learned(tmp_path: Path) -> None:
    with begun(tmp_path, budget={"cost": 100.0}) as study:
        go_on(study, 11)
        state = replay(events(tmp_path))
        folded = state.studies["s"]
        assert [seen.spent is None for seen in folded.history] == [seen.values is None for seen in folded.history]
        loaded = snapshot.load(*snapshot.dump(state))
        assert loaded is not None
        assert knowledge_digest(loaded.studies["s"]) == knowledge_digest(folded)
        alike = study.fork("t").problem.history
        assert [seen.spent for seen in alike] == [seen.spent for seen in folded.history]
        other = study.fork("u", cost={"per": "seconds"}).problem.history
        assert {seen.spent for seen in other} == {None}      # in another unit nothing is known


def test_what_counts_as_cost_is_what_the_file_says(tmp_path: Path) -> None:
    with begun(tmp_path, cost={"per": "seconds", "aware": False}) as study:
        go_on(study, 10)
    state = replay(events(tmp_path))
    folded = state.studies["s"]
    assert {seen.spent for seen in folded.history} == {2.0, None}
    assert thrift(folded) == 0.0
    last = [event.data for event in events(tmp_path) if event.type == "trial.proposed"][-1]
    assert last["power"] == 0
    assert last["cost"] == pytest.approx(2)


def test_without_the_table_nothing_is_learned_and_nothing_is_said(tmp_path: Path) -> None:
    with begun(tmp_path, cost=None) as study:
        go_on(study, 9)
    state = replay(events(tmp_path))
    folded = state.studies["s"]
    assert {seen.spent for seen in folded.history} == {None}
    assert {len(each) for each in knowledge(folded)["history"]} == {4}
    assert problem_of(folded, (), 0)[0].thrift is None
    proposed = [event.data for event in events(tmp_path) if event.type == "trial.proposed"]
    assert not any({"power", "cost"} & data.keys() for data in proposed)


def test_without_a_budget_the_power_stays_one(tmp_path: Path) -> None:
    with begun(tmp_path) as study:
        go_on(study, 3)
    assert thrift(replay(events(tmp_path)).studies["s"]) == 1.0


def test_a_spent_budget_leaves_no_power(tmp_path: Path) -> None:
    with begun(tmp_path, budget={"wall": "10s"}) as study:
        go_on(study, 2)
    folded = replay(events(tmp_path)).studies["s"]
    folded.elapsed_s = 25.0
    assert thrift(folded) == 0.0


def test_an_unknown_unit_is_the_file_writers_fault(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cost\.per"):
        begun(tmp_path, cost={"per": "euros"})


def test_a_running_study_may_heed_cost_no_longer_but_not_in_another_unit() -> None:
    story = Story(cost={"per": "cost"})

    def amended(id: str, changes: dict[str, Any]) -> dict[str, Any]:
        admin.on_request(story.desk, "op", Request(
            id=id, verb="study.amend", args={"study": "s", "changes": changes}), None)
        return next(body for _, kind, body in story.said()[1] if kind == "reply")

    assert amended("1", {"cost": {"aware": False}})["status"] == "ok"
    assert thrift(story.desk.state.studies["s"]) == 0.0
    for id, cost in (("2", {"per": "seconds"}), ("3", None)):
        assert "of cost only aware" in amended(id, {"cost": cost})["error"]["message"]
