"""A broker that is an enemy: it hears all, keeps all, and sends whatever it likes, but has no key.

Two kinds of rounds (tests/edges/hostile.py has the machinery). Most alter some thousand signed messages, to the daemon
and to a worker: bytes, words, codes, topics, other keys, other logs; then send what was truly said once more, in
another order. Nothing of that may be acted on. Every fourth is an hour of two real workers and the real service behind
a broker that drops, delays, alters, moves, replays and makes up messages, lies about the log, and then becomes honest:
what was measured is on record, once, as it was measured, and no saved result is set aside.
"""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.edges.hostile import Bench, hour
from tests.promises.book import Fault, Proof, Round

from bayesd.testing import run

FORGERIES = 2000      # each way
HOURS_EVERY = 4


async def _forged(seed: int) -> Round:
    """Altered messages both ways, then copies of the true ones in another order."""
    bench = Bench(seed)
    await bench.start()
    await bench.settle()
    before = bench.position()
    acted_on = bench.forge(FORGERIES)
    believed = bench.forge_answers(FORGERIES)
    moved = bench.position() != before
    before = bench.position()
    copies = list(bench.corpus)
    random.Random(seed).shuffle(copies)  # a seeded test
    for topic, payload in copies:
        bench.service.on_message(topic, payload, lambda: None)
    copied = bench.position() != before
    bench.daemon.kill()
    broken = [text for is_so, text in (
        (acted_on, f"the daemon acted on {acted_on} altered messages"), (moved, "altered messages moved the study"),
        (believed, f"a worker believed {believed} altered answers"), (copied, "copies moved the study")) if is_so]
    return Round({"altered messages": 2 * FORGERIES, "copies": len(copies)}, tuple(broken))


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    def round_of(seed: int) -> Round:
        if seed % HOURS_EVERY != HOURS_EVERY - 1:
            return run(_forged(seed))
        with tempfile.TemporaryDirectory(dir=folder) as spool:
            seen = hour(seed, Path(spool))
        return Round({"hours of a hostile broker": 1, "lies in them": seen.lies, "trials": seen.trials}, seen.broken)
    yield round_of


SEALED, SEALS = "bayesd_schemas.sealed", "bayesd.seals"
PROOFS = [Proof("a hostile broker", ("P29",), "rounds of a hostile broker", _lab, quick=4, release=400, within=3,
                faults=(
    Fault("a signature does not cover the topic", SEALED, "topic.encode(), text)", 'b"", text)'),
    Fault("a signature does not cover the log", SEALED, "log.encode(), topic", 'b"", topic'),
    Fault("who has a key may leave it out", SEALS, "        if key is not None:\n            try:",
          "        if key is not None and sealed.is_sealed(payload):\n            try:"),
    Fault("a copy of an ask counts again", SEALS, "if behind >= WINDOW or bits >> behind & 1:", "if False:"),
    Fault("a worker believes what is not signed", "bayesd_client.signing",
          "data = parse(self._sealer.open(topic, payload))",
          "data = parse(self._sealer.open(topic, payload) if b'mac' in payload else payload)"),
))]
