"""What the optimiser knows of a study: points, outcomes and their noise, pending points, the fit.

A correction is judged by it. To void a trial leaves the optimiser with exactly what it would know had the
trial ended void before anybody told its outcome: the same observations in the same order, the same pending
points, and no fit. Which fits had seen the outcome follows from their place in the log, but an earlier one is
not brought back: it too may have climbed from one that had, and a fit from the prior costs less than a second.
So equal digests mean an equal posterior, to the last bit on one machine.
"""

import hashlib
from typing import Any

import orjson

from bayesd.study.problem import Observation
from bayesd.study.reached import as_curve
from bayesd.study.state import Study


def knowledge(study: Study) -> dict[str, Any]:
    """The part of the optimiser's problem that outcomes move; what a study declares stands beside it."""
    pending = (*study.running.values(), *study.waiting.values())
    return {
        "history": [[seen.trial, list(seen.params.items()), seen.values, seen.se, *besides(seen)]
                    for seen in study.history],
        "pending": [[trial.number, list(trial.params.items())] for trial in pending],
        "fit": None if study.fit is None else [study.fit.model, study.fit.n, study.fit.theta]}


def besides(seen: Observation) -> list[Any]:
    """What an observation has besides its values, each as another kind of thing: a number is what was spent, a list
    the limits, an object how far it was trained. What is not there takes no place, so that a study without it has the
    digests that it had before there was such a thing."""
    reached = {**({} if seen.fidelity is None else {"fidelity": seen.fidelity}),
               **({"curve": seen.curve} if seen.curve else {})}
    return [each for each in (seen.spent, seen.limits or None, reached or None) if each is not None]


def read_besides(said: list[Any]) -> dict[str, Any]:
    """The fields of an observation of which `besides` made a record."""
    out: dict[str, Any] = {}
    for each in said:
        if isinstance(each, dict):
            out |= {"fidelity": each.get("fidelity"), "curve": as_curve(each.get("curve") or ())}
        elif isinstance(each, list):
            out["limits"] = tuple(each)
        else:
            out["spent"] = each
    return out


def knowledge_digest(study: Study) -> str:
    """`knowledge` in 64 hex digits."""
    return hashlib.sha256(orjson.dumps(knowledge(study))).hexdigest()
