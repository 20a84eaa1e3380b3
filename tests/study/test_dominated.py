"""Pruning by dominance: what is behind in everything is stopped, what trades one objective for another is not."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.edges.test_why import flat, page_of
from tests.study.audited import stops_are_made_again
from tests.study.story import BASE, Story

from bayesd import Study, audit
from bayesd.replay import event_of
from bayesd.study import ladder
from bayesd.study.board import Board, board_of
from bayesd.study.dominance import Cloud, Front, best_of, crowding, dominates
from bayesd_schemas.study import StudySpec

TWO = [{"name": "loss"}, {"name": "accuracy", "direction": "maximize"}]
EPOCHS = {"name": "epochs", "max": 9, "reduction": 2}


def two(rule: str, **prune: Any) -> Story:
    return Story(objectives=TWO, prune={"rule": rule, "by": "dominance", **prune}, fidelity=EPOCHS)


def said(loss: Any, accuracy: Any) -> dict[str, Any]:
    return {"loss": loss, "accuracy": accuracy}


def whole(story: Story, number: int, *points: tuple[Any, Any]) -> dict[str, Any] | None:
    """Trains a trial that reports these from step 1 on; what stopped it."""
    story.ask(f"w{number}")
    for step, point in enumerate(points, start=1):
        facts, _ = story.report(f"w{number}", number, step, said(*point))
        if len(facts) > 1:
            story.tell(f"w{number}", number, state="pruned")
            return facts[1][2]
    story.tell(f"w{number}", number, values=said(*points[-1]))
    return None


def test_one_dominates_another() -> None:
    assert dominates((1.0, 2.0), (1.0, 3.0))
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert not dominates((1.0, 2.0), (2.0, 1.0))
    assert dominates((1.0, 2.0), (math.inf, math.inf))
    assert best_of([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0), (1.0, 2.0)]) == [(1.0, 2.0), (2.0, 1.0), (1.0, 2.0)]


def test_a_cloud_that_grew_and_shrank_ranks_as_if_it_had_been_made_at_once() -> None:
    """Against ranks that are counted afresh, with equal points and points that are no number."""
    rng = random.Random(5)
    for width in (2, 3):
        cloud, there = Cloud(width, ranked=True), {}
        for number in range(1, 200):
            there[number] = tuple(rng.choice((rng.random(), 0.5, math.inf if rng.random() < 0.1 else 0.25))
                                  for _ in range(width))
            cloud.add(number, there[number])
            if rng.random() < 0.4:
                gone = rng.choice(list(there))
                cloud.drop(gone)
                del there[gone]
        assert len(cloud) == len(there)
        counts = {each: sum(dominates(other, there[each]) for other in there.values()) for each in there}
        placed = sorted(there, key=lambda each: cloud.rank(each)[0])
        assert [cloud.rank(each)[0] for each in placed] == list(range(len(there)))       # an order, without ties
        assert [counts[each] for each in placed] == sorted(counts.values())
        assert all(cloud.rank(each)[1] == counts[each] == cloud.dominating(there[each]) for each in there)
        fresh = Cloud(width, ranked=True)
        for each in sorted(there, reverse=True):
            fresh.add(each, there[each])
        assert [fresh.rank(each) for each in there] == [cloud.rank(each) for each in there]


def test_of_equal_ranks_those_with_room_around_them_are_first() -> None:
    values = np.array([[0.0, 4.0], [1.0, 3.0], [1.1, 2.9], [1.2, 2.8], [4.0, 0.0]])
    assert crowding(values)[[0, 4]].tolist() == [math.inf, math.inf]
    assert np.argmin(crowding(values)) == 2
    cloud = Cloud(2, ranked=True)
    for number, row in enumerate(values.tolist(), start=1):
        cloud.add(number, tuple(row))
    assert [cloud.rank(number)[0] for number in (1, 5, 4, 2, 3)] == [0, 1, 2, 3, 4]


def test_median_stops_what_more_than_half_dominate() -> None:
    story = two("median", startup=3)
    assert whole(story, 1, (1.0, 0.9)) is None
    assert whole(story, 2, (2.0, 0.8)) is None
    assert whole(story, 3, (0.1, 0.1)) is None
    assert whole(story, 4, (3.0, 0.95)) is None                     # the best accuracy of all
    assert whole(story, 5, (3.5, 0.7)) == {
        "fence": 1, "step": 1, "rule": "median", "by": "dominance", "values": {"loss": 3.5, "accuracy": 0.7},
        "dominated": 3, "compared": 4}
    story.ask("w6")
    assert len(story.report("w6", 6, 1, said(0.5, 0.85))[0]) == 1   # nobody dominates it
    story.check()


def test_percentile_and_the_best_report_so_far() -> None:
    story = two("percentile", startup=2, percentile=50)
    for number, point in enumerate(((1.0, 0.9), (1.5, 0.8)), start=1):
        assert whole(story, number, point, point) is None
    assert whole(story, 3, (0.5, 0.5), (9.0, 0.1)) is None          # its first report nobody dominates
    found = whole(story, 4, (3.0, 0.1))
    assert found is not None
    assert (found["dominated"], found["compared"], found["values"]) == (3, 3, {"loss": 3.0, "accuracy": 0.1})
    story.check()


def test_asha_keeps_the_front_of_a_rung() -> None:
    story = two("asha")
    for number, point in enumerate(((1.0, 0.5), (0.5, 0.4), (2.0, 0.9)), start=1):
        story.ask(f"w{number}")
        facts, _ = story.report(f"w{number}", number, 1, said(*point))
        assert (len(facts) > 1) == (number > 1)         # all are on the front; one of three goes on
    assert facts[1][2] == {"fence": 1, "step": 1, "rule": "asha", "by": "dominance", "values": said(2.0, 0.9),
                           "dominated": 0, "ahead": 1, "compared": 3, "rung": 1, "kept": 1}
    story.ask("w4")
    facts, _ = story.report("w4", 4, 1, said(3.0, 0.3))
    assert (facts[1][2]["dominated"], facts[1][2]["ahead"], facts[1][2]["kept"]) == (3, 3, 2)
    story.restart()
    story.ask("w5")
    assert len(story.report("w5", 5, 1, said(0.1, 0.95))[0]) == 1
    story.check()


@pytest.mark.parametrize("rule", ["median", "asha", "curve"])
def test_what_is_no_number_is_behind(rule: str) -> None:
    story = two(rule, startup=3)
    for number in range(1, 5):
        whole(story, number, *[(1.0 + number / 10, 0.5 + number / 10)] * 9)
    found = whole(story, 5, ("nan", "nan"))
    assert found is not None
    assert found["values"] == {"loss": None, "accuracy": None}
    story.check()


def test_who_goes_on_from_a_rung_is_who_few_dominate() -> None:
    """Paused at rung 1 are 1 to 4, of which two go on: 2, which nobody dominates, and of the others on the front the
    one with more room around it."""
    story = two("asha", resume=True)
    points = {1: (3.0, 0.2), 2: (1.0, 0.5), 3: (2.0, 0.9), 4: (1.9, 0.8)}
    began: list[int] = []

    def told(number: int, point: tuple[float, float], fence: int = 1) -> None:
        story.report("w1", number, fence, said(*point), fence)
        story.tell("w1", number, fence, values=said(*point))

    for number, point in points.items():
        _, letters = story.ask("w1", id=f"a{number}")
        began += [body["trial"] for _, kind, body in letters if kind == "grant"]
        if began[-1] != number:         # one that goes on: it is trained later
            break
        told(number, point)
    study = story.desk.state.studies["s"]
    # Of two that were told one goes on: 1 is dominated by 2.
    assert began == [1, 2, 2]
    told(2, (0.9, 0.6), fence=2)
    for _ in range(2):
        _, letters = story.ask("w1", id=f"b{len(study.trials)}")
        number = next(body["trial"] for _, kind, body in letters if kind == "grant")
        began.append(number)
        told(number, points[number])
    _, letters = story.ask("w1", id="c")
    assert next(body for _, kind, body in letters if kind == "grant")["trial"] == 3       # an end of the front, as 2 is
    story.restart()
    assert ladder.Ladder(study).clouds is not None
    rows = [event_of(row.body, row.hash) for row in story.rows]
    plan = audit.Plan()
    for event in rows:
        plan.note(event)
    climbs = [case for case in plan.cases if rows[case.seq - 1].type == "trial.leased"]
    outcomes = [audit.judge(each, "").outcome for each in audit.moments(rows, climbs)]
    assert outcomes
    assert {*outcomes} == {"same"}
    story.check()


def curve(loss: float, accuracy: float) -> list[tuple[float, float]]:
    return [(loss + 1.0 / step, accuracy - 0.3 / step) for step in range(1, 10)]


def test_curve_stops_what_ends_behind_one_trial_in_everything() -> None:
    story = two("curve", startup=4)
    for number in range(1, 7):
        assert whole(story, number, *curve(0.5 + 0.1 * number, 0.6 + 0.05 * number)) is None      # a front
    assert whole(story, 7, *curve(0.4, 0.5)) is None            # the worst accuracy, and the best loss
    assert whole(story, 8, *curve(2.0, 0.98)) is None           # the other way round
    found = whole(story, 9, *curve(2.0, 0.6))
    assert found is not None
    assert found["chance"] < found["bound"] == 0.05
    assert found["by"] == "dominance"
    assert found["against"] in range(1, 7)
    story.check()


def test_a_report_that_leaves_an_objective_out_is_not_judged() -> None:
    for rule in ("median", "asha", "curve"):
        story = two(rule, startup=3)
        for number in range(1, 5):
            whole(story, number, *[(1.0, 0.5)] * 9)
        story.ask("w5")
        assert len(story.report("w5", 5, 1, {"loss": 99.0})[0]) == 1
        story.check()


def test_the_front_is_the_same_whatever_left_it() -> None:
    story = Story(objectives=TWO, prune={"rule": "curve", "by": "dominance"}, limits=[{"name": "size", "at_most": 5}])
    rng = random.Random(1)
    for number in range(1, 40):
        story.ask(f"w{number}")
        story.report(f"w{number}", number, 1, said(rng.random(), rng.random()))
        story.tell(f"w{number}", number, values={**said(rng.random(), rng.random()),
                                                 "size": 9 if number % 5 == 0 else 1})
        if number % 3 == 0:
            study = story.desk.state.studies["s"]
            front = board_of(study).front
            assert front is not None
            story.request("op", "trial.void", id=f"v{number}", trial=int(front.members[0][0]), reason="x")
            again = Front(study)
            for trial in reversed(study.trials):
                again.note(trial)
            for one, other in zip(front.members, again.members, strict=True):
                np.testing.assert_array_equal(one, other)
            assert all(study.trials[each - 1].limits == (1.0,) for each in front.members[0])


@pytest.mark.parametrize("rule", ["median", "percentile", "asha", "hyperband", "curve"])
def test_a_stop_is_made_again_by_the_audit_and_told_by_why(rule: str) -> None:
    rng = random.Random(3)
    story = two(rule, startup=3)
    for number in range(1, 26):
        level = rng.random()
        whole(story, number, *[(level + 1 / step, 1.0 - level - rng.random() / 10 / step) if number % 3 else
                               (level + 2.0, -level) for step in range(1, 10)])
    story.request("op", "trial.void", id="v", trial=2, reason="x")
    whole(story, 26, *[(7.0, -5.0)] * 9)
    last = stops_are_made_again(story, compared=1)
    assert last.data["by"] == "dominance"
    assert f"Rule {rule}, by dominance, stopped it at step" in flat(page_of(story.rows, last.trial or 0))
    study = story.replayed().studies["s"]
    kept, made = board_of(story.desk.state.studies["s"]), Board(study)
    if kept.clouds is not None:
        assert made.clouds is not None
        assert {place: len(cloud) for place, cloud in kept.clouds.clouds.items() if len(cloud)} == {
            place: len(cloud) for place, cloud in made.clouds.clouds.items()}
    story.check()


@pytest.mark.parametrize(("spec", "words"), [
    ({"prune": {"rule": "median", "by": "dominance"}}, "with one, leave by out"),
    ({"objectives": TWO, "folds": {"count": 3}, "prune": {"rule": "race", "by": "dominance"}}, "write by = \"loss\""),
    ({"objectives": TWO, "prune": {"rule": "median"}}, "or by = \"dominance\" for all of them"),
    ({"objectives": TWO, "prune": {"rule": "median", "by": "size"}}, "none of the objectives loss, accuracy")])
def test_the_study_file_says_what_to_write(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StudySpec.model_validate({**BASE, **spec})


def test_in_one_process_a_study_prunes_by_dominance(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('name = "s"\nmethod = "random"\n[[objectives]]\nname = "loss"\n[[objectives]]\nname = "size"\n'
                    '[prune]\nrule = "median"\nby = "dominance"\nstartup = 2\n'
                    '[space.x]\ntype = "float"\nlow = 0\nhigh = 1\n')
    with Study.from_file(file) as study:
        for loss, size in ((1.0, 2.0), (2.0, 1.0), (1.5, 3.0), (math.nan, 9.0)):
            trial = study.ask()
            study.report(trial, {"loss": loss, "size": size}, step=1)
            assert study.should_prune(trial) == (size == 9.0)
            study.tell(trial, **({"state": "pruned"} if study.should_prune(trial) else
                                 {"value": {"loss": loss, "size": size}}))
