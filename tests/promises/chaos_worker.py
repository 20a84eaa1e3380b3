"""A worker that notes every value it returns before it returns it.

    python chaos_worker.py BROKER STUDY NAME FOLDER [FAULT]

FAULT, as JSON, is planted into this process.
"""

import contextlib
import json
import os
import random
import sys
import time
from pathlib import Path

import bayesd_client as bayesd

broker, study, name, folder, *fault = sys.argv[1:]
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
    with contextlib.ExitStack() as stack:
        if fault:
            sys.path.insert(0, str(Path(__file__).parents[2]))
            from tests.promises.book import Fault
            from tests.simulation.mutants import planted
            stack.enter_context(planted(Fault(*json.loads(fault[0]))))
        objective.run()
