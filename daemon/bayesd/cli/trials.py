"""`bayesd trial`: look at single trials, end them, or take them back."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import Client
from bayesd.cli import offline
from bayesd.cli.common import (
    Reaching,
    at_args,
    format_option,
    log_option,
    reaching,
    say_moment,
    study_argument,
    verb,
)
from bayesd.cli.freetext import words_of
from bayesd.show import Column


def register(top: click.Group) -> None:
    top.add_command(trial)


@click.group()
def trial() -> None:
    """Look at trials, end or void them."""


def _values(values: dict[str, float]) -> str:
    """One metric as its number; several by name."""
    return show.cell(next(iter(values.values()))) if len(values) == 1 else show.params(values)


_TRIALS = (Column("trial", "TRIAL", True), Column("state", "STATE"), Column("values", "VALUE", True, _values),
           Column("se", "SE", True), Column("seconds", "SECONDS", True), Column("worker", "WORKER"),
           Column("sampler", "SAMPLER"), Column("params", "PARAMS"))


@verb(trial, "list", "bayesd trial list digits-svm\nbayesd trial list digits-svm --state fail -f json")
@study_argument()
@click.option("--state", type=click.Choice(["running", "waiting", "paused", "complete", "fail", "pruned", "voided"]),
              help="Only trials in this state.")
@reaching
@format_option
@log_option
def list_(study: str, state: str | None, reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """The trials of a study, in their order."""
    async def go() -> list[dict[str, Any]]:
        async with Client(reach()) as client:
            rows = await client.all("trial.list", "trials", {"study": study, **at_args(at)})
        say_moment(client.at)
        return rows
    folded = offline.fold(log, at) if log is not None else None
    rows = asyncio.run(go()) if folded is None else offline.trial_rows(folded, study)
    if folded is not None:
        say_moment(folded.at)
    found = [row for row in rows if state in (None, row["state"])]
    show.rows(format, found, _TRIALS, "no trials" + (f" in state {state}" if state else " yet"))
    if folded is not None:
        folded.must_be_whole()


@verb(trial, "show", "bayesd trial show digits-svm 7")
@study_argument()
@click.argument("number", type=click.IntRange(min=1), metavar="TRIAL")
@reaching
@format_option
@log_option
def show_(study: str, number: int, reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """Everything about a trial: its leases, reports and late outcomes."""
    async def go() -> dict[str, Any]:
        async with Client(reach()) as client:
            page: dict[str, Any] = await client.request("trial.show", {"study": study, "trial": number, **at_args(at)})
            if _has_error(page):       # free text is no part of the state: it may be redacted
                said = await client.request("events", {"study": study, "after": page["outcome_seq"] - 1, "limit": 1})
                page |= _error(said["events"][0]["data"])
            return page
    if log is None:
        _show(format, asyncio.run(go()))
    else:
        folded = offline.fold(log, at)
        page = offline.trial_page(folded, study, number)
        if _has_error(page):
            page |= _error(words_of(log).of(offline.data_of(log, page["outcome_seq"])))
        _show(format, page)
        folded.must_be_whole()


def _has_error(page: Mapping[str, Any]) -> bool:
    return bool(page.get("class")) and page.get("outcome_seq") is not None


def _error(data: Mapping[str, Any]) -> dict[str, Any]:
    """What its worker, or the daemon, said of a failure."""
    return {} if data.get("error") is None else {"error": data["error"]}


def _show(format: str, page: dict[str, Any]) -> None:
    lines: list[tuple[str, Any]] = [("trial", page["trial"]), ("state", page["state"])]
    if page.get("at"):
        lines.insert(0, ("as of", f"event {page['at']['seq']}, {page['at']['time']}"))
    if page.get("origin"):
        lines.append(("measured as", f"trial {page['origin']['trial']} of {page['origin']['study']}"))
    if page.get("class"):
        lines.append(("class", page["class"]))
    if page.get("error"):
        lines.append(("error", page["error"]))
    lines += [("params", page["params"]), ("value", _values(page["values"]) if page["values"] else None),
              ("se", page["se"]), ("seconds", page["seconds"]), ("sampler", page["sampler"])]
    for lease in page.get("leases", ()):
        lines.append((f"lease {lease['fence']}", f"{lease['worker']}  run {lease['run']}  {lease['lease_s']:g} s  "
                                                 f"{lease['ended'] or 'open'}"))
    lines += [(f"step {step}", values) for step, values in page.get("reports", ())]
    lines += [("late", f"{late['state']}  {show.cell(late['values'])}") for late in page.get("late", ())]
    show.record(format, page, lines, [page["state"], _values(page["values"]) if page["values"] else None])


@verb(trial, "cancel", "bayesd trial cancel digits-svm 7 --reason \"diverges\"")
@study_argument()
@click.argument("number", type=click.IntRange(min=1), metavar="TRIAL")
@click.option("--reason", help="Why; it is kept in the log.")
@reaching
@format_option
def cancel(study: str, number: int, reason: str | None, reach: Reaching, format: str) -> None:
    """End a trial for good: its worker is stopped, and the optimiser learns of a failure."""
    args = {"study": study, "trial": number, **({"reason": reason} if reason is not None else {})}
    _change(reach, "trial.cancel", args, format, "cancelled")


@verb(trial, "void", "bayesd trial void digits-svm 7 --reason \"the sensor was unplugged\"")
@study_argument()
@click.argument("number", type=click.IntRange(min=1), metavar="TRIAL")
@click.option("--reason", required=True, help="Why; it is kept in the log.")
@reaching
@format_option
def void(study: str, number: int, reason: str, reach: Reaching, format: str) -> None:
    """Take a trial out of what the optimiser knows. Its old events stay in the log."""
    _change(reach, "trial.void", {"study": study, "trial": number, "reason": reason}, format, "void")


def _change(reach: Reaching, verb: str, args: dict[str, Any], format: str, done: str) -> None:
    async def go() -> tuple[str, dict[str, Any]]:
        async with Client(reach()) as client:
            answer = await client.answer(verb, args)
            # A copy of our request is answered without the trial, so that is asked for in any case.
            page: dict[str, Any] = await client.request("trial.show", {"study": args["study"], "trial": args["trial"]})
            return answer["status"], page
    status, page = asyncio.run(go())
    show.talk(f"nothing changed: trial {args['trial']} is {page['state']} already" if status == "exists"
              else f"trial {args['trial']} of {args['study']} is {done}")
    _show(format, page)
