"""The report of a study: one page for people, self-contained, that says what was done, why, and by whom.

It is written from the record and nothing else. Names and error texts come from workers, so everything
is escaped; there is no script, and nothing is fetched. It prints, and follows the reader's light or dark.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from bayesd import notes, pictures, verdict
from bayesd.pictures import Axis, Bar, Mark
from bayesd.show import cell, duration, params
from bayesd.study.limits import keeps
from bayesd.study.state import Trial
from bayesd.study.view import lease_of
from bayesd.warned import brief
from bayesd_schemas.space import FloatParameter, IntParameter, Parameter

if TYPE_CHECKING:
    from bayesd.pack import Event, Record

PANELS_MAX, ROWS_MAX, LANES_MAX, TEXT_MAX = 24, 40, 8, 240
ENDS = {"trial.completed": "done", "trial.failed": "failed", "trial.pruned": "pruned", "lease.expired": "lost",
        "lease.released": "released", "outcome.voided": "void"}
PEOPLE = ("log.repaired", "outcome.voided", "worker.revoked")     # shown as decisions whoever made them


def page(record: "Record", signed: Sequence[str], keys: Sequence[str], phrase: "Callable[[Event], str]",
         why: Collection[int]) -> str:
    """The whole page. `why` are the trials that have a page of their own."""
    study = record.study
    parts = [_head(record), _winner(record, why), _progress(record), _parameters(record), _workers(record),
             _decisions(record, phrase), _trials(record, why), _proof(record, signed, keys), _declared(record)]
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escape(study.name)}: audit report</title><style>{STYLE}</style><body><main>"
            + "\n".join(part for part in parts if part) + "</main></body></html>\n")


# --- Words -------------------------------------------------------------------------------------------


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def _head(record: "Record") -> str:
    study, spec = record.study, record.study.spec
    goal = study.goals[0]
    ours = [event for event in record.events if event.get("study") == study.name]
    begin, last = ours[0], ours[-1]
    counts = [f"{n:,} {'failed' if state == 'fail' else state}" for state, n in study.counts.items() if n]
    workers = {lease.worker for trial in study.trials for lease in trial.leases}
    method = {"bayes": "a Bayesian optimiser" + (" with a forest of randomised trees" if spec.surrogate == "forest" else
                                                 " with a Gaussian process")}.get(spec.method, f"method {spec.method}")
    ended = {"closed": f"It closed by rule <b>{escape(str(study.closed_by))}</b>.", "paused": "It is paused.",
             "open": "It was still open."}[study.status]
    several = f" ({len(study.goals)} objectives; the first decides here)" if len(study.goals) > 1 else ""
    amended = sum(event["type"] == "study.amended" for event in ours)
    origin = getattr(study, "origin", None)
    forked = f" It is a fork of study {escape(origin.study)} behind event {origin.at}." if origin is not None else ""
    return (f"<header><p class=over>Audit report</p><h1>{escape(study.name)}</h1>"
            f"<p class=lead>This study set out to {goal.direction} <b>{escape(goal.name)}</b>{several} over "
            f"{_count(len(spec.space), 'parameter')} by {method}, seed {spec.seed}.{forked} From {_time(begin)} to "
            f"{_time(last)} UTC {_count(len(workers), 'worker')} took part in {_count(len(study.trials), 'trial')}: "
            f"{', '.join(counts) or 'none finished'}. {ended} "
            + (f"It was amended {'once' if amended == 1 else f'{amended} times'}. " if amended else "")
            + f"All of this is read from events 1 to {len(record.hashes):,} of log "
              f"<code>{escape(record.state.log)}</code>; how to check that nobody changed them is "
              '<a href="#proof">below</a>.</p></header>')


def _time(event: "Event") -> str:
    return escape(str(event["time"])[:19].replace("T", " "))


def _moment(event: "Event") -> float:
    try:
        return datetime.fromisoformat(str(event["time"])).timestamp()
    except ValueError:
        return 0.0


def _section(title: str, body: str, name: str = "", lead: str = "") -> str:
    return (f'<section{f" id={name}" if name else ""}><h2>{title}</h2>' + (f"<p>{lead}</p>" if lead else "")
            + body + "</section>")


def _table(titles: Sequence[str], rows: Iterator[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already; a title that begins with > is a column of numbers."""
    marks = [" class=n" if title.startswith(">") else "" for title in titles]
    head = "".join(f"<th{mark}>{title.lstrip('>')}</th>" for mark, title in zip(marks, titles, strict=True))
    body = "".join("<tr>" + "".join(f"<td{mark}>{text}</td>" for mark, text in zip(marks, row, strict=True)) + "</tr>"
                   for row in rows)
    return f"<div class=scroll><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _trial_link(number: int) -> str:
    return f'<a href="#trial-{number}">trial&nbsp;{number}</a>'


