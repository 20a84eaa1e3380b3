"""`bayesd study what-if`: a recorded study under other rules, on measured results alone."""

import asyncio
from collections.abc import Iterator
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
from bayesd.cli.studies import BEST_AGAIN_S, RULES, study
from bayesd_schemas.study import seconds

METHODS = ("grid", "random", "sobol", "bayes")
PRUNING = ("median", "percentile", "asha", "hyperband", "race", "curve")
ORDERS = ("recorded", "trial", "shuffled")
LISTED_MAX = 20     # trials of one kind that a table lists

Line = tuple[str, Any]


def register(top: click.Group) -> None:
    """It is a verb of `study`, which has its own module."""


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds, as a study file spells them."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return float(seconds(value))
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


_COUNT = click.IntRange(min=1)


@verb(study, "what-if", "bayesd study what-if digits-svm --trials 20 --no-improvement 10\n"
                        "bayesd study what-if digits-svm --prune asha --log tuning.db\n"
                        "bayesd study what-if digits-svm --method sobol --at 120 --next 3")
@study_argument("name")
@click.option("--trials", type=_COUNT, help="Another budget of trials.")
@click.option("--wall", callback=_duration, metavar="DURATION", help="Another budget of time: 90s, 2h, 1h30m.")
@click.option("--cost", type=click.FloatRange(min=0, min_open=True), help="Another budget of cost.")
@click.option("--no-improvement", type=_COUNT, metavar="K", help="Stop after K results without a better best.")
@click.option("--patience", type=_COUNT, metavar="K", help="Stop after K complete trials without a better best, as "
                                                          "[stop] counts them.")
@click.option("--min-delta", type=click.FloatRange(min=0, min_open=True), metavar="D",
              help="For --patience, better means by more than this.")
@click.option("--target", type=float, metavar="VALUE", help="Stop when a result is at least as good.")
@click.option("--improvement", type=click.FloatRange(min=0, min_open=True), metavar="K",
              help="Stop when the model expects less of any point than K deviations of the noise. With --log.")
@click.option("--regret", type=click.FloatRange(min=0, min_open=True), metavar="R",
              help="Stop when the model is 95 % sure that no point is better by R. With --log.")
@click.option("--converged", is_flag=True, default=None, help="Stop when, by the model, little is left to gain. With "
                                                              "--log.")
@click.option("--rule", type=click.Choice(RULES),
              help="Another rule for the winner. Default: the study's own.")
@click.option("--order", type=click.Choice(ORDERS), default="recorded", show_default=True,
              help="recorded: as the results came; trial: one after another; shuffled: in 1000 other orders.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the shuffled orders.")
@click.option("--prune", type=click.Choice(PRUNING), help="Judge the recorded reports by this pruning rule.")
@click.option("--startup", type=_COUNT, help="Of --prune: so many trials to compare with before it stops one. Default: "
                                             "the rule's.")
@click.option("--warmup", type=click.IntRange(min=0), help="Of --prune: reports of steps before it are not judged.")
@click.option("--percentile", type=click.FloatRange(0, 100, min_open=True, max_open=True), metavar="P",
              help="Of --prune percentile: so many percent go on.")
@click.option("--chance", type=click.FloatRange(0, 0.5, min_open=True, max_open=True), metavar="P",
              help="Of --prune curve: stop what has less of a chance to end better than the best.")
@click.option("--error", type=click.FloatRange(0, 0.5, min_open=True, max_open=True), metavar="P",
              help="Of --prune race: the chance that it stops a trial which would have won.")
@click.option("--by", metavar="METRIC|dominance", help="Of --prune, with several objectives: what it looks at.")
@click.option("--method", type=click.Choice(METHODS), help="Name the next points of this method instead; see --next.")
@click.option("--next", "count", type=click.IntRange(1, 100), default=1, show_default=True,
              help="How many points of --method.")
