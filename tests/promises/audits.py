"""Is every suggestion of a log made again by another process, and by one that computes otherwise?

One round is one study of some fifty points as `tests/bench/audit.py` makes them, of another kind for each seed:
written by this process, audited by one of its own.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.audit import Setting, audited, settings, written
from tests.promises.book import Fault, Proof, Round


def study_of(seed: int, setting: Setting, path: Path, *, to_the_bit: bool) -> Round:
    """Write the study of this seed, and audit it under a setting."""
    path.unlink(missing_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):
        written(path, 1, first=seed)
    try:
        report = audited(path, setting, jobs=1)
    except SystemExit as end:
        return Round({}, (str(end),))
    found: Counter[str] = Counter()
    for level in report["levels"]:
        if level["what"].startswith(("suggestions", "fits")):
            found.update({name: level[name] for name in ("checked", "tied", "to_the_bit")})
    broken = [f"{setting.name}: {each}" for each in report["diverged"]]
    if to_the_bit and found["to_the_bit"] != found["checked"]:
        broken.append(f"{found['checked'] - found['to_the_bit']} of {found['checked']} are not the same to the bit")
    return Round({"suggestions and fits": found["checked"], "the same to the bit": found["to_the_bit"],
                  "tied": found["tied"]}, tuple(broken))


@contextlib.contextmanager
def _same(folder: Path) -> Iterator[Callable[[int], Round]]:
    yield lambda seed: study_of(seed, settings()[0], folder / "log.db", to_the_bit=True)


@contextlib.contextmanager
def _other(folder: Path) -> Iterator[Callable[[int], Round]]:
    others = settings()[1:]
    yield lambda seed: study_of(seed, others[seed % len(others)], folder / "log.db", to_the_bit=False)


STREAMS = "bayesd.optimize.streams"
PROOFS = [      # A fault is planted into the process that writes; the one that audits is without it.
    Proof("audits", ("P21",), "studies", _same, quick=2, release=100, within=3, faults=(
        Fault("a stream depends on the process that draws it", STREAMS,
              "self._bits = np.random.Philox(key=[seed & _MASK,",
              'self._bits = np.random.Philox(key=[seed + __import__("os").getpid() & _MASK,'),
        Fault("candidates that lay ready are not on record", "bayesd.study.rules.serving",
              "    if candidate.ahead:\n", "    if False:\n"))),
    Proof("audits elsewhere", ("P22",), "studies under another kernel", _other, quick=2, release=104, within=2, faults=(
        Fault("a number of a stream is used twice", STREAMS, "counter=(0, number, 1, 0))", "counter=(0, 1, 1, 0))"),))]
