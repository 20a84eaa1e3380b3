"""Signed heads: what leaves the machine, so that a log that went back or split in two is noticed.

Whoever owns the log file can put an old copy back or let two copies grow apart, and the file alone
shows neither. So the daemon signs the head of what is committed now and then and gives the note
away: to the broker, to every worker, to a file on another disk. What comes back is held against
the log. A verified note that the log cannot have made means that trials and fences handed out
before could be handed out again with other parameters, and then nothing more may be granted.

A note counts when the daemon's key signed it, or the key that the log named last before. Any other
is ignored and counted: a stranger must not be able to stop a daemon.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from bayesd.log import Log, LogError
from bayesd.notes import BadNote, Checkpoint, Signer, Verifier, read
from bayesd.study.merkle import Tree
from bayesd.study.state import State

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
        self._known: dict[str, None] = {}

    async def open(self, key_before: str | None) -> None:
        """Take up what an earlier life left."""
        if key_before is not None and key_before != self.key:
            with suppress(BadNote):     # an event is taken as it is; what is no key has signed nothing
                self._verifiers.append(Verifier(key_before))
        saved = await self._log.load_note()
        if saved is not None:
            self.latest, self.size = saved.note.decode(), saved.seq
            self._remember(self.latest)

    # ------------------------------------------------------------ what goes out

    def is_due(self, now: float, every_events: int, every_s: float) -> bool:
        """Whether a head should be signed: never without news."""
        news = self._log.tree.size - self.size
        return news >= every_events or (news > 0 and now - self.signed_at >= every_s)

    async def sign(self, now: float) -> str | None:
        """Sign the head of what is committed and save the note; None when there is no news."""
        tree = self._log.tree
        size = tree.size
        if size == self.size:
            return None
        note = self._signer.sign(size, tree.root())
        self.signed_at = now
        await self._log.save_note(size, note.encode())
        self.latest, self.size = note, size
        self.signed += 1
        self._remember(note)
        return note

    # ------------------------------------------------------------ what comes back

    def knows(self, note: str) -> bool:
        """Whether this note was found to be harmless before: nearly every note is, so this must be quick."""
        return note in self._known

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
        if await self._is_ours(note, theirs):
            self._remember(note)
            return None
        if theirs.size <= state.given_up:
            self.given_up += 1
            self._remember(note)
            return None
        # A writer that was overtaken is behind as well, but there is nothing wrong with the log.
        await self._log.must_be_newest()
        return Conflict(where, note, theirs, self._ours())

    async def conflict_in(self, where: str, notes: Iterable[str], state: State) -> Conflict | None:
        """The worst conflict with the notes of an append-only file. What stands before a head that was given
        up is history; what follows it was signed by a log that went on from there, so that nothing is excused."""
        listed, excused = list(notes), state.given_up
        if state.accepted in listed:
            listed, excused = listed[len(listed) - listed[::-1].index(state.accepted):], 0
        worst: Conflict | None = None
        for note in listed[-LOOKED_AT_MAX:]:
            theirs = None if self.knows(note) else self.read(note)
            if theirs is None or theirs.size <= max(excused, worst.theirs.size if worst is not None else 0):
                continue
            if not await self._is_ours(note, theirs):
                worst = Conflict(where, note, theirs, self._ours())
        return worst

    async def _is_ours(self, note: str, theirs: Checkpoint) -> bool:
        tree = self._log.tree
        if theirs.size > tree.size:
            return False
        saved = await self._log.load_note(theirs.size)
        if saved is not None and saved.note == note.encode():
            return True
        return await self._root_at(theirs.size) == theirs.root

    async def _root_at(self, size: int) -> bytes:
        tree = Tree()
        async for hashes in self._log.hashes(size):
            await asyncio.to_thread(tree.extend, hashes)        # a million take a second
        return tree.root()

    def _ours(self) -> Checkpoint:
        return Checkpoint(self._signer.log, self._log.tree.size, self._log.tree.root())

    def _remember(self, note: str) -> None:
        self._known[note] = None
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
