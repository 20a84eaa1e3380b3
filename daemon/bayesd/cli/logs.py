"""`bayesd log`: prove a log, replay it to any moment, read it, carry it away."""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import Client
from bayesd.cli import offline, phrases, proofs
from bayesd.cli.common import USAGE, Reaching, Trouble, format_option, need, reaching, verb
from bayesd.cli.proofs import DAMAGED, asking, heads_of, key_option, keys_of
from bayesd.show import Column

POLL_S = 0.5
IO = 74
FOREIGN = "under the key that was given"        # as the evidence says it of a note by another key


def register(top: click.Group) -> None:
    top.add_command(log)
    proofs.register(log)


@click.group()
def log() -> None:
    """Prove, replay, read or export a log."""


_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


# --- Verify ------------------------------------------------------------------------------------------


@verb(log, "verify", "bayesd log verify tuning.db\nbayesd log verify tuning.db --key log.vkey --head heads.txt\n"
                     "bayesd log verify archive/*.jsonl.gz tuning.db")
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True, metavar="FILE...")
@key_option
@click.option("--head", "heads", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="A file of signed notes kept elsewhere: the log must still hold what they were signed over.")
@format_option
def verify(files: tuple[Path, ...], keys: tuple[str, ...], heads: tuple[Path, ...], format: str) -> None:
    """Check bytes, chain, signed notes and state, offline.

    FILE is a log, or segments of one (see log archive) in any order, with or without the log itself. Ends with 65
    and names the event, or the events between which it must lie, when FILE is not what was written. Without --key
    the notes are checked with the key that the log itself names. Without --head nobody can tell a log that ends
    early, or one that was written anew by who has the key.
    """
    segmented = len(files) > 1 or (files[0].exists() and need("bayesd.segments").is_segment(files[0]))
    if not segmented:
        verify_file(files[0], format, keys_of(keys), heads_of(heads))
    elif keys or heads:
        raise Trouble("segments are checked as one chain, not against notes: log import them and verify the log", USAGE)
    else:
        _verify_row(files, format)


def verify_file(file: Path, format: str, keys: Sequence[str] = (), heads: Sequence[Any] = ()) -> None:
    """Show what of a log verifies, then raise its damage, if there is any. One pass: bytes and state together."""
    with show.progress("verifying", offline.count(file)) as advance:
        found = asking(offline.examine, file, advance, keys, heads)
    report, folded, damage, verdict = found.report, found.folded, found.damage, found.report.verdict
    if isinstance(damage, need("bayesd.logfile").NoLog):
        raise damage            # there is nothing to show of it
    _must_be_of_this_log(file, report, heads)
    answer = {"file": str(file), "log": report.log, "events": folded.events, "head": report.hash.hex(),
              "root": report.tree.root().hex(), "epoch": report.epoch,
              "chain": "intact" if report.is_whole else "broken",
              "signed": _signed(report), "signed_events": verdict.signed, "notes": verdict.notes,
              "heads": verdict.heads if heads else None, "given_up": verdict.given_up or None,
              "keys": list(verdict.keys) or None, "keys_from": ("outside" if verdict.keys_given else "log")
              if verdict.keys else None,
              "state": need("bayesd.study.snapshot").digest(folded.state), "states_compared": found.recorded.compared,
              "snapshots": found.recorded.snapshots, "studies": len(folded.state.studies), "texts": found.texts,
              "first": folded.first_time, "last": folded.time,
              "damage": None if damage is None else damage.why, "damaged_seq": None if damage is None else damage.seq,
              "damaged_between": None if damage is None else [damage.first, damage.last],
              "narrowed_to": None if damage is None or damage.narrowed == damage.first
              else [damage.narrowed, damage.last]}
    shown = {**answer, "given_up": f"{verdict.given_up} notes" if verdict.given_up != 1 else "1 note"} \
        if verdict.given_up else answer
    only_json = ("signed_events", "notes", "heads", "keys_from", "damaged_seq")
    show.record(format, answer,
                [(key, value) for key, value in shown.items() if value is not None and key not in only_json],
                ["damaged" if damage else "verified", folded.events, answer["head"]])
    _must_be_signed(file, report, keys)
    if damage is not None:
        raise damage


def _must_be_of_this_log(file: Path, report: Any, heads: Sequence[Any]) -> None:
    """Heads of another log say nothing of this one, so it is no damage that they do not fit."""
    read = need("bayesd.notes").read
    others = {read(head.note).log: head.source for head in heads if report.log is not None
              and read(head.note).log != report.log}
    if others:
        logs, sources = ", ".join(others), ", ".join(others.values())
        raise Trouble(f"these heads are of another log: {sources} of {logs}, while {file} is log {report.log}. Give "
                      "heads of this log, or the other log", USAGE)


