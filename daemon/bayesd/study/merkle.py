"""The Merkle tree of RFC 9162 (section 2.1) over the hashes of events.

A chain proves the order of a whole log to whoever reads all of it. The tree says the same in 32
bytes, its root, and lets one event (inclusion) or one older root (consistency) be proved with a
handful of hashes: about 20 for a million events. A leaf is the hash of an event, as `canonical`
makes it; the tree never sees what is below.
"""

import hashlib
from collections.abc import Iterable, Sequence

EMPTY = hashlib.sha256(b"").digest()
"""The root of no events."""


def node(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees: the 1 keeps it apart from the hash of any event, which begins with 0."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """A tree that grows at its end. Of what is past it keeps the roots of complete subtrees, one for each height."""

    __slots__ = ("_peaks", "size")

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self.size = 0
        self._peaks: list[bytes | None] = []    # of 2**height leaves each; there where `size` has a 1 in binary
        self.extend(leaves)

    def append(self, leaf: bytes) -> None:
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Binary addition: at each height pairs are joined, and what is left over waits there."""
        level = list(leaves)
        self.size += len(level)
        height, peaks = 0, self._peaks
        while level:
            if height == len(peaks):
                peaks.append(None)
            waiting = peaks[height]
            if waiting is not None:
                level.insert(0, waiting)
            peaks[height] = level.pop() if len(level) & 1 else None
            pairs = iter(level)
            level = [hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            height += 1

    def root(self) -> bytes:
        root: bytes | None = None
        for peak in self._peaks:
            if peak is not None:
                root = peak if root is None else node(peak, root)
        return EMPTY if root is None else root


def root_of(leaves: Sequence[bytes]) -> bytes:
    return Tree(leaves).root()


# --- Proofs, made by whoever has all leaves ------------------------------------------------------


def inclusion(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The siblings on the way from leaf `index` (from 0) to the root, lowest first (RFC 9162, 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"there is no leaf {index} among {len(leaves)}")
    proof = []
    begin, end = 0, len(leaves)
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            proof.append(root_of(leaves[middle:end]))
            end = middle
        else:
            proof.append(root_of(leaves[begin:middle]))
            begin = middle
    return proof[::-1]


def consistency(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """What shows that the tree of the first `old_size` leaves is the beginning of this one (RFC 9162, 2.1.4.1)."""
    if not 0 <= old_size <= len(leaves):
        raise ValueError(f"a tree of {len(leaves)} leaves never had {old_size}")
    if old_size in (0, len(leaves)):
        return []           # nothing and the same need no proof
    proof = []
    begin, end, whole = 0, len(leaves), True    # whole: the old tree is all that is left of begin, its root is known
    while end - begin != old_size - begin:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            proof.append(root_of(leaves[middle:end]))
            end = middle
        else:
            proof.append(root_of(leaves[begin:middle]))
            begin, whole = middle, False
    if not whole:
        proof.append(root_of(leaves[begin:end]))
    return proof[::-1]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


# --- Proofs, checked by whoever has two hashes ---------------------------------------------------


def holds_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Is `leaf` the one at `index` of the tree of `size` leaves with this root? (RFC 9162, 2.1.3.2)"""
    if not 0 <= index < size or not _hashes(leaf, root, *proof):
        return False
    here, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if here & 1 or here == last:
            found = node(sibling, found)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            found = node(found, sibling)
        here, last = here >> 1, last >> 1
    return last == 0 and found == root


def holds_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes,
                      proof: Sequence[bytes]) -> bool:
    """Does the tree with the new root begin with the tree with the old one? (RFC 9162, 2.1.4.2)"""
    if not 0 <= old_size <= new_size or not _hashes(old_root, new_root, *proof):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof and old_root == EMPTY
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    here, last = old_size - 1, new_size - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            old, new = node(sibling, old), node(sibling, new)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            new = node(new, sibling)
        here, last = here >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _hashes(*given: bytes) -> bool:
    return all(len(each) == 32 for each in given)
