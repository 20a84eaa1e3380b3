"""Random numbers as a function of (study seed, trial number, purpose), and of nothing else.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) is a keyed bijection
of a counter, so any number of any stream is computed without the ones before it. Key: the study
seed and a hash of the purpose. Counter: four words of 64 bits, used in two layouts.

    across   (trial, block, 0, 0)    a few numbers for each of many successive trials
    deep     (block, trial, 1, 0)    many numbers for one trial

A uniform is (raw >> 11) * 2**-53 from the raw 64-bit words. The raw words of a bit generator are
promised to be the same in every numpy release; the methods of numpy's Generator are not.
"""

from functools import cache
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.uint64]

_WORDS = 4              # raw words that one counter value yields
_MASK = 2**64 - 1


def name(seed: int, number: int, purpose: str) -> str:
    """The stream in words, for the log: enough to draw the same numbers again."""
    return f"{seed}/{number}/{purpose}"


@cache
def _purpose_key(purpose: str) -> int:
    return int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _raw(seed: int, purpose: str, counter: tuple[int, int, int, int], count: int) -> Words:
    # numpy steps the counter before it uses it, so a stream begins at counter + 1, everywhere.
    words = np.random.Philox(key=[seed & _MASK, _purpose_key(purpose)], counter=counter).random_raw(count)
    return np.asarray(words, dtype=np.uint64)


def _unit(words: Words) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def across(seed: int, purpose: str, first: int, trials: int, width: int) -> Floats:
    """Uniforms on [0, 1), shape (trials, width): row t belongs to trial first + t alone."""
    blocks = [_raw(seed, purpose, (first, block, 0, 0), trials * _WORDS).reshape(trials, _WORDS)
              for block in range(-(-width // _WORDS))]
    return _unit(np.hstack(blocks)[:, :width])


class Stream:
    """The deep stream of one trial: successive draws, the same in every process."""

    def __init__(self, seed: int, number: int, purpose: str) -> None:
        self._bits = np.random.Philox(key=[seed & _MASK, _purpose_key(purpose)], counter=(0, number, 1, 0))

    def words(self, count: int) -> Words:
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def uniform(self, *shape: int) -> Floats:
        """Uniforms on [0, 1)."""
        return _unit(self.words(int(np.prod(shape)))).reshape(shape)

    def integer(self, below: int) -> int:
        """A whole number from 0 to below - 1; `below` may be larger than any machine word.

        Many more bits are drawn than needed, so the bias of the remainder is below 2**-64.
        """
        words = self.words(below.bit_length() // 64 + 2)
        return int.from_bytes(words.astype("<u8").tobytes(), "little") % below