def _must_be_signed(file: Path, report: Any, keys: Sequence[str]) -> None:
    """A key that was given must have signed something here."""
    verdict = report.verdict
    if not keys or verdict.signed or (report.damage is not None and FOREIGN not in report.damage.why):
        return
    if report.damage is None:
        raise Trouble(f"nothing in {file} is signed by the key that was given: it has no signed note. Give a note from "
                      "elsewhere with --head, or verify without --key, which proves the chain alone")
    raise Trouble(f"nothing in {file} is signed by the key that was given: {report.damage.why}. Either the key is not "
                  "that of this log, or somebody else signed it: compare it with the one that was kept", DAMAGED)


def _verify_row(files: tuple[Path, ...], format: str) -> None:
    """The same of segments: one chain through all of them; the state, if they begin at event 1."""
    segments, logs, digest = need("bayesd.segments"), need("bayesd.log"), need("bayesd.study.snapshot").digest
    joined, folding, damage = segments.Joined(), offline.Folding(), None
    with show.progress("verifying", None) as advance:
        try:
            for seq, body, hash in segments.join(files, joined):
                if joined.first == 1:
                    folding.take(((seq, body, hash),))
                if seq % 1000 == 0:
                    advance(seq)
        except logs.Damaged as found:
            damage = found
    damage = damage or folding.folded.damage
    if damage is None and folding.folded.newer is not None:
        raise folding.folded.newer
    answer = {"files": len(files), "log": joined.log, "first": joined.first, "last": joined.seq, "head": joined.hash,
              "state": digest(folding.done().state) if joined.first == 1 else None, "notes": len(joined.notes),
              "chain": "intact" if damage is None else "broken", "damage": None if damage is None else damage.why,
              "damaged_seq": None if damage is None else damage.seq}
    show.record(format, answer, [(key, value) for key, value in answer.items() if value is not None],
                ["damaged" if damage else "verified", joined.seq, joined.hash])
    if damage is not None:
        raise damage


def _signed(report: Any) -> str:
    """Who vouches for how much, in words."""
    verdict, events = report.verdict, report.events
    held = f"{verdict.notes + verdict.heads} notes" if verdict.notes + verdict.heads != 1 else "1 note"
    if verdict.unsigned:
        return f"nobody: {verdict.unsigned} notes fit, but no key is known that signed them"
    if not verdict.signed:
        return "nobody: there is no signed note"
    key = "the key that was given" if verdict.keys_given else "the key that the log itself names"
    outside = f", {verdict.heads} of them from outside" if verdict.heads else ""
    return f"{verdict.signed} of {events} events, by {key} ({held}{outside})"


# --- Replay ------------------------------------------------------------------------------------------


@verb(log, "replay", "bayesd log replay tuning.db\nbayesd log replay tuning.db --at 120\n"
                     "bayesd log replay tuning.db --at 2026-11-23T09:00:00Z -f json")
@_file
@click.option("--at", metavar="SEQ|TIME", help="That moment; default the end. A time without a zone is UTC.")
@format_option
def replay(file: Path, at: str | None, format: str) -> None:
    """Show any past moment, posterior rebuilt.

    The state of every study comes from its events alone; a model comes from its recorded fit. In json and yaml,
    knowledge is a digest of what the optimiser knows: points, outcomes, noise, pending points, fit.
    """
    folded = offline.fold(file, at)
    digest = need("bayesd.study.snapshot").digest(folded.state)
    with show.patience("rebuilding posteriors"):
        studies = [_moment(folded, study) for study in folded.state.studies.values()]
    state = {"seq": folded.state.seq, "time": folded.time, "log": folded.state.log, "epoch": folded.state.epoch,
             "digest": digest, "workers": len(folded.state.workers), "studies": studies}
    lines: list[tuple[str, Any]] = [(key, state[key]) for key in ("seq", "time", "log", "epoch", "digest")]
    for study in studies:
        lines += _lines(study)
    show.record(format, state, lines, [state["seq"], digest])
    folded.must_be_whole()


def _moment(folded: offline.Folded, study: Any) -> dict[str, Any]:
    view = need("bayesd.study.view")
    return {"study": study.name, "state": study.status, "closed_by": study.closed_by,
            "trials": {**study.counts, "total": study.used}, "best": view.best(study),
            "elapsed_s": study.elapsed_s, "fit": _fit(study), "posterior": _posterior(folded, study),
            "knowledge": need("bayesd.study.knowledge").knowledge_digest(study)}


def _fit(study: Any) -> dict[str, Any] | None:
    fit = study.fit
    return None if fit is None else {"model": fit.model, "n": fit.n, "theta": list(fit.theta), "seq": study.fit_seq}


