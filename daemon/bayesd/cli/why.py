"""`bayesd why`: a page for people about a trial, a study or a worker."""

import asyncio
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import Client
from bayesd.cli import offline
from bayesd.cli.common import (
    NO,
    USAGE,
    Reaching,
    Trouble,
    Verb,
    format_option,
    log_option,
    need,
    reaching,
    study_argument,
)
from bayesd.cli.freetext import words_of
from bayesd.why import words

TIMEOUT_S = 120.0          # a page reads the log and makes a model again
AGAIN_S = 30.0             # each copy of the question makes the daemon read again


def register(top: click.Group) -> None:
    top.add_command(why)


@click.command("why", cls=Verb, example="bayesd why digits-svm 23\nbayesd why digits-svm\n"
                                        "bayesd why --worker gpu-7\n"
                                        "bayesd why digits-svm 23 --log tuning.db --at 2026-11-23T09:00:00Z")
@study_argument(required=False)
@click.argument("number", type=click.IntRange(min=1), metavar="TRIAL", required=False)
@click.option("--worker", metavar="NAME", help="Why this worker is busy or idle.")
@reaching
@format_option
@log_option
def why(study: str | None, number: int | None, worker: str | None, reach: Reaching, format: str, log: Path | None,
        at: str | None) -> None:
    """Why a trial was tried, why a study stopped, why a worker is idle.

    With TRIAL: what was known when its point was made, which sampler chose it and why, what was expected, what
    else was close, and what became of it. With STUDY alone: why it stopped or does not go on, with a remedy, and
    why its winner is the winner. With --worker: what it holds and what it waits for. -f value is the answer in a
    sentence.
    """
    if (study is None) == (worker is None):
        raise click.UsageError("give STUDY [TRIAL], or --worker NAME")
    folded = None
    if log is None:
        args = {"worker": worker} if worker is not None else {"study": study, "trial": number}
        with show.patience("the daemon looks into its log"):
            page = asyncio.run(_asked(reach, args))
    elif worker is not None:
        folded, page = _worker(log, at, worker)
    else:
        assert study is not None
        folded, page = _study(log, at, study, number)
    if format == "table":
        click.echo(show.harmless(words.of(page)))
    else:
        show.record(format, page, (), [words.sentence(page)])
    if folded is not None:
        folded.must_be_whole()


async def _asked(reach: Reaching, args: dict[str, Any]) -> dict[str, Any]:
    async with Client(reach()) as client:
        if args.get("study") is not None:
            await client.request("study.show", {"study": args["study"]})      # who is not there is told at once
        page: dict[str, Any] = await client.request(
            "why", {name: value for name, value in args.items() if value is not None},
            timeout_s=max(client.reach.timeout_s, TIMEOUT_S), again_s=AGAIN_S)
        return page


def _study(log: Path, at: str | None, name: str, number: int | None) -> tuple[offline.Folded, dict[str, Any]]:
    """Once through the log to find the trial; a trial's page needs the moments around it, so once more."""
    witnesses = need("bayesd.why.witness")
    seen = witnesses.Witness(name, (), () if number is None else {number})
    folded = offline.fold(log, at, on_row=seen.see)
    study = offline.study_of(folded, name)
    if number is not None and number > len(study.trials):
        folded.must_be_whole()
        raise Trouble(f"{name} has {len(study.trials)} trials, no trial {number}", NO)
    moments = () if number is None else seen.needed(number)
    beside = {source.name for source in study.sources if source.study}
    if moments or beside:
        seen = witnesses.Witness(name, moments, () if number is None else {number}, beside)
        offline.fold(log, str(folded.state.seq), on_row=seen.see, what="looking at its moment")
    seen.end()
    seen.words = words_of(log)
    with show.patience("making its model again"):
        return folded, need("bayesd.why.pages").of(seen, number)


def _worker(log: Path, at: str | None, name: str) -> tuple[offline.Folded, dict[str, Any]]:
    workers = need("bayesd.why.worker")
    if not need("bayesd_schemas.names").is_name(name):
        raise Trouble(f"{name!r} is not a worker's name, for example gpu-7", USAGE)
    diary = workers.Diary(name)
    folded = offline.fold(log, at, on_row=diary.see)
    diary.words = words_of(log)
    if not workers.is_known(folded.state, name, None):
        folded.must_be_whole()
        raise Trouble(workers.unknown(folded.state, name, None), NO)
    return folded, workers.worker_page(folded.state, diary, None)
