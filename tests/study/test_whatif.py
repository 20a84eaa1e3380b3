"""A recorded study under other rules: every number of an answer was measured, and the cut is where a study with that
rule would really have stopped."""

import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tests.study.story import Story

from bayesd import whatif, whatif_prune, whatif_stop, winner
from bayesd.optimize import suggest
from bayesd.replay import event_of
from bayesd.study import rules
from bayesd.study.desk import Desk
from bayesd.study.fold import replay
from bayesd.study.state import State
from bayesd.whatif import Limits, Question
from bayesd_schemas.study import Stop


def asked(story: Story, at: int | None = None, edit: Callable[[dict[str, Any]], None] = lambda body: None,
          **args: Any) -> dict[str, Any]:
    """The answer as a daemon and the command line make it; with `edit`, of other events than happened."""
    state: State = replay(event_of(row.body, row.hash) for row in story.rows[:at])
    study = state.studies["s"]
    bodies = [body for row in story.rows[:at] if (body := orjson.loads(row.body)).get("study") == "s"]
    for body in bodies:
        edit(body)
    later = story.replayed().studies["s"]
    return whatif.answer(Question.read(args), bodies, whatif.known(study, Desk(state).problem(study)[0]),
                         winner.entries(later))


def measured(values: list[float | None], **spec: Any) -> Story:
    """One worker, one trial after another: 10 s, cost 1 and 8 s of training each; None fails."""
    story = Story(**spec)
    for number, value in enumerate(values, start=1):
        story.ask("w1", id=f"a{number}")
        story.at(story.now + 10.0)
        more: dict[str, Any] = {"state": "fail"} if value is None else {"value": value}
        story.tell("w1", number, cost=1.0, seconds=8.0, **more)
    return story


VALUES: list[float | None] = [5.0, 4.0, None, 4.5, 3.0, 6.0, 7.0, 8.0, 1.0, 2.0]


@pytest.mark.parametrize(("limits", "rule", "won", "results", "handed_out"), [
    ({"trials": 4}, "trials", 2, 3, 4), ({"cost": 5.0}, "cost", 5, 5, 5),
    ({"no_improvement": 3}, "no-improvement", 5, 8, 8),
    ({"patience": 3}, "patience", 5, 8, 8), ({"patience": 4}, None, 9, 10, 10),
    ({"patience": 2, "min_delta": 1.5}, "patience", 2, 4, 4),
    ({"no_improvement": 4}, None, 9, 10, 10), ({"target": 3.5}, "target", 5, 5, 5), ({"wall": 25.0}, "wall", 2, 3, 3),
    ({"trials": 7, "target": 4.0}, "target", 2, 2, 2), ({"trials": 99}, None, 9, 10, 10), ({}, None, 9, 10, 10)])
def test_where_it_stops_and_who_wins(limits: dict[str, Any], rule: str | None, won: int, results: int,
                                     handed_out: int) -> None:
    said = asked(measured(VALUES), **limits)
    assert (said["stop"]["rule"], said["winner"]["trial"]) == (rule, won)
    assert (said["stop"]["results"], said["stop"]["handed_out"]) == (results, handed_out)
    assert said["lost"]["value"] == said["winner"]["value"] - 1.0
    assert said["saved"]["trials"] == said["saved"]["cost"] == 10 - handed_out
    assert said["saved"]["seconds"] == 8.0 * (10 - handed_out)
    assert said["saved"]["elapsed_s"] == pytest.approx(10.0 * (10 - handed_out))
    assert (rule is None and limits != {}) == any("No rule fires" in note for note in said["notes"])


@pytest.mark.parametrize("limits", [{"trials": 4}, {"cost": 5.0}, {"wall": 25.0}, {"trials": 7, "cost": 6.0},
                                    {"patience": 3}, {"patience": 2, "min_delta": 1.5}, {"target": 3.5}])
