"""What a careful colleague would say of a study before anybody acts on its winner.

Each warning has a code, a sentence, the numbers that it rests on, and what to do. It is a function of the trials
alone, and where it speaks of noise of the belief. Tests of chance are exact (Fisher; Mann and Whitney), and
corrected by Holm's method for how many were made, at LEVEL for each kind of warning.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import fisher_exact, mannwhitneyu

from bayesd.importance.belief import Belief
from bayesd.optimize.encode import Axis, Cube, cube
from bayesd.optimize.streams import Floats
from bayesd.study.state import Study
from bayesd.study.view import lease_of
from bayesd_schemas.space import FloatParameter, IntParameter, Params, Space

LEVEL = 0.05
EDGE = 0.02             # of an axis, on its scale: a winner nearer to an end than this is at the boundary
WIDEN = 0.5             # by how much of the axis to widen there
GAP_CHANCE = 0.01       # an interval that stays empty by chance this rarely is a range never explored
GAP_MIN = 0.2           # of an axis; a smaller one is no range
FEW_PER_PARAMETER = 5
LEADERS = 5
BLOCKS = 4              # parts of an axis in which failures are counted
SLOWER = 1.5
EXPLODE = 10.0          # times the median duration
LISTED_MAX = 5          # choices and trials that a sentence names


@dataclass(frozen=True, slots=True)
class Warning:
    """One of them, for people and programs."""

    code: str
    text: str
    numbers: dict[str, Any]
    do: str

    @property
    def row(self) -> dict[str, Any]:
        return {"code": self.code, "text": self.text, "numbers": self.numbers, "do": self.do}


@dataclass(frozen=True, slots=True)
class Fact:
    """What one trial says: frozen, so that it can be looked at beside a study that goes on."""

    trial: int
    params: Params
    value: float | None
    """Of the first objective, of a complete trial."""
    failed: bool
    worker: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """A study as the warnings see it."""

    study: str
    space: Space
    minimize: bool
    deterministic: bool
    trials: tuple[Fact, ...]
    winner: int | None

    @classmethod
    def of(cls, study: Study) -> "Facts":
        """The trials with an outcome. Cancelled and lost ones say nothing of their point."""
        trials = tuple(Fact(trial.number, trial.params,
                            trial.values[0] if trial.status == "complete" and trial.values is not None else None,
                            trial.status == "fail", None if (lease := lease_of(trial)) is None else lease.worker,
                            trial.seconds)
                       for trial in study.trials
                       if trial.status in ("complete", "fail") and trial.of is None
                       and trial.failure not in ("lost", "cancelled"))
        best = study.best
        won = study.winner["trial"] if study.winner is not None and study.winner["confirmed"] else None
        return cls(study.name, study.spec.space, study.goals[0].direction == "minimize", study.spec.noise == "none",
                   trials, won or (None if best is None else best.number))

    @property
    def best(self) -> Fact | None:
        return next((fact for fact in self.trials if fact.trial == self.winner and fact.value is not None), None)


def of(facts: Facts, belief: Belief | None = None) -> list[Warning]:
    """All warnings, those about the winner first. Without a belief nothing is said of noise."""
    return [*_boundary(facts), *_noise(facts, belief), *_few(facts), *_unexplored(facts), *_failures(facts),
            *_workers(facts), *_durations(facts), *_duplicates(facts)]


# ---------------------------------------------------------------- about the winner


def _boundary(facts: Facts) -> Iterator[Warning]:
    """The winner at the end of a numeric axis, on its scale: the best may lie beyond."""
    best = facts.best
    if best is None:
        return
    for axis in cube(facts.space).axes:
        of = axis.parameter
        if axis.name not in best.params or not isinstance(of, FloatParameter | IntParameter):
            continue
        said = best.params[axis.name]
        assert isinstance(said, int | float)
        value = float(said)
        if axis.cells:
            if axis.cells < 4:
                continue
            cell = axis.cell_of(value)
            assert cell is not None
            end = "low" if cell == 0 else "high" if cell == axis.cells - 1 else None
        else:
            u = float(axis.units([value])[0])
            end = "low" if u <= EDGE else "high" if u >= 1 - EDGE else None
        if end is None:
            continue
        limit, wider = _wider(axis, end)
        yield Warning(
            "winner-on-boundary",
            f"the winner's {axis.name} = {value:.6g} is at the {end} end of its range, {limit:.6g}",
            {"param": axis.name, "value": value, "end": end, "limit": limit, "suggested": wider},
            f"let {axis.name} go as far as {wider:.4g} (bayesd study amend, or a fork), unless that has no meaning")


def _wider(axis: Axis, end: str) -> tuple[float, float]:
    """The end, and where it would be if the axis were wider by half of its length on its scale."""
    of = axis.parameter
    assert isinstance(of, FloatParameter | IntParameter)
    low, high = float(of.low), float(of.high)
    if of.scale == "log" and low > 0:
        step = math.exp(WIDEN * (math.log(high) - math.log(low)))
        limit, wider = (low, low / step) if end == "low" else (high, high * step)
    else:
        limit, wider = (low, low - WIDEN * (high - low)) if end == "low" else (high, high + WIDEN * (high - low))
    if isinstance(of, IntParameter):
        step = of.step or 1
        wider = limit + step * math.copysign(max(1, math.ceil(abs(wider - limit) / step)), wider - limit)
        if of.scale == "log":
            wider = max(1.0, wider)
    return limit, float(f"{wider:.6g}")


def _noise(facts: Facts, belief: Belief | None) -> Iterator[Warning]:
    """The leaders differ by less than one measurement is sure to."""
    best = facts.best
    if belief is None or best is None or belief.noise_sd is None or facts.deterministic:
        return
    values = sorted((fact.value for fact in facts.trials if fact.value is not None), reverse=not facts.minimize)
    if len(values) < LEADERS:
        return
    near = belief.told
    assert near is not None
    z = np.array([float(np.min(near.z))])
    noise = float(near.metric_sd(z, np.array([math.sqrt(belief.posterior.kernel.noise)]))[0])
    apart = abs(values[LEADERS - 1] - values[0])
    if noise > apart and noise > 0:
        yield Warning(
            "noise-exceeds-differences", f"one measurement varies by {noise:.3g} (one standard deviation, by the "
            f"model), and the best {LEADERS} trials lie within {apart:.3g}: their order is largely luck",
            {"noise_sd": noise, "leaders": LEADERS, "apart": apart},
            f"measure the leaders again: bayesd study confirm {facts.study} --top {LEADERS} --repeats 3")


def _few(facts: Facts) -> Iterator[Warning]:
    """Fewer results than the order of so many parameters needs."""
    complete = sum(fact.value is not None for fact in facts.trials)
    wanted = FEW_PER_PARAMETER * len(facts.space)
    if complete < wanted:
        yield Warning("few-trials", f"{complete} complete trials for {len(facts.space)} parameters: shares, effects "
                      "and the winner may still change much", {"complete": complete, "wanted": wanted},
                      f"go on to {wanted} or more before you conclude")


# ---------------------------------------------------------------- about the space


def _unexplored(facts: Facts) -> Iterator[Warning]:
    """Intervals of an axis, on its scale, and choices that no trial has tried although chance alone would have."""
    if len(facts.trials) < 2 * LEADERS:
        return
    for axis in cube(facts.space).axes:
        tried = [fact.params[axis.name] for fact in facts.trials if axis.name in fact.params]
        if not tried:
            yield Warning("never-active", f"{axis.name} was part of no trial", {"param": axis.name},
                          f"enqueue a point that has it: bayesd study enqueue {facts.study} {axis.name}=...")
        elif axis.kind == "real" or axis.cells > len(tried):
            yield from _gap(facts, axis, tried)
        else:
            seen = {axis.cell_of(value) for value in tried}
            missing = [cell for cell in range(axis.cells) if cell not in seen]
            # Named only where so many trials would hardly have missed it by chance.
            if missing and (1 - 1 / axis.cells) ** len(tried) * axis.cells < LEVEL:
                values = axis.cell_values(missing[:LISTED_MAX])
                names = ", ".join(map(str, values)) + (", ..." if len(missing) > LISTED_MAX else "")
                yield Warning("never-tried", f"no trial had {axis.name} = {names}",
                              {"param": axis.name, "values": values, "missing": len(missing), "of": axis.cells},
                              f"enqueue one: bayesd study enqueue {facts.study} {axis.name}={values[0]} ...")


def _gap(facts: Facts, axis: Axis, tried: Sequence[Any]) -> Iterator[Warning]:
    u = np.sort(np.concatenate([[0.0], axis.units(tried), [1.0]]))
    widths = np.diff(u)
    at = int(np.argmax(widths))
    gap, n = float(widths[at]), len(tried)
    # The chance that n even points leave some such gap is at most (n + 1) (1 - gap)^n.
    if gap < GAP_MIN or (n + 1) * (1 - gap) ** n > GAP_CHANCE:
        return
    low, middle, high = axis.values(np.array([u[at], u[at] + gap / 2, u[at + 1]]))
    yield Warning("range-never-explored", f"no trial had {axis.name} between {float(low):.4g} and {float(high):.4g}, "
                  f"{gap:.0%} of its range", {"param": axis.name, "low": low, "high": high, "share": round(gap, 4)},
                  "if the method turned away from it on evidence, narrow the range; else enqueue a point there: bayesd "
                  f"study enqueue {facts.study} {axis.name}={float(middle):.4g} ...")


def _failures(facts: Facts) -> Iterator[Warning]:
    """A part of an axis, or a choice, in which trials fail far more often than elsewhere (Fisher's exact test)."""
    failed = sum(fact.failed for fact in facts.trials)
    if failed < 3:
        return
    tests: list[tuple[float, Axis, str, int, int, Any]] = []
    for axis in cube(facts.space).axes:
        held = [fact for fact in facts.trials if axis.name in fact.params]
        if len(held) < 2 * BLOCKS:
            continue
        for words, values, here in _parts(axis, held):
            n, k = int(here.sum()), sum(fact.failed for fact, inside in zip(held, here, strict=True) if inside)
            if not 0 < n < len(facts.trials) or k < 2:
                continue
            others = failed - k, len(facts.trials) - n - (failed - k)
            p = float(fisher_exact([[k, n - k], others], alternative="greater").pvalue)
            tests.append((p, axis, words, k, n, values))
    best: dict[str, tuple[float, Axis, str, int, int, Any]] = {}
    for test in _holm(tests):
        if test[1].name not in best or test[0] < best[test[1].name][0]:
            best[test[1].name] = test
    for p, axis, words, k, n, values in sorted(best.values(), key=lambda test: test[0])[:LISTED_MAX]:
        rest = (failed - k) / (len(facts.trials) - n)
        yield Warning("failures-clustered", f"{k} of {n} trials with {words} failed, elsewhere {rest:.0%}",
                      {"param": axis.name, "where": values, "failed": k, "of": n, "elsewhere": round(rest, 4),
                       "p": float(f"{p:.3g}")},
                      "look at their error texts (bayesd trial list); if that part cannot work, take it out of the "
                      "space or forbid it with a constraint")


def _parts(axis: Axis, held: Sequence[Fact]) -> Iterator[tuple[str, Any, Any]]:
    """Words, values and which trials: each choice, or each quarter and each half of a numeric axis."""
    values = [fact.params[axis.name] for fact in held]
    if axis.kind == "choice" or 0 < axis.cells <= BLOCKS:
        cells = np.array([-1 if (cell := axis.cell_of(value)) is None else cell for value in values])
        for cell in sorted(set(cells.tolist()) - {-1}):
            choice = axis.cell_values([cell])[0]
            yield f"{axis.name} = {choice}", [choice], cells == cell
        return
    u = axis.units(values)
    cuts = [(i / BLOCKS, (i + 1) / BLOCKS) for i in range(BLOCKS)] + [(0.0, 0.5), (0.5, 1.0)]
    for low, high in cuts:
        ends = axis.values(np.array([low, high]))
        yield (f"{axis.name} from {_short(ends[0])} to {_short(ends[1])}", list(ends),
               (u >= low) & ((u < high) | (high == 1.0)))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _holm(tests: list[Any]) -> list[Any]:
    """Those that hold at LEVEL after Holm's correction; each begins with its p."""
    tests = sorted(tests, key=lambda test: test[0])
    kept = []
    for i, test in enumerate(tests):
        if test[0] > LEVEL / (len(tests) - i):
            break
        kept.append(test)
    return kept


# ---------------------------------------------------------------- about who measured, and how


def _workers(facts: Facts) -> Iterator[Warning]:
    """A worker whose durations or values are unlike those of the others, by ranks (Mann and Whitney)."""
    names = sorted({fact.worker for fact in facts.trials if fact.worker is not None})
    if len(names) < 2:
        return
    expected = _neighbours(facts)
    tests: list[tuple[float, str, str, float, float, int]] = []
    for name in names:
        for what in ("seconds", "value"):
            mine, theirs = list[float](), list[float]()
            for fact in facts.trials:
                said = fact.seconds if what == "seconds" else expected.get(fact.trial)
                if said is not None and fact.worker is not None and fact.value is not None:
                    (mine if fact.worker == name else theirs).append(said)
            if min(len(mine), len(theirs)) >= LEADERS:
                p = float(mannwhitneyu(mine, theirs).pvalue)
                tests.append((p, name, what, float(np.median(mine)), float(np.median(theirs)), len(mine)))
    for p, name, what, own, rest, n in _holm(tests)[:LISTED_MAX]:
        numbers = {"worker": name, "trials": n, "own_median": own, "others_median": rest, "p": float(f"{p:.3g}")}
        if what == "seconds" and own > SLOWER * rest:
            yield Warning("worker-slower", f"worker {name} takes {own:.4g} s at the median of {n} trials, the others "
                          f"{rest:.4g} s", numbers, "look at its machine; a slow one wastes budget, and measures of "
                          "time do not compare")
        elif what == "value":
            yield Warning("worker-differs", f"values of worker {name} are {own - rest:+.3g} off those of like points, "
                          f"by the median of {n} trials", numbers,
                          f"run one point on it and on another; bayesd worker revoke {name} --void --reason ... if it "
                          "is broken")


def _neighbours(facts: Facts) -> dict[int, float]:
    """Trial -> its value minus the mean of its three nearest that another worker measured: what is left when the
    point itself, which the optimiser chose and not the worker, is accounted for."""
    told = [fact for fact in facts.trials if fact.value is not None and fact.worker is not None]
    if len(told) < 2 * LEADERS or len(told) > 2000:
        return {}
    of: Cube = cube(facts.space)
    U: Floats = of.pin(of.encode([fact.params for fact in told]))
    values = np.array([fact.value for fact in told], dtype=float)
    worker = np.array([fact.worker for fact in told])
    out = {}
    for i, fact in enumerate(told):
        apart = np.einsum("ij,ij->i", U - U[i], U - U[i])
        apart[worker == worker[i]] = np.inf
        near = np.argsort(apart, kind="stable")[:3]
        near = near[np.isfinite(apart[near])]
        if len(near):
            out[fact.trial] = float(values[i] - values[near].mean())
    return out


def _durations(facts: Facts) -> Iterator[Warning]:
    """Trials that took far longer than is usual."""
    timed = [(fact.seconds, fact.trial) for fact in facts.trials if fact.seconds is not None]
    if len(timed) < 2 * LEADERS:
        return
    median = float(np.median([seconds for seconds, _ in timed]))
    long = sorted(((seconds, trial) for seconds, trial in timed if seconds > EXPLODE * median > 0), reverse=True)
    if long:
        total = math.fsum(seconds for seconds, _ in timed)
        part = math.fsum(seconds for seconds, _ in long) / total
        yield Warning("durations-explode", f"{len(long)} of {len(timed)} trials took more than {EXPLODE:g} times the "
                      f"median of {median:.4g} s, {part:.0%} of all time",
                      {"median_s": median, "longest_s": long[0][0], "trials": [trial for _, trial in long[:LISTED_MAX]],
                       "count": len(long), "share": round(part, 4)},
                      "give workers a --timeout, or forbid what makes them long by a constraint")


def _duplicates(facts: Facts) -> Iterator[Warning]:
    """The same point several times: of a deterministic study a waste, of another its own measure of noise."""
    points: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for fact in facts.trials:
        point = tuple(sorted((name, repr(value)) for name, value in fact.params.items()))
        points.setdefault(point, []).append(fact.trial)
    again = [numbers for numbers in points.values() if len(numbers) > 1]
    extra = sum(len(numbers) - 1 for numbers in again)
    if extra and (facts.deterministic or extra >= 0.1 * len(facts.trials)):
        yield Warning("duplicates", f"{extra} of {len(facts.trials)} trials repeat a point that was tried before",
                      {"extra": extra, "points": len(again), "trials": again[0][:LISTED_MAX]},
                      "the space may be nearly exhausted, or points were enqueued twice; widen it, or stop")
