"""Weighted mixtures: which data set, and which of its samples, stands at a global position.

Positions come in blocks of ``BLOCK``. In every block each data set has the same number of places, by the largest
remainder of the weights, at least one; a keyed permutation of the block scatters them. A weight's share is therefore
exact over whole blocks and rounded to 1/``BLOCK`` of the samples. A data set whose share asks for more samples than it
has begins another epoch, in another order.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.order import derive, indices_at, permute

#: A power of four, so that the permutation of a block needs no second walk.
BLOCK = 1 << 14


def quotas(weights: Sequence[float]) -> NDArray[np.int64]:
    """Places of each data set in a block, by the largest remainder of the weights (all above 0), at least one each."""
    exact = np.array(weights, np.float64) / math.fsum(weights) * BLOCK
    places = np.floor(exact).astype(np.int64)
    largest = np.argsort(places - exact, kind="stable")
    places[largest[: BLOCK - places.sum()]] += 1
    while not places.all():
        places[places.argmin()] += 1
        places[places.argmax()] -= 1
    return places


class Mixture:
    """The order of samples over several data sets; over one, exactly ``order.indices_at``."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """``sizes``: samples of each data set; ``weights``: its share, in proportion."""
        self._sizes, self._seed = sizes, seed
        self._places = quotas(weights)
        self._ends = np.cumsum(self._places)

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each global position, the number of the data set and the index of the sample in it."""
        if len(self._sizes) == 1:
            return np.zeros_like(positions), indices_at(positions, self._sizes[0], self._seed)
        blocks = positions // BLOCK
        slots = permute(positions % BLOCK, BLOCK, derive(derive(self._seed, 0), blocks))
        chosen = np.searchsorted(self._ends, slots, side="right")
        # How many samples of its data set stand before it: those of earlier blocks, and of lower slots in this one.
        local = blocks * self._places[chosen] + slots - (self._ends - self._places)[chosen]
        for number, size in enumerate(self._sizes):
            here = chosen == number
            local[here] = indices_at(local[here], size, derive(self._seed, number + 1))
        return chosen, local

    def epochs(self, samples: int) -> list[float]:
        """How many times over each data set is read in so many samples."""
        return [samples * float(p) / BLOCK / size for p, size in zip(self._places, self._sizes, strict=True)]