@reaching
@format_option
@log_option
def what_if(name: str, reach: Reaching, format: str, log: Path | None, at: str | None, **asked: Any) -> None:
    """What another rule would have saved or lost.

    Replays the recorded results of a study under another budget, stopping rule, winner rule or pruning rule: where
    it would have stopped, who would have won, what had been saved and what lost. It never invents a result for a
    point that nobody measured: with --method it names the points that another method would have gone on to, and
    whether one of them was measured.
    """
    args = {("next" if key == "count" else key): value for key, value in asked.items() if value is not None}
    if log is None:
        if any(asked.get(name) for name in ("improvement", "regret", "converged")):
            raise Trouble("--improvement, --regret and --converged fit a model at every result, which may take "
                          "minutes, and no daemon does that beside its work: give its log, --log FILE", USAGE)

        async def go() -> Any:
            async with Client(reach()) as client:
                return await client.request(
                    "study.whatif", {"study": name, **at_args(at), **args},
                    timeout_s=max(client.reach.timeout_s, PAST_TIMEOUT_S), again_s=BEST_AGAIN_S)
        with show.patience("the daemon replays the study"):
            _show(format, asyncio.run(go()))
        return
    folded, answer = _offline(log, at, name, args)
    _show(format, answer)
    folded.must_be_whole()


def _offline(log: Path, at: str | None, name: str, args: dict[str, Any]) -> tuple[offline.Folded, dict[str, Any]]:
    whatif, choose, loads = need("bayesd.whatif"), need("bayesd.winner"), need("orjson").loads
    try:
        question = whatif.Question.read(args)
    except ValueError as error:
        raise Trouble(str(error), USAGE) from error
    folded = offline.fold(log, at)
    there = offline.study_of(folded, name)
    with show.patience("replaying the study"):
        known = whatif.known(there, offline.problem(folded, there))
        measured = known.entries
        if question.method is not None and at is not None:      # which of its points came to be measured later
            measured = choose.entries(offline.study_of(offline.fold(log), name))
        bodies = []
        if question.needs_events:
            read = need("bayesd.log").read_events(log, there.created_seq - 1, folded.state.seq)
            bodies = [body for body in (loads(raw) for _, raw, _ in read) if body.get("study") == name]
        try:
            answer = whatif.answer(question, bodies, known, measured)
        except ValueError as error:
            raise Trouble(str(error), USAGE) from error
    return folded, {**answer, **offline.moment_of(folded)}


# --- In words ----------------------------------------------------------------------------------------


def _show(format: str, answer: dict[str, Any]) -> None:
    lines: list[Line] = [("study", answer["study"])]
    value: list[Any]
    if answer.get("at"):
        lines.append(("as of", f"event {answer['at']['seq']}, {answer['at']['time']}"))
    if "next" in answer:
        lines += _next(answer)
        value = [len(answer["next"])]
    elif "prune" in answer:
        lines += _pruning(answer)
        value = [answer["reports_saved"], answer["lost"]["value"]]
    elif "shuffled" in answer:
        lines += _shuffled(answer)
        value = [answer["shuffled"]["results"]["p50"] if answer["shuffled"]["results"] else None]
    else:
        lines += _replayed(answer)
        value = [answer["stop"]["results"], answer["winner"].get("value"), answer["lost"]["value"]]
    lines += [("note", note) for note in answer["notes"]]
    show.record(format, answer, lines, value)


def _won(chosen: dict[str, Any]) -> str:
    if chosen["trial"] is None:
        return str(chosen["reason"])
    return f"trial {chosen['trial']}, {show.cell(chosen['value'])}  {show.params(chosen['params'])}"


def _lost(value: float | None) -> str:
    if value is None:
        return "no telling: there is no winner to compare"
    if value == 0:
        return "nothing: the winner is as good"
    return f"{abs(value):.4g} of the metric" if value > 0 else f"nothing: the winner is better by {abs(value):.4g}"


