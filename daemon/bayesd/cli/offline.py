"""A log file without a daemon: folded read-only, at its end or at any moment before.

What verifies is always shown; damage is then told, with its seq, and the verb ends with 65.
"""

import gc
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesd import moments, show
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
    at: dict[str, Any] | None = None
    """The moment, if one was asked for."""

    def must_be_whole(self) -> None:
        """Raise the damage, after everything that could be shown was shown."""
        if self.damage is not None:
            raise self.damage


class Folding:
    """Folds events as they come, up to the first that makes no sense; that is then the damage."""

    def __init__(self, on_event: "Callable[[State, Event], None] | None" = None, is_strict: bool = False,
                 on_row: "Callable[[Event, bytes], None] | None" = None) -> None:
        """Strict: the bytes must also be the canonical ones, so that every reader in every language reads the same."""
        self._states, self._service, self._log = need("bayesd.study.state"), need("bayesd.service"), need("bayesd.log")
        self._canonical = need("bayesd.study.canonical").canonical if is_strict else None
        self._loads = need("orjson").loads
        self._on_event, self._on_row = on_event, on_row
        self._first = self._last = b""
        self.folded = Folded(self._states.State())

    def take(self, events: Iterable[Sequence[Any]]) -> None:
        """Fold (seq, body, hash, ...) until the first damage."""
        folded, canonical, apply, event_in = self.folded, self._canonical, self._states.apply, self._service.event_in
        if folded.damage is not None:
            return
        for seq, body, hash, *_ in events:
            try:
                envelope = self._loads(body)
                if canonical is not None and canonical(envelope) != body:
                    folded.damage = self._log.Damaged(seq, "its bytes are not the canonical form of what they say")
                    return
                event = event_in(envelope, hash)
                apply(folded.state, event)
            except (KeyError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
                folded.damage = self._log.Damaged(
                    seq, f"its content makes no sense here ({type(error).__name__}: {error})")
                return
            folded.events += 1
            if self._on_event is not None:
                self._on_event(folded.state, event)
            if self._on_row is not None:
                self._on_row(event, body)
            self._first, self._last = self._first or body, body

    def done(self) -> "Folded":
        if self.folded.events:
            self.folded.first_time = self._loads(self._first).get("time")
            self.folded.time = self._loads(self._last).get("time")
        return self.folded


@contextmanager
def no_collecting() -> Iterator[None]:
    """A fold makes millions of objects and drops next to none: to look for garbage would be a third of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def fold(path: Path, at: str | None = None, *, until: int | None = None,
         on_event: "Callable[[State, Event], None] | None" = None,
         on_row: "Callable[[Event, bytes], None] | None" = None, what: str = "replaying") -> Folded:
    """Fold the events of a file up to `at` as people say it (a seq or a time), up to event `until`, or to the end."""
    log = need("bayesd.log")
    until = until if at is None else until_of(path, at)
    folding = Folding(on_event, on_row=on_row)
    with show.progress(what, count(path) if until is None else until) as advance, no_collecting():
        try:
            for event in log.read_events(path, 0, until):
                folding.take((event,))
                if folding.folded.damage is not None:
                    break
                if event[0] % 1000 == 0:
                    advance(event[0])
        except log.Damaged as damage:
            folding.folded.damage = damage
    folded = folding.done()
    if until is not None and folded.state.seq < until and folded.damage is None:
        raise Trouble(f"the log ends at event {folded.state.seq}: event {until} is not there", USAGE)
    if at is not None:
        folded.at = {"seq": folded.state.seq, "time": folded.time}
    return folded


def count(path: Path) -> int | None:
    """How many events there are, for a bar; the reading itself finds out whether they can be trusted."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT max(seq) FROM event").fetchone()[0]
            return found if isinstance(found, int) else None
    except sqlite3.Error:
        return None


def until_of(path: Path, at: str) -> int:
    """The seq that `at` names: itself, or the last event, in the order of the log, at or before a time."""
    try:
        wanted = moments.parse(at)
    except moments.NoMoment as error:
        raise Trouble(str(error), USAGE) from error
    if isinstance(wanted, int):
        return wanted
    found = moments.last_until(wanted, _times(path))
    if not found:
        raise Trouble(f"the log begins after {at}", USAGE)
    return found


def _times(path: Path) -> Iterator[tuple[int, str]]:
    log, loads = need("bayesd.log"), need("orjson").loads
    try:
        for seq, body, _ in log.read_events(path):
            yield seq, loads(body)["time"]
    except log.Damaged:
        pass        # the fold meets it again, if it is before that moment


def time_of(path: Path, seq: int) -> str | None:
    """When an event happened."""
    loads = need("orjson").loads
    return next((loads(body)["time"] for _, body, _ in need("bayesd.log").read_events(path, seq - 1, seq)), None)


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
            "spec": study.spec.model_dump(mode="json", exclude_unset=True), "queued": len(study.queue),
            **view.origin(study), **moment_of(folded)}


def trial_rows(folded: Folded, name: str) -> list[dict[str, Any]]:
    view = need("bayesd.study.view")
    return [view.trial_row(trial) for trial in study_of(folded, name).trials]


def trial_page(folded: Folded, name: str, number: int) -> dict[str, Any]:
    trials = study_of(folded, name).trials
    if number > len(trials):
        folded.must_be_whole()
        raise Trouble(f"{name} has {len(trials)} trials, no trial {number}")
    return {**need("bayesd.study.view").trial_page(trials[number - 1]), **moment_of(folded)}


def winner(folded: Folded, name: str, rule: str) -> dict[str, Any]:
    choose = need("bayesd.winner")
    study = study_of(folded, name)
    return {"study": name, **choose.choose(choose.entries(study), problem(folded, study), rule), **moment_of(folded)}


def moment_of(folded: Folded) -> dict[str, Any]:
    """As a daemon says it in its answers."""
    return {} if folded.at is None else {"at": folded.at}


def problem(folded: Folded, study: "Study") -> Any:
    """What the optimiser knows at this moment: the posterior is rebuilt from it."""
    return need("bayesd.study.desk").Desk(folded.state).problem(study)[0]