def test_a_study_with_that_budget_really_ends_so(limits: dict[str, Any]) -> None:
    """The daemon's own rules as the judge: the same results told to a study that has the budget, or the stop rules."""
    said = asked(measured(VALUES), **limits)
    story = Story(stop=limits) if {"patience", "target"} & limits.keys() else Story(budget=limits)
    for number, value in enumerate(VALUES, start=1):
        story.ask("w1", id=f"a{number}")
        story.tick(story.now + 10.0)
        if number > len(story.desk.state.studies["s"].trials):
            break
        more: dict[str, Any] = {"state": "fail"} if value is None else {"value": value}
        story.tell("w1", number, cost=1.0, seconds=8.0, **more)
    study = story.desk.state.studies["s"]
    assert (study.closed_by, study.used) == (said["stop"]["rule"], said["stop"]["handed_out"])
    assert study.best is not None
    assert study.best.number == said["winner"]["trial"]
    assert study.cost == said["end"]["cost"]


def test_what_was_pending_is_counted_and_what_was_handed_out_later_is_not() -> None:
    story = Story()
    story.ask("w1", n=3)
    story.tell("w1", 1, value=5.0)
    story.ask("w2", id="b")
    story.tell("w2", 4, value=0.5)           # handed out after the stop: it would never have been run
    story.tell("w1", 3, value=2.0)
    story.tell("w1", 2, value=3.0)
    said = asked(story, target=5.0)
    assert (said["stop"]["results"], said["stop"]["pending"]) == (1, [2, 3])
    assert (said["winner"]["trial"], said["lost"]) == (3, {"value": 1.5, "trials": 1, "better": 1})


def test_better_is_the_other_way_when_the_metric_is_maximised() -> None:
    said = asked(measured([1.0, 3.0, 2.0, 9.0], direction="maximize"), target=3.0)
    assert (said["stop"]["rule"], said["winner"]["trial"], said["lost"]["value"]) == ("target", 2, 6.0)
    assert asked(measured([1.0, 3.0, 2.0, 9.0], direction="maximize"), no_improvement=1)["winner"]["trial"] == 2


def test_a_voided_result_counts_for_nothing_in_a_replay_either() -> None:
    story = measured(VALUES)
    story.request("op", "trial.void", trial=2, reason="a bad cable")
    said = asked(story, trials=4)
    assert said["winner"]["trial"] == 5          # the fourth of those that count
    assert said["actual"]["handed_out"] == 9


@pytest.mark.parametrize("order", ["recorded", "trial"])
def test_what_a_voided_trial_cost_was_spent(order: str) -> None:
    story = Story(budget={"cost": 8})
    for number in range(1, 6):
        story.ask("w1", id=f"a{number}")
        story.tell("w1", number, value=number / 10, cost=2.0, seconds=10.0)
        if number == 2:
            story.request("op", "trial.void", id="v", trial=2, reason="a bad cable")
    study = story.desk.state.studies["s"]
    assert (study.cost, study.closed_by) == (8.0, "cost")
    said = asked(story, cost=8.0, order=order)
    assert (said["actual"]["cost"], said["actual"]["seconds"], said["stop"]["rule"]) == (8.0, 40.0, "cost")
    assert (said["actual"]["results"], said["stop"]["handed_out"]) == (3, 3)
    assert (said["saved"]["cost"], said["saved"]["seconds"]) == (0.0, 0.0)
    said = asked(story, cost=4.0, order=order)      # trials 1 and 2, of which one is void
    assert (said["stop"]["handed_out"], said["end"]["cost"], said["saved"]["cost"]) == (1, 4.0, 4.0)
    shuffled = asked(story, cost=8.0, order="shuffled")["shuffled"]
    assert shuffled["results"]["p90"] == 3.0


