"""The fold: whatever was recorded replays to the life that recorded it, from any prefix, twice or in parts."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.study.story import Story

from bayesd.replay import event_of
from bayesd.study import snapshot
from bayesd.study.fold import UnknownEvent, replay
from bayesd.study.state import State

Step = Callable[[Story, int], Any]
WORKERS = st.sampled_from(["w1", "w2", "w3"])
TRIALS = st.integers(1, 6)
FENCES = st.integers(1, 3)
TELLS: list[dict[str, Any]] = [
    {"value": 0.5}, {"value": 1}, {"value": -0.0}, {"value": None}, {"folds": [1.0, 2.0]}, {"value": 0.25, "cost": 1.5},
    {"value": 2.0, "seconds": 3}, {"state": "fail"}, {"state": "fail", "class": "oom"},
    {"state": "fail", "class": "other", "error": "é"}, {"state": "pruned"}, {"state": "released"}]


def _request(verb: str, **args: Any) -> st.SearchStrategy[Step]:
    return st.just(lambda story, i: story.request("op", verb, id=f"q{i}", **args))


def _about(verb: str, **args: Any) -> st.SearchStrategy[Step]:
    return st.builds(lambda trial: lambda story, i: story.request("op", verb, id=f"q{i}", trial=trial, **args), TRIALS)


ASKS = st.builds(lambda worker, n, ask, run: lambda story, i: story.ask(worker, f"a{ask}", f"{worker}-r{run}", n=n),
                 WORKERS, st.integers(0, 3), st.integers(1, 4), st.integers(1, 2))
BEATS = st.builds(lambda worker, run, leases: lambda story, i: story.beat(worker, *leases, run=f"{worker}-r{run}"),
                  WORKERS, st.integers(1, 3), st.lists(st.tuples(TRIALS, FENCES), max_size=4))
SAYS = st.builds(lambda worker, trial, fence, tell: lambda story, i: story.tell(worker, trial, fence, **tell),
                 WORKERS, TRIALS, FENCES, st.sampled_from(TELLS))
REPORTS = st.builds(
    lambda worker, trial, fence, step, value: lambda story, i: story.report(worker, trial, step, value, fence),
    WORKERS, TRIALS, FENCES, st.integers(0, 2), st.sampled_from([0.5, 1, None]))
TIMES = st.builds(lambda seconds: lambda story, i: story.tick(story.now + seconds), st.sampled_from([1.0, 70.0, 700.0]))
REQUESTS = st.one_of(
    _request("study.pause"), _request("study.resume"), _request("study.enqueue", params={"x": 7}),
    _request("study.amend", changes={"budget": {"trials": 4}}), _request("study.amend", changes={"retry": {"lost": 0}}),
    _request("study.amend", changes={"space": {"x": {"type": "float", "low": 0, "high": 50}}}),
    _request("study.fork", **{"as": "t"}),
    _request("study.close", running="stop"), _request("study.close"), _request("worker.revoke", worker="w3"),
    _about("trial.cancel"), _about("trial.void", reason="a test"))
RESTARTS: st.SearchStrategy[Step] = st.just(lambda story, i: story.restart())

# Asks and ticks more often than the rest, or little would ever be leased.
STEPS = st.lists(st.one_of(ASKS, ASKS, TIMES, SAYS, SAYS, SAYS, BEATS, REPORTS, REQUESTS, RESTARTS), max_size=40)
SPECS: st.SearchStrategy[dict[str, Any]] = st.sampled_from([
    {}, {"retry": {"lost": 0, "crash": 1}}, {"budget": {"trials": 3}}, {"late": "ignore", "retry": {"lost": 1}},
    {"enqueue": [{"x": 1}, {"x": 2.5}], "budget": {"cost": 4}}])


def lived(spec: dict[str, Any], steps: list[Step]) -> Story:
    story = Story(**spec)
    for i, step in enumerate(steps):
        step(story, i)
    return story


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, STEPS, st.data())
def test_any_prefix_replays_and_the_rest_leads_to_the_same_state(
        spec: dict[str, Any], steps: list[Step], data: st.DataObject) -> None:
    story = lived(spec, steps)
    story.check()
    cut = data.draw(st.integers(0, len(story.rows)))
    events = [event_of(row.body, row.hash) for row in story.rows]
    half = replay(events[:cut])
    loaded = snapshot.load(*snapshot.dump(half))
    assert loaded is not None
    whole = snapshot.digest(story.desk.state)
    # Events hold their data, and the fold may keep it: each fold reads the bytes for itself.
    rest = [event_of(row.body, row.hash) for row in story.rows[cut:]]
    again = [event_of(row.body, row.hash) for row in story.rows[cut:]]
    assert snapshot.digest(replay(rest, half)) == whole
    assert snapshot.digest(replay(again, loaded)) == whole


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, st.lists(st.one_of(SAYS, REPORTS, BEATS, REQUESTS), max_size=30))
def test_doubles_change_nothing(spec: dict[str, Any], steps: list[Step]) -> None:
    story = Story(**spec)
    for worker in ("w1", "w2", "w3"):
        story.beat(worker)
        story.ask(worker, n=2)
    for i, step in enumerate(steps):
        step(story, i)
        before = len(story.rows)
        step(story, i)
        assert len(story.rows) == before, [row.type for row in story.rows[before:]]
    story.check()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, STEPS)
def test_counts_and_lists_say_what_the_trials_say(spec: dict[str, Any], steps: list[Step]) -> None:
    study = lived(spec, steps).desk.state.studies["s"]
    for status, count in study.counts.items():
        assert count == sum(trial.status == status for trial in study.trials)
    assert list(study.running.values()) == [study.trials[number - 1] for number in study.running]
    assert {trial.number for trial in study.trials if trial.status == "running"} == set(study.running)
    assert {trial.number for trial in study.trials if trial.status == "waiting"} == set(study.waiting)
    assert [trial.number for trial in study.trials] == list(range(1, len(study.trials) + 1))
    for trial in study.trials:
        assert [lease.fence for lease in trial.leases] == list(range(1, trial.fence + 1))
        assert (trial.open_lease is not None) == (trial.status == "running")
    complete = [trial.values[0] for trial in study.trials if trial.status == "complete" and trial.values is not None]
    assert (study.best.values[0] if study.best is not None and study.best.values else None) == min(
        complete, default=None)


def test_life_and_replay_read_the_same_numbers() -> None:
    """Canonical JSON writes 1.0 as 1 and -0.0 as 0, and both must be one state."""
    story = Story(enqueue=[{"x": 3.0}])
    story.ask("w1", n=3)
    story.tell("w1", 1, value=-0.0, seconds=2.0, cost=1.0)
    story.tell("w1", 2, folds=[1.0, 1.0])
    story.tell("w1", 3, values={"value": 2.0, "more": -0.0})
    story.check()


RANGE = {"type": "float", "low": 0, "high": 10}
WHOLE: dict[str, dict[str, Any]] = {
    "choices": {"space": {"x": RANGE, "k": {"type": "categorical", "choices": [1.0, 2.5]}}},
    "condition": {"space": {"x": RANGE, "k": {"type": "ordinal", "choices": [1, 2.5]},
                            "z": {**RANGE, "when": {"k": 1.0}}}},
    "centre": {"space": {"x": RANGE}, "prior": {"x": {"centre": 1.0}}},
    "order": {"space": {"x": RANGE, "a": RANGE}, "prior": {"x": {"centre": 2.5}, "a": {"centre": 3.0}}},
    "enqueued": {"space": {"x": RANGE, "k": {"type": "ordinal", "choices": [1, 2.5]}}, "enqueue": [{"x": 1, "k": 1.0}]}}


@pytest.mark.parametrize("spec", WHOLE.values(), ids=WHOLE)
def test_life_and_replay_read_the_same_declaration(spec: dict[str, Any]) -> None:
    """Canonical JSON writes 1.0 as 1 and sorts names, and a life goes on from what its log says."""
    story = Story(**spec)
    story.check()
    life, again = story.desk.state.studies["s"].spec, story.replayed().studies["s"].spec
    assert list(life.prior) == list(again.prior)
    story.request("op", "study.amend", id="a1", changes={"prior": spec.get("prior", {}), "space": spec["space"]})
    story.request("op", "study.fork", id="f1", **{"as": "t", "changes": {"space": spec["space"]}})
    story.check()


def test_a_choice_that_is_a_whole_float_is_the_same_in_a_fork_and_its_replay() -> None:
    space = {"x": RANGE, "k": {"type": "ordinal", "choices": [1.0, 2.5]}}
    story = Story(space=space, enqueue=[{"x": 1, "k": 1.0}])
    story.ask("w1")
    story.tell("w1", 1, value=1.0)
    space["k"] = {"type": "ordinal", "choices": [1.0, 2.5, 4.0]}
    story.request("op", "study.enqueue", id="e1", params={"x": 1, "k": 1.0})
    story.request("op", "study.amend", id="a1", changes={"space": space})
    story.request("op", "study.fork", id="f1", **{"as": "t", "changes": {"space": space}})
    assert story.desk.state.studies["t"].trials[0].params == {"x": 1.0, "k": 1}
    story.check()


def test_an_event_that_is_not_known_stops_the_start_unless_it_says_that_it_may_be_skipped() -> None:
    story = Story()
    body = orjson.loads(story.rows[-1].body)
    unknown = orjson.dumps({**body, "type": "study.danced", "crit": True})
    with pytest.raises(UnknownEvent, match=r"study\.danced"):
        event_of(unknown, bytes(32))
    skipped = event_of(orjson.dumps({**body, "type": "study.danced", "crit": False}), bytes(32))
    state = State()
    replay([skipped], state)
    assert (state.seq, state.studies) == (skipped.seq, {})


def test_a_snapshot_that_was_changed_is_not_believed() -> None:
    story = Story()
    digest, blob = snapshot.dump(story.desk.state)
    assert snapshot.load(digest, blob.replace(b'"x"', b'"y"')) is None
    assert snapshot.load(bytes(32), blob) is None
