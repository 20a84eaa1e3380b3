"""What a log proves: falsified copies of one against a note from outside, receipts against a signed head, results taken
back, snapshots at every event of the golden logs, and logs of a newer release.

The machinery is that of the tests beside it; here it is given seeds.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.edges import attacks
from tests.edges.test_newer import NEWER, look_at, made, next_format
from tests.golden.test_golden import LOGS, read
from tests.promises.book import Fault, Proof, Round
from tests.simulation.mutants import MUTANTS
from tests.study.test_void import folded, life, moments, without_outcomes

from bayesd.log import CannotOpen, SqliteLog
from bayesd.notes import BadNote, Signer, open_note
from bayesd.replay import event_of
from bayesd.study import snapshot
from bayesd.study.canonical import leaf_hash
from bayesd.study.fold import UnknownEvent, apply, refuse_newer, replay
from bayesd.study.merkle import holds_inclusion, inclusion, root_of
from bayesd.study.state import Event, State

# ---------------------------------------------------------------- a note that somebody else kept


@contextlib.contextmanager
def _attacks(folder: Path) -> Iterator[Callable[[int], Round]]:
    world = attacks.world(folder)

    def round_of(seed: int) -> Round:
        """All ten, each at a place of its own."""
        outcomes = [attacks.attempt(world, name, seed) for name in attacks.ATTACKS]
        return Round({"falsified logs": len(outcomes), "found without a note": sum(each.with_key for each in outcomes)},
                     tuple(f"{each.name}, {each.struck.variant}: {each.fault}" for each in outcomes if each.fault))
    yield round_of


# ---------------------------------------------------------------- receipts


VERIFIER = Path(__file__).parents[2] / "deploy" / "verify" / "bayesd-verify.py"


@contextlib.contextmanager
def _receipts(folder: Path) -> Iterator[Callable[[int], Round]]:
    """Receipts of the golden logs. The public key is all that whoever checks has of the daemon."""
    logs = [read(path)[0] for path in LOGS]
    theirs: dict[str, Any] = runpy.run_path(str(VERIFIER))

    def signed(note: str, key: str) -> bool:
        """As the independent verifier sees it."""
        text, _, signatures = note.partition("\n\n")
        return bool(theirs["is_signed"](text, signatures, [key]))

    def round_of(seed: int) -> Round:
        rng = random.Random(seed)
        bodies = rng.choice(logs)
        signer = Signer(json.loads(bodies[0])["log"], rng.randbytes(32))
        leaves = [leaf_hash(body) for body in bodies[:rng.randint(1, len(bodies))]]
        size, seq = len(leaves), rng.randint(1, len(leaves))
        note, proof = signer.sign(size, root_of(leaves)), inclusion(leaves, seq - 1)
        broken = []

        def proves(leaf: bytes, at: int, note: str, key: str) -> bool:
            """A receipt (seq, hash) and a path to the head."""
            try:
                head = open_note(note, key)
            except BadNote:
                return False
            return holds_inclusion(leaf, at - 1, head.size, proof, head.root)

        if not proves(leaves[seq - 1], seq, note, signer.vkey):
            broken.append(f"the receipt of event {seq} of {size} is not proved")
        path = theirs["roots"](leaves, {str(size)})
        head = theirs["read_head"](note.partition("\n\n")[0])
        if not signed(note, signer.vkey) or head[1:3] != (size, path[str(size)]):
            broken.append(f"the independent verifier does not take the head of {size} events")
        other = hashlib.sha256(leaves[seq - 1]).digest()
        forged = base64.b64encode(root_of([*leaves[:seq - 1], other, *leaves[seq:]])).decode()
        log, stolen = json.loads(bodies[0])["log"], rng.randbytes(32)
        lies = {"in a head whose text was changed": (
                    other, seq, note.replace(base64.b64encode(root_of(leaves)).decode(), forged), signer.vkey),
                "of another hash": (bytes([leaves[seq - 1][0] ^ 1]) + leaves[seq - 1][1:], seq, note, signer.vkey),
                "of another event": (leaves[seq % size], seq, note, signer.vkey) if size > 1 else None,
                "of another key": (leaves[seq - 1], seq, note, Signer(log, stolen).vkey),
                "of another head": (leaves[seq - 1], seq, signer.sign(size, rng.randbytes(32)), signer.vkey)}
        for what, lie in lies.items():
            if lie is not None and proves(*lie):
                broken.append(f"a receipt {what} is proved, for event {seq} of {size}")
        if signed(Signer(log, stolen).sign(size, root_of(leaves)), signer.vkey):
            broken.append("the independent verifier takes the signature of another key")
        return Round({"lies": sum(lie is not None for lie in lies.values()) + 1}, tuple(broken))
    yield round_of


# ---------------------------------------------------------------- taken back


@contextlib.contextmanager
def _voids(folder: Path) -> Iterator[Callable[[int], Round]]:
    def round_of(seed: int) -> Round:
        events, number, at = life(seed)
        never = without_outcomes(events, number)
        told, untold = moments(events, at), moments(never, at)
        state = next(folded(events, at))[1]
        if state.studies["s"].fit is not None:
            return Round({}, (f"a fit that saw the outcome of trial {number} outlived its void",))
        other = [seq for seq, digest in untold.items() if told.get(seq) != digest]
        return Round({"moments compared": len(untold), "outcomes taken back": len(events) - len(never)},
                     (f"at event {other[0]}, after the void of trial {number} at {at}, more is known",)
                     if other else ())
    yield round_of


# ---------------------------------------------------------------- replayed, here and there


@contextlib.contextmanager
def _replays(folder: Path) -> Iterator[Callable[[int], Round]]:
    """One round: a golden log, cut at one event. A whole pass of seeds cuts each at each."""
    logs = [([event_of(body, leaf_hash(body)) for body in bodies], bodies, digest)
            for bodies, digest in map(read, LOGS)]
    cuts = [(log, at) for log in logs for at in range(len(log[0]) + 1)]
    random.Random(0).shuffle(cuts)
    kept: dict[int, dict[int, tuple[bytes, bytes]]] = {}

    def snapshots(log: tuple[list[Event], list[bytes], str]) -> dict[int, tuple[bytes, bytes]]:
        """Of the state after each event: one pass."""
        if id(log) not in kept:
            state, made = State(), {0: snapshot.dump(State())}
            for count, event in enumerate(log[0], start=1):
                apply(state, event)
                made[count] = snapshot.dump(state)
            kept[id(log)] = made
        return kept[id(log)]

    def round_of(seed: int) -> Round:
        log, at = cuts[seed % len(cuts)]
        _, bodies, digest = log
        loaded = snapshot.load(*snapshots(log)[at]) if at else State()
        if loaded is None:
            return Round({}, (f"the snapshot at event {at} cannot be read",))
        rest = [event_of(body, leaf_hash(body)) for body in bodies[at:]]
        found = snapshot.digest(replay(rest, loaded))
        return Round({"events folded": len(rest)}, () if found == digest else (
            f"a snapshot at event {at} of {len(bodies)} and the rest are another state than the whole",))
    yield round_of


# ---------------------------------------------------------------- newer than we are


@contextlib.contextmanager
def _upgrades(folder: Path) -> Iterator[Callable[[int], Round]]:
    """Each round: a log, made newer in one of four ways, is opened and must be refused with no byte changed."""
    def round_of(seed: int) -> Round:
        become_newer = NEWER[seed % len(NEWER)]
        place = folder / str(seed)
        place.mkdir(parents=True, exist_ok=True)
        path = made(place / "log.db")
        become_newer(path)
        before = look_at(place)

        async def open_it() -> None:
            await (await SqliteLog.open(path, look=refuse_newer)).close()
        broken = []
        try:
            asyncio.run(open_it())
            broken.append(f"{become_newer.__name__}: it is opened")
        except (CannotOpen, UnknownEvent) as error:
            if isinstance(error, CannotOpen) != (become_newer is next_format):
                broken.append(f"{become_newer.__name__}: refused for another reason: {error}")
        if look_at(place) != before:
            broken.append(f"{become_newer.__name__}: the file is not what it was")
        return Round({"bytes": path.stat().st_size}, tuple(broken))
    yield round_of


LOGFILE, EVIDENCE, MERKLE, NOTES = "bayesd.logfile", "bayesd.evidence", "bayesd.study.merkle", "bayesd.notes"
FOLD, COMMON, OUTCOMES = "bayesd.study.fold", "bayesd.study.fold.common", "bayesd.study.fold.outcomes"
CUTS = sum(len(read(path)[0]) + 1 for path in LOGS)
PROOFS = [
    Proof("falsified logs", ("P24",), "rounds of ten attacks", _attacks, quick=10, release=1000, within=20, faults=(
        Fault("the hash of an event is not compared with its body", LOGFILE, "mine.digest() == hash_ and", "True and"),
        Fault("the root of a note is not compared", EVIDENCE,
              "(self._right if self.tree.root() == claim.said.root else self._wrong)", "self._right"),
        Fault("a note about more than is there says nothing", EVIDENCE,
              "beyond = self._ahead if is_whole else []", "beyond = []"))),
    Proof("receipts", ("P25",), "proved receipts", _receipts, quick=200, release=20_000, within=20, faults=(
        Fault("a signature is not checked", NOTES, "self._key.verify(signature[4:], text.encode())", "pass"),
        Fault("the root of a proof is not compared", MERKLE,
              "return last == 0 and found == root", "return last == 0"))),
    Proof("voids", ("P32",), "lives with a void", _voids, quick=100, release=10_000, within=500, faults=(
        *(Fault(each.name, each.module, each.old, each.new) for each in MUTANTS
          if each.name == "a voided outcome is still known"),
        Fault("a late outcome of a void trial is known", OUTCOMES,
              '== "use" and trial.status != "voided" and', '== "use" and'),
        Fault("a fit outlives what it saw", COMMON,
              "does not depend on that (see `knowledge.py`).\n    study.fit = None",
              "does not depend on that (see `knowledge.py`)."))),
    Proof("replays", ("P20",), "golden logs cut at an event", _replays, quick=80, release=CUTS, within=20, faults=tuple(
        Fault(each.name, each.module, each.old, each.new) for each in MUTANTS
        if each.name in ("a snapshot forgets the replaced runs", "a lost lease is not counted"))),
    Proof("upgrades", ("P23",), "newer logs", _upgrades, quick=4, release=400, within=4, faults=(
        Fault("an event that nobody knows is passed over", FOLD, 'if envelope.get("crit", True):', "if False:"),
        Fault("a later version of an event is taken for ours", FOLD,
              "if type in KNOWN and tv <= VERSIONS.get(type, 1):", "if type in KNOWN:")))]
