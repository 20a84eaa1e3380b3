"""`bayesd study importance`, `effect` and `warnings`: what mattered, and what to be wary of."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import PAST_TIMEOUT_S, Client
from bayesd.cli import offline
from bayesd.cli.common import (
    USAGE,
    Reaching,
    Trouble,
    at_args,
    format_option,
    log_option,
    need,
    reaching,
    study_argument,
    verb,
)
from bayesd.cli.studies import BEST_AGAIN_S, study

WIDTH = 64          # of a chart, in characters
BAR = 24
LISTED_MAX = 20     # rows of a kind that a table lists

Answer = dict[str, Any]


def register(top: click.Group) -> None:
    """They are verbs of `study`, which has its own module."""


def _ask(name: str, verb: str, args: dict[str, Any], reach: Reaching, log: Path | None, at: str | None,
         write: Callable[[Answer], None]) -> None:
    """An answer of the daemon or of a file, written; what is wrong with the file is said behind it."""
    if log is None:
        async def go() -> Answer:
            async with Client(reach()) as client:
                answer: Answer = await client.request(
                    f"study.{verb}", {"study": name, **at_args(at), **args},
                    timeout_s=max(client.reach.timeout_s, PAST_TIMEOUT_S), again_s=BEST_AGAIN_S)
                return answer
        with show.patience("the daemon asks its model"):
            answer = asyncio.run(go())
        write(answer)
        return
    asked = need("bayesd.importance.asked")
    folded = offline.fold(log, at)
    there = offline.study_of(folded, name)
    answers = {"importance": asked.importance, "effect": asked.effects, "warnings": asked.warned}
    try:
        with show.patience("asking the model"):
            answer = answers[verb](asked.Known.of(there, offline.problem(folded, there)), args)
    except asked.BadQuestion as error:
        raise Trouble(str(error), USAGE) from error
    except need("bayesd.importance.belief").NothingToSay as error:
        raise Trouble(f"{name}: {error}") from error
    write({**answer, **offline.moment_of(folded)})
    folded.must_be_whole()


_of_option = click.option("--of", metavar="METRIC", help="Another objective, or success: whether trials end well.")


# --- Importance ------------------------------------------------------------------------------------


@verb(study, "importance", "bayesd study importance digits-svm --pairs\n"
                           "bayesd study importance digits-svm --ablation --from 1 --log tuning.db")
@study_argument("name")
@click.option("--pairs", is_flag=True, help="Interactions of two parameters, too.")
@click.option("--shapley", is_flag=True, help="Credit of each parameter for the winner's lead.")
@click.option("--ablation", is_flag=True, help="From the start to the winner, one parameter after another.")
@click.option("--from", "origin", type=click.IntRange(min=1), metavar="TRIAL",
              help="Start of --shapley and --ablation; default: the point enqueued first, else the centre.")
@click.option("--among", type=click.Choice(["all", "best"]), default="all", show_default=True,
              help="best: leave out differences between points that are not in the best tenth of the space.")
@_of_option
@reaching
@format_option
@log_option
def importance(name: str, pairs: bool, shapley: bool, ablation: bool, origin: int | None, among: str, of: str | None,
               reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """Which parameters mattered, how sure that is, and which could be dropped.

    Shares of the variance that the model believes in over the space (functional ANOVA), with intervals that hold
    nine of ten responses drawn from the model. `main` is what a parameter does alone, `total` also what it does
    together with others; `within` is that of a conditional parameter where it is active.
    """
    flags = {"pairs": pairs, "shapley": shapley, "ablation": ablation}
    args: dict[str, Any] = {key: True for key, value in flags.items() if value}
    args |= {key: value for key, value in (("from", origin), ("of", of)) if value is not None}
    args["among"] = among
    _ask(name, "importance", args, reach, log, at, lambda answer: show.record(
        format, answer, list(_importance(answer)), [row["param"] for row in answer["params"]]))


def _percent(share: dict[str, float]) -> str:
    return f"{share['value']:4.0%} ({share['low']:.0%} to {share['high']:.0%})"


def _number(spread: dict[str, float]) -> str:
    return f"{spread['value']:.4g} ({spread['low']:.4g} to {spread['high']:.4g})"


def _importance(answer: Answer) -> Iterator[tuple[str, Any]]:
    yield "study", answer["study"]
    if answer.get("at"):
        yield "as of", f"event {answer['at']['seq']}, {answer['at']['time']}"
    yield "of", f"{answer['of']}, {answer['observations']} outcomes"
    yield "spread", f"{_number(answer['spread'])}, one standard deviation over the space"
    for row in answer["params"][:LISTED_MAX]:
        bar = "█" * round(BAR * row["total"]["value"])
        yield row["param"], f"{bar:{BAR}} total {_percent(row['total'])}  main {_percent(row['main'])}" + (
            f"  within {_percent(row['within'])}, active in {row['active']:.0%}" if "within" in row else "")
    if len(answer["params"]) > LISTED_MAX:
        yield "", f"and {len(answer['params']) - LISTED_MAX} more; -f json lists them"
    for row in answer.get("pairs", ())[:LISTED_MAX]:
        yield " × ".join(row["params"]), f"interaction {_percent(row['interaction'])}  joint {_percent(row['joint'])}"
    drop = answer["droppable"]
    if drop is None:
        yield "drop", "nothing: no parameter is surely without weight"
    else:
        fixed = {name: value for name, value in drop.get("fixed_at", {}).items() if value is not None}
        lost = ""
        if "loss" in drop:
            lost = f"; fixed at the winner's {show.params(fixed)} they lose {_number(drop['loss'])}"
        yield "drop", (f"you can drop {', '.join(drop['params'])}: together {_percent(drop['together']).strip()} of "
                       f"the variance{lost}")
    if "start" in answer:
        yield "from", f"{answer['start']['point']}, {_number(answer['start']['value'])}"
        yield "to", f"trial {answer['winner']['trial']}, {_number(answer['winner']['value'])}"
    for row in answer.get("shapley", {}).get("params", ()):
        yield f"credit {row['param']}", _number(row["gain"])
    for i, step in enumerate(answer.get("ablation", ()), start=1):
        to = f"= {show.cell(step['to'])}" if step["active"] else "leaves"
        yield f"step {i}", f"{step['param']} {to}: {_number(step['value'])}, gains {_number(step['gain'])}"
    for note in answer["notes"]:
        yield "note", note


# --- Effect ----------------------------------------------------------------------------------------


@verb(study, "effect", "bayesd study effect digits-svm C\nbayesd study effect digits-svm C kernel --log tuning.db")
@study_argument("name")
@click.argument("param")
@click.argument("other", required=False, metavar="[PARAM2]")
@_of_option
@reaching
@format_option
@log_option
def effect(name: str, param: str, other: str | None, of: str | None, reach: Reaching, format: str, log: Path | None,
           at: str | None) -> None:
    """What a parameter does on average, all others varied: partial dependence, with a band.

    The band holds nine of ten responses drawn from the model. With PARAM2: a table of both.
    """
    args = {key: value for key, value in (("param", param), ("other", other), ("of", of)) if value is not None}
    _ask(name, "effect", args, reach, log, at, lambda answer: _show_effect(format, answer))


def _show_effect(format: str, answer: Answer) -> None:
    if format in ("json", "yaml"):
        show.record(format, answer, (), ())
    elif format == "value":
        best = [min, max]
        show.record(format, answer, (), [each(_flat(answer["mean"])) for each in best])
    else:
        click.echo(show.harmless("\n".join(_table(answer) if "params" in answer else _chart(answer))))


def _flat(values: list[Any]) -> list[float]:
    return [value for each in values for value in (each if isinstance(each, list) else [each])]


def _chart(answer: Answer) -> list[str]:
    chart = need("bayesd.why.chart")
    at = answer["winner"] and answer["winner"]["params"].get(answer["param"])
    lines = [f"{answer['of']} by {answer['param']}, all other parameters averaged"
             + (f", where it is active ({answer['active']:.0%} of the space)" if answer["active"] < 1 else "")]
    values, mean = answer["values"], answer["mean"]
    if answer["type"] in ("float", "int") and len(values) > 1:
        where = values[-1] if at is None else at
        near = min(range(len(values)), key=lambda i: abs(values[i] - where))
        lines += chart.band(values, mean, answer["low"], answer["high"], where, mean[near],
                            logarithmic=answer["scale"] == "log", width=WIDTH,
                            label="" if at is None else f"winner {show.cell(at)}")
    else:
        wide = max(len(show.cell(value)) for value in values)
        lines += [f"{show.cell(value):{wide}}  {show.cell(mean[i])} ({show.cell(answer['low'][i])} to "
                  f"{show.cell(answer['high'][i])}){'  winner' if value == at else ''}"
                  for i, value in enumerate(values)]
    return lines


def _table(answer: Answer) -> list[str]:
    first, second = answer["params"]
    cells = [[show.cell(value), *(f"{mean:.4g}" for mean in row)]
             for value, row in zip(answer["values"][0], answer["mean"], strict=True)]
    heads = [show.Column("", f"{first} \\ {second}"),
             *(show.Column("", f"{value:.4g}" if isinstance(value, float) else show.cell(value), True)
               for value in answer["values"][1])]
    return [f"{answer['of']} by {first} and {second}, all other parameters averaged; -f json has the bands",
            show.table(cells, heads)]


# --- Warnings --------------------------------------------------------------------------------------


@verb(study, "warnings", "bayesd study warnings digits-svm\nbayesd study warnings digits-svm --log tuning.db -f json")
@study_argument("name")
@reaching
@format_option
@log_option
def warnings(name: str, reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """What a careful colleague would say before anybody acts on the winner. Ends with 0 with or without any."""
    def write(answer: Answer) -> None:
        found = answer["warnings"]
        lines = [("study", f"{answer['study']}, {answer['trials']} outcomes"
                  + (f", as of event {answer['at']['seq']}" if answer.get("at") else ""))]
        for each in found:
            lines += [(each["code"], each["text"]), ("", each["do"])]
        if not found:
            lines.append(("", "nothing to warn of"))
        show.record(format, answer, lines, [each["code"] for each in found])
    _ask(name, "warnings", {}, reach, log, at, write)
