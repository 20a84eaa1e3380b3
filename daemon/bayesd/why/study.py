"""The page of a study: why it stopped or does not go on, how far it is, and why its winner is the winner.

The log alone tells most of it. What only a running daemon knows (who stands in line, what is being
made) comes as `live`; without it the page says what it cannot know.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bayesd import winner
from bayesd.optimize.explain import chances
from bayesd.study import ladder
from bayesd.study.limits import Reading, words
from bayesd.study.problem import Problem
from bayesd.study.state import Study, Trial
from bayesd.why.live import Live
from bayesd.why.trial import curve
from bayesd.why.witness import Entry, Witness
from bayesd.why.words import beside, count, listed, number, percent, span, when

Page = dict[str, Any]
FAILING = 5             # outcomes in a row that failed: then the failures are the news
NAMED = 8


def study_page(seen: Witness, problem: Problem, live: Live | None) -> Page:
    """`problem` is what the optimiser would be asked at the end of what was seen."""
    study = seen.study
    goal = study.goals[0]
    reasons = list(_reasons(seen, live))
    state = {"closed": "stopped", "paused": "stand still"}.get(study.status)
    question = f"Why has {study.name} stopped?" if study.status == "closed" else \
        f"Why does {study.name} {state}?" if state else f"How does {study.name} go on, or why not?"
    chosen = _winner(study, problem)
    return {
        "page": "study", "study": study.name, "state": study.status, "closed_by": study.closed_by,
        "question": question, "metric": goal.name, "direction": goal.direction,
        "answer": reasons[0]["words"], "reasons": reasons, "live": live is not None,
        "counts": dict(study.counts), "progress": list(_progress(seen, live)),
        "winner": chosen, "curve": curve(seen, 1.0 if goal.direction == "minimize" else -1.0,
                                         None if chosen is None else chosen["trial"]),
        "recomputed": None, "became": None, "record": _record(seen)}


def _reason(code: str, words: str, remedy: str | None = None) -> Page:
    return {"code": code, "words": words, "remedy": remedy}


# ---------------------------------------------------------------- why it does not go on


def _reasons(seen: Witness, live: Live | None) -> Iterator[Page]:
    """The first is the answer."""
    study = seen.study
    if study.status == "closed":
        yield _closed(seen)
        yield from _still_out(study)
        yield from _failing(seen)
        return
    found = [*(_paused(seen) if study.status == "paused" else ()), *_daemon(seen, live), *_handed_out(study),
             *_stalled(seen, live), *_going_on(seen, live), *_failing(seen)]
    yield from found or [_reason("unknown", f"Nothing in the log holds {study.name} up: it is open and has room.",
                                 f"Ask its daemon: bayesd why {study.name}")]


def _closed(seen: Witness) -> Page:
    study, budget = seen.study, seen.study.spec.budget
    entry = next(entry for entry in reversed(seen.steering) if entry.event.type == "study.closed")
    at = f"at {when(entry.time)} (event {entry.seq})"
    longer = ("A closed study stays closed: create another with a larger budget. While one is open, bayesd study amend "
              f"{study.name} {{}} prolongs it.")
    rule = study.closed_by
    if rule == "trials":
        lowered = _lowered(seen)
        if lowered is not None:
            return _reason("trials", f"{lowered.operator or 'Somebody'} amended it {at} to a budget of "
                           f"{count(budget.trials or study.used, 'trial')}, and {study.used} had been tried by then.",
                           longer.format(f"budget.trials={2 * (budget.trials or 1)}"))
        return _reason("trials", f"Its budget of {count(budget.trials or study.used, 'trial')} was used up, and the "
                       f"last outcome came {at}.", longer.format(f"budget.trials={2 * (budget.trials or 1)}"))
    if rule == "wall":
        return _reason("wall", f"Its time of {span(budget.wall)} was used up {at}: open time, not counting pauses and "
                       f"times without a daemon, was {span(study.elapsed_s)}.", longer.format("budget.wall=4h"))
    if rule == "cost":
        return _reason("cost", f"Its cost budget of {number(budget.cost)} was used up {at}: its trials cost "
                       f"{number(study.cost)}.", longer.format(f"budget.cost={number(2 * (budget.cost or 1))}"))
    if rule == "fidelity":
        unit = "" if study.spec.fidelity is None else f" {study.spec.fidelity.name}"
        return _reason("fidelity", f"Its budget of {budget.fidelity}{unit} was used up {at}: its trials were trained "
                       f"for {ladder.trained(study)} together, and what was left brought none of them to the end.",
                       longer.format(f"budget.fidelity={2 * (budget.fidelity or 1)}"))
    if rule == "exhausted":
        kept = " that the constraints allow" if study.spec.constraints else ""
        seldom = "" if study.repeats else " and no point is tried twice here" + (
            " (noise = \"none\")" if study.spec.noise == "none" else " (method grid)")
        return _reason("exhausted", f"No untried point{kept} was left or found {at}, after "
                       f"{count(len(study.trials), 'trial')}{seldom}.",
                       "To go on, create a study with wider ranges or finer steps.")
    if study.stopping is not None and rule is not None and rule == study.stopping["rule"]:
        return _reason(rule, f"{_stopped(study)} It closed {at}, when every trial had its outcome.",
                       longer.format("stop.…"))
    stop = "told running trials to stop" if entry.data.get("running") == "stop" else "let running trials finish"
    return _reason("operator", f"{entry.operator or 'Somebody'} closed it {at} and {stop}.",
                   "A closed study stays closed: create another to go on.")


def _stopped(study: Study) -> str:
    """Which stop rule fired, and the numbers that it was held against."""
    assert study.stopping is not None
    rule, said = study.stopping["rule"], study.stopping["numbers"]
    metric, judged = study.goals[0].name, f"(judged on event {study.stopping['as_of']})"
    if rule == "target":
        return (f"Its target was reached: trial {said['trial']:.0f} has a {metric} of {number(said['value'])}, and the "
                f"target is {number(said['target'])} {judged}.")
    if rule == "patience":
        least = f" by more than {number(said['min_delta'])}" if said["min_delta"] else ""
        return (f"{count(int(said['barren']), 'complete trial')} in a row brought nothing better{least} than the "
                f"{number(said['value'])} of trial {said['trial']:.0f}; its patience is {said['patience']:.0f} "
                f"{judged}.")
    left = (f"after {count(int(said['results']), 'result')} the best point anywhere was expected to be better than the "
            f"best belief, {number(said['best'])}, by {number(said['expected_regret'])}, and by less than "
            f"{number(said['regret'])} with a chance of 95 %; the largest expected improvement of any point was "
            f"{number(said['improvement'])}, and the noise of one measurement {number(said['noise'])} {judged}")
    if rule == "converged":
        return (f"The search had converged: {left}. {count(int(said['steady']), 'model')} in a row said that this is "
                f"little against the {number(said['spread'])} between a random point and the best, and the best had "
                f"not moved for {said['barren']:.0f} results.")
    return f"Its stop rule {rule} fired at {number(said['at_most'])}: {left}."


def _lowered(seen: Witness) -> Entry | None:
    """The amendment that closed it, if it was none of the outcomes."""
    entry = seen.ended_by
    return entry if entry is not None and entry.event.type == "study.amended" else None


def _still_out(study: Study) -> Iterator[Page]:
    if study.running:
        yield _reason("still-out", f"{_held(list(study.running.values()))}; results of trials that were leased before "
                      "the close are still recorded.")


def _paused(seen: Witness) -> Iterator[Page]:
    entry = next((entry for entry in reversed(seen.steering) if entry.event.type == "study.paused"), None)
    at = f" at {when(entry.time)} (event {entry.seq})" if entry is not None else ""
    by = (entry.operator if entry is not None else None) or "Somebody"
    yield _reason("paused", f"{by} paused it{at}: nothing is handed out, running trials go on, and its time stands "
                  "still.", f"To go on: bayesd study resume {seen.name}")


def _daemon(seen: Witness, live: Live | None) -> Iterator[Page]:
    if live is not None:
        if live["disk_full"]:
            yield _reason("disk-full", "The disk of the log is full: the daemon grants nothing until a write succeeds.",
                          "Free some space; it tries every few seconds.")
        return
    stopped, started = seen.daemon.get("daemon.stopped"), seen.daemon.get("daemon.started")
    if stopped is not None and (started is None or stopped.seq > started.seq):
        yield _reason("no-daemon", f"No daemon serves this log: the last one was stopped at {when(stopped.time)} "
                      f"(event {stopped.seq}).", "Start one: bayesd serve --log FILE")


def _handed_out(study: Study) -> Iterator[Page]:
    """All of the budget is out, or a stop rule has fired; what is missing is named."""
    if study.stopping is not None and study.status == "open" and (study.running or study.waiting):
        yield _reason("stopping", f"{_stopped(study)} It closes when each trial that is out has its outcome. Missing: "
                      f"{_held([*study.running.values(), *study.waiting.values()])}.",
                      f"To go on instead: bayesd study amend {study.name} stop.{study.stopping['rule']}=null")
        return
    budget = study.spec.budget.trials
    if budget is None or study.used < budget or study.status != "open":
        return
    missing = [*study.running.values(), *study.waiting.values()]
    if missing:
        yield _reason("budget", f"All {budget} trials of its budget are handed out, and it closes when each has its "
                      f"outcome. Missing: {_held(missing)}.",
                      f"To try more: bayesd study amend {study.name} budget.trials={2 * budget}")


def _held(trials: list[Trial]) -> str:
    words = []
    for trial in trials:
        lease = trial.open_lease
        words.append(f"trial {trial.number} (" + (f"{lease.worker} has it since {when(lease.at)}" if lease is not None
                     else f"waits to be leased again after {count(trial.fence, 'lease')}") + ")")
    return listed(words, NAMED)


def _stalled(seen: Witness, live: Live | None) -> Iterator[Page]:
    """It is open and has room: then workers are missing, or a suggestion is."""
    study = seen.study
    if study.status != "open":
        return
    if live is None:
        if not study.running and _room(study):
            yield _reason("nobody-works", f"It is open and has room, and no trial is out. {_last(seen)} Whether "
                          "workers stand in line only its daemon knows.",
                          f"Ask it: bayesd why {study.name}, without --log. If none asks: bayesd worker run --study "
                          f"{study.name} -- PROGRAM")
        return
    asks = live["standing"]
    if live["exhausted"]:
        yield _reason("exhausted", "No untried point is left or found while things stand as they do; it closes when "
                      "the last running trial has its outcome.")
    without = [ask for ask in asks if ask["reason"] == "no-matching-tags"]
    if without:
        missing = sorted(set(study.spec.tags) - set(without[0]["tags"]))
        yield _reason("no-matching-tags", f"{count(len(without), 'ask')} in line (of "
                      f"{listed(sorted({ask['worker'] for ask in without}))}) may not be served: the study wants tags "
                      f"{listed(missing)}, which they do not carry.",
                      f"Start the workers with these tags, or change the study: bayesd study amend {study.name} "
                      "tags=[]")
    if live["thinking_s"] is not None and live["thinking_s"] > 1:
        yield _reason("thinking", f"A suggestion is being made since {span(live['thinking_s'])}; who waits too long "
                      "gets a plainer one.")
    if not live["asks"] and not study.running and _room(study):
        yield _reason("nobody-asks", f"No worker asks for a trial, and none is out. {_last(seen)}",
                      f"Start one: bayesd worker run --study {study.name} -- PROGRAM")


def _room(study: Study) -> bool:
    budget = study.spec.budget.trials
    return bool(study.waiting) or (study.stopping is None and budget is None) or (
        study.stopping is None and budget is not None and study.used < budget)


def _last(seen: Witness) -> str:
    """What was heard of it last."""
    entries = [entry for type, entry in seen.last.items() if type != "study.ticked"]
    entry = max(entries, key=lambda entry: entry.seq)
    words = {"study.created": "it was created", "study.amended": "it was amended", "study.resumed": "it was resumed",
             "study.stopping": "a stop rule fired",
             "study.confirming": "its leaders began to be measured again", "study.winner": "its winner was confirmed",
             "study.forked": "it was forked from another", "trial.imported": "a result was imported",
             "trial.completed": "a result came", "trial.failed": "a trial failed", "trial.leased": "a trial was leased",
             "lease.expired": "a lease ended without a word", "lease.released": "a trial was given back",
             "point.enqueued": "a point was put into its queue", "outcome.voided": "an outcome was declared void"}
    what = words.get(entry.event.type, entry.event.type)
    of = f" (trial {entry.event.trial})" if entry.event.trial else ""
    return f"The last thing that happened to it: {what}{of}, {when(entry.time)}."


def _going_on(seen: Witness, live: Live | None) -> Iterator[Page]:
    study = seen.study
    if study.status != "open" or not study.running or not _room(study):
        return
    standing = 0 if live is None else live["asks"]
    asks = f", and {count(standing, 'ask stands', 'asks stand')} in line" if standing else ""
    yield _reason("running", f"It goes on: {_held(list(study.running.values()))}{asks}.")
    for lease in (live or {}).get("leases", ()):
        if lease["left_s"] is not None and lease["left_s"] < 0.1 * lease["lease_s"]:
            yield _reason("silent", f"Nothing was heard of {lease['worker']} about trial {lease['trial']} for a while: "
                          f"its lease runs out in {span(lease['left_s'])} unless it beats, and the trial is then "
                          "offered again.")


def _failing(seen: Witness) -> Iterator[Page]:
    """Whether all that came in lately were failures."""
    done = sorted((trial for trial in seen.study.trials if trial.status in ("complete", "fail", "pruned")),
                  key=lambda trial: trial.outcome_seq)
    failed = 0
    for trial in reversed(done):
        if trial.status != "fail":
            break
        failed += 1
    if failed < FAILING:
        return
    classes = Counter(trial.failure or "other" for trial in done[-failed:])
    kinds = ", ".join(f"{name} {n}" for name, n in classes.most_common())
    last = seen.last.get("trial.failed")
    error = str(seen.said(last).get("error") or "").strip().splitlines() if last is not None else []
    yield _reason("failing", f"The last {failed} outcomes were failures ({kinds})"
                  + (f"; the newest says: {error[-1][:200]}" if error else "") + ".",
                  "See the worker's own output; bayesd trial list " + seen.name + " --state fail has them all.")


# ---------------------------------------------------------------- how far


def _progress(seen: Witness, live: Live | None) -> Iterator[str]:
    study, counts = seen.study, seen.study.counts
    kinds = (("complete", "finished"), ("fail", "failed"), ("pruned", "stopped early"), ("running", "under way"),
             ("waiting", "to be leased again"), ("paused", "paused at a rung"), ("voided", "declared void"))
    parts = [f"{counts[key]} {words}" for key, words in kinds if counts.get(key)]
    yield f"{count(len(study.trials), 'trial')}" + (f": {', '.join(parts)}." if parts else ", none yet handed out.")
    if study.origin is not None:
        yield (f"It is a fork of {study.origin.study} as it stood behind event {study.origin.at}, and began with "
               f"{count(sum(trial.origin is not None for trial in study.trials), 'trial')} that had been measured "
               "there.")
    broken = Reading.of(study).beside({"trial": None, "reason": ""})
    if "least_violating" in broken:
        yield f"There is no winner: {broken['reason']}."
    budget, elapsed = study.spec.budget, study.elapsed_s if live is None else live["elapsed_s"]
    limits = [f"{study.used} of {count(budget.trials, 'trial')}"] if budget.trials is not None else []
    if budget.wall is not None:
        limits.append(f"{span(elapsed)} of {span(budget.wall)}")
    if budget.cost is not None:
        limits.append(f"{number(study.cost)} of a cost of {number(budget.cost)}")
    yield f"Budget used: {listed(limits)}." if limits else "It has no budget: it goes on until somebody closes it."
    if study.queue:
        yield f"{count(len(study.queue), 'point')} by hand {'is' if len(study.queue) == 1 else 'are'} in the queue."
    workers = Counter(lease.worker for trial in study.trials for lease in trial.leases)
    if workers:
        shown = [f"{name} ({count(n, 'lease')})" for name, n in workers.most_common()]
        yield f"Workers that had trials of it: {listed(shown, NAMED)}."


def _record(seen: Witness) -> list[tuple[str, str]]:
    rows = [("log", seen.log)]
    for entry in seen.steering[-NAMED:]:
        words = entry.event.type.removeprefix("study.")
        by = f" of {entry.data['origin']['study']}" if entry.event.type == "study.forked" else ""
        by += f" by {entry.operator}" if entry.operator else ""
        rows.append((words, f"event {entry.seq}, {when(entry.time)}{by}"))
    return [*rows, ("seen up to", f"event {seen.seq}, {when(seen.time)}")]


# ---------------------------------------------------------------- why this winner


def _winner(study: Study, problem: Problem) -> Page | None:
    entries = winner.entries(study)
    if not entries:
        return None
    chosen = winner.all_of(study, problem)
    announced = chosen[winner.default(study)]
    confirmed = chosen.pop(winner.CONFIRMED, None)
    best = chosen["best"]
    sign = 1.0 if problem.directions[0] == "minimize" else -1.0
    order = sorted(entries, key=lambda entry: (sign * entry.value, entry.trial))
    second = order[1] if len(order) > 1 else None
    probable = {} if study.spec.noise == "none" else chances(problem)
    out: Page = {"confirmed": confirmed,
                 "trial": best["trial"], "value": best["value"], "se": best["se"], "params": best["params"],
                 "rule": "best", "reason": best["reason"],
                 "rules": {rule: {"trial": each["trial"], "reason": each["reason"]} for rule, each in chosen.items()},
                 "runner_up": None, "difference": None, "noise_sd": None, "chances": None}
    if second is not None:
        ses = [entry.se for entry in order[:2]]
        out["runner_up"] = {"trial": second.trial, "value": second.value, "se": second.se,
                            "params": dict(second.params)}
        out["difference"] = abs(order[0].value - second.value)
        if None not in ses:
            out["noise_sd"] = math.hypot(*(se for se in ses if se is not None))
    if probable:
        top = sorted(probable.items(), key=lambda pair: (-pair[1], pair[0]))
        out["chances"] = [{"trial": trial, "probability": chance} for trial, chance in top[:5] if chance >= 0.01]
        out["chance"] = probable.get(best["trial"], 0.0)
    out["announced"] = {name: announced.get(name) for name in (
        "rule", "trial", "reason", "mean", "sd", "probability", "expected_loss")}
    out["words"] = list(_winner_words(study, out))
    return out


def _winner_words(study: Study, won: Page) -> Iterator[str]:
    name, second = study.goals[0].name, won["runner_up"]
    scale = won["se"] or (won["difference"] or 0.0) / 10 or None
    spread = f" ± {won['se']:.2g}" if won["se"] else ""
    yield (f"Trial {won['trial']}, {name} {beside(won['value'], scale)}{spread}, by rule best: {won['reason']}."
           + (" By the first objective alone: the others are traded off, and bayesd study export has them all."
              if len(study.goals) > 1 else ""))
    limits = Reading.of(study).beside({"trial": won["trial"]}).get("limits", [])
    if limits:
        yield f"It keeps the limits of the study: {words(limits)}."
        for limit in limits:
            if limit["binds"]:
                other = limit["without"]
                yield (f"The limit {limit['name']} binds: without it trial {other['trial']} would lead, with "
                       f"{number(other['value'])}.")
    announced = won["announced"]
    if announced["trial"] != won["trial"] and not won["confirmed"]:
        yield f"Announced is trial {announced['trial']} by rule {announced['rule']}: {announced['reason']}."
    if won["confirmed"]:
        again = won["confirmed"]
        yield f"Confirmed is trial {again['trial']}: {again['reason']}."
    if second is None:
        yield "It is the only finished trial, so that is all that can be said."
        return
    yield f"The runner-up is trial {second['trial']} with {beside(second['value'], scale)}. {_apart(study, won)}"
    others = [f"{rule} takes trial {each['trial']} ({each['reason']})" for rule, each in won["rules"].items()
              if rule != "best" and each["trial"] != won["trial"]]
    if others:
        yield f"Other rules decide otherwise: {'; '.join(others)}."
    else:
        yield "The other rules take the same trial."
    if won["chances"]:
        others = [f"{percent(each['probability'])} for trial {each['trial']}" for each in won["chances"]
                  if each["trial"] != won["trial"]]
        likelier = any(each["probability"] > won["chance"] for each in won["chances"])
        yield (f"By the model's own account the chance that it is truly the best of the points tried is "
               f"{percent(won['chance'])}" + (f"; it is {listed(others)}" if others else "") + ". That weighs "
               "the neighbours of a point, too, and is worth as much as the model is; of points that were not tried it "
               "says nothing." + (" So the best value and the point that is likeliest to be the best are not the same "
                                  "here: a single value may be luck." if likelier else ""))


def _apart(study: Study, won: Page) -> str:
    difference, noise = won["difference"], won["noise_sd"]
    if study.spec.noise == "none":
        return (f"The difference of {number(difference)} is real: the study says that the same point always gives the "
                "same value (noise = \"none\").")
    if difference == 0:
        return "The two are equal; the earlier one is taken."
    if noise is None:
        return (f"They differ by {number(difference)}. Nobody told how noisy one result is, so it may be chance; tell "
                "fold scores, or run the best points again.")
    z = difference / noise if noise > 0 else math.inf
    size = f"They differ by {number(difference)}, {z:.1f} times the noise of that difference ({number(noise)})"
    if z < 1:
        return f"{size}: no telling which is better."
    return f"{size}: likely, not certain." if z < 2 else f"{size}: more than chance would make of it."
