"""What signed notes say of a log: up to where it is what was signed, and where it is not.

The chain shows an event that was changed and left at that. Who rewrites everything behind it breaks
no chain; then only a note tells, and surely only one that left the machine before. Notes also
narrow the place: a log that has the root of one note and not of the next changed between the two.

Feed it the verified events in order, then ask for the verdict.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import orjson

from bayesd import notes
from bayesd.lineage import Lineage
from bayesd.notes import BadKey, BadNote, Checkpoint, Verifier
from bayesd.study.merkle import Tree
from bayesd.study.row import Fields
from bayesd.study.state import Repair

_STARTED, _REPAIRED = "daemon.started", "log.repaired"


@dataclass(frozen=True, slots=True)
class Head:
    """A note that comes from elsewhere than the log, and where it was found."""

    source: str
    note: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A note does not fit the log: a change lies in the events `first` to `last`."""

    first: int
    last: int
    why: str
    narrowed: int
    """Where it begins if the notes in the file are believed, too: right unless somebody else had the key."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the notes, all together, prove."""

    signed: int = 0
    """The first so many events are those that were signed."""
    notes: int = 0
    """Notes in the log that hold."""
    heads: int = 0
    """Notes from outside that hold."""
    unsigned: int = 0
    """Notes in the log whose root is right, but nobody names a key to check who signed them."""
    given_up: int = 0
    """Notes of a history that the operator gave up, as the log says under a signature."""
    keys: tuple[str, ...] = ()
    keys_given: bool = False
    """The keys came from outside. Else they are those that the log itself names: a forger names another."""
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    source: str
    note: str
    said: Checkpoint
    outside: bool


