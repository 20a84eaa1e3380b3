"""The worker's side of bayesd: a light install, no numpy.

    import bayesd_client as bayesd

    @bayesd.worker("mqtt://localhost", study="digits-svm")
    def objective(trial):
        return score(C=trial.params["C"])

    objective.run(slots=4)
"""

from bayesd_client.crossvalidation import cross_validate
from bayesd_client.errors import (
    BadAddress,
    BadOptions,
    CannotTrain,
    NameInUse,
    Refused,
    SpaceMismatch,
    TrialPruned,
    TrialStopped,
    Undelivered,
    WorkerError,
)
from bayesd_client.objective import Objective, worker
from bayesd_client.program import run_program
from bayesd_client.trial import Folds, Trial
from bayesd_client.worker import Summary

__all__ = ["BadAddress", "BadOptions", "CannotTrain", "Folds", "NameInUse", "Objective", "Refused", "SpaceMismatch",
           "Summary", "Trial", "TrialPruned", "TrialStopped", "Undelivered", "WorkerError", "cross_validate",
           "run_program", "worker"]