@pytest.mark.parametrize("order", ["recorded", "trial", "shuffled"])
def test_a_trial_that_never_ended_keeps_no_rule_from_firing(order: str) -> None:
    story = Story()
    for number in range(1, 11):
        story.ask("w1", id=f"a{number}")
        if number != 3:
            story.tell("w1", number, value=number / 10)
    said = asked(story, no_improvement=4, order=order)
    if order == "shuffled":
        assert said["shuffled"]["results"]["p50"] < 9
        return
    assert (said["stop"]["rule"], said["stop"]["results"], said["stop"]["pending"]) == ("no-improvement", 5, [3])
    assert asked(story, trials=3, order=order)["stop"]["handed_out"] == 3


def test_another_winner_rule_and_a_moment_of_the_past() -> None:
    story = Story()
    story.ask("w1", n=3)
    story.tell("w1", 1, folds=[1.0, 2.0, 3.0], seconds=100.0)
    story.tell("w1", 2, folds=[2.0, 2.2, 2.4], seconds=1.0)
    at = len(story.rows)
    story.tell("w1", 3, value=0.1)
    assert asked(story, at=at, rule="one-se")["winner"]["trial"] == 2
    assert asked(story, at=at)["winner"]["trial"] == 1
    assert asked(story, rule="mean")["winner"]["rule"] == "mean"


def test_a_fork_knows_what_it_took_over_from_its_first_moment_on() -> None:
    story = measured([5.0, 4.0, 0.5])
    story.request("op", "study.fork", id="f", **{"as": "t"})
    state = story.replayed()
    study = state.studies["t"]
    known = whatif.known(study, Desk(state).problem(study)[0])
    bodies = [body for row in story.rows if (body := orjson.loads(row.body)).get("study") == "t"]
    said = whatif.replay(bodies, known, Limits(target=1.0))
    assert (said["stop"]["rule"], said["winner"]["trial"], said["stop"]["handed_out"]) == ("target", 3, 0)


def test_one_after_another_and_in_other_orders() -> None:
    story = Story()
    story.ask("w1", n=4)
    for number, value in ((4, 1.0), (3, 2.0), (1, 5.0), (2, 4.0)):
        story.tell("w1", number, value=value)
    assert asked(story, target=2.0)["stop"]["results"] == 1
    said = asked(story, target=2.0, order="trial")
    assert (said["stop"]["results"], said["stop"]["handed_out"], said["stop"]["pending"]) == (3, 3, [])
    assert said["saved"]["elapsed_s"] is None
    shuffled = asked(story, trials=2, order="shuffled")["shuffled"]
    assert shuffled["results"] == {"p10": 2.0, "p50": 2.0, "p90": 2.0}
    assert shuffled["found_the_winner"] == pytest.approx(0.5, abs=0.06)      # 2 of 4
    assert shuffled == asked(story, trials=2, order="shuffled")["shuffled"]
    assert shuffled != asked(story, trials=2, order="shuffled", seed=1)["shuffled"]


@pytest.mark.parametrize(("args", "words"), [
    ({"trials": 0}, "trials is a number from 1"), ({"trials": 1.5}, "trials"), ({"wall": -1}, "a number above 0"),
    ({"rule": "luck"}, "rule is one of"), ({"order": "up"}, "order is one of"), ({"method": "guess"}, "method is one"),
    ({"prune": "all"}, "prune is one of median"), ({"warmup": 2}, "Give prune as well"),
    ({"prune": "median", "startup": 0}, "startup"), ({"prune": "asha", "percentile": 5}, "percentile is for"),
    ({"order": "shuffled"}, "needs a limit"), ({"order": "trial", "converged": True}, "need order recorded"),
    ({"order": "trial", "wall": 5}, "wall needs order recorded"), ({"next": 1000, "method": "grid"}, "at most"),
    ({"target": True}, "target is a number"), ({"no_improvement": "3"}, "no_improvement"),
    ({"min_delta": 0.5}, "give patience as well"), ({"patience": 3, "min_delta": -1}, "min_delta is a number above 0")])
