"""Run bayesd in another harness: python tests/bench/quality/harness.py HARNESS [options of its own run.py].

HARNESS, or the environment variable QUALITY_HARNESS, is a copy of the harness folder, which has a
`core.py` (`Optimizer`, `Space`, a simulator) and a `run.py`. Without `--opt` it runs `ours:Ours`;
`ours:OursSobol` and `ours:OursRandom` are bayesd's plain samplers.
"""

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        harness = Path(arguments.pop(0))
    elif "QUALITY_HARNESS" in os.environ:
        harness = Path(os.environ["QUALITY_HARNESS"])
    else:
        raise SystemExit(__doc__)
    # One thread for everything: CPU seconds are compared.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    sys.path[:0] = [str(harness), str(Path(__file__).parent)]
    if "--opt" not in arguments:
        arguments = ["--opt", "ours:Ours", "--label", "bayesd", *arguments]
    sys.argv = [str(harness / "run.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
