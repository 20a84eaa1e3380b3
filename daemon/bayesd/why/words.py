"""A page as text for a person: plain sentences, units of the metric, 80 columns, nothing that needs colour.

`of` takes any page that `trial`, `study` or `worker` made, as it came out of JSON.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bayesd import show
from bayesd.study.problem import NONE_NEW
from bayesd.why import chart

WIDTH = 80
DIFFERENCES = 6         # parameters that are named one by one
PENDING_NAMED = 8

Page = Mapping[str, Any]


def of(page: Page, width: int = WIDTH) -> str:
    """The whole page."""
    lines = [*title(page, width), ""]
    for heading, blocks in _SECTIONS[page["page"]](page, width):
        if not blocks:
            continue
        lines.append(heading)
        for block in blocks:
            lines += [f"  {line}".rstrip() for line in block] if isinstance(block, list) else _wrapped(block, width)
        lines.append("")
    return "\n".join(lines).rstrip().replace(_TIGHT, " ")


def title(page: Page, width: int = WIDTH) -> list[str]:
    """The question that the page answers."""
    if page["page"] not in ("trial", "imported"):
        return [str(page["question"])]
    asked = f"Why trial {page['trial']} of {page['study']}?"
    params = show.params(page["params"])
    if len(asked) + 2 + len(params) <= width:
        return [f"{asked}  {params}".rstrip()]
    return [asked, *_wrapped(params, width)]


def sentence(page: Page) -> str:
    """The page in one or two sentences."""
    if page["page"] == "imported":
        return " ".join(_imported_in_short(page)).replace(_TIGHT, " ")
    if page["page"] != "trial":
        return str(page["answer"])
    return " ".join(_in_short(page)).replace(_TIGHT, " ")


Block = str | list[str]
"""A paragraph to be folded, or lines as they are."""
Section = tuple[str, list[Block]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_long_words=False,
                         break_on_hyphens=False)


# ---------------------------------------------------------------- numbers in words


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def beside(value: float, scale: float | None) -> str:
    """A number with as many digits as mean something beside a deviation or a difference."""
    if scale is None or not scale > 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.4g}"
    digits = min(max(1 - math.floor(math.log10(scale)), 0), 12)
    return f"{value:.{digits}f}"


_TIGHT = "\u00a0"       # a space at which no line ends; a plain one when the page is done


def large(value: float) -> str:
    """Three digits, and no 1e+03: 1,000."""
    return f"{value:.3g}" if not 999.5 <= value < 1e15 else f"{float(f'{value:.3g}'):,.0f}"


def percent(share: float) -> str:
    if share < 0.005:
        return f"less than 1{_TIGHT}%"
    return f"more than 99{_TIGHT}%" if share > 0.995 else f"{round(100 * share)}{_TIGHT}%"


def span(seconds: float | None) -> str:
    """A stretch of time as a person says it."""
    if seconds is None:
        return "an unknown time"
    seconds = max(0.0, seconds)
    if seconds < 1:
        return "less than a second"
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{large(seconds / size)} {unit}"
    if f"{seconds:.2g}" == "1":
        return "1 second"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"


def when(time: str | None) -> str:
    """A time of the log: 2026-11-23 09:12:04 UTC."""
    return "an unknown time" if not time else f"{time[:10]} {time[11:19]} UTC"


def count(n: int, noun: str, nouns: str | None = None) -> str:
    return f"{n:,} {noun if n == 1 else nouns or noun + 's'}"


def listed(items: Sequence[str], most: int = PENDING_NAMED) -> str:
    """a, b and c; a, b, c and 4 more."""
    shown, more = list(items[:most]), len(items) - most
    if more > 0:
        shown.append(f"{more} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _sd(by: float) -> str:
    return f"{abs(by):.1f} standard deviations"


# ---------------------------------------------------------------- a trial


def _trial(page: Page, width: int) -> Iterable[Section]:
    yield "In short", [" ".join(_in_short(page))]
    yield "What was known then", list(_known(page))
    yield "Why this point", list(_reason(page))
    yield "What the model expected", list(_expectation(page))
    yield "How far from what was tried", list(_nearest(page))
    yield "What else was close", list(_rivals(page))
    yield "What became of it", list(_became(page))
    yield "What it taught", list(_lesson(page))
    yield f"Best {page['metric']} so far, {'lower' if _minimize(page) else 'higher'} is better", _curve(page, width)
    for each in (page["recomputed"] or {}).get("slices", ()):
        yield (f"{page['metric']} along {each['parameter']}, as the model saw it then, the rest as in this trial",
               _slice(page, each, width))
    yield "On record", _record(page)


def _minimize(page: Page) -> bool:
    return bool(page["direction"] == "minimize")


def _in_short(page: Page) -> Iterable[str]:
    choice, expected, became = page["choice"], page["expected"], page["became"]
    how = choice["how"]
    short = {"centre": "It is the middle of the space, where a search that learns begins.",
             "prior": "It was drawn from what the study file says of where good points are.",
             "earlier": "It was among the best points of an earlier study.",
             "design": "It is one of the evenly spread points that a model needs before it has a say.",
             "sobol": "Method sobol spreads its points evenly; no result had a say in it.",
             "random": "It was drawn at random; no result had a say in it.",
             "grid": "It was the next cell of the grid; no result had a say in it.",
             "confirm": f"It measures trial {choice['of']} again; no sampler had a say in it.",
             "again": f"{_who(choice)} wanted trial {choice['of']} measured again; no sampler had a say in it.",
             "enqueued": f"{_who(choice)} asked for it; no sampler had a say in it."}.get(how)
    if choice["fallback"]:
        short = f"A plainer sampler than the model answered, because {_fallback(choice['fallback'])}."
    if short is None:
        short = f"The model of {count(page['known']['outcomes'], 'outcome')} liked this point best"
        short += f", {_AIMS[page['aim']][0]}." if page["aim"] else "."
    yield short
    if expected is not None and expected["source"] == "recorded" and expected["by_sd"] is not None:
        made = page["recomputed"]
        if made is not None and made["best_belief"] is not None:
            against = f"{_against(made['ahead_sd'])} the best that it knew"
        else:
            against = f"{_against(expected['by_sd'])} the best value then"
        yield f"It expected {page['metric']} {_interval(expected)}, {against}."
    yield _fate(page, became)


_AIMS = {
    "blind": ("though it could not tell points apart: all results were equal",
              "All results were equal, so it has nothing to prefer a point by but its distance to the others."),
    "exploit": ("mostly to exploit: a good value was to be expected there",
                "Mostly exploitation: the model expects a better value here than it knows of."),
    "mixed": ("to exploit and to explore: its prediction there was fair, and uncertain",
              "Exploitation and exploration together: the model expects a good value here, and doubts it."),
    "refine": ("to refine what it knew: it lies beside another trial",
               "Refinement: it lies within 5 % of every range of another trial, where the model expects about the "
               "best, and makes that more precise."),
    "explore": ("mostly to explore: what might be found there was uncertain",
                "Mostly exploration: what it may find is worth more than the value that the model expects here.")}
"""How a point was meant: in the middle of a sentence, and as one."""


def _fate(page: Page, became: Page) -> str:
    state = became["state"]
    if state == "complete":
        words = f"It came out at {_result(page)}"
        if became["broken"]:
            words += f", but does not keep the limit {listed(became['broken'])}"
        elif became["improved"] is not None:
            words += ", a new best" if became["improved"] else ", no new best"
        return f"{words}."
    return {"running": "It has no result yet: it is being worked on.",
            "waiting": "It has no result yet: it waits to be leased again.",
            "paused": "It is paused at a rung.",
            "fail": f"It failed ({became['class']}).",
            "pruned": "It was stopped early.",
            "voided": f"Its outcome was declared void{_because(became['voided'])}."}[state]


def _because(act: Page | None) -> str:
    """The reason that a person gave, as the end of a sentence."""
    reason = (act or {}).get("reason")
    return f": {reason.rstrip('.')}" if reason else ""


def _result(page: Page) -> str:
    value, se = page["became"]["value"], page["became"]["se"]
    return f"{beside(value, se)} ± {se:.2g}" if se else number(value)


def _interval(expected: Page) -> str:
    return f"{beside(expected['mean'], expected['sd'])} ± {expected['sd']:.2g}"


def _against(by: float) -> str:
    if abs(by) < 0.05:
        return "about as good as"
    return f"{_sd(by)} {'better' if by > 0 else 'worse'} than"


def _known(page: Page) -> Iterable[Block]:
    known = page["known"]
    parts = [f"{known['complete']} finished"]
    for key, words in (("fail", "failed"), ("pruned", "stopped early"), ("voided", "declared void"),
                       ("running", "under way"), ("waiting", "waiting to be leased again"),
                       ("paused", "paused at a rung")):
        if known.get(key):
            parts.append(f"{known[key]} {words}")
    budget = f" of {known['budget']}" if known["budget"] else ""
    moment = f"The point was made from the study as it stood at event {known['seq']}, {when(known['time'])}."
    besides = f", besides {count(known['imported'], 'imported one')}" if known["imported"] else ""
    if not known["trials"]:
        yield f"{moment} No trial had been handed out yet."
    elif not known["handed_out"]:
        yield (f"{moment} No trial of its own had been handed out yet; it began with "
               f"{count(known['imported'], 'imported one')}: {', '.join(parts)}.")
    else:
        handed = f"{count(known['handed_out'], 'trial')} had" if not budget else f"{known['used']}{budget} trials had"
        yield f"{moment} {handed} been handed out{besides}: {', '.join(parts)}."
    best = known["best"]
    if best is not None:
        yield f"The best {page['metric']} was {number(best['value'])}, of trial {best['trial']}."
    elif known["trials"]:
        yield "There was no result to call the best."
    pending = page["pending"]
    if pending["used"] and (pending["trials"] or pending["ahead"]):
        names = [f"trial {n}" for n in pending["trials"]] + ["another"] * pending["more"]
        away = [f"{listed(names)} without a result"] if names else []
        if pending["ahead"]:
            away.append(f"{count(pending['ahead'], 'candidate')} that lay ready before it")
        yield (f"It was kept away from {' and '.join(away)}: the model took its own "
               "prediction there for the result.")


def _who(choice: Page) -> str:
    by = choice["by"]
    if by is None:
        return "Somebody"
    if by["with"] == "fork":
        return f"Somebody in {by['of']}, which this study was forked from,"
    return "The study file" if by["with"] == "study file" else str(by["who"] or "Somebody")


def _fallback(reason: str) -> str:
    head, _, rest = reason.partition(": ")
    if reason == "deadline":
        return "a worker had waited for the model longer than it should"
    if head == "error":
        return f"the optimiser broke off with {rest}, which is a bug to report"
    if rest.startswith(NONE_NEW.removesuffix(" and allowed")):      # earlier releases said it without the end
        return "every candidate that the search found had been tried or is not allowed"
    return f"the numbers of method {head} went wrong ({rest})" if rest else f"of {reason}"


def _reason(page: Page) -> Iterable[Block]:
    choice, known = page["choice"], page["known"]
    how, by = choice["how"], choice["by"]
    if how == "centre":
        yield ("The middle of every range, on its scale: the best single guess while nothing is known, so the "
               "first trial of every study by method bayes.")
    elif how == "design":
        yield ("It belongs to the start design: points of a Sobol sequence, which are spread evenly over the space. "
               "Their outcomes give the model something to learn from; none of them moved this point.")
    elif how == "prior":
        yield (f"The prior on {listed(choice['priors'])} gets a part of the start design, and this is one of its "
               "draws; the others are spread evenly over the space, so that a prior that is wrong is found out. It was "
               f"trusted {choice['prior']:.0%}: {_TRUST}")
    elif how == "earlier":
        yield (f"It was one of the best of study {', '.join(choice['sources'] or ())}, and stands at the beginning "
               "because the study file names that study under warm_start.")
    elif how == "sobol":
        yield f"Point {choice['drawn']} of the study's Sobol sequence, which spreads points evenly."
    elif how == "grid":
        yield f"The grid is walked cell by cell; this is cell {choice['drawn']}."
    elif how == "random" and not choice["fallback"]:
        yield "A draw that is even over every range, on its scale."
    elif how == "confirm":
        yield (f"Trial {choice['of']} was among the leaders, and leaders are measured again before a winner is "
               "announced: what made them leaders may have been luck.")
    elif how == "again":
        yield (f"It is the point of trial {choice['of']}, measured again on request"
               + (f" (event {by['seq']}, {when(by['time'])})" if by is not None else "")
               + ": one more evaluation of the same point, which no budget counts.")
    elif how == "enqueued":
        if by is not None and by["with"] == "study file":
            yield f"The study file lists it under enqueue (event {by['seq']}, {when(by['time'])})."
        elif by is not None and by["with"] == "fork":
            yield (f"It lay in the queue of points by hand when {by['who'] or 'somebody'} forked {by['of']} (event "
                   f"{by['seq']}, {when(by['time'])}), and came along.")
        elif by is not None:
            yield (f"{by['who'] or 'Somebody'} put it into the queue with bayesd study enqueue (event {by['seq']}, "
                   f"{when(by['time'])}). Points by hand go before any other.")
        else:
            yield "It came from the queue of points by hand, which go before any other."
    if choice["fallback"]:
        yield (f"The study's method is {choice['method']}, but {_fallback(choice['fallback'])}. So that the study goes "
               f"on, {'an untried point' if how in ('model', 'forest') else f'a {how} point'} was taken instead.")
    elif how in ("model", "forest"):
        name = "a forest of randomised trees" if how == "forest" else "a Gaussian process"
        yield (f"The model, {name}, learned from {count(known['outcomes'], 'outcome')} and predicts every point of the "
               "space with an uncertainty. This is the point where it expects to gain most over the best that it "
               "believes in (expected improvement).")
        yield from _knew_before(choice)
        yield from _balance(page)
        yield from _thrift(choice)
    if choice["age_s"] is not None and choice["age_s"] >= 1:
        yield f"It had been ready for {span(choice['age_s'])} when a worker asked."


_TRUST = "that falls from 100 % to 0 as points that it likes turn out worse than others."


def _knew_before(choice: Page) -> Iterable[Block]:
    """What was known before the first trial, and what it still weighed."""
    if choice["priors"]:
        on = listed(choice["priors"])
        yield (f"The prior on {on} had no say: results do not bear it out, or weigh more by now."
               if choice["prior"] is None else
               f"The prior on {on} had a say: {choice['prior']:.3g} times the logarithm of its density was added to "
               "that of the expected improvement. That factor falls with every result, and to 0 where results do "
               "not bear the prior out.")
    for name in choice["earlier"]:
        weight = (choice["sources"] or {}).get(name)
        yield (f"The earlier study {name} had no say in the model: results here do not bear it out, or the model is "
               "one that takes none (a forest, or of several metrics)." if weight is None else
               f"The earlier study {name} had a say in the model: what it expects counts {weight:.3g} times, as "
               "results here bear it out, and the model learns what is left.")


def _balance(page: Page) -> Iterable[Block]:
    made = page["recomputed"]
    if made is None:
        return
    if page["aim"] == "blind":
        yield _AIMS["blind"][1]
        return
    if made["means"] is not None or made["best_belief"] is None:
        yield from _of_metrics(page, made)
        return
    yield from _chances(page)
    yield (f"{_AIMS[page['aim']][1]} Of its expected improvement {percent(made['mean_share'])} comes from the mean and "
           "the rest from the uncertainty. (The rule: expected improvement is (best − mean)·Φ(z) + sd·φ(z) with "
           f"z = (best − mean)/sd; from 60{_TIGHT}% in the first part it is called exploitation, below 30{_TIGHT}% "
           "exploration.)")
    if made["weights"] is not None:
        parts = [f"{goal['name']} {percent(weight)}" for goal, weight in
                 zip(page["objectives"], made["weights"], strict=True)]
        yield f"This trial looked for a trade-off of its own, drawn for it: {', '.join(parts)}."
    if made["success"] < 0.995:
        yield ("Trials fail in parts of this space. The model gave it a chance of "
               f"{percent(made['success'])} to end well.")


def _thrift(choice: Page) -> Iterable[Block]:
    """What the trial was expected to take, and how much that counted in the choice."""
    if choice["power"] is None or choice["cost"] is None:
        return
    takes = span(choice["cost"]) if choice["per"] == "seconds" else f"{number(choice['cost'])} of the study's cost"
    if choice["power"] > 0:
        yield (f"It was expected to take {takes}. What a trial takes counted: improvement was divided by it to the "
               f"power {number(choice['power'])}, which falls from 1 to 0 as the budget is used.")
    else:
        yield f"It was expected to take {takes}; that did not count in the choice."


def _chances(page: Page) -> Iterable[Block]:
    """How likely it was to keep each limit."""
    said = [f"{each['metric']} {_allowed(each)} " + (
        "no telling, since nobody had told a value" if each["chance"] is None else percent(each["chance"]))
        for each in page["limits"]]
    if said:
        yield f"Its chance to keep {'the limit' if len(said) == 1 else 'each limit'}, by the models: {', '.join(said)}."


def _allowed(limit: Page) -> str:
    return f"at most {number(limit['at_most'])}" if "at_most" in limit else f"at least {number(limit['at_least'])}"


def _of_metrics(page: Page, made: Page) -> Iterable[Block]:
    """Of several objectives, or of limits that nothing keeps yet, there is no one best that it had to beat."""
    if made["weights"] is not None:
        parts = [f"{goal['name']} {percent(weight)}" for goal, weight in
                 zip(page["objectives"], made["weights"], strict=True)]
        yield f"This trial looked for a trade-off of its own, drawn for it: {', '.join(parts)}."
    elif made["log_hypervolume_gain"] is not None:
        yield ("It was chosen for the hypervolume that it would add to the front, as far as the models can tell (log "
               f"of the expected gain: {made['log_hypervolume_gain']:.3g}, in standardised units).")
    else:
        yield "No point is believed to keep every limit yet, so it was chosen for its chance to be the first."
    yield from _chances(page)
    if made["means"] is not None:
        parts = [f"{goal['name']} {mean:.6g} ± {sd:.2g}" for goal, mean, sd in
                 zip(page["objectives"], made["means"], made["sds"], strict=True)]
        yield f"The models expected {', '.join(parts)}."
    if made["success"] < 0.995:
        yield f"Trials fail in parts of this space; its chance to end well was {percent(made['success'])}."


def _expectation(page: Page) -> Iterable[Block]:
    expected, metric = page["expected"], page["metric"]
    if expected is None:
        return
    mean, sd = expected["mean"], expected["sd"]
    made = expected["source"] == "recomputed"
    if sd == 0:
        yield f"{metric} {number(mean)}, as everywhere: all results were equal."
        return
    yield (f"{metric} {_interval(expected)}: with two chances in three from {beside(expected['low'], sd)} to "
           f"{beside(expected['high'], sd)}." + (" (The model had no part in this choice; this is what it would have "
                                                 "said, made again from the record.)" if made else ""))
    best = page["known"]["best"]
    if best is not None and expected["by_sd"] is not None:
        by, gain = expected["by_sd"], expected["gain"]
        if abs(by) < 0.05:
            yield f"That is as good as the best value then, {number(best['value'])}."
        else:
            yield (f"Its mean is {number(abs(gain))} ({_sd(by)}) {'better' if by > 0 else 'worse'} than the best value "
                   f"then, {number(best['value'])}.")
    made_again = page["recomputed"]
    if made_again is not None and made_again["best_belief"] is not None and best is not None and mean is not None:
        believed = made_again["best_belief"]
        if abs(believed - best["value"]) > max(sd, 1e-12):
            yield (f"The model did not take that best value at its word: it believed in {beside(believed, sd)}, and an "
                   "improvement had to beat that.")


def _nearest(page: Page) -> Iterable[Block]:
    near = page["nearest"]
    if near is None:
        if page["known"]["trials"] == 0:
            yield "Nothing had been tried."
        return
    name = f"trial {near['trial']}"
    state = {"complete": f"{page['metric']} {number(near['value'])}" if near["value"] is not None else "finished",
             "running": "without a result then", "fail": "failed", "partial": "stopped early"}[near["state"]]
    differs = near["differs"]
    if not differs:
        yield f"It is the very point of {name} ({state}): the study allows repeats, to learn about noise."
        return
    largest = max((1.0 if each["share"] is None else each["share"]) for each in differs)
    wide = sum(each["share"] is None or each["share"] >= 0.3 for each in differs)
    far = "The nearest is" if wide < 2 else "Far from all of it. The nearest is"
    if largest < 0.02:
        far = "Right beside a known point:"
    yield f"{far} {name} ({state}). Against it:"
    order = sorted(differs, key=lambda each: -(1.0 if each["share"] is None else each["share"]))
    told = [each for each in order if each["share"] is None or each["share"] >= 0.0005] or order[:1]
    lines = [f"· {difference(each)}" for each in told[:DIFFERENCES]]
    if len(told) > DIFFERENCES:
        lines.append(f"· {count(len(told) - DIFFERENCES, 'other parameter')} less than that")
    if len(order) > len(told):
        lines.append(f"· nearly the same {listed([each['parameter'] for each in order[len(told):]], 5)}")
    if near["same"]:
        lines.append(f"· the same {listed(near['same'], 5)}")
    yield lines


def difference(row: Page) -> str:
    """One parameter in which two points differ, in words."""
    name, here, there = row["parameter"], row["here"], row["there"]
    if row["only"] == "here":
        return f"{name} is {show.cell(here)}; that trial has none"
    if row["only"] == "there":
        return f"{name} is not part of it; that trial has {show.cell(there)}"
    if row["share"] is None or not isinstance(here, (int, float)) or not isinstance(there, (int, float)):
        return f"{name} is {show.cell(here)}, not {show.cell(there)}"
    how = "higher" if here > there else "lower"
    size = percent(row["share"])
    if row["scale"] == "log" and min(here, there) > 0:
        ratio = max(here, there) / min(here, there)
        words = f"{large(ratio)} times {how}" if ratio >= 1.1 else f"{percent(ratio - 1)} {how}"
    else:
        words = f"{number(abs(here - there))} {how}"
    digits = next(n for n in (4, 6, 9, 12, 17) if f"{here:.{n}g}" != f"{there:.{n}g}" or n == 17)
    return f"{name} is {words}: {here:.{digits}g}, not {there:.{digits}g} ({size} of its range)"


def _rivals(page: Page) -> Iterable[Block]:
    choice, made = page["choice"], page["recomputed"]
    if choice["gap"] is not None:
        ratio = math.exp(-max(0.0, choice["gap"]))
        words = "as good to three digits" if ratio > 0.9995 else f"{percent(ratio)} as promising"
        yield (f"The next candidate of the search was {words} (gap {number(choice['gap'])} in log expected "
               "improvement, recorded); it may lie right beside this one.")
    if made is None or not made["rivals"]:
        return
    agreed = {True: "the search made again lands on this very point",
              False: "the search made again lands elsewhere, so take them with care"}[bool(made["agrees"])]
    yield f"Next-best points that are really different, recomputed from the record ({agreed}):"
    lines: list[str] = []
    for rival in made["rivals"]:
        said = f"· {percent(rival['ratio'])} as promising"
        if rival["mean"] is not None:
            said += f", {page['metric']} {beside(rival['mean'], rival['sd'])} ± {rival['sd']:.2g}"
        lines += [said, *textwrap.wrap(show.params(rival["params"]), WIDTH - 4, initial_indent="  ",
                                       subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)]
    yield lines
    if made["agrees"] is False and made["found"]:
        yield f"There it lands: {show.params(made['found'])}."


def _stopped(said: Page) -> str:
    """At which step the pruning rule stopped it, and against what."""
    if said.get("by") == "dominance":
        return _dominated(said)
    value = "no number" if said.get("value") is None else number(said["value"])
    limit = "no number" if said.get("threshold") is None else number(said["threshold"])
    what = f"its {said['metric']}" if said.get("metric") else "it"
    if said.get("rung") is not None:
        where = f" of bracket {said['bracket']}" if said.get("bracket") is not None else ""
        return (f"Rule {said['rule']} stopped it at step {said['step']}, at rung {said['rung']}{where}: {what} was "
                f"{value}, and of the {count(said['compared'], 'trial')} that had reached the rung the best "
                f"{said['kept']} went on, down to {limit}.")
    if said["rule"] == "race":
        return _raced(said, what, value, limit)
    if said["rule"] == "curve":
        return _curved(said, what, value, limit)
    return (f"Rule {said['rule']} stopped it at step {said['step']}: {what} was {value} at best, behind {limit} of the "
            f"{count(said['compared'], 'trial')} that it was held against.")


def _dominated(said: Page) -> str:
    """By how many it was beaten in everything, or beside which trial it led to nothing."""
    at = " and ".join(f"{name} {'no number' if value is None else number(value)}"
                      for name, value in said["values"].items())
    where = f" of bracket {said['bracket']}" if said.get("bracket") is not None else ""
    words = f"Rule {said['rule']}, by dominance, stopped it at step {said['step']}"
    if said.get("rung") is not None:
        return (f"{words}, at rung {said['rung']}{where}: it was at {at}, dominated by {said['dominated']} of the "
                f"{count(said['compared'], 'trial')} that had reached the rung; {said['ahead']} were before it, and "
                f"the best {said['kept']} went on.")
    if said["rule"] == "curve":
        return (f"{words}: it was at {at}, and as {said['compared']} complete trials that stood nearest to it there "
                f"went on, its chances to end better than trial {said['against']} in any objective at step "
                f"{said['horizon']} added up to {number(said['chance'])}, and below {number(said['bound'])} the rule "
                "stops.")
    return (f"{words}: {at} was the best that it had reported, and {said['dominated']} of the "
            f"{count(said['compared'], 'complete trial')} that reported at that step were worse in nothing and better "
            "in something.")


def _curved(said: Page, what: str, value: str, limit: str) -> str:
    """Where its learning curve led, against what the best trial has."""
    best = f"{limit} of trial {said['against']}, the best then"
    if said.get("expected") is None:
        return (f"Rule curve stopped it at step {said['step']}: {what} was no number, and {best}, is out of reach of "
                "that.")
    return (f"Rule curve stopped it at step {said['step']}: {what} was {value}, and as {said['compared']} complete "
            f"trials that stood nearest to it there went on, it led to {number(said['expected'])} at step "
            f"{said['horizon']}, with 90 % between {number(said['low'])} and {number(said['high'])}. The chance to end "
            f"better than {best}, was {number(said['chance'])}, and below {number(said['bound'])} the rule stops.")


def _raced(said: Page, what: str, value: str, limit: str) -> str:
    """Behind which trial a cross-validated one was, on which folds, and what chance it had left."""
    beside = said.get("beside") or ()
    on = (f"fold by fold beside the mean of trials {', '.join(map(str, beside))}" if len(beside) > 1 else
          f"fold by fold beside trial {beside[0]}" if beside else "whose folds are not known")
    words = (f"Rule race stopped it after {count(said['folds'], 'fold')} (step {said['step']}): {what} was {value} on "
             f"average, and as good as trial {said['against']}, the best then, would have been {limit} ({on}). ")
    if not said["chance"]:
        return words + ("Even the best values that the study's bounds allow in all other folds would not have brought "
                        "it ahead.")
    return words + (f"The chance that all folds together would have brought it ahead was {number(said['chance'])}, and "
                    f"below {number(said['bound'])} the rule stops.")


def _became(page: Page) -> Iterable[Block]:
    became = page["became"]
    state = became["state"]
    if state in ("running", "waiting"):
        since = f" since {when(became['since'])}" if became["since"] else ""
        yield (f"{became['worker']} works on it{since}." if state == "running" else
               "Nobody works on it: it will be leased again, before any new trial.")
    elif state == "paused":
        yield "It is paused: it goes on when it is among the best of its rung and somebody asks for work."
    elif state == "complete":
        yield from _completed(page)
    elif state == "fail":
        lost = became["class"] == "lost"
        yield (f"It failed with class {became['class']} at event {became['seq']}, {when(became['time'])}"
               + (f": {became['error']}" if became["error"] else "") + "."
               + (" A result that still comes from its last worker takes the place of that." if lost else ""))
        if not lost:
            yield "A failure is an outcome: the model learned that trials fail hereabouts." \
                if page["choice"]["method"] == "bayes" else "A failure is an outcome, and counts against the budget."
    elif state == "pruned":
        value = f" at {number(became['value'])}" if became["value"] is not None else ""
        yield f"It was stopped early{value}, after {count(became['reports'], 'report')} (event {became['seq']})."
    elif state == "voided":
        yield _void(became)
    if became.get("stopped") is not None:
        yield _stopped(became["stopped"])
    for at in became.get("rungs", ()):
        told = f"It told {number(at['value'])} at rung {at['rung']} (event {at['seq']}, {at['worker']})"
        yield f"{told}." if at["rule"] is None else (
            f"{told}. When nobody could go on any more it was not among the best of that rung, so it ended there by "
            f"rule {at['rule']}.")
    yield from _detours(page)
    if became["revoked"] is not None:
        act = became["revoked"]
        yield (f"{became['worker']}, which had it, was revoked by {act['who'] or 'somebody'} at event {act['seq']}, "
               f"{when(act['time'])}{_because(act)}.")
    if became["seconds"] is not None:
        pace = became["pace"]
        others = "."
        if pace is not None and pace["median_s"] > 0:
            which = f"middle one of the {pace['of']} others" if pace["of"] > 1 else "other one"
            others = f"; the {which} took {span(pace['median_s'])}."
        yield f"It took {span(became['seconds'])}{others}"
    if became["cost"] is not None:
        yield f"It cost {number(became['cost'])}."


def _void(became: Page) -> str:
    void = became["voided"] or {}
    reason = str(void.get("reason") or "no reason given").rstrip(".")
    return (f"{void.get('who') or 'Somebody'} declared it void at event {void.get('seq')}, {when(void.get('time'))}: "
            f"{reason}. The model knows nothing of it, and it does not count against the budget.")


def _detours(page: Page) -> Iterable[Block]:
    """How it came to more than one lease."""
    became = page["became"]
    for attempt in became["attempts"]:
        yield (f"An attempt failed with class {attempt['class']} at {when(attempt['time'])} and was made again"
               + (f": {attempt['error']}" if attempt["error"] else "") + ".")
    if became["expired"]:
        yield (f"{count(became['expired'], 'lease')} ended without a word from the worker; "
               f"it was leased {count(became['leases'], 'time')} in all.")
    if became["promoted"]:
        yield (f"The result came late (event {became['promoted']}), from a worker that had been given up; no "
               "other came, so it counts.")
    for late in became["late"]:
        if late["seq"] != became["promoted"]:
            values = ", ".join(f"{name} {number(value)}" for name, value in (late["values"] or {}).items())
            yield (f"Another outcome came too late (event {late['seq']}): {late['state']}"
                   + (f", {values}" if values else "") + ". It is kept beside the result, not in place of it.")


def _completed(page: Page) -> Iterable[Block]:
    became = page["became"]
    others = {name: value for name, value in (became["values"] or {}).items() if name != page["metric"]}
    besides = ", ".join(f"{name} {number(value)}" for name, value in others.items())
    yield (f"{page['metric']} {_result(page)}, from {became['worker']} at event {became['seq']}, "
           f"{when(became['time'])}." + (f" Besides: {besides}." if besides else ""))
    surprise = became["surprise"]
    if surprise is not None and surprise["z"] is not None:
        yield _surprised(surprise, page)
    for limit in page["limits"]:
        if limit["measured"] is not None:
            yield (f"{limit['metric']} came out at {number(limit['measured'])}, {_allowed(limit)}: it "
                   f"{'keeps' if limit['kept'] else 'breaks'} the limit {limit['name']}.")
    if became["broken"]:
        yield (f"So it cannot lead: it does not keep {listed(became['broken'])}. The model learned from it all the "
               "same.")
    ranks = became["rank"]
    if ranks is not None:
        yield _ranked(page, ranks)


def _ranked(page: Page, ranks: Page) -> str:
    now, then = ranks["now"], ranks["then"]
    words = f"Now it is number {now['place']} of {count(now['of'], 'finished trial')}"
    if then == now:
        words = f"It is number {now['place']} of {count(now['of'], 'finished trial')}, and was when it came"
    elif then is not None:
        words = (f"It was number {then['place']} of {then['of']} when it came; now it is number {now['place']} of "
                 f"{now['of']}")
    if ranks["front"] is not None:
        words += f", by {page['metric']} alone. " + (
            "No trial is better in one objective and no worse in the others" if ranks["front"] else
            "Another trial is at least as good in every objective and better in one")
    return words + "."


def _surprised(surprise: Page, page: Page) -> str:
    z, better = abs(surprise["z"]), surprise["better"]
    which = "better" if better else "worse"
    noise = " (noise of one measurement included)" if surprise["noise_sd"] else ""
    size = f"{z:.1f} standard deviations{noise} {which} than expected"
    said = "expected" if page["expected"]["source"] == "recorded" else "would have expected"
    if z < 0.5:
        return f"Just what the model {said}: {size}."
    if z < 1:
        return f"About what the model {said}: {size}."
    if z < 2:
        return f"Within what the model held possible: {size}."
    if z < 3:
        return f"A surprise: {size}. About one result in twenty is so far off when the model is right."
    return f"The model was wrong here: {size}. It has learned from that since."


def _lesson(page: Page) -> Iterable[Block]:
    lesson, became = page["lesson"], page["became"]
    if became["improved"] is not None and page["known"]["best"] is not None:
        best = page["known"]["best"]
        if became["improved"]:
            yield f"It became the best trial; before, trial {best['trial']} was, with {number(best['value'])}."
    elif became["improved"] and became["state"] == "complete":
        yield "It was the first result, so the best so far."
    if lesson is None:
        return
    before, after = lesson["before"], lesson["after"]
    old, new = (f"{beside(each['mean'], each['sd'])} ± {each['sd']:.2g}" for each in (before, after))
    if before["trial"] == after["trial"]:
        moved = "did not move" if old == new else f"moved from {old} to {new}"
        yield f"The model believes most in trial {after['trial']}, as before; its belief in it {moved}."
    else:
        yield (f"The model believed most in trial {before['trial']} ({old}) and now believes most in trial "
               f"{after['trial']} ({new}).")


def _curve(page: Page, width: int) -> list[Block]:
    curve = page["curve"]
    at = None if curve["trial"] is None else (curve["trial"] - 1) // curve["step"]
    lines = chart.best_so_far(curve["values"], _minimize(page), at, width=_room(width), label=f"trial {curve['trial']}",
                              first="1", last=str(curve["trials"]))
    if not lines:
        return []
    value = page["became"]["value"] if page["page"] != "study" else None
    if page["page"] == "study":
        legend = "line: best so far · dots: results" + (f" · {chart.MARK} the winner" if at is not None else "")
    else:
        legend = (f"line: best so far · dots: results · {chart.MARK} this trial" if value is not None else
                  "line: best so far · dots: results · × this trial, which has no result")
    if curve["step"] > 1:
        legend += f" · the best of each {curve['step']} trials"
    beyond = chart.beyond(curve["values"], _minimize(page))
    return [[*lines, legend, *([f"{count(beyond, 'result')} beyond the edge, drawn at it"] if beyond else [])]]


def _room(width: int) -> int:
    """Columns of a chart beside its margin."""
    return max(20, min(width, WIDTH) - 18)


def _slice(page: Page, each: Page, width: int) -> list[Block]:
    expected = page["expected"]
    here = expected["mean"] if expected is not None else None
    if here is None or len(each["values"]) < 2:
        return []
    lines = chart.band(each["values"], each["mean"], each["low"], each["high"], each["at"], here,
                       logarithmic=each["scale"] == "log", width=_room(width),
                       label=f"{each['parameter']} = {number(each['at'])}")
    cut = ["the band is wider than the chart and cut off at its edge"] \
        if chart.is_cut(each["mean"], each["low"], each["high"], here) else []
    scale = {"log": ", logarithmic scale", "power": ", power scale"}.get(each["scale"], "")
    return [[*lines, f"line: expected · {chart.BAND} two chances in three · {chart.MARK} this trial{scale}", *cut]]


def _record(page: Page) -> list[Block]:
    record = page["provenance"]
    fit = record["fit"]
    engine = record["engine"]
    versions = {} if engine is None else engine["versions"]
    named = "  ".join(f"{name} {versions[name]}" for name in ("bayesd", "python", "numpy", "scipy") if name in versions)
    rows = [("log", record["log"]), ("proposed", f"event {record['seq']}, {when(record['time'])}"),
            ("hash", record["hash"]),
            ("as of", f"event {record['as_of']}"),
            ("fit", None if fit is None else
             f"event {fit['seq']}, of {count(fit['n'], 'outcome')}, {fit['model'].split(':')[0]}"),
            ("random stream", record["stream"]), ("space rev", record["space_rev"]),
            ("outcome", None if not record["outcome"] else f"event {record['outcome']}"),
            ("engine", None if engine is None else engine["fingerprint"][:16]), ("of", named or None),
            ("seen up to", f"event {page['seen_to']['seq']}, {when(page['seen_to']['time'])}")]
    return [[f"{label:13} {text}" for label, text in rows if text is not None]]


# ---------------------------------------------------------------- a trial that a fork began with


def _imported(page: Page, width: int) -> Iterable[Section]:
    yield "In short", [" ".join(_imported_in_short(page))]
    yield "Where it comes from", list(_whence(page))
    yield "What became of it here", list(_became_here(page))
    yield f"Best {page['metric']} so far, {'lower' if _minimize(page) else 'higher'} is better", _curve(page, width)
    record = page["provenance"]
    origin = record["origin"]
    rows = [("log", record["log"]), ("imported", f"event {record['seq']}, {when(record['time'])}"),
            ("hash", record["hash"]),
            ("forked behind", None if origin is None else f"event {origin['at']} of study {origin['study']}"),
            ("its hash", None if origin is None else origin["hash"]),
            ("seen up to", f"event {page['seen_to']['seq']}, {when(page['seen_to']['time'])}")]
    yield "On record", [[f"{label:13} {text}" for label, text in rows if text is not None]]


def _imported_in_short(page: Page) -> Iterable[str]:
    became, origin = page["became"], page["from"]
    yield (f"It was not suggested here: it is trial {origin['trial']} of {origin['study']}, which {page['study']} "
           "began with.")
    state = became["state"]
    if state == "complete":
        best = "still the best here"
        if became["broken"]:
            best = f"but does not keep the limit {listed(became['broken'])} here"
        elif not became["best"]:
            now = became["rank"]["now"]
            best = f"number {now['place']} of {count(now['of'], 'finished trial')} here"
        yield f"It came out at {_result(page)} there, {best}."
    else:
        yield {"fail": f"It failed there ({became['class']}).", "pruned": "It was stopped early there.",
               "voided": f"It was declared void here{_because(became['voided'])}."}[state]


def _whence(page: Page) -> Iterable[Block]:
    origin = page["from"]
    if origin["at"] is not None:
        yield (f"{origin['who'] or 'Somebody'} forked {origin['study']} at {when(origin['time'])}, as it stood behind "
               f"event {origin['at']}. What was known there then is known here, and no budget counts it.")
    else:
        yield f"It was measured in {origin['study']}, and no budget counts it here."
    yield f"Why it was tried there: bayesd why {origin['study']} {origin['trial']}"


def _became_here(page: Page) -> Iterable[Block]:
    became = page["became"]
    state = became["state"]
    if state == "voided":
        yield _void(became)
    elif state == "fail":
        yield f"It failed with class {became['class']}, which the model of this study learns from, too."
    elif state == "pruned":
        value = f" at {number(became['value'])}" if became["value"] is not None else ""
        yield f"It was stopped early{value}; that is what the model of this study learns from."
    else:
        values = ", ".join(f"{name} {number(value)}" for name, value in (became["values"] or {}).items())
        one = f"{page['metric']} {_result(page)}"
        yield f"Its result there: {one if len(page['objectives']) == 1 else values}."
        if became["broken"]:
            yield f"It does not keep the limit {listed(became['broken'])} here, so it cannot lead."
        else:
            yield _ranked(page, became["rank"])
    leader = became["leader"]
    if became["best"]:
        yield "It is the best of this study still: nothing that was tried here is better."
    elif leader is not None:
        which = ", which was imported, too" if leader["imported"] else ", which was suggested here"
        yield f"The best here is trial {leader['trial']} with {number(leader['value'])}{which}."
    if became["more"]:
        yield f"{count(len(became['more']), 'more observation')} of this point came along with it."
    if became["seconds"] is not None:
        yield f"It took {span(became['seconds'])} there."


# ---------------------------------------------------------------- a study, a worker


def _study(page: Page, width: int) -> Iterable[Section]:
    yield "Answer", list(_answers(page))
    yield "How far it is", list(page["progress"])
    winner = page["winner"]
    if winner is not None:
        yield "Why this winner", list(winner["words"])
        yield f"Best {page['metric']} so far, {'lower' if _minimize(page) else 'higher'} is better", _curve(page, width)
    yield "On record", [[f"{label:13} {text}" for label, text in page["record"]]]


def _worker(page: Page, width: int) -> Iterable[Section]:
    yield "Answer", list(_answers(page))
    yield "What the log knows", list(page["history"])
    yield "What only a running daemon knows", [page["unknown"]] if page["unknown"] else []


def _answers(page: Page) -> Iterable[Block]:
    for reason in page["reasons"]:
        yield reason["words"]
        if reason["remedy"]:
            yield f"What to do: {reason['remedy']}"


_SECTIONS = {"trial": _trial, "imported": _imported, "study": _study, "worker": _worker}
