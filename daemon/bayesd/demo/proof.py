"""The proof at the end of the demo: what was promised, checked against three independent witnesses.

The workers wrote down what they measured. An onlooker on the broker heard the receipts. The
daemon answered what it believed at the end. The log must agree with all of them.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayesd import log as logs
from bayesd.replay import Replay
from bayesd.study import snapshot, view
from bayesd.study.state import State

OUTCOMES = ("trial.completed", "trial.failed", "trial.pruned", "outcome.late")
RESTING = ("used_wall",)        # goes on with the clock, so it is not compared

Key = tuple[int, int]
"""(trial, fence)"""


@dataclass(slots=True)
class Witnesses:
    """What was seen from outside."""

    receipts: dict[Key, tuple[int, str]] = field(default_factory=dict)
    """(trial, fence) -> (seq, hash) of its receipt, as heard on the broker."""
    killed_at: dict[str, float] = field(default_factory=dict)
    """Worker -> when it was killed. What it measured and could not tell any more was trained again."""
    believed: dict[str, Any] = field(default_factory=dict)
    """The daemon's own answer about the study."""

    def save(self, path: Path) -> None:
        """For whoever wants to check the proof."""
        path.write_text(json.dumps({"receipts": [[*key, *said] for key, said in sorted(self.receipts.items())],
                                    "killed_at": self.killed_at, "believed": self.believed}, indent=1))

    @classmethod
    def load(cls, path: Path) -> "Witnesses":
        said = json.loads(path.read_text())
        return cls({(trial, fence): (seq, hash) for trial, fence, seq, hash in said["receipts"]}, said["killed_at"],
                   said["believed"])


@dataclass(slots=True)
class Proof:
    """What the log says of the promises. Every list of faults has to be empty."""

    trials: int = 0
    events: int = 0
    head: str = ""
    digest: str = ""
    receipts: int = 0
    measured: int = 0
    untold: int = 0
    """Measured by a worker that was killed before it could tell."""
    lives: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.invented or self.faults)


def prove(log: Path, ledger: Path, study: str, budget: int, seen: Witnesses) -> Proof:
    """Check a closed study of a log that nobody writes to any more."""
    proof = Proof()
    report = logs.verify(log)
    proof.events, proof.head = report.events, report.hash.hex()
    if report.damage is not None:
        proof.faults.append(str(report.damage))
        return proof
    bodies = [(seq, json.loads(body), hash.hex()) for seq, body, hash in logs.read_events(log)]
    told: dict[Key, list[tuple[int, dict[str, Any], str]]] = {}
    for seq, body, hash in bodies:
        if body["type"] == "daemon.started":
            proof.lives += 1
        elif body["type"] in OUTCOMES and body.get("study") == study and "message" in body["data"]:
            told.setdefault((body["trial"], body["data"]["fence"]), []).append((seq, body, hash))
    _check_receipts(proof, seen, told)
    _check_ledger(proof, ledger, seen, told)
    _check_counts(proof, bodies, told, study, budget)
    _check_state(proof, log, study, seen)
    return proof


def _check_receipts(proof: Proof, seen: Witnesses, told: dict[Key, list[tuple[int, dict[str, Any], str]]]) -> None:
    """A receipt is a promise: that event, with that hash, is in the log."""
    proof.receipts = len(seen.receipts)
    for key, promised in seen.receipts.items():
        if promised not in [(seq, hash) for seq, _, hash in told.get(key, ())]:
            proof.lost.append(f"trial {key[0]} has a receipt for event {promised[0]}, which is not in the log")


def _check_ledger(proof: Proof, ledger: Path, seen: Witnesses,
                  told: dict[Key, list[tuple[int, dict[str, Any], str]]]) -> None:
    """What was measured is in the log, and what is in the log was measured."""
    measured: dict[Key, list[list[float]]] = {}
    for line in ledger.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        key = entry["trial"], entry["fence"]
        proof.measured += 1
        measured.setdefault(key, []).append(entry["folds"])
        killed = seen.killed_at.get(entry["worker"])
        if key not in told:
            if killed is not None and entry["time"] <= killed:
                proof.untold += 1
            else:
                proof.lost.append(f"{entry['worker']} measured trial {key[0]}, and the log does not know of it")
    for key, found in told.items():
        for _, body, _ in found:
            values = body["data"].get("values")
            if values is not None and not any(
                    abs(sum(folds) / len(folds) - float(*values.values())) < 1e-12 for folds in measured.get(key, ())):
                proof.invented.append(f"the log has a value of trial {key[0]} that no worker measured")


def _check_counts(proof: Proof, bodies: list[tuple[int, dict[str, Any], str]],
                  told: dict[Key, list[tuple[int, dict[str, Any], str]]], study: str, budget: int) -> None:
    """Each lease was told at most once, each trial has one result, and the budget was kept to the letter."""
    proof.doubled += [f"trial {trial} fence {fence} is in the log {len(found)} times"
                      for (trial, fence), found in told.items() if len(found) > 1]
    results = Counter(body["trial"] for _, body, _ in bodies
                      if body.get("study") == study and body["type"] in OUTCOMES[:3] and not body["data"].get("retry"))
    proof.doubled += [f"trial {trial} has {n} results" for trial, n in results.items() if n > 1]
    proof.trials = len(results)
    if proof.trials != budget:
        proof.faults.append(f"{proof.trials} trials have a result, not {budget}")


def _check_state(proof: Proof, log: Path, study: str, seen: Witnesses) -> None:
    """The log makes the same state each time, and it is the one that the daemon had."""
    states = [_fold(log), _fold(log)]
    digests = [snapshot.digest(state) for state in states]
    proof.digest = digests[0]
    if digests[0] != digests[1]:
        proof.faults.append("two replays of the log differ")
    # The daemon answered before it stopped, and a stop says nothing about studies.
    rebuilt = states[0].studies.get(study)
    if rebuilt is None:
        proof.faults.append("the log does not know the study")
        return
    page = view.study_state(states[0], rebuilt, rebuilt.elapsed_s)
    for key in ("state", "closed_by", "trials", "best", "budget", "space_rev", "objectives", "log", "epoch"):
        if _resting(page[key]) != _resting(seen.believed.get(key)):
            proof.faults.append(f"the daemon said {key} is {seen.believed.get(key)}, the log makes it {page[key]}")


def _fold(log: Path) -> State:
    replay = Replay()
    for seq, body, hash in logs.read_events(log):
        replay.take(seq, body, hash)
    return replay.state


def _resting(value: Any) -> Any:
    return {key: each for key, each in value.items() if key not in RESTING} if isinstance(value, dict) else value
