"""Rule `one-se`: the simplest trial within one standard error of the best (Breiman et al., Classification and
Regression
Trees, 1984, section 3.4.3).

The standard error is that of the best trial's folds; where nobody told folds, that of the model's best expectation.
Simplest is what `[winner] simplest` prefers, by default what took the fewest seconds.
"""

from collections.abc import Callable

from bayesd.winner.candidates import Entry
from bayesd.winner.case import Case, Pick, simplicity


def pick(case: Case) -> Pick:
    best, expected = case.best, case.expected
    if best.se is not None:
        return _within(case, best, best.se, lambda entry: case.sign * entry.value,
                       f"the {case.low} observed value {best.value:.6g} ± {best.se:.2g}",
                       f"within one standard error ({best.se:.2g}) of trial {best.trial} at {best.value:.6g}")
    if expected is None or case.terms.is_exact:
        return Pick(best, f"the {case.low} observed value; no standard error is known: tell folds")
    top = case.belief(expected.trial)
    assert top is not None

    def value(entry: Entry) -> float:
        belief = case.belief(entry.trial)
        return float("inf") if belief is None else case.sign * belief.mean

    return _within(case, expected, top.sd, value, f"the {case.low} expected value {top.mean:.6g} ± {top.sd:.2g}",
                   f"within one standard error ({top.sd:.2g}) of what the model expects of trial {expected.trial}, "
                   f"{top.mean:.6g}")


def _within(case: Case, best: Entry, se: float, value: Callable[[Entry], float], alone: str, close: str) -> Pick:
    names = case.terms.wishes.simplest or ["seconds"]
    simple = simplicity(case, names)
    limit = value(best) + se
    near = [entry for entry in case.complete if value(entry) <= limit
            and (names != ["seconds"] or entry.seconds is not None)]
    entry = min(near, key=lambda entry: (*simple[entry.trial], value(entry), entry.trial), default=best)
    word = "cheaper" if names == ["seconds"] else "simpler"
    if entry.trial == best.trial or simple[entry.trial] >= simple[best.trial]:
        return Pick(best, f"{alone}, and no {word} trial is within one standard error")
    if names == ["seconds"]:
        assert entry.seconds is not None
        how = f", {best.seconds / entry.seconds:.1f} times cheaper" if best.seconds and entry.seconds > 0 else ""
    else:
        how = f", the simplest by {', then '.join(names)}"
    return Pick(entry, f"{close}{how}; {len(near)} trials are", {"within": len(near)})
