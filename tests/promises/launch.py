"""The command line with a fault planted into it: `python tests/promises/launch.py --fault NAME serve --log ...`.

`--planted FILE` takes it from a JSON file: whoever starts many programs does without the import of every proof.
A proof that runs the daemon as a process plants its faults this way; the installed program has no such switch.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.promises.book import Fault, book  # noqa: E402  # the path comes first
from tests.simulation.mutants import planted  # noqa: E402

from bayesd.cli import main  # noqa: E402

if __name__ == "__main__":
    if sys.argv[1:2] == ["--planted"]:
        given = Fault(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        del sys.argv[1:3]
        with planted(given):
            sys.exit(main())
    if sys.argv[1:2] == ["--fault"]:
        name = sys.argv[2]
        del sys.argv[1:3]
        fault = next(fault for proof in book() for fault in proof.faults if fault.name == name)
        with planted(fault):
            sys.exit(main())
    sys.exit(main())