def test_a_question_that_makes_no_sense(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Question.read(args)


# ---------------------------------------------------------------- rules that ask the model


class Searching(Story):
    """A story whose sampler is the engine itself."""

    def think(self) -> None:
        for order in rules.orders(self.desk):
            rules.supply(self.desk, order, suggest(order.problem, order.wanted))


def searched(trials: int, **spec: Any) -> Searching:
    """Trials of a bowl, one after another, until they are used up or the study closes."""
    story = Searching(method="bayes", noise="none", budget={"trials": trials}, **spec)
    for number in range(1, trials + 1):
        story.ask("w1", id=f"a{number}")
        if number > len(story.desk.state.studies["s"].trials):
            break
        x = story.desk.state.studies["s"].trials[number - 1].params["x"]
        assert isinstance(x, float)
        story.tell("w1", number, value=(x / 100 - 0.3) ** 2)
    return story


@pytest.mark.parametrize("rule", [{"regret": 1e-3}, {"improvement": 0.5}])
def test_a_rule_that_asks_the_model_would_have_fired_where_it_fires(rule: dict[str, Any]) -> None:
    (name, _), = rule.items()
    rows = searched(26, stop=rule).rows
    really = next(orjson.loads(row.body) for row in rows if b"study.stopping" in row.body)["data"]
    said = asked(searched(26), **rule)
    assert (really["rule"], said["stop"]["rule"]) == (name, name)
    assert said["stop"]["numbers"] == really["numbers"]
    assert said["stop"]["results"] == really["numbers"]["results"] < 26
    assert said["saved"]["trials"] > 0
    assert any("asked again" in note for note in said["notes"])


def test_the_fits_on_record_are_where_it_starts_from() -> None:
    """After 21 results nothing was fitted: what was believed then hangs on the fit after 20."""
    story = searched(22)
    bodies = [orjson.loads(row.body) for row in story.rows]
    ended = [body["seq"] for body in bodies if body["type"] == "trial.completed"]
    assert max(body["seq"] for body in bodies if body["type"] == "model.fitted") < ended[20]

    def numbers(*, corrected: bool = False, shift: float = 0.0) -> dict[str, Any] | None:
        fits = [{**body, "data": {**body["data"], "theta": [each + shift for each in body["data"]["theta"]]}}
                for body in bodies if body["type"] == "model.fitted"]
        problem = Desk(story.replayed()).problem(story.replayed().studies["s"])[0]
        model = whatif_stop.Model.of(Stop(regret=1e9), problem, fits, corrected=corrected)
        assert model.fired(set(range(1, 22)), ended[21]) == "regret"
        return model.numbers

    assert numbers() == numbers()
    assert numbers() != numbers(shift=1.5)
    assert numbers(corrected=True) == numbers(corrected=True, shift=1.5)


def test_a_model_that_cannot_be_asked_is_said_so() -> None:
    story = measured(VALUES)
    said = asked(story, converged=True)
    assert (said["stop"]["rule"], said["stop"]["numbers"], said["limits"]) == (None, None, {"converged": True})
    with pytest.raises(ValueError, match="need one objective, no limits"):
        asked(measured(VALUES, surrogate="forest", method="bayes"), regret=1.0)


# ---------------------------------------------------------------- pruning


def curves(*all: list[float], **spec: Any) -> Story:
    """Trials that report each value of a list and end with its last one, one after another."""
    story = Story(**spec)
    for number, values in enumerate(all, start=1):
        story.ask("w1", id=f"a{number}")
        for step, value in enumerate(values):
            story.report("w1", number, step, value)
        story.tell("w1", number, value=values[-1], seconds=10.0)
    return story


def test_the_median_rule_on_recorded_reports() -> None:
    story = curves([5.0, 4.0, 3.0], [6.0, 5.0, 4.0], [9.0, 9.0, 9.0, 9.0], [1.0, 1.0, 1.0])
    said = asked(story, prune="median", startup=2)
    assert said["pruned"] == [{"trial": 3, "step": 0, "reports": 1, "of": 4, "state": "complete", "value": 9.0}]
    assert (said["reports"], said["reports_saved"], said["winner_pruned"]) == (13, 3, False)
    assert said["seconds_saved_estimate"] == 7.5
    assert asked(story, prune="median", startup=3)["pruned_count"] == 0
    assert asked(story, prune="median", startup=2, warmup=2)["pruned"][0]["step"] == 2


def test_what_breaks_a_limit_is_no_yardstick_of_a_replay_either() -> None:
    story = Story(limits=[{"name": "latency", "at_most": 1.0}])
    for number, (value, latency) in enumerate([(1.0, 9.0), (2.0, 9.0), (5.0, 0.5), (6.0, 0.5)], start=1):
        story.ask("w1", id=f"a{number}")
        story.report("w1", number, 0, value)
        story.tell("w1", number, values={"value": value, "latency": latency})
    assert [each["trial"] for each in asked(story, prune="median", startup=1)["pruned"]] == [4]


def test_a_winner_that_begins_badly_would_have_been_pruned_and_that_is_said() -> None:
    said = asked(curves([5.0, 4.0], [6.0, 4.0], [9.0, 0.5]), prune="median", startup=2)
    assert (said["winner_pruned"], said["winner"]["trial"], said["lost"]["value"]) == (True, 1, 3.5)


def test_one_bad_trial_does_not_move_the_yardstick() -> None:
    said = asked(curves([5.0, 4.0], [6.0, 4.0], [100.0, 4.0], [9.0, 4.0]), prune="median", startup=3)
    assert [each["trial"] for each in said["pruned"]] == [4]


def test_what_the_rule_stopped_is_no_yardstick_afterwards() -> None:
    """With trial 3 as one, the median at step 0 would be 6.0 and not 5.5, and trial 4 would live."""
    said = asked(curves([5.0, 4.0], [6.0, 4.0], [9.0, 4.0], [5.8, 4.0]), prune="median", startup=2)
    assert [each["trial"] for each in said["pruned"]] == [3, 4]


def test_pruning_looks_up_when_the_metric_is_maximised_and_needs_reports() -> None:
    story = curves([5.0, 5.0], [6.0, 6.0], [1.0, 1.0], [9.0, 9.0], direction="maximize")
    said = asked(story, prune="median", startup=2)
    assert [each["trial"] for each in said["pruned"]] == [3]
    assert any("no reports" in note for note in asked(measured([1.0]), prune="median")["notes"])


EPOCHS = {"name": "epochs", "max": 9, "reduction": 2}
TWO = [{"name": "loss"}, {"name": "size"}]


def trained(points: Any, **spec: Any) -> tuple[Story, dict[int, int]]:
    """Trials that report these points, one after another, and those that were stopped, each with the step."""
    story, stopped = Story(**spec), {}
    for number, values in enumerate(points, start=1):
        story.ask("w1", id=f"a{number}")
        for step, value in enumerate(values, start="folds" not in spec):
            facts, _ = story.report("w1", number, step, value)
            if len(facts) > 1:
                stopped[number] = step
                story.tell("w1", number, state="pruned")
                break
        else:
            last = values[-1]
            story.tell("w1", number, **({"values": last} if isinstance(last, dict) else
                                        {"folds": values} if "folds" in spec else {"value": last}))
    return story, stopped


@pytest.mark.parametrize(("prune", "spec"), [
    ({"rule": "median", "startup": 3}, {}), ({"rule": "percentile", "startup": 3, "percentile": 40, "warmup": 2}, {}),
    ({"rule": "asha"}, {"fidelity": EPOCHS}), ({"rule": "hyperband", "startup": 2}, {"fidelity": EPOCHS}),
    ({"rule": "curve", "startup": 4, "chance": 0.2}, {}), ({"rule": "race", "error": 0.3}, {"folds": {"count": 9}}),
    *[({"rule": rule, "by": by, "startup": 3}, {"objectives": TWO, "fidelity": EPOCHS})
      for rule in ("median", "asha", "hyperband", "curve") for by in ("size", "dominance")]])
def test_every_pruning_rule_would_have_stopped_whom_it_stops(prune: dict[str, Any], spec: dict[str, Any]) -> None:
    """The same training in a study that has the rule, and in one without it that is asked afterwards."""
    rng = random.Random(7)
    points: list[list[Any]] = []
    for _ in range(16):
        level, other = rng.random(), rng.random()
        curve = [level + 1.0 / step + rng.random() / 50 for step in range(1, 10)]
        points.append(curve if "objectives" not in spec else
                      [{"loss": value, "size": other + 0.5 / step} for step, value in enumerate(curve, start=1)])
    plain, nobody = trained(points, **spec)
    assert not nobody
    _, stopped = trained(points, prune=prune, **spec)
    said = asked(plain, **{**prune, "prune": prune["rule"], "rule": None})
    assert {each["trial"]: each["step"] for each in said["pruned"]} == stopped
    assert said["pruned_count"] > 3
    assert said["prune"]["rule"] == prune["rule"]
    assert said["reports_saved"] == sum(len(points[0]) - each["reports"] for each in said["pruned"])
    assert said["same_winner"] == (said["winner"]["trial"] == said["actual"]["winner"]["trial"])


def test_rungs_without_a_fidelity_and_what_a_study_cannot_have() -> None:
    story = curves(*[[3.0 + n, 2.0 + n, 1.0 + n, 0.5 + n] for n in range(5)])
    said = asked(story, prune="asha")
    assert [each["trial"] for each in said["pruned"]] == [2, 3, 4, 5]
    assert any("has no [fidelity]: rungs of steps up to 3" in note for note in said["notes"])
    questions: tuple[tuple[dict[str, Any], str], ...] = (
        ({"prune": "race"}, "has to say how many"), ({"prune": "median", "by": "dominance"}, "leave by"),
        ({"prune": "median", "by": "loss"}, "none of the objectives"))
    for args, words in questions:
        with pytest.raises(ValueError, match=words):
            asked(story, **args)


def test_what_the_studys_own_rule_had_stopped_nobody_measured_further() -> None:
    story, stopped = trained([[1.0, 1.0], [1.1, 1.1], [9.0, 1.0], [8.0, 8.0]], prune={"rule": "median", "startup": 2})
    assert stopped == {3: 1, 4: 1}
    said = asked(story, prune="curve", startup=3)
    assert said["pruned_count"] == 0
    assert any("had stopped 2 trials" in note for note in said["notes"])


def test_fences_that_a_repaired_log_left_out_are_no_trouble() -> None:
    def above(body: dict[str, Any]) -> None:
        if "fence" in body["data"]:
            body["data"]["fence"] += 1000

    story = curves([5.0, 4.0, 3.0], [6.0, 5.0, 4.0], [9.0, 9.0, 9.0])
    said = asked(story, prune="median", startup=2)
    assert said == asked(story, edit=above, prune="median", startup=2)
    assert said["pruned_count"] == 1


def test_what_was_reported_before_a_pause_is_not_forgotten() -> None:
    """Trial 1 was at 5.0 at rung 1, and at 0.1 when it went on: at rung 1 it is no better than trial 3."""
    story = Story(prune={"rule": "asha", "resume": True}, fidelity=EPOCHS)
    for number, fence, step, value in ((1, 1, 1, 5.0), (2, 1, 1, 6.0), (1, 2, 2, 0.1), (3, 1, 1, 1.0)):
        story.ask("w1", id=f"a{number}.{fence}")
        story.report("w1", number, step, value, fence)
        story.tell("w1", number, fence, value=value)
    said = asked(story, prune="asha")
    assert [(each["trial"], each["step"]) for each in said["pruned"]] == [(2, 1)]
    assert (said["reports"], said["reports_saved"]) == (4, 0)


def test_an_imported_result_that_is_void_is_nobodys_best() -> None:
    story = measured([5.0, 4.0, 0.5])
    story.request("op", "study.fork", id="f", **{"as": "t"})
    void = {"study": "t", "reason": "a bad cable"}

    def found() -> dict[int, int]:
        bodies = [body for row in story.rows if (body := orjson.loads(row.body)).get("study") == "t"]
        study = story.replayed().studies["t"]
        known = whatif.known(study, Desk(story.replayed()).problem(study)[0])
        prune = whatif_prune.asked({"prune": "curve", "startup": 3})
        assert prune is not None
        return whatif_prune.judged(bodies, prune, study.spec, known.void | known.again).cut

    for number in range(4, 10):
        story.ask("w1", id=f"t{number}", study="t")
        for step in range(4):
            story._on("report", "w1", {"id": f"r{number}.{step}", "study": "t", "trial": number, "fence": 1,
                                       "step": step, "value": 3.0 - 0.01 * number})
        story.tell("w1", number, study="t", value=3.0 - 0.01 * number)
    assert found() == {7: 0, 8: 0, 9: 0}          # flat curves that end behind trial 3
    for number in (1, 2, 3):
        story.request("op", "trial.void", id=f"v{number}", trial=number, **void)
    assert found() == {}                          # each is better than those before


def test_what_is_void_now_is_no_yardstick_in_a_replay() -> None:
    story = curves([1.0, 1.0], [5.0, 5.0], [6.0, 6.0], [5.2, 5.2])
    assert [each["trial"] for each in asked(story, prune="median", startup=2)["pruned"]] == [3, 4]
    story.request("op", "trial.void", id="v", trial=1, reason="a bad cable")
    assert [each["trial"] for each in asked(story, prune="median", startup=2)["pruned"]] == []
    assert asked(story, prune="median", startup=2)["reports"] == 6


# ---------------------------------------------------------------- another sampler's next points


def test_next_points_are_named_and_marked_as_never_measured() -> None:
    story = measured([5.0, 4.0, 0.5])
    said = asked(story, at=4, method="sobol", next=3)
    assert [point["measured"] for point in said["next"]] == [None, None, None]
    assert "never measured" in said["notes"][0]
    assert len({point["params"]["x"] for point in said["next"]}) == 3


def test_a_next_point_that_was_measured_later_says_so() -> None:
    story = Story(space={"x": {"type": "int", "low": 1, "high": 4}}, method="random")
    for number, value in ((1, 5.0), (2, 4.0), (3, 3.0)):
        story.ask("w1", id=f"a{number}")
        if number == 1:
            at = len(story.rows)
        story.tell("w1", number, value=value)
    said = asked(story, at=at, method="grid", next=4)
    assert [(point["params"]["x"], point["measured"]) for point in said["next"]] == [
        (2, {"trial": 2, "value": 4.0}), (3, {"trial": 3, "value": 3.0}), (4, None)]
    assert said["exhausted"]


def test_what_measured_a_leader_again_is_no_part_of_the_search() -> None:
    story = measured(VALUES, budget={"trials": 10}, confirm={"top": 2})
    story.ask("w1", "again", n=2)
    for number in (11, 12):
        story.tell("w1", number, value=0.5, cost=100.0, seconds=8.0)
    for limits in ({"target": 0.75}, {"trials": 11}, {"cost": 50.0}):
        said = asked(story, **limits)
        assert (said["stop"]["rule"], said["stop"]["handed_out"], said["stop"]["results"]) == (None, 10, 10)
        assert said["stop"]["cost"] == 10.0
