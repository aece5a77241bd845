"""The order of samples: a pure function of (seed, number of samples, position), with nothing kept in memory.

A keyed permutation of 0..n-1: a Feistel network over the next even power of two, walked on until it lands below n
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(positions: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Images of ``positions`` (each in 0..size-1) under the permutation of 0..size-1 that ``key`` selects."""
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    images = positions.astype(np.uint64)
    todo = np.ones(images.shape, dtype=bool)
    with np.errstate(over="ignore"):
        keys = _mix(np.uint64(key) + _GOLDEN * np.arange(1, _ROUNDS + 1, dtype=np.uint64))
        while todo.any():
            left, right = images[todo] >> shift, images[todo] & mask
            for round_key in keys:
                left, right = right, left ^ (_mix(right + round_key) & mask)
            images[todo] = (left << shift) | right
            todo &= images >= np.uint64(size)
    return images.astype(np.int64)


def sample_indices(first: int, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Data set indices of the samples at global positions first..first+count-1; each epoch has an order of its own."""
    positions = np.arange(first, first + count, dtype=np.int64)
    indices = np.empty(count, dtype=np.int64)
    for epoch in np.unique(positions // size):
        here = positions // size == epoch
        with np.errstate(over="ignore"):
            key = int(_mix(np.array([seed], dtype=np.uint64) + _GOLDEN * np.uint64(epoch + 1))[0])
        indices[here] = permute(positions[here] % size, size, key)
    return indices