def _posterior(folded: offline.Folded, study: Any) -> dict[str, Any] | None:
    """What the model believes at the data, by one factorisation with the recorded fit: nothing is fitted again."""
    if study.fit is None or not study.history:
        return None
    problem = offline.problem(folded, study)
    means, sds = need("bayesd.optimize").posterior_at_data(problem)
    sign = 1.0 if problem.directions[0] == "minimize" else -1.0
    measured = [i for i, seen in enumerate(problem.history) if seen.values is not None]
    if not measured:
        return None
    top = min(measured, key=lambda i: (sign * means[i], problem.history[i].trial))
    return {"observations": len(problem.history), "best_trial": problem.history[top].trial, "mean": means[top],
            "sd": sds[top]}


def _lines(study: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "", ""
    yield "study", study["study"]
    yield "state", f"{study['state']} by {study['closed_by']}" if study["closed_by"] else study["state"]
    yield "trials", {state: n for state, n in study["trials"].items() if n}
    best, fit, posterior = study["best"], study["fit"], study["posterior"]
    if best is not None:
        yield "best", f"{show.cell(best['value'])}  trial {best['trial']}  {show.params(best['params'])}"
    if fit is not None:
        yield "fit", f"{fit['model']} of {fit['n']} observations, event {fit['seq']}"
        yield "theta", " ".join(f"{each:.4g}" for each in fit["theta"])
    if posterior is not None:
        yield "posterior", (f"at {posterior['observations']} observations; highest belief in trial "
                            f"{posterior['best_trial']}: {show.cell(posterior['mean'])} ± {posterior['sd']:.2g}")


# --- Read ----------------------------------------------------------------------------------------------

_EVENTS = (Column("seq", "SEQ", True), Column("time", "TIME"), Column("type", "TYPE"), Column("where", "WHERE"),
           Column("phrase", "WHAT"))
_LINE = "{seq:>7}  {time:<23}  {type:<18}  {where:<20}  {phrase}"


def _choosing(command: Any) -> Any:
    for option in (
            click.option("--study", help="Only events of this study."),
            click.option("--trial", type=int, help="Only events of this trial."),
            click.option("--type", "type_", metavar="TYPE", help="Only types that begin so: trial, study.closed.")):
        command = option(command)
    return command


def _wanted(body: dict[str, Any], study: str | None, trial: int | None, type_: str | None) -> bool:
    return ((study is None or body.get("study") == study) and (trial is None or body.get("trial") == trial)
            and (type_ is None or str(body["type"]).startswith(type_)))


def _row(body: dict[str, Any]) -> dict[str, Any]:
    where = body.get("study") or ""
    return {"seq": body["seq"], "time": str(body["time"])[:23].replace("T", " "), "type": body["type"],
            "where": f"{where} #{body['trial']}" if body.get("trial") else where, "phrase": phrases.of(body)}


@verb(log, "show", "bayesd log show tuning.db\nbayesd log show tuning.db --study digits-svm --trial 7")
@_file
@_choosing
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin behind this seq.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many events.")
@format_option
def show_(file: Path, study: str | None, trial: int | None, type_: str | None, after: int, limit: int | None,
          format: str) -> None:
    """Events of FILE in words, oldest first."""
    events = _chosen(file, after, limit, study, trial, type_)
    if format in ("json", "yaml"):
        found: list[dict[str, Any]] = []
        damage = None
        try:
            found.extend(events)
        except need("bayesd.log").Damaged as error:
            damage = error
        show.rows(format, found, _EVENTS)
        if damage is not None:
            raise damage
        return
    # Line by line: a log may be longer than memory, and its reader may have enough soon.
    if format == "table":
        click.echo(_LINE.format(seq="SEQ", time="TIME", type="TYPE", where="WHERE", phrase="WHAT"))
    for body in events:
        row = _row(body)
        click.echo(show.harmless(_LINE.format(**row).rstrip()) if format == "table"
                   else "\t".join(column.of(row) for column in _EVENTS))


def _chosen(file: Path, after: int, limit: int | None, study: str | None, trial: int | None,
            type_: str | None) -> Iterator[dict[str, Any]]:
    loads, texts, said = need("orjson").loads, need("bayesd.study.texts"), need("bayesd.logfile").read_texts(file)
    for _, body, _ in need("bayesd.log").read_events(file, after):
        envelope: dict[str, Any] = texts.resolved(loads(body), said)
        if _wanted(envelope, study, trial, type_):
            yield envelope
            if limit is not None:
                limit -= 1
                if limit == 0:
                    return


@verb(log, "export", "bayesd log export tuning.db > events.jsonl")
@_file
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here; default standard output.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin behind this seq.")
def export(file: Path, output: Path | None, after: int) -> None:
    """Write events as JSON, one a line.

    They are byte for byte what was hashed, so free text is not among them.
    """
    logs = need("bayesd.log")
    events = logs.read_events(file, after)
    with show.progress("exporting", offline.count(file)) as advance:
        try:
            target = output.open("wb") if output is not None else sys.stdout.buffer
        except OSError as error:
            raise Trouble(f"cannot write {output}: {error.strerror}. Name another file with -o", IO) from error
        try:
            for seq, body, _ in events:
                target.write(body + b"\n")
                if seq % 1000 == 0:
                    advance(seq)
            target.flush()
        finally:
            if output is not None:
                target.close()


@verb(log, "archive", "bayesd log archive tuning.db -o archive\n"
                      "bayesd log archive tuning.db -o archive --events 100000")
@_file
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder; default FILE's.")
@click.option("--events", type=click.IntRange(min=1), help="Events of a segment; default 1,000,000.")
@click.option("--whole", is_flag=True, help="Leave what does not fill a segment for later.")
@format_option
def archive(file: Path, output: Path | None, events: int | None, whole: bool, format: str) -> None:
    """Write events that are in no segment yet as compressed segments, to keep elsewhere.

    A segment has the hashed bytes of each event on a line, and a file beside it that says where it belongs. FILE
    stays as it is and may be in use. Free text (errors, reasons) stays in FILE alone. A daemon does it by itself
    when its settings archive and archive_events say so.
    """
    segments = need("bayesd.segments")
    with show.progress("archiving", offline.count(file)) as advance:
        made = segments.archive(file, output or file.parent, events or segments.EVENTS, advance, whole=whole)
    rows = [{"segment": str(each.path), "first": each.header.first, "last": each.header.last,
             "bytes": each.header.bytes, "size": each.size, "ratio": round(each.ratio, 3)} for each in made]
    show.rows(format, rows, _SEGMENTS, "nothing new: segments hold every event")


_SEGMENTS = (Column("segment", "SEGMENT"), Column("first", "FIRST", True), Column("last", "LAST", True),
             Column("bytes", "BYTES", True), Column("size", "SIZE", True), Column("ratio", "RATIO", True))


@verb(log, "import", "bayesd log import archive/*.jsonl.gz -o again.db\n"
                     "bayesd log import archive/*.jsonl.gz tuning.db -o whole.db")
@click.argument("files", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True,
                metavar="SEGMENT...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="The log to make; nothing is overwritten.")
@format_option
def import_(files: tuple[Path, ...], output: Path, format: str) -> None:
    """Put a log together from its segments, or from what log export wrote.

    It has the same events, hashes, head and state. A log given besides adds what the segments do not hold yet.
    """
    segments = need("bayesd.segments")
    with show.progress("importing", None) as advance:
        joined = segments.assemble(files, output, need("bayesd.study.fold").refuse_newer, advance)
    folded = offline.fold(output, what="folding")
    answer = {"file": str(output), "log": joined.log, "events": joined.seq, "head": joined.hash,
              "state": need("bayesd.study.snapshot").digest(folded.state), "notes": len(joined.notes)}
    show.record(format, answer, list(answer.items()), [joined.seq, joined.hash])
    folded.must_be_whole()


@verb(log, "tail", "bayesd log tail\nbayesd log tail --study digits-svm -f json | jq .type")
@_choosing
@click.option("-n", "--lines", type=click.IntRange(min=0), default=10, show_default=True,
              help="Begin with so many events that are there already.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on as events come.")
@click.option("-f", "--format", "format", type=click.Choice(["table", "json"]), default="table", show_default=True)
@reaching
def tail(reach: Reaching, study: str | None, trial: int | None, type_: str | None, lines: int, follow: bool,
         format: str) -> None:
    """Events of a running daemon as they are committed; Ctrl-C ends it. JSON is one event a line."""
    asyncio.run(_tail(reach, study, trial, type_, lines, follow, format))


async def _tail(reach: Reaching, study: str | None, trial: int | None, type_: str | None, lines: int, follow: bool,
                format: str) -> None:
    args = {"study": study} if study else {}
    async with Client(reach()) as client:
        recent: list[dict[str, Any]] = []
        after, old = 0, True
        while True:
            page = await client.request("events", {**args, "after": after})
            for body in page["events"]:
                after = max(after, body["seq"])
                if _wanted(body, study, trial, type_):
                    recent.append(body)
            after = max(after, page.get("next") or 0)
            more = page.get("next") is not None
            if old and more:
                del recent[:-lines or len(recent)]       # the beginning of a long log is not kept
                continue
            for body in recent[-lines if lines else len(recent):] if old else recent:
                _print(body, format)
            recent.clear()
            old = False
            if not more:
                if not follow:
                    return
                await asyncio.sleep(POLL_S)


def _print(body: dict[str, Any], format: str) -> None:
    if format == "json":
        click.echo(show.harmless(json.dumps(body, ensure_ascii=False)))
    else:
        click.echo(show.harmless(_LINE.format(**_row(body)).rstrip()))