def _why_link(number: int, why: Collection[int], words: str = "why") -> str:
    return f'<a href="why/{number}.txt">{words}</a>' if number in why else ""


# --- The winner --------------------------------------------------------------------------------------


def _winner(record: "Record", why: Collection[int]) -> str:
    study, won = record.study, record.winner
    if won["trial"] is None:
        return _section("The winner", f"<p>There is none: {escape(won['reason'])}.</p>", "winner")
    error = f" ± {won['se']:.2g}" if won.get("se") is not None else ""
    point = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(cell(value))}</dd></div>"
                    for name, value in won["params"].items())
    rules = [(rule, chosen) for rule, chosen in record.rules.items()
             if chosen.get("trial") is not None and rule != won["rule"]]
    same = {chosen["trial"] for _, chosen in rules} <= {won["trial"]}
    titles = ("Rule", "Trial", f">{escape(study.goals[0].name)}", ">Probability", "Reason")
    others = "<p>Every other rule takes the same trial.</p>" if same else \
        "<p>Other rules would take:</p>" + _table(titles, (
            (escape(rule), _trial_link(chosen["trial"]), escape(cell(chosen.get("value"))),
             "-" if chosen.get("probability") is None else f"{chosen['probability']:.0%}",
             escape(str(chosen.get("reason", "")))) for rule, chosen in rules))
    said, doubt = verdict.believed(won), verdict.doubt(won, study.name)
    trust = (f"<p>{escape(said)}</p>" if said else "") + (f"<p>But {escape(doubt)}.</p>" if doubt else "")
    link = f" {_why_link(won['trial'], why, 'Why it was proposed')}." if won["trial"] in why else ""
    return _section("The winner", f"<div class=card><p><span class=big>{escape(cell(won['value']))}{error}</span> "
                    f"{escape(study.goals[0].name)}, {_trial_link(won['trial'])}{verdict.pooled(won)}</p>"
                    f"<dl>{point}</dl></div>"
                    f"<p>By rule {escape(won['rule'])}: {escape(won['reason'])}.{link}</p>{trust}{others}"
                    + _warnings(record), "winner")


def _warnings(record: "Record") -> str:
    lines = [escape(line) for line in brief(record.study.name, record.warnings)]
    if not lines:
        return ""
    return f"<p>Be wary:</p><ul>{''.join(f'<li>{line}</li>' for line in lines[:-1])}</ul><p>{lines[-1]}</p>"


# --- Pictures ----------------------------------------------------------------------------------------


