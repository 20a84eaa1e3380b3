"""`bayesd log audit`: the proof that a log's suggestions are what its engine makes of its history."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bayesd import __version__, show
from bayesd.cli import offline
from bayesd.cli.common import USAGE, Trouble, Verb, format_option, need
from bayesd.cli.logs import log
from bayesd.show import Column

if TYPE_CHECKING:
    from bayesd.audit import Case, Plan, Verdict
    from bayesd.logfile import Damaged
    from bayesd.study.state import Event

BLOCK = 8           # cases that a process is given at a time
LISTED_MAX = 100    # differences that a report names; the first is told in full

_COLUMNS = (Column("level", "LEVEL"), Column("what", "WHAT"), Column("checked", "CHECKED", True),
            Column("same", "SAME", True), Column("tied", "TIED", True), Column("diverged", "DIVERGED", True),
            Column("to_the_bit", "TO THE BIT", True))


def register(top: click.Group) -> None:
    log.add_command(audit)


@click.command("audit", cls=Verb, example="bayesd log audit tuning.db\n"
               "bayesd log audit tuning.db --study digits-svm --from 5000 --jobs 4\n"
               "bayesd log audit tuning.db -f json | jq .first_difference")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--study", metavar="STUDY", help="Recompute this study alone.")
@click.option("--from", "from_seq", metavar="SEQ", type=click.IntRange(min=1), default=1,
              help="Recompute from this event on; bytes and state are checked from the first.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes that recompute.")
@format_option
def audit(file: Path, study: str | None, from_seq: int, jobs: int, format: str) -> None:
    """Recompute every suggestion of FILE, offline.

    L0 bytes and chain; L1 state, points by hand, winners and forks; L2 where the engine (versions, BLAS kernel,
    processor features) is the one that wrote them: points, acquisitions and fits, bit for bit; L3 elsewhere: the same
    point, or a tied one, whose acquisition is as high to one in a million. What a plainer sampler answered since the
    model was slow or broke is counted by itself: that it was so, no log can prove. Ends with 1 when anything differs,
    65 when FILE is damaged.
    """
    report, damage = audited(file, study, from_seq, jobs)
    _show(format, report)
    if damage is not None:
        raise damage
    if not report["passed"]:
        raise Trouble(f"{report['differences']} of {_checked(report)} answers are not what this engine says; the first "
                      f"is event {report['first_difference']['seq']}")


def audited(file: Path, study: str | None = None, from_seq: int = 1,
            jobs: int = 1) -> tuple[dict[str, Any], "Damaged | None"]:
    """(report, damage) of a file: what can be said of the events before the damage, if there is any."""
    audits = need("bayesd.audit")
    proof, damage = _bytes(file)
    if isinstance(damage, need("bayesd.logfile").NoLog):
        raise damage            # there is nothing to show of it
    if damage is None and from_seq > proof.seq:
        raise Trouble(f"the log ends at event {proof.seq}: event {from_seq} is not there", USAGE)
    plan: Plan = audits.Plan(study, from_seq)
    folded, state, damage = _state(file, proof.seq, plan, damage)
    if study is not None and study not in folded.state.studies:
        offline.study_of(folded, study)
    here = need("bayesd.fingerprint").fingerprint(__version__)
    engine = need("bayesd.study.desk").engine_id(here)
    with show.progress("recomputing", len(plan.cases)) as advance:
        verdicts = _judged(file, plan.last, plan.cases, engine, jobs, advance)
    failed = [each for each in verdicts if each.outcome == "diverged"]
    ties = [each for each in verdicts if each.outcome == "tied"]
    events = max(offline.count(file) or 0, proof.events) if proof.damage is not None else proof.events
    levels = [_level("L0", "bytes, chain, signed heads", events, events - proof.events), state, *audits.table(verdicts)]
    report = {
        "file": str(file), "log": proof.log, "events": folded.events, "head": proof.hash.hex(),
        "study": study, "from": from_seq, "engine": engine, "here": here,
        "engines": [{"fingerprint": name, "seq": seq, "here": name == engine, "apart": audits.apart(said, here)}
                    for name, (seq, said) in plan.engines.items()],
        "levels": levels, "enqueued": plan.enqueued, "unknown_samplers": dict(plan.unknown),
        "not_reproduced": sum(not each.reproduced for each in verdicts),
        "fallbacks": dict(Counter(each.fallback for each in verdicts if each.fallback)),
        "passed": damage is None and not failed, "differences": len(failed),
        "first_difference": _difference(failed[0], plan, here) if failed else None,
        "diverged": [_brief(each) for each in failed[:LISTED_MAX]],
        "ties": [{**_brief(each), **_evidence_of_tie(each)} for each in ties[:LISTED_MAX]],
        "damage": None if damage is None else damage.why, "damaged_seq": None if damage is None else damage.seq}
    return report, damage


# --- L0 and L1 -----------------------------------------------------------------------------------------


def _bytes(file: Path) -> tuple[Any, "Damaged | None"]:
    """L0: everything that `verify` proves of the bytes. Whatever else it learns to prove counts here as well."""
    with show.progress("verifying", offline.count(file)) as advance:
        proof = need("bayesd.log").verify(file, on_progress=advance)
    return proof, proof.damage


def _state(file: Path, until: int, plan: "Plan",
           damage: "Damaged | None") -> tuple[offline.Folded, dict[str, Any], "Damaged | None"]:
    """L1: the fold is what every saved digest says. On the way the plan is made."""
    states = offline.Recorded(file)

    def look(state: Any, event: "Event") -> None:
        plan.note(event)
        states.look(state, event)

    folded = offline.fold(file, until=until, on_event=look, what="folding")
    damage = damage or folded.damage or states.damage
    return folded, _level("L1", "states on record", states.compared, int(states.damage is not None)), damage


def _level(level: str, what: str, checked: int, wrong: int) -> dict[str, Any]:
    return {"level": level, "what": what, "checked": checked, "same": checked - wrong, "tied": 0, "diverged": wrong,
            "to_the_bit": checked - wrong}


# --- L2 and L3, in one process or in many --------------------------------------------------------------


class _Walk:
    """A walk along the log that stops at what it is told to judge: forward only, so one fold serves all."""

    def __init__(self, file: Path, until: int, cases: "Sequence[Case]", engine: str) -> None:
        self._audit = need("bayesd.audit")
        self._moments = self._audit.moments(_events(file, until), cases)
        self._engine = engine

    def judge(self, seqs: Sequence[int]) -> "Iterator[Verdict]":
        wanted = set(seqs)
        for moment in self._moments:
            if moment.event.seq in wanted:
                yield self._audit.judge(moment, self._engine)
            if moment.event.seq == seqs[-1]:
                return


def _events(file: Path, until: int) -> "Iterator[Event]":
    event_of = need("bayesd.replay").event_of
    return (event_of(body, hash) for _, body, hash in need("bayesd.log").read_events(file, 0, until))


def _judged(file: Path, until: int, cases: "Sequence[Case]", engine: str, jobs: int,
            advance: Callable[[int], None]) -> "list[Verdict]":
    """The verdict of each case, in order. Teacher forcing makes them independent, so any process may take any."""
    blocks = [[case.seq for case in cases[at:at + BLOCK]] for at in range(0, len(cases), BLOCK)]
    found: dict[int, list[Verdict]] = {}
    done = 0
    if jobs == 1 or len(blocks) < 2:
        walk = _Walk(file, until, cases, engine)
        for at, block in enumerate(blocks):
            found[at] = list(walk.judge(block))
            advance(done := done + len(block))
    else:
        # Spawned: a fork would inherit the threads of BLAS without the threads.
        with ProcessPoolExecutor(min(jobs, len(blocks)), multiprocessing.get_context("spawn"), _begin,
                                 (file, until, list(cases), engine)) as pool:
            # Blocks are taken in this order, so a process is only ever asked for what lies before it.
            tasks = {pool.submit(_judge_block, block): at for at, block in enumerate(blocks)}
            for task in as_completed(tasks):
                at = tasks[task]
                found[at] = task.result()
                advance(done := done + len(blocks[at]))
    return [verdict for at in sorted(found) for verdict in found[at]]


_walk: _Walk | None = None      # of a process that recomputes


def _begin(file: Path, until: int, cases: "Sequence[Case]", engine: str) -> None:
    global _walk
    _walk = _Walk(file, until, cases, engine)


def _judge_block(block: Sequence[int]) -> "list[Verdict]":
    assert _walk is not None
    return list(_walk.judge(block))


# --- What is shown -------------------------------------------------------------------------------------


def _brief(verdict: "Verdict") -> dict[str, Any]:
    return {"seq": verdict.seq, "study": verdict.study, "trial": verdict.trial, "what": verdict.what,
            "level": verdict.level, "outcome": verdict.outcome, "sampler": verdict.sampler}


def _evidence_of_tie(verdict: "Verdict") -> dict[str, Any]:
    evidence = verdict.evidence or {}
    return {name: evidence[name] for name in (
        "acquisition_of_recorded", "acquisition_of_recomputed", "doubt_of_recorded", "doubt_of_recomputed", "apart")
        if name in evidence}


def _difference(verdict: "Verdict", plan: "Plan", here: dict[str, Any]) -> dict[str, Any]:
    audits = need("bayesd.audit")
    there = (verdict.evidence or {}).get("engine")
    differences = audits.apart(plan.engines[there][1], here) if there in plan.engines else []
    return {**_brief(verdict), **(verdict.evidence or {}), "next": audits.what_next(verdict, differences)}


def _checked(report: dict[str, Any]) -> int:
    return sum(row["checked"] for row in report["levels"][2:])      # but for bytes and saved states


def _show(format: str, report: dict[str, Any]) -> None:
    if format != "table":
        show.record(format, report, [], ["passed" if report["passed"] else "failed", _checked(report),
                                         report["differences"], report["head"]])
        return
    show.rows("table", report["levels"], _COLUMNS)
    others = [("enqueued by hand", report["enqueued"]), ("answered by a plainer sampler", report["fallbacks"]),
              ("of samplers that this version does not have", report["unknown_samplers"])]
    lines = [(label, value) for label, value in others if value]
    lines += [("another engine from event " + str(each["seq"]), "; ".join(each["apart"]))
              for each in report["engines"] if not each["here"]]
    show.record("table", {}, [("", ""), *lines] if lines else [], [])
    if report["first_difference"] is not None:
        show.record("table", {}, [("", ""), *_page(report["first_difference"])], [])


def _page(first: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The first difference in full: nothing is rounded."""
    trial = "" if first["trial"] is None else f", trial {first['trial']}"
    yield "first difference", f"event {first['seq']}: {first['what']} of {first['study']}{trial}"
    yield "differs in", ", ".join(first.get("differs", []))
    for name in ("recorded", "recomputed"):
        answer = first.get(name) or {}
        yield name, "nothing" if not answer else ""
        for key, value in answer.items():
            yield f"  {key}", repr(value)
    for name in ("acquisition_of_recorded", "acquisition_of_recomputed", "doubt_of_recorded", "doubt_of_recomputed",
                 "apart", "broke", "as_of", "fit", "pending", "ahead", "number", "engine"):
        if name in first:
            yield name.replace("_", " "), repr(first[name])
    yield "next", first["next"]
