"""A program of the demo that knows nothing of bayesd: parameters are arguments, the result is printed.

    bayesd worker run --study digits-svm -- python -m bayesd.demo.train LEDGER --C {C} --gamma {gamma} ...
"""

import argparse
import json
import os
from pathlib import Path

from bayesd.demo import model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--C", type=float, required=True)
    parser.add_argument("--gamma", type=float, required=True)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--degree", type=int, default=3)
    given = parser.parse_args()
    scores = list(model.folds({"C": given.C, "gamma": given.gamma, "kernel": given.kernel, "degree": given.degree}))
    model.note(given.ledger, "any-1", int(os.environ["BAYESD_TRIAL"]), int(os.environ["BAYESD_FENCE"]), scores)
    print(json.dumps({"folds": scores}))


if __name__ == "__main__":
    main()