def _value_axis(record: "Record") -> Axis | None:
    """An axis that shows where the good values differ; a few wild bad ones are drawn at its end."""
    values = sorted(trial.values[0] for trial in record.study.trials if trial.values)
    if not values:
        return None
    low, high = values[0], values[-1]
    if low > 0 and values[len(values) // 10] > 0 and values[9 * len(values) // 10] / values[len(values) // 10] > 50:
        return Axis(low / 1.15, high * 1.15, log=True)
    if len(values) >= 8:
        first, third = values[len(values) // 4], values[3 * len(values) // 4]
        reach = 3 * (third - first) or (high - low)
        if record.study.goals[0].direction == "minimize":
            high = min(high, third + reach)
        else:
            low = max(low, first - reach)
    room = 0.05 * (high - low) or abs(low) * 0.05 or 1.0
    return Axis(low - room, high + room)


def _is_complete(trial: Trial) -> bool:
    return trial.status == "complete" and trial.values is not None


def _hint(record: "Record", trial: Trial) -> str:
    goal = record.study.goals[0].name
    said = f"{goal} {cell(trial.values[0])}" if trial.values else trial.failure or trial.status
    return f"trial {trial.number}: {said}; {params(trial.params)}"


def _marks(record: "Record", y: Axis, where: Mapping[int, float]) -> Iterator[Mark]:
    worst = y.high if record.study.goals[0].direction == "minimize" else y.low
    best = record.winner["trial"]
    for trial in sorted(record.study.trials, key=lambda trial: trial.number == best):       # the winner on top
        if trial.number not in where or trial.status in ("running", "waiting", "paused"):
            continue
        kind = "best" if trial.number == best else \
            trial.status if trial.status in ("fail", "voided", "pruned") else "done"
        yield Mark(where[trial.number], trial.values[0] if trial.values else worst, kind, _hint(record, trial),
                   f"#trial-{trial.number}")


def _progress(record: "Record") -> str:
    y, study = _value_axis(record), record.study
    if y is None:
        return ""
    order = sorted((trial for trial in study.trials if trial.outcome_seq), key=lambda trial: trial.outcome_seq)
    where = {trial.number: float(i) for i, trial in enumerate(order, start=1)}
    better = min if study.goals[0].direction == "minimize" else max
    line: list[tuple[float, float]] = []
    for trial in order:
        if _is_complete(trial) and keeps(trial) and trial.values is not None:
            value = trial.values[0]
            line.append((where[trial.number], better(line[-1][1], value) if line else value))
    if line:
        line.append((float(len(order)), line[-1][1]))
    beyond = sum(1 for trial in order if trial.values and not y.low <= trial.values[0] <= y.high)
    picture = pictures.chart(_marks(record, y, where), Axis(0, len(order) + 1.0), y, "outcomes in their order",
                             study.goals[0].name, line=line, about="Value of each outcome, and the best so far")
    return _section("Progress", f"<figure>{picture}<figcaption>{LEGEND} The line is the best so far."
                    + (f" {_count(beyond, 'value')} beyond the edge stand at the edge." if beyond else "")
                    + "</figcaption></figure>", "progress")


LEGEND = ('<span class="key best"></span> winner <span class="key done"></span> complete <span class="key pruned">'
          "</span> pruned <span class=cross>×</span> failed or void.")


def _parameters(record: "Record") -> str:
    y, study = _value_axis(record), record.study
    if y is None:
        return ""
    names = list(study.spec.space)
    panels = []
    for name in names[:PANELS_MAX]:
        x, where = _parameter_axis(study.spec.space[name], {
            trial.number: trial.params[name] for trial in study.trials if name in trial.params})
        if where:
            panels.append(pictures.chart(_marks(record, y, where), x, y, name, study.goals[0].name,
                                         width=370, height=230))
    more = f"<p>Of {len(names)} parameters the first {PANELS_MAX} are drawn.</p>" if len(names) > PANELS_MAX else ""
    return _section("Parameters", f"<figure><div class=panels>{''.join(panels)}</div><figcaption>{LEGEND} A trial is "
                    f"in the panels of its active parameters.</figcaption></figure>{more}", "parameters")


def _parameter_axis(parameter: Parameter, values: Mapping[int, Any]) -> tuple[Axis, dict[int, float]]:
    """The axis of a parameter, and where each trial stands on it."""
    if isinstance(parameter, (FloatParameter, IntParameter)):
        found = {number: float(value) for number, value in values.items()
                 if isinstance(value, (int, float)) and math.isfinite(value)}
        if parameter.scale == "power":
            spread = parameter.high - parameter.low

            def bend(value: float) -> float:
                return math.pow(max(0.0, (value - parameter.low) / spread), 1 / parameter.exponent)
            ticks = Axis(parameter.low, parameter.high).ticks(3)
            return Axis(0, 1, names={bend(at): name for at, name in ticks}), {n: bend(v) for n, v in found.items()}
        return Axis(float(parameter.low), float(parameter.high), log=parameter.scale == "log"), found
    texts = [cell(choice) for choice in parameter.choices]
    names = {float(i): text if len(text) < 12 else text[:10] + "…" for i, text in enumerate(texts)}
    if len(names) > 8:
        names = {i: name for i, name in names.items() if i % (len(names) // 8 + 1) == 0}
    places = {number: parameter.index(value) for number, value in values.items()}
    # A fixed scatter by trial number, so that equal choices do not hide each other.
    return Axis(-0.5, len(texts) - 0.5, names=names), {
        number: at + 0.6 * (number * 0.6180339887 % 1 - 0.5) for number, at in places.items() if at is not None}


# --- Workers -----------------------------------------------------------------------------------------


def _workers(record: "Record") -> str:
    study = record.study
    bars, last = _bars(record)
    if not bars:
        return ""
    by_worker: dict[str, list[tuple[float, float, str, int]]] = {}
    for worker, *bar in bars:
        by_worker.setdefault(worker, []).append(tuple(bar))  # type: ignore[arg-type]  # the rest of a bar
    names = sorted(by_worker)
    shown = sorted(sorted(names, key=lambda name: -len(by_worker[name]))[:ROWS_MAX])
    begin = min(bar[0] for each in by_worker.values() for bar in each)
    span = max(last - begin, 1e-3)
    drawn: list[Bar] = []
    lanes: list[str] = []
    for name in shown:
        first, free = len(lanes), list[float]()
        for start, end, kind, number in sorted(by_worker[name]):      # what overlaps lies in a lane of its own
            lane = next((i for i, until in enumerate(free) if until <= start), len(free))
            free[lane:lane + 1] = [end]
            lane = min(lane, LANES_MAX - 1)
            drawn.append(Bar(first + lane, start, end, kind, f"{name}, trial {number}: {kind} after "
                             f"{duration(end - start)}", f"#trial-{number}"))
        lanes += [name, *[""] * (min(len(free), LANES_MAX) - 1)]
    starts = [(_moment(event), f"daemon starts, event {event['seq']}") for event in record.events
              if event["type"] == "daemon.started" and begin <= _moment(event) <= last]
    ticks = {begin + at: duration(at) for at, _ in Axis(0, span).ticks(6)}
    picture = pictures.rows(drawn, lanes, Axis(begin, last, names=ticks), moments=starts,
                            about="When each worker held which trial")
    told = {name: math.fsum(trial.seconds or 0.0 for trial in study.trials
                            if (lease := lease_of(trial)) is not None and lease.worker == name) for name in names}
    hidden = f" Of {len(names)} workers the {ROWS_MAX} busiest are drawn." if len(names) > ROWS_MAX else ""
    table = _table(("Worker", ">Leases", ">Complete", ">Failed", ">Lost", ">Seconds told", "Revoked"), (
        (escape(name), str(len(by_worker[name])), str(_kinds(by_worker[name], "done")),
         str(_kinds(by_worker[name], "failed")), str(_kinds(by_worker[name], "lost")),
         escape(cell(told[name])), escape(str(record.state.worker(name).revoked or ""))) for name in names))
    return _section("Who did the work", f"<figure>{picture}<figcaption>{BAR_LEGEND} Time from the first lease; a "
                    f"dashed line is a start of the daemon.{hidden}</figcaption></figure>{table}", "workers")


BAR_LEGEND = "".join(f'<span class="key {kind}"></span> {words} ' for kind, words in (
    ("done", "complete"), ("pruned", "pruned"), ("failed", "failed"), ("lost", "lost"), ("released", "given back"),
    ("open", "open"))).strip() + "."


def _kinds(bars: Sequence[tuple[float, float, str, int]], kind: str) -> int:
    return sum(each[2] == kind for each in bars)


def _bars(record: "Record") -> tuple[list[tuple[str, float, float, str, int]], float]:
    """Every lease of the study as worker, begin, end, how it ended, trial; and the last time of the study."""
    held: dict[int, tuple[str, float, int]] = {}
    owner: dict[tuple[int, int], str] = {}
    found: list[tuple[str, float, float, str, int]] = []
    now = 0.0

    def end(trial: int, kind: str) -> None:
        if trial in held:
            worker, start, _ = held.pop(trial)
            found.append((worker, start, now, kind, trial))
    for event in record.events:
        data, trial = event["data"], event.get("trial")
        if event["type"] == "run.began":
            for study, number, fence in data["ended"]:
                if study == record.study.name and held.get(number, ("", 0.0, 0))[2] == fence:
                    now = _moment(event)
                    end(number, "lost")
        if event.get("study") != record.study.name:
            continue
        now = _moment(event)
        if trial is None:
            continue
        if event["type"] == "trial.leased":
            held[trial] = data["worker"], now, data["fence"]
            owner[trial, data["fence"]] = data["worker"]
        elif event["type"] == "lease.held":
            held[trial] = owner.get((trial, data["fence"]), "?"), now, data["fence"]
        elif event["type"] in ENDS and trial in held and data.get("fence", held[trial][2]) == held[trial][2]:
            end(trial, ENDS[event["type"]])
    for trial in list(held):
        end(trial, "open")
    return found, now


# --- Decisions ---------------------------------------------------------------------------------------


def _decisions(record: "Record", phrase: "Callable[[Event], str]") -> str:
    """What people did: everything that is not the daemon's or a worker's routine, with its reason."""
    spec: dict[str, Any] = {}
    rows = []
    for event in record.events:
        data, before = event["data"], spec
        if event.get("study") == record.study.name and "spec" in data:
            spec = data["spec"]
        ours = event.get("study") in (None, record.study.name)
        if not ours or not (event["actor"].startswith("operator/") or event["type"] in PEOPLE):
            continue
        who = event["actor"].partition("/")[2] or event["actor"]
        what = escape(phrase(event).removesuffix(f"  by {who}"))
        if event["type"] == "study.amended":
            what = "<br>".join(f"<code>{escape(key)}</code> {escape(old)} → {escape(new)}"
                               for key, old, new in _changes(before, spec)) or what
        elif data.get("reason") and str(data["reason"]) not in phrase(event):
            what += f"; reason: {escape(str(data['reason'])[:TEXT_MAX])}"
        rows.append((str(event["seq"]), _time(event), escape(who),
                     escape(event["type"]) + (f" {_trial_link(event['trial'])}" if event.get("trial") else ""), what))
    if not rows:
        return _section("Decisions by people", "<p>None is on record.</p>", "decisions")
    return _section("Decisions by people", _table((">Event", "Time (UTC)", "Who", "Did", "What, and why"), iter(rows)),
                    "decisions", "Everything that an operator did to this study, in order. What was voided stays in "
                    "the record; the optimiser no longer knows it.")


def _changes(before: Any, after: Any, way: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, old, new) of every difference between two declarations."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _changes(before.get(key), after.get(key), f"{way}.{key}" if way else key)
    elif before != after:
        yield way, "none" if before is None else json.dumps(before, ensure_ascii=False)[:TEXT_MAX], \
            "none" if after is None else json.dumps(after, ensure_ascii=False)[:TEXT_MAX]


# --- All trials --------------------------------------------------------------------------------------


def _trials(record: "Record", why: Collection[int]) -> str:
    study = record.study
    names = list(study.spec.space)
    wide = len(names) <= 8
    proofs = {event["seq"]: event["hash"] for event in record.events}
    errors = {event["seq"]: event["data"].get("error") or event["data"].get("reason") for event in record.events}
    voids = {event["trial"]: event["data"].get("reason") for event in record.events
             if event["type"] == "outcome.voided" and event.get("study") == study.name}

    def row(trial: Trial) -> Sequence[str]:
        state = trial.status + (f" ({trial.failure})" if trial.failure else "")
        reason = voids.get(trial.number) if trial.status == "voided" else errors.get(trial.outcome_seq)
        said = str(reason or "").strip().splitlines()
        state = escape(state) + (
            f"<small class=said>{escape(said[-1][:TEXT_MAX])}</small>" if said else "")
        values = "<br>".join(escape(cell(value)) for value in trial.values or ())
        error = f" <small>± {trial.se:.2g}</small>" if trial.se is not None and values else ""
        point = [escape(cell(trial.params[name])) if name in trial.params else "" for name in names] if wide else \
            [escape(params(trial.params))]
        lease = lease_of(trial)
        worker = escape(lease.worker) if lease is not None else ""
        seq = trial.outcome_seq or trial.proposed_seq
        return [f'<span id="trial-{trial.number}">{trial.number}</span>', values + error, f"<span class={trial.status}>"
                f"{state}</span>", *point, escape(trial.sampler), worker, str(trial.proposed_seq),
                str(trial.outcome_seq or ""), f"<code>{proofs.get(seq, '')[:12]}</code>", _why_link(trial.number, why)]
    titles = [">Trial", ">" + "<br>".join(escape(goal.name) for goal in study.goals), "State",
              *(escape(name) for name in (names if wide else ["parameters"])), "Sampler", "Worker", ">Proposed",
              ">Outcome", "Hash", ""]
    return _section("All trials", _table(titles, map(row, study.trials), "trials"), "trials",
                    "Proposed and Outcome are the events in which the trial was proposed and ended; Hash begins the "
                    "hash of the outcome, which is the line of that number in <code>hashes.txt</code>.")


# --- Proof -------------------------------------------------------------------------------------------


def _proof(record: "Record", signed: Sequence[str], keys: Sequence[str]) -> str:
    head = len(record.hashes)
    rows = []
    for note in signed:
        said = notes.read(note)
        rows.append((f"{said.size:,}", f"<code>{said.root.hex()[:32]}…</code>"))
    shown = rows if len(rows) <= 12 else [*rows[:3], ("…", f"{len(rows) - 9} more"), *rows[-6:]]
    table = _table((">Events", "Root of their Merkle tree"), iter(shown)) if rows else \
        "<p>There are none: hashes show that the parts fit, not that the whole was not made anew.</p>"
    key = "<p>The key, to be compared with a copy from elsewhere:</p>" + "".join(
        f"<p><code class=long>{escape(key)}</code></p>" for key in keys) if keys else (
        "<p>The log was written without a key, so nothing here can be told from a forgery of all of it.</p>")
    check = CHECK if keys else CHECK.replace(" --key 'KEY'", "")
    missing = "" if record.whole else (f" Of the {head:,} events of the log, {head - len(record.bodies):,} are of "
                                       "other studies and are in the pack by their hash alone.")
    engines = "".join(
        f"<h3>Fingerprint <code>{escape(name[:16])}</code></h3><dl>" + "".join(
            f"<div><dt>{escape(str(key))}</dt><dd>{escape(_plain(value))}</dd></div>" for key, value in engine.items())
        + "</dl>" for name, engine in record.fingerprints.items())
    fixed = f", and signed notes fix the whole at {_count(len(signed), 'moment')}" if signed else ""
    return _section("Did nobody change this?", (
        f"<p>The record ends with event {head:,}, hash <code class=long>{record.hashes[-1].hex()}</code>. Each event "
        f"holds the hash of the one before it{fixed}.{missing}</p>{check}"
        f"{key}<h3>Signed notes</h3>{table}"
        f"<h2>What computed</h2><p>Suggestions depend on versions and on the machine's arithmetic; the record names "
        f"both.</p>{engines or '<p>No fingerprint is on record.</p>'}"), "proof")


CHECK = """<pre>python3 verify/bayesd-verify.py ../PACK.zip --key 'KEY'
node verify/bayesd-verify.mjs ../PACK.zip --key 'KEY'</pre><p>Either checks it with none of bayesd's code;
<code>README.txt</code> in the pack says how, and what that shows.</p>"""


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(" ".join(map(str, each.values())) if isinstance(each, dict) else str(each)
                         for each in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "-"
    return str(value)


def _declared(record: "Record") -> str:
    spec = record.study.spec.model_dump(mode="json", exclude_unset=True)
    return _section("The study as declared", f"<pre>{escape(json.dumps(spec, indent=2, ensure_ascii=False))}</pre>",
                    "declared", "As it stands at the end; what it was before is under "
                    '<a href="#decisions">decisions</a>.')


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#5b6470;--rule:#e3e6ea;--card:#f5f7f9;--link:#0b5cad;
--done:#3573b9;--best:#d9480f;--pruned:#9aa5b1;--failed:#c92a2a;--lost:#e8a200;--released:#7a8794;--open:#74b816}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e6e8ea;--soft:#98a2ad;--rule:#2b3138;--card:#1d2227;
--link:#7ab8ff;--done:#6ea8e6;--best:#ff8a4c;--pruned:#78838f;--failed:#ff7b72;--lost:#f0b93a;--open:#a3d955}}
@page{margin:16mm}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:34px;line-height:1.15;margin:0 0 12px;overflow-wrap:anywhere}h2{font-size:21px;margin:44px 0 10px}
h3{font-size:15px;margin:24px 0 6px}.over{margin:0;color:var(--soft);font-size:13px;letter-spacing:.06em;
text-transform:uppercase}.lead{font-size:17px;max-width:52em}p{max-width:58em;margin:8px 0}a{color:var(--link)}
code,pre{font:13px/1.5 ui-monospace,monospace}pre{background:var(--card);padding:12px 14px;border-radius:6px;
overflow-x:auto}.long{overflow-wrap:anywhere}small{color:var(--soft);font-size:12px}
.card{background:var(--card);border-left:4px solid var(--best);border-radius:6px;padding:12px 18px}
.card p{margin:0 0 8px}.big{font-size:27px;font-weight:650}
dl{display:flex;flex-wrap:wrap;gap:6px 26px;margin:6px 0}dl div{min-width:0}dt{color:var(--soft);font-size:12px}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
figure{margin:12px 0}figcaption{color:var(--soft);font-size:13px;margin-top:4px}
svg{display:block;width:100%;max-width:900px;height:auto;overflow:visible}.panels{display:grid;gap:14px;
grid-template-columns:repeat(auto-fill,minmax(300px,1fr))}
.tick,.name{fill:var(--soft);font:11.5px system-ui,sans-serif}.name{font-size:12.5px;fill:var(--ink)}
.rule{stroke:var(--rule)}.line{stroke:var(--best);stroke-width:1.8;fill:none}
.moment{stroke:var(--soft);stroke-dasharray:3 3}
circle.done,rect.done{fill:var(--done)}circle.done{fill-opacity:.72}circle.pruned,rect.pruned{fill:var(--pruned)}
circle.best{fill:var(--best);stroke:var(--paper);stroke-width:1.5}path.fail,path.voided{stroke:var(--failed);
stroke-width:1.6;fill:none;opacity:.75}rect.failed{fill:var(--failed)}rect.lost{fill:var(--lost)}
rect.released,rect.void{fill:var(--released)}rect.open{fill:var(--open)}
.key{display:inline-block;width:10px;height:10px;border-radius:50%;margin-left:8px;background:var(--done)}
.key:first-child{margin-left:0}.key.best{background:var(--best)}.key.pruned{background:var(--pruned)}
.key.failed{background:var(--failed)}.key.lost{background:var(--lost)}.key.released{background:var(--released)}
.key.open{background:var(--open)}.cross{color:var(--failed);margin-left:8px;font-weight:700}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;margin:8px 0;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:550;font-size:12px;vertical-align:bottom}
th,td{padding:4px 14px 4px 0;border-bottom:1px solid var(--rule);vertical-align:top}.n{text-align:right}
td code{font-size:12px}td:first-child,.trials{white-space:nowrap}
.trials small.said{display:block;white-space:normal;min-width:16em}
tr:has(:target){background:var(--card);outline:2px solid var(--best)}
span.fail,span.voided{color:var(--failed)}span.pruned{color:var(--soft)}
@media print{:root{--paper:#fff;--ink:#000;--soft:#444;--rule:#ccc;--card:#f4f4f4;--link:#000}body{font-size:10.5pt}
main{padding:0;max-width:none}h2{break-after:avoid}svg,.card,tr{break-inside:avoid}.scroll{overflow:visible}
.trials{white-space:normal;font-size:8pt}a{text-decoration:none}.panels{grid-template-columns:1fr 1fr}}
"""