class Evidence:
    """Notes, held against the events of a log while these are read."""

    def __init__(self, stored: Iterable[tuple[int, bytes]] = (), heads: Sequence[Head] = (),
                 keys: Sequence[str] = ()) -> None:
        """`stored` are the notes in the log itself. Raises BadKey, and BadNote if a head is none at all."""
        self.tree = Tree()
        self._given = {key: Verifier(key) for key in keys}
        self._named: dict[str, Verifier] = {}
        self._repairs: list[Repair] = []
        self._unreadable: list[tuple[int, str]] = []
        claims = [claim for seq, note in stored if (claim := self._stored(seq, note)) is not None]
        claims += [self._outside(head) for head in heads]
        self._ahead = sorted(claims, key=lambda claim: claim.said.size, reverse=True)     # the next is the last
        self._right: list[_Claim] = []
        self._wrong: list[_Claim] = []

    def _stored(self, seq: int, note: bytes) -> _Claim | None:
        source = f"its note of event {seq}"
        try:
            text = note.decode()
            said = notes.read(text)
        except (UnicodeDecodeError, AttributeError, BadNote):
            self._unreadable.append((seq, f"{source} is not a note"))
            return None
        if said.size != seq:
            self._unreadable.append((seq, f"{source} speaks of {said.size} events"))
            return None
        return _Claim(source, text, said, outside=False)

    def _outside(self, head: Head) -> _Claim:
        """A head is the caller's own: one that the given keys did not sign is a mistake and no evidence."""
        try:
            claim = _Claim(head.source, head.note, notes.read(head.note), outside=True)
            if self._given:
                _opened(claim, self._given)
        except BadNote as error:
            raise BadNote(f"{head.source}: {error}") from error
        return claim

    # ------------------------------------------------------------ the events

    def take(self, rows: Sequence[Fields]) -> None:
        """The next events. They are verified and follow the ones before."""
        for row in rows:
            if row[3] == _STARTED or row[3] == _REPAIRED:
                self._listen(row)
        leaves = [row[2] for row in rows]
        done = 0
        while self._ahead and self._ahead[-1].said.size <= self.tree.size + len(leaves) - done:
            claim = self._ahead.pop()
            upto = done + claim.said.size - self.tree.size
            self.tree.extend(leaves[done:upto])
            done = upto
            (self._right if self.tree.root() == claim.said.root else self._wrong).append(claim)
        self.tree.extend(leaves[done:])

    def _listen(self, row: Fields) -> None:
        """Keys that the log names, and what an operator gave up."""
        body = orjson.loads(row[1])
        data = body.get("data")
        if not isinstance(data, dict):
            return
        if row[3] == _STARTED:
            key = data.get("key")
            if isinstance(key, str) and key not in self._named:
                with suppress(BadKey):
                    self._named[key] = Verifier(key)
        elif data.get("signature") is not None:
            with suppress(TypeError, ValueError):
                self._repairs.append(Repair(
                    row[0], str(body.get("prev")), str(data.get("accepted")), int(data.get("fences_from", 0)),
                    int(data.get("shared", 0)), str(data["signature"])))

    # ------------------------------------------------------------ the verdict

    def verdict(self, log: str | None, is_whole: bool) -> Verdict:
        """What holds. `log` is the id that event 1 names; not `is_whole`: the chain broke behind the last event."""
        if self.tree.size == 0:
            self.take(())           # a note of no events is about the empty tree
        beyond = self._ahead if is_whole else []
        faults = {claim: self._fault(claim, log) for claim in (*self._right, *self._wrong, *beyond)}
        held = [claim for claim in self._right if faults[claim] is None]
        signed = max((claim.said.size for claim in held), default=0)
        keys = self._given or self._named
        lineage = Lineage(log or "", self._repairs, keys.values())
        given_up = {claim for claim in (*self._wrong, *beyond)
                    if faults[claim] is None and lineage.excuses(claim.said)}
        found = [self._at(claim, held, f"{claim.source} {why}", is_ours=False)
                 for claim, why in faults.items() if why]
        found += [self._at(claim, held, f"{claim.source} was signed over other events: at least one of these was "
                                        "changed, put in or taken out, and the chain made anew behind it")
                  for claim in self._wrong if not faults[claim] and claim not in given_up]
        ends = self.tree.size
        found += [Finding(ends + 1, claim.said.size, f"the log ends at event {ends}, but {claim.source} was signed "
                          f"over {claim.said.size}: the events behind are missing", ends + 1)
                  for claim in beyond if not faults[claim] and claim not in given_up]
        found += [Finding(place, place, why, place) for seq, why in self._unreadable for place in (min(seq, ends + 1),)]
        if not self._given:
            found += [self._at(claim, held, f"{claim.source} is of a history that was given up, says the log under a "
                                            "key that the log itself names: only the public key from elsewhere (--key) "
                                            "can tell whether that is true", is_ours=False)
                      for claim in given_up if claim.outside]
        unsigned = 0 if keys else sum(not claim.outside for claim in self._right)
        return Verdict(signed, sum(not claim.outside for claim in held), sum(claim.outside for claim in held), unsigned,
                       len(given_up), tuple(keys), bool(self._given),
                       min(found, key=lambda each: (each.last, each.first), default=None))

    def _fault(self, claim: _Claim, log: str | None) -> str | None:
        """Why this is no note of this log; None when it is one; "" when no key is known to tell by."""
        if log is not None and claim.said.log != log:
            return f"is of the log {claim.said.log}, and the file says that it is the log {log}"
        keys = self._given or self._named
        if not keys:
            return ""
        try:
            _opened(claim, keys)
        except BadNote as error:
            return f"does not hold under the key that {'was given' if self._given else 'the log names'}: {error}"
        return None

    @staticmethod
    def _at(claim: _Claim, held: Sequence[_Claim], why: str, is_ours: bool = True) -> Finding:
        """A change lies behind the last note that holds and not behind this one.

        The place of an outside note is not narrowed by notes in the file: who has the key can sign a forgery there. Nor
        can they be believed for a hint when the outside note is of another key.
        """
        size = max(claim.said.size, 1)
        below = [each for each in held if each.said.size < size]
        surely = max((each.said.size for each in below if each.outside or not claim.outside), default=0) + 1
        narrowed = max((each.said.size for each in below), default=0) + 1 if is_ours else surely
        return Finding(surely, size, why, narrowed)


def _opened(claim: _Claim, keys: dict[str, Verifier]) -> Checkpoint:
    error = BadNote("no key")
    for verifier in keys.values():
        try:
            return verifier.open(claim.note)
        except BadNote as found:
            error = found
    raise error
