"""How far a search has converged, by the model's own word: from a bowl that is found to a stop that an audit finds."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayesd import audit
from bayesd.inprocess import Exhausted, Study
from bayesd.log import read_events
from bayesd.optimize import convergence, suggest
from bayesd.replay import event_of
from bayesd.study.problem import Observation, Problem
from bayesd_schemas.space import Space

SPACE = {"x": {"type": "float", "low": -5, "high": 5}}


def bowl(count: int, **more: object) -> Problem:
    """A problem after so many suggestions were measured on a bowl."""
    problem = Problem(Space.model_validate(SPACE), ("minimize",), "bayes", 3, True, 1, 0, **more)  # type: ignore[arg-type]
    for number in range(1, count + 1):
        made = suggest(problem)
        proposal = made.proposals[0]
        x = proposal.params["x"]
        assert isinstance(x, float)
        problem = replace(problem, number=number + 1, drawn=proposal.drawn, fit=made.fit or problem.fit,
                          history=(*problem.history, Observation(number, proposal.params, ((x - 1) ** 2,))))
    return problem


def test_less_is_left_to_gain_the_more_is_known() -> None:
    early, late = convergence(bowl(6)), convergence(bowl(16))
    assert early is not None
    assert late is not None
    assert late.regret < early.regret / 10
    assert 0 <= late.improvement <= late.regret
    assert late.expected_regret < early.expected_regret / 10
    assert (late.results, late.steady) == (16, 0)          # nobody looks back before the best has stood a while


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_direction_and_the_unit_of_the_metric_change_nothing(sign: float) -> None:
    problem = bowl(12)
    plain = convergence(problem)
    other = convergence(replace(problem, directions=("minimize" if sign > 0 else "maximize",), history=tuple(
        replace(seen, values=(sign * 1000 * seen.values[0],)) for seen in problem.history if seen.values is not None)))
    assert plain is not None
    assert other is not None
    assert other.regret == pytest.approx(1000 * plain.regret, rel=0.05)
    assert other.best == pytest.approx(sign * 1000 * plain.best, rel=0.05, abs=1e-3 * 1000)


def test_a_function_of_many_waves_has_more_parts_to_see_than_a_bowl() -> None:
    waves = replace(bowl(16), fit=None, history=tuple(
        Observation(i, {"x": x}, (math.cos(3 * x) + 0.01 * x,))
        for i, x in enumerate(np.linspace(-5, 5, 50).tolist(), start=1)))
    many, one = convergence(waves), convergence(bowl(8))
    assert many is not None
    assert one is not None
    assert one.cells < 2 < 3 < many.cells


def test_being_judged_moves_no_proposal() -> None:
    problem = bowl(8)
    judged = suggest(replace(problem, judged=True), 2)
    assert (judged.proposals, judged.fit) == (suggest(problem, 2).proposals, suggest(problem, 2).fit)
    assert judged.convergence == convergence(problem)


def test_where_no_model_can_tell_nothing_is_said() -> None:
    assert convergence(bowl(2)) is None
    assert convergence(replace(bowl(8), surrogate="forest")) is None


def test_a_search_that_has_converged_stops_and_an_audit_says_so_again(tmp_path: Path) -> None:
    with Study(SPACE, seed=3, budget=60, stop={"converged": True}, log=tmp_path / "log.db") as study:
        while study.state == "open" and len(study.trials) < 50:
            try:
                trial = study.ask()
            except Exhausted:
                break
            study.tell(trial, (trial.params["x"] - 1) ** 2)
        with pytest.raises(Exhausted, match="the search has converged"):
            study.ask()
        assert 20 <= len(study.trials) < 50
        assert study.state == "closed"
    events = [event_of(body, hash) for _, body, hash in read_events(tmp_path / "log.db")]
    plan = audit.Plan(from_seq=events[-5].seq)
    for event in events:
        plan.note(event)
    engine = next(event.data["fingerprint"] for event in events if event.type == "engine.fingerprint")
    verdict, = (each for each in (audit.judge(moment, engine) for moment in audit.moments(events, plan.cases))
                if each.what == "stop")
    assert (verdict.level, verdict.outcome, verdict.exact) == ("L2", "same", True)