def _replayed(answer: dict[str, Any]) -> Iterator[Line]:
    actual, stop, end, saved = answer["actual"], answer["stop"], answer["end"], answer["saved"]
    by = f", closed by {actual['closed_by']}" if actual["closed_by"] else ""
    yield "as it was", f"{actual['results']} results of {actual['handed_out']} trials{by}"
    yield "winner", f"{_won(actual['winner'])} (rule {actual['winner']['rule']})"
    limits = show.params(answer["limits"]) or "no other limit"
    yield "what if", f"{limits}  rule={answer['rule']}  order={answer['order']}"
    if stop["rule"] is None:
        yield "stops", "not within the record"
    else:
        yield "stops", (f"by {stop['rule']} at event {stop['seq']}, {stop['time']}: {stop['results']} results, "
                        f"{stop['handed_out']} trials handed out")
        spent = [f"cost {show.cell(stop['cost'])}", f"training {show.duration(stop['seconds'])}"]
        if stop["elapsed_s"] is not None:
            spent.insert(0, show.duration(stop["elapsed_s"]))
        yield "by then", ", ".join(spent)
    if stop["pending_count"]:
        yield "pending", (f"{stop['pending_count']} trials ({_some(stop['pending'])}), counted with the results that "
                          f"they had by event {end['seq']}")
    yield "winner then", f"{_won(answer['winner'])} (rule {answer['winner']['rule']})"
    yield "lost", _lost(answer["lost"]["value"])
    if answer["lost"]["trials"]:
        yield "never run", f"{answer['lost']['trials']} complete trials, {answer['lost']['better']} of them better"
    words = [f"{saved['trials']} trials", f"cost {show.cell(saved['cost'])}",
             f"training {show.duration(saved['seconds'])}"]
    if saved["elapsed_s"] is not None:
        words.insert(1, show.duration(saved["elapsed_s"]))
    if saved["untimed"]:
        words.append(f"{saved['untimed']} results told no seconds")
    yield "saved", ", ".join(words)


def _some(numbers: list[int]) -> str:
    return show.cell(numbers[:LISTED_MAX]) + (", ..." if len(numbers) > LISTED_MAX else "")


def _shuffled(answer: dict[str, Any]) -> Iterator[Line]:
    found = answer["shuffled"]
    yield "winner", _won(answer["actual"]["winner"])
    yield "what if", f"{show.params(answer['limits'])}, in {found['orders']} other orders of the same results"
    for label, key in (("results", "results"), ("best", "best")):
        spread = found[key]
        if spread is not None:
            low, middle, high = (show.cell(spread[each]) for each in ("p10", "p50", "p90"))
            yield label, f"{middle} in the median; {low} to {high} in 8 of 10 orders"
    yield "as good", f"as the actual winner in {found['found_the_winner']:.0%} of the orders"


def _pruning(answer: dict[str, Any]) -> Iterator[Line]:
    rule, actual = answer["prune"], answer["actual"]["winner"]
    yield "what if", show.params({"prune": rule["rule"], **{name: rule[name] for name in rule if name != "rule"}})
    yield "stopped", f"{answer['pruned_count']} of {answer['reporting_trials']} trials that reported"
    yield "reports", f"{answer['reports']} of {answer['reporting_trials']} trials"
    share = answer["reports_saved"] / answer["reports"] if answer["reports"] else 0.0
    yield "saved", (f"{answer['reports_saved']} reported steps ({share:.0%}), an estimated "
                    f"{show.duration(answer['seconds_saved_estimate'])} of training if steps are equally long")
    yield "winner", _won(actual)
    yield "pruned?", f"{'yes' if answer['winner_pruned'] else 'no'}, the winner would have " \
                     f"{'been pruned' if answer['winner_pruned'] else 'lived'}"
    yield "winner then", ("the same" if answer["same_winner"] else "another: " + _won(answer["winner"]))
    yield "lost", _lost(answer["lost"]["value"])
    for each in answer["pruned"][:LISTED_MAX]:
        became = show.cell(each["value"]) if each["value"] is not None else "no value"
        yield f"trial {each['trial']}", (f"pruned at step {each['step']}, report {each['reports']} of {each['of']}; it "
                                         f"became {each['state']}, {became}")
    if answer["pruned_count"] > LISTED_MAX:
        yield "", f"and {answer['pruned_count'] - LISTED_MAX} more; -f json lists them"


def _next(answer: dict[str, Any]) -> Iterator[Line]:
    yield "what if", f"method {answer['method']} went on from {answer['trials_known']} outcomes"
    for i, each in enumerate(answer["next"], start=1):
        was = each["measured"]
        words = f"measured as trial {was['trial']}: {show.cell(was['value'])}" if was else "never measured"
        if each["expected"] is not None and not was:
            words += f"; the model expects {show.cell(each['expected'])} ± {each['sd']:.2g}"
        yield f"next {i}", f"{show.params(each['params'])}  {words}"
    if answer["exhausted"]:
        yield "", "there are no further points"
