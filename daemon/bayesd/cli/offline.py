"""A log file without a daemon: folded read-only, at its end or at any moment before.

What verifies is always shown; damage is then told, with its seq, and the verb ends with 65.
"""

import gc
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesd import moments, show
from bayesd.cli.common import USAGE, Trouble, need

if TYPE_CHECKING:
    from bayesd.evidence import Head
    from bayesd.log import Damaged, Report
    from bayesd.study.fold import UnknownEvent
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
    newer: "UnknownEvent | None" = None
    """The first event that only a later release can fold: no damage, unless something else is wrong as well."""
    at: dict[str, Any] | None = None
    """The moment, if one was asked for."""

    def must_be_whole(self) -> None:
        """Raise the damage, after everything that could be shown was shown."""
        if self.damage is not None:
            raise self.damage


class Folding:
    """Folds events as they come, up to the first that makes no sense; that is then the damage."""

    def __init__(self, on_event: "Callable[[State, Event], None] | None" = None,
                 on_row: "Callable[[Event, bytes], None] | None" = None) -> None:
        self._log, self._unknown = need("bayesd.log"), need("bayesd.study.fold").UnknownEvent
        self._replay = need("bayesd.replay").Replay()
        self._on_event, self._on_row = on_event, on_row
        self._first = self._last = b""
        self.folded = Folded(self._replay.state)

    def take(self, events: Iterable[Sequence[Any]]) -> None:
        """Fold (seq, body, hash, ...) until the first damage."""
        folded, take, on_event, on_row = self.folded, self._replay.take, self._on_event, self._on_row
        if folded.damage is not None or folded.newer is not None:
            return
        for row in events:
            body = row[1]
            try:
                event = take(row[0], body, row[2])
            except self._unknown as error:
                folded.newer = error
                return
            except self._log.Damaged as error:
                folded.damage = error
                return
            folded.events += 1
            if on_event is not None:
                on_event(folded.state, event)
            if on_row is not None:
                on_row(event, body)
            if folded.events == 1:
                self._first = body
            self._last = body

    def done(self) -> "Folded":
        if self.folded.events:
            loads = need("orjson").loads
            self.folded.first_time, self.folded.time = loads(self._first).get("time"), loads(self._last).get("time")
        return self.folded


class Recorded:
    """States of the past that are on record, compared with the ones that the events make.

    A snapshot is a cache from which a daemon would start, so it must be the state at its event; and a daemon that
    stopped may have written into the log what its state was.
    """

    def __init__(self, file: Path) -> None:
        self._snapshot, self._log = need("bayesd.study.snapshot"), need("bayesd.log")
        self._saved: dict[int, Any] = {}
        self._wanted: set[int] = set()
        self._made: dict[int, str] = {}
        self.compared = 0
        self.damage: Any = None
        logfile = need("bayesd.logfile")
        with suppress(sqlite3.Error, UnicodeDecodeError, self._log.LogError), logfile.reading(file.resolve()) as db:
            # A hint of where to look; what is wrong with the file itself, `verify` says.
            for row in db.execute("SELECT seq, codec, digest, blob FROM snapshot"):
                self._saved[row[0]] = self._log.Snapshot(*row)
            for (body,) in db.execute("SELECT body FROM event WHERE type = 'daemon.stopped'"):
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._wanted.add(need("orjson").loads(body)["data"]["snapshot"]["seq"])
        self.snapshots = len(self._saved)
        self.seqs = self._wanted | self._saved.keys()
        """Of the events to look at, beside those of the type `daemon.stopped`."""

    def look(self, state: "State", event: "Event") -> None:
        """After each event that is of `seqs` or that of a daemon which stopped."""
        seq = event.seq
        if seq in self.seqs:
            made = self._made[seq] = self._snapshot.digest(state)
            saved = self._saved.get(seq)
            if saved is not None and saved.codec == self._snapshot.CODEC:
                self.compared += 1
                if saved.digest.hex() != made or sha256(saved.blob).hexdigest() != made:
                    self._is_damaged(seq, "its snapshot, a cache, is not the state that the events make")
        if event.type == "daemon.stopped" and (said := event.data.get("snapshot")) is not None \
                and said["codec"] == self._snapshot.CODEC:
            self.compared += 1
            if said["digest"] != self._made.get(said["seq"]):
                self._is_damaged(seq, f"the state that it records for event {said['seq']} is not what the events make")

    def done(self, last: int) -> None:
        """All events up to `last` were looked at."""
        for seq, saved in self._saved.items():
            if seq > last and saved.codec == self._snapshot.CODEC:
                self._is_damaged(last + 1, f"its snapshot, a cache, is of event {seq}, which is not there")

    def _is_damaged(self, seq: int, why: str) -> None:
        if self.damage is None:
            self.damage = self._log.Damaged(seq, why)


@dataclass(frozen=True, slots=True)
class Examined:
    """All that a file can be asked: its bytes and notes, its states, and the first thing that is wrong."""

    report: "Report"
    folded: Folded
    recorded: Recorded
    texts: dict[str, int]
    """How many of the texts that events refer to are kept, redacted, missing."""
    damage: "Damaged | None"


