"""Signed heads: what leaves the machine, so that a log that went back or split in two is noticed.

Whoever owns the log file can put an old copy back or let two copies grow apart, and the file alone
shows neither. So the daemon signs the head of what is committed now and then and gives the note
away: to the broker, to every worker, to a file on another disk. What comes back is held against
the log. A verified note that the log cannot have made means that trials and fences handed out
before could be handed out again with other parameters, and then nothing more may be granted.

A note counts when the daemon's key signed it, or one that the log has named. Any other
is ignored and counted: a stranger must not be able to stop a daemon.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from bayesd import lineage
from bayesd.lineage import Lineage
from bayesd.log import Log, LogError
from bayesd.notes import BadNote, Checkpoint, Signer, Verifier, read
from bayesd.study.merkle import Tree
from bayesd.study.state import Repair, State

KNOWN_MAX = 1000        # notes that are remembered to be this log's own
LOOKED_AT_MAX = 50      # notes of a heads file that a start holds against the log: the last ones
FENCES_APART = 1_000_000


class RolledBack(LogError):
    """A signed head from outside says more than the log, or something else. Nothing more is granted."""

    exit_code = 65

    def __init__(self, conflict: "Conflict") -> None:
        ours, theirs = conflict.ours, conflict.theirs
        how = "is behind" if theirs.size > ours.size else "does not contain"
        super().__init__(
            f"the log {how} a head that it signed: {conflict.where} has {_words(theirs)}, the log has {_words(ours)}. "
            "An old copy was put back, or two daemons run on copies of one log. Nothing is granted any more. "
            "Put the newest copy of the log back and start again; or, if there is none, start once with "
            "--accept-rollback 'WHY', which gives up what is lost and goes on from here")
        self.conflict = conflict

    def __reduce__(self) -> tuple[type["RolledBack"], tuple["Conflict"]]:
        return RolledBack, (self.conflict,)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A verified note that this log did not make."""

    where: str
    """Who has it, for people."""
    note: str
    theirs: Checkpoint
    ours: Checkpoint
    shared: int = 0
    """The newest event that both are known to have."""


