"""The page of one trial: what was known, why this point, what was expected, and what became of it.

Everything under `expected` and `provenance` was recorded when the point was made. What could be
made again from the record (runner-ups, slices, the share of the mean) says so: `recomputed`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bayesd.optimize import posterior_at_data
from bayesd.optimize.encode import cube
from bayesd.optimize.explain import Explained, explain, keeping
from bayesd.study.problem import Problem
from bayesd.study.state import Trial
from bayesd.why.witness import Entry, Moment, Witness
from bayesd_schemas.space import Params, Space

PAGE_TRIALS = 50        # pending trials and leases that a page names
CURVE_MAX = 400
TEXT_MAX = 400
EXPLOITS, EXPLORES = 0.6, 0.3       # shares of expected improvement that the mean brings
BESIDE = 0.05           # of every range: a point so near to a tried one refines

Page = dict[str, Any]


def trial_page(seen: Witness, number: int) -> Page:
    """Everything about why this trial was tried. The witness saw it, and took the moments around it."""
    trial, proposed = seen.trial(number), seen.proposal(number)
    data, study = proposed.data, seen.study
    then = seen.moments[data["as_of"]]
    problem = seen.problem(number)
    model = _explained(problem, trial, data)
    goal = then.spec.goals[0]
    sign = 1.0 if goal.direction == "minimize" else -1.0
    known = _known(seen, then)
    expected = _expected(data, model, known["best"], sign)
    nearest = _nearest(problem, trial.params, seen, then)
    return {
        "page": "trial", "study": study.name, "trial": number, "params": dict(trial.params),
        "metric": goal.name, "direction": goal.direction,
        "objectives": [{"name": each.name, "direction": each.direction} for each in then.spec.goals],
        "seen_to": {"seq": seen.seq, "time": seen.time},
        "known": known,
        "choice": _choice(seen, trial, data, then),
        "expected": expected,
        "aim": _aim(model, nearest) if trial.sampler == "bayes" else None,
        "recomputed": _recomputed(model, trial, data),
        "pending": _pending(seen, data, then),
        "nearest": nearest,
        "became": _became(seen, trial, then, expected, model, sign),
        "lesson": _lesson(seen, trial, sign),
        "curve": curve(seen, sign, number),
        "provenance": _provenance(seen, proposed, then),
    }


# ---------------------------------------------------------------- what was known


def _known(seen: Witness, then: Moment) -> Page:
    counts = then.counts
    return {"seq": then.seq, "time": then.time, "complete": counts["complete"], "fail": counts["fail"],
            "pruned": counts["pruned"], "voided": counts["voided"], "running": counts["running"],
            "waiting": counts["waiting"], "paused": counts.get("paused", 0), "trials": then.trials,
            "outcomes": len(then.history),
            **handed_out(seen, then),
            "budget": then.spec.budget.trials,
            "best": None if then.best is None else {"trial": then.best[0], "value": then.best[1]}}


def handed_out(seen: Witness, then: Moment) -> Page:
    """A fork begins with trials that were measured elsewhere: nobody was handed those, and no budget counts them."""
    own = sum(trial.origin is None for trial in seen.study.trials[:then.trials])
    return {"handed_out": own, "imported": then.trials - own,
            "used": then.trials - then.counts["voided"] - then.imported}


def _choice(seen: Witness, trial: Trial, data: Mapping[str, Any], then: Moment) -> Page:
    sampler, spec = trial.sampler, then.spec
    stream = str(data.get("stream") or "")
    how = sampler
    if sampler == "sobol":
        kind = {"centre": "centre", "prior": "prior", "source": "earlier"}.get(stream.rpartition("/")[2])
        how = kind or ("design" if spec.method == "bayes" else "sobol")
    elif sampler == "bayes":
        how = "forest" if spec.surrogate == "forest" else "model"
    out: Page = {"how": how, "sampler": sampler, "method": spec.method, "surrogate": spec.surrogate,
                 "fallback": data.get("fallback"), "acquisition": data.get("acquisition"), "gap": data.get("gap"),
                 "age_s": data.get("age_s"), "drawn": data.get("drawn"), "by": None, "of": data.get("of"),
                 "prior": data.get("prior"), "sources": data.get("sources"), "priors": list(spec.prior),
                 "earlier": [start.study for start in spec.warm_start]}
    if sampler == "enqueued":
        origin = seen.enqueued.get(trial.number)
        if origin is not None:
            by = {"study.created": "study file", "study.forked": "fork"}.get(origin.event.type, "enqueue")
            out["by"] = {"who": origin.operator, "with": by,
                         "of": origin.data["origin"]["study"] if by == "fork" else None,
                         "seq": origin.seq, "time": origin.time}
    return out


def _expected(data: Mapping[str, Any], model: Explained | None, best: Page | None, sign: float) -> Page | None:
    """What the model held of this point: as recorded, else as it can be made again."""
    mean, sd, source = data.get("mean"), data.get("sd"), "recorded"
    if mean is None or sd is None:
        if model is None or model.mean is None or model.sd is None:
            return None
        mean, sd, source = model.mean, model.sd, "recomputed"
    mean, sd = float(mean), float(sd)
    out: Page = {"source": source, "mean": mean, "sd": sd, "low": mean - sd, "high": mean + sd, "by_sd": None,
                 "gain": None}
    if model is not None and model.mean is not None and math.isclose(model.mean, mean, rel_tol=1e-6, abs_tol=1e-3 * sd):
        out["low"], out["high"] = model.low, model.high      # the record has half their distance
    if best is not None:
        out["gain"] = gain = sign * (best["value"] - mean)
        out["by_sd"] = gain / sd if sd > 0 else None
    return out


# ---------------------------------------------------------------- what can be made again


def _explained(problem: Problem | None, trial: Trial, data: Mapping[str, Any]) -> Explained | None:
    """Of a study that learns, and not of its start design, which no model has a word in."""
    if problem is None or problem.method != "bayes" or trial.sampler == "sobol":
        return None
    return explain(problem, trial.params)


def _aim(model: Explained | None, nearest: Page | None) -> str | None:
    """Whether it went there to exploit, to explore or to refine: a rule of thumb, and the page tells it."""
    if model is None:
        return None
    if model.sd == 0:
        return "blind"
    if model.share >= EXPLOITS:
        return "exploit"
    shares = [each["share"] for each in nearest["differs"]] if nearest is not None else [None]
    if all(share is not None and share <= BESIDE for share in shares):
        return "refine"
    return "mixed" if model.share >= EXPLORES else "explore"


def _recomputed(model: Explained | None, trial: Trial, data: Mapping[str, Any]) -> Page | None:
    if model is None:
        return None
    mine = trial.sampler == "bayes"
    # Machines may differ in the last bits, and a grid of 2**-18 hides that from the point.
    return {"agrees": _same(model.found, trial.params) if mine else None,
            "found": model.found if mine and not _same(model.found, trial.params) else None,
            "mean": model.mean, "sd": model.sd, "best_belief": model.best, "ahead_sd": model.ahead,
            "mean_share": model.share, "success": model.success, "noise_sd": model.noise,
            "weights": None if model.weights is None else list(model.weights),
            "means": None if model.means is None else list(model.means),
            "sds": None if model.sds is None else list(model.sds), "log_hypervolume_gain": model.gain,
            "feasible": list(model.feasible),
            "rivals": [{"params": rival.params, "mean": rival.mean, "sd": rival.sd, "ratio": rival.ratio}
                       for rival in model.rivals] if mine else [],
            "slices": [{"parameter": each.name, "scale": each.scale, "values": list(each.values),
                        "mean": list(each.mean), "low": list(each.low), "high": list(each.high), "at": each.at}
                       for each in model.slices]}


def _same(one: Params | None, other: Params) -> bool:
    """The same point to a reader, whatever the last digit of a logarithm."""
    return one is not None and one.keys() == other.keys() and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) if isinstance(a, float) and isinstance(b, (int, float))
        else a == b for a, b in ((one[name], other[name]) for name in one))


def _pending(seen: Witness, data: Mapping[str, Any], then: Moment) -> Page:
    """Trials under way that the point was kept away from."""
    used = data.get("pending")
    numbers = list(used if used is not None else then.pending)
    return {"used": used is not None, "trials": numbers[:PAGE_TRIALS], "more": max(0, len(numbers) - PAGE_TRIALS),
            "ahead": len(data.get("ahead") or ())}


# ---------------------------------------------------------------- the nearest point


def _nearest(problem: Problem | None, params: Params, seen: Witness, then: Moment) -> Page | None:
    """The nearest point that was tried or under way, and in what it differs."""
    if problem is None:
        return None
    of, study = cube(problem.space), seen.study
    numbers = dict.fromkeys([*(seen_.trial for seen_ in problem.history), *then.pending])
    tried = [study.trials[n - 1] for n in numbers]
    if not tried:
        return None
    known = {observation.trial: observation for observation in problem.history}
    U, here = of.pin(of.encode([trial.params for trial in tried])), of.pin(of.encode([params]))
    apart = np.abs(U - here)
    for j, axis in enumerate(of.axes):
        if axis.kind == "choice":
            apart[:, j] = axis.cell(U[:, j]) != axis.cell(here[:, j])
    squares = (apart * apart).sum(axis=1)
    i = int(np.argmin(squares))
    other = tried[i]
    values = then.values.get(other.number)
    observed = known.get(other.number)
    return {"trial": other.number, "distance": float(math.sqrt(squares[i])),
            "value": values[0] if values else None,
            "state": "complete" if values else "running" if observed is None else
                     "fail" if observed.values is None else "partial",
            "differs": differences(problem.space, params, other.params),
            "same": [name for name in params if name in other.params and params[name] == other.params[name]]}


def differences(space: Space, here: Params, there: Params) -> list[Page]:
    """Parameter by parameter in which two points differ; `share` is the part of its range."""
    out: list[Page] = []
    of = cube(space)
    for axis in of.axes:
        name = axis.name
        if name not in here and name not in there:
            continue
        if name in here and name in there and here[name] == there[name]:
            continue
        row: Page = {"parameter": name, "here": here.get(name), "there": there.get(name),
                     "only": "here" if name not in there else "there" if name not in here else None,
                     "scale": getattr(axis.parameter, "scale", None), "share": None}
        if row["only"] is None and axis.kind != "choice":
            row["share"] = float(abs(axis.units([here[name]])[0] - axis.units([there[name]])[0]))
        out.append(row)
    return out


# ---------------------------------------------------------------- what became of it


def _became(seen: Witness, trial: Trial, then: Moment, expected: Page | None, model: Explained | None,
            sign: float) -> Page:
    entries = seen.kept[trial.number]
    outcome = seen.entry(trial.number, trial.outcome_seq) if trial.outcome_seq else None
    out: Page = {
        "state": trial.status, "value": trial.values[0] if trial.values else _last_report(trial),
        "values": None if trial.values is None else {
            goal.name: value for goal, value in zip(trial.study.goals, trial.values, strict=True)},
        "se": trial.se, "seconds": trial.seconds, "cost": None, "class": trial.failure, "error": None,
        "seq": trial.outcome_seq or None, "time": outcome.time if outcome else None,
        "worker": _worker(trial, outcome), "revoked": None, "leases": len(trial.leases),
        "attempts": [{"class": entry.data["class"], "error": cut(seen.said(entry).get("error")), "time": entry.time}
                     for entry in entries if entry.event.type == "trial.failed" and entry.data.get("retry")],
        "expired": sum(entry.event.type == "lease.expired" and entry.data.get("reason", "expired") == "expired"
                       for entry in entries),
        "since": next((entry.time for entry in reversed(entries) if entry.event.type in ("trial.leased", "lease.held")),
                      None),
        "reports": len(trial.reports or ()), "stopped": trial.stopped,
        "late": [{"state": late.state, "values": late.values, "seq": late.seq} for late in trial.late or ()],
        "rungs": _rungs(seen, trial), "checkpoint": trial.checkpoint,
        "voided": None, "promoted": None, "surprise": None, "rank": None, "improved": None}
    if outcome is not None:
        out["cost"], out["error"] = outcome.data.get("cost"), cut(seen.said(outcome).get("error"))
        out["promoted"] = outcome.data.get("promoted")
    out["voided"] = voided(seen, trial)
    out["revoked"] = revoked(seen, out["worker"])
    if trial.status == "complete" and trial.values is not None:
        out["surprise"] = _surprise(trial, expected, model, sign)
        out["rank"] = ranks(seen, trial, sign)
        before = seen.moments.get(trial.outcome_seq - 1)
        if before is not None:
            out["improved"] = before.best is None or sign * trial.values[0] < sign * before.best[1]
    out["pace"] = _pace(seen, trial)
    return out


def _rungs(seen: Witness, trial: Trial) -> list[Page]:
    """Where it paused, and what it told there; `rule`: the rule that then let it go on no more."""
    out: list[Page] = []
    for entry in seen.kept[trial.number]:
        if entry.event.type == "trial.paused":
            lease = trial.lease(entry.data["fence"])
            values = entry.data["values"]
            out.append({"rung": entry.data["fidelity"], "value": values[trial.study.goals[0].name], "seq": entry.seq,
                        "time": entry.time, "worker": None if lease is None else lease.worker, "rule": None})
        elif entry.event.type == "trial.pruned" and entry.data.get("rule") is not None and out:
            out[-1]["rule"] = entry.data["rule"]
    return out


def _last_report(trial: Trial) -> float | None:
    """What a trial that was stopped early had reached."""
    if trial.status != "pruned" or not trial.reports:
        return None
    said = trial.reports[max(trial.reports)]
    value = said.get(trial.study.goals[0].name) if isinstance(said, dict) else None
    return None if value is None else float(value)


def _worker(trial: Trial, outcome: Entry | None) -> str | None:
    """Who measured it: the lease that the outcome names. It may have ended long before a later one."""
    fence = outcome.data.get("fence") if outcome is not None else None
    lease = trial.lease(fence) if fence is not None else None
    lease = lease or (trial.leases[-1] if trial.leases else None)
    return None if lease is None else lease.worker


def voided(seen: Witness, trial: Trial) -> Page | None:
    """Who declared its outcome void, and why."""
    void = next((entry for entry in seen.kept[trial.number] if entry.event.type == "outcome.voided"), None)
    if void is None:
        return None
    return {"reason": cut(seen.said(void).get("reason")), "who": void.operator, "seq": void.seq, "time": void.time}


def revoked(seen: Witness, worker: str | None) -> Page | None:
    """Why its worker may work no more: whoever reads its result should know."""
    entry = seen.revoked.get(worker or "")
    if entry is None:
        return None
    return {"reason": cut(seen.said(entry).get("reason")), "who": entry.operator, "seq": entry.seq,
            "time": entry.time}


def cut(text: Any) -> str | None:
    """The last line of an error, which says the most, without its end when it is long."""
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return lines[-1][:TEXT_MAX] if lines else None


def _surprise(trial: Trial, expected: Page | None, model: Explained | None, sign: float) -> Page | None:
    """How far the result is from what was expected, in standard deviations of that expectation, with what is known
    of the noise of one measurement added."""
    assert trial.values is not None
    if expected is None:
        return None
    noise = trial.se if trial.se is not None else model.noise if model is not None else None
    width = math.hypot(expected["sd"], noise or 0.0)
    off = trial.values[0] - expected["mean"]
    return {"z": off / width if width > 0 else None, "off": off, "better": sign * off < 0, "noise_sd": noise}


def ranks(seen: Witness, trial: Trial, sign: float) -> Page:
    """The place of its value among the complete trials, when it came and at the end."""
    assert trial.values is not None
    value = sign * trial.values[0]

    def rank(values: list[tuple[float, ...]]) -> Page:
        return {"place": 1 + sum(sign * each[0] < value for each in values), "of": len(values)}
    after = seen.moments.get(trial.outcome_seq)
    now = [other.values for other in seen.study.trials if other.status == "complete" and other.values is not None]
    out: Page = {"then": rank(list(after.values.values())) if after is not None else None, "now": rank(now),
                 "front": None}
    if len(trial.study.goals) > 1:
        signs = [1.0 if goal.direction == "minimize" else -1.0 for goal in trial.study.goals]
        mine = [s * v for s, v in zip(signs, trial.values, strict=True)]
        out["front"] = not any(_dominates([s * v for s, v in zip(signs, other, strict=True)], mine) for other in now)
    return out


def _dominates(one: list[float], other: list[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def _pace(seen: Witness, trial: Trial) -> Page | None:
    """What it took beside the other trials."""
    if trial.seconds is None:
        return None
    others = sorted(other.seconds for other in seen.study.trials if other.seconds is not None and other is not trial)
    return {"median_s": others[len(others) // 2], "of": len(others)} if others else None


def _lesson(seen: Witness, trial: Trial, sign: float) -> Page | None:
    """How the belief about the best moved with this result, the hyperparameters held as they were."""
    before, after = seen.moments.get(trial.outcome_seq - 1), seen.moments.get(trial.outcome_seq)
    if (not trial.outcome_seq or before is None or after is None or before.spec.method != "bayes"
            or (before.problem.fit is None and before.spec.surrogate == "gp") or len(before.spec.goals) > 1):
        return None
    sides = [_belief(side, trial.number, before, sign) for side in (before, after)]
    if sides[0] is None or sides[1] is None:
        return None
    return {"before": sides[0], "after": sides[1]}


def _belief(side: Moment, number: int, before: Moment, sign: float) -> Page | None:
    """The tried point that is believed to be the best, and by how much."""
    problem, fit = replace(side.problem, pending=()), before.problem.fit
    if fit is not None:
        problem = keeping(problem, fit)
    well = [i for i, observation in enumerate(side.history) if observation.values is not None]
    if not well:
        return None
    means, sds = posterior_at_data(problem)
    top = min(well, key=lambda i: (sign * means[i], side.history[i].trial))
    return {"trial": side.history[top].trial, "mean": means[top], "sd": sds[top]}


# ---------------------------------------------------------------- the curve, the record


def curve(seen: Witness, sign: float, number: int | None = None) -> Page:
    """Values of the first objective by trial number; of a long study one point for each `step` trials, the best."""
    trials = seen.study.trials
    step = max(1, -(-len(trials) // CURVE_MAX))
    values: list[float | None] = []
    for i in range(0, len(trials), step):
        found = [trial.values[0] for trial in trials[i:i + step] if trial.status == "complete" and trial.values]
        values.append(min(found, key=lambda value: sign * value) if found else None)
    return {"step": step, "trials": len(trials), "values": values, "trial": number}


def _provenance(seen: Witness, proposed: Entry, then: Moment) -> Page:
    data, event = proposed.data, proposed.event
    fit = seen.fits.get(data.get("fit") or 0)
    engine = then.engine
    return {"log": seen.log, "seq": event.seq, "hash": event.hash.hex(), "time": proposed.time,
            "as_of": data["as_of"],
            "fit": None if fit is None else {"seq": data["fit"], "n": fit.n, "model": fit.model},
            "stream": data.get("stream"), "seed": then.spec.seed, "drawn": data["drawn"],
            "space_rev": data["space_rev"],
            "engine": None if engine is None else {
                "fingerprint": engine.data["fingerprint"], "versions": _versions(engine.data.get("engine"))},
            "outcome": seen.trial(proposed.event.trial or 0).outcome_seq or None}


def _versions(engine: Any) -> dict[str, str]:
    return {str(name): str(value)[:80] for name, value in engine.items() if isinstance(value, (str, int))} \
        if isinstance(engine, dict) else {}
