"""`bayesd log diff`: what changed between two moments of a log."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.cli import offline
from bayesd.cli.common import USAGE, Trouble, format_option, need, verb
from bayesd.cli.freetext import words_of
from bayesd.cli.logs import log

SHOWN_MAX = 20      # outcomes of a study that a table lists

Line = tuple[str, Any]


def register(top: click.Group) -> None:
    """It is a verb of `log`, which has its own module."""


@verb(log, "diff", "bayesd log diff tuning.db 120\n"
                   "bayesd log diff tuning.db 2026-11-23T09:00:00Z 2026-11-24T09:00:00Z -f json")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", required=False)
@format_option
def diff(file: Path, a: str, b: str | None, format: str) -> None:
    """What changed between two moments.

    A and B are each the seq of an event or a time; without B: up to the end. Shown are, of each study that
    changed, its trials by state, new outcomes, the best before and after, fits, every changed key of its
    declaration, voided results, elapsed time and cost; and workers that came or were revoked.
    """
    diffs, snapshot = need("bayesd.study.diff"), need("bayesd.study.snapshot")
    since, until = offline.until_of(file, a), None if b is None else offline.until_of(file, b)
    if until is not None and since > until:
        raise Trouble(f"A is event {since} and comes after B, event {until}: give the earlier one first", USAGE)
    found: Any = None
    words = words_of(file)

    def note(state: Any, event: Any) -> None:
        nonlocal found
        if event.seq > since:
            found.note(event)
        elif event.seq == since:
            found = diffs.Diff(snapshot.load(*snapshot.dump(state)), words)      # a copy: the fold goes on
    folded = offline.fold(file, until=until, on_event=note)
    if found is None:
        folded.must_be_whole()
        raise Trouble(f"the log ends at event {folded.state.seq}: event {since} is not there", USAGE)
    changed = {"from": {"seq": since, "time": offline.time_of(file, since)},
               "to": {"seq": folded.state.seq, "time": folded.time}, **found.against(folded.state)}
    show.record(format, changed, list(_lines(changed)), [sum(changed["events"].values()), len(changed["studies"])])
    folded.must_be_whole()


def _lines(changed: dict[str, Any]) -> Iterator[Line]:
    for label in ("from", "to"):
        yield label, f"event {changed[label]['seq']}, {changed[label]['time']}"
    yield "events", show.params(changed["events"]) or "none"
    workers = changed["workers"]
    for label, names in (("came", workers["came"]), ("began again", workers["began_again"])):
        if names:
            yield label, names
    for each in workers["revoked"]:
        yield "revoked", f"{each['worker']}: {each['reason']}"
    if changed["engine_changed"]:
        yield "engine", "another machine or other libraries make the suggestions"
    for study in changed["studies"]:
        yield "", ""
        yield from _study(study)


def _study(study: dict[str, Any]) -> Iterator[Line]:
    name = study["study"]
    if "origin" in study and study["is_new"]:
        name += f", a new fork of {study['origin']['study']}"
    elif study["is_new"]:
        name += ", new"
    yield "study", name
    if study["state"][0] != study["state"][1]:
        by = f" by {study['closed_by']}" if study["closed_by"] else ""
        yield "state", f"{_arrow(study['state'])}{by}"
    for state, pair in study["trials"].items():
        if pair[0] != pair[1]:
            yield state, _arrow(pair)
    if study["imported"][0] != study["imported"][1]:
        yield "imported", _arrow(study["imported"])
    yield "best", _best(study)
    for key, pair in study["spec"].items():
        yield key, _arrow(pair)
    if study["fits"]:
        last = study["fitted_on"][1]
        yield "fits", f"{study['fits']}" + (f", the last on {last} outcomes" if last is not None else "")
    for label, key, text in (("elapsed", "elapsed_s", show.duration), ("cost", "cost", show.cell),
                             ("training", "told_seconds", show.duration)):
        before, after = study[key]
        if before != after:
            yield label, f"{text(before)} -> {text(after)}"
    for void in study["voided"]:
        value = f" {show.cell(void['values'])}" if void["values"] else ""
        yield "voided", f"trial {void['trial']}, was {void['was'] or 'not there'}{value}: {void['reason']}"
    if study["late"]:
        yield "late", f"{study['late']} outcomes with an older fence"
    outcomes = study["outcomes"]
    for each in outcomes[:SHOWN_MAX]:
        words = show.cell(each["values"]) if each["values"] else each["class"] or ""
        yield f"trial {each['trial']}", f"{each['state']} {words}  {each['worker'] or each['sampler']}"
    if len(outcomes) > SHOWN_MAX:
        yield "", f"and {len(outcomes) - SHOWN_MAX} more outcomes; -f json has them all"


def _best(study: dict[str, Any]) -> str:
    before, after = study["best"]
    if before == after:
        return f"{_one(after)}, as before" if after is not None else "none yet"
    gained = study["gained"]
    words = "" if gained is None else f", {'better' if gained >= 0 else 'worse'} by {abs(gained):.4g}"
    return f"{_one(before)} -> {_one(after)}{words}"


def _one(best: dict[str, Any] | None) -> str:
    return "none" if best is None else f"{show.cell(best['value'])} (trial {best['trial']})"


def _arrow(pair: list[Any]) -> str:
    return f"{show.cell(pair[0])} -> {show.cell(pair[1])}"
