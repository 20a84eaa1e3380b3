"""Old events are read in today's shape, and never rewritten."""

from typing import Any

import orjson
import pytest
from tests.study.story import Story

from bayesd.replay import event_of
from bayesd.study import snapshot
from bayesd.study.fold import UnknownEvent, apply, refuse_newer
from bayesd.study.row import Row
from bayesd.study.state import State
from bayesd_schemas import events, upcast

Data = dict[str, Any]


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in which version 1 of trial.completed called its values `result`, and version 2 had no seconds."""
    def second(data: Data) -> Data:
        return {"values": data["result"], **{name: each for name, each in data.items() if name != "result"}}

    def third(data: Data) -> Data:
        return {"seconds": 1.0, **data}
    monkeypatch.setitem(upcast.STEPS, ("trial.completed", 1), second)
    monkeypatch.setitem(upcast.STEPS, ("trial.completed", 2), third)
    monkeypatch.setitem(upcast.VERSIONS, "trial.completed", 3)


def told() -> tuple[Story, Data]:
    story = Story()
    story.ask("w1")
    story.tell("w1", 1, value=0.5, seconds=1.0)
    return story, orjson.loads(next(row.body for row in story.rows if row.type == "trial.completed"))


def test_every_version_of_an_event_folds_to_the_same_state(renamed: None) -> None:
    story, newest = told()
    assert newest["tv"] == 3
    data = {name: each for name, each in newest["data"].items() if name not in ("values", "seconds")}
    oldest = {**newest, "tv": 1, "data": {**data, "result": {"value": 0.5}}}
    older = {**newest, "tv": 2, "data": {**data, "values": {"value": 0.5}}}
    digests = set()
    for body in (newest, older, oldest):
        before = orjson.dumps(body)
        events.validate(body)
        state = State()
        for row in story.rows:
            same = row.seq == body["seq"]
            apply(state, event_of(Row.of(body).body if same else row.body, row.hash))
        digests.add(snapshot.digest(state))
        assert orjson.dumps(body) == before
    assert digests == {snapshot.digest(story.desk.state)}
    assert story.desk.state.studies["s"].trials[0].values == (0.5,)


def test_an_event_of_a_later_version_is_like_an_unknown_type(renamed: None) -> None:
    body = told()[1]
    with pytest.raises(UnknownEvent, match=r"'trial.completed', version 4"):
        refuse_newer({**body, "tv": 4})
    assert refuse_newer({**body, "tv": 4, "crit": False})
    assert not refuse_newer({**body, "tv": 3})
    assert not refuse_newer({**body, "tv": 1})


def test_steps_have_no_holes() -> None:
    assert upcast.versions({("a", 1): dict, ("a", 2): dict, ("b", 1): dict}) == {"a": 3, "b": 2}
    with pytest.raises(ValueError, match="no step from version 1 of a"):
        upcast.versions({("a", 2): dict})


def test_what_needs_no_step_is_handed_through() -> None:
    data = {"fence": 1}
    assert upcast.upcast("trial.completed", 1, data) is data
    assert upcast.versions(upcast.STEPS) == upcast.VERSIONS
