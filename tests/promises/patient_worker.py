"""A worker whose trainings last until a file says that they may end.

    python patient_worker.py BROKER STUDY NAME FOLDER

NAME.now says what it trains, "TRIAL FENCE"; NAME.TRIAL.FENCE.go lets that end.
"""

import sys
import time
from pathlib import Path

import bayesd_client as bayesd

broker, study, name, folder = sys.argv[1:]
now = Path(folder, f"{name}.now")


@bayesd.worker(broker, study=study, name=name)
def objective(trial: bayesd.Trial) -> float:
    new = now.with_suffix(".new")
    new.write_text(f"{trial.number} {trial.fence}")
    new.replace(now)
    go = Path(folder, f"{name}.{trial.number}.{trial.fence}.go")
    while not go.exists():
        time.sleep(0.01)        # a file does not call us
    return trial.number + trial.fence / 1000


if __name__ == "__main__":
    objective.run()
