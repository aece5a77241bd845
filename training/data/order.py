"""The order of samples, as a pure function of seed, number of samples and position. No permutation is stored.

The order is a keyed permutation of 0..n-1: a Feistel network over the next power of four, applied repeatedly until the
result is below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from artefacts.hashing import mix, splitmix64

#: One 64-bit number, or an array of them.
Key = int | np.uint64 | NDArray[np.uint64]


_ROUNDS = 6


def derive(seed: Key, number: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Derive a 64-bit key from a seed and a number (0 or more). Different numbers give different keys."""
    return splitmix64(np.asarray(seed, np.uint64), np.asarray(number, np.uint64) + np.uint64(1))


def permute(positions: NDArray[np.int64], size: int, key: Key) -> NDArray[np.int64]:
    """Apply the permutation of 0..size-1 that ``key`` selects to ``positions`` [n].

    ``key`` is a single key for all positions, or [n], one key per position.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    images = positions.astype(np.uint64)
    todo = np.ones(images.shape, dtype=bool)
    with np.errstate(over="ignore"):
        keys = splitmix64(np.asarray(key, np.uint64), np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None])
        while todo.any():
            left, right = images[todo] >> shift, images[todo] & mask
            for round_keys in keys if keys.shape[1] == 1 else keys[:, todo]:
                left, right = right, left ^ (mix(right + round_keys) & mask)
            images[todo] = (left << shift) | right
            todo &= images >= np.uint64(size)
    return images.astype(np.int64)


def indices_at(positions: NDArray[np.int64], size: int, seed: Key) -> NDArray[np.int64]:
    """Return the indices of the samples at these global positions. Every epoch has a different order."""
    return permute(positions % size, size, derive(seed, positions // size))


def sample_indices(first: int, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return the sample indices at the positions ``first`` to ``first + count - 1``."""
    return indices_at(np.arange(first, first + count, dtype=np.int64), size, seed)


#: Number of samples in a block of a mixture. A power of four, so that permuting a block takes only one pass.
BLOCK = 1 << 14


def quotas(weights: Sequence[float]) -> NDArray[np.int64]:
    """Return each dataset's number of slots in a block.

    The numbers are proportional to the weights (all above 0), rounded by the largest-remainder method, and at least 1.
    """
    exact = np.array(weights, np.float64) / math.fsum(weights) * BLOCK
    places = np.floor(exact).astype(np.int64)
    largest = np.argsort(places - exact, kind="stable")
    places[largest[: BLOCK - places.sum()]] += 1
    while not places.all():
        places[places.argmin()] += 1
        places[places.argmax()] -= 1
    return places


class Mixture:
    """The order of samples in a mixture of datasets. For a single dataset, the order is exactly ``indices_at``."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """Initialize the mixture.

        Args:
            sizes: number of samples in each dataset.
            weights: relative number of samples from each dataset, which need not add up to 1.
            seed: determines the order.
        """
        self._sizes, self._seed = sizes, seed
        self._places = quotas(weights)
        self._ends = np.cumsum(self._places)

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, for each global position, the dataset's number and the sample's index in that dataset."""
        if len(self._sizes) == 1:
            return np.zeros_like(positions), indices_at(positions, self._sizes[0], self._seed)
        blocks = positions // BLOCK
        slots = permute(positions % BLOCK, BLOCK, derive(derive(self._seed, 0), blocks))
        chosen = np.searchsorted(self._ends, slots, side="right")
        # The number of samples from the same dataset in earlier blocks, and in lower slots of this block.
        local = blocks * self._places[chosen] + slots - (self._ends - self._places)[chosen]
        for number, size in enumerate(self._sizes):
            mask = chosen == number
            local[mask] = indices_at(local[mask], size, derive(self._seed, number + 1))
        return chosen, local

    def epochs(self, samples: int) -> list[float]:
        """Return the number of passes over each dataset after ``samples`` samples of the mixture."""
        return [samples * float(p) / BLOCK / size for p, size in zip(self._places, self._sizes, strict=True)]
