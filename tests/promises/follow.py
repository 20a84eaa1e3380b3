"""A log, read on as it grows, and held against what came out of its daemon.

Each look verifies the new events (their hashes and their chain, L0), folds them (L1), and finds trials that were told
twice. Events that were seen once must be there for ever: every look begins at the hash of the last one. `finish`
verifies and folds the whole file again and compares the state with the one that the daemon itself had when it stopped.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tests.edges.daemon import Body
from tests.promises.load import Lease, Receipt

from bayesd.log import read_events, verify
from bayesd.logfile import LogError
from bayesd.replay import Replay
from bayesd.segments import chained
from bayesd.study import snapshot

TOLD = ("trial.completed", "trial.failed", "trial.pruned", "outcome.late")
ANSWERED = (*TOLD, "trial.reported", "lease.released")


class Follower:
    """What is known of one log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.hashes: list[str] = []
        self.bodies: list[Body] = []
        self.epochs: list[int] = []
        """The epochs that started, in the order of the log."""
        self.results: dict[tuple[str, int], int] = {}
        """(study, trial) -> the fence that its result has."""
        self.leased: dict[Lease, Body] = {}
        self.newest: dict[tuple[str, int], int] = {}
        """(study, trial) -> the newest fence, if its lease has not ended by itself."""
        self.late: set[Lease] = set()
        self._told: set[Lease] = set()
        self._replay = Replay()

    @property
    def seq(self) -> int:
        return len(self.hashes)

    def read_on(self) -> list[str]:
        """Take the events that are new; what is wrong, in words."""
        broken: list[str] = []
        prev = self.hashes[-1] if self.hashes else "0" * 64
        try:
            if self.hashes:
                ((_, _, last),) = read_events(self.log, self.seq - 1, self.seq) or [(0, b"", b"")]
                if last.hex() != prev:
                    return [f"event {self.seq} was {prev[:16]}… and is {last.hex()[:16]}… now"]
            for seq, body, hash in chained(read_events(self.log, self.seq), str(self.log), self.seq, prev):
                self._replay.take(seq, body, hash)
                self.hashes.append(hash.hex())
                self._take(json.loads(body), broken)
        except ValueError:
            return [f"event {self.seq} was there and is gone"]
        except LogError as error:
            return [f"the log does not verify: {error}"]
        return broken

    def _take(self, event: Body, broken: list[str]) -> None:
        self.bodies.append(event)
        type, data = event["type"], event["data"]
        if type == "daemon.started":
            self.epochs.append(data["epoch"])
        elif type == "trial.leased":
            self.leased[event["study"], event["trial"], data["fence"]] = event
            self.newest[event["study"], event["trial"]] = data["fence"]
        elif type == "lease.expired":
            self.newest.pop((event["study"], event["trial"]), None)
        elif type == "lease.held":
            self.newest[event["study"], event["trial"]] = data["fence"]
        elif type in TOLD and data.get("fence") is not None:
            lease = event["study"], event["trial"], data["fence"]
            if lease in self._told:
                broken.append(f"event {event['seq']}: {lease} is told twice")
            self._told.add(lease)
            if type == "outcome.late":
                self.late.add(lease)
            if type == "trial.completed":
                if lease[:2] in self.results:
                    broken.append(f"event {event['seq']}: {lease[:2]} has a second result")
                self.results[lease[:2]] = lease[2]

    def is_told(self, study: str, trial: int, fence: int) -> bool:
        return (study, trial, fence) in self._told

    def lacks(self, receipts: Iterable[Receipt]) -> list[str]:
        """Receipts that the log does not bear out: each names an event, by number and hash, which says the same."""
        broken = []
        for receipt in receipts:
            what = f"receipt {receipt.id} ({receipt.status}, event {receipt.seq})"
            if receipt.seq > self.seq or self.hashes[receipt.seq - 1] != receipt.hash:
                broken.append(f"{what} is not in the log of {self.seq} events")
                continue
            event = self.bodies[receipt.seq - 1]
            kind, study, trial, fence = receipt.id.split(".")[:4]
            says = event["study"], event["trial"], event["data"].get("fence")
            if event["type"] not in ANSWERED or (study, int(trial), int(fence)) != says or \
                    (kind == "r") != (event["type"] == "trial.reported") or \
                    (receipt.status == "late") != (event["type"] == "outcome.late"):
                broken.append(f"{what} names a {event['type']} of {says}")
        return broken

    def lacks_grants(self, grants: Iterable[tuple[Lease, Body]]) -> list[str]:
        """Grants that the log does not know."""
        broken = []
        for lease, grant in grants:
            event = self.leased.get(lease)
            if event is None or event["data"]["worker"] != grant["worker"]:
                broken.append(f"{lease} was granted to {grant['worker']} and is not leased in the log")
        return broken

    def finish(self) -> list[str]:
        """After a clean stop: the whole file again, and every state that the daemon noted when it stopped."""
        broken = self.read_on()
        report = verify(self.log)
        if report.damage is not None or report.seq != self.seq:
            broken.append(f"the whole log does not verify: {report.damage}")
        noted = [event["data"]["snapshot"] for event in self.bodies
                 if event["type"] == "daemon.stopped" and event["data"].get("snapshot")]
        theirs = {each["seq"]: each["digest"] for each in noted}
        again = Replay()
        for seq, body, hash in read_events(self.log):
            again.take(seq, body, hash)
            if seq in theirs and theirs[seq] != (ours := snapshot.digest(again.state)):
                broken.append(f"the daemon's state at event {seq} was {theirs[seq][:16]}…, the fold has {ours[:16]}…")
        if snapshot.digest(again.state) != snapshot.digest(self._replay.state):
            broken.append("a second fold gives another state")
        return broken
