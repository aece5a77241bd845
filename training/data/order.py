"""The order of samples: a pure function of (seed, number of samples, position), with nothing kept in memory.

A keyed permutation of 0..n-1: a Feistel network over the next even power of two, walked on until it lands below n
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.ngrams import mix

#: A number of 64 bits, or several.
Key = int | np.uint64 | NDArray[np.uint64]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive(seed: Key, number: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit key of its own for each number (0 or more)."""
    with np.errstate(over="ignore"):
        return mix(np.asarray(seed, np.uint64) + _GOLDEN * (np.asarray(number, np.uint64) + np.uint64(1)))


def permute(positions: NDArray[np.int64], size: int, key: Key) -> NDArray[np.int64]:
    """Images of ``positions`` [n] (each in 0..size-1) under the permutation of 0..size-1 that ``key`` selects.

    ``key``: one for all, or [n], one for each.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    images = positions.astype(np.uint64)
    todo = np.ones(images.shape, dtype=bool)
    with np.errstate(over="ignore"):
        rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None]
        keys = mix(np.asarray(key, np.uint64) + _GOLDEN * rounds)
        while todo.any():
            left, right = images[todo] >> shift, images[todo] & mask
            for round_keys in keys if keys.shape[1] == 1 else keys[:, todo]:
                left, right = right, left ^ (mix(right + round_keys) & mask)
            images[todo] = (left << shift) | right
            todo &= images >= np.uint64(size)
    return images.astype(np.int64)


def indices_at(positions: NDArray[np.int64], size: int, seed: Key) -> NDArray[np.int64]:
    """Data set indices of the samples at these global positions; each epoch has an order of its own."""
    return permute(positions % size, size, derive(seed, positions // size))


def sample_indices(first: int, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """``indices_at`` the positions first..first+count-1."""
    return indices_at(np.arange(first, first + count, dtype=np.int64), size, seed)
