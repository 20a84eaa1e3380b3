"""`bayesd study`: declare, look at, and steer studies."""

import asyncio
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from bayesd import show, verdict
from bayesd.call import Client, Refusal, once
from bayesd.cli import offline, warned
from bayesd.cli.common import (
    NO,
    USAGE,
    Reaching,
    Trouble,
    at_args,
    at_option,
    format_option,
    log_option,
    need,
    reaching,
    say_moment,
    study_argument,
    verb,
)
from bayesd.files import read_changes, read_study
from bayesd.show import Column
from bayesd_schemas.study import StudySpec

RULES = ("best", "mean", "one-se", "robust", "pareto")
FRONT_SHOWN = 10           # trials of a front that a page shows, evenly along it
BEST_TIMEOUT_S = 120.0     # the rule `mean` rebuilds a posterior
WARM_BYTES = 40_000        # of a message: the study file has to fit in as well
BEST_AGAIN_S = 20.0        # each copy of the question makes the daemon think again


def register(top: click.Group) -> None:
    top.add_command(study)


@click.group()
def study() -> None:
    """Declare, look at, and steer studies."""


# --- Create ----------------------------------------------------------------------------------------


@verb(study, "create", "bayesd study create digits.toml\nbayesd study create - < digits.toml\n"
                       "bayesd study create digits.toml --warm-from old.db:digits-2025")
@click.argument("file")
@click.option("--warm-from", metavar="LOG:STUDY", help="Let a study of another log file help: up to 1,000 of its "
                                                       "results are written into the log.")
@reaching
@format_option
def create(file: str, warm_from: str | None, reach: Reaching, format: str) -> None:
    """Create a study from FILE (TOML, JSON or YAML). The same file again changes nothing."""
    given = read_study(file)
    args = {"spec": given.data}
    if warm_from is not None:
        args["warm"] = _carried(warm_from, given.spec)

    async def go() -> dict[str, Any]:
        async with Client(reach()) as client:
            return await client.answer("study.create", args)
    try:
        answer = asyncio.run(go())
    except Refusal as refused:
        raise Trouble(f"{given.name}: {refused}", USAGE if refused.code == "bad-field" else NO) from refused
    row = answer["result"]
    name = given.spec.name
    if answer["status"] == "exists":
        show.talk(f"study {name} exists already, from the same file")
    else:
        show.talk(f"study {name} is open; next: bayesd worker run --study {name} -- PROGRAM, or bayesd watch {name}")
    _show_row(format, row)


def _carried(place: str, spec: StudySpec) -> dict[str, Any]:
    """What the study at LOG:STUDY measured."""
    warm = need("bayesd.study.warm")
    log, colon, name = place.rpartition(":")
    if not colon or not log:
        raise Trouble(f"--warm-from takes LOG:STUDY, for example old.db:digits-svm, not {place!r}", USAGE)
    folded = offline.fold(Path(log), None)
    folded.must_be_whole()
    try:
        said: dict[str, Any] = warm.carried(folded.state, offline.study_of(folded, name), spec, WARM_BYTES)
    except warm.Unusable as error:
        raise Trouble(f"{place}: {error}", NO) from error
    return said


# --- Look ------------------------------------------------------------------------------------------

_STUDIES = (Column("study", "STUDY"), Column("state", "STATE"), Column("method", "METHOD"),
            Column("trials", "TRIALS", True), Column("budget", "BUDGET", True), Column("running", "RUNNING", True),
            Column("complete", "COMPLETE", True), Column("fail", "FAIL", True), Column("metric", "METRIC"),
            Column("best", "BEST", True))


def _show_row(format: str, row: dict[str, Any]) -> None:
    keys = {**row, "state": f"{row['state']} by {row['closed_by']}"} if row.get("closed_by") else row
    show.record(format, row, [(column.title.lower(), keys.get(column.key)) for column in _STUDIES],
                [row["study"], row["state"]])


