"""Let seeded worlds live: `python tests/simulation/run.py --worlds 2000 --seed 0`.

`--trace` tells the whole story of each world. Ends with 1 when a world found a fault.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.simulation.world import simulate  # noqa: E402  # the path comes first


def main() -> int:
    logging.disable(logging.CRITICAL)       # the daemon says much about faults that are made on purpose
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--trace", action="store_true", help="tell what happens")
    parser.add_argument("--keep-going", action="store_true", help="do not end at the first fault")
    given = parser.parse_args()
    began, events, bad = time.monotonic(), 0, 0
    types: dict[str, int] = {}
    for seed in range(given.seed, given.seed + given.worlds):
        outcome = simulate(seed, trace=print if given.trace else None)
        events += outcome.events
        for type, count in outcome.types.items():
            types[type] = types.get(type, 0) + count
        if outcome.faults:
            bad += 1
            print(f"seed {seed}: {outcome.faults[0]}", flush=True)
            if not given.keep_going:
                break
        done = seed - given.seed + 1
        if done % 100 == 0:
            seconds = time.monotonic() - began
            print(f"{done} worlds, {events} events, {done / seconds:.1f} worlds a second", flush=True)
    seconds = time.monotonic() - began
    print(f"{seed - given.seed + 1} worlds in {seconds:.1f} s, {events} events, {bad} with a fault")
    print(", ".join(f"{type} {count}" for type, count in sorted(types.items())))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
