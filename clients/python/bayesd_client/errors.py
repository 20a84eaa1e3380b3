"""What can go wrong for a worker, and whose fault it is."""


class WorkerError(Exception):
    """The root of every error of this package."""


class BadAddress(WorkerError, ValueError):
    """The broker's address or its credentials cannot be used: mend the address."""


class BadOptions(WorkerError, ValueError):
    """An argument of this package cannot be used: mend it."""


class NameInUse(WorkerError):
    """Another process works under this worker name: give this one a name of its own."""


class Undelivered(WorkerError):
    """Results have no receipt, or were refused: they lie in the spool, and the text says where."""


class Refused(WorkerError):
    """The daemon refuses what this worker asks for: mend the arguments."""


class CannotTrain(WorkerError):
    """No trial can be trained here, for example because the program is missing: mend the command.

    It ends the worker: every later trial would fail the same way and the budget would go with
    them. The trial is given back.
    """


class SpaceMismatch(CannotTrain, ValueError):
    """The objective or the command line does not fit the study's declared space: mend one of the two."""


class TrialPruned(WorkerError):  # the name that Optuna's users know; it is a signal, not an error
    """Raise it in an objective to end a trial that is not worth finishing."""


class TrialStopped(TrialPruned):
    """Raised by `trial.report` when the lease is over (cancelled, closed or superseded): nothing is owed."""
