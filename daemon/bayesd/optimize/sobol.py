"""Scrambled Sobol points, any point by its index.

The plain sequence is scipy's (Joe and Kuo's direction numbers). The scrambling is ours, a random
lower triangular matrix and a random shift over GF(2) per dimension (Matousek 1998), because
scipy draws its own from numpy methods that may change between releases. After PERIOD points the
sequence begins again under another scrambling, so that every index is cheap to reach.
"""

from functools import lru_cache

import numpy as np
from scipy.stats import qmc

from bayesd.optimize.streams import Floats, Stream, Words

BITS = 30
PERIOD = 2**20      # skipping to the last point of a period takes a few milliseconds


def points(seed: int, first: int, count: int, p: int) -> Floats:
    """Points first .. first + count - 1 of the study's sequence, shape (count, p), in (0, 1)."""
    rows: list[Floats] = []
    while count > 0:
        period, index = divmod(first, PERIOD)
        here = min(count, PERIOD - index)
        rows.append(_scrambled(_plain(index, here, p), *_scrambling(seed, period, p)))
        first, count = first + here, count - here
    return np.vstack(rows) if rows else np.empty((0, p))


def _scrambled(plain: Words, columns: Words, shift: Words) -> Floats:
    # Output bits are sums over GF(2) of matrix columns, one for each bit that is set.
    ones = (plain[:, :, None] >> np.arange(BITS - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    mixed = np.bitwise_xor.reduce(ones * columns, axis=2) ^ shift
    return np.asarray((mixed.astype(np.float64) + 0.5) * 2.0**-BITS)


@lru_cache(maxsize=64)
def net(p: int, count: int) -> Floats:
    """The first `count` (a power of two) plain points, to be shifted by who uses them."""
    return np.asarray(_plain(0, count, p) * 2.0**-BITS, dtype=np.float64)


def _plain(first: int, count: int, p: int) -> Words:
    engine = qmc.Sobol(p, scramble=False, bits=BITS)
    if first:
        engine.fast_forward(first)
        u = engine.random(count)
    else:
        # At the start scipy warns unless it is asked for a power of two.
        u = engine.random(1 << (count - 1).bit_length())[:count]
    return np.asarray(u * 2.0**BITS, dtype=np.uint64)


@lru_cache(maxsize=64)
def _scrambling(seed: int, period: int, p: int) -> tuple[Words, Words]:
    """Matrix columns (p, BITS) and shifts (p,)."""
    raw = Stream(seed, period, "sobol").words(p * (BITS + 1)).reshape(p, BITS + 1) >> np.uint64(64 - BITS)
    diagonal = np.uint64(1) << np.arange(BITS - 1, -1, -1, dtype=np.uint64)
    return diagonal | (raw[:, :BITS] & (diagonal - np.uint64(1))), raw[:, BITS]
