"""A point that somebody wants measured again: on other folds or seeds, or because its value seems too good.

A repeat is a re-evaluation of the same point, not a new one: no budget counts it, no rule prunes it, and it never leads
by itself; what it measures joins what the model knows of the point, and pooled.py makes one value of them. It goes
before any new point, to whoever asks first. A confirmation (confirm.py) is another thing: there the daemon chooses the
points, looks for other workers, and announces a winner by the repeats alone; these repeats have no say in it.
"""

from bayesd.study.state import Data, Study, Trial


def point_of(study: Study, trial: Trial) -> Trial:
    """The trial that proposed the point which this one measured."""
    return trial if trial.of is None else study.trials[trial.of - 1]


def obstacle(study: Study, trial: Trial) -> str | None:
    """Why a trial's point cannot be measured again, in words; None when it can."""
    if trial.status == "voided":
        return f"trial {trial.number} was declared void; enqueue its point if you want it measured"
    if trial.is_pending:
        return f"trial {trial.number} has no outcome yet; wait for it"
    if not study.spec.allows(trial.params):
        return f"the space or the constraints have changed since, and the point of trial {trial.number} is not allowed"
    return None


def proposal(study: Study, as_of: int) -> Data | None:
    """The next point that is to be measured again."""
    if not study.remeasure:
        return None
    number = study.remeasure[0]
    return {"params": dict(study.trials[number - 1].params), "space_rev": study.space_rev, "sampler": "again",
            "of": number, "drawn": study.drawn, "as_of": as_of}
