"""What bayesd promises, and what a proof of a promise is.

A promise is a sentence that a user can hold us to. A proof is a machine that tries to break one or more of them, a
seeded round at a time: it kills, cuts the power, forges, floods, and says what it counted and what was broken. Each
proof has planted faults, changes of our own source that make a promise untrue: a proof that does not see them proves
nothing. A control is a proof of the machine itself: it must break (a disk that lies must lose results).

`test_promises.py` runs a few rounds of each, `prove.py` the number that a release wants, and writes the table.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

PROMISES: dict[str, str] = {
    "P1": "A result whose receipt was sent is in the log after any crash of the daemon.",
    "P2": "... and after a loss of power, if the disk honours fsync.",
    "P3": "Each (trial, fence) is recorded at most once, however often it is delivered.",
    "P4": "No well-formed tell is dropped in silence: it is recorded, a duplicate, late, or rejected with a reason.",
    "P5": "Events are numbered without a gap, and what a log means depends on their order alone.",
    "P6": "The same ask gets the same grant, never two leases.",
    "P7": "A broker that restarts, crashes or forgets everything loses no result.",
    "P8": "After a crash at any instruction the next start needs nobody.",
    "P9": "A full disk loses nothing that was acknowledged: grants stop, reads work, and it goes on by itself.",
    "P10": "After an error of the disk at a commit no further receipt is sent.",
    "P11": "A clock that jumps never ends, prolongs or reorders a lease.",
    "P12": "After a restart no open lease ends earlier than promised.",
    "P13": "Damage to a log is found at the damaged event, and nothing is truncated.",
    "P14": "A backup of a running daemon restores to a prefix of the log that verifies.",
    "P15": "The trial of a dead worker is offered again when its lease ends.",
    "P16": "Who comes back with an old fence cannot overwrite or count twice.",
    "P17": "A worker that was away for days still delivers, if nobody took its trial over.",
    "P18": "Two daemons on one log: the second refuses, and a forced one fences the first before its next event.",
    "P19": "Two daemons on copies of a log: the first that meets a head of the other stops.",
    "P20": "The same log gives the same state digest on every machine and in every version that reads it.",
    "P21": "Under the same fingerprint every suggestion is made again bit for bit.",
    "P22": "Under another fingerprint each is the same point, or a tied one with the evidence.",
    "P23": "A newer release reads every older log; an older one refuses a newer log and leaves it untouched.",
    "P24": "Any change, loss, insertion, swap or fork of events is found, given one head kept elsewhere.",
    "P25": "A receipt can be proved against a signed head with the public key alone.",
    "P26": "No message crashes, hangs or grows the daemon.",
    "P27": "Invalid traffic adds nothing to the log, and a flood from one worker leaves the others served.",
    "P28": "A worker can act only as itself.",
    "P29": "A hostile broker can delay and drop signed messages, not forge them.",
    "P30": "A name or value of a message never becomes a path, SQL, a shell word or a topic.",
    "P31": "No secret is in a log, an output, an argument, the environment or a message.",
    "P32": "What a worker told can be taken back by one event, as if it had never been told.",
    "P33": "Nothing leaks: memory, descriptors and the write-ahead log stay bounded.",
}


@dataclass(frozen=True, slots=True)
class Round:
    """What one round saw."""

    counts: Mapping[str, float] = field(default_factory=dict)
    """What is worth telling, such as {"results acknowledged": 61}; added up over rounds, but for names that end with
    `max`, of which the largest stands."""
    broken: tuple[str, ...] = ()
    """How a promise was broken, in words and with the place; empty when it held."""


Lab: TypeAlias = Callable[[Path], AbstractContextManager[Callable[[int], Round]]]
"""Opens the machinery in an empty folder and gives the function that runs the round of a seed. A round leaves the
machinery fit for the next one, whatever the seeds before it were, or is no function of its seed and says so."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A change of our own source that makes a promise untrue: in `module`, `old` (found once) becomes `new`.

    `module` may be another file of ours, by its path from the root; then the proof plants the fault itself."""

    name: str
    module: str
    old: str
    new: str

    @property
    def is_in_a_file(self) -> bool:
        return "/" in self.module

    def source(self) -> str:
        """What stands where the fault is planted."""
        if self.is_in_a_file:
            return (Path(__file__).parents[2] / self.module).read_text(encoding="utf-8")
        return inspect.getsource(importlib.import_module(self.module))


@dataclass(frozen=True, slots=True)
class Proof:
    """A machine that tries to break promises."""

    name: str
    of: tuple[str, ...]
    """The promises, by their ids."""
    unit: str
    """What one round is, in the plural: "power cuts"."""
    lab: Lab
    quick: int
    """Rounds in the suite."""
    release: int
    """Rounds for the table."""
    faults: tuple[Fault, ...] = ()
    faulty: Callable[[Fault, Path], AbstractContextManager[Callable[[int], Round]]] | None = None
    """The lab under a fault; None: the fault is planted into this process and the lab opened as ever."""
    within: int = 50
    """Rounds in which each fault must be seen."""
    is_control: bool = False
    """It must break, or the machinery tests nothing."""
    needs: tuple[str, ...] = ()
    """Programs without which it cannot run, such as mosquitto."""


MODULES: tuple[str, ...] = ("worlds", "machine", "kills", "failpoints", "power", "errors", "full", "damage", "backups",
                            "clocks", "brokers", "zombies", "twins", "evidence", "audits", "fuzz", "flood", "impostors",
                            "carriers", "words",
                            "canaries", "soak")
"""The modules of this folder that hold proofs, each as PROOFS, in the order of the table."""


def book() -> list[Proof]:
    """Every proof. Names are used once, and every id is a promise."""
    proofs = [proof for name in MODULES for proof in importlib.import_module(f"tests.promises.{name}").PROOFS]
    assert len({proof.name for proof in proofs}) == len(proofs), "two proofs have one name"
    assert all(id in PROMISES for proof in proofs for id in proof.of), "a proof of something that nobody promised"
    return proofs


@dataclass(slots=True)
class Tally:
    """Rounds added up."""

    rounds: int = 0
    seconds: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    broken: list[tuple[int, str]] = field(default_factory=list)
    """(seed, what), the first few."""
    broken_rounds: int = 0

    def add(self, seed: int, seen: Round, seconds: float) -> None:
        self.rounds += 1
        self.seconds += seconds
        self.broken_rounds += bool(seen.broken)
        self.broken += [(seed, what) for what in seen.broken[:1] if len(self.broken) < 20]
        for name, value in seen.counts.items():
            self.counts[name] = (max(self.counts.get(name, value), value) if name.endswith("max")
                                 else self.counts.get(name, 0) + value)

    def figure(self, proof: Proof) -> str:
        """In words: "2,000 power cuts, 31,204 results acknowledged, 0 broken"."""
        parts = [f"{self.rounds:,} {proof.unit}", *(f"{_number(value)} {name}" for name, value in self.counts.items())]
        verdict = (f"{self.broken_rounds:,} broke, as they must" if proof.is_control and self.broken_rounds
                   else f"{self.broken_rounds:,} broken")
        return ", ".join([*parts, verdict])

    def holds(self, proof: Proof) -> bool:
        return (self.broken_rounds > 0) == proof.is_control


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