@verb(study, "list", "bayesd study list\nbayesd study list --log tuning.db -f json")
@reaching
@format_option
@log_option
def list_(reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """All studies of the log."""
    if log is None:
        show.rows(format, asyncio.run(_all(reach, "study.list", "studies", at_args(at))), _STUDIES, "no studies yet")
    else:
        folded = offline.fold(log, at)
        say_moment(folded.at)
        show.rows(format, offline.study_rows(folded), _STUDIES, "no studies in this log")
        folded.must_be_whole()


async def _all(reach: Reaching, verb: str, name: str, args: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    async with Client(reach()) as client:
        rows = await client.all(verb, name, args)
    say_moment(client.at)
    return rows


@verb(study, "show", "bayesd study show digits-svm\n"
                     "bayesd study show digits-svm --log tuning.db --at 2026-11-23T09:00:00Z")
@study_argument("name")
@reaching
@format_option
@log_option
def show_(name: str, reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """Everything about a study."""
    if log is None:
        page = asyncio.run(once(reach(), "study.show", {"study": name, **at_args(at)}))
        if len(page["objectives"]) > 1:
            page["front"] = asyncio.run(once(reach(), "study.front", {"study": name, **at_args(at)}))
        _show_study(format, page, warned.of_daemon(reach, name, at) if format == "table" else [])
    else:
        folded = offline.fold(log, at)
        page = offline.study_page(folded, name)
        if len(page["objectives"]) > 1:
            page["front"] = offline.front(folded, name)
        _show_study(format, page, warned.of_file(folded, name) if format == "table" else [])
        folded.must_be_whole()


def _bounds(goal: dict[str, Any]) -> str:
    low, high = goal.get("bounds") or (None, None)
    if low is None and high is None:
        return ""
    return f" (from {low:g} to {high:g})" if None not in (low, high) else (
        f" (at least {low:g})" if low is not None else f" (at most {high:g})")


def _limit(limit: dict[str, Any]) -> str:
    metric = f"{limit['metric']} " if limit.get("metric") not in (None, limit["name"]) else ""
    return metric + (f"at most {limit['at_most']:g}" if "at_most" in limit else f"at least {limit['at_least']:g}")


def _show_study(format: str, page: dict[str, Any], warnings: Sequence[warned.Line] = ()) -> None:
    best, budget, spec = page["best"], page["budget"], page["spec"]
    counts = {state: n for state, n in page["trials"].items() if state != "total" and n}
    state = f"{page['state']} by {page['closed_by']}" if page["closed_by"] else page["state"]
    limits: list[tuple[str, Any, Any, Callable[[Any], str]]] = [
        ("trials", budget["trials"], budget["used_trials"], str),
        ("wall", budget["wall"], budget["used_wall"], show.duration),
        ("cost", budget["cost"], budget["used_cost"], show.cell),
        ("fidelity", budget.get("fidelity"), budget.get("used_fidelity"), str)]
    lines = [("study", page["study"]), *_from(page), ("state", state), ("method", f"{spec.get('method', 'bayes')}, "
                                                                    f"seed {spec.get('seed', 0)}"),
             ("objective", ", ".join(f"{goal['direction']} {goal['name']}{_bounds(goal)}"
                                     for goal in page["objectives"])),
             *((f"limit {limit['name']}", _limit(limit)) for limit in page.get("limits", ())),
             ("trials", show.params(counts) if counts else "none yet"),
             *((f"budget {name}", f"{text(used)} of {text(limit)}") for name, limit, used, text in limits
               if limit is not None),
             ("eta", show.eta(page)),
             ("cost", show.cost(page)),
             ("best", "-" if best is None else f"{show.cell(best['value'])}  trial {best['trial']}  "
                                               f"{show.params(best['params'])}"),
             *_front(page.get("front")),
             *warnings,
             ("queued", page["queued"] or None),
             *((f"space {name}", _parameter(parameter)) for name, parameter in page["space"].items()),
             ("log", f"{page['log']}  epoch {page['epoch']}  seq {page['seq']}")]
    show.record(format, page, [(label, text) for label, text in lines if text is not None],
                [page["state"], best["value"] if best else None])


def _front(front: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Who is not beaten, and how the volume grew."""
    if front is None or not front["trials"]:
        return []
    out = [("front", f"{front['size']} of {front['complete']} complete trials")]
    rows = sorted(front["trials"], key=lambda row: next(iter(row["values"].values())))
    shown = rows if len(rows) <= FRONT_SHOWN else [
        rows[i * (len(rows) - 1) // (FRONT_SHOWN - 1)] for i in range(FRONT_SHOWN)]
    out += [(f"  trial {row['trial']}", show.params(row["values"])) for row in shown]
    if front["hypervolume"] is not None:
        last, steps = front["complete"], dict(front["over_time"])
        grown = [(at, max((volume for n, volume in steps.items() if n <= at), default=None))
                 for at in dict.fromkeys(-(-last * k // 4) for k in (1, 2, 3, 4))]
        how = "as declared" if len(front["declared"]) == len(front["reference"]) else "the worst that was measured"
        out.append(("hypervolume", ", ".join(f"{volume:.4g} after {at}" for at, volume in grown if volume is not None)
                    + f"  (up to {show.params(front['reference'])}, {how})"))
    return out


def _from(page: dict[str, Any]) -> list[tuple[str, str]]:
    """Which moment it is of, and where a fork began."""
    out, at, origin = [], page.get("at"), page.get("origin")
    if at is not None:
        out.append(("as of", f"event {at['seq']}, {at['time']}"))
    if origin is not None:
        out.append(("fork of", f"{origin['study']} behind event {origin['at']}, {str(origin['hash'])[:12]}…"))
    return out


def _parameter(declared: dict[str, Any]) -> str:
    words = str(declared["type"])
    if "choices" in declared:
        words += f" {show.cell(declared['choices'])}"
    else:
        words += f" {declared['low']:g} to {declared['high']:g}"
        if declared.get("scale", "linear") != "linear":
            words += f", {declared['scale']}"
    return words + (f"  when {show.params(declared['when'])}" if declared.get("when") else "")


# --- Steer -----------------------------------------------------------------------------------------


def _steer(reach: Reaching, verb: str, args: dict[str, Any], format: str, done: str) -> None:
    async def go() -> dict[str, Any]:
        async with Client(reach()) as client:
            return await client.answer(verb, args)
    answer = asyncio.run(go())
    row = answer["result"]
    if "again" in row:       # a copy of our request was answered from the log: what it made is not repeated
        row = asyncio.run(once(reach(), "study.show", {"study": args["study"]}))
        show.talk(done)
        _show_study(format, row)
        return
    show.talk(f"nothing changed: {args['study']} is {row['state']} already" if answer["status"] == "exists" else done)
    _show_row(format, row)


@verb(study, "pause", "bayesd study pause digits-svm")
@study_argument("name")
@reaching
@format_option
def pause(name: str, reach: Reaching, format: str) -> None:
    """Hand out no new trials.

    Running ones go on; the wall budget stands still.
    """
    _steer(reach, "study.pause", {"study": name}, format, f"{name} is paused; bayesd study resume {name} goes on")


@verb(study, "resume", "bayesd study resume digits-svm")
@study_argument("name")
@reaching
@format_option
def resume(name: str, reach: Reaching, format: str) -> None:
    """Hand out trials again."""
    _steer(reach, "study.resume", {"study": name}, format, f"{name} is open again")


@verb(study, "close", "bayesd study close digits-svm --running stop")
@study_argument("name")
@click.option("--running", type=click.Choice(["finish", "stop"]), default="finish", show_default=True,
              help="What becomes of running trials.")
@reaching
@format_option
def close(name: str, running: str, reach: Reaching, format: str) -> None:
    """End a study for good. Results of running trials are still recorded."""
    _steer(reach, "study.close", {"study": name, "running": running}, format,
           f"{name} is closed; next: bayesd study best {name}")


@verb(study, "amend", "bayesd study amend digits-svm budget.trials=100\nbayesd study amend digits-svm changes.toml")
@study_argument("name")
@click.argument("changes", nargs=-1, required=True, metavar="(FILE | KEY=VALUE ...)")
@reaching
@format_option
def amend(name: str, changes: tuple[str, ...], reach: Reaching, format: str) -> None:
    """Change parts of an open study from now on.

    These can be changed: budget, stop, prune (but not resume), winner, confirm, lease, retry, folds, late, noise, tags,
    method, surrogate, space, constraints, prior, cost, limits, bounds. Old trials stay as they are. FILE holds the
    changed parts only. VALUE is JSON, or else text; a parameter of the space that is set to null leaves it.
    """
    if len(changes) == 1 and "=" not in changes[0]:
        given = read_changes(changes[0])
    else:
        given = {}
        for path, value in _pairs(changes):
            _put(given, path.split("."), value)
    _steer(reach, "study.amend", {"study": name, "changes": given}, format, f"{name} is amended")


@verb(study, "enqueue", "bayesd study enqueue digits-svm C=1.0 kernel=rbf\n"
                        "bayesd study enqueue digits-svm --again 7 --repeats 3")
@study_argument("name")
@click.argument("params", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--again", type=click.IntRange(min=1), metavar="TRIAL", help="In place of a point: that of this trial, "
              "to be measured once more on other folds or seeds. No budget counts it.")
@click.option("--repeats", type=click.IntRange(min=1), default=None, help="Of --again: how often. Default 1.")
@reaching
@format_option
def enqueue(name: str, params: tuple[str, ...], again: int | None, repeats: int | None, reach: Reaching,
            format: str) -> None:
    """Try this point next, before any drawn one. VALUE is JSON, or else text."""
    if (again is None) == (not params) or (repeats is not None and again is None):
        raise Trouble("say either a point, for example C=1.0, or --again TRIAL with --repeats N", USAGE)
    args = {"params": dict(_pairs(params))} if again is None else {"again": again, "repeats": repeats or 1}
    result = asyncio.run(once(reach(), "study.enqueue", {"study": name, **args}))
    show.record(format, result, [(key, value) for key, value in result.items()], [result.get("queued")])


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    out = []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise Trouble(f"{word!r} is not KEY=VALUE, for example C=1.0", USAGE)
        out.append((key, as_value(text)))
    return out


def as_value(text: str) -> Any:
    """JSON if it is JSON, else the text itself: kernel=rbf needs no quotes."""
    with suppress(ValueError):
        return json.loads(text)
    return text


def _put(into: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        into = into.setdefault(part, {})
        if not isinstance(into, dict):
            raise Trouble(f"{part} is given as a value and as a table", USAGE)
    into[path[-1]] = value


# --- Fork ------------------------------------------------------------------------------------------


@verb(study, "fork", "bayesd study fork digits-svm --at 120 --as digits-svm-2\n"
                     "bayesd study fork digits-svm --at 2026-11-23T09:00:00Z --as random-from-9 method=random")
@study_argument("name")
@click.argument("changes", nargs=-1, metavar="[FILE] [KEY=VALUE ...]")
@click.option("--as", "new", required=True, metavar="NEW", help="The name of the new study.")
@at_option
@reaching
@format_option
def fork(name: str, changes: tuple[str, ...], new: str, at: str | None, reach: Reaching, format: str) -> None:
    """Begin another study with what this one knew at a moment; default: now.

    What was measured until then comes along as imported trials: they count for the winner and for the model, and
    for no budget. Pending trials stay behind, and so do points that the new space has no place for; they are
    counted. FILE is a study file for the new study, or holds the changed parts only, as KEY=VALUE does.
    """
    args: dict[str, Any] = {"study": name, "as": new, **at_args(at)}
    if changes and "=" not in changes[0]:
        given, changes = read_changes(changes[0]), changes[1:]
        args["spec" if "name" in given else "changes"] = given
    for path, value in _pairs(changes):
        _put(args.setdefault("changes", {}), path.split("."), value)
    with show.patience("the daemon goes back there"):
        row = asyncio.run(once(reach(), "study.fork", args))
    if "again" in row:       # a copy of our request was answered from the log
        row = asyncio.run(once(reach(), "study.show", {"study": new}))
        show.talk(f"study {new} is open")
        _show_study(format, row)
        return
    origin = row["origin"]
    show.talk(f"study {new} is open, with {row['imported']} trials of {name} up to event {origin['at']}")
    if row["not_carried"]:
        show.talk(f"{row['not_carried']} trials that were pending then are not carried")
    if row["left_out"]:
        show.talk(f"{row['left_out']} trials are left out, because the new space has no place for them: "
                  f"{row['why_left_out']}")
    _show_row(format, row)


# --- Confirmation ----------------------------------------------------------------------------------


@verb(study, "confirm", "bayesd study confirm digits-svm\nbayesd study confirm digits-svm --top 5 --repeats 3")
@study_argument("name")
@click.option("--top", type=click.IntRange(1, 100), default=3, show_default=True, help="How many leaders.")
@click.option("--repeats", type=click.IntRange(1, 20), default=1, show_default=True, help="How often each.")
@reaching
@format_option
def confirm(name: str, top: int, repeats: int, reach: Reaching, format: str) -> None:
    """Measure the leaders again, on other workers where there are any, before a winner is announced.

    The best of many noisy values is partly luck; the mean of fresh measurements is not. These trials count for no
    budget; a closed study opens for them alone, so workers must be there (or start with --keep).
    """
    row = asyncio.run(once(reach(), "study.confirm", {"study": name, "top": top, "repeats": repeats}))
    if "again" not in row:       # else a copy of our request was answered from the log
        show.talk(f"trials {', '.join(map(str, row['leaders']))} of {name} are measured again: "
                  f"{row['to_measure']} trials; bayesd study best {name} tells what came of it")
    _show_row(format, asyncio.run(once(reach(), "study.show", {"study": name})) if "again" in row else row)


# --- The winner ------------------------------------------------------------------------------------


@verb(study, "best", "bayesd study best digits-svm\nbayesd study best digits-svm --rule one-se -f json")
@study_argument("name")
@click.option("--rule", type=click.Choice((*RULES, "confirmed")),
              help="best: the best observed value; mean: the best by the model; one-se: the simplest or cheapest "
                   "within one standard error of the best; robust: the best of the worst nearby; pareto: the knee of "
                   "several objectives; confirmed: the best of those that were measured again. Default: confirmed "
                   "where that was done, else [winner] rule of the study file, else pareto with several objectives, "
                   "best where noise = \"none\", else mean.")
@reaching
@format_option
@log_option
def best(name: str, rule: str | None, reach: Reaching, format: str, log: Path | None, at: str | None) -> None:
    """The winner, and why it is the winner. Ends with 1 when there is none yet."""
    if log is None:
        async def go() -> tuple[dict[str, Any], dict[str, Any]]:
            async with Client(reach()) as client:
                args: dict[str, Any] = {"study": name, **at_args(at)}
                page = await client.request("study.show", args)      # who is not there is told at once
                return page, await client.request(
                    "study.best", args if rule is None else {**args, "rule": rule},
                    timeout_s=max(client.reach.timeout_s, BEST_TIMEOUT_S), again_s=BEST_AGAIN_S)
        with show.patience("the daemon weighs the trials"):
            page, chosen = asyncio.run(go())
            warnings = warned.of_daemon(reach, name, at) if format == "table" else []
        _show_best(format, page, chosen, warnings)
    else:
        folded = offline.fold(log, at)
        with show.patience("weighing the trials"):
            page, chosen = offline.study_page(folded, name), offline.winner(folded, name, rule)
            warnings = warned.of_file(folded, name) if format == "table" else []
        _show_best(format, page, chosen, warnings)
        folded.must_be_whole()


def _show_best(format: str, page: dict[str, Any], chosen: dict[str, Any], warnings: Sequence[warned.Line] = ()) -> None:
    goals = page["objectives"]
    if len(goals) > 1 and chosen["rule"] != "pareto":
        show.talk(f"chosen by the first of {len(goals)} objectives, {goals[0]['name']}; "
                  f"bayesd study export {page['study']} has them all")
    if chosen["trial"] is None:
        if format in ("json", "yaml"):
            show.record(format, chosen, (), ())
        raise Trouble(f"{chosen['study']}: {chosen['reason']}")
    say_moment(chosen.get("at"))
    again = page.get("confirmation")
    if again is not None and not again["is_announced"]:
        show.talk("the leaders are being measured again, and until that is done this is the word of their first "
                  "measurement")
    error = f" ± {show.cell(chosen['se'])}" if chosen.get("se") is not None else ""
    show.record(format, chosen, [
        ("study", chosen["study"]), ("trial", chosen["trial"]),
        ("value", f"{show.cell(chosen['value'])}{error}{verdict.pooled(chosen)}"),
        *((name, value) for name, value in chosen["params"].items()),
        *((f"limit {limit['name']}", f"{show.cell(limit['measured'])}, {_limit(limit)}{_binds(limit)}")
          for limit in chosen.get("limits", ())),
        *_trust(chosen), ("why", f"{chosen['reason']} (rule {chosen['rule']})"), *warnings], [chosen["value"]])
    if format == "table":
        others = [{"rule": rule, **each} for rule, each in chosen.get("others", {}).items()]
        if others:
            click.echo()
            show.rows(format, others, OTHERS)
        doubt = verdict.doubt(chosen, chosen["study"])
        if doubt is not None:
            show.talk(doubt)


OTHERS = (Column("rule", "OTHER RULES"), Column("trial", "TRIAL", True), Column("value", "VALUE", True),
          Column("n", "MEASURED", True), Column("mean", "EXPECTED", True),
          Column("probability", "PROBABILITY", True, lambda each: _share(each)),
          Column("expected_loss", "EXPECTED LOSS", True))


def _trust(chosen: dict[str, Any]) -> list[tuple[str, str]]:
    """What is believed of a winner; nothing where there is no model."""
    if chosen.get("probability") is None or chosen.get("mean") is None:
        return []
    what = "beaten in nothing with" if chosen["rule"] == "pareto" else "best of those tried with"
    return [("expected", f"{show.cell(chosen['mean'])} ± {chosen['sd']:.2g}"), (what, _share(chosen["probability"])),
            ("expected loss", f"{chosen['expected_loss']:.3g}")]


def _share(probability: float | None) -> str:
    return "-" if probability is None else f"{probability:.0%}"


def _binds(limit: dict[str, Any]) -> str:
    """What a limit costs: who would lead without it."""
    other = limit["without"]
    return f"; it binds: without it trial {other['trial']} would lead with {show.cell(other['value'])}" if other else ""


# --- Export ----------------------------------------------------------------------------------------


@verb(study, "export", "bayesd study export digits-svm -o trials.csv\n"
                       "bayesd study export digits-svm --format jsonl --log tuning.db | jq .values")
@study_argument("name")
@click.option("-f", "--format", "format", type=click.Choice(["csv", "jsonl"]),
              help="Default: what the name of the output ends in, else csv.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here; default standard output.")
@reaching
@log_option
def export(name: str, format: str | None, output: Path | None, reach: Reaching, log: Path | None,
           at: str | None) -> None:
    """Write all trials as CSV or JSONL.

    One trial a line: parameters, values, state, worker.
    """
    folded = None
    if log is None:
        trials = asyncio.run(_all(reach, "trial.list", "trials", {"study": name, **at_args(at)}))
    else:
        folded = offline.fold(log, at)
        say_moment(folded.at)
        trials = offline.trial_rows(folded, name)
    format = format or (output.suffix[1:] if output is not None and output.suffix in (".csv", ".jsonl") else "csv")
    text = _csv(trials) if format == "csv" else "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in trials)
    _write(output, text)
    if output is not None:
        show.talk(f"{len(trials)} trials in {output}")
    if folded is not None:
        folded.must_be_whole()


def _csv(trials: Sequence[dict[str, Any]]) -> str:
    """One column for each parameter and each metric; what is not there is empty."""
    def names(part: str) -> list[str]:
        return list(dict.fromkeys(name for row in trials for name in row[part] or ()))
    params, values = names("params"), names("values")
    plain = ["trial", "state", "se", "seconds", "class", "sampler", "fence", "worker"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain[:2], *(f"params.{name}" for name in params), *(f"values.{name}" for name in values),
                     *plain[2:]])
    for row in trials:
        writer.writerow([*(row[key] for key in plain[:2]), *(row["params"].get(name) for name in params),
                         *((row["values"] or {}).get(name) for name in values), *(row[key] for key in plain[2:])])
    return out.getvalue()


def _write(output: Path | None, text: str) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with closing(output.open("w", encoding="utf-8", newline="")) as file:
            file.write(text)
    except OSError as error:
        raise Trouble(f"{output} cannot be written ({error.strerror})", 74) from error


