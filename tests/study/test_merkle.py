"""The tree and its proofs equal the recursive definitions of RFC 9162, and no wrong proof holds."""

from collections.abc import Callable
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesd.study import merkle

# --- RFC 9162, section 2.1, word for word ---------------------------------------------------------


def k(n: int) -> int:
    power = 1
    while power * 2 < n:
        power *= 2
    return power


def mth(d: list[bytes]) -> bytes:
    if not d:
        return sha256().digest()
    if len(d) == 1:
        return d[0]         # ours are leaf hashes already
    return sha256(b"\1" + mth(d[:k(len(d))]) + mth(d[k(len(d)):])).digest()


def path(m: int, d: list[bytes]) -> list[bytes]:
    n = len(d)
    if n == 1:
        return []
    if m < k(n):
        return [*path(m, d[:k(n)]), mth(d[k(n):])]
    return [*path(m - k(n), d[k(n):]), mth(d[:k(n)])]


def subproof(m: int, d: list[bytes], b: bool) -> list[bytes]:
    n = len(d)
    if m == n:
        return [] if b else [mth(d)]
    if m <= k(n):
        return [*subproof(m, d[:k(n)], b), mth(d[k(n):])]
    return [*subproof(m - k(n), d[k(n):], False), mth(d[:k(n)])]


def leaves(n: int, salt: str = "") -> list[bytes]:
    return [sha256(b"\0" + f"{salt}{i}".encode()).digest() for i in range(n)]


LEAVES = leaves(130)

# The eight inputs and roots with which implementations of Certificate Transparency are tested.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


# --- Roots ---------------------------------------------------------------------------------------


def test_the_roots_known_from_certificate_transparency() -> None:
    tree = merkle.Tree()
    roots = [tree.root().hex()]
    for text in INPUTS:
        tree.append(sha256(b"\0" + bytes.fromhex(text)).digest())
        roots.append(tree.root().hex())
    assert roots == ROOTS


def test_a_tree_has_the_root_of_the_definition_at_every_size() -> None:
    tree = merkle.Tree()
    for n, leaf in enumerate(LEAVES):
        assert (tree.size, tree.root()) == (n, mth(LEAVES[:n]))
        assert merkle.root_of(LEAVES[:n]) == mth(LEAVES[:n])
        tree.append(leaf)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_a_tree_grows_in_batches_as_it_grows_leaf_by_leaf(batches: list[int]) -> None:
    all_leaves = leaves(sum(batches))
    tree, done = merkle.Tree(), 0
    for batch in batches:
        tree.extend(all_leaves[done:done + batch])
        done += batch
        assert (tree.size, tree.root()) == (done, mth(all_leaves[:done]))


# --- Proofs --------------------------------------------------------------------------------------


def test_every_inclusion_proof_is_the_one_of_the_definition_and_holds() -> None:
    for n in range(1, 40):
        root = mth(LEAVES[:n])
        for index in range(n):
            proof = merkle.inclusion(LEAVES[:n], index)
            assert proof == path(index, LEAVES[:n])
            assert merkle.holds_inclusion(LEAVES[index], index, n, proof, root)


def test_every_consistency_proof_is_the_one_of_the_definition_and_holds() -> None:
    for n in range(1, 40):
        for m in range(1, n + 1):
            proof = merkle.consistency(LEAVES[:n], m)
            assert proof == subproof(m, LEAVES[:n], True)
            assert merkle.holds_consistency(m, n, mth(LEAVES[:m]), mth(LEAVES[:n]), proof)


def test_no_other_leaf_and_no_other_place_holds() -> None:
    """A root is signed together with its size, so another size need not be refused here."""
    for n in range(1, 18):
        root = mth(LEAVES[:n])
        for index in range(n):
            proof = merkle.inclusion(LEAVES[:n], index)
            for other in set(range(n + 2)) - {index}:
                assert not merkle.holds_inclusion(LEAVES[index], other, n, proof, root)
            assert not merkle.holds_inclusion(LEAVES[n], index, n, proof, root)


def test_no_other_beginning_is_consistent() -> None:
    forged = leaves(40, "forged")
    for n in range(2, 40):
        for m in range(1, n):
            changed = LEAVES[:m - 1] + forged[m - 1:m] + LEAVES[m:n]
            for proof in (merkle.consistency(LEAVES[:n], m), merkle.consistency(changed, m)):
                assert not merkle.holds_consistency(m, n, mth(LEAVES[:m]), mth(changed), proof)


@settings(deadline=None)
@given(st.data())
def test_a_proof_changed_anywhere_holds_no_more(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 130))
    m = data.draw(st.integers(1, n - 1))
    old, new = mth(LEAVES[:m]), mth(LEAVES[:n])
    checks: list[tuple[list[bytes], Callable[[list[bytes]], bool]]] = [
        (merkle.inclusion(LEAVES[:n], m), lambda p: merkle.holds_inclusion(LEAVES[m], m, n, p, new)),
        (merkle.consistency(LEAVES[:n], m), lambda p: merkle.holds_consistency(m, n, old, new, p))]
    for proof, holds in checks:
        assert holds(proof)
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        wrong = bytearray(proof[at])
        wrong[bit // 8] ^= 1 << bit % 8
        assert not holds([*proof[:at], bytes(wrong), *proof[at + 1:]])
        assert not holds(proof[:at] + proof[at + 1:])
        assert not holds([*proof[:at], bytes(32), *proof[at:]])
        assert not holds([*proof, bytes(32)])
        assert not holds([*proof[:at], proof[at][:31], *proof[at + 1:]])


def test_the_ends_of_the_definitions() -> None:
    assert merkle.consistency(LEAVES[:5], 0) == merkle.consistency(LEAVES[:5], 5) == []
    root = mth(LEAVES[:5])
    assert merkle.holds_consistency(0, 5, merkle.EMPTY, root, [])
    assert not merkle.holds_consistency(0, 5, root, root, [])
    assert merkle.holds_consistency(5, 5, root, root, [])
    assert not merkle.holds_consistency(5, 5, root, mth(LEAVES[:6]), [])
    assert not merkle.holds_consistency(6, 5, mth(LEAVES[:6]), root, [])
    assert not merkle.holds_inclusion(LEAVES[0], 0, 0, [], merkle.EMPTY)
    assert not merkle.holds_inclusion(LEAVES[0], -1, 1, [], LEAVES[0])
    assert not merkle.holds_consistency(1, 2, LEAVES[0], mth(LEAVES[:2]), [])
    with pytest.raises(ValueError, match="no leaf 5 among 5"):
        merkle.inclusion(LEAVES[:5], 5)
    with pytest.raises(ValueError, match="never had 6"):
        merkle.consistency(LEAVES[:5], 6)
