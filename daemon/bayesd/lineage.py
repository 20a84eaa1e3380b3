"""Branches of a log: what an operator gave up when a daemon went on behind a head that it had signed before.

Each accepted rollback begins a branch, named by the seq of its `log.repaired`; before the first it is branch 0. Notes
name their branch, so that a note of the log that goes on is told from one of a history that was given up, whatever
their sizes. And the key signs each repair: who has the file and no key cannot write one that excuses anything.
"""

from collections.abc import Iterable, Sequence

from bayesd import notes
from bayesd.notes import BadNote, Checkpoint, Signer, Verifier
from bayesd.study.state import Repair


def branch_at(repairs: Iterable[Repair], size: int) -> int:
    """The branch that the first `size` events of a log belong to."""
    return max((repair.seq for repair in repairs if repair.seq <= size), default=0)


def sign(signer: Signer, prev: str, accepted: Checkpoint, shared: int, fences_from: int) -> str:
    """The signature of a repair behind the event with hash `prev`."""
    note = signer.sign_text(_text(signer.log, prev, accepted, shared, fences_from))
    return note.removesuffix("\n").rpartition(" ")[2]


def _text(log: str, prev: str, accepted: Checkpoint, shared: int, fences_from: int) -> str:
    """No note of a head reads like this: its second line is no size."""
    return f"{notes.PREFIX}{log}/repair\nbehind {prev}\n{accepted.body}shared {shared}\nfences from {fences_from}\n"


class Lineage:
    """What the repairs of one log excuse, as far as keys that are believed signed them."""

    def __init__(self, log: str, repairs: Sequence[Repair], verifiers: Iterable[Verifier]) -> None:
        self.branch = max((repair.seq for repair in repairs), default=0)
        self._honoured: list[tuple[Repair, int, Checkpoint]] = []      # each with the branch that it ended
        verifiers, ended = list(verifiers), 0
        for repair in repairs:
            accepted = _accepted(log, repair, verifiers)
            if accepted is not None:
                self._honoured.append((repair, ended, accepted))
            ended = repair.seq

    def excuses(self, theirs: Checkpoint) -> bool:
        """Whether the operator gave up a note that is not of this log.

        The accepted note always. Else one of a branch that was given up, beyond what both histories are known to have
        and as far as was accepted. Never one of the branch that goes on, nor one of a branch that nobody gave up.
        """
        if any(theirs == accepted for _, _, accepted in self._honoured):
            return True
        return theirs.branch != self.branch and any(
            theirs.branch in (ended, accepted.branch) and repair.shared < theirs.size <= accepted.size
            for repair, ended, accepted in self._honoured)


def _accepted(log: str, repair: Repair, verifiers: Iterable[Verifier]) -> Checkpoint | None:
    """The head that a repair gave up; None if no key that is believed signed the repair."""
    try:
        accepted = notes.read(repair.accepted)
    except BadNote:
        return None
    text = _text(log, repair.prev, accepted, repair.shared, repair.fences_from)
    for verifier in verifiers:
        try:
            verifier.text(f"{text}\n\u2014 {verifier.name} {repair.signature}\n")
        except BadNote:
            continue
        return accepted if accepted.log == log and verifier.name == notes.PREFIX + log else None
    return None
