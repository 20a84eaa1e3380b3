"""A worker for the chaos test: notes every value it returns before it returns it.

    python chaos_worker.py BROKER STUDY NAME FOLDER
"""

import os
import random
import sys
import time
from pathlib import Path

import bayesd_client as bayesd

broker, study, name, folder = sys.argv[1:]
notes = Path(folder) / f"{name}.values"
rng = random.Random(f"{name}.{os.getpid()}")


@bayesd.worker(broker, study=study, name=name)
def objective(trial: bayesd.Trial) -> float:
    time.sleep(rng.uniform(0.0, 0.05))
    value = rng.random()
    with notes.open("a") as file:
        file.write(f"{trial.number} {value!r}\n")
    return value


if __name__ == "__main__":
    objective.run()