class Heads:
    """The heads of one log, in one daemon life: those that it signs and those that it is shown."""

    def __init__(self, log: Log, signer: Signer) -> None:
        self.key = signer.vkey
        self.latest: str | None = None
        """The newest note of this log that is saved."""
        self.size = 0
        """How many events that note has."""
        self.signed_at = float("-inf")
        self.signed = 0
        self.ignored = 0
        """Notes that no key of this log signed."""
        self.given_up = 0
        """Notes of a future that an operator has given up."""
        self._log = log
        self._signer = signer
        self._verifiers = [Verifier(signer.vkey)]
        self._known: dict[Checkpoint, None] = {}

    async def open(self, keys: Iterable[str]) -> None:
        """Take up what earlier lives left: the keys that they named, and the last note."""
        for key in keys:
            if key != self.key:
                with suppress(BadNote):     # an event is taken as it is; what is no key has signed nothing
                    self._verifiers.append(Verifier(key))
        saved = await self._log.load_note()
        if saved is not None:
            self.latest, self.size = saved.note.decode(), saved.seq

    # ------------------------------------------------------------ what goes out

    def is_due(self, now: float, every_events: int, every_s: float) -> bool:
        """Whether a head should be signed: never without news."""
        news = self._log.tree.size - self.size
        return news >= every_events or (news > 0 and now - self.signed_at >= every_s)

    async def sign(self, now: float, repairs: Iterable[Repair] = ()) -> str | None:
        """Sign the head of what is committed and save the note; None when there is no news."""
        tree = self._log.tree
        size = tree.size
        if size == self.size:
            return None
        head = Checkpoint(self._signer.log, size, tree.root(), lineage.branch_at(repairs, size))
        note = self._signer.sign_text(head.text)
        self.signed_at = now
        await self._log.save_note(size, note.encode())
        self.latest, self.size = note, size
        self.signed += 1
        self._remember(head)
        return note

    def sign_repair(self, conflict: Conflict, prev: str, fences_from: int) -> str:
        """What makes a repair behind the event with hash `prev` excuse the head that it gives up."""
        return lineage.sign(self._signer, prev, conflict.theirs, conflict.shared, fences_from)

    # ------------------------------------------------------------ what comes back

    def knows(self, note: str) -> bool:
        """Whether a note that says the same was found to be harmless before: nearly every note is, so this must be
        quick. What it says counts, since strangers may add signatures to it without end."""
        try:
            return read(note) in self._known
        except BadNote:
            return False

    def read(self, note: str) -> Checkpoint | None:
        """What a note of this log says; None, and counted, when no key of this log signed it."""
        try:
            if read(note).log == self._signer.log:
                for verifier in self._verifiers:
                    try:
                        return verifier.open(note)
                    except BadNote:
                        continue
        except BadNote:
            pass
        self.ignored += 1
        return None

    async def conflict(self, where: str, note: str, theirs: Checkpoint, state: State) -> Conflict | None:
        """Hold a verified note against the log: None when the log has made it, or an operator gave it up."""
        if await self._is_ours(theirs):
            self._remember(theirs)
            return None
        if self.excuses(theirs, state):
            self.given_up += 1
            self._remember(theirs)
            return None
        # A writer that was overtaken is behind as well, but there is nothing wrong with the log.
        await self._log.must_be_newest()
        return Conflict(where, note, theirs, self._ours())

    async def conflicts_in(self, where: str, notes: Iterable[str], state: State) -> list[Conflict]:
        """The worst conflict of each branch with the notes of an append-only file. What the log has of the notes
        before them is what both histories have."""
        worst: dict[int, Conflict] = {}
        shared = 0
        for note in list(notes)[-LOOKED_AT_MAX:]:
            theirs = self.read(note)
            if theirs is None or (theirs.branch in worst and theirs.size <= worst[theirs.branch].theirs.size):
                continue
            if theirs in self._known or await self._is_ours(theirs):
                shared = max(shared, theirs.size) if not worst else shared
            elif not self.excuses(theirs, state):
                before = worst.get(theirs.branch)
                worst[theirs.branch] = Conflict(where, note, theirs, self._ours(), before.shared if before else shared)
        return list(worst.values())

    def excuses(self, theirs: Checkpoint, state: State) -> bool:
        """Whether an operator gave it up, by the signature of this daemon's own key: who has the file can have the
        log name any other."""
        return Lineage(self._signer.log, state.repairs, self._verifiers[:1]).excuses(theirs)

    async def _is_ours(self, theirs: Checkpoint) -> bool:
        tree = self._log.tree
        if theirs.size > tree.size:
            return False
        # Notes in the file are no short cut: who has the file can put the very note there.
        return await self._root_at(theirs.size) == theirs.root

    async def _root_at(self, size: int) -> bytes:
        tree = Tree()
        async for hashes in self._log.hashes(size):
            await asyncio.to_thread(tree.extend, hashes)        # a million take a second
        return tree.root()

    def _ours(self) -> Checkpoint:
        return Checkpoint(self._signer.log, self._log.tree.size, self._log.tree.root())

    def _remember(self, head: Checkpoint) -> None:
        self._known[head] = None
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]


def fences_from(conflict: Conflict, state: State, time: str) -> int:
    """A number above every fence that was handed out in a future that this log does not know.

    What the file says went back with the file, so the wall clock in milliseconds speaks: fences grow by
    one a lease and never catch up with it. The rest is for a machine whose clock is wrong.
    """
    milliseconds = int(datetime.fromisoformat(time).timestamp() * 1000)
    return max(milliseconds, conflict.theirs.size + FENCES_APART, state.fence_base + FENCES_APART)


def _words(head: Checkpoint) -> str:
    return f"{head.size} events with root {head.root.hex()[:16]}…"
