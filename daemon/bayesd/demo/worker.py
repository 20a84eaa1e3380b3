"""A worker of the demo, as anybody would write it: one decorated function.

    python -m bayesd.demo.worker NAME BROKER LEDGER
"""

import sys
from pathlib import Path

import bayesd_client as bayesd
from bayesd.demo import model


def main(name: str, broker: str, ledger: str) -> None:
    @bayesd.worker(broker, study=model.STUDY, name=name)
    def objective(trial: bayesd.Trial) -> bayesd.Folds:
        scores = []
        for step, score in enumerate(model.folds(trial.params)):
            trial.report(score, step=step)
            scores.append(score)
        model.note(Path(ledger), name, trial.number, trial.fence, scores)
        return bayesd.Folds(scores)

    objective.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
