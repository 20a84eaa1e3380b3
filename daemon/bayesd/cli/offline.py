"""A log file without a daemon: folded read-only, at its end or at any moment before.

What verifies is always shown; damage is then told, with its seq, and the verb ends with 65.
"""

import datetime
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesd import show
from bayesd.cli.common import USAGE, Trouble, need

if TYPE_CHECKING:
    from bayesd.log import Damaged
    from bayesd.study.state import Event, State, Study


@dataclass(slots=True)
class Folded:
    """What a file says up to a moment, and where it stops making sense, if it does."""

    state: "State"
    events: int = 0
    time: str | None = None
    """When the last folded event happened."""
    first_time: str | None = None
    damage: "Damaged | None" = None

    def must_be_whole(self) -> None:
        """Raise the damage, after everything that could be shown was shown."""
        if self.damage is not None:
            raise self.damage


def fold(path: Path, at: str | None = None, *, on_event: "Callable[[State, Event], None] | None" = None,
         on_row: "Callable[[Event, bytes], None] | None" = None, what: str = "replaying") -> Folded:
    """Fold the events of a file up to `at`: a seq, a time, or the end."""
    log, service, states = need("bayesd.log"), need("bayesd.service"), need("bayesd.study.state")
    canonical = need("orjson").loads
    until = None if at is None else _until(path, at)
    folded = Folded(states.State())
    with show.progress(what, count(path) if until is None else until) as advance:
        try:
            for seq, body, hash in log.read_events(path, 0, until):
                event = service.event_of(body, hash)
                try:
                    states.apply(folded.state, event)
                except (KeyError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
                    raise log.Damaged(
                        seq, f"its content makes no sense here ({type(error).__name__}: {error})") from error
                folded.events += 1
                if on_event is not None:
                    on_event(folded.state, event)
                if on_row is not None:
                    on_row(event, body)
                if seq == 1:
                    folded.first_time = canonical(body).get("time")
                if seq % 1000 == 0:
                    advance(seq)
                last = body
        except log.Damaged as damage:
            folded.damage = damage
    if until is not None and folded.state.seq < until and folded.damage is None:
        show.talk(f"the log ends at event {folded.state.seq}")
    if folded.events:
        folded.time = canonical(last).get("time")
    return folded


def count(path: Path) -> int | None:
    """How many events there are, for a bar; the reading itself finds out whether they can be trusted."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT max(seq) FROM event").fetchone()[0]
            return found if isinstance(found, int) else None
    except sqlite3.Error:
        return None


def _until(path: Path, at: str) -> int:
    """The seq that `at` names: itself, or the last event, in the order of the log, at or before a time."""
    if at.isdigit():
        return int(at)
    wanted = moment(at)
    log, loads = need("bayesd.log"), need("orjson").loads
    found = 0
    try:
        for seq, body, _ in log.read_events(path):
            if moment(loads(body)["time"]) <= wanted:
                found = seq
    except log.Damaged:
        pass        # the fold meets it again, if it is before that moment
    if not found:
        raise Trouble(f"the log begins after {at}", USAGE)
    return found


def moment(text: str) -> datetime.datetime:
    """A time as people write it; without a zone it is UTC, like all times in a log."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise Trouble(f"{text!r} is neither a seq nor a time, for example --at 120 or --at 2026-11-23T09:00:00Z",
                      USAGE) from error
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def study_of(folded: Folded, name: str) -> "Study":
    study = folded.state.studies.get(name)
    if study is None:
        folded.must_be_whole()
        known = ", ".join(folded.state.studies) or "none"
        raise Trouble(f"this log has no study {name!r}; it has {known}")
    return study


# --- The reads of a daemon, from a file ------------------------------------------------------------


def study_rows(folded: Folded) -> list[dict[str, Any]]:
    view = need("bayesd.study.view")
    return [view.study_row(study) for _, study in sorted(folded.state.studies.items())]


def study_page(folded: Folded, name: str) -> dict[str, Any]:
    view = need("bayesd.study.view")
    study = study_of(folded, name)
    return {**view.study_state(folded.state, study, study.elapsed_s),
            "spec": study.spec.model_dump(mode="json", exclude_unset=True), "queued": len(study.queue)}


def trial_rows(folded: Folded, name: str) -> list[dict[str, Any]]:
    view = need("bayesd.study.view")
    return [view.trial_row(trial) for trial in study_of(folded, name).trials]


def trial_page(folded: Folded, name: str, number: int) -> dict[str, Any]:
    trials = study_of(folded, name).trials
    if number > len(trials):
        folded.must_be_whole()
        raise Trouble(f"{name} has {len(trials)} trials, no trial {number}")
    page: dict[str, Any] = need("bayesd.study.view").trial_page(trials[number - 1])
    return page


def winner(folded: Folded, name: str, rule: str) -> dict[str, Any]:
    choose = need("bayesd.winner")
    study = study_of(folded, name)
    return {"study": name, **choose.choose(choose.entries(study), problem(folded, study), rule)}


def problem(folded: Folded, study: "Study") -> Any:
    """What the optimiser knows at this moment: the posterior is rebuilt from it."""
    return need("bayesd.study.desk").Desk(folded.state).problem(study)[0]


