"""What is said of a winner, in the same words on a terminal, in a report and at the end of the demo.

An answer of the package `winner`, local or off the wire, is all that it needs: so a client without numpy has it, too.
"""

from collections.abc import Mapping
from typing import Any

DOUBTFUL = 0.5          # below this probability nobody should announce a winner without measuring again
CONFIRMED = "confirmed"

Answer = Mapping[str, Any]


def pooled(answer: Answer) -> str:
    """Which trials a value is the mean of; nothing for one trial alone."""
    trials = answer.get("evaluations") or ()
    return f", the mean of {len(trials)} trials: {', '.join(map(str, trials))}" if len(trials) > 1 else ""


def believed(answer: Answer) -> str | None:
    """What the model says of it, in sentences; None where there is no model."""
    if answer.get("probability") is None or answer.get("mean") is None:
        return None
    what = "nothing that was tried beats it in everything" if answer["rule"] == "pareto" \
        else "it is the best point of those tried"
    return (f"The model expects {answer['mean']:.6g} ± {answer['sd']:.2g} there. With a probability of "
            f"{answer['probability']:.0%} {what}; it is expected to be {answer['expected_loss']:.2g} behind the best "
            "of them.")


def doubt(answer: Answer, study: str) -> str | None:
    """A warning, and what to do; None when it may be announced."""
    if answer.get("probability") is None or answer["probability"] >= DOUBTFUL or answer["rule"] == CONFIRMED:
        return None
    what = "beats it in everything" if answer["rule"] == "pareto" else "is better"
    return (f"it is more likely than not that another point that was tried {what}: bayesd study confirm {study} "
            "measures the leaders again")


def otherwise(answer: Answer) -> str:
    """Which trials the other rules would take, those of one trial together."""
    takers: dict[int, list[str]] = {}
    for rule, other in answer.get("others", {}).items():
        if other.get("trial") is not None:
            takers.setdefault(other["trial"], []).append(rule)
    same = takers.pop(answer["trial"], [])
    said = [f"{', '.join(rules)}: #{trial}" for trial, rules in takers.items()]
    return "; ".join([*([f"{', '.join(same)}: the same"] if same else []), *said])