class Texts:
    """Which of the texts that events refer to are there."""

    def __init__(self) -> None:
        module = need("bayesd.study.texts")
        self._of = module.ref_of
        self.types = frozenset((*module.FREE, "text.redacted"))
        """Of the events to look at."""
        self._referred, self._redacted = dict[str, int](), set[str]()

    def look(self, event: Any) -> None:
        ref = self._of(event.type, event.data)
        if ref is not None:
            self._referred.setdefault(ref, event.seq)
        elif event.type == "text.redacted":
            self._redacted.update(event.data["refs"])

    def among(self, there: Set[str]) -> dict[str, int]:
        referred = self._referred.keys()
        return {"kept": len(referred & there), "redacted": len((referred & self._redacted) - there),
                "missing": len(referred - self._redacted - there)}

    def damage(self, was: dict[str, str], now: dict[str, str], last: int) -> "Damaged | None":
        """Texts that came or went without an event. A daemon may be at work: what was there before the events were
        read must be in one of them, and what they refer to must have been there before or be there after them."""
        from bayesd.logfile import Damaged
        from bayesd.segments import LEFT_OUT
        from bayesd.study.texts import reference
        marks = {ref: int(text) for ref, text in was.items()
                 if len(text) < 20 and text.isdecimal() and reference(LEFT_OUT, text) == ref}
        left_out = max(marks.values(), default=0)       # put together from segments: `missing` says how many
        before, after = was.keys() - marks, now.keys()
        missing = {ref for ref in self._referred.keys() - self._redacted - before - after
                   if self._referred[ref] > left_out}
        if missing:
            first = min(missing, key=self._referred.__getitem__)
            return Damaged(
                self._referred[first], f"{len(missing)} of its texts are not there and no event says that they were "
                f"redacted; the first is {first}", remedy=
                "The events verify all the same. If this file was put together from segments, which hold no text, do "
                "it again with the log or a backup that has them: bayesd log import SEGMENT... LOG -o NEW. If texts "
                "were deleted from a copy by hand, take a new copy of the log after bayesd log redact, which puts "
                "on record what it deletes. Otherwise restore a backup")
        again = (before & after) & self._redacted
        strange = before - self._referred.keys()
        if strange or again:
            which = sorted(strange or again)[0]
            return Damaged(
                last + 1, f"{len(strange or again)} of its texts "
                f"{'belong to no event' if strange else 'were redacted and are there again'}; the first is {which}",
                remedy="The events verify all the same. If a table was copied into this file, or a copy was cut short, "
                "restore a backup or copy the whole file again with the daemon stopped; else keep a copy and delete "
                "what nobody said (it is in the table text)")
        return None


def examine(file: Path, on_progress: Callable[[int], None] | None = None, keys: Sequence[str] = (),
            heads: "Sequence[Head]" = ()) -> Examined:
    """Bytes, chain and notes, and in the same pass the states. Raises what `logfile.verify` raises."""
    recorded, texts = Recorded(file), Texts()

    def look(state: "State", event: "Event") -> None:
        if event.type in texts.types:
            texts.look(event)
        if event.seq in recorded.seqs or event.type == "daemon.stopped":
            recorded.look(state, event)

    read_texts, logs = need("bayesd.logfile").read_texts, need("bayesd.log")
    before: dict[str, str] = {}
    with suppress(sqlite3.Error, UnicodeDecodeError, logs.LogError):        # what is wrong with the file, `verify` says
        before = read_texts(file)
    folding = Folding(look)
    with no_collecting():
        report = need("bayesd.log").verify(file, on_progress, keys=keys, heads=heads, on_events=folding.take)
    folded = folding.done()
    if report.is_whole and folded.damage is None:
        recorded.done(report.seq)
    damage = report.damage
    for other in (folded.damage, recorded.damage):
        if other is not None and (damage is None or other.seq < damage.first):
            damage = other          # what comes first in the log is what to look at
    if damage is None and folded.newer is not None:
        raise folded.newer
    there = read_texts(file) if report.is_whole else {}
    if report.is_whole and damage is None:
        damage = texts.damage(before, there, report.seq)
    return Examined(report, folded, recorded, texts.among(there.keys()), damage)


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
                if folding.folded.newer is not None:
                    raise folding.folded.newer
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
            **view.origin(study), **view.confirmation(study), **moment_of(folded)}


def front(folded: Folded, name: str) -> dict[str, Any]:
    found: dict[str, Any] = need("bayesd.front").later(study_of(folded, name))()
    return {**found, "size": len(found["trials"])}


def trial_rows(folded: Folded, name: str) -> list[dict[str, Any]]:
    view = need("bayesd.study.view")
    return [view.trial_row(trial) for trial in study_of(folded, name).trials]


def trial_page(folded: Folded, name: str, number: int) -> dict[str, Any]:
    trials = study_of(folded, name).trials
    if number > len(trials):
        folded.must_be_whole()
        raise Trouble(f"{name} has {len(trials)} trials, no trial {number}")
    return {**need("bayesd.study.view").trial_page(trials[number - 1]), **moment_of(folded)}


def data_of(file: Path, seq: int) -> dict[str, Any]:
    """The data of one event."""
    for _, body, _ in need("bayesd.logfile").read_events(file, seq - 1, seq):
        data: dict[str, Any] = need("orjson").loads(body)["data"]
        return data
    return {}


def winner(folded: Folded, name: str, rule: str | None) -> dict[str, Any]:
    choose = need("bayesd.winner")
    study = study_of(folded, name)
    return {"study": name, **choose.of(study, problem(folded, study), rule), **moment_of(folded)}


def moment_of(folded: Folded) -> dict[str, Any]:
    """As a daemon says it in its answers."""
    return {} if folded.at is None else {"at": folded.at}


def problem(folded: Folded, study: "Study") -> Any:
    """What the optimiser knows at this moment: the posterior is rebuilt from it."""
    return need("bayesd.study.desk").Desk(folded.state).problem(study)[0]


