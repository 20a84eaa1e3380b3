"""What an audit says of the stops of a story."""

from typing import Any

from tests.study.story import Story

from bayesd import audit
from bayesd.replay import event_of
from bayesd.study.state import Event


def stops_are_made_again(story: Story, **edit: Any) -> Event:
    """Several stops are on record, each is found again, and the last one is not once it is edited; that one."""
    rows = [event_of(row.body, row.hash) for row in story.rows]
    plan = audit.Plan()
    for event in rows:
        plan.note(event)
    stops = [case for case in plan.cases if rows[case.seq - 1].type == "trial.stopped"]
    assert len(stops) > 3
    assert {audit.judge(each, "").outcome for each in audit.moments(rows, stops)} == {"same"}
    place = stops[-1].seq - 1
    edited = rows[place]._replace(data={**rows[place].data, **edit})
    seen = list(audit.moments([*rows[:place], edited, *rows[place + 1:]], stops))
    assert audit.judge(seen[-1], "").outcome == "diverged"
    return rows[place]
